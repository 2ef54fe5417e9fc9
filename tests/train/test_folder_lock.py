"""The lock of a run folder, and moving an old run aside."""

import errno
import fcntl
import os

import pytest

from src.errors import AGI2Error
from src.train.folder_lock import LOCK, FolderLock, read_phase


def test_a_folder_is_kept_for_one(tmp_path, monkeypatch):
    first = FolderLock(tmp_path)
    with pytest.raises(AGI2Error, match="another process is training there: wait for it"):
        FolderLock(tmp_path)
    first.release()
    first.release()  # as often as one likes
    assert not list(tmp_path.iterdir())
    FolderLock(tmp_path / "nowhere").release()

    def without_locks(*_):
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr("src.train.folder_lock.fcntl.flock", without_locks)
    FolderLock(tmp_path).release()
    monkeypatch.setattr("src.train.folder_lock.fcntl", None)
    FolderLock(tmp_path).release()
    assert not list(tmp_path.iterdir())


def test_a_lock_is_not_taken_through_a_link(tmp_path):
    folder, elsewhere = tmp_path / "run", tmp_path / "elsewhere"
    folder.mkdir()
    (folder / ".lock").symlink_to(elsewhere)
    with pytest.raises(AGI2Error, match=r"run.*symbolic link"):
        FolderLock(folder)
    assert not elsewhere.exists()


def test_a_lock_knows_whether_it_is_still_there(tmp_path):
    lock = FolderLock(tmp_path)
    assert lock.is_held
    (tmp_path / ".lock").unlink()
    assert not lock.is_held
    other = FolderLock(tmp_path)
    assert other.is_held
    assert not lock.is_held
    lock.release()  # leaves the other's alone
    assert other.is_held
    other.release()
    assert not other.is_held
    assert not list(tmp_path.iterdir())


def test_a_lock_stays_with_a_folder_that_is_renamed(tmp_path):
    folder, moved = tmp_path / "a", tmp_path / "b"
    folder.mkdir()
    lock = FolderLock(folder)
    folder.rename(moved)
    assert not lock.is_held
    with pytest.raises(AGI2Error, match="another process is training there"):
        FolderLock(moved)
    lock.release(moved)
    assert not list(moved.iterdir())
    folder.mkdir()
    lock.take()
    lock.take()  # as often as one likes
    assert lock.is_held
    lock.release()
    assert not list(folder.iterdir())


def test_the_phase_of_the_process_that_holds_a_lock_is_read(tmp_path, monkeypatch):
    folder = tmp_path / "run"
    assert read_phase(folder) is None
    folder.mkdir()
    assert read_phase(folder) is None
    lock = FolderLock(folder)
    assert read_phase(folder) == "preparing"
    lock.set_phase("validating")
    assert read_phase(folder) == "validating"
    lock.set_phase("training")
    (folder / LOCK).write_text("")  # as it is for a moment, and by an earlier version
    assert read_phase(folder) == "training"
    with monkeypatch.context() as patch:
        patch.setattr("src.train.folder_lock.fcntl", None)
        assert read_phase(folder) is None
    lock.release()
    assert read_phase(folder) is None
    (folder / LOCK).write_text("validating")  # of a process that was killed
    assert read_phase(folder) is None


def test_a_lock_that_is_held_for_a_moment_is_waited_for(tmp_path, monkeypatch):
    """By a process that reads the phase."""
    (tmp_path / LOCK).touch()
    reader = os.open(tmp_path / LOCK, os.O_RDONLY)
    fcntl.flock(reader, fcntl.LOCK_SH)
    monkeypatch.setattr("src.train.folder_lock.time.sleep", lambda _: os.close(reader))
    with FolderLock(tmp_path) as lock:
        assert lock.is_held
