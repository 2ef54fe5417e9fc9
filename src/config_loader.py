"""Load a validated `Config` from a TOML file and command-line overrides, and save it."""

from __future__ import annotations

import errno
import os
import re
import shlex
import stat
import time
import tomllib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import tomli_w

from .arguments import checked
from .command_line import command_line
from .config import FREE_ARCHITECTURE_KEYS, REQUIRED_KEYS, Config
from .config_checks import PRESETS
from .config_messages import NO_STARTING_MODEL, error_of
from .errors import AGI2Error, mask_secrets, safe_repr
from .foreign_models import GGUF_MAGIC, import_advice
from .utils import (
    describe_path,
    find_module_file,
    human_bytes,
    is_nested_deeper,
    open_file,
    write_text,
)

Kind = Literal["training", "generation", "interactive"]

# File name of the configuration in a run's folder, and in a checkpoint's.
CONFIG = "config.toml"
# In a run's folder: the checkpoints; in a checkpoint: training state other than tensors.
CHECKPOINTS = "checkpoints"
STATE = "state.json"

# Read timeout of a pipe, in seconds without data.
_READ_TIMEOUT = 10.0
# In bytes: far above any configuration, even one that lists many sources.
_MAX_FILE_BYTES = 2**20


@checked
def load_config(
    path: str | Path, kind: Kind | None = None, overrides: Sequence[str] = ()
) -> Config:
    """Load and validate a configuration.

    Args:
        path: the TOML file. `key = null` and `key = ""` mean "not set".
        kind: if given, also check that the keys required for this use are set; for training, also
            adopt the architecture and the tokenizer of the model of `init_from`, or those of the
            checkpoint if such a run is resumed: the model may be somewhere else by then.
        overrides: `KEY=VALUE` strings that take precedence over the file; VALUE is TOML or a bare
            string.

    Raises:
        AGI2Error: with a line per problem that names the file, the line and the key.
    """
    text = _read(Path(path))
    values = _parse(text, str(path))
    lines = _key_lines(text)
    locations = {key: f"{path}:{lines[key]}" if key in lines else str(path) for key in values}
    if isinstance(values.get("preprocess"), str):
        values["preprocess"] = _in_folder(values["preprocess"], Path(path).parent)
    for override in overrides:
        key, value = parse_override(override)
        values[key] = value
        locations[key] = f"--set {key}"
    return make_config(values, kind, str(path), locations)


def _in_folder(function: str, folder: Path) -> str:
    """Return `module:function` with the path of the module, if that is in a folder.

    The configuration in a run's folder thus names the same file.
    """
    module, colon, name = function.rpartition(":")
    path = find_module_file(module, folder) if colon else None
    return function if path is None else f"{path}:{name}"


def make_config(
    values: Mapping[str, Any],
    kind: Kind | None = None,
    name: str = "configuration",
    locations: Mapping[str, str] | None = None,
) -> Config:
    """Validate a mapping of keys and values.

    Args:
        values: keys and values.
        kind: as for `load_config`.
        name: name of the configuration in error messages.
        locations: location of each key (`file:line` or `--set key`) in error messages.

    Raises:
        AGI2Error: with a line per problem.
    """
    missing = [] if kind is None else [key for key in REQUIRED_KEYS[kind] if not values.get(key)]
    if values.get("conversations") or values.get("preferences"):  # instead of a text
        missing = [key for key in missing if key != "sources"]
    problems = [f"{name}: {key} is missing: {kind} needs it" for key in missing]
    if kind == "training" and values.get("preferences") and not values.get("init_from"):
        problems.append(f"{name}: {NO_STARTING_MODEL}")
    config, found = _validate(values, locations or {}, name)
    problems += found
    adopted: set[str] = set()
    if config is not None and not problems and kind == "training" and config.init_from:
        chosen = {key for key, value in values.items() if value not in (None, "")}
        resumed = _checkpoint_to_resume(config)
        values = _with_pretrained(values, name, locations or {}, resumed)
        adopted = values.keys() - chosen
        config, problems = _validate(values, locations or {}, name)
    if problems or config is None:
        raise error_of(problems)
    return config.adopting(adopted)


def _validate(
    values: Mapping[str, Any], locations: Mapping[str, str], name: str
) -> tuple[Config | None, list[str]]:
    """Return the configuration, or else a line for each problem."""
    try:
        return Config(**values), []
    except AGI2Error:
        return None, _find_problems(dict(values), locations, name)


def _checkpoint_to_resume(config: Config) -> Path | None:
    """Return the newest checkpoint that `resume` names, if it has a configuration of its own."""
    if config.resume is None:
        return None
    run = Path(config.output_dir) / config.model_name
    folder = run if config.resume == "auto" else Path(config.resume)
    if (folder / STATE).is_file():
        return folder if (folder / CONFIG).is_file() else None
    found = sorted(folder.glob(f"{CHECKPOINTS}/step-*/{CONFIG}"))
    return found[-1].parent if found else None


