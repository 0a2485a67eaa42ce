"""The floors: imports go downwards only, and a name stands for one thing.

The order of `FLOORS` is the order of the house: a folder may import from itself and from what
stands before it. What is an exception stands here, with its reason.
"""

import ast
import collections
import graphlib
import subprocess
import sys
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parents[1] / "jaxalign"

FLOORS = (
    "host",
    "text",
    "losses",
    "records",
    "models",
    "rewards",
    "sampling",
    "data",
    "answers",
    "engine",
    "evaluation",
    "utility",
    "reports",
    "runs",
    "methods",
    "planning",
    "commands",
    "cli",
)

SAME_MODULE_NAME: dict[str, str] = {}
SAME_FUNCTION_NAME: dict[str, str] = {}
PRIVATE_IMPORTS: dict[str, str] = {}

LIGHT = ("jaxalign.losses", "jaxalign.models.sharding")
HEAVY = ("transformers", "gguf", "tokenizers", "datasets", "orbax", "huggingface_hub", "matplotlib")


def modules() -> dict[str, ast.Module]:
    """Dotted name, without `jaxalign`, to the syntax tree of each file."""
    names = {}
    for path in sorted(PACKAGE.rglob("*.py")):
        parts = path.relative_to(PACKAGE).with_suffix("").parts
        names[".".join(parts)] = ast.parse(path.read_text())
    return names


def imports(tree: ast.Module) -> list[tuple[str, str]]:
    """(module without `jaxalign.`, name) of every import of ours, in functions too."""
    found = []
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("jaxalign"):
            module = (node.module or "").removeprefix("jaxalign").removeprefix(".")
            found += [(module, alias.name) for alias in node.names]
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names if alias.name.startswith("jaxalign.")]
            found += [(name.removeprefix("jaxalign."), "") for name in names]
    return found


MODULES = modules()


def target(module: str, name: str) -> str:
    """The file that an import reads: a submodule, a module, or a package's `__init__`."""
    for candidate in (f"{module}.{name}".strip("."), module):
        if candidate in MODULES:
            return candidate
    return f"{module}.__init__"


def test_every_folder_has_a_floor():
    assert {name.split(".")[0] for name in MODULES} == {"__init__", *FLOORS}


@pytest.mark.parametrize("name", [name for name in MODULES if name != "__init__"])
def test_imports_go_downwards(name):
    own = FLOORS.index(name.split(".")[0])
    for module, imported in imports(MODULES[name]):
        theirs = target(module, imported).split(".")[0]
        assert FLOORS.index(theirs) <= own, f"{name} imports jaxalign.{module}, a floor above it"


def test_files_import_in_no_circle():
    graph = {
        name: {target(*found) for found in imports(tree)} - {name} for name, tree in MODULES.items()
    }
    graphlib.TopologicalSorter(graph).prepare()  # raises CycleError and names the files


def test_private_names_stay_in_their_folder():
    for name, tree in MODULES.items():
        folder = name.rpartition(".")[0]
        for module, imported in imports(tree):
            private = imported.startswith("_") and target(module, imported).rpartition(".")[0]
            if private and f"{module}.{imported}" not in PRIVATE_IMPORTS:
                assert private == folder, f"{name} imports the private {module}.{imported}"


def test_no_two_modules_of_one_name():
    places = collections.defaultdict(list)
    for name in MODULES:
        if not name.endswith("__init__"):
            places[name.rpartition(".")[2]].append(name)
    twice = {name: found for name, found in places.items() if len(found) > 1}
    assert set(twice) == set(SAME_MODULE_NAME), twice


def test_no_two_public_functions_of_one_name():
    places = collections.defaultdict(list)
    for name, tree in MODULES.items():
        for node in tree.body:
            if isinstance(node, ast.FunctionDef) and not node.name.startswith("_"):
                places[node.name].append(name)
    twice = {name: found for name, found in places.items() if len(found) > 1}
    assert set(twice) == set(SAME_FUNCTION_NAME), twice


def positional(node: ast.FunctionDef) -> list[str]:
    names = [a.arg for a in (*node.args.posonlyargs, *node.args.args)]
    return [name for name in names if name not in ("self", "cls")]


def test_no_public_function_takes_six_positional_arguments():
    """In the experiments too: what comes sixth is named where it is given."""
    pages = sorted((PACKAGE.parent / "experiments").rglob("*.py"))
    trees = MODULES | {str(page): ast.parse(page.read_text()) for page in pages}
    many = [
        f"{name}: {node.name}"
        for name, tree in trees.items()
        for scope in (tree, *(node for node in tree.body if isinstance(node, ast.ClassDef)))
        for node in scope.body
        if isinstance(node, ast.FunctionDef) and not node.name.startswith("_")
        if len(positional(node)) > 5
    ]
    assert not many


@pytest.mark.parametrize("module", LIGHT)
def test_a_part_is_imported_without_what_reads_files(module):
    code = f"import sys, {module}; print([name for name in {HEAVY} if name in sys.modules])"
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert found.stdout.strip() == "[]"
