"""A user's own function that filters or maps each document: `preprocess = "module:function"`."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

from ..errors import AGI2Error
from ..utils import plural
from .chat_template import Message
from .conversations import conversations_in, to_text
from .documents import Document, ReadReport, SourceReport
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


def preprocess(
    documents: Iterator[Document], preprocessor: Preprocessor, report: SourceReport
) -> Iterator[Document]:
    """Yield what a user's function makes of documents; large ones in pieces.

    Args:
        documents: documents, or pieces of them.
        preprocessor: the function.
        report: counts what it drops, changes and splits; its documents and characters become
            those that are yielded.

    Raises:
        AGI2Error: if it fails, returns something else than text, or a document is too large.
    """
    by = f"by preprocess {preprocessor.name}"
    for document in complete_documents(documents):
        kept = [text for text in _results(document, preprocessor) if text.strip()]
        report.documents += len(kept) - 1
        report.characters += sum(map(len, kept)) - len(document.text)
        if not kept:
            report.dropped += 1
            report.preprocessed.add(f"dropped {by}", document.source)
        elif len(kept) > 1:
            report.preprocessed.add(f"split {by}", document.source)
        elif kept[0] != document.text:
            report.preprocessed.add(f"changed {by}", document.source)
        for text in kept:
            yield from pieces(Document(text, document.source))


def preprocess_conversations(
    documents: Iterator[Document], preprocessor: Preprocessor, report: SourceReport
) -> Iterator[Document]:
    """Yield conversations of whose messages a user's function has changed the texts.

    A conversation is dropped if the function drops one of its messages.

    Args:
        documents: canonical texts of conversations or pairs, or pieces of them.
        preprocessor: the function.
        report: as for `preprocess`.

    Raises:
        AGI2Error: as for `preprocess`; also if the function splits a message.
    """
    by = f"by preprocess {preprocessor.name}"
    for document in complete_documents(documents):
        contents = []
        conversations = conversations_in(document.text)
        messages = [message for each in conversations for message in each]
        for message in messages:
            results = _results(Document(message.content, document.source), preprocessor)
            if len(results) > 1:
                raise AGI2Error(
                    f"{document.source}: preprocess {preprocessor.name} returned "
                    f"{plural(len(results), 'text')} for one message of a conversation"
                )
            contents += [each.strip() for each in results]
        report.characters -= len(document.text)
        if len(contents) < len(messages) or not all(contents):
            report.documents -= 1
            report.dropped += 1
            report.preprocessed.add(f"dropped {by}", document.source)
            continue
        changed = [Message(m.role, text) for m, text in zip(messages, contents, strict=True)]
        if changed != messages:
            report.preprocessed.add(f"changed {by}", document.source)
        rest = iter(changed)
        text = to_text(*(list(islice(rest, len(each))) for each in conversations))
        report.characters += len(text)
        yield from pieces(Document(text, document.source))


def check_any_left(name: str, report: ReadReport) -> None:
    """Check that a user's function has not dropped all documents.

    Raises:
        AGI2Error: if it has.
    """
    if not any(each.documents for each in report.sources):
        dropped = plural(sum(each.dropped for each in report.sources), "document")
        raise AGI2Error(
            f"preprocess {name} dropped all of {dropped}: it has to return the text to keep one"
        )


def complete_documents(documents: Iterator[Document]) -> Iterator[Document]:
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


def _results(document: Document, preprocessor: Preprocessor) -> list[str]:
    """Return the texts that the function makes of a document."""
    try:
        result = preprocessor.function(document.text)
        if isinstance(result, Iterator):  # whose code runs here
            result = list(result)
    except MemoryError:
        raise
    except (Exception, SystemExit) as error:
        raise AGI2Error(
            f"{document.source}: preprocess {preprocessor.name} failed"
            f"{preprocessor.module.place_of(error)}: {type(error).__name__}: {error}"
        ) from error
    if result is None:
        return []
    results = list(result) if isinstance(result, list | tuple) else [result]
    for text in results:
        _check(text, document, preprocessor)
    return [str(text) for text in results]


def _check(text: Any, document: Document, preprocessor: Preprocessor) -> None:
    if not isinstance(text, str):
        problem = f"{type(text).__name__}, not a str, a list of str, or None to drop the text"
    elif not _is_unicode(text):
        problem = "text with half a surrogate pair, which is not Unicode"
    else:
        return
    raise AGI2Error(f"{document.source}: preprocess {preprocessor.name} returned {problem}")


def _join(parts: list[Document]) -> Document:
    return Document("".join(part.text for part in parts), parts[0].source)


def _is_unicode(text: str) -> bool:
    """Return whether a text can be encoded: it has no half of a surrogate pair."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True
