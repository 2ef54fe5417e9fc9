import pytest

from src.data import text, xml
from src.data.text_files import Unreadable
from tests.data.document_corpus import zip_of
from tests.data.reading import texts


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        ("<a>\n  <b>one</b>\n  <b>two</b>\n</a>", "one\ntwo"),
        ("<a><b>one</b><b>two</b></a>", "one\ntwo"),
        ("<p>some <i>inline</i> text</p>", "some inline text"),
        ("<a>x &amp; &lt;y&gt; &#233;<![CDATA[<z>]]><!-- no --></a>", "x & <y> é<z>"),
        ("<a>one\n\n\n\n\ntwo</a>", "one\n\ntwo"),
        ("<a x='not text'>one</a>", "one"),
        ('<!DOCTYPE a [<!ENTITY who "Ahab">]><a>Captain &who;</a>', "Captain Ahab"),
    ],
)
def test_the_text_of_elements_is_found(tmp_path, content, expected):
    assert texts(tmp_path / "a.xml", content) == [expected]


@pytest.mark.parametrize(
    "encoding", ["utf-8", "utf-16", "iso-8859-1", "cp1251", "gb18030", "shift_jis"]
)
def test_the_encoding_is_the_declared_one(tmp_path, encoding):
    words = {"cp1251": "Война", "gb18030": "灯塔", "shift_jis": "灯台"}.get(encoding, "süß")
    content = f"<?xml version='1.0' encoding='{encoding}'?><a>{words}</a>"
    assert texts(tmp_path / "a.xml", content.encode(encoding)) == [words]


ENTITIES = [
    ('<!ENTITY % iso SYSTEM "iso.ent"> %iso; <!ENTITY who "Ahab">', "&who;", "Ahab"),
    ("<!ENTITY % who \"<!ENTITY who 'Ahab'>\"> %who;", "&who;", "Ahab"),
    ('<!ENTITY ch1 SYSTEM "ch1.xml"><!ENTITY pic SYSTEM "p.gif" NDATA gif>', "none", "none"),
    ('<!ENTITY full "&co; Ltd."><!ENTITY co "A &amp; B">', "&full;", "A & B Ltd."),
    ('<!ENTITY name "<b>Ahab</b>"><!ENTITY amp2 "&#38;">', "Captain &name;", "Captain Ahab"),
    (f'<!ENTITY long "{"x" * 1000}">', "&long;" * 20, "x" * 20_000),
]


@pytest.mark.parametrize(("declared", "used", "expected"), ENTITIES)
@pytest.mark.parametrize("dtd", ["", " SYSTEM 'a.dtd'"])
def test_entities_that_a_file_declares_are_replaced(tmp_path, declared, used, expected, dtd):
    content = f"<!DOCTYPE a{dtd} [{declared}]><a>{used}</a>"
    assert texts(tmp_path / "a.xml", content) == [expected]


BOMB = '<!ENTITY a0 "ha">' + "".join(f'<!ENTITY a{n} "{f"&a{n - 1};" * 10}">' for n in range(1, 9))


@pytest.mark.parametrize(
    ("entity", "problem"),
    [
        (BOMB, "not XML: its entities expand to too much: replace entities by their text, as xmll"),
        (BOMB.replace("ha", ""), "not XML: its entities expand to too much"),
        ('<!ENTITY a8 "&b;"><!ENTITY b "&a8;">', "not XML: recursive entity reference"),
        (
            '<!ENTITY a8 SYSTEM "file:///etc/passwd">',
            r"the text of the entity a8 is in another file \(file:///etc/passwd\), which is not r",
        ),
    ],
)
def test_entities_that_expand_to_too_much_or_are_elsewhere_are_refused(tmp_path, entity, problem):
    content = f"<?xml version='1.0'?>\n<!DOCTYPE a [\n{entity}]>\n<a>\n&a8;</a>"
    with pytest.raises(Unreadable, match=r"a\.xml:[35]: " + problem):
        texts(tmp_path / "a.xml", content)


@pytest.mark.parametrize(
    "entity",
    [
        '<!ENTITY a "ha"><!ENTITY b "&a;&a;&a;&a;">',
        '<!ENTITY a SYSTEM "file:///etc/passwd">',
        '<!ENTITY % a SYSTEM "http://example.org/a.dtd">',
        f'<!ENTITY a "{"x" * 1000}">',
    ],
)
def test_an_old_parser_expands_short_entities_alone(tmp_path, monkeypatch, entity):
    monkeypatch.setattr(xml, "_LIMITED_SINCE", (99,))
    content = f"<?xml version='1.0'?>\n<!DOCTYPE a [\n{entity}]>\n<a>&a;&b;</a>"
    with pytest.raises(Unreadable, match=r"a\.xml:3: declares the entity [ab], which is not a sho"):
        texts(tmp_path / "a.xml", content)
    content = "<!DOCTYPE a [<!ENTITY who 'Ahab'>]><a>Captain &who;</a>"
    assert texts(tmp_path / "a.xml", content) == ["Captain Ahab"]


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        ("<p>one<br/>two</p>", "one\ntwo"),
        ("<p>one<lb></lb>two<index/>three.<LB/>Four</p>", "one\ntwo three.\nFour"),
        ("<p>wo<lb break='no'/>rd</p>", "word"),
        ("<p>see <xref/>, (<xref/>) and<xref/>.</p>", "see , () and."),
        ("<p>one<b><br/></b>two</p>", "one\ntwo"),
        ("<p>one<i/><b>two</b></p>", "one\ntwo"),
        ("<p>one<i>s</i>two<br/></p>", "onestwo"),
        ("<p><br/>one<br/>\n  two</p>", "one\n  two"),
    ],
)
def test_elements_without_content_separate_words(tmp_path, content, expected):
    assert texts(tmp_path / "a.xml", content) == [expected]


