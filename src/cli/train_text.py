"""Training on a text without a configuration: `agi2 train my_book.txt` plans one first."""

from __future__ import annotations

import glob
import itertools
import os
import re
import shlex
import stat
import tomllib
import urllib.parse
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..command_line import command_line
from ..config import Config
from ..config_loader import CONFIG, load_config, make_config, parse_override
from ..data.corpus import check_sources
from ..data.documents import ReadOptions
from ..data.formats import without_suffix
from ..data.text_files import STDIN
from ..errors import AGI2Error, mask_urls
from ..foreign_models import is_gguf
from ..formats.run_dir import (
    CHECKPOINTS,
    METRICS,
    TOKENIZER,
    WEIGHTS,
    check_output,
    check_tokenizer,
    run_folder,
)
from ..train.folder_lock import FolderLock
from ..train.trackers import check_log_to
from ..utils import convert_write_errors, log
from .saved_input import SavedInput, is_pipe
from .startup import loading

DEFAULT_MINUTES = 10.0
_MAX_CONFIGURATION_BYTES = 2**20
_BUILTIN = "builtin:"
_URL = re.compile(r"[a-z][a-z0-9+.-]+://", re.IGNORECASE)
# The planner lets `max_minutes` be this fraction of the minutes.
_TRAINING_FRACTION = 0.95
# Keys that are checked together with the shape that the plan chooses.
_SHAPE_KEYS = {"preset", "seq_len", "batch_size", "micro_batch_size", "max_context_length"}


def find_configuration(paths: Sequence[str]) -> str | None:
    """Return the configuration or the run among the arguments of `train`; `None` if all are texts.

    A configuration is a `.toml` file or, named alone, any file with the keys of one, or a pipe.

    Raises:
        AGI2Error: if it is not the only argument.
    """
    is_alone = len(paths) == 1
    found = next((path for path in paths if _is_configuration(path, is_alone)), None)
    if found is not None and not is_alone:
        raise AGI2Error(
            f"{found} is a configuration or a run: name it alone, or name only texts to train on"
        )
    return found


def _is_configuration(path: str, is_alone: bool) -> bool:
    if not _is_path(path):
        return False
    if os.path.isdir(path):
        return _is_model_folder(Path(path))
    if path.lower().endswith(".toml") or not path or is_gguf(path):
        return True
    if not is_alone:
        return False
    is_part = Path(path).name in (WEIGHTS, TOKENIZER, METRICS)
    if is_part and (Path(path).parent / CONFIG).is_file():
        return True
    try:
        return stat.S_ISFIFO(os.stat(path).st_mode) or _has_keys(Path(path))
    except (OSError, ValueError):  # ValueError: a NUL in the name
        return False


def _is_path(source: str) -> bool:
    """Return whether a source names a file or files of this machine by a path."""
    return source != str(STDIN) and not _URL.match(source) and not source.startswith(_BUILTIN)


def _is_model_folder(folder: Path) -> bool:
    """Return whether a folder is or contains runs, checkpoints or models, rather than texts."""
    parts = (WEIGHTS, METRICS, CHECKPOINTS)
    if (folder / CONFIG).is_file():
        return any((folder / part).exists() for part in parts) or _has_keys(folder / CONFIG)
    if folder.name == CHECKPOINTS and (folder.parent / CONFIG).is_file():
        return True
    if (folder / "config.json").is_file():
        return any(True for kind in ("safetensors", "bin") for _ in folder.glob(f"*.{kind}"))
    runs = (file.parent for file in folder.glob(f"*/{CONFIG}"))
    return any((run / part).exists() for run in runs for part in parts)


def _has_keys(path: Path) -> bool:
    """Return whether a file is TOML with the keys that every configuration of a run has."""
    try:
        if not path.is_file() or path.stat().st_size > _MAX_CONFIGURATION_BYTES:
            return False
        content = tomllib.loads(path.read_bytes().decode("utf-8-sig"))
    except (OSError, ValueError, RecursionError):
        return False
    return "model_name" in content or "sources" in content


