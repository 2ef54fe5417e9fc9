"""Checkpoints: atomic, verified, without pickle."""

import contextlib
import errno
import functools
import json
import os
import random
import signal
import tempfile
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors import SafetensorError
from safetensors.torch import load_file

from src.config import Config
from src.errors import AGI2Error, one_line
from src.formats.model_dir import save_weights
from src.model import GPT2Model
from src.train import checkpoint
from src.train.checkpoint import (
    FORMAT,
    Snapshot,
    delete_checkpoints_after,
    find_checkpoint,
    list_checkpoints,
    newest_checkpoint,
    open_checkpoint,
    save_checkpoint,
)
from src.train.folder_lock import FolderLock, claim_folder, fcntl
from src.train.optimizer import load_optimizer_tensors, make_optimizers, optimizer_tensors
from tests.conftest import raising
from tests.tiny_models import tiny_config, tiny_model


def save_step(run, step, *, seed=None, keep=10, best=None, form=FORMAT, **more):
    model = tiny_model(step if seed is None else seed)
    tensors, state = {"random": torch.arange(3)}, {"format": form, "step": step, **more}
    snapshot = Snapshot(state, model.state_dict(), tensors, best)
    return save_checkpoint(run, snapshot, keep)


# Optimizer states.


@pytest.mark.parametrize("optimizer", ["adamw", "muon"])
def test_optimizer_states_are_named_and_come_back(optimizer):
    config = tiny_config(optimizer=optimizer)
    model, optimizers = _stepped(config, steps=2)
    tensors = {name: t.clone() for name, t in optimizer_tensors(model, optimizers).items()}
    parameters = {name for name, _ in model.named_parameters()}
    assert {name.removeprefix("optimizer.").rsplit(".", 1)[0] for name in tensors} == parameters

    other, others = _stepped(config, steps=0)
    other.load_state_dict(model.state_dict())
    load_optimizer_tensors(other, others, tensors)
    for each, each_optimizers in ((model, optimizers), (other, others)):
        _step(each, each_optimizers)
    assert all(map(torch.equal, model.parameters(), other.parameters()))


def _stepped(config, steps):
    torch.manual_seed(0)
    model = GPT2Model(config).eval()
    optimizers = make_optimizers(model, config)
    for _ in range(steps):
        _step(model, optimizers)
    return model, optimizers


def _step(model, optimizers):
    model(torch.arange(10).view(1, 10)).logsumexp(-1).sum().backward()
    for optimizer in optimizers:
        optimizer.step()
        optimizer.zero_grad()


# Checkpoints.


def test_a_checkpoint_gives_back_what_was_saved(tmp_path):
    place = save_step(tmp_path, 7)
    assert place == tmp_path / "checkpoints" / "step-00000007"
    checkpoint = open_checkpoint(place)
    assert checkpoint.state == {"format": FORMAT, "step": 7}
    assert checkpoint.run == tmp_path
    model = tiny_model(1)
    tensors = checkpoint.load_into(model)
    assert torch.equal(tensors["random"], torch.arange(3))
    assert all(map(torch.equal, model.parameters(), tiny_model(7).parameters()))


def test_a_state_is_strict_json_whatever_it_holds(tmp_path):
    place = save_step(tmp_path, 7, norm=(float("nan"), float("-inf")))

    def refuse(constant):
        raise AssertionError(constant)

    content = json.loads((place / "state.json").read_text(), parse_constant=refuse)
    assert content["norm"] == [None, None]


def test_a_checkpoint_holds_nothing_that_could_be_unpickled(tmp_path):
    place = save_step(tmp_path, 1)
    assert {file.suffix for file in place.iterdir()} == {".safetensors", ".json"}
    for file in place.glob("*.safetensors"):
        assert load_file(file)
    for file in place.glob("*.json"):
        assert json.loads(file.read_text())


def test_only_the_newest_checkpoints_are_kept(tmp_path):
    for step in (5, 10, 15, 100):
        save_step(tmp_path, step, keep=2)
    assert [p.name for p in list_checkpoints(tmp_path)] == ["step-00000015", "step-00000100"]


