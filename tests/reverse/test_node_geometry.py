"""What `onnxviz.model.pulls` says of each operator, on onnx's node tests: what lies outside a span plays no part."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from onnxviz.model.pulls import PULLS, pull
from onnxviz.model.spans import Span, Spans
from onnxviz.reverse.rules import RULES
from tests.reverse.node_tests import Array, NodeTest, collected
from tests.reverse.test_node_tests import NAMES

SINGLE = [name for name in NAMES if len(collected()[name].model.graph.node) == 1]
POSITIONS = 4


MIXING = {"DynamicQuantizeLinear", "MaxRoiPool", "OneHot", "RoiAlign"}
"""Operators whose output has no axis that moves with one of the input's: each sees everything."""


def test_every_operator_with_a_rule_has_a_geometry():
    assert set(RULES) - set(PULLS) == MIXING


def region(spans: Spans, at: tuple[int, ...], shape: tuple[int, ...]) -> Array:
    """Where the spans of the unit ``at`` lie in a tensor: True inside."""
    inside = np.ones(shape, bool)
    for axis, span in enumerate(spans):
        begin = span.b + (0 if span.coord is None else span.a * at[span.coord])
        places = np.arange(shape[axis])
        one = (places >= begin) & (places < begin + span.size)
        inside &= one.reshape([-1 if k == axis else 1 for k in range(len(shape))])
    return inside


@pytest.mark.parametrize("name", SINGLE)
def test_what_lies_outside_plays_no_part(name: str, tmp_path: Path):
    test = NodeTest(name, tmp_path)
    (node,) = [n for n in test.graph.nodes if n.output in test.recorded]
    shapes = {key: value.shape for key, value in test.recorded.items()}
    for target in test.targets:
        index = node.outputs.index(target)
        shape = shapes[target]
        pulled = pull(node, index, tuple(Span(1, 0, 1, axis) for axis in range(len(shape))), shapes)
        before = test.recorded[target]
        for _ in range(POSITIONS):
            at = tuple(int(test.rng.integers(n)) for n in shape)
            changed = {}
            for i, source in enumerate(node.inputs):
                if source in test.sources:
                    inside = region(pulled.inputs[i], at, shapes[source])
                    other = test.inputs[source] + test.rng.uniform(0.01, 0.03, shapes[source])
                    changed[source] = np.where(inside, test.inputs[source], other)
            after = test.forward(changed)[target]
            kept = region(pulled.output, at, shape)
            np.testing.assert_array_equal(after[kept], before[kept].astype(np.float64))
