"""What identifies the files of sources. See `test_build` for the cache as a whole."""

import importlib.metadata
import sys
import sysconfig

from src.data.builtin import BUILTIN
from src.data.remote import RemoteFile
from src.data.token_cache import FileHashes, corpus_key, identify, identify_file, implementation
from tests.data.reading import write


def test_the_builtin_corpus_is_identified_by_the_version_of_python(tmp_path):
    """Its files are those of the standard library, which need not be hashed."""
    path = write(tmp_path / "a.txt", "text")
    files = identify([[BUILTIN, str(path)], []], FileHashes(tmp_path / "hashes.json"))
    [_, builtin, [name, digest], _] = files.identity
    assert builtin == [BUILTIN, sys.version, sysconfig.get_path("stdlib"), "2"]
    assert (name, len(digest)) == ("a.txt", 64)
    assert list(files.stamps) == [path]


def test_a_remote_file_is_identified_by_its_version_and_unknown_without(tmp_path):
    hashes, stamps = FileHashes(tmp_path / "hashes.json"), {}
    file = RemoteFile("s3://b/a.txt", 3, "etag", "b/a.txt", None)
    assert identify_file(file, hashes, stamps) == ["s3://b/a.txt", "3", "etag"]
    assert identify_file(RemoteFile("s3://b/a.txt", 3, "", "b/a.txt", None), hashes, stamps) == []
    assert not stamps


def test_a_corpus_has_another_key_without_a_library(monkeypatch):
    parts = {"format": 1}
    installed = corpus_key(parts)
    assert corpus_key(parts) == installed

    def missing(name):
        raise importlib.metadata.PackageNotFoundError(name)

    # As another process would find it; in this one, no version changes.
    monkeypatch.setattr("src.data.token_cache.implementation", implementation.__wrapped__)
    assert corpus_key(parts) == installed
    monkeypatch.setattr("src.data.token_cache.importlib.metadata.version", missing)
    assert corpus_key(parts) != installed
