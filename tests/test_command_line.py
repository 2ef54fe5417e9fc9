"""Commands in messages can be typed as they are, however `agi2` was started."""

import ast
import os
import re
import shlex
import sys
import types
from importlib.machinery import SourceFileLoader
from pathlib import Path

import pytest
import typer

import src
from src import __version__
from src.cli.main import app
from src.command_line import command_line


def messages():
    """Each string in `src` that is not a docstring, with the name of its file."""
    for path in sorted(Path(src.__file__).parent.rglob("*.py")):
        tree = ast.parse(path.read_text(encoding="utf-8"))
        docstrings = {id(each.value) for each in ast.walk(tree) if isinstance(each, ast.Expr)}
        for node in ast.walk(tree):
            if isinstance(node, ast.Constant) and id(node) not in docstrings:
                yield path.name, str(node.value)


def test_no_message_has_a_command_of_its_own():
    names = "|".join(typer.main.get_command(app).commands)
    own = re.compile(rf"\bagi2 ({names})\b|\buv run\b|\bpython -m\b")
    found = {name: text for name, text in messages() if own.search(text)}
    assert found == {"command_line.py": "uv run agi2"}


def set_empty_path(monkeypatch, tmp_path):
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setattr(sys, "argv", [str(tmp_path / "program.py")])


def test_under_uv_the_command_has_uv(monkeypatch):
    monkeypatch.setenv("UV_RUN_RECURSION_DEPTH", "1")
    assert command_line("train 'my book.toml'") == "uv run agi2 train 'my book.toml'"


def test_a_command_on_the_path_has_only_its_name(monkeypatch, tmp_path):
    set_empty_path(monkeypatch, tmp_path)
    suffix = ".bat" if os.name == "nt" else ""
    (tmp_path / f"agi2{suffix}").touch(0o755)
    assert command_line("list") == "agi2 list"


def test_a_command_of_an_inactive_environment_has_its_path(monkeypatch, tmp_path):
    set_empty_path(monkeypatch, tmp_path / "nowhere")
    script = tmp_path / "my env" / "agi2"
    script.parent.mkdir()
    script.touch(0o755)
    monkeypatch.setattr(sys, "argv", [str(script), "list"])
    assert command_line("list") == f"{shlex.quote(str(script))} list"


@pytest.mark.parametrize(("python", "shown"), [("python3", "python3"), ("", "python")])
def test_without_the_command_python_runs_the_package(monkeypatch, tmp_path, python, shown):
    set_empty_path(monkeypatch, tmp_path)
    monkeypatch.setattr(sys, "orig_argv", [python])
    assert command_line("list") == f"{shown} -m src list"


def test_the_package_can_be_run(monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["__main__.py", "--version"])
    module = types.ModuleType("__main__")
    module.__package__ = "src"
    module.__file__ = str(Path(src.__file__).with_name("__main__.py"))
    loader = SourceFileLoader("__main__", module.__file__)
    with pytest.raises(SystemExit, match=r"^0$"):
        loader.exec_module(module)
    assert capsys.readouterr().out == f"agi2 {__version__}\n"
