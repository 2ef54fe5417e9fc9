import json
import logging
import os
import random
import re
import subprocess
import sys
import threading
from functools import partial
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import ClassVar

import numpy as np
import pytest
import tokenizers
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import decoders, models, normalizers, pre_tokenizers
from transformers import GPT2TokenizerFast

import src.tokenizer as module
from src.errors import AGI2Error
from src.tokenization.pieces import PIECE
from src.tokenizer import BasicTokenizer, BPETokenizer, load_tokenizer, new_tokenizer
from tests.conftest import run_python

END = "<|endoftext|>"
CORPUS = [
    "The whale said: don't, we'll see 1851 ships!\n\n  Call me Ishmael.\tThe the the whale whales.",
    "Ünïcödé, слово за словом, 鯨は海を泳ぐ。 🐳🐳 👩‍👩‍👧 naïve café",
] * 3
HARD_TEXTS = [
    "",
    " ",
    "\n\n \t\r\n  x   y  ",
    "The whale's 1851 ships, don't they'll?!",
    "🐳 👩‍👩‍👧‍👦 🏳️‍🌈 e\u0301 é",
    "слово 鯨は海 كلمة हिन्दी \u200b\u200f",
    f"a{END}b <|endoftext |> <|end",
    "\x00\x1c\x1d\x85\xa0\u2028\u3000end\x1c x\x1f",
]
quick = settings(deadline=None, max_examples=40)
any_text = st.text(st.characters(exclude_categories=()), max_size=60)


@pytest.fixture(scope="module")
def bpe():
    tokenizer = BPETokenizer(300)
    tokenizer.fit(CORPUS)
    return tokenizer


def gpt2_files(tokenizer, folder):
    """Write a trained vocabulary in GPT-2's own layout, the end-of-text token last."""
    model = json.loads(tokenizer.to_json())["model"]
    pieces = sorted(model["vocab"], key=model["vocab"].get)
    pieces = [piece for piece in pieces if piece != END] + [END]
    vocab = {piece: id for id, piece in enumerate(pieces)}
    (folder / "vocab.json").write_text(json.dumps(vocab), encoding="utf-8")
    merges = "\n".join(" ".join(pair) for pair in model["merges"])
    (folder / "merges.txt").write_text(f"#version: 0.2\n{merges}\n", encoding="utf-8")
    return folder


@pytest.fixture(scope="module")
def gpt2_folder(bpe, tmp_path_factory):
    return gpt2_files(bpe, tmp_path_factory.mktemp("gpt2"))


def library_tokenizer(bpe, *, pre=None, decoder=None, special=END):
    """The trained vocabulary as a tokenizer of the library, some parts replaced."""
    content = json.loads(bpe.to_json())
    content["added_tokens"] = []
    library = tokenizers.Tokenizer.from_str(json.dumps(content))
    library.pre_tokenizer = pre or pre_tokenizers.ByteLevel(add_prefix_space=False)
    library.decoder = decoder or decoders.ByteLevel()
    library.add_special_tokens([special])
    return library


# Byte pairs


@quick
@given(text=any_text)
def test_every_string_round_trips_through_byte_pairs(bpe, text):
    expected = "".join("?" if "\ud800" <= c <= "\udfff" else c for c in text)
    assert bpe.decode(bpe.encode(text)) == expected


@pytest.mark.parametrize("text", HARD_TEXTS)
def test_hard_texts_round_trip(bpe, text):
    assert bpe.decode(bpe.encode(text)) == text


def test_text_with_lone_surrogates_can_be_learned_from():
    tokenizer = BPETokenizer(260)
    tokenizer.fit(["a\ud800b", "a?b"])
    assert tokenizer.decode(tokenizer.encode("a\udfffb")) == "a?b"


@pytest.mark.parametrize("text", [*HARD_TEXTS, *CORPUS])
def test_ids_equal_those_of_transformers(gpt2_folder, text):
    ours = load_tokenizer(gpt2_folder)
    theirs = GPT2TokenizerFast.from_pretrained(gpt2_folder)
    assert ours.encode(text) == theirs(text, split_special_tokens=True)["input_ids"]
    assert ours.vocab_size == len(theirs)
    assert ours.end_of_text == theirs.eos_token_id


def test_training_equals_the_library_on_the_same_corpus(bpe):
    library = tokenizers.ByteLevelBPETokenizer()
    library.train_from_iterator(CORPUS, vocab_size=300, min_frequency=0, special_tokens=[END])
    for text in HARD_TEXTS[:6]:
        assert bpe.encode(text) == library.encode(text).ids


