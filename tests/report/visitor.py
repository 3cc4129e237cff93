"""Who opens the report's pages in the tests, and one page of each kind to open."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from onnxviz.report.data import ReportData

__all__ = ["Rendered", "Visitor", "kinds"]

Rendered = tuple[ReportData, Path]


class Visitor:
    """Opens pages and remembers what went wrong."""

    def __init__(self, browser: Any, **options: Any) -> None:
        self.context = browser.new_context(**options)
        self.page = self.context.new_page()
        self.faults: list[str] = []
        self.page.on("console", lambda message: self.faults.append(message.text))
        self.page.on("pageerror", lambda error: self.faults.append(str(error)))
        self.page.on("dialog", lambda dialog: (self.faults.append(dialog.message), dialog.dismiss()))
        self.context.on("request", self._check)
        self.page.on("requestfailed", self._failed)

    def _check(self, request: Any) -> None:
        if not request.url.startswith(("file:", "data:,")):
            self.faults.append(request.url)

    def _failed(self, request: Any) -> None:
        if request.failure != "net::ERR_ABORTED":  # a page left while its pictures were loading
            self.faults.append(f"{request.url}: {request.failure}")

    def open(self, path: Path, fragment: str = "") -> Any:
        self.page.goto(path.as_uri() + fragment)
        self.page.wait_for_load_state("load")
        return self.page


def kinds(rendered: Rendered) -> list[Path]:
    """One page of each kind."""
    data, out = rendered
    folder = out / "layers" / data.layers[1].slug
    names = ["index.html", "all.html", "c0001.html", "c0005.html"]
    if data.provenance.compared:
        names.append("compare.html")
    return [out / "index.html", *(folder / name for name in names)]
