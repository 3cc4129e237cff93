"""What a file must hold to be worked with at all: text that is text, tensors and nodes whose parts fit together.

onnxruntime refuses the same files, but later, and only where a part lies on the way to what is asked of it.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import onnx
from onnx import AttributeProto, TensorProto, external_data_helper, helper

from onnxviz.errors import ModelError, OnnxvizError

if TYPE_CHECKING:
    from onnxviz.model.graph import Node

__all__ = ["BITS", "LARGEST_TENSOR", "check_sizes", "check_sound", "understood"]

LARGEST_TENSOR = 1 << 31
"""Bytes that one tensor may take for one batch of the file's own, or a single image."""

_LARGEST_MESSAGE = (1 << 31) - 1
"""Bytes that protobuf can hold."""

_COUNTED = 16 << 20
"""Larger tensors' bytes are counted when they are read (`ModelFile.decode`, onnxruntime): it would take a copy."""

BITS = {"INT4": 4, "UINT4": 4, "FLOAT4E2M1": 4, "INT2": 2, "UINT2": 2, "FLOAT6E2M3": 6, "FLOAT6E3M2": 6}
"""Types whose elements share bytes."""

_TYPES = frozenset(TensorProto.DataType.values()) - {TensorProto.UNDEFINED}
_LATEST = 2**31 - 1


def check_sound(proto: onnx.ModelProto, path: Path) -> None:
    """Make sure that a file's messages can be read.

    Raises:
        ModelError: naming the first part of which that is not so.
    """
    try:
        _check_text(proto.producer_name, proto.producer_version, proto.graph.name)
        opsets = _opsets(proto.opset_import)
        _check_graph(proto.graph, opsets)
        for function in proto.functions:
            _check_text(
                function.name, function.domain, *function.input, *function.output, *function.attribute
            )
            _check_nodes(function.node, _opsets(function.opset_import), inside=True)
        _check_text(*(text for entry in proto.metadata_props for text in (entry.key, entry.value)))
    except UnicodeDecodeError as error:  # or protobuf itself says that text is none, where it is asked for
        raise ModelError(f"{path}: a name in it is not UTF-8 ({error}). Export or fetch it again.") from error
    except _UnsoundError as error:
        raise ModelError(f"{path}: {error}. Export or fetch it again.") from error


class _UnsoundError(Exception):
    """What is wrong with a part of a file."""


def _opsets(imports: Iterable[onnx.OperatorSetIdProto]) -> dict[str, int]:
    found: dict[str, int] = {}
    for entry in imports:
        _check_text(entry.domain)
        if not 0 <= entry.version <= _LATEST:
            raise _UnsoundError(
                f"it states version {entry.version} of the operators of {entry.domain or 'ai.onnx'}"
            )
        found["" if entry.domain == "ai.onnx" else entry.domain] = entry.version
    return found


def _check_graph(graph: onnx.GraphProto, opsets: Mapping[str, int], *, inside: bool = False) -> None:
    for tensor in graph.initializer:
        _check_tensor(tensor)
    for value in (*graph.input, *graph.output, *graph.value_info):
        kind = value.type.tensor_type
        _check_text(value.name, *(dim.dim_param for dim in kind.shape.dim))
        if value.type.HasField("tensor_type") and kind.elem_type not in (*_TYPES, TensorProto.UNDEFINED):
            raise _UnsoundError(f"the tensor {value.name!r} is of type {kind.elem_type}, which is none")
    _check_nodes(graph.node, opsets, inside=inside)


def _check_nodes(nodes: Iterable[onnx.NodeProto], opsets: Mapping[str, int], *, inside: bool) -> None:
    """``inside``: of a function, whose attributes its nodes may refer to."""
    for node in nodes:
        _check_text(node.name, node.op_type, node.domain, *node.input, *node.output)
        for attribute in node.attribute:
            _check_text(attribute.name, attribute.ref_attr_name)
            for tensor in (*([attribute.t] if attribute.HasField("t") else []), *attribute.tensors):
                _check_tensor(tensor)
            for graph in (*([attribute.g] if attribute.HasField("g") else []), *attribute.graphs):
                _check_graph(graph, opsets, inside=inside)
            if attribute.ref_attr_name and not inside:
                raise _UnsoundError(
                    f"{attribute.name} of {node.op_type} {node.name!r} refers to an attribute of a function"
                )
        _check_schema(node, opsets)


