"""Every reverse rule on onnx's own node tests, against finite differences of onnx's reference evaluator."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from onnxviz.reverse.rules import RULES, Step
from onnxviz.reverse.rules.registry import Cotangents
from tests.reverse.node_tests import Array, NodeTest, collected, jacobian_error, random_error, with_rule

TOLERANCE = 1e-7
SMALL = 48
"""Inputs and outputs up to this many elements in all have their whole Jacobian compared."""

FINER = dict.fromkeys(
    ("test_acosh_example", "test_l2normalization_axis_0", "test_reduce_min_default_axes_keepdims_example"), 2e-5
)
"""Tests whose inputs lie near a branch point, a zero norm or a tie, with the step that stays clear of it."""

NOT_DIFFERENTIABLE: dict[str, str] = {}

NAMES = [name for name in with_rule() if name not in NOT_DIFFERENTIABLE]


@pytest.mark.parametrize("name", NAMES)
def test_the_rule_is_the_derivative(name: str, tmp_path: Path):
    test = NodeTest(name, tmp_path, **({"step": FINER[name]} if name in FINER else {}))
    test.check()
    error, power = random_error(test)
    assert error < TOLERANCE
    # So a tenth of a percent of the derivative would be noticed many times over.
    assert power > 1e-3
    cells = sum(test.inputs[n].size for n in test.sources), sum(test.recorded[n].size for n in test.targets)
    if max(cells) <= SMALL:
        assert jacobian_error(test) < 10 * TOLERANCE


def first_tests() -> dict[str, str]:
    """For each operator the first test that is of it alone."""
    found: dict[str, str] = {}
    for name in NAMES:
        nodes = collected()[name].model.graph.node
        if len(nodes) == 1:
            found.setdefault(nodes[0].op_type, name)
    return found


@pytest.mark.parametrize("op", first_tests())
def test_a_rule_off_by_a_tenth_of_a_percent_fails(op: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    exact = RULES[op]

    def pull_back(step: Step, g: Array) -> Cotangents:
        return tuple(None if a is None else a * 1.001 for a in exact.pull_back(step, g))

    monkeypatch.setitem(RULES, op, replace(exact, pull_back=pull_back))
    name = first_tests()[op]
    test = NodeTest(name, tmp_path, **({"step": FINER[name]} if name in FINER else {}))
    assert random_error(test)[0] > 5 * TOLERANCE
