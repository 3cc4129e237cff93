"""What readers are used to: links that resolve, the back button, the keyboard, focus that shows, paper."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

import numpy as np
import pytest
from PIL import Image

from .visitor import Rendered, kinds

SHOWN = (
    "Array.from(document.querySelectorAll('#wall > li:not([hidden])'), (item) => Number(item.dataset.index))"
)


def path_of(address: str) -> Path:
    return Path(unquote(urlsplit(address).path))


def layer_page(rendered: Rendered) -> Path:
    return kinds(rendered)[1]


@pytest.mark.parametrize("name", ["report", "hostile"])
@pytest.mark.parametrize("script", [True, False])
def test_every_page_can_be_reached_and_every_fragment_exists(
    visit: Any, request: pytest.FixtureRequest, name: str, script: bool
) -> None:
    _, out = request.getfixturevalue(name)
    page = visit(java_script_enabled=script).page
    waiting, seen, ids, wanted = [out / "index.html"], set(), {}, []
    while waiting:
        path = waiting.pop()
        if path in seen:
            continue
        seen.add(path)
        page.goto(path.as_uri(), wait_until="domcontentloaded")
        links, ids[path], silent, lang = page.evaluate(
            """() => [
                Array.from(document.querySelectorAll("a[href]")).filter((a) => a.checkVisibility())
                    .map((a) => a.href.baseVal === undefined ? a.href : new URL(a.href.baseVal, document.baseURI).href),
                Array.from(document.querySelectorAll("[id]"), (element) => element.id),
                Array.from(document.images).filter((image) => !image.alt.trim()).map((image) => image.src),
                document.documentElement.lang,
            ]"""
        )
        assert silent == [] and lang == "en", path
        for link in links:
            target = path_of(link)
            assert target.is_file(), link
            if fragment := unquote(urlsplit(link).fragment):
                wanted.append((target, fragment))
            if target.suffix == ".html":
                waiting.append(target)
    assert seen == set(out.rglob("*.html"))
    assert [(path, fragment) for path, fragment in wanted if fragment not in ids[path]] == []
    assert wanted


def test_the_address_keeps_what_is_set(visit: Any, report: Rendered) -> None:
    data, _ = report
    visitor = visit()
    page = visitor.open(layer_page(report))
    page.select_option("#sort", "sel")
    page.select_option("#state", "alive")
    page.fill("#filter", "temple")
    expected = page.evaluate(SHOWN)
    alive = [channel for channel in data.layers[1].rows if not channel.dead]
    assert expected == [
        channel.index
        for channel in sorted(alive, key=lambda channel: -channel.selectivity)
        if any(hit.label == "temple" for hit in channel.hits)
    ]
    assert urlsplit(page.url).query == "sort=sel&show=alive&filter=temple"
    other = visit().open(layer_page(report), "?" + urlsplit(page.url).query)
    assert other.evaluate(SHOWN) == expected
    assert [other.input_value(field) for field in ("#sort", "#state", "#filter")] == [
        "sel",
        "alive",
        "temple",
    ]
    for field, value in (("#sort", "index"), ("#state", "all")):
        page.select_option(field, value)
    page.fill("#filter", "")
    assert urlsplit(page.url).query == ""


@pytest.mark.parametrize("query", ["?sort=rubbish&show=&other=1", "?sort=%00&filter=", "?&&=", "?show=Alive"])
def test_an_address_that_says_nonsense_shows_all(visit: Any, report: Rendered, query: str) -> None:
    page = visit().open(layer_page(report), query)
    assert page.evaluate(SHOWN) == [channel.index for channel in report[0].layers[1].rows if not channel.dead]
    assert [page.input_value(field) for field in ("#sort", "#state")] == ["index", "all"]


def test_a_filter_in_the_address_is_no_markup(visit: Any, report: Rendered) -> None:
    page = visit().open(layer_page(report), "?filter=%3Cimg+src%3Dx+onerror%3Dalert(1)%3E")
    assert page.input_value("#filter") == "<img src=x onerror=alert(1)>"
    assert page.evaluate(SHOWN) == [] and page.locator("#none").is_visible()


@pytest.mark.parametrize("sort", ["index", "max"])
def test_back_returns_to_where_the_reader_was(visit: Any, report: Rendered, sort: str) -> None:
    page = visit(viewport={"width": 500, "height": 500}).open(layer_page(report))
    page.select_option("#sort", sort)
    page.fill("#filter", "temple")
    shown = page.evaluate(SHOWN)
    assert len(shown) >= 3
    card = page.locator(f"#c{shown[2]}")
    card.evaluate("(card) => card.scrollIntoView({ block: 'center', behavior: 'instant' })")
    before = card.bounding_box()["y"]
    assert page.evaluate("scrollY") > 300
    card.locator("a").click()
    page.wait_for_url("**/c000*.html")
    page.go_back()
    page.wait_for_load_state("load")
    page.wait_for_timeout(300)
    assert page.evaluate(SHOWN) == shown
    assert [page.input_value(field) for field in ("#sort", "#filter")] == [sort, "temple"]
    assert page.locator(f"#c{shown[2]}").bounding_box()["y"] == pytest.approx(before, abs=2)


def test_from_the_network_to_a_channel_and_back_by_keyboard(visit: Any, report: Rendered) -> None:
    data, out = report
    slug = data.layers[1].slug
    page = visit().open(out / "index.html")

    def tab_to(selector: str) -> None:
        for _ in range(200):
            page.keyboard.press("Tab")
            if page.evaluate("(selector) => document.activeElement.matches(selector)", selector):
                return
        raise AssertionError(f"no way to {selector}")

    page.keyboard.press("Tab")
    assert page.evaluate("document.activeElement.className") == "skip"
    tab_to(f".summary a[href='layers/{slug}/index.html']")
    page.keyboard.press("Enter")
    page.wait_for_url(f"**/{slug}/index.html")
    tab_to("#c2 a")
    page.keyboard.press("Enter")
    page.wait_for_url("**/c0002.html")
    page.keyboard.press("u")
    page.wait_for_url(f"**/{slug}/index.html#c2")
    page.keyboard.press("u")
    page.wait_for_url("**/index.html")
    assert path_of(page.url) == out / "index.html"


FOCUSABLE = "a[href], button, input, select, summary, [tabindex='0']"
KIND = """(element) => [element.closest("[class]")?.getAttribute("class"), element.parentElement.tagName,
    element.tagName, element.type].join(" ")"""


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_focus_shows_on_every_kind_of_element(visit: Any, report: Rendered, scheme: str) -> None:
    visitor = visit(color_scheme=scheme, viewport={"width": 1280, "height": 800})
    seen: set[str] = set()
    for path in kinds(report):
        page = visitor.open(path)
        page.add_style_tag(content="*, ::before, ::after { caret-color: transparent !important; }")
        page.keyboard.press("Shift")  # from here on the focus is a keyboard's
        for element in page.locator(FOCUSABLE).all():
            kind = element.evaluate(KIND)
            if kind in seen or not element.is_visible():
                continue
            seen.add(kind)
            element.evaluate(
                "(element) => { element.scrollIntoView({ block: 'center', behavior: 'instant' }); element.focus(); }"
            )
            with_focus = picture(page)
            element.evaluate("(element) => element.blur()")
            changed = np.abs(with_focus - picture(page)).max(axis=2) > 60
            box = element.bounding_box()
            # A ring of two pixels around it, or the like of it, of a colour that stands out.
            assert changed.sum() >= min(box["width"] + box["height"], 300), (path.name, kind)
    assert len(seen) >= 15


def picture(page: Any) -> np.ndarray:
    with Image.open(io.BytesIO(page.screenshot())) as image:
        return np.asarray(image.convert("RGB")).astype(int)


@pytest.mark.parametrize("name", ["report", "hostile"])
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_paper_shows_everything_and_no_controls(
    visit: Any, request: pytest.FixtureRequest, name: str, scheme: str
) -> None:
    visitor = visit(color_scheme=scheme, viewport={"width": 718, "height": 1000})  # A4 less the usual margins
    for path in kinds(request.getfixturevalue(name)):
        page = visitor.open(path)
        page.emulate_media(media="print")
        for selector in (".tools", ".turn", ".sections", ".skip", "button", ".keys"):
            assert not any(element.is_visible() for element in page.locator(selector).all()), (path, selector)
        assert page.evaluate("getComputedStyle(document.querySelector('.bar')).position") == "static"
        assert page.evaluate("getComputedStyle(document.body).color") == "rgb(0, 0, 0)"
        cut = page.evaluate(
            """() => Array.from(document.querySelectorAll("html, .scroll, .wide, .strip, .command, .wall a, .cap"))
                .filter((box) => box.checkVisibility() && box.scrollWidth > box.clientWidth + 1
                    && getComputedStyle(box).display !== "inline")
                .map((box) => box.outerHTML.slice(0, 120))"""
        )
        assert cut == [], path
        assert page.pdf(format="A4").startswith(b"%PDF")
