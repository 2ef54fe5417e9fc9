"""Argument validation and conversion for public functions, driven by their annotations.

Equivalent types (a NumPy integer, a zero-dimensional tensor, a `Path`) are converted to the plain
Python type. Anything else raises a one-line error that names the argument. There is no silent
coercion: `True` is not 1, `"0.8"` is not a number, 50.5 is not 50.
"""

from __future__ import annotations

import functools
import inspect
import math
import os
import types
import typing
from collections.abc import Callable, Iterable, Mapping, Sequence
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

from .errors import AGI2Error, safe_repr

if TYPE_CHECKING:
    import torch

P = ParamSpec("P")
R = TypeVar("R")


@dataclass(frozen=True)
class Range:
    """Interval of the numbers that an annotation allows: >= `least`, <= `most` and < `below`."""

    minimum: float
    below: float = math.inf
    maximum: float = math.inf

    def __contains__(self, value: float) -> bool:
        return self.minimum <= value <= self.maximum and value < self.below

    def __str__(self) -> str:
        if self.maximum < math.inf:
            return f"from {self.minimum:,} to {self.maximum:,}"
        if self.below == math.inf:
            return f"of at least {self.minimum:g}"
        return f"in [{self.minimum:g}, {self.below:g})"


PositiveInt = Annotated[int, Range(1)]
NonNegativeInt = Annotated[int, Range(0)]
Rate = Annotated[float, Range(0, 1)]
"""A dropout probability, in [0, 1)."""


def checked(function: Callable[P, R]) -> Callable[P, R]:
    """Decorate a function to convert its arguments to their annotations; see `convert`.

    Arguments collected by `*args` and `**kwargs` are passed on unchanged.

    Raises:
        AGI2Error: on a call, if an argument cannot be converted.
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
        AGI2Error: if a field cannot be converted.
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
            with a `Range`, `Sequence[int]` (token ids), `Sequence[str]`, or a union of them. With
            any other, the value is returned unchanged.
        name: name of the argument, for the message.
        value: the argument.

    Raises:
        AGI2Error: if the value is not of an equivalent type, or out of range.
    """
    try:
        return _convert(hint, value)
    except MismatchError:
        value = to_scalar(value)
        received = type(value).__name__ if _is_large(value) else safe_repr(value)
        raise AGI2Error(f"{name} must be {describe(hint)}, not {received}") from None


class MismatchError(Exception):
    """A value cannot be converted to the annotated type."""


def _convert(hint: Any, value: Any) -> Any:
    origin, args = get_origin(hint), get_args(hint)
    if origin is Annotated:
        value = _convert(args[0], value)
        return _require(value, value in args[1])
    if origin in (Union, types.UnionType):
        return _convert_to_any(args, value)
    if origin is Literal:
        return _require(value, isinstance(value, str) and value in args)
    if hint in _CONVERTERS:
        return _CONVERTERS[hint][1](value)
    if origin is Callable:
        return _require(value, callable(value))
    if isinstance(hint, type) and origin is None and hint is not Any:
        original = getattr(value, "_orig_mod", value)  # unwraps a `torch.compile`d module
        return _require(value, isinstance(original, hint))
    return value


def _require(value: Any, is_fitting: bool) -> Any:
    if not is_fitting:
        raise MismatchError
    return value


def _convert_to_any(hints: Sequence[Any], value: Any) -> Any:
    """Convert to the first type of a union that the value can be converted to."""
    if Path in hints:  # a string is also a path, which its converter checks
        hints = [hint for hint in hints if hint is not str]
    for hint in hints:
        try:
            return _convert(hint, value)
        except MismatchError:
            continue
    raise MismatchError


def to_scalar(value: Any) -> Any:
    """Convert a zero-dimensional array or tensor to a Python scalar; return others unchanged."""
    if not (hasattr(value, "dtype") and getattr(value, "ndim", 1) == 0):
        return value
    try:
        return value.item()
    except RuntimeError:  # a tensor on the meta device has no value
        return value


def to_int(value: Any) -> int:
    """Convert a number to an integer of the same value: 50.0, but not 50.5, `True` or "50"."""
    value = to_scalar(value)
    if type(value) is int:
        return value
    number = to_float(value)
    if not (math.isfinite(number) and number == int(number)):
        raise MismatchError
    return int(value)


def to_float(value: Any) -> float:
    """Convert a number to a float; an integer is returned unchanged."""
    value = to_scalar(value)
    if type(value) in (int, float):
        return typing.cast(float, value)
    if isinstance(value, str | bytes | bool | complex) or hasattr(value, "ndim"):
        raise MismatchError
    try:
        return float(value)
    except (TypeError, ValueError, OverflowError) as error:
        raise MismatchError from error


def _to_bool(value: Any) -> bool:
    value = to_scalar(value)
    return bool(_require(value, isinstance(value, bool)))


def _to_str(value: Any) -> str:
    return str(_require(value, isinstance(value, str)))


def _to_path(value: Any) -> Path:
    is_path = isinstance(value, str | os.PathLike) and isinstance(os.fspath(value), str)
    return Path(_require(value, is_path and os.fspath(value) != ""))


