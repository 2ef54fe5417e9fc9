import json

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from src.data import json_records, text
from src.data.text_files import Unreadable
from tests.data.reading import documents, lines_of, read_with_report, texts, write


def test_one_line_among_thousands_is_named_and_skipped(tmp_path):
    lines = [json.dumps({"text": "a"})] * 5000
    lines[3141] = json.dumps({"text": ["a"]})
    lines[4000] = '{"text": "a'
    write(tmp_path / "a.jsonl", "\n".join(lines))
    found, report = read_with_report(tmp_path / "a.jsonl")
    assert len(found) == 4998
    skipped = lines_of(report.skipped)
    assert "a.jsonl:3142: no text in the field 'text'" in skipped
    assert "1 broken JSON (11 characters), such as" in skipped
    assert "a.jsonl:4001 is not JSON: Unterminated string" in skipped
    assert "starting at" not in skipped


@pytest.mark.parametrize("limit", [0, 1, 5])
def test_more_broken_lines_than_the_limit_are_an_error_with_the_line(tmp_path, limit):
    good, bad = ['"good"'] * 100, ["bad"] * 6
    path = write(tmp_path / "a.jsonl", "\n".join(good + bad))
    with pytest.raises(Unreadable, match=r"a\.jsonl:101 is not JSON: Expecting value") as caught:
        texts(path, max_broken_lines=limit)
    limits = f"first of {limit + 1} broken lines, and max_broken_lines is {limit}: "
    assert (limits in str(caught.value)) == (limit > 0)
    assert len(texts(path, max_broken_lines=6)) == 100


def test_more_than_a_tenth_of_broken_lines_is_an_error(tmp_path):
    with pytest.raises(Unreadable, match=r"a\.jsonl:1 is not JSON.*; 2 of 19 lines are broken"):
        texts(tmp_path / "a.jsonl", "bad\n" * 2 + '"good"\n' * 17)
    assert len(texts(tmp_path / "a.jsonl", "bad\n" * 2 + '"good"\n' * 18)) == 18


def test_a_file_of_one_broken_line_is_refused(tmp_path):
    with pytest.raises(Unreadable, match=r"a\.jsonl:1 is not JSON: Expecting value") as caught:
        texts(tmp_path / "a.jsonl", "bad\n")
    assert "lines are broken" not in str(caught.value)


def test_empty_documents_are_counted(tmp_path):
    path = write(tmp_path / "a.jsonl", '{"text": ""}\n\n"a"\n" "\n{"text": null}\n')
    found, report = read_with_report(path)
    assert found == ["a"]
    (line,) = report.skipped.lines()
    assert line.startswith("3 documents without text, such as ")
    assert line.endswith("a.jsonl")


def test_a_file_of_empty_documents_alone_is_counted_once(tmp_path):
    write(tmp_path / "a.jsonl", '{"text": ""}\n{"text": " "}\n')
    write(tmp_path / "b.txt", "text")
    found, report = read_with_report(tmp_path)
    assert found == ["text"]
    (line,) = report.skipped.lines()
    assert line.startswith("1 without text (")


def test_the_only_field_with_text_is_taken_and_noted(tmp_path):
    content = '{"id": 1, "body": null}\n{"id": 2, "body": "two", "tags": []}\n'
    write(tmp_path / "a.jsonl", content)
    found, report = read_with_report(tmp_path / "a.jsonl")
    assert found == ["two"]
    assert "read in the field 'body'" in lines_of(report.notes)
    with pytest.raises(Unreadable, match=r"a\.jsonl:1: no field 'text' among id, body, tags"):
        texts(tmp_path / "a.jsonl", text_field="text")
    with pytest.raises(Unreadable, match=r"b\.jsonl:1: no field 'text' among title, body"):
        texts(tmp_path / "b.jsonl", '{"title": "t", "body": "b"}')


LONG = "The lighthouse keeper counted the ships. "


