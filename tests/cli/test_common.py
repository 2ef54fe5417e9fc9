"""What all commands share: their model, their options, their errors."""

import errno
import re
import shutil
import sys

import pytest

from src.cli.interrupts import NOTHING_SAVED
from src.cli.main import main
from src.train.trackers import read_metrics
from tests.cli.commands import HOSTILE, run, write_run


def test_a_mistake_of_the_user_is_told_in_lines_without_a_traceback(tmp_path, capsys):
    file = write_run(tmp_path, epoch=3, temperature=-1.0)
    status, out, err = run(capsys, "generate", file, "a")
    assert (status, out) == (2, "")
    assert len(err.splitlines()) == 2
    assert all(line.startswith("error: ") for line in err.splitlines())


def test_ctrl_c_exits_with_130(trained, capsys, monkeypatch):
    def interrupted(*_, **__):
        raise KeyboardInterrupt

    monkeypatch.setattr("src.generation.stream_text", interrupted)
    status, _, err = run(capsys, "generate", trained, "a", "--quiet")
    assert (status, err) == (130, f"{NOTHING_SAVED}\n")


@pytest.mark.parametrize(
    ("error", "line"),
    [
        (OSError(errno.ENOSPC, "No space left on device"), "error: [Errno 28] No space left"),
        (MemoryError(), "error: out of memory: lower model_embd, "),
        (
            RuntimeError("can't allocate memory: you tried"),
            "error: out of memory: lower model_embd",
        ),
    ],
)
def test_what_a_machine_lacks_is_one_line(capsys, monkeypatch, trained, error, line):
    def lacking(*_, **__):
        raise error

    monkeypatch.setattr("src.generation.stream_text", lacking)
    status, out, err = run(capsys, "generate", trained, "the", "-q")
    assert (status, out) == (2, "")
    assert err.startswith(line)
    assert err.count("\n") == 1


@pytest.mark.parametrize("error", [RuntimeError("a bug"), BrokenPipeError(errno.EPIPE, "gone")])
def test_other_errors_stay_as_they_are(monkeypatch, trained, error):
    def failing(*_, **__):
        raise error

    monkeypatch.setattr("src.generation.stream_text", failing)
    with pytest.raises((RuntimeError, SystemExit)) as caught:
        main(["generate", str(trained), "the", "-q"])
    assert caught.value is error or caught.value.code == 1


def test_a_model_that_no_machine_holds_is_one_line(tmp_path, capsys):
    file = write_run(tmp_path, model_embd=2**16, model_layer=20, seq_len=32)
    for command, said in (
        ("train", r"error: training a model of .* takes .*, this machine has .*: lower model_"),
        ("doctor", r"error: it does not fit \(memory: "),
    ):
        status, _, err = run(capsys, command, file, "-q")
        assert status == 2
        assert re.match(said, err.splitlines()[-1])


@pytest.mark.parametrize("key", ["sources", "val_sources"])
@pytest.mark.parametrize("command", ["train", "doctor", "verify-resume", "sweep"])
def test_a_missing_source_is_one_line(tmp_path, capsys, command, key):
    file = write_run(tmp_path, **{key: [str(tmp_path / "gone.txt")]})
    status, out, err = run(capsys, command, file)
    assert (status, out) == (2, "")
    assert re.fullmatch(r"error: .*gone\.txt: no such file.*\n", err)
    assert not (tmp_path / "trained").exists()


@pytest.fixture(scope="module")
def named(trained, tmp_path_factory):
    """The same model by all of its names: configuration, run, moved run, model without a log."""
    run_ = trained.parent / "trained" / "tiny"
    folder = tmp_path_factory.mktemp("named")
    moved = shutil.copytree(run_, folder / "moved run")
    model = shutil.copytree(run_, folder / "model", ignore=lambda *_: ["metrics.jsonl"])
    return [trained, run_, moved, model]


