import pytest

from src.data.text_files import Unreadable
from tests.data.reading import lines_of, read_with_report, texts, write


@pytest.mark.parametrize(
    ("body", "expected"),
    [
        (r"one\par two\line three\tab four", "one\ntwo\nthree\tfour"),
        (r"a\{b\}\\c\~d\_e\-f", "a{b}\\c\xa0d-ef"),
        ("a\r\nb\\\nc", "ab\nc"),
        (r"\lquote a\rquote \emdash\bullet", "‘a’—•"),
        (r"caf\'e9 \u233?\u-10179?\u-8704?", "café é😀"),
        (r"\uc2\u233ab\uc0\u233 c", "ééc"),
        (r"{\uc0\u233}\u233x", "éé"),
        (r"\u55357?x", "\ufffdx"),
        (r"{\info{\title no}}{\*\unknown no {\b no}}{\pict 0123}yes", "yes"),
        (r"{\b bold} and {\i it{\v hidden}al\v0 ic}", "bold and italic"),
        (r"\v gone\plain back\deleted gone\deleted0 .", "back."),
        ("{\\pict\\bin5 }}}}}x}y", "y"),
        (r"\cell a\cell b\row", "\ta\tb\n"),
        (r"\*x", "x"),
        (r"wo{\footnote Foot}rd\par end", "word\nFoot\nend"),
        (r"wo{\footnote Foot\par two{\footnote inner} x}rd", "word\nFoot\ntwo x\ninner\n"),
        (r"{\footnote a\par}\line b{\v h{\footnote c}\par}\par d", "\nb\na\nd"),
        (r"{\shp{\*\shpinst\a1{\sp{\sn x}{\sv y}}{\shptxt Box\par}}{\shprslt no}}a", "a\nBox\n"),
        (r"a{\*\do\b{\dptxbxtext Box\par}} b\par c", "a b\nBox\nc"),
        (r"{\header{\*\shpinst{\shptxt no}}}{\*\no {\*\shpinst{\shptxt no}}}a", "a"),
        (r"{\upr{??}{\*\ud{\uc0\u233\u234}}}{\info{\upr{a}{\*\ud b}}}{\*\no x}", "éê"),
        (r"\footnote a", "a\n"),
        (r"\ansicpg99999 a\uc b\u c\f d\'zz", "abcdzz"),
    ],
)
def test_text_and_what_stands_for_it(tmp_path, body, expected):
    content = r"{\rtf1\ansi\ansicpg1252 " + body + "}"
    assert texts(tmp_path / "a.rtf", content, normalize="none") == [expected]


def test_hidden_and_deleted_text_is_counted(tmp_path):
    body = r"{\rtf1\ansi a{\v hid\'e9\u233?\tab}{\deleted gone}{\info\v no}b{\footnote\v c}}"
    found, report = read_with_report(write(tmp_path / "a.rtf", body))
    assert found == ["ab"]
    assert "hidden or deleted text in 1 place (11 characters)" in lines_of(report.removed)


@pytest.mark.parametrize(
    ("head", "encoding", "text"),
    [
        (r"\ansi\ansicpg1251 ", "cp1251", "Война"),
        (r"\ansi\ansicpg932 ", "cp932", "灯台守"),
        (r"\mac ", "mac_roman", "süß"),
        (r"\pca ", "cp850", "süß"),
        (r"\ansi{\fonttbl{\f0\fcharset0 A;}{\f7\fcharset204 B;}}\f7 ", "cp1251", "Война"),
        (r"\ansi{\fonttbl{\f0\fcharset128 A;}}\f0 ", "cp932", "表示"),
    ],
)
def test_bytes_are_in_the_code_page_of_the_font(tmp_path, head, encoding, text):
    codes = "".join(f"\\'{byte:02x}" for byte in text.encode(encoding))
    raw = text.encode(encoding).replace(b"\\", b"\\\\")
    content = b"{\\rtf1" + head.encode() + codes.encode() + b"{\\b " + raw + b"}}"
    assert texts(tmp_path / "a.rtf", content) == [text * 2]


def test_an_rtf_that_is_cut_short_is_refused(tmp_path):
    with pytest.raises(Unreadable, match=r"a\.rtf: damaged or cut short: a group is not closed"):
        texts(tmp_path / "a.rtf", r"{\rtf1 text {\b bold")
    assert texts(tmp_path / "b.rtf", r"{\rtf1 text}}") == ["text"]
