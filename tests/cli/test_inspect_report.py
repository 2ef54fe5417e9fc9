"""agi2 data inspect."""

import json
import locale
from collections import Counter
from pathlib import Path

import pytest
from rich.cells import cell_len

from src.cli import inspect_report
from src.data.chat_template import Message
from src.data.corpus import key_for
from src.data.documents import ReadOptions
from src.data.download_names import cached_path
from src.tokenizer import BPETokenizer
from tests.cli.commands import HOSTILE, run, write_run
from tests.conftest import make_text
from tests.data.chats import messages_lines


@pytest.fixture
def place(tmp_path, monkeypatch):
    """A folder with texts of several kinds, in which the commands are given."""
    monkeypatch.chdir(tmp_path)
    folder = tmp_path / "texts"
    folder.mkdir()
    text = make_text(300)
    (folder / "a.txt").write_text(text, encoding="utf-8")
    (folder / "copy.txt").write_text(text, encoding="utf-8")
    (folder / "near.txt").write_text(text.replace("whale", "shark", 1), encoding="utf-8")
    (folder / "odd.txt").write_text("cafÃ© \x07 \ufffd " * 3, encoding="utf-8")
    (folder / "picture.png").write_bytes(b"\x89PNG\0\0")
    (folder / "table.csv").write_text("title,body\nt,Война и мир\n", encoding="utf-8")
    return folder


def test_a_report_says_what_the_text_contains(place, capsys):
    status, out, err = run(capsys, "data", "inspect", "texts", "-s", "text_field=body", "--quiet")
    assert (status, err) == (0, "")
    text = " ".join(out.split())
    for said in (
        "texts: 5 files, 5 documents, ",
        "skipped: 1 in no format that is read (6 B), such as texts/picture.png",
        "documents 5",
        "bytes each, with a vocabulary of ",
        "trained on this text",
        "scripts Latin 99.",
        "copies 1 document, ",
        "such as texts/copy.txt, a copy of texts/a.txt",
        "near copies 1 document, ",
        "such as texts/near.txt dedup = true removes them from the training text",
        "odd control characters: 3 in 1 document, such as texts/odd.txt",
        "odd replacement characters (U+FFFD): 3 in 1 document",
        "odd UTF-8 that was decoded as another encoding: 3 in 1 document",
        "shortest documents, in characters: 11 texts/table.csv:",
        "lengths of documents (median ",
    ):
        assert said in text, said
    assert max(map(len, out.splitlines())) <= 80


def test_conversations_of_a_configuration_are_what_is_said(place, capsys):
    chats = [[Message("user", f"Was ist {n} + {n}?"), Message("assistant", f"Das ist {2 * n}.")]
             for n in range(30)]  # fmt: skip
    Path("chats.jsonl").write_bytes(messages_lines([*chats, chats[0]]))
    Path("run.toml").write_text('conversations = ["chats.jsonl"]\nmodel_name = "a"\n')
    status, out, _ = run(capsys, "data", "inspect", "run.toml", "--json", "--quiet")
    assert status == 0
    found = json.loads(out)
    assert found["documents"] == 31
    assert found["exact_copies"]["documents"] == 1
    assert found["longest"][0]["characters"] == len("Was ist 10 + 10?\n\nDas ist 20.")
    Path("run.toml").write_text('sources = ["texts/a.txt"]\nconversations = ["chats.jsonl"]\n')
    _, out, _ = run(capsys, "data", "inspect", "run.toml", "--quiet")
    assert "chats.jsonl: 1 file, 31 conversations, " in out
    assert "texts/a.txt: 1 file, 1 document, " in out
    assert "documents   32" in out


def test_conversations_are_known_without_a_configuration(place, tmp_path, capsys):
    long = [Message("user", "w " * 700), Message("assistant", "x " * 700)]
    chats = [[Message("system", "Be brief."), Message("user", f"How much is {n} and {n}?"),
              Message("assistant", f"{2 * n}.")] for n in range(30)]  # fmt: skip
    data = messages_lines([*chats, long])
    Path("chats.jsonl").write_bytes(data + b'{"messages": [{"role": "user", "content": "a"}]}\n')
    Path("table.csv").write_text("prompt,completion\nHi,Hello\n", encoding="utf-8")
    status, out, err = run(capsys, "data", "inspect", "chats.jsonl", "table.csv", "--quiet")
    assert (status, err) == (0, "")
    text = " ".join(out.split())
    for said in (
        "chats.jsonl: 1 file, 31 conversations, ",
        "skipped: 1 broken conversation (",
        "table.csv: 1 file, 1 conversation, ",
        "documents 32",
        "dialogue 32 conversations, 32 turns, 30 with a system message",
        "targets ",
        "what the assistant says",
        "(chats.jsonl:31); with seq_len = 1024: 1 longer, cut at turns; 1 with a turn longer",
        "near copies none",
    ):
        assert said in text, said
    assert max(map(len, out.splitlines())) <= 80
    # Beside a text, with the positions of a model.
    Path("model").mkdir()
    Path("model/config.toml").write_text('model_name = "m"\nmodel_positions = 9000\n')
    tokenizer = BPETokenizer(300)
    tokenizer.fit([make_text(100)])
    tokenizer.save(tmp_path / "model")
    for model in ("model", "model/config.toml"):
        given = ["chats.jsonl", "texts/a.txt", "--tokenizer", model, "--json"]
        found = json.loads(run(capsys, "data", "inspect", *given)[1])
        assert found["documents"] == 32
        assert (found["conversations"]["seq_len"], found["conversations"]["cut"]) == (9000, 0)
    # What is text as well is conversations if somebody speaks there.
    Path("talk.txt").write_text("Anna: Hi\nBen: Hello\n", encoding="utf-8")
    for options, count in (
        (["-s", "speakers=Anna, Ben"], "1 conversation, "),
        ([], "1 document, "),
    ):
        assert (
            f"talk.txt: 1 file, {count}" in run(capsys, "data", "inspect", "talk.txt", *options)[1]
        )


