"""The engine: walks a graph backwards, from cotangents at some tensors to the inputs.

`plan` decides beforehand what will happen: which nodes lie on the path, over which spans each tensor is needed,
which forward values must be recorded. `run` then does it for many units at once, each in its own window.

Shapes: a batched plan treats axis 0 of every tensor as the batch, and `run` puts one row there a unit; a plan
that is not batched (a tensor moves the batch elsewhere) keeps every shape as it is.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np

from onnxviz.errors import UnsupportedOpError
from onnxviz.model.graph import Constants, Graph, Node, Shape
from onnxviz.model.pulls import Pull, padding_begin, pull
from onnxviz.model.spans import Span, Spans, union, whole
from onnxviz.reverse.kernels import Array, place, place_each, switches, take
from onnxviz.reverse.methods import Method
from onnxviz.reverse.rules.registry import Rule, Step

__all__ = ["Plan", "Recording", "Units", "check_path", "decode_switches", "on_path", "plan", "run", "single"]


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
        if reason := rule.refusal(node, constants):
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
    """Pull seeds back.

    Args:
        seeds: for each target of the plan, a cotangent over its frame: (M, …).
        recording: what `plan` asked for.
        units: which image and position each row belongs to.

    Returns:
        For each source, the cotangent over the plan's frame of it; zero outside the tensor.
    """
    walk = _Walk(plan, recording, units)
    cotangents = dict(seeds)
    for move in plan.moves:
        output = move.node.outputs[move.index]
        if (g := cotangents.get(output)) is None:
            continue
        if output not in sources and output not in seeds:
            del cotangents[output]
        g = walk.moved(g, plan.frames[output], move.pull.output)
        answers = move.rule.pull_back(walk.step(move), g)
        for i in sorted(move.wanted):
            answer, name = answers[i], move.node.inputs[i]
            assert answer is not None, (move.node.name, i)
            owned = len(move.wanted) == 1 and answer.flags.writeable and not np.may_share_memory(answer, g)
            piece = walk.masked(answer, move, i, owned=owned)
            piece = walk.moved(piece, move.pull.inputs[i], plan.frames[name])
            cotangents[name] = cotangents[name] + piece if name in cotangents else piece
    return {name: cotangents[name] if name in cotangents else walk.zeros(name) for name in sources}


class _Walk:
    """One `run`: moves arrays between spans and reads recorded values."""

    def __init__(self, plan: Plan, recording: Recording, units: Units) -> None:
        self.plan = plan
        self.recording = recording
        self.units = units
        self._masks: dict[tuple[Span, int], Array | None] = {}

    def sizes(self, spans: Spans) -> Shape:
        sizes = tuple(span.size for span in spans)
        return (len(self.units.rows), *sizes[1:]) if self.plan.batched else sizes

    def zeros(self, name: str) -> Array:
        spans = self.plan.frames.get(name, whole(self.plan.shapes[name]))
        return np.zeros(self.sizes(spans), np.float32)

    def moved(self, g: Array, here: Spans, there: Spans) -> Array:
        """``g``, known over the spans ``here``, over the spans ``there``."""
        if here == there:
            return g
        first = int(self.plan.batched)
        sizes = self.sizes(there)
        pairs = list(zip(here, there, strict=True))[first:]
        if all((f.coord, f.a) == (t.coord, t.a) for f, t in pairs):
            return place(g, [0] * first + [f.b - t.b for f, t in pairs], sizes)
        origins = [
            self.units.origins(f) - self.units.origins(t) for f, t in zip(here[1:], there[1:], strict=True)
        ]
        return place_each(g, np.stack(origins, axis=1), sizes)

    def masked(self, g: Array, move: Move, index: int, *, owned: bool) -> Array:
        """``g`` for input ``index``, zero where a moving window leaves the tensor.

        Along axes that the operator leaves alone it is zero there already.
        """
        shape = self.plan.shapes[move.node.inputs[index]]
        out_shape = self.plan.shapes[move.node.outputs[move.index]]
        spans, out_spans = move.pull.inputs[index], move.pull.output
        for axis, span in enumerate(spans):
            same = len(spans) == len(out_spans) and (span, shape[axis]) == (out_spans[axis], out_shape[axis])
            if span.coord is None or same or (inside := self._inside(span, shape[axis])) is None:
                continue
            lead = [1] * g.ndim
            lead[0], lead[axis] = inside.shape
            g = np.multiply(g, inside.reshape(lead), out=g if owned else None)
            owned = True
        return g

    def _inside(self, span: Span, size: int) -> Array | None:
        """(M, span) which positions lie on an axis of ``size``; None if all do."""
        key = (span, size)
        if key not in self._masks:
            begin = self.units.origins(span)
            if begin.min() >= 0 and begin.max() + span.size <= size:
                self._masks[key] = None
            else:
                positions = begin[:, None] + np.arange(span.size)
                self._masks[key] = (positions >= 0) & (positions < size)
        return self._masks[key]

    def over(self, values: Array, spans: Spans, *, constant: bool = False) -> Array:
        """Windows of a forward value. A constant has one row, which serves every unit."""
        if not self.plan.batched:
            if len(spans) != values.ndim:  # a constant of fewer axes than the output that it goes with
                return values
            return place(values, [-s.b for s in spans], [s.size for s in spans])
        axes = [
            axis
            for axis, span in enumerate(spans)
            if span.coord is not None
            or (not constant and axis > 0 and (span.b, span.size) != (0, values.shape[axis]))
        ]
        if constant and not axes:
            return values
        rows = np.zeros_like(self.units.rows) if constant else self.units.rows
        starts = [self.units.origins(spans[axis]) for axis in axes]
        return take(values, rows, axes, starts, [spans[axis].size for axis in axes])

    def step(self, move: Move) -> Step:
        node, plan = move.node, self.plan

        def read_input(index: int) -> Array:
            name = node.inputs[index]
            if name not in plan.constants:
                return self.over(self.recording.values[name], move.pull.inputs[index])
            value, spans = single(plan.constants[name]), move.pull.inputs[index]
            if any(span.coord is not None for span in spans):
                # Lined up with the output's axes, so that its windows keep to theirs.
                lead = (1,) * (len(move.pull.output) - len(spans))
                value, spans = value.reshape(lead + value.shape), whole(lead) + spans
            return self.over(value, spans, constant=True)

        def read_result() -> Array:
            return self.over(self.recording.values[node.outputs[move.index]], move.pull.output)

        def read_switches(everywhere: bool) -> Array:
            recorded = self.recording.switches[node.output]
            return recorded if everywhere else self.over(recorded, move.pull.output)

        def over_output(values: Array) -> Array:
            sizes = zip(values.shape, move.pull.output, strict=True)
            spans = tuple(Span(1) if n == 1 and s.coord is None else s for n, s in sizes)
            return self.over(values, spans, constant=True)

        return Step(
            node=node,
            index=move.index,
            wanted=move.wanted,
            shapes=tuple(self.sizes(s) if s else () for s in move.pull.inputs),
            full_shapes=plan.shapes,
            read_input=read_input,
            read_result=read_result,
            read_switches=read_switches,
            over_output=over_output,
            over_input=lambda values: self.over(values, move.pull.inputs[0]),
        )


def single(value: Array) -> Array:
    """Half precision as float32: squares and products of it overflow."""
    return value.astype(np.float32) if value.dtype == np.float16 else value


def decode_switches(node: Node, indices: Array, source: Shape) -> Array:
    """Switches of a MaxPool (`kernels.switches`) from the indices that onnxruntime gave."""

    def ints(name: str) -> tuple[int, ...]:
        value = node.attrs[name]
        assert isinstance(value, tuple)
        return tuple(int(v) for v in value)

    return switches(
        indices,
        source[2:],
        ints("kernel_shape"),
        ints("strides"),
        ints("dilations"),
        padding_begin(node, source[2:]),
        column_major=bool(node.attrs.get("storage_order", 0)),
    )
