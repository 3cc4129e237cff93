"""The compiled reverse pass against the same rules in NumPy, over whole maps."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
from onnx.reference import ReferenceEvaluator

import onnxviz
from onnxviz.errors import ModelError, UnsupportedOpError, UsageError
from onnxviz.network import Network
from onnxviz.reverse.engine import Plan, Recording, Units
from onnxviz.reverse.methods import make_method
from onnxviz.reverse.program import Program, recorded_types
from onnxviz.reverse.project import Projector
from onnxviz.reverse.rules import RULES
from onnxviz.reverse.whole import UNITS_INPUT
from tests import light
from tests.reverse import models
from tests.reverse.all_cases import CASES
from tests.reverse.cases import DUMMY, Array, Case, weights
from tests.reverse.conftest import Opener
from tests.reverse.models import network, node, pictures
from tests.reverse.pasting import CLOSE, corner_units, window_error
from tests.reverse.test_engine import METHODS, OVERRIDDEN, SANDWICHES
from tests.reverse.test_rules import PICTURE, off_by
from tests.reverse.witnesses import Arrays, onnxruntime_forward

ONLY_NUMPY = {"CumProd", "DFT", "ReduceProd", "TopK"}
"""Of the operators that work on maps, those whose rules have no ONNX form."""

LEFT_TO_NUMPY = {
    *(
        "Attention",
        "Col2Im",
        "Compress",
        "DeformConv",
        "Det",
        "GRU",
        "GatherElements",
        "GatherND",
        "GridSample",
    ),
    *("LSTM", "MaxPool", "MaxRoiPool", "MaxUnpool", "RNN", "ReverseSequence", "RoiAlign", "STFT", "Scatter"),
    *("ScatterElements", "ScatterND", "TensorScatter"),
} | ONLY_NUMPY
"""All operators whose rules NumPy does between the stages; others only where their parameters are computed."""

TOO_OLD = {"BatchNormalization-opset8-for-each-position"}
"""A form of an operator that onnx's converter cannot bring to opset 13."""

FOUR_STEPS = (
    [
        node("Conv", "x w", "c", pads=[1, 1, 1, 1]),
        node("Relu", "c", "r"),
        node("MaxPool", "r", "p", kernel_shape=[3, 3], strides=[2, 2], pads=[0, 0, 1, 1]),
        node("Conv", "p v", "y", pads=[1, 2, 0, 1], strides=[2, 1]),
    ],
    {"w": weights(4, 3, 3, 3), "v": weights(5, 4, 3, 3)},
)


def reopened(net: Network, engine: str) -> Network:
    return onnxviz.load(net.file.path, provider=net.provider, engine=engine)


def error(found: Array, expected: Array) -> float:
    """The largest difference of any unit, to its largest value."""
    most = np.abs(expected).reshape(len(expected), -1).max(1)
    return float((np.abs(found - expected).reshape(len(expected), -1).max(1) / np.maximum(most, 1e-20)).max())


def program(net: Network, layer: str, method: str, x: Array) -> Program:
    projector = net.projector(net.layer(layer), make_method(method))
    recording = net.record(x, projector.records, projector.pools)
    for _ in projector.units(recording, np.zeros((1, 4), int)):
        pass
    assert projector.program is not None
    return projector.program


@pytest.mark.parametrize(
    ("case", "method"),
    [
        pytest.param(case, method, id=f"{case.id}-{method}")
        for case in SANDWICHES
        if case.op not in ONLY_NUMPY and case.id not in TOO_OLD
        for method in (METHODS if case.op in OVERRIDDEN else METHODS[-1:])
    ],
)
def test_one_graph_gives_what_whole_maps_give(case: Case, method: str, opened: Opener):
    model = models.sandwich(case)
    assert model is not None
    net = reopened(opened(model), "graph")
    assert window_error(net, pictures(model, 2), "last", corner_units(net, "last", 2), method) < CLOSE


