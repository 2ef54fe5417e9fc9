"""Pairs of preferences: what records mean, which are refused, and their formats."""

import io
import json

import pyarrow
import pyarrow.feather
import pyarrow.parquet
import pytest
from hypothesis import given, settings

from src.data.chat_template import ChatTemplate, Message
from src.data.conversation_tokens import encode_conversations
from src.data.conversations import conversations_in, said_in, to_text
from src.data.preferences import complete_pair, pair_of
from src.errors import AGI2Error
from tests.data.chats import as_dicts, chat_tokenizer, conversations
from tests.data.reading import lines_of, read_with_report, texts, write

U, A = ({"role": role, "content": text} for role, text in (("user", "Hi"), ("assistant", "Yes")))
B = {"role": "assistant", "content": "No"}
S = {"role": "system", "content": "Be brief."}
TOKENIZER = chat_tokenizer()


def messages(*dicts):
    return [Message(**each) for each in dicts]


@pytest.mark.parametrize(
    ("record", "system"),
    [
        ({"chosen": [U, A], "rejected": [U, B]}, False),
        ({"prompt": "Hi", "chosen": "Yes", "rejected": "No"}, False),
        ({"prompt": [U], "chosen": [A], "rejected": [B]}, False),
        ({"prompt": [U], "chosen": "Yes", "rejected": [B]}, False),
        ({"prompt": "Hi", "chosen": [U, A], "rejected": [U, B], "score_chosen": 3}, False),
        ({"prompt": "Hi", "chosen": "Yes", "rejected": "No", "system": "Be brief."}, True),
        ({"chosen": [U, A], "rejected": [U, B], "system": "Be brief."}, True),
        ({"chosen": [S, U, A], "rejected": [S, U, B], "system": "Be long."}, True),
        ({"prompt": [S, U], "chosen": [A], "rejected": [B], "system": "Be long."}, True),
    ],
)
def test_records_in_the_known_formats_are_pairs(record, system):
    expected = messages(*[S] * system, U, A), messages(*[S] * system, U, B)
    assert complete_pair(*pair_of(record)) == expected


@pytest.mark.parametrize(
    ("record", "problem"),
    [
        (["Hi"], r"\['Hi'\] is not a pair"),
        ({"chosen": "Yes"}, "no pair: it needs chosen and rejected; its fields are chosen"),
        ({"chosen": "Yes", "rejected": "No"}, "chosen begins with the reply, but prompt is missi"),
        ({"prompt": 3, "chosen": "Yes", "rejected": "No"}, "but prompt is 3, not a text"),
        ({"prompt": "Hi", "chosen": "Yes", "rejected": 3}, "rejected is 3, neither a text nor"),
        ({"prompt": "Hi", "chosen": "Yes", "rejected": None}, "rejected is None, neither"),
        ({"prompt": "Hi", "chosen": "Yes", "rejected": " "}, "rejected: message 2 .assistant. is"),
        ({"prompt": "", "chosen": "Yes", "rejected": "No"}, r"chosen: message 1 \(user\) is empty"),
        ({"prompt": "Hi", "chosen": "Yes", "rejected": "Yes "}, "chosen and rejected are the same"),
        ({"chosen": [U, A], "rejected": [A, U]}, "rejected begins with the reply, but prompt is"),
        ({"chosen": [U, A], "rejected": [U, U]}, "rejected: message 2 is of the role user, where"),
        ({"chosen": [U, A], "rejected": []}, "rejected: a conversation needs a message of the us"),
        ({"chosen": [U, A], "rejected": [U, A, U]}, "rejected: the last message is of the user"),
        ({"chosen": [U], "rejected": [U, A]}, "chosen: a conversation|chosen: no message is of"),
        ({"chosen": [U, A], "rejected": [U, A, U, B]}, "rejected only continues the other conv"),
        ({"chosen": [U, A, U, B], "rejected": [U, A]}, "chosen only continues the other conv"),
        ({"chosen": [S, U, A], "rejected": [U, B]}, "differ in message 1, which is not the ass"),
        (
            {"chosen": [U, A], "rejected": [{"role": "user", "content": "Hm"}, B]},
            "chosen and rejected differ in message 1, which is not the assistant's",
        ),
        ({"chosen": [U, {"role": "tool", "content": "x"}], "rejected": [U, A]}, "the role 'tool'"),
    ],
)
def test_other_records_are_refused_in_one_line(record, problem):
    with pytest.raises(AGI2Error, match=problem) as caught:
        complete_pair(*pair_of(record))
    assert "\n" not in str(caught.value)


