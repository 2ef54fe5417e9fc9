"""Fixed runs and prompts give the losses, weights and texts that were recorded before.

`fixed_runs.json` holds, for each training run of `RUNS`, the loss and the grad norm of each step,
the val losses, the samples and a hash of the weights; and for each `PRECISIONS` the texts, scores
and logits of `REQUESTS`. They must be equal to the last bit if this machine computes as the one
that recorded them (see `arithmetic`). On other machines these tests are skipped; there, as
everywhere, runs in float64 must have the recorded losses to within its rounding, and greedy texts
in float64 must be the recorded ones. A run of an earlier version is resumed, and ends as it did
there.

`python tests/integration/test_fixed_runs.py` prints every difference, and with `--record` writes
the file anew. That is honest if results are to change (another default, a corrected gradient), or
if the arithmetic did (PyTorch, the compiler, the processor): then record with a commit of which
this test passes with the old arithmetic, and change the code after that.
"""

from __future__ import annotations

import functools
import hashlib
import json
import math
import os
import platform
import random
import re
import shutil
import string
import sys
import tempfile
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")
if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

import numpy as np
import pytest
import tokenizers
import torch
import torch.nn.functional as F
from torch import nn

from src import (
    BasicTokenizer,
    GPT2Config,
    GPT2Model,
    InteractivePrompt,
    generate_batch,
    generate_beam_texts,
    generate_text,
    load_config,
    prepare_for_generation,
    train_model,
)
from src.nn.cpu_library import LIBRARY
from src.training import Run, train_from_config
from tests.bounds import rounding_in_float64, unit
from tests.conftest import configurations, make_text

RECORD = Path(__file__).with_name("fixed_runs.json")
EARLIER = Path(__file__).with_name("earlier_run.tar.xz")
"""A run folder of an earlier version, with a checkpoint at step 4 of 8, and its text."""

_COMMON = {
    "threads": 1,  # the order of sums depends on it
    "model_layer": 2,
    "model_embd": 32,
    "model_positions": 32,
    "seq_len": 31,
    "max_steps": 8,
    "eval_interval": 4,
    "sample_tokens": 24,
    "warmup_steps": 2,
}
RUNS: dict[str, dict[str, Any]] = {
    "adamw": {"position_embedding": "learned", "dropout": 0.1},
    "muon": {
        "optimizer": "muon",
        "tie_weights": False,
        "bias": False,
        "activation": "gelu",
        "lr_schedule": "linear",
        "clip_grad_norm": 0.5,
    },
    "accumulated": {
        "tokenizer": "bpe",
        "vocab_size": 300,
        "micro_batch_size": 2,
        "gradient_checkpointing": True,
        "norm_position": "post",
        "activation": "silu",
        "lr_schedule": "wsd",
        "dropout": 0.2,
        "batch_size": 6,
    },
    "bf16": {"precision": "bf16", "activation": "relu", "lr_schedule": "constant"},
    "fine-tuned": {"init_from": "adamw", "seed": 7},
    "lora": {"init_from": "adamw", "lora_rank": 2},
}
"""Training runs: the changes of `configurations`; `init_from` names another run."""
RUNS_IN_FLOAT64 = ("adamw", "muon")

