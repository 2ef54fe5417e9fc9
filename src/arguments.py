"""Arguments of public functions, in the types that people pass.

What a value plainly means is accepted (a NumPy integer, a tensor of one number, a `Path`) and
becomes the plain Python type. Anything else is one line that names the argument. No value gets
another meaning in silence: `True` is not 1, `"0.8"` is not a number, 50.5 is not 50.
"""

from __future__ import annotations

import functools
import inspect
import math
import os
import types
import typing
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import (
    TYPE_CHECKING,
    Annotated,
    Any,
    Literal,
    ParamSpec,
    TypeVar,
    Union,
    get_args,
    get_origin,
)

from .errors import AGI2Error, shown

if TYPE_CHECKING:
    import torch

P = ParamSpec("P")
R = TypeVar("R")


@dataclass(frozen=True)
class Range:
    """The numbers that an annotation allows: from `least` on, to `most`, and below `below`."""

    least: float
    below: float = math.inf
    most: float = math.inf

    def __contains__(self, value: float) -> bool:
        return self.least <= value <= self.most and value < self.below

    def __str__(self) -> str:
        if self.most < math.inf:
            return f"from {self.least:,} to {self.most:,}"
        if self.below == math.inf:
            return f"of at least {self.least:g}"
        return f"in [{self.least:g}, {self.below:g})"


PositiveInt = Annotated[int, Range(1)]
NonNegativeInt = Annotated[int, Range(0)]
Rate = Annotated[float, Range(0, 1)]
"""Of dropout."""


def checked(function: Callable[P, R]) -> Callable[P, R]:
    """Convert the arguments of a function to its annotations before each call; see `convert`.

    What `**options` collects is left to the function.

    Raises:
        AGI2Error: which names the argument.
    """
    signature = inspect.signature(function)
    collecting = (inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD)
    names = [name for name, each in signature.parameters.items() if each.kind not in collecting]

    @functools.wraps(function)
    def wrapper(*args: P.args, **kwargs: P.kwargs) -> R:
        bound = signature.bind(*args, **kwargs)
        hints = _hints_of(function)
        for name in bound.arguments.keys() & names & hints.keys():
            bound.arguments[name] = convert(hints[name], name, bound.arguments[name])
        return function(*bound.args, **bound.kwargs)

    return wrapper


def convert_fields(instance: Any) -> None:
    """Convert the fields of a frozen dataclass to their annotations, in place; see `convert`.

    Raises:
        AGI2Error: which names the field.
    """
    hints = _hints_of(instance.__class__)
    for field in fields(instance):
        value = convert(hints[field.name], field.name, getattr(instance, field.name))
        object.__setattr__(instance, field.name, value)


@functools.cache
def _hints_of(owner: Any) -> dict[str, Any]:
    return typing.get_type_hints(owner, include_extras=True)


def convert(hint: Any, name: str, value: Any) -> Any:
    """Convert a value to the type of an annotation.

    Args:
        hint: `int`, `float`, `bool`, `str`, `Path`, a class, a `Literal`, an `Annotated` number
            with a `Range`, `Sequence[int]` (token ids), `Sequence[str]`, or a union of them. Any
            other passes the value on as it is.
        name: of the argument, for the message.
        value: what was passed.

    Raises:
        AGI2Error: where the value has no such meaning.
    """
    try:
        return _convert(hint, value)
    except _MismatchError:
        value = _plain(value)
        found = type(value).__name__ if _is_large(value) else shown(value)
        raise AGI2Error(f"{name} must be {_describe(hint)}, not {found}") from None


class _MismatchError(Exception):
    """A value has no meaning as the type that is asked for."""


def _convert(hint: Any, value: Any) -> Any:
    origin, inside = get_origin(hint), get_args(hint)
    if origin is Annotated:
        value = _convert(inside[0], value)
        return _fitting(value, value in inside[1])
    if origin in (Union, types.UnionType):
        return _convert_to_any(inside, value)
    if origin is Literal:
        return _fitting(value, isinstance(value, str) and value in inside)
    if hint in _CONVERTERS:
        return _CONVERTERS[hint][1](value)
    if origin is Callable:
        return _fitting(value, callable(value))
    if isinstance(hint, type) and origin is None and hint is not Any:
        original = getattr(value, "_orig_mod", value)  # of a compiled module
        return _fitting(value, isinstance(original, hint))
    return value


def _fitting(value: Any, is_fitting: bool) -> Any:
    if not is_fitting:
        raise _MismatchError
    return value


def _convert_to_any(hints: Sequence[Any], value: Any) -> Any:
    """Convert to the first of several types that the value has a meaning as."""
    if Path in hints:  # a string is one, too
        hints = [hint for hint in hints if hint is not str]
    for hint in hints:
        try:
            return _convert(hint, value)
        except _MismatchError:
            continue
    raise _MismatchError


def _plain(value: Any) -> Any:
    """What an array or a tensor of no dimension holds, as Python's own type; others as they are."""
    return value.item() if hasattr(value, "dtype") and getattr(value, "ndim", 1) == 0 else value


