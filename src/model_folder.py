"""A trained model, to and from a folder. Nothing is ever unpickled."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Generator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save_file

from .arguments import checked
from .config import FREE_ARCHITECTURE_KEYS, Config, GPT2Config
from .config_loader import CONFIG, load_config, save_config
from .cuda_utils import select_device
from .errors import AGI2Error
from .lora import merged
from .model import GPT2Model
from .run_folder import WEIGHTS, run_folder
from .tokenizer import FILE_NAME, Tokenizer, load_tokenizer
from .utils import atomic_path, plural, sha256_of, sharded_as, writing


def save_weights(
    tensors: Mapping[str, torch.Tensor], path: Path, tokenizer: Tokenizer | None = None
) -> None:
    """Write a model's `state_dict`, whole or not at all. Equal weights give equal files.

    The file notes the weights' hash, and the tokenizer's if given: `load_model` checks both.
    """
    notes = {"sha256": _hash_of(tensors)}
    if tokenizer is not None:
        notes["tokenizer"] = tokenizer.fingerprint
    with atomic_path(path) as beside:
        # Under one key: the library would write several in an order that changes.
        save_tensors(tensors, beside, {"agi2": json.dumps(notes)})


@checked
def save_model(
    model: GPT2Model, tokenizer: Tokenizer | None, config: Config, folder: str | Path
) -> None:
    """Write all that `load_model` needs: weights, tokenizer and configuration.

    Args:
        model: of any mode and device.
        tokenizer: the model's. Without one the folder is for `GPT2Model.from_pretrained` alone.
        config: whose keys are kept beside the architecture, which is the model's own.
        folder: made where there is none.

    Raises:
        AGI2Error: where it cannot be written, or would keep the tokenizer of another model.
    """
    folder = Path(folder)
    if tokenizer is None and os.path.lexists(folder / FILE_NAME):
        raise AGI2Error(f"{folder} has a tokenizer: pass the model's own, or name a new folder")
    weights = model.state_dict()  # refused, where it is, before anything is written
    with writing(folder):
        folder.mkdir(parents=True, exist_ok=True)
    describe_model(model.config, tokenizer, config, folder)
    save_weights(weights, folder / WEIGHTS, tokenizer)


def describe_model(
    architecture: GPT2Config, tokenizer: Tokenizer | None, config: Config, folder: Path
) -> None:
    """Write a model's configuration and tokenizer into its folder."""
    save_config(config.changed(**architecture.to_keys()), folder / CONFIG)
    if tokenizer is not None:
        with writing(folder):
            tokenizer.save(folder)


@dataclass(frozen=True)
class TrainedModel:
    """What a folder holds."""

    model: GPT2Model
    tokenizer: Tokenizer
    config: Config

    def generate(self, prompt: str | Sequence[int] = "", **changes: Any) -> str:
        """Continue a prompt as the configuration says; return both.

        `load_model("trained/moby_dick").generate("Call me", temperature=0.5, sampling_seed=1)` is
        what `agi2 generate` prints for that folder with those keys set.

        Args:
            prompt: text, or its token ids.
            **changes: keys of the configuration to use in place of the folder's.

        Raises:
            AGI2Error: where a key is wrong, or asks for quantized weights and the model has none.
        """
        from .generation import stream_as_configured

        text = prompt if isinstance(prompt, str) else self.tokenizer.decode(list(prompt))
        return text + "".join(stream_as_configured(self, prompt, changes))

    def stream(
        self, prompt: str | Sequence[int] = "", **changes: Any
    ) -> Generator[str, None, None]:
        """As `generate`, but yield the continuation alone, in pieces of whole characters."""
        from .generation import stream_as_configured

        return stream_as_configured(self, prompt, changes)


@checked
def load_model(folder: str | Path, device: torch.device | str = "cpu") -> TrainedModel:
    """Read a trained model, in evaluation mode.

    Args:
        folder: as training or `save_model` writes it.
        device: `cpu`, `cuda`, `auto`, ...

    Raises:
        AGI2Error: where a file is missing or broken, a weight is no number, or weights, tokenizer
            and configuration disagree.
    """
    folder = Path(folder)
    config = load_config(folder / CONFIG)
    tokenizer = load_tokenizer(folder)
    model = _load_weights_of(folder, config)
    check_vocabulary(tokenizer, model)
    expected = _notes(folder / WEIGHTS).get("tokenizer")
    if expected is not None and sha256_of(folder / FILE_NAME) != expected:
        raise AGI2Error(
            f"{folder / FILE_NAME} is another tokenizer than the one that {folder / WEIGHTS} was "
            "trained with: put that one back, or train again"
        )
    return TrainedModel(model.to(select_device(str(device))), tokenizer, config)


