"""axe-core finds no fault in any kind of page, light or dark, wide or narrow."""

from __future__ import annotations

from typing import Any

import pytest
from axe_playwright_python.sync_playwright import Axe

from .visitor import Rendered, kinds

# axe would ask for the style sheets once more, which a page off the disk may not.
OPTIONS = {"resultTypes": ["violations"], "preload": False}


def faults(page: Any) -> list[str]:
    """What axe finds, of any impact: its rules on WCAG and its best practices."""
    return [
        f"{fault['impact']}: {fault['id']}: {node['html']}"
        for fault in Axe().run(page, options=OPTIONS).response["violations"]
        for node in fault["nodes"]
    ]


@pytest.mark.parametrize("name", ["report", "hostile"])
@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [360, 1280])
def test_axe_finds_no_fault(
    visit: Any,
    request: pytest.FixtureRequest,
    name: str,
    scheme: str,
    width: int,
) -> None:
    visitor = visit(viewport={"width": width, "height": 800}, color_scheme=scheme)
    for path in kinds(request.getfixturevalue(name)):
        page = visitor.open(path)
        assert faults(page) == [], path
    page.keyboard.press("?")
    assert page.locator("#help").is_visible()
    assert faults(page) == []


@pytest.mark.parametrize(
    ("harm", "rule"),
    [
        ("document.images[0].removeAttribute('alt')", "critical: image-alt"),
        ("document.querySelector('.wall a').textContent = ''", "serious: link-name"),
        ("document.querySelector('.hint').style.color = '#ccc'", "serious: color-contrast"),
        ("document.documentElement.lang = ''", "serious: html-has-lang"),
    ],
)
def test_axe_finds_what_is_broken(visit: Any, report: Rendered, harm: str, rule: str) -> None:
    page = visit(color_scheme="light").open(kinds(report)[1])
    page.evaluate(harm)
    assert any(fault.startswith(rule) for fault in faults(page))
