"""`agi2 data prepare`: tokenize the text of a run before it is trained."""

from __future__ import annotations

import time
from collections.abc import Iterator

from ..config import Config
from ..data.build import Corpus, prepare_corpus
from ..data.parts import prepare_part
from ..data.shards import ShardedTokens
from ..data.shared_tasks import Part
from ..data.token_cache import find_cache
from ..errors import AGI2Error
from ..train.checkpoint import find_checkpoint
from ..train.setup import corpus_options, tokenizer_source
from ..utils import human_bytes, human_time, plural


def prepare_data(config: Config, part: str | None = None) -> Iterator[str]:
    """Tokenize the text of a configuration; yield lines that describe the result.

    Args:
        config: the configuration of a training run.
        part: `K/N`, if N processes share the work.

    Raises:
        AGI2Error: if the tokens cannot be kept, or the text cannot be read.
    """
    which = None if part is None else Part.parse(part)
    if find_cache(config.token_cache) is None:
        raise AGI2Error("the tokens would not be kept: set token_cache to a folder")
    start = time.perf_counter()
    options, source = corpus_options(config), tokenizer_source(config, find_checkpoint(config))
    if which is None:
        corpus = prepare_corpus(options, source, config.token_cache)
    else:
        corpus = prepare_part(options, source, config.token_cache, which)
    kind = "pair" if config.preferences else "conversation"
    yield from _describe(corpus, time.perf_counter() - start, kind)


def _describe(corpus: Corpus, seconds: float, kind: str) -> Iterator[str]:
    sizes = [plural(corpus.documents, "document"), plural(corpus.characters, "character")]
    yield f"text: {', '.join([*sizes, human_bytes(corpus.size)])}"
    for name, tokens in (("training", corpus.train), ("validation", corpus.val)):
        yield f"{name}: {_describe_tokens(tokens, kind)}"
    yield f"tokenizer: {plural(corpus.tokenizer.vocab_size, 'token')}"
    speed = f", {corpus.size / seconds / 1e6:.1f} MB/s" if corpus.is_new else ": it was there"
    yield f"prepared in {human_time(seconds)}{speed}"
    yield f"corpus: {corpus.folder}"


def _describe_tokens(tokens: ShardedTokens, kind: str) -> str:
    figures = tokens.figures
    whole, parts = figures.documents - figures.parts, figures.parts
    counts = [plural(whole, "document")] if whole or not parts else []
    if parts:
        counts.append(plural(parts, "part of a document", "parts of documents"))
    line = " and ".join(counts)
    if figures.conversations:
        line += f" ({plural(figures.conversations, kind)})"
    line += f", {plural(figures.tokens, 'token')}"
    if figures.text_bytes:
        line += f", {figures.text_bytes / figures.tokens:.2f} bytes per token"
    return line