def test_a_state_of_an_earlier_version_is_read_under_todays_names(tmp_path):
    place = save_step(tmp_path, 1, evaluations_without_gain=3)
    state = {"format": FORMAT, "step": 1, "validations_without_improvement": 3}
    assert open_checkpoint(place).state == state


def test_later_steps_are_forgotten(tmp_path):
    for step in (1, 2, 3):
        save_step(tmp_path, step)
    save_step(tmp_path, 3).rename(tmp_path / "checkpoints" / "step-00000003.old")
    delete_checkpoints_after(tmp_path, 2)
    assert [p.name for p in list_checkpoints(tmp_path)] == ["step-00000001", "step-00000002"]


def test_other_folders_are_no_checkpoints(tmp_path):
    save_step(tmp_path, 1)
    for name in (".step-00000002.partial", "step-two", "step-00000003.backup"):
        (tmp_path / "checkpoints" / name).mkdir()
    assert [p.name for p in list_checkpoints(tmp_path)] == ["step-00000001"]


def test_the_best_weights_are_kept_as_they_were(tmp_path):
    weights = tmp_path / "model.safetensors"
    save_weights(tiny_model(1).state_dict(), weights)
    best = weights.read_bytes()
    checkpoint = open_checkpoint(save_step(tmp_path, 1, best=weights))
    save_weights(tiny_model(2).state_dict(), weights)
    assert weights.read_bytes() != best
    checkpoint.restore_best(weights)
    assert weights.read_bytes() == best


def test_the_best_weights_are_copied_where_there_are_no_links(tmp_path, monkeypatch):
    monkeypatch.setattr("src.train.checkpoint.os.link", raising(OSError))
    weights = tmp_path / "model.safetensors"
    save_weights(tiny_model(1).state_dict(), weights)
    place = save_step(tmp_path, 1, best=weights)
    assert (place / "best.safetensors").read_bytes() == weights.read_bytes()
    open_checkpoint(place)


def test_without_best_weights_nothing_is_restored(tmp_path):
    weights = tmp_path / "model.safetensors"
    open_checkpoint(save_step(tmp_path, 1)).restore_best(weights)
    assert not weights.exists()


MOMENTS = ["save_tensors", "sha256_of", "sync_file", "sync_folder", "os.rename", "json.dumps"]


@pytest.mark.parametrize("kind", [KeyboardInterrupt, OSError])
@pytest.mark.parametrize("moment", MOMENTS)
def test_an_interrupted_save_leaves_the_last_whole_checkpoint(tmp_path, monkeypatch, moment, kind):
    first = save_step(tmp_path, 1, keep=1)
    with monkeypatch.context() as patch:
        patch.setattr(f"src.train.checkpoint.{moment}", raising(kind))
        with pytest.raises(AGI2Error if kind is OSError else kind):
            save_step(tmp_path, 2, keep=1)
    checkpoint = newest_checkpoint(tmp_path)
    assert checkpoint.folder == first
    assert [p.name for p in first.parent.iterdir()] == [first.name]
    save_step(tmp_path, 2, keep=1)
    assert newest_checkpoint(tmp_path).state["step"] == 2


@pytest.mark.parametrize("renames", [0, 1, 2])
def test_saving_a_step_again_never_leaves_a_moment_without_a_checkpoint(
    tmp_path, monkeypatch, renames
):
    save_step(tmp_path, 1, keep=1)
    done, rename = [], os.rename

    def killed_after(*paths):
        if len(done) == renames:
            raise KeyboardInterrupt
        done.append(paths)
        rename(*paths)

    with monkeypatch.context() as patch:
        patch.setattr("src.train.checkpoint.os.rename", killed_after)
        if renames < 2:
            with pytest.raises(KeyboardInterrupt):
                save_step(tmp_path, 1, seed=5, keep=1)
        else:
            save_step(tmp_path, 1, seed=5, keep=1)
    assert newest_checkpoint(tmp_path).state["step"] == 1
    # And once more: what a kill left behind is no obstacle.
    save_step(tmp_path, 1, seed=6, keep=1)
    save_step(tmp_path, 1, seed=7, keep=1)
    assert [p.name for p in list_checkpoints(tmp_path)] == ["step-00000001"]
    model = tiny_model()
    newest_checkpoint(tmp_path).load_into(model)
    assert all(map(torch.equal, model.parameters(), tiny_model(7).parameters()))


