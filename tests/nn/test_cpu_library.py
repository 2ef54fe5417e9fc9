"""The compiled library: loading it, and what is refused before C sees an address."""

import ctypes
from types import SimpleNamespace

import pytest
import torch

from src.nn.cpu_library import address_of, load, variants
from tests.nn.kernels import random


def test_where_there_is_no_library_for_this_machine_there_is_none(tmp_path, monkeypatch):
    assert load(tmp_path) is None
    monkeypatch.setattr("src.nn.cpu_library.platform.machine", lambda: "x86_64")
    monkeypatch.setattr(
        "src.nn.cpu_library.torch.backends.cpu.get_cpu_capability", lambda: "DEFAULT"
    )
    loaded = []
    monkeypatch.setattr(ctypes, "CDLL", loaded.append)
    assert load(tmp_path) is None
    assert loaded == []


@pytest.mark.parametrize(
    ("machine", "capability", "has_vnni", "expected"),
    [
        ("x86_64", "AVX512", True, ["_cpu_kernels_avx512", "_cpu_kernels"]),
        ("x86_64", "AVX512", False, ["_cpu_kernels"]),
        ("AMD64", "AVX2", True, ["_cpu_kernels"]),
        ("x86_64", "DEFAULT", False, []),
        ("riscv64", "DEFAULT", False, ["_cpu_kernels"]),
    ],
)
def test_the_processor_decides_which_libraries_are_tried(
    machine, capability, has_vnni, expected, monkeypatch
):
    monkeypatch.setattr("platform.machine", lambda: machine)
    monkeypatch.setattr("torch.backends.cpu.get_cpu_capability", lambda: capability)
    monkeypatch.setattr("torch.cpu._is_vnni_supported", lambda: has_vnni)
    assert variants() == expected


@pytest.mark.parametrize(
    ("system", "functions", "has_dot_product"),
    [
        ("Darwin", {}, True),
        ("Linux", {"getauxval": lambda kind: {16: 1 << 20}[kind]}, True),
        ("Linux", {"getauxval": lambda kind: {16: 1 << 19}[kind]}, False),
        ("FreeBSD", {}, False),
    ],
)
def test_an_arm_processor_is_asked_for_dot_products(
    system, functions, has_dot_product, monkeypatch
):
    monkeypatch.setattr("platform.machine", lambda: "aarch64")
    monkeypatch.setattr("platform.system", lambda: system)
    monkeypatch.setattr(ctypes, "CDLL", lambda name: SimpleNamespace(**functions))
    assert (variants()[0] == "_cpu_kernels_dotprod") == has_dot_product
    assert variants()[-1] == "_cpu_kernels"


BAD = {
    "other numbers": lambda x: x.double(),
    "half as wide": lambda x: x.bfloat16(),
    "integers": lambda x: x.int(),
    "another device": lambda x: x.to("meta"),
    "not in one piece": lambda x: torch.stack([x, x], dim=-1)[..., 0],
    "too few": lambda x: x[:-1],
    "too many": lambda x: torch.cat([x, x]),
    "not laid out": lambda x: x.to_sparse(),
}


@pytest.mark.parametrize("bad", BAD)
def test_no_buffer_of_another_kind_gets_an_address(bad):
    x = random(6, 64)
    assert address_of(x, torch.float32, 384) == x.data_ptr()
    with pytest.raises(
        TypeError, match=r"^the library needs 384 contiguous elements of torch.float32"
    ):
        address_of(BAD[bad](x), torch.float32, 384)


def test_what_is_not_there_has_no_address_and_what_is_empty_is_as_good():
    assert address_of(None, torch.float32, 384) is None
    address_of(torch.empty(0, 7, dtype=torch.float32), torch.float32, 0)
