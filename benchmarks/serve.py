"""`agi2 serve` under load, compared with llama.cpp's server: GPT-2 124M, int8, random weights.

python benchmarks/serve.py GPT2_VOCABULARY [--rounds 3] [--json FILE] [--only AGI2]
python benchmarks/serve.py GPT2_VOCABULARY --soak 300
python benchmarks/serve.py --tiny

1, 8 and 32 clients stream completions, greedy, of random prompts of 60 tokens and 48 to 80 new
ones; then 8 with a system prompt of 256 tokens before 16 of their own. Both servers have 32 slots
and are loaded in turn; the other one is stopped (SIGSTOP). The clients are one process on the same
cores. llama.cpp has Q8_0 weights. GPT2_VOCABULARY is a folder with vocab.json and merges.txt.

`--soak` sends requests of all kinds for some seconds instead: see `serve_soak.py`. `--tiny` does
both with a tiny model, without llama.cpp, in a few seconds: it shows that the script works.
"""

import argparse
import asyncio
import contextlib
import os
import signal
import statistics
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from common import parser, report, run_child, save_random_gpt2
from serve_soak import soak
from serving import Answer, ServerProcess, agi2_command, percentile, send

SLOTS, PROMPT, SYSTEM, OWN = 32, 60, 256, 16
NEW = (48, 64, 80)
"""New tokens, in turn: equal ones would end all at once."""
PHASES = {
    "1 client": (1, 3, False),
    "8 clients": (8, 2, False),
    "32 clients": (32, 1, False),
    "8 clients, system prompt": (8, 1, True),
}
"""Name: the number of clients, requests of each in a round, whether they share a prefix."""


def prepare(folder: Path, vocabulary: Path) -> None:
    """Save the same random weights for both servers."""
    from src.formats.gguf import export_gguf

    keys = {"output_dir": str(folder), "model_name": "gpt2", "quantize": "int8"}
    model, tokenizer = save_random_gpt2(vocabulary, folder / "gpt2", **keys)
    export_gguf(model, tokenizer, folder / "int8.gguf", "q8_0")


def prepare_tiny(folder: Path) -> None:
    """Save a tiny model with a vocabulary of bytes."""
    import torch

    from src.config import Config
    from src.formats.model_dir import save_model
    from src.model import GPT2Model
    from src.tokenizer import BPETokenizer

    torch.manual_seed(0)
    tokenizer = BPETokenizer(257)
    tokenizer.fit([""])
    shape = {"model_embd": 32, "model_head": 2, "model_layer": 2, "model_positions": 128}
    names = {"output_dir": str(folder), "model_name": "gpt2", "quantize": "int8"}
    config = Config(**names, **shape, vocab_size=tokenizer.vocab_size)
    save_model(GPT2Model(config), tokenizer, config, folder / "gpt2")


def serve_llama_cpp(model: Path) -> None:
    """Run llama.cpp's server until standard input ends; print its address."""
    import xllamacpp

    params = xllamacpp.CommonParams()
    params.model.path = str(model)
    params.hostnames = ["127.0.0.1"]
    params.port = 0
    params.n_parallel = SLOTS
    params.n_ctx = SLOTS * 1024
    params.cpuparams.n_threads = params.cpuparams_batch.n_threads = len(os.sched_getaffinity(0))
    server = xllamacpp.Server(params)
    print(server.listening_address, flush=True)
    while True:
        time.sleep(60)


class Prompts:
    """Random prompts, the same in each run; none is sent twice to a server."""

    def __init__(self, vocab_size: int, scale: float = 1.0) -> None:
        import numpy as np

        self._draw = np.random.default_rng(0)
        self._vocab_size = vocab_size
        self._scale = scale
        self._system = self._tokens(SYSTEM)

    def _tokens(self, count: int) -> list[int]:
        size = max(1, round(count * self._scale))
        return self._draw.integers(0, self._vocab_size - 1, size).tolist()

    def requests(self, clients: int, count: int, is_shared: bool) -> list[list[dict[str, Any]]]:
        """Return the bodies of `count` requests of each client."""
        return [
            [
                {
                    "model": "gpt2",
                    "prompt": (
                        [*self._system, *self._tokens(OWN)] if is_shared else self._tokens(PROMPT)
                    ),
                    "max_tokens": max(1, round(NEW[(client + i) % len(NEW)] * self._scale)),
                    "temperature": 0,
                    "ignore_eos": True,
                    "stream": True,
                    "stream_options": {"include_usage": True},
                }
                for i in range(count)
            ]
            for client in range(clients)
        ]


