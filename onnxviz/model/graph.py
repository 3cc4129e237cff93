"""The graph of an ONNX file: with the modules that it calls, all that reads or writes protobuf.

`ModelFile` opens a file and answers for its structure (`Graph`), its constants wherever they hide, its tensor
shapes, and cut-down copies of itself that onnxruntime can run. All other modules see plain frozen dataclasses.
"""

from __future__ import annotations

import copy
import hashlib
import io
import math
from collections.abc import Callable, Container, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache, cached_property
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
import onnx
import onnx.inliner
import onnx.version_converter
from onnx import TensorProto, external_data_helper, helper, numpy_helper

from onnxviz.errors import ModelError, UsageError
from onnxviz.model.constants import Constants
from onnxviz.model.external import ExternalFiles
from onnxviz.model.feeds import fit
from onnxviz.model.inference import infer_shapes
from onnxviz.model.inline import (
    CONTROL_FLOW,
    Facts,
    captures,
    in_order,
    inline,
    is_control_flow,
    lift_constants,
    make_names_unique,
)
from onnxviz.model.lrn import better_spelled_out, spell_out_lrn
from onnxviz.model.opening import declare, first_line, open_model, opset_of
from onnxviz.model.sizes import shape_only, value_sized
from onnxviz.model.soundness import BITS, check_sizes
from onnxviz.runtime import error_line, open_session, trial_options

__all__ = [
    "REAL_VALUES",
    "Attribute",
    "Constants",
    "Graph",
    "ModelFile",
    "Node",
    "Probe",
    "Shape",
    "TensorInfo",
    "operator_versions",
    "schema_defaults",
]

Attribute: TypeAlias = int | float | str | tuple[int, ...] | tuple[float, ...] | tuple[str, ...]
Shape: TypeAlias = tuple[int, ...]

REAL_VALUES = ":real"
"""Ends the names of tensors that are added: the real values that a quantised operator's whole numbers stand for."""


