"""No document of `val_sources` is in the training text, whatever file or form it is in."""

import gzip
import json
import os
import unicodedata
import zipfile

import pytest

from src.data.build import prepare_corpus
from src.data.corpus_options import CorpusOptions, TokenizerSource
from src.data.decoded import DecodedDocuments
from src.data.documents import ReadOptions
from src.tokenizer import BPETokenizer
from src.utils import plural

TEXT = "Cafés à Zürich, naïve façade, Ångström: a text of which there are copies.\n" * 3
OTHER = "Another text, which is trained on.\n" * 5


def symbolic_link(folder, file):
    (folder / "link.txt").symlink_to(file)


def hard_link(folder, file):
    os.link(file, folder / "same.txt")


def copy(folder, file):
    (folder / "copy.md").write_bytes(file.read_bytes())


def in_zip(folder, file):
    with zipfile.ZipFile(folder / "a.zip", "w") as archive:
        archive.writestr("inner/a.txt", file.read_bytes())


def compressed(folder, file):
    (folder / "a.txt.gz").write_bytes(gzip.compress(file.read_bytes()))


def json_lines(folder, file):
    line = json.dumps({"text": file.read_text("utf-8").rstrip()})
    (folder / "a.jsonl").write_text(line + "\n", encoding="utf-8")


def other_line_ends(folder, file):
    (folder / "dos.txt").write_bytes(file.read_bytes().replace(b"\n", b"\r\n"))


def decomposed(folder, file):
    text = unicodedata.normalize("NFD", file.read_text("utf-8"))
    (folder / "nfd.txt").write_text(text, encoding="utf-8")


def in_utf_16(folder, file):
    (folder / "wide.txt").write_text("\n\n" + file.read_text("utf-8"), encoding="utf-16")


def wrapped(folder, file):
    (folder / "wrapped.txt").write_text(file.read_text("utf-8").replace(" ", "\n"), "utf-8")


FORMS = (
    *(symbolic_link, hard_link, copy, in_zip, compressed, json_lines, other_line_ends),
    *(decomposed, in_utf_16, wrapped),
)


@pytest.mark.parametrize("normalize", ["lines", "none"])
def test_no_copy_of_validation_text_is_trained_on(tmp_path, caplog, normalize):
    folder, file = tmp_path / "train", tmp_path / "val.txt"
    folder.mkdir()
    file.write_bytes(TEXT.encode())
    (folder / "other.txt").write_bytes(OTHER.encode())
    for make in FORMS:
        make(folder, file)
    tokenizer = BPETokenizer(257)
    tokenizer.fit("a", verbose=False)
    source = TokenizerSource("", lambda _: tokenizer, lambda _: tokenizer)
    reading = ReadOptions(normalize=normalize)
    options = CorpusOptions([str(folder)], reading, val_sources=[str(file)])
    corpus = prepare_corpus(options, source, str(tmp_path / "cache"))
    assert list(DecodedDocuments(corpus.train, tokenizer)) == [OTHER]
    assert list(DecodedDocuments(corpus.val, tokenizer)) == [TEXT]
    # Of the two links, which are one file, one is read.
    what = plural(len(FORMS) - 1, "document")
    assert f"removed from the training text, as val_sources has the same: {what}" in caplog.text