PROMPT = "the old whale"
PROMPTS = ["the", "white water and the captain", "a", "old ship, crew"]
GREEDY = {"greedy", "ngram"}
REQUESTS: dict[str, Callable[..., Any]] = {
    "greedy": lambda model, **own: generate_text(model, PROMPT, 24, 0.0, **own),
    "ngram": lambda model, **own: generate_text(model, PROMPT, 24, 0.0, speculative="ngram", **own),
    # Longer than the model's positions: the window slides.
    "long": lambda model, **own: generate_text(
        model, PROMPT, 48, 1.0, seed=1, min_length=48, **own
    ),
    "sampled": lambda model, **own: generate_text(
        model, PROMPT, 24, 1.5, 12, 0.95, seed=2, return_full_text=False, **own
    ),
    "penalties": lambda model, **own: generate_text(
        *(model, PROMPT, 24, 1.2),
        seed=3,
        min_p=0.01,
        repetition_penalty=1.3,
        presence_penalty=0.5,
        frequency_penalty=0.3,
        no_repeat_ngram=3,
        logit_bias={"e": 1.5},
        **own,
    ),
    "stopped": lambda model, **own: generate_text(
        *(model, PROMPT, 24, 2.0), seed=4, typical_p=0.9, stop=["a=", "}&"], min_length=6, **own
    ),
    "batch": lambda model, **own: generate_batch(model, PROMPTS, 16, 1.3, n=2, seed=5, **own),
    "greedy batch": lambda model, **own: generate_batch(model, PROMPTS, 16, 0.0, **own),
    "beams": lambda model, **own: _beams(model, 4, 12, 0.7, **own),
    "diverse beams": lambda model, **own: _beams(
        model, 4, 12, groups=2, diversity_penalty=0.8, early_stopping=True, stop=[";;"], **own
    ),
    "chat": lambda model, **own: _chat(InteractivePrompt(model, 38, max_length=10, seed=6, **own)),
    "logits": lambda model, tokenizer: _logits(model, tokenizer.encode(PROMPT))[-1].tolist(),
}
"""Functions of a model and its tokenizer to what it generates."""

PRECISIONS: dict[str, Callable[[GPT2Model], GPT2Model]] = {
    "float32": lambda model: model,
    "prepared": functools.partial(prepare_for_generation, verbose=False),
    "int8": functools.partial(prepare_for_generation, quantize="int8", verbose=False),
    "int4": functools.partial(prepare_for_generation, quantize="int4", verbose=False),
    "bfloat16": lambda model: model.bfloat16(),
    "float64": lambda model: model.double(),
}
"""What is done to a model in float32 before it generates."""


def fill(module: nn.Module, most: float = 0.5) -> None:
    """Set the parameters to the same numbers on every machine, uniform from -most to most.

    They are exact if `most` is a power of two.
    """
    with torch.no_grad():
        for seed, parameter in enumerate(module.parameters()):
            levels = np.frombuffer(random.Random(seed).randbytes(2 * parameter.numel()), "<i2")
            parameter.copy_(torch.tensor(levels / 2**15 * most).view(parameter.shape))


def digest(tensors: Iterable[torch.Tensor]) -> str:
    """Return a hash of tensors, in any order."""
    parts = sorted(
        hashlib.sha256(str(tensor.shape).encode() + _content(tensor)).hexdigest()
        for tensor in tensors
    )
    return hashlib.sha256("".join(parts).encode()).hexdigest()


def _content(tensor: torch.Tensor) -> bytes:
    return tensor.detach().contiguous().view(torch.uint8).numpy().tobytes()


def arithmetic() -> dict[str, Any]:
    """Return what rounding depends on: versions, the processor, the threads, and a sample of it."""
    kernels = ""
    if LIBRARY is not None and "AGI2_NATIVE" not in os.environ:
        compiler = rb"GCC: \([^)]*\) [\d.]+|clang version [\d.]+"
        found = re.findall(compiler, Path(LIBRARY._name).read_bytes())
        kernels = ", ".join(sorted({each.decode() for each in found}))
    return {
        "torch": torch.__version__,
        "tokenizers": tokenizers.__version__,
        "machine": platform.machine(),
        "instructions": torch.backends.cpu.get_cpu_capability(),
        "threads": torch.get_num_threads(),
        "kernels": kernels,
        "results": digest(_sample_results()),
    }


