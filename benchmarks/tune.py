"""What `agi2 tune` plans: learning rates, also of DPO; schedule, share of text, early stopping.

python benchmarks/tune.py [--part PART]... [--folder FOLDER] [--minutes N] [--tiny] [--json FILE]

Trains models on Python's documentation, and tunes each on 2,000 of the built-in conversations, with
fixed numbers of steps. The loss on conversations is that of 100 others, whose names, words, numbers
and wordings do not occur in training; the loss on text is that of held-out text.

Each run leaves its figures in the folder, and is not repeated if they are there. After N minutes,
or at Ctrl-C, the present run is saved; the same command continues it, exactly. A row has the day
on which its run ended, and the machines on which it was trained. `--json` saves each row at once;
a part that is complete replaces its rows in the file, and those of other parts stay.
"""

import _thread
import datetime
import json
import signal
import sys
import tempfile
import threading
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from common import ROOT, machine, parser, show_rows

from src.config_loader import load_config, make_config
from src.data.builtin_conversations import conversations, held_out_conversations
from src.data.chat_template import ChatTemplate, Message
from src.evaluation.held_out import reply_to
from src.evaluation.loss import evaluate
from src.formats.model_dir import load_model
from src.train.setup import prepare
from src.train.trackers import read_metrics
from src.train.tuning import MAX_EPOCHS, plan_tuning
from src.training import train_from_config

Row = dict[str, Any]
TEXT = "text: nats per token"
CHAT = "conversations: nats per token"
TEXT_TOKENS = 4096
"""Tokens of the held-out text whose loss is computed."""


@dataclass(frozen=True)
class Sizes:
    """How long the runs are, and on how much they train."""

    models: dict[str, dict[str, Any]]
    """Keys of the architecture and of pre-training, by the model's name."""
    text: str
    base_batch: int
    steps: int
    """Steps of tuning."""
    batch: int
    """Windows of conversations, or pairs, of a step."""
    conversations: int
    held_out: int
    few: int
    """Conversations that are repeated, for early stopping."""
    short: int
    """Conversations of one exchange, to train the model that answers."""
    answering_steps: int
    pairs: int
    dpo_steps: int


_LEARNED = {"model_positions": 256, "position_embedding": "learned", "vocab_size": 4096}
_SMALL = {**_LEARNED, "model_layer": 4, "model_head": 4, "model_embd": 128, "learning_rate": 1.6e-2}
_LARGE = {**_LEARNED, "model_layer": 6, "model_head": 6, "model_embd": 384, "learning_rate": 1e-3}
# Of a model this large, Muon takes longer than the tokens of a small step.
_LARGE |= {"optimizer": "adamw", "seq_len": 128, "precision": "bf16"}
FULL = Sizes(
    models={
        "1M": {**_SMALL, "max_steps": 400},
        "1M, 60 steps": {**_SMALL, "max_steps": 60},
        "12M": {**_LARGE, "max_steps": 150},
    },
    text="builtin:python-docs",
    base_batch=8,
    steps=60,
    batch=4,
    conversations=2000,
    held_out=60,
    few=200,
    short=4000,
    answering_steps=150,
    pairs=300,
    dpo_steps=80,
)
_TINY = {"model_positions": 128, "vocab_size": 300, "model_layer": 1, "model_head": 2}
_TINY |= {"model_embd": 16, "max_steps": 2, "token_cache": "off"}
TINY = Sizes(
    models=dict.fromkeys(FULL.models, _TINY),
    text=str(ROOT / "README.md"),
    base_batch=2,
    steps=3,
    batch=2,
    conversations=60,
    held_out=10,
    few=40,
    short=30,
    answering_steps=3,
    pairs=20,
    dpo_steps=3,
)


