"""Training in C gives the vocabulary of the `tokenizers` library."""

import logging

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import src.tokenizer as module
from src.nn import bpe_library
from src.tokenization import bpe_training
from src.tokenization.bpe_training import train
from src.tokenizer import BPETokenizer
from tests.tokenization.texts import CORPUS, STYLES, any_script

needs_library = pytest.mark.skipif(
    bpe_library.LIBRARY is None, reason="no C compiler at installation"
)


def trained(texts, size, *style):
    return train(texts, lambda text_bytes: size, *style)


def by_library(monkeypatch, *arguments):
    with monkeypatch.context() as patch:
        patch.setattr(bpe_library, "LIBRARY", None)
        return trained(*arguments)


@needs_library
@settings(max_examples=40)
@given(
    texts=st.lists(any_script, max_size=3),
    size=st.integers(257, 500),
    style=st.sampled_from(STYLES),
)
def test_the_vocabulary_equals_that_of_the_tokenizers_library(texts, size, style):
    with pytest.MonkeyPatch.context() as monkeypatch:
        theirs = by_library(monkeypatch, texts, size, *style)
    assert trained(texts, size, *style).to_str() == theirs.to_str()


@needs_library
@pytest.mark.parametrize("text", ["ab" * 3000, "aaa " * 50, "abcbabc " * 30, "a bb ccc dddd " * 9])
def test_pairs_that_overlap_are_counted_as_in_the_library(text, monkeypatch):
    theirs = by_library(monkeypatch, [text], 400, "gpt2", False)
    assert trained([text], 400, "gpt2", False).to_str() == theirs.to_str()


@pytest.mark.parametrize("has_library", [True, False])
def test_a_limit_on_distinct_words_is_said(has_library, monkeypatch, caplog):
    monkeypatch.setattr(bpe_training, "_MAX_WORDS", 50)
    if not has_library:
        monkeypatch.setattr(bpe_library, "LIBRARY", None)
    text = " ".join(f"w{i}" for i in range(200)) + " the" * 500
    with caplog.at_level(logging.INFO, "agi2"):
        tokenizer = trained([text], 300, "gpt2", False)
    said = "without the words that occur up to"
    assert (said in caplog.text) == (has_library and bpe_library.LIBRARY is not None)
    assert "Ġthe" in tokenizer.get_vocab()


@pytest.mark.parametrize("has_library", [True, False])
def test_a_sample_of_text_without_spaces_counts_as_all_of_it(has_library, monkeypatch, caplog):
    if not has_library:
        monkeypatch.setattr(bpe_library, "LIBRARY", None)
    chinese = ["鯨は海を泳ぐ" * 20] * 64
    texts = [*chinese, *CORPUS * 30]
    sizes = []
    everything = train(texts, lambda n: sizes.append(n) or 300, "gpt2", False)
    monkeypatch.setattr(bpe_training, "_MAX_SPACELESS_CHARACTERS", 2000)
    with caplog.at_level(logging.INFO, "agi2"):
        sampled = train(texts, lambda n: sizes.append(n) or 300, "gpt2", False)
    assert "on 1 in 4 of the 7,680 characters that have few spaces" in caplog.text
    assert sampled.to_str() == everything.to_str()
    assert sizes[0] == sizes[1] == sum(len(text.encode()) for text in texts)


@pytest.mark.parametrize("has_library", [True, False])
def test_the_size_may_depend_on_the_bytes_of_the_text(has_library, monkeypatch):
    if not has_library:
        monkeypatch.setattr(bpe_library, "LIBRARY", None)
    seen = []
    tokenizer = train(iter(CORPUS), lambda n: seen.append(n) or 270, "gpt2", False)
    assert seen == [sum(len(text.encode()) for text in CORPUS)]
    assert tokenizer.get_vocab_size() == 270


def test_an_automatic_size_follows_the_text_and_has_room_for_special_tokens(monkeypatch):
    monkeypatch.setattr(module, "vocabulary_for", lambda text_bytes: 260 + text_bytes // 100)
    for texts, own, expected in (
        (CORPUS, [], 260 + sum(len(text.encode()) for text in CORPUS) // 100),
        (["the the whale"], ["<a>", "<b>"], 260),
        (["the the whale"], [f"<{i}>" for i in range(9)], 266),
    ):
        tokenizer = BPETokenizer("auto", special_tokens=own)
        tokenizer.fit(texts)
        assert tokenizer.vocab_size == expected
    limited = BPETokenizer("auto")
    limited.max_vocab_size = 262  # as a model's vocabulary does
    limited.fit(CORPUS)
    assert limited.vocab_size == 262


DIGITS = {
    ("gpt2", False): [" 20000", " 1", " x", "12345"],
    ("gpt2", True): [" ", "2", "0", "0", "0", "0", " ", "1", " x", "1", "2", "3", "4", "5"],
    ("gpt4", False): [" ", "200", "00", " ", "1", " x", "123", "45"],
    ("gpt4", True): [" ", "2", "0", "0", "0", "0", " ", "1", " x", "1", "2", "3", "4", "5"],
}


@pytest.mark.parametrize("style", STYLES)
def test_digits_are_split_as_the_style_says(style):
    pretokenizer, split_digits = style
    tokenizer = BPETokenizer(900, pretokenizer=pretokenizer, split_digits=split_digits)
    tokenizer.fit([" 20000 1 x12345"] * 9)
    tokens = [tokenizer.decode([id]) for id in tokenizer.encode(" 20000 1 x12345")]
    assert tokens == DIGITS[style]


def test_line_ends_join_punctuation_in_the_style_of_gpt4_alone():
    for style, expected in (("gpt2", [");", "\n", "\n", "x"]), ("gpt4", [");\n\n", "x"])):
        tokenizer = BPETokenizer(400, pretokenizer=style)
        tokenizer.fit([");\n\nx"] * 9)
        assert [tokenizer.decode([id]) for id in tokenizer.encode(");\n\nx")] == expected
