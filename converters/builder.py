"""Sequential convolutional networks: tables of layers and arrays in TensorFlow's layout become ONNX models.

A layer's name is its node's name and the name of the tensor that the node makes; its weights are the
initializers ``<name>_W`` and ``<name>_b``. Only the batch, "N", is dynamic.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

from onnxviz.model.joining import write_model

from .weights import Shape, check, float32

__all__ = [
    "Conv",
    "Dense",
    "ImageInput",
    "Layer",
    "LocalResponseNorm",
    "MaxPool",
    "Network",
    "Relu",
    "Softmax",
    "set_metadata",
    "write",
]

OPSET = 17
IR_VERSION = 8

Padding = Literal["valid", "same"]
Arrays = Mapping[str, NDArray[np.float32]]


@dataclass(frozen=True)
class ImageInput:
    """The network's input ``data`` and how an image becomes one.

    An image of 0–255 is resized to ``size`` (height, width), its channels put in ``order``, multiplied by
    ``scale``; then ``mean`` is subtracted and the result divided by ``std``, per channel in that order.
    """

    size: tuple[int, int]
    order: Literal["rgb", "bgr", "gray"]
    mean: tuple[float, ...]
    std: tuple[float, ...]
    scale: float = 1.0
    resize: Literal["crop", "stretch", "pad"] = "crop"

    @property
    def shape(self) -> Shape:
        """Channels, height, width."""
        return (len(self.mean), *self.size)

    def as_json(self) -> str:
        """Return the value of the metadata property ``onnxviz.preprocess``."""
        return json.dumps(
            {
                "size": list(self.size),
                "resize": self.resize,
                "order": self.order,
                "scale": self.scale,
                "mean": list(self.mean),
                "std": list(self.std),
            }
        )


@dataclass(frozen=True)
class Part:
    """What a layer adds to a graph: nodes, of which the last makes the layer's tensor, and initializers."""

    nodes: list[onnx.NodeProto]
    initializers: dict[str, NDArray[Any]]


@dataclass(frozen=True)
class Layer:
    """A layer of one input. ``shape`` in its methods is that input's: (C, H, W), or (features,)."""

    name: str

    def output(self, shape: Shape) -> Shape:
        """Return the output's shape."""
        return shape

    def weights(self, shape: Shape) -> dict[str, Shape]:
        """Return the arrays that the layer needs, by key, with their shapes."""
        return {}

    def part(self, x: str, shape: Shape, arrays: Arrays) -> Part:
        """Return the layer's nodes, reading tensor ``x``."""
        raise NotImplementedError

    def _part(self, op: str, x: str, **attributes: Any) -> Part:
        return Part([helper.make_node(op, [x], [self.name], self.name, **attributes)], {})


@dataclass(frozen=True)
class Relu(Layer):
    """ONNX Relu."""

    def part(self, x: str, shape: Shape, arrays: Arrays) -> Part:
        """See `Layer.part`."""
        return self._part("Relu", x)


@dataclass(frozen=True)
class LocalResponseNorm(Layer):
    """ONNX LRN; ``alpha`` is divided by ``size`` (Caffe's terms: TensorFlow's alpha times size)."""

    size: int
    alpha: float
    beta: float
    bias: float = 1.0

    def part(self, x: str, shape: Shape, arrays: Arrays) -> Part:
        """See `Layer.part`."""
        return self._part("LRN", x, size=self.size, alpha=self.alpha, beta=self.beta, bias=self.bias)


