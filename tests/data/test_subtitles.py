import pytest

from src.data.text_files import Unreadable
from tests.data.reading import lines_of, read_with_report, texts, write

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


CUE = "00:00:0{n},000 --> 00:00:0{n},900"
TIMES = [CUE.format(n=n) for n in range(1, 6)]


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        (f"1\n{TIMES[0]}\none\n2\n{TIMES[1]}\ntwo", "one\ntwo\n"),  # no blank lines
        (f"1\n{TIMES[0]}\none\n\nmore\n\n2\n{TIMES[1]}\ntwo", "one\nmore\ntwo\n"),
        (f"1\n\n{TIMES[0]}\n\none\n\n2\n\n{TIMES[1]}\n\ntwo", "one\ntwo\n"),  # one after each
        (f"1\n{TIMES[0]}\n42\n\n2\n{TIMES[1]}\n43\n", "42\n43\n"),
        (f"{TIMES[0]}\n42\n\n{TIMES[1]}\n43\n", "42\n43\n"),  # no numbers
        (f"1\n{TIMES[0]}\n\n2\n{TIMES[1]}\ntwo", "two\n"),  # an empty cue
        (f"1\n{TIMES[0]}\none\n{TIMES[1]}\ntwo", "one\ntwo\n"),
        ("1\n00:00:01:000 --> 00:00:02:000\none\n", "one\n"),
        ("1\n00:00:01 --> 00:00:02\none\n", "one\n"),
        ("1\n00:00:01,000 -> 00:00:02,000\none\n", "one\n"),
        ("1\n00:00:01, 000 - -> 00: 00: 02, 000\none\n", "one\n"),
        ("1\n0:00:01.0–>0:00:02.0\none\n", "one\n"),
        (f"1\n{TIMES[0]}\nat 1:2 -> 3:4\n12:30 --> 12:40\n", "at 1:2 -> 3:4\n12:30 --> 12:40\n"),
        (f"1\n{TIMES[0]}\ncaf&eacute; &#8212; AT&T &copy &bogus;\n", "café — AT&T &copy &bogus;\n"),
        (f"1\n{TIMES[0]}\nNOTE this\n\nNOTE that\n", "NOTE this\nNOTE that\n"),
        (f"WEBVTT\nKind: captions\n\n{TIMES[0]}\none\n\nmore\n\nname\n{TIMES[1]}\ntwo",
         "one\nmore\ntwo\n"),
        (f"WEBVTT\n\n{TIMES[0]}\none\n{TIMES[1]}\ntwo\n", "one\ntwo\n"),
        (f"WEBVTT\n\n1\n{TIMES[0]}\none\n2\n{TIMES[1]}\ntwo\n", "one\ntwo\n"),
        (f"WEBVTT\n\n{TIMES[0]}\none\n\nNOTE\na\nb\n\n{TIMES[1]}\ntwo\n", "one\ntwo\n"),
        (f"WEBVTT\n{TIMES[0]}\none\n", "one\n"),
    ],
)  # fmt: skip
def test_no_line_of_a_cue_is_lost_and_no_number_kept(tmp_path, content, expected):
    assert texts(tmp_path / "a.srt", content) == [expected]
    assert texts(tmp_path / "a.vtt", content.replace("\n", "\r\n")) == [expected]


def test_lines_before_the_first_cue_are_counted(tmp_path):
    path = write(tmp_path / "a.srt", f"A film\nby me\n\n1\n{TIMES[0]}\none\n")
    found, report = read_with_report(path)
    assert found == ["one\n"]
    (line,) = report.skipped.lines()
    assert line.startswith("2 lines before the first cue (11 characters), such as ")
    assert line.endswith("a.srt: A film")
    found, report = read_with_report(write(tmp_path / "a.vtt", VTT))
    assert not lines_of(report.skipped)


def test_what_are_no_subtitles_is_refused(tmp_path):
    with pytest.raises(Unreadable, match=r"a\.srt: not subtitles: there is no line such as 00:"):
        texts(tmp_path / "a.srt", "some text")
