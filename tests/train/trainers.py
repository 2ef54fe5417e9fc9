"""Trainers that act at a moment of a run: they fail, get a signal or lose their folder."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from src.train.distributed import ProcessGroup
from src.train.schedule import Schedule
from src.train.trainer import Trainer

MOMENTS = {
    "open": "the run folder is ready, and contains no model of this run",
    "step": "before a step",
    "evaluate": "before an evaluation",
    "sample": "before a sample is generated",
    "save": "before a checkpoint is saved",
    "saved": "after a checkpoint was saved",
    "stop": "before processes agree on whether to stop: after each step and after the last save",
    "best": "before the best weights are loaded at the end",
}


def acting(act: Callable[[Trainer, str], None]) -> type[Trainer]:
    """Return a class of trainers that call `act` with themselves and each of `MOMENTS`."""

    class ActingTrainer(Trainer):
        def __init__(self, *args, **options):
            super().__init__(*args, **options)
            trainer = self

            class ActingSchedule(Schedule):
                def learning_rate_factor(self, state):
                    act(trainer, "step")
                    return super().learning_rate_factor(state)

            @dataclass(frozen=True)
            class ActingGroup(ProcessGroup):
                def all_reduce_stop(self, *args):
                    act(trainer, "stop")
                    return super().all_reduce_stop(*args)

            self.schedule = ActingSchedule(self.config, self.batches.steps_per_epoch)
            group, checkpoints = self.process_group, self.checkpoints
            self.process_group = ActingGroup(group.device, group.rank, group.world_size)
            prepare_folder, load_best = checkpoints.prepare_folder, checkpoints.load_best

            def prepare_folder_and_act(checkpoint):
                log_size = prepare_folder(checkpoint)
                act(trainer, "open")
                return log_size

            def act_and_load_best():
                act(trainer, "best")
                return load_best()

            checkpoints.prepare_folder = prepare_folder_and_act
            checkpoints.load_best = act_and_load_best

        def evaluate(self, max_tokens=0):
            act(self, "evaluate")
            return super().evaluate(max_tokens)

        def sample(self, max_length, seed):
            act(self, "sample")
            return super().sample(max_length, seed)

        def save(self):
            act(self, "save")
            path = super().save()
            act(self, "saved")
            return path

    return ActingTrainer


def at(moment: str, step: int, action: Callable[[], None], occurrence: int = 1) -> type[Trainer]:
    """Return a class of trainers that call `action` at the nth occurrence of a moment at a step."""
    assert moment in MOMENTS
    seen = []

    def act(trainer, name):
        if (name, trainer.step) == (moment, step):
            seen.append(name)
            if len(seen) == occurrence:
                action()

    return acting(act)
