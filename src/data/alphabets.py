"""Estimate how probable bytes are as a text, by how frequent the letters of its language are.

Every encoding makes another text of the same bytes. The more probable it is, the fewer bits a
code for its characters takes: the sum, over the characters, of the negative logarithm to base 2
of how frequent each is in a language, and of what seldom happens between two, such as a capital
within a word. Bytes that are the same text in every encoding count only where they tell languages
apart.
"""

from __future__ import annotations

import codecs
import math
import re
import string
from collections import Counter
from functools import cache
from typing import NamedTuple
from unicodedata import category

from .languages import WORDS

# The letters of each language, from the most to the least frequent.
_ENGLISH = "etaoinshrldcumwfgypbvkjxqzïéèñöàêç"
_LATIN = {
    "English": _ENGLISH,
    "French": "esaitnrulodcpmévqfbghjàxèyêzçôîùâkûwœïëüæÿ",
    "German": "enisratdhulcgmobwfkzvüpäßjöyxqéàè",
    "Spanish": "eaosrnidlctumpbgyívóqhfzjéáñxúkwü¿¡",
    "Portuguese": "aeosridnmutclpvgqbfãhçzjéáíxêóõúâàôkwy",
    "Italian": "eaionlrtscdupmvghfbqzèàòùìékjwxy",
    "Catalan": "eaisrnltocudmpvgbfqhàéxòèóíjyçúzïükw·",
    "Dutch": "enatirodslghvkmubpwjczfxyqëéïüèóöê",
    "Swedish": "eantrsildomgkvähfupåöbcyjxwzéqàü",
    "Danish": "enrdtaisogklmfvupbhåøæyjcxzwqéöä",
    "Finnish": "ainteslokuämvrjhypdögbfcwåqxz",
    "Icelandic": "arniesutðlgmkfhvoáíþdjóöbéæúpyýxcwzq",
    "Polish": "aioeznrwstcykdpmujlłbgęhąóżśćfńźqvx",
    "Czech": "oeantisvrlkdmpuíjzábcyhéěřčžýšgůfúxťóňwqöď",
    "Slovak": "oaeinrstvlkdmpucjbzáyhíčžýšúéľťgfňôäďóxŕĺwq",
    "Hungarian": "eatlnskriozágméydbvhjöufpcóőíüúűwxq",
    "Romanian": "eiarntulcsopdmăşșvfîţțgbzhâjxkyw",
    "Croatian": "aioenrsjtukvdmlpgzbčhšcžćfđyxwq",
    "Turkish": "aeinrlıkdtmyusobüşzgçhğvcöpfjİâîûwxq",
    "Lithuanian": "iasotrenkumlpvdjgėbyšžūųąįcęčzfhwxq",
    "Latvian": "aisterunomkpāldvzīgjēbšcfūņļžķģčhxyw",
    "Estonian": "aeistlundkmorvgpjhäüõböfšžcyzwxq",
    "Albanian": "ëetairnusohkdmjplgqyvbfzxcçw",
    "Vietnamese": "nhticgaoumđ\u0301\u0300\u0323rlvbkpsưôâêơyd\u0309xeqăàáíóúãéè\u0303ùwjzf",
}
# Frequent words without letters beyond ASCII, of languages that `WORDS` does not have.
_MORE_WORDS = {
    "Catalan": "el la els les de que i un una per amb no es al del en com dels ha",
    "Icelandic": "og er ekki um sem af til var en hann fyrir eru hefur",
    "Slovak": "a v sa na je to s z do o ako by po pre nie alebo bol",
    "Croatian": "je u i na se za od da su ne s kao o ili nije iz po in v ki so ni na pri kot z ali",
    "Lithuanian": "ir yra kad su nuo tai kaip bet buvo ne per dar apie ar",
    "Latvian": "un ir no ar uz par ka bija kas pie lai vai nav",
    "Estonian": "ja on ei et see oli kui ka mis ta ning selle oma",
    "Albanian": "e i dhe me nga se si ka do ose jo mund kjo",
}
_CYRILLIC = (
    "оеаинтсрвлкмдпуяыьгзбчйхжшюцщэфъё",  # Russian
    "оанивіретскулдмпяьзгбйчхцжїєюшщфґ",  # Ukrainian
    "аеоинтсрвдлкмпзягъубчйжщцшхюфьѝ",  # Bulgarian
    "аоеинрјтсудквмплзбгчцшхжњљћфђџ",  # Serbian
    "аоиетнрсвкдлпмјузгбчшцжфхњѓќљџѕ",  # Macedonian
    "анаіерлсктоўуядмзывобьпчгхйцюшэжёф",  # Belarusian
)
_GREEK = ("αοιτενσηυρπκμλςίωόγάδέήθχύφβώξζψϊΐϋΰ",)
_HEBREW = ("יוהלאתרבמשנםעדקחפטגכסןצזךףץ",)
_ARABIC = (
    "اليمنرتوبعةدسفهكقأحجشصىطخإذضزثئءغآظؤ،ًّ؟؛",
    "ایيرندهمتوسبشکكزگفعخقلحجپصآطذغچضئژثظءأؤ،",  # Persian
)
_THAI = ("านรอกเงยลมว่ดทตส้คปบัิีหขะไใชจแผพ็ุูำโื์ธถซญฟณภศษฤฐฉฏฮฬฎฑฌๆฯ",)