@checked
def load_architecture(folder: str | Path, device: torch.device | str = "cpu") -> GPT2Model:
    """Read a model alone, in evaluation mode, from a folder that may have no tokenizer.

    Raises:
        AGI2Error: where the folder has no model, or a file is broken.
    """
    folder = Path(folder)
    if not os.path.isfile(folder / CONFIG):
        foreign = os.path.isfile(folder / "config.json")
        hint = f"; make it one: agi2 import {folder} NEW_FOLDER" if foreign else ""
        raise AGI2Error(f"{folder}: no model there that save_pretrained or training wrote{hint}")
    if os.path.lexists(folder / FILE_NAME):
        return load_model(folder, device).model
    return _load_weights_of(folder, load_config(folder / CONFIG)).to(select_device(str(device)))


def _load_weights_of(folder: Path, config: Config) -> GPT2Model:
    """The model of a folder, in evaluation mode."""
    # Built without memory, then given the file's tensors: nothing is drawn or copied in vain.
    with torch.device("meta"):
        model = GPT2Model(config)
    load_weights(model, folder / WEIGHTS, assign=True, merge=True)
    check_finite(model.state_dict(), str(folder))
    return model.eval()


def load_trained(
    config: Config, device: torch.device | str = "cpu", file: str = "FILE.toml"
) -> TrainedModel:
    """Read the model that a configuration names and has trained.

    Args:
        config: with the run's `output_dir` and `model_name`.
        device: where the model goes.
        file: what the configuration was read from, for messages.

    Raises:
        AGI2Error: where it is not trained yet, or was trained with another architecture than the
            one written in this configuration.
    """
    beside = Path(file).parent
    # A run's own configuration is of the run in whose folder it stands, wherever that was moved.
    is_own = Path(file).name == CONFIG and os.path.isfile(beside / WEIGHTS)
    folder = beside if is_own else run_folder(config)
    if not os.path.isfile(folder / WEIGHTS):
        raise AGI2Error(f"{folder}: no trained model there; train it first: agi2 train {file}")
    trained = load_model(folder, device)
    wanted, has = config.architecture.to_keys(), trained.config.architecture.to_keys()
    for key in sorted(wanted.keys() & config.model_fields_set - FREE_ARCHITECTURE_KEYS):
        if wanted[key] != has[key]:
            raise AGI2Error(
                f"{folder} was trained with {key} = {has[key]!r}, the configuration says "
                f"{wanted[key]!r}: train again, or set it back"
            )
    return trained


def check_vocabulary(tokenizer: Tokenizer, model: GPT2Model) -> None:
    """Raise where the tokenizer has ids that the model does not.

    Raises:
        AGI2Error: with both sizes.
    """
    if tokenizer.vocab_size > model.config.vocab_size:
        raise AGI2Error(
            f"the tokenizer has {plural(tokenizer.vocab_size, 'token')}, the model only "
            f"{model.config.vocab_size}: they do not belong together"
        )


def check_finite(weights: Mapping[str, torch.Tensor], name: str) -> None:
    """Raise where a weight is no number.

    Raises:
        AGI2Error: which names `name`, where the weights are, and the weight.
    """
    for key, weight in weights.items():
        # The least and the greatest are NaN where any is: twenty times as fast as to ask each.
        if not bool(torch.stack(weight.aminmax()).isfinite().all()):
            count = int((~weight.isfinite()).sum())
            raise AGI2Error(
                f"{name}: {key} has {plural(count, 'value that is', 'values that are')} NaN or "
                "infinite: the model is broken, take an earlier checkpoint or another copy"
            )


