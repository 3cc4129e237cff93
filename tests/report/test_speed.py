"""A layer of 2,048 channels: nothing far from the screen is fetched, decoded or laid out. `measure` has the times."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from onnxviz.report.render import write_report

from .fixture import make_wall

CHANNELS = 2048
NEAR = 60  # cards on the screen and some screens around it
LAID_OUT = """() => Array.from(document.querySelectorAll("#wall img"))
    .filter((image) => image.checkVisibility({ contentVisibilityAuto: true })).length"""
ON_SCREEN = """() => Array.from(document.querySelectorAll("#wall > li"))
    .filter((card) => card.getBoundingClientRect().top < innerHeight).length"""
SET = """([selector, value, event]) => new Promise((done) => {
    const field = document.querySelector(selector);
    field.value = value;
    field.dispatchEvent(new Event(event));
    requestAnimationFrame(() => requestAnimationFrame(done));
})"""


@pytest.fixture(scope="module")
def wall(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("wall")
    data = make_wall(out, CHANNELS)
    write_report(data, out)
    return out / "layers" / data.layers[0].slug / "index.html"


@pytest.fixture
def opened(visit: Any, wall: Path) -> tuple[Any, list[str]]:
    """The page, and the pictures that it asks for."""
    visitor = visit(viewport={"width": 1280, "height": 800})
    asked: list[str] = []
    visitor.page.on("request", lambda request: asked.append(request.url) if "wall-" in request.url else None)
    visitor.page.add_init_script(
        "window.long = []; new PerformanceObserver((list) => long.push(...list.getEntries()"
        ".map((entry) => entry.duration))).observe({ type: 'longtask', buffered: true });"
    )
    page = visitor.open(wall)
    page.wait_for_timeout(500)
    return page, asked


def test_pictures_far_away_are_not_asked_for(opened: tuple[Any, list[str]]) -> None:
    page, asked = opened
    assert page.locator("#wall img").count() == CHANNELS
    # Those on the screen, and some below it, so that readers who scroll see no empty cards.
    on_screen = page.evaluate(ON_SCREEN)
    assert 1 <= on_screen < len(asked) <= NEAR
    assert on_screen + 3 <= page.evaluate(LAID_OUT) <= NEAR
    before = len(asked)
    page.evaluate("scrollTo({ top: document.body.scrollHeight / 2, behavior: 'instant' })")
    page.wait_for_timeout(500)
    assert 3 <= len(asked) - before <= 2 * NEAR
    assert 3 <= page.evaluate(LAID_OUT) <= 2 * NEAR


def test_the_page_has_its_height_before_its_cards_are_laid_out(opened: tuple[Any, list[str]]) -> None:
    page, _ = opened
    height = page.evaluate("document.body.scrollHeight")
    shown = page.evaluate(
        """() => {
            const cards = Array.from(document.querySelectorAll("#wall a"));
            for (const card of cards) card.style.contentVisibility = "visible";
            return [document.body.scrollHeight, cards.every((card) => card.scrollHeight <= card.clientHeight)];
        }"""
    )
    assert shown == [height, True]


def test_filtering_and_sorting_lay_out_no_more_than_what_shows(opened: tuple[Any, list[str]]) -> None:
    page, _ = opened
    session = page.context.new_cdp_session(page)
    session.send("Performance.enable")

    def layouts() -> float:
        metrics = session.send("Performance.getMetrics")["metrics"]
        return next(metric["value"] for metric in metrics if metric["name"] == "LayoutCount")

    for selector, value, event in (
        ("#filter", "4", "input"),
        ("#filter", "temple", "input"),
        ("#filter", "", "input"),
        ("#sort", "max", "change"),
        ("#state", "near", "change"),
        ("#state", "all", "change"),
        ("#size", "400", "input"),
    ):
        before = layouts()
        page.evaluate(SET, [selector, value, event])
        # A layout a card would be thousands; a few follow as pictures come near the screen.
        assert layouts() - before <= 40, (selector, value)
        assert page.evaluate(LAID_OUT) <= 2 * NEAR, (selector, value)
    assert max(page.evaluate("window.long"), default=0) < 1000


def test_a_channel_far_down_can_be_linked_to(visit: Any, wall: Path) -> None:
    page = visit(viewport={"width": 1280, "height": 800}).open(wall, "#c1500")
    page.wait_for_timeout(1000)
    box = page.locator("#c1500").bounding_box()
    bar = page.locator(".bar").bounding_box()
    assert bar["height"] <= box["y"] <= 200
    assert page.locator("#c1500").evaluate("(card) => getComputedStyle(card).outlineStyle") == "solid"
    assert page.locator("#c1500 img").evaluate("(image) => image.complete && image.naturalWidth > 0")
