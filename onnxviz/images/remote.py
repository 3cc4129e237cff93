"""Files and folders behind a URL, through fsspec: read in parts, in many threads, wherever they lie."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import PurePosixPath
from typing import Any, TypeVar
from urllib.parse import unquote

from onnxviz.errors import ImageError, UsageError
from onnxviz.images import store as patience
from onnxviz.images.fingerprint import SizeAndTime
from onnxviz.images.patterns import braces, is_glob, leading, literal_folder, matcher
from onnxviz.images.store import NoPartsError, NotThereError, Store, open_store
from onnxviz.images.urls import masked

__all__ = ["READERS", "RemoteFile", "RemoteFolder", "find_remote"]

T = TypeVar("T")

READERS = 32
"""Threads that read: most of their time they wait for an answer."""

_VERSIONS = (
    "ETag", "etag", "md5Hash", "crc32c", "Content-MD5", "Digest", "checksum", "generation", "VersionId", "LastModified",
    "last_modified", "Last-Modified", "updated", "modified", "mtime", "created",
)  # fmt: skip


class RemoteFile:
    """A file behind a URL."""

    ahead = 1 << 22
    readers = READERS

    def __init__(self, store: Store, path: str, place: str, info: Mapping[str, Any]) -> None:
        self.store, self._path = store, path
        self.hurry = store.hurry
        self._size, self.version = _size(info), _version(info)
        self.place = self.title = place
        self.name = _last(path, store.web)
        self.is_image = str(info.get("mimetype", "")).startswith("image/")
        self._stream = store.stream(path, self._size) if store.web and info.get("partial") is False else None

    @property
    def size(self) -> int:
        """Its bytes.

        Raises:
            ImageError: the server does not tell.
        """
        if self._size is None:
            raise ImageError(
                "the server does not tell its size, so no part of it can be read; download it first"
            )
        return self._size

    def read(self, start: int, length: int) -> bytes:
        """Exactly these bytes.

        Raises:
            ImageError: they cannot be read. The message does not name the file.
        """
        if self._stream is None:
            try:
                return _told(lambda: self.store.part(self._path, start, length, self.size))
            except NoPartsError:
                self._stream = self._stream or self.store.stream(self._path, self._size)
        stream = self._stream
        return _told(lambda: self.store.ask(lambda: stream.read(start, length)))

    @property
    def sequential(self) -> bool:
        """Reading is quick only from start to end: the server gives no parts of files."""
        return self._stream is not None

    def release(self) -> None:
        """Let go of what is kept to read on."""
        if self._stream is not None:
            self._stream.release()

    def whole(self) -> bytes:
        """All bytes.

        Raises:
            ImageError: they cannot be read. The message does not name the file.
        """
        return _told(lambda: self.store.whole(self._path, self._size))


class RemoteFolder:
    """The files below a URL, or those that a pattern stands for."""

    readers = READERS

    def __init__(
        self, store: Store, root: str, place: str, found: Iterable[tuple[str, Mapping[str, Any]]]
    ) -> None:
        self.store, self._root = store, root.rstrip("/")
        self.hurry = store.hurry
        self.place = self.title = place
        # Of a million files: sizes, versions as short digests, and paths only where they are not root and name.
        self._entries: dict[str, tuple[int | None, int | None, str | None]] = {}
        for path, info in found:
            name = _relative(path, self._root, store.web)
            if name in self._entries:  # URLs that differ in their queries alone
                name = (
                    f"{PurePosixPath(name).with_suffix('')} {len(self._entries)}{PurePosixPath(name).suffix}"
                )
            own = None if path == f"{self._root}/{name}" else path
            self._entries[name] = (_size(info), _version(info), own)

    def walk(self) -> Iterator[tuple[str, str | None]]:
        """Relative names with ``/`` of all files that are not hidden."""
        for name in self._entries:
            if not any(part.startswith(".") for part in name.split("/")):
                yield name, None

    def read(self, name: str) -> bytes:
        """All of a file.

        Raises:
            ImageError: it cannot be read. The message does not name it.
        """
        size, _, path = self._entries[name]
        return _told(lambda: self.store.whole(path or f"{self._root}/{name}", size))

    def file(self, name: str) -> RemoteFile:
        """A file, to be read in parts.

        Raises:
            ImageError: it cannot be asked about.
        """
        size, version, path = self._entries[name]
        path = path or f"{self._root}/{name}"
        info: dict[str, Any] = {"size": size}
        if size is None:  # listings of web servers have no sizes
            info = _told(lambda: self.store.ask(lambda: self.store.system.info(path)))
        file = RemoteFile(self.store, path, f"{self.place}: {name}", info)
        file.version = file.version if version is None else version
        return file

    def sizes_and_versions(self, names: Sequence[str]) -> Iterator[SizeAndTime]:
        """Of each file its bytes and what marks its version, as they were listed; None for what is not known."""
        for name in names:
            yield self._entries[name][:2]


def _told(action: Callable[[], T]) -> T:
    try:
        return action()
    except NoPartsError:
        raise
    except ImageError as error:
        raise ImageError(f"cannot be read ({error})") from error


def find_remote(url: str) -> RemoteFolder | RemoteFile:
    """What lies at a URL: a file, or the files of a folder, of braces (``{00..09}``) or of a glob.

    Raises:
        UsageError: nothing is there, access is denied, or a package that speaks the protocol is missing.
        ImageError: it cannot be reached.
    """
    shown = masked(url)
    try:
        found = _find(url, shown)
    except NotThereError as error:
        raise UsageError(f"{shown}: {error}") from error
    except ImageError as error:
        raise ImageError(f"{shown}: cannot be reached ({error})") from error
    found.store.system.invalidate_cache()  # else it would keep the whole listing in memory
    found.store.pauses = patience.PAUSES
    return found


def _find(url: str, shown: str) -> RemoteFolder | RemoteFile:
    web = url.rpartition("::")[2].startswith(("http:", "https:")) and "::" not in url
    try:
        urls = braces(url)
    except ValueError as error:
        raise NotThereError(str(error)) from error
    store, path = open_store(urls[0], shown)
    store.system.invalidate_cache()  # what it listed before may have changed
    if len(urls) == 1 and not is_glob(path, queries=web):
        return _one(store, path, shown)
    found: dict[str, Any] = {}
    paths = [path] if len(urls) == 1 else [open_store(one, shown)[1] for one in urls]
    with ThreadPoolExecutor(READERS, "onnxviz-find") as pool:
        for one in pool.map(lambda path: _matching(store, path, web), paths):
            found.update(one)
    if not found:
        raise NotThereError("no file matches this")
    root = literal_folder(open_store(url, shown)[1])
    if len(found) == 1:
        (only,) = found
        return RemoteFile(store, only, masked(only) if store.web else shown, found[only])
    return RemoteFolder(store, root, shown, found.items())


def _one(store: Store, path: str, shown: str) -> RemoteFolder | RemoteFile:
    if store.web and path.partition("?")[0].endswith("/"):
        return _listed(store, path, shown)
    info = store.ask(lambda: store.system.info(path))
    if _is_folder(store, path, info):
        return _listed(store, path, shown)
    return RemoteFile(store, path, shown, info)


def _is_folder(store: Store, path: str, info: Mapping[str, Any]) -> bool:
    """Of a web server's files, those that are pages of links may be: it says nothing of folders."""
    if store.web:
        return info.get("mimetype") == "text/html" and not PurePosixPath(_last(path, True)).suffix
    return info.get("type") == "directory"


