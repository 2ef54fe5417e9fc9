import json

import pytest

from src.data.text_files import Unreadable
from tests.data.reading import texts


def test_text_and_code_are_read_without_output(tmp_path):
    cells = [
        {"cell_type": "markdown", "source": ["# Title\n", "words"]},
        {"cell_type": "code", "source": "x = 1\n", "outputs": [{"text": "secret"}]},
        {"cell_type": "raw", "source": 5},
        "no cell",
    ]
    content = json.dumps({"nbformat": 4, "cells": cells})
    assert texts(tmp_path / "a.ipynb", content) == ["# Title\nwords\n\nx = 1\n"]


def test_notebooks_of_version_3_have_worksheets(tmp_path):
    content = {"worksheets": [{"cells": [{"cell_type": "code", "input": ["a = 1"]}]}, 3]}
    assert texts(tmp_path / "a.ipynb", json.dumps(content)) == ["a = 1\n"]


@pytest.mark.parametrize(
    ("content", "problem"),
    [
        ("{", "is not JSON: Expecting property name"),
        ("[]", "not a Jupyter notebook: it has no cells"),
        ('{"cells": []}', "not a Jupyter notebook: it has no cells"),
        ('{"cells": [{}]}', "contains no text"),
    ],
)
def test_what_is_no_notebook_is_refused(tmp_path, content, problem):
    with pytest.raises(Unreadable, match=rf"a\.ipynb: {problem}"):
        texts(tmp_path / "a.ipynb", content)


def test_a_notebook_that_is_not_text_is_refused(tmp_path, monkeypatch):
    with pytest.raises(Unreadable, match=r"a\.ipynb:1: not UTF-8"):
        texts(tmp_path / "a.ipynb", '{"é": "éé'.encode() + b'\xff"}')
