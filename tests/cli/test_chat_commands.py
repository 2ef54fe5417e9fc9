"""The commands of the chat, line by line from a pipe."""

import io
import json
import sys

import pytest

from src.cli.chat import chat
from src.cli.chat_commands import COMMANDS, HELP, Chat, handle, settable_keys
from src.console import console
from src.data.chat_template import ChatTemplate
from src.interactive import InteractivePrompt
from tests.test_interactive import knows, says, talks
from tests.tiny_models import byte_tokenizer, random_model


@pytest.fixture(scope="module")
def roles():
    tokenizer = byte_tokenizer()
    ChatTemplate.add_to(tokenizer)
    return tokenizer


@pytest.fixture(scope="module")
def model(roles):
    return random_model(vocab_size=roles.vocab_size, max_seq_len=200, std=0.2)


@pytest.fixture
def pipe(monkeypatch, capsys):
    """Chat through a pipe; return the lines of standard output and of standard error."""

    def run(prompts, *lines):
        monkeypatch.setattr(sys, "stdin", io.StringIO("".join(f"{line}\n" for line in lines)))
        chat(prompts)
        out, err = capsys.readouterr()
        return out.splitlines(), err.splitlines()

    return run


def test_every_command_is_in_the_help():
    assert all(name in HELP for name in COMMANDS)
    assert max(map(len, HELP.splitlines())) <= 80


def test_retry_undo_edit_and_branches(roles, pipe):
    prompt = knows(roles, "Hi", "Hello", "So", "it is")
    out, err = pipe(prompt, "Hi", "So", "/undo", "/edit Yo", "/branch", "/branch 1", "/retry")
    assert out[:3] == ["Hello", "it is", "Hello"]
    assert err == [
        "undone: So",
        "  1  4 messages  it is",
        "* 2  2 messages  Hello",
        "in branch 1: it is",
        "at temperature 0 every reply to a message is the same: /set temperature 0.8",
    ]
    out, err = pipe(prompt, "/branch idea", "/branch 9", "/branch two words", "/undo")
    assert err == [
        "branch idea begins here; /branch lists all",
        "error: there is no branch '9'; the branches are 1, 2, 3, idea",
        "error: a branch is named by one word of at most 40 characters that is not a number, not "
        "'two words'",
        "undone: So",
    ]


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        ("/edit Yo", ["Hi", "Yo"]),
        ("/edit 1 Yo", ["Yo"]),
        ("/edit 2 Yo  man", ["Hi", "Yo  man"]),
        ("/edit 3 men", ["Hi", "3 men"]),  # there is no third message
        ("//edit", ["Hi", "So", "/edit"]),
        ("  Yo", ["Hi", "So", "Yo"]),
    ],
)
def test_which_message_is_edited(roles, model, pipe, line, expected):
    prompt = talks(model, roles)
    pipe(prompt, "Hi", "So", line)
    assert [each["content"] for each in prompt.messages if each["role"] == "user"] == expected


@pytest.mark.parametrize(
    ("line", "problem"),
    [
        ("/edit", "error: there is no message to edit"),
        ("/undo", "error: there is nothing to undo"),
        ("/save", "error: /save needs a file: /save chat.json, or a .jsonl to append a line to"),
        ("/save x.json", "error: there is no conversation to save yet"),
        ("/load", "error: /load needs a file: /load chat.json, or /load chats.jsonl N"),
        ("/load ~nobody-here/x.json", "error: ~nobody-here/x.json cannot be read: No such file"),
        (f"/load {'x' * 300} 2", "error: "),
        ("/load no.json", "error: no.json cannot be read: No such file or directory"),
        ("/probs", "error: there is no reply yet"),
        ("/set temperatur 1", "error: /set cannot change temperatur: did you mean temperature?"),
        ("/set qqq 1", "error: /set cannot change qqq: /set lists the keys"),
        (
            "/set quantize int8",
            "error: /set cannot change quantize: give it when the chat begins: agi2 chat ... "
            "--set quantize=int8",
        ),
        ("/set temperature hot", 'error: temperature must be a number, not "hot"'),
        ("/set max_length null", "error: max_length needs a value"),
        ("/set chat_stats 3", "error: chat_stats must be true or false, not 3"),
        ("/seed x", "error: seed must be an integer of at least 0 or None, not 'x'"),
        ("/nothing\x1b", "unknown command /nothing\\x1b; /help lists them"),
    ],
)
def test_a_wrong_command_is_one_line_and_the_chat_goes_on(roles, model, pipe, line, problem):
    out, err = pipe(talks(model, roles), line, "/help")
    assert err[0].startswith(problem.split(", not")[0])
    assert err[1:] == HELP.splitlines()
    assert out == []


def test_edit_without_text_needs_a_terminal(roles, model, pipe):
    _, err = pipe(talks(model, roles), "Hi", "/edit")
    assert err == ["error: /edit needs the new text: /edit TEXT, or /edit N TEXT"]


