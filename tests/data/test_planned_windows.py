"""Windows of documents, packed, masked and mixed: every target once, in the right window."""

import random
import re
from collections import Counter
from itertools import accumulate

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from src.config import Config
from src.data.batches import EpochBatches
from src.data.planned_windows import hash_of_bounds, training_windows
from src.data.shards import ShardedTokens, SplitFigures, index_path, shard_path
from src.data.windows import IGNORE_INDEX, TokenWindows
from src.errors import AGI2Error

LENGTHS = st.lists(st.integers(0, 30), min_size=1, max_size=12).filter(lambda n: sum(n) > 1)
KINDS = ["stream", "documents", "packed"]
some = settings(max_examples=25)


def counting_text(folder, lengths, sources=()):
    """A text whose token ids are their own positions: an end of text before each document."""
    starts = [
        end - length
        for end, length in zip(accumulate(n + 1 for n in lengths), lengths, strict=True)
    ]
    tokens = sum(lengths) + len(lengths)
    np.arange(tokens, dtype="<u2").tofile(shard_path(folder, "train", 0))
    np.array(starts, "<i8").tofile(index_path(folder, "train"))
    figures = SplitFigures(tokens, len(lengths), source_documents=list(sources))
    return ShardedTokens(folder, "train", "uint16", figures)


def planned(tokens, width, weights=(), **keys):
    names = [f"source {index}" for index in range(len(weights))]
    config = Config(sources=names, source_weights=list(weights), seed=7, **keys)
    return training_windows(TokenWindows(tokens, width + 1, width), config)


def everything(windows, epoch=0, batch_size=4):
    """The inputs, targets and document ids of an epoch."""
    batches = EpochBatches(windows, batch_size, seed=3)
    steps = range(epoch * batches.steps_per_epoch, (epoch + 1) * batches.steps_per_epoch)
    return [torch.cat(parts) for parts in zip(*map(batches.batch, steps), strict=True)]


@pytest.mark.parametrize("kind", ["documents", "packed"])
@some
@given(lengths=LENGTHS, width=st.integers(1, 20))
def test_each_token_is_a_target_once_in_a_window_of_documents(
    kind, lengths, width, tmp_path_factory
):
    tokens = counting_text(tmp_path_factory.mktemp("text"), lengths)
    windows = planned(tokens, width, windows=kind)
    for epoch in range(2):
        inputs, targets = everything(windows, epoch)
        assert len(inputs) == len(windows)
        counts = targets != IGNORE_INDEX
        assert sorted(targets[counts].tolist()) == list(range(1, len(tokens)))
        assert torch.equal(inputs[counts] + 1, targets[counts])
        # Padding is on the right, and no row is all padding.
        assert torch.equal(counts, counts.cumprod(1).bool())
        assert counts[:, 0].all()
        assert counts.sum(1).max() == windows.seq_len - 1 <= width
    firsts = set((tokens.document_starts - 1).tolist())
    pieces = split_pieces(inputs, counts, firsts)
    for piece in pieces:
        # Inputs from the end of text before a document on, or a multiple of the width after it.
        start = max(place for place in firsts if place <= piece[0])
        assert (piece[0] - start) % width == 0
        assert len(piece) == width or piece[-1] + 1 in firsts or piece[-1] == len(tokens) - 2
    if kind == "documents":
        assert len(pieces) == len(inputs)


def split_pieces(inputs, counts, firsts):
    """The inputs of each document in each row."""
    pieces = []
    for row, count in zip(inputs.tolist(), counts.sum(1).tolist(), strict=True):
        for place, token in enumerate(row[:count]):
            if not place or token != row[place - 1] + 1 or token in firsts:
                pieces.append([])
            pieces[-1].append(token)
    return pieces


def test_packed_windows_are_fewer_than_documents(tmp_path):
    tokens = counting_text(tmp_path, [3, 7, 2, 5, 1, 9, 25, 4])
    packed, single = (planned(tokens, 10, windows=kind) for kind in ("packed", "documents"))
    assert len(single) == 10
    assert len(packed) == 7  # 63 targets in windows of 10
    assert packed.mean_targets * len(packed) == single.mean_targets * len(single) == 63
    # Pieces of 4, 8, 3, 6, 2, 10, 10, 10, 6 and 4 targets.
    squares = 16 + 64 + 9 + 36 + 4 + 300 + 36 + 16
    masked = planned(tokens, 10, windows="packed", mask_documents=True)
    assert masked.attention_length == single.attention_length == squares / 63
    assert single.attention_length < packed.attention_length <= 10
    stream = planned(tokens, 10, mask_documents=True)
    assert stream.attention_length == squares / 63
    assert any("10.0 % padding" in line for line in packed.describe())


