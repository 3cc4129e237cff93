"""The graph of an ONNX file: the only module that reads or writes protobuf.

`ModelFile` opens a file and answers for its structure (`Graph`), its constants wherever they hide, its tensor
shapes, and cut-down copies of itself that onnxruntime can run. All other modules see plain frozen dataclasses.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
import onnx
import onnx.inliner
import onnx.shape_inference
import onnx.version_converter
from onnx import TensorProto, external_data_helper, helper, numpy_helper

from onnxviz.errors import ModelError, UsageError
from onnxviz.runtime import open_session

__all__ = [
    "Attribute",
    "Constants",
    "Graph",
    "ModelFile",
    "Node",
    "Probe",
    "Shape",
    "TensorInfo",
    "schema_defaults",
]

Attribute: TypeAlias = int | float | str | tuple[int, ...] | tuple[float, ...] | tuple[str, ...]
Shape: TypeAlias = tuple[int, ...]

OLDEST_OPSET = 8
"""The first opset whose MaxPool gives its indices; older files are converted up when opened."""

_GRAPHS = (onnx.AttributeProto.GRAPH, onnx.AttributeProto.GRAPHS)

_SMALL = 1024
"""Constants of at most this many elements can hold shapes, so shape inference gets their values."""


@dataclass(frozen=True)
class Node:
    """One operator. ``inputs`` and ``outputs`` are tensor names; "" stands for an optional one left out.

    ``captures`` are outer tensors that subgraphs of If, Loop and Scan read.
    """

    name: str
    op: str
    domain: str
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    attrs: Mapping[str, Attribute] = field(default_factory=dict)
    captures: tuple[str, ...] = ()

    @property
    def output(self) -> str:
        """The first output."""
        return self.outputs[0]

    @property
    def kind(self) -> str:
        """The operator with its domain, if that is not the default one."""
        return f"{self.domain}.{self.op}" if self.domain else self.op


@dataclass(frozen=True)
class TensorInfo:
    """A graph input: its dimensions are sizes, symbol names, or None where the file says nothing."""

    name: str
    dtype: str
    shape: tuple[int | str | None, ...] | None

    def __str__(self) -> str:
        dims = "of unknown shape" if self.shape is None else "×".join(str(d or "?") for d in self.shape)
        return f"{self.name}: {self.dtype} {dims}"


@dataclass(frozen=True)
class Graph:
    """Nodes in topological order, the inputs that must be fed, and the outputs."""

    nodes: tuple[Node, ...]
    inputs: tuple[TensorInfo, ...]
    outputs: tuple[str, ...]

    @cached_property
    def producer(self) -> Mapping[str, Node]:
        """The node that makes each tensor."""
        return {name: node for node in self.nodes for name in node.outputs if name}

    def ancestors(self, tensors: Iterable[str]) -> set[str]:
        """All tensors that ``tensors`` depend on, themselves included."""
        seen: set[str] = set()
        stack = list(tensors)
        while stack:
            name = stack.pop()
            if not name or name in seen:
                continue
            seen.add(name)
            if node := self.producer.get(name):
                stack.extend((*node.inputs, *node.captures))
        return seen

    def descendants(self, tensor: str) -> set[str]:
        """All tensors that depend on ``tensor``, itself included."""
        seen = {tensor}
        for node in self.nodes:
            if seen.intersection((*node.inputs, *node.captures)):
                seen.update(name for name in node.outputs if name)
        return seen


@dataclass(frozen=True)
class Probe:
    """A small computation on one tensor, appended to a cut graph.

    ``nodes`` is a chain of (op, extra constant inputs, attributes); the chain's result gets the name
    ``name`` and becomes an output.
    """

    name: str
    source: str
    nodes: tuple[tuple[str, tuple[np.ndarray, ...], Mapping[str, Any]], ...]


class Constants(Mapping[str, np.ndarray]):
    """Every tensor of a model that does not depend on its inputs, by name, decoded when first asked for.

    Initializers (also those that are graph inputs), Constant and ConstantOfShape nodes, and whatever nodes
    compute from these alone; the last are evaluated by onnxruntime.
    """

    def __init__(self, model: ModelFile) -> None:
        self._model = model
        self._cache: dict[str, np.ndarray] = {}
        names = dict.fromkeys(model.initializers)
        for proto in model.proto.graph.node:
            fed = [name for name in (*proto.input, *_captures(proto)) if name]
            if not proto.op_type.startswith(("Random", "Bernoulli", "Multinomial")) and all(
                name in names for name in fed
            ):
                names.update(dict.fromkeys(name for name in proto.output if name))
        self._names = names

    def __contains__(self, name: object) -> bool:
        return name in self._names

    def __iter__(self) -> Iterator[str]:
        return iter(self._names)

    def __len__(self) -> int:
        return len(self._names)

    def __getitem__(self, name: str) -> np.ndarray:
        if name not in self._cache:
            self.fetch([name])
        return self._cache[name]

    def fetch(self, names: Iterable[str]) -> None:
        """Decode several at once: those that need computing share one onnxruntime session."""
        computed = []
        for name in names:
            if name in self._cache:
                continue
            if name not in self._names:
                raise KeyError(name)
            array = self._direct(name)
            if array is None:
                computed.append(name)
            else:
                self._keep(name, array)
        if computed:
            for name, array in zip(computed, self._model.evaluate(computed), strict=True):
                self._keep(name, array)

    def _keep(self, name: str, array: np.ndarray) -> None:
        array = array.view()
        array.flags.writeable = False
        self._cache[name] = array

    def _direct(self, name: str) -> np.ndarray | None:
        if (tensor := self._model.initializers.get(name)) is not None:
            return self._model.decode(tensor)
        proto = self._model.maker[name]
        attrs = {a.name: a for a in proto.attribute}
        if proto.op_type == "Constant" and "value" in attrs:
            return self._model.decode(attrs["value"].t)
        if proto.op_type == "ConstantOfShape":
            value = numpy_helper.to_array(attrs["value"].t) if "value" in attrs else np.zeros(1, np.float32)
            return np.full(tuple(int(d) for d in self[proto.input[0]]), value.reshape(-1)[0])
        return None


class ModelFile:
    """An ONNX file, opened.

    Raises:
        UsageError: the path does not exist or is a folder.
        ModelError: the file is not an ONNX model, or is one that cannot be opened.
    """

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        self.folder = self.path.resolve().parent
        self.proto = _open(self.path)
        self.initializers: dict[str, TensorProto] = {t.name: t for t in self.proto.graph.initializer}
        if self.proto.graph.sparse_initializer:
            names = ", ".join(t.values.name for t in self.proto.graph.sparse_initializer)
            raise ModelError(
                f"{self.path}: sparse initializers ({names}) are not supported; store them dense."
            )
        self.maker = {name: node for node in self.proto.graph.node for name in node.output if name}
        self.constants = Constants(self)
        self.graph = self._read_graph()

    @cached_property
    def sha256(self) -> str:
        """Of the file's bytes (external data not included), in hexadecimal."""
        with self.path.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()

    @property
    def opset(self) -> int:
        """Version of the default operator set, after conversion."""
        return _opset(self.proto)

    @property
    def producer_name(self) -> str:
        """Producer and version, as the file says, or ""."""
        return f"{self.proto.producer_name} {self.proto.producer_version}".strip()

    @property
    def metadata(self) -> dict[str, str]:
        """The file's metadata properties."""
        return {p.key: p.value for p in self.proto.metadata_props}

    @property
    def parameters(self) -> int:
        """Number of elements in stored floating-point tensors: initializers and Constant nodes."""
        real = (TensorProto.FLOAT, TensorProto.FLOAT16, TensorProto.DOUBLE, TensorProto.BFLOAT16)
        stored = [a.t for node in self.proto.graph.node if node.op_type == "Constant" for a in node.attribute]
        return sum(
            int(np.prod(t.dims)) for t in (*self.initializers.values(), *stored) if t.data_type in real
        )

    def decode(self, tensor: TensorProto) -> np.ndarray:
        """The array of a stored tensor, read from its external file if it has one."""
        if external_data_helper.uses_external_data(tensor):
            loaded = TensorProto()
            loaded.CopyFrom(tensor)
            try:
                external_data_helper.load_external_data_for_tensor(loaded, str(self.folder))
            except Exception as error:  # onnx raises whatever its checker and the file system do
                where = next((e.value for e in tensor.external_data if e.key == "location"), "?")
                raise ModelError(
                    f"{self.path}: weights of {tensor.name} should be in {where!r} beside it: {_first_line(error)}"
                ) from error
            tensor = loaded
        return np.asarray(numpy_helper.to_array(tensor))

    def _read_graph(self) -> Graph:
        graph = self.proto.graph
        taken: set[str] = set()
        nodes = []
        for proto in graph.node:
            if not any(proto.output):
                continue
            name = proto.name
            if not name or name in taken:
                name = next(output for output in proto.output if output)
            taken.add(name)
            nodes.append(
                Node(
                    name=name,
                    op=proto.op_type,
                    domain="" if proto.domain == "ai.onnx" else proto.domain,
                    inputs=tuple(proto.input),
                    outputs=tuple(proto.output),
                    attrs=_attributes(proto),
                    captures=_captures(proto),
                )
            )
        inputs = tuple(_tensor_info(v) for v in graph.input if v.name not in self.initializers)
        return Graph(tuple(nodes), inputs, tuple(v.name for v in graph.output))

    def shapes(self, feeds: Mapping[str, Shape]) -> dict[str, tuple[int | None, ...]]:
        """Shapes of all tensors that onnx's shape inference can tell, for inputs of the given shapes."""
        model = self._skeleton()
        for info in self.proto.graph.input:
            if info.name in feeds:
                model.graph.input.append(
                    helper.make_tensor_value_info(
                        info.name, info.type.tensor_type.elem_type, feeds[info.name]
                    )
                )
            elif info.name not in self.initializers:
                model.graph.input.append(info)
        for name, tensor in self.initializers.items():
            if int(np.prod(tensor.dims)) <= _SMALL and not external_data_helper.uses_external_data(tensor):
                model.graph.initializer.append(tensor)
            else:
                model.graph.input.append(
                    helper.make_tensor_value_info(name, tensor.data_type, list(tensor.dims))
                )
        model.graph.node.extend(self.proto.graph.node)
        for output in self.proto.graph.output:
            value = model.graph.output.add()
            value.name = output.name
            value.type.tensor_type.elem_type = output.type.tensor_type.elem_type
        try:
            inferred = onnx.shape_inference.infer_shapes(model, data_prop=True)
        except Exception as error:  # the C++ checker's own error types
            raise ModelError(f"{self.path}: its shapes cannot be worked out: {_first_line(error)}") from error
        found: dict[str, tuple[int | None, ...]] = {}
        for value in (*inferred.graph.input, *inferred.graph.value_info, *inferred.graph.output):
            if value.type.tensor_type.HasField("shape"):
                found[value.name] = tuple(
                    d.dim_value if d.HasField("dim_value") else None for d in value.type.tensor_type.shape.dim
                )
        for name, tensor in self.initializers.items():
            found[name] = tuple(tensor.dims)
        return found

    def cut(
        self,
        tensors: Sequence[str],
        *,
        probes: Sequence[Probe] = (),
        pool_indices: Sequence[str] = (),
        batch: int | str | None = None,
        image: str | None = None,
    ) -> bytes:
        """A model that computes just the asked-for tensors, serialised for onnxruntime.

        Args:
            tensors: names of tensors to output as they are.
            probes: small computations to append, each an output of its own name.
            pool_indices: output tensors of MaxPool nodes whose indices to output too, as ``<tensor>:indices``.
            batch: new first dimension of the input ``image``; None keeps what the file says.
            image: the input that ``batch`` is for.
        """
        needed = self.graph.ancestors([*tensors, *(p.source for p in probes), *pool_indices])
        model = self._skeleton()
        graph = model.graph
        for info in self.proto.graph.input:
            if info.name in needed and info.name not in self.initializers:
                value = graph.input.add()
                value.CopyFrom(info)
                if info.name == image and batch is not None:
                    dim = value.type.tensor_type.shape.dim[0]
                    if isinstance(batch, int):
                        dim.dim_value = batch
                    else:
                        dim.dim_param = batch
        graph.initializer.extend(t for name, t in self.initializers.items() if name in needed)
        for proto in self.proto.graph.node:
            if needed.isdisjoint(proto.output):
                continue
            kept = graph.node.add()
            kept.CopyFrom(proto)
            if proto.op_type == "MaxPool" and proto.output[0] in pool_indices:
                del kept.output[1:]
                kept.output.append(f"{proto.output[0]}:indices")
        for probe in probes:
            value_name = probe.source
            for step, (op, constants, attrs) in enumerate(probe.nodes):
                out = probe.name if step == len(probe.nodes) - 1 else f"{probe.name}:{step}"
                extra = []
                for index, constant in enumerate(constants):
                    extra.append(f"{out}:const{index}")
                    graph.initializer.append(numpy_helper.from_array(constant, extra[-1]))
                graph.node.append(helper.make_node(op, [value_name, *extra], [out], **attrs))
                value_name = out
        wanted = [*tensors, *(p.name for p in probes), *(f"{t}:indices" for t in pool_indices)]
        graph.output.extend(onnx.ValueInfoProto(name=name) for name in dict.fromkeys(wanted))
        return bytes(model.SerializeToString())

    def evaluate(self, names: Sequence[str]) -> list[np.ndarray]:
        """Values of constant tensors, computed by onnxruntime on the CPU."""
        values = open_session(self.cut(names), self.path).run(list(names), {})
        return [np.asarray(value) for value in values]

    def _skeleton(self) -> onnx.ModelProto:
        model = onnx.ModelProto(ir_version=self.proto.ir_version, producer_name="onnxviz")
        model.opset_import.extend(self.proto.opset_import)
        model.graph.name = self.proto.graph.name or "cut"
        return model


