"""Code shared by the benchmarks: machine description, result tables and JSON, nanoGPT as baseline.

PyTorch is imported inside the functions that need it: a parent process does not.
"""

from __future__ import annotations

import argparse
import json
import os
import pickle
import platform
import shutil
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import numpy as np

    from src.model import GPT2Model
    from src.tokenizer import Tokenizer

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))


def parser(description: str) -> argparse.ArgumentParser:
    options = argparse.ArgumentParser(description=description)
    options.add_argument("--json", type=Path, help="also write the figures to this file")
    return options


def machine() -> dict[str, Any]:
    import torch

    return {
        "processor": _processor(),
        "threads": torch.get_num_threads(),
        "capability": torch.backends.cpu.get_cpu_capability(),
        "gpu": torch.cuda.get_device_name() if torch.cuda.is_available() else None,
        "python": platform.python_version(),
        "torch": torch.__version__,
        "matmul_gflops": round(matmul_gflops()),
    }


def _processor() -> str:
    info = Path("/proc/cpuinfo")
    if info.exists():
        for line in info.read_text().splitlines():
            if line.startswith("model name"):
                return line.split(":", 1)[1].strip()
    return platform.processor() or platform.machine()


def matmul_gflops() -> float:
    """Return the GFLOP/s of an fp32 matrix product, 1024 x 768 x 3072, best of 20."""
    import torch

    a, b = torch.randn(1024, 768), torch.randn(768, 3072)
    best = float("inf")
    for _ in range(20):
        start = time.perf_counter()
        a @ b
        best = min(best, time.perf_counter() - start)
    return 2 * 1024 * 768 * 3072 / best / 1e9


def report(rows: list[dict[str, Any]], path: Path | None) -> None:
    """Print rows as a table; also save them as JSON, with the machine, if a path is given."""
    show_rows(rows)
    if path is not None:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps({"machine": machine(), "rows": rows}, indent=1) + "\n")


def show_rows(rows: list[dict[str, Any]]) -> None:
    """Print rows as a table."""
    columns = list(dict.fromkeys(key for row in rows for key in row))
    cells = [[_show(row.get(column, "")) for column in columns] for row in rows]
    widths = [
        max(len(column), *(len(line[i]) for line in cells)) for i, column in enumerate(columns)
    ]
    for line in [columns, ["-" * width for width in widths], *cells]:
        print("  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)))


def _show(value: Any) -> str:
    return f"{value:,.4g}" if isinstance(value, float) and abs(value) < 1e4 else str(value)


def run_child(command: list[str], cwd: Path | None = None) -> tuple[float, float, str]:
    """Run a command; return its wall time in s, peak memory in GB and standard output."""
    start = time.perf_counter()
    child = _start(command, cwd=cwd)
    assert child.stdout is not None
    output = child.stdout.read()
    peak = _end(child, output)
    return time.perf_counter() - start, peak, output


def _start(command: list[str], **options: Any) -> subprocess.Popen[str]:
    """Start a process with this project on its PYTHONPATH and its standard output piped."""
    path = {**os.environ, "PYTHONPATH": str(ROOT)}
    return subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=path, **options)


def _end(child: subprocess.Popen[str], output: str = "") -> float:
    """Wait for a process; return its peak memory in GB."""
    _, status, usage = os.wait4(child.pid, 0)
    if status:
        raise SystemExit(f"{child.args} failed:\n{output}")
    return usage.ru_maxrss / (1e9 if sys.platform == "darwin" else 1e6)


class InTurn:
    """A child process that runs a workload on request; see `work_in_turn`.

    Interleaving two of them exposes both to the same variations of the machine's speed.
    """

    def __init__(self, command: list[str]) -> None:
        self._child = _start(command, stdin=subprocess.PIPE)
        self.seconds: list[float] = []
        self._next()  # wait until it is ready

    def _next(self) -> str:
        assert self._child.stdout is not None
        while line := self._child.stdout.readline():
            if line.startswith(_TURN):
                return line.removeprefix(_TURN)
        raise SystemExit(f"{self._child.args} failed")

    def turn(self) -> None:
        """Run the workload a few times and record the durations in s."""
        assert self._child.stdin is not None
        self._child.stdin.write("\n")
        self._child.stdin.flush()
        self.seconds += json.loads(self._next())

    def end(self) -> float:
        """End the process; return its peak memory in GB."""
        assert self._child.stdin is not None
        self._child.stdin.close()
        return _end(self._child)


