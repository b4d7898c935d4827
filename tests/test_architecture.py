"""The shape of the package: who may import whom, how long things may be, what may never be there."""

import ast
import json
import subprocess
import sys
from functools import cache
from graphlib import TopologicalSorter
from pathlib import Path

import pytest

import forethought as ft

PACKAGE = Path(ft.__file__).parent
FACADE = "forethought"

# One line a module or sub-package, in the order of the flow: what it may import besides `errors` and itself.
MAY_IMPORT = {
    "errors": set(),
    "nesting": set(),
    "operations": set(),
    "held": {"nesting"},
    "notes": set(),
    "shell": {"held"},
    "heads": set(),
    "energy": set(),
    "timing": set(),
    "order": {"nesting"},
    "parts": {"order"},
    "freezing": {"order", "parts"},
    # What a model does: seen, planned, run in halves, identified.
    "recording": {"operations"},
    "thrift": {"operations", "recording"},
    "cut": {"operations", "recording", "thrift"},
    "moving": {"operations", "recording"},
    "wholes": {"nesting", "recording"},
    "frontier": {"cut", "held", "moving", "nesting", "notes", "operations", "recording", "shell", "wholes"},
    "curves": set(),
    "padding": {"curves"},
    "forms": {"padding"},
    "relabelling": {"recording"},
    "candidates": {"forms", "operations", "recording", "relabelling", "thrift"},
    "sizes": {"nesting", "operations", "recording"},
    "strangers": {"operations", "recording"},
    "plan": {"curves", "forms", "recording"},
    "joining": {"forms", "nesting", "operations", "plan", "recording", "sizes", "strangers"},
    "placeholder": {"forms", "nesting", "operations", "recording", "shell"},
    "levels": {"nesting", "operations", "plan", "recording"},
    "head_run": {"forms", "levels", "nesting", "operations", "placeholder", "plan", "recording"},
    "trunk_run": {"frontier", "levels", "nesting", "operations", "placeholder", "plan", "recording"},
    "chance": set(),
    "dispatch": set(),
    "generators": {"dispatch", "nesting"},
    "tensors": set(),
    "untouched": {"chance", "generators", "held", "notes", "shell", "tensors"},
    "variations": set(),
    "sources": set(),
    "marks": {"sources"},
    "contents": set(),
    "identity": {"contents", "marks", "sources", "tensors"},
    "numerics": set(),
    "inputs": {"identity", "nesting", "padding"},
    "running": {"head_run", "inputs", "nesting", "plan", "shell", "trunk_run", "untouched"},
    "deciders": {"nesting", "recording", "sources"},
    "fingerprint": {
        "curves", "deciders", "forms", "identity", "nesting", "numerics", "operations", "plan", "recording", "sources",
    },
    "trials": {
        "frontier", "generators", "inputs", "joining", "nesting", "plan", "recording", "running", "shell", "untouched",
        "variations",
    },
    "halves": {"fingerprint", "generators", "inputs", "nesting", "plan", "running", "shell"},
    "placement": {"nesting"},
    "families": {"curves", "forms", "nesting", "operations", "plan", "recording"},
    "stretching": {
        "curves", "families", "forms", "inputs", "nesting", "operations", "padding", "plan", "recording", "trials",
    },
    "matching": {"forms", "plan"},
    "replay": {
        "candidates", "curves", "forms", "generators", "halves", "inputs", "matching", "nesting", "padding", "placement", "plan",
        "recording", "stretching", "trials", "variations",
    },
    # What it said: read, checked, kept, fed.
    "watching": set(),
    "past": {"sources"},
    "account": {"identity", "marks", "past", "sources"},
    "measuring": {"nesting", "padding"},
    "search": {"measuring", "nesting", "padding"},
    "reading": {"chance", "measuring", "nesting", "watching"},
    "targets": {"nesting", "padding", "tensors"},
    "columns": set(),
    "batch": {"columns", "identity", "nesting", "padding", "tensors"},
    "unevenness": {"batch", "measuring", "nesting", "padding", "targets"},
    "joints": {"batch", "measuring", "nesting", "reading", "search", "unevenness"},
    "dataset": {
        "account", "batch", "chance", "columns", "joints", "padding", "reading", "targets", "unevenness", "watching",
    },
    "blame": {"dispatch", "identity", "nesting", "shell", "untouched"},
    "rounding": {"dispatch"},
    "purity": {
        "batch", "blame", "chance", "dispatch", "generators", "nesting", "operations", "recording", "replay",
        "rounding", "tensors",
    },
    "layouts": {"batch", "forms", "measuring", "nesting", "padding", "purity", "replay", "rounding"},
    "feeding": {"layouts", "nesting", "padding", "purity"},
    "ways": {"identity"},
    "capturing": {"batch", "dispatch", "identity", "nesting", "replay", "ways"},
    "speedups": {"batch", "capturing", "dataset", "replay", "ways"},
    "store": set(),
    "ledger": {"energy", "store"},
    "precision": {"forms", "identity", "padding"},
    "rowbytes": {"forms", "padding", "precision", "store"},
    "verification": {
        "batch", "dataset", "forms", "padding", "precision", "purity", "replay", "speedups", "tensors", "ways",
    },
    "outcome": {"precision", "ways"},
    "feed": {"forms", "padding", "precision", "store"},
    "selection": {"nesting"},
    "views": set(),
    "features": {
        "dataset", "feed", "forms", "halves", "ledger", "nesting", "outcome", "padding", "precision", "replay",
        "rowbytes", "selection", "store", "targets", "verification", "views",
    },
    "testing": {"store"},
    "calibration": {"batch", "dataset", "forms", "identity", "precision", "store"},
    "accuracy": {"calibration", "forms", "nesting", "precision", "replay"},
    "pace": {"batch", "capturing", "dataset", "feed", "identity", "replay", "speedups", "store", "ways"},
    "frozen": {
        "accuracy", "batch", "calibration", "dataset", "feeding", "fingerprint", "forms", "layouts", "nesting", "pace",
        "padding", "placement", "precision", "purity", "replay", "rowbytes", "store", "unevenness", "ways",
    },
    "manifest": {"identity", "tensors", "watching"},
    "roll": {"batch", "dataset", "manifest", "padding", "store", "targets", "tensors", "watching"},
    "division": {"identity", "store"},
    "extraction": {
        "dataset", "division", "energy", "features", "feed", "frozen", "ledger", "outcome", "precision", "replay", "roll",
        "store", "tensors", "unevenness", "views", "ways",
    },
    "live": {"dataset", "feed", "forms", "frozen", "halves", "nesting", "padding", "replay", "targets", "unevenness"},
    "writethrough": {
        "batch", "dataset", "extraction", "features", "feed", "forms", "frozen", "halves", "live", "padding", "roll",
        "store", "targets", "unevenness",
    },
    "explanation": {"dataset", "fingerprint", "frozen", "manifest", "replay", "roll", "store", "unevenness"},
    "housekeeping": {
        "dataset", "features", "frozen", "ledger", "manifest", "outcome", "precision", "replay", "store",
        "unevenness", "verification", "views",
    },
    # What is made of it.
    "fitting": {
        "dataset", "extraction", "features", "frozen", "heads", "ledger", "live", "nesting", "precision", "replay",
        "store", "writethrough",
    },
    "savings": {"energy", "features", "fitting", "ledger", "nesting", "store"},
    "bundle": {"halves", "recording"},
    "assembly": {"bundle", "halves", "heads", "identity", "nesting", "numerics", "recording", "replay"},
    "regress": {"assembly", "features", "halves", "heads", "nesting", "placeholder", "recording", "replay"},
    # What a person touches stands on the facade; nobody stands on it.
    "doctor": {FACADE, "energy", "timing"},
    "sklearn": {FACADE, "heads"},
    "demo": {FACADE, "energy", "timing"},
    "loading": set(),
    "jobs": {FACADE, "fitting", "heads", "loading", "views"},
    "jobs_cli": {FACADE, "jobs"},
    "inspection": {FACADE, "candidates", "forms", "frontier", "loading", "nesting", "operations", "recording", "shell"},
    "report": {"energy", "housekeeping", "ledger", "savings", "store"},
    "energy_cli": {FACADE, "energy", "ledger", "report"},
    "cli": {FACADE, "demo", "doctor", "energy_cli", "housekeeping", "inspection", "jobs_cli", "loading"},
}  # fmt: skip
FACADE_MAY_IMPORT = MAY_IMPORT.keys() - {
    "cli",
    "demo",
    "doctor",
    "energy_cli",
    "report",
    "inspection",
    "jobs",
    "jobs_cli",
    "loading",
    "testing",
}

