"""`agi2 verify-resume`: exact runs pass, and any difference is found."""

import signal

import pytest
import torch

from src.cli import verify_resume
from src.cli.verify_resume import verify
from src.config_loader import save_config
from src.errors import AGI2Error
from src.formats.model_dir import run_folder
from src.train.checkpoint import list_checkpoints
from src.training import train_from_config
from tests.processes import needs_fork, run_python


@pytest.fixture
def in_this_process(monkeypatch):
    """The runs are made here, the second one ends where it should be killed; and keys that the
    resumed run has otherwise."""
    changes = {}

    def train(config, killed_after=0):
        length = {"max_steps": killed_after} if killed_after else {}
        train_from_config(config.changed(**length, **(changes if config.resume else {})))

    monkeypatch.setattr(verify_resume, "_train", train)
    return changes


@pytest.fixture
def forked(monkeypatch):
    """The runs are made in processes that need not import PyTorch."""

    def run(command, **_):
        return run_python(*command[1:])

    monkeypatch.setattr(verify_resume.subprocess, "run", run)


@needs_fork
@pytest.mark.usefixtures("forked")
def test_three_processes_prove_that_resuming_is_exact(tiny_run, tmp_path):
    options = {"optimizer": "muon", "sample_tokens": 4, "max_steps": None, "max_minutes": 1}
    config = tiny_run(dropout=0.1, early_stopping_patience=1, **options)
    (tmp_path / "trained").mkdir()
    lines = list(verify(config, 3))
    assert lines[0].startswith("max_minutes is ignored for 3 steps")
    assert lines[1:] == [
        "early_stopping_patience is ignored, so that all runs reach the last step",
        "trained 3 steps without interruption",
        "trained again, and was killed after more than 1 steps",
        "resumed from step 1, to step 3",
        "weights: the same",
        "optimizer state: the same",
        "best weights: the same",
        "losses logged: the same",
        "samples: the same",
        "exact",
    ]
    assert list((tmp_path / "trained").iterdir()) == []


def test_a_run_that_resumes_otherwise_is_found(tiny_run, in_this_process, tmp_path):
    config = tiny_run(lr_schedule="constant", warmup_steps=0, early_stopping_patience=1)
    assert list(verify(config, 6))[-1] == "exact"
    in_this_process["clip_grad_norm"] = 1e-9
    with pytest.raises(AGI2Error, match="differs from the uninterrupted one"):
        list(verify(config, 6))
    assert not (tmp_path / "trained").exists()


def run_of(config):
    return train_from_config(config).folder


def test_every_kind_of_difference_is_named(tiny_run):
    runs = [
        run_of(tiny_run(name, learning_rate=rate, max_steps=6, eval_interval=3, sample_tokens=4))
        for name, rate in (("a", 0.01), ("b", 0.02))
    ]
    found = dict(verify_resume._compare_runs(*runs, 6))
    assert set(found) == {
        *("weights", "optimizer state", "best weights", "losses logged", "samples")
    }
    assert "differs by up to" in found["weights"]
    assert (
        "learning_rate at step 1 is" in found["losses logged"] or "grad" in found["losses logged"]
    )
    assert dict(verify_resume._compare_runs(runs[0], runs[0], 6)) == dict.fromkeys(found)


def test_differences_are_counted_bit_by_bit():
    zero = {"a": torch.zeros(2), "b": torch.tensor(1.0)}
    assert verify_resume._first_difference(zero, {**zero, "a": torch.zeros(2)}) is None
    assert verify_resume._first_difference(zero, {**zero, "a": -torch.zeros(2)}) is not None
    assert verify_resume._first_difference(zero, {}) == "a is in only one of them"
    assert (
        verify_resume._first_difference({"x": 1.0}, {"x": 2.0})
        == "x is 1.0 in one, 2.0 in the other"
    )


def test_the_doomed_run_dies_with_its_first_checkpoint_behind_it(tiny_run, tmp_path, monkeypatch):
    class Died(Exception):
        pass

    def kill(process, number):
        assert number == signal.SIGKILL
        raise Died

    config = tiny_run(max_steps=6, checkpoint_interval=2)
    file = tmp_path / "run.toml"
    save_config(config, file)
    monkeypatch.setattr(verify_resume.os, "kill", kill)
    with pytest.raises(Died):
        verify_resume._train_here(str(file), 2)
    folder = run_folder(config)
    assert [place.name for place in list_checkpoints(folder)] == ["step-00000002"]
    assert '"step": 4' in (folder / "metrics.jsonl").read_text("utf-8")
    save_config(config.changed(resume="auto"), file)
    verify_resume._train_here(str(file), 0)
    assert list_checkpoints(folder)[-1].name == "step-00000006"


@pytest.mark.parametrize("key", ["sources", "val_sources"])
def test_a_missing_source_is_found_before_anything_is_trained(tiny_run, tmp_path, key):
    with pytest.raises(AGI2Error, match=r"gone\.txt: no such file"):
        list(verify(tiny_run(**{key: [str(tmp_path / "gone.txt")]})))
    assert not (tmp_path / "trained").exists()


@needs_fork
@pytest.mark.usefixtures("forked")
def test_what_a_process_could_not_do_is_said(tiny_run, tmp_path):
    config = tiny_run(sources=[str(tmp_path / "gone.txt")], output_dir=str(tmp_path))
    with pytest.raises(AGI2Error, match=r"the run failed: .*gone\.txt"):
        verify_resume._train(config)
