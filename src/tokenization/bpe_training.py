"""Train a byte-level BPE vocabulary: in C (`nn.bpe_library`), or by the `tokenizers` library.

Both give the same vocabulary. Texts are streamed: only their distinct words are kept.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator
from itertools import chain, repeat

import tokenizers
from tokenizers import models, pre_tokenizers, trainers

from ..config_keys import PreTokenizer
from ..nn import bpe_library
from ..utils import human_bytes, log, plural
from .base import END_OF_TEXT
from .bpe_engine import KINDS, batches_of_pieces, join_pieces
from .byte_level import BYTE_OF, byte_level, special_token, splitter_of
from .pieces import SpacelessSample, split_text
from .threads import map_in_threads

# Longer words are split for training, since each merge rescans all the words that contain it.
_MAX_WORD = 256
# Maximum characters of text without spaces to train on: each takes up to 100 bytes of memory. Of
# more, a sample is counted, as often as it stands for.
_MAX_SPACELESS_CHARACTERS = 4_000_000
# Maximum distinct words, and of their bytes; beyond, the rarest are dropped. A word takes some 40
# bytes and 10 times its own, and the pairs of tokens up to as much again.
_MAX_WORDS = 1_000_000
_MAX_BYTES = 16_000_000


def train(
    texts: Iterable[str],
    size_for: Callable[[int], int],
    pretokenizer: PreTokenizer,
    split_digits: bool,
) -> tokenizers.Tokenizer:
    """Train a vocabulary: the end-of-text token, the 256 bytes, then the most frequent merges.

    Of much text without spaces a sample is used, which is logged.

    Args:
        texts: well-formed texts.
        size_for: returns the maximum vocabulary size, 257 or more, for a number of bytes of text.
        pretokenizer: as for `byte_level`.
        split_digits: as for `byte_level`.
    """
    sample = SpacelessSample(_MAX_SPACELESS_CHARACTERS)
    stretches = (split_text(part, _MAX_WORD) for text in texts for part in sample.take(text))
    train_by = _train_by_library if bpe_library.LIBRARY is None else _train_in_c
    tokenizer = byte_level(models.BPE(), pretokenizer, split_digits)
    train_by(tokenizer, stretches, sample, size_for)
    if sample.rate > 1:
        log.info(
            "the vocabulary is trained on 1 in %s of the %s characters that have few spaces",
            f"{sample.rate:,}",
            f"{sample.characters:,}",
        )
    return tokenizer


def _train_by_library(
    tokenizer: tokenizers.Tokenizer,
    texts: Iterable[Iterator[str]],
    sample: SpacelessSample,
    size_for: Callable[[int], int],
) -> None:
    pieces = [piece for pieces in texts for piece in pieces]  # the trainer needs the size first
    sampled = [piece for part in sample.stretches for piece in split_text(part, _MAX_WORD)]
    size, sampled_size = (sum(len(each.encode()) for each in part) for part in (pieces, sampled))
    trainer = trainers.BpeTrainer(
        vocab_size=size_for(size + sample.rate * sampled_size),
        special_tokens=[END_OF_TEXT],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    repeated = chain.from_iterable(repeat(sampled, sample.rate))
    tokenizer.train_from_iterator(chain(pieces, repeated), trainer)


def _train_in_c(
    tokenizer: tokenizers.Tokenizer,
    texts: Iterable[Iterator[str]],
    sample: SpacelessSample,
    size_for: Callable[[int], int],
) -> None:
    splitter = splitter_of(json.loads(tokenizer.to_str())["pre_tokenizer"])
    assert splitter is not None
    trainer = bpe_library.Trainer(KINDS, splitter, _MAX_WORDS, _MAX_BYTES)

    def count(pieces: list[bytes], weight: int = 1) -> int:
        text, ends = join_pieces(pieces)
        trainer.count(text, ends, weight)
        return len(text) * weight

    # In one other thread, in order: words are counted while the next text is read.
    text_bytes = sum(map_in_threads(count, batches_of_pieces(texts), 1))
    trainer.end_count()
    for pieces in batches_of_pieces(split_text(each, _MAX_WORD) for each in sample.stretches):
        text_bytes += count(pieces, sample.rate)
    if trainer.min_count:
        log.info(
            "the vocabulary is trained without the words that occur up to %s, as there are more "
            "than %s distinct ones, or %s of them",
            plural(trainer.min_count, "time"),
            f"{_MAX_WORDS:,}",
            human_bytes(_MAX_BYTES),
        )
    names = [END_OF_TEXT, *BYTE_OF]
    vocab = {name: id for id, name in enumerate(names)}
    ranks: dict[tuple[str, str], int] = {}
    for _ in trainer.merge(bytes(BYTE_OF.values()), 1, size_for(text_bytes)):
        pass
    for rank, (left, right, id) in enumerate(trainer.merges().tolist()):
        if id == len(names):
            names.append(names[left] + names[right])
            vocab[names[-1]] = id
        ranks[names[left], names[right]] = rank  # of equal merges, the last one counts
    tokenizer.model = models.BPE(vocab, sorted(ranks, key=ranks.__getitem__))
    tokenizer.add_special_tokens([special_token(END_OF_TEXT)])
