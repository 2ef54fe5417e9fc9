"""Multi-head attention (Vaswani et al., 2017, section 3.2).

B batch, T queries, S keys, C channels (`d_model`), H heads, D head size (C = H x D).
"""

from __future__ import annotations

import math
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn

from .arguments import PositiveInt, Rate, as_tensor, check_vectors, checked, convert
from .errors import AGI2Error
from .nn.block_attention import attention_in_blocks, is_fast_in_blocks
from .nn.dropout import Dropout, dropout, is_training
from .nn.kv_cache import LayerCache
from .nn.linear import Linear


def causal_mask(queries: int, keys: int, device: torch.device | str | None = None) -> torch.Tensor:
    """Return a boolean mask (T, S), True if a query may attend: the last query to every key."""
    return torch.ones(queries, keys, dtype=torch.bool, device=device).tril(keys - queries)


def as_attention_mask(
    attention_mask: Any, x: torch.Tensor, seen: int, n_heads: int
) -> torch.Tensor:
    """Check a model's attention mask against the new tokens' embeddings; return it as boolean.

    Args:
        attention_mask: as in `GPT2Model.forward`.
        x: embeddings of the new tokens, (B, T, C).
        seen: number of tokens in the KV cache.
        n_heads: H.

    Raises:
        AGI2Error: if it has another type or shape.
    """
    mask = as_tensor("attention_mask", attention_mask)
    if mask.dim() > 2 and mask.is_floating_point():
        raise AGI2Error(
            f"attention_mask of {mask.dim()} dimensions is boolean, or of integers 0 and 1, "
            f"true may attend; not {mask.dtype}"
        )
    # A padding mask is never additive: zeros and ones of any dtype are accepted.
    mask = as_mask("attention_mask", mask, x.device, is_additive=False)
    batch, length, _ = x.shape
    expected = {
        2: (batch, seen + length),
        3: (batch, length, seen + length),
        4: (batch, n_heads, length, seen + length),
    }.get(mask.dim(), (batch, seen + length))
    shape = tuple(mask.shape)
    free = {0} if len(shape) < 4 else {0, 1}  # dimensions that may be 1
    if len(shape) != len(expected) or any(
        a != b and not (a == 1 and i in free)
        for i, (a, b) in enumerate(zip(shape, expected, strict=True))
    ):
        raise AGI2Error(f"attention_mask has the shape {shape}, the tokens need {expected}")
    return mask


def combined_mask(attention_mask: torch.Tensor, seen: int) -> torch.Tensor:
    """Combine an attention mask with the causal mask: (B or 1, T, S) or (B or 1, H or 1, T, S)."""
    if attention_mask.dim() == 2:
        attention_mask = attention_mask.unsqueeze(1)
    keys = attention_mask.size(-1)
    mask = attention_mask & causal_mask(keys - seen, keys, attention_mask.device)
    # Fully masked padding attends to itself: the softmax of its row would be NaN.
    diagonal = torch.ones_like(mask).triu(seen).tril(seen)
    return mask | (diagonal & ~mask.any(dim=-1, keepdim=True))


