"""The scan: every image once through the network, the best of every channel kept."""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import closing
from dataclasses import dataclass
from itertools import islice, tee
from typing import TYPE_CHECKING, Any, Protocol, TypeAlias

import numpy as np
from numpy.typing import NDArray

from onnxviz.errors import ImageError, NoImagesError, UsageError
from onnxviz.forward import ranges
from onnxviz.forward.part import BatchResult, Part, Skip, Tally
from onnxviz.forward.probes import layer_probes
from onnxviz.forward.ranges import Range
from onnxviz.forward.saving import Save, Saving
from onnxviz.images.preprocess import Preprocess
from onnxviz.images.source import Source
from onnxviz.interrupts import held_interrupts
from onnxviz.model.layers import Layer
from onnxviz.runtime import cores

if TYPE_CHECKING:
    from onnxviz.network import Network

__all__ = [
    "RANKS",
    "Scanner",
    "Watch",
    "Workload",
    "check_images",
    "check_options",
    "prepared",
    "workload",
]

Array: TypeAlias = NDArray[Any]

RANKS = ("max", "sum", "first")
"""Order images by a channel's largest activation, by the sum over its map, or not at all."""

MOST_HITS = 100
"""The largest ``top``: a channel's pictures are one file, and browsers and formats limit their size."""

_LARGEST_BATCH = 32
_LEAST_BATCHES = 8
"""Of a small data set, so that it keeps several cores at work."""
_CACHED_BYTES, _MOST_BYTES, _ALL_BYTES = 32 << 20, 256 << 20, 1 << 30
"""What the two largest activations of a run may take: by default, where larger batches pay, and of all runs at once."""
_MOST_DECODERS = 32


def check_options(
    *, top: int = 1, rank: str = "max", limit: int | None = None, batch_size: int | None = None
) -> None:
    """Make sure that a scan can be made so.

    Raises:
        UsageError: a number out of range, an unknown ranking.
    """
    if rank not in RANKS:
        raise UsageError(f"Ranking {rank!r} is not known. Choose one of {', '.join(RANKS)}.")
    for name, number in (("top", top), ("limit", limit), ("batch size", batch_size)):
        if number is not None and number < 1:
            raise UsageError(f"The {name} must be 1 or more, not {number}.")
    if top > MOST_HITS:
        raise UsageError(f"At most {MOST_HITS} images are kept for each channel, not {top}.")


def check_images(part: Part, source: Source) -> None:
    """Make sure that a scan that is over has counted something.

    Raises:
        NoImagesError: not one image could be read.
    """
    if not part.images:
        first = [f" The first: {name}: {reason}" for _, name, reason in part.skipped[:1]]
        raise NoImagesError(f"{source.description}: not one image could be read.{''.join(first)}")


class Watch(Protocol):
    """Looks at what the network gives while it is scanned. Called after each run, in the thread that made it."""

    @property
    def tensors(self) -> Sequence[str]:
        """What it wants to see beside the reductions."""

    def __call__(
        self, images: Sequence[int], arrays: Sequence[Array], x: Array, found: Mapping[str, Array]
    ) -> None:
        """``images`` were read as ``arrays`` (C, H, W) and fed as ``x``, and gave ``found``, reductions included."""


