"""The kinds of exchanges in the built-in conversations: what a user says, and the reply.

A kind is a function of the conversation so far, a `Talk`. The reply follows from what was said and
from fixed facts: a model's reply is right if it is the same text.
"""

from __future__ import annotations

import zlib
from collections.abc import Callable
from functools import cache
from random import Random
from typing import NamedTuple, TypeVar

from . import conversation_facts as facts

_T = TypeVar("_T")
# One of so many items is held out.
_HELD_OUT = 10


def is_held_out(item: object) -> bool:
    """Return whether an item, such as a name, or two numbers to add, is never in training."""
    return zlib.crc32(repr(item).encode()) % _HELD_OUT == 0


class Exchange(NamedTuple):
    """What a user says, and the reply."""

    user: str
    reply: str


class Talk:
    """A conversation in the making: what was said, and what the user has told.

    Args:
        random: chooses everything.
        held_out: whether names, words, numbers and wordings are the held-out ones.
    """

    def __init__(self, random: Random, held_out: bool = False) -> None:
        self.random, self._held_out = random, held_out
        self.exchanges: list[Exchange] = []
        self.told: dict[str, str] = {}
        self.own_name = "AGI2"

    def draw(self, make: Callable[[], _T]) -> _T:
        """Return an item that is held out, or one that is not."""
        while is_held_out(item := make()) != self._held_out:
            pass
        return item

    def name(self) -> str:
        """Return the name of a person, an animal or a town."""
        return self.draw(lambda: facts.random_name(self.random))

    def word(self) -> str:
        """Return a word."""
        return self.draw(lambda: facts.random_word(self.random))

    def number(self, first: int, last: int) -> int:
        """Return a number from `first` to `last`."""
        return self.draw(lambda: self.random.randint(first, last))

    def text(self) -> str:
        """Return something to say: words, a sentence, a name or a number."""
        form = self.random.random()
        if form < 0.45:
            words = (self.word() for _ in range(self.random.choice((1, 1, 2, 2, 3, 4, 5))))
            text = " ".join(words)
            return text if form < 0.22 else f"{text.capitalize()}."
        if form < 0.6:
            number = str(self.number(0, 99))
            return self.random.choice((self.name(), number, f"Hello, {self.name()}!"))
        return self.draw(self._sentence)

    def _sentence(self) -> str:
        choose: Callable[..., str] = self.random.choice
        verb, thing = choose(facts.VERBS), f"{choose(facts.ADJECTIVES)} {choose(facts.NOUNS)}"
        subject = choose((f"The {thing} {verb}s", f"{self.name()} {verb}s", f"I {verb}"))
        thing = f"{choose(facts.ADJECTIVES)} {choose(facts.NOUNS)}"
        target = choose((f"the {choose(facts.NOUNS)}", f"the {thing}", self.name()))
        place = choose(("", f" {choose(facts.PREPOSITIONS)} the {choose(facts.NOUNS)}"))
        return f"{subject} {target}{place}."

    def ask(self, wordings: str, **slots: object) -> str:
        """Return one of the wordings, one a line, with its slots filled."""
        return self._fill(self.random.choice(_lines(wordings)), slots)

    def ask_fact(self, wordings: str, fact: str) -> str:
        """Return a question about a fact: for each fact, one of the wordings is held out."""
        lines = _lines(wordings)
        place = zlib.crc32(fact.encode()) % len(lines)
        others = [*lines[:place], *lines[place + 1 :]]
        wording = lines[place] if self._held_out else self.random.choice(others)
        return self._fill(wording, {"x": fact})

    def _fill(self, wording: str, slots: dict[str, object]) -> str:
        # People do not always type the capital and the last mark.
        if self.random.random() < 0.15:
            wording = wording[0].lower() + wording[1:]
        if self.random.random() < 0.15:
            wording = wording.rstrip(".?!")
        return wording.format(**slots)


@cache
def _lines(wordings: str) -> list[str]:
    return [line.strip() for line in wordings.strip().splitlines()]


def greeting(talk: Talk) -> Exchange:
    """Greet, or ask how the other is."""
    if talk.random.random() < 0.4:
        return Exchange(talk.ask(_GREETINGS), "Hello! How can I help you?")
    return Exchange(talk.ask(_HOW_ARE_YOU), "I am fine, thank you. How are you?")


_GREETINGS = """
    Hello.
    Hi.
    Hey.
    Hello!
    Hi!
    Hey there!
    Good morning.
    Good evening.
    Hi there.
    Hello there!
"""
_HOW_ARE_YOU = """
    Hello, how are you today?
    How are you?
    Hi, how are you?
    Hello, how are you?
    How are you today?
    Hi! How are you doing?
    How do you do?
    Hey, how is it going?
    Good morning, how are you?
"""


def well_being(talk: Talk) -> Exchange:
    """Tell how one is."""
    if talk.random.random() < 0.6:
        return Exchange(talk.ask(_WELL), "I am glad to hear that.")
    return Exchange(talk.ask(_NOT_WELL), "I am sorry to hear that.")


_WELL = """
    I am fine.
    I am fine, thanks.
    Very well, thank you.
    I am good.
    Great!
    I'm fine, too.
"""
_NOT_WELL = """
    Not so well.
    I am tired.
    I am sad.
    I feel bad today.
    Not good.
"""


def thanks(talk: Talk) -> Exchange:
    """Thank."""
    return Exchange(talk.ask(_THANKS), "You are welcome.")


