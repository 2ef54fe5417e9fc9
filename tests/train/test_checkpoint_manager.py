"""The run folder, and which checkpoints a run resumes from."""

import json
import logging
import shutil
import threading

import pytest
import torch

from src import training
from src.errors import AGI2Error
from src.formats.model_dir import load_model
from src.tokenizer import BasicTokenizer
from src.train.checkpoint import list_checkpoints, newest_checkpoint
from src.train.checkpoint_manager import FIXED_ON_RESUME, Background
from src.train.folder_lock import FolderLock
from src.training import train_from_config, train_model
from tests.tiny_models import training_in_float64

OTHERS = {
    "val_fraction": 0.2,
    "tokenizer": "bpe",
    "seq_len": 8,
    "batch_size": 4,
    "seed": 5,
    "optimizer": "muon",
    "lowercase": False,
    "fold_whitespace": False,
    "byte_fallback": True,
    "special_tokens": ["<a>"],
    "windows": "packed",
    "mask_documents": True,
    "source_weights": [2.0],
    "model_embd": 32,
    "model_layer": 2,
    "model_head": 4,
    "activation": "relu",
    "position_embedding": "learned",
}


BPE_OTHERS = {"pretokenizer": "gpt4", "split_digits": True}


def contents(folder):
    return {file: file.read_bytes() for file in folder.rglob("*") if file.is_file()}


@pytest.fixture
def finished(copied_run):
    return copied_run("run", max_steps=2)


def test_a_resumed_run_may_not_become_another(tiny_run, finished):
    # LoRA is refused in `test_training.py`: it needs a model to begin from; a share of text in
    # `test_conversation_runs.py`: it needs conversations.
    assert set(FIXED_ON_RESUME) - {"lora_rank", "text_share"} <= OTHERS.keys() | BPE_OTHERS.keys()
    before = contents(finished.folder)
    for key, value in OTHERS.items():
        with pytest.raises(AGI2Error, match=f"trained with {key} = ") as error:
            train_from_config(tiny_run(max_steps=2, resume="auto", **{key: value}))
        assert "\n" not in str(error.value)
        assert "set it back, or start from scratch" in str(error.value)
    assert contents(finished.folder) == before


def test_the_words_of_a_vocabulary_may_not_change_on_resume(tiny_run):
    train_from_config(tiny_run(max_steps=1, tokenizer="bpe", vocab_size=300))
    for key, value in BPE_OTHERS.items():
        keys = {"max_steps": 1, "tokenizer": "bpe", "vocab_size": 300, key: value}
        with pytest.raises(AGI2Error, match=f"trained with {key} = "):
            train_from_config(tiny_run(resume="auto", **keys))


def test_a_text_that_was_moved_is_gone_on_with(tiny_run, tmp_path):
    options = {"max_steps": 4, "lr_schedule": "constant", "warmup_steps": 0}
    train_from_config(tiny_run("other", **{**options, "max_steps": 2}))
    options["sources"] = [str(shutil.move(tmp_path / "corpus.txt", tmp_path / "moved.md"))]
    resumed = train_from_config(tiny_run("other", resume="auto", **options))
    whole = train_from_config(tiny_run("whole", **options))
    for a, b in zip(resumed.model.parameters(), whole.model.parameters(), strict=True):
        assert torch.equal(a, b)


def test_a_folder_in_which_another_process_trains_is_left_alone(tiny_run, finished):
    lock = FolderLock(finished.folder)
    before = contents(finished.folder)
    for resume in (None, "auto"):
        with pytest.raises(AGI2Error, match="another process is training there"):
            train_from_config(tiny_run(max_steps=3, resume=resume))
    assert contents(finished.folder) == before
    lock.release()
    assert train_from_config(tiny_run(max_steps=3, resume="auto")).history["steps"] == 3
    assert not (finished.folder / ".lock").exists()