@dataclass(frozen=True)
class MaxPool(Layer):
    """ONNX MaxPool over square windows, without padding: a window that does not fit is left out."""

    kernel: int
    stride: int

    def output(self, shape: Shape) -> Shape:
        """See `Layer.output`."""
        channels, *sizes = shape
        return (channels, *((size - self.kernel) // self.stride + 1 for size in sizes))

    def part(self, x: str, shape: Shape, arrays: Arrays) -> Part:
        """See `Layer.part`."""
        return self._part("MaxPool", x, kernel_shape=[self.kernel] * 2, strides=[self.stride] * 2)


@dataclass(frozen=True)
class Conv(Layer):
    """ONNX Conv with square kernels. Weights are HWIO: (kernel, kernel, channels / group, filters).

    Padding ``same`` is TensorFlow's: ceil(size / stride) outputs, an odd pad's larger half at the end.
    """

    filters: int
    kernel: int
    stride: int = 1
    padding: Padding = "same"
    group: int = 1
    keys: tuple[str, str] | None = None  # of weights and biases, if not the initializers' names

    def output(self, shape: Shape) -> Shape:
        """See `Layer.output`."""
        pads = self._pads(shape)
        return (
            self.filters,
            *(
                (size + sum(pad) - self.kernel) // self.stride + 1
                for size, pad in zip(shape[1:], pads, strict=True)
            ),
        )

    def weights(self, shape: Shape) -> dict[str, Shape]:
        """See `Layer.weights`."""
        kernels, biases = _keys(self.name, self.keys)
        return {
            kernels: (self.kernel, self.kernel, shape[0] // self.group, self.filters),
            biases: (self.filters,),
        }

    def part(self, x: str, shape: Shape, arrays: Arrays) -> Part:
        """See `Layer.part`."""
        kernels, biases = (arrays[key] for key in _keys(self.name, self.keys))
        (top, bottom), (left, right) = self._pads(shape)
        inputs = [f"{self.name}_W", f"{self.name}_b"]
        node = helper.make_node(
            "Conv",
            [x, *inputs],
            [self.name],
            self.name,
            kernel_shape=[self.kernel] * 2,
            strides=[self.stride] * 2,
            pads=[top, left, bottom, right],
            group=self.group,
        )
        return Part([node], {inputs[0]: kernels.transpose(3, 2, 0, 1), inputs[1]: biases})

    def _pads(self, shape: Shape) -> list[tuple[int, int]]:
        """Return (begin, end) per spatial axis, explicitly: reverse passes need the numbers, not the rule."""
        if self.padding == "valid":
            return [(0, 0), (0, 0)]
        totals = [
            max((-(-size // self.stride) - 1) * self.stride + self.kernel - size, 0) for size in shape[1:]
        ]
        return [(total // 2, total - total // 2) for total in totals]


@dataclass(frozen=True)
class Dense(Layer):
    """ONNX Gemm. Weights are (in, out), trained on an H×W×C flattening where the input is a feature map.

    The graph flattens C×H×W, as ONNX does it, and the rows of the weights are permuted once, here: a
    Transpose in the graph would cost time in each run and a rule in each reverse pass.

    ``storage`` "int8" keeps the weights as integers, -127..127, with a scale per output, and the graph makes
    them float again (Cast, Mul): a constant subgraph, a quarter of the size.
    """

    units: int
    storage: Literal["float32", "int8"] = "float32"
    keys: tuple[str, str] | None = None

    def output(self, shape: Shape) -> Shape:
        """See `Layer.output`."""
        return (self.units,)

    def weights(self, shape: Shape) -> dict[str, Shape]:
        """See `Layer.weights`."""
        matrix, biases = _keys(self.name, self.keys)
        return {matrix: (math.prod(shape), self.units), biases: (self.units,)}

    def part(self, x: str, shape: Shape, arrays: Arrays) -> Part:
        """See `Layer.part`."""
        matrix, biases = (arrays[key] for key in _keys(self.name, self.keys))
        nodes = []
        if len(shape) == 3:
            channels, height, width = shape
            grid = matrix.reshape(height, width, channels, self.units)
            matrix = grid.transpose(2, 0, 1, 3).reshape(-1, self.units)
            flat = f"{self.name}_flatten"
            nodes.append(helper.make_node("Flatten", [x], [flat], flat, axis=1))
            x = flat
        weights = self._stored(matrix)
        inputs = [x, f"{self.name}_W", f"{self.name}_b"]
        gemm = helper.make_node("Gemm", inputs, [self.name], self.name)
        return Part([*nodes, *weights.nodes, gemm], {**weights.initializers, inputs[2]: biases})

    def _stored(self, matrix: NDArray[np.float32]) -> Part:
        name = f"{self.name}_W"
        if self.storage == "float32":
            return Part([], {name: matrix})
        largest = np.abs(matrix).max(axis=0, keepdims=True)
        scale = np.where(largest > 0, largest / 127, 1).astype(np.float32)
        integers = np.rint(matrix / scale).astype(np.int8)
        nodes = [
            helper.make_node(
                "Cast", [f"{name}_int8"], [f"{name}_cast"], f"{name}_cast", to=TensorProto.FLOAT
            ),
            helper.make_node("Mul", [f"{name}_cast", f"{name}_scale"], [name], name),
        ]
        return Part(nodes, {f"{name}_int8": integers, f"{name}_scale": scale})


@dataclass(frozen=True)
class Softmax(Layer):
    """ONNX Softmax over the classes."""

    def part(self, x: str, shape: Shape, arrays: Arrays) -> Part:
        """See `Layer.part`."""
        return self._part("Softmax", x, axis=1)


@dataclass(frozen=True)
class Network:
    """A sequential network: its input and its layers, from input to output."""

    name: str
    image: ImageInput
    layers: tuple[Layer, ...]
    labels: tuple[str, ...] = ()  # class names, in the output's order
    description: str = ""

    def weights(self) -> dict[str, Shape]:
        """Return the arrays that the network needs, by key, with their shapes."""
        return {key: size for layer, shape in self._walk() for key, size in layer.weights(shape).items()}

    def shapes(self) -> dict[str, Shape]:
        """Return each layer's output shape, without the batch."""
        return {layer.name: layer.output(shape) for layer, shape in self._walk()}

    def build(self, weights: Mapping[str, NDArray[Any]], source: str = "weights") -> onnx.ModelProto:
        """Return the checked model. ``source`` names where the weights come from in errors.

        Raises `WeightsError` for a missing array, a wrong shape, or values that are not finite floats.
        """
        expected = self.weights()
        check(weights, expected, source)
        *_, output = self.shapes().items()
        graph = helper.make_graph(
            [],
            self.name,
            [helper.make_tensor_value_info("data", TensorProto.FLOAT, ["N", *self.image.shape])],
            [helper.make_tensor_value_info(output[0], TensorProto.FLOAT, ["N", *output[1]])],
        )
        model = helper.make_model(
            graph, ir_version=IR_VERSION, opset_imports=[helper.make_opsetid("", OPSET)]
        )
        model.doc_string = self.description
        set_metadata(model, self.image, self.labels)
        x = "data"
        for layer, shape in self._walk():
            arrays = {key: float32(weights[key], key, source) for key in layer.weights(shape)}
            part = layer.part(x, shape, arrays)
            model.graph.node.extend(part.nodes)
            # One at a time and last: VGG16's 553 MB are copied by every call that takes a whole graph.
            for name, array in part.initializers.items():
                model.graph.initializer.append(numpy_helper.from_array(np.ascontiguousarray(array), name))
            x = layer.name
        onnx.checker.check_model(model, full_check=True)
        return model

    def _walk(self) -> Iterator[tuple[Layer, Shape]]:
        shape = self.image.shape
        for layer in self.layers:
            yield layer, shape
            shape = layer.output(shape)


def set_metadata(model: onnx.ModelProto, image: ImageInput, labels: tuple[str, ...]) -> None:
    """Write producer, preprocessing and class names into a model."""
    model.producer_name = "onnxviz"
    properties = {"onnxviz.preprocess": image.as_json()}
    if labels:
        properties["onnxviz.labels"] = json.dumps(list(labels), ensure_ascii=False)
    helper.set_model_props(model, properties)


def write(model: onnx.ModelProto, out: Path) -> Path:
    """Write a model: whole or not at all. Returns ``out``.

    Raises `UsageError` where ``out`` is a folder or lies in none, `OnnxvizError` where writing fails.
    """
    return write_model(model.SerializeToString(), out)


def _keys(name: str, keys: tuple[str, str] | None) -> tuple[str, str]:
    return keys or (f"{name}_W", f"{name}_b")
