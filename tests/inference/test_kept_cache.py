"""The KV cache of a model's last runner, kept for the next one."""

import copy
import weakref

import pytest
import torch

from src.config_keys import GenerationConfig
from src.inference import kept_cache
from src.inference.cuda_graph import GraphedBackend, StepModules
from src.inference.engine import Engine
from src.inference.kept_cache import keep, take
from src.inference.model_runner import ModelRunner
from src.inference.sequence import Sequence
from src.nn.kv_cache import KVCache
from tests.bounds import assert_same_in_float64
from tests.tiny_models import random_model

WIDTH = 29


def graphed(**changes):
    model = random_model(**changes).double()
    model.use_decode_backend(GraphedBackend(StepModules.of(model), after=0, min_columns=4))
    return model


def generated(model, prompts=((1, 2, 3), (4,))):
    sequences = [
        Sequence(prompt, GenerationConfig(max_length=9), 16, seed=seed)
        for seed, prompt in enumerate(prompts)
    ]
    Engine(ModelRunner(model, WIDTH), len(prompts)).run(sequences)
    return [each.new_tokens for each in sequences]


def caches_of(model) -> list[KVCache]:
    return list(model.decode_backend._steps)


def test_the_next_runner_has_the_steps_of_the_last():
    model = graphed()
    first = generated(model)
    steps = {id(step) for steps in model.decode_backend._steps.values() for step in steps.values()}
    assert generated(model, [[5, 6], [7]]) != first
    assert generated(model) == first
    kept = {id(step) for steps in model.decode_backend._steps.values() for step in steps.values()}
    assert kept >= steps


def test_what_a_broken_model_left_is_not_seen():
    model = graphed()
    expected = generated(model)
    with torch.inference_mode():
        for layer in caches_of(model)[0].layers:
            layer.keys.fill_(float("nan"))
    assert generated(model) == expected


def test_a_cache_in_use_is_not_given_away():
    model = graphed()
    runner = ModelRunner(model, WIDTH)
    logits = runner.prefill([1, 2])
    other = ModelRunner(model, WIDTH)
    other.prefill([3])
    assert other._held is not runner._held
    assert_same_in_float64(runner.prefill([1, 2]), logits)


@pytest.mark.parametrize(
    "change",
    [
        lambda model: setattr(model.final_norm, "weight", copy.deepcopy(model.final_norm.weight)),
        lambda model: setattr(model.blocks[0], "ffn", copy.deepcopy(model.blocks[0].ffn)),
    ],
)
def test_steps_over_weights_that_were_replaced_are_freed(change):
    model = graphed()
    generated(model)
    buffer = weakref.ref(caches_of(model)[0].layers[0].keys)
    change(model)
    assert take(model, 2) is None
    assert buffer() is None


def test_a_cache_of_another_number_of_rows_is_freed_before_there_is_a_new_one():
    model = graphed()
    generated(model)
    buffer = weakref.ref(caches_of(model)[0].layers[0].keys)
    assert take(model, 3) is None
    assert buffer() is None


def test_a_cache_is_kept_if_it_takes_a_small_part_of_the_memory(monkeypatch):
    model = graphed()
    runner = ModelRunner(model, WIDTH)
    cache = model.new_cache(2)
    size = 2 * 2 * 2 * 16 * 16 * 8
    for memory, is_kept in ((16 * size, True), (16 * size - 1, False)):
        monkeypatch.setattr(kept_cache, "available_memory", lambda device, memory=memory: memory)
        keep(model, cache, runner)
        assert (model in kept_cache._kept) == is_kept


def test_a_kept_cache_is_freed_with_its_model():
    model = graphed()
    generated(model)
    buffer = weakref.ref(caches_of(model)[0].layers[0].keys)
    del model
    assert buffer() is None


def test_without_graphs_no_cache_is_kept():
    model = random_model()
    generated(model)
    assert model not in kept_cache._kept
