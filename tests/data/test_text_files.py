import logging

from src.data.text_files import Skipped


def test_a_tally_counts_by_reason_with_sizes_and_one_example():
    tally, other = Skipped(), Skipped()
    assert not tally
    tally.add("empty", "a.txt")
    tally.add("not text", "b.txt", size=1500)
    other.add("not text", "c.txt", size=500)
    other.add("frames", "d.txt", count=3, size=1234, unit="characters")
    tally.merge(other)
    assert tally
    tally.add("not text", "e.txt", size=7, unit="characters")
    assert tally.bytes == 2000
    assert list(tally.lines()) == [
        "1 empty, such as a.txt",
        "2 not text (2.0 KB), such as b.txt",
        "3 frames (1,234 characters), such as d.txt",
        "1 not text (7 characters), such as e.txt",
    ]


def test_a_line_agrees_in_number():
    tally = Skipped()
    for reason in ("attachments", "members of archives that are links or devices", "that change"):
        tally.add(reason, "a")
    assert [line.rpartition(", such")[0] for line in tally.lines()] == [
        "1 attachment",
        "1 member of archives that is a link or a device",
        "1 that changes",
    ]
    tally.add("attachments", "b")
    assert next(tally.lines()) == "2 attachments, such as a"


def test_a_line_says_what_is_counted():
    tally = Skipped("{reason} in {places}")
    tally.add("navigation", "a.html", size=9, unit="characters")
    tally.add("navigation", "b.html", size=9, unit="characters")
    assert list(tally.lines()) == ["navigation in 2 places (18 characters), such as a.html"]
    tally = Skipped("{files} {reason}")
    tally.add("read as cp1252", "a.txt")
    tally.add("of one", "a.txt", size=1, unit="characters")
    assert list(tally.lines()) == [
        "1 file read as cp1252, such as a.txt",
        "1 file of one (1 character), such as a.txt",
    ]


def test_a_tally_of_strange_names_is_printable():
    tally = Skipped()
    tally.add("hidden", "caf\udce9\x1b[31m\n" + "x" * 1000)
    (line,) = tally.lines()
    assert line.isprintable()
    assert len(line) <= 300


def test_each_skipped_item_is_logged_for_debugging(caplog):
    tally = Skipped()
    with caplog.at_level(logging.DEBUG, logger="agi2"):
        tally.add("empty", "a\n.txt")
        tally.add("empty", "b.txt")
    assert caplog.messages == ["empty: a\\n.txt", "empty: b.txt"]