@pytest.mark.parametrize("case", [pytest.param(c, id=c.id) for c in SANDWICHES])
def test_only_a_few_operators_are_left_to_numpy(case: Case, opened: Opener):
    """Stages give the same as NumPy alone (`test_engine.py`); here is which moves NumPy does between them."""
    model = models.sandwich(case)
    assert model is not None
    net = reopened(opened(model), "stages")
    left = {move.node.op for move in program(net, "last", "gradient", pictures(model, 1)).by_numpy}
    assert left == ({case.op} & (ONLY_NUMPY | {"MaxPool"}))


@pytest.mark.parametrize("case", [pytest.param(c, id=c.id) for c in CASES])
def test_every_rule_compiled_or_left_out(case: Case, opened: Opener, monkeypatch: pytest.MonkeyPatch):
    """The one-node models, in stages: what a rule does that has no ONNX form must not go unnoticed, or wrong."""
    net = opened(case.model())
    if case.op == "LRN":
        return  # even sizes do not run; `test_one_graph_gives_what_whole_maps_give` has the others
    x = {**case.inputs(), DUMMY: PICTURE}
    shapes = {name: y.shape for name, y in onnxruntime_forward(case.model())(x).items()}
    rng = case.rng()
    g = {name: rng.standard_normal(shape).astype(np.float32) for name, shape in shapes.items()}
    expected = net.vjp(x, g)
    left: list[str] = []

    def in_stages(
        plan: Plan, seeds: Arrays, recording: Recording, units: Units, sources: list[str]
    ) -> dict[str, Array]:
        made = Program(plan, net.file.path, sources, list(seeds), recorded_types(recording))
        left.extend(move.node.op for move in made.by_numpy)
        return made.run(seeds, recording, units)

    monkeypatch.setattr("onnxviz.network.run", in_stages)
    found = net.vjp(x, g)
    for name, value in expected.items():
        np.testing.assert_allclose(
            found[name], value, rtol=1e-4, atol=1e-5 * max(1, np.abs(value).max(initial=0))
        )
    computed = "run-time" in case.name or "computed" in case.name
    assert computed or set(left) <= LEFT_TO_NUMPY, left


@pytest.mark.parametrize("op", sorted(ONLY_NUMPY))
def test_what_has_no_onnx_form_is_refused_by_name(op: str, opened: Opener, tmp_path: Path):
    case = next(case for case in SANDWICHES if case.op == op)
    model = models.sandwich(case)
    assert model is not None
    with pytest.raises(
        UnsupportedOpError, match=rf"The reverse of {op} 'the_{op}'.* cannot be written as ONNX"
    ):
        opened(model).export_deconv("last", tmp_path / "deconv.onnx", "gradient")
    assert not (tmp_path / "deconv.onnx").exists()


@pytest.mark.parametrize("op", ["TopK", "DFT"])
def test_without_one_graph_stages_do(op: str, opened: Opener):
    """``auto`` on CUDA."""
    model = models.sandwich(next(case for case in SANDWICHES if case.op == op))
    assert model is not None
    net, x = opened(model), pictures(model, 2)
    layer, method = net.layer("last"), make_method("gradient")
    asked = net.projector(layer, method, engine="graph")
    units = corner_units(net, "last", 2)
    with pytest.raises(UnsupportedOpError):
        next(iter(asked.units(net.record(x, [net.image.name]), units)))
    projector = Projector(
        asked.plan,
        layer,
        method,
        net.image,
        engine="graph",
        otherwise="stages",
        path=net.file.path,
        graph=asked._make_graph,
    )
    recording = net.record(x, projector.records, projector.pools)
    assert projector.engine == "stages"
    want = reopened(net, "numpy").project_units(x, "last", units, method).pixels
    pixels = [found for _, (found, _) in projector.units(recording, units)]
    assert error(np.concatenate(pixels), want) < CLOSE


