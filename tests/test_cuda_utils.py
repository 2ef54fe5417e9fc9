"""Selection of device and precision, and memory statistics."""

import logging

import psutil
import pytest
import torch

from src import cuda_utils
from src.cuda_utils import (
    MemoryStats,
    autocast,
    can_compile,
    container_memory,
    cuda_available,
    describe_device,
    is_out_of_memory,
    measure_cpu_flops,
    memory_stats,
    select_device,
    select_precision,
    to_device,
)
from src.errors import AGI2Error
from src.utils import log, plural

CPU = torch.device("cpu")
CUDA = torch.device("cuda")
needs_cuda = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")


@pytest.fixture
def warnings():
    """The lines that are logged, whatever else has set up the log."""
    lines = []

    class Listener(logging.Handler):
        def emit(self, record):
            lines.append((record.levelname, record.getMessage()))

    before = log.handlers[:], log.level
    log.handlers[:] = [Listener()]
    log.setLevel(logging.WARNING)
    yield lines
    log.handlers[:] = before[0]
    log.setLevel(before[1])


# The device


def test_detection_is_pytorch_s():
    assert cuda_available() == (torch.cuda.device_count() > 0)


def test_the_cpu_is_always_there(warnings):
    assert select_device("cpu") == CPU
    assert warnings == []


def test_auto_takes_the_best_device_without_a_warning(warnings):
    if torch.cuda.is_available():
        best = CUDA
    else:
        best = torch.device("mps") if torch.backends.mps.is_available() else CPU
    assert select_device() == select_device("auto") == best
    assert warnings == []


@pytest.mark.parametrize(
    ("cuda", "mps", "best"),
    [(True, True, "cuda"), (True, False, "cuda"), (False, True, "mps"), (False, False, "cpu")],
)
def test_auto_prefers_cuda_then_mps_then_the_cpu(monkeypatch, warnings, cuda, mps, best):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: cuda)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: int(cuda))
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: mps)
    assert select_device("auto").type == best
    assert warnings == []


@pytest.mark.parametrize("device", ["cuda", "cuda:0", "cuda:1", "cuda:999", "mps"])
def test_a_device_that_is_not_there_falls_back_with_one_warning(monkeypatch, warnings, device):
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 0)
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: False)
    assert select_device(device) == CPU
    assert warnings == [("WARNING", f"device {device} is not available: using the CPU")]


def test_a_number_is_compared_with_the_devices_there_are(monkeypatch, warnings):
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    assert select_device("cuda:1") == torch.device("cuda", 1)
    assert warnings == []
    assert select_device("cuda:2") == CPU
    assert len(warnings) == 1


@pytest.mark.parametrize("device", ["gpu", "", "cuda:", "cuda:x", "cpu:1", "meta", "cuda:1:2"])
def test_what_is_no_device_is_an_error(device):
    with pytest.raises(AGI2Error, match="use auto, cpu, cuda, cuda:N or mps"):
        select_device(device)


def test_the_cpu_is_described_with_its_threads():
    assert describe_device(CPU) == f"CPU, {plural(torch.get_num_threads(), 'thread')}"
    assert describe_device(torch.device("mps")) == "mps"


# Precision


@pytest.mark.parametrize(
    ("device", "is_supported", "flops", "dtype"),
    [
        ("cpu", True, {torch.float32: 2.0, torch.bfloat16: 4.0}, torch.bfloat16),
        ("cpu", True, {torch.float32: 2.0, torch.bfloat16: 2.5}, torch.float32),
        ("cpu", False, {}, torch.float32),
        ("mps", True, {}, torch.float32),
    ],
)
def test_auto_precision_is_bf16_on_a_cpu_that_is_fast_in_it(
    monkeypatch, warnings, device, is_supported, flops, dtype
):
    monkeypatch.setattr(torch.ops.mkldnn, "_is_mkldnn_bf16_supported", lambda: is_supported)
    monkeypatch.setattr("src.cuda_utils.measure_cpu_flops", lambda threads, dtype: flops[dtype])
    assert select_precision("auto", torch.device(device)) == dtype
    assert warnings == []


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_speed_of_matrix_products_is_measured_once(dtype):
    flops = measure_cpu_flops(1, dtype)
    assert 1e8 < flops < 1e15
    assert measure_cpu_flops(1, dtype) == flops


@pytest.mark.parametrize(("has_bf16", "dtype"), [(True, torch.bfloat16), (False, torch.float16)])
def test_auto_precision_on_cuda_is_bf16_where_it_is_there(monkeypatch, has_bf16, dtype):
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation: has_bf16)
    assert select_precision("auto", CUDA) == dtype


@pytest.mark.parametrize(
    ("name", "dtype"), [("fp32", torch.float32), ("bf16", torch.bfloat16), ("fp16", torch.float16)]
)
def test_a_named_precision_is_taken(warnings, name, dtype):
    assert select_precision(name, CUDA) == dtype
    assert warnings == []


def test_fp16_without_cuda_falls_back_with_one_warning(warnings):
    assert select_precision("fp16", CPU) == torch.float32
    assert warnings == [("WARNING", "precision fp16 needs CUDA: using fp32")]
    assert select_precision("bf16", CPU) == torch.bfloat16


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_autocast_sets_the_type_of_products(dtype):
    weights = torch.ones(2, 2)
    with autocast(CPU, dtype):
        assert (weights @ weights).dtype == dtype
    assert (weights @ weights).dtype == torch.float32


