"""Seeding, atomic files, hashes, JSON and formatting.

PyTorch is imported inside the functions that need it, because the import is slow.
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import io
import json
import logging
import math
import os
import shutil
import stat
import threading
import time
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from .errors import AGI2Error

if TYPE_CHECKING:
    import torch


log = logging.getLogger("agi2")


def seed_everything(seed: int) -> None:
    """Seed PyTorch's random number generators on all devices; the project uses no others."""
    import torch

    torch.manual_seed(seed)


def full_tensor(tensor: torch.Tensor) -> torch.Tensor:
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


class WriteError(AGI2Error):
    """A file cannot be written."""


@contextlib.contextmanager
def convert_write_errors(
    path: Path, advice: str = "free some space or choose another folder (of a run: output_dir)"
) -> Iterator[None]:
    """Convert `OSError` (no permission, disk full) to an error message that names the path.

    Args:
        path: the path.
        advice: what to do, for the message.

    Raises:
        AGI2Error: instead of `OSError`.
    """
    try:
        yield
    except OSError as error:
        reason = error.strerror or str(error)
        raise WriteError(f"cannot write {path}: {reason}; {advice}") from error


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
    with convert_write_errors(path):
        # Replacing a device such as /dev/null would break it for every program.
        if path.exists() and not path.is_file():
            kind = "a folder" if path.is_dir() else "a device or a pipe"
            raise AGI2Error(f"cannot write {path}: it is {kind}; name a file")
        # Not `tempfile`, which creates files with mode 0600.
        temporary = path.with_name(f".{path.name}.{uuid.uuid4().hex[:8]}")
        temporary.touch(
            0o600 if private else 0o666, exist_ok=False
        )  # fails early if the folder is not writable
        try:
            yield temporary
            sync_file(temporary)
            os.replace(temporary, path)
            sync_folder(path.parent)
        finally:
            temporary.unlink(missing_ok=True)


@contextlib.contextmanager
def atomic_folder(path: Path) -> Iterator[Path]:
    """Yield a temporary folder; at exit, rename it to `path`.

    Raises:
        AGI2Error: if it cannot be written, or `path` exists; the temporary folder is then deleted.
    """
    with convert_write_errors(path):
        temporary = path.with_name(f".{path.name}.{uuid.uuid4().hex[:8]}")
        temporary.mkdir(parents=True)
        try:
            yield temporary
            os.rename(temporary, path)
        finally:
            shutil.rmtree(temporary, ignore_errors=True)


def write_text(path: Path, text: str, private: bool = False) -> None:
    """Write a UTF-8 text file atomically; with mode 0600 if `private`."""
    with atomic_path(path, private) as temporary:
        temporary.write_text(text, encoding="utf-8", newline="\n")


def json_line(value: Any) -> str:
    """Return a value as one line of JSON; numbers that are not finite become `null`."""
    return json.dumps(replace_non_finite(value), allow_nan=False)


