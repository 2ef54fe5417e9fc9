import struct

import pytest

from src.data.text_files import Unreadable
from src.data.wide_charsets import unmarked_wide
from tests.data.reading import lines_of, read_with_report, texts, write
from tests.data.test_charsets import SAMPLES

UTF16, UTF32 = ["utf-16-le", "utf-16-be"], ["utf-32-le", "utf-32-be"]
LANGUAGES = ["en", "fr", "ru", "el", "he", "ar", "zh", "tw", "ja", "ko"]


@pytest.mark.parametrize("encoding", UTF16 + UTF32)
@pytest.mark.parametrize("language", LANGUAGES)
@pytest.mark.parametrize("times", [1, 99])
def test_utf16_and_utf32_without_a_mark_are_recognized(tmp_path, encoding, language, times):
    text = (SAMPLES[language] + "\n") * times
    assert unmarked_wide(text.encode(encoding)) == encoding
    write(tmp_path / "a.txt", text.encode(encoding))
    found, report = read_with_report(tmp_path / "a.txt")
    assert found == [text]
    assert f"1 file read as {encoding}, a guess" in lines_of(report.notes)


@pytest.mark.parametrize(
    "content",
    [
        bytes(range(256)) * 2,
        "ab".encode("utf-16-le"),
        "Война\n".encode("utf-16-le"),  # a few characters
        "Городской округ. ".encode("utf-16-le") * 9 + b"\n",  # half a character
        b"/foo/bar\n\0" * 99,  # pairs of its bytes are Chinese characters
        b"name    \0\0" * 99,
        struct.pack("<999H", *range(999)),
        struct.pack("<999H", *range(20_000, 20_999)),
        struct.pack("<999I", *range(33, 1032)),
        struct.pack("<999h", *(n * n % 3001 - 1500 for n in range(999))),
        struct.pack("<99f", *range(99)),
        "Ελλάδα Москва ישראל ".encode("utf-16-le") * 9,  # of three scripts
        "Городской\x01округ. ".encode("utf-16-le") * 9,
        b"",
    ],
)
def test_other_data_is_not_taken_for_a_text(content):
    assert unmarked_wide(content) is None


def test_data_with_nul_bytes_is_refused_with_the_key_to_set(tmp_path):
    content = "Война\n".encode("utf-16-le")
    with pytest.raises(Unreadable, match=r"NUL bytes\); if it is UTF-16 or UTF-32, set encoding"):
        texts(tmp_path / "a.txt", content)
    assert texts(tmp_path / "a.txt", content, encoding="utf-16-le") == ["Война\n"]