def _truncate(path):
    path.write_bytes(path.read_bytes()[:-20])


def _flip(path):
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)


def _write(content):
    return lambda path: path.write_bytes(content)


DAMAGES = {
    "weights truncated": ("model.safetensors", _truncate),
    "one bit of the weights": ("model.safetensors", _flip),
    "one bit of the optimizer": ("training.safetensors", _flip),
    "state changed": ("state.json", _write(b'{"step": 3}')),
    "weights gone": ("model.safetensors", Path.unlink),
    "state gone": ("state.json", Path.unlink),
    "manifest gone": ("manifest.json", Path.unlink),
    "manifest cut": ("manifest.json", _truncate),
    "manifest empty": ("manifest.json", _write(b"{}")),
    "manifest no mapping": ("manifest.json", _write(b"[1, 2]")),
    "manifest not text": ("manifest.json", _write(b"\xff\xfe\xfa")),
}


@pytest.mark.parametrize(("name", "damage"), DAMAGES.values(), ids=DAMAGES)
def test_a_damaged_checkpoint_is_passed_over(tmp_path, caplog, name, damage):
    first, second = save_step(tmp_path, 1), save_step(tmp_path, 2)
    damage(second / name)
    assert newest_checkpoint(tmp_path).folder == first
    assert "trying the one before" in caplog.text
    assert "step-00000002" in caplog.text
    with pytest.raises(AGI2Error, match="step-00000002") as error:
        find_checkpoint(Config(resume=str(second)))
    assert "\n" not in str(error.value)


# What `resume` names.


def test_resume_names_a_checkpoint_a_run_or_the_newest(tmp_path):
    config = Config(output_dir=str(tmp_path), model_name="run")
    run = tmp_path / "run"
    first, second = save_step(run, 1), save_step(run, 2)
    assert find_checkpoint(config) is None
    assert find_checkpoint(config.changed(resume="auto")).folder == second
    assert find_checkpoint(config.changed(resume=str(run))).folder == second
    assert find_checkpoint(config.changed(resume=str(first))).folder == first
    other = config.changed(model_name="other")
    assert find_checkpoint(other.changed(resume="auto")) is None
    assert find_checkpoint(other.changed(resume=str(run))).folder == second


def test_a_checkpoint_of_another_format_is_refused_and_not_passed_over(tmp_path):
    config = Config(output_dir=str(tmp_path), model_name="run")
    run = tmp_path / "run"
    save_step(run, 1)
    place = save_step(run, 2, form=1)
    for resume in ("auto", str(run), str(place)):
        with pytest.raises(AGI2Error, match="step-00000002 has the format 1, this version of AGI2"):
            find_checkpoint(config.changed(resume=resume))


def test_resume_from_nowhere_is_one_clear_line(tmp_path):
    with pytest.raises(AGI2Error, match="nowhere does not exist; name a checkpoint folder"):
        find_checkpoint(Config(resume=str(tmp_path / "nowhere")))
    with pytest.raises(AGI2Error, match="contains no complete checkpoint"):
        find_checkpoint(Config(resume=str(tmp_path)))


# A folder that is taken.


def claimed(folder):
    """Claim a folder, as a run does at its start; return its lock and the moved folder's path."""
    lock = FolderLock(folder)
    return lock, claim_folder(folder, lock)


def test_a_folder_that_exists_moves_to_the_next_free_number(tmp_path):
    folder = tmp_path / "run"
    (tmp_path / "run.2").symlink_to(tmp_path / "nowhere")
    for content, aside in (("first", None), ("second", "run.1"), ("third", "run.3")):
        lock, moved = claimed(folder)
        assert moved == (aside and tmp_path / aside)
        (folder / "file").write_text(content)
        lock.release()
    texts = {place.parent.name: place.read_text() for place in tmp_path.glob("run*/*")}
    assert texts == {"run.1": "first", "run.3": "second", "run": "third"}


