"""How a good model becomes a bad one that is still a protobuf message: fields dropped, doubled, altered."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from random import Random
from typing import Any

import numpy as np
import onnx
import onnx.numpy_helper
from onnx import TensorProto

from tests.fuzz.mutators import EXTREME, plain

__all__ = ["model"]

_OPS = (
    *(
        "Conv",
        "Relu",
        "MaxPool",
        "Gemm",
        "MatMul",
        "Reshape",
        "Expand",
        "Tile",
        "Range",
        "ConstantOfShape",
        "Resize",
    ),
    *(
        "Pad",
        "Slice",
        "Concat",
        "Split",
        "Transpose",
        "Flatten",
        "Squeeze",
        "Unsqueeze",
        "Gather",
        "LRN",
        "Loop",
        "If",
    ),
    *(
        "Scan",
        "Constant",
        "BatchNormalization",
        "AveragePool",
        "GlobalAveragePool",
        "ConvTranspose",
        "Einsum",
        "TopK",
    ),
    *(
        "QLinearConv",
        "DequantizeLinear",
        "Dropout",
        "Clip",
        "Softmax",
        "ReduceMean",
        "NonZero",
        "Shape",
        "Cast",
        "LSTM",
    ),
    *(
        "NoSuchOperator",
        "",
        "GRU",
        "DFT",
        "Col2Im",
        "SequenceAt",
        "Optional",
        "OneHot",
        "CumSum",
        "RandomNormal",
    ),
)
_DOMAINS = ("", "ai.onnx", "com.microsoft", "ai.onnx.ml", "custom", "\x1b[31m", "x" * 3000)
_TEXTS = (
    "",
    "x",
    "c1",
    "w1",
    "../../etc/passwd",
    "/etc/passwd",
    "no such tensor",
    "\n" * 9,
    "\x1b[2J",
    "n" * 3000,
    "é",
)
_NUMBERS = (0.0, -1.0, 1e38, float("inf"), float("-inf"), float("nan"), 1e-45)


def model(data: bytes, rng: Random) -> bytes:
    """A model changed in one to four places, mostly by its structure."""
    if rng.random() < 0.15:
        return plain(data, rng)
    proto = onnx.ModelProto.FromString(data)
    for _ in range(rng.choice((1, 1, 1, 2, 3, 4))):
        rng.choice(_CHANGES)(proto, rng)
    try:
        changed = proto.SerializeToString()
    except ValueError:  # text that is no UTF-8
        return plain(data, rng)
    return plain(changed, rng, 1) if rng.random() < 0.05 else changed


def _messages(message: Any, depth: int = 0) -> Iterator[Any]:
    """A message and all messages in it."""
    yield message
    if depth < 12:
        for field, value in message.ListFields():
            if field.message_type is not None:
                for one in value if _repeated(field) else (value,):
                    yield from _messages(one, depth + 1)


def _repeated(field: Any) -> bool:
    return bool(field.is_repeated) if hasattr(field, "is_repeated") else field.label == field.LABEL_REPEATED


def _any_field(proto: onnx.ModelProto, rng: Random) -> None:
    """Any field of any message."""
    message = rng.choice(list(_messages(proto)))
    fields = message.ListFields()
    stated = fields and rng.random() < 0.8
    field = rng.choice(fields)[0] if stated else rng.choice(message.DESCRIPTOR.fields)
    if _repeated(field):
        _repeated_field(message, field, rng)
    elif field.message_type is not None:
        if message.HasField(field.name) and rng.random() < 0.5:
            message.ClearField(field.name)
        else:
            getattr(message, field.name).SetInParent()
    elif rng.random() < 0.2:
        message.ClearField(field.name)
    else:
        _set(message, field, rng)


def _repeated_field(message: Any, field: Any, rng: Random) -> None:
    values = getattr(message, field.name)
    change = rng.randrange(4)
    if len(values) and change == 0:
        del values[rng.randrange(len(values))]
    elif len(values) and change == 1:
        values.append(_copy(values[rng.randrange(len(values))]))
    elif len(values) and change == 2:
        del values[:]
    elif field.message_type is not None:
        values.add()
    else:
        value = _scalar(field, rng)
        if len(values):
            values[rng.randrange(len(values))] = value
        else:
            values.append(value)


def _copy(value: Any) -> Any:
    """A message that is put into a part of itself would not end."""
    return type(value).FromString(value.SerializePartialToString()) if hasattr(value, "ListFields") else value


def _set(message: Any, field: Any, rng: Random) -> None:
    setattr(message, field.name, _scalar(field, rng))


def _scalar(field: Any, rng: Random) -> Any:
    if field.cpp_type == field.CPPTYPE_STRING:
        text = rng.choice(_TEXTS)
        return text.encode() if field.type == field.TYPE_BYTES else text
    if field.cpp_type in (field.CPPTYPE_FLOAT, field.CPPTYPE_DOUBLE):
        return rng.choice(_NUMBERS)
    if field.cpp_type == field.CPPTYPE_ENUM:
        return rng.choice([value.number for value in field.enum_type.values])
    limits = {
        field.CPPTYPE_INT32: (-(2**31), 2**31 - 1),
        field.CPPTYPE_UINT32: (0, 2**32 - 1),
        field.CPPTYPE_INT64: (-(2**63), 2**63 - 1),
        field.CPPTYPE_UINT64: (0, 2**64 - 1),
    }
    low, high = limits.get(field.cpp_type, (0, 1))
    return min(max(rng.choice(EXTREME), low), high)


def _graphs(proto: onnx.ModelProto) -> list[Any]:
    return [m for m in _messages(proto) if isinstance(m, onnx.GraphProto) and m.node]


def _node(proto: onnx.ModelProto, rng: Random) -> Any | None:
    graphs = _graphs(proto)
    return rng.choice(rng.choice(graphs).node) if graphs else None


def _drop_node(proto: onnx.ModelProto, rng: Random) -> None:
    if graphs := _graphs(proto):
        graph = rng.choice(graphs)
        del graph.node[rng.randrange(len(graph.node))]


def _double_node(proto: onnx.ModelProto, rng: Random) -> None:
    if graphs := _graphs(proto):
        graph = rng.choice(graphs)
        graph.node.append(_copy(rng.choice(graph.node)))
        twin = graph.node[-1]
        if rng.random() < 0.5:
            twin.output[:] = [f"{name}_twin" for name in twin.output]


def _operator(proto: onnx.ModelProto, rng: Random) -> None:
    if (node := _node(proto, rng)) is not None:
        node.op_type = rng.choice(_OPS)
        if rng.random() < 0.2:
            node.domain = rng.choice(_DOMAINS)


def _edge(proto: onnx.ModelProto, rng: Random) -> None:
    """An input or output of a node gets the name of another tensor, of its own, or of none."""
    node = _node(proto, rng)
    if node is None:
        return
    names = [n for graph in _graphs(proto) for one in graph.node for n in (*one.input, *one.output)]
    name = rng.choice((*names, *_TEXTS))
    ends = node.input if rng.random() < 0.7 else node.output
    change = rng.randrange(4)
    if not len(ends) or change == 0:
        ends.append(name)
    elif change == 1:
        del ends[rng.randrange(len(ends))]
    else:
        ends[rng.randrange(len(ends))] = name


def _attribute(proto: onnx.ModelProto, rng: Random) -> None:
    attributes = [m for m in _messages(proto) if isinstance(m, onnx.AttributeProto)]
    if not attributes:
        return
    one = rng.choice(attributes)
    change = rng.randrange(6)
    if change == 0:
        one.type = rng.choice(list(onnx.AttributeProto.AttributeType.values()))
    elif change == 1:
        one.name = rng.choice(attributes).name
    elif change == 2 and (node := _node(proto, rng)) is not None:
        node.attribute.append(_copy(one))
    elif one.ints:
        number = rng.choice((*EXTREME, 0, 1, 1, 2, 2, 3, 4))
        if change == 3:
            one.ints.append(number)
        elif change == 4:
            one.ints.pop()
        else:
            one.ints[rng.randrange(len(one.ints))] = number
    else:
        one.i, one.f = rng.choice((*EXTREME, 0, 1, 1, 2, 2, 3, 4)), rng.choice((*_NUMBERS, 0.5))


def _tensor(proto: onnx.ModelProto, rng: Random) -> None:
    tensors = [m for m in _messages(proto) if isinstance(m, TensorProto)]
    if not tensors:
        return
    one = rng.choice(tensors)
    change = rng.randrange(7)
    if change == 0 and one.dims:
        one.dims[rng.randrange(len(one.dims))] = rng.choice(EXTREME)
    elif change == 1:
        one.dims.append(rng.choice((1, 1, *EXTREME)))
    elif change == 2:
        one.data_type = rng.choice((*TensorProto.DataType.values(), 99, -1))
    elif change == 3:
        one.raw_data = one.raw_data[: rng.randrange(len(one.raw_data) + 1)]
    elif change == 4:
        one.raw_data = bytes([rng.choice((0, 0x7F, 0xFF))]) * len(one.raw_data)
    elif change == 5:
        one.data_location = TensorProto.EXTERNAL
        for key in ("location", "offset", "length"):
            if rng.random() < 0.8:
                one.external_data.add(key=key, value=str(rng.choice((*_TEXTS, *EXTREME))))
    else:
        one.name = rng.choice(tensors).name
    # Shapes are small tensors of whole numbers: what they say decides about sizes.
    if one.data_type == TensorProto.INT64 and one.raw_data and rng.random() < 0.5:
        values = [int(v) for v in memoryview(one.raw_data[: len(one.raw_data) // 8 * 8]).cast("q")]
        if values:
            values[rng.randrange(len(values))] = rng.choice(EXTREME)
            one.raw_data = b"".join(v.to_bytes(8, "little", signed=True) for v in values)


def _whole_tensor(proto: onnx.ModelProto, rng: Random) -> None:
    """A tensor of other sizes, or other values, that is sound in itself."""
    tensors = [m for m in _messages(proto) if isinstance(m, TensorProto) and m.raw_data]
    if not tensors:
        return
    one = rng.choice(tensors)
    array = onnx.numpy_helper.to_array(one).copy()
    change = rng.randrange(4)
    if change == 0 and array.ndim:
        axis = rng.randrange(array.ndim)
        array = (
            np.repeat(array, rng.choice((0, 1, 2, 3, 5)), axis)
            if rng.random() < 0.5
            else array.take([0], axis)
        )
    elif change == 1:
        array = array.reshape(rng.choice(((-1,), (1, *array.shape), (*array.shape, 1), array.shape[::-1])))
    elif array.size:
        numbers = EXTREME if array.dtype.kind in "iu" else (*_NUMBERS, 0.5, 2.0)
        with np.errstate(all="ignore"):
            array.reshape(-1)[rng.randrange(array.size)] = np.asarray(rng.choice(numbers)).astype(array.dtype)
    one.CopyFrom(onnx.numpy_helper.from_array(array, one.name))


def _value(proto: onnx.ModelProto, rng: Random) -> None:
    """A size or type that the file states."""
    dims = [m for m in _messages(proto) if isinstance(m, onnx.TensorShapeProto.Dimension)]
    types = [m for m in _messages(proto) if isinstance(m, onnx.TypeProto.Tensor)]
    if dims and rng.random() < 0.7:
        dim = rng.choice(dims)
        if rng.random() < 0.2:
            dim.dim_param = rng.choice(_TEXTS)
        else:
            dim.dim_value = rng.choice(EXTREME)
    elif types:
        rng.choice(types).elem_type = rng.choice((*TensorProto.DataType.values(), 99))


def _version(proto: onnx.ModelProto, rng: Random) -> None:
    change = rng.randrange(4)
    if change == 0:
        proto.ir_version = rng.choice((0, 1, 3, 7, 10, 13, 99, 2**63 - 1))
    elif change == 1 and proto.opset_import:
        del proto.opset_import[rng.randrange(len(proto.opset_import))]
    elif change == 2:
        proto.opset_import.add(domain=rng.choice(_DOMAINS), version=rng.choice(EXTREME))
    elif proto.opset_import:
        one = rng.choice(proto.opset_import)
        one.version = rng.choice((-1, 0, 1, 2, 5, 6, 7, 8, 11, 13, 18, 21, 26, 27, 99, 2**63 - 1))


_CHANGES: tuple[Callable[[onnx.ModelProto, Random], None], ...] = (
    *(
        _any_field,
        _any_field,
        _drop_node,
        _double_node,
        _operator,
        _edge,
        _attribute,
        _tensor,
        _value,
        _version,
    ),
)
