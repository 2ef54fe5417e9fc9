"""safetensors files: consistent reads, and validation of the header."""

import contextlib
import errno
import json
import os
import struct
import threading

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file

from src.errors import AGI2Error
from src.formats import weights as safetensors_file
from src.formats.weights import SafetensorsFile, load_tensors, save_tensors
from tests.conftest import raising


def file_of(header, data=b""):
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return struct.pack("<Q", len(text)) + text + data


def entry(dtype="F32", shape=(2,), offsets=(0, 8)):
    return {"dtype": dtype, "shape": list(shape), "data_offsets": list(offsets)}


FLOATS = [torch.float64, torch.float32, torch.float16, torch.bfloat16]


@pytest.mark.parametrize("mapped", [1, 1 << 16], ids=["mapped", "read"])
def test_every_tensor_is_as_the_library_reads_it(tmp_path, monkeypatch, mapped):
    monkeypatch.setattr(safetensors_file, "_MIN_MAPPED_BYTES", mapped)
    tensors = {
        str(dtype): torch.arange(60).reshape(3, 4, 5).to(dtype)
        for dtype in [*FLOATS, torch.int64, torch.int32, torch.uint8, torch.bool]
    }
    tensors |= {"empty": torch.zeros(0, 3), "scalar": torch.tensor(2.5), "large": torch.rand(300)}
    save_file(tensors, tmp_path / "w", {"note": "é"})
    expected = load_file(tmp_path / "w")
    with SafetensorsFile(tmp_path / "w") as file:
        assert file.metadata == {"note": "é"}
        found = file.tensors()
    assert found.keys() == expected.keys()
    for name, tensor in found.items():
        assert tensor.dtype == expected[name].dtype
        assert torch.equal(tensor, expected[name])
        tensor.flatten()[:1].zero_()  # what is written to it stays in memory
    assert all(torch.equal(again, expected[n]) for n, again in load_tensors(tmp_path / "w").items())


def test_a_tensor_that_does_not_lie_at_a_multiple_of_its_size_is_read(tmp_path, monkeypatch):
    monkeypatch.setattr(safetensors_file, "_MIN_MAPPED_BYTES", 1)
    header = {"a": entry("U8", (1,), (0, 1)), "b": entry("F32", (2,), (1, 9))}
    path = tmp_path / "w"
    path.write_bytes(file_of(header, b"\x07" + struct.pack("<2f", 1.5, -2.0)))
    assert load_tensors(path)["b"].tolist() == [1.5, -2.0]


LIES = {
    "nothing": b"",
    "a header without end": struct.pack("<Q", 2**63) + b"{}",
    "a header of 0 bytes": struct.pack("<Q", 0),
    "no JSON": file_of(b"{"),
    "no object": file_of(b"[1]"),
    "depth": file_of(b'{"a":' + b"[" * 5000 + b"]" * 5000 + b"}"),
    "digits": file_of(b'{"a":' + b"9" * 5000 + b"}"),
    "metadata": file_of({"__metadata__": {"a": 1}}),
    "an entry that is none": file_of({"a": 3}),
    "an unknown type": file_of({"a": entry("F12")}, bytes(8)),
    "a type of another type": file_of({"a": entry(["F32"])}, bytes(8)),
    "a negative size": file_of({"a": entry(shape=(-2,))}, bytes(8)),
    "a size that is none": file_of({"a": entry(shape=(2.0,))}, bytes(8)),
    "a truth value as size": file_of({"a": entry(shape=(True, 2))}, bytes(8)),
    "sizes beyond all": file_of({"a": entry(shape=(2**40, 2**40))}, bytes(8)),
    "too many dimensions": file_of({"a": entry(shape=[1] * 100 + [2])}, bytes(8)),
    "a size that is not the place's": file_of({"a": entry(shape=(3,))}, bytes(8)),
    "three offsets": file_of({"a": entry(offsets=(0, 8, 9))}, bytes(8)),
    "tensors that overlap": file_of({"a": entry(), "b": entry(offsets=(4, 12))}, bytes(12)),
    "a gap": file_of({"a": entry(), "b": entry(offsets=(12, 20))}, bytes(20)),
    "more than there is": file_of({"a": entry(shape=(2**20,), offsets=(0, 2**22))}, bytes(8)),
    "less than there is": file_of({"a": entry()}, bytes(9)),
}


