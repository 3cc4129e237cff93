"""The rows of an array file that lies elsewhere, each read when it is asked for."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from numpy.lib import format as npy
from numpy.typing import NDArray

from onnxviz.errors import ImageError
from onnxviz.images.files import File, Opened

__all__ = ["Rows"]


class Rows:
    """An array (N, …) in a ``.npy`` file, of which nothing is in memory.

    Raises:
        ImageError: not such a file, one of objects, or one that is shorter than its header says.
    """

    def __init__(self, file: File) -> None:
        opened = Opened(file)
        readers = {(1, 0): npy.read_array_header_1_0, (2, 0): npy.read_array_header_2_0}
        try:
            version = npy.read_magic(opened)
            self.shape, fortran, self.dtype = readers[version](opened)
        except ImageError:
            raise
        except Exception as error:  # NumPy's readers raise whatever a broken header makes them stumble over
            raise ImageError(f"not a NumPy array file ({error or type(error).__name__})") from error
        self._file, self._start = file, opened.tell()
        self.ndim = len(self.shape)
        self._row = math.prod(self.shape[1:]) * self.dtype.itemsize
        if self.dtype.hasobject or not self.shape:
            raise ImageError("an array of objects or a single number, not of images")
        if fortran and self.ndim > 1:
            raise ImageError("its rows are not stored one after another (Fortran order); save it in C order")
        if self._start + self.shape[0] * self._row > file.size:
            raise ImageError(
                f"{file.size:,} bytes, fewer than the {self.shape[0]:,} rows that its header says take"
            )

    def __len__(self) -> int:
        return int(self.shape[0])

    def __getitem__(self, index: int) -> NDArray[Any]:
        data = self._file.read(self._start + index * self._row, self._row)
        return np.frombuffer(data, self.dtype).reshape(self.shape[1:])
