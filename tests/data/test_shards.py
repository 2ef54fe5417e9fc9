"""Tokens on disk: what is written in any pieces and shards is read as one array."""

import pickle

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from src.data.shards import ShardedTokens, ShardWriter, SplitFigures, token_hashes
from src.errors import AGI2Error
from src.tokenizer import BasicTokenizer

TOKENIZER = BasicTokenizer("abcé")
IDS = st.integers(0, TOKENIZER.vocab_size - 1)
DOCUMENTS = st.lists(st.lists(IDS, max_size=9), max_size=6)


def write(folder, documents, shard_tokens=4, kind=ShardWriter, **options):
    writer = kind(folder, "train", TOKENIZER, shard_tokens=shard_tokens, **options)
    for ids in documents:
        writer.write(np.array(ids, TOKENIZER.dtype), np.zeros(1, np.int64))
    figures = writer.finish()
    return ShardedTokens(folder, "train", "uint16", figures, shard_tokens)


@settings(max_examples=40)
@given(documents=DOCUMENTS, shard_tokens=st.integers(1, 20), data=st.data())
def test_shards_are_one_array_however_they_are_cut(documents, shard_tokens, data, tmp_path_factory):
    folder = tmp_path_factory.mktemp("shards")
    tokens = write(folder, documents, shard_tokens)
    every = np.array([id for ids in documents for id in ids], np.uint16)
    tokens.check()
    copy = pickle.loads(pickle.dumps(tokens))
    assert len(copy) == len(every)
    assert np.array_equal(np.asarray(copy), every)
    bound = st.none() | st.integers(-30, 30)
    start, stop, step = (data.draw(bound), data.draw(bound), data.draw(st.sampled_from([1, 2, -1])))
    assert copy[start:stop:step].tolist() == every[start:stop:step].tolist()
    assert [int(copy[index]) for index in range(-len(every), len(every))] == [*every, *every]
    starts = np.cumsum([0, *map(len, documents)])[:-1]
    assert tokens.document_starts.tolist() == starts.tolist()
    figures = tokens.figures
    assert figures.text_bytes == sum(len(TOKENIZER.token_bytes(id)) for id in every if id)
    assert figures.unknown == (every == 0).sum()
    assert token_hashes(tokens) == figures.hashes
    with pytest.raises(IndexError):
        tokens[len(every)]


def test_an_array_has_the_hashes_of_its_shards(tmp_path, monkeypatch):
    monkeypatch.setattr("src.data.shards.SHARD_TOKENS", 4)
    tokens = write(tmp_path, [[1, 2, 3], [4, 5, 1, 2, 3]])
    assert token_hashes(np.asarray(tokens)) == tokens.figures.hashes
    assert len(set(tokens.figures.hashes)) == 2


@given(documents=DOCUMENTS, more=DOCUMENTS, lost=DOCUMENTS)
@settings(max_examples=20)
def test_a_writer_continues_where_its_figures_end(documents, more, lost, tmp_path_factory):
    folder, whole = tmp_path_factory.mktemp("a"), tmp_path_factory.mktemp("b")
    kept = write(folder, documents).figures
    write(folder, lost, figures=SplitFigures(**vars(kept)))
    continued = write(folder, more, figures=SplitFigures(**{**vars(kept), "hashes": []}))
    uninterrupted = write(whole, documents + more)
    assert continued.figures == uninterrupted.figures
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == {
        path.name: path.read_bytes() for path in whole.iterdir()
    }


def test_a_file_that_is_missing_or_cut_short_is_found(tmp_path):
    tokens = write(tmp_path, [[1, 2, 3, 4, 5, 1]])
    for path in tokens.files:
        content = path.read_bytes()
        path.write_bytes(content[:-1])
        with pytest.raises(AGI2Error, match=rf"{path.name} has {len(content) - 1} bytes, not "):
            tokens.check()
        with pytest.raises(AGI2Error, match=rf"{path.name} has {len(content) - 1} bytes, not "):
            ShardWriter(tmp_path, "train", TOKENIZER, tokens.figures, 4)
        path.unlink()
        with pytest.raises(AGI2Error, match=f"{path.name} is missing"):
            tokens.check()
        path.write_bytes(content)
    tokens.check()
