"""Tiny models and their equivalents in `transformers`, for tests of the model and its exporters."""

from __future__ import annotations

import contextlib
import copy
from collections.abc import Iterator
from unittest import mock

import torch

from src.config import Config, GPT2Config
from src.formats.huggingface_config import to_hf_config
from src.formats.huggingface_weights import to_hf_state_dict
from src.formats.model_dir import save_model
from src.model import GPT2Model
from src.tokenizer import BasicTokenizer, BPETokenizer
from src.train import setup


def random_model(seed: int = 0, std: float = 0.3, **config) -> GPT2Model:
    """Return a model in eval mode, with weights large enough for clearly different logits."""
    sizes = {"vocab_size": 29, "max_seq_len": 16, "d_model": 16, "n_layers": 2, "n_heads": 2}
    model = GPT2Model(GPT2Config(**{**sizes, "dropout": 0.0, **config}))
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.normal_(std=std, generator=generator)
    return model.eval()


def scheduled_model(logits: torch.Tensor) -> GPT2Model:
    """Return a model whose logits at position i are row i of `logits` (T, V) for any tokens."""
    positions, vocab_size = logits.shape
    width = positions + 1  # one more: the layer norm of a width of 1 would be 0
    model = GPT2Model(
        GPT2Config(
            vocab_size=vocab_size,
            max_seq_len=positions,
            d_model=width,
            d_ff=1,
            n_layers=1,
            n_heads=1,
            dropout=0.0,
            position_embedding="learned",
            tie_weights=False,
        )
    )
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.zero_()
        # The final norm maps each one-hot position to sqrt(T) and -1/sqrt(T); its weight and bias
        # map these back to 1 and 0.
        model.position_embeddings.weight.fill_diagonal_(100.0)
        model.final_norm.weight.fill_(positions**0.5 / width)
        model.final_norm.bias.fill_(1 / width)
        model.head.weight[:, :positions] = logits.t()
    return model.eval()


def reciting_model(vocab_size: int, script: list[int]) -> GPT2Model:
    """Return a model whose most likely token after position i is `script[i]`."""
    return scheduled_model(100.0 * torch.nn.functional.one_hot(torch.tensor(script), vocab_size))


def tiny_config(**changes):
    given = {
        "vocab_size": 28,
        "model_layer": 2,
        "model_head": 2,
        "model_embd": 16,
        "model_positions": 12,
    }
    return Config(**{**given, **changes})


def tiny_model(seed=0, **changes):
    torch.manual_seed(seed)
    return GPT2Model(tiny_config(**changes)).eval()


def alphabet():
    return BasicTokenizer("abcdefghijklmnopqrstuvwxyz")


def byte_tokenizer():
    """Return a byte-level tokenizer without merges: 256 bytes and the end-of-text token."""
    tokenizer = BPETokenizer(257)
    tokenizer.fit([""])
    return tokenizer


def saved_model(folder, seed=0, **changes):
    model = tiny_model(seed, **changes)
    save_model(model, alphabet(), tiny_config(**changes), folder)
    return model


def transformers_twin(config: GPT2Config):
    """Return a `transformers` model of the same architecture, with random weights."""
    from transformers import GPT2Config as TheirConfig
    from transformers import GPT2LMHeadModel

    return GPT2LMHeadModel(
        TheirConfig(**to_hf_config(config), bos_token_id=0, eos_token_id=0)
    ).eval()


def exact_logits(model, tokens: torch.Tensor, **options) -> torch.Tensor:
    """Return the logits in float64 of a model, ours or of `transformers`, which is not changed."""
    with torch.no_grad():
        found = copy.deepcopy(model).double()(tokens, **options)
    return getattr(found, "logits", found)


@contextlib.contextmanager
def training_in_float64() -> Iterator[None]:
    """Train models in float64, so that incorrect results exceed the rounding error (see `bounds`).

    AdamW amplifies most the error d of a gradient that is exactly 0, such as that of a key bias: a
    step moves the weight by up to d lr / epsilon = 10^6 d. Softmax's gradients, which sum to 0, are
    so small that d is below u / 1,000: 10^3 u per step, of the 10^7 u allowed.
    """
    with mock.patch.object(setup, "GPT2Model", lambda config: GPT2Model(config).double()):
        yield


def in_their_layout(weights: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Convert our weights to the state dict of `transformers_twin`, including a tied head."""
    theirs = to_hf_state_dict(weights)
    theirs.setdefault("lm_head.weight", theirs["transformer.wte.weight"])
    return theirs
