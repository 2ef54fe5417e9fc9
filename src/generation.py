"""Text from a model: sampled token by token, streamed, or searched with beams.

B rows, T tokens, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Sequence
from contextlib import closing
from dataclasses import dataclass

import torch

from .beam_search import beam_search
from .config import EarlyStopping
from .cuda_utils import select_device
from .decoder import Decoder, check_options
from .errors import AGI2Error
from .model import GPT2Model
from .sampling import apply_repetition_penalty, sample
from .tokenizer import StreamDecoder, Tokenizer

StoppingCriterion = Callable[[str], bool]
"""Is given the continuation so far; true ends it."""


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
    check_options(vocab_size, prompt, max_length, temperature, top_k, top_p, repetition_penalty)
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
    best = generate_beam_texts(
        model,
        prompt,
        beam_size,
        max_length,
        length_penalty,
        tokenizer,
        repetition_penalty=repetition_penalty,
        stop=stop,
    )[0]
    return prompt + best.text if return_full_text else best.text


@dataclass(frozen=True)
class BeamText:
    """A continuation that beam search found."""

    text: str
    score: float
    """As in `Hypothesis`; of the tokens searched, a stop string's among them."""


def generate_beam_texts(
    model: GPT2Model,
    prompt: str,
    beam_size: int = 5,
    max_length: int = 100,
    length_penalty: float = 1.0,
    tokenizer: Tokenizer | None = None,
    *,
    results: int = 1,
    repetition_penalty: float = 1.0,
    early_stopping: EarlyStopping = "never",
    groups: int = 1,
    diversity_penalty: float = 0.5,
    stop: str | Sequence[str] = (),
) -> list[BeamText]:
    """The best continuations that beam search finds, at most `results`, the best first.

    Args:
        model: put in evaluation mode, and back.
        prompt: an empty one starts at the end-of-text token.
        results: at most `beam_size`.
        tokenizer: the model's.
        stop: a text ends before any of these strings.
        beam_size, max_length, length_penalty, repetition_penalty, early_stopping, groups,
            diversity_penalty: as in `beam_search`.

    Raises:
        AGI2Error: where an option is out of its range, or tokenizer and model do not fit.
    """
    tokenizer = _fitting(tokenizer, model)
    if not 1 <= results <= max(1, beam_size):
        raise AGI2Error(f"beam_results must be from 1 to beam_size {beam_size}, not {results}")
    stop = stop_strings(stop)

    def finished(tokens: list[int]) -> bool:
        text = tokenizer.decode(tokens)
        return any(string in text for string in stop)

    found = beam_search(
        model,
        tokenizer.encode(prompt) or [tokenizer.end_of_text],
        beam_size,
        max_length,
        length_penalty,
        repetition_penalty=repetition_penalty,
        early_stopping=early_stopping,
        groups=groups,
        diversity_penalty=diversity_penalty,
        end_token=tokenizer.end_of_text,
        vocab_size=tokenizer.vocab_size,
        is_finished=finished if stop else None,
    )
    texts = []
    for hypothesis in found[:results]:
        output = _StopFilter(stop)
        text = output.push(tokenizer.decode(hypothesis.tokens)) + output.flush()
        texts.append(BeamText(text, hypothesis.score))
    return texts


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
