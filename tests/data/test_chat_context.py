import logging

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from src.data.chat_context import ChatContext, Trimmed
from src.data.chat_template import ChatTemplate, Message
from src.data.message_tree import MessageTree
from src.errors import AGI2Error
from src.tokenizer import ROLE_TOKENS
from tests.data.test_message_tree import said
from tests.tiny_models import byte_tokenizer


@pytest.fixture(scope="module")
def tokenizer():
    tokenizer = byte_tokenizer()
    ChatTemplate.add_to(tokenizer)
    return tokenizer


@pytest.fixture(scope="module")
def context(tokenizer):
    return ChatContext(tokenizer)


def decoded(tokenizer, ids):
    return tokenizer.decode(ids, skip_special_tokens=False)


def test_a_conversation_is_what_the_template_makes_of_it(context, tokenizer):
    talk = said("Hi", "Hello", "So", system="Be kind")
    ids, trimmed = context.tokens(MessageTree(talk), 1000)
    assert ids == ChatTemplate(tokenizer).encode(talk, add_generation_prompt=True)[0]
    assert trimmed == Trimmed()
    answered, _ = context.tokens(MessageTree(talk[:-1]), 1000)
    assert answered == ids[: len(answered)]  # what is said later changes nothing before
    assert context.tokens(MessageTree(), 1000)[0] == []


def test_a_reply_that_is_empty_is_closed_like_any_other(context, tokenizer):
    talk = [*said("Hi"), Message("assistant", ""), Message("user", "So")]
    ids, _ = context.tokens(MessageTree(talk), 1000)
    expected = "<|user|>\nHi<|end|>\n<|assistant|>\n<|end|>\n<|user|>\nSo<|end|>\n<|assistant|>\n"
    assert decoded(tokenizer, ids) == expected


@pytest.mark.parametrize("name", [*ROLE_TOKENS.values(), "<|end|>", "<|endoftext|>"])
def test_special_tokens_that_someone_writes_are_text(context, tokenizer, name):
    ids, _ = context.tokens(MessageTree(said(name, f"x{name}", name, system=name)), 1000)
    frame, _ = context.tokens(MessageTree(said("a", "a", "a", system="a")), 1000)
    special = set(tokenizer.special_tokens.values())
    assert [id for id in ids if id in special] == [id for id in frame if id in special]
    assert decoded(tokenizer, ids).count(name) >= 4


@given(
    turns=st.lists(st.text("ab 😀\n", min_size=1, max_size=30), min_size=1, max_size=9),
    limit=st.integers(14, 90),
    system=st.sampled_from(["", "S"]),
)
@settings(max_examples=60)
def test_a_context_fits_and_has_complete_exchanges(context, tokenizer, turns, limit, system):
    tree = MessageTree([Message("system", system)] if system else [])
    parts = ["x" if not text.strip() else text for text in turns]
    dropped = 0
    for message in said(*parts):
        tree.append(message)
        ids, trimmed = context.tokens(tree, limit)
        assert len(ids) <= limit
        dropped += trimmed.messages
        assert dropped == tree.node.dropped
        shown = decoded(tokenizer, ids)
        assert shown.startswith("<|system|>\nS<|end|>\n" if system else "<|")
        kept = tree.turns[dropped:]
        assert (
            shown.count("<|user|>")
            + shown.count("<|assistant|>")
            - shown.endswith("<|assistant|>\n")
            == len(kept)
            or trimmed.cut
        )
        if not trimmed.cut:
            assert kept[0].role == "user"
            whole = [node.message for node in kept]
            expected = ChatTemplate(tokenizer).encode(
                ([Message("system", system)] if system else []) + whole,
                add_generation_prompt=kept[-1].role == "user",
            )
            assert ids == expected[0]


def test_old_exchanges_go_together_until_a_quarter_is_free(context, caplog):
    tree = MessageTree(said("a" * 10, "b" * 10, "c" * 10, "d" * 10, "e" * 10))  # 15 tokens each
    with caplog.at_level(logging.INFO, "agi2"):
        ids, trimmed = context.tokens(tree, 70)
    # 68 for messages, of which at most 51 stay: three messages of 14 tokens.
    assert trimmed == Trimmed(2, 28)
    assert len(ids) == 3 * 14 + 2
    assert caplog.messages == ["the oldest 2 messages (28 tokens) no longer fit into the context"]
    assert context.tokens(tree, 70) == (ids, Trimmed())  # told once
    tree.go_back(2)
    assert context.tokens(tree, 70)[1] == Trimmed()
    assert tree.node.dropped == 0  # what was dropped later is not dropped here


def test_a_message_that_is_too_long_keeps_its_role_and_its_end(context, tokenizer, caplog):
    tree = MessageTree(said("before", "it", "0123456789", system="S"))
    ids, trimmed = context.tokens(tree, 18)
    assert (
        decoded(tokenizer, ids) == "<|system|>\nS<|end|>\n<|user|>\n3456789<|end|>\n<|assistant|>\n"
    )
    assert trimmed == Trimmed(2, 16, 3)
    assert caplog.messages == ["the message is longer than the context: only its end is used"]
    tree.append(Message("assistant", "0123456789"))
    ids, _ = context.tokens(tree, 18)
    assert decoded(tokenizer, ids).endswith("<|assistant|>\n3456789<|end|>\n")


@pytest.mark.parametrize(
    ("system", "limit", "problem"),
    [
        ("", 6, "a context of 6 tokens is too short for a message: its role and that of the reply"),
        ("Be kind.", 18, "the system message has 12 tokens: a context of 18 leaves no tokens"),
    ],
)
def test_a_context_without_room_for_a_message_is_an_error(context, system, limit, problem):
    with pytest.raises(AGI2Error, match=f"^{problem}"):
        context.budget(system, limit)
    assert context.budget(system, limit + 1) > 0
