"""What the readers yield and report: documents, how to read them, what was read and skipped."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from typing import Any, get_args

from ..config_checks import is_encoding
from ..config_keys import Normalization
from ..errors import AGI2Error
from ..utils import human_bytes, plural
from .speakers import speaker_pattern
from .text_files import Skipped

SOURCE_KEYS = (
    "sources",
    "val_sources",
    "conversations",
    "val_conversations",
    "preferences",
    "val_preferences",
)
"""The keys of what is read, in the order of the documents of a corpus."""
MAX_CHARACTERS = 2**23
"""Maximum number of characters of a `Document`; a longer document comes in pieces."""


@dataclass(frozen=True, slots=True)
class Document:
    """A document, or one piece of a large document."""

    text: str
    """Text of at most `MAX_CHARACTERS` characters; never only white space, unless `continues`."""
    source: str
    """Where the text is from, for messages: `a.txt`, `a.jsonl:12`, `a.zip: b.csv:3`."""
    continues: bool = False
    """Whether the text continues that of the previous `Document`: no end-of-text token between.

    The texts of a document's pieces, joined, are the text of the document.
    """


@dataclass(frozen=True)
class ReadOptions:
    """How sources are read: the keys of the configuration that change the text of a corpus."""

    text_field: str | None = None
    """Field or column that contains the text; by default `text`, or the only candidate."""
    encoding: str | None = None
    """Encoding of text files; by default UTF-8, what the file declares, or a guess."""
    normalize: Normalization = "lines"
    """`lines`: line ends become `\\n`; `nfc`, `nfkc`: also Unicode; `none`: nothing."""
    clean: bool = True
    """Whether to remove licences, navigation, page numbers and hyphenation."""
    max_broken_lines: int = 100
    """Broken lines of a file that are skipped; more are an error."""
    preprocess: str | None = None
    """`module:function` that filters or maps each document; see `preprocess`."""
    speakers: str | None = None
    """Who speaks in conversations that are plain text; see `speakers.speaker_pattern`."""
    are_conversations: bool = False
    """Whether the documents are conversations, each as its canonical text; not a key."""
    are_pairs: bool = False
    """Whether they are pairs of conversations, too; not a key."""

    def __post_init__(self) -> None:
        if self.normalize not in get_args(Normalization):
            raise AGI2Error(f"normalize must be none, lines, nfc or nfkc, not {self.normalize!r}")
        if self.encoding and not is_encoding(self.encoding):
            raise AGI2Error(f"encoding: there is no encoding {self.encoding!r}")
        speaker_pattern(self.speakers)

    @classmethod
    def from_config(cls, config: Mapping[str, Any]) -> ReadOptions:
        """Return the options that a configuration sets."""
        return cls(**{name: config[name] for name in cls.keys() & config.keys()})

    @property
    def kind(self) -> str:
        """What the documents are, for messages."""
        if self.are_pairs:
            return "pair"
        return "conversation" if self.are_conversations else "document"

    @classmethod
    def keys(cls) -> set[str]:
        """Return the names of the keys of the configuration."""
        return {each.name for each in fields(cls)} - {"are_conversations", "are_pairs"}


@dataclass
class SourceReport:
    """What was read of a source; counts grow while it is read.

    When the source has been read, `bytes_read + bytes_skipped` is the size of all files there.
    """

    name: str
    files: int = 0
    documents: int = 0
    characters: int = 0
    bytes_read: int = 0
    """Bytes of the files on disk, before decompression; grows while a file is read."""
    skipped: Skipped = field(default_factory=Skipped)
    """Files (in bytes), members of archives, lines and rows that were not read, by reason."""
    removed: Skipped = field(default_factory=lambda: Skipped("{reason} in {places}"))
    """Characters removed from documents, by kind: licences, navigation, page numbers."""
    preprocessed: Skipped = field(default_factory=Skipped)
    """Documents that the function of `preprocess` dropped, changed or split."""
    dropped: int = 0
    """Number of documents that it dropped."""
    notes: Skipped = field(default_factory=lambda: Skipped("{files} {reason}"))
    """What was decided for files, such as a guessed encoding or the column that was taken."""
    first_problem: str = ""
    """Why the first file that was skipped cannot be read."""
    kind: str = "document"
    """What its documents are, for messages: `document`, `conversation` or `pair`."""

    def amounts(self) -> str:
        """Return how much was read, for messages; a built-in source has no files."""
        amounts = [plural(self.documents, self.kind), plural(self.characters, "character")]
        if self.files:
            size = f"{human_bytes(self.bytes_read)} on disk"
            amounts = [plural(self.files, "file"), *amounts, size]
        return ", ".join(amounts)

    @property
    def bytes_skipped(self) -> int:
        """Bytes of the files on disk that were not read."""
        return self.skipped.bytes


@dataclass
class ReadReport:
    """What was read of each source, in order."""

    sources: list[SourceReport] = field(default_factory=list)

    @property
    def bytes_read(self) -> int:
        """Bytes of the files on disk that were read so far."""
        return sum(source.bytes_read for source in self.sources)
