"""If, Loop and Scan written out: onnxruntime on the file as it is says what the cut graph must give."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper

import onnxviz
from onnxviz.errors import ModelError
from onnxviz.model.graph import ModelFile
from onnxviz.model.inline import MOST_ITERATIONS
from tests.model.nets import build, conv_weights, node, run, subgraph, write

INT, BOOL = TensorProto.INT64, TensorProto.BOOL
X = np.random.default_rng(4).normal(size=(2, 3)).astype(np.float32)
COUNTERS = {"i": (INT, []), "go": (BOOL, []), "on": (BOOL, [])}
TWO, THREE = np.float32(2), np.float32(3)


def model(nodes, weights=None, *, x=(2, 3), outputs=None, opset=17) -> onnx.ModelProto:
    return build(nodes, weights, x=x, outputs=outputs, opset=opset)


def opened(tmp_path, proto: onnx.ModelProto) -> ModelFile:
    return ModelFile(write(tmp_path / "model.onnx", proto))


def same(file: ModelFile, proto: onnx.ModelProto, x=X) -> None:
    """The cut gives what the file gives, to the last bit: the operators are the same."""
    want = run(proto, {"x": x})
    got = run(file.cut(list(want)), {"x": x})
    for name, value in want.items():
        np.testing.assert_array_equal(got[name], value, err_msg=name)


def _if(condition: str, then: onnx.GraphProto, other: onnx.GraphProto, outputs: str = "y", name: str = ""):
    return node("If", condition, outputs, name, then_branch=then, else_branch=other)


def _loop(inputs: str, outputs: str, body: onnx.GraphProto):
    return node("Loop", inputs, outputs, body=body)


def _body(nodes, outputs: str, carried: str = "", weights=None, counters=COUNTERS, condition: str = "on"):
    types = {condition: (BOOL, []), **counters}
    return subgraph(nodes, f"{condition} {outputs}", f"i go {carried}", weights, types)


GO_ON = node("Identity", "go", "on")
DOUBLE = subgraph([node("Mul", "x two", "t", "same")], "t", weights={"two": TWO})
TRIPLE = subgraph([node("Mul", "x three", "t", "same")], "t", weights={"three": THREE})


def _nested(first, second):
    inner = _if("d", DOUBLE, TRIPLE, "u", "inner")
    return subgraph([inner, node("Neg", "u", "t")], "t", weights={"d": np.array(second)}), np.array(first)


def _ifs():
    yield "then", model([_if("c", DOUBLE, TRIPLE)], {"c": np.array(True)})
    yield "else", model([_if("c", DOUBLE, TRIPLE)], {"c": np.array(False)})
    yield "condition-of-shape-1", model([_if("c", DOUBLE, TRIPLE)], {"c": np.array([True])})
    yield (
        "domain-spelled-out",
        model(
            [node("If", "c", "y", domain="ai.onnx", then_branch=DOUBLE, else_branch=TRIPLE)],
            {"c": np.array(True)},
        ),
    )
    logic = [node("Not", "a", "n"), node("And", "n b", "c"), _if("c", DOUBLE, TRIPLE)]
    yield "computed-condition", model(logic, {"a": np.array(False), "b": np.array(True)})
    shape = [
        node("Shape", "w", "s"),
        node("ReduceProd", "s", "p", keepdims=0),
        node("Greater", "p limit", "c"),
        _if("c", DOUBLE, TRIPLE),
    ]
    yield "from-the-shape-of-a-weight", model(shape, {"w": np.ones((3, 4)), "limit": np.array(11)})
    for first in (True, False):
        for second in (True, False):
            branch, condition = _nested(first, second)
            yield f"nested-{first}-{second}", model([_if("c", branch, TRIPLE)], {"c": condition})
    weight = subgraph([], "w", weights={"w": np.ones((2, 3), np.float32)})
    yield "branch-is-a-weight", model([_if("c", weight, DOUBLE)], {"c": np.array(True)})
    late = [_if("c", subgraph([node("Neg", "q", "t")], "t"), DOUBLE), node("Abs", "x", "q")]
    yield "not-in-order", model(late, {"c": np.array(True)}, outputs=["y"])
    twice = [
        _if("c", DOUBLE, TRIPLE, "a", "first"),
        _if("c", DOUBLE, TRIPLE, "b", "second"),
        node("Add", "a b", "y", "same"),
    ]
    yield "one-branch-in-two-nodes", model(twice, {"c": np.array(True)}, outputs=["y", "a", "b"])
    two = subgraph([node("Split", "x", "t u", axis=0, num_outputs=2)], "t u")
    swapped = subgraph([node("Split", "x", "t u", axis=0, num_outputs=2)], "u t")
    yield (
        "two-outputs",
        model([_if("c", two, swapped, "y z")], {"c": np.array(False)}, outputs=["y", "z"], opset=18),
    )
    capture = _if(
        "c",
        subgraph(
            [_if("e", subgraph([node("Add", "q h", "r")], "r"), subgraph([node("Neg", "h", "r")], "r"), "t")],
            "t",
        ),
        DOUBLE,
    )
    yield (
        "captures-through-two-levels",
        model(
            [node("Abs", "x", "q"), node("Exp", "x", "h"), capture],
            {"c": np.array(True), "e": np.array(True)},
        ),
    )


def _loops():
    three = {"m": np.array(3), "c": np.array(True)}
    add = [node("Add", "v x", "v1"), GO_ON]
    yield "condition-passed-on", model([_loop("m c x", "y", _body(add, "v1", "v"))], three)
    yield "no-condition", model([_loop("m - x", "y", _body(add, "v1", "v"))], three)
    yield "trips-of-shape-1", model([_loop("m - x", "y", _body(add, "v1", "v"))], {"m": np.array([3])})
    yes = [node("Add", "v x", "v1"), node("Constant", "", "t", value_int=1), node("Cast", "t", "on", to=BOOL)]
    yield "condition-computed-inside", model([_loop("m c x", "y", _body(yes, "v1", "v"))], three)
    held = _body([node("Add", "v x", "v1")], "v1", "v", {"on": np.array(True)})
    yield "condition-held-inside", model([_loop("m c x", "y", held)], three)
    for trips in (0, -2):
        none = model([_loop("m c x", "y", _body(add, "v1", "v"))], {**three, "m": np.array(trips)})
        yield f"{trips}-trips", none
    stopped = model([_loop("m c x", "y", _body(add, "v1", "v"))], {**three, "c": np.array(False)})
    yield "condition-false-from-the-start", stopped
    number = [
        node("Cast", "i", "f", to=TensorProto.FLOAT),
        node("Mul", "f h", "g"),
        node("Add", "v g", "v1"),
        node("Sub", "v1 w", "row"),
        GO_ON,
    ]
    for opset in (9, 11, 13, 17, 21):
        counted = _loop("m c x", "last rows", _body(number, "v1 row", "v", {"w": TWO}))
        yield (
            f"captures-counter-and-rows-opset-{opset}",
            model(
                [node("Exp", "x", "h"), counted, node("Neg", "rows", "y")],
                three,
                outputs=["last", "y"],
                opset=opset,
            ),
        )
    flat = {"i": (INT, [1]), "go": (BOOL, [1]), "on": (BOOL, [1])}
    ranked = [
        node("Shape", "i", "s"),
        node("Cast", "s", "f", to=TensorProto.FLOAT),
        node("Add", "v f", "v1"),
        GO_ON,
    ]
    yield (
        "counter-of-shape-1",
        model(
            [_loop("m c x", "y", _body(ranked, "v1", "v", counters=flat))], {**three, "c": np.array([True])}
        ),
    )
    swap = _body([node("Neg", "b", "n"), GO_ON], "n a", "a b")
    yield (
        "states-swapped",
        model([node("Exp", "x", "h"), _loop("m c x h", "y z", swap)], three, outputs=["y", "z"]),
    )
    choice = [
        node("Equal", "i one", "now"),
        _if(
            "now", subgraph([node("Mul", "v x", "t")], "t"), subgraph([node("Add", "v two", "t")], "t"), "v1"
        ),
        GO_ON,
    ]
    picked = _body(choice, "v1", "v", {"one": np.array(1), "two": TWO})
    yield "if-that-hangs-on-the-counter", model([_loop("m c x", "y", picked)], three)
    inner = _loop(
        "n - v",
        "v1 rows",
        subgraph(
            [
                node("Constant", "", "k", value=helper.make_tensor("k", 1, [], [0.5])),
                node("Mul", "u k", "u1"),
                node("Identity", "go2", "on2"),
            ],
            "on2 u1 u",
            "j go2 u",
            types={"j": (INT, []), "go2": (BOOL, []), "on2": (BOOL, [])},
        ),
    )
    outer = _body(
        [inner, node("ReduceSum", "rows", "row", keepdims=0), GO_ON], "v1 row", "v", {"n": np.array(2)}
    )
    yield "loop-in-a-loop", model([_loop("m c x", "y z", outer)], three, outputs=["y", "z"])
    constant = _body(
        [node("Constant", "", "k", value=helper.make_tensor("k", 1, [], [0.5])), GO_ON], "k", "v"
    )
    yield "result-is-a-constant", model([_loop("m c x", "y", constant)], three)


def _scans():
    def scan(inputs, outputs, body, sequences, **attrs):
        return node("Scan", inputs, outputs, body=body, num_scan_inputs=sequences, **attrs)

    body = subgraph(
        [
            node("Add", "s a", "s1"),
            node("Mul", "s1 k", "s2"),
            node("Mul", "a h", "row"),
        ],
        "s2 row",
        "s a",
        {"k": np.float32(0.5)},
    )
    start = {"zero": np.zeros(3, np.float32), "h": np.arange(3, dtype=np.float32)}
    for opset in (9, 13, 17):
        for back, out in ((0, 0), (1, 0), (0, 1), (1, 1)):
            made = scan("zero x", "y z", body, 1, scan_input_directions=[back], scan_output_directions=[out])
            yield (
                f"directions-{back}{out}-opset-{opset}",
                model([made], start, x=(4, 3), outputs=["y", "z"], opset=opset),
            )
    for axis, out in ((1, 1), (-1, 0), (1, -1)):
        made = scan("zero x", "y z", body, 1, scan_input_axes=[axis], scan_output_axes=[out])
        yield f"axes-{axis}-{out}", model([made], start, x=(3, 4), outputs=["y", "z"])
    pair = subgraph([node("Sub", "a b", "row")], "row", "a b")
    both = scan("x w", "y", pair, 2, scan_input_directions=[0, 1])
    yield "two-sequences", model([both], {"w": np.arange(12, dtype=np.float32).reshape(4, 3)}, x=(None, 3))


CASES = {**dict(_ifs()), **dict(_loops()), **dict(_scans())}


@pytest.mark.parametrize("case", CASES)
def test_what_is_constant_is_written_out(tmp_path, case):
    proto = CASES[case]
    file = opened(tmp_path, proto)
    assert not file.graph.has_control_flow
    shape = [d.dim_value or 4 for d in proto.graph.input[0].type.tensor_type.shape.dim]
    same(file, proto, np.random.default_rng(1).normal(size=shape).astype(np.float32))


# Random programs


class Program:
    """Random operators, Ifs, Loops and Scans inside one another, on tensors of one shape (2, 3)."""

    def __init__(self, seed: int) -> None:
        self.rng = np.random.default_rng(seed)
        self.count = 0
        self.kinds: list[str] = []

    def name(self) -> str:
        self.count += 1
        return f"t{self.count}"

    def block(self, live: list[str], depth: int) -> tuple[list[onnx.NodeProto], str, dict]:
        """Nodes that read ``live`` tensors, the name of the last result, and weights."""
        nodes, weights, live = [], {}, list(live)
        for _ in range(self.rng.integers(2, 5)):
            kind = self.rng.choice(["plain", "If", "Loop", "Scan"]) if depth else "plain"
            self.kinds.append(kind)
            made, extra = getattr(self, f"_{kind.lower()}")(live, depth)
            nodes += made
            weights |= extra
            live.append(made[-1].output[0])
        return nodes, live[-1], weights

    def _plain(self, live, depth):
        a, b = self.rng.choice(live, 2)
        return [node(self.rng.choice(["Add", "Sub", "Max"]), f"{a} {b}", self.name())], {}

    def _if(self, live, depth):
        condition = self.name()
        branches = []
        for _ in range(2):
            nodes, last, weights = self.block(live, depth - 1)
            branches.append(subgraph(nodes, last, weights=weights))
        return [_if(condition, *branches, self.name())], {condition: np.array(bool(self.rng.integers(2)))}

    def _loop(self, live, depth):
        i, go, on, state, trips = (self.name() for _ in range(5))
        nodes, last, weights = self.block([*live, state], depth - 1)
        nodes += [node("Identity", go, on), node("Tanh", last, row := self.name())]
        types = {i: (INT, []), go: (BOOL, []), on: (BOOL, [])}
        body = subgraph(nodes, f"{on} {last} {row}", f"{i} {go} {state}", weights, types)
        out, rows, total = (self.name() for _ in range(3))
        loop = _loop(f"{trips} - {self.rng.choice(live)}", f"{out} {rows}", body)
        reduced = node("ReduceSum", f"{rows} {trips}_axes", total, keepdims=0)
        nodes = [loop, reduced, node("Add", f"{out} {total}", self.name())]
        return nodes, {trips: np.array(self.rng.integers(1, 4)), f"{trips}_axes": np.array([0])}

    def _scan(self, live, depth):
        state, row, axes, rows, shaped, last = (self.name() for _ in range(6))
        pair = [node("Unsqueeze", f"{self.rng.choice(live)} {axes}", self.name()) for _ in range(2)]
        both = node("Concat", " ".join(n.output[0] for n in pair), self.name(), axis=0)
        nodes, out, weights = self.block([*live, state, row], depth - 1)
        nodes.append(node("Tanh", out, piece := self.name()))
        types = dict.fromkeys(
            (out, piece, state, row), (TensorProto.FLOAT, [2, 3])
        )  # which onnxruntime wants
        body = subgraph(nodes, f"{out} {piece}", f"{state} {row}", weights, types)
        way = {f"scan_{kind}_directions": [int(self.rng.integers(2))] for kind in ("input", "output")}
        scan = node(
            "Scan",
            f"{self.rng.choice(live)} {both.output[0]}",
            f"{last} {rows}",
            body=body,
            num_scan_inputs=1,
            **way,
        )
        picked = node("Gather", f"{rows} {axes}_first", shaped, axis=0)
        weights = {axes: np.array([0]), f"{axes}_first": np.array(1)}
        return [*pair, both, scan, picked, node("Add", f"{shaped} {last}", self.name())], weights


@pytest.mark.parametrize("seed", range(24))
def test_random_programs(tmp_path, seed):
    program = Program(seed)
    nodes, last, weights = program.block(["x"], 3)
    proto = model([*nodes, node("Neg", last, "y")], weights)
    file = opened(tmp_path, proto)
    assert not file.graph.has_control_flow
    same(file, proto)


def test_the_random_programs_have_everything_in_them():
    kinds = set()
    for seed in range(24):
        program = Program(seed)
        program.block(["x"], 3)
        kinds.update(program.kinds)
    assert kinds == {"plain", "If", "Loop", "Scan"}


# What stays


def _dynamic(then=DOUBLE, other=TRIPLE):
    """An If that hangs on the values of x."""
    return [
        node("ReduceSum", "x", "sum", keepdims=0),
        node("Greater", "sum zero", "c"),
        _if("c", then, other),
    ]


ZERO = {"zero": np.float32(0)}
STAYS = {
    "if-on-values": model(_dynamic(), ZERO),
    "constant-if-inside-one-on-values": model(_dynamic(_nested(True, False)[0]), ZERO),
    "trips-from-values": model(
        [
            node("ReduceSum", "x", "sum", keepdims=0),
            node("Cast", "sum", "m", to=INT),
            _loop("m - x", "y", _body([node("Neg", "v", "v1"), GO_ON], "v1", "v")),
        ]
    ),
    "condition-from-values": model(
        [
            _loop(
                "m - x",
                "y",
                _body(
                    [
                        node("Add", "v half", "v1"),
                        node("ReduceSum", "v1", "sum", keepdims=0),
                        node("Less", "sum limit", "on"),
                    ],
                    "v1",
                    "v",
                    {"half": np.float32(0.5), "limit": np.float32(9)},
                ),
            )
        ],
        {"m": np.array(50)},
    ),
    "too-many-trips": model(
        [_loop("m - x", "y", _body([node("Neg", "v", "v1"), GO_ON], "v1", "v"))],
        {"m": np.array(MOST_ITERATIONS + 1)},
    ),
    "too-many-nodes": model(
        [
            _loop(
                "m - x",
                "y",
                _body([*(node("Neg", f"v{i}", f"v{i + 1}") for i in range(60)), GO_ON], "v60", "v0"),
            )
        ],
        {"m": np.array(900)},
    ),
    "rows-of-no-trips": model(
        [_loop("m - x", "last y", _body([node("Neg", "v", "v1"), GO_ON], "v1 v1", "v"))],
        {"m": np.array(0)},
        outputs=["last", "y"],
    ),
    "length-not-known": model(
        [
            node(
                "Scan",
                "x",
                "y",
                num_scan_inputs=1,
                body=subgraph([node("Neg", "a", "row")], "row", "a"),
            )
        ],
        x=("N", 3),
    ),
}


@pytest.mark.parametrize("case", STAYS)
def test_what_is_not_constant_stays_and_runs(tmp_path, case):
    file = opened(tmp_path, STAYS[case])
    assert file.graph.has_control_flow
    same(file, STAYS[case])
    same(file, STAYS[case], -X)


def test_names_stay_unique_beside_control_flow_that_stays(tmp_path):
    """Its subgraphs have the names that an inlined branch brings out: onnxruntime refuses such shadows."""
    kept = subgraph([node("Mul", "b two", "t", "same")], "t", weights={"two": THREE})
    nodes = [
        _if("true", DOUBLE, TRIPLE, "b"),
        node("ReduceSum", "b", "sum", keepdims=0),
        node("Greater", "sum zero", "c"),
        _if("c", kept, TRIPLE),
    ]
    proto = model(nodes, {**ZERO, "true": np.array(True)}, outputs=["b", "y"])
    file = opened(tmp_path, proto)
    assert sum(n.op == "If" for n in file.graph.nodes) == 1
    same(file, proto)


def test_an_if_on_values_inside_a_loop_stays_in_every_iteration(tmp_path):
    """Its weights come out all the same, also the one that a branch gives as it is."""
    given = subgraph([], "w", weights={"w": np.full((2, 3), 0.5, np.float32)})
    made = subgraph([node("Mul", "v k", "t")], "t", weights={"k": np.float32(-3)})
    step = [
        node("ReduceSum", "v", "sum", keepdims=0),
        node("Greater", "sum zero", "high"),
        _if("high", made, given, "v1"),
        GO_ON,
    ]
    proto = model([_loop("m - x", "y", _body(step, "v1", "v"))], {"m": np.array(3), **ZERO})
    file = opened(tmp_path, proto)
    assert [n.op for n in file.graph.nodes if n.op in ("If", "Loop")] == ["If"] * 3
    assert {"w", "k"} <= file.initializers.keys()
    same(file, proto)
    same(file, proto, -X)


def test_a_random_operator_in_a_loop_is_drawn_anew_in_each_iteration(tmp_path):
    body = _body([node("RandomNormalLike", "x", "r"), GO_ON], "r")
    file = opened(tmp_path, model([_loop("m -", "y", body)], {"m": np.array(3)}))
    rows = run(file.cut(["y"]), {"x": X})["y"]
    assert rows.shape == (3, 2, 3)
    assert len(np.unique(rows)) == rows.size


def test_a_weight_inside_a_loop_is_there_once(tmp_path):
    w = conv_weights(np.random.default_rng(0), 4, 4, 3, 3)
    step = [node("Conv", "v w", "c", "conv", pads=[1] * 4), node("Relu", "c", "v1", "relu"), GO_ON]
    nodes = [_loop("m - x", "y", _body(step, "v1", "v", {"w": w}))]
    file = opened(tmp_path, model(nodes, {"m": np.array(5)}, x=(1, 4, 8, 8)))
    assert file.parameters == w.size
    assert [n.inputs[1] for n in file.graph.nodes if n.op == "Conv"] == ["w"] * 5


def test_a_network_with_a_constant_if_and_loop_is_analysed(tmp_path):
    """As exporters write models that were scripted."""
    rng = np.random.default_rng(0)
    first = subgraph([node("Conv", "x w", "t", "conv")], "t", weights={"w": conv_weights(rng, 4, 3, 3, 3)})
    other = subgraph([node("Conv", "x u", "t", "conv")], "t", weights={"u": conv_weights(rng, 4, 3, 3, 3)})
    step = [node("Conv", "v k", "c", "step", pads=[1] * 4), node("Relu", "c", "v1", "act"), GO_ON]
    body = _body(step, "v1", "v", {"k": conv_weights(rng, 4, 4, 3, 3)})
    nodes = [_if("yes", first, other, "h"), _loop("m - h", "y", body)]
    proto = model(nodes, {"yes": np.array(True), "m": np.array(2)}, x=("N", 3, 12, 12))
    net = onnxviz.load(write(tmp_path / "m.onnx", proto), provider="cpu")
    assert [layer.op for layer in net.layers] == ["Conv", "Conv", "Relu", "Conv", "Relu"]
    x = rng.normal(size=(2, 3, 12, 12)).astype(np.float32)
    np.testing.assert_allclose(net.activations(x, "relu2"), run(proto, {"x": x})["y"], rtol=1e-5, atol=1e-6)
    assert np.abs(net.project(x, "relu2", 1, method="gradient")).max() > 0


def test_a_malformed_loop_is_said_to_be_one(tmp_path):
    body = _body([node("Neg", "v", "v1"), GO_ON], "v1", "v")
    proto = model([_loop("m - x x", "y", body)], {"m": np.array(2)})
    with pytest.raises(ModelError, match="malformed") as error:
        opened(tmp_path, proto)
    assert len(str(error.value).splitlines()) == 1


# Known for one size of the images


def _sized():
    """An If on the height, a Loop on the width, and a Scan along the height, in a row."""
    count = [
        node("Shape", "x", "s"),
        node("Gather", "s first", "height"),
        node("Gather", "s second", "width"),
        node("Greater", "height limit", "tall"),
        _if("tall", DOUBLE, TRIPLE, "a"),
        _loop("width - a", "b", _body([node("Add", "v a", "v1"), GO_ON], "v1", "v")),
        node(
            "Scan",
            "b",
            "y",
            num_scan_inputs=1,
            scan_input_directions=[1],
            body=subgraph([node("Exp", "p", "row")], "row", "p", types={"row": (TensorProto.FLOAT, [None])}),
        ),
    ]
    weights = {"first": np.array(0), "second": np.array(1), "limit": np.array(3)}
    return model(count, weights, x=("H", "W"))


@pytest.mark.parametrize("shape", [(2, 3), (5, 4)], ids=["low", "tall"])
def test_specialised_for_a_size(tmp_path, shape):
    proto = _sized()
    file = opened(tmp_path, proto)
    x = np.random.default_rng(2).uniform(0, 0.1, shape).astype(np.float32)
    known = {"tall": np.array(shape[0] > 3), "width": np.array(shape[1])}
    settled = file.specialised(known, {"b": shape})
    assert not settled.graph.has_control_flow
    same(settled, proto, x)
    assert file.graph.has_control_flow
    same(file, proto, x)


def test_specialising_step_by_step(tmp_path):
    file = opened(tmp_path, _sized())
    one = file.specialised({"tall": np.array(True)})
    assert [n.op for n in one.graph.nodes if n.op in ("If", "Loop", "Scan")] == ["Loop", "Scan"]
    two = one.specialised({"width": np.array(2)})
    assert [n.op for n in two.graph.nodes if n.op in ("If", "Loop", "Scan")] == ["Scan"]
    three = two.specialised({}, {"b": (4, 2)})
    assert not three.graph.has_control_flow
    same(three, _sized(), np.random.default_rng(2).uniform(0, 0.1, (4, 2)).astype(np.float32))


def test_specialising_with_nothing_new_gives_the_same_model(tmp_path):
    file = opened(tmp_path, _sized())
    assert file.specialised({}) is file
    assert file.specialised({"a": X}) is file
    settled = file.specialised({"tall": np.array(True)})
    assert settled.specialised({"tall": np.array(True)}) is settled


def test_a_specialised_model_shares_weights_and_facts(tmp_path):
    proto = _sized()
    proto.producer_name = "maker"
    helper.set_model_props(proto, {"a": "b"})
    file = opened(tmp_path, proto)
    _ = file.constants["limit"]
    settled = file.specialised({"tall": np.array(True), "width": np.array(2)})
    assert all(settled.initializers[name] is tensor for name, tensor in file.initializers.items())
    assert np.shares_memory(settled.constants["limit"], file.constants["limit"])
    assert (settled.path, settled.sha256, settled.metadata) == (file.path, file.sha256, {"a": "b"})
    assert (settled.producer_name, settled.opset) == ("maker", 17)
    assert "two" in settled.constants and "two" not in file.constants


@pytest.mark.parametrize("dtype", [np.complex64, np.float32])
def test_a_count_that_is_no_whole_number_is_not_known(tmp_path, dtype):
    """Such a file is none that onnxruntime runs; nothing is made of it, and nothing is warned of."""
    add = [node("Add", "v x", "v1", "add")]
    loop = model([_loop("m - x", "y", _body(add, "v1", "v"))], {"m": np.array([3], dtype)})
    file = opened(tmp_path, loop)
    assert any(one.op == "Loop" for one in file.graph.nodes)
