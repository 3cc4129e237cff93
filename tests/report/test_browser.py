"""The pages as a browser has them: nothing off the disk, no error, no overflow, with and without script."""

from __future__ import annotations

import io
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from onnxviz.errors import UsageError
from onnxviz.report.render import write_report

from .fixture import make_report, resnet
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


@pytest.fixture(scope="module")
def themed(report: Rendered, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Rendered]:
    """The report once more in each theme."""
    data, first = report
    folders = {}
    for theme in ("light", "dark"):
        out = tmp_path_factory.mktemp(theme) / "report"
        shutil.copytree(first, out)
        write_report(data, out, theme=theme)
        folders[theme] = data, out
    return folders


# Every colour that a page shows, of elements and of drawn shapes.
COLOURS = """() => Array.from(document.querySelectorAll("*"), (element) => {
    const style = getComputedStyle(element);
    return [style.color, style.backgroundColor, style.borderTopColor, style.fill, style.stroke].join();
})"""


@pytest.mark.parametrize("theme", ["light", "dark"])
@pytest.mark.parametrize("system", ["light", "dark"])
def test_a_theme_holds_whatever_the_system_says(
    visit: Any, report: Rendered, themed: dict[str, Rendered], theme: str, system: str
) -> None:
    """It is what a system of that theme gives the report that follows the system, to the last colour."""
    own, other = visit(color_scheme=system), visit(color_scheme=theme)
    for path, follower in zip(kinds(themed[theme]), kinds(report), strict=True):
        page, expected = own.open(path), other.open(follower)
        assert page.evaluate(COLOURS) == expected.evaluate(COLOURS), path
        assert page.evaluate("getComputedStyle(document.documentElement).colorScheme") == theme
        assert page.evaluate(CONTRAST) == [], path
        # What the browser itself paints: the canvas before the page's own colours come, and form fields.
        for one in (page, expected):
            one.add_style_tag(content=":root, body { background: Canvas !important }")
        canvas = "getComputedStyle(document.body).backgroundColor"
        assert page.evaluate(canvas) == expected.evaluate(canvas)
        declared = page.get_attribute("meta[name='color-scheme']", "content")
        assert declared == theme


@pytest.mark.parametrize("theme", ["light", "dark"])
def test_print_is_light_in_every_theme(visit: Any, themed: dict[str, Rendered], theme: str) -> None:
    visitor = visit(color_scheme="dark")
    for path in kinds(themed[theme]):
        page = visitor.open(path)
        page.emulate_media(media="print")
        assert page.evaluate("getComputedStyle(document.documentElement).colorScheme") == "light"
        assert page.evaluate("getComputedStyle(document.body).backgroundColor") == "rgb(255, 255, 255)"
        assert page.evaluate("getComputedStyle(document.body).color") == "rgb(0, 0, 0)"


def test_a_theme_that_is_not_known(tmp_path: Path) -> None:
    data = make_report(tmp_path, layers=1, channels=1)
    with pytest.raises(UsageError, match=r"Theme 'sepia' is not known.*auto, light, dark"):
        write_report(data, tmp_path, theme="sepia")
    assert not (tmp_path / "index.html").exists()


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


def test_compared_pictures_show_their_own_tiles(visit: Any, tmp_path: Path) -> None:
    """As above: every tile of both files has a colour of its own."""
    methods = (
        ("guided", False),
        ("gradient", False),
        ("deconvnet", True),
        ("guided", True),
        ("gradient", True),
    )
    data = make_report(tmp_path, layers=1, channels=1, compared=methods)
    channel = data.layers[0].rows[0]
    assert channel.card is not None and channel.compared is not None
    for sprite, blue in ((channel.card, 40), (channel.compared, 200)):
        sheet = np.zeros((sprite.rows, sprite.columns, 3), np.uint8)
        sheet[..., 0] = 20 + 40 * np.arange(sprite.rows)[:, None]
        sheet[..., 1], sheet[..., 2] = 20 + 12 * np.arange(sprite.columns), blue
        pixels = sheet.repeat(sprite.tile[0], 0).repeat(sprite.tile[1], 1)
        Image.fromarray(pixels).save(tmp_path / sprite.path)
    write_report(data, tmp_path)
    folder = tmp_path / "layers" / data.layers[0].slug
    # Patch, projection, two methods; below: three methods with shuffled weights. The half of which file it is:
    halves = [(40, 1), (40, 0), (200, 0), (200, 1), (200, 2), (200, 3), (200, 4)]
    page = visit().open(folder / "c0000.html")
    for rank in range(len(channel.hits)):
        tiles = page.locator(".compared figure").nth(rank).locator(".tile")
        assert tiles.count() == len(halves)
        row, column = divmod(rank, 3)
        for number, (blue, half) in enumerate(halves):
            tile = tiles.nth(number)
            tile.scroll_into_view_if_needed()
            page.wait_for_function("(e) => e.querySelector('img').complete", arg=tile.element_handle())
            middle = _shot(tile)[3:-3, 3:-3].reshape(-1, 3)
            assert np.abs(middle - (20 + 40 * row, 20 + 12 * (column + 3 * half), blue)).max() <= 3
    page = visit().open(folder / "compare.html")
    page.add_style_tag(content=".half::after { display: none }")
    shown = page.locator("#wall li").first.locator(".half")
    assert shown.count() == len(halves)
    for number, (blue, half) in enumerate(halves):
        shot = _shot(shown.nth(number))
        height, width = shot.shape[:2]
        for row, column in np.ndindex(3, 3):
            middle = shot[int((row + 0.5) * height / 3), int((column + 0.5) * width / 3)]
            assert np.abs(middle - (20 + 40 * row, 20 + 12 * (column + 3 * half), blue)).max() <= 3


