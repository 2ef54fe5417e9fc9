"""Documents as one array of tokens."""

import numpy as np
import pytest

from src.data.tokens import tokenize
from src.dataset import TextDataset
from src.tokenizer import BasicTokenizer
from tests.test_dataset import TEXT


@pytest.fixture
def tokenizer():
    return BasicTokenizer(TEXT + " .", lowercase=True)


def test_documents_are_joined_with_the_end_of_text_token(tokenizer, tmp_path):
    (tmp_path / "a.txt").write_text("one", encoding="utf-8")
    (tmp_path / "b.jsonl").write_text('{"body": "Two"}\n{"body": "three"}', encoding="utf-8")
    sources = [str(tmp_path / "b.jsonl"), str(tmp_path / "a.txt")]
    dataset = TextDataset(sources, tokenizer, 4, text_field="body")
    one, two, three = (tokenizer.encode(word) for word in ("one", "two", "three"))
    end = [tokenizer.end_of_text]
    assert dataset.tokens.tolist() == two + end + three + end + one


def test_preprocess_is_applied_to_each_document(tokenizer, tmp_path):
    (tmp_path / "a.jsonl").write_text('"abc"\n"xyz"', encoding="utf-8")
    dataset = TextDataset(str(tmp_path), tokenizer, 4, preprocess=lambda text: text[::-1])
    expected = tokenize(["cba", "zyx"], tokenizer)
    assert dataset.tokens.tolist() == expected.tolist()


@pytest.mark.parametrize(("characters", "dtype"), [(65534, np.uint16), (65535, np.uint32)])
def test_tokens_are_kept_in_the_smallest_type_without_loss(characters, dtype):
    alphabet = [chr(0x10000 + i) for i in range(characters)]
    tokenizer = BasicTokenizer(alphabet)
    tokens = tokenize([alphabet[-1] + alphabet[0], alphabet[-1]], tokenizer)
    assert tokens.dtype == dtype
    assert tokens.tolist() == [characters + 1, 2, 1, characters + 1]
    assert TextDataset.from_tokens(tokens, 2)[0].tolist() == [characters + 1, 2]


def test_no_documents_are_no_tokens(tokenizer):
    assert tokenize([], tokenizer).tolist() == []
