"""Extract the text of web pages, without scripts and navigation."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator
from html import escape
from typing import Any

from .documents import Document
from .formats import suffix_of
from .inputs import Input
from .text import read_whole_text
from .text_files import Unreadable
from .xml import parse_xml

MAX_PAGE = 2**24
"""Maximum characters of a web page, whose tree takes some 20 times as much memory."""
# Maximum depth of elements: the parser takes quadratic time in it.
_MAX_DEPTH = 4000

_NEVER_TEXT = {"script", "style", "template", "head", "iframe", "object", "noscript", "svg"}
_NEVER_TEXT |= {"canvas", "noframes", "datalist"}
_NAVIGATION = {"nav", "aside", "footer", "menu", "dialog", "button", "select"}
# In a book, asides are notes and text boxes.
_NAVIGATION_OF_BOOKS = {"nav", "button", "select"}
# Elements in which a footer names the author of what is quoted.
_QUOTES = {"blockquote", "figure"}
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
_LISTS = {"ul", "ol", "dl", "menu", "dir", "table"}
_ITEMS = {"li", "dt", "dd"}
# Comments, scripts and styles, which a parser takes as a unit, with what is in the last two.
_RAW = re.compile(
    r"<!--(?:-?>|.*?(?:--!?>|\Z))|<(script|style)\b[^<>]*>(.*?)(?:</\1\s*>|\Z)",
    re.IGNORECASE | re.DOTALL,
)
_COMMENT_END = re.compile("--!?>")
# What begins a page that is XML, and an element without content in one, such as `<title/>`, which
# HTML does not have, except for elements that never have content.
_XML = re.compile(
    r"\s*(?:<\?xml\b|<!doctype\b[^<>\[]*\[|(?:<![^<>]*>\s*)*<html\b[^<>]*\sxmlns\s*=)",
    re.IGNORECASE,
)
_VOID = set(_WORDS.findall("area base br col embed hr img input link meta param source track wbr"))
_EMPTY = re.compile(
    r"<([a-z][\w:.-]*+)((?:[^<>\"'/]|/(?!>)|\"[^<\"]*\"|'[^<']*')*+)/>", re.IGNORECASE
)
_CHARSET = re.compile(rb"<meta[^>]{0,200}charset\s*=\s*[\"']?([\w.:-]{1,40})", re.IGNORECASE)


def read_html(source: Input) -> Iterator[Document]:
    """Yield a web page as one document, without scripts and, if `clean`, navigation."""
    declared = _CHARSET.search(source.stream.peek(4096)[:4096])
    name = declared[1].decode("ascii") if declared else None
    yield source.document(html_text(source, read_whole_text(source, name, MAX_PAGE)))


def _html_of_xml(source: Input, page: str) -> str:
    """Return a page that is XML in the syntax of HTML: `<title></title>` for `<title/>`.

    One that is broken XML is returned as it is, but for its elements without content.
    """
    parts: list[str] = []

    def start(name: str, attributes: dict[str, str]) -> None:
        pairs = (f' {key.rpartition(" ")[2]}="{escape(each)}"' for key, each in attributes.items())
        parts.append(f"<{name}{''.join(pairs)}>")

    def end(name: str) -> None:
        if name.lower() not in _VOID:
            parts.append(f"</{name}>")

    try:
        for _ in parse_xml(
            source, [page], start, end, lambda text: parts.append(escape(text, False))
        ):
            pass
    except Unreadable as problem:
        if problem.reason != "broken XML":
            raise
        return _EMPTY.sub(_with_end, page)
    return "".join(parts)


def _with_end(element: re.Match[str]) -> str:
    name, attributes = element.groups()
    is_void = name.lower() in _VOID
    return element[0] if is_void else f"<{name}{attributes}></{name}>"


def html_text(source: Input, page: str, *, is_book: bool = False) -> str:
    """Return the text of a web page, of a part of one, or of a chapter of a book.

    Raises:
        Unreadable: if elements are nested too deeply.
    """
    from selectolax.lexbor import LexborHTMLParser

    is_named_xml = is_book or suffix_of(source.filename) == ".xhtml"
    if is_named_xml or _XML.match(page.removeprefix("\ufeff")):
        page = _html_of_xml(source, page)
    source.removed("unclosed comments of web pages", _unclosed_comment(page))
    page = _within_limits(source, page)
    navigation = _NAVIGATION_OF_BOOKS if is_book else _NAVIGATION
    extractor = _Extractor(navigation if source.options.clean else None)
    extractor.extract(LexborHTMLParser(page.replace("\0", "\ufffd")).root)
    text = extractor.text()
    if not text.strip() and extractor.navigation:  # the page is nothing else
        extractor = _Extractor(None)
        extractor.extract(LexborHTMLParser(page.replace("\0", "\ufffd")).root)
        return extractor.text()
    source.removed("navigation of web pages", extractor.navigation)
    source.removed(_SCRIPTS, extractor.scripts)
    return text


_SCRIPTS = "scripts and styles of web pages"


def _unclosed_comment(page: str) -> int:
    """Return the number of characters of a comment that is not closed, which a parser drops."""
    last = page.rfind("<!--")
    if last < 0 or _COMMENT_END.search(page, last + 2):  # `<!-->` is a comment
        return 0
    *_, raw = _RAW.finditer(page)
    is_comment = raw[1] is None and not _COMMENT_END.search(raw[0], 2)
    return len(raw[0]) * is_comment


def _within_limits(source: Input, page: str) -> str:
    """Return a page that a parser parses in linear time.

    If there seem to be too many elements, it is returned without scripts and comments, in which
    `a<b` seems to be one, and with an end of each element that is ended as in XML and SVG.

    Raises:
        Unreadable: if elements are nested too deeply.
    """
    depth, repeated = _depth(page)
    if depth > _MAX_DEPTH or repeated > _MAX_REPEATED:
        scripts = sum(len(raw[2] or "") for raw in _RAW.finditer(page))
        page = _EMPTY.sub(_with_end, _RAW.sub("", page))
        source.removed(_SCRIPTS, scripts)
        depth, repeated = _depth(page)
    if depth > _MAX_DEPTH:
        raise source.error(
            "nested too deeply", f"elements are nested more than {_MAX_DEPTH:,} levels deep"
        )
    if repeated > _MAX_REPEATED or _attribute_pairs(page) > _MAX_PAIRS:
        what = "attributes of one element" if repeated <= _MAX_REPEATED else "unclosed elements"
        raise source.error("nested too deeply", f"too many {what}, such as no page has")
    return page


def _depth(page: str) -> tuple[int, int]:
    """Return the maximum number of elements that are open at a time, and of those repeated.

    A parser repeats the open elements of formatting, such as bold text, in each paragraph. The end
    of an element that is not open counts for nothing.
    """
    opened: Counter[str] = Counter()
    items = _OpenItems()
    depth = deepest = formats = repeated = 0
    for match in _TAG.finditer(page):
        end, name = match.groups()
        name = name.lower()
        if name in _UNCLOSED:
            repeated += formats
            if name in _ITEMS and not end:
                items.add_item(name)
            continue
        change = 1
        if end:
            change = -1 if opened[name] else 0
        opened[name] += change
        depth += change
        if name in _LISTS and change:
            items.add_list(name, change)
        if name in _FORMATS:
            formats += change
        else:
            repeated += formats
        if depth + items.depth > deepest:
            deepest = depth + items.depth
    return deepest, repeated


class _OpenItems:
    """Counts the items of lists that are in each other, without a list between them.

    An item ends the one before it only if both are of the same kind of list.
    """

    def __init__(self) -> None:
        self.depth = 0
        self._is_last_li: bool | None = None
        self._outside: list[tuple[str, int, bool | None]] = []

    def add_item(self, name: str) -> None:
        """Add the beginning of an item."""
        is_li = name == "li"
        self.depth += self._is_last_li not in (None, is_li)
        self._is_last_li = is_li

    def add_list(self, name: str, change: int) -> None:
        """Add the beginning (1) or the end (-1) of a list, or of a table."""
        if change > 0:
            self._outside.append((name, self.depth, self._is_last_li))
            self._is_last_li = None
            return
        ended = ""
        while ended != name and self._outside:
            ended, self.depth, self._is_last_li = self._outside.pop()


def _attribute_pairs(page: str) -> int:
    """Return about how many pairs of attributes of an element a parser compares."""
    long = (part.rpartition("<")[2] for part in page.split(">") if len(part) > _LONG_TAG)
    return sum(len(_QUOTED.sub(" ", tag).split()) ** 2 for tag in long)


class _Extractor:
    """Collects the text below a node.

    Args:
        navigation: the elements that are navigation, if it is to be left out.
    """

    def __init__(self, navigation: set[str] | None) -> None:
        self._navigation = navigation
        self._parts: list[str] = []
        self._break = ""  # the white space before the next text
        self._preformatted = self._quotes = 0  # depths of <pre>, and of quotations
        self.navigation = 0
        """Characters of navigation that were left out."""
        self.scripts = 0
        """Characters of scripts and styles, which are never text."""

    def extract(self, root: Any) -> None:
        """Add the text of a node and all below it, in order, without recursion."""
        node = root
        while node is not None:
            is_entered = self._enter(node)
            following = node.first_child if is_entered else None
            while following is None:
                self._leave(node.tag, is_entered)
                if node.mem_id == root.mem_id:
                    return
                following = node.next
                if following is None:
                    node, is_entered = node.parent, True
            node = following

    def _enter(self, node: Any) -> bool:
        """Add the text of a node; return whether to go on below it."""
        tag = node.tag
        if node.is_text_node:
            self._add(node.text_content or "")
        elif tag in _NEVER_TEXT:
            self.scripts += len(node.text(deep=True) or "")
        elif self._navigation is not None and self._is_navigation(node, tag, self._navigation):
            self.navigation += len(" ".join((node.text(deep=True) or "").split()))
        elif not node.is_comment_node:
            self._separate(tag)
            self._preformatted += tag == "pre"
            self._quotes += tag in _QUOTES
            return True
        return False

    def _is_navigation(self, node: Any, tag: str, navigation: set[str]) -> bool:
        attributes = node.attributes
        role = attributes.get("role") or ""
        if tag in navigation:
            is_note = tag == "aside" and role.startswith("doc-")
            return not is_note and not (tag == "footer" and self._quotes)
        return "hidden" in attributes or role in _NAVIGATION_ROLES

    def _leave(self, tag: str, is_entered: bool) -> None:
        if is_entered:
            self._preformatted -= tag == "pre"
            self._quotes -= tag in _QUOTES
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