def test_from_the_wall_of_methods_to_a_channels_and_back(visit: Any, comparing: Rendered) -> None:
    data, out = comparing
    layer = data.layers[0]
    page = visit().open(out / "layers" / layer.slug / "index.html")
    page.get_by_role("link", name="Methods compared").click()
    page.wait_for_url("**/compare.html")
    assert page.locator("#wall > li:visible").count() == sum(not row.dead for row in layer.rows)
    page.locator("#filter").fill("2")
    assert page.locator("#wall > li:visible").count() == 1
    page.locator("#wall > li:visible a").click()
    page.wait_for_url("**/c0002.html#compare")
    assert page.locator("#compare").is_visible()
    assert [e.inner_text() for e in page.locator(".compared li").first.locator(".col").all()] == [
        *("patch", "deconvnet", "guided", "gradient")
    ]
    assert page.locator(".compared li").first.locator(".side").inner_text() == "shuffled weights"
    page.go_back()
    page.wait_for_url("**/compare.html*")
    page.keyboard.press("u")
    page.wait_for_url("**/index.html*")


def test_the_diagram_scrolls_in_its_own_box(visit: Any, report: Rendered) -> None:
    page = visit(viewport={"width": 360, "height": 700}).open(report[1] / "index.html")
    width, inner = page.locator(".scroll").evaluate("(box) => [box.clientWidth, box.scrollWidth]")
    assert inner > width
    assert page.locator(".scroll").bounding_box()["height"] <= 0.8 * 700


@pytest.fixture(scope="session")
def large(tmp_path_factory: pytest.TempPathFactory) -> Rendered:
    """Return a report on a network with repeated blocks, rendered."""
    out = tmp_path_factory.mktemp("large")
    data = make_report(out, layers=12, channels=2, diagram=resnet())
    write_report(data, out)
    return data, out


def test_repeats_are_folded_and_unfold_without_script(visit: Any, large: Rendered) -> None:
    data, out = large
    page = visit(java_script_enabled=False).open(out / "index.html")
    links = sorted(f"layers/{layer.slug}/index.html" for layer in data.layers)
    visible = """(links) => links.filter((link) => link.getClientRects().length)
        .map((link) => link.getAttribute('href')).sort()"""
    nodes = "(texts) => texts.filter((text) => text.getClientRects().length).length"
    shown = []
    for view in ("folded", "whole"):
        page.check(f"#view-{view}")
        assert page.locator("a.analysed").evaluate_all(visible) == links
        assert page.locator(".zoom-tools:visible").count() == 0
        shown.append(page.locator(".net .box").evaluate_all(nodes))
    assert shown == [41, 73]
    assert page.locator(".frame text").all_text_contents() == ["× 2", "× 3", "× 5", "× 2"]
    page.check("#view-folded")
    href = links[3]
    page.locator(f".folded a[href='{href}'] text").click()
    page.wait_for_url(f"**/{href}")


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [360, 1280])
def test_a_large_diagram_fits_the_page(visit: Any, large: Rendered, scheme: str, width: int) -> None:
    page = visit(viewport={"width": width, "height": 800}, color_scheme=scheme).open(large[1] / "index.html")
    for view in ("folded", "whole"):
        page.check(f"#view-{view}")
        assert page.evaluate("document.documentElement.scrollWidth") <= width
        # The text keeps inside its box, in the fonts that there are.
        assert (
            page.locator(f".{view} .box").evaluate_all(
                """(boxes) => boxes.flatMap((box) => {
                const right = box.querySelector('.body').getBBox();
                return Array.from(box.querySelectorAll('text'))
                    .filter((text) => text.getBBox().x + text.getBBox().width > right.x + right.width)
                    .map((text) => text.textContent);
            })"""
            )
            == []
        )


