"""What a GPU is asked, in one call: tests, training, a character model, generation.

python benchmarks/gpu.py --out FOLDER [--nanogpt NANOGPT_FOLDER] [--text TEXT] [--minutes 8]
    [--only WORDS] [--device cpu --tiny]

1. The tests that need a GPU (`pytest -m gpu`, or a few checks where pytest is missing).
2. A training step of GPT-2 124M at 16 x 1024 in bf16: AGI2 compiled and not, nanoGPT compiled.
3. nanoGPT's GPU recipe for characters (6 layers, 384 wide, context 256, batch 64, dropout 0.2;
   nanoGPT's published val loss on Shakespeare is 1.4697), with AGI2's optimizer.
4. Generation with GPT-2 124M and the same random weights next to `transformers`, with 1 and 8
   texts, in fp32 and bf16; AGI2 with CUDA graphs.

Each part is a process with a time limit, its share of what is left of `--minutes`. `results.json`
in the output folder is replaced after each of them: whatever ends early, what was done is there.
`--device cpu --tiny` runs all of it on a CPU with tiny sizes.
"""

from __future__ import annotations

import argparse
import contextlib
import importlib.util
import json
import os
import re
import shutil
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from character_recipe import character_config
from common import ROOT, report
from train_step import SHAPES, nanogpt_step, our_step, share_of_peak

from src.utils import write_text

Write = Callable[[dict[str, Any]], None]


@dataclass(frozen=True)
class Sizes:
    """Of what is measured."""

    shape: tuple[int, ...]
    """Of a training step: see `train_step.SHAPES`."""
    steps: int
    """Training steps that are timed."""
    character_model: dict[str, Any]
    prompt: int
    new_tokens: int
    rounds: int


FULL = Sizes(
    shape=SHAPES["cuda"]["124M, 16 x 1024"],
    steps=20,
    character_model={
        "model_layer": 6,
        "model_head": 6,
        "model_embd": 384,
        "model_positions": 256,
        "batch_size": 64,
        "dropout": 0.2,
        "max_steps": 5000,
        "eval_interval": 250,
    },
    prompt=60,
    new_tokens=128,
    rounds=3,
)
TINY = Sizes(
    shape=(2, 32, 300, 320, 2, 2, 32),
    steps=3,
    character_model={
        "model_layer": 1,
        "model_head": 2,
        "model_embd": 16,
        "model_positions": 16,
        "batch_size": 4,
        "dropout": 0.2,
        "max_steps": 20,
        "eval_interval": 10,
    },
    prompt=6,
    new_tokens=12,
    rounds=1,
)


def sizes_of(given: argparse.Namespace) -> Sizes:
    return TINY if given.tiny else FULL


# The parts, each in a process of its own. They write a row as soon as they have it.


def describe(given: argparse.Namespace, write: Write) -> None:
    """The machine, and the matrix product that it reaches."""
    import torch

    from src.cuda_utils import describe_device
    from src.train.estimates import peak_flops

    device = torch.device(given.device)
    size, dtype = (256, torch.float32) if given.tiny else (8192, torch.bfloat16)
    a, b = (torch.randn(size, size, device=device, dtype=dtype) for _ in range(2))
    seconds = []
    for _ in range(10):
        start = time.perf_counter()
        a @ b
        synchronize(given.device)
        seconds.append(time.perf_counter() - start)
    peak = peak_flops(device, dtype)
    write(
        {
            "device": describe_device(device),
            "python": sys.version.split()[0],
            "torch": torch.__version__,
            "cores": len(os.sched_getaffinity(0)),
            "TFLOP/s measured": 2 * size**3 / statistics.median(seconds) / 1e12,
            "TFLOP/s by its maker": None if peak is None else peak / 1e12,
        }
    )


def run_tests(given: argparse.Namespace, write: Write) -> None:
    """The tests marked `gpu`, a row for each."""
    if importlib.util.find_spec("pytest") is None or importlib.util.find_spec("hypothesis") is None:
        run_checks(given, write)
        return
    files = [
        str(path.relative_to(ROOT))
        for path in sorted((ROOT / "tests").rglob("test_*.py"))
        if "mark.gpu" in path.read_text(encoding="utf-8")
    ]
    # The project's own options ask for coverage, which says nothing here.
    command = [sys.executable, "-m", "pytest", "-o", "addopts=", "-m", "gpu", "-v", "--tb=short"]
    if importlib.util.find_spec("xdist") is not None and not given.tiny:
        command += ["-n", "6"]
    command += ["-p", "no:cacheprovider", *files]
    child = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True)
    assert child.stdout is not None
    for line in child.stdout:
        print(line, end="", flush=True)
        result = re.search(r"\b(PASSED|FAILED|ERROR|SKIPPED)\b", line)
        name = re.search(r"tests/\S+::\S+", line)
        # At the end each failed test is named once more, with its reason.
        if result and name and " - " not in line:
            write({"test": name[0], "result": result[0].lower()})
    if child.wait() not in (0, 5):  # 5: there are none
        raise SystemExit("tests failed")


