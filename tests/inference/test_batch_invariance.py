"""A request gets the same bytes alone, among others, in chunks, and with a cached prefix or not."""

from __future__ import annotations

from unittest import mock

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from src.config_keys import GenerationConfig
from src.inference import model_runner
from src.inference.engine import Engine
from src.inference.model_runner import ModelRunner
from src.inference.prefix_cache import PrefixCache
from src.inference.prepare import prepare_for_generation
from src.inference.sequence import Sequence
from src.nn.cpu_kernels import LIBRARY
from tests.tiny_models import random_model

WIDTH, POSITIONS = 29, 24
MANNERS = [
    GenerationConfig(max_length=9, temperature=0),
    GenerationConfig(max_length=40),
    GenerationConfig(max_length=14, temperature=0.7, top_k=9, top_p=0.9),
    GenerationConfig(max_length=14, typical_p=0.8, repetition_penalty=1.5),
    GenerationConfig(max_length=30, min_p=0.02, presence_penalty=0.5, frequency_penalty=0.5),
    GenerationConfig(max_length=14, temperature=0, no_repeat_ngram=2, logit_bias={3: 2.0}),
]
MODELS = {
    "PyTorch": random_model(max_seq_len=POSITIONS, d_model=12, n_heads=3),
    "PyTorch, learned, post-norm": random_model(
        max_seq_len=POSITIONS, position_embedding="learned", norm_position="post"
    ),
}
if LIBRARY is not None:
    for name in ("none", "int8", "int4"):
        MODELS[f"kernels, {name}"] = prepare_for_generation(
            random_model(std=0.15, d_model=64, n_heads=4, max_seq_len=POSITIONS),
            name,
            verbose=False,
        )
PREFIX = [1, 2, 0, 1, 2, 2, 1, 0, 1, 1, 2, 0]
REQUESTS = st.lists(
    st.tuples(
        st.integers(0, 12),  # tokens of the prefix
        st.lists(st.integers(0, 2), min_size=1, max_size=18),
        st.integers(0, len(MANNERS) - 1),
        st.integers(0, 3),  # seed
        st.booleans(),  # with log-probabilities of the prompt
        st.integers(0, 30),  # step at which it joins
    ),
    min_size=2,
    max_size=7,
)


def request(shared, rest, manner, seed, with_prompt) -> Sequence:
    return Sequence(
        PREFIX[:shared] + rest,
        MANNERS[manner],
        POSITIONS,
        end_token=28,
        seed=seed,
        top=2,
        named_tokens=[5],
        prompt_logprobs=with_prompt,
    )


def result(each: Sequence) -> tuple[object, ...]:
    return each.tokens, each.finish_reason, each.logprobs, each.prompt_logprobs


@pytest.mark.parametrize("name", MODELS)
@given(
    requests=REQUESTS,
    cancelled=st.dictionaries(st.integers(0, 6), st.integers(0, 40), max_size=2),
    max_rows=st.integers(1, 6),
    max_tokens=st.integers(1, 40),
    blocks=st.integers(0, 9),
)
@settings(deadline=None, max_examples=8)
def test_a_request_gets_the_same_bytes_alone_and_among_others(
    name, requests, cancelled, max_rows, max_tokens, blocks
):
    """Whatever joins, leaves, slides, forks, and is evicted from the prefix cache."""
    model = MODELS[name]
    with mock.patch.object(model_runner, "GRID", 4):
        cache = PrefixCache(blocks * 2 * 2 * 4 * model.config.d_model * 4, block=4)
        runner = ModelRunner(model, WIDTH, batch_invariant=True)
        assert runner.grid == (4 if name.startswith("PyTorch") else 1)
        engine = Engine(runner, max_rows, max_tokens, cache)
        sequences = [request(*arguments) for *arguments, _ in requests]
        time = 0
        while time <= 40 or not engine.scheduler.is_idle:
            for index, each in enumerate(sequences):
                if requests[index][-1] == time:
                    engine.add(each)
                if cancelled.get(index) == time:
                    each.finish("cancelled")
            engine.step()
            assert cache.bytes <= cache.max_bytes
            time += 1
        for each, (*arguments, _) in zip(sequences, requests, strict=True):
            alone = request(*arguments)
            Engine(ModelRunner(model, WIDTH, batch_invariant=True)).run([alone])
            if each.finish_reason == "cancelled":
                count = len(each.new_tokens)
                assert each.tokens == alone.tokens[: each.prompt_length + count]
                assert each.logprobs == alone.logprobs[:count]
            else:
                assert result(each) == result(alone)


@pytest.mark.parametrize("name", MODELS)
def test_a_second_request_computes_only_what_differs(name):
    """Of the prompt, of a prompt and its continuation, and of prompts in other rows."""
    model = MODELS[name]
    with mock.patch.object(model_runner, "GRID", 4):
        engine = Engine(
            ModelRunner(model, WIDTH, batch_invariant=True), 4, 99, PrefixCache(2**20, 4)
        )
        first = Sequence(PREFIX, GenerationConfig(max_length=6, temperature=0), POSITIONS)
        engine.run([first])
        conversation = [*first.tokens, 4]
        options = GenerationConfig(max_length=1)
        others = [
            Sequence(ids, options, POSITIONS)
            for ids in (conversation, [*PREFIX[:9], 5, 5], PREFIX, [5])
        ]
        engine.run(others)
    held = [each.cached_tokens for each in others]
    # Without kernels a token of a decode step is not what it is in a prefill.
    assert held == ([12, 8, 8, 0] if name.startswith("PyTorch") else [17, 8, 8, 0])
    assert engine.counts.cached_tokens == sum(held)
    assert engine.counts.prompt_tokens == 12 + 19 + 11 + 12 + 1
