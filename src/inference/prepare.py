"""Prepares a model for generation: its weights, and its decode backend.

On a CPU it packs or quantizes the weights and chooses the CPU kernels, on a GPU CUDA graphs.

A decode step reads every weight once, so it is bound by memory bandwidth. The exponents in a row
of a weight matrix hardly differ: 28 bits hold a float32 weight without loss. With int8 and int4
weights, `kernel_quantized.h` quantizes activations, too, dynamically, to int8 with a scale for each
group of 32, so that a sequence does not depend on the rest of its batch.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import cast

from torch import nn

from ..arguments import checked
from ..console import show_progress, visible
from ..errors import AGI2Error
from ..model import GPT2Model
from ..nn.cpu_kernels import Weights
from ..nn.decode_backend import EagerBackend
from ..nn.kernel_backend import KernelBackend, LayerWeights, Norm
from ..nn.padded_weight import pad_rows
from ..nn.quantized import (
    QuantizedEmbeddings,
    QuantizedLinear,
    check_finite,
    quantize_weight,
)
from ..transformer import TransformerBlock
from ..utils import log
from .cuda_graph import GraphedBackend, StepModules


@checked
def prepare_for_generation(
    model: GPT2Model, quantize: str = "none", *, verbose: bool = True
) -> GPT2Model:
    """Prepare a model for fast generation, in place.

    On a CPU it can no longer be trained, moved or saved. `none` leaves a model in another dtype
    than float32 as it is, and captures decode steps as CUDA graphs on a GPU. The CPU kernels take
    float32 inputs under autocast, too, so `precision = "bf16"` hardly changes a prepared model.

    Args:
        model: on the CPU, in float32, for `int8` and `int4`.
        quantize: `none` packs weights without loss; `int8` quantizes each row of each matrix to
            255 levels, symmetric; `int4` quantizes groups of 32 weights to 16 levels, asymmetric.
            Token embeddings have the format of the head, which may be tied to them.
        verbose: whether to log (see `console.visible`).

    Returns:
        The model, in evaluation mode.

    Raises:
        AGI2Error: if the device, the dtype or the model's width do not support `quantize`, a
            weight is not finite, or the model was prepared with another `quantize`.
    """
    if quantize not in _BITS:
        raise AGI2Error(f"quantize must be one of {', '.join(_BITS)}, not {quantize!r}")
    if model.prepared is not None:
        if model.prepared != quantize:
            raise AGI2Error(f"{model.prepared_line}: load it again to quantize it otherwise")
    elif model.device.type == "cuda" and quantize == "none":  # pragma: needs gpu
        if isinstance(model.decode_backend, EagerBackend):
            pad_rows(model.output_weight)
            model.use_decode_backend(GraphedBackend(StepModules.of(model)))
    elif _is_supported(model, quantize):
        with visible(verbose):
            _prepare(model, quantize)
    return model.eval()


def _is_supported(model: GPT2Model, quantize: str) -> bool:
    """Return whether the weights can be replaced; raise an `AGI2Error` if they must be."""
    if model.device.type != "cpu":
        if quantize == "none":
            return False
        raise AGI2Error(
            f'quantize = "{quantize}" is for a CPU: set device = "cpu", or leave it out'
        )
    others = {str(p.dtype) for p in model.parameters()} - {"torch.float32"}
    if others:
        if quantize == "none":
            return False
        raise AGI2Error(
            f'quantize = "{quantize}" needs a model in float32, not {", ".join(sorted(others))}: '
            "call model.float() first"
        )
    for name, weight in model.named_parameters():  # before any weight is replaced
        if weight.dim() == 2:
            check_finite(name, weight.detach())
    return True


def _prepare(model: GPT2Model, quantize: str) -> None:
    bits, parameters = _BITS[quantize], model.num_parameters()
    with show_progress("preparing the weights"):
        _replace_weights(model, bits)
    model.mark_prepared(quantize, parameters)
    if isinstance(model.decode_backend, EagerBackend) and bits < 32:
        log.warning("quantize saves memory here, but no time: the CPU kernels are not available")


_BITS = {"none": 32, "int8": 8, "int4": 4}


def _replace_weights(model: GPT2Model, bits: int) -> None:
    """Replace the model's matrices by packed or quantized ones, and set its decode backend."""
    head = quantize_weight(model.output_weight.detach(), None, bits)
    if head.bits < 32:
        embeddings = head
        if model.head is not None:
            embeddings = quantize_weight(model.token_embeddings.weight.detach(), None, bits)
        model.add_module("token_embeddings", QuantizedEmbeddings(embeddings))
    blocks = list(cast(Iterable[TransformerBlock], model.blocks))
    layers = [_layer_weights(block, bits) for block in blocks]
    model.head = QuantizedLinear(head)
    config, epsilons = model.config, {norm.eps for block in blocks for norm in block.norms}
    complete = [layer for layer in layers if layer is not None and layer.has_kernel]
    if len(complete) == len(layers) and len(epsilons) == 1:
        model.use_decode_backend(
            KernelBackend(
                complete, config.n_heads, config.activation, config.norm_position == "pre"
            )
        )


def _layer_weights(block: TransformerBlock, bits: int) -> LayerWeights | None:
    """Return the weights of one layer, or None if the C kernels do not support its norms."""
    qkv, proj, expand, contract = (
        _quantized_matrix(owner, name, bits)
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


def _quantized_matrix(owner: nn.Module, name: str, bits: int) -> Weights:
    """Return a linear layer's weights; replace it in `owner` if they are packed or quantized."""
    linear = getattr(owner, name)
    bias = None if linear.bias is None else linear.bias.detach().contiguous()
    weights = quantize_weight(linear.weight.detach(), bias, bits)
    if weights.bits < 32:
        setattr(owner, name, QuantizedLinear(weights))
    return weights
