"""`agi2 train my_book.txt`: which arguments are texts, the plan, and how its run is resumed."""

import os
import shutil
import signal
import sys
import threading
from pathlib import Path

import pytest

from src.cli.train_text import TextRun, default_name, find_configuration
from src.config_loader import load_config
from src.data.download_names import cached_path
from src.errors import AGI2Error
from src.train import planner as planning
from src.train.planner import SHAPES
from src.train.step import accumulate_gradients
from src.train.trackers import read_metrics
from tests.cli.commands import HOSTILE, run
from tests.conftest import make_text

# Of a text, a run of the smallest shape, not measured for long.
SHORT = ("--set", "device=cpu", "--set", "max_steps=4", "--set", "sample_tokens=5")
SHORT += ("--set", "max_length=5", "--set", "eval_interval=2", "--set", "checkpoint_interval=2")


@pytest.fixture
def place(tmp_path, monkeypatch):
    """A folder with a text, in which the commands are given; plans take no time."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(planning, "_BENCHMARK_SECONDS", 0)
    monkeypatch.setattr(planning, "SHAPES", SHAPES[:1])
    Path("my book.txt").write_text(make_text(600), encoding="utf-8")
    return tmp_path


def steps_of(folder):
    return max(line["step"] for line in read_metrics(Path(folder) / "metrics.jsonl"))


def stop_in_step(number, monkeypatch):
    steps = []

    def stopped(*arguments, **options):
        steps.append(1)
        if len(steps) == number:
            signal.raise_signal(signal.SIGINT)
        return accumulate_gradients(*arguments, **options)

    monkeypatch.setattr("src.train.accumulator.accumulate_gradients", stopped)


def test_a_text_is_planned_trained_resumed_and_trained_again(place, capsys, monkeypatch):
    with monkeypatch.context() as patch:
        stop_in_step(3, patch)
        status, out, err = run(capsys, "train", "my book.txt", *SHORT)
    assert (status, out) == (130, "")
    assert "predicted: 4 steps of " in err
    assert "wrote trained/my book.toml, the configuration of this run" in err
    assert err.endswith("; continue with: agi2 train 'trained/my book' --resume\n")
    assert err.count("read my book.txt: 1 file") == 1  # though the text is read twice
    config = load_config("trained/my book.toml", "training")
    assert (config.sources, config.model_name) == (["my book.txt"], "my book")
    assert (config.max_steps, config.max_minutes, config.vocab_size) == (4, 9.5, "auto")

    # The text means its run, as its configuration and its folder do.
    written = Path("trained/my book.toml").read_bytes()
    status, out, err = run(capsys, "train", "my book.txt", "--resume", "--set", "max_steps=5")
    assert status == 0
    assert "step-00000003 at step 3" in err
    assert "--- sample 3 ---" in out
    assert err.endswith("\nchat with it: agi2 chat 'trained/my book'\n")
    assert steps_of("trained/my book") == 5
    assert Path("trained/my book.toml").read_bytes() == written

    # A new run moves both away.
    status, _, err = run(capsys, "train", "my book.txt", *SHORT, "--minutes", "3")
    assert status == 0
    assert "trained/my book.toml exists: moved to trained/my book.1.toml" in err
    assert "trained/my book exists: moved to trained/my book.1" in err
    assert Path("trained/my book.1.toml").read_bytes() == written
    assert (steps_of("trained/my book"), steps_of("trained/my book.1")) == (4, 5)
    assert load_config("trained/my book.toml").max_minutes == 2.85
    assert run(capsys, "train", "trained/my book.toml", "--resume", "--quiet")[0] == 0


@pytest.mark.skipif(sys.platform == "win32", reason="pipes of POSIX")
def test_standard_input_is_saved_for_later_passes_and_resumes(place, capsys, pipe):
    text = make_text(600).encode()
    pipe(text)
    status, _, err = run(capsys, "train", "-", "--name", "mine", *SHORT)
    assert status == 0
    [saved] = Path("trained").glob("*.input")
    assert saved.read_bytes() == text
    assert f"saved standard input, {len(text) / 1000:.1f} KB, to {saved}" in err
    assert load_config("trained/mine.toml").sources == [str(saved)]
    pipe(text)
    given = ["train", "-", "--name", "mine", "--resume", "--set", "max_steps=6"]
    assert run(capsys, *given)[0] == 0
    assert steps_of("trained/mine") == 6
    # Another text is another run, and leaves nothing behind.
    pipe(text + b"more")
    status, _, err = run(capsys, *given)
    assert status == 2
    assert "trained/mine.toml trains on " in err
    pipe(b"")
    assert "standard input is empty: pipe a text into it" in run(capsys, *given)[2]
    assert list(Path("trained").glob("*.input")) == [saved]


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="needs named pipes")
def test_a_named_pipe_among_texts_keeps_its_suffix(place, monkeypatch):
    os.mkfifo("a.jsonl")
    line = b'{"text": "the old whale"}\n'
    writer = threading.Thread(target=lambda: Path("a.jsonl").write_bytes(line))
    writer.start()
    monkeypatch.setattr(TextRun, "plan", lambda self, quiet: self.sources)
    text = TextRun.from_arguments(["my book.txt", "a.jsonl"], None, "x", [], False)
    text.check()
    plain, saved = text.configure(True)
    writer.join()
    assert (plain, Path(saved).suffix) == ("my book.txt", ".jsonl")
    assert Path(saved).read_bytes() == line


def test_a_run_is_resumed_only_on_its_own_text(place, capsys):
    Path("a").mkdir()
    shutil.copy("my book.txt", "a/my book.txt")
    Path("trained").mkdir()
    Path("trained/my book.toml").write_text('sources = ["my book.txt"]\nmodel_name = "my book"\n')
    status, out, err = run(capsys, "train", "a/my book.txt", "--resume")
    assert (status, out) == (2, "")
    assert err == (
        "error: trained/my book.toml trains on my book.txt, not on a/my book.txt: name another "
        "run with --name, or resume that one: agi2 train 'trained/my book.toml' --resume\n"
    )
    status, _, err = run(capsys, "train", "my book.txt", "--resume", "--minutes", "3")
    assert status == 2
    assert "--minutes: trained/my book.toml is planned already" in err
    assert "--set max_minutes=3" in err


def test_a_run_without_its_plan_is_resumed_from_its_folder(place, capsys):
    Path("trained/my book").mkdir(parents=True)
    Path("trained/my book/config.toml").write_text(
        'sources = ["other.txt"]\nmodel_name = "my book"\n'
    )
    status, _, err = run(capsys, "train", "my book.txt", "--resume")
    assert status == 2
    assert "trained/my book trains on other.txt, not on my book.txt" in err


WRONG = [
    (["gone.txt"], "gone.txt: no such file or folder; name a text, a TOML file, or a run: agi2"),
    (["my book.txt", "gone.txt"], "gone.txt: no such file or folder; name a text"),
    (["*.md"], "*.md: no such file; paths are relative to "),
    (["nothing"], "nothing: no file in this folder has a format that is read"),
    (["trained"], "trained contains runs: name one of them"),
    (["foreign"], "foreign is a model of another project: make it one: agi2 import"),
    (["trained/run/checkpoints"], "contains a run's checkpoints: name the run's folder"),
    (["trained/run/metrics.jsonl"], "metrics.jsonl is part of a model: name its folder"),
    (["my book.txt", "my.toml"], "my.toml is a configuration or a run: name it alone"),
    (["trained/run", "my book.txt"], "trained/run is a configuration or a run: name it alone"),
    (["my.toml", "--minutes", "3"], "--minutes is for a text, and my.toml is a configuration"),
    (["my.toml", "--name", "x"], "--set model_name=x"),
    (["config", "--name", "x"], "--name is for a text, and config is a configuration or a run"),
    (["builtin:x"], "builtin:x: the built-in sources are builtin:python-docs, builtin:held-out"),
    (["my book.txt", "--minutes", "nan"], "not 'nan'; agi2 train --help"),
    (["my book.txt", "--minutes", "1", "--set", "max_minutes=2"], "--minutes and --set max_minu"),
    (["my book.txt", "--name", "a/b"], "--name: model_name 'a/b' is not a folder's name"),
    (["my book.txt", "--name", "a", "--set", "model_name=b"], "--name a and --set model_name=b"),
    (["my book.txt", "--set", "sources=a.txt"], "--set sources: name the texts as arguments"),
    (["my book.txt", "--set", "epoch=3"], "--set epoch: unknown key epoch; did you mean epochs?"),
    (["my book.txt", "--set", "model_embd=-1"], "--set model_embd: model_embd must be at least 1"),
    (["my book.txt", "--set", "max_minutes=-1"], "--set max_minutes: max_minutes must be"),
    (["my book.txt", "--set", "device=tpu"], "--set device: device 'tpu' is none of auto"),
    (["my book.txt", "--set", "model_embd=97"], "model_embd 97 is not divisible by model_head"),
    (["my book.txt", "--set", "tokenizer=none"], "tokenizer: 'none' is none of bpe, basic, gpt2"),
    (["my book.txt", "--set", "val_sources=none"], "none: no such file"),
    (
        ["my book.txt", "--set", "output_dir=my book.txt"],
        "so my book.txt/my book cannot be created",
    ),
    (["my book.txt", "--set", "resume=trained/run"], "--set resume=trained/run: name the run's"),
    (["my book.txt", "--set", "init_from=x"], "--set init_from: a plan is for a new model"),
    (
        ["my book.txt", "--set", "source_weights=[1, 2]"],
        "--set source_weights: source_weights has 2",
    ),
    (["my book.txt", "--set", "preprocess=none:f"], "preprocess"),
    (["nothing://a/b"], "nothing://a/b: no file system is called nothing"),
    (["small.txt"], "the text has 9 bytes, too few to plan for"),
]


@pytest.fixture
def many(place):
    """Files and folders of all kinds."""
    for folder in ("nothing", "trained/run/checkpoints", "foreign"):
        Path(folder).mkdir(parents=True)
    keys = 'sources = ["my book.txt"]\nmodel_name = "run"\n'
    for name in ("my.toml", "config", "trained/run/config.toml"):
        Path(name).write_text(keys)
    for name in ("trained/run/metrics.jsonl", "foreign/config.json", "foreign/model.safetensors"):
        Path(name).write_text("{}")
    Path("small.txt").write_text("some text")
    return place


@pytest.mark.parametrize(("arguments", "said"), WRONG, ids=str)
def test_what_cannot_be_trained_on_is_one_line(arguments, said, many, capsys):
    before = {path: path.stat().st_mtime_ns for path in many.rglob("*")}
    status, out, err = run(capsys, "train", *arguments, "--quiet")
    assert (status, out, err.count("\n")) == (2, "", 1), err
    assert said in err
    assert {path: path.stat().st_mtime_ns for path in many.rglob("*")}.keys() == before.keys()


def test_several_processes_need_a_configuration(place, capsys, monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "2")
    status, _, err = run(capsys, "train", "my book.txt")
    assert status == 2
    assert "several processes need a configuration: agi2 plan 'my book.txt' writes one" in err


def test_no_run_is_planned_where_another_trains(place, capsys, monkeypatch):
    def locked(folder):
        raise AGI2Error(f"{folder}: another process is training there")

    monkeypatch.setattr("src.cli.train_text.FolderLock", locked)
    status, _, err = run(capsys, "train", "my book.txt")
    assert status == 2
    assert err == "error: trained/my book: another process is training there\n"


def test_a_configuration_is_told_from_a_text(many):
    for path in ("my.toml", "MY.TOML", "config", "trained/run", "trained", "foreign", ""):
        assert find_configuration([path]) == path
    large = Path("large.txt")
    large.write_text('model_name = "x"\n' + "# a long text\n" * 100_000)
    Path("site").mkdir()
    Path("site/config.toml").write_text('title = "a web site"\n')
    Path("site/page.md").write_text("text")
    Path(".cargo").mkdir()
    Path(".cargo/config.toml").write_text("[build]\n")
    for path in (
        "my book.txt",
        "site",
        ".",
        "-",
        "builtin:python-docs",
        "http://a.example/b.toml",
        "s3://b/a",
    ):
        assert find_configuration([path]) is None
    assert find_configuration([str(large)]) is None
    assert find_configuration(["config", "my book.txt"]) is None
    assert find_configuration([HOSTILE]) is find_configuration(["a\0b"]) is None


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="needs named pipes")
def test_a_pipe_alone_is_a_configuration_as_before(many):
    os.mkfifo("pipe")
    assert find_configuration(["pipe"]) == "pipe"
    assert find_configuration(["pipe", "my book.txt"]) is None


def test_a_run_is_named_by_its_first_source(many):
    Path("notes.d").mkdir()
    for source, name in (
        ("my book.txt", "my book"),
        ("gone/a.jsonl.gz", "a"),
        ("a.tar.gz", "a"),
        ("v1.2.txt", "v1.2"),
        ("README", "README"),
        ("moby.1", "moby.1"),
        ("Dr. Jekyll and Mr. Hyde", "Dr. Jekyll and Mr. Hyde"),
        ("app.log.gz", "app"),
        ("table.xlsx", "table"),
        ("notes.d", "notes.d"),
        ("notes.d/", "notes.d"),
        (".", many.name),
        ("notes.d/..", many.name),
        ("/", "text"),
        ("*.txt", "text"),
        ("notes.d/**/*.txt", "notes.d"),
        ("-", "stdin"),
        ("builtin:python-docs", "python-docs"),
        ("https://me:secret@host.example/a%20book.txt?key=secret", "a book"),
        ("https://host.example/", "host.example"),
        ("s3://bucket/folder/a.jsonl.zst", "a"),
        ("hf://datasets/owner/name", "name"),
        ("s3://bucket", "bucket"),
        ("file:///home/me/b.txt", "b"),
        ("a\\b\x1b.txt", "a_b_"),
        ("x" * 300 + ".txt", "x" * 120),
    ):
        assert default_name(source) == name


def test_keys_about_sources_are_kept_and_do_not_disturb_the_measurement(place, capsys):
    Path("half.py").write_text("def of(text):\n    return text[: len(text) // 2]\n")
    shutil.copy("my book.txt", "b.txt")
    keys = {"source_weights": [1.0, 3.0], "preprocess": "half:of", "windows": "packed"}
    given = [f"source_weights={keys['source_weights']}", "preprocess=half:of", "windows=packed"]
    overrides = [part for each in given for part in ("--set", each)]
    status, _, err = run(capsys, "train", "my book.txt", "b.txt", *SHORT, *overrides)
    assert status == 0, err
    config = load_config("trained/my book.toml")
    assert {key: config[key] for key in keys} == keys
    size = len(make_text(600))
    assert f"text: {2 * (size // 2) / 1000:.1f} KB" in err


def test_a_url_is_planned_from_the_cache(place, capsys):
    url = "https://host.example/book.txt"
    cached_path(url).parent.mkdir(parents=True, exist_ok=True)
    shutil.copy("my book.txt", cached_path(url))
    try:
        assert run(capsys, "train", url, *SHORT, "--quiet")[0] == 0
    finally:
        cached_path(url).unlink()
    assert load_config("trained/book.toml").sources == [url]
    assert steps_of("trained/book") == 4