def _open(path: Path) -> onnx.ModelProto:
    if not path.exists():
        raise UsageError(f"{path}: there is no such file. Give the path of an ONNX model.")
    if path.is_dir():
        raise UsageError(
            f"{path} is a folder. Give the path of an ONNX model, such as {path / 'model.onnx'}."
        )
    try:
        proto = onnx.load_model(str(path), format="protobuf", load_external_data=False)
    except OSError as error:
        raise ModelError(f"{path} cannot be read: {error.strerror or error}.") from error
    except Exception as error:  # protobuf's DecodeError differs between its implementations
        raise ModelError(
            f"{path} is not an ONNX model ({_looks_like(path)}). Export the network to ONNX first."
        ) from error
    if not proto.graph.node:
        raise ModelError(f"{path} is not an ONNX model, or one without a single node ({_looks_like(path)}).")
    if proto.functions:
        proto = onnx.inliner.inline_local_functions(proto)
    if 0 < _opset(proto) < OLDEST_OPSET:
        old = _opset(proto)
        try:
            proto = onnx.version_converter.convert_version(_with_plain_broadcasts(proto), OLDEST_OPSET)
        except Exception as error:
            raise ModelError(
                f"{path}: opset {old} is older than {OLDEST_OPSET} and could not be converted: "
                f"{_first_line(error)}. Export the model with a newer opset."
            ) from error
    return proto


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


