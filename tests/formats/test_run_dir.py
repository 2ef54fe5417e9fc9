"""Resolution of command arguments to files and folders."""

import os

import pytest

from src.config_loader import load_config
from src.errors import AGI2Error
from src.formats.run_dir import (
    check_output,
    check_tokenizer,
    check_weights,
    config_file,
    overrides_for_folder,
    resolve_folder,
    run_folder,
)


@pytest.fixture
def run(tmp_path):
    """A run that was moved: its configuration has the name of before."""
    folder = tmp_path / "trained" / "m.1"
    folder.mkdir(parents=True)
    (folder / "config.toml").write_text('model_name = "m"\noutput_dir = "elsewhere"\n')
    (folder / "metrics.jsonl").write_text("")
    return folder


def test_a_folder_is_its_own_configuration_and_model(run):
    for argument in (str(run), f"{run}/"):
        file = config_file(argument)
        assert file == str(run / "config.toml")
        assert resolve_folder(load_config(file), file) == run


@pytest.mark.parametrize("part", ["model.safetensors", "tokenizer.json", "checkpoints"])
def test_a_model_without_a_log_is_its_own_folder(part, run):
    (run / "metrics.jsonl").rename(run / part)
    file = config_file(str(run))
    assert resolve_folder(load_config(file), file) == run


def test_a_file_is_of_the_run_that_it_names(tmp_path):
    # Even if it is called as a run's own is: nothing of a run lies beside it.
    for name in ("my.toml", "config.toml"):
        file = tmp_path / name
        file.write_text('model_name = "m"\n')
        assert config_file(str(file)) == str(file)
        config = load_config(file)
        assert resolve_folder(config, str(file)) == run_folder(config)
        assert overrides_for_folder(str(file)) == []


def test_a_configuration_is_made_one_of_the_folder_that_was_named(run, monkeypatch):
    config = load_config(run / "config.toml", overrides=overrides_for_folder(str(run)))
    assert run_folder(config) == run
    monkeypatch.chdir(run)
    assert run_folder(load_config("config.toml", overrides=overrides_for_folder("."))) == run


@pytest.mark.parametrize("name", ["123", 'a"b', "käse = 1", "1.5", "true"])
def test_a_folder_of_any_name_can_be_named(name, tmp_path):
    folder = tmp_path / name
    folder.mkdir()
    (folder / "config.toml").write_text("")
    assert (
        run_folder(load_config(folder / "config.toml", None, overrides_for_folder(str(folder))))
        == folder
    )


def test_other_folders_and_files_are_refused_by_what_they_are(run, tmp_path):
    foreign, empty = tmp_path / "foreign", tmp_path / "empty"
    checkpoint = run / "checkpoints" / "step-00000003"
    for folder in (foreign, empty, checkpoint):
        folder.mkdir(parents=True)
    (foreign / "config.json").write_text("{}")
    (checkpoint / "state.json").write_text("{}")
    for argument, said in [
        (foreign, f"another project: make it one: agi2 import {foreign} NEW_FOLDER"),
        (checkpoint, f"is a checkpoint: name the run's folder, {run}"),
        (run / "checkpoints", f"contains a run's checkpoints: name the run's folder, {run}"),
        (run.parent, f"contains runs: name one of them; agi2 list {run.parent}"),
        (empty, "is not a folder of a run or a model: it has no config.toml"),
        (run / "metrics.jsonl", f"is part of a model: name its folder, {run}"),
    ]:
        with pytest.raises(AGI2Error) as caught:
            config_file(str(argument))
        assert said in str(caught.value)


def test_a_folder_without_weights_says_how_to_train_them(run):
    file = str(run / "config.toml")
    with pytest.raises(AGI2Error, match=r"m\.1 contains no trained model .*train it again"):
        check_weights(run, file)
    (run / "model.safetensors").write_text("")
    check_weights(run, file)


def test_where_a_run_cannot_be_is_said_before_it_begins(tmp_path, monkeypatch):
    (tmp_path / "file").write_text("")
    monkeypatch.chdir(tmp_path)
    for place in (".", "new", "new/er", str(tmp_path / "new")):
        check_output({"output_dir": place, "model_name": "m"})
    for place in ("file", "file/below", str(tmp_path / "file" / "far" / "below")):
        with pytest.raises(
            AGI2Error, match=r"^output_dir: .*file.* is not a folder, so .*/m cannot"
        ):
            check_output({"output_dir": place, "model_name": "m"})
    with pytest.raises(AGI2Error, match=r"^output_dir: d+.*m: File name too long; set another"):
        check_output({"output_dir": "d" * 5000, "model_name": "m"})
    (tmp_path / "m").write_text("")
    with pytest.raises(AGI2Error, match="m is not a folder"):
        check_output({"output_dir": ".", "model_name": "m"})


def test_a_folder_without_the_right_to_write_is_refused(tmp_path, monkeypatch):
    monkeypatch.setattr("os.access", lambda place, mode: False)  # root has every right
    with pytest.raises(AGI2Error, match="cannot be written to; set another output_dir"):
        check_output({"output_dir": str(tmp_path), "model_name": "m"})


def test_an_empty_name_is_not_the_working_folder(run, monkeypatch):
    monkeypatch.chdir(run)
    with pytest.raises(AGI2Error, match="the name of the model is empty"):
        config_file("")


@pytest.mark.parametrize("kind", ["folder", "pipe", "broken link"])
def test_weights_that_are_no_file_are_not_called_missing(tmp_path, kind):
    weights = tmp_path / "run" / "model.safetensors"
    weights.parent.mkdir()
    if kind == "folder":
        weights.mkdir()
    elif kind == "pipe":
        os.mkfifo(weights)
    else:
        weights.symlink_to("nowhere")
    with pytest.raises(AGI2Error, match=rf"model\.safetensors is a {kind}: put the weights"):
        check_weights(weights.parent, weights.parent)


def test_a_tokenizer_that_does_not_exist_is_told_before_the_text_is_read(tmp_path):
    (tmp_path / "tokenizer.json").write_text("{}")
    for name in ("bpe", "basic", "gpt2", str(tmp_path), str(tmp_path / "tokenizer.json")):
        check_tokenizer({"tokenizer": name, "resume": None})
    for name in ("word", "BPE", str(tmp_path / "none")):
        check_tokenizer({"tokenizer": name, "resume": "auto"})  # the checkpoint brings it
        with pytest.raises(AGI2Error, match="is none of bpe, basic, gpt2, and as a file or folder"):
            check_tokenizer({"tokenizer": name, "resume": None})
