"""A sequence: the state of one request: tokens, sliding window, finished text. No model."""

from __future__ import annotations

import random
from collections import deque
from collections.abc import Iterable
from functools import lru_cache
from typing import Literal

import torch

from ..config_keys import GenerationConfig
from .detokenizer import IncrementalDetokenizer
from .logprobs import TokenLogprobs, TokenProbability, token_logprobs
from .sampling import NO_TOKEN, EndToken, end_ids

_NO_TOKENS: list[int] = []
"""Not to be changed."""
FinishReason = Literal["end_token", "stop", "length", "masked", "cancelled", "deadline", "error"]
"""Why a sequence has ended: an end token; a stop string, the end of a sentence or a stopping
criterion; `max_length`; no token left to choose; its consumer no longer needs it; its deadline has
passed; or computing it has failed (see `Sequence.error`)."""


class Sequence:
    """One request: its tokens, sampling parameters, random generator and detokenizer.

    The model attends to a window of the last tokens, at most `positions`. A full window slides: its
    older half is dropped and the rest is prefilled again, which keeps the amortized cost per token
    small. `computed` of the window's tokens have keys and values in the KV cache.

    One thread changes it. Others may read `tokens`, `logprobs`, `text`, `finish_reason` and
    `error`, and one of them may call `take_pieces`, without a lock: tokens and pieces are only
    appended, the log-probability of a token before the token, and `finish_reason` is set last.
    Read it first: if it is not None, all that is read after it is final.

    Args:
        prompt: token ids, at least one.
        options: sampling parameters, with `logit_bias` by token id.
        positions: number of tokens that the model can attend to.
        end_token: ends the sequence; one or several.
        seed: makes sampling reproducible, whatever else runs; None for a random seed.
        detokenizer: turns new tokens into text and ends it; None for token ids alone.
        top: number of most probable tokens to record for each new token, in `logprobs`; None
            records none.
        named_tokens: ids of tokens whose log-probabilities are recorded, too.
        prompt_logprobs: whether to record the same for the tokens of the prompt.
        max_new_tokens: in place of `options.max_length`; 0 only computes the prompt.
    """

    def __init__(
        self,
        prompt: Iterable[int],
        options: GenerationConfig,
        positions: int,
        *,
        end_token: EndToken = None,
        seed: int | None = None,
        detokenizer: IncrementalDetokenizer | None = None,
        top: int | None = None,
        named_tokens: Iterable[int] = (),
        prompt_logprobs: bool = False,
        max_new_tokens: int | None = None,
    ) -> None:
        self.tokens = [int(token) for token in prompt]
        self.prompt_length = len(self.tokens)
        self.options = options
        self.end_tokens = end_ids(end_token)
        self.top = top
        self._named_tokens = list(named_tokens)
        self.needs_logprobs = top is not None or bool(self._named_tokens)
        """Whether log-probabilities of new tokens are recorded."""
        self.logprobs: list[TokenLogprobs] = []
        """One for each new token, if `needs_logprobs`."""
        self.end_logprobs: list[tuple[int, TokenLogprobs]] = []
        """The end token at which it has ended, if it has at one and `needs_logprobs`."""
        self.needs_prompt_logprobs = prompt_logprobs
        """Whether log-probabilities of the prompt are recorded, so that it must be computed."""
        self.prompt_logprobs: list[TokenLogprobs | None] = []
        """One for each token of the prompt, if `needs_prompt_logprobs`; None for the first that the
        model attends to, and those before it."""
        self.computed = 0
        self.arrival = 0
        """Its place in the order of arrival, which the scheduler sets."""
        self.has_slid = False
        """Whether the window has lost tokens since the first step."""
        self.cached_tokens = 0
        """Tokens of the prompt whose keys and values were copied instead of computed."""
        self.finish_reason: FinishReason | None = None
        self.error: str | None = None
        """What has failed, if `finish_reason` is "error"."""
        self._positions = positions
        self._start = max(0, len(self.tokens) - positions)
        if prompt_logprobs:
            self.prompt_logprobs += [None] * (self._start + 1)
        self._random = random.Random(seed)
        self._uniform: float | None = None
        self._detokenizer = detokenizer
        self._pieces: deque[str] = deque()
        # Each step reads these.
        self.is_greedy = options.is_greedy
        self.sampling_key = _same_object((_sampling_key(options), self.end_tokens))
        """Sequences for which it is equal have the same logits processors."""
        self._needs_prompt = options.needs_prompt
        self._min_length = options.min_length if self.end_tokens else 0
        self._needs_new_tokens = bool(options.presence_penalty or options.frequency_penalty)
        self._needs_any = self._needs_prompt or self._needs_new_tokens or self._min_length > 0
        self.max_new_tokens = options.max_length if max_new_tokens is None else max_new_tokens
        self._max_tokens = self.prompt_length + self.max_new_tokens

    @property
    def new_tokens(self) -> list[int]:
        """The tokens after the prompt."""
        return self.tokens[self.prompt_length :]

    @property
    def probabilities(self) -> list[TokenProbability]:
        """The probabilities of the new tokens, if `needs_logprobs`."""
        return [each.probabilities for each in self.logprobs]

    @property
    def window(self) -> list[int]:
        """The tokens that the model attends to."""
        return self.tokens[self._start :]

    @property
    def pending(self) -> int:
        """Number of tokens of the window that are not in the KV cache: 1 in a decode step."""
        return len(self.tokens) - self._start - self.computed

    @property
    def fits_another(self) -> bool:
        """Whether a token can be appended without the window sliding."""
        return len(self.tokens) - self._start < self._positions

    @property
    def needs_another(self) -> bool:
        """Whether a token will be needed after the next one, unless that ends the sequence."""
        return len(self.tokens) + 1 < self._max_tokens

    def next_tokens(self, count: int) -> list[int]:
        """Return the first `count` pending tokens."""
        first = self._start + self.computed
        return self.tokens[first : first + count]

    @property
    def text(self) -> str:
        """The text so far; "" without a detokenizer."""
        return "" if self._detokenizer is None else self._detokenizer.text

    def take_pieces(self) -> list[str]:
        """Return the pieces of text that have become complete since the last call."""
        return [self._pieces.popleft() for _ in range(len(self._pieces))]

    def uniform(self) -> float:
        """Return the random number of the next token, in [0, 1): the same until it is appended."""
        if self._uniform is None:
            self._uniform = self._random.random()
        return self._uniform

    def processed_tokens(self) -> tuple[list[int], int]:
        """Return the tokens that the logits processors need, and how many of them are the prompt's.

        They are as few as possible: sequences of the same options are sampled together if they
        have as many of them. If only the number N of new tokens matters, [] and -N are returned.
        """
        if not self._needs_any:
            return _NO_TOKENS, 0
        if self._needs_prompt:
            return self.tokens, self.prompt_length
        if self._needs_new_tokens:
            return self.new_tokens, 0
        # The number of new tokens alone, as far as it is below `min_length`.
        count = len(self.tokens) - self.prompt_length
        return _NO_TOKENS, -min(count, self._min_length)

    def append(self, token: int, logits: torch.Tensor | None = None) -> bool:
        """Append a sampled token, or finish the sequence at it.

        Args:
            token: its id, or `NO_TOKEN` if every token is masked.
            logits: the model's, (V,), before logits processors; needed if `needs_logprobs`.

        Returns:
            Whether it was appended.
        """
        if token == NO_TOKEN or token in self.end_tokens:
            if token != NO_TOKEN:
                self.end_logprobs += [(token, each) for each in self._logprobs(token, logits)]
            self.finish("masked" if token == NO_TOKEN else "end_token")
            return False
        self._uniform = None
        if self.needs_logprobs:
            self.logprobs += self._logprobs(token, logits)
        self.tokens.append(token)
        length = len(self.tokens)
        if length - self._start > self._positions:
            self._start = length - max(1, self._positions // 2)
            self.computed = 0
            self.has_slid = True
        if self._detokenizer is not None:
            piece = self._detokenizer.push(token)
            if piece:
                self._pieces.append(piece)
            if self._detokenizer.ended:
                self.finish("stop")
                return True
        if length == self._max_tokens:
            self.finish("length")
        return True

    def _logprobs(self, token: int, logits: torch.Tensor | None) -> list[TokenLogprobs]:
        """Return the log-probabilities of a sampled token, if they are recorded."""
        if not self.needs_logprobs or logits is None:
            return []
        return token_logprobs(logits[None], [token], self.top or 0, self._named_tokens)

    def record_prompt(self, first: int, logits: torch.Tensor) -> None:
        """Record the log-probabilities of tokens of the prompt, unless they have been.

        Args:
            first: place in the window of the first token of which there are logits.
            logits: the model's, (T, V), of the tokens after these.
        """
        place = self._start + first + 1  # of the first token that they predict
        recorded = len(self.prompt_logprobs) - place
        tokens = self.tokens[place : min(place + len(logits), self.prompt_length)][recorded:]
        if tokens:
            part = logits[recorded : recorded + len(tokens)]
            self.prompt_logprobs += token_logprobs(part, tokens, self.top or 0, self._named_tokens)

    def finish(self, reason: FinishReason, error: str | None = None) -> None:
        """End the sequence, unless it has ended; text that was held back is released."""
        if self.finish_reason is None:
            if self._detokenizer is not None:
                piece = self._detokenizer.finish(is_cut=reason != "end_token")
                if piece:
                    self._pieces.append(piece)
            self.error = error
            self.finish_reason = reason


@lru_cache(maxsize=256)
def _same_object(key: tuple[object, ...]) -> tuple[object, ...]:
    """Return the same object for equal keys, which are compared in each step."""
    return key


def _sampling_key(options: GenerationConfig) -> tuple[object, ...]:
    """Return the options that the logits processors depend on."""
    return (
        *(options.temperature, options.top_k, options.top_p, options.min_p, options.typical_p),
        *(options.repetition_penalty, options.presence_penalty, options.frequency_penalty),
        *(options.no_repeat_ngram, options.min_length, tuple(options.logit_bias.items())),
    )
