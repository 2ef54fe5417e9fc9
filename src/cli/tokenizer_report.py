"""What the commands about tokenizers do and print."""

from __future__ import annotations

import os
import re
import shlex
from collections.abc import Iterator, Sequence
from itertools import chain
from pathlib import Path
from typing import Literal, cast, get_args

from rich.cells import cell_len

from ..command_line import command_line
from ..config_keys import PreTokenizer
from ..console import print_line
from ..data.corpus import check_sources, read_documents
from ..errors import AGI2Error, printable
from ..formats.export import check_not_exists
from ..tokenization.base import FILE_NAME, Tokenizer
from ..tokenization.statistics import TextStatistics, longest_tokens, measure
from ..tokenizer import BPETokenizer
from ..utils import human_bytes, log, plural
from .interrupts import saving
from .table import print_table
from .token_view import print_split, token_label
from .tokenizer_argument import cached_gpt2, open_tokenizer

# Maximum number of tokens in a list, and in the view of a text.
_LISTED, _SHOWN_TOKENS = 12, 1000
_WIDTH = 80


def train_tokenizer(
    sources: Sequence[str],
    text_field: str,
    vocab_size: str,
    pretokenizer: str,
    split_digits: bool,
    special_tokens: Sequence[str],
    out: Path,
) -> None:
    """Train a tokenizer and save it to a new folder; print what it is.

    Raises:
        AGI2Error: if an option is invalid, `out` exists, or a source cannot be read.
    """
    if pretokenizer not in get_args(PreTokenizer):
        raise AGI2Error(f"--pretokenizer: {pretokenizer!r} is neither gpt2 nor gpt4")
    tokenizer = BPETokenizer(
        _parse_vocab_size(vocab_size),
        special_tokens=special_tokens,
        pretokenizer=cast(PreTokenizer, pretokenizer),
        split_digits=split_digits,
    )
    check_not_exists(out)
    check_sources(list(sources))
    then = f'for a run: tokenizer = "{out}"'
    with saving(out / FILE_NAME, then):
        tokenizer.fit(read_documents(list(sources), text_field))
        tokenizer.save(out / FILE_NAME)
    _print_vocabulary(tokenizer)
    log.info("saved to %s; %s", out, then)
    inspect = f"tokenizer inspect {shlex.join([str(out), sources[0]])}"
    log.info("look at it: %s", command_line(inspect))


def _parse_vocab_size(value: str) -> int | Literal["auto"]:
    if value == "auto":
        return "auto"
    if not re.fullmatch("[0-9]{1,9}", value):
        raise AGI2Error(f"--vocab-size: {value!r} is neither a number nor auto")
    return int(value)


def inspect_tokenizer(argument: str, text: str | None) -> None:
    """Print a tokenizer's vocabulary and, if there is a text, how it is split.

    Raises:
        AGI2Error: if the tokenizer or the text cannot be read.
    """
    tokenizer = open_tokenizer(argument)
    documents = None if text is None else _read_text(text)
    _print_vocabulary(tokenizer)
    if documents is None:
        return
    first = next(documents, "")
    [statistics] = measure([tokenizer], chain([first], documents))
    _print_statistics(tokenizer, statistics)
    ids = tokenizer.encode(first[: 8 * _SHOWN_TOKENS])[:_SHOWN_TOKENS]
    print_line("")
    print_split(ids, tokenizer)
    if statistics.tokens > len(ids):
        print_line(f"and {plural(statistics.tokens - len(ids), 'more token')}")


def compare_tokenizers(arguments: Sequence[str], text: str) -> None:
    """Print a table of tokenizers and how well they compress a text.

    Raises:
        AGI2Error: if there is no tokenizer, or one or the text cannot be read.
    """
    if not arguments:
        command = command_line("tokenizer compare FOLDER FILE")
        raise AGI2Error(f"compare needs a tokenizer and a text: {command}")
    tokenizers = {argument: open_tokenizer(argument) for argument in arguments}
    if "gpt2" not in tokenizers and (cached := cached_gpt2()) is not None:
        tokenizers["gpt2"] = cached
    measured = measure(list(tokenizers.values()), _read_text(text))
    if not measured[0].bytes:
        raise AGI2Error(f"{text!r}: there is no text to compare on")
    rows = []
    for (name, tokenizer), found in zip(tokenizers.items(), measured, strict=True):
        lost = "" if tokenizer.unknown is None else f"{found.counts[tokenizer.unknown]:,}"
        rows.append(
            [
                name,
                f"{tokenizer.vocab_size:,}",
                f"{found.tokens:,}",
                f"{found.bytes_per_token:.2f}",
                f"{found.tokens_per_word:.2f}",
                f"{len(found.unused):,}",
                lost,
            ]
        )
    head = ["tokenizer", "vocabulary", "tokens", "bytes/token", "tokens/word", "unused", "<unk>"]
    if not any(row[-1] for row in rows):
        head, rows = head[:-1], [row[:-1] for row in rows]
    print_table(head, rows)


def _read_text(argument: str) -> Iterator[str]:
    """Return the documents of a source, or the argument itself if it is a text.

    Raises:
        AGI2Error: if it is neither: one word that names nothing is taken for a mistyped file.
    """
    is_text = len(argument.split()) != 1 or not re.search(r"[./\\*:]|^-$", argument)
    if is_text and not os.path.lexists(argument):
        return iter([argument])
    check_sources([argument])
    return read_documents([argument])


def _print_vocabulary(tokenizer: Tokenizer) -> None:
    kind = "byte-level BPE" if isinstance(tokenizer, BPETokenizer) else "basic"
    print_line(f"{kind}, {plural(tokenizer.vocab_size, 'token')}")
    special = [f"{name} = {id}" for name, id in tokenizer.special_tokens.items()]
    _print_list(plural(len(special), "special token"), special)
    longest = longest_tokens(tokenizer, _LISTED)
    _print_list("longest tokens", [token_label(id, tokenizer) for id in longest])


def _print_statistics(tokenizer: Tokenizer, found: TextStatistics) -> None:
    print_line(
        f"text: {human_bytes(found.bytes)}, {plural(found.tokens, 'token')}, "
        f"{found.bytes_per_token:.2f} bytes/token, {found.tokens_per_word:.2f} tokens/word"
    )
    if tokenizer.unknown is not None and (lost := int(found.counts[tokenizer.unknown])):
        print_line(f"<unk>: {plural(lost, 'token')}, whose text is lost")
    # The last merges are the rarest, so that the first unused tokens say more.
    unused = found.unused
    labels = [token_label(id, tokenizer) for id in unused[: _LISTED + 1]]
    _print_list(f"{plural(len(unused), 'token')} that the text does not use", labels)


def _print_list(name: str, items: Sequence[str]) -> None:
    """Print a name and the first items, in lines of at most `_WIDTH` columns where these allow."""
    listed = [*items[:_LISTED], *(["..."] if len(items) > _LISTED else [])]
    line = f"{name}:" if listed else name
    for index, item in enumerate(map(printable, listed)):
        part = f" {item}" + "," * (index < len(listed) - 1)
        if cell_len(line + part) > _WIDTH:
            print_line(line)
            line = " "
        line += part
    print_line(line)