def _with_pretrained(
    values: Mapping[str, Any], name: str, locations: Mapping[str, str], resumed: Path | None
) -> dict[str, Any]:
    """Return the keys updated with the architecture and the tokenizer of the `init_from` model.

    Args:
        values: the keys.
        name: name of the configuration in error messages.
        locations: location of each key in error messages.
        resumed: the checkpoint of a run that is resumed, whose keys are used instead.

    Raises:
        AGI2Error: if there is no such model, or a given key contradicts it.
    """
    folder = values["init_from"] if resumed is None else str(resumed)
    if not _is_model(folder):
        advice = import_advice(folder)
        raise AGI2Error(
            f"{locations.get('init_from', name)}: init_from = {safe_repr(folder)}: no trained "
            "model there" + (f"; {advice}" if advice else "")
        )
    saved = load_config(Path(folder) / CONFIG)
    starts = [str(values["init_from"]), saved.init_from or ""]
    if (
        resumed is not None
        and len({Path(each).resolve() for each in starts if _is_model(each)}) > 1
    ):
        raise AGI2Error(
            f"{locations.get('init_from', name)}: init_from = {safe_repr(starts[0])}, but the "
            f"run to resume is from {starts[1]}: set it back, or start from scratch without resume"
        )
    pretrained = saved.architecture.to_keys()
    fixed = {k: v for k, v in pretrained.items() if k not in FREE_ARCHITECTURE_KEYS}
    fixed["tokenizer"] = folder if resumed is None else saved.tokenizer
    requested = {**PRESETS.get(str(values.get("preset")), {}), **values}
    if not requested.get("model_ff"):  # 0 means the default, 4 x model_embd
        requested["model_ff"] = None
    problems = [
        f"{locations.get(key, name)}: {key} = {safe_repr(requested[key])}, but "
        f"{'the model of init_from' if resumed is None else folder} has {value!r}: leave {key} out"
        for key, value in fixed.items()
        if requested.get(key) not in (None, "", value)
    ]
    if problems:
        raise error_of(problems)
    dropout = {} if values.get("preferences") else {"dropout": pretrained["dropout"]}
    return {**dropout, **values, **fixed, "vocab_size": pretrained["vocab_size"]}


def _is_model(folder: str) -> bool:
    return (Path(folder) / CONFIG).is_file()


def save_config(config: Config, path: Path) -> None:
    """Save the complete effective configuration as TOML, without the keys that are not set.

    URLs are saved with their credentials and queries, because resuming the run needs them. The
    file is then readable by its owner only.
    """
    content = {key: value for key, value in config.items() if value is not None}
    write_text(path, tomli_w.dumps(content), private=mask_secrets(content) != content)


def _read(path: Path) -> str:
    try:
        # Runs always save regular files; a user may pass a pipe, such as `<(echo ...)`.
        is_pipe = path.name != CONFIG and stat.S_ISFIFO(os.stat(path).st_mode)
        data = (_read_pipe if is_pipe else _read_file)(path)
    except FileNotFoundError as error:
        raise AGI2Error(f"{path}: {_advice_if_missing(path)}") from error
    except (OSError, ValueError) as error:  # ValueError: a NUL in the path
        reason = getattr(error, "strerror", None) or error
        raise AGI2Error(f"{path}: cannot be read: {reason}") from error
    if data.startswith(GGUF_MAGIC):
        raise AGI2Error(f"{path} is a model of another project: {import_advice(path)}")
    if len(data) > _MAX_FILE_BYTES:
        raise AGI2Error(
            f"{path}: no configuration: it is larger than {human_bytes(_MAX_FILE_BYTES)}"
        )
    try:
        return data.decode("utf-8-sig").replace("\r\n", "\n")
    except UnicodeDecodeError as error:
        raise AGI2Error(f"{path}: not UTF-8 text") from error


def _advice_if_missing(path: Path) -> str:
    if path.is_symlink():
        return f"it {describe_path(path)}"
    if path.suffix.lower() == ".toml":
        return "no such file; resources/ contains examples"
    runs = f"{command_line('list')} shows the runs"
    return f"no such file or folder; name a TOML file, or a run: {runs}"


def _read_file(path: Path) -> bytes:
    with open_file(path) as file:
        return file.read(_MAX_FILE_BYTES + 1)


