"""The commands about tokenizers."""

import re
import shutil

import pytest

from src.cli import tokenizer_argument, tokenizer_report
from src.tokenizer import BasicTokenizer, BPETokenizer, load_tokenizer
from tests.cli.commands import HOSTILE, run

TEXT = "Call me Ishmael. Some years ago, in 1851, I thought I would sail about a little.\n" * 30


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A text, a byte-level tokenizer of it, and one by character."""
    folder = tmp_path_factory.mktemp("tokenizers")
    (folder / "text.txt").write_text(TEXT, encoding="utf-8")
    bpe, basic = BPETokenizer(300, special_tokens=["<|im_end|>"]), BasicTokenizer("abcde ")
    bpe.fit(TEXT)
    bpe.save(folder / "bpe")
    basic.save(folder / "basic")
    return folder


@pytest.fixture(autouse=True)
def no_cache(monkeypatch):
    """No GPT-2 of this machine."""
    monkeypatch.setattr(tokenizer_argument, "try_to_load_from_cache", lambda *_: None)


def test_a_trained_tokenizer_is_saved_and_described(folder, tmp_path, capsys):
    out = tmp_path / "new" / "mine"
    options = ["--vocab-size", 290, "--special-token", "<a>", "--special-token", "<b>"]
    options += ["--pretokenizer", "gpt4", "--split-digits", "--out", out]
    status, printed, log = run(capsys, "tokenizer", "train", folder / "text.txt", *options)
    assert status == 0
    tokenizer = load_tokenizer(out)
    expected = BPETokenizer(
        290, special_tokens=["<a>", "<b>"], pretokenizer="gpt4", split_digits=True
    )
    expected.fit(TEXT)
    assert tokenizer.fingerprint == expected.fingerprint
    assert printed.startswith(
        "byte-level BPE, 290 tokens\n3 special tokens: <|endoftext|> = 0, <a> = 288, <b> = 289\n"
    )
    assert f'tokenizer = "{out}"' in log


def test_the_size_is_automatic_by_default(folder, tmp_path, capsys):
    options = ["--out", tmp_path / "x", "-q"]
    assert run(capsys, "tokenizer", "train", folder / "text.txt", *options)[0] == 0
    assert 257 < load_tokenizer(tmp_path / "x").vocab_size <= 512


@pytest.mark.parametrize(
    ("arguments", "problem"),
    [
        (["train", "TEXT", "--out", "NEW", "--vocab-size", "many"], "--vocab-size: 'many' is nei"),
        (["train", "TEXT", "--out", "NEW", "--vocab-size", "9" * 40], "is neither a number nor au"),
        (["train", "TEXT", "--out", "NEW", "--vocab-size", "5"], "vocab_size must be at least 257"),
        (
            ["train", "TEXT", "--out", "NEW", "--pretokenizer", "x"],
            "--pretokenizer: 'x' is neither",
        ),
        (
            ["train", "TEXT", "--out", "NEW", "--special-token", ""],
            "special_tokens: .* is not a st",
        ),
        (["train", "TEXT", "--out", "BPE"], "exists: name another place"),
        (["train", "NO.txt", "--out", "NEW"], r"NO\.txt: no such file"),
        (["train", "TEXT"], "issing option '--out'"),
        (["train", "--out", "NEW"], "issing argument 'SOURCE...'"),
        (["inspect", "NO"], "no tokenizer at .*NO: give a tokenizer.json"),
        (["inspect", "BPE", "NO.txt"], r"NO\.txt: no such file"),
        (["compare", "BPE"], "compare needs a tokenizer and a text"),
        (["compare", "BPE", "NO", "TEXT"], "no tokenizer at"),
        (["compare", "BPE", "NO.txt"], r"NO\.txt: no such file"),
        (["compare", "BPE", ""], "'': there is no text to compare on"),
        (["compare"], "issing argument"),
        (["inspect"], "issing argument 'TOKENIZER'"),
    ],
)
def test_bad_input_is_one_line(folder, tmp_path, capsys, arguments, problem):
    places = {
        "TEXT": folder / "text.txt",
        "BPE": folder / "bpe",
        **{name: tmp_path / name for name in ("NEW", "NO", "NO.txt")},
    }
    arguments = [places.get(each, each) for each in arguments]
    status, printed, log = run(capsys, "tokenizer", *arguments)
    assert (status, printed) == (2, "")
    assert len(log.splitlines()) == 1
    assert re.search(f"^error: .*{problem}", log)
    assert not (tmp_path / "NEW").exists()


def test_a_tokenizer_is_described(folder, capsys):
    for place in (folder / "bpe", folder / "bpe" / "tokenizer.json"):
        status, printed, _ = run(capsys, "tokenizer", "inspect", place)
        assert status == 0
        first, special, longest, *_ = printed.splitlines()
        assert first == "byte-level BPE, 300 tokens"
        assert special == "2 special tokens: <|endoftext|> = 0, <|im_end|> = 299"
        assert longest.startswith("longest tokens: '")
        assert all(len(line) <= 80 for line in printed.splitlines())
    assert "basic, 8 tokens" in run(capsys, "tokenizer", "inspect", folder / "basic")[1]


def test_a_text_is_split_with_bars_and_nothing_in_it_controls_the_terminal(folder, capsys):
    text = f"Call me é a\n\nb {HOSTILE}"
    status, printed, _ = run(capsys, "tokenizer", "inspect", folder / "bpe", text)
    assert status == 0
    tokens = load_tokenizer(folder / "bpe").encode(text)
    assert f"{len(tokens)} tokens, " in printed
    head, _, view = printed.partition("\n\n")
    assert view.replace("\n", "").count("|") + view.count("\\n\n") == len(tokens) - 1
    assert "\\xc3|\\xa9" in view
    assert not set(printed) & set("\x1b\x07\r\u202e\u2028\x9b")
    assert re.search(
        r"\d+ tokens that the text does not use: '.*', \.\.\.", head.replace("\n ", "")
    )


def test_a_text_with_a_null_character_names_no_file(folder, capsys):
    status, printed, _ = run(capsys, "tokenizer", "inspect", folder / "bpe", "a\0b")
    assert status == 0
    assert "text: 3 B, 3 tokens" in printed
    assert "\0" not in printed


def test_a_long_text_is_shown_in_part(folder, capsys, monkeypatch):
    monkeypatch.setattr(tokenizer_report, "_SHOWN_TOKENS", 10)
    _, printed, _ = run(capsys, "tokenizer", "inspect", folder / "bpe", folder / "text.txt")
    total = len(load_tokenizer(folder / "bpe").encode(TEXT))
    assert printed.endswith(f"\nand {total - 10:,} more tokens\n")


def test_lost_characters_are_counted(folder, capsys):
    _, printed, _ = run(capsys, "tokenizer", "inspect", folder / "basic", "a xyz")
    assert "<unk>: 3 tokens, whose text is lost" in printed
    _, printed, _ = run(capsys, "tokenizer", "inspect", folder / "basic", "abcde")
    assert "<unk>: " not in printed
    assert "1 token that the text does not use: ' '" in printed


def test_in_a_terminal_adjacent_tokens_have_other_colors(folder, capsys, monkeypatch):
    monkeypatch.setenv("FORCE_COLOR", "1")
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.delenv("NO_COLOR", raising=False)
    _, printed, _ = run(capsys, "tokenizer", "inspect", folder / "basic", "ab \x1b")
    assert re.findall(r"\x1b\[([\d;]+)m([^\x1b]+)\x1b\[0m", printed) == [
        ("30;46", "a"),
        ("30;42", "b"),
        ("30;43", " "),
        ("30;45", "\ufffd"),
    ]


def test_tokenizers_are_compared_on_a_text(folder, capsys, monkeypatch):
    cached = {"gpt2": str(folder / "gpt2")}
    shutil.copytree(folder / "bpe", folder / "gpt2", dirs_exist_ok=True)
    monkeypatch.setattr(
        tokenizer_argument, "try_to_load_from_cache", lambda name, file: cached.get(name)
    )
    status, printed, _ = run(
        capsys, "tokenizer", "compare", folder / "bpe", folder / "basic", folder / "text.txt"
    )
    assert status == 0
    head, *rows = (re.split(" {2,}", line) for line in printed.splitlines())
    names = ["tokenizer", "vocabulary", "tokens", "bytes/token", "tokens/word", "unused", "<unk>"]
    assert head == names
    names = [str(folder / "bpe"), str(folder / "basic"), "gpt2"]
    assert [row[0] for row in rows] == names
    for row, name in zip(rows, (*names[:2], folder / "bpe"), strict=True):
        ids = load_tokenizer(name).encode(TEXT)
        assert row[2] == f"{len(ids):,}"
        assert row[3] == f"{len(TEXT) / len(ids):.2f}"
    assert rows[1][6] == f"{load_tokenizer(folder / 'basic').encode(TEXT).count(0):,}"
    _, printed, _ = run(capsys, "tokenizer", "compare", "gpt2", "several words of text")
    assert [line.split()[0] for line in printed.splitlines()] == ["tokenizer", "gpt2"]
    assert "<unk>" not in printed


def test_gpt2_is_downloaded_where_it_is_named(capsys, monkeypatch, folder):
    fetched = []
    made = load_tokenizer(folder / "bpe")
    monkeypatch.setattr(
        tokenizer_argument,
        "new_tokenizer",
        lambda name, size: fetched.append(name) or (made, False),
    )
    assert run(capsys, "tokenizer", "inspect", "gpt2")[0] == 0
    assert fetched == ["gpt2"]


def test_the_tokenizer_of_a_run_is_named_by_its_configuration(trained, capsys):
    _, by_file, _ = run(capsys, "tokenizer", "inspect", trained, "one two", "-q")
    _, by_folder, _ = run(
        capsys, "tokenizer", "inspect", trained.parent / "trained/tiny", "one two"
    )
    assert by_file == by_folder
    assert "byte-level BPE, 270 tokens" in by_file


def test_a_name_with_a_null_character_is_a_text(folder, capsys):
    status, printed, _ = run(capsys, "tokenizer", "inspect", folder / "bpe", "a \0 b")
    assert status == 0
    assert "\\x00" in printed
