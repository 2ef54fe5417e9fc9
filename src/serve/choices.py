"""The text and the log-probabilities of a sequence, as far as they are certain."""

from __future__ import annotations

import math
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple

from ..inference.detokenizer import StreamDecoder
from ..inference.logprobs import TokenLogprobs
from ..inference.sequence import Sequence as Request
from ..tokenizer import Tokenizer
from .schemas import FinishReason, TokenLogprob
from .streaming import Generation

LOWEST_LOGPROB = -9999.0
"""In place of minus infinity, which JSON has not."""


class TokenEntry(NamedTuple):
    """A token of a text with its log-probability, and those of others in its place."""

    token: int
    text: str
    """The characters that it completes; "" if the character takes more tokens."""
    offset: int
    """Where these begin in the text, in characters."""
    logprob: float | None
    """None for the first token of a prompt."""
    top: list[tuple[int, float]]
    named: list[tuple[int, float]]


class Delta(NamedTuple):
    """What has become certain of a choice since the last time."""

    choice: int
    """Its number."""
    text: str
    entries: list[TokenEntry]
    finish_reason: FinishReason | None


@dataclass(frozen=True)
class TokenNames:
    """The tokens of a tokenizer as JSON shows them."""

    tokenizer: Tokenizer

    def bytes_of(self, token: int) -> bytes:
        """Return the bytes of a token; those of its name for a special token."""
        found = self.tokenizer.token_bytes(token)
        if found:
            return found
        names = (name for name, id in self.tokenizer.special_tokens.items() if id == token)
        return next(names, "").encode()

    def text(self, token: int) -> str:
        """Return the text of a token; of a part of a character its bytes, as `bytes:\\xe2\\x80`."""
        found = self.bytes_of(token)
        try:
            return found.decode("utf-8")
        except UnicodeDecodeError:
            return "bytes:" + "".join(f"\\x{byte:02x}" for byte in found)

    def logprob(self, token: int, logprob: float) -> TokenLogprob:
        """Return a token with its log-probability."""
        return {
            "token": self.text(token),
            "token_id": token,
            "logprob": logprob,
            "bytes": list(self.bytes_of(token)),
        }


def finite(logprob: float) -> float:
    """Return a log-probability that JSON can hold."""
    return max(logprob, LOWEST_LOGPROB) if math.isfinite(logprob) else LOWEST_LOGPROB


# Those of a text that is complete.
_FINISH_REASONS: dict[str, FinishReason] = {
    "end_token": "stop",
    "stop": "stop",
    "masked": "stop",
    "length": "length",
}


class ChoiceReader:
    """Reads a sequence that another thread generates.

    The log-probability of a token is returned when its text is: not if a stop string or a part of
    it begins before.

    Args:
        sequence: one choice.
        tokenizer: the model's.
        skip_leading_space: whether its text has no white space at its start.
        is_continued: whether its text may begin with the rest of a character of the prompt's end.
        named_tokens: ids of the tokens whose log-probabilities the sequence records.
        has_end: whether the end token is returned, too, if it has ended at one.
    """

    def __init__(
        self,
        sequence: Request,
        tokenizer: Tokenizer,
        skip_leading_space: bool = False,
        *,
        is_continued: bool = False,
        named_tokens: Sequence[int] | None = None,
        has_end: bool = False,
    ) -> None:
        self.sequence = sequence
        self._named = named_tokens or ()
        self._has_end = has_end
        self._tokenizer = tokenizer
        before = sequence.tokens[: sequence.prompt_length] if is_continued else ()
        self._characters = StreamDecoder(tokenizer, before)
        self._is_at_start = skip_leading_space
        self._read = 0
        """Number of new tokens whose place in the text is known."""
        self._decoded = 0
        """Number of characters that these have completed."""
        self._released = 0
        """Number of characters that were returned."""
        self._held: list[TokenEntry] = []
        self.is_finished = False

    def read(self) -> tuple[str, list[TokenEntry], FinishReason | None]:
        """Return what is new: text, tokens with log-probabilities, why it ended (None: not yet)."""
        reason = self.sequence.finish_reason  # first: what is read after it is final
        text = "".join(self.sequence.take_pieces())
        self._released += len(text)
        if self.sequence.needs_logprobs:
            self._take_tokens()
            if reason == "end_token" and self._has_end:
                self._take_end()
        is_cut = reason in (None, "stop")
        ready = [each for each in self._held if not is_cut or each.offset < self._released]
        self._held = [] if reason else self._held[len(ready) :]
        self.is_finished = reason is not None
        return text, ready, _FINISH_REASONS.get(reason or "")

    def _take_tokens(self) -> None:
        """Decode the tokens that are new."""
        for token, found in zip(
            self.sequence.new_tokens[self._read :],
            self.sequence.logprobs[self._read :],
            strict=False,  # a token may be appended in between
        ):
            text = self._characters.push(token)
            if self._is_at_start:
                text = text.lstrip()
                self._is_at_start = not text
            self._held.append(self._entry(token, text, self._decoded, found))
            self._decoded += len(text)
            self._read += 1

    def _take_end(self) -> None:
        for token, found in self.sequence.end_logprobs:
            self._held.append(self._entry(token, "", self._decoded, found))

    def prompt_entries(self) -> list[TokenEntry]:
        """Return the tokens of the prompt, if their log-probabilities are recorded."""
        characters, offset = StreamDecoder(self._tokenizer), 0
        entries = []
        for token, found in zip(self.sequence.tokens, self.sequence.prompt_logprobs, strict=False):
            text = characters.push(token)
            entries.append(self._entry(token, text, offset, found))
            offset += len(text)
        return entries

    def _entry(self, token: int, text: str, offset: int, found: TokenLogprobs | None) -> TokenEntry:
        if found is None:
            return TokenEntry(token, text, offset, None, [], [])
        named = zip(self._named, found.named, strict=True)
        return TokenEntry(
            token,
            text,
            offset,
            finite(found.logprob),
            [(other, finite(logprob)) for other, logprob in found.best],
            [(other, finite(logprob)) for other, logprob in named],
        )


async def read_deltas(
    generation: Generation, readers: Sequence[ChoiceReader]
) -> AsyncIterator[Delta]:
    """Yield what becomes certain of the choices, until all have ended.

    Raises:
        RequestError: if one ended without a result.
    """
    unfinished = dict(enumerate(readers))
    while unfinished:
        for index, reader in list(unfinished.items()):
            text, entries, reason = reader.read()
            if text or entries or reason:
                yield Delta(index, text, entries, reason)
            if reader.is_finished:
                del unfinished[index]
                generation.check(reader.sequence)
        if unfinished:
            await generation.wait()