def test_runs_of_one_size(opened: Opener, monkeypatch: pytest.MonkeyPatch):
    """As on CUDA: images and units are filled up, so that sizes seldom change, and never past the bounds."""
    model = network(*FOUR_STEPS)
    net, x = opened(model), pictures(model, 7)
    layer, method = net.layer("y"), make_method("deconvnet")
    rng = np.random.default_rng(0)
    units = np.stack([rng.integers(0, n, 300) for n in (7, layer.channels, *layer.grid)], axis=1)
    want = net.project_units(x, "y", units)
    monkeypatch.setattr("onnxviz.reverse.project._MOST_UNITS", 64)
    monkeypatch.setattr("onnxviz.reverse.project._GRAPH_IMAGES", 3)
    projector = reopened(net, "graph").projector(layer, method)
    graph = projector._graph
    graph._steady = True
    sizes = []
    plain = graph._session.run

    class Watched:
        def run(self, outputs: list[str], feeds: Arrays) -> list[Array]:
            sizes.append((len(feeds[net.image.name]), len(feeds[UNITS_INPUT])))
            return plain(outputs, feeds)  # type: ignore[no-any-return]

    graph._session = Watched()
    order = np.argsort(units[:, 0], kind="stable")
    parts = list(projector.units(net.record(x, projector.records), units[order]))
    assert [i for part, _ in parts for i in range(part.start, part.stop)] == list(range(300))
    assert error(np.concatenate([pixels for _, (pixels, _) in parts]), want.pixels[order]) < CLOSE
    images, at_once = zip(*sizes, strict=True)
    assert set(images) == {3}
    assert max(at_once) <= 64
    assert all(n % 8 == 0 for n in at_once)
    assert len(sizes) <= 9  # 300 units of 7 images


@pytest.mark.parametrize("name", light.NAMES)
def test_real_networks(name: str, tmp_path: Path, provider: str):
    path = light.write_light(name, tmp_path)
    nets = {
        engine: onnxviz.load(path, provider=provider, engine=engine)
        for engine in ("stages", "graph", "numpy")
    }
    net = nets["numpy"]
    x = np.random.default_rng(7).standard_normal((2, 3, *net.size)).astype(np.float32)
    layer = "conv5" if name in ("bvlc_alexnet", "zfnet512") else "conv6"
    units = corner_units(net, layer, 2)[::2]
    expected = net.project_units(x, layer, units).pixels
    # A projection is as large as its seed, an activation of a forward pass, which each engine runs in its own way. One
    # whose terms nearly cancel each other (in zfnet512 one of 0.037 in a map of up to 2.3) has few digits that are
    # sure: it is close on the map's own scale, and all else is close on the projection's.
    maps = net.activations(x, layer)[units[:, 0], units[:, 1]]
    seeds = maps[np.arange(len(units)), units[:, 2], units[:, 3]]
    for engine in ("stages", "graph"):
        found = nets[engine].project_units(x, layer, units).pixels
        scale = np.array(
            [np.vdot(f, e) / np.vdot(e, e) if e.any() else 1.0 for f, e in zip(found, expected, strict=True)]
        )
        assert (np.abs((scale - 1) * seeds) / np.abs(maps).max((1, 2))).max() < CLOSE
        assert error(found / scale.reshape(-1, 1, 1, 1), expected) < CLOSE


