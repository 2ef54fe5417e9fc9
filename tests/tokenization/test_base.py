"""What all tokenizers have in common: special tokens, files, argument types."""

import copy
import logging
import pickle
from pathlib import Path

import numpy as np
import pytest
import torch

from src.errors import AGI2Error
from src.tokenizer import BasicTokenizer, BPETokenizer, Tokenizer, load_tokenizer

TEXT = "the old whale, the white whale <|im_end|> swam."
KINDS = {"bpe": lambda **own: BPETokenizer(300, **own), "basic": BasicTokenizer}


@pytest.fixture(params=KINDS)
def make(request):
    """Makes a fitted tokenizer of each kind."""

    def made(**own):
        tokenizer = KINDS[request.param](**own)
        tokenizer.fit(TEXT)
        return tokenizer

    return made


# Special tokens


def test_special_tokens_are_encoded_on_request_alone(make):
    tokenizer = make(special_tokens=["<|im_end|>", "<|im_start|>"])
    end, start = (tokenizer.special_tokens[f"<|im_{name}|>"] for name in ("end", "start"))
    assert sorted([end, start]) == [tokenizer.vocab_size - 2, tokenizer.vocab_size - 1]
    plain = tokenizer.encode(TEXT)
    assert end not in plain
    assert tokenizer.decode(plain) == TEXT
    for allowed in ("all", "<|im_end|>", ["<|im_end|>"], {"<|im_end|>"}):
        ids = tokenizer.encode(TEXT, allowed)
        assert ids.count(end) == 1
        assert tokenizer.encode_array(TEXT, allowed).tolist() == ids
        assert tokenizer.decode(ids) == TEXT.replace("<|im_end|>", "")
        assert tokenizer.decode(ids, skip_special_tokens=False) == TEXT
    both = tokenizer.encode("<|im_end|><|im_end|><|im_start|>", "all")
    assert both == [end, end, start]
    assert end not in tokenizer.encode(TEXT, ["<|im_start|>"])


def test_special_tokens_can_be_added_later_and_survive_fit_disk_and_copies(make, tmp_path):
    tokenizer = make()
    size = tokenizer.vocab_size
    tokenizer.add_special_tokens("<|a|>", "<|a|>b")
    assert [tokenizer.special_tokens[name] for name in ("<|a|>", "<|a|>b")] == [size, size + 1]
    assert tokenizer.vocab_size == len(tokenizer) == size + 2
    text = "the<|a|>bold<|a|>whale"
    tokenizer.save(tmp_path)
    copies = [load_tokenizer(tmp_path), copy.deepcopy(tokenizer)]
    copies.append(pickle.loads(pickle.dumps(tokenizer)))
    for each in copies:
        assert each.fingerprint == tokenizer.fingerprint
        assert each.encode(text) == tokenizer.encode(text)
        assert each.encode(text, "all") == tokenizer.encode(text, "all")
        assert size + 1 in each.encode(text, "all")
        assert size + 1 not in each.encode(text)
    for each in copies:
        each.fit(TEXT)
        assert [*each.special_tokens][-2:] == ["<|a|>", "<|a|>b"]


def test_special_tokens_can_be_added_before_there_is_a_vocabulary(make):
    expected = make(special_tokens=["<|a|>"])
    tokenizer = type(expected)(*([300] if isinstance(expected, BPETokenizer) else []))
    tokenizer.add_special_tokens("<|a|>")
    tokenizer.fit(TEXT)
    assert tokenizer.fingerprint == expected.fingerprint


@pytest.mark.parametrize(
    ("name", "problem"),
    [
        ("", "is not a string of 1 to 200"),
        ("x" * 201, "is not a string of 1 to 200"),
        (5, "int 5 is not a string"),
        ("\ud800x", "has half a character"),
        ("<|endoftext|>", "is a token already"),
        ("<|a|>", "is a token already"),
        ("e", "is a token already"),
    ],
)
def test_a_name_that_no_special_token_can_have_is_refused(make, name, problem):
    tokenizer = make(special_tokens="<|a|>")
    before = tokenizer.fingerprint
    with pytest.raises(AGI2Error, match=problem):
        tokenizer.add_special_tokens(name)
    assert tokenizer.fingerprint == before


