import gzip
import io
import os
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from src.data import inputs
from src.data.documents import ReadOptions, SourceReport
from src.data.inputs import Input, buffered, open_input
from src.data.text_files import Unreadable
from tests.data.reading import lines_of, read_with_report, texts, write

needs_pipes = pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="the system has no named pipes")


def read_all(path):
    with open_input(path, ReadOptions(), SourceReport("a")) as opened:
        return opened.read()


@pytest.mark.parametrize("change", ["grow", "shrink", "touch"])
def test_a_file_that_changes_while_it_is_read_is_refused(tmp_path, change):
    path = write(tmp_path / "a.jsonl", f'"{"word " * 100_000}"\n' * 8)

    def modify():
        if change == "grow":
            with open(path, "ab") as file:
                file.write(b'"more"\n')
        elif change == "shrink":
            os.truncate(path, 3_000_000)
        else:
            os.utime(path, ns=(1, 1))

    def read():
        with open_input(path, ReadOptions(), SourceReport("a")) as opened:
            opened.stream.read(10)
            modify()
            for _ in opened.blocks():
                pass
            pytest.fail("the end was reached")

    with pytest.raises(Unreadable, match=r"a\.jsonl: the file changed while it was read: retry"):
        read()


@pytest.mark.parametrize("name", ["b.txt", "b.txt.gz"])
def test_a_file_that_changes_is_skipped_in_a_folder(tmp_path, monkeypatch, name):
    """Also if it is compressed: it is not taken for a damaged one."""
    write(tmp_path / "a.txt", "one")
    content = b"two" if name == "b.txt" else gzip.compress(b"two")
    changing = write(tmp_path / name, content)
    original = inputs._open
    monkeypatch.setattr(inputs, "_open", lambda path: _touched(original(path), path == changing))
    found, report = read_with_report(tmp_path)
    assert found == ["one"]
    size = len(content)
    assert f"1 that changes ({size} B), such as " in "\n".join(report.skipped.lines())


class _Touched(io.FileIO):
    """A file that another program changes when it is read."""

    def read(self, size=-1):
        os.utime(self.fileno(), ns=(1, 1))
        return super().read(size)


def _touched(file, is_changed):
    return _Touched(os.dup(file.fileno())) if is_changed else file


@needs_pipes
@pytest.mark.parametrize("is_opened", [False, True])
def test_a_pipe_that_brings_nothing_is_said_to_be_waited_for(
    tmp_path, monkeypatch, caplog, is_opened
):
    """Whether no program has opened the pipe, or one has and writes nothing."""
    fcntl, termios = pytest.importorskip("fcntl"), pytest.importorskip("termios")
    monkeypatch.setattr(inputs, "_LOG_DELAY", 0.0)
    path = tmp_path / "pipe"
    os.mkfifo(path)
    writer = os.open(path, os.O_RDWR) if is_opened else None
    with ThreadPoolExecutor(1) as pool:
        reading = pool.submit(read_all, path)
        while not caplog.messages:
            time.sleep(0.01)
        file = os.open(path, os.O_WRONLY)
        os.write(file, b"text")
        # Closed before the reader has opened the pipe, it would be lost.
        while any(fcntl.ioctl(file, termios.FIONREAD, bytes(4))):
            time.sleep(0.01)
        for each in {file, writer} - {None}:
            os.close(each)
        assert reading.result() == b"text"
    message = f"waiting for {path}: nothing has been written to this pipe; Ctrl-C stops"
    assert caplog.messages == [message]


@needs_pipes
def test_a_pipe_that_brings_text_is_not_said_to_be_waited_for(monkeypatch, caplog):
    monkeypatch.setattr(inputs, "_LOG_DELAY", 1e6)
    reader, writer = os.pipe()
    os.write(writer, b"text")
    os.close(writer)
    assert read_all(Path(f"/dev/fd/{reader}")) == b"text"
    os.close(reader)
    assert not caplog.messages


@needs_pipes
@pytest.mark.parametrize("size", [1, 7, 10_000])
def test_a_pipe_that_trickles_is_recognized_by_its_beginning(tmp_path, size):
    content = gzip.compress(b"some words " * 100)
    reader, writer = os.pipe()
    with ThreadPoolExecutor(1) as pool:
        reading = pool.submit(texts, Path(f"/dev/fd/{reader}"))
        for at in range(0, len(content), size):
            os.write(writer, content[at : at + size])
        os.close(writer)
        assert reading.result() == ["some words " * 100]
    os.close(reader)


def test_a_folder_cannot_be_read(tmp_path):
    with pytest.raises(Unreadable, match="cannot be read: Is a directory"):
        read_all(tmp_path)


def test_a_stream_that_fails_names_the_file(tmp_path):
    def fail(size):
        raise OSError(5, "Input/output error")

    inner = io.BytesIO()
    inner.read = fail
    stream = buffered(inner, lambda error: Unreadable("x", f"a.txt: {error}"), lambda count: None)
    with pytest.raises(Unreadable, match=r"a\.txt: .*Input/output error"):
        stream.read(1)


def test_an_error_that_names_the_file_stays_as_it_is_in_a_stream_above(tmp_path):
    inner = io.BytesIO()
    inner.read = raising_unreadable
    below = buffered(inner, lambda error: Unreadable("x", "below"), lambda count: None)
    above = buffered(below, lambda error: Unreadable("x", "above"), lambda count: None)
    with pytest.raises(Unreadable, match=r"^a\.txt: the file changed$"):
        above.read(1)


def raising_unreadable(size):
    raise Unreadable("that change", "a.txt: the file changed")


def test_what_must_fit_in_memory_has_a_limit(tmp_path):
    path = write(tmp_path / "a.txt", "a" * 101)
    with open_input(path, ReadOptions(), SourceReport("a")) as opened:
        assert opened.seekable() is opened.file
        with pytest.raises(Unreadable, match=r"a\.txt: more than 100 B, the limit of this format"):
            opened.read(100)


def test_a_document_names_its_place(tmp_path):
    source = Input(
        "a.zip: b", "b", io.BufferedReader(io.BytesIO()), ReadOptions(), SourceReport("")
    )
    assert source.document("text", ":12").source == "a.zip: b:12"
    assert str(source.error("why", "what", ":3")) == "a.zip: b:3: what"
    source.removed("frames", 0)
    assert not source.report.removed


def test_what_a_reader_leaves_is_counted_as_not_read(tmp_path):
    path = write(tmp_path / "a.rtf", b"text" * 10)
    report = SourceReport("a")
    with open_input(path, ReadOptions(), report) as opened:
        opened.stream.read(12)
        opened.finish()
        opened.finish()
    assert opened.bytes_left == report.bytes_skipped == 28
    assert "1 with data after its end, not read (28 B), such as" in lines_of(report.skipped)
    with open_input(path, ReadOptions(), SourceReport("a")) as opened:
        opened.seekable().read(2)
        opened.finish()
    assert opened.bytes_left == 0
