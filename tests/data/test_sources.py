import gzip
import os
import re
import socket
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from src.data import formats
from src.data import sources as module
from src.data.corpus import read_documents
from src.data.documents import ReadReport
from src.data.patterns import match_parts
from src.data.readers import iterate_documents
from src.data.sources import check_rereadable, find_sources, list_sources
from src.errors import AGI2Error

needs_pipes = pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="the system has no named pipes")


def write(path, content="text"):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return path


def names(*sources):
    return [
        path.name for source in find_sources([str(s) for s in sources]) for path in source.files
    ]


def left_out(*sources):
    found = find_sources([str(source) for source in sources])
    return [line for source in found for line in source.skipped.lines()]


def test_sources_are_strings_paths_or_lists_of_them():
    assert list_sources("a") == list_sources(Path("a")) == list_sources(["a"]) == ["a"]
    assert list_sources((Path("a"), "b")) == ["a", "b"]
    for wrong in ([5], [None, "a"], [["a"]]):
        with pytest.raises(AGI2Error, match="is not a path"):
            list_sources(wrong)


# What of a folder is the user's text.


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        (".git/notes.md", r"1 hidden \(4 B\), such as .*[.]git"),
        (".venv/lib/readme.md", "1 hidden"),
        ("._a.txt", r"1 hidden \(4 B\)"),
        (".DS_Store", "1 hidden"),
        ("deep/.ipynb_checkpoints/a.md", "1 hidden"),
        ("node_modules/package/readme.md", "1 installed packages or caches"),
        ("__pycache__/a.txt", "1 installed packages or caches"),
        ("env/lib/site-packages/a.txt", "1 installed packages or caches"),
        ("picture.png", r"1 in no format that is read \(4 B\), such as .*picture.png"),
    ],
)
def test_what_is_not_the_users_text_is_left_out_and_counted(tmp_path, name, reason):
    write(tmp_path / "texts" / "good.txt")
    write(tmp_path / "texts" / name)
    assert names(tmp_path / "texts") == ["good.txt"]
    (line,) = left_out(tmp_path / "texts")
    assert re.match(reason, line)


@pytest.mark.parametrize(
    ("name", "content", "is_read"),
    [
        ("51060", b"a text", True),
        ("1.", "caf\u00e9 \u9be8".encode() * 3000, True),
        ("latin", "caf\u00e9 ".encode("cp1252") * 9, True),
        ("wide", "text".encode("utf-16"), True),
        ("dos", "Мороз и солнце; день чудесный!".encode("cp866"), True),
        ("program", b"\x7fELF\2\1\1" + b"\0" * 9, False),
        ("noise", bytes(range(1, 256)), False),
        ("white", b" \n", False),
        ("a.bin", b"a text", False),
        ("moby.1", b"a text", True),
        ("2001.03", b"a text", True),
        ("IMG.001", b"\xff\xd8\xff" + b"\0" * 9, False),
        ("FAQ.gz", gzip.compress(b"a text"), True),
        ("ls.1.gz", gzip.compress(b".TH LS 1"), True),
        ("ls.1.xz", b"no xz data", False),
        ("Inbox", b"From a@b Mon Jan  1 10:00:00 2024\nSubject: Tea\n\nA text.\n", True),
    ],
)
def test_a_file_without_a_suffix_is_read_if_it_is_text(tmp_path, name, content, is_read):
    write(tmp_path / "texts" / "good.txt")
    (tmp_path / "texts" / name).write_bytes(content)
    assert (name in names(tmp_path / "texts")) == is_read
    report = ReadReport()
    list(iterate_documents(tmp_path / "texts", report=report))
    notes = [line for line in report.sources[0].notes.lines() if "without a suffix" in line]
    skipped = [line for line in report.sources[0].skipped.lines() if "in no format" in line]
    assert (len(notes), len(skipped)) == ((1, 0) if is_read else (0, 1))


