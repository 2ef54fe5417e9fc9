"""Held-out text for validation, of which nothing is in training."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence

import numpy as np
import torch

from ..utils import log
from .dedup import are_among, cut_out, group_related, sampling_rate, shared_part, shingles

# From so many documents on, whole ones are held out; with fewer, the end of each.
_MANY_DOCUMENTS = 20
# Documents that share this part of the shorter one's shingles are on the same side. Where too much
# is related for that, as when all begin with the same form, only those that share more.
_RELATED = (0.2, 0.5, 0.8)
# The part of the held-out text that may be in the training text without a warning.
_LEAK_WARNED = 0.05

Split = tuple[list[str], list[str]]


def split_documents(documents: Sequence[str], val_fraction: float, seed: int = 0) -> Split:
    """Hold out text for validation: none of it stays in training, nor do near copies of it.

    The split is a function of the arguments. The log says what part of the held-out text is in the
    training text all the same.

    Args:
        documents: the corpus.
        val_fraction: the share of the characters to hold out.
        seed: chooses the documents, where whole ones are held out.

    Returns:
        Training documents and validation documents. With 20 different documents or more, whole
        ones are held out until the share is reached, those that share text together; with fewer,
        the last part of each, and of copies what they share with it.
    """
    if val_fraction == 0:
        return list(documents), []
    best, best_leak = None, 0.0
    for split in _splits(documents, val_fraction, seed):
        leak = shared_part(split[1], split[0]) if split[1] else None
        if best is None or (leak or 0.0) < best_leak:
            best, best_leak = split, leak or 0.0
        if best_leak <= _LEAK_WARNED:
            break
    assert best is not None
    if best[1]:
        _report(best_leak)
    return best


def _report(leak: float) -> None:
    if leak > _LEAK_WARNED:
        log.warning(
            "%.1f %% of the held-out text is in the training text, too: the validation loss is "
            "lower than on new text",
            100 * leak,
        )
    else:
        log.info("%.1f %% of the held-out text is in the training text, too", 100 * leak)


def _splits(documents: Sequence[str], val_fraction: float, seed: int) -> Iterator[Split]:
    """Ways to split, the best one first; the others are for where that leaves copies."""
    # Documents of the same text stay together.
    lengths: Counter[str] = Counter()
    for document in documents:
        lengths[document] += len(document)
    texts = list(lengths)
    if len(texts) >= _MANY_DOCUMENTS:
        for threshold in _RELATED:
            groups = group_related(texts, threshold)
            related = len(texts) - len(set(groups))
            chosen = _choose(texts, groups, lengths, val_fraction, seed)
            held_out = sum(lengths[text] for text in chosen)
            # With nothing related to blame, few documents are held out since they are long.
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


def _choose(
    texts: Sequence[str],
    groups: Sequence[int],
    lengths: Counter[str],
    val_fraction: float,
    seed: int,
) -> set[str]:
    """The texts of groups that are held out whole."""
    members: dict[int, list[str]] = {}
    for text, group in zip(texts, groups, strict=True):
        members.setdefault(group, []).append(text)
    candidates = list(members.values())
    wanted = val_fraction * lengths.total()
    chosen: set[str] = set()
    generator = torch.Generator("cpu").manual_seed(seed)
    for index in torch.randperm(len(candidates), generator=generator, device="cpu").tolist():
        length = sum(lengths[text] for text in candidates[index])
        # A group that would overshoot by more than half its length stays in training.
        if length <= 2 * wanted:
            chosen.update(candidates[index])
            wanted -= length
    return chosen


def _split_each(documents: Sequence[str], val_fraction: float) -> Split:
    """Hold out the end of each document, and of related ones nothing that is in the others."""
    texts = list(dict.fromkeys(documents))
    members: dict[int, list[str]] = {}
    for text, group in zip(texts, group_related(texts, _RELATED[0]), strict=True):
        members.setdefault(group, []).append(text)
    parts: dict[str, Split] = {}
    for related in members.values():
        parts.update(_split_group(related, val_fraction))
    train = [piece for document in documents for piece in parts[document][0]]
    held_out = [piece for document in documents for piece in parts[document][1]]
    return train, held_out


def _split_group(texts: Sequence[str], val_fraction: float) -> dict[str, Split]:
    """Split documents that share text: the longest first, the others so that they fit it."""
    rate = sampling_rate(texts)
    cuts: dict[str, int] = {}
    trained = held_out = np.empty(0, np.uint64)
    for text in sorted(texts, key=len, reverse=True):
        cut = int(len(text) * (1 - val_fraction))
        head, tail = shingles(text[:cut], rate).hashes, shingles(text[cut:], rate).hashes
        if len(tail) and are_among(tail, trained).mean() > 0.5:
            # Of a draft whose end is in the middle of a longer one, the longer one's end is enough.
            cut, head, tail = len(text), np.concatenate([head, tail]), tail[:0]
        cuts[text] = cut
        trained, held_out = np.concatenate([trained, head]), np.concatenate([held_out, tail])
    plain = {text: _pieces([text[:cut]], [text[cut:]]) for text, cut in cuts.items()}
    is_copied = bool(len(held_out)) and are_among(held_out, trained).mean() >= _RELATED[0]
    if not is_copied and len(texts) == 1:
        return plain
    split = {}
    for text, cut in cuts.items():
        kept, moved = cut_out(text[:cut], held_out, rate)
        split[text] = _pieces(kept, [*moved, text[cut:]])
    # Where most of the text repeats itself, holding all copies out would leave nothing.
    return split if _train_size(split) >= _train_size(plain) / 2 else plain


def _pieces(train: Sequence[str], held_out: Sequence[str]) -> Split:
    return [piece for piece in train if piece], [piece for piece in held_out if piece]


def _train_size(split: dict[str, Split]) -> int:
    return sum(len(piece) for train, _ in split.values() for piece in train)
