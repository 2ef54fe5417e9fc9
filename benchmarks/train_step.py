"""Throughput (tok/s), MFU and peak memory of a training step on this machine.

python benchmarks/train_step.py NANOGPT_FOLDER [--rounds 6] [--steps 3] [--only ROWS]
    [--device cuda] [--json FILE]

GPT-2 124M at 1 x 1024, and 6 layers x 384 with a vocabulary of 4,096 at 16 x 256, in fp32, and in
bf16 if the processor is fast in it, compared with nanoGPT's model and optimizer (which on a CPU is
fp32 as it ships), each in its own process, in alternating turns of `--steps` steps; then one step
and one checkpoint of `resources/default.toml` (batch 12 x 1024). On a GPU, 124M at 16 x 1024 and
64 x 1024 in bf16, both compiled, and the MFU.
"""

import argparse
import contextlib
import json
import statistics
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

from common import ROOT, InTurn, parser, report, run_child, work_in_turn

# Batch size, context, vocabulary, nanoGPT's padded vocabulary, layers, heads, width.
SHAPES = {
    "cpu": {
        "124M, 1 x 1024": (1, 1024, 50257, 50304, 12, 12, 768),
        "6 x 384, 16 x 256": (16, 256, 4096, 4096, 6, 6, 384),
    },
    "cuda": {
        "124M, 16 x 1024": (16, 1024, 50257, 50304, 12, 12, 768),
        "124M, 64 x 1024": (64, 1024, 50257, 50304, 12, 12, 768),
    },
}


def our_step(
    shape: tuple[int, ...], device: str, backend: str | None = None, preference: str = "auto"
) -> Callable[[], None]:
    """Return a training step of AGI2, compiled if a `torch.compile` backend is given."""
    import torch

    from src.config import Config
    from src.cuda_utils import select_precision
    from src.model import GPT2Model
    from src.nn.heap import keep_freed_memory
    from src.train.graphed_backward import GraphedBackward
    from src.train.loss import NextTokenLoss
    from src.train.optimizer import make_optimizers
    from src.train.step import accumulate_gradients, apply_gradients, backward_of

    rows, context, vocabulary, _, layers, heads, width = shape
    keep_freed_memory()  # as in a run
    config = Config(
        position_embedding="learned",
        dropout=0.0,
        vocab_size=vocabulary,
        model_positions=context,
        model_layer=layers,
        model_head=heads,
        model_embd=width,
    )
    place = torch.device(device)
    precision = select_precision(preference, place)
    model = GPT2Model(config).to(place)
    optimizers = make_optimizers(model, config)
    loss, graph = NextTokenLoss(model), None
    if backend is not None:
        loss.compile_parts(backend)
        if device != "cpu":  # as in a run
            graph = GraphedBackward(backward_of(loss, place, precision), loss)

    def fetch() -> torch.Tensor:
        batch = torch.randint(0, vocabulary, (rows, context + 1))
        return batch if device == "cpu" else batch.pin_memory().to(device, non_blocking=True)

    batches = [fetch()]

    def step() -> None:
        if graph is not None:
            graph.attach()
        found = accumulate_gradients(
            loss, batches.pop(), place, precision=precision, backward=graph
        )
        batches.append(fetch())  # while a GPU computes, as in a run
        apply_gradients(optimizers, 1.0, precision=precision)
        found.item()  # until a GPU is done

    return step


def nanogpt_step(
    shape: tuple[int, ...],
    device: str,
    folder: Path,
    backend: str | None = None,
    is_bf16: bool = False,
) -> Callable[[], None]:
    """Return a training step of nanoGPT, compiled if a `torch.compile` backend is given."""
    sys.path.insert(0, str(folder))
    import torch

    from model import GPT, GPTConfig

    rows, context, vocabulary, padded, layers, heads, width = shape
    sizes = {"n_layer": layers, "n_head": heads, "n_embd": width, "block_size": context}
    model = GPT(GPTConfig(vocab_size=padded, dropout=0.0, **sizes)).to(device)
    optimizer = model.configure_optimizers(0.1, 6e-4, (0.9, 0.95), device)
    precision: contextlib.AbstractContextManager = contextlib.nullcontext()
    if device != "cpu":  # as its train.py does
        torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = True
    if is_bf16 or device != "cpu":
        precision = torch.autocast(device, torch.bfloat16)
    if backend is not None:
        model = torch.compile(model, backend=backend)

    def step() -> None:
        batch = torch.randint(0, vocabulary, (rows, context + 1)).to(device)
        with precision:
            _, loss = model(batch[:, :-1].contiguous(), batch[:, 1:].contiguous())
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        loss.item()  # until a GPU is done

    return step


