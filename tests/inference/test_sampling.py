"""The options of sampling, and drawing tokens as often as their probability says."""

import itertools
import math
import random

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers.generation.logits_process import (
    TemperatureLogitsWarper,
    TopKLogitsWarper,
    TopPLogitsWarper,
)

from src.config import Config
from src.config_keys import GenerationConfig
from src.errors import AGI2Error
from src.inference.logits_processors import (
    process_logits,
)
from src.inference.sampling import (
    MASKED,
    NO_TOKEN,
    beam_config,
    beam_options,
    draw,
    generation_options,
    sampling_config,
)
from tests.bounds import (
    assert_within,
    by_chance,
    log_softmax_bound,
)
from tests.inference.test_logits_processors import SEEDS, WIDTH, random_logits, random_tokens

MANY = 40_000


def sample(logits: torch.Tensor, numbers: list[float] | None) -> torch.Tensor:
    """Return the token ids (B,) drawn."""
    return torch.tensor(draw(logits, numbers).read())


def uniforms(count: int, seed: int = 0) -> list[float]:
    numbers = random.Random(seed)
    return [numbers.random() for _ in range(count)]


def frequencies(logits: torch.Tensor) -> torch.Tensor:
    """How often each token is drawn for one row of processed logits."""
    drawn = sample(logits.expand(MANY, -1), uniforms(MANY))
    return torch.bincount(drawn, minlength=logits.size(-1)) / MANY


# --- all of it ------------------------------------------------------------------------------


def test_half_precision_logits_can_be_sampled():
    options = GenerationConfig(temperature=0.8, top_k=5, top_p=0.9, frequency_penalty=0.1)
    logits = process_logits(random_logits(4).bfloat16(), random_tokens(0, 4), options, 2)
    drawn = sample(logits, uniforms(3))
    assert drawn.shape == (3,)
    assert bool(((drawn >= 0) & (drawn < WIDTH)).all())


# --- the draw -------------------------------------------------------------------------------


@pytest.mark.parametrize("temperature", [0.5, 1.0, 2.0])
def test_tokens_are_drawn_as_often_as_the_tempered_softmax_says(temperature):
    logits = torch.tensor([[2.0, 1.0, 0.0, -1.0]])
    expected = TemperatureLogitsWarper(temperature)(None, logits).softmax(-1)[0]
    options = GenerationConfig(temperature=temperature)
    found = frequencies(process_logits(logits, torch.zeros(1, 1).long(), options, 1))
    assert_within(found, expected, by_chance(expected, MANY))


def test_limits_are_applied_after_the_temperature_first_k_then_p():
    logits = random_logits(0, rows=1)
    by_k, by_p = TopKLogitsWarper(6), TopPLogitsWarper(0.8)
    expected = by_p(None, by_k(None, logits / 1.7))
    assert not torch.equal(expected, by_k(None, by_p(None, logits / 1.7)))
    shares = expected.softmax(-1)[0]
    assert 1 < int((shares > 0).sum()) < 6
    options = GenerationConfig(temperature=1.7, top_k=6, top_p=0.8)
    found = frequencies(process_logits(logits, torch.zeros(1, 1).long(), options, 1))
    assert_within(found, shares, by_chance(shares, MANY))  # of none, none


@given(seed=SEEDS)
@settings(deadline=None, max_examples=30)
def test_a_number_draws_the_token_at_which_the_cumulated_probability_passes_it(seed):
    logits, numbers = random_logits(seed), uniforms(3, seed)
    for row, number, token in zip(logits, numbers, sample(logits, numbers).tolist(), strict=True):
        sums = list(itertools.accumulate(row.double().softmax(-1).tolist(), initial=0.0))
        # Each share is a power of e of a log-probability, computed in float32; sums are float64's.
        rounding = math.expm1(log_softmax_bound(row))
        assert sums[token] <= number + rounding
        assert number < sums[token + 1] + rounding


def test_a_rows_draw_does_not_depend_on_its_neighbours():
    logits, numbers = random_logits(2, rows=50), uniforms(50)
    together = sample(logits, numbers)
    alone = [sample(logits[i : i + 1], numbers[i : i + 1]) for i in range(50)]
    assert torch.equal(together, torch.cat(alone))
    assert len(set(together.tolist())) > 3


def test_an_excluded_token_is_never_drawn_even_by_the_extreme_numbers():
    logits = torch.tensor([[MASKED, 0.0, MASKED, 0.0, MASKED]])
    assert sample(logits, [0.0]).tolist() == [1]
    assert sample(logits, [0.5]).tolist() == [3]
    assert sample(logits, [1 - 2**-53]).tolist() == [3]


