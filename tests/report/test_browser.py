"""The pages as a browser has them: nothing off the disk, no error, no overflow, with and without script."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from onnxviz.report.render import write_report

from .fixture import make_report
from .visitor import Rendered, kinds

LOADED = """() => Promise.all(Array.from(document.images, (image) => {
    image.loading = "eager";
    return image.decode().then(() => null, () => image.src);
})).then((broken) => broken.filter(Boolean))"""
CONTRAST = """() => {
    const channel = (v) => (v /= 255) <= 0.03928 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4;
    const parse = (text) => text.match(/[\\d.]+/g).map(Number);
    const light = ([r, g, b]) => 0.2126 * channel(r) + 0.7152 * channel(g) + 0.0722 * channel(b);
    const behind = (element) => {
        for (let e = element; e; e = e.parentElement) {
            const colour = parse(getComputedStyle(e).backgroundColor);
            if (colour.length < 4 || colour[3] === 1) return light(colour);
        }
        return 1;
    };
    const poor = [];
    const walker = document.createTreeWalker(document.querySelector("body"), NodeFilter.SHOW_TEXT);
    while (walker.nextNode()) {
        const element = walker.currentNode.parentElement;
        if (!walker.currentNode.data.trim() || element.closest("svg, script, option")) continue;
        const [a, b] = [light(parse(getComputedStyle(element).color)), behind(element)].sort((x, y) => y - x);
        if ((a + 0.05) / (b + 0.05) < 4.5) poor.push(element.outerHTML);
    }
    return poor;
}"""


@pytest.mark.parametrize("name", ["report", "hostile"])
@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [360, 1024, 1600])
def test_pages_fit_and_load(
    visit: Any, request: pytest.FixtureRequest, name: str, scheme: str, width: int
) -> None:
    visitor = visit(viewport={"width": width, "height": 800}, color_scheme=scheme)
    for path in kinds(request.getfixturevalue(name)):
        page = visitor.open(path)
        assert page.evaluate("document.documentElement.scrollWidth") <= width, path
        assert page.evaluate(LOADED) == [], path


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_text_has_the_contrast_of_wcag_aa(visit: Any, report: Rendered, scheme: str) -> None:
    visitor = visit(color_scheme=scheme)
    for path in kinds(report):
        assert visitor.open(path).evaluate(CONTRAST) == [], path


def test_dark_is_dark(visit: Any, report: Rendered) -> None:
    colours = [
        visit(color_scheme=scheme)
        .open(report[1] / "index.html")
        .evaluate("getComputedStyle(document.body).backgroundColor")
        for scheme in ("light", "dark")
    ]
    assert colours == ["rgb(250, 249, 246)", "rgb(19, 20, 22)"]


def test_plain_pages_without_script(visit: Any, report: Rendered) -> None:
    data, out = report
    layer = data.layers[1]
    page = visit(java_script_enabled=False).open(out / "index.html")
    page.click(f"svg a[href='layers/{layer.slug}/index.html']")
    page.wait_for_url(f"**/{layer.slug}/index.html")
    assert page.locator("#tools").is_hidden() and page.locator(".keys").is_hidden()
    page.click("#c1 a")
    page.wait_for_url("**/c0001.html")
    assert page.locator("figure").count() == len(layer.rows[1].hits)
    page.click("a[rel=next]")
    page.wait_for_url("**/c0002.html")


def test_keys_turn_pages(visit: Any, report: Rendered) -> None:
    data, out = report
    page = visit().open(out / "layers" / data.layers[1].slug / "c0001.html")
    for key, url in [
        ("ArrowRight", "**/c0002.html"),
        ("ArrowLeft", "**/c0001.html"),
        ("u", f"**/{data.layers[1].slug}/index.html#c1"),
        ("ArrowRight", f"**/{data.layers[2].slug}/index.html"),
        ("u", "**/index.html"),
    ]:
        page.keyboard.press(key)
        page.wait_for_url(url)


def test_sort_and_filter(visit: Any, report: Rendered) -> None:
    data, out = report
    layer = data.layers[1]
    alive = [channel for channel in layer.rows if not channel.dead]
    page = visit().open(out / "layers" / layer.slug / "index.html")
    cards = "document.querySelectorAll('#wall > li:not([hidden])')"
    order = f"Array.from({cards}, (item) => Number(item.dataset.index))"
    page.select_option("#sort", "max")
    assert page.evaluate(order) == [c.index for c in sorted(alive, key=lambda c: -c.largest)]
    page.select_option("#sort", "index")
    page.keyboard.press("Escape")
    page.keyboard.press("/")
    page.keyboard.type("3")
    assert page.evaluate(order) == [3]
    assert page.inner_text("#count") == f"1 of {len(alive)}"
    page.fill("#filter", "TEMPLE")
    assert page.evaluate(order) == [c.index for c in alive if any(h.label == "temple" for h in c.hits)]
    page.fill("#filter", "no such thing")
    assert page.evaluate(order) == [] and page.locator("#none").is_visible()


def test_dead_and_nearly_dead_channels_can_be_shown_alone(visit: Any, report: Rendered) -> None:
    data, out = report
    layer = data.layers[1]
    page = visit().open(out / "layers" / layer.slug / "index.html")
    cards = "document.querySelectorAll('#wall > li:not([hidden])')"
    order = f"Array.from({cards}, (item) => Number(item.dataset.index))"
    alive = [channel for channel in layer.rows if not channel.dead]
    near = [channel.index for channel in alive if channel.activity < 0.01]
    assert near and len(near) < len(alive)
    for state, shown, dead in (
        ("near", near, False),
        ("dead", [], True),
        ("alive", [channel.index for channel in alive], False),
        ("all", [channel.index for channel in alive], True),
    ):
        page.select_option("#state", state)
        assert page.evaluate(order) == shown
        assert page.locator("#dead-channels").is_visible() == dead
        assert page.locator("#none").is_hidden()
    page.select_option("#sort", "sel")
    assert page.evaluate(order) == [c.index for c in sorted(alive, key=lambda c: -c.selectivity)]


def test_a_question_mark_opens_help(visit: Any, report: Rendered) -> None:
    data, out = report
    page = visit().open(out / "layers" / data.layers[1].slug / "c0001.html")
    assert page.locator("#help").is_hidden()
    page.keyboard.press("?")
    assert page.locator("#help").is_visible()
    page.keyboard.press("ArrowRight")  # does not turn the page behind it
    page.keyboard.press("Escape")
    assert page.locator("#help").is_hidden()
    assert page.url.endswith("c0001.html")
    page.click("[data-help]")
    assert page.locator("#help").is_visible()
    page.click("#help button")
    assert page.locator("#help").is_hidden()


def test_related_channels_are_links(visit: Any, report: Rendered) -> None:
    data, out = report
    layer = data.layers[1]
    page = visit().open(out / "layers" / layer.slug / "c0001.html")
    page.locator(".related a").nth(1).click()
    page.wait_for_url(f"**/c{layer.rows[1].related[1].index:04d}.html")


def test_the_box_lies_where_the_unit_looked(visit: Any, report: Rendered) -> None:
    data, out = report
    layer = data.layers[1]
    hit = layer.rows[1].hits[0]
    page = visit().open(out / "layers" / layer.slug / "c0001.html")
    frame = page.locator("figure").first.locator(".frame")
    outer, inner = frame.bounding_box(), frame.locator("i").bounding_box()
    height, width = data.provenance.input_size
    top, left, bottom, right = hit.box
    assert inner["x"] - outer["x"] == pytest.approx(max(left, 0) / width * outer["width"], abs=1)
    assert inner["y"] - outer["y"] == pytest.approx(max(top, 0) / height * outer["height"], abs=1)
    assert inner["width"] == pytest.approx((min(right, width) - max(left, 0)) / width * outer["width"], abs=1)
    assert inner["height"] == pytest.approx(
        (min(bottom, height) - max(top, 0)) / height * outer["height"], abs=1
    )


def _shot(locator: Any) -> np.ndarray:
    with Image.open(io.BytesIO(locator.screenshot())) as image:
        return np.asarray(image.convert("RGB")).astype(int)


@pytest.mark.parametrize("top", [1, 5, 9])
def test_each_picture_shows_its_own_tile(visit: Any, tmp_path: Path, top: int) -> None:
    """Every tile of the sprites gets a colour of its own, which must show in the middle of its picture."""
    data = make_report(tmp_path, layers=1, channels=1, top=top)
    channel, frame = data.layers[0].rows[0], data.provenance.input_size
    assert channel.card is not None and channel.strips is not None
    for sprite, blue in ((channel.card, 40), (channel.strips, 200)):
        sheet = np.zeros((sprite.rows, sprite.columns, 3), np.uint8)
        sheet[..., 0] = 20 + 40 * np.arange(sprite.rows)[:, None]
        sheet[..., 1], sheet[..., 2] = 20 + 20 * np.arange(sprite.columns), blue
        pixels = sheet.repeat(sprite.tile[0], 0).repeat(sprite.tile[1], 1)
        Image.fromarray(pixels).save(tmp_path / sprite.path, lossless=True)
    write_report(data, tmp_path)
    page = visit().open(tmp_path / "layers" / data.layers[0].slug / "c0000.html")
    page.add_style_tag(content=".tile i { display: none }")
    half = channel.card.columns // 2
    for rank, hit in enumerate(channel.hits):
        tiles = page.locator("figure").nth(rank).locator(".tile")
        row, column = divmod(rank, half)
        expected = {
            0: (20, 20 + 20 * rank, 200),
            1: (20 + 40 * row, 20 + 20 * (column + half), 40),
            2: (20 + 40 * row, 20 + 20 * column, 40),
            3: (60, 20 + 20 * rank, 200),
        }
        for number, colour in expected.items():
            shot = _shot(tiles.nth(number))
            middle = shot[2:-2, 2:-2].reshape(-1, 3)
            assert np.abs(middle - colour).max() <= 3, (rank, number)
        # On the frame the projection fills what of the box is inside, and nothing else.
        shot = _shot(tiles.nth(5))
        lies = np.zeros(frame, bool)
        lies[max(hit.box[0], 0) : max(hit.box[2], 0), max(hit.box[1], 0) : max(hit.box[3], 0)] = True
        rows = ((np.arange(shot.shape[0]) + 0.5) / shot.shape[0] * frame[0]).astype(int)
        columns = ((np.arange(shot.shape[1]) + 0.5) / shot.shape[1] * frame[1]).astype(int)
        inside = lies[rows][:, columns]
        found = np.abs(shot - expected[2]).max(axis=2) <= 3
        grey = np.abs(shot - 128).max(axis=2) <= 3
        assert (found == inside).mean() > 0.96, rank
        assert (grey == ~inside).mean() > 0.96, rank


def test_the_diagram_scrolls_in_its_own_box(visit: Any, report: Rendered) -> None:
    page = visit(viewport={"width": 360, "height": 700}).open(report[1] / "index.html")
    width, inner = page.locator(".scroll").evaluate("(box) => [box.clientWidth, box.scrollWidth]")
    assert inner > width
    assert page.locator(".scroll").bounding_box()["height"] <= 0.8 * 700