@pytest.mark.parametrize(
    ("source", "expected"),
    [
        ("builtin:conversations", "conversations"),
        ("builtin:held-out-conversations", "conversations"),
        ("-", "sources"),
    ],
)
def test_what_has_conversations_without_being_read(source, expected):
    assert key_for(source, ReadOptions()) == expected


MESSAGES = [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Hello"}]
SHAREGPT = [{"from": "human", "value": "Hi"}, {"from": "gpt", "value": "Hello"}]


@pytest.mark.parametrize(
    "saved", [{"messages": MESSAGES}, MESSAGES, {"conversations": SHAREGPT}, SHAREGPT]
)
def test_a_file_with_one_conversation_is_found_to_be_one(place, capsys, saved):
    Path("chat.json").write_text(json.dumps(saved, indent=1))
    assert key_for("chat.json", ReadOptions()) == "conversations"
    status, out, err = run(capsys, "data", "inspect", "chat.json")
    assert (status, err) == (0, "")
    assert "chat.json: 1 file, 1 conversation, " in out


def test_pairs_are_what_is_said_in_both_conversations(place, capsys):
    pair = {"prompt": "Who?", "chosen": "Ahab, the captain.", "rejected": "Nobody."}
    Path("pairs.jsonl").write_text(f"{json.dumps(pair)}\n" * 3)
    Path("run.toml").write_text('preferences = ["pairs.jsonl"]\nmodel_name = "a"\n')
    texts = ["Who?", "Ahab, the captain.", "Who?", "Nobody."]
    for named in ("pairs.jsonl", "run.toml"):
        status, out, _ = run(capsys, "data", "inspect", named, "--json")
        found = json.loads(out)
        assert (status, found["documents"]) == (0, 3)
        assert found["characters"] == 3 * len("\n\n".join(texts))
        _, out, _ = run(capsys, "data", "inspect", named)
        assert "dialogue    3 pairs of two conversations, 6 turns" in out
        assert out.startswith("pairs.jsonl: 1 file, 3 pairs, ")
        assert "2 documents, 66.7 % of the text" in " ".join(out.split())
    status, _, err = run(capsys, "data", "inspect", "pairs.jsonl", "texts/a.txt")
    assert (status, err.count("\n")) == (2, 1)
    assert "pairs.jsonl has pairs of preferences (chosen and rejected), texts/a.txt has not" in err


def test_json_has_the_same(place, capsys):
    status, out, err = run(
        capsys, "data", "inspect", "texts/a.txt", "texts", "--json", "-s", "text_field=body", "-q"
    )
    assert (status, err) == (0, "")
    found = json.loads(out)
    assert found["documents"] == 5
    assert [source["name"] for source in found["sources"]] == ["texts/a.txt", "texts"]
    skipped = {entry["reason"]: entry for entry in found["sources"][1]["skipped"]}
    assert skipped["read already"]["count"] == 1
    assert skipped["in no format that is read"]["example"] == "texts/picture.png"
    assert found["exact_copies"]["examples"] == [["texts/copy.txt", "texts/a.txt"]]
    assert found["odd_characters"]["control characters"]["count"] == 3
    assert sum(each["documents"] for each in found["lengths"]) == 5
    assert found["shortest"][0]["characters"] == 11
    assert 0.99 <= sum(found["languages"].values()) <= 1.01
    assert found["tokens"]["tokens"] > 0


def test_tokens_are_counted_with_a_named_tokenizer(place, tmp_path, capsys):
    tokenizer = BPETokenizer(300)
    tokenizer.fit([make_text(100)])
    tokenizer.save(tmp_path / "vocabulary")
    given = ["data", "inspect", "texts/a.txt", "--tokenizer", "vocabulary"]
    _, out, _ = run(capsys, *given)
    count = len(tokenizer.encode((place / "a.txt").read_text("utf-8")))
    assert f"tokens      {count:,}, " in out
    assert f"bytes each, with vocabulary ({tokenizer.vocab_size} tokens)" in " ".join(out.split())
    assert json.loads(run(capsys, *given, "--json")[1])["tokens"]["tokenizer"] == "vocabulary"


def test_what_a_function_of_the_user_does_is_counted(place, capsys):
    Path("short.py").write_text("def keep(text):\n    return text if len(text) > 99 else None\n")
    given = ["data", "inspect", "texts/a.txt", "texts/odd.txt", "-s", "preprocess=short:keep"]
    status, out, _ = run(capsys, *given)
    assert status == 0
    assert "documents   1\n" in out
    assert "changed: 1 dropped by preprocess short:keep" in " ".join(out.split())
    found = json.loads(run(capsys, *given, "--json")[1])
    assert found["sources"][1]["preprocessed"][0]["count"] == 1


def test_a_configuration_names_its_sources(tmp_path, capsys):
    file = write_run(tmp_path)
    found = json.loads(run(capsys, "data", "inspect", file, "--json")[1])
    assert [source["name"] for source in found["sources"]] == [str(tmp_path / "corpus.txt")]


def test_only_the_beginning_of_a_large_text_trains_the_vocabulary(place, capsys, monkeypatch):
    monkeypatch.setattr("src.data.inspect._MAX_TRAINING_CHARACTERS", 1)
    _, out, _ = run(capsys, "data", "inspect", "texts/a.txt", "texts/near.txt")
    assert "trained on the first 1." in " ".join(out.split())
    assert "KB of it" in out


@pytest.mark.parametrize(("encoding", "bar"), [("UTF-8", "█"), ("utf8", "█"), ("latin-1", "#")])
def test_bars_are_in_the_encoding_of_the_terminal(encoding, bar, place, capsys, monkeypatch):
    monkeypatch.setattr(locale, "getencoding", lambda: encoding)
    _, out, _ = run(capsys, "data", "inspect", "texts/a.txt")
    assert bar * 28 in out
    assert out.isascii() == (bar == "#")


def test_a_clean_text_is_said_to_be_clean(place, capsys):
    out = run(capsys, "data", "inspect", "texts/a.txt")[1]
    assert "copies      none\nnear copies none\nodd         no odd characters\n" in out


def test_long_lists_of_scripts_are_cut():
    counts = Counter({f"s{index}": 10 + index for index in range(9)})
    shares = inspect_report._shares(counts)
    assert shares.startswith("s8 14.3 %, s7 13.5 %")
    assert shares.endswith(", others 26.2 %")
    assert inspect_report._shares(Counter()) == "none"
    assert inspect_report._percent(0.0001) == "<0.1 %"
    assert inspect_report._percent(0) == "0.0 %"


@pytest.mark.parametrize("letter", ["x", "漢"])
def test_long_names_are_cut_to_the_width(letter, place, capsys):
    name = letter * 75 + ".txt"
    (place / name).write_text("some text")
    out = run(capsys, "data", "inspect", str(Path("texts") / name))[1]
    line = next(line for line in out.splitlines() if line.startswith(" " * 11 + "9"))
    assert 78 <= cell_len(line) <= 80
    assert line.endswith(f"{letter}.txt")
    assert "..." in line


def test_what_is_shown_is_printable_and_has_no_secret(tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    name = HOSTILE.replace("/", "_") + ".txt"
    Path(name).write_text("some text")
    url = "https://me:pa55word@host.example/book.txt?key=t0ken"
    cached_path(url).parent.mkdir(parents=True, exist_ok=True)
    cached_path(url).write_text("some text of a book")
    try:
        for option in ([], ["--json"]):
            status, out, err = run(capsys, "data", "inspect", name, url, *option)
            assert status == 0
            assert out.replace("\n", "").isprintable()
            assert "pa55word" not in out + err
            assert "t0ken" not in out + err
    finally:
        cached_path(url).unlink()


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ([], "missing argument 'SOURCE...'"),
        (["gone.txt"], "gone.txt: no such file; paths are relative to "),
        (["texts/picture.png"], "texts/picture.png: not a text file"),
        (["texts/table.csv"], "no field 'text' among title, body; set text_field"),
        (["texts/a.txt", "--tokenizer", "none"], "no tokenizer at none"),
        (["texts/a.txt", "-s", "epochs=3"], "--set epochs: it does not change how a text is read"),
        (["texts/a.txt", "-s", "encoding=soup"], "--set encoding: encoding 'soup' is none"),
        (["texts/a.txt", "my.toml"], "my.toml is a configuration: name it alone"),
        (["my.toml"], "my.toml: no such file; resources/ contains examples"),
        (["empty.toml"], "empty.toml: sources is missing: there is nothing to inspect"),
        (["builtin:x"], "the built-in sources are builtin:python-docs, "),
    ],
    ids=str,
)
def test_what_cannot_be_inspected_is_one_line(arguments, said, place, capsys):
    Path("empty.toml").write_text('model_name = "x"\n')
    status, out, err = run(capsys, "data", "inspect", *arguments, "-q")
    assert (status, out, err.count("\n")) == (2, "", 1)
    assert err.startswith("error: ")
    assert said in err
