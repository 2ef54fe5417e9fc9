"""A tokenized corpus: built once, used again; continued if interrupted, rebuilt if damaged."""

import json
import logging
import os
import pickle
import shutil
import threading

import numpy as np
import pytest

from src.data import build, shards, text_store, token_cache
from src.data.build import CORPUS, prepare_corpus
from src.data.corpus import read_documents
from src.data.corpus_options import CorpusOptions, TokenizerSource
from src.data.decoded import DecodedDocuments, first_characters
from src.data.documents import ReadOptions
from src.data.shards import ShardWriter
from src.data.splits import split_documents
from src.data.tokens import count_bytes, tokenize
from src.errors import AGI2Error
from src.tokenizer import BasicTokenizer, BPETokenizer, load_tokenizer
from tests.conftest import make_text
from tests.data.chats import chat_tokenizer, messages_lines, random_conversations


@pytest.fixture
def sources(tmp_path):
    """A folder of sources: a long text, and lines of which some occur twice."""
    folder = tmp_path / "sources"
    folder.mkdir()
    (folder / "long.txt").write_text(make_text(3000, seed=1), encoding="utf-8")
    lines = [json.dumps({"text": f"{number} {make_text(20, number % 37)}"}) for number in range(40)]
    (folder / "lines.jsonl").write_text("\n".join(lines), encoding="utf-8")
    return folder


@pytest.fixture
def cache(tmp_path):
    return tmp_path / "corpora"


def fitted(size=300, identity="bpe 300"):
    """A tokenizer that is fitted on the training text; `calls` counts how often."""
    calls = []

    def make(texts):
        calls.append(1)
        tokenizer = BPETokenizer(size)
        tokenizer.fit(texts, verbose=False)
        return tokenizer

    return TokenizerSource(identity, make, load_tokenizer), calls


def prepare(sources, cache, tokenizer=None, writer=ShardWriter, **options):
    options = CorpusOptions([str(sources)], **options)
    return prepare_corpus(options, tokenizer or fitted()[0], str(cache), writer)


def files_of(folder):
    return {
        path.name: path.read_bytes()
        for path in folder.iterdir()
        if path.is_file() and path.name != ".lock"
    }


@pytest.fixture
def small(monkeypatch):
    """Make every piece, batch and shard small, so that a small text has many."""
    monkeypatch.setattr(text_store, "BATCH_BYTES", 500)
    monkeypatch.setattr(text_store, "_CHUNK_BYTES", 300)
    monkeypatch.setattr(build, "_PROGRESS_TOKENS", 200)
    monkeypatch.setattr(build, "_REPORTED_CHARACTERS", 500)
    for function in (ShardWriter.__init__, shards.ShardedTokens.__init__):
        defaults = [
            1000 if value == shards.SHARD_TOKENS else value for value in function.__defaults__
        ]
        monkeypatch.setattr(function, "__defaults__", tuple(defaults))


def test_the_tokens_are_those_of_the_split_documents(sources, cache):
    corpus = prepare(sources, cache, seed=3)
    documents = list(read_documents(str(sources)))
    train, held_out = split_documents(documents, 0.1, 3)
    end = [corpus.tokenizer.end_of_text]
    assert np.asarray(corpus.train).tolist() == end + tokenize(train, corpus.tokenizer).tolist()
    assert np.asarray(corpus.val).tolist() == tokenize(held_out, corpus.tokenizer).tolist()
    assert list(DecodedDocuments(corpus.train, corpus.tokenizer)) == train
    assert list(DecodedDocuments(corpus.val, corpus.tokenizer)) == held_out
    assert (corpus.documents, corpus.characters) == (len(documents), sum(map(len, documents)))
    assert corpus.size == sum(len(text.encode()) for text in documents)
    array = np.asarray(corpus.train)
    assert count_bytes(corpus.train, corpus.tokenizer) == count_bytes(array, corpus.tokenizer)
    reference = BPETokenizer(300)
    reference.fit(train, verbose=False)
    assert corpus.tokenizer.fingerprint == reference.fingerprint
    assert sorted(files_of(corpus.folder)) == [
        "corpus.json",
        "tokenizer.json",
        "train-00000.bin",
        "train.idx",
        "val-00000.bin",
        "val.idx",
    ]


