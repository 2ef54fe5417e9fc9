"""Make a corpus of small files in every format that is read, with the text that is in each."""

from __future__ import annotations

import bz2
import csv
import gzip
import html
import io
import json
import lzma
import tarfile
import zipfile
from collections.abc import Callable
from email.message import EmailMessage
from pathlib import Path

import pyarrow
import pyarrow.feather
import pyarrow.parquet
import zstandard

from tests.data.pdf_writer import write_pdf

PARAGRAPHS = {
    "en": [
        "The lighthouse keeper counted the ships that passed before the fog came in.",
        "None of them had answered his lamp, and he wrote that down in the book as well.",
        "“It’s a naïve habit,” said his sister — but she kept the pencils sharp.",
    ],
    "fr": [
        "Le gardien du phare comptait les bateaux qui passaient avant l’arrivée de la brume.",
        "Aucun n’avait répondu à sa lampe, et cela aussi fut noté dans le cahier où tout était.",
        "Sa sœur préférait le thé à la fenêtre, même l’été, quand la forêt sentait le résiné.",
    ],
    "de": [
        "Der Wärter zählte die Schiffe, die vorüberzogen, bevor der Nebel über das Meer kam.",
        "Keines hatte auf seine Lampe geantwortet; später schrieb er auch das in das große Heft.",
        "Seine Schwester hörte gern die Möwen und süßte den Tee, während draußen Stürme tobten.",
    ],
    "pl": [
        "Latarnik liczył statki, które mijały przylądek, zanim nadeszła gęsta mgła.",
        "Żaden nie odpowiedział na jego światło, więc i to zapisał w książce.",
        "Siostra mówiła, że to piękny zwyczaj, choć całkiem niepotrzebny.",
    ],
    "ru": [
        "Смотритель маяка считал корабли, которые проходили мимо, пока не опустился туман.",
        "Ни один из них не ответил на свет его лампы, и это он тоже записал в журнал.",
        "Сестра называла это странной привычкой, но всегда точила ему карандаши.",
    ],
    "el": [
        "Ο φύλακας του φάρου μετρούσε τα πλοία που περνούσαν πριν έρθει η ομίχλη.",
        "Κανένα δεν απάντησε στο φως της λάμπας του και το έγραψε κι αυτό στο βιβλίο.",
    ],
    "ja": [
        "灯台守は霧が出る前に通り過ぎる船を数えていた。どの船も彼の灯りに答えなかった。",
        "そのことも彼は帳面に書きつけた。妹は鉛筆をいつも削っておいてくれた。",
    ],
    "zh": [
        "守灯塔的人在雾来之前数着经过的船只，没有一艘回应他的灯光。",
        "他把这件事也写进了本子里，他的妹妹总是替他把铅笔削好。",
    ],
    "ko": [
        "등대지기는 안개가 내리기 전에 지나가는 배들을 세었습니다.",
        "어느 배도 그의 등불에 대답하지 않았고 그는 그것도 공책에 적었습니다.",
    ],
}
ENCODINGS = [
    ("en", "utf-8"), ("fr", "utf-8-sig"), ("de", "utf-16"), ("en", "utf-32"), ("en", "utf-16-le"),
    ("en", "cp1252"), ("fr", "cp1252"), ("de", "latin-1"), ("pl", "cp1250"), ("pl", "iso8859-2"),
    ("ru", "cp1251"), ("ru", "koi8-r"), ("el", "iso8859-7"), ("ja", "shift_jis"), ("ja", "euc-jp"),
    ("ja", "iso2022_jp"), ("zh", "gb18030"), ("ko", "euc-kr"),
]  # fmt: skip


def plain(paragraphs: list[str]) -> bytes:
    return ("\n\n".join(paragraphs) + "\n").encode()


def web_page(paragraphs: list[str]) -> bytes:
    body = "".join(f"<p>{html.escape(each)}</p>\n" for each in paragraphs)
    return (
        "<!DOCTYPE html><html><head><meta charset='utf-8'><title>Keeper</title>"
        "<style>p { margin: 0 }</style><script>var tracked = '<p>no</p>';</script></head><body>"
        "<nav><a href='/'>Home</a> | <a href='/more'>More pages</a></nav>"
        f"<main><h1>Chapter</h1>{body}</main><footer>Imprint</footer></body></html>"
    ).encode()


