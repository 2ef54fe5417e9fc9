"""Multi-turn conversation with a model: `InteractivePrompt`."""

from __future__ import annotations

import time
from collections.abc import Generator, Iterable, Iterator
from contextlib import closing
from dataclasses import dataclass
from typing import Any

from .arguments import NonNegativeInt, PositiveInt, checked, convert
from .config_keys import GenerationConfig
from .data.chat_context import TURN_END as TURN_END  # also a name of this module
from .data.chat_context import Trimmed as Trimmed
from .data.chat_template import Message
from .data.dialogue import Dialogue
from .errors import AGI2Error
from .generation import Choice, stream_request
from .inference.choices import choices_of
from .inference.detokenizer import stop_strings
from .inference.model_runner import ModelRunner
from .inference.requests import text_request, with_token_ids
from .inference.sampling import sampling_config
from .inference.sequence import FinishReason
from .inference.sequence import Sequence as Request
from .model import GPT2Model
from .tokenizer import Tokenizer
from .utils import log

RUNNERS_UP = 4
"""Number of alternatives in `InteractivePrompt.choices`."""
# Distance between the seeds of replies to the same message; a conversation has fewer turns.
_ATTEMPT_STRIDE = 1_000_003


@dataclass(frozen=True)
class Reply:
    """Figures of a reply."""

    new_tokens: int
    """Number of its tokens, the end token aside."""
    seconds: float
    """Time that the model took, prefill included."""
    context_tokens: int
    """Number of tokens before the reply."""
    reused_tokens: int
    """How many of them were in the KV cache already."""
    finish_reason: FinishReason | None
    """Why it ended; None after an error."""
    trimmed: Trimmed
    """What was left out of the context since the reply before."""

    @property
    def tokens_per_second(self) -> float:
        """New tokens per second."""
        return self.new_tokens / self.seconds if self.seconds else 0.0


