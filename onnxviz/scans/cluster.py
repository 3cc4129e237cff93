"""A scan on a Dask cluster: pieces of the data set are tasks, whose results are put together there, in a tree."""

from __future__ import annotations

import json
import logging
import os
import queue
import shutil
import threading
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import CancelledError
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from itertools import chain
from pathlib import Path
from time import monotonic
from typing import TYPE_CHECKING, Any

from onnxviz.errors import OnnxvizError, UsageError
from onnxviz.forward import ranges
from onnxviz.forward.part import Part
from onnxviz.forward.ranges import Range
from onnxviz.forward.saving import Save, Saving
from onnxviz.interrupts import held_interrupts
from onnxviz.model.graph import ModelFile
from onnxviz.progress import Progress
from onnxviz.scans.saved import SavedScan, versions
from onnxviz.scans.workers import Pieces, opened_scanner

try:
    from distributed import Client, Future, KilledWorker, SchedulerPlugin, WorkerPlugin, get_worker
    from distributed.comm import get_address_host_port
    from distributed.versions import VersionMismatchWarning
except ImportError as error:
    raise UsageError(
        "Scanning on a cluster needs Dask: pip install 'onnxviz[cluster]' (here and on the workers)."
    ) from error

if TYPE_CHECKING:
    from onnxviz.forward.scan import Scanner

__all__ = ["scan_on_cluster"]

_PIECE_SECONDS = 10.0
_SENT = 64 << 20
"""Bytes of the model that are sent at a time."""
_JOINED = 8
"""Results that one task puts together."""
_CONNECT, _FIRST_WORKER, _NO_WORKERS = 15.0, 60.0, 600.0
"""Seconds to wait for the scheduler, for a first worker, and for one after all were lost."""
_LOOK, _ASK, _FETCH = 0.2, 1.0, 1.0
"""Seconds: between two looks at Ctrl-C, between two at the workers, and to wait for a result."""
_PATIENCE = 10.0
"""Seconds that a scan that is broken off waits for results that are being put together."""
_MOST_LOST = 2
"""How often Dask may give a piece up, as it does when several workers, one after the other, have ended under it."""

_SCHEDULER_GONE = (
    "The connection to the cluster's scheduler is lost. The same command goes on from what is saved."
)


def scan_on_cluster(
    saved: SavedScan, address: str, batch: int, *, progress: Progress, save: Save | None, every: float
) -> Part:
    """Scan what is left of a job on a cluster; the result is the same to the last bit as that of one process.

    Workers must have onnxviz, and see the images where they are. They may come and go: what was with a lost one is
    done again. The model is sent to each once.

    Args:
        address: of the scheduler, such as tcp://host:8786, or the path of its scheduler file.
        batch: images a run, the same for all.
        save: called with what is known, about ``every`` so many seconds, and at the end, also when the scan is broken
            off.

    Raises:
        UsageError: there is no such cluster, or Dask is not installed.
        OnnxvizError: the scheduler is gone, or a worker failed at its work.
    """
    with (
        _without_logs(),
        _connected(address) as client,
        _equipped(client, saved, batch, progress) as name,
    ):
        scan = _Scan(client, name, saved, batch, progress, save, every)
        try:
            with held_interrupts() as check:
                return scan.run(check)
        except BaseException as error:
            scan.keep(error)
            raise


@contextmanager
def _without_logs() -> Iterator[None]:
    """Keep Dask from printing what it logs, unless the logger "onnxviz" is set to debug."""
    if logging.getLogger("onnxviz").isEnabledFor(logging.DEBUG):
        yield
        return
    loggers = [logging.getLogger(name) for name in logging.root.manager.loggerDict if _is_dask(name)]
    handlers = [one.handlers for one in loggers]
    for one in loggers:
        if one.handlers:
            one.handlers = [logging.NullHandler()]
    try:
        yield
    finally:
        for one, usual in zip(loggers, handlers, strict=True):
            one.handlers = usual


def _is_dask(name: str) -> bool:
    return name.partition(".")[0] in ("distributed", "tornado")


@contextmanager
def _connected(address: str) -> Iterator[Client]:
    place = _place(address)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", VersionMismatchWarning)
            client = Client(place, timeout=_CONNECT, set_as_default=False)
    except (OSError, ValueError, TimeoutError) as error:
        raise UsageError(
            f"--cluster {address}: no Dask scheduler answers there ({_line(error)}). Give its address, such as "
            "tcp://host:8786, or its scheduler file."
        ) from error
    except ImportError as error:
        raise OnnxvizError(
            f"--cluster {address}: the scheduler cannot work with this one: {_line(error)}."
        ) from error
    try:
        yield client
    finally:
        with suppress(OSError, TimeoutError):
            client.close(timeout=5)


