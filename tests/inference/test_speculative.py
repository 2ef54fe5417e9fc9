import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from src.errors import AGI2Error
from src.generation import generate_tokens
from src.inference.model_runner import ModelRunner
from src.inference.speculative import NgramIndex, speculate_tokens
from tests.tiny_models import random_model, reciting_model


def speculated(model, prompt, max_length=100, vocab_size=None, **options):
    runner = ModelRunner(model, vocab_size or model.config.vocab_size)
    return speculate_tokens(runner, prompt, max_length, **options)


def greedy(model, prompt, length, **options):
    return list(generate_tokens(model, prompt, length, temperature=0, **options))


def reads(model):
    """A list that grows by the number of tokens of each pass."""
    counts = []
    model.final_norm.register_forward_pre_hook(lambda _, args: counts.append(args[0].shape[1]))
    return counts


@given(
    text=st.lists(st.integers(0, 2), min_size=1, max_size=20),
    grown=st.lists(st.integers(0, 2), max_size=5),
    ngram=st.integers(1, 4),
    count=st.integers(0, 9),
)
def test_what_followed_the_last_time_is_proposed(text, grown, ngram, count):
    index = NgramIndex(text, ngram)
    for token in grown:
        index.append(token)
    text = [*text, *grown]
    assert index.tokens == text
    expected = []
    for start in range(len(text) - ngram):  # the last that matches wins
        if text[start : start + ngram] == text[-ngram:]:
            copied = text[:]
            for place in range(start + ngram, start + ngram + count):
                copied.append(copied[place])
            expected = copied[len(text) :]
    assert index.propose(count) == expected


@given(
    seed=st.integers(0, 999),
    prompt=st.lists(st.integers(0, 3), min_size=1, max_size=24),
    positions=st.sampled_from([1, 2, 5, 16, 64]),
    length=st.integers(1, 40),
    end_token=st.sampled_from([None, 0, 3]),
    vocab_size=st.sampled_from([None, 5]),
    ngram=st.integers(1, 3),
    proposals=st.integers(1, 12),
)
@settings(deadline=None, max_examples=12)
def test_the_tokens_are_those_of_greedy_decoding(
    seed, prompt, positions, length, end_token, vocab_size, ngram, proposals
):
    model = random_model(seed, vocab_size=8, max_seq_len=positions)
    options = {"end_token": end_token, "vocab_size": vocab_size}
    found = speculated(model, prompt, length, ngram=ngram, proposals=proposals, **options)
    assert list(found) == greedy(model, prompt, length, **options)


def test_a_text_that_repeats_takes_few_passes():
    model = reciting_model(9, [0] * 5 + [1, 2, 3, 4, 5, 6] * 6)
    counts = reads(model)
    found = list(speculated(model, [1, 2, 3, 4, 5, 6], 30, ngram=2, proposals=8))
    assert found == [1, 2, 3, 4, 5, 6] * 5
    # The prompt, and one token more, until two of them stand in it; then what followed, in a loop.
    assert counts == [6, 1, 9, 9, 9, 1]


def test_an_end_token_among_the_right_guesses_ends_the_text():
    model = reciting_model(9, [0] * 4 + [1, 2, 3, 4, 5])
    found = list(speculated(model, [1, 2, 3, 4, 5], 30, ngram=2, end_token=4))
    assert found == [1, 2, 3]


def test_a_text_that_never_repeats_is_read_as_plain_decoding_reads_it():
    model = reciting_model(20, [0, 0, *range(4, 14)])
    counts = reads(model)
    assert list(speculated(model, [1, 2, 3], 10)) == list(range(4, 14))
    assert counts == [3] + [1] * 9


def test_a_wrong_guess_costs_one_pass_and_leaves_no_trace():
    # 1 2 is followed by 3 4 in the prompt, and by 3 7 in the text.
    model = reciting_model(9, [0, 0, 0, 0, 1, 2, 3, 7, 8, 5])
    counts = reads(model)
    found = list(speculated(model, [1, 2, 3, 4, 6], 6, ngram=2, proposals=2))
    assert found == [1, 2, 3, 7, 8, 5]
    assert counts == [5, 1, 3, 1, 1]


def test_after_a_bad_guess_as_many_tokens_are_written_plainly():
    # Each 1 was followed by another token than this time.
    model = reciting_model(20, [0, 1, 2, 1, 3, 1, 4, 1, 5, 1, 6, 1, 7])
    counts = reads(model)
    found = list(speculated(model, [9, 8], 12, ngram=1, proposals=4))
    assert found == [1, 2, 1, 3, 1, 4, 1, 5, 1, 6, 1, 7]
    # A guess at what follows the second 1, four tokens plainly, a 5 that is new, the next guess.
    assert counts == [2, 1, 1, 5, 1, 1, 1, 1, 1, 3, 1, 1]


def test_what_was_read_for_an_earlier_text_is_not_read_again():
    model = reciting_model(20, [0, 0, *range(4, 14)])
    runner = ModelRunner(model, 20)
    first = list(speculate_tokens(runner, [1, 2, 3], 5))
    counts = reads(model)
    assert list(speculate_tokens(runner, [1, 2, 3, *first], 5)) == list(range(9, 14))
    assert counts == [1] * 5


def test_no_more_is_written_than_asked_for():
    model = reciting_model(5, [0, *[1, 2] * 10])
    for length in range(1, 8):
        assert len(list(speculated(model, [1, 2], length, ngram=1))) == length


@pytest.mark.parametrize("training", [True, False])
def test_the_models_mode_is_never_changed(training):
    model = random_model(dropout=0.5).train(training)
    stream = speculated(model, [1, 2], 9)
    next(stream)
    assert model.training is training
    stream.close()
    assert model.training is training


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"prompt": []}, "the prompt has no tokens"),
        ({"prompt": [29]}, "the prompt has a token above the vocabulary of 29"),
        ({"max_length": 0}, "max_length must be at least 1, not 0"),
        ({"ngram": 0}, "ngram must be at least 1, not 0"),
        ({"proposals": 0}, "proposals must be at least 1, not 0"),
    ],
)
def test_an_option_out_of_its_range_is_one_clear_line(options, message):
    with pytest.raises(AGI2Error) as caught:
        next(speculated(random_model(), **{"prompt": [1], **options}))
    assert str(caught.value) == message


def test_weights_that_are_not_numbers_are_one_clear_line():
    model = random_model()
    with torch.no_grad():
        model.token_embeddings.weight[5] = math.nan
    with pytest.raises(
        AGI2Error, match=r"^the model's logits are not finite: its weights contain NaN"
    ):
        next(speculated(model, [1], 5))
