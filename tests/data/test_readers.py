import re

import pytest

from src.data import format_readers, formats, text
from src.data.corpus import read_documents
from src.data.documents import Document, ReadOptions, ReadReport
from src.data.readers import iterate_documents
from src.data.sources import find_sources
from src.errors import AGI2Error
from tests.data.document_corpus import damaged, plain, tar_of, write_corpus, zip_of
from tests.data.reading import lines_of, read_with_report, texts, write


@pytest.fixture(scope="module")
def corpus(tmp_path_factory):
    """The folder, the paragraphs in each file, and the documents and the report of a reading."""
    folder = tmp_path_factory.mktemp("corpus")
    expected = write_corpus(folder)
    write(folder / ".hidden" / "deep" / "a.txt", "hidden")
    write(folder / "picture.png", b"\x89PNG" * 9)
    report = ReadReport()
    return folder, expected, list(iterate_documents(str(folder), report=report)), report.sources[0]


def plainly(text):
    """The text with straight apostrophes, which every encoding has, and single spaces."""
    return " ".join(text.replace("’", "'").split())


def test_at_least_99_percent_of_a_corpus_in_all_formats_is_found(corpus):
    folder, expected, documents, _ = corpus
    assert len(expected) >= 200
    found = dict.fromkeys(expected, "")
    for document in documents:
        name = document.source.removeprefix(f"{folder}/")
        found[
            min((n for n in (name, re.split("[ :]", name)[0]) if n in found), key=len)
        ] += document.text
    total = missing = 0
    for name, paragraphs in expected.items():
        read = plainly(found[name])
        for paragraph in map(plainly, paragraphs):
            total += len(paragraph)
            missing += len(paragraph) * (paragraph not in read)
    assert missing <= 0.01 * total
    # Only what the documents have, not markup, navigation or numbers.
    extra = sum(len(plainly(each)) for each in found.values()) - total
    assert extra < 0.05 * total


def test_what_was_read_adds_up_to_what_is_on_disk(corpus):
    folder, expected, found, report = corpus
    sizes = {str(path): path.stat().st_size for path in folder.rglob("*") if path.is_file()}
    assert report.bytes_read + report.bytes_skipped == sum(sizes.values())
    assert report.documents == len(found)
    assert report.characters == sum(len(each.text) for each in found)
    assert len(expected) <= report.files <= len(expected) + len(damaged())
    for reason in ("hidden", "damaged", "encrypted", "scanned", "in no format that is read"):
        assert re.search(rf"^\d+ {reason} \(", lines_of(report.skipped), re.MULTILINE), reason
    for what in ("navigation", "page numbers"):
        assert re.search(
            rf"^{what} .* in \d+ places? .*characters\)", lines_of(report.removed), re.MULTILINE
        )
    assert any("koi8_r" in entry.kinds for _, entry in report.notes.entries())


@pytest.mark.parametrize("name", sorted(damaged()))
def test_damaged_files_that_are_named_are_refused_in_a_line(tmp_path, name):
    path = tmp_path / name.split("/")[1]
    with pytest.raises(AGI2Error, match=re.escape(path.name)) as caught:
        texts(path, damaged()[name])
    assert "\n" not in str(caught.value)


def test_the_order_is_that_of_the_paths_and_the_same_every_time(corpus):
    folder, _, first, _ = corpus
    assert first == list(iterate_documents(str(folder)))
    names = [each.source.removeprefix(f"{folder}/").split("/")[0] for each in first]
    assert names.index("archives") < names.index("compressed") < names.index("encodings")


def test_documents_are_yielded_one_at_a_time(tmp_path):
    write(tmp_path / "a.jsonl", '"one"\n"two"\n' + "broken\n" * 999)
    reading = iterate_documents(str(tmp_path / "a.jsonl"), ReadOptions(max_broken_lines=1))
    write(tmp_path / "b.txt", "unrelated")
    with pytest.raises(AGI2Error, match=r"a\.jsonl:3 is not JSON.*max_broken_lines is 1"):
        list(reading)


def test_bytes_read_grow_while_a_file_is_read(tmp_path):
    content = f'"{"some words " * 1000}"\n' * 300
    write(tmp_path / "a.jsonl", content)
    report = ReadReport()
    for number, _ in enumerate(iterate_documents(str(tmp_path / "a.jsonl"), report=report)):
        if number == 100:
            assert 0 < report.sources[0].bytes_read < len(content)
    assert report.sources[0].bytes_read == len(content)


@pytest.fixture
def small_pieces(monkeypatch):
    for module in (format_readers, text):
        monkeypatch.setattr(module, "MAX_CHARACTERS", 100)


@pytest.mark.parametrize("name", ["a.txt", "a.jsonl", "a.html"])
@pytest.mark.parametrize("unit", ["word ", "a line\n\n", "鯨", "e\u0301"])
def test_a_large_document_comes_in_pieces(tmp_path, small_pieces, name, unit):
    whole = (unit * 500).strip() + "\n"
    content = {"a.txt": whole, "a.jsonl": f"{whole!r}".replace("'", '"'), "a.html": f"<pre>{whole}"}
    write(tmp_path / name, content[name])
    found = list(iterate_documents(str(tmp_path / name), report=(report := ReadReport())))
    assert "".join(each.text for each in found) == whole
    assert [each.continues for each in found] == [False] + [True] * (len(found) - 1)
    assert max(len(each.text) for each in found) <= 100
    assert len(found) > 5
    assert report.sources[0].documents == 1
    if unit.endswith("\n"):
        assert all(each.text.endswith("\n") for each in found)
    elif unit == "word ":
        assert all(each.text.endswith((" ", "\n")) for each in found)
    assert list(read_documents(str(tmp_path / name))) == [whole]


