"""Small networks, written as lists of nodes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import onnx
from onnx import ModelProto, NodeProto, TensorProto, helper, numpy_helper

from tests.reverse.cases import IR_VERSION, Array, Case, weights
from tests.reverse.cases import N as BATCH

IMAGE = ("N", 3, 13, 11)


def node(op: str, inputs: str, outputs: str, **attrs: object) -> NodeProto:
    """A node; the names of its inputs and outputs are separated by spaces. It is called as its first output is."""
    names = outputs.split()
    return helper.make_node(op, inputs.split(), names, name=f"node_{names[0]}", **attrs)


def network(
    nodes: Sequence[NodeProto],
    constants: Mapping[str, Array] | None = None,
    *,
    image: Sequence[int | str] = IMAGE,
    opset: int = 17,
    outputs: str = "",
    custom: str = "",
) -> ModelProto:
    """A model whose image input is ``x``; its output is the last node's unless stated.

    ``custom`` names a further operator domain that the model imports.
    """
    value = helper.make_tensor_value_info
    graph = helper.make_graph(
        list(nodes),
        "network",
        [value("x", TensorProto.FLOAT, list(image))],
        [value(name, TensorProto.FLOAT, None) for name in outputs.split() or [nodes[-1].output[0]]],
        [numpy_helper.from_array(v, name) for name, v in (constants or {}).items()],
    )
    opsets = [helper.make_opsetid("", opset)] + ([helper.make_opsetid(custom, 1)] if custom else [])
    return helper.make_model(graph, opset_imports=opsets, ir_version=IR_VERSION)


def pictures(model: ModelProto, count: int, *, seed: int = 0, size: tuple[int, int] | None = None) -> Array:
    """Random images (count, …) for a model's ``x``; ``size`` fills what it leaves open, in NCHW."""
    dims = [d.dim_value for d in model.graph.input[0].type.tensor_type.shape.dim][1:]
    if size is not None:
        dims[1:] = size
    return np.random.default_rng(seed).standard_normal((count, *dims)).astype(np.float32)


def sandwich(case: Case) -> ModelProto | None:
    """A case's node between two convolutions: image → stems → node → ``last``; None where that cannot be.

    It can be where each graph input of the case is a map of one size, the first output is a map too, and no
    constant has a batch of its own.
    """
    sizes = {shape[2:] for shape in case.shapes.values()}
    if len(sizes) != 1 or any(len(s) != 4 or s[0] != BATCH for s in case.shapes.values()):
        return None
    if any(value.ndim == 4 and len(value) == BATCH for value in case.constants().values()):
        return None
    (size,) = sizes
    stems = [node("Conv", f"x stem_{name}", name, pads=[1, 1, 1, 1]) for name in case.shapes]
    constants = case.constants()
    for number, (name, shape) in enumerate(case.shapes.items()):
        # Unlike each other: of a/a and the like there would be nothing but rounding to compare.
        constants[f"stem_{name}"] = np.roll(weights(shape[1], 3, 3, 3), number)
    middle = helper.make_node(
        case.op, case.node_inputs(), case.output_names(), name=f"the_{case.op}", **case.attrs
    )
    image = ("N", 3, *size)
    bare = network([*stems, middle], constants, image=(BATCH, 3, *size), opset=case.opset, outputs="y0")
    inferred = onnx.shape_inference.infer_shapes(bare, data_prop=True).graph.output[0].type.tensor_type
    shape = tuple(d.dim_value for d in inferred.shape.dim)
    if len(shape) != 4 or shape[0] != BATCH:
        return None
    constants["w_last"] = weights(4, shape[1], min(2, shape[2]), min(3, shape[3]))
    last = node("Conv", "y0 w_last", "last", pads=[1, 2, 1, 0])
    return network([*stems, middle, last], constants, image=image, opset=case.opset)