class Scanner:
    """A network set up to count the images of a source, any of them at a time.

    Args:
        rank: one of `RANKS`.
        total: how many of the source's images there are to count in all, by whomever.
        batch_size: images a run; see `workload` for the default. Batches end at multiples of it, so that it does not
            matter where a range begins.
        share: how many cores it may use, if not all of this process.
        watch: sees every run.
    """

    def __init__(
        self,
        network: Network,
        source: Source,
        layers: Sequence[Layer],
        preprocess: Preprocess,
        *,
        rank: str,
        total: int,
        batch_size: int | None = None,
        share: int | None = None,
        watch: Watch | None = None,
    ) -> None:
        self._watch = watch
        self._network, self._source, self._preprocess = network, source, preprocess
        self._layers, self._rank = layers, rank
        self._load = workload(network, layers, total, share)
        self._readers = source.readers or min(_MOST_DECODERS, share or cores())
        self.batch = batch_size or self._load.batch
        # onnxruntime runs last what comes first here; so each layer is reduced as soon as it is there, and then let go.
        on_cpu = network.provider == "cpu"
        probes = [
            probe
            for layer in reversed(layers)
            for probe in layer_probes(layer, network.model.opset, blocks=on_cpu)
        ]
        self._runner = network.runner(
            watch.tensors if watch else (),
            probes=probes,
            threads=self._load.threads,
            filled=None if on_cpu else self.batch,
        )
        self._runner.decide()

    def scan(
        self,
        part: Part,
        todo: Sequence[Range],
        advanced: Callable[[int], None] | None = None,
        *,
        save: Save | None = None,
        every: float = math.inf,
        skip: Callable[[str, str], None] | None = None,
    ) -> Part:
        """Count the images of some ranges on top of what is known, which has none of them.

        Args:
            advanced: called with the number of images that are done more.
            save: called with what is known, about ``every`` so many seconds, and at the end, also when the scan is
                broken off; an `AtlasError` that it raises ends the scan.
            skip: called with the name of each image that cannot be read, and why.

        Raises:
            KeyboardInterrupt: on Ctrl-C, after ``save``.
        """
        tally, saving = self.tally(part), Saving(save, every)
        try:
            # Closed whatever happens, so that no batch is running any more when the rest is saved.
            with held_interrupts() as check, closing(self.batches(todo, check)) as batches:
                for batch in batches:
                    tally.add(batch)
                    if skip:
                        for _, name, reason in batch.skipped:
                            skip(name, reason)
                    if advanced:
                        advanced(batch.done[1] - batch.done[0])
                    if saving.due:
                        saving.now(self.known(tally))
                    check()
                part = self.known(tally)
                saving.now(part)
        except BaseException as error:
            # Whatever went wrong, what was counted is kept; but not what is half counted, by a second Ctrl-C.
            if tally.whole and saving.wanted_after(error):
                saving.now(self.known(tally))
            raise
        return part

    def tally(self, part: Part) -> Tally:
        """Something to count batches with, on top of what is known."""
        return Tally(self._layers, self._rank, part)

    def known(self, tally: Tally) -> Part:
        """What is known by now, with a note if batches are special."""
        return tally.part([self._runner.note] if self._runner.note else [])

    def batches(self, todo: Iterable[Range], check: Callable[[], None]) -> Generator[BatchResult, None, None]:
        """Run the network on the images of some ranges, batch by batch; decoding and runs go on ahead.

        Args:
            todo: may be told one after the other; each is asked for when the one before is being decoded.
            check: called often; what it raises ends the runs.
        """
        source, load = self._source, self._load
        running: deque[tuple[_Batch, Future[dict[str, Array]] | None]] = deque()
        to_decode, to_run = tee(todo)
        numbers = (index for start, stop in to_decode for index in range(start, stop))

        def first() -> BatchResult:
            batch, future = running.popleft()
            bad = tuple(self._skip(index, error) for index, error in batch.bad)
            images = np.array(batch.images, np.int64)
            return BatchResult(batch.range, future.result() if future else None, images, bad)

        with (
            closing(
                prepared(
                    source,
                    self._preprocess,
                    numbers,
                    ahead=(load.workers + 1) * self.batch,
                    readers=self._readers,
                )
            ) as items,
            ThreadPoolExecutor(load.workers, "onnxviz-forward") as pool,
        ):
            for piece in ranges.pieces(to_run, self.batch):
                batch = _batch(items, piece)
                running.append((batch, pool.submit(self._run, batch) if batch.arrays else None))
                check()
                # One batch waits, so that no worker does.
                while len(running) > load.workers:
                    yield first()
            while running:
                yield first()

    def _run(self, batch: _Batch) -> dict[str, Array]:
        x = self._network.feed(self._preprocess.batch(batch.arrays))
        found = self._runner.run(x)
        if self._watch is None:
            return found
        self._watch(batch.images, batch.arrays, x, found)
        return {name: value for name, value in found.items() if name not in self._watch.tensors}

    def _skip(self, index: int, error: ImageError) -> Skip:
        name = self._source.samples[index].name
        reason = ImageError(error.args[0].removeprefix(f"{name}: "))  # before anything in the name is escaped
        return index, name, str(reason)


