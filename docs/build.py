"""Build the documentation site into `build/site`; `--serve` shows it and follows changes.

`uv run --extra docs docs/build.py`

The reference pages include what is generated here from the code: the configuration keys from
`Config`, the help of the commands from the Typer application. mkdocstrings adds the API from the
docstrings. A broken link or a missing name fails the build.
"""

import ast
import inspect
import subprocess
import sys
import textwrap
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path
from types import NoneType
from typing import Annotated, Any, Literal, get_args, get_origin

import typer
from typer.testing import CliRunner

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from src.cli.main import app  # noqa: E402
from src.config import Config  # noqa: E402
from src.config_keys import DataConfig, GenerationConfig, ModelConfig, TrainConfig  # noqa: E402
from src.utils import json_line  # noqa: E402

GENERATED = ROOT / "build" / "reference"
_NAMES = {bool: "boolean", int: "integer", float: "number", str: "string"}


def configuration_reference() -> str:
    """Return a table of the configuration keys for each section of `Config`, as Markdown."""
    defaults, lines = Config(), list[str]()
    for heading, key, docstring in _documented_keys():
        if heading:
            lines += ["", f"## {heading}", "", "| key | type | default | meaning |"]
            lines += ["|---|---|---|---|"]
        value = defaults[key]
        default = "" if value is None else f"`{json_line(value)}`"
        kind = " or ".join(_types(Config.model_fields[key].annotation))
        lines.append(f"| `{key}` | {kind} | {default} | {docstring} |")
    return "\n".join(lines[1:]) + "\n"


def _documented_keys() -> Iterator[tuple[str, str, str]]:
    """Yield each key with its docstring, and the heading if it is the first of a section."""
    for section in (DataConfig, ModelConfig, TrainConfig, GenerationConfig):
        source = textwrap.dedent(inspect.getsource(section))
        lines = source.splitlines()
        [tree] = ast.parse(source).body
        assert isinstance(tree, ast.ClassDef)
        for field, below in pairwise(tree.body):
            if not isinstance(field, ast.AnnAssign) or not isinstance(below, ast.Expr):
                continue
            assert isinstance(field.target, ast.Name)
            comment = lines[field.lineno - 2].strip()
            heading = comment[2:].rstrip(".") if comment.startswith("# ") else ""
            yield heading, field.target.id, " ".join(ast.literal_eval(below.value).split())


def _types(annotation: Any) -> Iterator[str]:
    """Yield the alternatives of a type annotation, in the words of TOML and JSON."""
    origin, parts = get_origin(annotation), get_args(annotation)
    if origin is Literal:
        yield from (f"`{json_line(value)}`" for value in parts)
    elif origin is Annotated:
        yield from _types(parts[0])
    elif origin is list:
        yield f"list of {' or '.join(_plurals(parts[0]))}"
    elif origin is dict:
        yield f"table of {' or '.join(_plurals(parts[1]))}"
    elif parts:
        for part in parts:
            yield from _types(part)
    elif annotation is not NoneType:
        yield _NAMES[annotation]


def _plurals(annotation: Any) -> list[str]:
    return [kind if kind.startswith("`") else f"{kind}s" for kind in _types(annotation)]


def command_reference() -> str:
    """Return the help of `agi2` and of each command, as Markdown."""
    commands = typer.main.get_command(app).commands  # type: ignore[attr-defined]
    parts = [f"```text\n{_help()}```\n"]
    for name, command in commands.items():
        parts.append(f"## {name}\n\n```text\n{_help(name)}```\n")
        for inside in getattr(command, "commands", {}):  # of a group
            parts.append(f"### {name} {inside}\n\n```text\n{_help(name, inside)}```\n")
    return "\n".join(parts)


def _help(*command: str) -> str:
    result = CliRunner().invoke(
        app, [*command, "--help"], prog_name="agi2", env={"COLUMNS": "100"}, catch_exceptions=False
    )
    return result.output.rstrip() + "\n"


def main() -> None:
    """Generate the reference and run Zensical."""
    GENERATED.mkdir(parents=True, exist_ok=True)
    for name, text in (
        ("configuration.md", configuration_reference()),
        ("command_line.md", command_reference()),
    ):
        (GENERATED / name).write_text(text, encoding="utf-8")
    serve = sys.argv[1:] == ["--serve"]
    command = ["serve"] if serve else ["build", "--clean", "--strict"]
    raise SystemExit(subprocess.call([sys.executable, "-m", "zensical", *command], cwd=ROOT))


if __name__ == "__main__":
    main()