class InteractivePrompt(Dialogue):
    """A multi-turn conversation, kept in the model's context.

    If the model's tokenizer has a chat template, messages have roles and a reply ends at
    `<|end|>`. Otherwise messages and replies are turns of plain text, and an empty line ends a
    reply. The KV cache is kept between turns (prefix caching): a turn prefills only what is new,
    however long the conversation is, also after `undo`, `retry`, `edit` and `switch_branch`.

    Args:
        model: a trained model. After its weights change, call `clear_context`.
        max_context_length: maximum number of conversation tokens before each reply. Fewer are used
            if the model's positions cannot hold them and a reply: see `context_limit`.
        tokenizer: the model's tokenizer.
        model_seed: text that precedes the conversation and is never dropped: with a chat template,
            the same as `system`.
        max_length: maximum number of new tokens of a reply.
        seed: random seed that makes the conversation reproducible.
        system: the system message, which is never dropped; needs a chat template.
        **options: sampling options of `generation.stream_text` (temperature, top_k, ...).

    Not reentrant: methods raise while a reply is being generated. Several conversations may share a
    model.

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
        system: str = "",
        **options: Any,
    ) -> None:
        super().__init__(tokenizer, model_seed, system)
        self.model = model
        self.max_context_length = max_context_length
        """The value as given; `context_limit` is the effective one."""
        self.max_length = max_length
        self.seed = seed
        self.last_reply: Reply | None = None
        """Figures of the last reply, such as what was trimmed before it; None before the first."""
        self.records_choices = False
        """Whether to keep the probabilities of each reply's tokens, for `choices`."""
        self._request: Request | None = None
        self._options = options
        self.config = self._sampling_config(max_length, options)
        """How replies are generated."""
        self._check_limits()
        self._log_limit()
        self._runner = ModelRunner(model, tokenizer.vocab_size)
        if not self.has_roles:
            log.info("the model has no chat template: messages are turns of plain text")

    def _sampling_config(self, max_length: int, options: dict[str, Any]) -> GenerationConfig:
        config = sampling_config(max_length=max_length, **options)
        turn_end = [] if self.has_roles else [TURN_END]
        return config.model_copy(update={"stop": [*turn_end, *stop_strings(config.stop)]})

    def _check_limits(self) -> None:
        if self.max_context_length < 1:
            raise AGI2Error(f"max_context_length must be at least 1, not {self.max_context_length}")
        self._context.budget(self.system, self.context_limit)

    def _log_limit(self) -> None:
        if self.context_limit < self.max_context_length:
            log.info(
                "max_context_length %d: the model's %d positions leave %d in addition to "
                "a reply",
                self.max_context_length,
                self.model.config.max_seq_len,
                self.context_limit,
            )

    @property
    def context_limit(self) -> int:
        """Maximum number of conversation tokens before each reply.

        `max_context_length`, limited to the model's positions less `max_length`, or to half of the
        positions if that is more.
        """
        positions = self.model.config.max_seq_len
        return min(self.max_context_length, max(positions - self.max_length, (positions + 1) // 2))

    @checked
    def configure(
        self,
        *,
        max_context_length: int | None = None,
        max_length: int | None = None,
        seed: NonNegativeInt | None = None,
        **options: Any,
    ) -> None:
        """Change options from the next reply on; those that are not given stay.

        Raises:
            AGI2Error: if one is invalid; all options are then as they were.
        """
        with self._exclusive():
            before, limit = dict(self.__dict__), self.context_limit
            try:
                if max_context_length is not None:
                    self.max_context_length = max_context_length
                self.max_length = self.max_length if max_length is None else max_length
                self.seed = self.seed if seed is None else seed
                self._options = {**self._options, **options}
                self.config = self._sampling_config(self.max_length, self._options)
                with_token_ids(self.config, self.tokenizer)
                self._check_limits()
            except AGI2Error:
                self.__dict__.update(before)
                raise
            if max_context_length is not None or self.context_limit != limit:
                self._log_limit()

    def send_message(self, text: str) -> str:
        """Send a message and return the reply."""
        return self._stripped("".join(self.stream_message(text)))

    def stream_message(self, text: str) -> Generator[str, None, None]:
        """Send a message and stream the reply in pieces of text.

        What was yielded is added to the history, even if the caller closes the generator early.

        Raises:
            AGI2Error: if another reply is being generated: exhaust or close its generator first; or
                the message is empty and the model has a chat template.
        """
        text = convert(str, "text", text)
        with self._exclusive():
            yield from self._send(text, len(self._tree.turns))

    def retry(self) -> str:
        """Return another reply to the last message; the old one stays in a branch of its own."""
        return self._stripped("".join(self.stream_retry()))

    def stream_retry(self) -> Generator[str, None, None]:
        """Stream another reply to the last message, sampled with another seed.

        Raises:
            AGI2Error: if there is no message.
        """
        with self._exclusive():
            last = self._user_turns("there is no message to reply to")[-1]
            self._context.budget(self.system, self.context_limit)
            self._tree.go_back(last + 1)
            yield from self._reply()

    def edit(self, text: str, number: int | None = None) -> str:
        """Replace a message and return the reply to it; see `stream_edit`."""
        return self._stripped("".join(self.stream_edit(text, number)))

    def stream_edit(self, text: str, number: int | None = None) -> Generator[str, None, None]:
        """Replace a message and stream the reply; what was there stays in a branch of its own.

        Args:
            text: the new message.
            number: which of the user's messages, from 1; by default the last.

        Raises:
            AGI2Error: if there is no such message.
        """
        text = convert(str, "text", text)
        number = convert(PositiveInt | None, "number", number)
        with self._exclusive():
            yield from self._send(text, self._user_turn(number))

    def clear_context(self) -> None:
        """Clear the history, its branches and the KV cache; the system message is kept.

        Raises:
            AGI2Error: if a reply is being generated.
        """
        with self._exclusive():
            self._clear()
            self._runner = ModelRunner(self.model, self.tokenizer.vocab_size)

    def _send(self, text: str, position: int) -> Generator[str, None, None]:
        """Put a user's message behind the first `position` messages, and generate the reply."""
        self._context.budget(self.system, self.context_limit)  # raises before anything changes
        text = self._stripped(text) if self.has_roles else text
        if self.has_roles and not text:
            raise AGI2Error("the message is empty")
        turns = self._tree.turns[:position]
        if self.has_roles and turns and turns[-1].role == "user":
            raise AGI2Error("the last message has no reply yet: retry it, or undo it")
        self._tree.go_back(position)
        self._tree.append(Message("user", text))
        yield from self._reply()

    def _reply(self) -> Generator[str, None, None]:
        """Generate the reply to the last message."""
        asked = self._tree.node
        ids, trimmed = self._context.tokens(self._tree, self.context_limit)
        self._show_history()
        self._request = request = text_request(
            ids,
            with_token_ids(self.config, self.tokenizer),
            self.model,
            self.tokenizer,
            skip_leading_space=True,
            drops_incomplete=True,
            end_tokens=self._context.end_tokens,
            seed=self._next_seed(),
            top=RUNNERS_UP + 1 if self.records_choices else None,
        )
        self._runner.reserve_rows(1)
        reused = self._runner.reusable(0, request.window)
        asked.attempts += 1
        reply, clock = "", _Clock()
        pieces = stream_request(self._runner, request)
        try:
            with closing(pieces):
                for piece in clock.measure(pieces):
                    reply += piece
                    yield piece
        finally:
            self._tree.append(Message("assistant", self._stripped(reply)), is_generated=True)
            self._show_history()
            self.last_reply = Reply(
                len(request.new_tokens),
                clock.seconds,
                len(ids),
                reused,
                request.finish_reason,
                trimmed,
            )

    def _stripped(self, text: str) -> str:
        return text.strip() if self.has_roles else text.rstrip()

    def _next_seed(self) -> int | None:
        """Return the seed of the next reply: a function of `seed`, the turn and the attempt."""
        if self.seed is None:
            return None
        turn = sum(node.is_generated for node in self._tree.path)
        return self.seed + turn + _ATTEMPT_STRIDE * self._tree.node.attempts

    @property
    def choices(self) -> list[Choice]:
        """The tokens of the last reply with their probabilities and alternatives.

        Raises:
            AGI2Error: if they were not recorded: see `records_choices`.
        """
        request = self._request
        if request is None:
            raise AGI2Error("there is no reply yet")
        if len(request.probabilities) < len(request.new_tokens):
            raise AGI2Error(
                "the probabilities of the last reply were not recorded: set records_choices "
                'before, and speculative = "none"'
            )
        return choices_of(request, self.tokenizer, RUNNERS_UP, skip_leading_space=True)


class _Clock:
    """Measures the time that a generator takes, without that of its consumer."""

    def __init__(self) -> None:
        self.seconds = 0.0

    def measure(self, pieces: Iterable[str]) -> Iterator[str]:
        """Yield the pieces."""
        iterator = iter(pieces)
        while True:
            start = time.perf_counter()
            try:
                piece = next(iterator)
            except StopIteration:
                return
            finally:
                self.seconds += time.perf_counter() - start
            yield piece
