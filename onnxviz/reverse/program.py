"""A plan compiled: its rules, traced, become graphs for onnxruntime.

The rules are the ones that NumPy runs (`onnxviz.reverse.engine.run`), and the walk is the same. On the CPU a program
is a row of stages: graphs, and between them the moves that NumPy does better (unpooling) or that have no ONNX form.
`trace_whole` writes everything as one graph, from recorded values to pixels, for devices and for files.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Container, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from onnxviz.errors import ModelError
from onnxviz.model.graph import Node, Shape
from onnxviz.model.spans import Span, Spans
from onnxviz.model.writer import GraphWriter
from onnxviz.reverse import traced_kernels
from onnxviz.reverse.engine import ArrayWalk, Move, Plan, Recording, Units, Walk, moving_axes
from onnxviz.reverse.kernels import Array, place
from onnxviz.reverse.traced import Masked, OpenSize, Traced, Tracer, Untraceable
from onnxviz.runtime import open_session, run_session

__all__ = ["Program", "TracedWalk", "coordinate_limits", "recorded_types"]

OPSET = 18
"""Of the graphs that are written for our own use."""

_BY_NUMPY = frozenset({"MaxPool"})
"""On the CPU onnxruntime has nothing as quick for these as NumPy: it scatters at a third of the speed."""

UNITS, IMAGES = OpenSize("units"), OpenSize("images")


@dataclass(frozen=True)
class _Window:
    """An input of a stage that is read from recorded values: of a tensor, of a pool's switches, of a constant."""

    kind: str
    source: Any
    spans: Spans | None

    def read(self, walk: ArrayWalk) -> Array:
        if self.kind == "value":
            return walk.recorded(self.source, self.spans or ())
        if self.kind == "switches":
            return walk.switches(self.source, self.spans)
        return walk.constant(self.source, self.spans or ())