def to_int(value: Any) -> int:
    """An integer, or another number of the same value: 50.0, but not 50.5, `True` or "50"."""
    value = _plain(value)
    if type(value) is int:
        return value
    number = to_float(value)
    if not (math.isfinite(number) and number == int(number)):
        raise _MismatchError
    return int(value)


def to_float(value: Any) -> float:
    """A number; an integer stays one."""
    value = _plain(value)
    if type(value) in (int, float):
        return typing.cast(float, value)
    if isinstance(value, str | bytes | bool | complex) or hasattr(value, "ndim"):
        raise _MismatchError
    try:
        return float(value)
    except (TypeError, ValueError, OverflowError) as error:
        raise _MismatchError from error


def _to_bool(value: Any) -> bool:
    value = _plain(value)
    return bool(_fitting(value, isinstance(value, bool)))


def _to_str(value: Any) -> str:
    return str(_fitting(value, isinstance(value, str)))


def _to_path(value: Any) -> Path:
    is_path = isinstance(value, str | os.PathLike) and isinstance(os.fspath(value), str)
    return Path(_fitting(value, is_path and os.fspath(value) != ""))


def _to_strings(value: Any) -> list[str]:
    is_one = isinstance(value, str | bytes | Mapping) or not hasattr(value, "__iter__")
    return [_to_str(each) for each in _fitting(value, not is_one)]


def _to_ids(value: Any) -> Sequence[int]:
    """Token ids: a sequence of integers, or an array or tensor of one row of them."""
    if isinstance(value, list | tuple) and all(type(each) is int for each in value):
        return value
    if hasattr(value, "ndim"):
        value = _fitting(value, value.ndim == 1).tolist()
    is_one = isinstance(value, str | bytes | Mapping) or not hasattr(value, "__iter__")
    ids = [_plain(each) for each in _fitting(value, not is_one)]
    return [to_int(_fitting(each, not isinstance(each, float))) for each in ids]


def _is_large(value: Any) -> bool:
    """Whether a value's `repr` says less than its type: a model's, an array's."""
    return hasattr(value, "parameters") or hasattr(value, "vocab_size") or hasattr(value, "ndim")


_CONVERTERS: dict[Any, tuple[str, Callable[[Any], Any]]] = {
    int: ("an integer", to_int),
    float: ("a number", to_float),
    bool: ("True or False", _to_bool),
    str: ("a string", _to_str),
    Path: ("a path", _to_path),
    Sequence[str]: ("a sequence of strings", _to_strings),
    Sequence[int]: ("token ids (a sequence of integers)", _to_ids),
    type(None): ("None", lambda value: _fitting(value, value is None)),
}


def _describe(hint: Any) -> str:
    """What a message calls a type."""
    origin, inside = get_origin(hint), get_args(hint)
    if origin is Annotated:
        return f"{_describe(inside[0])} {inside[1]}"
    if origin in (Union, types.UnionType):
        kinds = [each for each in inside if not (each is str and Path in inside)]
        return " or ".join(map(_describe, kinds))
    if origin is Literal:
        return " or ".join(map(repr, inside))
    if hint in _CONVERTERS:
        return _CONVERTERS[hint][0]
    if origin is Callable:
        return "a function"
    return f"a {hint.__name__}"


def as_tensor(name: str, value: Any) -> torch.Tensor:
    """A tensor as it is, or what an array or nested lists hold as one.

    Raises:
        AGI2Error: where it is neither.
    """
    import torch

    if isinstance(value, torch.Tensor):
        return value
    try:
        return torch.as_tensor(value)
    except (TypeError, ValueError, RuntimeError) as error:
        raise AGI2Error(f"{name} must be a tensor, not {type(value).__name__}") from error


def as_device(name: str, value: Any) -> torch.device:
    """A device as it is, or the one of a name.

    Raises:
        AGI2Error: where there is none of that name.
    """
    import torch

    if isinstance(value, torch.device):
        return value
    try:
        return torch.device(_fitting(value, isinstance(value, str)))
    except (RuntimeError, _MismatchError):
        raise AGI2Error(
            f"{name} must be a device such as cpu or cuda:1, not {shown(value)}"
        ) from None


def check_vectors(name: str, x: Any, width: int, dims: int | None = None) -> None:
    """Raise where something is not a tensor of vectors of `width` floating-point numbers.

    Args:
        name: of the argument.
        x: what was passed.
        width: of its last dimension.
        dims: how many dimensions it must have; any number by default.

    Raises:
        AGI2Error: which names the argument, and its shape or type.
    """
    shape = "(B, T, C)" if dims == 3 else "(..., C)"
    wanted = f"{name} must be a floating-point tensor {shape} with C = {width}"
    if not hasattr(x, "is_floating_point"):
        raise AGI2Error(f"{wanted}, not {type(x).__name__}")
    if not x.is_floating_point() or x.dim() != (dims or max(x.dim(), 1)) or x.size(-1) != width:
        raise AGI2Error(f"{wanted}, not {x.dtype} of the shape {tuple(x.shape)}")
