"""Seeding, atomic files, JSON, formatting of numbers, processes."""

import contextlib
import errno
import hashlib
import os
import re
import stat
import subprocess
import sys
import threading
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from src.errors import AGI2Error
from src.utils import (
    atomic_folder,
    atomic_path,
    convert_write_errors,
    describe_path,
    exit_with_parent,
    human_bytes,
    human_time,
    parse_json,
    plural,
    read_bytes,
    read_json_object,
    seed_everything,
    sha256_of,
    sync_file,
    sync_folder,
    write_text,
)
from tests.conftest import CHECKOUT, run_python

posix = pytest.mark.skipif(os.name != "posix", reason="POSIX permissions")


def test_a_folder_that_is_written_half_leaves_nothing(tmp_path):
    with contextlib.suppress(KeyboardInterrupt), atomic_folder(tmp_path / "a") as beside:
        (beside / "file").write_text("half")
        raise KeyboardInterrupt
    assert not list(tmp_path.iterdir())


def test_a_seed_repeats_what_is_drawn():
    seed_everything(3)
    first = torch.rand(4)
    other = torch.rand(4)
    seed_everything(3)
    assert torch.equal(torch.rand(4), first)
    assert not torch.equal(first, other)


# Files


def test_writing_names_the_path_and_the_reason(tmp_path):
    full = OSError(errno.ENOSPC, "No space left")
    with pytest.raises(AGI2Error) as error, convert_write_errors(tmp_path / "model.bin"):
        raise full
    assert str(error.value) == (
        f"cannot write {tmp_path / 'model.bin'}: No space left; free some space or choose "
        "another folder (of a run: output_dir)"
    )


def test_writing_names_the_reason_of_an_error_without_a_number(tmp_path):
    with (
        pytest.raises(AGI2Error, match=r"cannot write .*: broken; "),
        convert_write_errors(tmp_path),
    ):
        raise OSError("broken")


def test_writing_lets_other_errors_through(tmp_path):
    with pytest.raises(ZeroDivisionError), convert_write_errors(tmp_path):
        1 / 0  # noqa: B018


def test_write_text_writes_utf8_with_unix_line_ends(tmp_path):
    write_text(tmp_path / "a.txt", "né\n🐋\n")
    assert (tmp_path / "a.txt").read_bytes() == "né\n🐋\n".encode()


def test_an_atomic_file_appears_whole_and_nothing_else_does(tmp_path):
    path = tmp_path / "a.txt"
    path.write_text("old")
    with atomic_path(path) as beside:
        beside.write_text("new")
        assert beside.parent == tmp_path
        assert path.read_text() == "old"
    assert path.read_text() == "new"
    assert os.listdir(tmp_path) == ["a.txt"]


@pytest.mark.parametrize("error", [RuntimeError, KeyboardInterrupt, OSError])
@pytest.mark.parametrize("existed", [True, False])
def test_an_error_while_writing_leaves_the_old_file(tmp_path, error, existed):
    path = tmp_path / "a.txt"
    if existed:
        path.write_text("old")

    def write_and_fail():
        with atomic_path(path) as beside:
            beside.write_text("half of the n")
            raise error

    with pytest.raises(AGI2Error if error is OSError else error):
        write_and_fail()
    assert os.listdir(tmp_path) == (["a.txt"] if existed else [])
    assert not existed or path.read_text() == "old"


def test_a_folder_that_is_missing_is_found_before_anything_is_written(tmp_path):
    begun = []
    with (
        pytest.raises(AGI2Error, match=r"cannot write .*b\.txt: No such file"),
        atomic_path(tmp_path / "nowhere" / "b.txt") as beside,
    ):
        begun.append(beside)
    assert begun == []


@posix
def test_an_atomic_file_has_the_permissions_of_any_new_file(tmp_path):
    (tmp_path / "plain").touch()
    write_text(tmp_path / "atomic", "text")
    modes = [stat.S_IMODE((tmp_path / name).stat().st_mode) for name in ("plain", "atomic")]
    assert modes[0] == modes[1]


