"""The CPU kernels, compared with PyTorch."""

import math
import os
import platform
import subprocess
import sys
from types import SimpleNamespace

import pytest
import torch
from hypothesis import example, given
from hypothesis import strategies as st

from src.inference.prepare import prepare_for_generation
from src.nn import cpu_kernels as native
from src.nn.cpu_kernels import KernelLinear, Weights, pack, unpack
from src.nn.cpu_library import FOLDER, load, variants
from src.nn.kv_cache import KVCache
from src.nn.quantized import _unpack_scales, dequantize, quantize_weight
from tests.bounds import (
    Bounded,
    assert_within,
    product_bound,
    unit,
)
from tests.nn.kernels import WIDTHS, needs_library, random
from tests.processes import CHECKOUT, needs_fork, run_python
from tests.tiny_models import random_model


def bounded_product(weights, x):
    """Of inputs (N, I) and fixed weights."""
    expected = Bounded(x).linear(dequantize(weights), weights.bias, weights.bits)
    if weights.bits == 4:
        # Steps and lowest weights are multiplied apart, and may cancel: step q = w - lowest.
        lowest = _unpack_scales(weights.scale)[1].double().abs().transpose(1, 2).flatten(0, 1)
        lowest = lowest[: weights.outputs].repeat_interleave(32, dim=1)[:, : weights.inputs]
        expected.error += product_bound(x, 2 * lowest, more=12)
    return expected


@needs_library
@given(
    rows=st.integers(1, 20),
    outputs=st.integers(1, 70),
    inputs=st.integers(1, 600),
    bits=st.sampled_from([32, 8, 4]),
    bias=st.booleans(),
    seed=st.integers(0, 99),
)
@example(rows=5, outputs=1, inputs=576, bits=8, bias=False, seed=18)
@example(rows=5, outputs=1, inputs=576, bits=8, bias=True, seed=18)
@torch.inference_mode()
def test_a_product_is_pytorchs_of_the_same_weights(rows, outputs, inputs, bits, bias, seed):
    inputs += -inputs % 64 if bits == 32 else 0
    given_bias = random(outputs, seed=seed + 1) if bias else None
    weights = quantize_weight(random(outputs, inputs, seed=seed), given_bias, bits)
    x = random(2, rows, inputs, seed=seed + 2)[1:]
    expected = bounded_product(weights, x)
    assert_within(KernelLinear(weights)(x), expected.exact, expected.error)


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
        assert torch.equal(KernelLinear(packed)(x), KernelLinear(whole(weight))(x))


@needs_library
def test_ordinary_weights_take_28_bits_and_little_more():
    weight = random(3000, 768, std=0.02)
    packed = pack(weight, None)
    assert packed is not None
    assert 28 <= packed.values.nbytes * 8 / weight.numel() < 28.5
    assert pack(random(5, 72), None) is None  # no multiple of 64
    assert pack(random(5, 64).bfloat16(), None) is None


@needs_library
@pytest.mark.parametrize("bits", [8, 4])
@torch.inference_mode()
def test_inputs_of_any_size_are_rounded_to_the_nearest_level(bits):
    """Of 32 inputs; few are so near to the middle of two that either is right."""
    weights = quantize_weight(random(37, 320), None, bits)
    x = random(9, 320, seed=1) * torch.logspace(-2, 2, 320)
    levels = Bounded(x).levels(bits)
    size = x.double().unflatten(1, (-1, 32)).abs().amax(-1, keepdim=True)
    half = (size / 254).expand(-1, -1, 32).flatten(1)
    assert ((levels.exact - x).abs() <= half * (1 + 1e-12)).all()
    assert (levels.error < half / 50).double().mean() > 0.95
    expected = bounded_product(weights, x)
    assert_within(KernelLinear(weights)(x), expected.exact, expected.error)


