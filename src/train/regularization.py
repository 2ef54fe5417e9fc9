"""Dropout and weight decay for a text that is seen many times."""

from __future__ import annotations

import math

# (maximum of parameters / tokens * epochs, dropout, weight decay): the higher, the more the model
# overfits. With Muon much weight decay helps more than dropout; the default is 0.1.
_REGULARIZATION = {
    "muon": (
        (15.0, 0.0, 0.1),
        (30.0, 0.0, 0.3),
        (100.0, 0.0, 0.5),
        (250.0, 0.0, 1.2),
        (math.inf, 0.1, 1.2),
    ),
    "adamw": ((25.0, 0.0, 0.1), (250.0, 0.1, 0.1), (math.inf, 0.2, 0.1)),
}
# Up to 4 epochs, repeated data is as good as new data (Muennighoff et al., 2023).
_FULL_VALUE_EPOCHS = 4.0


def regularization_for(
    optimizer: str, parameters: int, text_tokens: float, epochs: float
) -> tuple[float, float]:
    """Return dropout and weight decay for so many epochs, by the runs in `benchmarks/README.md`."""
    exposure = parameters / text_tokens * epochs if epochs > _FULL_VALUE_EPOCHS else 0.0
    _, dropout, decay = next(row for row in _REGULARIZATION[optimizer] if exposure <= row[0])
    return dropout, decay
