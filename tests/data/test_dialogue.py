"""Conversations without a model: messages to look at and to set, branches, files."""

import logging

import pytest

from src.data.chat_template import ChatTemplate, Message
from src.data.dialogue import Dialogue
from src.errors import AGI2Error
from tests.tiny_models import byte_tokenizer


class Talk(Dialogue):
    context_limit = 60

    def say(self, *texts):
        for text in texts:
            role = "assistant" if self._tree.node.role == "user" else "user"
            with self._exclusive():
                self._tree.append(Message(role, text))
                self._show_history()
        return self


@pytest.fixture(scope="module")
def tokenizer():
    tokenizer = byte_tokenizer()
    ChatTemplate.add_to(tokenizer)
    return tokenizer


@pytest.fixture
def talk(tokenizer):
    return Talk(tokenizer, "", "Be kind").say("Hi", "Hello")


MESSAGES = [
    {"role": "system", "content": "Be kind"},
    {"role": "user", "content": "Hi"},
    {"role": "assistant", "content": "Hello"},
]


def test_messages_are_what_was_said_and_can_be_set(talk, tokenizer):
    assert talk.messages == MESSAGES
    assert talk.history == ["Hi", "Hello"]
    other = Talk(tokenizer, "", "")
    other.messages = MESSAGES
    assert (other.messages, other.system, other.history) == (MESSAGES, "Be kind", talk.history)
    assert other.context_tokens() == talk.context_tokens()
    assert [branch.name for branch in other.branches] == ["1"]
    other.messages = MESSAGES[1:]
    assert other.system == ""
    assert [len(branch.messages) for branch in other.branches] == [3, 2]
    other.messages = []
    assert other.history == []


@pytest.mark.parametrize(
    ("messages", "problem"),
    [
        ("Hi", "messages must be a list of messages"),
        ([*MESSAGES, MESSAGES[2]], "message 4 is of the role assistant, where user is expected"),
        (MESSAGES[::-1], "message 1 is of the role assistant"),
        (MESSAGES[:1], "a conversation needs a message of the user"),
        ([{"role": "user", "content": " "}], "message 1 .user. is empty"),
        ([{"role": "user", "content": "x"}, {"role": "bot", "content": "x"}], "message 2 has the"),
        ([{"role": "system", "content": "x" * 99}, *MESSAGES[1:]], "the system message has 103 to"),
    ],
)
def test_messages_that_are_wrong_are_refused_and_nothing_changes(talk, messages, problem):
    with pytest.raises(AGI2Error, match=f"^{problem}"):
        talk.messages = messages
    assert talk.messages == MESSAGES
    assert len(talk.branches) == 1


def test_history_is_a_list_that_may_be_changed(talk):
    talk.history.append("So")
    assert talk.messages == [*MESSAGES, {"role": "user", "content": "So"}]
    talk.history[1] = "Hey"
    assert [each["content"] for each in talk.messages] == ["Be kind", "Hi", "Hey", "So"]
    assert [each["role"] for each in talk.messages[1:]] == ["user", "assistant", "user"]
    talk.history = ("A", "B")
    assert [each["content"] for each in talk.messages] == ["Be kind", "A", "B"]
    assert talk.history == ["A", "B"]
    talk.history.clear()
    assert talk.messages == MESSAGES[:1]
    talk.history = [1]
    with pytest.raises(AGI2Error, match=r"^history must be"):
        talk.undo()


def test_history_has_what_is_in_the_context_and_messages_all(talk, caplog):
    talk.say("x" * 20, "y" * 20, "So")
    talk.context_tokens()
    assert talk.history == ["So"] or talk.history == ["x" * 20, "y" * 20, "So"]
    assert len(talk.messages) == 6
    kept = [each.is_in_context for each in talk.context_messages()]
    assert kept == [True] + [False] * (5 - len(talk.history)) + [True] * len(talk.history)
    assert [each.tokens for each in talk.context_messages()] == [11, 6, 9, 24, 24, 6]
    # A change of what is left keeps the rest as it is.
    talk.history[-1] = "Now"
    assert len(talk.messages) == 6
    assert not talk.context_messages()[1].is_in_context


def test_the_size_of_a_context_is_that_of_its_tokens(talk, tokenizer):
    def check(talk):
        ids = talk.context_tokens()
        frame = 2 if talk.has_roles and talk.messages[-1]["role"] == "user" else 0
        assert talk.context_size() + frame == len(ids)
        assert talk.context_size() + frame <= talk.context_limit

    talk.say("z" * 200)
    before = talk.context_size()
    check(talk)
    assert talk.context_size() == before  # looking at it changes nothing
    assert [each.cut for each in talk.context_messages()] == [0, 0, 0, 200 + 4 - 47]
    talk.say("a reply")
    check(talk)
    other = Talk(tokenizer, "", "")
    other.messages = [{"role": "user", "content": "z" * 99}]
    check(other)
    plain = Talk(byte_tokenizer(), "Seed.", "").say("z" * 99)
    check(plain)
    assert plain.context_size() == 60


