import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from src.data import html
from src.data.text_files import Unreadable
from tests.data.reading import lines_of, read_with_report, texts, write

PAGE = """<!doctype html><html><head><title>T</title><script>var a = 1;</script></head><body>
<nav>Home | About</nav><h1>Head</h1><p>Some <b>bold</b>  text<br>next <!-- c --><pre>  code
   more</pre><ul><li>one</li> <li>two <i>x</i>, y</ul><table><tr><td>a<td>b</tr></table>
<div role="search">Search</div><p hidden>secret<footer>Imprint</footer></body></html>"""


def test_scripts_and_navigation_are_removed_and_counted(tmp_path):
    write(tmp_path / "a.html", PAGE)
    found, report = read_with_report(tmp_path / "a.html")
    assert found == ["Head\n\nSome bold text\nnext\n\n  code\n   more\n\none\ntwo x, y\n\na\tb\n"]
    removed = lines_of(report.removed)
    assert "navigation of web pages in 1 place (31 characters), such as" in removed
    assert "scripts and styles of web pages in 1 place (11 characters), such as" in removed


def test_navigation_stays_on_request(tmp_path):
    (page,) = texts(tmp_path / "a.html", PAGE, clean=False)
    for words in ("Home | About", "Search", "secret", "Imprint"):
        assert words in page
    assert "var a" not in page


def test_a_page_of_navigation_alone_is_kept(tmp_path):
    assert texts(tmp_path / "a.html", "<nav>all <b>of</b> it</nav>") == ["all of it\n"]


@pytest.mark.parametrize("content", ["<script>x</script>", "<p> </p>", "<!-- nothing -->"])
def test_a_page_without_text_is_refused(tmp_path, content):
    with pytest.raises(Unreadable, match="contains no text"):
        texts(tmp_path / "a.html", content)


@pytest.mark.parametrize("encoding", ["windows-1251", "koi8-r", "utf-8", "shift_jis"])
def test_the_encoding_is_the_declared_one(tmp_path, encoding):
    text = "灯台" if encoding == "shift_jis" else "Война"
    page = f"<html><head><meta charset={encoding!r}></head><p>{text}</html>"
    assert texts(tmp_path / "a.html", page.encode(encoding)) == [f"{text}\n"]


def test_latin_1_in_a_page_is_what_programs_mean_by_it(tmp_path):
    page = "<meta charset='iso-8859-1'><p>“süße” – Käse".encode("cp1252")
    assert texts(tmp_path / "a.html", page) == ["“süße” – Käse\n"]


def test_a_wrong_declaration_is_not_believed(tmp_path):
    page = "<meta http-equiv='Content-Type' content='text/html; charset=ISO-8859-1'><p>Война"
    assert texts(tmp_path / "a.htm", page) == ["Война\n"]
    page = "<meta charset='klingon'><p>süße Käse"
    assert texts(tmp_path / "b.htm", page.encode("cp1252")) == ["süße Käse\n"]


def test_a_page_that_a_parser_would_multiply_is_refused(tmp_path):
    bold = "".join(f"<b id={number}>" for number in range(2000))
    with pytest.raises(Unreadable, match="too many unclosed elements"):
        texts(tmp_path / "a.html", bold + "<p>x" * 2000)
    with pytest.raises(Unreadable, match="too many attributes of one element"):
        texts(tmp_path / "b.html", "<p " + " ".join(f"a{n}" for n in range(40_000)) + ">x")
    long = f"<img src='data:{'a b ' * 40_000}'>" + "<b>x</b><i>y</i>" * 5000
    assert texts(tmp_path / "c.html", long) == ["xy" * 5000 + "\n"]


def test_a_tree_deeper_than_any_page_is_refused(tmp_path):
    with pytest.raises(Unreadable, match="elements are nested more than 4,000 levels deep"):
        texts(tmp_path / "a.html", "<div>" * 5000 + "x")
    assert texts(tmp_path / "b.html", "<div>" * 300 + "x</div>" + "<p>y" * 5000)[0].startswith(
        "x\n"
    )


@pytest.mark.parametrize(
    "repeated",
    ["<div></b>", "<x></x></y><x>", "<span><dt></span><span><li></span>",
     "<a><dd></a><ul><li>z</ul><a><li></a>"],
)  # fmt: skip
def test_ends_that_a_parser_ignores_do_not_hide_the_depth(tmp_path, repeated):
    """A parser takes quadratic time in it: minutes for a megabyte of these."""
    with pytest.raises(Unreadable, match="elements are nested more than 4,000 levels deep"):
        texts(tmp_path / "a.html", repeated * 5000 + "x")


def test_lists_one_after_the_other_are_not_nested(tmp_path):
    lists = "<ul><li>a<li>b</ul></ul><dl><dt>c<dd>d<table></table></dl>" * 5000
    assert texts(tmp_path / "a.html", lists) == ["\n\n".join(["a\nb", "c\nd"] * 5000) + "\n"]


def test_an_element_that_is_left_out_changes_nothing_after_it(tmp_path):
    page = "<pre hidden>x</pre><blockquote hidden>y</blockquote><p>a    b<footer>c</footer>"
    assert texts(tmp_path / "a.html", page) == ["a b\n"]


