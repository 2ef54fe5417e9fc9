import gc
import logging
import threading
from contextlib import contextmanager

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from src.data.chat_template import ChatTemplate
from src.errors import AGI2Error
from src.generation import stream_text
from src.inference.engine import Engine
from src.interactive import TURN_END, InteractivePrompt
from src.tokenizer import BasicTokenizer
from tests.conftest import raising
from tests.tiny_models import byte_tokenizer, random_model, reciting_model

VOCABULARY = 257


@pytest.fixture(scope="module")
def tokenizer():
    return byte_tokenizer()


@pytest.fixture(scope="module")
def model():
    return random_model(vocab_size=VOCABULARY, max_seq_len=64, std=0.2)


@contextmanager
def listening():
    """What stands before each reply, as tokens, whether it is read then or was read before."""
    heard = []
    add = Engine.add
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(
            Engine,
            "add",
            lambda self, sequence: heard.append(list(sequence.tokens)) or add(self, sequence),
        )
        yield heard


@pytest.fixture
def hears():
    with listening() as heard:
        yield heard


def says(tokenizer, reply: str, after: str, options=None) -> InteractivePrompt:
    """A conversation whose first reply, to the message `after`, is known."""
    script = [0] * (len(tokenizer.encode(after + TURN_END)) - 1) + tokenizer.encode(reply)
    model = reciting_model(VOCABULARY, [*script, tokenizer.end_of_text])
    options = {"temperature": 0, "max_length": 99, **(options or {})}
    return InteractivePrompt(model, 1000, tokenizer, **options)


def interrupt_after(model, reads: int):
    """Ctrl-C while the model reads for the n-th time."""

    def count(*_):
        nonlocal reads
        reads -= 1
        if reads == 0:
            raise KeyboardInterrupt

    return model.register_forward_pre_hook(count)


# --- the conversation -----------------------------------------------------------------------


def test_the_reply_alone_is_returned_and_both_are_remembered(tokenizer):
    prompt = says(tokenizer, "  Hello there. \n\nYou: what else", "Hi")
    assert prompt.send_message("Hi") == "Hello there."
    assert prompt.history == ["Hi", "Hello there."]


def test_a_stream_joined_is_the_reply(tokenizer):
    prompt = says(tokenizer, "Hello there.\n\n", "Hi")
    pieces = list(prompt.stream_message("Hi"))
    assert len(pieces) > 5
    assert "".join(pieces) == "Hello there."


@pytest.mark.parametrize("stop", [["there"], "there", ["", "there"]])
def test_more_stop_strings_may_be_given(stop, tokenizer):
    prompt = says(tokenizer, "Hello there.\n\n", "Hi", {"stop": stop})
    assert prompt.send_message("Hi") == "Hello"


def test_the_context_builds_up_as_the_conversation_goes_on(tokenizer, model, hears):
    prompt = InteractivePrompt(model, 64, tokenizer, max_length=4, seed=0, model_seed="Be kind.")
    first = prompt.send_message("Hi")
    second = prompt.send_message("So")
    assert tokenizer.decode(hears[0]) == "Be kind.Hi\n\n"
    assert tokenizer.decode(hears[1]) == f"Be kind.Hi\n\n{first}\n\nSo\n\n"
    assert prompt.history == ["Hi", first, "So", second]


@given(
    messages=st.lists(st.text("abc 😀\n", max_size=30), min_size=1, max_size=6),
    limit=st.integers(8, 80),
    seed_text=st.text("xyz", max_size=7),
)
@settings(deadline=None, max_examples=12)
def test_the_context_never_exceeds_its_length(tokenizer, model, messages, limit, seed_text):
    prompt = InteractivePrompt(model, limit, tokenizer, model_seed=seed_text, max_length=5, seed=1)
    limit = min(limit, 64 - 5)  # the model's positions, less the reply
    first = tokenizer.encode(seed_text)
    room = limit - len(first)

    def size(turns):
        return sum(len(tokenizer.encode(turn + TURN_END)) for turn in turns)

    expected = []
    for message in messages:
        expected.append(message)
        if size(expected) > room:  # whole turns go, the oldest first, till a quarter is free
            while len(expected) > 1 and size(expected) > room - room // 4:
                del expected[0]
        with listening() as heard:
            reply = prompt.send_message(message)
        (context,) = heard
        assert len(context) <= limit
        assert context[: len(first)] == first
        seen = "".join(turn + TURN_END for turn in expected)
        assert context[len(first) :] == tokenizer.encode(seen)[-room:]
        expected.append(reply)
        assert prompt.history == expected