def run_checks(given: argparse.Namespace, write: Write) -> None:
    """Without pytest: the same logits and text as on a CPU."""
    import torch

    from src.config import GPT2Config
    from src.generation import generate_tokens
    from src.inference.prepare import prepare_for_generation
    from src.model import GPT2Model

    torch.manual_seed(0)
    model = GPT2Model(GPT2Config(vocab_size=64, max_seq_len=64, d_model=32, n_layers=2, n_heads=2))
    model.eval()
    tokens = torch.randint(64, (2, 32))
    with torch.inference_mode():
        logits, text = model(tokens), list(generate_tokens(model, [1, 2], 40, 0))
        model = prepare_for_generation(model.to(given.device))
        found = model(tokens.to(given.device)).cpu()
    close = torch.allclose(logits, found, atol=1e-3)
    same = text == list(generate_tokens(model, [1, 2], 40, 0))
    for name, is_right in (("logits", close), ("text", same)):
        write({"test": name, "result": "passed" if is_right else "failed"})
    if not (close and same):
        raise SystemExit("checks failed")


def train(engine: str, is_compiled: bool) -> Callable[[argparse.Namespace, Write], None]:
    """A part that times training steps."""

    def measure(given: argparse.Namespace, write: Write) -> None:
        import torch

        sizes = sizes_of(given)
        # A rehearsal traces as the real run does, but does not wait for a compiler.
        backend = ("aot_eager" if given.tiny else "inductor") if is_compiled else None
        if engine == "AGI2":
            step = our_step(sizes.shape, given.device, backend)
        else:
            step = nanogpt_step(sizes.shape, given.device, given.nanogpt, backend)
        start = time.perf_counter()
        step()
        first = time.perf_counter() - start
        step()
        seconds = []
        for _ in range(sizes.steps):
            start = time.perf_counter()
            step()
            seconds.append(time.perf_counter() - start)
        rows, context = sizes.shape[:2]
        speed = rows * context / statistics.median(seconds)
        peak = torch.cuda.max_memory_allocated() / 1e9 if given.device == "cuda" else None
        write(
            {
                "what": f"{engine}, {'compiled' if is_compiled else 'not compiled'}",
                "tokens per second": speed,
                **share_of_peak(given.device, speed),
                "GPU's peak GB": peak,
                "first step, seconds": first,
            }
        )

    return measure


def train_characters(given: argparse.Namespace, write: Write) -> None:
    """nanoGPT's GPU recipe, in the time there is."""
    import torch

    from src.training import train_from_config

    keys = sizes_of(given).character_model
    if not given.tiny:
        # To start, to compile and to validate at the end take some of the time.
        keys = {**keys, "max_minutes": max(0.25, (given.seconds - 60) / 60)}
    recipe = {"optimizer": "muon", "learning_rate": 1e-3, "muon_learning_rate": 0.02}
    with tempfile.TemporaryDirectory() as folder:
        config = character_config(
            given.text, folder, "characters", **keys, **recipe, device=given.device
        )
        run = train_from_config(config)
        for name in ("metrics.jsonl", "report.html", "config.toml"):
            shutil.copy(run.folder / name, given.out / f"characters-{name}")
    history = run.history
    validations = dict(zip(history["val_steps"], history["val_loss"], strict=True))
    best = min(validations, key=lambda step: validations[step])
    write(
        {
            "what": "AGI2, Muon",
            "val loss": history["final_val_loss"],
            "nanoGPT's": 1.4697,
            "steps": history["steps"],
            "best at step": best,
            "seconds": history["seconds"],
            "GPU's peak GB": (
                torch.cuda.max_memory_allocated() / 1e9 if given.device == "cuda" else None
            ),
        }
    )


def generate(given: argparse.Namespace, write: Write) -> None:
    """Greedy text of the same random weights by AGI2 and `transformers`, in turn."""
    import torch

    from src.config import GPT2Config
    from src.model import GPT2Model

    sizes = sizes_of(given)
    _, context, vocabulary, _, layers, heads, width = sizes.shape
    architecture = GPT2Config(
        position_embedding="learned",
        vocab_size=vocabulary,
        max_seq_len=context,
        d_model=width,
        n_layers=layers,
        n_heads=heads,
    )
    torch.manual_seed(0)
    weights = GPT2Model(architecture).state_dict()
    for precision in ("fp32", "bf16"):
        makers = {"AGI2": our_writer, "transformers": their_writer}
        writers: dict[str, Callable[[int], list[int]]] = {}
        for name, make in makers.items():
            try:
                model = GPT2Model(architecture).eval()
                model.load_state_dict(weights)
                writers[name] = make(model, precision, given.device, sizes)
            except Exception as error:
                write({"what": name, "precision": precision, "error": repr(error)[:300]})
        for batch in (1, 8):
            texts: dict[str, list[int]] = {}
            for name, writer in writers.items():
                row: dict[str, Any] = {"what": name, "texts": batch, "precision": precision}
                try:
                    row |= timed(writer, batch, sizes, given.device, texts, name)
                except Exception as error:
                    row["error"] = repr(error)[:300]
                write(row)


