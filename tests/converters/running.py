"""Running a converted model in onnxruntime with inner tensors exposed."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import onnx
import onnxruntime
from numpy.typing import NDArray


def run(
    model: onnx.ModelProto, x: NDArray[np.float32], names: Sequence[str]
) -> dict[str, NDArray[np.float32]]:
    """Values of the named tensors for the input x (N, C, H, W); feature maps come back as N×H×W×C."""
    declared = len(model.graph.output)
    model.graph.output.extend(onnx.ValueInfoProto(name=name) for name in names if name != "prob")
    session = onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    del model.graph.output[declared:]
    values = session.run(list(names), {"data": x})
    return {
        name: value.transpose(0, 2, 3, 1) if value.ndim == 4 else value
        for name, value in zip(names, values, strict=True)
    }


def largest_difference(found: NDArray[np.float32], expected: NDArray[np.float32]) -> float:
    """The largest difference, relative to the largest expected value."""
    assert found.shape == expected.shape
    return float(np.abs(found - expected).max() / np.abs(expected).max())