def _place(address: str) -> str:
    """The scheduler's address, out of its file if it is one. Dask's client takes half a minute over a wrong one."""
    found: Any = address
    if "://" not in address and Path(address).is_file():
        try:
            found = json.loads(Path(address).read_bytes())["address"]
        except (OSError, ValueError, LookupError, TypeError) as error:
            raise UsageError(f"--cluster {address}: not a scheduler file of Dask.") from error
    try:
        if not get_address_host_port(found)[0]:
            raise ValueError("there is no host in it")
    except (ValueError, TypeError) as error:
        raise UsageError(
            f"--cluster {address}: neither a file nor an address ({_line(error)}). Give the scheduler's address, such "
            "as tcp://host:8786, or its scheduler file."
        ) from error
    return str(found)


def _line(error: BaseException) -> str:
    lines = str(error).splitlines()
    return f"{lines[0]:.200}" if lines else type(error).__name__


@contextmanager
def _equipped(client: Client, saved: SavedScan, batch: int, progress: Progress) -> Iterator[str]:
    """Give the job to all workers, those to come too, until the scan is over."""
    _wait_for_workers(client, progress)
    job = f"onnxviz-{os.urandom(8).hex()}"
    given: list[str] = []
    try:
        try:
            client.register_plugin(_sweeper(job, client.id), name=f"{job}-sweeper")
            for plugin in chain(_model(job, saved), [_Kit(job, saved, batch)]):
                name = f"{job}-{len(given)}"
                given.append(name)
                client.register_plugin(plugin, name=name)
        except Exception as error:  # whatever a worker met with
            raise OnnxvizError(
                f"The cluster cannot take the job ({_line(error)}). Its workers need onnxviz[cluster], in the version "
                "that is here, and room on the disk for the model."
            ) from error
        yield job
    finally:
        for name in reversed(given):
            if client.status == "running":
                with suppress(Exception):  # the scheduler may be gone
                    client.unregister_worker_plugin(name)


def _sweeper(job: str, owner: str) -> SchedulerPlugin:
    """Takes the job from the workers when the client is gone that gave it, however it went.

    The class is made here so that it is sent whole: the scheduler need not have onnxviz.
    """

    class Sweeper(SchedulerPlugin):  # type: ignore[misc]
        def remove_client(self, scheduler: Any, client: str) -> None:
            if client != owner:
                return
            for name in reversed(scheduler.worker_plugins):
                if name.startswith(job):
                    scheduler.loop.add_callback(scheduler.unregister_worker_plugin, None, name)
            scheduler.loop.add_callback(scheduler.remove_plugin, f"{job}-sweeper")

    return Sweeper()


def _wait_for_workers(client: Client, progress: Progress) -> None:
    if client.nthreads():
        return
    progress.note("The cluster has no workers yet: waiting for the first.")
    try:
        client.wait_for_workers(1, timeout=_FIRST_WORKER)
    except TimeoutError as error:
        raise OnnxvizError(
            f"The cluster has no workers, and none came within {_FIRST_WORKER:.0f} seconds. Start some: dask worker …"
        ) from error


def _model(job: str, saved: SavedScan) -> Iterator[_Bytes]:
    """The model's files, in pieces: Dask makes several copies of what it sends."""
    model = Path(saved.origin.model)
    for location in (model.name, *ModelFile(model, saved.origin.feeds).weight_files):
        with (model.parent / location).open("rb") as file:
            offset, data = 0, file.read(_SENT)
            while data or not offset:
                yield _Bytes(job, location, offset, data)
                offset, data = offset + max(len(data), 1), file.read(_SENT)


def _folder(worker: Any, job: str) -> Path:
    """Where a worker keeps a job's model."""
    return Path(worker.local_directory) / job


class _Bytes(WorkerPlugin):  # type: ignore[misc]
    """A piece of one of the model's files, as workers get it."""

    idempotent = True

    def __init__(self, job: str, location: str, offset: int, data: bytes) -> None:
        self.job, self.location, self.offset, self.data = job, location, offset, data

    def setup(self, worker: Any) -> None:
        """Write it to the worker's own folder."""
        path = _folder(worker, self.job) / self.location
        path.parent.mkdir(parents=True, exist_ok=True)
        with path.open("r+b" if path.exists() else "wb") as file:
            file.seek(self.offset)
            file.write(self.data)
        self.data = b""

    def teardown(self, worker: Any) -> None:
        """Remove the folder."""
        shutil.rmtree(_folder(worker, self.job), ignore_errors=True)


class _Kit(WorkerPlugin):  # type: ignore[misc]
    """A job as workers get it: what to scan, the model excepted."""

    idempotent = True

    def __init__(self, job: str, saved: SavedScan, batch: int) -> None:
        self.job, self.kit, self.batch = job, saved.kit(), batch
        self.model = Path(saved.origin.model).name

    def setup(self, worker: Any) -> None:
        """Get ready; the model and the images are opened by the first task."""
        _DESKS[self.job, worker.id] = _Desk(self.kit, self.batch, _folder(worker, self.job) / self.model)

    def teardown(self, worker: Any) -> None:
        """Forget the job."""
        if desk := _DESKS.pop((self.job, worker.id), None):
            desk.given_up = True


