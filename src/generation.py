"""Text from a model: sampled token by token, streamed, or searched with beams.

B rows, T tokens, V vocabulary.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Generator, Sequence
from contextlib import closing
from dataclasses import dataclass

import torch

from .cuda_utils import select_device
from .errors import AGI2Error
from .model import GPT2Model
from .sampling import apply_repetition_penalty, sample
from .tokenizer import StreamDecoder, Tokenizer
from .utils import evaluating

StoppingCriterion = Callable[[str], bool]
"""Is given the continuation so far; true ends it."""


class Decoder:
    """Rows of text that grow by one token at a time, each step costing one token's work.

    Past the model's positions the window slides: the older half is forgotten and the rest is
    read again, so that the cost of sliding, spread over the tokens, stays small.

    Args:
        model: in evaluation mode.
        prompt: token ids; only the last `max_seq_len` of them are seen.
        vocab_size: V, the tokens to choose from: those the tokenizer has, where the model has more.
    """

    def __init__(self, model: GPT2Model, prompt: Sequence[int], vocab_size: int) -> None:
        self.model = model
        self._vocab_size = vocab_size
        self.tokens = torch.tensor([list(prompt)], device=model.device)
        self._positions = model.config.max_seq_len
        self._cache = model.new_cache(1)

    @torch.inference_mode()
    def prefill(self) -> torch.Tensor:
        """Read the prompt: logits (1, V) of the next token."""
        return self._read(self.tokens[:, -self._positions :])

    @torch.inference_mode()
    def step(self, tokens: torch.Tensor) -> torch.Tensor:
        """Append a token to each row, (B,): logits (B, V) of the next."""
        self.tokens = torch.cat([self.tokens, tokens.unsqueeze(1)], dim=1)
        if self._cache.length < self._positions:
            return self._read(tokens.unsqueeze(1))
        self._cache.truncate(0)
        return self._read(self.tokens[:, -max(1, self._positions // 2) :])

    @torch.inference_mode()
    def reorder(self, rows: torch.Tensor) -> None:
        """Make row i go on from what row `rows[i]` was."""
        self.tokens = self.tokens[rows]
        self._cache = self._cache.select(rows)

    def _read(self, tokens: torch.Tensor) -> torch.Tensor:
        return self.model(tokens, cache=self._cache, last_only=True)[:, -1, : self._vocab_size]


def generate_tokens(
    model: GPT2Model,
    prompt: Sequence[int],
    max_length: int = 100,
    temperature: float = 1.0,
    top_k: int | None = None,
    top_p: float | None = None,
    *,
    repetition_penalty: float = 1.0,
    end_token: int | None = None,
    vocab_size: int | None = None,
    seed: int | None = None,
) -> Generator[int, None, None]:
    """Yield new token ids one by one, up to `max_length` or before `end_token`.

    Args:
        model: put in evaluation mode while this runs.
        prompt: token ids, at least one.
        max_length: new tokens at most.
        temperature: divides the logits; 0 takes the likeliest token each time.
        top_k: draw from the k likeliest tokens.
        top_p: draw from the likeliest tokens that make up this share.
        repetition_penalty: above 1 discourages tokens that already stand in the text.
        end_token: ends the text.
        vocab_size: choose among so many tokens, where the tokenizer has fewer than the model.
        seed: repeats a text whatever else runs; without it each is new.

    Raises:
        AGI2Error: where an option is out of its range, or the prompt is not in the vocabulary.
    """
    vocab_size = vocab_size or model.config.vocab_size
    _check_options(vocab_size, prompt, max_length, temperature, top_k, top_p, repetition_penalty)
    generator = torch.Generator(device=model.device)
    generator.seed() if seed is None else generator.manual_seed(seed)
    was_training = model.training
    model.eval()
    try:
        decoder = Decoder(model, prompt, vocab_size)
        logits = decoder.prefill()
        for index in range(max_length):
            logits = apply_repetition_penalty(logits, decoder.tokens, repetition_penalty)
            token = sample(logits, temperature, top_k, top_p, generator)
            if int(token) == end_token:
                return
            yield int(token)
            if index + 1 < max_length:
                logits = decoder.step(token)
    finally:  # also when the caller closes the iterator half-way
        model.train(was_training)


def stream_text(
    model: GPT2Model,
    prompt: str | Sequence[int],
    max_length: int = 100,
    temperature: float = 1.0,
    top_k: int | None = None,
    top_p: float | None = None,
    tokenizer: Tokenizer | None = None,
    *,
    repetition_penalty: float = 1.0,
    stop: str | Sequence[str] = (),
    stopping_criteria: Sequence[StoppingCriterion] = (),
    skip_leading_space: bool = False,
    seed: int | None = None,
) -> Generator[str, None, None]:
    """Yield the continuation of a prompt (text, or token ids) in pieces of whole characters.

    The pieces joined are what `generate_text` gives with `return_full_text=False`; see there for
    the arguments. With `skip_leading_space`, text begins, and stop strings count, from the first
    visible character on.
    """
    tokenizer = _fitting(tokenizer, model)
    ids = tokenizer.encode(prompt) if isinstance(prompt, str) else prompt
    tokens = generate_tokens(
        model,
        ids or [tokenizer.end_of_text],
        max_length,
        temperature,
        top_k,
        top_p,
        repetition_penalty=repetition_penalty,
        end_token=tokenizer.end_of_text,
        vocab_size=tokenizer.vocab_size,
        seed=seed,
    )
    decoder = StreamDecoder(tokenizer)
    output = _StopFilter(stop, skip_leading_space)
    so_far = ""
    with closing(tokens):
        for token in tokens:
            piece = output.push(decoder.push(token))
            so_far += piece
            if piece:
                yield piece
            if output.stopped or any(stops(so_far) for stops in stopping_criteria):
                return
    rest = output.push(decoder.flush()) + output.flush()
    if rest:
        yield rest


def generate_text(
    model: GPT2Model,
    prompt: str,
    max_length: int = 100,
    temperature: float = 1.0,
    top_k: int | None = None,
    top_p: float | None = None,
    tokenizer: Tokenizer | None = None,
    device: torch.device | str | None = None,
    *,
    repetition_penalty: float = 1.0,
    stop: str | Sequence[str] = (),
    stopping_criteria: Sequence[StoppingCriterion] = (),
    seed: int | None = None,
    return_full_text: bool = True,
) -> str:
    """Continue a prompt.

    Args:
        model: put in evaluation mode, and back.
        prompt: an empty one starts at the end-of-text token.
        max_length: new tokens at most.
        temperature: 0 is greedy.
        top_k: draw from the k likeliest tokens; above the vocabulary means no limit.
        top_p: draw from the likeliest tokens that make up this share.
        tokenizer: the model's.
        device: moves the model there first, if given: `auto`, `cpu`, `cuda`, ...
        repetition_penalty: above 1 discourages tokens that already stand in the text.
        stop: the text ends before any of these strings (the one that is complete first).
        stopping_criteria: each is given the continuation so far; true ends it.
        seed: repeats a text; without it each is new.
        return_full_text: prompt and continuation, or the continuation alone.

    Raises:
        AGI2Error: where an option is out of its range, or tokenizer and model do not fit.
    """
    if device is not None:
        model.to(select_device(str(device)))
    continuation = "".join(
        stream_text(
            model,
            prompt,
            max_length,
            temperature,
            top_k,
            top_p,
            tokenizer,
            repetition_penalty=repetition_penalty,
            stop=stop,
            stopping_criteria=stopping_criteria,
            seed=seed,
        )
    )
    return prompt + continuation if return_full_text else continuation


@dataclass(frozen=True)
class Hypothesis:
    """A text that beam search found."""

    tokens: list[int]
    """The new tokens, without the one that ended them."""
    score: float
    """Log-probability divided by length ** length_penalty; the ending token counts."""


def beam_search(
    model: GPT2Model,
    prompt: Sequence[int],
    beam_size: int = 5,
    max_length: int = 100,
    length_penalty: float = 1.0,
    *,
    repetition_penalty: float = 1.0,
    end_token: int | None = None,
    vocab_size: int | None = None,
    is_finished: Callable[[list[int]], bool] | None = None,
) -> list[Hypothesis]:
    """Search for the likeliest continuations, keeping `beam_size` of them at each step.

    Hypotheses that end go to a pool of the best `beam_size`; the search is over once none that
    still grows can beat the worst of a full pool.

    Args:
        model: put in evaluation mode, and back.
        prompt: token ids, at least one.
        beam_size: hypotheses kept; 1 is greedy.
        max_length: new tokens at most.
        length_penalty: scores are divided by length to this power; above 0 favours long texts.
        repetition_penalty: as for sampling, on log-probabilities.
        end_token: ends a hypothesis.
        vocab_size: choose among so many tokens, where the tokenizer has fewer than the model.
        is_finished: is given a hypothesis's new tokens; true ends it after them.

    Returns:
        At most `beam_size` hypotheses, the best first.

    Raises:
        AGI2Error: where an option is out of its range.
    """
    vocab_size = vocab_size or model.config.vocab_size
    _check_options(vocab_size, prompt, max_length, repetition_penalty=repetition_penalty)
    if beam_size < 1:
        raise AGI2Error(f"beam_size must be at least 1, not {beam_size}")
    if not -10 <= length_penalty <= 10:
        raise AGI2Error(f"length_penalty must be between -10 and 10, not {length_penalty}")
    pool = _Pool(beam_size, length_penalty)
    start = len(prompt)
    with evaluating(model):
        decoder = Decoder(model, prompt, vocab_size)
        logits = decoder.prefill()
        scores = torch.zeros(1, device=model.device)
        for length in range(1, max_length + 1):
            log_probs = logits.float().log_softmax(dim=-1)
            log_probs = apply_repetition_penalty(log_probs, decoder.tokens, repetition_penalty)
            total = (scores.unsqueeze(1) + log_probs).flatten()
            # Twice as many as needed: at most half of them end here.
            best = total.topk(min(2 * beam_size, total.numel()))
            histories = decoder.tokens[:, start:].tolist()
            rows: list[int] = []
            tokens: list[int] = []
            kept: list[float] = []
            for rank, (score, index) in enumerate(
                zip(best.values.tolist(), best.indices.tolist(), strict=True)
            ):
                row, token = divmod(index, log_probs.size(1))
                ended = token == end_token
                grown = histories[row] if ended else [*histories[row], token]
                if ended or (is_finished is not None and is_finished(grown)):
                    if rank < beam_size:
                        pool.add(grown, score, length)
                elif len(kept) < beam_size:
                    rows.append(row)
                    tokens.append(token)
                    kept.append(score)
            if length == max_length:
                for row, token, score in zip(rows, tokens, kept, strict=True):
                    pool.add([*histories[row], token], score, length)
            # One beam is greedy: it ends where the likeliest token ends it.
            greedy_end = beam_size == 1 and pool.hypotheses
            if greedy_end or not kept or length == max_length:
                break
            if pool.beats(kept[0], length, max_length):
                break
            decoder.reorder(torch.tensor(rows, device=model.device))
            scores = torch.tensor(kept, device=model.device)
            logits = decoder.step(torch.tensor(tokens, device=model.device))
    return pool.hypotheses


class _Pool:
    """The best finished hypotheses."""

    def __init__(self, size: int, length_penalty: float) -> None:
        self._size = size
        self._penalty = length_penalty
        self.hypotheses: list[Hypothesis] = []

    def add(self, tokens: list[int], log_probability: float, length: int) -> None:
        self.hypotheses.append(Hypothesis(tokens, log_probability / length**self._penalty))
        self.hypotheses.sort(key=lambda hypothesis: -hypothesis.score)
        del self.hypotheses[self._size :]

    def beats(self, log_probability: float, length: int, max_length: int) -> bool:
        """Whether nothing that grows from here can still get into a full pool."""
        if len(self.hypotheses) < self._size:
            return False
        # A log-probability only falls; dividing by a greater length is the best it can hope for.
        reach = max_length if self._penalty > 0 else length + 1
        return log_probability / reach**self._penalty <= self.hypotheses[-1].score


def generate_beam_text(
    model: GPT2Model,
    prompt: str,
    beam_size: int = 5,
    max_length: int = 100,
    length_penalty: float = 1.0,
    tokenizer: Tokenizer | None = None,
    *,
    repetition_penalty: float = 1.0,
    stop: str | Sequence[str] = (),
    return_full_text: bool = True,
) -> str:
    """The best continuation that beam search finds; arguments as in `beam_search`."""
    tokenizer = _fitting(tokenizer, model)
    stop = stop_strings(stop)

    def finished(tokens: list[int]) -> bool:
        text = tokenizer.decode(tokens)
        return any(string in text for string in stop)

    best = beam_search(
        model,
        tokenizer.encode(prompt) or [tokenizer.end_of_text],
        beam_size,
        max_length,
        length_penalty,
        repetition_penalty=repetition_penalty,
        end_token=tokenizer.end_of_text,
        vocab_size=tokenizer.vocab_size,
        is_finished=finished if stop else None,
    )[0]
    output = _StopFilter(stop)
    continuation = output.push(tokenizer.decode(best.tokens)) + output.flush()
    return prompt + continuation if return_full_text else continuation


class _StopFilter:
    """Lets text through up to the first stop string, holding back what may become one."""

    def __init__(self, stop: str | Sequence[str], skip_leading_space: bool = False) -> None:
        self._stop = stop_strings(stop)
        self._skipping = skip_leading_space
        self._held = ""
        self.stopped = False

    def push(self, text: str) -> str:
        if self._skipping:
            text = text.lstrip()
            self._skipping = not text
        text, self._held = self._held + text, ""
        found = [
            (place + len(string), place)
            for string in self._stop
            if (place := text.find(string)) >= 0
        ]
        if found:
            self.stopped = True
            # The one that is complete first, however the text was cut into pieces.
            return text[: min(found)[1]]
        hold = max((_overlap(text, string) for string in self._stop), default=0)
        self._held = text[len(text) - hold :]
        return text[: len(text) - hold]

    def flush(self) -> str:
        return self._held


def _overlap(text: str, string: str) -> int:
    """How many of the text's last characters begin the string."""
    longest = min(len(text), len(string) - 1)
    return next((n for n in range(longest, 0, -1) if text.endswith(string[:n])), 0)


