"""The engine: walks a graph backwards, from cotangents at some tensors to the inputs.

`plan` decides beforehand what will happen: which nodes lie on the path, over which spans each tensor is needed,
which forward values must be recorded. `run` then does it for many units at once, each in its own window.

Shapes: a batched plan treats axis 0 of every tensor as the batch, and `run` puts one row there a unit; a plan
that is not batched (a tensor moves the batch elsewhere) keeps every shape as it is.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Container, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from onnxviz.errors import UnsupportedOpError
from onnxviz.model.graph import Constants, Graph, Node, Shape
from onnxviz.model.pulls import Pull, padding_begin, pull
from onnxviz.model.soundness import understood
from onnxviz.model.spans import Span, Spans, union, whole
from onnxviz.reverse.kernels import Array, place, place_each, switches, take
from onnxviz.reverse.methods import Method
from onnxviz.reverse.rules.registry import Rule, Step

__all__ = [
    "ArrayWalk",
    "Move",
    "Plan",
    "Recording",
    "Units",
    "Walk",
    "check_path",
    "moving_axes",
    "on_path",
    "plan",
    "pool_switches",
    "run",
    "single",
]


@dataclass(frozen=True)
class Move:
    """One node's part in the walk."""

    node: Node
    index: int
    rule: Rule
    wanted: frozenset[int]
    pull: Pull


@dataclass(frozen=True)
class Plan:
    """What a walk from some tensors to some inputs will do."""

    moves: tuple[Move, ...]
    frames: Mapping[str, Spans]
    shapes: Mapping[str, Shape]
    records: tuple[str, ...]
    pools: tuple[Node, ...]
    batched: bool
    constants: Constants = field(repr=False)


@dataclass(frozen=True)
class Recording:
    """Forward values of some images: tensors by name (N, …), and the switches of pools by output name."""

    values: Mapping[str, Array]
    switches: Mapping[str, Array]


@dataclass(frozen=True)
class Units:
    """Where each row of a walk starts: ``rows`` (M,) into the recording, ``coords`` (M, K) in the layer's map."""

    rows: Array
    coords: Array

    @classmethod
    def all_of(cls, n: int) -> Units:
        """One for each recorded image, for whole maps."""
        return cls(np.arange(n), np.zeros((n, 0), np.int64))

    def origins(self, span: Span) -> Array:
        """(M,) where the span begins for each unit."""
        if span.coord is None:
            return np.full(len(self.rows), span.b)
        return self.coords[:, span.coord] * span.a + span.b


def on_path(graph: Graph, sources: Iterable[str], targets: Iterable[str], method: Method) -> list[Node]:
    """Nodes between sources and targets that can carry a cotangent all the way, in topological order."""

    def inputs(node: Node, rule: Rule | None) -> list[str]:
        if rule is None:
            return [*node.inputs, *node.captures]
        return [n for i, n in enumerate(node.inputs) if rule.can_carry(i)]

    def outputs(node: Node, rule: Rule | None) -> list[str]:
        return [n for i, n in enumerate(node.outputs) if n and (rule is None or rule.carries(i))]

    above = set(sources)
    reached = []
    for node in graph.nodes:
        if method.stops(node):
            continue
        rule = method.rule(node)
        if not above.isdisjoint(inputs(node, rule)):
            reached.append((node, rule))
            above.update(outputs(node, rule))
    below = set(targets)
    path = []
    for node, rule in reversed(reached):
        if not below.isdisjoint(outputs(node, rule)):
            path.append(node)
            below.update(name for name in inputs(node, rule) if name in above)
    return path[::-1]


def check_path(
    graph: Graph, constants: Constants, sources: Sequence[str], targets: Sequence[str], method: Method
) -> list[Node]:
    """The nodes on the path, once it is sure that each has a rule that can handle it.

    Raises:
        UnsupportedOpError: naming the first nodes that have none, and what is supported.
    """
    for name in targets:
        node = graph.producer.get(name)
        rule = method.rule(node) if node else None
        if node and rule and not rule.carries(node.outputs.index(name)):
            raise UnsupportedOpError(
                f"{name!r}, output {node.outputs.index(name)} of {node.op} {node.name!r}, cannot be traced back: "
                f"the rule of {node.op} does not cover it."
            )
    path = on_path(graph, sources, targets, method)
    missing = [node for node in path if method.rule(node) is None]
    where = f"on the path from {', '.join(targets)} to {', '.join(sources)}"
    if missing:
        ops = sorted({node.kind for node in missing})
        first = missing[0]
        raise UnsupportedOpError(
            f"No reverse rule for {', '.join(ops)} ({len(missing)} node(s) {where}, the first is {first.name!r}). "
            "Choose an earlier layer; 'onnxviz operators' lists what is supported."
        )
    for node in path:
        rule = method.rule(node)
        assert rule is not None
        with understood(node):
            reason = rule.refusal(node, constants)
        if reason:
            raise UnsupportedOpError(f"{node.op} {node.name!r} {where} cannot be reversed: {reason}.")
    return path


