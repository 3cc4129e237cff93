"""A scan by several processes on this machine, each with a GPU or a share of the cores.

What the processes and the one that started them tell each other goes through their standard input and output as
pickles. A process asks for a piece whenever it begins to decode its last one, so that it never waits for the next;
it gives what it found now and then, when there is nothing left, and when it is told to stop.
"""

from __future__ import annotations

import os
import pickle
import queue
import subprocess
import sys
import threading
import traceback
import warnings
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import closing, suppress
from dataclasses import dataclass
from multiprocessing.spawn import get_executable
from time import monotonic
from typing import IO, TYPE_CHECKING, Any

from onnxviz.errors import OnnxvizError
from onnxviz.forward import ranges
from onnxviz.forward.part import Part
from onnxviz.forward.ranges import Range
from onnxviz.forward.saving import Save, Saving
from onnxviz.interrupts import held_interrupts
from onnxviz.progress import Progress
from onnxviz.runtime import cores, gpus
from onnxviz.scans.saved import SavedScan

if TYPE_CHECKING:
    from onnxviz.forward.scan import Scanner

__all__ = ["Pieces", "opened_scanner", "scan_in_processes", "serve"]

_PIECE_SECONDS = 4.0
_GIVE_SECONDS = 10.0
"""About how often a process gives what it found."""
_MOST_LOST = 3
"""How often each process may end, one after the other, without anything found in between."""
_LOOK = 0.2
"""Seconds between two looks at Ctrl-C."""
_PATIENCE = 10.0
"""Seconds that processes get to give what they found when the scan is broken off."""