@pytest.mark.skipif(sys.platform != "linux", reason="file-size limits")
def test_a_full_disk_leaves_the_old_file(tmp_path):
    """A file-size limit stands for the full disk: the kernel refuses bytes beyond it."""
    import resource

    path = tmp_path / "a.txt"
    path.write_text("old")
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1000, before[1]))
    try:
        with pytest.raises(AGI2Error, match=r"cannot write .*a\.txt: File too large; free some sp"):
            write_text(path, "x" * 100_000)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert path.read_text() == "old"
    assert os.listdir(tmp_path) == ["a.txt"]


def test_syncing_changes_nothing(tmp_path):
    path = tmp_path / "a.txt"
    path.write_text("text")
    sync_file(path)
    sync_folder(tmp_path)
    assert path.read_text() == "text"
    with pytest.raises(FileNotFoundError):
        sync_file(tmp_path / "b.txt")
    with pytest.raises(FileNotFoundError):
        sync_folder(tmp_path / "b")


@given(st.binary(max_size=200))
@settings(max_examples=30, deadline=None)
def test_sha256_of_a_file_is_that_of_its_bytes(tmp_path_factory, content):
    path = tmp_path_factory.mktemp("hash") / "a.bin"
    path.write_bytes(content)
    assert sha256_of(path) == hashlib.sha256(content).hexdigest()


# Words for numbers


@pytest.mark.parametrize(
    ("count", "words"),
    [
        (0, "0 B"),
        (999, "999 B"),
        (1536, "1.5 KB"),
        (2_000_000, "2.0 MB"),
        (8.25e9, "8.2 GB"),
        (3e12, "3.0 TB"),
        (3e15, "3000.0 TB"),
    ],
)
def test_bytes_in_words(count, words):
    assert human_bytes(count) == words


@pytest.mark.parametrize(
    ("seconds", "words"),
    [
        (0, "0 s"),
        (59.4, "59 s"),
        (59.7, "1 min"),
        (65.2, "1 min 05 s"),
        (90, "1 min 30 s"),
        (3500, "58 min 20 s"),
        (3599.6, "1 h 00 min"),
        (float("inf"), "unknown time"),
        (float("nan"), "unknown time"),
        (4000, "1 h 07 min"),
        (100_000, "27 h 47 min"),
    ],
)
def test_time_in_words(seconds, words):
    assert human_time(seconds) == words


@pytest.mark.parametrize(
    ("count", "words"), [(0, "0 steps"), (1, "1 step"), (2, "2 steps"), (1234, "1,234 steps")]
)
def test_a_number_agrees_with_its_noun(count, words):
    assert plural(count, "step") == words
    assert plural(count, "step", "steps") == words


# Interruption


CHILD = """
import os, sys, time
sys.path.insert(0, sys.argv[3])
from src.utils import exit_with_parent
exit_with_parent(int(sys.argv[1]), sys.argv[2])
print(os.getpid(), flush=True)
time.sleep(600)
"""

PARENT = """
import os, subprocess, sys
child = subprocess.Popen([sys.executable, "-c", sys.argv[1], str(os.getpid()), *sys.argv[2:]])
child.wait()
"""


@pytest.mark.skipif(sys.platform == "win32", reason="processes there have no new parents")
def test_a_process_ends_with_its_parent_and_takes_its_folder_along(tmp_path):
    folder = tmp_path / "temporary"
    (folder / "inside").mkdir(parents=True)
    command = [sys.executable, "-c", PARENT, CHILD, str(folder), str(CHECKOUT)]
    # The child has the pipe open as long as it lives.
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as parent:
        assert int(parent.stdout.readline()) != parent.pid
        assert folder.is_dir()
        parent.kill()
        assert parent.stdout.read() == ""
    assert not folder.exists()


# Work in the background.


@pytest.mark.parametrize(
    "content",
    [
        "",
        "{",
        '{"a": 1',
        "[" * 100_000,
        '{"a":' * 100_000,
        f'{{"a": {"9" * 5000}}}',
        b"\xff{}",
        "[]",
    ],
    ids=lambda content: repr(content[:12]),
)
def test_json_that_is_none_deep_or_huge_is_refused_in_one_line(tmp_path, content):
    path = tmp_path / "some.json"
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(AGI2Error, match=re.escape(str(path))) as refused:
        read_json_object(path)
    assert len(str(refused.value).splitlines()) == 1


