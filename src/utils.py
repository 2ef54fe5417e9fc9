"""Seeding, atomic files, hashes, JSON, formatting.

PyTorch is imported by the functions that need it: commands that do not, answer at once.
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

# Windows has none.
fcntl: Any = importlib.import_module("fcntl") if importlib.util.find_spec("fcntl") else None

log = logging.getLogger("agi2")


def seed_everything(seed: int) -> None:
    """Seed PyTorch's generators, on every device. Nothing else in the project draws at random."""
    import torch

    torch.manual_seed(seed)


def keep_freed_memory() -> None:
    """Let the C library keep freed memory for the next step, where it is glibc.

    A training step takes and frees the same memory again and again. By default glibc gives it back
    to the system each time, which must then zero every page anew: up to a tenth of a step.
    """
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (AttributeError, OSError, TypeError):  # another C library, or another system
        return
    mallopt(-1, 2**31 - 1)  # M_TRIM_THRESHOLD: how much may lie unused at the heap's end
    mallopt(-3, 2**25)  # M_MMAP_THRESHOLD: from what size on memory is taken apart; its maximum


def whole(tensor: torch.Tensor) -> torch.Tensor:
    """A sharded tensor's parts put together, in which all processes take part; others as is."""
    gather = getattr(tensor, "full_tensor", None)
    return tensor if gather is None else gather()


def sharded_as(tensor: torch.Tensor, other: torch.Tensor) -> torch.Tensor:
    """A whole tensor on another one's device: this process's part of it, if that is sharded."""
    tensor = tensor.to(other.device)
    if not hasattr(other, "full_tensor"):
        return tensor
    from torch.distributed.tensor import DTensor, distribute_tensor

    other = cast(DTensor, other)
    # Each process has the whole tensor: nothing is sent.
    return distribute_tensor(tensor, other.device_mesh, other.placements, src_data_rank=None)


@contextlib.contextmanager
def writing(path: Path) -> Iterator[None]:
    """Turn what a file system refuses (no right, no room) into one line that names the path.

    Raises:
        AGI2Error: in place of `OSError`.
    """
    try:
        yield
    except OSError as error:
        reason = error.strerror or str(error)
        raise AGI2Error(
            f"cannot write {path}: {reason}; free some room or set output_dir"
        ) from error


def sync_folder(folder: Path) -> None:
    """Ask the disk to keep a folder's entries, where the system can."""
    if os.name == "posix":
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


def sync_file(path: Path) -> None:
    """Ask the disk to keep a file's content."""
    with open(path, "rb+") as file:
        os.fsync(file.fileno())


@contextlib.contextmanager
def atomic_path(path: Path, private: bool = False) -> Iterator[Path]:
    """A path to write to, which takes the place of `path` only once it is whole and on disk.

    Args:
        path: the file.
        private: whether no other user may read it.

    Raises:
        AGI2Error: where it cannot be written, or is there and no file; `path` is then as it was.
    """
    with writing(path):
        # Replaced, a device such as /dev/null would be gone for every program.
        if path.exists() and not path.is_file():
            kind = "a folder" if path.is_dir() else "a device or a pipe"
            raise AGI2Error(f"cannot write {path}: it is {kind}; name a file")
        # Not from `tempfile`, whose files no other user may read.
        beside = path.with_name(f".{path.name}.{uuid.uuid4().hex[:8]}")
        beside.touch(
            0o600 if private else 0o666, exist_ok=False
        )  # refused here where it cannot be written at all
        try:
            yield beside
            sync_file(beside)
            os.replace(beside, path)
            sync_folder(path.parent)
        finally:
            beside.unlink(missing_ok=True)


@contextlib.contextmanager
def atomic_folder(path: Path) -> Iterator[Path]:
    """A folder to write into, which takes the place of `path` only once all is written.

    Raises:
        AGI2Error: where it cannot be written, or something stands there; nothing is left then.
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
    """Write UTF-8 text, whole or not at all; a `private` file no other user may read."""
    with atomic_path(path, private) as beside:
        beside.write_text(text, encoding="utf-8", newline="\n")


def json_line(value: Any) -> str:
    """A value as JSON in one line, in which numbers that are not finite become `null`."""
    return json.dumps(finite(value), allow_nan=False)


def finite(value: Any) -> Any:
    """A copy of a value that JSON can hold: numbers that are not finite become `None`."""
    if isinstance(value, dict):
        return {key: finite(inside) for key, inside in value.items()}
    if isinstance(value, list | tuple):
        return [finite(inside) for inside in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


# Levels of lists and objects inside each other, in files that people write or read.
MAX_DEPTH = 100


def is_deep(value: Any, limit: int = MAX_DEPTH) -> bool:
    """Whether lists and mappings are nested more than `limit` levels deep; found level by level."""
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
    """Parse JSON that somebody else may have written.

    Args:
        data: UTF-8.
        name: of the file, for messages.

    Raises:
        AGI2Error: where it is not JSON, is nested too deeply, or has a number of too many digits.
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
    """Open a regular file for reading; refuse anything else at once, as a pipe may never end.

    Raises:
        OSError: its `strerror` says why, also for a folder, a pipe, a socket or a device.
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
        most: read so many bytes at most; all by default.

    Raises:
        AGI2Error: if it cannot be read, or is something else.
    """
    try:
        with open_file(path) as file:
            return file.read(most)
    except (OSError, ValueError) as error:  # the latter for a NUL in the name
        reason = getattr(error, "strerror", None) or error
        raise AGI2Error(f"{path} cannot be read: {reason}") from error