@pytest.mark.parametrize(
    ("field", "value", "kind"),
    [
        ("paragraphs", [LONG, LONG], "a list of texts"),
        ("body", {"html": LONG}, "an object"),
        ("parts", [{"n": 1, "answers": [{"context": LONG}]}], "a list of objects"),
    ],
)
@pytest.mark.parametrize("name", ["a.json", "a.jsonl"])
def test_a_title_is_not_taken_for_the_text_of_which_lists_and_objects_have_more(
    tmp_path, name, field, value, kind
):
    records = [{"id": n, "title": f"Title {n}", field: value} for n in range(3)]
    form = json.dumps(records) if name == "a.json" else "\n".join(map(json.dumps, records))
    problem = (
        f"no field 'text' among id, title, {field}; longer texts are in {field!r}, {kind}: save"
    )
    with pytest.raises(Unreadable, match=problem):
        texts(tmp_path / name, form)
    assert texts(tmp_path / name, text_field="title") == ["Title 0", "Title 1", "Title 2"]


@pytest.mark.parametrize("others", [["sea", "fog"], {"by": "me"}, [{"name": "x" * 30}], [1, 2]])
def test_short_texts_in_lists_and_objects_leave_the_only_text_the_text(tmp_path, others):
    records = [{"body": LONG * 2, "others": others}, {"body": None}, {"others": others}]
    path = write(tmp_path / "a.json", json.dumps(records))
    assert texts(path) == [LONG * 2]


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        ('[{"text": "one"}, {"text": "two"}]', ["one", "two"]),
        ('["one", "two"]', ["one", "two"]),
        ('\n [\n"one"\n]\n', ["one"]),
        ('{"text": "one", "items": [{"a": "b"}]}', ["one"]),
        ('{"version": "1", "data": [{"text": "one"}, {"text": "two"}]}', ["one", "two"]),
        ('{"body": "one", "n": 3}', ["one"]),
        ('"one"', ["one"]),
        ('{"text": "one"}\n{"text": "two"}\n', ["one", "two"]),
        ('[] "one"', ["one"]),
        ('["one"]\n["two"]', ["one", "two"]),
        ('[[{"text": "one"}, {"text": "two"}], [{"text": "three"}]]', ["one", "two", "three"]),
        (r'["\ud800"]', ["?"]),
        ('[{"text": ["see ", {"type": "link", "text": "a.org"}, "."]}]', ["see a.org."]),
        (
            '[{"text": [{"type": "text", "text": "one"}]}, {"text": []}, {"text": "two"}]',
            ["one", "two"],
        ),
    ],
)
def test_records_of_json_files(tmp_path, content, expected):
    assert texts(tmp_path / "a.json", content) == expected


def test_objects_in_a_list_on_a_line_are_records(tmp_path):
    lines = ['[{"text": "one"}, {"text": "two"}]', '{"text": "three"}', '[{"text": "four"}]']
    write(tmp_path / "a.jsonl", "\n".join([*lines * 9, "[]"]))
    found, report = read_with_report(tmp_path / "a.jsonl")
    assert found == ["one", "two", "three", "four"] * 9
    assert "1 without the field (2 characters), such as" in lines_of(report.skipped)
    first, second, third = documents(tmp_path / "a.jsonl")[:3]
    assert first.source.endswith("a.jsonl:1 record 1")
    assert second.source.endswith("a.jsonl:1 record 2")
    assert third.source.endswith("a.jsonl:2")
    with pytest.raises(Unreadable, match=r"a\.jsonl:1: a list of objects, not an object or a text"):
        texts(tmp_path / "a.jsonl", '[{"role": "user", "content": "a"}]\n')


def test_records_are_numbered(tmp_path):
    found = documents(tmp_path / "a.json", '["one", "two"]')
    assert [each.source.rpartition("a.json")[2] for each in found] == [" record 1", " record 2"]


