"""A training step on this machine: tokens per second and peak memory.

python benchmarks/train_step.py NANOGPT_FOLDER [--rounds 6] [--only ROWS] [--json FILE]

GPT-2 124M at 1 x 1024, and 6 layers x 384 with a vocabulary of 4,096 at 16 x 256, in fp32, beside
nanoGPT's model and optimizer, each in a process of its own, three steps of one after three of
the other; then one step and one checkpoint of `resources/default.toml` (batch 12 x 1024).
"""

import json
import statistics
import sys
import tempfile
from pathlib import Path

from common import ROOT, InTurn, parser, report, run_child, work_in_turn

# Rows, context, vocabulary, nanoGPT's padded vocabulary, layers, heads, width.
SHAPES = {
    "124M, 1 x 1024": (1, 1024, 50257, 50304, 12, 12, 768),
    "6 x 384, 16 x 256": (16, 256, 4096, 4096, 6, 6, 384),
}


def measure_ours(shape: str) -> None:
    import torch

    from src.config import Config
    from src.model import GPT2Model
    from src.optimization import make_optimizers
    from src.step import NextTokenLoss, accumulate_gradients, apply_gradients
    from src.utils import keep_freed_memory

    rows, context, vocabulary, _, layers, heads, width = SHAPES[shape]
    keep_freed_memory()  # as a run does
    config = Config(
        position_embedding="learned",
        dropout=0.0,
        vocab_size=vocabulary,
        model_positions=context,
        model_layer=layers,
        model_head=heads,
        model_embd=width,
    )
    model = GPT2Model(config)
    optimizers = make_optimizers(model, config)
    loss = NextTokenLoss(model)

    def step() -> None:
        batch = torch.randint(0, vocabulary, (rows, context + 1))
        accumulate_gradients(loss, batch, torch.device("cpu"))
        apply_gradients(optimizers, 1.0)

    work_in_turn(step)


def measure_nanogpt(shape: str, folder: str) -> None:
    sys.path.insert(0, folder)
    import torch

    from model import GPT, GPTConfig

    rows, context, vocabulary, padded, layers, heads, width = SHAPES[shape]
    sizes = {"n_layer": layers, "n_head": heads, "n_embd": width, "block_size": context}
    model = GPT(GPTConfig(vocab_size=padded, dropout=0.0, **sizes))
    optimizer = model.configure_optimizers(0.1, 6e-4, (0.9, 0.95), "cpu")

    def step() -> None:
        batch = torch.randint(0, vocabulary, (rows, context + 1))
        _, loss = model(batch[:, :-1].contiguous(), batch[:, 1:].contiguous())
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)

    work_in_turn(step)


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
    # So little text makes a small vocabulary; the model keeps its 50,257 tokens all the same.
    config = load_config(ROOT / "resources/default.toml", "training", overrides)
    tokenizer = BPETokenizer(2000)
    tokenizer.fit([words])
    train_model(GPT2Model(config), tokenizer, **config)
    checkpoints = list(Path(folder).rglob("step-*/manifest.json"))
    assert len(checkpoints) == 1, checkpoints
    print(json.dumps(0))


def main() -> None:
    options = parser(__doc__.splitlines()[0])
    options.add_argument("nanogpt")
    options.add_argument("--rounds", type=int, default=6)
    options.add_argument("--only", default="", help="rows whose name has this in it")
    options.add_argument("--child", nargs=2, help="internal")
    given = options.parse_args()
    if given.child:
        kind, shape = given.child
        if kind == "nanoGPT":
            measure_nanogpt(shape, given.nanogpt)
        elif kind == "AGI2":
            measure_ours(shape)
        else:
            default_step(given.nanogpt)
        return
    command = [sys.executable, __file__]
    rows = []
    for shape, (batch, context, *_) in SHAPES.items():
        if given.only not in shape:
            continue
        children = {
            name: InTurn([*command, given.nanogpt, "--child", name, shape])
            for name in ("nanoGPT", "AGI2")
        }
        for _ in range(given.rounds):
            for child in children.values():
                child.turn()
        rows += [
            {
                "what": f"{name}, {shape}",
                "tokens per second": batch * context / statistics.median(child.seconds),
                "fastest step": batch * context / min(child.seconds),
                "peak GB": child.end(),
            }
            for name, child in children.items()
        ]
    if given.only in (what := "AGI2, default.toml: a step and a checkpoint"):
        with tempfile.TemporaryDirectory() as folder:
            whole, peak, _ = run_child([*command, folder, "--child", "default", ""])
        rows.append({"what": what, "seconds": whole, "peak GB": peak})
    report(rows, given.json)


if __name__ == "__main__":
    main()
