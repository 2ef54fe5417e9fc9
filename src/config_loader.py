"""A TOML file and command-line overrides to a validated `Config`, and back."""

from __future__ import annotations

import difflib
import errno
import os
import re
import stat
import time
import tomllib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, NoReturn

import tomli_w
from pydantic import ValidationError
from pydantic_core import ErrorDetails

from .arguments import checked
from .config import FREE_ARCHITECTURE_KEYS, PRESETS, REQUIRED_KEYS, Config
from .errors import AGI2Error, masked, shown
from .utils import human_bytes, is_deep, open_file, write_text

Kind = Literal["training", "generation", "interactive"]

# The configuration in a run's folder.
CONFIG = "config.toml"

# In seconds: how long nothing may come from a pipe.
_SILENCE = 10.0
# In bytes: a configuration is written by hand, or lists sources.
_LARGEST_FILE = 2**20
# So many problems are told; the rest are counted.
_MOST_PROBLEMS = 20

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


@checked
def load_config(
    path: str | Path, kind: Kind | None = None, overrides: Sequence[str] = ()
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
    lines = _lines_of_keys(text)
    places = {key: f"{path}:{lines[key]}" if key in lines else str(path) for key in given}
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
        _refuse(problems)
    return Config.model_validate(dict(given)).adopting(adopted)


def _refuse(problems: list[str]) -> NoReturn:
    """Raise with a line for each problem, as far as anybody reads them."""
    more = len(problems) - _MOST_PROBLEMS
    if more > 0:
        problems = [*problems[:_MOST_PROBLEMS], f"and {more:,} more problem{'s' * (more > 1)}"]
    raise AGI2Error(*problems)


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
        f"{places.get(key, name)}: {key} = {shown(wanted[key])}, but the model of init_from has "
        f"{value!r}: leave {key} out"
        for key, value in fixed.items()
        if wanted.get(key) not in (None, "", value)
    ]
    if problems:
        _refuse(problems)
    dropout = {"dropout": theirs["dropout"]}
    return {**dropout, **given, **fixed, "vocab_size": theirs["vocab_size"]}


def save_config(config: Config, path: Path) -> None:
    """Write the whole effective configuration; keys that are not set are left out.

    A web address with a login or a query stands there as it is, since the run is resumed from it:
    no other user may read the file then.
    """
    content = {key: value for key, value in config.items() if value is not None}
    write_text(path, tomli_w.dumps(content), private=masked(content) != content)


def _read(path: Path) -> str:
    try:
        # A run writes a file; for one's own configuration a pipe will do, as of `<(echo ...)`.
        is_pipe = path.name != CONFIG and stat.S_ISFIFO(os.stat(path).st_mode)
        data = (_read_pipe if is_pipe else _read_file)(path)
    except FileNotFoundError as error:
        raise AGI2Error(f"{path}: no such file; resources/ holds examples to start from") from error
    except (OSError, ValueError) as error:  # the latter for a NUL in the name
        reason = getattr(error, "strerror", None) or error
        raise AGI2Error(f"{path}: cannot be read: {reason}") from error
    if len(data) > _LARGEST_FILE:
        raise AGI2Error(f"{path}: no configuration: it is larger than {human_bytes(_LARGEST_FILE)}")
    try:
        return data.decode("utf-8-sig").replace("\r\n", "\n")
    except UnicodeDecodeError as error:
        raise AGI2Error(f"{path}: not UTF-8 text") from error


def _read_file(path: Path) -> bytes:
    with open_file(path) as file:
        return file.read(_LARGEST_FILE + 1)


def _read_pipe(path: Path) -> bytes:
    """Read a pipe to its end, as long as something comes.

    Raises:
        OSError: if nothing comes, or no end.
    """
    content = b""
    with open(path, "rb", 0, opener=_open_at_once) as pipe:
        silent_since = time.monotonic()
        while len(content) <= _LARGEST_FILE:
            part = pipe.read(_LARGEST_FILE)  # None: no more yet
            if part:
                content += part
                silent_since = time.monotonic()
            elif part == b"" and content:
                break
            elif time.monotonic() - silent_since > _SILENCE:
                raise OSError(errno.ETIMEDOUT, f"it is a pipe, and nothing came for {_SILENCE:g} s")
            else:
                time.sleep(0.01)
    return content


