"""Find the bytes of a zip archive that no member lists, such as those of another archive."""

from __future__ import annotations

import struct
import zipfile
from typing import IO

_LOCAL = struct.Struct("<26xHH")  # the lengths of a local header's name and extra field
_MAX_DESCRIPTOR = 24  # bytes after the data of a member that has one
_HAS_DESCRIPTOR = 8
_END = b"PK\x05\x06"
_END_SIZE, _MAX_COMMENT = 22, 2**16 - 1


def unlisted_bytes(file: IO[bytes], archive: zipfile.ZipFile) -> int:
    """Return the number of bytes before, between and after the members of a zip archive.

    The directory at the end of a zip archive lists its members; `zipfile` reads no others, such as
    those of an archive to which another one was appended.

    Args:
        file: the file.
        archive: the archive in it, opened.
    """
    members = sorted(archive.infolist(), key=lambda each: each.header_offset)
    starts = [each.header_offset for each in members] + [archive.start_dir]
    count = starts[0]
    for info, following in zip(members, starts[1:], strict=True):
        file.seek(info.header_offset)
        header = file.read(_LOCAL.size)
        if len(header) == _LOCAL.size:  # else it is damaged, which reading it shows
            end = info.header_offset + _LOCAL.size + sum(_LOCAL.unpack(header))
            gap = following - end - info.compress_size
            is_descriptor = info.flag_bits & _HAS_DESCRIPTOR and gap <= _MAX_DESCRIPTOR
            count += 0 if is_descriptor else max(0, gap)
    return count + _bytes_after(file, archive)


def _bytes_after(file: IO[bytes], archive: zipfile.ZipFile) -> int:
    """Return the number of bytes after the end record and its comment."""
    size = file.seek(0, 2)
    start = max(0, size - _END_SIZE - _MAX_COMMENT)
    file.seek(start)
    end = start + file.read().rfind(_END) + _END_SIZE + len(archive.comment)
    return size - end
