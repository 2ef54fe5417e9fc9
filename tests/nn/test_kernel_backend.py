"""Blocks computed by the CPU kernels, against the model's own layers."""

import copy
from types import SimpleNamespace

import pytest
import torch

from src.ffn import ACTIVATIONS
from src.inference.prepare import prepare_for_generation
from src.nn.cpu_library import LIBRARY
from src.nn.kernel_backend import KernelBackend
from src.nn.kv_cache import KVCache
from tests.bounds import (
    Bounded,
    assert_within,
    bounded_block,
)
from tests.nn.kernels import WIDTHS, needs_library, prepared_model, random
from tests.tiny_models import random_model

MODELS = [
    {},
    {"position_embedding": "learned", "tie_weights": False},
    {"norm_position": "post", "bias": False},
    {"activation": "gelu"},
    {"activation": "relu", "n_heads": 1},
    {"activation": "silu", "n_layers": 1},
]


PARTS = [4, 1, 1, 5, 45, 2, 1, 1]  # prompt, single tokens, several, more rows than are read at once


@needs_library
@pytest.mark.parametrize("quantize", ["none", "int8", "int4"])
@pytest.mark.parametrize("low", [None, "attention.proj", "ffn.contract"])
@pytest.mark.parametrize("changes", MODELS, ids=str)
@torch.inference_mode()
def test_a_layer_over_a_few_tokens_is_the_models_own(changes, low, quantize):
    """To what rounding allows: see `bounds`.

    The error of one half grows in the other to what might hide a fault: so each is looked at, too,
    with the other one's output made a millionth of itself, which changes no rounding.
    """
    model = random_model(std=0.1, **{**WIDTHS, **changes, "n_layers": 1})
    block = model.blocks[0]
    if low is not None:
        for parameter in block.get_submodule(low).parameters():
            parameter.mul_(2.0**-20)
    prepare_for_generation(model, quantize)
    x = random(3, 60, 64, seed=1)
    activation = ACTIVATIONS[model.config.activation]
    bits = {"none": 32, "int8": 8, "int4": 4}[quantize]
    expected = bounded_block(block, Bounded(x), activation, bits)
    cache, found = model.new_cache(3), []
    for part in x.split(PARTS, dim=1):
        read = model.decode_backend(part.clone(), None, cache)
        if read is None:  # too many rows: PyTorch's, with the same cache
            read = block(part, causal=True, cache=cache.layers[0])
        found.append(read)
    assert_within(torch.cat(found, dim=1), expected.exact, expected.error)
    if low is not None:
        most = 0.5 if quantize == "int4" else 0.05
        assert expected.error.mean() < most * expected.exact.std()


@needs_library
@pytest.mark.parametrize("quantize", ["none", "int8", "int4"])
@pytest.mark.parametrize("changes", MODELS, ids=str)
@torch.inference_mode()
def test_layers_are_one_after_another(changes, quantize):
    """Bit for bit."""
    model = prepared_model(changes, quantize)
    held = model.decode_backend._layers
    alone = [
        KernelBackend(
            [layer], model.config.n_heads, model.config.activation, model.blocks[0].pre_norm
        )
        for layer in held
    ]
    together = model.new_cache(3)
    apart = [KVCache(1, 3, model.config.n_heads, 60, model.config.head_dim) for _ in held]
    for part in random(3, 20, 64, seed=1).split([4, 1, 1, 5, 9], dim=1):
        expected = part.clone()
        for layer, cache in zip(alone, apart, strict=True):
            expected = layer(expected, None, cache)
        assert torch.equal(model.decode_backend(part.clone(), None, together), expected)
    for layer, cache in zip(together.layers, apart, strict=True):
        assert torch.equal(layer.keys[:, :, :20], cache.layers[0].keys[:, :, :20])


@needs_library
@pytest.mark.parametrize("quantize", ["none", "int8"])
@torch.inference_mode()
def test_padding_before_a_text_is_not_seen(quantize):
    """Bit for bit."""
    model = prepared_model({"position_embedding": "learned"}, quantize)
    ids = torch.randint(0, 29, (3, 6), generator=torch.Generator().manual_seed(2))
    starts = [3, 0, 2]
    is_text = torch.arange(6) >= torch.tensor(starts).unsqueeze(1)
    cache = model.new_cache(3)
    found = torch.cat(
        [
            model(ids[:, first:end], is_text[:, :end], cache=cache)
            for first, end in ((0, 4), (4, 5), (5, 6))
        ],
        dim=1,
    )
    # The prompt is prefilled in the chunks of the batch.
    for row, start in enumerate(starts):
        alone = model(ids[row : row + 1, start:], cache=model.new_cache(1))
        assert torch.equal(found[row, start:], alone[0])


