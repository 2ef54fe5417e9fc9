"""The folder of a run that is training: opened, recreated if it is lost, closed."""

import shutil

import pytest

from src.train.setup import prepare
from src.training import make_trainer


@pytest.fixture
def trainer(tiny_run):
    config = tiny_run(max_steps=2)
    trainer = make_trainer(config, prepare(config))
    trainer.fit()
    yield trainer
    trainer.run_folder.close()


def test_a_folder_that_is_there_is_not_created_again(trainer):
    before = {path: path.read_bytes() for path in trainer.folder.rglob("*") if path.is_file()}
    trainer.run_folder.open(None, 0)  # an earlier folder is moved to NAME.1
    assert trainer.folder.with_name("run.1").is_dir()
    trainer.checkpoints.save_best(trainer.model)
    assert not trainer.run_folder.recreate_if_lost(trainer.state)
    assert not trainer.run_folder.needs_checkpoint
    moved = trainer.folder.with_name("run.1")
    assert {path.name for path in before} == {
        path.name for path in moved.rglob("*") if path.is_file()
    }


def test_a_folder_that_is_lost_is_created_again_and_needs_a_checkpoint(trainer):
    trainer.run_folder.open(None, 0)
    shutil.rmtree(trainer.folder)
    assert trainer.state.best_loss < float("inf")
    assert trainer.run_folder.recreate_if_lost(trainer.state)
    assert trainer.state.best_loss == float("inf")
    assert (trainer.folder / "metrics.jsonl").is_file()
    assert trainer.run_folder.needs_checkpoint
    assert trainer.run_folder.save(trainer.state_dict()).is_dir()
    assert not trainer.run_folder.needs_checkpoint
