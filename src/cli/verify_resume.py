"""Check, with a user's configuration, that resuming a killed run is bitwise reproducible."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file

from ..config import Config
from ..config_loader import load_config, save_config
from ..cuda_utils import select_device
from ..data.corpus import check_configured, check_rereadable
from ..data.documents import SOURCE_KEYS, ReadOptions
from ..errors import AGI2Error
from ..formats.model_dir import WEIGHTS, run_folder
from ..train.checkpoint import TENSORS, checkpoint_folder, find_checkpoint
from ..train.setup import prepare
from ..train.trackers import read_metrics
from ..train.trainer import Trainer
from ..training import make_trainer
from .child_process import python_command

# Keys of the metrics log that must be equal in both runs.
_COMPARED_METRICS = (
    "loss",
    "learning_rate",
    "grad_norm",
    "epoch_loss",
    "val_loss",
    "val_bits_per_byte",
    "accuracy",
    "margin",
    "kl",
    "val_accuracy",
    "val_margin",
    "val_kl",
)


def verify(config: Config, steps: int = 6) -> Iterator[str]:
    """Train, kill and resume a run, and compare it with an uninterrupted one.

    Three processes train in a temporary folder: one from start to end; one that is killed some
    steps after its first checkpoint; one that resumes from this checkpoint. The user's own runs
    are not touched.

    Args:
        config: the run's configuration. Only its length and the frequency and size of its
            validations, checkpoints and samples are changed.
        steps: number of optimizer steps, at least 3.

    Yields:
        Lines of the report.

    Raises:
        AGI2Error: if a process fails; after the report, if the runs differ.
    """
    check_configured(config)
    check_rereadable(
        [source for key in SOURCE_KEYS for source in config[key]],
        "three runs read it here",
        ReadOptions.from_config(config),
    )
    if config.max_minutes is not None:
        yield (
            f"max_minutes is ignored for {steps} steps: a run that is limited by time is not "
            "reproducible"
        )
    if config.early_stopping_patience is not None:
        yield "early_stopping_patience is ignored, so that all runs reach the last step"
    if select_device(config.device).type != "cpu":  # pragma: needs gpu
        yield "on a GPU the order of sums may vary: resuming is exact on the CPU only"
    parent = config.output_dir if os.access(config.output_dir, os.W_OK) else None
    with tempfile.TemporaryDirectory(prefix=".verify-resume-", dir=parent) as folder:
        short = _shortened(config, steps, folder)
        uninterrupted = short.changed(model_name="uninterrupted")
        resumed = short.changed(model_name="resumed")
        _train(uninterrupted)
        yield f"trained {steps} steps without interruption"
        _train(resumed, killed_after=steps // 3)
        yield f"trained again, and was killed after more than {steps // 3} steps"
        _train(resumed.changed(resume="auto"))
        yield f"resumed from step {steps // 3}, to step {steps}"
        differences = 0
        for what, difference in _compare_runs(
            run_folder(uninterrupted), run_folder(resumed), steps
        ):
            differences += difference is not None
            yield f"{what}: {difference or 'the same'}"
    if differences:
        raise AGI2Error("the resumed run differs from the uninterrupted one, see above")
    yield "exact"


def _shortened(config: Config, steps: int, folder: str) -> Config:
    """Return the configuration of a run of `steps` steps in `folder`."""
    return config.changed(
        max_steps=steps,
        max_minutes=None,
        epochs=None,
        resume=None,
        checkpoint_interval=steps // 3,
        keep_checkpoints=1,
        eval_interval=steps // 3,
        eval_tokens=min(config.eval_tokens or 2048, 2048),
        log_interval=1,
        early_stopping_patience=None,  # both runs must reach the last step
        log_to=[],
        sample_tokens=min(config.sample_tokens, 16),
        output_dir=folder,
    )


# Windows has no SIGKILL; its SIGTERM terminates the process unconditionally.
_KILL = getattr(signal, "SIGKILL", signal.SIGTERM)


def _train(config: Config, killed_after: int = 0) -> None:
    """Train in a new process.

    Args:
        config: the run's configuration.
        killed_after: step whose checkpoint is the last one before the process kills itself, or 0.

    Raises:
        AGI2Error: with the process's last line of output, if it does not end as expected.
    """
    file = run_folder(config).with_suffix(".toml")
    save_config(config, file)
    command = python_command(
        f"{__package__}.verify_resume",
        f"_train_here({str(file)!r}, {killed_after})",
        str(file.parent),
    )
    process = subprocess.run(command, capture_output=True, encoding="utf-8", errors="replace")
    if killed_after and process.returncode in (-_KILL, _KILL):
        return
    if process.returncode or killed_after:
        output = process.stderr.strip().splitlines() or [f"exit status {process.returncode}"]
        raise AGI2Error(f"the run failed: {output[-1]}")


class _KilledTrainer(Trainer):
    """Trainer that kills its process instead of saving a second checkpoint."""

    killed_after: int

    def save(self) -> Path:
        """Save a checkpoint; after step `killed_after`, kill the process instead."""
        if self.step > self.killed_after:
            os.kill(os.getpid(), _KILL)
        return super().save()


def _train_here(file: str, killed_after: int) -> None:
    """Train a run, from its newest checkpoint if any: entry point of the new process."""
    config = load_config(file)
    _KilledTrainer.killed_after = killed_after or sys.maxsize
    checkpoint = find_checkpoint(config)
    text = prepare(config, checkpoint)
    resumed = checkpoint is not None
    make_trainer(config, text, kind=_KilledTrainer, is_resumed=resumed).fit(checkpoint)


def _compare_runs(
    uninterrupted: Path, resumed: Path, steps: int
) -> Iterator[tuple[str, str | None]]:
    """Yield the name of each artifact and its first difference, or None if they are equal."""
    checkpoints = [checkpoint_folder(run, steps) for run in (uninterrupted, resumed)]
    for what, name in (("weights", WEIGHTS), ("optimizer state", TENSORS)):
        yield what, _first_difference(*(load_file(end / name) for end in checkpoints))
    yield "best weights", _first_difference(
        *(load_file(run / WEIGHTS) for run in (uninterrupted, resumed))
    )
    logs = [read_metrics(run / "metrics.jsonl") for run in (uninterrupted, resumed)]
    for what, keys in (("losses logged", _COMPARED_METRICS), ("samples", ("sample",))):
        yield what, _first_difference(*(_logged_values(log, keys) for log in logs))


def _logged_values(log: list[dict[str, Any]], keys: tuple[str, ...]) -> dict[str, Any]:
    """Return the values of `keys` in a metrics log, by key and step."""
    return {f"{k} at step {line['step']}": line[k] for line in log for k in keys if k in line}


def _first_difference(first: Mapping[str, Any], second: Mapping[str, Any]) -> str | None:
    """Return a description of the first bitwise difference, or None."""
    for name in sorted(first.keys() | second.keys()):
        if name not in first or name not in second:
            return f"{name} is in only one of them"
        a, b = first[name], second[name]
        if isinstance(a, torch.Tensor):
            if not torch.equal(*(tensor.flatten().view(torch.uint8) for tensor in (a, b))):
                return f"{name} differs by up to {(a.double() - b.double()).abs().max():.3g}"
        elif a != b:
            return f"{name} is {a!r} in one, {b!r} in the other"
    return None
