"""The BPE library in C: what it refuses, and what it does at its limits."""

from types import SimpleNamespace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from src.nn import bpe_library
from src.nn.bpe_library import (
    CODE_POINTS,
    LETTER,
    OTHER,
    WHITE,
    Encoder,
    Splitter,
    Trainer,
    load,
    unknown_kind,
)

pytestmark = pytest.mark.skipif(bpe_library.LIBRARY is None, reason="no C compiler at installation")
GPT2 = Splitter(is_gpt4=False, max_digits=0)
KINDS = np.full(CODE_POINTS, OTHER, np.uint8)
LETTERS = KINDS.copy()
LETTERS[97:123], LETTERS[32] = LETTER, WHITE
BYTES = np.arange(256, dtype=np.uint32)


def merges(*rows):
    return np.array(rows, np.uint32).reshape(-1, 4)


def encode(encoder, *texts, dtype=np.uint16):
    ends = np.cumsum([len(text) for text in texts], dtype=np.int64)
    return encoder.encode(b"".join(texts), ends, dtype)


def trained(text, size, max_words=100, kinds=KINDS):
    trainer = Trainer(kinds, GPT2, max_words, 10**6)
    trainer.count(text, np.array([len(text)]))
    steps = list(trainer.merge(bytes(range(256)), 0, size))
    return trainer, steps


def test_without_a_compiler_there_is_no_library(tmp_path):
    assert load(tmp_path) is None


@pytest.mark.parametrize("ends", [[1, 3], [2], [-1, 2], [3, 2], [0, 3, 2, 2]])
def test_pieces_that_do_not_make_up_the_text_are_refused(ends):
    for call in (
        lambda ends: Encoder(BYTES, merges(), KINDS, GPT2).encode(b"ab", ends, np.uint16),
        lambda ends: Trainer(KINDS, GPT2, 9, 9).count(b"ab", ends),
    ):
        with pytest.raises(ValueError, match="do not make up the text"):
            call(np.array(ends) if ends != [2] else np.array([1]))


@pytest.mark.parametrize(
    "array", [BYTES.astype(np.int64), BYTES[:-1], np.arange(512, dtype=np.uint32)[::2]]
)
def test_arrays_of_another_type_or_size_get_no_address(array):
    with pytest.raises(TypeError, match="needs 256 contiguous elements of uint32"):
        Encoder(array, merges(), KINDS, GPT2)


def test_ids_are_of_the_type_asked_for_and_pieces_are_separate():
    encoder = Encoder(BYTES, merges((97, 98, 70_000, 0)), KINDS, GPT2)
    for texts, expected, counts in (
        ((b"abab", b"", b"b"), [70_000, 70_000, 98], [2, 0, 1]),
        ((b"a", b"b"), [97, 98], [1, 1]),
        ((), [], []),
    ):
        ids, found = encode(encoder, *texts, dtype=np.uint32)
        assert (ids.tolist(), found.tolist()) == (expected, counts)
        assert ids.dtype == np.uint32
    assert encode(encoder, b"ac")[0].dtype == np.uint16


@pytest.mark.parametrize("size", [1, 21, 22, 23, 63, 64, 65, 1000])
def test_words_of_every_length_are_merged_by_rank_and_then_from_the_left(size):
    """Short words, cached words and long words have three ways to the same result."""
    encoder = Encoder(BYTES, merges((97, 97, 300, 0), (300, 300, 301, 1)), KINDS, GPT2)
    fours, rest = divmod(size, 4)
    expected = [301] * fours + [[], [97], [300], [300, 97]][rest]
    for _ in range(2):
        assert encode(encoder, b"a" * size)[0].tolist() == expected


def test_a_rank_that_a_merge_has_made_obsolete_is_skipped():
    rows = merges((97, 98, 300, 0), (98, 99, 301, 1), (300, 99, 302, 2), (302, 300, 303, 3))
    encoder = Encoder(BYTES, rows, KINDS, GPT2)
    for repeats in (1, 10, 40):
        ids = encode(encoder, b"abcab" * repeats)[0].tolist()
        assert ids == [303] * repeats


def test_one_piece_has_the_ids_that_it_has_among_others():
    encoder = Encoder(BYTES, merges((97, 98, 70_000, 0)), KINDS, GPT2)
    for text in (b"", b"abab", b"ab" * 4096):
        assert encoder.encode_piece(text) == encode(encoder, text, dtype=np.uint32)[0].tolist()
    with pytest.raises(ValueError, match="over 8,192 bytes"):
        encoder.encode_piece(b"a" * 8193)


def test_a_piece_with_a_character_of_unknown_kind_is_not_encoded():
    kinds = np.zeros(CODE_POINTS, np.uint8)
    kinds[:0x80] = OTHER
    encoder = Encoder(BYTES, merges(), kinds, GPT2)
    whale = "a whale: 鯨".encode()
    assert encoder.encode_piece(whale) is None
    kinds[ord("鯨")] = LETTER
    assert encoder.encode_piece(whale) == list(whale)


