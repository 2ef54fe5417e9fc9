"""Logged metrics: tok/s, MFU, memory, evaluation results."""

import math
from types import SimpleNamespace

import pytest
import torch

from src.train.metrics import Evaluation, MetricsLogger
from src.train.state import RunState
from src.train.trackers import read_metrics
from src.training import train_from_config


def test_the_log_holds_every_kind_of_line(tiny_run):
    run = train_from_config(
        tiny_run(max_steps=None, epochs=2, eval_interval=6, log_interval=3, sample_tokens=6)
    )
    found = read_metrics(run.folder / "metrics.jsonl")
    assert found[0]["start"]["parameters"] == run.model.num_parameters()
    steps = [entry for entry in found if "loss" in entry]
    assert [entry["step"] for entry in steps[:3]] == [3, 6, 9]
    assert all(entry["process_memory"] > 1e6 for entry in steps)
    per_step = found[0]["start"]["tokens_per_step"]  # on average: an epoch's last batch is smaller
    assert 7 * 16 < per_step <= 8 * 16
    assert all(entry["tokens"] == round(entry["step"] * per_step) for entry in steps)
    assert all(entry["grad_norm"] > 0 for entry in steps)
    assert [e["epoch_loss"] for e in found if "epoch_loss" in e] == run.history["train_loss"]
    assert [e["val_loss"] for e in found if "val_loss" in e] == run.history["val_loss"]
    assert [e["step"] for e in found if "sample" in e] == run.history["val_steps"]
    assert all(isinstance(e["sample"], str) for e in found if "sample" in e)


@pytest.mark.parametrize(("eval_tokens", "is_limited"), [(64, True), (0, False), (2**20, False)])
def test_the_best_weights_are_evaluated_on_no_more_text_than_was_trained_on(
    tiny_run, caplog, eval_tokens, is_limited
):
    config = tiny_run(eval_tokens=eval_tokens, max_steps=1, val_fraction=0.5)
    run = train_from_config(config)
    limit = "best weights: evaluated on 128 of"  # 8 sequences of 16 tokens
    assert (limit in caplog.text) == is_limited
    if is_limited:
        limited = run.history["final_val_loss"]
        full = train_from_config(config.changed(eval_tokens=0)).history["final_val_loss"]
        assert limited != full


@pytest.fixture
def telemetry(monkeypatch):
    """Of a device that reaches 1,000 FLOP/s, and a run of 10 tokens a step, 5 FLOPs each."""
    monkeypatch.setattr("src.train.metrics.peak_flops", lambda *_: 1000.0)
    return MetricsLogger(torch.device("cpu"), torch.float32, 10, 5.0, total_steps=4)


def test_speed_is_that_of_the_steps_since_the_last_line(telemetry, tiny_run, tmp_path):
    telemetry.open(tiny_run(), tmp_path, 0, 0, {"parameters": 7})
    state = RunState(step=2, seconds=4.0)
    telemetry.count_step(1.0)
    telemetry.count_step(3.0)
    telemetry.log_step(state, 0.5, 2.0, 0.1, 1.0)
    telemetry.count_step(0.5)
    telemetry.log_step(state, 0.5, 2.0, 0.1, 1.0)
    telemetry.close()
    start, slow, fast = read_metrics(tmp_path / "metrics.jsonl")
    assert list(start["start"]) == ["time", "parameters", "device", "python", "torch"]
    assert (slow["tokens_per_second"], slow["mfu"]) == (5.0, 0.025)
    assert (fast["tokens_per_second"], fast["mfu"]) == (20.0, 0.1)
    assert slow["tokens"] == 20


def test_processes_share_the_peak_of_all_their_devices(telemetry, monkeypatch, tiny_run, tmp_path):
    several = MetricsLogger(
        torch.device("cpu"), torch.float32, 10, 5.0, total_steps=4, world_size=4
    )
    several.open(tiny_run(), tmp_path, 0, 0, {})
    several.count_step(0.5)
    several.log_step(RunState(step=1, seconds=1.0), 0.5, 2.0, 0.1, 1.0)
    several.close()
    assert read_metrics(tmp_path / "metrics.jsonl")[-1]["mfu"] == 0.1 / 4


def test_the_display_says_what_is_left_at_the_pace_so_far(telemetry):
    shown = []
    telemetry.display = SimpleNamespace(update=lambda *given, **named: shown.append((given, named)))
    telemetry.count_step(2.0)
    state = RunState(step=1, seconds=30.0)
    state.count_validation(1.5)
    telemetry.show(state, 0.25, 2.0)
    given, named = shown[0]
    assert given == (1, 0.25, 2.0)
    assert named["seconds_left"] == 90.0
    assert (named["speed"], named["val_loss"], named["mfu"]) == (5.0, 1.5, 0.025)


def test_a_terminal_that_was_closed_changes_nothing(telemetry):
    class Closed:
        def __enter__(self):
            return self

        def __exit__(self, *_):
            raise OSError(5, "Input/output error")

    telemetry.display = Closed()
    with pytest.raises(KeyboardInterrupt), telemetry.shown():
        raise KeyboardInterrupt
    with telemetry.shown():
        pass


def test_without_a_log_everything_is_said_and_nothing_written(telemetry, tmp_path, caplog):
    caplog.set_level("INFO", "agi2")
    telemetry.log_validation(3, Evaluation(loss=math.log(4), tokens=10, text_bytes=8))
    telemetry.log_sample(3, "a\n b")
    telemetry.sync()
    telemetry.close()
    assert telemetry.log_size == 0
    assert "step 3  val loss 1.3863 (2.500 bits per byte)" in caplog.messages[0]
    assert caplog.messages[1] == "sample: a b"
    assert not list(tmp_path.iterdir())
