"""Extract the text of documents that are zip archives of XML: docx, odt and EPUB."""

from __future__ import annotations

import posixpath
import re
import zipfile
from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from urllib.parse import unquote

from .archives import open_zip, zip_member
from .compression import Limits
from .documents import Document
from .html import MAX_PAGE, html_text
from .inputs import Input
from .text import read_whole_text
from .text_files import Unreadable
from .xml import declared_encoding, parse_xml, xml_blocks

_ENCRYPTED = "encrypted: save it without a password"
_FONT_ALGORITHMS = re.compile(r"http://(www\.idpf\.org/2008/embedding|ns\.adobe\.com/pdf/enc#RC)")


class _Package:
    """The members of a zip archive, by name.

    Args:
        source: the archive.
        archive: the opened archive.
    """

    def __init__(self, source: Input, archive: zipfile.ZipFile, size: int) -> None:
        self.source = source
        self._archive = archive
        self._limits = Limits(source, lambda: size)
        self.names = archive.namelist()

    def open(self, name: str) -> Input:
        """Return an input of a member.

        Raises:
            Unreadable: if there is none with this name, or it is damaged.
        """
        try:
            info = self._archive.getinfo(name)
        except KeyError as error:
            raise self.source.error("damaged", f"damaged: {name} is missing in it") from error
        return zip_member(self.source, self._archive, info, self._limits)

    def elements(self, name: str) -> Iterator[tuple[str, dict[str, str]]]:
        """Yield the name and the attributes of each element of an XML member."""
        found: list[tuple[str, dict[str, str]]] = []
        with (member := self.open(name)).stream:
            for _ in parse_xml(
                member,
                xml_blocks(member),
                lambda *element: found.append(element),
                lambda _: None,
                lambda _: None,
            ):
                yield from found
                found.clear()


def _packages(source: Input) -> Iterator[_Package]:
    """Yield the opened archive, once."""
    file = source.seekable()
    size = file.seek(0, 2)
    with open_zip(source, file) as archive:
        yield _Package(source, archive, size)


def read_docx(source: Input) -> Iterator[Document]:
    """Yield the paragraphs of a Word document as one document, then its notes."""
    for package in _packages(source):
        if "EncryptedPackage" in package.names:
            raise source.error("encrypted", _ENCRYPTED)
        main = [name for name in package.names if re.fullmatch(r"word/document\d*\.xml", name)]
        notes = [f"word/{kind}.xml" for kind in ("footnotes", "endnotes")]
        continues = False
        for name in (main or ["word/document.xml"])[:1] + [n for n in notes if n in package.names]:
            with (member := package.open(name)).stream:
                for text in _paragraphs(member, _Word()):
                    yield source.document(text, continues=continues)
                    continues = True


def read_odt(source: Input) -> Iterator[Document]:
    """Yield the paragraphs of an OpenDocument text as one document."""
    for package in _packages(source):
        manifest = "META-INF/manifest.xml"
        if manifest in package.names and any(
            name == "encryption-data" for name, _ in package.elements(manifest)
        ):
            raise source.error("encrypted", _ENCRYPTED)
        continues = False
        with (member := package.open("content.xml")).stream:
            for text in _paragraphs(member, _OpenDocument()):
                yield source.document(text, continues=continues)
                continues = True


