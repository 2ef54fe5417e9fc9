import pytest
from hypothesis import given
from hypothesis import strategies as st

from src.data.office import _OpenDocument
from src.data.text_files import Unreadable
from tests.data.document_corpus import PARAGRAPHS, docx, epub, odt, zip_of
from tests.data.reading import lines_of, read_with_report, texts, write

WORD = "xmlns:w='urn:w' xmlns:mc='urn:mc'"


def word(body, **parts):
    document = f"<w:document {WORD}><w:body>{body}</w:body></w:document>"
    members = {"word/document.xml": document.encode()}
    for name, part in parts.items():
        members[f"word/{name}.xml"] = f"<w:x {WORD}>{part}</w:x>".encode()
    return zip_of(members)


@pytest.mark.parametrize(("suffix", "make"), [(".docx", docx), (".odt", odt), (".epub", epub)])
def test_paragraphs_are_one_document(tmp_path, suffix, make):
    (found,) = texts(tmp_path / f"a{suffix}", make(PARAGRAPHS["zh"]))
    assert found.split() == PARAGRAPHS["zh"]


def test_word_s_special_elements(tmp_path):
    body = (
        "<w:p><w:pPr><w:tabs><w:tab/></w:tabs></w:pPr><w:r><w:t>a</w:t><w:tab/><w:t>b</w:t><w:br/>"
        "<w:t>c</w:t><w:noBreakHyphen/><w:t>d</w:t><w:instrText>PAGE</w:instrText></w:r>"
        "<w:del><w:r><w:delText>gone</w:delText></w:r></w:del></w:p>\n"
        "<w:p><mc:AlternateContent><mc:Choice><w:r><w:t>box</w:t></w:r></mc:Choice>"
        "<mc:Fallback><w:r><w:t>box</w:t></w:r></mc:Fallback></mc:AlternateContent></w:p>"
    )
    note = "<w:footnote><w:p><w:r><w:t>a note</w:t></w:r></w:p></w:footnote>"
    assert texts(tmp_path / "a.docx", word(body, footnotes=note)) == ["a\tb\nc-d\nbox\na note\n"]


def test_paragraphs_in_another_come_after_it(tmp_path):
    """Notes and text boxes, which may have others in them; not within the word where they are."""
    box = "<w:r><w:txbx><w:p><w:r><w:t>{}</w:t></w:r></w:p></w:txbx></w:r>"
    nested = box.replace("{}", "box</w:t></w:r>" + box.format("inner") + "<w:r><w:t> end")
    body = f"<w:p><w:r><w:t>be</w:t></w:r>{nested}<w:r><w:t>fore</w:t></w:r></w:p>"
    assert texts(tmp_path / "a.docx", word(body * 2)) == ["before\nbox end\ninner\n" * 2]
    note = "<t:note><t:note-citation>1</t:note-citation><t:note-body><t:p>{}</t:p></t:note-body>"
    note = note.replace("{}", "One</t:p> <t:p>two<t:frame> <t:p>box</t:p> </t:frame>") + "</t:note>"
    content = f"<o xmlns:t='urn:t'><t:p>wo{note}rd</t:p><t:h>Head</t:h></o>"
    made = zip_of({"content.xml": content.encode()})
    assert texts(tmp_path / "a.odt", made) == ["word\nOne\ntwo\nbox\nHead\n"]


def test_what_word_hides_or_moved_away_is_not_read(tmp_path):
    body = (
        "<w:p><w:moveFrom><w:r><w:t>moved</w:t></w:r></w:moveFrom><w:r><w:t>kept </w:t></w:r>"
        "<w:r><w:rPr><w:vanish/></w:rPr><w:t>hidden</w:t><w:tab/></w:r>"
        "<w:r><w:rPr><w:vanish w:val='0'/><w:rPrChange><w:rPr><w:vanish/></w:rPr></w:rPrChange>"
        "</w:rPr><w:t>shown </w:t></w:r><w:del><w:r><w:delText>gone</w:delText></w:r></w:del>"
        "<w:moveTo><w:r><w:t>moved</w:t><w:sym w:char='2022'/><w:sym w:char='F04A'/><w:sym/></w:r>"
        "</w:moveTo></w:p>"
    )
    found, report = read_with_report(write(tmp_path / "a.docx", word(body)))
    assert found == ["kept shown moved•\n"]
    removed = lines_of(report.removed)
    assert "hidden or deleted text in 1 place (10 characters)" in removed
    assert "symbols of fonts such as Wingdings in 1 place (2 characters)" in removed


@given(
    words=st.lists(st.text("ab\xa0", min_size=1, max_size=3), min_size=1, max_size=5),
    spaces=st.lists(st.text(" \n\t", min_size=1, max_size=3), min_size=6, max_size=6),
    at=st.integers(0, 99),
)
def test_white_space_of_opendocument_is_one_space(words, spaces, at):
    text = spaces[5] + "".join(map("".join, zip(words, spaces, strict=False)))
    cut = at % len(text)  # white space on both sides of a tag is one space, too
    collector = _OpenDocument()
    collector.start("p", {})
    for part in (text[:cut], text[cut:]):
        collector.start("span", {})
        collector.data(part)
        collector.end("span")
    collector.end("p")
    assert "".join(collector.parts) == " ".join(words) + "\n"


def test_opendocument_s_special_elements(tmp_path):
    content = (
        "<o xmlns:text='urn:t'><text:tracked-changes><text:p>gone</text:p></text:tracked-changes>"
        "<text:h>Head</text:h> <text:p>a <text:s text:c='2'/>b<text:tab/>c<text:line-break/>d"
        "<text:s text:c='x'/><text:annotation><text:p>comment</text:p></text:annotation></text:p>"
        "</o>"
    )
    made = zip_of({"content.xml": content.encode()})
    assert texts(tmp_path / "a.odt", made) == ["Head\na   b\tc\nd \n"]


