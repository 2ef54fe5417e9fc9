"""Checks of the arguments of tokenizers."""

from pathlib import Path

import numpy as np
import pytest

from src.errors import AGI2Error
from src.tokenization.arguments import as_id, as_ids, check_new_names, read_texts, to_list


def test_texts_after_the_first_hundred_are_read_as_they_are(tmp_path, caplog, monkeypatch):
    (tmp_path / "a.txt").write_text("a file", encoding="utf-8")
    monkeypatch.chdir(tmp_path)
    texts = [*["a text"] * 100, "a.txt", Path("a.txt")]
    assert list(read_texts(texts)) == [*["a text"] * 100, "a.txt", "a file"]
    assert caplog.text == ""  # only the first ones are looked up on the disk
    with pytest.raises(AGI2Error, match=r"texts\[100\] must be a str \(a text\) or a Path"):
        list(read_texts([*["a text"] * 100, 5]))


def test_ids_are_integers_of_any_library():
    assert as_ids(np.array([1, 2], np.uint16)) == as_ids((1, 2)) == [1, 2]
    for value in (True, 1.0, "1", None):
        with pytest.raises(AGI2Error, match="a token must be an integer"):
            as_id(value)


def test_names_are_strings_that_are_not_tokens_yet():
    assert check_new_names(["<a>"], ["<b>"]) == ["<a>"]
    for name in ("<b>", "", 3, "\ud800"):
        with pytest.raises(AGI2Error, match="special_tokens: "):
            check_new_names([name], ["<b>"])
    assert to_list("<a>", "special_tokens") == ["<a>"]
