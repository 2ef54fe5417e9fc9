"""Token ids and encoding speed of a GPT-2 vocabulary, compared with GPT2TokenizerFast.

python benchmarks/gpt2_tokenizer.py FOLDER TEXT [--rounds 5] [--json FILE]

FOLDER holds vocab.json and merges.txt. Ids are compared on the whole of TEXT and on hard strings;
exits with 1 where any differ. The time is the least of the rounds, in turn.
"""

import sys
import time
from pathlib import Path

from common import parser, report
from transformers import GPT2TokenizerFast

from src.tokenizer import load_tokenizer

HARD = {
    "emoji": "🐳🐳 👩‍👩‍👧‍👦 🏳️‍🌈 ☃️ 👍🏽 x🐳y 🇳🇿",
    "scripts": "слово за словом 鯨は海を泳ぐ。 كلمة हिन्दी ภาษาไทย 한국어 ᚠᚢᚦ ё е\u0308 é e\u0301",
    "white space": "  a   b\n\n\n c\t\t d\r\n \xa0x\u2028\u3000 y\x0b\x0c z   ",
    "line ends": "\n\n\n\r\n\r \n x\n",
    "controls": "\x00a\x1c b\x1d\x1e\x1f c\x7f\x85\u200b\u200d\ufeff",
    "contractions": "don't we'll I'd they've it's I'm you're DON'T O'Brien 'tis 's's",
    "numbers": "1851 3.14159 1,000,000 ½ ² ٣ Ⅷ 0x1F 1e-9 2024-01-01",
    "punctuation": "...!!!?? --- __init__ (a)[b]{c} <|> $#@% ~`^ “quotes” ‘single’ …",
    "special tokens": "<|endoftext|> a<|endoftext|>b <|endoftext <|endoftext|><|endoftext|>",
    "code": "def f(x):\n    return {\n        'a': [x ** 2],\n\t}  # end\n",
    "empty": "",
    "one space": " ",
}


def ids_of_theirs(theirs: GPT2TokenizerFast, text: str) -> list[int]:
    # This project encodes text that looks like a special token as text.
    return theirs(text, split_special_tokens=True, verbose=False)["input_ids"]


def seconds(function, text: str) -> float:
    start = time.perf_counter()
    function(text)
    return time.perf_counter() - start


def main() -> int:
    options = parser(__doc__)
    options.add_argument("folder", type=Path, help="holds vocab.json and merges.txt")
    options.add_argument("text", type=Path, help="a UTF-8 text")
    options.add_argument("--rounds", type=int, default=5)
    given = options.parse_args()
    text = given.text.read_text(encoding="utf-8")
    ours = load_tokenizer(given.folder)
    theirs = GPT2TokenizerFast.from_pretrained(given.folder)
    rows, same = [], True
    for name, string in {given.text.name: text, **HARD}.items():
        mine, reference = ours.encode(string), ids_of_theirs(theirs, string)
        row = {"text": name, "characters": len(string), "tokens": len(mine)}
        row["same ids"] = "yes" if mine == reference else "NO"
        row["round trip"] = "yes" if ours.decode(mine) == string else "NO"
        same = same and mine == reference and ours.decode(mine) == string
        rows.append(row)
    times = [
        (seconds(ours.encode, text), seconds(lambda s: ids_of_theirs(theirs, s), text))
        for _ in range(given.rounds)
    ]
    best = [min(column) for column in zip(*times, strict=True)]
    rows[0]["seconds"], rows[0]["transformers' seconds"] = best
    report(rows, given.json)
    print("the same" if same else "DIFFERENT")
    return 0 if same else 1


if __name__ == "__main__":
    sys.exit(main())
