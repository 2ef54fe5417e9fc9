"""Import of GGUF files: what is exported comes back, and what cannot be a GPT-2 is refused."""

import json

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from src.config import GPT2Config
from src.data.chat_template import ChatTemplate
from src.errors import AGI2Error
from src.formats.export import export_model
from src.formats.gguf import export_gguf, gguf_name
from src.formats.gguf_import import import_gguf
from src.formats.model_dir import load_model
from src.tokenizer import BPETokenizer, load_tokenizer
from tests.conftest import make_text
from tests.formats.gguf_files import rewrite
from tests.formats.test_export import run
from tests.formats.test_gguf import SPLITS, tensors_of
from tests.tiny_models import random_model

gguf = pytest.importorskip("gguf")

TEXTS = ["the old whale", "Über naïve 鯨魚,\n  don't 1999 3.50 €", ""]


@pytest.fixture(scope="module")
def file(tmp_path_factory, byte_pairs):
    """A file of a model in fp32 that is as GPT-2 is."""
    model = random_model(
        vocab_size=byte_pairs.vocab_size, d_model=32, n_layers=1, position_embedding="learned"
    )
    path = tmp_path_factory.mktemp("gguf") / "model.gguf"
    export_gguf(model, byte_pairs, path)
    return path


@pytest.fixture
def imported(tmp_path):
    def do(path, name="in"):
        import_gguf(path, tmp_path / name, verbose=False)
        return load_model(tmp_path / name, verbose=False)

    return do


@pytest.mark.parametrize("is_tied", [True, False])
@pytest.mark.parametrize("quantize", [None, "f16", "q8_0", "q4_0"])
def test_an_exported_model_comes_back(
    saved, byte_pairs, tmp_path, imported, capsys, quantize, is_tied
):
    sizes = {"vocab_size": byte_pairs.vocab_size + 3, "n_layers": 11, "d_ff": 40}
    model, folder = saved(position_embedding="learned", tie_weights=is_tied, **sizes)
    export_model(folder, tmp_path / "m.gguf", "gguf", quantize)
    status, out, err = run(capsys, "import", tmp_path / "m.gguf", tmp_path / "in")
    assert (status, out) == (0, "")
    assert f'agi2 generate {tmp_path / "in"} "..."' in err
    found = load_model(tmp_path / "in")
    assert found.model.config == GPT2Config(**{**vars(model.config), "dropout": 0.1})
    assert (found.model.head is None) == is_tied
    expected = tensors_of(tmp_path / "m.gguf")
    for name, weight in found.model.state_dict().items():
        assert torch.equal(weight, expected[gguf_name(name)][1])
        if quantize is None:
            assert torch.equal(weight, model.state_dict()[name])
    assert found.tokenizer.to_json() == byte_pairs.to_json()


