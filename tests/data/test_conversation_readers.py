"""Conversations are the same whatever format they are in; broken ones are told of by place."""

import gzip
import io
import json
import zipfile

import pyarrow.parquet
import pytest

from src.data import columnar
from src.data.conversations import to_text
from src.data.documents import ReadOptions
from src.data.readers import iterate_documents
from src.errors import AGI2Error
from tests.data.chats import (
    MANY_TURNS,
    ONE_TURN,
    make_conversation,
    messages_lines,
    random_conversations,
)
from tests.data.reading import lines_of, read_with_report, texts, write

CHATS = random_conversations(12, seed=1)
PAIRS = [
    make_conversation([('Hi, "you";\n\nthere\tare lines', "Two:\n1, 2")]),
    make_conversation([("A: <|user|> is text", "Ünïcödé 💡 \\n")]),
    make_conversation([("7 + 5?", "12")]),
]


def read(path, content=None, **options):
    return texts(path, content, are_conversations=True, **options)


@pytest.mark.parametrize("name", MANY_TURNS)
def test_all_formats_give_the_same_conversations(tmp_path, name):
    content = MANY_TURNS[name](CHATS)
    expected = [to_text(chat) for chat in CHATS]
    assert read(tmp_path / name, content) == expected
    assert read(tmp_path / f"{name}.gz", gzip.compress(content)) == expected
    archive = io.BytesIO()
    with zipfile.ZipFile(archive, "w") as file:
        file.writestr(f"inner/{name}", content)
    assert read(tmp_path / "a.zip", archive.getvalue()) == expected


@pytest.mark.parametrize("name", ["chats", "chats.txt"])
def test_json_lines_are_read_without_their_suffix(tmp_path, name):
    expected = [to_text(chat) for chat in CHATS]
    assert read(tmp_path / name, b"\n" + messages_lines(CHATS)) == expected


@pytest.mark.parametrize("name", ONE_TURN)
def test_questions_and_answers_are_conversations(tmp_path, name):
    assert read(tmp_path / name, ONE_TURN[name](PAIRS)) == [to_text(chat) for chat in PAIRS]


def test_columns_that_are_taken_are_noted(tmp_path):
    path = write(tmp_path / "a.csv", "n,frage,antwort\n1,Hi,Hello\n")
    _, report = read_with_report(path, are_conversations=True)
    note = "read in the columns 'frage' (the user's) and 'antwort' (the assistant's)"
    assert note in lines_of(report.notes)
    assert report.documents == 1


@pytest.mark.parametrize(
    "record",
    [
        [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}],
        {"messages": [{"role": "User", "content": "a"}, {"role": "assistant", "content": " b\n"}]},
        {"conversation": [{"from": "human", "value": "a"}, {"from": "bing", "value": "b"}]},
        {"prompt": [{"role": "user", "content": "a"}],
         "completion": [{"role": "assistant", "content": "b"}]},
        {"messages": [{"role": "user", "content": [" ", {"type": "text", "text": "a"}]},
                      {"role": "assistant", "content": "b", "weight": None}], "prompt": "other"},
        {"instruction": "a", "input": " ", "output": "b"},
        {"question": "a", "answer": "b", "system": ""},
        {"messages": [{"role": "user", "content": "a", "name": "Eva"},
                      {"role": "assistant", "content": "b", "tool_calls": [], "refusal": None}]},
    ],
)  # fmt: skip
def test_variants_of_the_formats_are_read(tmp_path, record):
    record = json.dumps(record).replace("bing", "gpt")
    expected = [to_text(make_conversation([("a", "b")]))]
    assert read(tmp_path / "a.jsonl", record) == expected
    assert read(tmp_path / "a.json", f"[{record}]" if record[0] != "[" else record) == expected


def test_a_system_message_may_be_a_field_of_its_own(tmp_path):
    expected = [to_text(make_conversation([("a", "b")], "s"))]
    turns = [{"from": "human", "value": "a"}, {"from": "gpt", "value": "b"}]
    for record in (
        {"system": "s", "conversations": turns},
        {"system": "t", "conversations": [{"from": "system", "value": "s"}, *turns]},
        {"system_prompt": "s", "prompt": "a", "response": "b"},
        {"system": "s", "prompt": turns[:1], "completion": turns[1:]},
    ):
        assert read(tmp_path / "a.jsonl", json.dumps(record)) == expected
    assert read(tmp_path / "a.csv", "system,user,assistant\ns,a,b\n") == expected


def test_an_instruction_with_an_input_is_one_message(tmp_path):
    expected = [to_text(make_conversation([("Sort:\n\n3 1 2", "1 2 3")]))]
    record = {"instruction": "Sort:", "input": "3 1 2", "output": "1 2 3"}
    assert read(tmp_path / "a.jsonl", json.dumps(record)) == expected
    table = "instruction,input,output\nSort:,3 1 2,1 2 3\n"
    assert read(tmp_path / "a.csv", table) == expected
    sink = io.BytesIO()
    pyarrow.parquet.write_table(pyarrow.table({key: [record[key]] for key in record}), sink)
    assert read(tmp_path / "a.parquet", sink.getvalue()) == expected


