"""What the command line says, in each way of saying it: to people, to programs, into a log file, or nothing."""

from __future__ import annotations

import json
import os
import re
import select
import signal
import subprocess
import sys
import threading
import time
import warnings
from pathlib import Path

import numpy as np
import pytest
import typer
from PIL import Image
from typer.testing import CliRunner

import onnxviz
from onnxviz import cli
from onnxviz.console.console import Failure, console, printable
from onnxviz.console.jsonlines import JsonLines
from onnxviz.console.logfile import LogFile
from onnxviz.console.summary import Recap
from onnxviz.errors import ModelError, UsageError
from onnxviz.interrupts import Terminated
from tests.model.nets import small, write

LINE = re.compile(r"(\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z) (\d+) (INFO   |WARNING|ERROR  ) (.+)")
ODD = "a\nb \x1b[31mred\u2028 ü ×.png"
posix = pytest.mark.skipif(sys.platform == "win32", reason="no signals, and names without line breaks")


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """small.onnx, twelve photos, and three that cannot be read, one with an odd name."""
    base = tmp_path_factory.mktemp("console")
    write(base / "small.onnx", small())
    (base / "photos").mkdir()
    rng = np.random.default_rng(1)
    for index in range(12):
        picture = Image.fromarray(rng.integers(0, 255, (16, 20, 3), np.uint8))
        picture.save(base / "photos" / f"{index}.png")
    for name in ("bad1.png", "bad2.png", ODD if sys.platform != "win32" else "bad3.png"):
        (base / "photos" / name).write_bytes(b"no picture")
    return base


def _call(folder, out, *options: object, images="photos"):
    arguments = ["analyze", folder / "small.onnx", "-l", "conv1", "-l", "relu1", "--images", folder / images]
    arguments += ["--provider", "cpu", "--out", out, *options]
    return CliRunner().invoke(cli.app, [str(argument) for argument in arguments])


def _events(text: str) -> list[dict]:
    assert text.endswith("\n")
    events = [json.loads(line) for line in text.removesuffix("\n").split("\n")]
    assert all(isinstance(event["event"], str) and event["elapsed"] >= 0 for event in events)
    assert [event["elapsed"] for event in events] == sorted(event["elapsed"] for event in events)
    return events


def _log(path: Path) -> list[tuple[str, str]]:
    """Level and text of each line, all of which have the time and the process."""
    text = path.read_text(encoding="utf-8")
    assert text.endswith("\n")
    found = [LINE.fullmatch(line) for line in text.removesuffix("\n").split("\n")]
    assert all(found), text
    times = [one[1] for one in found]
    assert times == sorted(times)
    return [(one[3].strip(), one[4]) for one in found]


# Programs


def test_json_lines_tell_the_whole_course(folder, tmp_path):
    result = _call(folder, tmp_path / "out", "--json-progress", "--single-file")
    assert result.exit_code == 0, result.output
    assert result.stderr == ""
    events = _events(result.stdout)
    assert events[0]["event"] == "begin"
    assert events[-1] == {
        "event": "result",
        "elapsed": events[-1]["elapsed"],
        "report": str(tmp_path / "out" / "index.html"),
        "single_file": str(tmp_path / "out.html"),
    }
    atlas = onnxviz.Atlas.load(tmp_path / "out")
    phases = [event["phase"] for event in events if event["event"] == "start"]
    assert phases == ["Opening", "Scanning", "Projecting conv1", "Projecting relu1", "Packing"]
    for phase in phases:
        own = [event for event in events if event.get("phase") == phase]
        assert [own[0]["event"], own[-1]["event"]] == ["start", "finish"]
        assert all(event["event"] == "progress" for event in own[1:-1])
        assert [event["done"] for event in own] == sorted(event["done"] for event in own)
        assert own[-1]["done"] == own[-1]["total"] == own[0]["total"]
        if own[-1]["total"]:
            assert own[-2] == {**own[-2], "event": "progress", "done": own[-1]["done"]}
    scan = next(event for event in events if event["event"] == "finish" and event["phase"] == "Scanning")
    assert (scan["total"], scan["unit"]) == (15, "images")
    shown = [(event["name"], event["reason"]) for event in events if event["event"] == "skipped"]
    assert tuple(shown) == atlas.provenance.skipped
    (summary,) = (event for event in events if event["event"] == "summary")
    assert summary["complete"] is True
    assert (summary["images"], summary["skipped"]) == (atlas.provenance.images, 3) == (12, 3)
    assert [(one["count"], one["reason"]) for one in summary["reasons"]] == [
        (3, "not an image in a known format")
    ]
    assert summary["projections"] == sum(one.hits_shown for one in atlas.layers)
    assert summary["projections_per_second"] > 0 and summary["images_per_second"] > 0
    assert [one["phase"] for one in summary["phases"]] == phases
    assert sum(one["seconds"] for one in summary["phases"]) <= summary["seconds"] + 0.01
    assert any("runs on CPU" in event["text"] for event in events if event["event"] == "note")
    assert any("conv1: 5 channels" in event["text"] for event in events if event["event"] == "note")


