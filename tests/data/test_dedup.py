import hashlib
import itertools
import random
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from src.data import dedup, sketches
from src.data.dedup import (
    HashSet,
    ShingleSampler,
    cluster_near_duplicates,
    containment,
    limit,
    passages,
)
from src.data.sketches import BINS, SKETCH
from src.data.splits import split_documents
from src.nn import shingle_library
from tests.bounds import by_chance

TEXT = "".join(random.Random(0).choices("abcdefghijklmnopqrstuvwxyz ", k=3000))


@pytest.fixture(params=["C", "C, portable SHA-256", "NumPy"])
def native(request, monkeypatch):
    """Shingles are hashed in C, if it was compiled, or in NumPy."""
    if request.param == "NumPy":
        monkeypatch.setattr(shingle_library, "LIBRARY", None)
        yield
    elif shingle_library.LIBRARY is None:
        pytest.skip("no C compiler at installation")
    else:
        shingle_library.LIBRARY.agi2_use_sha_instructions("portable" not in request.param)
        yield
        shingle_library.LIBRARY.agi2_use_sha_instructions(True)


def sample(documents, pieces=1, batch=2**20):
    """Sample the shingles of documents, each in some pieces, of which so many are added at once."""
    sampler = ShingleSampler()
    parts = []
    for text in documents:
        size = len(text) // pieces + 1
        parts += [(text[at : at + size], at == 0) for at in range(0, size * pieces, size)]
    for at in range(0, len(parts), batch):
        texts, is_new = zip(*parts[at : at + batch], strict=True)
        data = [text.encode("utf-8", "replace") for text in texts]
        sizes, _ = sampler.add(b"".join(data), np.array([*map(len, texts)]), np.array(is_new))
        assert sizes.tolist() == [*map(len, data)]
    return limit(sampler.finish(), sum(map(len, documents)))


