"""`agi2 import` and `agi2 export` on the command line, and their errors."""

import errno
import importlib.util

import pytest
import torch

from src.cli.main import main
from src.errors import AGI2Error
from src.formats.export import FORMATS, export_model
from src.formats.model_dir import load_model, save_weights
from src.nn.lora import add_lora, merge_lora
from tests.bounds import assert_same_in_float64
from tests.tiny_models import exact_logits


def run(capsys, *arguments):
    """Status, standard output and standard error of a command."""
    with pytest.raises(SystemExit) as leaving:
        main([str(argument) for argument in arguments])
    captured = capsys.readouterr()
    return leaving.value.code, captured.out, captured.err


def test_a_model_goes_out_comes_in_and_writes(saved, tmp_path, capsys):
    model, folder = saved(position_embedding="learned")
    status, out, err = run(capsys, "export", folder, tmp_path / "hf")
    assert (status, out) == (0, "")
    assert f"saved to {tmp_path / 'hf'}" in err
    status, out, err = run(capsys, "import", tmp_path / "hf", tmp_path / "in")
    assert (status, out) == (0, "")
    assert f'agi2 generate {tmp_path / "in"} "..."' in err
    tokens = torch.arange(20).view(2, 10)
    assert torch.equal(load_model(tmp_path / "in").model(tokens), model(tokens))
    status, out, _ = run(capsys, "generate", tmp_path / "in" / "config.toml", "the whale")
    assert status == 0
    assert out.startswith("the whale")


def test_nothing_that_exists_is_overwritten(saved, tmp_path, capsys):
    _, folder = saved()
    (tmp_path / "model.gguf").write_text("mine")
    status, _, err = run(capsys, "export", folder, tmp_path / "model.gguf", "--format", "gguf")
    assert status == 2
    assert err == f"error: {tmp_path / 'model.gguf'} exists: name another place, or move it away\n"
    assert (tmp_path / "model.gguf").read_text() == "mine"
    assert run(capsys, "import", tmp_path / "hf", folder)[0] == 2


def test_what_fails_half_way_leaves_nothing_in_the_way(saved, tmp_path, monkeypatch, capsys):
    _, folder = saved()

    def full(*_, **__):
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as broken:
        broken.setattr("src.formats.huggingface.save_tensors", full)
        status, _, err = run(capsys, "export", folder, tmp_path / "hf")
    assert status == 2
    assert "No space left on device" in err
    assert run(capsys, "export", folder, tmp_path / "hf")[0] == 0
    with monkeypatch.context() as broken:
        broken.setattr("src.formats.imported.save_model", full)
        assert run(capsys, "import", tmp_path / "hf", tmp_path / "in")[0] == 2
    assert run(capsys, "import", tmp_path / "hf", tmp_path / "in")[0] == 0
    assert {path.name for path in tmp_path.iterdir()} >= {"hf", "in"}
    assert not [path for path in tmp_path.iterdir() if path.name.startswith(".")]


def test_a_run_s_own_configuration_goes_where_its_folder_goes(saved, tmp_path, capsys):
    _, folder = saved(position_embedding="learned")
    expected = run(capsys, "generate", folder, "the", "-q", "-s", "temperature=0")
    assert expected[0] == 0
    moved = folder.rename(tmp_path / "elsewhere")
    for place in (moved, moved / "config.toml"):
        assert run(capsys, "generate", place, "the", "-q", "-s", "temperature=0") == expected
        status, _, err = run(capsys, "generate", place, "the", "-q", "-s", "model_layer=9")
        assert status == 2
        assert "was trained with model_layer" in err


@pytest.mark.parametrize(
    ("format", "quantize", "message"),
    [
        ("pickle", None, "format must be one of hf, gguf, onnx, not 'pickle'"),
        ("hf", "q8_0", "quantize is for format gguf only"),
        ("gguf", "q4_k", "one of f16, q8_0, q4_0: not 'q4_k'"),
    ],
)
def test_an_unknown_format_is_one_line(saved, tmp_path, format, quantize, message):
    _, folder = saved()
    with pytest.raises(AGI2Error, match=message):
        export_model(folder, tmp_path / "out", format, quantize)
    assert not (tmp_path / "out").exists()


def test_a_kv_cache_is_for_onnx_only(saved, tmp_path, capsys):
    _, folder = saved()
    status, _, err = run(capsys, "export", folder, tmp_path / "out", "--kv-cache")
    assert (status, err) == (2, "error: kv_cache is for format onnx only, not hf\n")


@pytest.mark.parametrize("format", ["gguf", "onnx"])
def test_a_missing_package_is_named_with_what_installs_it(saved, tmp_path, monkeypatch, format):
    _, folder = saved()
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(AGI2Error, match=f"package {FORMATS[format][0]}, which.*--extra interop"):
        export_model(folder, tmp_path / "out", format)


def test_a_folder_without_a_model_is_one_line(tmp_path):
    with pytest.raises(AGI2Error, match="no trained model there"):
        export_model(tmp_path, tmp_path / "out")


@pytest.mark.parametrize("format", FORMATS)
def test_weights_that_are_no_numbers_do_not_go_out(saved, tmp_path, byte_pairs, format):
    model, folder = saved()
    with torch.no_grad():
        model.blocks[1].ffn.expand.bias[2] = torch.inf
    save_weights(model.state_dict(), folder / "model.safetensors", byte_pairs)
    with pytest.raises(AGI2Error, match=r"ffn.expand.bias has 1 value that is NaN"):
        export_model(folder, tmp_path / "out", format)
    assert not (tmp_path / "out").exists()


def test_lora_is_merged_on_the_way_out(saved, tmp_path, byte_pairs):
    from transformers import GPT2LMHeadModel

    # Scaled embeddings would be rounded on the way out.
    model, folder = saved(position_embedding="learned")
    add_lora(model, 2)
    torch.manual_seed(0)
    for parameter in filter(lambda p: p.requires_grad, model.parameters()):
        torch.nn.init.normal_(parameter, std=0.2)
    save_weights(model.state_dict(), folder / "model.safetensors", byte_pairs)
    export_model(folder, tmp_path / "hf")
    theirs = GPT2LMHeadModel.from_pretrained(tmp_path / "hf").eval()
    tokens = torch.arange(20).view(2, 10)
    merge_lora(model)  # to the last bit what goes out
    assert_same_in_float64(exact_logits(theirs, tokens), exact_logits(model, tokens))
