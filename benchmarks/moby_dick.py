"""Val loss of `resources/moby_dick.toml` and of nanoGPT's CPU recipe on the same split.

python benchmarks/moby_dick.py NANOGPT_FOLDER MOBY_DICK.txt [--steps 20000] [--json FILE]

Bits per byte on the last 10 % of the text, which is held out from both.
"""

import math
import tempfile
import time
from pathlib import Path

from common import ROOT, nanogpt_characters, parser, report

from src.config_loader import load_config
from src.generation import generate_text
from src.training import train_from_config


def main() -> None:
    options = parser(__doc__.splitlines()[0])
    options.add_argument("nanogpt", type=Path)
    options.add_argument("text", type=Path)
    options.add_argument("--steps", type=int, default=20000, help="nanoGPT's")
    options.add_argument("--set", action="append", default=[], help="override our configuration")
    given = options.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        overrides = [f'sources=["{given.text}"]', f"output_dir={folder}", *given.set]
        config = load_config(ROOT / "resources/moby_dick.toml", "training", overrides)
        start = time.perf_counter()
        run = train_from_config(config)
        ours = {
            "what": "AGI2, resources/moby_dick.toml",
            "bits per byte": run.history["bits_per_byte"],
            "seconds": time.perf_counter() - start,
        }
        for seed in range(3):
            text = generate_text(
                run.model, "The whale", 120, 0.8, tokenizer=run.tokenizer, seed=seed
            )
            print(f"--- sample {seed + 1} ---\n{text}\n")
        rows = [ours]
        if given.steps:
            text = given.text.read_text(encoding="utf-8")
            peer = nanogpt_characters(given.nanogpt, text, Path(folder), given.steps)
            held_out = text[int(0.9 * len(text)) :]
            bits = peer["loss"] * peer["characters"] / math.log(2) / len(held_out.encode())
            rows.append(
                {"what": "nanoGPT, CPU recipe", "bits per byte": bits, "seconds": peer["seconds"]}
            )
    report(rows, given.json)


if __name__ == "__main__":
    main()
