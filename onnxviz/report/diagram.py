"""The network as a diagram: nodes in, boxes and paths out; the template draws them as SVG.

A layered layout (Sugiyama, Tagawa and Toda, 1981) that runs from left to right and wraps like text:

1. `_stack`: a node that only carries its predecessor on (Conv, then BatchNormalization, then Relu) joins its
   box as another row;
2. `_rank`: longest path from the input gives each box its column; an edge over several columns holds a slot
   in each of them;
3. `_order`: barycentre sweeps, the order with the fewest crossings wins;
4. `_align`: heights, by isotonic regression towards the sources' heights, so that branches run straight;
5. `_wrap`: a line ends only after a column with a single box, where one tensor carries the whole network.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import pairwise

from onnxviz.report.data import DiagramNode

__all__ = ["Box", "Diagram", "Edge", "Row", "lay_out"]

HEAD, FOLLOWER, FOOT, PADDING = 18.0, 15.0, 14.0, 3.0  # heights inside a box
GAP_X, GAP_Y, LANE = 26.0, 16.0, 12.0  # between columns, between boxes, between parallel long edges
LINE_GAP, MARGIN = 30.0, 22.0  # between lines of boxes, around the whole
CHARACTER = 7.1  # mean advance of the label font, generous
LABEL_LIMIT = 18
SWEEPS = 8

FOLLOWERS = frozenset(
    {
        *("BatchNormalization", "InstanceNormalization", "LRN"),
        *("Relu", "LeakyRelu", "PRelu", "Elu", "Selu", "Celu", "Gelu", "Clip"),
        *("HardSwish", "HardSigmoid", "Sigmoid", "Tanh", "Softplus", "Softmax", "LogSoftmax"),
        *("Dropout", "Identity", "Flatten", "Reshape", "Squeeze", "Unsqueeze", "Transpose", "Cast"),
    }
)

KINDS = {
    kind: frozenset(ops.split())
    for kind, ops in {
        "conv": "Conv ConvTranspose ConvInteger QLinearConv DeformConv",
        "linear": "Gemm MatMul",
        "pool": "MaxPool AveragePool GlobalAveragePool GlobalMaxPool LpPool ReduceMean ReduceMax",
        "merge": "Add Sum Mul Sub Div Concat Split Max Min",
        "input": "Input",
    }.items()
}


@dataclass(frozen=True)
class Row:
    """A node inside its box; ``top`` and ``height`` in user units of the SVG."""

    node: DiagramNode
    text: str
    top: float
    height: float


@dataclass(frozen=True)
class Box:
    """One or several nodes, drawn as one; all lengths in user units of the SVG."""

    x: float
    y: float
    width: float
    height: float
    kind: str
    rows: tuple[Row, ...]
    detail: str


@dataclass(frozen=True)
class Edge:
    """A path from the last node of one box to the first node of another, by their ids."""

    source: str
    target: str
    path: str


@dataclass(frozen=True)
class Diagram:
    """A finished drawing, ``width`` by ``height``."""

    width: float
    height: float
    boxes: tuple[Box, ...]
    edges: tuple[Edge, ...]


@dataclass
class _Slot:
    """A place in a column: a box of nodes, or a long edge passing through (no nodes)."""

    nodes: tuple[DiagramNode, ...]
    before: list[int]
    after: list[int]
    y: float = 0.0  # of the centre, from the line's axis

    @property
    def height(self) -> float:
        if not self.nodes:
            return 0.0
        foot = FOOT if self.nodes[-1].detail else 0.0
        return HEAD + FOLLOWER * (len(self.nodes) - 1) + foot + 2 * PADDING

    @property
    def width(self) -> float:
        texts = [_shorten(node.label) for node in self.nodes] + [_shorten(node.detail) for node in self.nodes]
        return max(52.0, max(map(len, texts), default=0) * CHARACTER + 18) if self.nodes else 0.0


def lay_out(nodes: Sequence[DiagramNode], *, width: float = 1360.0) -> Diagram:
    """Place every node and route every edge; lines of boxes wrap at ``width`` where the graph allows it.

    Raises ValueError for an input that names no earlier node.
    """
    stacks = _stack(nodes)
    slots, columns, links = _rank(stacks)
    _order(slots, columns)
    _align(slots, columns)
    lines = _wrap(slots, columns, width)
    return _draw(slots, columns, links, lines)


def _shorten(text: str) -> str:
    return text if len(text) <= LABEL_LIMIT else text[: LABEL_LIMIT - 1] + "…"


def _kind(op: str) -> str:
    return next((kind for kind, ops in KINDS.items() if op in ops), "other")


def _stack(nodes: Sequence[DiagramNode]) -> list[tuple[DiagramNode, ...]]:
    """Group nodes into boxes, in topological order of their heads."""
    consumers: dict[str, int] = {}
    for node in nodes:
        for name in set(node.inputs):
            if name not in consumers:
                raise ValueError(f"diagram node {node.id!r}: input {name!r} is no earlier node")
            consumers[name] += 1
        if node.id in consumers:
            raise ValueError(f"diagram node {node.id!r} appears twice")
        consumers[node.id] = 0
    stacks: dict[str, list[DiagramNode]] = {}  # by the id of the last node
    for node in nodes:
        (only,) = set(node.inputs) if len(set(node.inputs)) == 1 else (None,)
        joins = only is not None and node.op in FOLLOWERS and consumers[only] == 1
        if joins and only in stacks and stacks[only][0].op != "Input":
            stacks[node.id] = [*stacks.pop(only), node]
        else:
            stacks[node.id] = [node]
    position = {node.id: i for i, node in enumerate(nodes)}
    return sorted((tuple(stack) for stack in stacks.values()), key=lambda stack: position[stack[0].id])


def _rank(
    stacks: Sequence[tuple[DiagramNode, ...]],
) -> tuple[list[_Slot], list[list[int]], list[list[int]]]:
    """Give each box a column; return slots, columns of slot numbers, and each edge as a chain of slots."""
    owner = {stack[-1].id: i for i, stack in enumerate(stacks)}
    # Inputs of a box always are the last nodes of others: a node with several consumers ends its box.
    sources = [sorted({owner[name] for name in stack[0].inputs}) for stack in stacks]
    rank = [0] * len(stacks)
    for i, names in enumerate(sources):
        rank[i] = max((rank[j] + 1 for j in names), default=0)
    for i in reversed(range(len(stacks))):  # a constant stands right before its first consumer
        if not sources[i] and stacks[i][0].op != "Input":
            rank[i] = max(0, min((rank[j] - 1 for j, names in enumerate(sources) if i in names), default=0))
    slots = [_Slot(stack, [], []) for stack in stacks]
    columns: list[list[int]] = [[] for _ in range(max(rank, default=-1) + 1)]
    for i, column in enumerate(rank):
        columns[column].append(i)
    links = []
    for target, names in enumerate(sources):
        for source in names:
            chain = [source]
            for column in range(rank[source] + 1, rank[target]):
                columns[column].append(len(slots))
                chain.append(len(slots))
                slots.append(_Slot((), [], []))
            chain.append(target)
            links.append(chain)
            for a, b in pairwise(chain):
                slots[a].after.append(b)
                slots[b].before.append(a)
    return slots, columns, links


def _order(slots: Sequence[_Slot], columns: list[list[int]]) -> None:
    """Sort each column in place so that few edges cross."""
    best, fewest = [list(column) for column in columns], _crossings(slots, columns)
    for sweep in range(SWEEPS):
        if fewest == 0:
            break
        forward = sweep % 2 == 0
        chosen = columns[1:] if forward else columns[-2::-1]
        place = {i: p for column in columns for p, i in enumerate(column)}
        for column in chosen:
            centre = {}
            for p, i in enumerate(column):
                near = slots[i].before if forward else slots[i].after
                centre[i] = sum(place[j] for j in near) / len(near) if near else float(p)
            column.sort(key=centre.__getitem__)
            place.update((i, p) for p, i in enumerate(column))
        crossings = _crossings(slots, columns)
        if crossings < fewest:
            best, fewest = [list(column) for column in columns], crossings
    columns[:] = best


def _crossings(slots: Sequence[_Slot], columns: Sequence[Sequence[int]]) -> int:
    """Count pairs of edges that cross between neighbouring columns."""
    count = 0
    for left, right in pairwise(columns):
        place = {i: p for p, i in enumerate(right)}
        ends = [place[j] for i in left for j in sorted(slots[i].after, key=place.__getitem__)]
        count += sum(a > b for n, a in enumerate(ends) for b in ends[n + 1 :])
    return count


def _cuts(slots: Sequence[_Slot], columns: Sequence[Sequence[int]]) -> list[int]:
    """Return columns that hold a single box and nothing passing by."""
    return [c for c, column in enumerate(columns) if len(column) == 1 and slots[column[0]].nodes]


def _align(slots: Sequence[_Slot], columns: Sequence[Sequence[int]]) -> None:
    """Set the heights: cuts on the axis, all others level with their sources, none overlapping."""
    cuts = {*_cuts(slots, columns)}
    tallest = _tallest(slots, columns, cuts)
    for c, column in enumerate(columns):
        if c in cuts:
            continue
        wish = [sum(slots[j].y for j in slots[i].before) / max(1, len(slots[i].before)) for i in column]
        # The boxes keep to the axis; it is the long edges that bow out around them.
        weight = [1000.0 if slots[i].nodes else 1.0 for i in column]
        apart = [_apart(slots[a], slots[b], tallest[c]) for a, b in pairwise(column)]
        for i, y in zip(column, _isotonic(wish, weight, apart), strict=True):
            slots[i].y = y


def _tallest(slots: Sequence[_Slot], columns: Sequence[Sequence[int]], cuts: Iterable[int]) -> list[float]:
    """Return for each column the tallest box between its two cuts, so that a long edge runs straight."""
    heights = [max(slots[i].height for i in column) for column in columns]
    marks = sorted({-1, *cuts, len(columns)})
    result = list(heights)
    for a, b in pairwise(marks):
        if b - a > 1:
            result[a + 1 : b] = [max(heights[a + 1 : b])] * (b - a - 1)
    return result


def _apart(upper: _Slot, lower: _Slot, tallest: float) -> float:
    if upper.nodes and lower.nodes:
        return (upper.height + lower.height) / 2 + GAP_Y
    return tallest / 2 + LANE if upper.nodes or lower.nodes else LANE


def _isotonic(wish: Sequence[float], weight: Sequence[float], apart: Sequence[float]) -> list[float]:
    """Minimise Σ weight·(y − wish)² with y[i+1] − y[i] ≥ apart[i]: pool adjacent violators."""
    shift = [0.0]
    for gap in apart:
        shift.append(shift[-1] + gap)
    pools: list[tuple[float, float, int]] = []  # mean, weight, members
    for want, heavy, moved in zip(wish, weight, shift, strict=True):
        mean, total, members = want - moved, heavy, 1
        while pools and pools[-1][0] > mean:
            other, extra, more = pools.pop()
            mean = (mean * total + other * extra) / (total + extra)
            total, members = total + extra, members + more
        pools.append((mean, total, members))
    means = [mean for mean, _, members in pools for _ in range(members)]
    return [mean + moved for mean, moved in zip(means, shift, strict=True)]


def _wrap(slots: Sequence[_Slot], columns: Sequence[Sequence[int]], width: float) -> list[range]:
    """Break the columns into lines, only after a cut; a part without cuts may be wider than ``width``."""
    ends = sorted({*(c + 1 for c in _cuts(slots, columns)), len(columns)})
    room = width - 2 * MARGIN
    lines: list[range] = []
    start = previous = 0
    for end in ends:
        length = sum(_column_width(slots, columns[c]) + GAP_X for c in range(start, end)) - GAP_X
        if length > room and previous > start:
            lines.append(range(start, previous))
            start = previous
        previous = end
    if previous > start:
        lines.append(range(start, previous))
    return lines


def _column_width(slots: Sequence[_Slot], column: Sequence[int]) -> float:
    return max(slots[i].width for i in column)


def _draw(
    slots: Sequence[_Slot],
    columns: Sequence[Sequence[int]],
    links: Sequence[Sequence[int]],
    lines: Sequence[range],
) -> Diagram:
    left, right, middle = [0.0] * len(slots), [0.0] * len(slots), [0.0] * len(slots)
    line_of, bottoms = [0] * len(slots), []
    top, widest = MARGIN, 0.0
    for number, line in enumerate(lines):
        members = [i for c in line for i in columns[c]]
        above = max(slots[i].height / 2 - slots[i].y for i in members)
        below = max(slots[i].height / 2 + slots[i].y for i in members)
        x = MARGIN
        for c in line:
            span = _column_width(slots, columns[c])
            for i in columns[c]:
                own = slots[i].width or span
                left[i] = x + (span - own) / 2
                right[i] = left[i] + own
                middle[i] = top + above + slots[i].y
                line_of[i] = number
            x += span + GAP_X
        widest = max(widest, x - GAP_X)
        bottoms.append(top + above + below)
        top = bottoms[-1] + LINE_GAP
    boxes = tuple(
        _box(slot, left[i], middle[i] - slot.height / 2) for i, slot in enumerate(slots) if slot.nodes
    )
    edges = []
    for chain in links:
        path = f"M{right[chain[0]]:.1f} {middle[chain[0]]:.1f}"
        for a, b in pairwise(chain):
            if line_of[a] == line_of[b]:
                bend = (right[a] + left[b]) / 2
                path += (
                    f"C{bend:.1f} {middle[a]:.1f} {bend:.1f} {middle[b]:.1f} {left[b]:.1f} {middle[b]:.1f}"
                )
            else:
                path += _return(right[a], middle[a], bottoms[line_of[a]] + LINE_GAP / 2, left[b], middle[b])
            if not slots[b].nodes:
                path += f"H{right[b]:.1f}"
        edges.append(Edge(slots[chain[0]].nodes[-1].id, slots[chain[-1]].nodes[0].id, path))
    height = (bottoms[-1] if bottoms else 0.0) + MARGIN
    return Diagram(round(widest + MARGIN, 1), round(height, 1), boxes, tuple(edges))


def _box(slot: _Slot, x: float, y: float) -> Box:
    rows: list[Row] = []
    top = y + PADDING
    for node in slot.nodes:
        height = FOLLOWER if rows else HEAD
        rows.append(Row(node, _shorten(node.label), round(top, 1), height))
        top += height
    detail = _shorten(slot.nodes[-1].detail)
    kind = _kind(slot.nodes[0].op)
    return Box(round(x, 1), round(y, 1), round(slot.width, 1), slot.height, kind, tuple(rows), detail)


def _return(x: float, y: float, gutter: float, left: float, middle: float) -> str:
    """Path from the end of a line through the gutter below it to the start of the next."""
    turn, radius = MARGIN / 2, 5.0
    far = MARGIN - turn
    return (
        f"H{x + turn - radius:.1f}q{radius} 0 {radius} {radius}V{gutter - radius:.1f}"
        f"q0 {radius} {-radius} {radius}H{far + radius:.1f}q{-radius} 0 {-radius} {radius}"
        f"V{middle - radius:.1f}q0 {radius} {radius} {radius}H{left:.1f}"
    )