@pytest.mark.parametrize("engine", ["stages", "graph"])
@pytest.mark.parametrize(
    ("shape", "attributes"),
    [
        ((5, 4, 3, 2), {}),
        ((5, 4, 3, 3), {"strides": [2, 3], "pads": [1, 1, 1, 1]}),
        ((5, 4, 2, 3), {"dilations": [3, 2]}),
        ((5, 4, 1, 1), {"strides": [2, 2]}),
        ((4, 1, 3, 3), {"group": 4, "dilations": [1, 2]}),
        ((8, 1, 3, 3), {"group": 4}),
        ((2, 2, 3, 3), {"group": 2, "strides": [2, 1]}),
        ((6, 2, 3, 3), {"group": 2}),
    ],
    ids=str,
)
def test_a_unit_begins_at_one_place(opened: Opener, shape: tuple[int, ...], attributes: dict, engine: str):
    """Where the last convolution is a product: with all kinds of groups, steps and distances."""
    nodes = [node("Conv", "x w", "c"), node("Relu", "c", "r"), node("Conv", "r v", "y", **attributes)]
    model = network(nodes, {"w": weights(4, 3, 3, 3), "v": weights(*shape)})
    net = reopened(opened(model), engine)
    assert window_error(net, pictures(model, 2), "y", corner_units(net, "y", 2), "deconvnet") < CLOSE


def test_the_rules_themselves_are_compiled(opened: Opener, monkeypatch: pytest.MonkeyPatch):
    """A rule that is off is off in the compiled pass as well: there is no second table."""
    model = network(*FOUR_STEPS)
    net, x = opened(model), pictures(model, 1)
    units = corner_units(net, "y", 1)
    true = net.project_units(x, "y", units).pixels
    monkeypatch.setitem(RULES, "Conv", off_by(0.001, RULES["Conv"]))
    for engine in ("stages", "graph"):
        found = reopened(net, engine).project_units(x, "y", units).pixels
        assert error(found, true * np.float32(1.001**2)) < CLOSE


def test_whole_maps_are_compiled_too(opened: Opener):
    model = network(*FOUR_STEPS)
    net, x = opened(model), pictures(model, 3)
    layer, method = net.layer("y"), make_method("guided")
    seeds = (
        np.random.default_rng(0).standard_normal((4, *net.activations(x, "y").shape[1:])).astype(np.float32)
    )
    rows = np.array([2, 0, 0, 1])
    found = {}
    for engine in ("stages", "numpy"):
        projector = net.projector(layer, method, windows=False, engine=engine)
        recording = net.record(x, projector.records, projector.pools)
        found[engine] = projector.maps(seeds, recording, rows)
    assert error(found["stages"], found["numpy"]) < CLOSE


def test_a_stage_that_has_nothing_to_compute(opened: Opener):
    """Between the pools lies only what deconvnet passes on as it is."""
    pool = {"kernel_shape": [2, 2], "strides": [1, 1]}
    nodes = [
        node("Conv", "x w", "c"),
        node("MaxPool", "c", "p", **pool),
        node("LRN", "p", "n", size=3),
        node("MaxPool", "n", "q", **pool),
        node("Conv", "q v", "y"),
    ]
    model = network(nodes, {"w": weights(4, 3, 3, 3), "v": weights(5, 4, 3, 3)})
    net = opened(model)
    assert window_error(net, pictures(model, 2), "y", corner_units(net, "y", 2), "deconvnet") < CLOSE


def test_what_onnxruntime_refuses_is_done_by_numpy_and_said(opened: Opener, monkeypatch: pytest.MonkeyPatch):
    model = network(*FOUR_STEPS)
    net, x = opened(model), pictures(model, 2)
    units = corner_units(net, "y", 2)

    def refuse(model: bytes, path: Path, **options: object) -> None:
        raise ModelError(f"{path}: onnxruntime cannot run it: no kernel.")

    monkeypatch.setattr("onnxviz.reverse.program.open_session", refuse)
    with pytest.warns(UserWarning, match=r"no kernel\. NumPy does this part of the way back"):
        found = net.project_units(x, "y", units).pixels
    assert error(found, reopened(net, "numpy").project_units(x, "y", units).pixels) < CLOSE


