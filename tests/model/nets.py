"""Small ONNX models, written node by node, and onnxruntime's own answer to what they compute."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

Array = NDArray[Any]


def node(
    op: str, inputs: str, outputs: str, name: str = "", domain: str = "", **attrs: Any
) -> onnx.NodeProto:
    """A node; names of tensors are given with spaces between them, "-" for one that is left out."""
    sources, targets = ([name.replace("-", "") for name in text.split()] for text in (inputs, outputs))
    return helper.make_node(op, sources, targets, name, domain=domain, **attrs)


def build(
    nodes: Iterable[onnx.NodeProto],
    weights: Mapping[str, Array] | None = None,
    *,
    x: Sequence[int | str | None] = ("N", 3, 12, 12),
    dtype: int = TensorProto.FLOAT,
    more_inputs: Sequence[onnx.ValueInfoProto] = (),
    outputs: Sequence[str] | None = None,
    opset: int = 17,
    metadata: Mapping[str, str] | None = None,
    domains: Sequence[str] = (),
) -> onnx.ModelProto:
    """A model with the image input ``x``; its last node's first output is the output."""
    nodes = list(nodes)
    value = helper.make_tensor_value_info
    graph = helper.make_graph(
        nodes,
        "net",
        [value("x", dtype, x), *more_inputs],
        [onnx.ValueInfoProto(name=name) for name in outputs or [nodes[-1].output[0]]],
        [numpy_helper.from_array(np.asarray(a), name) for name, a in (weights or {}).items()],
    )
    imports = [helper.make_opsetid("", opset), *(helper.make_opsetid(d, 1) for d in domains)]
    model = helper.make_model(graph, opset_imports=imports, ir_version=8 if opset > 8 else 3)
    if opset <= 8:  # up to version 3 of the file format initializers are inputs as well
        graph = model.graph
        graph.input.extend(value(t.name, t.data_type, t.dims) for t in graph.initializer)
    helper.set_model_props(model, dict(metadata or {}))
    return model


def subgraph(
    nodes: Iterable[onnx.NodeProto],
    outputs: str,
    inputs: str = "",
    weights: Mapping[str, Array] | None = None,
    types: Mapping[str, tuple[int, Sequence[int]]] | None = None,
) -> onnx.GraphProto:
    """A branch or body; its inputs and outputs are float tensors of any shape, except for ``types``."""

    def value(name: str) -> onnx.ValueInfoProto:
        return helper.make_tensor_value_info(name, *(types or {}).get(name, (TensorProto.FLOAT, None)))

    stored = [numpy_helper.from_array(np.asarray(a), name) for name, a in (weights or {}).items()]
    return helper.make_graph(
        list(nodes), "inner", [value(n) for n in inputs.split()], [value(n) for n in outputs.split()], stored
    )


def write(path: Path, model: onnx.ModelProto) -> Path:
    path.write_bytes(model.SerializeToString())
    return path


def conv_weights(rng: np.random.Generator, *shape: int) -> NDArray[np.float32]:
    """He-scaled weights (O, I, kh, kw)."""
    return rng.normal(0, np.sqrt(2 / np.prod(shape[1:])), shape).astype(np.float32)


def small(seed: int = 0, **options: Any) -> onnx.ModelProto:
    """conv1 relu1 pool1 conv2 relu2 gap flat fc1 relu3 fc2: 3×12×12 to 6 classes, every node named."""
    rng = np.random.default_rng(seed)
    return build(
        [
            node("Conv", "x w1 b1", "c1", "conv1", pads=[1, 1, 1, 1]),
            node("Relu", "c1", "r1", "relu1"),
            node("MaxPool", "r1", "p1", "pool1", kernel_shape=[3, 3], strides=[2, 2]),
            node("Conv", "p1 w2 b2", "c2", "conv2", pads=[1, 1, 1, 1]),
            node("Relu", "c2", "r2", "relu2"),
            node("GlobalAveragePool", "r2", "g", "gap"),
            node("Flatten", "g", "f", "flat"),
            node("Gemm", "f w3 b3", "d1", "dense1", transB=1),
            node("Relu", "d1", "r3", "relu3"),
            node("Gemm", "r3 w4 b4", "d2", "dense2", transB=1),
        ],
        {
            "w1": conv_weights(rng, 5, 3, 3, 3),
            "b1": rng.normal(0, 0.1, 5).astype(np.float32),
            "w2": conv_weights(rng, 7, 5, 3, 3),
            "b2": rng.normal(0, 0.1, 7).astype(np.float32),
            "w3": conv_weights(rng, 8, 7),
            "b3": rng.normal(0, 0.1, 8).astype(np.float32),
            "w4": conv_weights(rng, 6, 8),
            "b4": rng.normal(0, 0.1, 6).astype(np.float32),
        },
        **options,
    )


def forward(model: onnx.ModelProto | Path, x: Array, tensors: Sequence[str]) -> dict[str, Array]:
    """Values of the named tensors by plain onnxruntime, each image by itself in its batch.

    So no cutting, probing or batching of ours has a part in it.
    """
    proto = (
        onnx.load(model) if isinstance(model, Path) else onnx.ModelProto.FromString(model.SerializeToString())
    )
    _keep_only(proto.graph, set(tensors))
    del proto.graph.output[:]
    proto.graph.output.extend(onnx.ValueInfoProto(name=name) for name in tensors)
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4
    session = onnxruntime.InferenceSession(
        proto.SerializeToString(), options, providers=["CPUExecutionProvider"]
    )
    feed = session.get_inputs()[0].name
    rows = [session.run(list(tensors), {feed: x[i : i + 1]}) for i in range(len(x))]
    return {name: np.concatenate([row[i] for row in rows]) for i, name in enumerate(tensors)}


def run(model: onnx.ModelProto | bytes, feeds: Mapping[str, Array]) -> dict[str, Array]:
    """All outputs of a model by plain onnxruntime, which is given those of the feeds that it asks for.

    Nothing is optimised: onnxruntime 1.31 crashes when it optimises Ifs and Loops deep inside one another.
    """
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    data = model if isinstance(model, bytes) else model.SerializeToString()
    session = onnxruntime.InferenceSession(data, options, providers=["CPUExecutionProvider"])
    values = session.run(None, {i.name: feeds[i.name] for i in session.get_inputs()})
    return dict(zip((o.name for o in session.get_outputs()), values, strict=True))


def _keep_only(graph: onnx.GraphProto, needed: set[str]) -> None:
    """Drop the nodes that nothing needed depends on: the fully connected layers of the large networks."""
    kept = []
    for proto in reversed(graph.node):
        if needed.intersection(proto.output):
            needed.update(proto.input)
            kept.append(proto)
    kept = [onnx.NodeProto.FromString(proto.SerializeToString()) for proto in reversed(kept)]
    del graph.node[:]
    graph.node.extend(kept)
    for group in (graph.initializer, graph.input):
        used = [entry for entry in group if entry.name in needed]
        del group[:]
        group.extend(used)
