"""From units of a layer to pixels, on recorded images."""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from threading import Lock
from typing import TypeAlias, TypeVar

import numpy as np

from onnxviz.errors import ModelError, UnitError, UnsupportedOpError, UsageError
from onnxviz.interrupts import held_interrupts
from onnxviz.model.graph import Node
from onnxviz.model.inputs import ImageInput
from onnxviz.model.layers import Layer
from onnxviz.model.spans import Span
from onnxviz.reverse.engine import Plan, Recording, Units, run
from onnxviz.reverse.kernels import Array, place_each
from onnxviz.reverse.methods import Method
from onnxviz.reverse.program import Program, recorded_types
from onnxviz.reverse.whole import WholeGraph
from onnxviz.runtime import cores

__all__ = [
    "DEFAULT_MEMORY",
    "ENGINES",
    "Position",
    "Projections",
    "Projector",
    "position_part",
    "reads",
    "seed_maps",
]

T = TypeVar("T")
Position: TypeAlias = "str | tuple[int, int] | Sequence[tuple[int, int]] | None"

ENGINES = ("auto", "stages", "graph", "numpy")
"""What pulls back: graphs that the rules are compiled to, run by onnxruntime, with NumPy between them (``stages``); one
graph for the way to the layer and back (``graph``); or NumPy alone. ``auto``: one graph on CUDA, if every rule on the
way can be written as ONNX, else stages."""

DEFAULT_MEMORY = 1 << 30
"""About how many bytes projecting may take, weights not counted."""

_RECORDING_SHARE, _WORKING_SHARE = 0.2, 0.3
"""How much of it recorded values, and the arrays on the way, may take."""

_CACHED = 32 << 20
"""On the CPU larger batches of units are no faster: their arrays fall out of the cache."""

_MOST_UNITS = 256
_MOST_READ = 256
"""Images that are read ahead for the engine ``graph``."""

_GRAPH_IMAGES = 32
"""That one run of a graph takes at most."""


@dataclass(frozen=True)
class Projections:
    """Units pulled back to the image.

    ``pixels``: (M, C, h, w) float32, as large as the layer's receptive field, zero outside the image.
    ``boxes``: (M, 4) where they lie: top, left, bottom, right in input pixels, not clipped.
    """

    pixels: Array
    boxes: Array

    def _repr_png_(self) -> bytes | None:
        """What a notebook shows: the first of them, side by side."""
        from onnxviz.notebook import projections_png

        return projections_png(self.pixels)


