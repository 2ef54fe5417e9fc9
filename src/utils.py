"""Seeding, atomic files, hashes, JSON, formatting, locks and signals.

PyTorch is imported inside the functions that need it, because the import is slow.
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import hashlib
import importlib.util
import io
import json
import logging
import math
import os
import shutil
import signal
import stat
import threading
import time
import uuid
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from .errors import AGI2Error

if TYPE_CHECKING:
    import torch

# Windows has no fcntl.
fcntl: Any = importlib.import_module("fcntl") if importlib.util.find_spec("fcntl") else None

log = logging.getLogger("agi2")


def seed_everything(seed: int) -> None:
    """Seed PyTorch's random number generators on all devices; the project uses no others."""
    import torch

    torch.manual_seed(seed)


def keep_freed_memory() -> None:
    """Configure glibc's malloc to keep freed memory instead of returning it to the kernel.

    Each training step allocates and frees the same sizes. By default glibc returns large blocks to
    the kernel, and page faults on the next allocation take up to 10% of a step. A no-op elsewhere.
    """
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (AttributeError, OSError, TypeError):  # not glibc
        return
    mallopt(-1, 2**31 - 1)  # M_TRIM_THRESHOLD: never trim the top of the heap
    mallopt(-3, 2**25)  # M_MMAP_THRESHOLD: use mmap only from 32 MiB, the maximum


def whole(tensor: torch.Tensor) -> torch.Tensor:
    """Return the full tensor of a `DTensor` (an all-gather on all ranks); other tensors as is."""
    gather = getattr(tensor, "full_tensor", None)
    return tensor if gather is None else gather()


def shard_like(tensor: torch.Tensor, other: torch.Tensor) -> torch.Tensor:
    """Move a full tensor to the device of `other`; if `other` is a `DTensor`, shard it alike."""
    tensor = tensor.to(other.device)
    if not hasattr(other, "full_tensor"):
        return tensor
    from torch.distributed.tensor import DTensor, distribute_tensor

    other = cast(DTensor, other)
    # src_data_rank=None: every rank has the full tensor, so no communication is needed.
    return distribute_tensor(tensor, other.device_mesh, other.placements, src_data_rank=None)


@contextlib.contextmanager
def writing(path: Path) -> Iterator[None]:
    """Convert `OSError` (no permission, disk full) to an error message that names the path.

    Raises:
        AGI2Error: instead of `OSError`.
    """
    try:
        yield
    except OSError as error:
        reason = error.strerror or str(error)
        raise AGI2Error(
            f"cannot write {path}: {reason}; free some room or set output_dir"
        ) from error


def sync_folder(folder: Path) -> None:
    """Flush a folder's entries to disk (fsync); a no-op on Windows."""
    if os.name == "posix":
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


def sync_file(path: Path) -> None:
    """Flush a file to disk (fsync)."""
    with open(path, "rb+") as file:
        os.fsync(file.fileno())


@contextlib.contextmanager
def atomic_path(path: Path, private: bool = False) -> Iterator[Path]:
    """Yield a temporary path; at exit, fsync it and rename it to `path` (an atomic write).

    Args:
        path: the file.
        private: whether to create it with mode 0600.

    Raises:
        AGI2Error: if it cannot be written, or exists and is not a file; `path` is then unchanged.
    """
    with writing(path):
        # Replacing a device such as /dev/null would break it for every program.
        if path.exists() and not path.is_file():
            kind = "a folder" if path.is_dir() else "a device or a pipe"
            raise AGI2Error(f"cannot write {path}: it is {kind}; name a file")
        # Not `tempfile`, which creates files with mode 0600.
        beside = path.with_name(f".{path.name}.{uuid.uuid4().hex[:8]}")
        beside.touch(
            0o600 if private else 0o666, exist_ok=False
        )  # fails early if the folder is not writable
        try:
            yield beside
            sync_file(beside)
            os.replace(beside, path)
            sync_folder(path.parent)
        finally:
            beside.unlink(missing_ok=True)


@contextlib.contextmanager
def atomic_folder(path: Path) -> Iterator[Path]:
    """Yield a temporary folder; at exit, rename it to `path`.

    Raises:
        AGI2Error: if it cannot be written, or `path` exists; the temporary folder is then deleted.
    """
    with writing(path):
        beside = path.with_name(f".{path.name}.{uuid.uuid4().hex[:8]}")
        beside.mkdir(parents=True)
        try:
            yield beside
            os.rename(beside, path)
        finally:
            shutil.rmtree(beside, ignore_errors=True)


def write_text(path: Path, text: str, private: bool = False) -> None:
    """Write a UTF-8 text file atomically; with mode 0600 if `private`."""
    with atomic_path(path, private) as beside:
        beside.write_text(text, encoding="utf-8", newline="\n")


def json_line(value: Any) -> str:
    """Return a value as one line of JSON; numbers that are not finite become `null`."""
    return json.dumps(finite(value), allow_nan=False)


