import pytest
import torch

from src.config import Config
from src.data.chat_template import ChatTemplate
from src.formats.model_dir import save_model
from src.model import GPT2Model
from tests.serve.clients import Client, RealServer, sources
from tests.tiny_models import alphabet, byte_tokenizer


def _save(folder, name, tokenizer, seed, **changes):
    config = Config(
        vocab_size=tokenizer.vocab_size,
        model_layer=2,
        model_head=2,
        model_embd=32,
        model_positions=48,
        model_name=name,
        output_dir=str(folder),
        device="cpu",
        **changes,
    )
    model = GPT2Model(config).eval()
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.normal_(std=0.25, generator=generator)
    save_model(model, tokenizer, config, folder / name, verbose=False)


@pytest.fixture(scope="session")
def models(tmp_path_factory):
    """A folder with two models: `plain` knows letters; `chatty`, bytes and a chat template."""
    folder = tmp_path_factory.mktemp("models")
    _save(folder, "plain", alphabet(), 1)
    tokenizer = byte_tokenizer()
    ChatTemplate.add_to(tokenizer)
    _save(folder, "chatty", tokenizer, 2)
    return folder


@pytest.fixture(scope="module")
def client(models):
    """A client of both models."""
    client = Client(sources(models))
    yield client
    client.close()


@pytest.fixture(scope="module")
def server(models):
    """A real server of both models."""
    server = RealServer(sources(models))
    yield server
    server.close()
