"""Shell completion: keys and values of `--set`, runs and configurations, export formats.

Dependencies are imported inside the functions, because every command imports this module.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, MutableMapping
from pathlib import Path
from types import UnionType
from typing import Any, Literal, Union, get_args, get_origin

# Suggested values of keys of type `str`.
_VALUES = {
    "device": ("auto", "cpu", "cuda", "mps"),
    "tokenizer": ("bpe", "basic", "gpt2"),
    "sources": ("builtin:python-docs",),
    "val_sources": ("builtin:held-out-python-docs",),
    "conversations": ("builtin:conversations",),
    "val_conversations": ("builtin:held-out-conversations",),
    "resume": ("auto",),
}
# Environment variable with the key of `KEY=VALUE`, which bash splits at `=`; see `join_words`.
_KEY = "_AGI2_COMPLETE_KEY"


def complete_override(incomplete: str) -> list[str]:
    """Complete `KEY=VALUE`: the key, then its values if they can be enumerated."""
    from ..config import Config

    if key := os.environ.get(_KEY):
        return [value for value in _values(key) if value.startswith(incomplete)]
    key, equals, value = incomplete.partition("=")
    if not equals:
        return [f"{name}=" for name in Config.model_fields if name.startswith(key)]
    return [f"{key}={each}" for each in _values(key) if each.startswith(value)]


def _values(key: str) -> list[str]:
    """Return the values of a configuration key, or an empty list if they are not enumerable."""
    from ..config import Config

    field = Config.model_fields.get(key)
    return [] if field is None else list(_VALUES.get(key) or _literal_values(field.annotation))


def _literal_values(kind: Any) -> Iterator[str]:
    """Yield the values of a type annotation, as TOML literals."""
    if kind is bool:
        yield from ("true", "false")
    elif get_origin(kind) is Literal:
        yield from map(str, get_args(kind))
    elif get_origin(kind) in (Union, UnionType, list):
        for part in get_args(kind):
            yield from _literal_values(part)


def complete_model(incomplete: str) -> list[str]:
    """Complete a MODEL argument: the folder of a run or a model, or a TOML file."""
    from ..config_loader import CONFIG

    base, start = os.path.split(incomplete)
    completions = []
    for path in _entries(Path(base or ".")):
        name = os.path.join(base, path.name)
        if not path.name.startswith(start) or (path.name.startswith(".") and not start):
            continue
        if path.is_dir():
            completions.append(name if (path / CONFIG).is_file() else name + "/")
        elif path.suffix == ".toml":
            completions.append(name)
    if not base:
        runs = (path for path in _entries(Path("trained")) if (path / CONFIG).is_file())
        completions += [str(path) for path in runs if str(path).startswith(start)]
    return completions


def complete_path(incomplete: str) -> list[str]:
    """Complete a text to train on, or a MODEL argument."""
    base, start = os.path.split(incomplete)
    names = [path.name for path in _entries(Path(base or ".")) if path.is_file()]
    files = (os.path.join(base, name) for name in names if name.startswith(start))
    is_hidden_wanted = start.startswith(".")
    shown = [file for file in files if is_hidden_wanted or os.path.basename(file)[0] != "."]
    return sorted({*complete_model(incomplete), *shown})


def complete_recipe(incomplete: str) -> list[str]:
    """Complete the value of `agi2 init --recipe`."""
    from .recipes import list_recipes

    return [name for name in list_recipes() if name.startswith(incomplete)]


def _entries(folder: Path) -> list[Path]:
    try:
        return sorted(folder.iterdir())
    except OSError:
        return []


def complete_format(incomplete: str) -> list[str]:
    """Complete the value of `agi2 export --format`."""
    from ..formats.export import FORMATS

    return [name for name in FORMATS if name.startswith(incomplete)]


def complete_quantization(incomplete: str) -> list[str]:
    """Complete the value of `agi2 export --quantize`."""
    from ..formats.export import QUANTIZATIONS

    return [name for name in QUANTIZATIONS if name.startswith(incomplete)]


def join_words(environment: MutableMapping[str, str]) -> None:
    """Rejoin `KEY=VALUE`, which bash splits into three words for completion (COMP_WORDBREAKS).

    Bash replaces only VALUE with the completion, so VALUE stays the incomplete word; the key is
    passed to `complete_override` in an environment variable.

    Args:
        environment: environment to update in place: the words are in `COMP_WORDS`, the index of
            the incomplete one in `COMP_CWORD`.
    """
    words = environment.get("COMP_WORDS", "").split("\n")
    at = int(environment.get("COMP_CWORD", 0))
    before, incomplete = words[:at], words[at] if at < len(words) else ""
    joined: list[str] = []
    for word in before:
        if word == "=" and joined:
            joined[-1] += "="
        elif joined and joined[-1].endswith("="):
            joined[-1] += word
        else:
            joined.append(word)
    if incomplete == "=" and joined:
        joined[-1] += "="
        incomplete = ""
    if joined and joined[-1].endswith("="):
        typed = joined.pop()[:-1]
        option, equals, key = typed.partition("=")
        if typed.startswith("--"):  # --set=KEY= or --format=
            joined.append(option)
            typed = key if equals else ""
        if typed:
            environment[_KEY] = typed
    environment["COMP_WORDS"] = "\n".join([*joined, incomplete])
    environment["COMP_CWORD"] = str(len(joined))