def test_many_units_go_through_several_threads(opened: Opener):
    model = network(*FOUR_STEPS)
    net, x = opened(model), pictures(model, 5)
    layer = net.layer("y")
    rng = np.random.default_rng(0)
    units = np.stack([rng.integers(0, n, 700) for n in (5, layer.channels, *layer.grid)], axis=1)
    found, expected = (reopened(net, e).project_units(x, "y", units) for e in ("stages", "numpy"))
    np.testing.assert_array_equal(found.boxes, expected.boxes)
    assert error(found.pixels, expected.pixels) < CLOSE


@pytest.mark.parametrize("engine", ["stages", "graph", "numpy"])
def test_little_memory_means_small_batches(engine: str, opened: Opener):
    model = network(*FOUR_STEPS)
    net, x = opened(model), pictures(model, 5)
    small = onnxviz.load(net.file.path, provider=net.provider, engine=engine, memory=64 << 10)
    units = corner_units(net, "y", 5)
    projector = small.projector(small.layer("y"), make_method("deconvnet"))
    assert projector.units_at_once < 20
    assert projector.images_at_once < 5 or engine == "graph"
    found = small.project_units(x, "y", units).pixels
    assert error(found, net.project_units(x, "y", units).pixels) < CLOSE


def test_an_unknown_engine(opened: Opener):
    net = opened(network(*FOUR_STEPS))
    with pytest.raises(
        UsageError, match=r"Engine 'fast' is not known. Choose one of auto, stages, graph, numpy"
    ):
        reopened(net, "fast")


# Exported models


def exported(net: Network, path: Path, method: str = "deconvnet") -> Path:
    out = net.export_deconv("y", path / "deconv.onnx", method)
    onnx.checker.check_model(str(out), full_check=True)
    return out


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("opset", [9, 11, 13, 17, 18, 21])
def test_an_exported_model_in_two_runtimes(opset: int, method: str, opened: Opener, tmp_path: Path):
    model = network(*FOUR_STEPS, opset=opset)
    net, x = opened(model), pictures(model, 2)
    units = corner_units(net, "y", 2)
    out = exported(net, tmp_path, method)
    expected = reopened(net, "numpy").project_units(x, "y", units, method)
    maps = net.activations(x, "y")
    feeds = {"x": x, "units": units.astype(np.int64)}
    session = onnxruntime.InferenceSession(str(out), providers=["CPUExecutionProvider"])
    for pixels, boxes, activations, rows in (
        session.run(None, feeds),
        ReferenceEvaluator(str(out)).run(None, feeds),
    ):
        assert error(pixels, expected.pixels) < CLOSE
        np.testing.assert_array_equal(boxes, expected.boxes)
        np.testing.assert_allclose(activations, maps[tuple(units.T)], rtol=1e-4, atol=1e-5)
        np.testing.assert_allclose(rows, maps[units[:, 0], units[:, 1]], rtol=1e-4, atol=1e-5)


def test_the_inputs_and_outputs_of_an_exported_model(opened: Opener, tmp_path: Path):
    model = onnx.load(str(exported(opened(network(*FOUR_STEPS)), tmp_path)))

    def described(values: object) -> dict[str, list[object]]:
        return {
            v.name: [d.dim_param or d.dim_value for d in v.type.tensor_type.shape.dim]
            for v in values  # type: ignore[attr-defined]
        }

    assert described(model.graph.input) == {"x": ["N", 3, 13, 11], "units": ["units", 4]}
    outputs = described(model.graph.output)
    assert list(outputs) == ["pixels", "boxes", "activations", "maps"]
    assert outputs["pixels"][:2] == ["units", 3]
    assert outputs["boxes"] == ["units", 4]


def test_export_where_it_cannot_be_written(opened: Opener, tmp_path: Path):
    net = opened(network(*FOUR_STEPS))
    with pytest.raises(UsageError, match="there is no folder"):
        net.export_deconv("y", tmp_path / "nowhere" / "deconv.onnx")
    with pytest.raises(UsageError, match="a folder"):
        net.export_deconv("y", tmp_path)
