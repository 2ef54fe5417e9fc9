"""An open file of tensors, whose header is read at once."""

from __future__ import annotations

from abc import ABC, abstractmethod
from pathlib import Path
from typing import Self

from ..errors import AGI2Error
from ..utils import open_file


class ModelFile(ABC):
    """An open file, as a context manager; a subclass reads its header.

    Args:
        path: the file.

    Raises:
        AGI2Error: if it is missing, is not a regular file, or its header is invalid.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        try:
            self._file = open_file(path)
        except FileNotFoundError as error:
            raise AGI2Error(f"{path}: no such file") from error
        except (OSError, ValueError) as error:  # the latter for a NUL in the name
            raise self._unreadable(error) from error
        try:
            self._read_header()
        except OSError as error:
            self.close()
            raise self._unreadable(error) from error
        except BaseException:
            self.close()
            raise

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Close the file; loaded tensors remain valid."""
        self._file.close()

    @abstractmethod
    def _read_header(self) -> None:
        """Read the header of the open file."""

    def _unreadable(self, error: Exception) -> AGI2Error:
        return AGI2Error(f"{self.path} cannot be read: {getattr(error, 'strerror', None) or error}")
