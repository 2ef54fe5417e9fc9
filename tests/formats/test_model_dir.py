"""Saving and loading a model folder: atomic, verified, without pickle."""

import contextlib
import itertools
import os
import random
import re
import shutil
import sys
import threading
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file
from torch import nn

from src.cli.main import main
from src.config import Config
from src.config_loader import load_config, save_config
from src.errors import AGI2Error
from src.formats.model_dir import (
    WEIGHTS,
    load_model,
    load_trained,
    load_weights,
    run_folder,
    save_model,
    save_tensors,
    save_weights,
)
from src.formats.run_dir import check_resumed, resolve_folder
from src.generation import generate_text
from src.inference.sampling import generation_options
from src.model import GPT2Model
from src.tokenizer import BasicTokenizer
from tests.conftest import raising, run_python
from tests.tiny_models import alphabet, saved_model, tiny_config, tiny_model

CHECKOUT = Path(__file__).resolve().parents[2]
ARCHITECTURES = {
    "sinusoidal": {"position_embedding": "sinusoidal"},
    "learned": {"position_embedding": "learned"},
    "untied": {"tie_weights": False, "bias": False},
    "post": {"norm_position": "post", "activation": "relu"},
}


@pytest.mark.parametrize("changes", ARCHITECTURES.values(), ids=ARCHITECTURES)
def test_a_saved_model_loads_with_the_same_logits(tmp_path, changes):
    model = saved_model(tmp_path / "m", **changes)
    loaded = load_model(tmp_path / "m")
    tokens = torch.randint(28, (3, 12))
    assert torch.equal(loaded.model(tokens), model(tokens))
    assert loaded.model.config == model.config
    assert loaded.tokenizer.fingerprint == alphabet().fingerprint
    assert not loaded.model.training


@pytest.mark.parametrize("changes", ARCHITECTURES.values(), ids=ARCHITECTURES)
def test_a_loaded_model_has_nothing_left_without_a_value(tmp_path, changes):
    model = saved_model(tmp_path / "m", **changes)
    loaded = load_model(tmp_path / "m").model
    expected = dict(model.named_parameters()) | dict(model.named_buffers())
    found = dict(loaded.named_parameters()) | dict(loaded.named_buffers())
    assert found.keys() == expected.keys()
    for name, tensor in found.items():
        assert tensor.device.type == "cpu"
        assert torch.equal(tensor, expected[name])
    assert all(isinstance(p, nn.Parameter) and p.requires_grad for p in loaded.parameters())


def test_loading_a_model_does_not_load_the_compiler(tmp_path):
    # PyTorch would need seconds for it, each time that anything is generated.
    saved_model(tmp_path / "m", position_embedding="learned")
    code = (
        "import sys; from src.formats.model_dir import load_model; load_model(sys.argv[1]);"
        "print('torch._dynamo' in sys.modules)"
    )
    assert run_python(code, tmp_path / "m").stdout == "False\n"


def test_a_model_folder_holds_no_pickle(tmp_path):
    saved_model(tmp_path / "m")
    assert {p.name for p in (tmp_path / "m").iterdir()} == {
        *("config.toml", "model.safetensors", "tokenizer.json")
    }


def test_equal_weights_give_equal_files(tmp_path):
    for name, seed in (("a", 0), ("b", 0), ("c", 1)):
        save_weights(tiny_model(seed).state_dict(), tmp_path / name)
    a, b, c = ((tmp_path / name).read_bytes() for name in "abc")
    assert a == b != c


def test_interrupted_weights_leave_the_old_ones(tmp_path, monkeypatch):
    path = tmp_path / "model.safetensors"
    save_weights(tiny_model(0).state_dict(), path)
    before = path.read_bytes()
    monkeypatch.setattr("src.utils.os.replace", raising(KeyboardInterrupt))
    with pytest.raises(KeyboardInterrupt):
        save_weights(tiny_model(1).state_dict(), path)
    assert path.read_bytes() == before
    assert list(tmp_path.iterdir()) == [path]