def _sample_results() -> Iterator[torch.Tensor]:
    """Yield results of PyTorch's own layers, in the sizes of the runs and of the prompts."""
    vocabulary, mask = 28, nn.Transformer.generate_square_subsequent_mask(31)
    ids = torch.tensor(list(random.Random(0).randbytes(8 * 32))).view(8, 32) % vocabulary
    for is_bf16 in (False, True):
        block = nn.TransformerEncoderLayer(32, 2, 128, 0.0, "gelu", norm_first=True)
        layers = nn.ModuleList([nn.Embedding(vocabulary, 32), block, nn.Linear(32, vocabulary)])
        fill(layers)
        optimizer = torch.optim.AdamW(layers.parameters(), lr=0.01)
        for _ in range(2):
            with torch.autocast("cpu", torch.bfloat16, enabled=is_bf16):
                hidden = block(layers[0](ids[:, :-1].T), mask, is_causal=True)
                logits = layers[2](hidden).transpose(0, 1).float()
            optimizer.zero_grad()
            F.cross_entropy(logits.flatten(0, 1), ids[:, 1:].flatten()).backward()
            optimizer.step()
        yield from layers.parameters()
    sizes = [(64, 192), (64, 256), (256, 64), (64, vocabulary)]
    for dtype in (torch.float32, torch.bfloat16):
        for inputs, outputs in sizes:
            linear = nn.Linear(inputs, outputs)
            fill(linear)
            for rows in (1, 4, 8, 13):
                yield linear.to(dtype)(linear.weight.repeat(7, 1)[-rows:, :inputs].sin())


def train(name: str, trained: Callable[..., Run]) -> Run:
    """Train a run of `RUNS`, and the one that it starts from, by a factory like `shared_run`."""
    changes = {**_COMMON, **RUNS[name]}
    if "init_from" in changes:
        base = train(changes["init_from"], trained)
        changes = {**base.model.config.to_keys(), **changes, "init_from": str(base.folder)}
    return trained(**changes)


def result_of(run: Run) -> dict[str, Any]:
    """Return the losses, weights and texts of a run, and what its model generates."""
    own = {"tokenizer": run.tokenizer, "seed": 1}
    return {
        **_logged(run.folder),
        "final_val_loss": run.history["final_val_loss"],
        "weights": digest(run.model.state_dict().values()),
        "text": generate_text(run.model, PROMPT, 12, 0.8, **own),
    }