@pytest.mark.parametrize(
    ("name", "is_read"),
    [
        ("README.Debian", True),
        ("LICENSE.MIT", True),
        ("changelog.old.gz", True),
        ("license.exe", False),
        ("app.log.1", True),
        ("app.log.2024-05-01.gz", True),
        ("libm.so.6", False),
        ("readings.odd", False),
    ],
)
def test_a_file_that_is_named_as_text_usually_is_is_read_with_any_suffix(tmp_path, name, is_read):
    content = b"\x7fELF\0\0" if name.endswith(".exe") else b"a text"
    write(tmp_path / "texts" / "good.txt")
    write(tmp_path / "texts" / name, gzip.compress(content) if ".gz" in name else content)
    assert (name in names(tmp_path / "texts")) == is_read


def test_the_reason_why_a_file_of_a_folder_cannot_be_read_is_in_the_report(tmp_path, monkeypatch):
    real = formats.importlib.util.find_spec
    monkeypatch.setattr(
        formats.importlib.util,
        "find_spec",
        lambda name: None if name == "pypdfium2" else real(name),
    )
    write(tmp_path / "good.txt")
    write(tmp_path / "a.pdf", b"%PDF-1.4")
    (line,) = left_out(tmp_path)
    assert "uv sync --extra documents" in line


def test_a_file_without_a_suffix_that_cannot_be_opened_is_counted(tmp_path, monkeypatch):
    def refuse(path):
        raise PermissionError(13, "Permission denied", str(path))

    write(tmp_path / "good.txt")
    write(tmp_path / "secret")
    real = formats.open_file
    monkeypatch.setattr(
        formats, "open_file", lambda path: refuse(path) if path.name == "secret" else real(path)
    )
    assert names(tmp_path) == ["good.txt"]


def test_a_virtual_environment_of_any_name_is_left_out(tmp_path):
    write(tmp_path / "good.txt")
    write(tmp_path / "mine" / "pyvenv.cfg")
    write(tmp_path / "mine" / "lib" / "readme.md")
    assert names(tmp_path) == ["good.txt"]


@pytest.mark.parametrize("beside", ["metrics.jsonl", "model.safetensors", "checkpoints/step-1/a"])
@pytest.mark.parametrize("source", [".", "**/*.txt", "**", "trained/*/*.txt"])
def test_the_output_of_runs_is_not_read(tmp_path, monkeypatch, beside, source):
    monkeypatch.chdir(tmp_path)
    write(tmp_path / "a.txt")
    write(tmp_path / "trained/notes/a.txt", "a note of mine")
    write(tmp_path / "trained/m" / beside)
    write(tmp_path / "trained/m/config.toml")
    write(tmp_path / "trained/m/sample.txt")
    assert "sample.txt" not in names(source)
    assert any("output of runs" in line for line in left_out(source))
    assert "a.txt" in names(source)


def test_a_hidden_or_run_folder_that_is_named_is_read(tmp_path):
    write(tmp_path / ".notes/config.toml")
    write(tmp_path / ".notes/metrics.jsonl")
    write(tmp_path / ".notes/a.txt")
    assert names(tmp_path / ".notes") == ["a.txt", "metrics.jsonl"]


def test_bad_files_among_good_ones_are_left_out_with_reason_and_size(tmp_path):
    for number in range(100):
        write(tmp_path / f"{number:02}.txt")
    write(tmp_path / "empty.txt", "")
    write(tmp_path / "blank.md", " \n")
    write(tmp_path / "binary.txt", b"PK\0\0")
    (tmp_path / "dangling.txt").symlink_to("nowhere")
    assert len(names(tmp_path)) == 100
    assert sorted(line.split(",")[0] for line in left_out(tmp_path)) == [
        "1 broken link",
        "1 not text (4 B)",
        "2 empty (2 B)",
    ]


def test_a_folder_of_bad_files_alone_is_refused_with_the_first(tmp_path):
    write(tmp_path / "a.txt", "")
    write(tmp_path / "b.txt", b"\0")
    with pytest.raises(AGI2Error, match=r"no file of it can be read; .*a\.txt: the file is empty"):
        find_sources(str(tmp_path))


