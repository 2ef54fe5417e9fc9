"""`agi2 sweep`: the recipes, their runs, what is kept, and how it is continued."""

import json
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from src.cli import sweep_runs, sweep_worker
from src.cli.child_process import python_command
from src.config_loader import load_config, save_config
from src.evaluation.loss import evaluate
from src.formats.model_dir import load_model
from src.train.setup import prepare
from tests.cli.commands import run, write_run
from tests.processes import needs_fork, run_python

RUN_PROCESS = sweep_runs.run_process
RATES = ("--try", "learning_rate=1e-2,1e-9,1e-3", "--seed", "3")


@pytest.fixture
def file(tmp_path):
    return write_run(tmp_path, max_minutes=3)


@pytest.fixture(autouse=True)
def in_this_process(monkeypatch):
    """The runs are made here."""

    def run_here(*arguments):
        try:
            sweep_worker.train_recipe(*arguments)
        except SystemExit as ending:  # as when both processes are interrupted
            raise KeyboardInterrupt from ending
        return 0

    monkeypatch.setattr(sweep_runs, "run_process", run_here)


@pytest.fixture
def results(monkeypatch):
    """Instead of training, take results by number; an exception is raised, an integer returned."""
    found, trained = {}, []

    def run_with_result(config_file, result_file, *_):
        config = load_config(config_file, "training")
        trained.append(config)
        result = found.get(int(config.model_name.removeprefix("run-")), 1.5)
        if isinstance(result, type):
            raise result
        if isinstance(result, int):
            return result
        if isinstance(result, float):
            result = {"bits_per_byte": result, "val_loss": 2 * result}
        figures = {"status": "time", "parameters": 9, "steps": 5, "tokens": 50, "seconds": 1.5}
        Path(result_file).write_text(json.dumps({**figures, "peak_memory": 10**9, **result}))
        return 0

    monkeypatch.setattr(sweep_runs, "run_process", run_with_result)
    found["trained"] = trained
    return found


def rows_of(file):
    text = (file.parent / "trained/tiny-sweep/sweep.jsonl").read_text("utf-8")
    return [json.loads(line) for line in text.splitlines()]


def test_the_best_of_several_recipes_is_kept(file, capsys):
    folder = file.parent / "trained" / "tiny-sweep"
    status, out, err = run(capsys, "sweep", file, "--steps", "3", *RATES)
    assert status == 0, err
    assert "there are only 3 recipes to try" in err
    assert "3 runs of 3 steps each: learning_rate" in err
    assert "run 1 of 3: learning_rate 0.01" in err
    rows = rows_of(file)
    assert [row["name"] for row in rows] == ["run-01", "run-02", "run-03"]
    assert {row["keys"]["learning_rate"] for row in rows} == {1e-2, 1e-9, 1e-3}
    assert all(
        (row["status"], row["steps"], row["reason"]) == ("finished", 3, None) for row in rows
    )
    assert all(row["tokens"] == 3 * 4 * 32 for row in rows)
    assert all(row["peak_memory"] > 10**7 and row["seconds"] > 0 for row in rows)
    ranked = sorted(rows, key=lambda row: row["bits_per_byte"])
    assert [row["keys"]["learning_rate"] for row in ranked] == [1e-2, 1e-3, 1e-9]
    assert [line.split()[0] for line in out.splitlines()] == [
        "run",
        *(row["name"] for row in ranked),
    ]
    assert out.splitlines()[1].split()[1:3] == ["0.01", f"{rows[0]['bits_per_byte']:.4f}"]
    # Weights of the best only; the figure is that of these weights on all held-out text.
    assert [path.parent.name for path in folder.glob("*/model.safetensors")] == ["run-01"]
    assert [path.parent.name for path in folder.glob("*/checkpoints")] == ["run-01"]
    assert len(list(folder.glob("*/report.html"))) == 3
    assert not list(folder.glob(".run*"))
    data = prepare(load_config(file, "training"))
    loaded = load_model(folder / "run-01")
    found = evaluate(loaded.model, data.val_data, loaded.tokenizer, batch_size=4)
    assert found.bits_per_byte == pytest.approx(rows[0]["bits_per_byte"], rel=1e-6)
    best = folder / "best.toml"
    assert f"train longer with its recipe: agi2 train {best} --set max_steps=30" in err
    text = best.read_text("utf-8")
    assert text.startswith("# The best of the recipes in sweep.jsonl: run-01, ")
    assert text.endswith("\n# Tried.\nlearning_rate = 0.01\n")
    changes = {"max_minutes": None, "max_steps": 3, "model_name": "tiny-best"}
    expected = load_config(file, "training").changed(**changes)
    assert dict(load_config(best, "training")) == dict(expected)


