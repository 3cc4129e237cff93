"""Opening an ONNX file, and levelling what is common to the whole file: functions and old opsets."""

from __future__ import annotations

import math
import mmap
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

import onnx
import onnx.inliner
import onnx.shape_inference
import onnx.version_converter
from onnx import TensorProto, external_data_helper, helper

from onnxviz.errors import ModelError, UsageError
from onnxviz.model.inline import all_nodes
from onnxviz.model.soundness import check_sound

__all__ = ["Opened", "declare", "first_line", "open_model", "opset_of"]

OLDEST_OPSET = 8
"""The first opset whose MaxPool gives its indices; older files are converted up when opened."""

_SMALL = 1024
"""Constants of at most this many elements can hold shapes, so shape inference gets their values."""


@dataclass(frozen=True)
class Opened:
    """A file's model, without functions and of opset 8 at least; its weights by name, none of them read or copied.

    ``stated_opset``: the version of the default operator set that the file states.
    """

    proto: onnx.ModelProto
    weights: dict[str, TensorProto]
    stated_opset: int


def open_model(path: Path) -> Opened:
    """Open a file.

    Raises:
        UsageError: the path does not exist or is a folder.
        ModelError: the file is not an ONNX model, or is one that cannot be opened.
    """
    if not path.exists():
        raise UsageError(f"{path}: there is no such file. Give the path of an ONNX model.")
    if path.is_dir():
        raise UsageError(
            f"{path} is a folder. Give the path of an ONNX model, such as {path / 'model.onnx'}."
        )
    try:
        with path.open("rb") as file:
            proto = _parse(file)
    except OSError as error:
        raise ModelError(f"{path} cannot be read: {error.strerror or error}.") from error
    except Exception as error:  # protobuf's DecodeError differs between its implementations
        raise ModelError(
            f"{path} is not an ONNX model ({_looks_like(path)}). Export the network to ONNX first."
        ) from error
    if not proto.graph.node:
        raise ModelError(f"{path} is not an ONNX model, or one without a single node ({_looks_like(path)}).")
    if proto.graph.sparse_initializer:
        names = ", ".join(t.values.name for t in proto.graph.sparse_initializer)
        raise ModelError(f"{path}: sparse initializers ({names}) are not supported; store them dense.")
    check_sound(proto, path)
    _spell_domains_alike(proto)
    weights = {t.name: t for t in proto.graph.initializer}
    stated = opset_of(proto)
    if proto.functions or 0 < stated < OLDEST_OPSET:
        proto = _levelled(path, proto, weights)
        weights |= {t.name: t for t in proto.graph.initializer}
    return Opened(proto, weights, stated)


def _parse(file: BinaryIO) -> onnx.ModelProto:
    proto = onnx.ModelProto()
    if os.fstat(file.fileno()).st_size:
        # Mapped, so that the file's bytes are not in memory beside the message.
        with mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data, memoryview(data) as view:
            proto.ParseFromString(view)
    return proto


def _levelled(path: Path, proto: onnx.ModelProto, weights: Mapping[str, TensorProto]) -> onnx.ModelProto:
    """The model without functions, of opset 8 at least; large weights become inputs, so that they are not copied."""
    light = onnx.ModelProto(
        ir_version=proto.ir_version,
        opset_import=proto.opset_import,
        producer_name=proto.producer_name,
        producer_version=proto.producer_version,
        metadata_props=proto.metadata_props,
        functions=proto.functions,
    )
    graph = proto.graph
    light.graph.MergeFrom(
        onnx.GraphProto(
            name=graph.name,
            node=graph.node,
            input=graph.input,
            output=graph.output,
            value_info=graph.value_info,
        )
    )
    declare(light.graph, weights)
    if light.functions:
        light = _without_functions(path, light)
    if 0 < (old := opset_of(light)) < OLDEST_OPSET:
        try:
            light = onnx.version_converter.convert_version(_with_plain_broadcasts(light), OLDEST_OPSET)
        except Exception as error:
            raise ModelError(
                f"{path}: opset {old} is older than {OLDEST_OPSET} and could not be converted: "
                f"{first_line(error)}. Export the model with a newer opset."
            ) from error
    return light


