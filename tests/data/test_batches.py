"""The batches of an epoch: every window once, a pure function of seed and step."""

import random
from collections import Counter

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from src.data import batches as batches_module
from src.data.batches import EpochBatches, FeistelPermutation
from src.dataset import TextDataset
from tests.test_dataset import counting

quick = settings(deadline=None, max_examples=40)


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
    dataset = TextDataset.from_tokens(counting(401), 8)  # enough for all offsets from 1 to 8
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


# Orders that are computed


def permutation(size, seed=0):
    return FeistelPermutation(size, torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("block", [7, 2**12])
@settings(deadline=None, max_examples=12)
@given(size=st.integers(1, 500), seed=st.integers(0, 2**40))
def test_a_computed_order_is_a_permutation_and_any_part_of_it_is_the_same(block, size, seed):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(batches_module, "_BLOCK", block)
        check_order(size, seed)


def check_order(size, seed):
    order = permutation(size, seed)[0:size].tolist()
    assert sorted(order) == list(range(size))
    middle = size // 3
    assert permutation(size, seed)[middle : middle + 9].tolist() == order[middle : middle + 9]


def test_a_computed_order_looks_random():
    size = 10_000
    order = permutation(size)[0:size].double()
    positions = torch.arange(size).double()
    # The correlation of a random permutation has the standard deviation 1 / sqrt(size - 1).
    for shift in (0, 1, 7):
        rows = torch.stack([order, positions.roll(shift)]), torch.stack([order, order.roll(shift)])
        for pair in rows[: 1 + bool(shift)]:
            assert abs(torch.corrcoef(pair)[0, 1]) < 6 / (size - 1) ** 0.5
    fixed = (order == positions).sum()
    assert fixed < 12  # on average one
    assert not torch.equal(order, permutation(size, 1)[0:size].double())


@pytest.fixture
def computed(monkeypatch):
    """Compute the order of small texts, too."""
    monkeypatch.setattr(batches_module, "MAX_PERMUTED", 4)


@pytest.mark.usefixtures("computed")
@settings(deadline=None, max_examples=30)
@given(**{**shapes, "length": st.integers(60, 120), "seq_len": st.integers(1, 6)})
def test_an_epoch_in_a_computed_order_visits_every_window_once(
    length, seq_len, stride, batch_size, seed
):
    dataset = TextDataset.from_tokens(counting(length), seq_len, stride=stride)
    batches = EpochBatches(dataset, batch_size, seed)
    orders = []
    for epoch in range(2):
        orders.append(starts_of(batches, epoch))
        starts = sorted(orders[-1])
        assert len(starts) == len(set(starts)) == len(dataset)
        assert (starts[0], starts[-1]) == (0, length - dataset.seq_len)
    assert orders[0] != orders[1]


@pytest.mark.parametrize("is_computed", [False, True])
def test_every_window_is_trained_on_once_an_epoch_over_a_thousand_kills(monkeypatch, is_computed):
    """Each process is killed after some steps; the next has any number of ranks, and resumes."""
    if is_computed:
        monkeypatch.setattr(batches_module, "MAX_PERMUTED", 4)
    draw = random.Random(1)
    dataset = TextDataset.from_tokens(counting(601), 3, stride=2)
    step = kills = epoch = 0
    seen = [Counter(), Counter()]
    while kills < 1000 or epoch < 3:
        ranks = draw.choice([1, 2, 3])
        batches = EpochBatches(dataset, 7, seed=5)
        for _ in range(draw.randint(0, 2)):
            epoch = step // batches.steps_per_epoch
            for rank in range(ranks):
                rows = batches.batch(step, rank, ranks)
                seen[epoch % 2].update(rows[:, 0].tolist())
            step += 1
            if step % batches.steps_per_epoch == 0:
                counts = seen[epoch % 2]
                assert set(counts.values()) == {1}
                assert len(counts) == len(dataset)
                counts.clear()
        kills += 1
    assert epoch > 2


@pytest.mark.usefixtures("computed")
def test_the_order_of_many_windows_takes_no_memory():
    tokens = np.broadcast_to(np.uint16(1), (2**40,))
    batches = EpochBatches(TextDataset.from_tokens(tokens, 3), 5, seed=1)
    assert batches.windows > 2**38
    assert batches.batch(batches.steps_per_epoch - 1).tolist() == [[1, 1, 1]] * 4
