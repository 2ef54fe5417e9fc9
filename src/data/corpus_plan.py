"""Plan the split of a corpus that has texts and conversations: each kind by itself."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from .corpus_options import CorpusOptions
from .scan import Scan
from .split_plan import SplitPlan
from .splits import plan_corpus


def plan_groups(
    scan: Scan, options: CorpusOptions, documents: Sequence[Sequence[int]], sketches: np.ndarray
) -> SplitPlan:
    """Plan the split of texts, and of conversations or pairs; see `splits.plan_corpus`.

    Args:
        scan: the scan of the corpus.
        options: how to split it.
        documents: number of documents of each source, by groups (see `CorpusOptions.groups`).
        sketches: the sketches of the documents.

    Raises:
        AGI2Error: if nothing is left to train on.
    """
    counts = [sum(each) for each in documents]
    texts = counts[0] + counts[1]
    keys = (options.val_fraction, options.seed)

    def plan_texts(scan: Scan) -> SplitPlan:
        return plan_corpus(scan, *keys, counts[0], options.dedup, sketches[:texts])

    def plan_conversations(scan: Scan) -> SplitPlan:
        kind = "val_preferences" if options.preferences else "val_conversations"
        first_val = counts[4] if options.preferences else counts[2]
        return plan_corpus(scan, *keys, first_val, options.dedup, sketches[texts:], kind)

    if texts == len(scan):
        return plan_texts(scan)
    if not texts:
        return plan_conversations(scan)
    is_text = np.arange(len(scan)) < texts
    return _join(plan_texts(scan.select(is_text)), plan_conversations(scan.select(~is_text)))


def _join(texts: SplitPlan, conversations: SplitPlan) -> SplitPlan:
    characters = np.concatenate([texts.characters, conversations.characters])
    cuts = np.concatenate([texts.cuts, conversations.cuts])
    removed = [
        np.zeros(len(plan.cuts), bool) if plan.removed is None else plan.removed
        for plan in (texts, conversations)
    ]
    is_removed = np.concatenate(removed)
    # Conversations are not split at several places.
    return SplitPlan(characters, cuts, texts.exceptions, is_removed if is_removed.any() else None)
