"""All GPU checks and benchmarks in one call: tests, training, a character model, generation.

python benchmarks/gpu.py --out FOLDER [--nanogpt NANOGPT_FOLDER] [--text TEXT] [--minutes 8]
    [--only WORDS] [--device cpu --tiny]

1. The tests that need a GPU (`pytest -m gpu`, or a few checks without pytest).
2. A training step of GPT-2 124M at 64 x 1024 in bf16: AGI2 compiled and not, nanoGPT compiled.
3. nanoGPT's GPU recipe for characters (6 layers, 384 wide, context 256, batch 64, dropout 0.2;
   nanoGPT's published val loss on Shakespeare is 1.4697), with AGI2's optimizer.
4. Generation with GPT-2 124M and the same random weights next to `transformers`, with 1, 8 and
   64 texts, in fp32 and bf16; AGI2 with CUDA graphs.

Each part is a process with a time limit, its share of the remaining `--minutes`. In the output
folder, `results.json` is rewritten after each part, `rows.jsonl` gets each result at once, and
`log.txt` the parts' output, so that an interrupted run keeps its results. The exit status is 1 if
a part failed or timed out. `--device cpu --tiny` runs everything on a CPU with tiny sizes.
"""

from __future__ import annotations

import argparse
import contextlib
import importlib.util
import json
import operator
import os
import re
import shutil
import signal
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from common import ROOT, report
from train_step import SHAPES, mfu, nanogpt_step, our_step

from src.utils import write_text

Write = Callable[[dict[str, Any]], None]


@dataclass(frozen=True)
class Sizes:
    """Sizes of the measurements."""

    shape: tuple[int, ...]
    """Shape of the model whose training and generation are timed: see `train_step.SHAPES`."""
    steps: int
    """Number of timed training steps."""
    characters: tuple[int, ...]
    """Values of `CHARACTER_KEYS` for the character model."""
    prompt: int
    new_tokens: int
    texts: tuple[int, ...]
    rounds: int


CHARACTER_KEYS = (
    *("model_layer", "model_head", "model_embd", "model_positions", "batch_size"),
    *("max_steps", "eval_interval"),
)
FULL = Sizes(
    shape=SHAPES["cuda"]["124M, 64 x 1024"],
    steps=20,
    characters=(6, 6, 384, 256, 64, 5000, 250),
    prompt=60,
    new_tokens=128,
    texts=(1, 8, 64),
    rounds=3,
)
TINY = Sizes(
    shape=(2, 32, 300, 320, 1, 2, 32),
    steps=1,
    characters=(1, 2, 16, 16, 4, 6, 3),
    prompt=6,
    new_tokens=12,  # more than a CUDA graph is recorded after
    texts=(1, 3),
    rounds=1,
)


def sizes_of(given: argparse.Namespace) -> Sizes:
    return TINY if given.tiny else FULL


# The parts, each in its own process. They save each result at once.


def describe(given: argparse.Namespace, write: Write) -> None:
    """Report the machine, and the measured and nominal TFLOP/s of a matrix product."""
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
            "cores": os.cpu_count(),
            "TFLOP/s measured": 2 * size**3 / statistics.median(seconds) / 1e12,
            "TFLOP/s by its maker": None if peak is None else peak / 1e12,
        }
    )


def run_tests(given: argparse.Namespace, write: Write) -> None:
    """Run the tests marked `gpu`, and write a row for each."""
    if importlib.util.find_spec("pytest") is None or importlib.util.find_spec("hypothesis") is None:
        run_checks(given, write)
        return
    files = [
        str(path.relative_to(ROOT))
        for path in sorted((ROOT / "tests").rglob("test_*.py"))
        if "mark.gpu" in path.read_text(encoding="utf-8")
    ]
    # Without the project's addopts, which measure coverage.
    command = [sys.executable, "-m", "pytest", "-o", "addopts=", "-m", "gpu", "-v", "--tb=short"]
    if importlib.util.find_spec("xdist") is not None and not given.tiny:
        command += ["-n", "6"]
    command += ["-p", "no:cacheprovider", *files]
    child = subprocess.Popen(
        command, cwd=ROOT, stdout=subprocess.PIPE, encoding="utf-8", errors="replace"
    )
    assert child.stdout is not None
    for line in child.stdout:
        print(line, end="", flush=True)
        result = re.search(r"\b(PASSED|FAILED|ERROR|SKIPPED)\b", line)
        name = re.search(r"tests/\S+::\S+", line)
        # Skip pytest's summary, which repeats each failed test with its reason.
        if result and name and " - " not in line:
            write({"test": name[0], "result": result[0].lower()})
    if child.wait() not in (0, 5):  # 5: no tests collected
        raise SystemExit("tests failed")


