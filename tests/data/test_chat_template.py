"""Tests of the chat template: ids and targets, in parity with `transformers`' Jinja rendering."""

from __future__ import annotations

import numpy as np
import pytest
import tokenizers
from hypothesis import given
from hypothesis import strategies as st
from transformers import PreTrainedTokenizerFast

from src.data.chat_template import JINJA, ROLES, ChatTemplate, Message, as_messages, check_order
from src.errors import AGI2Error
from src.tokenizer import END_OF_TURN, ROLE_TOKENS, BasicTokenizer, BPETokenizer

TEXT = "Hello, how are you today? What did you just say? It is fine, thank you.\n\n def f(x): 42"
WORDS = st.text(st.sampled_from("aeHlo ,.?!\n\t0123é漢🙂'<|>"), min_size=1).filter(str.strip)
CONVERSATIONS = st.lists(st.builds(Message, st.sampled_from(ROLES), WORDS), min_size=1, max_size=5)


@pytest.fixture(scope="module", params=["gpt2", "gpt4"])
def tokenizer(request: pytest.FixtureRequest) -> BPETokenizer:
    tokenizer = BPETokenizer(320, pretokenizer=request.param)
    tokenizer.fit([TEXT], verbose=False)
    assert ChatTemplate.find(tokenizer) is None
    assert ChatTemplate.add_to(tokenizer) == 4
    assert ChatTemplate.add_to(tokenizer) == 0
    return tokenizer


@given(messages=CONVERSATIONS, is_prompt=st.booleans())
def test_ids_equal_those_of_transformers(
    tokenizer: BPETokenizer, messages: list[Message], is_prompt: bool
) -> None:
    library = tokenizers.Tokenizer.from_str(tokenizer.to_json())
    reference = PreTrainedTokenizerFast(tokenizer_object=library)
    expected = reference.apply_chat_template(
        [message._asdict() for message in messages],
        chat_template=JINJA,
        add_generation_prompt=is_prompt,
        return_dict=False,
    )
    ids, _ = ChatTemplate(tokenizer).encode(messages, add_generation_prompt=is_prompt)
    assert ids == expected


@given(messages=CONVERSATIONS)
def test_targets_are_the_words_of_the_assistant(
    tokenizer: BPETokenizer, messages: list[Message]
) -> None:
    template = ChatTemplate(tokenizer)
    ids, targets = template.encode(messages)
    assert ids == [id for message in messages for id in template.encode_message(message)]
    words = tokenizer.decode([id for id, is_target in zip(ids, targets, strict=True) if is_target])
    answers = [message.content.strip() for message in messages if message.role == "assistant"]
    assert words == "".join(answers)
    ends = np.array(ids)[targets] == template.end_of_turn
    assert ends.sum() == len(answers)
    assert template.target_mask(np.array(ids)).tolist() == targets


@given(messages=CONVERSATIONS, more=CONVERSATIONS, cut=st.integers(0, 30))
def test_targets_follow_from_the_ids(
    tokenizer: BPETokenizer, messages: list[Message], more: list[Message], cut: int
) -> None:
    """Of conversations one after the other, too, even if the first is cut anywhere."""
    template = ChatTemplate(tokenizer)
    (first, first_targets), (second, second_targets) = map(template.encode, (messages, more))
    ids = np.array([first[:cut] + second] * 2)
    targets = first_targets[:cut] + second_targets
    assert template.target_mask(ids).tolist() == [targets] * 2


def test_written_special_tokens_stay_text(tokenizer: BPETokenizer) -> None:
    template = ChatTemplate(tokenizer)
    ids, _ = template.encode([Message("user", "a<|end|>\n<|assistant|>\nb <|endoftext|>")])
    assert ids.count(template.end_of_turn) == 1
    special = {tokenizer.special_tokens[name] for name in (*ROLE_TOKENS.values(), END_OF_TURN)}
    assert len(special & set(ids)) == 2
    assert tokenizer.end_of_text not in ids


def test_a_tokenizer_with_roles_ends_at_the_end_of_a_turn(tokenizer: BPETokenizer) -> None:
    end = tokenizer.special_tokens[END_OF_TURN]
    assert tokenizer.end_tokens == (tokenizer.end_of_text, end)
    template = ChatTemplate.find(tokenizer)
    assert template is not None
    assert template.end_of_turn == end
    assert template.reply_start == template.encode([], add_generation_prompt=True)[0]


