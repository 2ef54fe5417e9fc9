"""Line coverage by statements that are added to the code of `src`, before Python 3.12.

Python 3.12 has `sys.monitoring`, which costs nearly nothing. Before, coverage is measured by a
trace function, which takes a third of the time of all Python code, not only of `src`. Here each
group of statements of `src` has one more that sets an element of a list, `if counted: done[7] =
True`, and the trace function is switched off. The executed lines are added to coverage's at the
end. A group is a run of simple statements, to the first compound one or to the end of the body. It
counts when its last statement begins. So a line may be reported that was executed, but only
beside one that never was.

Tests marked `uncounted` clear `counted`, because PyTorch would compile the added statements, too.
Where nothing is traced, as with `--no-cov`, all of this does nothing.
"""

from __future__ import annotations

import ast
import functools
import sys
import threading
from collections.abc import Iterator
from importlib.machinery import SourceFileLoader
from pathlib import Path
from types import ModuleType

import coverage
import pytest

SOURCE = str(Path(__file__).resolve().parents[1] / "src") + "/"

# The groups of lines of each file and which of them were executed; the modules that say so.
_executed: dict[str, tuple[list[list[int]], list[bool | None]]] = {}
_modules: list[ModuleType] = []
_original = SourceFileLoader.exec_module


def replace_tracer() -> None:
    """Switch coverage's trace function off, if there is one, and count lines instead."""
    # pytest-cov asks for two reports, the total's and the one that it prints: parse each file once.
    coverage.Coverage._get_file_reporter = functools.cache(coverage.Coverage._get_file_reporter)
    if type(sys.gettrace()).__name__ == "CTracer":
        sys.settrace(None)
        threading.settrace(None)
        SourceFileLoader.exec_module = _exec_module


def _exec_module(loader: SourceFileLoader, module: ModuleType) -> None:
    path = loader.get_filename(module.__name__)
    if not path.startswith(SOURCE):
        return _original(loader, module)
    tree, groups = add_counters(loader.get_data(path))
    _, done = _executed.setdefault(path, (groups, [None] * len(groups)))
    module.__dict__.update({"@done": done, "@counted": True})
    _modules.append(module)
    exec(compile(tree, path, "exec", dont_inherit=True), module.__dict__)


def add_counters(source: bytes | str) -> tuple[ast.Module, list[list[int]]]:
    """Parse a module; put before the last statement of each group one that marks the group.

    Returns:
        The module, and for each group the lines where its statements begin.
    """
    tree, groups = ast.parse(source), []
    for node in list(ast.walk(tree)):
        for name in ("body", "orelse", "finalbody"):
            if isinstance(body := getattr(node, name, None), list):
                body[:] = _counted_body(node, body, groups)
    return tree, groups


def _counted_body(
    node: ast.AST, body: list[ast.stmt], groups: list[list[int]]
) -> Iterator[ast.stmt]:
    # The line of an `except` or a `case` counts when its body is executed.
    lines = set()
    if isinstance(node, ast.ExceptHandler):
        lines = {node.lineno}
    elif isinstance(node, ast.match_case):
        lines = {node.pattern.lineno}
    for number, statement in enumerate(body):
        decorators = getattr(statement, "decorator_list", [])
        lines |= {each.lineno for each in (statement, *decorators)}
        is_compound = hasattr(statement, "body") or isinstance(statement, ast.Match)
        is_last = is_compound or number == len(body) - 1
        if is_last and not _must_be_first(node, statement, number):
            yield _counter(lines, groups)
            lines = set()
        yield statement
    if lines:  # of a body of only what must be first
        yield _counter(lines, groups)


def executed_lines(groups: list[list[int]], done: list[bool | None]) -> set[int]:
    """Return the lines of the groups that were executed."""
    return {line for group, is_done in zip(groups, done, strict=True) if is_done for line in group}


def _must_be_first(node: ast.AST, statement: ast.stmt, number: int) -> bool:
    """Whether nothing may stand before a statement: a docstring, or an import of `__future__`."""
    if isinstance(statement, ast.ImportFrom):
        return statement.module == "__future__"
    is_definition = isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef)
    return number == 0 and is_definition and ast.get_docstring(node, clean=False) is not None


def _counter(lines: set[int], groups: list[list[int]]) -> ast.stmt:
    """Add a group; return `if counted: done[n] = True`, with variables no other code can name."""
    place = dict.fromkeys(("lineno", "end_lineno"), max(lines))
    place |= {"col_offset": 0, "end_col_offset": 0}
    load, store = ast.Load(), ast.Store()
    done, number = ast.Name("@done", load, **place), ast.Constant(len(groups), **place)
    groups.append(sorted(lines))
    element = ast.Subscript(done, number, store, **place)
    assignment = ast.Assign([element], ast.Constant(True, **place), **place)
    return ast.If(ast.Name("@counted", load, **place), [assignment], [], **place)


@pytest.hookimpl(wrapper=True)
def pytest_pyfunc_call(pyfuncitem: pytest.Item):
    """Count no lines in a test marked `uncounted`."""
    if not pyfuncitem.get_closest_marker("uncounted"):
        return (yield)
    _count(False)
    try:
        return (yield)
    finally:
        _count(True)


def _count(is_counted: bool) -> None:
    for module in _modules:
        module.__dict__["@counted"] = is_counted


@pytest.hookimpl(wrapper=True, trylast=True)
def pytest_runtestloop():
    """When all tests have run, and before pytest-cov saves, add the executed lines."""
    result = yield
    if _executed:
        found = {path: executed_lines(*each) for path, each in _executed.items()}
        coverage.Coverage.current().get_data().add_lines(found)
    return result
