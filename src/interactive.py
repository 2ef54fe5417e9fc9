"""Multi-turn conversation with a model: `InteractivePrompt`."""

from __future__ import annotations

import threading
from collections.abc import Generator, Iterator
from contextlib import closing, contextmanager
from typing import Any

from .arguments import NonNegativeInt, checked, convert
from .errors import AGI2Error
from .generation import stream_configured
from .inference.detokenizer import stop_strings
from .inference.model_runner import ModelRunner
from .inference.sampling import sampling_config
from .model import GPT2Model
from .tokenizer import Tokenizer
from .utils import log, plural

TURN_END = "\n\n"
"""Separator of the turns of a conversation, and stop string of a reply."""


class InteractivePrompt:
    """A multi-turn conversation, kept as plain text in the model's context.

    The KV cache is kept between turns (prefix caching): a turn prefills only the new message,
    however long the conversation is.

    Args:
        model: a trained model. After its weights change, call `clear_context`.
        max_context_length: maximum number of conversation tokens before each reply. Fewer are used
            if the model's positions cannot hold them and a reply: see `context_limit`.
        tokenizer: the model's tokenizer.
        model_seed: text that precedes the conversation and is never dropped.
        max_length: maximum number of new tokens of a reply.
        seed: random seed that makes the conversation reproducible.
        **options: sampling options of `generation.stream_text` (temperature, top_k, ...).

    Not reentrant: `stream_message` and `clear_context` raise while a reply is being generated.
    Several conversations may share a model.

    Raises:
        AGI2Error: if `model_seed` fills the context, or an option is invalid.
    """

    @checked
    def __init__(
        self,
        model: GPT2Model,
        max_context_length: int,
        tokenizer: Tokenizer,
        *,
        model_seed: str = "",
        max_length: int = 100,
        seed: NonNegativeInt | None = None,
        **options: Any,
    ) -> None:
        if max_context_length < 1:
            raise AGI2Error(f"max_context_length must be at least 1, not {max_context_length}")
        self.model = model
        self.tokenizer = tokenizer
        self.max_context_length = max_context_length
        """The value as given; `context_limit` is the effective one."""
        self.max_length = max_length
        self.seed = seed
        config = sampling_config(max_length=max_length, **options)
        stop = [TURN_END, *stop_strings(config.stop)]
        self.config = config.model_copy(update={"stop": stop})
        """How replies are generated."""
        self.history: list[str] = []
        """Messages and replies, alternating, as far as they are still in the context."""
        self._turn_end = _encode_turn_end(tokenizer)
        self._seed_tokens = tokenizer.encode(model_seed) if model_seed else []
        self._context_budget()
        if self.context_limit < max_context_length:
            log.info(
                "max_context_length %d: the model's %d positions leave %d in addition to "
                "a reply",
                max_context_length,
                model.config.max_seq_len,
                self.context_limit,
            )
        self._turns = 0
        self._runner = ModelRunner(model, tokenizer.vocab_size)
        self._replying = threading.Lock()

    @property
    def context_limit(self) -> int:
        """Maximum number of conversation tokens before each reply.

        `max_context_length`, limited to the model's positions less `max_length`, or to half of the
        positions if that is more.
        """
        positions = self.model.config.max_seq_len
        return min(self.max_context_length, max(positions - self.max_length, (positions + 1) // 2))

    def _context_budget(self) -> int:
        """Return the number of context tokens left by `model_seed`.

        Raises:
            AGI2Error: if none are left.
        """
        budget = self.context_limit - len(self._seed_tokens)
        if budget < 1:
            raise AGI2Error(
                f"model_seed has {plural(len(self._seed_tokens), 'token')}: a context of "
                f"{self.context_limit} leaves no tokens for a message"
            )
        return budget

    def send_message(self, text: str) -> str:
        """Send a message and return the reply."""
        return "".join(self.stream_message(text)).rstrip()

    def stream_message(self, text: str) -> Generator[str, None, None]:
        """Send a message and stream the reply in pieces of text.

        What was yielded is added to the history, even if the caller closes the generator early.

        Raises:
            AGI2Error: if another reply is being generated: exhaust or close its generator first.
        """
        text = convert(str, "text", text)
        with self._exclusive():
            yield from self._reply_to(text)

    @contextmanager
    def _exclusive(self) -> Iterator[None]:
        if not self._replying.acquire(blocking=False):
            raise AGI2Error(
                "a reply of this conversation is still being generated: finish it, or close its "
                "generator, first"
            )
        try:
            yield
        finally:
            self._replying.release()

    def _reply_to(self, text: str) -> Generator[str, None, None]:
        self._context_budget()  # raises before the message is added to the history
        self.history.append(text)
        reply = ""
        seed = None if self.seed is None else self.seed + self._turns
        self._turns += 1
        pieces = stream_configured(
            self.model,
            self.context_tokens(),
            self.config,
            self.tokenizer,
            skip_leading_space=True,
            seed=seed,
            runner=self._runner,
        )
        try:
            with closing(pieces):
                for piece in pieces:
                    reply += piece
                    yield piece
        finally:
            self.history.append(reply.rstrip())

    def clear_context(self) -> None:
        """Clear the history and the KV cache; `model_seed` is kept.

        Raises:
            AGI2Error: if a reply is being generated.
        """
        with self._exclusive():
            self.history.clear()
            self._turns = 0
            self._runner = ModelRunner(self.model, self.tokenizer.vocab_size)

    def context_tokens(self) -> list[int]:
        """Return the conversation as token ids, at most `context_limit`.

        If it is too long, the oldest turns are dropped from the history until a quarter of the
        context is free: dropping turns invalidates the KV cache, which must not happen at every
        message. A single message that is still too long is truncated to its last tokens, with a
        warning.
        """
        budget = self._context_budget()
        turns = [self.tokenizer.encode(turn) + self._turn_end for turn in self.history]
        length = sum(map(len, turns))
        if length > budget:
            while len(turns) > 1 and length > budget - budget // 4:
                length -= len(turns.pop(0))
            del self.history[: len(self.history) - len(turns)]
        if length > budget:
            log.warning("the message is longer than the context: only its end is used")
        return self._seed_tokens + [token for turn in turns for token in turn][-budget:]


def _encode_turn_end(tokenizer: Tokenizer) -> list[int]:
    """Return the tokens that end a turn.

    Each turn is encoded by itself and its end character by character: GPT-2's pre-tokenizer splits
    "\\n\\n" before text, and the tokens of a turn must not depend on the next turn, or the cached
    prefix would not match. A tokenizer that folds white space cannot represent the separator:
    turns then end with the end-of-text token.
    """
    turn_end = [token for character in TURN_END for token in tokenizer.encode(character)]
    return turn_end if tokenizer.decode(turn_end) == TURN_END else [tokenizer.end_of_text]
