"""Texts and conversations are split each by itself, conversations as wholes."""

import random
from itertools import chain

import numpy as np
import pytest

from src.data import dedup
from src.data.chat_template import Message
from src.data.conversations import to_text, turns_of
from src.data.corpus_options import CorpusOptions
from src.data.corpus_plan import plan_groups
from src.data.scan import Scanner, scan_texts
from src.data.sketches import SKETCH
from src.errors import AGI2Error
from tests.conftest import make_text
from tests.data.chats import make_conversation, random_conversations
from tests.data.test_copies import edited, resemblance, words

NO_SKETCHES = np.zeros(99, SKETCH)


def plan(texts, chats, val_texts=(), val_chats=(), **options):
    groups = (texts, val_texts, [*map(to_text, chats)], [*map(to_text, val_chats)])
    scan = scan_texts([each for group in groups for each in group])
    options = CorpusOptions(["a"], conversations=["b"], **options)
    found = plan_groups(scan, options, [[len(group)] for group in groups], NO_SKETCHES[: len(scan)])
    return [found.spans(index) for index in range(len(scan))], scan.characters.tolist()


@pytest.mark.parametrize("count", [2, 5, 12, 60])
def test_conversations_are_held_out_as_wholes_however_few(count):
    spans, sizes = plan([make_text(200)], random_conversations(count), val_fraction=0.3)
    assert len(spans[0]) == 2  # the end of the text
    held_out = 0
    for own, size in zip(spans[1:], sizes[1:], strict=True):
        ((first, last, is_held_out),) = own
        assert (first, last) == (0, size)
        held_out += size * is_held_out
    assert held_out <= 0.5 * sum(sizes[1:])
    if count >= 5:
        assert held_out >= 0.1 * sum(sizes[1:])


def test_copies_of_conversations_are_on_one_side_or_removed():
    chats = [*random_conversations(30), *random_conversations(30)]
    spans, _ = plan([], chats, val_fraction=0.3)
    assert [own[0][2] for own in spans[:30]] == [own[0][2] for own in spans[30:]]
    assert any(own[0][2] for own in spans)
    spans, _ = plan([make_text()], chats, val_fraction=0.3, dedup=True)
    assert all(spans[:31])
    assert not any(spans[31:])


def test_what_is_said_in_conversations_is_compared(monkeypatch):
    monkeypatch.setattr(dedup, "_MAX_SHINGLES", 10)  # else there are no sketches to compare
    draw = random.Random(1)
    said = [words(draw, 90) for _ in range(20)]
    said += [edited(draw, text, draw.choice([0.05, 0.07, 0.09])) for text in said]
    chats = [to_text([Message("user", "Hi"), Message("assistant", text)]) for text in said]
    documents, read, data = [make_text(20), make_text(30, 1), *chats], [], []
    scanner = Scanner(None, data.append)
    for index, text in enumerate(documents):
        scanner.add(text, is_conversation=index >= 2)

    def texts_of(indices):
        read.extend(indices.tolist())
        return [turns_of(documents[index]) for index in indices.tolist()]

    scan, sketches = scanner.finish(), np.frombuffer(b"".join(data), SKETCH)
    options = CorpusOptions(["a"], conversations=["b"], val_fraction=0.0, dedup=True)
    found = plan_groups(scan, options, [[2], [0], [40], [0]], sketches, read=texts_of)
    assert min(read) >= 2
    near = [resemblance(*map(turns_of, chats[at::20])) >= 0.8 for at in range(20)]
    assert 2 < sum(near) < 18
    assert found.removed.tolist() == [False] * 22 + near


def test_near_copies_across_the_sides_are_reported(caplog):
    chats = random_conversations(30, words=30)
    near = [[chat[0], chat[1]._replace(content=chat[1].content + " indeed"), *chat[2:]]
            for chat in chats[:4]]  # fmt: skip
    spans, _ = plan([], [*chats, *near], val_fraction=0.3)
    assert [own[0][2] for own in spans[:4]] == [own[0][2] for own in spans[30:]]
    plan([make_text()], chats, val_chats=near)
    assert "4 documents of val_conversations: at least half is in the training text" in caplog.text


