"""The compiled part beside PyTorch: the same products, the same layers."""

import ctypes
import math
from types import SimpleNamespace

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st

from src.native import FEW, LIBRARY, Gelu, NativeLinear, Weights, load, pack, unpack
from src.quantization import arrange, prepare_for_generation, restore
from tests.tiny_models import random_model

needs_library = pytest.mark.skipif(LIBRARY is None, reason="no C compiler at installation")
WIDTHS = {"d_model": 64, "d_ff": 192, "n_heads": 4, "n_layers": 3, "max_seq_len": 60}


def random(*shape, seed=0, std=1.0):
    return torch.empty(*shape).normal_(std=std, generator=torch.Generator().manual_seed(seed))


def rounded(x):
    """Inputs as weights of 4 bits meet them, in 255 levels for each 32; and a level's worth."""
    groups = x.unflatten(-1, (-1, 32))
    level = groups.abs().amax(-1, keepdim=True) / 127
    return ((groups / level).round() * level).flatten(-2), level.expand_as(groups).flatten(-2)


@needs_library
@given(
    rows=st.integers(1, 20),
    outputs=st.integers(1, 70),
    inputs=st.integers(1, 9).map(lambda n: 64 * n),
    bits=st.sampled_from([32, 8, 4]),
    bias=st.booleans(),
    seed=st.integers(0, 99),
)
@settings(deadline=None)
@torch.inference_mode()
def test_a_product_is_pytorchs_of_the_same_weights(rows, outputs, inputs, bits, bias, seed):
    given_bias = random(outputs, seed=seed + 1) if bias else None
    weights = arrange(random(outputs, inputs, seed=seed), given_bias, bits)
    x = random(2, rows, inputs, seed=seed + 2)[1:]
    if bits == 4:
        x, _ = rounded(x)  # which leaves the product nothing to round
    double_bias = None if given_bias is None else given_bias.double()
    expected = F.linear(x.double(), restore(weights).double(), double_bias)
    found = NativeLinear(weights)(x)
    assert found.shape == expected.shape
    # Inputs have 16 bits beside weights of 8.
    slack = {32: 1e-6, 8: 1.5e-4, 4: 4e-6}[bits] * math.sqrt(inputs)
    assert (found - expected).abs().max() < slack


def whole(weight):
    """A matrix in 32 bits."""
    return Weights(weight, None, None, *reversed(weight.shape), 32)


