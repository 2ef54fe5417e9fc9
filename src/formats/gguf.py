"""Export to GGUF, the file format of llama.cpp, with its architecture `gpt2`."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch

from ..config import GPT2Config
from ..data.chat_template import JINJA
from ..errors import AGI2Error
from ..model import GPT2Model
from ..tokenization.byte_level import splitter_of
from ..tokenizer import BPETokenizer, Tokenizer
from ..utils import atomic_path
from .gguf_tokenizer import PRE_TOKENIZERS
from .huggingface_weights import as_gpt2, renamed

# Tensor names in GGUF, by module of `GPT2Model`; then those inside a block.
_NAMES = {
    "token_embeddings": "token_embd",
    "position_embeddings": "position_embd",
    "final_norm": "output_norm",
    "head": "output",
}
_NAMES_IN_A_BLOCK = {
    "attention_norm": "attn_norm",
    "attention.qkv": "attn_qkv",
    "attention.proj": "attn_output",
    "ffn_norm": "ffn_norm",
    "ffn.expand": "ffn_up",
    "ffn.contract": "ffn_down",
}

# Consecutive weights of a row that share one fp16 scale, in Q8_0 and in Q4_0.
_BLOCK = 32

# The largest absolute value of a type: of fp16, and of a block whose scale is the largest in fp16.
_LARGEST = {"F16": 65504.0, "Q8_0": 127 * 65504.0, "Q4_0": 8 * 65504.0}


def gguf_name(key: str) -> str:
    """Return the GGUF tensor name of a parameter of `GPT2Model`."""
    return renamed(key, _NAMES, "blk", _NAMES_IN_A_BLOCK)


def export_gguf(
    model: GPT2Model, tokenizer: Tokenizer, path: Path, quantize: str | None = None
) -> None:
    """Write a GGUF file in fp32, or with the matrices of blocks, embedding and head in a type.

    Args:
        model: pre-norm, with tanh GELU.
        tokenizer: byte-level BPE with GPT-2's or GPT-4's pre-tokenizer, with or without
            `split_digits`.
        path: the file to write.
        quantize: the type of matrices. `f16`; or `q8_0` or `q4_0`: integers of 8 or 4 bits with
            one fp16 scale for each 32 of a row. With `q4_0`, the matrix of the head, and so a tied
            embedding, is in Q8_0, as the loss depends on it most. A matrix whose row length is not
            a multiple of 32 stays fp32 in the latter two. Biases, norms and position embeddings
            always do.

    Raises:
        AGI2Error: if llama.cpp does not support the architecture or the tokenizer, a weight is too
            large for the type, or the file cannot be written.
    """
    import gguf

    if model.config.activation != "gelu_tanh":
        raise AGI2Error(
            'llama.cpp\'s GPT-2 supports only activation = "gelu_tanh", not '
            f'"{model.config.activation}"'
        )
    config, weights = as_gpt2(model)
    vocabulary = _vocabulary(tokenizer, config.vocab_size)
    with atomic_path(path) as temporary:
        writer = gguf.GGUFWriter(temporary, "gpt2")
        try:
            _write_architecture(writer, config, path.stem)
            _write_tokenizer(writer, vocabulary, tokenizer)
            _write_tensors(writer, weights, quantize)
            writer.write_header_to_file()
            writer.write_kv_data_to_file()
            writer.write_tensors_to_file()
        finally:
            writer.close()


def _write_tensors(writer: Any, weights: Mapping[str, torch.Tensor], quantize: str | None) -> None:
    import gguf

    _write_file_type(writer, quantize)
    for name, weight in weights.items():
        data = weight.detach().cpu().float().contiguous().numpy()
        type = _type_of(name, data.shape, quantize, is_tied="head.weight" not in weights)
        if (largest := float(np.abs(data).max())) > _LARGEST.get(type, math.inf):
            raise AGI2Error(
                f"{name} has a weight of magnitude {largest:.4g}, {type} holds "
                f"{_LARGEST[type]:,.0f} at most: export in fp32, without quantize"
            )
        kind = gguf.GGMLQuantizationType[type]
        writer.add_tensor(gguf_name(name), gguf.quants.quantize(data, kind), raw_dtype=kind)


def _type_of(name: str, shape: tuple[int, ...], quantize: str | None, is_tied: bool) -> str:
    """Return the GGUF type of a parameter of `GPT2Model`."""
    is_matrix = len(shape) == 2 and not name.startswith("position_embeddings")
    if quantize is None or not is_matrix:
        return "F32"
    if quantize == "f16":
        return "F16"
    if shape[1] % _BLOCK:
        return "F32"
    # llama.cpp's own quantizer uses Q6_K here, or Q8_0 for rows that are not a multiple of 256.
    is_head = name == ("token_embeddings.weight" if is_tied else "head.weight")
    return "Q8_0" if is_head else quantize.upper()


def _write_file_type(writer: Any, quantize: str | None) -> None:
    import gguf

    name = "ALL_F32" if quantize is None else f"MOSTLY_{quantize.upper()}"
    writer.add_file_type(gguf.LlamaFileType[name])
    if quantize in ("q8_0", "q4_0"):
        writer.add_quantization_version(gguf.GGML_QUANT_VERSION)


def _write_architecture(writer: Any, config: GPT2Config, name: str) -> None:
    writer.add_name(name)
    writer.add_context_length(config.max_seq_len)
    writer.add_embedding_length(config.d_model)
    writer.add_block_count(config.n_layers)
    writer.add_feed_forward_length(config.d_ff)
    writer.add_head_count(config.n_heads)
    writer.add_layer_norm_eps(1e-5)  # the default of `nn.LayerNorm`, which the model uses


def _vocabulary(tokenizer: Tokenizer, size: int) -> dict[str, Any]:
    """Return the vocabulary as GGUF stores it: tokens, token types and BPE merges.

    Args:
        tokenizer: must pre-tokenize as one of `PRE_TOKENIZERS`, and merge as llama.cpp does.
        size: rows of the token embedding (V); GGUF needs exactly this many tokens.

    Raises:
        AGI2Error: if llama.cpp does not support the tokenizer, or would encode text to other ids.
    """
    from gguf import TokenType

    content = json.loads(tokenizer.to_json())
    pre_tokenizer = _pre_tokenizer(tokenizer, content)
    # The embedding may be padded: ids without a token become unused placeholders.
    tokens = [f"[PAD{id}]" for id in range(size)]
    types = [TokenType.UNUSED] * size
    for token, id in content["model"]["vocab"].items():
        tokens[id], types[id] = token, TokenType.NORMAL
    for token in content["added_tokens"]:
        tokens[token["id"]], types[token["id"]] = token["content"], TokenType.CONTROL
    merges = [" ".join(pair) for pair in content["model"]["merges"]]
    return {"pre": pre_tokenizer, "tokens": tokens, "types": types, "merges": merges}


def _pre_tokenizer(tokenizer: Tokenizer, content: dict[str, Any]) -> str:
    """Return the name of the pre-tokenizer with which llama.cpp encodes as a tokenizer does.

    Args:
        tokenizer: the tokenizer.
        content: its `tokenizer.json`.

    Raises:
        AGI2Error: if there is none.
    """
    if not isinstance(tokenizer, BPETokenizer):
        raise AGI2Error('GGUF does not support a character tokenizer: train with tokenizer = "bpe"')
    if len(tokenizer.end_tokens) > 3:
        raise AGI2Error(
            f"a text of this model ends with one of {len(tokenizer.end_tokens)} tokens: GGUF "
            "supports at most three"
        )
    model, splitter = content["model"], splitter_of(content["pre_tokenizer"])
    if not (
        splitter in PRE_TOKENIZERS
        and model["type"] == "BPE"
        and not model.get("ignore_merges")
        and not model.get("byte_fallback")
        and not model.get("continuing_subword_prefix")
        and not model.get("end_of_word_suffix")
        and content["normalizer"] is None
        and all(token["special"] for token in content["added_tokens"])
    ):
        raise AGI2Error(
            "this tokenizer splits text in a way that llama.cpp does not know: it would encode it "
            "to other tokens"
        )
    assert splitter is not None
    return PRE_TOKENIZERS[splitter]


def _write_tokenizer(writer: Any, vocabulary: dict[str, Any], tokenizer: Tokenizer) -> None:
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre(vocabulary["pre"])
    writer.add_token_list(vocabulary["tokens"])
    writer.add_token_types(vocabulary["types"])
    writer.add_token_merges(vocabulary["merges"])
    writer.add_bos_token_id(tokenizer.start_of_text)
    # llama.cpp stops at any of its three end-of-generation tokens: EOS, EOT and EOM.
    adders = (writer.add_eos_token_id, writer.add_eot_token_id, writer.add_eom_token_id)
    for add, end in zip(adders, tokenizer.end_tokens, strict=False):
        add(end)
    writer.add_add_bos_token(False)
    if tokenizer.has_roles:
        writer.add_chat_template(JINJA)
