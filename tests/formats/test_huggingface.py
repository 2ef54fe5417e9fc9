"""Import and export of Hugging Face models, compared with `transformers`."""

import json
import os
import threading
import time
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer

import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file

from src.errors import AGI2Error
from src.formats.huggingface import export_huggingface, import_huggingface
from src.formats.model_dir import load_model
from src.utils import sha256_of
from tests.bounds import assert_same_in_float64
from tests.processes import needs_fork, run_python
from tests.tiny_models import (
    alphabet,
    exact_logits,
    in_their_layout,
    random_model,
    transformers_twin,
)

SHAPES = {
    "learned": {"position_embedding": "learned"},
    "learned, untied": {"position_embedding": "learned", "tie_weights": False, "n_heads": 4},
    # sqrt(d_model), by which embeddings are multiplied on the way out, is a power of two: exact.
    "sinusoidal": {"d_model": 64},
    "sinusoidal, untied": {"tie_weights": False, "activation": "gelu", "d_model": 64},
    "no biases": {"position_embedding": "learned", "bias": False, "activation": "relu"},
    "narrow": {"d_model": 16, "d_ff": 24, "activation": "silu", "n_layers": 1, "dropout": 0.25},
}
TEXTS = [
    "",
    "the old whale",
    "Über naïve 鯨魚 cafés cost 3.50 €,\n\n  don't they?\r\n\t",
    "\x00é\u3000",
]


def some_tokens(model, rows=3):
    generator = torch.Generator().manual_seed(1)
    shape = (rows, model.config.max_seq_len)
    return torch.randint(model.config.vocab_size, shape, generator=generator)


@pytest.fixture
def exported(saved, tmp_path, byte_pairs):
    """A model and the folder in Hugging Face's layout that it was exported to."""

    def make(**changes):
        model, _ = saved(**changes)
        export_huggingface(model, byte_pairs, tmp_path / "hf")
        return model, tmp_path / "hf"

    return make


@pytest.mark.parametrize("changes", SHAPES.values(), ids=SHAPES)
def test_transformers_loads_an_export_with_the_same_logits(exported, changes):
    from transformers import GPT2LMHeadModel

    model, folder = exported(**changes)
    theirs, notes = GPT2LMHeadModel.from_pretrained(folder, output_loading_info=True)
    assert not any(notes.values()), notes
    tokens = some_tokens(model)
    expected = exact_logits(model, tokens)
    assert expected.std() > 0.1
    assert_same_in_float64(exact_logits(theirs.eval(), tokens), expected)


@pytest.fixture(scope="module")
def their_tokenizer(byte_pairs, tmp_path_factory):
    from transformers import AutoTokenizer

    model = random_model(vocab_size=byte_pairs.vocab_size)
    folder = tmp_path_factory.mktemp("hf")
    export_huggingface(model, byte_pairs, folder)
    return AutoTokenizer.from_pretrained(folder)


@settings(max_examples=30)
@given(st.text(max_size=60) | st.text("the whale's sea, \n\t\u00a0é鯨3", max_size=60))
@example(TEXTS[1])
@example(TEXTS[2])
def test_their_tokenizer_gives_the_same_ids_and_the_text_back(their_tokenizer, byte_pairs, text):
    ids = byte_pairs.encode(text)
    assert their_tokenizer(text)["input_ids"] == ids
    assert their_tokenizer.decode(ids) == byte_pairs.decode(ids)


def test_their_tokenizer_ends_a_text_with_the_same_token(their_tokenizer, byte_pairs):
    assert their_tokenizer.eos_token_id == their_tokenizer.bos_token_id == byte_pairs.end_of_text


@pytest.mark.parametrize("name", ["learned", "learned, untied"])
def test_a_round_trip_of_learned_positions_is_bit_for_bit(saved, exported, tmp_path, name):
    model, folder = exported(**SHAPES[name])
    import_huggingface(str(folder), tmp_path / "back")
    back = load_model(tmp_path / "back")
    assert back.model.config == model.config
    expected, found = model.state_dict(), back.model.state_dict()
    assert found.keys() == expected.keys()
    assert all(torch.equal(found[key], expected[key]) for key in expected)
    assert (tmp_path / "back" / "tokenizer.json").read_bytes() == (
        tmp_path / "run" / "tokenizer.json"
    ).read_bytes()


def test_a_round_trip_of_sinusoidal_positions_keeps_the_logits(exported, tmp_path):
    model, folder = exported(**SHAPES["sinusoidal"])
    import_huggingface(str(folder), tmp_path / "back")
    back = load_model(tmp_path / "back").model
    assert not back.config.tie_weights
    assert back.config.position_embedding == "learned"
    tokens = some_tokens(model)
    assert_same_in_float64(exact_logits(back, tokens), exact_logits(model, tokens))


