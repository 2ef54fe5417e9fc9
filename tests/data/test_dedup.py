import random

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from src.data import dedup
from src.data.dedup import (
    HashSet,
    cluster_near_duplicates,
    containment,
    shingles,
    split_by_shingles,
)
from src.data.splits import split_documents
from tests.bounds import by_chance

TEXT = "".join(random.Random(0).choices("abcdefghijklmnopqrstuvwxyz ", k=3000))


def plain(text):
    """A text's letters, and the runs of 24 of them with their first and last place."""
    kept = [(at, c) for at, c in enumerate(text) if c.isalnum() or ord(c) >= 0x3100]
    runs = [kept[i : i + 24] for i in range(len(kept) - 23)]
    return [
        ("".join(c.lower() if c.isascii() else c for _, c in run), run[0][0], run[-1][0] + 1)
        for run in runs
    ]


@settings(deadline=None)
@given(
    text=st.text(st.sampled_from("aB \n.é鯨🐳7"), max_size=120),
    block=st.sampled_from([7, 30, 2**20]),
)
def test_shingles_are_all_runs_of_letters_wherever_the_blocks_end(text, block):
    before, dedup._BLOCK = dedup._BLOCK, block
    try:
        found = shingles(text)
    finally:
        dedup._BLOCK = before
    expected = plain(text)
    assert found.starts.tolist() == [start for _, start, _ in expected]
    assert found.ends.tolist() == [end for _, _, end in expected]
    by_run = {}
    for (run, _, _), value in zip(expected, found.hashes.tolist(), strict=True):
        assert by_run.setdefault(run, value) == value
    assert len(set(by_run.values())) == len(by_run)


def test_halves_of_surrogate_pairs_and_nul_do_no_harm():
    assert len(shingles("a" * 23 + "\0" + "\ud800" + "a" * 22).hashes) == 0
    assert len(shingles("a" * 24 + "\0" + "a" * 24).hashes) == 2
    assert len(shingles("").hashes) == 0


def test_a_sample_is_the_same_in_every_text():
    every, some = shingles(TEXT), shingles(TEXT, 10)
    assert set(some.hashes.tolist()) <= set(every.hashes.tolist())
    share = len(some.hashes) / len(every.hashes)
    assert share == pytest.approx(0.1, rel=0, abs=by_chance(0.1, len(every.hashes)))
    inside = shingles("another beginning " + TEXT[500:900], 10)
    # But for the few that begin in the words before it.
    assert len(set(inside.hashes.tolist()) - set(some.hashes.tolist())) <= 10


def test_hashes_are_uniform():
    hashes = shingles(TEXT * 1).hashes
    bits = np.unpackbits(hashes.view(np.uint8)).reshape(len(hashes), 64).mean(0)
    assert (np.abs(bits - 0.5) <= by_chance(0.5, len(hashes))).all()


def test_documents_are_grouped_by_what_they_share(monkeypatch):
    draw = random.Random(1)
    texts = ["".join(draw.choices("abcdefgh ", k=1000)) for _ in range(4)]
    documents = [
        texts[0],
        texts[1],
        texts[0].upper().replace(" ", "\n"),
        texts[2],
        texts[1][:400] + texts[3],
        texts[2][:100] + "".join(draw.choices("xyz", k=900)),
        "too short",
    ]
    expected = [0, 1, 0, 3, 1, 5, 6]
    assert cluster_near_duplicates(documents, 0.2) == expected
    monkeypatch.setattr(dedup, "_BLOCK", 50)
    assert cluster_near_duplicates(documents, 0.2) == expected
    assert cluster_near_duplicates(documents, 0.05) == [0, 1, 0, 3, 1, 3, 6]
    assert cluster_near_duplicates(["short", "texts"], 0.2) == [0, 1]
    assert cluster_near_duplicates([], 0.2) == []


def test_a_large_corpus_is_sampled(monkeypatch):
    monkeypatch.setattr(dedup, "_MAX_SHINGLES", 1000)
    documents = [TEXT, "".join(random.Random(2).choices("abcd", k=3000)), TEXT[::-1], TEXT + "end"]
    assert dedup.sampling_rate(documents) > 10
    assert cluster_near_duplicates(documents, 0.2) == [0, 1, 2, 0]
    assert containment([TEXT[:2000]], documents[1:]) == 1
    assert containment([TEXT[:2000]], documents[1:3]) == 0


def test_the_shared_part_is_counted():
    assert containment(["short"], ["short"]) is None
    assert containment([TEXT], []) == 0
    count, half = len(plain(TEXT)), TEXT[: len(TEXT) // 2]
    assert containment([TEXT, "x" * 40], [TEXT]) == count / (count + 40 - 23)
    assert containment([TEXT], [half]) == len(plain(half)) / count


@given(start=st.integers(0, 2000), length=st.integers(0, 900), rate=st.sampled_from([1, 5]))
def test_what_is_cut_out_of_a_text_is_the_passage_and_nothing_is_lost(start, length, rate):
    passage = TEXT[start : start + length]
    hashes = shingles(passage, rate).hashes
    kept, cut = split_by_shingles(TEXT, HashSet(hashes), rate)
    assert sum(map(len, kept + cut)) == len(TEXT)
    assert not np.isin(np.concatenate([shingles(text, rate).hashes for text in kept]), hashes).any()
    assert bool(cut) == bool(len(hashes))
    assert "".join(cut) in passage


def test_passages_that_an_edit_parts_are_cut_out_together():
    edited = TEXT[:1000] + "another word" + TEXT[1010:2000]
    kept, cut = split_by_shingles(TEXT, HashSet(shingles(edited[500:1500]).hashes))
    assert len(cut) == 1
    assert len(kept) == 2


NUMBERS = st.lists(st.integers(0, 2**64 - 1) | st.integers(0, 20), max_size=20)


@given(additions=st.lists(NUMBERS, max_size=12), asked=NUMBERS)
def test_a_hash_set_contains_what_was_added(additions, asked):
    found, known = HashSet(), set()
    for each in additions:
        found.add(np.array(each, np.uint64))
        known.update(each)
        mask = found.contains(np.array(asked + each, np.uint64))
        assert mask.tolist() == [number in known for number in asked + each]


def test_the_work_of_splitting_related_documents_grows_with_their_length_alone(monkeypatch):
    """The elements that are sorted, as a measure of it: 16 times as many if it were quadratic."""
    sort, letter = np.sort, TEXT[:900]
    totals = []
    for count in (50, 200):
        sizes = []
        monkeypatch.setattr(np, "sort", lambda a, sizes=sizes: sizes.append(len(a)) or sort(a))
        draw = random.Random(1)
        documents = [letter + "".join(draw.choices("abcdefgh", k=120)) for _ in range(count)]
        train, held_out = split_documents(documents, 0.1)
        assert train
        assert held_out
        totals.append(sum(sizes))
    assert totals[1] < 4 * 2 * totals[0]  # of n log(n), 4 * log(200) / log(50) = 5.4
