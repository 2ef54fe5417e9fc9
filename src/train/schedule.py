"""The schedule of a run: its learning rate, and when it ends."""

from __future__ import annotations

import math

from ..config import Config
from ..config_checks import UNBOUNDED_EPOCHS
from .state import RunState

# Warmup ends when this share of the run is done, whatever the number of steps; but not before this
# many steps, for runs that are slow or begin with a pause, such as compilation.
WARMUP_FRACTION, MIN_WARMUP_STEPS = 0.1, 5


class Schedule:
    """How far a run is, its learning rate there, and whether it ends: functions of its state.

    Args:
        config: the run's configuration.
        steps_per_epoch: optimizer steps of an epoch.
    """

    def __init__(self, config: Config, steps_per_epoch: int) -> None:
        self._config = config
        self.total_steps = config.epochs * steps_per_epoch
        """Steps after which the run ends."""
        if config.max_steps is not None:
            self.total_steps = min(self.total_steps, config.max_steps)

    @property
    def planned_steps(self) -> int | None:
        """Steps of the run; `None` if it is limited by time or early stopping only."""
        config = self._config
        bounded = config.epochs < UNBOUNDED_EPOCHS or config.max_steps is not None
        return self.total_steps if bounded else None

    def _elapsed_fraction(self, state: RunState) -> float:
        """Return the elapsed fraction of `max_minutes`; 0 without it."""
        limit = self._config.max_minutes
        return 0.0 if limit is None else state.seconds / (60 * limit)

    def progress(self, state: RunState) -> float:
        """Return the completed fraction of the run, by steps or by time, whichever is larger."""
        return min(max(state.step / self.total_steps, self._elapsed_fraction(state)), 1.0)

    def learning_rate_factor(self, state: RunState) -> float:
        """Return the factor of the peak learning rates at the next step."""
        config = self._config
        return learning_rate_factor(
            config.lr_schedule,
            state.step,
            self.total_steps,
            config.warmup_steps,
            config.lr_decay_fraction,
            self._elapsed_fraction(state),
        )

    def stop_reason(self, state: RunState) -> str:
        """Return why the run ends here: `early`, `finished` or `time`; empty if it continues."""
        patience = self._config.early_stopping_patience
        if patience is not None and state.validations_without_improvement >= patience:
            return "early"
        if state.step >= self.total_steps:
            return "finished"
        return "time" if self._elapsed_fraction(state) >= 1.0 else ""

    def describe_end(self, state: RunState) -> str:
        """Return why the run is complete, and how to continue it; empty if it is not complete."""
        config, found = self._config, state.validations_without_improvement
        return {
            "": "",
            "early": (
                f"the run stopped early, after {found} validations without a better loss; set "
                f"early_stopping_patience above {found} (now {config.early_stopping_patience}), "
                "or leave it out"
            ),
            "finished": f"the run has its {self.total_steps} steps; raise epochs or max_steps",
            "time": f"the run has its {config.max_minutes or 0:g} minutes; raise max_minutes",
        }[self.stop_reason(state)]


def learning_rate_factor(
    schedule: str,
    step: int,
    total_steps: int,
    warmup_steps: int,
    decay_fraction: float = 0.2,
    elapsed_fraction: float = 0.0,
) -> float:
    """Compute the multiplicative factor of the learning rate: a pure function of the progress.

    Progress is the completed fraction of the steps or of the time limit, whichever is larger.
    Warmup and decay both follow it: the factor is continuous in steps and in time. Without a time
    limit, it depends on the steps alone.

    Args:
        schedule: `constant`, or a decay from 1 after warmup to 0 at the end: `linear`, `cosine`
            (Loshchilov and Hutter, 2017), or `wsd` (warmup, stable, decay: Hu et al., 2024), which
            is constant until a linear decay.
        step: steps done, counted from 0.
        total_steps: maximum number of steps, at least 1.
        warmup_steps: steps of linear warmup, of which the first has 1 / (warmup + 1); at most a
            tenth of the run.
        decay_fraction: the fraction of the run after warmup in which `wsd` decays.
        elapsed_fraction: the elapsed fraction of the time limit; 0 without one.
    """
    progress = min(max(step / total_steps, elapsed_fraction), 1.0)
    warmup = min(warmup_steps, total_steps // 10)
    # With a time limit, the total number of steps is estimated as step / progress.
    estimated_warmup = min(warmup * progress / max(step, 1), WARMUP_FRACTION)
    start = warmup / total_steps if elapsed_fraction <= step / total_steps else estimated_warmup
    fastest = step / max(min(warmup, MIN_WARMUP_STEPS), 1)
    warmup_factor = max((step + 1) / (warmup + 1), min(progress / WARMUP_FRACTION, fastest))
    return min(warmup_factor, 1.0) * _decay(
        schedule, (progress - start) / (1 - start), decay_fraction
    )


def _decay(schedule: str, progress: float, decay_fraction: float) -> float:
    """Return the factor after warmup, from 1 to 0 as `progress` goes from 0 to 1."""
    progress = max(progress, 0.0)
    if schedule == "constant":
        return 1.0
    if schedule == "linear":
        return 1.0 - progress
    if schedule == "wsd":
        return min(1.0, (1.0 - progress) / decay_fraction)
    return 0.5 * (1.0 + math.cos(math.pi * progress))
