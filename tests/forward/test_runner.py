"""Batches: a file that fixes its batch is run at larger ones only where that changes nothing."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest

import onnxviz
from tests.model.nets import build, conv_weights, forward, node, small, write

RNG = np.random.default_rng(0)
X = RNG.normal(size=(11, 3, 12, 12)).astype(np.float32)
W = conv_weights(RNG, 4, 3, 3, 3)
G = conv_weights(RNG, 6, 4 * 10 * 10)
INTS = {"row": np.array([1, -1], np.int64), "map": np.array([1, 4, 10, 10], np.int64)}

CONV = node("Conv", "x w", "c", "conv1")
MIXED = {
    "flatten-to-one-row": [CONV, node("Reshape", "c row", "f"), node("Gemm", "f g", "y", "fc", transB=1)],
    "reshape-to-one-map": [CONV, node("Reshape", "c map", "m"), node("Relu", "m", "y", "relu1")],
    "minus-the-batch-mean": [
        CONV,
        node("ReduceMean", "c", "mean", axes=[0], keepdims=1),
        node("Mul", "mean half", "h"),
        node("Sub", "c h", "y", "centred"),
    ],
    "divided-by-the-batch-maximum": [
        CONV,
        node("ReduceMax", "c", "top", keepdims=0),
        node("Div", "c top", "y", "scaled"),
    ],
}


def _net(tmp_path, nodes, batch, provider):
    weights = {"w": W, "g": G, "half": np.float32(0.5), **INTS}
    model = build(nodes, weights, x=(batch, 3, 12, 12), outputs=["y"])
    return model, onnxviz.load(write(tmp_path / "m.onnx", model), provider=provider)


def _blocks(model, x, batch, tensor="y"):
    """Plain onnxruntime, in the file's own batches; the last is filled up with its last image."""
    import onnxruntime

    session = onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    full = np.concatenate([x, np.repeat(x[-1:], -len(x) % batch, axis=0)])
    parts = [session.run([tensor], {"x": full[i : i + batch]})[0] for i in range(0, len(full), batch)]
    return np.concatenate(parts)[: len(x)]


@pytest.mark.parametrize("batch", [1, 2, 4])
def test_a_fixed_batch_that_means_nothing_is_opened(tmp_path, batch, provider):
    net = onnxviz.load(write(tmp_path / "m.onnx", small(x=(batch, 3, 12, 12))), provider=provider)
    runner = net.runner(["r2"])
    found = runner.run(X)["r2"]
    np.testing.assert_allclose(found, forward(small(), X, ["r2"])["r2"], rtol=1e-4, atol=1e-5)
    assert runner.fixed is None


