"""Loading the logs of runs from their folders."""

import contextlib
import io
import json
import math
import os
import re
import shutil

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from src.cli.compare import compare_runs, print_runs
from src.config_loader import load_config
from src.errors import AGI2Error
from src.evaluation import run_log as runs
from src.evaluation.report import write_report
from src.evaluation.run_log import History, list_runs, read_run
from src.train.checkpoint import check_state, find_checkpoint, open_checkpoint
from src.train.setup import prepare
from src.train.trackers import read_metrics
from src.training import train_from_config
from src.utils import sha256_of
from tests.bounds import nearly


@pytest.fixture
def run(tiny_run):
    return train_from_config(tiny_run(eval_interval=4, checkpoint_interval=5, sample_tokens=3))


def test_a_run_is_read_as_it_was(run):
    record = read_run(run.folder)
    history = record.history
    assert record.name == "run"
    assert record.config.model_layer == 1
    assert history.steps == 12
    assert history.start["parameters"] == run.model.num_parameters()
    assert [step for step, _ in history.samples] == [4, 8, 12]
    assert [each.loss for each in history.validations] == run.history["val_loss"]
    assert history.best.loss == run.history["best_val_loss"]
    assert history.last("seconds") == run.history["seconds"]
    assert history.last("nothing") is None
    # Training and validation loss are in one unit: each with its own text's bytes for a token.
    lengths, text = run.tokenizer.byte_lengths(), prepare(record.config)
    learned, held_out = text.train_data.tokens, text.val_data.tokens[1:]  # the first is given
    ratio = history.best.bits_per_byte / history.best.loss
    for found, tokens in ((history.bits_per_nat, learned), (ratio, held_out)):
        assert found == nearly(len(tokens) / lengths[tokens].sum() / math.log(2), 8)


def test_an_empty_history_knows_nothing():
    history = History([])
    assert (history.start, history.steps, history.best) == ({}, 0, None)
    assert (history.samples, history.speed, history.bits_per_nat) == ([], [], None)


def test_losses_that_are_not_finite_are_never_the_best():
    entries = [{"step": step, "val_loss": loss} for step, loss in enumerate([math.nan, 3.0, 2.0])]
    assert History(entries[:1]).best is None
    best = History(entries).best
    assert (best.step, best.loss) == (2, 2.0)
    assert math.isnan(best.bits_per_byte)


def test_null_is_a_number_that_was_not_finite():
    entries = [{"step": 1, "val_loss": 2.0}, {"step": 2, "val_loss": None}, {"step": 3}]
    history = History([*entries, {"step": 4, "val_loss": "lost"}])
    first, second = history.curve("val_loss")
    assert first == (1, 2.0)
    assert second[0] == 2
    assert math.isnan(second[1])
    assert history.best.step == 1


def test_speed_is_that_since_the_line_before():
    def line(step, tokens, seconds, mean):
        keys = ("step", "tokens", "seconds", "tokens_per_second")
        return dict(zip(keys, (step, tokens, seconds, mean), strict=True))

    history = History(
        [
            {"step": 0, "start": {}},
            line(1, 100, 1.0, 100.0),
            {"step": 1, "val_loss": 3.0},
            line(2, 200, 1.5, 133.3),
            {"step": 2, "start": {}},
            line(3, 300, 9.0, 50.0),
            line(4, 400, 9.0, 70.0),
        ]
    )
    assert history.speed == [(1, 100.0), (2, 200.0), (3, 50.0), (4, 70.0)]
    assert [step for step, _ in history.starts] == [0, 2]


def test_what_is_no_run_is_said_to_be_none(tmp_path, run):
    with pytest.raises(AGI2Error, match=r"is not a run's folder.*agi2 list"):
        read_run(tmp_path / "nothing")
    (run.folder / "config.toml").unlink()
    with pytest.raises(AGI2Error, match=r"config\.toml: no such file"):
        read_run(run.folder)


