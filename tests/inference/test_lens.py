import pytest
import torch

from src.errors import AGI2Error
from src.inference.engine import Engine
from src.inference.lens import last_attention, logit_lens
from src.inference.model_runner import ModelRunner
from src.inference.prepare import prepare_for_generation
from src.inference.sampling import sampling_config
from src.inference.sequence import Sequence
from tests.tiny_models import random_model

TOKENS = [3, 1, 4, 1, 5, 9, 2, 6]
SHAPES = [
    {},
    {"norm_position": "post", "tie_weights": False},
    {"position_embedding": "learned", "n_heads": 4},
]


def model_of(seed=0, quantize=None, **config):
    # 64 channels, which all formats support.
    model = random_model(seed, std=0.1, d_model=64, **config)
    return model if quantize is None else prepare_for_generation(model, quantize, verbose=False)


def probabilities_of(model, tokens):
    with torch.no_grad():
        return model(torch.tensor([tokens]), last_only=True)[0, -1].softmax(dim=-1)


@pytest.mark.parametrize("quantize", [None, "none", "int8", "int4"])
@pytest.mark.parametrize("config", SHAPES)
def test_the_last_layer_predicts_exactly_what_the_model_does(config, quantize):
    model = model_of(quantize=quantize, **config)
    lens = logit_lens(model, TOKENS, top=4, target=7)
    own = probabilities_of(model, TOKENS)
    best = own.topk(4)
    assert [each.layer for each in lens] == [0, 1, 2]
    assert lens[-1].best == list(zip(best.indices.tolist(), best.values.tolist(), strict=True))
    assert lens[-1].probability == float(own[7])
    assert lens[-1].rank == int((own >= own[7]).sum())


@pytest.mark.parametrize("quantize", [None, "none", "int8", "int4"])
def test_the_last_layer_is_what_the_engine_samples_from(quantize):
    model = model_of(quantize=quantize)
    request = Sequence(TOKENS, sampling_config(max_length=1, temperature=0), 16, top=29)
    Engine(ModelRunner(model, 29)).run([request])
    ours = dict(logit_lens(model, TOKENS, top=29)[-1].best)
    for token, probability in request.probabilities[0].best:
        assert ours[token] == pytest.approx(probability, rel=1e-4, abs=1e-6)


@pytest.mark.parametrize("config", SHAPES)
def test_an_early_layer_predicts_what_a_model_of_fewer_layers_does(config):
    model = model_of(n_layers=3, **config)
    lens = logit_lens(model, TOKENS, top=29)
    for layers in range(1, 3):
        shallow = model_of(n_layers=layers, **config)
        weights = {k: v for k, v in model.state_dict().items() if k in shallow.state_dict()}
        shallow.load_state_dict(weights)
        own = probabilities_of(shallow, TOKENS)
        assert {k: pytest.approx(float(own[k])) for k, _ in lens[layers].best} == dict(
            lens[layers].best
        )


def test_predictions_are_of_the_tokenizers_tokens_only():
    lens = logit_lens(model_of(), TOKENS, top=100, vocab_size=10)
    for each in lens:
        assert sorted(token for token, _ in each.best) == list(range(10))
        assert sum(probability for _, probability in each.best) == pytest.approx(1)
        assert each.probability is None
        assert each.rank is None


@pytest.mark.parametrize("quantize", [None, "none", "int8", "int4"])
@pytest.mark.parametrize("config", SHAPES)
def test_attention_is_the_softmax_of_the_models_own_scores(config, quantize):
    model = model_of(quantize=quantize, **config)
    inputs = []
    handles = [
        block.attention.register_forward_pre_hook(lambda _, args: inputs.append(args[0]))
        for block in model.blocks
    ]
    probabilities_of(model, TOKENS)
    for handle in handles:
        handle.remove()
    with torch.no_grad():
        expected = [
            block.attention(x, causal=True, need_weights=True)[1][0, :, -1]
            for block, x in zip(model.blocks, inputs, strict=True)
        ]
    weights = last_attention(model, TOKENS)
    assert weights.shape == (2, model.config.n_heads, len(TOKENS))
    torch.testing.assert_close(weights, torch.stack(expected), rtol=1e-5, atol=1e-7)
    torch.testing.assert_close(weights.sum(-1), torch.ones(2, model.config.n_heads))


def test_the_models_mode_is_kept_and_dropout_is_off():
    model = random_model(dropout=0.5).train()
    assert logit_lens(model, TOKENS) == logit_lens(model, TOKENS)
    assert torch.equal(last_attention(model, TOKENS), last_attention(model, TOKENS))
    assert model.training


@pytest.mark.parametrize("function", [logit_lens, last_attention])
def test_invalid_tokens_are_refused(function):
    model = random_model()
    with pytest.raises(AGI2Error, match="no tokens"):
        function(model, [])
    with pytest.raises(AGI2Error, match="vocabulary of 29"):
        function(model, [29])
    with pytest.raises(AGI2Error, match="17 tokens do not fit into the model's 16 positions"):
        function(model, [0] * 17)


def test_an_unknown_target_is_refused():
    with pytest.raises(AGI2Error, match="vocabulary of 10"):
        logit_lens(random_model(), TOKENS, target=10, vocab_size=10)
