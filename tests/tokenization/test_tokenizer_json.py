"""Validation of untrusted tokenizer.json files: a working tokenizer, or one line."""

import copy
import json
import string

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from src.errors import MAX_LINE_LENGTH, AGI2Error
from src.tokenization import tokenizer_json as tokenizer_file
from src.tokenization.tokenizer_json import (
    KNOWN_PATTERNS,
    ROUND_TRIP_SAMPLES,
    convert_library_errors,
)
from src.tokenizer import BPETokenizer, load_tokenizer

TEXT = "The whale's 1851 ships, don't they'll?! <|im_end|> naïve 🐳 鯨は海を泳ぐ。\n\n  e\u0301 end"


@pytest.fixture(scope="module")
def content():
    """A small real file, with tokens of all kinds."""
    tokenizer = BPETokenizer(320, special_tokens=["<|im_end|>"])
    tokenizer.fit([TEXT] * 3)
    found = json.loads(tokenizer.to_json())
    found["added_tokens"].append(
        {
            **{"id": 320, "content": "<think>", "special": False},
            **dict.fromkeys(("single_word", "lstrip", "rstrip", "normalized"), False),
        }
    )
    found["post_processor"] = {
        "type": "TemplateProcessing",
        "single": [{"Sequence": {"id": "A", "type_id": 0}}],
        "pair": [{"Sequence": {"id": "A", "type_id": 0}}, {"Sequence": {"id": "B", "type_id": 1}}],
        "special_tokens": {},
    }
    return found


def load(content, folder):
    (folder / "tokenizer.json").write_text(json.dumps(content), encoding="utf-8")
    return load_tokenizer(folder)


def changed(content, changes):
    """A copy in which the values at some paths are others."""
    content = copy.deepcopy(content)
    for path, value in changes.items():
        *parents, last = path.split(".")
        inside = content
        for key in parents:
            inside = inside[int(key) if isinstance(inside, list) else key]
        if isinstance(inside, list):
            inside[int(last)] = value
        else:
            inside[last] = value
    return content


BYTE_LEVEL = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True}


def split(pattern, behavior="Isolated", invert=False):
    return {"type": "Split", "pattern": {"Regex": pattern}, "behavior": behavior, "invert": invert}


def sequence(*parts, key="pretokenizers"):
    return {"type": "Sequence", key: list(parts)}


WHOLE = {**BYTE_LEVEL, "use_regex": False}
REPLACE = {"type": "Replace", "pattern": {"String": "a"}, "content": "aaaaaaaaaa"}


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"normalizer": {"type": "NFC"}},
        {"normalizer": sequence({"type": "NFC"}, key="normalizers")},
        *({"pre_tokenizer": sequence(split(known), WHOLE)} for known in KNOWN_PATTERNS),
        {"pre_tokenizer": sequence(split(KNOWN_PATTERNS[0], "Removed", True), WHOLE)},
        {"pre_tokenizer": sequence({"type": "Digits", "individual_digits": True}, BYTE_LEVEL)},
        {"pre_tokenizer": sequence({"type": "Punctuation", "behavior": "Isolated"}, BYTE_LEVEL)},
        {"truncation": {"max_length": 1, "strategy": "X"}, "padding": "nonsense"},
        {"post_processor": None},
        {"post_processor": sequence(BYTE_LEVEL, key="processors")},
        {"model.unk_token": "a", "model.byte_fallback": True, "model.fuse_unk": True},
        {"model.ignore_merges": True},
    ],
)
def test_what_is_allowed_loads_and_loses_no_text(content, changes, tmp_path):
    tokenizer = load(changed(content, changes), tmp_path)
    text = TEXT + "<think> x"
    assert tokenizer.decode(tokenizer.encode(text)) == tokenizer.preprocess(text)
    assert 320 in tokenizer.encode(text)
    assert tokenizer.encode("a<|im_end|>", "all")[-1] == tokenizer.special_tokens["<|im_end|>"]
    again = tmp_path / "again.json"
    tokenizer.save(again)
    assert load_tokenizer(again).fingerprint == tokenizer.fingerprint


