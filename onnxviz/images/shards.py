"""Archives side by side, as one list of images."""

from __future__ import annotations

import re
import threading
from collections import Counter, OrderedDict
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import PurePosixPath
from typing import Any, TypeAlias

from onnxviz.errors import ImageError
from onnxviz.images.archive import Archive, open_archive
from onnxviz.images.decode import SUFFIXES
from onnxviz.images.files import File

__all__ = ["NotAnArchiveError", "Shards"]

Entry: TypeAlias = tuple[str, int, int]
"""Name, number of the archive, number of the member in it; or, of an archive that cannot be read, its name and -1."""

OPENED_AT_ONCE = 8
KEPT_OPEN = 3
"""Compressed archives that are read on: one, its neighbours, where threads run ahead or come late."""


class Shards:
    """The images in archives, in the order of the archives and of each archive's directory.

    Raises:
        ImageError: not one archive can be read.
    """

    def __init__(
        self, names: Sequence[str], opening: Callable[[str], File], chosen: re.Pattern[str] | None = None
    ) -> None:
        self._names = names
        self._archives: list[Archive | None] = []
        self._versions: list[Any] = []
        self._problems: dict[int, str] = {}
        self.entries: list[Entry] = []
        self.ignored: Counter[str] = Counter()
        self._reading: OrderedDict[int, Archive] = OrderedDict()
        self._lock = threading.Lock()
        problems: list[UnreadableError] = []
        with ThreadPoolExecutor(min(OPENED_AT_ONCE, len(names)), "onnxviz-archives") as pool:
            for number, opened in enumerate(pool.map(lambda name: _opened(opening, name), names)):
                if isinstance(opened, UnreadableError):
                    problems.append(opened)
                    self._add_problem(number, opened)
                else:
                    self._add(number, *opened, chosen)
        if len(problems) == len(names):
            raise problems[0]
        self.sequential = any(found.sequential for found in self._archives if found)
        # Several archives may hold the same name: then each is told by its archive's.
        images = [name for name, _, member in self.entries if member >= 0]
        self.repeated = len(names) > 1 and len(set(images)) < len(images)

    def __getstate__(self) -> dict[str, Any]:
        return {name: value for name, value in self.__dict__.items() if name not in ("_lock", "_reading")}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state, _lock=threading.Lock(), _reading=OrderedDict())

    def shown(self, entry: Entry) -> str:
        """The name of an image, which no other image has."""
        name, number, member = entry
        return f"{self._names[number]}/{name}" if self.repeated and member >= 0 else name

    def read(self, entry: Entry) -> bytes:
        """The content of an image.

        Raises:
            ImageError: it cannot be read. The message does not name it.
        """
        _, number, member = entry
        found = self._archives[number]
        if found is None:
            raise ImageError(self._problems[number])
        if not found.sequential:
            return found.read(member)
        self._note(number, found)
        try:
            return found.read(member)
        finally:
            with self._lock:
                late = number not in self._reading
            if late:  # it was let go before this thread came to read
                found.release()

    def facts(self, entry: Entry) -> tuple[int | None, ...]:
        """Size of an image in bytes, and in a zip its CRC-32; None if it cannot be read."""
        _, number, member = entry
        found = self._archives[number]
        return (None,) if found is None else found.facts(member)

    def versions(self) -> list[Any]:
        """Of each archive what marks its version where it lies, or None."""
        return self._versions

    def _add(self, number: int, file: File, found: Archive, chosen: re.Pattern[str] | None) -> None:
        self._archives.append(found)
        self._versions.append(file.version)
        for member, stored in enumerate(found.names):
            parts = [part for part in stored.replace("\\", "/").split("/") if part not in ("", ".")]
            if not parts or any(part.startswith((".", "__MACOSX")) for part in parts):
                continue
            name = "/".join(parts)
            if chosen is not None and not chosen.fullmatch(name):
                continue
            suffix = PurePosixPath(parts[-1]).suffix.lower()
            if suffix in SUFFIXES:
                self.entries.append((name, number, member))
            else:
                self.ignored[suffix] += 1

    def _add_problem(self, number: int, error: UnreadableError) -> None:
        self._archives.append(None)
        self._versions.append(None)
        self._problems[number] = error.reason
        self.entries.append((self._names[number], number, -1))

    def _note(self, number: int, found: Archive) -> None:
        """Remember which compressed archives are being read, and let the others go."""
        with self._lock:
            self._reading[number] = found
            self._reading.move_to_end(number)
            gone = [self._reading.popitem(last=False)[1] for _ in range(len(self._reading) - KEPT_OPEN)]
        for one in gone:
            one.release()


def _opened(opening: Callable[[str], File], name: str) -> tuple[File, Archive] | UnreadableError:
    place = name
    try:
        file = opening(name)
        place = file.place
        found = open_archive(file)
    except ImageError as error:
        return UnreadableError(place, str(error).removeprefix(f"{place}: "), error)
    if found is None:
        expected = "expected zip, or tar with or without compression"
        return NotAnArchiveError(place, f"not an archive that can be read; {expected}")
    return file, found


class UnreadableError(ImageError):
    """An archive that cannot be read: where, why, and what it came from."""

    def __init__(self, place: str, reason: str, cause: ImageError | None = None) -> None:
        super().__init__(f"{place}: {reason}")
        self.reason = reason
        self.__cause__ = cause


class NotAnArchiveError(UnreadableError):
    """A file of another kind."""
