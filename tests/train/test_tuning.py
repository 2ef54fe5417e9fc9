"""The plan of fine-tuning: what limits the run, and the keys that follow."""

import pytest

from src.train import tuning
from src.train.tuning import plan_tuning
from tests.data.chats import messages_lines, preference_lines, random_conversations


@pytest.fixture
def keys(shared_run, tmp_path, monkeypatch):
    monkeypatch.setattr(tuning, "_BENCHMARK_SECONDS", 0)
    monkeypatch.setattr(tuning, "_MIN_STEPS", 1)
    path = tmp_path / "chats.jsonl"
    chats = random_conversations(40, seed=3, words=2)
    path.write_bytes(messages_lines(chats))
    (tmp_path / "pairs.jsonl").write_text(preference_lines(chats))
    model = shared_run(max_steps=2, seq_len=48, model_positions=96).folder
    return {"init_from": str(model), "conversations": [str(path)], "model_name": "tuned"}


def test_a_run_ends_by_epochs_where_there_is_time(keys):
    plan = plan_tuning(keys, 1e6, {})
    assert plan.keys["max_steps"] == plan.steps
    assert plan.epochs == tuning.MAX_EPOCHS
    assert "max_minutes" not in plan.keys
    assert plan.minutes < 1e6
    interval = max(tuning._MIN_EVAL_INTERVAL, plan.steps // tuning._VALIDATIONS)
    assert plan.keys["eval_interval"] == interval
    assert plan.keys["early_stopping_patience"] == tuning._PATIENCE < tuning._VALIDATIONS


def test_time_limits_a_run_also_with_epochs_of_the_user(keys):
    for given in ({}, {"epochs": 10**9}):
        plan = plan_tuning(keys, 1e-4, given)
        assert plan.keys["max_minutes"] == 0.01
        assert "max_steps" not in plan.keys
        assert plan.steps == 1
        # Else early stopping could end the run while its learning rate still rises.
        assert plan.keys["eval_interval"] == tuning._MIN_EVAL_INTERVAL
    plan = plan_tuning(keys, 1e6, {"max_steps": 3})
    assert (plan.steps, plan.keys["max_steps"]) == (3, 3)


def test_pairs_have_rates_and_epochs_of_their_own(keys, tmp_path):
    of_chats = plan_tuning(keys, 1e6, {}).keys
    del keys["conversations"]
    plan = plan_tuning({**keys, "preferences": [str(tmp_path / "pairs.jsonl")]}, 1e6, {})
    assert plan.keys["learning_rate"] == tuning._DPO_RATE < of_chats["learning_rate"]
    assert plan.epochs == tuning._MAX_DPO_EPOCHS < tuning.MAX_EPOCHS
    assert plan.keys.keys().isdisjoint({"conversations", "text_share", "dropout"})
