"""Error bounds of floating-point results.

u is the unit roundoff of a type: half the distance from 1 to the next number. The relative error of
n consecutive roundings is at most gamma(n) = n u / (1 - n u) (Higham, 2002, lemma 3.1), for any
order of summation and any processor; a fused multiply-add rounds less often.
"""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
import torch.nn.functional as F

from src.nn.quantized import QuantizedLinear

# Smallest positive float32: operations with subnormal results have an absolute error of up to half
# of it.
TINY = 2.0**-149


def unit(dtype: torch.dtype = torch.float32) -> float:
    """Return the unit roundoff u."""
    return torch.finfo(dtype).eps / 2


def gamma(roundings: int, dtype: torch.dtype = torch.float32) -> float:
    """Return the largest relative error of this many consecutive roundings."""
    n = roundings * unit(dtype)
    assert n < 1
    return n / (1 - n)


def product_bound(
    x: torch.Tensor,
    weight: torch.Tensor,
    bias: torch.Tensor | None = None,
    more: int = 0,
    dtype: torch.dtype = torch.float32,
) -> torch.Tensor:
    """Return the error bound of `F.linear`: I products, I sums and `more` roundings.

    |error| <= gamma(I + 1 + more) (|x| |W|^T + |bias|), for x (..., I), W (O, I): (..., O).
    """
    size = F.linear(
        x.double().abs(), weight.double().abs(), None if bias is None else bias.double().abs()
    )
    inputs = weight.size(1)
    return gamma(inputs + 1 + more, dtype) * size + (inputs + 1) * TINY


def assert_within(found: torch.Tensor, expected: torch.Tensor, bound: torch.Tensor | float) -> None:
    """Check that the absolute error of each element is within its bound."""
    assert found.shape == expected.shape
    excess = (found.detach().double() - expected.detach().double()).abs() - bound
    worst = float(excess.max()) if excess.numel() else 0.0
    assert worst <= 0, f"{worst:.3g} more than the bound allows"


