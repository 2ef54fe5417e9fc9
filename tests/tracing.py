"""Coverage's tracer, switched off while no code of `src` runs.

Before Python 3.12, which has `sys.monitoring`, coverage is measured by a trace function. It slows
down all Python code, not only `src`: pytest, Hypothesis, and every module while it is imported.
Here it is on only while a test, an example of a property test, a fixture or a module of `src` is
executed. Tests marked `untraced` are not measured: they are expensive, and others reach the same
lines. Where nothing is traced, as with `--no-cov`, all of this does nothing.
"""

from __future__ import annotations

import contextlib
import functools
import sys
import threading
from importlib.machinery import SourceFileLoader

import pytest

# The tracer of the thread that runs the tests; the tracers of other threads are left alone.
_state: dict = {"tracer": None, "thread": None}


def stop_tracing() -> None:
    """Switch the tracer off until code of `src` runs. Modules are imported untraced from now on."""
    if type(sys.gettrace()).__name__ == "CTracer":
        _state.update(tracer=sys.gettrace(), thread=threading.get_ident())
        sys.settrace(None)
        SourceFileLoader.exec_module = _exec_module


def untraced(function):
    """Return a function that is called without the tracer, such as a slow one of a library."""
    return functools.partial(_call, None, function)


def traced(function):
    """Return a function that is called with the tracer, within what is called without."""

    @functools.wraps(function)
    def call(*args, **kwargs):
        return _call(_state["tracer"], function, *args, **kwargs)

    return call


def _call(tracer, function, *args, **kwargs):
    if _state["tracer"] is None:  # a debugger's may be set
        return function(*args, **kwargs)
    before = sys.gettrace()
    sys.settrace(tracer)
    try:
        return function(*args, **kwargs)
    finally:
        sys.settrace(before)


_original = SourceFileLoader.exec_module


def _exec_module(loader, module):
    """Execute a module, traced if it is one of `src`, or of the tests, which may call `src`."""
    if threading.get_ident() != _state["thread"]:
        return _original(loader, module)
    is_ours = module.__name__.partition(".")[0] in ("src", "tests")
    return _call(_state["tracer"] if is_ours else None, _original, loader, module)


def trace_examples(item: pytest.Item) -> None:
    """Trace the examples of a property test, but not Hypothesis, which draws them."""
    if item.get_closest_marker("no_cover"):
        raise pytest.UsageError(f"{item.nodeid}: no_cover restarts the tracer: mark it untraced")
    handle = getattr(getattr(item, "obj", None), "hypothesis", None)
    if handle is None or hasattr(handle.inner_test, "is_traced"):
        return
    if item.get_closest_marker("untraced"):
        return
    handle.inner_test = traced(handle.inner_test)
    handle.inner_test.is_traced = True


@pytest.hookimpl(tryfirst=True)
def pytest_make_collect_report(collector):
    """Trace a module of tests while it is imported, as it may call `src`."""
    if isinstance(collector, pytest.Module):
        # An error is raised again when pytest imports it.
        with contextlib.suppress(Exception, pytest.skip.Exception):
            _call(_state["tracer"], getattr, collector, "obj")


@pytest.hookimpl(wrapper=True, trylast=True)
def pytest_pyfunc_call(pyfuncitem):
    """Trace a test; the examples of a property test trace themselves."""
    if hasattr(pyfuncitem.obj, "hypothesis") or pyfuncitem.get_closest_marker("untraced"):
        return (yield)
    return (yield from _while_traced())


@pytest.hookimpl(wrapper=True, trylast=True)
def pytest_fixture_setup():
    """Trace a fixture."""
    return (yield from _while_traced())


def _while_traced():
    if _state["tracer"] is None:
        return (yield)
    before = sys.gettrace()
    sys.settrace(_state["tracer"])
    try:
        return (yield)
    finally:
        sys.settrace(before)
