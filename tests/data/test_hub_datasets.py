"""Datasets of Hugging Face: on a hub in memory, and saved on disk by `datasets`."""

import importlib
import json

import pytest
from fsspec.implementations.memory import MemoryFileSystem

from src.data.documents import ReadOptions, ReadReport
from src.data.hub_datasets import is_dataset, skipped_names
from src.data.readers import iterate_documents
from src.errors import AGI2Error
from tests.data.document_corpus import arrow_stream, json_lines, parquet, plain
from tests.data.reading import lines_of, read_with_report, write


class Hub(MemoryFileSystem):
    """A hub in memory."""

    protocol = "hf"
    store: dict = {}  # noqa: RUF012
    pseudo_dirs = [""]  # noqa: RUF012

    @classmethod
    def _strip_protocol(cls, path):
        return super()._strip_protocol(path.replace("hf:", "memory:"))


registry = importlib.import_module("fsspec.registry")  # whose name in the package is a mapping


@pytest.fixture
def hub(monkeypatch):
    monkeypatch.setitem(registry._registry, "hf", Hub)
    Hub.store.clear()
    Hub.pseudo_dirs[:] = [""]
    return Hub()


def read(name, **options):
    report = ReadReport()
    found = list(iterate_documents(name, ReadOptions(**options), report))
    return [each.text for each in found], lines_of(report.sources[0].skipped)


def add(hub, files, name="someone/stories"):
    for path, content in files.items():
        hub.pipe(f"/datasets/{name}/{path}", content)


SHARDS = {
    "README.md": plain(["About the stories."]),
    "LICENSE": b"MIT",
    ".gitattributes": b"*.parquet lfs",
    "stories.py": b"import datasets",
    "dataset_infos.json": b'{"text": "not a story"}',
    "extra.csv": b"text\nextra\n",
    "data/train-00000-of-00002.parquet": parquet(["one", "two"]),
    "data/train-00001-of-00002.parquet": parquet(["three"]),
    "data/test-00000-of-00001.parquet": parquet(["test"]),
    "data/validation-00000-of-00001.parquet": parquet(["validation"]),
}


def test_a_dataset_is_its_training_split(hub):
    add(hub, SHARDS)
    found, skipped = read("hf://datasets/someone/stories")
    assert found == ["one", "two", "three"]
    assert "3 of other splits or subsets (name them to read them)" in skipped
    assert "5 that describe a dataset" in skipped
    assert read("hf://datasets/someone/stories/data/test-*")[0] == ["test"]
    assert read("hf://datasets/someone/stories/extra.csv")[0] == ["extra"]
    assert len(read("hf://datasets/someone/stories/data")[0]) == 5


@pytest.mark.parametrize("held_out", ["test.jsonl", "a_val.jsonl", "dev/a.jsonl", "Eval-1.jsonl"])
def test_files_for_tests_are_known_by_their_names(hub, held_out):
    add(hub, {"contest.jsonl": json_lines(["a"]), held_out: json_lines(["b"])})
    assert read("hf://datasets/someone/stories")[0] == ["a"]


def test_a_dataset_of_a_test_split_alone_is_read(hub):
    add(hub, {"test.jsonl": json_lines(["a"])})
    assert read("hf://datasets/someone/stories")[0] == ["a"]


def card(configs):
    import yaml

    return f"---\n{yaml.safe_dump({'configs': configs})}---\n# Stories\n".encode()


LETTERS = {f"{name}/{split}.jsonl": json_lines([f"{name} {split}"]) for name in ("a", "b")
           for split in ("train", "test")}  # fmt: skip


def subset(name, files, **more):
    return {"config_name": name, "data_files": files, **more}