@needs_library
@pytest.mark.parametrize("quantize", ["none", "int8", "int4"])
@torch.inference_mode()
def test_a_text_of_any_batch_is_what_it_is_alone(quantize):
    """Bit for bit, however many rows are read at once and however a text is cut to be read."""
    model = prepare_for_generation(random_model(**{**WIDTHS, "max_seq_len": 64}), quantize)
    ids = torch.randint(0, 29, (4, 60), generator=torch.Generator().manual_seed(3))
    padding = torch.tensor([0, 7, 23, 59])
    together = model(ids, torch.arange(60) >= padding.unsqueeze(1), cache=model.new_cache(4))
    for row, start in enumerate(padding.tolist()):
        alone = model(ids[row : row + 1, start:], cache=model.new_cache(1))
        cache = model.new_cache(1)
        cut = [model(part, cache=cache) for part in ids[row : row + 1, start:].split(11, dim=1)]
        assert torch.equal(together[row, start:], alone[0])
        assert torch.equal(torch.cat(cut, dim=1), alone)


@needs_library
@torch.inference_mode()
def test_what_the_compiled_pass_does_not_do_it_leaves_to_pytorch():
    model = prepare_for_generation(random_model(**WIDTHS))
    few = model.decode_backend
    x = random(1, 3, 64)
    cache = model.new_cache(1)
    assert few(x.double(), None, cache) is None
    assert few(x.to("meta"), None, cache) is None
    assert few(x, torch.ones(1, 3, 3, dtype=torch.bool), cache) is None
    for mask in ([[True, False, True]], [[True, True, False]]):
        assert few(x, torch.tensor(mask), cache) is None
    with torch.inference_mode(False), torch.enable_grad():
        assert few(random(1, 3, 64), None, cache) is None
    assert cache.length == 0
    assert few(x, None, cache) is not None
    assert cache.length == 3


@needs_library
@torch.inference_mode()
def test_without_memory_there_is_an_error(monkeypatch):
    model = prepare_for_generation(random_model(**WIDTHS))
    full = SimpleNamespace(
        agi2_linear=lambda *_: 1, agi2_layers=lambda *_: 1, agi2_unpack=LIBRARY.agi2_unpack
    )
    monkeypatch.setattr("src.nn.cpu_kernels.LIBRARY", full)
    monkeypatch.setattr("src.nn.kernel_backend.LIBRARY", full)
    with pytest.raises(MemoryError):
        model.head(random(1, 64))
    with pytest.raises(MemoryError):
        model(torch.tensor([[1, 2]]), cache=model.new_cache(1))


@needs_library
@pytest.mark.parametrize("quantize", ["none", "int8", "int4"])
@pytest.mark.parametrize("token", [-1, 29, 2**40])
def test_a_token_that_the_vocabulary_has_not_is_refused(quantize, token):
    model = prepare_for_generation(random_model(**WIDTHS), quantize)
    with pytest.raises(IndexError):
        model(torch.tensor([[1, token]]))
    few = model.token_embeddings(torch.tensor([[1, 2]]))
    assert torch.equal(model.token_embeddings(torch.tensor([[1, 2]], dtype=torch.int32)), few)


@pytest.mark.parametrize(
    ("name", "norm", "has_kernel"),
    [
        ("attention_norm", torch.nn.LayerNorm(64, elementwise_affine=False), True),
        ("attention_norm", torch.nn.LayerNorm(64, eps=0.5), False),
        ("ffn_norm", torch.nn.RMSNorm(64, eps=1e-5), False),
    ],
)
@needs_library
@torch.inference_mode()
def test_a_norm_without_weight_or_of_another_kind_is_right_all_the_same(name, norm, has_kernel):
    model = random_model(**{**WIDTHS, "n_layers": 2})
    setattr(model.blocks[1], name, norm)
    plain = copy.deepcopy(model)
    prepare_for_generation(model)
    assert isinstance(model.decode_backend, KernelBackend) == has_kernel
    if has_kernel:
        norm.weight = torch.nn.Parameter(torch.ones(64))  # what none stands for
        named = prepare_for_generation(copy.deepcopy(plain))
        ids = torch.tensor([[1, 2, 3]])
        found, expected = (each(ids, cache=each.new_cache()) for each in (model, named))
        assert torch.equal(found, expected)
