"""The Hugging Face export in vLLM, whose CPU build is enough; skipped where it is not installed."""

import importlib.util
import os
import subprocess
import sys
import tempfile
from pathlib import Path

import httpx
import pytest
import torch

from src.config_loader import load_config
from src.data.chat_template import ChatTemplate
from src.formats.export import export_model
from src.formats.huggingface import export_huggingface
from src.formats.model_dir import save_model
from src.serve.models import ModelSource
from src.serve.server import bind
from tests.serve.clients import RealServer
from tests.tiny_models import byte_tokenizer, random_model, tiny_config

if importlib.util.find_spec("vllm") is None:  # before the environment is changed for other tests
    pytest.skip("vLLM is not installed", allow_module_level=True)
# Set before vLLM is imported: the engine in this process, and nothing sent anywhere.
os.environ.setdefault("VLLM_ENABLE_V1_MULTIPROCESSING", "0")
os.environ.setdefault("VLLM_NO_USAGE_STATS", "1")
os.environ.setdefault("HF_HUB_OFFLINE", "1")
vllm = pytest.importorskip("vllm")
openai = pytest.importorskip("openai")

TOLERANCE = 1e-4  # of log-probabilities in fp32
# 2**26 bytes of KV cache suffice for these models.
FLAGS = {"dtype": "float32", "enforce_eager": True, "kv_cache_memory_bytes": 2**26}
SHAPES = {
    "learned": {"position_embedding": "learned"},
    "learned, untied": {"position_embedding": "learned", "tie_weights": False},
    "sinusoidal": {},
    "no biases": {"position_embedding": "learned", "bias": False, "activation": "relu"},
    "narrow": {"position_embedding": "learned", "d_ff": 24, "activation": "gelu", "n_layers": 1},
    "heads of 64": {"position_embedding": "learned", "d_model": 128, "activation": "silu"},
}
PROMPT = [5, 200, 77, 12]


@pytest.mark.parametrize("changes", SHAPES.values(), ids=SHAPES)
def test_vllm_loads_an_export_with_the_same_log_probabilities(changes, tmp_path):
    tokenizer = byte_tokenizer()
    sizes = {"vocab_size": tokenizer.vocab_size, "d_model": 64, "max_seq_len": 24}
    model = random_model(std=0.15, **{**sizes, **changes})
    export_huggingface(model, tokenizer, tmp_path / "hf")
    options = vllm.SamplingParams(temperature=0, max_tokens=16, logprobs=3, ignore_eos=True)
    engine = vllm.LLM(str(tmp_path / "hf"), **FLAGS)
    [output] = engine.generate([{"prompt_token_ids": PROMPT}], options, use_tqdm=False)
    ids = list(PROMPT)
    for token, found in zip(output.outputs[0].token_ids, output.outputs[0].logprobs, strict=True):
        with torch.no_grad():
            expected = model(torch.tensor([ids]))[0, -1].log_softmax(-1)
        assert token == expected.argmax()
        for other, each in found.items():
            assert abs(each.logprob - expected[other]) < TOLERANCE
        ids.append(token)
    assert len(ids) == len(PROMPT) + 16


class VLLMServer:
    """vLLM's server of an export, in a process of its own."""

    def __init__(self, folder):
        listener = bind("127.0.0.1", 0)
        port = listener.getsockname()[1]
        listener.close()
        flags = ["--dtype", "float32", "--enforce-eager", "--kv-cache-memory-bytes", str(2**26)]
        flags += ["--host", "127.0.0.1", "--port", str(port), "--served-model-name", "my"]
        command = [sys.executable, "-m", "vllm.entrypoints.openai.api_server"]
        self.url = f"http://127.0.0.1:{port}"
        self.log = Path(tempfile.mkdtemp()) / "log"
        with open(self.log, "w") as log:
            self.process = subprocess.Popen(
                [*command, "--model", str(folder), *flags],
                **{"stdout": log, "stderr": log},
                env={**os.environ, "VLLM_ENABLE_V1_MULTIPROCESSING": "1"},
            )

    def is_ready(self):
        try:
            return httpx.get(f"{self.url}/health").status_code == 200
        except httpx.TransportError:
            return False

    def wait(self):
        for _ in range(1000):
            if self.is_ready():
                return
            try:
                self.process.wait(1)
            except subprocess.TimeoutExpired:
                continue
            break
        raise AssertionError(self.log.read_text()[-3000:])

    def close(self):
        self.process.terminate()
        self.process.wait()


