"""The nine light models of the onnx wheel, with their constant weights replaced by seeded random ones."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
from onnx import numpy_helper

FOLDER = Path(onnx.__file__).parent / "backend" / "test" / "data" / "light"
NAMES = (
    "bvlc_alexnet",
    "densenet121",
    "inception_v1",
    "inception_v2",
    "resnet50",
    "shufflenet",
    "squeezenet",
    "vgg19",
    "zfnet512",
)
LARGEST = 1 << 22
"""Weights above this size (the fully connected ones) stay constant, to keep the files small."""


def write_light(name: str, folder: Path, seed: int = 0) -> Path:
    """Write a light model with He-scaled weights (BatchNormalization kept near the identity)."""
    rng = np.random.default_rng(seed)
    model = onnx.load(str(FOLDER / f"light_{name}.onnx"))
    graph = model.graph
    shapes = {
        t.name: tuple(int(d) for d in numpy_helper.to_array(t)) for t in graph.initializer if t.data_type == 7
    }
    positive = {node.input[i] for node in graph.node if node.op_type == "BatchNormalization" for i in (1, 4)}
    kept = []
    for node in graph.node:
        shape = shapes.get(node.input[0], ()) if node.op_type == "ConstantOfShape" else ()
        if not shape or np.prod(shape) > LARGEST:
            kept.append(node)
            continue
        if node.output[0] in positive:
            value = rng.uniform(0.5, 1.5, shape)
        elif len(shape) > 1:
            value = rng.normal(0, np.sqrt(2 / np.prod(shape[1:])), shape)
        else:
            value = rng.normal(0, 0.1, shape)
        graph.initializer.append(numpy_helper.from_array(value.astype(np.float32), node.output[0]))
    del graph.node[:]
    graph.node.extend(kept)
    path = folder / f"light_{name}.onnx"
    onnx.save(model, str(path))
    return path
