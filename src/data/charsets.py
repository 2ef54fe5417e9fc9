"""Choose the encoding of a text: UTF-8, what a byte-order mark says, or a guess."""

from __future__ import annotations

import codecs
import re

UTF8 = "utf-8"

_MARKS = {
    codecs.BOM_UTF8: "utf-8-sig",
    codecs.BOM_UTF32_LE: "utf-32",  # begins with the mark of UTF-16
    codecs.BOM_UTF32_BE: "utf-32",
    codecs.BOM_UTF16_LE: "utf-16",
    codecs.BOM_UTF16_BE: "utf-16",
}
_JAPANESE_ESCAPE = re.compile(rb"\x1b\$[@B]")
_KOREAN_ESCAPE = b"\x1b$)C"
# What programs call an encoding, and the one with more characters that they mean by it.
_SUPERSETS = {
    "iso8859-1": "cp1252",
    "iso8859-9": "cp1254",
    "iso8859-11": "cp874",
    "tis-620": "cp874",
    "gb2312": "gb18030",
    "gbk": "gb18030",
    "shift_jis": "cp932",
    "euc_kr": "cp949",
}
# Of encodings that differ in few characters, the common one.
_COMMON = {"koi8_t": "koi8_r", "cp1125": "cp866", "kz1048": "cp1251", "ptcp154": "cp1251"}
# Characters that no text has many of: not white space, escapes, backspaces and the end of a file.
_CONTROL = re.compile("[\0-\x07\x0b\x0e-\x19\x1c-\x1f\x7f-\x84\x86-\x9f]")
_MAX_CONTROL = 0.02
_HIGH_BYTES = re.compile(rb"[\x80-\xff]+")
# Bytes of a sample: more does not change a guess, which takes longer than the decoding.
_SAMPLE = 2**15

# Letters beyond ASCII of languages in the Latin and the Greek alphabet.
_ALPHABETS = [
    "àâæçéèêëîïôœùûüÿ",
    "äöüßéà",
    "áéíñóúü¿¡",
    "ãáâàçéêíóôõú",
    "àèéìîòù",
    "åäöæøéü",
    "áðéíóúýþæö",
    "ąćęłńóśźż",
    "áčďéěíňóřšťúůýž",
    "áäčďéíĺľňóôŕšťúýž",
    "áéíóöőúüű",
    "ăâîșțşţ",
    "čćđšž",
    "çğıöşüİâî",
    "ąčęėįšųūž",
    "āčēģīķļņšūž",
    "äõöüšž",
    "αβγδεζηθικλμνξοπρσςτυφχψωάέήίόύώϊϋΐΰ",
]
_LETTERS = [frozenset(letters + letters.upper()) for letters in _ALPHABETS]
# Punctuation that texts of every language contain.
_PUNCTUATION = frozenset("‘’‚‛“”„‟–—…«»‹›°§€£ªº·©®™\xa0\xad")
# From the most to the least common: the first of those with the same score is chosen.
_LATIN = (
    "cp1252",
    "cp1250",
    "iso8859_2",
    "cp1254",
    "cp1257",
    "iso8859_15",
    "mac_roman",
    "cp850",
    "cp852",
)
_GREEK = ("cp1253", "iso8859_7")


_KANA = re.compile("[\u3041-\u30fa]")
_JAPANESE = ("cp932", "euc_jp")
# Share of kana from which a text is Japanese: other texts in these encodings have next to none.
_MIN_KANA = 0.2
_HANGUL = re.compile("[\uac00-\ud7a3]")
_COMMON_HAN = re.compile("[的一不是了人我在有他]")
# Share of them from which a text is Chinese.
_MIN_HAN = 0.02
# Encodings of Chinese, Japanese and Korean, and characters that some of each text are.
_WIDE = (
    ("cp932", _KANA, 0.02),
    ("euc_jp", _KANA, 0.02),
    ("big5", _COMMON_HAN, 0.02),
    ("gb18030", _COMMON_HAN, 0.02),
    ("cp949", _HANGUL, 0.7),
    ("johab", _HANGUL, 0.7),
)


def encoding_of_mark(head: bytes) -> str | None:
    """Return the encoding that the byte-order mark of a text names, if it has one."""
    return next((name for mark, name in _MARKS.items() if head.startswith(mark)), None)


def is_ascii(block: bytes) -> bool:
    """Return whether a block is the same text in ASCII and in all its extensions."""
    return block.isascii() and escaped_encoding(block) is None


def is_valid(block: bytes, encoding: str) -> bool:
    """Return whether a block, which may end within a character, is text in an encoding."""
    try:
        codecs.getincrementaldecoder(encoding)().decode(block)
    except (UnicodeError, LookupError):
        return False
    return True


def escaped_encoding(block: bytes) -> str | None:
    """Return the name of the Japanese or Korean ISO-2022, or of HZ, that a block is in, if it is.

    Its bytes are those of ASCII.
    """
    if b"~{" in block and b"~}" in block and block.isascii() and is_valid(block, "hz"):
        return "hz" if _share(_COMMON_HAN, block, "hz") >= _MIN_HAN else None
    if b"\x1b$" not in block or not block.isascii():
        return None
    if _KOREAN_ESCAPE in block:
        return "iso2022_kr"
    if not _JAPANESE_ESCAPE.search(block):
        return None
    return "iso2022_jp" if is_valid(block, "iso2022_jp") else "iso2022_jp_ext"