# Memory


def test_process_memory_is_the_process_s():
    held = torch.ones(10_000_000)  # 40 MB
    before = psutil.Process().memory_info().rss
    stats = memory_stats()
    after = psutil.Process().memory_info().rss
    assert min(before, after) <= stats.process <= max(before, after)
    assert stats.process > held.numel() * 4
    assert (stats.device_allocated, stats.device_peak, stats.device_total) == (0, 0, 0)


@pytest.mark.parametrize(
    ("groups", "files", "expected"),
    [
        # Version 2: as a container sees itself, as a machine sees it, and without a limit.
        ("0::/\n", {"memory.max": 1000}, 1000),
        ("0::/a/b\n", {"a/memory.max": 1000, "a/b/memory.max": "max"}, 1000),
        ("0::/a/b\n", {"a/memory.max": 1000, "a/b/memory.max": 700}, 700),
        ("0::/not/seen/from/inside\n", {"memory.max": 1000}, 1000),
        ("0::/\n", {"memory.max": "max"}, None),
        ("0::/\n", {}, None),
        # Version 1, beside an empty version 2.
        (
            "9:cpu:/\n4:cpuset,memory:/box/c4\n0::/\n",
            {"memory/box/c4/memory.limit_in_bytes": 500, "memory/memory.limit_in_bytes": 2**63},
            500,
        ),
        ("9:name=systemd:/\n8:pids:/\n", {"memory/memory.limit_in_bytes": 500}, None),
    ],
)
def test_the_limit_of_a_container_is_that_of_its_narrowest_group(tmp_path, groups, files, expected):
    (tmp_path / "proc/self").mkdir(parents=True)
    (tmp_path / "proc/self/cgroup").write_text(groups)
    for place, limit in files.items():
        file = tmp_path / "sys/fs/cgroup" / place
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(f"{limit}\n")
    assert container_memory(tmp_path) == expected


def test_where_there_are_no_control_groups_nothing_is_limited(tmp_path):
    assert container_memory(tmp_path) is None


def test_memory_in_words():
    assert str(MemoryStats(1_500_000_000)) == "1.5 GB"
    stats = MemoryStats(1_500_000_000, 10**9, 2 * 10**9, 80 * 10**9)
    assert str(stats) == "1.5 GB, GPU 2.0 GB of 80.0 GB"


# Compiling


def test_compiling_works_where_nothing_hinders_it(warnings):
    with torch.compiler.set_stance("force_eager"):
        assert can_compile(CPU)
    assert warnings == []


@pytest.mark.uncounted
def test_without_a_compiler_there_is_one_line_of_warning(warnings):
    import torch._inductor.config
    from torch._inductor.utils import fresh_inductor_cache

    torch._dynamo.reset()
    without = torch._inductor.config.patch({"cpp.cxx": ("no-such-compiler",)})
    with fresh_inductor_cache(), without:
        assert not can_compile(CPU)
    ((level, line),) = warnings
    assert level == "WARNING"
    assert line.startswith("torch.compile does not work here (")
    assert "\n" not in line


def test_an_error_without_words_is_named_by_its_type(monkeypatch, warnings):
    def broken(function):
        raise NotImplementedError

    monkeypatch.setattr(cuda_utils.torch, "compile", broken)
    assert not can_compile(CPU)
    assert "(NotImplementedError)" in warnings[0][1]


# With a GPU


@pytest.mark.gpu
@needs_cuda
def test_cuda_is_selected_and_described(warnings):
    assert select_device("cuda:0") == torch.device("cuda", 0)
    assert torch.cuda.get_device_name(0) in describe_device(CUDA)
    assert warnings == []


@pytest.mark.gpu
@needs_cuda
def test_memory_of_a_gpu_is_watched():
    before = memory_stats("cuda")
    held = torch.ones(1_000_000, device="cuda")
    stats = memory_stats("cuda")
    assert stats.device_allocated >= before.device_allocated + 4 * held.numel()
    assert stats.device_allocated <= stats.device_peak <= stats.device_total
    assert "GPU" in str(stats)


@pytest.mark.gpu
@needs_cuda
def test_autocast_on_a_gpu_sets_the_type_of_products():
    weights = torch.ones(2, 2, device="cuda")
    with autocast(CUDA, torch.float16):
        assert (weights @ weights).dtype == torch.float16


def test_an_allocation_that_fails_is_told_from_other_errors():
    with pytest.raises(RuntimeError) as no_memory:
        torch.empty(2**60)
    with pytest.raises(RuntimeError) as wrong_shape:
        torch.ones(2, 3) @ torch.ones(2, 3)
    assert is_out_of_memory(no_memory.value)
    assert is_out_of_memory(torch.OutOfMemoryError("CUDA out of memory"))
    assert is_out_of_memory(MemoryError())
    assert not is_out_of_memory(wrong_shape.value)
    assert not is_out_of_memory(ValueError("out of memory"))


def test_numbers_are_copied_to_a_device_in_a_dtype():
    assert torch.equal(to_device([[1, 2], [3, 4]], CPU), torch.tensor([[1, 2], [3, 4]]))
    assert to_device([0.5], CPU, torch.float64).dtype == torch.float64


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
def test_numbers_are_copied_to_a_gpu():
    found = [to_device([i, i + 1], torch.device("cuda")) for i in range(100)]
    assert [each.tolist() for each in found] == [[i, i + 1] for i in range(100)]
