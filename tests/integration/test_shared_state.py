"""Concurrent streams, beam searches, evaluations and training steps on one model."""

import gc
import threading

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from src.errors import AGI2Error
from src.evaluation.loss import evaluate
from src.generation import (
    generate_batch,
    generate_beam_text,
    generate_choices,
    generate_text,
    generate_tokens,
    stream_text,
)
from src.inference.model_runner import ModelRunner
from src.interactive import InteractivePrompt
from src.nn.dropout import evaluating
from src.training import train_epoch
from tests.bounds import assert_same_in_float64
from tests.tiny_models import byte_tokenizer, random_model

VOCABULARY = 257


@pytest.fixture(scope="module")
def tokenizer():
    return byte_tokenizer()


@pytest.fixture(scope="module")
def model():
    """Of much dropout: where it is on, a text is another one."""
    return random_model(vocab_size=VOCABULARY, max_seq_len=24, dropout=0.5, std=0.2)


def streams(model, tokenizer):
    """Every way to generate piece by piece, as functions that open a stream."""

    def reply():
        return InteractivePrompt(model, 12, tokenizer, max_length=9, seed=5).stream_message("ab")

    return [
        lambda: generate_tokens(model, [1, 2], 9, seed=1),
        lambda: stream_text(model, "abc", 30, tokenizer=tokenizer, seed=2),
        lambda: generate_tokens(model, [3], 9, temperature=0, speculative="ngram"),
        reply,
    ]


def at_once(model, tokenizer):
    """Every other use of the model that is not to depend on its mode."""

    def loss():
        with evaluating():
            return float(model(torch.arange(8).unsqueeze(0)).sum())

    return [
        lambda: generate_text(model, "ab", 5, tokenizer=tokenizer, seed=1),
        lambda: generate_batch(model, ["a", "abc"], 5, tokenizer=tokenizer, n=2, seed=1),
        lambda: generate_beam_text(model, "ab", 3, 5, tokenizer=tokenizer),
        lambda: generate_choices(model, "ab", 5, tokenizer=tokenizer, seed=1),
        loss,
    ]


def training_step(model):
    """Gradients through dropout where the model trains, without it where not; no weight changes."""
    tokens = torch.arange(16).reshape(2, 8)
    was_training = model.training
    first, second = model(tokens), model(tokens)
    assert torch.equal(first, second) is not was_training
    second.sum().backward()
    assert all(parameter.grad is not None for parameter in model.parameters())
    model.zero_grad()


ACTIONS = st.lists(
    st.one_of(
        st.tuples(
            st.sampled_from(["open", "next", "next", "next", "drain", "close"]), st.integers(0, 3)
        ),
        st.tuples(st.just("at once"), st.integers(0, 4)),
        st.tuples(st.sampled_from(["train", "eval", "step", "collect"]), st.just(0)),
    ),
    min_size=5,
    max_size=25,
)


@given(actions=ACTIONS)
@settings(deadline=None, max_examples=6)
def test_whatever_overlaps_each_text_is_what_it_is_alone(model, tokenizer, actions):
    model.eval()
    opening, uses = streams(model, tokenizer), at_once(model, tokenizer)
    alone = [list(stream()) for stream in opening]
    expected = [use() for use in uses]
    is_training = False
    running = {}
    for action, number in actions:
        if action == "open":
            running[number] = (opening[number](), [])
        elif action in ("next", "drain") and number in running:
            stream, pieces = running[number]
            pieces += (
                stream if action == "drain" else [each for each in [next(stream, None)] if each]
            )
            assert pieces == alone[number][: len(pieces)]
            assert action == "next" or pieces == alone[number]
        elif action == "close" and number in running:
            running.pop(number)[0].close()
        elif action == "at once":
            assert uses[number]() == expected[number]
        elif action in ("train", "eval"):
            is_training = action == "train"
            model.train(is_training)
        elif action == "step":
            training_step(model)
        elif action == "collect" and running:
            running.popitem()
            gc.collect()
        assert {module.training for module in model.modules()} == {is_training}
        assert torch.is_grad_enabled()
        assert not torch.is_inference_mode_enabled()


def test_streams_in_threads_beside_training_steps(model, tokenizer):
    model.eval()
    opening = streams(model, tokenizer)
    alone = [list(stream()) for stream in opening]
    model.train()
    found = {}

    def run(number):
        found[number] = [list(opening[number % 4]()) for _ in range(3)]

    threads = [threading.Thread(target=run, args=(number,)) for number in range(8)]
    for thread in threads:
        thread.start()
    while any(thread.is_alive() for thread in threads):
        training_step(model)
    for thread in threads:
        thread.join()
    assert model.training
    assert found == {number: [alone[number % 4]] * 3 for number in range(8)}


@pytest.mark.uncounted
def test_a_compiled_model_is_one_graph_with_all_its_checks():
    model = random_model(n_layers=1).double().train()  # where a fault is far above the rounding
    tokens = torch.arange(16).reshape(2, 8)
    mask = torch.ones(1, 8, 8, dtype=torch.bool)
    compiled = torch.compile(model, backend="eager", fullgraph=True)
    assert_same_in_float64(compiled(tokens, mask), model(tokens, mask))


def test_evaluation_and_an_epoch_of_training_leave_a_stream_alone(tokenizer):
    from src.dataset import TextDataset

    model = random_model(vocab_size=VOCABULARY, max_seq_len=24, dropout=0.5, std=0.2)
    expected = generate_text(model, "ab", 9, tokenizer=tokenizer, return_full_text=False, seed=1)
    windows = TextDataset.from_tokens(tokenizer.encode_array("abcdefgh" * 9), 9)
    loss = evaluate(model, windows, tokenizer).loss
    stream = stream_text(model, "ab", 9, tokenizer=tokenizer, seed=1)
    text = next(stream)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.0)
    batches = [torch.stack([windows[0], windows[1]])]
    train_epoch(model, batches, optimizer, torch.nn.CrossEntropyLoss(), "cpu", 1.0)
    assert evaluate(model, windows, tokenizer).loss == loss
    assert text + "".join(stream) == expected
    assert model.training


def test_a_decoder_decodes_one_text_at_a_time(model, tokenizer):
    expected = list(stream_text(model, "abc", 9, tokenizer=tokenizer, seed=1))
    runner = ModelRunner(model, tokenizer.vocab_size)

    def stream(**options):
        return stream_text(model, "abc", 9, tokenizer=tokenizer, seed=1, runner=runner, **options)

    first = stream()
    pieces = [next(first)]
    for options in ({}, {"temperature": 0, "speculative": "ngram"}):
        with pytest.raises(AGI2Error, match=r"^this runner is decoding another text: exhaust or"):
            next(stream(**options))
    assert pieces + list(first) == expected
    assert list(stream()) == expected


def test_a_decoder_of_another_model_is_refused(model, tokenizer):
    for runner in (
        ModelRunner(random_model(vocab_size=VOCABULARY), VOCABULARY),
        ModelRunner(model, 9),
    ):
        with pytest.raises(AGI2Error, match=r"^runner is of another model or tokenizer"):
            stream_text(model, "abc", 9, tokenizer=tokenizer, runner=runner)
    with pytest.raises(AGI2Error, match=r"^vocab_size 258 is above the model's 257 tokens$"):
        ModelRunner(model, VOCABULARY + 1)