def test_runs_are_listed_the_newest_last(tiny_run, tmp_path):
    folder = tmp_path / "trained"
    for name in ("b", "a"):
        train_from_config(tiny_run(name, eval_interval=4, checkpoint_interval=5))
    (folder / "other").mkdir()
    (folder / "file.txt").write_text("no run")
    first, second = list_runs(folder)
    assert (first.name, second.name) == ("b", "a")
    assert first.checkpoints == [10, 12]
    assert (first.is_finished, first.problem) == (True, "")
    assert first.history.best.loss == min(each.loss for each in first.history.validations)


def test_a_file_with_two_names_counts_once(run):
    (summary,) = list_runs(run.folder.parent)
    files = [path for path in run.folder.rglob("*") if path.is_file()]
    sizes = {path.stat().st_ino: path.stat().st_size for path in files}
    assert summary.size == sum(sizes.values())
    assert len(sizes) < len(files)


def test_a_file_that_vanishes_meanwhile_does_not_stop_the_list(run, monkeypatch):
    whole = runs._folder_size(run.folder)
    walk = os.walk

    def vanishing(folder):
        yield str(run.folder / "gone"), [], ["file"]
        yield from walk(folder)

    monkeypatch.setattr(os, "walk", vanishing)
    assert runs._folder_size(run.folder) == whole > 0


def cut_back(run, steps):
    """The run's log, as it was after so many steps."""
    path = run.folder / "metrics.jsonl"
    kept = [entry for entry in read_metrics(path) if entry["step"] <= steps]
    path.write_text("".join(json.dumps(entry) + "\n" for entry in kept))


def test_a_run_that_was_stopped_is_unfinished(run):
    cut_back(run, 7)
    assert not list_runs(run.folder.parent)[0].is_finished


def test_time_and_patience_finish_a_run(tiny_run):
    options = {"max_steps": None, "checkpoint_interval": 3}
    timed = train_from_config(tiny_run(max_minutes=0.002, **options))
    assert timed.history["stopped"] == "time"
    patient = tiny_run("patient", early_stopping_patience=1, eval_interval=1, learning_rate=9.0)
    assert train_from_config(patient).history["stopped"] == "early"
    assert all(run.is_finished for run in list_runs(timed.folder.parent))
    # Without a checkpoint nobody knows.
    for state in timed.folder.glob("checkpoints/*/state.json"):
        state.write_text("[")
    finished = {run.name: run.is_finished for run in list_runs(timed.folder.parent)}
    assert finished == {"run": False, "patient": True}


@pytest.mark.parametrize("name", ["config.toml", "metrics.jsonl"])
def test_a_broken_run_is_listed_as_far_as_it_is_known(run, name):
    (run.folder / name).write_bytes(b"\xff no such\n\nthing = =\n")
    (summary,) = list_runs(run.folder.parent)
    assert name in summary.problem
    assert not summary.is_finished
    assert summary.checkpoints == [10, 12]
    assert summary.history.steps == (12 if name == "config.toml" else 0)


def test_a_folder_that_is_not_there_is_named(tmp_path):
    with pytest.raises(AGI2Error, match="nothing cannot be read"):
        list_runs(tmp_path / "nothing")


# Any damage to a run's folder


@pytest.fixture(scope="module")
def whole_run(tmp_path_factory):
    """The folder of a run of a few steps; copied, never changed."""
    from src.config_loader import make_config
    from tests.conftest import make_text

    folder = tmp_path_factory.mktemp("whole")
    (folder / "a.txt").write_text(make_text(60))
    keys = {"model_layer": 1, "model_head": 1, "model_embd": 8, "model_positions": 8}
    steps = {"max_steps": 4, "eval_interval": 2, "checkpoint_interval": 2, "log_interval": 1}
    given = {"sources": [str(folder / "a.txt")], "output_dir": str(folder), "model_name": "whole"}
    text = {"tokenizer": "basic", "sample_tokens": 2, "batch_size": 2, "device": "cpu"}
    text["max_length"] = 2
    return train_from_config(make_config({**keys, **steps, **given, **text})).folder


