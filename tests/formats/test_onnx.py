"""Export to ONNX, computed with ONNX Runtime."""

import functools
import logging
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from types import SimpleNamespace

import pytest
import torch
import torch.nn.functional as F

from src.errors import AGI2Error
from src.formats.export import export_model
from src.formats.onnx import _LOGGERS, _silence, export_onnx
from tests.bounds import Bounded, assert_within, bounded_block, gamma
from tests.tiny_models import random_model

runtime = pytest.importorskip("onnxruntime")


@torch.no_grad()
def bounded_logits(model, tokens) -> Bounded:
    """What float32 may make of them, for a model of scaled embeddings and GELU in GPT-2's form."""
    config, embedded = model.config, model.token_embeddings.weight[tokens].double()
    places = model.position_embeddings(tokens.size(1)).double()
    x = config.d_model**0.5 * embedded + places
    # The root, the product and the sum are rounded.
    x = Bounded(x, gamma(3) * (config.d_model**0.5 * embedded.abs() + places.abs()))
    for block in model.blocks:
        x = bounded_block(block, x, functools.partial(F.gelu, approximate="tanh"))
    norm = model.final_norm
    return x.norm(norm.weight, norm.bias, norm.eps).linear(model.output_weight, None)


def log_levels():
    names = ("", "agi2", *_LOGGERS)
    return logging.root.manager.disable, [logging.getLogger(name).level for name in names]


def test_onnx_runtime_gives_the_same_logits_at_any_size(saved, tmp_path, capfd):
    model, folder = saved(n_layers=1)
    before = log_levels()
    export_model(folder, tmp_path / "model.onnx", "onnx")
    assert capfd.readouterr() == ("", "")
    assert log_levels() == before
    assert [path.name for path in tmp_path.glob("*.onnx*")] == ["model.onnx"]
    session = runtime.InferenceSession(tmp_path / "model.onnx", providers=["CPUExecutionProvider"])
    for shape in ((1, 1), (1, 24), (3, 5)):
        tokens = torch.randint(model.config.vocab_size, shape)
        (found,) = session.run(["logits"], {"input_ids": tokens.numpy()})
        expected = bounded_logits(model, tokens)
        assert_within(torch.from_numpy(found), expected.exact, expected.error)


@pytest.mark.parametrize(
    "changes", [{}, {"position_embedding": "learned", "tie_weights": False}], ids=str
)
def test_a_kv_cache_gives_the_logits_of_the_tokens_at_once(saved, tmp_path, changes):
    model, folder = saved(**changes)
    export_model(folder, tmp_path / "model.onnx", "onnx", kv_cache=True)
    session = runtime.InferenceSession(tmp_path / "model.onnx", providers=["CPUExecutionProvider"])
    config = model.config
    for batch in (1, 3):
        tokens = torch.randint(config.vocab_size, (batch, 24))
        with torch.no_grad():
            expected = model(tokens)
        past = torch.zeros(config.n_layers, 2, batch, config.n_heads, 0, config.head_dim).numpy()
        place = 0
        for new in (5, 1, 1, 3, 14):
            given = {"input_ids": tokens[:, place : place + new].numpy(), "past": past}
            logits, past = session.run(["logits", "present"], given)
            place += new
            assert past.shape[4] == place
            assert logits.shape == (batch, 1, config.vocab_size)
            torch.testing.assert_close(
                torch.from_numpy(logits[:, 0]), expected[:, place - 1], rtol=1e-4, atol=1e-4
            )


def test_a_kv_cache_needs_a_few_positions(saved, tmp_path):
    model, _ = saved(max_seq_len=3)
    with pytest.raises(AGI2Error, match="needs a model of at least 4 positions"):
        export_onnx(model, tmp_path / "model.onnx", kv_cache=True)


def test_a_model_too_large_for_one_file_is_refused(saved, tmp_path, monkeypatch):
    model, _ = saved()
    monkeypatch.setattr("src.formats.onnx.MAX_FILE_BYTES", 4 * model.num_parameters() - 1)
    with pytest.raises(AGI2Error, match="export it with --format hf or gguf"):
        export_onnx(model, tmp_path / "model.onnx")


def test_exports_that_overlap_leave_every_log_as_it_was(saved, tmp_path, monkeypatch):
    """One waits for the other: PyTorch's exporter is used by one thread at a time."""
    started, at_a_time = threading.Barrier(2), threading.Semaphore(1)

    def export(*_, **__):
        assert at_a_time.acquire(blocking=False)
        time.sleep(0.001)  # other threads run
        at_a_time.release()
        return SimpleNamespace(save=lambda path, **_: path.write_bytes(b""))

    def export_often(number):
        started.wait()
        for _ in range(20):
            export_onnx(models[number], tmp_path / f"{number}.onnx")

    monkeypatch.setattr(torch.onnx, "export", export)
    models, before = [random_model(), random_model()], log_levels()
    with ThreadPoolExecutor(2) as threads:
        list(threads.map(export_often, range(2)))
    assert log_levels() == before
    assert len(list(tmp_path.glob("*.onnx"))) == 2


def test_only_the_exporter_is_silent_during_an_export(caplog):
    with _silence(), caplog.at_level(logging.INFO):
        logging.getLogger("agi2").info("step 1")
        logging.getLogger("torch.onnx").warning("torchvision is not installed")
    assert caplog.messages == ["step 1"]