def _without_functions(path: Path, proto: onnx.ModelProto) -> onnx.ModelProto:
    try:
        plain = onnx.inliner.inline_local_functions(proto)
        if plain.functions:
            # Those of another opset than the model's stay, unless they are converted; that takes all types.
            proto.graph.value_info.extend(
                helper.make_tensor_value_info(t.name, t.data_type, list(t.dims))
                for t in proto.graph.initializer
            )
            typed = onnx.shape_inference.infer_shapes(proto)
            plain = onnx.inliner.inline_local_functions(typed, convert_version=True)
    except Exception as error:  # the C++ inliner's own error types
        raise ModelError(
            f"{path}: its functions cannot be written out: {first_line(error)}. Export it without functions."
        ) from error
    return plain


def _spell_domains_alike(proto: onnx.ModelProto) -> None:
    """The default domain may be spelled out, which onnx's own tools do not take for the same."""
    for imports in (proto.opset_import, *(function.opset_import for function in proto.functions)):
        versions: dict[str, int] = {}
        for entry in imports:
            domain = "" if entry.domain == "ai.onnx" else entry.domain
            versions[domain] = max(entry.version, versions.get(domain, 0))
        del imports[:]
        imports.extend(helper.make_opsetid(domain, version) for domain, version in versions.items())
    for nodes in (proto.graph.node, *(function.node for function in proto.functions)):
        for node in all_nodes(nodes):
            if node.domain == "ai.onnx":
                node.ClearField("domain")


def _with_plain_broadcasts(proto: onnx.ModelProto) -> onnx.ModelProto:
    """Before opset 7 a second operand could be lined up with any ``axis`` of the first.

    Here it gets the ones that NumPy's broadcasting wants; onnx 1.23's converter puts them in the wrong places.
    """
    inferred = onnx.shape_inference.infer_shapes(proto)
    ranks = {
        v.name: len(v.type.tensor_type.shape.dim)
        for v in (*inferred.graph.input, *inferred.graph.value_info, *inferred.graph.output)
    }
    ranks |= {t.name: len(t.dims) for t in proto.graph.initializer}
    levelled = onnx.ModelProto()
    levelled.CopyFrom(proto)
    del levelled.graph.node[:]
    for number, node in enumerate(proto.graph.node):
        attrs = {a.name: a for a in node.attribute}
        kept = onnx.NodeProto()
        kept.CopyFrom(node)
        if "broadcast" in attrs and "axis" in attrs:
            first, second = (ranks[name] for name in node.input[:2])
            axis = attrs["axis"].i % first
            if missing := first - axis - second:
                name = f"{node.input[1]}:aligned{number}"
                axes = list(range(second, second + missing))
                levelled.graph.node.append(helper.make_node("Unsqueeze", [node.input[1]], [name], axes=axes))
                kept.input[1] = name
            kept.attribute.remove(attrs["axis"])
        levelled.graph.node.append(kept)
    return levelled


def _looks_like(path: Path) -> str:
    with path.open("rb") as file:
        head = file.read(512)
    if not head:
        return "the file is empty"
    if head.startswith(b"version https://git-lfs"):
        return "it is a Git LFS pointer: run 'git lfs pull'"
    if head.startswith(b"PK\x03\x04"):
        return "it is a zip archive, perhaps a PyTorch checkpoint"
    if head.startswith(b"\x89HDF"):
        return "it is an HDF5 file, perhaps a Keras model"
    try:
        head[:400].decode("utf-8")
    except UnicodeDecodeError:
        return "its bytes are not a complete protobuf message"
    return "it holds text"


def declare(graph: onnx.GraphProto, weights: Mapping[str, TensorProto]) -> None:
    """Give a graph its weights without their values: as inputs, but for small ones, which can hold shapes."""
    inputs = {v.name for v in graph.input}
    for name, tensor in weights.items():
        if math.prod(tensor.dims) <= _SMALL and not external_data_helper.uses_external_data(tensor):
            graph.initializer.append(tensor)
        elif name not in inputs:
            graph.input.append(helper.make_tensor_value_info(name, tensor.data_type, list(tensor.dims)))


def opset_of(proto: onnx.ModelProto) -> int:
    """Version of the default operator set, 0 if there is none."""
    return max((o.version for o in proto.opset_import if not o.domain), default=0)


def first_line(error: BaseException) -> str:
    """The first line of an error's text, without its full stop."""
    text = str(error).strip() or type(error).__name__
    return text.splitlines()[0].rstrip(".")
