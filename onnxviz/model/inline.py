"""If, Loop and Scan, written out where their conditions, trip counts and lengths are known.

Pure functions on protobuf messages. What a subgraph holds is spliced in by reference, so weights are never
copied. `inline` makes one step: an If becomes its branch; a Loop or Scan first loses what does not change from one
iteration to the next, and is then unrolled. Its caller repeats it, since what a step brings out may have become
constant.
"""

from __future__ import annotations

from collections.abc import Callable, Container, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
from onnx import AttributeProto, GraphProto, NodeProto, TensorProto, ValueInfoProto, helper, numpy_helper

from onnxviz.model.constants import RANDOM

__all__ = [
    "CONTROL_FLOW",
    "Facts",
    "all_nodes",
    "captures",
    "in_order",
    "inline",
    "is_control_flow",
    "lift_constants",
    "make_names_unique",
]

CONTROL_FLOW = ("If", "Loop", "Scan")
MOST_ITERATIONS = 1000
MOST_NODES = 50_000
"""What unrolling may grow a graph to; a Loop or Scan beyond either is left as it is."""


@dataclass(frozen=True)
class Facts:
    """What is known of a graph's tensors.

    ``constant``: names of the constant ones; ``value``: the value of a known one, else None; ``shape``: the shape
    of one as far as known, None for what is open.
    """

    constant: Container[str]
    value: Callable[[str], np.ndarray | None]
    shape: Callable[[str], Sequence[int | None] | None]
    opset: int


@dataclass
class Part:
    """What stands for a node, or a list of nodes: nodes, and weights by name."""

    nodes: list[NodeProto] = field(default_factory=list)
    tensors: dict[str, TensorProto] = field(default_factory=dict)

    def add(self, op: str, inputs: Sequence[str], output: str, **attrs: int | list[int]) -> str:
        """Append a node; returns its output."""
        self.nodes.append(helper.make_node(op, inputs, [output], **attrs))
        return output

    def constant(self, value: np.ndarray, name: str) -> str:
        """Add a weight; returns its name."""
        self.tensors[name] = numpy_helper.from_array(value, name)
        return name


class _Names:
    """Names that are not taken yet."""

    def __init__(self, taken: Iterable[str]) -> None:
        self._taken = set(taken)
        self._last: dict[str, int] = {}

    def fresh(self, name: str) -> str:
        """``name``, or the next of name_1, name_2 … that is free; taken from now on."""
        found = name
        while found in self._taken:
            self._last[name] = self._last.get(name, 0) + 1
            found = f"{name}_{self._last[name]}"
        self._taken.add(found)
        return found


def is_control_flow(node: NodeProto) -> bool:
    """Whether it is an If, Loop or Scan."""
    return node.op_type in CONTROL_FLOW and not node.domain


def subgraphs(node: NodeProto) -> list[GraphProto]:
    """The graphs among a node's attributes."""
    found = []
    for attr in node.attribute:
        if attr.type == AttributeProto.GRAPH:
            found.append(attr.g)
        elif attr.type == AttributeProto.GRAPHS:
            found.extend(attr.graphs)
    return found


def captures(node: NodeProto) -> tuple[str, ...]:
    """Tensors from outside that the subgraphs of a node read."""
    found: dict[str, None] = {}
    for graph in subgraphs(node):
        inner = _own_names(graph)
        found.update((name, None) for n in graph.node for name in reads(n) if name not in inner)
        found.update((v.name, None) for v in graph.output if v.name not in inner)
    return tuple(found)


def reads(node: NodeProto) -> tuple[str, ...]:
    """All tensors that a node needs: its inputs and what its subgraphs capture."""
    return (*(name for name in node.input if name), *captures(node))


def lift_constants(nodes: Iterable[NodeProto]) -> Part:
    """Constant nodes that hold a tensor as weights, the tensor named as the node's output; all others as nodes."""
    part = Part()
    for node in nodes:
        value = next((a.t for a in node.attribute if a.name == "value" and a.HasField("t")), None)
        if node.op_type == "Constant" and not node.domain and value is not None and any(node.output):
            value.name = node.output[0]
            part.tensors[value.name] = value
        else:
            part.nodes.append(node)
    return part