def test_tokens_of_tiny_probability_keep_their_share():
    """Ten thousand of one in ten million each: in single precision most would have none."""
    logits = torch.full((1, 10_001), math.log(1e-8))
    logits[0, 0] = 0.0
    drawn = sample(logits.expand(1000, -1), [1 - 1e-4 * (i + 0.5) / 1000 for i in range(1000)])
    assert len(set(drawn.tolist())) == 1000


@given(seed=SEEDS, temperature=st.sampled_from([0, 0.0, 5e-324, 1e-38, 1e-9, 0.99e-5]))
@settings(deadline=None, max_examples=30)
def test_temperature_0_and_what_is_next_to_it_take_the_likeliest(seed, temperature):
    logits = random_logits(seed)
    assert GenerationConfig(temperature=temperature).is_greedy
    assert torch.equal(sample(logits, None), logits.argmax(-1))
    assert torch.equal(sample(logits.bfloat16(), None), logits.bfloat16().argmax(-1))


def test_one_candidate_is_always_drawn():
    logits, tokens = random_logits(1), torch.zeros(3, 1).long()
    for limit in ({"top_k": 1}, {"top_p": 1e-6}, {"min_p": 1.0}):
        options = GenerationConfig(temperature=5.0, **limit)
        drawn = sample(process_logits(logits, tokens, options, 1), uniforms(3))
        assert torch.equal(drawn, logits.argmax(-1))


@pytest.mark.parametrize("numbers", [None, [0.3, 0.3]])
def test_where_every_token_is_excluded_nothing_is_drawn(numbers):
    logits = torch.tensor([[MASKED, MASKED], [MASKED, 0.0]])
    assert sample(logits, numbers).tolist() == [NO_TOKEN, 1]
    options = GenerationConfig(top_k=1, top_p=0.5, min_p=0.5, typical_p=0.5)
    logits = process_logits(logits, torch.zeros(2, 1).long(), options, 1)
    assert sample(logits, numbers).tolist() == [NO_TOKEN, 1]


@pytest.mark.parametrize("broken", [math.nan, math.inf])
@pytest.mark.parametrize("numbers", [None, [0.3, 0.3]])
def test_logits_that_are_not_finite_are_one_clear_line(broken, numbers):
    logits = random_logits(0, rows=2)
    logits[1, 3] = broken
    with pytest.raises(AGI2Error, match=r"^the model's logits are not finite: .*[^\n]*$"):
        sample(logits, numbers)


# --- options --------------------------------------------------------------------------------


def test_options_of_a_configuration_are_the_arguments_of_the_functions():
    given = {
        "max_length": 7,
        "min_length": 2,
        "temperature": 0.3,
        "top_k": 4,
        "top_p": 0.5,
        "min_p": 0.1,
        "typical_p": 0.9,
        "repetition_penalty": 1.2,
        "presence_penalty": 0.1,
        "frequency_penalty": 0.2,
        "no_repeat_ngram": 3,
        "logit_bias": {"a": 1.0},
        "stop": ["x"],
        "stop_at_sentence_end": True,
        "speculative": "none",
    }
    config = Config(**given, model_seed="m", sampling_seed=5)
    assert generation_options(config) == {**given, "model_seed": "m", "seed": 5}
    assert sampling_config(**given) == GenerationConfig(**given)
    beams = {"beam_size": 6, "beam_groups": 2, "beam_results": 3, "diversity_penalty": 0.25}
    only_sampling = {"temperature", "top_k", "top_p", "min_p", "typical_p", "speculative"}
    beams |= {"beam_early_stopping": True, "length_penalty": 2.0}
    assert beam_options(config.changed(**beams)) == {
        **{key: given[key] for key in given if key not in only_sampling},
        **{"beam_size": 6, "groups": 2, "results": 3, "diversity_penalty": 0.25},
        **{"early_stopping": True, "length_penalty": 2.0},
    }


@pytest.mark.parametrize(
    ("make", "key", "message"),
    [
        (sampling_config, "beam_size", "beam_size does not go with sampling: remove it"),
        (sampling_config, "samples", "samples does not go with sampling: remove it"),
        (sampling_config, "sampling_seed", "sampling_seed: the argument is called seed here"),
        (sampling_config, "topp", "unknown key topp; did you mean top_p?"),
        (sampling_config, "lr", "unknown key lr; resources/default.toml lists every key"),
        (beam_config, "beam_groups", "beam_groups: the argument is called groups here"),
        (
            beam_config,
            "top_p",
            "top_p does not go with beam search, which does not sample: remove it",
        ),
        (beam_config, "num_beams", "unknown key num_beams; did you mean beam_size?"),
    ],
)
def test_an_option_that_would_be_ignored_is_refused(make, key, message):
    with pytest.raises(AGI2Error) as caught:
        make({key: 1}) if make is beam_config else make(**{key: 1})
    assert str(caught.value) == message
