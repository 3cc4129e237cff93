"""The stored graphs of `tests/graphs` with seeded weights, and models without kinks for finite differences.

Weights are drawn, then set in order from the input on: the model runs layer by layer on a few random inputs, and each
layer gets the gains and biases that bring its outputs' variation near 1 and their means near 0 (layer-sequential
unit variance, Mishkin & Matas 2016, with means).
"""

from __future__ import annotations

import lzma
import math
import zlib
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
import onnx
import onnxruntime
from numpy.typing import NDArray
from onnx import ModelProto, NodeProto, TensorProto, ValueInfoProto, helper, numpy_helper

__all__ = ["freeze", "inputs", "names", "slopes", "write_seeded"]

Array: TypeAlias = NDArray[Any]
Constant: TypeAlias = Callable[[str], Array | None]

FOLDER = Path(__file__).parent / "graphs"
SUFFIX = ".onnx.xz"

SAMPLES = 16
"""Random inputs on which the variation of each channel is measured."""

TRUST = 64
"""So many values seen of a channel count as much as the usual variation of the layer's channels."""

MOST = 1.5
"""The highest gain over He's scale: what varies little, such as the mean of a map, would show its rounding."""

STEPS = tuple(6.4 / 2**k for k in range(13))
"""Of finite differences, each half the one before."""

ENOUGH = 1e-5
"""When all tensors' steps agree so well with their halves, no more are tried."""

_REAL = (TensorProto.FLOAT, TensorProto.FLOAT16, TensorProto.DOUBLE)
_CARRIERS = ("Cast", "Identity", "Reshape", "Squeeze", "Transpose", "Unsqueeze")
_LAYERS = {"Conv": 1, "ConvTranspose": 1, "Gemm": -1, "MatMul": -1}
"""Operators whose second input is a weight, and third perhaps a bias, with the channel axis of input and output."""


def names() -> tuple[str, ...]:
    """The stored graphs."""
    return tuple(sorted(path.name.removesuffix(SUFFIX) for path in FOLDER.glob(f"*{SUFFIX}")))


def inputs(name: str, count: int = 1, seed: int = 0) -> Array:
    """Standard normal inputs of a size that the stored graph takes. (count, …) float32"""
    return _draw_inputs(_stored(name), count, np.random.default_rng([seed, 1]))


def write_seeded(name: str, folder: Path, seed: int = 0) -> Path:
    """Write a stored graph with weights, as ``<name>.onnx``."""
    model = _stored(name)
    rng = np.random.default_rng([seed, zlib.crc32(name.encode())])
    weights = _Weights(model, rng)
    _Fit(model, weights, _draw_inputs(model, SAMPLES, rng), rng).run()
    weights.store()
    del model.metadata_props[:]
    path = folder / f"{name}.onnx"
    onnx.save(model, str(path))
    return path


def _stored(name: str) -> ModelProto:
    return onnx.load_model_from_string(lzma.decompress((FOLDER / f"{name}{SUFFIX}").read_bytes()))


def _draw_inputs(model: ModelProto, count: int, rng: np.random.Generator) -> Array:
    (example,) = (p.value for p in model.metadata_props if p.key == "example")
    return rng.standard_normal((count, *map(int, example.split()[1:]))).astype(np.float32)


def _session(model: ModelProto, *, optimized: bool) -> onnxruntime.InferenceSession:
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4
    options.intra_op_num_threads = 1
    if not optimized:
        options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    return onnxruntime.InferenceSession(
        model.SerializeToString(), options, providers=["CPUExecutionProvider"]
    )


def _input(model: ModelProto) -> ValueInfoProto:
    stored = {t.name for t in model.graph.initializer}
    return next(value for value in model.graph.input if value.name not in stored)


def _attributes(node: NodeProto) -> dict[str, Any]:
    return {a.name: helper.get_attribute_value(a) for a in node.attribute}


# Weights


