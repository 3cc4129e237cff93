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

STEPS = {
    **dict.fromkeys(("test_acosh_example", "test_l2normalization_axis_0"), 2e-5),
    **dict.fromkeys(("test_reduce_min_default_axes_keepdims_example", "test_scatternd_min"), 1e-6),
    **dict.fromkeys((name for name in collected() if name.startswith("test_maxpool_")), 1e-6),
    "test_simple_rnn_bidirectional": 2e-3,
}
"""Steps of their own for tests near a branch point, a zero norm or a tie, and for a saturated network (a wider one)."""

_NO_ELEMENT = "an empty tensor: there is nothing to differentiate by, or to ask for"
_NOT_FINITE = "its outputs are infinite or not numbers, and have no differences"
_RANDOM = "it is random; the rule refuses it"
NOT_DIFFERENTIABLE = {
    **dict.fromkeys((name for name in collected() if "_empty_set" in name), _NO_ELEMENT),
    "test_reshape_allowzero_reordered": _NO_ELEMENT,
    "test_slice_start_out_of_bounds": _NO_ELEMENT,
    "test_split_zero_size_splits_opset13": _NO_ELEMENT,
    "test_split_zero_size_splits_opset18": _NO_ELEMENT,
    "test_dequantizelinear_e5m2": "its only real input is the scale, and its codes are no whole numbers",
    **dict.fromkeys((f"test_mod_float_edge_cases_fmod_0_float{bits}" for bits in (16, 32, 64)), _NOT_FINITE),
    **dict.fromkeys(
        (
            f"test_attention_4d_with_past_and_present_qk_matmul_bias_{rank}d_mask_causal{form}"
            for rank in (3, 4)
            for form in ("", "_expanded")
        ),
        _NOT_FINITE,
    ),
    "test_causal_conv_with_state_kernel_size_one_expanded": _NO_ELEMENT,
    **dict.fromkeys((name for name in collected() if name.startswith("test_training_dropout")), _RANDOM),
}
"""Tests of operators with a rule that finite differences say nothing of, and why."""

_DEFECTIVE = "onnx's evaluator is not what the operator's text says: "
NOT_DIFFERENTIABLE |= {
    "test_maxunpool_export_with_output_shape": f"{_DEFECTIVE}it reads the indices in the inferred shape",
    "test_resize_downsample_scales_linear_align_corners": f"{_DEFECTIVE}the output's length is a fraction",
    "test_resize_downsample_scales_cubic_align_corners": f"{_DEFECTIVE}the output's length is a fraction",
    **dict.fromkeys(
        (f"test_dynamicquantizelinear{form}" for form in ("", "_max_adjusted", "_min_adjusted")),
        "its real output is the scale, which is taken for constant",
    ),
}

NAMES = [name for name in with_rule() if name not in NOT_DIFFERENTIABLE]


def test_the_exceptions_are_tests_of_operators_with_a_rule():
    """An exception that no longer is one is to be taken out."""
    assert set(STEPS) - set(with_rule()) <= {n for n in STEPS if not NodeTest(n, Path()).sources}
    assert {n for n, why in NOT_DIFFERENTIABLE.items() if why != _NO_ELEMENT} <= set(with_rule())


@pytest.mark.parametrize("name", NAMES)
def test_the_rule_is_the_derivative(name: str, tmp_path: Path):
    test = NodeTest(name, tmp_path, **({"step": STEPS[name]} if name in STEPS else {}))
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
    test = NodeTest(name, tmp_path, **({"step": STEPS[name]} if name in STEPS else {}))
    assert random_error(test)[0] > 5 * TOLERANCE
