"""The trainer: exact resume after an interrupt at any step, and failures."""

import functools
import itertools
import json
import logging
import math
import re
import shutil
import signal
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from safetensors.torch import load_file

from src import training as training_module
from src.errors import AGI2Error
from src.formats.model_dir import load_model, run_folder
from src.model import GPT2Model
from src.train import step_runner
from src.train.accumulator import GradientAccumulator
from src.train.checkpoint import list_checkpoints, newest_checkpoint
from src.train.loss import NextTokenLoss
from src.train.schedule import Schedule, learning_rate_factor
from src.train.setup import prepare
from src.train.trackers import read_metrics
from src.train.trainer import Trainer
from src.training import make_trainer, train_from_config
from tests.bounds import assert_same_in_float64, nearly, validation_bound
from tests.conftest import make_text, raising
from tests.tiny_models import training_in_float64
from tests.train.trainers import at

# Checkpoints and validations at the same steps and at different ones; more than one epoch.
EXACT = {
    "max_steps": 21,
    "checkpoint_interval": 4,
    "eval_interval": 6,
    "log_interval": 3,
    "sample_tokens": 6,
    "dropout": 0.1,
    "micro_batch_size": 4,
}


class Crash(Exception):
    pass


def crash(config, step, moment="step"):
    """Train until a moment of a step."""
    with pytest.raises(Crash):
        train_from_config(config, kind=at(moment, step, raising(Crash)))


def entries(folder):
    """Every line of the log but each start's, without what a clock or the machine says."""
    return [
        {k: v for k, v in entry.items() if not re.search("second|memory|mfu", k)}
        for entry in read_metrics(Path(folder) / "metrics.jsonl")
        if "start" not in entry
    ]


def outcome(run):
    """All that must be equal between two runs."""
    newest = newest_checkpoint(run.folder).folder
    return {
        "model": {name: t.tolist() for name, t in run.model.state_dict().items()},
        "best": (run.folder / "model.safetensors").read_bytes(),
        "last": (newest / "model.safetensors").read_bytes(),
        "training": (newest / "training.safetensors").read_bytes(),
        "log": entries(run.folder),
        "history": {key: value for key, value in run.history.items() if key != "seconds"},
    }


def assert_same_outcome(a, b):
    a, b = outcome(a), outcome(b)
    for key in a:
        assert a[key] == b[key], key


# Exact resume.


@pytest.mark.parametrize(
    ("optimizer", "step", "moment"),
    [
        ("adamw", 0, "step"),  # before the first checkpoint: starts anew
        ("adamw", 5, "step"),
        ("adamw", 12, "sample"),  # in the middle of a validation
        ("adamw", 18, "sample"),  # with a validation since the last checkpoint
        ("adamw", 8, "save"),
        ("adamw", 21, "best"),
        ("muon", 13, "step"),
        ("muon", 12, "evaluate"),  # between a checkpoint and the validation of the same step
        ("muon", 21, "evaluate"),
    ],
)
def test_a_crash_and_a_resume_equal_a_run_without(tiny_run, shared_run, optimizer, step, moment):
    options = {**EXACT, "optimizer": optimizer}
    whole = shared_run(**options)
    crash(tiny_run("broken", **options), step, moment)
    torch.manual_seed(99)
    resumed = train_from_config(tiny_run("broken", resume="auto", **options))
    assert_same_outcome(whole, resumed)
    assert not list(resumed.folder.glob("**/*.partial"))


@pytest.fixture
def two_sources(tmp_path):
    """Many short documents in one source, and a few in another."""
    folder = tmp_path / "sources"
    folder.mkdir()
    for name, count in (("many", 40), ("few", 6)):
        lines = [json.dumps({"text": make_text(1 + i % 9, count + i)}) for i in range(count)]
        (folder / f"{name}.jsonl").write_text("\n".join(lines), encoding="utf-8")
    return [str(folder / "many.jsonl"), str(folder / "few.jsonl")]


DOCUMENTS = {"windows": "packed", "mask_documents": True, "source_weights": [1, 3]}


def test_a_crash_and_a_resume_change_nothing_with_packed_documents_and_a_mixture(
    tiny_run, two_sources, caplog
):
    options = {**EXACT, **DOCUMENTS, "sources": two_sources, "max_steps": 14}
    with caplog.at_level(logging.INFO, "agi2"):
        whole = train_from_config(tiny_run("whole", **options))
    assert "few.jsonl: 74.6 % of the training tokens" in caplog.text
    for step in (0, 7, 13):
        crash(tiny_run("broken", resume="auto", **options), step)
    resumed = train_from_config(tiny_run("broken", resume="auto", **options))
    assert_same_outcome(whole, resumed)
    state = newest_checkpoint(whole.folder).state
    assert state["fixed"]["source_weights"] == [1.0, 3.0]


