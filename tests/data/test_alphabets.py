import unicodedata

import pytest

from src.data import alphabets
from src.data.alphabets import best_encoding, chance_bits

# Sentences of each language, and the encodings in which they are written.
SENTENCES = {
    "ru": [
        "Старый мост давно закрыт для машин.",
        "Завтра утром мы едем на дачу.",
        "Она молча закрыла дверь и ушла.",
        "Ягоды собирают в июле, а грибы осенью.",
    ],
    "uk": [
        "Вечірній потяг запізнився на годину.",
        "Її брат живе біля річки.",
        "Ми купили хліб, молоко й яблука.",
    ],
    "bg": [
        "Старата къща се намира в края на селото.",
        "Утре ще вали дъжд в планината.",
        "Той не знаеше къде е ключът.",
    ],
    "sr": ["Мала кућа стоји поред реке.", "Сутра ћемо путовати возом до мора."],
    "be": ["Стары дом стаяў каля возера.", "Заўтра мы паедзем у горад."],
    "el": ["Το παλιό σπίτι είναι κοντά στη θάλασσα.", "Αύριο θα πάμε μαζί στην αγορά."],
    "he": ["הבית הישן עומד ליד הנחל.", "מחר ניסע ברכבת אל העיר הגדולה."],
    "ar": ["البيت القديم يقع قرب النهر.", "سنسافر غدا بالقطار إلى المدينة."],
    "th": ["บ้านเก่าอยู่ใกล้แม่น้ำ", "พรุ่งนี้เราจะไปตลาดด้วยกัน"],
    "fr": [
        "La forêt était déserte après la tempête.",
        "Le garçon a oublié ses clés à la maison.",
        "Où est passée la clé de la fenêtre ?",
    ],
    "de": [
        "Die Brücke über den Fluss ist schon lange gesperrt.",
        "Morgen früh fährt der Zug nach München.",
        "Der Schlüssel hängt neben der Tür.",
    ],
    "it": ["La città è più bella di sera.", "Perché non c'è più nessuno?"],
    "es": ["El niño salió al jardín por la mañana.", "¿Dónde está el señor de la estación?"],
    "pl": ["Stary most jest już dawno zamknięty.", "Jutro rano pojedziemy do ciotki nad rzekę."],
    "cs": ["Starý dům stojí blízko řeky.", "Zítra ráno pojedeme vlakem k moři."],
    "hu": ["A régi ház közel van a folyóhoz.", "Holnap reggel vonattal utazunk a tengerhez."],
    "vi": ["Ngôi nhà cũ nằm gần bờ sông.", "Ngày mai chúng tôi đi chợ bằng xe đạp."],
    "ja": ["古い家は川の近くにあります。", "明日の朝、電車で海へ行きます。"],
    "zh": ["老房子在河边。", "明天早上我们坐火车去海边。"],
    "tw": ["老房子在河邊。", "明天早上我們坐火車去海邊。"],
    "ko": ["오래된 집은 강 가까이에 있습니다.", "내일 아침 기차를 타고 바다로 갑니다."],
}
CYRILLIC = ["cp1251", "koi8_r", "cp866", "iso8859_5", "mac_cyrillic"]
GREEK = ["cp1253", "iso8859_7", "cp737", "mac_greek"]
CENTRAL = ["cp1250", "iso8859_2", "cp852"]
LATIN = ["cp1252", "mac_roman", "cp850"]
ENCODINGS = {
    **{"ru": CYRILLIC, "bg": CYRILLIC[:-1], "uk": ["cp1251", "koi8_u", "iso8859_5"]},
    **{"sr": ["cp1251", "iso8859_5"], "be": ["cp1251", "iso8859_5"], "he": ["cp1255", "cp862"]},
    **{"el": GREEK, "ar": ["cp1256", "iso8859_6"], "th": ["cp874"], "vi": ["cp1258"]},
    **{"fr": LATIN, "de": LATIN, "it": LATIN, "es": LATIN},
    **{"pl": CENTRAL, "cs": CENTRAL, "hu": CENTRAL},
    **{"ja": ["cp932", "euc_jp"], "zh": ["gb18030"], "tw": ["big5"], "ko": ["cp949", "johab"]},
}
CASES = [(language, name) for language, names in ENCODINGS.items() for name in names]
TONES = "\u0300\u0301\u0303\u0309\u0323"


def vietnamese(text: str) -> str:
    """Return a text with its tones after the letters, as cp1258 has them."""
    parts = []
    for character in text:
        marks = unicodedata.normalize("NFD", character)
        tones = "".join(mark for mark in marks if mark in TONES)
        letter = "".join(mark for mark in marks if mark not in TONES)
        parts.append(unicodedata.normalize("NFC", letter) + tones)
    return "".join(parts)


def sentences(language: str) -> list[str]:
    texts = SENTENCES[language]
    return [vietnamese(text) for text in texts] if language == "vi" else texts


@pytest.mark.parametrize(("language", "encoding"), CASES)
def test_one_sentence_is_decoded(language, encoding):
    for text in sentences(language):
        name, is_clear = best_encoding(text.encode(encoding))
        assert is_clear
        assert text.encode(encoding).decode(name) == text


@pytest.mark.parametrize(("language", "encoding"), [c for c in CASES if c[0] not in LATIN])
def test_a_comment_in_source_code_is_decoded(language, encoding):
    text = f"    total = count(items)  # {' '.join(sentences(language))}"
    name, is_clear = best_encoding(text.encode(encoding))
    assert is_clear
    assert text.encode(encoding).decode(name) == text


def test_what_no_language_has_is_not_clear():
    assert not best_encoding(b"\x81\xff\x8d\x8f\xff\x90\x9d" * 9)[1]


def test_bytes_that_no_encoding_has_have_none(monkeypatch):
    for name in ("_SINGLE", "_WIDE"):
        kept = {"cp1252": getattr(alphabets, name).get("cp1252")} if name == "_SINGLE" else {}
        monkeypatch.setattr(alphabets, name, kept)
    assert best_encoding(b"\x81") == (None, False)


def test_letters_of_a_language_are_more_probable_than_chance():
    for language in SENTENCES:
        letters = "".join(each for each in "".join(sentences(language)) if not each.isascii())
        assert chance_bits(letters) > 2 * len(letters)
    assert chance_bits("㐀㑁ꀀ⒜ᚠ") < 0