def test_an_exported_model_is_described_whole(exported, byte_pairs):
    from transformers import AutoConfig

    _, folder = exported(**SHAPES["narrow"])
    config = AutoConfig.from_pretrained(folder)
    assert (config.n_inner, config.attn_pdrop, config.n_positions) == (24, 0.25, 24)
    assert config.architectures == ["GPT2LMHeadModel"]
    assert config.eos_token_id == byte_pairs.end_of_text
    names = {path.name for path in folder.iterdir()}
    assert names == {
        *("config.json", "generation_config.json", "model.safetensors"),
        *("tokenizer.json", "tokenizer_config.json"),
    }


def test_what_gpt2_cannot_express_is_refused(exported, saved, tmp_path):
    with pytest.raises(AGI2Error, match='norm_position = "post" cannot be converted'):
        exported(norm_position="post")
    model, _ = saved(tokenizer=alphabet())
    with pytest.raises(AGI2Error, match='train with tokenizer = "bpe"'):
        export_huggingface(model, alphabet(), tmp_path / "hf")
    assert not (tmp_path / "hf").exists()


# In


@pytest.fixture
def theirs(byte_pairs, tmp_path):
    """A function that saves a `transformers` model of random weights, and gives it and its folder.

    It is saved by `transformers` itself, in whatever way it wants.
    """

    def make(dtype=torch.float32, shard="1GB", **changes):
        from transformers import PreTrainedTokenizerFast

        shape = {"vocab_size": byte_pairs.vocab_size, "d_model": 32, "max_seq_len": 24}
        model = random_model(position_embedding="learned", std=0.15, **{**shape, **changes})
        twin = transformers_twin(model.config)
        twin.load_state_dict(in_their_layout(model.state_dict()))
        folder = tmp_path / "theirs"
        twin.to(dtype).save_pretrained(folder, max_shard_size=shard)
        file = tmp_path / "t.json"
        file.write_text(byte_pairs.to_json(), encoding="utf-8")
        PreTrainedTokenizerFast(tokenizer_file=str(file)).save_pretrained(folder)
        return twin.float(), folder

    return make


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"activation": "gelu", "tie_weights": False},
        {"dtype": torch.bfloat16},
        {"shard": "20KB"},
    ],
    ids=["plain", "untied", "bf16", "in shards"],
)
def test_a_model_that_transformers_saved_comes_in_with_the_same_logits_and_ids(
    theirs, byte_pairs, tmp_path, changes
):
    twin, folder = theirs(**changes)
    assert (len(list(folder.glob("*.safetensors"))) > 1) == ("shard" in changes)
    import_huggingface(str(folder), tmp_path / "in")
    ours = load_model(tmp_path / "in")
    tokens = some_tokens(ours.model)
    expected = exact_logits(twin, tokens)
    assert expected.std() > 0.1
    assert_same_in_float64(exact_logits(ours.model, tokens), expected)
    assert all(weight.dtype == torch.float32 for weight in ours.model.parameters())
    for text in TEXTS:
        assert ours.tokenizer.encode(text) == byte_pairs.encode(text)
    assert (ours.config.model_name, ours.config.output_dir) == ("in", str(tmp_path))


def test_an_old_file_comes_in_too(theirs, tmp_path):
    """The published gpt2 has no prefix, holds each layer's mask, and two vocabulary files."""
    twin, folder = theirs()
    weights = {
        key.removeprefix("transformer."): tensor
        for key, tensor in load_file(folder / "model.safetensors").items()
    }
    weights["h.0.attn.bias"] = torch.ones(1, 1, 24, 24)
    weights["h.1.attn.masked_bias"] = torch.tensor(-1e4)
    weights["lm_head.weight"] = weights["wte.weight"].clone()
    save_file(weights, folder / "model.safetensors")
    vocabulary = json.loads((folder / "tokenizer.json").read_text("utf-8"))["model"]
    (folder / "vocab.json").write_text(json.dumps(vocabulary["vocab"]), "utf-8")
    merges = "\n".join(["#version: 0.2", *(" ".join(pair) for pair in vocabulary["merges"])])
    (folder / "merges.txt").write_text(merges, "utf-8")
    (folder / "tokenizer.json").unlink()
    import_huggingface(str(folder), tmp_path / "in")
    ours = load_model(tmp_path / "in")
    tokens = some_tokens(ours.model)
    assert_same_in_float64(exact_logits(ours.model, tokens), exact_logits(twin, tokens))


def break_config(**changes):
    def change(folder):
        file = folder / "config.json"
        content = {**json.loads(file.read_text("utf-8")), **changes}
        content = {key: value for key, value in content.items() if value is not ...}
        file.write_text(json.dumps(content), "utf-8")

    return change


