"""CI runs tests that need torch by their marker on Python 3.11: none may lack it."""

import ast
from pathlib import Path

TESTS = Path(__file__).parent


def needs_torch(node: ast.AST) -> bool:
    text = ast.unparse(node)
    return "importorskip('torch'" in text or "torch for this comes" in text


def names_of(fixtures: list[ast.FunctionDef]) -> set[str]:
    return {node.name for node in fixtures if needs_torch(node)}


def test_what_needs_torch_is_marked():
    unmarked = []
    for path in TESTS.rglob("test_*.py"):
        tree = ast.parse(path.read_text())
        functions = [node for node in tree.body if isinstance(node, ast.FunctionDef)]
        whole = any(needs_torch(n) for n in tree.body if not isinstance(n, ast.FunctionDef))
        fixtures = names_of([node for node in functions if not node.name.startswith("test_")])
        if whole and "pytestmark = pytest.mark.torch" not in path.read_text():
            unmarked.append(str(path))
        for node in functions:
            asks = {argument.arg for argument in node.args.args} & fixtures
            if node.name.startswith("test_") and (needs_torch(node) or asks):
                marks = [ast.unparse(mark) for mark in node.decorator_list]
                if "pytest.mark.torch" not in marks and not whole:
                    unmarked.append(f"{path}: {node.name}")
    assert not [name for name in unmarked if "test_markers" not in name]
