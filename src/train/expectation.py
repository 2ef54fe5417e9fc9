"""What a run is expected to reach: bits per byte by a scaling law, and where the law holds."""

from __future__ import annotations

import bz2
import math
from dataclasses import dataclass
from typing import ClassVar

from ..utils import human_bytes

# Repeated text teaches less and less: after so many passes more of them add next to nothing.
PASSES_WORTH = 15.0
# Of a text, so many bytes are compressed to see how hard it is to predict.
_COMPRESSED_BYTES = 900_000


def effective_bytes(text_bytes: float, seen_bytes: float) -> float:
    """What passes over a text are worth in bytes of fresh text (Muennighoff et al., 2023).

    Args:
        text_bytes: of the training text.
        seen_bytes: of all passes together.
    """
    repeats = max(seen_bytes / text_bytes - 1, 0.0)
    fresh = min(seen_bytes, text_bytes)
    return fresh + text_bytes * PASSES_WORTH * (1 - math.exp(-repeats / PASSES_WORTH))


@dataclass(frozen=True)
class Expectation:
    """Bits per byte on held-out text as a scaling law (Hoffmann et al., 2022).

    How hard the text is x (floor + size / parameters^a + data / effective bytes^b). The constants
    are fitted by `benchmarks/fit_plan.py`.
    """

    floor: float
    size: float
    data: float
    data_exponent: float
    error: float
    """Root mean square of the relative error over the runs that it was fitted to."""
    size_exponent: ClassVar[float] = 0.34

    def bits_per_byte(
        self, hardness: float, parameters: int, text_bytes: float, seen_bytes: float
    ) -> float:
        """What a run ends with.

        Args:
            hardness: bits per byte that a general compressor needs (see `hardness_of`).
            parameters: of the model.
            text_bytes: of the training text.
            seen_bytes: of all passes together.
        """
        return hardness * (
            self.floor
            + self.size * parameters**-self.size_exponent
            + self.data * effective_bytes(text_bytes, seen_bytes) ** -self.data_exponent
        )


def hardness_of(text: bytes) -> float:
    """Bits per byte of a text's beginning after bzip2: a measure of how predictable it is."""
    part = text[:_COMPRESSED_BYTES]
    return 8 * len(bz2.compress(part)) / len(part)


# Fitted to 17 runs on three texts of about a megabyte, by benchmarks/fit_plan.py.
EXPECTATION = Expectation(floor=0.7338, size=5.092, data=174.4, data_exponent=0.5, error=0.0482)


@dataclass(frozen=True)
class FittedRange:
    """The least and the most of each of the runs that the expectation is fitted to."""

    text_bytes: tuple[float, float]
    parameters: tuple[float, float]
    passes: tuple[float, float]
    hardness: tuple[float, float]

    def why_outside(
        self, text_bytes: float, parameters: float, passes: float, hardness: float
    ) -> str:
        """Name what is further than a factor of 2 outside of the runs; empty where nothing is."""
        for what, value, (least, most), show in (
            ("the text has {}", text_bytes, self.text_bytes, human_bytes),
            ("the model has {} parameters", parameters, self.parameters, "{:,.0f}".format),
            ("the run has {} passes over the text", passes, self.passes, "{:.3g}".format),
            ("bzip2 needs {} bits for a byte", hardness, self.hardness, "{:.2f}".format),
        ):
            if not least / 2 <= value <= 2 * most:
                return f"{what.format(show(value))}, those runs {show(least)} to {show(most)}"
        return ""


FITTED = FittedRange(
    text_bytes=(844_003, 1_093_707),
    parameters=(370_432, 4_240_896),
    passes=(0.3158, 12.03),
    hardness=(1.786, 2.457),
)
