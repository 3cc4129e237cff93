"""A file system of fsspec's, asked patiently; what fails is told in a line without secrets."""

from __future__ import annotations

import http
import random
import re
import threading
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from functools import partial
from typing import Any, TypeVar

from onnxviz.errors import ImageError, UsageError
from onnxviz.images.streamed import Streamed
from onnxviz.images.urls import masked

__all__ = ["FIRST_PAUSES", "PAUSES", "NoPartsError", "NotThereError", "Store", "open_store"]

T = TypeVar("T")

PAUSES: tuple[float, ...] = (0.5, 1.0, 2.0, 4.0, 8.0)
"""Seconds to wait before each further try."""

FIRST_PAUSES = PAUSES[:3]
"""The same of a place that never answered yet: its name may be wrong."""

CONNECT_SECONDS, SILENT_SECONDS = 15, 30
"""How long an HTTP server may take to accept a connection, and to send anything more."""

_WEB = ("http", "https")
_PACKAGES = {
    "s3": "s3fs", "s3a": "s3fs", "gs": "gcsfs", "gcs": "gcsfs", "http": "aiohttp", "https": "aiohttp",
    "abfs": "adlfs", "abfss": "adlfs", "az": "adlfs", "adl": "adlfs", "hf": "huggingface_hub", "sftp": "paramiko",
    "ssh": "paramiko", "smb": "smbprotocol", "oci": "ocifs", "oss": "ossfs", "dvc": "dvc",
}  # fmt: skip
_LASTING = (
    *(FileNotFoundError, PermissionError, IsADirectoryError, NotADirectoryError, NotImplementedError),
    *(ValueError, TypeError, LookupError, AttributeError),
)
_BUSY = (408, 425, 429)


class NotThereError(ImageError):
    """What was asked for is not there, or not for us; asking again is no use."""


class NoPartsError(NotThereError):
    """The server gives whole files only."""


class Store:
    """A file system of fsspec's. What fails in passing is tried again a few times."""

    def __init__(self, system: Any, protocol: str) -> None:
        self.system = system
        self.pauses = FIRST_PAUSES
        self.web = protocol in _WEB
        self._hurried = 0
        self._equip()

    def _equip(self) -> None:
        self._hurry = threading.Condition()
        # Those that are not asynchronous have one connection, or files that are shared.
        alone = not getattr(self.system, "async_impl", False)
        self._lock: AbstractContextManager[Any] = threading.Lock() if alone else nullcontext()

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_hurry": None, "_lock": None}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self._equip()

    def ask(self, action: Callable[[], T]) -> T:
        """What an action on the file system gives.

        Raises:
            NotThereError: it fails for good.
            ImageError: it failed as often as was tried. The message does not name the place.
        """
        begun = self._hurried
        for pause in (*self.pauses, None):
            try:
                with self._lock:
                    return action()
            except ImageError:
                raise
            except Exception as raised:  # each file system raises what its own libraries do
                error = _own(raised)
                if not _passing(error):
                    raise NotThereError(_reason(error)) from raised
                if pause is None:
                    raise ImageError(f"{_reason(error)}, tried {len(self.pauses) + 1} times") from raised
                # At odd times, so that threads that were refused together do not come back together.
                if self._pause(pause * random.uniform(0.75, 1.25), begun):
                    raise ImageError(f"{_reason(error)}, given up") from raised
        raise AssertionError("the last try returns or raises")

    def hurry(self) -> None:
        """Let what is being tried now fail for good where it fails; what is asked for later is tried as ever."""
        with self._hurry:
            self._hurried += 1
            self._hurry.notify_all()

    def _pause(self, seconds: float, begun: int) -> bool:
        """Wait; at once true if there was a `hurry` since ``begun``."""
        with self._hurry:
            return self._hurry.wait_for(lambda: self._hurried != begun, seconds)

    def part(self, path: str, start: int, length: int, size: int) -> bytes:
        """So many bytes of a file of known size."""

        def action() -> bytes:
            if not length:
                return b""
            if self.web:
                # Unlike cat_file it notices a server that sends the whole file whatever part it is asked for.
                with self.system.open(path, size=size, cache_type="none") as file:
                    file.seek(start)
                    data: bytes = file.read(length)
            else:
                data = self.system.cat_file(path, start=start, end=start + length)
            return _complete(data, length)

        try:
            return self.ask(action)
        except NotThereError as error:
            if "range requests" in str(error):  # in the words of fsspec's HTTPFile
                raise NoPartsError(str(error)) from error
            raise

    def stream(self, path: str, size: int | None) -> Streamed:
        """A file of a web server as a stream."""
        return Streamed(partial(self.system.open, path, block_size=0, size=size))

    def whole(self, path: str, size: int | None) -> bytes:
        """All bytes of a file."""
        if size is not None and not self.web:
            return self.part(path, 0, size, size)  # without a size, s3fs would ask for it first

        def action() -> bytes:
            return _complete(self.system.cat_file(path), size)

        return self.ask(action)


