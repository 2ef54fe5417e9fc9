"""Trains one recipe of a sweep: entry point of its process."""

from __future__ import annotations

import importlib
import sys
from pathlib import Path
from typing import Any

import torch

from ..config import Config
from ..config_loader import load_config
from ..cuda_utils import first_line, is_out_of_memory, memory_stats, select_device
from ..errors import AGI2Error
from ..evaluation.run_log import read_run
from ..train.metrics import Evaluation
from ..train.trainer import Trainer
from ..training import Run, train_from_config
from ..utils import json_line, write_text
from .common import set_up_log

# Held-out tokens on which runs are compared, if there are as many: the same for all of them.
_MIN_COMPARED_TOKENS = 2**18


class _ComparedTrainer(Trainer):
    """Trainer that evaluates the best weights on an amount of text that no speed changes."""

    def _evaluate_best(self) -> Evaluation:
        limit = self.config.eval_tokens
        return self.evaluate(limit and max(limit, _MIN_COMPARED_TOKENS))


def train_recipe(config_file: str, result_file: str, quiet: bool, verbose: bool) -> None:
    """Train a run, from its newest checkpoint if there is any, and write its result as JSON.

    Exits with 130 if it is interrupted; then it writes nothing but a checkpoint.
    """
    set_up_log(quiet, verbose)
    config = load_config(config_file)
    try:
        result = _trained(train_from_config(config, kind=_ComparedTrainer))
    except KeyboardInterrupt:
        sys.exit(130)
    except AGI2Error as error:
        result = {"status": "failed", "reason": error.args[0]}
    except (RuntimeError, MemoryError) as error:
        if not is_out_of_memory(error):
            raise
        result = {"status": "failed", "reason": f"out of memory: {first_line(error)}"}
    write_text(Path(result_file), json_line({**result, "peak_memory": _peak_memory(config)}))


def _trained(run: Run) -> dict[str, Any]:
    """Return the figures of a run that ended."""
    start = read_run(run.folder).history.start
    history = run.history
    return {
        "status": history["stopped"],
        "bits_per_byte": history.get("bits_per_byte"),
        "val_loss": history.get("final_val_loss"),
        "parameters": start["parameters"],
        "steps": history["steps"],
        "tokens": round(history["steps"] * start["tokens_per_step"]),
        "seconds": round(history["seconds"], 2),
    }


def _peak_memory(config: Config) -> int:
    """Return the peak memory in bytes: that of the device, or of this process on a CPU."""
    device = select_device(config.device)
    if device.type == "cuda":  # pragma: needs gpu
        return memory_stats(device).device_peak or torch.cuda.max_memory_allocated(device)
    try:
        resource: Any = importlib.import_module("resource")
    except ImportError:  # on Windows
        return memory_stats(device).process
    peak: int = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else 1024 * peak
