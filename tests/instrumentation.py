"""Line coverage by statements that are added to the code of `src`, before Python 3.12.

Python 3.12 has `sys.monitoring`, which costs nearly nothing. Before, coverage is measured by a
trace function, which takes a third of the time of all Python code, not only of `src`. Here each
group of statements of `src` has one more that clears a flag of its own, `if flag_7: flag_7 =
False`, and the trace function is switched off: all but the first execution take a few nanoseconds.
The executed lines are added to coverage's at the end. A group is a run of simple statements, to the
first compound one or to the end of the body. It counts when its last statement begins. So a line
may be reported that was executed, but only beside one that never was.

Tests marked `uncounted` have all flags cleared, because PyTorch would compile the added statements,
too.
Where nothing is traced, as with `--no-cov`, all of this does nothing.
"""

from __future__ import annotations

import ast
import functools
import sys
import threading
from collections import defaultdict
from collections.abc import Iterator, Mapping
from importlib.machinery import SourceFileLoader
from pathlib import Path
from types import ModuleType

import coverage
import pytest

SOURCE = str(Path(__file__).resolve().parents[1] / "src") + "/"

# The groups of lines of each module, whose variables say which of them were executed.
_modules: dict[ModuleType, list[list[int]]] = {}
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
    for flag in flags(groups):
        module.__dict__.setdefault(flag, True)  # unless it is loaded again
    _modules[module] = groups
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
            yield from _counter(lines, groups)
            lines = set()
        yield statement
    if lines:  # of a body of only what must be first
        yield from _counter(lines, groups)


def flags(groups: list[list[int]]) -> list[str]:
    """Return the names of the groups' flags, which no other code can have."""
    return [f"@{number}" for number in range(len(groups))]


def executed_lines(groups: list[list[int]], variables: Mapping[str, object]) -> set[int]:
    """Return the lines of the groups whose flags are cleared."""
    flagged = zip(groups, flags(groups), strict=True)
    return {line for group, flag in flagged if not variables[flag] for line in group}


def _must_be_first(node: ast.AST, statement: ast.stmt, number: int) -> bool:
    """Whether nothing may stand before a statement: a docstring, or an import of `__future__`."""
    if isinstance(statement, ast.ImportFrom):
        return statement.module == "__future__"
    is_definition = isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef)
    return number == 0 and is_definition and ast.get_docstring(node, clean=False) is not None


def _counter(lines: set[int], groups: list[list[int]]) -> Iterator[ast.stmt]:
    """Add a group; yield `global flag` and `if flag: flag = False`."""
    place = dict.fromkeys(("lineno", "end_lineno"), max(lines))
    place |= {"col_offset": 0, "end_col_offset": 0}
    flag = f"@{len(groups)}"
    groups.append(sorted(lines))
    target, false = ast.Name(flag, ast.Store(), **place), ast.Constant(False, **place)
    yield ast.Global([flag], **place)
    yield ast.If(
        ast.Name(flag, ast.Load(), **place), [ast.Assign([target], false, **place)], [], **place
    )


@pytest.hookimpl(wrapper=True)
def pytest_pyfunc_call(pyfuncitem: pytest.Item):
    """Count no lines in a test marked `uncounted`."""
    if not pyfuncitem.get_closest_marker("uncounted"):
        return (yield)
    before = {
        module: {flag: module.__dict__[flag] for flag in flags(groups)}
        for module, groups in _modules.items()
    }
    for module, values in before.items():
        module.__dict__.update(dict.fromkeys(values, False))
    try:
        return (yield)
    finally:
        for module, values in before.items():
            module.__dict__.update(values)


@pytest.hookimpl(wrapper=True, trylast=True)
def pytest_runtestloop():
    """When all tests have run, and before pytest-cov saves, add the executed lines."""
    result = yield
    if _modules:
        found = defaultdict(set)
        for module, groups in _modules.items():
            found[module.__file__] |= executed_lines(groups, module.__dict__)
        coverage.Coverage.current().get_data().add_lines(found)
    return result
