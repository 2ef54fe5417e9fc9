"""HTML pages: escaping, validity, and the Content-Security-Policy."""

import base64
import hashlib
import re
from html.parser import HTMLParser

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from src.evaluation.html import COLORS, escape, page, table, unbroken, visible_text
from src.utils import human_bytes, human_time

VOID = {"meta", "br", "img"}
HOSTILE = "</script><script>alert(1)</script><!-- <img src=x onerror=alert(1)> \" ' &lt; ]]>"


class Whole(HTMLParser):
    """Every element is closed in its turn; `elements`, `text` and `texts` (of scripts and styles)
    are what was found."""

    def __init__(self, source):
        super().__init__()
        self.elements, self.open, self.text, self.texts = [], [], "", []
        self.feed(source)
        self.close()
        assert not self.open

    @property
    def policy(self):
        """The page's Content-Security-Policy: its directives."""
        (content,) = [keys["content"] for _, keys in self.elements if "http-equiv" in keys]
        return {words[0]: words[1:] for words in map(str.split, content.split(";"))}

    def handle_starttag(self, tag, attributes):
        self.elements.append((tag, dict(attributes)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attributes):
        self.elements.append((tag, dict(attributes)))

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        if self.open and self.open[-1] in ("script", "style"):
            self.texts.append((self.open[-1], data))
        else:
            self.text += data


@given(st.text(st.characters(), max_size=40))
def test_escaped_text_is_text_alone(text):
    found = Whole(f"<p>{escape(text)}</p>")
    assert found.elements == [("p", {})]
    assert not any(ord(each) < 32 and each not in "\t\n\r" for each in escape(text))
    escape(text).encode("utf-8")


def test_what_no_file_can_hold_becomes_visible():
    assert escape("a\0b\x1b\x7f\ud800\n") == "a␀b␛␡?\n"


def test_a_page_loads_nothing():
    source = page("<i>", table(["a", "b"], [["1", "2"]], "kind"))
    found = Whole(source)
    tags = {tag for tag, _ in found.elements}
    assert found.policy["default-src"] == found.policy["base-uri"] == ["'none'"]
    assert "script-src" not in found.policy
    assert not tags & {"script", "link", "img", "iframe", "object"}
    assert not re.search(r"url\(|@import|https?:", source)
    assert "prefers-color-scheme: dark" in source
    assert ("table", {"class": "kind"}) in found.elements


@given(st.floats(0, 1e9))
def test_a_figure_has_no_space_at_which_a_line_could_break(number):
    for figure in (human_time(number), human_bytes(number), f"{number:,.0f} epochs", f"{number} %"):
        text = unbroken(f"trains for {figure} or less")
        assert text.replace("\u00a0", " ") == f"trains for {figure} or less"
        assert text.split(" ") == ["trains", "for", figure.replace(" ", "\u00a0"), "or", "less"]


@pytest.mark.parametrize(
    ("cell", "is_figure"),
    [
        *(("1,071,872", True), ("32 min 02 s", True), ("-0.5", True), ("0", True)),
        *(("1,234 <small>5 %</small>", True), ("<code>0.016</code>", True)),
        *(("2026-11-27 10:00", True), ("–", False), ("not set", False), ("", False)),
        *(("<pre>1 " + "word " * 20 + "</pre>", False), ("9" * 31, False), ("9" * 30, True)),
    ],
)
def test_a_cell_breaks_no_figure(cell, is_figure):
    found = Whole(page("", table(["a"], [[cell]])))
    (attributes,) = [keys for tag, keys in found.elements if tag == "td"]
    assert attributes == ({"class": "figure"} if is_figure else {})


def test_figures_of_tiles_and_tables_stay_on_one_line():
    style = re.sub(r"/\*.*?\*/|\s+", " ", page("", ""), flags=re.DOTALL)
    rules = dict(re.findall(r"([^{}]+?) ?\{ ([^{}]*?) ?\}", style))
    for selector in (".tiles b", "td.figure"):
        (rule,) = [body for name, body in rules.items() if name.strip() == selector]
        assert "white-space: nowrap" in rule


def _luminance(color):
    digits = color.lstrip("#")
    digits = "".join(d * 2 for d in digits) if len(digits) == 3 else digits
    parts = [int(digits[i : i + 2], 16) / 255 for i in (0, 2, 4)]
    linear = [p / 12.92 if p <= 0.04045 else ((p + 0.055) / 1.055) ** 2.4 for p in parts]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


def test_both_schemes_have_contrast():
    """Text 4.5:1 and curves 3:1, as WCAG 2.2 asks."""
    schemes = re.findall(r":root \{[^}]*--back[^}]*\}", page("", ""))
    assert len(schemes) == 2
    for scheme in schemes:
        colors = dict(re.findall(r"--(\w+): (#\w+)", scheme))
        for back, front, least in [
            *(("card", str(number), 3.0) for number in range(COLORS)),
            *((back, front, 4.5) for back in ("card", "back") for front in ("text", "soft")),
            ("mark", "text", 4.5),
        ]:
            low, high = sorted([_luminance(colors[back]), _luminance(colors[front])])
            assert (high + 0.05) / (low + 0.05) >= least, (back, front, scheme)


@given(st.text(st.characters(), max_size=40), st.text(st.characters(), max_size=40))
@example(HOSTILE, HOSTILE)
def test_only_the_pages_own_script_runs(title, text):
    script = "console.log('é < 3 && 4 > 2')"
    body = f'<p title="{escape(text)}">{escape(text)}</p>' + table([escape(text)], [[escape(text)]])
    found = Whole(page(title, body, script))
    assert [tag for tag, _ in found.elements].count("script") == 1
    assert [content for tag, content in found.texts if tag == "script"] == [script]
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    assert found.policy["script-src"] == [f"'sha256-{digest}'"]
    assert found.policy["default-src"] == ["'none'"]
    assert ("p", {"title": visible_text(text)}) in found.elements
    assert found.text.count(visible_text(text)) >= 3 or not text


@pytest.mark.parametrize("script", ["a</script>b", "a</SCRIPT b", "<!-- a"])
def test_a_script_that_html_would_end_is_refused(script):
    with pytest.raises(ValueError, match="script"):
        page("", "", script)