def timed(
    writer: Callable[[int], list[int]],
    batch: int,
    sizes: Sizes,
    device: str,
    texts: dict[str, list[int]],
    name: str,
) -> dict[str, Any]:
    """Time a writer; `texts` keeps its first text, to say how much of the peer's is the same."""
    import torch

    if device == "cuda":
        torch.cuda.reset_peak_memory_stats()
    texts[name] = writer(batch)
    seconds = []
    for _ in range(sizes.rounds):
        start = time.perf_counter()
        writer(batch)
        synchronize(device)
        seconds.append(time.perf_counter() - start)
    found: dict[str, Any] = {
        "tokens per second": batch * sizes.new_tokens / statistics.median(seconds),
        "GPU's peak GB": torch.cuda.max_memory_allocated() / 1e9 if device == "cuda" else None,
    }
    if batch == 1 and name == "transformers" and "AGI2" in texts:
        pairs = zip(texts["AGI2"], texts[name], strict=True)
        found["same tokens as AGI2"] = sum(a == b for a, b in pairs)
    return found


def our_writer(model: Any, precision: str, device: str, sizes: Sizes) -> Callable[[int], list[int]]:
    import torch

    from src.generation import generate_batch, generate_tokens
    from src.inference.prepare import prepare_for_generation
    from src.tokenizer import BasicTokenizer

    model = model.to(device)
    if precision == "bf16":
        model = model.to(torch.bfloat16)
    if device == "cuda" or precision == "fp32":
        prepare_for_generation(model)
    # A character for each token of the model: which text it is plays no part here.
    special = BasicTokenizer("a").vocab_size - 1
    characters = map(chr, range(0x20000, 0x20000 + model.config.vocab_size - special))
    tokenizer = BasicTokenizer("".join(characters))
    ids = prompts(sizes, model.config.vocab_size)

    def write(batch: int) -> list[int]:
        if batch == 1:
            return list(generate_tokens(model, ids[0], sizes.new_tokens, 0))
        options: dict[str, Any] = {"tokenizer": tokenizer, "min_length": sizes.new_tokens}
        generate_batch(model, ids[:batch], sizes.new_tokens, 0, return_full_text=False, **options)
        return []

    return write


def their_writer(
    model: Any, precision: str, device: str, sizes: Sizes
) -> Callable[[int], list[int]]:
    import torch
    import transformers

    from src.formats.huggingface import their_config, to_their_layout

    keys = {**their_config(model.config), "bos_token_id": None, "eos_token_id": None}
    peer = transformers.GPT2LMHeadModel(transformers.GPT2Config(**keys))
    peer.load_state_dict(to_their_layout(model.state_dict()), strict=False)
    peer.tie_weights()
    peer = peer.eval().to(device)
    if precision == "bf16":
        peer = peer.to(torch.bfloat16)
    ids = torch.tensor(prompts(sizes, model.config.vocab_size), device=device)

    @torch.inference_mode()
    def write(batch: int) -> list[int]:
        out = peer.generate(
            ids[:batch],
            attention_mask=torch.ones_like(ids[:batch]),
            max_new_tokens=sizes.new_tokens,
            min_new_tokens=sizes.new_tokens,
            do_sample=False,
            pad_token_id=0,
        )
        return list(out[0, sizes.prompt :].tolist())

    return write


def prompts(sizes: Sizes, vocabulary: int) -> list[list[int]]:
    import torch

    draw = torch.Generator().manual_seed(0)
    return list(torch.randint(vocabulary - 9, (8, sizes.prompt), generator=draw).tolist())


def synchronize(device: str) -> None:
    import torch

    if device == "cuda":
        torch.cuda.synchronize()


@dataclass(frozen=True)
class Part:
    """A process with a share of the time."""

    share: float
    run: Callable[[argparse.Namespace, Write], None]
    needs: str = ""
    """The option without which it is skipped."""


PARTS = {
    "machine": Part(0.75, describe),
    "tests": Part(2.5, run_tests),
    "training step, AGI2 compiled": Part(1.25, train("AGI2", True)),
    "training step, AGI2 not compiled": Part(0.5, train("AGI2", False)),
    "training step, nanoGPT compiled": Part(1.25, train("nanoGPT", True), "nanogpt"),
    "characters": Part(2.0, train_characters, "text"),
    "generation": Part(1.5, generate),
}