@dataclass
class TextRun:
    """A run on texts that has no configuration yet."""

    sources: list[str]
    config: Config
    """The keys that do not depend on the plan."""
    given: dict[str, Any]
    """The keys that the user has set, without `sources`, `model_name` and `resume`."""
    minutes: float | None
    is_resumed: bool

    @classmethod
    def from_arguments(
        cls,
        paths: Sequence[str],
        minutes: float | None,
        name: str | None,
        overrides: Sequence[str],
        resume: bool,
    ) -> TextRun:
        """Check the arguments of `train`.

        Raises:
            AGI2Error: if one is not valid or contradicts another.
        """
        check_one_process(
            f"{command_line(f'plan {shlex.quote(paths[0])}')} writes one; then name it"
        )
        for path in paths:
            check_exists(path)
        given = dict(map(parse_override, overrides))
        name = name_for(paths, name, given)
        resume = is_resumed(given) or resume
        config = check_keys(list(paths), name, given)
        minutes = minutes_for(minutes, given)
        return cls(list(paths), config, given, minutes, resume)

    @property
    def file(self) -> Path:
        """The configuration that is written: NAME.toml beside the folder NAME of the run."""
        return Path(self.config.output_dir) / f"{self.config.model_name}.toml"

    @property
    def reading(self) -> ReadOptions:
        """How the sources are read."""
        return ReadOptions.from_config(self.config)

    def check(self) -> None:
        """Check what needs neither PyTorch nor the text.

        Raises:
            AGI2Error: if a source is missing, or the run cannot be written.
        """
        config = self.config
        check_output(config)
        check_log_to(config.log_to)
        check_tokenizer(config)
        FolderLock(run_folder(config)).release()  # raises if another process is training there
        for sources in (config.val_sources, [each for each in self.sources if not is_pipe(each)]):
            if sources:
                check_sources(sources, self.reading)

    def sources_of(self, config: Config) -> list[str]:
        """Return what a configuration says that this run trains on."""
        return config.sources

    def find_resumed(self) -> str | None:
        """Return the configuration of the run to resume; `None` if there is none, or to begin anew.

        Raises:
            AGI2Error: if it is a run on other texts.
        """
        folder = run_folder(self.config)
        file = self.file if self.file.is_file() else folder
        if not self.is_resumed or not (file.is_file() or (folder / CONFIG).is_file()):
            return None
        sources = self.sources_of(load_config(file if file.is_file() else folder / CONFIG))
        if sources != self.sources:
            resume = command_line(f"train {shlex.quote(str(file))} --resume")
            raise AGI2Error(
                f"{file} trains on {', '.join(sources)}, not on {', '.join(self.sources)}: name "
                f"another run with --name, or resume that one: {resume}"
            )
        if self.minutes is not None:
            raise AGI2Error(
                f"--minutes: {file} is planned already; to train longer, resume it with its time "
                f"in all: --set max_minutes={self.minutes:g}"
            )
        return str(file)

    def plan(self, quiet: bool) -> str:
        """Plan the run, write its configuration, and return the path of that.

        Raises:
            AGI2Error: if a source cannot be read, the text is too short, or no plan has the keys
                that the user has set.
        """
        with loading(not quiet):
            from ..cuda_utils import select_device
            from ..train.plan_file import describe_corpus, describe_plan, write_plan
            from ..train.planner import Corpus, choose_shape

        minutes = self.minutes or DEFAULT_MINUTES
        # The run reads the text again, and logs what it read.
        corpus = Corpus.read(self.sources, self.reading, seed=self.config.seed, is_logged=False)
        device = select_device(self.config.device)
        log.info("%s", describe_corpus(corpus, device))
        plan = choose_shape(corpus, minutes, device, self.config.model_name, self.given)
        self.make_place()
        write_plan(plan, self.file)
        for line in describe_plan(plan, minutes):
            log.info("%s", line)
        log.info("wrote %s, the configuration of this run", self.file)
        return str(self.file)

    def make_place(self) -> None:
        """Create the folder of the configuration; move that of an earlier run aside."""
        with convert_write_errors(self.file):
            self.file.parent.mkdir(parents=True, exist_ok=True)
            _move_aside(self.file)

    def configure(self, quiet: bool) -> str:
        """Return the configuration to train with: the one to resume, or a new plan.

        Pipes are saved to files, which are deleted if there is no configuration.
        """
        saved: dict[str, SavedInput] = {}
        try:
            for index, source in enumerate(self.sources):
                if is_pipe(source):
                    if source not in saved:  # it can be read only once
                        saved[source] = SavedInput.save(source, self.file.with_suffix(""))
                    self.sources[index] = str(saved[source].path)
            check_sources(self.sources, self.reading)
            return self.find_resumed() or self.plan(quiet)
        except BaseException:
            for each in saved.values():
                each.discard()
            raise


