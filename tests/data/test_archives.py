import gzip
import io
import random
import re
import stat
import tarfile
import zipfile

import pytest

from src.data.text_files import Unreadable
from src.errors import AGI2Error
from tests.data.document_corpus import tar_of, zip_of
from tests.data.reading import lines_of, read_with_report, texts, write


def test_paths_and_names_of_members_are_only_shown(tmp_path):
    names = ["../../escape.txt", "/etc/absolute.txt", "a\x1b[31m.txt", "C:\\x.txt", "..\\..\\x.txt"]
    for path, content in (
        ("a/b/a.zip", zip_of({name: name.encode() for name in names})),
        ("a/b/a.tar", tar_of({name: name.encode() for name in names})),
    ):
        write(tmp_path / path, content)
        before = sorted(tmp_path.rglob("*"))
        assert len(texts(tmp_path / path)) == len(names)
        assert sorted(tmp_path.rglob("*")) == before


def test_links_and_devices_are_skipped_and_named(tmp_path):
    content = io.BytesIO()
    with tarfile.open(fileobj=content, mode="w") as archive:
        for name, kind in (
            ("soft.txt", tarfile.SYMTYPE), ("hard.txt", tarfile.LNKTYPE),
            ("pipe.txt", tarfile.FIFOTYPE), ("device.txt", tarfile.CHRTYPE),
            ("folder.txt", tarfile.DIRTYPE),
        ):  # fmt: skip
            info = tarfile.TarInfo(name)
            info.type, info.linkname = kind, "/etc/passwd"
            archive.addfile(info)
        info = tarfile.TarInfo("good.txt")
        info.size = 4
        archive.addfile(info, io.BytesIO(b"good"))
    write(tmp_path / "a.tar", content.getvalue())
    found, report = read_with_report(tmp_path / "a.tar")
    assert found == ["good"]
    assert "4 members of archives that are links or devices, such as" in lines_of(report.skipped)


def test_links_in_zip_archives_are_skipped(tmp_path):
    content = io.BytesIO()
    with zipfile.ZipFile(content, "w") as archive:
        info = zipfile.ZipInfo("link.txt")
        info.external_attr = (stat.S_IFLNK | 0o777) << 16
        archive.writestr(info, "/etc/passwd")
        archive.writestr("folder/", "")
        archive.writestr("good.txt", "good")
    write(tmp_path / "a.zip", content.getvalue())
    found, report = read_with_report(tmp_path / "a.zip")
    assert found == ["good"]
    assert "1 member of archives that is a link or a device" in lines_of(report.skipped)


@pytest.mark.parametrize("make", [zip_of, tar_of])
def test_what_is_not_the_users_text_is_skipped_as_in_folders(tmp_path, make):
    names = [
        ".git/a.txt",
        "b\\.c\\a.txt",
        "__MACOSX/a.txt",
        "x/node_modules/a.md",
        "._a.txt",
        "a.png",
        "good.txt",
    ]
    path = tmp_path / ("a.zip" if make is zip_of else "a.tar")
    write(path, make({name: name.encode() for name in names}))
    found, report = read_with_report(path)
    assert found == ["good.txt"]
    skipped = lines_of(report.skipped)
    assert "3 members of archives that are hidden (27 bytes unpacked)" in skipped
    assert "2 members of archives of installed packages or caches" in skipped
    assert "1 member of archives in no format that is read" in skipped
    assert report.bytes_read == path.stat().st_size
    assert report.bytes_skipped == 0


@pytest.mark.parametrize("make", [zip_of, tar_of])
def test_members_without_a_suffix_are_read_if_they_are_text(tmp_path, make):
    members = {"Makefile.am": b"a", "PKG-INFO": b"a text", "ls.1": b"more", "core": b"\x7fELF\0\0"}
    members["noise"] = bytes(range(1, 256))
    path = tmp_path / ("a.zip" if make is zip_of else "a.tar")
    write(path, make(members))
    found, report = read_with_report(path)
    assert found == ["a", "a text", "more"]
    assert "2 members of archives not text, such as" in lines_of(report.skipped)


def test_encrypted_members_are_skipped(tmp_path):
    content = bytearray(zip_of({"secret.txt": b"secret", "good.txt": b"good"}))
    for signature, offset in ((b"PK\x03\x04", 6), (b"PK\x01\x02", 8)):
        content[content.find(signature) + offset] |= 1
    write(tmp_path / "a.zip", bytes(content))
    found, report = read_with_report(tmp_path / "a.zip")
    assert found == ["good"]
    assert "1 member of archives that is encrypted (6 bytes" in lines_of(report.skipped)
    content = bytearray(zip_of({"secret.txt": b"secret"}))
    for signature, offset in ((b"PK\x03\x04", 6), (b"PK\x01\x02", 8)):
        content[content.find(signature) + offset] |= 1
    with pytest.raises(Unreadable, match=r"a\.zip: encrypted: unpack it with its password"):
        texts(tmp_path / "a.zip", bytes(content))


