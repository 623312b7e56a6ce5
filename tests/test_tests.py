"""The house rules of tests that a program can check: every test is run, and every test can fail."""

import ast
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

TESTS = Path(__file__).parent
TREES = {path: ast.parse(path.read_text(), str(path)) for path in sorted(TESTS.rglob("*.py"))}
Function = ast.FunctionDef | ast.AsyncFunctionDef


def functions(tree: ast.AST) -> Iterator[Function]:
    return (node for node in ast.walk(tree) if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef))


def named(node: ast.expr) -> str:
    """The last part of a name: `fail` of `pytest.fail`."""
    return node.attr if isinstance(node, ast.Attribute) else node.id if isinstance(node, ast.Name) else ""


def calls(function: Function) -> set[str]:
    return {named(node.func) for node in ast.walk(function) if isinstance(node, ast.Call)}


def asserts(function: Function) -> bool:
    """By itself: with `assert`, by a call that pytest or a child's exit code makes fail, or by raising."""
    for node in ast.walk(function):
        if isinstance(node, ast.Assert | ast.Raise):
            return True
        if isinstance(node, ast.Call):
            if named(node.func) in ("raises", "fail", "assert_close", "assert_allclose", "raise_for_status"):
                return True
            if any(k.arg == "check" and isinstance(k.value, ast.Constant) and k.value.value is True for k in node.keywords):
                return True
    return False


def asserting() -> set[str]:
    """Names of the helpers of tests that assert, also by way of each other."""
    helpers = [f for tree in TREES.values() for f in functions(tree) if not f.name.startswith("test")]
    found = {f.name for f in helpers if asserts(f)}
    while more := {f.name for f in helpers if f.name not in found and calls(f) & found}:
        found |= more
    return found


def declared(tree: ast.AST) -> Iterator[tuple[str, Function]]:
    """Tests with the class that they are in."""
    for node in ast.iter_child_nodes(tree):
        if isinstance(node, ast.ClassDef):
            yield from ((f"{node.name}.", f) for _, f in declared(node))
        elif isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef) and node.name.startswith("test"):
            yield "", node


def test_no_test_hides_another_of_its_name() -> None:
    """Python keeps the last of two functions of one name, and says nothing."""
    twice = {
        f"{path.relative_to(TESTS)}: {name}"
        for path, tree in TREES.items()
        for name, times in Counter(where + f.name for where, f in declared(tree)).items()
        if times > 1
    }
    assert twice == set()


def test_every_test_asserts_something() -> None:
    helpers = asserting()
    assert len(helpers) > 20, "the test looks in the wrong directory"
    without = [
        f"{path.relative_to(TESTS)}:{f.lineno} {where}{f.name}"
        for path, tree in TREES.items()
        for where, f in declared(tree)
        if not asserts(f) and not calls(f) & helpers
    ]
    assert without == []


def test_no_test_looks_at_one_member_of_many_and_stops() -> None:
    """`for … in …: assert …; break`: which member of a set it is changes from run to run, and what failed will not fail again."""
    wrong = [
        f"{path.relative_to(TESTS)}:{node.lineno}"
        for path, tree in TREES.items()
        for node in ast.walk(tree)
        if isinstance(node, ast.For) and isinstance(node.body[-1], ast.Break)
    ]
    assert wrong == []