@dataclass(frozen=True)
class Node:
    """One operator. ``inputs`` and ``outputs`` are tensor names; "" stands for an optional one left out.

    ``captures`` are outer tensors that subgraphs of If, Loop and Scan read.
    ``pieces`` are the operators that the file writes it in, where it was recognised (`recognise`).
    """

    name: str
    op: str
    domain: str
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    attrs: Mapping[str, Attribute] = field(default_factory=dict)
    captures: tuple[str, ...] = ()
    pieces: tuple[str, ...] = ()

    @property
    def output(self) -> str:
        """The first output that is not left out."""
        return next(name for name in self.outputs if name)

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
        if self.shape is None:
            return f"{self.name}: {self.dtype} of unknown shape"
        dims = "×".join("?" if d is None else str(d) for d in self.shape)
        return f"{self.name}: {self.dtype} {dims or 'scalar'}"


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

    def ancestors(self, tensors: Iterable[str], stop: Container[str] = ()) -> set[str]:
        """All tensors that ``tensors`` depend on, themselves included; those in ``stop`` depend on nothing."""
        seen: set[str] = set()
        stack = list(tensors)
        while stack:
            name = stack.pop()
            if not name or name in seen:
                continue
            seen.add(name)
            if name not in stop and (node := self.producer.get(name)):
                stack.extend((*node.inputs, *node.captures))
        return seen

    @cached_property
    def has_control_flow(self) -> bool:
        """Whether an If, Loop or Scan was left as it is."""
        return any(node.kind in CONTROL_FLOW for node in self.nodes)

    def shape_only(self, constants: Container[str]) -> frozenset[str]:
        """Tensors that depend on the inputs' sizes but not on their values; see `sizes.shape_only`."""
        return shape_only(self, constants)

    def value_sized(self, constants: Container[str]) -> frozenset[str]:
        """Tensors whose shape depends on the inputs' values; see `sizes.value_sized`."""
        return value_sized(self, constants)

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

    ``source`` is a tensor of the graph or the name of a probe before this one. ``nodes`` is a chain of (op, further
    inputs, attributes); a further input is a constant or the name of a tensor or of a probe before. The chain's
    result gets the name ``name``, and becomes an output unless it is only there for other probes (``shown``).
    """

    name: str
    source: str
    nodes: tuple[tuple[str, tuple[np.ndarray | str, ...], Mapping[str, Any]], ...]
    shown: bool = True


class ModelFile:
    """An ONNX file, opened.

    Constants are levelled: whether the file keeps them as initializers, as Constant nodes or as inputs that were
    fed, they are all in ``initializers``. An If, Loop or Scan whose condition, trip count or length is constant is
    written out. Weights are neither read nor copied.

    Args:
        feeds: values for inputs by name, which are constants from then on; see `feeds.fit` for types and shapes.

    Raises:
        UsageError: the path does not exist or is a folder; a value is fed to no input, or does not fit it.
        ModelError: the file is not an ONNX model, or is one that cannot be opened.
    """

    def __init__(self, path: str | Path, feeds: Mapping[str, np.ndarray] | None = None) -> None:
        self.path = Path(path)
        self.folder = self.path.resolve().parent
        opened = open_model(self.path)
        proto = opened.proto
        self.stated_opset = opened.stated_opset
        """Version of the default operator set that the file states; see `opset`."""
        self.producer_name = f"{proto.producer_name} {proto.producer_version}".strip()
        """Producer and version, as the file says, or ""."""
        self.metadata: dict[str, str] = {p.key: p.value for p in proto.metadata_props}
        """The file's metadata properties."""
        lifted = lift_constants(proto.graph.node)
        self.initializers: dict[str, TensorProto] = opened.weights | lifted.tensors
        self._header = onnx.ModelProto(
            ir_version=proto.ir_version, opset_import=proto.opset_import, producer_name="onnxviz"
        )
        self._header.graph.name = proto.graph.name or "cut"
        # onnxruntime does without the import of its own domains; onnx's shape inference does not.
        imported = {o.domain for o in proto.opset_import}
        for domain in sorted(
            {node.domain for node in proto.graph.node if node.domain not in ("", "ai.onnx")}
        ):
            if domain not in imported:
                self._header.opset_import.append(helper.make_opsetid(domain, 1))
        self._inputs = list(proto.graph.input)
        self._outputs = list(proto.graph.output)
        self._files = ExternalFiles(self.folder)
        # The last shapes asked for, which may take long to work out: of these nodes, for these inputs.
        self._asked: tuple[object, Mapping[str, Shape], dict[str, tuple[int | None, ...]]] | None = None
        self._feed(feeds or {})
        taken = (*(v.name for v in self._inputs), *self.initializers)
        make_names_unique(lifted.nodes, taken)
        self._nodes: list[onnx.NodeProto] = in_order([*lifted.nodes, *_real_values(lifted.nodes)])
        self.graph = self._read_graph()
        self.constants = Constants(self)
        computed = [name for name in self.constants if name not in self.initializers]
        if any(node.op == "Slice" for node in self.graph.nodes if node.output in self.constants):
            self._infer(
                self._light(computed, {})
            )  # before onnxruntime does, which a Slice may end: see `inference`
        self._inline({}, None)

    @cached_property
    def sha256(self) -> str:
        """Of the file's bytes (external data not included), in hexadecimal."""
        with self.path.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()

    @cached_property
    def weight_files(self) -> tuple[str, ...]:
        """The files, relative to the model's folder, that hold its external data."""
        entries = (
            entry.value
            for tensor in self.initializers.values()
            if external_data_helper.uses_external_data(tensor)
            for entry in tensor.external_data
            if entry.key == "location"
        )
        return tuple(sorted(set(entries)))

    @cached_property
    def digest(self) -> str:
        """SHA-256 of the file and of what `weight_files` hold, in hexadecimal.

        Raises:
            ModelError: one of them is not there, or is one that a model may not read.
        """
        if not self.weight_files:
            return self.sha256
        whole = hashlib.sha256(self.sha256.encode())
        for location in self.weight_files:
            try:
                data = self._files.whole(location)
            except (OSError, ValueError) as error:
                raise ModelError(f"{self.path}: {location!r} cannot be read: {first_line(error)}.") from error
            whole.update(f"\0{location}\0".encode("utf-8", "surrogateescape"))
            whole.update(hashlib.sha256(memoryview(data)).digest())  # type: ignore[arg-type]
        return whole.hexdigest()

    @property
    def opset(self) -> int:
        """Version of the default operator set, after conversion."""
        return opset_of(self._header)

    @property
    def size(self) -> int:
        """Number of nodes, those added here (`REAL_VALUES`) not counted."""
        return sum(not node.output.endswith(REAL_VALUES) for node in self.graph.nodes)

    @property
    def parameters(self) -> int:
        """Number of elements in stored floating-point tensors: initializers and Constant nodes."""
        real = (TensorProto.FLOAT, TensorProto.FLOAT16, TensorProto.DOUBLE, TensorProto.BFLOAT16)
        return sum(math.prod(t.dims) for t in self.initializers.values() if t.data_type in real)

    def specialised(
        self, values: Mapping[str, np.ndarray], shapes: Mapping[str, Shape] | None = None
    ) -> ModelFile:
        """The model for the case in which some tensors are known: every If, Loop and Scan that hangs on them is
        written out.

        What subgraphs bring out may again hold some that hang on tensors not known before: repeat it with their
        values until it returns the same model.

        Args:
            values: known tensors by name, such as what follows from the images' size alone.
            shapes: shapes of tensors, where a Scan may ask for them.

        Returns:
            A model that shares all weights with this one; this one if there is nothing to write out.

        Raises:
            ModelError: an If, Loop or Scan is malformed.
        """
        other = copy.copy(self)
        return other if other._inline(values, shapes or {}) else self

    def with_weights(self, values: Mapping[str, np.ndarray]) -> ModelFile:
        """The model with other values for some stored tensors, of the same shapes and types."""
        other = copy.copy(self)
        other.initializers = self.initializers | {
            name: numpy_helper.from_array(np.ascontiguousarray(value), name) for name, value in values.items()
        }
        other.constants = Constants(other)
        return other

    def _inline(self, known: Mapping[str, np.ndarray], shapes: Mapping[str, Shape] | None) -> bool:
        """Write out what can be, until nothing is left; False if there was nothing.

        ``shapes``: None for what shape inference tells of the inputs that the file declares.
        """
        changed = False
        while any(is_control_flow(node) for node in self._nodes):
            constants = self.constants.with_known(known) if known else self.constants
            taken = (*(v.name for v in self._inputs), *self.initializers)
            facts = Facts(constants, _value_of(constants), _shape_of(self, shapes), self.opset)
            try:
                part = inline(self._nodes, taken, facts)
            except (IndexError, KeyError, StopIteration, ValueError) as error:
                raise ModelError(f"{self.path}: an If, Loop or Scan is malformed: {error}.") from error
            if part is None:
                break
            changed = True
            self._nodes = in_order(part.nodes)
            self.initializers = self.initializers | part.tensors
            self.graph = self._read_graph()
            self.constants = Constants(self, base=self.constants)
        return changed

    def _feed(self, feeds: Mapping[str, np.ndarray]) -> None:
        """Make initializers of inputs."""
        inputs = {v.name: v for v in self._inputs}
        for name, value in feeds.items():
            if name not in inputs:
                listed = "; ".join(
                    str(_tensor_info(v)) for n, v in inputs.items() if n not in self.initializers
                )
                raise UsageError(f"{self.path} has no input {name!r} to feed. Its inputs are: {listed}.")
            info = _tensor_info(inputs[name])
            array = fit(info, _numeric(inputs[name]), value)
            self.initializers[name] = numpy_helper.from_array(array, name)

    def decode(self, tensor: TensorProto) -> np.ndarray:
        """The array of a stored tensor; if it has a file of its own, a view of that, mapped into memory.

        Raises:
            ModelError: it is damaged, or its file is not there, or is one that a model may not read.
        """
        external = external_data_helper.uses_external_data(tensor)
        try:
            return self._mapped(tensor) if external else np.asarray(numpy_helper.to_array(tensor))
        except (KeyError, MemoryError, OSError, OverflowError, TypeError, ValueError) as error:
            reason = first_line(error)
            if not external:
                raise ModelError(f"{self.path}: the tensor {tensor.name!r} is damaged: {reason}.") from error
            where = next((e.value for e in tensor.external_data if e.key == "location"), "?")
            if isinstance(error, OSError):
                reason = error.strerror or reason
            raise ModelError(
                f"{self.path}: weights of {tensor.name} should be in {where!r} beside it: {reason}."
            ) from error

    def _mapped(self, tensor: TensorProto) -> np.ndarray:
        entries = {e.key: e.value for e in tensor.external_data}
        kind = TensorProto.DataType.Name(tensor.data_type)
        dtype: np.dtype[Any] = np.dtype(helper.tensor_dtype_to_np_dtype(tensor.data_type))
        if dtype.hasobject:
            raise ValueError("text cannot lie in another file")
        if any(d < 0 for d in tensor.dims):
            raise ValueError(f"its shape is {tuple(tensor.dims)}")
        bits = math.prod(tensor.dims) * BITS.get(kind, 8 * dtype.itemsize)
        length = (bits + 7) // 8
        stated = int(entries.get("length") or length)
        if stated != length:
            raise ValueError(f"it has {stated} bytes, and {length} are needed for {kind} {list(tensor.dims)}")
        data = self._files.read(entries.get("location", ""), int(entries.get("offset") or 0), length)
        if kind in BITS:
            stored = TensorProto(dims=tensor.dims, data_type=tensor.data_type, raw_data=data.tobytes())
            return np.asarray(numpy_helper.to_array(stored))
        return data.view(dtype).reshape(tuple(tensor.dims))

    def fill(self, name: str) -> np.ndarray:
        """What a ConstantOfShape node fills its output ``name`` with: an array of no dimensions."""
        node = next(node for node in self._nodes if name in node.output)
        value = next((a.t for a in node.attribute if a.name == "value"), None)
        return np.zeros((), np.float32) if value is None else numpy_helper.to_array(value).reshape(())

    def _read_graph(self) -> Graph:
        taken: set[str] = set()
        nodes = []
        for proto in self._nodes:
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
                    domain=proto.domain,
                    inputs=tuple(proto.input),
                    outputs=tuple(proto.output),
                    attrs=_attributes(proto),
                    captures=captures(proto),
                )
            )
        inputs = tuple(_tensor_info(v) for v in self._inputs if v.name not in self.initializers)
        return Graph(tuple(nodes), inputs, tuple(v.name for v in self._outputs))

    def shapes(self, feeds: Mapping[str, Shape]) -> dict[str, tuple[int | None, ...]]:
        """Shapes of all tensors that onnx's shape inference can tell, for inputs of the given shapes."""
        if self._asked is not None and self._asked[0] is self._nodes and self._asked[1] == feeds:
            return dict(self._asked[2])
        found = _stated_shapes(self._inferred(feeds))
        for name, tensor in self.initializers.items():
            found[name] = tuple(tensor.dims)
        self._asked = (self._nodes, dict(feeds), found)
        return dict(found)

    def _inferred(self, feeds: Mapping[str, Shape]) -> onnx.ModelProto:
        """The model without weights, with the types and shapes that shape inference finds."""
        model = self._skeleton()
        for info in self._inputs:
            if info.name in feeds:
                model.graph.input.append(
                    helper.make_tensor_value_info(
                        info.name, info.type.tensor_type.elem_type, feeds[info.name]
                    )
                )
            elif info.name not in self.initializers:
                model.graph.input.append(info)
                for dim in model.graph.input[-1].type.tensor_type.shape.dim:
                    if dim.dim_value < 0:  # as older exporters write what is open
                        dim.Clear()
        declare(model.graph, self.initializers)
        model.graph.node.extend(self._nodes)
        return self._infer(model)

    def _infer(self, model: onnx.ModelProto) -> onnx.ModelProto:
        def stated(inferred: onnx.ModelProto) -> Mapping[str, tuple[int | None, ...]]:
            found = _stated_shapes(inferred)
            check_sizes(found, self.path)
            return found

        try:
            return infer_shapes(model, stated)
        except ModelError:
            raise
        except Exception as error:  # the C++ checker's own error types
            raise ModelError(f"{self.path}: its shapes cannot be worked out: {first_line(error)}") from error

    @cached_property
    def _lrn_shapes(self) -> Mapping[str, tuple[int, int]]:
        """Channels and number of axes of each LRN of float32 values of which they are known, by its output."""
        outputs = {node.output[0] for node in self._nodes if node.op_type == "LRN" and not node.domain}
        if not outputs:
            return {}
        found = {}
        graph = self._inferred({}).graph
        for value in (*graph.value_info, *graph.output):
            kind = value.type.tensor_type
            dims = [d.dim_value for d in kind.shape.dim]
            if (
                value.name in outputs
                and kind.elem_type == TensorProto.FLOAT
                and len(dims) > 2
                and dims[1] > 0
            ):
                found[value.name] = (dims[1], len(dims))
        return found

    def cut(
        self,
        tensors: Sequence[str],
        *,
        probes: Sequence[Probe] = (),
        batch: int | str | None = None,
        image: str | None = None,
        known: Mapping[str, np.ndarray] | None = None,
        provider: str | None = None,
    ) -> bytes:
        """A model that computes just the asked-for tensors, serialised for onnxruntime.

        Args:
            tensors: names of tensors to output as they are.
            probes: small computations to append, each an output of its own name.
            batch: new first dimension of the input ``image``; None keeps what the file says.
            image: the input that ``batch`` is for.
            known: tensors that are not computed but have these values.
            provider: what will run it: what this is slow at or cannot do is written in other operators (`lrn`).
        """
        known = known or {}
        sources = {name for probe in probes for name in _read_by(probe)} - {probe.name for probe in probes}
        needed = self.graph.ancestors([*tensors, *sources], known)
        model = self._skeleton()
        graph = model.graph
        for info in self._inputs:
            if info.name in needed and info.name not in self.initializers:
                value = graph.input.add()
                value.CopyFrom(info)
                if info.name == image and batch is not None:
                    dim = value.type.tensor_type.shape.dim[0]
                    if isinstance(batch, int):
                        dim.dim_value = batch
                    else:
                        dim.dim_param = batch
        graph.initializer.extend(
            numpy_helper.from_array(known[name], name) for name in needed if name in known
        )
        for proto in self._nodes:
            if not any(name in needed and name not in known for name in proto.output):
                continue
            channels, rank = self._lrn_shapes.get(proto.output[0], (0, 0)) if provider else (0, 0)
            if channels and better_spelled_out(proto, channels, provider):
                nodes, tensors_of_it = spell_out_lrn(proto, channels, rank)
                graph.node.extend(nodes)
                graph.initializer.extend(tensors_of_it)
                continue
            kept = graph.node.add()
            kept.CopyFrom(proto)
            kept.output[:] = [f"{name}:computed" if name in known else name for name in proto.output]
        for probe in probes:
            value_name = probe.source
            for step, (op, constants, attrs) in enumerate(probe.nodes):
                out = probe.name if step == len(probe.nodes) - 1 else f"{probe.name}:{step}"
                extra = []
                for index, constant in enumerate(constants):
                    if isinstance(constant, str):
                        extra.append(constant)
                        continue
                    extra.append(f"{out}:const{index}")
                    graph.initializer.append(numpy_helper.from_array(constant, extra[-1]))
                graph.node.append(helper.make_node(op, [value_name, *extra], [out], **attrs))
                value_name = out
        wanted = [*tensors, *(p.name for p in probes if p.shown)]
        graph.output.extend(onnx.ValueInfoProto(name=name) for name in dict.fromkeys(wanted))
        weights = (t for name, t in self.initializers.items() if name in needed and name not in known)
        return _serialised(model, weights)

    def evaluate(
        self, names: Sequence[str], known: Mapping[str, np.ndarray] | None = None
    ) -> list[np.ndarray]:
        """Values of constant tensors, computed by onnxruntime on the CPU; ``known`` ones are given.

        Raises:
            ModelError: onnxruntime cannot compute them, or not in the memory and time that there is for it.
        """
        if known and any(node.op == "Slice" for node in self.graph.nodes):
            self._infer(self._light(names, known))
        session = open_session(self.cut(names, known=known), self.path, trial=True)
        try:
            with trial_options() as options:
                values = session.run(list(names), {}, options)
        except Exception as error:  # onnxruntime raises types of its own
            raise ModelError(
                f"{self.path}: its constants cannot be worked out: {error_line(error)}"
            ) from error
        return [np.asarray(value) for value in values]

    def _light(self, names: Sequence[str], known: Mapping[str, np.ndarray]) -> onnx.ModelProto:
        """What `cut` makes, without large weights."""
        needed = self.graph.ancestors(names, known)
        model = self._skeleton()
        weights = {name: tensor for name, tensor in self.initializers.items() if name in needed}
        weights |= {name: numpy_helper.from_array(known[name], name) for name in needed if name in known}
        declare(model.graph, weights)
        nodes = (node for node in self._nodes if not needed.isdisjoint(node.output))
        model.graph.node.extend(node for node in nodes if not any(name in known for name in node.output))
        return model

    def _skeleton(self) -> onnx.ModelProto:
        model = onnx.ModelProto()
        model.CopyFrom(self._header)
        return model