def test_a_missing_model_is_one_clear_line(tmp_path):
    saved_model(tmp_path / "m")
    (tmp_path / "m" / "model.safetensors").unlink()
    with pytest.raises(AGI2Error, match=r"model\.safetensors: no such file"):
        load_model(tmp_path / "m")


@pytest.mark.parametrize("damage", ["truncated", "garbage", "empty"])
def test_damaged_weights_are_one_clear_line(tmp_path, damage):
    saved_model(tmp_path / "m")
    path = tmp_path / "m" / "model.safetensors"
    content = path.read_bytes()
    path.write_bytes({"truncated": content[:-100], "garbage": b"\xff" * 500, "empty": b""}[damage])
    with pytest.raises(AGI2Error, match=r"model\.safetensors is damaged") as error:
        load_model(tmp_path / "m")
    assert "\n" not in str(error.value)


@given(place=st.floats(0, 1, exclude_max=True), bit=st.integers(0, 7))
@settings(max_examples=15, deadline=None)
def test_a_changed_bit_is_found_or_changes_nothing(tmp_path_factory, place, bit):
    folder = tmp_path_factory.mktemp("m")
    model = saved_model(folder)
    path = folder / "model.safetensors"
    content = bytearray(path.read_bytes())
    # Half of the changes hit the header, which says what the rest means.
    header = 8 + int.from_bytes(content[:8], "little")
    index = int(2 * place * header) if place < 0.5 else int(place * len(content))
    content[index] ^= 1 << bit
    path.write_bytes(content)
    with contextlib.suppress(AGI2Error):
        loaded = load_model(folder).model
        assert all(map(torch.equal, loaded.parameters(), model.parameters()))


def test_a_damaged_note_in_the_header_is_found(tmp_path):
    saved_model(tmp_path / "m")
    path = tmp_path / "m" / "model.safetensors"
    path.write_bytes(path.read_bytes().replace(b"sha256", b'sh\\"56', 1))
    with pytest.raises(AGI2Error, match=r"model\.safetensors is damaged"):
        load_model(tmp_path / "m")


def test_another_tokenizer_than_the_trained_one_is_refused(tmp_path):
    saved_model(tmp_path / "m")
    BasicTokenizer("bacdefghijklmnopqrstuvwxyz").save(tmp_path / "m")
    with pytest.raises(AGI2Error, match="is another tokenizer"):
        load_model(tmp_path / "m")


def test_weights_of_another_shape_are_refused_untouched(tmp_path):
    save_weights(tiny_model(model_embd=32).state_dict(), tmp_path / "w")
    model = tiny_model()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    with pytest.raises(AGI2Error, match=r"another shape: .* is \(.*32.*\), not \("):
        load_weights(model, tmp_path / "w")
    assert all(torch.equal(before[name], tensor) for name, tensor in model.state_dict().items())


@pytest.fixture
def replaced(tmp_path):
    """The folder of a model, two models, and a function that replaces one's weights there."""
    folder = tmp_path / "m"
    models = [saved_model(folder, seed) for seed in (1, 2)]
    files = [tmp_path / "0", tmp_path / "1"]
    for file, model in zip(files, models, strict=True):
        save_weights(model.state_dict(), file, alphabet())

    turn = itertools.cycle(files)

    def replace():
        os.link(next(turn), tmp_path / "next")
        os.replace(tmp_path / "next", folder / "model.safetensors")

    return SimpleNamespace(folder=folder, models=models, replace=replace)


def assert_one_of(models, folder):
    found = load_model(folder).model.state_dict()
    assert any(
        all(torch.equal(found[name], weight) for name, weight in model.state_dict().items())
        for model in models
    )


@pytest.mark.parametrize("seed", range(3))
def test_a_model_that_is_replaced_at_any_moment_is_one_or_the_other(replaced, seed):
    """As where a training saves better weights while a text is generated with the old ones.

    Replaced at every fourth or so of the calls into C, such as those that read the file.
    """
    draw = random.Random(seed)
    calls = []

    def replace(frame, event, function):
        if event == "c_call" and draw.random() < 0.25:
            calls.append(function.__name__)
            replaced.replace()

    before = sys.getprofile()
    sys.setprofile(replace)
    try:
        assert_one_of(replaced.models, replaced.folder)
    finally:
        sys.setprofile(before)
    assert len(calls) > 100


