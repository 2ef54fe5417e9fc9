"""Import and export of a Hugging Face tokenizer: its vocabulary, BOS and EOS tokens.

The EOS tokens are those of `generation_config.json` (else `config.json`) and the tokenizer's own
`eos_token`. AGI2 stores BOS and EOS in `tokenizer.json` as a post-processor template, which
exports leave out: other libraries would add these tokens to every encoded text.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ..data.chat_template import save_template
from ..errors import AGI2Error, safe_repr
from ..tokenization.tokenizer_json import (
    MAX_ADDED,
    MAX_FILE_BYTES,
    check_byte_level,
    read_bounded,
)
from ..tokenizer import FILE_NAME, KNOWN_EOS_TOKENS, Tokenizer, load_tokenizer
from ..utils import log, write_text
from .huggingface_folder import Folder, has_other_template, read_hf_json
from .huggingface_generation import from_hf_generation
from .imported import (
    PLAIN_ADDED,
    build_tokenizer,
    default_eos_id,
    make_special,
    processors,
    remove_template,
)

# Default BOS and EOS id of `transformers.GPT2Config`, saved even if the vocabulary is smaller.
_DEFAULT_ID = 50256
# Keys of generation_config.json that do not change sampling, or that are imported.
_PLAIN_GENERATION = {
    *("bos_token_id", "eos_token_id", "pad_token_id", "transformers_version", "_from_model_config"),
    *("use_cache", "output_attentions", "output_hidden_states", "output_scores"),
    "return_dict_in_generate",
}
# Maximum number of EOS tokens.
MAX_EOS_TOKENS = 60
# Number of keys of generation_config.json that a warning names.
_SHOWN_DEFAULTS = 8


def load_hf_tokenizer(path: Path, name: str, model: Mapping[str, Any]) -> Tokenizer:
    """Load the tokenizer of a Hugging Face folder, with its BOS and EOS tokens.

    Args:
        path: the folder.
        name: name of the model, for error messages.
        model: content of config.json.

    Raises:
        AGI2Error: if there is none, a special token is not in its vocabulary, or it adds special
            tokens to every encoded text, which AGI2 does not support.
    """
    files = Folder.read(path, name, model)
    content = _content(path, name)
    vocabulary = content.get("model")
    if not isinstance(vocabulary, dict) or not isinstance(vocabulary.get("vocab"), dict):
        kind = vocabulary.get("type") if isinstance(vocabulary, dict) else content.get("type")
        raise AGI2Error(
            f"{name}: {FILE_NAME} is of the kind {safe_repr(kind)}: only byte-level BPE can be "
            "imported"
        )
    _apply_add_prefix_space(files, content)
    check_byte_level(content, f"{name}: {FILE_NAME}")  # validates what the code below indexes
    _check_adds_no_tokens(files, content)
    ids = _add_tokens(files, content)
    start, ends = _bos_and_eos_ids(files, content, ids)
    tokenizer = build_tokenizer(content, ids, start, ends, name, f"{name}: {FILE_NAME}")
    if tokenizer.has_roles and has_other_template(files, path):
        raise AGI2Error(
            f"{name}: its tokenizer has the tokens of AGI2's chat template, but its chat template "
            "is another one: it cannot be imported"
        )
    _warn_about_dropped(files, path, content)
    return tokenizer


def _content(folder: Path, name: str) -> dict[str, Any]:
    """Load `tokenizer.json`, or build its content from GPT-2's vocab.json and merges.txt."""
    vocab, merges = folder / "vocab.json", folder / "merges.txt"
    if os.path.lexists(folder / FILE_NAME):
        return read_hf_json(folder / FILE_NAME, name, MAX_FILE_BYTES)
    if not (vocab.is_file() and merges.is_file()):
        load_tokenizer(folder)  # raises, naming what is missing
    try:
        lines = read_bounded(merges).decode("utf-8").replace("\r\n", "\n").split("\n")
    except UnicodeDecodeError as error:
        raise AGI2Error(f"{name}: {merges.name} is not UTF-8") from error
    pairs = [line.split(" ") for line in lines if line and not line.startswith("#version")]
    return {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": [],
        "normalizer": None,
        "pre_tokenizer": {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True},
        "post_processor": None,
        "decoder": {"type": "ByteLevel", "add_prefix_space": True, "trim_offsets": True},
        "model": {
            "type": "BPE",
            "vocab": read_hf_json(vocab, name, MAX_FILE_BYTES),
            "merges": pairs,
        },
    }