def read_json_object(path: Path) -> dict[str, Any]:
    """Read a file that holds a JSON object.

    Raises:
        AGI2Error: where the file cannot be read or holds anything else.
    """
    found = parse_json(read_bytes(path), str(path))
    if not isinstance(found, dict):
        raise AGI2Error(f"{path} holds no JSON object")
    return found


def sha256_of(path: Path) -> str:
    """The SHA-256 of a file, in hexadecimal."""
    with open_file(path) as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def human_bytes(count: float) -> str:
    """1536 as `1.5 KB`; powers of 1,000."""
    for unit in ("B", "KB", "MB", "GB"):
        if count < 1000:
            return f"{count:.0f} {unit}" if unit == "B" else f"{count:.1f} {unit}"
        count /= 1000
    return f"{count:.1f} TB"


def human_time(seconds: float) -> str:
    """90 seconds as `1 min 30 s`, 4,000 as `1 h 07 min`."""
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
    """1 as `1 step`, 1,234 as `1,234 steps`.

    Args:
        count: how many.
        noun: for one.
        many: for any other number, if that is not `noun` with an s.
    """
    return f"{count:,} {noun if count == 1 else many or noun + 's'}"


class FolderLock:
    """Keeps a folder for one process, as long as that lives, where the system can.

    Args:
        folder: where there is none, nothing is kept.

    Raises:
        AGI2Error: where another process has it.
    """

    def __init__(self, folder: Path) -> None:
        self._path = folder / ".lock"
        self._descriptor: int | None = None
        if fcntl is None or not folder.is_dir():
            return
        with writing(folder):
            descriptor = os.open(self._path, os.O_RDWR | os.O_CREAT)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            os.close(descriptor)
            raise AGI2Error(
                f"{folder}: another process is training there: wait for it, or set another "
                "model_name"
            ) from error
        except OSError:  # a file system without locks
            log.debug("%s cannot be kept for one process", folder)
        self._descriptor = descriptor

    @property
    def is_held(self) -> bool:
        """Whether the folder is still there with this lock in it, where the system can tell."""
        if self._descriptor is None:
            return fcntl is None
        try:
            return os.path.samestat(os.fstat(self._descriptor), os.stat(self._path))
        except OSError:
            return False

    def release(self) -> None:
        """Let others have it."""
        if self._descriptor is not None:
            if self.is_held:  # not what another process has put in its place
                with contextlib.suppress(OSError):
                    self._path.unlink()
            os.close(self._descriptor)
            self._descriptor = None


def end_with(parent: int, folder: str) -> None:
    """End this process soon after its parent has, however that ended, and delete a folder.

    Args:
        parent: the id of the process that started this one.
        folder: a temporary one, of which the parent cannot take care any more.
    """

    def watch() -> None:
        while os.getppid() == parent:
            time.sleep(_WATCH_SECONDS)
        shutil.rmtree(folder, ignore_errors=True)
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()


_WATCH_SECONDS = 0.2


class Background:
    """Work that goes on beside the main thread, one piece at a time."""

    def __init__(self) -> None:
        self._threads = ThreadPoolExecutor(1)
        self._last: Future[Any] | None = None

    def start(self, work: Callable[[], Any]) -> None:
        """Wait for the piece before, then begin this one."""
        self.wait()
        self._last = self._threads.submit(work)

    def wait(self) -> None:
        """Until nothing is under way; raises what the last piece raised."""
        last, self._last = self._last, None
        if last is not None:
            last.result()


class Interrupt:
    """Turns the first SIGINT, SIGTERM or SIGHUP into a question, and lets a second one through.

    A signal that is ignored, as SIGHUP is under `nohup`, stays ignored. SIGHUP is only ever the
    first: when a terminal is closed, it comes from the kernel and once more from the shell.
    """

    # Windows has no SIGHUP.
    _HANG_UP = getattr(signal, "SIGHUP", None)
    _SIGNALS = (signal.SIGINT, signal.SIGTERM, *([_HANG_UP] if _HANG_UP else []))

    def __init__(self) -> None:
        self.asked = False
        """Whether a signal has come."""
        self.at_once = False
        """Whether the first one is let through, too: there is nothing left to save."""
        self._before: dict[signal.Signals, Any] = {}

    def __enter__(self) -> Interrupt:
        # Only the main thread may set handlers.
        if threading.current_thread() is threading.main_thread():
            found = {number: signal.getsignal(number) for number in self._SIGNALS}
            # `None`: set by a library in C, whose handler could not be put back.
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
