"""Validate an untrusted `tokenizer.json` before the `tokenizers` library loads it.

The library panics on some files, allocates gigabytes for others (a chain of Replace normalizers),
and backtracks forever on some regular expressions. This is an allowlist of components that are
known to be safe and lossless; any other is rejected with an error that names it.
"""

from __future__ import annotations

import contextlib
import itertools
import json
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import tokenizers

from ..errors import AGI2Error
from ..utils import parse_json, read_bytes

# Limits that bound time and memory for untrusted files.
MAX_FILE_BYTES = 64_000_000
MAX_TOKENS = 1_000_000
MAX_ADDED = 2_000
MAX_PARTS = 8
MAX_NAME = 200
"""Maximum characters of an added token."""

# Pre-tokenizer patterns of GPT-2, GPT-4 (and Llama 3), Qwen 2 and GPT-4o, in this order.
_CONTRACTIONS = "(?i:'s|'t|'re|'ve|'m|'ll|'d)"
_SPACES = r"\s*[\r\n]+|\s+(?!\S)|\s+"
_UPPER, _LOWER = r"[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]", r"[\p{Ll}\p{Lm}\p{Lo}\p{M}]"
KNOWN_PATTERNS = (
    r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+",
    rf"{_CONTRACTIONS}|[^\r\n\p{{L}}\p{{N}}]?\p{{L}}+|\p{{N}}{{1,3}}"
    rf"| ?[^\s\p{{L}}\p{{N}}]+[\r\n]*|{_SPACES}",
    rf"{_CONTRACTIONS}|[^\r\n\p{{L}}\p{{N}}]?\p{{L}}+|\p{{N}}"
    rf"| ?[^\s\p{{L}}\p{{N}}]+[\r\n]*|{_SPACES}",
    rf"[^\r\n\p{{L}}\p{{N}}]?{_UPPER}*{_LOWER}+{_CONTRACTIONS}?"
    rf"|[^\r\n\p{{L}}\p{{N}}]?{_UPPER}+{_LOWER}*{_CONTRACTIONS}?|\p{{N}}{{1,3}}"
    rf"| ?[^\s\p{{L}}\p{{N}}]+[\r\n/]*|{_SPACES}",
)

DIGIT_PATTERN = r"\p{N}"
"""Isolates each digit, before another pattern splits what is between."""


def read_tokenizer_file(path: Path) -> dict[str, Any]:
    """Read a tokenizer's JSON file.

    Raises:
        AGI2Error: if it cannot be read, is too large, or is not a JSON object.
    """
    data = read_bounded(path)
    try:
        content = parse_json(data, "it")
    except AGI2Error as error:
        raise AGI2Error(f"{path} is not a tokenizer: {error}") from error
    if not isinstance(content, dict):
        raise AGI2Error(f"{path} is not a tokenizer: it does not contain a JSON object")
    return content


def read_bounded(path: Path) -> bytes:
    """Read a file of at most `MAX_FILE_BYTES` (64 MB).

    Raises:
        AGI2Error: if it cannot be read, or is larger.
    """
    data = read_bytes(path, MAX_FILE_BYTES + 1)
    if len(data) > MAX_FILE_BYTES:
        raise AGI2Error(f"{path} is not a tokenizer: it has over {MAX_FILE_BYTES // 10**6} MB")
    return data


def load_library_tokenizer(content: Mapping[str, Any], name: str) -> tokenizers.Tokenizer:
    """Validate a tokenizer's content and load it with the library.

    Args:
        content: the parsed JSON.
        name: name of the file, for messages.

    Raises:
        AGI2Error: if a component is not allowed, or the library rejects the content.
    """
    check_byte_level(content, name)
    # Serialized again, so that the library parses what was checked: parsers differ on duplicate
    # keys. Truncation and padding are disabled.
    text = json.dumps({**content, "truncation": None, "padding": None})
    with convert_library_errors(f"{name} is not a tokenizer"):
        built = tokenizers.Tokenizer.from_str(text)
    # The library may assign another id to an added token than the file does.
    for each in content.get("added_tokens", []):
        token, id = each["content"], each["id"]
        if built.token_to_id(token) != id or built.id_to_token(id) != token:
            raise AGI2Error(
                f"{name} is not a tokenizer that AGI2 can use: the added token "
                f"{_show(token)} cannot have the id {id}"
            )
    return built


@contextlib.contextmanager
def convert_library_errors(problem: str) -> Iterator[None]:
    """Context manager that converts any exception of the library, panics included.

    Raises:
        AGI2Error: with a message that begins with `problem`.
    """
    try:
        yield
    except (AGI2Error, KeyboardInterrupt, SystemExit, GeneratorExit):
        raise
    except BaseException as error:  # PyO3's PanicException does not derive from Exception
        raise AGI2Error(f"{problem}: {error}") from error


