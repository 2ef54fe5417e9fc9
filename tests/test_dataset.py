import logging

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.utils.data import DataLoader

from src.data.batches import EpochBatches
from src.data.tokens import tokenize
from src.dataset import TextDataset
from src.errors import AGI2Error
from src.tokenizer import BasicTokenizer
from src.utils import plural

quick = settings(deadline=None, max_examples=60)
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


def test_documents_are_joined_with_the_end_of_text_token(tokenizer, tmp_path):
    (tmp_path / "a.txt").write_text("one", encoding="utf-8")
    (tmp_path / "b.jsonl").write_text('{"body": "Two"}\n{"body": "three"}', encoding="utf-8")
    sources = [str(tmp_path / "b.jsonl"), str(tmp_path / "a.txt")]
    dataset = TextDataset(sources, tokenizer, 4, text_field="body")
    one, two, three = (tokenizer.encode(word) for word in ("one", "two", "three"))
    end = [tokenizer.end_of_text]
    assert dataset.tokens.tolist() == two + end + three + end + one


def test_preprocess_is_applied_to_each_document(tokenizer, tmp_path):
    (tmp_path / "a.jsonl").write_text('"abc"\n"xyz"', encoding="utf-8")
    dataset = TextDataset(str(tmp_path), tokenizer, 4, preprocess=lambda text: text[::-1])
    expected = tokenize(["cba", "zyx"], tokenizer)
    assert dataset.tokens.tolist() == expected.tolist()


@pytest.mark.parametrize(("characters", "dtype"), [(65534, np.uint16), (65535, np.uint32)])
def test_tokens_are_kept_in_the_smallest_type_without_loss(characters, dtype):
    alphabet = [chr(0x10000 + i) for i in range(characters)]
    tokenizer = BasicTokenizer(alphabet)
    tokens = tokenize([alphabet[-1] + alphabet[0], alphabet[-1]], tokenizer)
    assert tokens.dtype == dtype
    assert tokens.tolist() == [characters + 1, 2, 1, characters + 1]
    assert TextDataset.from_tokens(tokens, 2)[0].tolist() == [characters + 1, 2]


def test_no_documents_are_no_tokens(tokenizer):
    assert tokenize([], tokenizer).tolist() == []


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


def rows_of(batches, epoch):
    steps = batches.steps_per_epoch
    return [batches.batch(epoch * steps + i) for i in range(steps)]


def starts_of(batches, epoch):
    """First tokens of an epoch's windows; the text counts upwards, so that they are places."""
    rows = torch.cat(rows_of(batches, epoch))
    assert (rows.diff(dim=1) == 1).all()
    return rows[:, 0].tolist()


shapes = {
    "length": st.integers(2, 120),
    "seq_len": st.integers(1, 12),
    "stride": st.one_of(st.none(), st.integers(1, 12)),
    "batch_size": st.integers(1, 40),
    "seed": st.integers(0, 2**63),
}


@quick
@given(**shapes)
def test_an_epoch_visits_every_window_once_and_every_token(
    length, seq_len, stride, batch_size, seed
):
    dataset = TextDataset.from_tokens(counting(length), seq_len, stride=stride)
    batches = EpochBatches(dataset, batch_size, seed)
    for epoch in range(3):
        starts = sorted(starts_of(batches, epoch))
        assert len(starts) == len(set(starts)) == len(dataset)
        assert (starts[0], starts[-1]) == (0, length - dataset.seq_len)
        assert all(0 < step <= dataset.stride for step in np.diff(starts))
        seen = torch.cat(rows_of(batches, epoch)).flatten().tolist()
        assert set(seen) == set(range(length))