def _stated_shapes(model: onnx.ModelProto) -> dict[str, tuple[int | None, ...]]:
    """Shapes of inputs, outputs and other tensors, as the message states them."""
    return {
        value.name: tuple(
            d.dim_value if d.HasField("dim_value") else None for d in value.type.tensor_type.shape.dim
        )
        for value in (*model.graph.input, *model.graph.value_info, *model.graph.output)
        if value.type.tensor_type.HasField("shape")
    }


def _real_values(nodes: Iterable[onnx.NodeProto]) -> list[onnx.NodeProto]:
    """For each operator that gives whole numbers for real ones, a node that gives the real ones: `REAL_VALUES`."""
    return [
        helper.make_node(
            "DequantizeLinear", [node.output[0], *node.input[6:8]], [node.output[0] + REAL_VALUES]
        )
        for node in nodes
        if node.op_type in ("QLinearConv", "QLinearMatMul")
        and node.domain in ("", "ai.onnx")
        and any(node.output)
    ]


def _read_by(probe: Probe) -> Iterator[str]:
    """The tensors and other probes that a probe starts from."""
    yield probe.source
    for _, inputs, _ in probe.nodes:
        yield from (name for name in inputs if isinstance(name, str))


def _value_of(constants: Constants) -> Callable[[str], np.ndarray | None]:
    def value(name: str) -> np.ndarray | None:
        try:
            return constants.get(name)
        except ModelError:
            # Computed by operators that onnxruntime does not have: not known then, and refused if on a path.
            return None

    return value