def test_a_name_given_twice_is_refused(make):
    with pytest.raises(AGI2Error, match="'<x>' is a token already"):
        make(special_tokens=["<x>", "<x>"])
    with pytest.raises(AGI2Error, match="special_tokens must be a list of strings, not int 3"):
        make(special_tokens=3)


def test_an_unknown_special_token_is_named(make):
    with pytest.raises(AGI2Error, match=r"allowed_special: '<b>' is not a special token; .*<a>"):
        make(special_tokens=["<a>"]).encode("x", ["<b>"])


# Files


def test_a_tokenizer_is_saved_to_a_file_or_a_new_folder(make, tmp_path):
    tokenizer = make()
    places = {
        tmp_path / "new" / "folder": tmp_path / "new" / "folder" / "tokenizer.json",
        tmp_path / "other" / "mine.json": tmp_path / "other" / "mine.json",
        str(tmp_path / "text"): tmp_path / "text" / "tokenizer.json",
    }
    for given, file in places.items():
        tokenizer.save(given)
        assert file.is_file()
        for kind in (type(tokenizer), Tokenizer):
            for place in (given, file):
                loaded = kind.load(place)
                assert type(loaded) is type(tokenizer)
                assert loaded.fingerprint == tokenizer.fingerprint
    (tmp_path / "dir.json").mkdir()
    tokenizer.save(tmp_path / "dir.json")
    assert (tmp_path / "dir.json" / "tokenizer.json").is_file()


def test_load_of_another_kind_says_so(make, tmp_path):
    tokenizer = make()
    tokenizer.save(tmp_path)
    other = BasicTokenizer if isinstance(tokenizer, BPETokenizer) else BPETokenizer
    with pytest.raises(
        AGI2Error, match=f"holds a {type(tokenizer).__name__}, not a {other.__name__}"
    ):
        other.load(tmp_path)


def test_a_place_that_cannot_be_written_is_one_line(make, tmp_path):
    (tmp_path / "file").write_text("x", encoding="utf-8")
    with pytest.raises(AGI2Error, match="cannot write"):
        make().save(tmp_path / "file")
    with pytest.raises(AGI2Error, match="path must be a path, not 3"):
        make().save(3)
    with pytest.raises(AGI2Error, match="path must be a path, not None"):
        Tokenizer.load(None)


@pytest.mark.parametrize("kind", KINDS)
def test_without_a_vocabulary_there_is_nothing_to_save_but_it_is_a_tokenizer(kind, tmp_path):
    tokenizer = KINDS[kind]()
    with pytest.raises(AGI2Error, match=r"nothing to save.*call fit"):
        tokenizer.save(tmp_path)
    assert tokenizer
    assert len(tokenizer) == 0
    assert "no vocabulary yet" in repr(tokenizer)


def test_a_tokenizer_shows_its_kind_and_sizes(make):
    tokenizer = make(special_tokens=["<a>"])
    shown = f"{len(tokenizer)} tokens, {len(tokenizer.special_tokens)} of them special"
    assert repr(tokenizer) == f"{type(tokenizer).__name__}({shown})"


# Types


def test_a_text_a_file_and_lists_of_them_are_learned_from_alike(make, tmp_path):
    file = tmp_path / "text.txt"
    file.write_text(TEXT, encoding="utf-8")
    expected = make()
    for given in (TEXT, file, [TEXT], (file,), iter([file]), np.array([TEXT])):
        tokenizer = copy.deepcopy(expected)
        tokenizer.fit(["z"])
        tokenizer.fit(given)
        assert tokenizer.fingerprint == expected.fingerprint
        tokenizer.fit([TEXT, file])
        assert tokenizer.decode(tokenizer.encode(TEXT)) == TEXT


