"""The screenshots in README: ``python -m tests.report.screenshots`` makes them anew, of reports as users get them.

Each is of a report on the SqueezeNet and the samples that come with onnxviz.
"""

from __future__ import annotations

import io
import sys
import tempfile
from pathlib import Path
from typing import Any

from PIL import Image

import onnxviz

from .chromium import NO_BROWSER, find_browser, start_browser

ROOT = Path(__file__).parents[2]
OUT = ROOT / "reports" / "screenshots"
MODEL = ROOT / "models" / "squeezenet1_1.onnx"
RUNS: dict[str, dict[str, Any]] = {
    "plain": {"layers": ("conv1", "fire4/expand3x3", "fire6/expand3x3")},
    "compared": {
        "layers": "fire6/expand3x3",
        "channels": "20-27",
        "method": ("deconvnet", "guided", "gradient"),
        "control": True,
    },
}
SHOTS = {
    "network": ("plain", "index.html", 1260, 900),
    "channels": ("plain", "layers/fire6-expand3x3/index.html", 1180, 1000),
    "channel": ("plain", "layers/fire6-expand3x3/c0025.html", 1180, 1130),
    "methods": ("compared", "layers/fire6-expand3x3/compare.html#channels", 1180, 900),
}
"""By name: a run, a page of its report, and how much of that to show."""
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
        for run, options in RUNS.items():
            onnxviz.analyze(MODEL, provider="cpu", report=Path(folder) / run, **options)
        for name, (run, path, width, height) in SHOTS.items():
            tab = browser.new_page(viewport={"width": width, "height": height}, color_scheme="light")
            file, _, part = path.partition("#")
            tab.goto(f"{(Path(folder) / run / file).as_uri()}#{part}")
            tab.evaluate(_LOAD)
            with Image.open(io.BytesIO(tab.screenshot())) as shot:
                shot.convert("RGB").save(OUT / f"{name}.jpg", quality=82, optimize=True)
            print(OUT / f"{name}.jpg")


if __name__ == "__main__":
    main()