REFUSED = [
    ({"model": None}, "its model has no type"),
    ({"model": []}, "its model has no type"),
    ({"model.type": "Unigram"}, "its model is Unigram, not BPE"),
    ({"model.dropout": 0.5}, r"its model has dropout = 0\.5"),
    ({"model.continuing_subword_prefix": "##"}, "continuing_subword_prefix = '##'"),
    ({"model.end_of_word_suffix": "</w>"}, "end_of_word_suffix = '</w>'"),
    ({"model.vocab": {}}, "its vocabulary is not an object"),
    ({"model.vocab": [["a", 0]]}, "its vocabulary is not an object"),
    ({"model.vocab.a": 2**31}, "the token 'a' has the id 2147483648"),
    ({"model.vocab.a": 10**400}, "the token 'a' has the id 1000"),
    ({"model.vocab.a": -1}, "the token 'a' has the id -1"),
    ({"model.vocab.a": 1.5}, r"the token 'a' has the id 1\.5"),
    ({"model.vocab.a": True}, "the token 'a' has the id True"),
    ({"model.vocab.a": "7"}, "the token 'a' has the id '7'"),
    ({"model.vocab.a": 5}, "two tokens of its vocabulary have the same id"),
    ({"model.merges": None}, "no list of at most"),
    ({"model.merges.0": "abc"}, "is not a pair of tokens"),
    ({"model.merges.0": ["a"]}, "is not a pair of tokens"),
    ({"model.merges.0": 5}, "is not a pair of tokens"),
    ({"model.merges.0": [["a"], "b"]}, "is not a pair of tokens"),
    ({"model.merges.0": ["a", "zz"]}, "is of tokens not in the vocabulary"),
    ({"model.merges.0": ["", "a"]}, "is of tokens not in the vocabulary"),
    ({"decoder": None}, "its decoder has no type"),
    ({"decoder": {"type": "Metaspace"}}, "is not a byte-level tokenizer"),
    ({"normalizer": REPLACE}, "its normalizer Replace changes text"),
    ({"normalizer": sequence(*[REPLACE] * 8, key="normalizers")}, "normalizer Replace"),
    ({"normalizer": sequence(*[{"type": "NFC"}] * 9, key="normalizers")}, "at most 8 normalizers"),
    ({"normalizer": {"type": "Sequence"}}, "at most 8 normalizers"),
    ({"normalizer": sequence(sequence(key="normalizers"), key="normalizers")}, "normalizer Sequ"),
    ({"normalizer": {"type": "Precompiled", "precompiled_charsmap": "AAAA"}}, "Precompiled"),
    ({"normalizer": {"type": "NFKC"}}, "its normalizer NFKC changes text"),
    ({"normalizer": {"type": "Lowercase"}}, "its normalizer Lowercase changes text"),
    ({"normalizer": {"type": ["NFC"]}}, "its normalizer has no type"),
    ({"pre_tokenizer": None}, "does not end in its only ByteLevel"),
    ({"pre_tokenizer": WHOLE}, "does not cut text into words"),
    ({"pre_tokenizer": {**BYTE_LEVEL, "add_prefix_space": True}}, "add_prefix_space"),
    ({"pre_tokenizer": sequence(BYTE_LEVEL, BYTE_LEVEL)}, "does not end in its only ByteLevel"),
    ({"pre_tokenizer": sequence(WHOLE, split(KNOWN_PATTERNS[0]))}, "end in its only ByteLevel"),
    ({"pre_tokenizer": sequence(*[BYTE_LEVEL] * 9)}, "at most 8 pretokenizers"),
    ({"pre_tokenizer": sequence({"type": "WhitespaceSplit"}, BYTE_LEVEL)}, "WhitespaceSplit"),
    ({"pre_tokenizer": sequence(split("(a*)*b"), WHOLE)}, "unknown pattern"),
    ({"pre_tokenizer": sequence({"type": "Split", "pattern": 3}, WHOLE)}, "unknown pattern 3"),
    ({"pre_tokenizer": sequence(split(KNOWN_PATTERNS[0], "Removed"), WHOLE)}, "behavior and inv"),
    (
        {"pre_tokenizer": sequence({"type": "Punctuation", "behavior": "Removed"}, BYTE_LEVEL)},
        "its Punctuation has the behavior 'Removed'",
    ),
    ({"post_processor": {"type": "Strange"}}, "post_processor Strange is unknown"),
    ({"post_processor.single": [{"Sequence": {"id": "A", "type_id": 0}}] * 2}, "the text 2 times"),
    ({"post_processor.single": [{}] * 65}, "no short list"),
    ({"post_processor.single": [5, {"Sequence": {}}]}, "a piece that is not an object"),
    ({"added_tokens": {}}, "added_tokens is not a list"),
    ({"added_tokens": [{}] * 2001}, "added_tokens is not a list of at most 2,000"),
    ({"added_tokens.0": "x"}, "an added token is not a string"),
    ({"added_tokens.0.content": ""}, "an added token is not a string"),
    ({"added_tokens.0.content": "x" * 201}, "an added token is not a string of 1 to 200"),
    ({"added_tokens.0.id": 2**31}, "has the id 2147483648"),
    ({"added_tokens.0.id": 7}, "and another share id 7"),
    ({"added_tokens.2.content": "<|im_end|>"}, "and another share id"),
    ({"added_tokens.2.id": 400}, "the added token '<think>' cannot have the id 400"),
    ({"added_tokens.2.lstrip": True}, "has lstrip, rstrip or single_word"),
    ({"added_tokens.2.single_word": True}, "has lstrip, rstrip or single_word"),
    ({"added_tokens.2.special": "yes"}, "is not a tokenizer"),
    ({"version": 7}, "is not a tokenizer"),
]