def stop_strings(stop: str | Sequence[str]) -> list[str]:
    """One string or several as a list, without empty ones."""
    return [string for string in ([stop] if isinstance(stop, str) else stop) if string]


def _fitting(tokenizer: Tokenizer | None, model: GPT2Model) -> Tokenizer:
    if tokenizer is None:
        raise AGI2Error("a tokenizer is needed: pass the one the model was trained with")
    if tokenizer.vocab_size > model.config.vocab_size:
        raise AGI2Error(
            f"the tokenizer has {tokenizer.vocab_size} tokens, the model only "
            f"{model.config.vocab_size}: they do not belong together"
        )
    return tokenizer


def _check_options(
    vocab_size: int,
    prompt: Sequence[int],
    max_length: int,
    temperature: float = 1.0,
    top_k: int | None = None,
    top_p: float | None = None,
    repetition_penalty: float = 1.0,
) -> None:
    checks = [
        (max_length >= 1, f"max_length must be at least 1, not {max_length}"),
        (0 <= temperature < math.inf, f"temperature must be a number from 0 on, not {temperature}"),
        (top_k is None or top_k >= 1, f"top_k must be at least 1, not {top_k}"),
        (top_p is None or 0 < top_p <= 1, f"top_p must be above 0 and at most 1, not {top_p}"),
        (
            0 < repetition_penalty < math.inf,
            f"repetition_penalty must be above 0, not {repetition_penalty}",
        ),
        (len(prompt) > 0, "the prompt has no tokens"),
        (
            all(0 <= token < vocab_size for token in prompt),
            f"the prompt has a token above the vocabulary of {vocab_size}",
        ),
    ]
    for is_right, message in checks:
        if not is_right:
            raise AGI2Error(message)