def test_lines_of_json_and_all_weights(file, capsys):
    options = ("--steps", "1", "--runs", "2", "--json", "--keep-all", "-q", "-s", "eval_tokens=0")
    status, out, err = run(capsys, "sweep", file, *options)
    assert (status, err) == (0, "")
    assert [json.loads(line) for line in out.splitlines()] == rows_of(file)
    kept = (file.parent / "trained/tiny-sweep").glob("*/model.safetensors")
    assert sorted(path.parent.name for path in kept) == ["run-01", "run-02"]
    assert rows_of(file)[0]["keys"].keys() == {
        *("learning_rate", "weight_decay", "dropout", "batch_size", "model_layer", "model_embd")
    }


def test_a_run_that_diverges_is_a_row_and_the_others_go_on(file, capsys):
    tried = ("--try", "learning_rate=1e30,1e-3", "--steps", "12", "--runs", "3")
    status, out, err = run(capsys, "sweep", file, *tried)
    assert status == 0, err
    reason = "5 steps in a row gave no finite loss"
    [failed] = [row for row in rows_of(file) if row["status"] == "failed"]
    assert failed["keys"] == {"learning_rate": 1e30}
    assert failed["reason"].startswith(f"{reason}: lower learning_rate")
    assert failed["bits_per_byte"] is failed["steps"] is None
    assert f"{failed['name']} failed: {reason}" in err
    assert out.splitlines()[-1].split()[0] == failed["name"]
    assert out.splitlines()[-1].endswith(f"failed: {reason}")


def test_out_of_memory_is_a_reason_and_another_error_is_not(file, monkeypatch, capsys, tmp_path):
    def fail(*_, **__):
        raise error

    monkeypatch.setattr(sweep_worker, "train_from_config", fail)
    error = torch.OutOfMemoryError("CUDA out of memory")
    status, _, err = run(capsys, "sweep", file, "--runs", "1")
    assert status == 2
    assert "run-01 failed: out of memory: CUDA out of memory\n" in err
    assert err.splitlines()[-1].startswith("error: no run of the sweep has a loss: ")
    error = RuntimeError("a bug")
    with pytest.raises(RuntimeError, match="a bug"):
        sweep_worker.train_recipe(str(file), str(tmp_path / "result"), False, False)
    error = KeyboardInterrupt()
    with pytest.raises(SystemExit) as leaving:
        sweep_worker.train_recipe(str(file), str(tmp_path / "result"), False, False)
    assert leaving.value.code == 130
    assert not (tmp_path / "result").exists()


def test_peak_memory_without_the_module_resource(file, monkeypatch):
    config = load_config(file)
    assert sweep_worker._peak_memory(config) > 10**7
    monkeypatch.setitem(sys.modules, "resource", None)
    assert sweep_worker._peak_memory(config) > 10**7


