"""Commands of the command line, run inside this process, and a tiny run for them."""

import json
import random
from pathlib import Path

import pytest
import tomli_w

from src.cli.main import main

ROOT = Path(__file__).parents[2]


def run(capsys, *arguments):
    """Status, standard output and standard error of a command."""
    with pytest.raises(SystemExit) as leaving:
        main([str(argument) for argument in arguments])
    captured = capsys.readouterr()
    return leaving.value.code, captured.out, captured.err


def write_run(folder, **changes):
    """A corpus and a configuration of a tiny model; its file."""
    sentence = "the cat sat on a mat while the dog ran over hills and rivers"
    chosen = random.Random(1).choices(sentence.split(), k=900)
    (folder / "corpus.txt").write_text(" ".join(chosen), encoding="utf-8")
    keys = {
        "sources": [str(folder / "corpus.txt")],
        "model_name": "tiny",
        "output_dir": str(folder / "trained"),
        "vocab_size": 270,
        "model_layer": 1,
        "model_head": 2,
        "model_embd": 32,
        "model_positions": 32,
        "batch_size": 4,
        "max_steps": 6,
        "eval_interval": 3,
        "checkpoint_interval": 2,
        "log_interval": 1,
        "learning_rate": 0.01,
        "sample_tokens": 5,
        "max_length": 12,
        "device": "cpu",
        **changes,
    }
    file = folder / "tiny.toml"
    file.write_text(tomli_w.dumps(keys), encoding="utf-8")
    return file


def steps_done(file):
    lines = (file.parent / "trained" / "tiny" / "metrics.jsonl").read_text("utf-8").splitlines()
    return max(json.loads(line)["step"] for line in lines)


HOSTILE = "\x1b]0;t\x07\x9b2J\r\u202e\u2028[red]"
