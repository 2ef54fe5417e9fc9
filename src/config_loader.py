"""A TOML file and command-line overrides to a validated `Config`, and back."""

from __future__ import annotations

import difflib
import re
import tomllib
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, Literal

import tomli_w
from pydantic import ValidationError
from pydantic_core import ErrorDetails

from .config import REQUIRED_KEYS, Config
from .errors import AGI2Error
from .utils import write_text

Kind = Literal["training", "generation", "interactive"]

# What other projects call these keys.
_SYNONYMS = {
    "lr": "learning_rate",
    "max_iters": "max_steps",
    "iterations": "max_steps",
    "block_size": "seq_len",
    "context_length": "model_positions",
    "n_positions": "model_positions",
    "n_layer": "model_layer",
    "n_layers": "model_layer",
    "num_layers": "model_layer",
    "n_head": "model_head",
    "n_heads": "model_head",
    "num_heads": "model_head",
    "n_embd": "model_embd",
    "d_model": "model_embd",
    "hidden_size": "model_embd",
    "d_ff": "model_ff",
    "grad_clip": "clip_grad_norm",
    "num_beams": "beam_size",
    "max_new_tokens": "max_length",
    "beta2": "adam_beta2",
    "source": "sources",
    "name": "model_name",
}


def load_config(
    path: str | Path, kind: Kind | None = None, overrides: Iterable[str] = ()
) -> Config:
    """Read and check a configuration.

    Args:
        path: the TOML file. `key = null` and `key = ""` mean "not set".
        kind: also demand the keys that this use cannot do without.
        overrides: `KEY=VALUE` texts that win over the file; VALUE is TOML, or bare text.

    Raises:
        AGI2Error: with a line for each problem, which names the file, the line and the key.
    """
    text = _read(Path(path))
    given = _parse(text, str(path))
    places = {key: f"{path}:{_line_of(key, text)}" for key in given}
    for override in overrides:
        key, value = _parse_override(override)
        given[key] = value
        places[key] = f"--set {key}"
    return make_config(given, kind, str(path), places)


def make_config(
    given: Mapping[str, Any],
    kind: Kind | None = None,
    name: str = "configuration",
    places: Mapping[str, str] | None = None,
) -> Config:
    """Check keys and values that are already read.

    Args:
        given: keys and values.
        kind: as for `load_config`.
        name: where they come from, for messages.
        places: where each key comes from, for messages.

    Raises:
        AGI2Error: with a line for each problem.
    """
    missing = [] if kind is None else [key for key in REQUIRED_KEYS[kind] if not given.get(key)]
    problems = [f"{name}: {key} is missing: {kind} needs it" for key in missing]
    try:
        config = Config.model_validate(dict(given))
    except ValidationError as error:
        for detail in error.errors():
            problems += _explain(detail, places or {}, given, name)
    if problems:
        raise AGI2Error("\n".join(problems))
    return config


def save_config(config: Config, path: Path) -> None:
    """Write the whole effective configuration; keys that are not set are left out."""
    content = {key: value for key, value in config.items() if value is not None}
    write_text(path, tomli_w.dumps(content))


def _read(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8-sig")
    except FileNotFoundError as error:
        raise AGI2Error(f"{path}: no such file; resources/ holds examples to start from") from error
    except UnicodeDecodeError as error:
        raise AGI2Error(f"{path}: not UTF-8 text") from error
    except OSError as error:
        raise AGI2Error(f"{path}: cannot be read: {error.strerror}") from error


def _parse(text: str, name: str) -> dict[str, Any]:
    try:
        return tomllib.loads(text)
    except tomllib.TOMLDecodeError:
        # TOML has no null; a file that says `resume = null` means "not set".
        without_null = re.sub(
            r"^([ \t]*[\w-]+[ \t]*=[ \t]*)null(?=[ \t]*(#.*)?$)", r'\1""', text, flags=re.MULTILINE
        )
        try:
            return tomllib.loads(without_null)
        except tomllib.TOMLDecodeError as error:
            raise AGI2Error(f"{name}: not TOML: {error}") from error


def _parse_override(override: str) -> tuple[str, Any]:
    key, equals, value = (part.strip() for part in override.partition("="))
    if not equals or not key:
        raise AGI2Error(f"--set {override}: write KEY=VALUE, for example --set epochs=3")
    if value == "null":
        return key, None
    try:
        return key, tomllib.loads(f"value = {value}")["value"]
    except tomllib.TOMLDecodeError:
        return key, value


def _line_of(key: str, text: str) -> int:
    match = re.search(rf"^[ \t]*[\"']?{re.escape(key)}[\"']?[ \t]*=", text, flags=re.MULTILINE)
    header = re.search(rf"^[ \t]*\[+[ \t]*{re.escape(key)}", text, flags=re.MULTILINE)
    found = match or header
    return text.count("\n", 0, found.start()) + 1 if found else 1


def _explain(
    detail: ErrorDetails, places: Mapping[str, str], given: Mapping[str, Any], name: str
) -> list[str]:
    """One of pydantic's findings as lines in the file's own names."""
    if not detail["loc"]:  # keys that contradict each other
        return [f"{name}: {problem}" for problem in str(detail["ctx"]["error"]).split("; ")]
    key = str(detail["loc"][0])
    place = places.get(key, name)
    if detail["type"] == "extra_forbidden":
        if isinstance(given[key], dict):
            return [f"{place}: keys stand at the top level: remove the header [{key}]"]
        return [f"{place}: unknown key {key}{_suggestion(key)}"]
    what = detail["msg"][0].lower() + detail["msg"][1:]
    return [f"{place}: {key} = {detail['input']!r}: {what}"]


def _suggestion(key: str) -> str:
    close = difflib.get_close_matches(key.lower(), Config.model_fields, n=1)
    nearest = _SYNONYMS.get(key.lower()) or (close[0] if close else None)
    if nearest:
        return f"; did you mean {nearest}?"
    return "; resources/default.toml lists every key"
