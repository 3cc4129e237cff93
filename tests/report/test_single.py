"""A report in one file, as a browser has it: no request but for the file, every page and picture of the folder."""

from __future__ import annotations

import base64
import io
import re
import tracemalloc
import zlib
from collections.abc import Iterator
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path
from typing import Any
from urllib.parse import quote, urljoin

import numpy as np
import pytest
from PIL import Image

from onnxviz.errors import UsageError
from onnxviz.report.data import ReportData
from onnxviz.report.render import page_of
from onnxviz.report.single import check_file, file_beside, write_single

from .fixture import HOSTILE, make_report
from .visitor import Visitor

Rendered = tuple[ReportData, Path, Path]
DRAWN = """() => [...document.images].filter((image) => image.loading !== "lazy")
    .every((image) => image.complete && image.naturalWidth > 1)"""
LOADED = """async () => {
    for (const image of document.images) {
        // Not scrollIntoView, which would scroll the tiles that cut the pictures too.
        scrollTo({top: scrollY + image.getBoundingClientRect().top - 200, behavior: "instant"});
        for (let i = 0; image.dataset.picture !== undefined && i < 100; i++)
            await new Promise((done) => setTimeout(done, 20));
        await image.decode().catch(() => null);
    }
    scrollTo({top: 0, behavior: "instant"});
    return [...document.images].filter((image) => !(image.naturalWidth > 1)).map((image) => image.outerHTML);
}"""


