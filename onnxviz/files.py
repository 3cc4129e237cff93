"""Writing files: whole or not at all, also where the machine stops in between; and what stands in the way."""

from __future__ import annotations

import errno
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from onnxviz.errors import OnnxvizError, OutputError

__all__ = ["write_atomically", "write_durably", "writing"]

_ADVICE = {
    **dict.fromkeys((errno.ENOSPC, errno.EDQUOT), "Free some space, or choose another place with --out."),
    **dict.fromkeys(
        (errno.EACCES, errno.EPERM, errno.EROFS), "Choose a place that you may write to, with --out."
    ),
}


@contextmanager
def writing(where: str | Path) -> Iterator[None]:
    """What the system says against a file becomes an `OutputError`, which is an `OSError`, too.

    Args:
        where: the file, or what was being written, if the system does not name one.
    """
    try:
        yield
    except (OnnxvizError, BrokenPipeError):  # a pipe is no file: whoever read the output has gone
        raise
    except OSError as error:
        reason = error.strerror or str(error) or type(error).__name__
        place = error.filename2 or error.filename or where
        raise OutputError(f"{place}: {reason}. {_ADVICE.get(error.errno or 0, '')}".strip()) from error


def write_atomically(path: Path, write: Callable[[Path], Any]) -> None:
    """Write a file by a function of a path; it is there whole or not at all.

    What a killed process leaves of it has a name that the next one uses again, so that it does not pile up. So only one
    process at a time may write a file (`locks.locked`).
    """
    temporary = path.with_name(f".{path.name}.part")
    with writing(path):
        try:
            write(temporary)
            temporary.replace(path)
        finally:
            temporary.unlink(missing_ok=True)


def write_durably(path: Path, data: bytes) -> None:
    """As `write_atomically`, and what was there before is only lost once the new content is on the disk.

    Raises:
        OSError: the disk is full, say; what was there before is still there.
    """

    def write(temporary: Path) -> None:
        with temporary.open("wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())

    write_atomically(path, write)
    # The new name, too, is in the folder's own data; Windows and some network folders cannot be asked for that.
    with suppress(OSError, AttributeError):
        folder = os.open(path.parent, os.O_RDONLY | os.O_DIRECTORY)
        try:
            os.fsync(folder)
        finally:
            os.close(folder)
