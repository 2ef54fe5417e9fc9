"""The basic tokenizer: characters, or the words of a given vocabulary."""

import json
import logging

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from src.errors import AGI2Error
from src.tokenization import basic as basic_tokenizer
from src.tokenization.basic import BasicTokenizer
from src.tokenizer import load_tokenizer

END = "<|endoftext|>"
quick = settings(deadline=None, max_examples=40)


def test_basic_lower_cases_and_folds_white_space_unless_told_not_to():
    text = "Ab \n\t b"
    expected = {
        (True, True): "ab b",
        (True, False): "ab \n\t b",
        (False, True): "Ab b",
        (False, False): text,
    }
    for (lowercase, fold), decoded in expected.items():
        tokenizer = BasicTokenizer(lowercase=lowercase, fold_whitespace=fold)
        tokenizer.fit([text])
        assert tokenizer.decode(tokenizer.encode(text)) == decoded
        assert tokenizer.vocab_size == 2 + len(set(decoded))


@quick
@given(text=st.text(min_size=1, max_size=40))
def test_basic_round_trips_what_it_has_learned(text):
    tokenizer = BasicTokenizer(lowercase=False, fold_whitespace=False)
    tokenizer.fit([text])
    assert tokenizer.decode(tokenizer.encode(text)) == text


def test_basic_maps_what_it_does_not_know_to_unk():
    tokenizer = BasicTokenizer()
    tokenizer.fit(["abc"])
    ids = tokenizer.encode("a🐳c")
    assert [tokenizer.vocabulary[id] for id in ids] == ["a", "<unk>", "c"]
    assert tokenizer.decode(ids) == "a\ufffdc"


def test_basic_keeps_special_tokens_out_of_text():
    tokenizer = BasicTokenizer()
    tokenizer.fit([END + "<unk>"])
    ids = tokenizer.encode(END + "<unk>")
    assert min(ids) >= 2
    assert tokenizer.decode([*ids, tokenizer.end_of_text]) == END + "<unk>"


def test_basic_takes_a_ready_vocabulary_in_its_order():
    tokenizer = BasicTokenizer("cab")
    assert tokenizer.encode("abc") == [3, 4, 2]


@pytest.mark.parametrize(
    ("vocabulary", "problem"),
    [
        ("aba", "twice"),
        (["the", "whale", "the"], "twice"),
        (["a", 5], "5 is neither a character nor a word"),
        (["a", ""], "'' is neither"),
        (["<unk>", "a"], "<unk> is a special token already"),
        (["a.b.c.d.e.f.g.h.i"], "more than 16 words"),
        (5, "vocabulary must be a list of strings, not int 5"),
        ({"a": 1}, "vocabulary must be a list"),
    ],
)
def test_basic_refuses_a_broken_vocabulary(vocabulary, problem):
    with pytest.raises(AGI2Error, match=problem):
        BasicTokenizer(vocabulary)


def test_a_vocabulary_is_kept_in_parts_of_long_texts(monkeypatch):
    monkeypatch.setattr(basic_tokenizer, "_CHUNK_CHARACTERS", 3)
    tokenizer = BasicTokenizer("ab")
    assert tokenizer.encode_array("abbabab").tolist() == tokenizer.encode("abbabab")
    assert tokenizer.encode("abbabab") == [2, 3, 3, 2, 3, 2, 3]


def test_fitting_on_nothing_says_so(caplog):
    with caplog.at_level(logging.WARNING, "agi2"):
        BasicTokenizer().fit("")
    assert "no vocabulary: there is no text" in caplog.text


def test_tokens_that_can_never_occur_are_told(caplog):
    with caplog.at_level(logging.WARNING, "agi2"):
        BasicTokenizer(["The", "whale", "a  b"])
        BasicTokenizer(["The", " "], lowercase=False)
    assert [record.getMessage()[:34] for record in caplog.records] == [
        "vocabulary: 2 tokens such as 'The'"
    ]


# Words

WORDS = ["the", "whale", "new york", "new", ",", "don't", "c++", "a", "l", "s", "o"]


@pytest.mark.parametrize(
    ("text", "tokens"),
    [
        ("The whale", ["the", " ", "whale"]),
        ("whales", ["<unk>"]),  # no token ends inside a word
        ("also, a", ["a", "l", "s", "o", ",", " ", "a"]),  # spelled
        ("new york, new york's", ["new york", ",", " ", "new york", "<unk>", "s"]),
        ("new yorker", ["new", " ", "<unk>"]),
        ("don't! C++", ["don't", "<unk>", " ", "c++"]),
        ("the\n\twhale", ["the", " ", "whale"]),
        ("", []),
    ],
)
def test_text_becomes_the_words_of_the_vocabulary(text, tokens):
    tokenizer = BasicTokenizer(WORDS)
    ids = tokenizer.encode(text)
    assert [tokenizer.vocabulary[id] for id in ids] == tokens
    assert tokenizer.encode_array(text).tolist() == ids