def test_sinusoidal_positions_and_missing_biases_come_back_as_gpt2_has_them(
    saved, tmp_path, imported
):
    model, folder = saved(bias=False)
    export_model(folder, tmp_path / "m.gguf", "gguf")
    found = imported(tmp_path / "m.gguf").model
    assert found.config.position_embedding == "learned"
    assert not found.config.tie_weights
    tokens = torch.arange(20).view(2, 10)
    with torch.no_grad():
        torch.testing.assert_close(found(tokens), model(tokens), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(("pretokenizer", "split_digits"), [*SPLITS])
def test_the_tokenizer_encodes_as_before(tmp_path, imported, pretokenizer, split_digits):
    tokenizer = BPETokenizer(
        400, pretokenizer=pretokenizer, split_digits=split_digits, special_tokens=["<x>"]
    )
    tokenizer.fit([make_text() + TEXTS[1] * 9], verbose=False)
    ChatTemplate.add_to(tokenizer)
    model = random_model(vocab_size=tokenizer.vocab_size, d_model=32, n_layers=1)
    export_gguf(model, tokenizer, tmp_path / "m.gguf")
    found = imported(tmp_path / "m.gguf").tokenizer
    for text in [*TEXTS, make_text()]:
        assert found.encode(text) == tokenizer.encode(text)
    assert found.special_tokens == tokenizer.special_tokens
    assert found.end_tokens == tokenizer.end_tokens
    assert found.has_roles


def test_tokens_of_every_kind_keep_their_ids(saved, byte_pairs, tmp_path, imported):
    content = json.loads(byte_pairs.to_json())
    size = byte_pairs.vocab_size
    plain = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False}
    content["added_tokens"] += [
        {"id": size, "content": "<|im_end|>", "special": True, **plain},
    ]
    (tmp_path / "tokenizer.json").write_text(json.dumps(content))
    tokenizer = load_tokenizer(tmp_path)
    model = random_model(vocab_size=size + 3, d_model=32, n_layers=1)
    export_gguf(model, tokenizer, tmp_path / "m.gguf")
    types = gguf.GGUFReader(tmp_path / "m.gguf").get_field("tokenizer.ggml.token_type").contents()
    types[size + 1] = 4  # user-defined: found in text
    tokens = gguf.GGUFReader(tmp_path / "m.gguf").get_field("tokenizer.ggml.tokens").contents()
    tokens[size + 1] = "whale!"
    changes = {
        "tokenizer__ggml__token_type": types,
        "tokenizer__ggml__tokens": tokens,
        "tokenizer__ggml__eos_token_id": size,
        "tokenizer__ggml__eot_token_id": byte_pairs.end_of_text,
        "tokenizer__ggml__eom_token_id": size,
        "tokenizer__ggml__bos_token_id": 7,
    }
    found = imported(rewrite(tmp_path / "m.gguf", tmp_path / "n.gguf", **changes)).tokenizer
    assert found.text_end_tokens == (size, byte_pairs.end_of_text)
    assert found.start_of_text == 7
    assert found.special_tokens["<|im_end|>"] == size
    whale = byte_pairs.encode("a white ")
    assert found.encode("a white whale!") == [*whale, size + 1]


def test_what_old_files_lack_has_a_default(file, tmp_path, imported, caplog, byte_pairs):
    """Old files name no pre-tokenizer and no types, and repeat the embedding as the head."""
    embedding = tensors_of(file)["token_embd.weight"][1].numpy()
    changes = {
        "tokenizer__ggml__pre": None,
        "tokenizer__ggml__token_type": None,
        "tokenizer__ggml__eos_token_id": None,
        "tokenizer__ggml__bos_token_id": None,
        "output__weight": embedding,
        "gpt2__attention__head_count_kv": 2,
        "gpt2__vocab_size": byte_pairs.vocab_size,
        "gpt2__tensor_data_layout": "Meta AI original pth",
        "tokenizer__chat_template": "{{ messages }}",
    }
    found = imported(rewrite(file, tmp_path / "m.gguf", **changes))
    assert found.model.head is None
    assert found.tokenizer.to_json() == byte_pairs.to_json()
    assert "names no pre-tokenizer: text is split as GPT-2 does" in caplog.text
    assert "not kept: gpt2.tensor_data_layout" in caplog.text
    assert "not kept: its chat template" in caplog.text


@pytest.mark.parametrize("type", ["Q4_1", "Q5_0", "Q5_1", "Q4_K", "Q5_K", "Q6_K", "BF16"])
def test_types_that_are_not_exported_are_imported(byte_pairs, tmp_path, imported, type):
    sizes = {"vocab_size": byte_pairs.vocab_size, "d_model": 256, "d_ff": 32, "n_layers": 1}
    model = random_model(position_embedding="learned", **sizes)
    export_gguf(model, byte_pairs, tmp_path / "m.gguf")
    kind = gguf.GGMLQuantizationType[type]
    if type.endswith("K"):
        blocks = np.random.default_rng(0).integers(0, 128, (256, gguf.GGML_QUANT_SIZES[kind][1]))
        data = blocks.astype(np.uint8)
        data[:, [1, 3, -1]] = 0x20  # scales that are not huge
    else:
        weight = model.blocks[0].attention.proj.weight.detach().numpy()
        data = gguf.quants.quantize(weight, kind)
    path = rewrite(
        tmp_path / "m.gguf", tmp_path / "n.gguf", blk__0__attn_output__weight=(data, kind)
    )
    expected = tensors_of(path)["blk.0.attn_output.weight"]
    assert expected[0] == type
    assert torch.equal(imported(path).model.blocks[0].attention.proj.weight, expected[1])


