"""The built-in sources, and the built-in corpus: the English prose that CPython carries."""

from __future__ import annotations

import ast
import os
import re
import sysconfig
import zlib
from collections.abc import Collection, Iterator
from pathlib import Path

BUILTIN = "builtin:python-docs"
HELD_OUT = "builtin:held-out-python-docs"
CONVERSATIONS = "builtin:conversations"
HELD_OUT_CONVERSATIONS = "builtin:held-out-conversations"
BUILTINS = (BUILTIN, HELD_OUT, CONVERSATIONS, HELD_OUT_CONVERSATIONS)
"""The built-in sources: a text and conversations to train on, and others to validate on."""
TEXTS = (BUILTIN, HELD_OUT)
"""Those that are text."""
TEXT_VERSION = 2
"""Increased when the texts change: the cache of tokens depends on it."""


def python_docs() -> Iterator[str]:
    """Yield the prose of CPython's language reference and of the standard library's modules.

    The reference is `pydoc_data.topics`, which `help("if")` prints. Of a module it is that of its
    docstrings and of its comments. They are extracted from source files; no module is imported or
    executed. Tables, code and markup are dropped; so are the paragraphs that are held out.

    Yields:
        One document per help topic, then one per module, if it has any prose.
    """
    held_out = {each for text in held_out_python_docs() for each in text.strip().split("\n\n")}
    for name, text in _topics():
        if not _is_held_out(name):
            yield from prose(text, held_out)
    for name, path in _library_files():
        if not _is_held_out(name):
            yield from prose("\n\n".join([*_docstrings(path), *_comments(path)]), held_out)


def held_out_python_docs() -> Iterator[str]:
    """Yield the prose of a tenth of the topics and of the modules' docstrings, as `python_docs`."""
    for name, text in _topics():
        if _is_held_out(name):
            yield from prose(text)
    for name, path in _library_files():
        if _is_held_out(name):
            yield from prose("\n\n".join(_docstrings(path)))


def _is_held_out(name: str) -> bool:
    # The share of 3 is about as hard for a trigram model as the ten are on average.
    return zlib.crc32(name.encode()) % 10 == 3


def _topics() -> Iterator[tuple[str, str]]:
    """Yield the names of the language reference's topics, and their texts."""
    from pydoc_data.topics import topics

    for name in sorted(topics):
        yield name, topics[name]


def _library_files() -> Iterator[tuple[str, Path]]:
    """Yield the names of the standard library's modules, without its tests, and their files."""
    root = Path(sysconfig.get_path("stdlib"))
    files = []
    for folder, subfolders, names in os.walk(root):
        subfolders[:] = set(subfolders) - _SKIPPED_FOLDERS
        files += [Path(folder, name) for name in names if name.endswith(".py")]
    for path in sorted(files):
        yield path.relative_to(root).as_posix(), path


# Installed packages, tests, the reference, and a hundred tables with one sentence each.
_SKIPPED_FOLDERS = {"site-packages", "dist-packages", "test", "tests", "idle_test", "pydoc_data"}
_SKIPPED_FOLDERS |= {"encodings"}


def library_modules() -> list[Path]:
    """Return the sorted paths of the standard library's modules that are a file of its folder."""
    folder = Path(sysconfig.get_path("stdlib"))
    return [path for path in sorted(folder.glob("*.py")) if not path.name.startswith("_")]


# What many modules repeat, and a model would memorize.
_LEGAL = re.compile(r"copyright|licen[cs]e|warrant|permission to use", re.IGNORECASE)


def prose(text: str, without: Collection[str] = ()) -> list[str]:
    """Extract the paragraphs of plain sentences from a text, one per line, without markup.

    Those about copyright and licences are left out.

    Args:
        text: the text.
        without: paragraphs that are left out.

    Returns:
        A document, or none if there is no such paragraph.
    """
    paragraphs = []
    for paragraph in re.split(r"\n\s*\n", text):
        words = " ".join(re.sub(r"[`*]|\s+", lambda m: " " * m[0].isspace(), paragraph).split())
        plain = len(re.findall(r"[A-Za-z ,.']", words))
        is_sentence = re.match(r"[A-Z][a-z]*\b", words) and words.endswith((".", ":", "!", "?"))
        is_long = words.count(" ") >= 6 and plain >= 0.95 * len(words)
        is_wanted = words not in without and not _LEGAL.search(words)
        if is_sentence and is_long and is_wanted:
            paragraphs.append(words)
    return ["\n\n".join(paragraphs) + "\n"] if paragraphs else []


def _comments(path: Path) -> Iterator[str]:
    """Yield the comments of a file, of consecutive lines together."""
    try:
        source = path.read_text("utf-8", "replace")
    except OSError:
        return
    for block in re.finditer(r"(?:^[ \t]*#.*\n)+", source, re.MULTILINE):
        yield re.sub(r"^[ \t]*#+", "", block[0], flags=re.MULTILINE)


def _docstrings(path: Path) -> Iterator[str]:
    try:
        tree = ast.parse(path.read_bytes())
    except (SyntaxError, ValueError, OSError):  # a .py file may be a template, which does not parse
        return
    yield from _docstrings_below(tree)


def _docstrings_below(node: ast.AST) -> Iterator[str]:
    documented = ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef
    if isinstance(node, documented) and (docstring := ast.get_docstring(node)):
        yield docstring
    # Only bodies are visited: expressions are most of an AST, and contain no docstrings.
    for statement in getattr(node, "body", ()):
        yield from _docstrings_below(statement)
