import hashlib
import re
from collections import Counter
from pathlib import Path

import pytest

from src.data import builtin_conversations as builtin
from src.data import conversation_facts as facts
from src.data.builtin import BUILTIN, CONVERSATIONS, HELD_OUT_CONVERSATIONS
from src.data.builtin_conversations import KINDS, conversations, held_out_conversations, questions
from src.data.chat_template import check_order
from src.data.conversation_kinds import is_held_out
from src.data.conversations import from_text
from src.data.documents import ReadOptions, ReadReport
from src.data.readers import iterate_documents
from src.data.token_cache import FileHashes, identify_file
from src.errors import AGI2Error


@pytest.fixture(scope="module")
def made():
    return list(conversations(1500))


@pytest.fixture(scope="module")
def asked():
    return list(questions(600))


def replies(messages):
    return [message.content for message in messages if message.role == "assistant"]


def test_conversations_follow_from_the_seed(made):
    assert list(conversations(100)) == made[:100]
    assert list(conversations(100, seed=1)) != made[:100]
    assert list(questions(50)) == list(questions(50))
    assert list(questions(50, seed=1)) != list(questions(50))


def test_conversations_are_valid_and_end_with_a_reply(made, asked):
    for messages in made:
        check_order(messages, ends_with="assistant")
        assert all(m.content == m.content.strip() != "" for m in messages)
        lines = [line for m in messages for line in m.content.split("\n")]
        assert all(line.isascii() and line.isprintable() for line in lines)
    for question in asked:
        check_order(question.messages, ends_with="user")
        assert question.reply == question.reply.strip() != ""


def test_conversations_fit_a_small_context(made):
    assert max(sum(len(m.content) for m in messages) for messages in made) < 800


def test_there_are_at_least_500_conversations_and_few_repeat(made):
    assert builtin._COUNT >= 500
    assert len({tuple(messages) for messages in made}) > 0.95 * len(made)


def test_conversations_are_diverse(made):
    turns = Counter(len(replies(messages)) for messages in made)
    assert all(turns[count] > 50 for count in (1, 2, 3, 4, 5))
    assert 0.1 < sum(messages[0].role == "system" for messages in made) / len(made) < 0.3
    assert len({reply for messages in made for reply in replies(messages)}) > 2000
    starts = Counter(m.content.split()[0].lower() for messages in made for m in messages)
    assert len(starts) > 300


def test_questions_are_of_each_kind_in_turn(asked):
    assert [question.kind for question in asked] == (list(KINDS) * len(asked))[: len(asked)]
    assert all(len({q.reply for q in asked if q.kind == kind}) > 1 for kind in ("python", "echo"))


def test_names_and_words_of_held_out_questions_are_never_in_training(made, asked):
    taught, held_out = Counter(), Counter()
    names = r"(?:name is|call me|called|You are|talk to) (?!Your?\b|My\b)([A-Z][a-z]+)\b"
    words = r"(?:the word|(?:the|[Mm]y) favorite \w+ is|password) (?!(?:is|did)\b)([a-z]+)"
    for pattern in (names, words):
        for messages in made:
            taught.update(re.findall(pattern, " ".join(m.content for m in messages)))
        for question in asked:
            held_out.update(re.findall(pattern, " ".join(m.content for m in question.messages)))
    assert len(taught) > 300
    assert len(held_out) > 100
    assert (taught.keys() & held_out.keys()) == set()


@pytest.mark.parametrize("kind", ["python", "opposite", "dates", "arithmetic"])
def test_held_out_wordings_of_a_fact_are_never_in_training(made, asked, kind):
    def plain(text):
        return text.lower().rstrip(".?")

    taught = {plain(m.content) for messages in made for m in messages if m.role == "user"}
    held_out = {plain(q.messages[-1].content) for q in asked if q.kind == kind}
    assert len(held_out) > 10
    assert not taught & held_out


def test_what_was_said_and_told_is_the_reply(made):
    count = 0
    for messages in made:
        said = [m.content for m in messages if m.role != "system"]
        for index, text in enumerate(said):
            if index % 2 and text.startswith("You said:"):
                assert text == f"You said:\n{said[index - 3]}"
            if index % 2 and text.startswith("I said:"):
                assert text == f"I said:\n{said[index - 2]}"
            if index % 2 and text.startswith("Your name is "):
                name = text.removeprefix("Your name is ").rstrip(".")
                before = messages[: messages.index(("assistant", text))]
                assert name in " ".join(message.content for message in before)
                count += 1
    assert count > 50


