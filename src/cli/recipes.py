"""Recipes: the configurations in `resources/`, from which `agi2 init` writes others."""

from __future__ import annotations

import os
import re
import shlex
from collections.abc import Sequence
from pathlib import Path

import tomli_w

from ..command_line import command_line
from ..config_loader import make_config
from ..console import print_line
from ..data.corpus import check_sources
from ..errors import AGI2Error, mask_urls, one_line
from ..formats.run_dir import name_of
from ..utils import write_text
from .train_text import default_name

# In a wheel, the folder `resources` is inside the package; in a checkout, beside it.
_PACKAGE = Path(__file__).resolve().parents[1]
_FOLDERS = (_PACKAGE / "resources", _PACKAGE.parent / "resources")


def list_recipes() -> list[str]:
    """Return the names of the recipes."""
    return sorted(path.stem for folder in _FOLDERS for path in folder.glob("*.toml"))


def read_recipe(name: str) -> str:
    """Return the text of a recipe.

    Raises:
        AGI2Error: if there is none of this name.
    """
    if name not in list_recipes():
        raise AGI2Error(f"--recipe: {name!r} is none of {', '.join(list_recipes())}")
    path = next(path for path in (folder / f"{name}.toml" for folder in _FOLDERS) if path.exists())
    return path.read_text(encoding="utf-8")


def write_recipe(sources: Sequence[str], recipe: str, output: str | None, force: bool) -> None:
    """Write the configuration of a recipe for a text.

    Args:
        sources: the text.
        recipe: the recipe's name.
        output: the file; by default NAME.toml, for the name of the first source.
        force: whether to overwrite the file.

    Raises:
        AGI2Error: if a source is missing, there is no such recipe, or the file exists.
    """
    text = read_recipe(recipe)
    path = Path(f"{default_name(sources[0])}.toml" if output is None else output)
    if not force and os.path.lexists(path):
        raise AGI2Error(f"{path} exists: name another file with --output, or give --force")
    check_sources(list(sources))
    text = _filled(text, recipe, sources, name_of(path))
    write_text(path, text, private=mask_urls(text) != text)
    quoted = shlex.quote(str(path))
    doctor, train = (command_line(f"{name} {quoted}") for name in ("doctor", "train"))
    print_line(f"wrote {path}; next: {doctor}, {train}")


def _filled(text: str, recipe: str, sources: Sequence[str], name: str) -> str:
    """Return a recipe with the sources and the name of a run.

    Raises:
        AGI2Error: if the name is not one of a run.
    """
    keys = {"sources": list(sources), "model_name": name}
    make_config(keys, "training", "--output")
    for key, value in keys.items():
        line = tomli_w.dumps({key: value}).rstrip("\n")
        text = re.sub(rf"^{key} = .*$", line.replace("\\", r"\\"), text, flags=re.M)
    what = one_line(", ".join(sources), 100)
    head = f"# For {what}, from the recipe {recipe}: what it says was reached is on its own text."
    return f"{head}\n#\n{text}"
