"""Models of other projects, and how a message says to import them."""

from src.command_line import command_line
from src.foreign_models import import_advice, is_gguf


def test_a_gguf_file_is_known_by_its_name_or_its_first_bytes(tmp_path):
    (tmp_path / "folder.gguf").mkdir()
    (tmp_path / "blob").write_bytes(b"GGUF")
    (tmp_path / "text").write_bytes(b"GGU")
    names = {"folder.gguf": False, "blob": True, "text": False, "gone.GGUF": True, "gone": False}
    assert {name: is_gguf(tmp_path / name) for name in names} == names
    assert not is_gguf("a\0b")


def test_a_model_that_can_be_imported_has_advice(tmp_path):
    folder = tmp_path / "a model"
    folder.mkdir()
    assert import_advice(folder) == ""
    (folder / "config.json").touch()
    command = command_line(f"import '{folder}' NEW_FOLDER")
    assert import_advice(folder) == f"make it one: {command}"
    assert import_advice(tmp_path / "gone.gguf") == ""