def run_checks(given: argparse.Namespace, write: Write) -> None:
    """Check without pytest that logits and generated tokens equal those of the CPU."""
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
    """Return a part that times training steps."""

    def measure(given: argparse.Namespace, write: Write) -> None:

        sizes = sizes_of(given)
        what = f"{engine}, {'compiled' if is_compiled else 'not compiled'}"
        # With tiny sizes, trace as in a real run, but without code generation.
        backend = ("aot_eager" if given.tiny else "inductor") if is_compiled else None
        if engine == "AGI2":
            step = our_step(sizes.shape, given.device, backend)
        else:
            step = nanogpt_step(sizes.shape, given.device, given.nanogpt, backend)
        start = time.perf_counter()
        step()
        write({"what": what, "first step, seconds": time.perf_counter() - start})
        step()
        seconds = []
        for _ in range(sizes.steps):
            start = time.perf_counter()
            step()
            seconds.append(time.perf_counter() - start)
        rows, context = sizes.shape[:2]
        speed = rows * context / statistics.median(seconds)
        write(
            {
                "what": what,
                "tokens per second": speed,
                **({} if given.tiny else mfu(given.device, speed)),
                **peak_memory(given.device),
            }
        )

    return measure


def train_characters(given: argparse.Namespace, write: Write) -> None:
    """Train nanoGPT's GPU recipe within the time limit."""
    from character_recipe import character_config

    from src.training import train_from_config

    keys: dict[str, Any] = dict(zip(CHARACTER_KEYS, sizes_of(given).characters, strict=True))
    if not given.tiny:
        # Leave time for start-up and the final validation.
        keys["max_minutes"] = max(15.0, 0.8 * given.seconds - 15) / 60
    recipe = {"optimizer": "muon", "learning_rate": 1e-3, "muon_learning_rate": 0.02}
    with tempfile.TemporaryDirectory() as folder:
        config = character_config(
            given.text, folder, "characters", **keys, **recipe, dropout=0.2, device=given.device
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
            **peak_memory(given.device),
        }
    )


Generate = Callable[[int], list[int]]
"""Function of the number of prompts; returns the new tokens if there is only one."""


def generate(engine: str) -> Callable[[argparse.Namespace, Write], None]:
    """Return a part that times greedy generation with reproducible random weights."""

    def measure(given: argparse.Namespace, write: Write) -> None:
        sizes = sizes_of(given)
        for precision in ("fp32", "bf16"):
            run = MAKERS[engine](sizes, precision, given.device)
            for texts in sizes.texts:
                reset_peak_memory(given.device)
                tokens = run(texts)
                seconds = []
                for _ in range(sizes.rounds):
                    start = time.perf_counter()
                    run(texts)
                    synchronize(given.device)
                    seconds.append(time.perf_counter() - start)
                row = {
                    "what": engine,
                    "texts": texts,
                    "precision": precision,
                    "tokens per second": texts * sizes.new_tokens / statistics.median(seconds),
                    **peak_memory(given.device),
                }
                if engine != "AGI2" and texts == 1:
                    ours = our_generate(sizes, precision, given.device)(1)
                    row["same tokens as AGI2"] = sum(map(operator.eq, ours, tokens))
                write(row)

    return measure


def random_model(sizes: Sizes) -> Any:
    import torch

    from src.config import GPT2Config
    from src.model import GPT2Model

    _, context, vocabulary, _, layers, heads, width = sizes.shape
    torch.manual_seed(0)
    return GPT2Model(
        GPT2Config(
            position_embedding="learned",
            vocab_size=vocabulary,
            max_seq_len=context,
            d_model=width,
            n_layers=layers,
            n_heads=heads,
        )
    ).eval()


def our_generate(sizes: Sizes, precision: str, device: str) -> Generate:
    import torch

    from src.generation import generate_batch, generate_tokens
    from src.inference.prepare import prepare_for_generation
    from src.tokenizer import BasicTokenizer

    model = random_model(sizes).to(device)
    if precision == "bf16":
        model = model.to(torch.bfloat16)
    prepare_for_generation(model)
    # One character per token of the model: the text itself does not matter.
    special = BasicTokenizer("a").vocab_size - 1
    characters = map(chr, range(0x20000, 0x20000 + model.config.vocab_size - special))
    tokenizer = BasicTokenizer("".join(characters))
    ids = prompts(sizes)

    def run(texts: int) -> list[int]:
        if texts == 1:
            return list(generate_tokens(model, ids[0], sizes.new_tokens, 0))
        options: dict[str, Any] = {"tokenizer": tokenizer, "min_length": sizes.new_tokens}
        generate_batch(model, ids[:texts], sizes.new_tokens, 0, return_full_text=False, **options)
        return []

    return run


