"""Ctrl-C and SIGTERM to real runs, in the midst of a scan and of drawing."""

from __future__ import annotations

import json
import pkgutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

import onnxviz
from onnxviz.interrupts import Terminated, ending_signals
from tests.model.nets import small, write

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="no signals between processes")

CODES = {"SIGINT": (130, "Interrupted.\n"), "SIGTERM": (143, "Terminated.\n")}
HEARD = [
    pytest.param("SIGINT", False, id="SIGINT"),
    pytest.param("SIGTERM", False, id="SIGTERM"),
    pytest.param("SIGTERM", True, id="SIGTERM-in-the-background"),
]
"""Signals, and whether SIGINT is ignored, as it is in what a shell starts in the background."""
SLOW = (
    "import sys, time\n"
    "import onnxviz.cli, onnxviz.pictures as pictures\n"
    "write = pictures._write\n"
    "pictures._HITS_IN_MEMORY = 9\n"
    "def slow(*arguments):\n"
    "    time.sleep(0.1)\n"
    "    write(*arguments)\n"
    "pictures._write = slow\n"
    "onnxviz.cli.main()\n"
)
"""The command line, drawing ten pictures a second."""


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    base = tmp_path_factory.mktemp("signals")
    write(base / "small.onnx", small())
    rng = np.random.default_rng(0)
    np.save(base / "few.npy", rng.integers(0, 255, (30, 12, 12, 3), np.uint8))
    np.save(base / "many.npy", np.zeros((400_000, 12, 12, 3), np.uint8))
    return base


def _start(
    folder: Path, out: Path, images: str, *, options: tuple[str, ...] = (), ignored: bool = False
) -> subprocess.Popen[str]:
    start = ["-c", SLOW] if images == "few.npy" else ["-m", "onnxviz"]
    command = [sys.executable, *start, "analyze", str(folder / "small.onnx"), "-l", "conv1", "-l", "conv2"]
    command += ["--images", str(folder / images), "--provider", "cpu", "--batch-size", "1", "--out", str(out)]
    command += ["--json-progress", "--log-file", f"{out}.log", *options]
    how = signal.SIG_IGN if ignored else signal.SIG_DFL
    before: Callable[[], object] = lambda: signal.signal(signal.SIGINT, how)  # noqa: E731
    return subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, preexec_fn=before
    )


def _until(process: subprocess.Popen[str], phase: str, done: int = 1) -> None:
    """Wait until a phase has come so far."""
    assert process.stdout is not None
    for line in process.stdout:
        event = json.loads(line)
        if event["event"] == "progress" and event["phase"] == phase and event["done"] >= done:
            return
    pytest.fail("the run ended before")


def _end(process: subprocess.Popen[str]) -> tuple[list[dict], str]:
    stdout, stderr = process.communicate(timeout=30)
    return [json.loads(line) for line in stdout.splitlines()], stderr


@pytest.mark.parametrize(("name", "ignored"), HEARD)
def test_in_the_midst_of_a_scan(folder, tmp_path, name, ignored):
    process = _start(folder, tmp_path / "out", "many.npy", ignored=ignored)
    _until(process, "Scanning", 1000)
    process.send_signal(getattr(signal, name))
    events, stderr = _end(process)
    code, message = CODES[name]
    assert (process.returncode, stderr) == (code, message)
    *_, summary, error = events
    assert (error["event"], error["exit_code"], error["message"]) == ("error", code, message.strip())
    assert (summary["event"], summary["complete"]) == ("summary", False)
    assert 1000 <= summary["images"] < 400_000
    assert not (tmp_path / "out" / "index.html").exists()
    log = (tmp_path / "out.log").read_text(encoding="utf-8")
    assert f"ERROR   {message}" in log
    assert f"Ended with exit code {code}" in log.splitlines()[-1]


def test_a_run_in_the_background_goes_on_at_ctrl_c(folder, tmp_path):
    process = _start(folder, tmp_path / "out", "many.npy", ignored=True)
    _until(process, "Scanning", 1000)
    process.send_signal(signal.SIGINT)
    _until(process, "Scanning", 3000)
    process.send_signal(signal.SIGTERM)
    _, stderr = _end(process)
    assert (process.returncode, stderr) == (143, "Terminated.\n")


