"""Checkpoint overhead: fraction of a run's time spent on saving at the default interval.

python benchmarks/checkpoint_cost.py [--steps 1000] [--json FILE]

`resources/quickstart.toml` is trained for some steps with `checkpoint_interval` at its default. For
GPT-2 124M (`default.toml`, batch 12 x 1024) one micro-batch of a step and one checkpoint are timed
and extrapolated: 500 such steps would take hours.
"""

import tempfile
import time
from pathlib import Path
from typing import Any

import torch
from common import ROOT, parser, report

from src.config import Config
from src.config_loader import load_config
from src.model import GPT2Model
from src.train.checkpoint import Snapshot, save_checkpoint
from src.train.loss import NextTokenLoss
from src.train.optimizer import make_optimizers, optimizer_tensors
from src.train.step import accumulate_gradients, apply_gradients
from src.train.trainer import Trainer
from src.training import train_from_config


def quickstart(folder: str, steps: int) -> dict[str, Any]:
    saving: list[float] = []
    original = Trainer.save

    def timed(self: Trainer) -> Path:
        start = time.perf_counter()
        place = original(self)
        saving.append(time.perf_counter() - start)
        return place

    interval = Config().checkpoint_interval
    overrides = [f"max_steps={steps}", "max_minutes=null", f"output_dir={folder}"]
    overrides += [f"checkpoint_interval={interval}"]
    config = load_config(ROOT / "resources/quickstart.toml", "training", overrides)
    Trainer.save = timed  # type: ignore[method-assign]
    history = train_from_config(config).history
    Trainer.save = original  # type: ignore[method-assign]
    return row("quickstart.toml", interval, history["seconds"] / steps, sum(saving) / len(saving))


def gpt2_small(folder: str) -> dict[str, Any]:
    config = load_config(ROOT / "resources/default.toml")
    model = GPT2Model(config)
    optimizers = make_optimizers(model, config)
    loss, cpu = NextTokenLoss(model), torch.device("cpu")
    for _ in range(2):  # the first one is the warmup
        start = time.perf_counter()
        accumulate_gradients(loss, torch.randint(0, config.vocab_size, (1, 1025)), cpu)
        micro_batch = time.perf_counter() - start
        start = time.perf_counter()
        apply_gradients(optimizers, config.clip_grad_norm)
        update = time.perf_counter() - start
    tensors = optimizer_tensors(model, optimizers)
    start = time.perf_counter()
    snapshot = Snapshot({"step": 1}, model.state_dict(), tensors)
    save_checkpoint(Path(folder) / "gpt2", snapshot, 2)
    saving = time.perf_counter() - start
    step = config.batch_size * micro_batch + update
    return row("default.toml, GPT-2 124M", config.checkpoint_interval, step, saving)


def row(what: str, interval: int, step: float, saving: float) -> dict[str, Any]:
    return {
        "what": what,
        "seconds a step": step,
        "seconds a checkpoint": saving,
        "checkpoint every": interval,
        "share of the time, %": 100 * saving / (interval * step + saving),
    }


def main() -> None:
    options = parser(__doc__.splitlines()[0])
    options.add_argument("--steps", type=int, default=1000)
    given = options.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        report([quickstart(folder, given.steps), gpt2_small(folder)], given.json)


if __name__ == "__main__":
    main()