async def load(server: ServerProcess, requests: list[list[dict[str, Any]]]) -> list[Answer]:
    """Send the requests of each client one after the other, all clients at once."""

    async def client(bodies: list[dict[str, Any]]) -> list[Answer]:
        return [await send(server.address, body) for body in bodies]

    found = await asyncio.wait_for(asyncio.gather(*map(client, requests)), 120)
    return [answer for answers in found for answer in answers]


def measure(
    servers: dict[str, ServerProcess], prompts: Prompts, rounds: int
) -> list[dict[str, object]]:
    """Load the servers in turn; return a row for each phase and server."""
    rates: dict[tuple[str, str], list[float]] = {}
    firsts: dict[tuple[str, str], list[float]] = {}
    memory: dict[tuple[str, str], float] = {}
    for server in servers.values():  # not measured
        asyncio.run(load(server, prompts.requests(8, 1, False)))
        server.process.send_signal(signal.SIGSTOP)
    for _ in range(rounds):
        for phase, (clients, count, is_shared) in PHASES.items():
            requests = prompts.requests(clients, count, is_shared)
            expected = sum(body["max_tokens"] for bodies in requests for body in bodies)
            for name, server in servers.items():
                with server.awake():
                    start = time.perf_counter()
                    answers = asyncio.run(load(server, requests))
                    seconds = time.perf_counter() - start
                got = sum(answer.new_tokens for answer in answers)
                print(f"{name}, {phase}: {got} tokens in {seconds:.2f} s", file=sys.stderr)
                if got != expected:
                    raise SystemExit(f"{name}, {phase}: {got} tokens, not {expected}")
                memory[phase, name] = server.memory()["now"]
                rates.setdefault((phase, name), []).append(got / seconds)
                firsts.setdefault((phase, name), []).extend(each.first_text for each in answers)
    return [
        {
            "clients": phase,
            "server": name,
            "tokens per second": statistics.median(each),
            "fastest": max(each),
            "first token p50 ms": 1000 * percentile(firsts[phase, name], 0.5),
            "p95 ms": 1000 * percentile(firsts[phase, name], 0.95),
            "GB after it": memory[phase, name],
            "peak GB": servers[name].memory()["peak"],
        }
        for (phase, name), each in rates.items()
    ]


@contextlib.contextmanager
def running(folder: Path, names: list[str]) -> Iterator[dict[str, ServerProcess]]:
    """Context manager of the servers of these names."""
    commands = {
        "AGI2": agi2_command(folder / "gpt2", "--max-rows", str(SLOTS)),
        "llama.cpp": [sys.executable, __file__, "--child", "llama.cpp", str(folder / "int8.gguf")],
    }
    with contextlib.ExitStack() as stack:
        yield {name: stack.enter_context(ServerProcess(commands[name])) for name in names}


def main() -> None:
    options = parser(__doc__.splitlines()[0])
    options.add_argument("vocabulary", type=Path, nargs="?")
    options.add_argument("--rounds", type=int, default=3)
    options.add_argument("--only", choices=["AGI2", "llama.cpp"], help="one of the servers")
    options.add_argument("--soak", type=float, metavar="SECONDS", help="random requests instead")
    options.add_argument("--tiny", action="store_true", help="both with a tiny model")
    options.add_argument("--models", type=Path, help="folder in which the weights are kept")
    options.add_argument("--child", nargs=2, help=argparse.SUPPRESS)
    given = options.parse_args()
    if given.child:
        what, place = given.child
        if what == "llama.cpp":
            serve_llama_cpp(Path(place))
        else:
            prepare(Path(place), given.vocabulary)
        return
    if not given.tiny and given.vocabulary is None:
        options.error("name the folder of GPT-2's vocabulary, or --tiny")
    with tempfile.TemporaryDirectory() as temporary:
        folder = given.models or Path(temporary)
        if given.tiny:
            prepare_tiny(folder)
        elif not (folder / "gpt2").exists():
            # In a child process, which leaves no memory behind.
            command = [sys.executable, __file__, str(given.vocabulary)]
            run_child([*command, "--child", "prepare", str(folder)])
        rows: list[dict[str, object]] = []
        if not given.soak:
            names = ["AGI2"] if given.tiny else ["AGI2", "llama.cpp"]
            with running(folder, [given.only] if given.only else names) as servers:
                prompts = Prompts(257, 0.1) if given.tiny else Prompts(50257)
                rows = measure(servers, prompts, 1 if given.tiny else given.rounds)
        if given.soak or given.tiny:
            rows += soak(folder / "gpt2", given.soak or 2.0)
    report(rows, given.json)


if __name__ == "__main__":
    main()
