import json
import os
import re
import sys
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from src import corpus
from src.corpus import (
    BUILTIN,
    cache_folder,
    check_sources,
    download,
    prose,
    python_docs,
    read_documents,
    strip_gutenberg,
)
from src.errors import AGI2Error

BOOK = """The Project Gutenberg eBook of Something

Title: Something
*** START OF THE PROJECT GUTENBERG EBOOK
SOMETHING; OR, THE THING ***

Call me Ishmael.

*** END OF THE PROJECT GUTENBERG EBOOK SOMETHING; OR, THE THING ***
A licence of many words."""


def read(*sources, **options):
    return list(read_documents([str(source) for source in sources], **options))


def write(path, content):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return path


# Files


def test_a_text_file_is_one_document(tmp_path):
    text = "Ünïcödé 鯨 🐳\n\n  second line\n"
    for name in ("a.txt", "b.md", "c.rst", "no_ending"):
        assert read(write(tmp_path / name, text)) == [text]


def test_a_source_may_stand_alone_or_in_a_list_in_its_order(tmp_path):
    one, two = write(tmp_path / "z.txt", "one"), write(tmp_path / "a.txt", "two")
    assert list(read_documents(str(one))) == ["one"]
    assert read(one, two, one) == ["one", "two", "one"]


def test_a_folder_gives_its_text_files_at_any_depth_sorted(tmp_path):
    write(tmp_path / "b/deep/1.txt", "deep")
    write(tmp_path / "b/0.MD", "first")
    write(tmp_path / "c.csv", "text\nrow\n")
    write(tmp_path / "d.jsonl", '"line"')
    write(tmp_path / "picture.png", b"\x89PNG\0")
    (tmp_path / "a folder.txt").mkdir()
    assert read(tmp_path) == ["first", "deep", "row", "line"]


def test_a_folder_without_text_is_an_error(tmp_path):
    write(tmp_path / "picture.png", b"\x89PNG\0")
    with pytest.raises(AGI2Error, match=r"no \.txt, \.md, \.jsonl, \.csv file in this folder"):
        read(tmp_path)


def test_globs_give_their_matches_sorted(tmp_path):
    for name in ("b.txt", "a.txt", "x/c.txt", "x/d.md"):
        write(tmp_path / name, name)
    assert read(tmp_path / "*.txt") == ["a.txt", "b.txt"]
    assert read(tmp_path / "**/*.txt") == ["a.txt", "b.txt", "x/c.txt"]
    assert read(tmp_path / "?/[cd].*") == ["x/c.txt", "x/d.md"]


def test_a_name_with_brackets_is_a_name_first(tmp_path):
    assert read(write(tmp_path / "a[1].txt", "text")) == ["text"]


