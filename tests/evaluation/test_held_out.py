"""Replies of a model to held-out conversations."""

import pytest
import torch

from src.data.chat_template import ChatTemplate, Message
from src.evaluation.held_out import reply_to
from src.generation import generate_text
from src.interactive import InteractivePrompt
from src.tokenizer import ROLE_TOKENS, BPETokenizer
from tests.tiny_models import random_model, scheduled_model

CHATS = [
    [Message("user", "What is 1 plus 1?"), Message("assistant", "Two."), Message("user", "Oh.")],
    [
        Message("system", "Be kind."),
        Message("user", "Hello!"),
        Message("assistant", "Hi!"),
        Message("user", "Who are you?"),
        Message("assistant", "A model."),
    ],
    [Message("user", "Nobody answers.")],
]


@pytest.fixture(scope="module")
def template():
    tokenizer = BPETokenizer(270)
    tokenizer.fit(["Hello! What is 1 plus 1?"], verbose=False)
    ChatTemplate.add_to(tokenizer)
    return ChatTemplate(tokenizer)


def test_replies_are_what_the_model_generates_alone(template):
    tokenizer = template.tokenizer
    model = random_model(vocab_size=tokenizer.vocab_size, max_seq_len=120)
    replies = reply_to(model, template, CHATS, max_length=12)
    assert [reply.expected for reply in replies] == ["Two.", "A model."]
    assert [len(reply.messages) for reply in replies] == [1, 4]
    for reply in replies:
        ids, _ = template.encode(reply.messages, add_generation_prompt=True)
        alone = generate_text(model, ids, 12, 0.0, tokenizer=tokenizer, return_full_text=False)
        assert reply.reply == alone.strip()
        assert not reply.is_exact
    assert reply_to(model, template, []) == []


@pytest.mark.parametrize("token", ROLE_TOKENS.values())
def test_a_reply_ends_where_the_one_in_a_chat_does(template, token):
    tokenizer = template.tokenizer
    size = len(template.encode(CHATS[0][:1], add_generation_prompt=True)[0])
    logits = torch.zeros(size + 5, tokenizer.vocab_size)
    logits[:, tokenizer.encode("t")[0]] = 1
    logits[size + 1, tokenizer.special_tokens[token]] = 2
    model = scheduled_model(logits)
    (reply,) = reply_to(model, template, CHATS, 4)
    chat = InteractivePrompt(model, 100, tokenizer, temperature=0.0, max_length=4)
    assert chat.send_message(CHATS[0][0].content) == reply.reply == "tt"
    assert reply.is_ended


def test_a_reply_has_ended_if_the_model_ends_it(template):
    tokenizer = template.tokenizer
    size = len(template.encode(CHATS[0][:1], add_generation_prompt=True)[0])
    logits = torch.zeros(size + 5, tokenizer.vocab_size)
    logits[:, tokenizer.encode("t")[0]] = 1
    logits[size + 1, template.end_of_turn] = 2
    model = scheduled_model(logits)
    # The second conversation is longer than the context.
    for max_length, is_ended in ((3, True), (2, False)):
        (reply,) = reply_to(model, template, CHATS, max_length)
        assert (reply.reply, reply.is_ended) == ("tt", is_ended)
