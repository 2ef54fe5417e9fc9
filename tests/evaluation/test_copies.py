"""Copies of the training text in samples: found, placed, bounded."""

import json

from src.evaluation import copies
from src.evaluation.copies import find_copies
from src.evaluation.report import write_report
from src.evaluation.run_log import read_run
from src.training import train_from_config
from tests.evaluation.test_html import Whole


def rewrite(run, entries):
    path = run.folder / "metrics.jsonl"
    path.write_text("".join(json.dumps(entry) + "\n" for entry in entries), encoding="utf-8")
    return run.folder


def text_of(folder, documents=None):
    return Whole(write_report(folder, documents).read_text(encoding="utf-8"))


def test_copies_are_found_with_their_place(run):
    folder = rewrite(
        run,
        [
            {"step": 1, "sample": "zz Call me Ishmael. zz"},
            {"step": 2, "sample": "12345"},
            {"step": 3, "sample": "to sea. Call"},
        ],
    )
    documents = ["first", "He said: Call me Ishmael. Some", "I went to sea.", " Call me. Call me "]
    one, two = find_copies(read_run(folder), documents)
    assert (one.step, one.span, one.document, one.offset) == (1, " Call me Ishmael. ", 2, 8)
    assert (one.before, one.after, one.occurrences) == ("He said:", "Some", 1)
    # Not across documents, though the sample goes on as the next one does.
    assert (two.span, two.document, two.offset) == ("to sea.", 3, 7)
    page = text_of(folder, documents)
    marked = [tag for tag, _ in page.elements if tag == "mark"]
    assert len(marked) == 4
    assert "document 2, at character 8" in page.text
    assert "in 4 documents" in page.text


def test_a_span_that_stands_in_many_places_says_so(run):
    folder = rewrite(run, [{"step": 1, "sample": "the whale"}])
    text = text_of(folder, ["a the whale", "the whale the whale" + " and more" * 20]).text
    assert "document 1, at character 2, and 2 more" in text
    long = "x" * 70
    around = text_of(folder, [f"{long}the whale{long}"]).text
    assert f"…{'x' * 60}the whale{'x' * 60}…" in around


def test_the_prompt_is_not_held_against_a_sample(tiny_run):
    run = train_from_config(tiny_run(model_seed="the ship", eval_interval=4, sample_tokens=4))
    assert all(text.startswith("the ship") for _, text in read_run(run.folder).history.samples)
    copies = find_copies(read_run(run.folder), ["the ship"])
    assert len(copies) == len(read_run(run.folder).history.samples)
    assert not any(copy.sample.startswith("the ship") for copy in copies)


def test_what_is_compared_is_bounded(run, monkeypatch):
    monkeypatch.setattr("src.evaluation.copies.MAX_COMPARED_TEXT", 12)
    folder = rewrite(run, [{"step": step, "sample": "abc def ghi"} for step in range(15)])
    documents = ["abc xyz", "def ghi jkl", "abc def ghi"]
    copies = find_copies(read_run(folder), documents)
    assert [copy.step for copy in copies] == list(range(5, 15))
    assert {copy.span for copy in copies} == {"def g"}
    assert "the first 12 characters in" in text_of(folder, documents).text


def test_overlapping_places_are_counted(run):
    (copy,) = find_copies(read_run(rewrite(run, [{"step": 1, "sample": "aba"}])), ["ababa, aba"])
    assert (copy.span, copy.occurrences) == ("aba", 3)


def test_the_note_counts_the_samples_that_there_are(run):
    for count, words in [(1, "the last sample (its"), (3, "each of the last 3 samples (its")]:
        entries = [{"step": step, "sample": "whale"} for step in range(count)]
        assert words in text_of(rewrite(run, entries), ["the whale"]).text


def test_the_places_of_a_span_are_counted_up_to_a_limit():
    for span, text, count in (("ab", "abcab", 2), ("aa", "aaaa", 3), ("aba", "ababa b aba", 3)):
        assert copies._occurrences(span, text) == count
    # Every place is one: without the limit, each find would compare the whole span.
    assert copies._occurrences("a" * 2000, "a" * 1_000_000) == copies._MAX_OCCURRENCES
    assert copies._occurrences("ab", "ab" * 50_000) == copies._MAX_OCCURRENCES
