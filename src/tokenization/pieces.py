"""Cut long texts for the tokenizer: linear in time, bounded in memory, whatever the script.

A pre-tokenizer makes words of a text, and byte-pair encoding looks at one word at a time. Where it
certainly begins a word, a text can be cut without changing its tokens. Text without spaces (DNA,
base64, some Chinese) can be one word of many megabytes: it is cut at a fixed length.
"""

from __future__ import annotations

import re
from collections.abc import Iterator

MAX_RUN = 1200
"""Characters without a certain boundary that are encoded together. A longer run is cut after each
1,200 characters from its beginning: its tokens do not depend on what is around it."""

PIECE = 1 << 13
"""Characters of a piece, about. The library keeps some 400 bytes for a token of it."""

# Only characters whose category no version of Unicode changes. The apostrophe is in neither:
# contractions begin with it.
_LETTERS = "A-Za-zÀ-ÖØ-öø-ɏА-яא-תء-غぁ-ゖァ-ヺ一-龥가-힣"
_MARKS = "!-&(-/:-@\\[-`{-~、。，．！？：；「」『』（）《》“”…—·"
# Every known pre-tokenizer (see `tokenizer_file`) begins a word there.
_BOUNDARY = (
    r"(?<=\S)(?= )"
    rf"|(?<=[{_LETTERS}])(?=[\n0-9{_MARKS}])"
    rf"|(?<=[0-9])(?=[\n{_LETTERS}{_MARKS}])"
)
_LAST_BOUNDARY = re.compile(rf"(?s:.)+(?:{_BOUNDARY})")


def cut(text: str, run: int = MAX_RUN, size: int = PIECE) -> Iterator[str]:
    """Cut a text at certain boundaries into pieces of about `size` characters, in order.

    Args:
        text: of any length.
        run: characters without a boundary after which a cut is made all the same.
        size: a piece ends at the first boundary found from there on.

    Yields:
        Pieces of at most `size + run` characters, which joined are the text.
    """
    start = here = 0
    while len(text) - here > run:
        # One character more than `run`, since a boundary is seen by the character behind it.
        found = _LAST_BOUNDARY.match(text, here, here + run + 1)
        here = here + run if found is None else found.end()
        if found is None or here - start >= size:
            yield text[start:here]
            start = here
    if start < len(text):
        yield text[start:]


# A word of this length or longer hardly occurs twice.
_LONG_WORD = 16
_LOOK = 1 << 16


class SpacelessBudget:
    """Count the text without spaces, each of whose words is new and has to be remembered.

    Args:
        limit: characters of such text; what comes after them is left out.
    """

    def __init__(self, limit: int) -> None:
        self._left = limit
        self.left_out = 0

    def take(self, text: str) -> Iterator[str]:
        """Yield stretches of a text, but for those without spaces beyond the limit."""
        for stretch in cut(text, size=_LOOK):
            words = 1 + sum(map(stretch.count, " \n\t"))
            if len(stretch) < _LONG_WORD * words:
                yield stretch
            elif self._left > 0:
                self._left -= len(stretch)
                yield stretch
            else:
                self.left_out += len(stretch)
