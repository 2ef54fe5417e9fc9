"""Runs on pairs of preferences: exact resume, the reference, LoRA, FSDP, the report, bad input."""

import json
import logging
import math
import re

import pytest
import torch

from src.cli.data_prepare import prepare_data
from src.config_checks import DPO_DEFAULTS
from src.config_loader import make_config
from src.data.preference_windows import PreferenceWindows
from src.errors import AGI2Error
from src.formats.model_dir import load_model
from src.train import preference_reference
from src.train.preference_loss import PreferenceLoss
from src.train.setup import prepare
from src.train.timing import measure_step
from src.train.trackers import read_metrics
from src.training import make_trainer, train_from_config, train_model
from tests.data.chats import messages_lines, preference_lines, random_conversations
from tests.train.test_distributed import under_torchrun  # noqa: F401
from tests.train.test_trainer import EXACT, assert_same_outcome, crash

CHATS = random_conversations(24, seed=3, words=3)
SIZES = {"vocab_size": 280, "model_positions": 64, "model_embd": 16}
KEYS = {"batch_size": 4, "sample_tokens": 0, "learning_rate": 1e-3, "warmup_steps": 0}


@pytest.fixture(scope="module")
def start(tmp_path_factory):
    """A model that was trained on conversations for a moment, and a file of pairs."""
    folder = tmp_path_factory.mktemp("start")
    (folder / "chats.jsonl").write_bytes(messages_lines(CHATS))
    (folder / "pairs.jsonl").write_text(preference_lines(CHATS))
    keys = {"model_layer": 1, "model_head": 2, "conversations": str(folder / "chats.jsonl")}
    keys |= {"output_dir": str(folder), "model_name": "start", "max_steps": 2, "sample_tokens": 0}
    return train_from_config(make_config({**SIZES, **keys}, "training")).folder


@pytest.fixture
def pair_run(start, tmp_path):
    def configuration(name="run", **changes):
        keys = {"init_from": str(start), "preferences": [str(start.parent / "pairs.jsonl")]}
        keys |= {"output_dir": str(tmp_path / "trained"), "model_name": name, **KEYS, **changes}
        return make_config(keys, "training")

    return configuration


def test_a_run_prefers_the_chosen_replies_and_reports_by_how_much(pair_run, caplog):
    with caplog.at_level(logging.INFO, "agi2"):
        run = train_from_config(pair_run(max_steps=12, eval_interval=4, log_interval=2))
    losses = run.history["val_loss"]
    assert losses[-1] < losses[0] < math.log(2)
    assert run.history["bits_per_byte"] is None
    log = read_metrics(run.folder / "metrics.jsonl")
    for prefix, entries in (("", [e for e in log if "grad_norm" in e]),
                            ("val_", [e for e in log if "val_loss" in e])):  # fmt: skip
        assert len(entries) == (6 if not prefix else 3)
        for entry in entries:
            names = ("accuracy", "margin", "chosen_reward", "rejected_reward", "kl")
            found = {name: entry[prefix + name] for name in names}
            reward = found["chosen_reward"] - found["rejected_reward"]
            assert found["margin"] == pytest.approx(reward)
            assert 0 <= found["accuracy"] <= 1
            assert found["kl"] >= 0
        assert entries[-1][f"{prefix}margin"] > 0
    assert re.search(r"best weights: val loss [\d.]+, accuracy [\d.]+ %, margin", caplog.text)
    assert re.search(r"\d+ pairs an epoch, [\d.]+ % padding", caplog.text)
    report = (run.folder / "report.html").read_text()
    for shown in (
        "best val loss (DPO, per pair)",
        "margin of rewards",
        "KL divergence",
        "Accuracy",
    ):
        assert shown in report
    assert "bits per byte at" not in report


@pytest.mark.parametrize("keys", [{}, {"lora_rank": 2}, {"micro_batch_size": 1}])
def test_a_crash_and_a_resume_change_nothing(pair_run, monkeypatch, keys):
    options = {**EXACT, "max_steps": 13, **keys}
    whole = train_from_config(pair_run("whole", **options))
    crash(pair_run("broken", **options), 6)
    monkeypatch.delattr(preference_reference, "log_probabilities_of")  # computed once
    crash(pair_run("broken", resume="auto", **options), 9)
    assert_same_outcome(whole, train_from_config(pair_run("broken", resume="auto", **options)))


