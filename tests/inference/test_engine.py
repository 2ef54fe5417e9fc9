"""A sequence gets the tokens that it gets alone, whenever it and others join, leave or are cut."""

from __future__ import annotations

import math
from contextlib import suppress

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from src.config_keys import GenerationConfig
from src.errors import AGI2Error
from src.inference.cuda_graph import GraphedBackend, StepModules
from src.inference.engine import Engine, draw_tokens
from src.inference.logits_processors import process_logits
from src.inference.model_runner import ModelRunner
from src.inference.prepare import prepare_for_generation
from src.inference.sampling import NO_TOKEN, draw
from src.inference.sequence import Sequence
from src.nn.cpu_kernels import LIBRARY
from tests.tiny_models import random_model

WIDTH, POSITIONS = 29, 12
MANNERS = [
    GenerationConfig(max_length=9, temperature=0),
    GenerationConfig(max_length=20),
    GenerationConfig(max_length=14, temperature=0.7, top_k=9, top_p=0.9),
    GenerationConfig(max_length=14, repetition_penalty=1.5),
    GenerationConfig(max_length=14, presence_penalty=0.5, frequency_penalty=0.5, min_length=6),
    GenerationConfig(max_length=14, temperature=0, no_repeat_ngram=2, logit_bias={3: 2.0}),
    GenerationConfig(max_length=20, no_repeat_ngram=1),
]
REQUESTS = st.lists(
    st.tuples(
        st.lists(st.integers(0, 2), min_size=1, max_size=16),
        st.integers(0, len(MANNERS) - 1),
        st.integers(0, 3),  # seed
        st.integers(0, 15),  # step at which it joins
    ),
    min_size=1,
    max_size=7,
)


def exact(**changes):
    return random_model(max_seq_len=POSITIONS, **changes).double()


MODELS = {
    "sinusoidal": exact(),
    "learned, post-norm": exact(position_embedding="learned", norm_position="post"),
}


def graphed():
    """Return a model whose next decode step is started before the tokens of one are read."""
    model = exact()
    model.use_decode_backend(GraphedBackend(StepModules.of(model), min_columns=4))
    return model


MODELS["graphed"] = graphed()
if LIBRARY is not None:
    wide = {"d_model": 64, "n_heads": 4, "max_seq_len": POSITIONS}
    for name in ("none", "int8", "int4"):
        MODELS[f"prepared, {name}"] = prepare_for_generation(
            random_model(std=0.15, **wide), name, verbose=False
        )


def request(prompt, manner, seed) -> Sequence:
    return Sequence(prompt, MANNERS[manner], POSITIONS, end_token=[0, 28], seed=seed, top=3)


def alone(model, *arguments) -> Sequence:
    each = request(*arguments)
    Engine(ModelRunner(model, WIDTH)).run([each])
    return each


@pytest.mark.parametrize("name", MODELS)
@given(
    requests=REQUESTS,
    cancelled=st.dictionaries(st.integers(0, 6), st.integers(0, 15), max_size=2),
    interrupted=st.sets(st.integers(0, 25), max_size=3),
    max_rows=st.integers(1, 5),
    max_tokens=st.integers(1, 40),
)
@settings(deadline=None, max_examples=8)
def test_a_sequence_gets_the_tokens_that_it_gets_alone(
    name, requests, cancelled, interrupted, max_rows, max_tokens
):
    """At every moment of joining and leaving, each with its own parameters; also in chunks."""
    model = MODELS[name]
    engine = Engine(ModelRunner(model, WIDTH), max_rows, max_tokens)
    sequences = [request(*arguments) for *arguments, _ in requests]
    time = 0
    while time < 16 or not engine.scheduler.is_idle:
        for index, each in enumerate(sequences):
            if requests[index][3] == time:
                engine.add(each)
            if cancelled.get(index) == time:
                each.finish("cancelled")
        if time in interrupted:
            handle = model.blocks[1].ffn_norm.register_forward_pre_hook(interrupt)
            final = model.final_norm.register_forward_pre_hook(interrupt)
            runs_ahead = model.decode_backend.runs_ahead  # then it may have nothing to compute
            is_certain = busy(engine) and not runs_ahead
            with pytest.raises(KeyboardInterrupt) if is_certain else suppress(KeyboardInterrupt):
                engine.step()
            handle.remove()
            final.remove()
        engine.step()
        time += 1
    for index, (each, (*arguments, _)) in enumerate(zip(sequences, requests, strict=True)):
        expected = alone(model, *arguments)
        count = len(each.new_tokens)
        if index in cancelled:
            assert each.new_tokens == expected.new_tokens[:count]
        else:
            assert each.new_tokens == expected.new_tokens
            assert each.finish_reason == expected.finish_reason
        if name.startswith("prepared"):  # bit for bit
            assert each.probabilities == expected.probabilities[:count]


