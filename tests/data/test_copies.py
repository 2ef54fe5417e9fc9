"""Copies and near copies: exact for a small corpus, by sketches for a large one."""

import functools
import random

import numpy as np
import pytest

from src.data import dedup, scan
from src.data.copies import find_copies
from src.data.scan import Scanner
from src.data.sketches import SKETCH, near_pairs, open_sketches
from src.data.splits import plan_corpus


def scan_of(texts, plain=False):
    data = []
    scanner = Scanner(None, data.append, plain)
    for text in texts:
        scanner.add(text)
    scan = scanner.finish()
    return scan, np.frombuffer(b"".join(data), SKETCH)


def plan_of(texts, first_val=None, dedup=False, plain=False, val_fraction=0.0):
    scan, sketches = scan_of(texts, plain)
    first_val = len(texts) if first_val is None else first_val
    return plan_corpus(scan, val_fraction, 0, first_val, dedup, sketches)


@functools.cache
def shingles(text):
    kept = [c.lower() for c in text if c.isalnum()]
    return {"".join(kept[i : i + 24]) for i in range(len(kept) - 23)}


@functools.cache
def resemblance(one, other):
    one, other = shingles(one), shingles(other)
    return len(one & other) / max(1, len(one | other))


def words(draw, count):
    return " ".join("".join(draw.choices("abcdefghij", k=draw.randint(2, 8))) for _ in range(count))


def edited(draw, text, share):
    """A text of which a share of the words, in one place, is new."""
    parts = text.split()
    first = draw.randrange(max(1, int(len(parts) * (1 - share))))
    for at in range(first, first + int(len(parts) * share)):
        parts[at] = words(draw, 1)
    return " ".join(parts)


@pytest.fixture
def sampled(monkeypatch):
    """Let every corpus be so large that of a document hardly any shingle is in the sample."""
    monkeypatch.setattr(dedup, "_MAX_SHINGLES", 50)


@pytest.mark.parametrize("is_sampled", [False, True])
def test_near_copies_are_of_a_document_that_is_kept(is_sampled, request):
    if is_sampled:
        request.getfixturevalue("sampled")
    draw = random.Random(3)
    text = "".join(draw.choices("abcdefghij ", k=2000))
    drafts = [text]
    for number in range(6):  # each differs from the one before in a few places
        drafts.append(drafts[-1].replace(text[300 * number : 300 * number + 60], "x" * 60))
    documents = [*drafts, text[:1000], text + text[::-1], "another", text + "the end"]
    found = plan_of(documents, dedup=True).removed
    kept = [document for document, is_copy in zip(documents, found, strict=True) if not is_copy]
    assert found[[1, 10]].all()
    assert not found[[0, 7, 8, 9]].any()
    for index, document in enumerate(documents):
        earlier = [each for each in kept if documents.index(each) < index]
        if found[index]:
            limit = 0.65 if is_sampled else 0.8
            assert any(resemblance(document, each) >= limit for each in earlier)


@pytest.mark.usefixtures("sampled")
def test_near_copies_of_short_documents_are_found_among_many():
    draw = random.Random(1)
    texts = [words(draw, draw.randint(60, 200)) for _ in range(150)]
    copies = [(at, edited(draw, texts[at], share)) for at in range(50) for share in (0.01, 0.02)]
    scan, sketches = scan_of([*texts, *(text for _, text in copies)])
    assert len(scan.shingles) <= 100
    every = np.ones(len(scan), bool)
    _, (a, b) = find_copies(scan, every, sketches)
    found = set(zip(a.tolist(), b.tolist(), strict=True))
    near = [
        (original, 150 + number)
        for number, (original, text) in enumerate(copies)
        if 0.9 <= resemblance(texts[original], text) < 1
    ]
    assert len(near) > 40
    assert len(found & set(near)) >= 0.97 * len(near)
    documents = [*texts, *(text for _, text in copies)]
    assert all(resemblance(documents[one], documents[other]) >= 0.6 for one, other in found)


@pytest.mark.usefixtures("sampled")
def test_what_sketches_do_not_show_is_measured_by_all_shingles():
    draw = random.Random(5)
    texts = [words(draw, 120) for _ in range(120)]
    shares = (0.03, 0.05, 0.06, 0.07, 0.08, 0.1)
    documents = [*texts, *(edited(draw, text, draw.choice(shares)) for text in texts)]
    scan, sketches = scan_of(documents)
    asked = []

    def read(indices):
        assert (np.diff(indices) > 0).all()
        asked.append(len(indices))
        return [documents[index] for index in indices.tolist()]

    every = np.ones(len(scan), bool)
    pairs = [(at, at + 120) for at in range(120)]
    near = {pair for pair in pairs if 0.8 <= resemblance(*(documents[at] for at in pair)) < 1}
    assert 30 < len(near) < 90
    found = [
        set(
            zip(
                *(each.tolist() for each in find_copies(scan, every, sketches, each)[1]),
                strict=True,
            )
        )
        for each in (None, read)
    ]
    assert found[0] - near
    assert not found[1] - near
    assert len(near - found[1]) <= min(2, len(near - found[0]))
    assert 0 < sum(asked) < len(documents)
    # Of documents that are too long to be compared, what the sketches show is taken.
    unread = find_copies(scan, every, sketches, lambda indices: [None] * len(indices))[1]
    assert {(a, b) for a, b in zip(*(each.tolist() for each in unread), strict=True)} == found[0]