@pytest.fixture(scope="module")
def clients(tmp_path_factory):
    """OpenAI's client of `agi2 serve`, and of vLLM, of the same model."""
    folder = tmp_path_factory.mktemp("served")
    tokenizer = byte_tokenizer()
    ChatTemplate.add_to(tokenizer)
    sizes = {"vocab_size": tokenizer.vocab_size, "d_model": 64, "max_seq_len": 128}
    model = random_model(std=0.15, position_embedding="learned", **sizes)
    save_model(model, tokenizer, tiny_config(temperature=0.0), folder / "my")
    export_model(folder / "my", folder / "hf")
    source = ModelSource("my", load_config(folder / "my/config.toml"), str(folder / "my"))
    theirs, ours = VLLMServer(folder / "hf"), RealServer([source])
    try:
        theirs.wait()
        yield [openai.OpenAI(base_url=f"{s.url}/v1", api_key="none") for s in (ours, theirs)]
    finally:
        ours.close()
        theirs.close()


def of_both(clients, ask):
    """Return what both servers answer, which must be the same."""
    ours, theirs = map(ask, clients)
    assert ours == theirs
    return ours


TEXTS = ["Call me", "é🙂 \n", "x" * 60]
KEYS = [
    {},
    {"max_tokens": 20, "stop": ["a", "\n"]},
    {"max_tokens": 20, "echo": True},
    {"max_tokens": 20, "presence_penalty": 1.5, "frequency_penalty": 0.5},
    {"max_tokens": 20, "logit_bias": {str(byte_tokenizer().encode("a")[0]): 20}},
    {"max_tokens": 20, "extra_body": {"repetition_penalty": 1.3}},
]


def test_both_list_the_model(clients):
    assert of_both(clients, lambda client: [each.id for each in client.models.list()]) == ["my"]


@pytest.mark.parametrize("keys", KEYS)
def test_completions_are_the_same(clients, keys):
    """Also without a temperature: the export has the configuration's, which is greedy."""

    def ask(client):
        found = client.completions.create(model="my", prompt=TEXTS, **keys)
        texts = [(each.index, each.text, each.finish_reason) for each in found.choices]
        return texts, found.usage.prompt_tokens

    of_both(clients, ask)


def test_streams_are_the_same(clients):
    def ask(client):
        text, reason = "", None
        for chunk in client.completions.create(
            model="my", prompt="Call me", stream=True, max_tokens=30, stop=["  "]
        ):
            text += chunk.choices[0].text
            reason = chunk.choices[0].finish_reason or reason
        return text, reason

    assert of_both(clients, ask)[1]


def test_log_probabilities_are_the_same(clients):
    def ask(client):
        found = client.completions.create(
            model="my", prompt="Call me", max_tokens=20, echo=True, logprobs=4
        )
        return found.choices[0].logprobs

    ours, theirs = map(ask, clients)
    assert ours.tokens == theirs.tokens
    for one, other in zip(ours.token_logprobs[1:], theirs.token_logprobs[1:], strict=True):
        assert abs(one - other) < TOLERANCE


CHATS = [
    [{"role": "user", "content": "  Hello? "}],
    [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "é🙂"}],
    [
        {"role": "user", "content": "Hi"},
        {"role": "assistant", "content": "Ho"},
        {"role": "user", "content": "What?"},
    ],
]


@pytest.mark.parametrize("messages", CHATS)
def test_chats_are_the_same(clients, messages):
    def ask(client):
        found = client.chat.completions.create(model="my", messages=messages, max_tokens=20)
        [choice] = found.choices
        return choice.message.role, choice.message.content.lstrip(), found.usage.prompt_tokens

    of_both(clients, ask)


def test_streamed_chats_are_the_same(clients):
    def ask(client):
        role, text = None, ""
        for chunk in client.chat.completions.create(
            model="my", messages=CHATS[0], max_tokens=20, stream=True
        ):
            for choice in chunk.choices:
                role = choice.delta.role or role
                text += choice.delta.content or ""
        return role, text.lstrip()

    assert of_both(clients, ask)[0] == "assistant"
