"""Export to GGUF: tensors, types and vocabulary, read back."""

import json
import random
import urllib.request

import numpy as np
import pytest
import torch

from src.errors import AGI2Error
from src.formats.export import export_model
from src.formats.gguf import export_gguf, gguf_name
from src.generation import generate_text
from src.tokenizer import BPETokenizer, load_tokenizer
from tests.conftest import make_text
from tests.tiny_models import alphabet, random_model

gguf = pytest.importorskip("gguf")

SHAPES = {
    "learned": {"position_embedding": "learned"},
    "sinusoidal": {},
    "untied, without biases": {"tie_weights": False, "bias": False, "n_layers": 1},
}
SPLITS = {
    ("gpt2", False): "gpt-2",
    ("gpt2", True): "smollm",
    ("gpt4", False): "dbrx",
    ("gpt4", True): "qwen2",
}
PROMPTS = ["the old whale", "Über naïve 鯨魚,\n  don't 3.50 €"]


def tensors_of(path):
    """Name, type and numbers of each tensor in a file."""
    return {
        tensor.name: (
            tensor.tensor_type.name,
            torch.from_numpy(gguf.quants.dequantize(np.array(tensor.data), tensor.tensor_type)),
        )
        for tensor in gguf.GGUFReader(path).tensors
    }


def field(path, name):
    return gguf.GGUFReader(path).get_field(name).contents()


class LlamaCpp:
    """llama.cpp with a model, one thread, and keys and values in fp32."""

    def __init__(self, path, context, **options):
        xllamacpp = pytest.importorskip("xllamacpp")
        params = xllamacpp.CommonParams()
        params.model.path = str(path)
        params.n_ctx = context
        params.n_parallel = 1
        params.cpuparams.n_threads = params.cpuparams_batch.n_threads = 1
        params.cache_type_k = params.cache_type_v = xllamacpp.ggml_type.GGML_TYPE_F32
        params.warmup = False
        for name, value in options.items():
            setattr(params, name, value)
        self.server = xllamacpp.Server(params)

    def greedy(self, prompt, tokens):
        """The likeliest continuation."""
        found = self.server.handle_completions(
            {"prompt": prompt, "max_tokens": tokens, "temperature": 0.0, "ignore_eos": True}
        )
        return found["choices"][0]["text"]

    def tokens(self, text):
        """The ids of a text without special tokens."""
        body = {"content": text, "add_special": False, "parse_special": False}
        request = urllib.request.Request(
            f"{self.server.listening_address}/tokenize",
            json.dumps(body).encode(),
            {"Content-Type": "application/json"},
        )
        with urllib.request.urlopen(request) as answer:
            return json.load(answer)["tokens"]


@pytest.mark.parametrize("changes", SHAPES.values(), ids=SHAPES)
def test_llama_cpp_writes_the_same_greedy_text(saved, byte_pairs, tmp_path, changes):
    model, _ = saved(max_seq_len=64, **changes)
    # Both write ASCII alone: they do not show half a character in the same way.
    with torch.no_grad():
        for token in range(byte_pairs.vocab_size):
            text = byte_pairs.token_bytes(token)
            if not text or not text.isascii():
                model.output_weight[token] = 0.0
    export_gguf(model, byte_pairs, tmp_path / "model.gguf")
    llama = LlamaCpp(tmp_path / "model.gguf", 64)
    for prompt in PROMPTS:
        ours = generate_text(model, prompt, 16, 0.0, tokenizer=byte_pairs, return_full_text=False)
        assert llama.greedy(prompt, 16) == ours


@pytest.mark.parametrize(("pretokenizer", "split_digits"), [*SPLITS])
def test_llama_cpp_encodes_any_text_to_the_same_tokens(tmp_path, pretokenizer, split_digits):
    tokenizer = BPETokenizer(400, pretokenizer=pretokenizer, split_digits=split_digits)
    text = "It's 12 of 1999, we're\n\n  here:\r\n ½ ² ٣ 鯨魚, don't they? 3.50 €\t"
    tokenizer.fit([make_text() + text * 9], verbose=False)
    model = random_model(vocab_size=tokenizer.vocab_size, d_model=32)
    export_gguf(model, tokenizer, tmp_path / "model.gguf")
    assert (
        field(tmp_path / "model.gguf", "tokenizer.ggml.pre") == SPLITS[pretokenizer, split_digits]
    )
    llama = LlamaCpp(tmp_path / "model.gguf", 64)
    draw = random.Random(3)
    characters = text + "'sStTlLdDmM 0123456789 \n\t\x85\u2028\u3000\ufeff٣²Ⅷé漢🙂_-."
    for _ in range(300):
        tried = "".join(draw.choices(characters, k=draw.randint(1, 30)))
        assert llama.tokens(tried) == tokenizer.encode(tried), tried