def test_a_model_that_is_replaced_all_the_time_is_one_or_the_other(replaced):
    """By another thread, so also during calls into C."""
    over = threading.Event()

    def replace():
        while not over.is_set():
            replaced.replace()

    thread = threading.Thread(target=replace)
    thread.start()
    try:
        for _ in range(20):
            assert_one_of(replaced.models, replaced.folder)
    finally:
        over.set()
        thread.join()


# Sizes are compared with the file before anything is built.


@pytest.mark.parametrize(
    ("key", "value", "found"),
    [
        ("model_layer", 1024, r"has 2 layers, config.toml says model_layer = 1024"),
        ("model_layer", 1, r"has 2 layers, config.toml says model_layer = 1"),
        ("model_layer", 10**9, r"config.toml:\d+: model_layer must be at most 1,024, not 1"),
        ("vocab_size", 2**20, r"another shape: token_embeddings.weight is \(28, 16\), not"),
        ("model_ff", 2**20, r"another shape: blocks.0.ffn.contract"),
        ("model_embd", 2**16, r"this model of .* parameters takes .*, this machine has"),
        (
            "model_positions",
            2**20,
            r"model.safetensors: this model of .* parameters takes .*, this",
        ),
    ],
)
def test_sizes_beyond_the_file_are_refused_before_anything_is_built(
    tmp_path, monkeypatch, key, value, found
):
    saved_model(tmp_path / "m")
    path = tmp_path / "m" / "config.toml"
    path.write_text(re.sub(rf"^{key} = .*$", f"{key} = {value}", path.read_text(), flags=re.M))
    # 24 B for each number of the position table, while it is computed.
    monkeypatch.setattr("src.cuda_utils.available_memory", lambda device: 24 * 2**20 * 16)
    with pytest.raises(AGI2Error, match=found):
        load_model(tmp_path / "m")


def test_lora_matrices_of_other_shapes_are_refused(tmp_path):
    saved_model(tmp_path / "m")
    weights = tiny_model().state_dict()
    name = "blocks.0.ffn.expand"  # (64, 16)
    for down, up in (((2, 16), (64, 3)), ((2, 17), (64, 2)), ((2, 16), (65, 2)), ((2,), (64, 2))):
        lora = {f"{name}.lora_down": torch.ones(down), f"{name}.lora_up": torch.ones(up)}
        save_weights({**weights, **lora}, tmp_path / "m" / "model.safetensors")
        with pytest.raises(AGI2Error, match=rf"another shape: {name}.lora_"):
            load_model(tmp_path / "m")
    save_weights(
        {**weights, f"{name}.lora_down": torch.ones(2, 16)}, tmp_path / "m" / "model.safetensors"
    )
    with pytest.raises(AGI2Error, match=rf"{name}.lora_up is nothing"):
        load_model(tmp_path / "m")


@pytest.mark.parametrize("layers", [1, 3])
def test_weights_with_layers_too_few_or_too_many_are_refused(tmp_path, layers):
    save_weights(tiny_model(model_layer=layers).state_dict(), tmp_path / "w")
    with pytest.raises(AGI2Error, match="nothing"):
        load_weights(tiny_model(), tmp_path / "w")


def test_a_tokenizer_larger_than_the_model_is_refused(tmp_path):
    save_model(tiny_model(), alphabet(), tiny_config(), tmp_path / "m")
    BasicTokenizer("abcdefghijklmnopqrstuvwxyz0123").save(tmp_path / "m")
    with pytest.raises(AGI2Error, match="32 tokens, the model only 28"):
        load_model(tmp_path / "m")


# The model that a configuration names.


def trained(tmp_path, **changes):
    config = tiny_config(model_name="run", output_dir=str(tmp_path), **changes)
    save_model(GPT2Model(config), alphabet(), config, run_folder(config))


