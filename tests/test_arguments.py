"""Conversion of arguments to their annotated types, and the error messages."""

from collections.abc import Mapping, Sequence
from decimal import Decimal
from fractions import Fraction
from pathlib import Path, PurePosixPath
from typing import Any, Literal

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from src.arguments import (
    NonNegativeInt,
    PositiveInt,
    Rate,
    as_tensor,
    check_vectors,
    checked,
    convert,
)
from src.errors import AGI2Error

INTEGERS = [
    5,
    5.0,
    np.int64(5),
    np.uint8(5),
    np.float32(5),
    np.array(5),
    torch.tensor(5),
    torch.tensor(5, dtype=torch.uint8),
    torch.tensor(5.0, requires_grad=True),
    Fraction(10, 2),
    Decimal(5),
]
NEVER_NUMBERS = [
    True,
    np.True_,
    torch.tensor(True),
    "5",
    np.str_("5"),
    b"5",
    None,
    [5],
    (5,),
    np.array([5]),
    torch.tensor([5]),
    5j,
    np.complex64(5),
    torch.tensor(5j),
    {},
    object(),
    int,
    Path("5"),
]
FRACTIONS = [5.5, np.float64(5.5), torch.tensor(5.5), Fraction(11, 2), Decimal("5.5")]


@pytest.mark.parametrize("value", INTEGERS)
def test_a_number_without_a_fraction_is_an_integer(value):
    assert convert(int, "n", value) == 5
    assert type(convert(int, "n", value)) is int
    assert convert(float, "x", value) == 5


@pytest.mark.parametrize("value", FRACTIONS)
def test_a_number_with_a_fraction_is_a_number_and_no_integer(value):
    assert convert(float, "x", value) == 5.5
    assert type(convert(float, "x", value)) is float
    with pytest.raises(AGI2Error, match=r"^n must be an integer, not "):
        convert(int, "n", value)


@pytest.mark.parametrize("value", NEVER_NUMBERS)
@pytest.mark.parametrize(("hint", "what"), [(int, "an integer"), (float, "a number")])
def test_nothing_else_is_a_number(hint, what, value):
    with pytest.raises(AGI2Error, match=rf"^n must be {what}, not "):
        convert(hint, "n", value)


@pytest.mark.parametrize("value", [float("nan"), float("inf"), np.float64("-inf"), Decimal("NaN")])
def test_what_is_not_finite_is_no_integer(value):
    with pytest.raises(AGI2Error, match=r"^n must be an integer, not "):
        convert(int, "n", value)


@given(st.integers())
def test_every_integer_stays_exact(value):
    assert convert(int, "n", value) == convert(int, "n", Fraction(value)) == value


@pytest.mark.parametrize(
    ("hint", "value", "expected"),
    [
        (bool, np.True_, True),
        (bool, torch.tensor(False), False),
        (str, np.str_("a"), "a"),
        (str | Path, "a/b", Path("a/b")),
        (str | Path, PurePosixPath("a"), Path("a")),
        (Path | None, None, None),
        (int | None, None, None),
        (int | None, np.int32(3), 3),
        (bool | Literal["never"], "never", "never"),
        (bool | Literal["never"], True, True),
        (Sequence[str], ("a", "b"), ["a", "b"]),
        (str | Sequence[str], "ab", "ab"),
        (str | Sequence[str], iter(["a"]), ["a"]),
        (Sequence[int], [1, 2], [1, 2]),
        (Sequence[int], (1, np.int64(2), torch.tensor(3)), [1, 2, 3]),
        (Sequence[int], range(3), [0, 1, 2]),
        (Sequence[int], np.array([1, 2], dtype=np.uint16), [1, 2]),
        (Sequence[int], torch.tensor([1, 2]), [1, 2]),
        (Sequence[int], [], []),
        (PositiveInt, 1.0, 1),
        (NonNegativeInt | None, np.int64(0), 0),
        (Rate, 0, 0),
        (torch.device | str | None, torch.device("cpu"), torch.device("cpu")),
        (Mapping[str, float], "anything", "anything"),
        (Any, "anything", "anything"),
    ],
)
def test_what_has_the_meaning_becomes_the_plain_type(hint, value, expected):
    found = convert(hint, "x", value)
    assert found == expected
    assert type(found) is type(expected)