def test_every_analysed_layer_has_a_picture_in_the_diagram(visit: Any, large: Rendered) -> None:
    data, out = large
    page = visit().open(out / "index.html")
    strongest = {
        f"layers/{layer.slug}/index.html": max(
            (row for row in layer.rows if row.card is not None), key=lambda row: row.largest
        )
        for layer in data.layers
    }
    for view in ("folded", "whole"):
        page.check(f"#view-{view}")
        found = page.locator(f".{view} a.analysed").evaluate_all(
            """(links) => Promise.all(links.map(async (link) => {
                const [picture, image] = [link.querySelector('image'), new Image()];
                image.src = picture.href.baseVal;
                await image.decode();
                const box = picture.getBBox();
                return [link.getAttribute('href'), picture.getAttribute('href'),
                    picture.textContent, box.width / box.height, image.width / image.height];
            }))"""
        )
        assert len(found) == len(strongest)
        for href, source, title, ratio, natural in found:
            channel = strongest[href]
            assert channel.card is not None and source == channel.card.path
            assert f"Channel {channel.index}:" in title
            assert ratio == pytest.approx(natural, rel=0.02)


def test_a_picture_in_the_diagram_is_the_card(visit: Any, tmp_path: Path) -> None:
    data = make_report(tmp_path, layers=2, channels=1)
    channel = data.layers[0].rows[0]
    assert channel.card is not None and channel.card.pixelated
    sheet = np.zeros((channel.card.rows, channel.card.columns, 3), np.uint8)
    sheet[..., 0] = 20 + 70 * np.arange(channel.card.rows)[:, None]
    sheet[..., 1], sheet[..., 2] = 20 + 40 * np.arange(channel.card.columns), 90
    pixels = sheet.repeat(channel.card.tile[0], 0).repeat(channel.card.tile[1], 1)
    Image.fromarray(pixels).save(tmp_path / channel.card.path, lossless=True)
    write_report(data, tmp_path)
    page = visit(device_scale_factor=4).open(tmp_path / "index.html")
    image = page.locator(f"a.analysed[href*='{data.layers[0].slug}'] image")
    assert image.evaluate("(image) => getComputedStyle(image).imageRendering") == "pixelated"
    shot = _shot(image)
    height, width = shot.shape[0] / channel.card.rows, shot.shape[1] / channel.card.columns
    for row in range(channel.card.rows):
        for column in range(channel.card.columns):
            colour = shot[int((row + 0.5) * height), int((column + 0.5) * width)]
            assert np.abs(colour - sheet[row, column]).max() <= 3, (row, column)


SIZE = "() => document.querySelector('.net').getBoundingClientRect().width"
SCROLL = "() => { const box = document.querySelector('.scroll'); return [box.scrollLeft, box.scrollTop]; }"


def test_the_diagram_becomes_larger_and_smaller_by_keys_and_buttons(visit: Any, report: Rendered) -> None:
    page = visit(viewport={"width": 1200, "height": 800}).open(report[1] / "index.html")
    first = page.evaluate(SIZE)
    page.keyboard.press("+")
    assert page.evaluate(SIZE) == first  # the diagram does not have the focus
    page.locator(".scroll").focus()
    sizes = []
    for key in ("+", "+", "-", "-", "-", "0"):
        page.keyboard.press(key)
        sizes.append(page.evaluate(SIZE) / first)
    assert sizes == pytest.approx([1.25, 1.5625, 1.25, 1, 0.8, 1], rel=0.01)
    page.keyboard.press("Control+-")  # the browser's own
    assert page.evaluate(SIZE) == first
    for name, expected in (("in", 1.25), ("in", 1.5625), ("out", 1.25), ("reset", 1)):
        page.click(f"[data-zoom={name}]")
        assert page.evaluate(SIZE) / first == pytest.approx(expected, rel=0.01)
        assert page.inner_text(".zoom-tools output") == f"{round(100 * expected)} %"
    for _ in range(40):
        page.click("[data-zoom=in]")
    assert page.evaluate(SIZE) / first == pytest.approx(8, rel=0.01)
    for _ in range(40):
        page.click("[data-zoom=out]")
    assert page.evaluate(SIZE) / first == pytest.approx(0.2, rel=0.01)


def test_arrows_scroll_the_diagram_and_turn_no_page(visit: Any, report: Rendered) -> None:
    page = visit(viewport={"width": 500, "height": 600}).open(report[1] / "index.html")
    page.locator(".scroll").focus()
    page.keyboard.press("+")
    before = page.evaluate(SCROLL)
    page.keyboard.press("ArrowRight")
    page.keyboard.press("ArrowDown")
    page.wait_for_timeout(400)
    left, top = page.evaluate(SCROLL)
    assert left > before[0] and top > before[1]
    assert page.url.endswith("index.html")


