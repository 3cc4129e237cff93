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

__all__ = ["locked"]

_NAME = ".onnxviz.lock"


@contextmanager
def locked(path: Path) -> Iterator[None]:
    """Keep everybody else out of a folder, which is made if need be, or from a file (whose name has a suffix).

    The system gives the lock back when the process ends, however it ends; nothing is left to be cleaned up.

    Raises:
        LockedError: another process is there; says which.
        OnnxvizError: there is no permission to write there, say.
    """
    lock = path.with_name(f".{path.name}.lock") if path.suffix == ".atlas" else path / _NAME
    made = not lock.parent.exists()
    try:
        lock.parent.mkdir(parents=True, exist_ok=True)
        descriptor = _taken(lock)
    except OSError as error:
        raise OnnxvizError(f"{path}: cannot be written to ({error.strerror or error}).") from error
    if descriptor is None:
        raise LockedError(f"{path} is in use{_holder(lock)}. Wait for it to end, or choose another place.")
    try:
        yield
    finally:
        # Removed while it is held: who opened it in the meantime finds that it is no longer there (`_taken`).
        if sys.platform != "win32":
            lock.unlink(missing_ok=True)
        os.close(descriptor)
        if made:  # for a job that then left nothing there
            with suppress(OSError):
                lock.parent.rmdir()


def _taken(lock: Path) -> int | None:
    """A descriptor that holds the lock, or None if another one does."""
    while True:
        descriptor = os.open(lock, os.O_RDWR | os.O_CREAT, 0o666)
        try:
            if not _try(descriptor):
                os.close(descriptor)
                return None
            try:
                if os.path.samestat(os.fstat(descriptor), lock.stat()):
                    who = {"process": os.getpid(), "host": socket.gethostname(), "since": _now()}
                    os.ftruncate(descriptor, 0)
                    os.write(descriptor, b" " + json.dumps(who).encode())
                    return descriptor
            except FileNotFoundError:
                pass
        except BaseException:
            os.close(descriptor)
            raise
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