_THANKS = """
    Thank you.
    Thanks.
    Thanks a lot!
    Thank you very much.
    Many thanks.
    Thank you!
"""


def goodbye(talk: Talk) -> Exchange:
    """Take leave; the reply has the user's name, if it was told."""
    name = talk.told.get("name")
    return Exchange(talk.ask(_GOODBYE), f"Goodbye, {name}!" if name else "Goodbye!")


_GOODBYE = """
    Goodbye.
    Bye.
    Bye!
    See you later.
    Goodbye!
    I have to go now.
"""


def about_itself(talk: Talk) -> Exchange:
    """Ask the model who it is, and what it can do."""
    form = talk.random.random()
    if form < 0.6:
        return Exchange(talk.ask(_YOUR_NAME), f"My name is {talk.own_name}.")
    if form < 0.8:
        skills = "I can repeat, remember, count, add and tell you about Python."
        return Exchange(talk.ask(_YOUR_SKILLS), skills)
    return Exchange(talk.ask(_YOUR_NATURE), "I am a small language model.")


_YOUR_NAME = """
    What is your name?
    What's your name?
    Who are you?
    What are you called?
    Tell me your name.
    Do you have a name?
"""
_YOUR_SKILLS = """
    What can you do?
    How can you help me?
    What do you know?
"""
_YOUR_NATURE = """
    Are you a human?
    Are you a person?
    Are you a robot?
    What are you?
"""


def tell_name(talk: Talk) -> Exchange:
    """Tell the user's name."""
    name = talk.told["name"] = talk.name()
    return Exchange(talk.ask(_MY_NAME_IS, x=name), f"Nice to meet you, {name}.")


_MY_NAME_IS = """
    My name is {x}.
    I am {x}.
    I'm {x}.
    Call me {x}.
    Hello, I am {x}.
    Hi, my name is {x}.
    Please call me {x}.
    You can call me {x}.
    Hello, my name is {x}.
    The name is {x}.
"""


def ask_name(talk: Talk) -> Exchange:
    """Ask for the user's name."""
    name = talk.told.get("name")
    reply = f"Your name is {name}." if name else "You have not told me your name."
    return Exchange(talk.ask(_MY_NAME), reply)


_MY_NAME = """
    What is my name?
    What's my name?
    Do you know my name?
    Who am I?
    What am I called?
    Tell me my name.
    Can you tell me my name?
    Do you remember my name?
    Say my name.
"""


def tell(talk: Talk) -> Exchange:
    """Tell something to remember."""
    if talk.random.random() < 0.4:
        thing = talk.random.choice(facts.THINGS)
        value = talk.told[f"favorite {thing}"] = talk.word()
        wordings = "My favorite {y} is {x}.\nRemember: my favorite {y} is {x}."
        asked = talk.ask(wordings, x=value, y=thing)
    else:
        key = talk.random.choice(list(_TOLD))
        values = {
            "age": lambda: str(talk.number(2, 99)),
            "number": lambda: str(talk.number(0, 99)),
            "password": talk.word,
            "word": talk.word,
        }
        value = talk.told[key] = values.get(key, talk.name)()
        asked = talk.ask(_TOLD[key][0], x=value)
    return Exchange(asked, "I will remember that.")


def ask_told(talk: Talk) -> Exchange:
    """Ask for something that was told, or, at times, was not."""
    keys = [key for key in talk.told if key != "name"]
    if not keys or talk.random.random() < 0.1:
        keys = [*_TOLD, *(f"favorite {thing}" for thing in facts.THINGS)]
    key = talk.random.choice(keys)
    favorite = (None, _MY_FAVORITE.replace("{y}", key), f"Your {key} is {{x}}.")
    _, wordings, answer = _TOLD.get(key, favorite)
    value = talk.told.get(key)
    return Exchange(
        talk.ask(wordings), answer.format(x=value) if value else "You have not told me."
    )


_MY_FAVORITE = """
    What is my {y}?
    Do you know my {y}?
    Tell me my {y}.
"""
# What a user tells: the wordings, those of the question, and the reply.
_TOLD = {
    "town": (
        "I live in {x}.\nMy home is in {x}.\nI live in a town called {x}.",
        "Where do I live?\nWhere is my home?\nIn which town do I live?",
        "You live in {x}.",
    ),
    "age": (
        "I am {x} years old.\nMy age is {x}.",
        "How old am I?\nWhat is my age?\nDo you know my age?",
        "You are {x} years old.",
    ),
    "dog": (
        "My dog is called {x}.\nI have a dog called {x}.\nThe name of my dog is {x}.",
        "What is my dog called?\nWhat is the name of my dog?",
        "Your dog is called {x}.",
    ),
    "friend": (
        "My friend is called {x}.\nI have a friend called {x}.",
        "Who is my friend?\nWhat is my friend called?",
        "Your friend is called {x}.",
    ),
    "password": (
        "The password is {x}.\nRemember the password {x}.",
        "What is the password?\nTell me the password.",
        "The password is {x}.",
    ),
    "word": (
        "Remember the word {x}.\nKeep the word {x} in mind.",
        "Which word did I ask you to remember?\nWhat was the word?",
        "The word is {x}.",
    ),
    "number": (
        "Remember the number {x}.\nMy number is {x}.",
        "Which number did I tell you?\nWhat was the number?",
        "The number is {x}.",
    ),
}