def their_generate(sizes: Sizes, precision: str, device: str) -> Generate:
    import torch
    import transformers

    from src.formats.huggingface_config import to_hf_config
    from src.formats.huggingface_weights import to_hf_state_dict

    model = random_model(sizes)
    keys = {**to_hf_config(model.config), "bos_token_id": None, "eos_token_id": None}
    peer = transformers.GPT2LMHeadModel(transformers.GPT2Config(**keys))
    missing, unknown = peer.load_state_dict(to_hf_state_dict(model.state_dict()), strict=False)
    if unknown or set(missing) - {"lm_head.weight"}:
        raise SystemExit(f"transformers: no weights for {missing}, no place for {unknown}")
    peer.tie_weights()
    peer = peer.eval().to(device)
    if precision == "bf16":
        peer = peer.to(torch.bfloat16)
    ids = torch.tensor(prompts(sizes), device=device)

    @torch.inference_mode()
    def run(texts: int) -> list[int]:
        out = peer.generate(
            ids[:texts],
            attention_mask=torch.ones_like(ids[:texts]),
            max_new_tokens=sizes.new_tokens,
            min_new_tokens=sizes.new_tokens,
            do_sample=False,
            pad_token_id=0,
        )
        return list(out[0, sizes.prompt :].tolist())

    return run


MAKERS: dict[str, Callable[[Sizes, str, str], Generate]] = {
    "AGI2": our_generate,
    "transformers": their_generate,
}


def prompts(sizes: Sizes) -> list[list[int]]:
    import torch

    draw = torch.Generator().manual_seed(0)
    # Without the last tokens of the vocabulary, which are end tokens.
    shape = (max(sizes.texts), sizes.prompt)
    return list(torch.randint(sizes.shape[2] - 9, shape, generator=draw).tolist())


def synchronize(device: str) -> None:
    import torch

    if device == "cuda":
        torch.cuda.synchronize()


def reset_peak_memory(device: str) -> None:
    import torch

    if device == "cuda":
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()


def peak_memory(device: str) -> dict[str, float]:
    import torch

    return {"GPU's peak GB": torch.cuda.max_memory_allocated() / 1e9} if device == "cuda" else {}


@dataclass(frozen=True)
class Part:
    """A part of the benchmark: a process with a share of the time limit."""

    share: float
    run: Callable[[argparse.Namespace, Write], None]
    needs: str = ""
    """Required option or package; without it the part is skipped."""

    def is_possible(self, given: argparse.Namespace) -> bool:
        """Return whether the requirement is met."""
        if self.needs.startswith("--"):
            return getattr(given, self.needs.removeprefix("--")) is not None
        return not self.needs or importlib.util.find_spec(self.needs) is not None


PARTS = {
    "machine": Part(0.5, describe),
    "tests": Part(2.2, run_tests),
    "training step, AGI2 compiled": Part(1.4, train("AGI2", True)),
    "training step, AGI2 not compiled": Part(0.8, train("AGI2", False)),
    "training step, nanoGPT compiled": Part(2.0, train("nanoGPT", True), "--nanogpt"),
    "characters": Part(2.0, train_characters, "--text"),
    "generation, AGI2": Part(1.1, generate("AGI2")),
    "generation, transformers": Part(2.2, generate("transformers"), "transformers"),
}


# The parent process.


def run_part(name: str, given: argparse.Namespace, seconds: float) -> dict[str, Any]:
    """Run a part for at most `seconds`; return its rows, duration and outcome."""
    command = [sys.executable, __file__, *sys.argv[1:], "--part", name, "--seconds", str(seconds)]
    path = os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH", "")]))
    start = time.monotonic()
    with open(given.out / "log.txt", "ab") as log:
        log.write(f"\n== {name}\n".encode())
        log.flush()
        begin = log.tell()
        child = subprocess.Popen(
            command,
            stdout=log,
            stderr=subprocess.STDOUT,
            env={**os.environ, "PYTHONPATH": path, "PYTHONUNBUFFERED": "1"},
            start_new_session=True,  # a process group, so that its children can be killed, too
        )
        try:
            status = child.wait(seconds)
            ending = "done" if status == 0 else f"failed (exit status {status})"
        except subprocess.TimeoutExpired:
            ending = f"stopped after {seconds:.0f} s"
        finally:
            end_group(child)
    if ending != "done":
        ending += last_line(given.out / "log.txt", begin)
    return {
        "ending": ending,
        "seconds": round(time.monotonic() - start, 1),
        "rows": read_rows(given.out, name),
    }