class Runs:
    """Trains models in a folder, each once.

    Args:
        folder: the folder of the runs and their data.
        sizes: how long they are.
    """

    def __init__(self, folder: Path, sizes: Sizes) -> None:
        self.folder, self.sizes = folder, sizes
        folder.mkdir(parents=True, exist_ok=True)

    def train(self, name: str, keys: dict[str, Any]) -> Path:
        """Train a model, unless its run is complete; return the run's folder."""
        run = self.folder / name.replace(",", "").replace(" ", "-").replace("=", "-")
        if self.origin(run):
            return run
        used = self.folder / f"{run.name}.machines"
        machines = used.read_text().splitlines() if used.exists() else []
        used.write_text("\n".join(dict.fromkeys([*machines, describe_machine()])))
        fixed = {"output_dir": str(self.folder), "model_name": run.name, "threads": 1}
        fixed |= {"sample_tokens": 0, "resume": "auto"}
        train_from_config(make_config({**keys, **fixed}, "training"))
        origin = {"date": datetime.date.today().isoformat()}
        origin["machine"] = ", then ".join(used.read_text().splitlines())
        (run / "complete").write_text(json.dumps(origin))
        return run

    def origin(self, run: Path) -> Row:
        """Return the day and the machines of a run; empty if it is not complete."""
        file = run / "complete"
        return json.loads(file.read_text()) if file.exists() else {}

    def base(self, model: str) -> Path:
        """Return the folder of a model, trained on the text."""
        keys: Row = {"sources": [self.sizes.text], "optimizer": "muon", "lr_schedule": "linear"}
        keys |= {"batch_size": self.sizes.base_batch, "dropout": 0.0, "eval_tokens": TEXT_TOKENS}
        return self.train(f"base {model}", {**keys, **self.sizes.models[model]})

    def tuned(self, base: Path, name: str, keys: Row) -> tuple[Path, Row]:
        """Tune the model of a run; return the run's folder, and a row that names it."""
        fixed = {"init_from": str(base), "optimizer": "adamw", "lr_schedule": "linear"}
        fixed |= {"warmup_steps": 20, "weight_decay": 0.0, "batch_size": self.sizes.batch}
        fixed |= {"precision": load_config(base / "config.toml")["precision"]}
        fixed |= {"max_steps": self.sizes.steps, "eval_interval": 10**9}
        model = base.name.removeprefix("base-")
        run = self.train(f"{model} {name}", {**fixed, **keys})
        row = {"model": model, "run": name, "steps": last_step(run), **self.origin(run)}
        return run, row

    def on_conversations(self, model: str, name: str, **keys: Any) -> Row:
        """Tune a model on conversations; return the losses on others and on text."""
        data = {"conversations": [self.chats], "val_conversations": [self.held_out_chats]}
        run, row = self.tuned(self.base(model), name, {**data, **keys})
        return row | {CHAT: validations(run)[-1][1], TEXT: self.text_loss(run)}

    def text_loss(self, run: Path) -> float:
        """Return a model's loss on the held-out text."""
        file = run / "text_loss.json"
        if not file.exists():
            keys = {"sources": [self.sizes.text], "model_name": "text", "seq_len": 128}
            trained = load_model(run)
            held_out = prepare(make_config(keys, "training"), None, trained.tokenizer).val_data
            assert held_out is not None
            found = evaluate(
                trained.model, held_out, trained.tokenizer, batch_size=8, max_tokens=TEXT_TOKENS
            )
            file.write_text(json.dumps(found.loss))
        return json.loads(file.read_text())

    @cached_property
    def chats(self) -> str:
        """The file of the conversations to tune on."""
        return self.write("chats", conversations(self.sizes.conversations))

    @cached_property
    def held_out_chats(self) -> str:
        """The file of the conversations to validate on."""
        return self.write("held_out", held_out_conversations(self.sizes.held_out))

    def write(self, name: str, chats: Any) -> str:
        """Write conversations to a file; return its path."""
        lines = [{"messages": [message._asdict() for message in chat]} for chat in chats]
        return self.write_lines(name, lines)

    def write_lines(self, name: str, lines: Sequence[Row]) -> str:
        """Write JSON lines to a file; return its path."""
        file = self.folder / f"{name}.jsonl"
        file.write_text("".join(json.dumps(line) + "\n" for line in lines))
        return str(file)


def last_step(run: Path) -> int:
    """Return the number of steps of a run."""
    return max(entry.get("step", 0) for entry in read_metrics(run / "metrics.jsonl"))


def validations(run: Path) -> list[tuple[int, float]]:
    """Return the steps of a run's validations, and their losses."""
    entries = read_metrics(run / "metrics.jsonl")
    return [(entry["step"], entry["val_loss"]) for entry in entries if "val_loss" in entry]


def small_rates(runs: Runs) -> Iterator[Row]:
    """Learning rates of a small model, by the length of its pre-training."""
    for model in ("1M", "1M, 60 steps"):
        yield from rates(runs, model, (1e-3, 3e-3, 5e-3, 1e-2))
    yield from lora_rates(runs, "1M", (2e-3, 5e-3, 1e-2, 2e-2))


def large_rates(runs: Runs) -> Iterator[Row]:
    """Learning rates of a larger model."""
    yield from rates(runs, "12M", (1e-3, 3e-3, 3e-4, 5e-3))
    yield from lora_rates(runs, "12M", (5e-3, 1e-2))