@pytest.mark.parametrize("changes", SHAPES.values(), ids=SHAPES)
def test_every_weight_is_there_and_no_other(saved, byte_pairs, tmp_path, changes):
    model, _ = saved(**changes)
    export_gguf(model, byte_pairs, tmp_path / "model.gguf")
    found = tensors_of(tmp_path / "model.gguf")
    assert {kind for kind, _ in found.values()} == {"F32"}
    for name, weight in model.state_dict().items():
        if name == "token_embeddings.weight":
            weight = weight * model.embedding_scale
        assert torch.equal(found[gguf_name(name)][1], weight)
    assert torch.equal(found["position_embd.weight"][1], model.position_embeddings.weight)
    assert field(tmp_path / "model.gguf", "gpt2.context_length") == 24


def test_eight_bits_keep_every_matrix_close_and_the_rest_as_it_was(saved, byte_pairs, tmp_path):
    model, _ = saved(position_embedding="learned", d_ff=40)
    export_gguf(model, byte_pairs, tmp_path / "model.gguf", "q8_0")
    found = tensors_of(tmp_path / "model.gguf")
    for name, weight in model.state_dict().items():
        kind, numbers = found[gguf_name(name)]
        # A row of 40 cannot be cut into groups of 32.
        whole = weight.dim() < 2 or "position" in name or name.endswith("contract.weight")
        assert kind == ("F32" if whole else "Q8_0")
        if whole:
            assert torch.equal(numbers, weight)
        else:
            groups = (numbers - weight).unflatten(-1, (-1, 32))
            step = weight.unflatten(-1, (-1, 32)).abs().amax(-1, keepdim=True) / 127
            assert (groups.abs() <= 0.57 * step).all()  # half a step, and the scale is fp16


def test_llama_cpp_runs_eight_bits(saved, tmp_path):
    _, folder = saved(max_seq_len=64)
    export_model(folder, tmp_path / "model.gguf", "gguf", "q8_0")
    assert LlamaCpp(tmp_path / "model.gguf", 64).greedy(PROMPTS[0], 8)


def test_tokens_that_only_the_model_has_are_never_used(saved, byte_pairs, tmp_path):
    model, _ = saved(vocab_size=byte_pairs.vocab_size + 3)
    export_gguf(model, byte_pairs, tmp_path / "model.gguf")
    tokens = field(tmp_path / "model.gguf", "tokenizer.ggml.tokens")
    types = field(tmp_path / "model.gguf", "tokenizer.ggml.token_type")
    assert len(tokens) == len(types) == byte_pairs.vocab_size + 3
    assert types[-3:] == [gguf.TokenType.UNUSED] * 3
    assert types[byte_pairs.end_of_text] == gguf.TokenType.CONTROL
    assert field(tmp_path / "model.gguf", "tokenizer.ggml.eos_token_id") == byte_pairs.end_of_text


def changed_tokenizer(byte_pairs, tmp_path, change):
    content = json.loads(byte_pairs.to_json())
    change(content)
    (tmp_path / "tokenizer.json").write_text(json.dumps(content), encoding="utf-8")
    return load_tokenizer(tmp_path)


@pytest.mark.parametrize(
    "change",
    [
        lambda t: t.update(normalizer={"type": "NFC"}),
        lambda t: t["model"].update(ignore_merges=True),
        lambda t: t["added_tokens"].append(
            {**t["added_tokens"][0], "id": 320, "content": "<x>", "special": False}
        ),
    ],
)
def test_a_tokenizer_that_llama_cpp_reads_otherwise_is_refused(byte_pairs, tmp_path, change):
    tokenizer = changed_tokenizer(byte_pairs, tmp_path, change)
    model = random_model(vocab_size=tokenizer.vocab_size)
    with pytest.raises(AGI2Error, match=r"splits text in a way that llama\.cpp does not know"):
        export_gguf(model, tokenizer, tmp_path / "model.gguf")
    assert not (tmp_path / "model.gguf").exists()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"activation": "relu"}, 'supports only activation = "gelu_tanh", not "relu"'),
        ({"norm_position": "post"}, 'norm_position = "post" cannot be converted'),
    ],
)
def test_what_llama_cpp_cannot_express_is_refused(byte_pairs, tmp_path, changes, message):
    model = random_model(vocab_size=byte_pairs.vocab_size, **changes)
    with pytest.raises(AGI2Error, match=message):
        export_gguf(model, byte_pairs, tmp_path / "model.gguf")


def test_a_character_tokenizer_is_refused(tmp_path):
    with pytest.raises(AGI2Error, match="GGUF does not support a character"):
        export_gguf(random_model(), alphabet(), tmp_path / "model.gguf")