ALPHABET = BasicTokenizer("abcdefg\n", lowercase=False, fold_whitespace=False)


def test_a_reply_costs_its_own_tokens_and_the_messages_whatever_was_said_before():
    """Over twenty turns every token is read once."""
    talk = "ab\n\ncdefg\n\n" * 20
    script = ALPHABET.encode(talk)
    model = reciting_model(10, [*script[1:], 0])
    reads = []
    model.register_forward_pre_hook(lambda _, args: reads.append(args[0].size(1)))
    prompt = InteractivePrompt(model, 10_000, ALPHABET, temperature=0, max_length=7)
    costs = []
    for _ in range(20):
        before = sum(reads)
        assert prompt.send_message("ab") == "cdefg"
        costs.append(sum(reads) - before)
    # A reply's last token ends it, and is read with the next message.
    assert costs == [10] + [11] * 19
    assert sum(reads) == len(script) - 1


def test_speculation_in_a_chat_does_not_read_what_was_said_again():
    talk = "ab\n\ncdefg\n\n" * 20
    script = ALPHABET.encode(talk)
    model = reciting_model(10, [*script[1:], 0])
    reads = []
    model.register_forward_pre_hook(lambda _, args: reads.append(args[0].size(1)))
    options = {"temperature": 0, "max_length": 7, "speculative": "ngram"}
    prompt = InteractivePrompt(model, 10_000, ALPHABET, **options)
    for _ in range(20):
        assert prompt.send_message("ab") == "cdefg"
    # A message with what ended the reply before it, or a token and five guessed ones.
    assert max(reads) <= 6
    assert len(reads) < 20 * 4


def test_replies_are_the_same_as_without_what_was_read_before():
    model = random_model(vocab_size=10, max_seq_len=64, std=0.2)
    options = {"max_length": 8, "seed": 5, "temperature": 1.0}
    prompt = InteractivePrompt(model, 56, ALPHABET, **options)
    for turn in range(20):
        fresh = InteractivePrompt(model, 56, ALPHABET, **{**options, "seed": 5 + turn})
        fresh.history = list(prompt.history)
        message = "abcdefg"[turn % 7 :]
        assert prompt.send_message(message) == fresh.send_message(message)
        assert prompt.history == fresh.history


def test_a_full_context_is_read_again_only_now_and_then(tokenizer):
    model = random_model(vocab_size=VOCABULARY, max_seq_len=128, std=0.2)
    reads = []
    model.register_forward_pre_hook(lambda _, args: reads.append(args[0].size(1)))
    prompt = InteractivePrompt(model, 120, tokenizer, temperature=0, max_length=1)
    again = 0
    for turn in range(60):
        reads.clear()
        prompt.send_message(f"Hello {turn}")
        again += sum(reads) > 60
    assert 0 < again < 30


def test_after_a_change_of_weights_a_cleared_context_reads_anew(tokenizer):
    model = random_model(vocab_size=VOCABULARY, max_seq_len=64, std=0.2)
    prompt = InteractivePrompt(model, 60, tokenizer, temperature=0, max_length=4)
    prompt.send_message("Hello")
    reads = []
    model.register_forward_pre_hook(lambda _, args: reads.append(args[0].size(1)))
    with torch.no_grad():
        model.token_embeddings.weight.neg_()
    prompt.clear_context()
    expected = InteractivePrompt(model, 60, tokenizer, temperature=0, max_length=4)
    assert prompt.send_message("Hello") == expected.send_message("Hello")
    assert reads[0] == len("Hello" + TURN_END)


