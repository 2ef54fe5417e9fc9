"""Overhead of beam search: time per step with the search, compared with the model alone.

python benchmarks/beam_search.py [--rounds 5] [--json FILE]

A model of one layer, 64 wide, with GPT-2's vocabulary of 50,257: its decode step costs next to
nothing, so that the overhead of the search is visible. 5 beams, and 6 in 3 groups; 64 new tokens.
"""

import statistics
import time

import torch
from common import parser, report

from src.config import GPT2Config
from src.inference.beam_search import beam_search
from src.inference.model_runner import ModelRunner
from src.inference.prepare import prepare_for_generation
from src.model import GPT2Model

PROMPT, NEW = 16, 64


def main() -> None:
    options = parser(__doc__.splitlines()[0])
    options.add_argument("--rounds", type=int, default=5)
    given = options.parse_args()
    torch.manual_seed(0)
    model = GPT2Model(GPT2Config(d_model=64, n_layers=1, n_heads=4, dropout=0.0))
    prepare_for_generation(model)
    prompt = torch.randint(0, 50257, (PROMPT,)).tolist()

    def alone(beams: int) -> None:
        """Run the decode steps and KV cache reorderings of a search, with fixed tokens."""
        runner = ModelRunner(model, 50257)
        runner.prefill(prompt)
        rows = torch.arange(beams)
        for step in range(NEW - 1):
            runner.reorder(torch.zeros(beams, dtype=torch.long) if step == 0 else rows.flip(0))
            runner.decode(rows)

    ways = {
        "model alone, 5 beams": (5, lambda: alone(5)),
        "search, 5 beams": (5, lambda: beam_search(model, prompt, 5, NEW)),
        "model alone, 6 beams": (6, lambda: alone(6)),
        "search, 6 beams in 3 groups": (6, lambda: beam_search(model, prompt, 6, NEW, groups=3)),
    }
    times: dict[str, list[float]] = {way: [] for way in ways}
    for _ in range(given.rounds):
        for way, (_, run) in ways.items():
            start = time.perf_counter()
            run()
            times[way].append((time.perf_counter() - start) / NEW)
    rows = [
        {
            "what": way,
            "steps per second": 1 / statistics.median(values),
            "ms a step": 1e3 * statistics.median(values),
        }
        for way, values in times.items()
    ]
    report(rows, given.json)


if __name__ == "__main__":
    main()
