"""A scan on a Dask cluster: pieces of the data set are tasks, whose results are put together there, in a tree."""

from __future__ import annotations

import contextlib
import os
import queue
import shutil
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from pathlib import Path
from time import monotonic
from typing import Any

from onnxviz.errors import AtlasError, OnnxvizError, UsageError
from onnxviz.forward import ranges
from onnxviz.forward.part import Part
from onnxviz.forward.ranges import Range
from onnxviz.interrupts import held_interrupts
from onnxviz.model.graph import ModelFile
from onnxviz.progress import Progress
from onnxviz.runtime import cores
from onnxviz.saved import SavedScan, versions
from onnxviz.workers import Pieces, opened_scanner

try:
    from distributed import Client, Future, KilledWorker, WorkerPlugin
except ImportError as error:
    raise UsageError(
        "Scanning on a cluster needs Dask: pip install 'onnxviz[cluster]' (here and on the workers)."
    ) from error

__all__ = ["scan_on_cluster"]

_PIECE_SECONDS = 20.0
_JOINED = 8
"""Results that one task puts together."""
_CONNECT, _FIRST_WORKER = 15.0, 60.0
_LOOK = 0.2
_MOST_LOST = 10
"""How often workers may end under the same piece."""

Save = Callable[[Part], object]


def scan_on_cluster(
    saved: SavedScan, address: str, batch: int, *, progress: Progress, save: Save | None, every: float
) -> Part:
    """Scan what is left of a job on a cluster; the result is the same to the last bit as that of one process.

    Workers must have onnxviz, and see the images where they are. They may come and go: what was with a lost one is
    done again. The model is sent to each once.

    Args:
        address: of the scheduler, such as tcp://host:8786, or the path of its scheduler file.
        batch: images a run, the same for all.
        save: called with what is known, about ``every`` so many seconds, and when the scan is broken off.

    Raises:
        UsageError: there is no such cluster, or Dask is not installed.
        OnnxvizError: the scheduler is gone, or a worker failed at its work.
    """
    with _connected(address) as client, _equipped(client, saved, batch, progress) as name:
        scan = _Scan(client, name, saved, batch, progress, save, every)
        try:
            with held_interrupts() as check:
                return scan.run(check)
        except BaseException as error:
            scan.keep(error)
            raise


@contextmanager
def _connected(address: str) -> Iterator[Client]:
    place = (
        {"address": address}
        if "://" in address or not Path(address).exists()
        else {"scheduler_file": address}
    )
    try:
        client = Client(**place, timeout=_CONNECT, set_as_default=False)
    except (OSError, ValueError, TimeoutError) as error:
        raise UsageError(
            f"--cluster {address}: no Dask scheduler answers there ({str(error).splitlines()[0]:.200}). Give its "
            "address, such as tcp://host:8786, or its scheduler file."
        ) from error
    try:
        yield client
    finally:
        with suppress(OSError, TimeoutError):
            client.close(timeout=5)


@contextmanager
def _equipped(client: Client, saved: SavedScan, batch: int, progress: Progress) -> Iterator[str]:
    """Give the job to all workers, those to come too, until the scan is over."""
    _wait_for_workers(client, progress)
    name = f"onnxviz-{os.urandom(8).hex()}"
    client.register_plugin(_Kit(name, saved, batch), name=name)
    try:
        yield name
    finally:
        with suppress(Exception):  # the scheduler may be gone
            client.unregister_worker_plugin(name)


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


