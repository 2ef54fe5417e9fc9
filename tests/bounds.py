"""How far floating-point results may be from the exact ones, by the bounds of arithmetic.

u is the unit roundoff of a type: half the distance from 1 to the next number. n roundings one after
another are off by at most gamma(n) = n u / (1 - n u) (Higham, 2002, lemma 3.1), in whatever order a
sum is taken and on whatever processor; a fused multiplication and addition rounds less.
"""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
import torch.nn.functional as F

from src.nn.quantized import FixedLinear

# Numbers below the smallest normal one are off by half the smallest of all, each.
TINY = 2.0**-149


def unit(dtype: torch.dtype = torch.float32) -> float:
    """u."""
    return torch.finfo(dtype).eps / 2


def gamma(roundings: int, dtype: torch.dtype = torch.float32) -> float:
    """The largest relative error of so many roundings one after another."""
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
    """Of x (..., I) times weight (O, I), plus a bias: I products, I sums, and `more` roundings.

    |error| <= gamma(I + 1 + more) (|x| |W|^T + |bias|).
    """
    size = F.linear(
        x.double().abs(), weight.double().abs(), None if bias is None else bias.double().abs()
    )
    inputs = weight.size(1)
    return gamma(inputs + 1 + more, dtype) * size + (inputs + 1) * TINY


def assert_within(found: torch.Tensor, expected: torch.Tensor, bound: torch.Tensor | float) -> None:
    """Every number is as near to the exact one as its bound says."""
    assert found.shape == expected.shape
    excess = (found.detach().double() - expected.detach().double()).abs() - bound
    worst = float(excess.max()) if excess.numel() else 0.0
    assert worst <= 0, f"{worst:.3g} more than the bound allows"


class Bounded:
    """Exact numbers (in float64), and how far a computation in float32 may be from each of them.

    The operations follow from |fl(a op b) - (a op b)| <= u |a op b| and from what their inputs may
    be off by; a sum of n terms takes any order.
    """

    def __init__(self, exact: torch.Tensor, error: torch.Tensor | float = 0.0) -> None:
        self.exact = exact.double()
        self.error = torch.zeros_like(self.exact) + error

    @property
    def most(self) -> torch.Tensor:
        """What a computed number's size is at most."""
        return self.exact.abs() + self.error

    def __add__(self, other: Bounded) -> Bounded:
        total = Bounded(self.exact + other.exact, self.error + other.error)
        return Bounded(total.exact, total.error + unit() * total.most)

    def levels(self, bits: int) -> Bounded:
        """What inputs (..., I) are rounded to beside weights of 8 and 4 bits.

        Their levels are such that the greatest of a row has 32,767, or as many as a sum of 32 bits
        holds; beside 4 bits the greatest of every 32 has 127. The nearest level is another one
        where what an input is off by takes it past the middle between two.
        """
        if bits not in (8, 4):
            return self
        inputs = self.exact.size(-1)
        size, top = (inputs, min(32767.0, 1.35e8 / inputs)) if bits == 8 else (32, 127.0)
        x, wrong = (part.unflatten(-1, (-1, size)) for part in (self.exact, self.error))
        level = x.abs().amax(-1, keepdim=True).clamp(min=1e-30) / top
        # Two roundings give a level, and four more the place of an input among the levels.
        of_level = wrong.amax(-1, keepdim=True) / top + level * gamma(2)
        place = x / level
        least = (level - of_level).clamp(min=TINY)
        off = (wrong + place.abs() * of_level) / least + gamma(4) * (place.abs() + 1)
        nearest = place.round()
        past = off - (0.5 - (place - nearest).abs())
        moved = torch.where(past < 0, 0.0, past.floor() + 1)
        error = moved * (level + of_level) + nearest.abs() * of_level
        # Nor is it ever further than both are from the nearest level.
        either = wrong + (level + of_level) * (1 + top * gamma(5))
        return Bounded((nearest * level).flatten(-2), torch.minimum(error, either).flatten(-2))

    def linear(self, weight: torch.Tensor, bias: torch.Tensor | None, bits: int = 32) -> Bounded:
        """x W^T + b. Beside weights of 8 and 4 bits, inputs are rounded: see `levels`."""
        weight = weight.double()
        bias = torch.zeros(len(weight), dtype=torch.float64) if bias is None else bias.double()
        x = self.levels(bits)
        size = F.linear(x.most, weight.abs(), bias.abs())
        # Beside 4 bits, a group's lowest weight and its steps are added apart: each is larger than
        # their sum, by no more than the group's widest weight, twice.
        widest = weight.abs().amax(dim=1) if bits == 4 else torch.zeros(len(weight)).double()
        size = size + 3 * x.most.sum(-1, keepdim=True) * widest
        error = F.linear(x.error, weight.abs()) + gamma(weight.size(1) + 12) * size
        return Bounded(F.linear(x.exact, weight, bias), error)

    def norm(self, weight: torch.Tensor, bias: torch.Tensor | None, epsilon: float) -> Bounded:
        """Layer norm over the last dimension."""
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
        """One whose slope is at most so steep; processors' own are a few roundings off."""
        return Bounded(function(self.exact), steepest * self.error + gamma(32) * self.most)

    def attention(self, heads: int) -> Bounded:
        """From queries, keys and values (B, T, 3 C), each token to those up to it: (B, T, C)."""
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
        # Each power of e by the error of its score and of the greatest one, and so their sum.
        worst = wrong.masked_fill(later, 0).amax(-1, keepdim=True)
        spread = (scores.abs() + wrong).masked_fill(later, 0).amax(-1, keepdim=True)
        relative = torch.expm1(2 * worst + unit() * 4 * spread) + gamma(tokens + 32)
        of_share = (share * relative.clamp(max=1e99)).clamp(max=1)  # never infinity times zero
        exact = share @ v.exact
        error = of_share @ v.most + share @ v.error + gamma(tokens + 2) * (share @ v.most)
        return Bounded(*(part.transpose(1, 2).flatten(2) for part in (exact, error)))


