"""Settings of glibc's malloc: whether freed memory is kept for the next training step."""

from __future__ import annotations

import contextlib
import ctypes
from collections.abc import Iterator, Mapping


def keep_freed_memory() -> None:
    """Configure glibc's malloc to keep freed memory instead of returning it to the kernel.

    Each training step allocates and frees the same sizes. By default glibc returns large blocks to
    the kernel, and page faults on the next allocation take 10% of a step. A no-op elsewhere.
    """
    # M_TRIM_THRESHOLD: never trim the top of the heap; M_MMAP_MAX: take no block from elsewhere.
    _set_malloc({-1: 2**31 - 1, -4: 0})


@contextlib.contextmanager
def freed_memory_kept() -> Iterator[None]:
    """Context manager of `keep_freed_memory`; at its end the memory is returned."""
    keep_freed_memory()
    try:
        yield
    finally:
        # The defaults; and M_MMAP_THRESHOLD, which is not adjusted any more once one was set.
        _set_malloc({-1: 2**17, -4: 2**16, -3: 2**25})
        return_freed_memory()


def _set_malloc(options: Mapping[int, int]) -> None:
    with contextlib.suppress(AttributeError, OSError, TypeError):  # not glibc
        mallopt = ctypes.CDLL(None).mallopt
        for option, value in options.items():
            mallopt(option, value)


def return_freed_memory() -> None:
    """Return the memory that was freed to the kernel: glibc keeps it. A no-op elsewhere."""
    with contextlib.suppress(AttributeError, OSError, TypeError):  # not glibc
        ctypes.CDLL(None).malloc_trim(0)
