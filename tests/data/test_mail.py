import contextlib
import importlib.util
import inspect
import sys

import pytest

from src.data import mail
from src.data.text_files import Unreadable
from tests.data.document_corpus import message
from tests.data.reading import documents, lines_of, read_with_report, texts, write

START = "From a@example.org Thu Jan  1 00:00:00 1970\n"


def test_each_message_is_a_document_with_its_subject(tmp_path):
    content = "".join(f"{START}Subject: S{n}\n\nBody {n}\n\n" for n in range(3))
    found = documents(tmp_path / "a.mbox", content)
    assert [each.text for each in found] == [f"S{n}\n\nBody {n}\n" for n in range(3)]
    assert found[2].source.endswith("a.mbox message 3")


def test_an_mbox_file_without_a_suffix_is_read_message_by_message(tmp_path):
    write(tmp_path / "Inbox", "".join(f"{START}Subject: S{n}\n\nBody {n}\n\n" for n in range(3)))
    found, report = read_with_report(tmp_path)
    assert found == [f"S{n}\n\nBody {n}\n" for n in range(3)]
    assert "1 file without a suffix read, by the first bytes" in lines_of(report.notes)
    write(tmp_path / "Inbox", "From here on the sea was calm.\n\nNote: so it was.\n")
    assert len(read_with_report(tmp_path)[0]) == 1


def test_lines_that_begin_with_from_are_not_new_messages(tmp_path):
    content = f"{START}\n>From here\nFrom there\n\n>>From afar\n\n{START}\nsecond\n"
    assert texts(tmp_path / "a.mbox", content) == [
        "From here\nFrom there\n\n>From afar\n",
        "second\n",
    ]


def test_a_line_of_text_after_a_blank_one_does_not_begin_a_message(tmp_path):
    body = (
        "Hello Bob,\n\nFrom here on we use tabs.\nNote: so it is.\n\nFrom Ann, in 2024\nTo: all\n"
    )
    content = f"{START}Subject: S\n\n{body}\n{START}Subject: T\n\nsecond\n"
    expected = [f"S\n\n{body}", "T\n\nsecond\n"]
    assert texts(tmp_path / "a.mbox", content) == expected


@pytest.mark.parametrize(
    "line",
    [
        "From - Wed Jan 01 12:08:34 2011",
        "From MAILER-DAEMON Fri Jul  8 12:08:34 2011 +0200",
        "From a b@c.org 2011-07-08T12:08:34Z",
        "From a@b.org",
        "From ",
    ],
)
@pytest.mark.parametrize("end", ["\n", "\r\n"])
def test_the_lines_before_messages_are_recognized(tmp_path, line, end):
    lines = [line, "Subject: S", "", "first", "", line, "Received: x", "Subject: T", "", "second"]
    for begin in ("", "\ufeff", end * 2):
        found = texts(tmp_path / "a.mbox", begin + end.join(lines))
        assert found == ["S\n\nfirst\n", "T\n\nsecond\n"]


def test_quotations_in_a_single_message_stay(tmp_path):
    assert texts(tmp_path / "a.eml", "Subject: S\n\n>From my view\n") == ["S\n\n>From my view\n"]


@pytest.mark.parametrize(
    ("subject", "expected"),
    [
        ("café brut", "café brut"),
        ("café brut".encode("latin-1"), "café brut"),
        ("a long\n  folded\r\n\tsubject", "a long folded subject"),
        ("=?bad?Q?x?= =?utf-8?q?S=C3=BCd?= plain", "=?bad?Q?x?=Süd plain"),
        ("=?utf-8?b?w7w?= =?UTF-8?q?_=C3?=\n =?utf-8?q?=BC?=", "ü ü"),
        ("=?utf-8?b?a*b?= and =?utf-8*de?q?c?=", "=?utf-8?b?a*b?= and c"),
        ("=?utf-8?q?=FF?= b", "=?utf-8?q?=FF?= b"),
        ("=?koi8-r?B?98/KzsE=?=", "Война"),
    ],
)
def test_subjects_are_decoded(tmp_path, subject, expected):
    subject = subject if isinstance(subject, bytes) else subject.encode()
    content = b"Subject: " + subject + b"\nContent-Type: text/plain; charset=latin-1\n\nx\n"
    assert texts(tmp_path / "a.eml", content) == [f"{expected}\n\nx\n"]


