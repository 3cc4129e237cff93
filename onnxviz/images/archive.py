"""Archives of images, read member by member in place: nothing is unpacked to disk."""

from __future__ import annotations

import struct
import tarfile
import threading
import zipfile
import zlib
from array import array
from collections import OrderedDict
from typing import Any, Protocol

from onnxviz.errors import ImageError, OnnxvizError
from onnxviz.images.files import File, Opened
from onnxviz.images.turns import Turns

__all__ = ["SUFFIXES", "Archive", "is_archive_name", "open_archive"]

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

    def release(self) -> None:
        """Let go of what is kept to read on; the next read takes longer."""


def is_archive_name(name: str) -> bool:
    """Whether a file among others is named as an archive of files (``.gz`` alone may be anything)."""
    packed = tuple(f".tar{ending}" for ending in (".gz", ".bz2", ".xz", ".zst"))
    return name.lower().endswith((".zip", ".tar", ".tgz", ".tbz2", ".txz", *packed))


def open_archive(file: File) -> Archive | None:
    """Open a zip or tar file, compressed or not, by its content; None if it is neither.

    Raises:
        ImageError: the archive is damaged, or cannot be read.
    """
    try:
        opened = Opened(file)
        if zipfile.is_zipfile(opened):
            return _Zip(file, opened)
        return _open_tar(file, opened)
    except ImageError as error:
        raise ImageError(f"{file.place}: {error}") from error
    except OnnxvizError:
        raise
    except Exception as error:  # the readers raise whatever their decompressors do
        raise ImageError(f"{file.place}: damaged archive ({error or type(error).__name__})") from error


class _Zip:
    """A zip file. A member that is stored or deflated, as nearly all are, is one read of its own."""

    _HEADER = struct.Struct("<4s22xHH")
    _SPARE = 64  # what the extra field before a member may have more than the one in the directory

    def __init__(self, file: File, opened: Opened) -> None:
        self._file = file
        self._lock = threading.Lock()
        self._whole: zipfile.ZipFile | None = None
        names = []
        # A million ZipInfo would take most of a gigabyte.
        self._numbers, self._starts, self._packed = array("Q"), array("Q"), array("Q")
        self._sizes, self._checks = array("Q"), array("Q")
        self._heads, self._methods = array("L"), array("l")
        with zipfile.ZipFile(opened) as whole:
            for number, member in enumerate(whole.infolist()):
                if member.is_dir():
                    continue
                names.append(member.filename)
                self._numbers.append(number)
                self._starts.append(member.header_offset)
                self._packed.append(member.compress_size)
                self._sizes.append(member.file_size)
                self._checks.append(member.CRC)
                self._heads.append(len(member.orig_filename.encode()) + len(member.extra) + self._SPARE)
                self._methods.append(-1 if member.flag_bits & 0x1 else member.compress_type)
        self.names = tuple(names)
        self.sequential = file.sequential

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_lock": None, "_whole": None}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state, _lock=threading.Lock())

    def facts(self, index: int) -> tuple[int, ...]:
        return self._sizes[index], self._checks[index]

    def read(self, index: int) -> bytes:
        _check_size(max(self._sizes[index], self._packed[index]))
        try:
            if self._methods[index] not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
                return self._read_slowly(index)
            return self._unpacked(index, self._body(index))
        except ImageError:
            raise
        except Exception as error:
            raise ImageError(f"damaged or encrypted in the archive ({error})") from error

    def release(self) -> None:
        with self._lock:
            self._whole = None
        self._file.release()

    def _body(self, index: int) -> bytes:
        start, packed = self._starts[index], self._packed[index]
        length = self._HEADER.size + self._heads[index] + packed
        if start + self._HEADER.size > self._file.size:
            raise ValueError("the archive ends before it")
        data = self._file.read(start, min(length, self._file.size - start))
        magic, name, extra = self._HEADER.unpack_from(data)
        if magic != b"PK\3\4":
            raise ValueError("it does not lie where the directory says")
        first = self._HEADER.size + name + extra
        body = data[first : first + packed]
        if len(body) < packed:
            body += self._file.read(start + first + len(body), packed - len(body))
        return body

    def _unpacked(self, index: int, body: bytes) -> bytes:
        size = self._sizes[index]
        if self._methods[index] == zipfile.ZIP_DEFLATED:
            body = zlib.decompressobj(-zlib.MAX_WBITS).decompress(body, size + 1)
        if len(body) != size:
            raise ValueError(f"{len(body):,} bytes or more, not {size:,}")
        if zlib.crc32(body) != self._checks[index]:
            raise ValueError("Bad CRC-32")
        return body

    def _read_slowly(self, index: int) -> bytes:
        with self._lock:
            if self._whole is None:
                self._whole = zipfile.ZipFile(Opened(self._file))
            return self._whole.read(self._whole.infolist()[self._numbers[index]])


