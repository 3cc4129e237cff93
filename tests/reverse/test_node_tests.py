"""Every reverse rule on onnx's own node tests, against finite differences of onnx's reference evaluator."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.reverse.node_tests import NodeTest, jacobian_error, random_error, with_rule

TOLERANCE = 1e-7
SMALL = 48

every_test = pytest.mark.parametrize("name", with_rule())


@every_test
def test_the_rule_is_the_derivative(name: str, tmp_path: Path):
    test = NodeTest(name, tmp_path)
    test.check()
    error, power = random_error(test)
    assert error < TOLERANCE
    assert power > 1e-3
    cells = sum(test.inputs[n].size for n in test.sources), sum(test.recorded[n].size for n in test.targets)
    if max(cells) <= SMALL:
        assert jacobian_error(test) < 10 * TOLERANCE