@pytest.mark.parametrize(
    "given",
    [
        {},
        {"model_embd": 16, "model_head": 2},
        {"dropout": 0.3},
        {"vocab_size": 5000},
        {"gradient_checkpointing": True},
        {"temperature": 0.1},
        {"model_ff": 64},
    ],
)
def test_a_configuration_finds_the_model_it_trained(tmp_path, given):
    trained(tmp_path)
    config = Config(model_name="run", output_dir=str(tmp_path), **given)
    assert load_trained(config).model.config.d_model == 16


@pytest.mark.parametrize(
    ("key", "value", "was"),
    [
        ("model_embd", 32, "16"),
        ("model_layer", 3, "2"),
        ("model_head", 4, "2"),
        ("activation", "relu", "'gelu_tanh'"),
        ("model_positions", 64, "12"),
        ("model_ff", 80, "64"),
        ("tie_weights", False, "True"),
    ],
)
def test_a_configuration_of_another_architecture_is_refused(tmp_path, key, value, was):
    trained(tmp_path)
    given = {"model_head": 2, key: value}
    config = Config(model_name="run", output_dir=str(tmp_path), **given)
    with pytest.raises(AGI2Error, match=f"trained with {key} = {was}") as error:
        load_trained(config)
    assert repr(value) in str(error.value)


def test_a_model_that_is_not_trained_yet_says_which_command_trains(tmp_path):
    config = Config(model_name="later", output_dir=str(tmp_path))
    with pytest.raises(AGI2Error, match=r"later: no trained model there.*agi2 train"):
        load_trained(config)


@pytest.mark.parametrize("kind", [torch.bfloat16, torch.float16, torch.float64])
@pytest.mark.parametrize("names", ["all", "norm", "bias"])
def test_a_file_of_other_numbers_is_read_in_float32(kind, names, tmp_path):
    """All of them, or some: each is what the file says, exactly."""
    saved_model(tmp_path)
    path = tmp_path / WEIGHTS
    tensors = {
        name: tensor.to(kind) if names == "all" or names in name else tensor
        for name, tensor in load_file(path).items()
    }
    save_file(tensors, path)
    weights = load_model(tmp_path).model.state_dict()
    assert {weight.dtype for weight in weights.values()} == {torch.float32}
    for name, weight in weights.items():
        assert torch.equal(weight, tensors[name].float())


def test_a_file_of_integers_is_refused_in_one_line(tmp_path):
    saved_model(tmp_path)
    path = tmp_path / WEIGHTS
    tensors = load_file(path)
    tensors["final_norm.weight"] = tensors["final_norm.weight"].to(torch.int8)
    save_file(tensors, path)
    with pytest.raises(
        AGI2Error, match=r": final_norm.weight holds int8, not floating-point numbers$"
    ):
        load_model(tmp_path)


# --- the model's own methods ----------------------------------------------------------------


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("with_tokenizer", [True, False])
def test_a_model_saved_by_its_own_method_is_the_same(tmp_path, tied, with_tokenizer):
    model = tiny_model(tie_weights=tied, dropout=0.3, activation="relu")
    tokens = torch.arange(10).unsqueeze(0)
    with torch.no_grad():
        expected = model(tokens)
    model.save_pretrained(str(tmp_path / "m"), alphabet() if with_tokenizer else None)
    again = GPT2Model.from_pretrained(tmp_path / "m", device="cpu")
    assert not again.training
    assert again.config == model.config
    assert (again.head is None) is tied
    with torch.no_grad():
        assert torch.equal(again(tokens), expected)
    if with_tokenizer:
        assert load_model(tmp_path / "m").tokenizer.encode("ab") == alphabet().encode("ab")


def test_a_tokenizer_of_another_model_is_not_left_in_a_folder(tmp_path):
    tiny_model().save_pretrained(tmp_path, alphabet())
    with pytest.raises(AGI2Error, match=r"has a tokenizer: pass the model's own, or name a new"):
        tiny_model().save_pretrained(tmp_path)


