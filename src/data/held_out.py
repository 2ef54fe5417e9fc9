"""Choose which documents are held out, and of which only the end."""

from __future__ import annotations

import numpy as np
import torch

from .dedup import is_root
from .document_arrays import sums_of


def choose_or_cut(
    groups: np.ndarray, lengths: np.ndarray, val_fraction: float, seed: int
) -> tuple[np.ndarray, np.ndarray]:
    """Choose groups of complete texts to hold out, and long texts to hold out the ends of.

    Next to a book, as many notes as a tenth of all text may be all notes: then a tenth of the notes
    is chosen, and the end of the book.

    Returns:
        The masks, (T,), of the texts to hold out and of those to cut.
    """
    totals = sums_of(lengths, groups, len(groups))[groups]
    wanted = val_fraction * int(lengths.sum())
    is_long = totals > 2 * wanted
    others = int(lengths[~is_long].sum())
    if others >= 2 * wanted or not others:
        return _choose_held_out(groups, lengths, wanted, seed), np.zeros(len(groups), bool)
    is_alone = totals == lengths
    return _choose_held_out(groups, lengths, val_fraction * others, seed), is_long & is_alone


def _choose_held_out(
    groups: np.ndarray, lengths: np.ndarray, wanted: float, seed: int
) -> np.ndarray:
    """Choose groups of texts to hold out, in random order, until `wanted` characters are.

    Returns:
        The mask, (T,), of the texts to hold out.
    """
    roots = np.arange(len(groups), dtype=groups.dtype)[is_root(groups)]
    totals = lengths if len(roots) == len(groups) else sums_of(lengths, groups, len(groups))
    generator = torch.Generator("cpu").manual_seed(seed)
    dtype = torch.int32 if len(roots) < 2**31 else torch.int64
    order = torch.randperm(len(roots), generator=generator, dtype=dtype, device="cpu").numpy()
    is_chosen = np.zeros(len(groups), bool)
    remaining = wanted
    for first in range(0, len(order), _CHUNK):
        chunk = roots[order[first : first + _CHUNK]]
        for root, length in zip(chunk.tolist(), totals[chunk].tolist(), strict=True):
            # A group that would overshoot by more than half its length stays in training.
            if length <= 2 * remaining:
                is_chosen[root] = True
                remaining -= length
        if remaining < 0:
            break
    return is_chosen[groups]


_CHUNK = 2**16  # elements of an array that are Python objects at a time
