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

from .config import FREE_ARCHITECTURE_KEYS, PRESETS, REQUIRED_KEYS, Config
from .errors import AGI2Error
from .utils import write_text

Kind = Literal["training", "generation", "interactive"]

# The configuration in a run's folder.
CONFIG = "config.toml"

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
        kind: also demand the keys that this use cannot do without; for training, also take over
            what the model of `init_from` sets.
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
    problems += _find_problems(dict(given), places or {}, name)
    adopted: set[str] = set()
    if not problems and kind == "training" and given.get("init_from"):
        chosen = {key for key, value in given.items() if value not in (None, "")}
        given = _with_trained(given, name, places or {})
        adopted = given.keys() - chosen
        problems = _find_problems(dict(given), places or {}, name)
    if problems:
        raise AGI2Error(*problems)
    return Config.model_validate(dict(given)).adopting(adopted)


def _with_trained(given: Mapping[str, Any], name: str, places: Mapping[str, str]) -> dict[str, Any]:
    """The keys with the architecture and the tokenizer of the model that `init_from` names.

    Raises:
        AGI2Error: where there is none, or a key says otherwise.
    """
    folder = given["init_from"]
    if not (Path(folder) / CONFIG).is_file():
        foreign = (Path(folder) / "config.json").is_file()
        raise AGI2Error(
            f"{places.get('init_from', name)}: init_from: no trained model in {folder}"
            + (f"; make it one: agi2 import {folder} NEW_FOLDER" if foreign else "")
        )
    theirs = load_config(Path(folder) / CONFIG).architecture.to_keys()
    fixed = {k: v for k, v in theirs.items() if k not in FREE_ARCHITECTURE_KEYS}
    fixed["tokenizer"] = folder
    wanted = {**PRESETS.get(str(given.get("preset")), {}), **given}
    if not wanted.get("model_ff"):  # 0: it follows
        wanted["model_ff"] = None
    problems = [
        f"{places.get(key, name)}: {key} = {wanted[key]!r}, but the model of init_from has "
        f"{value!r}: leave {key} out"
        for key, value in fixed.items()
        if wanted.get(key) not in (None, "", value)
    ]
    if problems:
        raise AGI2Error(*problems)
    dropout = {"dropout": theirs["dropout"]}
    return {**dropout, **given, **fixed, "vocab_size": theirs["vocab_size"]}


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
    # `key = ...`, `"key" = ...`, `key.part = ...` or `[key]`
    start = rf"^[ \t]*(\[+[ \t]*)?[\"']?{re.escape(key)}[\"']?[ \t]*[=.\]]"
    found = re.search(start, text, flags=re.MULTILINE)
    return text.count("\n", 0, found.start()) + 1 if found else 1


def _find_problems(given: dict[str, Any], places: Mapping[str, str], name: str) -> list[str]:
    """A line for each thing that is wrong, in the file's own names."""
    try:
        Config.model_validate(given)
        return []
    except ValidationError as error:
        details = error.errors()
    if not details[0]["loc"]:  # every value is right by itself, but not beside the others
        return [
            f"{next((places[word] for word in problem.split() if word in places), name)}: {problem}"
            for problem in str(details[0]["ctx"]["error"]).split("\n")
        ]
    # A value that may be of several types has a finding for each; its line joins them.
    findings: dict[tuple, list[ErrorDetails]] = {}
    for detail in details:
        key, *inside = detail["loc"]
        if key in given:  # others only follow from one that is
            where = (key, *(index for index in inside if isinstance(index, int)))
            findings.setdefault(where, []).append(detail)
    lines = [
        f"{places.get(key, name)}: {_explain(key, indices, given[key], found)}"
        for (key, *indices), found in findings.items()
    ]
    # The right ones may contradict each other beside that.
    wrong = {key for key, *_ in findings}
    rest = {key: value for key, value in given.items() if key not in wrong}
    return lines + [
        line for line in _find_problems(rest, places, name) if not wrong & set(line.split())
    ]


def _explain(key: str, indices: list[int], value: Any, found: list[ErrorDetails]) -> str:
    """What pydantic found about one value."""
    if isinstance(value, dict) and key != "logit_bias":
        return f"keys stand at the top level: remove the header [{key}]"
    if found[0]["type"] == "extra_forbidden":
        return f"unknown key {key}{_suggestion(key)}"
    what = " or ".join(detail["msg"][0].lower() + detail["msg"][1:] for detail in found)
    return f"{key}{''.join(f'[{index}]' for index in indices)} = {found[0]['input']!r}: {what}"


def _suggestion(key: str) -> str:
    close = difflib.get_close_matches(key.lower(), Config.model_fields, n=1)
    nearest = _SYNONYMS.get(key.lower()) or (close[0] if close else None)
    if nearest:
        return f"; did you mean {nearest}?"
    return "; resources/default.toml lists every key"
