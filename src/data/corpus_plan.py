"""Plan the split of a corpus that has texts and conversations: each kind by itself."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import numpy as np

from ..errors import AGI2Error
from ..utils import log, plural
from .corpus_options import CorpusOptions
from .preferences import number_prompts
from .resemblance import ReadTexts
from .scan import Scan
from .split_plan import SplitPlan
from .splits import plan_corpus


def plan_groups(
    scan: Scan,
    options: CorpusOptions,
    documents: Sequence[Sequence[int]],
    sketches: np.ndarray,
    texts: Iterable[str] = (),
    read: ReadTexts | None = None,
) -> SplitPlan:
    """Plan the split of texts, and of conversations or pairs; see `splits.plan_corpus`.

    Args:
        scan: the scan of the corpus.
        options: how to split it.
        documents: number of documents of each source, by groups (see `CorpusOptions.groups`).
        sketches: the sketches of the documents.
        texts: the texts of the documents, which are read if these are pairs.
        read: reads the texts of some documents.

    Raises:
        AGI2Error: if nothing is left to train on.
    """
    plan = _plan_kinds(scan, options, documents, sketches, texts, read)
    if plan.holds_out and not plan.trains:
        fraction = options.val_fraction
        raise AGI2Error(f"nothing is left to train on: lower val_fraction, {fraction}")
    return plan


def _plan_kinds(
    scan: Scan,
    options: CorpusOptions,
    documents: Sequence[Sequence[int]],
    sketches: np.ndarray,
    texts: Iterable[str],
    read: ReadTexts | None,
) -> SplitPlan:
    counts = [sum(each) for each in documents]
    first_conversation = counts[0] + counts[1]
    keys = (options.val_fraction, options.seed)

    def plan_texts(scan: Scan) -> SplitPlan:
        own = options.dedup, sketches[:first_conversation]
        return plan_corpus(scan, *keys, counts[0], *own, read=read)

    def plan_conversations(scan: Scan) -> SplitPlan:
        own = options.dedup, sketches[first_conversation:]
        reads = None if read is None else lambda each: read(each + first_conversation)
        return plan_corpus(scan, *keys, counts[2], *own, "val_conversations", read=reads)

    if options.preferences:
        return _plan_pairs(scan, options, counts[4], sketches, number_prompts(texts), read)
    if first_conversation == len(scan):
        return plan_texts(scan)
    if not first_conversation:
        return plan_conversations(scan)
    is_text = np.arange(len(scan)) < first_conversation
    return _join(plan_texts(scan.select(is_text)), plan_conversations(scan.select(~is_text)))


def _plan_pairs(
    scan: Scan,
    options: CorpusOptions,
    first_val: int,
    sketches: np.ndarray,
    prompts: np.ndarray,
    read: ReadTexts | None,
) -> SplitPlan:
    """Plan the split of pairs; log how many held-out ones have a prompt of training pairs."""
    keys = options.val_fraction, options.seed, first_val, options.dedup, sketches
    plan = plan_corpus(scan, *keys, "val_preferences", prompts, read)
    is_removed = np.zeros(len(prompts), bool) if plan.removed is None else plan.removed
    held_out, train = (prompts[side & ~is_removed] for side in (plan.cuts <= 0, plan.cuts > 0))
    if shared := int(np.isin(held_out, train).sum()):
        log.warning(
            "the prompt of %s is that of a training pair, too: the validation loss is lower than "
            "on new prompts",
            plural(shared, "held-out pair"),
        )
    return plan


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
