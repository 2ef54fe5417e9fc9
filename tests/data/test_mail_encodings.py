import base64

import pytest
from hypothesis import given
from hypothesis import strategies as st

from src.data.mail_encodings import decode_base64, decode_words


@given(
    bodies=st.lists(st.text(st.characters(codec="utf-8", exclude_categories="C"), min_size=1)),
    footer=st.sampled_from([b"", b"-- \nthe list\xff", b"two words", b"(c)\nme"]),
    width=st.integers(1, 20),
)
def test_bodies_and_what_follows_them_are_found(bodies, footer, width):
    lines = []
    for body in bodies:
        encoded = base64.b64encode(body.encode())
        lines += [encoded[at : at + 4 * width] for at in range(0, len(encoded), 4 * width)]
    decoded, rest = decode_base64(b"\r\n".join([*lines, footer]))
    assert decoded.decode() == "".join(bodies)
    assert rest == footer


@pytest.mark.parametrize(
    ("body", "expected"),
    [
        (b"SGVsbG8gd29ybGQ", (b"Hello world", b"")),
        (b"SGVsbG8gd29ybG", (b"Hello worl", b"")),
        (b"SGVsbG8gd29yb", (b"Hello wor", b"")),
        (b"SGVsbG8=\nRegards\n", (b"Hello", b"Regards")),
        (b"SGVsbG8=\ngoodbyes\nBob\n", (b"Hello", b"goodbyes\nBob")),
        (b"SGVsbG8=\nIHdvcmxk\n", (b"Hello world", b"")),
        (b"Not encoded at all\n", (b"", b"Not encoded at all")),
        (b"", (b"", b"")),
    ],
)
def test_bodies_that_are_cut_short_or_followed_by_words(body, expected):
    assert decode_base64(body) == expected


@given(
    text=st.text(st.characters(codec="utf-8", exclude_characters="\r\n")), size=st.integers(1, 9)
)
def test_words_that_split_a_character_are_decoded(text, size):
    content = text.encode()
    pieces = [content[at : at + size] for at in range(0, len(content), size)]
    header = " ".join(f"=?utf-8?b?{base64.b64encode(each).decode()}?=" for each in pieces)
    assert decode_words(header) == text