def break_weights(change):
    def save(folder):
        weights = load_file(folder / "model.safetensors")
        change(weights)
        save_file(weights, folder / "model.safetensors")

    return save


def to_pickle(folder):
    (folder / "model.safetensors").rename(folder / "pytorch_model.bin")


def cut_short(name):
    def cut(folder):
        (folder / name).write_bytes((folder / name).read_bytes()[:-9])

    return cut


def break_index(weight_map):
    def write(folder):
        (folder / "model.safetensors").rename(folder / "model-1.safetensors")
        index = {"weight_map": weight_map}
        (folder / "model.safetensors.index.json").write_text(json.dumps(index))

    return write


def weights_as_folder(folder):
    """Beside an index, which must not be read in their place."""
    break_index({"wte.weight": "other.safetensors"})(folder)
    (folder / "model.safetensors").mkdir()


WRONG = {
    "another architecture": (break_config(model_type="llama"), "model_type = 'llama'; only gpt2"),
    "another norm": (break_config(layer_norm_epsilon=1e-6), "layer_norm_epsilon = 1e-06"),
    "another scale": (break_config(scale_attn_weights=False), "AGI2 has only True"),
    "an unknown activation": (break_config(activation_function="gelu_fast"), "'gelu_fast' is none"),
    "a key that is missing": (break_config(n_embd=...), "config.json: n_embd is missing"),
    "a key of another type": (break_config(n_head=[2]), "theirs: config.json: "),
    "an activation of another type": (break_config(activation_function=["gelu"]), "is none of"),
    "a size beyond all": (break_config(n_embd=2 * 10**12), "n_embd = 2000000000000 is not an int"),
    "a size that is not whole": (break_config(n_head=2.7), "n_head = 2.7 is not an integer"),
    "an endless vocabulary": (break_config(vocab_size=float("inf")), "vocab_size = inf is not an"),
    "heads that do not divide": (
        break_config(n_head=5),
        "n_embd = 32 is not divisible by n_head = 5",
    ),
    "a broken config": (cut_short("config.json"), "config.json is damaged"),
    "no config": (lambda f: (f / "config.json").unlink(), "it has no config.json"),
    "weights cut short": (cut_short("model.safetensors"), "is damaged"),
    "a pickle": (to_pickle, "a pickle can run any code"),
    "another vocabulary": (
        break_config(vocab_size=330),
        r"its config.json disagree: wte.weight is \(320, 32\), not \(330, 32\)",
    ),
    "a tokenizer too large": (break_config(vocab_size=300), "has 320 tokens, the model only 300"),
    "a weight too few": (
        break_weights(lambda w: w.pop("transformer.h.1.ln_2.bias")),
        "h.1.ln_2.bias is missing in its weights",
    ),
    "a weight of other dimensions": (
        break_weights(lambda w: w.update({"transformer.h.0.mlp.c_fc.weight": torch.ones(7)})),
        r"h.0.mlp.c_fc.weight is \(7,\), not \(128, 32\)",
    ),
    "a weight too many": (
        break_weights(lambda w: w.update({"score.weight": torch.ones(2)})),
        "score.weight is not a tensor of GPT-2",
    ),
    "a weight that is no number": (
        break_weights(lambda w: w["transformer.wpe.weight"][3].fill_(torch.nan)),
        "wpe.weight has 32 values that are NaN or infinite",
    ),
    "an index that names no files": (break_index(["model.safetensors"]), "no weight_map of file"),
    "an index of other things": (break_index({"a": 5}), "no weight_map of file names"),
    "weights that are a folder": (
        weights_as_folder,
        "model.safetensors cannot be read: it is a fo",
    ),
    **{
        f"an index that names {file!r}": (
            break_index({"wte.weight": file}),
            "not a .safetensors file",
        )
        for file in ("", ".", "..", "/etc/passwd", "a/b.safetensors", "a\0.safetensors", "w.bin")
    },
    "no tokenizer": (lambda f: (f / "tokenizer.json").unlink(), "no tokenizer at"),
}


@pytest.mark.parametrize(("damage", "message"), WRONG.values(), ids=WRONG)
def test_what_does_not_fit_is_one_line_and_leaves_nothing(theirs, tmp_path, damage, message):
    _, folder = theirs()
    damage(folder)
    with pytest.raises(AGI2Error, match=message) as found:
        import_huggingface(str(folder), tmp_path / "in")
    assert "\n" not in str(found.value)
    assert "theirs" in str(found.value)
    assert not (tmp_path / "in").exists()