def test_windows_are_not_longer_than_the_longest_document(tmp_path):
    assert planned(counting_text(tmp_path, [3, 5, 2]), 8, windows="documents").seq_len == 7
    assert planned(counting_text(tmp_path, [3, 5, 2]), 8, windows="packed").seq_len == 9


@pytest.mark.parametrize("kind", KINDS)
@some
@given(lengths=LENGTHS, width=st.integers(1, 20))
def test_document_ids_change_where_documents_do(kind, lengths, width, tmp_path_factory):
    tokens = counting_text(tmp_path_factory.mktemp("text"), lengths)
    windows = planned(tokens, width, windows=kind, mask_documents=True)
    inputs, targets, ids = everything(windows, epoch=1)
    plain = planned(tokens, width, windows=kind)
    if kind == "stream":
        assert isinstance(plain, TokenWindows)
        expected = everything_of_stream(plain)
    else:
        expected = everything(plain, epoch=1)
    assert torch.equal(inputs, expected[0])
    assert torch.equal(targets, expected[1])
    starts = tokens.document_starts - 1
    documents = np.searchsorted(starts, inputs.numpy(), "right")
    documents[targets.numpy() == IGNORE_INDEX] = 0
    is_new = np.diff(documents) != 0
    assert (is_new == (np.diff(ids.numpy()) != 0)).all()


def everything_of_stream(windows):
    batches = EpochBatches(windows, 4, seed=3)
    steps = range(batches.steps_per_epoch, 2 * batches.steps_per_epoch)
    rows = torch.cat([batches.batch(step) for step in steps])
    return rows[:, :-1], rows[:, 1:]


# Mixtures


LENGTHS_OF_SOURCES = [3, 20, 4, 8, 60, 2, 5, 100, 1, 7, 9], [4, 3, 4]
SOURCES = [range(0, 39), range(39, 109), range(109, 229)]  # inputs of each source


@pytest.fixture
def mixed_text(tmp_path):
    return counting_text(tmp_path, *LENGTHS_OF_SOURCES)


@pytest.mark.parametrize("kind", KINDS)
def test_each_source_has_its_share_of_the_targets(kind, mixed_text):
    weights = [5, 1, 4]
    windows = planned(mixed_text, 6, weights, windows=kind)
    seen = Counter()
    squares = 0
    epochs = 20
    for epoch in range(epochs):
        inputs, targets = everything(windows, epoch)
        assert len(inputs) == len(windows)
        squares += int((targets != IGNORE_INDEX).sum(1).square().sum())
        mine = inputs[targets != IGNORE_INDEX]
        for number, source in enumerate(SOURCES):
            seen[number] += int(((mine >= source.start) & (mine < source.stop)).sum())
    # An epoch has whole windows of each source: half a window more or less.
    total = sum(seen.values())
    assert abs(total / epochs - windows.mean_targets * len(windows)) < 1
    assert windows.attention_length == pytest.approx(squares / total, rel=0.05)
    for number, weight in enumerate(weights):
        assert abs(seen[number] / epochs - 229 * weight / 10) <= 6
    _, *lines = windows.describe()
    for number, line in enumerate(lines):
        share, repeats = re.match(
            rf"source {number}: (.*) % of .* tokens, (.*) times", line
        ).groups()
        assert abs(float(share) - 100 * seen[number] / total) < 1
        assert float(repeats) == pytest.approx(
            seen[number] / epochs / len(SOURCES[number]), rel=0.1
        )