def test_every_command_takes_a_model_by_any_of_its_names(named, held_out, tmp_path, capsys):
    greedy = ["--set", "temperature=0", "--quiet"]
    for command in (
        ["generate", "MODEL", "the", *greedy],
        ["beam", "MODEL", "the", "--quiet"],
        ["eval", "MODEL", "--text", held_out, "--quiet"],
    ):
        found = {
            run(capsys, *(place if word == "MODEL" else word for word in command))
            for place in named
        }
        assert len(found) == 1
        assert found.pop()[0] == 0
    exported = set()
    for number, place in enumerate(named):
        assert run(capsys, "export", place, tmp_path / str(number), "--quiet")[0] == 0
        exported.add((tmp_path / str(number) / "model.safetensors").read_bytes())
    assert len(exported) == 1
    status, out, _ = run(capsys, "compare", *named, "--prompt", "the", "--quiet")
    assert status == 0
    assert out.count("\nthe") >= 4
    for place in named:
        assert run(capsys, "doctor", place, "-s", "max_steps=2")[0] == 0


def test_a_folder_that_is_named_is_the_run_that_goes_on(named, tmp_path, capsys):
    moved = shutil.copytree(named[2], tmp_path / "elsewhere")
    before = (named[1] / "metrics.jsonl").read_bytes()
    status, _, err = run(capsys, "train", moved, "--resume", "-s", "max_steps=8")
    assert status == 0
    assert f"agi2 generate {moved} " in err
    assert max(line["step"] for line in read_metrics(moved / "metrics.jsonl")) == 8
    assert (named[1] / "metrics.jsonl").read_bytes() == before


@pytest.mark.parametrize(
    "arguments",
    [
        [HOSTILE],
        ["generate", f"--{HOSTILE}"],
        ["generate", "a", "b", HOSTILE],
        ["generate", "a", "b", "--temperature", HOSTILE],
        ["generate", HOSTILE, "b"],
        ["generate", "TRAINED", "b", "-s", HOSTILE],
        ["generate", "TRAINED", "b", "-s", f"{HOSTILE}=1"],
        ["generate", "TRAINED", "b", "-s", f"device={HOSTILE}"],
        ["list", HOSTILE],
        ["compare", HOSTILE, HOSTILE],
        ["export", HOSTILE, HOSTILE],
        ["export", "TRAINED", "b", "--format", HOSTILE],
        ["plan", "--sources", HOSTILE, "--minutes", "1"],
        ["train", HOSTILE * 500],
    ],
    ids=lambda arguments: " ".join(arguments)[:30].encode("ascii", "backslashreplace").decode(),
)
def test_a_hostile_argument_is_escaped_in_the_message(arguments, trained, capsys):
    given = [trained if word == "TRAINED" else word for word in arguments]
    status, out, err = run(capsys, *given)
    assert (status, out) == (2, "")
    assert not re.search(r"[\x00-\x09\x0b-\x1f\x7f-\x9f\u2028\u202e]", err)
    assert max(map(len, err.splitlines())) <= 310


def test_a_failing_system_call_is_an_escaped_line(trained, capsys, monkeypatch):
    def failing(*_, **__):
        raise OSError(errno.ENOSPC, f"full {HOSTILE}")

    monkeypatch.setattr("src.generation.stream_text", failing)
    status, _, err = run(capsys, "generate", trained, "the", "-q")
    assert status == 2
    assert err == r"error: [Errno 28] full \x1b]0;t\x07\x9b2J\r\u202e\u2028[red]" + "\n"


def test_memory_that_runs_out_before_pytorch_is_loaded_is_one_line(monkeypatch, capsys):
    def lacking(*_, **__):
        raise MemoryError

    monkeypatch.setattr("src.config_loader.load_config", lacking)
    monkeypatch.delitem(sys.modules, "torch")
    status, _, err = run(capsys, "train", "any.toml")
    assert status == 2
    assert err.startswith("error: out of memory: lower model_embd")
