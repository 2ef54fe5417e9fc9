"""Training and encoding of byte-level BPE, next to tokenizers, tiktoken and rustbpe.

python benchmarks/bpe_tokenizers.py TEXT [--vocab-size 4096] [--rounds 5] [--large MB] [--json FILE]

Each library that is installed trains the same vocabulary size on TEXT with GPT-2's pattern, and
encodes TEXT with the vocabulary trained here; the ids must be the same. One thread and two, each in
a process of its own, in which the libraries take turns; the time is the least of the rounds.

With --large, a vocabulary of 32,000 is also trained on that many MB, made of TEXT's words in random
order with numbers and one long word, and the peak memory is measured.
"""

import json
import os
import random
import sys
import time
from collections.abc import Callable, Iterator
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import tokenizers
from common import parser, report, run_child
from tokenizers import models, pre_tokenizers, trainers

from src.tokenization.byte_level import token_to_bytes
from src.tokenization.pieces import split_text
from src.tokenization.tokenizer_json import KNOWN_PATTERNS
from src.tokenizer import BPETokenizer

GPT2_PATTERN = KNOWN_PATTERNS[0]
HAS = {name: find_spec(name) is not None for name in ("tiktoken", "rustbpe")}


def training(text: str, vocab_size: int) -> dict[str, Callable[[], Any]]:
    """Return what trains a vocabulary, by library."""
    pieces = list(split_text(text))

    def by_agi2() -> None:
        BPETokenizer(vocab_size).fit(text, verbose=False)

    def by_tokenizers() -> None:
        tokenizer = tokenizers.Tokenizer(models.BPE())
        tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
        alphabet = pre_tokenizers.ByteLevel.alphabet()
        trainer = trainers.BpeTrainer(
            vocab_size=vocab_size, initial_alphabet=alphabet, show_progress=False
        )
        tokenizer.train_from_iterator(pieces, trainer)

    def by_rustbpe() -> None:
        import rustbpe

        rustbpe.Tokenizer().train_from_iterator(pieces, vocab_size=vocab_size, pattern=GPT2_PATTERN)

    found = {"agi2": by_agi2, "tokenizers": by_tokenizers}
    return found | ({"rustbpe": by_rustbpe} if HAS["rustbpe"] else {})


def encoding(
    text: str, tokenizer: BPETokenizer, threads: int
) -> dict[str, Callable[[], np.ndarray]]:
    """Return what encodes the text with a vocabulary, by library; all give the same ids."""
    pieces = list(split_text(text))
    library = tokenizers.Tokenizer.from_str(tokenizer.to_json())
    library.encode_special_tokens = True

    def by_tokenizers() -> np.ndarray:
        encoded = library.encode_batch_fast(pieces, add_special_tokens=False)
        return np.concatenate([each.ids for each in encoded])

    found = {
        "agi2": lambda: tokenizer.encode_batch([text], threads=threads)[0],
        "tokenizers": by_tokenizers,
    }
    if HAS["tiktoken"]:
        import tiktoken

        # Its ids follow the ranks: the bytes, then the merges. Ours begin with end-of-text.
        names = sorted(library.get_vocab().items(), key=lambda item: item[1])[1:]
        ranks = {token_to_bytes(name): id - 1 for name, id in names}
        theirs = tiktoken.Encoding(
            "benchmark", pat_str=GPT2_PATTERN, mergeable_ranks=ranks, special_tokens={}
        )

        def by_batch() -> np.ndarray:
            parts = theirs.encode_ordinary_batch(pieces, num_threads=threads)
            return np.concatenate([np.array(part, np.uint32) for part in parts]) + 1

        found["tiktoken, batch"] = by_batch
        found["tiktoken"] = lambda: theirs.encode_to_numpy(text, disallowed_special=()) + 1
    return found


def least_seconds(works: dict[str, Callable[[], Any]], rounds: int) -> dict[str, float]:
    """Run each work in turn; return its least time."""
    best = dict.fromkeys(works, float("inf"))
    for _ in range(rounds):
        for name, work in works.items():
            start = time.perf_counter()
            work()
            best[name] = min(best[name], time.perf_counter() - start)
    return best


def measure(text: str, vocab_size: int, threads: int, rounds: int) -> Iterator[dict[str, Any]]:
    """Yield a row for each library and operation."""
    tokenizer = BPETokenizer(vocab_size)
    tokenizer.fit(text, verbose=False)
    encoders = encoding(text, tokenizer, threads)
    ids = {name: encode() for name, encode in encoders.items()}
    for what, works in (("train", training(text, vocab_size)), ("encode", encoders)):
        times = least_seconds(works, rounds)
        for name, seconds in times.items():
            same = what == "train" or np.array_equal(ids[name], ids["agi2"])
            yield {
                "operation": what,
                "threads": threads,
                "library": name,
                "seconds": seconds,
                "MB/s": len(text.encode()) / 1e6 / seconds,
                "of agi2's time": seconds / times["agi2"],
                "ids": "" if what == "train" else "same" if same else "DIFFERENT",
            }


def large_texts(text: str, megabytes: int) -> Iterator[str]:
    """Yield documents of about 1 MB: words in random order with numbers; last, one long word."""
    rng, words = random.Random(0), text.split()
    for _ in range(megabytes):
        size = 0
        document = []
        while size < 1_000_000:
            part = [*rng.choices(words, k=999), str(rng.randrange(10**9))]
            document += part
            size += sum(map(len, part)) + len(part)
        yield " ".join(document)
    yield "".join(rng.choices("ACGT", k=10**7))


def train_large(text: str, megabytes: int) -> float:
    """Train on a large text; return the seconds, without those for making it."""
    making = 0.0

    def timed() -> Iterator[str]:
        nonlocal making
        documents = large_texts(text, megabytes)
        while True:
            start = time.perf_counter()
            document = next(documents, None)
            making += time.perf_counter() - start
            if document is None:
                return
            yield document

    start = time.perf_counter()
    BPETokenizer(32_000).fit(timed(), verbose=False)
    return time.perf_counter() - start - making


def main() -> int:
    options = parser(__doc__)
    options.add_argument("text", type=Path, help="a UTF-8 text")
    options.add_argument("--vocab-size", type=int, default=4096)
    options.add_argument("--rounds", type=int, default=5)
    options.add_argument("--large", type=int, default=0, metavar="MB")
    options.add_argument("--threads", type=int, help="measure in this process")
    given = options.parse_args()
    text = given.text.read_text(encoding="utf-8")
    if given.threads is not None:
        rows = (
            [{"seconds": train_large(text, given.large)}]
            if given.large
            else list(measure(text, given.vocab_size, given.threads, given.rounds))
        )
        print(json.dumps(rows))
        return 0
    command = [sys.executable, __file__, str(given.text), "--rounds", str(given.rounds)]
    command += ["--vocab-size", str(given.vocab_size)]
    rows = []
    for threads in (1, 2):
        os.environ["RAYON_NUM_THREADS"] = str(threads)  # read when a process starts
        rows += json.loads(run_child([*command, "--threads", str(threads)])[2])
    if given.large:
        _, peak, output = run_child([*command, "--threads", "1", "--large", str(given.large)])
        seconds = json.loads(output)[0]["seconds"]
        row = {"operation": f"train on {given.large} MB", "threads": 1, "library": "agi2"}
        rows.append({**row, "seconds": seconds, "MB/s": given.large / seconds, "peak GB": peak})
    report(rows, given.json)
    return int(any(row.get("ids") == "DIFFERENT" for row in rows))


if __name__ == "__main__":
    sys.exit(main())
