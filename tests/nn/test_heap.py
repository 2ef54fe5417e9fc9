"""Settings of the C library's allocator."""

import ctypes
from types import SimpleNamespace

import pytest

from src.errors import AGI2Error
from src.nn.heap import freed_memory_kept, keep_freed_memory, return_freed_memory


def test_freed_memory_is_kept_where_the_c_library_can(monkeypatch):
    asked = []
    library = SimpleNamespace(mallopt=lambda *setting: asked.append(setting))
    monkeypatch.setattr(ctypes, "CDLL", lambda _: library)
    keep_freed_memory()
    assert asked == [(-1, 2**31 - 1), (-4, 0)]
    monkeypatch.setattr(ctypes, "CDLL", lambda _: SimpleNamespace())
    keep_freed_memory()
    assert len(asked) == 2


def test_kept_memory_is_returned_in_the_end(monkeypatch):
    asked = []
    library = SimpleNamespace(
        mallopt=lambda *setting: asked.append(setting), malloc_trim=asked.append
    )
    monkeypatch.setattr(ctypes, "CDLL", lambda _: library)
    with pytest.raises(AGI2Error), freed_memory_kept():
        raise AGI2Error("in between")
    assert asked == [(-1, 2**31 - 1), (-4, 0), (-1, 2**17), (-4, 2**16), (-3, 2**25), 0]


def test_freed_memory_is_returned_to_the_kernel(monkeypatch):
    asked = []
    monkeypatch.setattr(ctypes, "CDLL", lambda _: SimpleNamespace(malloc_trim=asked.append))
    return_freed_memory()
    assert asked == [0]
    monkeypatch.setattr(ctypes, "CDLL", lambda _: SimpleNamespace())
    return_freed_memory()