def plan(
    graph: Graph,
    constants: Constants,
    shapes: Mapping[str, Shape],
    sources: Sequence[str],
    targets: Mapping[str, Spans],
    method: Method,
    *,
    batch: int | None,
) -> Plan:
    """Work out a walk from ``targets`` (each over the given spans) back to ``sources``.

    Args:
        shapes: of every tensor, in the run that is recorded.
        batch: size of axis 0 in ``shapes`` if units are to be rows there, or None to keep shapes as they are.

    Raises:
        UnsupportedOpError: see `check_path`.
    """
    path = check_path(graph, constants, sources, list(targets), method)
    carried = set(sources)
    for node in path:
        rule = method.rule(node)
        assert rule is not None
        carried.update(name for i, name in enumerate(node.outputs) if name and rule.carries(i))
    pieces: dict[str, list[Spans]] = {name: [spans] for name, spans in targets.items()}
    frames: dict[str, Spans] = {}
    moves = []
    records: dict[str, None] = {}
    pools: dict[str, Node] = {}

    def settle(name: str) -> Spans:
        if name not in frames:
            frames[name] = (
                union(pieces[name], shapes[name])
                if name not in targets or len(pieces[name]) > 1
                else pieces[name][0]
            )
        return frames[name]

    for node in reversed(path):
        rule = method.rule(node)
        assert rule is not None
        wanted = frozenset(i for i, name in enumerate(node.inputs) if name in carried and rule.can_carry(i))
        for index, output in enumerate(node.outputs):
            if output not in pieces or not rule.carries(index):
                continue
            with understood(node):
                pulled = pull(node, index, settle(output), shapes)
            moves.append(Move(node, index, rule, wanted, pulled))
            for i in wanted:
                pieces.setdefault(node.inputs[i], []).append(pulled.inputs[i])
            records.update(dict.fromkeys(n for n in rule.record(node, wanted) if n not in constants))
            if rule.switches:
                pools[output] = node
    for name in (*sources, *targets):
        if name in pieces:
            settle(name)
    batched = batch is not None and _keeps_batch(path, carried.union(records), shapes, batch)
    constants.fetch({n for move in moves for n in move.node.inputs if n in constants})
    return Plan(tuple(moves), frames, shapes, tuple(records), tuple(pools.values()), batched, constants)


def _keeps_batch(path: Sequence[Node], read: set[str], shapes: Mapping[str, Shape], batch: int) -> bool:
    """Whether axis 0 is the batch, and nothing but the batch, in every tensor that the walk reads or carries.

    It is not where a constant has a row for each image of the batch: then these are not treated alike.
    """
    if any(shapes[name][:1] != (batch,) for name in read):
        return False
    row = Span(1, 0, 1, 0)
    for node in path:
        for index, output in enumerate(node.outputs):
            if output not in read:
                continue
            pulled = pull(node, index, (row, *whole(shapes[output][1:])), shapes)
            taken = [pulled.inputs[i] for i, name in enumerate(node.inputs) if name in read]
            fixed = [i for i, name in enumerate(node.inputs) if name and name not in read]
            if any(pulled.inputs[i][:1] == (row,) and shapes[node.inputs[i]][0] > 1 for i in fixed):
                return False
            if any(s[0] != row or any(span.coord == 0 for span in s[1:]) for s in (pulled.output, *taken)):
                return False
    return True


def run(
    plan: Plan, seeds: Mapping[str, Array], recording: Recording, units: Units, sources: Sequence[str]
) -> dict[str, Array]:
    """Pull seeds back, in NumPy.

    Args:
        seeds: for each target of the plan, a cotangent over its frame: (M, …).
        recording: what `plan` asked for.
        units: which image and position each row belongs to.

    Returns:
        For each source, the cotangent over the plan's frame of it; zero outside the tensor.
    """
    walk = ArrayWalk(plan, recording, units)
    cotangents = dict(seeds)
    kept = {*sources, *seeds}
    with np.errstate(all="ignore"):  # weights may hold NaN, and values overflow: it shows in the result
        for move in plan.moves:
            walk.pull(move, cotangents, kept)
    return {name: cotangents[name] if name in cotangents else walk.zeros(name) for name in sources}


