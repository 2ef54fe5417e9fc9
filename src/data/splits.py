"""Train/validation split that keeps near-duplicates on one side, against data leakage."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence

import numpy as np
import torch

from ..utils import log
from .dedup import (
    HashSet,
    cluster_near_duplicates,
    containment,
    sampling_rate,
    shingles,
    split_by_shingles,
)

# With at least this many documents, complete documents are held out; with fewer, the end of each.
_MIN_DOCUMENTS_TO_HOLD_OUT = 20
# Documents that share this fraction of the smaller one's shingles are on the same side. The higher
# thresholds are for corpora with too many related documents, as when all begin with one template.
_NEAR_DUPLICATE_THRESHOLDS = (0.2, 0.5, 0.8)
# Fraction of the held-out text that may be in the training text without a warning.
_MAX_LEAKAGE = 0.05

Split = tuple[list[str], list[str]]


def split_documents(documents: Sequence[str], val_fraction: float, seed: int = 0) -> Split:
    """Split a corpus into training and validation documents, without near-duplicates across them.

    The split is deterministic. The leakage that remains, the fraction of the validation text that
    is also in the training text, is logged.

    Args:
        documents: the corpus.
        val_fraction: fraction of the characters to hold out.
        seed: seed of the choice of complete documents.

    Returns:
        Training documents and validation documents. From 20 distinct documents on, complete ones
        are held out until the fraction is reached, near-duplicates together; with fewer, the end
        of each is held out, and with it the passages of other documents that are copies of it.
    """
    if val_fraction == 0:
        return list(documents), []
    best, best_leakage = None, 0.0
    for split in _splits(documents, val_fraction, seed):
        leakage = containment(split[1], split[0]) if split[1] else None
        if best is None or (leakage or 0.0) < best_leakage:
            best, best_leakage = split, leakage or 0.0
        if best_leakage <= _MAX_LEAKAGE:
            break
    assert best is not None
    if best[1]:
        _log_leakage(best_leakage)
    return best


def _log_leakage(leakage: float) -> None:
    if leakage > _MAX_LEAKAGE:
        log.warning(
            "%.1f %% of the held-out text is in the training text, too: the validation loss is "
            "lower than on new text",
            100 * leakage,
        )
    elif leakage >= 0.0005:  # 0.1 %, the least that is shown
        log.info("%.1f %% of the held-out text is in the training text, too", 100 * leakage)


def _splits(documents: Sequence[str], val_fraction: float, seed: int) -> Iterator[Split]:
    """Yield candidate splits, best first; the later ones are fallbacks if the first ones leak."""
    # Exact duplicates stay together.
    lengths: Counter[str] = Counter()
    for document in documents:
        lengths[document] += len(document)
    texts = list(lengths)
    if len(texts) >= _MIN_DOCUMENTS_TO_HOLD_OUT:
        for threshold in _NEAR_DUPLICATE_THRESHOLDS:
            groups = cluster_near_duplicates(texts, threshold)
            related = len(texts) - len(set(groups))
            chosen = _choose_held_out(texts, groups, lengths, val_fraction, seed)
            held_out = sum(lengths[text] for text in chosen)
            # Near-duplicate clusters can be too large to hold out: then too little is held out, and
            # the next threshold makes smaller ones. Without any, the documents are just long.
            if chosen and (not related or held_out >= val_fraction * lengths.total() / 2):
                if related:
                    log.info("%d documents share text with others: kept on one side", related)
                train = [document for document in documents if document not in chosen]
                yield train, [document for document in documents if document in chosen]
                if not related:
                    return
            elif not related:
                break
    yield _split_each(documents, val_fraction)


def _choose_held_out(
    texts: Sequence[str],
    groups: Sequence[int],
    lengths: Counter[str],
    val_fraction: float,
    seed: int,
) -> set[str]:
    """Choose groups of documents to hold out, in random order, until `val_fraction` is reached."""
    members: dict[int, list[str]] = {}
    for text, group in zip(texts, groups, strict=True):
        members.setdefault(group, []).append(text)
    candidates = list(members.values())
    remaining = val_fraction * lengths.total()
    chosen: set[str] = set()
    generator = torch.Generator("cpu").manual_seed(seed)
    for index in torch.randperm(len(candidates), generator=generator, device="cpu").tolist():
        length = sum(lengths[text] for text in candidates[index])
        # A group that would overshoot by more than half its length stays in training.
        if length <= 2 * remaining:
            chosen.update(candidates[index])
            remaining -= length
    return chosen


def _split_each(documents: Sequence[str], val_fraction: float) -> Split:
    """Hold out the end of each document; near-duplicates are split together."""
    texts = list(dict.fromkeys(documents))
    members: dict[int, list[str]] = {}
    for text, group in zip(
        texts, cluster_near_duplicates(texts, _NEAR_DUPLICATE_THRESHOLDS[0]), strict=True
    ):
        members.setdefault(group, []).append(text)
    parts: dict[str, Split] = {}
    for related in members.values():
        parts.update(_split_group(related, val_fraction))
    train = [piece for document in documents for piece in parts[document][0]]
    held_out = [piece for document in documents for piece in parts[document][1]]
    return train, held_out


def _split_group(texts: Sequence[str], val_fraction: float) -> dict[str, Split]:
    """Split near-duplicates: each at its end, longest first, with shared passages on one side.

    Returns:
        The training and validation pieces of each document.
    """
    rate = sampling_rate(texts)
    cuts: dict[str, int] = {}
    train_hashes, tails = HashSet(), [np.empty(0, np.uint64)]
    for text in sorted(texts, key=len, reverse=True):
        cut = int(len(text) * (1 - val_fraction))
        head, tail = shingles(text[:cut], rate).hashes, shingles(text[cut:], rate).hashes
        if len(tail) and train_hashes.contains(tail).mean() > 0.5:
            # An excerpt or draft whose end is in the training part of a longer document stays in
            # training: the end of the longer one is held out.
            cut, head, tail = len(text), np.concatenate([head, tail]), tail[:0]
        cuts[text] = cut
        train_hashes.add(head)
        tails.append(tail)
    held_out_hashes = np.concatenate(tails)
    plain = {text: _pieces([text[:cut]], [text[cut:]]) for text, cut in cuts.items()}
    is_copied = (
        bool(len(held_out_hashes))
        and train_hashes.contains(held_out_hashes).mean() >= _NEAR_DUPLICATE_THRESHOLDS[0]
    )
    if not is_copied and len(texts) == 1:
        return plain
    split, held_out = {}, HashSet(held_out_hashes)
    for text, cut in cuts.items():
        kept, moved = split_by_shingles(text[:cut], held_out, rate)
        split[text] = _pieces(kept, [*moved, text[cut:]])
    # If the text is mostly repetition, holding out all copies would leave too little to train on.
    return split if _train_size(split) >= _train_size(plain) / 2 else plain


def _pieces(train: Sequence[str], held_out: Sequence[str]) -> Split:
    return [piece for piece in train if piece], [piece for piece in held_out if piece]


def _train_size(split: dict[str, Split]) -> int:
    return sum(len(piece) for train, _ in split.values() for piece in train)
