"""`AGI2Error`, the exception for errors that the user can fix, and escaping of printed text."""

import re
from collections.abc import Mapping
from typing import Any

MAX_LINE_LENGTH = 300
"""Maximum characters per line of a message, since quoted input may be arbitrarily long."""

# C0 and C1 controls, line and paragraph separators, bidirectional controls, and lone surrogates
# (as which Python decodes the invalid bytes of a file name that is not UTF-8).
_UNPRINTABLE = re.compile(
    r"[\x00-\x1f\x7f-\x9f\u2028\u2029\u202a-\u202e\u2066-\u2069\ud800-\udfff]"
)


def printable(text: str, keep: str = "") -> str:
    r"""Escape control characters, such as those of terminal escape sequences, as text like `\x1b`.

    Args:
        text: any string.
        keep: control characters not to escape, such as `"\n\t"`.
    """
    return _UNPRINTABLE.sub(lambda match: match[0] if match[0] in keep else _escape(match[0]), text)


def _escape(character: str) -> str:
    return character.encode("unicode_escape").decode("ascii")


# A URL from its "://" on: to search for its scheme would take quadratic time in long words.
_ADDRESS = re.compile(r"(?<=[a-z0-9+.-])://[^\s\"'<>]+", re.IGNORECASE)


def mask_urls(text: str) -> str:
    """Mask possible secrets in every URL: the user information and the query values."""
    return _ADDRESS.sub(lambda match: f"://{_mask_address(match[0][3:])}", text)


def mask_secrets(value: Any) -> Any:
    """Return a copy of a configuration, or of one of its values, with all URLs masked."""
    if isinstance(value, str):
        return mask_urls(value)
    if isinstance(value, Mapping):
        return {key: mask_secrets(item) for key, item in value.items()}
    return [mask_secrets(item) for item in value] if isinstance(value, list | tuple) else value


def _mask_address(given: str) -> str:
    """Mask a URL without its scheme; punctuation after it is that of a sentence."""
    address = given.rstrip(":,;.)")
    address_path, mark, query = address.partition("?")
    authority = address_path.split("/", 1)[0]
    port = authority.rpartition(":")[2]
    # A password may contain a slash that is not percent-encoded.
    part = authority if "@" in authority or port == authority or port.isdecimal() else address_path
    if "@" in part:
        address_path = "***@" + address_path[part.rindex("@") + 1 :]
    query = re.sub(r"=[^&#]*", "=***", query)
    return f"{address_path}{mark}{query}{given[len(address) :]}"


def one_line(text: str, limit: int = MAX_LINE_LENGTH) -> str:
    """Convert any text to one printable line of at most `limit` characters, with masked URLs.

    Longer text is shortened in the middle: a message says what is wrong at its beginning and what
    to do at its end.
    """
    text = mask_urls(text)
    # Escaping never shortens a text, so characters beyond this would not be shown anyway.
    if len(text) > 4 * limit:
        text = text[: 2 * limit] + text[-2 * limit :]
    text = printable(text)
    if len(text) <= limit:
        return text
    end = limit // 3
    return f"{text[: limit - end - 3]}...{text[-end:]}"


def safe_repr(value: object) -> str:
    """Return a value's `repr` for a message, or its type if `repr` fails."""
    try:
        return one_line(repr(value))
    except (ValueError, RecursionError):
        return f"a value of type {type(value).__name__} that is too large to show"
    except Exception:  # of the value's own class
        return f"a value of type {type(value).__name__} that cannot be shown"


class AGI2Error(ValueError):
    """An error that the user can fix, with one line per problem: what, where, and what to do.

    The command line prints the lines and exits with status 2. Any other exception is a bug, and is
    printed with its traceback.

    Args:
        *problems: messages; each is converted to one printable line (see `one_line`).
    """

    def __init__(self, *problems: str) -> None:
        super().__init__(*map(one_line, problems))

    def __str__(self) -> str:
        return "\n".join(self.args)