@pytest.mark.usefixtures("small")
def test_small_pieces_and_shards_give_the_same_tokens(sources, cache, monkeypatch):
    corpus = prepare(sources, cache)
    assert len(corpus.train.files) > 4
    monkeypatch.undo()
    whole = prepare(sources, cache.with_name("other"))
    assert np.array_equal(np.asarray(corpus.train), np.asarray(whole.train))
    assert np.array_equal(np.asarray(corpus.val), np.asarray(whole.val))
    assert corpus.train.document_starts.tolist() == whole.train.document_starts.tolist()


def test_a_second_run_reads_no_text_and_logs_what_the_first_read(
    sources, cache, caplog, monkeypatch
):
    (sources / "picture.png").write_bytes(b"\x89PNG\0")
    tokenizer, calls = fitted()
    with caplog.at_level(logging.INFO, "agi2"):
        first = prepare(sources, cache, tokenizer)
        lines = [record.getMessage() for record in caplog.records]
        assert any("skipped in" in line for line in lines)
        caplog.clear()
        monkeypatch.setattr(build, "iterate_documents", None)
        second = prepare(sources, cache, tokenizer)
        assert [record.getMessage() for record in caplog.records] == [
            f"the text is unchanged: its tokens are in {first.folder}",
            *lines,
        ]
    assert calls == [1]
    assert np.array_equal(np.asarray(first.train), np.asarray(second.train))
    assert (second.documents, second.characters, second.size) == (
        first.documents,
        first.characters,
        first.size,
    )
    assert second.tokenizer.fingerprint == first.tokenizer.fingerprint


def old(folder, seconds=100):
    """Let all files be older than the time stamps' uncertainty."""
    for path in folder.rglob("*"):
        if path.is_file():
            status = path.stat()
            os.utime(path, ns=(status.st_mtime_ns - seconds * 10**9,) * 2)


def test_files_are_hashed_again_only_if_they_may_have_changed(sources, cache, monkeypatch):
    hashed = []
    monkeypatch.setattr(token_cache, "_UNCERTAIN", -(10**12))  # nothing is too young
    sha256 = token_cache.sha256_of
    monkeypatch.setattr(
        token_cache, "sha256_of", lambda path: hashed.append(path.name) or sha256(path)
    )
    folder = prepare(sources, cache).folder
    assert sorted(hashed) == ["lines.jsonl", "long.txt"]
    prepare(sources, cache)  # hashes the shards
    hashed.clear()
    assert prepare(sources, cache).folder == folder
    assert hashed == []
    os.utime(sources / "long.txt")
    moved = sources.rename(sources.with_name("moved"))
    assert prepare(moved, cache).folder == folder
    hashed.clear()
    monkeypatch.setattr(token_cache, "_UNCERTAIN", 10**18)  # all are
    (cache / token_cache.FILE_HASHES).write_text("[damaged")
    prepare(moved, cache)
    prepare(moved, cache)
    assert len(hashed) == 12


@pytest.mark.parametrize(
    "change",
    [
        lambda path: path.write_text(path.read_text("utf-8").replace("whale", "whole"), "utf-8"),
        lambda path: path.write_bytes(path.read_bytes() + b" end"),
        lambda path: path.rename(path.with_suffix(".md")),
        lambda path: path.unlink(),
        lambda path: (path.parent / "new.txt").write_text("a new text"),
    ],
)
def test_any_change_of_a_source_is_noticed(sources, cache, change):
    before = prepare(sources, cache)
    path = sources / "long.txt"
    status = path.stat()
    change(path)
    if path.exists():
        os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns))
    after = prepare(sources, cache)
    assert after.folder != before.folder
    fresh = prepare(sources, cache.with_name("fresh"))
    assert np.array_equal(np.asarray(after.train), np.asarray(fresh.train))


