import base64
import json
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from src.data.alphabets import best_encoding
from src.data.charsets import (
    NO_CODEC,
    declared_name,
    escaped_encoding,
    guess_encoding,
    has_many_controls,
    is_damaged_utf8,
)
from tests.data.document_corpus import PARAGRAPHS

SAMPLES = {
    **{language: " ".join(each).replace("’", "'") for language, each in PARAGRAPHS.items()},
    "es": "El niño comió una piña en la montaña; ¿dónde está el señor? ¡Qué día!",
    "cs": "Příliš žluťoučký kůň úpěl ďábelské ódy, a tak šel dál.",
    "hu": "Árvíztűrő tükörfúrógép, és a nagyon szép idő.",
    "tr": "Pijamalı hasta yağız şoföre çabucak güvendi; İstanbul'da öğretmen.",
    "lt": "Įlinkdama fechtuotojo špaga sublykčiojusi pragręžė apvalų arbūzą ąžuolas.",
    "he": "בראשית ברא אלהים את השמים ואת הארץ והארץ היתה תהו ובהו וחשך על פני תהום",
    "ar": "كان يا ما كان في قديم الزمان ملك عظيم يحكم بلادا واسعة وكان له ثلاثة أبناء",
    "tw": "話說天下大勢，分久必合，合久必分。周末七國分爭，并入於秦。及秦滅之後，楚、漢分爭，"
    "又并入於漢。",
    "short": "one\ntwo\nnaïve",
    "code": "int main() { /* これはテスト */ return 0; }\nint second(void);\n// コメント行\n",
}


@pytest.mark.parametrize("times", [1, 40])
@pytest.mark.parametrize(
    ("language", "encoding"),
    [
        ("en", "cp1252"), ("fr", "cp1252"), ("fr", "mac_roman"), ("fr", "cp850"), ("de", "cp1252"),
        ("de", "cp850"), ("es", "cp1252"), ("pl", "cp1250"), ("pl", "iso8859_2"), ("cs", "cp1250"),
        ("cs", "iso8859_2"), ("hu", "cp1250"), ("tr", "cp1254"), ("lt", "cp1257"),
        ("ru", "cp1251"), ("ru", "koi8-r"), ("ru", "cp866"), ("ru", "iso8859_5"), ("el", "cp1253"),
        ("el", "iso8859_7"), ("he", "cp1255"), ("ar", "cp1256"), ("ja", "cp932"), ("ja", "euc-jp"),
        ("ja", "iso2022_jp"), ("ko", "iso2022_kr"), ("ko", "johab"), ("ru", "mac_cyrillic"),
        ("zh", "gb18030"), ("tw", "big5"), ("ko", "euc-kr"),
        ("short", "latin-1"), ("code", "cp932"),
    ],
)  # fmt: skip
def test_a_guess_gives_the_text(language, encoding, times):
    text = SAMPLES[language]
    if encoding == "mac_roman" or encoding.startswith("cp8"):
        text = text.replace("œ", "oe")
    content = (text + "\n").encode(encoding) * times
    assert content.decode(guess_encoding(content)) == (text + "\n") * times


def test_what_no_encoding_explains_is_not_guessed(monkeypatch):
    import charset_normalizer

    monkeypatch.setattr(charset_normalizer, "from_bytes", lambda _: [])
    # A long run of bytes that neither cp1252 nor an encoding of Chinese, Japanese or Korean has.
    content = b"\x81\xff\x8d\x8f\xff\x90\x9d" * 9
    assert content.decode(guess_encoding(content))


def test_damaged_utf8_is_told_from_other_encodings():
    text = "".join(SAMPLES.values())
    assert is_damaged_utf8(text.encode()[:-2] + b"\xff")
    assert not is_damaged_utf8(text.encode())
    for encoding, language in (("cp1252", "fr"), ("cp932", "ja"), ("gb18030", "zh")):
        assert not is_damaged_utf8(SAMPLES[language].encode(encoding))


def test_a_long_text_is_sampled_up_to_the_end_of_a_character():
    for encoding, language in (("cp949", "ko"), ("gb18030", "zh"), ("cp932", "ja")):
        content = SAMPLES[language].replace("\n", "").encode(encoding) * 500
        for first in range(4):
            moved = b"a" * first + content
            assert moved.decode(guess_encoding(moved)) == moved.decode(encoding), (encoding, first)


def test_what_no_language_explains_is_left_to_charset_normalizer():
    content = "╔════╗ ║ ░▒▓█ ║ ╚════╝\n".encode("cp437") * 9
    assert guess_encoding(content)
    assert not best_encoding(content)[1]


def test_a_declared_encoding_stands_for_one_with_more_characters():
    for name, meant in (("ISO-8859-1", "cp1252"), ("gb2312", "gb18030"), ("Shift_JIS", "cp932")):
        assert declared_name(name) == meant
    for name in ("koi8-r", "utf-8", "klingon", "a\0b", ""):
        assert declared_name(name) == name


def test_escapes_tell_korean_from_japanese_and_from_colors():
    assert escaped_encoding("灯台".encode("iso2022_jp")) == "iso2022_jp"
    assert escaped_encoding("灯台ｱ".encode("iso2022_jp_ext")) == "iso2022_jp_ext"
    assert escaped_encoding("등대".encode("iso2022_kr")) == "iso2022_kr"
    assert escaped_encoding("这是我的书。\n".encode("hz")) == "hz"
    for escape in (b"$)A", b"$)G", b"$)E", b"$*H"):
        assert escaped_encoding(b"\x1b" + escape + b"\x0e=;;;\x0f\n") == NO_CODEC
    for code in (b'(format t "~{~a~^, ~}")', b"~{abcd~}", b"~{x y~}", b"~{"):
        assert escaped_encoding(code) is None
    assert escaped_encoding(b"\x1b[31mred\x1b[0m \x1b$") is None


@pytest.mark.parametrize("language", ["ru", "el", "he", "ar", "ja", "zh", "tw", "ko"])
def test_utf7_is_told_by_its_letters(language):
    content = (SAMPLES[language] + "\n").encode("utf-7")
    assert escaped_encoding(content) == "utf_7" == guess_encoding(content)
    assert escaped_encoding(content[: len(content) * 2 // 3]) == "utf_7"  # cut within a run
    assert escaped_encoding(content + b"a + b\n") is None


@pytest.mark.parametrize(
    "text",
    [
        b"C++ and C++17, 1+1=2, a+b, +49 30 1234567",
        b"https://a.example/search?q=one+two+three&r=+Big",
        b"--- a/x\n+++ b/x\n@@ -1 +1 @@\n-old\n+new\n",
        b"+Big +Bag +BIg +BUG +BAg caf+AOk-",
    ],
)
def test_plus_signs_of_other_texts_are_not_utf7(text):
    assert escaped_encoding(text) is None


@given(st.binary(min_size=20, max_size=300), st.sampled_from([b"", b"+", b"data:;base64,+"]))
@settings(max_examples=60)
def test_base64_is_not_utf7(data, before):
    assert escaped_encoding(before + base64.encodebytes(data)) is None


def test_source_code_is_not_utf7():
    for path in sorted(Path(json.__file__).parent.glob("*.py")):
        assert not any(map(escaped_encoding, path.read_bytes().splitlines()))


def test_binary_data_is_told_by_its_control_characters():
    assert has_many_controls(bytes(range(1, 256)).decode("cp437"))
    assert not has_many_controls("\x1b[1mtext\x1b[0m\n\ta\x08a naïve\x85\x1a" * 9)