class TracedWalk(Walk):
    """A walk that writes nodes.

    Args:
        limits: how many positions each coordinate of a unit may have.
        recorded: gives the traced array of a recorded tensor, or of switches, and None where only windows of them
            are to be inputs; these are then in ``asked``.
    """

    def __init__(
        self,
        plan: Plan,
        tracer: Tracer,
        limits: Sequence[int],
        coords: Traced | None,
        rows: Traced | None = None,
        recorded: Callable[[str, Any], Traced] | None = None,
        dtypes: Callable[[str, Any], np.dtype[Any]] | None = None,
    ) -> None:
        super().__init__(plan, UNITS)
        self.tracer = tracer
        self.xp = tracer.namespace
        self.asked: dict[str, _Window] = {}
        self._names: dict[tuple[Any, ...], str] = {}
        self._limits, self._coords, self._rows = limits, coords, rows
        self._recorded, self._dtypes = recorded, dtypes
        self._masks: dict[Any, Traced | None] = {}

    def origins(self, span: Span) -> Traced:
        """(M,) where a span begins for each unit."""
        assert self._coords is not None
        assert span.coord is not None
        found: Traced = self._coords[:, span.coord] * np.int64(span.a) + np.int64(span.b)
        return found

    def zeros(self, name: str) -> Any:
        """See `Walk`."""
        return self.tracer.filled(self.sizes(self.plan.frames[name]), 0, np.dtype(np.float32))

    def placed(self, g: Array, here: Spans, there: Spans, sizes: Shape) -> Any:
        """See `Walk`."""
        found: Any = g
        for axis in range(1, len(sizes)):
            f, t = here[axis], there[axis]
            if (f.coord, f.a) == (t.coord, t.a):
                offsets = [0] * len(sizes)
                offsets[axis] = f.b - t.b
                now = [*found.shape[:axis], sizes[axis], *found.shape[axis + 1 :]]
                found = place(found, offsets, now)
                continue
            start: Any = 0
            for span, sign in ((f, 1), (t, -1)):
                start = start + (
                    self.origins(span) * np.int64(sign) if span.coord is not None else span.b * sign
                )
            found = traced_kernels.one_hot_moved(found, axis, start, sizes[axis])
        return found

    def inside(self, axes: Sequence[tuple[int, Span, int]], rank: int) -> Any:
        """See `Walk`."""
        leaving = [(axis, span, size) for axis, span, size in axes if self._may_leave(span, size)]
        key = (tuple(leaving), rank)
        if key not in self._masks:
            found: Any = None
            for axis, span, size in leaving:
                at = self.xp.expand_dims(self.origins(span), 1) + np.arange(span.size)[None]
                flags = self.xp.astype((at >= 0) & (at < size), np.float32)
                lead: list[Any] = [1] * rank
                lead[0], lead[axis] = self.rows, span.size
                flags = self.xp.reshape(flags, tuple(lead))
                found = flags if found is None else found * flags
            self._masks[key] = found
        return self._masks[key]

    def _may_leave(self, span: Span, size: int) -> bool:
        assert span.coord is not None
        ends = (span.b, span.a * (self._limits[span.coord] - 1) + span.b)
        return min(ends) < 0 or max(ends) + span.size > size

    def masked(self, g: Any, inside: Any) -> Any:
        """See `Walk`."""
        found = g * inside
        found.origin = Masked(g, inside)
        return found

    def recorded(self, name: str, spans: Spans) -> Any:
        """See `Walk`."""
        return self._windows("value", name, name, spans)

    def switches(self, pool: Node, spans: Spans | None) -> Any:
        """See `Walk`."""
        return self._windows("switches", pool.output, pool, spans)

    def _windows(self, kind: str, name: str, source: Any, spans: Spans | None) -> Any:
        if self._recorded is not None:
            values = self._recorded(kind, name)
            return values if spans is None else self.windows(values, spans)
        if spans is None:
            raise Untraceable("whole maps of every image")
        assert self._dtypes is not None
        return self._ask(_Window(kind, source, spans), self._dtypes(kind, name), self.sizes(spans))

    def constant(self, values: Any, spans: Spans) -> Any:
        """See `Walk`."""
        if isinstance(values, Traced):
            raise Untraceable("windows of what is computed")
        if not self.plan.batched:
            return ArrayWalk(self.plan, Recording({}, {}), Units.all_of(1)).constant(values, spans)
        axes = moving_axes(spans, values.shape, constant=True)
        if not axes:
            return values
        if self._recorded is None:
            sizes = (UNITS, *(spans[a].size if a in axes else n for a, n in enumerate(values.shape) if a))
            return self._ask(_Window("constant", values, spans), values.dtype, sizes)  # type: ignore[arg-type]
        return self._taken(self.tracer.constant(values), None, axes, spans)

    def windows(self, values: Any, spans: Spans) -> Any:
        """See `Walk`."""
        if not isinstance(values, Traced):
            raise Untraceable("windows of an array")
        if not self.plan.batched:
            if len(spans) != values.ndim:
                return values
            return place(values, [-s.b for s in spans], [s.size for s in spans])  # type: ignore[arg-type]
        return self._taken(values, self._rows, moving_axes(spans, values.shape, constant=False), spans)

    def _taken(self, values: Traced, rows: Traced | None, axes: Sequence[int], spans: Spans) -> Any:
        starts = [
            self.origins(spans[a])
            if spans[a].coord is not None
            else self.tracer.filled((UNITS,), spans[a].b, np.dtype(np.int64))
            for a in axes
        ]
        return traced_kernels.windows_of(values, rows, axes, starts, [spans[a].size for a in axes])

    def _ask(self, window: _Window, dtype: np.dtype[Any], shape: Shape) -> Traced:
        source = window.source if window.kind == "value" else id(window.source)
        name = self._names.setdefault((window.kind, source, window.spans), f"window{len(self._names)}")
        self.asked[name] = window
        return self.tracer.input(name, shape, dtype)


@dataclass(frozen=True)
class _Stage:
    """Moves that one graph does.

    It takes ``cotangents`` (tensor by input) and ``windows``, of which the graph ``reads`` some, and ``makes``
    cotangents (output, or what was an input already, by tensor).
    """

    moves: tuple[Move, ...]
    session: Any
    path: Path
    cotangents: Mapping[str, str]
    windows: Mapping[str, _Window]
    reads: tuple[str, ...]
    outputs: tuple[str, ...]
    makes: Mapping[str, str]
    drops: frozenset[str]

    def run(self, walk: ArrayWalk, live: dict[str, Array]) -> None:
        feeds = {
            name: live[tensor].astype(np.float32, copy=False) for name, tensor in self.cotangents.items()
        }
        feeds |= {name: np.asarray(window.read(walk)) for name, window in self.windows.items()}
        if "coords" in self.reads:
            feeds["coords"] = walk.units.coords
        made = dict(feeds)
        feeds = {name: value for name, value in feeds.items() if name in self.reads}
        if self.outputs:
            made |= zip(self.outputs, run_session(self.session, self.outputs, feeds, self.path), strict=True)
        for tensor in self.drops:
            live.pop(tensor, None)
        live |= {tensor: made[name] for tensor, name in self.makes.items()}


