"""Tokens per second of greedy generation with GPT-2 124M, random weights, beside `transformers`.

python benchmarks/generation.py [--rounds 3] [--json FILE]

A prompt of 60 tokens and 128 new ones, fp32, the same weights in both, in turn.
"""

import statistics
import time

import torch
from common import parser, report

from src.config import GPT2Config
from src.generation import generate_tokens
from src.interop.huggingface import their_config, to_their_layout
from src.model import GPT2Model

PROMPT, NEW = 60, 128


def transformers_model(model: GPT2Model):
    """The same weights as a `GPT2LMHeadModel`."""
    from transformers import GPT2Config as TheirConfig
    from transformers import GPT2LMHeadModel

    shape = TheirConfig(**their_config(model.config), attn_implementation="sdpa")
    theirs = GPT2LMHeadModel(shape).eval()
    theirs.load_state_dict(to_their_layout(model.state_dict()), strict=False)
    theirs.tie_weights()
    return theirs


def main() -> None:
    options = parser(__doc__.splitlines()[0])
    options.add_argument("--rounds", type=int, default=3)
    given = options.parse_args()
    torch.manual_seed(0)
    model = GPT2Model(GPT2Config(position_embedding="learned", dropout=0.0)).eval()
    theirs = transformers_model(model)
    prompt = torch.randint(0, 50257, (PROMPT,)).tolist()

    def ours_run() -> list[int]:
        return list(generate_tokens(model, prompt, NEW, 0))

    def their_run() -> list[int]:
        ids = torch.tensor([prompt])
        with torch.inference_mode():
            out = theirs.generate(
                ids,
                attention_mask=torch.ones_like(ids),
                max_new_tokens=NEW,
                min_new_tokens=NEW,
                do_sample=False,
                pad_token_id=50256,
            )
        return out[0, PROMPT:].tolist()

    speeds: dict[str, list[float]] = {"AGI2": [], "transformers": []}
    texts = {}
    for _ in range(given.rounds):
        for name, run in (("AGI2", ours_run), ("transformers", their_run)):
            start = time.perf_counter()
            texts[name] = run()
            speeds[name].append(NEW / (time.perf_counter() - start))
    assert len(texts["AGI2"]) == len(texts["transformers"]) == NEW
    same = sum(a == b for a, b in zip(*texts.values(), strict=True))
    rows = [
        {"what": f"{name}, fp32, greedy", "tokens per second": statistics.median(values)}
        for name, values in speeds.items()
    ]
    report(rows, given.json)
    print(f"{same} of {NEW} tokens are the same")


if __name__ == "__main__":
    main()
