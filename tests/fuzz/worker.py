"""A child process that reads one case after another, so that a crash, a hang or a memory explosion is seen."""

from __future__ import annotations

import gc
import multiprocessing
import os
import resource
import shutil
import signal
import sys
import tempfile
import threading
import time
import traceback
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any, TypeAlias

from tests.fuzz.seeds import Case

__all__ = ["Reader", "Verdict", "Worker", "judged", "watch_writes"]

Reader: TypeAlias = Callable[[Path, Path], None]
"""Reads a case's main file; it may write in the folder that it is given."""

LONGEST_MESSAGE = 500
SECONDS = 60.0
"""A case may take so long, on a machine that others share."""
BYTES = 5 << 30
"""The memory that a case may take beyond what there was."""
_HARD_BYTES = 12 << 30


@dataclass(frozen=True)
class Verdict:
    """What came of a case: ``outcome`` is "fine", the name of an `OnnxvizError`, or what is wrong in capitals."""

    outcome: str
    message: str = ""
    seconds: float = 0.0

    @property
    def bad(self) -> bool:
        """Whether it is a failure of onnxviz."""
        return self.outcome.isupper()


class Worker:
    """Judges cases in a process of its own, which is started anew when one kills it."""

    def __init__(self, seconds: float = SECONDS, memory: int = BYTES) -> None:
        self._seconds, self._memory = seconds, memory
        self._process: Any = None
        self._pipe: Connection | None = None

    def judge(self, read: Reader, case: Case) -> Verdict:
        """What comes of a case that a function, which the other process can import, reads."""
        if self._process is None:
            self._start()
        assert self._pipe is not None
        self._pipe.send((read, case))
        start = time.monotonic()
        if not self._pipe.poll(self._seconds):
            self.close(kill=True)
            return Verdict("HANG", f"no end after {self._seconds:.0f} s", self._seconds)
        try:
            verdict: Verdict = self._pipe.recv()
        except (EOFError, ConnectionError):
            self._process.join(10)
            code = self._process.exitcode
            self.close(kill=True)
            name = signal.Signals(-code).name if code and code < 0 else f"exit code {code}"
            return Verdict("CRASH", name, time.monotonic() - start)
        return verdict

    def _start(self) -> None:
        context = multiprocessing.get_context("spawn")
        self._pipe, theirs = context.Pipe()
        self._process = context.Process(target=_serve, args=(theirs, self._memory), daemon=True)
        self._process.start()
        theirs.close()
        if self._pipe.recv() != "ready":
            raise RuntimeError("the worker did not start")

    def close(self, *, kill: bool = False) -> None:
        """End the process."""
        if self._process is not None:
            self._process.kill() if kill else self._process.terminate()
            self._process.join()
            assert self._pipe is not None
            self._pipe.close()
            self._process = self._pipe = None


def _serve(pipe: Connection, memory: int) -> None:
    with tempfile.TemporaryDirectory(prefix="onnxviz-fuzz-") as temporary:
        root = Path(temporary)
        null = os.open(os.devnull, os.O_WRONLY)
        os.dup2(null, 2)  # libtiff and others print what they think of a file
        resource.setrlimit(resource.RLIMIT_AS, (_now("VmSize") + _HARD_BYTES, resource.RLIM_INFINITY))
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
        watch_writes()
        pipe.send("ready")
        while True:
            try:
                read, case = pipe.recv()
            except EOFError:
                return
            pipe.send(judged(read, case, root, memory))


