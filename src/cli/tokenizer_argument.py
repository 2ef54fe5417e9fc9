"""The tokenizer that an argument of a command names."""

from __future__ import annotations

import os

from huggingface_hub import try_to_load_from_cache

from ..tokenization.base import FILE_NAME, Tokenizer
from ..tokenizer import load_tokenizer, new_tokenizer
from .common import model_folder


def open_tokenizer(argument: str) -> Tokenizer:
    """Open a tokenizer: a file, a folder, a run, its TOML file, or gpt2.

    Raises:
        AGI2Error: if there is none.
    """
    if argument == "gpt2" and not os.path.lexists(argument):
        cached = cached_gpt2()
        return new_tokenizer("gpt2", 0)[0] if cached is None else cached
    if argument.endswith(".toml"):
        return load_tokenizer(model_folder(argument))
    return load_tokenizer(argument)


def cached_gpt2() -> Tokenizer | None:
    """Return GPT-2's tokenizer if the hub's client has downloaded it, without a connection."""
    for name in ("openai-community/gpt2", "gpt2"):
        if isinstance(path := try_to_load_from_cache(name, FILE_NAME), str):
            return load_tokenizer(path)
    return None
