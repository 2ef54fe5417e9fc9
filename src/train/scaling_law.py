"""A scaling law that predicts a run's bits per byte, and the range in which it is valid."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar

from ..utils import human_bytes

# R* of Muennighoff et al. (2023): the value of repeated data decays with exp(-repeats / R*).
REPEAT_DECAY_EPOCHS = 15.0


def effective_bytes(text_bytes: float, seen_bytes: float) -> float:
    """Compute the effective amount of data of several epochs (Muennighoff et al., 2023).

    Args:
        text_bytes: size of the training text.
        seen_bytes: bytes over all epochs.

    Returns:
        The amount of unique text, in bytes, of equal value.
    """
    repeats = max(seen_bytes / text_bytes - 1, 0.0)
    unique = min(seen_bytes, text_bytes)
    return unique + text_bytes * REPEAT_DECAY_EPOCHS * (
        1 - math.exp(-repeats / REPEAT_DECAY_EPOCHS)
    )


@dataclass(frozen=True)
class ScalingLaw:
    """A scaling law for bits per byte on held-out text (Hoffmann et al., 2022).

    bits per byte = entropy * (irreducible + size_coefficient / parameters^size_exponent
    + data_coefficient / effective_bytes^data_exponent). The constants are fitted by
    `benchmarks/fit_plan.py`.
    """

    irreducible: float
    """The loss of an infinite model on infinite data, relative to a trigram model's."""
    size_coefficient: float
    data_coefficient: float
    data_exponent: float
    error: float
    """Root mean square of the relative error over the runs, each by a fit to the other texts."""
    size_exponent: ClassVar[float] = 0.34

    def bits_per_byte(
        self, entropy: float, parameters: int, text_bytes: float, seen_bytes: float
    ) -> float:
        """Predict the bits per byte of a trained model on held-out text.

        Args:
            entropy: bits per byte of the text by a trigram model (see `entropy.text_entropy`).
            parameters: number of model parameters.
            text_bytes: size of the training text.
            seen_bytes: bytes over all epochs.
        """
        return entropy * (
            self.irreducible
            + self.size_coefficient * parameters**-self.size_exponent
            + self.data_coefficient * effective_bytes(text_bytes, seen_bytes) ** -self.data_exponent
        )


# Fitted to 22 runs on three texts of about 1 MB, and a part of one, by benchmarks/fit_plan.py.
SCALING_LAW = ScalingLaw(
    irreducible=0.7600,
    size_coefficient=8.106,
    data_coefficient=120.5,
    data_exponent=0.45,
    error=0.0186,
)


@dataclass(frozen=True)
class FittedRange:
    """The minimum and maximum of each variable over the runs of the fit."""

    text_bytes: tuple[float, float]
    parameters: tuple[float, float]
    epochs: tuple[float, float]
    entropy: tuple[float, float]

    def why_outside(
        self, text_bytes: float, parameters: float, epochs: float, entropy: float
    ) -> str:
        """Return which variable is outside the range by over a factor of 2; empty if none is."""
        for what, value, (low, high), format_value in (
            ("the text has {}", text_bytes, self.text_bytes, human_bytes),
            ("the model has {} parameters", parameters, self.parameters, "{:,.0f}".format),
            ("the run has {} epochs over the text", epochs, self.epochs, "{:.3g}".format),
            ("a trigram model needs {} bits per byte", entropy, self.entropy, "{:.2f}".format),
        ):
            if not low / 2 <= value <= 2 * high:
                limits = f"{format_value(low)} to {format_value(high)}"
                return f"{what.format(format_value(value))}, those runs had {limits}"
        return ""


FITTED = FittedRange(
    text_bytes=(270_000, 1_093_707),
    parameters=(370_432, 4_240_896),
    epochs=(0.3158, 24.56),
    entropy=(1.703, 2.470),
)
