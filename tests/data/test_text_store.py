"""The text of a corpus in a file: pieces, from any position."""

import random
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from src.data import text_store
from src.data.scan import Scanner
from src.data.splits import SplitPlan
from src.data.text_store import Cursor, TextStore
from src.tokenizer import BPETokenizer

WORDS = ["whale", "the", "été", "鯨。", "12", "\n", "don't", "🐳", "a" * 1300, "."]


@pytest.fixture(scope="module")
def tokenizer():
    tokenizer = BPETokenizer(300)
    tokenizer.fit([" ".join(WORDS) * 3], verbose=False)
    return tokenizer


def stored(folder, documents):
    with open(folder / "text.bin", "wb") as file:
        scanner = Scanner(file.write)
        for text in documents:
            scanner.add(text)
    scan = scanner.finish()
    return TextStore(folder / "text.bin", scan), scan


def texts(pieces):
    """The training and the held-out texts of which these are the pieces."""
    sides = [], []
    for piece in pieces:
        if piece.continues:
            sides[piece.is_held_out][-1] += piece.text
        else:
            sides[piece.is_held_out].append(piece.text)
    return sides


@pytest.fixture
def short_pieces(monkeypatch):
    monkeypatch.setattr(text_store, "PIECE_CHARACTERS", 40)
    monkeypatch.setattr(text_store, "_CHUNK_BYTES", 7)
    monkeypatch.setattr(text_store, "_LISTED", 2)


@pytest.mark.parametrize("size", [40, 2**22])
@settings(max_examples=40)
@given(
    documents=st.lists(st.lists(st.sampled_from(WORDS), min_size=1, max_size=40), max_size=5),
    seed=st.integers(0, 99),
)
def test_pieces_are_the_spans_and_can_be_read_from_where_each_ends(
    size, documents, seed, tmp_path_factory
):
    documents = [" ".join(words) for words in documents]
    store, scan = stored(tmp_path_factory.mktemp("text"), documents)
    random_ = random.Random(seed)
    exceptions = {}
    for index, text in enumerate(documents):
        places = sorted({0, len(text), *random_.choices(range(len(text)), k=2)})
        spans = [(*each, bool(number % 2)) for number, each in enumerate(pairwise(places))]
        if random_.random() < 0.5:
            exceptions[index] = spans if random_.random() < 0.7 else []
    cuts = np.array([len(text) // 2 for text in documents], np.int64)
    plan = SplitPlan(scan.characters, cuts, exceptions)
    with pytest.MonkeyPatch.context() as patch:
        for name in ("PIECE_CHARACTERS", "_CHUNK_BYTES", "_LISTED"):
            patch.setattr(text_store, name, size // 20)
        check_pieces(store, plan, documents)


def check_pieces(store, plan, documents):
    pieces = list(store.pieces(plan))
    expected = [], []
    for index, text in enumerate(documents):
        for start, end, is_held_out in plan.spans(index):
            expected[is_held_out].append(text[start:end])
    assert texts(pieces) == expected
    for number, piece in enumerate(pieces):
        if piece.end is not None:
            assert list(store.pieces(plan, piece.end)) == pieces[number + 1 :]
    assert list(store.pieces(plan, Cursor(len(documents)))) == []


@pytest.mark.usefixtures("short_pieces")
@pytest.mark.parametrize("seed", range(6))
def test_a_long_document_in_pieces_has_its_tokens(seed, tokenizer, tmp_path):
    words = random.Random(seed).choices(WORDS, weights=[*[9] * 8, 1, 9], k=1500)
    text = "".join(word + random.Random(seed + len(word)).choice(["", " "]) for word in words)
    store, scan = stored(tmp_path, ["first", text])
    pieces = list(store.pieces(SplitPlan(scan.characters, scan.characters)))
    assert len(pieces) > 3
    assert texts(pieces) == (["first", text], [])
    ids = np.concatenate([tokenizer.encode_array(piece.text) for piece in pieces[1:]])
    assert ids.tolist() == tokenizer.encode(text)
    for number, piece in enumerate(pieces):
        again = list(store.pieces(SplitPlan(scan.characters, scan.characters), piece.end))
        assert again == pieces[number + 1 :]