class _Paragraphs(ABC):
    """Collects the text of paragraphs from the elements of a document.

    Paragraphs in another one, such as those of a note or a text box, come after it.
    """

    paragraphs: tuple[str, ...]
    """Elements after which a line ends."""
    skipped: tuple[str, ...]
    """Elements whose text is none of the document's."""

    def __init__(self) -> None:
        self.parts: list[str] = []
        """The text so far."""
        self.removed: Counter[str] = Counter()
        """Characters that are left out, by kind."""
        self._skipped = 0
        self._open: list[_Paragraph] = []
        self._inner: list[list[str]] = []  # the text of each paragraph in the outermost one

    def start(self, name: str, attributes: dict[str, str]) -> None:
        """Begin an element."""
        self._skipped += name in self.skipped
        if self._skipped:
            return
        if name in self.paragraphs:
            # The outermost is added at once: a document may be one paragraph.
            parts: list[str] = [] if self._open else self.parts
            if self._open:
                self._inner.append(parts)
            self._open.append(_Paragraph(parts))
        self._add(self.text_of(name, attributes))

    def end(self, name: str) -> None:
        """End an element."""
        self._skipped -= name in self.skipped
        if name in self.paragraphs and not self._skipped:
            self._add("\n")
            self._open.pop()
            if not self._open:
                self.parts += [part for parts in self._inner for part in parts]
                self._inner.clear()

    @abstractmethod
    def data(self, text: str) -> None:
        """Add text, unless it is white space between elements, or none of the document's."""

    def _add(self, text: str) -> None:
        (self._open[-1].parts if self._open else self.parts).append(text)

    @abstractmethod
    def text_of(self, name: str, attributes: dict[str, str]) -> str:
        """Return the text that an element stands for, such as a tab."""


@dataclass
class _Paragraph:
    """A paragraph that is not closed."""

    parts: list[str]
    is_begun: bool = False
    """Whether it has text."""
    has_space: bool = False
    """Whether white space comes before the next text, if there is any."""


class _Word(_Paragraphs):
    paragraphs = ("p",)
    # A fallback repeats a text box for older programs.
    skipped = ("Fallback", "pPr", "rPrChange", "instrText", "moveFrom")

    def __init__(self) -> None:
        super().__init__()
        self._element = ""
        self._runs: list[bool] = []  # whether each open run is hidden

    def text_of(self, name: str, attributes: dict[str, str]) -> str:
        self._element = name
        if name == "r":
            self._runs.append(False)
        elif name == "vanish" and self._runs:
            self._runs[-1] = _attribute(attributes, "val") not in ("0", "false", "off")
        if name == "sym":
            return self._symbol(_attribute(attributes, "char"))
        is_hidden = any(self._runs)
        text = {"tab": "\t", "br": "\n", "cr": "\n", "noBreakHyphen": "-"}.get(name, "")
        return "" if is_hidden else text

    def _symbol(self, code: str) -> str:
        """Return the character of a symbol; an empty text if it depends on the font."""
        number = int(code, 16) if _HEX.fullmatch(code) else 0
        is_unicode = 0x20 <= number < 0xD800
        self.removed["symbols of fonts such as Wingdings"] += not is_unicode
        return chr(number) if is_unicode else ""

    def end(self, name: str) -> None:
        super().end(name)
        self._element = ""
        if name == "r" and self._runs and not self._skipped:
            self._runs.pop()

    def data(self, text: str) -> None:
        if self._skipped or self._element not in ("t", "delText"):
            return
        if self._element == "delText" or any(self._runs):
            self.removed["hidden or deleted text"] += len(text)
        else:
            self._add(text)


_HEX = re.compile("[0-9a-fA-F]{4}")


def _attribute(attributes: dict[str, str], name: str) -> str:
    """Return the value of an attribute, whatever its namespace, or no text if it is missing."""
    found = (value for key, value in attributes.items() if key.rpartition(" ")[2] == name)
    return next(found, "")


