"""`agi2 data prepare`: the text of a run is tokenized before it is trained."""

import re

import pytest

from src.cli.data_prepare import prepare_data
from src.config_loader import load_config
from src.data import units
from src.train import setup
from tests.cli.commands import run, write_run
from tests.data.chats import messages_lines, random_conversations


@pytest.fixture
def file(tmp_path):
    return write_run(tmp_path, token_cache=str(tmp_path / "cache"), max_steps=1)


def test_training_uses_what_was_prepared(file, capsys, monkeypatch):
    status, printed, log = run(capsys, "data", "prepare", file)
    assert status == 0
    lines = printed.splitlines()
    assert lines[0] == "text: 1 document, 3,902 characters, 3.9 KB"
    assert re.fullmatch(
        r"training: 1 part of a document, [\d,]+ tokens, \d\.\d\d bytes per token", lines[1]
    )
    assert re.fullmatch(r"validation: 1 part of a document, [\d,]+ tokens, .* per token", lines[2])
    assert lines[3] == "tokenizer: 270 tokens"
    assert re.fullmatch(r"prepared in \d+ s, \d+\.\d MB/s", lines[4])
    (folder,) = (path for path in (file.parent / "cache").iterdir() if path.is_dir())
    assert lines[5] == f"corpus: {folder}"
    assert "read " in log
    _, again, log = run(capsys, "data", "prepare", file, "--quiet")
    assert again.splitlines()[:4] == lines[:4]
    assert re.fullmatch(r"prepared in \d+ s: it was there", again.splitlines()[4])
    assert not log
    monkeypatch.setattr("src.data.build.iterate_documents", None)
    data = setup.prepare(load_config(file, "training"))
    assert (data.corpus.folder, data.corpus.is_new) == (folder, False)
    assert len(data.train_data.tokens) == int(
        re.findall(r"([\d,]+) tokens", lines[1])[0].replace(",", "")
    )


def test_parts_are_the_corpus_of_the_configuration(file, capsys, monkeypatch):
    monkeypatch.setattr(units, "_MIN_BYTES", 2000)
    for number in range(3):
        (file.parent / f"text{number}.txt").write_text("more text " * 300, encoding="utf-8")
    sources = f"sources={[str(path) for path in sorted(file.parent.glob('*.txt'))]}"
    for part in ("2/2", "1/2"):
        status, printed, log = run(
            capsys, "data", "prepare", file, "--part", part, "--set", sources
        )
        assert status == 0
    assert "this process did" not in log
    assert printed.splitlines()[4].endswith("it was there")
    folder = printed.splitlines()[5].removeprefix("corpus: ")
    config = load_config(file, "training", [sources])
    corpus = setup.prepare(config).corpus
    assert str(corpus.folder) == folder
    assert not corpus.is_new


def test_what_cannot_be_prepared_is_an_error(file, capsys, monkeypatch, tmp_path):
    for options, problem in (
        (["--part", "5/3"], "error: part '5/3' is not K/N with K from 1 to N, such as 3/16\n"),
        (["-s", "token_cache=off"], "error: the tokens would not be kept: set token_cache to a fo"),
    ):
        status, printed, log = run(capsys, "data", "prepare", file, *options)
        assert (status, printed) == (2, "")
        assert log.startswith(problem)
    assert not (tmp_path / "cache").exists()


def test_a_checkpoint_that_is_resumed_decides_on_the_tokenizer(file, capsys):
    run(capsys, "train", file)
    folder = file.parent / "trained" / "tiny"
    config = load_config(file, "training", [f"resume={folder}", "vocab_size=400"])
    lines = list(prepare_data(config))
    assert lines[3] == "tokenizer: 270 tokens"


def test_conversations_are_prepared_too(file, capsys):
    chats = file.parent / "chats.jsonl"
    chats.write_bytes(messages_lines(random_conversations(30)))
    more = ("--set", f"conversations={chats}", "--set", "sources=[]")
    status, printed, _ = run(capsys, "data", "prepare", file, "--part", "1/1", *more)
    assert status == 0
    assert re.search(r"^training: 2\d documents \(2\d conversations\), ", printed, re.MULTILINE)
    _, again, _ = run(capsys, "data", "prepare", file, *more)
    assert "it was there" in again
