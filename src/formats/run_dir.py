"""Layout of a run's folder, and resolution of command-line arguments to folders.

Does not import PyTorch, so that commands that only list runs start fast.
"""

from __future__ import annotations

import os
import re
import shlex
import stat
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import tomli_w

from ..command_line import command_line
from ..config_loader import CHECKPOINTS as CHECKPOINTS
from ..config_loader import CONFIG
from ..config_loader import STATE as STATE
from ..errors import AGI2Error
from ..foreign_models import import_advice
from ..utils import describe_path, read_json_object

# Tokenizers that are named rather than loaded from a file.
TOKENIZER_KINDS = ("bpe", "basic", "gpt2")
WEIGHTS = "model.safetensors"
TOKENIZER = "tokenizer.json"
METRICS = "metrics.jsonl"
# In a checkpoint: tensors of a sharded checkpoint (FSDP).
SHARDS = "shards"

# Keys of `state.json` that earlier versions wrote under another name.
_RENAMED_STATE_KEYS = {"evaluations_without_gain": "validations_without_improvement"}


def run_folder(config: Mapping[str, Any]) -> Path:
    """Return the folder of the run that a configuration names."""
    return Path(config["output_dir"]) / config["model_name"]


def checkpoint_folder(folder: Path, step: int) -> Path:
    """Return the folder of the checkpoint at a step."""
    return folder / CHECKPOINTS / f"step-{step:08d}"


def list_checkpoints(folder: Path) -> list[Path]:
    """Return the checkpoint folders of a run, newest last; a replaced one ends in `.old`."""
    paths = (folder / CHECKPOINTS).glob("step-*")
    complete = [path for path in paths if re.fullmatch(r"step-\d+(\.old)?", path.name)]
    return sorted(complete, key=lambda path: (step_of(path), not path.name.endswith(".old")))


def step_of(checkpoint: Path) -> int:
    """Return the optimizer step of a checkpoint folder, from its name."""
    return int(checkpoint.name.removeprefix("step-").removesuffix(".old"))


def read_state(checkpoint: Path) -> dict[str, Any]:
    """Read the training state of a checkpoint folder, also as earlier versions wrote it.

    Raises:
        AGI2Error: if it is not a JSON object.
        OSError: if it cannot be read.
    """
    state = read_json_object(checkpoint / STATE)
    return {_RENAMED_STATE_KEYS.get(key, key): value for key, value in state.items()}


def config_file(argument: str) -> str:
    """Resolve an argument of a command to a configuration file.

    Args:
        argument: a TOML file, or the folder of a run or a model, which contains one.

    Returns:
        The path of the TOML file.

    Raises:
        AGI2Error: if it is a folder of another kind, or another file of a model.
    """
    if not argument:
        raise AGI2Error("the name of the model is empty: name a run's folder or a TOML file")
    path = Path(argument)
    if path.is_dir():
        if not (path / CONFIG).is_file():
            raise AGI2Error(_describe_folder(path))
        return str(path / CONFIG)
    if path.is_file() and path.name in (WEIGHTS, TOKENIZER, METRICS):
        raise AGI2Error(f"{argument} is part of a model: name its folder, {path.parent}")
    return argument


def name_of(file: str | Path) -> str:
    """Return the name of the run that a configuration file is named after: without `.toml`."""
    name = Path(file).name
    return name[: -len(_TOML)] if name.lower().endswith(_TOML) else name


_TOML = ".toml"


def overrides_for_folder(argument: str) -> list[str]:
    """Return the `--set` overrides that point a folder's configuration at the folder itself.

    If the folder was moved or renamed, its configuration still has the old name.

    Args:
        argument: as in `config_file`; no overrides for a file.
    """
    path = Path(argument)
    if not path.is_dir():
        return []
    if path.name in ("", ".."):
        path = path.resolve()
    keys = {"output_dir": str(path.parent), "model_name": path.name}
    return [
        tomli_w.dumps({key: value}).replace(" = ", "=", 1).strip() for key, value in keys.items()
    ]


def _describe_folder(path: Path) -> str:
    """Return an error message for a folder without a configuration: what to pass instead."""
    if re.fullmatch(r"step-\d+(\.old)?", path.name) and (path / STATE).is_file():
        run = path.absolute().parents[1]
        return f"{path} is a checkpoint: name the run's folder, {run}"
    if advice := import_advice(path):
        return f"{path} is a model of another project: {advice}"
    if path.name == CHECKPOINTS and (path.parent / CONFIG).is_file():
        return f"{path} contains a run's checkpoints: name the run's folder, {path.parent}"
    if next(path.glob(f"*/{CONFIG}"), None) is not None:
        runs = command_line(f"list {shlex.quote(str(path))}")
        return f"{path} contains runs: name one of them; {runs} shows them"
    return (
        f"{path} is not a folder of a run or a model: it has no {CONFIG}; {command_line('list')} "
        "shows the runs"
    )