def test_the_loss_of_an_epoch_of_packed_documents_is_the_mean_of_its_targets(tiny_run, two_sources):
    """Whatever the micro-batches; of each window only the targets count."""
    keys = {"sources": two_sources, "epochs": 1, "max_steps": None, "log_interval": 1}
    keys |= {"windows": "packed", "mask_documents": True, "dropout": 0.0}
    runs = []
    with training_in_float64():
        for micro in (8, 2):
            config = tiny_run(f"micro-{micro}", **keys, micro_batch_size=micro)
            runs.append(train_from_config(config))
    for name, weight in runs[0].model.state_dict().items():
        assert_same_in_float64(runs[1].model.state_dict()[name], weight)
    trainer = make_trainer(config, prepare(config))
    logged = entries(runs[0].folder)
    losses = [entry["loss"] for entry in logged if "loss" in entry]
    weights = [trainer.batches.weight(step) for step in range(len(losses))]
    tokens = len(trainer.batches.dataset.tokens)
    assert sum(weights) == tokens - 1
    mean = sum(loss * n for loss, n in zip(losses, weights, strict=True)) / (tokens - 1)
    assert runs[0].history["train_loss"] == [nearly(mean)]
    assert max(e["tokens"] for e in logged if "tokens" in e) == tokens - 1


def test_validation_is_the_same_whatever_the_training_windows(tiny_run, two_sources):
    keys = {"sources": two_sources, "max_steps": 1, "learning_rate": 1e-30}
    results = {
        train_from_config(tiny_run(kind, windows=kind, **keys)).history["final_val_loss"]
        for kind in ("stream", "documents", "packed")
    }
    assert len(results) == 1


def test_two_crashes_and_resumes_equal_a_run_without(tiny_run, shared_run):
    whole = shared_run(**EXACT)
    crash(tiny_run("broken", **EXACT), 7)
    crash(tiny_run("broken", resume="auto", **EXACT), 18)
    assert_same_outcome(whole, train_from_config(tiny_run("broken", resume="auto", **EXACT)))


def test_a_resumed_run_counts_its_patience_on(tiny_run):
    # So high a rate makes it worse soon.
    options = {
        **EXACT,
        "max_steps": 60,
        "eval_interval": 3,
        "early_stopping_patience": 3,
        "learning_rate": 0.5,
        "clip_grad_norm": None,
    }
    whole = train_from_config(tiny_run("whole", **options))
    assert whole.history["stopped"] == "early"
    end = whole.history["steps"]
    assert end < 60
    crash(tiny_run("broken", **options), end - 1)
    resumed = train_from_config(tiny_run("broken", resume="auto", **options))
    assert_same_outcome(whole, resumed)
    # Three validations without a better one, and the best weights are the model's.
    losses = whole.history["val_loss"]
    assert len(losses) - 1 - losses.index(min(losses)) == 3
    assert whole.history["best_val_loss"] == min(losses)


def test_a_finished_run_that_is_resumed_is_finished(tiny_run, copied_run):
    first = copied_run("run", **EXACT)
    before = outcome(first)
    again = train_from_config(tiny_run(resume="auto", **EXACT))
    assert outcome(again) == before


def test_a_run_resumes_without_held_out_text(tiny_run):
    options = {**EXACT, "val_fraction": 0.0}
    whole = train_from_config(tiny_run("whole", **options))
    crash(tiny_run("broken", **options), 14)
    assert_same_outcome(whole, train_from_config(tiny_run("broken", resume="auto", **options)))


def test_an_earlier_checkpoint_may_be_named(tiny_run, copied_run):
    options = {**EXACT, "keep_checkpoints": 10}
    whole = copied_run("whole", **options)
    expected = outcome(whole)
    place = whole.folder / "checkpoints" / "step-00000008"
    assert outcome(train_from_config(tiny_run("whole", resume=str(place), **options))) == expected


def test_a_run_goes_on_in_another_folder(tiny_run, copied_run):
    options = {**EXACT, "keep_checkpoints": 10}
    whole = copied_run("whole", **options)
    place = whole.folder / "checkpoints" / "step-00000012"
    other = train_from_config(tiny_run("other", resume=str(place), **options))
    for a, b in zip(whole.model.parameters(), other.model.parameters(), strict=True):
        assert torch.equal(a, b)
    assert other.history["val_loss"] == whole.history["val_loss"]
    assert entries(other.folder) == [
        e
        for e in entries(whole.folder)
        if e["step"] > 12 or (e["step"] == 12 and ("sample" in e or "val_loss" in e))
    ]
    assert place.is_dir()
    # The other run's folder is as it was.
    assert_same_outcome(whole, train_from_config(tiny_run("whole", resume="auto", **options)))


def test_best_weights_come_along_into_another_folder(tiny_run):
    first = train_from_config(tiny_run("first", max_steps=20, eval_interval=5))
    # From here on it only gets worse.
    options = {"epochs": 100, "max_steps": 30, "learning_rate": 5.0, "lr_schedule": "constant"}
    other = train_from_config(
        tiny_run("other", resume=str(first.folder), eval_interval=5, **options)
    )
    assert other.history["best_val_loss"] == first.history["best_val_loss"]
    assert other.history["val_loss"][-1] > other.history["best_val_loss"]
    for a, b in zip(first.model.parameters(), other.model.parameters(), strict=True):
        assert torch.equal(a, b)


