"""Import and export of a Hugging Face tokenizer: its vocabulary, BOS and EOS tokens.

The EOS tokens are those of `generation_config.json` (else `config.json`) and the tokenizer's own
`eos_token`. AGI2 stores BOS and EOS in `tokenizer.json` as a post-processor template, which
exports leave out: other libraries would add these tokens to every encoded text.
"""

from __future__ import annotations

import json
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..errors import AGI2Error, shown
from ..tokenization.tokenizer_json import check_byte_level, read_bounded
from ..tokenizer import FILE_NAME, KNOWN_EOS_TOKENS, TEMPLATE_TYPE, Tokenizer, load_tokenizer
from ..utils import log, read_json_object, write_text

# Default BOS and EOS id of `transformers.GPT2Config`, saved even if the vocabulary is smaller.
_DEFAULT_ID = 50256
# Keys of generation_config.json that do not change sampling, or that are imported.
_PLAIN_GENERATION = {
    *("bos_token_id", "eos_token_id", "pad_token_id", "transformers_version", "_from_model_config"),
    *("use_cache", "output_attentions", "output_hidden_states", "output_scores"),
    "return_dict_in_generate",
}
_PLAIN_ADDED = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False}


@dataclass(frozen=True)
class Folder:
    """The contents of the JSON files that describe a tokenizer; empty for a missing file."""

    name: str
    """Name of the model, for error messages."""
    model: Mapping[str, Any]
    """`config.json`."""
    generation: Mapping[str, Any]
    tokenizer: Mapping[str, Any]
    """`tokenizer_config.json`."""
    special: Mapping[str, Any]
    """`special_tokens_map.json`."""
    added: Mapping[str, Any]
    """`added_tokens.json`."""

    @classmethod
    def read(cls, place: Path, name: str, model: Mapping[str, Any]) -> Folder:
        """Load the files that exist; `model` is the content of config.json."""

        def optional(file: str) -> dict[str, Any]:
            return read_hf_json(place / file, name) if (place / file).exists() else {}

        return cls(
            name,
            model,
            optional("generation_config.json"),
            optional("tokenizer_config.json"),
            optional("special_tokens_map.json"),
            optional("added_tokens.json"),
        )

    def token(self, kind: str) -> str | None:
        """Return the special token of a kind, such as `eos_token`, or `None`."""
        found = self.tokenizer.get(kind)
        found = self.special.get(kind) if found is None else found
        found = found.get("content") if isinstance(found, dict) else found
        if found is not None and not (isinstance(found, str) and found):
            raise AGI2Error(f"{self.name}: {kind} = {shown(found)} is no token")
        return found

    def ids(self, kind: str) -> list[int]:
        """Return the ids of a kind, such as `eos_token_id`; generation_config.json has priority."""
        found = self.generation.get(kind)
        found = self.model.get(kind) if found is None else found
        ids = found if isinstance(found, list) else [] if found is None else [found]
        if not all(type(id) is int and 0 <= id < 2**31 for id in ids):
            raise AGI2Error(f"{self.name}: {kind} = {shown(found)} is no token's id")
        return ids


def read_hf_json(path: Path, name: str) -> dict[str, Any]:
    """Load a JSON object from a file; `name` is the model's, for error messages."""
    try:
        return read_json_object(path)
    except AGI2Error as error:
        reason = str(error).removeprefix(str(path)).strip()
        raise AGI2Error(f"{name}: {path.name} is damaged: {reason}") from error


def load_hf_tokenizer(place: Path, name: str, model: Mapping[str, Any]) -> Tokenizer:
    """Load the tokenizer of a Hugging Face folder, with its BOS and EOS tokens.

    Args:
        place: the folder.
        name: name of the model, for error messages.
        model: content of config.json.

    Raises:
        AGI2Error: if there is none, a special token is not in its vocabulary, or it adds special
            tokens to every encoded text, which AGI2 does not support.
    """
    folder = Folder.read(place, name, model)
    content = _content(place, name)
    vocabulary = content.get("model")
    if not isinstance(vocabulary, dict) or not isinstance(vocabulary.get("vocab"), dict):
        return load_tokenizer(place)  # raises, with the reason
    _take_over_space(folder, content)
    check_byte_level(content, f"{name}: {FILE_NAME}")  # validates what the code below indexes
    _check_around(folder, content)
    ids = _add_tokens(folder, content)
    start, ends = _marks(folder, content, ids)
    names = {id: token for token, id in ids.items()}
    _make_special(content, [(id, names[id]) for id in ends])
    if not (len(ends) == 1 and ends[0] == start == _default_end(content)):
        _set_template(content, names[start], [names[id] for id in ends])
    tokenizer = _load(content, name)
    wrong = [token for token, id in ids.items() if _id_of(content, tokenizer, token) != id]
    if wrong or (tokenizer.start_of_text, tokenizer.end_tokens) != (start, tuple(ends)):
        token = next(iter(wrong), names[start])
        raise AGI2Error(
            f"{name}: its token {token!r} cannot keep its id: the ids of added tokens follow the "
            "vocabulary without gaps"
        )
    _say_what_is_not_kept(folder, place)
    return tokenizer