# Encodings of one byte a character, the more common ones first, with their languages.
_SINGLE: dict[str, dict[str, str] | tuple[str, ...]] = {
    "cp1252": _LATIN,
    "cp1251": _CYRILLIC,
    "cp1250": _LATIN,
    "koi8_r": _CYRILLIC,
    "iso8859_2": _LATIN,
    "cp1254": _LATIN,
    "cp1253": _GREEK,
    "cp1257": _LATIN,
    "cp1256": _ARABIC,
    "cp1255": _HEBREW,
    "cp874": _THAI,
    "cp1258": _LATIN,
    "iso8859_5": _CYRILLIC,
    "iso8859_7": _GREEK,
    "iso8859_15": _LATIN,
    "koi8_u": _CYRILLIC,
    "cp866": _CYRILLIC,
    "mac_roman": _LATIN,
    "cp850": _LATIN,
    "mac_cyrillic": _CYRILLIC,
    "cp852": _LATIN,
    "iso8859_6": _ARABIC,
    "cp720": _ARABIC,
    "cp862": _HEBREW,
    "cp737": _GREEK,
    "cp869": _GREEK,
    "mac_greek": _GREEK,
    "cp855": _CYRILLIC,
}
# Frequent punctuation of every language, with its bits.
_PUNCTUATION = {
    **dict.fromkeys("’“”", 8.0),
    **dict.fromkeys("–—«»\xa0", 9.0),
    **dict.fromkeys("‘„…°§€£·ªº©®™№•\xad", 11.0),
}
# Bits of letters of other languages and of symbols.
_OTHER_LETTER, _SYMBOL = 13.0, 15.0
# Punctuation within a word.
_IN_WORDS = "’\xad·"
# Bits of what seldom happens, by the kinds of characters one after another: ASCII letters (a, A),
# other letters (l, L), punctuation (.) and symbols (#) beyond ASCII, white space ( ) and other
# ASCII (!). A capital follows no small letter, and a letter does not stand alone.
_IN_WORD = 10
_SELDOM = {
    **{b"L": 1, b" L": 2, b"!L": 2, b"lL": _IN_WORD},
    **dict.fromkeys((b" l!", b"!l ", b"!l!"), 5),
    **dict.fromkeys((b"a.a", b"a.l", b"l.a", b"l.l"), 6),
}
_SELDOM_IN_LATIN = dict.fromkeys((b"aL", b"lA"), _IN_WORD)
# Changes between the alphabets, of a text and within a word.
_CHANGES = (b"al", b"aL", b"Al", b"AL", b"la", b"lA", b"La", b"LA")
_CHANGE, _CHANGE_IN_WORD = 4, 6
# Bits by which a known word is more probable than its letters.
_WORD = 4
_WORDS = re.compile(rb"[a-z]+")
# Bits of the most common encoding of each alphabet, of seldom ones, and of the others.
_COMMON = dict.fromkeys(("cp1252", "cp1251", "cp1253", "cp1255", "cp1256", "cp874"), 0)
_SELDOM_USED = dict.fromkeys(
    ("iso8859_6", "cp720", "cp862", "cp737", "cp869", "mac_greek", "cp855"), 6
)
_LESS_COMMON = 3


class _WideLanguage(NamedTuple):
    """A language of thousands of characters."""

    frequent: str
    """Its most frequent characters, from the most to the least."""
    share: float
    """Their share of a text."""
    reference: str
    """Encoding whose first bytes tell the other characters apart."""
    usual: tuple[int, int]
    """First bytes of the usual ones."""


