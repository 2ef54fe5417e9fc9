"""Line coverage by statements that are added to the code of `src`, before Python 3.12.

Python 3.12 has `sys.monitoring`, which costs nearly nothing. Before, coverage is measured by a
trace function, which takes a third of the time of all Python code, not only of `src`. Here each
statement of `src` is preceded by one that sets an element of a list, `if counted: lines[7] = True`,
and the trace function is switched off. The executed lines are added to coverage's at the end.

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

# The executed lines of each file, and the modules that add to them.
_executed: dict[str, list[bool | None]] = {}
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
    source = loader.get_data(path)
    lines = _executed.setdefault(path, [None] * (source.count(b"\n") + 2))
    module.__dict__.update({"@lines": lines, "@counted": True})
    _modules.append(module)
    exec(compile(add_counters(source), path, "exec", dont_inherit=True), module.__dict__)


def add_counters(source: bytes | str) -> ast.Module:
    """Parse a module; put before each statement one that marks the lines where it begins."""
    tree = ast.parse(source)
    for node in list(ast.walk(tree)):
        for name in ("body", "orelse", "finalbody"):
            if isinstance(body := getattr(node, name, None), list):
                body[:] = _counted_body(node, body)
    return tree


def _counted_body(node: ast.AST, body: list[ast.stmt]) -> Iterator[ast.stmt]:
    # The line of an `except` or a `case` counts when its body is executed.
    lines = set()
    if isinstance(node, ast.ExceptHandler):
        lines = {node.lineno}
    elif isinstance(node, ast.match_case):
        lines = {node.pattern.lineno}
    for number, statement in enumerate(body):
        decorators = getattr(statement, "decorator_list", [])
        lines |= {each.lineno for each in (statement, *decorators)}
        if not _must_be_first(node, statement, number):
            yield from (_counter(line) for line in sorted(lines))
            lines = set()
        yield statement
    yield from (_counter(line) for line in sorted(lines))  # of a module of only such statements


def _must_be_first(node: ast.AST, statement: ast.stmt, number: int) -> bool:
    """Whether nothing may stand before a statement: a docstring, or an import of `__future__`."""
    if isinstance(statement, ast.ImportFrom):
        return statement.module == "__future__"
    is_definition = isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef)
    return number == 0 and is_definition and ast.get_docstring(node, clean=False) is not None


def _counter(line: int) -> ast.stmt:
    """Return `if counted: lines[line] = True`, with variables that no other code can name."""
    place = {"lineno": line, "end_lineno": line, "col_offset": 0, "end_col_offset": 0}
    load, store = ast.Load(), ast.Store()
    lines = ast.Name("@lines", load, **place)
    element = ast.Subscript(lines, ast.Constant(line, **place), store, **place)
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
        found = {
            path: [number for number, is_executed in enumerate(lines) if is_executed]
            for path, lines in _executed.items()
        }
        coverage.Coverage.current().get_data().add_lines(found)
    return result