def load_weights(
    model: GPT2Model, path: Path, *, assign: bool = False, merge: bool = False
) -> None:
    """Fill a model from a file.

    Args:
        model: of the same architecture.
        path: a safetensors file.
        assign: take the file's tensors instead of copying them.
        merge: add the matrices of LoRA, where the file has any, to the weights they belong to.

    Raises:
        AGI2Error: where the file is missing, broken, or of another shape or kind of numbers.
    """
    file = os.stat(path) if path.is_file() else None
    saved = load_tensors(path)
    tensors = {name: _in_float32(tensor, name, path) for name, tensor in saved.items()}
    tensors = merged(tensors) if merge else tensors
    expected = model.state_dict()
    for name in sorted(expected.keys() | tensors.keys()):
        ours = tuple(expected[name].shape) if name in expected else "nothing"
        theirs = tuple(tensors[name].shape) if name in tensors else "nothing"
        if ours != theirs:
            raise AGI2Error(
                f"{path} holds a model of another shape: {name} is {theirs}, not {ours}"
            )
    if _notes(path).get("sha256", "") not in ("", _hash_of(saved)):
        raise AGI2Error(f"{path} is damaged: its content does not match its hash")
    if not assign:
        tensors = {name: sharded_as(tensor, expected[name]) for name, tensor in tensors.items()}
    elif file is not None and tensors.keys() == saved.keys():
        tensors = {
            name: _in_float32(tensor, name, path)
            for name, tensor in _mapped_apart(path, file, tensors).items()
        }
    model.load_state_dict(tensors, assign=assign)


def _in_float32(tensor: torch.Tensor, name: str, path: Path) -> torch.Tensor:
    """A file's tensor in the numbers that a model computes with: itself, where it has them."""
    if not tensor.is_floating_point():
        kind = str(tensor.dtype).removeprefix("torch.")
        raise AGI2Error(f"{path}: {name} holds {kind}, not floating-point numbers")
    return tensor.to(torch.float32)


def _mapped_apart(
    path: Path, file: os.stat_result, tensors: dict[str, torch.Tensor]
) -> dict[str, torch.Tensor]:
    """The tensors of a file so that each leaves memory when it is let go of.

    As they are read at once, all of the file stays mapped as long as one of them is in use.
    """
    apart = {}
    try:
        for name, tensor in tensors.items():
            if tensor.dim() < 2:
                apart[name] = tensor.clone()
            else:
                with safe_open(path, "pt") as again:
                    apart[name] = again.get_tensor(name)
        is_same = os.path.samestat(os.stat(path), file)
    except (OSError, SafetensorError):
        is_same = False
    # Written anew in between, it may hold other weights than those that were checked.
    return apart if is_same else tensors


def _hash_of(tensors: Mapping[str, torch.Tensor]) -> str:
    """The SHA-256 of named tensors' bytes."""
    digest = hashlib.sha256()
    for name in sorted(tensors):
        digest.update(name.encode())
        data = tensors[name].detach().cpu().contiguous().flatten().view(torch.uint8)
        digest.update(data.numpy().data)
    return digest.hexdigest()


def _notes(path: Path) -> dict[str, str]:
    """What `save_weights` noted in a file."""
    try:
        with safe_open(path, "pt") as file:
            return dict(json.loads((file.metadata() or {}).get("agi2", "{}")))
    except (ValueError, TypeError) as error:
        raise AGI2Error(f"{path} is damaged: {error}") from error


def save_tensors(
    tensors: Mapping[str, torch.Tensor], path: Path, metadata: dict[str, str] | None = None
) -> None:
    """Write a safetensors file.

    Args:
        tensors: what it holds.
        path: the file.
        metadata: what it notes; one key at most, or equal tensors do not give equal files.

    Raises:
        OSError: where there is no right or no room.
    """
    path.touch()
    mode = path.stat().st_mode
    tensors = {name: tensor.contiguous() for name, tensor in tensors.items()}
    try:
        save_file(tensors, path, metadata)
    except SafetensorError as error:
        raise OSError(str(error).removeprefix("Error while serializing: ")) from error
    path.chmod(mode)  # the library lets no other user read it


def load_tensors(path: Path) -> dict[str, torch.Tensor]:
    """Read a safetensors file.

    Raises:
        AGI2Error: where it is missing or damaged.
    """
    try:
        return load_file(path)
    except FileNotFoundError as error:
        raise AGI2Error(f"{path}: no such file") from error
    except (SafetensorError, OSError) as error:
        raise AGI2Error(f"{path} is damaged: {error}") from error
