import bz2
import gzip
import os
import re
from pathlib import Path

import pytest

from src.data import downloads
from src.data.corpus import key_for, read_documents
from src.data.documents import ReadOptions
from src.data.download_names import cache_folder, cached_path
from src.data.downloads import download
from src.errors import AGI2Error
from tests.data.document_corpus import tar_of, zip_of
from tests.data.library import BOOK, Library, cached_files, read, write


def test_a_url_is_downloaded_once_stripped_and_kept_in_the_cache(library, tmp_path):
    url = f"{library}/files/2701-0.txt"
    assert read(url) == ["Call me Ishmael.\n"]
    Library.content = b"something else"
    assert read(url) == ["Call me Ishmael.\n"]
    assert Library.asked == ("/files/2701-0.txt",)
    (cached,) = (tmp_path / "cache" / "deep").iterdir()
    assert cached.name.endswith("-2701-0.txt")
    assert cached.read_bytes() == BOOK.encode()


def test_urls_that_differ_have_their_own_copies(library):
    urls = [f"{library}/a/book.txt", f"{library}/b/book.txt", f"{library}/b/book.txt?v=2", library]
    assert len({download(url) for url in urls}) == 4


def test_the_name_in_a_url_says_what_the_file_is(library):
    Library.content = b'{"text": "line"}'
    assert read(f"{library}/data.jsonl?download=true") == ["line"]


def test_a_strange_or_long_name_is_made_fit_for_a_file(library, tmp_path):
    path = download(f"{library}/{'long' * 100}%20a:b*c.csv")
    assert path.parent == tmp_path / "cache" / "deep"
    assert re.fullmatch(r"[\w.-]{,100}_20a_b_c\.csv", path.name)


@pytest.mark.parametrize("name", ["missing.txt", "broken.txt"])
def test_a_failed_download_says_where_to_put_the_file_and_leaves_nothing(library, tmp_path, name):
    url = f"{library}/{name}"
    with pytest.raises(AGI2Error, match=rf"{name}: cannot be downloaded .* save it as ") as caught:
        read(url)
    assert not cached_files(tmp_path)
    # Who follows the advice is heard.
    write(Path(str(caught.value).split("save it as ")[1]), BOOK)
    assert read(url) == ["Call me Ishmael.\n"]


@pytest.mark.parametrize("url", ["http://127.0.0.1:1/a.txt", "http://", "https://[bad/a.txt"])
def test_an_address_that_cannot_be_reached_says_where_to_put_the_file(library, tmp_path, url):
    folder = re.escape(str(tmp_path / "cache"))
    with pytest.raises(AGI2Error, match=rf"cannot be downloaded .* save it as {folder}"):
        read(url)


def test_a_download_that_is_not_text_is_an_error(library):
    Library.content = b"PK\0\0"
    with pytest.raises(AGI2Error, match="not a text file"):
        read(f"{library}/book.txt")


def test_a_cache_that_cannot_be_written_is_an_error(library, tmp_path, monkeypatch):
    monkeypatch.setenv("AGI2_CACHE", str(write(tmp_path / "file", "in the way") / "cache"))
    with pytest.raises(AGI2Error, match="cannot write"):
        read(f"{library}/book.txt")


def test_the_cache_is_where_the_system_keeps_caches(monkeypatch, tmp_path):
    monkeypatch.setenv("AGI2_CACHE", "chosen")
    assert cache_folder() == Path("chosen")
    monkeypatch.delenv("AGI2_CACHE")
    key = "LOCALAPPDATA" if os.name == "nt" else "XDG_CACHE_HOME"
    monkeypatch.setenv(key, str(tmp_path))
    assert cache_folder() == tmp_path / "agi2"
    monkeypatch.delenv(key)
    assert cache_folder() == Path.home() / ".cache" / "agi2"


