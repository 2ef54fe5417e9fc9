"""Incremental detokenization: token ids to text, with stop strings and stopping criteria."""

from __future__ import annotations

import codecs
from collections.abc import Callable, Iterable, Sequence
from typing import Any

from ..arguments import checked, is_several
from ..config_keys import GenerationConfig
from ..errors import AGI2Error, safe_repr
from ..tokenizer import Tokenizer

StoppingCriterion = Callable[[str], bool]
"""Called with the continuation so far; returning true ends it."""


class IncrementalDetokenizer:
    """Incremental detokenizer of one sequence, with stop strings and stopping criteria.

    Args:
        tokenizer: the model's.
        options: gives `stop`, `stop_at_sentence_end` and `min_length`.
        criteria: one or several, checked after each token.
        skip_leading_space: whether to strip white space from the start of the text.
        continues: tokens before the text, if it begins with the rest of a character of theirs.
        drops_incomplete: whether a text that is cut ends with its last complete character, not
            with U+FFFD for one that it has only some bytes of: it can then be continued.

    Raises:
        AGI2Error: if a criterion is not callable.
    """

    def __init__(
        self,
        tokenizer: Tokenizer,
        options: GenerationConfig,
        criteria: StoppingCriterion | Iterable[StoppingCriterion] | None = (),
        skip_leading_space: bool = False,
        *,
        continues: Sequence[int] = (),
        drops_incomplete: bool = False,
    ) -> None:
        self._characters = StreamDecoder(tokenizer, continues)
        self._drops_incomplete = drops_incomplete
        self._sentence = SentenceEnd() if options.stop_at_sentence_end else None
        self._stop_strings = StopStrings(options.stop, skip_leading_space)
        self._criteria = stopping_functions(criteria)
        self._is_plain = self._sentence is None and self._stop_strings.is_idle
        self._min_tokens_left = options.min_length
        self.text = ""
        """The text returned so far."""
        self.ended = False

    def push(self, token: int) -> str:
        """Append a token; return the new text that cannot belong to a stop string."""
        self._min_tokens_left -= 1
        piece = self._append_text(self._characters.push(token))
        if self._criteria and not self.ended:
            self.ended = any(accepts(self.text) for accepts in self._criteria)
        return piece

    def finish(self, is_cut: bool = False) -> str:
        """End the sequence; return the text still held back.

        Args:
            is_cut: whether it might have continued: a limit has ended it.
        """
        if self.ended:
            return ""
        end = "" if is_cut and self._drops_incomplete else self._characters.flush()
        piece = self._append_text(end)
        rest = self._stop_strings.flush()
        self.text += rest
        self.ended = True
        return piece + rest

    def _append_text(self, text: str) -> str:
        if self._is_plain:
            self.text += text
            return text
        sentence_ended = False
        if self._sentence is not None:
            text, sentence_ended = self._sentence.push(text, may_end=self._min_tokens_left <= 0)
        piece = self._stop_strings.push(text)
        if sentence_ended:
            piece += self._stop_strings.flush()
        self.text += piece
        self.ended = sentence_ended or self._stop_strings.stopped
        return piece


def stopping_functions(
    criteria: StoppingCriterion | Iterable[StoppingCriterion] | None,
) -> list[StoppingCriterion]:
    """Return one or several stopping criteria as a list.

    Raises:
        AGI2Error: if one is not callable.
    """
    criteria = () if criteria is None else criteria
    several: Any = criteria if is_several(criteria) and not callable(criteria) else [criteria]
    functions = list(several)
    for each in functions:
        if not callable(each):
            raise AGI2Error(
                f"stopping_criteria must be functions of the text, not {safe_repr(each)}"
            )
    return functions


def decode_until_stop(
    tokens: Sequence[int], tokenizer: Tokenizer, options: GenerationConfig
) -> str:
    """Return the text of new tokens, up to where `stop` or `stop_at_sentence_end` ends it."""
    detokenizer = _detokenize(tokens, tokenizer, options)
    detokenizer.finish()
    return detokenizer.text


