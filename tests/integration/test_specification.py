"""Every signature of the specification, by position and by keyword."""

from types import SimpleNamespace

import pytest
import torch
import torch.nn.functional as F

from src.attention import MultiHeadAttention
from src.config import GPT2Config
from src.config_loader import load_config
from src.cuda_utils import cuda_available, memory_stats, select_device
from src.dataset import TextDataset
from src.embeddings import PositionEmbeddings, TokenEmbeddings
from src.ffn import FeedForward
from src.generation import generate_text
from src.interactive import InteractivePrompt
from src.model import GPT2Model
from src.tokenizer import BasicTokenizer, BPETokenizer
from src.training import train_epoch, train_model
from src.transformer import TransformerBlock
from tests.conftest import make_text

CONFIG = GPT2Config(vocab_size=20, max_seq_len=8, d_model=8, n_layers=1, n_heads=2, dropout=0.0)


def make_model():
    torch.manual_seed(0)
    return GPT2Model(CONFIG)


@pytest.fixture
def world(tmp_path):
    """What the calls are given: the same each time it is made."""
    corpus = tmp_path / "corpus.txt"
    corpus.write_text(make_text(60), encoding="utf-8")
    toml = tmp_path / "run.toml"
    toml.write_text(f'sources = ["{corpus.as_posix()}"]\nmodel_name = "run"\n', encoding="utf-8")
    tokenizer = BasicTokenizer()
    tokenizer.fit([make_text(60)])
    return SimpleNamespace(
        corpus=str(corpus),
        toml=str(toml),
        out=tmp_path / "trained",
        tokenizer=tokenizer,
        tokens=torch.arange(6).view(2, 3),
        x=torch.arange(48.0).view(2, 3, 8) / 48,
        mask=torch.ones(3, 3, dtype=torch.bool).tril(),
    )


def seeded(kind):
    """A constructor that draws the same weights each time, in evaluation mode."""

    def make(*args, **kwargs):
        torch.manual_seed(0)
        return kind(*args, **kwargs).eval()

    return make


def epoch_arguments(world):
    model = make_model()
    return {
        "model": model,
        "dataloader": [world.tokens],
        "optimizer": torch.optim.SGD(model.parameters(), lr=0.1),
        "criterion": F.cross_entropy,
        "device": "cpu",
        "clip_grad_norm": 1.0,
    }


def _same(result):
    return result


# A function from the world to what is called, its arguments in the order of the specification, and
# what of the result is compared.
SIGNATURES = {
    "1 TokenEmbeddings": lambda w: (
        seeded(TokenEmbeddings),
        {"vocab_size": 20, "d_model": 8},
        lambda made: (made(w.tokens), made.forward(tokens=w.tokens)),
    ),
    "1 forward": lambda w: (seeded(TokenEmbeddings)(20, 8).forward, {"tokens": w.tokens}, _same),
    "2 PositionEmbeddings": lambda w: (
        seeded(PositionEmbeddings),
        {"max_seq_len": 8, "d_model": 4},
        lambda made: made(5),
    ),
    "2 forward": lambda w: (PositionEmbeddings(8, 4).forward, {"seq_len": 5}, _same),
    "3 MultiHeadAttention": lambda w: (
        seeded(MultiHeadAttention),
        {"d_model": 8, "n_heads": 2, "dropout": 0.1},
        lambda made: made(w.x, w.x, w.x),
    ),
    "3 forward": lambda w: (
        seeded(MultiHeadAttention)(8, 2).forward,
        {"query": w.x, "key": 2 * w.x, "value": 3 * w.x, "mask": w.mask},
        _same,
    ),
    "4 FeedForward": lambda w: (
        seeded(FeedForward),
        {"d_model": 8, "d_ff": 16, "dropout": 0.1},
        lambda made: made(w.x),
    ),
    "4 forward": lambda w: (seeded(FeedForward)(8, 16).forward, {"x": w.x}, _same),
    "5 TransformerBlock": lambda w: (
        seeded(TransformerBlock),
        {"d_model": 8, "n_heads": 2, "d_ff": 16, "dropout": 0.1},
        lambda made: made(w.x),
    ),
    "5 forward": lambda w: (
        seeded(TransformerBlock)(8, 2, 16).forward,
        {"x": w.x, "mask": w.mask},
        _same,
    ),
    "6 GPT2Model": lambda w: (
        seeded(GPT2Model),
        {"config": CONFIG},
        lambda made: made(w.tokens),
    ),
    "6 forward": lambda w: (
        make_model().eval().forward,
        {"input_ids": w.tokens, "attention_mask": torch.ones_like(w.tokens)},
        _same,
    ),
    "7 encode": lambda w: (w.tokenizer.encode, {"text": "the sea"}, _same),
    "7 decode": lambda w: (w.tokenizer.decode, {"tokens": w.tokenizer.encode("the sea")}, _same),
    "8 BPETokenizer": lambda w: (
        BPETokenizer,
        {"vocab_size": 300},
        lambda made: made.fit([make_text(60)]) or made.encode(text="the whale"),
    ),
    "9 TextDataset": lambda w: (
        TextDataset,
        {"sources": w.corpus, "tokenizer": w.tokenizer, "seq_len": 5},
        lambda made: (len(made), made[0], made.__getitem__(1)),
    ),
    "10 train_epoch": lambda w: (train_epoch, epoch_arguments(w), _same),
    "11 train_model": lambda w: (
        lambda *args, **kwargs: train_model(
            *args, output_dir=w.out, max_steps=2, sample_tokens=0, **kwargs
        ),
        {"model": make_model(), "tokenizer": w.tokenizer, "sources": w.corpus, "epochs": 1},
        lambda history: (history["train_loss"], history["val_loss"], history["steps"]),
    ),
    "12 generate_text": lambda w: (
        generate_text,
        {
            "model": make_model(),
            "prompt": "the ",
            "max_length": 5,
            "temperature": 0.0,
            "top_k": 5,
            "top_p": 0.9,
            "tokenizer": w.tokenizer,
            "device": "cpu",
        },
        _same,
    ),
    "13 InteractivePrompt": lambda w: (
        InteractivePrompt,
        {"model": make_model(), "max_context_length": 6, "tokenizer": w.tokenizer},
        lambda made: (made.max_context_length, made.clear_context()),
    ),
    "13 send_message": lambda w: (
        InteractivePrompt(
            make_model(), max_context_length=6, tokenizer=w.tokenizer, temperature=0.0, max_length=2
        ).send_message,
        {"text": "the"},
        _same,
    ),
    "14 load_config": lambda w: (load_config, {"path": w.toml, "kind": "training"}, dict),
    "15 cuda_available": lambda w: (cuda_available, {}, _same),
    "15 select_device": lambda w: (select_device, {"preference": "cpu"}, _same),
    "15 memory_stats": lambda w: (memory_stats, {"device": "cpu"}, type),
}


@pytest.mark.parametrize("name", SIGNATURES)
def test_signatures_work_by_position_and_by_keyword(world, name):
    by_position, arguments, look = SIGNATURES[name](world)
    positional = look(by_position(*arguments.values()))
    by_keyword, arguments, look = SIGNATURES[name](world)
    keyword = look(by_keyword(**dict(reversed(arguments.items()))))
    if isinstance(positional, torch.Tensor):
        assert torch.equal(keyword, positional)
    else:
        assert str(keyword) == str(positional)
