import json

import pytest

from src.data.json_shapes import items_in, kind_of, records_in
from tests.data.reading import texts

MESSAGE = {"role": "user", "content": "a"}
ROWS = [{"text": "one", "id": 1}, {"text": "two", "id": 2}]


@pytest.mark.parametrize(
    "layout",
    [
        {"text": {"0": "one", "1": "two"}, "id": {"0": 1, "1": 2}},  # columns
        {"0": ROWS[0], "7": ROWS[1]},  # index
        {"columns": ["text", "id"], "index": [0, 1], "data": [["one", 1], ["two", 2]]},  # split
        {"schema": {"fields": [{"name": "text"}]}, "data": ROWS},  # table
        ROWS,  # records
    ],
)
def test_layouts_of_pandas_are_rows(tmp_path, layout):
    assert records_in(layout, ("text",)) == ROWS
    assert texts(tmp_path / "a.json", json.dumps(layout)) == ["one", "two"]


@pytest.mark.parametrize(
    "value",
    [
        {"text": {"0": "one"}, "id": {"1": 1}},
        {"text": {"a": "one"}},
        {"text": {"0": "one"}, "id": 1},
        {"text": {}},
        {"columns": ["text"], "data": [["one", 1]]},
        {"columns": [1], "data": [["one"]]},
        {"columns": ["text"], "data": []},
        {"0": MESSAGE, "1": MESSAGE},
        {"messages": [MESSAGE]},
        {"text": "one", "data": ROWS},
        {"train": ROWS, "test": ROWS},
        {},
        [MESSAGE],
        ["one", "two"],
        [],
        "one",
        None,
    ],
)
def test_other_values_are_one_record(value):
    assert records_in(value, ("text",)) == [value]


def test_items_of_a_list_are_records_if_all_are_objects():
    assert items_in(ROWS) == ROWS
    for value in (ROWS[0], {"data": ROWS}, [ROWS[0], "one"], [ROWS[0], MESSAGE]):
        assert items_in(value) == [value]


@pytest.mark.parametrize(
    ("value", "kind"),
    [
        ([], "a list"),
        ([1, "a"], "a list"),
        ([[1]], "a list of lists"),
        (["a"], "a list of texts"),
        ([{}], "a list of objects"),
        ({}, "an object"),
        (True, "true or false"),
        (None, "null"),
        (1.5, "a number"),
    ],
)
def test_kinds_of_values_are_named(value, kind):
    assert kind_of(value) == kind
