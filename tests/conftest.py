"""Shared fixtures and helpers."""

import atexit
import contextlib
import dataclasses
import functools
import gc
import importlib
import itertools
import logging
import os
import random
import shlex
import shutil
import signal
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
from xdist import is_xdist_controller

# pytest-xdist runs one process per core: more threads would oversubscribe the cores.
os.environ.setdefault("OMP_NUM_THREADS", "1")
# Every machine trains in fp32 unless a test says otherwise: oneDNN has no native bf16 then.
os.environ.setdefault("ONEDNN_MAX_CPU_ISA", "AVX512_CORE")
# Output is wrapped if it is set.
os.environ.pop("COLUMNS", None)
# Messages name the command as `agi2`, however the tests were started.
os.environ.pop("UV_RUN_RECURSION_DEPTH", None)
os.environ["PATH"] = os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])

from hypothesis import HealthCheck, settings

from tests import instrumentation, processes

instrumentation.replace_tracer()  # before the first import of `src`
log = logging.getLogger("agi2")

# No deadlines: on a busy machine an example may take any time.
_PATIENT = settings(deadline=None, suppress_health_check=[HealthCheck.too_slow])
# Derandomized, so that every run has the same examples; `tests/fuzz.py` generates new ones.
settings.register_profile("repeatable", _PATIENT, max_examples=40, derandomize=True)
settings.register_profile("fuzz", _PATIENT, derandomize=False, print_blob=True)
settings.register_profile("few", _PATIENT, max_examples=10, derandomize=True)
settings.load_profile("repeatable")

CHECKOUT = Path(__file__).resolve().parents[1]
WORDS = ["the", "whale", "sea", "ship", "captain", "old", "white", "water", "crew", "wind", "and"]

# Files that take more than about 5 s of CPU time, the longest first.
_LONGEST = (
    *("test_trainer", "test_many_processes", "test_scripts", "test_estimates", "test_training"),
    *("test_wheel", "test_bad_input", "test_generation", "test_verify_resume", "test_tune"),
    *("test_interrupts", "test_torch_defaults", "test_chat", "test_beam_search", "test_build"),
    *("test_train", "test_loss", "test_main", "test_startup", "test_visibility", "test_builtin"),
    *("test_argument_kinds", "test_cpu_kernels", "test_onnx", "test_huggingface", "test_engine"),
)


def make_text(words: int = 300, seed: int = 0) -> str:
    """Return sentences of random common words, reproducible by `seed`."""
    draw = random.Random(seed)
    return " ".join(
        draw.choice(WORDS) + draw.choice(["", "", "", ",", ".\n"]) for _ in range(words)
    )


def raising(kind):
    """Return a function that takes any arguments and raises `kind`."""

    def fail(*_, **__):
        raise kind("stopped here")

    return fail


def run_python(code, *arguments):
    """Run Python code in a subprocess, in the checkout."""
    return subprocess.run(
        [sys.executable, "-c", code, *map(str, arguments)],
        cwd=CHECKOUT,
        capture_output=True,
        text=True,
        timeout=600,
    )


@contextlib.contextmanager
def open_terminal(arguments, **options):
    """Run Python in a pseudo-terminal of pexpect; wait for its end, or kill it after an error."""
    pexpect = pytest.importorskip("pexpect")
    # The time limit is for a machine with nothing to spare; it takes seconds elsewhere.
    options = {"encoding": "utf-8", "timeout": 600, **options}
    terminal = pexpect.spawn(sys.executable, arguments, **options)
    try:
        yield terminal
        terminal.expect(pexpect.EOF)
    except BaseException:
        terminal.kill(signal.SIGKILL)
        raise
    finally:
        terminal.wait()  # `close` alone gives up after 0.1 s
        terminal.close()


def pytest_configure(config):
    config.pluginmanager.register(instrumentation)
    if hasattr(config, "workerinput"):
        # Runs last. Python would spend seconds on freeing all that the tests have imported.
        atexit.register(os._exit, 0)
    for number in (signal.SIGINT, signal.SIGTERM, getattr(signal, "SIGHUP", signal.SIGTERM)):
        if signal.getsignal(number) is signal.SIG_IGN:  # by nohup, or in a script's background
            is_interrupt = number == signal.SIGINT
            signal.signal(number, signal.default_int_handler if is_interrupt else signal.SIG_DFL)
    if sys.dont_write_bytecode:
        # Each of the about hundred Python processes that tests start would compile PyTorch anew,
        # for 4 s. This folder keeps the bytecode away from the sources.
        folder = str(CHECKOUT / ".pytest_cache" / "bytecode")
        sys.pycache_prefix = os.environ["PYTHONPYCACHEPREFIX"] = folder
        sys.dont_write_bytecode = False
        os.environ.pop("PYTHONDONTWRITEBYTECODE", None)


def pytest_sessionstart(session):
    if not is_xdist_controller(session):
        return
    if _runs_folders(session) and hasattr(os, "fork"):
        processes.share_server()


def pytest_xdist_setupnodes(config, specs):
    """Fork the workers, too, from the process that has imported what takes seconds."""
    if processes.is_server_shared():
        for spec in specs:
            spec.python = shlex.join([sys.executable, processes.__file__])


