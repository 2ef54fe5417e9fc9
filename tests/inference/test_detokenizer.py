import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from src.config_keys import GenerationConfig
from src.inference.detokenizer import IncrementalDetokenizer, StreamDecoder
from src.tokenizer import BPETokenizer
from tests.test_tokenizer import CORPUS

quick = settings(deadline=None, max_examples=40)


@pytest.fixture(scope="module")
def bpe():
    tokenizer = BPETokenizer(300)
    tokenizer.fit(CORPUS)
    return tokenizer


@quick
@given(ids=st.lists(st.integers(0, 299), max_size=40))
def test_stream_pieces_join_to_the_decoded_text(bpe, ids):
    stream = StreamDecoder(bpe)
    pieces = [stream.push(id) for id in ids]
    assert "".join(pieces) + stream.flush() == bpe.decode(ids)


@quick
@given(text=st.text(max_size=30))
def test_a_stream_never_splits_a_character(bpe, text):
    stream = StreamDecoder(bpe)
    shown = ""
    for id in bpe.encode(text):
        shown += stream.push(id)
        assert text.startswith(shown)
    assert shown + stream.flush() == text


def test_an_unfinished_character_is_flushed_as_a_replacement(bpe):
    stream = StreamDecoder(bpe)
    assert stream.push(bpe.encode("🦑")[0]) == ""
    assert stream.flush() == "\ufffd"


@quick
@given(text=st.text(max_size=12), data=st.data())
def test_a_text_that_is_cut_anywhere_and_continued_is_the_text(bpe, text, data):
    ids = bpe.encode(text)
    ends = sorted(data.draw(st.lists(st.integers(0, len(ids)), max_size=3)))
    found = ""
    for start, end in zip([0, *ends], [*ends, len(ids)], strict=True):
        detokenizer = IncrementalDetokenizer(
            bpe, GenerationConfig(), continues=ids[:start], drops_incomplete=True
        )
        for id in ids[start:end]:
            detokenizer.push(id)
        detokenizer.finish(is_cut=True)
        found += detokenizer.text
        assert text.startswith(found)
    assert found == text


def test_a_text_that_has_ended_within_a_character_is_marked(bpe):
    for drops_incomplete in (False, True):
        detokenizer = IncrementalDetokenizer(
            bpe, GenerationConfig(), drops_incomplete=drops_incomplete
        )
        detokenizer.push(bpe.encode("🦑")[0])
        assert detokenizer.finish() == "\ufffd"