def test_a_longer_run_keeps_the_best_weights_of_the_shorter(tiny_run):
    short = train_from_config(tiny_run(max_steps=20, eval_interval=7))
    best = (short.folder / "model.safetensors").read_bytes()
    longer = train_from_config(
        tiny_run(max_steps=30, eval_interval=7, learning_rate=5.0, resume="auto")
    )
    assert longer.history["best_val_loss"] == short.history["best_val_loss"]
    assert (longer.folder / "model.safetensors").read_bytes() == best


def test_more_epochs_recompute_the_schedule(tiny_run, caplog):
    options = {"max_steps": None, "warmup_steps": 0, "log_interval": 1}
    short = train_from_config(tiny_run(epochs=1, **options))
    steps = short.history["steps"]
    with caplog.at_level(logging.INFO, logger="agi2"):
        longer = train_from_config(tiny_run(epochs=3, resume="auto", **options))
    assert f"now {3 * steps} steps long, not {steps}" in caplog.text
    assert longer.history["steps"] == 3 * steps
    assert len(longer.history["train_loss"]) == 3
    rates = {e["step"]: e["learning_rate"] for e in entries(longer.folder) if "learning_rate" in e}
    for total, step in ((steps, steps), (3 * steps, steps + 1), (3 * steps, 2 * steps)):
        expected = 0.01 * learning_rate_factor("cosine", step - 1, total, 0)
        assert rates[step] == expected


def test_the_micro_batch_of_the_first_run_is_used_again(tiny_run):
    options = {key: value for key, value in EXACT.items() if key != "micro_batch_size"}
    whole = train_from_config(tiny_run("whole", micro_batch_size=2, **options))
    crash(tiny_run("broken", micro_batch_size=2, **options), 14)
    # `auto` alone would choose 8.
    resumed = train_from_config(tiny_run("broken", resume="auto", **options))
    assert_same_outcome(whole, resumed)


def test_a_micro_batch_that_is_set_when_resuming_is_used(tiny_run, caplog):
    train_from_config(tiny_run(max_steps=2, micro_batch_size=8))
    run = train_from_config(tiny_run(max_steps=4, micro_batch_size=2, resume="auto"))
    assert newest_checkpoint(run.folder).state["micro_batch_size"] == 2
    assert "micro_batch_size was 8 in this run: the rounding changes" in caplog.text


def test_a_damaged_newest_checkpoint_is_passed_over(tiny_run, shared_run, caplog):
    whole = shared_run(**EXACT)
    config = tiny_run("broken", **EXACT)
    crash(config, 14)
    newest = list_checkpoints(run_folder(config))[-1]
    assert newest.name == "step-00000012"
    path = newest / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-50])
    with caplog.at_level(logging.INFO, logger="agi2"):
        resumed = train_from_config(tiny_run("broken", resume="auto", **EXACT))
    assert "trying the one before" in caplog.text
    assert "step-00000008 at step 8" in caplog.text
    assert_same_outcome(whole, resumed)


# Ctrl-C.


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_an_interrupt_saves_and_leaves_and_the_run_goes_on(tiny_run, shared_run, number):
    whole = shared_run(**EXACT)
    config = tiny_run("broken", **EXACT)
    handlers = [signal.getsignal(each) for each in (signal.SIGINT, signal.SIGTERM)]
    interrupted = at("step", 9, lambda: signal.raise_signal(number))
    with pytest.raises(KeyboardInterrupt):
        train_from_config(config, kind=interrupted)
    assert handlers == [signal.getsignal(each) for each in (signal.SIGINT, signal.SIGTERM)]
    folder = run_folder(config)
    assert newest_checkpoint(folder).state["step"] == 10
    assert load_model(folder).model.config == whole.model.config
    assert_same_outcome(whole, train_from_config(tiny_run("broken", resume="auto", **EXACT)))


@pytest.mark.parametrize(
    ("moment", "step", "saved"),
    [
        ("open", 0, 1),  # after an old folder has moved, before there is a model
        ("evaluate", 6, 7),
        ("sample", 6, 7),
        ("save", 21, 21),  # while the last checkpoint is written
        ("evaluate", 21, 21),  # after it
    ],
)
def test_a_signal_at_any_time_leaves_a_model_and_a_run_that_continues(
    tiny_run, shared_run, moment, step, saved
):
    whole = shared_run(**EXACT)
    config = tiny_run("broken", **EXACT)
    stop = functools.partial(signal.raise_signal, signal.SIGTERM)
    with pytest.raises(KeyboardInterrupt):
        train_from_config(config, kind=at(moment, step, stop))
    folder = run_folder(config)
    assert newest_checkpoint(folder).state["step"] == saved
    assert load_model(folder).model.config == whole.model.config
    assert_same_outcome(whole, train_from_config(tiny_run("broken", resume="auto", **EXACT)))


def test_a_second_signal_before_anything_is_saved_says_where_the_old_run_is(tiny_run, caplog):
    def interrupt_twice():
        signal.raise_signal(signal.SIGINT)
        signal.raise_signal(signal.SIGINT)

    first = train_from_config(tiny_run(max_steps=1))
    with pytest.raises(KeyboardInterrupt):
        train_from_config(tiny_run(), kind=at("step", 0, interrupt_twice))
    aside = first.folder.with_name("run.1")
    assert (
        f"nothing was saved: {first.folder} contains no model; the earlier run was moved to {aside}"
        in (caplog.text)
    )
    assert load_model(aside).model.config == first.model.config


