"""Reading takes time that is linear in the size of a file, whatever it contains."""

import time
import unicodedata

import pytest

from src.data.documents import ReadOptions
from src.data.readers import iterate_documents
from src.data.text import normalize
from src.errors import AGI2Error
from tests.data.document_corpus import zip_of
from tests.data.reading import write

# What begins a file, and what it repeats: each takes quadratic time in a simple reader.
HOSTILE = {
    "a.txt": [("", "a"), ("", "*"), ("", "***\n"), ("", "\u0301\u0323"), ("", "\x1b$B"),
              ("", "*** START OF THE PROJECT GUTENBERG EBOOK ***\n"), ("", "\n \n")],
    "a.html": [("", "<"), ("", "<!--"), ("", "<p>"), ("<table>", "x<td>"), ("", "&#1;"),
               ("<p ", ' a="b"'), ("", "<i><p>"), ("<p>" * 9, "<script><div>"),
               ("<?xml", "<a"), ("<?xml>", '<a "'), ("<?xml>", "a<b/>"), ("<?xml>", "</script ")],
    "a.xml": [("<a>", "\n \n\x0b"), ("<a>", "<![CDATA["), ('<a b="', "&amp;"), ("", "<a>")],
    "a.json": [("", "["), ("", '{"a":'), ("[", '{"text":"a"},'), ('["', "\\"), ("", '"a" ')],
    "a.jsonl": [("", '{"text":"a"}\n'), ('"', "a"), ("", "\n")],
    "a.csv": [("text\n", '"'), ('text\n"', "a\n"), ("text", ","), ("text\n", "a\n")],
    "a.srt": [("00:00:01,000 --> 00:00:02,000\n", "<a"), ("", "00:"), ("", " ")],
    "a.rtf": [("{\\rtf1 ", "{"), ("{\\rtf1 ", "\\'e9"), ("{\\rtf1 ", "\\u1 ?"),
              ("{\\rtf1 ", "{\\footnote a"), ("{\\rtf1 ", "{\\footnote}a\\par")],
    "a.eml": [("Subject: ", "=?a?q?x"), ('Content-Type: text/plain; a="', "; "), ("\n", ">From\n"),
              ("Subject: ", "a\n ")],
    "a.mbox": [("From a\n\n", "From a\n\n"), ("From a\n\n", ">")],
    "a.ipynb": [('{"cells":[{"source":"', "\\n"), ('{"cells":[', '{"source":"a"},')],
}  # fmt: skip
CASES = [(name, *each) for name, cases in HOSTILE.items() for each in cases]


def seconds_of(work):
    """Return the processor time of a call."""
    start = time.process_time()
    work()
    return time.process_time() - start


def assert_linear(work, size):
    """Check that 16 times as much takes at most 80 times as long: 256 times if quadratic.

    The least of three measurements, unless the first one is short.
    """
    many = seconds_of(lambda: work(16 * size))
    if many > 0.2:
        many = min(many, *(seconds_of(lambda: work(16 * size)) for _ in range(2)))
        few = min(seconds_of(lambda: work(size)) for _ in range(3))
        assert many < 80 * max(few, 0.001)


@pytest.mark.parametrize(("name", "begin", "repeated"), CASES)
def test_a_file_takes_linear_time(tmp_path, name, begin, repeated):
    def read(size):
        write(tmp_path / name, begin + repeated * (size // len(repeated)))
        try:
            for _ in iterate_documents(str(tmp_path / name), is_logged=False):
                pass
        except AGI2Error:
            pass

    assert_linear(read, 2000)


def test_encrypted_names_of_a_book_take_linear_time(tmp_path):
    def read(size):
        items = "".join(f'<item id="i{n}" href="{n}"/>' for n in range(size))
        spine = "".join(f'<itemref idref="i{n}"/>' for n in range(size))
        members = {
            "META-INF/container.xml": '<c><r full-path="a.opf"/></c>',
            "META-INF/encryption.xml": "<e>" + '<r URI="nowhere"/>' * size + "</e>",
            "a.opf": f"<p><manifest>{items}</manifest><spine>{spine}</spine></p>",
        }
        path = write(tmp_path / "a.epub", zip_of({k: v.encode() for k, v in members.items()}))
        with pytest.raises(AGI2Error):
            list(iterate_documents(str(path), ReadOptions(), is_logged=False))

    assert_linear(read, 300)


def test_normalizing_takes_linear_time():
    marks = "\u0301\u0323"
    for each in (marks, "é", "e\u0301", "\U0001d165\u0301\u0323", "😀"):
        assert_linear(lambda size, each=each: normalize(each * size, "nfc"), 4000)
    for text in ("e" + marks * 20, "🐳" * 99 + "e\u0301", "한글" * 99, "e\u0301" * 99):
        assert normalize(text, "nfc") == unicodedata.normalize("NFC", text)
    assert normalize("e\u0301" + marks * 99 + "e\u0301", "nfc") == "e\u0301" + marks * 99 + "é"
