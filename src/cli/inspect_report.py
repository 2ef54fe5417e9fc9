"""What `agi2 data inspect` does and prints."""

from __future__ import annotations

import json
import locale
import os
import textwrap
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, fields
from typing import Any

from rich.cells import cell_len

from ..config import Config
from ..config_loader import CONFIG, load_config, make_config, parse_override
from ..console import print_line, print_text
from ..data.corpus import check_sources, key_for, one_key_for
from ..data.documents import ReadOptions, SourceReport
from ..data.inspect import Inspection, TokenCount, inspect_corpus
from ..data.text_files import Skipped
from ..errors import AGI2Error, mask_secrets, one_line, printable
from ..utils import human_bytes, plural, replace_non_finite
from .tokenizer_argument import open_tokenizer

_WIDTH = 80
_INDENT = 12
_BAR_WIDTH = 28


def inspect_sources(
    sources: list[str], overrides: Sequence[str], tokenizer: str | None, is_json: bool
) -> None:
    """Read a corpus and print what it contains.

    Args:
        sources: the corpus; or a TOML file that names it.
        overrides: `KEY=VALUE` strings that change how it is read.
        tokenizer: the tokenizer that counts tokens; by default, one is trained.
        is_json: whether to print JSON.

    Raises:
        AGI2Error: if a source cannot be read, or an argument is invalid.
    """
    config = _open_config(sources, overrides)
    opened = None if tokenizer is None else open_tokenizer(tokenizer)
    options = ReadOptions.from_config(config)
    for group in filter(None, (config.sources, config.conversations, config.preferences)):
        check_sources(group, options)
    positions = None if _is_toml(sources[0]) else _positions(tokenizer)
    seq_len = positions or config.seq_len
    groups = config.conversations, config.preferences
    found = inspect_corpus(config.sources, options, opened, *groups, seq_len)
    if is_json:
        content = mask_secrets(_as_json(found, tokenizer))
        print_text(json.dumps(replace_non_finite(content), indent=2))
        return
    for line in _lines(found, tokenizer):
        print_line(line)


def _open_config(sources: list[str], overrides: Sequence[str]) -> Config:
    """Return a configuration with the sources, and with how to read them."""
    files = list(filter(_is_toml, sources))
    if files and len(sources) > 1:
        raise AGI2Error(f"{files[0]} is a configuration: name it alone, or name only texts")
    given = dict(map(parse_override, overrides))
    known = ReadOptions.keys()
    for key in given.keys() - known:
        raise AGI2Error(f"--set {key}: it does not change how a text is read: {', '.join(known)}")
    if files:
        config = load_config(files[0], None, overrides)
        if not (config.sources or config.conversations or config.preferences):
            raise AGI2Error(f"{files[0]}: sources is missing: there is nothing to inspect")
        return config
    locations = {key: f"--set {key}" for key in given}
    values = {**given, "sources": sources}
    config = make_config(values, None, "the command line", locations)
    options = ReadOptions.from_config(config)
    groups: dict[str, list[str]] = {"sources": []}
    for source in config.sources:
        groups.setdefault(key_for(source, options), []).append(source)
    if "preferences" in groups:
        one_key_for(config.sources, options)  # raises if there are others
    return config.changed(**groups)


def _is_toml(source: str) -> bool:
    return source.lower().endswith(".toml")


def _positions(tokenizer: str | None) -> int | None:
    """Return the number of positions of the model that a tokenizer is of, if it is of one."""
    if tokenizer is None or not (_is_toml(tokenizer) or os.path.isfile(f"{tokenizer}/{CONFIG}")):
        return None
    file = tokenizer if _is_toml(tokenizer) else f"{tokenizer}/{CONFIG}"
    return load_config(file).model_positions