@pytest.mark.parametrize(
    ("hint", "value", "message"),
    [
        (bool, 1, "x must be True or False, not 1"),
        (bool, "false", "x must be True or False, not 'false'"),
        (str, b"a", "x must be a string, not b'a'"),
        (str, Path("a"), "x must be a string, not PosixPath('a')"),
        (str | Path, "", "x must be a path, not ''"),
        (str | Path, b"a", "x must be a path, not b'a'"),
        (str | Path, 5, "x must be a path, not 5"),
        (int | None, "a", "x must be an integer or None, not 'a'"),
        (bool | Literal["never"], "ever", "x must be True or False or 'never', not 'ever'"),
        (Sequence[str], "ab", "x must be a sequence of strings, not 'ab'"),
        (Sequence[str], ["a", 1], "x must be a sequence of strings, not ['a', 1]"),
        (str | Sequence[int], 5, "x must be a string or token ids (a sequence of integers), not 5"),
        (Sequence[int], [1.0], "x must be token ids (a sequence of integers), not [1.0]"),
        (Sequence[int], [True], "x must be token ids (a sequence of integers), not [True]"),
        (Sequence[int], {1: 2}, "x must be token ids (a sequence of integers), not {1: 2}"),
        (
            Sequence[int],
            torch.tensor([[1]]),
            "x must be token ids (a sequence of integers), not Tensor",
        ),
        (Sequence[int], np.ones(2), "x must be token ids (a sequence of integers), not ndarray"),
        (PositiveInt, 0, "x must be an integer of at least 1, not 0"),
        (PositiveInt, True, "x must be an integer of at least 1, not True"),
        (NonNegativeInt | None, -1, "x must be an integer of at least 0 or None, not -1"),
        (Rate, 1, "x must be a number in [0, 1), not 1"),
        (Rate, float("nan"), "x must be a number in [0, 1), not nan"),
        (torch.nn.Module, "gpt2", "x must be a Module, not 'gpt2'"),
        (str, torch.nn.Linear(1, 1), "x must be a string, not Linear"),
        (torch.device | str | None, 0, "x must be a device or a string or None, not 0"),
    ],
)
def test_what_has_not_is_one_line(hint, value, message):
    with pytest.raises(AGI2Error) as caught:
        convert(hint, "x", value)
    assert str(caught.value) == message


def test_a_checked_function_gets_plain_types_and_keeps_its_name():
    @checked
    def function(a: int, b: str | None = None, *rest: int, c: float = 1.0, **options: int) -> Any:
        """Its docstring."""
        return a, b, rest, c, options

    assert function(np.int64(1)) == (1, None, (), 1.0, {})
    assert function(1, "x", "2", c=np.float32(2), d="3") == (1, "x", ("2",), 2.0, {"d": "3"})
    with pytest.raises(AGI2Error, match=r"^c must be a number, not '2'$"):
        function(1, c="2")
    with pytest.raises(TypeError, match="missing a required argument: 'a'"):
        function()
    assert (function.__name__, function.__doc__) == ("function", "Its docstring.")


def test_a_compiled_module_is_of_its_class():
    module = torch.nn.Linear(1, 1)
    compiled = torch.compile(module, backend="eager")
    assert convert(torch.nn.Linear, "x", compiled) is compiled


def test_arrays_and_lists_are_tensors_and_others_one_line():
    tensor = torch.ones(2)
    assert as_tensor("x", tensor) is tensor
    assert as_tensor("x", np.arange(3)).tolist() == as_tensor("x", [0, 1, 2]).tolist()
    for value in ("abc", None, [[1], [1, 2]], {}, object()):
        with pytest.raises(AGI2Error, match=rf"^x must be a tensor, not {type(value).__name__}$"):
            as_tensor("x", value)


@pytest.mark.parametrize(
    ("x", "found"),
    [
        (torch.ones(2, 3, 5), r"torch.float32 of the shape \(2, 3, 5\)"),
        (torch.ones(3, 4), r"torch.float32 of the shape \(3, 4\)"),
        (torch.ones(()), r"torch.float32 of the shape \(\)"),
        (torch.ones(2, 3, 4, dtype=torch.long), r"torch.int64 of the shape \(2, 3, 4\)"),
        (np.ones((2, 3, 4)), "ndarray"),
        (None, "NoneType"),
    ],
)
def test_what_are_not_vectors_of_the_width_is_one_line(x, found):
    message = rf"^x must be a floating-point tensor \(B, T, C\) with C = 4, not {found}$"
    with pytest.raises(AGI2Error, match=message):
        check_vectors("x", x, 4, dims=3)
    check_vectors("x", torch.ones(2, 3, 4, dtype=torch.bfloat16), 4, dims=3)
    check_vectors("x", torch.ones(3, 4), 4)


@pytest.mark.parametrize("hint", [int, float, bool, str, PositiveInt, Sequence[int]])
def test_a_tensor_on_the_meta_device_has_no_value(hint):
    with pytest.raises(AGI2Error, match=r"x must be .*, not Tensor"):
        convert(hint, "x", torch.tensor(2, device="meta"))
