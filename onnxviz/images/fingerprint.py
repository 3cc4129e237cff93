"""What tells one data set from another or a changed one, without reading all of it."""

from __future__ import annotations

import hashlib
import os
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from time import perf_counter
from typing import Any, TypeAlias

from onnxviz.errors import ImageError
from onnxviz.images.files import File

__all__ = ["Fingerprint", "Row", "SizeAndTime", "fingerprint", "sampled_bytes", "sizes_and_times"]

Row: TypeAlias = tuple[tuple[Any, ...], Any]
"""Of an image what is the same wherever it lies, or () of a file of images; and what marks its version, or None."""

SizeAndTime: TypeAlias = tuple[int | None, int | None]

_CHUNK = 256
_THREADS = 32
_SLOW = 50e-6
"""Seconds a file from which on asking in threads pays: a network's, not a local disk's."""

_BLOCK, _BLOCKS = 1 << 15, 128


@dataclass(frozen=True)
class Fingerprint:
    """Hex digests that tell a data set from a changed one.

    ``content`` is the same on every machine that has the same data: number, names, labels and sizes of the images in
    their order, with the checksums of a zip archive, or samples of an array file's bytes. ``times`` is of the times
    at which the files were last changed, with what else marks a version where they lie; None where there is nothing
    of the kind. It is worth comparing only in one place: a copy may have other times.
    """

    content: str
    times: str | None


def fingerprint(rows: Iterable[Row]) -> Fingerprint:
    """The digests of a data set, described image by image (or file by file), in order."""
    content, times, timed = hashlib.sha256(), hashlib.sha256(), False
    for facts, time in rows:
        # ascii() is unambiguous, and the same in every version of Python and of Unicode.
        content.update(ascii(facts).encode("ascii") if facts else b"")
        times.update(ascii(time).encode("ascii"))
        timed = timed or time is not None
    return Fingerprint(content.hexdigest(), times.hexdigest() if timed else None)


def sizes_and_times(root: str, names: Sequence[str]) -> Iterator[SizeAndTime]:
    """Of each file below a folder its bytes and when it was last changed, in nanoseconds; None for what has none.

    A local disk is asked file after file, which is quickest there; one that answers slowly is asked in threads.
    """

    def ask(start: int) -> list[SizeAndTime]:
        return [_size_and_time(f"{root}/{name}") for name in names[start : start + _CHUNK]]

    for start in range(0, len(names), _CHUNK):
        began = perf_counter()
        found = ask(start)
        slow = perf_counter() - began > _SLOW * len(found)
        yield from found
        if slow:
            yield from _in_threads(ask, range(start + _CHUNK, len(names), _CHUNK))
            return


def _in_threads(ask: Callable[[int], list[SizeAndTime]], starts: Iterable[int]) -> Iterator[SizeAndTime]:
    with ThreadPoolExecutor(_THREADS, "onnxviz-sizes") as pool:
        waiting: deque[Future[list[SizeAndTime]]] = deque()
        try:
            for start in starts:
                waiting.append(pool.submit(ask, start))
                if len(waiting) > _THREADS:
                    yield from waiting.popleft().result()
            while waiting:
                yield from waiting.popleft().result()
        finally:
            for future in waiting:
                future.cancel()


def _size_and_time(path: str) -> SizeAndTime:
    try:
        status = os.stat(path)  # noqa: PTH116 (a Path for each of a million files costs more than the question)
    except (OSError, ValueError):
        return None, None
    return status.st_size, status.st_mtime_ns


def sampled_bytes(file: File) -> tuple[int, str] | None:
    """A file's size and a digest: of all of it up to 4 MiB, else of 128 blocks spread evenly from start to end.

    None if it cannot be read.
    """
    digest = hashlib.sha256()
    try:
        size = file.size
        blocks = min(_BLOCKS, -(-size // _BLOCK))
        starts = [(size - _BLOCK) * number // (blocks - 1) if blocks > 1 else 0 for number in range(blocks)]

        def read(start: int) -> bytes:
            return file.read(start, min(_BLOCK, size - start))

        for start in starts[:2]:
            digest.update(read(start))
        threads = 1 if file.sequential else file.readers or 1
        with ThreadPoolExecutor(threads, "onnxviz-blocks") as pool:
            for data in pool.map(read, starts[2:]):
                digest.update(data)
    except ImageError:
        return None
    return size, digest.hexdigest()
