"""Tasks in the built-in conversations: to repeat, calculate, count, and answer on facts."""

from __future__ import annotations

from . import conversation_facts as facts
from .conversation_kinds import Exchange, Talk


def echo(talk: Talk) -> Exchange:
    """Ask to say something.

    In quotation marks, it is the same tokens as in the reply: after a space, words have others.
    """
    text = talk.text()
    return Exchange(talk.ask(_SAY, x=text), text)


_SAY = """
    Say "{x}"
    Say: "{x}"
    Repeat "{x}"
    Repeat after me: "{x}"
    Please say "{x}"
    Please repeat this: "{x}"
    Can you say "{x}"?
    Say {x}
    Repeat: {x}
"""


def what_i_said(talk: Talk) -> Exchange:
    """Ask for the user's last message."""
    said = f"You said:\n{talk.exchanges[-1].user}" if talk.exchanges else None
    return Exchange(talk.ask(_WHAT_I_SAID), said or "You have not said anything yet.")


_WHAT_I_SAID = """
    What did I just say?
    What did I say?
    Repeat what I just said.
    Can you repeat what I said?
    What have I just said?
    What was my last message?
    Do you remember what I just said?
"""


def what_you_said(talk: Talk) -> Exchange:
    """Ask for the model's last message."""
    said = f"I said:\n{talk.exchanges[-1].reply}" if talk.exchanges else None
    return Exchange(talk.ask(_WHAT_YOU_SAID), said or "I have not said anything yet.")


_WHAT_YOU_SAID = """
    What did you just say?
    What did you say?
    Repeat what you just said.
    Can you repeat what you said?
    What have you just said?
    Can you say that again?
    Say that again, please.
    What was your last message?
"""


def remark(talk: Talk) -> Exchange:
    """Say something that is no question."""
    return Exchange(talk.text(), "I see.")


def unknown(talk: Talk) -> Exchange:
    """Ask for what the model cannot know."""
    noun, adjective = talk.random.choice(facts.NOUNS), talk.random.choice(facts.ADJECTIVES)
    asked = talk.ask(_UNKNOWN, n=talk.name(), t=noun, a=adjective)
    return Exchange(asked, "I do not know that.")


_UNKNOWN = """
    Where is {n}?
    Who is {n}?
    Why is the {t} {a}?
    What do you think of {n}?
    When will the {t} come?
    How many {t}s does {n} have?
    Where did {n} find the {t}?
    Is the {t} {a}?
    Will it rain tomorrow?
    Can you cook a {t}?
    How far is it to {n}?
    Why does {n} like the {a} {t}?
    What is the capital of {n}?
    How old is {n}?
    Who made the {a} {t}?
    How do I make a {t}?
    Can you tell me about {n}?
"""


def arithmetic(talk: Talk) -> Exchange:
    """Ask for a sum, a difference or a product of numbers up to 10."""
    draw = talk.random.randint
    kind = talk.random.choice(("plus", "minus", "times"))
    a, b = draw(0, 10), draw(0, 10)
    if kind == "minus":
        a, b = max(a, b), min(a, b)
    result = {"plus": a + b, "minus": a - b, "times": a * b}[kind]
    text = f"{a} {kind} {b}"
    return Exchange(talk.ask_fact(_CALCULATE, text), f"{text} is {result}.")


_CALCULATE = """
    What is {x}?
    How much is {x}?
    {x}?
    Can you tell me what {x} is?
    Calculate {x}.
    What do you get for {x}?
"""


