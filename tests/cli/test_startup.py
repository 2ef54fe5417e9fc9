"""Output before PyTorch is imported, and commands that never import it."""

import json
import os
import signal
import subprocess
import sys

import pytest

from src.cli.startup import announce, exit_on_sigint, limit_openmp_spinning, loading
from tests.conftest import CHECKOUT, open_terminal, run_python

# A finder that refuses PyTorch: whatever imports it, in whatever way, ends with a traceback.
WITHOUT_PYTORCH = """
import os, sys

# The shell of the parent processes, which typer looks for otherwise, may not be among them.
os.environ["_TYPER_COMPLETE_TEST_DISABLE_SHELL_DETECTION"] = "1"

class Refuse:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] == "torch":
            raise AssertionError(f"{name} is imported")

sys.meta_path.insert(0, Refuse())
from src.cli.main import main
"""
# Each command in its turn, so that Python starts once: status, and what went to standard error.
EACH = """
import contextlib, io, json, os, traceback
os.chdir(sys.argv[1])
for arguments in json.loads(sys.argv[2]):
    err = io.StringIO()
    with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(err):
        try:
            status = main(arguments)
        except SystemExit as leaving:
            status = leaving.code
        except BaseException:
            status = traceback.format_exc()
    print(json.dumps([status, err.getvalue()]))
"""


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """A folder with files of all kinds; the paths of the cases below are in it."""
    folder = tmp_path_factory.mktemp("place")
    (folder / "text.txt").write_text("some text", encoding="utf-8")
    (folder / "my.toml").write_text(
        'sources = ["text.txt"]\nmodel_name = "none"\n', encoding="utf-8"
    )
    run = folder / "trained" / "run"
    (run / "checkpoints").mkdir(parents=True)
    (run / "config.toml").write_text('sources = ["gone.txt"]\nmodel_name = "old"\n')
    (run / "metrics.jsonl").write_text('{"step": 3, "loss": 1.5}\n')
    (folder / "foreign").mkdir()
    (folder / "foreign" / "config.json").write_text("{}")
    (folder / "empty").mkdir()
    return folder


CASES = [
    (["--help"], 0),
    (["--version"], 0),
    (["--show-completion", "bash"], 0),
    *[
        ([command, "--help"], 0)
        for command in (
            "train",
            "doctor",
            "verify-resume",
            "plan",
            "init",
            "sweep",
            "data",
            "generate",
            "beam",
            "chat",
            "serve",
            "eval",
            "list",
            "compare",
            "import",
            "export",
        )
    ],
    (["data", "inspect", "--help"], 0),
    (["init", "text.txt", "--output", "new.toml"], 0),
    (["data", "inspect", "text.txt"], 0),
    (["list", "trained"], 0),
    (["list", "empty"], 2),
    (["fly"], 2),
    (["train", "--fast"], 2),
    (["generate", "my.toml"], 2),
    (["generate", "my.toml", "a", "--temperature", "-1"], 2),
    *[([command, "missing.toml", "a"], 2) for command in ("generate", "beam", "export")],
    *[([command, "missing.toml"], 2) for command in ("train", "doctor", "verify-resume", "chat")],
    *[([command, "foreign", "a"], 2) for command in ("generate", "beam", "export")],
    *[([command, "trained"], 2) for command in ("train", "doctor", "verify-resume", "chat")],
    *[([command, "trained/run", "a"], 2) for command in ("generate", "beam", "export")],
    (["generate", "my.toml", "a"], 2),
    (["train", "my.toml", "--set", "epoch=3"], 2),
    (["train", "my.toml", "--set", "sources=missing.txt"], 2),
    (["train", "my.toml", "--set", "resume=missing"], 2),
    (["train", "my.toml", "--set", "init_from=missing"], 2),
    (["train", "trained/run"], 2),
    (["train", "text.txt", "my.toml"], 2),
    (["train", "missing.txt"], 2),
    (["train", "empty"], 2),
    (["train", "text.txt", "--set", "epoch=3"], 2),
    (["train", "text.txt", "--set", "init_from=trained/run"], 2),
    (["train", "text.txt", "--name", ".."], 2),
    (["train", "my.toml", "--minutes", "3"], 2),
    (["init", "missing.txt"], 2),
    (["init", "text.txt", "--recipe", "soup"], 2),
    (["init", "text.txt", "--output", "my.toml"], 2),
    (["data", "inspect", "missing.txt"], 2),
    (["data", "inspect", "text.txt", "--tokenizer", "missing"], 2),
    (["data", "inspect", "text.txt", "--set", "epochs=3"], 2),
    (["doctor", "trained/run"], 2),
    (["eval", "my.toml"], 2),
    (["eval", "my.toml", "--text", "missing.txt"], 2),
    (["eval", "empty", "--text", "text.txt"], 2),
    (["plan", "--sources", "missing.txt", "--minutes", "1"], 2),
    (["plan", "--sources", "text.txt", "--minutes", "1", "--out", "my.toml"], 2),
    (["compare", "trained/run"], 2),
    (["compare", "trained/run", "empty"], 2),
    (["import", "foreign", "empty"], 2),
    (["export", "trained/run", "a", "--format", "zip"], 2),
    (["export", "trained/run", "empty"], 2),
]