GOOD = json.dumps({"prompt": "a", "completion": "b"})
U, A, S = ({"role": role, "content": "x"} for role in ("user", "assistant", "system"))
BROKEN = {
    "{": "not JSON",
    "7": "7 is not a conversation",
    '"text"': "'text' is not a conversation",
    '{"text": "a"}': "it needs messages, conversations, or prompt and completion; its fields are "
    "text",
    "{}": "its fields are none",
    '{"prompt": null, "completion": "b"}': "prompt is None, not a text",
    '{"prompt": "a", "completion": " "}': r"message 2 \(assistant\) is empty",
    '{"messages": []}': "a conversation needs a message of the user",
    '{"messages": ["a"]}': "message 1: 'a' has no role and content",
    '{"messages": "a"}': "no conversation",
    '{"conversations": [{"from": "human"}]}': "has no role and content",
    json.dumps([U]): "no message is of the role assistant",
    json.dumps([S, U]): "no message is of the role assistant",
    json.dumps([S]): "needs a message of the user",
    json.dumps([A, U, A]): "message 1 is of the role assistant, where user is expected",
    json.dumps([U, U, A]): "message 2 is of the role user, where assistant is expected",
    json.dumps([U, A, S, U, A]): "message 3 is of the role system, where user is expected",
    json.dumps([U, A, A]): "message 3 is of the role assistant",
    json.dumps([U, {"role": "tool", "content": "x"}]): "the role 'tool' is none of system",
    json.dumps([U, {"role": 3, "content": "x"}]): "the role 3 is none of system",
    json.dumps([U, {"role": "assistant", "content": None}]): "its content is None, not a text",
    json.dumps([U, {"role": "assistant", "content": [{"image": "x"}]}]): "not a text",
    json.dumps([U, A | {"weight": 0}]): "weight 0 is not supported",
    json.dumps([U, A | {"tool_calls": [{"id": "1"}]}]): "message 2: tool_calls is not supported",
    json.dumps([U, {"role": "assistant", "content": None, "function_call": {"name": "f"}}]): (
        "message 2: function_call is not supported"
    ),
    json.dumps([U, A | {"content": "\n"}]): r"message 2 \(assistant\) is empty",
}


@pytest.mark.parametrize("line", BROKEN)
def test_a_broken_conversation_is_named_with_its_line(tmp_path, line):
    path = tmp_path / "a.jsonl"
    with pytest.raises(AGI2Error, match=BROKEN[line]) as caught:
        read(path, f"{line}\n")
    assert str(caught.value).startswith(f"{path}:1")
    assert "\n" not in str(caught.value)
    # One among many is skipped, and told of.
    write(path, "\n".join([*[GOOD] * 20, line, GOOD]))
    found, report = read_with_report(path, are_conversations=True)
    assert len(found) == 21
    assert f"{path}:21" in lines_of(report.skipped)
    with pytest.raises(AGI2Error, match=f"a.jsonl:21.*{BROKEN[line]}"):
        read(path, max_broken_lines=0)


def test_more_broken_conversations_than_allowed_are_an_error(tmp_path):
    lines = [GOOD] * 40 + [json.dumps([A])] * 3
    with pytest.raises(AGI2Error, match=r":41: .* the first of 3 broken lines, and max_br"):
        read(tmp_path / "a.jsonl", "\n".join(lines), max_broken_lines=2)
    with pytest.raises(AGI2Error, match="3 of 13 lines are broken, more than a tenth"):
        read(tmp_path / "a.jsonl", "\n".join(lines[30:]))
    rows = "user,assistant\n" + "a,b\n" * 20 + "a,\n"
    assert len(read(tmp_path / "a.csv", rows)) == 20
    with pytest.raises(AGI2Error, match=r"a.csv:22: message 2 \(assistant\) is empty"):
        read(tmp_path / "a.csv", rows, max_broken_lines=0)


def test_a_last_message_without_an_answer_is_dropped(tmp_path):
    path = write(tmp_path / "a.jsonl", f"{json.dumps([U, A, U])}\n{GOOD}\n")
    found, report = read_with_report(path, are_conversations=True)
    assert found[0] == to_text(make_conversation([("x", "x")]))
    assert f"1 last message without an answer, such as {path}:1" in lines_of(report.skipped)


def test_contents_are_normalized_not_the_canonical_text(tmp_path):
    # NFKC makes quotes and backslashes of their wide forms, which JSON would take for its own.
    record = json.dumps({"prompt": "a\r\nb\ud800", "completion": "ﬁ＂＼"})
    (text,) = read(tmp_path / "a.jsonl", record, normalize="nfkc")
    assert json.loads(text) == [["user", "a\nb?"], ["assistant", 'fi"\\']]
    (text,) = read(tmp_path / "a.jsonl", record, normalize="none")
    assert json.loads(text) == [["user", "a\r\nb?"], ["assistant", "ﬁ＂＼"]]


