"""The bodies of requests and responses, with OpenAI's names; what is unknown is refused by name."""

from __future__ import annotations

from typing import Annotated, Any, Literal, NotRequired

from pydantic import Field
from typing_extensions import TypedDict

from .bodies import Body, OnlyFalse, OnlyOne

MAX_CHOICES = 128
"""Maximum number of texts of one request."""
MAX_STOP = 16
"""Maximum number of stop strings."""
MAX_TOP = 20
"""Maximum number of most likely tokens to return for each token."""
TokenId = Annotated[int, Field(ge=0, lt=2**31)]
_TokenKey = Annotated[str, Field(pattern=r"^(0|[1-9][0-9]{0,9})$")]
Text = Annotated[str, Field(max_length=2**24)]
_Seed = Annotated[int, Field(ge=0, le=2**62)]
_StopString = Annotated[str, Field(min_length=1, max_length=1000)]


class StreamOptions(Body):
    """Options of a stream."""

    include_usage: bool = False
    """Whether the last event has the number of tokens."""
    include_obfuscation: OnlyFalse = False
    """Random padding of events, which this server does not add."""


class SamplingKeys(Body):
    """The keys of sampling. What is null or missing is as the model's configuration says."""

    temperature: Annotated[float, Field(ge=0)] | None = None
    """Sampling temperature; 0 is greedy decoding."""
    top_p: Annotated[float, Field(gt=0, le=1)] | None = None
    """Sample from the most likely tokens with this total probability."""
    top_k: Annotated[int, Field(ge=0, le=2**31)] | None = None
    """Sample from the k most likely tokens; 0 for all."""
    min_p: Annotated[float, Field(ge=0, le=1)] | None = None
    """Sample from tokens with at least this fraction of the highest probability; 0 for all."""
    typical_p: Annotated[float, Field(gt=0, le=1)] | None = None
    """Locally typical sampling: total probability of the tokens to sample from; 1 for all."""
    presence_penalty: Annotated[float, Field(ge=-100, le=100)] | None = None
    """Subtracted from the logits of tokens that occur in the new text."""
    frequency_penalty: Annotated[float, Field(ge=-100, le=100)] | None = None
    """Subtracted from the logits of tokens for each occurrence in the new text."""
    repetition_penalty: Annotated[float, Field(ge=1e-4, le=1e4)] | None = None
    """Above 1 makes tokens of the prompt and the new text less likely."""
    no_repeat_ngram: Annotated[int, Field(ge=0, le=2**31)] | None = None
    """N-grams of this size occur only once, in prompt and new text together; 0 for no limit."""
    logit_bias: dict[_TokenKey, Annotated[float, Field(ge=-1e4, le=1e4)]] | None = None
    """Added to the logits of tokens, by their ids."""
    stop: _StopString | Annotated[list[_StopString], Field(max_length=MAX_STOP)] | None = None
    """Stop strings: the text ends before the first of them."""
    stop_at_sentence_end: bool | None = None
    """Whether the text ends at the end of a sentence."""
    min_tokens: Annotated[int, Field(ge=0, le=2**30)] | None = None
    """Number of new tokens before an end token may end the text."""
    ignore_eos: bool = False
    """Whether the text goes on after an end token."""
    seed: _Seed | None = None
    """Random seed of sampling: the same request with the same seed gives the same text. A random
    one by default, which the response has.
    """
    logprob_token_ids: Annotated[list[TokenId], Field(max_length=100)] | None = None
    """Tokens whose log-probabilities are returned for each token, however unlikely they are."""


class TextBody(SamplingKeys):
    """What requests for texts have in common."""

    model: str
    """A name of `/v1/models`."""
    n: Annotated[int, Field(ge=1, le=MAX_CHOICES)] | None = None
    """Number of texts for each prompt; text i is sampled with the seed `seed + i`."""
    stream: bool | None = None
    """Whether to send the text in events, as it is generated."""
    stream_options: StreamOptions | None = None
    """Options of a stream; only with `stream`."""
    user: Text | None = None
    """Accepted, and not used."""
    metadata: dict[str, Any] | None = None
    """Accepted, and not used."""


class CompletionBody(TextBody):
    """A request to continue text."""

    prompt: (
        Text
        | Annotated[list[Text], Field(min_length=1, max_length=MAX_CHOICES)]
        | Annotated[list[TokenId], Field(min_length=1)]
        | Annotated[list[Annotated[list[TokenId], Field(min_length=1)]], Field(min_length=1)]
    )
    """A text or its token ids, or several of either."""
    max_tokens: Annotated[int, Field(ge=0, le=2**30)] | None = None
    """Maximum number of new tokens; 16 by default."""
    echo: bool | None = None
    """Whether the text begins with the prompt; `logprobs` are then also those of its tokens."""
    logprobs: Annotated[int, Field(ge=0, le=MAX_TOP)] | None = None
    """Return the log-probability of each token, and of this number of the most likely ones."""
    best_of: OnlyOne = None
    """Only 1: all texts are returned (`n`)."""
    suffix: Literal[""] | None = None
    """Only the empty one: these models do not insert text."""


