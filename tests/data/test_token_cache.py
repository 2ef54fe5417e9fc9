"""What identifies the files of sources. See `test_build` for the cache as a whole."""

import sys
import sysconfig

from src.data.builtin import BUILTIN
from src.data.token_cache import FileHashes, identify
from tests.data.reading import write


def test_the_builtin_corpus_is_identified_by_the_version_of_python(tmp_path):
    """Its files are those of the standard library, which need not be hashed."""
    path = write(tmp_path / "a.txt", "text")
    files = identify([[BUILTIN, str(path)], []], FileHashes(tmp_path / "hashes.json"))
    [_, builtin, [name, digest], _] = files.identity
    assert builtin == [BUILTIN, sys.version, sysconfig.get_path("stdlib")]
    assert (name, len(digest)) == ("a.txt", 64)
    assert list(files.stamps) == [path]
