"""The built-in conversations: generated from a seed, without a download.

1. `conversation_facts` has the words, names and facts.
2. `conversation_kinds` and `conversation_tasks` have the kinds of exchanges.
3. A conversation is one to six exchanges; what was told in it is asked later.
4. One in ten names, words, numbers, sentences and, for each fact (of Python, of dates, a sum),
   wordings is held out: `conversations` has none of them, `questions` has no others. Greetings,
   thanks and other kinds of a fixed text (`FIXED`) have nothing to hold out: `questions` repeats
   them.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from random import Random
from typing import NamedTuple

from . import conversation_kinds as kinds
from . import conversation_tasks as tasks
from .chat_template import Message
from .conversation_kinds import Exchange, Talk

VERSION = 2
"""Increased when the conversations change: the cache of tokens depends on it."""

# Enough that a run of ten minutes on two cores trains on none of them twice.
_COUNT = 40_000
_HELD_OUT_COUNT = 500


class Question(NamedTuple):
    """A conversation that ends with a question, its kind, and the right reply."""

    kind: str
    messages: list[Message]
    reply: str


# How often a kind occurs: those that are harder to learn more often.
KINDS: dict[str, tuple[Callable[[Talk], Exchange], float]] = {
    "greeting": (kinds.greeting, 3),
    "well-being": (kinds.well_being, 1),
    "thanks": (kinds.thanks, 1),
    "goodbye": (kinds.goodbye, 2),
    "about itself": (kinds.about_itself, 3),
    "tell name": (kinds.tell_name, 5),
    "ask name": (kinds.ask_name, 5),
    "tell": (kinds.tell, 5),
    "ask told": (kinds.ask_told, 8),
    "echo": (tasks.echo, 9),
    "what I said": (tasks.what_i_said, 9),
    "what you said": (tasks.what_you_said, 7),
    "remark": (tasks.remark, 3),
    "unknown": (tasks.unknown, 3),
    "arithmetic": (tasks.arithmetic, 14),
    "numbers": (tasks.numbers, 9),
    "dates": (tasks.dates, 6),
    "opposite": (tasks.opposite, 5),
    "python": (tasks.python, 10),
}
FIXED = frozenset({"greeting", "well-being", "thanks", "goodbye", "about itself"})
"""Kinds of a fixed text, in which nothing is held out."""
_NAMES, _WEIGHTS = list(KINDS), [weight for _, weight in KINDS.values()]


def conversations(count: int = _COUNT, seed: int = 0) -> Iterator[list[Message]]:
    """Yield conversations to train on; each ends with a reply."""
    random = Random(seed)
    for _ in range(count):
        yield _conversation(random)


def questions(count: int, seed: int = 0) -> Iterator[Question]:
    """Yield held-out questions, of each kind in turn."""
    random = Random(f"held out {seed}")
    for index in range(count):
        kind = _NAMES[index % len(_NAMES)]
        *messages, (_, reply) = _conversation(random, kind)
        yield Question(kind, messages, reply)


def held_out_conversations(count: int = _HELD_OUT_COUNT, seed: int = 0) -> Iterator[list[Message]]:
    """Yield held-out questions with their replies, as conversations."""
    for question in questions(count, seed):
        yield [*question.messages, Message("assistant", question.reply)]


def _conversation(random: Random, last: str | None = None) -> list[Message]:
    """Return a conversation; with `last`, of held-out items, its last exchange of that kind."""
    talk = Talk(random, held_out=last is not None)
    messages = [Message("system", system)] if (system := _system(talk)) else []
    count = random.choice((1, 2, 2, 3, 3, 4, 5))
    chosen = random.choices(_NAMES, _WEIGHTS, k=count)
    if last:
        chosen[-1] = last
    for kind in _with_what_they_ask_for(chosen, random):
        exchange = KINDS[kind][0](talk)
        talk.exchanges.append(exchange)
        messages.append(Message("user", exchange.user))
        messages.append(Message("assistant", exchange.reply))
    return messages


# What is asked for by a kind was mostly said before, by one of these.
_SAID_BEFORE = {
    "ask name": ["tell name"],
    "ask told": ["tell"],
    "what I said": ["tell name", "tell", "remark", "greeting"],
    "what you said": ["greeting", "echo", "tell name", "about itself"],
}


def _with_what_they_ask_for(chosen: list[str], random: Random) -> list[str]:
    """Return kinds with others before those that ask for what was said, if there are none."""
    complete: list[str] = []
    for kind in chosen:
        before = _SAID_BEFORE.get(kind, [])
        if before and not set(before) & set(complete) and random.random() < 0.8:
            place = random.randint(max(0, len(complete) - 2), len(complete))
            complete.insert(place, random.choice(before))
        complete.append(kind)
    return complete


def _system(talk: Talk) -> str:
    """Return a system message, or, mostly, none: who the model is, or who the user is."""
    form = talk.random.random()
    choose = talk.random.choice
    if form < 0.06:
        talk.own_name = talk.name()
        wording = choose(("Your name is {}.", "You are {}.", "You are called {}."))
        return wording.format(talk.own_name)
    if form < 0.12:
        name = talk.told["name"] = talk.name()
        wording = choose(("The user's name is {}.", "You talk to {}.", "The user is called {}."))
        return wording.format(name)
    return "You are a helpful assistant." if form < 0.18 else ""