def test_the_models_positions_are_a_limit_of_the_context_too(tokenizer, model, hears):
    prompt = InteractivePrompt(model, 10_000, tokenizer, model_seed="Me:", max_length=1)
    for _ in range(5):
        prompt.send_message("I have something to say.")
    assert [tokenizer.decode(context[:3]) for context in hears] == ["Me:"] * 5
    assert max(map(len, hears)) <= 64


def test_a_message_longer_than_the_context_keeps_its_last_tokens(
    tokenizer, model, hears, caplog, monkeypatch
):
    monkeypatch.setattr(logging.getLogger("agi2"), "propagate", True)
    prompt = InteractivePrompt(model, 12, tokenizer, model_seed="Me:", max_length=2)
    prompt.send_message("short")
    assert caplog.messages == []
    prompt.send_message("0123456789")
    assert tokenizer.decode(hears[1]) == "Me:3456789\n\n"
    assert caplog.messages == ["the message is longer than the context: only its end is used"]


def test_a_cleared_context_starts_the_conversation_again(tokenizer, model):
    prompt = InteractivePrompt(
        model, 64, tokenizer, max_length=6, seed=3, model_seed="Me:", temperature=1.0
    )
    first = [prompt.send_message("Hi"), prompt.send_message("Hi")]
    prompt.clear_context()
    assert prompt.history == []
    assert tokenizer.decode(prompt.context_tokens()) == "Me:"
    assert [prompt.send_message("Hi"), prompt.send_message("Hi")] == first


def test_a_seed_repeats_a_conversation_but_no_reply_within_it(tokenizer, model, hears):
    talks = []
    for seed in (1, 1, 2):
        prompt = InteractivePrompt(model, 64, tokenizer, max_length=8, seed=seed, temperature=2.0)
        talks.append([prompt.send_message("Hi"), prompt.send_message("Hi")])
    assert talks[0] == talks[1] != talks[2]
    replies = [
        "".join(
            stream_text(
                model,
                hears[1],
                8,
                2.0,
                tokenizer=tokenizer,
                seed=seed,
                stop=[TURN_END],
                skip_leading_space=True,
            )
        ).rstrip()
        for seed in (1, 2)
    ]
    # The second reply is drawn with the next seed, not with the first one again.
    assert talks[0][1] == replies[1] != replies[0]


def test_sampling_options_reach_the_model(tokenizer, model):
    def replies(**options):
        return [
            InteractivePrompt(
                model, 64, tokenizer, max_length=30, seed=seed, **options
            ).send_message("Hi")
            for seed in range(4)
        ]

    assert len(set(replies(temperature=3.0))) > 1
    greedy = replies(temperature=0)
    assert len(set(greedy)) == 1
    assert replies(temperature=3.0, top_k=1) == greedy
    assert replies() == replies(temperature=0.8) != replies(temperature=1.0)


def test_an_interrupted_reply_keeps_what_was_written(tokenizer):
    prompt = says(tokenizer, "Hello there.\n\n", "Hi")
    pieces = prompt.stream_message("Hi")
    begun = next(pieces) + next(pieces) + next(pieces)
    pieces.close()
    assert begun == "Hel"
    assert prompt.history == ["Hi", "Hel"]
    handle = interrupt_after(prompt.model, 5)
    prompt.clear_context()
    with pytest.raises(KeyboardInterrupt):
        prompt.send_message("Hi")
    handle.remove()
    assert prompt.history == ["Hi", "Hell"]


def test_the_models_mode_is_not_changed_by_a_reply(tokenizer):
    prompt = says(tokenizer, "Hello there.\n\n", "Hi")
    prompt.model.train()
    pieces = prompt.stream_message("Hi")
    next(pieces)
    assert prompt.model.training
    pieces.close()
    assert prompt.model.training


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"max_context_length": 0}, "max_context_length must be at least 1, not 0"),
        (
            {"max_context_length": 3, "model_seed": "Me:"},
            "model_seed has 3 tokens: a context of 3 leaves no tokens for a message",
        ),
        ({"temperature": -1}, "temperature must be a number from 0 on, not -1"),
    ],
)
def test_a_bad_option_is_one_clear_line(options, message, tokenizer, model):
    options = {"max_context_length": 9, **options}
    with pytest.raises(AGI2Error) as caught:
        InteractivePrompt(model, tokenizer=tokenizer, **options).send_message("Hi")
    assert str(caught.value) == message


