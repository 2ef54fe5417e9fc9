"""The user's own function: `preprocess = "module:function"`."""

import json
import logging
import sys
from pathlib import Path

import pytest

from src.config_loader import load_config
from src.data import build, format_readers, preprocess, text
from src.data.build import prepare_corpus
from src.data.corpus import check_configured, check_sources
from src.data.corpus_options import CorpusOptions
from src.data.decoded import DecodedDocuments
from src.data.documents import ReadOptions, ReadReport
from src.data.preprocess import load_preprocessor
from src.data.readers import iterate_documents
from src.errors import AGI2Error
from tests.data.reading import write
from tests.data.test_build import fitted

SOURCE = """
import re
import sys

async def later(text): return text
def two(text, flag): return text
class Keep:
    @staticmethod
    def all(text): return text
value = 3

def keep(text):
    if "drop" in text:
        return None
    if "split" in text:
        return text.split()
    return re.sub("a", "b", text)

def parts(text):
    yield text
    yield "  "

def fails(text):
    if "bad" in text:
        raise ValueError("too bad")
    return text

def leaves(text): sys.exit(3)
def number(text): return 3
def half(text): return "\\ud800"
def several(text): return ["a", 3]
def nothing(text): return None
"""


@pytest.fixture(autouse=True)
def modules_as_before():
    """Forget what a test imports."""
    path, names = list(sys.path), set(sys.modules)
    yield
    sys.path[:] = path
    for name in sys.modules.keys() - names:
        del sys.modules[name]


@pytest.fixture
def module(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    return write(tmp_path / "clean.py", SOURCE)


def apply(function, *texts):
    lines = write(Path("a.jsonl"), "\n".join(map(json.dumps, texts)))
    report = ReadReport()
    found = iterate_documents(str(lines), ReadOptions(preprocess=function), report)
    return [each.text for each in found], report


def test_documents_are_dropped_changed_and_split_and_counted(module, caplog):
    caplog.set_level(logging.INFO, "agi2")
    found, report = apply("clean:keep", "cat", "drop it", "split me up", "dog")
    assert found == ["cbt", "split", "me", "up", "dog"]
    for what, line in (("changed", 1), ("dropped", 2), ("split", 3)):
        said = f"1 {what} by preprocess clean:keep, such as a.jsonl:{line}"
        assert f"in a.jsonl: {said}" in caplog.messages
    source = report.sources[0]
    assert (source.documents, source.dropped) == (5, 1)
    assert source.characters == sum(map(len, found))


@pytest.mark.parametrize(
    ("function", "expected"),
    [
        ("clean:parts", ["one", "two"]),
        ("clean:Keep.all", ["one", "two"]),
        ("clean.py:parts", ["one", "two"]),
        ("textwrap:dedent", ["one", "two"]),
        ("builtins:ascii", ["'one'", "'two'"]),
        ("builtins:max", ["o", "w"]),
    ],
)
def test_a_function_may_be_of_any_module(module, function, expected):
    assert apply(function, "one", "two")[0] == expected


@pytest.mark.parametrize(
    ("function", "message"),
    [
        ("clean", r"^preprocess clean is not module:function, such as clean:keep"),
        ("clean:missing", "clean:missing: missing does not exist in this module"),
        ("clean:value", "clean:value: value is not a function"),
        ("clean:Keep", "clean:Keep: Keep is not a function"),
        ("clean:later", "later is an async function"),
        ("clean:two", "two cannot be called with one argument, the text: missing.*'flag'"),
        ("klean:keep", "there is no klean, neither a file in the folder of the TOML file or in"),
        ("clean.deep:keep", r"there is no clean\.deep, neither"),
        ("other.py:keep", r"there is no other\.py, neither"),
        ("a b:keep", "there is no a b, neither"),
    ],
)
def test_a_function_that_is_not_there_is_named_before_the_text_is_read(module, function, message):
    write(module.parent / "a.txt", "text")
    with pytest.raises(AGI2Error, match=message):
        check_sources("a.txt", ReadOptions(preprocess=function))


@pytest.mark.parametrize(
    ("function", "message"),
    [
        ("clean:fails", r"a\.jsonl:2: preprocess clean:fails failed at clean\.py:25: ValueError: "),
        ("clean:leaves", r"a\.jsonl:1: .*clean:leaves failed at clean\.py:28: SystemExit: 3"),
        ("operator:neg", r"a\.jsonl:1: preprocess operator:neg failed: TypeError: bad operand"),
        ("clean:number", r"a\.jsonl:1: .*number returned int, not a str, a list of str, or None"),
        ("clean:several", r"a\.jsonl:1: preprocess clean:several returned int, not a str"),
        ("clean:half", r"a\.jsonl:1: .*half returned text with half a surrogate pair"),
        ("clean:nothing", "clean:nothing dropped all of 2 documents: it has to return"),
    ],
)
def test_a_function_that_fails_is_named_with_the_document(module, function, message):
    with pytest.raises(AGI2Error, match=message) as caught:
        apply(function, "fine", "bad")
    assert "\n" not in str(caught.value)


def test_memory_that_is_used_up_is_no_error_of_the_function(module, monkeypatch):
    write(module, "def big(text): raise MemoryError")
    with pytest.raises(MemoryError):
        apply("clean:big", "a")
    write(module, "raise MemoryError")
    with pytest.raises(MemoryError):
        apply("clean:big", "a")


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ("def keep(text:", r"clean\.py:1: not Python: "),
        ("x = '\0'", r"clean\.py.*: not Python: .*null byte"),
        ("import klingon", r"its module fails when it is imported at clean\.py:1: ModuleNotFound"),
        ("exit_ = __import__('sys').exit(3)", r"imported at clean\.py:1: SystemExit: 3"),
    ],
)
def test_a_module_that_fails_is_named_with_the_line(module, source, message):
    write(module, source)
    with pytest.raises(AGI2Error, match=message):
        load_preprocessor("clean:keep")


