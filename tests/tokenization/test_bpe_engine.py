"""Encoding by the library in C gives the ids of the `tokenizers` library, for any text."""

import copy
import functools
import json
import pickle
import random
import threading

import numpy as np
import pytest
import tokenizers
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import normalizers
from transformers import PreTrainedTokenizerFast

from src.errors import AGI2Error
from src.nn import bpe_library
from src.tokenization import bpe_engine
from src.tokenization.bpe_engine import FastEngine, LibraryEngine, make_engine
from src.tokenization.tokenizer_json import KNOWN_PATTERNS
from src.tokenizer import BasicTokenizer, BPETokenizer, load_tokenizer
from tests.tokenization.texts import CORPUS, STYLES, any_script

needs_library = pytest.mark.skipif(
    bpe_library.LIBRARY is None, reason="no C compiler at installation"
)


@pytest.fixture(scope="module", params=STYLES)
def tokenizer(request):
    """A vocabulary with merges of letters, digits, marks and white space, in each style."""
    pretokenizer, split_digits = request.param
    tokenizer = BPETokenizer(700, pretokenizer=pretokenizer, split_digits=split_digits)
    tokenizer.fit(CORPUS)
    return tokenizer


def library_ids(tokenizer, *texts):
    return LibraryEngine(tokenizer._tokenizer).encode(texts, np.uint32, 1)


def engine_of(tokenizer):
    engine = make_engine(tokenizer._tokenizer)
    assert isinstance(engine, FastEngine)
    return engine


@needs_library
@settings(max_examples=40)
@given(texts=st.lists(any_script, max_size=3))
def test_ids_equal_those_of_the_tokenizers_library(tokenizer, texts):
    found = engine_of(tokenizer).encode(texts, np.uint32, 1)
    for ours, theirs in zip(found, library_ids(tokenizer, *texts), strict=True):
        assert ours.tolist() == theirs.tolist()


@needs_library
@settings(max_examples=25, deadline=None)
@given(
    text=st.text(
        st.sampled_from("\u4e00\u4e80\u4f80\u9be8\u9bf8\u6d77\u6d78\u3042ab\u00e9\U0001f433"),
        max_size=90,
    )
)
def test_words_without_spaces_have_the_ids_of_the_tokenizers_library(text):
    """They are encoded in parts: the vocabulary has tokens that end within a character."""
    for engine, library in _spaceless():
        ours = engine.encode([text, text * 7], np.uint32, 1)[0]
        assert ours.tolist() == library.encode([text, text * 7], np.uint32, 1)[0].tolist()


@functools.cache
def _spaceless():
    """Engines of vocabularies that were trained on random characters, in two orders of merges."""
    draw = random.Random(1)
    text = "".join(
        draw.choices("\u4e00\u4e80\u4f80\u9be8\u9bf8\u6d77\u6d78\u3042ab\u00e9\U0001f433", k=20_000)
    )
    tokenizer = BPETokenizer(700)
    tokenizer.fit(text)
    content = json.loads(tokenizer._tokenizer.to_str())
    shuffled = copy.deepcopy(content)
    draw.shuffle(shuffled["model"]["merges"])
    made = [tokenizers.Tokenizer.from_str(json.dumps(each)) for each in (content, shuffled)]
    return [(make_engine(each), LibraryEngine(each)) for each in made]


@needs_library
def test_every_character_is_split_as_by_the_tokenizers_library(tokenizer):
    """After a space, a letter and an apostrophe, in a run of two, and before a digit."""
    engine = engine_of(tokenizer)
    characters = [chr(c) for c in range(0x110000) if not 0xD800 <= c < 0xE000]
    interesting = [c for c in characters if ord(c) < 0x300 or ord(c) % 1021 == 0]
    text = "".join(f" {c}a'{c}{c}1{c} \n{c}" for c in interesting)
    ours = engine.encode([text], np.uint32, 2)[0]
    assert np.array_equal(ours, library_ids(tokenizer, text)[0])


@needs_library
def test_kinds_are_the_same_however_they_are_learned(monkeypatch):
    """In blocks of 256 characters, or, of a text with characters of many, those of the text."""
    sample = "".join(map(chr, range(0x20, 0x3000, 7)))
    texts = [sample, *(sample[at : at + 40] for at in range(0, len(sample), 40))]
    found = []
    for limit in (0, 1000):
        monkeypatch.setattr(bpe_engine, "_LEARNED_BLOCKS", limit)
        for chosen in (texts, texts[1:]):
            monkeypatch.setattr(bpe_engine, "KINDS", np.zeros_like(bpe_engine.KINDS))
            for text in chosen:
                bpe_engine.learn_kinds(text.encode())
            kinds = bpe_engine.KINDS
            found.append([kinds[ord(character)] for character in sample])
            ascii_and_sample = {*map(chr, range(128)), *sample}
            assert np.count_nonzero(kinds) == (0x3000 if limit else len(ascii_and_sample))
    assert found == [found[0]] * len(found)
    assert {*found[0]} == {1, 2, 3, 4}


