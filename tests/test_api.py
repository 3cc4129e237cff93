"""The public names: which there are, that they are documented, and that README says what is true."""

from __future__ import annotations

import inspect
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import typer.main

import onnxviz
from onnxviz import cli, errors
from tests.model.nets import small, write

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text(encoding="utf-8")
PUBLIC = ["Atlas", "Network", "OnnxvizError", "Projections", "analyze", "draw", "load", "merge", "scan"]


def test_all_is_exactly_the_public_names():
    assert sorted(onnxviz.__all__) == PUBLIC
    assert set(PUBLIC) <= set(dir(onnxviz))
    namespace: dict = {}
    exec("from onnxviz import *", namespace)
    assert sorted(name for name in namespace if not name.startswith("__")) == PUBLIC


@pytest.mark.parametrize("name", PUBLIC)
def test_public_names_are_documented(name):
    found = getattr(onnxviz, name)
    assert not inspect.ismodule(found)
    assert len(inspect.getdoc(found) or "") > 20


def test_an_unknown_name_is_an_attribute_error():
    with pytest.raises(AttributeError, match="'onnxviz' has no attribute 'analyse'"):
        _ = onnxviz.analyse


@pytest.mark.parametrize(
    "first", ["from onnxviz.analysis import analyze", "import onnxviz.analysis", "import onnxviz.cli"]
)
def test_names_stay_what_they_are_whatever_was_imported_before(first):
    """A module of the same name must not take the place of the function."""
    code = f"try:\n    {first}\nexcept ImportError:\n    pass\n"
    code += "import onnxviz\nassert callable(onnxviz.analyze), onnxviz.analyze"
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=False
    )
    assert done.returncode == 0, done.stderr


def test_importing_the_package_is_quick():
    """``--help`` must not wait for onnx and onnxruntime."""
    code = "import sys, onnxviz, onnxviz.cli\n"
    code += "try:\n    onnxviz.cli.app(['--help'])\nexcept SystemExit:\n    pass\n"
    code += "slow = {'onnx', 'onnxruntime', 'numpy', 'PIL', 'jinja2', 'rich', 'pydantic'}\n"
    code += "print(sorted(slow & sys.modules.keys()))"
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=True
    )
    assert "analyze" in done.stdout
    assert done.stdout.splitlines()[-1] == "[]"


def _members(cls) -> list[str]:
    return [name for name in vars(cls) if not name.startswith("_")]


@pytest.mark.parametrize("cls", ["Atlas", "Network", "Projections"])
def test_public_methods_are_documented(cls):
    found = getattr(onnxviz, cls)
    fields = set(getattr(found, "__dataclass_fields__", ()))
    bare = [
        name
        for name in _members(found)
        if name not in fields and not inspect.getdoc(inspect.getattr_static(found, name))
    ]
    assert not bare


def test_every_error_is_documented_exported_and_has_an_exit_code():
    kinds = {
        name: found
        for name, found in vars(errors).items()
        if inspect.isclass(found) and issubclass(found, Exception)
    }
    assert sorted(errors.__all__) == sorted(kinds)
    for name, kind in kinds.items():
        assert issubclass(kind, onnxviz.OnnxvizError)
        assert kind.__doc__
        assert kind.exit_code == (2 if issubclass(kind, errors.UsageError) else 1)
        assert name in (errors.__doc__ or "")


# README


def test_names_in_readme_exist():
    block = re.search(r"```python\n(.*?)```", README, re.DOTALL)
    assert block
    code = block[1]
    for name in re.findall(r"\bnet\.(\w+)", code):
        assert hasattr(onnxviz.Network, name), name
    for name in re.findall(r"\b(?:atlas|Atlas\.load\([^)]*\))\.(\w+)", code):
        assert hasattr(onnxviz.Atlas, name), name
    for name in re.findall(r"\bonnxviz\.(\w+)", code):
        assert name in onnxviz.__all__, name
    for name in ("layers", "activations", "project", "project_units", "vjp"):
        assert f"net.{name}" in code
    assert {"save", "load", "report"} <= set(dir(onnxviz.Atlas))


