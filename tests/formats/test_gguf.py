"""Export to GGUF: tensors, types and vocabulary, read back."""

import json
import random
import struct
import urllib.request

import numpy as np
import pytest
import torch

from src.errors import AGI2Error
from src.formats.gguf import export_gguf, gguf_name
from src.formats.gguf_import import import_gguf
from src.formats.model_dir import load_model
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

    def log_probabilities(self, ids, count):
        """The logarithms of the probabilities of the likeliest next tokens, by id."""
        body = {"prompt": ids, "n_predict": 1, "n_probs": count, "temperature": -1.0}
        found = self.post("completion", body)["completion_probabilities"][0]["top_logprobs"]
        return {each["id"]: each["logprob"] for each in found}

    def tokens(self, text):
        """The ids of a text without special tokens."""
        body = {"content": text, "add_special": False, "parse_special": False}
        return self.post("tokenize", body)["tokens"]

    def post(self, path, body):
        request = urllib.request.Request(
            f"{self.server.listening_address}/{path}",
            json.dumps(body).encode(),
            {"Content-Type": "application/json"},
        )
        with urllib.request.urlopen(request) as answer:
            return json.load(answer)


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


def round_half_away(value):
    return np.trunc(value + np.copysign(np.float32(0.5), value))


def blocks_of(row, bits):
    """The bytes of one row as ggml's reference quantizes it, one block of 32 after the other."""
    data = b""
    for block in row.reshape(-1, 32):
        extreme = block[np.abs(block).argmax()]
        if bits == 8:
            scale = np.abs(extreme) / np.float32(127)
            inverse = np.float32(1) / scale if scale else np.float32(0)
            whole = [int(round_half_away(value * inverse)) for value in block]
            data += np.float16(scale).tobytes() + struct.pack("32b", *whole)
        else:  # the value of the largest magnitude becomes -8, with its sign
            scale = extreme / np.float32(-8)
            inverse = np.float32(1) / scale if scale else np.float32(0)
            whole = [min(15, int(value * inverse + np.float32(8.5))) for value in block]
            pairs = [low | high << 4 for low, high in zip(whole[:16], whole[16:], strict=True)]
            data += np.float16(scale).tobytes() + bytes(pairs)
    return data


def expected_type(name, weight, quantize, is_tied):
    is_matrix = weight.dim() == 2 and "position" not in name
    if not is_matrix or (quantize != "f16" and weight.size(1) % 32):
        return "F32"
    is_head = name == ("token_embeddings.weight" if is_tied else "head.weight")
    return "Q8_0" if quantize == "q4_0" and is_head else quantize.upper()


@pytest.mark.parametrize("is_tied", [True, False])
@pytest.mark.parametrize("quantize", ["f16", "q8_0", "q4_0"])
def test_matrices_are_quantized_as_ggml_does(saved, byte_pairs, tmp_path, quantize, is_tied):
    # A row of 40 cannot be cut into blocks of 32.
    sizes = {"d_model": 64, "d_ff": 40, "n_layers": 1}
    model, _ = saved(position_embedding="learned", tie_weights=is_tied, **sizes)
    with torch.no_grad():
        weight = model.blocks[0].attention.qkv.weight
        weight[0] = 0.0
        weight[1, :4] = torch.tensor([2.0, -2.0, 1.0, -1.0])  # two of the largest magnitude
        weight[2] = torch.arange(64) / 127 - 0.25  # halves between two integers
        weight[3, :] = 1e-30  # its scale is 0 in fp16
    export_gguf(model, byte_pairs, tmp_path / "model.gguf", quantize)
    reader = gguf.GGUFReader(tmp_path / "model.gguf")
    found = {tensor.name: tensor for tensor in reader.tensors}
    kinds = set()
    for name, weight in model.state_dict().items():
        tensor = found[gguf_name(name)]
        kind = expected_type(name, weight, quantize, is_tied)
        assert tensor.tensor_type.name == kind, name
        expected = weight.half() if kind == "F16" else weight
        data = expected.numpy().tobytes()
        if kind.startswith("Q"):
            data = b"".join(blocks_of(row, int(kind[1])) for row in weight.numpy())
        assert np.array(tensor.data).tobytes() == data, name
        kinds.add(kind)
    assert quantize.upper() in kinds
    number = reader.get_field("general.file_type").contents()
    assert gguf.LlamaFileType(number).name == f"MOSTLY_{quantize.upper()}"


def test_smaller_types_make_smaller_files(saved, byte_pairs, tmp_path):
    model, _ = saved(d_model=64, position_embedding="learned")
    sizes = []
    for quantize in (None, "f16", "q8_0", "q4_0"):
        export_gguf(model, byte_pairs, tmp_path / f"{quantize}.gguf", quantize)
        sizes.append((tmp_path / f"{quantize}.gguf").stat().st_size)
    assert sizes == sorted(sizes, reverse=True)
    assert len({*sizes}) == 4


@pytest.mark.parametrize(
    ("quantize", "largest"), [("f16", 65504), ("q8_0", 127 * 65504), ("q4_0", 8 * 65504)]
)
def test_a_weight_too_large_for_the_type_is_refused(saved, byte_pairs, tmp_path, quantize, largest):
    model, _ = saved(position_embedding="learned")
    weight = model.blocks[1].ffn.expand.weight
    with torch.no_grad():
        weight[2, 3] = -largest
    export_gguf(model, byte_pairs, tmp_path / "model.gguf", quantize)
    _, numbers = tensors_of(tmp_path / "model.gguf")["blk.1.ffn_up.weight"]
    assert numbers[2, 3] == -largest
    with torch.no_grad():
        weight[2, 3] = -largest * 1.01
    with pytest.raises(
        AGI2Error, match=f"expand.weight has .* {quantize.upper()} holds {largest:,}"
    ):
        export_gguf(model, byte_pairs, tmp_path / "other.gguf", quantize)
    assert not (tmp_path / "other.gguf").exists()
    export_gguf(model, byte_pairs, tmp_path / "other.gguf")


# Bounds of the difference of log probabilities: llama.cpp has a table of GELU in fp16, and rounds
# activations to fp16 for fp16 weights, to Q8_0 for quantized weights.
@pytest.mark.parametrize(
    ("quantize", "bound"), [(None, 1e-3), ("f16", 2e-3), ("q8_0", 0.02), ("q4_0", 0.02)]
)
def test_llama_cpp_computes_the_dequantized_model(saved, byte_pairs, tmp_path, quantize, bound):
    model, _ = saved(max_seq_len=64, d_model=64, position_embedding="learned")
    export_gguf(model, byte_pairs, tmp_path / "model.gguf", quantize)
    import_gguf(tmp_path / "model.gguf", tmp_path / "in")
    dequantized = load_model(tmp_path / "in").model
    llama = LlamaCpp(tmp_path / "model.gguf", 64)
    for prompt in PROMPTS:
        ids = byte_pairs.encode(prompt)
        with torch.no_grad():
            expected = dequantized(torch.tensor([ids]))[0, -1].log_softmax(-1)
        found = llama.log_probabilities(ids, 20)
        assert len(found) == 20
        for id, value in found.items():
            assert abs(value - expected[id].item()) < bound


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
