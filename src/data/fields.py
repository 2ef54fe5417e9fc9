"""Choose the field, or column, of structured data that contains the text."""

from __future__ import annotations

import re
from collections.abc import Sequence

from .conversations import PREFERENCE_FIELDS, has_conversations, has_pair
from .inputs import Input
from .text_files import KINDS

DEFAULT_FIELD = "text"
MADE_OF = {"preferences": "made of pairs of preferences", "conversations": "made of messages"}
"""Why a file is not read as text, if its fields are those of what another key names."""
# Names of fields in a message; some files have thousands.
_LISTED = 12


def listed(names: Sequence[str]) -> str:
    """Return names for a message, with the number of those that are too many."""
    more = len(names) - _LISTED
    return ", ".join(names[:_LISTED]) + f" and {more:,} more" * (more > 0)


def are_texts(values: Sequence[str]) -> bool:
    """Return whether the values of a field are texts, rather than numbers, dates or categories.

    Args:
        values: those at the beginning of a file; categories are recognized if they are many.
    """
    values = [value for value in values if not _NUMBER.fullmatch(value)]
    is_repeated = len(set(values)) <= _CATEGORIES * len(values)
    return bool(values) and not (len(values) >= _MANY and is_repeated)


# A number, several, a date or a time.
_NUMBER = re.compile(r"[-+]?[\d.,:/%eE\s-]*|\d{4}-\d\d-\d\dT[\d:.]*(Z|[-+][\d:]+)?")
# The share of different values up to which they are categories, such as `yes` and `no`.
_CATEGORIES, _MANY = 0.1, 20


def choose_field(
    source: Input,
    names: Sequence[str],
    candidates: Sequence[str],
    at: str = "",
    advice: str = "set text_field",
) -> str:
    """Return the field with the text: `text_field`, `text`, or the only candidate.

    A candidate that is taken is noted.

    Args:
        source: the input.
        names: the names of all fields.
        candidates: the names of the fields with text: see `are_texts`.
        at: where the names are, for the message, such as `:1`.
        advice: what to do if there is no such field, or why nothing helps.

    Raises:
        Unreadable: if `text_field` does not exist, or there is no candidate, or several; or the
            fields are those of conversations or preferences.
    """
    wanted = source.options.text_field or DEFAULT_FIELD
    if wanted in names:
        return wanted
    key = "preferences" if has_pair(names, PREFERENCE_FIELDS) else ""
    key = key or "conversations" * has_conversations(names)
    if source.options.text_field is None and len(candidates) == 1 and not key:
        source.note(f"read in the field {KINDS}, the only one with text", repr(candidates[0]))
        return candidates[0]
    advice = "set text_field" if key else advice
    found = f"among {listed(names)}; {advice}" if names else "as there are no fields"
    found += f", or name {key} in the key {key}" * bool(key)
    raise source.error(MADE_OF.get(key, "without the field"), f"no field {wanted!r} {found}", at)