# A folder that is deleted while training.


def delete(folder):
    shutil.rmtree(folder)


def move(folder):
    folder.rename(folder.with_name("moved"))


def empty(folder):
    for path in folder.iterdir():
        shutil.rmtree(path) if path.is_dir() else path.unlink()


def lose_weights(folder):
    (folder / "model.safetensors").unlink(missing_ok=True)
    (folder / "metrics.jsonl").unlink()


def replace_by_an_empty_one(folder):
    shutil.rmtree(folder)
    folder.with_name("other").mkdir()
    folder.with_name("other").rename(folder)


def lose(config, moment, step, how, occurrence=1):
    """Train, with the folder lost at a moment of a step."""
    losing = at(moment, step, lambda: how(run_folder(config)), occurrence)
    return train_from_config(config, kind=losing)


@pytest.mark.parametrize(
    ("moment", "step", "how", "occurrence"),
    [
        ("step", 0, delete, 1),
        ("step", 7, delete, 1),
        ("step", 7, move, 1),
        ("step", 8, empty, 1),
        ("step", 13, lose_weights, 1),
        ("step", 13, replace_by_an_empty_one, 1),
        ("saved", 12, delete, 1),  # just before a validation
        ("sample", 12, delete, 1),
        ("save", 16, delete, 1),
        ("stop", 21, delete, 2),  # after the last checkpoint
        ("evaluate", 21, delete, 1),
        ("evaluate", 21, delete, 2),  # of the best weights, when all is done
    ],
)
def test_a_run_whose_folder_is_lost_ends_with_a_model_all_the_same(
    tiny_run, shared_run, caplog, moment, step, how, occurrence
):
    options = {**EXACT, "val_fraction": 0.0} if step == 0 else EXACT
    whole = shared_run(**options)
    run = lose(tiny_run("lost", **options), moment, step, how, occurrence)
    assert caplog.text.count("was deleted or moved away while training: creating it again") == 1
    loaded = load_model(run.folder)
    assert all(map(torch.equal, loaded.model.parameters(), run.model.parameters()))
    assert loaded.tokenizer.fingerprint == run.tokenizer.fingerprint
    assert read_metrics(run.folder / "metrics.jsonl")[0]["start"]
    assert not (run.folder / ".lock").exists()
    if occurrence == 1 or moment != "evaluate":
        checkpoint = newest_checkpoint(run.folder)
        assert checkpoint.state["step"] == 21
        ends = [
            load_file(newest_checkpoint(folder).folder / "model.safetensors")
            for folder in (run.folder, whole.folder)
        ]
        assert all(torch.equal(ends[0][name], ends[1][name]) for name in ends[0])


def test_a_folder_that_another_one_has_replaced_is_left_alone(tiny_run, copied_run):
    other = copied_run("other", **EXACT)
    before = {path: path.read_bytes() for path in other.folder.rglob("*") if path.is_file()}

    def replace(folder):
        move(folder)
        other.folder.rename(folder)

    with pytest.raises(AGI2Error, match="is not the folder any more in which this run began"):
        lose(tiny_run("lost", **EXACT), "step", 7, replace)
    folder = other.folder.with_name("lost")
    after = {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}
    after.pop(folder / "report.html")
    before.pop(other.folder / "report.html")
    assert [*after.values()] == [*before.values()]


def test_a_lock_that_was_deleted_is_taken_again(tiny_run, caplog):
    def unlock(folder):
        (folder / ".lock").unlink()

    run = lose(tiny_run(**EXACT), "step", 7, unlock)
    assert "creating it again" not in caplog.text
    assert not (run.folder / ".lock").exists()


# A run that is over, and another machine.


@pytest.mark.parametrize(
    ("changes", "advice"),
    [
        (
            {"early_stopping_patience": 1, "eval_interval": 2, "learning_rate": 0.5},
            "early_stopping_patience above 1 (now 1), or leave it out",
        ),
        ({"max_steps": 3}, "the run has its 3 steps; raise epochs or max_steps"),
        (
            {"max_steps": None, "max_minutes": 1e-9},
            "the run has its 1e-09 minutes; raise max_minutes",
        ),
    ],
)
def test_resuming_a_run_that_is_over_says_what_to_change(tiny_run, caplog, changes, advice):
    options = {"max_steps": 40, "clip_grad_norm": 1e9, **changes}
    first = train_from_config(tiny_run(**options))
    assert "nothing is left to train" not in caplog.text
    again = train_from_config(tiny_run(resume="auto", **options))
    assert again.history["steps"] == first.history["steps"]
    assert "nothing is left to train: the run" in caplog.text
    assert advice in caplog.text