def test_alike_questions_are_held_out_one_by_one(caplog):
    chats = [make_conversation([(f"Please tell me now: what is the sum of {a} and {b}?",
                                 f"The sum of these two numbers is {a + b}.")])
             for a in range(9) for b in range(9)]  # fmt: skip
    spans, sizes = plan([], chats, val_fraction=0.2)
    held_out = sum(size for own, size in zip(spans, sizes, strict=True) if own[0][2])
    assert 0.1 <= held_out / sum(sizes) <= 0.3
    assert "of the text of the held-out conversations is in the training text, too" in caplog.text


def test_conversations_to_validate_on_leave_the_others(caplog):
    chats = random_conversations(9)
    spans, _ = plan([make_text()], chats, [], [*chats[2:4], *random_conversations(2, seed=8)])
    assert [bool(own) for own in spans[1:10]] == [True, True, False, False, *[True] * 5]
    assert [own[0][2] for own in spans[1:] if own] == [False] * 7 + [True] * 4
    assert "as val_conversations has the same: 2 documents" in caplog.text
    with pytest.raises(AGI2Error, match=r"^val_conversations: all of the training text is in it"):
        plan([], chats[:2], [], chats)


def plan_pairs(pairs, val_pairs=(), **options):
    """Whether each pair, of a prompt and two replies, is held out; `None` if it is removed."""

    def text(prompt, *replies):
        return to_text(*(make_conversation([(prompt, reply)], "Be brief.") for reply in replies))

    groups = [[text(*each) for each in group] for group in (pairs, val_pairs)]
    scan = scan_texts([each for group in groups for each in group])
    options = CorpusOptions([], preferences=["a"], **options)
    counts = [[], [], [], [], *([len(group)] for group in groups)]
    texts = chain.from_iterable(groups)
    found = plan_groups(scan, options, counts, NO_SKETCHES[: len(scan)], texts)
    sides = [found.spans(index) for index in range(len(scan))]
    return [spans[0][2] if spans else None for spans in sides]


@pytest.mark.parametrize("words", [1, 40])
@pytest.mark.parametrize("prompts", [6, 25])
def test_pairs_with_the_same_prompt_are_on_one_side(prompts, words, caplog):
    """However short the prompt and however alike the pairs, also with a copy removed."""
    pairs = [
        (f"{'What is next after this? ' * words}{number}", f"It is {number}.", f"{guess}!")
        for guess in "abc" for number in range(prompts)
    ]  # fmt: skip
    sides = plan_pairs([pairs[0], *pairs], val_fraction=0.3, dedup=True)
    kept = [side for side in sides if side is not None]
    assert 0 < sum(kept) < len(kept)
    for number in range(prompts):
        own = {sides[1 + number + prompts * guess] for guess in range(3)} - {None}
        assert len(own) <= 1
    assert "the prompt of" not in caplog.text


def test_prompts_on_both_sides_are_reported(caplog):
    pairs = [("How are you?", make_text(9, seed), make_text(9, 99 + seed)) for seed in range(9)]
    sides = plan_pairs(pairs, val_fraction=0.3)
    assert 0 < sum(sides) < 9
    assert f"the prompt of {sum(sides)} held-out pairs is that of a training pair" in caplog.text
    caplog.clear()
    others = [("And now?", "Well.", "Ill."), ("How are you?", "Well.", "Ill.")]
    assert plan_pairs(pairs[:3], others) == [False] * 3 + [True] * 2
    assert "the prompt of 1 held-out pair is that of a training pair" in caplog.text


@pytest.mark.parametrize("fraction", [0.999999, 0.9999999])
def test_text_of_which_all_is_held_out_is_refused(fraction):
    with pytest.raises(
        AGI2Error, match=f"nothing is left to train on: .* val_fraction, {fraction}"
    ):
        plan(["ab" * 99], [], val_fraction=fraction)
