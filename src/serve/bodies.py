"""Parse the JSON body of a request into a `Body`; report what is invalid in it."""

from __future__ import annotations

import difflib
import json
import re
from collections.abc import Iterable
from typing import Annotated, Any, Literal, TypeVar

from pydantic import BaseModel, BeforeValidator, ConfigDict, ValidationError
from pydantic_core import ErrorDetails, PydanticKnownError, from_json

from ..errors import safe_repr
from .errors import RequestError


class Body(BaseModel):
    """The body of a request: keys of exactly these names and types."""

    model_config = ConfigDict(
        extra="forbid",
        strict=True,
        frozen=True,
        allow_inf_nan=False,
        protected_namespaces=(),
        use_attribute_docstrings=True,
    )


def _only(value: Any) -> BeforeValidator:
    """Return a check that a value is this one, of exactly its type: `1 == True == 1.0`.

    Pydantic's own message would name `False`, not JSON's `false`.
    """

    def check(given: Any) -> Any:
        if given is not None and (type(given) is not type(value) or given != value):
            raise PydanticKnownError("literal_error", {"expected": json.dumps(value)})
        return given

    return BeforeValidator(check)


OnlyFalse = Annotated[Literal[False] | None, _only(False)]
"""False or null, and no number that equals it."""
OnlyOne = Annotated[Literal[1] | None, _only(1)]
"""The integer 1 or null, and not true."""

AnyBody = TypeVar("AnyBody", bound=Body)
# What keys of several types may be: pydantic has a message for each of the types.
_EXPECTED = {
    "prompt": "a text, a list of texts, token ids, or a list of lists of token ids",
    "stop": "a text or a list of texts, each of 1 to 1,000 characters",
    "content": "a text, or a list of parts of the type text",
    "input": "a text or a list",
    "logit_bias": "an object of token ids and numbers from -10,000 to 10,000",
}


def parse_body(kind: type[AnyBody], data: bytes) -> AnyBody:
    """Return the body of a request.

    Raises:
        RequestError: if it is not JSON, or a key is there twice, is unknown or has another type or
            range.
    """
    try:
        values = from_json(data, allow_inf_nan=False)
    except ValueError as error:
        raise RequestError(f"the body is not JSON: {error}", code="invalid_json") from None
    json.loads(data, object_pairs_hook=_check_keys)
    if not isinstance(values, dict):
        raise RequestError("the body must be a JSON object", code="invalid_json")
    try:
        return kind.model_validate(values)
    except ValidationError as error:
        details = error.errors(include_url=False, include_context=False)
        unknown = (each for each in details if each["type"] == "extra_forbidden")
        raise _refusal(kind, next(unknown, details[0])) from None


def _check_keys(pairs: list[tuple[str, Any]]) -> None:
    """Check that the keys of a JSON object are different: one of two would be ignored.

    Raises:
        RequestError: if not.
    """
    keys = [key for key, _ in pairs]
    if len(set(keys)) < len(keys):
        key = next(key for place, key in enumerate(keys) if key in keys[:place])
        raise RequestError(
            f"the key {safe_repr(key)} is there twice", param=key, code="duplicate_key"
        )


def _refusal(kind: type[Body], detail: ErrorDetails) -> RequestError:
    """Return the error of a value that pydantic refused."""
    name, key, is_whole = _place(detail["loc"])
    if detail["type"] == "extra_forbidden":
        known = kind.model_fields if name == key else ()
        close = difflib.get_close_matches(key[:50].lower(), known, n=1)
        hint = f"; did you mean {close[0]}?" if close else ""
        return RequestError(
            f"unknown key {safe_repr(name)}{hint}", param=name, code="unknown_parameter"
        )
    if detail["type"] == "missing":
        return RequestError(f"{name} is missing", param=name, code="missing_parameter")
    message = re.sub(r"^\w+ should ", "must ", detail["msg"]).replace(" after validation", "")
    if detail["type"] == "none_required":
        message = "must be null"
    elif key in _EXPECTED and not is_whole:
        message = f"must be {_EXPECTED[key]}"
    return RequestError(f"{name} {message}", param=name, code="invalid_value")


def _place(location: Iterable[int | str]) -> tuple[str, str, bool]:
    """Return where a value is: `messages[0].content`, the key `content`, and whether it is all.

    Keys of several types and mappings are the place of what is inside them.
    """
    path = key = ""
    for part in location:
        if isinstance(part, int):
            path += f"[{part}]"
        elif key in _EXPECTED:
            return path, key, False
        else:
            path, key = f"{path}.{part}" if path else part, part
    return path, key, True