@needs_library
@pytest.mark.parametrize("unit", ["ACGT", "鯨は海を泳ぐ", "\u0301", "a'", "  \n", "12", "abab!?"])
def test_long_words_have_the_ids_of_the_library(tokenizer, unit):
    for size in (60, 70, 1199, 1200, 1201, 9000):
        text = (unit * size)[:size]
        ours = engine_of(tokenizer).encode([text], np.uint32, 1)[0]
        assert np.array_equal(ours, library_ids(tokenizer, text)[0])


@pytest.fixture(scope="module")
def transformers_tokenizer(tokenizer, tmp_path_factory):
    """The saved tokenizer, loaded by `transformers`."""
    folder = tmp_path_factory.mktemp("saved")
    tokenizer.save(folder)
    assert load_tokenizer(folder).fingerprint == tokenizer.fingerprint
    return PreTrainedTokenizerFast(tokenizer_file=str(folder / "tokenizer.json"))


@settings(max_examples=30)
@given(text=any_script)
def test_transformers_gives_the_same_ids_for_the_saved_file(
    tokenizer, transformers_tokenizer, text
):
    expected = transformers_tokenizer(text, split_special_tokens=True)["input_ids"]
    assert tokenizer.encode(text) == expected


# Batches


@pytest.mark.parametrize("kind", ["fast", "library", "added tokens", "basic"])
@pytest.mark.parametrize("threads", [1, 2, 5, None])
def test_a_batch_is_its_texts_one_after_the_other(kind, threads, monkeypatch, tmp_path):
    if kind == "library":
        monkeypatch.setattr(bpe_library, "LIBRARY", None)
    monkeypatch.setattr(bpe_engine, "_BATCH_BYTES", 50)
    tokenizer = BasicTokenizer() if kind == "basic" else BPETokenizer(300)
    tokenizer.fit(CORPUS)
    if kind == "added tokens":
        content = json.loads(tokenizer.to_json())
        token = {**content["added_tokens"][0], "id": 300, "content": "whale", "special": False}
        content["added_tokens"].append(token)
        (tmp_path / "tokenizer.json").write_text(json.dumps(content), encoding="utf-8")
        tokenizer = load_tokenizer(tmp_path)
    texts = ["", *CORPUS, "", "a\ud800b", CORPUS[0] * 30, "end", ""]
    ids, offsets = tokenizer.encode_batch(iter(texts), threads=threads)
    assert (ids.dtype, offsets.dtype) == (tokenizer.dtype, np.int64)
    assert offsets.tolist() == [0, *np.cumsum([len(tokenizer.encode(each)) for each in texts])]
    for text, start, end in zip(texts, offsets[:-1], offsets[1:], strict=True):
        assert ids[start:end].tolist() == tokenizer.encode(text)
    data = [text.encode("utf-8", "replace") for text in texts]
    ends = np.cumsum([*map(len, data)]).tolist()
    for ours, theirs in zip(
        tokenizer.encode_utf8(b"".join(data), ends), (ids, offsets), strict=True
    ):
        assert ours.dtype == theirs.dtype
        assert ours.tolist() == theirs.tolist()


def test_an_empty_batch_has_no_ids(tokenizer):
    for texts in ([], [""], ["", ""]):
        ids, offsets = tokenizer.encode_batch(texts)
        assert ids.tolist() == []
        assert offsets.tolist() == [0] * (len(texts) + 1)


@pytest.mark.parametrize(
    ("texts", "threads", "problem"),
    [
        ("abc", None, "texts must be a list of strings, not str 'abc'"),
        (b"abc", None, "texts must be a list of strings, not bytes"),
        (5, None, "texts must be a list of strings, not int 5"),
        ({"a": 1}, None, "texts must be a list of strings, not dict"),
        (["a", 5], None, "text must be a str, not int 5"),
        ([None], None, "text must be a str, not NoneType"),
        (["a"], 0, "threads must be an integer of at least 1 or None, not 0"),
        (["a"], 1.5, "threads must be an integer"),
    ],
)
def test_what_is_no_batch_of_texts_is_one_line(tokenizer, texts, threads, problem):
    for each in (tokenizer, BasicTokenizer("abc")):
        with pytest.raises(AGI2Error, match=problem):
            each.encode_batch(texts, threads=threads)


