import json
import logging

from src.data.text_files import KINDS, Skipped


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


def test_the_kinds_of_what_is_counted_are_listed():
    notes, skipped = Skipped("{files} {reason}"), Skipped()
    notes.add(f"read as {KINDS}, a guess", "a.txt", kind="cp1252")
    skipped.add("in no format", "a.png", size=9, kind=".png")
    assert list(notes.lines()) == ["1 file read as cp1252, a guess, such as a.txt"]
    assert list(skipped.lines()) == ["1 in no format (9 B), such as a.png"]
    for number in range(7):
        notes.add(f"read as {KINDS}, a guess", "b.txt", kind=f"cp{number}", count=7 - number)
    skipped.add("in no format", "b.mp3", size=1, kind=".mp3")
    skipped.add("in no format", "c.mp3", kind=".mp3")
    everything = Skipped("{files} {reason}")
    everything.merge(Skipped.from_json(notes.to_json()))
    everything.merge(Skipped.from_json(json.loads(json.dumps(skipped.to_json()))))
    everything.merge(Skipped.from_json(skipped.to_json()))
    assert list(everything.lines()) == [
        "29 files read as cp0 (7), cp1 (6), cp2 (5), cp3 (4), cp4 (3) and 3 others, a guess, such "
        "as a.txt",
        "6 files in no format (20 B): .mp3 (4), .png (2), such as a.png",
    ]
    assert [reason for reason, _ in everything.entries()][1] == "in no format"


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
