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

RANK = int(os.environ.get("RANK", 0))
_step = Trainer._train_one_step


def asked_to_stop(trainer):
    """Process 1 alone gets SIGTERM during step 5."""
    if trainer.step == 4 and RANK == 1:
        os.kill(os.getpid(), signal.SIGTERM)
    _step(trainer)


def killed(trainer):
    """The main process dies in step 7 of its first life."""
    if trainer.step == 6 and RANK == 0 and os.environ["TORCHELASTIC_RESTART_COUNT"] == "0":
        os.kill(os.getpid(), signal.SIGKILL)
    _step(trainer)


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


HAZARDS = {
    None: contextlib.nullcontext(),
    "asked": mock.patch.object(Trainer, "_train_one_step", asked_to_stop),
    "killed": mock.patch.object(Trainer, "_train_one_step", killed),
    "masked": mock.patch.object(GradientAccumulator, "fetch", masked_fetch),
    "memory": mock.patch.object(NextTokenLoss, "forward", out_of_memory),
}


def outcome(config, hazard=None, float64=False):
    """How a run ended."""
    try:
        with HAZARDS[hazard], training_in_float64() if float64 else contextlib.nullcontext():
            run = train_from_config(make_config(config))
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