@pytest.mark.parametrize("content", [[], [".lock"]])
def test_an_empty_folder_is_used_as_it_is(tmp_path, content):
    (tmp_path / "run").mkdir()
    for name in content:
        (tmp_path / "run" / name).touch()
    lock, moved = claimed(tmp_path / "run")
    assert moved is None
    lock.release()
    assert [p.name for p in tmp_path.rglob("*")] == ["run"]


def test_a_number_that_is_taken_meanwhile_is_passed_over(tmp_path, monkeypatch):
    (tmp_path / "run" / "file").mkdir(parents=True)
    (tmp_path / "run.1" / "other").mkdir(parents=True)
    exists = os.path.lexists
    monkeypatch.setattr(os.path, "lexists", lambda path: exists(path) and Path(path).name == "run")
    lock, moved = claimed(tmp_path / "run")
    lock.release()
    assert moved == tmp_path / "run.2"
    assert (moved / "file").is_dir()

    def refused(*_):
        raise PermissionError(errno.EACCES, "Permission denied")

    (tmp_path / "run" / "file").mkdir()
    monkeypatch.setattr(os, "rename", refused)
    with pytest.raises(AGI2Error, match=r"cannot write .*run: Permission denied"):
        claimed(tmp_path / "run")


class Turns:
    """Runs threads one at a time, switched before each system call on the file system.

    Args:
        choose: called with the number of threads that can go on; returns which one does.
    """

    CALLS = ("open", "mkdir", "rename", "unlink", "listdir", "scandir", "stat", "close")

    def __init__(self, choose):
        self._choose = choose
        self._changed = threading.Condition()
        self._waiting, self._running, self._chosen = set(), set(), None

    def run(self, tasks):
        with pytest.MonkeyPatch.context() as patch, ThreadPoolExecutor(len(tasks)) as pool:
            for module, name in [(fcntl, "flock"), *((os, name) for name in self.CALLS)]:
                patch.setattr(module, name, self._switching(getattr(module, name)))
            self._running = set(range(len(tasks)))
            futures = [pool.submit(self._run, *each) for each in enumerate(tasks)]
            with self._changed:
                while self._running:
                    self._changed.wait_for(lambda: self._waiting == self._running)
                    if self._running:
                        self._chosen = sorted(self._waiting)[self._choose(len(self._waiting))]
                        self._waiting.remove(self._chosen)
                        self._changed.notify_all()
        return [future.result() for future in futures]

    def _run(self, number, task):
        threading.current_thread().turn = number
        self._wait()
        try:
            return task()
        finally:
            threading.current_thread().turn = None
            with self._changed:
                self._running.remove(number)
                self._changed.notify_all()

    def _wait(self):
        number = getattr(threading.current_thread(), "turn", None)
        if number is None:
            return
        with self._changed:
            self._waiting.add(number)
            self._changed.notify_all()
            self._changed.wait_for(lambda: self._chosen == number)
            self._chosen = None

    def _switching(self, call):
        def switched(*arguments, **options):
            self._wait()
            return call(*arguments, **options)

        return switched


