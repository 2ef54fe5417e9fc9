"""What `agi2 train` answers to a signal, in each phase of a run."""

import re
import shlex
import signal
import threading
from pathlib import Path

import pytest

from src.cli.interrupts import TrainingProgress, answering
from src.config import Config
from src.config_loader import load_config
from src.utils import log
from tests.cli.commands import run, write_run

FOLDER = "trained/tiny"
COMMAND = ["train", "tiny.toml", "--verbose", "--set", "eval_interval=4"]
RESUME = f"continue with: agi2 train {FOLDER} --resume"
SAVED = f"interrupted: {FOLDER}/checkpoints/step-00000006 is saved; {RESUME}"
SAME = "start again with the same command"

# A line that is logged in each phase of a run on a configuration, and the answer to a signal there.
PHASES = {
    "reading the configuration": ("agi2 ", f"interrupted: nothing is trained yet; {SAME}"),
    "preparing the text": (
        "the text is unchanged|reading",
        f"interrupted: nothing is saved yet; {SAME}",
    ),
    "making the model": ("tiny: ", f"interrupted: nothing is saved yet; {SAME}"),
    "training": (
        ".*step 3/6",
        f"interrupted: {FOLDER}/checkpoints/step-00000003 is saved; {RESUME}",
    ),
    "the last step": (".*step 6/6", SAVED),
    "the last validation": ("validating$", SAVED),
    "validating on all text": ("validating on all held-out text", SAVED),
    "the end": ("finished after", SAVED),
    "writing the report": ("report: ", SAVED),
    "samples": (
        "generate more with",
        f"interrupted: {FOLDER} is trained and saved; "
        f'generate with: agi2 generate {FOLDER} "..."',
    ),
}


def test_a_finished_tuning_is_to_be_chatted_with():
    config = Config(model_name="tiny", conversations=["chats.jsonl"])
    progress = TrainingProgress(["base", "chats.jsonl"])
    progress.begin(config)
    progress.is_finished = True
    ending = "chat with it: agi2 chat trained/tiny"
    assert progress.describe() == f"interrupted: trained/tiny is trained and saved; {ending}"


@pytest.fixture
def acting_at():
    """Call a function when a line is logged that matches a pattern, the first time."""
    filters = []

    def register(pattern, action):
        def act(record):
            if act in filters and re.match(pattern, record.getMessage()):
                filters.remove(act)
                log.removeFilter(act)
                action()
            return True

        filters.append(act)
        log.addFilter(act)

    yield register
    for act in filters:
        log.removeFilter(act)


@pytest.fixture
def place(tmp_path, monkeypatch):
    """A folder with a configuration, as the working directory."""
    monkeypatch.chdir(tmp_path)
    write_run(Path())
    return tmp_path


@pytest.fixture(scope="module")
def expected():
    """The weights of the run; filled by the first test."""
    return []


def weights():
    return Path(FOLDER, "model.safetensors").read_bytes()


@pytest.mark.parametrize("phase", PHASES)
def test_each_phase_is_answered_with_a_command_that_ends_the_same(
    phase, place, expected, capsys, acting_at
):
    if not expected:
        run(capsys, *COMMAND)
        expected.append(weights())
        Path("trained").rename("earlier")
    pattern, answer = PHASES[phase]
    number = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)[list(PHASES).index(phase) % 3]
    acting_at(pattern, lambda: signal.raise_signal(number))
    status, _, err = run(capsys, *COMMAND)
    assert status == 130
    assert "Traceback" not in err
    assert err.splitlines()[-1] == answer
    command = COMMAND
    if "agi2" in answer:
        command = shlex.split(answer.partition(" with: agi2 ")[2])
    assert run(capsys, *command)[0] == 0
    assert weights() == expected[0]


def test_an_interrupt_before_a_text_is_planned_is_answered(place, capsys, acting_at):
    acting_at("text: ", lambda: signal.raise_signal(signal.SIGTERM))
    status, out, err = run(capsys, "train", "corpus.txt")
    assert (status, out) == (130, "")
    assert err.splitlines()[-1] == f"interrupted: nothing is trained yet; {SAME}"
    assert not Path("trained").exists()


def test_the_configuration_that_was_planned_is_named(place):
    file = "trained/my book.toml"
    progress = TrainingProgress(["my book.txt"], file)
    progress.begin(load_config("tiny.toml"))
    again = "start again with: agi2 train 'trained/my book.toml'"
    assert progress.describe() == f"interrupted: nothing is saved yet; {again}"


def test_a_run_that_is_interrupted_before_it_resumes_has_lost_nothing(place, capsys, acting_at):
    run(capsys, *COMMAND, "--set", "max_steps=2")
    acting_at("tiny: ", lambda: signal.raise_signal(signal.SIGHUP))
    status, _, err = run(capsys, *COMMAND, "--resume")
    assert status == 130
    assert err.endswith(f"{FOLDER}/checkpoints/step-00000002 is saved; {RESUME}\n")


def test_an_ignored_signal_and_another_thread_are_left_alone(capsys):
    """As SIGHUP is ignored under nohup."""
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        with answering(str):
            assert signal.getsignal(signal.SIGHUP) is signal.SIG_IGN
            signal.raise_signal(signal.SIGHUP)
    finally:
        signal.signal(signal.SIGHUP, before)

    def work():
        with answering(str):
            assert signal.getsignal(signal.SIGTERM) is signal.SIG_DFL
            done.append(True)

    done = []
    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert done


def test_a_closed_terminal_does_not_interrupt_the_clean_up(capsys):
    cleaned = []

    def work():
        with answering(lambda: "nothing is saved"):
            try:
                signal.raise_signal(signal.SIGHUP)
            finally:
                signal.raise_signal(signal.SIGHUP)
                cleaned.append(True)

    with pytest.raises(KeyboardInterrupt):
        work()
    assert cleaned
    assert capsys.readouterr().err == "nothing is saved\n"
