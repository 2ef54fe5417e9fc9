"""`Section`: the base class of the sections of the configuration, which validates their keys."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Self

from pydantic import BaseModel, ConfigDict, ValidationError, model_validator

from .config_checks import plain_values
from .config_messages import error_of, explain


class Section(BaseModel):
    """A section of the configuration: keys, with default, range and docstring.

    Args:
        **keys: values of the type that TOML would give, or equivalent ones (`plain_values`).

    Raises:
        AGI2Error: with a line for each key that is unknown, of another type or out of its range; or
            for each contradiction between keys.
    """

    model_config = ConfigDict(
        extra="forbid", frozen=True, strict=True, protected_namespaces=(), allow_inf_nan=False
    )

    def __init__(self, /, **keys: Any) -> None:
        try:
            super().__init__(**keys)
        except ValidationError as error:
            found = explain(type(self).model_fields, keys, error)
            raise error_of([line for _, line in found]) from None

    @classmethod
    def problems(cls, keys: Mapping[str, Any]) -> list[tuple[str | None, str]]:
        """Return the problems of values, each with its key; see `config_messages.explain`."""
        try:
            BaseModel.__init__(cls.__new__(cls), **keys)
        except ValidationError as error:
            return explain(cls.model_fields, keys, error)
        return []

    @model_validator(mode="before")
    @classmethod
    def _convert(cls, values: dict[str, Any]) -> dict[str, Any]:
        return plain_values(cls.model_fields, values)

    @model_validator(mode="after")
    def _check_contradictions(self) -> Self:
        if found := self._contradictions():
            raise ValueError("\n".join(found))
        return self

    def _contradictions(self) -> list[str]:
        """Return an error line for each contradiction between keys."""
        return []
