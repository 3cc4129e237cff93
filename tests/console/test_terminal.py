"""What people see of a run on a terminal."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from onnxviz.console.terminal import _shortened
from tests.model.nets import small, write

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="no pseudo-terminals")

ESCAPES = re.compile(r"\x1b\[[0-9;?]*[a-zA-Z]")


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    base = tmp_path_factory.mktemp("terminal")
    model = small()
    model.graph.node[0].name = "features/a.very/long/name/of.a/convolution"
    write(base / "small.onnx", model)
    (base / "photos").mkdir()
    rng = np.random.default_rng(1)
    for index in range(300):
        picture = Image.fromarray(rng.integers(0, 255, (16, 20, 3), np.uint8))
        picture.save(base / "photos" / f"{index}.png")
    for index in range(4):
        (base / "photos" / f"bad{index}.png").write_bytes(b"no picture")
    np.save(base / "many.npy", np.zeros((400_000, 12, 12, 3), np.uint8))
    return base


def _start(folder: Path, out: Path, images: str, columns: int) -> tuple[subprocess.Popen[bytes], int]:
    """A run with all its output on a terminal, and the terminal's other end."""
    command = [sys.executable, "-m", "onnxviz", "analyze", str(folder / "small.onnx"), "-l", "conv1"]
    command += ["--images", str(folder / images), "--out", str(out), "--provider", "cpu"]
    return _on_a_terminal(command, columns)


def _on_a_terminal(
    command: list[str], columns: int, stdout: int | None = None
) -> tuple[subprocess.Popen[bytes], int]:
    import pty

    main, terminal = pty.openpty()
    environment = {**os.environ, "TERM": "xterm", "COLUMNS": str(columns)}
    process = subprocess.Popen(command, stdout=stdout or terminal, stderr=terminal, env=environment)
    os.close(terminal)
    return process, main


def _read(main: int, until: bytes | None = None) -> bytes:
    """What is shown, to the end or until something appears."""
    seen = b""
    while until is None or until not in seen:
        try:
            seen += os.read(main, 65536)
        except OSError:
            break
    return seen


@pytest.mark.parametrize("columns", [70, 120])
def test_lines_fit_and_count_what_is_skipped(folder, tmp_path, columns):
    process, main = _start(folder, tmp_path / "out", "photos", columns)
    seen = _read(main).decode()
    os.close(main)
    assert process.wait(timeout=60) == 0
    shown = [ESCAPES.sub("", line) for line in re.split(r"[\r\n]+", seen)]
    bars = [line.rstrip() for line in shown if re.match(r"(Scanning|Recording|Project)", line)]
    assert bars and all(len(line) <= columns for line in bars)
    scanned = [line for line in bars if "304/304" in line]
    assert re.fullmatch(r"Scanning ━+ 304/304 4 skipped [\d,]+ images/s 0:00:0\d", scanned[-1])
    drawn = next(line for line in reversed(bars) if line.startswith("Project"))
    name = "Projecting features/a.very/long/name/of.a/convolution (conv1)"
    assert drawn.startswith(name) == (columns > 110)
    assert re.search(r"\(conv1\) ━+ 54/54\s+[\d,]+ projections/s 0:00:0\d$", drawn), drawn
    # A note while the model is opened stands on a line of its own; the clock beside it goes.
    assert sum("runs on CPU" in line and line.startswith("x: ") for line in shown) == 1
    assert "Opening" in seen
    last = [line for line in shown if line.strip()][-5:]
    assert last[0].startswith("300 images scanned, 4 skipped; ")
    assert last[1] == "  skipped 4 × not an image in a known format; the first: bad0.png"
    assert last[4] == f"Report: {tmp_path / 'out' / 'index.html'}"


def test_steps_of_a_former_run_are_not_in_the_rate():
    """A bar begins where that run ended; 20 steps a second are done in half a second."""
    script = (
        "import time\n"
        "from onnxviz.console.console import console\n"
        "with console() as told:\n"
        "    told.start('Scanning', 1000, 'images')\n"
        "    told.skipped('a', 'bad')\n"
        "    told.resumed(990)\n"
        "    for _ in range(10):\n"
        "        time.sleep(0.05)\n"
        "        told.advance()\n"
    )
    process, main = _on_a_terminal([sys.executable, "-c", script], 100)
    seen = _read(main).decode()
    os.close(main)
    assert process.wait(timeout=60) == 0, seen
    shown = [ESCAPES.sub("", line).rstrip() for line in re.split(r"[\r\n]+", seen)]
    assert any(re.match(r"Scanning \S+ +99\d/1000 1 skipped", line) for line in shown)
    last = [
        found for line in shown if (found := re.search(r" 1000/1000 1 skipped (\d+) images/s 0:00:0", line))
    ]
    assert last and 8 <= int(last[-1][1]) <= 20
    assert any(line.startswith("999 images scanned, 1 skipped; ") for line in shown)


@pytest.mark.parametrize("total", [0, 5], ids=["clock", "bar"])
def test_notes_go_where_standard_output_goes(total):
    """Also while a bar is shown on standard error; on one screen they stand above it."""
    script = (
        "from onnxviz.console.console import console\n"
        "with console() as told:\n"
        f"    told.start('Opening', {total}, 'steps')\n"
        "    told.note('[bold]a note')\n"
        "    print('and a line')\n"
        "    told.finish()\n"
    )
    process, main = _on_a_terminal([sys.executable, "-c", script], 100, stdout=subprocess.PIPE)
    stdout, _ = process.communicate(timeout=60)
    seen = _read(main)
    os.close(main)
    assert sorted(stdout.splitlines()[:2]) == [b"[bold]a note", b"and a line"]
    assert b"Opening" in seen and b"a note" not in seen and b"a line" not in seen
    process, main = _on_a_terminal([sys.executable, "-c", script], 100)
    lines = [ESCAPES.sub("", line) for line in re.split(r"[\r\n]+", _read(main).decode())]
    os.close(main)
    assert process.wait(timeout=60) == 0
    assert lines.count("[bold]a note") == 1


def test_the_cursor_is_back_after_a_signal_and_after_a_second_one(folder, tmp_path):
    for count in (1, 2):
        process, main = _start(folder, tmp_path / "out", "many.npy", 100)
        seen = _read(main, until=b"images/s")
        for _ in range(count):
            process.send_signal(signal.SIGTERM)
        seen += _read(main)
        os.close(main)
        assert process.wait(timeout=60) == 143
        assert seen.rindex(b"\x1b[?25h") > seen.rindex(b"\x1b[?25l")


@pytest.mark.parametrize(
    ("text", "width", "shown"),
    [
        ("conv1", 5, "conv1"),
        ("conv10", 5, "co…10"),
        ("Projecting features/convolution (conv1)", 20, "Projectin…on (conv1)"),
        ("", 12, ""),
    ],
)
def test_names_are_shortened_in_the_middle(text, width, shown):
    assert _shortened(text, width) == shown
    assert len(shown) <= width
