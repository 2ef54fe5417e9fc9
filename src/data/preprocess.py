"""A user's own function that filters or maps each document: `preprocess = "module:function"`."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..errors import AGI2Error, one_line
from ..utils import log, plural
from .documents import Document
from .text import pieces
from .user_modules import Module, load_module

MAX_PREPROCESSED = 2**28
"""Maximum characters of a document that is given to the function."""


@dataclass(frozen=True)
class Preprocessor:
    """A user's function."""

    name: str
    """Name for messages, such as `clean.py:keep`."""
    function: Callable[[str], Any]
    module: Module

    @property
    def identity(self) -> list[Any] | None:
        """What it is, for the key of a corpus; `None` if its source cannot be hashed."""
        source = self.module.identity
        return None if source is None else [self.name, source]


def load_preprocessor(name: str) -> Preprocessor:
    """Import a user's function; again if its source has changed.

    Args:
        name: `module:function`, of a module in the working directory or an installed one; or
            `path/of/module.py:function`.

    Raises:
        AGI2Error: if there is no such function of one argument, or its module fails.
    """
    what = f"preprocess {name}"
    module_name, colon, function_name = name.rpartition(":")
    if not colon:
        raise AGI2Error(f"{what} is not module:function, such as clean:keep for keep in clean.py")
    module = load_module(module_name, what)
    function: Any = module.module
    for part in function_name.split("."):
        function = getattr(function, part, None)
    if problem := _problem(function):
        raise AGI2Error(f"{what}: {function_name} {problem}")
    short = Path(module_name).name if module_name.endswith(".py") else module_name
    return Preprocessor(f"{short}:{function_name}", function, module)


def _problem(function: Any) -> str:
    """Return why a value is no function from a text to texts, as far as that is known."""
    if function is None:
        return "does not exist in this module"
    if not callable(function) or inspect.isclass(function):
        return "is not a function"
    if inspect.iscoroutinefunction(function):
        return "is an async function: name one that returns the text"
    try:
        inspect.signature(function).bind("")
    except TypeError as error:
        return f"cannot be called with one argument, the text: {error}"
    except ValueError:  # compiled, without a signature
        pass
    return ""


class Preprocessing:
    """Applies a user's function to documents, and counts what it does.

    Args:
        preprocessor: the function.
    """

    def __init__(self, preprocessor: Preprocessor) -> None:
        self._preprocessor = preprocessor
        self.documents = 0
        """Number of documents that the function was given."""
        self.dropped = self.changed = self.split = self.returned = 0

    def apply(self, documents: Iterator[Document]) -> Iterator[Document]:
        """Yield what the function makes of documents; large ones in pieces.

        Raises:
            AGI2Error: if it fails, returns something else than text, or a document is too large.
        """
        for document in self._complete(documents):
            self.documents += 1
            results = self._results(document)
            kept = [text for text in results if text.strip()]
            self.returned += len(kept)
            self.dropped += not kept
            self.split += len(kept) > 1
            self.changed += len(kept) == 1 and kept[0] != document.text
            for text in kept:
                yield from pieces(Document(text, document.source))

    def finish(self) -> str:
        """Log what the function did, and return it as a line.

        Raises:
            AGI2Error: if it dropped all documents.
        """
        name = self._preprocessor.name
        if self.documents and not self.returned:
            raise AGI2Error(
                f"preprocess {name} dropped all of {plural(self.documents, 'document')}: it has to "
                "return the text of those to keep"
            )
        split = f", {self.split:,} split" if self.split else ""
        line = one_line(
            f"preprocess {name}: of {plural(self.documents, 'document')} {self.dropped:,} dropped, "
            f"{self.changed:,} changed{split}; {plural(self.returned, 'document')} left"
        )
        log.info("%s", line)
        return line

    def _complete(self, documents: Iterator[Document]) -> Iterator[Document]:
        """Yield complete documents: join their pieces."""
        parts: list[Document] = []
        size = 0
        for document in documents:
            if parts and not document.continues:
                yield _join(parts)
                parts, size = [], 0
            parts.append(document)
            size += len(document.text)
            if size > MAX_PREPROCESSED:
                raise AGI2Error(
                    f"{document.source}: more than {MAX_PREPROCESSED:,} characters, the limit of a "
                    "document for preprocess, which is given complete documents: split the file"
                )
        if parts:
            yield _join(parts)

    def _results(self, document: Document) -> list[str]:
        """Return the texts that the function makes of a document."""
        try:
            result = self._preprocessor.function(document.text)
            if isinstance(result, Iterator):  # whose code runs here
                result = list(result)
        except MemoryError:
            raise
        except (Exception, SystemExit) as error:
            raise AGI2Error(
                f"{document.source}: preprocess {self._preprocessor.name} failed"
                f"{self._preprocessor.module.place_of(error)}: {type(error).__name__}: {error}"
            ) from error
        if result is None:
            return []
        results = list(result) if isinstance(result, list | tuple) else [result]
        for text in results:
            self._check(text, document)
        return [str(text) for text in results]

    def _check(self, text: Any, document: Document) -> None:
        if not isinstance(text, str):
            problem = f"{type(text).__name__}, not a str, a list of str, or None to drop the text"
        elif not _is_unicode(text):
            problem = "text with half a surrogate pair, which is not Unicode"
        else:
            return
        raise AGI2Error(
            f"{document.source}: preprocess {self._preprocessor.name} returned {problem}"
        )


def _join(parts: list[Document]) -> Document:
    return Document("".join(part.text for part in parts), parts[0].source)


def _is_unicode(text: str) -> bool:
    """Return whether a text can be encoded: it has no half of a surrogate pair."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True
