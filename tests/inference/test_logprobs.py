"""Log-probabilities of new tokens, named ones and the prompt's, against a plain forward pass."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from src.config_keys import GenerationConfig
from src.inference.engine import Engine
from src.inference.logprobs import token_logprobs
from src.inference.model_runner import ModelRunner
from src.inference.prefix_cache import PrefixCache
from src.inference.sequence import Sequence
from tests.tiny_models import random_model

WIDTH, POSITIONS = 27, 12  # fewer tokens than the model has
MODEL = random_model(max_seq_len=POSITIONS).double()
NAMED = [3, 20]


def expected(tokens, top) -> list[tuple[float, list[int], list[float]]]:
    """What each token but the first of a window should have."""
    logprobs = MODEL(torch.tensor([tokens]))[0, :, :WIDTH].log_softmax(-1)
    rows = zip(logprobs, tokens[1:], strict=False)
    return [
        (row[token].item(), row.topk(top).indices.tolist(), row[NAMED].tolist())
        for row, token in rows
    ]


def assert_are(found, wanted) -> None:
    assert len(found) == len(wanted)
    for each, (logprob, best, named) in zip(found, wanted, strict=True):
        assert each.logprob == pytest.approx(logprob, abs=1e-5)
        assert [token for token, _ in each.best] == best
        assert each.named == pytest.approx(named, abs=1e-5)


@given(
    prompts=st.lists(st.lists(st.integers(0, 2), min_size=1, max_size=15), min_size=1, max_size=4),
    lengths=st.lists(st.integers(0, 6), min_size=4, max_size=4),
    max_rows=st.integers(1, 4),
    max_tokens=st.integers(1, 30),
    interrupted=st.integers(0, 4),
    top=st.integers(0, 3),
)
@settings(max_examples=20, deadline=None)
@torch.inference_mode()
def test_prompts_and_new_tokens_have_the_models_log_probabilities(
    prompts, lengths, max_rows, max_tokens, interrupted, top
):
    """In chunks, together, after others of the same prefix, and after an interrupt."""
    engine = Engine(ModelRunner(MODEL, WIDTH), max_rows, max_tokens, PrefixCache(2**20, 2))
    sequences = [
        Sequence(
            prompt,
            GenerationConfig(temperature=1.5, logit_bias={1: 3.0}),
            POSITIONS,
            seed=index,
            top=top,
            named_tokens=NAMED,
            prompt_logprobs=True,
            max_new_tokens=lengths[index],
        )
        for index, prompt in enumerate(prompts)
    ]
    for each in sequences:
        engine.add(each)
    for step in range(200):
        if step == interrupted and not engine.scheduler.is_idle:
            handle = MODEL.final_norm.register_forward_hook(interrupt)
            with pytest.raises(KeyboardInterrupt):
                engine.step()
            handle.remove()
        engine.step()
    for each, prompt in zip(sequences, prompts, strict=True):
        assert each.finish_reason == "length"
        assert len(each.new_tokens) == each.max_new_tokens
        window = prompt[-POSITIONS:]
        first = len(prompt) - len(window)
        assert each.prompt_logprobs[: first + 1] == [None] * (first + 1)
        assert_are(each.prompt_logprobs[first + 1 :], expected(window, top))
        assert each.cached_tokens == 0
        if not each.has_slid:
            tokens = [*window, *each.new_tokens]
            assert_are(each.logprobs, expected(tokens, top)[len(window) - 1 :])


def interrupt(*_):
    raise KeyboardInterrupt


def test_a_long_prompt_is_recorded_in_parts(monkeypatch):
    monkeypatch.setattr("src.inference.chunks.RECORDED_TOKENS", 4)
    each = Sequence(
        list(range(11)), GenerationConfig(), POSITIONS, prompt_logprobs=True, named_tokens=NAMED
    )
    Engine(ModelRunner(MODEL, WIDTH)).run([each])
    with torch.inference_mode():
        assert_are(each.prompt_logprobs[1:], expected(list(range(11)), 0))


def test_a_prompt_is_only_scored_if_no_new_token_is_asked_for():
    """And beside others, which are sampled."""
    scored = Sequence([1, 2], GenerationConfig(), POSITIONS, max_new_tokens=0)
    other = Sequence([1, 2], GenerationConfig(), POSITIONS, seed=1, max_new_tokens=2)
    engine = Engine(ModelRunner(MODEL, WIDTH), 2)
    engine.run([scored, other])
    assert (scored.tokens, scored.finish_reason) == ([1, 2], "length")
    assert (len(other.new_tokens), other.finish_reason) == (2, "length")
    assert engine.counts.generated_tokens == 2


def test_the_log_probabilities_of_a_row_do_not_depend_on_others():
    logits = torch.randn(5, 40_000, generator=torch.Generator().manual_seed(0))
    together = token_logprobs(logits, [0, 1, 2, 3, 4], 3, [7])
    alone = [token_logprobs(logits[i : i + 1], [i], 3, [7])[0] for i in range(5)]
    assert together == alone
