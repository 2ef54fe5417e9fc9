"""The settings of a sweep, which are saved with it: `SweepPlan`."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..config import Config
from ..errors import AGI2Error, mask_secrets, safe_repr
from ..train.sweep_space import (
    Recipe,
    Space,
    default_space,
    draw_recipes,
    parse_space,
    space_from_json,
    space_to_json,
)
from ..utils import human_time, plural, replace_non_finite

DEFAULT_MINUTES, DEFAULT_RUNS, DEFAULT_SEED = 5.0, 12, 1


@dataclass(frozen=True)
class SweepOptions:
    """The options of the command; `None` and no `tried` mean that one was not given."""

    minutes: float | None = None
    steps: int | None = None
    runs: int | None = None
    tried: tuple[str, ...] = ()
    seed: int | None = None

    def __post_init__(self) -> None:
        if self.steps is not None and self.minutes is not None:
            raise AGI2Error("--minutes and --steps: give one of them")


@dataclass(frozen=True)
class SweepPlan:
    """The recipes that a sweep tries, and for how long each."""

    minutes: float | None
    """Minutes of training of each run; `None` with `steps`."""
    steps: int | None
    """Steps of each run; `None` with `minutes`."""
    runs: int
    seed: int
    space: Space
    chosen: dict[str, Any]
    """The keys of the file, without the secrets of URLs."""

    @classmethod
    def make(cls, config: Config, options: SweepOptions) -> SweepPlan:
        """Return the plan of a new sweep.

        Raises:
            AGI2Error: if an option is not valid.
        """
        minutes = options.minutes or (None if options.steps else DEFAULT_MINUTES)
        space = parse_space(options.tried, config) if options.tried else default_space(config)
        runs = DEFAULT_RUNS if options.runs is None else options.runs
        seed = DEFAULT_SEED if options.seed is None else options.seed
        chosen = replace_non_finite(mask_secrets(config.chosen()))
        return cls(minutes, options.steps, runs, seed, space, chosen)

    @classmethod
    def resume(
        cls, saved: Mapping[str, Any], config: Config, options: SweepOptions, file: Path
    ) -> SweepPlan:
        """Return the plan of a sweep that is continued, perhaps with another number of runs.

        Args:
            saved: the result of `to_json`.
            config: the configuration.
            options: the options of the command, of which those that were not given are as saved.
            file: the file of `saved`, for error messages.

        Raises:
            AGI2Error: if an option or a key is another than that of the sweep.
        """
        try:
            was = cls(**{**saved, "space": space_from_json(saved["space"])})
        except (KeyError, TypeError, AttributeError) as error:
            raise AGI2Error(f"{file} is damaged: begin anew, without --resume") from error
        has_limit = options.minutes is not None or options.steps is not None
        limits = (options.minutes, options.steps) if has_limit else (was.minutes, was.steps)
        runs = was.runs if options.runs is None else options.runs
        seed = was.seed if options.seed is None else options.seed
        now = cls.make(config, SweepOptions(*limits, runs, options.tried, seed))
        if not options.tried:
            now = cls(**{**vars(now), "space": was.space})
        before, after = was.to_json(), now.to_json()
        for key in ("chosen", "space", "minutes", "steps", "seed"):
            if difference := _difference(key, before[key], after[key]):
                raise AGI2Error(
                    f"the sweep in {file.parent} has {difference}: set it back, or begin anew, "
                    "without --resume"
                )
        return now

    def to_json(self) -> dict[str, Any]:
        """Return the plan, JSON-serializable."""
        return {**vars(self), "space": space_to_json(self.space)}

    def recipes(self, config: Config) -> list[Recipe]:
        """Return the recipes to try, of which the first is that of the configuration."""
        return draw_recipes(self.space, config, self.runs, self.seed)

    @property
    def limit(self) -> dict[str, Any]:
        """The keys that end a run."""
        return {"max_minutes": self.minutes, "max_steps": self.steps, "epochs": None}

    def describe(self, count: int) -> str:
        """Return a line about a number of runs."""
        each = plural(self.steps, "step") if self.steps else human_time(60 * (self.minutes or 0))
        time = f", {human_time(60 * self.minutes * count)} in all" if self.minutes else ""
        return f"{plural(count, 'run')} of {each} each{time}: {', '.join(self.space)}"


def _difference(name: str, was: Any, now: Any) -> str:
    """Return what differs, as `KEY = VALUE, now VALUE`; empty if nothing does."""
    if isinstance(was, dict) and isinstance(now, dict):
        for key in [*was, *(key for key in now if key not in was)]:
            if found := _difference(key, was.get(key), now.get(key)):
                return found
        return ""
    return "" if was == now else f"{name} = {safe_repr(was)}, now {safe_repr(now)}"