class _Kit(WorkerPlugin):  # type: ignore[misc]
    """A job as workers get it: what to scan, and the model's files."""

    idempotent = True

    def __init__(self, name: str, saved: SavedScan, batch: int) -> None:
        self.name, self.batch = name, batch
        empty = Part.empty(saved.job.layers, saved.job.top)
        self.job = replace(saved, part=empty, versions=(versions(),)).to_bytes(secrets=True)
        model = Path(saved.origin.model)
        self.files = {
            location: (model.parent / location).read_bytes()
            for location in (model.name, *ModelFile(model, saved.origin.feeds).weight_files)
        }
        self.model = model.name

    def setup(self, worker: Any) -> None:
        """Write the model's files to the worker's own folder; they are opened by the first task."""
        folder = Path(worker.local_directory) / self.name
        for location, data in self.files.items():
            path = folder / location
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(data)
        self.files = {}
        share = max(1, cores() // max(worker.state.nthreads, 1))
        _DESKS[self.name] = _Desk(self.job, self.batch, share, folder / self.model)

    def teardown(self, worker: Any) -> None:
        """Forget the job."""
        if desk := _DESKS.pop(self.name, None):
            shutil.rmtree(desk.model.parent, ignore_errors=True)


class _Desk:
    """A job where a worker does it: the network and the images, opened once for all tasks of the process."""

    def __init__(self, job: bytes, batch: int, share: int, model: Path) -> None:
        self.job, self.batch, self.share, self.model = job, batch, share, model
        self._lock = threading.Lock()
        self._scanner: Any = None
        self.saved = SavedScan.from_bytes(job, "the job")

    def scanner(self) -> Any:
        with self._lock:
            if self._scanner is None:
                self._scanner = opened_scanner(self.job, self.batch, self.share, str(self.model))
            return self._scanner


_DESKS: dict[str, _Desk] = {}
"""Of a worker process: its jobs by name."""


def _scan(name: str, piece: Range) -> Part:
    """A task: scan a piece."""
    desk = _DESKS[name]
    part: Part = desk.scanner().scan(desk.saved.part, [piece])
    if versions() not in desk.saved.versions:
        part = replace(part, notes=(*part.notes, f"Some images were scanned with {versions()}."))
    return part


def _join(parts: Sequence[Part]) -> Part:
    """A task: put results together."""
    first, *others = parts
    for other in others:
        first = first.merge(other)
    return first


@dataclass
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
        self._save, self._every, self._saved_at = save, every, monotonic()
        self._part = saved.part
        self._pieces = Pieces(saved.todo, batch, min(_PIECE_SECONDS, max(every / 2, 1.0)))
        self._running: dict[str, _Result] = {}
        self._ready: list[_Result] = []
        self._ended: queue.SimpleQueue[str] = queue.SimpleQueue()
        self._lost: dict[Range, int] = {}
        self._threads, self._asked_at = 1, -1.0
        self._number = 0

    def run(self, check: Callable[[], None]) -> Part:
        while self._pieces or self._running or self._ready:
            self._hand_out()
            self._listen()
            if not (self._pieces or self._running):
                self._collect()
            elif self._save and monotonic() - self._saved_at >= self._every:
                self._collect()
                self._save(self._part)
                self._saved_at = monotonic()
            check()
        return self._part

    def keep(self, error: BaseException) -> None:
        """Get what is there, save it, and let the cluster forget the rest."""
        with suppress(Exception):
            self._collect(patience=3)
        with suppress(Exception):
            self._client.cancel([one.future for one in self._running.values()], force=True)
        if self._save and not isinstance(error, AtlasError):
            self._save(self._part)

    def _hand_out(self) -> None:
        """Keep two pieces for each thread of the cluster: one at work, and one in wait."""
        if monotonic() - self._asked_at > 1:
            self._threads = max(sum(self._ask(self._client.nthreads).values()), 1)
            self._asked_at = monotonic()
        scans = sum(one.level == 0 for one in self._running.values())
        while self._pieces and scans < 2 * self._threads:
            piece = self._pieces.take(2 * self._threads)
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
            raise OnnxvizError(
                f"The cluster's scheduler does not answer ({error}). The same command goes on from what is saved."
            ) from error

    def _listen(self) -> None:
        """See to tasks that have ended."""
        with contextlib.suppress(queue.Empty):
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
            self._progress.advance(images)
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
        elif self._client.status not in ("running", "connecting"):
            raise OnnxvizError(
                "The cluster's scheduler is gone. The same command goes on from what is saved."
            )
        self._again(one, counted=one.level > 0)

    def _again(self, one: _Result, *, counted: bool) -> None:
        """Have the images of a result scanned again; ``counted``: they were done."""
        for piece in one.pieces:
            self._lost[piece] = self._lost.get(piece, 0) + 1
            if self._lost[piece] > _MOST_LOST:
                raise OnnxvizError(
                    f"Images {piece[0]:,} to {piece[1] - 1:,} ended {_MOST_LOST} workers, one after the other; "
                    "perhaps they lack memory: try a smaller --batch-size."
                )
        self._progress.note(f"Workers were lost: {ranges.count(one.pieces):,} images are scanned again.")
        self._pieces.put_back(one.pieces)
        if counted:
            self._progress.advance(-ranges.count(one.pieces))

    def _collect(self, patience: float = 30) -> None:
        """Fetch the results that are ready; those whose worker was lost meanwhile are computed again, or stay."""
        left = []
        for one in self._ready:
            try:
                result: Part = one.future.result(timeout=patience)
            except TimeoutError:
                left.append(one)
                continue
            except (KilledWorker, OSError, RuntimeError):
                self._again(one, counted=True)
                continue
            for _, name, reason in result.skipped:
                self._progress.skipped(name, reason)
            self._part = self._part.merge(result)
        self._ready = left
