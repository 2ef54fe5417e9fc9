"""A corpus that several processes build: the same files, whatever is interrupted."""

import json
import logging
import os
import random
import threading

import numpy as np
import pytest

from src.data import dedup, parts, readers, shards, shared_tasks, token_cache, token_stream, units
from src.data.build import CORPUS, prepare_corpus
from src.data.builtin import BUILTIN
from src.data.corpus_options import CorpusOptions, TokenizerSource
from src.data.documents import ReadOptions
from src.data.parts import prepare_part
from src.data.remote import RemoteFile
from src.data.shards import ShardWriter
from src.data.shared_tasks import Part
from src.data.splits import SplitPlan
from src.errors import AGI2Error
from src.tokenizer import BPETokenizer, load_tokenizer
from tests.conftest import make_text
from tests.data.chats import chat_tokenizer, messages_lines, random_conversations
from tests.data.test_copies import edited, resemblance, words


@pytest.fixture
def sources(tmp_path):
    """A folder with long texts, short ones, copies, files that are skipped and broken lines."""
    folder = tmp_path / "sources"
    folder.mkdir()
    for number in range(3):
        (folder / f"long{number}.txt").write_text(make_text(300, seed=number), encoding="utf-8")
    lines = [json.dumps({"text": f"{number} {make_text(30, number % 23)}"}) for number in range(40)]
    for first in range(0, 40, 12):
        own = [*lines[first : first + 12], "{broken", lines[1]]
        (folder / f"lines{first}.jsonl").write_text("\n".join(own), encoding="utf-8")
    rows = 'text,n\nhello,1\n"open,2\nworld,3\nmore,4\n",5\n'
    (folder / "rows.csv").write_text(rows, encoding="utf-8")
    (folder / "more.jsonl").write_text("{broken\n" + lines[5], encoding="utf-8")
    (folder / "picture.png").write_bytes(b"\x89PNG\0")
    (folder / "scan.txt").write_bytes(b"abc\0def")
    (folder / "latin.txt").write_bytes("été ".encode("latin-1") * 30)
    return folder


@pytest.fixture(autouse=True)
def small(monkeypatch):
    """Make every unit and every shard small, so that a small text has many."""
    monkeypatch.setattr(units, "_MIN_BYTES", 1500)
    monkeypatch.setattr(shared_tasks, "_POLL_SECONDS", 0.01)
    monkeypatch.setattr(token_stream, "SHARD_TOKENS", 1000)
    monkeypatch.setattr(token_stream, "_COPIED_TOKENS", 70)
    for function in (ShardWriter.__init__, shards.ShardedTokens.__init__):
        defaults = [
            1000 if value == shards.SHARD_TOKENS else value for value in function.__defaults__
        ]
        monkeypatch.setattr(function, "__defaults__", tuple(defaults))


def fitted():
    def make(texts):
        tokenizer = BPETokenizer(300)
        tokenizer.fit(texts, verbose=False)
        return tokenizer

    return TokenizerSource("bpe 300", make, load_tokenizer)


def prepare(sources, cache, part="1/1", **options):
    options = CorpusOptions([str(each) for each in sources], **options)
    return prepare_part(options, fitted(), str(cache), Part.parse(part))


def files_of(folder):
    return {path.name: path.read_bytes() for path in folder.iterdir() if path.name != ".lock"}


def whole(sources, cache, **options):
    """The corpus as one process builds it."""
    options = CorpusOptions([str(each) for each in sources], **options)
    return prepare_corpus(options, fitted(), str(cache))


OPTIONS = [
    {},
    {"val_fraction": 0.0, "dedup": True},
    {"val_sources": True},
    {"dedup": True, "seed": 3},
]


@pytest.mark.parametrize("options", OPTIONS)
def test_the_files_are_those_that_one_process_writes(
    sources, tmp_path, options, caplog, monkeypatch
):
    caplog.set_level(logging.INFO, "agi2")
    monkeypatch.setattr(readers, "python_docs", lambda: iter(["prose of Python " * 9, "more"]))
    named = [sources, BUILTIN, sources / "long1.txt", sources / "l*.txt", sources]
    if options.get("val_sources"):
        own = tmp_path / "val.jsonl"
        own.write_text("\n".join(json.dumps({"text": make_text(9, n)}) for n in range(90, 95)))
        options = {"val_sources": [str(own), str(sources / "long2.txt")]}
    expected = whole(named, tmp_path / "whole", **options)
    corpus = prepare(named, tmp_path / "parts", "2/3", **options)
    assert files_of(corpus.folder) == files_of(expected.folder)
    assert corpus.folder.name == expected.folder.name
    assert corpus.is_new
    assert len(corpus.train.files) > 3
    assert "skipped in" in caplog.text
    (job,) = (tmp_path / "parts").glob("parts-*")
    assert [path.name for path in job.iterdir()] == ["corpus"]
    again = prepare(named, tmp_path / "parts", "1/3", **options)
    assert not again.is_new
    assert whole(named, tmp_path / "parts", **options).folder == corpus.folder