@pytest.mark.usefixtures("sampled")
def test_of_many_near_copies_of_one_document_one_is_kept():
    draw = random.Random(2)
    text = words(draw, 300)
    documents = [edited(draw, text, 0.01) for _ in range(60)]
    others = [words(draw, 100) for _ in range(20)]
    removed = plan_of([*others, *documents], dedup=True).removed
    assert removed.tolist() == [False] * 21 + [True] * 59


def test_sketches_are_those_of_each_document_alone_wherever_batches_end(monkeypatch, tmp_path):
    draw = random.Random(4)
    texts = [words(draw, draw.choice([0, 1, 5, 8, 200])) for _ in range(40)]
    texts.insert(20, "a\0b" * 50)
    alone = [scan_of([text])[1] for text in texts]
    assert [len(each) for each in alone] == [1] * len(texts)
    assert sum(not each["bands"].any() for each in alone) > 10
    for size in (7, 100, 2**16):
        monkeypatch.setattr(scan, "_BATCH", size)
        assert scan_of(texts)[1].tobytes() == b"".join(each.tobytes() for each in alone)
    assert len(scan_of([])[1]) == 0
    (tmp_path / "empty").touch()
    assert len(open_sketches(tmp_path / "empty")) == 0
    a, b = near_pairs(np.empty(0, SKETCH), np.empty(0, np.int64), 0.8)
    assert len(a) == len(b) == 0


@pytest.mark.usefixtures("sampled")
def test_near_copies_in_the_training_text_are_reported_before_training(caplog):
    draw = random.Random(6)
    train = [words(draw, 60) for _ in range(50)]
    val = [edited(draw, train[7], 0.03), words(draw, 60), words(draw, 60)]
    plan_of([*train, *val], first_val=50)
    assert "1 document of val_sources: at least half is in the training text, too" in caplog.text


@pytest.mark.usefixtures("sampled")
def test_near_copies_of_a_large_corpus_are_on_one_side():
    draw = random.Random(7)
    texts = [words(draw, 150) for _ in range(60)]
    copies = [edited(draw, text, 0.01) for text in texts]
    plan = plan_of([*texts, *copies], val_fraction=0.3)
    is_held_out = plan.cuts == 0
    assert is_held_out.any()
    assert (is_held_out[:60] == is_held_out[60:]).all()


@pytest.mark.usefixtures("sampled")
def test_near_copies_at_the_threshold_are_found_and_few_others():
    draw = random.Random(8)
    texts = [words(draw, draw.randint(60, 200)) for _ in range(250)]
    copies = [edited(draw, text, draw.uniform(0.01, 0.25)) for text in texts]
    scan, sketches = scan_of([*texts, *copies])
    _, (a, b) = find_copies(scan, np.ones(len(scan), bool), sketches)
    found = set(zip(a.tolist(), b.tolist(), strict=True))
    values = map(resemblance, texts, copies)
    pairs = [(at, 250 + at, value) for at, value in enumerate(values)]
    for least, most, at_least, at_most in (
        (0.8, 0.85, 0.85, 1),
        (0.85, 1, 0.98, 1),
        (0.6, 0.7, 0, 0.1),
    ):
        group = [(one, other) in found for one, other, value in pairs if least <= value < most]
        assert len(group) > 20
        assert at_least * len(group) <= sum(group) <= at_most * len(group)
    assert len(found) <= len(pairs)


def test_pairs_are_the_same_in_a_memory_map(tmp_path):
    draw = random.Random(9)
    texts = [words(draw, 80) for _ in range(20)]
    _, sketches = scan_of([*texts, *(edited(draw, text, 0.02) for text in texts)])
    sketches.tofile(tmp_path / "sketches.bin")
    documents = np.arange(len(sketches))
    expected = near_pairs(sketches, documents, 0.8)
    assert len(expected[0]) > 10
    found = near_pairs(open_sketches(tmp_path / "sketches.bin"), documents, 0.8)
    assert [part.tolist() for part in found] == [part.tolist() for part in expected]
