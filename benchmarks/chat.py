"""`resources/chat.toml`: how many replies end, how many are right, and the loss on plain text.

python benchmarks/chat.py [RUN] [--questions 1000] [--set KEY=VALUE] [--tiny] [--json FILE]

Trains the recipe, unless the folder of a trained run is given; and a model of the same shape and
tokenizer for as many steps on the plain text alone. Both are asked the same held-out questions, of
names, words, numbers, sentences and wordings of facts that are not in the training conversations.
A reply is right if it is the expected text, and ends by itself. Greetings and other kinds of a
fixed text have nothing to hold out; the others are also reported by themselves.
"""

import json
import tempfile
import time
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

from common import ROOT, parser, report

from src.config import Config
from src.config_keys import GenerationConfig
from src.config_loader import load_config
from src.data.builtin_conversations import FIXED, KINDS, Question, conversations, questions
from src.data.chat_template import ChatTemplate
from src.evaluation.loss import evaluate
from src.formats.model_dir import TrainedModel, load_model
from src.inference.engine import Engine
from src.inference.model_runner import ModelRunner
from src.inference.sequence import Sequence as Request
from src.train.setup import prepare
from src.train.trackers import read_metrics
from src.training import train_from_config

MAX_LENGTH = 100
ROWS = 32
TINY = ["max_minutes=null", "max_steps=8", "eval_tokens=256", "token_cache=off"]
TEXT_ALONE = {"conversations": [], "val_conversations": [], "text_share": None}


class Reply(NamedTuple):
    """What a model replied, and whether the reply ended by itself."""

    text: str
    has_ended: bool


def ask(trained: TrainedModel, asked: Sequence[Question]) -> list[Reply]:
    """Return the greedy replies of a model."""
    model, template = trained.model, ChatTemplate(trained.tokenizer)
    ends = *trained.tokenizer.end_tokens, *template.end_tokens
    options = GenerationConfig(max_length=MAX_LENGTH, temperature=0)
    positions = model.config.max_seq_len
    requests = []
    for question in asked:
        ids, _ = template.encode(question.messages, add_generation_prompt=True)
        requests.append(Request(ids, options, positions, end_token=ends))
    Engine(ModelRunner(model, trained.tokenizer.vocab_size), ROWS).run(requests)
    return [
        Reply(
            trained.tokenizer.decode(request.new_tokens).strip(),
            request.finish_reason == "end_token",
        )
        for request in requests
    ]


def group_of(question: Question) -> str:
    """Return the kind of a question; one of its own for the name in what was just said."""
    if question.kind == "what I said" and is_about_a_name(question):
        return "what I said: a name"
    return question.kind


def is_about_a_name(question: Question) -> bool:
    """Return whether the question is what the user just said, which was a name."""
    replies = [message.content for message in question.messages if message.role == "assistant"]
    return bool(replies) and replies[-1].startswith("Nice to meet you, ")


def results(asked: Sequence[Question], replies: Sequence[Reply]) -> dict[str, float]:
    """Return the percentage of right replies of each kind, in their mean, and of those that end."""
    right: dict[str, list[bool]] = defaultdict(list)
    for question, reply in zip(asked, replies, strict=True):
        right[group_of(question)].append(reply == Reply(question.reply, True))
    shares = {kind: 100 * sum(each) / len(each) for kind, each in sorted(right.items())}
    new = [is_right for kind, each in right.items() if kind not in FIXED for is_right in each]
    every = [is_right for each in right.values() for is_right in each]
    return {
        "replies that end": 100 * sum(reply.has_ended for reply in replies) / len(replies),
        "exact": 100 * sum(every) / len(every),
        "exact: kinds with held-out items": 100 * sum(new) / len(new),
        **{f"exact: {kind}": share for kind, share in shares.items()},
    }