def _check_adds_no_tokens(files: Folder, content: dict[str, Any]) -> None:
    """Raise if the tokenizer adds special tokens to every encoded text."""
    for key in ("add_bos_token", "add_eos_token"):
        if files.flag(key):
            raise AGI2Error(f"{files.name}: {key} = true: AGI2 adds no tokens to a text")
    for part in processors(content):
        kind = part["type"]
        plain = kind == "TemplateProcessing" and [list(each) for each in part["single"]]
        if kind != "ByteLevel" and plain != [["Sequence"]]:
            raise AGI2Error(
                f"{files.name}: post_processor {safe_repr(kind)} in {FILE_NAME} adds tokens to "
                "a text, which AGI2 does not"
            )


def _apply_add_prefix_space(files: Folder, content: dict[str, Any]) -> None:
    """Override `add_prefix_space` of the pre-tokenizer with that of tokenizer_config.json."""
    leading = files.flag("add_prefix_space")
    pre_tokenizer = content.get("pre_tokenizer")
    if (
        isinstance(leading, bool)
        and isinstance(pre_tokenizer, dict)
        and pre_tokenizer.get("type") == "ByteLevel"
    ):
        pre_tokenizer["add_prefix_space"] = leading


def _add_tokens(files: Folder, content: dict[str, Any]) -> dict[str, int]:
    """Add the tokens of the other files to `added_tokens`; return the id of every token.

    As in `transformers`, a `bos_token` or `eos_token` without an id gets the next free one.
    """
    added = content.setdefault("added_tokens", [])
    ids: dict[str, int] = dict(content["model"]["vocab"])
    ids.update({each["content"]: each["id"] for each in added})
    more = _decoder_tokens(files)
    named = {files.token(kind) for kind in ("bos_token", "eos_token", "pad_token", "unk_token")}
    for token, id in files.added.items():
        if type(id) is not int:
            raise AGI2Error(
                f"{files.name}: added_tokens.json: the id of {token!r} is not an integer"
            )
        more.setdefault(token, (id, {**PLAIN_ADDED, "special": token in named}))
    present = {each["content"] for each in added}
    if len(more.keys() | present) > MAX_ADDED:
        raise AGI2Error(f"{files.name} has over {MAX_ADDED:,} added tokens")
    for token, (id, flags) in sorted(more.items(), key=lambda item: item[1][0]):
        if ids.setdefault(token, id) != id:
            raise AGI2Error(
                f"{files.name}: the token {token!r} has the id {id} in one file, {ids[token]} in "
                "another"
            )
        if token not in present:
            kept = {key: flags[key] for key in (*PLAIN_ADDED, "special")}
            added.append({"id": id, "content": token, **kept})
    for name in filter(None, map(files.token, ("bos_token", "eos_token"))):
        if name not in ids:
            ids[name] = 1 + max(ids.values(), default=-1)
            make_special(content, [(ids[name], name)])
    return ids


def _decoder_tokens(files: Folder) -> dict[str, tuple[int, dict[str, Any]]]:
    """Return the `added_tokens_decoder` of tokenizer_config.json: id and flags by token."""
    key = "added_tokens_decoder"
    location = f"{files.name}: tokenizer_config.json: {key}"
    found = files.tokenizer.get(key) or {}
    if not isinstance(found, dict):
        raise AGI2Error(f"{location} = {safe_repr(found)} is not an object of tokens by id")
    tokens = {}
    for id, each in found.items():
        token = each.get("content") if isinstance(each, dict) else None
        # More digits would be no id, and Python refuses to convert thousands.
        if not re.fullmatch("[0-9]{1,10}", id) or not isinstance(token, str):
            raise AGI2Error(
                f"{location}: {safe_repr(id)} = {safe_repr(each)} is not a token by its id"
            )
        tokens[token] = (int(id), {**PLAIN_ADDED, "special": False, **each})
    return tokens