def test_a_run_that_was_trained_since_the_folder_was_looked_for_is_not_moved_away(
    tiny_run, monkeypatch
):
    prepare = training.prepare_on_rank_0

    def after_another_process(*arguments):
        monkeypatch.setattr(training, "prepare_on_rank_0", prepare)
        train_from_config(tiny_run(max_steps=2))
        return prepare(*arguments)

    monkeypatch.setattr(training, "prepare_on_rank_0", after_another_process)
    with pytest.raises(AGI2Error, match="another process has trained there meanwhile"):
        train_from_config(tiny_run(max_steps=3, resume="auto"))
    resumed = train_from_config(tiny_run(max_steps=3, resume="auto"))
    assert resumed.history["steps"] == 3
    assert [path.name for path in resumed.folder.parent.iterdir()] == ["run"]


@pytest.mark.parametrize("resume", [None, "auto"])
def test_a_folder_is_locked_from_the_choice_of_its_checkpoint_to_its_report(
    tiny_run, finished, monkeypatch, resume
):
    """Else another process could train in between, or the report be of another run."""
    refused = []

    def with_another_start(call):
        def wrapped(*arguments):
            with pytest.raises(AGI2Error, match="another process is training there"):
                FolderLock(finished.folder)
            refused.append(call.__name__)
            return call(*arguments)

        return wrapped

    for call in (training.find_checkpoint_to_resume, training.write_report):
        monkeypatch.setattr(training, call.__name__, with_another_start(call))
    train_from_config(tiny_run(max_steps=3, resume=resume))
    assert refused == ["find_checkpoint_to_resume", "write_report"]
    assert not list(finished.folder.parent.rglob(".lock"))


def test_a_refused_start_leaves_no_lock(tiny_run, finished, corpus):
    corpus.write_text("Another text.", encoding="utf-8")
    with pytest.raises(AGI2Error):
        train_from_config(tiny_run(max_steps=3, resume="auto"))
    FolderLock(finished.folder).release()
    assert not list(finished.folder.parent.rglob(".lock"))


def test_a_resumed_run_may_not_change_the_dtype_of_its_weights(tiny_run, finished):
    with (
        training_in_float64(),
        pytest.raises(AGI2Error, match="weights of float32, the model of float64"),
    ):
        train_from_config(tiny_run(max_steps=4, resume="auto"))


def test_a_resumed_run_may_not_change_its_tokenizer(tiny_run, finished):
    other = BasicTokenizer([chr(200 + i) for i in range(finished.tokenizer.vocab_size - 2)])
    config = tiny_run(max_steps=4, resume="auto")
    with pytest.raises(AGI2Error, match="trained with another tokenizer"):
        train_model(finished.model, other, **config)
    assert newest_checkpoint(finished.folder).state["step"] == 2


def test_a_text_that_changed_is_not_gone_on_with(tiny_run, corpus):
    train_from_config(tiny_run())
    corpus.write_text("Another text. " + corpus.read_text(encoding="utf-8"), encoding="utf-8")
    with pytest.raises(AGI2Error, match=r"the text has changed since .*step-00000012"):
        train_from_config(tiny_run(max_steps=20, resume="auto"))


def test_a_resumed_run_says_which_keys_have_changed(tiny_run, caplog):
    caplog.set_level(logging.INFO, "agi2")
    train_from_config(tiny_run(max_steps=2))
    train_from_config(tiny_run(max_steps=3, learning_rate=0.002, resume="auto"))
    said = [line for line in caplog.messages if " is now " in line and "steps long" not in line]
    assert said == ["max_steps is now 3, it was 2", "learning_rate is now 0.002, it was 0.01"]


# A checkpoint by itself.

SMALL = {"max_steps": 4, "checkpoint_interval": 2, "eval_interval": 2}


def without(place, *names):
    """Make a checkpoint one that has never had some files."""
    manifest = json.loads((place / "manifest.json").read_text())
    for name in names:
        del manifest[name]
        (place / name).unlink()
    (place / "manifest.json").write_text(json.dumps(manifest))


