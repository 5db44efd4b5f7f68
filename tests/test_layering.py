"""Imports point downwards only.

The package is a ladder of layers. A module imports lower layers and its own folder; between two units of one layer
an import needs an entry in `ALLOWED`, with its reason. A new file or folder takes its place in `LAYERS`. Within a
folder there is an order too: its modules and folders, each folder as one, import each other in no circle.
"""

import ast
import collections
import graphlib
from collections.abc import Container, Iterator, Mapping
from pathlib import Path

import pytest

PACKAGE = "polyepo_jax"
ROOT = Path(__file__).resolve().parent.parent

# Bottom to top. A unit is a module or a folder directly under the package.
LAYERS = (
    ("types", "errors", "intervals"),
    ("command_line", "pods", "generations"),
    ("sets", "losses", "sharding", "model", "rewards"),
    ("sampling", "judges", "tasks"),
    ("grading", "reports"),
    ("training",),
    ("evaluation",),
    ("config",),
    ("runs", "planning"),
    ("shared_by_commands",),
    ("train", "evaluate", "sft", "plan", "convert", "grade", "audit_judge", "report", "samples"),
)
LAYER_OF = {unit: layer for layer, units in enumerate(LAYERS) for unit in units}

# (importer, imported) within one layer -> why the two may know each other.
ALLOWED = {
    ("tasks", "judges"): "a task's own clusterer is a judge that needs no model",
    ("judges", "sampling"): "a judge on the mesh is a model that is sampled",
    ("model", "sharding"): "activations are cut over the mesh where they are computed",
}

# Units that may import some of our units only, whatever their layer.
ONLY = {"sets": {"types"}}
# (importer, imported) that no layer's position permits.
FORBIDDEN = {("reports", "model"): "reports are made from run files, also where the model does not fit"}
FLAX_UNIT = "model"


def unit_of(module: str) -> str:
    """`polyepo_jax.sets.construct` -> `sets`; the package itself -> ``."""
    return module.removeprefix(PACKAGE).lstrip(".").partition(".")[0]