def test_an_interrupted_sweep_is_continued(file, results, capsys):
    results |= {1: 2.0, 2: 1.9, 3: KeyboardInterrupt}
    arguments = ("sweep", file, "--set", "dropout=0.05")
    status, out, err = run(capsys, *arguments, *RATES, "--minutes", "2")
    assert (status, out) == (130, "")
    command = f"agi2 sweep {file} --set=dropout=0.05 --resume"
    assert err.splitlines()[-1] == (
        "interrupted: 2 of 3 runs are done, the best run-02: 1.9000 bits per byte; continue with: "
        f"{command}"
    )
    assert "3 runs of 2 min each, 6 min in all" in err
    # A run that was cut has a checkpoint, or had just begun.
    folder = file.parent / "trained" / "tiny-sweep"
    (folder / "run-03").mkdir()
    (folder / "run-03" / "config.toml").write_text("")

    results[3] = 1.8
    results["trained"].clear()
    status, out, err = run(capsys, *command.split()[1:])
    assert status == 0, err
    assert len(out.splitlines()) == 4
    [config] = results["trained"]
    assert (config.model_name, config.resume, config.max_minutes) == ("run-03", "auto", 2)
    assert not (folder / "run-03").exists()
    assert [row["run"] for row in rows_of(file)] == [1, 2, 3]
    assert "best: run-03, 1.8000 bits per byte" in err
    assert "the file's own recipe: run-01, 2.0000 bits per byte" in err
    assert f"{folder}/best.toml --set max_minutes=20" in err

    # All are done: only the table. More values are another sweep.
    results["trained"].clear()
    status, out, err = run(capsys, *command.split()[1:], "--runs", "3")
    assert status == 0
    assert results["trained"] == []
    assert len(out.splitlines()) == 4
    for changed, difference in (
        (["--minutes", "3"], "minutes = 2.0, now 3.0"),
        (["--steps", "3"], "minutes = 2.0, now None"),
        (["--seed", "1"], "seed = 3, now 1"),
        (["--try", "dropout=0:0.1"], "learning_rate = "),
        (["--set", "batch_size=8"], "batch_size = 4, now 8"),
    ):
        status, _, err = run(capsys, *command.split()[1:], *changed)
        assert status == 2
        assert err.startswith(f"error: the sweep in {folder} has {difference}")
    # Begun anew, the folder of the sweep before is kept.
    status, _, err = run(capsys, *arguments, "--runs", "1", *RATES[:2])
    assert status == 0
    assert f"{folder} exists: moved to {folder}.1" in err
    assert len(rows_of(file)) == 1


def test_a_run_that_was_interrupted_ends_as_one_that_was_not(file, monkeypatch, capsys):
    options = ("sweep", file, "-q", "--steps", "4", "--try", "learning_rate=1e-2,1e-3")
    run(capsys, *options)
    uninterrupted = rows_of(file)
    step = sweep_worker._ComparedTrainer._train_one_step

    def interrupted_step(trainer):
        if (trainer.config.model_name, trainer.step) == ("run-02", 1):
            signal.raise_signal(signal.SIGINT)
        step(trainer)

    with monkeypatch.context() as patch:
        patch.setattr(sweep_worker._ComparedTrainer, "_train_one_step", interrupted_step)
        status, _, err = run(capsys, *options)
    assert status == 130
    assert err.startswith("interrupted: 1 of 2 runs are done, the best run-01: ")
    status, _, err = run(capsys, "sweep", file, "--resume")
    assert status == 0, err
    assert "checkpoints/step-00000002 at step 2" in err
    for row, other in zip(rows_of(file), uninterrupted, strict=True):
        for key in ("keys", "status", "bits_per_byte", "val_loss", "steps", "tokens"):
            assert row[key] == other[key]


def test_damaged_files_are_one_line(file, results, capsys):
    run(capsys, "sweep", file, *RATES)
    folder = file.parent / "trained" / "tiny-sweep"
    results[1] = KeyboardInterrupt
    status, _, err = run(capsys, "sweep", file, "-q", *RATES)
    assert status == 130
    assert err.startswith("interrupted: 0 of 3 runs are done; continue with: ")
    assert run(capsys, "sweep", file, "-q", "--resume")[0] == 130
    (folder / "sweep.jsonl").write_text('{"run": 1}\n')
    status, _, err = run(capsys, "sweep", file, "--resume")
    assert (status, err) == (
        2,
        f"error: {folder}/sweep.jsonl is damaged: begin anew, without --resume\n",
    )
    (folder / "sweep.json").write_text('{"minutes": 1}')
    status, _, err = run(capsys, "sweep", file, "--resume")
    assert (status, err) == (
        2,
        f"error: {folder}/sweep.json is damaged: begin anew, without --resume\n",
    )


