import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from src.inference.detokenizer import StreamDecoder
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
