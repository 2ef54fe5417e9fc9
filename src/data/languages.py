"""Guess the language of a text by its most frequent words, or by its script.

The shares of a corpus are estimated from samples. What has too few known words, such as code or a
list of names, is undetermined.
"""

from __future__ import annotations

import re
from collections import Counter

WORDS = {
    "English": "the of and to in that is was for it with as his on be at by had not but from",
    "German": "der die und das nicht den von zu ist mit sich auf dem ein eine ich auch als war er",
    "French": "le la les de des et un une que qui dans est pas pour sur il elle au plus ne du",
    "Spanish": "el la los las de que y en un una por con no se su para es lo al como más pero",
    "Portuguese": "o os as de que e do da em um uma não com para se por mais dos no na ao foi",
    "Italian": "il lo gli le di che e la un una non per con si del della sono è nel anche come",
    "Dutch": "de het een en van ik te dat die niet is was op aan met voor zijn er maar hij om",
    "Swedish": "och att det som en på är av för med den till inte om ett han var jag har de sig",
    "Danish": "og at det er en til på som af med for der ikke den jeg han de et var har af sig",
    "Norwegian": "og å det er en til på som av med for ikke den jeg han de et var har seg om fra",
    "Finnish": "ja on ei että se oli hän mutta kun niin ovat kuin myös tai joka ole sen hänen",
    "Polish": "i w nie na się z do że jest to jak o co po ale tak za od przez jego był dla już",
    "Czech": "a v se na je že to s z o do i ale jak by po jsem pro za který byl jeho jako si",
    "Hungarian": "a az és hogy nem is egy ez de meg csak volt mint már még vagy azt ha el ki",
    "Romanian": "și în de la a nu cu să pe din că o un care este mai au era dar lui prin fost",
    "Turkish": "ve bir bu da de için ile çok ne o gibi daha var olarak ama kadar sonra değil ben",
    "Indonesian": "yang dan di dengan untuk ini dari itu tidak dalam pada akan adalah ke juga saya",
    "Vietnamese": "và của là có không cho một được trong người với đã này những các tôi khi về",
    "Latin": "et in est non ad ut cum quod qui sed si ex enim per quam ab sunt esse quae atque",
    "Russian": "и в не на что он с как это но его по из она к у был все же так было за от бы",
    "Ukrainian": "і в не на що він з як це але його по та до вона у був все й його для було від",
    "Bulgarian": "и в не на че той с като това но го по от тя се да за са е беше което ще как",
    "Arabic": "في من على إلى أن ما لا هذا التي كان عن مع هذه الذي قد ذلك بين أو كل ولا",
    "Persian": "و در به از که این است را با آن برای یک بود شد خود تا بر هم می ها او",
    "Hebrew": "של את על לא הוא זה כי גם עם היא אני או אם יש כל אל היה מה אך",
    "Greek": "και το να η του της με που για από ο την τα είναι στο δεν τον ότι στην θα των",
}  # fmt: skip
"""The most frequent words of texts, without those that several of these languages share much."""
_OF_WORD: dict[str, list[str]] = {}
for _name, _words in WORDS.items():
    for _word in set(_words.split()):
        _OF_WORD.setdefault(_word, []).append(_name)
# Scripts that one language uses almost alone, by their first and last characters.
_BY_SCRIPT = (
    ("Japanese", re.compile("[\u3041-\u30fa]")),  # kana, which Chinese does not have
    ("Korean", re.compile("[\uac00-\ud7a3]")),
    ("Chinese", re.compile("[\u4e00-\u9fff]")),
    ("Thai", re.compile("[\u0e01-\u0e5b]")),
    ("Armenian", re.compile("[\u0531-\u058a]")),
    ("Georgian", re.compile("[\u10a0-\u10ff]")),
    ("Tamil", re.compile("[\u0b82-\u0bfa]")),
    ("Bengali", re.compile("[\u0980-\u09fe]")),
    ("Telugu", re.compile("[\u0c00-\u0c7f]")),
    ("Hindi or another language in Devanagari", re.compile("[\u0900-\u097f]")),
)
UNDETERMINED = "undetermined"
LANGUAGES = (*WORDS, *(name for name, _ in _BY_SCRIPT))
"""The languages that are told apart."""

_WORD = re.compile(r"[^\W\d_]+")
_SNIPPET = 1000  # characters of a sample
_MIN_WORDS = 5
# Different known words: code may repeat one, as a name.
_MIN_KNOWN = 3
# Share of known words: of running text about a third are among the most frequent twenty.
_MIN_SHARE = 0.12
# Share of the characters of a script from which a text is in its language. Japanese has few kana.
_MIN_SCRIPT_SHARE = 0.1


def guess_language(text: str) -> str:
    """Guess the language of a text of some sentences; `UNDETERMINED` if nothing speaks for one."""
    letters = sum(map(str.isalpha, text))
    if not text.isascii():
        for name, characters in _BY_SCRIPT:
            if len(characters.findall(text)) > _MIN_SCRIPT_SHARE * max(letters, 1):
                return name
    words = _WORD.findall(text.lower())
    if len(words) < _MIN_WORDS:
        return UNDETERMINED
    scores, known = Counter[str](), Counter[str]()
    for word, count in Counter(words).items():
        for name in _OF_WORD.get(word, ()):
            scores[name] += count
            known[name] += len(word) > 1 or not word.isascii()  # letters are names, too
    # Of equals, the first one in `WORDS`.
    best = max(WORDS, key=lambda name: scores[name])
    is_varied = known[best] >= _MIN_KNOWN
    return best if is_varied and scores[best] >= _MIN_SHARE * len(words) else UNDETERMINED


class LanguageSampler:
    """Estimates the share of each language in a stream of documents, from samples of them.

    Of many documents, ever fewer are sampled.
    """

    def __init__(self) -> None:
        self.characters: Counter[str] = Counter()
        """Estimated number of characters of each language."""
        self.samples = 0
        self._documents, self._stride, self._next_stride = 0, 1, _SAMPLES

    def add(self, text: str) -> None:
        """Add a document, or the next piece of one."""
        # Multiples of the golden ratio: no period of the documents is preferred.
        is_sampled = self._documents * 0x9E3779B9 % 2**32 < 2**32 // self._stride
        self._documents += 1
        if not is_sampled:
            return
        count = min(_MAX_SNIPPETS, 1 + len(text) // _PER_SNIPPET)
        for index in range(count):
            # The middle of each part: at the ends there are titles and licences.
            middle = (2 * index + 1) * len(text) // (2 * count)
            start = max(0, middle - _SNIPPET // 2)
            language = guess_language(text[start : start + _SNIPPET])
            self.characters[language] += self._stride * len(text) // count
        self.samples += count
        if self.samples > self._next_stride:
            self._stride *= 2
            self._next_stride += _SAMPLES


_MAX_SNIPPETS = 16
_PER_SNIPPET = 20_000
_SAMPLES = 2000  # after which half of the documents are sampled, then a quarter
