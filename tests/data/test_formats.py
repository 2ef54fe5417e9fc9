import importlib.util
import io
import zipfile

import pytest

from src.data import formats
from src.data.documents import ReadOptions
from src.data.formats import check_head, compression_of, format_of, is_known, split_compression
from src.data.text_files import Unreadable
from tests.data.document_corpus import (
    COMPRESSIONS,
    FORMATS,
    PARAGRAPHS,
    docx,
    epub,
    odt,
    tar_of,
    zip_of,
)
from tests.data.reading import lines_of, read_with_report, texts, write


@pytest.mark.parametrize(
    "name", ["a.txt", "a.PY", "b.tar.gz", "c.TGZ", "d.jsonl.zst", "README", "x.csv.gz.gz"]
)
def test_known_names(name):
    assert is_known(name)


@pytest.mark.parametrize(
    "name", ["a.png", "a.toml", "noname", "a.png.gz", "b.gz", ".gz", "", "a.exe"]
)
def test_unknown_names(name):
    assert not is_known(name)


@pytest.mark.parametrize(
    ("name", "inner", "suffix"),
    [
        ("a.txt.gz", "a.txt", ".gz"),
        ("a.tgz", "a.tar", ".gz"),
        ("a.tar.XZ", "a.tar", ".xz"),
        ("a.TZST", "a.tar", ".zst"),
        ("a.txt", "a.txt", None),
    ],
)
def test_a_compression_is_split_from_the_name(name, inner, suffix):
    found, compression = split_compression(name)
    assert found.lower() == inner
    assert (compression and compression.suffixes[0]) == suffix


@pytest.mark.parametrize("suffix", [".pdf", ".rtf", ".parquet", ".arrow"])
@pytest.mark.parametrize("name", ["download", "a.txt", "b.xyz"])
def test_a_format_is_recognized_by_its_beginning(tmp_path, suffix, name):
    found = texts(tmp_path / name, FORMATS[suffix](PARAGRAPHS["de"]))
    assert "Der Wärter zählte" in found[0]


@pytest.mark.parametrize("ending", list(COMPRESSIONS))
def test_a_compression_is_recognized_by_its_beginning(tmp_path, ending):
    content = COMPRESSIONS[ending](FORMATS[".pdf"](PARAGRAPHS["en"]))
    assert "The lighthouse keeper" in texts(tmp_path / "download", content)[0]
    assert compression_of("a.csv", content) is None
    archive = tar_of({"a.txt": b"text", "b.txt": b"more"})
    assert texts(tmp_path / "archive", COMPRESSIONS[ending](archive)) == ["text", "more"]


def test_a_name_is_text_where_it_says_nothing():
    assert format_of("a.xyz", b"%PD") is formats.TEXT
    assert format_of("a.csv", b"%PDF-1.4") is formats.TABLE


@pytest.mark.parametrize(
    ("suffix", "advice"), [(".doc", ".docx"), (".7z", "unpack"), (".XLSX", ".csv")]
)
def test_a_format_that_is_not_read_comes_with_advice(tmp_path, suffix, advice):
    for content in (b"\xd0\xcf\x11\xe0", zip_of({"a.xml": b"<a>b</a>"})):
        with pytest.raises(Unreadable, match=rf"{suffix.lower()} is not read: .*{advice}"):
            check_head(write(tmp_path / f"a{suffix}", content))


@pytest.mark.parametrize("name", ["a.txt", "a.doc", "download", "a.md.gz"])
def test_an_archive_is_recognized_whatever_its_name(tmp_path, name):
    """As are documents that are archives, by their first members."""
    text = PARAGRAPHS["fr"]
    types = {"[Content_Types].xml": b"<t/>", "_rels/.rels": b"<r/>"}
    with zipfile.ZipFile(io.BytesIO(docx(text))) as archive:
        word = types | {each: archive.read(each) for each in archive.namelist()}
    book = b"application/epub+zip", epub(text)
    note = b"application/vnd.oasis.opendocument.text", odt(text)
    documents = [zip_of(word)]
    for mimetype, content in (book, note):
        with zipfile.ZipFile(io.BytesIO(content)) as archive:
            members = {each: archive.read(each) for each in archive.namelist()}
        documents.append(zip_of({"mimetype": mimetype, **members}, zipfile.ZIP_STORED))
    for content in (zip_of({"b.txt": b"text"}), tar_of({"b.txt": b"text"}), *documents):
        made = COMPRESSIONS[".gz"](content) if name.endswith(".gz") else content
        if name == "a.doc" and content[:2] == b"PK" and content not in documents:
            continue
        (found,) = texts(tmp_path / name, made)
        assert found.split() == (" ".join(text) if content in documents else "text").split()