@needs_pipes
def test_special_files_are_left_out_of_folders_and_devices_refused(tmp_path):
    write(tmp_path / "good.txt")
    os.mkfifo(tmp_path / "pipe.txt")
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(str(tmp_path / "socket.txt"))
        assert names(tmp_path) == ["good.txt"]
        assert len(left_out(tmp_path)) == 2
        for path in (tmp_path / "socket.txt", "/dev/null", "/dev/zero"):
            with pytest.raises(AGI2Error, match="neither a file nor a pipe"):
                find_sources(str(path))


def test_an_unreadable_folder_is_left_out(tmp_path, monkeypatch):
    write(tmp_path / "good.txt")
    write(tmp_path / "locked/a.txt")
    scandir = os.scandir

    def refuse(folder):
        if Path(folder).name == "locked":
            raise PermissionError(13, "Permission denied")
        return scandir(folder)

    monkeypatch.setattr(os, "scandir", refuse)
    assert names(tmp_path) == ["good.txt"]
    (line,) = left_out(tmp_path)
    assert line.startswith("1 that cannot be read, such as")
    assert line.endswith("locked: Permission denied")


# One file, many names.


def test_a_file_of_many_names_is_read_once(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    write(tmp_path / "a.txt")
    (tmp_path / "b.txt").symlink_to("a.txt")
    os.link("a.txt", "c.txt")
    assert names("a.txt", "./a.txt", tmp_path / "a.txt", ".", "*.txt") == ["a.txt"]
    lines = left_out("a.txt", "./a.txt", ".")
    assert lines[0] == "1 read already (4 B), such as a.txt, which is a.txt"
    assert lines[1].startswith("3 read already (12 B), such as a.txt, which is a.txt")


def test_links_to_folders_are_followed_once_and_never_for_ever(tmp_path):
    write(tmp_path / "texts/a/1.txt")
    write(tmp_path / "elsewhere/2.txt")
    for number in range(3):
        (tmp_path / f"texts/loop{number}").symlink_to(".")
        (tmp_path / f"texts/a/up{number}").symlink_to("..")
    (tmp_path / "texts/0").symlink_to("a")
    (tmp_path / "texts/more").symlink_to(tmp_path / "elsewhere")
    (tmp_path / "texts/self").symlink_to("self")
    found = [path for source in find_sources(str(tmp_path / "texts")) for path in source.files]
    assert [str(path.relative_to(tmp_path / "texts")) for path in found] == [
        "a/1.txt",
        "more/2.txt",
    ]
    assert names(tmp_path / "texts/**/*.txt") == ["1.txt", "2.txt"]


# Names that look like something else.


def test_a_folder_with_brackets_or_stars_in_its_name_is_that_folder(tmp_path):
    for folder in ("old [1]", "a*b", "what?"):
        write(tmp_path / folder / f"{len(folder)}.txt")
        write(tmp_path / folder / "deep/x.md")
        assert names(tmp_path / folder) == [f"{len(folder)}.txt", "x.md"]
        assert names(tmp_path / folder / "*.txt") == [f"{len(folder)}.txt"]
        assert names(tmp_path / folder / "**/*.md") == ["x.md"]


def test_folders_that_a_pattern_matches_are_counted(tmp_path):
    write(tmp_path / "a.txt")
    write(tmp_path / "b/c.txt")
    assert names(tmp_path / "*") == ["a.txt"]
    assert left_out(tmp_path / "*")[0].startswith("1 not a file (name the folder, or use **)")


def test_a_pattern_may_match_bad_files_too(tmp_path):
    write(tmp_path / "a.txt")
    write(tmp_path / "b.txt", "")
    assert names(tmp_path / "*.txt") == ["a.txt"]
    assert left_out(tmp_path / "*.txt")[0].startswith("1 empty")


@given(
    path=st.lists(st.sampled_from("ab"), min_size=1, max_size=5),
    pattern=st.lists(st.sampled_from(["a", "b", "*", "**"]), min_size=1, max_size=5),
)
def test_patterns_match_as_their_definition_says(path, pattern):
    def matches(names, parts):
        if not parts:
            return not names
        if parts[0] == "**":
            return any(matches(names[i:], parts[1:]) for i in range(len(names) + 1))
        return bool(names) and parts[0] in ("*", names[0]) and matches(names[1:], parts[1:])

    assert match_parts(tuple(path), pattern) == matches(path, pattern)


def test_a_name_that_is_not_utf8_is_read(tmp_path):
    folder = os.fsencode(tmp_path)
    try:
        with open(folder + b"/caf\xe9.txt", "wb") as file:
            file.write(b"text")
    except OSError:
        pytest.skip("the file system takes no such name")
    assert list(read_documents(str(tmp_path))) == ["text"]
    assert list(read_documents(os.fsdecode(folder + b"/caf\xe9.txt"))) == ["text"]


def test_a_user_without_a_home_gets_one_line(tmp_path, monkeypatch):
    monkeypatch.setattr(os.path, "expanduser", lambda name: name)
    with pytest.raises(AGI2Error, match=r"~/a\.txt: no such file"):
        find_sources("~/a.txt")


def test_a_working_folder_that_is_gone_gets_one_line(monkeypatch):
    def gone():
        raise FileNotFoundError

    monkeypatch.setattr(os, "getcwd", gone)
    with pytest.raises(AGI2Error, match="no such file; paths are relative to a folder that is"):
        find_sources("a.txt")


def test_a_file_that_vanishes_is_not_counted(tmp_path):
    assert module.file_size(tmp_path / "gone.txt") == 0
    assert module._identity(tmp_path / "gone.txt") == str(tmp_path / "gone.txt")


# Pipes.


@needs_pipes
def test_finding_a_pipe_takes_nothing_from_it(tmp_path):
    reader, writer = os.pipe()
    text = "word " * 10_000  # more than the head that is looked at, less than a pipe holds
    os.write(writer, text.encode())
    os.close(writer)
    source = f"/dev/fd/{reader}"
    find_sources(source)
    find_sources(source)
    assert list(read_documents(source)) == [text]
    with pytest.raises(AGI2Error, match="the file is empty"):
        list(read_documents(source))
    os.close(reader)


@needs_pipes
def test_what_reads_twice_refuses_pipes_by_name(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    write(tmp_path / "a.txt")
    check_rereadable(str(tmp_path / "a.txt"), "the run reads it, too")
    for name in (str(tmp_path / "pipe"), "-"):
        with pytest.raises(AGI2Error, match=f"{name}: a pipe can be read only once, and the run"):
            check_rereadable(name, "the run reads it, too")


READ_STDIN = """
import sys
from src.data.corpus import read_documents
from src.errors import AGI2Error
try:
    print([len(text) for text in read_documents(sys.argv[1:])])
except AGI2Error as error:
    print(error)
"""


@pytest.mark.parametrize("stdin", ["pipe", "file", "nothing", "closed"])
@pytest.mark.parametrize("name", ["-", "/dev/stdin"])
def test_standard_input_is_a_source(tmp_path, stdin, name):
    text = "word " * 20_000
    options = {"input": text}
    if stdin == "file":
        options = {"stdin": open(write(tmp_path / "a.txt", text))}  # noqa: SIM115
    elif stdin != "pipe":
        options = {"stdin": subprocess.DEVNULL}
    command = [sys.executable, "-c", READ_STDIN, name]
    if stdin == "closed":
        command = ["sh", "-c", 'exec "$@" <&-', "sh", *command]
    done = subprocess.run(
        command, cwd=Path(__file__).parents[2], capture_output=True, text=True, **options
    )
    problems = {
        "nothing": "neither a file nor a pipe",
        "closed": "cannot be read|a broken symbolic link",
    }
    expected = problems.get(stdin, rf"^\[{len(text)}\]$")
    assert re.search(expected, done.stdout), done
    assert not done.stderr


def test_a_link_to_nothing_is_refused(tmp_path):
    (tmp_path / "a.txt").symlink_to("none.txt")
    with pytest.raises(AGI2Error, match="a broken symbolic link"):
        find_sources(str(tmp_path / "a.txt"))
