"""Train/validation split that keeps near-duplicates on one side, against data leakage."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np

from ..errors import AGI2Error
from ..utils import log, plural
from .copies import Pairs, find_copies, remove_copies
from .dedup import (
    HashSet,
    cluster_near_duplicates,
    containment,
    is_root,
    link,
    passages,
)
from .document_arrays import index_type, ranks_of, sums_of
from .held_out import choose_or_cut
from .resemblance import ReadTexts
from .scan import Scan, Texts, scan_texts
from .split_plan import Span as Span
from .split_plan import SplitPlan as SplitPlan

# With at least this many documents, complete documents are held out; with fewer, the end of each.
_MIN_DOCUMENTS_TO_HOLD_OUT = 20
# Documents that share this fraction of the smaller one's shingles are on the same side. The higher
# thresholds are for corpora with too many related documents, as when all begin with one template.
_NEAR_DUPLICATE_THRESHOLDS = (0.2, 0.5, 0.8)
# Fraction of the held-out text that may be in the training text without a warning.
_MAX_LEAKAGE = 0.05


def split_documents(
    documents: Sequence[str], val_fraction: float, seed: int = 0
) -> tuple[list[str], list[str]]:
    """Split a corpus into training and validation documents, without near-duplicates across them.

    The split is deterministic. The leakage that remains, the fraction of the validation text that
    is also in the training text, is logged.

    Args:
        documents: the corpus.
        val_fraction: fraction of the characters to hold out.
        seed: seed of the choice of complete documents.

    Returns:
        Training documents and validation documents. From 20 distinct documents on, complete ones
        are held out until the fraction is reached, near-duplicates together, and the end of those
        next to which the others are few; with fewer, the end of each is held out, and with it the
        passages of other documents that are copies of it.
    """
    if val_fraction == 0:
        return list(documents), []
    plan = plan_split(scan_texts(documents), val_fraction, seed)
    sides: tuple[list[str], list[str]] = [], []
    for index, document in enumerate(documents):
        for start, end, is_held_out in plan.spans(index):
            sides[is_held_out].append(document[start:end])
    return sides


def plan_split(
    scan: Scan,
    val_fraction: float,
    seed: int = 0,
    pairs: Pairs | None = None,
    are_whole: bool = False,
    together: Pairs | None = None,
) -> SplitPlan:
    """Plan the split of a corpus that was scanned; see `split_documents`.

    Args:
        scan: the scan.
        val_fraction: fraction of the characters to hold out.
        seed: seed of the choice of complete documents.
        pairs: documents that are near copies, besides those that the scan's shingles show.
        are_whole: whether only complete documents are held out, however few there are.
        together: documents that are on one side even if too many others share text.
    """
    if val_fraction == 0:
        return SplitPlan(scan.characters, scan.characters)
    best, best_leakage, related = None, 0.0, 0
    for plan, sharing in _plans(scan, val_fraction, seed, (pairs, together), are_whole):
        train, held_out = plan.sides(scan.shingles)
        hashes = scan.shingles.hashes
        leakage = containment(hashes[held_out], hashes[train]) or 0.0
        if best is None or leakage < best_leakage:
            best, best_leakage, related = plan, leakage, sharing
        if best_leakage <= _MAX_LEAKAGE:
            break
    assert best is not None
    if related:
        share = "1 document shares" if related == 1 else f"{related:,} documents share"
        log.info("%s text with others: kept on one side", share)
    if best.holds_out:
        _log_leakage(best_leakage, are_whole)
        _log_share(best, val_fraction)
    return best


def _log_share(plan: SplitPlan, val_fraction: float) -> None:
    total = int(plan.characters.sum())
    share = plan.held_out_characters / max(1, total)
    if not val_fraction / 2 <= share <= 1.5 * val_fraction and total >= _MIN_SHARED:
        log.warning(
            "%s %% of the text is held out rather than %s %%, as documents are long or share text",
            *(f"{100 * each:.3g}" for each in (share, val_fraction)),
        )


# Characters of a text from which its share that is held out should be the one asked for.
_MIN_SHARED = 10_000


def plan_corpus(
    scan: Scan,
    val_fraction: float,
    seed: int,
    first_val: int,
    dedup: bool,
    sketches: np.ndarray | None = None,
    val: str = "val_sources",
    prompts: np.ndarray | None = None,
    read: ReadTexts | None = None,
) -> SplitPlan:
    """Plan the split of a corpus with documents of `val_sources`, and without copies.

    What is removed is logged, and so are copies that are not.

    Args:
        scan: the scan of the corpus.
        val_fraction: fraction of the characters to hold out, if no documents are given for that.
        seed: seed of the choice of documents.
        first_val: index of the first document of `val_sources`, which are the last ones.
        dedup: whether to remove copies and near copies from the training text.
        sketches: the sketches of the documents, by which near copies are found if the scan has only
            a sample of the shingles.
        val: the key of the documents to validate on. Of conversations and pairs, no part is held
            out.
        prompts: a number for each document, (D,); those with the same are held out together.
        read: reads the texts of which sketches do not show whether they are near copies.

    Raises:
        AGI2Error: if nothing is left to train on.
    """
    is_val = np.zeros(len(scan), bool)
    is_val[first_val:] = True
    originals = scan.plain_originals
    is_in_val = np.zeros(len(scan), bool)
    is_in_val[originals[first_val:]] = True
    removed = is_in_val[originals] & ~is_val
    if removed.any():
        what = plural(int(removed.sum()), "document")
        log.warning("removed from the training text, as %s has the same: %s", val, what)
    is_first, (a, b) = find_copies(scan, ~removed, sketches, read)
    removed |= remove_copies(scan, ~is_val & ~removed, is_first, (a, b), dedup)
    if len(scan) and removed[:first_val].all():
        raise AGI2Error(f"{val}: all of the training text is in it: nothing is left to train on")
    kept = ~removed
    both = kept[a] & kept[b]
    ranks = ranks_of(kept)
    pairs = ranks[a[both]], ranks[b[both]]
    del ranks, is_in_val, is_first, both
    selected = scan.select(kept) if removed.any() else scan
    if is_val.any():
        plan = _plan_given(selected, is_val[kept], pairs, val)
    else:
        together = None if prompts is None else _equal(prompts[kept])
        plan = plan_split(selected, val_fraction, seed, pairs, val != "val_sources", together)
    if not removed.any():
        return plan
    cuts = np.zeros_like(scan.characters)
    cuts[kept] = plan.cuts
    places = np.flatnonzero(kept)
    exceptions = {int(places[index]): spans for index, spans in plan.exceptions.items()}
    return SplitPlan(scan.characters, cuts, exceptions, removed)


def _equal(numbers: np.ndarray) -> Pairs:
    """Return pairs of documents that link all with the same number, (D,)."""
    order = np.argsort(numbers, kind="stable")
    is_same = np.diff(numbers[order]) == 0
    return order[:-1][is_same], order[1:][is_same]


def _plan_given(scan: Scan, is_val: np.ndarray, pairs: Pairs, val: str) -> SplitPlan:
    """Plan the split into training documents and those of the key `val`; log near copies."""
    shingles = scan.shingles
    in_val = is_val[shingles.documents]
    known = HashSet(shingles.hashes[~in_val]).contains(shingles.hashes[in_val])
    documents, index, counts = np.unique(
        shingles.documents[in_val], return_inverse=True, return_counts=True
    )
    is_near = np.zeros(len(scan), bool)
    is_near[documents] = np.bincount(index, known) >= _NEAR_DUPLICATE_THRESHOLDS[1] * counts
    a, b = pairs
    is_near[b[~is_val[a] & is_val[b]]] = True
    if is_near.any():
        log.warning(
            "%s of %s: at least half is in the training text, too",
            plural(int(is_near.sum()), "document"),
            val,
        )
    _log_leakage(float(known.mean()) if len(known) else 0.0, val != "val_sources")
    return SplitPlan(scan.characters, np.where(is_val, 0, scan.characters))


def _log_leakage(leakage: float, are_conversations: bool) -> None:
    text = "text of the held-out conversations" if are_conversations else "held-out text"
    found = f"{100 * leakage:.1f} % of the {text} is in the training text, too"
    if leakage > _MAX_LEAKAGE:
        log.warning("%s: the validation loss is lower than on new text", found)
    elif leakage >= 0.0005:  # 0.1 %, the least that is shown
        log.info("%s", found)


def _plans(
    scan: Scan,
    val_fraction: float,
    seed: int,
    linked: tuple[Pairs | None, Pairs | None],
    are_whole: bool,
) -> Iterator[tuple[SplitPlan, int]]:
    """Yield candidate plans, best first; the later ones are fallbacks if the first ones leak.

    With each, the number of documents that are on one side because they share text with others.
    """
    texts = scan.texts
    if are_whole or len(texts) >= _MIN_DOCUMENTS_TO_HOLD_OUT:
        lengths = texts.lengths
        if len(texts) < len(scan):  # those of all copies count
            lengths = sums_of(scan.characters, texts.index_of, len(texts))
        total = int(lengths.sum())
        for threshold in _NEAR_DUPLICATE_THRESHOLDS:
            groups = cluster_near_duplicates(texts.shingles, len(texts), threshold)
            groups = _linked(groups, texts, *linked)
            related = len(texts) - int(is_root(groups).sum())
            chosen, is_cut = choose_or_cut(groups, lengths, val_fraction, seed)
            if are_whole:
                is_cut[:] = False
            held_out = int(lengths[chosen].sum() + val_fraction * lengths[is_cut].sum())
            # Near-duplicate clusters can be too large to hold out: then too little is held out, and
            # the next threshold makes smaller ones. Without any, the documents are just long.
            if chosen.any() and (not related or held_out >= val_fraction * total / 2):
                cuts = np.where(is_cut, _ends(texts, val_fraction), texts.lengths)
                cuts[chosen] = 0
                yield SplitPlan(scan.characters, cuts[texts.index_of]), related
                if not related:
                    return
            elif not related:
                break
    if are_whole:
        apart = np.arange(len(texts), dtype=index_type(len(texts)))
        groups = _linked(apart.copy(), texts, linked[1])
        chosen, _ = choose_or_cut(groups, lengths, val_fraction, seed)
        if not chosen.any():
            chosen, _ = choose_or_cut(apart, lengths, val_fraction, seed)
        yield SplitPlan(scan.characters, np.where(chosen[texts.index_of], 0, scan.characters)), 0
    else:
        yield _split_each(scan, texts, val_fraction), 0


def _linked(groups: np.ndarray, texts: Texts, *linked: Pairs | None) -> np.ndarray:
    """Merge groups of texts, (T,), in place, by pairs of documents; return them."""
    for pairs in linked:
        if pairs is not None:
            groups = link(groups, *(texts.index_of[each] for each in pairs))
    return groups


def _ends(texts: Texts, val_fraction: float) -> np.ndarray:
    """Return where the end of each text that is to be held out begins, (T,)."""
    return (texts.lengths * (1 - val_fraction)).astype(np.int64)


def _split_each(scan: Scan, texts: Texts, val_fraction: float) -> SplitPlan:
    """Hold out the end of each document; near-duplicates are split together."""
    cuts = _ends(texts, val_fraction)
    split: dict[int, list[Span]] = {}
    groups = cluster_near_duplicates(texts.shingles, len(texts), _NEAR_DUPLICATE_THRESHOLDS[0])
    for members in _groups_to_compare(texts, groups):
        own_cuts, own_spans = _split_group(texts, members, cuts)
        cuts[members] = own_cuts
        split.update(own_spans)
    exceptions = {}
    if split:
        listed = np.flatnonzero(np.isin(texts.index_of, list(split)))
        exceptions = {each: split[int(texts.index_of[each])] for each in listed.tolist()}
    return SplitPlan(scan.characters, cuts[texts.index_of], exceptions)


def _groups_to_compare(texts: Texts, groups: np.ndarray) -> Iterator[list[int]]:
    """Yield groups of several texts, and texts that repeat a shingle, as a list of members each."""
    shingles = texts.shingles
    order = np.lexsort((shingles.documents, shingles.hashes))
    hashes, documents = shingles.hashes[order], shingles.documents[order]
    is_repeated = (hashes[1:] == hashes[:-1]) & (documents[1:] == documents[:-1])
    compared = np.bincount(groups, minlength=len(texts))[groups] > 1
    compared[documents[1:][is_repeated]] = True
    members = np.flatnonzero(compared)
    members = members[np.argsort(groups[members], kind="stable")]
    for part in np.split(members, np.flatnonzero(np.diff(groups[members])) + 1):
        if len(part):
            yield part.tolist()


def _split_group(
    texts: Texts, members: list[int], cuts: np.ndarray
) -> tuple[list[int], dict[int, list[Span]]]:
    """Split near-duplicates: each at its end, longest first, with shared passages on one side.

    Args:
        texts: all distinct documents.
        members: the indices of the near-duplicates.
        cuts: where each text of the corpus is to be cut, (T,).

    Returns:
        The cut of each member, and the spans of the members that have others.
    """
    own = {text: int(cuts[text]) for text in members}
    train_hashes, tails = HashSet(), [np.empty(0, np.uint64)]
    for text in sorted(members, key=lambda text: -texts.lengths[text]):
        shingles, cut = texts.shingles_of(text), own[text]
        head = shingles.hashes[shingles.ends <= cut]
        tail = shingles.hashes[shingles.starts >= cut]
        if len(tail) and train_hashes.contains(tail).mean() > 0.5:
            # An excerpt or draft whose end is in the training part of a longer document stays in
            # training: the end of the longer one is held out.
            own[text] = int(texts.lengths[text])
            head, tail = np.concatenate([head, tail]), tail[:0]
        train_hashes.add(head)
        tails.append(tail)
    held_out_hashes = np.concatenate(tails)
    is_copied = (
        bool(len(held_out_hashes))
        and train_hashes.contains(held_out_hashes).mean() >= _NEAR_DUPLICATE_THRESHOLDS[0]
    )
    if not is_copied and len(members) == 1:
        return list(own.values()), {}
    split = _hold_out_passages(texts, own, HashSet(held_out_hashes))
    kept = sum(end - start for spans in split.values() for start, end, held in spans if not held)
    kept += sum(cut for text, cut in own.items() if text not in split)
    # If the text is mostly repetition, holding out all copies would leave too little to train on.
    return list(own.values()), split if kept >= sum(own.values()) / 2 else {}


def _hold_out_passages(
    texts: Texts, cuts: dict[int, int], held_out: HashSet
) -> dict[int, list[Span]]:
    """Return the spans of the texts that have held-out passages before their cut."""
    split: dict[int, list[Span]] = {}
    for text, cut in cuts.items():
        shingles = texts.shingles_of(text)
        spans, position = [], 0
        for start, end in passages(shingles.select(shingles.ends <= cut), held_out):
            spans += [(position, start, False), (start, end, True)]
            position = end
        if spans:
            spans += [(position, cut, False), (cut, int(texts.lengths[text]), True)]
            split[text] = [span for span in spans if span[0] < span[1]]
    return split
