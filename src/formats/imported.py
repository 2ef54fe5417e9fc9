"""What all imports share: the tokenizer from its content, and the folder that is written."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ..config_loader import make_config
from ..errors import AGI2Error
from ..model import GPT2Model
from ..tokenizer import FILE_NAME, KNOWN_EOS_TOKENS, TEMPLATE_TYPE, Tokenizer, load_tokenizer
from ..utils import atomic_folder
from .model_dir import save_model

PLAIN_ADDED = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False}
"""Flags of an added token that is found anywhere in a text, as it is."""


def save_imported(
    model: GPT2Model, tokenizer: Tokenizer, folder: Path, keys: Mapping[str, Any] | None = None
) -> None:
    """Save an imported model to a new folder for `load_model`.

    Args:
        model: its architecture becomes the configuration.
        tokenizer: of the model.
        folder: created.
        keys: more keys of the configuration.

    Raises:
        AGI2Error: if the folder exists or cannot be written.
    """
    names = {"model_name": folder.name, "output_dir": str(folder.parent)}
    keys = {**model.config.to_keys(), **(keys or {}), **names}
    with atomic_folder(folder) as temporary:
        save_model(model, tokenizer, make_config(keys, name=str(folder)), temporary)


def build_tokenizer(
    content: dict[str, Any],
    ids: Mapping[str, int],
    start: int,
    ends: list[int],
    name: str,
    label: str,
) -> Tokenizer:
    """Build the tokenizer of an imported model, with its BOS and EOS tokens.

    Args:
        content: its tokenizer.json, valid by `check_byte_level`; changed in place.
        ids: the id of every token.
        start: the BOS id.
        ends: the EOS ids.
        name: name of the model, for error messages.
        label: name of its tokenizer, for error messages.

    Raises:
        AGI2Error: if AGI2 cannot use it, or a token cannot keep its id.
    """
    names = {id: token for token, id in ids.items()}
    make_special(content, [(id, names[id]) for id in ends])
    if not (len(ends) == 1 and ends[0] == start == default_eos_id(content)):
        _set_template(content, names[start], [names[id] for id in ends])
    tokenizer = _load(content, label)
    loaded = {**token_ids(tokenizer), **content["model"]["vocab"]}
    changed = [token for token, id in ids.items() if loaded.get(token) != id]
    if (tokenizer.start_of_text, tokenizer.text_end_tokens) != (start, tuple(ends)):
        changed.append(names[start])
    if changed:
        raise AGI2Error(
            f"{name}: its token {changed[0]!r} cannot keep its id: the ids of added tokens follow "
            "the vocabulary without gaps"
        )
    return tokenizer


def _load(content: dict[str, Any], label: str) -> Tokenizer:
    """Load a tokenizer from its content, through a file, so that all checks of files apply."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / FILE_NAME
        path.write_text(json.dumps(content), encoding="utf-8")
        try:
            return load_tokenizer(path)
        except AGI2Error as error:
            raise AGI2Error(str(error).replace(str(path), label)) from error


def token_ids(tokenizer: Tokenizer) -> dict[str, int]:
    """Return the ids of the added tokens, by token."""
    return {each["content"]: each["id"] for each in json.loads(tokenizer.to_json())["added_tokens"]}


def processors(content: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Return the post-processors of a tokenizer, a `Sequence` flattened."""
    processor = content.get("post_processor")
    if processor is None:
        return []
    return processor["processors"] if processor["type"] == "Sequence" else [processor]


def default_eos_id(content: Mapping[str, Any]) -> int | None:
    """Return the EOS id that `load_tokenizer` finds without a template, or `None`."""
    special = sorted((e["id"], e["content"]) for e in content["added_tokens"] if e.get("special"))
    return next((id for id, token in special if token in KNOWN_EOS_TOKENS), None)


def make_special(content: dict[str, Any], tokens: list[tuple[int, str]]) -> None:
    """Mark tokens as special, except single bytes and BPE merges: those also encode plain text."""
    added = {each["content"]: each for each in content["added_tokens"]}
    if any(token not in added for _, token in tokens):
        merges = content["model"]["merges"]
        joined = ("".join(pair) if isinstance(pair, list) else pair for pair in merges)
        merged = {piece.replace(" ", "") for piece in joined}
    for id, token in tokens:
        if token in added:
            added[token]["special"] = True
        elif len(token) > 1 and token not in merged:
            added[token] = {"id": id, "content": token, **PLAIN_ADDED, "special": True}
            content["added_tokens"].append(added[token])
    content["added_tokens"].sort(key=lambda each: each["id"])


def _set_template(content: dict[str, Any], start: str, ends: list[str]) -> None:
    """Store BOS and EOS as a post-processor template, from which `BPETokenizer` loads them."""

    def special(token: str) -> dict[str, Any]:
        return {"SpecialToken": {"id": token, "type_id": 0}}

    def text(name: str, type_id: int) -> dict[str, Any]:
        return {"Sequence": {"id": name, "type_id": type_id}}

    template = {
        "type": "TemplateProcessing",
        "single": [special(start), text("A", TEMPLATE_TYPE), *map(special, ends)],
        "pair": [text("A", 0), text("B", 1)],
        "special_tokens": {
            token: {"id": token, "ids": [0], "tokens": [token]} for token in (start, *ends)
        },
    }
    parts = [*processors(content), template]
    content["post_processor"] = {"type": "Sequence", "processors": parts}


def remove_template(content: dict[str, Any]) -> bool:
    """Remove the template of `_set_template`; return whether there was one."""
    processor = content.get("post_processor") or {}
    parts = processor.get("processors", [])
    text = {"Sequence": {"id": "A", "type_id": TEMPLATE_TYPE}}
    own_parts = [part for part in parts if text in part.get("single", [])]
    rest = [part for part in parts if part not in own_parts]
    if own_parts:
        content["post_processor"] = (
            {"type": "Sequence", "processors": rest} if len(rest) > 1 else next(iter(rest), None)
        )
    return bool(own_parts)