def in_order(nodes: Sequence[NodeProto]) -> list[NodeProto]:
    """The nodes in topological order, which onnxruntime does not ask for; as given where that is one."""
    maker = {name: index for index, node in enumerate(nodes) for name in node.output if name}
    needs = [[maker[name] for name in reads(node) if name in maker] for node in nodes]
    begun, order = set[int](), dict[int, None]()
    for start in range(len(nodes)):
        stack = [start]
        while stack:
            index = stack[-1]
            begun.add(index)
            if waiting := [other for other in needs[index] if other not in begun]:
                stack.extend(reversed(waiting))
            else:
                order.setdefault(stack.pop())
    return [nodes[index] for index in order]


def make_names_unique(nodes: Sequence[NodeProto], taken: Iterable[str]) -> None:
    """Rename, in place, so that no tensor of a subgraph has the name of one elsewhere, and no two nodes share one.

    onnxruntime refuses nodes of one graph with the same name, and inlining brings graphs together. A node whose
    name is taken loses it. Parts of a Split that are left out get names, since where the next one lies hangs on
    their sizes.

    Args:
        taken: names of tensors that no node makes: inputs and weights.
    """
    names = _Names(taken)
    for node in nodes:
        for name in node.output:
            names.fresh(name)
    for node in nodes:
        for graph in subgraphs(node):
            _rename_graph(graph, {}, names.fresh)
    labels: set[str] = set()
    for node in all_nodes(nodes):
        if node.op_type == "Split":
            node.output[:] = [name or names.fresh("left_out") for name in node.output]
        if node.name in labels:
            node.ClearField("name")
        labels.add(node.name)


def inline(nodes: Sequence[NodeProto], taken: Iterable[str], facts: Facts) -> Part | None:
    """One step of writing out every If, Loop and Scan of which enough is known; None where nothing is left to do.

    The messages given are not changed. All names in subgraphs must be unique (`make_names_unique`).

    Args:
        taken: names of tensors that no node makes.
    """
    names = _Names((*taken, *_all_names(nodes)))
    room = MOST_NODES - _count(nodes)
    part, changed = Part(), False
    for node in nodes:
        found = None
        if is_control_flow(node) and all(_is_plain(graph) for graph in subgraphs(node)):
            found = _EXPANDERS[node.op_type](node, facts, names, room)
        if found is None:
            part.nodes.append(node)
            continue
        lifted = lift_constants(found.nodes)
        part.nodes.extend(lifted.nodes)
        part.tensors |= found.tensors | lifted.tensors
        room -= _count(found.nodes)
        changed = True
    return part if changed else None


def _if(node: NodeProto, facts: Facts, names: _Names, room: int) -> Part | None:
    """The nodes of the branch taken; its outputs keep the names of the If's."""
    condition = _scalar(facts, node.input[0])
    if condition is None:
        return None
    branch = _graph(node, "then_branch" if condition else "else_branch")
    part = Part(list(branch.node), {t.name: t for t in branch.initializer})
    for source, output in zip(branch.output, node.output, strict=False):
        if output:
            part.add("Identity", [source.name], output)
    return part