def check_one_process(advice: str) -> None:
    """Raise if this is one of several processes, which cannot plan."""
    if int(os.environ.get("WORLD_SIZE", 1)) > 1:
        raise AGI2Error(f"several processes need a configuration: {advice}")


def check_exists(path: str) -> None:
    """Raise if a source is a path that does not exist."""
    if (
        _is_path(path)
        and not os.path.lexists(os.path.expanduser(path))
        and not glob.has_magic(path)
    ):
        raise AGI2Error(
            f"{path}: no such file or folder; name a text, a TOML file, or a run: "
            f"{command_line('list')} shows the runs"
        )


def name_for(paths: Sequence[str], name: str | None, given: dict[str, Any]) -> str:
    """Return the run's name: as given, or by the first source."""
    if "sources" in given:
        raise AGI2Error("--set sources: name the texts as arguments")
    chosen = given.pop("model_name", None)
    if name is not None and chosen not in (None, name):
        raise AGI2Error(f"--name {name} and --set model_name={chosen}: give one of them")
    return name or chosen or default_name(paths[0])


def is_resumed(given: dict[str, Any]) -> bool:
    """Take `resume` out of the keys that the user has set; return whether to resume."""
    if given.get("init_from"):
        raise AGI2Error(
            "--set init_from: a plan is for a new model; write a configuration: "
            + command_line("init")
        )
    resume = given.pop("resume", None)
    if resume not in (None, "", False, True, "auto"):
        raise AGI2Error(f"--set resume={resume}: name the run's folder or its TOML file to train")
    return bool(resume)


def minutes_for(minutes: float | None, given: dict[str, Any]) -> float | None:
    """Return the minutes of a run: as given, or by the key `max_minutes`."""
    limit = given.get("max_minutes") or None
    if minutes is None:
        return None if limit is None else float(limit) / _TRAINING_FRACTION
    if limit is not None:
        raise AGI2Error("--minutes and --set max_minutes: give one of them")
    return minutes


def check_keys(sources: list[str], name: str, given: dict[str, Any]) -> Config:
    """Return the configuration of the keys that do not depend on the plan; check all of them."""
    wrong = [
        f"--set {key}: {problem}"
        for key, problem in Config.problems({**given, "model_name": name})
        if key is not None
    ]
    if wrong:
        raise AGI2Error(*wrong)
    locations = {key: f"--set {key}" for key in given} | {"model_name": "--name"}
    free = {
        key: value
        for key, value in given.items()
        if key not in _SHAPE_KEYS and not key.startswith("model_")
    }
    values = {**free, "sources": sources, "model_name": name}
    return make_config(values, "training", "the command line", locations)


def default_name(source: str) -> str:
    """Return the name of a run on a source: that of the folder or file, without its format."""
    if source == str(STDIN):
        return "stdin"
    if source.startswith(_BUILTIN):
        name = source.removeprefix(_BUILTIN)
    elif _URL.match(source):
        url = urllib.parse.urlsplit(mask_urls(source))
        name = without_suffix(urllib.parse.unquote(Path(url.path).name)) or url.hostname or ""
    elif glob.has_magic(source) and not os.path.lexists(source):
        parts = itertools.takewhile(lambda part: not glob.has_magic(part), Path(source).parts)
        name = Path(*parts).name
    elif os.path.isdir(os.path.expanduser(source)):
        name = Path(source).expanduser().resolve().name
    else:
        name = without_suffix(Path(source).name)
    name = re.sub(r"[/\\\x00-\x1f]", "_", name).strip()
    name = name.encode("utf-8", "replace")[:_MAX_NAME_BYTES].decode("utf-8", "ignore")
    return "text" if name in ("", ".", "..") else name


# The suffixes of files and folders that are named like the run must fit, too.
_MAX_NAME_BYTES = 120


def _move_aside(file: Path) -> None:
    """Rename the configuration of an earlier run to NAME.1.toml, NAME.2.toml, ..."""
    if not os.path.lexists(file):
        return
    for number in itertools.count(1):
        aside = file.with_name(f"{file.stem}.{number}.toml")
        # With the number that the folder of that run will have, as far as it can be known.
        if not (os.path.lexists(aside) or os.path.lexists(aside.with_suffix(""))):
            break
    os.rename(file, aside)
    log.info("%s exists: moved to %s", file, aside)
