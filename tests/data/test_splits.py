import random
import re
from collections import Counter

import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from src.data.splits import split_documents

quick = settings(deadline=None, max_examples=40)

documents_of_all_kinds = st.lists(st.text("abc ", min_size=1, max_size=12), max_size=60)
fractions = st.floats(0, 0.99)


@quick
@given(documents=documents_of_all_kinds, fraction=fractions, seed=st.integers(0, 9))
def test_no_text_is_lost_and_none_is_on_both_sides(documents, fraction, seed):
    train, held_out = split_documents(documents, fraction, seed)
    if len(set(documents)) >= 20 or fraction == 0:
        assert Counter(train) + Counter(held_out) == Counter(documents)
        assert not set(train) & set(held_out)
    else:
        # Each document is cut once: what was before the cut is trained on, the rest is not.
        assert sum(map(len, train + held_out)) == sum(map(len, documents))
        cuts = [int(len(document) * (1 - fraction)) for document in documents]
        pairs = list(zip(documents, cuts, strict=True))
        assert train == [document[:cut] for document, cut in pairs if cut]
        assert held_out == [document[cut:] for document, cut in pairs if cut < len(document)]


@quick
@given(
    lengths=st.lists(st.integers(1, 30), min_size=20, max_size=80),
    fraction=st.floats(0.05, 0.5),
    seed=st.integers(0, 99),
)
def test_the_share_held_out_is_about_the_one_asked_for(lengths, fraction, seed):
    # Documents that differ, since they begin with their own character.
    documents = [chr(0x4E00 + i) * length for i, length in enumerate(lengths)]
    wanted = fraction * sum(lengths)
    assume(wanted >= max(lengths))
    _, held_out = split_documents(documents, fraction, seed)
    assert abs(sum(map(len, held_out)) - wanted) <= max(lengths) / 2


def test_one_document_is_split_at_its_end():
    text = "".join(chr(0x4E00 + i) for i in range(1000))
    assert split_documents([text], 0.1) == ([text[:900]], [text[900:]])


def test_nothing_is_held_out_of_nothing_or_when_not_asked_for():
    assert split_documents(["a", "b"], 0) == (["a", "b"], [])
    assert split_documents([], 0.5) == ([], [])


def test_the_seed_chooses_the_documents_held_out():
    documents = [f"document {i}" for i in range(100)]
    splits = [split_documents(documents, 0.2, seed) for seed in (1, 1, 2)]
    assert splits[0] == splits[1] != splits[2]
    assert splits[0][0] == [d for d in documents if d in splits[0][0]]


def test_copies_of_a_document_stay_on_one_side():
    documents = [f"document {i % 25}" for i in range(100)]
    train, held_out = split_documents(documents, 0.2)
    assert set(Counter(train + held_out).values()) == {4}
    assert len(held_out) == 20
    assert not set(train) & set(held_out)


def test_many_long_documents_are_each_cut_when_none_is_small_enough_to_hold_out():
    documents = [f"{number:02d}" * 500 for number in range(21)]
    train, held_out = split_documents(documents, 0.02)
    assert len(train) == len(held_out) == 21
    assert [a + b for a, b in zip(train, held_out, strict=True)] == documents
    assert sum(map(len, held_out)) == 21 * 20


# Text that documents share.


def grams(texts):
    """Every run of 24 letters or digits of some texts, as plain strings."""
    found = []
    for text in texts:
        letters = "".join(filter(str.isalnum, text)).lower()
        found += [letters[i : i + 24] for i in range(len(letters) - 23)]
    return found


def leak(train, held_out):
    """The part of the held-out text's runs of letters that are in the training text."""
    wanted, there = grams(held_out), set(grams(train))
    return sum(gram in there for gram in wanted) / max(1, len(wanted))


def words(draw, count, script="latin"):
    """Unrelated text: words that are drawn from far more than there are places."""
    if script == "han":
        return "".join(chr(draw.randrange(0x4E00, 0x9FA0)) for _ in range(3 * count))
    alphabet = "acgt" if script == "dna" else "abcdefghijklmnopqrstuvwxyz"
    made = ("".join(draw.choices(alphabet, k=draw.randint(2, 9))) for _ in range(count))
    return ("" if script == "dna" else " ").join(made)