def _open_tar(file: File, opened: Opened) -> Archive | None:
    for mode, kind in (("r:", _Tar), ("r:*", _CompressedTar)):
        opened.seek(0)
        try:
            tar: Any = tarfile.open(fileobj=opened, mode=mode)  # type: ignore[call-overload]  # noqa: SIM115
        except tarfile.TarError:
            continue
        return kind(file, tar)
    return None


class _Members:
    """Names, sizes and places of the regular files in a tar file."""

    def __init__(self, tar: Any) -> None:
        names: list[str] = []
        self.starts, self.sizes = array("Q"), array("Q")
        self.sparse: dict[int, list[tuple[int, int]]] = {}
        while (member := tar.next()) is not None:
            tar.members.clear()  # else all of them would stay in memory
            if not member.isreg():
                continue
            if member.issparse():
                self.sparse[len(names)] = list(member.sparse)
            names.append(member.name)
            self.starts.append(member.offset_data)
            self.sizes.append(member.size)
        self.names = tuple(names)

    def stored(self, index: int) -> int:
        """Bytes of a member in the archive: of a sparse one without its holes."""
        parts = self.sparse.get(index)
        return self.sizes[index] if parts is None else sum(size for _, size in parts)

    def content(self, index: int, stored: bytes) -> bytes:
        """The content of a member from its bytes in the archive."""
        if index not in self.sparse:
            return stored
        content, position = bytearray(self.sizes[index]), 0
        for start, size in self.sparse[index]:
            content[start : start + size] = stored[position : position + size]
            position += size
        return bytes(content)


class _Tar:
    """A tar file that is not compressed: each member is one read of its own."""

    def __init__(self, file: File, tar: Any) -> None:
        with tar:
            self._members = _Members(tar)
        self._file = file
        self.names, self.sequential = self._members.names, file.sequential

    def facts(self, index: int) -> tuple[int, ...]:
        return (self._members.sizes[index],)

    def read(self, index: int) -> bytes:
        _check_size(self._members.sizes[index])
        data = self._file.read(self._members.starts[index], self._members.stored(index))
        return self._members.content(index, data)

    def release(self) -> None:
        self._file.release()


class _CompressedTar:
    """A compressed tar file: going back means decompressing from the start again.

    So members that are passed over on the way forward are kept for a while: threads that ask for neighbours
    in a slightly different order then cost nothing.
    """

    sequential = True

    def __init__(self, file: File, tar: Any) -> None:
        with tar:
            self._members = _Members(tar)
        self._file = file
        self._tar: tarfile.TarFile | None = None
        self._turns = Turns()
        self._next = 0
        self._kept: OrderedDict[int, bytes] = OrderedDict()
        self.names = self._members.names

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_tar": None, "_turns": None, "_next": 0, "_kept": OrderedDict()}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state, _turns=Turns())

    def facts(self, index: int) -> tuple[int, ...]:
        return (self._members.sizes[index],)

    def read(self, index: int) -> bytes:
        _check_size(self._members.sizes[index])
        try:
            with self._turns.at(index):
                return self._forward(index)
        except ImageError:
            raise
        except Exception as error:
            raise ImageError(f"damaged in the archive ({error or type(error).__name__})") from error

    def release(self) -> None:
        with self._turns.at(0):
            self._tar, self._next = None, 0
            self._kept.clear()
        self._file.release()

    def _forward(self, index: int) -> bytes:
        if index in self._kept:
            return self._kept[index]
        if index >= self._next:
            for passed in range(max(self._next, index - KEPT_MEMBERS // 2), index):
                if self._members.sizes[passed] <= KEPT_BYTES // KEPT_MEMBERS:
                    self._keep(passed, self._extract(passed))
        data = self._extract(index)
        self._next = index + 1
        return data

    def _keep(self, index: int, data: bytes) -> None:
        self._kept[index] = data
        while len(self._kept) > KEPT_MEMBERS:
            self._kept.popitem(last=False)

    def _extract(self, index: int) -> bytes:
        if self._tar is None:
            self._tar = tarfile.open(fileobj=Opened(self._file), mode="r:*")  # noqa: SIM115 (until released)
        stream: Any = self._tar.fileobj
        stream.seek(self._members.starts[index])
        length = self._members.stored(index)
        data: bytes = stream.read(length)
        if len(data) < length:
            raise ImageError(f"ends after {len(data):,} of {length:,} bytes")
        return self._members.content(index, data)


def _check_size(size: int) -> None:
    if size > LARGEST_MEMBER:
        raise ImageError(f"{size:,} bytes, more than the {LARGEST_MEMBER:,} that an image may have")
