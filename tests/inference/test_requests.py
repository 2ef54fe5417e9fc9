import pytest

from src.config_keys import GenerationConfig
from src.errors import AGI2Error
from src.inference.requests import checked_prompts, encode_prompt, prompt_text, text_request
from tests.tiny_models import alphabet, tiny_model


def test_a_prompt_is_the_same_as_text_and_as_token_ids():
    tokenizer = alphabet()
    ids = tokenizer.encode("abc")
    assert encode_prompt("abc", tokenizer) == encode_prompt(iter(ids), tokenizer) == ids
    assert encode_prompt("c", tokenizer, "ab") == encode_prompt(ids[2:], tokenizer, "ab") == ids
    assert encode_prompt("", tokenizer) == encode_prompt([], tokenizer) == [tokenizer.start_of_text]
    assert prompt_text("abc", tokenizer) == prompt_text(iter(ids), tokenizer) == "abc"


@pytest.mark.parametrize("prompts", [b"ab", {"a": 1}, 5, None])
def test_prompts_of_a_batch_that_are_no_list_are_refused(prompts):
    with pytest.raises(AGI2Error, match=r"^prompts must be a list of texts or of token ids, not "):
        checked_prompts(prompts)


def test_a_request_ends_with_the_tokenizers_end_tokens_and_has_the_models_positions():
    model, tokenizer = tiny_model(), alphabet()
    request = text_request(
        tokenizer.encode("ab" * 20), GenerationConfig(max_length=3), model, tokenizer, top=2
    )
    assert request.end_tokens == tuple(tokenizer.end_tokens)
    assert (len(request.window), request.prompt_length, request.top) == (12, 40, 2)
    with pytest.raises(AGI2Error, match="the prompt has a token above the vocabulary of 28"):
        text_request([28], GenerationConfig(max_length=3), model, tokenizer)
    with pytest.raises(AGI2Error, match="a named token is not in the vocabulary of 28 tokens"):
        text_request([1], GenerationConfig(), model, tokenizer, named_tokens=[3, 28])


def test_a_request_has_its_own_number_of_tokens_and_log_probabilities():
    request = text_request(
        [1, 2],
        GenerationConfig(max_length=3),
        tiny_model(),
        alphabet(),
        named_tokens=[3],
        prompt_logprobs=True,
        max_new_tokens=0,
    )
    assert (request.max_new_tokens, request.needs_logprobs, request.needs_prompt_logprobs) == (
        0,
        True,
        True,
    )