def test_turns_stay_apart_where_the_tokenizer_folds_their_end():
    tokenizer = BasicTokenizer()
    tokenizer.fit(["abc "])
    prompt = InteractivePrompt(random_model(vocab_size=6), 16, tokenizer)
    prompt.history[:] = ["ab", "c"]
    a, b, c = tokenizer.encode("abc")
    end = tokenizer.end_of_text
    assert prompt.context_tokens() == [a, b, end, c, end]


@pytest.mark.parametrize("given", [8, 64, 1024])
@pytest.mark.parametrize(("max_length", "limit"), [(10, 54), (32, 32), (500, 32)])
def test_the_context_length_is_what_was_given_and_the_log_says_what_fits(
    model, tokenizer, max_length, limit, given, caplog
):
    with caplog.at_level(logging.INFO, "agi2"):
        prompt = InteractivePrompt(
            model, max_context_length=given, tokenizer=tokenizer, max_length=max_length
        )
    assert prompt.max_context_length == given
    assert prompt.context_limit == min(given, limit)
    expected = (
        f"max_context_length {given}: the model's 64 positions leave {limit} in addition "
        "to a reply"
    )
    turns = "the model has no chat template: messages are turns of plain text"
    lines = [expected] if limit < given else []
    assert caplog.messages == [*lines, turns]
    caplog.clear()
    with caplog.at_level(logging.INFO, "agi2"):
        prompt.configure(temperature=0.5)
        prompt.configure(seed=1, max_length=max_length)
        assert caplog.messages == []
        prompt.configure(max_context_length=given)
        assert caplog.messages == lines
        prompt.configure(max_length=2)
    assert [
        f"leave {prompt.context_limit} in" in each for each in caplog.messages[len(lines) :]
    ] == [True] * (prompt.context_limit < given)


def test_a_limit_is_logged_once_and_when_it_changes(model, tokenizer, caplog):
    prompt = InteractivePrompt(model, 100, tokenizer, max_length=4)
    caplog.clear()
    with caplog.at_level(logging.INFO, "agi2"):
        prompt.configure(temperature=0.5)
        prompt.configure(seed=1)
        assert caplog.messages == []
        prompt.configure(max_length=8)
        prompt.configure(max_context_length=90)
        prompt.configure(max_context_length=20)
        prompt.configure(top_k=3)
    assert [each.partition(":")[0] for each in caplog.messages] == [
        "max_context_length 100",
        "max_context_length 90",
    ]


def test_a_context_length_that_is_changed_later_counts(model, tokenizer):
    prompt = InteractivePrompt(model, 30, tokenizer, max_length=4, model_seed="Be kind.")
    prompt.history[:] = ["one two three", "four five six"]
    assert len(prompt.context_tokens()) > 20
    prompt.max_context_length = 20
    assert len(prompt.context_tokens()) == 20
    prompt.max_context_length = 8
    with pytest.raises(AGI2Error, match=r"^model_seed has 8 tokens: a context of 8 leaves"):
        prompt.send_message("Hi")
    prompt.max_context_length = 20
    assert prompt.history == ["four five six"]
    prompt.send_message("Hi")


# --- one reply at a time ------------------------------------------------------------------------

BUSY = r"^a reply of this conversation is still being generated: finish it, or close"


def test_a_message_during_a_reply_is_refused_and_changes_nothing(model, tokenizer):
    def conversation():
        return InteractivePrompt(model, 40, tokenizer, max_length=8, seed=3)

    alone = conversation()
    expected = [alone.send_message("Hi"), alone.send_message("So")]
    prompt = conversation()
    pieces = prompt.stream_message("Hi")
    text = next(pieces)
    for other in (prompt.send_message, lambda text: next(prompt.stream_message(text))):
        with pytest.raises(AGI2Error, match=BUSY):
            other("What?")
    with pytest.raises(AGI2Error, match=BUSY):
        prompt.clear_context()
    text += "".join(pieces)
    assert [text.rstrip(), prompt.send_message("So")] == expected
    assert prompt.history == alone.history


