import io
import sys

import pytest
from prompt_toolkit.application import create_app_session, get_app_session
from prompt_toolkit.completion import CompleteEvent
from prompt_toolkit.document import Document
from prompt_toolkit.input import create_pipe_input
from prompt_toolkit.output import DummyOutput

from src.cli.chat_commands import COMMANDS, Chat, settable_keys
from src.cli.chat_input import ChatCompleter, open_session, prompt_on_terminal
from tests.test_interactive import says
from tests.tiny_models import byte_tokenizer

ENTER, ALT_ENTER, TAB = "\r", "\x1b\r", "\t"


@pytest.fixture(scope="module")
def chat():
    prompt = says(byte_tokenizer(), "Hello.\n\n", "Hi")
    prompt.new_branch("idea")
    return Chat({"": prompt})


def completions(chat, text):
    found = ChatCompleter(chat).get_completions(Document(text), CompleteEvent())
    return [text[: len(text) + each.start_position] + each.text for each in found]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("/", [f"{name} " for name in COMMANDS]),
        ("/sa", ["/save "]),
        ("/set ", [f"/set {key} " for key in settable_keys()]),
        ("/set temp", ["/set temperature "]),
        ("/set speculative ", ["/set speculative none", "/set speculative ngram"]),
        ("/set chat_stats=f", ["/set chat_stats=false"]),
        ("/set quantize", []),  # not while a chat goes on
        ("/branch ", ["/branch 1", "/branch idea"]),
        ("/branch i", ["/branch idea"]),
        ("/undo ", []),
        ("a message /s", []),
        ("", []),
        ("/set\n", []),
    ],
)
def test_commands_keys_values_and_branches_are_completed(chat, text, expected):
    assert completions(chat, text) == expected


def test_files_are_completed(chat, tmp_path, monkeypatch):
    (tmp_path / "talk.json").touch()
    monkeypatch.chdir(tmp_path)
    for command in ("/save", "/load"):
        assert completions(chat, f"{command} ta") == [f"{command} talk.json"]


def typed(chat, keys):
    with create_pipe_input() as keyboard:
        keyboard.send_text(keys)
        with create_app_session(input=keyboard, output=DummyOutput()):
            return open_session(chat).prompt()


@pytest.mark.parametrize(
    ("keys", "expected"),
    [
        (f"one{ALT_ENTER}two{ENTER}", "one\ntwo"),
        ("\x1b[200~one\r\ntwo\nthree\x1b[201~" + ENTER, "one\ntwo\nthree"),
        (f"/und{TAB}{ENTER}", "/undo "),
        (f"/set temper{TAB}0{ENTER}", "/set temperature 0"),
        (f"a{TAB}b{ENTER}", "ab"),
    ],
)
def test_a_message_may_have_lines_and_tab_completes(chat, keys, expected):
    assert typed(chat, keys) == expected


class Stream(io.StringIO):
    def __init__(self, is_terminal):
        super().__init__()
        self._is_terminal = is_terminal

    def isatty(self):
        return self._is_terminal

    def fileno(self):
        return 2


@pytest.mark.parametrize(
    ("stdout", "stderr", "is_moved"),
    [(True, True, False), (False, True, True), (False, False, False)],
)
def test_the_prompt_does_not_go_where_replies_are_piped(monkeypatch, stdout, stderr, is_moved):
    monkeypatch.setenv("TERM", "xterm")
    out, err = Stream(stdout), Stream(stderr)
    monkeypatch.setattr(sys, "stdout", out)
    monkeypatch.setattr(sys, "stderr", err)
    before = get_app_session()
    with prompt_on_terminal():
        assert (get_app_session() is not before) == is_moved
        if is_moved:
            get_app_session().output.write("> ")
            get_app_session().output.flush()
    assert (out.getvalue(), err.getvalue()) == ("", "> " if is_moved else "")


@pytest.mark.parametrize(("stdout", "stderr"), [(True, True), (False, True), (True, False)])
def test_a_terminal_without_cursor_control_gets_no_escape_codes(chat, monkeypatch, stdout, stderr):
    monkeypatch.setenv("TERM", "dumb")
    out, err = Stream(stdout), Stream(stderr)
    monkeypatch.setattr(sys, "stdout", out)
    monkeypatch.setattr(sys, "stderr", err)
    with create_pipe_input() as keyboard, create_app_session(input=keyboard), prompt_on_terminal():
        keyboard.send_text(f"Hi{ENTER}")
        assert open_session(chat).prompt("> ") == "Hi"
    used, other = (out, err) if stdout else (err, out)
    assert used.getvalue().startswith("> Hi")
    assert "\x1b" not in used.getvalue()
    assert other.getvalue() == ""