@pytest.mark.parametrize(("name", "ignored"), HEARD)
def test_in_the_midst_of_drawing(folder, tmp_path, name, ignored):
    """What is drawn is kept, in a report that says so."""
    process = _start(folder, tmp_path / "out", "few.npy", ignored=ignored)
    _until(process, "Projecting conv2", 19)  # the row of all channels, and a channel or more
    process.send_signal(getattr(signal, name))
    events, stderr = _end(process)
    code, message = CODES[name]
    assert (process.returncode, stderr) == (code, message)
    assert events[-1]["exit_code"] == code
    assert any("shows what was drawn" in event.get("text", "") for event in events)
    atlas = onnxviz.Atlas.load(tmp_path / "out")
    assert [one.layer.alias for one in atlas.layers] == ["conv1", "conv2"]
    assert len(atlas["conv1"].pictured) == 5
    assert 1 <= len(atlas["conv2"].pictured) < 7
    assert "The run was broken off: conv2 shows" in (tmp_path / "out" / "index.html").read_text(
        encoding="utf-8"
    )
    for one in atlas.layers:
        for path in atlas.pictures([one]):
            assert (tmp_path / "out" / path).stat().st_size


@pytest.mark.parametrize("name", CODES)
def test_a_second_signal_ends_it_at_once(folder, tmp_path, name):
    """Also while what the first one left is being written."""
    slow = SLOW.replace("onnxviz.cli.main()", "") + (
        "import onnxviz.publishing as publishing\n"
        "def stop(*arguments):\n"
        "    print('stopping', file=sys.stderr, flush=True)\n"
        "    time.sleep(60)\n"
        "publishing.Publisher.stop = stop\n"
        "onnxviz.cli.main()\n"
    )
    command = [sys.executable, "-c", slow, "analyze", str(folder / "small.onnx"), "-l", "conv2"]
    command += ["--images", str(folder / "few.npy"), "--json-progress", "--out", str(tmp_path / "out")]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    _until(process, "Projecting conv2", 1)
    process.send_signal(getattr(signal, name))
    assert process.stderr is not None
    assert process.stderr.readline() == "stopping\n"
    process.send_signal(getattr(signal, name))
    begun = time.monotonic()
    assert process.wait(timeout=30) == CODES[name][0]
    assert time.monotonic() - begun < 5
    assert process.stderr.read() == ""
    process.communicate()


@pytest.mark.parametrize("name", CODES)
@pytest.mark.parametrize("place", ["pictures.Plate.of", "images.gallery.Gallery.batch"])
def test_recording_and_drawing_hold_signals_back(folder, monkeypatch, place, name):
    """What is under way, and may hold a lock, goes on."""
    usual = pkgutil.resolve_name(f"onnxviz.{place}")
    went_on = []

    def signalled(*arguments):
        if not went_on:
            signal.raise_signal(getattr(signal, name))
        went_on.append(place)
        return usual(*arguments)

    monkeypatch.setattr(f"onnxviz.{place}", signalled)
    with pytest.raises(KeyboardInterrupt) as caught, ending_signals():
        options = {
            "layers": "conv1",
            "channels": "0",
            "top": 2,
            "provider": "cpu",
        }  # so few that images are run again
        onnxviz.analyze(folder / "small.onnx", images=folder / "few.npy", **options)
    assert isinstance(caught.value, Terminated) == (name == "SIGTERM")
    assert went_on


@pytest.mark.parametrize("command", ["layers", "check"])
def test_other_commands_end_so_too(folder, command):
    script = (
        "import signal, onnxviz.cli, onnxviz.network as network\n"
        "network.Network.__init__ = lambda *a, **k: signal.raise_signal(signal.SIGTERM)\n"
        "onnxviz.cli.main()\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", script, command, str(folder / "small.onnx")],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert (done.returncode, done.stdout, done.stderr) == (143, "", "Terminated.\n")