ONES = np.ones((32, 32), np.float32)
# What differs from the file of a GPT-2, and the message.
REFUSED = [
    ({"general.architecture": "llama"}, "general.architecture = 'llama'; only gpt2 can be"),
    ({"general.type": "adapter"}, "general.type = 'adapter'; AGI2 has only 'model'"),
    ({"split.count": 2}, "split.count = 2; AGI2 has only 1"),
    ({"gpt2.context_length": None}, "gpt2.context_length is missing"),
    ({"gpt2.context_length": 2**21}, "gpt2.context_length is 2097152, not an integer from 1"),
    ({"gpt2.block_count": 0}, "gpt2.block_count is 0, not an integer from 1 to 1,024"),
    ({"gpt2.block_count": 2}, "gpt2.block_count = 2, but it has the tensors of 1 blocks"),
    ({"gpt2.block_count": "1"}, "gpt2.block_count is '1', not an integer"),
    ({"gpt2.embedding_length": 64}, r"token_embd.weight is \(\d+, 32\), not \(V, 64\)"),
    ({"gpt2.feed_forward_length": 64}, r"blk.0.ffn_up.weight is \(128, 32\), not \(64, 32\)"),
    ({"gpt2.attention.head_count": 5}, "32 is not divisible by gpt2.attention.head_count = 5"),
    ({"gpt2.attention.head_count_kv": 1}, "head_count_kv = 1; AGI2 has only 2"),
    ({"gpt2.attention.causal": False}, "gpt2.attention.causal = False; AGI2 has only True"),
    ({"gpt2.attention.layer_norm_epsilon": 1e-6}, "layer_norm_epsilon = .*; AGI2 has only 1e-05"),
    ({"gpt2.attention.layer_norm_epsilon": None}, "layer_norm_epsilon = None; AGI2 has only"),
    ({"token_embd.weight": None}, "token_embd.weight is missing"),
    ({"position_embd.weight": None}, "position_embd.weight is missing"),
    ({"blk.0.attn_norm.bias": None}, "blk.0.attn_norm.bias is missing"),
    ({"output.weight": ONES}, r"output.weight is \(32, 32\), not \(\d+, 32\)"),
    ({"rope_freqs.weight": ONES}, "rope_freqs.weight is not a tensor of GPT-2"),
    (
        {"blk.0.attn_output.weight": ONES * np.inf},
        "attn_output.weight has 1,024 values that are NaN",
    ),
    ({"tokenizer.ggml.model": "llama"}, "tokenizer.ggml.model = 'llama'; only gpt2, byte-level"),
    ({"tokenizer.ggml.pre": "default"}, "pre = 'default' is none of gpt-2, smollm, dbrx, qwen2"),
    ({"tokenizer.ggml.add_bos_token": True}, "add_bos_token = True: AGI2 adds no tokens"),
    ({"tokenizer.ggml.tokens": None}, "tokenizer.ggml.tokens is not an array of strings"),
    ({"tokenizer.ggml.tokens": [1, 2]}, "tokenizer.ggml.tokens is not an array of strings"),
    ({"tokenizer.ggml.tokens": ["a"]}, "it has 1 tokens, and the types of 3"),
    ({"tokenizer.ggml.merges": None}, "tokenizer.ggml.merges is not an array of strings"),
    ({"tokenizer.ggml.merges": ["a"]}, "its tokenizer is not .* the merge 'a' is not a pair"),
    ({"tokenizer.ggml.token_type": "x"}, "token_type is not an array of integers"),
    ({"tokenizer.ggml.eos_token_id": 9999}, "eos_token_id = 9999 is the id of no token"),
    ({"tokenizer.ggml.bos_token_id": "a"}, "bos_token_id = 'a' is the id of no token"),
]


@pytest.mark.parametrize(("changes", "message"), REFUSED, ids=str)
def test_what_is_no_gpt2_is_one_line(file, tmp_path, changes, message):
    path = rewrite(file, tmp_path / "m.gguf", **changes)
    with pytest.raises(AGI2Error, match=message) as caught:
        import_gguf(path, tmp_path / "in")
    assert len(caught.value.args) == 1
    assert str(caught.value).startswith(str(path))
    assert not (tmp_path / "in").exists()