def test_calculations_are_right(made):
    operations = {"plus": int.__add__, "minus": int.__sub__, "times": int.__mul__}
    found = 0
    for messages in made:
        said = " ".join(replies(messages))
        for a, kind, b, result in re.findall(r"(\d+) (\w+) (\d+) is (\d+)", said):
            assert operations[kind](int(a), int(b)) == int(result)
            found += 1
    assert found > 200


def test_half_of_what_asks_for_something_told_has_been_told(asked):
    for kind in ("ask name", "ask told", "what I said", "what you said"):
        of_kind = [question.reply for question in asked if question.kind == kind]
        told = [reply for reply in of_kind if not re.search("have not (told|said)", reply)]
        assert len(told) >= 15


def test_facts_are_sentences_of_python_itself():
    documented = facts.documented()
    assert len(documented) > 100
    assert documented["str.upper"] == "Return a copy of the string converted to uppercase."
    assert "heapq" in documented
    for name, sentence in documented.items():
        assert re.fullmatch(r"[a-zA-Z_0-9.]+", name)
        assert re.fullmatch(r"[A-Z].{10,75}\.", sentence)


def test_opposites_are_symmetric_and_dates_complete():
    assert all(facts.OPPOSITES[facts.OPPOSITES[word]] == word for word in facts.OPPOSITES)
    assert sum(facts.DAYS_IN_MONTH.values()) == 365
    assert len(facts.DAYS) == 7


def test_one_in_ten_items_is_held_out():
    assert 80 < sum(map(is_held_out, range(1000))) < 120


def test_the_version_is_increased_when_the_conversations_change(monkeypatch):
    # If this fails, increase VERSION, on which the cache of tokens depends, and copy the hash.
    sentences, words = {"json": "Read and write JSON.", "abs": "Return."}, ["apple", "bear", "zone"]
    monkeypatch.setattr(facts, "documented", lambda: sentences)
    monkeypatch.setattr(facts, "english_words", lambda: words * 5)
    text = repr([list(map(tuple, messages)) for messages in conversations(300)])
    digest = hashlib.sha256(text.encode()).hexdigest()[:16]
    assert (builtin.VERSION, digest) == (2, "af4c42614de88c03")


@pytest.mark.parametrize(
    ("name", "expected"),
    [(CONVERSATIONS, conversations), (HELD_OUT_CONVERSATIONS, held_out_conversations)],
)
def test_conversations_are_a_source(monkeypatch, name, expected):
    monkeypatch.setattr(f"src.data.readers.{expected.__name__}", lambda: expected(30))
    report = ReadReport()
    documents = iterate_documents(name, ReadOptions(are_conversations=True), report)
    assert [from_text(document.text) for document in documents] == list(expected(30))
    assert report.sources[0].documents == 30


def test_held_out_conversations_end_with_the_reply():
    made = list(held_out_conversations())
    assert len(made) == builtin._HELD_OUT_COUNT
    assert all(
        messages == [*question.messages, ("assistant", question.reply)]
        for messages, question in zip(made, questions(len(made)), strict=True)
    )


@pytest.mark.parametrize(
    ("name", "is_for_conversations", "key"),
    [(CONVERSATIONS, False, "conversations"), (BUILTIN, True, "sources")],
)
def test_a_builtin_source_of_the_other_kind_is_an_error(name, is_for_conversations, key):
    options = ReadOptions(are_conversations=is_for_conversations)
    with pytest.raises(AGI2Error, match=f"^{name} is for the key {key}$"):
        list(iterate_documents(name, options))


def test_the_token_cache_depends_on_the_version(tmp_path, monkeypatch):
    def identify():
        return identify_file(Path(CONVERSATIONS), FileHashes(tmp_path / "hashes.json"), {})

    before = identify()
    monkeypatch.setattr("src.data.token_cache.VERSION", builtin.VERSION + 1)
    assert identify() != before
