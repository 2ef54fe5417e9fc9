"""Make a corpus of any size by a seed, without a download.

python benchmarks/make_corpus.py FOLDER [--megabytes 2000] [--text FILE] [--seed 0]

Small documents in English and Chinese as JSON Lines, and a text of one line. The words are made up,
or, with --text, those of a text as often as there. FOLDER must not exist.
"""

import json
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from common import parser

# Shares of the corpus in bytes: small documents in English and Chinese; the rest is one line.
ENGLISH, CHINESE = 0.45, 0.35
BLOCK = 2**18  # words drawn at a time


class Words:
    """Draws words with the frequencies of a text, or by Zipf's law.

    Args:
        words: distinct words, the most frequent first.
        weights: how often each occurs.
        marks: what may follow a word: nothing, a comma, a full stop.
        rng: draws.
    """

    def __init__(
        self, words: list[str], weights: np.ndarray, marks: list[str], rng: np.random.Generator
    ) -> None:
        self._words = np.array([[word + mark for word in words] for mark in marks], object)
        self._cumulative = np.cumsum(weights) / np.sum(weights)
        self._rng = rng

    def blocks(self, count: int = BLOCK) -> Iterator[list[str]]:
        """Yield lists of words, without an end."""
        while True:
            chosen = np.searchsorted(self._cumulative, self._rng.random(count))
            chosen = np.minimum(chosen, self._words.shape[1] - 1)
            marks = np.searchsorted([0.87, 0.94], self._rng.random(count))
            yield self._words[marks, chosen].tolist()

    def documents(self, shortest: int, longest: int, space: str) -> Iterator[str]:
        """Yield documents of so many words, without an end."""
        for words in self.blocks():
            at = 0
            for size in self._rng.integers(shortest, longest, BLOCK // shortest).tolist():
                if at >= len(words):
                    break
                yield space.join(words[at : at + size])
                at += size


def zipf(count: int) -> np.ndarray:
    return 1 / (np.arange(count) + 2.7)


def english(text: str, rng: np.random.Generator) -> Words:
    """Return the words of a text, or made-up ones."""
    marks = ["", ",", "."]
    if counts := Counter(text.split()).most_common(200_000):
        words, weights = zip(*counts, strict=True)
        return Words(list(words), np.array(weights), marks, rng)
    letters = np.array(list("etaoinshrdlucmfwypvbgkqjxz"))
    odds = zipf(26) / zipf(26).sum()
    made = dict.fromkeys(
        "".join(rng.choice(letters, size, p=odds)) for size in rng.integers(2, 11, 100_000).tolist()
    )
    return Words(list(made), zipf(len(made)), marks, rng)


def chinese(text: str, rng: np.random.Generator) -> Words:
    """Return words of one or two characters: those of a text, or any."""
    counts = Counter(c for c in text if "\u4e00" <= c <= "\u9fff")
    characters = [c for c, _ in counts.most_common(5000)]
    if len(characters) < 500:
        characters = [chr(code) for code in rng.permutation(np.arange(0x4E00, 0x9FA0))[:5000]]
    pairs = np.minimum((rng.pareto(0.7, (20_000, 2)) * 20).astype(int), len(characters) - 1)
    words = [characters[a] + characters[b] for a, b in pairs.tolist()] + characters[:2000]
    words = list(dict.fromkeys(words))
    rng.shuffle(words)
    return Words(words, zipf(len(words)), ["", "\uff0c", "\u3002"], rng)


def make_corpus(folder: Path, size: float, seed: int, text: str) -> None:
    """Write a corpus of about `size` bytes to a new folder."""
    folder.mkdir(parents=True)
    rng = np.random.default_rng(seed)
    words = english(text, rng)
    for name, share, documents in (
        ("english.jsonl", ENGLISH, words.documents(20, 150, " ")),
        ("chinese.jsonl", CHINESE, chinese(text, rng).documents(20, 150, "")),
    ):
        written = 0
        with open(folder / name, "wb") as file:
            while written < share * size:
                line = json.dumps({"text": next(documents)}, ensure_ascii=False)
                written += file.write(f"{line}\n".encode())
    written = 0
    with open(folder / "line.txt", "wb") as file:
        for block in words.blocks(2**14):
            if written >= (1 - ENGLISH - CHINESE) * size:
                break
            written += file.write(f"{' '.join(block)} ".encode())


def main() -> None:
    options = parser(__doc__)
    options.add_argument("folder", type=Path)
    options.add_argument("--megabytes", type=float, default=2000)
    options.add_argument("--text", type=Path, help="a UTF-8 text whose words are used")
    options.add_argument("--seed", type=int, default=0)
    given = options.parse_args()
    text = given.text.read_text(encoding="utf-8") if given.text else ""
    make_corpus(given.folder, given.megabytes * 1e6, given.seed, text)


if __name__ == "__main__":
    main()
