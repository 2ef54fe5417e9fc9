"""The text of a corpus in a file: pieces, from any position."""

import random
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from src.data import text_store
from src.data.chat_template import Message
from src.data.conversations import to_text
from src.data.resemblance import MAX_COMPARED
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


def test_chosen_documents_are_read(tmp_path):
    chat = to_text(
        [Message("system", "Be brief."), Message("user", "Hi"), Message("assistant", "é")]
    )
    documents = ["whale", "été 鯨", "x" * (MAX_COMPARED + 1), chat]
    store, scan = stored(tmp_path, documents)
    assert store.read(np.array([1, 3])) == ["été 鯨", chat]
    assert store.read(np.array([0, 2])) == ["whale", None]
    store = TextStore(tmp_path / "text.bin", scan, 3)
    assert store.read(np.array([1, 3])) == ["été 鯨", "Hi\né"]


def texts(batches):
    """The training and the held-out texts of which these are the batches."""
    sides = [], []
    for batch in batches:
        for number, (text, is_held_out) in enumerate(
            zip(batch.texts, batch.is_held_out, strict=True)
        ):
            if batch.continues and not number:
                sides[is_held_out][-1] += text
            else:
                sides[is_held_out].append(text)
    return sides


@pytest.mark.parametrize("size", [40, 100, 2**22])
@settings(max_examples=15)
@given(
    documents=st.lists(st.lists(st.sampled_from(WORDS), max_size=40), max_size=9),
    seed=st.integers(0, 99),
)
def test_batches_are_the_spans_and_can_be_read_from_where_each_ends(
    size, documents, seed, tmp_path_factory
):
    documents = [" ".join(words) for words in documents]
    store, scan = stored(tmp_path_factory.mktemp("text"), documents)
    random_ = random.Random(seed)
    exceptions = {}
    for index, text in enumerate(documents):
        if text and random_.random() < 0.5:
            places = sorted({0, len(text), *random_.choices(range(len(text)), k=2)})
            spans = [(*each, bool(number % 2)) for number, each in enumerate(pairwise(places))]
            exceptions[index] = spans if random_.random() < 0.7 else []
    cuts = np.array(
        [random_.choice([0, len(text) // 2, len(text)]) for text in documents], np.int64
    )
    removed = np.array([random_.random() < 0.2 for _ in documents], bool)
    plan = SplitPlan(scan.characters, cuts, exceptions, random_.choice([None, removed]))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(text_store, "BATCH_BYTES", size)
        for name in ("_CHUNK_BYTES", "_LISTED"):
            patch.setattr(text_store, name, size // 20)
        check_batches(store, plan, documents)


def check_batches(store, plan, documents):
    batches = list(store.batches(plan))
    expected = [], []
    for index, text in enumerate(documents):
        for start, end, is_held_out in plan.spans(index):
            assert start < end
            expected[is_held_out].append(text[start:end])
    assert texts(batches) == expected
    for number, batch in enumerate(batches):
        assert list(store.batches(plan, batch.end)) == batches[number + 1 :]
    assert list(store.batches(plan, Cursor(len(documents)))) == []
    fractions = []
    assert list(store.training_texts(plan, fractions.append)) == [
        text
        for batch in batches
        for text, is_held_out in zip(batch.texts, batch.is_held_out, strict=True)
        if not is_held_out
    ]
    assert fractions == sorted(fractions)
    assert all(0 <= fraction <= 1 for fraction in fractions)


@pytest.mark.parametrize("seed", range(3))
def test_a_long_document_in_pieces_has_its_tokens(seed, tokenizer, tmp_path, monkeypatch):
    monkeypatch.setattr(text_store, "BATCH_BYTES", 40)
    monkeypatch.setattr(text_store, "_CHUNK_BYTES", 7)
    words = random.Random(seed).choices(WORDS, weights=[*[9] * 8, 1, 9], k=1500)
    text = "".join(word + random.Random(seed + len(word)).choice(["", " "]) for word in words)
    store, scan = stored(tmp_path, ["first", text])
    plan = SplitPlan(scan.characters, scan.characters)
    batches = list(store.batches(plan))
    assert len(batches) > 3
    assert texts(batches) == (["first", text], [])
    ids = np.concatenate([tokenizer.encode_array(batch.texts[0]) for batch in batches[1:]])
    assert ids.tolist() == tokenizer.encode(text)
    for number, batch in [*enumerate(batches)][:: len(batches) // 5]:
        assert list(store.batches(plan, batch.end)) == batches[number + 1 :]
