"""Remote files, on fsspec's file system in memory."""

import datetime
import io
import sys
import zipfile

import fsspec
import pyarrow
import pyarrow.parquet
import pytest
from fsspec.implementations.memory import MemoryFileSystem

from src.data import remote
from src.data.documents import ReadOptions, ReadReport
from src.data.readers import iterate_documents
from src.data.remote import RemoteStream, check_protocol, find_remote, is_remote
from src.data.sources import check_rereadable, file_size, find_sources
from src.data.text_files import Skipped
from src.errors import AGI2Error
from tests.data.document_corpus import documents as corpus_documents
from tests.data.document_corpus import json_lines, parquet, pdf, plain, zip_of
from tests.data.reading import lines_of


@pytest.fixture
def memory():
    """The file system `memory://`, empty before and after."""
    files = fsspec.filesystem("memory")
    files.store.clear()
    files.pseudo_dirs[:] = [""]
    yield files
    files.store.clear()
    files.pseudo_dirs[:] = [""]


def read(*sources, **options):
    report = ReadReport()
    found = iterate_documents(list(sources), ReadOptions(**options), report)
    return [each.text for each in found], report.sources[0]


def test_a_folder_a_pattern_and_a_file_are_read(memory):
    memory.pipe(
        {
            "/texts/b.txt": b"two\n",
            "/texts/a.jsonl": b'{"text": "one"}\n',
            "/texts/deep/c.md": b"three\n",
            "/texts/.hidden/d.txt": b"hidden",
            "/texts/node_modules/e.txt": b"other",
            "/texts/picture.png": b"\x89PNG",
            "/texts/broken.csv": b"id,text\n1,2,3\n",
        }
    )
    found, report = read("memory://texts")
    assert found == ["one", "two\n", "three\n"]
    assert report.bytes_read + report.bytes_skipped == sum(
        memory.size(path) for path in memory.find("/texts")
    )
    skipped = lines_of(report.skipped)
    for reason in ("hidden", "installed packages or caches", "in no format that is read"):
        assert f"1 {reason}" in skipped
    assert "broken.csv:2: the row has 3 fields" in skipped
    assert read("memory://texts/**/*.md")[0] == ["three\n"]
    assert read("memory://texts/*.txt")[0] == ["two\n"]
    assert read("memory:///texts/b.txt", "memory://texts")[0] == ["two\n", "one", "three\n"]


@pytest.mark.parametrize("name", sorted(corpus_documents())[::5])
def test_every_format_is_read_as_from_a_local_file(memory, tmp_path, name):
    data, _ = corpus_documents()[name]
    path = tmp_path / name.split("/")[-1]
    path.write_bytes(data)
    memory.pipe(f"/{path.name}", data)
    local, _ = read(str(path))
    found, report = read(f"memory://{path.name}")
    assert found == local
    assert report.bytes_read == len(data)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("memory://none.txt", "no such file or folder there, or it is private"),
        ("memory://texts/*.pdf", "no file matches"),
        ("memory://empty", "no file there has a format that is read"),
        ("klingon://a/b", "no file system is called klingon, as s3, gs, hf or sftp are"),
        ("zip://a.txt::memory://a.zip", "name the file itself: members of archives"),
    ],
)
def test_what_is_not_there_is_named_in_a_line(memory, name, message):
    memory.pipe({"/texts/b.txt": b"two", "/empty/a.png": b"x"})
    with pytest.raises(AGI2Error, match=message) as caught:
        read(name)
    assert str(caught.value).startswith(name)
    assert "\n" not in str(caught.value)


def test_a_missing_package_is_named_with_the_command_that_installs_it(monkeypatch):
    for name, package in {"s3://bucket/a.txt": "s3fs", "sftp://host/a.txt": "paramiko"}.items():
        monkeypatch.setitem(sys.modules, package, None)
        with pytest.raises(AGI2Error, match=rf":// needs {package}, .* pip install {package}$"):
            find_sources(name, fetch=False)
    monkeypatch.setattr(remote, "find_spec", lambda name: None)
    with pytest.raises(AGI2Error, match=r"--extra remote or pip install fsspec$"):
        check_protocol("s3://bucket/a.txt")
    monkeypatch.setattr(remote, "find_spec", lambda name: True)
    check_protocol("memory://bucket/a.txt")


def test_sources_are_checked_without_a_connection(memory):
    [source] = find_sources("memory://none", fetch=False)
    assert source.files == []
    check_rereadable("memory://none", "it is read again")


class Failing(MemoryFileSystem):
    """A file system that breaks in the middle of a file, or refuses to list or open."""

    protocol = "failing"
    broken = ""

    @classmethod
    def _strip_protocol(cls, path):
        return super()._strip_protocol(path.replace("failing:", "memory:"))

    def info(self, path, **options):
        if self.broken == "info":
            raise PermissionError("no access to\nthis bucket")
        return super().info(path, **options)

    def _open(self, path, *arguments, **options):
        if self.broken == "open":
            raise ConnectionError("refused")
        content = super()._open(path, *arguments, **options)
        if self.broken != "read" or not path.endswith("b.txt"):
            return content

        class Broken(io.BytesIO):
            def read(self, size=-1):
                if self.tell() > 0:
                    raise TimeoutError("the connection timed out")
                return super().read(10)

        return Broken(content.getvalue())