class Bounded:
    """Exact values (in float64) with error bounds of their computation in float32.

    Running error analysis: each operation adds |fl(a op b) - (a op b)| <= u |a op b| to the
    propagated errors of its inputs; a sum of n terms may be in any order.
    """

    def __init__(self, exact: torch.Tensor, error: torch.Tensor | float = 0.0) -> None:
        self.exact = exact.double()
        self.error = torch.zeros_like(self.exact) + error

    @property
    def most(self) -> torch.Tensor:
        """Upper bound of the absolute computed values."""
        return self.exact.abs() + self.error

    def __add__(self, other: Bounded) -> Bounded:
        total = Bounded(self.exact + other.exact, self.error + other.error)
        return Bounded(total.exact, total.error + unit() * total.most)

    def levels(self, bits: int) -> Bounded:
        """Return the dequantized inputs (..., I) of a layer with int8 or int4 weights.

        The absolute maximum of each group of 32 is quantized to 127. The error of an input can
        carry it past the midpoint of two levels, to another level.
        """
        if bits not in (8, 4):
            return self
        inputs, top = self.exact.size(-1), 127.0
        parts = (F.pad(part, (0, -inputs % 32)) for part in (self.exact, self.error))
        x, wrong = (part.unflatten(-1, (-1, 32)) for part in parts)
        level = x.abs().amax(-1, keepdim=True).clamp(min=1e-30) / top
        # The scale takes two roundings, the quotient of an input and the scale four more.
        of_level = wrong.amax(-1, keepdim=True) / top + level * gamma(2)
        place = x / level
        least = (level - of_level).clamp(min=TINY)
        off = (wrong + place.abs() * of_level) / least + gamma(4) * (place.abs() + 1)
        nearest = place.round()
        past = off - (0.5 - (place - nearest).abs())
        moved = torch.where(past < 0, 0.0, past.floor() + 1)
        error = moved * (level + of_level) + nearest.abs() * of_level
        # Also, the exact and the computed input are each within half a level of their rounding.
        either = wrong + (level + of_level) * (1 + top * gamma(5))
        rounded, error = nearest * level, torch.minimum(error, either)
        return Bounded(*(part.flatten(-2)[..., :inputs] for part in (rounded, error)))

    def linear(self, weight: torch.Tensor, bias: torch.Tensor | None, bits: int = 32) -> Bounded:
        """Return x W^T + b; with int8 and int4 weights, of quantized inputs (see `levels`)."""
        weight = weight.double()
        bias = torch.zeros(len(weight), dtype=torch.float64) if bias is None else bias.double()
        x = self.levels(bits)
        size = F.linear(x.most, weight.abs(), bias.abs())
        # int4 weights are asymmetric: the sums over a group's zero point and over its scaled levels
        # are added separately. Each exceeds the result by up to twice the group's largest weight.
        widest = weight.abs().amax(dim=1) if bits == 4 else torch.zeros(len(weight)).double()
        size = size + 3 * x.most.sum(-1, keepdim=True) * widest
        error = F.linear(x.error, weight.abs()) + gamma(weight.size(1) + 12) * size
        return Bounded(F.linear(x.exact, weight, bias), error)

    def norm(self, weight: torch.Tensor, bias: torch.Tensor | None, epsilon: float) -> Bounded:
        """Return the layer norm over the last dimension."""
        width = self.exact.size(-1)
        mean = self.exact.mean(-1, keepdim=True)
        away = self.exact - mean
        of_mean = self.error.mean(-1, keepdim=True) + gamma(width + 1) * self.most.mean(
            -1, keepdim=True
        )
        wrong = self.error + of_mean + unit() * (away.abs() + self.error + of_mean)
        variance = away.square().mean(-1, keepdim=True)
        of_variance = (2 * away.abs() * wrong + wrong.square()).mean(-1, keepdim=True)
        of_variance += gamma(width + 3) * (variance + of_variance)
        scale = (variance + epsilon).rsqrt()
        largest = ((variance - of_variance).clamp(min=0) + epsilon).rsqrt() * (1 + gamma(4))
        of_scale = largest - scale + gamma(4) * scale
        error = (wrong * largest + away.abs() * of_scale) * weight.double().abs()
        exact = away * scale * weight.double() + (0.0 if bias is None else bias.double())
        return Bounded(exact, error + gamma(4) * (exact.abs() + error + away.abs() * largest))

    def activation(self, function, steepest: float) -> Bounded:
        """Apply an activation of Lipschitz constant `steepest`, computed in up to 32 roundings."""
        return Bounded(function(self.exact), steepest * self.error + gamma(32) * self.most)

    def attention(self, heads: int) -> Bounded:
        """Return causal self-attention (B, T, C) of queries, keys and values (B, T, 3 C)."""
        parts = [
            Bounded(
                exact.unflatten(-1, (heads, -1)).transpose(1, 2),
                error.unflatten(-1, (heads, -1)).transpose(1, 2),
            )
            for exact, error in zip(self.exact.chunk(3, -1), self.error.chunk(3, -1), strict=True)
        ]
        q, k, v = parts
        size, tokens = q.exact.size(-1), q.exact.size(-2)
        scores = q.exact @ k.exact.mT / size**0.5
        largest = q.most @ k.most.mT / size**0.5
        wrong = largest - q.exact.abs() @ k.exact.abs().mT / size**0.5 + gamma(size + 4) * largest
        later = torch.ones(tokens, tokens, dtype=torch.bool).triu(1)
        share = scores.masked_fill(later, -torch.inf).softmax(-1)
        # exp(score - max) has the error of its score and of the maximum, and so has their sum.
        worst = wrong.masked_fill(later, 0).amax(-1, keepdim=True)
        spread = (scores.abs() + wrong).masked_fill(later, 0).amax(-1, keepdim=True)
        relative = torch.expm1(2 * worst + unit() * 4 * spread) + gamma(tokens + 32)
        of_share = (share * relative.clamp(max=1e99)).clamp(max=1)  # avoids inf * 0
        exact = share @ v.exact
        error = of_share @ v.most + share @ v.error + gamma(tokens + 2) * (share @ v.most)
        return Bounded(*(part.transpose(1, 2).flatten(2) for part in (exact, error)))