def test_any_change_of_an_option_or_of_the_tokenizer_is_noticed(sources, cache):
    folders = [prepare(sources, cache).folder]
    folders.append(prepare(sources, cache, seed=1).folder)
    folders.append(prepare(sources, cache, val_fraction=0.2).folder)
    folders.append(prepare(sources, cache, reading=ReadOptions("text")).folder)
    folders.append(prepare(sources, cache, fitted(290, "bpe 290")[0]).folder)
    assert len(set(folders)) == 5


class Killed(BaseException):
    """Stands for a kill: nothing that follows is done."""


def killed_at(count):
    """A writer that is killed at a write, of which it writes a part."""

    class Writer(ShardWriter):
        left = count

        def write_bytes(self, file, data):
            Writer.left -= 1
            if Writer.left < 0:
                data = bytes(data)
                super().write_bytes(file, data[: len(data) // 2])
                raise Killed
            super().write_bytes(file, data)

    return Writer


@pytest.mark.usefixtures("small")
def test_a_build_that_is_killed_at_any_write_continues_to_the_same_files(sources, cache, caplog):
    caplog.set_level(logging.INFO, "agi2")
    expected = files_of(prepare(sources, cache.with_name("whole")).folder)
    tokenizer, calls = fitted()
    restarts, total = [], killed_at(10**9)
    prepare(sources, cache, tokenizer, total)
    for count in np.linspace(0, 10**9 - total.left - 1, 8).astype(int).tolist():
        shutil.rmtree(cache, ignore_errors=True)
        with pytest.raises(Killed):
            prepare(sources, cache, tokenizer, killed_at(count))
        calls.clear()
        caplog.clear()
        folder = prepare(sources, cache, tokenizer).folder
        assert calls == []  # the tokenizer is not fitted again
        restarts.append("tokenizing continues at document" in caplog.text)
        found = files_of(folder)
        assert found.keys() == expected.keys()
        assert all(found[name] == expected[name] for name in found if name != CORPUS)
        assert json.loads(found[CORPUS])["train"] == json.loads(expected[CORPUS])["train"]
    assert restarts[0] is False
    assert sum(restarts) > 3


@pytest.mark.usefixtures("small")
def test_a_build_of_conversations_that_is_killed_continues_to_the_same_files(sources, cache):
    chats = sources.with_name("chats.jsonl")
    chats.write_bytes(messages_lines(random_conversations(30)))
    own = chat_tokenizer()
    tokenizer = TokenizerSource("roles", lambda _: own, lambda _: own, is_fitted=True)
    options = {"conversations": [str(chats)], "val_sources": [str(sources / "long.txt")]}
    total = killed_at(10**9)
    expected = prepare(sources, cache.with_name("whole"), tokenizer, total, **options)
    writes = 10**9 - total.left
    for count in (writes // 2, writes * 3 // 4, writes - 2):
        with pytest.raises(Killed):
            prepare(sources, cache, tokenizer, killed_at(count), **options)
        corpus = prepare(sources, cache, tokenizer, **options)
        assert corpus.train.figures == expected.train.figures
        assert corpus.val.figures == expected.val.figures
        assert corpus.train.figures.conversations > 20
        shutil.rmtree(cache)


@pytest.mark.usefixtures("small")
def test_a_build_that_is_killed_again_and_again_ends(sources, cache):
    expected = prepare(sources, cache.with_name("whole"))
    attempts = 0
    while True:
        attempts += 1
        try:
            corpus = prepare(sources, cache, writer=killed_at(15))
            break
        except Killed:
            assert attempts < 50
    assert attempts > 4
    assert np.array_equal(np.asarray(corpus.train), np.asarray(expected.train))
    assert corpus.train.figures == expected.train.figures


def test_a_build_that_is_killed_while_it_reads_begins_again(sources, cache, monkeypatch):
    def killed(*_):
        yield from list(build_documents(*_))[:5]
        raise Killed

    build_documents = build.iterate_documents
    with monkeypatch.context() as patch:
        patch.setattr(build, "iterate_documents", killed)
        with pytest.raises(Killed):
            prepare(sources, cache)
    corpus = prepare(sources, cache)
    expected = prepare(sources, cache.with_name("whole"))
    assert np.array_equal(np.asarray(corpus.train), np.asarray(expected.train))


@pytest.mark.usefixtures("small")
@pytest.mark.parametrize("name", ["train-00001.bin", "val-00000.bin", "train.idx", "text.bin"])
def test_what_an_interrupted_build_left_is_checked(sources, cache, name):
    total = killed_at(10**9)
    expected = prepare(sources, cache.with_name("whole"), writer=total)
    with pytest.raises(Killed):
        prepare(sources, cache, writer=killed_at(10**9 - total.left - 5))
    (folder,) = (path for path in cache.iterdir() if path.is_dir())
    (folder / name).write_bytes((folder / name).read_bytes()[:10])
    corpus = prepare(sources, cache)
    assert np.array_equal(np.asarray(corpus.train), np.asarray(expected.train))
    assert np.array_equal(np.asarray(corpus.val), np.asarray(expected.val))


@pytest.mark.parametrize("name", ["train-00000.bin", "val-00000.bin", "val.idx", "corpus.json"])
@pytest.mark.parametrize("damage", ["cut", "altered", "missing", "empty"])
def test_a_damaged_corpus_is_found_and_built_again(sources, cache, name, damage, caplog):
    before = prepare(sources, cache)
    expected = files_of(before.folder)
    path = before.folder / name
    content = bytearray(path.read_bytes())
    if damage == "missing":
        path.unlink()
    elif damage == "altered":
        content[len(content) // 2] ^= 1
        path.write_bytes(content)
    else:
        path.write_bytes(content[: len(content) // 2] if damage == "cut" else b"")
    (before.folder / "@eaDir").mkdir()  # as some file servers do
    corpus = prepare(sources, cache)
    is_checked = damage != "altered" or name != "corpus.json"
    if is_checked:
        assert files_of(corpus.folder) == expected
    if is_checked and (name, damage) != ("corpus.json", "missing"):
        assert "damaged (" in caplog.text
        assert "the text is tokenized again" in caplog.text


def test_two_processes_build_a_corpus_once(sources, cache, caplog):
    """One holds the lock of the folder while the other begins."""
    caplog.set_level(logging.INFO, "agi2")
    tokenizer, calls = fitted()
    may_go_on, has_begun = threading.Event(), threading.Event()

    def make(texts):
        has_begun.set()
        assert may_go_on.wait(60)
        return tokenizer.make(texts)

    results = []
    first = threading.Thread(
        target=lambda: results.append(
            prepare(sources, cache, TokenizerSource("bpe 300", make, load_tokenizer))
        )
    )
    second = threading.Thread(target=lambda: results.append(prepare(sources, cache, tokenizer)))
    first.start()
    assert has_begun.wait(60)
    second.start()
    while "another process is tokenizing this text: waiting for it" not in caplog.text:
        assert second.is_alive()
    may_go_on.set()
    first.join()
    second.join()
    assert calls == [1]
    assert results[0].folder == results[1].folder
    assert np.array_equal(np.asarray(results[0].train), np.asarray(results[1].train))


def test_without_locks_a_corpus_is_built(sources, cache, monkeypatch):
    def without(*_):
        raise OSError("No locks available")

    monkeypatch.setattr(token_cache.fcntl, "flock", without)
    folder = prepare(sources, cache).folder
    monkeypatch.setattr(token_cache, "fcntl", None)
    assert prepare(sources, cache, seed=1).folder != folder


class FullDisk(ShardWriter):
    """A writer for which the disk is full after 3,000 bytes."""

    written = 0

    def write_bytes(self, file, data):
        FullDisk.written += len(data)
        if FullDisk.written > 3000:
            raise OSError(28, "No space left on device")
        super().write_bytes(file, data)


def test_a_full_disk_is_one_line_and_the_next_run_continues(sources, cache):
    FullDisk.written = 0
    with pytest.raises(AGI2Error, match=r"No space left on device; free some space, or set token_"):
        prepare(sources, cache, writer=FullDisk)
    corpus = prepare(sources, cache)
    expected = prepare(sources, cache.with_name("whole"))
    assert np.array_equal(np.asarray(corpus.train), np.asarray(expected.train))


def test_a_limit_on_the_size_of_files_is_one_line(sources, cache):
    resource = pytest.importorskip("resource")
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    for size in (0, 100, 20_000):
        resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
        try:
            with pytest.raises(AGI2Error, match="free some space, or set token_cache to another"):
                prepare(sources, cache)
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert len(prepare(sources, cache).train) > 1000


def test_a_pipe_is_read_once_and_its_text_is_known_again(tmp_path, cache, caplog):
    if not hasattr(os, "mkfifo"):
        pytest.skip("needs named pipes")
    pipe, text = tmp_path / "pipe", make_text(2000)
    os.mkfifo(pipe)
    folders = []
    for content in (text, text, text + "end"):
        thread = threading.Thread(target=pipe.write_text, args=[content])
        thread.start()
        folders.append(prepare(pipe, cache).folder)
        thread.join()
    assert folders[0] == folders[1] != folders[2]
    assert not list(cache.glob("reading-*"))


def test_a_source_that_cannot_be_read_once_leaves_nothing(tmp_path, cache):
    pipe = tmp_path / "pipe"
    if not hasattr(os, "mkfifo"):
        pytest.skip("needs named pipes")
    os.mkfifo(pipe)
    thread = threading.Thread(target=pipe.write_bytes, args=[b"\xff\0\xfe"])
    thread.start()
    with pytest.raises(AGI2Error, match="not a text file"):
        prepare(pipe, cache)
    thread.join()
    assert not list(cache.glob("reading-*"))


def test_a_source_that_changes_while_it_is_read_is_an_error(sources, cache, monkeypatch):
    read = build.iterate_documents

    def changing(*arguments):
        yield from read(*arguments)
        (sources / "long.txt").write_text("another text " * 100)

    monkeypatch.setattr(build, "iterate_documents", changing)
    with pytest.raises(AGI2Error, match=r"long\.txt has changed while it was read"):
        prepare(sources, cache)
    monkeypatch.undo()
    assert "another" in "".join(
        DecodedDocuments(
            prepare(sources, cache).train, load_tokenizer(prepare(sources, cache).folder)
        )
    )


def test_a_source_that_vanishes_is_an_error(sources, cache, monkeypatch):
    monkeypatch.setattr(
        token_cache, "stamp_of", lambda path: (_ for _ in ()).throw(OSError(2, "No such file"))
    )
    with pytest.raises(AGI2Error, match=r"cannot be read: No such file"):
        prepare(sources, cache)


def test_the_cache_may_be_off_or_not_writable(sources, tmp_path, monkeypatch, caplog):
    options = CorpusOptions([str(sources)])
    corpus = prepare_corpus(options, fitted()[0], "off")
    folder = corpus.folder
    assert folder.exists()
    tokens = np.asarray(corpus.train)
    del corpus
    assert not folder.exists()
    (tmp_path / "file").write_text("")
    with pytest.raises(AGI2Error, match=r"the tokens cannot be kept in .*file.* set token_cache"):
        prepare_corpus(options, fitted()[0], str(tmp_path / "file"))
    monkeypatch.setenv("AGI2_CACHE", str(tmp_path / "file"))
    with caplog.at_level(logging.INFO, "agi2"):
        corpus = prepare_corpus(options, fitted()[0])
    assert "the tokens are not kept for the next run" in caplog.text
    assert np.array_equal(np.asarray(corpus.train), tokens)


def test_tokens_that_are_not_kept_last_as_long_as_they_are_needed(sources):
    options = CorpusOptions([str(sources)])
    val = prepare_corpus(options, fitted()[0], "off").val
    folder = val.folder
    assert len(val[: len(val)]) > 0
    copy = pickle.loads(pickle.dumps(val))
    assert copy.temporary is None
    del copy
    assert folder.exists()
    del val
    assert not folder.exists()


def test_tokens_of_an_unknown_tokenizer_are_not_kept(sources, cache):
    corpus = prepare(sources, cache, fitted(identity=None)[0])
    assert corpus.folder.parent != cache
    assert not cache.exists()


def test_unknown_characters_are_counted(tmp_path, cache):
    (tmp_path / "a.txt").write_text("abcxabc" * 50)
    tokenizer = BasicTokenizer("abc")
    source = TokenizerSource("", lambda _: tokenizer, lambda _: tokenizer, is_fitted=True)
    corpus = prepare(tmp_path / "a.txt", cache, source)
    assert corpus.train.figures.unknown == 45
    assert count_bytes(corpus.train, tokenizer) is None


def test_documents_are_decoded_when_they_are_asked_for(sources, cache, monkeypatch):
    monkeypatch.setattr("src.data.decoded._DECODED_TOKENS", 5)
    corpus = prepare(sources, cache)
    decoded = DecodedDocuments(corpus.train, corpus.tokenizer)
    every = list(decoded)
    assert decoded[-1] == every[-1]
    assert decoded[1:3] == every[1:3]
    assert decoded[1] in decoded
    for limit in (0, 1, 50, 10**9):
        kept = first_characters(decoded, limit)
        assert kept == first_characters(every, limit)
        assert "".join(kept) == "".join(every)[:limit]
    with pytest.raises(IndexError):
        decoded[len(decoded)]


@pytest.mark.parametrize("is_own", [False, True])
def test_unused_corpora_are_deleted_but_not_in_a_folder_of_the_users_choice(
    sources, tmp_path, monkeypatch, caplog, is_own
):
    caplog.set_level(logging.INFO, "agi2")
    monkeypatch.setenv("AGI2_CACHE", str(tmp_path))
    cache = tmp_path / "corpora"
    choice = str(cache) if is_own else None

    def folder_of(seed):
        options = CorpusOptions([str(sources)], seed=seed)
        return prepare_corpus(options, fitted()[0], choice).folder

    folders = [folder_of(seed) for seed in range(3)]
    own = cache / "my own folder"
    own.mkdir()
    for folder in (*folders[:2], own):
        os.utime(folder, (0, 0))
    folder_of(0)  # uses the first
    folder_of(3)
    assert [folder.exists() for folder in (*folders, own)] == [True, is_own, True, True]
    said = f"deleting {folders[1]} ("
    assert (said in caplog.text) != is_own
    assert ("KB), which no run has used for 90 days" in caplog.text) != is_own


# Validation text of its own, and copies


def texts_of(tokens, corpus):
    return list(DecodedDocuments(tokens, corpus.tokenizer))


def write_lines(path, texts):
    path.write_text("\n".join(json.dumps({"text": text}) for text in texts), encoding="utf-8")
    return path


def test_validation_text_may_be_a_file_of_its_own_without_overlap(tmp_path, cache, caplog):
    own = [make_text(60, seed) for seed in range(8)]
    sources = write_lines(tmp_path / "train.jsonl", [*own, own[2]])
    draft = own[5][:200] + make_text(20, 99)
    val = write_lines(tmp_path / "val.jsonl", [own[2], "a text of its own " * 3, draft])
    corpus = prepare(sources, cache, val_sources=[str(val)])
    assert texts_of(corpus.train, corpus) == [text for text in own if text != own[2]]
    assert texts_of(corpus.val, corpus) == [own[2], "a text of its own " * 3, draft]
    assert "removed from the training text, as val_sources has the same: 2 documents" in caplog.text
    assert "1 document of val_sources: at least half is in the training text, too" in caplog.text
    assert "% of the held-out text is in the training text, too" in caplog.text
    other = write_lines(tmp_path / "val.jsonl", [own[2]])
    changed = prepare(sources, cache, val_sources=[str(other)])
    assert changed.folder != corpus.folder
    folder = tmp_path / "folder"
    folder.mkdir()
    write_lines(folder / "val.jsonl", ["new " * 20])
    corpus = prepare(sources, cache, val_sources=[str(folder)])
    assert texts_of(corpus.val, corpus) == ["new " * 20]
    assert len(texts_of(corpus.train, corpus)) == 9


@pytest.mark.parametrize("dedup", [False, True])
@pytest.mark.parametrize("count", [5, 30])  # with few documents, the end of each is held out
def test_the_training_documents_of_each_source_are_counted(tmp_path, cache, count, dedup):
    folder = tmp_path / "lines"
    folder.mkdir()
    own = [make_text(40, seed) for seed in range(3 * count)]
    parts = [own[:count], own[count : 2 * count], own[2 * count :] + own[:2]]
    write_lines(folder / "a.jsonl", parts[0])
    write_lines(folder / "b.jsonl", parts[1])
    names = [str(folder), str(write_lines(tmp_path / "c.jsonl", parts[2]))]
    for sources in (names, names[::-1]):
        options = CorpusOptions(sources, seed=1, dedup=dedup)
        corpus = prepare_corpus(options, fitted()[0], str(cache))
        counts = corpus.train.figures.source_documents
        assert len(counts) == 2
        assert sum(counts) == corpus.train.figures.documents
        texts = texts_of(corpus.train, corpus)
        halves = [parts[0] + parts[1], parts[2]] if sources is names else [parts[2], own]
        for found, documents in zip((texts[: counts[0]], texts[counts[0] :]), halves, strict=True):
            assert found
            assert all(any(text in document for document in documents) for text in found)
        again = prepare_corpus(options, fitted()[0], str(cache))
        assert again.train.figures == corpus.train.figures


def test_a_text_cannot_be_validated_on_itself_alone(sources, cache):
    with pytest.raises(AGI2Error, match="val_sources: all of the training text is in it"):
        prepare(sources, cache, val_sources=[str(sources)])


@pytest.mark.parametrize("val_fraction", [0.0, 0.1])
def test_copies_are_reported_and_removed_if_asked_for(tmp_path, cache, caplog, val_fraction):
    caplog.set_level(logging.INFO, "agi2")
    own = [make_text(200, seed) for seed in range(30)]
    near = own[3].replace("whale", "shark", 1)
    sources = write_lines(tmp_path / "a.jsonl", [own[0], *own, own[0], near])
    with_copies = prepare(sources, cache, val_fraction=val_fraction)
    line = "2 copies and 1 near copy of other documents"
    assert f"the text has {line}: dedup = true removes them" in caplog.text
    assert len(texts_of(with_copies.train, with_copies)) >= 25
    corpus = prepare(sources, cache, val_fraction=val_fraction, dedup=True)
    assert f"removed {line}, 9." in caplog.text
    found = texts_of(corpus.train, corpus) + texts_of(corpus.val, corpus)
    assert sorted(found) == sorted(own)
    assert bool(len(corpus.val)) == bool(val_fraction)


def test_the_spans_of_what_is_left_are_those_of_its_documents(tmp_path, cache):
    """Few documents: each is split, one of them in several places."""
    book = "".join(chr(0x4E00 + number) for number in range(900))
    texts = ["copy " * 9, "copy " * 9, book + book, "copy " * 9]
    sources = write_lines(tmp_path / "a.jsonl", texts)
    corpus = prepare(sources, cache, dedup=True)
    train, held_out = split_documents([texts[0], texts[2]], 0.1)
    assert texts_of(corpus.train, corpus) == train
    assert texts_of(corpus.val, corpus) == held_out
    assert len(held_out) > 2