@pytest.mark.parametrize("kind", ["digest", "mixed"])
def test_subjects_of_forwarded_messages_are_text(tmp_path, kind):
    part = "--b\n" + "Content-Type: message/rfc822\n" * (kind == "mixed") + "\n"
    parts = "".join(f"{part}Subject: S{n}\n\nbody {n}\n" for n in range(2))
    content = f"Subject: S\nContent-Type: multipart/{kind}; boundary=b\n\n{parts}--b--\n"
    found = texts(tmp_path / "a.eml", content)
    assert found == ["S\n\nS0\n\nbody 0\n\nS1\n\nbody 1\n"]


def test_the_plain_text_of_alternatives_is_taken_and_attachments_are_counted(tmp_path):
    write(tmp_path / "a.eml", message("Grüße & mehr"))
    found, report = read_with_report(tmp_path / "a.eml")
    assert found == ["Ünïcode\n\nGrüße & mehr\n"]
    assert "1 attachment (2 bytes decoded), such as" in lines_of(report.skipped)


@pytest.mark.parametrize(
    ("head", "body", "expected"),
    [
        ("", "plain", "plain\n"),
        ("Content-Type: text/html; charset=utf-8", "<p>a <b>b</b>", "a b\n"),
        ("Content-Type: text/plain; charset=koi8-r", "Война".encode("koi8-r"), "Война\n"),
        ("Content-Type: text/plain; charset=nonsense", "Käse", "Käse\n"),
        ("Content-Type: text/plain", "ein süßer Käse".encode("cp1252"), "ein süßer Käse\n"),
        ("Content-Type: text/plain; charset=ascii", b"Gr\xfc\xdfe an alle", "Grüße an alle\n"),
        ("Content-Transfer-Encoding: base64", "SMOkbGxv", "Hällo\n"),
        ("Content-Transfer-Encoding: base64", "SMOkbGxv\n-- \nthe list", "Hällo\n-- \nthe list\n"),
        ("Content-Transfer-Encoding: Base64", "b25l\r\ndHdv", "onetwo\n"),
        ("Content-Transfer-Encoding: quoted-printable", "H=C3=A4llo=\n!", "Hällo!\n"),
        ("Subject: =?utf-8?q?S=C3=BCd?=", "x", "Süd\n\nx\n"),
        ("Subject: =?nonsense?q?S?=", "x", "=?nonsense?q?S?=\n\nx\n"),
        (
            "Content-Type: multipart/mixed; boundary=b",
            "--b\n\none\n--b\n\ntwo\n--b--",
            "one\n\ntwo\n",
        ),
        ("Content-Type: multipart/mixed", "no boundary", "no boundary\n"),
    ],
)
def test_bodies_are_decoded(tmp_path, head, body, expected):
    body = body if isinstance(body, bytes) else body.encode()
    assert texts(tmp_path / "a.eml", f"{head}\n\n".lstrip("\n").encode() + body) == [expected] or (
        not head and texts(tmp_path / "b.eml", b"\n" + body) == [expected]
    )