# `store` sees bytes and `energy` sees joules: neither knows of models.
WITHOUT_TORCH = ("store", "energy", "timing", "errors")
NEVER_IMPORTED = {"pickle", "dill", "cloudpickle", "joblib", "shelve", "marshal"}
# What `import forethought` must not cost. (torch itself imports pynvml where it is installed.)
NOT_AT_IMPORT = {
    "datasets", "matplotlib", "pandas", "pretty_midi", "pytest", "rich", "scipy", "sklearn", "timm", "torchaudio",
    "torchcrepe", "torchvision", "transformers", "typer",
}  # fmt: skip
FORBIDDEN_NAMES = {"utils", "common", "core", "base", "helpers"}
MOST_LINES = 400
MOST_LINES_OF_BODY = 60


def name_of(path):
    """Dotted name inside the package; the facade is `forethought`."""
    parts = path.relative_to(PACKAGE).with_suffix("").parts
    return ".".join(part for part in parts if part != "__init__") or FACADE


MODULES = {name_of(path): path for path in sorted(PACKAGE.rglob("*.py"))}
every_module = pytest.mark.parametrize("module", MODULES)


@cache
def tree(module):
    """What Python reads in a module."""
    return ast.parse(MODULES[module].read_text())


def part_of(module):
    """The line of the table that `module` falls under."""
    return module.split(".")[0]


