"""The reader of GGUF files: what it reads, and what it refuses."""

import os
import struct
import tracemalloc

import numpy as np
import pytest
import torch

from src.errors import AGI2Error
from src.formats import gguf_file, model_file
from src.formats.gguf_file import GGUFFile
from tests.formats.gguf_files import (
    ARRAY,
    BOOL,
    F16_TENSOR,
    F32,
    Q2_K_TENSOR,
    Q8_0_TENSOR,
    STRING,
    U8,
    U32,
    U64,
    array,
    gguf_bytes,
    key,
    string,
    tensor,
)

NUMBERS = np.arange(6, dtype="<f4") / 4


@pytest.fixture
def written(tmp_path):
    def write(data):
        (tmp_path / "m.gguf").write_bytes(data)
        return tmp_path / "m.gguf"

    return write


@pytest.mark.parametrize("version", [2, 3])
def test_every_kind_of_value_is_read(written, version):
    keys = [
        key("u8", U8, b"\xff"),
        key("i8", 1, b"\xff"),
        key("u16", 2, struct.pack("<H", 65535)),
        key("i16", 3, struct.pack("<h", -2)),
        key("u32", U32, struct.pack("<I", 2**32 - 1)),
        key("i32", 5, struct.pack("<i", -3)),
        key("f32", F32, struct.pack("<f", 0.5)),
        key("true", BOOL, b"\1"),
        key("text", STRING, string("naïve")),
        key("u64", U64, struct.pack("<Q", 2**64 - 1)),
        key("i64", 11, struct.pack("<q", -4)),
        key("f64", 12, struct.pack("<d", 0.1)),
        array("strings", STRING, 2, string("a") + string("")),
        array("numbers", 5, 3, struct.pack("<3i", 1, -2, 3)),
        array("wide", 11, 1, struct.pack("<q", -(2**40))),
        array("flags", BOOL, 2, b"\0\1"),
    ]
    with GGUFFile(written(gguf_bytes(keys, version=version))) as file:
        arrays = {name: file.metadata.pop(name).tolist() for name in ("numbers", "wide", "flags")}
        assert arrays == {"numbers": [1, -2, 3], "wide": [-(2**40)], "flags": [0, 1]}
        assert file.metadata == {
            **{"u8": 255, "i8": -1, "u16": 65535, "i16": -2, "u32": 2**32 - 1, "i32": -3},
            **{"f32": 0.5, "true": True, "text": "naïve", "u64": 2**64 - 1, "i64": -4, "f64": 0.1},
            "strings": ["a", ""],
        }
        assert not file.entries