def _content(place: Path, name: str) -> dict[str, Any]:
    """Load `tokenizer.json`, or build its content from GPT-2's vocab.json and merges.txt."""
    vocab, merges = place / "vocab.json", place / "merges.txt"
    if (place / FILE_NAME).is_file():
        return read_hf_json(place / FILE_NAME, name)
    if not (vocab.is_file() and merges.is_file()):
        load_tokenizer(place)  # raises, naming what is missing
    try:
        lines = read_bounded(merges).decode("utf-8").split("\n")
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
        "model": {"type": "BPE", "vocab": read_hf_json(vocab, name), "merges": pairs},
    }


def _check_around(folder: Folder, content: dict[str, Any]) -> None:
    """Raise if the tokenizer adds special tokens to every encoded text."""
    for key in ("add_bos_token", "add_eos_token"):
        if folder.tokenizer.get(key):
            raise AGI2Error(f"{folder.name}: {key} = true: AGI2 puts no token around a text")
    for part in _processors(content):
        kind = part["type"]
        plain = kind == "TemplateProcessing" and [list(each) for each in part["single"]]
        if kind != "ByteLevel" and plain != [["Sequence"]]:
            raise AGI2Error(
                f"{folder.name}: post_processor {shown(kind)} in {FILE_NAME} puts tokens around "
                "a text, which AGI2 does not"
            )


