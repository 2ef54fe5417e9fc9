import pytest

from src.data import text
from src.data.text import normalize, piece_end
from src.data.text_files import Unreadable
from tests.data.reading import lines_of, read_with_report, texts, write
from tests.data.test_gutenberg import framed

# Texts in encodings, whose first bytes that are not ASCII are at the place of the X.
LATE = [
    ("latin-1", "X Élan vécu, où déjà l’été s’achève à Nîmes, près du château.".replace("’", "'")),
    ("utf-8", "X Élan vécu, où déjà l’été s’achève à Nîmes, près du château."),
    (
        "iso2022_jp",
        "X灯台守は霧が出る前に通り過ぎる船を数えていた。どの船も彼の灯りに答えなかった。",
    ),
    ("hz", "X我把这件事也写进了本子里，他的妹妹是不是总在替他把铅笔削好了的一个人。"),
    (
        "koi8-r",
        "XСмотритель маяка считал корабли, которые проходили мимо, пока не опустился туман.",
    ),
]


@pytest.mark.parametrize(("encoding", "words"), LATE, ids=[name for name, _ in LATE])
@pytest.mark.parametrize("begin", ["a", "~ \x1b[1m"])
def test_the_encoding_is_found_wherever_its_first_bytes_are_in_a_block(
    tmp_path, monkeypatch, encoding, words, begin
):
    monkeypatch.setattr(text, "BLOCK", 400)
    monkeypatch.setattr(text, "_CONTEXT", 200)
    if encoding in ("hz", "iso2022_jp"):  # in which these are escapes, too
        begin = "a"
    for at in (*range(390, 403), *range(590, 603), 799, 1190):
        content = words.replace("X", (begin + "sea and land " * at)[:at] + " ")
        assert texts(tmp_path / "a.txt", content.encode(encoding)) == [content], at


@pytest.fixture
def small_blocks(monkeypatch):
    monkeypatch.setattr(text, "BLOCK", 10)


@pytest.mark.parametrize(
    ("content", "problem"),
    [
        (
            "é\n".encode() * 400_000 + b"\0" * 50_000,
            r"a.txt:400001: not a text file .*NUL bytes.",
        ),
        ("\u9be8\n".encode("utf-16-le") + "\u9be8".encode("utf-16-le") * 99, "NUL bytes"),
        (b"a\0" + b"\1" * 999, "NUL bytes"),
        (b"x" * 9000 + b"\xe9\0", "NUL bytes"),
        (b"a" * 9 + b"\0", r"not a text file .it contains NUL bytes.; if it"),
        ("text".encode("utf-32-be") * 99, "not a text file"),
        ("鯨".encode("utf-32-le"), "not a text file|not UTF-8"),
        (b"\xff\xfe" + "a\0b".encode("utf-16-le"), "not a text file"),
        (b"\x89PNG\r\n\x1a\n" + b"\0\xff" * 9, "not a text file"),
        ("鯨\n".encode() * 9000 + b"\xe9", r"a.txt:9001: not UTF-8 .byte 36000.; set encoding"),
        (b"\xef\xbb\xbfone\n\xe9", "a.txt:2: not utf-8-sig .byte 7."),
        (b"\xff\xfea\0b", "a.txt:1: not utf-16 .byte 4."),
        (bytes(range(1, 256)) * 99, r"not a text file .it has control characters."),
        (
            b"text\n\x1b$)A\x0eVPND\x0f\n",
            "a.txt: in ISO-2022-CN, which cannot be decoded; save it as",
        ),
        (b"", "the file is empty"),
        (b"%PDF-1.4\n1 0 obj", "a.txt: damaged"),
        (b"%!PS-Adobe-3.0\n", "a.txt: .ps is not read: convert it to a PDF"),
    ],
)
def test_what_is_no_text_is_refused_wherever_it_shows(tmp_path, content, problem):
    with pytest.raises(Unreadable, match=problem):
        texts(tmp_path / "a.txt", content)


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16", "utf-32", "cp1252", "cp932"])
@pytest.mark.parametrize("line_end", ["\n", "\r\n", "\r"])
def test_blocks_may_end_anywhere(tmp_path, small_blocks, encoding, line_end):
    words = "灯台守は霧が出る前に" if encoding == "cp932" else "naïve café – l’été"
    content = line_end.join([*["plain"] * 9, *[words, ""] * 9]).encode(encoding)
    options = {"encoding": encoding} if encoding.startswith("cp") else {}
    expected = "\n".join([*["plain"] * 9, *[words, ""] * 9])
    for ending in (".txt", ".gz"):
        import gzip

        data = gzip.compress(content) if ending == ".gz" else content
        assert texts(tmp_path / f"a{ending}", data, **options) == [expected]


def test_the_encoding_is_guessed_at_the_first_bytes_that_tell(tmp_path, small_blocks):
    path = write(tmp_path / "a.txt", ("plain text\n" * 20 + "ein süßer Käse\n").encode("cp1252"))
    found, report = read_with_report(path)
    assert found == ["plain text\n" * 20 + "ein süßer Käse\n"]
    assert "read as cp1252, a guess (set encoding to change it)" in lines_of(report.notes)


