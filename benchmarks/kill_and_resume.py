"""Exact resume: compare the weights of a run that is killed repeatedly with an uninterrupted one.

python benchmarks/kill_and_resume.py [--kills 100] [--optimizer muon] [--json FILE]

A small model trains on the Python documentation, with a checkpoint every other step. The process
gets SIGKILL at random times after training has begun, and is resumed each time until the run ends.
The best weights, the last checkpoint's weights and optimizer state, the losses and the samples are
compared bit for bit.
"""

import random
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import tomli_w
from common import ROOT, parser, report

from src.data.corpus import read_documents
from src.train.checkpoint import list_checkpoints
from src.train.trackers import read_metrics

RUN = {
    "vocab_size": 300,
    "model_layer": 2,
    "model_head": 2,
    "model_embd": 64,
    "model_positions": 32,
    "dropout": 0.1,
    "batch_size": 8,
    "micro_batch_size": 4,
    "checkpoint_interval": 2,
    "eval_interval": 25,
    "eval_tokens": 2048,
    "sample_tokens": 8,
}
BEGUN = "sequences ("
"""Part of the last line that a run logs before its first step."""


def train(file: Path, *more: str) -> subprocess.Popen[str]:
    command = [sys.executable, str(ROOT / "agi2_train.py"), str(file), *more]
    return subprocess.Popen(
        command, stderr=subprocess.PIPE, stdout=subprocess.DEVNULL, text=True, cwd=ROOT
    )


def finish(process: subprocess.Popen[str]) -> None:
    said = process.communicate()[1]
    if process.returncode:
        raise SystemExit(f"the run failed:\n{said}")


def kill_at_random(process: subprocess.Popen[str], longest: float) -> bool:
    """Kill a run up to `longest` seconds after training began; return False if it had ended."""
    assert process.stderr is not None
    for line in process.stderr:
        if BEGUN in line:
            break
    time.sleep(random.uniform(0, longest))
    process.send_signal(signal.SIGKILL)
    process.communicate()
    return process.returncode == -signal.SIGKILL


def content(run: Path) -> dict[str, object]:
    newest = list_checkpoints(run)[-1]
    volatile = ("second", "memory", "share")
    return {
        "best weights": (run / "model.safetensors").read_bytes(),
        "last weights": (newest / "model.safetensors").read_bytes(),
        "optimizer": (newest / "training.safetensors").read_bytes(),
        "losses and samples": [
            {k: v for k, v in entry.items() if not any(word in k for word in volatile)}
            for entry in read_metrics(run / "metrics.jsonl")
            if "start" not in entry
        ],
    }


def main() -> None:
    options = parser(__doc__.splitlines()[0])
    options.add_argument("--kills", type=int, default=100)
    options.add_argument("--seed", type=int, default=0)
    options.add_argument("--longest", type=float, default=1.0, help="seconds until a kill")
    options.add_argument("--steps", type=int, default=1500)
    options.add_argument("--optimizer", choices=["adamw", "muon"], default="muon")
    given = options.parse_args()
    random.seed(given.seed)
    start = time.perf_counter()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        text = folder / "text.txt"
        text.write_text("\n".join(read_documents(["builtin:python-docs"]))[:200_000], "utf-8")
        files = {}
        for run in ("whole", "killed"):
            files[run] = folder / f"{run}.toml"
            config = {**RUN, "sources": [str(text)], "model_name": run, "output_dir": name}
            config |= {"max_steps": given.steps, "optimizer": given.optimizer}
            files[run].write_text(tomli_w.dumps(config))
        finish(train(files["whole"]))
        kills = while_writing = 0
        while kills < given.kills:
            if not kill_at_random(train(files["killed"], "--resume"), given.longest):
                raise SystemExit(f"the run ended after {kills} kills: raise --steps")
            kills += 1
            while_writing += any(folder.rglob("*.partial"))
        finish(train(files["killed"], "--resume"))
        runs = [content(folder / run) for run in ("whole", "killed")]
    same = {key: runs[0][key] == runs[1][key] for key in runs[0]}
    row = {"kills": kills, "while a checkpoint was written": while_writing, **same}
    report([{**row, "seconds": time.perf_counter() - start}], given.json)
    if not all(same.values()):
        raise SystemExit(1)


if __name__ == "__main__":
    main()