XHTML = (
    '<!DOCTYPE html PUBLIC "-//W3C//DTD XHTML 1.0 Strict//EN"\n'
    '"http://www.w3.org/TR/xhtml1/DTD/xhtml1-strict.dtd">'
)
DECLARATIONS = ["", XHTML, "<?xml version='1.0' standalone='yes'?>"]


@pytest.mark.parametrize("declaration", DECLARATIONS)
def test_entities_of_html_are_replaced_without_a_dtd(tmp_path, declaration):
    content = f"{declaration}<a b='&yen;'>caf&eacute; &mdash; na&iuml;ve &NotEqualTilde;&nbsp;</a>"
    assert texts(tmp_path / "a.xml", content) == ["café — naïve \u2242\u0338\xa0"]
    document = f"{declaration}<w><p><t>caf&eacute; &mdash; na&iuml;ve</t></p></w>"
    found = texts(tmp_path / "a.docx", zip_of({"word/document.xml": document.encode()}))
    assert found == ["café — naïve\n"]


@pytest.mark.parametrize("block", [1, 2, 7, 20])
def test_an_entity_may_be_split_between_blocks(tmp_path, monkeypatch, block):
    monkeypatch.setattr(text, "BLOCK", block)
    assert texts(tmp_path / "a.xml", XHTML + "<a>caf&eacute;&mdash;na&iuml;ve</a>") == [
        "café—naïve"
    ]


@pytest.mark.parametrize("declaration", DECLARATIONS)
def test_other_undeclared_entities_are_an_error_by_name(tmp_path, declaration):
    problem = r":\d: the entity chapter is declared neither in the file nor by HTML: declare it"
    with pytest.raises(Unreadable, match=r"a\.xml" + problem):
        texts(tmp_path / "a.xml", declaration + "<a>one &chapter; two</a>")
    member = f"{declaration}<w><p><t>one &chapter; two</t></p></w>".encode()
    with pytest.raises(Unreadable, match=r"a\.docx: word/document\.xml" + problem):
        texts(tmp_path / "a.docx", zip_of({"word/document.xml": member}))


def test_an_entity_declared_in_the_file_wins_over_that_of_html(tmp_path):
    content = "<!DOCTYPE a SYSTEM 'a.dtd' [%iso; <!ENTITY who 'Ahab'>]><a>&eacute;</a>"
    assert texts(tmp_path / "a.xml", content) == ["é"]
    content = "<!DOCTYPE a SYSTEM 'a.dtd' [<!ENTITY eacute 'Ahab'>]><a>&eacute;</a>"
    assert texts(tmp_path / "a.xml", content) == ["Ahab"]


@pytest.mark.parametrize("content", ["<a><b></a>", "<a>", "text", "<a>&unknown</a>"])
def test_broken_xml_is_refused_with_the_line(tmp_path, content):
    with pytest.raises(Unreadable, match=r"a\.xml:1: not XML: \w+"):
        texts(tmp_path / "a.xml", content)


def test_each_element_of_the_text_field_is_a_document(tmp_path):
    content = "<r><t>skip</t><body>one <i>x</i></body><body/><body>a<body>b</body></body></r>"
    assert texts(tmp_path / "a.xml", content, text_field="body") == ["one x", "ab"]
    with pytest.raises(Unreadable, match="no element 'page' among r, t, body, i; set text_field"):
        texts(tmp_path / "a.xml", content, text_field="page")


def test_articles_of_a_wiki_dump_are_documents(tmp_path):
    pages = "".join(f"<page><title>T{n}</title><text>Article {n}</text></page>" for n in range(9))
    content = f'<mediawiki xmlns="http://www.mediawiki.org/xml/export-0.10/">{pages}</mediawiki>'
    assert texts(tmp_path / "a.xml", content) == [f"Article {n}" for n in range(9)]


@pytest.mark.parametrize("field", [None, "b"])
def test_a_large_file_is_read_in_blocks(tmp_path, monkeypatch, field):
    monkeypatch.setattr(text, "BLOCK", 100)
    monkeypatch.setattr(xml, "MAX_CHARACTERS", 50)
    words = " ".join(f"word{n}" for n in range(300))
    found = texts(tmp_path / "a.xml", f"<a>\n<b>{words}</b>\n</a>", text_field=field)
    assert "".join(found).strip() == words


def test_a_tag_that_does_not_end_has_a_limit(tmp_path, monkeypatch):
    monkeypatch.setattr(xml, "_MAX_TOKEN", 1000)
    monkeypatch.setattr(text, "BLOCK", 100)
    with pytest.raises(Unreadable, match=r"a\.xml:2: a tag or a comment has more than 1,000 bytes"):
        texts(tmp_path / "a.xml", "<a>\n<!-- " + "no end " * 500)