@needs_library
@given(
    outputs=st.integers(1, 40),
    inputs=st.integers(1, 5).map(lambda n: 64 * n),
    spread=st.sampled_from([0.0, 1.0, 4.0, 12.0]),
    zeros=st.floats(0, 1),
    seed=st.integers(0, 99),
)
@settings(deadline=None)
@torch.inference_mode()
def test_packed_weights_are_the_same_bit_for_bit(outputs, inputs, spread, zeros, seed):
    """Rows of any size, with zeros of both signs and subnormal numbers; and their products."""
    weight = (
        random(outputs, inputs, seed=seed)
        * random(outputs, inputs, seed=seed + 1).mul(spread).exp2()
    )
    weight *= random(outputs, 1, seed=seed + 2, std=20).exp2()
    weight[:: max(1, outputs // 3)] *= random(inputs, seed=seed + 3) > torch.tensor(zeros * 4 - 2)
    weight[outputs // 2] *= 2.0**-120
    packed = pack(weight, None)
    assert packed is not None
    assert torch.equal(unpack(packed).view(torch.int32), weight.view(torch.int32))
    rows = torch.randint(outputs, (3, 2), generator=torch.Generator().manual_seed(seed)).T[0]
    assert torch.equal(unpack(packed, rows), weight[rows])
    for count in (1, 6, 8, 16, 17):
        x = random(count, inputs, seed=seed + 4)
        assert torch.equal(NativeLinear(packed)(x), NativeLinear(whole(weight))(x))


@needs_library
def test_ordinary_weights_take_28_bits_and_little_more():
    weight = random(3000, 768, std=0.02)
    packed = pack(weight, None)
    assert packed is not None
    assert 28 <= packed.values.nbytes * 8 / weight.numel() < 28.5
    assert pack(random(5, 72), None) is None  # no multiple of 64
    assert pack(random(5, 64).bfloat16(), None) is None


@needs_library
@torch.inference_mode()
def test_inputs_of_weights_of_4_bits_are_off_by_half_a_level_at_most():
    weights = arrange(random(37, 320), None, 4)
    x = random(9, 320, seed=1) * torch.logspace(-2, 2, 320)
    found = NativeLinear(weights)(x)
    _, level = rounded(x)
    error = (found - F.linear(x.double(), restore(weights).double())).abs()
    assert (error <= 0.501 * F.linear(level, restore(weights).abs())).all()


@needs_library
@pytest.mark.parametrize("bits", [32, 8, 4])
@torch.inference_mode()
def test_a_row_among_others_is_what_it_is_alone(bits):
    """Bit for bit: so a text does not depend on its batch."""
    linear = NativeLinear(arrange(random(37, 128), None, bits))
    x = random(19, 128, seed=1)
    for count in range(1, 20):
        torch.testing.assert_close(linear(x)[:count], linear(x[:count]), atol=0, rtol=0)


@needs_library
@torch.inference_mode()
def test_the_widest_sums_of_8_bits_fit():
    inputs = 20_000
    weights = arrange(torch.ones(3, inputs), None, 8)
    x = torch.ones(2, inputs)
    torch.testing.assert_close(NativeLinear(weights)(x), torch.full((2, 3), float(inputs)))


@needs_library
@pytest.mark.parametrize("bits", [32, 8, 4])
@pytest.mark.parametrize("wrong", [math.nan, math.inf, -math.inf])
@torch.inference_mode()
def test_what_is_no_number_stays_none(bits, wrong):
    x = random(3, 64)
    x[1, 7] = wrong
    found = NativeLinear(arrange(random(5, 64, seed=1), None, bits))(x)
    assert not found[1].isfinite().any()
    assert found[[0, 2]].isfinite().all()


@needs_library
@given(st.integers(0, 5000), st.floats(1e-3, 1e3), st.integers(0, 99))
@settings(deadline=None)
def test_gelu_and_its_gradient_are_pytorchs(count, std, seed):
    x = random(2, count, seed=seed, std=std).T.requires_grad_()  # not in one piece
    grad = random(count, 2, seed=seed + 1)
    doubled = x.detach().double().requires_grad_()
    expected = F.gelu(doubled, approximate="tanh")
    expected.backward(grad.double())
    found = Gelu.apply(x)
    found.backward(grad)
    torch.testing.assert_close(found.double(), expected, atol=1e-6, rtol=1e-6)
    torch.testing.assert_close(x.grad.double(), doubled.grad, atol=1e-5, rtol=1e-5)


@needs_library
def test_gelu_far_from_zero():
    found = Gelu.apply(torch.tensor([math.nan, math.inf, 1e30, 0.0, -1e4]))
    assert found[0].isnan()
    assert found[1:4].tolist() == [math.inf, pytest.approx(1e30), 0]
    assert abs(float(found[4])) < 1e-12


def test_gelu_of_other_types_and_devices_is_pytorchs():
    assert Gelu.suits(random(3)) == (LIBRARY is not None)
    assert not Gelu.suits(random(3).double())
    assert not Gelu.suits(random(3).to("meta"))


MODELS = [
    {},
    {"position_embedding": "learned", "tie_weights": False},
    {"norm_position": "post", "bias": False},
    {"activation": "gelu"},
    {"activation": "relu", "n_heads": 1},
    {"activation": "silu", "n_layers": 1},
]


def twins(changes, quantize):
    """A model with the compiled pass, and the same products without."""
    prepared = prepare_for_generation(random_model(std=0.1, **{**WIDTHS, **changes}), quantize)
    plain = prepare_for_generation(random_model(std=0.1, **{**WIDTHS, **changes}), quantize)
    plain.few_tokens = None
    return prepared, plain


@needs_library
@pytest.mark.parametrize("quantize", ["none", "int8", "int4"])
@pytest.mark.parametrize("changes", MODELS, ids=str)
@torch.inference_mode()
def test_a_pass_over_a_few_tokens_is_the_models_own(changes, quantize):
    """Prompt, single tokens, several, and with more rows than the compiled pass takes."""
    prepared, plain = twins(changes, quantize)
    ids = torch.randint(0, 29, (3, 60), generator=torch.Generator().manual_seed(1))
    caches = [model.new_cache(3) for model in (prepared, plain)]
    for part in ids.split([4, 1, 1, 5, 45, 2, 1, 1], dim=1):
        found, expected = (
            model(part, cache=cache) for model, cache in zip((prepared, plain), caches, strict=True)
        )
        slack = {"none": 2e-6, "int8": 1e-4, "int4": 2e-3}[quantize]
        assert (found - expected).abs().max() < slack * (1 + expected.abs().max())


@needs_library
@pytest.mark.parametrize("quantize", ["none", "int8"])
@torch.inference_mode()
def test_padding_before_a_text_is_not_seen(quantize):
    prepared, plain = twins({"position_embedding": "learned"}, quantize)
    ids = torch.randint(0, 29, (3, 6), generator=torch.Generator().manual_seed(2))
    is_text = torch.arange(6) >= torch.tensor([[3], [0], [5]])
    caches = [model.new_cache(3) for model in (prepared, plain)]
    for start, end in ((0, 4), (4, 5), (5, 6)):
        found, expected = (
            model(ids[:, start:end], is_text[:, :end], cache=cache)
            for model, cache in zip((prepared, plain), caches, strict=True)
        )
        seen = is_text[:, start:end]
        torch.testing.assert_close(found[seen], expected[seen], atol=2e-4, rtol=2e-4)


@needs_library
@pytest.mark.parametrize("quantize", ["int8", "int4"])
@torch.inference_mode()
def test_with_rounded_weights_a_text_of_any_batch_is_what_it_is_alone(quantize):
    """Bit for bit, however many rows are read at once and however a text is cut to be read."""
    model = prepare_for_generation(random_model(**{**WIDTHS, "max_seq_len": 64}), quantize)
    ids = torch.randint(0, 29, (5, 60), generator=torch.Generator().manual_seed(3))
    padding = torch.tensor([0, 7, 23, 40, 59])
    together = model(ids, torch.arange(60) >= padding.unsqueeze(1), cache=model.new_cache(5))
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
    few = model.few_tokens
    x = random(1, 3, 64)
    cache = model.new_cache(1)
    assert few(random(FEW + 1, 1, 64), None, model.new_cache(FEW + 1)) is None
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
    monkeypatch.setattr("src.native.LIBRARY", full)
    with pytest.raises(MemoryError):
        model.head(random(1, 64))
    with pytest.raises(MemoryError):
        model(torch.tensor([[1, 2]]), cache=model.new_cache(1))


def test_where_there_is_no_library_for_this_machine_there_is_none(tmp_path, monkeypatch):
    assert load(tmp_path) is None
    monkeypatch.setattr("src.native.platform.machine", lambda: "x86_64")
    monkeypatch.setattr("src.native.torch.backends.cpu.get_cpu_capability", lambda: "DEFAULT")
    loaded = []
    monkeypatch.setattr(ctypes, "CDLL", loaded.append)
    assert load(tmp_path) is None
    assert loaded == []
