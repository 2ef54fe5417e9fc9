"""Conversation with a model: `InteractivePrompt`, and a chat in the terminal."""

from __future__ import annotations

import threading
from collections.abc import Generator, Iterator
from contextlib import closing, contextmanager
from typing import Any

from .arguments import NonNegativeInt, PositiveInt, checked, convert
from .errors import AGI2Error
from .generation import stream_text
from .inference.detokenizer import stop_strings
from .inference.model_runner import Decoder
from .inference.sampling import SamplingOptions
from .model import GPT2Model
from .tokenizer import Tokenizer
from .utils import log, plural

TURN_END = "\n\n"
"""What separates the turns of a conversation; a reply ends there."""


class InteractivePrompt:
    """A conversation that the model sees as text, as much of it as the context holds.

    What the model has read it need not read again: a reply costs its own tokens and the message's,
    however long the conversation is.

    Args:
        model: a trained model. Where its weights change, `clear_context` begins anew.
        max_context_length: tokens of conversation before each reply. Where the model's positions
            have no room for so many and the reply, fewer are used: see `context_limit`.
        tokenizer: the model's.
        model_seed: text that always stands first.
        max_length: new tokens of a reply at most.
        seed: makes the whole conversation repeatable.
        **options: what `generation.stream_text` takes (temperature, top_k, ...).

    One reply at a time: a message, or `clear_context`, while another reply is generated is
    refused. Any number of conversations may share a model.

    Raises:
        AGI2Error: where `model_seed` leaves no room in the context, or an option is wrong.
    """

    @checked
    def __init__(
        self,
        model: GPT2Model,
        max_context_length: int,
        tokenizer: Tokenizer,
        *,
        model_seed: str = "",
        max_length: PositiveInt = 100,
        seed: NonNegativeInt | None = None,
        **options: Any,
    ) -> None:
        if max_context_length < 1:
            raise AGI2Error(f"max_context_length must be at least 1, not {max_context_length}")
        self.model = model
        self.tokenizer = tokenizer
        self.max_context_length = max_context_length
        """As it was given; `context_limit` is what is used."""
        self.max_length = max_length
        self.seed = seed
        self.options = {"temperature": 0.8, **options}
        given = SamplingOptions(max_length, **self.options)  # which checks them
        self.options["stop"] = [TURN_END, *stop_strings(given.stop)]
        self.history: list[str] = []
        """What was said: messages and replies in turn, those still in the context."""
        # A turn's tokens are the same whatever turn follows, so that they are read once; two line
        # ends that text follows are two tokens for GPT-2's rules. A tokenizer that folds white
        # space cannot write the turn's end: it ends with the text's.
        turn_end = [token for character in TURN_END for token in tokenizer.encode(character)]
        writes_it = tokenizer.decode(turn_end) == TURN_END
        self._turn_end = turn_end if writes_it else [tokenizer.end_of_text]
        self._seed_tokens = tokenizer.encode(model_seed) if model_seed else []
        self._room()
        if self.context_limit < max_context_length:
            log.info(
                "max_context_length %d: the model's %d positions have room for %d beside a reply",
                max_context_length,
                model.config.max_seq_len,
                self.context_limit,
            )
        self._turns = 0
        self._decoder = Decoder(model, tokenizer.vocab_size)
        self._replying = threading.Lock()

    @property
    def context_limit(self) -> int:
        """The tokens of conversation before each reply, at most.

        `max_context_length`, but no more than leave room in the model's positions for a reply of
        `max_length`, or half the positions where that is more.
        """
        positions = self.model.config.max_seq_len
        return min(self.max_context_length, max(positions - self.max_length, (positions + 1) // 2))

    def _room(self) -> int:
        """Tokens of the context that `model_seed` leaves."""
        room = self.context_limit - len(self._seed_tokens)
        if room < 1:
            raise AGI2Error(
                f"model_seed has {plural(len(self._seed_tokens), 'token')}: a context of "
                f"{self.context_limit} has no room for a message"
            )
        return room

    def send_message(self, text: str) -> str:
        """Say something; return the reply alone."""
        return "".join(self.stream_message(text)).rstrip()

    def stream_message(self, text: str) -> Generator[str, None, None]:
        """Say something; yield the reply in pieces. What was yielded is remembered, even when
        the caller stops half-way.

        Raises:
            AGI2Error: where another reply is being generated: exhaust or close its generator first.
        """
        text = convert(str, "text", text)
        with self._one_at_a_time():
            yield from self._reply_to(text)

    @contextmanager
    def _one_at_a_time(self) -> Iterator[None]:
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
        self._room()  # a message that is refused is not remembered
        self.history.append(text)
        reply = ""
        seed = None if self.seed is None else self.seed + self._turns
        self._turns += 1
        pieces = stream_text(
            self.model,
            self.context_tokens(),
            self.max_length,
            tokenizer=self.tokenizer,
            skip_leading_space=True,
            seed=seed,
            decoder=self._decoder,
            **self.options,
        )
        try:
            with closing(pieces):
                for piece in pieces:
                    reply += piece
                    yield piece
        finally:
            self.history.append(reply.rstrip())

    def clear_context(self) -> None:
        """Forget the conversation; `model_seed` stays.

        Raises:
            AGI2Error: where a reply is being generated.
        """
        with self._one_at_a_time():
            self.history.clear()
            self._turns = 0
            self._decoder = Decoder(self.model, self.tokenizer.vocab_size)

    def context_tokens(self) -> list[int]:
        """The conversation as tokens, at most `context_limit`.

        Where it grows too long, whole turns are forgotten from the oldest on, until a quarter of
        the context is free: what stays must be read again, which is not to happen at each message.
        A single message that is still too long keeps its last tokens, with a warning.
        """
        room = self._room()
        turns = [self.tokenizer.encode(turn) + self._turn_end for turn in self.history]
        length = sum(map(len, turns))
        if length > room:
            while len(turns) > 1 and length > room - room // 4:
                length -= len(turns.pop(0))
            del self.history[: len(self.history) - len(turns)]
        if length > room:
            log.warning("the message is longer than the context: only its end is seen")
        return self._seed_tokens + [token for turn in turns for token in turn][-room:]