class Projector:
    """Pulls units of one layer, or its whole maps, back to the image, on recorded images. Made by `Network.projector`.

    Args:
        plan: from one position of the layer, or from whole maps.
        image: the input to pull back to.
        engine: one of `ENGINES`, but not ``auto``.
        otherwise: the engine to take where there can be no one graph; None if that is an error.
        memory: about how many bytes recorded values and arrays on the way may take.
        path: of the model, for messages.
        graph: makes what the engine ``graph`` runs.
    """

    def __init__(
        self,
        plan: Plan,
        layer: Layer,
        method: Method,
        image: ImageInput,
        *,
        engine: str = "stages",
        otherwise: str | None = None,
        memory: int = DEFAULT_MEMORY,
        path: Path,
        graph: Callable[[], WholeGraph] | None = None,
    ) -> None:
        self.plan, self.layer, self.method, self.image = plan, layer, method, image
        self._memory, self._path = memory, path
        self.asked, self._otherwise, self._make_graph = engine, otherwise, graph
        self.program: Program | None = None
        self._lock = Lock()

    @cached_property
    def engine(self) -> str:
        """What pulls back. The first look at it makes the graph that was asked for."""
        if self.asked == "graph" and self._otherwise:
            try:
                _ = self._graph
            except (UnsupportedOpError, ModelError):
                # A rule, or a form of an operator, that newer opsets do not have. Other faults are found again.
                return self._otherwise
        return self.asked

    @cached_property
    def _graph(self) -> WholeGraph:
        assert self._make_graph is not None
        return self._make_graph()

    @cached_property
    def threads(self) -> int:
        """That pull back, a part of the units each."""
        return cores() if self.engine == "stages" else 1

    @property
    def records(self) -> tuple[str, ...]:
        """The tensors to record of images."""
        if self.engine == "graph":
            return (self.image.name,)
        return tuple(dict.fromkeys((*self.plan.records, self.layer.tensor)))

    @property
    def pools(self) -> tuple[Node, ...]:
        """The MaxPool nodes whose switches to record."""
        return () if self.engine == "graph" else self.plan.pools

    @property
    def images_at_once(self) -> int:
        """How many images to record at once."""
        if self.engine == "graph":
            # They are but read, and run in batches of their own.
            size = 4 * math.prod(self.plan.shapes[self.image.name][1:])
            return self._graph.batch or max(1, min(_MOST_READ, int(self._memory * _RECORDING_SHARE) // size))
        if not self.plan.batched:
            return self.image.batch or 1
        shapes = self.plan.shapes
        size = sum(4 * math.prod(shapes[name][1:]) for name in (*self.plan.records, self.layer.tensor))
        # The network's input, a pool's input and output, and what onnxruntime has beside them.
        size += sum(
            4 * math.prod(shapes[node.inputs[0]][1:]) + 16 * math.prod(shapes[node.output][1:])
            for node in self.plan.pools
        )
        return max(1, min(32, int(self._memory * _RECORDING_SHARE) // max(size, 1)))

    @property
    def units_at_once(self) -> int:
        """How many units to pull back at once, in each thread."""
        if not self.plan.batched:
            return 1
        allowed = int(self._memory * _WORKING_SHARE) // self.threads
        if self.engine != "graph":
            allowed = min(allowed, _CACHED)
        return max(1, min(_MOST_UNITS, allowed // self._unit_bytes))

    @property
    def _unit_bytes(self) -> int:
        """What the arrays of one unit take at their most."""
        plan = self.plan
        sizes = {name: 4 * math.prod(s.size for s in spans[1:]) for name, spans in plan.frames.items()}
        live = {self.layer.tensor}
        most = 1
        for move in plan.moves:
            output = move.node.outputs[move.index]
            answers = [4 * math.prod(s.size for s in move.pull.inputs[i][1:]) for i in move.wanted]
            most = max(most, sum(sizes[name] for name in live) + 2 * sum(answers))
            if self.engine == "numpy" and move.node.op == "Conv":
                weight = plan.constants[move.node.inputs[1]]
                columns = math.prod(weight.shape[1:]) * math.prod(s.size for s in move.pull.output[2:])
                most = max(most, 4 * columns * int(move.node.attrs["group"]))  # type: ignore[arg-type]
            live.discard(output)
            live.update(move.node.inputs[i] for i in move.wanted)
        return most

    def units(
        self, recording: Recording, units: Array, maps: Array | None = None
    ) -> Iterator[tuple[slice, tuple[Array, Array]]]:
        """Pull units of recorded images back, each inside its own window: one part of them after the other.

        Args:
            recording: of the images that the units are in.
            units: (M, 4) integers: row of the recording, channel, y, x (`Layer`), best in the order of rows.
            maps: (M, …) the map that each unit is in; None if ``recording`` has the layer's tensor.

        Returns:
            For each part of the units, as it gets ready, its pixels (m, C, h, w), as large as the layer's receptive
            field, and the maps (m, …) that they are in.
        """
        if self.engine == "graph":
            parts = self._graph_parts(units[:, 0])
            return self._spread(parts, lambda part: self._by_graph(recording, units[part]))
        if maps is None:
            every = np.transpose(recording.values[self.layer.tensor], self.layer.order)
            maps = every[units[:, 0], units[:, 1]]
        own = maps

        def pull(part: slice) -> tuple[Array, Array]:
            return self._pull(recording, own[part], units[part]), own[part]

        return self._spread(self._parts(len(units)), pull)

    def _by_graph(self, recording: Recording, units: Array) -> tuple[Array, Array]:
        rows, local = np.unique(units[:, 0], return_inverse=True)
        x = recording.values[self.image.name][rows]
        local = np.column_stack([local, units[:, 1:]])
        return self._graph.run(x, local, images_at_once=self._graph_images, units_at_once=self.units_at_once)

    @property
    def _graph_images(self) -> int:
        """How many images a run of the graph takes at most."""
        shapes = self.plan.shapes
        recorded = sum(4 * math.prod(shapes[name][1:]) for name in (*self.plan.records, self.layer.tensor))
        pooled = sum(8 * math.prod(shapes[node.inputs[0]][1:]) for node in self.plan.pools)
        share = int(self._memory * _RECORDING_SHARE)
        return self._graph.batch or max(1, min(_GRAPH_IMAGES, share // max(recorded + pooled, 1)))

    def _graph_parts(self, rows: Array) -> list[slice]:
        """Parts of units, which are in these rows, none with too many units or rows, of about the same size."""
        images = len(np.unique(rows))
        count = max(-(-len(rows) // self.units_at_once), -(-images // self._graph_images), 1)
        most = -(-len(rows) // count)
        parts, start, seen = [], 0, set[int]()
        for place, row in enumerate(rows.tolist()):
            if place - start == most or len(seen | {row}) > self._graph_images:
                parts.append(slice(start, place))
                start, seen = place, set()
            seen.add(row)
        return [*parts, slice(start, len(rows))] if len(rows) else []

    def maps(self, seeds: Array, recording: Recording, rows: Array | None = None) -> Array:
        """Pull seeds (M, C, …) over whole maps back to the input, in its own layout.

        ``rows`` (M,) says which recorded image each seed is for; by default they go one to one.
        """
        rows = np.arange(len(seeds)) if rows is None else rows
        g = np.transpose(seeds, np.argsort(self.layer.order))

        def pull(part: slice) -> Array:
            at = Units.all_of(1)
            if self.plan.batched:
                at = Units(rows[part], np.zeros((len(rows[part]), 0), np.int64))
            return self._run(g[part], recording, at)

        return np.concatenate([found for _, found in self._spread(self._parts(len(seeds)), pull)])

    def _parts(self, count: int) -> list[slice]:
        """Parts of ``count`` units, for all threads."""
        share = -(-count // self.threads)
        step = max(1, min(self.units_at_once, share))
        return [slice(start, min(start + step, count)) for start in range(0, count, step)]

    def _spread(self, parts: Sequence[slice], pull: Callable[[slice], T]) -> Iterator[tuple[slice, T]]:
        """The results of parts of units, computed by several threads, or by one ahead of the caller, in order."""
        if self.engine == "numpy" or len(parts) == 1:
            for part in parts:
                yield part, pull(part)
            return
        with held_interrupts() as check, ThreadPoolExecutor(self.threads, "onnxviz-project") as pool:
            waiting: deque[tuple[slice, Future[T]]] = deque()
            following = iter(parts)
            try:
                for part in following:
                    waiting.append((part, pool.submit(pull, part)))
                    if len(waiting) > self.threads:
                        done, future = waiting.popleft()
                        yield done, future.result()
                        check()
                while waiting:
                    done, future = waiting.popleft()
                    yield done, future.result()
                    check()
            finally:
                for _, future in waiting:
                    future.cancel()

    def _run(self, seed: Array, recording: Recording, units: Units) -> Array:
        try:
            return self._answer(seed, recording, units)
        except MemoryError as error:
            raise ModelError(
                f"{self._path}: projecting {self.layer} needs more memory than there is ({error}). Choose an earlier "
                "layer, or smaller images with --size."
            ) from error

    def _answer(self, seed: Array, recording: Recording, units: Units) -> Array:
        seeds, source = {self.layer.tensor: seed}, self.image.name
        if self.engine == "numpy":
            return run(self.plan, seeds, recording, units, [source])[source]
        with self._lock:
            if self.program is None:
                types = recorded_types(recording)
                self.program = Program(self.plan, self._path, [source], [self.layer.tensor], types)
        return self.program.run(seeds, recording, units)[source]

    def _pull(self, recording: Recording, maps: Array, units: Array) -> Array:
        """The pixels of a few units, (m, C, h, w), in the given maps (m, …)."""
        depth, channels = len(self.layer.size), self.layer.channels
        places, rows = units[:, 4 - depth :], np.arange(len(units))
        seeds = maps[(rows, *places.T)].astype(np.float32)
        if self.method.unit_seed:
            seeds = np.ones_like(seeds)
        if self.plan.batched:
            g = np.zeros((len(units), channels, *[1] * depth), np.float32)
            g[rows, units[:, 1]] = seeds.reshape(-1, *[1] * depth)
            at = Units(units[:, 0], places)
        else:
            g = np.zeros((1, channels, *maps.shape[1:]), np.float32)
            g[(0, units[0, 1], *places[0])] = seeds[0]
            at = Units.all_of(1)
        answer = self._run(np.transpose(g, np.argsort(self.layer.order)), recording, at)
        answer = self.image.to_nchw(answer)
        frame = self.plan.frames[self.image.name]
        spans = [Span(1) if axis is None else frame[axis] for axis in self.image.axes]
        origin = np.stack([at.origins(span) for span in spans], axis=1)
        corners = np.array([self.layer.box(y, x)[:2] for _, _, y, x in units.tolist()], np.int64)
        offsets = origin - corners
        sizes = (len(units), self.image.channels, *self.layer.receptive_field)
        if answer.shape == sizes and not offsets.any():
            return answer
        return place_each(answer, np.pad(offsets, ((0, 0), (1, 0))), sizes)


def reads(projectors: Iterable[Projector]) -> tuple[tuple[str, ...], dict[str, Node]]:
    """What several projectors read of images: recorded tensors, and the MaxPool nodes of switches by output name."""
    several = tuple(projectors)
    records = tuple(dict.fromkeys(name for p in several for name in p.plan.records))
    return records, {node.output: node for p in several for node in p.pools}


def check_engine(engine: str) -> str:
    """The name of an engine.

    Raises:
        UsageError: there is none of that name.
    """
    if engine not in ENGINES:
        raise UsageError(f"Engine {engine!r} is not known. Choose one of {', '.join(ENGINES)}.")
    return engine


def seed_maps(maps: Array, layer: Layer, channel: int | None, position: Position, method: Method) -> Array:
    """The cotangent that starts a projection: the activations asked for, all others zero (Zeiler & Fergus, 2.1).

    Args:
        maps: (N, C, …) activations of the layer.
        channel: the channel, or None for all.
        position: ``"max"``, (y, x), one (y, x) an image, or None for the whole map.

    Raises:
        UnitError: no such position.
    """
    channels = list(range(layer.channels)) if channel is None else [channel]
    source = np.ones(maps.shape, np.float32) if method.unit_seed else maps.astype(np.float32)
    seed = np.zeros(maps.shape, np.float32)
    if position is None:
        seed[:, channels] = source[:, channels]
        return seed
    spatial = maps.shape[2:]
    places = [] if isinstance(position, str) else _places(position, len(maps))
    for n in range(len(maps)):
        for c in channels:
            at: tuple[int, ...]
            if isinstance(position, str):
                if position != "max":
                    raise UnitError(f"Position {position!r}: give 'max', (y, x), or None for the whole map.")
                at = (
                    tuple(int(i) for i in np.unravel_index(int(maps[n, c].argmax()), spatial))
                    if spatial
                    else ()
                )
            else:
                at = _inside(layer, places[n], (1, 1, *spatial)[-2:])
            seed[(n, c, *at)] = source[(n, c, *at)]
    return seed


def _places(position: tuple[int, int] | Sequence[tuple[int, int]], count: int) -> list[tuple[int, int]]:
    """One (y, x) for each of ``count`` images."""
    table = np.asarray(position)
    if table.shape == (2,):
        table = np.broadcast_to(table, (count, 2))
    if table.shape != (count, 2) or table.dtype.kind not in "iu":
        raise UnitError(f"Give one position (y, x), or one for each of the {count} images, not {position}.")
    return [(int(y), int(x)) for y, x in table]


def position_part(position: Position, count: int, start: int, step: int) -> Position:
    """Of positions for ``count`` images, those of the images from ``start`` on, ``step`` of them."""
    if position is None or isinstance(position, str):
        return position
    return _places(position, count)[start : start + step]


def _inside(layer: Layer, at: tuple[int, int], size: tuple[int, int]) -> tuple[int, ...]:
    """``at`` as an index into a map of the layer; a vector has the one place (0, 0), a sequence one row."""
    if any(not 0 <= v < n for v, n in zip(at, size, strict=True)):
        what = f"is {size[0]}×{size[1]} units" if layer.size else "is a vector, with the one position (0, 0)"
        raise UnitError(f"Layer {layer} {what}; there is no unit {at}.")
    return layer.index(*at)