def _shape_of(
    model: ModelFile, shapes: Mapping[str, Shape] | None
) -> Callable[[str], Sequence[int | None] | None]:
    @cache
    def inferred() -> Mapping[str, Sequence[int | None]]:
        return shapes if shapes is not None else model.shapes({})

    return lambda name: inferred().get(name)


def _serialised(model: onnx.ModelProto, weights: Iterable[TensorProto]) -> bytes:
    """A model with more initializers, serialised, each copied just once.

    In protobuf's encoding what follows a message is merged into it: here the field ``graph`` (7) of the model once
    more, with nothing but an ``initializer`` (5), whose ``raw_data`` (9) comes last.
    """
    out = io.BytesIO()
    out.write(model.SerializeToString())
    for tensor in weights:
        if raw := tensor.raw_data:
            head = TensorProto(dims=tensor.dims, data_type=tensor.data_type, name=tensor.name)
            start = head.SerializeToString() + _tag(9, len(raw))
        else:
            start = tensor.SerializeToString()
        inner = _tag(5, len(start) + len(raw))
        out.write(_tag(7, len(inner) + len(start) + len(raw)) + inner + start)
        out.write(raw)
    return out.getvalue()


def _tag(number: int, length: int) -> bytes:
    """What comes before a field of ``length`` bytes: its number, and the length in groups of 7 bits."""
    found = bytearray([number << 3 | 2])
    while length > 127:
        found.append(length & 127 | 128)
        length >>= 7
    return bytes([*found, length])


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