_TURN = "seconds: "


def work_in_turn(work: Callable[[], object], times: int = 3) -> None:
    """Serve `InTurn` in the child: for each line of input, run `work` and print its durations.

    Each turn begins with an untimed run, because other processes have evicted the caches.
    """
    print(_TURN, flush=True)
    for _ in sys.stdin:
        seconds = []
        for _ in range(1 + times):
            start = time.perf_counter()
            work()
            seconds.append(time.perf_counter() - start)
        print(f"{_TURN}{seconds[1:]}", flush=True)


def save_random_gpt2(vocabulary: Path, folder: Path, **keys: Any) -> tuple[GPT2Model, Tokenizer]:
    """Save a GPT-2 124M with reproducible random weights, as a model folder.

    Args:
        vocabulary: folder with vocab.json and merges.txt.
        folder: output folder.
        **keys: configuration keys.
    """
    import torch

    from src.config import Config
    from src.formats.model_dir import save_model
    from src.model import GPT2Model
    from src.tokenizer import load_tokenizer

    torch.manual_seed(0)
    config = Config(position_embedding="learned", vocab_size=50257, **keys)
    model, tokenizer = GPT2Model(config), load_tokenizer(vocabulary)
    save_model(model, tokenizer, config, folder)
    return model, tokenizer


def nanogpt_characters(
    nanogpt: Path, text: str, work: Path, steps: int, **changes: Any
) -> dict[str, Any]:
    """Train nanoGPT's published character-level CPU recipe on a text; the last 10 % validate.

    Uses a copy of nanoGPT's folder in `work`. The loss is that of the final weights on all of the
    held-out text, in consecutive windows of the context length.
    """
    import numpy as np

    copy = work / "nanogpt"
    shutil.copytree(nanogpt, copy, ignore=shutil.ignore_patterns(".git", "assets"))
    data = copy / "data" / "benchmark"
    data.mkdir()
    characters = sorted(set(text))
    ids = np.array([{c: i for i, c in enumerate(characters)}[c] for c in text], dtype=np.uint16)
    cut = int(0.9 * len(ids))
    ids[:cut].tofile(data / "train.bin")
    ids[cut:].tofile(data / "val.bin")
    meta = {"vocab_size": len(characters), "itos": {}, "stoi": {}}
    (data / "meta.pkl").write_bytes(pickle.dumps(meta))
    options = {
        "dataset": "benchmark",
        "out_dir": "out",
        "device": "cpu",
        "compile": False,
        "eval_iters": 20,
        "eval_interval": steps,
        "log_interval": 100,
        "block_size": 64,
        "batch_size": 12,
        "n_layer": 4,
        "n_head": 4,
        "n_embd": 128,
        "max_iters": steps,
        "lr_decay_iters": steps,
        "dropout": 0.0,
        **changes,
    }
    command = [sys.executable, "train.py", "config/train_shakespeare_char.py"]
    command += [f"--{key}={value}" for key, value in options.items()]
    seconds, memory, _ = run_child(command, cwd=copy)
    loss = _nanogpt_loss(copy, ids[cut:].astype(np.int64), options["block_size"])
    return {"seconds": seconds, "peak GB": memory, "loss": loss, "characters": len(ids) - cut - 1}


def _nanogpt_loss(copy: Path, ids: np.ndarray, width: int) -> float:
    """Return the mean loss in nats per character over consecutive windows."""
    import torch
    import torch.nn.functional as F

    sys.path.insert(0, str(copy))
    from model import GPT, GPTConfig  # nanoGPT's own

    saved = torch.load(copy / "out" / "ckpt.pt", weights_only=False)
    model = GPT(GPTConfig(**saved["model_args"]))
    model.load_state_dict(saved["model"])
    model.eval()
    total = 0.0
    with torch.no_grad():
        for start in range(0, len(ids) - 1, width * 64):
            span = torch.from_numpy(ids[start : start + width * 64 + 1])
            whole = (len(span) - 1) // width * width
            for part in (slice(0, whole), slice(whole, len(span) - 1)):
                x, y = span[:-1][part], span[1:][part]
                if len(x):
                    shape = (-1, min(width, len(x)))
                    logits, _ = model(x.view(shape), y.view(shape))
                    total += F.cross_entropy(logits.flatten(0, 1), y, reduction="sum").item()
    return total / (len(ids) - 1)