# The parent.


def run_part(name: str, given: argparse.Namespace, seconds: float) -> dict[str, Any]:
    """Run a part, for so many seconds at most: its rows, and how it ended."""
    rows, log = file_of(given, name, "jsonl"), file_of(given, name, "log")
    rows.write_text("")
    command = [sys.executable, __file__, *sys.argv[1:], "--part", name, "--seconds", str(seconds)]
    path = os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH", "")]))
    start = time.monotonic()
    with open(log, "wb") as output:
        child = subprocess.Popen(
            command,
            stdout=output,
            stderr=subprocess.STDOUT,
            env={**os.environ, "PYTHONPATH": path, "PYTHONUNBUFFERED": "1"},
            start_new_session=True,  # so that all that it starts ends with it
        )
        try:
            status = child.wait(seconds)
            ending = "done" if status == 0 else f"failed (exit status {status}): {last_line(log)}"
        except subprocess.TimeoutExpired:
            ending = f"stopped after {seconds:.0f} s"
        finally:
            end_group(child)
    return {
        "ending": ending,
        "seconds": round(time.monotonic() - start, 1),
        "rows": read_rows(rows),
    }


def file_of(given: argparse.Namespace, part: str, kind: str) -> Path:
    return Path(given.out) / f"{part.replace(',', '').replace(' ', '-')}.{kind}"


def end_group(child: subprocess.Popen[bytes]) -> None:
    """End a process and all that it has started."""
    with contextlib.suppress(ProcessLookupError):
        os.killpg(child.pid, signal.SIGKILL)
    child.wait()


def last_line(log: Path) -> str:
    lines = log.read_text(encoding="utf-8", errors="replace").strip().splitlines()
    return lines[-1][:300] if lines else ""


def read_rows(path: Path) -> list[dict[str, Any]]:
    """What a part wrote; a last line that was cut off is left out."""
    return [json.loads(line) for line in path.read_text().split("\n")[:-1]]


def run_all(given: argparse.Namespace) -> dict[str, Any]:
    """Run the parts; a part's time is its share of what is left."""
    given.out.mkdir(parents=True, exist_ok=True)
    until = time.monotonic() + 60 * given.minutes
    wanted = {name: part for name, part in PARTS.items() if given.only in name}
    results: dict[str, Any] = {}
    share = sum(part.share for part in wanted.values())
    for name, part in wanted.items():
        limit = max(1.0, (until - time.monotonic()) * part.share / share)
        share -= part.share
        if part.needs and getattr(given, part.needs) is None:
            results[name] = {"ending": f"skipped: no --{part.needs}", "seconds": 0, "rows": []}
        else:
            print(f"{name}: at most {limit:.0f} s", flush=True)
            results[name] = run_part(name, given, limit)
        print(f"{name}: {results[name]['ending']}", flush=True)
        about = {"device": given.device, "tiny": given.tiny, "minutes": given.minutes}
        text = json.dumps({**about, "parts": results}, indent=1) + "\n"
        write_text(given.out / "results.json", text)
    return results


def show(results: dict[str, Any]) -> None:
    for name, found in results.items():
        print(f"\n{name}: {found['ending']}, {found['seconds']:.0f} s")
        if found["rows"]:
            report(found["rows"], None)


def main() -> int:
    """Run the parts, or as a child one of them; 1 where a part failed or was stopped."""
    options = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    options.add_argument("--out", type=Path, required=True, help="the folder for the results")
    options.add_argument("--nanogpt", type=Path, help="nanoGPT's folder")
    options.add_argument("--text", type=Path, help="a text, such as Shakespeare's works")
    options.add_argument("--minutes", type=float, default=8.0, help="for all parts together")
    options.add_argument("--only", default="", help="the parts whose names have this in them")
    options.add_argument("--device", default="cuda", choices=["cpu", "cuda"])
    options.add_argument("--tiny", action="store_true", help="tiny sizes, to rehearse")
    options.add_argument("--part", choices=PARTS, help=argparse.SUPPRESS)
    options.add_argument("--seconds", type=float, help=argparse.SUPPRESS)
    given = options.parse_args()
    if given.part is None:
        results = run_all(given)
        show(results)
        return int(any(re.match("failed|stopped", each["ending"]) for each in results.values()))
    rows = file_of(given, given.part, "jsonl")

    def write(row: dict[str, Any]) -> None:
        with open(rows, "a", encoding="utf-8") as file:
            file.write(json.dumps(row) + "\n")

    PARTS[given.part].run(given, write)
    return 0


if __name__ == "__main__":
    sys.exit(main())
