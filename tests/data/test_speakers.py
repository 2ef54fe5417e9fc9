"""Who speaks in a plain text is at the start of a line."""

import pytest
from hypothesis import given, settings

from src.data.documents import ReadOptions
from src.data.speakers import speaker_pattern, split_conversations
from src.errors import AGI2Error
from tests.data.chats import conversations


def split(text, speakers=None):
    pattern = speaker_pattern(speakers)
    return [
        (each.line, [(role, content.strip()) for role, content in each.messages], each.problem)
        for each in split_conversations(text.split("\n"), pattern)
    ]


def test_lines_belong_to_the_last_speaker():
    text = "User: Hi\nthere\n\n  ok\nASSISTANT : Hello: you\nAssistant: again\nHuman:x\nai: y"
    asked = ("user", "Hi\nthere\n\n  ok")
    said = ("assistant", "Hello: you\n again")
    assert split(text) == [(1, [asked, said, ("user", "x"), ("assistant", "y")], "")]


def test_dashes_and_system_messages_begin_a_conversation():
    text = "\nUser: a\nAI: b\n---\n\n----\nSystem: s\nUser: c\nAI: d\nSystem: t\nUser: e"
    assert split(text) == [
        (2, [("user", "a"), ("assistant", "b")], ""),
        (7, [("system", "s"), ("user", "c"), ("assistant", "d")], ""),
        (10, [("system", "t"), ("user", "e")], ""),
    ]


def test_text_before_the_first_speaker_is_a_problem():
    text = "Title\nmore\nUser: a\n---\nUser: b"
    (line, _, problem), second = split(text)
    assert (line, problem) == (1, "text before the first speaker; set speakers")
    assert second == (5, [("user", "b")], "")


@pytest.mark.parametrize(
    ("speakers", "text"),
    [
        ("Anna, Ben", "Anna: a\nBen: b"),
        ("Anna | Ann,Ben", "Ann: a\nBen: b"),
        ("A.B, C (d)", "A.B: a\nC (d): b"),
        (r"(?:(?P<user>Anna)|(?P<assistant>Ben))> ", "Anna> a\nBen> b"),
        (r"\[\d+:\d+\] (?:(?P<user>Anna)|(?P<assistant>\w+)): ", "[1:02] Anna: a\n[1:03] Bo: b"),
    ],
)
def test_speakers_are_names_or_a_pattern(speakers, text):
    assert split(text, speakers) == [(1, [("user", "a"), ("assistant", "b")], "")]


@pytest.mark.parametrize(
    "speakers",
    ["Anna", "", ",", "Anna,", "a, b, c, d", "(?P<user>a", "(?P<user>a)", "(?P<assistant>a)|b"],
)
def test_other_speakers_are_refused(speakers):
    with pytest.raises(AGI2Error, match=r"^speakers "):
        ReadOptions(speakers=speakers)


@settings(max_examples=25)
@given(chat=conversations())
def test_conversations_are_found_again(chat):
    names = {"user": "Anna", "assistant": "Ben", "system": "Rules"}
    text = "\n".join(f"{names[role]}: {content}" for role, content in chat)
    assert split(text, "Anna, Ben, Rules") == [(1, [tuple(each) for each in chat], "")]