def test_a_json_object_is_read(tmp_path):
    path = tmp_path / "some.json"
    with pytest.raises(AGI2Error, match="cannot be read: No such file"):
        read_json_object(path)
    path.write_text('{"a": [1, null]}')
    assert read_json_object(path) == {"a": [1, None]}
    with pytest.raises(AGI2Error, match="is larger than 5 B"):
        read_json_object(path, max_bytes=5)


def test_the_module_does_not_import_pytorch():
    code = "import sys; import src.utils; sys.exit('torch' in sys.modules)"
    assert run_python(code).returncode == 0


def test_json_that_is_nested_too_deeply_is_one_line():
    assert parse_json("[" * 100 + "]" * 100, "a.json")
    for depth in (102, 900, 5000, 100_000):
        for start, end in ("[]", ('{"a":', "}")):
            with pytest.raises(AGI2Error, match=r"^a\.json is n") as error:
                parse_json(start * depth + "1" * (start != "[") + end * depth, "a.json")
            assert len(error.value.args) == 1


def test_a_pipe_is_no_json_file(tmp_path):
    os.mkfifo(tmp_path / "pipe")  # which nobody writes to
    with pytest.raises(AGI2Error, match="pipe cannot be read: it is a pipe, not a file"):
        read_json_object(tmp_path / "pipe")


def test_only_a_regular_file_is_read(tmp_path):
    (tmp_path / "file").write_bytes(b"text")
    assert read_bytes(tmp_path / "file") == b"text"
    assert read_bytes(tmp_path / "file", 2) == b"te"
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "link").symlink_to("nowhere")
    for path, reason in {
        tmp_path: "it is a folder, not a file",
        tmp_path / "pipe": "it is a pipe, not a file",
        tmp_path / "link": "it is a broken link",
        Path("/dev/zero"): "it is a device, not a file",
        tmp_path / "nothing": "No such file",
        tmp_path / "a\0b": "embedded null",
    }.items():
        with pytest.raises(AGI2Error, match=f"cannot be read: {reason}"):
            read_bytes(path)


def test_a_path_is_described_by_what_it_is(tmp_path):
    (tmp_path / "file").write_text("text")
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "link").symlink_to("nowhere")
    (tmp_path / "circle").symlink_to("circle")
    for path, what in {
        tmp_path: "is a folder",
        tmp_path / "file": "is a file",
        tmp_path / "pipe": "is a pipe",
        os.devnull: "is a device",
        tmp_path / "link": "is a broken link",
        tmp_path / "circle": "is a broken link",
        tmp_path / "nothing": "does not exist",
        tmp_path / "file" / "inside": "does not exist",
        "a\0b": "does not exist",
        "x" * 300: "cannot be read: File name too long",
    }.items():
        assert describe_path(path) == what


def test_what_is_no_file_is_never_replaced(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "folder").mkdir()
    (tmp_path / "null").symlink_to(os.devnull)
    for path in (tmp_path / "pipe", tmp_path / "folder", tmp_path / "null", Path()):
        kind = "a folder" if path.is_dir() else "a device or a pipe"
        with pytest.raises(AGI2Error, match=f"it is {kind}; name a file"), atomic_path(path):
            raise AssertionError
    assert (tmp_path / "pipe").is_fifo()
    assert len(list(tmp_path.iterdir())) == 3


def test_json_that_cannot_be_parsed_is_described_without_words_of_python():
    for data, reason in {
        b"[" * 200_000: "it is nested too deeply",
        b"9" * 6000: "a number has too many digits",
        b'"\xff"': "it is not UTF-8",
        b"{": "Expecting property name enclosed in double quotes",
    }.items():
        with pytest.raises(AGI2Error) as caught:
            parse_json(data, "a.json")
        assert caught.value.args == (f"a.json is not JSON: {reason}",)


def test_a_process_ends_soon_after_its_parent(tmp_path, monkeypatch):
    ended = threading.Event()
    parents = iter([5, 1, 1])
    monkeypatch.setattr(os, "getppid", lambda: next(parents))
    monkeypatch.setattr(os, "_exit", lambda status: ended.set())
    (tmp_path / "work").mkdir()
    exit_with_parent(5, str(tmp_path / "work"))
    assert ended.wait(600)
    assert not (tmp_path / "work").exists()