@pytest.mark.parametrize("text", [END, f"x{END}y", END * 2])
def test_text_that_looks_like_a_special_token_stays_text(bpe, gpt2_folder, text):
    for tokenizer in (bpe, load_tokenizer(gpt2_folder)):
        ids = tokenizer.encode(text)
        assert tokenizer.end_of_text not in ids
        assert tokenizer.decode(ids) == text


def test_the_end_of_text_token_decodes_to_nothing(bpe):
    ids = [*bpe.encode("a"), bpe.end_of_text, *bpe.encode("b")]
    assert bpe.decode(ids) == "ab"


def test_vocab_size_is_a_ceiling_and_tells_the_size_reached():
    small = BPETokenizer(5000)
    assert small.vocab_size == 0
    small.fit(["ababab"])
    large = BPETokenizer(270)
    large.fit(CORPUS)
    assert 257 < small.vocab_size < 270
    assert large.vocab_size == 270


def test_the_smallest_vocabulary_is_the_bytes_and_the_end_of_text():
    tokenizer = BPETokenizer(257)
    tokenizer.fit(CORPUS)
    assert tokenizer.vocab_size == 257
    assert sorted(map(tokenizer.token_bytes, range(257))) == [b""] + [
        bytes([i]) for i in range(256)
    ]
    with pytest.raises(AGI2Error, match="at least 257"):
        BPETokenizer(256)


def test_fit_learns_anew_and_train_is_the_same_method():
    first, second = BPETokenizer(280), BPETokenizer(280)
    first.fit(["xyzzy " * 9])
    first.train(CORPUS)
    second.fit(CORPUS)
    assert first.fingerprint == second.fingerprint


@pytest.mark.parametrize("tokenizer", [BPETokenizer(), BasicTokenizer()])
def test_a_tokenizer_without_vocabulary_says_so(tokenizer):
    with pytest.raises(AGI2Error, match="call fit"):
        tokenizer.encode("a")


def test_an_untrained_bpe_has_no_end_of_text():
    with pytest.raises(AGI2Error, match="call fit"):
        _ = BPETokenizer().end_of_text


@pytest.mark.parametrize("token", [-1, 300])
def test_a_token_outside_the_vocabulary_is_an_error(bpe, token):
    with pytest.raises(AGI2Error, match=f"token {token} is not in a vocabulary of 300"):
        bpe.decode([token])
    basic = BasicTokenizer("ab")
    with pytest.raises(AGI2Error, match=f"token {token} is not in a vocabulary of 4"):
        basic.decode([token])


@quick
@given(ids=st.lists(st.integers(0, 299), max_size=30))
def test_decoding_equals_the_library(bpe, ids):
    assert bpe.decode(ids) == bpe._tokenizer.decode(ids, skip_special_tokens=True)


def test_ids_are_kept_in_the_smallest_type(bpe, monkeypatch):
    array = bpe.encode_array("whale")
    assert array.dtype == np.uint16
    assert array.tolist() == bpe.encode("whale")
    many = BasicTokenizer([chr(c) for c in range(0x10000, 0x10000 + 65535)])
    assert many.vocab_size == 65537
    assert many.encode_array(chr(0x10000 + 65534)).tolist() == [65536]


# Files


def basic_examples():
    plain = BasicTokenizer()
    plain.fit(["Call me 🐳\ud800"])
    exact = BasicTokenizer("aB \n", lowercase=False, fold_whitespace=False)
    return [plain, exact]


@pytest.mark.parametrize("tokenizer", basic_examples())
def test_basic_survives_the_disk(tokenizer, tmp_path):
    tokenizer.save(tmp_path)
    loaded = load_tokenizer(tmp_path)
    text = "aB \n Call me 🐳\ud800!"
    assert loaded.encode(text) == tokenizer.encode(text)
    assert loaded.vocabulary == tokenizer.vocabulary
    assert loaded.fingerprint == tokenizer.fingerprint


def test_bpe_survives_the_disk_from_folder_or_file(bpe, tmp_path):
    bpe.save(tmp_path)
    for path in (tmp_path, tmp_path / "tokenizer.json", str(tmp_path)):
        loaded = load_tokenizer(path)
        assert [loaded.encode(text) for text in HARD_TEXTS] == list(map(bpe.encode, HARD_TEXTS))
        assert loaded.end_of_text == bpe.end_of_text
        assert loaded.fingerprint == bpe.fingerprint
    assert not [path for path in tmp_path.iterdir() if path.name != "tokenizer.json"]


