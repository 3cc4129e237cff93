"""The onnx package's own tests of its operators, turned into tests of reverse rules.

A node test is a model, mostly of one node, with input values. Here it is evaluated in float64 by onnx's reference
evaluator, which knows nothing of onnxviz, and its reverse pass is run by the engine in float64 on values that the
same evaluator recorded. So nothing but the rules (and the geometry) is tested, to many digits.
"""

from __future__ import annotations

import warnings
import zlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cache, cached_property
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import ModelProto, TensorProto, helper, numpy_helper
from onnx.reference import ReferenceEvaluator

from onnxviz.model.graph import Graph, ModelFile
from onnxviz.model.normalize import normalize
from onnxviz.model.spans import whole
from onnxviz.reverse.engine import Recording, Units, check_path, decode_switches, plan, run
from onnxviz.reverse.methods import make_method
from onnxviz.reverse.rules import RULES

Array: TypeAlias = NDArray[Any]
Values: TypeAlias = dict[str, Array]

GRADIENT = make_method("gradient")
REAL = (TensorProto.FLOAT, TensorProto.FLOAT16, TensorProto.DOUBLE)

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
    """Names of the tests of operators with a rule that have a real input and a real output."""
    names = []
    for name, case in collected().items():
        graph = case.model.graph
        kinds = operators(case.model)
        tested = kinds & RULES.keys() if len(graph.node) == 1 else {"several"}
        if tested and any(map(is_real, graph.input)) and any(map(is_real, graph.output)):
            names.append(name)
    return names


@dataclass
class NodeTest:
    """One node test, ready to be differentiated. ``folder`` is where its model is written."""

    name: str
    folder: Path
    evaluator: Callable[[ModelProto], Callable[[Values], Values]] | None = None

    @cached_property
    def proto(self) -> ModelProto:
        """The test's model, every output that a rule may need named, in float64."""
        model = ModelProto()
        model.CopyFrom(collected()[self.name].model)
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
            if array.dtype.kind == "f":
                moved = self.rng.uniform(JITTER, 2 * JITTER, array.shape)
                array = np.where(np.isfinite(array), array.astype(np.float64) + moved, array)
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
    def sources(self) -> list[str]:
        """Inputs to differentiate by: real ones that some rule can carry a cotangent to."""
        open_ = set()
        for node in self.proto.graph.node:
            rule = RULES.get(node.op_type)
            open_.update(n for i, n in enumerate(node.input) if rule is None or rule.can_carry(i))
        return [n for n, v in self.inputs.items() if v.dtype.kind == "f" and v.size and n in open_]

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
        names = [o.name for o in model.graph.output]
        if self.evaluator is not None:
            return self.evaluator(model)
        evaluator = ReferenceEvaluator(model)

        def forward(x: Values) -> Values:
            with warnings.catch_warnings(), np.errstate(all="ignore"):
                warnings.simplefilter("ignore")
                found = evaluator.run(None, {**self.inputs, **x})
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
            node.output: decode_switches(node, self.recorded[node.outputs[1]], shapes[node.inputs[0]])
            for node in made.pools
        }
        return run(made, y, Recording(self.recorded, switches), Units.all_of(1), self.sources)


def dot(a: Mapping[str, Array], b: Mapping[str, Array]) -> float:
    return sum(float(np.vdot(a[name], b[name])) for name in a)


def norm(a: Mapping[str, Array]) -> float:
    return float(np.sqrt(dot(a, a)))


def slope(forward: Callable[[Values], Values], x: Values, d: Values) -> Values:
    """The derivative along ``d``, by the central five-point rule."""

    def ahead(steps: int) -> Values:
        return forward({name: x[name] + steps * STEP * d[name] for name in d})

    near, far = (ahead(1), ahead(-1)), (ahead(2), ahead(-2))
    return {
        name: (8 * (near[0][name] - near[1][name]) - (far[0][name] - far[1][name])) / (12 * STEP)
        for name in near[0]
    }


def random_error(test: NodeTest) -> tuple[float, float]:
    """(error, power) along a random direction: |⟨Jd, y⟩ − ⟨d, Jᵀy⟩| and |⟨Jd, y⟩|, both over ‖Jd‖·‖y‖.

    A rule that is wrong by a fraction f gives an error of f times the power.
    """
    rng = test.rng
    x = {name: test.inputs[name] for name in test.sources}
    d = {name: rng.uniform(-1, 1, value.shape) for name, value in x.items()}
    ahead = slope(test.forward, x, d)
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
            ahead = slope(test.forward, x, {name: d.reshape(value.shape)})
            columns.append(np.concatenate([ahead[n].ravel() for n in test.targets]))
    for target in test.targets:
        for k in range(test.recorded[target].size):
            y = {n: np.zeros(test.recorded[n].shape) for n in test.targets}
            y[target].ravel()[k] = 1
            back = test.pull_back(y)
            rows.append(np.concatenate([back[n].ravel() for n in x]))
    expected, found = np.array(columns).T, np.array(rows)
    return float(np.abs(expected - found).max() / max(np.abs(expected).max(), 1e-12))