def test_a_comment_in_source_code_is_guessed_and_utf7_is_read(tmp_path):
    code = "def count(items):\n    return len(items)  # Число строк в списке\n"
    assert texts(tmp_path / "a.py", code.encode("koi8-r")) == [code]
    story = "plain text\n" * 20 + "Старый мост давно закрыт для машин.\n" * 20
    assert texts(tmp_path / "a.txt", story.encode("utf-7")) == [story]


@pytest.mark.parametrize(
    "line", ["# -*- coding: koi8-r -*-", "#!/bin/sh\n# vim: set fileencoding=koi8-r :", "# code"]
)
def test_the_encoding_that_the_first_lines_declare_is_taken(tmp_path, line):
    content = f"{line}\nжизнь = 'Ё'\n"
    path = write(tmp_path / "a.py", content.encode("koi8-r"))
    found, report = read_with_report(path)
    if "koi8" in line:
        assert found == [content]
        assert not report.notes
    assert texts(path, content.replace("koi8-r", "ascii")) == [content.replace("koi8-r", "ascii")]


def test_an_encoding_that_is_set_is_used_unless_a_mark_says_another(tmp_path):
    content = "жизнь".encode("cp866")
    assert texts(tmp_path / "a.txt", content, encoding="cp866") == ["жизнь"]
    assert texts(tmp_path / "b.txt", "жизнь".encode("utf-8-sig"), encoding="cp866") == ["жизнь"]
    wide = "жизнь".encode("utf-16-le")
    assert texts(tmp_path / "c.txt", wide, encoding="utf-16-le") == ["жизнь"]
    with pytest.raises(Unreadable, match=r"a\.txt:2: not ascii \(byte 3\)"):
        texts(tmp_path / "a.txt", b"ok\n\xe9", encoding="ascii")
    with pytest.raises(Unreadable, match=r"a\.txt:1: not idna"):
        texts(tmp_path / "a.txt", b"\xe9", encoding="idna")


def test_a_text_that_no_encoding_explains_is_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(text, "guess_encoding", lambda _: "ascii")
    with pytest.raises(Unreadable, match=r"a\.txt:1: not UTF-8 \(byte 0\)"):
        texts(tmp_path / "a.txt", b"\xe9\xe8")


def test_a_line_has_a_limit(tmp_path, monkeypatch):
    monkeypatch.setattr(text, "MAX_LINE", 1000)
    monkeypatch.setattr(text, "BLOCK", 100)
    with pytest.raises(Unreadable, match=r"a\.jsonl:2: the line has more than 1,000 characters"):
        texts(tmp_path / "a.jsonl", '"a"\n"' + "b" * 5000)


def test_a_text_in_memory_has_a_limit(tmp_path, monkeypatch):
    monkeypatch.setattr(text.read_whole_text, "__defaults__", (None, 1000))
    with pytest.raises(Unreadable, match=r"a\.srt: more than 1,000 characters, the limit of this"):
        texts(tmp_path / "a.srt", "b" * 5000)


def test_removed_frames_are_counted(tmp_path):
    book = framed("Call me Ishmael.")
    path = write(tmp_path / "a.txt", book)
    found, report = read_with_report(path)
    assert found == ["Call me Ishmael.\n"]
    removed = len(book) - len("Call me Ishmael.\n")
    assert f"header and licence of Project Gutenberg in 1 place ({removed} char" in lines_of(
        report.removed
    )
    assert report.bytes_read == len(book.encode())
    found, report = read_with_report(path, clean=False)
    assert found == [book]
    assert not report.removed


def test_a_file_of_many_books_is_split_between_books(tmp_path, monkeypatch):
    monkeypatch.setattr(text, "MAX_CHARACTERS", 20_000)
    monkeypatch.setattr(text, "BLOCK", 3000)
    books = [f"Book {number} begins.\n\n{'And goes on. ' * 500}" for number in range(20)]
    path = write(tmp_path / "a.txt", "\n\n".join(framed(book) for book in books))
    found, report = read_with_report(path)
    assert len(found) > 3
    assert "Gutenberg" not in "".join(found)
    assert "".join(found).split() == " ".join(books).split()
    assert report.documents == 1


@pytest.mark.parametrize(
    ("content", "limit", "end"),
    [
        ("one\ntwo three", 10, 8),
        ("one two three", 10, 8),
        ("one two\nthree four", 12, 8),
        ("onetwothreefour", 10, 10),
        ("abcdefghi\u0301j", 9, 8),
        ("a\n" + "b" * 20, 10, 10),
    ],
)
def test_a_piece_ends_at_a_line_end_or_white_space(content, limit, end):
    assert piece_end(content, limit) == end


def test_normalized_text_is_not_copied():
    content = "été" * 10
    assert normalize(content, "nfc") is content
    assert normalize("ascii", "nfkc") == "ascii"


@pytest.mark.parametrize(
    ("content", "options"),
    [
        (b"a\0" + b"b" * 200, {}),
        ("\u00e9\n".encode() * 400_000 + b"\0" + "\u9be8".encode(), {}),
        (b"caf\xe9\0 " * 20 + b"x" * 2000, {"encoding": "cp1252"}),
    ],
)
def test_few_nul_bytes_of_a_text_are_removed_and_counted(tmp_path, content, options):
    found, report = read_with_report(write(tmp_path / "a.txt", content), **options)
    assert "".join(found) == content.replace(b"\0", b"").decode(options.get("encoding", "utf-8"))
    line = lines_of(report.removed)
    assert line.startswith(f"NUL character in 1 place ({content.count(0)} character")
