import math
import random

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from src.config_keys import GenerationConfig
from src.inference.detokenizer import IncrementalDetokenizer
from src.inference.sampling import NO_TOKEN
from src.inference.sequence import Sequence
from src.tokenizer import BasicTokenizer

LETTERS = BasicTokenizer("abc.", lowercase=False, fold_whitespace=False)
A, B, C, POINT = (LETTERS.encode(letter)[0] for letter in "abc.")


def with_text(max_length=9, criteria=(), **options) -> Sequence:
    given = GenerationConfig(max_length=max_length, **options)
    return Sequence(
        [A],
        given,
        8,
        end_token=LETTERS.end_tokens,
        detokenizer=IncrementalDetokenizer(LETTERS, given, criteria),
    )


@given(
    prompt=st.lists(st.integers(0, 9), min_size=1, max_size=12),
    tokens=st.lists(st.integers(0, 9), max_size=20),
    positions=st.integers(1, 8),
)
def test_a_full_window_slides_by_half(prompt, tokens, positions):
    each = Sequence(prompt, GenerationConfig(max_length=100), positions)
    window = prompt[-positions:]
    assert (each.window, each.pending, each.computed) == (window, len(window), 0)
    text = list(prompt)
    for token in tokens:
        each.computed = len(each.window)
        assert each.pending == 0
        each.append(token)
        text.append(token)
        slides = len(window) == positions
        window = text[-max(1, positions // 2) :] if slides else [*window, token]
        assert each.window == window
        assert each.pending == (len(window) if slides else 1)
        assert each.next_tokens(2) == window[each.computed :][:2]
    assert (each.tokens, each.new_tokens, each.text) == (text, tokens, "")


def test_why_a_sequence_has_ended():
    plain = Sequence([1], GenerationConfig(max_length=2), 8, end_token=[0, 7])
    for token in (3, 4):
        assert plain.finish_reason is None
        plain.append(token)
    assert (plain.finish_reason, plain.new_tokens) == ("length", [3, 4])
    for token, reason in ((7, "end_token"), (NO_TOKEN, "masked")):
        each = Sequence([1], GenerationConfig(max_length=9), 8, end_token=[0, 7])
        each.append(token)
        assert (each.finish_reason, each.new_tokens) == (reason, [])
        each.finish("cancelled")
        assert each.finish_reason == reason


@pytest.mark.parametrize(
    ("options", "tokens", "reason", "text"),
    [
        ({"stop": "bc"}, [A, B, C], "stop", "a"),
        ({"criteria": [lambda text: text.endswith("b")]}, [A, B], "stop", "ab"),
        ({"stop": "bc"}, [A, B, LETTERS.end_of_text], "end_token", "ab"),
        ({"stop": "bc", "max_length": 2}, [A, B], "length", "ab"),
        ({"stop": "ab", "max_length": 2}, [A, B], "stop", ""),
    ],
)
def test_the_text_of_a_sequence_and_why_it_ended(options, tokens, reason, text):
    """Text that may become a stop string is held back until the end."""
    each = with_text(**options)
    pieces = []
    for token in tokens:
        assert each.finish_reason is None
        each.append(token)
        pieces += each.take_pieces()
    assert (each.finish_reason, each.text, "".join(pieces)) == (reason, text, text)
    assert "" not in pieces
    assert each.take_pieces() == []


def test_a_random_number_stays_the_same_until_a_token_is_appended():
    """So that a step that was interrupted can be repeated."""
    each, numbers = Sequence([1], GenerationConfig(max_length=9), 8, seed=3), random.Random(3)
    for token in range(4):
        expected = numbers.random()
        assert [each.uniform(), each.uniform()] == [expected] * 2
        each.append(token)


def test_the_logits_processors_are_given_no_more_than_they_need():
    """As few groups of sequences as possible are sampled apart."""
    for options, expected in (
        ({}, ([], 0)),
        ({"min_length": 2}, ([], -2)),
        ({"min_length": 3}, ([], -2)),
        ({"min_length": 1}, ([], -1)),
        ({"min_length": 3, "presence_penalty": 1.0}, ([4, 5], 0)),
        ({"presence_penalty": 1.0}, ([4, 5], 0)),
        ({"frequency_penalty": 1.0, "min_length": 1}, ([4, 5], 0)),
        ({"repetition_penalty": 1.1}, ([1, 2, 4, 5], 2)),
        ({"no_repeat_ngram": 2, "frequency_penalty": 1.0}, ([1, 2, 4, 5], 2)),
    ):
        each = Sequence([1, 2], GenerationConfig(max_length=9, **options), 8, end_token=0)
        for token in (4, 5):
            each.append(token)
        assert each.processed_tokens() == expected


def test_log_probabilities_are_recorded_as_asked_for():
    logits = torch.tensor([2.0, 0.0, 1.0])
    expected = logits.double().log_softmax(0).tolist()
    for top, named, best in (
        (0, [], []),
        (2, [1], [0, 2]),
        (9, [2, 1], [0, 2, 1]),
        (None, [0], []),
    ):
        each = Sequence([1], GenerationConfig(max_length=9), 8, top=top, named_tokens=named)
        each.append(2, logits)
        (found,) = each.logprobs
        assert found.logprob == pytest.approx(expected[2])
        assert found.named == pytest.approx([expected[token] for token in named])
        assert [token for token, _ in found.best] == best
        assert [value for _, value in found.best] == pytest.approx([expected[i] for i in best])
        (shares,) = each.probabilities
        assert shares.probability == pytest.approx(math.exp(expected[2]))
        assert shares.best == [(i, pytest.approx(math.exp(expected[i]))) for i in best]
    silent = Sequence([1], GenerationConfig(max_length=9), 8)
    silent.append(2)
    assert (silent.logprobs, silent.prompt_logprobs) == ([], [])
