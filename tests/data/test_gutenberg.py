import pytest
from hypothesis import given
from hypothesis import strategies as st

from src.data.gutenberg import book_boundary, strip_gutenberg

HEADER = """The Project Gutenberg eBook of {title}

This ebook is for the use of anyone anywhere in the United States and
most other parts of the world at no cost. You may copy it, give it away
or re-use it under the terms of the Project Gutenberg License included
with this ebook or online at www.gutenberg.org.

Title: {title}

Author: Somebody
"""
OLD_HEADER = """Project Gutenberg's {title}, by Somebody

This eBook is for the use of anyone anywhere at no cost and with
almost no restrictions whatsoever.

Title: {title}
"""
LICENCE = """Updated editions will replace the previous one.

START: FULL LICENSE

THE FULL PROJECT GUTENBERG™ LICENSE

1.A. By reading or using any part of this work you agree to all of it.

This website includes information about Project Gutenberg™,
including how to make donations, how to help produce our new eBooks, and how to
subscribe to our email newsletter to hear about new eBooks.
"""
OLD_LICENCE = """***** This file should be named 2701.txt or 2701.zip *****

*** START: FULL LICENSE ***

THE FULL PROJECT GUTENBERG LICENSE
PLEASE READ THIS BEFORE YOU DISTRIBUTE OR USE THIS WORK

To learn how to help, subscribe to our newsletter to hear about new eBooks.
"""
START = "*** START OF THE PROJECT GUTENBERG EBOOK {title} ***"
END = "*** END OF THE PROJECT GUTENBERG EBOOK {title} ***"


def framed(text, title="MOBY DICK; OR, THE WHALE", old=False):
    parts = [OLD_HEADER if old else HEADER, START, "{text}", END, OLD_LICENCE if old else LICENCE]
    return "\n\n".join(parts).format(title=title, text=text)


@pytest.mark.parametrize("old", [False, True])
@pytest.mark.parametrize("this", ["THE", "THIS", "the"])
@pytest.mark.parametrize("space", ["", " "])
def test_header_markers_and_licence_are_removed(this, space, old):
    book = framed("Call me Ishmael.", old=old).replace("OF THE", f"OF {this}")
    assert strip_gutenberg(book.replace("*** ", f"***{space}")) == "Call me Ishmael.\n"


def test_a_marker_may_run_over_lines():
    book = framed("Call me Ishmael.", title="MOBY DICK;\nOR, THE WHALE")
    assert strip_gutenberg(book) == "Call me Ishmael.\n"


@pytest.mark.parametrize("mark", ["START", "END"])
def test_without_both_lines_all_of_a_text_is_kept(mark):
    half = framed("Call me Ishmael.").replace(f"*** {mark}", f"*** {mark.lower()[:-1]}")
    assert strip_gutenberg(half) == half


def test_every_book_of_a_file_is_kept():
    books = [f"Book {number} begins.\n\nAnd it ends." for number in range(3)]
    assert strip_gutenberg("\n\n".join(map(framed, books))) == "\n\n".join(books) + "\n"


def test_a_note_around_a_pasted_book_is_kept():
    note = "My notes.\n\n" * 100
    text = f"{note}{framed('Call me Ishmael.')}\n\n{note}"
    assert strip_gutenberg(text).count("My notes.") == 200
    assert "Call me Ishmael." in strip_gutenberg(text)
    assert "icense" not in strip_gutenberg(text)


@pytest.mark.parametrize(
    "text",
    [
        "A file of theirs has the line\n*** START OF THE PROJECT GUTENBERG EBOOK X ***\nand more.",
        "*** END OF THE PROJECT GUTENBERG EBOOK X ***\nstands at its end.",
        "*** START: FULL LICENSE ***\nText.\nEnd of the Project Gutenberg EBook of X",
        "In a line: *** START OF THE PROJECT GUTENBERG EBOOK X *** Text. "
        "*** END OF THE PROJECT GUTENBERG EBOOK X ***",
        "*** START OF THE PROJECT GUTENBERG EBOOK\n\nX ***\nText.\n*** END OF THIS WORLD ***",
        "*** START OF THE PROJECT GUTENBERG EBOOK that never closes",
        "This is a Small Print!\n" * 3,
    ],
)
def test_a_text_that_only_speaks_of_frames_is_kept(text):
    assert strip_gutenberg(text) == text


