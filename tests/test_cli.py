"""The command line: every command, every way to call it wrongly, and what it prints."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import onnxruntime
import pytest
from onnx import TensorProto
from PIL import Image
from typer.testing import CliRunner

import onnxviz
from onnxviz import cli
from onnxviz.images.render import GREY, projection_rgb
from tests.commands import call, fails
from tests.converters import synthetic
from tests.model.nets import build, conv_weights, forward, node, small, write

MODELS = Path(__file__).parents[1] / "models"
COMMANDS = (
    "analyze",
    "scan",
    "merge",
    "report",
    "export",
    "layers",
    "check",
    "project",
    "export-deconv",
    "operators",
    "convert",
)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """small.onnx, gelu.onnx with an operator without a rule, words.onnx without images, and eight photos."""
    base = tmp_path_factory.mktemp("cli")
    write(base / "small.onnx", small())
    weights = {"w": conv_weights(np.random.default_rng(0), 4, 3, 3, 3)}
    nodes = [
        node("Conv", "x w", "c", "conv1"),
        node("Gelu", "c", "e", "gelu1", domain="com.microsoft"),
        node("Relu", "e", "r", "relu1"),
    ]
    write(base / "gelu.onnx", build(nodes, weights, domains=["com.microsoft"]))
    table = {"g": conv_weights(np.random.default_rng(0), 4, 9)}
    words = build([node("Gather", "g x", "y", "embedding")], table, x=("N", 9), dtype=TensorProto.INT64)
    write(base / "words.onnx", words)
    (base / "text.onnx").write_text("this is no model\n")
    (base / "photos").mkdir()
    rng = np.random.default_rng(1)
    for index in range(8):
        picture = Image.fromarray(rng.integers(0, 255, (5, 5, 3), np.uint8)).resize((20, 16))
        picture.save(base / "photos" / f"{index}.png")
    return base


# Help

OPTIONS = {
    "analyze": {
        "--layer": None,
        "--images": None,
        "--top": "9",
        "--channels": "all",
        "--method": "deconvnet",
        "--control": None,
        "--rank": "max",
        "--seed": "unit",
        "--overlap": "sum",
        "--lrn": "identity",
        "--activation": "rectify",
        "--limit": None,
        "--batch-size": "32",
        "--provider": "auto",
        "--engine": "auto",
        "--memory": "1G",
        "--preprocess": None,
        "--mean": None,
        "--std": None,
        "--bgr": None,
        "--size": None,
        "--input": None,
        "--feed": None,
        "--labels": None,
        "--montage": None,
        "--theme": "auto",
        "--out": "reports/MODEL",
        "--single-file": None,
        "--run": "the report's folder",
        "--restart": None,
        "--save-every": "60",
        "--workers": "this process",
        "--cluster": None,
        "--open": None,
        "--quiet": None,
        "--json-progress": None,
        "--log-file": None,
        "--debug": None,
    },
    "scan": {
        "--layer": None,
        "--out": None,
        "--images": None,
        "--shard": None,
        "--top": "9",
        "--rank": "max",
        "--limit": None,
        "--batch-size": "32",
        "--provider": "auto",
        "--preprocess": None,
        "--mean": None,
        "--std": None,
        "--bgr": None,
        "--size": None,
        "--input": None,
        "--feed": None,
        "--labels": None,
        "--restart": None,
        "--save-every": "60",
        "--workers": "this process",
        "--cluster": None,
        "--quiet": None,
        "--json-progress": None,
        "--log-file": None,
        "--debug": None,
    },
    "merge": {"--out": None, "--restart": None, "--debug": None},
    "report": {
        "--layer": "all",
        "--channels": "all",
        "--top": "all",
        "--method": None,
        "--control": None,
        "--model": "where it was",
        "--images": "where they were",
        "--provider": "where it ran",
        "--theme": "auto",
        "--out": "RUN itself",
        "--single-file": None,
        "--open": None,
        "--quiet": None,
        "--json-progress": None,
        "--log-file": None,
        "--debug": None,
    },
    "export": {
        "--csv": None,
        "--parquet": None,
        "--json": None,
        "--png": None,
        "--layer": "all",
        "--channels": "all",
        "--out": "RUN/export",
        "--debug": None,
    },
    "layers": {"--json": None, "--size": None, "--input": None, "--feed": None, "--debug": None},
    "check": {
        "--layer": "all",
        "--method": "deconvnet",
        "--overlap": "sum",
        "--lrn": "identity",
        "--activation": "rectify",
        "--preprocess": None,
        "--size": None,
        "--input": None,
        "--feed": None,
        "--json": None,
    },
    "operators": {"--debug": None},
    "project": {
        "--layer": None,
        "--channel": None,
        "--position": "strongest",
        "--method": "deconvnet",
        "--out": "beside the image",
        "--provider": "auto",
        "--engine": "auto",
        "--memory": "1G",
    },
    "export-deconv": {
        "--layer": None,
        "--out": None,
        "--method": "deconvnet",
        "--overlap": "sum",
        "--lrn": "identity",
        "--activation": "rectify",
        "--size": None,
        "--input": None,
        "--feed": None,
        "--debug": None,
    },
    "convert": {"--conv1-padding": "valid"},
}
CHOICES = {
    "--method": ("deconvnet", "guided", "gradient"),
    "--rank": ("max", "sum", "first"),
    "--seed": ("unit", "map"),
    "--overlap": ("sum", "mean"),
    "--lrn": ("identity", "gradient"),
    "--provider": ("auto", "cuda", "cpu"),
    "--engine": ("auto", "stages", "graph", "numpy"),
    "--preprocess": ("imagenet", "caffe", "tf", "unit", "raw"),
    "--theme": ("light", "dark", "auto"),
}


def _help(command: str) -> str:
    result = CliRunner().invoke(
        cli.app, [command, "--help"], env={"COLUMNS": "200", "TERM": "dumb", "NO_COLOR": "1"}
    )
    assert result.exit_code == 0
    return re.sub(r"[│╭╰─╮╯\s]+", " ", result.stdout)


@pytest.mark.parametrize("command", COMMANDS)
def test_help_lists_every_option_with_its_default_and_choices(command):
    text = _help(command)
    for option, default in OPTIONS[command].items():
        assert option in text, option
        start = text.index(option, text.index("Options"))
        about = text[start : start + 330]
        if default is not None:
            assert re.search(rf"\[default: [^\]]*{re.escape(default)}", about), (option, about)
        for choice in CHOICES.get(option, ()):
            assert choice in about, (option, choice)


@pytest.mark.parametrize("arguments", [[], ["--help"], ["-h"]])
def test_the_commands_are_listed(arguments):
    result = call(*arguments)
    assert result.exit_code in (0, 2)
    for command in COMMANDS:
        assert command in result.output


def test_version():
    assert re.fullmatch(r"onnxviz \d\S*\n", call("--version").output)


def test_an_unknown_command_or_option_is_bad_usage(folder):
    assert call("analyse", folder / "small.onnx").exit_code == 2
    assert call("layers", folder / "small.onnx", "--colour").exit_code == 2
    assert call("analyze", folder / "small.onnx").exit_code == 2  # --layer is wanted


# analyze


def test_analyze(folder, tmp_path, monkeypatch):
    monkeypatch.setattr(sys, "argv", ["/usr/bin/onnxviz", "analyze", "a model.onnx"])
    out = tmp_path / "out"
    options = ["--layer", "relu1", "--layer", "fc1", "--images", folder / "photos", "--out", out]
    result = call("analyze", folder / "small.onnx", *options, "--top", 4, "--montage", "--provider", "cpu")
    assert result.exit_code == 0, result.output
    assert result.stderr == ""
    assert "8 images scanned, 0 skipped" in result.stdout
    assert "relu1: 5 channels" in result.stdout
    assert "runs on CPU" in result.stdout
    assert "guessed" in result.stdout
    assert result.stdout.strip().splitlines()[-1] == f"Report: {out / 'index.html'}"
    data = json.loads((out / "report.json").read_text(encoding="utf-8"))
    assert [layer["alias"] for layer in data["layers"]] == ["relu1", "fc1"]
    assert (out / "relu1-top4.png").is_file()
    assert data["provenance"]["command"] == "onnxviz analyze 'a model.onnx'"
    # Against plain onnxruntime, with the recipe worked out by hand.
    pictures = [
        np.asarray(Image.open(folder / "photos" / f"{i}.png").crop((2, 0, 18, 16)).resize((12, 12), 2))
        for i in range(8)
    ]
    x = (np.stack(pictures) / 255 - [0.485, 0.456, 0.406]) / [0.229, 0.224, 0.225]
    maps = forward(folder / "small.onnx", x.transpose(0, 3, 1, 2).astype(np.float32), ["r1"])["r1"]
    for row in data["layers"][0]["rows"]:
        best = np.sort(maps[:, row["index"]].max((1, 2)))[::-1][:4]
        np.testing.assert_allclose([hit["score"] for hit in row["hits"]], best, rtol=0.05, atol=0.02)


def test_the_report_goes_to_reports_by_default(folder, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    result = call("analyze", folder / "small.onnx", "-l", "conv1", "--images", folder / "photos")
    assert result.exit_code == 0, result.output
    assert (tmp_path / "reports" / "small" / "index.html").is_file()


def test_without_images_it_says_so(folder, tmp_path):
    result = call("analyze", folder / "small.onnx", "-l", "conv1", "--limit", 12, "--out", tmp_path / "out")
    assert result.exit_code == 0, result.output
    assert "No --images given: using built-in samples" in result.stdout
    assert "12 images scanned" in result.stdout


def test_every_option_together(folder, tmp_path):
    (tmp_path / "names.txt").write_text("a\nb\nc\nd\ne\nf\n")
    model, images = folder / "small.onnx", folder / "photos"
    options = "--top 3 --channels 0-2,4 --method guided --rank sum --seed map --overlap mean --lrn gradient "
    options += "--activation gradient --limit 6 --batch-size 2 --provider cpu --preprocess unit --mean 0.5 "
    options += "--std 0.5,0.25,0.5 --bgr --size 12 --debug"
    result = call(
        "analyze", model, "-l", "conv1..conv2", "--images", images, *options.split(),
        "--labels", tmp_path / "names.txt", "--out", tmp_path / "out",
    )  # fmt: skip
    assert result.exit_code == 0, result.output
    said = json.loads((tmp_path / "out" / "report.json").read_text(encoding="utf-8"))["provenance"]
    assert said["images"] == 6
    assert said["method"] == "guided"
    assert (
        dict(said["policies"]).items()
        >= {
            "overlapping pools": "mean",
            "LRN": "gradient",
            "other activations": "gradient",
        }.items()
    )
    assert "BGR" in said["preprocess"]
    for option in ("--mean", "--std", "--bgr", "--size"):
        assert option in said["preprocess_origin"]


def test_a_corrupt_image_among_good_ones(folder, tmp_path):
    images = tmp_path / "photos"
    images.mkdir()
    for index in range(4):
        (images / f"{index}.png").write_bytes((folder / "photos" / f"{index}.png").read_bytes())
    (images / "2.png").write_bytes(b"\x89PNG\r\n\x1a\n cut")
    result = call(
        "analyze", folder / "small.onnx", "-l", "conv1", "--images", images, "--out", tmp_path / "out"
    )
    assert result.exit_code == 0, result.output
    assert "3 images scanned, 1 skipped" in result.stdout
    assert "2.png" in result.stderr
    assert len(result.stderr.strip().splitlines()) == 1
    assert "2.png" in (tmp_path / "out" / "index.html").read_text(encoding="utf-8")


def test_many_corrupt_images_are_summed_up(folder, tmp_path):
    images = tmp_path / "photos"
    images.mkdir()
    for index in range(12):
        (images / f"{index}.png").write_bytes(b"no picture")
    (images / "good.png").write_bytes((folder / "photos" / "0.png").read_bytes())
    result = call(
        "analyze", folder / "small.onnx", "-l", "conv1", "--images", images, "--out", tmp_path / "out"
    )
    assert result.exit_code == 0
    assert "1 images scanned, 12 skipped" in result.stdout
    assert result.stderr == "  skipped 12 × not an image in a known format; the first: 0.png\n"


def test_it_opens_the_browser_when_asked(folder, tmp_path, monkeypatch):
    import webbrowser

    opened = []
    monkeypatch.setattr(webbrowser, "open", lambda address: opened.append(address))
    options = ["-l", "conv1", "--images", folder / "photos", "--out", tmp_path / "out dir"]
    assert call("analyze", folder / "small.onnx", *options).exit_code == 0
    assert opened == []
    assert call("analyze", folder / "small.onnx", *options, "--open").exit_code == 0
    assert opened == [(tmp_path / "out dir" / "index.html").as_uri()]


def test_the_same_folder_again(folder, tmp_path):
    options = ["-l", "conv1", "--images", folder / "photos", "--out", tmp_path / "out"]
    for _ in range(2):
        assert call("analyze", folder / "small.onnx", *options).exit_code == 0


# Wrong calls

PHOTOS = ["--images", "photos"]
WRONG = {
    "layer": (["small.onnx", "-l", "conv22", *PHOTOS], 2, ["conv22", "conv2", "onnxviz layers"]),
    "layer-ambiguous": (["small.onnx", "-l", "conv2..conv1", *PHOTOS], 2, ["comes before"]),
    "layer-glob": (["small.onnx", "-l", "fire*", *PHOTOS], 2, ["fire*"]),
    "layer-empty": (["small.onnx", "-l", "", *PHOTOS], 2, ["layer"]),
    "model-missing": (["missing.onnx", "-l", "conv1", *PHOTOS], 2, ["missing.onnx", "no such file"]),
    "model-folder": (["photos", "-l", "conv1", *PHOTOS], 2, ["photos", "folder"]),
    "model-text": (["text.onnx", "-l", "conv1", *PHOTOS], 1, ["text.onnx", "not an ONNX model", "text"]),
    "model-words": (["words.onnx", "-l", "fc1", *PHOTOS], 1, ["words.onnx", "no image input", "N×9"]),
    "model-gelu": (["gelu.onnx", "-l", "relu1", *PHOTOS], 1, ["com.microsoft.Gelu", "gelu1"]),
    "images-missing": (["small.onnx", "-l", "conv1", "--images", "nowhere"], 2, ["nowhere", "no such"]),
    "images-empty": (["small.onnx", "-l", "conv1", "--images", "empty"], 1, ["empty"]),
    "images-none": (["small.onnx", "-l", "conv1", "--images", "texts"], 1, ["texts", "2 other files"]),
    "images-all-bad": (["small.onnx", "-l", "conv1", "--images", "bad"], 1, ["not one image", "a.png"]),
    "images-a-text": (["small.onnx", "-l", "conv1", "--images", "text.onnx"], 2, ["text.onnx"]),
    "channels": (["small.onnx", "-l", "conv1", "--channels", "9", *PHOTOS], 2, ["0 to 4"]),
    "channels-text": (["small.onnx", "-l", "conv1", "--channels", "a-b", *PHOTOS], 2, ["0-15,40"]),
    "top": (["small.onnx", "-l", "conv1", "--top", "0", *PHOTOS], 2, []),
    "limit": (["small.onnx", "-l", "conv1", "--limit", "-3", *PHOTOS], 2, []),
    "method": (["small.onnx", "-l", "conv1", "--method", "lime", *PHOTOS], 2, ["lime", "deconvnet, guided, gradient"]),
    "rank": (["small.onnx", "-l", "conv1", "--rank", "best", *PHOTOS], 2, ["best", "max, sum, first"]),
    "seed": (["small.onnx", "-l", "conv1", "--seed", "all", *PHOTOS], 2, ["all", "unit, map"]),
    "overlap": (["small.onnx", "-l", "conv1", "--overlap", "max", *PHOTOS], 2, ["overlap", "sum, mean"]),
    "lrn": (["small.onnx", "-l", "conv1", "--lrn", "off", *PHOTOS], 2, ["lrn", "identity, gradient"]),
    "provider": (["small.onnx", "-l", "conv1", "--provider", "tpu", *PHOTOS], 2, ["tpu", "auto, cuda, cpu"]),
    "engine": (["small.onnx", "-l", "conv1", "--engine", "fast", *PHOTOS], 2, ["fast", "auto, stages, graph, numpy"]),
    "memory": (["small.onnx", "-l", "conv1", "--memory", "much", *PHOTOS], 2, ["much", "512M or 2G"]),
    "memory-none": (["small.onnx", "-l", "conv1", "--memory", "1K", *PHOTOS], 2, ["1K", "16M"]),
    "preset": (["small.onnx", "-l", "conv1", "--preprocess", "vgg", *PHOTOS], 2, ["vgg", "imagenet"]),
    "size": (["small.onnx", "-l", "conv1", "--size", "9", *PHOTOS], 2, ["9×9", "12×12"]),
    "size-text": (["small.onnx", "-l", "conv1", "--size", "big", *PHOTOS], 2, ["--size", "224x320"]),
    "size-zero": (["small.onnx", "-l", "conv1", "--size", "0x12", *PHOTOS], 2, ["--size"]),
    "size-three": (["small.onnx", "-l", "conv1", "--size", "1x2x3", *PHOTOS], 2, ["--size"]),
    "mean": (["small.onnx", "-l", "conv1", "--mean", "1,2", *PHOTOS], 2, ["--mean", "3 numbers"]),
    "mean-text": (["small.onnx", "-l", "conv1", "--mean", "1,x,3", *PHOTOS], 2, ["--mean", "1,x,3"]),
    "std-zero": (["small.onnx", "-l", "conv1", "--std", "0", *PHOTOS], 2, ["--std"]),
    "labels": (["small.onnx", "-l", "conv1", "--labels", "names.txt", *PHOTOS], 2, ["names.txt"]),
    "theme": (["small.onnx", "-l", "conv1", "--theme", "sepia", *PHOTOS], 2, ["sepia", "auto, light, dark"]),
    "out-file": (["small.onnx", "-l", "conv1", "--out", "text.onnx", *PHOTOS], 2, ["text.onnx", "file"]),
    "out-foreign": (["small.onnx", "-l", "conv1", "--out", "site", *PHOTOS], 2, ["site", "index.html"]),
}  # fmt: skip


@pytest.mark.parametrize("case", WRONG)
def test_wrong_calls_of_analyze(folder, monkeypatch, case):
    monkeypatch.chdir(folder)
    for name in ("empty", "texts", "bad", "site"):
        Path(name).mkdir(exist_ok=True)
    Path("texts/a.txt").write_text("a")
    Path("texts/b.csv").write_text("b")
    Path("bad/a.png").write_text("no picture")
    Path("site/index.html").write_text("my page")
    arguments, code, parts = WRONG[case]
    result = call("analyze", *arguments, *([] if "--out" in arguments else ["--out", "never"]))
    if case in ("top", "limit"):  # Click's own message, in a frame
        assert result.exit_code == code
        assert f"--{case}" in result.output
    else:
        message = fails(result, code, *parts)
        assert message.startswith("Error: ")
    assert not Path("never").exists()
    assert Path("site/index.html").read_text() == "my page"
    assert Path("text.onnx").read_text() == "this is no model\n"


def test_an_unsupported_operator_is_reported_before_any_image_is_read(folder, tmp_path):
    """Were one of these read first, that would be the error."""
    (tmp_path / "bad").mkdir()
    for index in range(3):
        (tmp_path / "bad" / f"{index}.png").write_text("no picture")
    options = ["-l", "relu1", "--images", tmp_path / "bad", "--out", tmp_path / "out"]
    fails(call("analyze", folder / "gelu.onnx", *options), 1, "com.microsoft.Gelu", "gelu1")


def test_cuda_that_is_not_there(folder, tmp_path, monkeypatch):
    from onnxviz.forward import session

    monkeypatch.setattr(session, "_cuda_problem", lambda: "there is no NVIDIA driver")
    options = ["-l", "conv1", "--provider", "cuda", "--out", tmp_path / "out"]
    fails(call("analyze", folder / "small.onnx", *options), 1, "no NVIDIA driver", "--provider cpu")


def test_errors_that_nobody_foresaw_are_one_line_too(folder, monkeypatch):
    import onnxviz.network

    def broken(*_, **__):
        raise ZeroDivisionError("by nothing")

    monkeypatch.setattr(onnxviz.network.Network, "__init__", broken)
    fails(call("layers", folder / "small.onnx"), 1, "ZeroDivisionError", "by nothing", "--debug")


def test_debug_shows_the_traceback(folder):
    result = call("layers", folder / "text.onnx", "--debug")
    assert result.exit_code == 1
    assert isinstance(result.exception, onnxviz.OnnxvizError)
    command = [sys.executable, "-m", "onnxviz", "layers", str(folder / "text.onnx"), "--debug"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 1
    assert "Traceback" in done.stderr
    assert "ModelError" in done.stderr


def test_ctrl_c(folder, monkeypatch, tmp_path):
    from onnxviz.images.preprocess import Preprocess

    def interrupted(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(Preprocess, "batch", interrupted)
    options = ["-l", "conv1", "--images", folder / "photos", "--out", tmp_path / "out"]
    result = call("analyze", folder / "small.onnx", *options)
    assert result.exit_code == 130
    assert result.stderr == "Interrupted.\n"


@pytest.mark.skipif(sys.platform == "win32", reason="no SIGINT to a process")
def test_ctrl_c_in_a_real_process(folder, tmp_path):
    """In the midst of a scan, with decoding threads at work."""
    np.save(tmp_path / "x.npy", np.zeros((400_000, 12, 12, 3), np.uint8))
    command = [sys.executable, "-m", "onnxviz", "analyze", str(folder / "small.onnx"), "-l", "conv1"]
    command += ["--images", str(tmp_path / "x.npy"), "--out", str(tmp_path / "out"), "--batch-size", "1"]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    assert process.stdout is not None
    line = process.stdout.readline()  # printed when the model is open
    assert "runs on" in line
    time.sleep(0.5)
    process.send_signal(signal.SIGINT)
    _, stderr = process.communicate(timeout=30)
    assert process.returncode == 130
    assert stderr.strip() == "Interrupted."


def test_no_progress_bar_where_nobody_watches(folder, tmp_path):
    command = [sys.executable, "-m", "onnxviz", "analyze", str(folder / "small.onnx"), "-l", "conv1"]
    command += ["--images", str(folder / "photos"), "--out", str(tmp_path / "out")]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""
    assert "Scanning" not in done.stdout
    assert "\r" not in done.stdout
    assert "\x1b" not in done.stdout


@pytest.mark.skipif(sys.platform == "win32", reason="no pseudo-terminals")
def test_a_progress_bar_on_a_terminal(folder, tmp_path):
    import pty

    np.save(tmp_path / "x.npy", np.random.default_rng(0).integers(0, 255, (4000, 12, 12, 3), np.uint8))
    main, terminal = pty.openpty()
    command = [sys.executable, "-m", "onnxviz", "analyze", str(folder / "small.onnx"), "-l", "conv1"]
    command += ["--images", str(tmp_path / "x.npy"), "--out", str(tmp_path / "out"), "--batch-size", "8"]
    environment = {**os.environ, "TERM": "xterm", "COLUMNS": "120"}
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=terminal, text=True, env=environment)
    os.close(terminal)
    seen = b""
    while True:
        try:
            seen += os.read(main, 4096)
        except OSError:
            break
    os.close(main)
    stdout, _ = process.communicate(timeout=60)
    assert process.returncode == 0
    assert b"Scanning" in seen
    assert b"4000/4000" in seen
    assert b"images/s" in seen
    assert b"0:00:00" in seen  # the time left
    assert "Scanning" not in stdout


# layers


# report


@pytest.fixture(scope="module")
def run(folder, tmp_path_factory):
    out = tmp_path_factory.mktemp("run") / "small"
    layers = ["-l", "relu1", "-l", "fc1"]
    result = call("analyze", folder / "small.onnx", *layers, "--images", folder / "photos", "--out", out)
    assert result.exit_code == 0, result.output
    return out


def _content(folder):
    return {p.relative_to(folder).as_posix(): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


def test_report_writes_the_same_report_again(run, tmp_path):
    """Into another folder or over the first; the run stays one."""
    result = call("report", run, "--out", tmp_path / "again")
    assert result.exit_code == 0, result.output
    assert result.stdout == f"Report: {tmp_path / 'again' / 'index.html'}\n"
    before, again = _content(run), _content(tmp_path / "again")
    assert {n: c for n, c in before.items() if n not in ("atlas.json", "arrays.npz", "scan.atlas")} == again
    for page in [*run.rglob("*.html"), run / "report.json"]:
        page.write_text("spoilt")
    assert call("report", run).exit_code == 0
    assert _content(run) == before


def test_report_of_a_part(run, tmp_path):
    before = _content(run)
    result = call("report", run, "-l", "relu1", "--channels", "0-1,3", "--out", tmp_path / "part")
    assert result.exit_code == 0, result.output
    data = json.loads((tmp_path / "part" / "report.json").read_text(encoding="utf-8"))
    assert [layer["alias"] for layer in data["layers"]] == ["relu1"]
    (layer,) = data["layers"]
    assert [row["index"] for row in layer["rows"]] == [0, 1, 3]
    assert all(other["index"] in (0, 1, 3) for row in layer["rows"] for other in row["related"])
    used = {hit["thumbnail"] for row in (*layer["rows"], layer["all_channels"]) for hit in row["hits"]}
    pictures = {name for name in _content(tmp_path / "part") if name.startswith("pictures/images/")}
    assert pictures == used
    assert _content(run) == before


def test_report_with_fewer_images_of_each_channel(run, tmp_path):
    before = _content(run)
    result = call("report", run, "--top", 4, "--out", tmp_path / "part")
    assert result.exit_code == 0, result.output
    whole, part = (
        json.loads((folder / "report.json").read_text(encoding="utf-8"))
        for folder in (run, tmp_path / "part")
    )
    for layer, other in zip(whole["layers"], part["layers"], strict=True):
        for row, fewer in zip(layer["rows"], other["rows"], strict=True):
            assert fewer["hits"] == row["hits"][:4]
            if fewer["card"]:
                assert (fewer["card"]["rows"], fewer["card"]["columns"]) == (2, 4)
                with Image.open(tmp_path / "part" / fewer["card"]["path"]) as card:
                    height, width = fewer["card"]["tile"]
                    assert card.size == (4 * width, 2 * height)
    assert _content(run) == before


def test_a_theme_is_the_same_report_in_other_colours(folder, run, tmp_path):
    for theme in ("auto", "light", "dark"):
        assert call("report", run, "--theme", theme, "--out", tmp_path / theme).exit_code == 0
    auto, light, dark = (_content(tmp_path / theme) for theme in ("auto", "light", "dark"))
    assert auto.keys() == light.keys() == dark.keys()
    changed = {name for name in auto if auto[name] != dark[name]}
    assert changed == {name for name in auto if name.endswith(".html")}
    for name in changed:
        for theme, page in (("light", light[name]), ("dark", dark[name])):
            start = f'<html lang="en" data-theme="{theme}">'.encode()
            plain = page.replace(start, b'<html lang="en">', 1)
            assert plain.replace(f'"{theme}">'.encode(), b'"light dark">', 1) == auto[name]
    options = ["-l", "conv1", "--images", folder / "photos", "--theme", "dark", "--out", tmp_path / "new"]
    assert call("analyze", folder / "small.onnx", *options).exit_code == 0
    assert b'data-theme="dark"' in (tmp_path / "new" / "index.html").read_bytes()


def test_a_part_does_not_replace_the_whole(run):
    before = _content(run)
    for target in ([], ["--out", run], ["--out", run / ".." / run.name]):
        for part in (["-l", "relu1"], ["--top", 4]):
            fails(call("report", run, *part, *target), 2, "must not replace the whole", "--out")
    assert _content(run) == before


def test_report_in_one_file(run, tmp_path, monkeypatch):
    before = _content(run)
    shutil.copytree(run, tmp_path / "a run")
    result = call("report", tmp_path / "a run", "--single-file")
    assert result.exit_code == 0, result.output
    file = tmp_path / "a run.html"
    size = f"{file.stat().st_size / 1e6:.1f} MB"
    assert result.stdout == f"Single file: {file} ({size})\n"
    assert _content(tmp_path / "a run") == before
    opened = []
    monkeypatch.setattr("webbrowser.open", opened.append)
    other = tmp_path / "to" / "send.html"
    assert call("report", run, "--single-file", "--out", other, "--open").exit_code == 0
    assert other.read_bytes() == file.read_bytes()
    assert opened == [other.resolve().as_uri()]
    # Once more over what is there; it would be a large one. And a part.
    monkeypatch.setattr(cli, "_LARGE_FILE", 1000)
    again = call("report", run, "--single-file", "--out", other)
    assert again.stdout.startswith(f"Single file: {other} ({size}). A browser needs a while")
    part = call("report", run, "--single-file", "--channels", "0-1", "--out", other)
    assert part.exit_code == 0, part.output
    assert other.stat().st_size < file.stat().st_size
    assert sorted(path.name for path in tmp_path.rglob("*.html") if path.parent == other.parent) == [
        "send.html"
    ]


def test_a_part_in_one_file_does_not_replace_the_whole(run):
    fails(call("report", run, "--single-file", "-l", "relu1"), 2, "must not replace the whole", "--out")
    assert not run.with_name(f"{run.name}.html").exists()


def test_one_file_that_is_somebody_elses(run, tmp_path):
    mine = tmp_path / "mine.html"
    mine.write_text("<p>mine")
    fails(call("report", run, "--single-file", "--out", mine), 2, str(mine), "would be lost")
    assert mine.read_text() == "<p>mine"
    fails(call("report", run, "--single-file", "--out", run / "index.html"), 2, "would be lost")
    fails(call("report", run, "--single-file", "--out", tmp_path), 2, "must end in .html")


def test_a_failure_leaves_the_former_file(run, tmp_path, monkeypatch):
    out = tmp_path / "a.html"
    assert call("report", run, "--single-file", "--out", out).exit_code == 0
    before = out.read_bytes()

    def fail(*arguments):
        yield from ()
        raise OSError("the disk is full")

    monkeypatch.setattr("onnxviz.report.single.pictures_of", fail)
    fails(call("report", run, "--single-file", "--out", out), 1, "the disk is full")
    assert out.read_bytes() == before
    assert [path.name for path in tmp_path.iterdir()] == ["a.html"]


@pytest.mark.parametrize("out", ["out/net", "out/net.html"])
def test_analyze_writes_one_file_beside_the_folder(folder, tmp_path, out):
    options = ["--layer", "fc1", "--images", folder / "photos", "--provider", "cpu", "--single-file"]
    result = call("analyze", folder / "small.onnx", *options, "--out", tmp_path / out)
    assert result.exit_code == 0, result.output
    page, file = tmp_path / "out" / "net" / "index.html", tmp_path / "out" / "net.html"
    assert result.stdout.splitlines()[-2] == f"Report: {page}"
    assert result.stdout.splitlines()[-1].startswith(f"Single file: {file} (")
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == ["net", "net.html"]
    again = tmp_path / "again.html"
    assert call("report", page.parent, "--single-file", "--out", again).exit_code == 0
    assert again.read_bytes() == file.read_bytes()


def test_analyze_refuses_the_file_before_it_reads_the_model(folder, tmp_path):
    (tmp_path / "net.html").write_text("<p>mine")
    options = ["--layer", "fc1", "--single-file", "--out", tmp_path / "net"]
    fails(call("analyze", folder / "text.onnx", *options), 2, "net.html", "would be lost")
    assert [path.name for path in tmp_path.iterdir()] == ["net.html"]


@pytest.mark.parametrize(
    ("options", "code", "part"),
    [
        (["-l", "conv9"], 2, "No layer is called 'conv9'"),
        (["--channels", "900"], 2, "none of those asked for"),
        (["--channels", "a"], 2, "write numbers and ranges"),
        (["--top", "10"], 2, "1 to 9, not 10"),
        (["--theme", "sepia"], 2, "auto, light, dark"),
    ],
)
def test_wrong_calls_of_report(run, tmp_path, options, code, part):
    fails(call("report", run, *options, "--out", tmp_path / "out"), code, part)
    assert not (tmp_path / "out").exists()


def test_report_of_what_is_no_run(run, tmp_path):
    fails(call("report", tmp_path), 1, "holds no atlas")
    shutil.copytree(run, tmp_path / "damaged")
    (tmp_path / "damaged" / "arrays.npz").write_bytes(b"PK")
    before = _content(tmp_path / "damaged")
    fails(call("report", tmp_path / "damaged"), 1, "damaged")
    assert _content(tmp_path / "damaged") == before


def test_an_atlas_does_not_outlive_its_pictures(folder, run, tmp_path, monkeypatch):
    """A second run that stops half-way leaves no atlas that would speak of the first; its own scan can be drawn."""
    shutil.copytree(run, tmp_path / "run")

    def fail(*arguments, **options):
        raise OSError("no space left")

    options = ["-l", "conv2", "--images", folder / "photos", "--out", tmp_path / "run"]
    with monkeypatch.context() as patch:
        patch.setattr("onnxviz.report.render.ReportWriter.index", fail)
        fails(call("analyze", folder / "small.onnx", *options), 1, "no space left")
    assert not (tmp_path / "run" / "atlas.json").exists()
    assert call("report", tmp_path / "run").exit_code == 0
    assert [one.layer.alias for one in onnxviz.Atlas.load(tmp_path / "run").layers] == ["conv2"]
    (tmp_path / "run" / "atlas.json").unlink()
    (tmp_path / "run" / "scan.atlas").unlink()
    fails(call("report", tmp_path / "run"), 1, "holds no atlas")


def test_layers(folder):
    result = call("layers", folder / "small.onnx")
    assert result.exit_code == 0
    lines = result.stdout.splitlines()
    assert "x: float32 N×3×12×12 (NCHW)" in lines[0]
    assert lines[1].split() == ["name", "alias", "op", "channels", "output", "receptive", "field", "stride"]
    assert lines[2].split() == ["conv1", "conv1", "Conv", "5", "12×12", "3×3", "1×1"]
    assert lines[-1].split() == ["dense2", "fc2", "Gemm", "6", "vector", "whole", "image", "–"]
    assert len(lines) == 11


def test_layers_as_json(folder):
    result = call("layers", folder / "small.onnx", "--json")
    rows = json.loads(result.stdout)
    net = onnxviz.load(folder / "small.onnx", provider="cpu")
    assert [row["name"] for row in rows] == [layer.name for layer in net.layers]
    assert rows[2] == {
        "name": "pool1",
        "aliases": ["pool1"],
        "op": "MaxPool",
        "tensor": "p1",
        "channels": 5,
        "size": [5, 5],
        "receptive_field": [5, 5],
        "stride": [2, 2],
    }
    assert rows[-1]["stride"] is None


def test_layers_of_a_model_of_any_size(folder, tmp_path):
    path = write(tmp_path / "open.onnx", small(x=("N", 3, "H", "W")))
    rows = json.loads(call("layers", path, "--json", "--size", "20x30").stdout)
    assert rows[0]["size"] == [20, 30]
    rows = json.loads(call("layers", path, "--json", "--size", "17").stdout)
    assert rows[0]["size"] == [17, 17]


@pytest.mark.parametrize(
    ("name", "code", "part"),
    [("missing.onnx", 2, "no such file"), ("text.onnx", 1, "text"), ("words.onnx", 1, "no image input")],
)
def test_wrong_calls_of_layers(folder, name, code, part):
    fails(call("layers", folder / name), code, name, part)


# project


def test_project(folder, tmp_path):
    photo, out = folder / "photos" / "3.png", tmp_path / "p.png"
    result = call(
        "project", folder / "small.onnx", photo, "-l", "conv2", "-c", 2, "--position", "1,3", "--out", out
    )
    assert result.exit_code == 0, result.output
    assert "conv2, channel 2, unit (1, 3)" in result.stdout
    assert f"Picture: {out}" in result.stdout
    with Image.open(out) as image:
        assert image.format == "PNG"
        sheet = np.asarray(image.convert("RGB"))
    scale = round(320 / 12)
    side = 12 * scale
    assert sheet.shape[0] == side
    right = sheet[:, -side:]
    # The right half is that unit's projection on the whole frame, each pixel a square.
    from onnxviz.images.preprocess import resolve_preprocess
    from onnxviz.images.source import open_source

    recipe = resolve_preprocess(channels=3, height=12, width=12)
    x = recipe(open_source(photo).samples[0].read())[None]
    net = onnxviz.load(folder / "small.onnx", provider="cpu")
    whole = net.project(x, "conv2", 2, position=(1, 3))[0]
    assert np.abs(whole).max() > 0
    drawn = projection_rgb(whole.transpose(1, 2, 0))
    assert np.abs(right[scale // 2 :: scale, scale // 2 :: scale].astype(int) - drawn).max() <= 1
    assert (right[-1] == GREY).all()  # beyond the field
    # The left half is the picture, with the field's frame on it.
    left = sheet[:, :side]
    shown = recipe.picture(x[0])
    inside = left[scale // 2 :: scale, scale // 2 :: scale].astype(int)
    assert (np.abs(inside - shown).max(axis=2) == 0).mean() > 0.7
    top, l_, bottom, r_ = net.layer("conv2").box(1, 3)
    assert f"sees ({top}, {l_}, {bottom}, {r_})" in result.stdout


def test_project_finds_the_strongest_unit_and_a_place_for_the_picture(folder, tmp_path):
    photo = tmp_path / "cat.png"
    photo.write_bytes((folder / "photos" / "3.png").read_bytes())
    result = call("project", folder / "small.onnx", photo, "--layer", "relu1", "--channel", 1)
    assert result.exit_code == 0, result.output
    assert (tmp_path / "cat-relu1-1.png").is_file()
    unit = tuple(map(int, re.search(r"unit \((\d+), (\d+)\)", result.stdout).groups()))
    from onnxviz.images.preprocess import resolve_preprocess
    from onnxviz.images.source import open_source

    x = resolve_preprocess(channels=3, height=12, width=12)(open_source(photo).samples[0].read())[None]
    maps = forward(folder / "small.onnx", x, ["r1"])["r1"][0, 1]
    assert unit == np.unravel_index(maps.argmax(), maps.shape)
    assert f"activation {maps.max():.4g}" in result.stdout


@pytest.mark.parametrize("method", ["gradient", "guided"])
def test_project_a_vector_layer(folder, tmp_path, method):
    options = ["-l", "fc2", "-c", 5, "--method", method, "--out", tmp_path / "p.png"]
    result = call("project", folder / "small.onnx", folder / "photos" / "0.png", *options)
    assert result.exit_code == 0, result.output
    assert method in result.stdout
    assert (tmp_path / "p.png").is_file()


WRONG_PROJECTIONS = {
    "layer": (["small.onnx", "photos/0.png", "-l", "conv9", "-c", "0"], 2, ["conv9", "Closest"]),
    "channel": (["small.onnx", "photos/0.png", "-l", "conv2", "-c", "7"], 2, ["0 to 6", "no channel 7"]),
    "position": (["small.onnx", "photos/0.png", "-l", "conv2", "-c", "0", "--position", "5,0"], 2, ["(5, 0)", "5×5"]),
    "position-of-a-vector": (["small.onnx", "photos/0.png", "-l", "fc2", "-c", "0", "--position", "1,1"], 2, []),
    "position-text": (["small.onnx", "photos/0.png", "-l", "conv2", "-c", "0", "--position", "middle"], 2, ["Y,X"]),
    "position-negative": (["small.onnx", "photos/0.png", "-l", "conv2", "-c", "0", "--position", "-1,0"], 2, ["Y,X"]),
    "image-missing": (["small.onnx", "nowhere.png", "-l", "conv2", "-c", "0"], 2, ["nowhere.png"]),
    "image-text": (["small.onnx", "text.png", "-l", "conv2", "-c", "0"], 1, ["text.png"]),
    "image-that-does-not-fit": (["small.onnx", "odd.npy", "-l", "conv2", "-c", "0"], 1, ["odd.npy"]),
    "image-folder": (["small.onnx", "photos", "-l", "conv2", "-c", "0"], 2, ["photos"]),
    "model-missing": (["nowhere.onnx", "photos/0.png", "-l", "conv2", "-c", "0"], 2, ["nowhere.onnx"]),
    "operator": (["gelu.onnx", "photos/0.png", "-l", "relu1", "-c", "0"], 1, ["com.microsoft.Gelu"]),
    "method": (["small.onnx", "photos/0.png", "-l", "conv2", "-c", "0", "--method", "x"], 2, ["deconvnet"]),
    "out-nowhere": (["small.onnx", "photos/0.png", "-l", "conv2", "-c", "0", "--out", "no/where.png"], 2, ["no"]),
    "out-folder": (["small.onnx", "photos/0.png", "-l", "conv2", "-c", "0", "--out", "photos"], 2, ["photos"]),
    "out-no-png": (["small.onnx", "photos/0.png", "-l", "conv2", "-c", "0", "--out", "p.txt"], 2, ["p.txt", "png"]),
}  # fmt: skip


@pytest.mark.parametrize("case", WRONG_PROJECTIONS)
def test_wrong_calls_of_project(folder, monkeypatch, case):
    monkeypatch.chdir(folder)
    Path("text.png").write_text("no picture")
    np.save("odd.npy", np.zeros((1, 3, 9, 9), np.float32))
    before = {p for p in Path().rglob("*") if p.is_file()}
    arguments, code, parts = WRONG_PROJECTIONS[case]
    fails(call("project", *arguments), code, *parts)
    assert {p for p in Path().rglob("*") if p.is_file()} == before


# convert


def test_convert(tmp_path):
    weights = synthetic.simple_npz(tmp_path / "simple.npz", seed=1)
    result = call("convert", "simple", weights, tmp_path / "simple.onnx")
    assert result.exit_code == 0, result.output
    assert "13." in result.stdout
    assert "onnxviz layers" in result.stdout
    rows = json.loads(call("layers", tmp_path / "simple.onnx", "--json").stdout)
    assert [row["name"] for row in rows][:3] == ["conv1", "relu1", "pool1"]


@pytest.mark.parametrize(
    ("arguments", "code", "parts"),
    [
        (["lenet", "w.npz", "o.onnx"], 2, ["lenet", "alexnet"]),
        (["vgg", "w.npz", "o.onnx"], 2, ["Did you mean vgg16"]),
        (["simple", "missing.npz", "o.onnx"], 2, ["missing.npz"]),
        (["simple", "bad.npz", "o.onnx"], 1, ["bad.npz"]),
        (["simple", "bad.npz", "o.onnx", "--conv1-padding", "same"], 2, ["alexnet"]),
        (["alexnet", "missing.npy", "o.onnx", "--conv1-padding", "full"], 2, ["full"]),
    ],
)
def test_wrong_calls_of_convert(tmp_path, monkeypatch, arguments, code, parts):
    monkeypatch.chdir(tmp_path)
    Path("bad.npz").write_text("no weights")
    fails(call("convert", *arguments), code, *parts)
    assert not Path("o.onnx").exists()


def test_the_shipped_models_can_be_listed():
    for path in sorted(MODELS.glob("*.onnx")):
        result = call("layers", path)
        assert result.exit_code == 0, result.output


# export-deconv


def test_export_deconv(folder, tmp_path):
    out = tmp_path / "deconv.onnx"
    result = call("export-deconv", folder / "small.onnx", "-l", "conv2", "-o", out)
    assert result.exit_code == 0, result.output
    assert "deconv.onnx" in result.stdout
    assert "x: float32 N×3×12×12 (NCHW) and units: int64 M×4" in result.stdout
    net = onnxviz.load(folder / "small.onnx", provider="cpu", engine="numpy")
    x = np.random.default_rng(0).standard_normal((2, 3, 12, 12)).astype(np.float32)
    units = np.array([[0, 1, 2, 3], [1, 0, 0, 4]])
    session = onnxruntime.InferenceSession(out, providers=["CPUExecutionProvider"])
    pixels = session.run(["pixels"], {"x": x, "units": units})[0]
    np.testing.assert_allclose(pixels, net.project_units(x, "conv2", units).pixels, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    ("model", "layer", "out", "code", "part"),
    [
        ("small.onnx", "conv9", "deconv.onnx", 2, "conv9"),
        ("missing.onnx", "conv1", "deconv.onnx", 2, "no such file"),
        ("gelu.onnx", "relu1", "deconv.onnx", 1, "com.microsoft.Gelu"),
        ("small.onnx", "conv1", "nowhere/deconv.onnx", 2, "there is no folder"),
        ("small.onnx", "conv1", ".", 2, "a folder"),
    ],
)
def test_wrong_calls_of_export_deconv(folder, tmp_path, model, layer, out, code, part):
    result = call("export-deconv", folder / model, "-l", layer, "-o", tmp_path / out)
    fails(result, code, part)
    assert not list(tmp_path.iterdir())