def _opset(proto: onnx.ModelProto) -> int:
    return max((o.version for o in proto.opset_import if o.domain in ("", "ai.onnx")), default=0)


def _attributes(proto: onnx.NodeProto) -> dict[str, Attribute]:
    """Attributes as plain values; tensors and subgraphs are not among them (see `Constants`)."""
    attrs: dict[str, Attribute] = {}
    for attr in proto.attribute:
        if attr.type in (onnx.AttributeProto.INT, onnx.AttributeProto.FLOAT):
            attrs[attr.name] = helper.get_attribute_value(attr)
        elif attr.type == onnx.AttributeProto.STRING:
            attrs[attr.name] = attr.s.decode("utf-8", "replace")
        elif attr.type in (onnx.AttributeProto.INTS, onnx.AttributeProto.FLOATS):
            attrs[attr.name] = tuple(helper.get_attribute_value(attr))
        elif attr.type == onnx.AttributeProto.STRINGS:
            attrs[attr.name] = tuple(s.decode("utf-8", "replace") for s in attr.strings)
    return attrs


def schema_defaults(op: str, domain: str, opset: int) -> dict[str, Attribute]:
    """Default attribute values of an operator, from its own schema; empty for an unknown operator."""
    try:
        schema = onnx.defs.get_schema(op, opset, domain)
    except onnx.defs.SchemaError:
        return {}
    stated = [a.default_value for a in schema.attributes.values() if a.default_value.name]
    return _attributes(onnx.NodeProto(attribute=stated))


