"""A model folder in the layout of Hugging Face: finding it and reading its files."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..cuda_utils import first_line
from ..data.chat_template import JINJA, check_template
from ..errors import AGI2Error, safe_repr
from ..tokenizer import FILE_NAME
from ..utils import MAX_JSON_BYTES, read_json_object
from .model_dir import CONFIG, WEIGHTS


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
    def read(cls, path: Path, name: str, model: Mapping[str, Any]) -> Folder:
        """Load the files that exist; `model` is the content of config.json."""

        def optional(file: str) -> dict[str, Any]:
            # A broken link is refused, not taken for a missing file.
            return read_hf_json(path / file, name) if os.path.lexists(path / file) else {}

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
        files = {"tokenizer_config.json": self.tokenizer, "special_tokens_map.json": self.special}
        found: dict[str, str] = {}
        for file, content in files.items():
            token = content.get(kind)
            token = token.get("content") if isinstance(token, dict) else token
            if token is None:
                continue
            if not isinstance(token, str) or not token:
                raise AGI2Error(f"{self.name}: {file}: {kind} = {safe_repr(token)} is not a token")
            found[token] = file
        if len(found) > 1:
            values = " and ".join(f"{safe_repr(token)} in {file}" for token, file in found.items())
            raise AGI2Error(f"{self.name}: {kind} = {values} contradict each other")
        return next(iter(found), None)

    def ids(self, kind: str) -> list[int]:
        """Return the ids of a kind, such as `eos_token_id`; generation_config.json has priority."""
        for file, content in (
            ("generation_config.json", self.generation),
            ("config.json", self.model),
        ):
            found = content.get(kind)
            ids = found if isinstance(found, list) else [] if found is None else [found]
            if not all(type(id) is int and 0 <= id < 2**31 for id in ids):
                raise AGI2Error(
                    f"{self.name}: {file}: {kind} = {safe_repr(found)} is not a token id"
                )
            if found is not None:
                return list(dict.fromkeys(ids))
        return []

    def flag(self, key: str) -> bool | None:
        """Return a value of tokenizer_config.json that is true, false or not set."""
        found = self.tokenizer.get(key)
        if not (found is None or isinstance(found, bool)):
            raise AGI2Error(
                f"{self.name}: tokenizer_config.json: {key} = {safe_repr(found)} is neither true "
                "nor false"
            )
        return found


def read_hf_json(path: Path, name: str, max_bytes: int = MAX_JSON_BYTES) -> dict[str, Any]:
    """Load a JSON object from a file of at most `max_bytes` bytes; `name` is the model's."""
    try:
        return read_json_object(path, max_bytes)
    except AGI2Error as error:
        reason = str(error).removeprefix(str(path)).strip()
        raise AGI2Error(f"{name}: {path.name} is damaged: {reason}") from error


def has_other_template(files: Folder, folder: Path) -> bool:
    """Return whether the model has a chat template that is not AGI2's."""
    if os.path.lexists(folder / "chat_template.json"):
        return True
    own = files.tokenizer.get("chat_template")
    try:
        check_template(folder)
    except AGI2Error:
        return True
    return bool(own) and (not isinstance(own, str) or own.strip() != JINJA)


# File patterns to download from the hub. No pickle: pytorch_model.bin can run any code.
_FILES = (
    "config.json",
    "model*.safetensors",
    "model.safetensors.index.json",
    "generation_config.json",
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "chat_template.*",
    "vocab.json",
    "merges.txt",
)


def find_folder(source: str) -> Path:
    """Return a local folder as it is; download a model id from the hub and return its folder."""
    folder = Path(source)
    if folder.is_dir():
        if (folder / CONFIG).is_file():
            raise AGI2Error(f"{source} is a model of AGI2's already: use it as it is")
        return folder
    if folder.exists():
        raise AGI2Error(f"{source} is a file: name the folder that it is in")
    if not re.fullmatch(r"\w[\w.-]*(/\w[\w.-]*)?", source):
        raise AGI2Error(f"{source}: no such folder")
    from huggingface_hub import snapshot_download

    try:
        return Path(snapshot_download(source, allow_patterns=list(_FILES)))
    except Exception as error:  # any network or cache error
        raise AGI2Error(
            f"{source} is not a folder, and could not be fetched from the Hugging Face hub "
            f"({_reason(error)}): check the name and the network, or give a folder that holds "
            f"config.json, {WEIGHTS} and {FILE_NAME}"
        ) from error


def _reason(error: Exception) -> str:
    """Return the message of an error of the hub's library, without the names of its classes."""
    return re.sub(r"^(Got: )?(\w+: )?(\[Errno -?\d+\] )?", "", first_line(error)).rstrip(". ")
