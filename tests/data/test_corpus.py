import json
import re
import shlex

import psutil
import pytest

from src.data import inputs, readers
from src.data.corpus import BUILTIN, check_fits_memory, check_sources, read_documents
from src.errors import AGI2Error


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


def test_a_source_may_stand_alone_or_in_a_list_in_its_order_once(tmp_path):
    one, two = write(tmp_path / "z.txt", "one"), write(tmp_path / "a.txt", "two")
    assert list(read_documents(str(one))) == ["one"]
    assert read(one, two, one) == ["one", "two"]


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
    with pytest.raises(
        AGI2Error, match=r"no file in this folder has a format .*\.txt, \.md, \.rst"
    ):
        read(tmp_path)


def test_the_pattern_that_is_proposed_for_a_folder_of_unknown_names_reads_it(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    write(tmp_path / "pages [1]" / "ls.man", "list files")
    write(tmp_path / "pages [1]" / "fr" / "cat.man", "concatenate")
    with pytest.raises(AGI2Error, match="to read all files as text") as caught:
        read("pages [1]")
    (pattern,) = shlex.split(str(caught.value).rpartition(": ")[2])
    assert sorted(read(pattern)) == ["concatenate", "list files"]


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
        ("mä🐳".encode("utf-32"), "mä🐳"),
        ("mä\n".encode("utf-32-be").join([b"\0\0\xfe\xff", b""]), "mä\n"),
        (b" " * 9000 + b"late", " " * 9000 + "late"),
    ],
)
def test_marks_and_line_ends_are_understood(tmp_path, content, text):
    assert read(write(tmp_path / "a.txt", content)) == [text]


@pytest.mark.parametrize("content", [b"", b" \n\t\r\n", b" " * 9000, b"\xef\xbb\xbf", b"\xff\xfe"])
def test_a_file_without_text_is_an_error(tmp_path, content):
    with pytest.raises(
        AGI2Error, match=r"a\.txt: (the file is empty|contains no text|the file contains only)"
    ):
        read(write(tmp_path / "a.txt", content))


@pytest.mark.parametrize(
    "content",
    [b"\x89PNG\r\n\0\0", "text".encode("utf-16-le"), "te".encode("utf-32-le")],
)
def test_a_binary_file_is_an_error(tmp_path, content):
    with pytest.raises(AGI2Error, match=r"a\.txt: not a text file \(it contains NUL bytes\)"):
        read(write(tmp_path / "a.txt", content))


def test_damaged_utf8_is_an_error_with_the_line_and_what_to_do(tmp_path):
    path = write(tmp_path / "a.txt", "é\né鯨\n".encode() + b"na\xefve")
    with pytest.raises(AGI2Error, match=r"a\.txt:3: not UTF-8 \(byte 11\); set encoding, .* iconv"):
        read(path)


def test_broken_utf16_is_an_error(tmp_path):
    with pytest.raises(AGI2Error, match="not utf-16"):
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
    monkeypatch.setattr(inputs, "_open", refuse)
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
    with pytest.raises(AGI2Error, match="the built-in sources are builtin:python-docs, "):
        check_sources("builtin:shakespeare")


def test_more_text_than_memory_is_refused_where_it_has_to_be_there(tmp_path, monkeypatch):
    write(tmp_path / "a.txt", "text" * 100)
    memory = psutil.virtual_memory()
    monkeypatch.setattr(psutil, "virtual_memory", lambda: memory._replace(total=100))
    with pytest.raises(AGI2Error, match="the sources have 400 B, more than this machine's memory"):
        check_fits_memory(str(tmp_path))
    check_sources(str(tmp_path))
    assert read(tmp_path) == ["text" * 100]


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


@pytest.mark.parametrize("broken", [1, 3])
@pytest.mark.parametrize(
    ("line", "problem"),
    [
        ('{"text": ', " is not JSON: Expecting value"),
        ("[" * 100_000, " is not JSON: "),
        ('{"text": "a", "n": ' + "1" * 5000 + "}", " is not JSON: "),
        ('{"body": "a"}', ": no text in the field 'text'; set text_field"),
        ('{"text": 5}', ": no text in the field 'text'"),
        ("[1]", ": a list, not an object or a text"),
    ],
)
def test_a_broken_jsonl_line_is_named(tmp_path, line, problem, broken, caplog):
    path = write(tmp_path / "a.jsonl", '{"text": "good"}\n\n' + f"{line}\n" * broken)
    if broken == 1:  # it is skipped
        assert read(path) == ["good"]
        assert re.search(
            rf"skipped in .*: 1 (broken JSON|without the field) .*:3{problem}", caplog.text
        )
        return
    with pytest.raises(AGI2Error, match=rf"a\.jsonl:3{problem}.*; 3 of 4 lines are broken"):
        read(path)


def test_csv_gives_a_document_a_row(tmp_path):
    content = (
        'id,text\r\n1,"two\r\nlines, and ""quotes"""\r\n2,unquoted \u2028 \x0c\x85 rest\n3,\n\n'
        f"5,{'long ' * 40_000}\n"
    )
    expected = ['two\nlines, and "quotes"', "unquoted \u2028 \x0c\x85 rest", "long " * 40_000]
    assert read(write(tmp_path / "a.csv", content)) == expected


@pytest.mark.parametrize("content", ["id,title,body\n1,x,y\n", ",\n1,2\n"])
def test_a_missing_column_is_an_error_that_lists_the_columns(tmp_path, content):
    with pytest.raises(AGI2Error, match=r"a\.csv: no field 'text' among .*; set text_field"):
        read(write(tmp_path / "a.csv", content))


@pytest.mark.parametrize(("name", "content"), [("a.csv", "text\n \n"), ("a.jsonl", '{"text": ""}')])
def test_rows_without_text_are_an_error(tmp_path, name, content):
    with pytest.raises(AGI2Error, match=f"{name}: contains no text"):
        read(write(tmp_path / name, content))


def test_a_name_that_is_not_utf_8_is_refused_before_anything_is_read():
    with pytest.raises(AGI2Error, match="the name is not UTF-8"):
        check_sources(["caf\udce9.txt"])


def test_a_found_file_that_is_no_text_further_on_is_left_out_and_counted(tmp_path, caplog):
    (tmp_path / "a.txt").write_text("fine\n")
    (tmp_path / "b.txt").write_bytes(b"a" * 20_000 + b"\0" * 999)
    assert list(read_documents(str(tmp_path))) == ["fine\n"]
    assert "skipped in" in caplog.text
    (tmp_path / "a.txt").unlink()
    with pytest.raises(AGI2Error, match="no file of it can be read"):
        list(read_documents(str(tmp_path)))
    with pytest.raises(AGI2Error, match=r"b\.txt"):
        list(read_documents(str(tmp_path / "b.txt")))


def test_a_file_that_is_gone_once_it_is_read_is_left_out(tmp_path, monkeypatch, caplog):
    write(tmp_path / "texts" / "a.txt", "one")
    gone = write(tmp_path / "texts" / "b.txt", "two")

    def open_input(path, *rest):
        gone.unlink(missing_ok=True)  # by another program, after it was found
        return original(path, *rest)

    original = readers.open_input
    monkeypatch.setattr(readers, "open_input", open_input)
    with caplog.at_level("WARNING", "agi2"):
        assert read(tmp_path / "texts") == ["one"]
    assert "1 that cannot be read, such as " in caplog.text
