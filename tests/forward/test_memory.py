"""Memory that does not suffice for a batch: half as many images at once, and it is said."""

from __future__ import annotations

import subprocess
import sys
import textwrap
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest

import onnxviz
from onnxviz.errors import ModelError
from onnxviz.forward.session import Session
from onnxviz.images.preprocess import resolve_preprocess
from onnxviz.images.source import Sample, Source
from onnxviz.runtime import out_of_memory
from tests.model.nets import build, conv_weights, forward, node, small, write
from tests.scanned import scan

X = np.random.default_rng(1).normal(size=(11, 3, 12, 12)).astype(np.float32)

MESSAGES = {
    "onnxruntime": RuntimeError(
        "[ONNXRuntimeError] : 6 : RUNTIME_EXCEPTION : Non-zero status code returned while running Conv node. "
        "Name:'conv1' Status Message: bfc_arena.cc:376 Failed to allocate memory for requested buffer of size 4096"
    ),
    "c++": RuntimeError("[ONNXRuntimeError] : 6 : RUNTIME_EXCEPTION : Exception during run: std::bad_alloc"),
    "cuda": RuntimeError(
        "CUDA failure 2: out of memory ; GPU=0 ; hostname=x ; expr=cudaMalloc((void**)&p, size);"
    ),
    "cublas": RuntimeError("CUBLAS failure 3: CUBLAS_STATUS_ALLOC_FAILED ; GPU=0"),
    "python": MemoryError(),
}


class Short:
    """Takes the place of a session's run: memory for ``most`` images at once, of all threads together if ``shared``."""

    def __init__(self, monkeypatch, most: int, error: Exception = MESSAGES["onnxruntime"]) -> None:
        self.tried: list[int] = []
        plain = Session._outputs

        def run(session, feeds):
            rows = len(feeds["x"])
            self.tried.append(rows)
            if rows > most:
                raise error
            return plain(session, feeds)

        monkeypatch.setattr(Session, "_outputs", run)


@pytest.fixture
def net(tmp_path):
    found = onnxviz.load(write(tmp_path / "m.onnx", small()), provider="cpu")
    _ = found.layers  # whatever it runs to find out about itself
    return found


@pytest.mark.parametrize("error", MESSAGES.values(), ids=MESSAGES)
def test_the_batch_is_halved_until_it_fits(net, monkeypatch, error):
    runner = net.runner(["r2", "d2"])
    short = Short(monkeypatch, 3, error)
    found = runner.run(X)
    assert short.tried == [11, 5, 2, 2, 2, 2, 2, 1]
    for name, value in forward(small(), X, ["r2", "d2"]).items():
        np.testing.assert_allclose(found[name], value, rtol=1e-4, atol=1e-5)
    assert runner.note == "Memory was short: images were run 2 at a time."
    assert runner.fixed is None  # the model does keep its batch


def test_what_was_learnt_holds_for_later_runs(net, monkeypatch):
    runner = net.runner(["r2"])
    short = Short(monkeypatch, 3)
    runner.run(X)
    short.tried.clear()
    runner.run(X[:5])
    assert short.tried == [2, 2, 1]


def test_what_is_filled_up_is_halved_too(net, monkeypatch):
    runner = net.runner(["r2"], filled=8)
    short = Short(monkeypatch, 3)
    found = runner.run(X[:5])
    assert short.tried == [8, 4, 2, 2, 2]
    np.testing.assert_allclose(found["r2"], forward(small(), X[:5], ["r2"])["r2"], rtol=1e-4, atol=1e-5)
    assert runner.note == "Memory was short: images were run 2 at a time."


def test_no_memory_for_one_image_is_an_error_that_says_what_to_do(net, monkeypatch):
    runner = net.runner(["r2"])
    Short(monkeypatch, 0)
    with pytest.raises(
        ModelError, match=r"not enough memory for 1 image\. Choose fewer layers.*--size"
    ) as error:
        runner.run(X)
    assert "provider" not in str(error.value)
    assert "does not keep" not in (runner.note or "")


def test_a_gpu_without_memory_is_advised_to_use_the_cpu(net, monkeypatch):
    runner = net.runner(["r2"])
    runner._provider = "cuda"
    Short(monkeypatch, 0, MESSAGES["cuda"])
    with pytest.raises(ModelError, match="--provider cpu"):
        runner.run(X)


def test_another_failure_is_not_taken_for_it(net, monkeypatch):
    runner = net.runner(["r2"])
    Short(monkeypatch, 0, RuntimeError("[ONNXRuntimeError] : 1 : FAIL : Concat 'c': Axis 2 has 1 and 4"))
    with pytest.raises(ModelError, match="Axis 2 has 1 and 4"):
        runner.run(X[:1])


def test_a_batch_that_the_file_fixes_is_halved_to_no_less(tmp_path, monkeypatch):
    """Four images at once are what the model takes; it mixes them."""
    nodes = [
        node("Conv", "x w", "c", "conv1"),
        node("ReduceMean", "c", "mean", axes=[0], keepdims=1),
        node("Sub", "c mean", "y", "centred"),
    ]
    weights = {"w": conv_weights(np.random.default_rng(0), 4, 3, 3, 3)}
    net = onnxviz.load(write(tmp_path / "m.onnx", build(nodes, weights, x=(4, 3, 12, 12))), provider="cpu")
    runner = net.runner(["y"])
    runner.decide()
    want = runner.run(X)["y"]
    Short(monkeypatch, 4)
    np.testing.assert_array_equal(runner.run(X)["y"], want)
    Short(monkeypatch, 3)
    with pytest.raises(ModelError, match="not enough memory for 4 images"):
        runner.run(X)


