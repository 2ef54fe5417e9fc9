"""Tokens in the terminal: colored by probability with alternatives, or as a text is split."""

from __future__ import annotations

from collections.abc import Sequence

from rich.console import Console
from rich.text import Text

from ..console import print_line, print_text
from ..errors import printable
from ..generation import Choice
from ..tokenizer import END_OF_TURN, Tokenizer

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
        tokenizer: decodes the alternatives.
    """
    console = Console(highlight=False)
    if console.is_terminal:
        text = Text(_escape(prompt))
        for choice in choices:
            text.append(_escape(choice.text), _color(choice.probability))
        console.print(text, soft_wrap=True)
    else:
        print_text(prompt + "".join(choice.text for choice in choices))
    console.print()
    console.print(choice_table(choices, tokenizer, console), soft_wrap=True)


def choice_table(choices: Sequence[Choice], tokenizer: Tokenizer, console: Console) -> Text:
    """Return a heading and a line for each token: its probability, and its alternatives.

    On a console with colors, the heading has a legend of them.
    """
    table = Text(f"probability  {'token':<14}  alternatives")
    if console.color_system and not console.no_color:
        for bound, color in PROBABILITY_COLORS:
            table.append(f"   from {bound:.0%}", color)
    table.append("\n")
    for choice in choices:
        shown = repr(choice.text) if choice.text else token_label(choice.token, tokenizer)
        table.append(f"{choice.probability:11.1%}  {shown:<14}", _color(choice.probability))
        for token, probability in choice.runners_up:
            table.append(f"  {token_label(token, tokenizer)} {probability:.1%}")
        table.append("\n")
    return table


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
    """Return a token's text in quotes, its bytes if they are not valid UTF-8, or its name."""
    names = {id: name for name, id in tokenizer.special_tokens.items()}
    if token in tokenizer.end_tokens and names.get(token) != END_OF_TURN:
        return "end of text"
    if token in names:
        return names[token]
    content = tokenizer.token_bytes(token)
    try:
        return repr(content.decode())
    except UnicodeDecodeError:
        return repr(content)