def test_threads_stay_those_of_the_run_unless_others_are_asked_for(tiny_run, caplog):
    caplog.set_level(logging.INFO, "agi2")
    here = torch.get_num_threads()
    train_from_config(tiny_run(max_steps=1, threads=here + 1))
    assert torch.get_num_threads() == here
    folder = Path(tiny_run().output_dir) / "run"
    assert newest_checkpoint(folder).state["threads"] == here + 1
    train_from_config(tiny_run(max_steps=2, resume="auto"))
    assert newest_checkpoint(folder).state["threads"] == here + 1
    assert f"with {here + 1} CPU threads as before" in caplog.text
    assert f"this machine would use {here}: set threads = {here} for these" in caplog.text
    assert "rounding changes" not in caplog.text
    train_from_config(tiny_run(max_steps=3, resume="auto", threads=here))
    assert newest_checkpoint(folder).state["threads"] == here
    assert f"threads was {here + 1} in this run: the rounding changes" in caplog.text


# What does not belong together.


def test_a_checkpoint_that_is_named_must_be_whole(tiny_run):
    finished = train_from_config(tiny_run(max_steps=2))
    place = list_checkpoints(finished.folder)[-1]
    (place / "state.json").write_text("{}")
    with pytest.raises(AGI2Error, match=r"state\.json is damaged"):
        train_from_config(tiny_run(resume=str(place)))
    with pytest.raises(AGI2Error, match="does not exist"):
        train_from_config(tiny_run(resume=str(place) + "0"))


# What a run leaves on disk.


def test_a_run_ends_with_its_best_weights(tiny_run, monkeypatch):
    # After a while the rate is so high that it can only get worse.
    original = Schedule.learning_rate_factor
    monkeypatch.setattr(
        Schedule,
        "learning_rate_factor",
        lambda self, state: 1e3 if state.step > 25 else original(self, state),
    )
    run = train_from_config(tiny_run(max_steps=31, eval_interval=3, clip_grad_norm=None))
    losses = run.history["val_loss"]
    assert losses[-1] > min(losses)
    assert run.history["final_val_loss"] == min(losses)  # of the same text, all that is held out
    saved = load_file(run.folder / "model.safetensors")
    assert saved.keys() == run.model.state_dict().keys()
    assert all(torch.equal(saved[name], t) for name, t in run.model.state_dict().items())
    # The last ones are in the checkpoint.
    last = load_file(newest_checkpoint(run.folder).folder / "model.safetensors")
    assert not torch.equal(last["final_norm.weight"], saved["final_norm.weight"])


def test_a_run_leaves_only_what_can_be_read_without_unpickling(shared_run):
    run = shared_run(**EXACT)
    files = [path for path in run.folder.glob("**/*") if path.is_file()]
    assert {path.suffix for path in files} == {".safetensors", ".json", ".jsonl", ".toml", ".html"}
    assert {path.name for path in run.folder.iterdir()} == {
        *("config.toml", "model.safetensors", "tokenizer.json", "metrics.jsonl", "checkpoints"),
        "report.html",
    }


def test_the_model_is_usable_from_the_first_checkpoint_on(tiny_run):
    crash(tiny_run(checkpoint_interval=3), 5)
    folder = Path(tiny_run().output_dir) / "run"
    checkpoint = newest_checkpoint(folder)
    weights = load_file(checkpoint.folder / "model.safetensors")
    loaded = load_model(folder).model.state_dict()
    assert all(torch.equal(weights[name], loaded[name]) for name in loaded)


