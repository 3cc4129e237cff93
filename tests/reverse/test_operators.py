"""The table of operators in `onnxviz/reverse/OPERATORS.md` is what the registry says."""

from __future__ import annotations

from pathlib import Path

import onnx
import pytest

from onnxviz.reverse import operators
from onnxviz.reverse.rules import RULES

PAGE = Path(operators.__file__).with_name("OPERATORS.md")


@pytest.mark.skipif(
    onnx.defs.onnx_opset_version() < operators.NEWEST,
    reason="an older onnx does not know all versions listed",
)
def test_the_page_is_up_to_date():
    assert PAGE.read_text(encoding="utf-8") == operators.markdown(), (
        "write it anew: python -m onnxviz.reverse.operators > onnxviz/reverse/OPERATORS.md"
    )


def test_every_rule_is_in_the_table_with_words():
    table = operators.table()
    assert [one.op for one in table] == sorted(RULES)
    assert all(one.rule.endswith(".") and "ONNX " in one.rule for one in table)
    assert len(table) >= 110