def interrupt(*_):
    raise KeyboardInterrupt


def busy(engine) -> bool:
    scheduler = engine.scheduler
    return any(each.finish_reason is None for each in (*scheduler.waiting, *scheduler.running))


def reads(model):
    shapes = []
    embeddings = model.token_embeddings
    handle = embeddings.register_forward_pre_hook(
        lambda _, args: shapes.append(tuple(args[0].shape))
    )
    return shapes, handle


def test_running_sequences_keep_going_while_a_long_prompt_is_prefilled():
    model = exact()
    engine = Engine(ModelRunner(model, WIDTH), 4, 8)
    prompts = ([1], [2], [3], [4] * 11)
    sequences = [
        Sequence(prompt, GenerationConfig(max_length=12), POSITIONS, seed=0) for prompt in prompts
    ]
    for each in sequences:
        engine.add(each)
    shapes, handle = reads(model)
    counts = []
    for _ in range(4):
        engine.step()
        counts.append([len(each.new_tokens) for each in sequences])
    handle.remove()
    assert counts == [[1, 1, 1, 0], [2, 2, 2, 0], [3, 3, 3, 1], [4, 4, 4, 2]]
    assert shapes == [(3, 1), (1, 5), (3, 1), (1, 5), (4, 1), (4, 1)]


def test_prompts_of_other_lengths_are_prefilled_without_much_padding():
    model, options = random_model(max_seq_len=48), GenerationConfig(max_length=1)
    engine = Engine(ModelRunner(model, WIDTH), 4)
    for length in (4, 40, 38, 20):
        engine.add(Sequence([length % 7] * length, options, 48, seed=0))
    shapes, handle = reads(model)
    engine.step()
    handle.remove()
    assert shapes == [(1, 4), (2, 40), (1, 20)]


def test_samples_of_a_prompt_are_prefilled_once_and_decoded_together():
    model = exact()
    options = GenerationConfig(max_length=4)
    samples = [Sequence([5, 6, 7], options, POSITIONS, seed=seed) for seed in range(5)]
    shapes, handle = reads(model)
    Engine(ModelRunner(model, WIDTH), 8).run(samples)
    handle.remove()
    assert shapes == [(1, 3), (5, 1), (5, 1), (5, 1)]
    assert len({tuple(each.new_tokens) for each in samples}) == 5


def test_a_row_that_slides_does_not_make_the_others_prefill_again():
    """And prompts are padded only to others of about their length."""
    model = exact()
    prompts = ([1, 2, 3], [2, 3, 4], [3, 4, 5], [4, 5, 6], [7] * 10)
    sequences = [
        Sequence(prompt, GenerationConfig(max_length=7), POSITIONS, seed=0) for prompt in prompts
    ]
    shapes, handle = reads(model)
    Engine(ModelRunner(model, WIDTH), 5).run(sequences)
    handle.remove()
    assert shapes == [(4, 3), (1, 10), (5, 1), (5, 1), (4, 1), (1, 6), (5, 1), (5, 1), (5, 1)]


def test_a_later_sequence_reuses_the_prefix_that_its_row_holds():
    model = exact()
    runner = ModelRunner(model, WIDTH)
    first = Sequence([1, 2, 3], GenerationConfig(max_length=3, temperature=0), POSITIONS)
    Engine(runner).run([first])
    shapes, handle = reads(model)
    second = Sequence([*first.tokens, 9], GenerationConfig(max_length=1, temperature=0), POSITIONS)
    Engine(runner).run([second])
    third = Sequence([1, 2, 4], GenerationConfig(max_length=1, temperature=0), POSITIONS)
    Engine(runner).run([third])
    handle.remove()
    assert shapes == [(1, 2), (1, 1)]
    for each in (second, third):
        twin = Sequence(each.tokens[: each.prompt_length], each.options, POSITIONS)
        Engine(ModelRunner(model, WIDTH)).run([twin])
        assert twin.tokens == each.tokens


def test_prompts_longer_than_the_positions_are_warned_about_once(caplog):
    caplog.set_level("WARNING", "agi2")
    prompts = [[1] * (POSITIONS + more) for more in range(4)]
    sequences = [
        Sequence(prompt, GenerationConfig(max_length=2), POSITIONS, seed=0) for prompt in prompts
    ]
    Engine(ModelRunner(exact(), WIDTH), 4).run(sequences)
    assert caplog.messages == [
        f"the prompt has {POSITIONS + 3} tokens, the model sees {POSITIONS} at a time: only the "
        "last are read"
    ]