def train_on_text(config: Config, trained: TrainedModel, folder: str, steps: int) -> TrainedModel:
    """Train a model of the same shape and tokenizer on the plain text alone, for as many steps."""
    tokenizer = Path(folder, "tokenizer.json")
    trained.tokenizer.save(tokenizer)
    keys = {"tokenizer": str(tokenizer), "split_digits": False, "model_name": "text_alone"}
    limits = {"max_minutes": None, "max_steps": steps, "resume": None, "output_dir": folder}
    return load_model(train_from_config(config.changed(**TEXT_ALONE, **keys, **limits)).folder)


def text_loss(config: Config, trained: TrainedModel) -> dict[str, float]:
    """Return the loss on the held-out part of the plain text, which neither run trained on."""
    text = config.changed(**TEXT_ALONE)
    held_out = prepare(text, None, trained.tokenizer).val_data
    assert held_out is not None
    found = evaluate(trained.model, held_out, trained.tokenizer, batch_size=8)
    return {"text: nats per token": found.loss, "text: bits per byte": found.bits_per_byte}


def tiny(folder: str) -> list[str]:
    """Return overrides for a few steps on a few conversations and a short text."""
    path = Path(folder, "conversations.jsonl")
    lines = [{"messages": [m._asdict() for m in messages]} for messages in conversations(200)]
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    sources = {"sources": str(ROOT / "README.md"), "conversations": str(path)}
    return [*TINY, *(f'{key}=["{name}"]' for key, name in sources.items())]


def train_recipe(given: Any, folder: str) -> tuple[Path, dict[str, float]]:
    """Train the recipe, unless a run is given; return the run's folder, and its minutes."""
    if given.run is not None:
        return given.run, {}
    overrides = [f"output_dir={folder}", *(tiny(folder) if given.tiny else []), *given.set]
    config = load_config(ROOT / "resources/chat.toml", "training", overrides)
    start = time.perf_counter()
    run = train_from_config(config)
    return run.folder, {"minutes": (time.perf_counter() - start) / 60}


def compare(given: Any, folder: str) -> list[dict[str, Any]]:
    """Return a row for each figure, of the chat model and of the model of the text alone."""
    run, figures = train_recipe(given, folder)
    trained, config = load_model(run), load_config(run / "config.toml")
    steps = max(entry.get("step", 0) for entry in read_metrics(run / "metrics.jsonl"))
    models = {"chat": trained, "text alone": train_on_text(config, trained, folder, steps)}
    asked = list(questions(len(KINDS) if given.tiny else given.questions))
    found: dict[str, dict[str, float]] = {"chat": {**figures, "steps": steps}}
    for name, model in models.items():
        replies = ask(model, asked)
        found.setdefault(name, {"steps": steps}).update(results(asked, replies))
        found[name] |= text_loss(config, model)
        if name == "chat":
            show_wrong(asked, replies)
    return [
        {"what": what, **{name: values.get(what, "") for name, values in found.items()}}
        for what in found["chat"]
    ]


def show_wrong(asked: Sequence[Question], replies: Sequence[Reply], limit: int = 20) -> None:
    """Print the first wrong replies."""
    pairs = zip(asked, replies, strict=True)
    wrong = [(q, reply) for q, reply in pairs if reply != Reply(q.reply, True)]
    for question, reply in wrong[:limit]:
        end = "" if reply.has_ended else " (does not end)"
        print(f"asked     {question.messages[-1].content}")
        print(f"expected  {question.reply}\ncame      {reply.text}{end}\n")


def main() -> None:
    options = parser(__doc__.splitlines()[0])
    options.add_argument("run", nargs="?", type=Path, help="the folder of a trained run")
    options.add_argument("--questions", type=int, default=1000)
    options.add_argument("--set", action="append", default=[], help="override the recipe")
    options.add_argument("--tiny", action="store_true", help="a few steps and questions")
    given = options.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        report(compare(given, folder), given.json)


if __name__ == "__main__":
    main()