def bounded_linear(layer, x: Bounded, bits: int = 32) -> Bounded:
    """Return the bounded output (..., O) of a linear layer, with its dequantized weights."""
    bias = layer._weights.bias if isinstance(layer, QuantizedLinear) else layer.bias
    return x.linear(layer.weight.detach(), None if bias is None else bias.detach(), bits)


def bounded_norm(layer, x: Bounded) -> Bounded:
    """Return the bounded output of a layer norm, (..., C)."""
    bias = None if layer.bias is None else layer.bias.detach()
    return x.norm(layer.weight.detach(), bias, layer.eps)


def bounded_block(block, x: Bounded, activation, bits: int = 32) -> Bounded:
    """Return the bounded output (B, T, C) of a causal `TransformerBlock`.

    Args:
        block: the block; quantized weights count as their dequantized values.
        x: input (B, T, C).
        activation: the block's activation, in float64.
        bits: bits per weight.
    """

    def attended(inputs):
        qkv = bounded_linear(block.attention.qkv, inputs, bits)
        return bounded_linear(block.attention.proj, qkv.attention(block.attention.n_heads), bits)

    def fed(inputs):
        hidden = bounded_linear(block.ffn.expand, inputs, bits).activation(activation, 1.13)
        return bounded_linear(block.ffn.contract, hidden, bits)

    if block.pre_norm:
        x = x + attended(bounded_norm(block.attention_norm, x))
        return x + fed(bounded_norm(block.ffn_norm, x))
    x = bounded_norm(block.attention_norm, x + attended(x))
    return bounded_norm(block.ffn_norm, x + fed(x))


def assert_each_operation_within(model, ids: torch.Tensor, activation, bits: int = 32) -> None:
    """Check each operation of a pre-norm model against the error bound for its actual input.

    Composed bounds multiply: over two layers they are a million times the logits, while that of
    a single operation is some millionths of its result.

    Args:
        model: a model with learned positions, whose layers are PyTorch modules.
        ids: token ids (B, T).
        activation: the model's activation, in float64.
        bits: bits per weight.
    """
    given, made = {}, {}

    def keep(module, inputs, output):
        given[module], made[module] = inputs[0], output

    hooks = [module.register_forward_hook(keep) for module in model.modules()]
    with torch.inference_mode():
        logits = model(ids)
    for hook in hooks:
        hook.remove()

    def assert_made(found, expected):
        assert_within(found, expected.exact, expected.error)

    x = made[model.token_embeddings] + made[model.position_embeddings]  # rounded once
    for block in model.blocks:
        attention, ffn = block.attention, block.ffn
        assert torch.equal(given[block.attention_norm], x)
        for norm, reader in zip(block.norms, (attention.qkv, ffn.expand), strict=True):
            assert_made(given[reader], bounded_norm(norm, Bounded(given[norm])))
        for layer in (attention.qkv, attention.proj, ffn.expand, ffn.contract):
            assert_made(made[layer], bounded_linear(layer, Bounded(given[layer]), bits))
        joined = Bounded(made[attention.qkv]).attention(attention.n_heads)
        assert_made(given[attention.proj], joined)
        hidden = Bounded(made[ffn.expand]).activation(activation, 1.13)
        assert_made(given[ffn.contract], hidden)
        x = x + made[attention.proj]
        assert torch.equal(given[block.ffn_norm], x)
        x = x + made[ffn.contract]
    assert torch.equal(given[model.final_norm], x)
    hidden = made[model.final_norm]
    assert_made(hidden, bounded_norm(model.final_norm, Bounded(x)))
    assert_made(logits, Bounded(hidden).linear(model.output_weight.detach(), None, bits))


