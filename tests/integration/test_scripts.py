"""The four scripts and the command's completion, in processes of their own."""

import os
import random
import re
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import tomli_w

from src.train.trackers import read_metrics
from tests.processes import Process, needs_fork, run_python

try:
    import fcntl
except ImportError:
    fcntl = None

ROOT = Path(__file__).parents[2]
ENVIRONMENT = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONIOENCODING": "ascii"}
STEPS = 220
pytestmark = needs_fork


def run(*arguments, text=""):
    """Run a script of the checkout to its end; return its standard output and error."""
    done = run_python(*arguments, text=text, environment=ENVIRONMENT)
    assert done.returncode == 0, done.stderr
    return done.stdout, done.stderr


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """A corpus, configurations of the same run under two names, and the first one trained."""
    folder = tmp_path_factory.mktemp("scripts")
    words = "the cat sat on a mat while the dog ran over hills, rivers and 漢字 🦆."
    text = " ".join(random.Random(2).choices(words.split(), k=1500))
    (folder / "corpus.txt").write_text(text, encoding="utf-8")
    for name in ("whole", "stopped"):
        keys = {
            "sources": [str(folder / "corpus.txt")],
            "model_name": name,
            "output_dir": str(folder / "trained"),
            "vocab_size": 300,
            "model_layer": 1,
            "model_head": 2,
            "model_embd": 32,
            "model_positions": 32,
            "dropout": 0.1,
            "batch_size": 4,
            "max_steps": STEPS,
            "eval_interval": 40,
            "checkpoint_interval": 25,
            "log_interval": 1,
            "learning_rate": 0.01,
            "sample_tokens": 8,
            "max_length": 10,
            "temperature": 0,
            "device": "cpu",
        }
        (folder / f"{name}.toml").write_text(tomli_w.dumps(keys), encoding="utf-8")
    out, err = run("agi2_train.py", folder / "whole.toml")
    return folder, out, err


def test_the_training_script_shows_progress_and_samples(runs):
    folder, out, err = runs
    assert out.count("--- sample") == 3
    assert f"step {STEPS}/{STEPS}  loss" in err
    assert "tok/s" in err
    assert "left" in err
    assert "train loss" in err  # of an epoch
    assert {"config.toml", "model.safetensors", "tokenizer.json", "metrics.jsonl"} <= {
        path.name for path in (folder / "trained" / "whole").iterdir()
    }


def test_the_generation_script_goes_on_from_any_prompt(runs):
    out, _ = run("agi2_generate.py", runs[0] / "whole.toml", "the 漢字 🦆 cat")
    assert out.startswith("the 漢字 🦆 cat")
    assert len(out.encode()) > len("the 漢字 🦆 cat\n".encode())


def test_the_beam_script_writes_only_text(runs):
    """But for a line where loading takes long, as it may on a busy machine."""
    out, err = run("agi2_generate_beam.py", runs[0] / "whole.toml", "the cat")
    assert out.startswith("the cat")
    assert len(out) > len("the cat\n")
    assert err in ("", f"loading {runs[0] / 'trained' / 'whole'}\n")


def test_the_interactive_script_talks_through_a_pipe_to_its_end(runs):
    out, err = run("agi2_interactive.py", runs[0] / "whole.toml", text="the cat\n/help\n/clear\n")
    assert out.endswith("\n")
    assert "/quit" in err


def stop(number, *arguments, after):
    """Send a signal to a script at some step; its status and the rest of its log.

    It writes its log into a pipe that holds about 70 lines and is read no further, so that it
    cannot be far ahead.
    """
    reader, writer = os.pipe()
    if hasattr(fcntl, "F_SETPIPE_SZ"):
        fcntl.fcntl(reader, fcntl.F_SETPIPE_SZ, 4096)
    with open(os.devnull, "r+b") as null:
        streams = [null.fileno(), null.fileno(), writer]
        process = Process(*arguments, streams=streams, environment=ENVIRONMENT)
    os.close(writer)
    with open(reader, "rb", buffering=0) as log:
        for line in log:
            if f"step {after}/{STEPS} ".encode() in line:
                process.kill(number)
                break
        err = log.read()
    return process.wait(), err.decode()


def newest_step(folder):
    places = (folder / "trained" / "stopped" / "checkpoints").glob("step-*")
    return max(int(place.name.removeprefix("step-")) for place in places)


def test_a_run_that_is_stopped_and_killed_ends_as_if_it_never_was(runs):
    """Ctrl-C, then `kill -9`, each followed by `--resume`."""
    folder = runs[0]
    train = ("agi2_train.py", folder / "stopped.toml")
    status, err = stop(signal.SIGINT, *train, after=3)
    first = newest_step(folder)
    assert status == 130
    assert "is saved; continue with: agi2 train " in err
    assert "Traceback" not in err
    assert 3 <= first < STEPS

    status, _ = stop(signal.SIGKILL, *train, "--resume", after=first + 30)
    assert status == -signal.SIGKILL
    assert first < newest_step(folder) < STEPS  # a checkpoint of its own

    out, err = run(*train, "--resume")
    assert f"resuming {folder}" in err
    assert out == runs[1]
    whole, stopped = (folder / "trained" / name for name in ("whole", "stopped"))
    assert not stopped.with_name("stopped.1").exists()
    for name in ("model.safetensors", f"checkpoints/step-{STEPS:08d}/training.safetensors"):
        assert (stopped / name).read_bytes() == (whole / name).read_bytes()
    assert logged(stopped) == logged(whole)


def logged(folder):
    """What a run logged, but for each start and what depends on the clock and the machine."""
    return [
        {k: v for k, v in entry.items() if not re.search("second|memory|mfu", k)}
        for entry in read_metrics(folder / "metrics.jsonl")
        if "start" not in entry
    ]


# Completion.


def complete(*words):
    """What the command offers to complete the last word, asked as bash asks."""
    found = subprocess.run(
        [sys.executable, "-c", "from src.cli.main import main; main()"],
        cwd=ROOT,
        env={
            **os.environ,
            "_AGI2_COMPLETE": "complete_bash",
            "COMP_WORDS": "\n".join(("agi2", *words)),
            "COMP_CWORD": str(len(words)),
        },
        capture_output=True,
        text=True,
        check=True,
    )
    return found.stdout.split()


def test_subcommands_and_options_are_completed():
    assert complete("tr") == ["train"]
    assert set(complete("train", "--re")) == {"--resume"}
    assert {"generate", "beam", "chat"} <= set(complete(""))


@pytest.mark.skipif(shutil.which("bash") is None, reason="needs bash")
def test_the_completion_script_can_be_shown():
    program = (
        f'{sys.executable} -c "from src.cli.main import main; main()" --show-completion; exit $?'
    )
    found = subprocess.run(
        ["bash", "-c", program], cwd=ROOT, capture_output=True, text=True, check=True
    )
    assert "_AGI2_COMPLETE=complete_bash" in found.stdout
