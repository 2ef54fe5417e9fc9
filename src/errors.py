"""`AGI2Error`, the one exception that means: the user can fix this; and text safe to print."""

import re
from collections.abc import Mapping
from typing import Any

MAX_LINE = 300
"""Characters of a line of a message: input that is quoted in it may be of any length."""

# C0 and C1 controls, line and paragraph separators, overrides of the writing direction, and halves
# of surrogate pairs (what Python makes of a file name that is not UTF-8).
_UNPRINTABLE = re.compile(
    r"[\x00-\x1f\x7f-\x9f\u2028\u2029\u202a-\u202e\u2066-\u2069\ud800-\udfff]"
)


def printable(text: str, keep: str = "") -> str:
    r"""Escape what a terminal would act on instead of showing it: `\x1b` becomes the text `\x1b`.

    Args:
        text: any string.
        keep: control characters that stay as they are, such as `"\n\t"`.
    """
    return _UNPRINTABLE.sub(lambda found: found[0] if found[0] in keep else _escape(found[0]), text)


def _escape(character: str) -> str:
    return character.encode("unicode_escape").decode("ascii")


_URL = re.compile(r"https?://[^\s\"'<>]+", re.IGNORECASE)


def mask_urls(text: str) -> str:
    """Hide what may be secret in every web address: its login, and the values in its query."""
    return _URL.sub(lambda found: _mask_url(found[0]), text)


def masked(value: Any) -> Any:
    """A copy of a configuration or a value of one, each text in it as `mask_urls` shows it."""
    if isinstance(value, str):
        return mask_urls(value)
    if isinstance(value, Mapping):
        return {key: masked(inside) for key, inside in value.items()}
    return [masked(inside) for inside in value] if isinstance(value, list | tuple) else value


def _mask_url(url: str) -> str:
    address = url.rstrip(":,;.)")
    scheme, rest = address.split("://", 1)
    place, mark, query = rest.partition("?")
    authority = place.split("/", 1)[0]
    port = authority.rpartition(":")[2]
    # A password may hold a slash that ought to have been quoted.
    part = authority if "@" in authority or port == authority or port.isdecimal() else place
    if "@" in part:
        place = "***@" + place[part.rindex("@") + 1 :]
    query = re.sub(r"=[^&#]*", "=***", query)
    return f"{scheme}://{place}{mark}{query}{url[len(address) :]}"


def one_line(text: str, limit: int = MAX_LINE) -> str:
    """Make any text one printable line of at most `limit` characters, cut in its middle.

    Logins and queries of web addresses are masked.
    A message names what is wrong at its beginning and what to do at its end: both are kept.
    """
    text = mask_urls(text)
    # Escaping makes a text longer, never shorter: nothing beyond this is ever shown.
    if len(text) > 4 * limit:
        text = text[: 2 * limit] + text[-2 * limit :]
    text = printable(text)
    if len(text) <= limit:
        return text
    end = limit // 3
    return f"{text[: limit - end - 3]}...{text[-end:]}"


def shown(value: object) -> str:
    """A value for a message, also where Python cannot say it: too many digits, too many levels."""
    try:
        return one_line(repr(value))
    except (ValueError, RecursionError):
        return f"a value of type {type(value).__name__} that is too large to show"


class AGI2Error(ValueError):
    """A mistake in the input: a clear line for each problem that says what, where and what to do.

    The command line prints the lines and exits with status 2. Anything else that is raised is a
    bug, and keeps its traceback.

    Args:
        *problems: the lines. Whatever input they quote, each is printed as one line of at most
            `MAX_LINE` characters, without control characters.
    """

    def __init__(self, *problems: str) -> None:
        super().__init__(*map(one_line, problems))

    def __str__(self) -> str:
        return "\n".join(self.args)