def _processors(content: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Return the post-processors of a tokenizer, a `Sequence` flattened."""
    processor = content.get("post_processor")
    if processor is None:
        return []
    return processor["processors"] if processor["type"] == "Sequence" else [processor]


def _take_over_space(folder: Folder, content: dict[str, Any]) -> None:
    """Override `add_prefix_space` of the pre-tokenizer with that of tokenizer_config.json."""
    leading = folder.tokenizer.get("add_prefix_space")
    cut = content.get("pre_tokenizer")
    if isinstance(leading, bool) and isinstance(cut, dict) and cut.get("type") == "ByteLevel":
        cut["add_prefix_space"] = leading


def _add_tokens(folder: Folder, content: dict[str, Any]) -> dict[str, int]:
    """Add the tokens of the other files to `added_tokens`; return the id of every token.

    As in `transformers`, a `bos_token` or `eos_token` without an id gets the next free one.
    """
    added = content.setdefault("added_tokens", [])
    ids: dict[str, int] = dict(content["model"]["vocab"])
    try:
        ids.update({each["content"]: each["id"] for each in added})
        more = {
            _text(each["content"]): (int(id), {**_PLAIN_ADDED, "special": False, **each})
            for id, each in dict(folder.tokenizer.get("added_tokens_decoder") or {}).items()
        }
    except (TypeError, KeyError, ValueError, AttributeError) as error:
        raise AGI2Error(f"{folder.name}: its added tokens are not listed as such") from error
    named = {folder.token(kind) for kind in ("bos_token", "eos_token", "pad_token", "unk_token")}
    for token, id in folder.added.items():
        more.setdefault(token, (id, {**_PLAIN_ADDED, "special": token in named}))
    if not all(type(id) is int for id in [*ids.values(), *(id for id, _ in more.values())]):
        raise AGI2Error(f"{folder.name}: a token's id is not an integer")
    for token, (id, flags) in sorted(more.items(), key=lambda item: item[1][0]):
        if ids.setdefault(token, id) != id:
            raise AGI2Error(
                f"{folder.name}: the token {token!r} has the id {id} in one file, {ids[token]} in "
                "another"
            )
        if not any(each["content"] == token for each in added):
            kept = {key: flags[key] for key in (*_PLAIN_ADDED, "special")}
            added.append({"id": id, "content": token, **kept})
    for name in filter(None, map(folder.token, ("bos_token", "eos_token"))):
        if name not in ids:
            ids[name] = 1 + max(ids.values(), default=-1)
            _make_special(content, [(ids[name], name)])
    return ids


def _text(value: Any) -> str:
    if not isinstance(value, str):
        raise TypeError
    return value


def _marks(
    folder: Folder, content: dict[str, Any], ids: Mapping[str, int]
) -> tuple[int, list[int]]:
    """Return the BOS id and the EOS ids, without duplicates."""
    eos = folder.token("eos_token")
    ends = [ids[eos]] if eos is not None else []
    ends = list(dict.fromkeys(ends + _known(folder, "eos_token_id", ids)))
    default = _default_end(content)
    if not ends and default is not None:
        ends = [default]
    if not ends:  # perhaps in the vocabulary, but not marked as special
        ends = [ids[token] for token in KNOWN_EOS_TOKENS if token in ids][:1]
    if not ends:
        raise AGI2Error(
            f"{folder.name} names no end-of-text token: set eos_token_id in its config.json"
        )
    bos = folder.token("bos_token")
    starts = _known(folder, "bos_token_id", ids) + ([ids[bos]] if bos is not None else [])
    return [*starts, ends[0]][0], ends


def _known(folder: Folder, kind: str, ids: Mapping[str, int]) -> list[int]:
    """Return the ids of a kind that are in the vocabulary; the default id may be missing."""
    found, known = folder.ids(kind), set(ids.values())
    for id in found:
        if id not in known and id != _DEFAULT_ID:
            raise AGI2Error(f"{folder.name}: {kind} {id} is the id of no token in its tokenizer")
    return [id for id in found if id in known]


def _default_end(content: Mapping[str, Any]) -> int | None:
    """Return the EOS id that `load_tokenizer` finds without a template, or `None`."""
    special = sorted((e["id"], e["content"]) for e in content["added_tokens"] if e.get("special"))
    return next((id for id, token in special if token in KNOWN_EOS_TOKENS), None)


def _make_special(content: dict[str, Any], tokens: list[tuple[int, str]]) -> None:
    """Mark tokens as special, except single bytes and BPE merges: those also encode plain text."""
    merges = content["model"].get("merges") or []
    for id, token in tokens:
        for each in content["added_tokens"]:
            if each["content"] == token:
                each["special"] = True
                break
        else:
            pieces = ("".join(pair) if isinstance(pair, list) else pair for pair in merges)
            if len(token) == 1 or any(piece.replace(" ", "") == token for piece in pieces):
                continue
            entry = {"id": id, "content": token, **_PLAIN_ADDED, "special": True}
            content["added_tokens"].append(entry)
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
    parts = [*_processors(content), template]
    content["post_processor"] = {"type": "Sequence", "processors": parts}


def _without_template(content: dict[str, Any]) -> bool:
    """Remove the template of `_set_template`; return whether there was one."""
    processor = content.get("post_processor") or {}
    parts = processor.get("processors", [])
    text = {"Sequence": {"id": "A", "type_id": TEMPLATE_TYPE}}
    ours = [part for part in parts if text in part.get("single", [])]
    rest = [part for part in parts if part not in ours]
    if ours:
        content["post_processor"] = (
            {"type": "Sequence", "processors": rest} if len(rest) > 1 else next(iter(rest), None)
        )
    return bool(ours)


def _load(content: dict[str, Any], name: str) -> Tokenizer:
    """Load a tokenizer from its content, through a file, so that all checks of files apply."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / FILE_NAME
        path.write_text(json.dumps(content), encoding="utf-8")
        try:
            return load_tokenizer(path)
        except AGI2Error as error:
            raise AGI2Error(str(error).replace(str(path), f"{name}: {FILE_NAME}")) from error


def _id_of(content: Mapping[str, Any], tokenizer: Tokenizer, token: str) -> int | None:
    """Return a token's id in the loaded tokenizer, which may have renumbered added tokens."""
    vocabulary: dict[str, int] = content["model"]["vocab"]
    if token in vocabulary:
        return vocabulary[token]
    return token_ids(tokenizer).get(token)


def token_ids(tokenizer: Tokenizer) -> dict[str, int]:
    """Return the ids of the added tokens, by token."""
    return {each["content"]: each["id"] for each in json.loads(tokenizer.to_json())["added_tokens"]}


def _say_what_is_not_kept(folder: Folder, place: Path) -> None:
    """Warn of settings that the import drops: chat template, padding, generation defaults."""
    left = []
    files = [place / f"chat_template.{kind}" for kind in ("jinja", "json")]
    if folder.tokenizer.get("chat_template") or any(file.exists() for file in files):
        left.append("its chat template (agi2 chat separates turns by an empty line)")
    if folder.token("pad_token") is not None:
        left.append("its pad_token (nothing is padded with it here)")
    left += [
        f"{key} = {shown(value)} of generation_config.json (set the keys of config.toml)"
        for key, value in folder.generation.items()
        if key not in _PLAIN_GENERATION and value is not None
    ]
    for what in left:
        log.warning("%s: not kept: %s", folder.name, what)


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
    if _without_template(content):
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
    ends = list(tokenizer.end_tokens)
    return {
        "bos_token_id": tokenizer.start_of_text,
        "eos_token_id": ends[0] if len(ends) == 1 else ends,
    }
