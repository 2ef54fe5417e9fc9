"""The tokenizer in the metadata of a GGUF file: byte-level BPE with llama.cpp's pre-tokenizers."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

import numpy as np
from tokenizers import models

from ..config_keys import PreTokenizer
from ..data.chat_template import JINJA
from ..errors import AGI2Error, safe_repr
from ..nn.bpe_library import Splitter
from ..tokenization.byte_level import byte_level
from ..tokenization.tokenizer_json import MAX_ADDED, check_byte_level
from ..tokenizer import KNOWN_EOS_TOKENS, Tokenizer
from ..utils import log
from .gguf_file import GGUFFile
from .imported import PLAIN_ADDED, build_tokenizer

PRE_TOKENIZERS = {
    Splitter(is_gpt4=False, max_digits=0): "gpt-2",
    Splitter(is_gpt4=False, max_digits=1): "smollm",
    Splitter(is_gpt4=True, max_digits=3): "dbrx",
    Splitter(is_gpt4=True, max_digits=1): "qwen2",
}
"""llama.cpp's names of the pre-tokenizers that split any text as ours do."""

# Types of tokens. Special ones are not found in text; user-defined ones are, before text is split.
_NORMAL, _USER_DEFINED, _UNUSED = 1, 4, 5
# Ids that end a text, in llama.cpp: end of text, of turn and of message.
_ENDS = ("eos", "eot", "eom")


def read_tokenizer(file: GGUFFile) -> Tokenizer:
    """Return the tokenizer of a file, with its BOS and EOS tokens.

    Raises:
        AGI2Error: if it is of another kind, splits text in a way that AGI2 does not know, adds
            tokens to every text, or is inconsistent.
    """
    name = str(file.path)
    content = json.loads(byte_level(models.BPE(), *_pre_tokenizer(file)).to_str())
    ids, types = _vocabulary(file)
    content["model"]["vocab"] = ids
    added = [token for token, id in ids.items() if types[id] != _NORMAL]
    # The library that writes GGUF leaves out an empty array: there is none if all are single bytes.
    has_merges = any(len(token) > 1 for token in ids.keys() - set(added))
    content["model"]["merges"] = _list(file, "tokenizer.ggml.merges") if has_merges else []
    if len(added) > MAX_ADDED:
        raise AGI2Error(f"{name} has over {MAX_ADDED:,} special tokens")
    content["added_tokens"] = [
        {
            "id": ids[each],
            "content": each,
            **PLAIN_ADDED,
            "special": types[ids[each]] != _USER_DEFINED,
        }
        for each in added
    ]
    label = f"{name}: its tokenizer"
    check_byte_level(content, label)  # validates what the code below indexes
    start, ends = _bos_and_eos_ids(file, ids)
    tokenizer = build_tokenizer(content, ids, start, ends, name, label)
    _check_template(file, tokenizer)
    return tokenizer


def _pre_tokenizer(file: GGUFFile) -> tuple[PreTokenizer, bool]:
    """Return `pretokenizer` and `split_digits`."""
    kind = file.metadata.get("tokenizer.ggml.model")
    if kind != "gpt2":
        raise AGI2Error(
            f"{file.path}: tokenizer.ggml.model = {safe_repr(kind)}; only gpt2, byte-level BPE, "
            "can be imported"
        )
    for key in ("tokenizer.ggml.add_bos_token", "tokenizer.ggml.add_eos_token"):
        if file.metadata.get(key, False) is not False:
            raise AGI2Error(
                f"{file.path}: {key} = {safe_repr(file.metadata[key])}: AGI2 adds no tokens to a "
                "text"
            )
    name = file.metadata.get("tokenizer.ggml.pre")
    if name is None:  # older than the key
        log.warning("%s names no pre-tokenizer: text is split as GPT-2 does", file.path)
        name = "gpt-2"
    for splitter, known in PRE_TOKENIZERS.items():
        if name == known:
            return "gpt4" if splitter.is_gpt4 else "gpt2", splitter.max_digits == 1
    raise AGI2Error(
        f"{file.path}: tokenizer.ggml.pre = {safe_repr(name)} is none of "
        f"{', '.join(PRE_TOKENIZERS.values())}: AGI2 would split text in another way"
    )


def _list(file: GGUFFile, key: str) -> list[str]:
    values = file.metadata.get(key)
    if not isinstance(values, list):
        raise AGI2Error(f"{file.path}: {key} is not an array of strings")
    return values


def _vocabulary(file: GGUFFile) -> tuple[dict[str, int], list[int]]:
    """Return the id of each token that is used, and the type of every id."""
    tokens = _list(file, "tokenizer.ggml.tokens")
    types = file.metadata.get("tokenizer.ggml.token_type", np.full(len(tokens), _NORMAL))
    if not isinstance(types, np.ndarray) or types.dtype.kind not in "iu":
        raise AGI2Error(f"{file.path}: tokenizer.ggml.token_type is not an array of integers")
    if len(types) != len(tokens):
        raise AGI2Error(
            f"{file.path}: it has {len(tokens):,} tokens, and the types of {len(types):,}"
        )
    kinds = [int(kind) for kind in types]
    for token, kind in zip(tokens, kinds, strict=True):
        if not _NORMAL <= kind <= _UNUSED:
            raise AGI2Error(f"{file.path}: the token {safe_repr(token)} is of the type {kind}")
    ids: dict[str, int] = {}
    for id, (token, kind) in enumerate(zip(tokens, kinds, strict=True)):
        if kind != _UNUSED and ids.setdefault(token, id) != id:
            raise AGI2Error(f"{file.path}: the token {safe_repr(token)} is there twice")
    return ids, kinds


def _bos_and_eos_ids(file: GGUFFile, ids: Mapping[str, int]) -> tuple[int, list[int]]:
    """Return the BOS id and the EOS ids, without duplicates."""
    used = set(ids.values())
    found: dict[str, int] = {}
    for kind in ("bos", *_ENDS):
        key = f"tokenizer.ggml.{kind}_token_id"
        id = file.metadata.get(key)
        if id is not None and (type(id) is not int or id not in used):
            raise AGI2Error(f"{file.path}: {key} = {safe_repr(id)} is the id of no token")
        if id is not None:
            found[kind] = id
    ends = list(dict.fromkeys(found[kind] for kind in _ENDS if kind in found))
    if not ends:
        ends = [ids[token] for token in KNOWN_EOS_TOKENS if token in ids][:1]
    if not ends:
        raise AGI2Error(f"{file.path} names no end-of-text token (tokenizer.ggml.eos_token_id)")
    return found.get("bos", ends[0]), ends


def _check_template(file: GGUFFile, tokenizer: Tokenizer) -> None:
    template: Any = file.metadata.get("tokenizer.chat_template")
    if template is None or (isinstance(template, str) and template.strip() == JINJA):
        return
    if tokenizer.has_roles:
        raise AGI2Error(
            f"{file.path}: its tokenizer has the tokens of AGI2's chat template, but its chat "
            "template is another one: it cannot be imported"
        )
    log.warning(
        "%s: not kept: its chat template (a chat separates turns by an empty line)", file.path
    )