def test_a_source_is_used_up_before_it_is_used_again_whatever_the_kills(mixed_text):
    """Each process is killed after some steps; the next has any number of ranks, and resumes."""
    draw = random.Random(2)
    step = kills = 0
    seen = [Counter() for _ in SOURCES]
    windows = planned(mixed_text, 6, [6, 0.5, 2], windows="packed", mask_documents=True)
    plans = windows._plan.plans
    own = [[row[0][0] for row in plan.rows(torch.arange(len(plan)), 0)] for plan in plans]
    while kills < 1000:
        batches = EpochBatches(windows, 4, seed=5)
        ranks = draw.choice([1, 2, 4])
        for _ in range(draw.randint(0, 1)):
            for rank in range(ranks):
                for row in batches.batch(step, rank, ranks)[0][:, 0].tolist():
                    [number] = [n for n, source in enumerate(SOURCES) if row in source]
                    seen[number][row] += 1
            step += 1
            if step % batches.steps_per_epoch == 0:
                # A window that was used is used again after all others only.
                for counts, firsts in zip(seen, own, strict=True):
                    assert set(counts) <= set(firsts)
                    times = [counts[first] for first in firsts]
                    assert max(times) - min(times) <= 1
        kills += 1
    assert min(seen[0].values()) > 2 * max(seen[1].values())


def test_each_window_is_used_once_an_epoch_over_a_thousand_kills(tmp_path):
    draw = random.Random(1)
    tokens = counting_text(tmp_path, [draw.randint(0, 30) for _ in range(40)])
    windows = planned(tokens, 9, windows="packed")
    step = kills = epoch = 0
    seen = Counter()
    while kills < 1000:
        ranks, micro = draw.choice([1, 2, 3]), draw.randint(1, 3)
        batches = EpochBatches(windows, 6, seed=5)
        for _ in range(draw.randint(0, 3)):
            shards = [batches.batch(step, rank, ranks)[1] for rank in range(ranks)]
            for part in [part for shard in shards for part in shard.split(micro)]:
                seen.update(part[part != IGNORE_INDEX].tolist())
            assert batches.weight(step) == sum(int((s != IGNORE_INDEX).sum()) for s in shards)
            step += 1
            if step % batches.steps_per_epoch == 0:
                assert seen == Counter(range(1, len(tokens)))
                seen.clear()
                epoch += 1
        kills += 1
    assert epoch > 50


def test_the_targets_of_an_epoch_are_counted(tmp_path):
    tokens = counting_text(tmp_path, [3, 20, 4, 8, 60, 2])
    batches = EpochBatches(planned(tokens, 7, windows="packed"), 4, seed=0)
    assert batches.targets_per_step * batches.steps_per_epoch == pytest.approx(len(tokens) - 1)
    steps = range(batches.steps_per_epoch)
    assert sum(map(batches.weight, steps)) == len(tokens) - 1
    stream = EpochBatches(planned(tokens, 7), 4, seed=0)
    assert stream.targets_per_step == stream.mean_size * 7
    assert stream.weight(0) == len(stream.batch(0))


def test_a_source_without_text_is_named(tmp_path):
    tokens = counting_text(tmp_path, [3, 4], [1, 0, 1])
    for kind in KINDS:
        with pytest.raises(AGI2Error, match="source_weights: source 1 has no text to train on"):
            planned(tokens, 4, [1, 1, 1], windows=kind)


def test_token_ids_alone_have_no_documents():
    windows = TokenWindows(np.arange(30), 5)
    with pytest.raises(AGI2Error, match="token ids alone have no documents"):
        training_windows(windows, Config(windows="packed"))
    assert training_windows(windows, Config()) is windows


def test_the_identity_of_a_text_includes_the_bounds_that_its_windows_depend_on(tmp_path):
    def hashes(lengths, sources, **keys):
        dataset = TokenWindows(counting_text(tmp_path, lengths, sources), 5)
        return hash_of_bounds(dataset, Config(sources=["a", "b"], **keys))

    weights = {"source_weights": [1, 2]}
    assert hashes([3, 4, 5], [1, 2]) == ""
    assert hashes([3, 4, 5], [1, 2], **weights) == hashes([3, 4, 5], [1, 2], **weights)
    assert hashes([3, 4, 5], [1, 2], **weights) != hashes([3, 4, 5], [2, 1], **weights)
    assert hashes([3, 4, 5], [1, 2], windows="packed") != hashes(
        [4, 3, 5], [1, 2], windows="packed"
    )
    masked = {"mask_documents": True}
    assert hashes([3, 4, 5], [1, 2], **masked) == hashes([3, 4, 5], [2, 1], **masked)
