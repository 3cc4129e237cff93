"""The models that the project ships: what the manifest says of them is so."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
from PIL import Image

from onnxviz.converters import simple

PROJECT = Path(__file__).parents[2]
MODELS = PROJECT / "models"
DATA = PROJECT / "onnxviz" / "data"
MANIFEST = json.loads((MODELS / "manifest.json").read_text(encoding="utf-8"))
ENTRIES = pytest.mark.parametrize("entry", MANIFEST["models"], ids=lambda entry: entry["file"])


def properties(model: onnx.ModelProto) -> dict[str, object]:
    return {entry.key: json.loads(entry.value) for entry in model.metadata_props}


def test_every_model_is_in_the_manifest():
    assert sorted(entry["file"] for entry in MANIFEST["models"]) == sorted(
        path.name for path in MODELS.glob("*.onnx")
    )


@ENTRIES
def test_the_manifest_is_true(entry):
    content = (MODELS / entry["file"]).read_bytes()
    assert entry["sha256"] == hashlib.sha256(content).hexdigest()
    assert entry["bytes"] == len(content) < 5_000_000
    model = onnx.ModelProto.FromString(content)
    assert properties(model)["onnxviz.preprocess"] == entry["preprocess"]
    (value,) = model.graph.input
    sizes = [dim.dim_param or dim.dim_value for dim in value.type.tensor_type.shape.dim]
    assert {"name": value.name, "shape": sizes} == entry["input"]
    assert entry["source"]
    assert entry["licence"]


@ENTRIES
def test_the_readme_says_what_the_manifest_says(entry):
    readme = (MODELS / "README.md").read_text(encoding="utf-8")
    assert f"`{entry['file']}`" in readme
    assert f"`{entry['sha256']}`" in readme


@ENTRIES
def test_models_are_sound_and_named(entry):
    model = onnx.load(MODELS / entry["file"])
    onnx.checker.check_model(model, full_check=True)
    assert model.producer_name == "onnxviz"
    assert model.graph.input[0].type.tensor_type.shape.dim[0].dim_param == "N"
    names = [node.name for node in model.graph.node]
    assert len(set(names)) == len(names)
    assert [node.output[0] for node in model.graph.node] == names
    assert names[-1] == "prob"
    assert (
        len(properties(model)["onnxviz.labels"])
        == model.graph.output[0].type.tensor_type.shape.dim[1].dim_value
    )


def test_the_simple_net_knows_digits_that_it_was_not_trained_on():
    with np.load(DATA / "digits.npz", allow_pickle=False) as digits:
        x, y = digits["x"], digits["y"]
    mask = simple.held_out(y)
    assert mask.sum() == 1000
    found = simple.accuracy(onnx.load(MODELS / "simple.onnx"), x[mask], y[mask])
    (entry,) = (entry for entry in MANIFEST["models"] if entry["file"] == "simple.onnx")
    assert found >= 0.97
    assert found == pytest.approx(entry["accuracy"]["value"], abs=0.002)  # other machines round otherwise


def test_the_simple_net_is_the_one_that_the_converter_builds():
    arrays = {key: np.zeros(shape, np.float32) for key, shape in simple.network().weights().items()}
    built = simple.build(arrays, dense_storage="int8")
    assert onnx.load(MODELS / "simple.onnx").graph.node == built.graph.node


def test_the_simple_net_has_smooth_filters():
    """Neighbouring weights of a filter are alike: noise would give a ratio of 2."""
    tensors = onnx.load(MODELS / "simple.onnx").graph.initializer
    filters = next(onnx.numpy_helper.to_array(tensor) for tensor in tensors if tensor.name == "conv1_W")
    filters = filters - filters.mean(axis=(2, 3), keepdims=True)
    ratio = np.square(np.diff(filters, axis=3)).mean() / np.square(filters).mean()
    assert ratio < 0.7


def test_squeezenets_names_are_caffes():
    names = {node.name for node in onnx.load(MODELS / "squeezenet1_1.onnx").graph.node}
    assert names >= {"conv1", "relu_conv1", "pool1", "fire2/squeeze1x1", "fire9/relu_expand3x3", "pool10"}


def test_the_class_list_is_the_models():
    labels = properties(onnx.load(MODELS / "squeezenet1_1.onnx"))["onnxviz.labels"]
    text = (MODELS / "imagenet_classes.txt").read_text(encoding="utf-8")
    assert text.splitlines() == labels
    assert len(set(labels)) == 1000


@pytest.mark.parametrize(
    ("photo", "classes"),
    [("chelsea.jpg", {"Egyptian cat", "tabby", "tiger cat"}), ("coffee.jpg", {"espresso"})],
)
def test_squeezenet_with_its_preprocessing_knows_photographs(photo, classes):
    model = onnx.load(MODELS / "squeezenet1_1.onnx")
    rule = properties(model)["onnxviz.preprocess"]
    assert (rule["order"], rule["resize"], rule["scale"]) == ("bgr", "crop", 1.0)
    height, width = rule["size"]
    with Image.open(DATA / "photos" / photo) as picture:
        shorter = height / min(picture.size)
        scaled = picture.convert("RGB").resize(
            (round(picture.width * shorter), round(picture.height * shorter))
        )
    left, top = (scaled.width - width) // 2, (scaled.height - height) // 2
    rgb = np.asarray(scaled.crop((left, top, left + width, top + height)), np.float32)
    x = (rgb[..., ::-1] - np.float32(rule["mean"])) / np.float32(rule["std"])
    session = onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    (probabilities,) = session.run(None, {"data": np.ascontiguousarray(x.transpose(2, 0, 1)[None])})
    best = {
        properties(model)["onnxviz.labels"][index] for index in np.argsort(probabilities[0])[-len(classes) :]
    }
    assert best == classes