@pytest.mark.parametrize(("pause", "most"), [(0.0, 3), (0.05, 8)], ids=["fast", "slow"])
def test_progress_is_told_about_five_times_a_second(capsys, pause, most):
    recap = Recap()
    lines = JsonLines(recap)
    recap.start("Scanning", 20, "images")
    lines.start("Scanning", 20, "images")
    for _ in range(20):
        time.sleep(pause)
        recap.advance()
        lines.advance()
    lines.finish()
    told = [event["done"] for event in _events(capsys.readouterr().out) if event["event"] == "progress"]
    assert 1 <= len(told) <= most
    assert told[-1] == 20
    assert told == sorted(set(told))


def test_steps_of_a_former_run_are_told_at_once(capsys):
    with pytest.raises(typer.Exit), console(json_progress=True) as told:
        told.start("Scanning", 100, "images")
        told.resumed(60)
        told.advance(7)
        raise UsageError("stop")
    events = _events(capsys.readouterr().out)
    assert [e["done"] for e in events if e["event"] == "progress"] == [60, 67]
    summary = next(event for event in events if event["event"] == "summary")
    assert (summary["complete"], summary["images"], summary["phases"][0]["resumed"]) == (False, 67, 60)


def test_an_error_is_the_last_event(folder, tmp_path):
    (tmp_path / "photos").mkdir()
    (tmp_path / "photos" / "bad.png").write_bytes(b"no picture")
    result = _call(folder, tmp_path / "out", "--json-progress", images=tmp_path / "photos")
    assert result.exit_code == 1
    assert result.stderr.startswith("Error: ") and "not one image could be read" in result.stderr
    *_, summary, error = _events(result.stdout)
    assert (summary["event"], summary["complete"], summary["images"], summary["skipped"]) == (
        "summary",
        False,
        0,
        1,
    )
    assert (error["event"], error["exit_code"], error["kind"]) == ("error", 1, "NoImagesError")
    assert "not one image could be read" in error["message"]


def test_a_wrong_call_is_an_event(folder, tmp_path):
    result = _call(folder, tmp_path / "out", "--json-progress", "--method", "lime")
    assert result.exit_code == 2
    events = _events(result.stdout)
    assert [event["event"] for event in events] == ["begin", "error"]
    assert (events[1]["exit_code"], events[1]["kind"]) == (2, "UsageError")


def test_an_error_that_nobody_foresaw_is_an_event(capsys):
    with pytest.raises(typer.Exit) as leave, console(json_progress=True):
        raise ZeroDivisionError("by nothing")
    out, err = capsys.readouterr()
    assert leave.value.exit_code == _events(out)[-1]["exit_code"] == 1
    assert _events(out)[-1]["message"] == "ZeroDivisionError: by nothing"
    assert err == "Error: ZeroDivisionError: by nothing (--debug shows where)\n"


