"""Fine-tuning without a configuration: `agi2 tune MODEL chats.jsonl` plans one first."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ..config import Config
from ..config_loader import CONFIG, load_config, make_config, parse_override
from ..data.corpus import check_sources
from ..errors import AGI2Error, safe_repr
from ..formats.run_dir import check_weights
from ..utils import log
from .common import model_folder
from .saved_input import is_pipe
from .startup import loading
from .train_text import (
    DEFAULT_MINUTES,
    TextRun,
    check_exists,
    check_one_process,
    is_resumed,
    minutes_for,
    name_for,
)

DEFAULT_TEXT_SHARE = 0.2
"""Share of plain text beside conversations, against forgetting."""
_COMMENTS = {
    "init_from": "The model to fine-tune, and the conversations.",
    "batch_size": "Small batches, so that an epoch has many steps.",
    "learning_rate": "For a model of this size.",
    "max_minutes": "The learning rate falls with this clock.",
    "max_steps": "More epochs over these conversations would hardly lower the loss.",
    "eval_interval": "About a dozen validations on held-out conversations.",
}


@dataclass
class TuningRun(TextRun):
    """Fine-tuning on conversations that has no configuration yet; `sources` are these."""

    keys: dict[str, Any] = field(default_factory=dict)
    """The keys that the arguments give."""

    @classmethod
    def from_model(
        cls,
        model: str,
        chats: Sequence[str],
        keys: dict[str, Any],
        minutes: float | None,
        name: str | None,
        overrides: Sequence[str],
        resume: bool,
    ) -> TuningRun:
        """Check the arguments of `tune`.

        Args:
            model: a run, its configuration, or a model's folder.
            chats: the conversations.
            keys: `sources`, `text_share` and `lora_rank`, if given.
            minutes: the time limit.
            name: the name of the run; by default that of the model and `-chat`.
            overrides: `KEY=VALUE` strings.
            resume: whether to resume the run, if there is one.

        Raises:
            AGI2Error: if one is not valid or contradicts another.
        """
        check_one_process(f"write one with init_from = {model!r} and conversations")
        for path in (*chats, *keys.get("sources", ())):
            check_exists(path)
        given = dict(map(parse_override, overrides))
        resume = is_resumed(given) or resume
        folder = model_folder(model)
        check_weights(folder, model)
        if name is None and "model_name" not in given:
            name = f"{folder.resolve().name}-chat"
        name = name_for([], name, given)
        if doubled := given.keys() & {"conversations", *keys}:
            raise AGI2Error(f"--set {min(doubled)}: give it as an argument or an option")
        if keys.get("sources") and "text_share" not in {**keys, **given}:
            keys = {**keys, "text_share": DEFAULT_TEXT_SHARE}
        if pipes := [source for source in keys.get("sources", ()) if is_pipe(source)]:
            raise AGI2Error(f"--text {pipes[0]}: name a file: the plan and the run both read it")
        own = {"init_from": str(folder), "conversations": list(chats), **keys, "model_name": name}
        locations = {key: f"--set {key}" for key in given} | {"model_name": "--name"}
        config = make_config({**own, **given}, "training", "the command line", locations)
        return cls(list(chats), config, given, minutes_for(minutes, given), resume, own)

    def sources_of(self, config: Config) -> list[str]:
        """Return the conversations of a configuration."""
        return config.conversations

    def find_resumed(self) -> str | None:
        """Return the configuration of the run to resume; see `TextRun.find_resumed`.

        Raises:
            AGI2Error: if an argument or an option contradicts it.
        """
        file = super().find_resumed()
        if file is None:
            return None
        path = Path(file)
        planned = load_config(path if path.is_file() else path / CONFIG)
        for key in ("init_from", "sources", "text_share", "lora_rank"):
            given, value = self.keys.get(key), planned[key]
            if key == "init_from":
                given, value = Path(given or "").resolve(), Path(value or "").resolve()
                if not value.exists():  # it was moved: the checkpoint has all that is needed of it
                    continue
            if given is not None and given != value:
                raise AGI2Error(
                    f"{file} is planned already, with {key} = {safe_repr(planned[key])}, not "
                    f"{safe_repr(self.keys[key])}: leave it out, or name another run with --name"
                )
        return file

    def check(self) -> None:
        """Check what needs neither PyTorch nor the conversations; see `TextRun.check`."""
        super().check()
        for sources in (self.config.val_conversations, self.config.sources):
            if sources and not any(map(is_pipe, sources)):
                check_sources(sources, self.reading)

    def plan(self, quiet: bool) -> str:
        """Plan the run, write its configuration, and return the path of that.

        Raises:
            AGI2Error: if a source cannot be read or has no conversations.
        """
        with loading(not quiet):
            from ..train.plan_file import to_toml
            from ..train.tuning import plan_tuning
            from ..utils import write_text

        minutes = self.minutes or DEFAULT_MINUTES
        keys = {**self.keys, "conversations": self.sources}
        plan = plan_tuning(keys, minutes, self.given)
        self.make_place()
        write_text(self.file, to_toml(plan.keys, minutes, self.given, _COMMENTS))
        for line in plan.describe():
            log.info("%s", line)
        log.info("wrote %s, the configuration of this run", self.file)
        return str(self.file)
