"""Extract the text of XML files as a stream; entities that expand to too much are refused."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator
from html.entities import html5
from typing import Any
from xml.parsers import expat

from .documents import MAX_CHARACTERS, Document
from .inputs import Input
from .text import text_blocks

_DECLARED = re.compile(rb"<\?xml[^>]{0,200}encoding\s*=\s*[\"']([\w.:-]{1,40})")
# Maximum bytes of a tag or a comment, which is in memory.
_MAX_TOKEN = 2**26
# From this version on, expat refuses entities that expand to more than 100 times the file, beyond
# 8 MB. With an older one, only those are read that have at most so many characters.
_LIMITED_SINCE, _MAX_ENTITY = (2, 4, 1), 64
_LIMIT_REACHED = 43  # XML_ERROR_AMPLIFICATION_LIMIT_BREACH
_EXPAND = "replace entities by their text, as xmllint --noent does"
# With it, an undefined entity is an error without a name; what it promises is always so here: no
# external declaration is read.
_STANDALONE = re.compile(r"(<\?xml[^<>]{0,200}?)\sstandalone\s*=\s*[\"']yes[\"']")
# Names of elements that are listed in a message.
_MAX_NAMES = 20

Start = Callable[[str, dict[str, str]], object]


def declared_encoding(source: Input) -> str | None:
    """Return the encoding that an XML file declares in its first line, if it does."""
    declared = _DECLARED.search(source.stream.peek(1024)[:1024])
    return declared[1].decode("ascii") if declared else None


def xml_blocks(source: Input) -> Iterator[str]:
    """Yield the text of an XML file in blocks, decoded as it declares."""
    return text_blocks(source, declared_encoding(source))


def parse_xml(
    source: Input,
    blocks: Iterable[str],
    start: Start,
    end: Callable[[str], object],
    data: Callable[[str], object],
) -> Iterator[None]:
    """Parse XML block by block; yield after each block.

    No other file is read: the entities that an external DTD may declare are those of HTML.

    Args:
        source: the input, for messages.
        blocks: its text.
        start: called with the name, without its namespace, and attributes of each element.
        end: called with the name at the end of each element.
        data: called with text.

    Raises:
        Unreadable: if it is not XML, has entities that expand to too much, or uses one that is in
            another file, or that neither it nor HTML defines.
    """
    parser = _parser(source, start, end, data)
    size = 0
    for block in _with_end(blocks):
        content = block.encode()
        try:
            parser.Parse(content, not content)
        except expat.ExpatError as error:
            reason = expat.errors.messages.get(error.code, "")
            if error.code == _LIMIT_REACHED:
                reason = f"its entities expand to too much: {_EXPAND}"
            raise source.error("broken XML", f"not XML: {reason}", f":{error.lineno}") from error
        size += len(content)
        if size - parser.CurrentByteIndex > _MAX_TOKEN:
            raise source.error(
                "too large",
                f"a tag or a comment has more than {_MAX_TOKEN:,} bytes",
                f":{parser.CurrentLineNumber}",
            )
        yield


def _parser(
    source: Input,
    start: Start,
    end: Callable[[str], object],
    data: Callable[[str], object],
) -> expat.XMLParserType:
    """Return a parser that calls the functions: see `parse_xml`."""
    parser = expat.ParserCreate("utf-8", " ")
    parser.buffer_text = True
    parser.StartElementHandler = lambda name, attributes: start(_local(name), attributes)
    parser.EndElementHandler = lambda name: end(_local(name))
    parser.CharacterDataHandler = data
    if expat.version_info < _LIMITED_SINCE:
        parser.EntityDeclHandler = lambda *about: _check_entity(source, parser, *about)
    # Also without a DTD, a reference to an entity that is not declared calls the handler.
    parser.UseForeignDTD(True)
    # Declarations that follow an external one, which is taken as empty, hold only so.
    parser.SetParamEntityParsing(expat.XML_PARAM_ENTITY_PARSING_ALWAYS)
    parser.ExternalEntityRefHandler = lambda *about: _skip_external(source, parser, *about)
    parser.SkippedEntityHandler = lambda name, is_parameter: (
        None if is_parameter else data(_character(source, parser, name))
    )
    return parser


def _local(name: str) -> str:
    return name.rpartition(" ")[2]


def _with_end(blocks: Iterable[str]) -> Iterator[str]:
    """Yield the blocks, the first one not `standalone`, and an empty one."""
    blocks = iter(blocks)
    yield _STANDALONE.sub(r"\1", next(blocks, ""), count=1)
    yield from blocks
    yield ""


def _character(source: Input, parser: expat.XMLParserType, name: str) -> str:
    """Return the characters of an entity that a file does not declare, such as `eacute`.

    Raises:
        Unreadable: if HTML has none of this name.
    """
    if f"{name};" not in html5:
        raise source.error(
            "broken XML",
            f"the entity {name} is declared neither in the file nor by HTML: declare it, or "
            "replace it by its text",
            f":{parser.CurrentLineNumber}",
        )
    return html5[f"{name};"]


def _check_entity(
    source: Input,
    parser: expat.XMLParserType,
    name: str,
    is_parameter: bool,
    value: str | None,
    *_: Any,
) -> None:
    """Refuse all entities but short ones without others in them, such as names of characters."""
    if is_parameter or value is None or len(value) > _MAX_ENTITY or "&" in value:
        raise source.error(
            "broken XML",
            f"declares the entity {name}, which is not a short text: {_EXPAND}",
            f":{parser.CurrentLineNumber}",
        )


def _skip_external(
    source: Input, parser: expat.XMLParserType, context: str | None, _base: object, *ids: str | None
) -> int:
    """Take an external DTD, or a part of one, as empty.

    Raises:
        Unreadable: if what is in another file is not declarations, but text.
    """
    if context is not None:
        name = context.rpartition("\f")[2].rpartition("=")[2]
        raise source.error(
            "of several files",
            f"the text of the entity {name} is in another file ({ids[0] or ids[1]}), which is not "
            f"read: {_EXPAND}",
            f":{parser.CurrentLineNumber}",
        )
    # Without it, expat ignores the declarations that follow.
    parser.ExternalEntityParserCreate(context).Parse(b"", True)
    return 1


def read_xml(source: Input) -> Iterator[Document]:
    """Yield the text of an XML file as one document, or that of each element `text_field`.

    Articles of a MediaWiki dump are documents by themselves.
    """
    collector = _Collector(source)
    blocks = parse_xml(source, xml_blocks(source), collector.start, collector.end, collector.data)
    for _ in blocks:
        yield from collector.take(MAX_CHARACTERS)
    yield from collector.take(0)
    collector.check_found()


class _Collector:
    """Collects the text of elements, as documents."""

    def __init__(self, source: Input) -> None:
        self._source = source
        self._field = source.options.text_field
        self._depth = 0
        self._field_depth = 0  # depth of the element that is a document; 0 outside
        self._names: dict[str, None] = {}
        self._parts: list[str] = []
        self._size = 0
        self._follows_end = False
        self._is_empty = False  # whether nothing follows the start of an element so far
        self._gap = ""  # what an element without content is between two words
        self._last = ""  # the last character
        self._continues = False
        self._is_found = False
        self._documents: list[Document] = []

    def start(self, name: str, attributes: dict[str, str]) -> None:
        """Begin an element."""
        self._depth += 1
        self._is_empty = attributes.get("break") != "no"  # of TEI: within a word
        self._gap = ""
        if self._depth == 1 and name == "mediawiki" and self._field is None:
            self._field = "text"
        if len(self._names) < _MAX_NAMES:
            self._names[name] = None
        if self._field == name and not self._field_depth:
            self._field_depth, self._is_found = self._depth, True
        elif self._follows_end:
            self._add("\n")
        self._follows_end = False

    def end(self, name: str) -> None:
        """End an element."""
        if self._is_empty:
            self._gap = "\n" if name.lower() in _BREAKS else " "
            self._is_empty = False
        if self._depth == self._field_depth:
            self._field_depth = 0
            self._finish()
        self._depth -= 1
        self._follows_end = True

    def data(self, text: str) -> None:
        """Add text; white space between elements is one line end or space."""
        self._follows_end = self._is_empty = False
        if not text.strip(" \t\n"):  # a no-break space is text
            text = "\n" if "\n" in text else " "
        if self._gap and text[0].isalnum() and (self._last.isalnum() or self._last in _ENDS):
            text = self._gap + text
        self._gap = ""
        self._add(text)

    def _add(self, text: str) -> None:
        if self._field is None or self._field_depth:
            self._parts.append(text)
            self._size += len(text)
            self._last = text[-1]

    def _finish(self, *, is_complete: bool = True) -> None:
        text = _BLANK_LINES.sub("\n\n", "".join(self._parts))
        if is_complete and not self._continues:
            text = text.strip("\n")
        self._documents.append(self._source.document(text, continues=self._continues))
        self._parts, self._size = [], 0
        self._last = "" if is_complete else self._last
        self._continues = not is_complete

    def take(self, limit: int) -> Iterator[Document]:
        """Yield the finished documents, and a begun one of more than `limit` characters."""
        if self._size > limit:
            self._finish(is_complete=not limit)
        yield from self._documents
        self._documents.clear()

    def check_found(self) -> None:
        """Check that the element `text_field` was found.

        Raises:
            Unreadable: if not; the message lists the names of elements.
        """
        if self._field is not None and not self._is_found:
            raise self._source.error(
                "without the field",
                f"no element {self._field!r} among {', '.join(self._names)}; set text_field",
            )


# Elements that break a line, and characters after which a word follows only after a space.
_BREAKS = {"br", "lb", "pb", "cb", "cr", "newline", "hardbreak"}
_ENDS = tuple(".,;:!?)”’»")
_BLANK_LINES = re.compile(r"\n[ \t]*\n\s*\n")