def rates(runs: Runs, model: str, tried: Sequence[float]) -> Iterator[Row]:
    """Learning rates of all weights of a model."""
    base = runs.base(model)
    yield {"model": model, "run": "untuned", **runs.origin(base), TEXT: runs.text_loss(base)}
    for rate in tried:
        yield runs.on_conversations(model, f"lr {rate:g}", learning_rate=rate)


def lora_rates(runs: Runs, model: str, tried: Sequence[float]) -> Iterator[Row]:
    """Learning rates of LoRA adapters of a model."""
    for rate in tried:
        keys = {"learning_rate": rate, "lora_rank": 16}
        yield runs.on_conversations(model, f"LoRA, lr {rate:g}", **keys)


PLANNED_RATE = 5e-3
"""That of the small model."""


def planned(runs: Runs) -> Row:
    """Return the row of the small model, tuned at the planned rate, without text."""
    return runs.on_conversations("1M", f"lr {PLANNED_RATE:g}", learning_rate=PLANNED_RATE)


def schedules(runs: Runs) -> Iterator[Row]:
    """The planned schedule, linear decay to zero, next to the others."""
    yield planned(runs) | {"run": "linear"}
    for schedule in ("constant", "cosine", "wsd"):
        keys = {"lr_schedule": schedule, "learning_rate": PLANNED_RATE}
        yield runs.on_conversations("1M", schedule, **keys)


def shares(runs: Runs) -> Iterator[Row]:
    """Shares of plain text, with equal steps."""
    yield planned(runs) | {"run": "text_share 0"}
    for share in (0.1, 0.3):
        keys = {"sources": [runs.sizes.text], "text_share": share, "learning_rate": PLANNED_RATE}
        yield runs.on_conversations("1M", f"text_share {share:g}", **keys)