@pytest.mark.parametrize("damage", ["bytes", "header", "method", "name"])
@pytest.mark.parametrize("number", range(3))
def test_a_damaged_member_of_a_zip_archive_is_skipped_alone(tmp_path, damage, number):
    members = {f"{each}.txt": f"text {each}".encode() for each in range(3)}
    content = bytearray(zip_of(members, zipfile.ZIP_STORED))
    name = f"{number}.txt".encode()
    header, entry = content.find(name) - 30, content.rfind(name) - 46
    if damage == "bytes":
        content[content.find(f"text {number}".encode())] ^= 1
    elif damage == "header":
        content[header + 31] ^= 1
    elif damage == "method":
        content[header + 8] = content[entry + 10] = 9
    else:  # an empty one; what was it is now a field and a comment
        content[header + 26] = content[entry + 28] = 0
        content[header + 28] = content[entry + 32] = len(name)
    found, report = read_with_report(write(tmp_path / "a.zip", bytes(content)))
    others = [f"text {each}" for each in range(3) if each != number or damage == "name"]
    assert found == others
    problem = {
        "bytes": "damaged, such as .*: Bad CRC",
        "header": "damaged, such as .*: File name in directory",
        "method": r"compressed in a way that is not read, .* \(method 9\): unpack the archive",
        "name": "",
    }[damage]
    skipped = lines_of(report.skipped)
    assert re.search(rf"1 member of archives {problem}", skipped) if problem else not skipped


def test_a_zip_archive_without_a_member_that_can_be_read_is_refused(tmp_path):
    content = bytearray(zip_of({"a.txt": b"first"}, zipfile.ZIP_STORED))
    for signature, offset in ((b"PK\x03\x04", 8), (b"PK\x01\x02", 10)):
        content[content.find(signature) + offset] = 99
    with pytest.raises(Unreadable, match=r"no document in this archive; .*a\.txt: compressed in a"):
        texts(tmp_path / "a.zip", bytes(content))
    content = zip_of({"a.txt": b"first"}, zipfile.ZIP_STORED).replace(b"first", b"fIrst")
    with pytest.raises(Unreadable, match=r"no document in this archive; .*a\.txt: damaged or cut"):
        texts(tmp_path / "a.zip", content)


def test_a_zip_archive_without_bytes_in_its_middle_is_damaged(tmp_path):
    content = zip_of({"a.txt": b"one " * 99, "b.txt": b"two"}, zipfile.ZIP_STORED)
    with pytest.raises(Unreadable, match=r"a\.zip: .*damaged or cut short zip archive: "):
        texts(tmp_path / "a.zip", content[:60] + content[200:])


def test_a_disk_that_cannot_be_read_is_no_damaged_member(tmp_path, monkeypatch):
    def fail(self, size):
        raise OSError(5, "Input/output error")

    monkeypatch.setattr(zipfile.ZipExtFile, "read", fail)
    with pytest.raises(Unreadable, match=r"a\.zip: a\.txt: .*Input/output error") as caught:
        texts(tmp_path / "a.zip", zip_of({"a.txt": b"one", "b.txt": b"two"}))
    assert caught.value.depth == 0


def test_names_with_the_separators_of_windows_are_paths(tmp_path):
    members = {"..\\..\\x.txt": b"one", "a\\.git\\b.txt": b"two"}
    found, report = read_with_report(write(tmp_path / "a.zip", zip_of(members)))
    assert found == ["one"]
    assert "1 member of archives that is hidden" in lines_of(report.skipped)