def test_a_folder_without_a_model_is_one_line(tmp_path):
    with pytest.raises(AGI2Error, match=r"^\S*: no model there that save_pretrained or training"):
        GPT2Model.from_pretrained(tmp_path)
    (tmp_path / "config.json").write_text("{}")
    with pytest.raises(AGI2Error, match=r"; make it one: agi2 import \S* NEW_FOLDER$"):
        GPT2Model.from_pretrained(tmp_path)


def test_a_trained_model_generates_as_its_configuration_says(tmp_path, capsys):
    folder = tmp_path / "run"
    keys = {"max_length": 9, "temperature": 0.7, "top_k": 5, "sampling_seed": 3, "model_seed": "xy"}
    saved_model(folder, **keys)
    trained = load_model(folder)
    text = trained.generate("abc")
    assert text == "abc" + "".join(trained.stream("abc"))
    options = generation_options(trained.config)
    assert text == generate_text(trained.model, "abc", tokenizer=trained.tokenizer, **options)
    with pytest.raises(SystemExit) as ended:
        main(["generate", str(folder), "abc", "--quiet"])
    assert ended.value.code == 0
    assert capsys.readouterr().out == text + "\n"
    assert trained.generate("abc", sampling_seed=4, max_length=30) != text
    assert trained.generate(trained.tokenizer.encode("abc")) == text
    with pytest.raises(AGI2Error, match=r"temperatur; did you mean temperature\?"):
        trained.generate("abc", temperatur=1.0)
    with pytest.raises(AGI2Error, match=r'^quantize = "int8": call prepare_for_generation'):
        trained.generate("abc", quantize="int8")


# A folder that is named is that folder, or an error.


@pytest.fixture
def two_runs(tmp_path, monkeypatch):
    """The run `m` is trained; `m.1` is an earlier one of that name, killed before it saved."""
    monkeypatch.chdir(tmp_path)
    config = tiny_config(model_name="m")
    save_model(tiny_model(1), alphabet(), config, Path("trained/m"))
    shutil.copytree("trained/m", "trained/m.1")
    Path("trained/m.1/model.safetensors").unlink()
    Path("trained/m.1/metrics.jsonl").touch()
    return tmp_path


def test_a_folder_without_weights_is_never_another_run(two_runs):
    for inside in ("tokenizer.json", "metrics.jsonl", "config.toml"):
        for named in ("trained/m.1", "trained/m.1/config.toml", Path("trained/m.1").absolute()):
            with pytest.raises(AGI2Error, match=r"m\.1 contains no trained model") as error:
                load_trained(Config(model_name="m"), file=named)
            assert "train it again" in str(error.value)
        # As early as a run may be killed, the less there is in its folder.
        (Path("trained/m.1") / inside).unlink()


def test_a_folder_with_checkpoints_but_no_weights_says_how_to_go_on(two_runs):
    Path("trained/m.1/checkpoints/step-00000002").mkdir(parents=True)
    with pytest.raises(AGI2Error, match=r"agi2 train trained/m\.1 --resume"):
        load_trained(Config(model_name="m"), file="trained/m.1")


@pytest.mark.parametrize(
    "named", ["copy", "copy/config.toml", "trained/m", "trained/m/config.toml"]
)
def test_a_folder_is_itself_wherever_it_lies(two_runs, named):
    shutil.copytree("trained/m", "copy")
    save_weights(tiny_model(2).state_dict(), Path("copy/model.safetensors"), alphabet())
    found = load_trained(Config(model_name="m"), file=named).model
    expected = tiny_model(2 if named.startswith("copy") else 1)
    assert all(map(torch.equal, found.parameters(), expected.parameters()))


@pytest.mark.parametrize("key", ["model_name", "output_dir"])
def test_another_model_than_the_named_folder_is_refused(two_runs, key):
    config = Config(**{"model_name": "m", key: "other"})
    for named in ("trained/m", "trained/m/config.toml"):
        if (key, named) == ("output_dir", "trained/m/config.toml"):
            Path("trained/m/metrics.jsonl").touch()
        with pytest.raises(AGI2Error, match=f"{key} = 'other', but trained/m is the model that wa"):
            load_trained(config, file=named)


