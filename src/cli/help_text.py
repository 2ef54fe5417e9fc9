"""`--help`: arguments and options with the names and defaults of their values, and no types.

Typer's own text differs between its versions, and shows types as `<list[str]>`.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import typer
import typer.core


def _usage_pieces(command: Any, ctx: Any) -> list[str]:
    names = [
        each.metavar if each.required else f"[{each.metavar}]"
        for each in command.get_params(ctx)
        if each.param_type_name == "argument"
    ]
    return ["[OPTIONS]", *names]


def _write_parameters(command: Any, ctx: Any, formatter: Any) -> None:
    """Write the arguments and the options, in two sections."""
    for title, kind in (("Arguments", "argument"), ("Options", "option")):
        rows = [
            (_names(each), _description(each))
            for each in command.get_params(ctx)
            if each.param_type_name == kind
        ]
        if rows:
            with formatter.section(title):
                formatter.write_dl(rows)


def _names(parameter: Any) -> str:
    """Return the column of names: `-s, --set KEY=VALUE`."""
    if parameter.param_type_name == "argument":
        return str(parameter.metavar)
    names = ", ".join(sorted(parameter.opts, key=len))
    return names if parameter.is_flag else f"{names} {parameter.metavar}"


def _description(parameter: Any) -> str:
    default = parameter.default
    if parameter.required:
        is_option = parameter.param_type_name == "option"
        return str(parameter.help) + "  [required]" * is_option
    # Some versions of click have a value of their own for no default.
    if not (isinstance(default, str | int | float | Path) and default):
        return str(parameter.help)
    value = f"{default:g}" if isinstance(default, float) else default
    return f"{parameter.help}  [default: {value}]"


class HelpCommand(typer.core.TyperCommand):
    """A command with this help."""

    def collect_usage_pieces(self, ctx: Any) -> list[str]:
        """Return the words of the usage line after the command's name."""
        return _usage_pieces(self, ctx)

    def format_options(self, ctx: Any, formatter: Any) -> None:
        """Write the arguments and the options."""
        _write_parameters(self, ctx, formatter)


class HelpGroup(typer.core.TyperGroup):
    """A group of commands with this help."""

    def format_options(self, ctx: Any, formatter: Any) -> None:
        """Write the options, and the commands with the first sentence of their help."""
        _write_parameters(self, ctx, formatter)
        commands = {name: self.get_command(ctx, name) for name in self.list_commands(ctx)}
        rows = [
            (name, command.get_short_help_str(200))
            for name, command in commands.items()
            if command is not None
        ]
        with formatter.section("Commands"):
            formatter.write_dl(rows)


class HelpTyper(typer.Typer):
    """An application, or a group of commands, whose commands have this help."""

    def __init__(self, **options: Any) -> None:
        # Importing rich would double the time of --help.
        super().__init__(
            **{"cls": HelpGroup, "no_args_is_help": True, "rich_markup_mode": None, **options}
        )

    def command(self, name: str | None = None, **options: Any) -> Any:
        """Return a decorator that registers a function as a command."""
        return super().command(name, **{"cls": HelpCommand, **options})