@pytest.mark.parametrize("keys", [{}, {"lora_rank": 2}])
def test_the_reference_is_the_starting_model_s(pair_run, start, keys):
    config = pair_run(eval_tokens=0, **keys)
    trainer = make_trainer(config, prepare(config))
    trainer.references.compute(trainer.checkpoints, trainer.runner)
    model = load_model(start).model
    for windows in (trainer.batches.dataset, trainer.val_windows):
        inputs, targets, reference = windows.batch(torch.arange(len(windows)), 0)
        with torch.no_grad():
            expected = PreferenceLoss(model, 1.0).log_probabilities(inputs, targets)
        torch.testing.assert_close(reference, expected)
        assert (reference < 0).any()
    assert trainer.evaluate().loss == pytest.approx(math.log(2), rel=1e-5)
    few = trainer.evaluate(trainer.val_windows.seq_len - 1)
    assert (few.pairs, trainer.evaluate().pairs) == (1, len(trainer.val_windows))
    assert few.tokens > 0
    seconds, _ = measure_step(trainer, 0.0)
    assert seconds > 0


def test_shards_keep_the_reference(pair_run, under_torchrun):  # noqa: F811
    options = {"max_steps": 6, "checkpoint_interval": 2, "precision": "fp32"}
    alone = train_from_config(pair_run("alone", **options))
    crash(pair_run("sharded", parallel="fsdp", **options), 4)
    keys = {"parallel": "fsdp", "resume": "auto", **options}
    sharded = train_from_config(pair_run("sharded", **keys))
    assert sharded.history["val_loss"] == pytest.approx(alone.history["val_loss"], rel=1e-5)


def test_dropout_and_the_learning_rate_have_defaults_of_their_own(pair_run, start):
    config = pair_run(learning_rate=None)
    assert {key: config[key] for key in DPO_DEFAULTS} == DPO_DEFAULTS
    assert config.chosen().keys().isdisjoint(DPO_DEFAULTS)
    assert pair_run(dropout=0.2).dropout == 0.2


def test_pairs_of_their_own_to_validate_on(pair_run, tmp_path, caplog):
    own = tmp_path / "val.jsonl"
    own.write_text(preference_lines(CHATS[:2] + random_conversations(3, seed=9, words=3)))
    text = prepare(pair_run(val_preferences=[str(own)]))
    assert text.corpus.val.figures.conversations == 5
    assert text.corpus.train.figures.conversations == 23
    assert "removed from the training text, as val_preferences has the same: 1 doc" in caplog.text


def test_a_model_of_ones_own_is_the_starting_model(start, tmp_path):
    loaded = load_model(start)
    keys = {"preferences": str(start.parent / "pairs.jsonl"), "output_dir": str(tmp_path)}
    history = train_model(loaded.model, loaded.tokenizer, [], max_steps=2, **KEYS, **keys)
    assert history["steps"] == 2


def test_pairs_are_prepared_as_text_is(pair_run, tmp_path):
    cache = str(tmp_path / "cache")
    lines = [*prepare_data(pair_run(token_cache=cache))]
    assert any(re.search(r"training: \d+ documents \(\d+ pairs\)", line) for line in lines)


@pytest.mark.parametrize(
    ("changes", "problem"),
    [
        ({"init_from": None}, "preferences are for a model that answers already: set init_from"),
        ({"sources": ["a.txt"]}, "sources does not go with preferences, which are trained on al"),
        ({"conversations": ["a"]}, "conversations does not go with preferences"),
        ({"mask_documents": True}, "mask_documents has no effect on preferences"),
        ({"windows": "documents"}, "windows has no effect on preferences"),
        ({"text_share": 0.2}, "text_share has no effect on preferences"),
        ({"text_field": "body"}, "text_field has no effect on preferences"),
        ({"speakers": "Ada, Bob"}, "speakers has no effect on preferences"),
        ({"preferences": [], "sources": ["a"], "val_preferences": ["b"]}, "val_preferences goes w"),
        ({"dpo_beta": 0}, "dpo_beta must be above 0"),
    ],
)
def test_keys_that_contradict_each_other_are_refused(pair_run, changes, problem):
    with pytest.raises(AGI2Error, match=problem):
        pair_run(**changes)


def test_runs_without_a_starting_model_or_pairs_that_fit_are_refused(pair_run, tmp_path):
    config = pair_run()
    with pytest.raises(AGI2Error, match="set init_from to its folder"):
        train_from_config(config.changed(init_from=None, model_name="none"))
    long = tmp_path / "long.jsonl"
    long.write_text(json.dumps({"prompt": "Hi", "chosen": "a" * 400, "rejected": "b" * 400}))
    with pytest.raises(AGI2Error, match="preferences: of 1 pair none is left to train on: 1 long"):
        train_from_config(pair_run(preferences=[str(long)]))
    with pytest.raises(AGI2Error, match="preferences: of 1 pair none is left to validate on"):
        train_from_config(pair_run(val_preferences=[str(long)]))
    mixed = tmp_path / "mixed.jsonl"
    mixed.write_text(preference_lines(CHATS) + long.read_text())
    text = prepare(pair_run(preferences=[str(mixed)], val_fraction=0.0))
    windows = make_trainer(pair_run(val_fraction=0.0), text).batches.dataset
    assert isinstance(windows, PreferenceWindows)
    assert windows.long >= 1
