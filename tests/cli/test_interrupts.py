"""What commands answer to Ctrl-C; `agi2 train` to any signal, in each phase of a run."""

import re
import shlex
import signal
import threading
from pathlib import Path

import pytest

from src.cli import interrupts
from src.cli.interrupts import TrainingProgress, answering, answering_ctrl_c
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
    "validating at the end": ("validating the best weights", SAVED),
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


NOTHING = "interrupted: nothing is saved; start again with the same command"
# Commands with what they call, which Ctrl-C interrupts; before and after it created the file `out`.
INTERRUPTED = {
    "plan corpus.txt --out out.toml": (
        "train.plan_file.write_plan",
        "interrupted: out.toml is saved; train with: agi2 train out.toml",
    ),
    "import folder out": (
        "formats.huggingface.import_huggingface",
        'interrupted: out is saved; try it: agi2 generate out "..."',
    ),
    "export trained/tiny out": (
        "formats.export.export_model",
        "interrupted: out is saved; it is the exported trained/tiny",
    ),
    "tokenizer train corpus.txt --vocab-size 300 --out out": (
        "tokenization.base.Tokenizer.save",
        'interrupted: out/tokenizer.json is saved; for a run: tokenizer = "out"',
    ),
    "data prepare tiny.toml --set token_cache=cache": (
        "cli.data_prepare.prepare_corpus",
        interrupts.PREPARED,
    ),
    "data inspect corpus.txt": ("cli.inspect_report.inspect_corpus", NOTHING),
    "tokenizer inspect trained/tiny corpus.txt": ("cli.tokenizer_report.open_tokenizer", NOTHING),
    "doctor tiny.toml": ("cli.doctor.examine", NOTHING),
    "verify-resume tiny.toml": ("cli.verify_resume.verify", NOTHING),
    "eval trained/tiny --text corpus.txt": ("evaluation.loss.evaluate_text", NOTHING),
    "compare trained/tiny trained/tiny": ("cli.compare.compare_runs", NOTHING),
    "generate trained/tiny The": ("generation.stream_text", NOTHING),
    "beam trained/tiny The": ("generation.generate_beam_texts", NOTHING),
    "chat trained/tiny": ("cli.chat.chat", interrupts.CHATTED),
    "list": ("cli.compare.print_runs", NOTHING),
}


def interrupt(*_, **__):
    raise KeyboardInterrupt


@pytest.fixture
def trained_place(trained, monkeypatch):
    """The folder of a trained model as the working directory."""
    monkeypatch.chdir(trained.parent)


@pytest.mark.parametrize("command", INTERRUPTED)
def test_ctrl_c_is_answered_by_each_command(command, trained_place, monkeypatch, capsys):
    work, answer = INTERRUPTED[command]
    monkeypatch.setattr(f"src.{work}", interrupt)
    status, _, err = run(capsys, *command.split())
    assert status == 130
    assert err.splitlines()[-1] == (NOTHING if " out" in answer else answer)


@pytest.mark.parametrize(
    "command", [each for each, (_, answer) in INTERRUPTED.items() if " out" in answer]
)
def test_ctrl_c_after_a_file_is_created_says_so(command, trained_place, monkeypatch, capsys):
    work, answer = INTERRUPTED[command]
    created = Path(re.search(r"out\S*", answer)[0])

    def create(*_, **__):
        created.parent.mkdir(exist_ok=True)
        created.touch()
        raise KeyboardInterrupt

    monkeypatch.setattr(f"src.{work}", create)
    status, _, err = run(capsys, *command.split())
    created.unlink()
    assert status == 130
    assert err.splitlines()[-1] == answer


def test_the_innermost_answer_is_the_only_one(capsys):
    with (
        pytest.raises(KeyboardInterrupt),
        answering_ctrl_c(lambda: "outer"),
        answering_ctrl_c(lambda: "inner"),
    ):
        raise KeyboardInterrupt
    assert capsys.readouterr().err == "inner\n"


def test_the_answer_is_below_the_text_that_was_generated(trained_place, monkeypatch, capsys):
    def pieces(*_, **__):
        yield " cat"
        raise KeyboardInterrupt

    monkeypatch.setattr("src.generation.stream_text", pieces)
    status, out, err = run(capsys, "generate", "trained/tiny", "The", "--quiet")
    assert (status, out, err) == (130, "The cat\n", NOTHING + "\n")
