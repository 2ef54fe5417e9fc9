"""The commands train, doctor and verify-resume."""

import shlex
import shutil
import signal
from pathlib import Path

import pytest

from src import __version__
from src.data.download_names import cached_path
from src.train.step import accumulate_gradients
from src.train.trackers import read_metrics
from tests.cli.commands import run, steps_done, write_run


def test_training_prints_only_samples_on_standard_output(tmp_path, capsys):
    file = write_run(tmp_path)
    status, out, err = run(capsys, "train", file)
    assert status == 0
    assert [line for line in out.splitlines() if line.startswith("---")] == [
        f"--- sample {number} ---" for number in (1, 2, 3)
    ]
    assert "loss" not in out
    assert "step 6/6  loss" in err
    assert "the longest span copied from it has" in err
    assert f"generate more with: agi2 generate {tmp_path / 'trained' / 'tiny'} " in err
    assert err.endswith(f"\nchat with it: agi2 chat {tmp_path / 'trained' / 'tiny'}\n")
    assert (tmp_path / "trained" / "tiny" / "model.safetensors").is_file()


def test_quiet_logs_nothing_and_still_prints_samples(tmp_path, capsys):
    status, out, err = run(capsys, "train", write_run(tmp_path), "--quiet")
    assert (status, err) == (0, "")
    assert "--- sample 3 ---" in out


def test_verbose_shows_versions_and_the_effective_configuration(trained, capsys):
    _, _, plain = run(capsys, "generate", trained, "the")
    _, _, verbose = run(capsys, "generate", trained, "the", "--verbose")
    assert f"agi2 {__version__}, Python" in verbose
    assert "model_embd = 32" in verbose
    assert "length_penalty = 1.0" in verbose
    assert "model_embd" not in plain


def test_resume_goes_on_to_more_steps(tmp_path, capsys):
    file = write_run(tmp_path)
    run(capsys, "train", file, "-s", "max_steps=4")
    status, _, err = run(capsys, "train", file, "--resume", "-s", "max_steps=6")
    assert status == 0
    assert "step-00000004 at step 4" in err
    assert "the run is now 6 steps long, not 4" in err
    assert steps_done(file) == 6
    assert not (tmp_path / "trained" / "tiny.1").exists()


