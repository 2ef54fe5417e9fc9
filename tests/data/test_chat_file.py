import json
import os
import stat

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from src.data import chat_file
from src.data.chat_file import load_conversation, save_conversation
from src.data.chat_template import Message
from src.errors import AGI2Error
from tests.data.test_message_tree import said

TALK = said("Hi", "Hello 😀\nthere", system="Be kind")
WORDS = st.text(st.characters(exclude_categories=["Cs"]), min_size=1).filter(str.strip)


@given(
    st.lists(st.tuples(WORDS, WORDS), min_size=1, max_size=3), st.sampled_from(["json", "jsonl"])
)
@settings(max_examples=25)
def test_a_saved_conversation_loads_the_same_and_is_one_line(tmp_path_factory, pairs, suffix):
    path = tmp_path_factory.mktemp("chat") / f"chat.{suffix}"
    talk = said(*(text.strip() for pair in pairs for text in pair))
    save_conversation(talk, path)
    assert load_conversation(path) == talk
    assert path.read_bytes().count(b"\n") == 1


def test_a_json_file_is_replaced_and_json_lines_get_another_line(tmp_path):
    for name in ("chat.json", "chat.jsonl"):
        save_conversation(said("a", "b"), tmp_path / name)
        save_conversation(TALK, tmp_path / name)
    assert json.loads((tmp_path / "chat.json").read_text("utf-8")) == {
        "messages": [
            {"role": "system", "content": "Be kind"},
            {"role": "user", "content": "Hi"},
            {"role": "assistant", "content": "Hello 😀\nthere"},
        ]
    }
    lines = tmp_path / "chat.jsonl"
    assert load_conversation(lines) == TALK == load_conversation(lines, 2)
    assert load_conversation(lines, 1) == said("a", "b")
    with pytest.raises(AGI2Error, match=r"chat.jsonl has 2 conversations: no number 3$"):
        load_conversation(lines, 3)
    with pytest.raises(AGI2Error, match=r"chat.json has 1 conversation: no number 2$"):
        load_conversation(tmp_path / "chat.json", 2)


def test_a_line_without_its_end_is_ended_first(tmp_path):
    path = tmp_path / "chat.jsonl"
    save_conversation(TALK, path)
    path.write_bytes(path.read_bytes().rstrip() + b"")
    save_conversation(TALK, path)
    assert len(path.read_text("utf-8").splitlines()) == 2


@pytest.mark.skipif(os.name != "posix", reason="modes of POSIX")
@pytest.mark.parametrize("name", ["chat.json", "chat.jsonl"])
def test_a_new_file_is_private(tmp_path, name):
    before = os.umask(0)
    try:
        save_conversation(TALK, tmp_path / name)
    finally:
        os.umask(before)
    assert stat.S_IMODE((tmp_path / name).stat().st_mode) == 0o600


@pytest.mark.parametrize(
    ("name", "content", "problem"),
    [
        ("x.json", b"{}", 'is no conversation: it has no list "messages"'),
        ("x.json", b"[]", 'is no conversation: it has no list "messages"'),
        ("x.json", b"text", "is not JSON"),
        ("x.json", b'{"messages": []}', "a conversation needs a message of the user"),
        ("x.json", b'{"messages": [1]}', "message 1 must have a role"),
        ("x.json", b'{"messages": [{"role": "king", "content": "x"}]}', "has the role 'king'"),
        ("x.jsonl", b'\n\n{"messages": 3}\n\n', r"x.jsonl, line 3 is no conversation"),
        ("x.jsonl", b" \n", "has no conversation"),
    ],
)
def test_what_is_no_conversation_is_one_clear_line_with_the_file(tmp_path, name, content, problem):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(AGI2Error, match=problem) as caught:
        load_conversation(tmp_path / name)
    assert name in str(caught.value)
    assert len(caught.value.args) == 1


@pytest.mark.parametrize("name", ["x.json", "x.jsonl"])
@pytest.mark.parametrize("content", [b'{"name": "package"}\n', b"a text\n"])
def test_a_file_that_holds_something_else_stays_as_it_is(tmp_path, name, content):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(AGI2Error, match=r"name another file$"):
        save_conversation(TALK, tmp_path / name)
    assert (tmp_path / name).read_bytes() == content


@pytest.mark.parametrize("name", ["x.json", "x.jsonl"])
def test_a_folder_or_one_that_is_missing_is_refused(tmp_path, name):
    with pytest.raises(AGI2Error, match="no folder"):
        save_conversation(TALK, tmp_path / "no" / name)
    (tmp_path / name).mkdir()
    with pytest.raises(AGI2Error, match="is a folder"):
        save_conversation(TALK, tmp_path / name)
    with pytest.raises(AGI2Error, match="cannot be read"):
        load_conversation(tmp_path / name)


@pytest.mark.parametrize("suffix", ["json", "jsonl"])
@pytest.mark.parametrize(
    ("name", "problem"),
    [("x" * 300, "File name too long; name another file"), ("x\0", "has a NUL character")],
)
def test_a_name_that_cannot_be_one_is_refused(tmp_path, name, problem, suffix):
    with pytest.raises(AGI2Error, match=f"^cannot write .*{problem}"):
        save_conversation(TALK, tmp_path / f"{name}.{suffix}")
    with pytest.raises(AGI2Error, match="cannot be read"):
        load_conversation(tmp_path / f"{name}.{suffix}")


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="needs mkfifo")
def test_a_pipe_does_not_block(tmp_path):
    os.mkfifo(tmp_path / "x.jsonl")
    with pytest.raises(AGI2Error, match="is a pipe"):
        save_conversation(TALK, tmp_path / "x.jsonl")


def test_what_a_full_disk_has_left_of_a_line_is_taken_back(tmp_path, monkeypatch):
    path = tmp_path / "x.jsonl"
    save_conversation(TALK, path)
    before = path.read_bytes()

    def full(descriptor):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(AGI2Error, match="No space left on device"):
        save_conversation(TALK, path)
    assert path.read_bytes() == before


def test_a_file_that_is_too_large_is_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(chat_file, "MAX_JSON_BYTES", 10)
    (tmp_path / "x.json").write_text('{"messages": []}')
    with pytest.raises(AGI2Error, match="is larger than 10 B"):
        load_conversation(tmp_path / "x.json")


def test_half_a_character_is_replaced(tmp_path):
    save_conversation([Message("user", "a\ud800")], tmp_path / "x.json")
    assert load_conversation(tmp_path / "x.json") == [Message("user", "a?")]