def check_byte_level(content: Mapping[str, Any], name: str) -> None:
    """Check every component of a byte-level BPE tokenizer.

    Raises:
        AGI2Error: if a component is malformed, unknown, unbounded or lossy.
    """
    check = _Check(name)
    check.model(content.get("model"))
    check.decoder(content.get("decoder"))
    check.normalizer(content.get("normalizer"))
    check.pre_tokenizer(content.get("pre_tokenizer"))
    check.post_processor(content.get("post_processor"))
    check.added_tokens(content.get("added_tokens", []), content["model"])


class _Check:
    """Validator with one method per component of the file; each raises `AGI2Error`.

    Args:
        name: name of the file, for messages.
    """

    def __init__(self, name: str) -> None:
        self._name = name
        self._merged: set[str] = set()

    def _error(self, why: str) -> AGI2Error:
        return AGI2Error(f"{self._name} is not a tokenizer that AGI2 can use: {why}")

    def _kind(self, part: Any, key: str) -> str:
        kind = part.get("type") if isinstance(part, dict) else None
        if not isinstance(kind, str):
            raise self._error(f"its {key} has no type")
        return kind

    def _parts(self, part: Any, key: str) -> list[Any]:
        """Return the components of a `Sequence`, or the single one; no nested one is expanded."""
        if part is None:
            return []
        if not isinstance(part, dict) or part.get("type") != "Sequence":
            return [part]
        inside = part.get(key)
        if not isinstance(inside, list) or len(inside) > MAX_PARTS:
            raise self._error(f"a Sequence has no list of at most {MAX_PARTS} {key}")
        return inside

    def model(self, model: Any) -> None:
        """Check that the model is deterministic BPE with consistent vocabulary and merges."""
        if self._kind(model, "model") != "BPE":
            raise self._error(f"its model is {model['type']}, not BPE")
        for key in ("dropout", "continuing_subword_prefix", "end_of_word_suffix"):
            if model.get(key):
                raise self._error(f"its model has {key} = {model[key]!r}")
        vocab, merges = model.get("vocab"), model.get("merges")
        self._vocabulary(vocab)
        if not isinstance(merges, list) or len(merges) > MAX_TOKENS:
            raise self._error(f"its model has no list of at most {MAX_TOKENS:,} merges")
        self._merged = {self._merged_token(merge, vocab) for merge in merges}

    def _merged_token(self, merge: Any, vocab: dict[str, int]) -> str:
        """Return the token that a merge produces."""
        try:
            first, second = merge.split(" ") if isinstance(merge, str) else merge
            known = first in vocab and second in vocab and first + second in vocab
        except (TypeError, ValueError) as error:
            raise self._error(f"the merge {_show(merge)} is not a pair of tokens") from error
        if not known or not first or not second:
            raise self._error(f"the merge {_show(merge)} is of tokens not in the vocabulary")
        return str(first + second)

    def _vocabulary(self, vocab: Any) -> None:
        if not isinstance(vocab, dict) or not 1 <= len(vocab) <= MAX_TOKENS:
            raise self._error(f"its vocabulary is not an object of 1 to {MAX_TOKENS:,} tokens")
        for token, id in vocab.items():
            self._id(token, id, 2 * len(vocab) + MAX_ADDED)
        if len(set(vocab.values())) < len(vocab):
            raise self._error("two tokens of its vocabulary have the same id")

    def _id(self, token: object, id: Any, limit: int) -> None:
        """Check the id of a token: gaps are allowed, but ids must not be arbitrarily large."""
        if type(id) is not int or not 0 <= id < limit:
            raise self._error(f"the token {_show(token)} has the id {id!r}, not 0 to {limit - 1}")

    def decoder(self, decoder: Any) -> None:
        """Check that the decoder is byte-level."""
        if self._kind(decoder, "decoder") != "ByteLevel":
            raise AGI2Error(f"{self._name} is not a byte-level tokenizer")

    def normalizer(self, part: Any) -> None:
        """Check that the normalizer is none or NFC: others are lossy, and some are unbounded."""
        for kind in (self._kind(each, "normalizer") for each in self._parts(part, "normalizers")):
            if kind != "NFC":
                raise self._error(f"its normalizer {kind} changes text that is not given back")

    def pre_tokenizer(self, part: Any) -> None:
        """Check that the pre-tokenizer splits text into bounded words without dropping any."""
        splits = False
        parts = self._parts(part, "pretokenizers")
        for each in parts:
            kind = self._kind(each, "pre_tokenizer")
            if kind == "ByteLevel":
                if each.get("add_prefix_space") is not False:
                    raise self._error(
                        "add_prefix_space puts a space before every text, which decoding does not "
                        "take back, so no text would come back as it was"
                    )
                splits = splits or each.get("use_regex") is not False
            elif kind == "Split":
                self._split(each)
                splits = splits or each["pattern"]["Regex"] != DIGIT_PATTERN
            elif kind not in ("Digits", "Punctuation"):
                raise self._error(f"its pre_tokenizer {kind} is unknown here")
            elif each.get("behavior", "Isolated") not in ("Isolated", "Contiguous"):
                raise self._error(f"its {kind} has the behavior {each['behavior']!r}")
        kinds = [each["type"] for each in parts]
        if "ByteLevel" in kinds[:-1] or "ByteLevel" not in kinds:
            raise self._error("its pre_tokenizer does not end in its only ByteLevel")
        if not splits:
            raise self._error(
                "its pre_tokenizer does not cut text into words, so that encoding has no bound"
            )

    def _split(self, part: dict[str, Any]) -> None:
        pattern = part.get("pattern")
        regex = pattern.get("Regex") if isinstance(pattern, dict) else None
        if regex not in (*KNOWN_PATTERNS, DIGIT_PATTERN):
            raise self._error(f"its Split has the unknown pattern {_show(pattern)}")
        how = (part.get("behavior"), part.get("invert"))
        # What KNOWN_PATTERNS do not match is nothing, so it makes no difference if it is removed.
        is_whole = regex != DIGIT_PATTERN
        if how != ("Isolated", False) and not (is_whole and how == ("Removed", True)):
            raise self._error(f"its Split has behavior and invert {how!r}")

    def post_processor(self, part: Any) -> None:
        """Check that the post-processor adds nothing if `add_special_tokens` is false."""
        for each in self._parts(part, "processors"):
            kind = self._kind(each, "post_processor")
            if kind == "TemplateProcessing":
                single = each.get("single")
                if not isinstance(single, list) or len(single) > 64:
                    raise self._error("its TemplateProcessing has no short list `single`")
                texts = sum(isinstance(piece, dict) and "Sequence" in piece for piece in single)
                if not all(isinstance(piece, dict) for piece in single):
                    raise self._error("its TemplateProcessing has a piece that is not an object")
                if texts != 1:
                    raise self._error(f"its TemplateProcessing has the text {texts} times")
            elif kind not in ("ByteLevel", "RobertaProcessing", "BertProcessing"):
                raise self._error(f"its post_processor {kind} is unknown here")

    def added_tokens(self, added: Any, model: Mapping[str, Any]) -> None:
        """Check that added tokens are few, short, unique, and do not strip white space in text."""
        if not isinstance(added, list) or len(added) > MAX_ADDED:
            raise self._error(f"added_tokens is not a list of at most {MAX_ADDED:,}")
        vocab = model["vocab"]
        ids = {id: token for token, id in vocab.items()}
        seen: set[str] = set()
        limit = 2 * len(vocab) + MAX_ADDED
        for each in added:
            token, id, special = (
                (each.get("content"), each.get("id"), each.get("special"))
                if isinstance(each, dict)
                else (None, None, None)
            )
            if not isinstance(token, str) or not 1 <= len(token) <= MAX_NAME:
                raise self._error(f"an added token is not a string of 1 to {MAX_NAME} characters")
            self._id(token, id, limit)
            if ids.setdefault(id, token) != token or vocab.get(token, id) != id or token in seen:
                raise self._error(f"the added token {_show(token)} and another share id {id}")
            seen.add(token)
            if special and (token in self._merged or (len(token) == 1 and token in vocab)):
                raise self._error(f"the special token {_show(token)} is a token of text, too")
            if not special and any(each.get(key) for key in ("lstrip", "rstrip", "single_word")):
                raise self._error(
                    f"the added token {_show(token)} has lstrip, rstrip or single_word"
                )


