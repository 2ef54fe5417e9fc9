"""Batches of token windows: a pure function of the seed and the step. B batch, T time."""

from __future__ import annotations

import numpy as np
import torch

from .windows import Windows


class EpochBatches:
    """Deterministic batch sampler: the batch of a step is a pure function of the seed and the step.

    An epoch has as many windows as the dataset, and each is in exactly one batch. Every epoch draws
    a new permutation and, for windows of a stream of tokens, a new offset, as far as the number of
    windows allows; they cover every token. There is no sampler state to save: training can resume
    at any step.

    Args:
        dataset: the windows.
        batch_size: maximum windows per batch. If it does not divide the windows of an epoch, the
            batches are smaller, of sizes that differ by at most one: no short last batch.
        seed: seed of the offsets and permutations.
    """

    batch_size: int
    """Windows in the largest batch, which is the first of each epoch."""

    def __init__(self, dataset: Windows, batch_size: int, seed: int) -> None:
        self.dataset = dataset
        self.seed = seed
        self.windows = len(dataset)
        """Windows per epoch."""
        self.steps_per_epoch = -(-self.windows // batch_size)
        """Batches per epoch."""
        self.batch_size = -(-self.windows // self.steps_per_epoch)
        self._epoch = -1
        self._offset = 0
        self._order: torch.Tensor | FeistelPermutation = torch.empty(
            0, dtype=torch.long, device="cpu"
        )

    @property
    def mean_size(self) -> float:
        """Mean batch size over an epoch; an `int` if all batches are equal."""
        mean = self.windows / self.steps_per_epoch
        return int(mean) if mean.is_integer() else mean

    @property
    def targets_per_step(self) -> float:
        """Mean number of targets of a batch."""
        return self.mean_size * self.dataset.mean_targets

    def windows_before(self, step: int) -> int:
        """Return the number of windows in all batches before step `step`."""
        epoch, index = divmod(step, self.steps_per_epoch)
        # Rounded up, so that the first batch of an epoch is its largest: a batch that does not fit
        # the memory fails in the first step.
        return epoch * self.windows + -(-index * self.windows // self.steps_per_epoch)

    def rows(self, step: int, shard: int = 0, num_shards: int = 1) -> range:
        """Return the range of window positions, counted over all epochs, of a batch or its shard.

        Shard sizes differ by at most one; the last shards of a small batch may be empty.
        """
        first, last = self.windows_before(step), self.windows_before(step + 1)
        size = last - first
        # Rounded up, so that the first ranks have the largest shards: a rank's number of rows, and
        # so of micro-batches, is at most that of rank 0.
        return range(
            first - (-size * shard // num_shards), first - (-size * (shard + 1) // num_shards)
        )

    def batch(
        self, step: int, shard: int = 0, num_shards: int = 1
    ) -> torch.Tensor | tuple[torch.Tensor, ...]:
        """Return the batch of a step, or one shard of it.

        Args:
            step: step of the run, from 0.
            shard: index of the shard, such as a process's rank.
            num_shards: number of shards, such as the world size.

        Returns:
            A LongTensor (B, T) on the CPU; or a tuple of inputs, targets and, if attention is
            masked, document ids. B may be 0 for a shard.
        """
        order = self._indices(step, self.rows(step, shard, num_shards))
        return self.dataset.batch(order, self._offset)

    def weight(self, step: int) -> int:
        """Return the weight of a step's mean loss in the mean over an epoch's targets.

        Call it before fetching the next step's batch, which may be of another epoch: an order is
        computed for each change of the epoch.
        """
        return self.dataset.weight(self._indices(step, self.rows(step)), self._offset)

    def _indices(self, step: int, rows: range) -> torch.Tensor:
        """Return the indices in the dataset of rows of a step's batch."""
        self._shuffle_epoch(step // self.steps_per_epoch)
        first = rows.start - self._epoch * self.windows
        return self._order[first : first + len(rows)]

    def _shuffle_epoch(self, epoch: int) -> None:
        """Draw the offset and the order of an epoch, unless they are cached."""
        if epoch == self._epoch:
            return
        # A seed per (seed, epoch), unique for up to 1,000,003 epochs, in the range of manual_seed.
        generator = torch.Generator("cpu").manual_seed((self.seed * 1_000_003 + epoch) % 2**63)
        offset = self.dataset.draw_offset(epoch, generator)
        if self.windows <= MAX_PERMUTED:
            self._order = torch.randperm(self.windows, generator=generator, device="cpu")
        else:
            self._order = FeistelPermutation(self.windows, generator)
        self._epoch, self._offset = epoch, offset


MAX_PERMUTED = 2**20
"""With more windows, their order is computed instead of stored."""
_ROUNDS = 8
_BLOCK = 2**12  # positions computed at a time: few take as long


class FeistelPermutation:
    """A pseudorandom permutation of 0 to `size` - 1, which is computed instead of stored.

    A balanced Feistel network permutes the numbers of 2k bits; numbers from `size` on are permuted
    again until they are below it (cycle walking; Black and Rogaway, 2002). As the network has less
    than 4 times `size` numbers, that takes less than 4 times on average.

    Args:
        size: number of elements.
        generator: draws the keys of the rounds.
    """

    def __init__(self, size: int, generator: torch.Generator) -> None:
        self._size = size
        self._half = np.uint64(max(1, -(-(size - 1).bit_length() // 2)))
        keys = torch.randint(2**63 - 1, (_ROUNDS,), generator=generator, device="cpu")
        self._keys = keys.numpy().astype(np.uint64)

        self._block_index, self._block = -1, torch.empty(0, dtype=torch.long, device="cpu")

    def __getitem__(self, positions: slice) -> torch.Tensor:
        first, last, _ = positions.indices(self._size)
        parts = [self._block[:0]]
        while first < last:
            index, offset = divmod(first, _BLOCK)
            if index != self._block_index:
                self._block_index, self._block = index, self._compute_block(index)
            parts.append(self._block[offset : offset + last - first])
            first += len(parts[-1])
        return torch.cat(parts)

    def _compute_block(self, index: int) -> torch.Tensor:
        end = min(self._size, (index + 1) * _BLOCK)
        return self.at(np.arange(index * _BLOCK, end))

    def at(self, positions: np.ndarray) -> torch.Tensor:
        """Return the elements at any positions, (N,)."""
        values = self._permute(positions.astype(np.uint64))
        while (outside := values >= self._size).any():
            values[outside] = self._permute(values[outside])
        return torch.from_numpy(values.astype(np.int64))

    def _permute(self, values: np.ndarray) -> np.ndarray:
        mask = (np.uint64(1) << self._half) - np.uint64(1)
        left, right = values >> self._half, values & mask
        for key in self._keys:
            left, right = right, left ^ (_mix(right ^ key) & mask)
        return (left << self._half) | right


def _mix(values: np.ndarray) -> np.ndarray:
    """Mix the bits of 64-bit numbers: the finalizer of splitmix64 (Steele et al., 2014)."""
    values = (values ^ (values >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    values = (values ^ (values >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return values ^ (values >> np.uint64(31))