@pytest.mark.parametrize("content", LIES.values(), ids=LIES)
def test_a_header_that_does_not_describe_its_file_is_refused(tmp_path, content):
    (tmp_path / "w").write_bytes(content)
    with pytest.raises(AGI2Error, match="w is damaged") as error:
        load_tensors(tmp_path / "w")
    assert len(error.value.args) == 1


def test_what_is_no_file_is_refused_at_once(tmp_path):
    with pytest.raises(AGI2Error, match="no such file"):
        load_tensors(tmp_path / "nothing")
    os.mkfifo(tmp_path / "pipe")  # which nobody writes to
    (tmp_path / "loop").symlink_to("loop")
    for path in (tmp_path, tmp_path / "pipe", "/dev/zero", tmp_path / "loop", tmp_path / "a\0b"):
        with pytest.raises(AGI2Error, match="cannot be read: "):
            load_tensors(path)


@pytest.mark.parametrize("mapped", [1, 1 << 16], ids=["mapped", "read"])
def test_a_file_that_is_cut_short_meanwhile_is_refused(tmp_path, monkeypatch, mapped):
    monkeypatch.setattr(safetensors_file, "_MIN_MAPPED_BYTES", mapped)
    save_tensors({"a": torch.ones(100)}, tmp_path / "w")
    with SafetensorsFile(tmp_path / "w") as file:
        os.truncate(tmp_path / "w", 100)
        if mapped == 1:  # the system refuses to map beyond the end
            monkeypatch.setattr(safetensors_file.mmap, "mmap", no_room)
        with pytest.raises(AGI2Error, match=r"w (is damaged|cannot be read): "):
            file.tensors()


def no_room(*_, **__):
    raise OSError(22, "cannot be mapped")


@settings(max_examples=30, deadline=None)
@given(place=st.integers(0, 400), value=st.integers(0, 255), end=st.integers(0, 400))
def test_any_change_of_a_file_is_read_or_refused(tmp_path_factory, place, value, end):
    path = tmp_path_factory.mktemp("w") / "w"
    save_tensors({"a": torch.ones(3, 4), "b": torch.zeros(5)}, path, {"agi2": "{}"})
    content = bytearray(path.read_bytes())
    content[place % len(content)] = value
    path.write_bytes(content[: max(end, len(content) // 2)])
    found = {}
    with contextlib.suppress(AGI2Error):
        found = load_tensors(path)
    assert sum(tensor.nbytes for tensor in found.values()) <= len(content)


def test_a_file_that_is_replaced_all_the_time_is_one_or_the_other(tmp_path, monkeypatch):
    monkeypatch.setattr(safetensors_file, "_MIN_MAPPED_BYTES", 1 << 10)
    path = tmp_path / "w"
    for name, value in (("a", 1.0), ("b", 2.0)):
        tensors = {f"t{i}": torch.full((20, 30), value) for i in range(8)}
        # Another length of the header, too: offsets of one are wrong in the other.
        save_tensors(tensors, tmp_path / name, {"agi2": name * int(1000 * value)})
    os.link(tmp_path / "a", path)
    over = threading.Event()

    def replace():
        while not over.is_set():
            for name in "ba":
                os.link(tmp_path / name, tmp_path / "next")
                os.replace(tmp_path / "next", path)

    thread = threading.Thread(target=replace)
    thread.start()
    try:
        for _ in range(200):
            with SafetensorsFile(path) as file:
                values = {float(each) for t in file.tensors().values() for each in t.unique()}
                assert values == ({1.0} if file.metadata["agi2"][0] == "a" else {2.0})
    finally:
        over.set()
        thread.join()


def test_a_disk_that_fails_is_told(tmp_path, monkeypatch):
    save_tensors({"a": torch.ones(3)}, tmp_path / "w")
    monkeypatch.setattr("os.read", raising(lambda _: OSError(errno.EIO, "broken")))
    with pytest.raises(AGI2Error, match="w cannot be read: broken"):
        load_tensors(tmp_path / "w")