def _open_at_once(path: str, flags: int) -> int:
    """Open a pipe without waiting for somebody who writes to it."""
    return os.open(path, flags | os.O_NONBLOCK)


def _parse(text: str, name: str) -> dict[str, Any]:
    try:
        return _parse_toml(text, name)
    except tomllib.TOMLDecodeError:
        # TOML has no null; a file that says `resume = null` means "not set".
        without_null = re.sub(
            r"^([ \t]*[\w-]+[ \t]*=[ \t]*)null(?=[ \t]*(#.*)?$)", r'\1""', text, flags=re.MULTILINE
        )
        try:
            return _parse_toml(without_null, name)
        except tomllib.TOMLDecodeError as error:
            raise AGI2Error(f"{name}: not TOML: {error}") from error


def _parse_toml(text: str, name: str) -> dict[str, Any]:
    """Parse TOML that somebody else may have written.

    Raises:
        TOMLDecodeError: where it is not TOML.
        AGI2Error: where it is, but is nested too deeply, or a number has too many digits.
    """
    try:
        found = tomllib.loads(text)
    except tomllib.TOMLDecodeError:
        raise
    except (RecursionError, ValueError) as error:
        is_deeply_nested = isinstance(error, RecursionError)
        reason = "it is nested too deeply" if is_deeply_nested else "a number has too many digits"
        raise AGI2Error(f"{name}: {reason}") from error
    if is_deep(found):
        raise AGI2Error(f"{name}: it is nested too deeply")
    return found


def _parse_override(override: str) -> tuple[str, Any]:
    key, equals, value = (part.strip() for part in override.partition("="))
    if not equals or not key:
        raise AGI2Error(f"--set {override}: write KEY=VALUE, for example --set epochs=3")
    if value == "null":
        return key, None
    try:
        found = _parse_toml(f"value = {value}", f"--set {key}")
    except tomllib.TOMLDecodeError:
        return key, value
    if found.keys() != {"value"}:
        return key, value
    field = Config.model_fields.get(key)
    takes_text = field is not None and field.annotation in (str, str | None, list[str])
    # A name may look like a number or a date.
    is_text = takes_text and not isinstance(found["value"], str | list | dict | bool)
    return key, value if is_text else found["value"]


# `key = ...`, `"key" = ...`, `key.part = ...` or `[key]`
_KEY = re.compile(r"^[ \t]*(?:\[+[ \t]*)?[\"']?([\w-]+)[\"']?[ \t]*[=.\]]")


def _lines_of_keys(text: str) -> dict[str, int]:
    """The line in which each key is first set."""
    lines: dict[str, int] = {}
    for number, line in enumerate(text.split("\n"), 1):
        if found := _KEY.match(line):
            lines.setdefault(found[1], number)
    return lines


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
        for (key, *indices), found in list(findings.items())[:_MOST_PROBLEMS]
    ]
    lines += [""] * (len(findings) - len(lines))  # which are only counted
    # The right ones may contradict each other beside that.
    wrong = {key for key, *_ in findings}
    rest = {key: value for key, value in given.items() if key not in wrong}
    return lines + [
        line for line in _find_problems(rest, places, name) if not wrong & set(line.split())
    ]


def _explain(key: str, indices: list[int], value: Any, found: list[ErrorDetails]) -> str:
    """What pydantic found about one value."""
    name = key if key.strip() and key.isprintable() else repr(key)
    if isinstance(value, dict) and key != "logit_bias":
        return f"keys stand at the top level: remove the header [{name}]"
    if found[0]["type"] == "extra_forbidden":
        return f"unknown key {name}{_suggestion(key)}"
    what = " or ".join(detail["msg"][0].lower() + detail["msg"][1:] for detail in found)
    return f"{key}{''.join(f'[{index}]' for index in indices)} = {shown(found[0]['input'])}: {what}"


def _suggestion(key: str) -> str:
    close = difflib.get_close_matches(key[:50].lower(), Config.model_fields, n=1)
    nearest = _SYNONYMS.get(key.lower()) or (close[0] if close else None)
    if nearest:
        return f"; did you mean {nearest}?"
    return "; resources/default.toml lists every key"