def _listed(store: Store, path: str, shown: str) -> RemoteFolder:
    """A folder with all below it."""
    if store.web and "?" in path:
        raise NotThereError(
            "a folder behind a query cannot be listed; name the files, as {1..9}.jpg or {a,b}.jpg"
        )
    return RemoteFolder(store, path, shown, _below(store, path).items())


def _below(store: Store, path: str, pattern: str | None = None) -> dict[str, Any]:
    """All files below a folder, by path; or those that match a pattern relative to it."""
    system = store.system
    if pattern is None and _finds_by_itself(system):
        return _files(store.ask(lambda: system.find(path, detail=True)))
    # Where fsspec would go from folder to folder, it would pass over those that cannot be listed.
    root = path.rstrip("/")
    wanted, leads = (matcher(pattern), leading(pattern)) if pattern else (None, None)
    found: dict[str, Any] = {}
    folders = [f"{root}/" if store.web else path]
    seen = set(folders)
    for folder in folders:
        for info in store.ask(lambda folder=folder: system.ls(folder, detail=True)):  # type: ignore[misc]
            name = str(info["name"])
            if name in seen or (store.web and ("?" in name or "#" in name)):
                continue
            seen.add(name)
            relative = _relative(name, root, store.web).rstrip("/")
            if info["type"] == "directory":
                if leads is None or leads(relative):
                    folders.append(name)
            elif wanted is None or wanted.fullmatch(relative):
                found[name] = info
    return _files(found)


def _finds_by_itself(system: Any) -> bool:
    from fsspec import AbstractFileSystem
    from fsspec.asyn import AsyncFileSystem

    if isinstance(system, AsyncFileSystem):
        return type(system)._find is not AsyncFileSystem._find
    return type(system).find is not AbstractFileSystem.find


def _matching(store: Store, path: str, web: bool) -> dict[str, Any]:
    """What a glob or a plain path stands for, folders with all below them."""
    if is_glob(path, queries=web):
        root = literal_folder(path)
        if not _finds_by_itself(store.system):
            return _below(store, root, path.removeprefix(root).lstrip("/"))
        found = store.ask(lambda: store.system.glob(path, detail=True))
    else:
        try:
            found = {path: store.ask(lambda: store.system.info(path))}
        except NotThereError as error:
            raise NotThereError(f"{masked(path)}: {error}") from error
    files = {}
    for name, info in found.items():
        if _is_folder(store, name, info):
            files.update(_below(store, name))
        else:
            files[name] = info
    return files


def _files(found: Mapping[str, Mapping[str, Any]]) -> dict[str, Any]:
    """Without folders, and without the empty objects that stand for them in stores that know none."""
    return {
        name: info
        for name, info in found.items()
        if info.get("type") != "directory" and not name.endswith("/")
    }


def _relative(path: str, root: str, web: bool) -> str:
    """A name below a root. Names of web servers are percent-encoded."""
    name = path.removeprefix(root).lstrip("/") or path.rpartition("/")[2]
    return unquote(name.partition("?")[0]) if web else name


def _last(path: str, web: bool) -> str:
    path = path.partition("?")[0].partition("#")[0] if web else path
    name = path.rstrip("/").rpartition("/")[2]
    return unquote(name) if web else name


def _size(info: Mapping[str, Any]) -> int | None:
    return size if isinstance(size := info.get("size"), int) else None


def _version(info: Mapping[str, Any]) -> int | None:
    """A short digest of all that the file system tells of a file's version; None if it tells nothing."""
    told = [f"{name}={info[name]}" for name in _VERSIONS if info.get(name) is not None]
    return int.from_bytes(hashlib.sha256("\n".join(told).encode()).digest()[:8], "big") if told else None
