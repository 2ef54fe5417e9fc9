"""The history of chat messages: private to its owner."""

import logging
import os
import stat

import pytest
from prompt_toolkit.history import InMemoryHistory

from src.cli.chat_history import PrivateHistory, open_history

posix = pytest.mark.skipif(os.name != "posix", reason="POSIX permissions")


@pytest.fixture
def cache(tmp_path, monkeypatch):
    """A cache folder that does not exist yet."""
    folder = tmp_path / "deep" / "cache"
    monkeypatch.setenv("AGI2_CACHE", str(folder))
    return folder


def entries(history):
    return list(history.load_history_strings())


@pytest.mark.usefixtures("cache")
def test_entries_are_found_again_the_newest_first():
    first = open_history()
    for text in ("one", "two lines\n+and\n\n# more", "", "\x1b[31m", "käse \udc80"):
        first.store_string(text)
    second = open_history()
    assert isinstance(second, PrivateHistory)
    assert entries(second) == ["käse ?", "\x1b[31m", "", "two lines\n+and\n\n# more", "one"]


def test_a_file_of_prompt_toolkit_is_read(cache):
    from prompt_toolkit.history import FileHistory

    cache.mkdir(parents=True)
    FileHistory(str(cache / "chat_history")).store_string("before")
    history = open_history()
    history.store_string("after")
    assert entries(history) == ["after", "before"]


@posix
def test_file_and_folder_are_the_owners_alone_whatever_the_umask(cache):
    before = os.umask(0)
    try:
        open_history().store_string("secret")
    finally:
        os.umask(before)
    assert stat.S_IMODE(os.stat(cache).st_mode) == 0o700
    assert stat.S_IMODE(os.stat(cache / "chat_history").st_mode) == 0o600


@posix
def test_a_file_that_others_could_read_becomes_private(cache):
    cache.mkdir(parents=True)
    (cache / "chat_history").write_text("\n#\n+old\n")
    os.chmod(cache / "chat_history", 0o666)
    assert entries(open_history()) == ["old"]
    assert stat.S_IMODE(os.stat(cache / "chat_history").st_mode) == 0o600


def plant_link(path, victim):
    path.symlink_to(victim)


def plant_dangling_link(path, victim):
    path.symlink_to(victim.with_name("new"))


def plant_hard_link(path, victim):
    os.link(victim, path)


def plant_folder(path, victim):
    path.mkdir()


def plant_fifo(path, victim):
    os.mkfifo(path)


@posix
@pytest.mark.parametrize(
    "plant", [plant_link, plant_dangling_link, plant_hard_link, plant_folder, plant_fifo]
)
def test_what_is_no_file_of_its_own_is_left_alone(plant, cache, tmp_path, caplog):
    victim = tmp_path / "victim"
    victim.write_text("untouched")
    os.chmod(victim, 0o644)
    cache.mkdir(parents=True)
    plant(cache / "chat_history", victim)
    history = open_history()
    assert isinstance(history, InMemoryHistory)
    history.store_string("secret")
    assert victim.read_text() == "untouched"
    assert stat.S_IMODE(os.stat(victim).st_mode) == 0o644
    assert not (tmp_path / "new").exists()
    (record,) = caplog.records
    assert "history is kept in memory only" in record.getMessage()
    assert "chat_history" in record.getMessage()


@posix
@pytest.mark.usefixtures("cache")
def test_another_users_file_is_not_used(monkeypatch, caplog):
    open_history()
    monkeypatch.setattr(os, "geteuid", lambda: 12345)
    assert isinstance(open_history(), InMemoryHistory)
    assert "belongs to another user" in caplog.text


def test_without_a_home_it_is_in_memory(monkeypatch, caplog):
    def no_home():
        raise RuntimeError("Could not determine home directory.")

    monkeypatch.setattr("src.cli.chat_history.cache_folder", no_home)
    assert isinstance(open_history(), InMemoryHistory)
    assert "Could not determine home directory" in caplog.text


@pytest.mark.usefixtures("cache")
def test_a_line_that_cannot_be_written_is_remembered_all_the_same(caplog):
    caplog.set_level(logging.WARNING)
    history = open_history()
    os.close(history._file.fileno())
    history.append_string("lost")
    assert "history cannot be written" in caplog.text
    assert history.get_strings() == ["lost"]
    history._file = None  # the descriptor is closed already