@pytest.mark.parametrize(
    ("texts", "problem"),
    [
        (None, r"texts must be a str \(a text\), a Path \(a file\) or a list .*not NoneType"),
        (5, "texts must be .* not int 5"),
        (b"bytes", "texts must be .* not bytes"),
        ({"a": "b"}, "texts must be .* not dict"),
        (["a", 5], r"texts\[1\] must be a str \(a text\) or a Path \(a file\), not int 5"),
        ([["a"]], r"texts\[0\] must be .* not list"),
        (Path("nowhere.txt"), r"nowhere\.txt cannot be read: No such file"),
        ([Path()], r"\. cannot be read: Is a directory"),
    ],
)
def test_anything_else_is_one_line_that_names_the_argument(make, texts, problem):
    tokenizer = make()
    before = tokenizer.fingerprint
    with pytest.raises(AGI2Error, match=problem):
        tokenizer.fit(texts)
    assert tokenizer.fingerprint == before


def test_a_file_that_is_no_text_says_how_to_read_it(make, tmp_path):
    (tmp_path / "x").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(AGI2Error, match=r"x is not UTF-8 text: .*read_documents"):
        make().fit(tmp_path / "x")


def test_a_text_that_is_the_name_of_a_file_is_a_text_with_a_warning(make, tmp_path, caplog):
    file = tmp_path / "text.txt"
    file.write_text("☃☃☃", encoding="utf-8")  # in no path of a temporary folder
    tokenizer = make()
    with caplog.at_level(logging.WARNING, "agi2"):
        tokenizer.fit([str(file), "no\0path"])
    assert f"texts[0]: '{file}' is taken for a text: for the file, pass a Path" in caplog.text
    if isinstance(tokenizer, BasicTokenizer):
        assert "☃" not in tokenizer.vocabulary
    assert caplog.text.count("is taken for a text") == 1


def test_ids_of_any_integer_type_decode_alike(make):
    tokenizer = make()
    ids = tokenizer.encode(TEXT)
    assert len(ids) > 1
    for given in (
        tuple(ids),
        iter(ids),
        np.array(ids),
        np.array(ids, np.uint16),
        torch.tensor(ids),
        list(np.array(ids)),
        list(torch.tensor(ids)),
    ):
        assert tokenizer.decode(given) == TEXT
    assert tokenizer.decode(range(2, 4)) == tokenizer.decode([2, 3])
    assert tokenizer.decode([]) == tokenizer.decode(np.array([], np.int64)) == ""


@pytest.mark.parametrize(
    "tokens",
    [
        *[None, 3, "abc", b"abc", {3: 4}, [1.0], [True], [None], ["3"], [[3]], [np.True_]],
        *[np.array([1.5]), np.array([[3]]), np.array(3), np.array([True])],
        *[torch.tensor([True]), torch.tensor([0.5])],
        *[[torch.tensor(True)], [torch.tensor([3, 4])]],
    ],
)
def test_what_is_no_list_of_integers_is_one_line(make, tokens):
    with pytest.raises(AGI2Error, match=r"^(tokens must be a list of integers|a token must be)"):
        make().decode(tokens)


@pytest.mark.parametrize("token", [-1, 10**6, 2**63, -(10**30), np.int64(-5)])
def test_ids_out_of_range_are_one_line(make, token):
    with pytest.raises(AGI2Error, match=f"token {int(token)} is not in a vocabulary of"):
        make().decode([token])


@pytest.mark.parametrize("text", [None, 5, b"abc", ["a"], Path("a")])
def test_what_is_no_text_is_not_encoded(make, text):
    with pytest.raises(AGI2Error, match="text must be a str, not"):
        make().encode(text)


def test_an_unknown_token_counts_no_bytes_of_text():
    tokenizer = BasicTokenizer("aé")
    assert tokenizer.byte_lengths().tolist() == [0, 0, 1, 2]
    assert tokenizer.token_bytes(tokenizer.unknown).decode() == "\ufffd"
    assert BPETokenizer().unknown is None


def test_a_zero_dimensional_array_is_no_list_of_names():
    for value in (torch.tensor(2), np.array(2)):
        with pytest.raises(AGI2Error, match="allowed_special must be a list of strings, not"):
            BasicTokenizer("ab").encode("ab", allowed_special=value)