class _Weights(dict[str, Array]):
    """The constants of a model, those left out drawn anew. What changes here is written back by `store`."""

    def __init__(self, model: ModelProto, rng: np.random.Generator) -> None:
        self._tensors = _constants(model)
        roles = _roles(model)
        for name, tensor in self._tensors.items():
            if tensor.data_type in _REAL and _left_out(tensor):
                dtype = helper.tensor_dtype_to_np_dtype(tensor.data_type)
                self[name] = np.asarray(_draw(rng, tuple(tensor.dims), *roles.get(name, ("", 0))), dtype)
            else:
                self[name] = numpy_helper.to_array(tensor)

    def store(self) -> None:
        for name, tensor in self._tensors.items():
            if tensor.data_type in _REAL:
                tensor.CopyFrom(numpy_helper.from_array(self[name], tensor.name))


def _constants(model: ModelProto) -> dict[str, TensorProto]:
    """Initializers, and the values of Constant nodes."""
    made = [n for n in model.graph.node if n.op_type == "Constant" and n.attribute[0].name == "value"]
    return {t.name: t for t in model.graph.initializer} | {n.output[0]: n.attribute[0].t for n in made}


def _left_out(tensor: TensorProto) -> bool:
    data = tensor.raw_data or tensor.float_data or tensor.int32_data or tensor.double_data
    return not data and math.prod(tensor.dims) > 0


def _roles(model: ModelProto) -> dict[str, tuple[str, int]]:
    """Operator and input for which each constant is; what only carries values stands for its own reader."""
    roles: dict[str, tuple[str, int]] = {}
    for node in reversed(model.graph.node):
        for index, name in enumerate(node.input):
            carried = node.op_type in _CARRIERS and index == 0 and node.output[0] in roles
            roles[name] = roles[node.output[0]] if carried else (node.op_type, index)
    return roles


def _draw(rng: np.random.Generator, shape: Sequence[int], op: str, index: int) -> Array:
    """He-scaled weights, gains near 1, variances in [0.5, 1.5], small biases."""
    match op, index:
        case "Conv" | "ConvTranspose", 1:
            return rng.normal(0, math.sqrt(2 / math.prod(shape[1:])), shape)
        case "Gemm" | "MatMul", 0 | 1:
            return rng.normal(0, math.sqrt(1 / shape[0]), shape)
        case "LSTM" | "GRU" | "RNN", 1 | 2:
            return rng.normal(0, math.sqrt(1 / shape[-1]), shape)
        case "BatchNormalization", 1:
            return rng.uniform(0.5, 1.5, shape) * np.where(rng.random(shape) < 0.1, -1, 1)
        case "BatchNormalization", 4:
            return rng.uniform(0.5, 1.5, shape)
        case "LayerNormalization" | "InstanceNormalization" | "GroupNormalization", 1:
            return rng.uniform(0.7, 1.3, shape)
        case "PRelu", 1:
            return rng.uniform(0.1, 0.4, shape)
        case "Mul", _:  # the scale of a residual branch
            return rng.uniform(0.3, 0.8, shape)
        case _:
            return rng.normal(0, 0.1, shape)