@pytest.mark.parametrize("end", ["close", "delete", "not begun"])
def test_a_reply_that_is_left_frees_the_conversation(model, tokenizer, end):
    prompt = InteractivePrompt(model, 40, tokenizer, max_length=8, seed=3)
    pieces = prompt.stream_message("Hi")
    said = [] if end == "not begun" else ["Hi", next(pieces).rstrip()]
    if end == "close":
        pieces.close()
    del pieces
    gc.collect()
    assert prompt.history == said
    prompt.send_message("So")
    assert prompt.history[len(said)] == "So"
    prompt.clear_context()
    assert prompt.history == []


def test_an_error_in_a_reply_frees_the_conversation(model, tokenizer, monkeypatch):
    prompt = InteractivePrompt(model, 40, tokenizer, max_length=8)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Engine, "step", raising(RuntimeError))
        with pytest.raises(RuntimeError, match="stopped here"):
            prompt.send_message("Hi")
    prompt.clear_context()
    prompt.send_message("Hi")
    assert prompt.history[0] == "Hi"


def test_one_of_two_threads_is_refused(model, tokenizer):
    prompt = InteractivePrompt(model, 40, tokenizer, max_length=8, seed=3)
    inside, go = threading.Event(), threading.Event()

    def wait(*_):
        inside.set()
        assert go.wait(600)

    handle = model.register_forward_pre_hook(wait)
    replies = []
    thread = threading.Thread(target=lambda: replies.append(prompt.send_message("Hi")))
    thread.start()
    assert inside.wait(600)
    with pytest.raises(AGI2Error, match=BUSY):
        prompt.send_message("What?")
    go.set()
    thread.join()
    handle.remove()
    assert prompt.history == ["Hi", *replies]


def test_a_wrong_option_is_refused_before_the_first_message(model, tokenizer):
    with pytest.raises(AGI2Error, match=r"^top_p must be above 0 and at most 1, not 3$"):
        InteractivePrompt(model, 40, tokenizer, top_p=3)
    prompt = InteractivePrompt(model, 40, tokenizer)
    with pytest.raises(AGI2Error, match=r"^text must be a string, not 5$"):
        prompt.send_message(5)
    assert prompt.history == []


# --- a model with a chat template, and branches -------------------------------------------------


@pytest.fixture(scope="module")
def roles():
    tokenizer = byte_tokenizer()
    ChatTemplate.add_to(tokenizer)
    return tokenizer


@pytest.fixture(scope="module")
def chatty(roles):
    return random_model(vocab_size=roles.vocab_size, max_seq_len=600, std=0.2)


def knows(tokenizer, *texts, **options) -> InteractivePrompt:
    """A conversation whose replies are the texts in second, fourth... place."""
    said = [
        {"role": "assistant" if i % 2 else "user", "content": text} for i, text in enumerate(texts)
    ]
    ids, _ = ChatTemplate(tokenizer).encode(said)
    model = reciting_model(tokenizer.vocab_size, [*ids[1:], *[tokenizer.end_of_text] * 40])
    return InteractivePrompt(model, 1000, tokenizer, **{"temperature": 0, **options})


def replies_with(tokenizer, tokens) -> InteractivePrompt:
    """A conversation that replies with these tokens to the message `Hi`."""
    asked = [{"role": "user", "content": "Hi"}]
    ids, _ = ChatTemplate(tokenizer).encode(asked, add_generation_prompt=True)
    script = [0] * (len(ids) - 1) + tokens + [0] * 40
    return InteractivePrompt(
        reciting_model(tokenizer.vocab_size, script), 1000, tokenizer, temperature=0
    )


def talks(model, tokenizer, **options) -> InteractivePrompt:
    """A conversation whose replies are random."""
    options = {"max_length": 6, "seed": 3, "temperature": 2.0, **options}
    return InteractivePrompt(model, 300, tokenizer, **options)


