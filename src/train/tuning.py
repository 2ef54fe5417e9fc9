"""Plans the fine-tuning of a model on conversations or preferences: rates, batches, duration."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from ..config import Config
from ..config_checks import DPO_DEFAULTS
from ..config_loader import make_config
from ..console import show_progress, visible
from ..cuda_utils import select_device
from ..data.batches import EpochBatches
from ..data.planned_windows import training_batches
from ..formats.run_dir import run_folder
from ..utils import human_time, plural
from .distributed import ProcessGroup
from .planner import max_minutes
from .setup import make_model, prepare
from .timing import measure_step
from .trainer import Trainer

# Peak learning rates of AdamW, by the number of the model's parameters. A model of 1 million had a
# loss of 4.01, 2.30 and 1.97 after 72 s at 2e-4, 1e-3 and 5e-3 (LoRA of rank 16 at 5e-3: 3.22).
# One of 5.8 million, briefly trained, had 6.05, 5.57 and 4.97 after 32 steps at 3e-4, 1e-3, 3e-3.
# One of 12 million had 3.17 and 3.43 after 60 steps at 1e-3 and 3e-3 (benchmarks/tune.py). That of
# larger models is customary, not measured.
_RATES = ((3e6, 5e-3), (10e6, 3e-3), (30e6, 1e-3), (math.inf, 1e-4))
# Of DPO, the same for all sizes. After a minute on 570 pairs, the model of `resources/chat.toml`
# preferred all held-out replies at 1e-5, 3e-5 and 1e-4, with a KL of 0.8, 2.2 and 5.9 nats a token,
# and 26, 26 and 18 of 30 replies were still right. Other sizes were not measured.
_DPO_RATE = DPO_DEFAULTS["learning_rate"]
# LoRA matrices begin at zero and are few: their rates are higher, up to a limit.
_LORA_FACTOR, _MAX_LORA_RATE = 5.0, 5e-3
# Tokens of a batch, and the fewest batches of an epoch.
_BATCH_TOKENS = 4096
_MIN_BATCHES = 16
# Early stopping ends a run before, if more epochs raise the loss on held-out conversations. Of 200
# conversations the loss was 3.51, 3.18, 3.55 and 3.58 after 1.7, 3.3, 5 and 6.7 epochs: a patience
# of 2 validations keeps the same weights. That was with decay over 20 epochs; with
# decay over 4 the loss fell to the end, to 3.07.
MAX_EPOCHS, _MAX_DPO_EPOCHS = 5, 3
_MIN_STEPS = 100
_PATIENCE = 2
_VALIDATIONS = 12
# Fewer steps between validations would let early stopping end a short run in its warmup.
_MIN_EVAL_INTERVAL = 10
_BENCHMARK_SECONDS = 5.0
# The fraction of the time limit for training steps.
_STEPS_TIME_FRACTION = 0.75


@dataclass(frozen=True)
class TuningPlan:
    """A configuration of fine-tuning, and what its run takes."""

    keys: dict[str, Any]
    parameters: int
    steps: int
    epochs: float
    minutes: float
    """The estimated duration, at most the time limit."""

    def describe(self) -> Iterator[str]:
        """Yield lines about the size and the duration."""
        yield (
            f"planned: {plural(self.steps, 'step')} of up to "
            f"{plural(self.keys['batch_size'], 'sequence')}, {self.epochs:.3g} epochs, about "
            f"{human_time(60 * self.minutes)}"
        )


def plan_tuning(keys: Mapping[str, Any], minutes: float, given: Mapping[str, Any]) -> TuningPlan:
    """Plan the fine-tuning of a model for a time limit, by a benchmark of its training steps.

    The conversations are read and tokenized for it; the run finds their tokens in the cache.

    Args:
        keys: `init_from`, `conversations` or `preferences`, `model_name` and what else does not
            depend on the plan.
        minutes: the time limit of the run.
        given: keys that the user has set, which the plan keeps.

    Raises:
        AGI2Error: if a key is invalid, or the conversations cannot be read.
    """
    planned: dict[str, Any] = {**keys, "optimizer": "adamw", "lr_schedule": "linear", **given}
    config = make_config(planned, "training")
    text = prepare(config)
    group = ProcessGroup(select_device(config.device))
    what = "measuring the speed of training"
    with show_progress(what), visible(False):
        model, config = make_model(config, text.tokenizer, group)
        parameters = model.num_parameters()
        batches = training_batches(text.train_data, config, text.tokenizer)
        planned |= {**_sizes(parameters, batches, config), **given}
        config = make_config(planned, "training").changed(vocab_size=config.vocab_size)
        datasets = text.train_data, None
        trainer = Trainer(model, text.tokenizer, *datasets, config, run_folder(config), group)
        seconds, _ = measure_step(trainer, _BENCHMARK_SECONDS)
    affordable = max(1, int(60 * minutes * _STEPS_TIME_FRACTION / seconds))
    per_epoch = trainer.batches.steps_per_epoch
    epochs = _MAX_DPO_EPOCHS if config.preferences else MAX_EPOCHS
    useful = max(_MIN_STEPS, epochs * per_epoch)
    is_limited = bool(given.keys() & {"max_steps", "epochs"})
    allowed = trainer.total_steps if is_limited else useful
    if allowed > affordable:
        planned["max_minutes"] = max_minutes(minutes)
    elif not is_limited:
        planned["max_steps"] = useful
    steps = min(affordable, allowed)
    planned |= {
        "eval_interval": max(_MIN_EVAL_INTERVAL, steps // _VALIDATIONS),
        "checkpoint_interval": max(10, steps // 4),
        "early_stopping_patience": _PATIENCE if text.val_data is not None else None,
        **given,
    }
    return TuningPlan(
        planned, parameters, steps, steps / per_epoch, minutes * min(1.0, allowed / affordable)
    )


def _sizes(parameters: int, batches: EpochBatches, config: Config) -> dict[str, Any]:
    """Return the batch size, the learning rate and the warmup."""
    tokens = batches.dataset.seq_len - 1 if config.preferences else config.seq_len
    batch = max(1, min(_BATCH_TOKENS // tokens, batches.windows // _MIN_BATCHES))
    rate = next(rate for maximum, rate in _RATES if parameters <= maximum)
    if config.preferences:
        rate = _DPO_RATE
    if config.lora_rank is not None:
        rate = min(_LORA_FACTOR * rate, _MAX_LORA_RATE)
    return {
        "batch_size": batch,
        "learning_rate": rate,
        "warmup_steps": 20,
        "weight_decay": 0.0,
        "sample_tokens": 0,
    }
