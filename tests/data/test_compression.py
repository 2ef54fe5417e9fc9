import bz2
import gzip
import io
import lzma

import pytest
import zstandard

from src.data import compression
from src.data.text_files import Unreadable
from tests.data.document_corpus import COMPRESSIONS, tar_of, zip_of
from tests.data.reading import lines_of, read_with_report, texts, write

TEXT = "The lighthouse keeper counted ships.\n" * 5000


@pytest.mark.parametrize("ending", list(COMPRESSIONS))
def test_streams_one_after_the_other_are_one(tmp_path, ending):
    compress = COMPRESSIONS[ending]
    content = compress(TEXT.encode()) + compress(b"more")
    assert texts(tmp_path / f"a.txt{ending}", content) == [TEXT + "more"]


@pytest.mark.parametrize("kind", [0x50, 0x5F])
@pytest.mark.parametrize("name", ["a.txt.zst", "download"])
def test_frames_of_zstandard_that_are_skipped_may_be_anywhere(tmp_path, kind, name):
    skipped = bytes([kind]) + b"\x2a\x4d\x18" + (600).to_bytes(4, "little") + b"x" * 600
    one, two = (zstandard.ZstdCompressor().compress(each) for each in (b"one", b"two"))
    content = skipped + one + skipped * 2 + two + skipped
    assert texts(tmp_path / name, content) == ["onetwo"]


def test_padding_between_xz_streams_is_skipped(tmp_path):
    content = lzma.compress(b"one", preset=0) + b"\0" * 1024 + lzma.compress(b"two", preset=0)
    assert texts(tmp_path / "a.txt.xz", content + b"\0" * 8) == ["onetwo"]


@pytest.mark.parametrize("ending", list(COMPRESSIONS))
@pytest.mark.parametrize("cut", [-1, -5, 0.5])
def test_data_that_is_cut_short_is_refused(tmp_path, ending, cut):
    import random

    words = random.Random(0).choices("abcdefgh \n", k=20_000)
    content = COMPRESSIONS[ending]("".join(words).encode())
    content = content[: int(cut * len(content)) if isinstance(cut, float) else cut]
    with pytest.raises(Unreadable, match=rf"a\.txt\{ending}: damaged or cut short \w+ data: "):
        texts(tmp_path / f"a.txt{ending}", content)