def changed_tokens(file, change):
    """The tokens and their types after a change."""
    reader = gguf.GGUFReader(file)
    names = ("tokenizer.ggml.tokens", "tokenizer.ggml.token_type")
    tokens, types = (reader.get_field(name).contents() for name in names)
    change(tokens, types)
    return dict(zip(names, (tokens, types), strict=True))


def one_twice(tokens, types):
    tokens[3] = tokens[4]


def one_of_no_kind(tokens, types):
    types[3] = 6


def all_special(tokens, types):
    tokens += [f"<{number}>" for number in range(2001)]
    types += [3] * 2001


def one_more(tokens, types):
    tokens.append("<x>")
    types.append(3)


def a_byte_missing(tokens, types):
    types[tokens.index("!")] = 5


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (one_twice, "the token .* is there twice"),
        (one_of_no_kind, "the token .* is of the type 6"),
        (all_special, "has over 2,000 special tokens"),
        (one_more, "the tokenizer has 321 tokens, the model only 320"),
        (a_byte_missing, "its tokenizer has no token for 1 of the 256 bytes"),
    ],
)
def test_a_vocabulary_that_cannot_be_used_is_one_line(file, tmp_path, change, message):
    path = rewrite(file, tmp_path / "m.gguf", **changed_tokens(file, change))
    with pytest.raises(AGI2Error, match=message):
        import_gguf(path, tmp_path / "in")


def test_a_tokenizer_without_an_end_is_one_line(file, byte_pairs, tmp_path):
    def rename(tokens, types):
        tokens[byte_pairs.end_of_text] = "<other>"

    ids = {f"tokenizer.ggml.{kind}_token_id": None for kind in ("bos", "eos")}
    path = rewrite(file, tmp_path / "m.gguf", **ids, **changed_tokens(file, rename))
    with pytest.raises(AGI2Error, match="names no end-of-text token"):
        import_gguf(path, tmp_path / "in")


def test_another_template_is_refused_if_it_has_the_roles(tmp_path):
    tokenizer = BPETokenizer(300)
    tokenizer.fit([make_text()], verbose=False)
    ChatTemplate.add_to(tokenizer)
    model = random_model(vocab_size=tokenizer.vocab_size, d_model=32, n_layers=1)
    export_gguf(model, tokenizer, tmp_path / "m.gguf")
    changes = {"tokenizer.chat_template": "{{ messages }}"}
    path = rewrite(tmp_path / "m.gguf", tmp_path / "n.gguf", **changes)
    with pytest.raises(AGI2Error, match="its chat template is another one"):
        import_gguf(path, tmp_path / "in")


def test_a_file_of_gguf_named_as_a_model_says_how_to_import_it(file, tmp_path, capsys):
    advice = f"make it one: agi2 import {file} NEW_FOLDER"
    for command in (["generate", file, "the"], ["train", file], ["export", file, tmp_path / "out"]):
        status, _, err = run(capsys, *command)
        assert status == 2
        assert err.endswith(f"is a model of another project: {advice}\n")
    with pytest.raises(AGI2Error, match=advice):
        load_model(file)


@given(data=st.data())
def test_a_damaged_file_is_refused_or_imported(file, tmp_path_factory, data):
    """Bytes are replaced, removed or added, mostly in the header."""
    content = bytearray(file.read_bytes())
    header = gguf.GGUFReader(file).data_offset
    numbers = st.sampled_from([b"\0", b"\xff", b"\x7f", b"\1", b"\xff" * 8, b"\0" * 8])
    for _ in range(data.draw(st.integers(1, 3))):
        end = data.draw(st.sampled_from([64, 700, header, len(content)]))
        place = data.draw(st.integers(0, min(end, len(content)) - 1))
        part = data.draw(numbers | st.binary(max_size=9))
        removed = data.draw(st.sampled_from([0, len(part), len(part), 1, 40]))
        content[place : place + removed] = part
    folder = tmp_path_factory.mktemp("damaged")
    (folder / "m.gguf").write_bytes(content)
    problems = ()
    try:
        import_gguf(folder / "m.gguf", folder / "in", verbose=False)
    except AGI2Error as error:
        problems = error.args
    assert len(problems) <= 1
    assert (folder / "in").exists() == (not problems)
    if not problems:
        load_model(folder / "in", verbose=False)
