"""Facts and words of the built-in conversations: from Python's documentation, and from lists."""

from __future__ import annotations

import builtins
import re
from collections.abc import Iterator
from functools import lru_cache
from random import Random
from types import BuiltinFunctionType

from .builtin import library_modules


def _words(text: str) -> list[str]:
    return text.split()


DAYS = _words("Monday Tuesday Wednesday Thursday Friday Saturday Sunday")
MONTHS = _words("""
    January February March April May June July August September October November December
    """)
DAYS_IN_MONTH = dict(zip(MONTHS, [31, 28, 31, 30, 31, 30, 31, 31, 30, 31, 30, 31], strict=True))
_PAIRS = _words("""
    hot cold big small high low open closed early late young old rich poor full empty light dark
    strong weak soft hard wet dry good bad long short fast slow near far happy sad up down left
    right day night first last black white true false yes no inside outside above below before
    after easy difficult clean dirty loud quiet thick thin wide narrow deep shallow sweet sour
    begin end win lose buy sell push pull love hate remember forget north south east west summer
    winter friend enemy question answer
    """)
OPPOSITES = dict(zip(_PAIRS, (_PAIRS[i ^ 1] for i in range(len(_PAIRS))), strict=True))
ADJECTIVES = _words("""
    small big red green blue old new quiet happy dark warm cold kind clever round empty heavy
    slow quick bright soft wild tall young strange yellow
    """)
NOUNS = _words("""
    cat dog horse bird house tree river book car boat garden table window door apple cake letter
    song child teacher farmer king queen star stone flower bridge train road mountain
    """)
VERBS = _words("see like find want hear love need follow paint buy sell remember watch draw forget")
PREPOSITIONS = _words("in at near behind under above beside before after with")
THINGS = _words("color food animal game book song drink sport city flower season")
_NAMES = _words("""
    Ada Alan Alice Amir Anna Anton Aisha Ben Bella Boris Carla Carlos Chen Clara Daniel David
    Diego Dora Elena Elias Emil Emma Erik Eva Fatima Felix Finn Frank Fritz Gita Grace Greta
    Hana Hans Hugo Ida Igor Ines Ivan Jack Jan Jane Jonas Jorge Judith Julia Kai Karl Kim Klara
    Kofi Lars Laura Lea Leo Lin Linda Lucas Lucy Luis Maria Mark Martin Mary Max Mia Mila Mina
    Nadia Nils Nina Noah Nora Olga Oliver Omar Oscar Otto Paul Pedro Peter Petra Priya Rachel
    Raj Rita Robert Rosa Ruth Sam Sara Selma Simon Sofia Sven Tara Theo Thomas Tim Tom Uma Vera
    Victor Wei Wendy Yara Yusuf Zoe
    """)
_ONSETS = _words("b c d f g h j k l m n p r s t v w y z br ch cl cr dr fl gr kr pl qu sh st th tr")
_CODAS = ["", *_words("l m n r s t x ck nd ng rt sk st")]


def random_name(random: Random) -> str:
    """Return the name of a person: a common one, or one made of syllables."""
    return random.choice(_NAMES) if random.random() < 0.3 else _syllables(random).capitalize()


def random_word(random: Random) -> str:
    """Return a word, lowercase: of Python's documentation, or made of syllables."""
    return random.choice(english_words()) if random.random() < 0.75 else _syllables(random)


def _syllables(random: Random) -> str:
    count = random.choice((2, 2, 2, 3))
    onsets = random.sample(_ONSETS, count)
    return "".join(onset + random.choice("aeiou") for onset in onsets) + random.choice(_CODAS)


@lru_cache(maxsize=1)
def english_words() -> list[str]:
    """Return the words of Python's language reference, lowercase, of 3 to 10 letters, sorted."""
    from pydoc_data.topics import topics

    text = "\n".join(topics.values())
    return sorted(set(re.findall(r"(?<![\w.'-])[a-z]{3,10}(?![\w.'(-])", text)))


@lru_cache(maxsize=1)
def documented() -> dict[str, str]:
    """Return what Python's documentation says in a sentence of `json`, `str.upper`, `abs`, etc.

    Modules are neither imported nor executed.
    """
    lines = [*_modules(), *_functions()]
    return {name: line for name, text in lines if (line := _sentence(name, text))}


def _modules() -> Iterator[tuple[str, str]]:
    for path in library_modules():
        source = path.read_text(encoding="utf-8", errors="replace")
        if found := _DOCSTRING.match(source):
            yield path.stem, found[2]


# The docstring that a module begins with, after comments: parsing all modules takes seconds.
_DOCSTRING = re.compile(r"""(?:[ \t]*(?:#[^\n]*)?\n)*[rR]?(\"\"\"|"|'''|')(.*?)\1""", re.DOTALL)


def _functions() -> Iterator[tuple[str, str]]:
    for owner in (str, list, dict, set):
        for name, method in sorted(vars(owner).items()):
            yield f"{owner.__name__}.{name}", method.__doc__ or ""
    for name, function in sorted(vars(builtins).items()):
        if isinstance(function, BuiltinFunctionType):  # not those that `site` adds
            yield name, function.__doc__ or ""


def _sentence(name: str, docstring: str) -> str:
    """Return the first sentence of a docstring; empty if it is long, or not plain words."""
    paragraph = " ".join(docstring.strip().split("\n\n")[0].split())
    line = re.sub(rf"^(Module )?{re.escape(name)}(\.py)?\s+--?\s+", "", paragraph)
    line = re.split(r"(?<=[a-z)])\. (?=[A-Z])", line)[0].rstrip(".")
    line = line[:1].upper() + line[1:]
    is_plain = re.fullmatch(r"[A-Z][A-Za-z0-9 ,.'()/&-]{11,48}[A-Za-z0-9)]", line)
    is_public = not name.split(".")[-1].startswith("_")
    return f"{line}." if is_plain and is_public and " " in line else ""