def _loop(node: NodeProto, facts: Facts, names: _Names, room: int) -> Part | None:
    """Unrolled where the trip count is known and the condition never becomes false."""
    trips = _scalar(facts, node.input[0]) if node.input[0] else None
    going_on = _scalar(facts, node.input[1]) if len(node.input) > 1 and node.input[1] else 1
    if trips is None or going_on is None:
        return None
    body = _graph(node, "body")
    states = list(node.input[2:])
    count = max(trips, 0) if going_on else 0
    if 0 < count <= MOST_ITERATIONS and not _always_true(body, facts):
        return _hoisted(node, body, facts, names)
    part = Part()
    iteration, condition = body.input[0], body.input[1]
    true = part.constant(np.full(_small_shape(condition), True), names.fresh(f"{_first(node)}_condition"))

    def given(index: int) -> dict[str, str]:
        value = np.full(_small_shape(iteration), index, np.int64)
        number = part.constant(value, names.fresh(f"{_first(node)}_iteration"))
        return {iteration.name: number, condition.name: true}

    results = [v.name for v in body.output[1:]]
    axes = [(0, False)] * (len(results) - len(states))
    unroll = _Unroll(node, body, [v.name for v in body.input[2:]], states, results, axes, given)
    return unroll.run(count, part, facts, names, room)


def _scan(node: NodeProto, facts: Facts, names: _Names, room: int) -> Part | None:
    """Unrolled where the length of its sequences is known (opset 9 and later)."""
    if facts.opset < 9:
        return None
    body = _graph(node, "body")
    attrs = {a.name: helper.get_attribute_value(a) for a in node.attribute if a.name != "body"}
    first = len(node.input) - int(attrs["num_scan_inputs"])
    states, sequences = list(node.input[:first]), list(node.input[first:])
    results = [v.name for v in body.output]

    def ways(kind: str, number: int) -> list[tuple[int, bool]]:
        axes = attrs.get(f"scan_{kind}_axes", [0] * number)
        backwards = attrs.get(f"scan_{kind}_directions", [0] * number)
        return [(int(axis), bool(back)) for axis, back in zip(axes, backwards, strict=True)]

    inputs = ways("input", len(sequences))
    lengths = set()
    for name, (axis, _) in zip(sequences, inputs, strict=True):
        shape = facts.shape(name)
        if shape is not None and -len(shape) <= axis < len(shape):
            lengths.add(shape[axis])
    lengths.discard(None)
    if len(lengths) != 1:
        return None
    (count,) = lengths
    assert count is not None
    part = Part()

    def given(index: int) -> dict[str, str]:
        found = {}
        for value, name, (axis, back) in zip(body.input[first:], sequences, inputs, strict=True):
            place = np.array(count - 1 - index if back else index, np.int64)
            at = part.constant(place, names.fresh(f"{_first(node)}_index"))
            found[value.name] = part.add("Gather", [name, at], names.fresh(f"{value.name}_slice"), axis=axis)
        return found

    outputs = ways("output", len(results) - len(states))
    unroll = _Unroll(node, body, [v.name for v in body.input[:first]], states, results, outputs, given)
    return unroll.run(count, part, facts, names, room)


_Expander = Callable[[NodeProto, Facts, _Names, int], Part | None]
_EXPANDERS: Mapping[str, _Expander] = {"If": _if, "Loop": _loop, "Scan": _scan}


