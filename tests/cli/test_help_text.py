"""The help of every command."""

import pytest
import typer

from src.cli.main import app
from tests.cli.commands import run


def commands_in(command, path=()):
    """The names of a command and of those in it, and the command."""
    yield path, command
    for name, inside in getattr(command, "commands", {}).items():
        yield from commands_in(inside, (*path, name))


COMMANDS = dict(commands_in(typer.main.get_command(app)))


@pytest.mark.parametrize("path", COMMANDS, ids=" ".join)
def test_the_help_of_every_command_fits_and_shows_words_only(path, capsys, monkeypatch):
    for width in (80, 60):
        monkeypatch.setenv("COLUMNS", str(width))
        status, out, err = run(capsys, *path, "--help")
        assert (status, err) == (0, "")
        assert [line for line in out.splitlines() if len(line) > width] == []
        assert not [word for word in ("<", "None", "range", "{") if word in out]
        command = COMMANDS[path]
        usage, text = out.splitlines()[0], out.split()
        assert usage.startswith("Usage: " + " ".join(["agi2", *path, "[OPTIONS]"]))
        for parameter in command.params:
            assert parameter.help.split()[0] in text
            if parameter.param_type_name == "argument":
                assert parameter.metavar in usage
                assert (f"[{parameter.metavar}]" in usage) == (not parameter.required)
            else:
                assert [name for name in parameter.opts if name not in out] == []
        for name, inside in getattr(command, "commands", {}).items():
            assert name in text
            assert " ".join(inside.help.split("\n\n")[0].split()) in " ".join(text)


def test_defaults_and_required_options_are_named(capsys):
    assert "Minutes to train.  [default: 10]" in run(capsys, "plan", "--help")[1]
    assert "[default: trained]" in run(capsys, "list", "--help")[1]
    assert "--out FOLDER          The folder to create.  [required]" in (
        run(capsys, "tokenizer", "train", "--help")[1]
    )