_JAPANESE = _WideLanguage(
    "のいにるはをたしとてがなでれっもすかりあさら、。うこンくーまそスきルトどけイせんッラクリ"
    "つやだえよわおめみちばろ・アドロシプタレムげフびグジずマバコべデテサ日一人国大年中事本時分"
    "出上生行定用ュィョャパメキウナニカビ「」（）ポブネオヤダガゴモハセホチぎゃょねゅ",
    0.75,
    "euc_jp",
    (0xB0, 0xCF),
)
_CHINESE = _WideLanguage(
    "，的。一是不了、在有人我他这个们中来上大为和国地到以说时要就出会可也你对生能而子那得于着下"
    "自之年过发后作里用道行所然家种事成方多经么去法学如都同现当没动面起看定天分还进好小部其些主样"
    "理心文件无名数据使设置开关“”：；（）！？《》",
    0.55,
    "gb2312",
    (0xB0, 0xD7),
)
_TRADITIONAL = _WideLanguage(
    "，的。一是不了、在有人我他這個們中來上大為和國地到以說時要就出會可也你對生能而子那得於著下"
    "自之年過發後作裡用道行所然家種事成方多經麼去法學如都同現當沒動面起看定天分還進好小部其些主樣"
    "理心文件無名數據使設置開關「」：；（）！？《》",
    0.55,
    "big5",
    (0xA4, 0xC6),
)
_KOREAN = _WideLanguage(
    "이다는을에의를가은로하고지한도서기사어니아자나그리라시대인해일것들있으수정제부전성장주여"
    "구스게보면오조상비원과와무안만생동도문않습없되할",
    0.6,
    "euc_kr",
    (0xB0, 0xC8),
)
# Encodings of several bytes a character, with their languages.
_WIDE = {
    "cp932": (_JAPANESE,),
    "euc_jp": (_JAPANESE,),
    "gb18030": (_CHINESE, _TRADITIONAL),
    "big5": (_TRADITIONAL,),
    "cp949": (_KOREAN,),
    "johab": (_KOREAN,),
}
_BESIDE_ASCII = re.compile("(?<=[A-Za-z])[^\0-\x7f]|[^\0-\x7f](?=[A-Za-z])")
# Bits of a byte beyond ASCII, which in the Latin alphabet is a rare letter, and of an ASCII letter,
# from which bytes are no text of a language.
_MAX_HIGH, _MAX_HIGH_IN_LATIN, _MAX_ASCII = 7, 12, 6.5


def best_encoding(sample: bytes) -> tuple[str | None, bool]:
    """Return the encoding in which a sample is the most probable text.

    Args:
        sample: lines with bytes beyond ASCII; the last may be cut within a character.

    Returns:
        Its name, None if the sample is valid in none, and whether it is probable enough to be a
        text of one of the languages.
    """
    counts = Counter(sample)
    ascii_bits = _ascii_bits(sample, counts)
    priors = _COMMON | _SELDOM_USED
    bits: dict[str, float] = {name: priors.get(name, _LESS_COMMON) for name in (*_SINGLE, *_WIDE)}
    for name in _SINGLE:
        bits[name] += _single_bits(sample, counts, ascii_bits, name)
    for name in _WIDE:
        bits[name] += _wide_bits(sample, name)
    best = min(bits, key=lambda name: bits[name])
    if bits[best] == math.inf:
        return None, False
    high = sum(number for byte, number in counts.items() if byte >= 128)
    letters = sum(counts[byte] for byte in _ASCII_LETTERS)
    is_latin = isinstance(_SINGLE.get(best), dict)
    each = _MAX_HIGH_IN_LATIN if is_latin else _MAX_HIGH
    return best, bits[best] < each * high + _MAX_ASCII * letters


def chance_bits(text: str) -> float:
    """Return by how many bits a text is more probable as letters of a language than by chance.

    By chance, each character of two bytes takes 16 bits.
    """
    counts = Counter(text)
    alphabets = [*_LATIN.values(), *_CYRILLIC, *_GREEK, *_HEBREW, *_ARABIC, *_THAI]
    tables = [_letter_bits(letters) | _PUNCTUATION for letters in alphabets]
    bits = [sum(table.get(each, 24.0) * n for each, n in counts.items()) for table in tables]
    wide = [_text_bits(counts, language) for languages in _WIDE.values() for language in languages]
    return 16 * len(text) - min(bits + wide)


_ASCII_LETTERS = (string.ascii_lowercase + string.ascii_uppercase).encode()


@cache
def _letter_bits(letters: str, share: float = 1.0) -> dict[str, float]:
    """Return the bits of letters that are sorted by frequency, and of their capitals.

    Of n letters, the r-th has a frequency proportional to log((n + 1) / r) (Gusein-Zade, 1988).
    """
    weights = [math.log((len(letters) + 1) / rank) for rank in range(1, len(letters) + 1)]
    bits: dict[str, float] = {}
    for letter, weight in zip(letters, weights, strict=True):
        for form in (letter, letter.upper()):
            bits.setdefault(form, -math.log2(share * weight / sum(weights)))
    return bits


