"""Weights in files of their own beside the model: mapped into memory, never read as a whole.

A model must not read files of its choice, so the rules are onnx's own: the location is relative and stays in the
model's folder, also after links are followed; it is a regular file, neither a symbolic link nor one of several
hard links.
"""

from __future__ import annotations

import os
import stat
from pathlib import Path

import numpy as np

__all__ = ["ExternalFiles"]


class ExternalFiles:
    """The files in a model's folder that hold its weights; each is mapped once."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._mapped: dict[str, np.ndarray] = {}

    def read(self, location: str, offset: int, length: int) -> np.ndarray:
        """Bytes (length,) uint8 of a file, a read-only view of the mapped file.

        Raises:
            ValueError: the location is not one that a model may read, or the file is too short; says why.
            OSError: the file cannot be opened.
        """
        data = self.whole(location)
        if offset < 0 or offset + length > len(data):
            raise ValueError(
                f"bytes {offset} to {offset + length} are outside the file, which has {len(data)}"
            )
        return data[offset : offset + length]

    def whole(self, location: str) -> np.ndarray:
        """All bytes of a file, as of `read`."""
        if location not in self._mapped:
            self._mapped[location] = self._map(location)
        return self._mapped[location]

    def _map(self, location: str) -> np.ndarray:
        relative = Path(os.path.normpath(location))
        if not location or relative.is_absolute() or relative.drive or ".." in relative.parts:
            raise ValueError("the location must be a path inside the model's folder")
        path = self.folder / relative
        real = Path(os.path.realpath(path, strict=True))
        if path.is_symlink() or not real.is_relative_to(self.folder):
            raise ValueError("it is reached through a symbolic link")
        if not path.is_file():  # before it is opened: opening a pipe would wait
            raise ValueError("it is not a regular file")
        with path.open("rb") as file:
            status = os.fstat(file.fileno())
            if not stat.S_ISREG(status.st_mode) or status.st_nlink > 1:
                raise ValueError("it is not a file with a single name: hard links are not followed")
            if status.st_size == 0:  # which cannot be mapped
                return np.zeros(0, np.uint8)
            return np.asarray(np.memmap(file, np.uint8, mode="r"))