class TextPart(Body):
    """A part of the content of a message."""

    type: Literal["text"]
    text: Text


class ChatMessage(Body):
    """A message of a conversation."""

    role: Literal["system", "developer", "user", "assistant"]
    content: Text | list[TextPart] | None
    """Its text, or parts of it."""
    name: str | None = None
    """Accepted, and not used."""
    refusal: Literal[None] = None
    """Always null, as in the replies of this server."""

    @property
    def text(self) -> str:
        """The text of the message."""
        if isinstance(self.content, list):
            return "".join(part.text for part in self.content)
        return self.content or ""


class TextFormat(Body):
    """The format of a reply."""

    type: Literal["text"]


class ReplyBody(TextBody):
    """What requests for replies have in common."""

    logprobs: bool | None = None
    """Whether to return the log-probability of each token."""
    top_logprobs: Annotated[int, Field(ge=0, le=MAX_TOP)] | None = None
    """Return the log-probabilities of this number of the most likely tokens; with `logprobs`."""


class ChatBody(ReplyBody):
    """A request for a reply to a conversation."""

    messages: Annotated[list[ChatMessage], Field(min_length=1, max_length=10_000)]
    """The conversation, oldest message first."""
    max_tokens: Annotated[int, Field(ge=1, le=2**30)] | None = None
    """The earlier name of `max_completion_tokens`."""
    max_completion_tokens: Annotated[int, Field(ge=1, le=2**30)] | None = None
    """Maximum number of new tokens; by default those that the model's positions leave."""
    response_format: TextFormat | None = None
    """Only text."""
    modalities: list[Literal["text"]] | None = None
    """Only text."""
    tools: Annotated[list[Any], Field(max_length=0)] | None = None
    """Only an empty list: these models call no tools."""
    tool_choice: Literal["none", "auto"] | None = None
    """There are no tools."""
    store: OnlyFalse = None
    """Only false: nothing is stored."""
    service_tier: Literal["auto", "default"] | None = None
    """There is one tier."""


class PromptTokensDetails(TypedDict):
    """Which tokens of the prompt were not computed."""

    cached_tokens: int


class Usage(TypedDict):
    """Numbers of tokens."""

    prompt_tokens: int
    completion_tokens: NotRequired[int]
    total_tokens: int
    prompt_tokens_details: NotRequired[PromptTokensDetails]


class Timings(TypedDict):
    """Times and speeds, with llama.cpp's names."""

    cache_n: int
    prompt_n: int
    prompt_ms: float
    prompt_per_second: float
    predicted_n: int
    predicted_ms: float
    predicted_per_second: float


FinishReason = Literal["stop", "length"]


class CompletionLogprobs(TypedDict):
    """Log-probabilities of tokens, in parallel lists."""

    tokens: list[str]
    token_ids: list[int]
    token_logprobs: list[float | None]
    top_logprobs: list[dict[str, float] | None]
    text_offset: list[int]
    named_logprobs: NotRequired[list[dict[str, float] | None]]


class CompletionChoice(TypedDict):
    """One text."""

    index: int
    text: str
    logprobs: CompletionLogprobs | None
    finish_reason: FinishReason | None
    seed: int


class Completion(TypedDict):
    """The response to a completion request, and each event of its stream."""

    id: str
    object: Literal["text_completion"]
    created: int
    model: str
    system_fingerprint: str
    choices: list[CompletionChoice]
    usage: NotRequired[Usage | None]
    timings: NotRequired[Timings]


class TokenLogprob(TypedDict):
    """The log-probability of a token."""

    token: str
    token_id: int
    logprob: float
    bytes: list[int]


class ContentLogprob(TokenLogprob):
    """The log-probability of a token of a reply, and of others in its place."""

    top_logprobs: list[TokenLogprob]
    named_logprobs: NotRequired[list[TokenLogprob]]


class ChatLogprobs(TypedDict):
    """Log-probabilities of the tokens of a reply."""

    content: list[ContentLogprob]
    refusal: None


class ReplyMessage(TypedDict):
    """A reply."""

    role: Literal["assistant"]
    content: str
    refusal: None


class ChatChoice(TypedDict):
    """One reply."""

    index: int
    message: ReplyMessage
    logprobs: ChatLogprobs | None
    finish_reason: FinishReason | None
    seed: int


class ChatCompletion(TypedDict):
    """The response to a chat request."""

    id: str
    object: Literal["chat.completion"]
    created: int
    model: str
    system_fingerprint: str
    choices: list[ChatChoice]
    usage: Usage
    timings: Timings


class Delta(TypedDict):
    """What an event adds to a reply."""

    role: NotRequired[Literal["assistant"]]
    content: NotRequired[str]


class ChatChunkChoice(TypedDict):
    """What an event adds to one reply."""

    index: int
    delta: Delta
    logprobs: ChatLogprobs | None
    finish_reason: FinishReason | None
    seed: int


class ChatChunk(TypedDict):
    """An event of the stream of a reply."""

    id: str
    object: Literal["chat.completion.chunk"]
    created: int
    model: str
    system_fingerprint: str
    choices: list[ChatChunkChoice]
    usage: NotRequired[Usage | None]
    timings: NotRequired[Timings]