def test_a_text_that_quotes_both_lines_loses_only_those():
    text = f"They begin\n{START}\nThe book.\n{END}\nAnd so they end."
    assert strip_gutenberg(text) == "They begin\n\nThe book.\n\nAnd so they end.\n"


def test_what_follows_a_marker_on_its_line_is_kept():
    assert "Call me Ishmael" in strip_gutenberg(f"{START} Call me Ishmael.\n{END}")


def test_a_licence_without_its_known_end_is_kept():
    text = f"{START}\nThe book.\n{END}\n\nUpdated editions will replace it.\n\nMy own words."
    assert "My own words." in strip_gutenberg(text)


def test_only_the_nearest_title_above_begins_a_header():
    text = "Project Gutenberg is a library.\n\nIt is old.\n\n" * 400 + framed("The book.")
    assert strip_gutenberg(text).count("is a library") == 400
    no_title = HEADER.split("\n", 1)[1] + f"{START}\nThe book.\n{END}\n"
    assert strip_gutenberg("My words.\n" + no_title) == "My words.\n\nThe book.\n"


prose = st.text(st.sampled_from("abc *\n\t.é鯨"), max_size=60)


@given(
    outside=st.lists(prose, min_size=2, max_size=5),
    inside=st.lists(prose, min_size=4, max_size=4),
    old=st.booleans(),
)
def test_whatever_stands_around_and_between_books_is_kept(outside, inside, old):
    books = [f"Chapter {number}\n{text}\nend" for number, text in enumerate(inside)]
    pieces = [f"Note {number}\n{text}\nend" for number, text in enumerate(outside)]
    text = pieces[0]
    for piece, book in zip(pieces[1:], books, strict=False):
        text += f"\n\n{framed(book, old=old)}\n\n{piece}"
    kept = strip_gutenberg(text)
    at = 0
    for piece, book in zip(pieces[1:], books, strict=False):
        for part in (pieces[0] if at == 0 else "", book, piece):
            at = kept.index(part, at) + len(part)
    assert "PROJECT GUTENBERG" not in kept
    assert "Title:" not in kept


@given(st.lists(st.sampled_from(["***", "*", " ", "\n", "START OF THE PROJECT GUTENBERG", "x"])))
def test_text_without_an_end_line_is_never_changed(parts):
    text = "".join(parts)
    assert strip_gutenberg(text) == text


@pytest.mark.parametrize("unit", ["\n", "*", " ", " \n", "***\n", "*** x\n", START + "\n", "# "])
def test_many_of_anything_take_no_time(unit):
    # With a search that goes back over blank lines this would take many minutes.
    text = unit * (150_000 // len(unit))
    assert strip_gutenberg(text) == text
    framed_text = strip_gutenberg(f"{text}\n{START}\nThe book.\n{END}\n{text}")
    assert framed_text.count("*") == 2 * text.count("*")
    assert "The book." in framed_text


def test_a_text_of_books_is_cut_between_them():
    notes = "My notes.\n\n" * 20
    books = [framed(f"Book {number}.\n\n" + "Text. " * 3000) for number in range(4)]
    text = notes + "\n\n".join(books)
    for limit in (100, len(notes) + 10, 30_000, 60_000, len(text)):
        cut = book_boundary(text, limit)
        assert cut <= limit
        assert strip_gutenberg(text[:cut]).split() + strip_gutenberg(text[cut:]).split() == (
            strip_gutenberg(text).split()
        )
    assert book_boundary(text, 100) == 0
    assert text[book_boundary(text, len(text)) :].startswith("The Project Gutenberg eBook")
