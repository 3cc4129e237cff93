from __future__ import annotations

import dataclasses
import json
import math
import re
from html.parser import HTMLParser
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

import pytest
from jinja2 import StrictUndefined, UndefinedError

from onnxviz.errors import OnnxvizError, UsageError
from onnxviz.report.data import ReportData
from onnxviz.report.folder import MANIFEST
from onnxviz.report.render import layer_pages, make_environment, page_of, static_names, write_report

from .fixture import HOSTILE, make_report, plain

Rendered = tuple[ReportData, Path]
VOID = frozenset(["area", "base", "br", "col", "hr", "img", "input", "link", "meta", "source", "wbr"])


class Page(HTMLParser):
    """A page's tags, references, ids and text; complains of tags that do not close."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.path = path
        self.open: list[str] = []
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.ids: list[str] = []
        self.references: list[str] = []
        self.text = ""
        self.feed(path.read_text(encoding="utf-8"))
        self.close()
        assert not self.open, (path, self.open)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        values = dict(attrs)
        assert len(values) == len(attrs), (self.path, tag, attrs)
        self.tags.append((tag, values))
        if tag not in VOID:
            self.open.append(tag)
        if values.get("id"):
            self.ids.append(str(values["id"]))
        self.references += [str(values[name]) for name in ("href", "src") if name in values]

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.handle_starttag(tag, attrs)
        if tag not in VOID:
            self.open.pop()

    def handle_endtag(self, tag: str) -> None:
        assert self.open and self.open.pop() == tag, (self.path, tag, self.getpos())

    def handle_data(self, data: str) -> None:
        self.text += data


def pages_of(out: Path) -> dict[Path, Page]:
    return {path: Page(path) for path in sorted(out.rglob("*.html"))}


@pytest.fixture(params=["report", "hostile"])
def rendered(request: pytest.FixtureRequest) -> Rendered:
    result: Rendered = request.getfixturevalue(request.param)
    return result


def test_returns_the_index(tmp_path: Path) -> None:
    out = tmp_path / "new" / "folder"
    assert write_report(make_report(tmp_path, layers=1, channels=1), out) == out / "index.html"
    assert (out / "index.html").is_file()


def test_every_link_anchor_and_picture_resolves(rendered: Rendered) -> None:
    _, out = rendered
    pages = pages_of(out)
    broken = []
    for path, page in pages.items():
        for reference in page.references:
            parts = urlsplit(reference)
            if reference == "data:,":  # no favicon
                continue
            target = (path.parent / unquote(parts.path)).resolve() if parts.path else path
            local = not parts.scheme and not parts.netloc and not parts.query
            found = target.is_file() and target.is_relative_to(out.resolve())
            anchor = not parts.fragment or (target in pages and unquote(parts.fragment) in pages[target].ids)
            if not (local and found and anchor):
                broken.append((path.relative_to(out), reference))
    assert broken == []


def test_pages_are_well_formed(rendered: Rendered) -> None:
    data, out = rendered
    pages = pages_of(out)
    walls = 2 if data.provenance.compared else 1
    assert len(pages) == 1 + sum(walls + 1 + len(layer.rows) for layer in data.layers)
    for path, page in pages.items():
        tags = [tag for tag, _ in page.tags]
        assert tags.count("h1") == tags.count("main") == 1, path
        assert len(page.ids) == len(set(page.ids)), path
        assert all(values.get("alt") for tag, values in page.tags if tag == "img"), path
        assert ("html", {"lang": "en"}) in page.tags, path


def test_json_has_the_same_facts(report: Rendered) -> None:
    data, out = report
    facts = json.dumps(dataclasses.asdict(data))
    assert json.loads((out / "report.json").read_text()) == json.loads(facts, parse_constant=lambda _: None)


def test_json_has_null_for_what_is_no_number(hostile: Rendered) -> None:
    data, out = hostile
    assert math.isnan(data.layers[0].rows[0].mean)

    def refuse(name: str) -> Any:
        raise AssertionError(name)

    content = json.loads((out / "report.json").read_text(), parse_constant=refuse)
    assert content["layers"][0]["rows"][0]["mean"] is None
    assert content["title"] == HOSTILE[0]


def test_hostile_names_stay_text(hostile: Rendered) -> None:
    _, out = hostile
    for path, page in pages_of(out).items():
        scripts = [values for tag, values in page.tags if tag == "script"]
        assert len(scripts) == 1 and "src" in scripts[0], path
        assert not [values for _, values in page.tags if any(name.startswith("on") for name in values)], path
    index = Page(out / "index.html")
    assert all(name in index.text for name in HOSTILE[:7])
    assert "broken ? name" in index.text  # a lone surrogate has no UTF-8


def test_the_index_says_where_everything_came_from(report: Rendered) -> None:
    data, out = report
    text = Page(out / "index.html").text
    m, p = data.model, data.provenance
    facts = [data.title, m.file, m.sha256, m.producer, str(m.opset), m.input, p.data_set, p.preprocess]
    facts += [p.preprocess_origin, p.method, p.ranking, p.seed, p.provider, str(p.command), *p.notes]
    facts += [fact for pair in (*p.policies, *p.versions, *p.skipped) for fact in pair]
    facts += [label for label, _ in p.classes]
    facts += ["22 November 2025, 14:43 UTC", "1,235,496", "Adebayo", "Nie", "switches"]
    assert [fact for fact in facts if fact not in text] == []


def test_the_diagram_links_the_analysed_layers(report: Rendered) -> None:
    data, out = report
    page = Page(out / "index.html")
    links = [
        str(values["href"]) for tag, values in page.tags if tag == "a" and values.get("class") == "analysed"
    ]
    assert sorted(links) == sorted(f"layers/{layer.slug}/index.html" for layer in data.layers)
    assert all(f"{node.title} · {node.op}" in page.text for node in data.diagram)


def test_a_layer_page_shows_every_channel(report: Rendered) -> None:
    data, out = report
    layer = data.layers[1]
    page = Page(out / "layers" / layer.slug / "index.html")
    assert {page_of(channel) for channel in layer.rows} | {"all.html"} <= set(page.references)
    pictures = [values for tag, values in page.tags if tag == "img"]
    assert len(pictures) == 1 + sum(not channel.dead for channel in layer.rows)
    assert all(values["loading"] == "lazy" and values["width"] == str(6 * 72) for values in pictures)
    assert "Dead channels" in page.text
    around = {"../" + data.layers[i].slug + "/index.html" for i in (0, 2)}
    assert around <= set(page.references)


def test_a_channel_page_shows_six_pictures_a_hit(report: Rendered) -> None:
    data, out = report
    layer = data.layers[1]
    channel = layer.rows[1]
    page = Page(out / "layers" / layer.slug / page_of(channel))
    assert sum(tag == "img" for tag, _ in page.tags) == 6 * len(channel.hits) + len(channel.related)
    assert sum(tag == "i" for tag, _ in page.tags) == 3 * len(channel.hits)
    assert all(hit.image in page.text and f"({hit.y}, {hit.x})" in page.text for hit in channel.hits)
    assert {"c0000.html", "c0002.html", "index.html#c1"} <= set(page.references)


def test_a_channel_page_compares_its_images_with_all(report: Rendered) -> None:
    data, out = report
    layer = data.layers[1]
    channel = layer.rows[1]
    page = Page(out / "layers" / layer.slug / page_of(channel))
    assert channel.histogram is not None
    (bars,) = (str(values["d"]) for _, values in page.tags if values.get("class") == "bars")
    (marks,) = (str(values["d"]) for _, values in page.tags if values.get("class") == "marks")
    assert bars.count("M") == sum(count > 0 for count in channel.histogram.counts)
    tops = [float(mark.split()[0]) for mark in marks.split("M")[1:]]
    span = channel.histogram.high - channel.histogram.low
    expected = [320 * (hit.activation - channel.histogram.low) / span for hit in channel.hits]
    assert tops == pytest.approx(expected, abs=0.06)
    assert "a sample of all 1,203" in page.text
    for one in channel.classes:
        assert one.label in page.text and f"{one.hits} of {len(channel.hits)}" in page.text
    assert {f"c{other.index:04d}.html" for other in channel.related} <= set(page.references)
    assert all(f"r {other.r:.2f}" in page.text for other in channel.related)


def test_the_index_has_a_table_of_layers(report: Rendered) -> None:
    data, out = report
    text = Page(out / "index.html").text
    start = text.index("Nearly dead")
    for layer in data.layers:
        start = text.index(layer.title, start)
        row = text[start : start + 200]
        assert f"{layer.channels:,}" in row and layer.op in row


def test_the_index_shows_the_first_filters(report: Rendered) -> None:
    data, out = report
    assert data.filters is not None
    page = Page(out / "index.html")
    pictures = [str(values["src"]) for tag, values in page.tags if tag == "img"]
    for sprite in (data.filters.shared, data.filters.own):
        assert pictures.count(sprite.path) == len(data.filters.filters)
    states = [values.get("class") for tag, values in page.tags if tag == "li"]
    assert [states.count(state) for state in ("dead", "dominating")] == [1, 1]
    first = data.layers[0]
    assert {f"layers/{first.slug}/{page_of(row)}" for row in first.rows} <= set(page.references)


def test_methods_are_compared_where_the_run_made_several(report: Rendered, comparing: Rendered) -> None:
    for (data, out), number in ((report, 0), (comparing, 7)):
        layer = data.layers[0]
        folder = out / "layers" / layer.slug
        assert (folder / "compare.html").exists() is bool(number)
        for channel in layer.rows:
            text = (folder / page_of(channel)).read_text(encoding="utf-8")
            _, found, section = text.partition('id="compare"')
            assert bool(found) is (bool(number) and not channel.dead)
            if found:
                section = section.partition("</section>")[0]
                assert section.count("<img") == number * len(channel.hits)
                assert section.count("shuffled weights") >= len(channel.hits)
        index = (out / "index.html").read_text(encoding="utf-8")
        assert ("shuffled weights" in index) is bool(number)


def test_a_dead_channel_is_said_to_be_dead(report: Rendered) -> None:
    data, out = report
    layer = data.layers[1]
    (dead,) = (channel for channel in layer.rows if channel.dead)
    page = Page(out / "layers" / layer.slug / page_of(dead))
    assert "Dead." in page.text and "−0.04210" in page.text
    assert not [tag for tag, _ in page.tags if tag == "img"]


@pytest.mark.parametrize("top", [1, 4, 5, 25])
def test_any_number_of_hits(tmp_path: Path, top: int) -> None:
    data = make_report(tmp_path, layers=1, channels=2, top=top)
    write_report(data, tmp_path)
    page = Page(tmp_path / "layers" / data.layers[0].slug / "c0000.html")
    assert sum(tag == "figure" for tag, _ in page.tags) == top


def test_empty_parts_are_left_out(tmp_path: Path) -> None:
    data = make_report(tmp_path, layers=1, channels=6)
    (layer,) = data.layers
    dead = tuple(channel for channel in layer.rows if channel.dead)
    layer = dataclasses.replace(layer, rows=dead, all_channels=dataclasses.replace(dead[0], index=None))
    provenance = dataclasses.replace(
        data.provenance, classes=(), skipped=(), notes=(), command=None, policies=()
    )
    write_report(dataclasses.replace(data, provenance=provenance, diagram=(), layers=(layer,)), tmp_path)
    text = Page(tmp_path / "index.html").text
    assert "Skipped" not in text and "Command" not in text and "No diagram" in text
    assert "ever above 0" in Page(tmp_path / "layers" / layer.slug / "index.html").text


def test_pages_of_a_former_run_go_and_nothing_else(tmp_path: Path) -> None:
    first = make_report(tmp_path, layers=3, channels=4)
    pictures = [path.relative_to(tmp_path).as_posix() for path in (tmp_path / "pictures").iterdir()]
    stale = f"pictures/{first.layers[2].slug}-0-card.png"
    write_report(first, tmp_path, pictures=pictures)
    foreign = [
        tmp_path / "layers" / first.layers[2].slug / "my notes.txt",
        tmp_path / "pictures" / "mine.png",
    ]
    for path in foreign:
        path.write_text("keep")
    second = make_report(tmp_path, layers=1, channels=2, diagram=plain())
    write_report(second, tmp_path)
    assert len(list(tmp_path.rglob("*.html"))) == 1 + 2 + 2
    assert [path.read_text() for path in foreign] == ["keep", "keep"]
    assert {path.name for path in (tmp_path / "layers").iterdir()} == {"conv1-0", first.layers[2].slug}
    assert stale in pictures and not (tmp_path / stale).exists()
    assert not list(tmp_path.rglob("*.part"))


def test_a_picture_in_use_stays_though_only_the_former_run_listed_it(tmp_path: Path) -> None:
    data = make_report(tmp_path, layers=1, channels=1)
    pictures = {path.relative_to(tmp_path).as_posix() for path in (tmp_path / "pictures").iterdir()}
    write_report(data, tmp_path, pictures=pictures)
    write_report(data, tmp_path)
    used = {hit.thumbnail for channel in data.layers[0].rows for hit in channel.hits}
    assert used and all((tmp_path / path).is_file() for path in used)
    assert used <= set(json.loads((tmp_path / MANIFEST).read_text())["files"])


def test_a_list_of_files_cannot_reach_outside(tmp_path: Path) -> None:
    out, outside = tmp_path / "out", tmp_path / "precious.txt"
    data = make_report(out, layers=1, channels=1)
    outside.write_text("keep")
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "elsewhere" / "a.html").write_text("keep")
    (out / "link").symlink_to(tmp_path / "elsewhere")
    listed = ["../precious.txt", str(outside), "link/a.html", ""]
    (out / MANIFEST).write_text(json.dumps({"format": 1, "files": listed}))
    write_report(data, out)
    assert outside.read_text() == (tmp_path / "elsewhere" / "a.html").read_text() == "keep"


@pytest.mark.parametrize("content", ["", "[]", '{"format": 1}', '{"format": 2, "files": []}', '{"files": 3}'])
def test_a_damaged_list_of_files_is_said(tmp_path: Path, content: str) -> None:
    data = make_report(tmp_path, layers=1, channels=1)
    (tmp_path / MANIFEST).write_text(content)
    with pytest.raises(OnnxvizError, match=re.escape(MANIFEST)):
        write_report(data, tmp_path)


def test_an_index_of_somebody_else_is_not_overwritten(tmp_path: Path) -> None:
    data = make_report(tmp_path, layers=1, channels=1)
    (tmp_path / "index.html").write_text("my site")
    with pytest.raises(UsageError, match="not a report of onnxviz"):
        write_report(data, tmp_path)
    assert (tmp_path / "index.html").read_text() == "my site"


def test_a_file_for_a_folder_is_said(tmp_path: Path) -> None:
    data = make_report(tmp_path, layers=1, channels=1)
    (tmp_path / "out").write_text("")
    with pytest.raises(UsageError, match="expected a folder"):
        write_report(data, tmp_path / "out")


@pytest.mark.parametrize("slug", ["../up", "Conv", "a b", ""])
def test_a_slug_cannot_be_a_path(tmp_path: Path, slug: str) -> None:
    data = make_report(tmp_path, layers=1, channels=1)
    layer = dataclasses.replace(data.layers[0], slug=slug)
    with pytest.raises(ValueError, match="slug"):
        write_report(dataclasses.replace(data, layers=(layer,), diagram=()), tmp_path)
    assert not (tmp_path / MANIFEST).exists()


def test_templates_are_compiled_once(report: Rendered, monkeypatch: pytest.MonkeyPatch) -> None:
    data, _ = report

    def pages() -> list[tuple[str, str]]:
        return list(layer_pages(make_environment(data, static_names()), data, data.layers[0]))

    first = pages()
    monkeypatch.delattr("jinja2.Environment.compile")
    assert pages() == first


def test_templates_are_strict_and_escape(report: Rendered) -> None:
    environment = make_environment(report[0], {})
    assert environment.undefined is StrictUndefined
    with pytest.raises(UndefinedError):
        environment.from_string("{{ missing }}").render()
    assert environment.from_string("{{ x }}").render(x="<\"'>") == "&lt;&#34;&#39;&gt;"


def test_rendering_twice_gives_the_same_bytes(tmp_path: Path) -> None:
    data = make_report(tmp_path, layers=2, channels=3)
    contents = []
    for _ in range(2):
        write_report(data, tmp_path)
        contents.append({path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()})
    assert contents[0] == contents[1]
