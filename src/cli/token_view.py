"""Tokens in the terminal: colored by probability with alternatives, or as a text is split."""

from __future__ import annotations

from collections.abc import Sequence

from rich.console import Console
from rich.text import Text

from ..console import print_line, print_text
from ..errors import printable
from ..generation import Choice
from ..tokenizer import Tokenizer

# Lower bound of the probability for each color.
PROBABILITY_COLORS = (
    (0.5, "green"),
    (0.2, "cyan"),
    (0.05, "yellow"),
    (0.01, "magenta"),
    (0.0, "red"),
)


def print_choices(prompt: str, choices: Sequence[Choice], tokenizer: Tokenizer) -> None:
    """Print a prompt and its continuation, then a line with the probability of each token.

    In a terminal, tokens are colored by their probability.

    Args:
        prompt: printed first, without color.
        choices: the continuation, from `generate_choices`.
        tokenizer: decodes the runners-up.
    """
    console = Console(highlight=False)
    text, lines = Text(_escape(prompt)), Text()
    for choice in choices:
        color = _color(choice.probability)
        shown = repr(choice.text) if choice.text else token_label(choice.token, tokenizer)
        text.append(_escape(choice.text), color)
        lines.append(f"{choice.probability:7.1%}  {shown:<14}", color)
        for token, probability in choice.runners_up:
            lines.append(f"  {token_label(token, tokenizer)} {probability:.1%}")
        lines.append("\n")
    legend = Text("probability  token  runners-up   ")
    for bound, color in PROBABILITY_COLORS:
        legend.append(f"  from {bound:.0%}", color)
    if console.is_terminal:
        console.print(text, soft_wrap=True)
    else:
        print_text(prompt + "".join(choice.text for choice in choices))
    for part in (Text(), legend, lines):
        console.print(part, soft_wrap=True)


# Backgrounds of adjacent tokens, of which two equal ones never touch.
_SPLIT_COLORS = ("black on cyan", "black on green", "black on yellow", "black on magenta")


def print_split(tokens: Sequence[int], tokenizer: Tokenizer) -> None:
    """Print tokens one after the other: colored in a terminal, else with bars between.

    Control characters and bytes that are not valid UTF-8 are escaped. After a line end, a new line
    begins.

    Args:
        tokens: token ids, (N,).
        tokenizer: decodes them.
    """
    console = Console(highlight=False)
    text = Text()
    for index, token in enumerate(tokens):
        if index and not console.is_terminal and not text.plain.endswith("\n"):
            text.append("|")
        content = tokenizer.token_bytes(token)
        shown = printable(content.decode("utf-8", "backslashreplace"))
        text.append(shown, _SPLIT_COLORS[index % len(_SPLIT_COLORS)])
        if content.endswith(b"\n"):
            text.append("\n")
    if console.is_terminal:
        console.print(text, soft_wrap=True)
    else:
        print_line(text.plain)


def _escape(text: str) -> str:
    return printable(text, keep="\n\t")


def _color(probability: float) -> str:
    return next(color_name for bound, color_name in PROBABILITY_COLORS if probability >= bound)


def token_label(token: int, tokenizer: Tokenizer) -> str:
    """Return a token's text in quotes, or its bytes if they are not valid UTF-8."""
    if token in tokenizer.end_tokens:
        return "end of text"
    content = tokenizer.token_bytes(token)
    try:
        return repr(content.decode())
    except UnicodeDecodeError:
        return repr(content)
