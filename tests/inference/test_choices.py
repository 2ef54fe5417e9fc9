import torch

from src.config_keys import GenerationConfig
from src.inference.choices import choices_of
from src.inference.detokenizer import IncrementalDetokenizer
from src.inference.sequence import Sequence
from tests.tiny_models import byte_tokenizer


def test_choices_joined_are_the_text_and_never_name_the_token_itself():
    """Of a text that ends before a stop string, and of one that ends within a character."""
    tokenizer = byte_tokenizer()
    for text, stop, shown in (("abcd", "cd", ["a", "b"]), ("a☃", (), ["a", "", "\ufffd"])):
        tokens = tokenizer.encode(text)[: 4 if stop else 3]
        given = GenerationConfig(max_length=len(tokens), stop=stop)
        detokenizer = IncrementalDetokenizer(tokenizer, given)
        sequence = Sequence([0], given, 8, detokenizer=detokenizer, top=3)
        for token in tokens:
            logits = torch.zeros(257)
            logits[token] = 3.0
            sequence.append(token, logits)
        choices = choices_of(sequence, tokenizer, 2)
        assert [choice.text for choice in choices] == shown
        for choice, token in zip(choices, tokens, strict=False):
            assert choice.token == token
            assert len(choice.runners_up) == 2
            assert token not in dict(choice.runners_up)
            assert choice.probability > choice.runners_up[0][1]