@pytest.mark.skipif(os.name != "posix", reason="no flock there")
@given(
    seed=st.integers(0, 2**32),
    before=st.sampled_from([None, [], [".lock"], ["metrics.jsonl"]]),
    count=st.integers(2, 4),
    ends=st.booleans(),
)
@settings(max_examples=30)
def test_starts_at_the_same_time_never_share_or_move_a_folder(seed, before, count, ends):
    """In every order of the system calls of several starts, each winner keeps its own folder."""
    with tempfile.TemporaryDirectory() as root:
        folder = Path(root, "trained", "run")
        for name in before or []:
            folder.mkdir(parents=True, exist_ok=True)
            (folder / name).write_text("old")

        def start(number):
            lock = None
            try:
                lock, _ = claimed(folder)
                assert {path.name for path in folder.iterdir()} == {".lock"}
                (folder / "metrics.jsonl").write_text(str(number))
                assert lock.is_held
            except AGI2Error as error:
                refusals.append(error.args)
                return False
            finally:
                if lock and ends:
                    lock.release()
            locks.append(lock)
            return True

        locks, refusals = [], []
        turns = Turns(random.Random(seed).randrange)
        won = turns.run([functools.partial(start, number) for number in range(count)])
        found = sorted(path.read_text() for path in Path(root).rglob("metrics.jsonl"))
        line = (
            f"{folder}: another process is training there: wait for it, or set another model_name"
        )
        assert refusals == [(one_line(line),)] * won.count(False)
        winners = [str(number) for number in range(count) if won[number]]
        assert found == sorted(winners + (["old"] if before == ["metrics.jsonl"] else []))
        assert len(winners) >= 1 if ends else len(winners) == 1
        for lock in locks:
            lock.release()
        assert not list(Path(root).rglob(".lock"))


def test_what_the_library_refuses_is_one_clear_line(tmp_path, monkeypatch):
    monkeypatch.setattr("src.formats.weights.save_file", raising(SafetensorError))
    with pytest.raises(AGI2Error, match=r"cannot write .*model\.safetensors: stopped here"):
        save_weights(tiny_model().state_dict(), tmp_path / "model.safetensors")
    assert not list(tmp_path.iterdir())


# Real processes.


needs_fork = pytest.mark.skipif(not hasattr(os, "fork"), reason="needs os.fork")


def in_a_fork(action):
    """Call a function in a copy of this process, which ends with it; return its exit status."""
    child = os.fork()
    if child == 0:
        status = 1
        with contextlib.suppress(BaseException):
            action()
            status = 0
        os._exit(status)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


@needs_fork
def test_a_process_killed_in_the_middle_of_saving_leaves_the_last_checkpoint(tmp_path):
    save_step(tmp_path, 1, keep=1)

    def killed():
        checkpoint.os.rename = lambda *_: os.kill(os.getpid(), signal.SIGKILL)
        save_step(tmp_path, 2, keep=1)

    assert in_a_fork(killed) == -signal.SIGKILL
    assert (tmp_path / "checkpoints" / ".step-00000002.partial").is_dir()
    assert newest_checkpoint(tmp_path).state["step"] == 1


@needs_fork
def test_a_disk_that_fills_leaves_the_last_checkpoint_and_says_so(tmp_path):
    import resource

    file, (reading, writing) = tmp_path / "model.safetensors", os.pipe()
    weights = tiny_model(model_embd=64, model_positions=8).state_dict()
    save_step(tmp_path, 1, keep=1)
    save_weights(weights, file)
    before = file.read_bytes()

    def filled():
        for limit in (10_000, 1_000):
            resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))
            for attempt in (
                lambda: save_step(tmp_path, 2, keep=1),
                lambda: save_weights(weights, file),
            ):
                with pytest.raises(AGI2Error) as caught:
                    attempt()
                os.write(writing, f"{caught.value}\n".encode())

    assert in_a_fork(filled) == 0
    os.close(writing)
    with open(reading, encoding="utf-8") as pipe:
        lines = pipe.read().splitlines()
    assert len(lines) == 4
    assert all("cannot write" in line and "free some space" in line for line in lines)
    assert file.read_bytes() == before
    assert newest_checkpoint(tmp_path).state["step"] == 1
    assert [p.name for p in (tmp_path / "checkpoints").iterdir()] == ["step-00000001"]
    assert {p.name for p in tmp_path.iterdir()} == {"checkpoints", "model.safetensors"}


@pytest.mark.parametrize("target", [None, "nowhere"])
def test_a_file_in_a_runs_place_is_refused(tmp_path, target):
    place = tmp_path / "run"
    if target is None:
        place.write_text("mine", encoding="utf-8")
    else:
        place.symlink_to(tmp_path / target)
    with pytest.raises(AGI2Error, match="run is not a folder: move it away, or set model_name"):
        claimed(place)
    assert [path.name for path in tmp_path.iterdir()] == ["run"]
