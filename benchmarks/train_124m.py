"""GPT-2 124M on this machine: tokens per second and peak memory of a training step.

python benchmarks/train_124m.py NANOGPT_FOLDER [--steps 3] [--rounds 2] [--json FILE]

Batch 1 x 1024 in fp32 beside nanoGPT's model and optimizer, each in processes of its own, in
turn; then one step and one checkpoint of `resources/default.toml` (batch 12 x 1024).
"""

import json
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

from common import ROOT, parser, report, run_child


def measure_ours(steps: int) -> None:
    import torch
    import torch.nn.functional as F

    from src.config import Config
    from src.model import GPT2Model
    from src.optimization import make_optimizers
    from src.trainer import training_step
    from src.utils import keep_freed_memory

    keep_freed_memory()  # as a run does
    config = Config(position_embedding="learned", dropout=0.0)
    model = GPT2Model(config)
    optimizers = make_optimizers(model, config)

    def step() -> None:
        batch = torch.randint(0, config.vocab_size, (1, 1025))
        training_step(model, batch, optimizers, F.cross_entropy, "cpu", clip_grad_norm=1.0)

    _time(step, steps)


def measure_nanogpt(steps: int, folder: str) -> None:
    sys.path.insert(0, folder)
    import torch

    from model import GPT, GPTConfig

    model = GPT(GPTConfig(vocab_size=50304, dropout=0.0))
    optimizer = model.configure_optimizers(0.1, 6e-4, (0.9, 0.95), "cpu")

    def step() -> None:
        batch = torch.randint(0, 50257, (1, 1025))
        _, loss = model(batch[:, :-1].contiguous(), batch[:, 1:].contiguous())
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)

    _time(step, steps)


def _time(step: Callable[[], None], steps: int) -> None:
    step()
    seconds = []
    for _ in range(steps):
        start = time.perf_counter()
        step()
        seconds.append(time.perf_counter() - start)
    print(json.dumps(statistics.median(seconds)))


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
    options.add_argument("--steps", type=int, default=3)
    options.add_argument("--rounds", type=int, default=2)
    options.add_argument("--child", choices=["ours", "nanogpt", "default"], help="internal")
    given = options.parse_args()
    if given.child == "ours":
        return measure_ours(given.steps)
    if given.child == "nanogpt":
        return measure_nanogpt(given.steps, given.nanogpt)
    if given.child == "default":
        return default_step(given.nanogpt)
    speeds: dict[str, list[float]] = {"nanogpt": [], "ours": []}
    memory: dict[str, float] = {}
    command = [sys.executable, __file__]
    for _ in range(given.rounds):
        for name in speeds:
            child = [*command, given.nanogpt, "--steps", str(given.steps), "--child", name]
            _, memory[name], output = run_child(child)
            speeds[name].append(1024 / json.loads(output.splitlines()[-1]))
    rows = [
        {
            "what": f"{'nanoGPT' if name == 'nanogpt' else 'AGI2'}, batch 1 x 1024, fp32",
            "tokens per second": statistics.median(speeds[name]),
            "peak GB": memory[name],
        }
        for name in speeds
    ]
    with tempfile.TemporaryDirectory() as folder:
        seconds, peak, _ = run_child([*command, folder, "--child", "default"])
    rows.append(
        {"what": "AGI2, default.toml: a step and a checkpoint", "seconds": seconds, "peak GB": peak}
    )
    report(rows, given.json)


if __name__ == "__main__":
    main()
