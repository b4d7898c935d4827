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

# One line a module or sub-package, in the order of the flow: what it may import besides `errors` and itself. Modules of
# its own package are named without it.
TABLE = {
    "errors": set(),
    "shapes": set(),
    "splitting": set(),
    "identifying": set(),
    "samples": set(),
    "probing": set(),
    "extracting": set(),
    "nesting": set(),
    "splitting.operations": set(),
    "heads": set(),
    "energy": set(),
    "timing": set(),
    "devices": set(),
    "order": {"nesting"},
    "parts": {"order"},
    "freezing": {"order", "parts"},
    "splitting.held": {"freezing", "nesting"},
    "splitting.shell": {"freezing", "held", "nesting"},
    "splitting.notes": {"freezing", "held"},
    # What a model does: seen, planned, run in halves, identified.
    "identifying.sources": set(),
    "splitting.recording": {"operations"},
    "splitting.thrift": {"operations", "recording"},
    "splitting.cut": {"operations", "recording", "thrift"},
    "splitting.moving": {"operations", "recording"},
    "splitting.reasons": {"operations", "recording"},
    "splitting.wholes": {"identifying.sources", "nesting", "recording"},
    "splitting.tracker": {"operations", "recording"},
    "splitting.holdings": {"held", "notes", "operations", "recording", "shell", "tracker"},
    "splitting.doubts": {"recording"},
    "splitting.frontier": {
        "cut", "held", "holdings", "moving", "nesting", "notes", "operations", "recording", "shell", "tracker", "wholes",
    },
    "shapes.curves": set(),
    "shapes.padding": {"curves"},
    "shapes.forms": {"padding"},
    "splitting.relabelling": {"recording"},
    "splitting.candidates": {"operations", "recording", "relabelling", "shapes.forms", "thrift"},
    "splitting.sizes": {"nesting", "operations", "recording"},
    "splitting.strangers": {"operations", "recording"},
    "splitting.plan": {"recording", "shapes.curves", "shapes.forms"},
    "splitting.joining": {"nesting", "operations", "plan", "recording", "shapes.forms", "sizes", "strangers"},
    "splitting.placeholder": {"nesting", "operations", "recording", "shapes.forms", "shell"},
    "splitting.levels": {"nesting", "operations", "plan", "recording", "shell"},
    "splitting.head_run": {
        "levels", "nesting", "operations", "placeholder", "plan", "recording", "shapes.forms", "shell",
    },
    "splitting.trunk_run": {"levels", "nesting", "operations", "placeholder", "plan", "recording", "tracker"},
    "probing.chance": set(),
    "probing.dispatch": set(),
    "probing.generators": {"dispatch", "freezing", "nesting"},
    "identifying.tensors": set(),
    "splitting.untouched": {"held", "identifying.tensors", "notes", "probing.chance", "probing.generators", "shell"},
    "splitting.variations": set(),
    "identifying.marks": {"sources"},
    "identifying.contents": set(),
    "identifying.additions": {"sources"},
    "identifying.identity": {"additions", "contents", "marks", "sources", "tensors"},
    "identifying.numerics": set(),
    "splitting.inputs": {"identifying.identity", "nesting", "shapes.padding"},
    "splitting.running": {"head_run", "inputs", "levels", "nesting", "plan", "shell", "trunk_run", "untouched"},
    "identifying.deciders": {"nesting", "sources", "splitting.recording"},
    "identifying.unseen": {"sources"},
    "identifying.patches": {"additions", "sources"},
    "identifying.fingerprint": {
        "deciders", "identity", "nesting", "numerics", "patches", "shapes.curves", "shapes.forms", "sources",
        "splitting.operations", "splitting.plan", "splitting.recording", "unseen",
    },
    "splitting.collecting": set(),
    "splitting.trials": {
        "collecting", "doubts", "frontier", "holdings", "inputs", "joining", "moving", "nesting", "notes", "operations", "plan",
        "probing.generators", "reasons", "recording", "running", "shell", "untouched", "variations",
    },
    "splitting.halves": {
        "identifying.fingerprint", "inputs", "nesting", "plan", "probing.generators", "reasons", "running", "shell",
    },
    "splitting.placement": {"inputs", "nesting", "shell"},
    "splitting.families": {"nesting", "operations", "plan", "recording", "shapes.curves", "shapes.forms"},
    "splitting.stretching": {
        "families", "inputs", "nesting", "operations", "plan", "recording", "shapes.curves", "shapes.forms",
        "shapes.padding", "trials",
    },
    "splitting.matching": {"plan", "recording", "shapes.forms"},
    "splitting.replay": {
        "candidates", "collecting", "halves", "inputs", "matching", "nesting", "placement", "plan",
        "probing.generators", "reasons", "recording", "shapes.curves", "shapes.forms", "shapes.padding", "shell",
        "stretching", "trials", "untouched", "variations",
    },
    # What it said: read, checked, kept, fed.
    "samples.watching": set(),
    "identifying.past": {"sources"},
    "identifying.account": {"identity", "marks", "past", "patches", "sources", "unseen"},
    "samples.measuring": {"nesting", "shapes.padding"},
    "samples.search": {"measuring", "nesting", "shapes.padding"},
    "samples.reading": {"measuring", "nesting", "probing.chance", "watching"},
    "samples.targets": {"identifying.tensors", "nesting", "shapes.padding"},
    "samples.columns": set(),
    "samples.batch": {"columns", "identifying.identity", "identifying.tensors", "nesting", "shapes.padding"},
    "samples.unevenness": {"batch", "measuring", "nesting", "shapes.padding", "targets"},
    "samples.precedents": {"batch", "measuring", "nesting", "shapes.padding", "unevenness"},
    "samples.joints": {"batch", "measuring", "nesting", "precedents", "reading", "search", "unevenness"},
    "samples.kinds": set(),
    "samples.dataset": {
        "batch", "columns", "identifying.account", "joints", "kinds", "precedents", "probing.chance", "reading",
        "shapes.padding", "targets", "unevenness", "watching",
    },
    "probing.blame": {"dispatch", "identifying.identity", "nesting", "splitting.shell", "splitting.untouched"},
    "probing.rounding": {"dispatch"},
    "probing.purity": {
        "blame", "chance", "dispatch", "generators", "identifying.tensors", "nesting", "rounding", "samples.batch",
        "splitting.operations", "splitting.recording", "splitting.replay", "splitting.untouched",
    },
    "extracting.layouts": {
        "nesting", "probing.purity", "probing.rounding", "samples.batch", "samples.measuring", "shapes.forms",
        "shapes.padding", "splitting.replay",
    },
    "extracting.feeding": {"layouts", "nesting", "probing.purity", "shapes.padding"},
    "extracting.ways": {"identifying.identity"},
    "extracting.capturing": {
        "identifying.identity", "nesting", "probing.dispatch", "samples.batch", "splitting.replay", "ways",
    },
    "extracting.speedups": {"capturing", "samples.batch", "samples.dataset", "splitting.replay", "ways"},
    "store": set(),
    "ledger": {"energy", "store"},
    "extracting.precision": {"identifying.identity", "shapes.forms", "shapes.padding"},
    "extracting.rowbytes": {"precision", "shapes.forms", "shapes.padding", "store"},
    "extracting.verification": {
        "identifying.tensors", "precision", "probing.purity", "samples.batch", "samples.dataset", "shapes.forms",
        "shapes.padding", "speedups", "splitting.replay", "ways",
    },
    "extracting.outcome": {"precision", "ways"},
    "feed": {"extracting.precision", "shapes.forms", "shapes.padding", "store"},
    "selection": {"nesting"},
    "views": set(),
    "features": {
        "devices", "extracting.outcome", "extracting.precision", "extracting.rowbytes", "extracting.verification",
        "feed", "ledger", "nesting", "samples.dataset", "samples.targets", "selection", "shapes.forms",
        "shapes.padding", "splitting.halves", "splitting.replay", "store", "views",
    },
    "testing": {"store"},
    "extracting.calibration": {
        "identifying.identity", "precision", "samples.batch", "samples.dataset", "shapes.forms", "store",
    },
    "extracting.accuracy": {"calibration", "nesting", "precision", "shapes.forms", "splitting.replay"},
    "extracting.pace": {
        "capturing", "feed", "identifying.identity", "samples.batch", "samples.dataset", "speedups",
        "splitting.replay", "store", "ways",
    },
    "extracting.soundness": {"store"},
    "extracting.kinship": {
        "calibration", "feed", "identifying.identity", "nesting", "precision", "rowbytes", "samples.batch",
        "samples.precedents", "samples.unevenness", "shapes.forms", "shapes.padding", "soundness", "store",
    },
    "extracting.standing": {
        "identifying.fingerprint", "kinship", "nesting", "precision", "samples.batch", "samples.dataset",
        "samples.unevenness", "shapes.padding", "store",
    },
    "extracting.frozen": {
        "accuracy", "calibration", "devices", "feeding", "identifying.fingerprint", "kinship", "layouts", "pace",
        "precision", "probing.purity", "rowbytes", "samples.batch", "samples.dataset", "samples.unevenness",
        "samples.watching", "shapes.forms", "splitting.placement", "splitting.replay", "standing", "store", "ways",
    },
    "extracting.manifest": {"identifying.identity", "identifying.tensors", "samples.watching"},
    "extracting.roll": {
        "identifying.tensors", "manifest", "samples.batch", "samples.dataset", "samples.targets", "samples.watching",
        "shapes.padding", "store",
    },
    "extracting.division": {"identifying.identity", "store"},
    "extracting.extraction": {
        "division", "energy", "features", "feed", "frozen", "identifying.tensors", "ledger", "outcome", "precision",
        "roll", "samples.batch", "samples.dataset", "samples.unevenness", "shapes.forms", "soundness",
        "splitting.replay", "store", "views", "ways",
    },
    "extracting.live": {
        "feed", "frozen", "nesting", "samples.dataset", "samples.targets", "samples.unevenness", "shapes.forms",
        "shapes.padding", "splitting.halves", "splitting.replay",
    },
    "extracting.writethrough": {
        "extraction", "features", "feed", "frozen", "live", "roll", "samples.batch", "samples.dataset",
        "samples.targets", "samples.unevenness", "shapes.forms", "shapes.padding", "soundness", "splitting.halves",
        "store",
    },
    "extracting.otherwise": {"precision", "store", "ways"},
    "extracting.explanation": {
        "frozen", "identifying.fingerprint", "manifest", "otherwise", "precision", "roll", "samples.dataset",
        "samples.unevenness", "splitting.replay", "store",
    },
    "housekeeping": {
        "extracting.frozen", "extracting.manifest", "extracting.otherwise", "extracting.outcome",
        "extracting.precision", "extracting.verification", "features", "ledger", "samples.dataset", "samples.unevenness", "splitting.replay",
        "store", "views",
    },
    # What is made of it.
    "fitting": {
        "devices", "extracting.extraction", "extracting.frozen", "extracting.live",
        "extracting.precision", "extracting.writethrough", "features", "heads", "ledger", "nesting", "samples.dataset", "splitting.replay",
        "store",
    },
    "savings": {"energy", "features", "fitting", "ledger", "nesting", "store"},
    "bundle": {"splitting.halves", "splitting.recording"},
    "assembly": {
        "bundle", "heads", "identifying.identity", "identifying.numerics", "nesting", "splitting.halves",
        "splitting.recording", "splitting.replay",
    },
    "regress": {
        "assembly", "features", "heads", "nesting", "splitting.halves", "splitting.placeholder", "splitting.recording",
        "splitting.replay",
    },
    # What a person touches stands on the facade; nobody stands on it.
    "doctor": {FACADE, "energy", "timing"},
    "sklearn": {FACADE, "heads"},
    "demo": {FACADE, "energy", "timing"},
    "loading": set(),
    "jobs": {FACADE, "devices", "fitting", "heads", "loading", "views"},
    "jobs_cli": {FACADE, "jobs"},
    "inspection": {
        FACADE, "loading", "nesting", "shapes.forms", "splitting.candidates", "splitting.frontier",
        "splitting.operations", "splitting.recording", "splitting.shell",
    },
    "report": {"energy", "housekeeping", "ledger", "savings", "store"},
    "energy_cli": {FACADE, "energy", "ledger", "report"},
    "shell_words": set(),
    "store_cli": {FACADE, "housekeeping", "jobs", "jobs_cli", "shell_words"},
    "cli": {FACADE, "demo", "doctor", "energy_cli", "inspection", "jobs_cli", "loading", "shell_words", "store_cli"},
    "__main__": {"cli"},
}  # fmt: skip


def named(part, allowed):
    """Names with their package."""
    package = part.rpartition(".")[0]
    return {whole if (whole := f"{package}.{name}") in TABLE else name for name in allowed}


MAY_IMPORT = {part: named(part, allowed) for part, allowed in TABLE.items()}
FACADE_MAY_IMPORT = MAY_IMPORT.keys() - {
    "__main__",
    "cli",
    "demo",
    "doctor",
    "energy_cli",
    "report",
    "inspection",
    "jobs",
    "jobs_cli",
    "loading",
    "shell_words",
    "store_cli",
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
    """The line of the table that `module` falls under: its own, or that of its package."""
    return module if module in MAY_IMPORT else module.split(".")[0]


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