@pytest.fixture
def failing(memory):
    fsspec.register_implementation("failing", Failing, clobber=True)
    memory.pipe({"/texts/a.txt": b"one", "/texts/b.txt": b"two " * 10_000, "/texts/c.zip": b"PK"})
    yield Failing
    Failing.broken = ""


@pytest.mark.parametrize(
    ("broken", "message"),
    [
        ("info", r"^failing://texts: cannot be read: PermissionError: no access to$"),
        ("open", r"a\.txt: cannot be read: ConnectionError: refused"),
        ("read", r"b\.txt: cannot be read: TimeoutError: the connection timed out"),
    ],
)
def test_a_connection_that_fails_is_an_error_not_a_skipped_file(failing, broken, message):
    failing.broken = broken
    with pytest.raises(AGI2Error, match=message):
        read("failing://texts")


@pytest.mark.parametrize("make", [pdf, parquet, lambda texts: zip_of({"a.txt": plain(texts)})])
def test_a_connection_that_fails_is_no_damaged_file(memory, monkeypatch, make):
    def fail(self, buffer):
        self._problem = OSError("reset by peer")
        raise self._problem

    memory.pipe("/texts/a.bin", make(["some text"]))
    monkeypatch.setattr(RemoteStream, "readinto", fail)
    with pytest.raises(AGI2Error, match=r"a\.bin: cannot be read: OSError: reset by peer"):
        read("memory://texts/*")


def test_a_connection_that_fails_in_a_member_of_an_archive_is_an_error(memory, monkeypatch):
    content = zip_of({f"{n}.txt": b"some words " * 99 for n in range(3)}, zipfile.ZIP_STORED)
    original, start = RemoteStream.readinto, content.find(b"1.txt")

    def fail(self, buffer):
        at = self.tell()
        if start <= at < start + 300:
            self._problem = TimeoutError("the connection timed out")
            raise self._problem
        return original(self, buffer)

    memory.pipe("/texts/a.zip", content)
    monkeypatch.setattr(RemoteStream, "readinto", fail)
    with pytest.raises(AGI2Error, match=r"a\.zip: cannot be read: TimeoutError: the connection"):
        read("memory://texts/*")


@pytest.mark.parametrize("change", ["other", "gone"])
def test_a_file_that_changes_while_it_is_read_is_an_error(memory, change):
    memory.pipe("/a.jsonl", b'{"text": "one"}\n' * 3)
    reading = iterate_documents("memory://a.jsonl")
    next(reading)
    if change == "gone":
        memory.rm("/a.jsonl")
    else:
        memory.pipe("/a.jsonl", b"another")
    with pytest.raises(AGI2Error, match=r"a\.jsonl(: no such| has changed while it was read)"):
        list(reading)


def test_the_version_of_a_file_is_what_changes_with_its_content():
    filesystem = fsspec.filesystem("memory")

    def version(**info):
        entry = {"name": "/a.txt", "size": None, "type": "file", **info}
        file = remote._file(filesystem, entry)
        assert file_size(file) == 0
        assert file.name == "a.txt"
        return file.version

    now = datetime.datetime(2026, 1, 1, tzinfo=datetime.UTC)
    assert version() == ""
    assert version(ETag='"1"', LastModified=now) == 'ETag "1"'
    assert version(LastModified=now) == f"LastModified {now.timestamp()}"
    assert version(mtime=now.timestamp(), ETag=None) == f"mtime {now.timestamp()}"


def test_a_stream_seeks_and_closes_once(memory):
    memory.pipe("/a.txt", b"0123456789")
    [file], is_named = find_remote("memory://a.txt", Skipped())
    assert is_named
    with file.open() as stream:
        stream.check_succeeded("a.txt")
        assert stream.seek(-2, 2) == stream.tell() == 8
        assert stream.read() == b"89"
        stream.close()
    assert stream.closed


def test_columns_of_a_table_are_read_without_the_others(memory):
    sink = io.BytesIO()
    table = pyarrow.table({"text": ["one", "two"], "vector": [[1.0] * 1000] * 2})
    pyarrow.parquet.write_table(table, sink)
    memory.pipe("/a.parquet", sink.getvalue())
    assert read("memory://a.parquet")[0] == ["one", "two"]
    memory.pipe("/a.jsonl", json_lines(["x"]))
    assert read("memory://a.jsonl")[0] == ["x"]


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("s3://bucket/a", True),
        ("hf://datasets/a/b", True),
        ("memory://a", True),
        ("https://a/b.txt", False),
        ("HTTP://a/b.txt", False),
        ("file:///a.txt", False),
        ("C://a", False),
        ("a.txt", False),
    ],
)
def test_remote_sources_are_known_by_their_scheme(name, expected):
    assert is_remote(name) == expected


def test_a_file_url_is_a_local_file(tmp_path):
    path = tmp_path / "a b.txt"
    path.write_text("text")
    assert read(path.as_uri())[0] == ["text"]