def _show(value: object) -> str:
    text = repr(value)
    return text if len(text) <= 80 else f"{text[:77]}..."


# Characters of one to four UTF-8 bytes from all planes, all kinds of white space, combining marks,
# joined emoji, right-to-left script, and noncharacters.
ROUND_TRIP_SAMPLES: tuple[str, ...] = (
    "".join(map(chr, range(0x180))),
    "".join(chr(c) for c in range(0x400, 0x110000, 0x3FD) if not 0xD800 <= c < 0xE000),
    "a  b\n\n \t\r\n c\u2028\u3000d \x85\xa0e 12345 don't DON'T x=1;\n  y",
    "e\u0301 \u00e9 \U0001f469\u200d\U0001f469\u200d\U0001f467\ufe0f",
    "\u0645\u0631\u062d\u0628\u0627 \uffff\U0010ffff",
)


def check_round_trip(
    encode: Callable[[str], list[int]],
    decode: Callable[[list[int]], str],
    expect: Callable[[str], str],
    more: Iterable[str],
    name: str,
) -> None:
    """Check that encoding and decoding round-trips `ROUND_TRIP_SAMPLES`.

    Args:
        encode: the tokenizer's `encode`.
        decode: the tokenizer's `decode`.
        expect: the expected result for a text: its normalization.
        more: texts to check in addition to `ROUND_TRIP_SAMPLES`.
        name: name of the tokenizer, for messages.

    Raises:
        AGI2Error: if a sample does not round-trip.
    """
    with convert_library_errors(f"{name} is not a tokenizer that AGI2 can use"):
        for sample in (*ROUND_TRIP_SAMPLES, *more):
            found, expected = decode(encode(sample)), expect(sample)
            if found != expected:
                same = (a == b for a, b in zip(found, expected, strict=False))
                place = sum(itertools.takewhile(bool, same))
                raise AGI2Error(
                    f"{name} loses text: {expected[place : place + 8]!r} is decoded as "
                    f"{found[place : place + 8]!r}"
                )
