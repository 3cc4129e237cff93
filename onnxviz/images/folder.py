"""Folders of this machine: which files lie in them, or match a pattern."""

from __future__ import annotations

import glob
import os
from collections.abc import Iterator, Sequence
from contextlib import suppress
from itertools import islice
from pathlib import Path, PurePosixPath

from onnxviz.errors import UsageError
from onnxviz.images.decode import SUFFIXES
from onnxviz.images.files import LocalFile
from onnxviz.images.fingerprint import SizeAndTime, sizes_and_times
from onnxviz.images.patterns import braces, is_glob, is_pattern, literal_folder

__all__ = ["LocalFolder", "find_local"]


class LocalFolder:
    """The files in a folder and its sub-folders, or of them those that match patterns."""

    readers = hurry = None

    def __init__(self, root: Path, pattern: str | None = None) -> None:
        self.root, self._pattern = str(root), pattern
        self.title = pattern or f"{root.resolve().name or root}/"
        self.place = str(root if pattern is None else root / pattern)

    def walk(self) -> Iterator[tuple[str, str | None]]:
        """Relative names with ``/`` of all files that are not hidden, or of folders with why they cannot be read.

        Raises:
            UsageError: nothing matches a pattern.
        """
        if self._pattern is None:
            yield from _walk(self.root, [""])
            return
        seen = set()
        for name in self._matching():
            path = Path(self.root, name)
            special = path.exists() and not path.is_file()
            found = [(name, "neither a file nor a link to one" if special else None)]
            for one in _walk(self.root, [name.rstrip("/")]) if path.is_dir() else found:
                if one[0] not in seen:
                    seen.add(one[0])
                    yield one

    def read(self, name: str) -> bytes:
        """All of a file.

        Raises:
            ImageError: it cannot be read. The message does not name it.
        """
        return self.file(name).whole()

    def file(self, name: str) -> LocalFile:
        """A file, to be read in parts."""
        return LocalFile(Path(self.root, name))

    def sizes_and_versions(self, names: Sequence[str]) -> Iterator[SizeAndTime]:
        """Of each file its bytes and when it was last changed; None for what cannot be asked."""
        return sizes_and_times(self.root, names)

    def _matching(self) -> list[str]:
        found: dict[str, None] = {}
        try:
            patterns = braces(self._pattern or "")
        except ValueError as error:
            raise UsageError(f"{self.place}: {error}") from error
        for pattern in patterns:
            if is_glob(pattern):
                names = glob.glob(pattern, root_dir=self.root, recursive=True)  # noqa: PTH207 (names, not paths)
                found.update(dict.fromkeys(name.replace(os.sep, "/") for name in sorted(names)))
            elif os.path.lexists(f"{self.root}/{pattern}"):
                found[pattern] = None
            else:
                raise UsageError(f"{self.root}/{pattern}: no such file or folder, of {self.place}")
        if not found:
            raise UsageError(f"{self.place}: no file or folder matches this")
        return list(found)


def find_local(path: Path) -> LocalFolder | LocalFile | None:
    """The folder or the file at a path, or what a pattern stands for; None if there is nothing.

    Raises:
        UsageError: nothing matches a pattern.
    """
    with suppress(OSError):  # a pattern may be longer than a name can be
        if path.is_dir():
            return LocalFolder(path)
        if path.exists():
            return LocalFile(path)
    text = path.as_posix()
    if not is_pattern(text):
        return None
    root = literal_folder(text)
    folder = LocalFolder(
        Path(f"{root}/" if path.is_absolute() else root), text.removeprefix(root).lstrip("/")
    )
    names = [name for name, _ in islice(folder.walk(), 2)]
    return folder.file(names[0]) if len(names) == 1 else folder


def _walk(root: str, folders: list[str]) -> Iterator[tuple[str, str | None]]:
    """Links are followed after all real folders, and each folder is entered once, so links that loop end."""
    links = list[str]()
    entered: set[tuple[int, int]] = set()
    while folders or links:
        folder = folders.pop() if folders else links.pop(0)
        path = Path(root, folder)
        try:
            status = path.stat()
            if (status.st_dev, status.st_ino) in entered:
                continue
            entered.add((status.st_dev, status.st_ino))
            with os.scandir(path) as found:
                entries = sorted(found, key=lambda entry: entry.name)
        except OSError as error:
            yield f"{folder or '.'}/", f"the folder cannot be read ({error.strerror})"
            continue
        for entry in entries:
            if entry.name.startswith("."):
                continue
            name = f"{folder}/{entry.name}" if folder else entry.name
            try:
                if entry.is_dir():
                    (links if entry.is_symlink() else folders).append(name)
                elif entry.is_file() or PurePosixPath(name).suffix.lower() not in SUFFIXES:
                    yield name, None
                else:  # reading a pipe would wait for ever
                    yield name, "neither a file nor a link to one"
            except OSError as error:
                yield name, f"cannot be read ({error.strerror})"
