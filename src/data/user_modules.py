"""Import a user's Python module, and hash the files that it consists of."""

from __future__ import annotations

import ast
import contextlib
import functools
import hashlib
import importlib
import importlib.metadata
import importlib.util
import os
import sys
import traceback
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

from ..errors import AGI2Error
from ..utils import find_module_file, module_files


@dataclass(frozen=True)
class Module:
    """An imported module of a user."""

    module: ModuleType
    files: tuple[Path, ...] = ()
    """Its source file, and those of the same folder that it imports; of an installed module, those
    of its package. None if it has no source file.
    """
    identity: list[Any] | None = None
    """Hashes of `files`, and the versions of other packages; `None` without a source file."""

    def place_of(self, error: BaseException) -> str:
        """Return the line of `files` in which an error was raised, such as ` at clean.py:12`."""
        names = {str(path): path.name for path in self.files}
        for frame in reversed(traceback.extract_tb(error.__traceback__)):
            if frame.filename in names:
                return f" at {names[frame.filename]}:{frame.lineno}"
        return ""


# What is imported, by its name: it is imported again if its identity has changed.
_loaded: dict[str, Module] = {}


def load_module(name: str, what: str) -> Module:
    """Import a module of a user; again if one of its files has changed.

    Args:
        name: the path of a `.py` file, or the dotted name of a module in the working directory or
            of an installed one.
        what: what needs it, for messages.

    Raises:
        AGI2Error: if it does not exist, or fails when it is imported.
    """
    path = find_module_file(name, Path.cwd())
    is_installed = path is None
    if path is None and (path := _find_installed(name, what)) is None:
        return Module(_import(name, what))
    _check_not_main(path, what)
    root, dotted = _split_root(path)
    top = dotted.split(".")[0] if is_installed else None
    files = _read_files(path, root, top, what)
    hashes = [
        [str(each.relative_to(root)), hashlib.sha256(files[each]).hexdigest()] for each in files
    ]
    identity = [hashes, _versions(files, root, top)]
    known = _loaded.get(str(path))
    if known is None or known.identity != identity:
        if not is_installed and str(root) not in sys.path:
            sys.path.append(str(root))  # at the end: a user's file hides no installed module
        _forget(files, [] if is_installed else files)
        module = _import(dotted, what)
        if os.path.realpath(module.__file__ or "") != str(path):
            raise AGI2Error(
                f"{what}: {path} cannot be imported, as another module is called {dotted}: rename "
                "the file"
            )
        known = _loaded[str(path)] = Module(module, tuple(files), identity)
    return known


def _find_installed(name: str, what: str) -> Path | None:
    """Return the source file of an installed module; `None` if it has none."""
    spec = None
    if all(part.isidentifier() for part in name.split(".")):
        try:
            spec = importlib.util.find_spec(name)
        except Exception as error:  # of a package, which is imported to find a module in it
            if not isinstance(error, ModuleNotFoundError):
                raise _failed(error, what) from error
    if spec is None:
        raise AGI2Error(
            f"{what}: there is no {name}, neither a file in the folder of the TOML file or in the "
            "working directory, nor an installed module"
        )
    is_source = spec.origin is not None and spec.origin.endswith(".py")
    return Path(os.path.realpath(str(spec.origin))) if is_source else None


def _check_not_main(path: Path, what: str) -> None:
    main = getattr(sys.modules.get("__main__"), "__file__", None)
    if main is not None and os.path.realpath(main) == str(path):
        raise AGI2Error(f"{what}: {path} is the program that runs: put the function into another")


def _split_root(path: Path) -> tuple[Path, str]:
    """Split the path of a module into the folder of its top-level package, and its dotted name."""
    root = path.parent
    while (root / "__init__.py").is_file():
        root = root.parent
    return root, _dotted(path, root)