def test_near_copies_are_those_by_all_shingles_in_parts_too(tmp_path, monkeypatch):
    monkeypatch.setattr(dedup, "_MAX_SHINGLES", 100)  # else there are no sketches to compare
    draw = random.Random(5)
    texts = [words(draw, 120) for _ in range(30)]
    copies = [edited(draw, text, draw.choice([0.04, 0.06, 0.08, 0.1])) for text in texts]
    near = sum(0.8 <= resemblance(*pair) < 1 for pair in zip(texts, copies, strict=True))
    assert 5 < near < 25
    (tmp_path / "texts").mkdir()
    for number in range(0, 60, 9):
        lines = [json.dumps({"text": text}) for text in [*texts, *copies][number : number + 9]]
        (tmp_path / "texts" / f"{number:02d}.jsonl").write_text("\n".join(lines))
    options = {"dedup": True, "val_fraction": 0.0}
    expected = whole([tmp_path / "texts"], tmp_path / "whole", **options)
    assert expected.train.figures.documents == 60 - near
    corpus = prepare([tmp_path / "texts"], tmp_path / "parts", **options)
    assert files_of(corpus.folder) == files_of(expected.folder)


def test_conversations_are_the_same_in_parts(sources, tmp_path, caplog):
    caplog.set_level(logging.INFO, "agi2")
    chats = tmp_path / "chats"
    chats.mkdir()
    for number in range(4):
        content = messages_lines(random_conversations(20, seed=number))
        (chats / f"{number}.jsonl").write_bytes(content + b"{broken\n")
    tokenizer = chat_tokenizer()
    source = TokenizerSource("chats", lambda _: tokenizer, lambda _: tokenizer, True)
    options = CorpusOptions(
        [str(sources)], conversations=[str(chats)], val_sources=[str(sources / "long1.txt")]
    )
    expected = prepare_corpus(options, source, str(tmp_path / "whole"))
    corpus = prepare_part(options, source, str(tmp_path / "parts"), Part())
    assert files_of(corpus.folder) == files_of(expected.folder)
    assert corpus.folder.name == expected.folder.name
    assert corpus.train.figures.conversations + corpus.val.figures.conversations == 80
    assert any("80 conversations" in line for line in corpus.lines)


