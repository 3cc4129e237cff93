"""The screenshots in README: ``python -m tests.report.screenshots`` makes them anew, of reports as users get them.

Each is of a report on the SqueezeNet and the samples that come with onnxviz.
"""

from __future__ import annotations

import io
import sys
import tempfile
from pathlib import Path

from PIL import Image

import onnxviz

from .chromium import NO_BROWSER, find_browser, start_browser

ROOT = Path(__file__).parents[2]
OUT = ROOT / "reports" / "screenshots"
LAYERS = ("conv1", "fire4/expand3x3", "fire6/expand3x3")
SHOTS = {
    "network": ("index.html", 1260, 900),
    "channels": ("layers/fire6-expand3x3/index.html", 1180, 1000),
    "channel": ("layers/fire6-expand3x3/c0025.html", 1180, 1130),
}
"""By name: a page, and how much of it to show."""
_LOAD = """() => Promise.all(Array.from(document.images, (image) => {
    image.loading = "eager";
    return image.decode().catch(() => null);
}))"""


def main() -> None:
    """Analyse, open, and save the pictures."""
    executable = find_browser()
    if executable is None:
        sys.exit(NO_BROWSER)
    OUT.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as folder, start_browser(executable) as browser:
        model = ROOT / "models" / "squeezenet1_1.onnx"
        page = onnxviz.analyze(model, layers=LAYERS, provider="cpu").report(folder)
        for name, (path, width, height) in SHOTS.items():
            tab = browser.new_page(viewport={"width": width, "height": height}, color_scheme="light")
            tab.goto((page.parent / path).as_uri())
            tab.evaluate(_LOAD)
            with Image.open(io.BytesIO(tab.screenshot())) as shot:
                shot.convert("RGB").save(OUT / f"{name}.jpg", quality=82, optimize=True)
            print(OUT / f"{name}.jpg")


if __name__ == "__main__":
    main()