def test_runs_without_bits_per_byte_are_compared_by_loss(file, results, capsys):
    loss = {"bits_per_byte": None}
    results |= {1: {**loss, "val_loss": 3.0}, 2: {**loss, "val_loss": 2.0}, 3: 1, 4: -9}
    tried = ("--try", "learning_rate=1e-2,1e-3,1e-4,1e-5")
    status, out, err = run(capsys, "sweep", file, *tried)
    assert status == 0, err
    assert "best: run-02, 2.0000 val loss" in err
    head, best, *_, last = out.splitlines()
    assert head.split()[2:4] == ["val", "loss"]
    assert best.startswith("run-02 ")
    assert last.endswith("failed: killed, as by a system that is out of memory")
    assert "run-03 failed: its process ended with the status 1\n" in err
    # Losses per token of other vocabularies are no order.
    status, _, err = run(capsys, "sweep", file, "--try", "vocab_size=260,270", "--runs", "2")
    assert status == 2
    assert "no run of the sweep has a loss" in err


def test_a_key_that_is_not_set_may_be_tried(file, results, capsys):
    results |= {1: 1.0, 2: 2.0}
    status, out, err = run(capsys, "sweep", file, "--try", "ema_decay=0.9")
    assert status == 0, err
    assert out.splitlines()[1].split()[:3] == ["run-01", "-", "1.0000"]
    assert [config.ema_decay for config in results["trained"]] == [None, 0.9]
    assert load_config(file.parent / "trained/tiny-sweep/best.toml", "training").ema_decay is None


@pytest.mark.parametrize(
    ("arguments", "error"),
    [
        (["--set", "val_fraction=0"], "a sweep compares runs on held-out text: set val_fraction"),
        (["--minutes", "1", "--steps", "2"], "--minutes and --steps: give one of them"),
        (["--try", "lr=1"], "--try: unknown key lr; did you mean learning_rate?"),
        (["--try", "dropout=3"], "--try dropout=3: dropout must be "),
        (["--runs", "0"], "--runs must be at least 1"),
        (["--set", "optimizer=sgd"], "optimizer"),
        (["--set", "sources=gone.txt"], "gone.txt"),
    ],
)
def test_wrong_arguments_are_one_line_and_nothing_is_created(
    file, results, capsys, arguments, error
):
    status, out, err = run(capsys, "sweep", file, *arguments)
    assert (status, out) == (2, "")
    [line] = err.splitlines()
    assert line.startswith("error: ")
    assert error in line
    assert not results["trained"]
    assert not (file.parent / "trained").exists()


def test_several_processes_are_refused(file, capsys, monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "2")
    status, _, err = run(capsys, "sweep", file)
    assert status == 2
    assert "several processes need a configuration: train it" in err


@needs_fork
def test_a_process_trains_a_recipe_and_writes_its_result(tiny_run, tmp_path):
    save_config(tiny_run(max_steps=2), tmp_path / "run.toml")
    call = (
        f"train_recipe({str(tmp_path / 'run.toml')!r}, {str(tmp_path / 'out.json')!r}, True, False)"
    )
    found = run_python(*python_command("src.cli.sweep_worker", call)[1:])
    assert (found.returncode, found.stdout, found.stderr) == (0, "", "")
    result = json.loads((tmp_path / "out.json").read_text("utf-8"))
    assert (result["status"], result["steps"]) == ("finished", 2)


@needs_fork
@pytest.mark.parametrize("interrupts", [0, 1, 2])
def test_ctrl_c_is_passed_on_and_the_process_is_waited_for(monkeypatch, interrupts):
    ended = []

    class Process(subprocess.Popen):
        def terminate(self):
            ended.append(self)
            super().terminate()

        def wait(self, timeout=None):
            if len(ended) < interrupts:
                signal.raise_signal(signal.SIGINT)
            return super().wait(timeout)

    monkeypatch.setattr(subprocess, "Popen", Process)
    program = "import signal; signal.pause()" if interrupts else "raise SystemExit(7)"
    monkeypatch.setattr(sweep_runs, "python_command", lambda *_: [sys.executable, "-c", program])
    if interrupts:
        with pytest.raises(KeyboardInterrupt):
            RUN_PROCESS("a", "b", True, False)
        assert [each.returncode for each in ended] == [-signal.SIGTERM] * interrupts
    else:
        assert RUN_PROCESS("a", "b", True, False) == 7
        assert ended == []