@pytest.mark.parametrize("make", [exact, graphed])
@pytest.mark.parametrize("place", ["process_logits", "draw", "Sequence.append"])
def test_an_interrupt_at_any_place_of_a_step_changes_no_text(place, make, monkeypatch):
    """Between the forward pass, the sampling and the bookkeeping of several sequences."""

    class Interrupted(Sequence):
        def append(self, token, logits=None):
            if place == "Sequence.append" and self.prompt_length == 2 and left:
                left.pop()
                raise KeyboardInterrupt
            return super().append(token, logits)

    def interrupting(function):
        def wrapper(*arguments):
            if left and time in (1, 3, 4):
                left.pop()
                raise KeyboardInterrupt
            return function(*arguments)

        return wrapper

    model, left, time = make(), [1, 2, 3], 0
    prompts = [[1], [2, 3], [2, 3], [4, 5, 6], [7]]
    engine = Engine(ModelRunner(model, WIDTH), 4, 6)
    sequences = [
        Interrupted(prompt, GenerationConfig(max_length=3 + index), POSITIONS, seed=index)
        for index, prompt in enumerate(prompts)
    ]
    for each in sequences:
        engine.add(each)
    if place != "Sequence.append":
        name = f"src.inference.engine.{place}"
        original = process_logits if place == "process_logits" else draw
        monkeypatch.setattr(name, interrupting(original))
    interrupts = 0
    while not engine.scheduler.is_idle:
        try:
            engine.step()
        except KeyboardInterrupt:
            interrupts += 1
        time += 1
    monkeypatch.undo()
    assert interrupts == 3
    for index, each in enumerate(sequences):
        twin = Sequence(
            prompts[index], GenerationConfig(max_length=3 + index), POSITIONS, seed=index
        )
        Engine(ModelRunner(model, WIDTH)).run([twin])
        assert each.tokens == twin.tokens


def test_a_stream_that_is_closed_frees_its_row():
    engine = Engine(ModelRunner(exact(), WIDTH))
    each = Sequence([1], GenerationConfig(max_length=9), POSITIONS)
    stream = engine.stream(each)
    next(stream)
    stream.close()
    assert (each.finish_reason, len(each.new_tokens)) == ("cancelled", 1)
    assert engine.scheduler.is_idle
    assert engine.step() == []


def test_speculation_in_the_engine_gives_the_greedy_tokens():
    def streamed(speculative, end):
        options = GenerationConfig(max_length=30, temperature=0, speculative=speculative)
        each = Sequence([1, 2, 1, 2], options, POSITIONS, end_token=end)
        assert list(Engine(ModelRunner(model, WIDTH)).stream(each)) == each.new_tokens
        return each.new_tokens, each.finish_reason

    model = exact(seed=4)
    tokens, reason = streamed("none", None)
    assert reason == "length"
    assert streamed("ngram", None) == (tokens, reason)
    end = tokens[6]
    tokens, reason = streamed("none", end)
    assert reason == "end_token"
    assert streamed("ngram", end) == (tokens, reason)


def test_sequences_are_sampled_each_with_its_own_parameters():
    logits = torch.full((4, 5), -1e3, dtype=torch.float64)
    logits[:, 2], logits[:, 3] = 1.0, 0.9
    greedy, banned = GenerationConfig(temperature=0), GenerationConfig(logit_bias={2: -1e4})
    options = (greedy, banned, greedy, GenerationConfig(no_repeat_ngram=1, temperature=0))
    sequences = [Sequence([2], each, POSITIONS) for each in options]
    assert draw_tokens(logits, sequences).read() == [2, 3, 2, 3]
    assert draw_tokens(torch.full((1, 5), -math.inf), sequences[:1]).read() == [NO_TOKEN]
    with pytest.raises(AGI2Error, match="logits are not finite"):
        draw_tokens(torch.full((1, 5), math.nan), sequences[:1]).read()


@pytest.mark.parametrize("model", [exact(), graphed()])
def test_rows_that_held_what_is_not_finite_do_not_spoil_later_sequences(model):
    """A mask hides no NaN: it is gone from all rows, those that a later batch reads, too."""
    engine = Engine(ModelRunner(model, WIDTH), max_rows=4)
    prompts = [[1] * 9, [2] * 3, [3]]
    requests = [request(prompt, 0, seed=1) for prompt in prompts]
    weight = model.blocks[0].attention.qkv.weight
    kept = weight.detach().clone()
    weight.data.fill_(math.nan)
    with pytest.raises(AGI2Error, match="not finite"):
        engine.run([request([1] * 11, 0, 1), request([2] * 8, 0, 1), request([3] * 10, 0, 1)])
    weight.data.copy_(kept)
    for each in list(engine.scheduler.running):
        each.finish("error")
    engine.run(requests)
    for prompt, each in zip(prompts, requests, strict=True):
        assert each.tokens == alone(model, prompt, 0, 1).tokens
