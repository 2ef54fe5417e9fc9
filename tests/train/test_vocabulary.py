"""Embeddings of new tokens; the roles of conversations in the vocabulary of a trained model."""

import pytest
import torch

from src.data.chat_template import ChatTemplate
from src.errors import AGI2Error
from src.formats.model_dir import save_model
from src.inference.prepare import prepare_for_generation
from src.nn.lora import is_lora
from src.tokenizer import END_OF_TURN, ROLE_TOKENS, BPETokenizer
from src.train import setup
from src.train.arguments import configuration_of
from src.train.distributed import ProcessGroup
from src.train.optimizer import make_optimizers
from src.train.vocabulary import extend_vocabulary, role_ids
from src.training import make_trainer
from tests.data.chats import messages_lines, random_conversations
from tests.tiny_models import random_model, tiny_config

TOKENS = torch.arange(24).view(2, 12)


def tokenizer_of(has_roles):
    tokenizer = BPETokenizer(260)
    tokenizer.fit(["the old whale"], verbose=False)
    if has_roles:
        ChatTemplate.add_to(tokenizer)
    return tokenizer


@pytest.mark.parametrize("is_tied", [True, False])
@pytest.mark.parametrize("first", [29, 25])
def test_new_tokens_have_the_mean_and_the_others_keep_their_logits(is_tied, first):
    model = random_model(tie_weights=is_tied)
    before = model(TOKENS)
    weight = model.output_weight.detach()
    extend_vocabulary(model, first, 31)
    assert model.config.vocab_size == 31
    assert torch.equal(model(TOKENS)[..., :first], before[..., :first])
    expected = weight[:first].mean(0).expand(31 - first, -1)
    assert torch.equal(model.output_weight[first:], expected)
    assert model.token_embeddings.weight.shape == model.output_weight.shape
    assert model.output_weight.requires_grad
    if not is_tied:
        assert model.head.out_features == 31


def test_known_rows_are_enough_for_a_padded_vocabulary():
    model = random_model(vocab_size=40)
    extend_vocabulary(model, 29, 33)
    assert model.config.vocab_size == len(model.output_weight) == 40


@pytest.mark.parametrize("padding", [0, 2, 9])
@pytest.mark.parametrize("lora_rank", [None, 2])
def test_a_pretrained_model_gets_the_tokens_of_the_roles(tmp_path, padding, lora_rank):
    old = tokenizer_of(has_roles=False)
    pretrained = random_model(vocab_size=old.vocab_size + padding)
    save_model(pretrained, old, tiny_config(), tmp_path)
    config = tiny_config(
        **pretrained.config.to_keys(),
        init_from=str(tmp_path),
        lora_rank=lora_rank,
        conversations=["chats.jsonl"],
    )
    tokenizer = tokenizer_of(has_roles=True)
    process_group = ProcessGroup(torch.device("cpu"))
    model, config = setup.make_model(config, tokenizer, process_group)
    assert config.vocab_size == max(pretrained.config.vocab_size, tokenizer.vocab_size)
    known = pretrained.output_weight[: old.vocab_size]
    assert torch.equal(model.output_weight[: old.vocab_size], known)
    for id in role_ids(tokenizer):
        assert torch.equal(model.output_weight[id], known.mean(0))
    if lora_rank is None:
        return
    model(TOKENS).square().sum().backward()
    for optimizer in make_optimizers(model, config):
        optimizer.step()
    changed = (model.output_weight[: tokenizer.vocab_size] != known.mean(0)).any(1)
    assert changed[role_ids(tokenizer)].all()
    assert torch.equal(model.output_weight[: old.vocab_size], known)  # no decay


def test_a_given_model_grows_by_the_roles_and_no_more():
    tokenizer = tokenizer_of(has_roles=True)
    process_group = ProcessGroup(torch.device("cpu"))
    model = random_model(vocab_size=tokenizer.vocab_size - 4)
    setup.make_model(tiny_config(), tokenizer, process_group, model, added=4)
    assert model.config.vocab_size == tokenizer.vocab_size
    for lacking, added in ((5, 4), (1, 0), (4, 0), (4, 3)):
        other = random_model(vocab_size=tokenizer.vocab_size - lacking)
        with pytest.raises(AGI2Error, match="they do not belong together"):
            setup.make_model(tiny_config(), tokenizer, process_group, other, added=added)


@pytest.mark.parametrize("padding", [0, 3, 20])
@pytest.mark.parametrize("missing", [4, 2, 0])
def test_rows_of_new_tokens_are_the_mean_of_the_known_ones(tiny_run, tmp_path, padding, missing):
    """Padding is of no token, and rows of roles that are known stay as they were trained."""
    path = tmp_path / "chats.jsonl"
    path.write_bytes(messages_lines(random_conversations(2)))
    tokenizer = tokenizer_of(has_roles=False)
    names = [*ROLE_TOKENS.values(), END_OF_TURN]
    tokenizer.add_special_tokens(*names[missing:])
    known = tokenizer.vocab_size
    model = random_model(vocab_size=known + padding)
    before = model.output_weight.detach().clone()
    config = configuration_of(model, {**tiny_run(), "conversations": [str(path)]})
    text = setup.prepare(config, tokenizer=tokenizer)
    assert text.added == missing
    make_trainer(config, text, model)
    assert model.config.vocab_size == max(known + padding, tokenizer.vocab_size)
    weight = model.output_weight.detach()
    assert torch.equal(weight[:known], before[:known])
    assert torch.equal(weight[known : known + missing], before[:known].mean(0).expand(missing, -1))
    assert torch.equal(weight[known + missing :], before[known + missing :])


def test_lora_on_plain_text_leaves_the_roles_as_they_are(tmp_path):
    tokenizer = tokenizer_of(has_roles=True)
    pretrained = random_model(vocab_size=tokenizer.vocab_size)
    save_model(pretrained, tokenizer, tiny_config(), tmp_path)
    config = tiny_config(**pretrained.config.to_keys(), init_from=str(tmp_path), lora_rank=2)
    model, _ = setup.make_model(config, tokenizer, ProcessGroup(torch.device("cpu")))
    assert all(is_lora(name) for name, p in model.named_parameters() if p.requires_grad)


def test_a_prepared_model_is_not_extended():
    model = prepare_for_generation(random_model(), "int8")
    with pytest.raises(AGI2Error, match="it cannot be trained"):
        extend_vocabulary(model, 29, 31)


def test_a_tokenizer_without_roles_has_no_ids_of_them():
    assert role_ids(tokenizer_of(has_roles=False)) == []
