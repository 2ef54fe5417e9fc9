"""`/api/runs`: the runs beside the models, by ids of a table."""

import json
import math
import os
import shutil

import pytest

from src.evaluation.run_log import read_run
from src.serve import runs
from src.train.folder_lock import FolderLock
from tests.serve.clients import Client, refusal, sources

HOSTILE = "<img src=x onerror=alert(1)>"


@pytest.fixture
def folder(copied_run):
    options = {"eval_interval": 4, "sample_tokens": 8}
    one = copied_run("one", **options)
    copied_run("two", dropout=0.0, **options)
    return one.folder.parent


@pytest.fixture
def server(folder):
    client = Client(sources(folder, "one"))
    yield client
    client.close()


def listed(server):
    return {each["name"]: each for each in server.get("/api/runs").json()["runs"]}


def test_every_run_beside_a_model_is_listed(server, folder):
    (folder / "notes").mkdir()
    found = listed(server)
    assert found.keys() == {"one", "two"}
    history = read_run(folder / "one").history
    assert found["one"]["steps"] == 12
    assert found["one"]["state"] == "finished"
    assert found["one"]["val_loss"] == history.best.loss
    assert found["one"]["parameters"] == history.start["parameters"]


def test_curves_and_samples_are_those_of_the_log(server, folder):
    run = listed(server)["one"]["id"]
    found = server.get(f"/api/runs/{run}").json()
    history = read_run(folder / "one").history
    factor = history.bits_per_nat
    assert found["unit"] == "bits per byte"
    assert found["train_loss"] == [[s, y * factor] for s, y in history.curve("loss")]
    assert found["val_loss"] == [list(p) for p in history.curve("val_bits_per_byte")]
    assert found["learning_rate"] == [list(p) for p in history.curve("learning_rate")]
    assert [(each["step"], each["text"]) for each in found["samples"]] == history.samples


def test_a_run_in_progress_is_read_again_as_it_grows(server, folder):
    run = listed(server)["two"]["id"]
    before = server.get(f"/api/runs/{run}").json()
    with FolderLock(folder / "two") as lock:
        lock.set_phase("training")
        with open(folder / "two" / "metrics.jsonl", "a", encoding="utf-8") as log:
            log.write(json.dumps({"step": 13, "loss": math.log(2)}) + "\n")
            log.write(json.dumps({"step": 13, "sample": HOSTILE}) + "\n")
        assert listed(server)["two"]["state"] == "training"
        after = server.get(f"/api/runs/{run}").json()
    assert len(after["train_loss"]) == len(before["train_loss"]) + 1
    assert after["samples"][-1] == {"step": 13, "text": HOSTILE}
    assert listed(server)["two"]["state"] != "training"


def test_what_has_not_changed_is_not_read_again(server, monkeypatch):
    first = listed(server)
    monkeypatch.setattr(runs, "summarize", None)
    assert listed(server) == first


def test_values_that_are_not_finite_are_null(server, folder):
    with open(folder / "two" / "metrics.jsonl", "a", encoding="utf-8") as log:
        log.write(json.dumps({"step": 13, "loss": None}) + "\n")
    run = listed(server)["two"]["id"]
    assert server.get(f"/api/runs/{run}").json()["train_loss"][-1] == [13, None]


def test_a_run_without_checkpoints_is_listed(server, folder):
    shutil.rmtree(folder / "two" / "checkpoints")
    assert listed(server)["two"]["steps"] == 12


def test_comparison_names_what_differs(server):
    ids = [each["id"] for _, each in sorted(listed(server).items())]
    found = server.post("/api/runs/compare", runs=ids).json()
    assert ["dropout", "0.1", "0.0"] in found["differences"]
    assert [row for row in found["results"] if row[0] == "steps"] == [["steps", "12", "12"]]


def test_a_broken_run_is_listed_with_its_problem(server, folder):
    (folder / "two" / "config.toml").write_text("nothing = here\n", encoding="utf-8")
    found = listed(server)["two"]
    assert found["state"] == "broken"
    assert "not TOML" in found["problem"]
    refusal(server.get(f"/api/runs/{found['id']}"))


def test_no_part_of_a_request_is_a_path(server, folder):
    for run in ("one", "..", "%2e%2e%2fone", str(folder / "one").replace("/", "%2f"), "0" * 16):
        refusal(server.get(f"/api/runs/{run}"), 404)
    refusal(server.post("/api/runs/compare", runs=["../one", "two"]))
    refusal(server.post("/api/runs/compare", runs=["0" * 16, "1" * 16]), 404)


def test_a_folder_that_is_gone_is_an_error_of_one_line(server, folder):
    listed(server)
    moved = folder.with_name("elsewhere")
    os.rename(folder, moved)
    try:
        assert "cannot be read" in refusal(server.get("/api/runs"))["message"]
    finally:
        os.rename(moved, folder)


def test_a_run_that_vanishes_meanwhile_is_left_out(server, folder):
    assert "two" in listed(server)
    shutil.rmtree(folder / "two")
    assert "two" not in listed(server)