@pytest.mark.parametrize("count", [1, 2, 3, 4, 5, 8, 11])
@pytest.mark.parametrize("batch", [1, 4])
def test_any_number_of_images_goes_through(tmp_path, batch, count, provider):
    net = onnxviz.load(write(tmp_path / "m.onnx", small(x=(batch, 3, 12, 12))), provider=provider)
    found = net.runner(["r2", "d2"]).run(X[:count])
    expected = forward(small(), X[:count], ["r2", "d2"])
    for name in ("r2", "d2"):
        np.testing.assert_allclose(found[name], expected[name], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("mixed", MIXED)
def test_a_graph_that_mixes_its_batch_goes_one_by_one(tmp_path, mixed, provider):
    model, net = _net(tmp_path, MIXED[mixed], 1, provider)
    runner = net.runner(["y"])
    found = runner.run(X)["y"]
    assert runner.fixed == 1
    np.testing.assert_allclose(found, forward(model, X, ["y"])["y"], rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("mixed", ["minus-the-batch-mean", "divided-by-the-batch-maximum"])
def test_images_that_look_alike_prove_nothing(tmp_path, mixed, provider):
    """The first images of a data set may be the same, or black: on them the mean over a batch shows nothing."""
    model, net = _net(tmp_path, MIXED[mixed], 1, provider)
    x = X.copy()
    x[1] = x[0]
    runner = net.runner(["y"])
    runner.run(x[:2])
    found = runner.run(x)["y"]
    np.testing.assert_allclose(found, forward(model, x, ["y"])["y"], rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("mixed", [None, *MIXED])
@pytest.mark.parametrize("batch", [1, 4])
def test_the_decision_hangs_on_no_image(tmp_path, mixed, batch, provider, monkeypatch):
    """So that the parts of a scan, and one that goes on where it was broken off, all come to the same."""
    nodes = MIXED[mixed] if mixed else [CONV, node("Relu", "c", "y")]
    if batch == 4 and mixed in ("flatten-to-one-row", "reshape-to-one-map"):
        pytest.skip("these have one row or map whatever the batch")
    _, net = _net(tmp_path, nodes, batch, provider)
    found, fed = [], []
    for images in (None, np.zeros_like(X), X, X[:1], np.full_like(X, 1e6)):
        runner = net.runner(["y"])
        plain = runner._once
        noise = fed.append([]) or fed[-1]
        monkeypatch.setattr(
            runner, "_once", lambda s, x, keep=noise, plain=plain: keep.append(x) or plain(s, x)
        )
        runner.decide()
        decided = len(noise)
        if images is not None:
            runner.run(images)
        found.append((runner.fixed, runner.note))
        del noise[decided:]
    assert len(set(found)) == 1
    assert (found[0][0] is None) == (mixed is None)
    for one in fed[1:]:
        assert all(np.array_equal(a, b) for a, b in zip(one, fed[0], strict=True))
    assert not np.array_equal(fed[0][0], fed[0][1])  # of two alike, a mean over the batch shows nothing


@pytest.mark.parametrize("count", [5, 6, 7, 9])
@pytest.mark.parametrize("mixed", ["minus-the-batch-mean", "divided-by-the-batch-maximum"])
def test_a_mixed_batch_of_four_stays_one_of_four(tmp_path, mixed, count, provider):
    """With fewer than two full batches at hand there is nothing to compare with."""
    model, net = _net(tmp_path, MIXED[mixed], 4, provider)
    runner = net.runner(["y"])
    runner.run(X[:count])
    found = runner.run(X)["y"]
    assert runner.fixed == 4
    np.testing.assert_allclose(found, _blocks(model, X, 4), rtol=1e-5, atol=1e-6)


def test_a_batch_of_four_written_into_a_reshape(tmp_path, provider):
    nodes = [CONV, node("Reshape", "c four", "f"), node("Gemm", "f g", "y", "fc", transB=1)]
    weights = {"w": W, "g": G, "four": np.array([4, -1], np.int64)}
    fixed = build(nodes, weights, x=(4, 3, 12, 12), outputs=["y"])
    net = onnxviz.load(write(tmp_path / "m.onnx", fixed), provider=provider)
    for count in (3, 6, 11):
        found = net.activations(X[:count], "fc1")
        np.testing.assert_allclose(found, _blocks(fixed, X[:count], 4), rtol=1e-5, atol=1e-6)


def test_an_output_without_a_row_an_image_is_an_error_not_a_cut(tmp_path, provider):
    """Broadcasting against four rows makes four of one image: no row can be told to be that image's."""
    nodes = [CONV, node("Add", "c rows", "y", "add")]
    weights = {"w": W, "rows": RNG.normal(size=(4, 1, 1, 1)).astype(np.float32)}
    model = build(nodes, weights, x=(1, 3, 12, 12), outputs=["y"])
    net = onnxviz.load(write(tmp_path / "m.onnx", model), provider=provider)
    with pytest.raises(onnxviz.OnnxvizError):
        net.activations(X[:3], "add")


@pytest.mark.parametrize("engine", ["stages", "graph"])
@pytest.mark.parametrize("batch", [1, 4])
def test_projections_do_not_depend_on_the_files_batch(tmp_path, batch, engine, provider):
    plain = onnxviz.load(write(tmp_path / "plain.onnx", small()), provider=provider)
    path = write(tmp_path / "fixed.onnx", small(x=(batch, 3, 12, 12)))
    fixed = onnxviz.load(path, provider=provider, engine=engine)
    for name in ("relu2", "fc2"):
        np.testing.assert_allclose(
            fixed.project(X, name, 3), plain.project(X, name, 3), rtol=1e-4, atol=1e-6, err_msg=name
        )
    units = np.array([[0, 1, 2, 2], [9, 6, 0, 4], [4, 3, 4, 0]])
    np.testing.assert_allclose(
        fixed.project_units(X, "relu2", units).pixels,
        plain.project_units(X, "relu2", units).pixels,
        rtol=1e-4,
        atol=1e-6,
    )


@pytest.mark.parametrize("count", [1, 5, 8, 11])
def test_batches_are_filled_up_where_sizes_should_not_change(tmp_path, count, provider, monkeypatch):
    net = onnxviz.load(write(tmp_path / "m.onnx", small()), provider=provider)
    runner, sizes = net.runner(["r2", "d2"], filled=8), []
    plain = runner._once
    monkeypatch.setattr(runner, "_once", lambda s, x: sizes.append(len(x)) or plain(s, x))
    found = runner.run(X[:count])
    assert sizes == [max(8, count)]
    for name, value in forward(small(), X[:count], ["r2", "d2"]).items():
        np.testing.assert_allclose(found[name], value, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("mixed", ["flatten-to-one-row", "reshape-to-one-map"])
def test_a_filled_batch_that_does_not_go_together_goes_one_by_one(tmp_path, mixed, provider):
    model, net = _net(tmp_path, MIXED[mixed], "N", provider)
    runner = net.runner(["y"], filled=8)
    found = runner.run(X[:1])["y"]
    assert runner.fixed == 1
    np.testing.assert_allclose(found, forward(model, X[:1], ["y"])["y"], rtol=1e-5, atol=1e-6)


def test_the_layers_before_what_mixes_are_run_in_batches(tmp_path, provider):
    """The cut ends at the layer asked for, so what comes after has no say."""
    _, net = _net(tmp_path, MIXED["flatten-to-one-row"], 1, provider)
    runner = net.runner(["c"])
    runner.run(X)
    assert runner.fixed is None


def test_all_outputs_asked_for_are_there(tmp_path, provider):
    """Optimisation must not drop or rename what is exposed (onnxruntime issues 4110, 18959)."""
    net = onnxviz.load(write(tmp_path / "m.onnx", small()), provider=provider)
    names = ["c1", "r1", "p1", "c2", "r2", "g", "f", "d1", "r3", "d2"]
    found = net.runner(names).run(X[:2])
    expected = forward(small(), X[:2], names)
    assert set(found) == set(names)
    for name in names:
        np.testing.assert_allclose(found[name], expected[name], rtol=1e-4, atol=1e-5)


def test_a_network_can_be_used_by_several_threads(tmp_path, provider):
    from concurrent.futures import ThreadPoolExecutor

    net = onnxviz.load(write(tmp_path / "m.onnx", small()), provider=provider)
    expected = net.activations(X, "relu2")
    with ThreadPoolExecutor(4) as pool:
        for found in pool.map(lambda _: net.activations(X, "relu2"), range(16)):
            np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("batch", ["N", 1, 4])
def test_several_threads_at_once(tmp_path, batch, provider):
    """Among them the first, which finds out whether a fixed batch can be opened."""
    net = onnxviz.load(write(tmp_path / "m.onnx", small(x=(batch, 3, 12, 12))), provider=provider)
    runner = net.runner(["r2", "d2"], threads=1)
    parts = [np.roll(X, shift, axis=0)[:6] for shift in range(11)]
    with ThreadPoolExecutor(4) as pool:
        found = list(pool.map(runner.run, parts))
    for part, outputs in zip(parts, found, strict=True):
        for name, expected in forward(small(), part, ["r2", "d2"]).items():
            np.testing.assert_allclose(outputs[name], expected, rtol=1e-4, atol=1e-5)
    assert runner.fixed is None


def test_a_graph_that_mixes_its_open_batch_in_several_threads(tmp_path, provider):
    model, net = _net(tmp_path, MIXED["flatten-to-one-row"], "N", provider)
    runner = net.runner(["y"], threads=1)
    with ThreadPoolExecutor(4) as pool:
        found = list(pool.map(lambda _: runner.run(X)["y"], range(6)))
    expected = np.concatenate([forward(model, x[None], ["y"])["y"] for x in X])
    for value in found:
        np.testing.assert_allclose(value, expected, rtol=1e-4, atol=1e-5)