def test_a_reply_ends_at_the_end_of_its_turn_and_roles_are_kept(roles, hears):
    prompt = knows(roles, "Hi", "Hello,\n\nyou", "So", "it is", max_length=60)
    assert prompt.has_roles
    assert list(prompt.stream_message(" Hi\n")) == list("Hello,\n\nyou")
    assert prompt.send_message("So") == "it is"
    assert prompt.messages == [
        {"role": "user", "content": "Hi"},
        {"role": "assistant", "content": "Hello,\n\nyou"},
        {"role": "user", "content": "So"},
        {"role": "assistant", "content": "it is"},
    ]
    template = ChatTemplate(roles)
    assert hears == [
        template.encode(prompt.messages[:length], add_generation_prompt=True)[0]
        for length in (1, 3)
    ]
    assert prompt.context_tokens() == template.encode(prompt.messages)[0]
    assert prompt.last_reply.finish_reason == "end_token"


@pytest.mark.parametrize("name", ["<|endoftext|>", "<|user|>", "<|system|>", "<|assistant|>"])
def test_a_reply_ends_at_every_other_end_too(roles, name):
    tokens = [*roles.encode("Hello"), roles.special_tokens[name], *roles.encode("more")]
    prompt = replies_with(roles, tokens)
    assert prompt.send_message("Hi") == "Hello"
    assert prompt.last_reply.finish_reason == "end_token"


def test_a_reply_that_max_length_cuts_is_closed_in_the_context(roles, hears):
    prompt = knows(roles, "Hi", "Hello", "So", "?", max_length=3)
    assert prompt.send_message("Hi") == "Hel"
    assert prompt.last_reply.finish_reason == "length"
    prompt.send_message("So")
    assert roles.decode(hears[1], skip_special_tokens=False) == (
        "<|user|>\nHi<|end|>\n<|assistant|>\nHel<|end|>\n<|user|>\nSo<|end|>\n<|assistant|>\n"
    )


def test_a_reply_that_is_cut_ends_with_a_complete_character(roles):
    ids = roles.encode("ab☃")
    for length in range(2, len(ids)):
        prompt = knows(roles, "Hi", "ab☃", max_length=length)
        assert list(prompt.stream_message("Hi")) == ["a", "b"]
        assert prompt.last_reply.new_tokens == length
        assert prompt.history == ["Hi", "ab"]
    # The model itself has ended the next one within a character.
    assert replies_with(roles, [*ids[:-1], roles.end_of_text]).send_message("Hi") == "ab\ufffd"


def test_a_reply_that_is_stopped_at_once_can_be_tried_again(roles):
    prompt = knows(roles, "Hi", "Hello")
    handle = interrupt_after(prompt.model, 1)
    with pytest.raises(KeyboardInterrupt):
        prompt.send_message("Hi")
    handle.remove()
    assert prompt.history == ["Hi", ""]
    assert prompt.retry() == "Hello"
    assert prompt.history == ["Hi", "Hello"]


def test_a_system_message_is_in_front_and_stays(roles, chatty, hears):
    prompt = talks(chatty, roles, system="Be kind", max_length=30)
    for _ in range(12):
        prompt.send_message("tell me more")
    start = ChatTemplate(roles).encode_message({"role": "system", "content": "Be kind"})
    assert all(context[: len(start)] == start for context in hears)
    assert len(prompt.history) < 24 == len(prompt.messages) - 1
    prompt.clear_context()
    assert prompt.messages == [{"role": "system", "content": "Be kind"}]
    assert len(prompt.branches) == 1


def test_who_asks_is_told_what_was_trimmed(roles, chatty):
    prompt = talks(chatty, roles, max_length=30)
    dropped = 0
    for _ in range(12):
        prompt.send_message("tell me more")
        dropped += prompt.last_reply.trimmed.messages
    assert dropped == len(prompt.messages) - len(prompt.history) > 0
    prompt.send_message("x" * 500)
    assert prompt.last_reply.trimmed.cut > 200


