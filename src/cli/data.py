"""The commands about training data."""

from __future__ import annotations

import typer

from .common import app

group = typer.Typer(
    help="Inspect and prepare training data.",
    no_args_is_help=True,
    rich_markup_mode=None,
)
app.add_typer(group, name="data")