@quick
@given(**shapes)
def test_the_batches_of_an_epoch_are_as_few_and_as_equal_as_can_be(
    length, seq_len, stride, batch_size, seed
):
    dataset = TextDataset.from_tokens(counting(length), seq_len, stride=stride)
    batches = EpochBatches(dataset, batch_size, seed)
    sizes = [len(rows) for rows in rows_of(batches, 1)]
    assert len(sizes) == -(-len(dataset) // batch_size)
    assert sizes[0] == batches.batch_size == max(sizes) <= batch_size
    assert max(sizes) - min(sizes) <= 1
    before = [batches.windows_before(step) for step in range(2 * len(sizes) + 1)]
    assert np.diff(before).tolist() == 2 * sizes
    assert before[len(sizes)] == batches.windows == len(dataset)
    assert batches.batch(0).dtype == torch.int64


@quick
@given(steps=st.lists(st.integers(0, 60), max_size=20), seed=st.integers(0, 5))
def test_batches_are_a_pure_function_of_seed_and_step(steps, seed):
    dataset = TextDataset.from_tokens(counting(100), 5)
    one = EpochBatches(dataset, 3, seed)
    for step in steps:
        torch.rand(1)  # the global generator has no part in it
        assert torch.equal(one.batch(step), EpochBatches(dataset, 3, seed).batch(step))


def test_epochs_and_seeds_differ_in_order_and_offset():
    dataset = TextDataset.from_tokens(counting(401), 8)  # room for all offsets from 1 to 8
    batches = EpochBatches(dataset, 4, seed=1)
    epochs = [starts_of(batches, epoch) for epoch in range(60)]
    assert {sorted(starts)[1] for starts in epochs} == set(range(1, 9))
    orders = {tuple(np.argsort(starts)) for starts in epochs}
    assert len(orders) == 60
    assert starts_of(EpochBatches(dataset, 4, seed=2), 0) != epochs[0]


def test_a_short_text_makes_a_smaller_batch():
    dataset = TextDataset.from_tokens(counting(10), 8)
    batches = EpochBatches(dataset, 12, seed=0)
    assert (batches.batch_size, batches.steps_per_epoch) == (2, 1)
    assert {tuple(starts_of(batches, epoch)) for epoch in range(20)} == {(0, 2), (2, 0)}
    shortest = EpochBatches(TextDataset.from_tokens(counting(2), 8), 12, seed=0)
    assert shortest.batch(7).tolist() == [[0, 1]]


def test_a_seed_shuffles_the_windows(tmp_path, tokenizer):
    path = tmp_path / "text.txt"
    path.write_text(TEXT * 8, encoding="utf-8")
    plain = TextDataset(str(path), tokenizer, 5)
    shuffled = [TextDataset(str(path), tokenizer, 5, seed=seed) for seed in (1, 1, 2)]
    starts = [dataset.starts.tolist() for dataset in shuffled]
    assert starts[0] == starts[1] != starts[2]
    assert sorted(starts[0]) == sorted(starts[2]) == plain.starts.tolist() != starts[0]
    assert torch.equal(shuffled[0][0], plain.window(starts[0][0]))


@given(
    tokens=st.integers(3, 400),
    batch_size=st.sampled_from([4, 8, 12]),
    parts=st.sampled_from([1, 2, 3, 4]),
    seed=st.integers(0, 5),
)
def test_the_parts_of_a_batch_make_it_up_without_overlap_or_loss(tokens, batch_size, parts, seed):
    dataset = TextDataset.from_tokens(np.arange(tokens, dtype=np.uint16), 3, stride=2)
    batches = EpochBatches(dataset, batch_size, seed)
    for step in range(2 * batches.steps_per_epoch):
        whole = batches.batch(step)
        pieces = [batches.batch(step, part, parts) for part in range(parts)]
        sizes = [len(piece) for piece in pieces]
        assert sizes == [len(batches.rows(step, part, parts)) for part in range(parts)]
        assert sizes[0] == -(-len(whole) // parts) == max(sizes)
        assert max(sizes) - min(sizes) <= 1
        assert torch.equal(torch.cat(pieces), whole)
        assert len({row[0].item() for row in whole}) == len(whole)


def test_preprocessing_gives_text(tmp_path):
    (tmp_path / "a.txt").write_text("abc")
    with pytest.raises(AGI2Error, match="preprocess must give a string, not int"):
        TextDataset(str(tmp_path / "a.txt"), BasicTokenizer("abc"), 2, preprocess=len)