def resolve(dotted):
    """The module of the package that `forethought.<dotted>` is in."""
    while dotted and dotted not in MODULES:
        dotted = dotted.rpartition(".")[0]
    return dotted or FACADE


def imported_by(module):
    """Absolute names of everything that a module imports, at its top or inside a function."""
    package = [FACADE, *module.split(".")] if module != FACADE else [FACADE]
    if MODULES[module].name != "__init__.py":
        package.pop()
    for node in ast.walk(tree(module)):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            above = package[: len(package) - node.level + 1] if node.level else []
            start = ".".join([*above, *filter(None, [node.module])])
            yield from (f"{start}.{alias.name}" for alias in node.names)


def inner_imports(module):
    """Modules of the package that a module imports."""
    names = [name.split(".", 1) for name in imported_by(module)]
    return {resolve(".".join(rest)) for top, *rest in names if top == FACADE}


# ----------------------------------------------------------------------------------------------- imports


@every_module
def test_module_imports_only_what_the_table_allows(module):
    """Imports go one way. An unknown module fails until the table names it."""
    part = part_of(module)
    assert part == FACADE or part in MAY_IMPORT, f"{module} is not in MAY_IMPORT: say what it may import"
    allowed = FACADE_MAY_IMPORT if part == FACADE else MAY_IMPORT[part] | {"errors", part}
    assert {part_of(name) for name in inner_imports(module)} <= allowed


def test_table_has_one_direction():
    """The table itself has no cycle: each line stands on lines above it."""
    known = {FACADE}
    for part, allowed in MAY_IMPORT.items():
        assert allowed <= known, f"{part} may import {allowed - known}, declared later"
        known.add(part)


def test_modules_have_no_cycle():
    """Inside a sub-package too, no module imports itself by a detour."""
    graph = {module: inner_imports(module) - {module} for module in MODULES}
    TopologicalSorter(graph).prepare()


@every_module
def test_module_without_torch_imports_no_torch(module):
    """What knows only bytes, joules or seconds stays free of the framework."""
    if part_of(module) in WITHOUT_TORCH:
        assert "torch" not in {name.split(".")[0] for name in imported_by(module)}


def test_import_of_the_facade_is_light():
    """`import forethought` brings torch and no optional or drawing package."""
    script = "import json, sys, forethought; print(json.dumps(sorted(sys.modules)))"
    run = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert NOT_AT_IMPORT.isdisjoint(json.loads(run.stdout))


# -------------------------------------------------------------------------------------------------- size


@every_module
def test_module_is_short(module):
    """A module is read in one sitting, and named after what it holds."""
    lines = MODULES[module].read_text().count("\n")
    assert lines <= MOST_LINES
    assert MODULES[module].stem not in FORBIDDEN_NAMES


@every_module
def test_functions_are_short(module):
    """A body, its docstring aside, fits on a screen."""
    functions = [n for n in ast.walk(tree(module)) if isinstance(n, ast.FunctionDef | ast.AsyncFunctionDef)]
    lengths = {function.name: body_lines(function) for function in functions}
    assert {name: length for name, length in lengths.items() if length > MOST_LINES_OF_BODY} == {}


def body_lines(function):
    body = function.body[1:] if ast.get_docstring(function) else function.body
    return body[-1].end_lineno - body[0].lineno + 1 if body else 0


# ---------------------------------------------------------------------------------------------- contents


def test_public_names_have_docstrings():
    """Every word of the facade says what it is, and the list is sorted."""
    public = getattr(ft, "__all__", ())
    assert list(public) == sorted(public)
    assert [name for name in public if name != "__version__" and not has_own_docstring(getattr(ft, name))] == []


def has_own_docstring(value):
    return bool(vars(value).get("__doc__") if isinstance(value, type) else value.__doc__)


@every_module
def test_module_has_a_docstring(module):
    """The first line of a module says what it is for; an empty file needs none."""
    assert ast.get_docstring(tree(module)) or not tree(module).body


@every_module
def test_nothing_runs_code_on_load(module):
    """No pickle, under any of its names: what is read from disk is numbers and text."""
    if part_of(module) == "testing":
        return  # its laws send stores to other processes, as their users do
    assert NEVER_IMPORTED.isdisjoint(name.split(".")[0] for name in imported_by(module))
    calls = [node for node in ast.walk(tree(module)) if isinstance(node, ast.Call)]
    for call in calls:
        given = {word.arg: word.value for word in call.keywords}
        if ast.unparse(call.func) == "torch.load":
            assert is_true(given.get("weights_only")), f"{module}:{call.lineno} torch.load without weights_only"
        assert not is_true(given.get("allow_pickle")), f"{module}:{call.lineno} allow_pickle"


def is_true(node):
    return isinstance(node, ast.Constant) and node.value is True
