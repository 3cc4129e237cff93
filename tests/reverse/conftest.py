from __future__ import annotations

import itertools
from collections.abc import Callable
from pathlib import Path

import onnx
import pytest

import onnxviz
from onnxviz.network import Network

Opener = Callable[[onnx.ModelProto], Network]


@pytest.fixture
def opened(tmp_path: Path) -> Opener:
    """Opens a model as a user would, from a file."""
    count = itertools.count()

    def open_model(model: onnx.ModelProto) -> Network:
        path = tmp_path / f"model{next(count)}.onnx"
        onnx.save(model, str(path))
        return onnxviz.load(path, provider="cpu")

    return open_model
