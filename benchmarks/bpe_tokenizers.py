"""Training and encoding of byte-level BPE, next to tokenizers, tiktoken and rustbpe.

python benchmarks/bpe_tokenizers.py TEXT... [--vocab-size 4096] [--rounds 5] [--large FOLDER]
    [--without LIBRARY] [--json FILE]

Each library that is installed trains the same vocabulary size on each TEXT with GPT-2's pattern and
encodes it with the vocabulary trained here, at once and sentence by sentence; the ids must be the
same. One thread and two, each in a process of its own, in which the libraries take turns; the time
is the least of the rounds (of one, for a library that needs over 10 s).

With --large, a vocabulary of 32,000 is also trained on a folder (such as `make_corpus.py` makes),
and the peak memory is measured, both next to reading it alone; and on one word of 10 and 40 MB, by
CPU time.
"""

import json
import os
import random
import re
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

from src.data.corpus import read_documents
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
        theirs = tiktoken_encoding(library)

        def by_batch() -> np.ndarray:
            parts = theirs.encode_ordinary_batch(pieces, num_threads=threads)
            return np.concatenate([np.array(part, np.uint32) for part in parts]) + 1

        found["tiktoken, batch"] = by_batch
        found["tiktoken"] = lambda: theirs.encode_to_numpy(text, disallowed_special=()) + 1
    return found


def sentence_encoding(
    text: str, tokenizer: BPETokenizer
) -> dict[str, Callable[[], list[list[int]]]]:
    """Return what encodes the first sentences of a text, one in a call, by library."""
    parts = re.split(r"(?<=[.!?\n\u3002])\s*", text[:300_000])
    sentences = [part for part in parts if part][:2000]
    library = tokenizers.Tokenizer.from_str(tokenizer.to_json())
    library.encode_special_tokens = True
    found = {
        "agi2": lambda: list(map(tokenizer.encode, sentences)),
        "tokenizers": lambda: [library.encode(each).ids for each in sentences],
    }
    if HAS["tiktoken"]:
        encode = tiktoken_encoding(library).encode_ordinary
        found["tiktoken"] = lambda: [[id + 1 for id in encode(each)] for each in sentences]
    return found


def tiktoken_encoding(library: tokenizers.Tokenizer) -> Any:
    """Return the same vocabulary for tiktoken; its ids are 1 less."""
    import tiktoken

    # Its ids follow the ranks: the bytes, then the merges. Ours begin with end-of-text.
    names = sorted(library.get_vocab().items(), key=lambda item: item[1])[1:]
    ranks = {token_to_bytes(name): id - 1 for name, id in names}
    return tiktoken.Encoding(
        "benchmark", pat_str=GPT2_PATTERN, mergeable_ranks=ranks, special_tokens={}
    )


SLOW = 10.0  # seconds from which a work is not repeated


def least_seconds(works: dict[str, Callable[[], Any]], rounds: int) -> dict[str, float]:
    """Run each work in turn; return its least time."""
    best = dict.fromkeys(works, float("inf"))
    for _ in range(rounds):
        for name, work in works.items():
            if SLOW <= best[name] < float("inf"):
                continue
            start = time.perf_counter()
            work()
            best[name] = min(best[name], time.perf_counter() - start)
    return best


def measure(
    path: Path, vocab_size: int, threads: int, rounds: int, without: str
) -> Iterator[dict[str, Any]]:
    """Yield a row for each library, but for the one to leave out, and operation."""
    text = path.read_text(encoding="utf-8")
    tokenizer = BPETokenizer(vocab_size)
    tokenizer.fit(text, verbose=False)
    encoders, sentences = encoding(text, tokenizer, threads), sentence_encoding(text, tokenizer)
    operations = {"train": training(text, vocab_size), "encode": encoders}
    if threads == 1:
        operations["encode 2,000 sentences"] = sentences
    ids: dict[str, Any] = {name: encode().tolist() for name, encode in encoders.items()}
    rows = {name: encode() for name, encode in sentences.items()}
    for what, works in operations.items():
        works.pop(without, None)
        times = least_seconds(works, rounds)
        found = ids if what == "encode" else rows
        for name, seconds in times.items():
            same = what == "train" or found[name] == found["agi2"]
            size = sum(map(len, rows["agi2"])) if what not in ("train", "encode") else 0
            yield {
                "text": path.name,
                "operation": what,
                "threads": threads,
                "library": name,
                "seconds": seconds,
                "MB/s": "" if size else len(text.encode()) / 1e6 / seconds,
                "of agi2's time": seconds / times["agi2"],
                "ids": "" if what == "train" else "same" if same else "DIFFERENT",
            }


def large(folder: Path, what: str) -> float:
    """Read a folder, or train on it or on one long word; return the seconds, of CPU for a word."""
    if what in LONG_WORDS:
        word = "".join(random.Random(0).choices("ACGT", k=LONG_WORDS[what]))
        start = time.process_time()
        BPETokenizer(1000).fit(word, verbose=False)
        return time.process_time() - start
    start = time.perf_counter()
    documents = read_documents([str(folder)])
    if what == "train":
        BPETokenizer(32_000).fit(documents, verbose=False)
    else:
        for _ in documents:
            pass
    return time.perf_counter() - start


LONG_WORDS = {"train on a word of 10 MB": 10**7, "train on a word of 40 MB": 4 * 10**7}


def measure_large(folder: Path, command: list[str]) -> Iterator[dict[str, Any]]:
    """Yield a row for each of the works of `large`, each in a process of its own."""
    size = sum(path.stat().st_size for path in folder.iterdir()) / 1e6
    for what in ("read", "train", *LONG_WORDS):
        _, peak, output = run_child([*command, "--threads", "2", "--only", what])
        seconds = json.loads(output)[0]["seconds"]
        megabytes = LONG_WORDS[what] / 1e6 if what in LONG_WORDS else size
        yield {
            "text": "" if what in LONG_WORDS else f"{size:,.0f} MB",
            "operation": what,
            "threads": 2,
            "library": "agi2",
            "seconds": seconds,
            "MB/s": megabytes / seconds,
            "peak GB": peak,
        }


def main() -> int:
    options = parser(__doc__)
    options.add_argument("texts", type=Path, nargs="+", metavar="TEXT", help="a UTF-8 text")
    options.add_argument("--vocab-size", type=int, default=4096)
    options.add_argument("--rounds", type=int, default=5)
    options.add_argument("--without", default="", metavar="LIBRARY", help="leave a library out")
    options.add_argument("--large", type=Path, metavar="FOLDER")
    options.add_argument("--threads", type=int, help="measure in this process")
    options.add_argument("--only", default="", help="of --large, what to measure in this process")
    given = options.parse_args()
    if given.only:
        print(json.dumps([{"seconds": large(given.large, given.only)}]))
        return 0
    if given.threads is not None:
        sizes = given.vocab_size, given.threads, given.rounds, given.without
        print(json.dumps([row for text in given.texts for row in measure(text, *sizes)]))
        return 0
    command = [sys.executable, __file__, *map(str, given.texts), "--rounds", str(given.rounds)]
    command += ["--vocab-size", str(given.vocab_size), "--without", given.without]
    rows = []
    for threads in (1, 2):
        os.environ["RAYON_NUM_THREADS"] = str(threads)  # read when a process starts
        rows += json.loads(run_child([*command, "--threads", str(threads)])[2])
    if given.large:
        rows += measure_large(given.large, [*command, "--large", str(given.large)])
    report(rows, given.json)
    return int(any(row.get("ids") == "DIFFERENT" for row in rows))


if __name__ == "__main__":
    sys.exit(main())