def _lines(found: Inspection, tokenizer: str | None) -> Iterator[str]:
    for source in found.report.sources:
        yield from _source_lines(source)
    yield ""
    yield _row("documents", f"{found.documents:,}")
    yield from _conversation_lines(found)
    yield _row("characters", f"{found.characters:,}")
    yield _row("bytes", f"{found.bytes:,} as UTF-8")
    yield from _wrapped("tokens", _describe_tokens(found, tokenizer))
    letters = sum(found.scripts.values())
    yield from _wrapped("scripts", f"{_shares(found.scripts)} of {plural(letters, 'letter')}")
    yield from _wrapped(
        "languages",
        f"{_shares(found.languages)} of the text, estimated from "
        f"{plural(found.samples, 'sample')} by frequent words and scripts",
    )
    yield from _copies_lines(found)
    yield from _odd_lines(found)
    for title, listed in (("longest", found.longest), ("shortest", found.shortest)):
        yield ""
        yield f"{title} documents, in characters:"
        for length, name in listed:
            yield _cut(f"{length:>{_INDENT},}  {name}")
    yield ""
    yield from _picture(found)


def _conversation_lines(found: Inspection) -> Iterator[str]:
    """Yield how many conversations there are, what is trained on, and what does not fit."""
    spoken = found.conversations
    if spoken is None:
        return
    systems = f", {spoken.system_messages:,} with a system message" * (spoken.system_messages > 0)
    counts = plural(spoken.conversations, "conversation")
    if pairs := sum(each.documents for each in found.report.sources if each.kind == "pair"):
        counts = f"{plural(pairs, 'pair')} of two conversations"
    yield from _wrapped("dialogue", f"{counts}, {plural(spoken.turns, 'turn')}{systems}")
    share = _percent(spoken.targets / spoken.tokens)
    yield from _wrapped(
        "targets",
        f"{plural(spoken.targets, 'token')}, {share} of {spoken.tokens:,}: what the assistant says",
    )
    cut = "none is cut"
    if spoken.cut:
        cut = f"{spoken.cut:,} longer, cut at turns"
    if spoken.shortened:
        cut += f"; {spoken.shortened:,} with a turn longer than that, which loses its start"
    yield from _wrapped(
        "context",
        f"the longest has {plural(spoken.longest, 'token')} ({spoken.longest_name}); with "
        f"seq_len = {spoken.seq_len}: {cut}",
    )


def _source_lines(source: SourceReport) -> Iterator[str]:
    """Yield what was read of a source, and what was not."""
    yield from _hanging(f"{source.name}: {source.amounts()}")
    for what, tally in (
        ("skipped", source.skipped),
        ("removed", source.removed),
        ("changed", source.preprocessed),
        ("note", source.notes),
    ):
        for line in tally.lines():
            yield from _hanging(f"  {what}: {line}")


def _describe_tokens(found: Inspection, tokenizer: str | None) -> str:
    tokens: TokenCount = found.tokens
    count = f"{tokens.tokens:,}, {found.bytes / max(1, tokens.tokens):.2f} bytes each, with "
    size = plural(tokens.vocabulary, "token")
    if tokens.trained_on is None:
        return f"{count}{tokenizer} ({size})"
    is_all = tokens.trained_on == found.bytes
    part = "this text" if is_all else f"the first {human_bytes(tokens.trained_on)} of it"
    return f"{count}a vocabulary of {size} (byte-level BPE) trained on {part}"


def _shares(counts: Counter[str]) -> str:
    """Return the shares of the most common items: `Latin 98.2 %, Greek 1.8 %`."""
    total = max(1, sum(counts.values()))
    listed = counts.most_common(_MAX_SHARES)
    shares = [f"{name} {_percent(count / total)}" for name, count in listed]
    rest = total - sum(count for _, count in listed)
    if len(counts) > len(listed):
        shares.append(f"others {_percent(rest / total)}")
    return ", ".join(shares) or "none"


_MAX_SHARES = 6


def _percent(fraction: float) -> str:
    return "<0.1 %" if 0 < fraction < 0.001 else f"{100 * fraction:.1f} %"