def edited(draw, text, every=60):
    """A text with a character changed in each stretch of `every`, and wrapped anew."""
    letters = list(text)
    for at in range(every // 2, len(letters), every):
        letters[at] = draw.choice("xyz")
    return "".join(letters).replace(" ", "\n", 7)


@settings(deadline=None, max_examples=25)
@given(
    seed=st.integers(0, 10**6),
    unrelated=st.sampled_from([0, 1, 5, 40]),
    plants=st.lists(
        st.sampled_from(["longer", "edited", "contained", "copy", "tail"]), min_size=1, max_size=4
    ),
    script=st.sampled_from(["latin", "han", "dna"]),
)
def test_held_out_text_is_not_in_training_whatever_drafts_there_are(
    seed, unrelated, plants, script
):
    draw = random.Random(seed)
    documents = [words(draw, draw.randint(100, 500), script) for _ in range(unrelated + 1)]
    for plant in plants:
        text = draw.choice(documents)
        documents.append(
            {
                "longer": text + " " + words(draw, len(text) // 5, script),
                "edited": edited(draw, text),
                "contained": words(draw, 80, script) + text + words(draw, 80, script),
                "copy": text,
                "tail": words(draw, 100, script) + text[-len(text) // 3 :],
            }[plant]
        )
    draw.shuffle(documents)
    train, held_out = split_documents(documents, 0.1, seed)
    assert sum(map(len, train + held_out)) == sum(map(len, documents))
    assert train
    assert held_out
    assert leak(train, held_out) <= 0.02


def test_a_draft_and_its_longer_draft(caplog):
    draw = random.Random(1)
    draft = words(draw, 2000)
    longer = draft + "\n\n" + words(draw, 2000)
    with caplog.at_level("INFO", "agi2"):
        train, held_out = split_documents([draft, longer], 0.1)
    assert train[0] == draft  # its end is in the middle of the longer one
    assert held_out == [longer[len(train[1]) :]]
    assert "is in the training text" not in caplog.text


def test_the_share_that_cannot_be_kept_apart_is_reported(caplog):
    text = "Call me Ishmael. Some years ago, never mind how long precisely. " * 100
    train, held_out = split_documents([text], 0.1)
    assert train[0] + held_out[0] == text
    assert "100.0 % of the held-out text is in the training text" in caplog.text
    assert [record.levelname for record in caplog.records] == ["WARNING"]


def test_a_book_that_is_in_its_file_twice_is_held_out_of_both_places():
    book = words(random.Random(2), 3000)
    train, held_out = split_documents([f"{book}\n\n{book}"], 0.1)
    assert leak(train, held_out) == 0
    assert len("".join(held_out)) < 0.5 * len(book)


@pytest.mark.parametrize("share", [0.3, 0.6])
def test_documents_that_begin_with_the_same_form_are_held_out_one_by_one(share):
    draw = random.Random(3)
    form = words(draw, 60)
    own = round(60 * (1 - share) / share)
    documents = [f"{form} {words(draw, own)}" for _ in range(100)]
    train, held_out = split_documents(documents, 0.1)
    assert len(held_out) > 3
    assert len(train) + len(held_out) == 100


def test_many_drafts_of_one_text_are_split_within(caplog):
    draw = random.Random(4)
    text = words(draw, 1500)
    documents = [edited(draw, text, every=200 + number) for number in range(30)]
    train, held_out = split_documents(documents, 0.1)
    assert leak(train, held_out) <= 0.02
    assert 0.03 < len("".join(held_out)) / len("".join(documents)) < 0.4


def test_a_share_other_than_the_one_asked_for_is_said(caplog):
    text = words(random.Random(7), 9000).split()
    split_documents([" ".join(text[at : at + 300]) for at in range(0, 8700, 50)], 0.1)
    assert re.search(r"1\d\.\d % of the text is held out rather than 10 %, as doc", caplog.text)
    caplog.clear()
    split_documents([" ".join(text[at : at + 50]) for at in range(0, 9000, 50)], 0.1)
    assert "rather than" not in caplog.text


def test_the_documents_on_one_side_are_counted_once_whatever_was_tried(caplog):
    draw = random.Random(6)
    form, documents = words(draw, 20), []
    for base in (words(draw, 60) for _ in range(20)):
        documents += [f"{form} {base} {words(draw, own)}" for own in (5, 30, 90)]
    with caplog.at_level("INFO", "agi2"):
        split_documents(documents, 0.1)
    assert caplog.text.count("kept on one side") <= 1  # three thresholds are tried


def test_unrelated_documents_are_split_as_if_nothing_had_been_compared(caplog):
    draw = random.Random(5)
    documents = [words(draw, 200) for _ in range(50)]
    with caplog.at_level("INFO", "agi2"):
        _, held_out = split_documents(documents, 0.1, seed=7)
    import torch

    order = torch.randperm(50, generator=torch.Generator().manual_seed(7)).tolist()
    wanted, chosen = 0.1 * sum(map(len, documents)), set()
    for index in order:
        if len(documents[index]) <= 2 * wanted:
            chosen.add(index)
            wanted -= len(documents[index])
    assert held_out == [documents[index] for index in sorted(chosen)]
    assert "share text with others" not in caplog.text


def test_a_split_is_a_function_of_its_arguments():
    draw = random.Random(6)
    documents = [words(draw, 300) for _ in range(30)]
    documents += [text[:500] for text in documents[:10]]
    assert split_documents(documents, 0.2, 3) == split_documents(list(documents), 0.2, 3)
    _, held_out = split_documents(documents, 0.2, 3)
    for text in documents[:10]:
        assert (text in held_out) == (text[:500] in held_out)


def test_the_end_of_each_is_held_out_where_every_document_is_long():
    draw = random.Random(1)
    documents = ["".join(draw.choices("abcdefghij ", k=500)) for _ in range(20)]
    train, held_out = split_documents(documents, 0.01)
    assert len(train) == len(held_out) == 20