def test_a_configuration_of_ones_own_names_the_model_that_it_trains(two_runs):
    Path("config.toml").touch()
    for named in ("config.toml", "mine.toml"):
        assert resolve_folder(Config(model_name="m"), named) == Path("trained/m")
        assert load_trained(Config(model_name="m"), file=named).config.model_name == "m"


def test_a_moved_run_s_own_configuration_does_not_resume_another(two_runs):
    config = Config(model_name="m", resume="auto")
    with pytest.raises(AGI2Error, match=r"of the run in trained/m\.1, but its keys name trained/m"):
        check_resumed(config, "trained/m.1/config.toml")
    check_resumed(config, "trained/m/config.toml")
    check_resumed(config, "mine.toml")
    check_resumed(Config(model_name="m", resume="trained/m.1"), "trained/m.1/config.toml")


@pytest.mark.parametrize("note", ["[1]", '{"sha256": 5}', "{", "[" * 9999])
def test_a_note_that_is_none_is_one_line(tmp_path, note):
    save_tensors(tiny_model().state_dict(), tmp_path / "w", {"agi2": note})
    with pytest.raises(AGI2Error, match="w is damaged: its metadata is n"):
        load_weights(tiny_model(), tmp_path / "w")


@pytest.mark.parametrize(("key", "value"), [("model_head", 1), ("activation", "relu")])
def test_a_key_that_changes_no_shape_is_still_the_one_that_was_trained_with(tmp_path, key, value):
    folder = tmp_path / "m"
    model = tiny_model()
    save_model(model, alphabet(), Config(model_name="m"), folder)
    config = load_config(folder / "config.toml")
    assert config[key] != value
    save_config(config.changed(**{key: value}), folder / "config.toml")
    with pytest.raises(AGI2Error, match=f"was trained with {key} = .*says {value!r}: set it back"):
        load_model(folder)


def test_long_loading_and_saving_are_shown(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(
        "src.console._log_if_slow", lambda what, _: contextlib.nullcontext(print(what))
    )
    model = saved_model(tmp_path / "m")
    GPT2Model.from_pretrained(tmp_path / "m")
    model.save_pretrained(tmp_path / "n")
    GPT2Model.from_pretrained(tmp_path / "n")
    expected = [f"{what} {tmp_path / name}" for name in "mn" for what in ("saving", "loading")]
    assert capsys.readouterr().out.splitlines() == expected
    model.save_pretrained(tmp_path / "n", verbose=False)
    GPT2Model.from_pretrained(tmp_path / "n", verbose=False)
    load_model(tmp_path / "m", verbose=False)
    assert capsys.readouterr().out == ""


@pytest.mark.parametrize("has_run", [True, False])
def test_a_checkpoint_in_shards_is_no_model_and_says_what_to_do(tmp_path, capsys, has_run):
    saved_model(tmp_path / "m")
    checkpoint = tmp_path / "m" / "checkpoints" / "step-00000002"
    shutil.copytree(tmp_path / "m", checkpoint)
    (checkpoint / WEIGHTS).unlink()
    (checkpoint / "shards").mkdir()
    if not has_run:
        (tmp_path / "m" / WEIGHTS).unlink()
    where = f"name the run's folder, {tmp_path / 'm'}, or " * has_run
    line = f"not a model: {where}continue its run: set resume to this folder"
    for read in (load_model, GPT2Model.from_pretrained):
        with pytest.raises(AGI2Error, match=re.escape(line)):
            read(checkpoint)
    for arguments in (["generate", checkpoint, "x"], ["export", checkpoint, tmp_path / "out"]):
        with pytest.raises(SystemExit) as leaving:
            main([str(each) for each in arguments])
        assert leaving.value.code == 2
        assert "is a checkpoint in shards" in capsys.readouterr().err