def test_the_loss_of_an_epoch_is_the_mean_of_its_windows(tiny_run):
    run = train_from_config(tiny_run(max_steps=None, epochs=2))
    logged = entries(run.folder)
    losses = [entry["loss"] for entry in logged if "loss" in entry]
    half = len(losses) // 2
    start = read_metrics(Path(run.folder) / "metrics.jsonl")[0]["start"]
    windows = round(start["tokens_per_step"] * half / 16)
    assert windows % half  # the last batches of an epoch have a window less than the first
    ends = [-(-step * windows // half) for step in range(half + 1)]
    rows = [end - begin for begin, end in itertools.pairwise(ends)]
    for epoch, part in enumerate((losses[:half], losses[half:])):
        mean = sum(loss * n for loss, n in zip(part, rows, strict=True)) / windows
        assert run.history["train_loss"][epoch] == nearly(mean)
    assert max(e["tokens"] for e in logged if "tokens" in e) == 2 * windows * 16


def test_an_epoch_that_is_broken_off_has_its_loss_too(tiny_run):
    run = train_from_config(tiny_run(max_steps=3))
    losses = [entry["loss"] for entry in entries(run.folder) if "loss" in entry]
    assert run.history["train_loss"] == nearly([sum(losses) / len(losses)])


# When a run ends, and how fast it learns.


def test_a_run_learns_by_its_schedule(tiny_run):
    run = train_from_config(tiny_run(max_steps=40, warmup_steps=100, lr_schedule="linear"))
    rates = [entry["learning_rate"] for entry in entries(run.folder) if "learning_rate" in entry]
    # A warm-up of a tenth of the run, then down to nothing.
    expected = [0.01 * (i + 1) / 5 for i in range(4)] + [0.01 * (1 - i / 36) for i in range(36)]
    assert rates == nearly(expected)


def test_a_run_ends_when_its_time_is_over(tiny_run, monkeypatch):
    # Each look at the clock, of which a step takes two, finds it half a minute later.
    looks = iter(range(10_000))
    clock = SimpleNamespace(monotonic=lambda: 30.0 * next(looks))
    monkeypatch.setattr("src.train.trainer.time", clock)
    run = train_from_config(tiny_run(max_steps=None, max_minutes=10, warmup_steps=0))
    assert run.history["stopped"] == "time"
    assert run.history["steps"] == 10
    assert run.history["seconds"] == 600
    rates = [entry["learning_rate"] for entry in entries(run.folder) if "learning_rate" in entry]
    expected = [0.005 * (1 + math.cos(math.pi * minute / 10)) for minute in range(10)]
    assert rates == nearly(expected)


def test_a_run_without_a_patience_is_never_stopped_early(tiny_run):
    run = train_from_config(
        tiny_run(max_steps=30, eval_interval=3, learning_rate=0.5, clip_grad_norm=None)
    )
    assert run.history["stopped"] == "finished"
    assert run.history["steps"] == 30


@pytest.mark.parametrize("in_a_row", [4, 5])
def test_steps_whose_loss_is_no_number_are_left_out_and_counted(
    tiny_run, monkeypatch, caplog, in_a_row
):
    """Four in a row are passed over; the fifth ends the run, which goes on from before them."""
    original = GradientAccumulator.fetch
    options = {"max_steps": 12, "eval_interval": 100, "checkpoint_interval": 3}
    config = tiny_run(**options)

    def spoiled(self, step):
        if step == 6:
            losses.append(self.loss)
            self.loss = lambda x, y: losses[0](x, y) * torch.nan
        if step == 6 + in_a_row:
            self.loss = losses[0]
        return original(self, step)

    losses = []
    monkeypatch.setattr(GradientAccumulator, "fetch", spoiled)
    # The step before has fetched its successor's batch already.
    if in_a_row == 4:
        run = train_from_config(config)
        state = newest_checkpoint(run.folder).state
        assert (state["step"], state["skipped_steps"]) == (12, 4)
        assert caplog.text.count("skipped: its loss or gradients are not finite") == 4
        assert all(p.isfinite().all() for p in run.model.parameters())
        return
    with pytest.raises(
        AGI2Error, match=r"5 steps in a row .* lower learning_rate \(now 0\.01\)"
    ) as e:
        train_from_config(config)
    checkpoint = newest_checkpoint(Path(config.output_dir) / config.model_name)
    assert (checkpoint.state["step"], checkpoint.state["skipped_steps"]) == (6, 0)
    assert f"continue with --resume from {checkpoint.folder}, or name an older" in str(e.value)
    monkeypatch.undo()
    resumed = train_from_config(tiny_run(resume="auto", **options))
    assert_same_outcome(resumed, train_from_config(tiny_run("whole", **options)))


def test_a_rate_that_spoils_the_weights_ends_the_run_by_its_steps(tiny_run, caplog):
    """Not by the sample that such weights cannot write."""
    options = {"learning_rate": 1e30, "eval_interval": 2, "sample_tokens": 4}
    with pytest.raises(
        AGI2Error, match=r"5 steps in a row gave no finite loss.*start from scratch"
    ):
        train_from_config(tiny_run(max_steps=40, checkpoint_interval=100, **options))
    assert "no sample: the model's logits are not finite" in caplog.text


def test_a_validation_that_fails_loses_no_step(tiny_run):
    options = {"max_steps": 12, "eval_interval": 5, "checkpoint_interval": 100, "dropout": 0.1}
    config = tiny_run("broken", **options)
    failing = at("evaluate", 10, raising(MemoryError))
    with pytest.raises(AGI2Error, match="out of memory at step 10"):
        train_from_config(config, kind=failing)
    saved = newest_checkpoint(Path(config.output_dir) / "broken").state
    assert (saved["step"], saved["evaluated_at"]) == (10, 5)
    resumed = train_from_config(tiny_run("broken", resume="auto", **options))
    assert_same_outcome(resumed, train_from_config(tiny_run("whole", **options)))


def test_a_device_that_fails_is_one_line_and_the_run_goes_on_later(
    tiny_run, shared_run, monkeypatch
):
    whole = shared_run(**EXACT)
    original = NextTokenLoss.forward
    calls = iter(range(100))

    def vanishing(self, inputs, targets):
        if next(calls) == 20:  # two a step
            raise RuntimeError("CUDA error: unspecified launch failure\nand more")
        return original(self, inputs, targets)

    with monkeypatch.context() as patch:
        patch.setattr(NextTokenLoss, "forward", vanishing)
        line = r"cpu failed at step 10 \(CUDA error: unspecified launch failure\): when .* --resume"
        with pytest.raises(AGI2Error, match=line):
            train_from_config(tiny_run("broken", **EXACT))
    resumed = train_from_config(tiny_run("broken", resume="auto", **EXACT))
    assert_same_outcome(whole, resumed)


# Out of memory.


@pytest.mark.parametrize(("batch", "too_large", "goes_on_with"), [(8, 3, 2), (6, 3, 1), (9, 4, 3)])
def test_a_micro_batch_that_does_not_fit_is_made_smaller_and_the_step_repeated(
    tiny_run, monkeypatch, caplog, batch, too_large, goes_on_with
):
    options = {"batch_size": batch, "max_steps": 8, "dropout": 0.1}
    expected = train_from_config(tiny_run("fits", micro_batch_size=goes_on_with, **options))
    original = NextTokenLoss.forward

    def cramped(self, inputs, targets):
        loss = original(self, inputs, targets)
        if len(inputs) >= too_large:
            torch.empty(2**60)
        return loss

    monkeypatch.setattr(NextTokenLoss, "forward", cramped)
    run = train_from_config(tiny_run("cramped", micro_batch_size=batch, **options))
    assert f"continuing with {goes_on_with} (the same gradients)" in caplog.text
    assert newest_checkpoint(run.folder).state["micro_batch_size"] == goes_on_with
    for name, weights in expected.model.state_dict().items():
        assert torch.equal(run.model.state_dict()[name], weights)


def test_where_one_sequence_does_not_fit_a_line_names_the_keys(tiny_run, monkeypatch):
    monkeypatch.setattr(NextTokenLoss, "forward", lambda *_: torch.empty(2**60))
    with pytest.raises(AGI2Error, match="gradient_checkpointing = true, or lower seq_len"):
        train_from_config(tiny_run(max_steps=2))


@pytest.mark.parametrize(
    ("where", "name"),
    [
        (step_runner, "apply_gradients"),
        (training_module, "evaluate"),
        (training_module, "generate_text"),
    ],
)
def test_a_lack_of_memory_elsewhere_is_one_line_and_nothing_is_lost(
    tiny_run, shared_run, monkeypatch, where, name
):
    whole = shared_run(**EXACT)
    original = getattr(where, name)
    calls = iter(range(100))

    def cramped(*args, **kwargs):
        if next(calls) == (9 if name == "apply_gradients" else 1):
            raise MemoryError
        return original(*args, **kwargs)

    with monkeypatch.context() as patch:
        patch.setattr(where, name, cramped)
        with pytest.raises(AGI2Error, match=r"out of memory at step (9|12), with 4 sequences"):
            train_from_config(tiny_run("broken", **EXACT))
    resumed = train_from_config(tiny_run("broken", resume="auto", **EXACT))
    assert_same_outcome(whole, resumed)


def test_an_interrupted_run_has_its_report(tiny_run):
    config = tiny_run(max_steps=9)
    crash(config, 5)
    assert (Path(config.output_dir) / config.model_name / "report.html").is_file()


def test_a_checkpoint_that_is_written_while_training_goes_on_is_as_it_was_asked_for(tiny_run):
    """The state holds nothing that changes later."""
    config = tiny_run(max_steps=4, eval_interval=3)
    text = prepare(config)
    trainer = make_trainer(config, text)
    states = []
    original = trainer.checkpoints.save
    trainer.checkpoints.save = lambda state: states.append(state) or original(state)
    trainer.fit()
    assert [state["step"] for state in states] == [4, 4]
    assert [len(state["history"]["val_loss"]) for state in states] == [1, 2]


def test_other_errors_are_not_taken_for_a_lack_of_memory(tiny_run, monkeypatch):
    monkeypatch.setattr(NextTokenLoss, "forward", lambda *_: torch.ones(2) @ torch.ones(3))
    with pytest.raises(RuntimeError, match="size"):
        train_from_config(tiny_run(max_steps=2))


def test_text_to_validate_on_needs_a_function_that_evaluates(tiny_run, tmp_path):
    config = tiny_run()
    text = prepare(config)
    data = text.train_data, text.val_data
    with pytest.raises(AGI2Error, match=r"^evaluate: needed to validate on val_data$"):
        Trainer(GPT2Model(config), text.tokenizer, *data, config, tmp_path)


# Compiled, and on a GPU.


def test_where_compiling_fails_a_run_goes_on_without(tiny_run, monkeypatch, caplog):
    def no_compiler(*_, **__):
        raise RuntimeError("no C compiler\nand more")

    plain = train_from_config(tiny_run("plain", max_steps=2))
    monkeypatch.setattr(torch, "compile", no_compiler)
    run = train_from_config(tiny_run("compiled", max_steps=2, compile=True))
    assert "torch.compile does not work here (no C compiler): running without it" in caplog.text
    assert_same_outcome(plain, run)


def test_each_block_and_the_loss_are_compiled(tiny_run, monkeypatch):
    compiled = []
    monkeypatch.setattr(step_runner, "can_compile", lambda device: True)
    monkeypatch.setattr(torch, "compile", lambda part, **how: compiled.append((part, how)) or part)
    run = train_from_config(tiny_run(max_steps=1, model_layer=3, compile=True))
    assert [part for part, _ in compiled[:-1]] == list(run.model.blocks)
    assert callable(compiled[-1][0])
    assert [how for _, how in compiled] == [
        *[{"backend": "inductor", "dynamic": False}] * 3,
        {"backend": "inductor"},
    ]


@pytest.mark.uncounted
@training_in_float64()
def test_a_compiled_model_gives_the_same_loss(tiny_run, monkeypatch, caplog):
    """Traced as always, and not translated to C++, which takes a minute."""
    compiler = torch.compile
    monkeypatch.setattr(torch, "compile", lambda part, **_: compiler(part, backend="eager"))
    plain = train_from_config(tiny_run("plain", max_steps=4, dropout=0.0))
    compiled = train_from_config(tiny_run("compiled", max_steps=4, dropout=0.0, compile=True))
    assert "torch.compile does not work here" not in caplog.text
    assert newest_checkpoint(compiled.folder).state["compiled"]
    for a, b in zip(entries(plain.folder), entries(compiled.folder), strict=True):
        assert a == pytest.approx(b, rel=0, abs=validation_bound(plain))
    for name, weight in plain.model.state_dict().items():
        assert_same_in_float64(compiled.model.state_dict()[name], weight)
    saved = load_file(compiled.folder / "model.safetensors")
    assert saved.keys() == plain.model.state_dict().keys()
    # What was chosen stays chosen, unless the configuration says otherwise.
    train_from_config(tiny_run("compiled", max_steps=5, dropout=0.0, resume="auto"))
    assert newest_checkpoint(compiled.folder).state["compiled"]
    assert "the rounding changes" not in caplog.text
    options = {"max_steps": 6, "dropout": 0.0, "compile": False, "resume": "auto"}
    train_from_config(tiny_run("compiled", **options))
    assert not newest_checkpoint(compiled.folder).state["compiled"]
    assert "compiled was True in this run: the rounding changes" in caplog.text


@pytest.mark.parametrize(("device", "is_kept"), [("cpu", True), ("cuda", False)])
def test_what_another_kind_of_device_had_chosen_is_chosen_anew(tiny_run, device, is_kept):
    config = tiny_run(max_steps=2)
    checkpoint = newest_checkpoint(train_from_config(config).folder)
    assert checkpoint.state["device"] == "cpu"
    chosen = {"precision": "bfloat16", "compiled": True, "micro_batch_size": 1}
    checkpoint.state.update(chosen, device=device)
    text = prepare(config, checkpoint)
    resumed = make_trainer(config, text)
    fresh = make_trainer(config, text)
    resumed.load_checkpoint(checkpoint)
    names = ("precision", "compiled", "micro_batch_size")
    kept, new = ([getattr(each.runner, name) for name in names] for each in (resumed, fresh))
    assert new[2] > 1
    assert kept == ([torch.bfloat16, True, 1] if is_kept else new)


@pytest.mark.gpu
@pytest.mark.parametrize("precision", ["fp32", "bf16", "fp16"])
def test_a_run_on_cuda_resumes(tiny_run, precision):
    """From the weights that it had; their gradients a GPU adds up in another order each time."""
    options = {**EXACT, "device": "cuda", "precision": precision}
    whole = train_from_config(tiny_run("whole", **options))
    broken = tiny_run("broken", **options)
    crash(broken, 13)
    lines = entries(Path(broken.output_dir) / "broken")
    seen = [line["val_loss"] for line in lines if "val_loss" in line]
    torch.manual_seed(99)
    resumed = train_from_config(tiny_run("broken", resume="auto", **options))
    assert resumed.history["val_steps"] == whole.history["val_steps"]
    # The second one is of the checkpoint's step, and computed anew.
    assert resumed.history["val_loss"][:2] == seen
    assert resumed.history["val_loss"][-1] < seen[0]
    raw = (resumed.folder / "metrics.jsonl").read_text().splitlines()
    steps = [entry for entry in map(json.loads, raw) if "loss" in entry]
    assert all(entry["device_memory"] > 0 for entry in steps)


@pytest.mark.gpu
def test_a_run_begun_on_the_cpu_goes_on_on_cuda(tiny_run):
    crash(tiny_run(**EXACT), 13)
    run = train_from_config(tiny_run(device="cuda", resume="auto", **EXACT))
    assert run.history["steps"] == 21
    assert run.model.device.type == "cuda"


def test_patience_without_a_validation_is_warned_of(tiny_run, caplog):
    train_from_config(tiny_run(val_fraction=0.0, early_stopping_patience=2, ema_decay=0.9))
    assert "early_stopping_patience has no effect" in caplog.text
    assert "ema_decay has no effect without text to validate on" in caplog.text


def test_samples_end_at_the_stop_strings(tiny_run):
    run = train_from_config(tiny_run(sample_tokens=40, stop=[" "], eval_interval=4))
    samples = [entry["sample"] for entry in entries(run.folder) if "sample" in entry]
    assert samples
    assert not any(" " in sample for sample in samples)


def test_a_folder_that_is_lost_after_the_last_validation_is_made_anew(tiny_run):
    config = tiny_run("lost", max_steps=4, eval_interval=4)
    run = lose(config, "stop", 4, delete, 2)
    assert newest_checkpoint(run.folder).state["step"] == 4
    assert load_model(run.folder).tokenizer.fingerprint == run.tokenizer.fingerprint