def test_several_threads_find_it_out_together(net, monkeypatch):
    runner = net.runner(["r2"], threads=1)
    Short(monkeypatch, 2)
    parts = [np.roll(X, shift, axis=0) for shift in range(8)]
    with ThreadPoolExecutor(4) as pool:
        found = list(pool.map(runner.run, parts))
    for part, outputs in zip(parts, found, strict=True):
        want = forward(small(), part, ["r2"])["r2"]
        np.testing.assert_allclose(outputs["r2"], want, rtol=1e-4, atol=1e-5)
    assert runner.note == "Memory was short: images were run 2 at a time."


def test_threads_that_leave_no_memory_to_each_other_take_turns(net, monkeypatch):
    """One image at a time is only too much while others run."""
    import threading

    running, most = [0], [0]
    plain, lock = Session._outputs, threading.Lock()
    together = threading.Barrier(2)

    def run(session, feeds):
        with lock:
            running[0] += 1
            others = running[0] > 1
            most[0] = max(most[0], running[0])
        try:
            if not runner._alone:
                together.wait(10)
            if others or (len(feeds["x"]) > 1 and not runner._alone):
                raise MESSAGES["onnxruntime"]
            return plain(session, feeds)
        finally:
            with lock:
                running[0] -= 1

    runner = net.runner(["r2"], threads=1)
    monkeypatch.setattr(Session, "_outputs", run)
    with ThreadPoolExecutor(2) as pool:
        found = list(pool.map(runner.run, [X[:1], X[1:2]]))
    assert most[0] == 2
    want = forward(small(), X[:2], ["r2"])["r2"]
    np.testing.assert_allclose(np.concatenate([f["r2"] for f in found]), want, rtol=1e-4, atol=1e-5)
    assert runner.note == "Memory was short: images were run 1 at a time, in one thread."


def _source(count):
    return Source("arrays", tuple(Sample(f"image{i}", None, lambda i=i: X[i]) for i in range(count)))


def test_a_scan_is_the_same_and_says_it_once(net, monkeypatch):
    recipe = resolve_preprocess(channels=3, height=12, width=12, preset="raw")
    layers = [net.layer("conv1"), net.layer("fc1")]
    want = scan(net, _source(11), layers, recipe, batch_size=6)
    Short(monkeypatch, 2)
    found = scan(net, _source(11), layers, recipe, batch_size=6)
    assert found.note == "Memory was short: images were run 1 at a time." or "2 at a time" in (
        found.note or ""
    )
    for one, other in zip(found.layers, want.layers, strict=True):
        np.testing.assert_array_equal(one.topk.image, other.topk.image)
        np.testing.assert_allclose(one.topk.score, other.topk.score, rtol=1e-4, atol=1e-5)


def test_a_real_shortage():
    """A process whose address space is limited: a batch that does not fit, and images that do."""
    script = """
        import resource
        import numpy as np
        import onnxviz
        from pathlib import Path
        from tempfile import TemporaryDirectory
        from tests.model.nets import build, conv_weights, node, write

        nodes = [
            node("Conv", "x w", "c", "conv1", pads=[1, 1, 1, 1]),
            node("Sigmoid", "c", "s"),
            node("GlobalMaxPool", "s", "y"),
        ]
        model = build(nodes, {"w": conv_weights(np.random.default_rng(0), 64, 3, 3, 3)}, x=("N", 3, 256, 256))
        x = np.random.default_rng(1).normal(size=(24, 3, 256, 256)).astype(np.float32)
        with TemporaryDirectory() as folder:
            net = onnxviz.load(write(Path(folder, "m.onnx"), model), provider="cpu")
            runner = net.runner(["y"], threads=1)
            runner.run(x[:1])
            lines = Path("/proc/self/status").read_text().splitlines()
            used = next(int(line.split()[1]) << 10 for line in lines if line.startswith("VmSize"))
            # 16 MiB an image and tensor: 24 are 384 MiB, twice.
            resource.setrlimit(resource.RLIMIT_AS, (used + (400 << 20), resource.RLIM_INFINITY))
            found = runner.run(x)["y"]
            print(runner.note)
            resource.setrlimit(resource.RLIMIT_AS, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
            plain = net.runner(["y"], threads=1)
            np.testing.assert_allclose(plain.run(x)["y"], found, rtol=1e-5)
            assert plain.note is None
    """
    if sys.platform != "linux":
        pytest.skip("address spaces are limited on Linux")
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(script)],
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert "Memory was short: images were run" in done.stdout, done.stdout


@pytest.mark.parametrize("error", MESSAGES.values(), ids=MESSAGES)
def test_messages_of_no_memory(error):
    assert out_of_memory(error)


@pytest.mark.parametrize(
    "text", ["Axis 2 has 1 and 4", "memory layout", "allocation planner: shape mismatch"]
)
def test_other_messages(text):
    assert not out_of_memory(RuntimeError(text))
