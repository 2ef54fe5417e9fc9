"""`TextDataset`: windows of a text, for a `DataLoader`, too."""

import logging

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.utils.data import DataLoader

from src.dataset import TextDataset
from src.errors import AGI2Error
from src.tokenizer import BasicTokenizer
from src.utils import plural

quick = settings(deadline=None, max_examples=40)
TEXT = "abcdefghijklmnopqrstuvwxyz"


@pytest.fixture
def tokenizer():
    return BasicTokenizer(TEXT + " .", lowercase=True)


def counting(length):
    return np.arange(length, dtype=np.uint16)


# Windows


def test_windows_are_long_tensors_of_the_given_length(tokenizer, tmp_path):
    path = tmp_path / "a.txt"
    path.write_text(TEXT, encoding="utf-8")
    dataset = TextDataset(str(path), tokenizer, 8)
    assert len(dataset) == 4
    for index, start in enumerate([0, 8, 16, 18]):
        assert dataset[index].dtype == torch.int64
        assert dataset[index].shape == (8,)
        assert tokenizer.decode(dataset[index].tolist()) == TEXT[start : start + 8]


@quick
@given(length=st.integers(2, 60), seq_len=st.integers(1, 20), stride=st.integers(1, 25))
def test_windows_cover_every_token_in_order(length, seq_len, stride):
    dataset = TextDataset.from_tokens(counting(length), seq_len, stride=stride)
    seen = np.concatenate([window.numpy() for window in dataset])
    assert set(seen) == set(range(length))
    assert dataset[-1][-1] == length - 1
    starts = [int(window[0]) for window in dataset]
    steps = np.diff(starts)
    assert (steps[:-1] == min(stride, seq_len)).all()
    assert ((steps >= 1) & (steps <= stride)).all()


def test_a_window_past_the_end_is_an_index_error():
    dataset = TextDataset.from_tokens(counting(10), 5)
    assert len(dataset) == 2
    with pytest.raises(IndexError):
        dataset[2]


def test_a_window_may_be_changed_without_changing_the_text():
    dataset = TextDataset.from_tokens(counting(10), 5)
    dataset[0].zero_()
    assert dataset[0].tolist() == [0, 1, 2, 3, 4]


def test_a_text_shorter_than_a_window_makes_one_shorter_window(caplog):
    with caplog.at_level(logging.WARNING, "agi2"):
        dataset = TextDataset.from_tokens(counting(3), 8, stride=4)
    assert [window.tolist() for window in dataset] == [[0, 1, 2]]
    assert "the text has only 3 tokens" in caplog.text


@pytest.mark.parametrize("length", [0, 1])
def test_fewer_than_two_tokens_are_an_error(length):
    with pytest.raises(AGI2Error, match=f"has {plural(length, 'token')}: at least 2"):
        TextDataset.from_tokens(counting(length), 8)


@pytest.mark.parametrize(("seq_len", "stride"), [(0, None), (-1, None), (4, 0), (4, -2)])
def test_lengths_below_one_are_an_error(seq_len, stride):
    with pytest.raises(AGI2Error, match="at least 1"):
        TextDataset.from_tokens(counting(10), seq_len, stride=stride)


def test_a_data_loader_shuffles_and_batches_it():
    dataset = TextDataset.from_tokens(counting(40), 4)
    generator = torch.Generator().manual_seed(0)
    loader = DataLoader(dataset, batch_size=5, shuffle=True, generator=generator)
    batches = list(loader)
    assert [batch.shape for batch in batches] == [(5, 4), (5, 4)]
    first = torch.cat(batches)[:, 0].tolist()
    assert sorted(first) == list(range(0, 40, 4))
    assert first != sorted(first)


# Batches of a run


def test_a_seed_shuffles_the_windows(tmp_path, tokenizer):
    path = tmp_path / "text.txt"
    path.write_text(TEXT * 8, encoding="utf-8")
    plain = TextDataset(str(path), tokenizer, 5)
    shuffled = [TextDataset(str(path), tokenizer, 5, seed=seed) for seed in (1, 1, 2)]
    starts = [dataset.starts.tolist() for dataset in shuffled]
    assert starts[0] == starts[1] != starts[2]
    assert sorted(starts[0]) == sorted(starts[2]) == plain.starts.tolist() != starts[0]
    assert torch.equal(shuffled[0][0], plain.window(starts[0][0]))


def test_preprocessing_gives_text(tmp_path):
    (tmp_path / "a.txt").write_text("abc")
    with pytest.raises(AGI2Error, match="preprocess must give a string, not int"):
        TextDataset(str(tmp_path / "a.txt"), BasicTokenizer("abc"), 2, preprocess=len)
