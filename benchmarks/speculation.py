"""Tokens per second of greedy decoding with GPT-2 124M, with and without prompt-lookup speculation.

python benchmarks/speculation.py [--rounds 3] [--json FILE]

Two prompts of 60 tokens, fp32, 128 new ones: one repeats 20 tokens three times, the other has no
token twice. The weights are random: greedy decoding of a random model soon repeats itself, which
prompt lookup then predicts. `tokens a pass` is the mean number of tokens per forward.
"""

import statistics
import time

import torch
from common import parser, report

from src.config import GPT2Config
from src.generation import generate_tokens
from src.inference.model_runner import ModelRunner
from src.inference.prepare import prepare_for_generation
from src.inference.speculative import speculate_tokens
from src.model import GPT2Model

PROMPT, NEW = 60, 128


def margin(model: GPT2Model, text: list[int], token: int) -> float:
    """Return the difference between the largest logit after `text` and that of `token`."""
    with torch.inference_mode():
        logits = model(torch.tensor([text]), last_only=True)[0, -1]
    return float(logits.max() - logits[token])


def main() -> None:
    options = parser(__doc__.splitlines()[0])
    options.add_argument("--rounds", type=int, default=3)
    given = options.parse_args()
    torch.manual_seed(0)
    model = GPT2Model(GPT2Config(position_embedding="learned", dropout=0.0))
    prepare_for_generation(model)
    passes: list[int] = []
    model.final_norm.register_forward_hook(lambda *_: passes.append(1))

    def speculated(prompt: list[int]) -> list[int]:
        return list(speculate_tokens(ModelRunner(model, model.config.vocab_size), prompt, NEW))

    ways = {
        "plain": lambda prompt: list(generate_tokens(model, prompt, NEW, 0)),
        'speculative = "ngram"': speculated,
    }
    some = torch.randperm(50257)[:PROMPT].tolist()
    prompts = {"20 tokens, three times": some[:20] * 3, "60 different tokens": some}
    rows = []
    for what, prompt in prompts.items():
        speeds: dict[str, list[float]] = {way: [] for way in ways}
        texts: dict[str, list[int]] = {}
        counts: dict[str, int] = {}
        for _ in range(given.rounds):
            for way, run in ways.items():
                passes.clear()
                start = time.perf_counter()
                texts[way] = run(prompt)
                speeds[way].append(NEW / (time.perf_counter() - start))
                counts[way] = len(passes)
        plain, guessed = texts.values()
        differ = [place for place in range(NEW) if plain[place] != guessed[place]]
        if differ:  # allowed only for near-ties, which rounding decides
            first = differ[0]
            assert margin(model, prompt + plain[:first], guessed[first]) < 1e-3
        medians = {way: statistics.median(values) for way, values in speeds.items()}
        for way, speed in medians.items():
            rows.append(
                {
                    "prompt": what,
                    "way": way,
                    "tokens per second": speed,
                    "beside plain": speed / medians["plain"],
                    "tokens a pass": NEW / counts[way],
                    "same tokens": NEW if not differ else differ[0],
                }
            )
    report(rows, given.json)


if __name__ == "__main__":
    main()
