"""Extract the text of documents that are zip archives of XML: docx, odt and EPUB."""

from __future__ import annotations

import posixpath
import re
import zipfile
from abc import ABC, abstractmethod
from collections.abc import Iterator
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
    """Yield the paragraphs of a Word document as one document, then its notes; no deleted text."""
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
    """Collects the text of paragraphs from the elements of a document."""

    paragraphs: tuple[str, ...]
    """Elements after which a line ends."""
    skipped: tuple[str, ...]
    """Elements whose text is none of the document's."""

    def __init__(self) -> None:
        self.parts: list[str] = []
        self._skipped = 0

    def start(self, name: str, attributes: dict[str, str]) -> None:
        """Begin an element."""
        self._skipped += name in self.skipped
        if not self._skipped:
            self.parts.append(self.text_of(name, attributes))

    def end(self, name: str) -> None:
        """End an element."""
        self._skipped -= name in self.skipped
        if name in self.paragraphs and not self._skipped:
            self.parts.append("\n")

    def data(self, text: str) -> None:
        """Add text."""
        if not self._skipped and self.is_text():
            self.parts.append(text)

    @abstractmethod
    def text_of(self, name: str, attributes: dict[str, str]) -> str:
        """Return the text that an element stands for, such as a tab."""

    @abstractmethod
    def is_text(self) -> bool:
        """Return whether text here is the document's, not white space between elements."""


class _Word(_Paragraphs):
    paragraphs = ("p",)
    # A fallback repeats a text box for older programs.
    skipped = ("Fallback", "rPr", "pPr", "instrText", "delText")

    def __init__(self) -> None:
        super().__init__()
        self._is_text = False

    def text_of(self, name: str, attributes: dict[str, str]) -> str:
        self._is_text = name == "t"
        return {"tab": "\t", "br": "\n", "cr": "\n", "noBreakHyphen": "-"}.get(name, "")

    def end(self, name: str) -> None:
        super().end(name)
        self._is_text = False

    def is_text(self) -> bool:
        return self._is_text


class _OpenDocument(_Paragraphs):
    paragraphs = ("p", "h")
    skipped = ("tracked-changes", "annotation", "note-citation")

    def __init__(self) -> None:
        super().__init__()
        self._depth = 0

    def text_of(self, name: str, attributes: dict[str, str]) -> str:
        self._depth += name in self.paragraphs
        if name == "s":
            count = next((value for key, value in attributes.items() if key.endswith(" c")), "1")
            return " " * min(int(count), 1000) if count.isascii() and count.isdigit() else " "
        return {"tab": "\t", "line-break": "\n"}.get(name, "")

    def end(self, name: str) -> None:
        super().end(name)
        self._depth -= name in self.paragraphs and not self._skipped

    def is_text(self) -> bool:
        return self._depth > 0


def _paragraphs(member: Input, collector: _Paragraphs) -> Iterator[str]:
    """Yield the text of an XML member in blocks."""
    blocks = xml_blocks(member)
    for _ in parse_xml(member, blocks, collector.start, collector.end, collector.data):
        yield "".join(collector.parts)
        collector.parts.clear()


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
