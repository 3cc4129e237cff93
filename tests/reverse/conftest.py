from __future__ import annotations

import itertools
from collections.abc import Callable
from pathlib import Path

import onnx
import pytest

import onnxviz
from onnxviz.network import Network

Opener = Callable[[onnx.ModelProto], Network]


@pytest.fixture
def opened(tmp_path: Path, provider: str) -> Opener:
    """Opens a model as a user would, from a file."""
    count = itertools.count()

    def open_model(model: onnx.ModelProto) -> Network:
        path = tmp_path / f"model{next(count)}.onnx"
        onnx.save(model, str(path))
        return onnxviz.load(path, provider=provider)

    return open_model


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """How many of onnx's node tests the rules have passed, and of how many operators."""
    from onnxviz.reverse.rules import RULES

    found = {
        outcome: sum(
            report.when == "call" and "test_the_rule_is_the_derivative[" in report.nodeid
            for report in terminalreporter.stats.get(outcome, ())
        )
        for outcome in ("passed", "failed")
    }
    if any(found.values()):
        terminalreporter.write_line(
            f"onnx node tests: {found['passed']} passed, {found['failed']} failed; "
            f"{len(RULES)} operators have a reverse rule"
        )
