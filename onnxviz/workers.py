"""A scan by several processes on this machine, each with a GPU or a share of the cores."""

from __future__ import annotations

import multiprocessing
import os
import signal
import sys
import threading
from collections import deque
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from multiprocessing.connection import Connection, wait
from multiprocessing.context import SpawnProcess
from time import monotonic
from typing import Any

from onnxviz.errors import OnnxvizError
from onnxviz.forward import ranges
from onnxviz.forward.part import Part
from onnxviz.forward.ranges import Range
from onnxviz.interrupts import held_interrupts
from onnxviz.progress import Progress
from onnxviz.runtime import cores, gpus
from onnxviz.saved import SavedScan

__all__ = ["Pieces", "opened_scanner", "scan_in_processes"]

_PIECE_SECONDS = 20.0
_MOST_LOST = 3
"""How often all processes may end, one after the other, without a piece done in between."""
_LOOK = 0.2
"""Seconds between two looks at how far the processes are."""

Save = Callable[[Part], object]


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
        """Hand these out again."""
        self._todo.extendleft(reversed(some))

    def measured(self, images: int, seconds: float) -> None:
        """Note how long a worker took for a piece."""
        self._rate = images / max(seconds, 1e-3)


def opened_scanner(kit: bytes, batch: int, share: int, model: str | None = None) -> Any:
    """A scanner for a job that came as a saved scan's bytes; makes sure that model and images are those of the job.

    Args:
        share: cores that it may use.
        model: the model's path, if it is not where it was.
    """
    from onnxviz.forward.scan import Scanner
    from onnxviz.setup import open_saved

    saved = SavedScan.from_bytes(kit, "the job")
    setup = open_saved(saved, model=model, progress=Progress())
    return Scanner(
        setup.network,
        setup.source,
        setup.layers,
        setup.preprocess,
        rank=setup.rank,
        total=setup.total,
        batch_size=batch,
        share=share,
    )


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
        save: called with what is known, about ``every`` so many seconds, and when the scan is broken off.

    Raises:
        OnnxvizError: what a process failed at; or processes end again and again.
    """
    pool = _Pool(saved, workers, batch, progress, save, every)
    try:
        with held_interrupts() as check:
            return pool.scan(check)
    except BaseException as error:
        pool.stop()
        pool.keep(error)
        raise
    finally:
        pool.stop()


@dataclass
class _Worker:
    """A process, and the piece that it is at."""

    process: SpawnProcess
    connection: Connection
    counter: Any
    piece: Range | None = None
    since: float = 0.0
    ready: bool = field(default=False)


class _Pool:
    def __init__(
        self, saved: SavedScan, workers: int, batch: int, progress: Progress, save: Save | None, every: float
    ) -> None:
        self._kit = _kit(saved)
        self._batch, self._progress, self._save, self._every = batch, progress, save, every
        self._part = saved.part
        self._pieces = Pieces(saved.todo, batch, min(_PIECE_SECONDS, max(every / 2, 1.0)))
        self._shares = _shares(workers)
        self._cuda = (gpus() or 0) if saved.job.provider == "cuda" else 0
        self._lost = 0
        self._shown = ranges.count(saved.part.done)
        self._saved_at = monotonic()
        self._workers: list[_Worker | None] = [None] * workers

    def scan(self, check: Callable[[], None]) -> Part:
        while self._pieces or any(one and one.piece for one in self._workers):
            for index, one in enumerate(self._workers):
                if one is None and self._pieces:
                    self._workers[index] = self._start(index)
                elif one and one.ready and one.piece is None and self._pieces:
                    self._hand_out(one)
            there = [one for one in self._workers if one]
            wait([w for one in there for w in (one.connection, one.process.sentinel)], _LOOK)
            for one in there:
                self._listen(one)
            self._show()
            if self._save and monotonic() - self._saved_at >= self._every:
                self._save(self._part)
                self._saved_at = monotonic()
            check()
        return self._part

    def keep(self, error: BaseException) -> None:
        """Save what is known when the scan is broken off, unless saving is what failed."""
        from onnxviz.errors import AtlasError

        if self._save and not isinstance(error, AtlasError):
            self._save(self._part)

    def stop(self) -> None:
        """End all processes, whatever they are at."""
        for one in self._workers:
            if one:
                one.process.kill()
        for one in self._workers:
            if one:
                one.process.join()
                one.connection.close()
        self._workers = [None] * len(self._workers)

    def _start(self, index: int) -> _Worker:
        context = multiprocessing.get_context("spawn")
        ours, theirs = context.Pipe()
        counter = context.Value("q", 0)
        device = index % self._cuda if self._cuda else None
        process = context.Process(
            target=_serve,
            args=(theirs, counter, self._kit, self._batch, self._shares[index], device),
            name=f"onnxviz-worker-{index}",
            daemon=True,
        )
        process.start()
        theirs.close()
        return _Worker(process, ours, counter)

    def _hand_out(self, one: _Worker) -> None:
        one.piece, one.since = self._pieces.take(len(self._workers)), monotonic()
        with suppress(OSError):  # it has just ended: `_listen` sees to that
            one.connection.send(one.piece)

    def _listen(self, one: _Worker) -> None:
        try:
            while one.connection.poll():
                self._heard(one, one.connection.recv())
        except (EOFError, OSError):
            self._gone(one)

    def _heard(self, one: _Worker, answer: Any) -> None:
        if isinstance(answer, BaseException):
            raise answer
        if answer is None:
            one.ready = True
            return
        assert one.piece is not None
        self._pieces.measured(one.piece[1] - one.piece[0], monotonic() - one.since)
        self._part = self._part.merge(answer)
        for _, name, reason in answer.skipped:
            self._progress.skipped(name, reason)
        one.piece, self._lost = None, 0
        one.counter.value = 0

    def _gone(self, one: _Worker) -> None:
        """A process has ended: another one does its piece again."""
        one.process.join()
        one.connection.close()
        if one.piece:
            self._pieces.put_back([one.piece])
        self._workers[self._workers.index(one)] = None
        self._lost += 1
        code = one.process.exitcode or 0
        how = f"signal {-code}" if code < 0 else f"exit code {code}"
        if self._lost > _MOST_LOST * len(self._workers):
            raise OnnxvizError(
                f"The worker processes end again and again ({how}; signal 9 is often a lack of memory). "
                "Use fewer --workers or a smaller --batch-size."
            )
        self._progress.note(f"A worker process ended ({how}); another one does its images again.")

    def _show(self) -> None:
        """Tell how many images are done, those of unfinished pieces included."""
        now = ranges.count(self._part.done) + sum(one.counter.value for one in self._workers if one)
        if now > self._shown:
            self._progress.advance(now - self._shown)
            self._shown = now


def _kit(saved: SavedScan) -> bytes:
    """All that a worker must know of a job."""
    from dataclasses import replace

    job = saved.job
    return replace(saved, part=Part.empty(job.layers, job.top), versions=()).to_bytes(secrets=True)


def _shares(workers: int) -> list[tuple[int, ...]]:
    """The cores of each worker; with more workers than cores some are shared."""
    if sys.platform == "linux":
        there = sorted(os.sched_getaffinity(0))
    else:
        there = list(range(cores()))
    return [tuple(there[i] for i in range(w % len(there), len(there), workers)) for w in range(workers)]


def _serve(
    connection: Connection, counter: Any, kit: bytes, batch: int, share: tuple[int, ...], device: int | None
) -> None:
    """What a worker process does: scan piece after piece, until nobody asks for more."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the one who asks gets it, too, and ends us
    threading.Thread(target=_end_with_parent, daemon=True).start()
    if device is not None:
        os.environ["CUDA_VISIBLE_DEVICES"] = str(device)
    elif sys.platform == "linux":
        os.sched_setaffinity(0, share)

    def advanced(count: int) -> None:
        counter.value += count

    try:
        scanner = opened_scanner(kit, batch, len(share))
        empty = SavedScan.from_bytes(kit, "the job").part
        connection.send(None)
        while True:
            connection.send(scanner.scan(empty, [connection.recv()], advanced))
    except EOFError:
        return
    except OnnxvizError as error:
        connection.send(error)
    except Exception as error:
        connection.send(OnnxvizError(f"A worker process failed: {type(error).__name__}: {error}"))
        raise


def _end_with_parent() -> None:
    parent = multiprocessing.parent_process()
    if parent is not None:
        parent.join()
        os._exit(1)