def test_bytes_that_are_not_utf8_stay_inside_the_text():
    encoder = Encoder(BYTES, merges(), KINDS, GPT2)
    for text in (b"a\xf0", b"\xe3\x81", b"\xc3", b"\x80\x80", b"'\xc5", b" \xff\xff\xff\xff"):
        assert encode(encoder, text)[0].tolist() == list(text)
        assert unknown_kind(KINDS, text) == -1


def test_the_first_character_of_unknown_kind_is_found():
    kinds = np.zeros(CODE_POINTS, np.uint8)
    kinds[:0x80] = OTHER
    for character in "é鯨🐳":
        for before in range(10):
            assert unknown_kind(kinds, ("x" * before + character + "z").encode()) == ord(character)
    assert unknown_kind(kinds, b"x" * 20) == -1
    assert unknown_kind(np.zeros(CODE_POINTS, np.uint8), b"x") == ord("x")


def test_training_merges_the_most_frequent_pair_and_of_several_the_lowest():
    trainer, steps = trained(b"bcbc aa", 260)
    assert trainer.merges().tolist() == [
        [98, 99, 256],
        [32, 97, 257],
        [256, 256, 258],
        [257, 97, 259],
    ]
    assert steps == [4]
    trainer, steps = trained(b"", 300)
    assert (trainer.merges().shape, steps) == ((0, 3), [0])


def test_long_training_goes_in_steps():
    text = " ".join(f"{i:b}" for i in range(600)).encode()
    trainer, steps = trained(text, 256 + 300, 10_000)
    assert steps == [256, 300]
    assert len(trainer.merges()) == 300


@pytest.mark.parametrize(("max_words", "max_bytes"), [(20, 10**6), (10**6, 60)])
def test_rare_words_are_dropped_where_there_are_too_many(max_words, max_bytes):
    trainer = Trainer(KINDS, GPT2, max_words, max_bytes)
    common = b"ab" * 2
    for i in range(100):
        text = common + b" %d" % i
        trainer.count(text, np.array([len(text)]))
    trainer.end_count()
    assert trainer.min_count >= 1
    list(trainer.merge(bytes(range(256)), 0, 257))
    assert trainer.merges().tolist() == [[97, 98, 256]]


def test_words_are_dropped_by_the_least_count_there_is():
    trainer = Trainer(LETTERS, GPT2, 3, 10**6)
    for text in (b"aa" + b" bb" * 5 + b" cc" * 9, b" aa" * 7 + b" dd" * 6):
        trainer.count(text, np.array([len(text)]))
    trainer.end_count()
    assert trainer.min_count in (5, 6)  # of the four words, those that occur more often stay
    list(trainer.merge(bytes(range(256)), 0, 260))
    assert trainer.merges()[:2, :2].tolist() == [[32, 99], [256, 99]]


def test_a_weight_counts_words_so_many_times_and_no_word_is_dropped_after_the_end():
    texts = [(b"ab ab ab cd", 1), (b"cd", 3), (b"ab", 2)]
    found = []
    for weighted in (True, False):
        trainer = Trainer(LETTERS, GPT2, 2, 10**6)
        trainer.end_count()
        for text, weight in texts:
            times, repeats = (weight, 1) if weighted else (1, weight)
            for _ in range(repeats):
                trainer.count(text, np.array([len(text)]), times)
        list(trainer.merge(bytes(range(256)), 0, 300))
        assert trainer.min_count == 0
        found.append(trainer.merges().tolist())
    assert found[0] == found[1]
    assert found[0][0][:2] == [97, 98]


@settings(max_examples=25)
@given(st.lists(st.binary(min_size=1, max_size=40), max_size=9), st.integers(1, 3))
def test_words_are_distinguished_by_all_of_their_bytes(words, repeats):
    """Words of every length and any bytes, with the cache of words counted lately and without."""
    ends = np.cumsum([len(word) for word in words] * repeats, dtype=np.int64)
    text = b"".join(words * repeats)
    kinds = np.full(CODE_POINTS, LETTER, np.uint8)  # every piece is a word
    trainers = []
    for weight in (1, 2):  # with and without the cache
        trainer = Trainer(kinds, GPT2, 100, 10**6)
        trainer.count(text, ends, weight)
        list(trainer.merge(bytes(range(256)), 0, 300))
        trainers.append(trainer.merges().tolist())
    assert trainers[0] == trainers[1]


def test_pairs_that_occur_once_are_merged_after_all_others():
    trainer, _ = trained(b"abab cd", 300, kinds=LETTERS)
    found = trainer.merges()[:, :2].tolist()
    assert found == [[97, 98], [32, 99], [256, 256], [257, 100]]


def test_memory_that_is_not_there_is_a_memory_error(monkeypatch):
    failing = SimpleNamespace(
        agi2_bpe_encoder=lambda *_: None,
        agi2_bpe_trainer=lambda *_: None,
        agi2_bpe_cache_bytes=lambda: 1,
        agi2_bpe_encode=lambda *_: -1,
    )
    encoder = Encoder(BYTES, merges(), KINDS, GPT2)
    monkeypatch.setattr(bpe_library, "LIBRARY", failing)
    for call in (
        lambda: Encoder(BYTES, merges(), KINDS, GPT2),
        lambda: Trainer(KINDS, GPT2, 9, 9),
        lambda: encode(encoder, b"a"),
    ):
        with pytest.raises(MemoryError):
            call()