def log_softmax_bound(logits: torch.Tensor) -> float:
    """Return the error bound of log-softmax in float32, for logits (..., V) of any type.

    Let Z be the largest absolute logit. Rounding two logits and subtracting the maximum has an
    error of at most 12 u Z in total; the sum of exponentials has a relative error of gamma(V + 32),
    which is the absolute error of its logarithm; the logarithm, at most Z + log V, has a relative
    error of a few u.
    """
    largest = float(logits.detach().abs().max())
    return gamma(logits.size(-1) + 64) * (1 + largest)


def score_bound(model, likely: slice = slice(None)) -> float:
    """Return the error bound of log-probabilities in float32 from logits of a pre-norm model.

    By Cauchy-Schwarz, no logit exceeds the norm of the final state times that of a row of the head.

    Args:
        model: the model; its weights may be of any type.
        likely: the evaluated tokens, of a total probability of nearly 1.
    """
    norm, width = model.final_norm, model.config.d_model
    state = width**0.5 * norm.weight.abs().max() + norm.bias.norm()
    largest = float((state * model.output_weight[likely].norm(dim=1).max()).detach())
    return log_softmax_bound(torch.full((model.config.vocab_size,), largest))


def by_chance(share: float | torch.Tensor, draws: int) -> float | torch.Tensor:
    """Return the tolerance of an observed frequency, exceeded about once in 10^9 times.

    Six standard deviations of a binomial proportion.
    """
    return 6 * (share * (1 - share) / draws) ** 0.5


def rounding_in_float64(expected: torch.Tensor) -> float:
    """Return the tolerance for results in float64 whose sums are in another order.

    A forward of the tests' models has a few thousand consecutive roundings, each of which norms and
    softmax amplify a few thousand times at most: 10^7 u, or 1e-9 of the largest number. Errors of
    an incorrect computation are far larger.
    """
    largest = float(expected.detach().abs().max()) if expected.numel() else 0.0
    return gamma(10**7, torch.float64) * max(1.0, largest)


def assert_same_in_float64(found: torch.Tensor, expected: torch.Tensor) -> None:
    """Check that no element differs by more than `rounding_in_float64`."""
    assert found.dtype == expected.dtype == torch.float64
    assert_within(found, expected, rounding_in_float64(expected))


def differs_in_float64(found: torch.Tensor, expected: torch.Tensor) -> bool:
    """Return whether an element differs by more than `rounding_in_float64`."""
    assert found.dtype == expected.dtype == torch.float64
    return bool(((found - expected).abs() > rounding_in_float64(expected)).any())


def nearly(expected: Any, operations: int = 100) -> Any:
    """Return a `pytest.approx` for float64 results with this many roundings, in any order.

    The terms of sums must be of one sign, or at most 1 in absolute value.
    """
    most = gamma(operations, torch.float64)
    return pytest.approx(expected, rel=most, abs=most)


def deviation_by_chance(draws: int) -> float:
    """Return the relative tolerance of the sample standard deviation of normal draws.

    Six standard deviations of this estimator, as in `by_chance`.
    """
    return 6 / (2 * draws) ** 0.5


def validation_bound(run) -> float:
    """Return the tolerance for val losses of two equal float64 runs, in nats or bits per byte.

    Validation computes losses in float32 from logits, which are largest at the end of the run. A
    bit is log 2 nats, and a token one byte or more.
    """
    ids = torch.tensor(run.tokenizer.encode(run.training_text[0]))
    with torch.no_grad():
        logits = run.model(ids.unfold(0, run.model.config.max_seq_len, 1))
    return 2 * log_softmax_bound(logits) / math.log(2)
