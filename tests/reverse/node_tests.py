"""The onnx package's own tests of its operators, turned into tests of reverse rules.

A node test is a model, mostly of one node, with input values. Here it is evaluated in float64 by onnx's reference
evaluator, which knows nothing of onnxviz, and its reverse pass is run by the engine in float64 on values that the
same evaluator recorded. So nothing but the rules (and the geometry) is tested, to many digits.
"""

from __future__ import annotations

import math
import warnings
import zlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cache, cached_property
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
import onnx
import onnxruntime
from numpy.typing import NDArray
from onnx import ModelProto, TensorProto, helper, numpy_helper
from onnx.reference import ReferenceEvaluator
from onnx.reference.op_run import OpRun
from onnx.reference.ops import op_resize

from onnxviz.model.graph import Graph, ModelFile
from onnxviz.model.normalize import normalize
from onnxviz.model.spans import whole
from onnxviz.reverse.engine import Recording, Units, check_path, plan, pool_switches, run
from onnxviz.reverse.methods import make_method
from onnxviz.reverse.rules import RULES, STOPS

Array: TypeAlias = NDArray[Any]
Values: TypeAlias = dict[str, Array]

GRADIENT = make_method("gradient")
REAL = (TensorProto.FLOAT, TensorProto.FLOAT16, TensorProto.DOUBLE)

_FLOATS = (np.float16, np.float32, np.float64)

STEP = 2e-4
"""Of the finite differences, along directions within ±1."""
JITTER = 2e-3
"""Inputs are moved up by this much to twice as much, to be off kinks and ties; differences reach 2·STEP."""


@cache
def collected() -> Mapping[str, Any]:
    """All of onnx's node tests by name."""
    from onnx.backend.test.case.node import collect_testcases

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return {case.name: case for case in collect_testcases(None)}


def operators(model: ModelProto) -> set[str]:
    """Of the default domain; others with their domain."""
    return {f"{n.domain}.{n.op_type}" if n.domain else n.op_type for n in model.graph.node}


def is_real(value: onnx.ValueInfoProto) -> bool:
    return value.type.HasField("tensor_type") and value.type.tensor_type.elem_type in REAL


def with_rule() -> list[str]:
    """Names of the tests of operators with a rule whose values are real numbers: of an input, and of an output.

    Tests of functions (``…_expanded``) are of several operators; all that change with a real input need a rule.
    """
    names = []
    for name, case in collected().items():
        graph = case.model.graph
        if not any(map(is_real, graph.output)):
            continue
        real = {info.name for info in graph.input if is_real(info)}
        if len(graph.node) == 1:
            (node,) = graph.node
            rule = RULES.get(node.op_type) if node.domain == "" else None
            if rule and any(n in real for i, n in enumerate(node.input) if rule.can_carry(i)):
                names.append(name)
        elif real and _on_the_way(graph, real):
            names.append(name)
    return names


def _on_the_way(graph: onnx.GraphProto, real: set[str]) -> bool:
    """Whether every operator between real inputs and the outputs has a rule, and there is a way at all."""
    reached, nodes = set(real), []
    for node in graph.node:
        rule = RULES.get(node.op_type) if node.domain == "" else None
        if node.domain == "" and node.op_type in STOPS:
            continue
        if any(n in reached for i, n in enumerate(node.input) if rule is None or rule.can_carry(i)):
            reached.update(node.output)
            nodes.append(node)
    needed = {info.name for info in graph.output if is_real(info)} & reached
    ended = bool(needed)
    for node in reversed(nodes):
        if needed.isdisjoint(node.output):
            continue
        if node.domain or node.op_type not in RULES:
            return False
        needed.update(node.input)
    return ended


class Erf(OpRun):  # type: ignore[misc]
    """onnx's own gives float32 whatever it gets."""

    op_domain = ""

    def _run(self, x: Array) -> tuple[Array]:
        return (np.array([math.erf(v) for v in x.ravel()], np.float64).reshape(x.shape),)


class Resize(OpRun):  # type: ignore[misc]
    """onnx's own, whose cubic coefficients are in float32 as the attribute is."""

    op_domain = ""

    def _run(self, *inputs: Array | None, cubic_coeff_a: float | None = None, **attrs: Any) -> tuple[Array]:
        coefficient = None if cubic_coeff_a is None else float(cubic_coeff_a)
        return tuple(
            op_resize.Resize(self.onnx_node, self.run_params)._run(
                *inputs, cubic_coeff_a=coefficient, **attrs
            )
        )


class Scatter(OpRun):  # type: ignore[misc]
    """The first name of ScatterElements, which onnx's evaluator does not have."""

    op_domain = ""

    def _run(self, data: Array, indices: Array, updates: Array, axis: int = 0) -> tuple[Array]:
        found = data.copy()
        np.put_along_axis(found, indices, updates, axis or 0)
        return (found,)