def _bos_and_eos_ids(
    files: Folder, content: dict[str, Any], ids: Mapping[str, int]
) -> tuple[int, list[int]]:
    """Return the BOS id and the EOS ids, without duplicates."""
    eos = files.token("eos_token")
    ends = [ids[eos]] if eos is not None else []
    ends = list(dict.fromkeys(ends + _known_ids(files, "eos_token_id", ids)))
    default = default_eos_id(content)
    if not ends and default is not None:
        ends = [default]
    if not ends:  # perhaps in the vocabulary, but not marked as special
        ends = [ids[token] for token in KNOWN_EOS_TOKENS if token in ids][:1]
    if not ends:
        raise AGI2Error(
            f"{files.name} names no end-of-text token: set eos_token_id in its config.json"
        )
    if len(ends) > MAX_EOS_TOKENS:
        raise AGI2Error(
            f"{files.name} names {len(ends):,} end tokens (eos_token_id): AGI2 keeps at most "
            f"{MAX_EOS_TOKENS}"
        )
    bos = files.token("bos_token")
    starts = _known_ids(files, "bos_token_id", ids) + ([ids[bos]] if bos is not None else [])
    return [*starts, ends[0]][0], ends


def _known_ids(files: Folder, kind: str, ids: Mapping[str, int]) -> list[int]:
    """Return the ids of a kind that are in the vocabulary; the default id may be missing."""
    found, known = files.ids(kind), set(ids.values())
    for id in found:
        if id not in known and id != _DEFAULT_ID:
            raise AGI2Error(f"{files.name}: {kind} {id} is the id of no token in its tokenizer")
    return [id for id in found if id in known]


def _unread_class(files: Folder, content: Mapping[str, Any]) -> Any:
    """Return the tokenizer class if it may replace parts of tokenizer.json, else `None`.

    Such a class in `transformers` 5 takes only the vocabulary and the merges.
    """
    kind = files.tokenizer.get("tokenizer_class")
    if kind in (None, "PreTrainedTokenizerFast", "TokenizersBackend"):
        return None
    part = content["pre_tokenizer"]
    is_plain = content.get("normalizer") is None and part["type"] == "ByteLevel"
    return None if kind in ("GPT2Tokenizer", "GPT2TokenizerFast") and is_plain else kind


def _warn_about_dropped(files: Folder, folder: Path, content: Mapping[str, Any]) -> None:
    """Warn of what the import drops: chat template, padding, generation defaults, class."""
    dropped = []
    if has_other_template(files, folder):
        dropped.append("its chat template (here an empty line separates turns)")
    if files.token("pad_token") is not None:
        dropped.append("its pad_token (nothing is padded with it here)")
    _, kept = from_hf_generation(files.generation)
    defaults = [
        f"{key} = {safe_repr(value)}"
        for key, value in files.generation.items()
        if key not in _PLAIN_GENERATION | kept and value is not None
    ]
    if (more := len(defaults) - _SHOWN_DEFAULTS) > 0:
        defaults = [*defaults[:_SHOWN_DEFAULTS], f"and {more:,} more"]
    if defaults:
        dropped.append(f"{', '.join(defaults)} of generation_config.json (set keys of config.toml)")
    if (kind := _unread_class(files, content)) is not None:
        dropped.append(
            f"tokenizer_class = {safe_repr(kind)} of tokenizer_config.json (text is encoded as "
            f"{FILE_NAME} says; some versions of transformers encode it differently for this class)"
        )
    for what in dropped:
        log.warning("%s: not kept: %s", files.name, what)


def save_hf_tokenizer(tokenizer: Tokenizer, folder: Path, positions: int) -> dict[str, Any]:
    """Write tokenizer.json and tokenizer_config.json for `transformers`.

    Args:
        tokenizer: byte-level BPE.
        folder: an existing folder.
        positions: the model's `max_seq_len`.

    Returns:
        `bos_token_id` and `eos_token_id`, for config.json and generation_config.json.
    """
    content = json.loads(tokenizer.to_json())
    names = {id: token for token, id in content["model"]["vocab"].items()}
    names.update({each["id"]: each["content"] for each in content["added_tokens"]})
    if remove_template(content):
        text = json.dumps(content, ensure_ascii=False, indent=2)
    else:
        text = tokenizer.to_json()
    end = names[tokenizer.end_of_text]
    notes = {
        # The generic class loads any tokenizer.json unchanged.
        "tokenizer_class": "PreTrainedTokenizerFast",
        "bos_token": names[tokenizer.start_of_text],
        "eos_token": end,
        "unk_token": end,
        "clean_up_tokenization_spaces": False,
        "model_max_length": positions,
    }
    write_text(folder / FILE_NAME, text)
    write_text(folder / "tokenizer_config.json", json.dumps(notes, indent=2) + "\n")
    save_template(tokenizer, folder)
    ends = list(tokenizer.end_tokens)
    return {
        "bos_token_id": tokenizer.start_of_text,
        "eos_token_id": ends[0] if len(ends) == 1 else ends,
    }
