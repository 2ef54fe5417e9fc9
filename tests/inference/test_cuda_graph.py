"""Decode steps in a static KV cache equal those in a growing one; on a GPU, as a CUDA graph."""

import copy
import pickle
import weakref

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from src.config_keys import GenerationConfig
from src.generation import generate_batch, generate_text, generate_tokens
from src.inference.beam_search import beam_search
from src.inference.cuda_graph import GraphedBackend, GraphedStep
from src.inference.engine import Engine
from src.inference.model_runner import ModelRunner
from src.inference.prepare import prepare_for_generation
from src.inference.sequence import Sequence
from src.model import GPT2Model
from src.nn.decode_backend import EagerBackend
from src.tokenizer import BasicTokenizer
from tests.bounds import assert_same_in_float64
from tests.tiny_models import random_model

WIDTH = 29
PROMPT = st.lists(st.integers(0, WIDTH - 1), min_size=1, max_size=10)
needs_cuda = pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")


def pair(**changes) -> tuple[GPT2Model, GPT2Model]:
    """A model as it is, and one that takes its single tokens in fixed steps."""
    plain = random_model(max_seq_len=8, **changes).double()
    fixed = copy.deepcopy(plain)
    fixed.use_decode_backend(GraphedBackend(fixed.blocks, after=0))
    return plain, fixed


PAIRS = [pair(), pair(position_embedding="learned", norm_position="post", bias=False)]


@pytest.mark.parametrize("models", PAIRS)
@given(prompt=PROMPT, seed=st.integers(0, 999), data=st.data())
@settings(max_examples=6)
def test_rows_get_the_same_logits_in_fixed_steps(models, prompt, seed, data):
    """Past the model's positions, in another order, fewer or more."""
    plain, fixed = (ModelRunner(model, WIDTH) for model in models)
    assert_same_in_float64(fixed.prefill(prompt), plain.prefill(prompt))
    rows = 1
    for tokens in torch.randint(WIDTH, (6, 12), generator=torch.Generator().manual_seed(seed)):
        for _ in range(3):
            assert_same_in_float64(fixed.decode(tokens[:rows]), plain.decode(tokens[:rows]))
        order = data.draw(st.lists(st.integers(0, rows - 1), min_size=1, max_size=4))
        rows = len(order)
        for runner in (plain, fixed):
            runner.reorder(torch.tensor(order))


@pytest.mark.parametrize("models", PAIRS)
@given(prompts=st.lists(PROMPT, min_size=1, max_size=7), max_rows=st.integers(1, 7))
@settings(max_examples=6, deadline=None)
def test_sequences_that_join_and_leave_get_the_same_tokens_in_few_fixed_steps(
    models, prompts, max_rows
):
    """One step for each power of two of rows, the rest of which compute tokens that are dropped."""
    texts = []
    for model in models:
        sequences = [
            Sequence(prompt, GenerationConfig(max_length=3 + 4 * seed), 8, seed=seed)
            for seed, prompt in enumerate(prompts)
        ]
        runner = ModelRunner(model, WIDTH)
        Engine(runner, max_rows).run(sequences)
        texts.append([each.new_tokens for each in sequences])
    assert texts[0] == texts[1]
    steps = [cache.batch_size for cache in models[1].decode_backend._steps]
    assert set(steps) <= {1, 2, 4, min(max_rows, len(prompts))}
    assert len(set(steps)) == len(steps)


@pytest.mark.parametrize("models", PAIRS)
def test_a_text_that_begins_anew_in_the_same_cache_is_read_as_it_is(models):
    plain, fixed = (ModelRunner(model, WIDTH) for model in models)
    for prompt in ([1, 2, 3], [1, 2, 4, 5], [1]):
        assert_same_in_float64(fixed.prefill(prompt), plain.prefill(prompt))
        for token in (7, 9):
            assert_same_in_float64(
                fixed.decode(torch.tensor([token])), plain.decode(torch.tensor([token]))
            )


@pytest.mark.parametrize("models", PAIRS)
def test_padding_on_the_right_and_masks_of_one_row_are_seen(models):
    plain, fixed = models
    tokens = torch.randint(WIDTH, (2, 6), generator=torch.Generator().manual_seed(0))
    masks = torch.tensor([[1, 1, 1, 0, 1, 1], [0, 1, 1, 1, 1, 1]]), torch.ones(1, 6)
    for mask in masks:
        caches = [model.new_cache(2) for model in models]
        with torch.inference_mode():
            for end in range(1, 7):
                found, expected = (
                    model(tokens[:, end - 1 : end], mask[:, :end], cache=cache)
                    for model, cache in zip((fixed, plain), caches, strict=True)
                )
                shown = mask[:, end - 1].bool().expand(2)
                assert_same_in_float64(found[shown], expected[shown])


def test_what_a_buffer_held_before_does_not_matter():
    plain, fixed = PAIRS[0]
    cache = fixed.new_cache()
    for layer in cache.layers:
        layer.keys.fill_(float("nan"))
        layer.values.fill_(float("inf"))
    with torch.inference_mode():
        assert_same_in_float64(fixed(torch.tensor([[3]]), cache=cache), plain(torch.tensor([[3]])))