def _ascii_bits(sample: bytes, counts: Counter[int]) -> dict[str, float]:
    """Return the bits of the ASCII letters of a sample in each language in the Latin alphabet."""
    words = Counter(_WORDS.findall(sample.lower()))
    bits = {}
    for language, letters in _LATIN.items():
        known = _letter_bits(letters)
        bits[language] = sum(
            counts[byte] * known.get(chr(byte), _OTHER_LETTER) for byte in _ASCII_LETTERS
        ) - _WORD * sum(words[each] for each in _words(language))
    return bits


@cache
def _words(language: str) -> list[bytes]:
    """Return frequent words of a language that have ASCII letters alone."""
    words = WORDS.get(language) or _MORE_WORDS[language]
    return [word.encode() for word in set(words.split()) if word.isascii()]


@cache
def _byte_bits(letters: str, encoding: str) -> list[float]:
    """Return the bits of each byte beyond ASCII of a text in an encoding of one byte."""
    known = _letter_bits(letters)
    bits = []
    for byte in range(128, 256):
        character = bytes([byte]).decode(encoding, "replace")
        other = _OTHER_LETTER if character.isalpha() else _SYMBOL
        bits.append(known.get(character) or _PUNCTUATION.get(character, other))
    return bits


@cache
def _kinds(encoding: str) -> bytes:
    """Return the kind of the character of each byte."""
    return "".join(_kind(bytes([each]).decode(encoding, "replace")) for each in range(256)).encode()


def _kind(character: str) -> str:
    if character.isascii():
        if character.isalpha():
            return "A" if character.isupper() else "a"
        return " " if character.isspace() else "!"
    if character in _PUNCTUATION:
        return "-" if character in _IN_WORDS else "."
    if character.isupper():
        return "L"
    return "l" if character.isalpha() or category(character)[0] == "M" else "#"


def _single_bits(
    sample: bytes, counts: Counter[int], ascii_bits: dict[str, float], encoding: str
) -> float:
    """Return the bits of a sample in an encoding of one byte, infinity if it is not valid."""
    try:
        sample.decode(encoding)
    except UnicodeDecodeError:
        return math.inf
    kinds = sample.translate(_kinds(encoding))
    seldom = sum(bits * kinds.count(pattern) for pattern, bits in _SELDOM.items())
    high = [(byte - 128, number) for byte, number in counts.items() if byte >= 128]
    alphabets = _SINGLE[encoding]
    if isinstance(alphabets, dict):
        seldom += sum(bits * kinds.count(pattern) for pattern, bits in _SELDOM_IN_LATIN.items())
        languages = [(ascii_bits[name], letters) for name, letters in alphabets.items()]
    else:
        letters_alone = kinds.translate(None, b" !.-#")
        seldom += sum(_CHANGE * letters_alone.count(pattern) for pattern in _CHANGES)
        seldom += sum(_CHANGE_IN_WORD * kinds.count(pattern) for pattern in _CHANGES)
        languages = [(ascii_bits["English"], letters) for letters in alphabets]
    tables = [(low, _byte_bits(letters, encoding)) for low, letters in languages]
    return seldom + min(low + sum(table[byte] * n for byte, n in high) for low, table in tables)


def _wide_bits(sample: bytes, encoding: str) -> float:
    """Return the bits of a sample in an encoding of several bytes, infinity if it is not valid."""
    try:
        text = codecs.getincrementaldecoder(encoding)().decode(sample)
    except UnicodeDecodeError:
        return math.inf
    counts = Counter(text)
    seldom = _CHANGE_IN_WORD * len(_BESIDE_ASCII.findall(text))
    return seldom + min(_text_bits(counts, language) for language in _WIDE[encoding])


def _text_bits(counts: Counter[str], language: _WideLanguage) -> float:
    known = _letter_bits(language.frequent, language.share)
    english = _letter_bits(_ENGLISH)
    bits = 0.0
    for character, number in counts.items():
        if not character.isascii():
            bits += number * (known.get(character) or _rare_bits(character, language))
        elif character.isalpha():
            bits += number * english[character]
    return bits


def _rare_bits(character: str, language: _WideLanguage) -> float:
    """Return the bits of a character that is not among the most frequent ones."""
    try:
        first = character.encode(language.reference)[0]
    except UnicodeEncodeError:
        return 24.0
    if language.usual[0] <= first <= language.usual[1]:
        return 13.0
    return 13.0 if first <= 0xA3 else 18.0
