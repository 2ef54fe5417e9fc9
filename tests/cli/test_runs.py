"""The commands list and compare."""

import logging
import re
import shutil

import pytest

from src import __version__
from src.config_loader import load_config
from src.training import train_from_config
from tests.cli.commands import HOSTILE, run, write_run
from tests.train.trainers import at


def test_list_shows_runs_on_standard_output(trained, capsys):
    status, out, err = run(capsys, "list", trained.parent / "trained")
    assert (status, err) == (0, "")
    assert out.splitlines()[1].startswith("tiny ")


def test_list_shows_what_a_run_does(tmp_path, capsys):
    """While it is trained, in its last validation, when that fails, and after it."""
    folder, shown = tmp_path / "trained", []
    config = load_config(write_run(tmp_path, eval_interval=4))

    def state():
        shown.append(run(capsys, "list", folder)[1].split()[-1])

    def fail():
        state()
        raise RuntimeError("stop")

    train_from_config(config, kind=at("step", 3, state))
    state()
    train_from_config(config, kind=at("evaluate", 6, state, occurrence=2))
    with pytest.raises(RuntimeError, match="stop"):
        train_from_config(config, kind=at("evaluate", 6, fail))
    state()
    train_from_config(config.changed(resume="auto"), kind=at("open", 6, state))
    state()
    assert shown == [
        "training",
        "finished",
        "validating",
        "validating",
        "unfinished",
        "preparing",
        "finished",
    ]


def test_list_says_where_it_looked(tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    status, out, err = run(capsys, "list")
    assert (status, out) == (2, "")
    assert err.startswith("error: trained cannot be read")


def test_list_and_compare_log_less_or_more_and_print_the_same(trained, capsys):
    folder = trained.parent / "trained"
    for command in (["list", folder], ["compare", folder / "tiny", folder / "tiny"]):
        status, out, _ = run(capsys, *command)
        assert run(capsys, *command, "--quiet") == (status, out, "")
        assert logging.getLogger("agi2").level == logging.WARNING
        _, same, err = run(capsys, *command, "-v")
        assert same == out
        assert f"agi2 {__version__}, Python" in err


def test_compare_takes_prompt_seed_and_file(trained, tmp_path, capsys):
    folder, html = trained.parent / "trained" / "tiny", tmp_path / "both.html"
    options = ["--prompt", "the cat", "--seed", 3, "--html", html]
    status, out, _ = run(capsys, "compare", folder, folder, *options)
    assert status == 0
    assert out.count("\nthe cat") == 2
    assert html.is_file()
    assert run(capsys, "compare", folder)[0] == 2


def test_names_of_runs_are_escaped_and_no_markup(trained, tmp_path, capsys):
    name = HOSTILE.replace("\u2028", "")
    shutil.copytree(trained.parent / "trained" / "tiny", tmp_path / name)
    (tmp_path / "broken").mkdir()
    (tmp_path / "broken" / "metrics.jsonl").write_text(HOSTILE)
    for command in (
        ["list", tmp_path],
        ["compare", tmp_path / name, trained],
    ):
        status, out, err = run(capsys, *command)
        assert status == 0
        out = re.sub(r"(?s)(?<= ---\n).*?\n\n", "", out)  # generated text goes to a pipe as it is
        assert not re.search(r"[\x00-\x09\x0b-\x1f\x7f-\x9f\u202e]", out + err)
        assert r"\x1b]0;t\x07\x9b2J\r\u202e[red]" in out