def test_gpt2_files_survive_as_one_file(gpt2_folder, tmp_path):
    loaded = load_tokenizer(gpt2_folder)
    loaded.save(tmp_path)
    again = load_tokenizer(tmp_path)
    assert again.fingerprint == loaded.fingerprint
    assert again.encode(CORPUS[1]) == loaded.encode(CORPUS[1])


def test_different_tokenizers_have_different_fingerprints(bpe, gpt2_folder):
    prints = {t.fingerprint for t in (bpe, load_tokenizer(gpt2_folder), *basic_examples())}
    assert len(prints) == 4


def test_a_folder_with_both_layouts_gives_its_tokenizer_json(bpe, tmp_path):
    gpt2_files(bpe, tmp_path)
    BasicTokenizer("ab").save(tmp_path)
    assert isinstance(load_tokenizer(tmp_path), BasicTokenizer)


@pytest.mark.parametrize("missing", ["vocab.json", "merges.txt"])
def test_half_a_gpt2_vocabulary_is_none(bpe, tmp_path, missing):
    gpt2_files(bpe, tmp_path)
    (tmp_path / missing).unlink()
    with pytest.raises(AGI2Error, match=r"no tokenizer at .*vocab\.json and merges\.txt"):
        load_tokenizer(tmp_path)


@pytest.mark.parametrize("kind", ["folder", "pipe", "device", "broken link"])
def test_what_is_no_tokenizer_file_is_said_to_be_what_it_is(tmp_path, kind):
    path = tmp_path / "tokenizer.json"
    if kind == "folder":
        path.mkdir()
    elif kind == "pipe":
        os.mkfifo(path)
    else:
        path.symlink_to("nowhere" if kind == "broken link" else os.devnull)
    for place in (tmp_path, path) if kind != "folder" else (tmp_path,):
        with pytest.raises(AGI2Error, match=rf"tokenizer\.json cannot be read: it is a {kind}"):
            load_tokenizer(place)


def test_a_missing_path_says_what_to_give(tmp_path):
    with pytest.raises(AGI2Error, match=r"no tokenizer at .*nowhere: give a tokenizer\.json"):
        load_tokenizer(tmp_path / "nowhere")


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"{",
        b"[]",
        b"{}",
        b"\xff\xfe\x00",
        b'{"type": "basic"}',
        b'{"type": "basic", "lowercase": true, "fold_whitespace": true, "vocabulary": [1]}',
        b'{"type": "basic", "lowercase": true, "fold_whitespace": true, "vocabulary": "aa"}',
        b'{"version": "1.0", "model": {"type": "BPE"}}',
    ],
)
def test_a_broken_file_is_named(tmp_path, content):
    (tmp_path / "tokenizer.json").write_bytes(content)
    with pytest.raises(AGI2Error, match=r"tokenizer\.json is not a tokenizer"):
        load_tokenizer(tmp_path)


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("vocab.json", "{"),
        ("vocab.json", "[1]"),
        ("vocab.json", '{"a": 0}'),
        ("merges.txt", "#version: 0.2\nno-pair\n"),
        ("merges.txt", "not-a-token either-not\n"),
    ],
)
def test_broken_gpt2_files_are_named(bpe, tmp_path, monkeypatch, name, content):
    gpt2_files(bpe, tmp_path)
    (tmp_path / name).write_text(content, encoding="utf-8")
    monkeypatch.chdir(tmp_path)  # a message with long paths is cut
    with pytest.raises(AGI2Error, match=r"vocab\.json and merges\.txt are not a GPT-2 vocabulary"):
        load_tokenizer(".")


# Tokenizers made elsewhere


def test_a_tokenizer_that_is_not_byte_level_is_refused(bpe, tmp_path):
    library = library_tokenizer(bpe, decoder=decoders.Metaspace())
    library.save(str(tmp_path / "tokenizer.json"))
    with pytest.raises(AGI2Error, match=r"tokenizer\.json is not a byte-level tokenizer"):
        load_tokenizer(tmp_path)


