"""Scripts and odd characters of a text."""

import unicodedata

import pytest
from hypothesis import given
from hypothesis import strategies as st

from src.data import characters
from src.data.characters import (
    CONTROL,
    INVALID,
    INVISIBLE,
    MOJIBAKE,
    ODD,
    OTHER_SCRIPT,
    PRIVATE,
    REPLACEMENT,
    CharacterCounts,
)


def counted(*documents):
    counts = CharacterCounts()
    for index, text in enumerate(documents):
        counts.add(text, index, f"{index}.txt")
    counts.finish()
    return counts


@pytest.mark.parametrize(
    ("text", "scripts"),
    [
        ("Call me, 123 × 4!\n", {"Latin": 6}),
        ("Käse ﬁn Ａ ấ", {"Latin": 8}),
        ("Война и мир", {"Cyrillic": 9}),
        ("こんにちは、カタカナ。ﾊﾝｶｸ", {"Hiragana": 5, "Katakana": 8}),
        ("三体 𠀀 한국어 Σ", {"Han": 3, "Hangul": 3, "Greek": 1}),
        ("नमस्ते", {"Devanagari": 6}),
        ("שלום العربية ไทย", {"Hebrew": 4, "Arabic": 7, "Thai": 3}),
        ("𐎠 𓀀", {OTHER_SCRIPT: 2}),
        ("e\u0301 🦆 \u200d", {"Latin": 1}),
        ("", {}),
    ],
)
def test_letters_are_counted_by_script(text, scripts):
    counts = counted(text)
    assert dict(counts.scripts) == scripts
    assert not any(odd.count for odd in counts.odd.values())


@pytest.mark.parametrize(
    ("text", "kind", "count"),
    [
        ("a\x00b\x1b[31mc\x85\x7f", CONTROL, 4),
        ("a\ufffdb\ufffd", REPLACEMENT, 2),
        ("\ue000\U000f0000\U0010fffd", PRIVATE, 3),
        ("soft\xadhyphen\u200b\ufeff\u202e", INVISIBLE, 4),
        ("\ud800\ufffe\ufdd0\U0010ffff", INVALID, 4),
    ],
)
def test_odd_characters_are_counted_by_kind(text, kind, count):
    counts = counted("clean", text, "clean")
    odd = counts.odd.pop(kind)
    assert (odd.count, odd.documents, odd.example) == (count, 1, "1.txt")
    assert not any(each.count for each in counts.odd.values())


def test_white_space_is_not_odd():
    assert not any(odd.count for odd in counted("a\tb\r\nc\fd \xa0\u3000").odd.values())


@pytest.mark.parametrize("encoding", ["cp1252", "latin-1"])
@pytest.mark.parametrize(
    "text", ["café à la crème", "„Größe“ – naïve…", "Привет", "γεια", "日本語の文章", "🦆 duck"]
)
def test_utf8_that_was_decoded_as_another_encoding_is_found(text, encoding):
    broken = text.encode().decode(encoding, "ignore")
    assert counted(broken).odd[MOJIBAKE].count


@pytest.mark.parametrize(
    "text",
    [
        "„Großer Spaß“, »raté»… «CAFÉ» NÃO, ÎLE DE RÉ, SÃO PAULO, Ål, piñata",
        "À l’été, où êtes-vous ? Ça va… “Très bien”, dit-il — déjà vu.",
        "İstanbul'da Ağrı, Ðakovo, Þingvellir, Škoda, Łódź, Österreich",
        "Việt Nam: Đà Nẵng, Huế, Hà Nội",
        "Москва, Київ, София; Ελλάδα; 日本語",
    ],
)
def test_text_in_any_language_is_not_taken_for_a_wrong_encoding(text):
    assert counted(text).odd[MOJIBAKE].count == 0


def test_a_document_in_pieces_is_one_document():
    counts = CharacterCounts()
    for _ in range(3):
        counts.add("a\ufffd", 0, "a.txt")
        counts.finish()
    counts.add("b\ufffd", 1, "b.txt")
    counts.finish()
    odd = counts.odd[REPLACEMENT]
    assert (odd.count, odd.documents, odd.example) == (4, 2, "a.txt")


_ALPHABET = st.sampled_from("aß漢\x07\ufffd\ue000\u200b \n")


@given(st.lists(st.text(_ALPHABET, max_size=30), max_size=6), st.integers(1, 40))
def test_counts_do_not_depend_on_batches(documents, size):
    whole = counted(*documents)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(characters, "_BATCH_CHARACTERS", size)
        parts = counted(*documents)
    assert whole.scripts == parts.scripts
    assert whole.odd == parts.odd
    assert sum(whole.scripts.values()) == sum(map(str.isalpha, "".join(documents)))
    for kind, character in ((CONTROL, "\x07"), (REPLACEMENT, "\ufffd"), (PRIVATE, "\ue000")):
        assert whole.odd[kind].count == "".join(documents).count(character)
        assert whole.odd[kind].documents == sum(character in text for text in documents)


def test_every_letter_has_a_script():
    """And what is of a script has its name in Unicode."""
    classes = characters._classes()
    names = ["", *characters.SCRIPTS, *ODD]
    step = 7  # every letter would take a second
    for code in range(0, 0x32000, step):
        character = chr(code)
        name = names[classes[code]]
        if unicodedata.category(character).startswith("L") and unicodedata.name(character, ""):
            assert name in characters.SCRIPTS, hex(code)
        if name in ("Greek", "Cyrillic", "Thai", "Hiragana"):
            assert name.upper() in unicodedata.name(character)
