"""Decode steps in a static KV cache equal those in a growing one; on a GPU, as a CUDA graph."""

import copy
import pickle
import weakref

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from src.config_keys import GenerationConfig
from src.generation import generate_batch, generate_text
from src.inference.beam_search import beam_search
from src.inference.cuda_graph import GraphedBackend, GraphedStep, StepModules, stacked
from src.inference.engine import Engine
from src.inference.model_runner import ModelRunner
from src.inference.prepare import prepare_for_generation
from src.inference.sequence import Sequence
from src.model import GPT2Model
from src.nn.decode_backend import EagerBackend
from src.nn.kv_cache import KVCache
from src.nn.padded_weight import pad_rows
from src.tokenizer import BasicTokenizer
from tests.bounds import assert_same_in_float64
from tests.tiny_models import random_model

WIDTH = 29
PROMPT = st.lists(st.integers(0, WIDTH - 1), min_size=1, max_size=10)
needs_cuda = pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")


def pair(min_columns: int = 2, **changes) -> tuple[GPT2Model, GPT2Model]:
    """Return a model, and one that computes decode steps over 2, 4 or all 8 columns."""
    plain = random_model(max_seq_len=8, **changes).double()
    fixed = copy.deepcopy(plain)
    fixed.use_decode_backend(
        GraphedBackend(StepModules.of(fixed), after=0, min_columns=min_columns)
    )
    return plain, fixed


PAIRS = [
    pair(),
    pair(position_embedding="learned", norm_position="post", bias=False, tie_weights=False),
]


def decoded(model: GPT2Model, cache: KVCache, *tokens: int) -> torch.Tensor | None:
    """Append a token to each row as the model runner does; return the backend's logits, if any."""
    with torch.inference_mode():
        return model.decode_backend.decode(tokens, cache, cache.length)


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
    columns = {each for steps in models[1].decode_backend._steps.values() for each in steps}
    assert columns <= {2, 4, 8}
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
def test_a_longer_row_whose_logits_are_not_needed_changes_nothing(models):
    """It is behind the columns that are read, and keeps its tokens."""
    plain, fixed = models
    caches = [model.new_cache(2) for model in models]
    with torch.inference_mode():
        for cache in caches:
            view = cache.view(1, 2)
            plain(torch.tensor([[3, 1, 4, 1, 5]]), cache=view)
            cache.set_lengths({1: 5})
        found = fixed.decode_backend.decode([2, 0], caches[1].view(0, 2), 0)
        assert_same_in_float64(found[:1], plain(torch.tensor([[2]]), cache=caches[0].view(0, 1))[0])
        assert_same_in_float64(
            *(plain(torch.tensor([[9]]), cache=cache.view(1, 2)) for cache in caches)
        )


def test_what_a_buffer_held_before_does_not_matter():
    plain, fixed = PAIRS[0]
    cache = fixed.new_cache()
    for layer in cache.layers:
        layer.keys.fill_(float("nan"))
        layer.values.fill_(float("inf"))
    assert_same_in_float64(decoded(fixed, cache, 3), plain(torch.tensor([[3]]))[0])


def test_a_step_that_is_computed_before_its_capture_changes_no_token_of_the_cache():
    plain, fixed = PAIRS[0]
    caches = [model.new_cache() for model in (plain, fixed)]
    tokens = torch.tensor([[3, 1, 4]])
    with torch.inference_mode():
        for cache in caches:
            plain(tokens, cache=cache)
        step = GraphedStep(StepModules.of(fixed), caches[1], 4)
        step.load([7], caches[1].lengths)
        step._compute()
        found, expected = (plain(tokens[:, :1], cache=cache) for cache in caches)
    assert torch.equal(found, expected)


def test_each_width_of_a_step_counts_its_runs_before_a_capture():
    _, model = pair()
    cache = model.new_cache()
    for token in range(7):
        decoded(model, cache, token)
    [steps] = model.decode_backend._steps.values()
    assert {columns: step.runs for columns, step in steps.items()} == {2: 2, 4: 2, 8: 3}


def test_what_is_no_decode_step_of_inference_is_left_to_the_model():
    _, model = PAIRS[0]
    one, cache = torch.zeros(1, 1, 16, dtype=torch.float64), model.new_cache()
    assert model.decode_backend(one, None, cache) is None
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert decoded(model, cache, 1) is None
    for _ in range(8):
        assert decoded(model, cache, 1) is not None
    assert decoded(model, cache, 1) is None  # full: the cache says so itself
    with torch.no_grad():  # in which nothing of inference mode may be written
        assert model.decode_backend.decode([1], model.new_cache(), 0) is None


