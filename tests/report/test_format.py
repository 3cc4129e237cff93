from __future__ import annotations

import math
import re

import pytest

from onnxviz.report import format as shown


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (0.0, "0"),
        (-0.0, "0"),
        (2.0, "2"),
        (30.8, "30.80"),
        (-7.5744, "−7.574"),
        (1203.4, "1,203"),
        (1234567.8, "1,234,568"),
        (0.04213, "0.04213"),
        (0.0000123456, "1.235×10⁻⁵"),
        (-6.02e23, "−6.020×10²³"),
        (math.nan, "n/a"),
        (-math.inf, "−∞"),
    ],
)
def test_number(value: float, text: str) -> None:
    assert shown.number(value) == text


@pytest.mark.parametrize(
    ("share", "text"),
    [
        (0.0, "0 %"),
        (0.0004, "< 0.1 %"),
        (0.0371, "3.7 %"),
        (0.431, "43 %"),
        (0.9996, "> 99.9 %"),
        (1.0, "100 %"),
        (math.nan, "n/a"),
    ],
)
def test_percent(share: float, text: str) -> None:
    assert shown.percent(share) == text


def test_size_of_a_vector() -> None:
    assert shown.size(()) == "vector"
    assert shown.size((13, 1200)) == "13×1,200"


def test_date_does_not_depend_on_the_locale() -> None:
    assert shown.date("2025-11-02T04:03:10Z") == "2 November 2025, 04:03 UTC"


def test_url_quotes_what_a_browser_would_read_as_something_else() -> None:
    assert shown.url("a b/#1 100%?.png", "../../") == "../../a%20b/%231%20100%25%3F.png"
    assert shown.url("javascript:alert(1)", "") == "javascript%3Aalert%281%29"


@pytest.mark.parametrize("path", ["/etc/passwd", "../x.png", "a/../../x.png", "a\\b.png"])
def test_url_refuses_to_leave_the_folder(path: str) -> None:
    with pytest.raises(ValueError, match="inside the report's folder"):
        shown.url(path, "")


@pytest.mark.parametrize(
    ("box", "frame", "tile", "expected"),
    [
        ((50, 100, 100, 200), (200, 400), (100, 200), (25, 25, 25, 25)),
        ((-30, -30, 50, 500), (200, 400), (100, 200), (0, 0, 100, 25)),
        # A wide frame on a square tile lies in its middle.
        ((0, 0, 200, 400), (200, 400), (72, 72), (25, 0, 100, 50)),
        ((0, 0, 200, 100), (200, 100), (72, 72), (0, 25, 50, 100)),
    ],
    ids=["inside", "clipped", "wide frame", "tall frame"],
)
def test_place(
    box: tuple[int, int, int, int],
    frame: tuple[int, int],
    tile: tuple[int, int],
    expected: tuple[float, float, float, float],
) -> None:
    assert shown.place(box, frame, tile) == pytest.approx(expected)


def test_part_reaches_beyond_the_frame() -> None:
    assert shown.part((-30, 100, 50, 500), (200, 400)) == pytest.approx((-15, 25, 100, 40))


def test_style_of_a_place() -> None:
    assert shown.Place(-15, 25.126, 100, 0).style("b") == "--bt:-15.00%;--bl:25.13%;--bw:100.00%;--bh:0.00%"


def test_bars_stand_on_a_line_each_as_high_as_its_count() -> None:
    path = shown.bars((4, 0, 1, 8, 2000))
    bars = re.findall(r"M([\d.]+) 66v-([\d.]+)h([\d.]+)v([\d.]+)z", path)
    assert "".join(f"M{x} 66v-{up}h{width}v{down}z" for x, up, width, down in bars) == path
    assert [float(x) for x, *_ in bars] == [0, 128, 192, 256]  # none where there is nothing
    assert [float(up) for _, up, _, _ in bars] == [1.5, 1.5, 1.5, 64]  # what is very low is still to be seen
    assert all(
        up == down and float(width) == pytest.approx(64 - 0.8, abs=0.05) for _, up, width, down in bars
    )