def test_a_tokenizer_that_lacks_what_text_needs_is_refused():
    bytes_alone = {name: i for i, name in enumerate(pre_tokenizers.ByteLevel.alphabet())}
    for vocabulary, message in (
        (bytes_alone, r"other has no end-of-text token \(<\|endoftext\|>, "),
        ({"a": 0, "b": 1}, "other has no token for 254 of the 256 bytes"),
    ):
        library = tokenizers.Tokenizer(models.BPE(vocabulary, []))
        library.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
        library.decoder = decoders.ByteLevel()
        with pytest.raises(AGI2Error, match=message):
            BPETokenizer.from_library(library, "other")


def test_another_end_token_is_found(bpe):
    tokenizer = BPETokenizer.from_library(library_tokenizer(bpe, special="</s>"), "other")
    assert tokenizer.token_bytes(tokenizer.end_of_text) == b""
    assert tokenizer.decode(tokenizer.encode("x</s>")) == "x</s>"


def test_added_tokens_that_are_text_decode_to_their_text(bpe):
    library = library_tokenizer(bpe)
    library.add_tokens(["鯨 🐳", "éé"])
    tokenizer = BPETokenizer.from_library(library, "other")
    ids = tokenizer.encode("x鯨 🐳éé")
    assert ids[-2:] == [300, 301]
    assert tokenizer.decode(ids) == "x鯨 🐳éé"
    assert tokenizer.vocab_size == 302


def test_gaps_among_the_ids_count_and_decode_to_nothing(bpe, tmp_path):
    gpt2_files(bpe, tmp_path)
    vocab = json.loads((tmp_path / "vocab.json").read_text(encoding="utf-8"))
    vocab |= {END: 310, "no 鯨 byte": 305}
    (tmp_path / "vocab.json").write_text(json.dumps(vocab), encoding="utf-8")
    tokenizer = load_tokenizer(tmp_path)
    assert (tokenizer.vocab_size, tokenizer.end_of_text) == (311, 310)
    assert tokenizer.token_bytes(307) == b""
    assert tokenizer.token_bytes(305).decode() == "no 鯨 byte"


def test_a_file_that_asks_to_truncate_or_pad_loses_no_text(bpe, tmp_path):
    library = library_tokenizer(bpe)
    library.enable_truncation(4)
    library.enable_padding(length=200)
    library.save(str(tmp_path / "tokenizer.json"))
    tokenizer = load_tokenizer(tmp_path)
    assert tokenizer.decode(tokenizer.encode(CORPUS[0])) == CORPUS[0]
    assert tokenizer.encode("") == []


# The configuration's names


def test_names_of_the_configuration_give_tokenizers(bpe, tmp_path):
    kind, is_new = new_tokenizer("bpe", 400)
    assert isinstance(kind, BPETokenizer)
    assert is_new
    assert kind.max_vocab_size == 400
    basic, is_new = new_tokenizer("basic", 400, lowercase=False, fold_whitespace=False)
    assert is_new
    assert basic.preprocess("A \n b") == "A \n b"
    bpe.save(tmp_path)
    ready, is_new = new_tokenizer(str(tmp_path), 400)
    assert not is_new
    assert ready.fingerprint == bpe.fingerprint
    with pytest.raises(AGI2Error, match="no tokenizer at pbe"):
        new_tokenizer("pbe", 400)


def test_options_of_the_configuration_reach_the_tokenizer(bpe, tmp_path):
    names = ["<|a|>", "<|b|>"]
    kind, _ = new_tokenizer(
        "bpe", "auto", pretokenizer="gpt4", split_digits=True, special_tokens=names
    )
    assert (kind.pretokenizer, kind.split_digits) == ("gpt4", True)
    kind.fit(CORPUS)
    assert kind.vocab_size <= 512
    assert set(names) < set(kind.special_tokens)
    basic, _ = new_tokenizer("basic", 400, byte_fallback=True, special_tokens=names)
    assert basic.byte_fallback
    assert set(names) < set(basic.special_tokens)
    bpe.save(tmp_path)
    for _ in range(2):
        ready, _ = new_tokenizer(str(tmp_path), 400, special_tokens=names)
        assert ready.vocab_size == bpe.vocab_size + 2
        ready.save(tmp_path)
    with pytest.raises(AGI2Error, match="'a' is a token already"):
        new_tokenizer(str(tmp_path), 400, special_tokens=["a"])


GPT2_PATH = "/openai-community/gpt2/resolve/main/tokenizer.json"