def test_a_conversation_is_saved_and_loaded(roles, pipe, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    prompt = knows(roles, "Hi", "Hello", "So", "it is")
    _, err = pipe(prompt, "Hi", "/save chats.jsonl", "So", "/save")
    assert err == ["saved to chats.jsonl", "saved to chats.jsonl"]
    lines = [json.loads(line) for line in (tmp_path / "chats.jsonl").read_text().splitlines()]
    assert [len(line["messages"]) for line in lines] == [2, 4]
    other = knows(roles, "Hi", "Hello", "So", "it is")
    out, err = pipe(other, "/load chats.jsonl 1", "So", "/load chats.jsonl")
    assert out == ["it is"]
    assert err == ["loaded 2 messages; the last: Hello", "loaded 4 messages; the last: it is"]
    (tmp_path / "name 2").write_text((tmp_path / "chats.jsonl").read_text().splitlines()[0])
    _, err = pipe(other, "/load name 2", "/save ~/x/y")
    assert err[0] == "loaded 2 messages; the last: Hello"
    assert "there is no folder" in err[1]


def test_the_system_message_is_shown_set_and_removed(roles, model, pipe):
    prompt = talks(model, roles)
    _, err = pipe(prompt, "/system", "/system Be kind", "/system", "/system -")
    assert err == [
        "no system message",
        "system message: Be kind",
        "system message: Be kind",
        "no system message",
    ]
    _, err = pipe(says(byte_tokenizer(), "x", "Hi"), "/system", "/system Be kind", "/system -")
    assert err == [
        "the model has no chat template, so no system message",
        "error: the model has no chat template, so no system message: leave it out, or set "
        "model_seed",
        "the model has no chat template, so no system message",
    ]


def test_options_are_shown_and_changed(roles, model, pipe):
    prompt = talks(model, roles)
    _, err = pipe(
        prompt,
        "/set temperature 0.7",
        "/set top_k=5",
        "/set top_k null",
        "/set stop = ['x']",
        "/set max_length 9",
        "/set max_context_length",
        "/seed",
        "/seed 7",
        "/set chat_stats false",
        "/set",
    )
    assert err[:8] == [
        "temperature = 0.7",
        "top_k = 5",
        "top_k = null",
        'stop = ["x"]',
        "max_length = 9",
        "max_context_length = 300",
        "seed 3",
        "sampling_seed = 7",
    ]
    assert [line.split(" = ")[0] for line in err[8:]] == settable_keys()
    assert "chat_stats = false" in err
    assert (prompt.config.temperature, prompt.max_length, prompt.seed) == (0.7, 9, 7)
    assert prompt.config.stop == ["x"]


@pytest.mark.parametrize("key", settable_keys())
def test_every_key_of_set_can_be_set_to_what_it_is(roles, model, pipe, key):
    _, (before,) = pipe(talks(model, roles), f"/set {key}")
    _, err = pipe(talks(model, roles), f"/set {before}", f"/set {key}")
    assert err[-1] == before


def test_probabilities_of_the_last_reply(roles, pipe):
    out, err = pipe(knows(roles, "Hi", "Yo"), "Hi", "/probs")
    assert out == ["Yo"]
    assert err[0].split() == ["probability", "token", "alternatives"]
    assert [line.split()[:2] for line in err[1:]] == [["100.0%", "'Y'"], ["100.0%", "'o'"]]


def test_the_context_of_a_message_that_is_too_long_is_what_is_left_of_it(roles, model, pipe):
    prompt = talks(model, roles)
    _, err = pipe(prompt, "x" * 500, "/context")
    size = prompt.context_size()
    assert prompt.last_reply.context_tokens == prompt.context_limit
    question, _ = prompt.context_messages()
    head, first, _ = err[-3:]
    assert head.startswith(f"context: {size} tokens; ")
    assert first.startswith(f"  1  user         504  (without its first {question.cut} tokens) xxx")
    assert 504 - question.cut + prompt.context_messages()[1].tokens == size


def test_the_context_is_described(roles, model, pipe):
    prompt = talks(model, roles, system="Be kind", max_length=30)
    prompt.messages = [
        {"role": "system", "content": "Be kind"},
        {"role": "user", "content": "x" * 120},
        {"role": "assistant", "content": "y" * 30},
        {"role": "user", "content": "two\nlines"},
    ]
    prompt.retry()
    _, err = pipe(prompt, "/context")
    head, system, first, reply, second, _ = err
    used = 11 + 13 + len(roles.encode(prompt.history[-1])) + 4
    assert head == (f"context: {used} tokens; 170 fit before a reply, which may have 30")
    assert system == "     system        11  Be kind"
    assert first.startswith("  1  user         124  (not in the context) xxxx")
    assert first.endswith("x...")
    assert len(first) <= 80
    assert reply.startswith("     assistant     34  (not in the context) yyy")
    assert second == "  2  user          13  two lines"


def test_clear_and_quit(roles, pipe):
    prompt = knows(roles, "Hi", "Hello")
    out, err = pipe(prompt, "Hi", "/clear", " /quit ", "Hi")
    assert (out, err) == (["Hello"], ["the conversation is forgotten"])
    assert prompt.messages == []


def test_two_models_get_every_message_and_command(roles, model, pipe, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    one, two = knows(roles, "Hi", "Hello"), says(byte_tokenizer(), "Yes.\n\n", "Hi")
    assert isinstance(one, InteractivePrompt)
    out, err = pipe(
        {"a": one, "b": two},
        "Hi",
        "/system Be kind",
        "/save x.json",
        "/save x.jsonl",
        "/set top_k 3",
    )
    assert out == ["--- a ---", "Hello", "--- b ---", "Yes."]
    assert err == [
        "a: system message: Be kind",
        "b: error: the model has no chat template, so no system message: leave it out, or set "
        "model_seed",
        "error: x.json can hold one conversation: name a .jsonl file for more",
        "a: saved to x.jsonl",
        "b: saved to x.jsonl",
        "a: top_k = 3",
        "b: top_k = 3",
    ]
    assert len((tmp_path / "x.jsonl").read_text().splitlines()) == 2


def test_lines_can_be_without_color(roles, model, monkeypatch):
    shown = []
    monkeypatch.setattr(console, "print", lambda text, style="", **_: shown.append(style))
    for no_color in (False, True):
        monkeypatch.setattr(console, "no_color", no_color)
        handle(Chat({"": talks(model, roles)}), "/seed")
    assert shown == ["", ""]
