import os
import time
from concurrent.futures import ThreadPoolExecutor

import psutil
import pytest

from src.data import text_files
from src.data.text_files import Skipped, Unreadable, check_head, decode, read_content


def test_a_tally_counts_by_reason_with_sizes_and_one_example():
    tally, other = Skipped(), Skipped()
    assert not tally
    tally.add("empty", "a.txt")
    tally.add("not text", "b.txt", size=1500)
    other.add("not text", "c.txt", size=500)
    other.add("frames", "d.txt", count=3, size=1234, unit="characters")
    tally.merge(other)
    assert tally
    assert list(tally.lines()) == [
        "1 empty, such as a.txt",
        "2 not text (2.0 KB), such as b.txt",
        "3 frames (1,234 characters), such as d.txt",
    ]


def test_a_tally_of_strange_names_is_printable():
    tally = Skipped()
    tally.add("hidden", "caf\udce9\x1b[31m\n" + "x" * 1000)
    (line,) = tally.lines()
    assert line.isprintable()
    assert len(line) <= 300


@pytest.mark.parametrize(
    ("content", "problem"),
    [
        (b"a" * 9000 + b"\0", "not a text file"),
        ("text".encode("utf-16-le") * 9000, "not a text file"),
        ("鯨".encode("utf-16-le") * 9000, "not UTF-8|not a text file"),
        ("text".encode("utf-32-be"), "not a text file"),
        ("鯨".encode("utf-32"), "not a text file|not UTF-8"),
        (b"\xff\xfe" + "a\0b".encode("utf-16-le"), "not a text file"),
        (b"\x89PNG\r\n\x1a\n" + b"\0\xff" * 9, "not a text file"),
        (b"a\n" * 9000 + b"\xe9", "a.txt:9001: not UTF-8 .byte 18000."),
        (b"", "the file is empty"),
        (b"%PDF-1.4\n1 0 obj", "a.txt: a PDF, not a text file: save its text alone"),
        (b"%!PS-Adobe-3.0\n", "a.txt: PostScript, not a text file"),
        (rb"{\rtf1\ansi Call me}", "a Rich Text .RTF. document, not a text file"),
    ],
)
def test_what_is_no_text_is_refused_wherever_it_shows(content, problem):
    with pytest.raises(Unreadable, match=problem):
        decode(content, "a.txt")


def test_a_head_of_utf16_is_text(tmp_path):
    path = tmp_path / "a.txt"
    path.write_bytes("text".encode("utf-16"))
    check_head(path)
    with pytest.raises(Unreadable, match="cannot be read: No such file"):
        check_head(tmp_path / "gone.txt")


def test_a_file_that_shrinks_while_it_is_read_is_refused(tmp_path, monkeypatch):
    path = tmp_path / "a.txt"
    path.write_bytes(b"text")
    real = os.fstat

    def fstat(descriptor):
        about = list(real(descriptor))
        about[6] += 100
        return os.stat_result(about)

    monkeypatch.setattr(text_files.os, "fstat", fstat)
    with pytest.raises(Unreadable, match="only 4 of 104 bytes were read: retry"):
        read_content(path)


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="the system has no such pipes")
def test_an_endless_pipe_is_refused(monkeypatch, tmp_path):
    memory = psutil.virtual_memory()
    monkeypatch.setattr(text_files.psutil, "virtual_memory", lambda: memory._replace(available=40))
    reader, writer = os.pipe()
    os.write(writer, b"a" * 100)
    os.close(writer)
    with pytest.raises(Unreadable, match="more than 10 B arrived, which exceeds the memory limit"):
        read_content(type(tmp_path)(f"/dev/fd/{reader}"))
    os.close(reader)


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="the system has no such pipes")
@pytest.mark.parametrize("is_opened", [False, True])
def test_a_pipe_that_brings_nothing_is_said_to_be_waited_for(
    tmp_path, monkeypatch, caplog, is_opened
):
    """Whether no program has opened the pipe, or one has and writes nothing."""
    fcntl, termios = pytest.importorskip("fcntl"), pytest.importorskip("termios")
    monkeypatch.setattr(text_files, "_LOG_DELAY", 0.0)
    path = tmp_path / "pipe"
    os.mkfifo(path)
    writer = os.open(path, os.O_RDWR) if is_opened else None
    with ThreadPoolExecutor(1) as pool:
        reading = pool.submit(read_content, path)
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


def test_a_pipe_that_brings_text_is_not_said_to_be_waited_for(tmp_path, monkeypatch, caplog):
    monkeypatch.setattr(text_files, "_LOG_DELAY", 1e6)
    reader, writer = os.pipe()
    os.write(writer, b"text")
    os.close(writer)
    assert read_content(type(tmp_path)(f"/dev/fd/{reader}")) == b"text"
    os.close(reader)
    assert not caplog.messages


def test_a_folder_is_no_text(tmp_path):
    with pytest.raises(Unreadable):
        read_content(tmp_path)
