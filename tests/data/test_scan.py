"""One pass over a corpus: sizes, hashes and equal documents."""

import hashlib
import itertools
import random

import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from src.data import dedup
from src.data import scan as scan_module
from src.data.chat_template import Message
from src.data.conversations import to_text
from src.data.scan import Scanner, join_scans, load_scan, save_scan, scan_texts
from src.data.sketches import SKETCH
from tests.data.chats import random_conversations

TEXTS = st.lists(st.text(st.sampled_from("ab é鯨🐳\ud800"), max_size=4), max_size=30)


@pytest.mark.parametrize("batch", [2, 9, 2**18])
@given(documents=TEXTS)
def test_sizes_and_originals_are_those_of_the_documents(batch, documents):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(scan_module, "_BATCH", batch)
        check_scan(documents)


def check_scan(documents):
    written = []
    scanner = Scanner(written.append)
    for text in documents:
        scanner.add(text[:1])
        for character in text[1:]:
            scanner.add(character, continues=True)
    scan = scanner.finish()
    stored = [text.encode("utf-8", "replace") for text in documents]
    assert b"".join(written) == b"".join(stored)
    assert scan.characters.tolist() == [*map(len, documents)]
    assert scan.sizes.tolist() == [*map(len, stored)]
    assert scan.originals.tolist() == [stored.index(data) for data in stored]
    whole = scan_texts(documents)
    assert scan.identity == whole.identity
    assert np.array_equal(scan.shingles.hashes, whole.shingles.hashes)


def test_long_pieces_and_short_ones_are_scanned_alike(monkeypatch):
    draw = random.Random(2)
    texts = [
        "".join(draw.choices("ab\xe9\u9be8 \n", k=draw.choice([0, 9, 40, 200]))) for _ in range(60)
    ]
    expected, written = scan_texts(texts), []
    monkeypatch.setattr(scan_module, "_BATCH", 50)
    scanner = Scanner(written.append)
    for text in texts:
        at = draw.randrange(len(text) + 1)
        scanner.add(text[:at])
        scanner.add(text[at:], continues=True)
    scan = scanner.finish()
    assert b"".join(written) == "".join(texts).encode()
    assert scan.identity == expected.identity
    for name in ("hashes", "documents", "starts", "ends"):
        assert np.array_equal(getattr(scan.shingles, name), getattr(expected.shingles, name))
    hashes = [hashlib.sha256(text.encode()).digest()[:16] for text in texts]
    assert scan.hashes.tobytes() == b"".join(hashes)


@pytest.mark.parametrize("count", [1, 2, 30])
def test_an_error_in_writing_is_raised(count, monkeypatch):
    def full(data):
        raise OSError("disk full")

    def scan():
        scanner = Scanner(full)
        for _ in range(count):
            scanner.add("ab")
        scanner.finish()

    monkeypatch.setattr(scan_module, "_BATCH", 3)
    with pytest.raises(OSError, match="disk full"):
        scan()


def test_the_identity_is_that_of_the_documents_not_of_their_concatenation():
    texts = [["ab", "c"], ["a", "bc"], ["abc"], ["abc", ""], ["c", "ab"], []]
    assert len({scan_texts(each).identity for each in texts}) == len(texts)


def test_a_scan_is_saved_and_loaded(tmp_path):
    scan = scan_texts(["a whale of a text that is long enough for shingles", "short", "short"])
    save_scan(scan, tmp_path / "scan.npz")
    loaded = load_scan(tmp_path / "scan.npz")
    assert [*tmp_path.iterdir()] == [tmp_path / "scan.npz"]
    assert loaded.identity == scan.identity
    assert loaded.originals.tolist() == [0, 1, 1]
    for name in ("hashes", "documents", "starts", "ends", "rate"):
        assert np.array_equal(getattr(loaded.shingles, name), getattr(scan.shingles, name))
    assert len(scan.shingles) > 0


SYSTEM = Message("system", "You are an assistant that is kind, brief and right. " * 9)
CHATS = random_conversations(40, seed=5)


@pytest.mark.parametrize("batch", [2, 700, 2**18])
def test_conversations_are_compared_by_what_their_turns_say(batch, monkeypatch):
    monkeypatch.setattr(scan_module, "_BATCH", batch)
    texts = ["A whale of a text that is before the conversations.", "And one more."]
    turns = [[each for each in chat if each.role != "system"] for chat in CHATS]
    scans = []
    for chats in (turns, [[SYSTEM, *each] for each in turns]):
        written, sketches = [], []
        scanner = Scanner(written.append, sketches.append, hashes_plain=True)
        stored = list(map(to_text, chats))
        for text in texts:
            scanner.add(text)
        for text in stored:
            scanner.add(text[:50], False, True)
            scanner.add(text[50:], True, True)
        scanner.add("A document after them.")
        scan = scanner.finish()
        scans.append(scan)
        documents = [*texts, *stored, "A document after them."]
        plain = scan_texts(documents)
        assert b"".join(written) == "".join(documents).encode()
        assert scan.identity == plain.identity
        assert scan.characters.tolist() == plain.characters.tolist()
        assert len(b"".join(sketches)) == len(documents) * SKETCH.itemsize
    said = ["\n".join(each.content for each in chat) for chat in turns]
    expected = scan_texts([*texts, *said, "A document after them."]).shingles
    for scan in scans:
        for name in ("hashes", "documents", "starts", "ends"):
            assert np.array_equal(getattr(scan.shingles, name), getattr(expected, name))
    assert np.array_equal(scans[0].plain_hashes, scans[1].plain_hashes)
    assert not np.array_equal(scans[0].hashes, scans[1].hashes)


MANY = ["".join(random.Random(number).choices("abé鯨", k=4)) for number in range(12)]


@example(documents=MANY, cuts=[3, 6, 9])
@given(documents=TEXTS, cuts=st.lists(st.integers(0, 30), max_size=3))
def test_scans_of_parts_are_joined_to_that_of_all(documents, cuts):
    before, dedup._MAX_SHINGLES = dedup._MAX_SHINGLES, 3
    documents = [text * 9 for text in documents]
    bounds = [0, *sorted(min(cut, len(documents)) for cut in cuts), len(documents)]
    try:
        parts = []
        for first, last in itertools.pairwise(bounds):
            scanner = Scanner(hashes_plain=True)
            for text in documents[first:last]:
                scanner.add(text)
            parts.append(scanner.finish_part())
        joined, whole = join_scans(parts), scan_texts(documents)
    finally:
        dedup._MAX_SHINGLES = before
    assert joined.identity == whole.identity
    assert joined.shingles.rate == whole.shingles.rate
    for name in ("hashes", "documents", "starts", "ends"):
        assert getattr(joined.shingles, name).tolist() == getattr(whole.shingles, name).tolist()
    assert len(joined.plain_originals) == len(documents)


def test_documents_that_differ_in_white_space_or_form_are_the_same_plain():
    texts = ["Caf\xe9 au\nlait", "Cafe\u0301\r\nau lait ", "cafe au lait", "Caf\xe9\u2028aulait"]
    scanner = Scanner(hashes_plain=True)
    for text in texts:
        scanner.add(text)
    scan = scanner.finish()
    assert scan.originals.tolist() == [0, 1, 2, 3]
    assert scan.plain_originals.tolist() == [0, 0, 2, 0]
    assert scan.select(np.array([False, True, True, True])).plain_originals.tolist() == [0, 1, 0]