@pytest.mark.parametrize("bits", [8, 4])
@pytest.mark.parametrize("error", [0.0, 1e-6, 1e-4, 1e-2, 1.0, 10.0])
def test_levels_of_inputs_that_are_off_are_within_their_bound(bits, error):
    """As `native.c` rounds them: past the middle between two levels to another one."""
    x, wrong = random(99, 64).double(), error * random(99, 64, seed=1).double()
    x[:9, :32] = 0
    given = (x + wrong).float()  # which rounds once more, unless by nothing
    levels = Bounded(x, wrong.abs() + unit() * given.abs() * (error > 0)).levels(bits)
    given = given.unflatten(1, (-1, 32))
    level = given.abs().amax(-1, keepdim=True).clamp(min=1e-30) / 127
    rounded = (given * (1 / level) + given.sign() / 2).trunc().double() * level.double()
    assert_within(rounded.flatten(1), levels.exact, levels.error)
    if error < 1e-4:
        assert levels.error.mean() < 0.1 * x.abs().max() / 127


@needs_library
@pytest.mark.parametrize("bits", [32, 8, 4])
@torch.inference_mode()
def test_a_row_among_others_is_what_it_is_alone(bits):
    """Bit for bit: so a text does not depend on its batch."""
    linear = KernelLinear(quantize_weight(random(37, 128), None, bits))
    x = random(19, 128, seed=1)
    for count in range(1, 20):
        assert torch.equal(linear(x)[:count], linear(x[:count]))


BUILD_KERNELS = """
import runpy, setuptools

make = setuptools.setup
setuptools.setup = lambda ext_modules: make(ext_modules=ext_modules[:1])
runpy.run_path("setup.py")
"""


@needs_library
@pytest.mark.skipif(platform.machine() != "x86_64", reason="the option is of x86 compilers")
def test_rows_are_alike_whatever_processor_the_compiler_tunes_for(tmp_path, monkeypatch):
    """Tuned for Zen 3, GCC fuses some multiply-adds and not others, unless they are explicit."""
    command = [sys.executable, "-c", BUILD_KERNELS, "-q", "build_ext", "--build-lib", str(tmp_path)]
    flags = {"CFLAGS": "-mtune=znver3", "PYTHONWARNINGS": "ignore"}
    folders = [*command, "--build-temp", str(tmp_path)]
    subprocess.run(folders, env={**os.environ, **flags}, cwd=CHECKOUT, check=True, timeout=600)
    tuned = load(tmp_path / "agi2/nn", ["_cpu_kernels"])
    if tuned is None:
        pytest.skip("the compiler does not know the option")
    x = random(19, 128, seed=1)
    for bits in (32, 8, 4):
        linear = KernelLinear(quantize_weight(random(37, 128), None, bits))
        monkeypatch.setattr(native, "LIBRARY", load(FOLDER, ["_cpu_kernels"]))
        expected = linear(x)
        monkeypatch.setattr(native, "LIBRARY", tuned)
        for count in range(1, 20):
            assert torch.equal(linear(x[:count]), expected[:count])


LIBRARIES = [found for name in variants() if (found := load(FOLDER, [name])) is not None]


@pytest.mark.skipif(len(LIBRARIES) < 2, reason="the processor has no AVX-512 with VNNI")
@pytest.mark.parametrize("bits", [32, 8, 4])
@torch.inference_mode()
def test_every_library_computes_the_same(bits, monkeypatch):
    """Bit for bit."""
    for inputs in (64, 128, 192, 832, *((1, 33, 250) if bits < 32 else ())):
        weights = quantize_weight(random(37, inputs), random(37), bits)
        x = random(19, inputs, seed=1)
        expected = bounded_product(weights, x)
        found = []
        for library in LIBRARIES:
            monkeypatch.setattr(native, "LIBRARY", library)
            found.append(KernelLinear(weights)(x))
            assert_within(found[-1], expected.exact, expected.error)
        assert torch.equal(*found)


@needs_library
@torch.inference_mode()
def test_the_widest_sums_of_8_bits_fit():
    inputs = 20_000
    weights = quantize_weight(torch.ones(3, inputs), None, 8)
    x = torch.ones(2, inputs)
    expected = bounded_product(weights, x)
    assert_within(KernelLinear(weights)(x), expected.exact, expected.error)
    assert_within(expected.exact, torch.full((2, 3), float(inputs)), expected.error)