_EVALUATED_AS_FUNCTIONS = ("Gelu", "GroupNormalization", "MeanVarianceNormalization")
"""Operators that onnx evaluates partly in float32; the same test's ``_expanded`` form is in double throughout."""


_EVALUATED_BY_ONNXRUNTIME = ("AffineGrid", "DeformConv", "GridSample", "MaxPool")
"""Operators that onnx's evaluator computes partly in float32, or (MaxPool) whose indices it gets wrong under padding;
onnxruntime computes them in double."""


def in_double(model: ModelProto) -> ModelProto:
    """The model with double where it says float: types of inputs and outputs, types to cast to, and constants."""
    widened = ModelProto()
    widened.CopyFrom(model)
    for info in (*widened.graph.input, *widened.graph.output):
        if is_real(info):
            info.type.tensor_type.elem_type = TensorProto.DOUBLE
    for node in widened.graph.node:
        for attr in node.attribute:
            if attr.name in ("to", "stash_type", "dtype", "softmax_precision") and attr.i in REAL:
                attr.i = TensorProto.DOUBLE
            if attr.type == onnx.AttributeProto.TENSOR and attr.t.data_type in REAL:
                values = numpy_helper.to_array(attr.t).astype(np.float64)
                attr.t.CopyFrom(numpy_helper.from_array(values, attr.t.name))
        if node.op_type == "Constant" and node.attribute[0].name in ("value_float", "value_floats"):
            stated = np.asarray(helper.get_attribute_value(node.attribute[0]), np.float64)
            del node.attribute[:]
            node.attribute.append(helper.make_attribute("value", numpy_helper.from_array(stated)))
    widened.ir_version = min(widened.ir_version, 11)
    return widened


@dataclass
class NodeTest:
    """One node test, ready to be differentiated. ``folder`` is where its model is written."""

    name: str
    folder: Path
    step: float = STEP

    @cached_property
    def proto(self) -> ModelProto:
        """The test's model, every output that a rule may need named, in float64."""
        model = in_double(collected()[self.name].model)
        for number, node in enumerate(model.graph.node):
            if node.op_type == "MaxPool" and len(node.output) == 1:
                node.output.append(f"indices{number}")
                info = helper.make_tensor_value_info(f"indices{number}", TensorProto.INT64, None)
                model.graph.output.append(info)
        return model

    @cached_property
    def rng(self) -> np.random.Generator:
        return np.random.default_rng(zlib.crc32(self.name.encode()))

    @cached_property
    def inputs(self) -> Values:
        """The test's own inputs, the real ones in float64 and moved off kinks."""
        graph = self.proto.graph
        fed = [v for v in graph.input if v.name not in {t.name for t in graph.initializer}]
        given = collected()[self.name].data_sets[0][0]
        values = {}
        for info, value in zip(fed, given, strict=False):
            array = np.asarray(numpy_helper.to_array(value) if isinstance(value, TensorProto) else value)
            if array.dtype in _FLOATS and info.name in self._differentiable:
                array = np.where(np.isfinite(array), array.astype(np.float64), 1)
                array = array + self.rng.uniform(JITTER, 2 * JITTER, array.shape)
            elif array.dtype in _FLOATS:
                array = array.astype(np.float64)
            values[info.name] = array
        return values

    @cached_property
    def model(self) -> ModelFile:
        """The same model for onnxviz: what is no real number, or what no rule differentiates, is constant."""
        model = ModelProto()
        model.CopyFrom(self.proto)
        graph = model.graph
        for info in [i for i in graph.input if i.name in self.inputs and i.name not in self.sources]:
            graph.input.remove(info)
            graph.initializer.append(numpy_helper.from_array(self.inputs[info.name], info.name))
        path = self.folder / f"{self.name}.onnx"
        onnx.save(model, str(path))
        return ModelFile(path)

    @cached_property
    def _differentiable(self) -> set[str]:
        """Inputs of nodes that can carry a cotangent."""
        found = set()
        for node in self.proto.graph.node:
            rule = RULES.get(node.op_type)
            found.update(n for i, n in enumerate(node.input) if rule is None or rule.can_carry(i))
        return found

    @cached_property
    def sources(self) -> list[str]:
        """Inputs to differentiate by: real ones that some rule can carry a cotangent to."""
        return [
            n for n, v in self.inputs.items() if v.dtype in _FLOATS and v.size and n in self._differentiable
        ]

    @cached_property
    def graph(self) -> Graph:
        return normalize(self.model.graph, self.model.constants, self.model.opset)

    @cached_property
    def _all_outputs(self) -> Callable[[Values], Values]:
        """Values of every tensor, for values of the sources."""
        model = ModelProto()
        model.CopyFrom(self.proto)
        known = {o.name for o in model.graph.output}
        for node in model.graph.node:
            for name in node.output:
                if name and name not in known:
                    model.graph.output.append(onnx.ValueInfoProto(name=name))
                    known.add(name)
        if len(model.graph.node) == 1 and model.graph.node[0].op_type in _EVALUATED_AS_FUNCTIONS:
            model = in_double(collected()[f"{self.name}_expanded"].model)
        names = [o.name for o in model.graph.output]
        evaluate: Callable[[None, Values], list[Any]]
        if operators(model) <= set(_EVALUATED_BY_ONNXRUNTIME):
            evaluate = onnxruntime.InferenceSession(
                model.SerializeToString(), providers=["CPUExecutionProvider"]
            ).run
        else:
            evaluate = ReferenceEvaluator(model, new_ops=[Erf, Resize, Scatter]).run

        def forward(x: Values) -> Values:
            with warnings.catch_warnings(), np.errstate(all="ignore"):
                warnings.simplefilter("ignore")
                found = evaluate(None, {**self.inputs, **x})
            return {n: np.asarray(v) for n, v in zip(names, found, strict=True) if v is not None}

        return forward

    @cached_property
    def recorded(self) -> Values:
        return {**self.inputs, **self._all_outputs({})}

    @cached_property
    def targets(self) -> list[str]:
        """Real outputs that have a rule."""
        found = []
        for info in self.proto.graph.output:
            node = self.graph.producer.get(info.name)
            rule = GRADIENT.rule(node) if node else None
            real = is_real(info) and self.recorded[info.name].dtype.kind == "f"
            if real and node and (rule is None or rule.carries(node.outputs.index(info.name))):
                found.append(info.name)
        return found

    def check(self) -> None:
        """See `check_path`."""
        check_path(self.graph, self.model.constants, self.sources, self.targets, GRADIENT)

    def forward(self, x: Values) -> Values:
        """Values of the targets in float64."""
        found = self._all_outputs(x)
        return {name: found[name].astype(np.float64) for name in self.targets}

    def pull_back(self, y: Values) -> Values:
        """Cotangents of the sources for cotangents of the targets."""
        shapes = {name: value.shape for name, value in self.recorded.items()}
        spans = {name: whole(shapes[name]) for name in self.targets}
        constants = self.model.constants
        shapes |= {n: constants[n].shape for n in constants}
        made = plan(self.graph, constants, shapes, self.sources, spans, GRADIENT, batch=None)
        switches = {
            node.output: pool_switches(node, self.recorded[node.inputs[0]], self.recorded[node.output])
            for node in made.pools
        }
        return run(made, y, Recording(self.recorded, switches), Units.all_of(1), self.sources)