class Store(HTMLParser):
    """What the file carries, read without a browser: the parts by path, and the first page's ids and addresses."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.parts: dict[str, bytes] = {}
        self.types: dict[str, str] = {}
        self.scripts: list[str] = []
        self.ids: list[str] = []
        self.links: list[str] = []
        self.sources: list[str] = []
        self._open: str | None = None
        self._text: list[str] = []
        self.feed(text)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        values = {name: str(value) for name, value in attrs}
        if tag == "script":
            assert "src" not in values
            self._open = values.get("data-path", "")
            assert self._open not in self.parts, self._open
            self.types[self._open] = values.get("type", "")
            self._text = []
        self.ids += [values["id"]] if "id" in values else []
        self.links += [values["href"]] if tag == "a" else []
        self.sources += [values["src"]] if "src" in values else []
        self.sources += [values["href"]] if tag in ("image", "use", "link") else []
        assert not [name for name in values if name.startswith("on")], (tag, values)

    def handle_data(self, data: str) -> None:
        if self._open is not None:
            self._text.append(data)

    def handle_endtag(self, tag: str) -> None:
        if tag == "script":
            assert self._open is not None
            text = "".join(self._text)
            if self._open:
                self.parts[self._open] = base64.b64decode(text, validate=True)
            else:
                self.scripts.append(text)
            self._open = None


class Watched(Visitor):
    """A page of the browser that must ask for nothing but the file, and complain of nothing."""

    def __init__(self, browser: Any, file: Path, **options: Any) -> None:
        self.file = file
        super().__init__(browser, **{"reduced_motion": "reduce", **options})

    def _check(self, request: Any) -> None:
        if not request.url.startswith(("blob:", "data:")) and request.url.split("#")[0] != self.file.as_uri():
            self.faults.append(request.url)

    def _failed(self, request: Any) -> None:
        self.faults.append(f"{request.url}: {request.failure}")

    def open(self, fragment: str = "") -> Any:
        return super().open(self.file, fragment)


@pytest.fixture
def visit(browser: Any) -> Iterator[Any]:
    watched: list[Watched] = []

    def make(file: Path, **options: Any) -> Watched:
        watched.append(Watched(browser, file, **options))
        return watched[-1]

    yield make
    for one in watched:
        one.context.close()
        assert one.faults == []


@pytest.fixture(scope="session")
def single(report: tuple[ReportData, Path], tmp_path_factory: pytest.TempPathFactory) -> Rendered:
    """The report of the other tests, its folder, and its file, alone in a folder of its own."""
    data, folder = report
    file = tmp_path_factory.mktemp("single") / "report.html"
    write_single(data, folder, file)
    return data, folder, file


@pytest.fixture(scope="session")
def hostile_single(hostile: tuple[ReportData, Path], tmp_path_factory: pytest.TempPathFactory) -> Rendered:
    data, folder = hostile
    file = tmp_path_factory.mktemp("single 100%#") / 'a "b" 🦊.html'
    write_single(data, folder, file)
    return data, folder, file


def store_of(file: Path) -> Store:
    return Store(file.read_text(encoding="utf-8"))


def until(page: Any, condition: str, arg: Any = None) -> None:
    """Wait for a condition in the page; Playwright's own way needs eval, which the file's policy forbids."""
    for _ in range(200):
        if page.evaluate(condition, arg):
            return
        page.wait_for_timeout(50)
    raise AssertionError((page.url, condition, arg))


def at(page: Any, fragment: str, title: str) -> None:
    """Wait until the page that a hash names is shown."""
    until(
        page,
        "([hash, title]) => location.hash === hash && document.title.startsWith(title)",
        arg=[fragment, title],
    )


def _shot(locator: Any) -> np.ndarray:
    with Image.open(io.BytesIO(locator.screenshot())) as image:
        return np.asarray(image.convert("RGB")).astype(int)


# What the file holds


@pytest.mark.parametrize("name", ["single", "hostile_single"])
def test_the_store_holds_every_file_of_the_folder_once(request: pytest.FixtureRequest, name: str) -> None:
    data, folder, file = request.getfixturevalue(name)
    store = store_of(file)
    pages = {path.relative_to(folder).as_posix() for path in folder.rglob("*.html")} - {"index.html"}
    shown = {
        path
        for layer in data.layers
        for channel in (layer.all_channels, *layer.rows)
        for path in (
            *(hit.thumbnail for hit in channel.hits),
            *(sprite.path for sprite in (channel.card, channel.strips, channel.compared) if sprite),
        )
    } | {data.filters.shared.path, data.filters.own.path}
    assert set(store.parts) == {quote(path) for path in (*pages, *shown)} | {"report.json"}
    for path in pages | {"report.json"}:
        assert zlib.decompress(store.parts[path]) == (folder / path).read_bytes(), path
    for path in shown:
        assert store.parts[quote(path)] == (folder / path).read_bytes(), path
        with Image.open(folder / path) as picture:
            assert store.types[quote(path)] == picture.get_format_mimetype(), path


def test_the_file_is_four_thirds_of_what_it_holds(single: Rendered) -> None:
    data, folder, file = single
    held = sum(len(part) for part in store_of(file).parts.values())
    frame = sum(len(path.read_bytes()) for path in [folder / "index.html", *(folder / "static").iterdir()])
    size = file.stat().st_size
    assert 4 / 3 * held < size < 4 / 3 * held + 2.5 * frame
    text = file.read_text(encoding="utf-8")
    for channel in data.layers[1].rows:
        for sprite in (channel.card, channel.strips):
            if sprite is not None:
                assert text.count(base64.b64encode((folder / sprite.path).read_bytes()).decode()) == 1


@pytest.mark.parametrize("name", ["single", "hostile_single"])
def test_the_first_page_is_the_folders_index(request: pytest.FixtureRequest, name: str) -> None:
    _, folder, file = request.getfixturevalue(name)

    def main(path: Path) -> str:
        text = path.read_text(encoding="utf-8")
        return text[text.index('<main id="main"') : text.index("</main>")]

    text = re.sub(r"<noscript>.*</noscript>\n", "", main(file))
    assert re.sub(r"data:image/gif;base64,[A-Za-z0-9+/]*=*#", "", text) == main(folder / "index.html")
    store = store_of(file)
    assert store.sources and all(source.startswith("data:") for source in store.sources)
    assert len(store.scripts) == 3 and not any("<!--" in text for text in store.scripts)


@pytest.mark.parametrize("name", ["single", "hostile_single"])
def test_every_link_leads_to_a_page_and_an_id_in_it(request: pytest.FixtureRequest, name: str) -> None:
    _, _, file = request.getfixturevalue(name)
    first = store_of(file)
    pages = {"index.html": first} | {
        path: Store(re.sub("<script src=[^>]*></script>", "", zlib.decompress(part).decode()))
        for path, part in first.parts.items()
        if path.endswith(".html")
    }
    for path, page in pages.items():
        assert page.links, path
        for link in page.links:
            there, _, anchor = urljoin(path, link).partition("#")
            there = there or path
            assert there in pages or there == "report.json", (path, link)
            assert not anchor or anchor in pages[there].ids, (path, link)
        if page is not first:
            pictures = [source for source in page.sources if not source.startswith("data:,")]
            missing = {urljoin(path, one) for one in pictures} - set(first.parts)
            assert {one.rsplit(".", 1)[1] for one in missing} <= {"css"}, path


# In the browser


@pytest.mark.parametrize("name", ["single", "hostile_single"])
def test_index_layer_channel_key_and_back(visit: Any, request: pytest.FixtureRequest, name: str) -> None:
    data, _, file = request.getfixturevalue(name)
    layer = data.layers[1]
    page = visit(file).open()
    assert page.evaluate(LOADED) == []
    folder = f"#layers/{layer.slug}"
    page.click(f'svg a[href="{folder}/index.html"]')
    at(page, f"{folder}/index.html", " ".join(layer.title.split()))
    assert page.evaluate(LOADED) == []
    page.evaluate("scrollTo(0, 300)")
    until(page, "scrollY === 300")
    page.locator("#c2 a").dispatch_event("click")
    at(page, f"{folder}/c0002.html", "channel 2")
    assert page.evaluate("[scrollY, document.activeElement.id]") == [0, "main"]
    assert page.evaluate(LOADED) == []
    assert page.locator(".hits:not(.compared) figure").count() == len(layer.rows[2].hits)
    page.keyboard.press("ArrowRight")
    at(page, f"{folder}/c0003.html", "channel 3")
    page.keyboard.press("ArrowLeft")
    at(page, f"{folder}/c0002.html", "channel 2")
    page.keyboard.press("u")
    at(page, f"{folder}/index.html:c2", " ".join(layer.title.split()))
    assert page.evaluate("document.querySelector('.target').id") == "c2"
    for _ in range(4):
        page.go_back()
    at(page, f"{folder}/index.html", " ".join(layer.title.split()))
    until(page, "scrollY === 300")
    page.go_back()
    at(page, "", " ".join(data.title.split()))
    page.go_forward()
    at(page, f"{folder}/index.html", " ".join(layer.title.split()))
    page.keyboard.press("u")
    at(page, "#index.html", " ".join(data.title.split()))


def test_a_hash_opens_a_channel(visit: Any, single: Rendered) -> None:
    data, _, file = single
    page = visit(file).open(f"#layers/{data.layers[2].slug}/c0003.html")
    at(page, f"#layers/{data.layers[2].slug}/c0003.html", "channel 3")
    assert page.evaluate("getComputedStyle(document.body).visibility") == "visible"
    assert page.evaluate(LOADED) == []
    page.evaluate("scrollTo(0, 250)")
    until(page, "history.state.top === 250")
    page.reload()
    at(page, f"#layers/{data.layers[2].slug}/c0003.html", "channel 3")
    until(page, "scrollY === 250")


def test_a_hash_that_a_mail_program_escaped(visit: Any, single: Rendered) -> None:
    data, _, file = single
    page = visit(file).open("#" + quote(f"layers/{data.layers[1].slug}/index.html:c6", safe=""))
    until(page, "document.querySelector('.target')?.id === 'c6'")
    box = page.locator("#c6").bounding_box()
    assert 0 <= box["y"] < page.viewport_size["height"]


@pytest.mark.parametrize(
    "fragment", ["#layers/none/c0001.html", "#../../etc/passwd", "#%E0%A4%A.html", "#:", "#__proto__"]
)
def test_a_hash_of_nothing_shows_the_index(visit: Any, single: Rendered, fragment: str) -> None:
    data, _, file = single
    page = visit(file).open(fragment)
    until(page, "document.documentElement.style.visibility === ''")
    assert page.title().startswith(data.title)
    assert page.locator("h1").is_visible()


def test_ids_of_the_index_stay_plain(visit: Any, single: Rendered) -> None:
    data, _, file = single
    page = visit(file).open(f"#layers/{data.layers[1].slug}/c0001.html")
    at(page, f"#layers/{data.layers[1].slug}/c0001.html", "channel 1")
    page.click("footer a >> text=Provenance")
    at(page, "#provenance", data.title)
    until(page, "Math.abs(document.getElementById('provenance').getBoundingClientRect().y) < 400")
    page.click(".sections a >> text=Layers")
    until(page, "Math.abs(document.getElementById('layers').getBoundingClientRect().y) < 100")


def test_a_link_within_a_page_works_twice(visit: Any, single: Rendered) -> None:
    data, _, file = single
    folder = f"#layers/{data.layers[1].slug}/index.html"
    page = visit(file, viewport={"width": 700, "height": 400}).open(folder)
    for _ in range(2):
        # Again and again: the smooth scrolling that the link before began may still be under way.
        until(
            page,
            "(scrollTo({ top: 0, behavior: 'instant' }), scrollY === 0 && document.querySelector('.jump'))",
        )
        page.click(".jump")
        until(page, "scrollY > 200")
        assert page.url.endswith(":dead")
    page.locator(".skip").focus()
    page.keyboard.press("Enter")
    until(page, "document.activeElement.id === 'main'")
    assert page.url.endswith("index.html:main")


def test_pictures_are_those_of_the_folder(visit: Any, browser: Any, single: Rendered) -> None:
    data, folder, file = single
    path = f"layers/{data.layers[1].slug}/c0001.html"
    size = {"width": 1100, "height": 2000}  # all of the page: nothing scrolls below the bar
    page = visit(file, viewport=size).open(f"#{path}")
    page.wait_for_selector(".hits")
    assert page.evaluate(LOADED) == []
    context = browser.new_context(viewport=size)
    plain = context.new_page()
    plain.goto((folder / path).as_uri())
    decoded = "Promise.all([...document.images].map((i) => { i.loading = 'eager'; return i.decode(); }))"
    shots = []
    for one in (page, plain):
        one.evaluate(decoded)
        shots.append(_shot(one.locator(".hits")))
    context.close()
    assert shots[0].std() > 20
    assert np.array_equal(*shots)


def test_pictures_far_below_are_made_when_they_come_near(visit: Any, tmp_path: Path) -> None:
    data = make_report(tmp_path / "folder", layers=1, channels=120)
    file = tmp_path / "a.html"
    write_single(data, tmp_path / "folder", file)
    page = visit(file, viewport={"width": 700, "height": 500}).open(
        f"#layers/{data.layers[0].slug}/index.html"
    )
    until(page, "document.querySelector('#c0 img')?.naturalWidth > 1")
    last = page.locator("#wall > li").last.locator("img")
    assert last.get_attribute("data-picture") is not None
    assert page.locator("#wall img[data-picture]").count() > 60
    last.scroll_into_view_if_needed()
    until(page, "[...document.querySelectorAll('#wall img')].at(-1).naturalWidth > 1")


def test_sort_and_filter_stay_while_a_channel_is_looked_at(visit: Any, single: Rendered) -> None:
    data, _, file = single
    layer = data.layers[1]
    page = visit(file).open(f"#layers/{layer.slug}/index.html")
    page.select_option("#sort", "max")
    alive = [channel for channel in layer.rows if not channel.dead]
    order = "Array.from(document.querySelectorAll('#wall > li:not([hidden])'), (item) => Number(item.dataset.index))"
    assert page.evaluate(order) == [c.index for c in sorted(alive, key=lambda c: -c.largest)]
    page.keyboard.press("Escape")
    page.keyboard.press("/")
    page.keyboard.type("temple")
    expected = [
        c.index for c in sorted(alive, key=lambda c: -c.largest) if any(h.label == "temple" for h in c.hits)
    ]
    assert expected and page.evaluate(order) == expected
    page.click(f"#c{expected[0]} a")
    at(page, f"#layers/{layer.slug}/c{expected[0]:04d}.html", f"channel {expected[0]}")
    page.go_back()
    page.wait_for_selector("#wall")
    assert page.evaluate(order) == expected
    assert page.evaluate("document.activeElement.closest('li').id") == f"c{expected[0]}"


def test_the_help_of_every_page(visit: Any, single: Rendered) -> None:
    data, _, file = single
    page = visit(file).open()
    page.click("[data-help]")
    assert page.locator("#help").is_visible()
    page.click("#help button")
    page.evaluate(f"location.hash = '#layers/{data.layers[0].slug}/index.html'")
    page.wait_for_selector("#wall")
    assert page.locator(".keys").is_visible() and "filter" in page.inner_text(".keys")
    page.keyboard.press("?")
    assert page.locator("#help").is_visible()
    page.click("#help a")
    page.wait_for_selector("#reading")
    assert page.locator("#help").is_hidden()


def test_the_facts_can_be_saved(visit: Any, single: Rendered) -> None:
    data, folder, file = single
    page = visit(file).open(f"#layers/{data.layers[0].slug}/c0000.html")
    page.wait_for_selector("figure")
    with page.expect_download() as download:
        page.click("footer a >> text=JSON")
    assert download.value.suggested_filename == "report.json"
    assert Path(download.value.path()).read_bytes() == (folder / "report.json").read_bytes()


def test_a_montage_can_be_saved(visit: Any, tmp_path: Path) -> None:
    data = make_report(tmp_path, layers=1, channels=2)
    Image.new("RGB", (30, 20), (1, 2, 3)).save(tmp_path / "all 9%.png")
    data = replace(data, layers=(replace(data.layers[0], montage="all 9%.png"),))
    file = tmp_path / "one" / "file.html"
    file.parent.mkdir()
    write_single(data, tmp_path, file)
    page = visit(file).open(f"#layers/{data.layers[0].slug}/index.html")
    with page.expect_download() as download:
        page.click("text=Montage")
    assert download.value.suggested_filename == "all 9%.png"
    assert Path(download.value.path()).read_bytes() == (tmp_path / "all 9%.png").read_bytes()


def test_a_link_in_a_new_tab(visit: Any, single: Rendered) -> None:
    data, _, file = single
    watched = visit(file)
    page = watched.open()
    with watched.context.expect_page() as opened:
        page.click(f"a[href='#layers/{data.layers[1].slug}/index.html'] >> nth=0", modifiers=["Control"])
    opened.value.wait_for_selector("#wall")


def test_without_script_the_index_reads(visit: Any, single: Rendered) -> None:
    data, _, file = single
    page = visit(file, java_script_enabled=False).open()
    assert "need JavaScript" in page.inner_text("noscript")
    text = page.inner_text("main")
    assert all(layer.title in text for layer in data.layers) and data.model.sha256 in text
    page.click(".sections a >> text=Provenance")
    assert page.url.endswith("#provenance")


def test_an_old_browser_is_told(visit: Any, single: Rendered) -> None:
    data, _, file = single
    watched = visit(file)
    watched.page.add_init_script("delete window.DecompressionStream")
    page = watched.open(f"#layers/{data.layers[0].slug}/index.html")
    assert "need JavaScript, of a browser from 2023 or later" in page.inner_text("main")
    assert page.locator("h1").is_visible()


def test_no_script_runs_but_those_of_the_report(browser: Any, single: Rendered, tmp_path: Path) -> None:
    """Were a name ever not escaped, the content security policy would still stop it."""
    file = tmp_path / "broken.html"
    text = single[2].read_text(encoding="utf-8")
    broken = "<script>window.broken = 1</script><img src=x onerror='window.broken = 2'><h1>"
    file.write_text(text.replace("<h1>", broken, 1), encoding="utf-8")
    page = browser.new_page()
    page.goto(file.as_uri())
    assert page.locator("h1").is_visible() and page.evaluate("window.broken ?? null") is None
    page.close()


def test_names_do_no_harm_on_any_page(visit: Any, hostile_single: Rendered) -> None:
    data, _, file = hostile_single
    page = visit(file).open()
    assert HOSTILE[0] in page.inner_text("main")
    for layer in data.layers:
        for name in ("index.html", "all.html", page_of(layer.rows[1])):
            page.evaluate("(path) => { location.hash = path; }", f"layers/{layer.slug}/{name}")
            until(
                page,
                "(path) => document.querySelector('.crumbs [aria-current]') && location.hash === '#' + path"
                " && document.activeElement.id === 'main'",
                arg=f"layers/{layer.slug}/{name}",
            )
            until(page, DRAWN)
            assert (
                page.evaluate("document.scripts.length + document.querySelectorAll('[onerror]').length") == 1
            )


def test_pictures_of_a_diagram(visit: Any, single: Rendered, tmp_path: Path) -> None:
    """An image inside SVG has its address in href; the one here stands in the inline index."""
    _, _, file = single
    text = file.read_text(encoding="utf-8")
    (source,) = {one for one in store_of(file).sources if one.endswith("filters-own.png")}
    drawn = f'<image id="drawn" href="{source}" width="44" height="44"></image></svg>'
    changed = tmp_path / "diagram.html"
    changed.write_text(text.replace("</svg>", drawn, 1), encoding="utf-8")
    page = visit(changed).open()
    until(page, "document.getElementById('drawn').href.baseVal.startsWith('blob:')")
    until(page, "document.getElementById('drawn').getBoundingClientRect().width > 10")
    page.wait_for_timeout(300)
    assert _shot(page.locator("#drawn")).std() > 30  # the fixture's filters are noise, a mat is even


# The file itself


@pytest.mark.parametrize(
    ("name", "content", "part"),
    [
        ("mine.html", "<!doctype html>\n<p>mine", "is not a report of onnxviz in one file and would be lost"),
        ("empty.html", "", "would be lost"),
        ("late.html", " " * 2000 + '<meta name="generator" content="onnxviz single file">', "would be lost"),
        ("report.txt", None, "must end in .html"),
        ("report", None, "must end in .html"),
        ("folder.html", "", "found a folder"),
        ("file/below/report.html", None, "is no folder"),
    ],
)
def test_a_file_that_must_not_be_written(tmp_path: Path, name: str, content: str | None, part: str) -> None:
    (tmp_path / "file").write_text("keep")
    path = tmp_path / name
    if part == "found a folder":
        path.mkdir()
    elif content is not None:
        path.write_text(content)
    with pytest.raises(UsageError, match=re.escape(part)) as raised:
        check_file(path)
    assert str(path) in str(raised.value) and "\n" not in str(raised.value)


def test_the_folders_own_pages_are_not_overwritten(single: Rendered) -> None:
    _, folder, file = single
    with pytest.raises(UsageError, match="would be lost"):
        check_file(folder / "index.html")
    check_file(file)
    check_file(file.with_name("new") / "REPORT.HTML")


@pytest.mark.parametrize(
    ("folder", "file"),
    [
        ("reports/net", "reports/net.html"),
        ("a.b", "a.b.html"),
        ("x/", "x.html"),
        (".", "../{}.html"),
        ("..", None),
    ],
)
def test_where_the_file_of_a_folder_goes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, folder: str, file: str | None
) -> None:
    (tmp_path / "up" / "here").mkdir(parents=True)
    monkeypatch.chdir(tmp_path / "up" / "here")
    expected = tmp_path / "up.html" if file is None else Path(file.format("here"))
    assert file_beside(Path(folder)).resolve() == expected.resolve()


def test_a_folder_without_a_name() -> None:
    with pytest.raises(UsageError, match="--out"):
        file_beside(Path("/"))


def test_it_is_written_bit_by_bit(tmp_path: Path) -> None:
    data = make_report(tmp_path, layers=2, channels=8, top=1)
    big = [path for path in (tmp_path / "pictures").iterdir() if path.suffix == ".webp"]
    assert len(big) >= 15
    for path in big:
        path.write_bytes(bytes(2 << 20))
    write_single(data, tmp_path, tmp_path / "warm.html")
    tracemalloc.start()
    write_single(data, tmp_path, tmp_path / "a.html")
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert (tmp_path / "a.html").stat().st_size > 30 << 20
    assert peak < 16 << 20


def test_the_same_bytes_each_time(single: Rendered, tmp_path: Path) -> None:
    data, folder, file = single
    write_single(data, folder, tmp_path / "again.html")
    assert (tmp_path / "again.html").read_bytes() == file.read_bytes()


def test_a_picture_outside_the_folder_is_refused(tmp_path: Path) -> None:
    data = make_report(tmp_path / "out", layers=1, channels=1)
    (tmp_path / "secret.png").write_bytes(b"secret")
    layer = replace(data.layers[0], montage="../secret.png")
    with pytest.raises(ValueError, match="inside the report's folder"):
        write_single(replace(data, layers=(layer,)), tmp_path / "out", tmp_path / "a.html")