def numbers(talk: Talk) -> Exchange:
    """Ask to compare numbers, or to count."""
    form = talk.random.randrange(4)
    if form == 0:
        a, b = talk.draw(lambda: tuple(talk.random.sample(range(21), 2)))
        word = talk.random.choice(("larger", "smaller"))
        best = max(a, b) if word == "larger" else min(a, b)
        return Exchange(talk.ask(_COMPARE, w=word, a=a, b=b), f"{best} is {word}.")
    if form == 1:
        first, size = talk.draw(lambda: (talk.random.randint(0, 20), talk.random.randint(2, 4)))
        last = first + size
        counted = ", ".join(map(str, range(first, last + 1)))
        return Exchange(talk.ask(_COUNT, a=first, b=last), f"{counted}.")
    number = talk.random.randint(1, 50)
    word, step = ("after", 1) if form == 2 else ("before", -1)
    asked = talk.ask_fact(_NEXT_NUMBER.replace("{w}", word), str(number))
    return Exchange(asked, f"{word.capitalize()} {number} comes {number + step}.")


_COMPARE = """
    Which number is {w}, {a} or {b}?
    Which is {w}, {a} or {b}?
    What is {w}: {a} or {b}?
"""
_COUNT = """
    Count from {a} to {b}.
    Can you count from {a} to {b}?
    Please count from {a} to {b}.
"""
_NEXT_NUMBER = """
    What comes {w} {x}?
    Which number comes {w} {x}?
    What is the number {w} {x}?
"""


def dates(talk: Talk) -> Exchange:
    """Ask for the day or month after or before another, or the days of a month."""
    form = talk.random.randrange(4)
    names = facts.DAYS if form < 2 else facts.MONTHS
    name = talk.random.choice(names)
    if form == 3:
        asked = talk.ask_fact(_DAYS_OF_MONTH, name)
        return Exchange(asked, f"{name} has {facts.DAYS_IN_MONTH[name]} days.")
    word, step = talk.random.choice((("after", 1), ("before", -1)))
    wordings = _NEXT_NAME.replace("{w}", word).replace("{y}", "day" if form < 2 else "month")
    if form == 0:
        wordings, step, word = _TOMORROW, 1, "after"
    result = names[(names.index(name) + step) % len(names)]
    return Exchange(talk.ask_fact(wordings, name), f"{word.capitalize()} {name} comes {result}.")


_DAYS_OF_MONTH = """
    How many days does {x} have?
    How many days are in {x}?
    How many days are there in {x}?
    How long is {x}?
    What is the number of days in {x}?
    Tell me how many days {x} has.
"""
_NEXT_NAME = """
    What comes {w} {x}?
    Which {y} comes {w} {x}?
    What {y} is {w} {x}?
    Which {y} is {w} {x}?
    Tell me the {y} {w} {x}.
    What is the {y} {w} {x}?
"""
_TOMORROW = """
    Today is {x}. What day is tomorrow?
    If today is {x}, what day is tomorrow?
    It is {x}. Which day is it tomorrow?
    What day is it tomorrow, if today is {x}?
    What is the next day, if it is {x} today?
"""


def opposite(talk: Talk) -> Exchange:
    """Ask for the opposite of a word."""
    word = talk.random.choice(list(facts.OPPOSITES))
    asked = talk.ask_fact(_OPPOSITE, word)
    return Exchange(asked, f"The opposite of {word} is {facts.OPPOSITES[word]}.")


_OPPOSITE = """
    What is the opposite of {x}?
    What's the opposite of {x}?
    Tell me the opposite of {x}.
    Which word is the opposite of {x}?
    What is the contrary of {x}?
    Do you know the opposite of {x}?
    Can you tell me the opposite of {x}?
    What would be the opposite of {x}?
"""


def python(talk: Talk) -> Exchange:
    """Ask what a module, function or method of Python does."""
    documented = facts.documented()
    name = talk.random.choice(list(documented))
    return Exchange(talk.ask_fact(_PYTHON, name), f"{name}: {documented[name]}")


_PYTHON = """
    What does {x} do?
    What is {x}?
    What is {x} for?
    Explain {x}.
    Tell me about {x}.
    What does {x} do in Python?
    Describe {x}.
    What is {x} in Python?
    Do you know {x}?
    What can I do with {x}?
"""