@pytest.mark.parametrize(
    ("name", "content", "problem"),
    [
        ("a.html", "<p>User: a</p>", "conversations are not read from a web page"),
        ("a.csv", "a,b,c\nx,y,z\n", "no columns prompt and completion among a, b, c"),
        ("a.csv", "question,answer,answer\na,b,c\n", "the column 'answer' occurs more than once"),
        ("a.csv", "question,answer\n", "contains no conversation"),
        ("a.csv", "role,content\nuser,Hi\n", "a row is one message"),
        ("a.jsonl", "[\n {}\n]\n", "a.jsonl:1: not JSON lines, but JSON over several: name it"),
        ("a.jsonl", "\n{\n}\n", "not JSON lines, but JSON over several"),
        ("a.txt", "Just a text.\nOf two lines.\n", "text before the first speaker; set speakers"),
        ("a.json", '{"a": [{"b": 1}]}', "its fields are b"),
        ("a.txt", "User: a\nAssistant:\n", r"a.txt:1: message 2 \(assistant\) is empty"),
    ],
)
def test_what_has_no_conversations_is_refused(tmp_path, name, content, problem):
    with pytest.raises(AGI2Error, match=problem):
        read(tmp_path / name, content)


@pytest.mark.parametrize("name", ["openai.jsonl", "pairs.jsonl", "pairs.csv", "messages.parquet"])
def test_conversations_that_are_read_as_text_are_recognized(tmp_path, name):
    with pytest.raises(AGI2Error, match=r"set text_field, or name conversations in the key conv"):
        texts(tmp_path / name, ONE_TURN[name](PAIRS))


def test_files_without_conversations_in_a_folder_are_skipped(tmp_path):
    write(tmp_path / "chats/a.jsonl", GOOD)
    write(tmp_path / "chats/readme.md", "# About these\n")
    found, report = read_with_report(tmp_path / "chats", are_conversations=True)
    assert len(found) == 1
    assert "readme.md" in lines_of(report.skipped)


def test_the_log_counts_conversations(tmp_path, caplog):
    caplog.set_level("INFO")
    path = write(tmp_path / "a.jsonl", GOOD)
    list(iterate_documents(str(path), ReadOptions(are_conversations=True)))
    assert f"read {path}: 1 file, 1 conversation, " in caplog.text


def test_large_conversations_come_in_pieces(tmp_path, monkeypatch):
    from src.data import format_readers, text

    monkeypatch.setattr(format_readers, "MAX_CHARACTERS", 50)
    monkeypatch.setattr(text, "MAX_CHARACTERS", 50)
    chat = make_conversation([("word " * 30, "x" * 200)])
    path = write(tmp_path / "a.jsonl", MANY_TURNS["openai.jsonl"]([chat, PAIRS[0]]))
    documents = list(iterate_documents(str(path), ReadOptions(are_conversations=True)))
    assert max(len(each.text) for each in documents) <= 50
    whole = "".join(("" if each.continues else "\n") + each.text for each in documents)
    assert whole.strip().split("\n") == [to_text(chat), to_text(PAIRS[0])]


def test_a_damaged_table_is_an_error(tmp_path, monkeypatch):
    monkeypatch.setattr(columnar, "_ROWS", 2)
    content = MANY_TURNS["messages.parquet"](CHATS)
    with pytest.raises(AGI2Error, match="damaged"):
        read(tmp_path / "a.parquet", content[:100])


PREPROCESS = """
def keep(text):
    if text == "drop":
        return None
    if text == "several":
        return [text, text]
    return " " if text == "empty" else text.upper()
"""


def test_a_function_is_given_the_text_of_each_message(tmp_path):
    write(tmp_path / "own.py", PREPROCESS)
    function = f"{tmp_path / 'own.py'}:keep"
    chats = [make_conversation(turns) for turns in (
        [("a", "b"), ("c", "d")], [("drop", "b")], [("a", "empty")], [("A", "B")],
    )]  # fmt: skip
    path = write(tmp_path / "a.jsonl", MANY_TURNS["openai.jsonl"](chats))
    found, report = read_with_report(path, are_conversations=True, preprocess=function)
    assert found == [
        to_text(make_conversation([("A", "B"), ("C", "D")])),
        to_text(make_conversation([("A", "B")])),
    ]
    assert (report.documents, report.dropped) == (2, 2)
    assert report.characters == sum(map(len, found))
    assert "1 changed by preprocess" in lines_of(report.preprocessed)
    several = MANY_TURNS["openai.jsonl"]([make_conversation([("a", "several")])])
    with pytest.raises(AGI2Error, match="returned 2 texts for one message of a conversation"):
        read(tmp_path / "b.jsonl", several, preprocess=function)