def judged(read: Reader, case: Case, root: Path, memory: int = BYTES) -> Verdict:
    """Read a case in this process, in a folder below ``root``, with so much memory beyond what there was."""
    folder, out, empty = root / "case", root / "out", root / "empty"
    for one in (folder, out, empty):
        shutil.rmtree(one, ignore_errors=True)
        one.mkdir()
    for name, data in case.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data)
    before = _listing(folder)
    _reset_peak()
    resident, start = _now("VmRSS"), time.monotonic()
    with _inside(empty, out), warnings.catch_warnings(record=True) as warned:
        warnings.simplefilter("always")
        verdict = _outcome(read, folder / next(iter(case)), out)
        gc.collect()  # files left open warn when they go
    if not gc.get_freeze_count():
        gc.freeze()  # what was imported for the first case need not be looked through after every other
    taken = time.monotonic() - start
    peak = _now("VmHWM") - resident
    left = threading.active_count()
    if not verdict.bad:
        if warned:
            verdict = Verdict("WARNING", "; ".join(f"{w.category.__name__}: {w.message}" for w in warned[:3]))
        elif peak > memory:
            verdict = Verdict("MEMORY", f"{peak / 2**20:.0f} MiB; {verdict.message}")
        elif _writes:
            verdict = Verdict("WRITTEN", "; ".join(_writes[:3]))
        elif _listing(folder) != before or any(empty.iterdir()):
            verdict = Verdict("WRITTEN", "a file beside the output folder")
        elif left > 50:
            verdict = Verdict("THREADS", f"{left} are left")
    _writes.clear()
    return Verdict(verdict.outcome, verdict.message, taken)


def _outcome(read: Reader, path: Path, out: Path) -> Verdict:
    from onnxviz.errors import OnnxvizError

    try:
        read(path, out)
    except OnnxvizError as error:
        text = str(error).replace(str(path.parent), "")
        if len(text) > LONGEST_MESSAGE or len(text.splitlines()) > 3:
            return Verdict("LONG", f"{len(text)} characters: {text[:600]}")
        if not text.replace("\n", " ").isprintable():
            return Verdict("UNPRINTABLE", repr(text))
        return Verdict(type(error).__name__, text)
    except Exception:
        return Verdict("TRACEBACK", traceback.format_exc(limit=-12))
    return Verdict("fine")


def _listing(folder: Path) -> list[tuple[str, int, int]]:
    return sorted((str(p), p.stat().st_size, p.stat().st_mtime_ns) for p in folder.rglob("*"))


def _now(field: str) -> int:
    """A line of /proc/self/status, in bytes."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(f"{field}:"):
            return int(line.split()[1]) << 10
    return 0


def _reset_peak() -> None:
    Path("/proc/self/clear_refs").write_text("5")


_writes: list[str] = []
_allowed: list[str] = []


def watch_writes() -> None:
    """From now on what Python opens to write, makes, moves or removes outside the output folder is noted."""
    changing = {
        "os.mkdir",
        "os.rename",
        "os.remove",
        "os.rmdir",
        "os.link",
        "os.symlink",
        "os.truncate",
        "os.chmod",
    }

    def hook(event: str, arguments: tuple[Any, ...]) -> None:
        if not _allowed:
            return
        if event == "open":
            path, _, flags = arguments
            writing = isinstance(flags, int) and flags & (os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC)
            paths = [path] if writing and not isinstance(path, int) else []
        elif event in changing:
            folders = [a for a in arguments if isinstance(a, int) and a > 2]
            below = Path(f"/proc/self/fd/{folders[0]}").readlink() if folders and event != "os.mkdir" else ""
            paths = [
                Path(below, os.fsdecode(a)) for a in arguments[:2] if isinstance(a, (str, bytes, os.PathLike))
            ]
        elif event in ("subprocess.Popen", "os.system", "os.exec", "os.posix_spawn", "socket.connect"):
            _writes.append(f"{event} {arguments}")
            return
        else:
            return
        for path in paths:
            place = os.path.realpath(os.fsdecode(path))
            if place != os.devnull and not any(place.startswith(f"{a}/") or place == a for a in _allowed):
                _writes.append(f"{event} {place}")

    sys.dont_write_bytecode = True  # Python's own files, of modules that are imported late
    sys.addaudithook(hook)


@contextmanager
def _inside(empty: Path, out: Path) -> Iterator[None]:
    """Work in an empty folder; the output folder and a temporary one inside it may be written."""
    temporary = out / "temporary"
    temporary.mkdir()
    before, tempfile.tempdir = tempfile.tempdir, str(temporary)
    here = Path.cwd()
    os.chdir(empty)
    _allowed[:] = [os.path.realpath(out)]
    try:
        yield
    finally:
        _allowed.clear()
        os.chdir(here)
        tempfile.tempdir = before
