"""The saved `tokenizer.json`, loaded by `transformers`, gives the same ids for any text."""

import itertools
import json
import unicodedata

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import PreTrainedTokenizerFast

from src.nn import bpe_library
from src.nn.bpe_library import CODE_POINTS, LETTER, NUMBER, OTHER, WHITE
from src.tokenization import bpe_engine
from src.tokenizer import BPETokenizer, load_tokenizer
from tests.tokenization.texts import CORPUS, STYLES, any_script

# Names that begin, end or overlap in each other.
SPECIAL = ["<|im_end|>", "<|im_end|>\n", "[a]", "né"]
ADDED = ["the whale", "the whale's", "x<|im", "\xe1 b", "鯨 は"]
PARTS = [
    *(
        "\0",
        "a\0b",
        "\ufeff",
        "\ufffd",
        "\u200f שלום \u202bעולם\u202c",
        "مرحبا ١٢٣",
        "e\u0301",
        "é",
    ),
    *(
        "👩\u200d👩\u200d👧",
        "🏳\ufe0f\u200d🌈",
        "🇩🇪🇫🇷",
        "👍🏽",
        "각",
        "\u1112\u1161\u11ab",
        "ﬁ",
        "Å",
        "Å",
    ),
    *("<|endoftext|>", "<|endof", "|>", "x<|im_end|>", "a\u0301 b", *SPECIAL, *ADDED),
]
texts = st.lists(st.one_of(st.sampled_from(PARTS), any_script), max_size=8).map("".join)


@pytest.fixture(scope="module", params=itertools.product(STYLES, ["", "NFC"], [False, True]))
def pair(request, tmp_path_factory):
    """A tokenizer that was saved and loaded, by us and by `transformers`."""
    (pretokenizer, split_digits), normalizer, has_added = request.param
    tokenizer = BPETokenizer(
        500, pretokenizer=pretokenizer, split_digits=split_digits, special_tokens=SPECIAL
    )
    tokenizer.fit([*CORPUS, *PARTS] * 2)
    content = json.loads(tokenizer.to_json())
    if normalizer:
        content["normalizer"] = {"type": normalizer}
    if has_added:
        first = content["added_tokens"][0]
        content["added_tokens"] += [
            {**first, "id": tokenizer.vocab_size + index, "content": name, "special": False}
            for index, name in enumerate(ADDED)
        ]
    folder = tmp_path_factory.mktemp("saved")
    (folder / "edited.json").write_text(json.dumps(content), encoding="utf-8")
    load_tokenizer(folder / "edited.json").save(folder)
    theirs = PreTrainedTokenizerFast(tokenizer_file=str(folder / "tokenizer.json"))
    return load_tokenizer(folder), theirs


@settings(max_examples=25)
@given(text=texts)
def test_transformers_gives_the_same_ids_with_and_without_special_tokens(pair, text):
    ours, theirs = pair
    assert ours.encode(text, "all") == theirs(text)["input_ids"]
    assert ours.encode(text) == theirs(text, split_special_tokens=True)["input_ids"]
    assert ours.decode(ours.encode(text)) == ours.preprocess(text)


def test_of_overlapping_names_the_first_and_then_the_longest_is_a_token(pair):
    ours, theirs = pair
    for text in ("x<|im_end|>", "<|im_end|>\n\n", "[[a]]", "nné", "the whale's whale"):
        assert ours.encode(text, "all") == theirs(text)["input_ids"]


@settings(max_examples=25)
@given(before=texts, after=texts, half=st.integers(0xD800, 0xDFFF))
def test_half_a_character_is_a_question_mark(pair, before, after, half):
    tokenizer, _ = pair
    text, expected = before + chr(half) + after, before + "?" + after
    for allowed in ((), "all"):
        assert tokenizer.encode(text, allowed) == tokenizer.encode(expected, allowed)


def test_kinds_of_characters_are_those_of_unicode():
    """Of all characters that Python's version of Unicode has; `tokenizers` may have more."""
    codes = [*range(0xD800 // 4), *range(0xE000, 0x110000, 0x3FD)]
    characters = [chr(c) for c in codes if unicodedata.category(chr(c)) not in ("Cn", "Cs")]
    bpe_engine.join_pieces(["".join(characters).encode()])
    kinds = bpe_engine.KINDS[[ord(c) for c in characters]]
    categories = np.array([unicodedata.category(c)[0] for c in characters])
    is_white = np.array([c.isspace() and c not in "\x1c\x1d\x1e\x1f" for c in characters])
    assert np.array_equal(kinds == LETTER, categories == "L")
    assert np.array_equal(kinds == NUMBER, categories == "N")
    assert np.array_equal(kinds == WHITE, is_white)


@pytest.mark.skipif(bpe_library.LIBRARY is None, reason="no C compiler at installation")
@pytest.mark.parametrize("first", ["abcdefgh", "".join(map(chr, range(0x100, 0x3000, 0x100)))])
def test_ascii_is_known_whatever_text_is_first(first, monkeypatch):
    monkeypatch.setattr(bpe_engine, "KINDS", np.zeros(CODE_POINTS, np.uint8))
    bpe_engine.join_pieces([first.encode()])
    bpe_engine.join_pieces([b"1 y;yyyy"])
    found = [bpe_engine.KINDS[ord(c)] for c in "1 yz;"]
    assert found == [NUMBER, WHITE, LETTER, LETTER, OTHER]