@pytest.mark.parametrize("name", [ODD, "half \udcff.png", '"quoted"\t{}', "\x00\x7f\x85", "日本\U0001f600"])
def test_odd_names_stay_json(capsys, name):
    with console(json_progress=True) as told:
        told.skipped(name, f"{name}: broken")
        told.note(name)
    events = _events(capsys.readouterr().out)
    expected = name.replace("\udcff", "\\udcff")
    assert events[1]["name"] == events[2]["text"] == expected
    assert "\\udc" not in json.dumps(events[1]["name"]).replace("\\\\udc", "")


@posix
def test_each_line_comes_at_once():
    """Not when the buffer of a pipe is full."""
    script = "import sys\nfrom onnxviz.console.console import console\n"
    script += "with console(json_progress=True):\n    sys.stdin.read()\n"
    command = [sys.executable, "-c", script]
    plain = {name: value for name, value in os.environ.items() if name != "PYTHONUNBUFFERED"}
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, env=plain) as process:
        ready, _, _ = select.select([process.stdout], [], [], 20)
        process.stdin.close()
        assert ready
        assert json.loads(process.stdout.readline())["event"] == "begin"
        process.wait(timeout=60)


# Nothing


def test_quiet_is_silent(folder, tmp_path):
    loud = _call(folder, tmp_path / "loud")
    result = _call(folder, tmp_path / "out", "--quiet", "--single-file")
    assert (result.exit_code, result.stdout, result.stderr) == (0, "", "")
    assert loud.stdout and loud.stderr
    command = [sys.executable, "-m", "onnxviz", "analyze", str(folder / "small.onnx"), "-l", "conv1", "-q"]
    command += ["--images", str(folder / "photos"), "--out", str(tmp_path / "real")]
    done = subprocess.run(command, capture_output=True, timeout=60, check=False)
    assert (done.returncode, done.stdout, done.stderr) == (0, b"", b"")
    assert (tmp_path / "real" / "index.html").is_file()


def test_quiet_still_tells_errors(folder, tmp_path):
    result = _call(folder, tmp_path / "out", "--quiet", "--method", "lime")
    assert (result.exit_code, result.stdout) == (2, "")
    assert result.stderr.startswith("Error: ") and len(result.stderr.splitlines()) == 1


def test_quiet_and_json_exclude_each_other(folder, tmp_path):
    result = _call(folder, tmp_path / "out", "--quiet", "--json-progress", "--log-file", tmp_path / "log")
    assert result.exit_code == 2
    assert "exclude each other" in result.stderr
    assert _events(result.stdout)[-1]["exit_code"] == 2
    assert not list(tmp_path.iterdir())


# The log file


def test_the_log_tells_the_whole_course(folder, tmp_path, monkeypatch):
    monkeypatch.setattr(sys, "argv", ["/usr/bin/onnxviz", "analyze", "a model.onnx", "-l\n"])
    result = _call(folder, tmp_path / "out", "--log-file", tmp_path / "a.log", "--single-file")
    assert result.exit_code == 0, result.output
    lines = _log(tmp_path / "a.log")
    assert lines[0] == ("INFO", r"Command: onnxviz analyze 'a model.onnx' '-l\n'")
    assert f"onnxviz {_version('onnxviz')}, onnx {_version('onnx')}" in lines[1][1]
    assert f"numpy {np.__version__}" in lines[1][1]
    texts = [text for level, text in lines if level == "INFO"]
    for phase, counted in (
        ("Opening", ""),
        ("Scanning", "15 images"),
        ("Projecting conv1", f"{onnxviz.Atlas.load(tmp_path / 'out')['conv1'].hits_shown} projections"),
        ("Packing", ""),
    ):
        assert f"{phase} begins" + (f": {counted}" if counted else "") in texts
        done = f": {counted.split()[0]} of {counted}" if counted else ""
        assert any(re.fullmatch(rf"{phase} ends{done} in \d+\.\d s", text) for text in texts), phase
    warned = [text for level, text in lines if level == "WARNING"]
    assert [text.partition(": ")[2] for text in warned] == ["not an image in a known format"] * 3
    assert (
        any(text.startswith(r"Skipped a\nb \x1b[31mred\u2028 ü ×.png: ") for text in warned)
        or os.name == "nt"
    )
    # What people see stands in the log, too.
    for line in result.stdout.splitlines():
        assert line in texts or f"Summary: {line}" in texts, line
    assert f"Summary: {result.stderr.strip()}" in texts
    assert re.fullmatch(r"Ended with exit code 0 after \d+\.\d s", texts[-1])


