"""Whatever the bytes of a file are: documents or one clear error."""

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from src.errors import AGI2Error
from tests.data.document_corpus import COMPRESSIONS, FORMATS, PARAGRAPHS, tar_of, zip_of
from tests.data.reading import documents

TEXT = PARAGRAPHS["fr"]
FILES = {f"a{suffix}": write(TEXT) for suffix, write in FORMATS.items()}
FILES |= {f"a.txt{ending}": compress(TEXT[0].encode()) for ending, compress in COMPRESSIONS.items()}
FILES["a.zip"] = zip_of({"a.txt": TEXT[0].encode(), "b/b.csv": FILES["a.csv"]})
FILES["a.tar"] = tar_of({"a.txt": TEXT[0].encode(), "b/b.csv": FILES["a.csv"]})

edits = st.lists(
    st.tuples(
        st.floats(0, 1, exclude_max=True),
        st.sampled_from(["change", "delete", "insert", "repeat", "cut"]),
        st.binary(min_size=1, max_size=9) | st.sampled_from([b"\0" * 9, b"\xff" * 9, b"<", b'"']),
    ),
    min_size=1,
    max_size=6,
)


def mutated(content, changes):
    for place, kind, data in changes:
        at = int(place * len(content))
        rest = {
            "change": data + content[at + len(data) :],
            "delete": content[at + len(data) * 9 :],
            "insert": data + content[at:],
            "repeat": content[max(0, at - 99) : at] * 2 + content[at:],
            "cut": b"",
        }[kind]
        content = content[:at] + rest
    return content


def read_or_refuse(path, content):
    problem = None
    try:
        found = documents(path, content)
    except AGI2Error as error:
        problem = error
    if problem is not None:
        assert len(problem.args) == 1
        assert path.name in str(problem)
        return
    assert found
    for document in found:
        document.text.encode()  # no lone surrogate


@pytest.mark.parametrize("name", sorted(FILES))
@settings(
    deadline=None, max_examples=6, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(changes=edits)
def test_a_mutated_file_gives_documents_or_a_line(tmp_path, name, changes):
    read_or_refuse(tmp_path / name, mutated(FILES[name], changes))


@settings(
    deadline=None, max_examples=25, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(name=st.sampled_from(sorted(FILES)), content=st.binary(max_size=300))
def test_any_bytes_give_documents_or_a_line(tmp_path, name, content):
    for beginning in (b"", FILES[name][:8]):
        read_or_refuse(tmp_path / name, beginning + content)


@pytest.mark.parametrize("name", ["a.docx", "a.odt", "a.epub", "a.zip"])
@settings(
    deadline=None, max_examples=6, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(changes=edits, member=st.integers(0, 9))
def test_a_mutated_member_gives_documents_or_a_line(tmp_path, name, changes, member):
    import io
    import zipfile

    with zipfile.ZipFile(io.BytesIO(FILES[name])) as archive:
        members = {each: archive.read(each) for each in archive.namelist()}
    chosen = sorted(members)[member % len(members)]
    members[chosen] = mutated(members[chosen], changes)
    read_or_refuse(tmp_path / name, zip_of(members))