def finite(value: Any) -> Any:
    """Return a JSON-serializable copy of a value; numbers that are not finite become `None`."""
    if isinstance(value, dict):
        return {key: finite(inside) for key, inside in value.items()}
    if isinstance(value, list | tuple):
        return [finite(inside) for inside in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


# Maximum nesting of lists and objects in JSON and TOML files.
MAX_DEPTH = 100


def is_deep(value: Any, limit: int = MAX_DEPTH) -> bool:
    """Return whether lists and dicts are nested more than `limit` levels deep (no recursion)."""
    level = [value]
    for _ in range(limit + 1):
        level = [
            inside
            for each in level
            for inside in (each.values() if isinstance(each, dict) else each)
            if isinstance(inside, dict | list)
        ]
        if not level:
            return False
    return True


def parse_json(data: str | bytes, name: str) -> Any:
    """Parse untrusted JSON.

    Args:
        data: JSON in UTF-8.
        name: the file's name, for error messages.

    Raises:
        AGI2Error: if it is not JSON, is nested too deeply, or has a number with too many digits.
    """
    try:
        found = json.loads(data)
    except (ValueError, RecursionError) as error:
        reason = getattr(error, "msg", "")
        if isinstance(error, RecursionError):
            reason = "it is nested too deeply"
        elif isinstance(error, UnicodeDecodeError):
            reason = "it is not UTF-8"
        raise AGI2Error(
            f"{name} is not JSON: {reason or 'a number has too many digits'}"
        ) from error
    if isinstance(found, dict | list) and is_deep(found):
        raise AGI2Error(f"{name} is nested more than {MAX_DEPTH} levels deep")
    return found


def open_file(path: Path) -> io.BufferedReader:
    """Open a regular file for reading; reject others without blocking, as a pipe may never end.

    Raises:
        OSError: if it cannot be opened, or is a folder, a pipe, a socket or a device.
    """
    return open(path, "rb", opener=_open_regular)


def _open_regular(path: str, flags: int) -> int:
    descriptor = os.open(path, flags | getattr(os, "O_NONBLOCK", 0))
    mode = os.fstat(descriptor).st_mode
    if not stat.S_ISREG(mode):
        os.close(descriptor)
        raise OSError(errno.EINVAL, f"it is {_kind_of(mode)}, not a file", path)
    return descriptor


def _kind_of(mode: int) -> str:
    kinds = {stat.S_IFDIR: "a folder", stat.S_IFIFO: "a pipe", stat.S_IFSOCK: "a socket"}
    return kinds.get(stat.S_IFMT(mode), "a device")


def read_bytes(path: Path, most: int = -1) -> bytes:
    """Read a regular file.

    Args:
        path: the file.
        most: the maximum number of bytes to read; by default all.

    Raises:
        AGI2Error: if it cannot be read, or is not a regular file.
    """
    try:
        with open_file(path) as file:
            return file.read(most)
    except (OSError, ValueError) as error:  # ValueError: a NUL in the name
        reason = getattr(error, "strerror", None) or error
        raise AGI2Error(f"{path} cannot be read: {reason}") from error


# Maximum size of a JSON file in bytes, as parsing takes up to 25 bytes of memory for each.
MAX_JSON_BYTES = 16_000_000


def read_json_object(path: Path, most: int = MAX_JSON_BYTES) -> dict[str, Any]:
    """Read a file that contains a JSON object.

    Args:
        path: the file.
        most: its maximum size in bytes.

    Raises:
        AGI2Error: if the file cannot be read, is larger, or contains anything else.
    """
    data = read_bytes(path, most + 1)
    if len(data) > most:
        raise AGI2Error(f"{path} is larger than {human_bytes(most)}")
    found = parse_json(data, str(path))
    if not isinstance(found, dict):
        raise AGI2Error(f"{path} does not contain a JSON object")
    return found


def sha256_of(path: Path) -> str:
    """Return the SHA-256 of a file, in hexadecimal."""
    with open_file(path) as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def human_bytes(count: float) -> str:
    """Format a number of bytes in powers of 1,000: 1536 as `1.5 KB`."""
    for unit in ("B", "KB", "MB", "GB"):
        if count < 1000:
            return f"{count:.0f} {unit}" if unit == "B" else f"{count:.1f} {unit}"
        count /= 1000
    return f"{count:.1f} TB"


def human_time(seconds: float) -> str:
    """Format a duration: 90 seconds as `1 min 30 s`, 4,000 as `1 h 07 min`."""
    if not math.isfinite(seconds):
        return "unknown time"
    minutes, rest = divmod(round(seconds), 60)
    if not minutes:
        return f"{rest} s"
    if minutes < 60:
        return f"{minutes} min {rest:02d} s" if rest else f"{minutes} min"
    hours, minutes = divmod(round(seconds / 60), 60)
    return f"{hours} h {minutes:02d} min"


def plural(count: int, noun: str, many: str = "") -> str:
    """Format a count with its noun: `1 step`, `1,234 steps`.

    Args:
        count: the number.
        noun: the singular.
        many: the plural; by default `noun` + "s".
    """
    return f"{count:,} {noun if count == 1 else many or noun + 's'}"


LOCK = ".lock"
"""The file in a folder on which its `FolderLock` is held."""


class FolderLock:
    """An exclusive lock (flock) on a folder, held until `release` or the end of the process.

    It is held on a file in the folder, so a folder that is renamed stays locked. A no-op if the
    system has no flock.

    Args:
        folder: the folder; if it does not exist, nothing is locked until `take`.

    Raises:
        AGI2Error: if another process holds the lock.
    """

    def __init__(self, folder: Path) -> None:
        self._path = folder / LOCK
        self._descriptor: int | None = None
        self.take()

    def __enter__(self) -> FolderLock:
        return self

    def __exit__(self, *_: object) -> None:
        self.release()

    def take(self) -> None:
        """Lock the folder that has the name now, unless it is locked by this object already.

        Raises:
            AGI2Error: if another process holds the lock.
        """
        # Another process may delete the file, or rename the folder, after the file is opened and
        # before it is locked: such a lock is not of the folder that has the name now.
        while not self.is_held:
            self.release()
            if not self._lock_file():
                return

    def _lock_file(self) -> bool:
        """Open and lock the file; return whether there is a folder to lock."""
        missing = FileNotFoundError, NotADirectoryError
        with writing(self._path.parent), contextlib.suppress(*missing):
            self._descriptor = os.open(self._path, os.O_RDWR | os.O_CREAT, 0o666)
        if self._descriptor is None:
            return False
        try:
            fcntl.flock(self._descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            os.close(self._descriptor)
            self._descriptor = None
            raise AGI2Error(
                f"{self._path.parent}: another process is training there: wait for it, or set "
                "another model_name"
            ) from error
        except OSError:  # the file system has no locks
            log.debug("%s cannot be kept for one process", self._path.parent)
        return True

    @property
    def is_held(self) -> bool:
        """Whether the lock file is still the one locked: `False` if it was deleted or replaced."""
        if self._descriptor is None:
            return fcntl is None
        try:
            return os.path.samestat(os.fstat(self._descriptor), os.stat(self._path))
        except OSError:
            return False

    def release(self, folder: Path | None = None) -> None:
        """Release the lock and delete its file.

        Args:
            folder: the folder's present path, if it was renamed.
        """
        own, self._path = self._path, self._path if folder is None else folder / LOCK
        if self._descriptor is not None:
            if self.is_held:  # else the file is another process's
                with contextlib.suppress(OSError):
                    self._path.unlink()
            os.close(self._descriptor)
            self._descriptor = None
        self._path = own


def end_with(parent: int, folder: str) -> None:
    """Exit this process when its parent exits, even if that was killed, and delete a folder.

    Args:
        parent: the parent's process id.
        folder: a temporary folder, which a killed parent cannot delete itself.
    """

    def watch() -> None:
        while os.getppid() == parent:
            time.sleep(_WATCH_SECONDS)
        shutil.rmtree(folder, ignore_errors=True)
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()


_WATCH_SECONDS = 0.2


class Background:
    """A background thread that runs one task at a time."""

    def __init__(self) -> None:
        self._threads = ThreadPoolExecutor(1)
        self._last: Future[Any] | None = None

    def start(self, work: Callable[[], Any]) -> None:
        """Wait for the previous task, then start `work` in the background."""
        self.wait()
        self._last = self._threads.submit(work)

    def wait(self) -> None:
        """Wait for the last task; raise the exception that it raised, if any."""
        last, self._last = self._last, None
        if last is not None:
            last.result()


class Interrupt:
    """A context in which the first SIGINT, SIGTERM or SIGHUP only sets the flag `asked`.

    A second signal raises `KeyboardInterrupt`, except SIGHUP: when a terminal is closed, it comes
    from the kernel and again from the shell. Ignored signals (as under `nohup`) remain ignored.
    """

    # Windows has no SIGHUP.
    _HANG_UP = getattr(signal, "SIGHUP", None)
    _SIGNALS = (signal.SIGINT, signal.SIGTERM, *([_HANG_UP] if _HANG_UP else []))

    def __init__(self) -> None:
        self.asked = False
        """Whether a signal was received."""
        self.at_once = False
        """Whether the first signal raises, too, because there is nothing left to save."""
        self._before: dict[signal.Signals, Any] = {}

    def __enter__(self) -> Interrupt:
        # Python allows signal handlers only in the main thread.
        if threading.current_thread() is threading.main_thread():
            found = {number: signal.getsignal(number) for number in self._SIGNALS}
            # `None`: a handler that was not set from Python, which cannot be restored.
            kept = (signal.SIG_IGN, None)
            self._before = {number: was for number, was in found.items() if was not in kept}
            for number in self._before:
                signal.signal(number, self._ask)
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def _ask(self, number: int, frame: Any) -> None:
        if self.asked and number == self._HANG_UP:
            return
        was_asked, self.asked = self.asked, True
        if was_asked or self.at_once:
            raise KeyboardInterrupt
        log.info("stopping after this step; once more to stop at once, without saving")
