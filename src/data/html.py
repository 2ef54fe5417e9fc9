"""Extract the text of web pages, without scripts and navigation."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any

from .documents import Document
from .inputs import Input
from .text import read_whole_text

MAX_PAGE = 2**24
"""Maximum characters of a web page, whose tree takes some 20 times as much memory."""
# Maximum depth of elements: the parser takes quadratic time in it.
_MAX_DEPTH = 4000

_NEVER_TEXT = {"script", "style", "template", "head", "iframe", "object", "noscript", "svg"}
_NEVER_TEXT |= {"canvas", "noframes", "datalist"}
_NAVIGATION = {"nav", "aside", "footer", "menu", "dialog", "button", "select"}
_NAVIGATION_ROLES = {"navigation", "search", "contentinfo", "complementary", "menu", "dialog"}
_WORDS = re.compile(r"\w+")
_PARAGRAPHS = set(_WORDS.findall("p h1 h2 h3 h4 h5 h6 blockquote pre ul ol dl table figure hr"))
_PARAGRAPHS |= {"article", "address", "details", "fieldset", "section"}
_LINES = set(_WORDS.findall("div li dt dd tr br main header footer nav aside caption option form"))
_LINES |= {"figcaption", "summary", "title", "legend", "body", "html"}
_CELLS = {"td", "th"}

# Elements of formatting, which a parser repeats in each paragraph until they are closed.
_FORMATS = set(_WORDS.findall("a b big code em font i nobr s small strike strong tt u"))
# Limits of the elements that are repeated, and of the pairs of attributes in elements of more than
# so many characters.
_MAX_REPEATED, _MAX_PAIRS, _LONG_TAG = 2**21, 10**9, 2**12
_QUOTED = re.compile("\"[^\"]*\"|'[^']*'")
_TAG = re.compile(r"<(/?)([a-z][a-z0-9]*)", re.IGNORECASE)
# Elements that are not closed, or need not be.
_UNCLOSED = set(_WORDS.findall("area base br col embed hr img input link meta param source track"))
_UNCLOSED |= set(_WORDS.findall("wbr p li td tr th dt dd option optgroup thead tbody tfoot rp rt"))
_CHARSET = re.compile(rb"<meta[^>]{0,200}charset\s*=\s*[\"']?([\w.:-]{1,40})", re.IGNORECASE)


def read_html(source: Input) -> Iterator[Document]:
    """Yield a web page as one document, without scripts and, if `clean`, navigation."""
    declared = _CHARSET.search(source.stream.peek(4096)[:4096])
    name = declared[1].decode("ascii") if declared else None
    yield source.document(html_text(source, read_whole_text(source, name, MAX_PAGE)))


def html_text(source: Input, page: str) -> str:
    """Return the text of a web page, or of a part of one.

    Raises:
        Unreadable: if elements are nested too deeply.
    """
    from selectolax.lexbor import LexborHTMLParser

    depth, repeated = _depth(page)
    if depth > _MAX_DEPTH:
        raise source.error(
            "nested too deeply", f"elements are nested more than {_MAX_DEPTH:,} levels deep"
        )
    if repeated > _MAX_REPEATED or _attribute_pairs(page) > _MAX_PAIRS:
        what = "attributes of one element" if repeated <= _MAX_REPEATED else "unclosed elements"
        raise source.error("nested too deeply", f"too many {what}, such as no page has")
    extractor = _Extractor(source.options.clean)
    extractor.extract(LexborHTMLParser(page.replace("\0", "\ufffd")).root)
    text = extractor.text()
    if not text.strip() and extractor.navigation:  # the page is nothing else
        extractor = _Extractor(clean=False)
        extractor.extract(LexborHTMLParser(page.replace("\0", "\ufffd")).root)
        return extractor.text()
    source.removed("navigation of web pages", extractor.navigation)
    source.removed("scripts and styles of web pages", extractor.scripts)
    return text


def _depth(page: str) -> tuple[int, int]:
    """Return the maximum number of elements that are open at a time, and of those repeated.

    A parser repeats the open elements of formatting, such as bold text, in each paragraph.
    """
    depth = deepest = formats = repeated = 0
    for end, name in _TAG.findall(page):
        name = name.lower()
        if name not in _UNCLOSED:
            depth = max(0, depth - 1) if end else depth + 1
            deepest = max(deepest, depth)
        if name in _FORMATS:
            formats = max(0, formats - 1) if end else formats + 1
        else:
            repeated += formats
    return deepest, repeated


def _attribute_pairs(page: str) -> int:
    """Return about how many pairs of attributes of an element a parser compares."""
    long = (part.rpartition("<")[2] for part in page.split(">") if len(part) > _LONG_TAG)
    return sum(len(_QUOTED.sub(" ", tag).split()) ** 2 for tag in long)


class _Extractor:
    """Collects the text below a node.

    Args:
        clean: whether to leave out navigation.
    """

    def __init__(self, clean: bool) -> None:
        self._clean = clean
        self._parts: list[str] = []
        self._break = ""  # the white space before the next text
        self._preformatted = 0  # depth of <pre>
        self.navigation = 0
        """Characters of navigation that were left out."""
        self.scripts = 0
        """Characters of scripts and styles, which are never text."""

    def extract(self, root: Any) -> None:
        """Add the text of a node and all below it, in order, without recursion."""
        node = root
        while node is not None:
            following = node.first_child if self._enter(node) else None
            while following is None:
                self._leave(node.tag)
                if node.mem_id == root.mem_id:
                    return
                following = node.next
                node = node if following is not None else node.parent
            node = following

    def _enter(self, node: Any) -> bool:
        """Add the text of a node; return whether to go on below it."""
        tag = node.tag
        if node.is_text_node:
            self._add(node.text_content or "")
        elif tag in _NEVER_TEXT:
            self.scripts += len(node.text(deep=True) or "")
        elif self._clean and self._is_navigation(node, tag):
            self.navigation += len(" ".join((node.text(deep=True) or "").split()))
        elif not node.is_comment_node:
            self._separate(tag)
            self._preformatted += tag == "pre"
            return True
        return False

    @staticmethod
    def _is_navigation(node: Any, tag: str) -> bool:
        if tag in _NAVIGATION:
            return True
        attributes = node.attributes
        return "hidden" in attributes or attributes.get("role") in _NAVIGATION_ROLES

    def _leave(self, tag: str) -> None:
        self._preformatted -= tag == "pre"
        self._separate(tag)

    def _separate(self, tag: str) -> None:
        """Separate the next text from the last one as an element with this tag does."""
        if tag in _PARAGRAPHS:
            self._break = "\n\n"
        elif tag in _LINES and self._break != "\n\n":
            self._break = "\n"
        elif tag in _CELLS and "\n" not in self._break:
            self._break = "\t"

    def _add(self, text: str) -> None:
        words = text if self._preformatted else " ".join(text.split())
        is_collapsed = words is not text
        if is_collapsed and text[:1].isspace() and not self._break:
            self._break = " "
        if words:
            self._parts += [self._break if self._parts else "", words]
            self._break = " " if is_collapsed and text[-1:].isspace() else ""

    def text(self) -> str:
        """Return the text, ended by a line end."""
        text = "".join(self._parts).strip("\n")
        return text + "\n" if text.strip() else ""
