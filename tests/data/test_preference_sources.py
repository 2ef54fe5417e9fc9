"""Which key a source is for, by its first record: that of pairs of preferences, or another."""

import gzip
import io
import json
import tarfile
import zipfile

import pyarrow
import pyarrow.parquet
import pytest

from src.data.corpus import key_for, one_key_for
from src.data.documents import ReadOptions
from src.errors import AGI2Error
from tests.data.chats import ONE_TURN, preference_lines, random_conversations
from tests.data.reading import read_with_report, write

CHATS = random_conversations(3, words=3)
PAIR = {"prompt": "Hi", "chosen": "Yes", "rejected": "No"}
LINES = (json.dumps(PAIR) + "\n").encode()


def parquet(**columns):
    sink = io.BytesIO()
    pyarrow.parquet.write_table(pyarrow.table(columns), sink)
    return sink.getvalue()


def zipped(name, content):
    sink = io.BytesIO()
    with zipfile.ZipFile(sink, "w") as archive:
        archive.writestr(name, content)
    return sink.getvalue()


def tarred(name, content):
    sink = io.BytesIO()
    with tarfile.open(fileobj=sink, mode="w") as archive:
        info = tarfile.TarInfo(name)
        info.size = len(content)
        archive.addfile(info, io.BytesIO(content))
    return sink.getvalue()


FILES = {
    "messages.jsonl": preference_lines(CHATS).encode(),
    "prompt.jsonl": LINES,
    "blank.jsonl": b"\n\n" + LINES,
    "broken-pair.jsonl": json.dumps({**PAIR, "rejected": "Yes"}).encode(),
    "list.json": json.dumps([PAIR, PAIR]).encode(),
    "table.csv": b"prompt,chosen,rejected\nHi,Yes,No\n",
    "two.tsv": b"chosen\trejected\nYes\tNo\n",
    "more.parquet": parquet(**{key: [value] for key, value in PAIR.items()}),
    "lines.jsonl.gz": gzip.compress(LINES),
    "a.zip": zipped("in.jsonl", LINES),
    "a.tar": tarred("in.csv", b"prompt,chosen,rejected\nHi,Yes,No\n"),
    "no-suffix": LINES,
    "lines.txt": LINES,
}
OTHERS = {
    **{name: write(CHATS[:1]) for name, write in ONE_TURN.items() if "pairs" not in name},
    "prompts.jsonl": b'{"prompt": "Hi", "chosen": "Yes"}',
    "texts.jsonl": b'"chosen rejected"\n',
    "text.txt": b"chosen rejected",
    "page.html": b"<p>chosen rejected",
    "damaged.jsonl.gz": gzip.compress(LINES)[:8] + b"damaged",
    "no-json.jsonl": b"chosen\n" * 200,
    "table.csv": b"prompt,completion\nHi,Yes\n",
    "a.zip": zipped("in.txt", b"chosen"),
    "none.zip": zipped("folder/", b""),
}


@pytest.mark.parametrize(("name", "has_pairs"), [*((name, True) for name in FILES),
                                                 *((name, False) for name in OTHERS)])  # fmt: skip
def test_the_first_record_says_what_a_source_has(tmp_path, name, has_pairs):
    path = write(tmp_path / name, (FILES if has_pairs else OTHERS)[name])
    assert (key_for(str(path), ReadOptions()) == "preferences") is has_pairs


def test_sources_of_both_kinds_are_refused_pipes_are_not_read(tmp_path):
    for name in ("prompt.jsonl", "table.csv"):
        write(tmp_path / name, FILES[name])
    chats = write(tmp_path / "chats.jsonl", OTHERS["openai.jsonl"])
    pairs = [str(tmp_path / name) for name in ("prompt.jsonl", "table.csv")]
    assert one_key_for(pairs, ReadOptions()) == "preferences"
    assert one_key_for([*pairs, "-"], ReadOptions()) == "preferences"
    assert one_key_for(["-"], ReadOptions()) == "sources"
    assert one_key_for(["builtin:conversations"], ReadOptions()) == "conversations"
    with pytest.raises(AGI2Error, match=r"prompt.jsonl has pairs of .*chats.jsonl has not: "):
        one_key_for([str(chats), *pairs], ReadOptions())


def test_pairs_under_another_key_are_told_by_name(tmp_path):
    for name in (
        "prompt.jsonl",
        "messages.jsonl",
        "table.csv",
        "two.tsv",
        "list.json",
        "more.parquet",
    ):
        path = write(tmp_path / name, FILES[name])
        with pytest.raises(AGI2Error, match="name preferences in the key preferences"):
            read_with_report(path)
        with pytest.raises(AGI2Error, match="chosen and rejected are a pair of preferences: use "):
            read_with_report(path, are_conversations=True)