def test_processes_share_the_work(sources, tmp_path):
    expected = files_of(whole([sources], tmp_path / "whole").folder)
    found = []

    def work(part):
        found.append(prepare([sources], tmp_path / "parts", part))

    threads = [threading.Thread(target=work, args=[f"{number}/4"]) for number in range(1, 5)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(120)
    assert len({corpus.folder for corpus in found}) == 1
    assert len(found) == 4
    files = files_of(found[0].folder)
    assert files.keys() == expected.keys()
    assert all(files[name] == expected[name] for name in files if name != CORPUS)


class Killed(BaseException):
    """Stands for a kill: nothing that follows is done."""


def test_a_process_may_be_killed_at_any_moment(sources, tmp_path, monkeypatch):
    expected = files_of(whole([sources], tmp_path / "whole").folder)
    rename, draw = os.rename, random.Random(1)

    def killed_sometimes(old, new):
        if draw.random() < 0.2:
            raise Killed
        rename(old, new)
        if draw.random() < 0.2:
            raise Killed

    monkeypatch.setattr(shared_tasks.os, "rename", killed_sometimes)
    kills = 0
    while True:
        try:
            corpus = prepare([sources], tmp_path / "parts", f"{kills % 3 + 1}/3")
            break
        except Killed:
            kills += 1
    assert kills > 3
    files = files_of(corpus.folder)
    assert files == expected


def test_a_process_waits_for_what_another_does_and_does_it_itself_if_that_ends(
    sources, tmp_path, monkeypatch, caplog
):
    """The kernel releases the lock of a process that was killed."""
    fcntl = pytest.importorskip("fcntl")
    caplog.set_level(logging.INFO, "agi2")
    with monkeypatch.context() as patch:
        patch.setattr(parts, "read_unit", lambda *_: (_ for _ in ()).throw(Killed))
        with pytest.raises(Killed):
            prepare([sources], tmp_path / "parts")
    (job,) = (tmp_path / "parts").glob("parts-*")
    (job / "doing-text-00001-0").mkdir()  # what a killed process has left
    other, waited = open(job / "text-00001.lock", "a"), []  # noqa: SIM115

    def sleep(_):
        if len(waited) == 1:
            other.close()
        waited.append(sorted(path.name for path in job.glob("text-?????")))

    fcntl.flock(other, fcntl.LOCK_EX)
    monkeypatch.setattr(shared_tasks.time, "sleep", sleep)
    corpus = prepare([sources], tmp_path / "parts")
    assert len(waited) == 2
    assert "text-00001" not in waited[1]
    assert len(waited[1]) >= 3
    assert "reading the text: waiting for 1 task of other processes: text-00001" in caplog.text
    assert files_of(corpus.folder).keys() == files_of(whole([sources], tmp_path).folder).keys()
    assert [path.name for path in job.iterdir()] == ["corpus"]


def test_without_locks_each_process_does_its_share_and_waits(sources, tmp_path, monkeypatch):
    monkeypatch.setattr(token_cache, "fcntl", None)
    expected = files_of(whole([sources], tmp_path / "whole").folder)
    with monkeypatch.context() as patch:
        patch.setattr(shared_tasks, "_MAX_WAIT_SECONDS", -1)
        with pytest.raises(
            AGI2Error, match=r"other processes have not done text-00000, text-00002"
        ):
            prepare([sources], tmp_path / "parts", "2/2")
        with pytest.raises(AGI2Error, match="other processes have not done tokens-00001, tokens-"):
            prepare([sources], tmp_path / "parts", "1/2")
        with pytest.raises(AGI2Error, match="other processes have not done train-0000"):
            prepare([sources], tmp_path / "parts", "2/2")
    monkeypatch.setattr(shared_tasks, "_LOG_SECONDS", -1)
    second = threading.Thread(target=prepare, args=[[sources], tmp_path / "parts", "2/2"])
    second.start()
    corpus = prepare([sources], tmp_path / "parts", "1/2")
    second.join(60)
    assert files_of(corpus.folder) == expected


@pytest.mark.parametrize("fails", [False, True])
def test_a_result_that_another_process_was_faster_with_is_kept(
    sources, tmp_path, monkeypatch, fails
):
    """Without locks, two processes may do the same."""
    read = parts.read_unit

    def slow(unit, *arguments):
        if not slow.is_nested:
            slow.is_nested = True
            prepare([sources], tmp_path / "parts", "1/1")
            if fails:
                raise AGI2Error("a file is missing")
        read(unit, *arguments)

    slow.is_nested = False
    monkeypatch.setattr(token_cache, "fcntl", None)
    monkeypatch.setattr(parts, "read_unit", slow)
    corpus = prepare([sources], tmp_path / "parts", "1/1")
    assert files_of(corpus.folder) == files_of(whole([sources], tmp_path / "whole").folder)


def test_a_corpus_that_was_deleted_is_built_again(sources, tmp_path):
    corpus = prepare([sources], tmp_path / "parts")
    expected = files_of(corpus.folder)
    for path in corpus.folder.iterdir():
        path.unlink()
    assert files_of(prepare([sources], tmp_path / "parts").folder) == expected
    (corpus.folder / "train-00000.bin").write_bytes(b"cut")
    assert files_of(prepare([sources], tmp_path / "parts").folder) == expected


def test_a_corpus_that_is_there_is_not_built_by_parts(sources, tmp_path):
    corpus = whole([sources], tmp_path / "cache")
    stamp = (corpus.folder / CORPUS).stat()
    assert prepare([sources], tmp_path / "cache").folder == corpus.folder
    assert (corpus.folder / CORPUS).stat().st_mtime_ns == stamp.st_mtime_ns


def test_without_hard_links_the_shards_are_copied(sources, tmp_path, monkeypatch):
    def without(*_):
        raise OSError("Operation not permitted")

    monkeypatch.setattr(parts.os, "link", without)
    corpus = prepare([sources], tmp_path / "parts")
    assert files_of(corpus.folder) == files_of(whole([sources], tmp_path / "whole").folder)


def test_a_source_that_changes_while_it_is_read_is_an_error(sources, tmp_path, monkeypatch):
    read = units.read_files

    def changing(source, *arguments):
        yield from read(source, *arguments)
        source.files[0].write_bytes(b"another text")

    monkeypatch.setattr(units, "read_files", changing)
    with pytest.raises(AGI2Error, match="has changed while it was read"):
        prepare([sources], tmp_path / "parts")
    monkeypatch.undo()
    expected = files_of(whole([sources], tmp_path / "whole").folder)
    assert files_of(prepare([sources], tmp_path / "parts").folder) == expected


def test_what_no_process_can_do_is_an_error(sources, tmp_path):
    with pytest.raises(AGI2Error, match="share: set token_cache"):
        prepare_part(CorpusOptions([str(sources)]), fitted(), "off", Part())
    if hasattr(os, "mkfifo"):
        os.mkfifo(tmp_path / "pipe")
        with pytest.raises(AGI2Error, match="a pipe can be read only once, and several processes"):
            prepare([tmp_path / "pipe"], tmp_path / "parts")
    bad = tmp_path / "bad"
    bad.mkdir()
    (bad / "a.jsonl").write_text("{}\n")
    with pytest.raises(AGI2Error, match=r"no file of it can be read; .*a\.jsonl"):
        prepare([bad], tmp_path / "parts")
    (bad / "b.txt").write_text("text " * 50)
    assert prepare([bad], tmp_path / "parts").documents == 1


def test_a_full_disk_is_one_line_and_the_next_process_continues(sources, tmp_path):
    resource = pytest.importorskip("resource")
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    for size in (0, 100, 2000, 6000):
        resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
        try:
            with pytest.raises(AGI2Error, match="free some space, or set token_cache to another"):
                prepare([sources], tmp_path / "parts")
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, before)
    corpus = prepare([sources], tmp_path / "parts")
    assert files_of(corpus.folder) == files_of(whole([sources], tmp_path / "whole").folder)