def pytest_collection(session):
    """Import what most tests need; if folders of tests are to run, what a few need, too."""
    if is_xdist_controller(session):
        return
    gc.disable()  # what is imported and collected here stays
    importlib.import_module("torch")
    with contextlib.suppress(ImportError):
        typer = importlib.import_module("typer")
        # It would create all commands anew for each of the hundreds of calls of `main`.
        typer.main.get_command = functools.cache(typer.main.get_command)
    if _runs_folders(session):
        for name in _HEAVY:
            with contextlib.suppress(ImportError):
                importlib.import_module(name)


def _runs_folders(session) -> bool:
    return all(Path(each).is_dir() for each in session.config.args)


# What takes seconds to import, so that no test of the few that need it takes them.
_HEAVY = ("torch._dynamo", "torch.distributed.checkpoint", "torch.utils.checkpoint")
_HEAVY += ("transformers.generation.logits_process", "lm_eval.utils")


def pytest_collection_finish(session):
    if hasattr(session.config, "workerinput"):
        gc.freeze()  # collections need not look at what was imported
    gc.enable()


def pytest_collection_modifyitems(config, items):
    import torch  # here, since the process that only starts the workers needs no PyTorch

    # Longest first: what runs last should be short, so that no worker is left alone with it.
    ranks = {name: rank for rank, name in enumerate(_LONGEST)}
    items.sort(key=lambda item: ranks.get(item.path.stem, len(ranks)))
    if config.getoption("hypothesis_profile", None) == "fuzz":
        # A new order for each run, equal in all xdist workers, as xdist requires.
        random.Random(os.environ.get("PYTEST_XDIST_TESTRUNUID")).shuffle(items)
    if not torch.cuda.is_available():
        for item in items:
            if item.get_closest_marker("gpu"):
                item.add_marker(pytest.mark.skip(reason="needs a CUDA device"))


@pytest.fixture(scope="session")
def cache_home(tmp_path_factory):
    return tmp_path_factory.mktemp("cache")


@pytest.fixture(autouse=True)
def isolated(monkeypatch, cache_home):
    """Use a temporary cache folder; restore the thread count and the logger after each test."""
    import torch

    monkeypatch.setenv("AGI2_CACHE", str(cache_home))
    # Only a loss of power needs it. A training waits about 40 times for the disk.
    monkeypatch.setattr(os, "fsync", lambda descriptor: None)
    threads = torch.get_num_threads()
    yield
    torch.set_num_threads(threads)
    log.handlers[:] = []
    log.setLevel(logging.NOTSET)
    log.propagate = True


@pytest.fixture(autouse=True)
def _same_draws(monkeypatch):
    """Make unseeded sampling reproducible between test runs: seeds 1, 2, ... within a test."""
    seeds = itertools.count(1)

    def seeded(seed=None):
        return random.Random(next(seeds) if seed is None else seed)

    monkeypatch.setattr("src.inference.sequence.random", SimpleNamespace(Random=seeded))
    monkeypatch.setattr("secrets.randbelow", lambda limit: next(seeds) % limit)


@pytest.fixture
def corpus(tmp_path):
    """Path of a small text file."""
    path = tmp_path / "corpus.txt"
    path.write_text(make_text(), encoding="utf-8")
    return path


@pytest.fixture
def tiny_run(corpus, tmp_path):
    """Factory of configurations of runs that take seconds; keyword arguments override keys."""
    return configurations(corpus, tmp_path / "trained")


@pytest.fixture(scope="session")
def shared_run(tmp_path_factory):
    """Train as configured by `tiny_run` and keyword arguments, once per worker; not to change."""
    from src.training import train_from_config

    folder = tmp_path_factory.mktemp("shared")
    (folder / "corpus.txt").write_text(make_text(), encoding="utf-8")
    make, runs = configurations(folder / "corpus.txt", folder / "trained"), {}

    def trained(**changes):
        key = repr(sorted(changes.items()))
        if key not in runs:
            runs[key] = train_from_config(make(**{"name": f"run-{len(runs)}", **changes}))
        return runs[key]

    return trained


@pytest.fixture
def copied_run(shared_run, tmp_path):
    """A run as `shared_run` trains it, in a folder that the test may change."""

    def copied(name, **changes):
        run = shared_run(**changes)
        folder = tmp_path / "trained" / name
        shutil.copytree(run.folder, folder)
        return dataclasses.replace(run, folder=folder)

    return copied


def configurations(corpus, output_dir):
    """Return a factory of configurations of short runs on a text."""
    from src.config_loader import make_config

    def make(name="run", **changes):
        given = {
            "sources": [str(corpus)],
            "model_name": name,
            "output_dir": str(output_dir),
            "tokenizer": "basic",
            "model_layer": 1,
            "model_head": 2,
            "model_embd": 16,
            "model_positions": 16,
            "batch_size": 8,
            "max_steps": 12,
            "eval_interval": 100,
            "checkpoint_interval": 100,
            "log_interval": 1,
            "eval_tokens": 256,
            "sample_tokens": 0,
            "learning_rate": 0.01,
            "device": "cpu",
        }
        return make_config({**given, **changes})

    return make
