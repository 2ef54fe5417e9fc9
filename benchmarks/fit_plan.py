"""Fit the scaling law of `agi2 plan` to the runs in `results/planning_runs.json`.

python benchmarks/fit_plan.py

Prints the measured and the predicted loss of each run, and the fitted constants of
`src/train/scaling_law.py`. To add a run, add a row to the table.
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

    The constants are fitted with a free entropy per text, so that model and data sizes are
    compared within a text. The reported error is that of the complete prediction, in which the
    entropy is estimated from bzip2's compression.
    """
    bits = np.array([row["bits_per_byte"] for row in rows])
    by_bzip2 = np.array([row["compressed"] for row in rows])
    texts = np.array([row["text"] for row in rows])
    sizes = np.array([row["parameters"] for row in rows])
    data = np.array([effective_bytes(row["train_bytes"], seen_bytes(row)) for row in rows])
    best, best_error = None, float("inf")
    for exponent in EXPONENTS:
        terms = np.stack([np.ones(len(rows)), sizes**-ScalingLaw.size_exponent, data**-exponent])
        for chosen in ([0, 1, 2], [0, 2], [1, 2]):
            law, within = _fit_law(bits, by_bzip2, texts, terms[chosen])
            if (law >= 0).all() and within < best_error:
                constants = np.zeros(3)
                constants[chosen] = law
                error = np.sqrt(np.mean((by_bzip2 * (constants @ terms) / bits - 1) ** 2))
                best_error = within
                best = ScalingLaw(*map(float, constants), float(exponent), float(error))
    assert best is not None
    return best


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
        entropy=span(row["compressed"] for row in rows),
    )


def _fit_law(
    bits: np.ndarray, by_bzip2: np.ndarray, texts: np.ndarray, terms: np.ndarray
) -> tuple[np.ndarray, float]:
    """Return the constants of the terms and their relative error (alternating least squares)."""
    entropy = by_bzip2.copy()
    for _ in range(40):
        law = np.linalg.lstsq((entropy / bits * terms).T, np.ones(len(bits)))[0]
        expected = law @ terms
        for text in set(texts.tolist()):
            here = texts == text
            entropy[here] = np.mean(bits[here] / expected[here])
    # Entropy and law are determined up to a common factor: normalize the entropy to bzip2's.
    factor = np.exp(np.mean(np.log(entropy / by_bzip2)))
    return law * factor, float(np.sqrt(np.mean((entropy * expected / bits - 1) ** 2)))


def main() -> None:
    rows = load()
    found = fit(rows)
    for row in rows:
        predicted = found.bits_per_byte(
            row["compressed"], row["parameters"], row["train_bytes"], seen_bytes(row)
        )
        shape = f"{row['layers']} x {row['width']}, {row['steps']} steps"
        print(f"{row['text']:22} {shape:22} {row['bits_per_byte']:.3f}  predicted {predicted:.3f}")
    print(found)
    print(fitted_range(rows))


if __name__ == "__main__":
    main()