class Hub(BaseHTTPRequestHandler):
    """Answers as a model hub does: not at first, then with one file of one repository."""

    def __init__(self, content, requests, *args):
        self.content = content
        self.requests = requests
        super().__init__(*args)

    def do_GET(self):
        found = self.path == GPT2_PATH and ("HEAD", GPT2_PATH) in self.requests
        self.requests.append((self.command, self.path))
        self.send_response(200 if found else 404)
        if found:
            self.send_header("X-Repo-Commit", "0" * 40)
            self.send_header("ETag", '"' + "1" * 40 + '"')
        self.send_header("Content-Length", str(len(self.content) if found else 0))
        self.end_headers()
        if found and self.command == "GET":
            self.wfile.write(self.content)

    do_HEAD = do_GET

    def log_message(self, *_):
        pass


ASK_THREE_TIMES = """
from src.errors import AGI2Error
from src.tokenization.pieces import PIECE
from src.tokenizer import new_tokenizer
try:
    new_tokenizer("gpt2", 0)
except AGI2Error as error:
    print(error)
for _ in range(2):
    tokenizer, is_new = new_tokenizer("gpt2", 0)
    print(tokenizer.fingerprint, is_new)
"""
NOT_FETCHED = (
    "GPT-2's vocabulary could not be fetched: put its vocab.json and merges.txt into a folder "
    'and set tokenizer = "that/folder"'
)


def test_gpt2_is_fetched_once_from_the_hub(bpe, tmp_path):
    """In a process of its own, since the hub's address is read when its client is imported."""
    requests = []
    kept = {
        k: v for k, v in os.environ.items() if not re.match("HF_|HUGGINGFACE|.*_proxy", k, re.I)
    }
    handler = partial(Hub, bpe.to_json().encode(), requests)
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
        endpoint = f"http://127.0.0.1:{server.server_port}"
        done = subprocess.run(
            [sys.executable, "-c", ASK_THREE_TIMES],
            env={**kept, "HF_ENDPOINT": endpoint, "HF_HOME": str(tmp_path)},
            capture_output=True,
            encoding="utf-8",
            cwd=Path(__file__).parents[1],
        )
        server.shutdown()
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines() == [NOT_FETCHED, *2 * [f"{bpe.fingerprint} False"]]
    assert requests.count(("GET", GPT2_PATH)) == 1


LIBRARY_TOKENIZER = tokenizers.Tokenizer


class Offline:
    """A library without a network: all it has is in `cache`."""

    cache: ClassVar = {}

    def __new__(cls, model):
        return LIBRARY_TOKENIZER(model)

    @classmethod
    def from_pretrained(cls, name):
        return cls.cache[name]


def test_gpt2_without_a_network_comes_from_the_cache_or_says_what_to_do(bpe, monkeypatch):
    library = library_tokenizer(bpe)
    monkeypatch.setattr(module.tokenizers, "Tokenizer", Offline)
    with pytest.raises(AGI2Error, match=re.escape(NOT_FETCHED)):
        new_tokenizer("gpt2", 0)
    monkeypatch.setitem(Offline.cache, "openai-community/gpt2", library)
    tokenizer, is_new = new_tokenizer("gpt2", 0)
    assert not is_new
    assert tokenizer.encode("whale") == bpe.encode("whale")


# Long texts, and text without spaces

SPACELESS = {
    "DNA": "".join(random.Random(0).choices("ACGT", k=4000)),
    "one letter": "a" * 4000,
    "spaces": " " * 4000,
    "Chinese": "鯨は海を泳ぐ捕鯨船白鯨" * 300,
    "marks": "\u0301" * 3000,
    "apostrophes": "a'" * 2000,
    "emoji": "🐳👩‍👩‍👧" * 700,
}


@pytest.mark.parametrize("text", [*SPACELESS.values(), "\n\n".join(CORPUS * 200)])
def test_a_long_text_round_trips_and_its_array_equals_its_list(bpe, text):
    ids = bpe.encode(text)
    assert bpe.decode(ids) == text
    array = bpe.encode_array(text)
    assert array.dtype == np.uint16
    assert array.tolist() == ids


def test_a_long_text_of_words_has_the_ids_of_the_library(bpe):
    text = "\n\n".join(CORPUS * 200)
    assert len(text) > 5 * PIECE
    assert bpe.encode(text) == bpe._tokenizer.encode(text, add_special_tokens=False).ids


