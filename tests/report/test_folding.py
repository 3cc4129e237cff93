"""Folded blocks: every node in one place, every edge drawn or between two blocks of a run, every layer linked."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import partial
from itertools import combinations, pairwise
from pathlib import Path

import pytest

import onnxviz
from onnxviz.facts import diagram as diagram_of
from onnxviz.report.data import DiagramNode, Sprite
from onnxviz.report.diagram import Box, Diagram, Frame, Row, lay_out
from onnxviz.report.folding import Run, chain_concats, find_runs, fold_stacks
from onnxviz.report.stacks import stack_nodes
from tests import seeded

from . import fixture

Nodes = tuple[DiagramNode, ...]
Graph = Callable[[], Nodes]


def resnet101() -> Nodes:
    return fixture.resnet((3, 4, 23, 3))


def vgg() -> Nodes:
    net = fixture.DiagramBuilder()
    at = "input"
    for stage, count in enumerate((2, 2, 3, 3, 3)):
        for _ in range(count):
            at = net.conv(at, f"{64 << stage}×{224 >> stage}×{224 >> stage}")
        at = net.add("MaxPool", at, detail=f"{64 << stage}×{112 >> stage}×{112 >> stage}")
    return tuple(net.nodes)


GRAPHS: list[Graph] = [
    fixture.plain,
    fixture.squeezenet,
    fixture.resnet,
    resnet101,
    fixture.inception,
    fixture.densenet,
    fixture.unet,
    vgg,
]
graphs = pytest.mark.parametrize("graph", GRAPHS, ids=lambda graph: graph.__name__)


def analysed(nodes: Nodes, every: int = 1) -> Nodes:
    """Mark every so-manyth layer with weights as analysed."""
    layers = [node.id for node in nodes if node.op in ("Conv", "Gemm")][::every]
    return tuple(replace(node, slug=node.id) if node.id in layers else node for node in nodes)


def counts(runs: tuple[Run, ...]) -> list[int]:
    return [len(run.blocks) for run in runs]


def places(diagram: Diagram) -> Iterator[Row]:
    """The rows without the lists of links in folded boxes, whose nodes have a row already."""
    for box in diagram.boxes:
        listed = {node.id for row in box.rows if len(row.nodes) > 1 for node in row.nodes}
        yield from (row for row in box.rows if len(row.nodes) > 1 or row.node.id not in listed)


def inside(box: Box, frame: Frame) -> bool:
    across = frame.x < box.x and box.x + box.width < frame.x + frame.width
    return across and frame.y < box.y and box.y + box.height < frame.y + frame.height


def apart(a: Box | Frame, b: Box | Frame) -> bool:
    across = a.x + a.width <= b.x or b.x + b.width <= a.x
    return across or a.y + a.height <= b.y or b.y + b.height <= a.y


@pytest.mark.parametrize(
    ("graph", "expected"),
    [
        (fixture.plain, []),
        (vgg, []),
        (fixture.unet, []),
        (fixture.squeezenet, [2, 2, 3]),
        (fixture.resnet, [2, 3, 5, 2]),
        (resnet101, [2, 3, 22, 2]),
        (fixture.inception, [2, 5, 2]),
        (fixture.densenet, [6, 12, 24, 16]),
        (partial(fixture.resnet, (1, 1, 1, 1)), []),
        (tuple, []),
    ],
    ids=str,
)
def test_the_repeats_of_known_networks(graph: Graph, expected: list[int]) -> None:
    assert counts(find_runs(chain_concats(graph()))) == expected


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        # Table 1 of the papers; a stage's first block differs from its others where it changes size.
        ("resnet50", [2, 3, 5, 2]),
        ("googlenet", [2, 5, 2]),
        ("inception_v3", [3, 4, 2]),
        ("densenet121", [6, 12, 24, 16]),
        ("mobilenet_v2", [2, 3, 2, 2]),
        ("efficientnet_b0", [2, 2, 3]),
    ],
)
def test_real_networks_fit_a_page_or_two(tmp_path: Path, name: str, expected: list[int]) -> None:
    network = onnxviz.load(seeded.write_seeded(name, tmp_path), provider="cpu")
    nodes = chain_concats(diagram_of(network, {}))
    runs = find_runs(nodes)
    assert counts(runs) == expected
    diagram = lay_out(nodes, runs=runs)
    assert diagram.width <= 1360 and diagram.height <= 1200
    assert len(diagram.boxes) <= 100


def test_a_node_says_its_kernel_stride_and_groups(tmp_path: Path) -> None:
    network = onnxviz.load(seeded.write_seeded("mobilenet_v2", tmp_path), provider="cpu")
    found = {node.label: node.setting for node in diagram_of(network, {})}
    # The stem, the first block (depthwise, then linear) and the second, which halves the maps.
    assert [found[f"conv{i}"] for i in range(1, 6)] == [
        "3×3, stride 2",
        "3×3, depthwise",
        "1×1",
        "1×1",
        "3×3, stride 2, depthwise",
    ]
    assert found["add1"] == found["image"] == ""


@graphs
def test_blocks_of_a_run_are_alike(graph: Graph) -> None:
    nodes = chain_concats(graph())
    by_id = {node.id: node for node in nodes}
    for run in find_runs(nodes):
        entry = {name for node in run.blocks[0] for name in node.inputs} - {n.id for n in run.blocks[0]}
        for block in run.blocks:
            place = {node.id: i for i, node in enumerate(block)}
            outside = {name for node in block for name in node.inputs if name not in place}
            assert outside == entry  # one tensor leads in: what the block before made
            entry = {block[-1].id}
            for node, first in zip(block, run.blocks[0], strict=True):
                assert node.op == first.op
                assert node.detail.partition("×")[2] == first.detail.partition("×")[2]
                wired = {place.get(name, -1) for name in node.inputs}
                firsts = {n.id: i for i, n in enumerate(run.blocks[0])}
                assert wired == {firsts.get(name, -1) for name in first.inputs}
        # And one leads out.
        own = {node.id for node in run.blocks[-1]}
        leaving = {name for node in by_id.values() if node.id not in own for name in node.inputs}
        assert leaving & own <= entry


@graphs
def test_every_node_is_in_one_place(graph: Graph) -> None:
    nodes = chain_concats(graph())
    runs = find_runs(nodes)
    drawn = Counter(node.id for row in places(lay_out(nodes, runs=runs)) for node in row.nodes)
    assert drawn == Counter(node.id for node in nodes)


@graphs
def test_every_edge_is_drawn_or_between_blocks_of_a_run(graph: Graph) -> None:
    nodes = chain_concats(graph())
    runs = find_runs(nodes)
    diagram = lay_out(nodes, runs=runs)
    stands = {node.id: row.node.id for row in places(diagram) for node in row.nodes}
    block_of = {
        node.id: (r, b) for r, run in enumerate(runs) for b, ns in enumerate(run.blocks) for node in ns
    }
    drawn = {(edge.source, edge.target) for edge in diagram.edges}
    for box in diagram.boxes:
        rows = [row.node.id for row in places(replace(diagram, boxes=(box,)))]
        drawn |= set(pairwise(rows))
    expected = set()
    for node in nodes:
        for name in node.inputs:
            (r, b), (r_, b_) = block_of.get(name, (-1, 0)), block_of.get(node.id, (-2, 0))
            if r == r_ and b_ == b + 1:
                continue  # the frame stands for it
            assert r != r_ or b == b_
            expected.add((stands[name], stands[node.id]))
    assert drawn == expected
    assert len({(edge.source, edge.target) for edge in diagram.edges}) == len(diagram.edges)


@graphs
@pytest.mark.parametrize("every", [1, 2, 5])
def test_every_analysed_layer_is_linked_once_with_its_picture(graph: Graph, every: int) -> None:
    nodes = analysed(chain_concats(graph()), every)
    cards = {
        node.slug: Sprite(f"{node.slug}.png", 3, 6, (7 + i % 5, 7), pixelated=True)
        for i, node in enumerate(nodes)
        if node.slug is not None
    }
    for runs in ((), find_runs(nodes)):
        diagram = lay_out(nodes, runs=runs, cards=cards)
        rows = [row for box in diagram.boxes for row in box.rows if row.slug is not None]
        assert sorted(str(row.slug) for row in rows) == sorted(cards)
        for row in rows:
            assert row.picture is not None and row.slug is not None
            assert row.picture.sprite == cards[row.slug]
            across, down = 6 * row.picture.sprite.tile[1], 3 * row.picture.sprite.tile[0]
            assert row.picture.width / row.picture.height == pytest.approx(across / down, rel=0.02)


@graphs
def test_rows_and_pictures_have_room_of_their_own(graph: Graph) -> None:
    nodes = analysed(chain_concats(graph()))
    cards = {node.slug: Sprite("a.png", 3, 6, (9, 9), pixelated=True) for node in nodes if node.slug}
    for box in lay_out(nodes, runs=find_runs(nodes), cards=cards).boxes:
        for row in box.rows:
            assert box.x <= row.left and row.left + row.width <= box.x + box.width
            assert box.y <= row.top and row.top + row.height <= box.y + box.height
        taken = [(row.left, row.top, row.width, row.height) for row in box.rows]
        for row in box.rows:
            if (picture := row.picture) is None:
                continue
            assert box.x <= picture.x and picture.x + picture.width <= box.x + box.width
            within = row.top <= picture.y and picture.y + picture.height <= row.top + row.height
            if not within:
                taken.append((picture.x, picture.y, picture.width, picture.height))
            assert picture.y + picture.height <= box.y + box.height
        for (x, y, w, h), (x_, y_, w_, h_) in combinations(taken, 2):
            assert x + w <= x_ + 0.2 or x_ + w_ <= x + 0.2 or y + h <= y_ + 0.2 or y_ + h_ <= y + 0.2


@graphs
@pytest.mark.parametrize("width", [700, 1360])
def test_a_frame_holds_its_block_and_nothing_else(graph: Graph, width: float) -> None:
    nodes = analysed(chain_concats(graph()), 3)
    runs = find_runs(nodes)
    diagram = lay_out(nodes, runs=runs, width=width)
    assert sorted(frame.count for frame in diagram.frames) == sorted(counts(runs))
    remaining = list(runs)
    for frame in diagram.frames:
        assert frame.x > 0 and frame.x + frame.width < diagram.width
        assert frame.y > 0 and frame.y + frame.height < diagram.height
        held = {box.rows[0].node.id for box in diagram.boxes if inside(box, frame)}
        others = [box for box in diagram.boxes if not inside(box, frame)]
        assert all(apart(box, frame) for box in others)
        (run,) = (r for r in remaining if r.blocks[0][0].id in held)
        remaining.remove(run)
        assert held == {stack[0].id for stack in fold_stacks(stack_nodes(nodes), [run])} & {
            node.id for node in run.blocks[0]
        }
    assert all(apart(a, b) for a, b in combinations(diagram.frames, 2))
    assert all(apart(a, b) for a, b in combinations(diagram.boxes, 2))


def test_many_links_stand_in_columns() -> None:
    nodes = analysed(resnet101())
    diagram = lay_out(nodes, runs=find_runs(nodes))
    box = next(b for b in diagram.boxes if len(b.rows[0].nodes) == 22 and b.rows[0].node.op == "Conv")
    links = [row for row in box.rows if row.slug is not None]
    assert len(links) == 22
    assert max(Counter(row.left for row in links).values()) == 8


def test_labels_and_channels_are_given_from_first_to_last() -> None:
    nodes = chain_concats(fixture.densenet())
    diagram = lay_out(nodes, runs=find_runs(nodes))
    texts = {row.text: box.detail for box in diagram.boxes for row in box.rows if len(row.nodes) == 6}
    assert texts["conv2…12"] == "128×56×56"
    assert texts["concat1…6"] == "96…256×56×56"


def changed(graph: Graph, id_: str, **values: object) -> Nodes:
    nodes = graph()
    assert any(node.id == id_ for node in nodes)
    return tuple(replace(node, **values) if node.id == id_ else node for node in nodes)  # type: ignore[arg-type]


RESNET = {node.id: node for node in fixture.resnet()}


@pytest.mark.parametrize(
    "values",
    [
        {"op": "Gemm"},
        {"setting": "5×5"},
        {"detail": "256×13×14"},
        {"inputs": RESNET["conv35"].inputs},
    ],
    ids=["operator", "kernel", "size of the maps", "wiring"],
)
def test_what_differs_is_not_folded(values: dict[str, object]) -> None:
    # conv36 is in the middle of the third of five blocks.
    graph = fixture.resnet
    assert counts(find_runs(graph())) == [2, 3, 5, 2]
    runs = find_runs(changed(graph, "conv36", **values))
    assert counts(runs) == [2, 3, 2, 2, 2]
    assert "conv36" not in {node.id for run in runs for block in run.blocks for node in block}


def test_channels_may_differ() -> None:
    assert counts(find_runs(changed(fixture.resnet, "conv36", detail="99×14×14"))) == [2, 3, 5, 2]


def test_a_run_must_spare_three_boxes() -> None:
    def chain(length: int) -> Nodes:
        net = fixture.DiagramBuilder()
        at = net.add("MaxPool", "input", detail="3×112×112")
        for _ in range(length):
            at = net.conv(at, "64×112×112")
        return tuple(net.nodes)

    assert counts(find_runs(chain(3))) == []
    assert counts(find_runs(chain(4))) == [4]


def leaves(name: str, by_id: dict[str, DiagramNode], concats: set[str]) -> list[str]:
    if name not in concats:
        return [name]
    return [leaf for source in by_id[name].inputs for leaf in leaves(source, by_id, concats)]


def test_a_chained_concat_puts_the_same_together() -> None:
    nodes = fixture.densenet((4, 5))
    chained = chain_concats(nodes)
    assert sum(len(node.inputs) for node in chained) < sum(len(node.inputs) for node in nodes)
    by_id = {node.id: node for node in chained}
    for before, after in zip(nodes, chained, strict=True):
        assert replace(after, inputs=before.inputs) == before
        if before.op != "Concat":
            assert after.inputs == before.inputs
            continue
        inner = {n.id for n in nodes if n.op == "Concat"} - set(before.inputs)
        found = [leaf for name in after.inputs for leaf in leaves(name, by_id, inner)]
        assert found == list(before.inputs)


@pytest.mark.parametrize(
    ("second", "detail"),
    [
        (("conv1", "conv2", "conv3"), ""),  # sizes unknown
        (("conv1", "conv2", "conv3"), "16×8×24"),  # along another axis
        (("conv2", "conv1", "conv3"), "48×8×8"),  # in another order
        (("conv1", "conv3", "conv2"), "48×8×8"),
        (("conv1", "conv2"), "32×8×8"),  # the same once more
    ],
)
def test_other_concats_stay(second: tuple[str, ...], detail: str) -> None:
    net = fixture.DiagramBuilder()
    for _ in range(3):
        net.add("Conv", "input", detail="16×8×8")
    net.add("Concat", "conv1", "conv2", detail="32×8×8")
    net.add("Concat", *second, detail=detail)
    assert chain_concats(net.nodes) == tuple(net.nodes)


def test_broken_graphs_are_refused() -> None:
    with pytest.raises(ValueError, match="'b' is no earlier node"):
        find_runs((DiagramNode("a", "Relu", "a", "a", "", ("b",), None),))


def test_three_hundred_nodes_stay_readable() -> None:
    nodes = analysed(fixture.densenet())
    assert len(nodes) > 300
    nodes = chain_concats(nodes)
    cards = {node.slug: Sprite("a.png", 3, 6, (9, 9), pixelated=True) for node in nodes if node.slug}
    folded = lay_out(nodes, runs=find_runs(nodes), cards=cards)
    assert folded.width <= 1500 and folded.height <= 1400
    whole = lay_out(nodes)
    assert whole.width <= 1360
