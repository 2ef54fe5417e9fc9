"""The bodies of `/v1/responses`, with the names of Open Responses."""

from __future__ import annotations

from typing import Annotated, Any, Literal, NotRequired

from pydantic import Field
from typing_extensions import TypedDict

from .bodies import Body, OnlyFalse
from .schemas import MAX_TOP, ContentLogprob, SamplingKeys, StreamOptions, Text

_LOGPROBS = "message.output_text.logprobs"
_Key = Annotated[str, Field(max_length=64)]
_Value = Annotated[str, Field(max_length=512)]
Status = Literal["completed", "incomplete", "in_progress"]


class ContentPart(Body):
    """A part of the content of a message."""

    type: Literal["input_text", "output_text", "text"]
    text: Text
    annotations: Annotated[list[Any], Field(max_length=0)] | None = None
    """Always empty, as in the output of this server."""
    logprobs: list[Any] | None = None
    """Accepted, so that output can be sent as input; not used."""


class InputMessage(Body):
    """A message of a conversation; the output of an earlier response is one, too."""

    type: Literal["message"] = "message"
    role: Literal["system", "developer", "user", "assistant"]
    content: Text | list[ContentPart]
    """Its text, or parts of it."""
    id: str | None = None
    """Accepted, and not used."""
    status: str | None = None
    """Accepted, and not used."""
    phase: str | None = None
    """Accepted, and not used."""

    @property
    def text(self) -> str:
        """The text of the message."""
        if isinstance(self.content, str):
            return self.content
        return "".join(part.text for part in self.content)


class PlainFormat(Body):
    """The format of the output."""

    type: Literal["text"]


class TextOptions(Body):
    """Options of the output."""

    format: PlainFormat | None = None
    """Only text."""
    verbosity: None = None
    """Only null."""


class ResponseBody(SamplingKeys):
    """A request for a reply to a conversation. Nothing is stored: send the whole conversation."""

    model: str
    """A name of `/v1/models`."""
    input: Text | Annotated[list[InputMessage], Field(min_length=1, max_length=10_000)]
    """A message of the user, or a conversation, oldest message first."""
    instructions: Text | None = None
    """A system message, before the input."""
    max_output_tokens: Annotated[int, Field(ge=1, le=2**30)] | None = None
    """Maximum number of new tokens; by default those that the model's positions leave."""
    stream: bool | None = None
    """Whether to send events as the text is generated."""
    stream_options: StreamOptions | None = None
    """Options of a stream; only with `stream`. The last event always has the usage."""
    include: list[Literal["message.output_text.logprobs"]] | None = None
    """What else to return: the log-probability of each token."""
    top_logprobs: Annotated[int, Field(ge=0, le=MAX_TOP)] | None = None
    """Return the log-probabilities of each token, and of this number of the most likely ones."""
    metadata: Annotated[dict[_Key, _Value], Field(max_length=16)] | None = None
    """Returned as it is."""
    safety_identifier: str | None = None
    """Returned as it is."""
    prompt_cache_key: str | None = None
    """Returned as it is: prefixes are cached without it."""
    user: Text | None = None
    """Returned as it is."""
    store: OnlyFalse = None
    """Only false: nothing is stored."""
    previous_response_id: None = None
    """Only null: nothing is stored."""
    conversation: None = None
    """Only null: nothing is stored."""
    background: OnlyFalse = None
    """Only false."""
    truncation: Literal["disabled"] | None = None
    """Only disabled: a conversation that is too long is refused."""
    tools: Annotated[list[Any], Field(max_length=0)] | None = None
    """Only an empty list: these models call no tools."""
    tool_choice: Literal["none", "auto"] | None = None
    """There are no tools."""
    parallel_tool_calls: bool | None = None
    """Returned as it is: there are no tools."""
    max_tool_calls: Annotated[int, Field(ge=0)] | None = None
    """Returned as it is: there are no tools."""
    reasoning: None = None
    """Only null: these models do not reason apart."""
    service_tier: Literal["auto", "default"] | None = None
    """There is one tier."""
    text: TextOptions | None = None
    """Options of the output."""

    @property
    def top(self) -> int | None:
        """Number of most likely tokens to return for each; None for no log-probabilities."""
        if self.top_logprobs is None and _LOGPROBS not in (self.include or ()):
            return None
        return self.top_logprobs or 0


class OutputText(TypedDict):
    """The text of a reply."""

    type: Literal["output_text"]
    text: str
    annotations: list[Any]
    logprobs: list[ContentLogprob]


class OutputMessage(TypedDict):
    """A reply."""

    type: Literal["message"]
    id: str
    role: Literal["assistant"]
    status: Status
    content: list[OutputText]


class CachedTokens(TypedDict):
    """How many tokens of the input were not computed."""

    cached_tokens: int


class ReasoningTokens(TypedDict):
    """How many tokens were reasoning: none."""

    reasoning_tokens: int


class ResponseUsage(TypedDict):
    """Numbers of tokens."""

    input_tokens: int
    input_tokens_details: CachedTokens
    output_tokens: int
    output_tokens_details: ReasoningTokens
    total_tokens: int


class ResponseError(TypedDict):
    """Why a response has failed."""

    code: str
    message: str


class IncompleteDetails(TypedDict):
    """Why a reply is cut."""

    reason: Literal["max_output_tokens"]


class ResponseObject(TypedDict):
    """A response: the reply, and the keys with which it was generated."""

    id: str
    object: Literal["response"]
    created_at: int
    completed_at: int | None
    status: Literal["completed", "incomplete", "in_progress", "failed"]
    incomplete_details: IncompleteDetails | None
    error: ResponseError | None
    model: str
    instructions: str | None
    output: list[OutputMessage]
    usage: ResponseUsage | None
    max_output_tokens: int | None
    temperature: float
    top_p: float
    presence_penalty: float
    frequency_penalty: float
    top_logprobs: int
    seed: int
    text: dict[str, Any]
    metadata: dict[str, str]
    safety_identifier: str | None
    prompt_cache_key: str | None
    user: str | None
    store: Literal[False]
    previous_response_id: None
    background: Literal[False]
    truncation: Literal["disabled"]
    tools: list[Any]
    tool_choice: Literal["none", "auto"]
    parallel_tool_calls: bool
    max_tool_calls: int | None
    reasoning: None
    service_tier: Literal["default"]


class ResponseEvent(TypedDict):
    """An event of a stream; which keys it has depends on its type."""

    type: str
    sequence_number: int
    response: NotRequired[ResponseObject]
    output_index: NotRequired[int]
    content_index: NotRequired[int]
    item_id: NotRequired[str]
    item: NotRequired[OutputMessage]
    part: NotRequired[OutputText]
    delta: NotRequired[str]
    text: NotRequired[str]
    logprobs: NotRequired[list[ContentLogprob]]