def test_encrypted_documents_are_refused(tmp_path):
    manifest = b"<m><file-entry><encryption-data/></file-entry></m>"
    made = zip_of({"META-INF/manifest.xml": manifest, "content.xml": b"\0"})
    with pytest.raises(Unreadable, match=r"a\.odt: encrypted: save it without a password"):
        texts(tmp_path / "a.odt", made)
    with pytest.raises(Unreadable, match=r"a\.docx: encrypted: save it without a password"):
        texts(tmp_path / "a.docx", zip_of({"EncryptedPackage": b"\0"}))
    # As Word itself encrypts: no zip archive.
    with pytest.raises(Unreadable, match=r"b\.docx: damaged: it does not begin as a Word document"):
        texts(tmp_path / "b.docx", b"\xd0\xcf\x11\xe0\xa1\xb1\x1a\xe1" * 99)


@pytest.mark.parametrize(
    ("name", "members", "problem"),
    [
        ("a.docx", {"a.xml": b""}, "word/document.xml is missing in it"),
        ("a.docx", {"word/document.xml": b"<w>"}, "document.xml:1: not XML: no element found"),
        ("a.docx", {"word/document.xml": b"<w/>"}, "contains no text"),
        ("a.epub", {"a.xml": b""}, "META-INF/container.xml is missing in it"),
        ("a.epub", {"META-INF/container.xml": b"<c/>"}, "it does not name its contents"),
        ("a.epub", {"META-INF/container.xml": b"<c full-path='x'/>"}, "x is missing in it"),
    ],
)
def test_damaged_documents_are_refused(tmp_path, name, members, problem):
    with pytest.raises(Unreadable, match=f"{name}.*: .*{problem}"):
        texts(tmp_path / name, zip_of(members))


def book(chapters, **others):
    members = {f"{name}.html": content for name, content in chapters.items()}
    items = "".join(f"<item id='{name}' href='{name}.html'/>" for name in chapters)
    items += "<item id='nav' href='nav.html' properties='scripted nav'/>"
    items += "<item id='gone' href='gone.html'/>"
    spine = "".join(f"<itemref idref='{name}'/>" for name in ("nav", *reversed(chapters), "none"))
    members["nav.html"] = b"<p>Contents of it"
    members["b.opf"] = f"<p>{items}{spine}<itemref idref='gone'/></p>".encode()
    members["META-INF/container.xml"] = b"<c><rootfile full-path='b.opf'/></c>"
    return zip_of({**members, **others})


def test_chapters_are_in_reading_order(tmp_path):
    chapters = {"one": b"<p>First", "two": b"<p>Second", "blank": b"<img/>"}
    write(tmp_path / "a.epub", book(chapters))
    found, report = read_with_report(tmp_path / "a.epub")
    assert found == ["Second\n\nFirst\n"]
    assert "1 chapter damaged, such as" in lines_of(report.skipped)
    assert "gone.html is missing in it" in lines_of(report.skipped)
    assert "1 chapter without text, such as" in lines_of(report.skipped)
    assert "a.epub: blank.html" in lines_of(report.skipped)
    assert texts(tmp_path / "a.epub", clean=False)[0].startswith("Contents of it\n\nSecond")


def test_chapters_are_xml_with_notes(tmp_path):
    note = (
        b"<!DOCTYPE html [<!ENTITY who 'Ahab'>]><html xmlns='http://www.w3.org/1999/xhtml' "
        b"xmlns:epub='http://www.idpf.org/2007/ops'><head><title/></head><body><p>Captain &who;"
        b"</p><aside epub:type='footnote'>A note.</aside><nav>Contents</nav></body></html>"
    )
    picture = b"<svg xmlns='http://www.w3.org/2000/svg'><text>drawn</text></svg>"
    write(tmp_path / "a.epub", book({"picture": picture, "note": note}))
    found, report = read_with_report(tmp_path / "a.epub")
    assert found == ["Captain Ahab\n\nA note.\n"]
    assert "1 chapter without text, such as" in lines_of(report.skipped)
    assert "(8 characters)" in lines_of(report.removed)


@pytest.mark.parametrize("algorithm", ["http://www.idpf.org/2008/embedding", "aes256-cbc"])
@pytest.mark.parametrize("uri", ["one.html", "font.otf"])
def test_books_with_rights_management_are_refused(tmp_path, algorithm, uri):
    encryption = (
        f"<e><EncryptedData><EncryptionMethod Algorithm='{algorithm}'/>"
        f"<CipherReference URI='{uri}'/></EncryptedData></e>"
    )
    made = book({"one": b"<p>First"}, **{"META-INF/encryption.xml": encryption.encode()})
    if algorithm == "aes256-cbc" and uri == "one.html":
        with pytest.raises(Unreadable, match=r"a\.epub: encrypted \(digital rights management\)"):
            texts(tmp_path / "a.epub", made)
    else:
        assert texts(tmp_path / "a.epub", made) == ["First\n"]


def test_a_chapter_with_wrong_bytes_makes_the_book_damaged(tmp_path):
    import zipfile

    made = epub(PARAGRAPHS["en"])
    stored = zip_of({"content.xml": b"<o><p>words</p></o>"}, zipfile.ZIP_STORED)
    with pytest.raises(Unreadable, match=r"a\.odt: content\.xml: damaged or cut short zip archive"):
        texts(tmp_path / "a.odt", stored.replace(b"words", b"wOrds"))
    at = made.find(b"chapter 1")
    with pytest.raises(Unreadable, match=r"a\.epub.*damaged or cut short"):
        texts(tmp_path / "a.epub", made[: at + 40] + bytes(20) + made[at + 60 :])