def xml_file(paragraphs: list[str]) -> bytes:
    body = "".join(f"  <para n='{n}'>{html.escape(p)}</para>\n" for n, p in enumerate(paragraphs))
    return f"<?xml version='1.0' encoding='UTF-8'?>\n<book>\n{body}</book>\n".encode()


def json_list(paragraphs: list[str]) -> bytes:
    return json.dumps([{"id": n, "body": p} for n, p in enumerate(paragraphs)]).encode()


def json_lines(paragraphs: list[str]) -> bytes:
    lines = (json.dumps({"text": p, "n": n}) for n, p in enumerate(paragraphs))
    return ("\n".join(lines) + "\n").encode()


def table(separator: str) -> Callable[[list[str]], bytes]:
    def write(paragraphs: list[str]) -> bytes:
        written = io.StringIO()
        writer = csv.writer(written, delimiter=separator)
        writer.writerows([("id", "text"), *enumerate(paragraphs)])
        return written.getvalue().encode()

    return write


def columns(paragraphs: list[str]) -> pyarrow.Table:
    return pyarrow.table({"id": list(range(len(paragraphs))), "text": paragraphs})


def parquet(paragraphs: list[str]) -> bytes:
    sink = io.BytesIO()
    pyarrow.parquet.write_table(columns(paragraphs), sink)
    return sink.getvalue()


def arrow(paragraphs: list[str]) -> bytes:
    sink = io.BytesIO()
    with pyarrow.ipc.new_file(sink, columns(paragraphs).schema) as writer:
        writer.write_table(columns(paragraphs))
    return sink.getvalue()


def arrow_stream(paragraphs: list[str]) -> bytes:
    sink = io.BytesIO()
    with pyarrow.ipc.new_stream(sink, columns(paragraphs).schema) as writer:
        writer.write_table(columns(paragraphs))
    return sink.getvalue()


def zip_of(members: dict[str, bytes], method: int = zipfile.ZIP_DEFLATED) -> bytes:
    content = io.BytesIO()
    with zipfile.ZipFile(content, "w", method) as archive:
        for name, data in members.items():
            archive.writestr(zipfile.ZipInfo(name), data, method)
    return content.getvalue()


def tar_of(members: dict[str, bytes]) -> bytes:
    content = io.BytesIO()
    with tarfile.open(fileobj=content, mode="w") as archive:
        for name, data in members.items():
            info = tarfile.TarInfo(name)
            info.size = len(data)
            archive.addfile(info, io.BytesIO(data))
    return content.getvalue()


def docx(paragraphs: list[str]) -> bytes:
    space = "http://schemas.openxmlformats.org/wordprocessingml/2006/main"
    body = "".join(
        "<w:p><w:pPr><w:tabs><w:tab w:val='left'/></w:tabs></w:pPr>"
        f"<w:r><w:t xml:space='preserve'>{html.escape(each[:9])}</w:t></w:r>"
        f"<w:r><w:rPr><w:b/></w:rPr><w:t>{html.escape(each[9:])}</w:t></w:r>"
        "<w:del><w:r><w:delText>deleted</w:delText></w:r></w:del></w:p>"
        for each in paragraphs
    )
    note = f"<w:footnotes xmlns:w='{space}'><w:footnote><w:p/></w:footnote></w:footnotes>"
    return zip_of(
        {
            "[Content_Types].xml": b"<Types/>",
            "word/document.xml": f"<w:document xmlns:w='{space}'><w:body>{body}"
            "</w:body></w:document>".encode(),
            "word/footnotes.xml": note.encode(),
        }
    )


def odt(paragraphs: list[str]) -> bytes:
    spaces = "xmlns:office='urn:office' xmlns:text='urn:text'"
    body = "".join(
        f"<text:p>{html.escape(each).replace(' ', '<text:s/>', 1)}</text:p>\n"
        for each in paragraphs
    )
    content = (
        f"<office:document-content {spaces}><office:body><office:text>\n{body}"
        "</office:text></office:body></office:document-content>"
    )
    manifest = b"<manifest><file-entry/></manifest>"
    return zip_of({"content.xml": content.encode(), "META-INF/manifest.xml": manifest})


