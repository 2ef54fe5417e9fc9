"""Time of tanh GELU, forward and backward: `kernel_training.h` compared with PyTorch.

python benchmarks/gelu.py [--rounds 30] [--json FILE]

Median milliseconds of the forward and the backward on 4,096 x 1,536 numbers, interleaved.
"""

import statistics
import time
from functools import partial

import torch
import torch.nn.functional as F
from common import parser, report

from src.nn.training_kernels import Gelu


def main() -> None:
    options = parser(__doc__.splitlines()[0])
    options.add_argument("--rounds", type=int, default=30)
    given = options.parse_args()
    x = torch.randn(4096, 1536, generator=torch.Generator().manual_seed(0), requires_grad=True)
    grad = torch.randn_like(x)
    ways = {"AGI2": Gelu.apply, "PyTorch": partial(F.gelu, approximate="tanh")}
    seconds: dict[str, tuple[list[float], list[float]]] = {way: ([], []) for way in ways}
    for _ in range(given.rounds):
        for way, gelu in ways.items():
            start = time.perf_counter()
            out = gelu(x)
            middle = time.perf_counter()
            torch.autograd.grad(out, x, grad)
            seconds[way][0].append(middle - start)
            seconds[way][1].append(time.perf_counter() - middle)
    rows = []
    for way, (forward, backward) in seconds.items():
        rows.append(
            {
                "what": way,
                "forward ms": 1000 * statistics.median(forward),
                "backward ms": 1000 * statistics.median(backward),
            }
        )
    report(rows, given.json)


if __name__ == "__main__":
    main()
