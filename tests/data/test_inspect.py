"""What is found in a corpus."""

import contextlib
import itertools
import random

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from src.data import inspect as inspecting
from src.data.documents import Document, ReadOptions, ReadReport
from src.data.inspect import LISTED, _Inspector, _length_bins, inspect_corpus
from src.errors import AGI2Error
from src.tokenizer import BPETokenizer
from tests.conftest import make_text


def inspected(*documents, tokenizer=None):
    """Inspect documents, each a text or a list of pieces; they are named 0, 1, ..."""
    inspector = _Inspector(tokenizer)
    for index, pieces in enumerate(documents):
        for number, text in enumerate([pieces] if isinstance(pieces, str) else pieces):
            inspector.add(Document(text, str(index), number > 0))
    return inspector.finish(ReadReport(), 1024)


def test_sizes_add_up_and_pieces_are_one_document():
    found = inspected("Käse 🦆", ["ab", "cd", "e"], "x")
    assert (found.documents, found.characters, found.bytes) == (3, 12, 16)
    assert found.longest == [(6, "0"), (5, "1"), (1, "2")]
    assert found.shortest == [(1, "2"), (5, "1"), (6, "0")]
    assert found.median == 5


def test_the_longest_and_shortest_documents_are_named():
    lengths = list(range(1, 40))
    random.Random(1).shuffle(lengths)
    found = inspected(*("a" * length for length in lengths))
    assert [length for length, _ in found.longest] == [39, 38, 37, 36, 35]
    assert [length for length, _ in found.shortest] == [1, 2, 3, 4, 5]
    assert all(lengths[int(name)] == length for length, name in found.longest + found.shortest)
    assert len(found.longest) == LISTED


def test_of_equally_long_documents_the_first_are_named():
    found = inspected(*["abc"] * 8)
    assert [name for _, name in found.longest] == ["0", "1", "2", "3", "4"]
    assert found.longest == found.shortest


def test_copies_are_counted_and_named(monkeypatch):
    text, other = make_text(200, 1), make_text(200, 2)
    near = text.replace("whale", "shark", 2)
    documents = [text, other, text, near, other]
    found = inspected(*documents)
    assert found.exact_copies.documents == 2
    assert found.exact_copies.characters == len(text) + len(other)
    assert found.exact_copies.examples == [("2", "0"), ("4", "1")]
    assert (found.near_copies.documents, found.near_copies.examples) == (1, [("3", "")])
    assert found.near_copies.characters == len(near)
    monkeypatch.setattr(inspecting, "_MAX_NAMES", 2)
    assert inspected(*documents).exact_copies.examples == [("document 3", "0"), ("document 5", "1")]


def test_tokens_are_those_of_a_given_tokenizer():
    tokenizer = BPETokenizer(270)
    tokenizer.fit([make_text(100)])
    texts = [make_text(50, seed) for seed in range(3)]
    found = inspected(*texts, tokenizer=tokenizer).tokens
    assert found.tokens == sum(len(tokenizer.encode(text)) for text in texts)
    assert (found.vocabulary, found.trained_on) == (tokenizer.vocab_size, None)


@pytest.mark.parametrize("limit", [2**23, 1000, 1])
def test_tokens_are_counted_by_a_vocabulary_of_the_first_documents(limit, monkeypatch):
    monkeypatch.setattr(inspecting, "_MAX_TRAINING_CHARACTERS", limit)
    texts = [make_text(100, seed) for seed in range(6)]
    total, first = 0, []
    for text in texts:
        if total < limit:
            first.append(text)
        total += len(text)
    tokenizer = BPETokenizer("auto")
    tokenizer.fit(first)
    found = inspected(*texts).tokens
    assert found.tokens == sum(len(tokenizer.encode(text)) for text in texts)
    assert found.vocabulary == tokenizer.vocab_size
    assert found.trained_on == sum(map(len, first))


@given(st.lists(st.integers(1, 10**7), min_size=1, max_size=30))
def test_every_document_is_in_the_bin_of_its_length(lengths):
    bins = _length_bins(np.array(lengths))
    assert sum(each.documents for each in bins) == len(lengths)
    assert sum(each.characters for each in bins) == sum(lengths)
    assert len(bins) <= inspecting._MAX_BINS
    assert bins[0].documents
    assert bins[-1].documents
    for each in bins:
        inside = [length for length in lengths if each.first <= length <= each.last]
        assert (each.documents, each.characters) == (len(inside), sum(inside))
    for one, two in itertools.pairwise(bins):
        assert two.first == one.last + 1


def test_sources_are_read_once_and_reported(tmp_path, caplog):
    (tmp_path / "a.txt").write_text("the old whale", encoding="utf-8")
    (tmp_path / "b.csv").write_text("text,x\nsome text,1\nmore,2\n", encoding="utf-8")
    (tmp_path / "c.bin").write_bytes(b"\0" * 100)
    (tmp_path / "d.txt").write_bytes(b"")
    found = inspect_corpus([str(tmp_path)], ReadOptions())
    assert (found.documents, found.characters) == (3, 13 + 9 + 4)
    [source] = found.report.sources
    assert (source.files, source.documents) == (2, 3)
    assert source.bytes_read + source.bytes_skipped == sum(
        path.stat().st_size for path in tmp_path.iterdir()
    )
    assert {reason for reason, _ in source.skipped.entries()} == {
        "in no format that is read",
        "empty",
    }
    assert "skipped in" not in caplog.text


def test_an_option_changes_what_is_read(tmp_path):
    (tmp_path / "a.csv").write_text("body,x\nsome text,1\n", encoding="utf-8")
    found = inspect_corpus([str(tmp_path / "a.csv")], ReadOptions(text_field="x"))
    assert found.characters == 1


def test_progress_is_reported_by_the_bytes_read(tmp_path, monkeypatch):
    told = []

    @contextlib.contextmanager
    def shown(what, is_determinate):
        yield told.append

    monkeypatch.setattr(inspecting, "show_progress", shown)
    for name in "abc":
        (tmp_path / f"{name}.txt").write_text("some text")
    (tmp_path / ".hidden").write_text("much that is skipped" * 10)
    inspect_corpus([str(tmp_path)], ReadOptions())
    assert told == sorted(told)
    assert told[0] < told[1] < told[-1] == 1


def test_no_document_is_one_line():
    with pytest.raises(AGI2Error, match="the sources contain no document"):
        _Inspector(None).finish(ReadReport(), 1024)
