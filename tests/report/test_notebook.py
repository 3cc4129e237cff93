"""What a notebook shows, in a browser: pictures and words on the notebook's own colours, light or dark."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

import onnxviz
from tests.model.nets import small, write

from .test_browser import CONTRAST, LOADED

# The rules of JupyterLab that could spoil a fragment.
LAB = """table { border-collapse: collapse; font-size: 12px }
td, th { text-align: right; vertical-align: middle; padding: 0.5em; max-width: none }
tbody tr:nth-child(odd) { background: var(--layer) }
img { max-width: 100%; height: auto }"""
COLOURS = {"light": ("#fff", "#212121", "#f5f5f5"), "dark": ("#111", "#e0e0e0", "#222")}


@pytest.fixture(scope="module")
def fragments(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    folder = tmp_path_factory.mktemp("notebook")
    x = np.random.default_rng(2).normal(size=(12, 3, 12, 12)).astype(np.float32)
    np.savez(folder / "x.npz", x=x, y=np.arange(12) % 3)
    atlas = onnxviz.analyze(
        write(folder / "small.onnx", small()),
        images=folder / "x.npz",
        layers=["relu1", "fc2"],
        preprocess="raw",
        provider="cpu",
        labels=["a class", "x" * 300, "<b>"],
    )
    return [shown._repr_html_() for shown in (atlas, atlas["relu1"], atlas["relu1"][1], atlas["fc2"][0])]


@pytest.mark.parametrize("scheme", COLOURS)
@pytest.mark.parametrize("number", range(4))
def test_it_shows_on_light_and_dark(
    browser: Any, fragments: list[str], tmp_path: Path, scheme: str, number: int
) -> None:
    paper, ink, layer = COLOURS[scheme]
    page_style = (
        f"body {{ background: {paper}; color: {ink}; --layer: {layer}; font: 13px sans-serif }} {LAB}"
    )
    path = tmp_path / "notebook.html"
    path.write_text(
        f"<!doctype html><meta charset=utf-8><link rel=icon href=data:,><style>{page_style}</style>{fragments[number]}",
        encoding="utf-8",
    )
    context = browser.new_context(viewport={"width": 1100, "height": 800})
    asked: list[str] = []
    context.on("request", lambda request: asked.append(request.url))
    page = context.new_page()
    page.goto(path.as_uri())
    assert page.evaluate(LOADED) == []
    assert page.evaluate(CONTRAST) == []
    assert page.evaluate("document.documentElement.scrollWidth") <= 1100
    shapes = page.evaluate(
        "Array.from(document.images, (i) => [i.width / i.height, i.naturalWidth / i.naturalHeight, i.height])"
    )
    assert shapes
    for drawn, natural, height in shapes:
        assert drawn == pytest.approx(natural, rel=0.05)
        assert height >= 64
    assert not [url for url in asked if not url.startswith(("data:", path.as_uri()))]
    context.close()
