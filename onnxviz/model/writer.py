"""Writing ONNX graphs: nodes one after the other, then a model with just those that its outputs need."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeAlias

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import helper, numpy_helper

__all__ = ["GraphWriter", "Written"]

Array: TypeAlias = NDArray[Any]
Dim: TypeAlias = int | str

_IR_VERSION = 10
_KEPT_APART = 1 << 16
"""Constants of more bytes than this are not copied into the model (`Written.weights`)."""


@dataclass(frozen=True)
class Written:
    """A model, serialised, and its large constants, which it only names.

    ``inputs``: those that its outputs depend on.
    """

    model: bytes
    weights: Mapping[str, Array]
    inputs: tuple[str, ...]


@dataclass
class _Entry:
    op: str
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    attrs: Mapping[str, Any]


@dataclass
class GraphWriter:
    """A graph that is being written, for one version of the default operator set.

    Names begin with ``prefix``, so that what two writers wrote can be joined.
    """

    opset: int
    prefix: str = ""
    _inputs: dict[str, tuple[np.dtype[Any], tuple[Dim, ...]]] = field(default_factory=dict)
    _declared: dict[str, tuple[np.dtype[Any], tuple[Dim, ...]]] = field(default_factory=dict)
    _constants: dict[str, Array] = field(default_factory=dict)
    _by_value: dict[tuple[Any, ...], str] = field(default_factory=dict)
    _entries: list[_Entry] = field(default_factory=list)
    _made: dict[tuple[Any, ...], str] = field(default_factory=dict)

    def input(self, name: str, dtype: np.dtype[Any], shape: Sequence[Dim]) -> str:
        """Declare an input; a size that is text is open."""
        self._inputs[name] = (np.dtype(dtype), tuple(shape))
        return name

    def constant(self, value: Array) -> str:
        """The name of a constant; equal small ones, and the same large one, have one name."""
        key = (
            (value.dtype.str, value.shape, value.tobytes())
            if value.nbytes <= 1024
            else (id(value), value.shape, value.strides)
        )
        if key not in self._by_value:
            name = f"{self.prefix}c{len(self._constants)}"
            self._constants[name] = value  # kept, so that its id stays its own
            self._by_value[key] = name
        return self._by_value[key]

    def node(self, op: str, *inputs: str, **attrs: Any) -> str:
        """Write a node with one output and return the output's name; the same one is not written twice."""
        key = (op, inputs, tuple(sorted((k, str(v)) for k, v in attrs.items())))
        if key not in self._made:
            name = f"{self.prefix}t{len(self._entries)}"
            self._entries.append(_Entry(op, inputs, (name,), attrs))
            self._made[key] = name
        return self._made[key]

    def named(self, value: str, name: str, dtype: np.dtype[Any], shape: Sequence[Dim]) -> str:
        """The same tensor under another name, declared for those who want outputs to have types."""
        self._declared[name] = (np.dtype(dtype), tuple(shape))
        self._entries.append(_Entry("Identity", (value,), (name,), {}))
        return name

    def cast(self, value: str, dtype: np.dtype[Any]) -> str:
        """A tensor in another type."""
        return self.node("Cast", value, to=int(helper.np_dtype_to_tensor_dtype(dtype)))

    def parts(self, outputs: Sequence[str]) -> tuple[list[onnx.NodeProto], dict[str, Array], tuple[str, ...]]:
        """Nodes, constants and inputs that the outputs need."""
        needed, kept = set(outputs), []
        for entry in reversed(self._entries):
            if not needed.isdisjoint(entry.outputs):
                kept.append(entry)
                needed.update(entry.inputs)
        nodes = [
            helper.make_node(e.op, list(e.inputs), list(e.outputs), f"{e.op}_{e.outputs[0]}", **e.attrs)
            for e in reversed(kept)
        ]
        constants = {name: value for name, value in self._constants.items() if name in needed}
        return nodes, constants, tuple(name for name in self._inputs if name in needed)

    def write(self, outputs: Sequence[str], *, apart: bool = True) -> Written:
        """The model of what was written, with the given outputs.

        Args:
            apart: keep large constants out of the model.
        """
        nodes, constants, inputs = self.parts(outputs)
        graph = helper.make_graph(nodes, "reverse", [self.value_info(name) for name in inputs], [])
        graph.output.extend(onnx.ValueInfoProto(name=name) for name in outputs)
        weights = {}
        for name, value in constants.items():
            tensor = graph.initializer.add()
            if apart and value.nbytes > _KEPT_APART:
                weights[name] = value
                tensor.CopyFrom(_placeholder(name, value))
            else:
                tensor.CopyFrom(numpy_helper.from_array(np.ascontiguousarray(value), name))
        model = helper.make_model(
            graph, opset_imports=[helper.make_opsetid("", self.opset)], ir_version=_IR_VERSION
        )
        return Written(model.SerializeToString(), weights, inputs)

    def value_info(self, name: str) -> onnx.ValueInfoProto:
        """The declaration of an input or a named output."""
        dtype, shape = (self._inputs | self._declared)[name]
        return helper.make_tensor_value_info(name, helper.np_dtype_to_tensor_dtype(dtype), list(shape))


def _placeholder(name: str, value: Array) -> onnx.TensorProto:
    """A tensor whose values are to be given when a session is made of the model."""
    tensor = onnx.TensorProto(
        name=name, dims=value.shape, data_type=helper.np_dtype_to_tensor_dtype(value.dtype)
    )
    tensor.data_location = onnx.TensorProto.EXTERNAL
    for key, text in (("location", f"{name}.bin"), ("offset", "0"), ("length", str(math.prod(value.shape)))):
        tensor.external_data.add(key=key, value=text)
    return tensor