def resolve_folder(config: Mapping[str, Any], file: str | Path) -> Path:
    """Return the folder of the model that an argument means.

    A folder, or the configuration file inside a run's folder, means that folder, even if it was
    renamed and `config` has the old name. Any other configuration file means the run that its
    `output_dir` and `model_name` name.

    Args:
        config: content of the configuration of `file`.
        file: a folder, or a TOML file.
    """
    path = Path(file)
    if path.is_dir():
        return path
    parent = path.absolute().parent
    # A run that was killed at its start may have left nothing but its configuration.
    is_among_runs = parent.parent == Path(config["output_dir"]).absolute()
    parts = (WEIGHTS, TOKENIZER, METRICS, CHECKPOINTS)
    is_own = is_among_runs or any(os.path.lexists(parent / part) for part in parts)
    return path.parent if path.name == CONFIG and is_own else run_folder(config)


def check_unsharded(folder: Path) -> None:
    """Check that a folder is not a sharded checkpoint, which only training can load.

    Raises:
        AGI2Error: if it is.
    """
    if not os.path.isdir(folder / SHARDS) or os.path.lexists(folder / WEIGHTS):
        return
    run = folder.absolute().parents[1]
    instead = f"name the run's folder, {run}, or " * (run / WEIGHTS).is_file()
    raise AGI2Error(
        f"{folder} is a checkpoint in shards, not a model: {instead}continue its run: set resume "
        "to this folder"
    )


def check_weights(folder: Path, file: str | Path) -> None:
    """Check that a folder contains trained weights.

    Args:
        folder: the model's.
        file: the folder or TOML file that the user named.

    Raises:
        AGI2Error: if not.
    """
    if os.path.isfile(folder / WEIGHTS):
        return
    check_unsharded(folder)
    if os.path.lexists(folder / WEIGHTS):
        raise AGI2Error(
            f"{folder / WEIGHTS} {describe_path(folder / WEIGHTS)}: put the weights' file back"
        )
    if folder not in (Path(file), Path(file).parent):
        train = command_line(f"train {shlex.quote(str(file))}")
        raise AGI2Error(f"{folder}: no trained model there; train it first: {train}")
    if list_checkpoints(folder):
        resume = command_line(f"train {shlex.quote(str(folder))} --resume")
        end = f"resume the run: {resume}"
    else:
        end = "its run ended before it saved one; train it again, or name another folder"
    raise AGI2Error(f"{folder} contains no trained model (no {WEIGHTS}): {end}")


def check_output(config: Mapping[str, Any]) -> None:
    """Check that a run's folder can be created, before the text is loaded and tokenized.

    Raises:
        AGI2Error: if a parent is not a folder, or is not writable.
    """
    folder = run_folder(config)
    for path in (folder, *folder.absolute().parents):
        try:
            is_folder = stat.S_ISDIR(os.stat(path).st_mode)
        except FileNotFoundError:
            continue
        except NotADirectoryError:  # a folder above is a file
            is_folder = False
        except OSError as error:
            raise AGI2Error(f"output_dir: {folder}: {error.strerror}; set another") from error
        if not is_folder:
            raise AGI2Error(f"output_dir: {path} is not a folder, so {folder} cannot be created")
        if not os.access(path, os.W_OK | os.X_OK):
            raise AGI2Error(f"output_dir: {path} cannot be written to; set another output_dir")
        return


def check_resumed(config: Mapping[str, Any], file: str | Path) -> None:
    """Check that `resume = "auto"` in a run's own configuration resumes that run.

    Raises:
        AGI2Error: if it would resume another run: the folder was moved or copied.
    """
    if config["resume"] != "auto":
        return
    own, resumed = resolve_folder(config, file), run_folder(config)
    if own.resolve() != resumed.resolve():
        command = command_line(f"train {shlex.quote(str(own))} --resume")
        raise AGI2Error(
            f"resume: {file} is of the run in {own}, but its keys name {resumed}: to resume "
            f"the former, name its folder: {command}"
        )


def check_tokenizer(config: Mapping[str, Any]) -> None:
    """Check that the tokenizer of a new run exists, before the text is read.

    Raises:
        AGI2Error: if `tokenizer` is neither a kind of tokenizer nor a file or folder.
    """
    name = config["tokenizer"]
    if config["resume"] is None and name not in TOKENIZER_KINDS and not os.path.exists(name):
        raise AGI2Error(
            f"tokenizer: {name!r} is none of {', '.join(TOKENIZER_KINDS)}, and as a file or folder "
            f"it {describe_path(name)}"
        )


def check_not_checkpoint(argument: str) -> None:
    """Check that a run to train is not named by a checkpoint's folder.

    Raises:
        AGI2Error: if it is.
    """
    path = Path(argument)
    if path.is_dir() and (path / STATE).is_file() and (path / CONFIG).is_file():
        keys = f"{shlex.quote(str(path / CONFIG))} --set resume={shlex.quote(argument)}"
        raise AGI2Error(
            f"{argument} is a checkpoint, not a run: to continue from it: "
            + command_line(f"train {keys}")
        )


def check_resume(config: Mapping[str, Any]) -> None:
    """Check that the folder in `resume` exists.

    Raises:
        AGI2Error: if it does not.
    """
    folder = config["resume"]
    if folder not in (None, "auto") and not Path(folder).is_dir():
        raise AGI2Error(
            f"resume: {folder} {describe_path(folder)}; name a checkpoint folder, a run folder, or "
            "auto"
        )