class Walk(ABC):
    """The walk of one plan, for some units: moves cotangents between spans and reads recorded values.

    What it works on is its own affair: NumPy arrays (`ArrayWalk`), or arrays that stand for tensors of a graph
    that is being written (`onnxviz.reverse.program`). Rules see no difference.
    """

    def __init__(self, plan: Plan, rows: Any) -> None:
        self.plan = plan
        self.rows = rows
        """The size of the first axis of all arrays, in a batched plan."""

    def pull(self, move: Move, cotangents: dict[str, Array], kept: Container[str] = ()) -> None:
        """Pull the cotangent of a move's output back to its inputs; it is dropped then, unless ``kept``."""
        output = move.node.outputs[move.index]
        if (g := cotangents.get(output)) is None:
            return
        if output not in kept:
            del cotangents[output]
        g = self.moved(g, self.plan.frames[output], move.pull.output)
        answers = move.rule.pull_back(self.step(move), g)
        for i in sorted(move.wanted):
            answer, name = answers[i], move.node.inputs[i]
            assert answer is not None, (move.node.name, i)
            if not move.rule.stays_inside and (inside := self._inside(move, i)) is not None:
                answer = self.masked(answer, inside)
            piece = self.moved(answer, move.pull.inputs[i], self.plan.frames[name])
            cotangents[name] = cotangents[name] + piece if name in cotangents else piece

    def sizes(self, spans: Spans) -> Shape:
        """The shape of an array over spans."""
        sizes = tuple(span.size for span in spans)
        return (self.rows, *sizes[1:]) if self.plan.batched else sizes

    def moved(self, g: Array, here: Spans, there: Spans) -> Array:
        """``g``, known over the spans ``here``, over the spans ``there``."""
        if here == there:
            return g
        first = int(self.plan.batched)
        sizes = self.sizes(there)
        pairs = list(zip(here, there, strict=True))[first:]
        if all((f.coord, f.a) == (t.coord, t.a) for f, t in pairs):
            return place(g, [0] * first + [f.b - t.b for f, t in pairs], sizes)
        return self.placed(g, here, there, sizes)

    def _inside(self, move: Move, index: int) -> Array | None:
        """Which positions of the answer for input ``index`` lie in the tensor; None if all do.

        Along axes that the operator leaves alone the answer is zero outside already.
        """
        shape = self.plan.shapes[move.node.inputs[index]]
        out_shape = self.plan.shapes[move.node.outputs[move.index]]
        spans, out_spans = move.pull.inputs[index], move.pull.output
        axes = []
        for axis, span in enumerate(spans):
            same = len(spans) == len(out_spans) and (span, shape[axis]) == (out_spans[axis], out_shape[axis])
            if span.coord is not None and axis >= int(self.plan.batched) and not same:
                axes.append((axis, span, shape[axis]))
        return self.inside(axes, len(spans)) if axes else None

    def step(self, move: Move) -> Step:
        """What the rule of a move may look at."""
        node, plan = move.node, self.plan

        def read_input(index: int) -> Array:
            name, spans = node.inputs[index], move.pull.inputs[index]
            if name not in plan.constants:
                return self.recorded(name, spans)
            value = single(plan.constants[name])
            if any(span.coord is not None for span in spans):
                # Lined up with the output's axes, so that its windows keep to theirs.
                lead = (1,) * (len(move.pull.output) - len(spans))
                value, spans = value.reshape(lead + value.shape), whole(lead) + spans
            return self.constant(value, spans)

        def over_output(values: Array) -> Array:
            sizes = zip(values.shape, move.pull.output, strict=True)
            spans = tuple(Span(1) if n == 1 and s.coord is None else s for n, s in sizes)
            return self.constant(values, spans)

        return Step(
            node=node,
            index=move.index,
            wanted=move.wanted,
            shapes=tuple(self.sizes(s) if s else () for s in move.pull.inputs),
            full_shapes=plan.shapes,
            read_input=read_input,
            read_result=lambda: self.recorded(node.outputs[move.index], move.pull.output),
            read_switches=lambda everywhere: self.switches(node, None if everywhere else move.pull.output),
            over_output=over_output,
            over_input=lambda values: self.windows(values, move.pull.inputs[0]),
        )

    @abstractmethod
    def zeros(self, name: str) -> Array:
        """A cotangent of nothing, over the frame of a tensor."""

    @abstractmethod
    def placed(self, g: Array, here: Spans, there: Spans, sizes: Shape) -> Array:
        """`moved` where the offset is not the same for all units."""

    @abstractmethod
    def inside(self, axes: Sequence[tuple[int, Span, int]], rank: int) -> Array | None:
        """For (axis, span, size) each: (M, 1, span …) whether a position lies in [0, size); None if all do."""

    def masked(self, g: Array, inside: Array) -> Array:
        """``g`` where ``inside``, else 0."""
        return g * inside

    @abstractmethod
    def recorded(self, name: str, spans: Spans) -> Array:
        """Windows of a forward value, zero where they leave it."""

    @abstractmethod
    def switches(self, pool: Node, spans: Spans | None) -> Array:
        """Windows of the switches of a MaxPool, or all of every image."""

    @abstractmethod
    def constant(self, values: Array, spans: Spans) -> Array:
        """Windows of a constant, whose one row serves every unit."""

    @abstractmethod
    def windows(self, values: Array, spans: Spans) -> Array:
        """Windows of an array with a row an image."""