@pytest.mark.parametrize(
    ("content", "problem"),
    [
        ("[\n1,\n", ":3: not JSON: Expecting value"),
        ('["a"\n"b"]', ":2: not JSON: ',' or ']' is missing"),
        ('["a", tru' + "e" * 99 + "]", ":1: not JSON: "),
        ('{"a": "b', ":1: not JSON: Unterminated string"),
        ("[" * 100_000, ":1: not JSON: nested too deeply"),
        ("[" + "[" * 150 + "]" * 150 + "]", ":1: not JSON: nested more than 100 levels deep"),
        ("[" + "1" * 5000 + "]", ":1: not JSON: nested too deeply, or a number has too many"),
        ("[]", ": contains no text"),
        ("[1, 2, 3]", " record 1: a number, not an object or a text: save .*; 3 of 3 lines are br"),
        ('{"a": 1}', r" record 1: no field 'text' among a; none of them is text \(a is a number"),
        (
            '{"a": [{}], "b": [{}]}',
            r" record 1: .* a, b; none of them is text \(a is a list of obj",
        ),
        (
            '[["one", "two"], ["a"]]',
            " record 1: a list of texts, not an object or a text: save each",
        ),
        ("[[1]]", " record 1: a list, not an object"),
        ("null", " record 1: null, not an object"),
        ('[{"role": "user", "content": "a"}]', " record 1: no field 'text' among role, content; s"),
        (
            '[[{"role": "user", "content": "a"}]]',
            " record 1: a list of objects, not an object or a",
        ),
        ("{}", " record 1: no field 'text' as there are no fields"),
        (
            '{"text": ["some", "words"]}',
            " record 1: no text in the field 'text', which is a list of",
        ),
        (
            '{"text": [{"text": 1}]}',
            " record 1: .*'text', which is a list of objects: join them to",
        ),
        (
            '{"text": {"a": "b"}, "c": "d"}',
            " record 1: .*, which is an object: .*, or set text_fie",
        ),
        ("nonsense", ":1: not JSON: Expecting value"),
    ],
)
def test_broken_json_files_are_refused_with_the_place(tmp_path, content, problem):
    with pytest.raises(Unreadable, match=f"a.json{problem}"):
        texts(tmp_path / "a.json", content)


def test_a_value_has_a_limit(tmp_path, monkeypatch):
    monkeypatch.setattr(json_records, "MAX_LINE", 1000)
    monkeypatch.setattr(text, "BLOCK", 100)
    with pytest.raises(Unreadable, match=r"a\.json:2: not JSON: a value has more than 1,000 char"):
        texts(tmp_path / "a.json", '["a",\n"' + "b" * 5000 + '"]')


@settings(deadline=None, max_examples=25)
@given(
    values=st.lists(st.text(min_size=1, max_size=30).filter(str.strip), min_size=1),
    block=st.integers(1, 50),
    indent=st.sampled_from([None, 1]),
)
def test_a_list_is_read_back_whatever_the_blocks(tmp_path_factory, values, block, indent):
    path = tmp_path_factory.getbasetemp() / "blocks.json"
    records = [{"n": number, "text": value} for number, value in enumerate(values)]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(text, "BLOCK", block)
        patch.setattr(json_records, "_HEAD", 20)
        content = json.dumps(records, indent=indent)
        found = texts(path, content, normalize="none")
        assert found == [each.encode("utf-8", "replace").decode() for each in values]
        assert texts(path, content[1:-1].replace("},", "}"), normalize="none") == found


def test_broken_records_of_one_object_are_counted_by_their_share_of_its_size(tmp_path):
    records = [{"text": "one"}] * 60 + [{"text": ["a", "b"]}] * 6
    content = json.dumps({"number": 3, "messages": records})
    write(tmp_path / "a.json", content)
    found, report = read_with_report(tmp_path / "a.json")
    assert len(found) == 60
    ((_, entry),) = report.skipped.entries()
    assert entry.count == 6
    assert entry.size == 6 * (len(content) // 66)


def test_a_file_that_is_left_at_the_limit_has_a_reason_of_its_own(tmp_path):
    write(tmp_path / "a.jsonl", "bad\n" * 3 + '"good"\n' * 99)
    write(tmp_path / "b.txt", "text")
    found, report = read_with_report(tmp_path, max_broken_lines=2)
    assert found == ["text"]
    skipped = lines_of(report.skipped)
    assert "1 with too many broken lines" in skipped
    assert "max_broken_lines is 2: what follows is not read" in skipped


def test_only_some_of_many_fields_are_listed(tmp_path):
    content = json.dumps({f"field {number}": "" for number in range(5000)})
    with pytest.raises(Unreadable, match=r"field 11 and 4,988 more; set text_field"):
        texts(tmp_path / "a.json", content)