@pytest.mark.parametrize(
    "text", ["", "3", "0/2", "3/2", "1/0", "a/b", "-1/2", "1/2/3", "1/" + "9" * 30]
)
def test_a_part_is_k_of_n(text):
    with pytest.raises(AGI2Error, match="is not K/N with K from 1 to N, such as 3/16"):
        Part.parse(text)


def test_the_first_part_is_1():
    assert Part.parse("3/16") == Part(3, 16)


def test_hashes_of_old_files_are_kept_and_a_function_may_change_the_text(
    sources, tmp_path, monkeypatch
):
    monkeypatch.setattr(token_cache, "_UNCERTAIN", -(10**18))
    (tmp_path / "change.py").write_text("def shout(text):\n    return text.upper()\n")
    reading = ReadOptions(preprocess=f"{tmp_path / 'change.py'}:shout")
    expected = whole([sources], tmp_path / "whole", reading=reading)
    corpus = prepare([sources], tmp_path / "parts", reading=reading)
    assert files_of(corpus.folder) == files_of(expected.folder)
    assert "long1.txt" in (tmp_path / "parts" / token_cache.FILE_HASHES).read_text("utf-8")


def test_a_plan_is_saved_and_loaded(tmp_path):
    characters = np.array([9, 5, 7])
    spans = {1: [(0, 2, False), (2, 4, True), (4, 5, False)]}
    plan = SplitPlan(characters, np.array([9, 5, 0]), spans, np.array([True, False, False]))
    parts.save_plan(plan, tmp_path / "plan.npz")
    loaded = parts.load_plan(tmp_path / "plan.npz", characters)
    assert [loaded.spans(each) for each in range(3)] == [[], spans[1], [(0, 7, True)]]
    assert loaded.part(1, 3).spans(0) == spans[1]
    assert loaded.count_parts() == (2, 1)
    assert SplitPlan(characters, np.array([9, 4, 0])).count_parts() == (1, 1)


def test_files_elsewhere_are_known_by_their_version(sources, tmp_path, monkeypatch):
    with_version = RemoteFile.__new__(RemoteFile)
    object.__setattr__(with_version, "version", "")
    assert parts._describe(with_version) == []
    monkeypatch.setattr(parts, "_describe", lambda path: [])
    with pytest.raises(AGI2Error, match="need sources whose changes can be noticed"):
        prepare([sources], tmp_path / "parts")