def replace_non_finite(value: Any) -> Any:
    """Return a JSON-serializable copy of a value; numbers that are not finite become `None`."""
    if isinstance(value, dict):
        return {key: replace_non_finite(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [replace_non_finite(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


# Maximum nesting of lists and objects in JSON and TOML files.
MAX_DEPTH = 100


def is_nested_deeper(value: Any, limit: int = MAX_DEPTH) -> bool:
    """Return whether lists and dicts are nested more than `limit` levels deep (no recursion)."""
    level = [value]
    for _ in range(limit + 1):
        level = [
            item
            for each in level
            for item in (each.values() if isinstance(each, dict) else each)
            if isinstance(item, dict | list)
        ]
        if not level:
            return False
    return True


def json_problem(error: Exception) -> str:
    """Return what is wrong with JSON: `Unterminated string`; empty if the error does not say it."""
    return str(getattr(error, "msg", "")).removesuffix(" at").removesuffix(" starting")


def parse_json(data: str | bytes, name: str) -> Any:
    """Parse untrusted JSON.

    Args:
        data: JSON in UTF-8.
        name: the file's name, for error messages.

    Raises:
        AGI2Error: if it is not JSON, is nested too deeply, or has a number with too many digits.
    """
    try:
        parsed = json.loads(data)
    except (ValueError, RecursionError) as error:
        reason = json_problem(error)
        if isinstance(error, RecursionError):
            reason = "it is nested too deeply"
        elif isinstance(error, UnicodeDecodeError):
            reason = "it is not UTF-8"
        raise AGI2Error(
            f"{name} is not JSON: {reason or 'a number has too many digits'}"
        ) from error
    if isinstance(parsed, dict | list) and is_nested_deeper(parsed):
        raise AGI2Error(f"{name} is nested more than {MAX_DEPTH} levels deep")
    return parsed


def open_file(path: Path) -> io.BufferedReader:
    """Open a regular file for reading; reject others without blocking, as a pipe may never end.

    Raises:
        OSError: if it cannot be opened or is no regular file.
    """
    try:
        return open(path, "rb", opener=_open_regular)
    except FileNotFoundError as error:
        if not os.path.islink(path):
            raise
        raise FileNotFoundError(errno.ENOENT, "it is a broken link", str(path)) from error


def _open_regular(path: str, flags: int) -> int:
    descriptor = os.open(path, flags | getattr(os, "O_NONBLOCK", 0))
    mode = os.fstat(descriptor).st_mode
    if not stat.S_ISREG(mode):
        os.close(descriptor)
        raise OSError(errno.EINVAL, f"it is {_kind_of(mode)}, not a file", path)
    return descriptor


def _kind_of(mode: int) -> str:
    kinds = {stat.S_IFDIR: "a folder", stat.S_IFIFO: "a pipe", stat.S_IFSOCK: "a socket"}
    kinds[stat.S_IFREG] = "a file"
    return kinds.get(stat.S_IFMT(mode), "a device")


def describe_path(path: str | Path) -> str:
    """Return what a path is, for messages: `is a file`, `is a broken link`, `does not exist`."""
    try:
        return f"is {_kind_of(os.stat(path).st_mode)}"
    except (OSError, ValueError) as error:  # ValueError: a NUL in the name
        if os.path.islink(path):
            return "is a broken link"
        if isinstance(error, FileNotFoundError | NotADirectoryError | ValueError):
            return "does not exist"
        return f"cannot be read: {error.strerror}"


def read_bytes(path: Path, max_bytes: int = -1) -> bytes:
    """Read a regular file.

    Args:
        path: the file.
        max_bytes: the maximum number of bytes to read; by default all.

    Raises:
        AGI2Error: if it cannot be read, or is not a regular file.
    """
    try:
        with open_file(path) as file:
            return file.read(max_bytes)
    except (OSError, ValueError) as error:  # ValueError: a NUL in the name
        reason = getattr(error, "strerror", None) or error
        raise AGI2Error(f"{path} cannot be read: {reason}") from error


# Maximum size of a JSON file in bytes, as parsing takes up to 25 bytes of memory for each.
MAX_JSON_BYTES = 16_000_000


def read_json_object(path: Path, max_bytes: int = MAX_JSON_BYTES) -> dict[str, Any]:
    """Read a file that contains a JSON object.

    Args:
        path: the file.
        max_bytes: its maximum size in bytes.

    Raises:
        AGI2Error: if the file cannot be read, is larger, or contains anything else.
    """
    data = read_bytes(path, max_bytes + 1)
    if len(data) > max_bytes:
        raise AGI2Error(f"{path} is larger than {human_bytes(max_bytes)}")
    parsed = parse_json(data, str(path))
    if not isinstance(parsed, dict):
        raise AGI2Error(f"{path} does not contain a JSON object")
    return parsed


def usable_cores() -> int:
    """Return the number of cores that this process may use."""
    affinity = getattr(os, "sched_getaffinity", None)  # not on macOS and Windows
    return len(affinity(0)) if affinity else os.cpu_count() or 1


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


def exit_with_parent(parent: int, folder: str = "") -> None:
    """Exit this process when its parent exits, even if that was killed, and delete a folder.

    Args:
        parent: the parent's process id.
        folder: a temporary folder, which a killed parent cannot delete itself; empty for none.
    """

    def watch() -> None:
        while os.getppid() == parent:
            time.sleep(_WATCH_SECONDS)
        shutil.rmtree(folder, ignore_errors=True)
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()


_WATCH_SECONDS = 0.2


def module_files(folder: Path, name: str) -> list[Path]:
    """Return the files in which a folder may have a Python module, by its dotted name."""
    path = folder.joinpath(*name.split("."))
    return [path / "__init__.py", path.with_name(f"{path.name}.py")]


def find_module_file(name: str, folder: Path) -> Path | None:
    """Return the source file of a Python module in a folder; `None` if it is not there.

    Args:
        name: the path of a `.py` file, relative to the folder, or the dotted name of a module.
        folder: the folder.
    """
    paths = [folder / Path(name).expanduser()] if name.endswith(".py") else []
    if not paths and all(part.isidentifier() for part in name.split(".")):
        paths = module_files(folder, name)
    return next((Path(os.path.realpath(path)) for path in paths if path.is_file()), None)