def test_an_installed_package_that_fails_is_named(tmp_path, monkeypatch):
    write(tmp_path / "site" / "broken_package" / "__init__.py", "1 / 0")
    write(tmp_path / "site" / "broken_package" / "clean.py", "")
    monkeypatch.syspath_prepend(str(tmp_path / "site"))
    with pytest.raises(AGI2Error, match=r"imported at __init__\.py:1: ZeroDivisionError"):
        load_preprocessor("broken_package.clean:keep")


def test_large_documents_are_complete_and_have_a_limit(module, monkeypatch):
    for each in (format_readers, text):
        monkeypatch.setattr(each, "MAX_CHARACTERS", 100)
    write(module, "def keep(text):\n    assert len(text) in (5, 500)\n    return text * 2")
    write(module.parent / "b.txt", "word " * 100)
    options = ReadOptions(preprocess="clean:keep")
    found = list(iterate_documents("b.txt", options))
    assert "".join(each.text for each in found) == "word " * 200
    assert [each.continues for each in found] == [False] + [True] * (len(found) - 1)
    assert max(len(each.text) for each in found) <= 100
    monkeypatch.setattr(preprocess, "MAX_PREPROCESSED", 400)
    with pytest.raises(AGI2Error, match=r"b\.txt: more than 400 characters, the limit of a doc"):
        list(iterate_documents("b.txt", options))
    write(module.parent / "c.txt", "five5")
    assert [each.text for each in iterate_documents("c.txt", options)] == ["five5five5"]


# Modules