def shingles(text, rate=1):
    """The shingles of a text at a fixed rate."""
    found = sample([text])
    found = found.select(found.hashes <= (2**64 - 1) // rate)
    return replace(found, rate=rate)


def cluster(documents, threshold):
    return cluster_near_duplicates(sample(documents), len(documents), threshold).tolist()


def contained(text, other):
    found = sample([*text, *other])
    is_other = found.documents >= len(text)
    return containment(found.hashes[~is_other], found.hashes[is_other])


def plain(text):
    """A text's letters, and the runs of 24 of them with their first and last place."""
    kept = [(at, c) for at, c in enumerate(text) if c.isalnum() or ord(c) >= 0x3100]
    runs = [kept[i : i + 24] for i in range(len(kept) - 23)]
    return [
        ("".join(c.lower() if c.isascii() else c for _, c in run), run[0][0], run[-1][0] + 1)
        for run in runs
    ]


@pytest.mark.usefixtures("native")
@settings(deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    documents=st.lists(st.text(st.sampled_from("aB \n.é鯨🐳7"), max_size=120), max_size=4),
    batch=st.sampled_from([1, 2, 100]),
    pieces=st.integers(1, 3),
)
def test_shingles_are_all_runs_of_letters_wherever_batches_and_pieces_end(documents, batch, pieces):
    found = sample(documents, pieces, batch)
    expected = [(index, *each) for index, text in enumerate(documents) for each in plain(text)]
    places = np.stack([found.documents, found.starts, found.ends], 1).tolist()
    assert places == [[index, start, end] for index, _, start, end in expected]
    by_run = {}
    for (_, run, _, _), value in zip(expected, found.hashes.tolist(), strict=True):
        assert by_run.setdefault(run, value) == value
    assert len(set(by_run.values())) == len(by_run)


@pytest.mark.skipif(shingle_library.LIBRARY is None, reason="no C compiler at installation")
@settings(deadline=None, max_examples=40)
@given(
    texts=st.lists(st.text(st.sampled_from("aBzZ[@`{ \n.é鯨🐳7\0"), max_size=300), min_size=3),
    is_new=st.lists(st.booleans(), min_size=3, max_size=3),
    rate=st.integers(1, 4),
    cut=st.integers(1, 2),
    has_minima=st.booleans(),
)
def test_documents_are_scanned_in_c_as_in_numpy(texts, is_new, rate, cut, has_minima):
    is_new = [True, *is_new, *[True] * len(texts)][: len(texts)]
    scanners = shingle_library.DocumentScanner(dedup._alphanumeric_table()), dedup._Scanner()
    whole = b""
    for first, last in ((0, cut), (cut, len(texts))):
        text = "".join(texts[first:last]).encode()
        characters = np.array([*map(len, texts[first:last])])
        documents = np.cumsum(is_new[first:last])
        every = []
        for scanner in scanners:
            shape = (1 + documents[-1], BINS)
            minima = np.full(shape, 2**64 - 1, np.uint64) if has_minima else None
            sizes, digests, found = scanner.scan(
                text, characters, documents, dedup._threshold(rate), minima
            )
            assert [each.dtype for each in found] == [np.uint64, np.int64, np.int64, np.int64]
            found = [sizes, digests, *found] + [minima] * has_minima
            every.append([each.tolist() for each in found])
        assert every[0] == every[1]
        assert every[0][0] == [len(each.encode()) for each in texts[first:last]]
        for each, begins, digest in zip(
            texts[first:last], is_new[first:last], every[0][1], strict=True
        ):
            whole = each.encode() if begins else whole + each.encode()
            assert bytes(digest) == hashlib.sha256(whole).digest()[:16]


@pytest.mark.skipif(shingle_library.LIBRARY is None, reason="no C compiler at installation")
def test_sketches_in_c_are_those_in_numpy():
    draw = np.random.default_rng(0)
    minima = draw.integers(0, 2**64, (40, BINS), np.uint64)
    minima[draw.random(minima.shape) < np.linspace(0, 1, 40)[:, None]] = 2**64 - 1
    minima[:, 7] &= np.uint64(2**64 - 256)  # whose low bits are 0
    ours = shingle_library.sketches(minima, SKETCH)
    assert ours.tobytes() == sketches._sketches(minima, SKETCH).tobytes()


@pytest.mark.usefixtures("native")
def test_halves_of_surrogate_pairs_and_nul_do_no_harm():
    assert len(shingles("a" * 23 + "\0" + "\ud800" + "a" * 22).hashes) == 0
    assert len(shingles("a" * 24 + "\0" + "a" * 24).hashes) == 2
    assert len(shingles("").hashes) == 0


def test_a_sample_is_the_same_in_every_text():
    every, some = shingles(TEXT), shingles(TEXT, 10)
    assert set(some.hashes.tolist()) <= set(every.hashes.tolist())
    share = len(some.hashes) / len(every.hashes)
    assert share == pytest.approx(0.1, rel=0, abs=by_chance(0.1, len(every.hashes)))
    inside = shingles("another beginning " + TEXT[500:900], 10)
    # But for the few that begin in the words before it.
    assert len(set(inside.hashes.tolist()) - set(some.hashes.tolist())) <= 10


def test_hashes_are_uniform():
    hashes = shingles(TEXT * 1).hashes
    bits = np.unpackbits(hashes.view(np.uint8)).reshape(len(hashes), 64).mean(0)
    assert (np.abs(bits - 0.5) <= by_chance(0.5, len(hashes))).all()


def test_documents_are_grouped_by_what_they_share():
    draw = random.Random(1)
    texts = ["".join(draw.choices("abcdefgh ", k=1000)) for _ in range(4)]
    documents = [
        texts[0],
        texts[1],
        texts[0].upper().replace(" ", "\n"),
        texts[2],
        texts[1][:400] + texts[3],
        texts[2][:100] + "".join(draw.choices("xyz", k=900)),
        "too short",
    ]
    expected = [0, 1, 0, 3, 1, 5, 6]
    assert cluster(documents, 0.2) == expected
    assert cluster(documents, 0.05) == [0, 1, 0, 3, 1, 3, 6]
    assert cluster(["short", "texts"], 0.2) == [0, 1]
    a, b, c = (text[:300] for text in texts[:3])
    assert cluster([a, b + c, c, a + b], 0.2) == [0, 0, 0, 0]  # linked by the last one
    assert cluster([], 0.2) == []


@pytest.mark.parametrize("pieces", [1, 9])
def test_a_large_corpus_is_sampled_at_the_rate_of_its_size(monkeypatch, pieces):
    documents = [TEXT, "".join(random.Random(2).choices("abcd", k=3000)), TEXT[::-1], TEXT + "end"]
    every = sample(documents)
    monkeypatch.setattr(dedup, "_MAX_SHINGLES", 1000)
    found = sample(documents, pieces, 2)
    assert found.rate == 13
    chosen = every.hashes <= (2**64 - 1) // 13
    for name in ("hashes", "documents", "starts", "ends"):
        assert getattr(found, name).tolist() == getattr(every, name)[chosen].tolist()
    assert cluster(documents, 0.2) == [0, 1, 2, 0]
    assert contained([TEXT[:2000]], documents[1:]) == 1
    assert contained([TEXT[:2000]], documents[1:3]) == 0


@given(seed=st.integers(0, 10**6), count=st.integers(2, 12))
@settings(max_examples=20)
def test_clusters_are_the_connected_components(seed, count):
    draw = random.Random(seed)
    passages_ = ["".join(draw.choices("abcdefgh", k=60)) for _ in range(count)]
    chosen = [draw.sample(range(count), k=draw.choice([1, 1, 2])) for _ in range(count)]
    expected = list(range(count))
    for _ in range(count):
        for i, j in itertools.permutations(range(count), 2):
            if set(chosen[i]) & set(chosen[j]):
                expected[j] = min(expected[i], expected[j])
    assert cluster(["! ".join(passages_[k] for k in each) for each in chosen], 0.2) == expected


def test_of_a_sample_documents_must_share_several_shingles():
    draw = random.Random(5)
    header = "".join(draw.choices("abcdefgh", k=200))
    documents = [header + "".join(draw.choices("abcdefgh", k=1000)) for _ in range(5)]
    every = sample(documents)
    for rate, count in ((1, 1), (30, 5)):
        found = every.select(every.hashes <= (2**64 - 1) // rate)
        found = replace(found, rate=rate)
        assert len(set(cluster_near_duplicates(found, 5, 0.15).tolist())) == count
    assert cluster([documents[0], documents[0] + "end"], 0.5) == [0, 0]


def test_a_text_that_repeats_itself_does_not_fill_the_memory(monkeypatch):
    monkeypatch.setattr(dedup, "_MAX_SHINGLES", 1000)
    for letter in "abcdefgh":
        assert len(sample([letter * 20_000, TEXT], 20, 1)) <= 2000


def test_the_shared_part_is_counted():
    assert contained(["short"], ["short"]) is None
    assert contained([TEXT], []) == 0
    count, half = len(plain(TEXT)), TEXT[: len(TEXT) // 2]
    assert contained([TEXT, "x" * 40], [TEXT]) == count / (count + 40 - 23)
    assert contained([TEXT], [half]) == len(plain(half)) / count


@given(start=st.integers(0, 2000), length=st.integers(0, 900), rate=st.sampled_from([1, 5]))
def test_the_passages_of_a_text_are_found_where_they_are(start, length, rate):
    hashes = shingles(TEXT[start : start + length], rate).hashes
    found = list(passages(shingles(TEXT, rate), HashSet(hashes)))
    assert bool(found) == bool(len(hashes))
    assert all(start <= first < last <= start + length for first, last in found)
    position, rest = 0, []
    for first, last in [*found, (len(TEXT), len(TEXT))]:
        rest.append(TEXT[position:first])
        position = last
    assert not np.isin(np.concatenate([shingles(text, rate).hashes for text in rest]), hashes).any()


def test_a_passage_that_was_edited_is_one_passage():
    edited = TEXT[:1000] + "another word" + TEXT[1010:2000]
    found = list(passages(shingles(TEXT), HashSet(shingles(edited[500:1500]).hashes)))
    assert len(found) == 1


NUMBERS = st.lists(st.integers(0, 2**64 - 1) | st.integers(0, 20), max_size=20)


@given(additions=st.lists(NUMBERS, max_size=12), asked=NUMBERS)
def test_a_hash_set_contains_what_was_added(additions, asked):
    found, known = HashSet(), set()
    for each in additions:
        found.add(np.array(each, np.uint64))
        known.update(each)
        mask = found.contains(np.array(asked + each, np.uint64))
        assert mask.tolist() == [number in known for number in asked + each]


def test_the_work_of_splitting_related_documents_grows_with_their_length_alone(monkeypatch):
    """The elements that are sorted, as a measure of it: 16 times as many if it were quadratic."""
    sort, letter = np.sort, TEXT[:900]
    totals = []
    for count in (50, 200):
        sizes = []
        monkeypatch.setattr(np, "sort", lambda a, sizes=sizes: sizes.append(len(a)) or sort(a))
        draw = random.Random(1)
        documents = [letter + "".join(draw.choices("abcdefgh", k=120)) for _ in range(count)]
        train, held_out = split_documents(documents, 0.1)
        assert train
        assert held_out
        totals.append(sum(sizes))
    assert totals[1] < 4 * 2 * totals[0]  # of n log(n), 4 * log(200) / log(50) = 5.4
