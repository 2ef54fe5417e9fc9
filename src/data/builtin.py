"""The built-in sources, and the built-in corpus: the English prose that CPython carries."""

from __future__ import annotations

import ast
import os
import re
import sysconfig
from collections.abc import Iterator
from pathlib import Path

BUILTIN = "builtin:python-docs"
CONVERSATIONS = "builtin:conversations"
HELD_OUT_CONVERSATIONS = "builtin:held-out-conversations"
BUILTINS = (BUILTIN, CONVERSATIONS, HELD_OUT_CONVERSATIONS)
"""The built-in sources: a text, conversations to train on, and others to validate on."""


def python_docs() -> Iterator[str]:
    """Yield the prose of CPython's language reference and of the standard library's modules.

    The reference is `pydoc_data.topics`, which `help("if")` prints. Of a module it is that of its
    docstrings and of its comments. They are extracted from source files; no module is imported or
    executed. Tables, code and markup are dropped.

    Yields:
        One document per help topic, then one per module, if it has any prose.
    """
    from pydoc_data.topics import topics

    for name in sorted(topics):
        if text := prose(topics[name]):
            yield text
    for path in _library_files():
        if text := prose("\n\n".join([*_docstrings(path), *_comments(path)])):
            yield text


def _library_files() -> list[Path]:
    """Return the sorted paths of the standard library's modules, without its tests."""
    files = []
    for folder, subfolders, names in os.walk(sysconfig.get_path("stdlib")):
        subfolders[:] = set(subfolders) - _SKIPPED_FOLDERS
        files += [Path(folder, name) for name in names if name.endswith(".py")]
    return sorted(files)


# Installed packages, tests, and the reference.
_SKIPPED_FOLDERS = {"site-packages", "dist-packages", "test", "tests", "idle_test", "pydoc_data"}


def library_modules() -> list[Path]:
    """Return the sorted paths of the standard library's modules that are a file of its folder."""
    folder = Path(sysconfig.get_path("stdlib"))
    return [path for path in sorted(folder.glob("*.py")) if not path.name.startswith("_")]


def prose(text: str) -> str:
    """Extract the paragraphs of plain sentences from a text, one per line, without markup."""
    paragraphs = []
    for paragraph in re.split(r"\n\s*\n", text):
        words = " ".join(re.sub(r"[`*]|\s+", lambda m: " " * m[0].isspace(), paragraph).split())
        plain = len(re.findall(r"[A-Za-z ,.']", words))
        is_sentence = re.match(r"[A-Z][a-z]*\b", words) and words.endswith((".", ":", "!", "?"))
        if is_sentence and words.count(" ") >= 6 and plain >= 0.95 * len(words):
            paragraphs.append(words)
    return "\n\n".join(paragraphs) + "\n" * bool(paragraphs)


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
