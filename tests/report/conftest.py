"""A browser for the report's pages, where there is one."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from onnxviz.report.data import ReportData
from onnxviz.report.render import write_report

from .chromium import NO_BROWSER, find_browser, start_browser
from .fixture import make_report
from .visitor import Visitor


@pytest.fixture(scope="session")
def report(tmp_path_factory: pytest.TempPathFactory) -> tuple[ReportData, Path]:
    """Return a small report, rendered: its data and its folder."""
    out = tmp_path_factory.mktemp("report")
    data = make_report(out, layers=3, channels=8)
    write_report(data, out)
    return data, out


COMPARED = (("guided", False), ("gradient", False), ("deconvnet", True), ("guided", True), ("gradient", True))


@pytest.fixture(scope="session")
def comparing(tmp_path_factory: pytest.TempPathFactory) -> tuple[ReportData, Path]:
    """Return a report that compares three methods, each with shuffled weights too."""
    out = tmp_path_factory.mktemp("comparing")
    data = make_report(out, layers=2, channels=8, compared=COMPARED)
    write_report(data, out)
    return data, out


@pytest.fixture(scope="session")
def hostile(tmp_path_factory: pytest.TempPathFactory) -> tuple[ReportData, Path]:
    """Return a report whose every name tries to break out of the page."""
    out = tmp_path_factory.mktemp("hostile 100%#")
    data = make_report(out, layers=3, channels=8, hostile=True, compared=COMPARED)
    write_report(data, out)
    return data, out


@pytest.fixture(scope="session")
def browser() -> Iterator[Any]:
    """Start headless Chromium; skip without one, unless this is CI."""
    executable = find_browser()
    if executable is None:
        if os.environ.get("CI"):
            pytest.fail(NO_BROWSER)
        pytest.skip(NO_BROWSER)
    with start_browser(executable) as chromium:
        yield chromium


@pytest.fixture
def visit(browser: Any) -> Iterator[Any]:
    visitors: list[Visitor] = []

    def make(**options: Any) -> Visitor:
        visitors.append(Visitor(browser, **options))
        return visitors[-1]

    yield make
    for visitor in visitors:
        visitor.context.close()
        assert visitor.faults == []
