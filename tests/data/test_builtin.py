import re
import sys
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from src.data import builtin as builtin_text
from src.data.builtin import BUILTIN, HELD_OUT, held_out_python_docs, prose, python_docs
from src.data.corpus import read_documents


def write(path, content):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return path


@pytest.fixture(scope="module")
def builtin():
    """The corpus, and the modules that were imported meanwhile (it takes seconds: read once)."""
    before = set(sys.modules)
    documents = list(read_documents(BUILTIN))
    return documents, set(sys.modules) - before


def test_the_builtin_corpus_is_read_to_its_end(monkeypatch):
    monkeypatch.setattr("src.data.readers.python_docs", lambda: iter(["one", "two"]))
    assert list(read_documents(BUILTIN)) == ["one", "two"]


def test_the_builtin_corpus_is_long_and_is_prose(builtin):
    documents, _ = builtin
    text = "".join(documents)
    assert len(text) > 1_000_000
    assert len(documents) > 300
    plain = sum(c.isascii() and (c.isalpha() or c in " ,.'\n") for c in text)
    assert plain / len(text) > 0.97
    words = re.findall(r"[a-z]+", text.lower())
    assert words.count("the") / len(words) > 0.04


def test_reading_the_builtin_corpus_imports_and_runs_nothing_of_the_library(builtin):
    _, imported = builtin
    # A file that names another encoding than UTF-8 needs its codec.
    codecs = {name for name in imported if name.startswith("encodings.")}
    assert imported - codecs <= {"pydoc_data", "pydoc_data.topics"}
    assert not {"antigravity", "this", "turtle", "idlelib"} & set(sys.modules)


def test_the_librarys_modules_are_read_in_order(tmp_path, monkeypatch):
    sentence = "This is the sentence that the module {} begins with."
    names = ["b.py", "a.py", "c/d.py", "_p.py", "c/test/e.py", "a.txt", "site-packages/f.py"]
    for name in names:
        write(tmp_path / name, f'"""{sentence.format(Path(name).stem)}"""\nraise SystemExit')
    write(tmp_path / "empty.py", "x = 1")
    monkeypatch.setattr(builtin_text.sysconfig, "get_path", {"stdlib": tmp_path}.get)
    library = [text for text in python_docs() if "the sentence that" in text]
    assert library == [sentence.format(name) + "\n" for name in ("_p", "a", "b", "d")]


def test_what_is_held_out_is_not_in_the_other_text(tmp_path, monkeypatch):
    shared = "This is a sentence that two of the modules have in common."
    held_out = "This is a sentence of a module that is held out."
    monkeypatch.setattr(builtin_text, "_is_held_out", "held_out.py".__eq__)
    write(
        tmp_path / "a.py", f'"""{shared}"""\n# This is another one, which only this module has.\n'
    )
    write(
        tmp_path / "held_out.py", f'"""{shared}\n\n{held_out}"""\n# This comment is read nowhere.\n'
    )
    monkeypatch.setattr(builtin_text.sysconfig, "get_path", {"stdlib": tmp_path}.get)
    assert list(held_out_python_docs()) == [f"{shared}\n\n{held_out}\n"]
    assert list(python_docs())[-1] == "This is another one, which only this module has.\n"
    assert list(read_documents(HELD_OUT)) == [f"{shared}\n\n{held_out}\n"]


def test_a_tenth_is_held_out(builtin):
    documents, _ = builtin
    held_out = list(held_out_python_docs())
    paragraphs = {each for text in held_out for each in text.strip().split("\n\n")}
    assert not paragraphs & {each for text in documents for each in text.strip().split("\n\n")}
    assert 0.05 < len("".join(held_out)) / len("".join(documents)) < 0.15


def test_docstrings_are_those_of_modules_classes_and_functions(tmp_path):
    path = write(
        tmp_path / "a.py",
        '''"""Module."""
x = """not a docstring"""
class A:
    """Class."""
    async def f(self):
        """Method."""
        def g():
            """Inside."""
if x:
    def h():
        """Conditional."""
        return lambda: 1
raise SystemExit("must not run")
''',
    )
    names = ["Module.", "Class.", "Method.", "Inside.", "Conditional."]
    assert list(builtin_text._docstrings(path)) == names


def test_comments_of_consecutive_lines_are_one_paragraph(tmp_path, monkeypatch):
    write(
        tmp_path / "a.py",
        """\"\"\"This is a sentence of the docstring of a module.\"\"\"
# This is a comment of a module, in
#   two lines and two sentences. Here is the second.
x = 1  # This comment is beside code and is not read, therefore.
    # This one is indented, ends with a colon, and is alone:

#!/too/short
""",
    )
    monkeypatch.setattr(builtin_text.sysconfig, "get_path", {"stdlib": tmp_path}.get)
    assert list(python_docs())[-1] == (
        "This is a sentence of the docstring of a module.\n\n"
        "This is a comment of a module, in two lines and two sentences. Here is the second.\n\n"
        "This one is indented, ends with a colon, and is alone:\n"
    )


@pytest.mark.parametrize("content", ["def broken(:", b"\0", b"# coding: nonsense\n"])
def test_a_file_that_is_no_python_has_no_docstrings(tmp_path, content):
    assert list(builtin_text._docstrings(write(tmp_path / "a.py", content))) == []


def test_a_file_that_cannot_be_read_has_no_text(tmp_path):
    (tmp_path / "a.py").symlink_to("nowhere.py")
    assert list(builtin_text._docstrings(tmp_path / "a.py")) == []
    assert list(builtin_text._comments(tmp_path / "a.py")) == []


def test_prose_keeps_sentences_and_drops_the_rest():
    text = """
    The *first* paragraph is
    ``plain`` English, in two lines.

    >>> code = "is not a sentence of any kind at all."

    too small a letter to begin a sentence with here.

    Short one.

    Table | of | things | and | {symbols} = [x] + (y) / 2, which <is> no %prose.

    Copyright 2006 by somebody, who has licensed it under an agreement.

    Does it keep this one, which ends with a question?
    """
    first = "The first paragraph is plain English, in two lines."
    last = "Does it keep this one, which ends with a question?"
    assert prose(text) == [f"{first}\n\n{last}\n"]
    assert prose(text, {first}) == [f"{last}\n"]
    assert prose(text, [first, last]) == prose("nothing") == []


@settings(deadline=None, max_examples=40)
@given(st.text("Ab .`*\n", max_size=200))
def test_prose_has_one_paragraph_a_line_without_markup(text):
    for line in "".join(prose(text)).splitlines():
        assert line == "" or line.count(" ") >= 6
        assert "`" not in line
        assert "*" not in line
