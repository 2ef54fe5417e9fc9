"""GGUF files made for tests: by hand, byte by byte, and from another file with the library."""

import struct

import numpy as np

U8, U32, F32, BOOL, STRING, ARRAY, U64 = 0, 4, 6, 7, 8, 9, 10
F32_TENSOR, F16_TENSOR, Q8_0_TENSOR, Q2_K_TENSOR = 0, 1, 8, 10


def string(text):
    data = text if isinstance(text, bytes) else text.encode()
    return struct.pack("<Q", len(data)) + data


def key(name, type, payload):
    return string(name) + struct.pack("<I", type) + payload


def array(name, type, count, payload):
    return key(name, ARRAY, struct.pack("<IQ", type, count) + payload)


def tensor(name, shape, type=F32_TENSOR, offset=0):
    """The entry of a tensor; `shape` is in the order of the file."""
    sizes = struct.pack(f"<I{len(shape)}Q", len(shape), *shape)
    return string(name) + sizes + struct.pack("<IQ", type, offset)


def gguf_bytes(keys=(), tensors=(), data=b"", *, alignment=32, version=3, counts=None):
    """A file. `counts` are the numbers of tensors and keys that its header says."""
    start = b"GGUF" + struct.pack("<IQQ", version, *(counts or (len(tensors), len(keys))))
    start += b"".join(keys) + b"".join(tensors)
    return start + bytes(-len(start) % alignment) + data


def rewrite(source, target, **changes):
    """Write a file again with changed keys and tensors; dots are `__`, `None` removes.

    A tensor is given as an array in fp32, or as (bytes by row, type).
    """
    import gguf

    changes = {name.replace("__", "."): value for name, value in changes.items()}
    reader = gguf.GGUFReader(source)
    fields = {
        name: (field.contents(), field.types)
        for name, field in reader.fields.items()
        if not name.startswith("GGUF.") and name != "general.architecture"
    }
    architecture = changes.pop("general.architecture", "gpt2")
    tensors = {each.name: (np.array(each.data), each.tensor_type) for each in reader.tensors}
    for name, value in changes.items():
        place = tensors if name.endswith((".weight", ".bias")) else fields
        place.pop(name, None)
        if value is None:
            continue
        if place is tensors:
            kind = gguf.GGMLQuantizationType.F32
            place[name] = value if isinstance(value, tuple) else (value, kind)
        else:
            sample = value[0] if isinstance(value, list) and value else value
            types = [gguf.GGUFValueType.get_type(sample)]
            place[name] = value, [gguf.GGUFValueType.ARRAY, *types][not isinstance(value, list) :]
    writer = gguf.GGUFWriter(target, architecture)
    for name, (value, types) in fields.items():
        writer.add_key_value(name, value, types[0], types[1] if len(types) > 1 else None)
    for name, (data, kind) in tensors.items():
        writer.add_tensor(name, data, raw_dtype=kind)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return target
