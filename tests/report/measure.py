"""How quick a layer's page is: ``python -m tests.report.measure`` prints a table.

Reports of 512 and 2,048 channels are written, and each one's wall is opened from the disk in headless Chromium, in a
fresh context each round. Times are from the event to the second animation frame after it, so that what it changed is
on the screen; a frame's wait of up to 17 ms is in them.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from pathlib import Path
from statistics import median
from typing import Any

from onnxviz.report.render import write_report

from .chromium import NO_BROWSER, find_browser, start_browser
from .fixture import make_wall

ACT = """([selector, value, event]) => new Promise((done) => {
    const element = document.querySelector(selector);
    const start = performance.now();
    element.value = value;
    element.dispatchEvent(new Event(event, { bubbles: true }));
    requestAnimationFrame(() => requestAnimationFrame(() => done(performance.now() - start)));
})"""
"""Set a field as a reader does; answers with the milliseconds until it shows."""
SCROLL = """(step) => new Promise((done) => {
    const frames = [];
    let before = performance.now();
    const next = (now) => {
        frames.push(now - before);
        before = now;
        const y = scrollY;
        scrollBy({ top: step, behavior: "instant" });
        if (scrollY === y) done(frames.slice(1));
        else requestAnimationFrame(next);
    };
    requestAnimationFrame(next);
})"""
"""Scroll to the end, a step a frame; answers with the frames' milliseconds."""
PAINT = """() => new Promise((done) => {
    const look = () => {
        const [paint] = performance.getEntriesByName("first-contentful-paint");
        const [page] = performance.getEntriesByType("navigation");
        if (paint && page.loadEventEnd) done([paint.startTime, page.loadEventEnd]);
        else setTimeout(look, 20);
    };
    look();
})"""
WORDS = ("4", "41", "t", "te", "tem", "temp", "temple", "temple kind", "no such thing")
"""Typed one after the other: a channel, a class, nothing."""


def measure(browser: Any, page: Path) -> dict[str, list[float]]:
    """One round: each quantity's values in milliseconds, or counts."""
    context = browser.new_context(viewport={"width": 1280, "height": 800})
    tab = context.new_page()
    requests: list[str] = []
    tab.on("request", lambda request: requests.append(request.resource_type))
    try:
        tab.goto(page.as_uri())
        painted, loaded = tab.evaluate(PAINT)
        tab.wait_for_timeout(300)
        result = {
            "first contentful paint": [painted],
            "load event": [loaded],
            "pictures requested before scrolling": [requests.count("image")],
        }

        def act(selector: str, event: str, *values: str) -> list[float]:
            return [tab.evaluate(ACT, [selector, value, event]) for value in values]

        result["filter, each key"] = act("#filter", "input", *WORDS)
        result["filter cleared"] = act("#filter", "input", "")
        result["sort"] = act("#sort", "change", "max", "sel", "index")
        result["show"] = act("#state", "change", "near", "alive", "all")
        result["size slider, each step"] = act("#size", "input", "310", "400", "560", "150", "300")
        frames = tab.evaluate(SCROLL, 240)
        result["scrolling: longest frame"] = [max(frames)]
        result["scrolling: frames over 50 ms"] = [sum(frame > 50 for frame in frames)]
        result["scrolling: frames"] = [len(frames)]
        return result
    finally:
        context.close()


def main() -> None:
    """Write the reports, measure, print."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--channels", type=int, nargs="+", default=[512, 2048])
    options = parser.parse_args()
    executable = find_browser()
    if executable is None:
        sys.exit(NO_BROWSER)
    print("| channels | what | median | worst |\n| --- | --- | --- | --- |")
    for channels in options.channels:
        with tempfile.TemporaryDirectory() as folder, start_browser(executable) as browser:
            data = make_wall(Path(folder), channels)
            write_report(data, Path(folder))
            page = Path(folder) / "layers" / data.layers[0].slug / "index.html"
            print(f"| {channels:,} | size of the page | {page.stat().st_size / 1000:,.0f} kB | |")
            rounds = [measure(browser, page) for _ in range(options.rounds)]
        for what in rounds[0]:
            values = [value for one in rounds for value in one[what]]
            unit = "" if what.startswith("pictures") or what.endswith(("frames", "50 ms")) else " ms"
            print(
                f"| {channels:,} | {what} | {median(values):,.0f}{unit} | {max(values):,.0f}{unit} |",
                flush=True,
            )


if __name__ == "__main__":
    main()