def _version(name: str) -> str:
    from importlib.metadata import version

    return version(name)


def test_a_log_is_appended_to(folder, tmp_path):
    (tmp_path / "a.log").write_text("2026-01-01T00:00:00.000Z 1 INFO    a former line\n")
    for _ in range(2):
        assert _call(folder, tmp_path / "out", "--log-file", tmp_path / "a.log", "--quiet").exit_code == 0
    texts = [text for _, text in _log(tmp_path / "a.log")]
    assert texts[0] == "a former line"
    assert sum(text.startswith("Command: ") for text in texts) == 2
    assert sum(text.startswith("Ended with exit code 0") for text in texts) == 2


@pytest.mark.parametrize("mode", [[], ["--quiet"], ["--json-progress"]], ids=["people", "quiet", "json"])
def test_errors_in_the_log_have_their_traceback_in_every_mode(folder, tmp_path, mode):
    (tmp_path / "text.onnx").write_text("this is no model\n")
    options = ["-l", "conv1", "--log-file", tmp_path / "a.log", "--out", tmp_path / "out", *mode]
    result = CliRunner().invoke(cli.app, [str(o) for o in ("analyze", tmp_path / "text.onnx", *options)])
    assert result.exit_code == 1
    assert result.stderr.startswith("Error: ") and "Traceback" not in result.output
    lines = _log(tmp_path / "a.log")
    errors = [text for level, text in lines if level == "ERROR"]
    assert result.stderr.strip() == f"Error: {errors[0]}"
    assert errors[1] == "  Traceback (most recent call last):"
    assert any("opening.py" in text or "graph.py" in text for text in errors)
    assert any("ModelError" in text for text in errors)
    assert lines[-1][1].startswith("Ended with exit code 1")


def test_debug_and_log_together(folder, tmp_path):
    result = _call(folder, tmp_path / "out", "--method", "lime", "--debug", "--log-file", tmp_path / "a.log")
    assert isinstance(result.exception, UsageError)
    lines = _log(tmp_path / "a.log")
    assert any("lime" in text for level, text in lines if level == "ERROR")
    assert lines[-1][1].startswith("Ended with exit code 1")  # which is Python's own


@pytest.mark.parametrize(
    ("name", "part"),
    [
        ("no/folder/a.log", "there is no folder"),
        ("photos", "cannot be written"),
        ("small.onnx", "no text file"),
        ("small.onnx/a.log", "there is no folder"),
    ],
)
@pytest.mark.parametrize("mode", [[], ["--json-progress"]], ids=["people", "json"])
def test_a_log_that_cannot_be_written_is_told_before_anything_is_done(folder, tmp_path, name, part, mode):
    before = {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}
    result = _call(folder, tmp_path / "out", "--log-file", folder / name, *mode)
    assert result.exit_code == 2
    assert part in result.stderr and f"--log-file {folder / name}" in result.stderr
    assert len(result.stderr.strip().splitlines()) == 1
    if mode:
        assert [event["event"] for event in _events(result.stdout)] == ["begin", "error"]
    else:
        assert result.stdout == ""
    assert {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()} == before
    assert not (tmp_path / "out").exists()


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="no device that is always full")
def test_a_log_that_fails_on_the_way_does_not_end_the_run(folder, tmp_path):
    result = _call(folder, tmp_path / "out", "--log-file", "/dev/full", "--quiet")
    assert (result.exit_code, result.stdout) == (0, "")
    assert result.stderr == "--log-file /dev/full: no longer written (No space left on device)\n"
    assert (tmp_path / "out" / "index.html").is_file()