STEP = "checkpoints/step-00000004"
FILES = ["metrics.jsonl", "config.toml", "tokenizer.json", "model.safetensors"]
FILES += [f"{STEP}/{name}" for name in ("state.json", "manifest.json", "model.safetensors")]
VALUES = [
    *("1e999", "NaN", "null", "-1", "true", "[]", "{}", '"x"', "9" * 400, "9" * 5000),
    *("[" * 300 + "]" * 300, "[" * 99999 + "]" * 99999, '"' + "x" * 9999 + '"', "1.5", "0"),
]


def replace_a_value(content, place, value):
    """One of the values in JSON or TOML becomes another."""
    values = list(re.finditer(r'(?<=[:=\[,] )("[^"\n]*"|-?[\d.]+|true|false|null)', content))
    if not values:
        return content
    found = values[place % len(values)]
    return content[: found.start()] + value + content[found.end() :]


def damage(path, kind, place, value):
    data = path.read_bytes()
    if kind == "folder":
        path.unlink()
        path.mkdir()
    elif kind == "pipe":
        path.unlink()
        os.mkfifo(path)
    elif kind == "gone":
        path.unlink()
    elif kind == "cut":
        path.write_bytes(data[: place % len(data)])
    elif kind == "byte":
        path.write_bytes(data[: place % len(data)] + b"\xff" + data[place % len(data) + 1 :])
    else:
        path.write_text(replace_a_value(data.decode("latin-1"), place, value), "latin-1")


KINDS = ["folder", "pipe", "gone", "cut", "byte", *["value"] * 6]


def test_a_run_without_its_log_is_listed_with_what_its_checkpoint_knows(
    whole_run, tmp_path, capsys, caplog
):
    shutil.copytree(whole_run, tmp_path / "one")
    known = list_runs(tmp_path)[0]
    (tmp_path / "one" / "metrics.jsonl").unlink()
    (row,) = list_runs(tmp_path)
    assert (row.history.steps, row.is_finished, row.problem) == (4, True, "")
    assert row.history.best.loss == nearly(known.history.best.loss, 8)
    assert row.changed > 0
    print_runs(tmp_path)
    assert "finished" in capsys.readouterr().out
    assert "one has no metrics.jsonl: steps and losses are those of its newest" in caplog.text


def test_a_model_that_was_never_trained_here_is_listed_without_figures(
    whole_run, tmp_path, capsys, caplog
):
    for name in ("config.toml", "model.safetensors", "tokenizer.json"):
        (tmp_path / "one").mkdir(exist_ok=True)
        shutil.copy(whole_run / name, tmp_path / "one")
    (tmp_path / "site").mkdir()
    (tmp_path / "site" / "config.toml").write_text("baseURL = 'of another program'")
    print_runs(tmp_path)
    _, line = capsys.readouterr().out.splitlines()
    assert line.split()[:3] == ["one", "–", "0"]
    assert line.endswith("no log")
    assert caplog.text == ""


@pytest.mark.parametrize(
    "state",
    [
        *({}, {"step": "x"}, {"step": -1}, {"step": 10**400}, {"step": True}),
        *({"step": 1, "total_steps": [], "seconds": "x", "history": 3},),
        {"step": 1, "history": {"val_steps": [1, "a", None], "val_loss": [10**300, 2.0, {}]}},
    ],
)
def test_a_state_of_other_types_gives_a_history_without_them(state):
    history = History.from_state(state)
    assert history.steps in (0, 1)
    assert history.best is None