@pytest.mark.parametrize("text", ["", " \n"])
def test_an_empty_message_is_refused_where_messages_have_roles(roles, text):
    prompt = knows(roles, "Hi", "Hello")
    with pytest.raises(AGI2Error, match=r"^the message is empty$"):
        prompt.send_message(text)
    assert prompt.messages == []


def test_a_message_without_a_reply_gets_one_first(roles):
    prompt = knows(roles, "Hi", "Hello", "So", "it is")
    prompt.messages = [{"role": "user", "content": "Hi"}]
    with pytest.raises(AGI2Error, match=r"^the last message has no reply yet: retry it"):
        prompt.send_message("So")
    assert prompt.retry() == "Hello"
    assert prompt.send_message("So") == "it is"
    assert [branch.name for branch in prompt.branches] == ["1"]


def test_a_model_without_the_tokens_of_the_roles_is_refused(model, roles):
    with pytest.raises(AGI2Error, match=r"^vocab_size 261 is above the model's 257 tokens$"):
        InteractivePrompt(model, 40, roles)


def test_a_retry_is_another_reply_and_repeats_with_the_seed(roles, chatty):
    def conversation(seed):
        prompt = talks(chatty, roles, seed=seed)
        first = [prompt.send_message("Hi"), prompt.send_message("So")]
        again = [prompt.retry(), prompt.retry()]
        return prompt, [*first, *again]

    prompt, replies = conversation(3)
    assert replies == conversation(3)[1] != conversation(4)[1]
    assert len(set(replies[1:])) == 3
    assert prompt.history == ["Hi", replies[0], "So", replies[3]]
    assert [each.messages[-1].content for each in prompt.branches] == replies[1:]
    prompt.switch_branch("1")
    assert prompt.history == ["Hi", replies[0], "So", replies[1]]
    # The same words at the same place get the same reply.
    assert prompt.undo() == "So"
    assert prompt.send_message("So") == replies[1]
    assert prompt.edit("So") == replies[1]


def test_an_edited_message_is_answered_anew(roles, chatty):
    prompt = talks(chatty, roles)
    for text in ("one", "two", "three"):
        prompt.send_message(text)
    fresh = talks(chatty, roles)
    assert prompt.edit("uno", 1) == fresh.send_message("uno")
    assert prompt.messages == fresh.messages
    prompt.switch_branch("1")
    prompt.edit("tres")
    assert [each["content"] for each in prompt.messages[::2]] == ["one", "two", "tres"]
    with pytest.raises(AGI2Error, match=r"^there is no message 4: there are 3 messages so far$"):
        prompt.edit("x", 4)
    with pytest.raises(AGI2Error, match=r"^number must be"):
        prompt.edit("x", 0)
    fresh.clear_context()
    with pytest.raises(AGI2Error, match=r"^there is no message to edit$"):
        fresh.edit("x")
    with pytest.raises(AGI2Error, match=r"^there is no message to reply to$"):
        fresh.retry()


def test_text_turns_have_branches_too(tokenizer, model):
    prompt = InteractivePrompt(model, 64, tokenizer, max_length=6, seed=3, temperature=2.0)
    first = prompt.send_message("Hi")
    other = prompt.retry()
    assert first != other
    assert prompt.history == ["Hi", other]
    prompt.edit("Yo")
    assert prompt.history[0] == "Yo"
    prompt.switch_branch("1")
    assert prompt.history == ["Hi", first]


def shared_prefix(a, b):
    pairs = enumerate(zip(a, b, strict=False))
    return next((i for i, (x, y) in pairs if x != y), min(len(a), len(b)))