@pytest.mark.parametrize("name", ["step-00000002", "backup"])
def test_a_checkpoint_that_was_copied_is_resumed_and_loaded_by_itself(tiny_run, tmp_path, name):
    whole = train_from_config(tiny_run("whole", **SMALL))
    copy = tmp_path / "elsewhere" / name
    shutil.copytree(whole.folder / "checkpoints" / "step-00000002", copy)
    middle = load_model(copy)
    assert middle.tokenizer.fingerprint == whole.tokenizer.fingerprint
    assert middle.model.config == whole.model.config
    shutil.rmtree(whole.folder)
    resumed = train_from_config(tiny_run("whole", resume=str(copy), **SMALL))
    for a, b in zip(resumed.model.parameters(), whole.model.parameters(), strict=True):
        assert torch.equal(a, b)
    files = json.loads((copy / "manifest.json").read_text()).keys()
    assert {"tokenizer.json", "config.toml"} <= files


def test_a_checkpoints_tokenizer_is_held_to_its_hash(tiny_run):
    place = train_from_config(tiny_run(**SMALL)).folder / "checkpoints" / "step-00000002"
    (place / "tokenizer.json").write_text("{}")
    with pytest.raises(AGI2Error, match=r"tokenizer\.json is damaged"):
        train_from_config(tiny_run(resume=str(place), **SMALL))


def test_a_checkpoint_of_an_earlier_version_has_its_runs_tokenizer(tiny_run):
    whole = train_from_config(tiny_run("whole", **SMALL))
    broken = train_from_config(tiny_run("broken", **SMALL))
    place = broken.folder / "checkpoints" / "step-00000002"
    without(place, "tokenizer.json", "config.toml")
    resumed = train_from_config(tiny_run("broken", resume=str(place), **SMALL))
    for a, b in zip(resumed.model.parameters(), whole.model.parameters(), strict=True):
        assert torch.equal(a, b)


@pytest.mark.parametrize("keep", [1, 3])
def test_only_so_many_checkpoints_stay_on_disk(tiny_run, keep):
    run = train_from_config(tiny_run(checkpoint_interval=2, keep_checkpoints=keep))
    steps = [int(place.name[-8:]) for place in list_checkpoints(run.folder)]
    assert steps == [12, 10, 8][:keep][::-1]


def test_a_fresh_run_moves_the_old_folder_aside(tiny_run, caplog):
    first = train_from_config(tiny_run(max_steps=2))
    files = {p.name: p.read_bytes() for p in first.folder.iterdir() if p.is_file()}
    with caplog.at_level(logging.INFO, logger="agi2"):
        second = train_from_config(tiny_run(max_steps=3, seed=2))
    aside = first.folder.with_name("run.1")
    assert f"moved to {aside}" in caplog.text
    assert {p.name: p.read_bytes() for p in aside.iterdir() if p.is_file()} == files
    assert newest_checkpoint(aside).state["step"] == 2
    assert newest_checkpoint(second.folder).state["step"] == 3
    train_from_config(tiny_run(max_steps=4))
    assert newest_checkpoint(first.folder.with_name("run.2")).state["step"] == 3


def test_what_a_kill_left_half_written_is_gone_after_the_next_start(tiny_run):
    run = train_from_config(tiny_run(max_steps=2))
    (run.folder / ".model.safetensors.0123abcd").write_bytes(b"half")
    partial = run.folder / "checkpoints" / ".step-00000009.partial"
    partial.mkdir()
    (partial / "model.safetensors").write_bytes(b"half")
    kept = run.folder / ".notes"
    kept.write_text("mine")
    train_from_config(tiny_run(max_steps=3, resume="auto"))
    assert kept.is_file()
    assert not partial.exists()
    assert not (run.folder / ".model.safetensors.0123abcd").exists()


def test_background_work_is_done_one_piece_at_a_time_and_waited_for():
    done, background, may_end = [], Background(), threading.Event()

    def slow(piece):
        may_end.wait()
        done.append(piece)

    background.start(lambda: slow(1))
    assert done == []  # the start has not waited
    may_end.set()
    background.start(lambda: done.append(2))  # waits for the first
    assert done[0] == 1
    background.wait()
    background.wait()
    assert done == [1, 2]


def test_what_background_work_raises_is_raised_by_whoever_waits():
    background = Background()
    background.start(lambda: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        background.wait()
    background.wait()