@settings(max_examples=25, deadline=None)
@given(chosen=conversations(), rejected=conversations())
def test_a_pair_is_a_document_of_two_conversations(chosen, rejected):
    text = to_text(chosen, rejected)
    assert conversations_in(text) == [chosen, rejected]
    assert [*said_in(text)] == [f"\n{each.content}" for each in [*chosen, *rejected]]
    ids, offsets = encode_conversations([text, to_text(chosen), text], ChatTemplate(TOKENIZER))
    one, other = (ChatTemplate(TOKENIZER).encode(each)[0] for each in (chosen, rejected))
    pair = [*one, TOKENIZER.end_of_text, *other]
    assert ids.tolist() == [*pair, *one, *pair]
    assert offsets.tolist() == [0, len(pair), len(pair) + len(one), 2 * len(pair) + len(one)]


def parquet(rows):
    sink = io.BytesIO()
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), sink)
    return sink.getvalue()


def arrow(rows):
    sink = io.BytesIO()
    pyarrow.feather.write_feather(pyarrow.Table.from_pylist(rows), sink)
    return sink.getvalue()


ROWS = [{"prompt": "Hi", "chosen": f"Yes {n}", "rejected": "No", "id": n} for n in range(3)]
LISTS = [
    {"chosen": as_dicts(messages(U, A)), "rejected": [U, {**B, "content": f"No {n}"}]}
    for n in range(3)
]


@pytest.mark.parametrize(
    ("name", "content", "rows"),
    [
        ("a.jsonl", "\n".join(map(json.dumps, ROWS)).encode(), ROWS),
        ("a.json", json.dumps({"data": ROWS}).encode(), ROWS),
        (
            "a.csv",
            b"id,prompt,chosen,rejected\n0,Hi,Yes 0,No\n1,Hi,Yes 1,No\n2,Hi,Yes 2,No\n",
            ROWS,
        ),
        ("a.parquet", parquet(ROWS), ROWS),
        ("a.parquet", parquet(LISTS), LISTS),
        ("a.arrow", arrow(LISTS), LISTS),
        ("a.jsonl", "\n".join(map(json.dumps, LISTS)).encode(), LISTS),
    ],
)
def test_all_formats_give_the_same_pairs(tmp_path, name, content, rows):
    expected = [to_text(*pair_of(row)) for row in rows]
    assert texts(tmp_path / name, content, are_conversations=True, are_pairs=True) == expected


def test_broken_pairs_are_skipped_and_told_by_place(tmp_path):
    bad = {"prompt": "Hi", "chosen": "Yes", "rejected": "Yes"}
    rows = [*ROWS * 4, bad]
    path = write(tmp_path / "a.jsonl", "\n".join(map(json.dumps, rows)))
    found, report = read_with_report(path, are_conversations=True, are_pairs=True)
    assert len(found) == len(rows) - 1
    assert report.kind == "pair"
    skipped = lines_of(report.skipped)
    assert skipped.startswith("1 broken pair (")
    assert skipped.endswith("a.jsonl:13: chosen and rejected are the same")


@pytest.mark.parametrize(
    ("name", "content", "problem"),
    [
        ("a.txt", "User: Hi", "pairs are not read from"),
        ("a.csv", "prompt,chosen\nHi,Yes", "no columns chosen and rejected among"),
        (
            "a.csv",
            "prompt,chosen,rejected,chosen\nHi,Yes,No,Hm",
            "column 'chosen' occurs more than",
        ),
        ("a.jsonl", '{"text": "Hi"}', "a.jsonl:1: no pair: it needs chosen and rejected"),
    ],
)
def test_files_without_pairs_are_refused(tmp_path, name, content, problem):
    path = write(tmp_path / name, content)
    with pytest.raises(AGI2Error, match=problem):
        read_with_report(path, are_conversations=True, are_pairs=True)


def test_a_function_changes_the_messages_of_pairs(tmp_path):
    (tmp_path / "mine.py").write_text("def shout(text):\n    return text.upper()\n")
    path = write(tmp_path / "a.jsonl", "\n".join(map(json.dumps, ROWS)))
    function = f"{tmp_path / 'mine.py'}:shout"
    found, _ = read_with_report(path, are_conversations=True, are_pairs=True, preprocess=function)
    expected = messages({**U, "content": "HI"}, {**A, "content": "YES 0"})
    assert conversations_in(found[0])[0] == expected