def _captures(proto: onnx.NodeProto) -> tuple[str, ...]:
    """Tensors from outside that the subgraphs of a node read."""
    found: dict[str, None] = {}
    for attr in proto.attribute:
        for graph in (attr.g, *attr.graphs) if attr.type in _GRAPHS else ():
            inner = {v.name for v in graph.input} | {t.name for t in graph.initializer}
            for node in graph.node:
                found.update(
                    dict.fromkeys(n for n in (*node.input, *_captures(node)) if n and n not in inner)
                )
                inner.update(node.output)
            found.update(dict.fromkeys(v.name for v in graph.output if v.name not in inner))
    return tuple(found)


def _tensor_info(value: onnx.ValueInfoProto) -> TensorInfo:
    tensor = value.type.tensor_type
    if not value.type.HasField("tensor_type"):
        return TensorInfo(value.name, str(value.type.WhichOneof("value")), None)
    shape = None
    if tensor.HasField("shape"):
        shape = tuple(
            d.dim_value if d.HasField("dim_value") and d.dim_value > 0 else (d.dim_param or None)
            for d in tensor.shape.dim
        )
    dtype = TensorProto.DataType.Name(tensor.elem_type).lower()
    return TensorInfo(value.name, {"float": "float32", "double": "float64"}.get(dtype, dtype), shape)


def _first_line(error: BaseException) -> str:
    text = str(error).strip() or type(error).__name__
    return text.splitlines()[0].rstrip(".")