def document_mask(document_ids: Any, input_ids: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the attention mask and the positions of documents that are packed into rows.

    A token attends to the tokens up to its own in its document, and positions restart at 0 in each
    document, so that it is computed as if it were alone (Krell et al., 2021).

    Args:
        document_ids: integers, (B, T); a run of equal ones is a document.
        input_ids: the token ids, (B, T).

    Returns:
        A boolean mask (B, T, T), True if a token may attend, and positions (B, T).

    Raises:
        AGI2Error: if `document_ids` has another type or shape.
    """
    ids = as_tensor("document_ids", document_ids).to(input_ids.device)
    if ids.shape != input_ids.shape or ids.is_floating_point() or ids.is_complex():
        raise AGI2Error(
            f"document_ids must be integers of the shape {tuple(input_ids.shape)}, one per token, "
            f"not {ids.dtype} of the shape {tuple(ids.shape)}"
        )
    length = ids.size(1)
    index = torch.arange(length, device=ids.device)
    is_first = torch.ones_like(ids, dtype=torch.bool)
    is_first[:, 1:] = ids[:, 1:] != ids[:, :-1]
    starts = torch.where(is_first, index, 0).cummax(dim=1).values
    is_same = starts.unsqueeze(2) == starts.unsqueeze(1)
    return is_same & causal_mask(length, length, ids.device), index - starts


class MultiHeadAttention(nn.Module):
    """Multi-head scaled dot-product attention with a fused projection of Q, K and V.

    Args:
        d_model: width of the model.
        n_heads: number of heads; divides `d_model`.
        dropout: rate on the attention weights and on the output, in training.
        bias: whether the projections have biases.

    Raises:
        AGI2Error: if `d_model` is not divisible by `n_heads`, a size is below 1, or the rate is not
            in [0, 1).
    """

    @checked
    def __init__(
        self,
        d_model: PositiveInt,
        n_heads: PositiveInt,
        dropout: Rate = 0.1,
        *,
        bias: bool = True,
    ) -> None:
        super().__init__()
        if d_model % n_heads:
            raise AGI2Error(f"d_model {d_model} is not divisible by n_heads {n_heads}")
        self.d_model = d_model
        self.n_heads = n_heads
        self.dropout = dropout
        self.qkv = Linear(d_model, 3 * d_model, bias=bias)
        self.proj = Linear(d_model, d_model, bias=bias)
        self.output_dropout = Dropout(dropout)

    def forward(
        self,
        query: torch.Tensor,
        key: torch.Tensor | None = None,
        value: torch.Tensor | None = None,
        mask: torch.Tensor | None = None,
        *,
        causal: bool = False,
        cache: LayerCache | None = None,
        need_weights: bool = False,
    ) -> torch.Tensor | tuple[torch.Tensor, torch.Tensor]:
        """Attend from `query` (B, T, C) to `key` and `value` (B, S, C).

        Args:
            query: (B, T, C).
            key: (B, S, C); by default `query` (self-attention).
            value: (B, S, C); by default `key`.
            mask: (T, S), (B, T, S) or (B, H, T, S); B, H and T may be 1 to broadcast. Boolean or
                integers of 0 and 1: True may attend. Float: added to the scores. A query that may
                attend to no key gets zeros. Two dimensions are always queries and keys: pass a
                padding mask (B, S) as `mask[:, None]`.
            causal: a query attends only to keys up to its own position, aligned at the last one.
            cache: keys and values of earlier tokens, to which the new ones are appended, in each
                row after its own tokens. If rows differ in length, `causal` must be true, or the
                mask must be `cache.causal_mask(T)` or narrower.
            need_weights: also return the attention weights (B, H, T, S).

        Returns:
            (B, T, C), or a tuple of it and the weights.

        Raises:
            AGI2Error: if a shape or a type is wrong, integers in a mask are not 0 and 1, or a
                float mask has only 0 and 1.
        """
        q, k, v = self._project(query, key, value)
        causal, need_weights = _as_bool("causal", causal), _as_bool("need_weights", need_weights)
        own = None  # of rows of different lengths
        if cache is not None:
            if not isinstance(cache, LayerCache):
                convert(LayerCache, "cache", cache)
            own = cache.causal_mask(q.size(2)) if causal else None
            k, v = cache.append(k, v)
        if mask is not None:
            mask = _checked_mask(mask, q, k)
        if own is not None:
            mask, causal = _combine_masks(mask, own.unsqueeze(1)), False
        # A single query is the last token: it may attend to every key, without a mask.
        causal = causal and bool(q.size(2) > 1)  # bool: torch.export has symbolic sizes
        heads, weights = self._attend(q, k, v, mask, causal, need_weights)
        joined = heads.transpose(1, 2).flatten(2)
        out = self.output_dropout(self.proj(joined))
        return out if weights is None or not need_weights else (out, weights)

    def last_weights(self, x: torch.Tensor) -> torch.Tensor:
        """Return the weights with which the last token of `x` (B, T, C) attends to all: (B, H, T).

        Those of the other tokens, T times as many, are not computed.
        """
        q, k, _ = self._project(x, None, None)
        return attention_weights(q[:, :, -1:], k).squeeze(2)

    def _attend(
        self,
        q: torch.Tensor,
        k: torch.Tensor,
        v: torch.Tensor,
        mask: torch.Tensor | None,
        causal: bool,
        need_weights: bool,
    ) -> tuple[torch.Tensor, torch.Tensor | None]:
        """Return the heads' outputs (B, H, T, D), and the weights if they were materialized."""
        rate = self.dropout if is_training(self) else 0.0
        # PyTorch's fused CPU kernels do not support dropout, and its fallback is slower than this.
        explicit = need_weights or (rate > 0.0 and q.device.type == "cpu")
        if causal and mask is None and not need_weights and is_fast_in_blocks(q, k, rate):
            return attention_in_blocks(q, k, v, rate), None
        if causal and (mask is not None or explicit or q.size(2) != k.size(2)):
            mask = _combine_masks(mask, causal_mask(q.size(2), k.size(2), q.device))
            causal = False
        if explicit:
            weights = attention_weights(q, k, mask)
            return dropout(weights, rate) @ v, weights
        heads = F.scaled_dot_product_attention(
            q, k, v, attn_mask=mask, dropout_p=rate, is_causal=causal
        )
        return heads, None

    def _project(
        self, query: torch.Tensor, key: torch.Tensor | None, value: torch.Tensor | None
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Return Q, K and V, each (B, H, T or S, D)."""
        key = query if key is None else key
        value = key if value is None else value
        self._check_inputs(query, key, value)
        if query is key and key is value:
            parts = self.qkv(query).chunk(3, dim=-1)
        else:
            biases = (None,) * 3 if self.qkv.bias is None else self.qkv.bias.chunk(3)
            parts = tuple(
                F.linear(x, weight, bias)
                for x, weight, bias in zip(
                    (query, key, value), self.qkv.weight.chunk(3), biases, strict=True
                )
            )
        q, k, v = (part.unflatten(-1, (self.n_heads, -1)).transpose(1, 2) for part in parts)
        return q, k, v

    def _check_inputs(self, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor) -> None:
        check_vectors("query", query, self.d_model, dims=3)
        if key is not query:
            check_vectors("key", key, self.d_model, dims=3)
        if value is not key:
            check_vectors("value", value, self.d_model, dims=3)
            if value.shape != key.shape:
                raise AGI2Error(
                    f"key has the shape {tuple(key.shape)} and value {tuple(value.shape)}: both "
                    "must be (B, S, C)"
                )
        if key is not query and key.size(0) != query.size(0):
            raise AGI2Error(
                f"query has a batch of {query.size(0)} and key of {key.size(0)}: they must be equal"
            )

    def extra_repr(self) -> str:
        """Return the sizes and the rate."""
        return f"d_model={self.d_model}, n_heads={self.n_heads}, dropout={self.dropout}"


def _as_bool(name: str, value: Any) -> bool:
    """Convert to bool; a Python bool is returned at once, so that torch.compile can trace this."""
    return value if isinstance(value, bool) else bool(convert(bool, name, value))


def _checked_mask(mask: Any, q: torch.Tensor, k: torch.Tensor) -> torch.Tensor:
    """Check a mask; return it boolean or additive, with a shape that broadcasts to (B, H, T, S)."""
    mask = as_mask("mask", mask, q.device)
    sizes = (*q.shape[:3], k.size(2))
    if mask.dim() == 3:
        mask = mask.unsqueeze(1)
    # In torch.export sizes are symbolic: these comparisons become guards.
    shape = (1,) * (4 - mask.dim()) + tuple(mask.shape)
    fits = 2 <= mask.dim() <= 4 and shape[3] == sizes[3]
    if not fits or any(a not in (1, b) for a, b in zip(shape, sizes, strict=True)):
        batch, heads, queries, keys = sizes
        raise AGI2Error(
            f"mask has the shape {tuple(mask.shape)}; it must be (T, S), (B, T, S) or (B, H, T, S) "
            f"with B = {batch}, H = {heads}, T = {queries} and S = {keys}, or 1 for B, H and T"
        )
    return mask.to(q.dtype) if mask.is_floating_point() else mask


def as_mask(
    name: str, mask: Any, device: torch.device, *, is_additive: bool = True
) -> torch.Tensor:
    """Convert a mask to a tensor, boolean (True may attend) or float (added to the scores).

    Args:
        name: of the argument, for messages.
        mask: a tensor or an array: boolean, integers of 0 and 1, or float.
        device: the target device.
        is_additive: whether a float mask is additive; otherwise it must be 0 and 1, as integers.

    Raises:
        AGI2Error: if integers are not 0 and 1, or an additive mask has only 0 and 1, which would
            mask nothing, or NaN or positive infinity.
    """
    if not isinstance(mask, torch.Tensor):
        mask = as_tensor(name, mask)
    if mask.is_complex():
        raise AGI2Error(f"{name} must be boolean, 0 and 1, or floating, not {mask.dtype}")
    if mask.device != device:
        mask = mask.to(device)
    if mask.dtype == torch.bool:
        return mask
    is_additive = is_additive and mask.is_floating_point()
    if not _is_traced(device):
        _check_values(name, mask, is_additive)
    return mask if is_additive else mask.bool()


def _is_traced(device: torch.device) -> bool:
    """Return whether operations are compiled or captured, so that values cannot be inspected."""
    if torch.compiler.is_compiling():
        return True
    return device.type == "cuda" and torch.cuda.is_current_stream_capturing()


def _check_values(name: str, mask: torch.Tensor, is_additive: bool) -> None:
    is_binary = bool(((mask == 0) | (mask == 1)).all())
    if not is_additive:
        if not is_binary:
            raise AGI2Error(f"{name} has numbers other than 0 and 1: 1 may attend, 0 may not")
    elif is_binary and bool((mask == 1).any()):
        raise AGI2Error(
            f"{name} is of a floating type, which is added to the scores, and contains only 0 and "
            f"1, which would mask nothing: pass {name}.bool() if 1 may attend"
        )
    elif not bool((mask < math.inf).all()):
        raise AGI2Error(f"{name} has NaN or positive infinity: only -inf forbids to attend")


def attention_weights(
    q: torch.Tensor, k: torch.Tensor, mask: torch.Tensor | None = None
) -> torch.Tensor:
    """Return softmax(Q K^T / sqrt(D) + mask), (B, H, T, S), for (B, H, T, D) and (B, H, S, D)."""
    scores = q / math.sqrt(q.size(-1)) @ k.transpose(-2, -1)
    if mask is None:
        return scores.softmax(dim=-1)
    if mask.dtype == torch.bool:
        mask = torch.zeros_like(mask, dtype=q.dtype).masked_fill(~mask, float("-inf"))
    # The softmax of a fully masked row is NaN: its weights are set to 0.
    is_masked = (mask == float("-inf")).all(dim=-1, keepdim=True)
    if not is_masked.any():
        return (scores + mask).softmax(dim=-1)
    return (scores + mask).masked_fill(is_masked, 0.0).softmax(dim=-1).masked_fill(is_masked, 0.0)


def _combine_masks(mask: torch.Tensor | None, allowed: torch.Tensor) -> torch.Tensor:
    """Combine a mask, boolean or additive, with a boolean mask (T, S)."""
    if mask is None:
        return allowed
    if mask.dtype == torch.bool:
        return mask & allowed
    return mask.masked_fill(~allowed, float("-inf"))
