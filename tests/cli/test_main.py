"""The command line, in this process: `main([...])` exits with a status."""

import contextlib
import errno
import io
import os
import shlex
import subprocess
import sys

import pytest
import typer

from src import __version__
from src.cli import main as cli
from src.cli.main import main
from tests.cli.commands import ROOT, run
from tests.conftest import raising


@pytest.mark.parametrize("option", ["--help", "-h"])
def test_help_names_the_commands(option, capsys):
    status, out, err = run(capsys, option)
    assert (status, err) == (0, "")
    for word in (
        "train",
        "doctor",
        "verify-resume",
        "sweep",
        "generate",
        "beam",
        "chat",
        "eval",
        "--version",
        "--show-completion",
    ):
        assert word in out


@pytest.mark.parametrize(
    "command", ["train", "doctor", "verify-resume", "generate", "beam", "chat"]
)
def test_each_command_has_help(command, capsys):
    status, out, _ = run(capsys, command, "-h")
    assert status == 0
    assert {"train": "PATH", "doctor": "FILE.toml", "verify-resume": "FILE.toml"}.get(
        command, "MODEL"
    ) in out
    assert "--set" in out


def test_help_loads_neither_pytorch_nor_rich():
    """So that it answers at once."""
    program = (
        "import sys\n"
        "from src.cli.main import main\n"
        "try:\n    main(['--help'])\n"
        "finally:\n    print(sorted({'torch', 'numpy', 'rich', 'pydantic'} & set(sys.modules)))"
    )
    found = subprocess.run(
        [sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, check=True
    )
    assert found.stdout.splitlines()[-1] == "[]"


def test_version(capsys):
    assert run(capsys, "--version") == (0, f"agi2 {__version__}\n", "")


def test_ctrl_c_before_the_command_begins_ends_with_130(monkeypatch, capsys):
    monkeypatch.setattr("src.cli.main.announce", raising(KeyboardInterrupt))
    assert run(capsys, "--version") == (130, "", "")


def test_ctrl_c_at_any_moment_ends_with_130(monkeypatch, capsys):
    """At any call of a Python function: also before the command begins, and after its end."""
    create = getattr(typer.main.get_command, "__wrapped__", typer.main.get_command)
    monkeypatch.setattr(typer.main, "get_command", create)  # as in a new process

    def calls_until(last):
        count = 0

        def press(frame, event, argument):
            nonlocal count
            count += event == "call"
            if count == last:
                sys.setprofile(None)
                raise KeyboardInterrupt

        sys.setprofile(press)
        try:
            main(["--version"])
        except SystemExit as end:
            return end.code, count
        finally:
            sys.setprofile(None)

    status, total = calls_until(0)
    assert status == 0
    for last in range(2, total, max(1, total // 100)):  # 1 is the call of `main`
        status, count = calls_until(last)
        assert status == 130 or count < last  # callbacks of garbage collections are calls, too
    assert capsys.readouterr().err == ""


def test_a_late_ctrl_c_says_nothing():
    """One that comes while the process is ending: what was to be saved is saved."""
    program = (
        "import atexit, os, signal\n"
        "from src.cli.main import main\n"
        "atexit.register(os.kill, os.getpid(), signal.SIGINT)\n"
        "main(['--version'])"
    )
    done = subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True)
    assert (done.returncode, done.stdout, done.stderr) == (0, f"agi2 {__version__}\n", "")


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["fly"], "no such command 'fly'; agi2 --help"),
        (["train"], "missing argument 'PATH...'; agi2 train --help"),
        (["doctor"], "missing argument 'FILE.toml'; agi2 doctor --help"),
        (["generate", "a.toml"], "missing argument 'PROMPT'; agi2 generate --help"),
        (["train", "a.toml", "--fast"], "no such option: --fast"),
        (["generate", "a", "-x"], "no such option: -x; a prompt that begins with - comes after --"),
        (["doctor", "a.toml", "b.toml"], "quote a text or a name that contains spaces"),
        (["train", "a.toml", "b.toml"], "a.toml is a configuration or a run: name it alone"),
        (["train", "a", "--minutes", "0"], "not '0'"),
        (["generate", "a", "b", "--temperature", "hot"], "temperature must be a number, not 'hot'"),
        (["generate", "a", "b", "--top-k", "-1"], "--top-k must be at least 0, not '-1'"),
        (["generate", "a", "b", "--top-k", "1.5"], "--top-k must be an integer, not '1.5'"),
        (["verify-resume", "a", "--steps", "2"], "--steps must be at least 3, not '2'"),
        (["plan", "a", "--minutes", "0"], "--minutes must be at least 0.1, not '0'"),
        (["plan", "a", "--minutes", "1e9"], "--minutes must be at most 1,000,000.0, not '1e9'"),
        (["plan"], "agi2 plan my_book.txt --minutes 10"),
    ],
)
def test_wrong_usage_exits_with_2(arguments, said, capsys):
    status, out, err = run(capsys, *arguments)
    assert (status, out) == (2, "")
    assert err.startswith("error: ")
    assert err.count("\n") == 1
    assert said in err