def test_without_a_home_a_cache_must_be_named(monkeypatch):
    for name in ("AGI2_CACHE", "XDG_CACHE_HOME", "LOCALAPPDATA"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(Path, "home", lambda: (_ for _ in ()).throw(RuntimeError("no home")))
    with pytest.raises(AGI2Error, match=r"no home folder .* set AGI2_CACHE"):
        cache_folder()


@pytest.mark.parametrize(
    ("path", "headers", "content", "problem"),
    [
        ("nothing.txt", {}, b"text", "204 No Content"),
        ("part.txt", {}, b"text", "206 Partial Content"),
        ("a.txt", {}, b" \n", "the answer is empty"),
        ("a.txt", {"Content-Length": "0"}, b"", "the answer is empty"),
        ("a.txt", {"Content-Type": "text/html"}, b"Sorry!", "a web page, not text"),
        ("a.txt", {}, b"\n<!DOCTYPE  HTML><title>Not found", "a web page, not text"),
        ("a.txt", {}, b"\n<!-- x --><!DOCTYPE html><p>Sign in", "a web page, not text"),
        (
            "a.txt",
            {"Content-Encoding": "br"},
            gzip.compress(b"text", mtime=0),
            r"compressed \(br\)",
        ),
        ("a.txt", {"Content-Encoding": "gzip"}, b"text", "does not begin as gzip data does"),
        ("a.txt", {"Content-Length": "3"}, b"text", "it has more than the 3 bytes that it says"),
        ("a.txt", {"Content-Length": "4", "content-length": "5"}, b"text", "says several lengths"),
        ("a.txt", {"Content-Length": "2000000000000"}, b"text", "it is 2.0 TB, more than 4.0 GB"),
        ("broken.txt", {}, b"text", "the connection closed after 4 of 54 bytes"),
        ("a.txt", {"Transfer-Encoding": "chunked", "Content-Length": None}, b"5\r\nte", "cannot"),
        (
            "a.txt.gz",
            {},
            gzip.compress(b"text", mtime=0)[:20],
            "cut short gzip data",
        ),
        ("a.csv.bz2", {}, bz2.compress(b"text")[:-4], "damaged or cut short bzip2 data"),
        ("a.txt.bz2", {}, bz2.compress(b"text") + b"junk", "damaged or cut short bzip2 data"),
        ("a.zip", {}, b"PK\3\4" + b"x" * 1000, "damaged or cut short zip archive"),
        ("a.zip", {}, zip_of({"a.txt": b"text"}, 0).replace(b"text", b"tExt"), "Bad CRC"),
        (
            "a.zip",
            {},
            zip_of({"a.txt": b"text", "b.txt": b"more"}, 0).replace(b"text", b"tExt"),
            "Bad CRC",
        ),
        ("a.tar", {}, tar_of({"a.txt": b"text" * 999})[:3000], "damaged or cut short tar archive"),
        ("a.docx", {}, zip_of({"a.txt": b"text"}), "damaged: word/document.xml is missing"),
        ("a.epub", {}, zip_of({"a.txt": b"text"})[:-9], "damaged or cut short zip archive"),
        ("a.parquet", {}, b"PAR1" + b"x" * 99, "damaged"),
        ("a.arrow", {}, b"ARROW1" + b"x" * 99, "damaged"),
        ("a.pdf", {}, b"%PDF-1.4\n%cut", "damaged"),
        ("a.rtf", {}, b"{\\rtf1 text", "damaged or cut short"),
        ("a.txt", {}, b"text" + b"\0\1\2\3" * 500, "not a text file"),
        ("a", {"Content-Type": "application/zip"}, b"PK\3\4" + b"x" * 99, "damaged or cut short"),
    ],
)
def test_a_bad_answer_is_refused_and_not_kept(library, tmp_path, path, headers, content, problem):
    Library.content, Library.headers_to_send = content, headers
    with pytest.raises(AGI2Error, match=f"cannot be downloaded.*{problem}|{problem}"):
        download(f"{library}/{path}")
    assert not cached_files(tmp_path)


def test_a_compressed_download_is_kept_if_it_is_complete(library, tmp_path):
    Library.content = gzip.compress(b"a text")
    assert read(f"{library}/a.txt.gz") == ["a text"]
    assert len(cached_files(tmp_path)) == 1


def test_a_downloaded_file_that_is_not_text_after_all_says_how_to_download_it_again(library):
    """Such as one that was saved by hand, which is not deleted."""
    url = f"{library}/a.rtf"
    cached = write(cached_path(url), "{\\rtf1 text")
    with pytest.raises(AGI2Error, match=r"a\.rtf: .*damaged .*; to download it again, delete that"):
        read(url)
    assert cached.exists()
    assert not Library.asked


def test_a_failed_download_is_not_tried_again_for_each_key(library):
    with pytest.raises(AGI2Error, match="404 Not Found"):
        key_for(f"{library}/missing.txt", ReadOptions())
    assert Library.asked == ("/missing.txt",)
    assert key_for(f"{library}/book.txt", ReadOptions()) == "sources"


def test_a_web_page_that_is_asked_for_by_name_is_text(library):
    Library.content, Library.headers_to_send = b"<html><p>Hi", {"Content-Type": "text/html"}
    assert read(f"{library}/page.html") == ["Hi\n"]


JSON = b'[{"text": "one"}, {"text": "two"}]'


@pytest.mark.parametrize(
    ("path", "headers", "content", "expected"),
    [
        ("page", {"Content-Type": "text/html"}, b"<p>Hello<script>x</script>", ["Hello\n"]),
        ("page", {}, b"<!-- x -->\n<!DOCTYPE html><p>Hello", ["Hello\n"]),
        ("", {"Content-Type": "text/html"}, b"<p>Hello", ["Hello\n"]),
        ("news", {"Content-Type": "application/xhtml+xml"}, b"<p>Hello</p>", ["Hello\n"]),
        ("index.php?id=1", {"Content-Type": "text/html; charset=x"}, b"<p>Hello", ["Hello\n"]),
        ("abs/1706.03762", {"Content-Type": "text/html"}, b"<p>Hello", ["Hello\n"]),
        ("get", {"Content-Type": "application/json"}, JSON, ["one", "two"]),
        ("get", {"Content-Type": "application/geo+json"}, JSON, ["one", "two"]),
        (
            "get",
            {"Content-Type": "text/csv; header=present"},
            b"id,text\n1,one\n2,two",
            ["one", "two"],
        ),
        ("get", {"Content-Disposition": 'attachment; filename="../a.JSON"'}, JSON, ["one", "two"]),
        (
            "get",
            {
                "Content-Disposition": "attachment; filename*=UTF-8''%C3%BC.json.gz",
                "Content-Type": "text/plain",
            },
            gzip.compress(JSON, mtime=0),
            ["one", "two"],
        ),
        ("a.txt", {"Content-Type": "application/json"}, JSON, [JSON.decode()]),
        ("get", {"Content-Type": "application/octet-stream"}, b"plain <p>", ["plain <p>"]),
        ("dl.php", {"Content-Type": "text/csv"}, b"id,text\n1,one\n2,two", ["one", "two"]),
        ("dl.PL", {"Content-Disposition": "attachment; filename=a.json"}, JSON, ["one", "two"]),
        ("a.php", {"Content-Type": "text/plain"}, b"<?php x", ["<?php x"]),
        ("a.txt", {"Content-Encoding": "gzip"}, gzip.compress(b"one", mtime=0), ["one"]),
        ("a.txt.gz", {"Content-Encoding": "x-gzip"}, gzip.compress(b"one", mtime=0), ["one"]),
        (
            "a.tgz",
            {"Content-Encoding": "x-gzip"},
            gzip.compress(tar_of({"a.txt": b"one"}), mtime=0),
            ["one"],
        ),
        ("a.json", {"Content-Encoding": "bzip2"}, bz2.compress(JSON), ["one", "two"]),
        (
            "get",
            {"Content-Encoding": "GZIP", "Content-Type": "application/json"},
            gzip.compress(JSON, mtime=0),
            ["one", "two"],
        ),
    ],
)
def test_a_response_names_its_format(library, tmp_path, path, headers, content, expected):
    Library.content, Library.headers_to_send = content, headers
    url = f"{library}/{path}"
    assert read(url) == expected
    Library.content = b"other"
    assert read(url) == expected  # the copy in the cache has the format in its name
    assert len(Library.asked) == len(cached_files(tmp_path)) == 1


def test_the_end_of_a_redirect_names_the_format(library):
    Library.redirect, Library.content = "/files/a.json", JSON
    assert read(f"{library}/redirect") == ["one", "two"]


RUSSIAN = "Привет мир"


@pytest.mark.parametrize(
    ("path", "charset", "content", "options", "expected"),
    [
        ("page.html", "windows-1251", f"<p>{RUSSIAN}".encode("cp1251"), {}, f"{RUSSIAN}\n"),
        # The header comes before a meta element, and a mark before the header.
        (
            "page.html",
            "KOI8-R",
            f"<meta charset=cp1251><p>{RUSSIAN}".encode("koi8-r"),
            {},
            f"{RUSSIAN}\n",
        ),
        ("a.txt", "KOI8-R", RUSSIAN.encode("utf-8-sig"), {}, RUSSIAN),
        ("a.txt", "utf-16", RUSSIAN.encode("utf-16"), {}, RUSSIAN),
        ("a.txt", "utf-16-le", RUSSIAN.encode("utf-16-le"), {}, RUSSIAN),
        ("a.txt", "koi8-r", RUSSIAN.encode("cp1251"), {"encoding": "cp1251"}, RUSSIAN),
        ("a.csv", "koi8-r", f"text\n{RUSSIAN}\n".encode("koi8-r"), {}, RUSSIAN),
        # What the server says is not so, or is no encoding of a text.
        ("a.txt", "utf-16", b"plain", {}, "plain"),
        ("a.txt", "rot13", b"plain", {}, "plain"),
        ("a.txt", "iso-8859-1", RUSSIAN.encode(), {}, RUSSIAN),
        ("page.html", "koi8-r", f"<p>{RUSSIAN}".encode(), {}, f"{RUSSIAN}\n"),
        ("a.txt", "utf-8", RUSSIAN.encode(), {}, RUSSIAN),
        ("a.json", "koi8-r", f'["{RUSSIAN}"]'.encode(), {}, RUSSIAN),
        ("a.txt.gz", "koi8-r", gzip.compress(RUSSIAN.encode(), mtime=0), {}, RUSSIAN),
    ],
)
def test_a_response_names_its_encoding(library, path, charset, content, options, expected):
    Library.content = content
    Library.headers_to_send = {"Content-Type": f"text/x; charset={charset}"}
    for _ in range(2):
        found = list(read_documents(f"{library}/{path}", options=ReadOptions(**options)))
        assert found == [expected]


def test_the_encoding_that_a_server_names_is_noted(library, caplog):
    caplog.set_level("INFO", "agi2")
    Library.content = RUSSIAN.encode("cp1251")
    Library.headers_to_send = {"Content-Type": "text/plain; charset=windows-1251"}
    url = f"{library}/a.txt"
    read(url)
    assert f"in {url}: 1 file read as cp1251, as its server says (set enc" in caplog.text
    Library.headers_to_send = {"Content-Type": "text/plain; charset=utf-16"}
    read(f"{library}/b.txt")
    assert "b.txt: the server says utf-16, which it is not" in caplog.text
    Library.content = RUSSIAN.encode()
    Library.headers_to_send = {"Content-Type": "text/plain; charset=latin-1"}
    read(f"{library}/c.txt")
    assert "c.txt: the server says cp1252, but it is UTF-8" in caplog.text


def test_a_page_that_is_saved_by_hand_is_read_or_refused(library):
    Library.content, Library.headers_to_send = b"<p>Hi", {"Content-Type": "text/html"}
    url = f"{library}/a.csv"
    with pytest.raises(
        AGI2Error,
        match=r"web page, not text\).* save it as .*a\.csv, or the page as .*a\.csv\.html$",
    ) as error:
        read(url)
    saved = cached_path(url).with_name(str(error.value).split("or the page as ")[1])
    write(saved, "<html><p>Hello")
    assert read(url) == ["Hello\n"]
    saved.rename(cached_path(url))
    with pytest.raises(AGI2Error, match=r"a\.csv: a web page, not text: .* rename it to .*\.html"):
        read(url)
    page = write(cached_path(f"{library}/page"), "<html><p>Hello")
    assert read(f"{library}/page") == read(page) == ["Hello\n"]


def test_a_full_disk_is_said(library, monkeypatch):
    def fail(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(downloads, "sync_file", fail)
    with pytest.raises(AGI2Error, match=_FULL):
        download(f"{library}/b.txt")
    assert not list(cache_folder().iterdir())


_FULL = r"cannot write .*: No space left on device; free some space, or set AGI2_CACHE to another"