def test_a_folder_that_is_none_or_is_ours_already_is_refused(saved, tmp_path):
    with pytest.raises(AGI2Error, match="/nowhere/at/all: no such folder"):
        import_huggingface("/nowhere/at/all", tmp_path / "in")
    _, folder = saved()
    with pytest.raises(AGI2Error, match="is a model of AGI2's already"):
        import_huggingface(str(folder), tmp_path / "in")


# The hub


class Hub(SimpleHTTPRequestHandler):
    """What the hub answers about one model, in what `huggingface_hub` asks: files of a folder."""

    commit = "a" * 40
    asked: list[str]

    def __init__(self, *arguments, folder, asked):
        self.folder, self.asked = folder, asked
        super().__init__(*arguments)

    def answer(self):
        self.asked.append(f"{self.command} {self.path}")
        path = self.path.split("?")[0]
        if path == "/api/models/someone/tiny" or path == "/api/models/someone/tiny/revision/main":
            names = [{"rfilename": file.name} for file in self.folder.iterdir()]
            found = {"id": "someone/tiny", "sha": self.commit, "siblings": names}
            return self.send(json.dumps(found).encode())
        if path.startswith("/api/models/someone/tiny/tree/"):
            found = [
                {"type": "file", "path": f.name, "size": f.stat().st_size, "oid": sha256_of(f)[:40]}
                for f in self.folder.iterdir()
            ]
            return self.send(json.dumps(found).encode())
        file = self.folder / path.rpartition("/")[2]
        if path.startswith("/someone/tiny/resolve/") and file.is_file():
            return self.send(file.read_bytes(), ETag=f'"{sha256_of(file)}"')
        return self.send(b"{}", 404, **{"X-Error-Code": "RepoNotFound"})

    do_GET = do_HEAD = answer

    def send(self, body, status=200, **headers):
        self.send_response(status)
        for key, value in headers.items():
            self.send_header(key, value)
        self.send_header("X-Repo-Commit", self.commit)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if self.command == "GET":
            self.wfile.write(body)

    def log_message(self, *_):
        pass


@pytest.fixture
def hub(tmp_path):
    """A hub where the folder `theirs` is `someone/tiny`: its address, and what it is asked for."""
    asked = []
    handler = partial(Hub, folder=tmp_path / "theirs", asked=asked)
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    yield f"http://127.0.0.1:{server.server_port}", asked
    server.shutdown()
    server.server_close()
    thread.join()


# The hub's address is read when its client is imported: the process may be a fork of one that has.
IMPORT = """
import sys
for name in [name for name in sys.modules if name.startswith("huggingface_hub")]:
    del sys.modules[name]
from pathlib import Path
from src.errors import AGI2Error
from src.formats.huggingface import import_huggingface
for number, name in enumerate(sys.argv[2:]):
    try:
        import_huggingface(name, Path(sys.argv[1]) / f"in-{number}")
        print("there")
    except AGI2Error as error:
        print(error)
"""


def import_names(endpoint, folder, *names):
    """Import in a process of its own, whose hub is `endpoint`: what it says of each name."""
    environment = {**os.environ, "HF_ENDPOINT": endpoint, "HF_HOME": str(folder / "home")}
    found = run_python("-c", IMPORT, folder, *names, environment=environment)
    assert found.returncode == 0, found.stderr
    return found.stdout.splitlines()


@needs_fork
def test_a_name_is_fetched_from_the_hub_once(theirs, hub, tmp_path):
    twin, folder = theirs()
    (folder / "pytorch_model.bin").write_bytes(b"a pickle, which nobody asks for")
    endpoint, asked = hub
    said = import_names(endpoint, tmp_path, "someone/tiny", "someone/tiny", "someone/else")
    assert said[:2] == ["there", "there"]
    assert len(said) == 3
    assert said[2].startswith("someone/else is not a folder, and could not be fetched")
    ours = load_model(tmp_path / "in-0")
    tokens = some_tokens(ours.model)
    assert_same_in_float64(exact_logits(ours.model, tokens), exact_logits(twin, tokens))
    assert sum(line.startswith("GET") and "model.safetensors" in line for line in asked) == 1
    assert not any("pytorch_model.bin" in line for line in asked)


def test_a_name_without_a_network_is_one_line_without_trying_for_long(tmp_path, monkeypatch):
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "ENDPOINT", "http://127.0.0.1:9")
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
    waits = []
    monkeypatch.setattr(time, "sleep", waits.append)  # between tries
    with pytest.raises(AGI2Error, match="check the name and the network, or give a f") as found:
        import_huggingface("someone/tiny", tmp_path / "in")
    assert str(found.value).startswith("someone/tiny is not a folder, and could not be fetched")
    assert "hub (Connection refused): check" in str(found.value)
    assert "\n" not in str(found.value)
    assert sum(waits) < 8


# The mapping