@dataclass(frozen=True)
class _Unroll:
    """A Loop or Scan, ready to be unrolled.

    ``inner`` and ``states``: names of the carried values in the body and before the first iteration; ``results``:
    what an iteration leaves, carried values first, then pieces of the outputs, which are stacked along their axis,
    from the front or from the back (``ways``); ``given``: what else the body's inputs are in an iteration.
    """

    node: NodeProto
    body: GraphProto
    inner: Sequence[str]
    states: Sequence[str]
    results: Sequence[str]
    ways: Sequence[tuple[int, bool]]
    given: Callable[[int], dict[str, str]]

    def run(self, count: int, part: Part, facts: Facts, names: _Names, room: int) -> Part | None:
        """``part`` with all iterations; None where they are too many, or an output would have no rows."""
        stacked = list(self.node.output[len(self.states) :])
        cost = count * (_count(self.body.node) + len(self.body.input) + len(stacked))
        if count > MOST_ITERATIONS or cost > room or (count == 0 and any(stacked)):
            return None
        if count and (hoisted := _hoisted(self.node, self.body, facts, names)):
            return hoisted
        carried, pieces = list(self.states), []
        for index in range(count):
            bound = self.given(index) | dict(zip(self.inner, carried, strict=True))
            part.nodes.extend(_iteration(self.body.node, bound, index, names))
            left = [bound.get(name, name) for name in self.results]
            carried = left[: len(self.states)]
            pieces.append(left[len(self.states) :])
        for name, output in zip(carried, self.node.output, strict=False):
            if output:
                part.add("Identity", [name], output)
        for which, (output, (axis, back)) in enumerate(zip(stacked, self.ways, strict=False)):
            if output:
                rows = [row[which] for row in pieces]
                self._stack(part, rows[::-1] if back else rows, axis, output, facts.opset, names)
        return part

    def _stack(
        self, part: Part, rows: Sequence[str], axis: int, output: str, opset: int, names: _Names
    ) -> None:
        found = []
        axes = part.constant(np.array([axis]), names.fresh(f"{output}_axis")) if opset >= 13 else ""
        for row in rows:
            name = names.fresh(f"{output}_row")
            if axes:
                found.append(part.add("Unsqueeze", [row, axes], name))
            else:
                found.append(part.add("Unsqueeze", [row], name, axes=[axis]))
        part.add("Concat", found, output, axis=axis)


def _hoisted(node: NodeProto, body: GraphProto, facts: Facts, names: _Names) -> Part | None:
    """The node without what is the same in every iteration, which goes before it; None if there is nothing.

    That is weights, also of subgraphs further in, and what is computed from constants alone.
    """
    part = Part()
    stripped = _without_weights(body, names, part.tensors)
    results = {v.name for v in stripped.output}
    constant = set(part.tensors)
    moved: set[str] = set()
    left = GraphProto(name=body.name, input=stripped.input, output=stripped.output)
    for inner in stripped.node:
        fixed = all(name in constant or name in facts.constant for name in reads(inner))
        random = any(n.op_type.startswith(RANDOM) for n in all_nodes([inner]))
        # An Identity at the end stays: a subgraph's output must be made in it.
        if fixed and not random and not (inner.op_type == "Identity" and inner.output[0] in results):
            part.nodes.append(inner)
            moved.update(name for name in inner.output if name)
            constant |= moved
        else:
            left.node.append(inner)
    if not constant:
        return None
    _give_back(left, moved, names)
    part.nodes.append(_with_graphs(node, {"body": left}))
    return part


def _without_weights(graph: GraphProto, names: _Names, tensors: dict[str, TensorProto]) -> GraphProto:
    """A copy of a subgraph without its weights and those of subgraphs further in, which go to ``tensors``."""
    lifted = lift_constants(graph.node)
    own = lifted.tensors | {t.name: t for t in graph.initializer}
    tensors |= own
    copy = GraphProto(name=graph.name, input=graph.input, output=graph.output)
    for node in lifted.nodes:
        inner = {
            a.name: _without_weights(a.g, names, tensors)
            for a in node.attribute
            if a.type == AttributeProto.GRAPH
        }
        copy.node.append(_with_graphs(node, inner) if inner else node)
    _give_back(copy, own.keys(), names)
    return copy


def _give_back(graph: GraphProto, moved: Container[str], names: _Names) -> None:
    """Have a subgraph make those of its outputs that are outside by now: onnxruntime wants that."""
    for value in graph.output:
        if value.name in moved:
            output = names.fresh(value.name)
            graph.node.append(helper.make_node("Identity", [value.name], [output]))
            value.name = output


def _with_graphs(node: NodeProto, graphs: Mapping[str, GraphProto]) -> NodeProto:
    """A copy of a node with other subgraphs."""
    copy = NodeProto(
        name=node.name, op_type=node.op_type, domain=node.domain, input=node.input, output=node.output
    )
    for attr in node.attribute:
        if attr.name in graphs:
            copy.attribute.add(name=attr.name, type=AttributeProto.GRAPH).g.CopyFrom(graphs[attr.name])
        else:
            copy.attribute.append(attr)
    return copy