def mfu(device: str, tokens_per_second: float) -> dict[str, float]:
    """Return the MFU of GPT-2 124M in bf16, or nothing if the device's peak is unknown."""
    if device == "cpu":
        return {}
    import torch

    from src.config import GPT2Config
    from src.train.estimates import peak_flops, training_flops

    architecture = GPT2Config(position_embedding="learned")
    flops = training_flops(architecture, 124_439_808, architecture.max_seq_len)
    peak = peak_flops(torch.device(device), torch.bfloat16)
    return {} if peak is None else {"MFU": tokens_per_second * flops / peak}


def default_step(folder: str) -> None:
    from src.config_loader import load_config
    from src.model import GPT2Model
    from src.tokenizer import BPETokenizer
    from src.training import train_model

    text = Path(folder) / "text.txt"
    words = " ".join(f"{i % 977} and {i % 89} are {i % 13}," for i in range(60_000))
    text.write_text(words, encoding="utf-8")
    overrides = [f'sources=["{text}"]', f"output_dir={folder}", "max_steps=1", "sample_tokens=0"]
    overrides += ["val_fraction=0"]
    # This text yields a small vocabulary only; the model still has 50,257 tokens.
    config = load_config(ROOT / "resources/default.toml", "training", overrides)
    tokenizer = BPETokenizer(2000)
    tokenizer.fit([words])
    train_model(GPT2Model(config), tokenizer, **config)
    checkpoints = list(Path(folder).rglob("step-*/manifest.json"))
    assert len(checkpoints) == 1, checkpoints
    print(json.dumps(0))


def run_workload(kind: str, shape: tuple[int, ...], given: argparse.Namespace) -> None:
    """Take steps in turn, as a child; `kind` is the project and the precision."""
    project, precision = kind.split()
    # The defaults of both projects' runs.
    backend = "inductor" if given.device != "cpu" else None
    if project == "nanoGPT":
        step = nanogpt_step(shape, given.device, given.nanogpt, backend, precision == "bf16")
    else:
        step = our_step(shape, given.device, backend, precision)
    work_in_turn(step, given.steps)


def kinds(device: str) -> list[str]:
    """Return the projects and precisions to compare."""
    from src.cuda_utils import has_fast_bf16

    precisions = ["bf16"] if device != "cpu" else ["fp32", *(["bf16"] if has_fast_bf16() else [])]
    return [f"{project} {each}" for each in precisions for project in ("nanoGPT", "AGI2")]


def main() -> None:
    options = parser(__doc__.splitlines()[0])
    options.add_argument("nanogpt")
    options.add_argument("--rounds", type=int, default=6)
    options.add_argument("--steps", type=int, default=3, help="steps of a turn")
    options.add_argument("--only", default="", help="rows whose name has this in it")
    options.add_argument("--device", default="cpu", choices=SHAPES)
    options.add_argument("--child", nargs=2, help="internal")
    given = options.parse_args()
    if given.child:
        kind, name = given.child
        if kind != "default":
            run_workload(kind, SHAPES[given.device][name], given)
        else:
            default_step(given.nanogpt)
        return
    command = [sys.executable, __file__]
    rows = []
    for shape, (batch, context, *_) in SHAPES[given.device].items():
        if given.only not in shape:
            continue
        children = {
            name: InTurn(
                [
                    *(*command, given.nanogpt, "--device", given.device),
                    *("--steps", str(given.steps), "--child", name, shape),
                ]
            )
            for name in kinds(given.device)
        }
        for _ in range(given.rounds):
            for child in children.values():
                child.turn()
        rows += [
            {
                "what": f"{name}, {shape}",
                "tokens per second": batch * context / statistics.median(child.seconds),
                "fastest step": batch * context / min(child.seconds),
                **mfu(given.device, batch * context / statistics.median(child.seconds)),
                "peak GB" if given.device == "cpu" else "host's peak GB": child.end(),
            }
            for name, child in children.items()
        ]
    what = "AGI2, default.toml: a step and a checkpoint"
    if given.device == "cpu" and given.only in what:
        with tempfile.TemporaryDirectory() as folder:
            whole, peak, _ = run_child([*command, folder, "--child", "default", ""])
        rows.append({"what": what, "seconds": whole, "peak GB": peak})
    report(rows, given.json)


if __name__ == "__main__":
    main()
