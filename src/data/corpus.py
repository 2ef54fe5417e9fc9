"""Stream documents from sources: files, folders, glob patterns, pipes, URLs, built-in text."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any

from ..errors import AGI2Error
from .builtin import BUILTIN, CONVERSATIONS, HELD_OUT_CONVERSATIONS
from .documents import SOURCE_KEYS, ReadOptions, ReadReport
from .download_names import cache_folder
from .downloads import download
from .fields import MADE_OF
from .gutenberg import strip_gutenberg
from .preprocess import load_preprocessor
from .readers import iterate_documents
from .sources import (
    Sources,
    check_rereadable,
    check_total_size,
    find_sources,
    is_pipe,
    list_sources,
)

__all__ = [
    "BUILTIN",
    "cache_folder",
    "check_configured",
    "check_fits_memory",
    "check_rereadable",
    "check_sources",
    "download",
    "read_documents",
    "strip_gutenberg",
]


def read_documents(
    sources: Sources, text_field: str | None = None, options: ReadOptions | None = None
) -> Iterator[str]:
    """Yield every document of every source, in order, as a complete string.

    See `readers.iterate_documents`, which yields large documents in pieces.

    Args:
        sources: paths, glob patterns, `http(s)://` URLs or `builtin:python-docs`.
        text_field: field or column that contains the text.
        options: how to read the sources, instead of `text_field` alone.

    Raises:
        AGI2Error: as in `iterate_documents`.
    """
    parts: list[str] = []
    for document in iterate_documents(sources, options or ReadOptions(text_field)):
        if parts and not document.continues:
            yield "".join(parts)
            parts.clear()
        parts.append(document.text)
    if parts:
        yield "".join(parts)


def key_for(source: str, options: ReadOptions) -> str:
    """Return the key that a source is for, by its first document.

    It is `conversations` or `preferences` for those in a known format. It is `sources` for what is
    text as well, unless `speakers` are set, and for pipes, which can be read only once.

    Args:
        source: the source.
        options: how to read it as text.

    Raises:
        AGI2Error: if it is missing or cannot be downloaded.
    """
    if source in (CONVERSATIONS, HELD_OUT_CONVERSATIONS):
        return "conversations"
    as_text = "sources" if options.speakers is None else "conversations"
    # What cannot be downloaded is an error here, rather than tried again for each key.
    (found,) = find_sources([source], options=options)
    if any(map(is_pipe, found.files)):
        return as_text
    report = ReadReport()
    with contextlib.suppress(AGI2Error):
        next(iterate_documents([source], options, report, is_logged=False), None)
    reasons = [reason for each in report.sources for reason, _ in each.skipped.entries()]
    for key, made_of in MADE_OF.items():
        if any(reason.endswith(made_of) for reason in reasons):
            return key
    if found.is_named:  # JSON lines whose suffix is that of a text are text as well
        pairs = replace(options, are_conversations=True, are_pairs=True, max_broken_lines=0)
        with contextlib.suppress(AGI2Error):
            next(iterate_documents([source], pairs, is_logged=False))
            return "preferences"
    return as_text


def one_key_for(sources: Sequence[str], options: ReadOptions) -> str:
    """Return the key that all of some sources are for; see `key_for`.

    Pipes, whose content is not known, are passed over.

    Raises:
        AGI2Error: if some are pairs of preferences and others are not.
    """
    keys = {
        source: key_for(source, options)
        for source in sources
        if not any(map(is_pipe, find_sources([source], fetch=False, options=options)[0].files))
    }
    pairs = [source for source, key in keys.items() if key == "preferences"]
    if pairs and len(pairs) < len(keys):
        other = next(source for source in keys if source not in pairs)
        raise AGI2Error(
            f"{pairs[0]} has pairs of preferences (chosen and rejected), {other} has not: name "
            "sources of one kind"
        )
    return next(iter(keys.values()), "sources")


def check_fits_memory(sources: Sources, options: ReadOptions | None = None) -> None:
    """Check that the files of sources, all of which are to be in memory, are not larger than it.

    Args:
        sources: one source or several.
        options: how they will be read.

    Raises:
        AGI2Error: if they are, or a source is missing.
    """
    check_total_size(find_sources(sources, fetch=False, options=options))


def check_sources(sources: Sources, options: ReadOptions | None = None) -> None:
    """Check that every source exists and looks like text, without downloading any.

    Args:
        sources: one source or several.
        options: how they will be read; a function of `preprocess` is imported.

    Raises:
        AGI2Error: as in `read_documents`; also if a name is not UTF-8, which TOML cannot store.
    """
    for name in list_sources(sources):
        try:
            name.encode()
        except UnicodeEncodeError as error:
            raise AGI2Error(
                f"{name}: the name is not UTF-8, so no configuration can contain it: rename it, or "
                "name the folder that it is in"
            ) from error
    find_sources(sources, fetch=False, options=options)
    if options is not None and options.preprocess is not None:
        load_preprocessor(options.preprocess)


def check_configured(config: Mapping[str, Any]) -> None:
    """Check the sources and conversations of a configuration; see `check_sources`.

    Raises:
        AGI2Error: as in `check_sources`.
    """
    options = ReadOptions.from_config(config)
    for sources in filter(None, map(config.get, SOURCE_KEYS)):
        check_sources(sources, options)