def stop_condition(
    tokenizer: Tokenizer, options: GenerationConfig
) -> Callable[[Sequence[int]], bool] | None:
    """Return a function that tells whether new tokens end their text; None if none can."""
    if not stop_strings(options.stop) and not options.stop_at_sentence_end:
        return None
    return lambda tokens: _detokenize(tokens, tokenizer, options).ended


def _detokenize(
    tokens: Sequence[int], tokenizer: Tokenizer, options: GenerationConfig
) -> IncrementalDetokenizer:
    detokenizer = IncrementalDetokenizer(tokenizer, options)
    for token in tokens:
        detokenizer.push(token)
    return detokenizer


_MAX_INCOMPLETE = 3
"""The most bytes of a character that is incomplete."""


class SentenceEnd:
    """Detector of sentence ends, one character late: the point in `3.14` is not an end."""

    _MARKS = ".!?…"
    _FULL_WIDTH_MARKS = "。！？"
    _CLOSING = "\"'”’»)]}」』）"

    def __init__(self) -> None:
        self._last_mark = ""

    def push(self, text: str, may_end: bool) -> tuple[str, bool]:
        """Return the part of the text that belongs to the sentence, and whether it ends there.

        With `may_end` false, marks in this text do not end a sentence.
        """
        for position, character in enumerate(text):
            if character in self._MARKS + self._FULL_WIDTH_MARKS:
                self._last_mark = character if may_end else ""
            elif self._last_mark and character not in self._CLOSING:
                if character.isspace() or self._last_mark in self._FULL_WIDTH_MARKS:
                    return text[:position], True
                self._last_mark = ""
        return text, False


class StopStrings:
    """Stop strings: passes text up to the first, holding back what may become one."""

    def __init__(self, stop: str | Sequence[str] | None, skip_leading_space: bool = False) -> None:
        self._stop = stop_strings(stop)
        self._skipping = skip_leading_space
        self._pending = ""
        self.stopped = False

    @property
    def is_idle(self) -> bool:
        """Whether all text passes, now and later."""
        return not self._stop and not self._skipping

    def push(self, text: str) -> str:
        """Append text; return the part that cannot belong to a stop string."""
        if self._skipping:
            text = text.lstrip()
            self._skipping = not text
        text, self._pending = self._pending + text, ""
        ends = [
            (start + len(string), start)
            for string in self._stop
            if (start := text.find(string)) >= 0
        ]
        if ends:
            self.stopped = True
            # The one completed first, so that the result does not depend on how text is chunked.
            return text[: min(ends)[1]]
        hold = max((_overlap(text, string) for string in self._stop), default=0)
        self._pending = text[len(text) - hold :]
        return text[: len(text) - hold]

    def flush(self) -> str:
        """Return the text held back."""
        text, self._pending = self._pending, ""
        return text


def _overlap(text: str, string: str) -> int:
    """Return the length of the longest suffix of the text that is a proper prefix of the string."""
    longest = min(len(text), len(string) - 1)
    return next((n for n in range(longest, 0, -1) if text.endswith(string[:n])), 0)


def stop_strings(stop: str | Sequence[str] | None) -> list[str]:
    """Return one stop string, several or none as a list, without empty ones."""
    return [string for string in ([stop] if isinstance(stop, str) else stop or ()) if string]


class StreamDecoder:
    """Incremental UTF-8 decoder of tokens, holding back incomplete characters.

    Args:
        tokenizer: the model's.
        continues: tokens before the first, which may complete a character of theirs.
    """

    @checked
    def __init__(self, tokenizer: Tokenizer, continues: Sequence[int] = ()) -> None:
        self._tokenizer = tokenizer
        self._incomplete = b""
        # A character has at most 4 bytes, and a token before it that is not special at least 1.
        for token in continues[-_MAX_INCOMPLETE:]:
            self.push(token)

    def push(self, token: int) -> str:
        """Return the characters completed by this token."""
        data = self._incomplete + self._tokenizer.token_bytes(token)
        text, used = codecs.utf_8_decode(data, "replace", False)
        self._incomplete = data[used:]
        return text

    def flush(self) -> str:
        """Return what is left at the end: U+FFFD for an incomplete character."""
        data, self._incomplete = self._incomplete, b""
        return data.decode("utf-8", "replace")