def test_a_step_that_is_taken_for_its_own_sake_changes_nothing_that_is_held():
    """As it is to be recorded."""
    plain, fixed = PAIRS[0]
    caches = [model.new_cache() for model in (plain, fixed)]
    tokens = torch.tensor([[3, 1, 4]])
    with torch.inference_mode():
        for cache in caches:
            plain(tokens, cache=cache)
        GraphedStep(list(fixed.blocks), caches[1])._compute()
        found, expected = (plain(tokens[:, :1], cache=cache) for cache in caches)
    assert torch.equal(found, expected)


def test_a_step_is_made_once_a_cache_has_had_some_tokens():
    layers = GraphedBackend(PAIRS[0][0].blocks, after=3)
    one = torch.zeros(1, 1, 16, dtype=torch.float64)
    with torch.inference_mode():
        for _ in range(2):
            cache = PAIRS[0][0].new_cache()
            assert [layers(one, None, cache) is None for _ in range(4)] == [True] * 3 + [False]


def test_what_is_no_single_token_is_left_to_others():
    _, model = PAIRS[0]
    one, cache = torch.zeros(1, 1, 16, dtype=torch.float64), model.new_cache()
    with torch.inference_mode():
        assert model.decode_backend(torch.zeros(1, 2, 16, dtype=torch.float64), None, cache) is None
        assert model.decode_backend(one, torch.ones(1, 1, 1, dtype=torch.bool), cache) is None
        with torch.autocast("cpu", dtype=torch.bfloat16):
            assert model.decode_backend(one, None, cache) is None
        for _ in range(8):
            assert model.decode_backend(one, None, cache) is not None
        assert model.decode_backend(one, None, cache) is None  # full: the cache says so itself
    with torch.no_grad():  # in which nothing of inference mode may be written
        assert model.decode_backend(one, None, model.new_cache()) is None


def test_a_step_goes_with_its_cache():
    _, model = pair()
    cache = model.new_cache()
    with torch.inference_mode():
        model(torch.tensor([[3]]), cache=cache)
    buffer = weakref.ref(cache.layers[0].keys)
    del cache
    assert buffer() is None


@pytest.mark.parametrize("copied", [copy.deepcopy, lambda each: pickle.loads(pickle.dumps(each))])
def test_a_copy_of_a_model_has_steps_of_its_own(copied):
    plain, model = pair()
    tokens = torch.tensor([[3]])
    with torch.inference_mode():
        model(tokens, cache=model.new_cache())
        twin = copied(model)
        with torch.no_grad():
            twin.blocks[0].ffn.contract.bias += 1.0
        assert twin.decode_backend._blocks == list(twin.blocks)
        found = twin(tokens, cache=twin.new_cache())
        assert_same_in_float64(found, twin(tokens))
        assert_same_in_float64(model(tokens, cache=model.new_cache()), plain(tokens))


def test_weights_that_are_moved_are_decoded_by_pytorch_again():
    """A recorded step would read the old ones."""
    _, model = pair()
    model.double()
    assert isinstance(model.decode_backend, GraphedBackend)  # they are where they were
    model.float()
    assert isinstance(model.decode_backend, EagerBackend)


@pytest.mark.gpu
@needs_cuda
def test_a_gpu_replays_what_it_computes():
    tokenizer = BasicTokenizer("abcdefghijklmnopqrstuvwxyz")
    model = random_model(vocab_size=tokenizer.vocab_size, max_seq_len=32).cuda()
    prompts = ["abc", "defghi", "z"]
    greedy = {"temperature": 0, "tokenizer": tokenizer}

    def written():
        return (
            generate_text(model, "abc", 60, **greedy),
            generate_batch(model, prompts, 60, **greedy),
            [each.tokens for each in beam_search(model, [3, 4, 5], 4, 20)],
        )

    expected = written()
    prepare_for_generation(model)
    assert isinstance(model.decode_backend, GraphedBackend)
    assert written() == expected


@pytest.mark.gpu
@needs_cuda
def test_a_gpu_s_graph_gives_the_logits_of_the_step():
    plain, fixed = pair()
    runners = [ModelRunner(model.cuda(), WIDTH) for model in (plain, fixed)]
    assert_same_in_float64(*(runner.prefill([3, 1, 4, 1]) for runner in runners))
    for runner in runners:
        runner.reorder(torch.zeros(3, dtype=torch.long, device="cuda"))
    for tokens in torch.randint(WIDTH, (14, 3), device="cuda"):  # past the model's positions
        assert_same_in_float64(*(runner.decode(tokens) for runner in runners))


@pytest.mark.gpu
@needs_cuda
def test_a_graph_is_recorded_and_not_only_tried(caplog):
    model = prepare_for_generation(random_model().cuda())
    list(generate_tokens(model, [1], 14, 0))
    with torch.inference_mode():
        assert GraphedStep(list(model.blocks), model.new_cache(1)).replay is not None
    assert not caplog.messages