@pytest.mark.parametrize("make", [BPETokenizer, BasicTokenizer])
def test_a_batch_needs_a_vocabulary(make):
    with pytest.raises(AGI2Error, match="call fit"):
        make().encode_batch([])


@needs_library
def test_threads_share_an_engine(tokenizer):
    engine, expected, wrong = engine_of(tokenizer), library_ids(tokenizer, *CORPUS)[0], []

    def work():
        for _ in range(20):
            if not np.array_equal(engine.encode(CORPUS, np.uint32, 1)[0], expected):
                wrong.append(1)

    threads = [threading.Thread(target=work) for _ in range(4)]
    for each in threads:
        each.start()
    for each in threads:
        each.join()
    assert not wrong


# Which engine


def changed(content, **parts):
    content = copy.deepcopy(content)
    content["model"] |= {key: parts.pop(key) for key in list(parts) if key in content["model"]}
    return tokenizers.Tokenizer.from_str(json.dumps({**content, **parts}))


BYTE_LEVEL = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True}
DIGITS = {"type": "Digits", "individual_digits": True}
PLAIN = {**BYTE_LEVEL, "use_regex": False}


def split(pattern, behavior="Isolated", invert=False):
    return {"type": "Split", "pattern": {"Regex": pattern}, "behavior": behavior, "invert": invert}


def sequence(*parts):
    return {"type": "Sequence", "pretokenizers": list(parts)}


@needs_library
def test_a_tokenizer_that_the_library_in_c_lacks_is_left_to_the_other():
    tokenizer = BPETokenizer(400)
    tokenizer.fit(CORPUS)
    content = json.loads(tokenizer.to_json())
    unusual = {
        "pattern": {"pre_tokenizer": sequence(split(KNOWN_PATTERNS[3]), PLAIN)},
        "digits": {"pre_tokenizer": sequence(DIGITS, BYTE_LEVEL)},
        "twice": {"pre_tokenizer": sequence(split(KNOWN_PATTERNS[1]), BYTE_LEVEL)},
        "many": {"pre_tokenizer": sequence(split(r"\p{N}"), split(KNOWN_PATTERNS[1]), PLAIN)},
        "whole words": {"ignore_merges": True},
        "NFC": {"normalizer": {"type": "NFC"}},
    }
    for parts in unusual.values():
        assert isinstance(make_engine(changed(content, **parts)), LibraryEngine)
    usual = {
        "GPT-2": sequence(split(KNOWN_PATTERNS[0]), PLAIN),
        "removed": sequence(split(KNOWN_PATTERNS[0], "Removed", True), PLAIN),
        "Qwen 2": sequence(split(KNOWN_PATTERNS[2]), PLAIN),
        "alone": sequence(BYTE_LEVEL),
    }
    text = " ".join(CORPUS)
    for part in usual.values():
        made = changed(content, pre_tokenizer=part)
        engine = make_engine(made)
        assert isinstance(engine, FastEngine)
        expected = LibraryEngine(made).encode([text], np.uint32, 1)[0]
        assert np.array_equal(engine.encode([text], np.uint32, 1)[0], expected)


@needs_library
def test_merges_in_the_older_layout_and_repeated_merges_have_the_same_ids():
    tokenizer = BPETokenizer(400)
    tokenizer.fit(CORPUS)
    content = json.loads(tokenizer.to_json())
    merges = content["model"]["merges"]
    for changes in (
        [" ".join(pair) for pair in merges],
        [*merges, merges[0], merges[5]],
        merges[::-1],
    ):
        made = changed(content, merges=changes)
        expected = LibraryEngine(made).encode(CORPUS, np.uint32, 1)[0]
        assert np.array_equal(make_engine(made).encode(CORPUS, np.uint32, 1)[0], expected)


def test_copies_and_changed_tokenizers_make_their_own_engine():
    tokenizer = BPETokenizer(400)
    tokenizer.fit(CORPUS)
    ids = tokenizer.encode(CORPUS[0])
    for other in (copy.deepcopy(tokenizer), pickle.loads(pickle.dumps(tokenizer))):
        assert other._engine is None
        assert other.encode(CORPUS[0]) == ids
    tokenizer.add_special_tokens("<|a|>")
    assert tokenizer.encode(CORPUS[0]) == ids
    tokenizer.fit(["something else entirely"])
    assert tokenizer.encode(CORPUS[0]) != ids
    composed = BPETokenizer.from_library(tokenizer._tokenizer, "x")
    composed._tokenizer.normalizer = normalizers.NFC()
    assert isinstance(make_engine(composed._tokenizer), LibraryEngine)