class _Fit:
    """Runs a model from layer to layer, and sets their gains and biases on the way."""

    def __init__(self, model: ModelProto, weights: _Weights, x: Array, rng: np.random.Generator) -> None:
        self._opsets, self._ir_version = list(model.opset_import), model.ir_version
        self._nodes = [n for n in model.graph.node if not set(n.output) <= weights.keys()]
        self._weights, self._rng = weights, rng
        self._values = {_input(model).name: x}

    def run(self) -> None:
        start = 0
        for end, node in enumerate(self._nodes):
            if node.op_type in _LAYERS and node.input[1] in self._weights:
                self._compute(self._nodes[start:end])
                self._fit(node)
                start = end + 1

    def _compute(self, nodes: Sequence[NodeProto]) -> None:
        """Values of all tensors that the nodes make."""
        if not nodes:
            return
        outputs = [name for node in nodes for name in node.output if name]
        read = dict.fromkeys(name for node in nodes for name in node.input if name)
        feeds = {n: self._values[n] for n in read if n not in self._weights and n not in outputs}
        graph = helper.make_graph(
            nodes,
            "part",
            [
                helper.make_tensor_value_info(n, helper.np_dtype_to_tensor_dtype(v.dtype), v.shape)
                for n, v in feeds.items()
            ],
            [ValueInfoProto(name=name) for name in outputs],
            [numpy_helper.from_array(self._weights[n], n) for n in read if n in self._weights],
        )
        model = helper.make_model(graph, opset_imports=self._opsets, ir_version=self._ir_version)
        made = _session(model, optimized=False).run(outputs, feeds)
        self._values.update(zip(outputs, made, strict=True))

    def _fit(self, node: NodeProto) -> None:
        """Bring the variation of a layer's channels near 1, and their means near 0 if it has a bias."""
        x, weight = self._values[node.input[0]], self._weights[node.input[1]]
        axis = _LAYERS[node.op_type] % x.ndim
        self._set(node.input[1], _blind_to_means(x, axis, weight, node))
        self._compute([node])
        z = self._values[node.output[0]]
        variation = _variation(z, axis)
        usual, seen = max(float(variation.mean()), 1e-6), z.size / variation.size
        variation = np.sqrt((seen * variation**2 + TRUST * usual**2) / (seen + TRUST))
        gain = self._rng.uniform(0.7, 1.3, variation.shape) * np.minimum(1 / variation, MOST)
        self._set(node.input[1], self._weights[node.input[1]] * _along(gain, weight.ndim, _outputs(node)))
        z = z * _along(gain, z.ndim, axis)
        if len(node.input) > 2 and node.input[2] in self._weights:
            mean = z.mean(tuple(a for a in range(z.ndim) if a != axis))
            shift = self._rng.normal(0, 0.3, mean.shape) - mean
            self._set(node.input[2], self._weights[node.input[2]] * gain + shift)
            z = z + _along(shift, z.ndim, axis)
        self._values[node.output[0]] = z.astype(np.float32)

    def _set(self, name: str, value: Array) -> None:
        self._weights[name] = value.astype(self._weights[name].dtype)


def _outputs(node: NodeProto) -> int:
    """The axis of a layer's output channels in its weight; that of its input channels is the other one of 0 and 1."""
    return 0 if node.op_type == "Conv" or _attributes(node).get("transB") else 1