def test_an_encoding_that_is_set_allows_nul_bytes(tmp_path):
    path = write(tmp_path / "a.txt", "灯台 守".encode("utf-16-le") * 99 + "\0".encode("utf-16-le"))
    write(tmp_path / "b.txt", "灯台ab".encode("utf-16-le"))
    with pytest.raises(Unreadable, match="NUL bytes"):
        check_head(path)
    check_head(path, options=ReadOptions(encoding="utf-16-le"))
    assert texts(tmp_path / "b.txt", encoding="utf-16-le") == ["灯台ab"]


def test_a_missing_file_says_so(tmp_path):
    with pytest.raises(Unreadable, match="cannot be read: No such file"):
        check_head(tmp_path / "gone.txt")


PACKAGES = [
    (".html", "selectolax"), (".epub", "selectolax"), (".pdf", "pypdfium2"),
    (".parquet", "pyarrow"), (".arrow", "pyarrow"), (".txt.zst", "zstandard"),
]  # fmt: skip


@pytest.mark.parametrize(("suffix", "package"), PACKAGES)
def test_a_missing_package_is_named_with_how_to_install_it(tmp_path, monkeypatch, suffix, package):
    find_spec = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda name: None if name == package else find_spec(name)
    )
    made = FORMATS.get(suffix, lambda _: COMPRESSIONS[".zst"](b"text"))(PARAGRAPHS["en"])
    path = write(tmp_path / "texts" / f"a{suffix}", made)
    with pytest.raises(
        Unreadable,
        match=rf"needs {package}, which is not installed: install it with uv sync --extra "
        rf"documents or pip install {package}",
    ):
        texts(path)
    write(tmp_path / "texts" / "b.txt", "text")
    found, report = read_with_report(tmp_path / "texts")
    assert found == ["text"]
    (line,) = report.skipped.lines()
    assert line.startswith("1 that needs the extra documents (")


def test_every_package_belongs_to_the_extra():
    import tomllib
    from pathlib import Path

    project = tomllib.loads((Path(__file__).parents[2] / "pyproject.toml").read_text("utf-8"))
    extra = project["project"]["optional-dependencies"]["documents"]
    packages = {each.package for each in (*formats._FORMATS, *formats._COMPRESSIONS.values())}
    assert {line.split(">")[0] for line in extra} == packages - {""}
    assert set(extra) <= set(project["project"]["optional-dependencies"]["dev"])


@pytest.mark.parametrize("name", ["page", "page.aspx", "page.doc", "page.1", "page.gz"])
@pytest.mark.parametrize(
    "begin", ["<!DOCTYPE html>", "\ufeff <html lang=en>", '<?xml version="1.0"?><!-- x -->\n<HTML>']
)
def test_a_web_page_is_recognized_by_its_beginning(tmp_path, name, begin):
    """Rather than trained on with its markup; also in a folder and in an archive."""
    page = f"{begin}<p>Hello<script>var x</script>"
    contents = [page.encode(), page.lstrip("\ufeff").encode("utf-16")]
    for content in map(COMPRESSIONS[".gz"], contents) if name == "page.gz" else contents:
        assert texts(tmp_path / name, content) == ["Hello\n"]
    if name == "page":
        assert read_with_report(tmp_path)[0] == ["Hello\n"]
        assert texts(tmp_path / "a.zip", zip_of({"page": content})) == ["Hello\n"]


def test_a_text_that_is_a_web_page_is_noted(tmp_path):
    page = "<!DOCTYPE html><p>Hello"
    for name in ("a.txt", "a.vue"):
        found, report = read_with_report(write(tmp_path / name, page))
        assert found == [page]
        assert ("(rename it to .html)" in lines_of(report.notes)) == (name == "a.txt")
    assert not formats.is_page(b"<p>The <html> element")
    assert formats.format_of("a", b"<htmlish> words") is formats.TEXT


@pytest.mark.parametrize(
    ("name", "suffix"),
    [("a.JSON", ".json"), ("a.csv.gz", ".csv.gz"), ("b.tgz", ".tar.gz"), ("a.1", ""), ("a", ""),
     ("a.gz", ".gz"), ("README", ""), ("a.com", "")],
)  # fmt: skip
def test_the_known_suffix_of_a_name(name, suffix):
    assert formats.known_suffix(name) == suffix


@pytest.mark.parametrize(
    "part", [b" ", b"\n\n", b"<!-- x -->", b"<?xml?>", b"\xef\xbb\xbf", b"<!--"]
)
def test_a_page_is_recognized_in_linear_time(part):
    """Each of these took exponential time, were the pattern to go back."""
    assert not formats.is_page(part * 2000 + b"text")
    assert formats.is_page(part * 2000 + b"<html>") == (part != b"<!--")