def _read_pipe(path: Path) -> bytes:
    """Read a pipe until end of file.

    Raises:
        OSError: if no data arrives for `_READ_TIMEOUT` seconds.
    """
    content = b""
    with open(path, "rb", 0, opener=_open_nonblocking) as pipe:
        last_read = time.monotonic()
        while len(content) <= _MAX_FILE_BYTES:
            part = pipe.read(_MAX_FILE_BYTES)  # None: no data yet; b"": no writer
            if part:
                content += part
                last_read = time.monotonic()
            elif part == b"" and content:
                break
            elif time.monotonic() - last_read > _READ_TIMEOUT:
                raise OSError(
                    errno.ETIMEDOUT, f"it is a pipe, and no data arrived for {_READ_TIMEOUT:g} s"
                )
            else:
                time.sleep(0.01)
    return content


def _open_nonblocking(path: str, flags: int) -> int:
    """Open a pipe without blocking until a writer opens it (an `opener` for `open`)."""
    return os.open(path, flags | os.O_NONBLOCK)


def _parse(text: str, name: str) -> dict[str, Any]:
    try:
        return _parse_toml(text, name)
    except tomllib.TOMLDecodeError:
        # TOML has no null: replace `key = null` with an empty string, which means "not set".
        without_null = re.sub(
            r"^([ \t]*[\w-]+[ \t]*=[ \t]*)null(?=[ \t]*(#.*)?$)", r'\1""', text, flags=re.MULTILINE
        )
        try:
            return _parse_toml(without_null, name)
        except tomllib.TOMLDecodeError as error:
            if Path(name).suffix.lower() in ("", ".toml") or not Path(name).is_file():
                raise AGI2Error(f"{name}: not TOML: {error}") from error
            # The first thing that many try: a text in the place of its configuration.
            raise AGI2Error(
                f"{name}: not TOML. If it is a text to train on, this writes a configuration for "
                f"it: {command_line(f'plan {shlex.quote(name)}')}"
            ) from error


def _parse_toml(text: str, name: str) -> dict[str, Any]:
    """Parse untrusted TOML.

    Raises:
        TOMLDecodeError: if it is not TOML.
        AGI2Error: if it is nested too deeply, or a number has too many digits.
    """
    try:
        parsed = tomllib.loads(text)
    except tomllib.TOMLDecodeError:
        raise
    except (RecursionError, ValueError) as error:
        is_deeply_nested = isinstance(error, RecursionError)
        reason = "it is nested too deeply" if is_deeply_nested else "a number has too many digits"
        raise AGI2Error(f"{name}: {reason}") from error
    if is_nested_deeper(parsed):
        raise AGI2Error(f"{name}: it is nested too deeply")
    return parsed


def parse_override(override: str) -> tuple[str, Any]:
    """Return the key and the value of `KEY=VALUE`; VALUE is TOML or a bare string.

    Raises:
        AGI2Error: if it has another form.
    """
    key, equals, value = (part.strip() for part in override.partition("="))
    if not equals or not key:
        raise AGI2Error(f"--set {override}: write KEY=VALUE, for example --set epochs=3")
    if value == "null":
        return key, None
    try:
        parsed = _parse_toml(f"value = {value}", f"--set {key}")
    except tomllib.TOMLDecodeError:
        return key, value
    if parsed.keys() != {"value"}:
        return key, value
    field = Config.model_fields.get(key)
    takes_text = field is not None and field.annotation in (str, str | None, list[str])
    # `--set model_name=2024` is a name, although TOML parses it as a number (or a date).
    is_text = takes_text and not isinstance(parsed["value"], str | list | dict | bool)
    return key, value if is_text else parsed["value"]


# `key = ...`, `"key" = ...`, `key.part = ...` or `[key]`
_KEY = re.compile(r"^[ \t]*(?:\[+[ \t]*)?[\"']?([\w-]+)[\"']?[ \t]*[=.\]]")


def _key_lines(text: str) -> dict[str, int]:
    """Return the number of the line that first sets each key."""
    lines: dict[str, int] = {}
    for number, line in enumerate(text.split("\n"), 1):
        if match := _KEY.match(line):
            lines.setdefault(match[1], number)
    return lines


def _find_problems(values: dict[str, Any], locations: Mapping[str, str], name: str) -> list[str]:
    """Return a line per validation error, each with the location of its key."""
    problems = Config.problems(values)
    if not problems:
        return []
    if problems[0][0] is None:  # the values are valid, but some contradict each other
        return [
            f"{next((locations[w] for w in problem.split() if w in locations), name)}: {problem}"
            for _, problem in problems
        ]
    lines = []
    for key, problem in problems:
        assert key is not None
        if isinstance(values[key], dict) and key != "logit_bias":
            shown = key if key.strip() and key.isprintable() else repr(key)
            problem = f"keys must be at the top level: remove the header [{shown}]"
        lines.append(f"{locations.get(key, name)}: {problem}")
    # The valid keys may still contradict each other.
    wrong = {key for key, _ in problems}
    rest = {key: value for key, value in values.items() if key not in wrong}
    return lines + [
        line for line in _find_problems(rest, locations, name) if not wrong & set(line.split())
    ]