def test_the_list_of_commands_cuts_no_description(capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "80")
    commands = run(capsys, "--help")[1].partition("Commands:\n")[2].splitlines()
    assert len(commands) >= 12
    assert not [line for line in commands if line.endswith("...")]


def test_without_arguments_the_help_is_shown(capsys):
    status, out, err = run(capsys)
    assert status == 2
    assert "Commands:" in out + err


def test_a_stream_that_cannot_be_set_to_utf8_is_used_as_it_is(capsys, monkeypatch):
    class Plain:
        def __init__(self):
            self.text = ""

        def write(self, text):
            self.text += text

        def flush(self):
            pass

    monkeypatch.setattr(sys, "stdout", plain := Plain())
    assert run(capsys, "--version")[0] == 0
    assert plain.text == f"agi2 {__version__}\n"


# agi2 eval


# One kind of argument, and nothing that it holds reaches a terminal raw


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="needs a device that is always full")
@pytest.mark.parametrize("option", ["--help", "--version", "list --help"])
def test_output_that_cannot_be_written_is_one_line(option):
    program = "from src.cli.main import main; main()"
    command = f"{shlex.quote(sys.executable)} -c {shlex.quote(program)} {option} > /dev/full"
    ended = subprocess.run(command, shell=True, capture_output=True, text=True, check=False)
    assert (ended.returncode, ended.stderr) == (2, "error: [Errno 28] No space left on device\n")


@pytest.mark.skipif(os.name != "posix", reason="needs a POSIX shell")
@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="needs a device that is always full")
@pytest.mark.parametrize(
    "arguments", ["", "list nothing", "list --nothing", "nothing", "train -s a=1 x"]
)
def test_a_status_needs_no_standard_error(arguments):
    program = f"from src.cli.main import main; main({arguments.split()})"
    with open("/dev/full", "w") as full:
        left = subprocess.run([sys.executable, "-c", program], cwd=ROOT, stderr=full)
    assert left.returncode == 2


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="needs a device that is always full")
def test_help_that_cannot_be_printed_is_a_status(monkeypatch):
    full = open("/dev/full", "w", buffering=1, encoding="utf-8")  # noqa: SIM115
    monkeypatch.setattr(sys, "stderr", full)
    with pytest.raises(SystemExit) as ended:
        main([])
    assert ended.value.code == 2
    with contextlib.suppress(OSError):
        full.close()


def test_standard_streams_that_were_closed_are_the_null_device():
    program = (
        "import os, sys; from src.cli.main import _replace_closed_streams as replace; replace();"
        "found = [os.path.samestat(os.fstat(n), os.stat(os.devnull)) for n in range(3)];"
        "print(); print(file=sys.stderr);"
        "sys.exit(7 if all(found) and sys.stdin.read() == '' else 1)"
    )
    command = f"{shlex.quote(sys.executable)} -c {shlex.quote(program)} <&- >&- 2>&-"
    assert subprocess.run(command, shell=True, check=False).returncode == 7


class Full(io.StringIO):
    """Standard output on a disk that has no room."""

    def __init__(self, number):
        super().__init__()
        self.number = number

    def write(self, text):
        raise OSError(self.number, os.strerror(self.number))


def test_help_that_cannot_be_written_is_one_line(monkeypatch, capsys):
    monkeypatch.setattr(sys, "stdout", Full(errno.ENOSPC))
    with pytest.raises(SystemExit) as ended:
        main(["--help"])
    assert ended.value.code == 2
    assert capsys.readouterr().err == "error: [Errno 28] No space left on device\n"
    monkeypatch.setattr(sys, "stdout", Full(errno.EPIPE))
    with pytest.raises(SystemExit):
        main(["--help"])


def test_closed_standard_streams_become_the_null_device(monkeypatch):
    monkeypatch.setattr(sys, "stdin", None)
    opened = []
    monkeypatch.setattr(os, "open", lambda *given: opened.append(given))
    cli._replace_closed_streams()
    assert opened == [(os.devnull, os.O_RDWR)]
    assert sys.stdin.read() == ""
    sys.stdin.close()


def test_bash_is_answered_after_its_words_are_joined(monkeypatch, capsys):
    monkeypatch.setenv("_AGI2_COMPLETE", "complete_bash")
    monkeypatch.setenv("COMP_WORDS", "agi2\ntr")
    monkeypatch.setenv("COMP_CWORD", "1")
    with pytest.raises(SystemExit):
        main()
    assert capsys.readouterr().out.split() == ["train"]


class FullStream(io.StringIO):
    """Standard error on a device that is full."""

    def write(self, text):
        raise OSError(errno.ENOSPC, "No space left on device")


@pytest.mark.parametrize("arguments", [["list", "nothing"], ["list", "--nothing"]])
def test_what_cannot_be_said_is_still_the_status(arguments, monkeypatch):
    monkeypatch.setattr(sys, "stderr", FullStream())
    with pytest.raises(SystemExit) as leaving:
        main(arguments)
    assert leaving.value.code == 2
