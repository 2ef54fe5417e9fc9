"""Figures of conversations, against the windows that are made of them."""

import pytest
from hypothesis import given, settings

from src.data.chat_template import ChatTemplate
from src.data.conversation_figures import ConversationCounter
from src.data.conversation_windows import ConversationPlan
from tests.data.chats import chat_tokenizer, conversations, random_conversations, write_shards

CHATS = random_conversations(30, seed=8)


def figures_of(chats, tokenizer, seq_len):
    counter = ConversationCounter()
    for number, chat in enumerate(chats):
        sizes = [len(tokenizer.encode(message.content)) for message in chat]
        counter.add(str(number), chat, sizes, tokenizer)
    return counter.finish(seq_len)


@pytest.mark.parametrize("width", [12, 60, 150, 10_000])
def test_what_is_cut_is_what_the_windows_cut(tmp_path, width):
    tokenizer = chat_tokenizer()
    plan = ConversationPlan(
        write_shards(tmp_path, CHATS, tokenizer), width, ChatTemplate(tokenizer)
    )
    found = figures_of(CHATS, tokenizer, width)
    assert (found.cut, found.shortened) == (plan.cut, plan.shortened)
    assert (found.conversations, found.seq_len) == (30, width)


@given(chat=conversations())
@settings(max_examples=15)
def test_tokens_and_targets_are_those_of_the_template(chat):
    tokenizer = chat_tokenizer()
    ids, targets = ChatTemplate(tokenizer).encode(chat)
    found = figures_of([chat], tokenizer, 9)
    assert (found.tokens, found.longest, found.longest_name) == (len(ids), len(ids), "0")
    assert found.targets == sum(targets)
    roles = [message.role for message in chat]
    assert (found.turns, found.system_messages) == (roles.count("user"), roles.count("system"))


def test_there_are_none():
    assert ConversationCounter().finish(9) is None