def test_a_long_phase_is_told_once_a_minute(tmp_path):
    now = [0.0]
    recap = Recap(lambda: now[0])
    log = LogFile(tmp_path / "a.log", recap)
    recap.start("Scanning", 1000, "images")
    log.start("Scanning", 1000, "images")
    for _ in range(250):
        now[0] += 1
        recap.advance(2)
        log.advance(2)
    log.finish()
    log.end(0)
    texts = [text for _, text in _log(tmp_path / "a.log")]
    assert texts[3:-2] == [
        "Scanning: 120 of 1,000 images, 2.0/s, 7 min 20 s left",
        "Scanning: 240 of 1,000 images, 2.0/s, 6 min 20 s left",
        "Scanning: 360 of 1,000 images, 2.0/s, 5 min 20 s left",
        "Scanning: 480 of 1,000 images, 2.0/s, 4 min 20 s left",
    ]


# People


@pytest.mark.parametrize("mode", [[], ["--quiet"], ["--json-progress"]], ids=["people", "quiet", "json"])
def test_the_report_does_not_depend_on_how_its_course_is_told(folder, tmp_path, mode, monkeypatch):
    from onnxviz import facts

    class Fixed(facts.datetime):
        @classmethod
        def now(cls, tz=None):
            return cls(2026, 1, 1, tzinfo=tz)

    monkeypatch.setattr(facts, "datetime", Fixed)
    monkeypatch.setattr(sys, "argv", ["onnxviz", "analyze"])
    contents = []
    for name, options in (("plain", []), ("told", [*mode, "--log-file", tmp_path / "a.log"])):
        assert _call(folder, tmp_path / name, *options).exit_code == 0
        files = [path for path in (tmp_path / name).rglob("*") if path.is_file()]
        contents.append({path.relative_to(tmp_path / name): path.read_bytes() for path in files})
    assert contents[0] == contents[1]


def test_the_summary_is_short(folder, tmp_path):
    result = _call(folder, tmp_path / "out")
    lines = result.stdout.splitlines()
    assert re.fullmatch(r"12 images scanned, 3 skipped; [\d,.]+ images/s", lines[-4])
    assert re.fullmatch(r"\d+ projections drawn; [\d,.]+ projections/s", lines[-3])
    assert re.match(r"\d+\.\d s: opening \d+\.\d s, scanning \d+\.\d s, projecting .*of memory$", lines[-2])
    assert lines[-1].startswith("Report: ")
    assert re.fullmatch(r"  skipped 3 × not an image in a known format; the first: \S.*\n", result.stderr)


@pytest.mark.parametrize("text", ["a\nb", "\x1b[2J", "\u2028", "\udcff", "\x7f", "a\rb"])
def test_what_a_terminal_would_obey_is_escaped(text, capsys):
    assert printable(text).isprintable()
    assert printable(printable(text)) == printable(text)
    with console() as told:
        told.note(f"x{text}y")
    assert capsys.readouterr().out == f"x{printable(text)}y\n"


def test_errors_are_escaped_too(capsys):
    with pytest.raises(typer.Exit), console():
        raise UsageError("\x1b[2J: no such file\nSay which.")
    assert capsys.readouterr().err == "Error: \\x1b[2J: no such file Say which.\n"


def test_plain_text_stays():
    assert printable("N×3×227 – conv1 (ü, 日本)") == "N×3×227 – conv1 (ü, 日本)"


def test_warnings_of_python_are_told_and_logged(tmp_path, capsys):
    usual = warnings.showwarning
    with warnings.catch_warnings(), console(log_file=tmp_path / "a.log"):
        warnings.simplefilter("always")
        warnings.warn("mind the gap", stacklevel=1)
    assert re.fullmatch(r"Warning: UserWarning: mind the gap \(\S+:\d+\)\n", capsys.readouterr().err)
    assert any("mind the gap" in text for level, text in _log(tmp_path / "a.log") if level == "WARNING")
    assert warnings.showwarning is usual


