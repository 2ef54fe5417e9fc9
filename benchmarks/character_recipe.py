"""Val loss of nanoGPT's character-level CPU recipe, compared with AGI2 of the same size and tokens.

python benchmarks/character_recipe.py NANOGPT_FOLDER TEXT [--steps 2000] [--json FILE]

4 layers, 4 heads, 128 wide, context 64, batch 12, no dropout; AGI2 with Muon and linear learning
rate decay to zero, with the same number of tokens, and with a quarter of them. The first 90 % of
the text train, the last 10 % validate; each loss is over all of the held-out text.
"""

import tempfile
from pathlib import Path
from typing import Any

from common import nanogpt_characters, parser, report

from src.config import Config
from src.config_loader import make_config
from src.training import train_from_config

MUON = {"optimizer": "muon", "learning_rate": 6e-3, "muon_learning_rate": 0.02}
RECIPES = {
    "AGI2, Muon": (1.0, MUON),
    "AGI2, Muon, a quarter of the steps": (0.25, MUON),
}


def character_config(text: Path, folder: str, name: str, **keys: Any) -> Config:
    """Return the configuration of a character-level run; the last tenth of the text validates."""
    return make_config(
        {
            "sources": [str(text)],
            "model_name": name,
            "output_dir": folder,
            "tokenizer": "basic",
            "lowercase": False,
            "fold_whitespace": False,
            "position_embedding": "learned",
            "bias": False,
            "lr_schedule": "linear",
            "checkpoint_interval": 10**6,
            "sample_tokens": 0,
            **keys,
        }
    )


def main() -> None:
    options = parser(__doc__.splitlines()[0])
    options.add_argument("nanogpt", type=Path)
    options.add_argument("text", type=Path)
    options.add_argument("--steps", type=int, default=2000)
    given = options.parse_args()
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        text = given.text.read_text(encoding="utf-8")
        peer = nanogpt_characters(given.nanogpt, text, Path(folder), given.steps)
        rows.append(
            {"what": "nanoGPT", "validation loss": peer["loss"], "seconds": peer["seconds"]}
        )
        for name, (share, recipe) in RECIPES.items():
            steps = round(share * given.steps)
            config = character_config(
                given.text,
                folder,
                name,
                model_layer=4,
                model_head=4,
                model_embd=128,
                model_positions=64,
                dropout=0.0,
                batch_size=12,
                max_steps=steps,
                eval_interval=steps,
                **recipe,
            )
            history = train_from_config(config).history
            rows.append(
                {
                    "what": name,
                    "validation loss": history["final_val_loss"],
                    "seconds": history["seconds"],
                }
            )
    report(rows, given.json)


if __name__ == "__main__":
    main()