def test_every_turn_prefills_only_what_is_new(roles, chatty):
    """Counted in tokens, over 20 turns, and after a retry, an edit and a change of branch."""
    prompt = talks(chatty, roles)
    prompt.configure(max_context_length=590)
    reads = []
    handle = chatty.register_forward_pre_hook(lambda _, args: reads.append(args[0].size(1)))
    held: list[int] = []

    def check(reply):
        nonlocal held
        request = prompt._request
        context = request.tokens[: request.prompt_length]
        shared = min(shared_prefix(held, context), len(context) - 1)
        assert reads[0] == len(context) - shared
        assert set(reads[1:]) <= {1}
        assert prompt.last_reply.reused_tokens == shared
        assert prompt.last_reply.context_tokens == len(context)
        assert prompt.last_reply.new_tokens == len(request.new_tokens)
        # Of the last token, nothing has been computed yet.
        ended = prompt.last_reply.finish_reason == "end_token"
        held = request.tokens if ended else request.tokens[:-1]
        prefilled = reads[0]
        reads.clear()
        return prefilled

    for turn in range(20):
        before = prompt.history[-1:] or [""]
        prefilled = check(prompt.send_message(f"{turn:02}"))
        # A reply's text may have other tokens than those that were generated: it counts, too.
        assert prefilled <= 2 * (2 + 2) + 2 + len(roles.encode(before[0])) + 1
    assert check(prompt.retry()) == 1
    ends = 2 + len(prompt._context.template.reply_start)  # of the message, and before the reply
    assert check(prompt.edit("zz")) == 2 + ends
    prompt.undo()
    assert check(prompt.send_message("zy")) == 1 + ends
    prompt.switch_branch("1")
    check(prompt.send_message("on"))
    handle.remove()


def test_options_change_from_the_next_reply_on(roles, chatty):
    prompt = talks(chatty, roles)
    prompt.configure(temperature=0, max_length=9, max_context_length=100)
    assert prompt.config.is_greedy
    assert (prompt.max_length, prompt.config.max_length, prompt.context_limit) == (9, 9, 100)
    greedy = prompt.send_message("Hi")
    assert greedy == talks(chatty, roles, temperature=0, max_length=9).send_message("Hi")
    prompt.configure(temperature=2.0, seed=8)
    assert prompt.config.max_length == 9
    fresh = talks(chatty, roles, max_length=9, seed=8)
    assert prompt.edit("Hi") == fresh.send_message("Hi")


@pytest.mark.parametrize(
    ("options", "problem"),
    [
        ({"temperature": -1}, "temperature must be"),
        ({"temperatur": 1}, "unknown key temperatur"),
        ({"max_context_length": 3}, "a context of 3 tokens is too short for a message"),
        ({"max_context_length": 0}, "max_context_length must be at least 1, not 0"),
        ({"max_length": 0}, "max_length must be at least 1, not 0"),
        ({"seed": -1}, "seed must be"),
        ({"logit_bias": {"two words": 1.0}}, "logit_bias: 'two words' is not one token"),
    ],
)
def test_a_wrong_change_changes_nothing(roles, chatty, options, problem):
    prompt = talks(chatty, roles)
    before = (prompt.config, prompt.max_length, prompt.context_limit, prompt.seed)
    with pytest.raises(AGI2Error, match=f"^{problem}"):
        prompt.configure(**{"max_length": 9, **options})
    assert (prompt.config, prompt.max_length, prompt.context_limit, prompt.seed) == before
    prompt.send_message("Hi")


def test_the_tokens_of_a_reply_have_probabilities(roles, chatty):
    prompt = talks(chatty, roles)
    with pytest.raises(AGI2Error, match=r"^there is no reply yet$"):
        prompt.choices  # noqa: B018
    prompt.send_message("Hi")
    with pytest.raises(AGI2Error, match=r"^the probabilities of the last reply were not recorded"):
        prompt.choices  # noqa: B018
    prompt.records_choices = True
    for _ in range(5):
        reply = prompt.retry()
        assert "".join(choice.text for choice in prompt.choices).strip() == reply
        assert all(len(choice.runners_up) == 4 for choice in prompt.choices)


def test_white_space_before_a_reply_is_no_choices_text(roles):
    prompt = replies_with(roles, [*roles.encode(" \n xy"), roles.end_of_text])
    prompt.records_choices = True
    assert prompt.send_message("Hi") == "xy"
    assert [choice.text for choice in prompt.choices] == ["", "", "", "x", "y"]
