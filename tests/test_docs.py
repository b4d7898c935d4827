"""What the documentation says is true: its code runs as written, and nothing public is left out."""

import re
from pathlib import Path

import pytest
from typer import Typer
from typer.main import get_command

import forethought as ft

ROOT = Path(__file__).parent.parent
CLI = ROOT / "src" / "forethought" / "cli.py"
PAGES = [path for path in (ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))) if path.exists()]

BLOCK = re.compile(r"^```python[^\n]*\n(.*?)^```", re.MULTILINE | re.DOTALL)
NOT_RUN = re.compile(r"<!-- not run: (\S.*) -->\s*\Z")


def blocks(text):
    """(line, code) of every Python block that is to be run."""
    for match in BLOCK.finditer(text):
        if not NOT_RUN.search(text[: match.start()]):
            yield text.count("\n", 0, match.start(1)), match[1]


def run(text, name):
    """Run the blocks of one page in order, in one namespace; errors point at the page's own lines."""
    namespace = {"__name__": "__main__"}
    for line, code in blocks(text):
        exec(compile("\n" * line + code, name, "exec"), namespace)
    return namespace


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_blocks_run_as_written(page, tmp_path, monkeypatch):
    """A reader who pastes a page from top to bottom gets no error."""
    monkeypatch.chdir(tmp_path)
    run(page.read_text(), str(page))


def test_pictures_are_there_and_only_drawn():
    """Every picture that a page shows exists, is small, and is lines and text alone."""
    shown = [page.parent / name for page in PAGES for name in re.findall(r"!\[[^\]]*\]\(([^):]+)\)", page.read_text())]
    assert {path.name for path in (ROOT / "docs" / "pictures").iterdir()} <= {path.name for path in shown}
    for path in shown:
        assert path.stat().st_size < 16_000
        assert not re.search(r"<script|<foreignObject|href|\bon\w+=|url\(", path.read_text())


def test_public_names_are_documented():
    """Every word of the facade is in the README or in docs/."""
    text = "\n".join(page.read_text() for page in PAGES)
    public = set(getattr(ft, "__all__", ())) - {"__version__"}
    assert {name for name in public if not re.search(rf"\b{name}\b", text)} == set()


def test_commands_are_documented():
    """Every command, and every command below it, is in the README or in docs/ as it is typed."""
    if not CLI.exists():
        pytest.skip("no command line yet")
    from forethought.cli import app

    text = "\n".join(page.read_text() for page in PAGES)
    assert {name for name in commands(get_command(app), "forethought") if name not in text} == set()


def commands(command, name):
    """Full names of the visible commands below `command`, and its own."""
    yield name
    for child_name, child in getattr(command, "commands", {}).items():
        if not child.hidden:
            yield from commands(child, f"{name} {child_name}")


def test_commands_finds_commands_below_commands():
    """A command group is walked, a hidden command is nobody's to know."""
    app, store = Typer(), Typer()
    app.add_typer(store, name="store")
    for group, name, is_hidden in ((app, "demo", False), (app, "inner", True), (store, "ls", False)):
        group.command(name, hidden=is_hidden)(lambda: None)
    found = set(commands(get_command(app), "forethought"))
    assert found == {"forethought", "forethought demo", "forethought store", "forethought store ls"}


# ------------------------------------------------------------------------------------ the tests themselves

PAGE = """
```python
x = 2
```
<!-- not run: needs a GPU -->
```python
raise RuntimeError
```
```bash
not python
```

```python
y = x + 1
```
"""


def test_run_keeps_one_namespace_and_leaves_out_what_says_so():
    """Later blocks see earlier ones; a block with a reason before it is not run."""
    assert run(PAGE, "page")["y"] == 3


@pytest.mark.parametrize("mark", ["<!-- not run:  -->", "<!-- not run -->", "<!-- not run: far away -->\ntext\n"])
def test_run_leaves_nothing_out_without_a_reason(mark):
    """The mark needs a reason, and stands right before its block."""
    with pytest.raises(ZeroDivisionError):
        run(f"{mark}\n```python\n1 / 0\n```\n", "page")


def test_run_points_at_the_line_of_the_page():
    """A failing block is found where it is written."""
    with pytest.raises(ZeroDivisionError) as caught:
        run("one\ntwo\n```python\n1 / 0\n```\n", "page")
    assert caught.traceback[-1].lineno + 1 == 4