@pytest.mark.parametrize(("changes", "problem"), REFUSED)
def test_what_is_not_allowed_is_refused_by_name(content, changes, problem, tmp_path):
    with pytest.raises(AGI2Error, match=rf"tokenizer\.json .*{problem}"):
        load(changed(content, changes), tmp_path)


@pytest.mark.parametrize("ignore_merges", [False, True])
def test_a_token_of_text_that_is_called_special_is_refused(content, ignore_merges, tmp_path):
    word = max(content["model"]["vocab"], key=lambda token: len(token) * token.isalpha())
    for token in (word, "a"):
        special = {**content["added_tokens"][0], "content": token}
        special["id"] = content["model"]["vocab"][token]
        broken = changed(content, {"added_tokens.2": special})
        broken["model"]["ignore_merges"] = ignore_merges
        with pytest.raises(AGI2Error, match=f"'{token}' is a token of text, too"):
            load(broken, tmp_path)


def test_a_token_of_text_that_only_ignored_merges_reach_is_tried(content, tmp_path):
    ids = {"model.vocab.zq": 319, "added_tokens.1.id": 320, "added_tokens.2.id": 321}
    broken = changed(content, {**ids, "model.ignore_merges": True})
    broken["added_tokens"].append({**content["added_tokens"][0], "content": "zq", "id": 319})
    with pytest.raises(AGI2Error, match="loses text: 'zq' is decoded as ''"):
        load(broken, tmp_path)


def test_a_file_that_is_too_large_is_not_read(content, tmp_path, monkeypatch):
    monkeypatch.setattr(tokenizer_file, "MAX_FILE_BYTES", 1000)
    with pytest.raises(AGI2Error, match="is not a tokenizer: it has over"):
        load(content, tmp_path)


def test_a_file_nested_too_deeply_is_one_line(tmp_path):
    (tmp_path / "tokenizer.json").write_text('{"model":' * 100_000, encoding="utf-8")
    with pytest.raises(AGI2Error, match="is not a tokenizer"):
        load_tokenizer(tmp_path)


def test_a_file_that_cannot_be_read_is_named(tmp_path, monkeypatch):
    monkeypatch.setattr(
        "builtins.open", lambda *_, **__: (_ for _ in ()).throw(OSError(5, "broken"))
    )
    with pytest.raises(AGI2Error, match=r"x cannot be read: broken"):
        tokenizer_file.read_bounded(tmp_path / "x")


def test_a_panic_is_one_line_and_an_interrupt_none():
    class Panic(BaseException):
        pass

    with pytest.raises(AGI2Error, match="broken: at line 3"), convert_library_errors("broken"):
        raise Panic("at line 3")
    with pytest.raises(KeyboardInterrupt), convert_library_errors("broken"):
        raise KeyboardInterrupt


def paths(value, path=()):
    yield path
    items = value.items() if isinstance(value, dict) else enumerate(value)
    for key, inside in items:
        if isinstance(inside, dict | list):
            yield from paths(inside, (*path, key))
        else:
            yield (*path, key)


strange = st.one_of(
    st.none(),
    st.booleans(),
    st.sampled_from([-1, 0, 1, 320, 2**31, 2**64, 10**30, 0.5, float("nan"), "", "a", "\ud800"]),
    st.sampled_from([[], {}, [[]], {"type": "Sequence"}, {"type": "BPE"}, {"type": "ByteLevel"}]),
    st.text(string.printable, max_size=4),
)


@settings(deadline=None, max_examples=30)
@given(data=st.data())
def test_a_file_with_anything_changed_works_or_is_one_line(data, content, tmp_path_factory):
    broken = copy.deepcopy(content)
    for _ in range(data.draw(st.integers(1, 3))):
        *parents, last = data.draw(st.sampled_from([p for p in paths(broken) if p]))
        inside = broken
        for key in parents:
            inside = inside[key]
        what = data.draw(st.sampled_from(["remove", "change", "repeat"]))
        if what == "change":
            inside[last] = data.draw(strange)
        elif what == "repeat" and isinstance(inside, list):
            inside += inside[: data.draw(st.integers(0, 9))]
        else:
            del inside[last]
    folder = tmp_path_factory.mktemp("mutated")
    try:
        tokenizer = load(broken, folder)
    except AGI2Error as error:
        assert all(len(line) <= MAX_LINE_LENGTH for line in error.args)  # noqa: PT017
        return
    for text in (*ROUND_TRIP_SAMPLES, TEXT):
        assert tokenizer.decode(tokenizer.encode(text)) == tokenizer.preprocess(text)


def test_the_samples_hold_characters_of_every_length():
    lengths = {len(character.encode()) for sample in ROUND_TRIP_SAMPLES for character in sample}
    assert lengths == {1, 2, 3, 4}
