"""Files of tensors: a file whose header cannot be read is closed."""

import pytest

from src.errors import AGI2Error
from src.formats.model_file import ModelFile


class Failing(ModelFile):
    def __init__(self, path, error, opened):
        self.error, self.opened = error, opened
        super().__init__(path)

    def _read_header(self):
        self.opened.append(self._file)
        raise self.error


@pytest.mark.parametrize(
    ("error", "message"),
    [
        (OSError(5, "Input/output error"), "file cannot be read: Input/output error$"),
        (AGI2Error("damaged"), "^damaged$"),
    ],
)
def test_a_file_whose_header_fails_is_closed(error, message, tmp_path):
    path, opened = tmp_path / "file", []
    path.touch()
    with pytest.raises(AGI2Error, match=message):
        Failing(path, error, opened)
    assert opened[0].closed