def test_ctrl_with_the_wheel_enlarges_around_the_pointer(visit: Any, report: Rendered) -> None:
    page = visit(viewport={"width": 900, "height": 700}).open(report[1] / "index.html")
    link = page.locator("a.analysed").nth(1)
    link.scroll_into_view_if_needed()
    before, size = link.bounding_box(), page.evaluate(SIZE)
    x, y = before["x"] + before["width"] / 2, before["y"] + before["height"] / 2
    page.mouse.move(x, y)
    page.keyboard.down("Control")
    for _ in range(3):
        page.mouse.wheel(0, -100)
    page.keyboard.up("Control")
    page.wait_for_function(f"({SIZE})() > {1.5 * size}")
    after = link.bounding_box()
    assert after["width"] > 1.5 * before["width"]
    assert after["x"] + after["width"] / 2 == pytest.approx(x, abs=3)
    assert after["y"] + after["height"] / 2 == pytest.approx(y, abs=3)
    # Without Ctrl the wheel scrolls.
    size, (_, top) = page.evaluate(SIZE), page.evaluate(SCROLL)
    page.mouse.wheel(0, 40)
    page.wait_for_function(f"({SCROLL})()[1] > {top}")
    assert page.evaluate(SIZE) == size


@pytest.mark.parametrize("capture", [True, False])
def test_dragging_moves_the_diagram_and_follows_no_link(visit: Any, report: Rendered, capture: bool) -> None:
    data, out = report
    visitor = visit(viewport={"width": 900, "height": 700})
    if not capture:  # then the click after a drag goes to the link, as it does in some browsers
        visitor.page.add_init_script("Element.prototype.setPointerCapture = () => {}")
    page = visitor.open(out / "index.html")
    for _ in range(3):
        page.click("[data-zoom=in]")
    link = page.locator("a.analysed").nth(1)
    link.scroll_into_view_if_needed()
    left, top = page.evaluate(SCROLL)
    box = link.bounding_box()
    x, y = box["x"] + box["width"] / 2, box["y"] + 8
    page.mouse.move(x, y)
    page.mouse.down()
    page.mouse.move(x - 30, y - 20)
    page.mouse.move(x - 60, y - 45)
    page.mouse.up()
    assert page.evaluate(SCROLL) == pytest.approx([left + 60, top + 45], abs=1)
    page.wait_for_timeout(200)
    assert page.url.endswith("/index.html") and "layers/" not in page.url
    # A press that hardly moves is a click.
    box = link.bounding_box()
    x, y = box["x"] + box["width"] / 2, box["y"] + 8
    page.mouse.move(x, y)
    page.mouse.down()
    page.mouse.move(x + 1, y + 1)
    page.mouse.up()
    page.wait_for_url(f"**/layers/{data.layers[1].slug}/index.html")


def test_two_fingers_enlarge_the_diagram(visit: Any, report: Rendered) -> None:
    visitor = visit(viewport={"width": 500, "height": 800}, has_touch=True)
    page = visitor.open(report[1] / "index.html")
    page.locator(".scroll").scroll_into_view_if_needed()
    box, size = page.locator(".scroll").bounding_box(), page.evaluate(SIZE)
    x, y = box["x"] + 150, box["y"] + 100
    touch = visitor.context.new_cdp_session(page)

    def fingers(kind: str, *places: float) -> None:
        points = [{"x": place, "y": y, "id": i} for i, place in enumerate(places)]
        touch.send("Input.dispatchTouchEvent", {"type": kind, "touchPoints": points})

    fingers("touchStart", x - 30, x + 30)
    for spread in (40, 50, 60):
        fingers("touchMove", x - spread, x + spread)
    fingers("touchEnd")
    page.wait_for_function(f"({SIZE})() > {1.9 * size}")
    assert page.evaluate(SIZE) / size == pytest.approx(2, rel=0.02)
    assert page.evaluate("visualViewport.scale") == 1


def test_print_shows_the_whole_diagram(visit: Any, report: Rendered) -> None:
    page = visit(viewport={"width": 800, "height": 700}).open(report[1] / "index.html")
    for _ in range(3):
        page.click("[data-zoom=in]")
    page.emulate_media(media="print")
    box = page.locator(".scroll").first
    inner, outer = box.locator(".net").bounding_box(), box.bounding_box()
    assert inner["width"] <= outer["width"] + 1 and inner["height"] <= outer["height"] + 1
    assert page.locator(".zoom-tools").is_hidden()
