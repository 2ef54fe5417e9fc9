import os

import pytest

from src.cli.main import main
from tests.cli.commands import write_run


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """The configuration file of a model that is trained."""
    file = write_run(tmp_path_factory.mktemp("cli"))
    with pytest.raises(SystemExit) as leaving:
        main(["train", str(file), "--quiet"])
    assert leaving.value.code == 0
    return file


@pytest.fixture
def held_out(tmp_path):
    path = tmp_path / "held_out.txt"
    path.write_text("the dog sat on hills and rivers\nwhile a cat ran. " * 9, encoding="utf-8")
    return path


@pytest.fixture
def pipe(monkeypatch):
    """Make standard input a pipe with these bytes."""
    ends = []

    def make(data):
        if ends:
            os.dup2(ends[0], 0)
        else:
            ends.append(os.dup(0))
        read, write = os.pipe()
        os.dup2(read, 0)
        os.close(read)
        os.write(write, data)  # below the capacity of a pipe
        os.close(write)

    yield make
    if ends:
        os.dup2(ends[0], 0)
        os.close(ends[0])
