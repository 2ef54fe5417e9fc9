"""One pass over a corpus: sizes, hashes and equal documents."""

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from src.data.scan import Scanner, load_scan, save_scan, scan_texts

TEXTS = st.lists(st.text(st.sampled_from("ab é鯨🐳\ud800"), max_size=4), max_size=30)


@given(documents=TEXTS)
def test_sizes_and_originals_are_those_of_the_documents(documents):
    written = []
    scanner = Scanner(written.append)
    for text in documents:
        scanner.add(text[:1])
        for character in text[1:]:
            scanner.add(character, continues=True)
    scan = scanner.finish()
    stored = [text.encode("utf-8", "replace") for text in documents]
    assert b"".join(written) == b"".join(stored)
    assert scan.characters.tolist() == [*map(len, documents)]
    assert scan.sizes.tolist() == [*map(len, stored)]
    assert scan.originals.tolist() == [stored.index(data) for data in stored]
    whole = scan_texts(documents)
    assert scan.identity == whole.identity
    assert np.array_equal(scan.shingles.hashes, whole.shingles.hashes)


def test_the_identity_is_that_of_the_documents_not_of_their_concatenation():
    texts = [["ab", "c"], ["a", "bc"], ["abc"], ["abc", ""], ["c", "ab"], []]
    assert len({scan_texts(each).identity for each in texts}) == len(texts)


def test_a_scan_is_saved_and_loaded(tmp_path):
    scan = scan_texts(["a whale of a text that is long enough for shingles", "short", "short"])
    save_scan(scan, tmp_path / "scan.npz")
    loaded = load_scan(tmp_path / "scan.npz")
    assert [*tmp_path.iterdir()] == [tmp_path / "scan.npz"]
    assert loaded.identity == scan.identity
    assert loaded.originals.tolist() == [0, 1, 1]
    for name in ("hashes", "documents", "starts", "ends", "rate"):
        assert np.array_equal(getattr(loaded.shingles, name), getattr(scan.shingles, name))
    assert len(scan.shingles) > 0
