"""Time of logits processors and sampling per token, compared with `transformers`.

python benchmarks/sampling.py [--rounds 30] [--json FILE]

Logits of GPT-2's vocabulary, 50,257 tokens, for one text and for 8, with common sampling options;
the prompt and the text have 200 tokens. `steep` logits follow Zipf's law, as a language's do (the
top 300 to 400 tokens have 95 % of the probability); `flat` ones are normally distributed, as those
of an untrained model. Medians in milliseconds, interleaved.
"""

import statistics
import time
from collections.abc import Callable

import torch
from common import parser, report
from transformers.generation import logits_process as theirs

from src.config_keys import GenerationConfig
from src.inference.logits_processors import process_logits
from src.inference.sampling import draw

VOCABULARY, LENGTH = 50257, 200
MANNERS = {
    "greedy": ({"temperature": 0.0}, []),
    "temperature 0.8": ({"temperature": 0.8}, [theirs.TemperatureLogitsWarper(0.8)]),
    "temperature 0.8, top_k 50": (
        {"temperature": 0.8, "top_k": 50},
        [theirs.TemperatureLogitsWarper(0.8), theirs.TopKLogitsWarper(50)],
    ),
    "top_p 0.95": ({"top_p": 0.95}, [theirs.TopPLogitsWarper(0.95)]),
    "min_p 0.05": ({"min_p": 0.05}, [theirs.MinPLogitsWarper(0.05)]),
    "typical_p 0.95": ({"typical_p": 0.95}, [theirs.TypicalLogitsWarper(0.95)]),
    "repetition_penalty 1.3": (
        {"repetition_penalty": 1.3},
        [theirs.RepetitionPenaltyLogitsProcessor(1.3)],
    ),
}


def some_logits(shape: str, rows: int) -> torch.Tensor:
    torch.manual_seed(0)
    if shape == "flat":
        return 0.5 * torch.randn(rows, VOCABULARY)
    places = torch.stack([torch.randperm(VOCABULARY) for _ in range(rows)])
    return -1.5 * (places + 1).log()


def in_turn(functions: list[Callable[[], object]], rounds: int) -> list[float]:
    """Run the functions alternately; return the median milliseconds of each."""
    times: list[list[float]] = [[] for _ in functions]
    for _ in range(rounds):
        for function, seconds in zip(functions, times, strict=True):
            start = time.perf_counter()
            function()
            seconds.append(1e3 * (time.perf_counter() - start))
    return [statistics.median(each) for each in times]


@torch.inference_mode()
def main() -> None:
    options = parser(__doc__.splitlines()[0])
    options.add_argument("--rounds", type=int, default=30)
    given = options.parse_args()
    rows = []
    for shape in ("steep", "flat"):
        for texts in (1, 8):
            logits = some_logits(shape, texts)
            tokens = torch.randint(VOCABULARY, (texts, LENGTH))
            for manner, (keys, processors) in MANNERS.items():
                ours = GenerationConfig(**{"temperature": 1.0, **keys})
                chain = theirs.LogitsProcessorList(processors)
                numbers = None if ours.is_greedy else [0.5] * texts

                def our_choice(logits=logits, tokens=tokens, ours=ours, numbers=numbers):
                    return draw(process_logits(logits, tokens, ours, LENGTH // 2), numbers).read()

                def their_choice(logits=logits, tokens=tokens, chain=chain, numbers=numbers):
                    scores = chain(tokens, logits)
                    if numbers is None:
                        return scores.argmax(dim=-1)
                    return torch.multinomial(scores.softmax(dim=-1), 1)

                mine, peer = in_turn([our_choice, their_choice], given.rounds)
                rows.append(
                    {
                        "logits": shape,
                        "texts": texts,
                        "manner": manner,
                        "AGI2 ms": mine,
                        "transformers ms": peer,
                        "AGI2 ms a text": mine / texts,
                    }
                )
    report(rows, given.json)


if __name__ == "__main__":
    main()