def test_another_module_of_the_same_name_is_said(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    write(tmp_path / "json.py", "def keep(text): return text")
    with pytest.raises(AGI2Error, match="another module is called json: rename the file"):
        load_preprocessor("json:keep")


def test_the_program_that_runs_is_no_module(module, monkeypatch):
    monkeypatch.setattr(sys.modules["__main__"], "__file__", str(module), raising=False)
    with pytest.raises(AGI2Error, match="is the program that runs: put the function into another"):
        load_preprocessor("clean:keep")


def test_a_file_that_cannot_be_read_is_named(module, monkeypatch):
    def refuse(self):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(type(module), "read_bytes", refuse)
    with pytest.raises(AGI2Error, match=r"clean\.py cannot be read: Permission denied"):
        load_preprocessor("clean:keep")


def test_a_change_of_any_file_of_a_module_is_noticed(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    package = tmp_path / "cleaning"
    write(package / "__init__.py", "")
    write(package / "main.py", "from . import words\nfrom .deep.more import last\n"
          "import numpy, yaml\ndef keep(text):\n    import helper\n"
          "    return words.fix(text) + helper.end() + last")  # fmt: skip
    write(package / "words.py", "def fix(text): return text + ' 1'")
    write(package / "deep" / "__init__.py", "")
    write(package / "deep" / "more.py", "last = ' 3'")
    write(tmp_path / "helper.py", "def end(): return ' 2'")
    write(tmp_path / "unrelated.py", "")
    first = load_preprocessor("cleaning.main:keep")
    assert first.function("a") == "a 1 2 3"
    assert sorted(path.name for path in first.module.files) == [
        "__init__.py", "__init__.py", "helper.py", "main.py", "more.py", "words.py",
    ]  # fmt: skip
    assert [name for name, _ in first.identity[1][1]] == ["numpy", "PyYAML"]
    write(tmp_path / "unrelated.py", "changed = 1")
    assert load_preprocessor("cleaning.main:keep").function is first.function
    for number, (name, source) in enumerate({
        "helper.py": "def end(): return ' 4'",
        "cleaning/words.py": "def fix(text): return text + ' 5'",
        "cleaning/deep/more.py": "last = ' 6'",
    }.items()):  # fmt: skip
        write(tmp_path / name, source)
        after = load_preprocessor("cleaning.main:keep")
        assert after.identity != first.identity
        assert after.function("a") == ["a 1 4 3", "a 5 4 3", "a 5 4 6"][number]


def test_of_an_installed_module_its_package_is_known_or_nothing():
    assert {path.name for path in load_preprocessor("textwrap:dedent").module.files} == {
        "textwrap.py"
    }
    compiled = load_preprocessor("builtins:ascii")
    assert compiled.module.files == ()
    assert compiled.identity is None


# In a configuration


def test_a_module_is_found_beside_the_file_of_the_configuration(tmp_path, monkeypatch):
    write(tmp_path / "project" / "clean.py", SOURCE)
    write(tmp_path / "elsewhere" / "a.txt", "a text")
    toml = write(tmp_path / "project" / "my.toml",
                 'sources = "a.txt"\nmodel_name = "m"\npreprocess = "clean:keep"')  # fmt: skip
    monkeypatch.chdir(tmp_path / "elsewhere")
    config = load_config(toml, "training")
    assert config.preprocess == f"{tmp_path / 'project' / 'clean.py'}:keep"
    check_configured(config)
    assert load_preprocessor(config.preprocess).name == "clean.py:keep"
    config = load_config(toml, "training", ["preprocess=klean:keep"])
    assert config.preprocess == "klean:keep"
    with pytest.raises(AGI2Error, match="there is no klean"):
        check_configured(config)
    with pytest.raises(AGI2Error, match=r"--set preprocess: preprocess 'keep' is not module:func"):
        load_config(toml, "training", ["preprocess=keep"])
    toml.write_text(toml.read_text().replace("clean:keep", "keep"))
    with pytest.raises(AGI2Error, match=r"my\.toml:3: preprocess 'keep' is not module:function"):
        load_config(toml, "training")


def prepare(folder, function="clean:keep"):
    options = CorpusOptions([str(folder / "a.jsonl")], ReadOptions(preprocess=function))
    return prepare_corpus(options, fitted()[0], str(folder / "cache"))


def test_the_source_of_the_function_is_part_of_the_key_of_the_tokens(module, monkeypatch):
    lines = [json.dumps(f"{number} apples and pears") for number in range(50)]
    write(module.parent / "a.jsonl", "\n".join(lines))
    first = prepare(module.parent)
    with monkeypatch.context() as patch:
        patch.setattr(build, "iterate_documents", None)
        assert prepare(module.parent).folder == first.folder
    write(module, SOURCE.replace('"b"', '"c"'))
    second = prepare(module.parent)
    assert second.folder != first.folder
    assert "cpples" in DecodedDocuments(second.train, second.tokenizer)[0]
    assert prepare(module.parent, "clean:parts").folder not in (first.folder, second.folder)


def test_a_function_whose_source_is_unknown_reads_the_text_each_time(module, caplog):
    caplog.set_level(logging.INFO, "agi2")
    write(module.parent / "a.jsonl", "\n".join(json.dumps(f"{n} apples") for n in range(50)))
    first = prepare(module.parent, "builtins:ascii")
    assert "the text is read again by each run: builtins:ascii has no source" in caplog.messages
    assert prepare(module.parent, "builtins:ascii").folder == first.folder


def test_a_function_that_changes_while_the_text_is_read_is_an_error(module, monkeypatch):
    write(module.parent / "a.jsonl", "\n".join(json.dumps(f"{n} apples") for n in range(50)))
    read = build.iterate_documents

    def changing(*arguments, **options):
        yield from read(*arguments, **options)
        write(module, SOURCE + "\n# changed")

    monkeypatch.setattr(build, "iterate_documents", changing)
    with pytest.raises(AGI2Error, match=r"clean\.py has changed while it was read"):
        prepare(module.parent)


def test_documents_that_are_dropped_or_split_stay_on_their_side(module):
    lines = {
        "a": ["drop it", "split one two", "plain"],
        "b": ["drop this", "split up now", "valid"],
    }
    for name, texts in lines.items():
        write(module.parent / f"{name}.jsonl", "\n".join(map(json.dumps, texts)))
    options = CorpusOptions(
        ["a.jsonl"], ReadOptions(preprocess="clean:keep"), val_sources=["b.jsonl"]
    )
    corpus = prepare_corpus(options, fitted()[0], str(module.parent / "cache"))
    assert list(DecodedDocuments(corpus.train, corpus.tokenizer)) == ["one", "two", "plbin"]
    assert list(DecodedDocuments(corpus.val, corpus.tokenizer)) == ["split", "up", "now", "vblid"]