def test_a_message_of_html_without_its_package_is_counted(tmp_path, monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    content = f"{START}Subject: S\nContent-Type: text/html\n\n<p>x\n"
    write(tmp_path / "a.mbox", content)
    found, report = read_with_report(tmp_path / "a.mbox")
    assert found == ["S\n"]
    assert "1 message in HTML, which need selectolax" in lines_of(report.skipped)


ALTERNATIVES = {
    "plain": "Content-Type: text/plain\n\nplain\n",
    "blank": "Content-Type: text/plain\n\n \n\n",
    "empty": "Content-Type: text/plain\n\n",
    "html": "Content-Type: text/html\n\n<p>page</p>\n",
    "blank html": "Content-Type: text/html\n\n<html><body><br></body></html>\n",
    "event": "Content-Type: text/calendar\n\nBEGIN:VCALENDAR\n",
    "related": "Content-Type: multipart/related; boundary=r\n\n--r\n"
    "Content-Type: text/html\n\n<p>page</p>\n--r\n"
    "Content-Type: image/png\nContent-Transfer-Encoding: base64\n\nAAAA\n--r--\n",
    "nested": "Content-Type: multipart/alternative; boundary=n\n\n--n\n"
    "Content-Type: text/plain\n\n\n--n\nContent-Type: text/html\n\n<p>inner</p>\n--n--\n",
}


@pytest.mark.parametrize(
    ("names", "expected"),
    [
        (["plain", "html"], "plain"),
        (["html", "plain"], "plain"),
        (["blank", "html"], "page"),
        (["empty", "html"], "page"),
        (["html", "blank"], "page"),
        (["blank", "related"], "page"),
        (["empty", "nested"], "inner"),
        (["event", "html"], "page"),
        (["event", "empty"], "BEGIN:VCALENDAR"),
        (["blank html", "blank", "event"], "BEGIN:VCALENDAR"),
        (["blank html", "plain"], "plain"),
        (["related", "event"], "page"),
        (["blank", "blank html"], ""),
    ],
)
def test_the_alternative_with_text_is_taken(tmp_path, names, expected):
    parts = "".join(f"--b\n{ALTERNATIVES[name]}" for name in names)
    content = f"Subject: S\nContent-Type: multipart/alternative; boundary=b\n\n{parts}--b--\n"
    assert texts(tmp_path / "a.eml", content) == [f"S\n\n{expected}\n" if expected else "S\n"]


def test_blank_plain_text_is_followed_by_the_count_of_pages_without_their_package(
    tmp_path, monkeypatch
):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    parts = "".join(f"--b\n{ALTERNATIVES[name]}" for name in ("blank", "related"))
    content = f"Subject: S\nContent-Type: multipart/alternative; boundary=b\n\n{parts}--b--\n"
    found, report = read_with_report(write(tmp_path / "a.eml", content))
    assert found == ["S\n"]
    assert "1 message in HTML, which need selectolax" in lines_of(report.skipped)
    assert "1 attachment (3 bytes decoded)" in lines_of(report.skipped)


def test_attachments_that_are_text_are_counted(tmp_path):
    content = (
        "Content-Type: multipart/mixed; boundary=b\n\n--b\n\nbody\n--b\nContent-Type: text/plain\n"
        "Content-Disposition: attachment; filename=a.txt\n\nattached\n--b--\n"
    )
    found, report = read_with_report(write(tmp_path / "a.eml", content))
    assert found == ["body\n"]
    assert "1 attachment (8 bytes decoded)" in lines_of(report.skipped)


@contextlib.contextmanager
def shallow_stack():
    """Allow few calls in each other, so that a small message is nested too deeply."""
    limit = sys.getrecursionlimit()
    sys.setrecursionlimit(len(inspect.stack(0)) + 150)
    try:
        yield
    finally:
        sys.setrecursionlimit(limit)


def test_a_message_that_cannot_be_read_is_skipped_alone(tmp_path, monkeypatch):
    nested = "".join(
        f"Content-Type: multipart/mixed; boundary=b{n}\n\n--b{n}\n" for n in range(300)
    )
    deep = f"{START}Content-Type: text/html\n\n{'<div>' * 5000}\n\n"
    write(tmp_path / "a.mbox", f"{START}{nested}\n\n{deep}{START}\ngood\n")
    with shallow_stack():
        found, report = read_with_report(tmp_path / "a.mbox")
    assert found == ["good\n"]
    assert "2 messages that cannot be read, such as" in lines_of(report.skipped)
    with (
        shallow_stack(),
        pytest.raises(Unreadable, match=r"a\.eml: not a message: maximum recursion depth"),
    ):
        texts(tmp_path / "a.eml", nested)


def test_bytes_that_no_encoding_explains_are_replaced(tmp_path, monkeypatch):
    monkeypatch.setattr(mail, "guess_encoding", lambda _: None)
    path = write(tmp_path / "a.eml", b"Subject: S\n\nx\xff")
    found, report = read_with_report(path)
    assert found == ["S\n\nx\ufffd\n"]
    removed = "in no known encoding, replaced by U+FFFD, in 1 place (1 character)"
    assert removed in lines_of(report.removed)


def test_what_is_no_mbox_is_refused(tmp_path):
    with pytest.raises(Unreadable, match=r"a\.mbox: damaged: it does not begin with 'From '"):
        texts(tmp_path / "a.mbox", "Subject: x\n\ny")


def test_a_message_has_a_limit(tmp_path, monkeypatch):
    monkeypatch.setattr(mail, "MAX_MESSAGE", 1000)
    with pytest.raises(Unreadable, match=r"a\.mbox message 2: more than 1,000 bytes"):
        texts(tmp_path / "a.mbox", f"{START}\nshort\n\n{START}\n{'long ' * 500}\n")


def test_a_long_header_is_cut(tmp_path):
    (found,) = texts(tmp_path / "a.eml", "Subject: " + "a" * 10_000 + "\n\nbody\n")
    assert found == "a" * 4096 + "\n\nbody\n"