@dataclass
class Program:
    """A plan whose moves are compiled. It may run in several threads at once.

    Args:
        path: of the model, for messages.
        sources: the tensors to pull back to.
        targets: the tensors that seeds are for.
        dtypes: of what will be recorded: of values by name, and of switches (`recorded_types`).
    """

    plan: Plan
    path: Path
    sources: Sequence[str]
    targets: Sequence[str]
    dtypes: Mapping[tuple[str, str], np.dtype[Any]]
    threads: int | None = 1
    stages: list[_Stage | Move] = field(default_factory=list)

    def __post_init__(self) -> None:
        plan = self.plan
        self._limits = coordinate_limits(plan, self.targets)
        kept = {*self.sources, *self.targets}
        live: dict[str, Any] = dict.fromkeys(self.targets)
        todo = list(plan.moves)
        while todo:
            if todo[0].node.op in _BY_NUMPY:
                self._by_numpy(todo.pop(0), live, kept)
                continue
            done = self._graph(todo, live, kept)
            if done == 0:
                self._by_numpy(todo.pop(0), live, kept)
            del todo[:done]

    @property
    def by_numpy(self) -> tuple[Move, ...]:
        """The moves that are not compiled."""
        return tuple(stage for stage in self.stages if isinstance(stage, Move))

    def _by_numpy(self, move: Move, live: dict[str, Any], kept: Container[str]) -> None:
        output = move.node.outputs[move.index]
        if output in live:
            self.stages.append(move)
            if output not in kept:
                del live[output]
            live |= {move.node.inputs[i]: None for i in move.wanted}

    def _graph(self, todo: Sequence[Move], live: dict[str, Any], kept: Container[str]) -> int:
        """Compile as many moves as can be, from the first on; how many these are."""
        plan, writer = self.plan, GraphWriter(OPSET)
        tracer = Tracer(writer)
        coords = tracer.input("coords", (UNITS, len(self._limits)), np.dtype(np.int64))
        walk = TracedWalk(plan, tracer, self._limits, coords, dtypes=self._dtype)
        inputs = {f"cotangent{number}": tensor for number, tensor in enumerate(live)}
        traced: dict[str, Any] = {
            tensor: tracer.input(name, walk.sizes(plan.frames[tensor]), np.dtype(np.float32))
            for name, tensor in inputs.items()
        }
        done = 0
        for move in todo:
            if move.node.op in _BY_NUMPY:
                break
            trial = dict(traced)
            try:
                with np.errstate(all="ignore"):
                    walk.pull(move, trial, kept)
            except (Untraceable, TypeError):
                break
            traced = trial
            done += 1
        if not done:
            return 0
        makes = {t: x.name for t, x in traced.items() if inputs.get(x.name) != t}
        outputs = tuple(dict.fromkeys(name for name in makes.values() if name not in inputs))
        used: tuple[str, ...] = ()
        session = None
        if outputs:
            written = writer.write(outputs)
            used = written.inputs
            try:
                session = open_session(
                    written.model, self.path, threads=self.threads, arena=False, initializers=written.weights
                )
            except ModelError as error:
                # It is slower then, and not wrong.
                warnings.warn(f"{error} NumPy does this part of the way back.", stacklevel=2)
                for move in todo[:done]:
                    self._by_numpy(move, live, kept)
                return done
        self.stages.append(
            _Stage(
                tuple(todo[:done]),
                session,
                self.path,
                {n: t for n, t in inputs.items() if n in used or n in makes.values()},
                {n: w for n, w in walk.asked.items() if n in used},
                used,
                outputs,
                makes,
                frozenset(live.keys() - traced.keys()),
            )
        )
        live.clear()
        live.update(dict.fromkeys(traced))
        return done

    def _dtype(self, kind: str, name: str) -> np.dtype[Any]:
        return self.dtypes[kind, name]

    def run(self, seeds: Mapping[str, Array], recording: Recording, units: Units) -> dict[str, Array]:
        """As `onnxviz.reverse.engine.run`."""
        walk, live = ArrayWalk(self.plan, recording, units), dict(seeds)
        kept = {*self.sources, *self.targets}
        with np.errstate(all="ignore"):  # as there
            for stage in self.stages:
                if isinstance(stage, Move):
                    walk.pull(stage, live, kept)
                else:
                    stage.run(walk, live)
        return {name: live[name] if name in live else walk.zeros(name) for name in self.sources}


def recorded_types(recording: Recording) -> dict[tuple[str, str], np.dtype[Any]]:
    """The types of what was recorded, as `Program` asks for them."""
    values = {("value", name): value.dtype for name, value in recording.values.items()}
    return values | {("switches", name): value.dtype for name, value in recording.switches.items()}


def coordinate_limits(plan: Plan, targets: Sequence[str]) -> tuple[int, ...]:
    """How many positions each coordinate of a unit may have."""
    limits: dict[int, int] = {}
    for target in targets:
        for span, size in zip(plan.frames[target], plan.shapes[target], strict=True):
            if span.coord is not None:
                limits[span.coord] = size
    return tuple(limits[c] for c in sorted(limits))