def test_a_tilde_is_the_home_folder(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("USERPROFILE", str(tmp_path))
    write(tmp_path / "a.txt", "text")
    assert read("~/a.txt") == ["text"]


@pytest.mark.parametrize(
    ("content", "text"),
    [
        (b"\xef\xbb\xbfm\xc3\xa4\r\nn\rn", "mä\nn\nn"),
        ("mä\r\nn".encode("utf-16"), "mä\nn"),
        (b"\xff\xfe" + "mä🐳".encode("utf-16-le"), "mä🐳"),
        (b"\xfe\xff" + "mä🐳".encode("utf-16-be"), "mä🐳"),
        (b" " * 9000 + b"late", " " * 9000 + "late"),
    ],
)
def test_marks_and_line_ends_are_understood(tmp_path, content, text):
    assert read(write(tmp_path / "a.txt", content)) == [text]


@pytest.mark.parametrize("content", [b"", b" \n\t\r\n", b" " * 9000, b"\xef\xbb\xbf", b"\xff\xfe"])
def test_a_file_without_text_is_an_error(tmp_path, content):
    with pytest.raises(AGI2Error, match=r"a\.txt: (the file is empty|holds no text)"):
        read(write(tmp_path / "a.txt", content))


@pytest.mark.parametrize(
    "content",
    [b"\x89PNG\r\n\0\0", "text".encode("utf-16-le"), "te".encode("utf-32"), b"\0\0\xfe\xff\0\0\0a"],
)
def test_a_binary_file_is_an_error(tmp_path, content):
    with pytest.raises(AGI2Error, match=r"a\.txt: not a text file \(it holds NUL bytes\)"):
        read(write(tmp_path / "a.txt", content))


def test_another_encoding_is_an_error_with_the_line_and_what_to_do(tmp_path):
    path = write(tmp_path / "a.txt", "one\ntwo\nna\xefve".encode("latin-1"))
    with pytest.raises(AGI2Error, match=r"a\.txt:3: not UTF-8 \(byte 10\).* iconv -f latin1"):
        read(path)


def test_broken_utf16_is_an_error(tmp_path):
    with pytest.raises(AGI2Error, match="not UTF-8"):
        read(write(tmp_path / "a.txt", b"\xff\xfea\0b"))


def test_a_missing_file_is_an_error_that_tells_where_paths_begin(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(AGI2Error, match=r"nowhere/a\.txt: no such file; paths are relative to /"):
        read("nowhere/a.txt")


@pytest.mark.parametrize("source", ["once upon a time " * 99, "a\0b", "~nobody_at_all/a", "*.no"])
def test_text_that_is_no_path_is_a_missing_file(source):
    with pytest.raises(AGI2Error, match="no such file"):
        read(source)


@pytest.mark.parametrize("source", ["", "  "])
def test_an_empty_source_is_an_error(source):
    with pytest.raises(AGI2Error, match="empty text"):
        read(source)


def test_no_sources_are_an_error():
    with pytest.raises(AGI2Error, match="no sources"):
        read()


def test_an_unreadable_file_is_an_error(tmp_path, monkeypatch):
    path = write(tmp_path / "a.txt", "text")
    monkeypatch.setattr(corpus, "open", refuse, raising=False)
    with pytest.raises(AGI2Error, match=r"a\.txt: cannot be read: Permission denied"):
        read(path)


def refuse(*_):
    raise PermissionError(13, "Permission denied")


def test_every_source_is_found_before_the_first_is_read(tmp_path):
    good = write(tmp_path / "a.txt", "text")
    with pytest.raises(AGI2Error, match="no such file"):
        next(read_documents([str(good), str(tmp_path / "missing.txt")]))


def test_sources_are_checked_without_reading_or_downloading(tmp_path):
    good = str(write(tmp_path / "a.jsonl", "no json"))
    check_sources(good)
    check_sources([good, BUILTIN, "http://127.0.0.1:1/none.txt"])
    with pytest.raises(AGI2Error, match="no such file"):
        check_sources([good, str(tmp_path / "missing")])
    with pytest.raises(AGI2Error, match="the only built-in source is builtin:python-docs"):
        check_sources("builtin:shakespeare")


# Lines and rows


def test_half_a_character_in_json_is_a_question_mark(tmp_path):
    assert read(write(tmp_path / "a.jsonl", r'{"text": "a\ud800b"}')) == ["a?b"]


def test_jsonl_gives_a_document_a_line(tmp_path):
    rows = [{"text": "one\ntwo", "n": 1}, {"text": "鯨"}, "bare string", {"text": " "}]
    content = "\n\n".join(map(json.dumps, rows)) + "\r\n"
    assert read(write(tmp_path / "a.jsonl", content)) == ["one\ntwo", "鯨", "bare string"]


def test_text_field_names_the_field_and_the_column(tmp_path):
    write(tmp_path / "a.jsonl", '{"text": "no", "body": "line"}')
    write(tmp_path / "b.csv", "text,body\nno,row\n")
    assert read(tmp_path, text_field="body") == ["line", "row"]


@pytest.mark.parametrize(
    ("line", "problem"),
    [
        ('{"text": ', "not JSON: Expecting value"),
        ("[" * 100_000, "not JSON: "),
        ('{"text": "a", "n": ' + "1" * 5000 + "}", "not JSON: "),
        ('{"body": "a"}', "no text in the field 'text'; set text_field"),
        ('{"text": 5}', "no text in the field 'text'"),
        ("[1]", "no text in the field 'text'"),
    ],
)
def test_a_broken_jsonl_line_is_named(tmp_path, line, problem):
    path = write(tmp_path / "a.jsonl", f'{{"text": "good"}}\n\n{line}\n')
    with pytest.raises(AGI2Error, match=rf"a\.jsonl:3: {problem}"):
        read(path)


def test_csv_gives_a_document_a_row(tmp_path):
    content = (
        'id,text\r\n1,"two\r\nlines, and ""quotes"""\r\n2,unquoted \u2028 \x0c\x85 rest\n3,\n4\n'
        f"5,{'long ' * 40_000}\n"
    )
    expected = ['two\nlines, and "quotes"', "unquoted \u2028 \x0c\x85 rest", "long " * 40_000]
    assert read(write(tmp_path / "a.csv", content)) == expected


@pytest.mark.parametrize("content", ["id,body\n1,x\n", "\n \n,\n"])
def test_a_missing_column_is_an_error_that_lists_the_columns(tmp_path, content):
    with pytest.raises(AGI2Error, match=r"a\.csv: no column 'text' among .*; set text_field"):
        read(write(tmp_path / "a.csv", content))


@pytest.mark.parametrize(("name", "content"), [("a.csv", "text\n \n"), ("a.jsonl", '{"text": ""}')])
def test_rows_without_text_are_an_error(tmp_path, name, content):
    with pytest.raises(AGI2Error, match=f"{name}: holds no text"):
        read(write(tmp_path / name, content))


# Project Gutenberg


@pytest.mark.parametrize("this", ["THE", "THIS", "the"])
@pytest.mark.parametrize("space", ["", " "])
def test_gutenbergs_header_and_footer_are_stripped(this, space):
    book = BOOK.replace("OF THE", f"OF {this}").replace("*** ", f"***{space}")
    assert strip_gutenberg(book) == "Call me Ishmael.\n"


@pytest.mark.parametrize("mark", ["START", "END"])
def test_without_both_lines_all_of_a_text_is_kept(mark):
    half = BOOK.replace(f"*** {mark}", f"*** {mark.lower()[:-1]}")
    assert strip_gutenberg(half) == half


def test_a_book_on_disk_is_stripped_too(tmp_path):
    assert read(write(tmp_path / "book.txt", "\ufeff" + BOOK.replace("\n", "\r\n"))) == [
        "Call me Ishmael.\n"
    ]


# URLs


class Library(BaseHTTPRequestHandler):
    """Lends one book, counts who asks, and breaks off in the middle of another."""

    content = b""
    asked = ()

    def do_GET(self):
        type(self).asked += (self.path,)
        self.send_response(404 if "missing" in self.path else 200)
        length = len(self.content) + 50 * ("broken" in self.path)
        self.send_header("Content-Length", str(length))
        self.end_headers()
        self.wfile.write(self.content)

    def log_message(self, *_):
        pass


@pytest.fixture
def library(tmp_path, monkeypatch):
    """The address of a server on this machine; downloads go to `cache`, which is not there yet."""
    monkeypatch.setenv("AGI2_CACHE", str(tmp_path / "cache" / "deep"))
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    Library.content, Library.asked = BOOK.encode(), ()
    with ThreadingHTTPServer(("127.0.0.1", 0), Library) as server:
        threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()


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
    with pytest.raises(AGI2Error, match=f"{name}: cannot be downloaded .* save it as ") as caught:
        read(url)
    assert not list((tmp_path / "cache").rglob("*"))
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


# The built-in corpus


@pytest.fixture(scope="module")
def builtin():
    """The corpus, and the modules that were imported meanwhile (it takes seconds: read once)."""
    before = set(sys.modules)
    documents = list(read_documents(BUILTIN))
    return documents, set(sys.modules) - before


def test_the_builtin_corpus_is_long_and_is_prose(builtin):
    documents, _ = builtin
    text = "".join(documents)
    assert len(text) > 500_000
    assert len(documents) > 100
    plain = sum(c.isascii() and (c.isalpha() or c in " ,.'\n") for c in text)
    assert plain / len(text) > 0.97
    words = re.findall(r"[a-z]+", text.lower())
    assert words.count("the") / len(words) > 0.04


def test_reading_the_builtin_corpus_imports_and_runs_nothing_of_the_library(builtin):
    _, imported = builtin
    assert imported <= {"pydoc_data", "pydoc_data.topics"}
    assert not {"antigravity", "this", "turtle", "idlelib"} & set(sys.modules)


def test_the_librarys_public_modules_are_read_in_order(tmp_path, monkeypatch):
    sentence = "This is the sentence that the module {} begins with."
    names = ["b.py", "a.py", "c/d.py", "_private.py", "c/__init__.py", "c/test/e.py", "a.txt"]
    for name in [*names, "site-packages/f.py"]:
        write(tmp_path / name, f'"""{sentence.format(Path(name).stem)}"""\nraise SystemExit')
    write(tmp_path / "empty.py", "x = 1")
    monkeypatch.setattr(corpus.sysconfig, "get_path", {"stdlib": tmp_path}.get)
    library = [text for text in python_docs() if "the sentence that" in text]
    assert library == [sentence.format(name) + "\n" for name in "abd"]


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
    assert list(corpus._docstrings(path)) == names


@pytest.mark.parametrize("content", ["def broken(:", b"\0", b"# coding: nonsense\n"])
def test_a_file_that_is_no_python_has_no_docstrings(tmp_path, content):
    assert list(corpus._docstrings(write(tmp_path / "a.py", content))) == []


def test_prose_keeps_sentences_and_drops_the_rest():
    text = """
    The *first* paragraph is
    ``plain`` English, in two lines.

    >>> code = "is not a sentence of any kind at all."

    too small a letter to begin a sentence with here.

    Short one.

    Table | of | things | and | {symbols} = [x] + (y) / 2, which <is> no %prose.

    Does it keep this one, which ends with a question?
    """
    assert prose(text) == (
        "The first paragraph is plain English, in two lines.\n\n"
        "Does it keep this one, which ends with a question?\n"
    )
    assert prose("nothing") == ""


@settings(deadline=None, max_examples=60)
@given(st.text("Ab .`*\n", max_size=200))
def test_prose_has_one_paragraph_a_line_without_markup(text):
    for line in prose(text).splitlines():
        assert line == "" or line.count(" ") >= 6
        assert "`" not in line
        assert "*" not in line