def test_a_reply_that_takes_the_context_alone_is_cut_no_further(tokenizer):
    talk = Talk(tokenizer, "", "").say("x" * 50, "y" * 53)
    ids = talk.context_tokens()
    assert tokenizer.decode(ids) == "\n" + "y" * 53 + "\n"
    assert talk.context_size() == len(ids)
    assert [each.is_in_context for each in talk.context_messages()] == [False, True]


@pytest.mark.parametrize("replies", [("",), ("", "it is"), ("Yes", ""), (" so ", "\n")])
@pytest.mark.parametrize("has_roles", [True, False])
def test_messages_can_be_set_to_what_they_are(tokenizer, replies, has_roles):
    talk = Talk(tokenizer if has_roles else byte_tokenizer(), "", "")
    for reply in replies:
        talk.say("Hi" if has_roles else " Hi ", reply.strip() if has_roles else reply)
    before, ids = talk.messages, talk.context_tokens()
    talk.messages = talk.messages
    assert (talk.messages, talk.context_tokens()) == (before, ids)
    assert len(talk.branches) == 1


def test_a_message_of_the_user_without_roles_may_be_empty_when_it_is_set():
    talk = Talk(byte_tokenizer(), "", "")
    talk.messages = [{"role": "user", "content": ""}, {"role": "assistant", "content": "Once"}]
    assert talk.history == ["", "Once"]


def test_undo_goes_back_a_turn_and_the_branch_keeps_it(talk):
    talk.say("So", "it is")
    assert talk.undo() == "So"
    assert talk.messages == MESSAGES
    assert talk.undo() == "Hi"
    assert talk.messages == MESSAGES[:1]
    with pytest.raises(AGI2Error, match=r"^there is nothing to undo$"):
        talk.undo()
    talk.switch_branch("1")
    assert talk.history == ["Hi", "Hello", "So", "it is"]
    talk.say("unanswered")
    assert talk.undo() == "unanswered"


def test_branches_can_be_named_and_switched(talk):
    talk.new_branch("idea")
    talk.say("A", "B")
    talk.switch_branch("1")
    assert talk.history == ["Hi", "Hello"]
    talk.say("C")
    assert {branch.name: len(branch.messages) for branch in talk.branches} == {"1": 4, "idea": 5}
    with pytest.raises(AGI2Error, match=r"^there is no branch 'other'"):
        talk.switch_branch("other")
    with pytest.raises(AGI2Error, match=r"^name must be a string, not 5$"):
        talk.switch_branch(5)


def test_a_new_system_message_keeps_what_was_said(talk):
    talk.system = " Be brief "
    assert talk.messages == [{"role": "system", "content": "Be brief"}, *MESSAGES[1:]]
    talk.system = ""
    assert talk.messages == MESSAGES[1:]
    talk.switch_branch("1")
    assert talk.system == "Be kind"
    with pytest.raises(AGI2Error, match=r"^system must be a string"):
        talk.system = 5


def test_a_model_seed_is_the_system_message(tokenizer):
    assert Talk(tokenizer, "Be kind. ", "").system == "Be kind."
    with pytest.raises(AGI2Error, match=r"^model_seed and system are both the system message"):
        Talk(tokenizer, "a", "b")


@pytest.mark.parametrize("name", ["talk.json", "talk.jsonl"])
def test_a_saved_conversation_continues(talk, tokenizer, tmp_path, name):
    talk.say("So", "it is")
    talk.save(tmp_path / name)
    other = Talk(tokenizer, "", "").say("before", "it")
    other.load(str(tmp_path / name))
    assert other.messages == talk.messages
    assert other.context_tokens() == talk.context_tokens()
    other.switch_branch("1")
    assert other.history == ["before", "it"]


def test_what_training_cannot_use_is_not_saved(talk, tmp_path, caplog):
    talk.say("So", "", "And", "yes", " ", "what?", "Now")
    talk.save(tmp_path / "talk.json")
    assert caplog.messages == ["2 exchanges with an empty message left out"]
    other = Talk(talk.tokenizer, "", "")
    other.load(tmp_path / "talk.json")
    assert other.history == ["Hi", "Hello", "And", "yes", "Now"]


def test_nothing_to_save_is_an_error(tokenizer, tmp_path):
    with pytest.raises(AGI2Error, match=r"^there is no conversation to save yet$"):
        Talk(tokenizer, "", "Be kind").save(tmp_path / "talk.json")
    assert not list(tmp_path.iterdir())


def test_without_a_template_messages_have_roles_but_no_system_message(tmp_path, caplog):
    with caplog.at_level(logging.INFO, "agi2"):
        talk = Talk(byte_tokenizer(), "Me:", "").say("Hi", "Hello")
    assert talk.messages == MESSAGES[1:]
    assert talk.system == ""
    assert bytes(talk.context_tokens()[:3]) != b""
    for change in (
        lambda: setattr(talk, "system", "Be kind"),
        lambda: setattr(talk, "messages", MESSAGES),
        lambda: Talk(byte_tokenizer(), "", "Be kind"),
    ):
        with pytest.raises(AGI2Error, match=r"^the model has no chat template, so no system mess"):
            change()
    talk.save(tmp_path / "talk.json")
    talk.say("So")
    talk.load(tmp_path / "talk.json")
    assert talk.messages == MESSAGES[1:]