def test_a_tar_archive_that_is_cut_short_is_refused_wherever(tmp_path):
    content = tar_of({f"{n}.txt": b"some words " * 99 for n in range(5)})
    end = content.rstrip(b"\0")
    for cut in [*range(0, len(end), 256), len(end)]:
        with pytest.raises(AGI2Error, match=r"a\.tar: .*(damaged or cut short|empty|no document)"):
            texts(tmp_path / "a.tar", content[:cut])
    # Half of the two blocks at the end is enough.
    for padding in (512, 1024, 40_960):
        blocks = -(-len(end) // 512) * 512
        assert len(texts(tmp_path / "a.tar", content[:blocks] + b"\0" * padding)) == 5


def test_a_tar_archive_with_a_broken_header_is_refused(tmp_path):
    content = bytearray(tar_of({f"{n}.txt": b"some words" for n in range(3)}))
    content[1024 + 100] ^= 0xFF
    with pytest.raises(Unreadable, match=r"a\.tar: damaged or cut short tar archive"):
        texts(tmp_path / "a.tar", bytes(content))
    with pytest.raises(Unreadable, match=r"a\.tar: damaged or cut short tar archive"):
        texts(tmp_path / "a.tar", b"no archive at all" * 99)


def test_damage_below_an_archive_stops_all_of_it(tmp_path):
    content = gzip.compress(tar_of({f"{n}.txt": bytes([65 + n]) * 9000 for n in range(9)}))
    with pytest.raises(Unreadable, match=r"a\.tgz.*: damaged or cut short gzip data"):
        texts(tmp_path / "a.tgz", content[:-60])


@pytest.mark.parametrize("keep", [15, -60])
def test_damage_below_an_archive_is_found_wherever(tmp_path, keep):
    content = gzip.compress(tar_of({"a.png": random.Random(0).randbytes(2**21)}), 0)
    with pytest.raises(Unreadable, match=r"a\.tgz: damaged or cut short gzip data"):
        texts(tmp_path / "a.tgz", content[:keep])


def test_an_archive_in_an_archive_is_skipped_alone(tmp_path):
    inner = zip_of({"b.txt": b"inner"})
    write(tmp_path / "a.tar", tar_of({"bad.zip": inner[:-9], "in.zip": inner, "c.txt": b"c"}))
    found, report = read_with_report(tmp_path / "a.tar")
    assert found == ["inner", "c"]
    assert "a.tar: bad.zip: damaged or cut short zip archive" in lines_of(report.skipped)


def test_many_members_are_not_kept(tmp_path):
    content = tar_of({f"{n}.txt": b"x" for n in range(300)})
    write(tmp_path / "a.tar", content)
    found, report = read_with_report(tmp_path / "a.tar")
    assert len(found) == 300
    assert report.files == 1


def test_a_header_that_fills_the_memory_is_refused(tmp_path):
    content = io.BytesIO()
    with tarfile.open(fileobj=content, mode="w", format=tarfile.PAX_FORMAT) as archive:
        info = tarfile.TarInfo("a.txt")
        info.pax_headers = {"comment": "a" * 2**21}
        archive.addfile(info)
    with pytest.raises(Unreadable, match="a header is too large"):
        texts(tmp_path / "a.tar", content.getvalue())


@pytest.mark.parametrize("ending", ["", ".gz"])
@pytest.mark.parametrize("zeros", [0, 512, 9 * 1024])
def test_archives_joined_by_cat_are_all_read(tmp_path, ending, zeros):
    parts = [tar_of({f"{n}.txt": f"text {n}".encode()}) + b"\0" * zeros for n in range(3)]
    content = b"".join(map(gzip.compress, parts) if ending else parts)
    write(tmp_path / f"a.tar{ending}", content)
    found, report = read_with_report(tmp_path / f"a.tar{ending}")
    assert found == ["text 0", "text 1", "text 2"]
    assert (report.bytes_read, report.bytes_skipped) == (len(content), 0)


def test_what_follows_a_tar_archive_is_counted_as_skipped(tmp_path):
    archive = tar_of({"a.txt": b"text"})
    write(tmp_path / "a.tar", archive + b"junk" * 1000)
    found, report = read_with_report(tmp_path / "a.tar")
    assert found == ["text"]
    assert (report.bytes_read, report.bytes_skipped) == (len(archive), 4000)
    assert "1 with data after its end, not read (4.0 KB), such as" in lines_of(report.skipped)
    write(tmp_path / "a.tgz", gzip.compress(archive + b"\0" * 100 + b"junk"))
    _, report = read_with_report(tmp_path / "a.tgz")
    assert "1 with data after its end, not read (104 bytes unpacked)" in lines_of(report.skipped)
    assert report.bytes_read == (tmp_path / "a.tgz").stat().st_size
    assert report.bytes_skipped == 0


def test_a_header_of_zeros_does_not_end_an_archive_without_a_word(tmp_path):
    content = tar_of({f"{n}.txt": b"some words" for n in range(3)})
    content = content[:1024] + b"\0" * 512 + content[1536:]
    found, report = read_with_report(write(tmp_path / "a.tar", content))
    assert found == ["some words"]
    assert report.bytes_skipped == len(content) - 1536
    assert report.bytes_read + report.bytes_skipped == len(content)


def test_damage_in_an_archive_after_the_first_is_found(tmp_path):
    archive = tar_of({"a.txt": b"text", "b.txt": b"text"})
    second = bytearray(archive)
    second[1024 + 100] ^= 0xFF
    with pytest.raises(Unreadable, match=r"a\.tar: damaged or cut short tar archive"):
        texts(tmp_path / "a.tar", archive + bytes(second))


def test_bytes_that_no_member_of_a_zip_archive_lists_are_counted_as_skipped(tmp_path):
    """Those of an archive before, as by `cat`, of a member that was removed, and after the end."""
    first, second = zip_of({"a.txt": b"first " * 99}), zip_of({"b.txt": b"second", "c.txt": b"c"})
    streamed = io.BytesIO()
    streamed.seekable = lambda: False
    with zipfile.ZipFile(streamed, "w") as archive:
        archive.writestr("d.txt", "text")
        archive.writestr("e.txt", "text")
        archive.comment = b"comment"
    for content, count in (
        (first, 0),
        (streamed.getvalue(), 0),
        (first + second, len(first)),
        (streamed.getvalue() + b"junk" * 9, 36),
    ):
        found, report = read_with_report(write(tmp_path / "a.zip", content))
        assert found
        assert report.bytes_skipped == count
        assert report.bytes_read + report.bytes_skipped == len(content)
        expected = f"1 with data in no member, not read ({count} B), such as"
        assert (expected in lines_of(report.skipped)) == (count > 0)