@pytest.mark.parametrize("text", SPACELESS.values())
def test_the_tokens_of_a_long_word_do_not_depend_on_what_surrounds_it(bpe, text):
    word = f" {text.strip()}" if text.strip() else text
    around = "some words" * (word[0] == " ")
    expected = [*bpe.encode(around), *bpe.encode(word)]
    assert bpe.encode(around + word) == expected
    long = "the old whale" + " swam" * 3000
    assert bpe.encode(long + word + " end" * 3000) == [
        *bpe.encode(long),
        *bpe.encode(word + " end" * 3000),
    ]


@pytest.mark.parametrize("text", SPACELESS.values())
def test_one_long_word_can_be_learned_from(text):
    tokenizer = BPETokenizer(300)
    tokenizer.fit(text)
    # GPT-2's words of a letter and an apostrophe in turn are single characters.
    assert (257 < tokenizer.vocab_size <= 300) == (text != SPACELESS["apostrophes"])
    assert tokenizer.decode(tokenizer.encode(text)) == text


MEASURED = """
import resource, sys
from src.tokenizer import BPETokenizer
tokenizer = BPETokenizer(400)
tokenizer.fit(sys.argv[1] * 1000)
tokenizer.encode_array(sys.argv[1] * 5000)
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
text = sys.argv[1] * (2_000_000 // len(sys.argv[1].encode()))
assert len(tokenizer.encode_array(text)) > 1000
print((resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) * 1024 / len(text.encode()))
"""


@pytest.mark.skipif(sys.platform != "linux", reason="the unit of ru_maxrss differs")
@pytest.mark.parametrize("unit", ["ACGTTGCAAC", "鯨は海を泳ぐ捕鯨船白", "aGVs+bG8/"])
def test_encoding_takes_few_bytes_of_memory_for_a_byte_of_text(unit):
    """The library alone takes some 400; the text, its UTF-8 and the ids are a dozen."""
    done = run_python(MEASURED, unit)
    assert done.returncode == 0, done.stderr
    assert float(done.stdout) < 40


# What training says


def test_training_that_learns_nothing_says_so(caplog):
    with caplog.at_level(logging.WARNING, "agi2"):
        tokenizer = BPETokenizer(300)
        tokenizer.fit("")
        tokenizer.train(["", "a"])
    assert caplog.text.count("no merges, only bytes, as the text is too small") == 2
    assert tokenizer.vocab_size == 257
    caplog.clear()
    BPETokenizer(257).fit(CORPUS)
    BPETokenizer(300).train("some text")
    assert not caplog.text


@pytest.mark.parametrize("size", [256, 0, -1, 2**31, 10**30, True, 300.5, "300", None])
def test_a_vocab_size_out_of_range_or_of_another_type_is_one_line(size):
    with pytest.raises(AGI2Error, match="vocab_size must be"):
        BPETokenizer(size)


def test_special_tokens_need_room_in_the_vocabulary():
    tokenizer = BPETokenizer(258, special_tokens=["<a>"])
    tokenizer.fit(CORPUS)
    assert tokenizer.vocab_size == 258
    with pytest.raises(AGI2Error, match="at least 258 for byte pairs and the special tokens"):
        BPETokenizer(257, special_tokens=["<a>"])


def test_special_tokens_cannot_be_added_where_ids_have_gaps(bpe, tmp_path):
    gpt2_files(bpe, tmp_path)
    vocab = json.loads((tmp_path / "vocab.json").read_text(encoding="utf-8"))
    (tmp_path / "vocab.json").write_text(json.dumps(vocab | {END: 310}), encoding="utf-8")
    with pytest.raises(AGI2Error, match="there are gaps among the ids"):
        load_tokenizer(tmp_path).add_special_tokens("<a>")


def test_merges_that_are_no_utf8_are_one_line(bpe, tmp_path):
    gpt2_files(bpe, tmp_path)
    (tmp_path / "merges.txt").write_bytes(b"#version: 0.2\n\xff \xfe\n")
    with pytest.raises(AGI2Error, match=r"are not a GPT-2 vocabulary: .*is not UTF-8"):
        load_tokenizer(tmp_path)


def test_a_vocabulary_that_composes_characters_says_what_it_encodes(bpe):
    library = library_tokenizer(bpe)
    library.normalizer = normalizers.NFC()
    tokenizer = BPETokenizer.from_library(library, "other")
    assert tokenizer.preprocess("e\u0301x") == "\u00e9x"
    assert tokenizer.decode(tokenizer.encode("e\u0301x")) == "\u00e9x"
    assert bpe.preprocess("e\u0301x") == "e\u0301x"