def is_several(value: Any) -> bool:
    """Return whether a value is an iterable of items; not bytes, a mapping, or a 0-D array.

    An array without dimensions has `__iter__`, too, which raises.
    """
    is_iterable = isinstance(value, Iterable) and not isinstance(value, bytes | Mapping)
    return is_iterable and getattr(value, "ndim", 1) != 0


def _to_strings(value: Any) -> list[str]:
    is_list = is_several(value) and not isinstance(value, str)
    return [_to_str(each) for each in _require(value, is_list)]


def _to_ids(value: Any) -> Sequence[int]:
    """Convert token ids, a sequence of integers or a 1-D array or tensor, to a Python sequence."""
    if isinstance(value, list | tuple) and all(type(each) is int for each in value):
        return value
    if hasattr(value, "ndim"):
        value = _to_list(_require(value, value.ndim == 1))
    is_list = is_several(value) and not isinstance(value, str)
    ids = [to_scalar(each) for each in _require(value, is_list)]
    return [to_int(_require(each, not isinstance(each, float))) for each in ids]


def _to_list(array: Any) -> Any:
    try:
        return array.tolist()
    except RuntimeError:  # a sparse tensor, or one on the meta device
        raise MismatchError from None


def _is_large(value: Any) -> bool:
    """Return whether to show a value by its type, since its `repr` is long: a model, an array."""
    return hasattr(value, "parameters") or hasattr(value, "vocab_size") or hasattr(value, "ndim")


_CONVERTERS: dict[Any, tuple[str, Callable[[Any], Any]]] = {
    int: ("an integer", to_int),
    float: ("a number", to_float),
    bool: ("True or False", _to_bool),
    str: ("a string", _to_str),
    Path: ("a path", _to_path),
    Sequence[str]: ("a sequence of strings", _to_strings),
    Sequence[int]: ("token ids (a sequence of integers)", _to_ids),
    type(None): ("None", lambda value: _require(value, value is None)),
}


def describe(hint: Any) -> str:
    """Return the description of a type for messages."""
    origin, args = get_origin(hint), get_args(hint)
    if origin is Annotated:
        return f"{describe(args[0])} {args[1]}"
    if origin in (Union, types.UnionType):
        kinds = [each for each in args if not (each is str and Path in args)]
        return " or ".join(map(describe, kinds))
    if origin is Literal:
        *others, last = map(repr, args)
        return f"{', '.join(others)} or {last}" if others else last
    if hint in _CONVERTERS:
        return _CONVERTERS[hint][0]
    if origin is Callable:
        return "a function"
    return f"a {hint.__name__}"


def as_tensor(name: str, value: Any) -> torch.Tensor:
    """Convert an array or nested lists to a tensor; return a tensor unchanged.

    Raises:
        AGI2Error: if the value cannot be converted.
    """
    import torch

    if isinstance(value, torch.Tensor):
        return value
    try:
        return torch.as_tensor(value)
    except (TypeError, ValueError, RuntimeError) as error:
        raise AGI2Error(f"{name} must be a tensor, not {type(value).__name__}") from error


def as_device(name: str, value: Any) -> torch.device:
    """Convert a device name to a `torch.device`; return a device unchanged.

    Raises:
        AGI2Error: if the name is not a valid device.
    """
    import torch

    if isinstance(value, torch.device):
        return value
    try:
        return torch.device(_require(value, isinstance(value, str)))
    except (RuntimeError, MismatchError):
        raise AGI2Error(
            f"{name} must be a device such as cpu or cuda:1, not {safe_repr(value)}"
        ) from None


def check_vectors(name: str, x: Any, width: int, dims: int | None = None) -> None:
    """Check that an argument is a floating-point tensor (..., C).

    Args:
        name: name of the argument, for the message.
        x: the argument.
        width: required size C of the last dimension.
        dims: required number of dimensions; any by default.

    Raises:
        AGI2Error: if it is not a floating-point tensor of such a shape.
    """
    shape = "(B, T, C)" if dims == 3 else "(..., C)"
    expected = f"{name} must be a floating-point tensor {shape} with C = {width}"
    if not hasattr(x, "is_floating_point"):
        raise AGI2Error(f"{expected}, not {type(x).__name__}")
    if not x.is_floating_point() or x.dim() != (dims or max(x.dim(), 1)) or x.size(-1) != width:
        raise AGI2Error(f"{expected}, not {x.dtype} of the shape {tuple(x.shape)}")


def describe_range(bounds: Iterable[Any], integer: int | None = None) -> str:
    """Return the range of a key as text, such as "above 0 and at most 1".

    Args:
        bounds: pydantic's metadata of the field.
        integer: for integers, the value: only the bound that it violates is named.
    """
    limits = {
        name: getattr(each, name)
        for each in bounds
        for name in ("ge", "gt", "le", "lt")
        if hasattr(each, name)
    }
    low = limits["gt" if "gt" in limits else "ge"]
    high = limits.get("le", limits.get("lt", math.inf))
    if integer is not None:
        return f"at most {high:,}" if integer > high else f"at least {low}"
    if high == math.inf:
        return f"above {low:g}" if "gt" in limits else f"a number from {low:g} on"
    upper = f"at most {high:g}" if "le" in limits else f"below {high:g}"
    if "gt" in limits:
        return f"above {low:g} and {upper}"
    return f"from {low:.10g} to {high:.10g}" if "le" in limits else f"from {low:g} to {upper}"
