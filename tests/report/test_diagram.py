from __future__ import annotations

import re
from collections.abc import Callable
from itertools import combinations, pairwise

import pytest

from onnxviz.report.data import DiagramNode
from onnxviz.report.diagram import Box, Diagram, lay_out

from . import fixture

Nodes = tuple[DiagramNode, ...]


def densely_connected() -> Nodes:
    """Each node reads all before it."""
    net = fixture.DiagramBuilder()
    made = ["input"]
    for _ in range(12):
        made.append(net.conv(net.add("Concat", *made), "32"))
    return tuple(net.nodes)


def with_constant() -> Nodes:
    net = fixture.DiagramBuilder()
    at = net.conv(net.conv("input", "8"), "8")
    net.add("Add", at, net.add("Constant"))
    return tuple(net.nodes)


def two_inputs() -> Nodes:
    net = fixture.DiagramBuilder()
    net.nodes.append(DiagramNode("mask", "Input", "mask", "mask", "1×4×4", (), None))
    net.add("Mul", net.conv("input", "3×4×4"), "mask")
    return tuple(net.nodes)


def same_twice() -> Nodes:
    net = fixture.DiagramBuilder()
    net.add("Mul", "input", "input")
    return tuple(net.nodes)


GRAPHS: list[Callable[[], Nodes]] = [
    fixture.plain,
    fixture.squeezenet,
    fixture.resnet,
    fixture.inception,
    fixture.unet,
    densely_connected,
    with_constant,
    two_inputs,
    same_twice,
]
graphs = pytest.mark.parametrize("graph", GRAPHS, ids=lambda graph: graph.__name__)


def owners(diagram: Diagram) -> dict[str, Box]:
    return {row.node.id: box for box in diagram.boxes for row in box.rows}


def ends_at(path: str) -> tuple[float, float]:
    """Follow a path of M, C, H, V and rounded corners (q) to its end."""
    x = y = 0.0
    for command, text in re.findall(r"([MCHVq])([^MCHVq]*)", path):
        numbers = [float(v) for v in text.split()]
        if command == "H":
            x = numbers[0]
        elif command == "V":
            y = numbers[0]
        elif command == "q":
            x, y = x + numbers[-2], y + numbers[-1]
        else:
            x, y = numbers[-2:]
    return x, y


@graphs
def test_every_node_is_drawn_once_and_inside(graph: Callable[[], Nodes]) -> None:
    nodes = graph()
    diagram = lay_out(nodes)
    assert sorted(row.node.id for box in diagram.boxes for row in box.rows) == sorted(n.id for n in nodes)
    for box in diagram.boxes:
        assert box.x >= 0 and box.x + box.width <= diagram.width
        assert box.y >= 0 and box.y + box.height <= diagram.height
        for row in box.rows:
            assert box.y <= row.top and row.top + row.height <= box.y + box.height


@graphs
def test_no_boxes_overlap(graph: Callable[[], Nodes]) -> None:
    for a, b in combinations(lay_out(graph()).boxes, 2):
        apart = a.x + a.width <= b.x or b.x + b.width <= a.x or a.y + a.height <= b.y or b.y + b.height <= a.y
        assert apart, (a.rows[0].text, b.rows[0].text)


@graphs
def test_every_edge_is_drawn(graph: Callable[[], Nodes]) -> None:
    nodes = graph()
    diagram = lay_out(nodes)
    drawn = {(edge.source, edge.target) for edge in diagram.edges}
    stacked = {(a.node.id, b.node.id) for box in diagram.boxes for a, b in pairwise(box.rows)}
    assert drawn | stacked == {(name, node.id) for node in nodes for name in node.inputs}
    assert len(drawn) == len(diagram.edges)
    assert not drawn & stacked


@graphs
def test_edges_start_and_end_at_their_boxes(graph: Callable[[], Nodes]) -> None:
    diagram = lay_out(graph())
    box = owners(diagram)
    for edge in diagram.edges:
        source, target = box[edge.source], box[edge.target]
        x, y = (float(v) for v in re.match(r"M([\d.]+) ([\d.]+)", edge.path).groups())  # type: ignore[union-attr]
        assert (x, y) == pytest.approx((source.x + source.width, source.y + source.height / 2), abs=0.2)
        x, y = ends_at(edge.path)
        assert (x, y) == pytest.approx((target.x, target.y + target.height / 2), abs=0.2)


@graphs
def test_data_flows_to_the_right_or_to_a_later_line(graph: Callable[[], Nodes]) -> None:
    diagram = lay_out(graph())
    box = owners(diagram)
    for edge in diagram.edges:
        source, target = box[edge.source], box[edge.target]
        assert target.x >= source.x + source.width or target.y > source.y + source.height


def test_what_carries_on_joins_its_box() -> None:
    (box,) = (box for box in lay_out(fixture.resnet()).boxes if box.rows[0].node.id == "conv2")
    assert [row.node.op for row in box.rows] == ["Conv", "BatchNormalization", "Relu"]
    assert box.kind == "conv"


def test_a_fan_out_ends_its_box() -> None:
    net = fixture.DiagramBuilder()
    conv = net.add("Conv", "input")
    net.add("Mul", conv, net.add("Sigmoid", conv))  # SiLU
    assert [[row.node.op for row in box.rows] for box in lay_out(net.nodes).boxes] == [
        ["Input"],
        ["Conv"],
        ["Sigmoid"],
        ["Mul"],
    ]


def test_lines_wrap_at_the_width() -> None:
    diagram = lay_out(fixture.resnet(), width=900)
    assert diagram.width <= 900
    assert diagram.height > lay_out(fixture.resnet(), width=1800).height


def test_a_graph_without_branches_has_no_crossings_and_one_axis() -> None:
    diagram = lay_out(fixture.plain())
    assert len({box.y + box.height / 2 for box in diagram.boxes}) == 1


def test_empty() -> None:
    assert lay_out(()).boxes == ()


@pytest.mark.parametrize(
    ("nodes", "message"),
    [
        ((DiagramNode("a", "Relu", "a", "a", "", ("b",), None),), "'b' is no earlier node"),
        ((DiagramNode("a", "Input", "a", "a", "", (), None),) * 2, "'a' appears twice"),
    ],
    ids=["unknown input", "double id"],
)
def test_broken_graphs_are_refused(nodes: Nodes, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        lay_out(nodes)