class _Desk:
    """A job where a worker does it: the network and the images, opened once for all its tasks.

    The worker does as many tasks at a time as it has threads, so that each may use a core.
    """

    def __init__(self, job: bytes, batch: int, model: Path) -> None:
        self.job, self.batch, self.model = job, batch, model
        self.given_up = False
        self._lock = threading.Lock()
        self._scanner: Scanner | None = None
        self.saved = SavedScan.from_bytes(job, "the job")

    def scanner(self) -> Scanner:
        with self._lock:
            if self._scanner is None:
                self._scanner = opened_scanner(self.job, self.batch, 1, str(self.model))
            return self._scanner

    def advanced(self, count: int) -> None:
        """A batch is done: go on if somebody still wants to know."""
        if self.given_up:
            raise OnnxvizError("The scan was broken off.")


_DESKS: dict[tuple[str, str], _Desk] = {}
"""Of a process: the jobs of its workers (there may be several), by name and worker."""


def _scan(name: str, piece: Range) -> Part:
    """A task: scan a piece."""
    worker = get_worker()
    desk = _DESKS.get((name, worker.id))
    if desk is None:
        raise OnnxvizError(f"The worker {worker.address} could not take the job; its log says why.")
    try:
        part = desk.scanner().scan(desk.saved.part, [piece], desk.advanced)
    except OnnxvizError as error:
        raise type(error)(f"On the worker {worker.address}: {error}") from error
    if versions() not in desk.saved.versions:
        part = replace(part, notes=(*part.notes, f"Some images were scanned with {versions()}."))
    return part


def _join(parts: Sequence[Part]) -> Part:
    """A task: put results together."""
    first, *others = parts
    for other in others:
        first = first.merge(other)
    return first


@dataclass(eq=False)
class _Result:
    """What a task will give or has given: what is known of some images."""

    future: Future
    pieces: tuple[Range, ...]
    level: int
    since: float