def test_a_checkpoint_is_not_a_run_and_says_how_to_continue(tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    run(capsys, "train", write_run(tmp_path), "-s", "max_steps=4")
    copied = "my copy"
    shutil.copytree(tmp_path / "trained" / "tiny" / "checkpoints" / "step-00000004", copied)
    for command in ("train", "doctor", "verify-resume"):
        status, out, err = run(capsys, command, copied)
        assert (status, out) == (2, "")
        assert f"{copied} is a checkpoint, not a run: to continue from it: agi2 train " in err
    program, *arguments = shlex.split(err[err.index("agi2 ") :])
    assert program == "agi2"
    options = ("-s", "max_steps=6", "-s", "model_name=again")
    status, _, err = run(capsys, *arguments, *options)
    assert status == 0
    assert "my copy at step 4" in err
    assert (tmp_path / "trained" / "again" / "checkpoints" / "step-00000006").is_dir()


def test_resuming_a_finished_run_trains_nothing_and_changes_no_weight(tmp_path, capsys):
    file = write_run(tmp_path)
    samples = run(capsys, "train", file)[1]
    folder = tmp_path / "trained" / "tiny"
    before = {path.relative_to(folder): path.read_bytes() for path in folder.rglob("*.safetensors")}
    metrics = read_metrics(folder / "metrics.jsonl")
    status, again, err = run(capsys, "train", file, "--resume")
    assert (status, again) == (0, samples)
    assert "finished after 6 steps" in err
    assert "step 7" not in err
    *same, start = read_metrics(folder / "metrics.jsonl")
    assert same == metrics
    assert "start" in start
    assert before == {
        path.relative_to(folder): path.read_bytes() for path in folder.rglob("*.safetensors")
    }


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_stopped_run_saves_exits_with_130_and_goes_on_exactly(
    number, trained, tmp_path, capsys, monkeypatch
):
    steps = []

    def stopped_in_the_third(*arguments, **options):
        steps.append(1)
        if len(steps) == 3:
            signal.raise_signal(number)
        return accumulate_gradients(*arguments, **options)

    file = write_run(tmp_path)
    with monkeypatch.context() as patch:
        patch.setattr("src.train.accumulator.accumulate_gradients", stopped_in_the_third)
        status, out, err = run(capsys, "train", file)
    assert (status, out) == (130, "")
    assert "Traceback" not in err
    answer, _, command = err.splitlines()[-1].partition("; continue with: agi2 ")
    saved = tmp_path / "trained" / "tiny" / "checkpoints" / "step-00000003"
    assert answer == f"interrupted: {saved} is saved"
    *command, option = shlex.split(command)
    assert (command, option) == (["train", str(tmp_path / "trained" / "tiny")], "--resume")
    assert run(capsys, *command, option, "--quiet")[0] == 0
    weights, expected = (
        path.parent / "trained" / "tiny" / "model.safetensors" for path in (file, trained)
    )
    assert weights.read_bytes() == expected.read_bytes()


def test_the_doctor_tells_on_standard_output_what_a_run_takes(tmp_path, capsys):
    file = write_run(tmp_path)
    status, out, err = run(capsys, "doctor", file, "--quiet")
    assert (status, err) == (0, "")
    assert out.startswith(f"keys: every key of {file} is right\n")
    assert out.endswith("it fits\n")
    assert not (tmp_path / "trained").exists()


def test_the_doctor_ends_with_2_where_a_run_does_not_fit(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr("src.cli.doctor.available_memory", lambda device: 1)
    status, out, err = run(capsys, "doctor", write_run(tmp_path), "--quiet")
    assert status == 2
    assert "advice: micro_batch_size = 1" in out
    assert err.startswith("error: it does not fit (memory: ")


def test_verify_resume_prints_what_it_compared(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr("src.cli.verify_resume.verify", lambda config, steps: [f"exact in {steps}"])
    assert run(capsys, "verify-resume", write_run(tmp_path)) == (0, "exact in 6\n", "")
    found = run(capsys, "verify-resume", write_run(tmp_path), "--steps", "9")
    assert found == (0, "exact in 9\n", "")
    assert run(capsys, "verify-resume", write_run(tmp_path), "--steps", "2")[0] == 2


def test_what_was_interrupted_before_it_began_is_not_continued(tmp_path, capsys, monkeypatch):
    """Its folder has the checkpoints of the run before."""
    file = write_run(tmp_path, max_steps=2)
    assert run(capsys, "train", file, "--quiet")[0] == 0

    def interrupted(*_, **__):
        raise KeyboardInterrupt

    monkeypatch.setattr("src.training.prepare_on_rank_0", interrupted)
    status, out, err = run(capsys, "train", file)
    assert (status, out) == (130, "")
    assert "continue with" not in err


def test_resume_without_a_checkpoint_begins_a_run(tmp_path, capsys):
    file = write_run(tmp_path)
    assert run(capsys, "train", file, "--resume", "--quiet")[0] == 0
    assert steps_done(file) == 6


def test_a_fresh_run_moves_the_old_one_aside(tmp_path, capsys):
    file = write_run(tmp_path)
    run(capsys, "train", file, "-s", "max_steps=2")
    old = (tmp_path / "trained" / "tiny" / "metrics.jsonl").read_bytes()
    status, _, err = run(capsys, "train", file, "-s", "max_steps=3")
    assert status == 0
    assert "tiny exists: moved to" in err
    assert (tmp_path / "trained" / "tiny.1" / "metrics.jsonl").read_bytes() == old


def test_the_command_that_training_prints_works(tmp_path, capsys):
    file = write_run(tmp_path, max_steps=2)
    name = "it's a [red] name"
    status, _, err = run(capsys, "train", file, "-s", f"model_name={name}")
    assert status == 0
    line = next(line for line in err.splitlines() if line.startswith("generate more with: "))
    _, *command = shlex.split(line.partition(": ")[2])
    assert command == ["generate", str(tmp_path / "trained" / name), "..."]
    assert run(capsys, *command)[0] == 0


SECRETS = ("pa55word", "t0ken")


@pytest.fixture
def secret_url():
    """An address with a login and a token, whose text is in the cache."""
    url = "https://me:pa55word@host.example/book.txt?key=t0ken"
    cached_path(url).parent.mkdir(parents=True, exist_ok=True)
    cached_path(url).write_text("the cat sat on a mat and " * 300, encoding="utf-8")
    yield url
    cached_path(url).unlink()


def test_the_secret_of_a_source_stays_in_files_for_the_user_alone(tmp_path, capsys, secret_url):
    file = write_run(tmp_path, sources=[secret_url], log_to=["tensorboard"])
    folder = tmp_path / "trained" / "tiny"
    shown = [run(capsys, "train", file, "--verbose")]
    assert shown[0][0] == 0
    changes = ["--set", f"sources={secret_url}2", "--set", "max_steps=8"]
    cached_path(secret_url).rename(cached_path(f"{secret_url}2"))
    shown += [run(capsys, "train", file, "--resume", "--verbose", *changes)]
    shown += [run(capsys, "train", folder, "--resume", "--verbose", "--set", "max_steps=9")]
    assert steps_done(file) == 9  # resumed from the address that is kept
    cached_path(f"{secret_url}2").rename(cached_path(secret_url))
    shown += [
        run(capsys, *arguments)
        for arguments in (
            ("compare", file, write_run(tmp_path, model_name="x"), "--html", tmp_path / "c.html"),
            ("doctor", file, "--verbose"),
            ("generate", folder, "the", "--verbose"),
            ("train", file, "--set", f"sources={secret_url}/nothing.txt"),
            ("train", file, "--set", f"epochs={secret_url}"),
        )
    ]
    for text in [*map(str, shown)]:
        assert not any(secret in text for secret in SECRETS)
    private = {folder / "config.toml", *folder.glob("checkpoints/*/config.toml")}
    for path in filter(Path.is_file, (tmp_path / "trained").rglob("*")):
        has_secret = any(secret.encode() in path.read_bytes() for secret in SECRETS)
        assert has_secret == (path in private), path
        assert not has_secret or path.stat().st_mode & 0o077 == 0