def test_a_piece_without_text_is_part_of_its_document(tmp_path, small_pieces):
    blank, words = " " * 450, "word " * 50
    write(tmp_path / "a.txt", blank + words + blank + words)
    found = list(iterate_documents(str(tmp_path / "a.txt"), report=(report := ReadReport())))
    assert "".join(each.text for each in found).lstrip() == words + blank + words
    assert [each.continues for each in found] == [False] + [True] * (len(found) - 1)
    assert not report.sources[0].skipped


def test_documents_of_two_files_are_not_joined(tmp_path, small_pieces):
    for name in ("a.txt", "b.txt", "c.txt"):
        write(tmp_path / name, f"{name} " * (40 if name < "c" else 1))
    joined = list(read_documents(str(tmp_path)))
    assert joined == [
        f"{name} " * (40 if name < "c" else 1) for name in ("a.txt", "b.txt", "c.txt")
    ]


def test_the_beginning_of_a_damaged_file_is_read_and_the_rest_counted(tmp_path):
    rows = "".join(f"{n},{'word ' * 1000}\n" for n in range(1000))
    write(tmp_path / "a.csv", "id,text\n" + rows + "broken\n" + rows)
    found, report = read_with_report(tmp_path)
    assert len(found) == 1000
    size = (tmp_path / "a.csv").stat().st_size
    assert report.bytes_read + report.bytes_skipped == size
    assert report.bytes_read > size / 3
    assert report.bytes_skipped > size / 5
    assert "1 broken tables (" in lines_of(report.skipped)
    with pytest.raises(AGI2Error, match=r"a\.csv:1002: the row has 1 field"):
        texts(tmp_path / "a.csv")


def test_a_bad_member_is_skipped_and_named(tmp_path):
    members = {"bad.csv": b"a,b\n1\n", "sub/good.txt": plain(["good"]), "bad.pdf": b"%PDF-1.4\n"}
    for name, content in (("a.zip", zip_of(members)), ("a.tar", tar_of(members))):
        write(tmp_path / name, content)
        found, report = read_with_report(tmp_path / name)
        assert found == ["good\n"]
        skipped = lines_of(report.skipped)
        assert f"{name}: bad.csv: no field 'text' among a, b; set text_field" in skipped
        assert f"{name}: bad.pdf: damaged: " in skipped


@pytest.mark.parametrize("make", [zip_of, tar_of])
def test_an_archive_without_documents_is_refused(tmp_path, make):
    path = tmp_path / "a.zip" if make is zip_of else tmp_path / "a.tar"
    with pytest.raises(AGI2Error, match="no document in this archive; it has no member in a form"):
        texts(path, make({"a.png": b"\0"}))
    with pytest.raises(
        AGI2Error, match=r"no document in this archive; .*a\.txt: the file is empty"
    ):
        texts(path, make({"a.txt": b""}))


def test_archives_in_each_other_without_documents_are_named_once(tmp_path):
    content = zip_of({"a.txt": b"text"})
    for _ in range(6):
        content = zip_of({"n.zip": content})
    inside = r"a\.zip(: n\.zip){5}: more than 5 archives in each other: unpack them"
    with pytest.raises(
        AGI2Error, match=rf"a\.zip: no document in this archive; .*{inside}"
    ) as caught:
        texts(tmp_path / "a.zip", content)
    assert str(caught.value).count("no document") == 1


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"encoding": "klingon"}, "encoding: there is no encoding 'klingon'"),
        ({"encoding": "rot13"}, "encoding: there is no encoding 'rot13'"),
        ({"normalize": "nfd"}, "normalize must be none, lines, nfc or nfkc, not 'nfd'"),
    ],
)
def test_wrong_options_are_refused(options, message):
    with pytest.raises(AGI2Error, match=message):
        ReadOptions(**options)


def test_options_are_those_of_a_configuration():
    config = {"text_field": "body", "clean": False, "epochs": 3}
    assert ReadOptions.from_config(config) == ReadOptions(text_field="body", clean=False)


@pytest.mark.parametrize(
    ("how", "expected"),
    [
        ("none", "e\u0301\r\nﬁ\r"),
        ("lines", "e\u0301\nﬁ\n"),
        ("nfc", "é\nﬁ\n"),
        ("nfkc", "é\nfi\n"),
    ],
)
def test_line_ends_and_unicode_are_normalized_by_choice(tmp_path, how, expected):
    assert texts(tmp_path / "a.txt", "e\u0301\r\nﬁ\r", normalize=how) == [expected]
    lines = '{"text": "e\\u0301\\r\\nﬁ\\r"}\r\n'
    assert texts(tmp_path / "a.jsonl", lines, normalize=how) == [expected]


def test_every_format_has_a_reader(corpus):
    for name in corpus[1]:
        format_ = formats.format_of(formats.split_compression(name)[0], b"")
        assert format_ in format_readers._READERS or format_ in (formats.ZIP, formats.TAR)


def test_a_document_of_the_built_in_corpus_is_counted():
    report = ReadReport()
    first = next(iterate_documents("builtin:python-docs", report=report))
    assert isinstance(first, Document)
    assert report.sources[0].documents == 1
    assert report.sources[0].characters == len(first.text)
    assert report.sources[0].amounts() == f"1 document, {len(first.text):,} characters"


def test_standard_input_that_is_named_twice_is_read_once():
    first, second = find_sources(["-", "-"])
    assert [str(path) for path in first.files] == ["-"]
    assert not second.files
    assert "1 read already, such as -, which is -" in lines_of(second.skipped)