def _dotted(path: Path, root: Path) -> str:
    parts = path.relative_to(root).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def _read_files(path: Path, root: Path, top: str | None, what: str) -> dict[Path, bytes]:
    """Read a module and all modules below `root` that it imports, directly or not.

    Args:
        path: its file.
        root: the folder.
        top: the only top-level package whose modules are read, if not `None`.
        what: for messages.
    """
    files: dict[Path, bytes] = {}
    queue = [path]
    while queue:
        each = queue.pop()
        if each in files:
            continue
        try:
            files[each] = each.read_bytes()
        except OSError as error:
            raise AGI2Error(f"{what}: {each} cannot be read: {error.strerror}") from error
        names = [name for name in _imported(each, files[each], root, what) if _is_of(name, top)]
        for name in names:
            queue += [file for file in module_files(root, name) if file.is_file()]
    return {each: files[each] for each in sorted(files)}


def _is_of(name: str, top: str | None) -> bool:
    return top is None or name.split(".")[0] == top


def _imported(path: Path, source: bytes, root: Path, what: str) -> Iterator[str]:
    """Yield the dotted names of the modules that a file may import, and of their packages."""
    try:
        tree = ast.parse(source)
    except (SyntaxError, ValueError, RecursionError) as error:
        line = f":{error.lineno}" if isinstance(error, SyntaxError) else ""
        problem = error.msg if isinstance(error, SyntaxError) else error
        raise AGI2Error(f"{what}: {path}{line}: not Python: {problem}") from error
    package = _dotted(path, root).split(".")
    if path.name != "__init__.py":
        package.pop()
    names = [".".join(package)]
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            names += [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            base = package[: len(package) + 1 - node.level] if node.level else []
            base = [*base, *(node.module.split(".") if node.module else [])]
            names += [".".join([*base, alias.name]) for alias in node.names]
    for name in filter(None, names):
        parts = name.split(".")
        yield from (".".join(parts[:end]) for end in range(1, len(parts) + 1))


def _versions(files: dict[Path, bytes], root: Path, top: str | None) -> list[list[str]]:
    """Return the versions of the packages that files import from elsewhere."""
    names = {name for path in files for name in _imported(path, files[path], root, "")}
    tops = {name for name in names if "." not in name} - sys.stdlib_module_names - {top}
    others = [name for name in tops if not any(map(Path.exists, module_files(root, name)))]
    return [version for name in sorted(others) for version in _distributions(name)]


def _distributions(package: str) -> list[list[str]]:
    """Return the names and versions of the distributions that a package may be of."""
    try:
        return [[package, importlib.metadata.version(package)]]
    except importlib.metadata.PackageNotFoundError:
        names = _distributions_by_package().get(package, [])
        return [[name, importlib.metadata.version(name)] for name in sorted(set(names))]


@functools.cache  # a second, where many packages are installed
def _distributions_by_package() -> Mapping[str, list[str]]:
    return importlib.metadata.packages_distributions()


def _forget(files: Iterable[Path], own: Iterable[Path]) -> None:
    """Remove the modules of files, and the bytecode of `own`, so that they are read again."""
    for path in own:
        # Python takes bytecode for that of a file of the same size and second.
        with contextlib.suppress(OSError):
            os.unlink(importlib.util.cache_from_source(path))
    paths = set(map(str, files))
    for name, module in list(sys.modules.items()):
        file = getattr(module, "__file__", None)
        if file is not None and name != "__main__" and os.path.realpath(file) in paths:
            del sys.modules[name]
    importlib.invalidate_caches()


def _import(name: str, what: str) -> ModuleType:
    writes_bytecode, sys.dont_write_bytecode = sys.dont_write_bytecode, True
    try:
        return importlib.import_module(name)
    except MemoryError:
        raise
    except (Exception, SystemExit) as error:
        raise _failed(error, what) from error
    finally:
        sys.dont_write_bytecode = writes_bytecode


def _failed(error: BaseException, what: str) -> AGI2Error:
    frames = [each for each in traceback.extract_tb(error.__traceback__) if each.filename[0] != "<"]
    place = f" at {Path(frames[-1].filename).name}:{frames[-1].lineno}" if frames else ""
    problem = f"{type(error).__name__}: {error}"
    return AGI2Error(f"{what}: its module fails when it is imported{place}: {problem}")