class ArrayWalk(Walk):
    """A walk in NumPy."""

    def __init__(self, plan: Plan, recording: Recording, units: Units) -> None:
        super().__init__(plan, len(units.rows))
        self.recording = recording
        self.units = units
        self._inside_axis: dict[tuple[Span, int], Array | None] = {}

    def zeros(self, name: str) -> Array:
        """See `Walk`."""
        spans = self.plan.frames.get(name, whole(self.plan.shapes[name]))
        return np.zeros(self.sizes(spans), np.float32)

    def placed(self, g: Array, here: Spans, there: Spans, sizes: Shape) -> Array:
        """See `Walk`."""
        origins = [
            self.units.origins(f) - self.units.origins(t) for f, t in zip(here[1:], there[1:], strict=True)
        ]
        return place_each(g, np.stack(origins, axis=1), sizes)

    def inside(self, axes: Sequence[tuple[int, Span, int]], rank: int) -> Array | None:
        """See `Walk`."""
        found: Array | None = None
        for axis, span, size in axes:
            if (part := self._along(span, size)) is not None:
                lead = [1] * rank
                lead[0], lead[axis] = part.shape
                part = part.reshape(lead)
                found = part if found is None else found & part
        return found

    def _along(self, span: Span, size: int) -> Array | None:
        """(M, span) which positions lie on an axis of ``size``; None if all do."""
        key = (span, size)
        if key not in self._inside_axis:
            begin = self.units.origins(span)
            if begin.min() >= 0 and begin.max() + span.size <= size:
                self._inside_axis[key] = None
            else:
                positions = begin[:, None] + np.arange(span.size)
                self._inside_axis[key] = (positions >= 0) & (positions < size)
        return self._inside_axis[key]

    def recorded(self, name: str, spans: Spans) -> Array:
        """See `Walk`."""
        return self.windows(self.recording.values[name], spans)

    def switches(self, pool: Node, spans: Spans | None) -> Array:
        """See `Walk`."""
        found = self.recording.switches[pool.output]
        return found if spans is None else self.windows(found, spans)

    def constant(self, values: Array, spans: Spans) -> Array:
        """See `Walk`."""
        return self._over(values, spans, constant=True)

    def windows(self, values: Array, spans: Spans) -> Array:
        """See `Walk`."""
        return self._over(values, spans, constant=False)

    def _over(self, values: Array, spans: Spans, *, constant: bool) -> Array:
        if not self.plan.batched:
            if len(spans) != values.ndim:  # a constant of fewer axes than the output that it goes with
                return values
            return place(values, [-s.b for s in spans], [s.size for s in spans])
        axes = moving_axes(spans, values.shape, constant=constant)
        if constant and not axes:
            return values
        rows = np.zeros_like(self.units.rows) if constant else self.units.rows
        starts = [self.units.origins(spans[axis]) for axis in axes]
        return take(values, rows, axes, starts, [spans[axis].size for axis in axes])


def moving_axes(spans: Spans, shape: Sequence[Any], *, constant: bool) -> list[int]:
    """The axes along which windows over ``spans`` are not simply all of a tensor of ``shape``."""
    return [
        axis
        for axis, span in enumerate(spans)
        if span.coord is not None or (not constant and axis > 0 and (span.b, span.size) != (0, shape[axis]))
    ]


def single(value: Array) -> Array:
    """Half precision as float32: squares and products of it overflow."""
    return value.astype(np.float32) if value.dtype == np.float16 else value


def pool_switches(node: Node, x: Array, y: Array) -> Array:
    """Switches of a MaxPool (`kernels.switches`) from its input and output."""
    kernel, strides, dilations = (_ints(node, name) for name in ("kernel_shape", "strides", "dilations"))
    # Where there is one window only, it does not matter how far it would be to the next: a file may say any number.
    strides = tuple(1 if count == 1 else stride for count, stride in zip(y.shape[2:], strides, strict=True))
    return switches(x, y, kernel, strides, dilations, padding_begin(node, x.shape[2:]))


def _ints(node: Node, name: str) -> tuple[int, ...]:
    value = node.attrs[name]
    assert isinstance(value, tuple)
    return tuple(int(v) for v in value)
