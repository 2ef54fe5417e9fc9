"""Latency of each reply of a long chat, with and without reuse of the KV cache between turns.

python benchmarks/chat_prefix.py [--turns 20] [--layers 12] [--json FILE]

GPT-2 small's shape with random weights, messages of 20 tokens and replies of 20, greedy. Both
chats say the same, turn by turn; the one without reuse forgets what it has read before each reply.
"""

import random
import statistics
import string
import time

import torch
from common import parser, report

from src.config import GPT2Config
from src.inference.model_runner import ModelRunner
from src.inference.prepare import prepare_for_generation
from src.interactive import InteractivePrompt
from src.model import GPT2Model
from src.tokenizer import BPETokenizer

MESSAGE, REPLY = 18, 20


def main() -> None:
    options = parser(__doc__)
    options.add_argument("--turns", type=int, default=20)
    options.add_argument("--layers", type=int, default=12)
    given = options.parse_args()
    torch.manual_seed(0)
    tokenizer = BPETokenizer(257)
    tokenizer.fit([""])
    model = GPT2Model(GPT2Config(n_layers=given.layers, position_embedding="learned"))
    prepare_for_generation(model)
    # Letters only, so that encoding the decoded reply gives the same tokens.
    letters = tokenizer.encode(string.ascii_letters)
    bias = {token: -100.0 for token in range(257) if token not in letters}
    chats = {
        reuse: InteractivePrompt(
            model, 1024, tokenizer, temperature=0, max_length=REPLY, logit_bias=bias
        )
        for reuse in (True, False)
    }
    read: list[int] = []
    model.register_forward_pre_hook(lambda _, args: read.append(args[0].size(1)))
    numbers = random.Random(0)
    rows = []
    for turn in range(1, given.turns + 1):
        message = "".join(numbers.choices(string.ascii_lowercase, k=MESSAGE))
        row = {"turn": turn}
        replies = []
        for reuse, chat in chats.items():
            if not reuse:
                chat._runner = ModelRunner(model, tokenizer.vocab_size)
            read.clear()
            start = time.perf_counter()
            replies.append(chat.send_message(message))
            name = "with reuse" if reuse else "without"
            row[f"seconds {name}"] = time.perf_counter() - start
            row[f"tokens read {name}"] = sum(read)
        row["same reply"] = replies[0] == replies[1]
        rows.append(row)
    report(rows, given.json)
    first, last = (
        statistics.median(row["seconds without"] / row["seconds with reuse"] for row in part)
        for part in (rows[:5], rows[-5:])
    )
    print(f"without / with reuse: {first:.2f} in the first five turns, {last:.2f} in the last five")


if __name__ == "__main__":
    main()