def epub(paragraphs: list[str]) -> bytes:
    members = {
        "mimetype": b"application/epub+zip",
        "META-INF/container.xml": b"<container xmlns='urn:c'><rootfiles>"
        b"<rootfile full-path='OEBPS/book.opf'/></rootfiles></container>",
        "OEBPS/nav.xhtml": b"<html><body><nav>Contents</nav></body></html>",
    }
    items = "<item id='nav' href='nav.xhtml' properties='nav'/>"
    spine = "<itemref idref='nav'/>"
    for number, each in enumerate(paragraphs):
        items += f"<item id='c{number}' href='text/chapter%20{number}.xhtml'/>"
        spine += f"<itemref idref='c{number}'/>"
        page = f"<?xml version='1.0'?><html><body><p>{html.escape(each)}</p></body></html>"
        members[f"OEBPS/text/chapter {number}.xhtml"] = page.encode()
    package = f"<package xmlns='urn:p'><manifest>{items}</manifest><spine>{spine}</spine></package>"
    members["OEBPS/book.opf"] = package.encode()
    return zip_of(members)


def rtf(paragraphs: list[str]) -> bytes:
    def escape(text: str) -> str:
        units = text.encode("utf-16-le")
        codes = (int.from_bytes(units[at : at + 2], "little") for at in range(0, len(units), 2))
        return "".join(
            chr(code) if code < 128 else f"\\u{code - 65536 * (code > 32767)}?" for code in codes
        )

    body = "".join(f"{escape(each)}\\par\n" for each in paragraphs)
    head = r"{\rtf1\ansi\ansicpg1252\uc1{\fonttbl{\f0\fcharset0 Arial;}}{\*\generator x;}\f0 "
    return (head + body + "}").encode("ascii")


def pdf(paragraphs: list[str]) -> bytes:
    pages = []
    for number, each in enumerate(paragraphs, 1):
        words = each.split()
        middle = len(words) // 2
        pages.append([" ".join(words[:middle]), " ".join(words[middle:]), str(number)])
    return write_pdf(pages)


def srt(paragraphs: list[str]) -> bytes:
    cues = (
        f"{n}\r\n00:00:{n:02},000 --> 00:00:{n + 1:02},500\r\n<i>{each}</i>\r\n\r\n"
        for n, each in enumerate(paragraphs, 1)
    )
    return "".join(cues).encode()


def vtt(paragraphs: list[str]) -> bytes:
    cues = (
        f"cue {n}\n00:{n:02}.000 --> 00:{n + 1:02}.500 align:start\n"
        f"<v Anna>{html.escape(each, False)}\n\n"
        for n, each in enumerate(paragraphs, 1)
    )
    return ("WEBVTT\n\nNOTE a comment\n\n" + "".join(cues)).encode()


def message(text: str) -> bytes:
    made = EmailMessage()
    made["Subject"] = "Ünïcode"
    made["From"] = "someone@example.org"
    made.set_content(text)
    made.add_alternative(f"<p>{html.escape(text)}</p>", subtype="html")
    made.add_attachment(b"\0\1", maintype="image", subtype="png", filename="a.png")
    return made.as_bytes()


def mbox(paragraphs: list[str]) -> bytes:
    start = b"From someone@example.org Thu Jan  1 00:00:00 1970\n"
    return b"".join(start + message(each) + b"\n" for each in paragraphs)


def eml(paragraphs: list[str]) -> bytes:
    return message("\n\n".join(paragraphs))


def notebook(paragraphs: list[str]) -> bytes:
    cells = [{"cell_type": "markdown", "source": [each + "\n"]} for each in paragraphs]
    output = {"cell_type": "code", "source": "print(1)", "outputs": [{"text": "1"}]}
    return json.dumps({"nbformat": 4, "metadata": {}, "cells": [*cells, output]}).encode()


def code(paragraphs: list[str]) -> bytes:
    return "".join(f"# {each}\nprint({n})\n" for n, each in enumerate(paragraphs)).encode()


FORMATS: dict[str, Callable[[list[str]], bytes]] = {
    ".txt": plain, ".md": plain, ".rst": plain, ".html": web_page, ".xml": xml_file,
    ".json": json_list, ".jsonl": json_lines, ".ndjson": json_lines, ".csv": table(","),
    ".tsv": table("\t"), ".parquet": parquet, ".arrow": arrow, ".feather": arrow_stream,
    ".epub": epub, ".pdf": pdf, ".docx": docx, ".odt": odt, ".rtf": rtf, ".srt": srt, ".vtt": vtt,
    ".mbox": mbox, ".eml": eml, ".ipynb": notebook, ".py": code,
}  # fmt: skip
COMPRESSIONS: dict[str, Callable[[bytes], bytes]] = {
    ".gz": lambda data: gzip.compress(data, mtime=0),
    ".bz2": bz2.compress,
    ".xz": lambda data: lzma.compress(data, preset=0),
    ".zst": zstandard.ZstdCompressor().compress,
}
PDF_LANGUAGES = ("en", "fr", "de")