def test_readmes_python_runs(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    model = small()
    model.graph.node[3].name = "conv5"
    # README calls the input "input".
    model.graph.input[0].name = "input"
    model.graph.node[0].input[0] = "input"
    write(tmp_path / "model.onnx", model)
    x = np.random.default_rng(0).normal(size=(2, 3, 12, 12)).astype(np.float32)
    g = np.random.default_rng(0).normal(size=(2, 7, 5, 5)).astype(np.float32)
    (tmp_path / "photos").mkdir()
    from PIL import Image

    Image.new("RGB", (20, 20), "red").save(tmp_path / "photos" / "a.png")
    blocks = re.findall(r"```python\n(.*?)```", README, re.DOTALL)
    namespace = {"x": x, "g": g}
    for block in blocks:
        code = (
            block.replace("channel=7", "channel=6")
            .replace("(0, 7, 3, 5)", "(0, 6, 3, 4)")
            .replace("[0, 7, 3, 5]", "[0, 6, 3, 4]")
            .replace("(3, 5)", "(3, 4)")
        )
        exec(code, namespace)
    net = namespace["net"]
    assert net.layer("conv5").channels == 7
    expected = net.project_units(x, "conv5", [(0, 6, 3, 4)])
    np.testing.assert_allclose(namespace["pixels"], expected.pixels, rtol=1e-4, atol=1e-5)
    np.testing.assert_array_equal(namespace["boxes"], expected.boxes)
    assert (tmp_path / "reports" / "model" / "index.html").is_file()


def test_readmes_exit_codes_and_options_exist():
    text = " ".join(_options(command) for command in _commands().values())
    for option in re.findall(r"`(--[a-z-]+)", README):
        assert option in text or option in ("--help",), option


def test_readmes_pictures_are_there():
    pictures = re.findall(r"\]\((reports/[^)]+)\)", README)
    assert len(pictures) == 8
    assert all((ROOT / picture).is_file() for picture in pictures)


# The command line is documented


def _commands():
    return typer.main.get_command(cli.app).commands


def _options(command) -> str:
    return " ".join(
        name for parameter in command.params for name in (*parameter.opts, *parameter.secondary_opts)
    )


def test_the_commands():
    assert list(_commands()) == [
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
    ]


@pytest.mark.parametrize("name", list(_commands()))
def test_commands_and_all_their_options_have_help(name):
    command = _commands()[name]
    assert len(command.help) > 20
    for parameter in command.params:
        assert getattr(parameter, "help", None), f"{name} {parameter.name}"


def test_python_m_onnxviz():
    done = subprocess.run(
        [sys.executable, "-m", "onnxviz", "--version"], capture_output=True, text=True, timeout=60, check=True
    )
    assert re.fullmatch(r"onnxviz \d+\.\d+\.\d+\S*\n", done.stdout)
    assert done.stderr == ""


# Network


@pytest.fixture(scope="module")
def net(tmp_path_factory):
    return onnxviz.load(write(tmp_path_factory.mktemp("net") / "small.onnx", small()), provider="cpu")


X = np.random.default_rng(0).normal(size=(4, 3, 12, 12)).astype(np.float32)


@pytest.mark.parametrize("name", ["conv2", "c2", "CONV2"])
def test_layers_by_every_name_everywhere(net, name):
    layer = net.layer("conv2")
    assert net.layer(name) == layer
    expected = net.activations(X, "conv2")
    np.testing.assert_array_equal(net.activations(X, name), expected)
    np.testing.assert_array_equal(net.activations(X, layer), expected)
    np.testing.assert_array_equal(net.project(X, name, 1), net.project(X, layer, 1))
    units = [(0, 1, 2, 2)]
    first, second = (net.project_units(X, which, units) for which in (name, layer))
    np.testing.assert_array_equal(first.pixels, second.pixels)
    np.testing.assert_array_equal(
        net.vjp({"x": X}, {name: expected})["x"], net.vjp({"x": X}, {"c2": expected})["x"]
    )


def test_a_units_projection_is_its_part_of_the_whole_frame(net):
    maps = net.activations(X, "conv2")
    for sample, channel in ((0, 1), (3, 6)):
        y, x = np.unravel_index(maps[sample, channel].argmax(), (5, 5))
        found = net.project_units(X, "conv2", [(sample, channel, y, x)])
        whole = net.project(X, "conv2", channel)[sample]
        top, left, bottom, right = found.boxes[0]
        assert (top, left, bottom, right) == net.layer("conv2").box(int(y), int(x))
        for (dy, dx), pixels in (
            ((dy, dx), found.pixels[0][:, dy, dx]) for dy, dx in np.ndindex(bottom - top, right - left)
        ):
            inside = 0 <= top + dy < 12 and 0 <= left + dx < 12
            expected = whole[:, top + dy, left + dx] if inside else np.zeros(3)
            np.testing.assert_allclose(pixels, expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(
    ("call", "error"),
    [
        (lambda net: net.project(X, "conv2", channel=7), errors.UnitError),
        (lambda net: net.project(X, "conv2", channel=-1), errors.UnitError),
        (lambda net: net.project(X, "conv2", 0, position=(5, 0)), errors.UnitError),
        (lambda net: net.project(X, "conv2", 0, position=(-1, 0)), errors.UnitError),
        (lambda net: net.project(X, "conv2", 0, position="min"), errors.UnitError),
        (lambda net: net.project(X, "conv2", 0, position=[(0, 0)] * 3), errors.UnitError),
        (lambda net: net.project_units(X, "conv2", [(4, 0, 0, 0)]), errors.UnitError),
        (lambda net: net.project_units(X, "conv2", [(0, 7, 0, 0)]), errors.UnitError),
        (lambda net: net.project_units(X, "conv2", [(0, 0, 0, -1)]), errors.UnitError),
        (lambda net: net.project(X, "conv9"), errors.LayerNotFoundError),
        (lambda net: net.project(X, "conv2", 0, method="smooth"), errors.UsageError),
        (lambda net: net.project(X[:, :2], "conv2", 0), errors.UsageError),
        (lambda net: net.activations(X[0], "conv2"), errors.UsageError),
        (lambda net: net.vjp({"x": X}, {"conv2": X}), errors.UsageError),
        (lambda net: net.vjp({"y": X}, {"conv2": net.activations(X, "conv2")}), errors.OnnxvizError),
        (lambda net: net.vjp({}, {"conv2": net.activations(X, "conv2")}), errors.OnnxvizError),
    ],
)
def test_wrong_calls(net, call, error):
    with pytest.raises(error) as caught:
        call(net)
    assert len(str(caught.value).splitlines()) <= 2


def test_empty_arrays(net):
    """No image, no unit: an answer of none."""
    assert net.project_units(X, "conv2", np.zeros((0, 4), int)).pixels.shape == (0, 3, 9, 9)
    assert net.activations(X[:0], "conv2").shape == (0, 7, 5, 5)
