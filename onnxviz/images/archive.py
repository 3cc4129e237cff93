"""Archives of images, read member by member in place: nothing is unpacked to disk."""

from __future__ import annotations

import tarfile
import threading
import weakref
import zipfile
from collections import OrderedDict
from pathlib import Path
from typing import Protocol

from onnxviz.errors import ImageError

__all__ = ["SUFFIXES", "Archive", "open_archive"]

SUFFIXES = frozenset({".zip", ".tar", ".tgz", ".tbz2", ".txz", ".gz", ".bz2", ".xz", ".zst"})
"""File name endings that promise an archive, in lower case. What it is, its content decides."""

LARGEST_MEMBER = 1 << 30  # bytes; no picture file is larger, a forged member may be
KEPT_MEMBERS = 64  # of a compressed tar: more than any number of decoding threads runs ahead
KEPT_BYTES = 1 << 27


class Archive(Protocol):
    """The files in an archive."""

    names: tuple[str, ...]
    """Member names as stored, in the order of the archive; folders, links and devices left out."""

    sequential: bool
    """Reading is quick only in the archive's own order."""

    def facts(self, index: int) -> tuple[int, ...]:
        """Size of member ``index`` in bytes, and in a zip its CRC-32."""

    def read(self, index: int) -> bytes:
        """The content of member ``index``; may be called from several threads.

        Raises:
            ImageError: the member is damaged, encrypted or too large. The message does not name it.
        """


def open_archive(path: Path) -> Archive | None:
    """Open a zip or tar file, compressed or not, by its content; None if it is neither.

    Raises:
        ImageError: the archive is damaged.
    """
    try:
        if zipfile.is_zipfile(path):
            return _Zip(path)
        if tarfile.is_tarfile(path):
            return _Tar(path)
    except ImageError:
        raise
    except Exception as error:  # the readers raise whatever their decompressors do
        raise ImageError(f"{path}: damaged archive ({error or type(error).__name__})") from error
    return None


class _Zip:
    sequential = False

    def __init__(self, path: Path) -> None:
        self._zip = zipfile.ZipFile(path)
        self._members = [member for member in self._zip.infolist() if not member.is_dir()]
        self._lock = threading.Lock()
        self.names = tuple(member.filename for member in self._members)

    def facts(self, index: int) -> tuple[int, ...]:
        return self._members[index].file_size, self._members[index].CRC

    def read(self, index: int) -> bytes:
        member = self._members[index]
        _check_size(member.file_size)
        try:
            with self._lock:
                return self._zip.read(member)
        except Exception as error:
            raise ImageError(f"damaged or encrypted in the archive ({error})") from error


class _Tar:
    """A tar file. In a compressed one, going back means decompressing from the start again.

    So members that are passed over on the way forward are kept for a while: threads that ask for neighbours
    in a slightly different order then cost nothing.
    """

    def __init__(self, path: Path) -> None:
        self._tar = tarfile.open(path)  # noqa: SIM115 (stays open as long as this object lives)
        weakref.finalize(self, self._tar.close)
        self._members = [member for member in self._tar if member.isreg()]
        self._lock = threading.Lock()
        self._next = 0
        self._kept: OrderedDict[int, bytes] = OrderedDict()
        self.names = tuple(member.name for member in self._members)
        self.sequential = not _is_plain_tar(path)

    def facts(self, index: int) -> tuple[int, ...]:
        return (self._members[index].size,)

    def read(self, index: int) -> bytes:
        _check_size(self._members[index].size)
        try:
            with self._lock:
                return self._forward(index) if self.sequential else self._extract(index)
        except Exception as error:
            raise ImageError(f"damaged in the archive ({error or type(error).__name__})") from error

    def _forward(self, index: int) -> bytes:
        if index in self._kept:
            return self._kept[index]
        if index >= self._next:
            for passed in range(max(self._next, index - KEPT_MEMBERS // 2), index):
                if self._members[passed].size <= KEPT_BYTES // KEPT_MEMBERS:
                    self._keep(passed, self._extract(passed))
        data = self._extract(index)
        self._next = index + 1
        return data

    def _keep(self, index: int, data: bytes) -> None:
        self._kept[index] = data
        while len(self._kept) > KEPT_MEMBERS:
            self._kept.popitem(last=False)

    def _extract(self, index: int) -> bytes:
        file = self._tar.extractfile(self._members[index])
        if file is None:
            raise ImageError("not a regular file")
        with file:
            return file.read()


def _is_plain_tar(path: Path) -> bool:
    try:
        with tarfile.open(path, "r:"):
            return True
    except tarfile.ReadError:
        return False


def _check_size(size: int) -> None:
    if size > LARGEST_MEMBER:
        raise ImageError(f"{size:,} bytes, more than the {LARGEST_MEMBER:,} that an image may have")