def test_parts_of_a_tensor_are_stacked_without_a_copy():
    whole = torch.arange(24).view(2, 3, 4)
    for parts in (whole.unbind(0), whole.chunk(2, dim=-1), whole.transpose(0, 2).chunk(2)):
        view = stacked(*parts)
        assert torch.equal(view, torch.stack(parts))
        assert view.data_ptr() == whole.data_ptr()
    for others in ((whole[0], whole[0].clone()), (whole[0], whole[1, :2]), (whole[1], whole[0])):
        with pytest.raises(ValueError, match="not parts of one"):
            stacked(*others)


def test_steps_are_freed_with_their_cache():
    _, model = pair()
    cache = model.new_cache()
    assert decoded(model, cache, 3) is not None
    buffer = weakref.ref(cache.layers[0].keys)
    del cache
    assert buffer() is None


@pytest.mark.parametrize("is_tied", [True, False])
def test_a_padded_head_gives_the_same_logits_and_more(is_tied):
    plain, fixed = pair(tie_weights=is_tied)
    pad_rows(fixed.output_weight)
    logits = decoded(fixed, fixed.new_cache(2), 3, 1)
    assert logits.shape == (2, 64)
    assert_same_in_float64(logits[:, :WIDTH], plain(torch.tensor([[3], [1]]))[:, 0])
    runner = ModelRunner(fixed, WIDTH)
    runner.prefill([3])
    assert runner.decode(torch.tensor([1])).shape == (1, WIDTH)


@pytest.mark.parametrize("copied", [copy.deepcopy, lambda each: pickle.loads(pickle.dumps(each))])
def test_a_copy_of_a_model_has_steps_of_its_own(copied):
    plain, model = pair()
    decoded(model, model.new_cache(), 3)
    twin = copied(model)
    with torch.no_grad():
        twin.blocks[0].ffn.contract.bias += 1.0
    assert twin.decode_backend._modules.blocks == list(twin.blocks)
    tokens = torch.tensor([[3]])
    assert_same_in_float64(decoded(twin, twin.new_cache(), 3), twin(tokens)[0])
    assert_same_in_float64(decoded(model, model.new_cache(), 3), plain(tokens)[0])


def test_where_no_step_can_be_captured_the_model_computes_all():
    """Also if that turns out while sequences are decoded."""
    plain, fixed = pair()
    texts = []
    for model in (plain, fixed):
        sequences = [Sequence([1, 2], GenerationConfig(max_length=12), 8, seed=i) for i in range(2)]
        engine = Engine(ModelRunner(model, WIDTH), 2)
        for each in sequences:
            engine.add(each)
        for _ in range(3):
            engine.step()
        model.decode_backend._works = False
        while not engine.scheduler.is_idle:
            engine.step()
        texts.append([each.new_tokens for each in sequences])
    assert texts[0] == texts[1]


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
def test_sequences_that_join_and_leave_get_the_same_tokens_from_graphs():
    """Rows move, and graphs are captured, in the middle of texts of all lengths."""
    plain = random_model(max_seq_len=24).double()
    texts = []
    for device in ("cpu", "cuda"):
        model = copy.deepcopy(plain).to(device)
        if device == "cuda":
            pad_rows(model.output_weight)
            backend = GraphedBackend(StepModules.of(model), after=1, min_columns=4)
            model.use_decode_backend(backend)
        for max_rows in (1, 3, 8, 8):  # the last time with the graphs of the one before
            sequences = [
                Sequence(
                    range(1, 2 + seed % 5),
                    GenerationConfig(max_length=3 + 7 * seed % 31, temperature=seed % 2),
                    24,
                    end_token=seed,
                    seed=seed,
                )
                for seed in range(13)
            ]
            Engine(ModelRunner(model, WIDTH), max_rows).run(sequences)
            texts.append([each.new_tokens for each in sequences])
    assert texts[:4] == texts[4:]
    steps = [step for steps in backend._steps.values() for step in steps.values()]
    assert sum(step.graph is not None for step in steps) > 4


@pytest.mark.gpu
@needs_cuda
def test_a_graph_is_recorded_and_not_only_tried(caplog):
    model = prepare_for_generation(random_model(max_seq_len=64).cuda())
    model.decode_backend._min_columns = 16
    runner = ModelRunner(model, WIDTH)
    Engine(runner).run([Sequence([1], GenerationConfig(max_length=60, temperature=0), 64)])
    [steps] = model.decode_backend._steps.values()
    assert list(steps) == [16, 32, 64]
    assert all(step.graph is not None for step in steps.values())
    assert not caplog.messages