def dot(a: Mapping[str, Array], b: Mapping[str, Array]) -> float:
    return sum(float(np.vdot(a[name], b[name])) for name in a)


def norm(a: Mapping[str, Array]) -> float:
    return float(np.sqrt(dot(a, a)))


def slope(test: NodeTest, d: Values) -> Values:
    """The derivative along ``d``, by the central five-point rule."""

    def ahead(steps: int) -> Values:
        return test.forward({name: test.inputs[name] + steps * test.step * d[name] for name in d})

    near, far = (ahead(1), ahead(-1)), (ahead(2), ahead(-2))
    return {
        name: (8 * (near[0][name] - near[1][name]) - (far[0][name] - far[1][name])) / (12 * test.step)
        for name in near[0]
    }


def random_error(test: NodeTest) -> tuple[float, float]:
    """(error, power) along a random direction: |⟨Jd, y⟩ − ⟨d, Jᵀy⟩| and |⟨Jd, y⟩|, both over ‖Jd‖·‖y‖.

    A rule that is wrong by a fraction f gives an error of f times the power.
    """
    rng = test.rng
    d = {name: rng.uniform(-1, 1, test.inputs[name].shape) for name in test.sources}
    ahead = slope(test, d)
    y = {
        name: np.asarray(v / max(np.sqrt(np.mean(v**2)), 1e-30) + rng.standard_normal(v.shape))
        for name, v in ahead.items()
    }
    scale = max(norm(ahead) * norm(y), 1e-12)
    return abs(dot(ahead, y) - dot(d, test.pull_back(y))) / scale, abs(dot(ahead, y)) / scale


def jacobian_error(test: NodeTest) -> float:
    """The largest difference between the Jacobians, over the largest entry."""
    x = {name: test.inputs[name] for name in test.sources}
    columns, rows = [], []
    for name, value in x.items():
        for k in range(value.size):
            d = np.zeros(value.size)
            d[k] = 1
            ahead = slope(test, {name: d.reshape(value.shape)})
            columns.append(np.concatenate([ahead[n].ravel() for n in test.targets]))
    for target in test.targets:
        for k in range(test.recorded[target].size):
            y = {n: np.zeros(test.recorded[n].shape) for n in test.targets}
            y[target].ravel()[k] = 1
            back = test.pull_back(y)
            rows.append(np.concatenate([back[n].ravel() for n in x]))
    expected, found = np.array(columns).T, np.array(rows)
    return float(np.abs(expected - found).max() / max(np.abs(expected).max(), 1e-12))
