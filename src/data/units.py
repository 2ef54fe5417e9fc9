"""The units of a corpus that is prepared in parts: consecutive files that one process reads."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from ..console import recorded_log
from ..utils import log, read_json_object, sync_file, write_text
from .corpus_options import CorpusOptions
from .documents import ReadOptions, ReadReport, SourceReport
from .preprocess import check_any_left
from .readers import end_source, read_files
from .scan import Scan, Scanner, load_scan, save_scan
from .sources import Source, SourceFile, file_size
from .text_files import Skipped
from .token_cache import FileHashes, Files, identify_file

TEXT, SCAN, SKETCHES = "text.bin", "scan.npz", "sketches.bin"
_UNIT = "unit.json"
# A unit has at least so many bytes, and at least this share of a corpus.
_MIN_BYTES, _MAX_UNITS = 2**25, 1024
_COUNTS = ("files", "documents", "characters", "bytes_read", "dropped")
_MAX_JSON = 2**32
_TALLIES = ("skipped", "removed", "preprocessed", "notes")


@dataclass(frozen=True)
class Unit:
    """Files of `sources` or of `val_sources`."""

    group: int
    """Index in `CorpusOptions.groups`."""
    files: list[tuple[int, list[SourceFile]]]
    """The index of each source, and the files of it."""


def divide(groups: Sequence[Sequence[Source]]) -> list[Unit]:
    """Divide the files of groups of sources into units, in order."""
    files = [path for sources in groups for source in sources for path in source.files]
    enough = max(_MIN_BYTES, sum(map(file_size, files)) // _MAX_UNITS)
    units: list[Unit] = []
    for group, sources in enumerate(groups):
        size = enough
        for index, source in enumerate(sources):
            for path in source.files:
                if size >= enough:
                    units.append(Unit(group, []))
                    size = 0
                own = units[-1].files
                if not own or own[-1][0] != index:
                    own.append((index, []))
                own[-1][1].append(path)
                size += file_size(path)
    return units


def read_unit(
    unit: Unit,
    sources: Sequence[Source],
    options: ReadOptions,
    hashes: FileHashes,
    folder: Path,
    hashes_plain: bool,
) -> None:
    """Read the documents of a unit into a folder.

    Args:
        unit: the unit.
        sources: the sources of its group.
        options: how to read them.
        hashes: hashes of files.
        folder: the folder: `load_unit` and `load_unit_scan` read it.
        hashes_plain: as for `Scanner`.

    Raises:
        AGI2Error: if a file that was named cannot be read, or one has changed.
    """
    stamps: dict[Path, list[int]] = {}
    identity = [identify_file(path, hashes, stamps) for _, paths in unit.files for path in paths]
    read = []
    with open(folder / TEXT, "wb") as text, open(folder / SKETCHES, "wb") as sketches:
        scanner = Scanner(text.write, sketches.write, hashes_plain)
        for index, paths in unit.files:
            source = replace(sources[index], files=paths, skipped=Skipped())
            report = SourceReport(source.name, kind=options.kind)
            with recorded_log() as lines:
                for document in read_files(source, options, report):
                    scanner.add(document.text, document.continues, options.are_conversations)
            read.append([index, lines, _to_json(report)])
        scan = scanner.finish_part()
    Files([], stamps).check_unchanged()
    for name in (TEXT, SKETCHES):
        sync_file(folder / name)
    save_scan(scan, folder / SCAN)
    known = [[str(path), stamp, hashes.is_known(path)] for path, stamp in stamps.items()]
    content = {"identity": identity, "stamps": known, "sources": read}
    write_text(folder / _UNIT, json.dumps(content))


def _to_json(report: SourceReport) -> dict[str, Any]:
    counts = {name: getattr(report, name) for name in (*_COUNTS, "first_problem")}
    return counts | {name: getattr(report, name).to_json() for name in _TALLIES}


def load_unit(folder: Path) -> dict[str, Any]:
    """Return what `read_unit` has noted: identities and stamps of files, and what was read."""
    return read_json_object(folder / _UNIT, _MAX_JSON)


def load_unit_scan(folder: Path) -> Scan:
    """Return the scan of a unit, for `join_scans`."""
    return load_scan(folder / SCAN)


def log_reading(
    groups: Sequence[Sequence[Source]],
    units: Sequence[Unit],
    read: Sequence[dict[str, Any]],
    options: CorpusOptions,
) -> list[list[int]]:
    """Log what was read of all sources, as if one process had read them.

    Args:
        groups: the groups of sources.
        units: their units.
        read: what `load_unit` returns for each.
        options: how they were read.

    Returns:
        The number of documents of each source, by groups.

    Raises:
        AGI2Error: if no file of a source can be read, or no document is left.
    """
    reports = []
    for group, sources in enumerate(groups):
        own = [each for unit, each in zip(units, read, strict=True) if unit.group == group]
        reports.append(ReadReport())
        for index, source in enumerate(sources):
            report = SourceReport(source.name, kind=options.reading_of(group).kind)
            report.skipped.merge(source.skipped)
            reports[-1].sources.append(report)
            for number, lines, counts in (each for content in own for each in content["sources"]):
                if number == index:
                    for level, line in lines:
                        log.log(level, "%s", line)
                    _add(report, counts)
            end_source(source, report, len(sources))
        function = options.reading.preprocess
        if function is not None and sources:
            check_any_left(function, reports[-1])
    return [[source.documents for source in each.sources] for each in reports]


def _add(report: SourceReport, counts: dict[str, Any]) -> None:
    for name in _COUNTS:
        setattr(report, name, getattr(report, name) + counts[name])
    report.first_problem = report.first_problem or counts["first_problem"]
    for name in _TALLIES:
        getattr(report, name).merge(Skipped.from_json(counts[name]))


def identities(units: Sequence[Unit], read: Sequence[dict[str, Any]]) -> dict[str, list[str]]:
    """Return what identifies each file of the units."""
    known: dict[str, list[str]] = {}
    for unit, content in zip(units, read, strict=True):
        paths = (str(path) for _, own in unit.files for path in own)
        known |= zip(paths, content["identity"], strict=True)
    return known