def test_what_needs_no_pytorch_does_not_import_it(place):
    done = run_python(WITHOUT_PYTORCH + EACH, place, json.dumps([given for given, _ in CASES]))
    found = [json.loads(line) for line in done.stdout.splitlines()]
    assert len(found) == len(CASES), done.stderr
    for (arguments, expected), (status, err) in zip(CASES, found, strict=True):
        assert (arguments, status) == (arguments, expected)
        if expected == 2:
            assert err.splitlines()[-1].lower().startswith("error: ")


def test_the_refusal_of_pytorch_would_be_seen():
    done = run_python(WITHOUT_PYTORCH.replace("from src.cli.main import main", "import torch"))
    assert "AssertionError: torch is imported" in done.stderr


class Screen:
    def __init__(self, is_terminal=True):
        self.text = ""
        self.is_terminal = is_terminal

    def isatty(self):
        return self.is_terminal

    def write(self, text):
        self.text += text

    def flush(self):
        pass


@pytest.mark.parametrize(
    ("is_terminal", "term", "is_shown", "seen"),
    [
        (True, "xterm", True, "loading\r"),
        (True, None, True, "loading\r"),
        (True, "dumb", True, "loading\n"),
        (True, "xterm", False, ""),
        (False, "xterm", True, ""),
    ],
)
def test_loading_is_shown_in_a_terminal_alone(is_terminal, term, is_shown, seen, monkeypatch):
    monkeypatch.setattr(sys, "stderr", screen := Screen(is_terminal))
    monkeypatch.setenv("TERM", term) if term else monkeypatch.delenv("TERM", raising=False)
    with loading(is_shown):
        assert screen.text == seen
    # It is erased where the terminal can do that.
    assert screen.text == seen + (" " * 7 + "\r") * seen.endswith("\r")


@pytest.mark.parametrize(
    ("arguments", "term", "seen"),
    [
        ("generate run prompt", "xterm", "loading\r"),
        ("generate run prompt", "dumb", ""),
        ("generate run prompt -q", "xterm", ""),
        ("train --help", "xterm", ""),
        ("--version", "xterm", ""),
        ("list", "xterm", ""),
        ("", "xterm", ""),
    ],
)
def test_loading_is_announced_before_the_arguments_are_parsed(arguments, term, seen, monkeypatch):
    monkeypatch.setattr(sys, "stderr", screen := Screen())
    monkeypatch.setenv("TERM", term)
    announce(arguments.split())
    assert screen.text == seen


def test_loading_is_erased_before_an_error_is_printed(monkeypatch):
    monkeypatch.setattr(sys, "stderr", screen := Screen())
    monkeypatch.setenv("TERM", "xterm")
    with pytest.raises(KeyError), loading():
        raise KeyError
    assert screen.text.endswith(" \r")


@pytest.mark.skipif(sys.platform == "win32", reason="no pseudo-terminals")
@pytest.mark.parametrize(("quiet", "expected"), [([], "loading"), (["--quiet"], "error: ")])
def test_loading_is_the_first_that_a_terminal_shows(quiet, expected, place):
    program = f"import sys; sys.path.insert(0, {str(CHECKOUT)!r})\n{WITHOUT_PYTORCH}"
    arguments = ["-c", f"{program}\nmain(sys.argv[1:])", "generate", "my.toml", "a", *quiet]
    environment = {**os.environ, "TERM": "xterm"}
    with open_terminal(arguments, cwd=str(place), env=environment) as terminal:
        terminal.expect("(loading|error: )")
        assert terminal.match[0] == expected
        terminal.expect("no trained model there")
    assert terminal.exitstatus == 2


def test_spinning_is_limited_unless_the_user_has_chosen(monkeypatch):
    monkeypatch.setitem(os.environ, "GOMP_SPINCOUNT", "")
    monkeypatch.delenv("GOMP_SPINCOUNT")
    limit_openmp_spinning(10)
    assert os.environ["GOMP_SPINCOUNT"] == "10"
    limit_openmp_spinning(20)
    assert os.environ["GOMP_SPINCOUNT"] == "10"


@pytest.mark.parametrize("package", ["typer", "src.cli.evaluate"])
def test_ctrl_c_while_packages_are_imported_prints_no_traceback(package):
    program = (
        "import os, signal, sys\n"
        "class Finder:\n"
        "    def find_spec(self, name, *_):\n"
        f"        if name == {package!r}:\n"
        "            os.kill(os.getpid(), signal.SIGINT)\n"
        "sys.meta_path.insert(0, Finder())\n"
        "import src.cli.main\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", program], cwd=CHECKOUT, capture_output=True, text=True
    )
    assert (done.returncode, done.stderr) == (-signal.SIGINT, "")


def test_a_handler_of_ctrl_c_is_kept_where_it_is_not_pythons():
    before = signal.getsignal(signal.SIGINT)
    seen = []
    try:
        signal.signal(signal.SIGINT, mine := lambda *_: None)
        with exit_on_sigint():
            assert signal.getsignal(signal.SIGINT) is mine
        signal.signal(signal.SIGINT, signal.default_int_handler)
        with exit_on_sigint():
            seen.append(signal.getsignal(signal.SIGINT))
        assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
    finally:
        signal.signal(signal.SIGINT, before)
    assert seen == [signal.SIG_DFL]
