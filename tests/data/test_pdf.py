import pytest

from src.data import pdf
from src.data.text_files import Unreadable
from tests.data.pdf_writer import write_pdf
from tests.data.reading import lines_of, read_with_report, texts, write


def test_lines_and_pages_are_in_order(tmp_path):
    pages = [["Call me Ishmael.", "Some years (ago)"], ["never mind", "how long"]]
    expected = "Call me Ishmael.\nSome years (ago)\nnever mind\nhow long\n"
    assert texts(tmp_path / "a.pdf", write_pdf(pages)) == [expected]


@pytest.mark.parametrize(
    ("numbers", "removed"),
    [
        (["1", "2", "3"], True),
        (["Page 4 of 9", "Page 5 of 9", "Page 6 of 9"], True),
        (["- 17 -", "- 18 -", "- 19 -"], True),
        (["1984", "1066", "3"], False),
    ],
)
@pytest.mark.parametrize("is_first", [True, False])
def test_page_numbers_are_removed_and_counted(tmp_path, numbers, removed, is_first):
    words = [["one", "in", "1999"], ["two"], ["three"]]
    pages = [[n, *w] if is_first else [*w, n] for n, w in zip(numbers, words, strict=True)]
    write(tmp_path / "a.pdf", write_pdf(pages))
    (found,), report = read_with_report(tmp_path / "a.pdf")
    kept = words if removed else pages
    assert found.split("\n")[:-1] == [line for page in kept for line in page]
    assert ("page numbers of PDFs in 1 place (" in lines_of(report.removed)) == removed
    (found,) = texts(tmp_path / "a.pdf", clean=False)
    assert found.split("\n")[:-1] == [line for page in pages for line in page]


@pytest.mark.parametrize(
    ("lines", "expected"),
    [
        (["the light-", "house stood"], "the lighthouse stood\n"),
        (["the well-", "known and well-known"], "the well-known and well-known\n"),
        (["Anglo-", "Saxon"], "Anglo-\nSaxon\n"),
        (["from 1914-", "1918"], "from 1914-\n1918\n"),
        (["he said -", "and left"], "he said -\nand left\n"),
    ],
)
def test_hyphenated_words_are_joined(tmp_path, lines, expected):
    write(tmp_path / "a.pdf", write_pdf([lines]))
    (found,), report = read_with_report(tmp_path / "a.pdf")
    assert found == expected
    is_joined = "\n" not in expected[:-1]
    assert ("hyphenation of PDFs in 1 place (" in lines_of(report.removed)) == is_joined
    (found,) = texts(tmp_path / "a.pdf", clean=False)
    assert found == "\n".join(lines) + "\n"


def test_blank_lines_around_page_numbers_are_removed():
    pages = ["1\n\na\n", "2\n\nb", "3", ""]
    assert pdf._without_page_numbers(pages) == ["a\n", "b", "", ""]


def test_a_word_may_go_on_on_the_next_page(tmp_path):
    pages = [["a light-", "1"], ["house", "2"]]
    assert texts(tmp_path / "a.pdf", write_pdf(pages)) == ["a lighthouse\n"]


def test_pages_without_text_are_counted(tmp_path):
    write(tmp_path / "a.pdf", write_pdf([["words"], [], []]))
    found, report = read_with_report(tmp_path / "a.pdf")
    assert found == ["words\n"]
    assert "2 pages of PDFs without text" in lines_of(report.skipped)


def test_encrypted_scanned_and_damaged_pdfs_are_refused(tmp_path):
    for content, problem in (
        (write_pdf([["x"]], is_encrypted=True), "encrypted: save it without a password"),
        (write_pdf([[], []]), r"a PDF without text, such as scanned pages: .* \(OCR\) first"),
        (b"%PDF-1.4\n1 0 obj\n", "damaged: "),
    ):
        with pytest.raises(Unreadable, match=rf"a\.pdf: {problem}"):
            texts(tmp_path / "a.pdf", content)


def test_a_pdf_has_a_limit(tmp_path, monkeypatch):
    monkeypatch.setattr(pdf, "MAX_WHOLE_TEXT", 10)
    with pytest.raises(Unreadable, match="more than 10 characters, the limit of this format"):
        texts(tmp_path / "a.pdf", write_pdf([["some words"], ["more words"]]))
