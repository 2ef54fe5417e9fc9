"""Fit the scaling law of `agi2 plan` to the runs in `results/planning_runs.json`.

python benchmarks/fit_plan.py

Prints the measured and the predicted loss of each run, and the fitted constants of
`src/train/scaling_law.py`. To add a run, add a row to the table; `entropy` is what
`src.train.entropy.text_entropy` returns.
"""

import json
import sys
from collections.abc import Iterable
from pathlib import Path

import numpy as np

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from src.train.scaling_law import FittedRange, ScalingLaw, effective_bytes  # noqa: E402

TABLE = ROOT / "benchmarks" / "results" / "planning_runs.json"
# Grid for the exponent of the data.
EXPONENTS = np.arange(0.1, 1.0, 0.025)


def load() -> list[dict]:
    return json.loads(TABLE.read_text(encoding="utf-8"))["rows"]


def seen_bytes(row: dict) -> float:
    tokens = row["steps"] * row["batch"] * row["context"]
    return tokens * row["train_bytes"] / row["train_tokens"]


def fit(rows: list[dict]) -> ScalingLaw:
    """Fit by least squares of the relative error, with non-negative constants.

    The reported error is that of texts which the law has not seen: of each text, by a law that is
    fitted to the others.
    """
    constants, exponent = fit_constants(rows)
    errors: list[float] = []
    for text in {row["text"] for row in rows}:
        others = [row for row in rows if row["text"] != text]
        here = [row for row in rows if row["text"] == text]
        law = fit_constants(others or rows)
        errors += (_shares(here, law[1]) @ law[0] - 1).tolist()
    error = float(np.sqrt(np.mean(np.square(errors))))
    return ScalingLaw(*map(float, constants), exponent, error)


def fit_constants(rows: list[dict]) -> tuple[np.ndarray, float]:
    """Return the constants of the three terms and the exponent of the data with the least error."""
    best, best_error = (np.zeros(3), 0.0), float("inf")
    for exponent in EXPONENTS.tolist():
        shares = _shares(rows, exponent)
        for chosen in ([0, 1, 2], [0, 2], [1, 2]):
            constants = np.zeros(3)
            constants[chosen] = np.linalg.lstsq(shares[:, chosen], np.ones(len(rows)))[0]
            error = float(np.mean(np.square(shares @ constants - 1)))
            if (constants >= 0).all() and error < best_error:
                best, best_error = (constants, exponent), error
    return best


def _shares(rows: list[dict], exponent: float) -> np.ndarray:
    """Return the three terms of each run without their constants, (runs, 3), by its result."""
    entropy, bits, sizes = (
        np.array([row[key] for row in rows]) for key in ("entropy", "bits_per_byte", "parameters")
    )
    data = np.array([effective_bytes(row["train_bytes"], seen_bytes(row)) for row in rows])
    terms = [np.ones(len(rows)), sizes**-ScalingLaw.size_exponent, data**-exponent]
    return (entropy / bits)[:, None] * np.stack(terms, axis=1)


def fitted_range(rows: list[dict]) -> FittedRange:
    """Return the ranges covered by the runs."""
    epochs = [seen_bytes(row) / row["train_bytes"] for row in rows]

    def span(values: Iterable[float]) -> tuple[float, float]:
        values = list(values)
        return min(values), max(values)

    return FittedRange(
        text_bytes=span(row["train_bytes"] for row in rows),
        parameters=span(row["parameters"] for row in rows),
        epochs=span(epochs),
        entropy=span(row["entropy"] for row in rows),
    )


def main() -> None:
    rows = load()
    found = fit(rows)
    for row in rows:
        predicted = found.bits_per_byte(
            row["entropy"], row["parameters"], row["train_bytes"], seen_bytes(row)
        )
        shape = f"{row['layers']} x {row['width']}, {row['steps']} steps"
        print(f"{row['text']:22} {shape:22} {row['bits_per_byte']:.3f}  predicted {predicted:.3f}")
    print(found)
    print(fitted_range(rows))


if __name__ == "__main__":
    main()
