"""Dequantization of GGUF's types, compared with the `gguf` package."""

import numpy as np
import pytest

from src.formats import gguf_blocks
from src.formats.gguf_blocks import OTHER_TYPES, TYPES, dequantize

gguf = pytest.importorskip("gguf")


@pytest.mark.parametrize("number", TYPES, ids=lambda number: TYPES[number].name)
def test_every_block_has_the_values_of_the_reference(number, monkeypatch):
    kind = gguf.GGMLQuantizationType(number)
    tensor_type = TYPES[number]
    assert tensor_type.name == kind.name
    assert (tensor_type.values, tensor_type.bytes) == gguf.GGML_QUANT_SIZES[kind]
    blocks = np.random.default_rng(number).integers(0, 256, (600, tensor_type.bytes), np.uint8)
    with np.errstate(invalid="ignore"):  # scales are NaN or infinite, too
        expected = gguf.quants.dequantize(blocks, kind).astype(np.float32).reshape(-1)
    monkeypatch.setattr(gguf_blocks, "_CHUNK", 256 * 7)  # several chunks, the last one shorter
    found = dequantize(blocks.reshape(-1), tensor_type)
    assert found.dtype == np.float32
    assert np.array_equal(found, expected, equal_nan=True)
    assert np.array_equal(np.signbit(found), np.signbit(expected))


def test_every_type_has_a_name():
    names = {kind.value: kind.name for kind in gguf.GGMLQuantizationType}
    ours = OTHER_TYPES | {number: each.name for number, each in TYPES.items()}
    common = names.keys() & ours.keys()
    assert {number: names[number] for number in common} == {each: ours[each] for each in common}
    assert not OTHER_TYPES.keys() & TYPES.keys()
