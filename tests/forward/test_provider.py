"""Choosing where to run: quiet on its own, clear when asked."""

from __future__ import annotations

import subprocess
import sys

import onnxruntime
import pytest

from onnxviz import runtime
from onnxviz.errors import ProviderError, UsageError
from onnxviz.forward import session
from onnxviz.forward.session import choose_provider
from tests.model.nets import small, write


@pytest.fixture
def fresh():
    """The answer is kept for the life of the process: forget it before and after."""
    session._cuda_problem.cache_clear()
    yield
    session._cuda_problem.cache_clear()


def _no_driver(name):
    raise OSError(f"{name}: cannot open shared object file")


class _Driver:
    """An NVIDIA driver that finds no GPU."""

    def cuInit(self, flags):  # noqa: N802
        return 0

    def cuDeviceGetCount(self, count):  # noqa: N802
        return 0


def test_cpu_asks_nobody(fresh, monkeypatch):
    monkeypatch.setattr(session, "_cuda_problem", None)
    assert choose_provider("cpu") == "cpu"


@pytest.mark.parametrize("name", ["gpu", "CUDA", "", "tensorrt"])
def test_an_unknown_provider(name):
    with pytest.raises(UsageError, match="auto, cuda, cpu") as error:
        choose_provider(name)
    assert repr(name) in str(error.value)


@pytest.mark.parametrize(
    ("situation", "reason"),
    [
        ("no-driver", "there is no NVIDIA driver"),
        ("no-gpu", "the NVIDIA driver finds no GPU"),
        ("cpu-build", "this onnxruntime is built without it"),
    ],
)
def test_without_cuda(fresh, monkeypatch, capfd, situation, reason):
    providers = ["CUDAExecutionProvider", "CPUExecutionProvider"]
    monkeypatch.setattr(onnxruntime, "get_available_providers", lambda: providers[situation == "cpu-build" :])
    monkeypatch.setattr(
        runtime.ctypes, "CDLL", (lambda name: _Driver()) if situation == "no-gpu" else _no_driver
    )
    assert choose_provider("auto") == "cpu"
    with pytest.raises(ProviderError, match=reason) as error:
        choose_provider("cuda")
    message = str(error.value)
    assert "--provider cpu" in message
    assert "onnxviz[cuda]" in message
    assert len(message.splitlines()) == 1
    assert error.value.exit_code == 1
    captured = capfd.readouterr()
    assert captured.out == captured.err == ""


def test_a_driver_whose_libraries_do_not_load(fresh, monkeypatch, capfd):
    """There is a GPU, but the session falls back to the CPU: ``auto`` follows it, ``cuda`` says so."""

    class Driver(_Driver):
        def cuDeviceGetCount(self, count):  # noqa: N802
            count._obj.value = 1
            return 0

    class Session:
        def __init__(self, *_, **__):
            pass

        def get_providers(self):
            return ["CPUExecutionProvider"]

    monkeypatch.setattr(
        onnxruntime, "get_available_providers", lambda: ["CUDAExecutionProvider", "CPUExecutionProvider"]
    )
    monkeypatch.setattr(onnxruntime, "preload_dlls", lambda **_: None, raising=False)
    monkeypatch.setattr(onnxruntime, "InferenceSession", Session)
    monkeypatch.setattr(runtime.ctypes, "CDLL", lambda name: Driver())
    assert choose_provider("auto") == "cpu"
    with pytest.raises(ProviderError, match="could not load its CUDA libraries"):
        choose_provider("cuda")
    assert capfd.readouterr().err == ""


def test_auto_is_quiet_in_a_process_of_its_own(tmp_path):
    """The loader prints to the process's standard error, past Python: only another process can tell."""
    path = write(tmp_path / "m.onnx", small())
    code = (
        "import sys, numpy, onnxviz\n"
        "net = onnxviz.load(sys.argv[1])\n"
        "net.activations(numpy.zeros((2, 3, 12, 12), numpy.float32), 'conv1')\n"
        "print(net.provider)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, str(path)], capture_output=True, text=True, timeout=120, check=True
    )
    assert done.stderr == ""
    assert done.stdout in ("cpu\n", "cuda\n")
    if session._cuda_problem() is not None:
        assert done.stdout == "cpu\n"
