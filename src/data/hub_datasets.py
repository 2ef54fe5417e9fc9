"""Which files of a Hugging Face dataset are read: on the hub, or saved by `save_to_disk`."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Sequence
from pathlib import PurePosixPath
from typing import TYPE_CHECKING, Any

from ..errors import AGI2Error
from .formats import is_known, split_compression
from .patterns import match_parts
from .text_files import Skipped

if TYPE_CHECKING:
    from .remote import RemoteFile

OTHER_SPLITS = "of other splits or subsets (name them to read them)"
METADATA = "that describe a dataset"

_HUB = "hf://datasets/"
_HELD_OUT = re.compile(
    r"(?<![a-z])(test|testing|validation|valid|val|dev|eval|evaluation)(?![a-z])", re.IGNORECASE
)
# Names of files that are about a dataset.
_ABOUT = re.compile(
    r"(readme|license|licence|citation|changelog|contributing)(\..*)?"
    r"|dataset_infos?\.json|dataset_dict\.json|state\.json|.*\.py",
    re.IGNORECASE,
)
_MAX_CARD = 2**20
# Maximum number of subsets that a message names.
_NAMED = 5


def skipped_names(names: set[str]) -> dict[str, str]:
    """Return what is not read in a local folder with these names: names, each with the reason.

    Of a saved `Dataset`, these are JSON files about it; of a `DatasetDict`, all splits but `train`
    if there is one.
    """
    reasons = {}
    if any(name.endswith(".arrow") for name in names):
        reasons = dict.fromkeys(names & {"dataset_info.json", "state.json"}, METADATA)
    if "dataset_dict.json" in names:
        reasons["dataset_dict.json"] = METADATA
        if "train" in names:
            others = {name for name in names - {"train"} if "." not in name}
            reasons |= dict.fromkeys(others, OTHER_SPLITS)
    return reasons


def is_dataset(name: str) -> bool:
    """Return whether a URL names a dataset on the hub (and a revision), not files in it."""
    if not name.lower().startswith(_HUB) or re.search(r"[*?\[]", name):
        return False
    dataset, _, revision = name[len(_HUB) :].rstrip("/").partition("@")
    is_whole = re.fullmatch("(refs/(convert|pr)/)?[^/]*", revision) is not None
    return dataset.count("/") == 1 and is_whole


def choose_files(
    name: str, base: str, files: Sequence[RemoteFile], skipped: Skipped
) -> list[RemoteFile]:
    """Return the files of the training split of a dataset.

    They are those that its card (`README.md`) names; by default, those in its most common format
    whose names do not say that they are for tests or validation.

    Args:
        name: the URL of the dataset.
        base: its path on the file system.
        files: all files.
        skipped: counts those that are not read.

    Raises:
        AGI2Error: if it has several subsets, or several splits without one for training.
    """
    parts = {file: file.path.removeprefix(base).strip("/").split("/") for file in files}
    card = next((file for file in files if parts[file] == ["README.md"]), None)
    patterns = [] if card is None else _training_patterns(name, _read_card(card))
    data = {file for file in files if _is_data(parts[file])}
    if patterns:
        chosen = [
            file
            for file in files
            if any(match_parts(parts[file], pattern.split("/")) for pattern in patterns)
        ]
    else:
        chosen = _in_common_format(sorted(data, key=str))
        chosen = [f for f in chosen if not _HELD_OUT.search("/".join(parts[f]))] or chosen
    kept = set(chosen)
    for file in files:
        if file not in kept:
            reason = OTHER_SPLITS if file in data else METADATA
            skipped.add(reason, str(file), size=file.size)
    if not chosen:
        raise AGI2Error(
            f"{name}: no file of this dataset has a format that is read; the hub may have a copy "
            f"in Parquet: {name.rstrip('/').partition('@')[0]}@refs/convert/parquet"
        )
    return chosen


def _is_data(parts: Sequence[str]) -> bool:
    is_hidden = any(part.startswith(".") for part in parts)
    return is_known(parts[-1]) and not is_hidden and not _ABOUT.fullmatch(parts[-1])


def _in_common_format(files: Sequence[RemoteFile]) -> list[RemoteFile]:
    """Return the files with the most common suffix."""
    suffixes = {f: PurePosixPath(split_compression(f.name)[0]).suffix.lower() for f in files}
    if not files:
        return []
    common = Counter(suffixes.values()).most_common(1)[0][0]
    return [file for file in files if suffixes[file] == common]


def _read_card(file: RemoteFile) -> list[Any]:
    """Return the subsets that a dataset's card lists; none if it lists none."""
    with file.open() as stream:
        text = stream.read(_MAX_CARD).decode("utf-8", "replace")
    front = re.match(r"---\r?\n(.*?)\r?\n---\s", text, re.DOTALL)
    if front is None:
        return []
    import yaml

    try:
        content = yaml.safe_load(front[1])
    except (yaml.YAMLError, RecursionError, ValueError):
        return []
    configs = content.get("configs") if isinstance(content, dict) else None
    return [each for each in configs if isinstance(each, dict)] if isinstance(configs, list) else []


def _training_patterns(name: str, subsets: Sequence[dict[str, Any]]) -> list[str]:
    """Return the patterns of the files to train on; none if the card does not name them."""
    splits = {str(each.get("config_name", "default")): _splits(each) for each in subsets}
    splits = {subset: each for subset, each in splits.items() if each}
    if not splits:
        return []
    defaults = [str(s.get("config_name")) for s in subsets if s.get("default") is True]
    subset = next((each for each in (*defaults, "default") if each in splits), None)
    if subset is None:
        if len(splits) > 1:
            raise AGI2Error(_choice(name, "subsets", splits))
        [subset] = splits
    found = splits[subset]
    if "train" not in found and len(found) > 1:
        raise AGI2Error(
            _choice(name, "splits and none is called train", {k: {k: v} for k, v in found.items()})
        )
    return found["train"] if "train" in found else next(iter(found.values()))


def _choice(name: str, what: str, splits: dict[str, dict[str, list[str]]]) -> str:
    """Return a message that asks to name the files of one of several subsets or splits."""
    names = list(splits)
    more = ", ..." if len(names) > _NAMED else ""
    first = splits[names[0]]
    patterns = first.get("train") or next(iter(first.values()))
    return (
        f"{name}: it has {len(names):,} {what} ({', '.join(names[:_NAMED])}{more}): name the files "
        f"of one, such as {name.rstrip('/')}/{patterns[0]}"
    )


def _splits(subset: dict[str, Any]) -> dict[str, list[str]]:
    """Return the patterns of each split of a subset, as a card describes it."""
    files, folder = subset.get("data_files"), subset.get("data_dir")
    if files is None and isinstance(folder, str):
        files = f"{folder.strip('/')}/**"
    if isinstance(files, dict):
        found = {str(split): _texts(paths) for split, paths in files.items()}
    elif isinstance(files, list) and any(isinstance(each, dict) for each in files):
        entries = [each for each in files if isinstance(each, dict)]
        found = {str(each.get("split", "train")): _texts(each.get("path")) for each in entries}
    else:
        found = {"train": _texts(files)}
    return {split: patterns for split, patterns in found.items() if patterns}


def _texts(value: Any) -> list[str]:
    values = value if isinstance(value, list) else [value]
    return [each for each in values if isinstance(each, str)]