@dataclass(frozen=True)
class Workload:
    """How a scan shares its work out: images a run, runs at once, and threads in each."""

    batch: int
    workers: int
    threads: int | None


def workload(network: Network, layers: Sequence[Layer], images: int, share: int | None = None) -> Workload:
    """Shares for a scan of so many images, on so many cores, or all that there are.

    On a CPU each core runs batches of its own: small operators leave cores idle when several share one, and what a
    small batch leaves behind is still in the cache when it is read. Fully connected layers ask for larger batches,
    since their weights are read anew in each. The batch, a power of 2 times what the file fixes, does not depend on the
    number of cores: the height of a matrix product may change its last bits.
    """
    shapes = network.shapes()
    needed = network.graph.ancestors(layer.tensor for layer in layers) & network.graph.descendants(
        network.image.name
    )
    fixed = network.image.batch or 1
    largest = sorted((4 * math.prod(shapes[name]) // fixed for name in needed), reverse=True)[:2]
    image = max(sum(largest), 1)

    def batch(most: int, images: int) -> int:
        times = min(most // image, _LARGEST_BATCH, images) // fixed
        return fixed << max(times.bit_length() - 1, 0)

    if network.provider != "cpu":
        return Workload(batch(_MOST_BYTES, images), 1, None)
    dense = sum(
        4 * network.constants[name].size
        for node in network.graph.nodes
        if node.output in needed and node.op in ("Gemm", "MatMul")
        for name in node.inputs[1:2]
        if name in network.constants
    )
    size = batch(min(max(dense, _CACHED_BYTES), _MOST_BYTES), math.ceil(images / _LEAST_BATCHES))
    available = share or cores()
    workers = max(1, min(available, _ALL_BYTES // (size * image), math.ceil(images / size)))
    return Workload(size, workers, max(1, available // workers))


def prepared(
    source: Source,
    preprocess: Preprocess,
    numbers: Iterable[int],
    *,
    ahead: int,
    readers: int | None = None,
) -> Generator[tuple[int, Array | ImageError], None, None]:
    """Samples by their numbers as input arrays (C, H, W), in order, decoded ``ahead`` in so many threads."""

    def read(index: int) -> Array | ImageError:
        try:
            return preprocess(source.samples[index].read())
        except ImageError as error:
            return error

    following = iter(numbers)
    readers = readers or source.readers or min(_MOST_DECODERS, cores())
    ahead = max(ahead, source.readers or 0)
    with ThreadPoolExecutor(readers, "onnxviz-decode") as pool:
        waiting: deque[tuple[int, Future[Array | ImageError]]] = deque()
        try:
            while True:
                for index in islice(following, ahead - len(waiting)):
                    waiting.append((index, pool.submit(read, index)))
                if not waiting:
                    return
                index, future = waiting.popleft()
                yield index, future.result()
        finally:
            for _, future in waiting:
                future.cancel()
            # Not at a usual end: others may be reading the same source.
            if waiting and source.hurry:
                source.hurry()


@dataclass(frozen=True)
class _Batch:
    """Some images and their arrays, and those that could not be read on the way, with why."""

    range: Range
    images: list[int]
    arrays: list[Array]
    bad: list[tuple[int, ImageError]]


def _batch(items: Iterator[tuple[int, Array | ImageError]], piece: Range) -> _Batch:
    """The images of a range, which come next."""
    batch = _Batch(piece, [], [], [])
    for index, item in islice(items, piece[1] - piece[0]):
        if isinstance(item, ImageError):
            batch.bad.append((index, item))
        else:
            batch.images.append(index)
            batch.arrays.append(item)
    return batch