def end_group(child: subprocess.Popen[bytes]) -> None:
    """Kill a process and all of its children."""
    with contextlib.suppress(ProcessLookupError):
        os.killpg(child.pid, signal.SIGKILL)
    child.wait()


def exit_with_parent(parent: int) -> None:
    """Kill this process group when the parent process ends, for whatever reason."""
    while os.getppid() == parent:
        time.sleep(0.5)
    os.killpg(0, signal.SIGKILL)


def last_line(log: Path, begin: int) -> str:
    """Return the last line of the log after byte `begin`, at most 300 characters of it."""
    lines = log.read_bytes()[begin:].decode(errors="replace").strip().splitlines()
    return f": {lines[-1][:300]}" if lines else ""


def read_rows(folder: Path, name: str) -> list[dict[str, Any]]:
    """Return the rows of a part; an incomplete last line is skipped."""
    lines = (folder / "rows.jsonl").read_text(encoding="utf-8").split("\n")[:-1]
    rows = [json.loads(line) for line in lines]
    return [row for row in rows if row.pop("part") == name]


def run_all(given: argparse.Namespace) -> dict[str, Any]:
    """Run all parts; the time limit of each is its share of the remaining time."""
    given.out.mkdir(parents=True, exist_ok=True)
    for name in ("rows.jsonl", "log.txt"):
        (given.out / name).write_text("")
    until = time.monotonic() + 60 * given.minutes
    wanted = {name: part for name, part in PARTS.items() if given.only in name}
    results: dict[str, Any] = {}
    share = sum(part.share for part in wanted.values() if part.is_possible(given))
    for name, part in wanted.items():
        if part.is_possible(given):
            limit = max(1.0, (until - time.monotonic()) * part.share / share)
            share -= part.share
            print(f"{name}: at most {limit:.0f} s", flush=True)
            results[name] = run_part(name, given, limit)
        else:
            results[name] = {"ending": f"skipped: no {part.needs}", "seconds": 0, "rows": []}
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


def options() -> argparse.ArgumentParser:
    found = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    found.add_argument("--out", type=Path, required=True, help="the folder for the results")
    found.add_argument("--nanogpt", type=Path, help="nanoGPT's folder")
    found.add_argument("--text", type=Path, help="a text, such as Shakespeare's works")
    found.add_argument("--minutes", type=float, default=8.0, help="for all parts together")
    found.add_argument("--only", default="", help="the parts whose names have this in them")
    found.add_argument("--device", default="cuda", choices=["cpu", "cuda"])
    found.add_argument("--tiny", action="store_true", help="tiny sizes, to rehearse")
    found.add_argument("--part", choices=PARTS, help=argparse.SUPPRESS)
    found.add_argument("--seconds", type=float, help=argparse.SUPPRESS)
    return found


def problem_of(given: argparse.Namespace) -> str:
    """Return what is wrong with the arguments, or an empty string."""
    if not any(given.only in name for name in PARTS):
        return f"--only {given.only}: no part has this in its name: {'; '.join(PARTS)}"
    if given.text is not None and not given.text.is_file():
        return f"--text {given.text}: there is no such file"
    if given.nanogpt is not None and not (given.nanogpt / "model.py").is_file():
        return f"--nanogpt {given.nanogpt}: there is no model.py in it"
    if not given.minutes > 0:
        return f"--minutes {given.minutes:g}: must be above 0"
    return ""


def main() -> int:
    """Run all parts, or one in a child process; return 1 if a part failed or timed out."""
    given = options().parse_args()
    if given.part is None:
        if problem := problem_of(given):
            options().error(problem)
        results = run_all(given)
        show(results)
        return int(any(re.match("failed|stopped", each["ending"]) for each in results.values()))
    threading.Thread(target=exit_with_parent, args=[os.getppid()], daemon=True).start()
    if given.device == "cuda":
        import torch

        if not torch.cuda.is_available():
            raise SystemExit("there is no CUDA device here: --device cpu --tiny rehearses")

    def write(row: dict[str, Any]) -> None:
        with open(given.out / "rows.jsonl", "a", encoding="utf-8") as file:
            file.write(json.dumps({"part": given.part, **row}) + "\n")

    PARTS[given.part].run(given, write)
    return 0


if __name__ == "__main__":
    sys.exit(main())