@pytest.mark.parametrize("alignment", [8, 32, 4096])
def test_tensors_are_found_by_their_alignment(written, alignment):
    keys = [key("general.alignment", U32, struct.pack("<I", alignment))]
    second = -(-NUMBERS.nbytes // alignment) * alignment
    tensors = [tensor("b", [6], F16_TENSOR, second), tensor("a", [3, 2])]
    data = NUMBERS.tobytes().ljust(second, b"\0") + NUMBERS.astype("<f2").tobytes()
    path = written(gguf_bytes(keys, tensors, data, alignment=alignment))
    with GGUFFile(path) as file:
        assert {name: entry.shape for name, entry in file.entries.items()} == {
            "a": (2, 3),
            "b": (6,),
        }
        found = {name: file.tensor(name) for name in file.entries}
    assert torch.equal(found["a"], torch.from_numpy(NUMBERS).view(2, 3))
    assert torch.equal(found["b"], torch.from_numpy(NUMBERS))
    found["a"].zero_()  # a copy-on-write mapping
    with GGUFFile(path) as file:
        assert torch.equal(file.tensor("a"), torch.from_numpy(NUMBERS).view(2, 3))


ALIGNED = NUMBERS.tobytes().ljust(32, b"\0")
# What is wrong, and the message.
REFUSED = {
    "empty": (b"", "is not a GGUF file"),
    "another file": (b"PK\3\4" + bytes(40), "is not a GGUF file"),
    "magic alone": (b"GGUF", "damaged: its header is longer than the file"),
    "big-endian": (b"GGUF" + struct.pack(">IQQ", 3, 0, 0), "is big-endian"),
    "version 1": (gguf_bytes(version=1), "is of GGUF version 1: versions 2 and 3 are read"),
    "version 4": (gguf_bytes(version=4), "is of GGUF version 4"),
    "keys": (gguf_bytes(counts=(0, 2**63)), "its header counts 9,223,372,036,854,775,808 keys"),
    "tensors": (gguf_bytes(counts=(2**40, 0)), "keys and 1,099,511,627,776 tensors"),
    "missing keys": (gguf_bytes(counts=(0, 99_999)), "its header is longer than the file"),
    "missing tensors": (gguf_bytes(counts=(99_999, 0)), "its header is longer than the file"),
    "string": (
        gguf_bytes([key("a", STRING, struct.pack("<Q", 2**62))]),
        "its header is longer than the file",
    ),
    "strings": (
        gguf_bytes([array("a", STRING, 2**50, b"")]),
        "'a' has 1,125,899,906,842,624 strings",
    ),
    "numbers": (gguf_bytes([array("a", U64, 2**61, b"")]), "its header is longer than the file"),
    "UTF-8": (gguf_bytes([key("a", STRING, string(b"\xff"))]), "in its header is not UTF-8"),
    "key twice": (gguf_bytes([key("a", U8, b"\0")] * 2), "its header has 'a' twice"),
    "type of key": (gguf_bytes([key("a", 13, b"\0")]), "'a' is of no type that GGUF has"),
    "flag": (gguf_bytes([key("a", BOOL, b"\2")]), "'a' is of no type that GGUF has"),
    "array of arrays": (gguf_bytes([array("a", ARRAY, 0, b"")]), "'a' is an array of no type"),
    "no dimension": (gguf_bytes((), [tensor("a", [])]), "'a' has 0 dimensions"),
    "dimensions": (gguf_bytes((), [tensor("a", [1] * 5)]), "'a' has 5 dimensions"),
    "empty tensor": (gguf_bytes((), [tensor("a", [0, 2])]), r"'a' has the shape \(2, 0\) in F32"),
    "blocks": (gguf_bytes((), [tensor("a", [31], Q8_0_TENSOR)]), r"shape \(31,\) in Q8_0"),
    "type": (
        gguf_bytes((), [tensor("a", [256], Q2_K_TENSOR)]),
        "a is of the type Q2_K: AGI2 reads",
    ),
    "no type": (gguf_bytes((), [tensor("a", [1], 77)]), "a is of the type 77: AGI2 reads F32, F16"),
    "huge": (gguf_bytes((), [tensor("a", [2**63] * 4)]), "bytes, its header describes"),
    "truncated": (gguf_bytes((), [tensor("a", [6])], bytes(23)), "bytes, its header describes"),
    "tensor twice": (
        gguf_bytes((), [tensor("a", [6]), tensor("a", [6], offset=32)], 2 * ALIGNED),
        "it has the tensor 'a' twice",
    ),
    "overlap": (gguf_bytes((), [tensor("a", [6]), tensor("b", [6])], ALIGNED), "tensors overlap"),
    "gap": (gguf_bytes((), [tensor("a", [6], offset=32)], 2 * ALIGNED), "leave gaps"),
    "unaligned": (
        gguf_bytes((), [tensor("a", [6]), tensor("b", [2], offset=24)], ALIGNED),
        "are not aligned",
    ),
    "alignment": (
        gguf_bytes([key("general.alignment", U32, struct.pack("<I", 24))]),
        "general.alignment = 24",
    ),
    "type of alignment": (
        gguf_bytes([key("general.alignment", STRING, string("32"))]),
        "general.alignment = '32'",
    ),
}


@pytest.mark.parametrize(("data", "message"), REFUSED.values(), ids=REFUSED)
def test_what_is_wrong_is_one_line_and_allocates_nothing(written, data, message):
    path = written(data)
    tracemalloc.start()
    with pytest.raises(AGI2Error, match=message) as caught:
        GGUFFile(path)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert len(caught.value.args) == 1
    assert str(caught.value).startswith(str(path))
    assert peak < 2**20


def test_every_prefix_of_a_file_is_refused(written):
    keys = [key("a", STRING, string("text")), array("b", STRING, 2, string("x") + string("yz"))]
    data = gguf_bytes(keys, [tensor("a", [6])], NUMBERS.tobytes())
    GGUFFile(written(data)).close()
    for length in range(len(data)):
        with pytest.raises(AGI2Error):
            GGUFFile(written(data[:length]))


def test_a_long_header_is_refused(written, monkeypatch):
    monkeypatch.setattr(gguf_file, "_MAX_HEADER_BYTES", 1000)
    path = written(gguf_bytes([key("a", STRING, string("x" * 2000))]))
    with pytest.raises(AGI2Error, match=r"its header is longer than 1\.0 KB"):
        GGUFFile(path)


def test_files_that_cannot_be_read_are_one_line(tmp_path, written, monkeypatch):
    with pytest.raises(AGI2Error, match="no such file"):
        GGUFFile(tmp_path / "gone.gguf")
    with pytest.raises(AGI2Error, match="cannot be read: it is a folder, not a file"):
        GGUFFile(tmp_path)
    path = written(gguf_bytes((), [tensor("a", [6])], ALIGNED))
    with GGUFFile(path) as file:
        os.truncate(path, 8)
        with pytest.raises(AGI2Error, match="cannot be read"):
            file.tensor("a")

    class Broken:
        def fileno(self):
            raise OSError(5, "Input/output error")

        def close(self):
            pass

    with monkeypatch.context() as broken:
        broken.setattr(model_file, "open_file", lambda path: Broken())
        with pytest.raises(AGI2Error, match="cannot be read: Input/output error"):
            GGUFFile(path)


def test_a_file_that_shrinks_while_it_is_read_is_one_line(written, monkeypatch):
    path = written(gguf_bytes([key("a", STRING, string("text"))]))
    size = os.path.getsize(path)
    os.truncate(path, size - 30)
    real = os.fstat
    monkeypatch.setattr(os, "fstat", lambda descriptor: _Larger(real(descriptor), size))
    with pytest.raises(AGI2Error, match="was cut short while it was read"):
        GGUFFile(path)


class _Larger:
    """The status of a file before it was cut short."""

    def __init__(self, status, size):
        self.st_size = size
        self.st_mode = status.st_mode
