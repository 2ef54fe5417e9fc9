"""Save and load a trained model: weights, tokenizer, configuration. Never loads a pickle."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Generator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from ..arguments import checked
from ..config import FREE_ARCHITECTURE_KEYS, Config, GPT2Config
from ..config_loader import CONFIG, load_config, save_config
from ..console import show_progress, visible
from ..cuda_utils import check_memory, select_device
from ..data.chat_template import check_template, save_template
from ..errors import AGI2Error
from ..foreign_models import import_advice
from ..model import GPT2Model
from ..nn.lora import lora_shapes, merged
from ..tokenizer import FILE_NAME, Tokenizer, load_tokenizer
from ..utils import atomic_path, convert_write_errors, parse_json, plural, sha256_of, shard_like
from .run_dir import WEIGHTS, check_unsharded, check_weights, resolve_folder, run_folder
from .weights import SafetensorsFile, load_tensors, save_tensors

__all__ = ["load_tensors", "run_folder", "save_tensors"]  # re-exported


def save_weights(
    tensors: Mapping[str, torch.Tensor],
    path: Path,
    tokenizer: Tokenizer | None = None,
    architecture: GPT2Config | None = None,
) -> None:
    """Save a `state_dict` as safetensors, atomically; equal models give identical files.

    The metadata holds a SHA-256 of the weights, and if given the tokenizer's fingerprint and the
    architecture, which `load_model` verifies.

    Raises:
        AGI2Error: if the file cannot be written.
    """
    notes = {"sha256": _hash_tensors(tensors)}
    if architecture is not None:
        notes["architecture"] = json.dumps(_fixed_keys(architecture), sort_keys=True)
    if tokenizer is not None:
        notes["tokenizer"] = tokenizer.fingerprint
    with atomic_path(path) as temporary:
        # One metadata key: safetensors writes several in random order, so files would differ.
        save_tensors(tensors, temporary, {"agi2": json.dumps(notes)})


@checked
def save_model(
    model: GPT2Model,
    tokenizer: Tokenizer | None,
    config: Config,
    folder: str | Path,
    *,
    verbose: bool = True,
) -> None:
    """Save weights, tokenizer and configuration to a folder for `load_model`.

    Args:
        model: in any mode, on any device.
        tokenizer: if `None`, only `GPT2Model.from_pretrained` can load the folder.
        config: saved with its architecture keys replaced by those of the model.
        folder: created if missing.
        verbose: whether to show progress (see `console.visible`).

    Raises:
        AGI2Error: if the folder cannot be written, or has another model's tokenizer.
    """
    folder = Path(folder)
    if tokenizer is None and os.path.lexists(folder / FILE_NAME):
        raise AGI2Error(f"{folder} has a tokenizer: pass the model's own, or name a new folder")
    weights = model.state_dict()  # raises for a prepared model before any file is written
    with visible(verbose), show_progress(f"saving {folder}"):
        with convert_write_errors(folder):
            folder.mkdir(parents=True, exist_ok=True)
        save_config_and_tokenizer(model.config, tokenizer, config, folder)
        save_weights(weights, folder / WEIGHTS, tokenizer, model.config)


def save_config_and_tokenizer(
    architecture: GPT2Config, tokenizer: Tokenizer | None, config: Config, folder: Path
) -> None:
    """Save the configuration and the tokenizer of a model, without its weights."""
    save_config(config.changed(**architecture.to_keys()), folder / CONFIG)
    if tokenizer is not None:
        with convert_write_errors(folder):
            tokenizer.save(folder)
        save_template(tokenizer, folder)


@dataclass(frozen=True)
class TrainedModel:
    """A loaded model with its tokenizer and configuration."""

    model: GPT2Model
    tokenizer: Tokenizer
    config: Config

    def generate(self, prompt: str | Sequence[int] = "", **changes: Any) -> str:
        """Generate a continuation of a prompt; return prompt and continuation.

        `load_model("trained/moby_dick").generate("Call me", temperature=0.5, sampling_seed=1)`
        returns what `agi2 generate` prints for this folder and these keys.

        Args:
            prompt: text, or token ids.
            **changes: configuration keys that override the folder's.

        Raises:
            AGI2Error: if a key is invalid, or asks for quantized weights that the model does not
                have.
        """
        from ..generation import stream_as_configured

        text = prompt if isinstance(prompt, str) else self.tokenizer.decode(list(prompt))
        return text + "".join(stream_as_configured(self, prompt, changes))

    def stream(
        self, prompt: str | Sequence[int] = "", **changes: Any
    ) -> Generator[str, None, None]:
        """Generate as `generate`, but stream the continuation, as pieces of complete characters."""
        from ..generation import stream_as_configured

        return stream_as_configured(self, prompt, changes)


@checked
def load_model(
    folder: str | Path, device: torch.device | str = "cpu", *, verbose: bool = True
) -> TrainedModel:
    """Load a trained model, in evaluation mode.

    Args:
        folder: written by training or `save_model`.
        device: `cpu`, `cuda`, `auto`, ...
        verbose: whether to show progress (see `console.visible`).

    Raises:
        AGI2Error: if a file is missing or corrupt, a weight is NaN or infinite, or weights,
            tokenizer and configuration do not match.
    """
    with visible(verbose), show_progress(f"loading {folder}"):
        return _load_model(Path(folder), device)


def _load_model(folder: Path, device: torch.device | str) -> TrainedModel:
    check_unsharded(folder)
    if not os.path.isfile(folder / CONFIG) and (advice := import_advice(folder)):
        raise AGI2Error(f"{folder} is a model of another project: {advice}")
    config = load_config(folder / CONFIG)
    tokenizer = load_tokenizer(folder)
    check_template(folder)
    with SafetensorsFile(folder / WEIGHTS) as file:
        model = _read_model(file, config)
        expected = _metadata(file).get("tokenizer")
    check_vocabulary(tokenizer, model, folder)
    if expected is not None and sha256_of(folder / FILE_NAME) != expected:
        raise AGI2Error(
            f"{folder / FILE_NAME} is another tokenizer than the one that {folder / WEIGHTS} was "
            "trained with: put that one back, or train again"
        )
    return TrainedModel(model.to(select_device(str(device))), tokenizer, config)


@checked
def load_architecture(
    folder: str | Path, device: torch.device | str = "cpu", *, verbose: bool = True
) -> GPT2Model:
    """Load a model as `load_model`, but from a folder that may have no tokenizer.

    Raises:
        AGI2Error: if the folder has no model, or a file is corrupt.
    """
    folder = Path(folder)
    check_unsharded(folder)
    if not os.path.isfile(folder / CONFIG):
        advice = import_advice(folder)
        end = f"; {advice}" if advice else ""
        raise AGI2Error(f"{folder}: no model there that save_pretrained or training wrote{end}")
    if os.path.lexists(folder / FILE_NAME):
        return load_model(folder, device, verbose=verbose).model
    with (
        visible(verbose),
        show_progress(f"loading {folder}"),
        SafetensorsFile(folder / WEIGHTS) as file,
    ):
        model = _read_model(file, load_config(folder / CONFIG))
    return model.to(select_device(str(device)))


def _read_model(file: SafetensorsFile, config: Config) -> GPT2Model:
    """Build the model and load its weights from an open file, in evaluation mode."""
    _check_layers(file, config)
    check_memory(config.architecture, f"{file.path}: this model")
    # On the meta device, so that weights are neither initialized nor copied: see `assign`.
    with torch.device("meta"):
        model = GPT2Model(config)
    _load_into(model, file, assign=True, merge=True)
    _check_architecture(file, config)
    check_finite(model.state_dict(), str(file.path.parent))
    return model.eval()


def _check_layers(file: SafetensorsFile, config: Config) -> None:
    """Check the number of layers, before a wrong configuration builds thousands of modules.

    Raises:
        AGI2Error: if the configuration and the weights have different numbers of layers.
    """
    layers = {name.split(".")[1] for name in file.entries if name.startswith("blocks.")}
    if len(layers) != config.model_layer:
        raise AGI2Error(
            f"{file.path} contains a model of another shape: it has {len(layers)} layers, "
            f"{CONFIG} says model_layer = {config.model_layer}"
        )


def _fixed_keys(architecture: GPT2Config) -> dict[str, Any]:
    keys = architecture.to_keys()
    return {key: keys[key] for key in sorted(keys.keys() - FREE_ARCHITECTURE_KEYS)}


def _check_architecture(file: SafetensorsFile, config: Config) -> None:
    """Check the architecture against the one in the file's metadata.

    Shapes are not enough: the number of heads, for one, changes the logits but no shape.

    Raises:
        AGI2Error: if a key differs.
    """
    saved = parse_json(
        _metadata(file).get("architecture", "{}"), f"{file.path} is damaged: its architecture"
    )
    keys = _fixed_keys(config.architecture)
    for key, was in saved.items() if isinstance(saved, dict) else ():
        if key in keys and keys[key] != was:
            raise AGI2Error(
                f"{file.path} was trained with {key} = {was!r}, but {CONFIG} beside it says "
                f"{keys[key]!r}: set it back"
            )


def load_trained(
    config: Config, device: torch.device | str = "cpu", file: str | Path = "FILE.toml"
) -> TrainedModel:
    """Load the model of a folder, or of the run that a configuration names.

    Args:
        config: names the run with `output_dir` and `model_name`.
        device: as in `load_model`.
        file: the folder or TOML file from which `config` was loaded. See `resolve_folder`.

    Raises:
        AGI2Error: if the model is not trained yet, or its name or architecture is not that of
            `config`.
    """
    folder = resolve_folder(config, file)
    is_named = folder in (Path(file), Path(file).parent)
    check_weights(folder, file)
    trained = load_model(folder, device)
    for key in ("model_name", "output_dir") if is_named else ():
        if config[key] != trained.config[key]:
            raise AGI2Error(
                f"{key} = {config[key]!r}, but {folder} is the model that was named: leave {key} "
                "out, or name a configuration that is in no run's folder"
            )
    expected, actual = config.architecture.to_keys(), trained.config.architecture.to_keys()
    for key in sorted(expected.keys() & config.model_fields_set - FREE_ARCHITECTURE_KEYS):
        if expected[key] != actual[key]:
            raise AGI2Error(
                f"{folder} was trained with {key} = {actual[key]!r}, the configuration says "
                f"{expected[key]!r}: train again, or set it back"
            )
    return trained


def check_vocabulary(tokenizer: Tokenizer, model: GPT2Model, name: object = "") -> None:
    """Check that every token id is within the model's vocabulary.

    Args:
        tokenizer: the tokenizer.
        model: the model.
        name: folder or name of the model, for the error message.

    Raises:
        AGI2Error: if the tokenizer has more tokens than the model.
    """
    if tokenizer.vocab_size > model.config.vocab_size:
        raise AGI2Error(
            f"{name}{': ' if name else ''}"
            f"the tokenizer has {plural(tokenizer.vocab_size, 'token')}, the model only "
            f"{model.config.vocab_size}: they do not belong together"
        )


def check_finite(weights: Mapping[str, torch.Tensor], name: str) -> None:
    """Check that all weights are finite.

    Args:
        weights: a `state_dict`.
        name: name of the model, for error messages.

    Raises:
        AGI2Error: if a weight is NaN or infinite.
    """
    for key, weight in weights.items():
        # aminmax propagates NaN, and is 20 times as fast as isfinite on all elements.
        if not bool(torch.stack(weight.aminmax()).isfinite().all()):
            count = int((~weight.isfinite()).sum())
            raise AGI2Error(
                f"{name}: {key} has {plural(count, 'value that is', 'values that are')} NaN or "
                "infinite: the model is broken, take an earlier checkpoint or another copy"
            )


def load_weights(
    model: GPT2Model, path: Path, *, assign: bool = False, merge: bool = False
) -> None:
    """Load a model's weights from a safetensors file.

    Args:
        model: of the same architecture.
        path: the file.
        assign: replace the parameters with the file's tensors instead of copying into them.
        merge: merge LoRA adapters, if the file has any, into their base weights.

    Raises:
        AGI2Error: if the file is missing or corrupt, or a tensor has another shape or is not
            floating point.
    """
    with SafetensorsFile(path) as file:
        _load_into(model, file, assign=assign, merge=merge)


def _load_into(model: GPT2Model, file: SafetensorsFile, *, assign: bool, merge: bool) -> None:
    """Load weights from an open file; check all shapes before any tensor is read."""
    expected = model.state_dict()
    _check_shapes(file, {name: tuple(weight.shape) for name, weight in expected.items()}, merge)
    saved = file.tensors()
    if _metadata(file).get("sha256", "") not in ("", _hash_tensors(saved)):
        raise AGI2Error(f"{file.path} is damaged: its content does not match its hash")
    tensors = merged(saved) if merge else saved
    if assign:
        # Parameters are fp32, whatever the type in the file.
        tensors = {name: tensor.float() for name, tensor in tensors.items()}
    else:  # under FSDP each rank keeps its shard of the full tensor
        tensors = {name: shard_like(tensor, expected[name]) for name, tensor in tensors.items()}
    model.load_state_dict(tensors, assign=assign)


def _check_shapes(
    file: SafetensorsFile, expected: Mapping[str, tuple[int, ...]], merge: bool
) -> None:
    """Check names, shapes and types of a file's tensors; `merge` allows LoRA adapters."""
    expected = dict(expected)
    if merge:
        expected.update(lora_shapes({name: e.shape for name, e in file.entries.items()}, expected))
    for name in sorted(expected.keys() | file.entries.keys()):
        expected_shape = expected.get(name, "nothing")
        found_shape = file.entries[name].shape if name in file.entries else "nothing"
        if expected_shape != found_shape:
            raise AGI2Error(
                f"{file.path} contains a model of another shape: {name} is {found_shape}, not "
                f"{expected_shape}"
            )
        if file.entries[name].dtype not in _WEIGHT_DTYPES:
            kind = str(file.entries[name].dtype).removeprefix("torch.")
            raise AGI2Error(f"{file.path}: {name} holds {kind}, not floating-point numbers")


_WEIGHT_DTYPES = (torch.float32, torch.float16, torch.bfloat16, torch.float64)


def _hash_tensors(tensors: Mapping[str, torch.Tensor]) -> str:
    """Return the SHA-256 of the names and bytes of tensors."""
    digest = hashlib.sha256()
    for name in sorted(tensors):
        digest.update(name.encode())
        data = tensors[name].detach().cpu().contiguous().flatten().view(torch.uint8)
        digest.update(data.numpy().data)
    return digest.hexdigest()


def _metadata(file: SafetensorsFile) -> dict[str, str]:
    """Return the metadata that `save_weights` stored in a file."""
    notes = parse_json(file.metadata.get("agi2", "{}"), f"{file.path} is damaged: its metadata")
    if not isinstance(notes, dict) or not all(isinstance(v, str) for v in notes.values()):
        raise AGI2Error(f"{file.path} is damaged: its metadata is not made of strings")
    return notes