def operator_versions(op: str) -> tuple[int, ...]:
    """The opsets that define an operator of the default domain anew, but for one that takes it out."""
    schemas = [s for s in onnx.defs.get_all_schemas_with_history() if s.name == op and not s.domain]
    last = max((s.since_version for s in schemas), default=0)
    return tuple(sorted(s.since_version for s in schemas if not (s.deprecated and s.since_version == last)))


def _numeric(value: onnx.ValueInfoProto) -> np.dtype[Any] | None:
    """The type of an input of numbers; None for text, sequences and the like."""
    kind = value.type.tensor_type.elem_type
    if kind in (TensorProto.UNDEFINED, TensorProto.STRING):
        return None
    dtype: np.dtype[Any] = np.dtype(helper.tensor_dtype_to_np_dtype(kind))
    return dtype


def _tensor_info(value: onnx.ValueInfoProto) -> TensorInfo:
    tensor = value.type.tensor_type
    if not value.type.HasField("tensor_type"):
        return TensorInfo(value.name, str(value.type.WhichOneof("value")), None)
    shape = None
    if tensor.HasField("shape"):
        shape = tuple(
            d.dim_value if d.HasField("dim_value") and d.dim_value >= 0 else (d.dim_param or None)
            for d in tensor.shape.dim
        )
    dtype = TensorProto.DataType.Name(tensor.elem_type).lower()
    return TensorInfo(value.name, {"float": "float32", "double": "float64"}.get(dtype, dtype), shape)
