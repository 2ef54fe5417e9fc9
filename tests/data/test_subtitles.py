import pytest

from src.data.text_files import Unreadable
from tests.data.reading import texts

SRT = """1
00:00:01,000 --> 00:00:02,500
<i>Call me</i> Ishmael.
{\\an8}Some years ago

2
00:00:03,000 --> 00:00:04,000 X1:1
2 < 3 and a <- b
"""
VTT = """WEBVTT - title

NOTE a comment

STYLE
::cue { color: red }

intro
00:01.000 --> 00:02.000 align:start
<v Anna>Tom &amp; <c.loud>Jerry</c> &lt;3<00:01.500>
"""


@pytest.mark.parametrize(
    ("name", "content", "expected"),
    [
        ("a.srt", SRT, "Call me Ishmael.\nSome years ago\n2 < 3 and a <- b\n"),
        (
            "a.srt",
            SRT.replace("\n", "\r\n"),
            "Call me Ishmael.\nSome years ago\n2 < 3 and a <- b\n",
        ),
        ("a.vtt", VTT, "Tom & Jerry <3\n"),
    ],
)
def test_only_the_text_of_cues_is_read(tmp_path, name, content, expected):
    assert texts(tmp_path / name, content) == [expected]


def test_what_are_no_subtitles_is_refused(tmp_path):
    with pytest.raises(Unreadable, match=r"a\.srt: not subtitles: there is no line such as 00:"):
        texts(tmp_path / "a.srt", "some text")
