"""Texts that pre-tokenizers split in many ways."""

from hypothesis import strategies as st

STYLES = [("gpt2", False), ("gpt2", True), ("gpt4", False), ("gpt4", True)]
CORPUS = [
    "The whale said: don't, we'll see 1851 ships!\n\n  Call me Ishmael.\tThe the the whale whales.",
    "Ünïcödé, слово за словом, 鯨は海を泳ぐ。 🐳🐳 👩‍👩‍👧 naïve café DON'T I'LL You're",
    "def f(x):\r\n    return {'a': [x ** 2, 3.14159]}\n\n\n\n# end   \n 20 000 ½ ² ٣ Ⅷ 12345678",
    "aaaaaaaa abababab  (((((--==>>>  \t\t x\u3000y\xa0z\x85\u2028 end",
    "كلمة हिन्दी ภาษาไทย 한국어 ᚠᚢᚦ e\u0301 ё",
]
# Letters of several scripts, numbers of all kinds, marks, contractions and odd white space.
_DENSE = "aB é'sſtTlLvVeErRmMdD1²Ⅷ٣!?-。’\u0301ǅ鯨я🐳 \n\r\t\x1c\x85\xa0\u2028\u3000"
any_script = st.lists(
    st.one_of(
        st.text(st.sampled_from(_DENSE), max_size=12),
        st.text(st.characters(exclude_categories=("Cs",)), max_size=6),
        st.sampled_from([*CORPUS, "'s", "'LL", "'ſ", "    ", "\n\n", "12345", "<|endoftext|>"]),
        st.builds(lambda text, times: text * times, st.text(max_size=3), st.integers(0, 90)),
    ),
    max_size=8,
).map("".join)
