"""Export to GGUF, the file format of llama.cpp, with its architecture `gpt2`."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from ..config import GPT2Config
from ..data.chat_template import JINJA
from ..errors import AGI2Error
from ..model import GPT2Model
from ..nn.bpe_library import Splitter
from ..tokenization.byte_level import splitter_of
from ..tokenizer import BPETokenizer, Tokenizer
from ..utils import atomic_path
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

# llama.cpp's names of the pre-tokenizers that split any text as ours do.
_PRE_TOKENIZERS = {
    Splitter(is_gpt4=False, max_digits=0): "gpt-2",
    Splitter(is_gpt4=False, max_digits=1): "smollm",
    Splitter(is_gpt4=True, max_digits=3): "dbrx",
    Splitter(is_gpt4=True, max_digits=1): "qwen2",
}

# Block size of Q8_0: consecutive weights of a row that share one scale.
_Q8_0_BLOCK = 32


def gguf_name(key: str) -> str:
    """Return the GGUF tensor name of a parameter of `GPT2Model`."""
    return renamed(key, _NAMES, "blk", _NAMES_IN_A_BLOCK)


def export_gguf(
    model: GPT2Model, tokenizer: Tokenizer, path: Path, quantize: str | None = None
) -> None:
    """Write a GGUF file in fp32, or with the matrices of blocks, embedding and head in Q8_0.

    Args:
        model: pre-norm, with tanh GELU.
        tokenizer: byte-level BPE with GPT-2's or GPT-4's pre-tokenizer, with or without
            `split_digits`.
        path: the file to write.
        quantize: `q8_0`: int8 weights with one scale for each 32 of a row. A matrix whose row
            length is not a multiple of 32, biases, norms and position embeddings stay fp32.

    Raises:
        AGI2Error: if llama.cpp does not support the architecture or the tokenizer, or the file
            cannot be written.
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

    for name, weight in weights.items():
        data = weight.detach().cpu().float().contiguous().numpy()
        kind = gguf.GGMLQuantizationType.F32
        is_matrix = data.ndim == 2 and not name.startswith("position_embeddings")
        if quantize == "q8_0" and is_matrix and data.shape[1] % _Q8_0_BLOCK == 0:
            kind = gguf.GGMLQuantizationType.Q8_0
            data = gguf.quants.quantize(data, kind)
        writer.add_tensor(gguf_name(name), data, raw_dtype=kind)


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
        tokenizer: must pre-tokenize as one of `_PRE_TOKENIZERS`, and merge as llama.cpp does.
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
        splitter in _PRE_TOKENIZERS
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
    return _PRE_TOKENIZERS[splitter]


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
