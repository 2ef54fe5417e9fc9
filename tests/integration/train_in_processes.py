"""What torchrun starts for `test_many_processes.py`: one run after another, and notes on each.

`train_in_processes.py JOBS.json`: a list of {"config": {...}, "hazard": NAME, "float64": BOOL}, the
last two optional. Each process notes the outcome of job N in JOBS.json.N.RANK. After a restart,
jobs that the main process has noted are passed over.
"""

import contextlib
import json
import os
import signal
import sys
from pathlib import Path
from unittest import mock

import torch

from src.config_loader import make_config
from src.console import setup_logging
from src.errors import AGI2Error
from src.train.accumulator import GradientAccumulator
from src.train.loss import IGNORE_INDEX, NextTokenLoss
from src.train.trainer import Trainer
from src.training import train_from_config
from tests.tiny_models import training_in_float64
from tests.train.trainers import at

RANK = int(os.environ.get("RANK", 0))


def stop():
    """Process 1 alone gets SIGTERM."""
    if RANK == 1:
        os.kill(os.getpid(), signal.SIGTERM)


def kill():
    """The main process dies in its first life."""
    if RANK == 0 and os.environ["TORCHELASTIC_RESTART_COUNT"] == "0":
        os.kill(os.getpid(), signal.SIGKILL)


def out_of_memory(loss, inputs, targets):
    """No process has room for a micro-batch."""
    return torch.empty(2**60)


_fetch = GradientAccumulator.fetch


def masked_fetch(accumulator, step):
    """A step's batch; each window begins with a number of ignored targets of its own."""
    windows = _fetch(accumulator, step)
    inputs, targets = windows[:, :-1], windows[:, 1:]
    ignored = torch.arange(targets.size(1)) < windows[:, :1] % targets.size(1)
    return inputs, targets.masked_fill(ignored, IGNORE_INDEX)


# Process 1 is asked to stop in step 5; the main process dies in step 7.
TRAINERS = {"asked": at("step", 4, stop), "killed": at("step", 6, kill)}
PATCHES = {
    "masked": (GradientAccumulator, "fetch", masked_fetch),
    "memory": (NextTokenLoss, "forward", out_of_memory),
}


@contextlib.contextmanager
def context(hazard, float64):
    with contextlib.ExitStack() as stack:
        if hazard in PATCHES:
            stack.enter_context(mock.patch.object(*PATCHES[hazard]))
        if float64:
            stack.enter_context(training_in_float64())
        yield


def outcome(config, hazard=None, float64=False):
    """How a run ended."""
    try:
        with context(hazard, float64):
            run = train_from_config(make_config(config), kind=TRAINERS.get(hazard, Trainer))
    except KeyboardInterrupt:
        return {"ended": "interrupted"}
    except AGI2Error as error:
        return {"ended": str(error)}
    sharded = any(hasattr(parameter, "full_tensor") for parameter in run.model.parameters())
    weights = {} if sharded else run.model.state_dict()
    return {
        "ended": run.history.pop("stopped"),
        "history": {key: value for key, value in run.history.items() if key != "seconds"},
        "weights": {name: tensor.tolist() for name, tensor in weights.items()},
        "seed": torch.initial_seed(),  # of the last step's dropout
        "is_main": run.is_main,
    }


if __name__ == "__main__":
    setup_logging()
    for number, job in enumerate(json.loads(Path(sys.argv[1]).read_text())):
        if not Path(f"{sys.argv[1]}.{number}.0").exists():
            note = outcome(**job)
            Path(f"{sys.argv[1]}.{number}.{RANK}").write_text(json.dumps(note))