def _always_true(body: GraphProto, facts: Facts) -> bool:
    """Whether a Loop's body goes on after every iteration: its condition is a constant, or the one it was given."""
    makers = {name: node for node in body.node for name in node.output}
    name = body.output[0].name
    while name in makers and makers[name].op_type == "Identity":
        name = makers[name].input[0]
    return name == body.input[1].name or bool(name not in makers and _scalar(facts, name))


def _iteration(
    nodes: Iterable[NodeProto], bound: dict[str, str], index: int, names: _Names
) -> list[NodeProto]:
    """A body's nodes for one iteration: they read what ``bound`` says, and what they make is noted there.

    The first iteration keeps the body's own names, since the body goes; nodes of the others have none.
    """
    copies = []
    for node in nodes:
        copy = NodeProto()
        copy.CopyFrom(node)
        copies.append(copy)
    if index == 0:
        _rename(copies, bound, str)
        return copies
    _rename(copies, bound, lambda name: names.fresh(f"{name}_{index}"))
    for copy in all_nodes(copies):
        copy.ClearField("name")
    return copies


def _rename(nodes: Sequence[NodeProto], bound: dict[str, str], rename: Callable[[str], str]) -> None:
    """Rename in place: what nodes read as ``bound`` says, what they make as ``rename`` says."""
    bound.update((name, rename(name)) for node in nodes for name in node.output if name)
    for node in nodes:
        node.input[:] = [bound.get(name, name) for name in node.input]
        node.output[:] = [bound.get(name, name) for name in node.output]
        for graph in subgraphs(node):
            _rename_graph(graph, bound, rename)


def _rename_graph(graph: GraphProto, outer: Mapping[str, str], rename: Callable[[str], str]) -> None:
    values = [*graph.input, *graph.initializer]
    bound = {**outer, **{name: rename(name) for name in dict.fromkeys(v.name for v in values)}}
    _rename(graph.node, bound, rename)
    for value in (*values, *graph.output, *graph.value_info):
        value.name = bound.get(value.name, value.name)


def _scalar(facts: Facts, name: str) -> int | None:
    """The value of a known condition or count."""
    value = facts.value(name)
    if value is None or value.size != 1 or value.dtype.kind not in "biu":
        return None
    return int(value.reshape(-1)[0])


def _small_shape(value: ValueInfoProto) -> tuple[int, ...]:
    """Shape of a Loop's counter or condition: () or (1,), as its body declares it, like onnxruntime."""
    rank: int = len(value.type.tensor_type.shape.dim)
    return (1,) * rank


def _is_plain(graph: GraphProto) -> bool:
    """Whether it passes tensors only, no sequences, and stores them dense."""
    kinds = {v.type.WhichOneof("value") for v in (*graph.input, *graph.output)}
    return kinds <= {None, "tensor_type"} and not graph.sparse_initializer


def _graph(node: NodeProto, name: str) -> GraphProto:
    return next(a.g for a in node.attribute if a.name == name)


def _first(node: NodeProto) -> str:
    return str(next((name for name in node.output if name), node.op_type))


def _own_names(graph: GraphProto) -> set[str]:
    made = (name for node in graph.node for name in node.output)
    return {*(v.name for v in graph.input), *(t.name for t in graph.initializer), *made}


def all_nodes(nodes: Iterable[NodeProto]) -> Iterator[NodeProto]:
    """The nodes, and those of all subgraphs."""
    for node in nodes:
        yield node
        for graph in subgraphs(node):
            yield from all_nodes(graph.node)


def _all_names(nodes: Iterable[NodeProto]) -> Iterator[str]:
    """Names of all tensors and nodes, those of subgraphs too."""
    for node in all_nodes(nodes):
        yield node.name
        yield from node.output
        for graph in subgraphs(node):
            yield from _own_names(graph)


def _count(nodes: Iterable[NodeProto]) -> int:
    return sum(1 for _ in all_nodes(nodes))
