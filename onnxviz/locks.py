"""One process at a time in a folder, or at a file."""

from __future__ import annotations

import json
import os
import socket
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from datetime import UTC, datetime
from pathlib import Path

from onnxviz.errors import LockedError, OnnxvizError

__all__ = ["lock_file", "locked"]

_NAME = ".onnxviz.lock"
_TRIES = 100
"""How often a folder is made again that the last process in it took away meanwhile."""


def lock_file(path: Path) -> Path:
    """The file that stands for the right to be in a folder, or at a file (whose name ends in .atlas).

    A folder's scan.atlas is in the folder: by either name only one process gets at it.
    """
    if path.suffix != ".atlas" or path.is_dir():
        return path / _NAME
    return path.with_name(_NAME if path.name == "scan.atlas" else f".{path.name}.lock")


@contextmanager
def locked(path: Path) -> Iterator[None]:
    """Keep everybody else out of a folder, which is made if need be, or from a file (`lock_file`).

    The system gives the lock back when the process ends, however it ends; nothing is left to be cleaned up.

    Raises:
        LockedError: another process is there; says which.
        OnnxvizError: there is no permission to write there, say.
    """
    lock = lock_file(path)
    made = [folder for folder in lock.parents if not folder.exists()]
    try:
        try:
            descriptor = _taken(lock)
        except OSError as error:
            raise OnnxvizError(f"{path}: cannot be written to ({error.strerror or error}).") from error
        if descriptor is None:
            raise LockedError(
                f"{path} is in use{_holder(lock)}. Wait for it to end, or choose another place."
            )
        try:
            yield
        finally:
            _give_back(lock, descriptor)
    finally:
        for folder in made:  # for a job that then left nothing there
            with suppress(OSError):
                folder.rmdir()


def _taken(lock: Path) -> int | None:
    """A descriptor that holds the lock, or None if another one does."""
    for left in reversed(range(_TRIES)):
        try:
            lock.parent.mkdir(parents=True, exist_ok=True)
            descriptor = os.open(lock, os.O_RDWR | os.O_CREAT, 0o666)
        except (
            FileNotFoundError,
            FileExistsError,
        ):  # who was there before took the folder away, perhaps just now
            if not left:
                raise
            continue
        held = False
        try:
            held = _try(descriptor)
            if not held:
                os.close(descriptor)
                return None
            if os.path.samestat(os.fstat(descriptor), lock.stat()):
                who = {"process": os.getpid(), "host": socket.gethostname(), "since": _now()}
                os.ftruncate(descriptor, 0)
                os.write(descriptor, b" " + json.dumps(who).encode())
                return descriptor
            held = False  # of another file of that name
        except FileNotFoundError:
            held = False
        except BaseException:
            if held:
                _give_back(lock, descriptor)
            else:
                os.close(descriptor)
            raise
        os.close(descriptor)
    return None


def _give_back(lock: Path, descriptor: int) -> None:
    # Removed while it is held: who opened it in the meantime finds that it is no longer there (`_taken`).
    if sys.platform != "win32":
        with suppress(OSError):
            lock.unlink()
    os.close(descriptor)


if sys.platform == "win32":
    import msvcrt

    def _try(descriptor: int) -> bool:
        # The first byte alone, so that others can read who holds it.
        try:
            msvcrt.locking(descriptor, msvcrt.LK_NBLCK, 1)
        except OSError:
            return False
        return True

else:
    import fcntl

    def _try(descriptor: int) -> bool:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return False
        return True


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")


def _holder(lock: Path) -> str:
    """Who holds a lock, as far as its file tells."""
    try:
        with lock.open("rb") as file:
            file.seek(1)
            who = json.loads(file.read(1000))
        return f" by process {int(who['process'])} on {who['host']!s:.100}, since {who['since']!s:.40}"
    except (OSError, ValueError, KeyError, TypeError):
        return " by another process"