def _copies_lines(found: Inspection) -> Iterator[str]:
    copies = {"copies": found.exact_copies, "near copies": found.near_copies}
    for title, each in copies.items():
        if not each.documents:
            yield _row(title, "none")
            continue
        name, original = each.examples[0]
        share = _percent(each.characters / found.characters)
        like = f", a copy of {original}" if original else ""
        line = f"{plural(each.documents, 'document')}, {share} of the text, such as {name}{like}"
        yield from _wrapped(title, line)
    if any(each.documents for each in copies.values()):
        yield _row("", "dedup = true removes them from the training text")


def _odd_lines(found: Inspection) -> Iterator[str]:
    if not found.odd:
        yield _row("odd", "no odd characters")
    for kind, odd in found.odd.items():
        documents = plural(odd.documents, "document")
        yield from _wrapped("odd", f"{kind}: {odd.count:,} in {documents}, such as {odd.example}")


def _picture(found: Inspection) -> Iterator[str]:
    """Yield a histogram of the documents' lengths."""
    yield f"lengths of documents (median {plural(found.median, 'character')}):"
    yield f"{'characters':>{_INDENT}}  {'documents':>10}  of the text"
    most = max(each.documents for each in found.bins)
    bar = "█" if _has_blocks() else "#"
    for each in found.bins:
        length = round(_BAR_WIDTH * each.documents / most)
        drawn = bar * max(length, each.documents > 0)
        share = _percent(each.characters / found.characters)
        yield f"{each.first:>{_INDENT},}  {each.documents:>10,}  {share:>11}  {drawn}".rstrip()


def _has_blocks() -> bool:
    """Return whether the terminal shows block characters: whether its encoding is UTF-8."""
    return locale.getencoding().lower().replace("-", "") == "utf8"


def _row(name: str, value: str) -> str:
    return f"{name:<{_INDENT}}{value}".rstrip()


def _wrapped(name: str, value: str) -> list[str]:
    """Return a row in lines of at most `_WIDTH` columns, if its words allow."""
    return _hanging(_row(name, value), _INDENT)


def _hanging(text: str, indent: int = 4) -> list[str]:
    return textwrap.wrap(
        one_line(text, 10 * _WIDTH),
        _WIDTH,
        subsequent_indent=" " * indent,
        break_long_words=False,
        break_on_hyphens=False,
    )


def _cut(line: str) -> str:
    """Return a line of at most `_WIDTH` columns, shortened in the middle."""
    line = printable(line)
    width = _WIDTH
    while cell_len(short := one_line(line, width)) > _WIDTH:
        width -= 1
    return short


def _as_json(found: Inspection, tokenizer: str | None) -> dict[str, Any]:
    content = {
        field.name: getattr(found, field.name) for field in fields(found) if field.name != "report"
    }
    for key in ("exact_copies", "near_copies", "tokens"):
        content[key] = asdict(content[key])
    if found.conversations is not None:
        content["conversations"] = asdict(found.conversations)
    content["tokens"]["tokenizer"] = tokenizer
    content["odd_characters"] = {
        kind: {"count": odd.count, "documents": odd.documents, "example": odd.example}
        for kind, odd in content.pop("odd").items()
    }
    total = max(1, sum(found.languages.values()))
    content["languages"] = {k: round(v / total, 4) for k, v in found.languages.most_common()}
    content["scripts"] = dict(found.scripts.most_common())
    content["lengths"] = [asdict(each) for each in content.pop("bins")]
    for key in ("longest", "shortest"):
        content[key] = [{"characters": length, "name": name} for length, name in content[key]]
    return {"sources": [_source_as_json(each) for each in found.report.sources], **content}


_TALLIES = ("skipped", "removed", "preprocessed", "notes")


def _source_as_json(source: SourceReport) -> Mapping[str, Any]:
    tallies = {name: getattr(source, name) for name in _TALLIES}
    sizes = ("name", "files", "documents", "characters", "bytes_read", "bytes_skipped")
    return {
        **{name: getattr(source, name) for name in sizes},
        **{name: _tally_as_json(tally) for name, tally in tallies.items()},
    }


def _tally_as_json(tally: Skipped) -> list[dict[str, Any]]:
    return [{"reason": reason, **asdict(entry)} for reason, entry in tally.entries()]