@quick
@given(parts=st.lists(st.sampled_from([*WORDS, " ", "  ", "\n", "The", "NEW"]), max_size=20))
def test_text_of_known_words_round_trips_after_preprocessing(parts):
    tokenizer = BasicTokenizer([*WORDS, *"thewn"])
    text = " ".join(parts)
    ids = tokenizer.encode(text)
    assert 0 not in ids
    assert tokenizer.decode(ids) == tokenizer.preprocess(text)


def test_words_get_a_space_between_them_unless_they_have_one():
    assert BasicTokenizer(["the", "whale"]).vocabulary[2:] == ["the", "whale", " "]
    assert BasicTokenizer(["the", " ", "whale"]).vocabulary[2:] == ["the", " ", "whale"]
    assert BasicTokenizer("ab").vocabulary[2:] == ["a", "b"]


def test_text_never_becomes_the_unknown_token_by_its_name():
    tokenizer = BasicTokenizer(["unk", "<", ">"])
    assert 0 not in tokenizer.encode("<unk>")
    assert tokenizer.encode("a <unk>", "<unk>")[-1] == 0


# Files


@pytest.mark.parametrize("special", [[], ["<|im_end|>", "<|x|>"]])
@pytest.mark.parametrize("vocabulary", ["ab c", WORDS])
def test_vocabulary_and_special_tokens_survive_the_disk(vocabulary, special, tmp_path):
    tokenizer = BasicTokenizer(vocabulary, fold_whitespace=False, special_tokens=special)
    tokenizer.save(tmp_path / "made" / "mine.json")
    loaded = BasicTokenizer.load(tmp_path / "made" / "mine.json")
    assert loaded.fingerprint == tokenizer.fingerprint
    assert loaded.vocabulary == tokenizer.vocabulary
    assert loaded.special_tokens == tokenizer.special_tokens
    text = "the whale\n a<|im_end|>b"
    assert loaded.encode(text, "all") == tokenizer.encode(text, "all")


def test_files_of_characters_are_as_they_always_were(tmp_path):
    switches = '"lowercase": true,\n"fold_whitespace": false'
    content = f'{{\n"type": "basic",\n{switches},\n"vocabulary": [\n"b",\n"a"\n]\n}}'
    (tmp_path / "tokenizer.json").write_text(content, encoding="utf-8")
    tokenizer = load_tokenizer(tmp_path)
    assert tokenizer.encode("abc") == [3, 2, 0]
    assert tokenizer.to_json() == content


@pytest.mark.parametrize(
    ("changes", "problem"),
    [
        ({"lowercase": "yes"}, "lowercase and fold_whitespace are not true or false"),
        ({"fold_whitespace": None}, "are not true or false"),
        ({"vocabulary": None}, "vocabulary is not a list"),
        ({"vocabulary": "ab"}, "vocabulary is not a list"),
        ({"vocabulary": ["a", "a"]}, "twice"),
        ({"vocabulary": ["a", ["b"]]}, "is neither a character nor a word"),
        ({"special_tokens": "ab"}, "special_tokens is not a list"),
        ({"special_tokens": ["a"]}, "'a' is a token already"),
        ({"special_tokens": [1]}, "int 1 is not a string"),
    ],
)
def test_a_broken_file_is_named(changes, problem, tmp_path):
    content = json.loads(BasicTokenizer("ab").to_json()) | changes
    (tmp_path / "tokenizer.json").write_text(json.dumps(content), encoding="utf-8")
    with pytest.raises(AGI2Error, match=rf"tokenizer\.json is not a tokenizer: .*{problem}"):
        load_tokenizer(tmp_path)


# Byte fallback


@quick
@given(text=st.text(max_size=30), known=st.text(min_size=1, max_size=10))
def test_with_byte_fallback_every_text_round_trips(text, known):
    for vocabulary in (sorted(set(known)), ["the", "new york"]):
        tokenizer = BasicTokenizer(
            vocabulary, lowercase=False, fold_whitespace=False, byte_fallback=True
        )
        ids = tokenizer.encode(text)
        assert tokenizer.decode(ids) == text
        assert tokenizer.unknown not in ids
        assert tokenizer.encode_batch([text])[0].tolist() == ids


def test_bytes_follow_the_vocabulary_and_survive_the_disk(tmp_path):
    tokenizer = BasicTokenizer("ab", byte_fallback=True, special_tokens=["<x>"])
    assert tokenizer.vocabulary[2:5] == ["a", "b", "<0x00>"]
    assert tokenizer.encode("aé<x>", "all") == [2, 4 + 0xC3, 4 + 0xA9, 260]
    assert tokenizer.token_bytes(4 + 0xC3) == b"\xc3"
    assert tokenizer.token_bytes(260) == b""
    tokenizer.save(tmp_path)
    loaded = load_tokenizer(tmp_path)
    assert loaded.fingerprint == tokenizer.fingerprint
    assert loaded.encode("aé") == tokenizer.encode("aé")
    content = json.loads(tokenizer.to_json()) | {"byte_fallback": 1}
    (tmp_path / "tokenizer.json").write_text(json.dumps(content), encoding="utf-8")
    with pytest.raises(AGI2Error, match="byte_fallback is not true or false"):
        load_tokenizer(tmp_path)
    with pytest.raises(AGI2Error, match="<0x41> is a special token already"):
        BasicTokenizer(["<0x41>"], byte_fallback=True)