def open_store(url: str, shown: str) -> tuple[Store, str]:
    """A file system and a path in it."""
    try:
        import fsspec
    except ImportError as error:
        raise UsageError(f"{shown}: URLs need fsspec; pip install 'onnxviz[remote]'") from error
    protocol = url.partition("://")[0].lower()
    options = {name: _web_options() for name in _WEB if f"{name}://" in url}
    try:
        system, path = fsspec.core.url_to_fs(url, **options)
    except ImportError as error:
        raise UsageError(f"{shown}: {_missing_package(url, error)}") from error
    except Exception as error:  # an unknown protocol, and whatever the file systems raise
        reason = _reason(_own(error))
        raise NotThereError(f"cannot be opened ({reason})" if _passing(_own(error)) else reason) from error
    return Store(system, protocol), str(path)


def _missing_package(url: str, error: ImportError) -> str:
    known = [_PACKAGES[name] for name in re.findall(r"([\w+.-]+)://", url) if name in _PACKAGES]
    package = next((name for name in known if name != "aiohttp"), known[0] if known else None)
    if package is None:
        return masked(str(error))
    return f"{url.partition('://')[0]}:// needs a package that is not installed; pip install {package}"


def _web_options() -> dict[str, Any]:
    """Without compression in transit: parts of a file are of its own bytes."""
    try:
        import aiohttp
        import fsspec
    except ImportError:
        return {}
    if any("client_kwargs" in fsspec.config.conf.get(name, {}) for name in _WEB):
        return {}
    timeout = aiohttp.ClientTimeout(total=None, sock_connect=CONNECT_SECONDS, sock_read=SILENT_SECONDS)
    headers = {"Accept-Encoding": "identity"}
    return {"client_kwargs": {"timeout": timeout, "headers": headers, "trust_env": True}}


def _complete(data: bytes, length: int | None) -> bytes:
    if length is not None and len(data) != length:
        raise EOFError(f"{len(data):,} of {length:,} bytes came")
    return data


def _own(error: Exception) -> BaseException:
    """What really went wrong: fsspec says of any failure over HTTP that there is no such file."""
    cause = error.__cause__
    return cause if isinstance(error, FileNotFoundError) and cause is not None else error


def _status(error: BaseException) -> int | None:
    """The HTTP status that aiohttp, gcsfs, or botocore's response tells."""
    for name in ("status", "code"):
        if isinstance(found := getattr(error, name, None), int) and 100 <= found < 600:
            return found
    response = getattr(error, "response", None)
    found = response.get("ResponseMetadata", {}).get("HTTPStatusCode") if isinstance(response, dict) else None
    return found if isinstance(found, int) else None


def _passing(error: BaseException) -> bool:
    status = _status(error)
    if status is not None:
        return status >= 500 or status in _BUSY
    return not isinstance(error, _LASTING)


def _reason(error: BaseException) -> str:
    status = _status(error)
    if status == 404 or isinstance(error, FileNotFoundError):
        return "no such bucket" if "bucket does not exist" in str(error) else "no such file or folder"
    if isinstance(error, PermissionError) or status in (401, 403):
        return "access denied; log in, or check the name"
    if status is not None:
        try:
            return f"{status} {http.HTTPStatus(status).phrase}"
        except ValueError:
            return f"status {status}"
    return masked(" ".join(str(error).split())) or type(error).__name__
