"""Fine-tuning without a configuration: `agi2 tune MODEL chats.jsonl` plans one first."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ..config import Config
from ..config_loader import CONFIG, load_config, make_config, parse_override
from ..data.corpus import check_sources, one_key_for
from ..data.documents import ReadOptions
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
    "init_from": "The model to fine-tune, and the {data}.",
    "batch_size": "Small batches, so that an epoch has many steps.",
    "learning_rate": "For a model of this size.",
    "max_minutes": "The learning rate falls with this clock.",
    "max_steps": "More epochs over these {data} would hardly lower the loss.",
    "eval_interval": "About a dozen validations on held-out {data}.",
}


@dataclass
class TuningRun(TextRun):
    """Fine-tuning that has no configuration yet; `sources` are conversations, or pairs."""

    keys: dict[str, Any] = field(default_factory=dict)
    """The keys that the arguments give, without that of the sources."""
    are_pairs: bool = False
    """Whether the sources are pairs of preferences."""

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
            chats: the conversations, or pairs of preferences.
            keys: `sources`, `text_share` and `lora_rank`, if given.
            minutes: the time limit.
            name: the name of the run; by default that of the model and `-chat`, or `-dpo`.
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
        # A run is resumed without the model that it began with: it may have been moved.
        is_moved = resume and not os.path.lexists(model)
        folder = Path(model) if is_moved else _folder_of(model)
        if not is_moved:
            check_weights(folder, model)
        if doubled := given.keys() & {"conversations", "preferences", *keys}:
            raise AGI2Error(f"--set {min(doubled)}: give it as an argument or an option")
        if pipes := [source for source in keys.get("sources", ()) if is_pipe(source)]:
            raise AGI2Error(f"--text {pipes[0]}: name a file: the plan and the run both read it")
        has_pairs = _are_pairs(chats, _reading(given))
        if name is None and "model_name" not in given:
            name = f"{folder.resolve().name}-{'dpo' if has_pairs else 'chat'}"
        keys = {"init_from": str(folder), **keys, "model_name": name_for([], name, given)}
        minutes = minutes_for(minutes, given)
        resumed = {"resume": "auto"} if is_moved else {}
        config = _configured(keys, chats, {**given, **resumed}, has_pairs)
        return cls(list(chats), config, given, minutes, resume, keys, has_pairs)

    def sources_of(self, config: Config) -> list[str]:
        """Return the conversations or pairs of a configuration."""
        return config.conversations or config.preferences

    def find_resumed(self) -> str | None:
        """Return the configuration of the run to resume; see `TextRun.find_resumed`.

        Raises:
            AGI2Error: if an argument or an option contradicts it.
        """
        # What came from a pipe is in a file now.
        if _are_pairs(self.sources, self.reading) != self.are_pairs:
            self.are_pairs = not self.are_pairs
            self.config = _configured(self.keys, self.sources, self.given, self.are_pairs)
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
        for key in ("val_conversations", "val_preferences", "sources"):
            sources = self.config[key]
            if sources and not any(map(is_pipe, sources)):
                check_sources(sources, self.reading)

    def plan(self, quiet: bool) -> str:
        """Plan the run, write its configuration, and return the path of that.

        Raises:
            AGI2Error: if a source cannot be read or has no conversations or pairs.
        """
        with loading(not quiet):
            from ..train.plan_file import to_toml
            from ..train.tuning import plan_tuning
            from ..utils import write_text

        minutes = self.minutes or DEFAULT_MINUTES
        plan = plan_tuning(
            _keys(self.keys, self.sources, self.given, self.are_pairs), minutes, self.given
        )
        data = "pairs" if self.are_pairs else "conversations"
        comments = {key: comment.format(data=data) for key, comment in _COMMENTS.items()}
        self.make_place()
        write_text(self.file, to_toml(plan.keys, minutes, self.given, comments))
        for line in plan.describe():
            log.info("%s", line)
        log.info("wrote %s, the configuration of this run", self.file)
        return str(self.file)


def _folder_of(model: str) -> Path:
    """Return the folder of a model; see `model_folder`.

    Raises:
        AGI2Error: if it is none, such as conversations that were named first.
    """
    try:
        return model_folder(model)
    except AGI2Error as error:
        if os.path.isfile(model) and Path(model).suffix.lower() != ".toml":
            raise AGI2Error(
                f"{model} is not a model: the model is named first, then conversations or pairs"
            ) from error
        raise


def _are_pairs(sources: Sequence[str], reading: ReadOptions) -> bool:
    """Return whether sources are pairs of preferences; pipes are not."""
    return one_key_for(sources, reading) == "preferences"


def _reading(given: Mapping[str, Any]) -> ReadOptions:
    """Return how sources are read, by the keys that the user has set."""
    keys = {key: given[key] for key in given.keys() & ReadOptions.keys()}
    locations = {key: f"--set {key}" for key in keys}
    return ReadOptions.from_config(make_config(keys, None, "the command line", locations))


def _configured(
    keys: Mapping[str, Any], sources: Sequence[str], given: Mapping[str, Any], has_pairs: bool
) -> Config:
    """Return the configuration of the keys that do not depend on the plan.

    Raises:
        AGI2Error: if one is not valid or contradicts another.
    """
    for option, key in (("--text", "sources"), ("--text-share", "text_share")):
        if has_pairs and key in keys:
            raise AGI2Error(
                f"{option}: {sources[0]} has pairs of preferences, which are trained on alone: "
                "leave it out"
            )
    values = {**_keys(keys, sources, given, has_pairs), **given}
    locations = {key: f"--set {key}" for key in given} | {"model_name": "--name"}
    return make_config(values, "training", "the command line", locations)


def _keys(
    keys: Mapping[str, Any], sources: Sequence[str], given: Mapping[str, Any], has_pairs: bool
) -> dict[str, Any]:
    """Return the keys that the arguments give, and the default of one."""
    data = "preferences" if has_pairs else "conversations"
    found = {"init_from": "", data: list(sources), **keys}  # in the order of the file
    if keys.get("sources") and "text_share" not in {**keys, **given}:
        found["text_share"] = DEFAULT_TEXT_SHARE
    return found
