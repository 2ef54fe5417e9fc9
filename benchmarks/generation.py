"""Generation throughput of GPT-2 124M, compared with five other engines.

python benchmarks/generation.py GPT2_VOCABULARY [--rounds 2] [--json FILE]
    [--only WORDS] [--device cuda] [--trained RUN --text FILE]

Greedy decoding, a prompt of 60 tokens and 128 new ones, the same weights in all engines. In each
round every engine runs in its own process, and they generate in turn, four times; medians. An
engine whose package is not installed is left out. OpenVINO and ONNX Runtime run our ONNX export
with a KV cache, which their graphs copy at every token; int8 is by `quantize_dynamic`. llama.cpp
runs our GGUF exports: int8 is Q8_0, int4 is Q4_0.
GPT2_VOCABULARY is a folder with vocab.json and merges.txt, which the other formats need. On a GPU,
fp32 only, compared with `transformers`. With a trained model, also the loss of quantized weights
on a held-out text.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import os
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from common import InTurn, parser, report, run_child, save_random_gpt2, work_in_turn

if TYPE_CHECKING:
    import numpy as np

TURNS = 4


@dataclass(frozen=True)
class Task:
    """What is generated: tokens of each prompt and new ones, texts, and beams of a text."""

    prompt: int = 60
    new: int = 128
    texts: int = 1
    beams: int = 1

    @property
    def tokens(self) -> int:
        """The tokens that count: new ones, or those of a prompt that is only read."""
        return self.texts * (self.new if self.new > 1 else self.prompt)

    def prompts(self) -> list[list[int]]:
        import numpy as np

        draw = np.random.default_rng(0)
        return draw.integers(0, 50256, (self.texts, self.prompt)).tolist()


TASKS = {
    "one text": Task(),
    "5 beams": Task(beams=5),
    "8 texts": Task(texts=8),
    "32 texts": Task(texts=32),
    "a prompt of 960 tokens": Task(prompt=960, new=1),
    "every weight once": Task(),
}
KINDS = {
    "one text, fp32": [
        *("AGI2", "transformers", "CTranslate2", "llama.cpp", "OpenVINO", "ONNX Runtime"),
    ],
    "one text, int8": ["AGI2", "CTranslate2", "llama.cpp", "ONNX Runtime"],
    "one text, int4": ["AGI2", "llama.cpp"],
    "5 beams, fp32": ["AGI2", "transformers", "CTranslate2"],
    "8 texts, fp32": ["AGI2", "transformers", "CTranslate2"],
    "8 texts, int8": ["AGI2", "CTranslate2", "llama.cpp"],
    "32 texts, int8": ["AGI2", "CTranslate2", "llama.cpp"],
    "a prompt of 960 tokens, fp32": ["AGI2", "llama.cpp"],
    "a prompt of 960 tokens, int8": ["AGI2", "llama.cpp"],
    "a prompt of 960 tokens, int4": ["AGI2", "llama.cpp"],
    "every weight once, fp32": ["AGI2"],
}
ON_A_GPU = {"AGI2", "transformers"}
# The packages of each engine, beside those of this project.
PACKAGES = {
    "transformers": ["transformers"],
    "CTranslate2": ["ctranslate2", "transformers"],
    "llama.cpp": ["xllamacpp", "gguf"],
    "OpenVINO": ["openvino", "onnx", "onnxscript"],
    "ONNX Runtime": ["onnxruntime", "onnx", "onnxscript"],
}


def is_installed(engine: str) -> bool:
    return all(importlib.util.find_spec(package) for package in PACKAGES.get(engine, ()))


def kinds(device: str, words: str) -> dict[str, list[str]]:
    """Return the benchmarks of a device whose names contain `words`, each with its engines."""
    wanted = {
        kind: list(filter(is_installed, engines))
        for kind, engines in KINDS.items()
        if words in kind
    }
    if device == "cpu":
        return wanted
    both = {
        kind: [each for each in engines if each in ON_A_GPU] for kind, engines in wanted.items()
    }
    return {kind: engines for kind, engines in both.items() if len(engines) == len(ON_A_GPU)}


def prepare(folder: Path, vocabulary: Path, device: str) -> None:
    """Save the same random weights in the formats of all engines."""
    from src.formats.huggingface import export_huggingface

    model, tokenizer = save_random_gpt2(vocabulary, folder / "agi2")
    export_huggingface(model, tokenizer, folder / "hf")
    if device != "cpu":
        return
    if is_installed("llama.cpp"):
        from src.formats.gguf import export_gguf

        for name, quantize in (("fp32", None), ("int8", "q8_0"), ("int4", "q4_0")):
            export_gguf(model, tokenizer, folder / f"{name}.gguf", quantize)
    if is_installed("CTranslate2"):
        from ctranslate2.converters import TransformersConverter

        for kind in ("float32", "int8"):
            converter = TransformersConverter(str(folder / "hf"))
            converter.convert(str(folder / f"ct2-{kind}"), quantization=kind)
    if is_installed("OpenVINO") or is_installed("ONNX Runtime"):
        from src.formats.onnx import export_onnx

        export_onnx(model, folder / "fp32.onnx", kv_cache=True)
    if is_installed("ONNX Runtime"):
        quantize_onnx(folder)


def quantize_onnx(folder: Path) -> None:
    """Quantize the matrices to int8, and activations as they come, as ONNX Runtime advises."""
    from onnxruntime.quantization import QuantType, quantize_dynamic
    from onnxruntime.quantization.shape_inference import quant_pre_process

    folded = folder / "folded.onnx"  # with transposed matrices, which can be quantized
    quant_pre_process(folder / "fp32.onnx", folded, skip_symbolic_shape=True)
    quantize_dynamic(folded, folder / "int8.onnx", weight_type=QuantType.QInt8)


def task_of(kind: str) -> tuple[Task, str]:
    """Return the task of a benchmark, and its precision."""
    name, precision = kind.split(", ")
    return TASKS[name], precision


def of_agi2(folder: Path, kind: str, device: str) -> Callable[[], list[int]]:
    import torch

    from src.formats.model_dir import load_model
    from src.generation import generate_batch, generate_tokens
    from src.inference.beam_search import beam_search
    from src.inference.prepare import prepare_for_generation
    from src.nn.cpu_kernels import KernelLinear, Weights

    task, precision = task_of(kind)
    trained = load_model(folder / "agi2", device)
    model, tokenizer = trained.model, trained.tokenizer
    if kind.startswith("every weight"):
        matrices = [weight for weight in model.parameters() if weight.dim() == 2]
        matrices = [weight for weight in matrices if weight.size(0) != model.config.max_seq_len]
        whole = [Weights(each.detach(), None, None, *reversed(each.shape), 32) for each in matrices]
        products = [KernelLinear(weights) for weights in whole]
        inputs = [torch.randn(1, weights.inputs) for weights in whole]

        @torch.inference_mode()
        def once() -> list[int]:
            for _ in range(task.new):
                for product, x in zip(products, inputs, strict=True):
                    product(x)
            return []

        return once
    prepare_for_generation(model, "none" if precision == "fp32" else precision)
    given = task.prompts()
    if task.beams > 1:
        return lambda: beam_search(model, given[0], task.beams, task.new)[0].tokens
    if task.texts > 1:

        def together() -> list[int]:
            generate_batch(model, given, task.new, 0, tokenizer=tokenizer, return_full_text=False)
            return []

        return together
    return lambda: list(generate_tokens(model, given[0], task.new, 0))


def of_transformers(folder: Path, kind: str, device: str) -> Callable[[], list[int]]:
    import torch
    from transformers import GPT2LMHeadModel

    model = GPT2LMHeadModel.from_pretrained(folder / "hf", dtype=torch.float32)
    model.eval().to(device)
    task, _ = task_of(kind)
    given = torch.tensor(task.prompts(), device=device)

    @torch.inference_mode()
    def run() -> list[int]:
        out = model.generate(
            given,
            attention_mask=torch.ones_like(given),
            max_new_tokens=task.new,
            min_new_tokens=task.new,
            do_sample=False,
            num_beams=task.beams,
            pad_token_id=50256,
        )
        return out[0, task.prompt :].tolist()

    return run


def of_ctranslate2(folder: Path, kind: str, device: str) -> Callable[[], list[int]]:
    import ctranslate2

    precision = "int8" if kind.endswith("int8") else "float32"
    cores = len(os.sched_getaffinity(0))
    generator = ctranslate2.Generator(
        str(folder / f"ct2-{precision}"), compute_type=precision, intra_threads=cores
    )
    names = json.loads((folder / "hf" / "tokenizer.json").read_text())["model"]["vocab"]
    tokens = {number: name for name, number in names.items()}
    task, _ = task_of(kind)
    given = [[tokens[i] for i in prompt] for prompt in task.prompts()]

    def run() -> list[int]:
        found = generator.generate_batch(
            given,
            max_length=task.new,
            min_length=task.new,
            beam_size=task.beams,
            include_prompt_in_result=False,
        )
        return found[0].sequences_ids[0]

    return run


def of_llama_cpp(folder: Path, kind: str, device: str) -> Callable[[], list[int]]:
    import xllamacpp

    task, precision = task_of(kind)
    params = xllamacpp.CommonParams()
    params.model.path = str(folder / f"{precision}.gguf")
    params.n_ctx = 1024 if task.texts == 1 else 256 * task.texts
    params.n_parallel = task.texts
    params.cpuparams.n_threads = params.cpuparams_batch.n_threads = len(os.sched_getaffinity(0))
    server = xllamacpp.Server(params)

    def complete(prompt: list[int]) -> None:
        found = server.handle_completions(
            {
                "prompt": prompt,
                "max_tokens": task.new,
                "temperature": 0.0,
                "ignore_eos": True,
                "cache_prompt": False,
            }
        )
        assert found["usage"]["completion_tokens"] == task.new, found

    given, pool = task.prompts(), ThreadPoolExecutor(task.texts)

    def run() -> list[int]:
        list(pool.map(complete, given))
        return []

    return run


Step = Callable[["np.ndarray", Any], tuple["np.ndarray", Any]]


def greedy(task: Task, step: Step, past: Any) -> list[int]:
    """Generate one text; `step` maps ids and a KV cache to logits and the next one."""
    import numpy as np

    ids = np.array(task.prompts())
    tokens: list[int] = []
    for _ in range(task.new):
        logits, past = step(ids, past)
        tokens.append(int(logits[0, -1].argmax()))
        ids = np.array([tokens[-1:]])
    return tokens


def empty_past() -> np.ndarray:
    """The empty KV cache of GPT-2 124M in our ONNX export, (L, 2, B, H, S, D)."""
    import numpy as np

    return np.zeros((12, 2, 1, 12, 0, 64), np.float32)


def of_onnx_runtime(folder: Path, kind: str, device: str) -> Callable[[], list[int]]:
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = len(os.sched_getaffinity(0))
    task, precision = task_of(kind)
    path = folder / f"{precision}.onnx"
    session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    value = onnxruntime.OrtValue.ortvalue_from_numpy

    def step(ids: np.ndarray, past: Any) -> tuple[np.ndarray, Any]:
        given = {"input_ids": value(ids), "past": past}
        logits, present = session.run_with_ort_values(["logits", "present"], given)
        return logits.numpy(), present

    return lambda: greedy(task, step, value(empty_past()))


def of_openvino(folder: Path, kind: str, device: str) -> Callable[[], list[int]]:
    import openvino

    options = {
        "INFERENCE_NUM_THREADS": len(os.sched_getaffinity(0)),
        "INFERENCE_PRECISION_HINT": "f32",  # else bf16 on some processors
        "PERFORMANCE_HINT": "LATENCY",
    }
    request = openvino.compile_model(folder / "fp32.onnx", "CPU", options).create_infer_request()

    def step(ids: np.ndarray, past: Any) -> tuple[np.ndarray, Any]:
        found = request.infer({"input_ids": ids, "past": past}, share_inputs=True)
        return found["logits"], found["present"]

    return lambda: greedy(task_of(kind)[0], step, empty_past())


ENGINES = {
    "AGI2": of_agi2,
    "transformers": of_transformers,
    "CTranslate2": of_ctranslate2,
    "llama.cpp": of_llama_cpp,
    "OpenVINO": of_openvino,
    "ONNX Runtime": of_onnx_runtime,
}


def measure(engine: str, kind: str, folder: Path, device: str) -> None:
    run = ENGINES[engine](folder, kind, device)
    (folder / f"{engine}, {kind}.json").write_text(json.dumps(run()))
    work_in_turn(run, 1)


def read_bandwidth() -> dict[str, object]:
    """Return how fast the cores together read memory: the bound of decoding one text."""
    import torch

    many, seconds = torch.ones(2**28), []  # 1 GiB, far more than the caches hold
    for _ in range(8):
        start = time.perf_counter()
        many.sum()
        seconds.append(time.perf_counter() - start)
    return {"what": "memory is read, GB/s", "fastest": many.nbytes / min(seconds) / 1e9}


def losses(run: Path, text: Path) -> list[dict[str, object]]:
    """Return the loss of a trained model on a text, in fp32, int8 and int4."""
    from src.evaluation.loss import evaluate_text
    from src.formats.model_dir import load_model
    from src.inference.prepare import prepare_for_generation

    rows: list[dict[str, object]] = []
    for quantize in ("none", "int8", "int4"):
        trained = load_model(run)
        million = trained.model.num_parameters() / 1e6
        prepare_for_generation(trained.model, quantize)
        held_out = [text.read_text(encoding="utf-8")]
        positions = trained.model.config.max_seq_len
        found = evaluate_text(trained.model, held_out, trained.tokenizer, positions)
        kind = "fp32" if quantize == "none" else quantize
        rows.append({"what": f"loss of {million:.1f}M, {kind}", "loss": round(found.loss, 4)})
    return rows


def main() -> None:
    options = parser(__doc__.splitlines()[0])
    options.add_argument("vocabulary", type=Path)
    options.add_argument("--rounds", type=int, default=2)
    options.add_argument("--only", default="", help="the rows whose names have these words")
    options.add_argument("--device", default="cpu", choices=["cpu", "cuda"])
    options.add_argument("--trained", type=Path, help="a run's folder")
    options.add_argument("--text", type=Path, help="what that run has not seen")
    options.add_argument("--child", nargs=3, help=argparse.SUPPRESS)
    given = options.parse_args()
    if given.child:
        engine, kind, folder = given.child
        if engine == "prepare":
            prepare(Path(folder), given.vocabulary, given.device)
            return
        measure(engine, kind, Path(folder), given.device)
        return
    found: dict[tuple[str, str], list[float]] = {}
    memory: dict[tuple[str, str], float] = {}
    texts: dict[tuple[str, str], list[int]] = {}
    command = [sys.executable, __file__, str(given.vocabulary), "--device", given.device, "--child"]
    with tempfile.TemporaryDirectory() as place:
        # In a child process: peak memory of children includes that of the parent at the fork.
        run_child([*command, "prepare", "", place])
        for _ in range(given.rounds):
            for kind, engines in kinds(given.device, given.only).items():
                children = {each: InTurn([*command, each, kind, place]) for each in engines}
                for _ in range(TURNS):
                    for child in children.values():
                        child.turn()
                for engine, child in children.items():
                    memory[kind, engine] = child.end()
                    found.setdefault((kind, engine), []).extend(child.seconds)
                    texts[kind, engine] = json.loads(
                        Path(place, f"{engine}, {kind}.json").read_text()
                    )
    rows: list[dict[str, object]] = []
    for (kind, engine), seconds in found.items():
        written = task_of(kind)[0].tokens
        theirs = texts.get((kind, "transformers"))
        ours = texts[kind, engine]
        rows.append(
            {
                "what": kind,
                "engine": engine,
                "tokens per second": written / statistics.median(seconds),
                "fastest": written / min(seconds),
                "peak GB" if given.device == "cpu" else "host's peak GB": memory[kind, engine],
                "as transformers": (
                    sum(a == b for a, b in zip(ours, theirs, strict=False))
                    if theirs and ours
                    else ""
                ),
            }
        )
    if given.device == "cpu":
        rows.append(read_bandwidth())
    if given.trained:
        rows += losses(given.trained, given.text)
    report(rows, given.json)


if __name__ == "__main__":
    main()