class Pieces:
    """What is still to be scanned, handed out in pieces of about so many seconds, smaller ones towards the end.

    Pieces end at multiples of the batch, so that each image is in the batch that it would be in without them.
    """

    def __init__(self, todo: Sequence[Range], batch: int, seconds: float) -> None:
        self._todo = deque(todo)
        self._batch, self._seconds = batch, seconds
        self._rate = 0.0

    def __bool__(self) -> bool:
        return bool(self._todo)

    def take(self, workers: int) -> Range:
        """The next piece, for one of so many workers."""
        start, stop = self._todo.popleft()
        left = stop - start + ranges.count(self._todo)
        images = min(self._rate * self._seconds, left / (2 * workers)) if self._rate else self._batch
        last = (start // self._batch + max(1, round(images / self._batch))) * self._batch
        if last < stop:
            self._todo.appendleft((last, stop))
        return start, min(stop, last)

    def put_back(self, some: Sequence[Range]) -> None:
        """Hand these out again, before others."""
        self._todo.extendleft(reversed(some))

    def measured(self, images: int, seconds: float) -> None:
        """Note how long a worker took for some images."""
        self._rate = images / max(seconds, 1e-3)


def opened_scanner(kit: bytes, batch: int, share: int, model: str | None = None) -> Scanner:
    """A scanner for a job that came as a saved scan's bytes; makes sure that model and images are those of the job.

    Args:
        share: cores that it may use.
        model: the model's path, if it is not where it was.
    """
    from onnxviz.setup import open_saved

    saved = SavedScan.from_bytes(kit, "the job")
    return open_saved(saved, model=model, progress=Progress()).scanner(batch, share)


def scan_in_processes(
    saved: SavedScan,
    workers: int,
    batch: int,
    *,
    progress: Progress,
    save: Save | None,
    every: float,
) -> Part:
    """Scan what is left of a job in several processes; the result is the same to the last bit as that of one.

    Args:
        batch: images a run, the same for all.
        save: called with what is known, about ``every`` so many seconds, and at the end, also when the scan is broken
            off.

    Raises:
        OnnxvizError: what a process failed at; or processes end again and again.
    """
    pool = _Pool(saved, workers, batch, progress, save, every)
    try:
        with held_interrupts() as check:
            return pool.scan(check)
    except BaseException as error:
        pool.keep(error)
        raise
    finally:
        pool.end()


# What processes say: a number of images that are done more, or one of these.


@dataclass(frozen=True)
class _Ask:
    """For the next piece."""


@dataclass(frozen=True)
class _Give:
    """What is found since it was last given; ``all``: nothing else is at work."""

    part: Part
    all: bool


@dataclass(frozen=True)
class _Failed:
    error: OnnxvizError


@dataclass(frozen=True)
class _Warned:
    text: str
    category: type[Warning]
    file: str
    line: int


@dataclass(frozen=True)
class _Ended:
    """Nothing more will be heard of it."""


# What they are told: a piece, or one of these.


@dataclass(frozen=True)
class _NothingLeft:
    """For now; give what you have."""


@dataclass(frozen=True)
class _Stop:
    """Give what you have, whatever you are at."""


@dataclass
class _Worker:
    """A process, the images that it was told to scan and has not given, and how many of them are done.

    ``asks``: it waits for a piece. ``scanned`` images it has done ``since`` then.
    """

    process: subprocess.Popen[bytes]
    reader: threading.Thread
    owed: tuple[Range, ...] = ()
    advanced: int = 0
    asks: bool = False
    scanned: int = 0
    since: float = 0.0

    def tell(self, message: Any) -> None:
        stream = self.process.stdin
        assert stream
        with suppress(OSError):  # it has just ended: `_Ended` is on its way
            pickle.dump(message, stream)
            stream.flush()


class _Pool:
    def __init__(
        self, saved: SavedScan, workers: int, batch: int, progress: Progress, save: Save | None, every: float
    ) -> None:
        self._progress, self._saving = progress, Saving(save, every)
        seconds = min(_GIVE_SECONDS, max(every / 2, 1.0))
        self._task = (saved.kit(), batch, seconds)
        self._part = saved.part
        workers = min(workers, sum(1 for _ in ranges.pieces(saved.todo, batch)))
        self._pieces = Pieces(saved.todo, batch, min(_PIECE_SECONDS, seconds))
        self._shares = _shares(workers)
        self._gpus = _gpu_names() if saved.job.provider == "cuda" else []
        self._lost = 0
        self._shown = ranges.count(saved.part.done)
        self._workers: list[_Worker | None] = [None] * workers
        self._heard: queue.SimpleQueue[tuple[int, Any]] = queue.SimpleQueue()

    def scan(self, check: Callable[[], None]) -> Part:
        while self._pieces or any(one and one.owed for one in self._workers):
            for index, one in enumerate(self._workers):
                if one is None and self._pieces:
                    self._workers[index] = self._start(index)
                elif one and one.asks and self._pieces:
                    self._hand_out(one)
            self._listen(_LOOK)
            self._show()
            if self._saving.due:
                self._saving.now(self._part)
            check()
        self._saving.now(self._part)
        return self._part

    def keep(self, error: BaseException) -> None:
        """Collect and save what is known when the scan is broken off, unless saving is what failed."""
        if not self._saving.wanted_after(error):
            return
        for one in self._there():
            if one.owed:
                one.tell(_Stop())
        until = monotonic() + _PATIENCE
        while any(one.owed and one.advanced for one in self._there()) and monotonic() < until:
            with suppress(OnnxvizError):  # the first one is what is told
                self._listen(_LOOK, stopping=True)
        self._saving.now(self._part)

    def end(self) -> None:
        """End all processes, whatever they are at."""
        for one in self._there():
            one.process.kill()
        for one in self._there():
            _buried(one)
        self._workers = [None] * len(self._workers)

    def _there(self) -> list[_Worker]:
        return [one for one in self._workers if one]

    def _start(self, index: int) -> _Worker:
        environment = dict(os.environ)
        if self._gpus:
            environment["CUDA_VISIBLE_DEVICES"] = self._gpus[index % len(self._gpus)]
        share = self._shares[index]
        try:
            process = subprocess.Popen(
                [get_executable(), "-P", "-c", _BEGIN],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                env=environment,
                **_APART,
            )
        except OSError as error:
            raise OnnxvizError(
                f"Worker process {index + 1} cannot be started ({error.strerror or error}). Use fewer --workers."
            ) from error
        assert process.stdout
        reader = threading.Thread(
            target=_read, args=(process.stdout, index, self._heard), name="onnxviz-reader", daemon=True
        )
        one = _Worker(process, reader)
        one.tell(sys.path)
        one.tell((*self._task, share))
        reader.start()
        return one

    def _hand_out(self, one: _Worker) -> None:
        piece = self._pieces.take(len(self._workers))
        if not one.owed:
            one.scanned, one.since = 0, monotonic()
        one.owed = ranges.joined((*one.owed, piece))
        one.asks = False
        one.tell(piece)

    def _listen(self, timeout: float, *, stopping: bool = False) -> None:
        """See to all that was said, once there is something."""
        with suppress(queue.Empty):
            index, message = self._heard.get(timeout=timeout)
            while True:
                one = self._workers[index]
                assert one
                if isinstance(message, _Ended):
                    self._gone(index, one, stopping)
                else:
                    self._take(one, message, stopping)
                index, message = self._heard.get_nowait()

    def _take(self, one: _Worker, message: Any, stopping: bool) -> None:
        match message:
            case int():
                one.advanced += message
                one.scanned += message
                self._pieces.measured(one.scanned, monotonic() - one.since)
            case _Ask() if stopping:
                pass
            case _Ask() if self._pieces:
                self._hand_out(one)
            case _Ask() if one.owed:
                one.tell(_NothingLeft())
            case _Ask():
                one.asks = True
            case _Give(part=part):
                self._part = self._part.merge(part)
                for _, name, reason in part.skipped:
                    self._progress.skipped(name, reason)
                one.owed = () if message.all else _without(one.owed, part.done)
                one.advanced -= ranges.count(part.done)
                self._lost = 0
            case _Warned():
                warnings.warn_explicit(message.text, message.category, message.file, message.line)
            case _Failed(error=error):
                raise error

    def _gone(self, index: int, one: _Worker, stopping: bool) -> None:
        """A process has ended: others do what it has not given."""
        self._workers[index] = None
        code = _buried(one)
        if stopping:
            return
        self._pieces.put_back(one.owed)
        self._lost += 1
        how = f"signal {-code}{_LACK if code == -9 else ''}" if code < 0 else f"exit code {code}"
        if self._lost > _MOST_LOST * len(self._workers):
            raise OnnxvizError(
                f"The worker processes end again and again ({how}). Use fewer --workers or a smaller --batch-size."
            )
        again = f" {one.advanced:,} images are scanned again." if one.advanced else ""
        self._progress.note(f"A worker process ended ({how}); another takes its place.{again}")

    def _show(self) -> None:
        """Tell how many images are done, those included that are not given yet."""
        now = ranges.count(self._part.done) + sum(one.advanced for one in self._there())
        if now > self._shown:
            self._progress.advance(now - self._shown)
            self._shown = now


_LACK = ", often a lack of memory"
_BEGIN = (
    "import pickle, sys; sys.path[:] = pickle.load(sys.stdin.buffer); "
    "task = pickle.load(sys.stdin.buffer); from onnxviz.scans.workers import serve; serve(*task)"
)
"""What a process runs; unlike multiprocessing's, it does not import the program that started it."""

# Ctrl-C reaches all processes of a terminal's group: these must not end of it.
_APART: Mapping[str, Any] = (
    {"creationflags": getattr(subprocess, "CREATE_NEW_PROCESS_GROUP", 0)}
    if sys.platform == "win32"
    else {"process_group": 0}
)


def _read(stream: IO[bytes], index: int, heard: queue.SimpleQueue[tuple[int, Any]]) -> None:
    """Pass on what a process says, until it ends."""
    with suppress(Exception):  # whatever comes of half a pickle
        while True:
            heard.put((index, pickle.load(stream)))
    heard.put((index, _Ended()))


def _buried(one: _Worker) -> int:
    """See a process off whose end is near; its exit code, or the negative number of a signal."""
    with suppress(OSError):
        one.process.stdin.close()  # type: ignore[union-attr]
    code = one.process.wait()
    one.reader.join()
    one.process.stdout.close()  # type: ignore[union-attr]
    return code


def _without(some: Sequence[Range], others: Sequence[Range]) -> tuple[Range, ...]:
    return ranges.joined(left for one in some for left in ranges.missing(others, one))


def _shares(workers: int) -> list[int]:
    """How many cores each worker may keep at work; the system sees to which. At least one, which they may share."""
    there = cores()
    return [max(1, there // workers + (number < there % workers)) for number in range(workers)]


def _gpu_names() -> list[str]:
    """The GPUs that this process may use, as CUDA_VISIBLE_DEVICES names them."""
    count = gpus() or 0
    named = [name.strip() for name in os.environ.get("CUDA_VISIBLE_DEVICES", "").split(",") if name.strip()]
    return named[:count] if named else [str(number) for number in range(count)]


def serve(kit: bytes, batch: int, seconds: float, share: int) -> None:
    """What a worker process does: scan piece after piece, until it is ended.

    Args:
        kit: the job.
        seconds: give what is found about so often.
        share: how many cores it may keep at work.
    """
    # What libraries print must not get in between.
    out = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)
    told: queue.SimpleQueue[Any] = queue.SimpleQueue()
    stopped = threading.Event()
    threading.Thread(target=_obey, args=(told, stopped), daemon=True).start()

    saying = threading.Lock()

    def say(message: Any) -> None:
        with saying:
            pickle.dump(message, out)
            out.flush()

    def warned(
        message: Warning | str,
        category: type[Warning],
        filename: str,
        lineno: int,
        file: Any = None,
        line: str | None = None,
    ) -> None:
        say(_Warned(str(message), category, filename, lineno))

    warnings.showwarning = warned

    code = 1
    try:
        _work(opened_scanner(kit, batch, share), kit, seconds, say, told, stopped)
        code = 0
    except BrokenPipeError:
        pass
    except OnnxvizError as error:
        say(_Failed(error))
    except Exception as error:
        failure = OnnxvizError(f"A worker process failed: {type(error).__name__}: {error}")
        failure.add_note(traceback.format_exc())  # --debug and the log file show it
        say(_Failed(failure))
    os._exit(code)  # Python's own way out would wait for the thread that listens


def _obey(told: queue.SimpleQueue[Any], stopped: threading.Event) -> None:
    """Take down what the process is told; end it when nobody is there any more to tell it anything."""
    with suppress(Exception):
        while True:
            message = pickle.load(sys.stdin.buffer)
            if isinstance(message, _Stop):
                stopped.set()
            told.put(message)
    os._exit(1)


def _work(
    scanner: Scanner,
    kit: bytes,
    seconds: float,
    say: Callable[[Any], None],
    told: queue.SimpleQueue[Any],
    stopped: threading.Event,
) -> None:
    empty = SavedScan.from_bytes(kit, "the job").part

    def pieces() -> Iterator[Range]:
        """Until there is nothing left for now."""
        while True:
            say(_Ask())
            piece = told.get()
            if not isinstance(piece, tuple):
                return
            yield piece

    while not stopped.is_set():
        tally, since = scanner.tally(empty), monotonic()
        try:
            with closing(scanner.batches(pieces(), lambda: None)) as batches:
                for batch in batches:
                    tally.add(batch)
                    say(batch.done[1] - batch.done[0])
                    if stopped.is_set():
                        break
                    if monotonic() - since >= seconds:
                        say(_Give(scanner.known(tally), all=False))
                        tally, since = scanner.tally(empty), monotonic()
        except Exception:
            if tally.whole:
                say(_Give(scanner.known(tally), all=False))
            raise
        say(_Give(scanner.known(tally), all=True))
