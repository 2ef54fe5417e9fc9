"""Time and memory of a decode step after contexts of different lengths.

python benchmarks/token_time.py [--json FILE]

GPT-2 124M, random weights, greedy, batch size 1. A decode step is bound by memory: it reads all
weights and the KV cache, so that its time should grow no faster than these bytes.
"""

import random
import statistics
import time

import psutil
import torch
from common import parser, report

from src.config import GPT2Config
from src.inference.model_runner import ModelRunner
from src.inference.prepare import prepare_for_generation
from src.model import GPT2Model

LENGTHS, TOKENS = (16, 128, 256, 512, 992), 16
BYTES = {"none": 4, "int8": 1}


def main() -> None:
    given = parser(__doc__.splitlines()[0]).parse_args()
    rows = []
    for quantize, size in BYTES.items():
        torch.manual_seed(0)
        model = GPT2Model(GPT2Config(position_embedding="learned"))
        weights = sum(each.numel() for each in model.parameters() if each.dim() == 2) * size
        prepare_for_generation(model, quantize)
        runner = ModelRunner(model, model.config.vocab_size)
        draw = random.Random(0)
        found: dict[int, list[float]] = {length: [] for length in LENGTHS}
        memory: dict[int, float] = {}
        for _ in range(5):
            for length in LENGTHS:
                logits = runner.prefill([draw.randrange(50257) for _ in range(length)])
                start = time.perf_counter()
                for _ in range(TOKENS):
                    logits = runner.decode(logits.argmax(dim=-1))
                found[length].append((time.perf_counter() - start) / TOKENS)
                memory[length] = psutil.Process().memory_info().rss / 1e9
        shortest = statistics.median(found[LENGTHS[0]])
        for length, seconds in found.items():
            cache = 2 * 4 * model.config.n_layers * model.config.d_model * (length + TOKENS / 2)
            rows.append(
                {
                    "weights": quantize,
                    "tokens before": length,
                    "ms a token": 1e3 * statistics.median(seconds),
                    "time, of the shortest": statistics.median(seconds) / shortest,
                    "bytes, of the weights": 1 + cache / weights,
                    "memory GB": memory[length],
                }
            )
    report(rows, given.json)


if __name__ == "__main__":
    main()