def imported_modules(tree: ast.Module) -> list[tuple[int, str]]:
    """Line and full name of all that is imported anywhere in a module; relative imports keep their dots."""
    found = []
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            found += [(node.lineno, alias.name) for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            module = "." * node.level + (node.module or "")
            # `from polyepo_jax import sets` imports the folder; `from polyepo_jax import __version__` a name.
            submodules = [alias.name for alias in node.names if alias.name in LAYER_OF or alias.name == "*"]
            if module == PACKAGE and submodules:
                found += [(node.lineno, f"{module}.{name}") for name in submodules]
            else:
                found.append((node.lineno, module))
    return found


def broken_rule(importer: str, imported: str) -> str:
    """The rule that `importer` (a unit) breaks by importing the module `imported`; empty where it breaks none."""
    if imported.startswith("."):
        return "imports are absolute, relative ones are refused"
    if imported.partition(".")[0] == "flax" and importer != FLAX_UNIT:
        return f"only {PACKAGE}/{FLAX_UNIT} imports flax"
    if imported.partition(".")[0] != PACKAGE:
        return ""
    target = unit_of(imported)
    if target in (importer, ""):
        return ""
    if target not in LAYER_OF:
        return f"{target} belongs to no layer: place it in LAYERS of tests/test_layering.py"
    if (importer, target) in FORBIDDEN:
        return f"{importer} never imports {target}: {FORBIDDEN[importer, target]}"
    if importer in ONLY and target not in ONLY[importer]:
        return f"of our own modules {importer} imports only {', '.join(sorted(ONLY[importer]))}"
    if not importer or LAYER_OF[target] > LAYER_OF[importer]:
        return f"imports point downwards, and {target} stands above {importer or PACKAGE}"
    if LAYER_OF[target] == LAYER_OF[importer] and (importer, target) not in ALLOWED:
        return f"{importer} and {target} share a layer and no entry of ALLOWED joins them"
    return ""


def violations(module: str, tree: ast.Module) -> list[str]:
    """One line for each import of `module` that breaks a rule: file, import, rule."""
    importer = unit_of(module)
    if importer and importer not in LAYER_OF:
        return [f"{module}: {importer} belongs to no layer: place it in LAYERS of tests/test_layering.py"]
    found = [(line, imported, broken_rule(importer, imported)) for line, imported in imported_modules(tree)]
    return [f"{module}, line {line}: imports {imported}: {rule}" for line, imported, rule in found if rule]


def module_name(path: Path) -> str:
    parts = path.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def package_modules() -> dict[str, ast.Module]:
    """The package's modules, by full name."""
    paths = sorted((ROOT / PACKAGE).rglob("*.py"))
    assert paths, f"no modules under {ROOT / PACKAGE}"
    return {module_name(path): ast.parse(path.read_text("utf-8")) for path in paths}


def own_imports(tree: ast.Module, modules: Container[str]) -> Iterator[str]:
    """Which of `modules` are imported anywhere in one; `from folder import module` imports the module."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names if alias.name in modules)
        elif isinstance(node, ast.ImportFrom):
            names = {f"{node.module}.{alias.name}" for alias in node.names}
            yield from (found for name in names if (found := name if name in modules else node.module) in modules)


def where_they_part(importer: str, imported: str) -> tuple[str, str, str]:
    """The lowest folder that holds two modules, and what of it each of them is or lies in."""
    ends = [name.split(".") for name in (importer, imported)]
    shared = next((i for i, (a, b) in enumerate(zip(*ends, strict=False)) if a != b), min(map(len, ends)))
    # A folder is itself a module, of its `__init__`, which lies in it.
    here, there = (".".join([*end, "__init__"][: shared + 1]) for end in ends)
    return ".".join(ends[0][:shared]), here, there


def circle(modules: Mapping[str, ast.Module]) -> list[str]:
    """Modules and folders of one folder that import each other in a circle; empty where there is none."""
    graphs = collections.defaultdict(lambda: collections.defaultdict(set))
    for importer, tree in modules.items():
        for imported in own_imports(tree, modules):
            folder, here, there = where_they_part(importer, imported)
            graphs[folder][here].add(there)
    for graph in graphs.values():
        try:
            graphlib.TopologicalSorter(graph).prepare()
        except graphlib.CycleError as error:
            return error.args[1]
    return []


def test_imports_point_downwards():
    found = [line for module, tree in package_modules().items() for line in violations(module, tree)]
    assert not found, "\n" + "\n".join(found)


def test_imports_make_no_circle():
    found = circle(package_modules())
    assert not found, " is imported by ".join(found)


@pytest.mark.parametrize(
    ("sources", "found"),
    [
        ({"a.b": "", "a.c": "from a import b", "a.d.e": "from a.c import x", "a.d": "import a.d.e"}, set()),
        ({"a.b": "import a.c", "a.c": "def f():\n  from a.b import x"}, {"a.b", "a.c"}),
        ({"a.b": "from a.d.e import x", "a.d.e": "", "a.d.f": "from a.b import y"}, {"a.b", "a.d"}),
        ({"a.d": "from a.d.e import x", "a.d.e": "from a.d import x"}, {"a.d.__init__", "a.d.e"}),
    ],
)
def test_checker_finds_a_circle(sources, found):
    assert set(circle({module: ast.parse(source) for module, source in sources.items()})) == found


def test_exceptions_are_within_one_layer_and_one_way():
    assert all(LAYER_OF[importer] == LAYER_OF[imported] for importer, imported in ALLOWED)
    assert all(ALLOWED.values()), "an exception states its reason"
    assert not [pair for pair in ALLOWED if pair[::-1] in ALLOWED], "two units never import each other"


@pytest.mark.parametrize(
    ("module", "source", "rule"),
    [
        ("sets.construct", "from polyepo_jax.sampling import generate", "only types"),
        ("sets.construct", "def f():\n  from polyepo_jax import errors", "only types"),
        ("losses", "from polyepo_jax.train import main", "stands above"),
        ("losses", "import polyepo_jax.sets as s", "share a layer"),
        ("train", "from polyepo_jax import evaluate", "share a layer"),
        ("types", "from polyepo_jax import sets, __version__", "stands above"),
        ("reports.page", "from polyepo_jax.model import forward", "never imports model"),
        ("training.update", "import flax.nnx", "imports flax"),
        ("training.update", "from flax import nnx", "imports flax"),
        ("model.transformer", "from . import cache", "relative"),
        ("model.transformer", "from ..types import Array", "relative"),
        ("training.update", "from polyepo_jax.helpers import f", "no layer"),
        ("training.update", "from polyepo_jax import *", "no layer"),
        ("helpers", "import math", "no layer"),
        ("", "from polyepo_jax.sets import all_sets", "stands above"),
    ],
)
def test_checker_finds_a_violation(module, source, rule):
    found = violations(f"{PACKAGE}.{module}".rstrip("."), ast.parse(source))
    assert len(found) == 1
    assert rule in found[0]


@pytest.mark.parametrize(
    ("module", "source"),
    [
        ("sets.construct", "import math\nimport jax\nfrom polyepo_jax.types import Array"),
        ("sets.advantages", "from polyepo_jax.sets import closed_form"),
        ("model.transformer", "from flax import nnx"),
        ("training.update", "from polyepo_jax import __version__\nfrom polyepo_jax import losses, sharding"),
        ("evaluation.sweep", "from polyepo_jax.grading import grade"),
        ("train", "import polyepo_jax.runs.run_directory\nimport flaxen"),
    ],
)
def test_checker_passes_what_is_allowed(module, source):
    assert violations(f"{PACKAGE}.{module}", ast.parse(source)) == []
