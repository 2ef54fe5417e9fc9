"""Byte-level tokenizers: GPT-2's alphabet of bytes, and the pre-tokenizers of GPT-2 and GPT-4."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import tokenizers
from tokenizers import decoders, models, pre_tokenizers

from ..config_keys import PreTokenizer
from ..nn.bpe_library import Splitter
from .tokenizer_json import DIGIT_PATTERN, KNOWN_PATTERNS

_GPT2, _GPT4, _QWEN2 = KNOWN_PATTERNS[:3]


def _byte_alphabet() -> dict[str, int]:
    """Return GPT-2's byte-level alphabet (`bytes_to_unicode`), inverted: character to byte.

    Printable Latin-1 characters map to themselves; those from U+0100 on, to the other bytes.
    """
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = [byte for byte in range(256) if byte not in printable]
    alphabet = {chr(byte): byte for byte in printable}
    alphabet.update({chr(0x100 + index): byte for index, byte in enumerate(others)})
    return alphabet


BYTE_OF = _byte_alphabet()
"""The byte of each character of the alphabet, in the order of the characters."""


def token_to_bytes(token: str) -> bytes:
    """Return the bytes of a token as a vocabulary spells it."""
    if not BYTE_OF.keys() >= set(token):  # not byte-level, as added tokens: its own UTF-8 bytes
        return token.encode()
    return bytes(BYTE_OF[character] for character in token)


def byte_level(
    model: models.Model, pretokenizer: PreTokenizer = "gpt2", split_digits: bool = False
) -> tokenizers.Tokenizer:
    """Return a byte-level tokenizer of the `tokenizers` library.

    Args:
        model: its BPE model.
        pretokenizer: the regular expression that splits text into words: GPT-2's, or GPT-4's
            (`cl100k_base`), which splits numbers into groups of three digits.
        split_digits: whether each digit is a word of its own.
    """
    tokenizer = tokenizers.Tokenizer(model)
    if pretokenizer == "gpt2" and not split_digits:
        tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    else:
        pattern = {
            ("gpt2", True): DIGIT_PATTERN,
            ("gpt4", False): _GPT4,
            ("gpt4", True): _QWEN2,
        }[pretokenizer, split_digits]
        parts = [
            pre_tokenizers.Split(tokenizers.Regex(pattern), "isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=pretokenizer == "gpt2"),
        ]
        tokenizer.pre_tokenizer = pre_tokenizers.Sequence(parts)
    tokenizer.decoder = decoders.ByteLevel()
    return tokenizer


def special_token(name: str) -> tokenizers.AddedToken:
    """Return a special token of the `tokenizers` library."""
    return tokenizers.AddedToken(name, special=True, normalized=False)


# (pattern of a Split, use_regex of the ByteLevel after it) of the pre-tokenizers in C.
_SPLITTERS = {
    (None, True): Splitter(is_gpt4=False, max_digits=0),
    (_GPT2, False): Splitter(is_gpt4=False, max_digits=0),
    (DIGIT_PATTERN, True): Splitter(is_gpt4=False, max_digits=1),
    (_GPT4, False): Splitter(is_gpt4=True, max_digits=3),
    (_QWEN2, False): Splitter(is_gpt4=True, max_digits=1),
}


def splitter_of(pre_tokenizer: Mapping[str, Any]) -> Splitter | None:
    """Return the equivalent in C of a valid pre-tokenizer of tokenizer.json, or `None`."""
    parts = [pre_tokenizer]
    if pre_tokenizer["type"] == "Sequence":
        parts = pre_tokenizer["pretokenizers"]
    *before, last = parts
    if len(before) > 1 or any(each["type"] != "Split" for each in before):
        return None
    pattern = before[0]["pattern"]["Regex"] if before else None
    return _SPLITTERS.get((pattern, last.get("use_regex", True)))
