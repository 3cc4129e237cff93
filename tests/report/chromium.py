"""Headless Chromium, where there is one."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

__all__ = ["NO_BROWSER", "find_browser", "start_browser"]

_NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")
_FLAGS = (
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
)
NO_BROWSER = f"no browser: none of {', '.join(_NAMES)} on PATH, and ONNXVIZ_CHROMIUM is not set"


def find_browser() -> str | None:
    """The executable: what ONNXVIZ_CHROMIUM names, or a usual name on the path."""
    return os.environ.get("ONNXVIZ_CHROMIUM") or next(filter(None, map(shutil.which, _NAMES)), None)


@contextmanager
def start_browser(executable: str) -> Iterator[Any]:
    """A running browser, as Playwright has it."""
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        chromium = playwright.chromium.launch(executable_path=executable, args=list(_FLAGS))
        yield chromium
        chromium.close()
