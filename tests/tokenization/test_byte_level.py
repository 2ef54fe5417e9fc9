"""GPT-2's alphabet of bytes."""

import codecs

from tokenizers import decoders, pre_tokenizers

from src.tokenization.byte_level import BYTE_OF, token_to_bytes


def test_the_byte_alphabet_is_gpt2s():
    assert set(BYTE_OF) == set(pre_tokenizers.ByteLevel.alphabet())
    assert sorted(BYTE_OF) == list(BYTE_OF)
    assert sorted(BYTE_OF.values()) == list(range(256))
    decoder = decoders.ByteLevel()
    for character, byte in BYTE_OF.items():
        replaced = codecs.decode(bytes([byte]), "utf-8", "replace")
        assert decoder.decode([character]) == replaced


def test_tokens_that_are_not_of_the_alphabet_are_their_own_text():
    assert token_to_bytes("\u0120the") == b" the"
    assert token_to_bytes("\u9be8") == "\u9be8".encode()