def documents() -> dict[str, tuple[bytes, list[str]]]:
    """Return undamaged files by name, each with the paragraphs in it."""
    made: dict[str, tuple[bytes, list[str]]] = {}
    for suffix, write in FORMATS.items():
        for language, paragraphs in PARAGRAPHS.items():
            if suffix != ".pdf" or language in PDF_LANGUAGES:
                made[f"{language}{suffix}"] = write(paragraphs), paragraphs
    for suffix, write in FORMATS.items():
        for ending, compress in COMPRESSIONS.items():
            data = compress(write(PARAGRAPHS["fr"]))
            made[f"compressed/fr{suffix}{ending}"] = data, PARAGRAPHS["fr"]
    for language, encoding in ENCODINGS:
        text = plain(PARAGRAPHS[language]).decode()
        if encoding in ("shift_jis", "euc-jp", "euc-kr", "cp1251", "iso8859-7", "latin-1"):
            text = text.replace("’", "'")
        made[f"encodings/{language}-{encoding}.txt"] = text.encode(encoding), PARAGRAPHS[language]
    for language in ("en", "ru", "zh"):
        paragraphs = PARAGRAPHS[language]
        members = {f"folder/{n}.txt": each.encode() for n, each in enumerate(paragraphs)}
        members["folder/picture.png"] = b"\x89PNG\0"
        made[f"archives/{language}.zip"] = zip_of(members), paragraphs
        made[f"archives/{language}.tar"] = tar_of(members), paragraphs
        for ending, compress in COMPRESSIONS.items():
            made[f"archives/{language}.tar{ending}"] = compress(tar_of(members)), paragraphs
        inner = {"inner.zip": zip_of(members), "inner.docx": docx(paragraphs)}
        made[f"archives/{language}-nested.tgz"] = gzip.compress(tar_of(inner)), paragraphs * 2
    return made


def damaged() -> dict[str, bytes]:
    """Return files that cannot be read, by name."""
    text = PARAGRAPHS["en"]
    made = {
        "damaged/encrypted.pdf": write_pdf([["secret"]], is_encrypted=True),
        "damaged/scanned.pdf": write_pdf([[], []]),
        "damaged/cut.txt.gz": gzip.compress(plain(text) * 99)[:-20],
        "damaged/cut.txt.xz": lzma.compress(plain(text) * 99)[:-20],
        "damaged/cut.txt.bz2": bz2.compress(plain(text) * 99)[:-20],
        "damaged/cut.txt.zst": zstandard.ZstdCompressor().compress(plain(text) * 99)[:-5],
        "damaged/plain.txt.gz": plain(text),
        "damaged/cut.zip": zip_of({"a.txt": plain(text)})[:-30],
        "damaged/cut.docx": docx(text)[:200],
        "damaged/cut.epub": epub(text)[:-40],
        "damaged/empty.odt": zip_of({"a.txt": b""}),
        "damaged/cut.parquet": parquet(text)[:100],
        "damaged/cut.arrow": arrow(text)[:100],
        "damaged/cut.rtf": rtf(text)[:-10],
        "damaged/cut.json": json_list(text)[:-10],
        "damaged/all.jsonl": b"{\n[\n",
        "damaged/cut.xml": xml_file(text)[:-5],
        "damaged/cut.ipynb": notebook(text)[:-5],
        "damaged/not.srt": plain(text),
        "damaged/not.mbox": plain(text),
        "damaged/quote.csv": b'id,text\n1,"a\n2,b\n',
        "damaged/binary.txt": b"\x7fELF\0\0\1",
        "damaged/empty.txt": b"",
    }
    return made


def write_corpus(folder: Path) -> dict[str, list[str]]:
    """Write all files to a folder; return the paragraphs of those that are not damaged."""
    made = documents()
    for name, data in {**{n: data for n, (data, _) in made.items()}, **damaged()}.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data)
    return {name: paragraphs for name, (_, paragraphs) in made.items()}