@pytest.mark.parametrize(
    ("error", "kind", "code", "message"),
    [
        (KeyboardInterrupt(), "KeyboardInterrupt", 130, "Interrupted."),
        (Terminated(), "Terminated", 143, "Terminated."),
        (UsageError("wrong"), "UsageError", 2, "wrong"),
        (ModelError("bad"), "ModelError", 1, "bad"),
        (OSError(28, "No space left"), "OSError", 1, "[Errno 28] No space left"),
        (ValueError("what"), "ValueError", 1, "ValueError: what"),
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, BaseException) else "",
)
def test_failures(error, kind, code, message):
    found = Failure.of(error)
    assert (found.kind, found.exit_code, found.message) == (kind, code, message)
    assert found.signal == (code > 128)


def test_other_threads_may_use_it(capsys):
    def work() -> None:
        with console(json_progress=True) as told:
            told.note("heard")

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert [event["event"] for event in _events(capsys.readouterr().out)] == ["begin", "note"]


# Readers that go


@posix
@pytest.mark.parametrize("mode", [[], ["--json-progress"]], ids=["people", "json"])
def test_a_reader_that_goes_ends_the_run_quietly(folder, tmp_path, mode):
    command = [sys.executable, "-m", "onnxviz", "analyze", str(folder / "small.onnx"), "-l", "conv1"]
    command += ["--images", str(folder / "photos"), "--out", str(tmp_path / "out")]
    command += ["--log-file", str(tmp_path / "a.log"), *mode]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    process.stdout.close()  # as head -0 does
    _, stderr = process.communicate(timeout=60)
    assert (process.returncode, stderr) == (1, b"")
    if mode:  # the log file was opened after the first line; so nothing was done at all
        assert not (tmp_path / "out").exists()
        return
    lines = _log(tmp_path / "a.log")
    assert any("nobody reads its output" in text for level, text in lines if level == "ERROR")
    assert lines[-1][1].startswith("Ended with exit code 1")


@posix
@pytest.mark.parametrize("mode", [[], ["--json-progress"]], ids=["people", "json"])
def test_head(folder, tmp_path, mode):
    np.save(tmp_path / "x.npy", np.zeros((20_000, 12, 12, 3), np.uint8))
    command = [sys.executable, "-m", "onnxviz", "analyze", str(folder / "small.onnx"), "-l", "conv1"]
    command += [
        "--images",
        str(tmp_path / "x.npy"),
        "--out",
        str(tmp_path / "out"),
        "--batch-size",
        "8",
        *mode,
    ]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        assert process.stdout.readline()
        process.stdout.close()
        stderr = process.stderr.read()
        assert process.wait(timeout=60) == 1
    assert stderr == b""


def test_an_error_has_its_exit_code_though_nobody_reads(tmp_path, monkeypatch, capsys):
    """The log file has it all."""

    class Gone:
        def write(self, text):
            raise BrokenPipeError(32, "Broken pipe")

        def flush(self): ...

    with pytest.raises(typer.Exit) as leave, console(json_progress=True, log_file=tmp_path / "a.log") as told:
        told.start("Scanning", 4, "images")
        monkeypatch.setattr(sys, "stdout", Gone())
        raise Terminated
    monkeypatch.undo()
    assert leave.value.exit_code == 143
    assert capsys.readouterr().err == "Terminated.\n"
    texts = [text for _, text in _log(tmp_path / "a.log")]
    assert "Scanning ends: 0 of 4 images in 0.0 s" in texts
    assert sum(text.startswith("Summary: 0 images scanned, 0 skipped") for text in texts) == 1
    assert sum(text.startswith("Scanning ends") for text in texts) == 1
    assert "Terminated." in texts
    assert texts[-1].startswith("Ended with exit code 143")


@posix
def test_an_error_after_a_signal_is_the_signal(tmp_path, capsys):
    """An import that is interrupted may fail with an error of its own. The log has both."""
    with pytest.raises(typer.Exit) as leave, console(log_file=tmp_path / "a.log"):
        try:
            signal.raise_signal(signal.SIGTERM)
        except KeyboardInterrupt:
            raise ImportError("initialization failed") from None
    assert leave.value.exit_code == 143
    assert capsys.readouterr().err == "Terminated.\n"
    assert any(
        "ImportError: initialization failed" in text
        for level, text in _log(tmp_path / "a.log")
        if level == "ERROR"
    )