@needs_library
@pytest.mark.parametrize("bits", [32, 8, 4])
@pytest.mark.parametrize("wrong", [math.nan, math.inf, -math.inf])
@torch.inference_mode()
def test_what_is_no_number_stays_none(bits, wrong):
    x = random(3, 64)
    x[1, 7] = wrong
    found = KernelLinear(quantize_weight(random(5, 64, seed=1), None, bits))(x)
    assert not found[1].isfinite().any()
    assert found[[0, 2]].isfinite().all()


# What the library is given.


@needs_library
@pytest.mark.parametrize("bits", [28, 32, 8, 4])
@pytest.mark.parametrize("part", ["values", "scale", "bias"])
@pytest.mark.parametrize("change", [lambda t: t[:-1], lambda t: t.double(), lambda t: t.to("meta")])
def test_a_matrix_whose_parts_do_not_fit_is_not_given_away(bits, part, change):
    inputs = 72 if bits == 32 else 64
    weights = quantize_weight(random(5, inputs), random(5), 32 if bits == 28 else bits)
    assert weights.bits == bits
    if getattr(weights, part) is None or (bits == 28 and part == "values"):
        return
    with pytest.raises(TypeError):
        weights._replace(**{part: change(getattr(weights, part))}).struct()


@needs_library
@torch.inference_mode()
def test_inputs_that_do_not_fit_are_refused():
    model = prepare_for_generation(random_model(**WIDTHS))
    linear = KernelLinear(quantize_weight(random(5, 64), None, 8))
    for x in (random(3, 48), random(64, 3), random(3, 64).double()):
        with pytest.raises(TypeError):
            linear(x)
    for cache in (
        model.new_cache(2),
        KVCache(3, 1, 4, 60, 8),
        KVCache(2, 1, 4, 60, 16),
        KVCache(4, 1, 4, 60, 16),
    ):
        with pytest.raises(TypeError):
            model.decode_backend(random(1, 3, 64), None, cache)
    with pytest.raises(TypeError):
        model.decode_backend(random(1, 3, 32), None, model.new_cache(1))
    halves = KVCache(3, 1, 4, 60, 16, dtype=torch.bfloat16)
    assert model.decode_backend(random(1, 3, 64), None, halves) is None
    assert model.decode_backend(random(0, 3, 64), None, model.new_cache(1)) is None


@needs_library
def test_a_gradient_goes_through_fixed_weights_by_pytorch():
    model = prepare_for_generation(random_model(**WIDTHS), "int8")
    x = random(2, 64).requires_grad_()
    model.head(x).sum().backward()
    expected = model.head.weight.double().sum(0)
    bound = product_bound(torch.ones(1, 29), model.head.weight.T)
    assert_within(x.grad, expected.expand(2, -1), bound)


@needs_library
def test_a_matrix_too_large_for_its_rows_to_count_is_not_packed(monkeypatch):
    monkeypatch.setattr(native, "LIBRARY", SimpleNamespace(agi2_pack_rows=lambda *_: -1))
    assert pack(random(5, 64), None) is None


STACK = """
import resource, torch
from src.nn.cpu_kernels import KernelLinear
from src.nn.quantized import quantize_weight
weights = torch.ones(2, 600_064)
kinds = [KernelLinear(quantize_weight(weights, None, bits)) for bits in (32, 8, 4)]
torch.set_num_threads(1)
resource.setrlimit(resource.RLIMIT_STACK, (2**19, 2**19))
for linear in kinds:
    for rows in (1, 17):
        assert (linear(weights[:1].expand(rows, -1)) > 0).all()
"""


@needs_library
@needs_fork
def test_the_widest_matrix_needs_no_more_of_the_stack_than_another():
    done = run_python("-c", STACK)
    assert done.returncode == 0, done.stderr