def stopping(runs: Runs) -> Iterator[Row]:
    """Where early stopping would end runs of few conversations, by its patience."""
    base = runs.base("1M")
    keys = {"init_from": str(base), "model_name": "planned"}
    keys["conversations"] = [runs.write("few", conversations(runs.sizes.few, seed=1))]
    planned = plan_tuning(keys, 1e6, {"threads": 1, "early_stopping_patience": None}).keys
    per_epoch = planned["max_steps"] // MAX_EPOCHS
    for epochs in (4, 20):
        name = f"{runs.sizes.few} conversations, {epochs} epochs"
        given = {"max_steps": epochs * per_epoch, "learning_rate": PLANNED_RATE}
        given["eval_interval"] = max(1, epochs * per_epoch // 12)
        run, row = runs.tuned(base, name, {**planned, **given})
        found = validations(run)
        row["val losses"] = " ".join(f"{loss:.3f}" for _, loss in found)
        for patience in (1, 2, 3, 4, len(found)):
            step, best = stop(found, patience)
            yield row | {"patience": patience, "steps": step, CHAT: best}


def stop(found: Sequence[tuple[int, float]], patience: int) -> tuple[int, float]:
    """Return the step at which a run stops, and its best loss until there."""
    best, since = float("inf"), 0
    for step, loss in found:
        best, since = (loss, 0) if loss < best else (best, since + 1)
        if since == patience:
            return step, best
    return found[-1][0], best


def dpo(runs: Runs) -> Iterator[Row]:
    """Learning rates of DPO, from a model that answers short questions."""
    sizes = runs.sizes
    chats = list(short(conversations(seed=2), sizes.short))
    asked = list(short(held_out_conversations(), sizes.held_out))
    data = {"conversations": [runs.write("short", chats)], "seq_len": 64}
    data |= {"val_conversations": [runs.write("held_out_short", asked)]}
    rate = {"learning_rate": 2e-3, "max_steps": sizes.answering_steps}
    start, row = runs.tuned(runs.base("12M"), "answers", {**data, **rate, "batch_size": 16})
    yield row | right(start, asked) | {TEXT: runs.text_loss(start)}
    data = {"preferences": [runs.write_lines("pairs", pairs(chats[: sizes.pairs]))], "seq_len": 64}
    data |= {"val_preferences": [runs.write_lines("held_out_pairs", pairs(asked))]}
    for rate_of_dpo in (3e-6, 1e-5, 3e-5, 1e-4):
        keys = {**data, "learning_rate": rate_of_dpo, "max_steps": sizes.dpo_steps}
        run, row = runs.tuned(start, f"DPO, lr {rate_of_dpo:g}", keys)
        entry = [each for each in read_metrics(run / "metrics.jsonl") if "val_kl" in each][-1]
        figures = {key: entry[f"val_{key}"] for key in ("accuracy", "margin", "kl")}
        yield row | figures | right(run, asked) | {TEXT: runs.text_loss(run)}


def short(chats: Any, count: int) -> Iterator[list[Message]]:
    """Yield conversations of one exchange and at most 100 characters."""
    for chat in chats:
        if count and len(chat) == 2 and sum(len(message.content) for message in chat) <= 100:
            count -= 1
            yield chat


def pairs(chats: Sequence[list[Message]]) -> list[Row]:
    """Return pairs of the right reply to a question, and the reply to another one."""
    found = []
    for index, (user, reply) in enumerate(chats):
        others = [*chats[index + 1 :], *chats[:index]]
        wrong = next(other.content for _, other in others if other.content != reply.content)
        found.append({"prompt": user.content, "chosen": reply.content, "rejected": wrong})
    return found


def right(run: Path, asked: Sequence[list[Message]]) -> Row:
    """Return how many greedy replies are those expected."""
    file = run / "right.json"
    if not file.exists():
        trained = load_model(run)
        replies = reply_to(trained.model, ChatTemplate(trained.tokenizer), asked, max_length=60)
        file.write_text(json.dumps(sum(reply.is_exact for reply in replies)))
    return {"right": json.loads(file.read_text()), "asked": len(asked)}


PARTS: dict[str, Callable[[Runs], Iterator[Row]]] = {
    "rates-1M": small_rates,
    "rates-12M": large_rates,
    "schedules": schedules,
    "shares": shares,
    "stopping": stopping,
    "dpo": dpo,
}


def describe_machine() -> str:
    """Return a line on the machine and the version of PyTorch."""
    found = machine()
    return f"{found['processor']}, {found['capability']}, PyTorch {found['torch']}"


class Results:
    """The rows in a JSON file, in the order of the parts.

    Args:
        file: the file; None for none.
    """

    def __init__(self, file: Path | None) -> None:
        self._file = file
        self.rows: list[Row] = []
        if file is not None and file.exists():
            self.rows = json.loads(file.read_text())["rows"]

    def replace(self, part: str, rows: Sequence[Row], is_complete: bool) -> None:
        """Put the rows of a part in the place of those of the same runs; if complete, of all."""
        names = [_name(row) for row in rows]
        old = [row for row in self.rows if row["part"] == part and _name(row) not in names]
        others = [row for row in self.rows if row["part"] != part]
        order = list(PARTS)
        kept = [*others, *rows, *([] if is_complete else old)]
        self.rows = sorted(kept, key=lambda row: order.index(row["part"]))
        if self._file is not None:
            self._file.parent.mkdir(parents=True, exist_ok=True)
            self._file.write_text(json.dumps({"rows": self.rows}, indent=1) + "\n")


def _name(row: Row) -> tuple[Any, ...]:
    return row["model"], row["run"], row.get("patience")


def run_part(part: str, runs: Runs, results: Results) -> None:
    """Add the rows of a part to the results, each at once."""
    rows: list[Row] = []
    for row in PARTS[part](runs):
        rows.append({"part": part, **row})
        results.replace(part, rows, is_complete=False)
    results.replace(part, rows, is_complete=True)


def main() -> None:
    options = parser(__doc__.splitlines()[0])
    options.add_argument("--part", action="append", choices=PARTS, help="by default all")
    options.add_argument("--folder", type=Path, help="keeps the runs; by default a temporary one")
    options.add_argument("--minutes", type=float, metavar="N", help="stop after N minutes")
    options.add_argument("--tiny", action="store_true", help="a few steps of tiny models")
    given = options.parse_args()
    results = Results(given.json)
    if given.minutes is not None:
        # As Ctrl-C does: a run ends after its step, with a checkpoint. In the background of a shell
        # SIGINT is ignored until there is a handler.
        signal.signal(signal.SIGINT, signal.default_int_handler)
        timer = threading.Timer(60 * given.minutes, _thread.interrupt_main)
        timer.daemon = True
        timer.start()
    with tempfile.TemporaryDirectory() as temporary:
        runs = Runs(given.folder or Path(temporary), TINY if given.tiny else FULL)
        try:
            for part in given.part or PARTS:
                run_part(part, runs, results)
        except KeyboardInterrupt:
            kept = (
                "the same command continues" if given.folder else "nothing is kept without --folder"
            )
            print(f"stopped before all runs were complete: {kept}", file=sys.stderr)
            raise SystemExit(130) from None
        finally:
            show_rows([row for row in results.rows if row["part"] in (given.part or PARTS)])


if __name__ == "__main__":
    main()
