"""Files that are read in parts: any number of threads at once, wherever they lie."""

from __future__ import annotations

import io
import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from onnxviz.errors import ImageError

__all__ = ["File", "Folder", "LocalFile", "Opened"]


class File(Protocol):
    """A file. Nothing of it stays open or in memory between reads, unless it is `sequential`."""

    @property
    def place(self) -> str:
        """What to call it in messages: a path, or a URL without its secrets."""

    @property
    def title(self) -> str:
        """What to call it in a report: a local file's name, or a URL without its secrets."""

    @property
    def name(self) -> str:
        """Its own name, without folders."""

    @property
    def size(self) -> int:
        """Its bytes.

        Raises:
            ImageError: it cannot be asked.
        """

    @property
    def ahead(self) -> int:
        """Bytes that are worth reading at once, where it is read from start to end."""

    @property
    def readers(self) -> int | None:
        """Threads that are worth reading in, where that is not a matter of cores."""

    @property
    def hurry(self) -> Callable[[], None] | None:
        """Lets reads that are being tried now give up, where reads are tried more than once."""

    @property
    def sequential(self) -> bool:
        """Reading is quick only from start to end, which may show only after a first read in its midst."""

    @property
    def version(self) -> Any:
        """What marks its version where it lies (a time, a digest of an ETag), or None."""

    def read(self, start: int, length: int) -> bytes:
        """Exactly these bytes; from any thread.

        Raises:
            ImageError: they cannot be read. The message does not name the file.
        """

    def whole(self) -> bytes:
        """All bytes; from any thread.

        Raises:
            ImageError: they cannot be read. The message does not name the file.
        """

    def release(self) -> None:
        """Let go of what is kept to read on; the next read takes longer."""


class Folder(Protocol):
    """Files in a folder and its sub-folders, or those that a pattern stands for."""

    @property
    def place(self) -> str:
        """What to call it in messages: a path, or a URL without its secrets."""

    @property
    def title(self) -> str:
        """What to call it in a report: a local folder's name, or a URL without its secrets."""

    @property
    def readers(self) -> int | None:
        """Threads that are worth reading in, where that is not a matter of cores."""

    @property
    def hurry(self) -> Callable[[], None] | None:
        """Lets reads that are being tried now give up, where reads are tried more than once."""

    def walk(self) -> Iterator[tuple[str, str | None]]:
        """Relative names with ``/`` of all files that are not hidden, or of what cannot be read with the reason."""

    def read(self, name: str) -> bytes:
        """All of a file; from any thread.

        Raises:
            ImageError: it cannot be read. The message does not name it.
        """

    def file(self, name: str) -> File:
        """A file, to be read in parts.

        Raises:
            ImageError: it cannot be asked about.
        """

    def sizes_and_versions(self, names: Sequence[str]) -> Iterator[tuple[int | None, int | None]]:
        """Of each file its bytes, and its time or what else marks a version; None for what is not known."""


@dataclass(frozen=True)
class LocalFile:
    """A file on a disk of this machine."""

    path: Path
    ahead: int = 1 << 17
    readers: int | None = None
    sequential: bool = False
    hurry: Callable[[], None] | None = None

    @property
    def place(self) -> str:
        """The path."""
        return str(self.path)

    @property
    def title(self) -> str:
        """The name."""
        return self.path.name

    @property
    def name(self) -> str:
        """The name."""
        return self.path.name

    @property
    def size(self) -> int:
        """Its bytes now.

        Raises:
            ImageError: it cannot be asked.
        """
        try:
            return self.path.stat().st_size
        except OSError as error:
            raise ImageError(f"cannot be read ({error.strerror or error})") from error

    @property
    def version(self) -> int | None:
        """When it was last changed, in nanoseconds."""
        try:
            return self.path.stat().st_mtime_ns
        except OSError:
            return None

    def release(self) -> None:
        """Nothing is kept."""

    def whole(self) -> bytes:
        """All bytes.

        Raises:
            ImageError: they cannot be read.
        """
        try:
            return self.path.read_bytes()
        except OSError as error:
            raise ImageError(f"cannot be read ({error.strerror or error})") from error

    def read(self, start: int, length: int) -> bytes:
        """Exactly these bytes.

        Raises:
            ImageError: they cannot be read.
        """
        try:
            with self.path.open("rb", buffering=0) as file:
                file.seek(start)
                parts, missing = [], length
                while missing and (part := file.read(missing)):
                    parts.append(part)
                    missing -= len(part)
        except OSError as error:
            raise ImageError(f"cannot be read ({error.strerror or error})") from error
        if missing:
            raise ImageError(f"ends after {length - missing:,} of {length:,} bytes")
        return parts[0] if len(parts) == 1 else b"".join(parts)


class Opened(io.RawIOBase):
    """A file to seek and read in, for one thread at a time.

    Where it is read from start to end, or nearly, it reads ahead, more and more, up to the file's `ahead`; where it
    is leapt about in, little. Of the end all that a zip archive's directory search needs is read at once.
    """

    LEAST = 1 << 17

    def __init__(self, file: File) -> None:
        super().__init__()
        self._file, self._size = file, file.size
        self._position = self._start = 0
        self._data = b""
        self._ahead = self.LEAST

    def readable(self) -> bool:
        """Always."""
        return True

    def seekable(self) -> bool:
        """Always."""
        return True

    def tell(self) -> int:
        """The position."""
        return self._position

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        """Move to a position, which may lie behind the end."""
        origin = {os.SEEK_SET: 0, os.SEEK_CUR: self._position, os.SEEK_END: self._size}[whence]
        if origin + offset < 0:
            raise OSError(f"negative position {origin + offset}")
        self._position = origin + offset
        return self._position

    def readinto(self, buffer: Any) -> int:
        """Fill the buffer, except at the end of the file."""
        data = self.read(len(buffer))
        buffer[: len(data)] = data
        return len(data)

    def read(self, size: int = -1, /) -> bytes:
        """So many bytes, or all that follow; fewer at the end of the file only."""
        left = max(0, self._size - self._position)
        missing = left if size is None or size < 0 else min(size, left)
        parts = []
        while missing:
            skipped = self._position - self._start
            if not 0 <= skipped < len(self._data):
                self._fetch(missing)
                skipped = self._position - self._start
            part = self._data[skipped : skipped + missing]
            parts.append(part)
            missing -= len(part)
            self._position += len(part)
        return parts[0] if len(parts) == 1 else b"".join(parts)

    def _fetch(self, wanted: int) -> None:
        gap = self._position - (self._start + len(self._data))
        near = bool(self._data) and 0 <= gap <= self._ahead
        self._ahead = min(2 * self._ahead, max(self._file.ahead, self.LEAST)) if near else self.LEAST
        start = min(self._position, max(0, self._size - self.LEAST))
        length = max(self._ahead, self._position + wanted - start)
        self._data = self._file.read(start, min(length, self._size - start))
        self._start = start
