"""The network as a diagram: nodes in, boxes and paths out; the template draws them as SVG.

A layered layout (Sugiyama, Tagawa and Toda, 1981) that runs from left to right and wraps like text:

1. `stack_nodes`: a node that only carries its predecessor on (Conv, then BatchNormalization, then Relu) joins its
   box as another row;
2. `fold_stacks`: of each run of equal blocks the first is drawn, in a frame, with the links of all;
3. `_rank`: longest path from the input gives each box its column; an edge over several columns holds a slot
   in each of them;
4. `_order`: barycentre sweeps, the order with the fewest crossings wins;
5. `_align`: heights, by isotonic regression towards the sources' heights, so that branches run straight;
6. `_wrap`: a line ends only after a column with a single box, where one tensor carries the whole network, and not
   inside a frame.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise

from onnxviz.report.data import DiagramNode, Sprite
from onnxviz.report.folding import Run, fold_stacks
from onnxviz.report.stacks import Stack, ranks, stack_nodes

__all__ = ["Box", "Diagram", "Edge", "Frame", "Picture", "Row", "lay_out"]

HEAD, FOLLOWER, FOOT, PADDING = 18.0, 15.0, 14.0, 3.0  # heights inside a box
GAP_X, GAP_Y, LANE = 26.0, 16.0, 12.0  # between columns, between boxes, between parallel long edges
LINE_GAP, MARGIN = 30.0, 22.0  # between lines of boxes, around the whole
FRAME_X, FRAME_Y, TITLE = (
    10.0,
    8.0,
    15.0,
)  # between a frame and what is in it, and the line above that names it
CHARACTER = 7.1  # mean advance of the label font, generous
LABEL_LIMIT = 18
THUMBNAIL = (84.0, 42.0)  # most width and height of an analysed node's picture
STAMP = (42.0, 21.0)  # of one in a folded box, beside its name
MOST = 8  # links in a column of a folded box
SWEEPS = 8

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
class Picture:
    """A card in small, all of it; lengths in user units of the SVG."""

    sprite: Sprite
    x: float
    y: float
    width: float
    height: float

    @property
    def pixelated(self) -> bool:
        """Whether to enlarge without smoothing: not where it is made smaller, or pixels would be left out."""
        return self.sprite.pixelated and self.sprite.columns * self.sprite.tile[1] <= 1.5 * self.width


@dataclass(frozen=True)
class Row:
    """What one node has inside a box; all lengths in user units of the SVG.

    In a folded box a place of the block has a row without link that stands for ``nodes``, one of each block, and
    below it a row with a link for each of them that is analysed.
    """

    nodes: tuple[DiagramNode, ...]
    text: str
    left: float
    top: float
    width: float
    height: float
    first: bool  # of its box
    picture: Picture | None

    @property
    def node(self) -> DiagramNode:
        """The node that is drawn: the first."""
        return self.nodes[0]

    @property
    def slug(self) -> str | None:
        """The analysed layer to link to."""
        return self.nodes[0].slug if len(self.nodes) == 1 else None


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
class Frame:
    """Around the boxes of a block that stands for ``count`` alike."""

    x: float
    y: float
    width: float
    height: float
    count: int


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
    frames: tuple[Frame, ...] = ()


@dataclass(frozen=True)
class _Content:
    """What a box holds, as if its corner were at (0, 0)."""

    width: float
    height: float
    rows: tuple[Row, ...]
    detail: str

    def at(self, x: float, y: float) -> Box:
        rows = []
        for row in self.rows:
            picture = row.picture
            if picture is not None:
                picture = replace(picture, x=round(picture.x + x, 1), y=round(picture.y + y, 1))
            rows.append(replace(row, left=round(row.left + x, 1), top=round(row.top + y, 1), picture=picture))
        kind = _kind(self.rows[0].node.op)
        return Box(round(x, 1), round(y, 1), self.width, self.height, kind, tuple(rows), self.detail)


@dataclass
class _Slot:
    """A place in a column: a box, or a long edge passing through (no content, no nodes)."""

    nodes: Stack
    content: _Content | None
    before: list[int]
    after: list[int]
    y: float = 0.0  # of the centre, from the line's axis

    @property
    def height(self) -> float:
        return self.content.height if self.content else 0.0

    @property
    def width(self) -> float:
        return self.content.width if self.content else 0.0


def lay_out(
    nodes: Sequence[DiagramNode],
    *,
    runs: Sequence[Run] = (),
    cards: Mapping[str, Sprite] | None = None,
    width: float = 1360.0,
) -> Diagram:
    """Place every node and route every edge; lines of boxes wrap at ``width`` where the graph allows it.

    ``runs`` are drawn folded. ``cards`` are the pictures at analysed nodes, by slug.

    Raises ValueError for an input that names no earlier node.
    """
    stacks = fold_stacks(stack_nodes(nodes), runs)
    alike = {first: ones for run in runs for first, ones in run.places.items()}
    contents = [_fill([alike.get(node.id, (node,)) for node in stack], cards or {}) for stack in stacks]
    slots, columns, links = _rank(stacks, contents)
    _order(slots, columns)
    _align(slots, columns)
    spans = _spans(stacks, columns, runs)
    lines = _wrap(slots, columns, spans, width)
    return _draw(slots, links, _place(slots, columns, lines, spans))


def _shorten(text: str) -> str:
    return text if len(text) <= LABEL_LIMIT else text[: LABEL_LIMIT - 1] + "…"


def _length(text: str) -> float:
    """Width of a label, generous; an ellipsis is wide in bold type."""
    return (len(text) + text.count("…")) * CHARACTER


def _kind(op: str) -> str:
    return next((kind for kind, ops in KINDS.items() if op in ops), "other")


def _fill(places: Sequence[tuple[DiagramNode, ...]], cards: Mapping[str, Sprite]) -> _Content:
    """Set the rows of a box one below the other; several nodes at a place are of as many blocks."""
    detail = _shorten(_range([node.detail for node in places[-1]]))
    texts = [_shorten(_range([node.label for node in nodes])) for nodes in places]
    wide = max(map(_length, (*texts, detail))) + 18
    rows: list[Row] = []
    top = PADDING
    for nodes, text in zip(places, texts, strict=True):
        height = FOLLOWER if rows else HEAD
        picture = None
        card = cards.get(nodes[0].slug or "") if len(nodes) == 1 else None
        if card is not None:
            picture = _picture(card, 4.0, top + height + 1, THUMBNAIL)
            wide = max(wide, picture.width + 8)
        room = picture.height + 4 if picture else 0.0
        rows.append(Row(nodes, text, 0.0, top, 0.0, height, not rows, picture))
        top += height + room
        links = [node for node in nodes if node.slug is not None] if len(nodes) > 1 else []
        if links:
            cells, across, down = _cells(links, cards, top)
            rows += cells
            wide, top = max(wide, across), top + down
    wide = round(max(52.0, wide), 1)
    # A row takes the box's whole width, unless it is a cell of a folded box.
    rows = [replace(row, left=1.5, width=wide - 3) if row.width == 0.0 else row for row in rows]
    height = top + (FOOT if detail else 0.0) + PADDING
    return _Content(wide, round(height, 1), tuple(rows), detail)


def _cells(
    nodes: Sequence[DiagramNode], cards: Mapping[str, Sprite], top: float
) -> tuple[list[Row], float, float]:
    """Set the links of a folded box in columns from ``top`` on; return them and the width and height they take."""
    shown = [cards.get(node.slug or "") for node in nodes]
    names = [_shorten(node.label) for node in nodes]
    pictured = any(shown)
    width = max(map(_length, names)) + 14 + (STAMP[0] + 4 if pictured else 0.0)
    height = STAMP[1] + 4 if pictured else FOLLOWER
    across = math.ceil(len(nodes) / MOST)
    down = math.ceil(len(nodes) / across)
    rows = []
    for number, (node, name, card) in enumerate(zip(nodes, names, shown, strict=True)):
        left, y = 3.0 + number // down * (width + 3), top + number % down * height
        stamp = None
        if card is not None:
            stamp = _picture(card, 0.0, 0.0, STAMP)
            x = left + width - 2 - STAMP[0] + (STAMP[0] - stamp.width) / 2
            stamp = replace(stamp, x=x, y=y + (height - 1 - stamp.height) / 2)
        rows.append(Row((node,), name, left, y, width, height, first=False, picture=stamp))
    return rows, across * (width + 3) + 3, down * height + 2


def _picture(sprite: Sprite, x: float, y: float, room: tuple[float, float]) -> Picture:
    """Fit a card into ``room``, (width, height)."""
    across, down = sprite.columns * sprite.tile[1], sprite.rows * sprite.tile[0]
    scale = min(room[0] / across, room[1] / down)
    # A signal's card can be a line: keep it to be seen.
    return Picture(sprite, x, y, round(max(across * scale, 4.0), 1), round(max(down * scale, 4.0), 1))


def _range(texts: Sequence[str]) -> str:
    """Join the first and the last of numbered texts: conv3 and conv9 to ``conv3…9``, 64×7 and 96×7 to ``64…96×7``."""
    first, last = texts[0], texts[-1]
    if all(text == first for text in texts):
        return first
    (head, a, tail), (head_, b, tail_) = _numbered(first), _numbered(last)
    if head == head_ and tail == tail_ and a and b:
        return f"{head}{a}…{b}{tail}"
    return f"{first} … {last}"


def _numbered(text: str) -> tuple[str, str, str]:
    """Split at the number that differs in a run: that in front of a size, else the one at the end."""
    match = re.fullmatch(r"()(\d+)(×.*)?", text) or re.fullmatch(r"(.*?)(\d+)()", text)
    return (match[1], match[2], match[3] or "") if match else (text, "", "")


def _rank(
    stacks: Sequence[Stack], contents: Sequence[_Content]
) -> tuple[list[_Slot], list[list[int]], list[list[int]]]:
    """Give each box a column; return slots, columns of slot numbers, and each edge as a chain of slots."""
    sources, rank = ranks(stacks)
    slots = [_Slot(stack, content, [], []) for stack, content in zip(stacks, contents, strict=True)]
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
                slots.append(_Slot((), None, [], []))
            chain.append(target)
            links.append(chain)
            for a, b in pairwise(chain):
                slots[a].after.append(b)
                slots[b].before.append(a)
    return slots, columns, links


def _spans(
    stacks: Sequence[Stack], columns: Sequence[Sequence[int]], runs: Sequence[Run]
) -> dict[range, int]:
    """Return for each run the columns of its block, and how many blocks it has."""
    column_of = {
        node.id: c
        for c, column in enumerate(columns)
        for i in column
        if i < len(stacks)
        for node in stacks[i]
    }
    result = {}
    for run in runs:
        places = [column_of[node.id] for node in run.blocks[0]]
        result[range(min(places), max(places) + 1)] = len(run.blocks)
    return result


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


def _wrap(
    slots: Sequence[_Slot], columns: Sequence[Sequence[int]], spans: Iterable[range], width: float
) -> list[range]:
    """Break the columns into lines, only after a cut; a part without cuts may be wider than ``width``."""
    inside = {c + 1 for span in spans for c in span[:-1]}
    ends = sorted({*(c + 1 for c in _cuts(slots, columns)), len(columns)} - inside)
    framed = {c for span in spans for c in (span[0], span[-1])}
    room = width - 2 * MARGIN
    lines: list[range] = []
    start = previous = 0
    for end in ends:
        length = sum(_column_width(slots, columns[c]) + GAP_X for c in range(start, end)) - GAP_X
        length += FRAME_X * sum((c in framed) + (range(c, c + 1) in spans) for c in range(start, end))
        if length > room and previous > start:
            lines.append(range(start, previous))
            start = previous
        previous = end
    if previous > start:
        lines.append(range(start, previous))
    return lines


def _column_width(slots: Sequence[_Slot], column: Sequence[int]) -> float:
    return max(slots[i].width for i in column)


@dataclass
class _Places:
    """Where the slots lie, by their numbers, and the lines of boxes."""

    left: list[float]
    right: list[float]
    middle: list[float]
    line: list[int]
    ends: list[float]  # right ends of the lines
    bottoms: list[float]  # of the lines
    frames: list[Frame]


def _place(
    slots: Sequence[_Slot],
    columns: Sequence[Sequence[int]],
    lines: Sequence[range],
    spans: Mapping[range, int],
) -> _Places:
    zeros = [0.0] * len(slots)
    places = _Places([*zeros], [*zeros], [*zeros], [0] * len(slots), [], [], [])
    starts, stops = {span[0] for span in spans}, {span[-1] for span in spans}
    top = MARGIN
    for number, line in enumerate(lines):
        framed = {span: _reach(slots, columns, span) for span in spans if span[0] in line}
        above, below = _reach(slots, columns, line)
        axis = top + max([above, *(high + FRAME_Y + TITLE for high, _ in framed.values())])
        bottom = axis + max([below, *(low + FRAME_Y for _, low in framed.values())])
        x = MARGIN
        sides: dict[int, tuple[float, float]] = {}
        for c in line:
            x += FRAME_X * (c in starts)
            wide = _column_width(slots, columns[c])
            sides[c] = (x, x + wide)
            for i in columns[c]:
                own = slots[i].width or wide
                places.left[i] = x + (wide - own) / 2
                places.right[i] = places.left[i] + own
                places.middle[i] = axis + slots[i].y
                places.line[i] = number
            x += wide + GAP_X + FRAME_X * (c in stops)
        for span, (high, low) in framed.items():
            start, stop = sides[span[0]][0] - FRAME_X, sides[span[-1]][1] + FRAME_X
            y, tall = axis - high - FRAME_Y - TITLE, high + low + 2 * FRAME_Y + TITLE
            where = (round(start, 1), round(y, 1), round(stop - start, 1), round(tall, 1))
            places.frames.append(Frame(*where, spans[span]))
        places.ends.append(x - GAP_X)
        places.bottoms.append(bottom)
        top = bottom + LINE_GAP
    return places


def _draw(slots: Sequence[_Slot], links: Sequence[Sequence[int]], places: _Places) -> Diagram:
    left, right, middle, line = places.left, places.right, places.middle, places.line
    boxes = tuple(
        slot.content.at(left[i], middle[i] - slot.height / 2) for i, slot in enumerate(slots) if slot.content
    )
    edges = []
    for chain in links:
        path = f"M{right[chain[0]]:.1f} {middle[chain[0]]:.1f}"
        for a, b in pairwise(chain):
            if line[a] == line[b]:
                bend = (right[a] + left[b]) / 2
                path += (
                    f"C{bend:.1f} {middle[a]:.1f} {bend:.1f} {middle[b]:.1f} {left[b]:.1f} {middle[b]:.1f}"
                )
            else:
                gutter = places.bottoms[line[a]] + LINE_GAP / 2
                path += _return(places.ends[line[a]], middle[a], gutter, left[b], middle[b])
            if not slots[b].nodes:
                path += f"H{right[b]:.1f}"
        edges.append(Edge(slots[chain[0]].nodes[-1].id, slots[chain[-1]].nodes[0].id, path))
    width, height = max(places.ends, default=0.0) + MARGIN, max(places.bottoms, default=0.0) + MARGIN
    return Diagram(round(width, 1), round(height, 1), boxes, tuple(edges), tuple(places.frames))


def _reach(
    slots: Sequence[_Slot], columns: Sequence[Sequence[int]], span: Iterable[int]
) -> tuple[float, float]:
    """Return how far above and below the axis the slots of some columns reach."""
    members = [slots[i] for c in span for i in columns[c]]
    return (
        max(slot.height / 2 - slot.y for slot in members),
        max(slot.height / 2 + slot.y for slot in members),
    )


def _return(x: float, y: float, gutter: float, left: float, middle: float) -> str:
    """Path from the end of a line through the gutter below it to the start of the next."""
    turn, radius = MARGIN / 2, 5.0
    far = MARGIN - turn
    return (
        f"H{x + turn - radius:.1f}q{radius} 0 {radius} {radius}V{gutter - radius:.1f}"
        f"q0 {radius} {-radius} {radius}H{far + radius:.1f}q{-radius} 0 {-radius} {radius}"
        f"V{middle - radius:.1f}q0 {radius} {radius} {radius}H{left:.1f}"
    )