def _check_schema(node: onnx.NodeProto, opsets: Mapping[str, int]) -> None:
    """A node against its operator's definition, as far as that is known: what it must have, and of which types."""
    domain = "" if node.domain == "ai.onnx" else node.domain
    schema = _schema(node.op_type, domain, opsets.get(domain, 0))
    if schema is None:
        return
    what = f"{node.op_type} {(node.name or next(iter(node.output), ''))!r}"
    given = {attribute.name: attribute for attribute in node.attribute}
    for name, expected in schema.attributes.items():
        one = given.get(name)
        if one is None and expected.required:
            raise _UnsoundError(f"{what} has no {name}")
        if one is not None and not one.ref_attr_name and one.type != int(expected.type.value):
            found = AttributeProto.AttributeType.Name(one.type) if one.type in _KINDS else one.type
            raise _UnsoundError(f"{name} of {what} is of type {found}, not {expected.type.name}")
    if node.op_type == "Split" and "num_outputs" in given and given["num_outputs"].i < len(node.output):
        # onnx 1.23 and onnxruntime 1.31 end the process when they infer its shapes.
        raise _UnsoundError(
            f"{what} has {len(node.output)} outputs, and num_outputs {given['num_outputs'].i}"
        )
    for kind, count, least, most in (
        ("inputs", len(node.input), schema.min_input, schema.max_input),
        ("outputs", len(node.output), schema.min_output, schema.max_output),
    ):
        if not least <= count <= most:
            raise _UnsoundError(
                f"{what} has {count} {kind}, not {least}{f' to {most}' if most > least else ''}"
            )


_KINDS = frozenset(AttributeProto.AttributeType.values())


@cache
def _schema(op: str, domain: str, opset: int) -> Any | None:
    try:
        return onnx.defs.get_schema(op, opset, domain)
    except onnx.defs.SchemaError:
        return None


def _check_tensor(tensor: TensorProto) -> None:
    _check_text(tensor.name)
    what = f"the tensor {tensor.name!r}"
    if tensor.data_type not in _TYPES:
        raise _UnsoundError(f"{what} is of type {tensor.data_type}, which is none")
    if any(size < 0 for size in tensor.dims):
        raise _UnsoundError(f"{what} has the shape {tuple(tensor.dims)}")
    if tensor.HasField("raw_data") and not external_data_helper.uses_external_data(tensor):
        kind = TensorProto.DataType.Name(tensor.data_type)
        if tensor.data_type == TensorProto.STRING:
            raise _UnsoundError(f"{what} holds text as raw bytes")
        itemsize = np.dtype(helper.tensor_dtype_to_np_dtype(tensor.data_type)).itemsize
        length = (math.prod(tensor.dims) * BITS.get(kind, 8 * itemsize) + 7) // 8
        if length > _LARGEST_MESSAGE:
            raise _UnsoundError(f"{what} is damaged: {kind} {list(tensor.dims)} needs {length:,} bytes")
        if length <= _COUNTED and len(tensor.raw_data) != length:
            raise _UnsoundError(
                f"{what} is damaged: {len(tensor.raw_data):,} bytes, and {kind} {list(tensor.dims)} needs {length:,}"
            )


def _check_text(*texts: str) -> None:
    """Protobuf's Python gives bytes where text is not UTF-8."""
    for text in texts:
        if not isinstance(text, str):
            raise _UnsoundError(f"the name {text!r} is not UTF-8")


def check_sizes(shapes: Mapping[str, tuple[int | None, ...]], path: Path, advice: str = "") -> None:
    """Make sure that no tensor is absurdly large: a few bytes of a file can ask for any size.

    Args:
        shapes: of tensors by name; None for what is not known.
        advice: what to do if one is, in a sentence.

    Raises:
        ModelError: naming the tensor.
    """
    for name, shape in shapes.items():
        known = [size for size in shape if size is not None]
        if any(size < 0 for size in known):
            raise ModelError(f"{path}: the tensor {name!r} would have the shape {_dims(shape)}.")
        # NumPy multiplies what is left beside a size of 0, too.
        if None not in shape and 4 * math.prod(size or 1 for size in known) > LARGEST_TENSOR:
            raise ModelError(
                f"{path}: the tensor {name!r} would have the shape {_dims(shape)}, and no more than "
                f"{LARGEST_TENSOR >> 2:,} elements can be worked with at once. {advice}".rstrip()
            )


def _dims(shape: Iterable[int | None]) -> str:
    return "×".join("?" if size is None else str(size) for size in shape)


@contextmanager
def understood(node: Node) -> Iterator[None]:
    """What a node's own statements make the program stumble over becomes a `ModelError` that names the node.

    Sizes and attributes that contradict one another can do so in as many ways as there are operators.
    """
    try:
        yield
    except OnnxvizError:
        raise
    except (
        ArithmeticError,
        AssertionError,
        AttributeError,
        LookupError,
        MemoryError,
        StopIteration,
    ) as error:
        raise _contradiction(node, error) from error
    except (RuntimeError, TypeError, ValueError) as error:
        raise _contradiction(node, error) from error


def _contradiction(node: Node, error: Exception) -> ModelError:
    text = str(error).strip().partition("\n")[0].rstrip(".")
    return ModelError(
        f"{node.kind} {node.name!r} cannot be understood: its attributes and the sizes of its tensors do not fit "
        f"together ({type(error).__name__}{f': {text}' if text else ''}). onnx.checker may say more."
    )
