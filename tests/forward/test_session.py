"""Sessions: what goes over the device's border, and agreement with the CPU (``--provider cuda``)."""

from __future__ import annotations

import numpy as np
import onnxruntime
import pytest

import onnxviz
from onnxviz.forward.session import Session
from onnxviz.images.preprocess import resolve_preprocess
from onnxviz.images.source import Sample, Source
from onnxviz.model.graph import ModelFile
from tests.model.nets import forward, small, write
from tests.scanned import scan

X = np.random.default_rng(0).normal(size=(9, 3, 12, 12)).astype(np.float32)
NAMES = ["c1", "r2", "g", "d2"]


@pytest.fixture(scope="module")
def path(tmp_path_factory):
    return write(tmp_path_factory.mktemp("net") / "small.onnx", small())


def test_outputs(path, provider, rounding):
    model = ModelFile(path)
    found = Session(model, model.cut(NAMES), provider=provider).run({"x": X})
    for name, want in forward(small(), X, NAMES).items():
        assert found[name].shape == want.shape
        np.testing.assert_allclose(found[name], want, atol=rounding * np.abs(want).max(), rtol=0)


def test_views_go_in_too(path, provider):
    """Inputs that are not contiguous, as transposed images are."""
    model = ModelFile(path)
    session = Session(model, model.cut(["c1"]), provider=provider)
    view = np.ascontiguousarray(X.transpose(0, 2, 3, 1)).transpose(0, 3, 1, 2)
    np.testing.assert_array_equal(session.run({"x": view})["c1"], session.run({"x": X})["c1"])


def test_only_what_is_asked_for_comes_back(path, provider, monkeypatch):
    """A scan's outputs have a number for each image and channel: no map comes back."""
    shapes = []
    plain = Session._outputs

    def watched(self, feeds):
        values = plain(self, feeds)
        shapes.extend(value.shape for value in values)
        return values

    monkeypatch.setattr(Session, "_outputs", watched)
    _scan(onnxviz.load(path, provider=provider))
    assert shapes
    assert all(len(shape) == 2 for shape in shapes)


def _scan(net):
    samples = tuple(Sample(f"image{i}", None, lambda i=i: X[i]) for i in range(len(X)))
    recipe = resolve_preprocess(channels=3, height=12, width=12, preset="raw")
    layers = [net.layer(name) for name in ("conv1", "relu2", "fc1")]
    return scan(net, Source("arrays", samples), layers, recipe, batch_size=4)


def test_a_scan_agrees_with_the_cpu(path, provider, rounding):
    found = _scan(onnxviz.load(path, provider=provider)).layers
    want = _scan(onnxviz.load(path, provider="cpu")).layers
    for one, other in zip(found, want, strict=True):
        for part in ("topk", "stats"):
            mine, theirs = getattr(one, part).arrays(), getattr(other, part).arrays()
            for name in ("score", "activation", "largest", "total"):
                if name in mine:
                    np.testing.assert_allclose(
                        mine[name], theirs[name], atol=rounding * np.abs(theirs[name]).max(), err_msg=name
                    )


def test_threads_of_a_run(path):
    model = ModelFile(path)
    session = Session(model, model.cut(["c1"]), threads=1)
    assert session._session.get_session_options().intra_op_num_threads == 1
    np.testing.assert_allclose(session.run({"x": X})["c1"], forward(small(), X, ["c1"])["c1"], rtol=1e-5)


def test_what_onnxruntime_is_asked_for_on_cuda(monkeypatch, path):
    """Else it rounds products to 10 bits, and tries all kernels at each new size of a batch."""
    seen = []

    def session(cut, options, providers, enable_fallback):
        seen.extend(providers)
        raise RuntimeError("no GPU here")

    monkeypatch.setattr(onnxruntime, "InferenceSession", session)
    model = ModelFile(path)
    with pytest.raises(onnxviz.OnnxvizError, match="no GPU here"):
        Session(model, model.cut(["c1"]), provider="cuda")
    options = {"use_tf32": "0", "cudnn_conv_algo_search": "HEURISTIC"}
    assert seen == [("CUDAExecutionProvider", options), "CPUExecutionProvider"]