def _blind_to_means(x: Array, axis: int, weight: Array, node: NodeProto) -> Array:
    """The weight without what it makes of the means of its inputs ``x`` over the samples.

    Behind rectifiers they dwarf the variation, and at borders no bias makes up for them. They span few directions
    among the channels; at most a third of all directions is given up.
    """
    w = np.moveaxis(weight, 1 - _outputs(node), -1)
    size = w.shape[-1]
    groups = x.shape[axis] // size
    mean = np.moveaxis(x.mean(0, keepdims=True), axis, 0).reshape(groups, size, -1)
    places = mean.shape[2]
    direction, root, _ = np.linalg.svd(mean / math.sqrt(places), full_matrices=False)
    usual = np.square(_variation(x, axis)).reshape(groups, 1, size).mean(2)
    by_chance = 4 * size / (len(x) * places)
    loud = root**2 > 0.5 * (1 + by_chance) * usual
    loud[:, size // 3 :] = False
    direction = direction * loud[:, None]
    rows = w.reshape(groups, -1, size)
    rows = rows - rows @ direction @ direction.swapaxes(1, 2)
    return np.moveaxis(rows.reshape(w.shape), -1, 1 - _outputs(node))


def _variation(z: Array, axis: int) -> Array:
    """Standard deviation over the samples, of each channel over its positions."""
    others = tuple(a for a in range(z.ndim) if a not in (0, axis))
    return np.asarray(np.sqrt(np.var(z, 0, keepdims=True).mean(others))).reshape(-1)


def _along(vector: Array, ndim: int, axis: int) -> Array:
    shape = [1] * ndim
    shape[axis] = -1
    return vector.reshape(shape)


# Models without kinks


def freeze(path: Path, candidates: Array) -> tuple[Array, ModelProto]:
    """An input, and a model that near it is the one at ``path``, without kinks.

    Each activation keeps the piece, and each maximum the element, that it takes at the input in onnxruntime. The
    derivatives of both models there are the same, but finite differences of this one may be as wide as its smooth
    parts allow, so that float32 suffices. A batch of several inputs near the chosen one runs too.

    Args:
        path: of a model with one input.
        candidates: inputs, of which the one (as a batch of 1) is chosen whose values keep furthest from the kinks:
            onnxruntime's optimizations move values by a few roundings, and across a kink they would tell.
    """
    model = onnx.load(str(path))
    constants = _constants(model)

    def constant(name: str) -> Array | None:
        return numpy_helper.to_array(constants[name]) if name in constants else None

    bent = [n for n in model.graph.node if n.op_type in ("MaxPool", "ReduceMax") or _pieces(n, constant)]
    asked = []
    for node in bent:
        asked.append(node.input[0])
        if node.op_type == "MaxPool":
            asked[-1] = f"{node.output[0]}:indices"
            node.output[1:] = asked[-1:]
    outputs = list(model.graph.output)
    model.graph.output.extend(ValueInfoProto(name=name) for name in dict.fromkeys(asked))
    session = _session(model, optimized=True)
    runs = [
        (x, session.run(asked, {_input(model).name: x}) if asked else [])
        for x in np.split(candidates, len(candidates))
    ]
    kinks = [[piece[0] for piece in _pieces(node, constant)[1:]] for node in bent]
    x, seen = max(runs, key=lambda run: min(map(_clearance, run[1], kinks), default=0))
    del model.graph.output[:]
    model.graph.output.extend(outputs)
    stand_ins = {
        node.output[0]: list(_frozen(node, value, constant, model))
        for node, value in zip(bent, seen, strict=True)
    }
    nodes = [new for node in model.graph.node for new in stand_ins.get(node.output[0], [node])]
    del model.graph.node[:]
    model.graph.node.extend(nodes)
    return x, model


def slopes(model: ModelProto, x: Array, tensors: Sequence[str], directions: Array) -> dict[str, Array]:
    """Derivatives of float tensors at ``x`` along each direction, by central five-point differences. float64

    Of all steps, each tensor gets the one that agrees best with half of it: curvature blurs wide ones, rounding
    narrow ones.

    Args:
        model: smooth around ``x``, as from `freeze`; with an open batch all directions run at once.
        x: an input, of batch 1.
        directions: (D, …), of order 1.

    Returns:
        (D, …) for each tensor.
    """
    probed = ModelProto()
    probed.CopyFrom(model)
    del probed.graph.output[:]
    probed.graph.output.extend(ValueInfoProto(name=name) for name in tensors)
    session = _session(probed, optimized=True)

    one_by_one = _input(model).type.tensor_type.shape.dim[0].dim_value
    parts = np.split(directions, len(directions)) if one_by_one else [directions]

    def at(step: float) -> list[Array]:
        inputs = [(x + step * part).astype(x.dtype) for part in parts]
        made = [session.run(list(tensors), {_input(model).name: x}) for x in inputs]
        return [np.concatenate(values).astype(float) for values in zip(*made, strict=True)]

    def differences(step: float) -> list[Array]:
        ahead = [at(k * step) for k in (1, -1, 2, -2)]
        return [(8 * (p - m) - (pp - mm)) / (12 * step) for p, m, pp, mm in zip(*ahead, strict=True)]

    best: dict[str, tuple[float, Array]] = {}
    with np.errstate(all="ignore"):  # steps far too wide may overflow
        wide = differences(STEPS[0])
        for step in STEPS[1:]:
            narrow = differences(step)
            for name, a, b in zip(tensors, wide, narrow, strict=True):
                gap = float(np.nan_to_num(np.linalg.norm(a - b) / np.linalg.norm(b), nan=np.inf))
                if name not in best or gap < best[name][0]:
                    best[name] = gap, b
            if all(gap < ENOUGH for gap, _ in best.values()):
                break
            wide = narrow
    return {name: slope for name, (_, slope) in best.items()}


def _clearance(values: Array, kinks: Sequence[float]) -> float:
    """Least distance to a kink, in standard deviations of the values."""
    finite = [kink for kink in kinks if math.isfinite(kink)]
    return min((float(np.abs(values - kink).min() / values.std()) for kink in finite), default=math.inf)


def _pieces(node: NodeProto, constant: Constant) -> tuple[tuple[float, float, Array | float, float], ...]:
    """From where to where, slope and offset of each straight piece of an activation; for HardSwish over its input."""
    attrs, most = _attributes(node), math.inf
    match node.op_type:
        case "Relu":
            return (-most, 0, 0, 0), (0, most, 1, 0)
        case "LeakyRelu":
            return (-most, 0, attrs.get("alpha", 0.01), 0), (0, most, 1, 0)
        case "PRelu":
            slope = constant(node.input[1])
            assert slope is not None
            return (-most, 0, slope, 0), (0, most, 1, 0)
        case "HardSwish":
            return (-most, -3, 0, 0), (-3, 3, 1 / 6, 0.5), (3, most, 0, 1)
        case "HardSigmoid":
            a, b = attrs.get("alpha", 0.2), attrs.get("beta", 0.5)
            return (-most, -b / a, 0, 0), (-b / a, (1 - b) / a, a, b), ((1 - b) / a, most, 0, 1)
        case "Clip":
            given = [constant(name) if name else None for name in node.input[1:]]
            low, high = (
                attrs.get(name, default) if value is None else float(value)
                for name, default, value in zip(
                    ("min", "max"), (-most, most), [*given, None, None], strict=False
                )
            )
            return (-most, low, 0, low), (low, high, 1, 0), (high, most, 0, high)
        case _:
            return ()


def _frozen(node: NodeProto, seen: Array, constant: Constant, model: ModelProto) -> Iterator[NodeProto]:
    """What stands for a kinked node whose input (for MaxPool: whose indices) was ``seen``."""
    p, out = node.input[0], node.output[0]

    def store(kind: str, value: Array) -> str:
        model.graph.initializer.append(numpy_helper.from_array(np.ascontiguousarray(value), f"{out}:{kind}"))
        return f"{out}:{kind}"

    if node.op_type == "MaxPool":
        yield helper.make_node("Reshape", [p, store("flat", np.array([0, -1]))], [f"{out}:row"])
        yield helper.make_node("Gather", [f"{out}:row", store("taken", seen[0])], [out], axis=1)
        return
    if node.op_type == "ReduceMax":
        attrs = _attributes(node)
        axes = attrs["axes"] if "axes" in attrs else constant(node.input[1])
        assert axes is not None and len(axes) == 1
        taken = np.zeros_like(seen)
        np.put_along_axis(taken, seen.argmax(axes[0], keepdims=True), 1, axes[0])
        yield helper.make_node("Mul", [p, store("taken", taken)], [f"{out}:sparse"])
        attrs["keepdims"] = attrs.get("keepdims", 1)
        names = [f"{out}:sparse", store("axes", np.array(axes))]
        yield helper.make_node("ReduceSum", names, [out], keepdims=attrs["keepdims"])
        return
    slope, offset = np.zeros_like(seen), np.zeros_like(seen)
    for low, high, a, b in _pieces(node, constant):
        here = (low < seen) & (seen <= high)
        slope = np.where(here, a, slope)
        offset = np.where(here, b, offset)
    squared = node.op_type == "HardSwish"
    line = f"{out}:line" if squared else out
    yield helper.make_node("Mul", [p, store("slope", slope.astype(seen.dtype))], [f"{out}:sloped"])
    yield helper.make_node("Add", [f"{out}:sloped", store("offset", offset.astype(seen.dtype))], [line])
    if squared:
        yield helper.make_node("Mul", [p, line], [out])