@pytest.mark.parametrize(
    ("configs", "expected"),
    [
        ([subset("x", "a/*")], ["a test", "a train"]),
        ([subset("x", ["a/train.jsonl", "b/train.jsonl"])], ["a train", "b train"]),
        ([subset("x", {"train": "b/train*", "test": "b/test*"})], ["b train"]),
        ([subset("x", [{"split": "train", "path": ["a/train*"]}, {"split": "test", "path": "b"}])],
         ["a train"]),
        ([subset("x", [{"split": "all", "path": "**/train.jsonl"}])], ["a train", "b train"]),
        ([subset("x", "a/*"), subset("y", "b/train*", default=True)], ["b train"]),
        ([subset("x", "a/*"), subset("default", "b/test*")], ["b test"]),
        ([{"config_name": "x", "data_dir": "b"}], ["b test", "b train"]),
        ([{"config_name": "x"}], ["a train", "b train"]),
        ("none", ["a train", "b train"]),
    ],
)  # fmt: skip
def test_the_card_says_which_files_are_the_training_split(hub, configs, expected):
    add(hub, {**LETTERS, "README.md": card(configs)})
    assert read("hf://datasets/someone/stories")[0] == expected


@pytest.mark.parametrize("content", [b"# No front matter", b"---\n{a: [\n---\n", b"---\n- a\n---\n",
                                     b"---\nconfigs: 3\n---\n", b"\xff\xfe"])  # fmt: skip
def test_a_card_that_says_nothing_is_no_error(hub, content):
    add(hub, {**LETTERS, "README.md": content})
    assert read("hf://datasets/someone/stories")[0] == ["a train", "b train"]


def test_several_subsets_or_splits_are_named_with_what_to_write(hub):
    name = "hf://datasets/someone/stories"
    add(hub, {**LETTERS, "README.md": card([subset(each, f"{each}/*") for each in "abcdefg"])})
    with pytest.raises(AGI2Error) as caught:
        read(name)
    assert str(caught.value) == (
        f"{name}: it has 7 subsets (a, b, c, d, e, ...): name the files of one, such as {name}/a/*"
    )
    assert read(f"{name}/a/*")[0] == ["a test", "a train"]
    add(hub, {"README.md": card([subset("x", {"test": "a/test*", "dev": "b/test*"})])})
    with pytest.raises(AGI2Error, match=r"it has 2 splits and none is called train \(dev, test\)"):
        read(name)


def test_a_dataset_without_files_names_the_converted_copy(hub):
    add(hub, {"README.md": b"# Stories", "stories.py": b"import datasets"})
    with pytest.raises(AGI2Error, match=r"@refs/convert/parquet$"):
        read("hf://datasets/someone/stories")


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("hf://datasets/a/b", True),
        ("hf://datasets/a/b/", True),
        ("hf://datasets/a/b@main", True),
        ("hf://datasets/a/b@refs/convert/parquet", True),
        ("hf://datasets/a/b/c", False),
        ("hf://datasets/a/b@main/c", False),
        ("hf://datasets/a/*", False),
        ("hf://a/b", False),
        ("s3://datasets/a/b", False),
    ],
)
def test_a_dataset_is_told_from_a_file_in_it(name, expected):
    assert is_dataset(name) == expected


# Saved by `datasets`


def test_what_datasets_saves_is_read_without_the_files_about_it(tmp_path):
    state = {"_data_files": [{"filename": "data-00000-of-00001.arrow"}], "_split": "train"}
    for split in ("train", "test"):
        write(tmp_path / split / "data-00000-of-00001.arrow", arrow_stream([f"{split} text"]))
        write(tmp_path / split / "state.json", json.dumps(state))
        write(tmp_path / split / "dataset_info.json", '{"description": "about"}')
    write(tmp_path / "dataset_dict.json", '{"splits": ["train", "test"]}')
    found, report = read_with_report(tmp_path)
    assert found == ["train text"]
    assert "1 of other splits or subsets" in lines_of(report.skipped)
    found, report = read_with_report(tmp_path / "test")
    assert found == ["test text"]
    assert "2 that describe a dataset" in lines_of(report.skipped)


def test_the_library_saves_what_is_read(tmp_path):
    datasets = pytest.importorskip("datasets")
    made = datasets.Dataset.from_dict({"text": ["one", "two"], "id": [1, 2]})
    datasets.DatasetDict({"train": made, "test": made}).save_to_disk(str(tmp_path / "saved"))
    assert read_with_report(tmp_path / "saved")[0] == ["one", "two"]


def test_other_folders_have_all_their_files():
    assert skipped_names({"state.json", "dataset_info.json", "a.txt"}) == {}
    assert list(skipped_names({"dataset_dict.json", "test"})) == ["dataset_dict.json"]
