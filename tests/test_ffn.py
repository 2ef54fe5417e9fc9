import pytest
import torch
from torch import nn
from torch.multiprocessing.reductions import StorageWeakRef

from src.config import GPT2Config
from src.errors import AGI2Error
from src.ffn import FeedForward
from src.model import GPT2Model
from tests.bounds import Bounded, assert_same_in_float64, assert_within, by_chance
from tests.nn.kernels import needs_library

TORCHS_OWN = {
    "gelu_tanh": nn.GELU(approximate="tanh"),
    "gelu": nn.GELU(),
    "relu": nn.ReLU(),
    "silu": nn.SiLU(),
}


@pytest.mark.parametrize("name", TORCHS_OWN)
@pytest.mark.parametrize("bias", [True, False])
@torch.no_grad()
def test_two_linear_layers_around_each_activation(name, bias):
    ffn = FeedForward(6, 10, 0.0, activation=name, bias=bias)
    x = 3 * torch.randn(2, 5, 6)
    out = ffn(x)
    hidden = Bounded(x).linear(ffn.expand.weight, ffn.expand.bias)
    hidden = hidden.activation(TORCHS_OWN[name], 1.13)
    expected = hidden.linear(ffn.contract.weight, ffn.contract.bias)
    assert_within(out, expected.exact, expected.error)


@needs_library
@pytest.mark.parametrize("is_checkpointed", [True, False])
def test_the_activation_is_recomputed_and_a_checkpoint_keeps_nothing(is_checkpointed):
    torch.manual_seed(0)
    sizes = {"vocab_size": 7, "max_seq_len": 8, "d_model": 8, "n_layers": 1, "n_heads": 2}
    model = GPT2Model(
        GPT2Config(**sizes, dropout=0.0, gradient_checkpointing=is_checkpointed)
    ).train()
    ffn, kept = model.blocks[0].ffn, []

    def note(_, given, out):
        kept.extend(StorageWeakRef(each.untyped_storage()) for each in (given[0], out))

    ffn.contract.register_forward_hook(note)
    ffn.expand.register_forward_hook(note)
    out = model(torch.arange(7)[None])
    _, hidden, activated, _ = kept[:4]
    assert hidden.expired() is is_checkpointed
    assert activated.expired()
    out.square().sum().backward()
    found = [p.grad for p in model.parameters()]
    ffn.recomputes = False
    expected = torch.autograd.grad(model(torch.arange(7)[None]).square().sum(), model.parameters())
    assert all(map(torch.equal, found, expected))


def test_gelu_in_gpt2s_form_is_the_default():
    torch.manual_seed(0)
    default = FeedForward(4, 8, 0.0)
    x = 3 * torch.randn(50, 4)
    default_out = default(x)
    for name, is_same in (("gelu_tanh", True), ("gelu", False)):
        other = FeedForward(4, 8, 0.0, activation=name)
        other.load_state_dict(default.state_dict())
        assert torch.equal(other(x), default_out) is is_same


def test_each_token_is_treated_alone():
    ffn = FeedForward(4, 8, 0.0).double()  # where a fault is far above the rounding
    x = torch.randn(2, 3, 4, dtype=torch.float64)
    alone = torch.stack([torch.stack([ffn(token) for token in row]) for row in x])
    assert_same_in_float64(ffn(x), alone)


def test_dropout_follows_both_layers_in_training_only():
    torch.manual_seed(0)
    ffn = FeedForward(40, 60, 0.5)
    x = torch.randn(100, 40)
    hidden, out = [], []
    ffn.contract.register_forward_pre_hook(lambda _, args: hidden.append(args[0]))
    for _ in range(2):
        out.append(ffn(x))
        ffn.eval()
    for trained, clean in (hidden, out):
        share = float((trained == 0).double().mean())
        assert share == pytest.approx(0.5, abs=by_chance(0.5, trained.numel()))
        assert bool((clean != 0).all())


def test_an_unknown_activation_is_an_error_that_names_the_known():
    with pytest.raises(AGI2Error, match=r"^activation must be one of gelu_tanh, gelu, relu, silu"):
        FeedForward(4, 8, activation="tanh")