class _OpenDocument(_Paragraphs):
    paragraphs = ("p", "h")
    skipped = ("tracked-changes", "annotation", "note-citation")

    def __init__(self) -> None:
        super().__init__()
        self._elements: list[str] = []

    def start(self, name: str, attributes: dict[str, str]) -> None:
        self._elements.append(name)
        super().start(name, attributes)

    def end(self, name: str) -> None:
        super().end(name)
        self._elements.pop()

    def data(self, text: str) -> None:
        """Add text; white space is one space, or none at the ends of a paragraph."""
        if self._skipped or not self._open or self._elements[-1] in _OF_PARAGRAPHS:
            return
        paragraph = self._open[-1]
        text = _WHITE_SPACE.sub(" ", text)
        paragraph.has_space |= text.startswith(" ") and paragraph.is_begun
        if words := text.strip(" "):
            self._add(self._before(paragraph) + words)
            paragraph.has_space = text.endswith(" ")

    @staticmethod
    def _before(paragraph: _Paragraph) -> str:
        """Return the white space before the next text of a paragraph."""
        space = " " * paragraph.has_space
        paragraph.is_begun, paragraph.has_space = True, False
        return space

    def text_of(self, name: str, attributes: dict[str, str]) -> str:
        text = {"tab": "\t", "line-break": "\n"}.get(name, "")
        if name == "s":
            count = _attribute(attributes, "c")
            text = " " * min(int(count), 1000) if count.isascii() and count.isdigit() else " "
        return self._before(self._open[-1]) + text if text and self._open else text


# Elements in a paragraph in which are other paragraphs, and white space that is no text.
_OF_PARAGRAPHS = {"note", "note-body", "frame", "text-box", "custom-shape", "g", "section", "list"}
_OF_PARAGRAPHS |= {"list-item", "list-header", "table", "table-row", "table-cell"}
_WHITE_SPACE = re.compile(r"[ \t\r\n]+")


def _paragraphs(member: Input, collector: _Paragraphs) -> Iterator[str]:
    """Yield the text of an XML member in blocks."""
    blocks = xml_blocks(member)
    for _ in parse_xml(member, blocks, collector.start, collector.end, collector.data):
        yield "".join(collector.parts)
        collector.parts.clear()
    for what, count in collector.removed.items():
        member.removed(what, count)


def read_epub(source: Input) -> Iterator[Document]:
    """Yield the chapters of an EPUB, in reading order, as one document."""
    for package in _packages(source):
        names, navigation = _spine(package)
        _check_not_encrypted(package, names)
        continues = False
        for name in names:
            if name in navigation and source.options.clean:
                continue
            try:
                text = _chapter(package, name)
            except Unreadable as problem:
                if problem.depth is not None:
                    raise
                source.report.skipped.add(f"chapters {problem.reason}", str(problem))
                continue
            if not text:
                source.report.skipped.add("chapters without text", f"{source.name}: {name}")
                continue
            yield source.document("\n" * continues + text, continues=continues)
            continues = True


def _chapter(package: _Package, name: str) -> str:
    with (member := package.open(name)).stream:
        page = read_whole_text(member, declared_encoding(member), MAX_PAGE)
        return html_text(member, page, is_book=True)


def _spine(package: _Package) -> tuple[list[str], set[str]]:
    """Return the names of the chapters in reading order, and those that are tables of contents."""
    container = package.elements("META-INF/container.xml")
    root = next((each["full-path"] for _, each in container if "full-path" in each), None)
    if root is None:
        raise package.source.error("damaged", "damaged: it does not name its contents")
    items: dict[str, str] = {}
    navigation, chapters = set(), []
    for name, each in package.elements(root):
        if name == "item" and "id" in each and "href" in each:
            path = posixpath.join(posixpath.dirname(root), unquote(each["href"]))
            items[each["id"]] = posixpath.normpath(path)
            if "nav" in each.get("properties", "").split():
                navigation.add(items[each["id"]])
        elif name == "itemref" and each.get("idref") in items:
            chapters.append(items[each["idref"]])
    return list(dict.fromkeys(chapters)), navigation


def _check_not_encrypted(package: _Package, chapters: list[str]) -> None:
    """Refuse a book with digital rights management; fonts may be encrypted."""
    name = "META-INF/encryption.xml"
    if name not in package.names:
        return
    algorithm, names = "", set(chapters)
    for _, attributes in package.elements(name):
        algorithm = attributes.get("Algorithm", algorithm)
        if attributes.get("URI") in names and not _FONT_ALGORITHMS.match(algorithm):
            raise package.source.error("encrypted", "encrypted (digital rights management)")