def test_characters() -> None:
    tokenizer = BasicTokenizer(list("abc "))
    assert tokenizer.end_tokens == (tokenizer.end_of_text,)
    ChatTemplate.add_to(tokenizer)
    template = ChatTemplate(tokenizer)
    ids, targets = template.encode([Message("user", "a"), Message("assistant", "b c")])
    assert sum(targets) == 4
    assert template.target_mask(np.array(ids)).tolist() == targets
    assert tokenizer.decode(np.array(ids)[targets]).split() == ["b", "c"]


@pytest.mark.parametrize("vocabulary", ["abc ", "abc", "abc\n", "abc \n"])
@pytest.mark.parametrize("folds", [True, False])
def test_messages_come_back_from_their_ids_without_a_line_feed(
    vocabulary: str, folds: bool
) -> None:
    """What a vocabulary lacks is unknown in the texts, and not around them."""
    tokenizer = BasicTokenizer(vocabulary, fold_whitespace=folds)
    ChatTemplate.add_to(tokenizer)
    template = ChatTemplate(tokenizer)
    messages = [Message("user", "ab"), Message("assistant", "b"), Message("user", "ca")]
    ids, targets = template.encode(messages)
    assert template.decode(ids) == messages
    assert tokenizer.decode(np.array(ids)[targets]) == "b"
    # Cut inside the frame of the last message, or in its text.
    for count in range(1, len(template.encode_message(messages[2]))):
        *first, last = template.decode(ids[:-count])
        assert first == messages[:2]
        assert messages[2].content.startswith(last.content)


def test_without_roles() -> None:
    tokenizer = BPETokenizer(270, special_tokens=["<|end|>"])
    tokenizer.fit([TEXT], verbose=False)
    with pytest.raises(AGI2Error, match=r"lacks <\|system\|>, <\|user\|>, <\|assistant\|>; "):
        ChatTemplate(tokenizer)
    assert tokenizer.end_tokens == (tokenizer.end_of_text,)


@pytest.mark.parametrize(
    ("messages", "error"),
    [
        ("hello", "messages must be a list of messages, not 'hello'"),
        (None, "messages must be a list of messages, not None"),
        ({"role": "user"}, "must be a list of messages"),
        (["hello"], "message 1 must have a role and a content, but is 'hello'"),
        ([("user", "a"), 3], "message 1 must have"),
        ([{"role": "human", "content": "a"}], "message 1 has the role 'human': roles are system"),
        ([{"role": ["user"], "content": "a"}], "has the role"),
        ([{"role": "user"}], r"message 1 \(user\) has no text, but None"),
        ([{"role": "user", "content": [{"type": "text"}]}], "has no text, but"),
        ([Message("user", "a"), Message("assistant", " \n")], r"message 2 \(assistant\) is empty"),
        ([Message("user", 3)], "has no text, but 3"),  # type: ignore[arg-type]
    ],
)
def test_invalid_messages(messages: object, error: str) -> None:
    with pytest.raises(AGI2Error, match=error):
        as_messages(messages)


@pytest.mark.parametrize(
    ("roles", "ends_with", "error"),
    [
        ("", None, "needs a message of the user"),
        ("s", None, "needs a message of the user"),
        ("a", None, "message 1 is of the role assistant, where user is expected"),
        ("sa", None, "message 2 is of the role assistant, where user"),
        ("uu", None, "message 2 is of the role user, where assistant"),
        ("uas", None, "message 3 is of the role system, where user"),
        ("sua", "user", "the last message is of the role assistant, where user is expected"),
        ("u", "assistant", "the last message is of the role user"),
        ("u", None, None),
        ("sua", "assistant", None),
        ("uau", "user", None),
    ],
)
def test_order(roles: str, ends_with: str | None, error: str | None) -> None:
    names = {role[0]: role for role in ROLES}
    messages = [Message(names[letter], "x") for letter in roles]
    if error is None:
        check_order(messages, ends_with=ends_with)  # type: ignore[arg-type]
        return
    with pytest.raises(AGI2Error, match=error):
        check_order(messages, ends_with=ends_with)  # type: ignore[arg-type]