def has_many_controls(text: str) -> bool:
    """Return whether a text, decoded as a guess, is binary data by its control characters."""
    return len(_CONTROL.findall(text)) > _MAX_CONTROL * len(text)


def has_few_nuls(block: bytes, before: tuple[int, int] = (0, 0)) -> bool:
    """Return whether the NUL bytes of a text are too few for binary data: less than 1 %.

    Args:
        block: a block of it, which is not UTF-16 or UTF-32.
        before: numbers of NUL bytes and of all bytes before the block.
    """
    is_few = 100 * (before[0] + block.count(0)) < before[1] + len(block)
    return is_few and not has_many_controls(block.decode(UTF8, "ignore"))


def is_wide(name: str) -> bool:
    """Return whether an encoding is UTF-16 or UTF-32, in which characters have NUL bytes."""
    return codecs.lookup(name).name.startswith(("utf-16", "utf-32"))


def declared_name(name: str) -> str:
    """Return the encoding that a text means by a name, whose characters may be more."""
    try:
        return _SUPERSETS.get(codecs.lookup(name).name, name)
    except (LookupError, ValueError):
        return name


def is_damaged_utf8(block: bytes) -> bool:
    """Return whether half of the characters beyond ASCII, or more, are valid UTF-8, but not all."""
    text = block.decode(UTF8, "replace")
    broken = text.count("\ufffd")
    valid = sum(not character.isascii() for character in text) - broken
    return valid >= broken > 0


def guess_encoding(block: bytes) -> str | None:
    """Guess the encoding of a text that is not UTF-8, from a block of it.

    In the Latin and the Greek alphabet, the choice is the encoding in which most characters beyond
    ASCII are letters of one language; otherwise, that of `charset_normalizer`.

    Returns:
        A name that `codecs` knows, or None.
    """
    if escaped := escaped_encoding(block):
        return escaped
    sample = _sample(block)
    if _is_latin(sample):
        return _best_alphabet(sample, _LATIN)
    kana, japanese = max((_share(_KANA, sample, name), name) for name in _JAPANESE)
    if kana > _MIN_KANA:
        return japanese
    from charset_normalizer import from_bytes  # 40 ms, for the few texts that are not UTF-8

    names = (match.encoding for match in from_bytes(sample))
    best = next((name for name in names if is_valid(block, name)), None)
    if best is None:
        return _wide_encoding(block, sample) or _best_alphabet(sample, _LATIN)
    if best in _GREEK:
        return _best_alphabet(sample, _GREEK)
    common = _COMMON.get(best, best)
    return common if is_valid(block, common) else best


def _sample(block: bytes) -> bytes:
    """Return the lines with bytes beyond ASCII, which alone differ between encodings."""
    lines = [line for line in block.split(b"\n")[:-1] or [block] if not line.isascii()]
    joined = b"\n".join(lines or [block])
    if len(joined) <= _SAMPLE:
        return joined
    # To the end of a character: no encoding has a character with one of these bytes in it.
    end = max(joined.rfind(byte, 0, _SAMPLE) for byte in (b" ", b"\n", b"<", b","))
    return joined[: end if end > 0 else _SAMPLE]


def _wide_encoding(block: bytes, sample: bytes) -> str | None:
    """Return the encoding of Chinese, Japanese or Korean that gives a text of such characters."""
    return next(
        (
            name
            for name, characters, share in _WIDE
            if _share(characters, sample, name) >= share and is_valid(block, name)
        ),
        None,
    )


def _is_latin(sample: bytes) -> bool:
    """Return whether bytes beyond ASCII are among ASCII letters, as accented letters are."""
    runs = [len(run) for run in _HIGH_BYTES.findall(sample)]
    single = sum(length for length in runs if length <= 2)
    letters = sum(bytes([byte]).isalpha() for byte in sample if byte < 128)
    return single > 0.7 * sum(runs) and letters > sum(runs)


def _share(characters: re.Pattern[str], sample: bytes, encoding: str) -> float:
    """Return the share of such characters among those beyond ASCII."""
    text = sample.decode(encoding, "replace")
    return len(characters.findall(text)) / max(1, sum(not each.isascii() for each in text))


def _best_alphabet(sample: bytes, encodings: tuple[str, ...]) -> str | None:
    scores = {name: _alphabet_score(sample, name) for name in encodings}
    best = max(encodings, key=lambda name: scores[name])
    return best if scores[best] >= 0 else None


def _alphabet_score(sample: bytes, encoding: str) -> float:
    """Return the share of characters beyond ASCII that one language uses, or -1 if not valid."""
    try:
        text = sample.decode(encoding)
    except UnicodeDecodeError:
        return -1.0
    beyond = [character for character in text if not character.isascii()]
    letters = [character for character in beyond if character not in _PUNCTUATION]
    known = max(sum(each in alphabet for each in letters) for alphabet in _LETTERS)
    return (known + len(beyond) - len(letters)) / max(len(beyond), 1)
