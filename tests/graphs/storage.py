"""How a graph is stored: without its weights, compressed."""

from __future__ import annotations

import lzma

from onnx import TensorProto

KEPT = 64
"""A float constant of more elements is left out: no arithmetic of a graph needs one."""

REAL = (TensorProto.FLOAT, TensorProto.FLOAT16, TensorProto.DOUBLE)

SLOTS = {
    "BatchNormalization": range(1, 5),
    "Conv": range(1, 3),
    "ConvTranspose": range(1, 3),
    "Gemm": range(1, 3),
    "InstanceNormalization": range(1, 3),
    "LSTM": range(1, 4),
    "LayerNormalization": range(1, 3),
    "MatMul": range(2),
    "PRelu": range(1, 2),
}
"""The inputs of an operator that hold weights, however small."""


def strip(model, parameters):
    """The model with nothing but its graph: no notes, no inferred types, and weights without their values."""
    for holder in (model, model.graph, *model.graph.input, *model.graph.output):
        holder.doc_string = ""
        del holder.metadata_props[:]
    del model.graph.value_info[:]
    del model.graph.quantization_annotation[:]
    weights = set(parameters)
    tensors = list(model.graph.initializer)
    for node in model.graph.node:
        node.doc_string = ""
        del node.metadata_props[:]
        weights.update(node.input[i] for i in SLOTS.get(node.op_type, ()) if i < len(node.input))
        if node.op_type == "Constant" and node.attribute[0].name == "value":
            tensor = node.attribute[0].t
            tensor.name = node.output[0]
            tensors.append(tensor)
    for tensor in tensors:
        count = 1
        for size in tensor.dims:
            count *= size
        tensor.doc_string = ""
        if tensor.data_type in REAL and (count > KEPT or tensor.name in weights):
            for values in ("raw_data", "float_data", "int32_data", "double_data"):
                tensor.ClearField(values)
    return model


def store(model, parameters, example, folder, name):
    """Write ``<name>.onnx.xz``: the stripped model, and the shape of an example input among its metadata."""
    stripped = strip(model, parameters)
    entry = stripped.metadata_props.add()
    entry.key, entry.value = "example", " ".join(map(str, example))
    packed = lzma.compress(stripped.SerializeToString(deterministic=True), preset=9 | lzma.PRESET_EXTREME)
    (folder / f"{name}.onnx.xz").write_bytes(packed)
    opset = max(o.version for o in stripped.opset_import if o.domain == "")
    print(f"{name}: opset {opset}, {len(stripped.graph.node)} nodes, {len(packed)} bytes")
