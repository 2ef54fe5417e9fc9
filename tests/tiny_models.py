"""Tiny models, and their twins in `transformers`: for the model's tests and its writers'."""

from __future__ import annotations

import contextlib
import copy
from collections.abc import Iterator
from unittest import mock

import torch

from src.config import Config, GPT2Config
from src.formats.huggingface import their_config, to_their_layout
from src.formats.model_dir import save_model
from src.model import GPT2Model
from src.tokenizer import BasicTokenizer, BPETokenizer
from src.train import setup


def random_model(seed: int = 0, std: float = 0.3, **config) -> GPT2Model:
    """A model whose weights are large enough that its logits differ clearly; no dropout."""
    sizes = {"vocab_size": 29, "max_seq_len": 16, "d_model": 16, "n_layers": 2, "n_heads": 2}
    model = GPT2Model(GPT2Config(**{**sizes, "dropout": 0.0, **config}))
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.normal_(std=std, generator=generator)
    return model.eval()


def scheduled_model(logits: torch.Tensor) -> GPT2Model:
    """A model whose logits after position i are row i of (T, V), whatever tokens stand there."""
    positions, vocab_size = logits.shape
    width = positions + 1  # one more, so that even one position has a spread to normalise
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
        # The final norm makes sqrt(T) and -1/sqrt(T) out of each one-hot position, and back.
        model.position_embeddings.weight.fill_diagonal_(100.0)
        model.final_norm.weight.fill_(positions**0.5 / width)
        model.final_norm.bias.fill_(1 / width)
        model.head.weight[:, :positions] = logits.t()
    return model.eval()


def reciting_model(vocab_size: int, script: list[int]) -> GPT2Model:
    """A model that writes `script[i]` after the token at position i."""
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
    """Bytes alone: a token for each character of plain English, and the end of a text."""
    tokenizer = BPETokenizer(257)
    tokenizer.fit([""])
    return tokenizer


def saved_model(folder, seed=0, **changes):
    model = tiny_model(seed, **changes)
    save_model(model, alphabet(), tiny_config(**changes), folder)
    return model


def transformers_twin(config: GPT2Config):
    """`transformers`' model of the same shape."""
    from transformers import GPT2Config as TheirConfig
    from transformers import GPT2LMHeadModel

    return GPT2LMHeadModel(
        TheirConfig(**their_config(config), bos_token_id=0, eos_token_id=0)
    ).eval()


def exact_logits(model, tokens: torch.Tensor, **options) -> torch.Tensor:
    """The logits in float64, of one of our models or of `transformers`', which stays as it is."""
    with torch.no_grad():
        found = copy.deepcopy(model).double()(tokens, **options)
    return getattr(found, "logits", found)


@contextlib.contextmanager
def training_in_float64() -> Iterator[None]:
    """Train float64 models, in which a fault is far above the rounding (see `bounds`).

    What AdamW enlarges most is the error d of a gradient that is 0 but for rounding, as a key
    bias's is: a step moves the weight by lr / epsilon = 10^6 d at most. Softmax's gradients, which
    add up to 0, are so small that d is below u / 1,000: 10^3 u a step, of the 10^7 u allowed.
    """
    with mock.patch.object(setup, "GPT2Model", lambda config: GPT2Model(config).double()):
        yield


def in_their_layout(weights: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Our weights as the twin loads them: with a tied head, too."""
    theirs = to_their_layout(weights)
    theirs.setdefault("lm_head.weight", theirs["transformer.wte.weight"])
    return theirs