@pytest.mark.parametrize("ending", list(COMPRESSIONS))
def test_a_changed_byte_is_found(tmp_path, ending):
    content = bytearray(COMPRESSIONS[ending](TEXT.encode()))
    content[len(content) // 2] ^= 0xFF
    if ending == ".zst":  # with a checksum, which is an option there
        content = bytearray(zstandard.ZstdCompressor(write_checksum=True).compress(TEXT.encode()))
        content[-1] ^= 0xFF
    with pytest.raises(Unreadable, match="damaged or cut short"):
        texts(tmp_path / f"a.txt{ending}", bytes(content))


@pytest.fixture
def low_limits(monkeypatch):
    monkeypatch.setattr(compression, "RATIO_FROM", 2**19)


BOMB = b"word " * 2**17


@pytest.mark.parametrize("ending", [".gz", ".bz2", ".xz", ".zst"])
def test_a_bomb_is_refused_by_its_ratio(tmp_path, low_limits, ending):
    content = COMPRESSIONS[ending](BOMB)
    for name, data in {
        f"a.txt{ending}": content,
        f"a.tar{ending}": COMPRESSIONS[ending](tar_of({"a.txt": BOMB})),
        "a.zip": zip_of({"a.txt": BOMB}),
        "b.zip": zip_of({f"{n}.txt": BOMB[: 2**17] for n in range(5)}),
        "c.zip": zip_of({f"a.txt{ending}": content}),
    }.items():
        with pytest.raises(Unreadable, match=f"{name}.* unpacks to more than 250 times its size"):
            texts(tmp_path / name, data)


def test_nothing_of_a_bomb_in_a_zip_archive_is_read(tmp_path, low_limits):
    write(tmp_path / "a.zip", zip_of({"a.txt": BOMB}))
    write(tmp_path / "b.txt", "text")
    found, report = read_with_report(tmp_path)
    assert found == ["text"]
    assert report.bytes_skipped == (tmp_path / "a.zip").stat().st_size


def test_a_file_has_a_limit_in_total(tmp_path, monkeypatch):
    monkeypatch.setattr(compression, "MAX_UNPACKED", 1000)
    with pytest.raises(Unreadable, match=r"a\.txt\.gz: unpacks to more than 1\.0 KB"):
        texts(tmp_path / "a.txt.gz", gzip.compress(TEXT.encode()))


def test_a_bomb_is_not_held_in_memory(tmp_path):
    """1 GB of zeros in 30 KB: refused at 64 MB, with one step of 16 MB in memory."""
    import tracemalloc

    step = zstandard.ZstdCompressor().compressobj()
    content = b"".join(step.compress(b"0" * 2**24) for _ in range(5)) + step.flush()
    write(tmp_path / "a.txt.zst", content)
    tracemalloc.start()
    with pytest.raises(Unreadable, match="unpacks to more than"):
        texts(tmp_path / "a.txt.zst")
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 2**28


def test_nesting_has_a_limit(tmp_path):
    content = b"text"
    for _ in range(compression.MAX_DEPTH):
        content = gzip.compress(content)
    assert texts(tmp_path / ("a.txt" + ".gz" * 5), content) == ["text"]
    with pytest.raises(Unreadable, match="more than 5 archives in each other: unpack them"):
        texts(tmp_path / ("a.txt" + ".gz" * 6), gzip.compress(content))
    content = b"text"
    for number in range(6):
        content = zip_of({f"{number}.txt" if number == 0 else f"{number}.zip": content})
    with pytest.raises(Unreadable, match="more than 5 archives in each other"):
        texts(tmp_path / "a.zip", content)


def test_an_archive_that_contains_itself_ends(tmp_path, monkeypatch):
    """As zip quines do: here by a reader that finds the same archive in each archive."""
    content = zip_of({"a.zip": zip_of({"b.txt": b"x"})})
    from src.data import archives

    original = archives._member

    def member(source, name, opened, format_, limits):
        made = original(source, name, opened, format_, limits)
        made.stream = io.BufferedReader(io.BytesIO(content))
        return made

    monkeypatch.setattr(archives, "_member", member)
    with pytest.raises(Unreadable, match="in each other"):
        texts(tmp_path / "a.zip", content)


def test_a_compressed_file_is_counted_by_its_bytes_on_disk(tmp_path):
    content = bz2.compress(TEXT.encode())
    write(tmp_path / "a.txt.bz2", content)
    found, report = read_with_report(tmp_path / "a.txt.bz2")
    assert (len(found[0]), report.bytes_read) == (len(TEXT), len(content))


@pytest.mark.parametrize("ending", list(COMPRESSIONS))
@pytest.mark.parametrize("form", ["{}", "a.zip", "a.tar"])
def test_damage_in_the_beginning_of_a_later_stream_is_found(tmp_path, ending, form):
    parts = [COMPRESSIONS[ending](TEXT.encode())] * 3
    broken = parts[1][:1] + b"Zx9" + parts[1][4:]
    name = f"a.txt{ending}"
    for content in (parts[0] + broken + parts[2], parts[0] + b"JUNKJUNK"):
        if form == "a.zip":
            path, content = tmp_path / form, zip_of({name: content, "b.txt": b"b"})
        else:
            path = tmp_path / form.format(name)
            content = tar_of({name: content, "b.txt": b"b"}) if form == "a.tar" else content
        write(path, content)
        if form == "{}":
            with pytest.raises(Unreadable, match=rf"a\.txt\{ending}: damaged or cut short"):
                texts(path)
        else:
            _, report = read_with_report(path)
            assert "1 member of archives damaged" in lines_of(report.skipped)
            kept = report.characters - 1
            note = f"1 file read in part ({kept:,} characters), such as"
            assert (note in lines_of(report.notes)) == (kept > 0)


@pytest.mark.parametrize(
    ("ending", "is_padding"), [(".gz", 1), (".bz2", 1), (".xz", 1), (".zst", 0)]
)
def test_zeros_after_the_last_stream_are_padding(tmp_path, ending, is_padding):
    content = COMPRESSIONS[ending](b"text") + b"\0" * 512
    if is_padding:
        assert texts(tmp_path / f"a.txt{ending}", content) == ["text"]
    else:
        with pytest.raises(Unreadable, match="damaged or cut short Zstandard data"):
            texts(tmp_path / f"a.txt{ending}", content)


def test_a_bzip2_bomb_is_decompressed_in_bounded_parts():
    """45 bytes for 46 MB, which one call would return."""
    reader = compression._FrameReader(io.BytesIO(bz2.compress(b"a" * 2**25)), bz2.BZ2Decompressor)
    sizes = [len(reader.read(2**30)) for _ in range(3)]
    assert sizes == [2**24, 2**24, 0]


def test_how_much_is_kept_of_a_bomb_in_an_archive_is_said(tmp_path, low_limits):
    write(
        tmp_path / "a.zip", zip_of({"in.txt.gz": gzip.compress(b"word\n" * 2**17), "b.txt": b"b"})
    )
    found, report = read_with_report(tmp_path / "a.zip")
    kept = sum(map(len, found)) - 1
    assert "a.zip: in.txt.gz: unpacks to more than 250 times" in lines_of(report.skipped)
    assert (f"({kept:,} characters)" in lines_of(report.notes)) == (kept > 0)