@pytest.mark.parametrize(
    ("page", "count"),
    [("a<!-- b <p>c", 11), ("a<!-->", 0), ("a<!-- b --!>", 0), ("a<!--->", 0),
     ("a<script><!-- b</script>", 0), ("a<!-- b --><!-- c", 6)],
)  # fmt: skip
def test_a_comment_that_is_not_closed_is_counted(tmp_path, page, count):
    found, report = read_with_report(write(tmp_path / "a.html", page))
    assert found == ["a\n"]
    expected = f"unclosed comments of web pages in 1 place ({count} characters)"
    assert (expected in lines_of(report.removed)) == (count > 0)


def test_a_page_has_a_limit(tmp_path, monkeypatch):
    monkeypatch.setattr(html, "MAX_PAGE", 1000)
    with pytest.raises(Unreadable, match="more than 1,000 characters, the limit of this format"):
        texts(tmp_path / "a.html", "<p>" * 1000)


SCRIPT = "for(i=0;i<a.length;i++){if(t<n&&b<i)x()}\n"


@pytest.mark.parametrize("lines", [400, 3000])
@pytest.mark.parametrize(
    "form", ["<script type=x>{}</script>", "<style>{}</STYLE >", "<!--{}-->", "<!-- {} --!>"]
)
def test_tags_in_scripts_and_comments_are_not_elements(tmp_path, lines, form):
    page = "<p>one" + form.format(SCRIPT * lines) + "two</p>" + "<p>three" * lines
    found, report = read_with_report(write(tmp_path / "a.html", page))
    assert found == ["onetwo" + "\n\nthree" * lines + "\n"]
    is_counted = f"({len(SCRIPT) * lines:,} characters)" in lines_of(report.removed)
    assert is_counted == ("!" not in form)


@pytest.mark.parametrize("element", ["path d='M0 0'", "mspace", "use"])
def test_elements_that_end_as_in_svg_are_not_open(tmp_path, element):
    drawing = f"<svg><g>{f'<{element}/>' * 5000}</g></svg><math>{f'<{element} />' * 5000}</math>"
    assert texts(tmp_path / "a.html", f"<p>one{drawing}<p>two") == ["one\n\ntwo\n"]


def test_elements_beside_a_script_or_an_empty_comment_are_counted(tmp_path):
    for begin in (f"<script>{SCRIPT}</script>", "<!-->", "<!--->", "<!-- a -->"):
        with pytest.raises(Unreadable, match="nested more than 4,000 levels deep"):
            texts(tmp_path / "a.html", begin + "<div>" * 5000 + "x<!-- b -->")


XHTML = "<?xml version='1.0'?><html xmlns='http://www.w3.org/1999/xhtml'>"
EMPTY = ["title", "script src='a'", "style", "iframe src='a>b'", "textarea", "a id='b'", "div", "p"]


@pytest.mark.parametrize("name", ["a.html", "a.xhtml"])
@pytest.mark.parametrize("is_broken", [False, True])
@pytest.mark.parametrize("element", EMPTY)
def test_an_element_without_content_ends_there(tmp_path, name, is_broken, element):
    page = f"{XHTML}<head><{element}/></head><body><p>Real <b>text</b><br/>here</p>"
    page += "" if is_broken else "</body></html>"
    assert texts(tmp_path / name, page) == ["Real text\nhere\n"]


@pytest.mark.parametrize(
    ("name", "declaration"),
    [
        ("a.html", XHTML),
        ("a.html", "<!DOCTYPE html [<!ENTITY who 'Ahab'>]><html>"),
        ("a.html", "<!DOCTYPE html PUBLIC 'a' 'b'>\n<html xmlns='http://www.w3.org/1999/xhtml'>"),
        ("a.xhtml", "<html>"),
    ],
)
def test_sections_and_entities_of_xml_are_text_in_a_page(tmp_path, name, declaration):
    who = "&who;" if "who" in declaration else "Ahab"
    page = f"{declaration}<p>Captain <![CDATA[<b>&]]> {who} &eacute; &amp;lt;</p></html>"
    assert texts(tmp_path / name, page) == ["Captain <b>& Ahab é &lt;\n"]


@settings(
    deadline=None, max_examples=25, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(
    words=st.lists(st.text("ab &<>'\"é", min_size=1).map(lambda each: f"x{each}x"), min_size=1),
    elements=st.lists(st.sampled_from(EMPTY), max_size=3),
    is_broken=st.booleans(),
)
def test_a_page_in_xml_is_read_as_the_same_page_in_html(tmp_path, words, elements, is_broken):
    import html as standard

    paragraphs = "".join(f"<p>{standard.escape(each)}</p>" for each in words)
    empty = [f"<{each}></{each.split()[0]}>" for each in elements]
    (expected,) = texts(tmp_path / "a.html", "".join(empty) + paragraphs)
    inner = "".join(f"<{each}/>" for each in elements)
    page = f"{XHTML}<body>{inner}{paragraphs}" + "</body></html>" * (not is_broken)
    assert texts(tmp_path / "b.html", page) == [expected]


def test_notes_and_authors_of_quotations_are_no_navigation(tmp_path):
    page = (
        "<blockquote>To be<footer>- Hamlet</footer></blockquote><footer>Imprint</footer>"
        "<aside role='doc-footnote'>a note</aside><aside>More pages</aside>"
    )
    assert texts(tmp_path / "a.html", page) == ["To be\n- Hamlet\n\na note\n"]