def _logged(folder: Path) -> dict[str, list[Any]]:
    lines = (folder / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
    entries = [json.loads(line) for line in lines]
    keys = ("loss", "grad_norm", "learning_rate", "val_loss", "val_bits_per_byte", "sample")
    return {key: [entry[key] for entry in entries if key in entry] for key in keys}


def resume_earlier(folder: Path) -> dict[str, Any]:
    """Resume the run of `EARLIER` in a folder; return its log and a hash of its weights."""
    shutil.unpack_archive(EARLIER, folder)
    path = folder / "trained/run/config.toml"
    paths = [f'sources=["{folder / "corpus.txt"}"]', f"output_dir={folder / 'trained'}"]
    config = load_config(path, "training", [*paths, "resume=auto"])
    run = train_from_config(config, verbose=False)
    return {**_logged(run.folder), "weights": digest(run.model.state_dict().values())}


def losses_in_float64(name: str, folder: Path) -> list[float]:
    """Train a run of `RUNS` in float64, from the weights of `fill`; return its train losses."""
    text = make_text()
    (folder / "text.txt").write_text(text, encoding="utf-8")
    tokenizer = BasicTokenizer()
    tokenizer.fit([text])
    changes = {**_COMMON, **RUNS[name], "vocab_size": tokenizer.vocab_size, "sample_tokens": 0}
    config = configurations(folder / "text.txt", folder)(name, **changes)
    model = GPT2Model(config).double()
    fill(model)
    given = {key: config[key] for key in config.model_fields_set - {"sources", "tokenizer"}}
    train_model(model, tokenizer, str(folder / "text.txt"), verbose=False, **given)
    return _logged(folder / name)["loss"]


def fixed_model(precision: str) -> tuple[GPT2Model, BasicTokenizer]:
    """Return a model with the weights of `fill`, and its tokenizer."""
    tokenizer = BasicTokenizer()
    tokenizer.fit([make_text(), string.ascii_lowercase, string.digits, string.punctuation])
    # The kernels take widths that are multiples of 64.
    sizes = {"max_seq_len": 48, "d_model": 64, "n_layers": 2, "n_heads": 2}
    config = GPT2Config(tokenizer.vocab_size, position_embedding="learned", **sizes)
    model = GPT2Model(config).eval()
    fill(model, most=1.0)
    return PRECISIONS[precision](model), tokenizer


def texts_of(precision: str) -> dict[str, Any]:
    """Return what a fixed model generates at each of `REQUESTS`."""
    model, tokenizer = fixed_model(precision)
    # In bfloat16 a row's rounding may depend on the rows beside it.
    left_out = {"batch"} if precision == "bfloat16" else set()
    return {
        name: request(model, tokenizer=tokenizer)
        for name, request in REQUESTS.items()
        if name not in left_out
    }


def _beams(model: GPT2Model, size: int, *arguments: Any, **options: Any) -> list[list[Any]]:
    found = generate_beam_texts(model, PROMPT, size, *arguments, results=size, **options)
    return [[each.text, each.score] for each in found]


def _chat(chat: InteractivePrompt) -> list[list[str]]:
    """Return the replies to five messages, and what is left in the context of all."""
    messages = ("the sea", "a whale", "wind", "the captain of the old ship", "and")
    return [[chat.send_message(message) for message in messages], chat.history]


def _logits(model: GPT2Model, ids: list[int]) -> torch.Tensor:
    """Return the logits (T, V)."""
    with torch.no_grad():
        return model(torch.tensor([ids]))[0]


def difference(found: Any, expected: Any, place: str = "") -> str:
    """Return where two results differ first, and how; empty if nowhere."""
    if isinstance(expected, dict) and isinstance(found, dict) and [*found] == [*expected]:
        pairs = [(f"{place}.{key}", found[key], expected[key]) for key in expected]
    elif isinstance(expected, list) and isinstance(found, list) and len(found) == len(expected):
        triples = zip(found, expected, strict=True)
        pairs = [(f"{place}[{index}]", *pair) for index, pair in enumerate(triples)]
    else:
        return "" if found == expected else f"{place}: {found!r}, recorded: {expected!r}"
    return next(filter(None, (difference(new, old, where) for where, new, old in pairs)), "")


@pytest.fixture(scope="module")
def recorded():
    return json.loads(RECORD.read_text(encoding="utf-8"))


@pytest.fixture(autouse=True)
def one_thread(isolated):
    torch.set_num_threads(1)


@pytest.fixture(scope="module")
def other_rounding(recorded):
    """Return in what this machine differs from the one that recorded, as far as rounding goes."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    here, there = arithmetic(), recorded["arithmetic"]
    torch.set_num_threads(threads)
    return [f"{key} {here[key]}, not {there[key]}" for key in there if here[key] != there[key]]


@pytest.fixture
def same_arithmetic(other_rounding):
    if other_rounding:
        pytest.skip("other rounding than recorded: " + "; ".join(other_rounding))


@pytest.mark.usefixtures("same_arithmetic")
@pytest.mark.parametrize("name", RUNS)
def test_a_run_equals_the_recorded_one(name, shared_run, recorded):
    assert difference(result_of(train(name, shared_run)), recorded["runs"][name]) == ""


def test_a_run_of_an_earlier_version_is_resumed_exactly(tmp_path, recorded, other_rounding):
    found, expected = resume_earlier(tmp_path), recorded["resumed"]
    assert found["loss"][:4] == expected["loss"][:4]  # the log of the earlier version is kept
    assert len(found["loss"]) == 8
    if not other_rounding:
        assert difference(found, expected) == ""


@pytest.mark.usefixtures("same_arithmetic")
@pytest.mark.parametrize("precision", PRECISIONS)
def test_texts_equal_the_recorded_ones(precision, recorded):
    assert difference(texts_of(precision), recorded["texts"][precision]) == ""


@pytest.mark.parametrize("name", RUNS_IN_FLOAT64)
def test_losses_in_float64_are_the_recorded_ones_on_every_machine(name, tmp_path, recorded):
    found = torch.tensor(losses_in_float64(name, tmp_path), dtype=torch.float64)
    expected = torch.tensor(recorded["losses in float64"][name], dtype=torch.float64)
    assert found.shape == expected.shape
    assert (found - expected).abs().max() <= rounding_in_float64(expected)


def test_greedy_texts_in_float64_are_the_recorded_ones_on_every_machine(recorded):
    model, tokenizer = fixed_model("float64")
    expected = recorded["texts"]["float64"]
    logits = torch.tensor(expected["logits"], dtype=torch.float64)
    ids = tokenizer.encode(expected["greedy"])
    found = _logits(model, ids)
    first = len(tokenizer.encode(PROMPT)) - 1
    assert (found[first] - logits).abs().max() <= rounding_in_float64(logits)
    # No other token is as likely to within rounding, also if logits are converted to float32.
    best = found[first:-1].topk(2).values
    bound = 2 * (rounding_in_float64(found) + unit() * found.abs().max())
    assert (best[:, 0] - best[:, 1]).min() > bound
    for name in GREEDY:
        assert REQUESTS[name](model, tokenizer=tokenizer) == expected[name]


@pytest.mark.parametrize("precision", PRECISIONS)
def test_the_recorded_texts_are_not_trivial(precision, recorded):
    texts = recorded["texts"][precision]
    assert all(len(set(texts[name])) > 4 for name in ("greedy", "long", "sampled", "stopped"))
    assert "batch" not in texts or len({text for row in texts["batch"] for text in row}) == 8
    assert len({score for _, score in texts["beams"]}) == 4


def test_a_difference_of_one_bit_is_found(recorded):
    changed = json.loads(json.dumps(recorded))
    losses = changed["runs"]["lora"]["loss"]
    losses[3] = math.nextafter(losses[3], math.inf)
    assert difference(changed, recorded).startswith(".runs.lora.loss[3]: ")
    assert difference(recorded, recorded) == ""


def record(folder: Path) -> dict[str, Any]:
    """Return everything that the file holds, from runs in a folder."""
    (folder / "corpus.txt").write_text(make_text(), encoding="utf-8")
    make = configurations(folder / "corpus.txt", folder / "trained")
    runs: dict[str, Run] = {}

    def trained(**changes: Any) -> Run:
        key = repr(sorted(changes.items()))
        if key not in runs:
            runs[key] = train_from_config(make(f"run-{len(runs)}", **changes), verbose=False)
        return runs[key]

    torch.set_num_threads(1)
    return {
        "arithmetic": arithmetic(),
        "runs": {name: result_of(train(name, trained)) for name in RUNS},
        "losses in float64": {name: losses_in_float64(name, folder) for name in RUNS_IN_FLOAT64},
        "texts": {precision: texts_of(precision) for precision in PRECISIONS},
        "resumed": resume_earlier(folder / "earlier"),
    }


def main(arguments: list[str]) -> None:
    """Compare with the recorded results, or record them."""
    with tempfile.TemporaryDirectory() as folder:
        found = record(Path(folder))
    if "--record" in arguments:
        text = json.dumps(found, indent=1, ensure_ascii=False)
        RECORD.write_text(text + "\n", encoding="utf-8")
        return
    expected = json.loads(RECORD.read_text(encoding="utf-8"))
    for part in found:
        for name in found[part]:
            if line := difference(found[part][name], expected[part].get(name), f"{part}.{name}"):
                print(line)


if __name__ == "__main__":
    main(sys.argv[1:])
