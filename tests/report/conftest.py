"""A browser for the report's pages, where there is one."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from onnxviz.report.data import ReportData
from onnxviz.report.render import write_report

from .fixture import make_report

BROWSERS = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")


@pytest.fixture(scope="session")
def report(tmp_path_factory: pytest.TempPathFactory) -> tuple[ReportData, Path]:
    """Return a small report, rendered: its data and its folder."""
    out = tmp_path_factory.mktemp("report")
    data = make_report(out, layers=3, channels=8)
    write_report(data, out)
    return data, out


@pytest.fixture(scope="session")
def hostile(tmp_path_factory: pytest.TempPathFactory) -> tuple[ReportData, Path]:
    """Return a report whose every name tries to break out of the page."""
    out = tmp_path_factory.mktemp("hostile 100%#")
    data = make_report(out, layers=3, channels=8, hostile=True)
    write_report(data, out)
    return data, out


@pytest.fixture(scope="session")
def browser() -> Iterator[Any]:
    """Start headless Chromium; skip without one, unless this is CI."""
    executable = os.environ.get("ONNXVIZ_CHROMIUM") or next(filter(None, map(shutil.which, BROWSERS)), None)
    if executable is None:
        reason = f"no browser: none of {', '.join(BROWSERS)} on PATH, and ONNXVIZ_CHROMIUM is not set"
        if os.environ.get("CI"):
            pytest.fail(reason)
        pytest.skip(reason)
    from playwright.sync_api import sync_playwright

    flags = ["--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run"]
    flags += ["--disable-background-networking", "--disable-component-update", "--disable-sync"]
    with sync_playwright() as playwright:
        chromium = playwright.chromium.launch(executable_path=executable, args=flags)
        yield chromium
        chromium.close()