class _Scan:
    def __init__(
        self,
        client: Client,
        name: str,
        saved: SavedScan,
        batch: int,
        progress: Progress,
        save: Save | None,
        every: float,
    ) -> None:
        self._client, self._name, self._progress = client, name, progress
        self._saving = Saving(save, every)
        self._part = saved.part
        self._pieces = Pieces(saved.todo, batch, min(_PIECE_SECONDS, max(every / 2, 1.0)))
        self._running: dict[str, _Result] = {}
        self._ready: list[_Result] = []
        self._ended: queue.SimpleQueue[str] = queue.SimpleQueue()
        self._lost: dict[Range, int] = {}
        self._workers: dict[str, int] = {}
        self._asked_at, self._there_at = -_ASK, monotonic()
        self._number = 0
        self._shown = ranges.count(saved.part.done)

    def run(self, check: Callable[[], None]) -> Part:
        while self._pieces or self._running or self._ready:
            self._look_around()
            self._hand_out()
            self._listen()
            self._show()
            if not (self._pieces or self._running):
                self._collect()
            elif self._saving.due:
                self._collect()
                self._saving.now(self._part)
            check()
        self._saving.now(self._part)
        return self._part

    def keep(self, error: BaseException) -> None:
        """Get what is there, save it, and let the cluster forget the rest."""
        with suppress(Exception):
            self._let_go([key for key, one in self._running.items() if one.level == 0])
            # Results that are being put together are done, too; it goes on as soon as a thread is free.
            end = monotonic() + _PATIENCE
            while self._running and monotonic() < end:
                self._listen()
        with suppress(Exception):
            self._collect()
        with suppress(Exception):
            self._let_go(list(self._running))
        if self._saving.wanted_after(error):
            self._saving.now(self._part)

    def _let_go(self, keys: Sequence[str]) -> None:
        """Forget tasks, here and on the cluster."""
        futures = [self._running.pop(key).future for key in keys]
        self._client.cancel(futures, force=True)

    def _look_around(self) -> None:
        """See which workers there are, and tell what is new."""
        if self._client.status != "running":
            raise OnnxvizError(_SCHEDULER_GONE)
        if monotonic() - self._asked_at < _ASK:
            return
        self._asked_at = monotonic()
        now: dict[str, int] = dict(self._ask(self._client.nthreads))
        came, gone = len(now.keys() - self._workers), len(self._workers.keys() - now)
        if came or gone:
            self._progress.note(_news(now, came if self._workers else 0, gone))
        if now:
            self._there_at = monotonic()
        elif monotonic() - self._there_at > _NO_WORKERS:
            raise OnnxvizError(
                f"The cluster has had no workers for {_NO_WORKERS / 60:.0f} minutes. The same command goes on from "
                "what is saved."
            )
        self._workers = now

    def _hand_out(self) -> None:
        """Keep two pieces for each thread of the cluster: one at work, and one in wait."""
        places = 2 * max(sum(self._workers.values()), 1)
        scans = sum(one.level == 0 for one in self._running.values())
        while self._pieces and scans < places:
            piece = self._pieces.take(places)
            self._submit(_scan, self._name, piece, pieces=(piece,), level=0)
            scans += 1

    def _submit(
        self, task: Callable[..., Part], *arguments: Any, pieces: tuple[Range, ...], level: int
    ) -> None:
        self._number += 1
        key = f"{self._name}-{self._number}"
        future = self._ask(lambda: self._client.submit(task, *arguments, key=key, pure=False, priority=level))
        self._running[key] = _Result(future, pieces, level, monotonic())
        future.add_done_callback(lambda ended: self._ended.put(ended.key))

    def _ask(self, action: Callable[[], Any]) -> Any:
        try:
            return action()
        except (OSError, RuntimeError, TimeoutError) as error:
            raise OnnxvizError(_SCHEDULER_GONE) from error

    def _listen(self) -> None:
        """See to tasks that have ended."""
        with suppress(queue.Empty):
            self._heard(self._ended.get(timeout=_LOOK))
            while True:
                self._heard(self._ended.get_nowait())

    def _heard(self, key: str) -> None:
        one = self._running.pop(key, None)
        if one is None:
            return
        if one.future.status != "finished":
            self._failed(one)
            return
        if one.level == 0:
            images = ranges.count(one.pieces)
            # Two pieces wait for each other in a thread.
            self._pieces.measured(images, (monotonic() - one.since) / 2)
        self._ready.append(one)
        alike = [other for other in self._ready if other.level == one.level]
        if len(alike) >= _JOINED:
            self._ready = [other for other in self._ready if other.level != one.level]
            pieces = ranges.joined(piece for other in alike for piece in other.pieces)
            self._submit(_join, [other.future for other in alike], pieces=pieces, level=one.level + 1)

    def _failed(self, one: _Result) -> None:
        """Do a piece again whose worker was lost; a failure at the work itself ends the scan."""
        if one.future.status == "error":
            error = one.future.exception()
            if isinstance(error, OnnxvizError):
                raise error
            if not isinstance(error, KilledWorker):
                raise OnnxvizError(
                    f"A worker of the cluster failed: {type(error).__name__}: {error}"
                ) from error
        elif self._client.status != "running":
            raise OnnxvizError(_SCHEDULER_GONE)
        self._again(one)

    def _again(self, one: _Result) -> None:
        """Have the images of a result scanned again."""
        for piece in one.pieces:
            self._lost[piece] = self._lost.get(piece, 0) + 1
            if self._lost[piece] > _MOST_LOST:
                raise OnnxvizError(
                    f"Workers end again and again at images {piece[0]:,} to {piece[1] - 1:,}; perhaps they lack "
                    "memory: try a smaller --batch-size."
                )
        self._pieces.put_back(one.pieces)

    def _collect(self) -> None:
        """Fetch the results that are there. One whose worker was lost meanwhile stays: Dask computes it again."""
        for one in tuple(self._ready):
            try:
                result: Part = one.future.result(timeout=_FETCH)
            except TimeoutError:
                continue
            except (KilledWorker, CancelledError):
                self._ready.remove(one)
                self._again(one)
                continue
            except OSError as error:
                raise OnnxvizError(_SCHEDULER_GONE) from error
            for _, name, reason in result.skipped:
                self._progress.skipped(name, reason)
            self._part = self._part.merge(result)
            self._ready.remove(one)

    def _show(self) -> None:
        """Tell how many images are done, those included whose results are still on the cluster."""
        there = [*self._ready, *(one for one in self._running.values() if one.level > 0)]
        now = ranges.count(self._part.done) + sum(ranges.count(one.pieces) for one in there)
        if now > self._shown:
            self._progress.advance(now - self._shown)
            self._shown = now


def _news(workers: Mapping[str, int], came: int, gone: int) -> str:
    """What workers and threads there are, and how many came and went."""
    threads = sum(workers.values())
    found = f"{len(workers):,} worker{'' if len(workers) == 1 else 's'} with {threads:,} thread"
    found = f"{found}{'' if threads == 1 else 's'}" if workers else "no workers any more: waiting for some"
    changes = [f"{gone:,} lost, whose work is done again"] if gone else []
    changes += [f"{came:,} new"] if came else []
    more = f" ({'; '.join(changes)})" if changes else ""
    return f"The cluster has {found}{more}."