@settings(max_examples=10, deadline=None, derandomize=True)
@given(
    name=st.sampled_from(FILES),
    kind=st.sampled_from(KINDS),
    place=st.integers(0, 4000),
    value=st.sampled_from(VALUES),
)
def test_a_damaged_run_is_a_row_or_one_line_and_hides_no_other(
    whole_run, tmp_path_factory, name, kind, place, value
):
    folder = tmp_path_factory.mktemp("runs")
    for copy in ("one", "two"):
        shutil.copytree(whole_run, folder / copy)
    damage(folder / "one" / name, kind, place, value)
    rows = {run.name: run for run in list_runs(folder)}
    assert rows["two"].problem == ""
    assert rows["two"].is_finished
    assert set(rows) == {"one", "two"}
    with contextlib.redirect_stdout(io.StringIO()), contextlib.suppress(AGI2Error):
        print_runs(folder)
    config = load_config(whole_run / "config.toml")
    for use in (
        lambda: compare_runs([folder / "one", folder / "two"], html=folder / "c.html"),
        lambda: write_report(folder / "one"),
        lambda: find_checkpoint(config.changed(resume=str(folder / "one"))),
        lambda: find_checkpoint(config.changed(resume=str(folder / "one" / STEP))),
    ):
        with contextlib.redirect_stdout(io.StringIO()), contextlib.suppress(AGI2Error):
            use()


STATE_CHANGES = [
    *(("step", "x"), ("step", -1), ("threads", 0), ("seconds", None), ("best_loss", "x")),
    *(("history", {}), ("history", {"train_loss": [{}], "val_loss": [], "val_steps": []})),
    *(("epoch_loss", [1.0]), ("precision", "bool"), ("total_steps", 10**30), ("fixed", [])),
    ("compiled", 1),
]


@pytest.mark.parametrize(("key", "value"), STATE_CHANGES)
def test_a_state_of_other_types_is_not_resumed(whole_run, tmp_path, key, value):
    """Also where the manifest is right, as a stranger may have written both."""
    shutil.copytree(whole_run, tmp_path / "one")
    place = tmp_path / "one" / STEP
    state = {**json.loads((place / "state.json").read_text()), key: value}
    (place / "state.json").write_text(json.dumps(state))
    manifest = json.loads((place / "manifest.json").read_text())
    manifest["state.json"] = sha256_of(place / "state.json")
    (place / "manifest.json").write_text(json.dumps(manifest))
    with pytest.raises(AGI2Error, match=r"state\.json: "):
        check_state(open_checkpoint(place))
    check_state(open_checkpoint(whole_run / STEP))


@pytest.mark.parametrize("name", ["../../config.toml", "/dev/zero", "nothing", "a\0b"])
def test_a_manifest_names_files_of_its_checkpoint_alone(whole_run, tmp_path, name):
    shutil.copytree(whole_run, tmp_path / "one")
    place = tmp_path / "one" / STEP
    manifest = json.loads((place / "manifest.json").read_text())
    (place / "manifest.json").write_text(json.dumps({**manifest, name: "0" * 64}))
    config = load_config(whole_run / "config.toml").changed(resume=str(place))
    with pytest.raises(AGI2Error, match=r"is damaged|is not a complete checkpoint"):
        find_checkpoint(config)


def test_a_run_from_the_far_future_is_listed(whole_run, tmp_path, capsys):
    shutil.copytree(whole_run, tmp_path / "one")
    os.utime(tmp_path / "one" / "metrics.jsonl", (10**12, 10**12))
    print_runs(tmp_path)
    assert "one" in capsys.readouterr().out


@pytest.mark.parametrize("name", ["metrics.jsonl", "config.toml"])
def test_a_pipe_in_a_file_s_place_is_not_waited_for(whole_run, tmp_path, name):
    shutil.copytree(whole_run, tmp_path / "one")
    damage(tmp_path / "one" / name, "pipe", 0, "")
    (row,) = list_runs(tmp_path)
    assert row.problem.endswith("cannot be read: it is a pipe, not a file")


def test_a_log_that_is_gone_by_now_has_no_time(tmp_path):
    assert runs._modification_time(tmp_path / "gone") == 0.0
