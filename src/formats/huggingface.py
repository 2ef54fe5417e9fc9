"""Import and export of Hugging Face GPT-2 models, in the layout of `transformers`."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import torch

from ..arguments import checked
from ..config_keys import GenerationConfig
from ..console import show_progress, visible
from ..cuda_utils import check_memory
from ..errors import AGI2Error
from ..model import GPT2Model
from ..tokenizer import BPETokenizer, Tokenizer
from ..utils import atomic_path, convert_write_errors, write_text
from .huggingface_config import from_hf_config, to_hf_config
from .huggingface_folder import Folder, find_folder, read_hf_json
from .huggingface_generation import from_hf_generation, to_hf_generation
from .huggingface_tokenizer import load_hf_tokenizer, save_hf_tokenizer
from .huggingface_weights import (
    as_gpt2,
    from_hf_state_dict,
    has_own_head,
    read_hf_weights,
    to_hf_state_dict,
)
from .imported import save_imported
from .model_dir import (
    WEIGHTS,
    check_vocabulary,
    save_tensors,
)

# Export


def export_huggingface(
    model: GPT2Model, tokenizer: Tokenizer, folder: Path, options: GenerationConfig | None = None
) -> None:
    """Write a folder for `from_pretrained` of `transformers`, with the same logits and token ids.

    vLLM serves it, too: `docs/guides/serve_vllm.md`.

    Two differences of `AutoTokenizer` remain: it encodes the string of a special token in a text
    as that token, AGI2 as plain text; and it encodes a word of over 1,200 characters at once,
    which AGI2 splits (see `tokenization.pieces`).

    Args:
        model: pre-norm.
        tokenizer: byte-level BPE.
        folder: created if missing.
        options: how to sample by default; if `None`, the folder does not say.

    Raises:
        AGI2Error: if `transformers` does not support the architecture or the tokenizer, or the
            folder cannot be written.
    """
    if not isinstance(tokenizer, BPETokenizer):
        raise AGI2Error(
            'this format does not support a character tokenizer: train with tokenizer = "bpe"'
        )
    config, weights = as_gpt2(model)
    with convert_write_errors(folder):
        folder.mkdir(parents=True, exist_ok=True)
    ends = save_hf_tokenizer(tokenizer, folder, config.max_seq_len)
    model_notes = {
        "architectures": ["GPT2LMHeadModel"],
        "model_type": "gpt2",
        **to_hf_config(config),
        **ends,
    }
    write_text(folder / "config.json", json.dumps(model_notes, indent=2) + "\n")
    generation = {**ends, **(to_hf_generation(options) if options else {})}
    write_text(folder / "generation_config.json", json.dumps(generation, indent=2) + "\n")
    with atomic_path(folder / WEIGHTS) as temporary:
        save_tensors(to_hf_state_dict(weights), temporary, {"format": "pt"})


# Import


@checked
def import_huggingface(source: str | Path, folder: str | Path, *, verbose: bool = True) -> None:
    """Convert a Hugging Face GPT-2 model to a folder for `load_model`.

    Args:
        source: a local folder, or a model id on the hub such as `openai-community/gpt2`.
        folder: the folder to create.
        verbose: whether to show progress (see `console.visible`).

    Raises:
        AGI2Error: if it cannot be downloaded, is not a GPT-2, or its files contradict each other.
    """
    with visible(verbose), show_progress(f"importing {source}"):
        _import(Path(source).as_posix(), Path(folder))


def _import(source: str, folder: Path) -> None:
    path = find_folder(source)
    if not (path / "config.json").exists():
        raise AGI2Error(f"{source} is not a Hugging Face model: it has no config.json")
    hf_config = read_hf_json(path / "config.json", source)
    architecture = from_hf_config(hf_config, source)
    check_memory(architecture, f"{source}: this model")
    tokenizer = load_hf_tokenizer(path, source, hf_config)
    tensors = read_hf_weights(path, source)
    if has_own_head(tensors):  # even if config.json says that it is tied
        architecture = replace(architecture, tie_weights=False)
    with torch.device("meta"):
        model = GPT2Model(architecture)
    check_vocabulary(tokenizer, model, source)
    weights = from_hf_state_dict(tensors, model, source)
    model.load_state_dict(weights, assign=True)
    sampling, _ = from_hf_generation(Folder.read(path, source, hf_config).generation)
    save_imported(model, tokenizer, folder, sampling)