def bounded_linear(layer, x: Bounded, bits: int = 32) -> Bounded:
    """What a linear layer makes of (..., I), with its weights as they are multiplied with."""
    bias = layer._weights.bias if isinstance(layer, FixedLinear) else layer.bias
    return x.linear(layer.weight.detach(), None if bias is None else bias.detach(), bits)


def bounded_norm(layer, x: Bounded) -> Bounded:
    """What a layer norm makes of (..., C)."""
    bias = None if layer.bias is None else layer.bias.detach()
    return x.norm(layer.weight.detach(), bias, layer.eps)


def bounded_block(block, x: Bounded, activation, bits: int = 32) -> Bounded:
    """What a `TransformerBlock` makes of (B, T, C), causally.

    Args:
        block: with the weights as they are multiplied with.
        x: its input.
        activation: its activation, of float64.
        bits: of its weights.
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
    """Hold each operation of a model, with pre-norm, to the bound of what it was given.

    Bounds of one operation after another multiply: over two layers they are a million times the
    logits, where each alone is some millionths of its result.

    Args:
        model: with learned positions; its layers are PyTorch's modules.
        ids: (B, T).
        activation: the model's, of float64.
        bits: of its weights.
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

    x = made[model.token_embeddings] + made[model.position_embeddings]  # rounded once, as there
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
    """Of log-probabilities computed in float32 from logits (..., V), whatever the logits' type.

    With Z for the largest size of a logit: to round two logits and subtract the largest from each
    is off by 12 u Z at most, in all; powers of e and their sum by gamma(V + 32), relatively, which
    is as much of its logarithm; and a logarithm of at most Z + log V by a few u of it.
    """
    largest = float(logits.detach().abs().max())
    return gamma(logits.size(-1) + 64) * (1 + largest)


def score_bound(model, likely: slice = slice(None)) -> float:
    """Of a log-probability that is computed in float32 from the logits of a model with pre-norm.

    No logit is larger than a normed state and the longest row of the head are together.

    Args:
        model: its weights may be of any type.
        likely: tokens whose shares are all but 1, and which are asked for.
    """
    norm, width = model.final_norm, model.config.d_model
    state = width**0.5 * norm.weight.abs().max() + norm.bias.norm()
    largest = float((state * model.output_weight[likely].norm(dim=1).max()).detach())
    return log_softmax_bound(torch.full((model.config.vocab_size,), largest))


def by_chance(share: float | torch.Tensor, draws: int) -> float | torch.Tensor:
    """How far the share of draws that hit is from its expectation, once in 10^9 times.

    Six standard deviations of a binomial's share.
    """
    return 6 * (share * (1 - share) / draws) ** 0.5


def rounding_in_float64(expected: torch.Tensor) -> float:
    """How far two orders of the same sums may be apart, in float64.

    A pass of the tests' models has a few thousand roundings one after another, each of which layers
    of norms and softmax make a few thousand times larger at most: 10^7 of u, which is 1e-9 of the
    largest number. What is computed wrongly is off by far more.
    """
    largest = float(expected.detach().abs().max()) if expected.numel() else 0.0
    return gamma(10**7, torch.float64) * max(1.0, largest)


def assert_same_in_float64(found: torch.Tensor, expected: torch.Tensor) -> None:
    """No number differs by more than the rounding of float64."""
    assert found.dtype == expected.dtype == torch.float64
    assert_within(found, expected, rounding_in_float64(expected))


def differs_in_float64(found: torch.Tensor, expected: torch.Tensor) -> bool:
    """Whether a number differs by more than the rounding of float64."""
    assert found.dtype == expected.dtype == torch.float64
    return bool(((found - expected).abs() > rounding_in_float64(expected)).any())


def nearly(expected: Any, operations: int = 100) -> Any:
    """Equal to float64 numbers but for so many roundings of each: Python's, in another order.

    Of sums, the terms are of one sign, or at most 1 each.
    """
    most = gamma(operations, torch.float64)
    return pytest.approx(expected, rel=most, abs=most)


def deviation_by_chance(draws: int) -> float:
    """How far, relatively, the standard deviation of normal draws is from that of the distribution.

    Six of its own standard deviations, as in `by_chance`.
    """
    return 6 / (2 * draws) ** 0.5


def validation_bound(run) -> float:
    """How far apart the losses of two equal float64 runs may be, in nats or in bits per byte.

    A validation computes them in float32 from logits, which are largest at the end of the run. A
    bit is log 2 nats, and a token one byte or more.
    """
    ids = torch.tensor(run.tokenizer.encode(run.training_text[0]))
    with torch.no_grad():
        logits = run.model(ids.unfold(0, run.model.config.max_seq_len, 1))
    return 2 * log_softmax_bound(logits) / math.log(2)
