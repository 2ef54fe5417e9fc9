"""A model made fast at writing: weights packed or rounded for a CPU, steps recorded for a GPU.

To write a token reads every weight once, so its time is that of bringing them from memory. The
exponents of a matrix's row hardly differ: so 28 bits hold a weight of 32 exactly. Only weights are
rounded to be kept; what they are multiplied with has 16 bits in `cpu_kernels.c` (8 beside
weights of 4), by rows and groups of its own, so that a text of a batch is what it is alone. O
outputs and I inputs of a matrix.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import cast

from torch import nn

from ..arguments import checked
from ..console import busy, visible
from ..errors import AGI2Error
from ..model import GPT2Model
from ..nn.cpu_kernels import (
    LayerWeights,
    NativeLayers,
    Norm,
    Weights,
)
from ..nn.quantized import INT4_BLOCK, FixedEmbeddings, FixedLinear, arrange, check_finite
from ..transformer import TransformerBlock
from ..utils import log
from .cuda_graph import GraphedLayers


@checked
def prepare_for_generation(
    model: GPT2Model, quantize: str = "none", *, verbose: bool = True
) -> GPT2Model:
    """Make a model fast at writing, in place; on a CPU it can no longer be trained, moved or saved.

    A model on another device, or of other numbers than float32, is left as it is by `none`.

    Args:
        model: on the CPU, in float32, for `int8` and `int4`.
        quantize: `none` changes no weight; `int8` rounds each row of each matrix to 255 levels;
            `int4` rounds groups of 32 weights to 16 levels. Token embeddings are kept as the head
            is, which may be tied to them.
        verbose: whether to log (see `console.visible`).

    Raises:
        AGI2Error: where the device, the numbers or the model's width have no such weights, a
            weight is not a finite number, or the model was prepared in another way.
    """
    if quantize not in _BITS:
        raise AGI2Error(f"quantize must be one of {', '.join(_BITS)}, not {quantize!r}")
    if model.prepared is not None:
        if model.prepared != quantize:
            raise AGI2Error(f"{model.prepared_line}: load it again to quantize it otherwise")
        return model.eval()
    if model.device.type != "cpu":
        if quantize == "none":
            if model.device.type == "cuda":  # pragma: needs gpu
                model.few_tokens = GraphedLayers(model.blocks)
            return model.eval()
        raise AGI2Error(
            f'quantize = "{quantize}" is for a CPU: set device = "cpu", or leave it out'
        )
    others = {str(p.dtype) for p in model.parameters()} - {"torch.float32"}
    if others:
        if quantize == "none":
            return model.eval()
        raise AGI2Error(
            f'quantize = "{quantize}" needs a model in float32, not {", ".join(sorted(others))}: '
            "call model.float() first"
        )
    config = model.config
    if quantize == "int4" and (config.d_model % INT4_BLOCK or config.d_ff % INT4_BLOCK):
        raise AGI2Error(
            f'quantize = "int4" needs model_embd and model_ff divisible by {INT4_BLOCK}'
        )
    for name, weight in model.named_parameters():  # before anything is changed
        if weight.dim() == 2:
            check_finite(name, weight.detach())
    with visible(verbose):
        _prepare(model, quantize)
    return model


def _prepare(model: GPT2Model, quantize: str) -> None:
    bits, parameters = _BITS[quantize], model.num_parameters()
    with busy("preparing the weights"):
        _fix_weights(model, bits)
    model.mark_prepared(quantize, parameters)
    if model.few_tokens is None and bits < 32:
        log.warning(
            "quantize saves memory here, and no time: the compiled part is not there, or the "
            "model's widths are not divisible by %d",
            16 if bits == 8 else INT4_BLOCK,
        )


_BITS = {"none": 32, "int8": 8, "int4": 4}


def _fix_weights(model: GPT2Model, bits: int) -> None:
    """Set packed or rounded matrices in place of the model's, as far as there are such."""
    head = arrange(model.output_weight.detach(), None, bits)
    if head.bits < 32:
        embeddings = head
        if model.head is not None:
            embeddings = arrange(model.token_embeddings.weight.detach(), None, bits)
        model.add_module("token_embeddings", FixedEmbeddings(embeddings))
    blocks = list(cast(Iterable[TransformerBlock], model.blocks))
    layers = [_fixed_layer(block, bits) for block in blocks]
    model.head = FixedLinear(head)
    config, epsilons = model.config, {norm.eps for block in blocks for norm in block.norms}
    complete = [layer for layer in layers if layer is not None and layer.is_native]
    if len(complete) == len(layers) and len(epsilons) == 1:
        model.few_tokens = NativeLayers(
            complete, config.n_heads, config.activation, config.norm_position == "pre"
        )


def _fixed_layer(block: TransformerBlock, bits: int) -> LayerWeights | None:
    """What a layer consists of, or None where its norms are not those of the compiled part."""
    qkv, proj, expand, contract = (
        _fixed(owner, name, bits)
        for owner, name in (
            (block.attention, "qkv"),
            (block.attention, "proj"),
            (block.ffn, "expand"),
            (block.ffn, "contract"),
        )
    )
    first, second = (Norm.of(norm, proj.inputs) for norm in block.norms)
    if first is None or second is None:
        return None
    return LayerWeights(qkv, proj, expand, contract, first, second)


def _fixed(owner: nn.Module, name: str, bits: int) -> Weights:
    """The weights of a linear layer of `owner`, which is replaced where they are rounded."""
    linear = getattr(owner, name)
    bias = None if linear.bias is None else linear.bias.detach().contiguous()
    weights = arrange(linear.weight.detach(), bias, bits)
    if weights.bits < 32:
        setattr(owner, name, FixedLinear(weights))
    return weights
