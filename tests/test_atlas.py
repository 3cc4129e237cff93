"""Saving, loading and reporting an atlas, without the model and the images."""

from __future__ import annotations

import dataclasses
import json
import shutil
import subprocess
import sys

import numpy as np
import pytest

import onnxviz
from onnxviz import analyze
from onnxviz.errors import AtlasError, LayerNotFoundError, UsageError
from tests.model.nets import small, write


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """A saved atlas whose model and images are gone, and the report it gave before."""
    folder = tmp_path_factory.mktemp("atlas")
    model = write(folder / "small.onnx", small())
    x = np.random.default_rng(2).normal(size=(12, 3, 12, 12)).astype(np.float32)
    x[5] = np.nan
    np.savez(folder / "x.npz", x=x, y=np.arange(12) % 3)
    names = [f"class {i} é" for i in range(6)]
    options = {"montage": True, "labels": names, "preprocess": "raw", "channels": "0-2,4", "provider": "cpu"}
    atlas = analyze(
        model, images=folder / "x.npz", layers=["relu1", "fc2"], folder=folder / "work", **options
    )
    page = atlas.report(folder / "before")
    atlas.save(folder / "saved")
    model.unlink()
    (folder / "x.npz").unlink()
    shutil.rmtree(folder / "work")
    return atlas, folder / "saved", page.parent


def _files(folder):
    return {p.relative_to(folder).as_posix(): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


def test_the_same_report_without_model_and_images(made, tmp_path):
    _, saved, before = made
    again = onnxviz.Atlas.load(saved).report(tmp_path / "again")
    assert again == tmp_path / "again" / "index.html"
    first, second = _files(before), _files(again.parent)
    assert json.loads(first["report.json"]) == json.loads(second["report.json"])
    assert first == second


def test_everything_comes_back(made):
    atlas, saved, _ = made
    again = onnxviz.Atlas.load(saved)
    assert again.model == atlas.model
    assert again.provenance == atlas.provenance
    assert again.diagram == atlas.diagram
    assert again.filters == atlas.filters is not None
    assert dict(again.images) == dict(atlas.images)
    assert again.folder == saved
    assert again.report_data() == atlas.report_data() or json.dumps(
        dataclasses.asdict(again.report_data())
    ) == json.dumps(dataclasses.asdict(atlas.report_data()))  # NaN is not equal to itself
    for one, other in zip(atlas.layers, again.layers, strict=True):
        assert one.layer == other.layer
        assert (one.slug, one.pictured, one.names, one.montage) == (
            other.slug,
            other.pictured,
            other.names,
            other.montage,
        )
        for group in ("topk", "overall", "stats"):
            for name, array in getattr(one, group).arrays().items():
                found = getattr(other, group).arrays()[name]
                assert found.dtype == array.dtype
                np.testing.assert_array_equal(found, array)
        assert one.responses.every == other.responses.every
        for name in ("image", "largest"):
            np.testing.assert_array_equal(getattr(other.responses, name), getattr(one.responses, name))
    assert again.labels == atlas.labels == tuple(f"class {i % 3} é" for i in range(12) if i != 5)
    assert again.provenance.skipped == (("x.npz[5]", "holds NaN or infinity"),)


def test_a_loaded_atlas_can_be_saved_again(made, tmp_path):
    _, saved, _ = made
    onnxviz.Atlas.load(saved).save(tmp_path / "copy")
    first, second = _files(saved), _files(tmp_path / "copy")
    assert first.keys() == second.keys()
    assert first["atlas.json"] == second["atlas.json"]
    assert onnxviz.Atlas.load(tmp_path / "copy").save(tmp_path / "copy") == tmp_path / "copy"
    assert _files(tmp_path / "copy").keys() == first.keys()


def test_a_saved_folder_can_be_moved(made, tmp_path):
    _, saved, before = made
    shutil.copytree(saved, tmp_path / "moved")
    page = onnxviz.Atlas.load(tmp_path / "moved").report(tmp_path / "out")
    assert (page.parent / "report.json").read_bytes() == (before / "report.json").read_bytes()


def test_a_report_can_lie_in_the_atlas_own_folder(made, tmp_path):
    _, saved, before = made
    shutil.copytree(saved, tmp_path / "both")
    page = onnxviz.Atlas.load(tmp_path / "both").report(tmp_path / "both")
    assert (page.parent / "report.json").read_bytes() == (before / "report.json").read_bytes()
    assert onnxviz.Atlas.load(tmp_path / "both").layers  # and is an atlas still


def test_the_files(made):
    _, saved, _ = made
    assert {p.name for p in saved.iterdir() if p.is_file()} >= {"atlas.json", "arrays.npz"}
    assert not list(saved.rglob(".*"))  # nothing half-written
    facts = json.loads((saved / "atlas.json").read_text(encoding="utf-8"))
    assert facts["format"] == 5
    with np.load(saved / "arrays.npz", allow_pickle=False) as arrays:
        assert "0/topk/score" in arrays


@pytest.mark.parametrize("name", ["relu1", "r1", "dense2", "fc2", "d2"])
def test_a_layer_by_name(made, name):
    atlas, saved, _ = made
    layer = "relu1" if "r" in name else "dense2"
    assert atlas[name].layer.name == layer
    assert onnxviz.Atlas.load(saved)[name].layer.name == layer


def test_a_layer_that_is_not_there(made):
    with pytest.raises(LayerNotFoundError, match="conv9"):
        _ = made[0]["conv9"]


def _edit(folder, change):
    facts = json.loads((folder / "atlas.json").read_text(encoding="utf-8"))
    change(facts)
    (folder / "atlas.json").write_text(json.dumps(facts), encoding="utf-8")


DAMAGE = {
    "no-json": (lambda f: (f / "atlas.json").unlink(), r"holds no atlas.*atlas\.json"),
    "no-arrays": (lambda f: (f / "arrays.npz").unlink(), r"holds no atlas.*arrays\.npz"),
    "not-json": (lambda f: (f / "atlas.json").write_text("{"), "damaged"),
    "a-list": (lambda f: (f / "atlas.json").write_text("[]"), "damaged"),
    "not-utf8": (lambda f: (f / "atlas.json").write_bytes(b"\xff\xfe{}"), "damaged"),
    "not-arrays": (lambda f: (f / "arrays.npz").write_bytes(b"PK\x03\x04 cut"), "damaged"),
    "empty-arrays": (lambda f: (f / "arrays.npz").write_bytes(b""), "damaged"),
    "half-the-arrays": (
        lambda f: (f / "arrays.npz").write_bytes((f / "arrays.npz").read_bytes()[:300]),
        "damaged",
    ),
    "newer": (lambda f: _edit(f, lambda facts: facts.update(format=99)), "format 99.*format 5"),
    "no-format": (lambda f: _edit(f, lambda facts: facts.pop("format")), "damaged"),
    "key-missing": (lambda f: _edit(f, lambda facts: facts["layers"][0].pop("slug")), "damaged"),
    "key-unknown": (lambda f: _edit(f, lambda facts: facts["model"].update(colour="red")), "damaged"),
    "layer-more": (lambda f: _edit(f, lambda facts: facts["layers"].append(facts["layers"][0])), "damaged"),
}


@pytest.mark.parametrize("kind", DAMAGE)
def test_a_damaged_atlas_is_said_to_be(made, tmp_path, kind):
    folder = tmp_path / "run"
    shutil.copytree(made[1], folder)
    damage, message = DAMAGE[kind]
    damage(folder)
    with pytest.raises(AtlasError, match=message) as error:
        onnxviz.Atlas.load(folder)
    assert str(folder) in str(error.value)
    assert len(str(error.value).splitlines()) <= 2
    assert error.value.exit_code == 1


@pytest.mark.parametrize("kind", ["nowhere", "file"])
def test_no_folder_no_atlas(made, tmp_path, kind):
    path = tmp_path / kind
    if kind == "file":
        path.write_text("x")
    with pytest.raises(AtlasError, match=str(path)):
        onnxviz.Atlas.load(path)


def test_pictures_that_are_lost_are_named(made, tmp_path):
    """A copy of half a folder: say so, instead of a report with holes."""
    folder = tmp_path / "run"
    shutil.copytree(made[1], folder)
    lost = next((folder / "pictures" / made[0]["relu1"].slug).glob("*-strips.png"))
    lost.unlink()
    with pytest.raises(AtlasError, match=lost.name):
        onnxviz.Atlas.load(folder).report(tmp_path / "out")


def test_a_report_does_not_replace_a_foreign_page(made, tmp_path):
    (tmp_path / "index.html").write_text("mine")
    with pytest.raises(UsageError, match=r"index\.html"):
        onnxviz.Atlas.load(made[1]).report(tmp_path)
    assert [p.name for p in tmp_path.iterdir()] == ["index.html"]


def test_rendering_needs_neither_onnx_nor_onnxruntime():
    code = (
        "import sys\n"
        "import onnxviz, onnxviz.report.render, onnxviz.report.folder\n"
        "heavy = {'onnx', 'onnxruntime', 'torch', 'PIL'} & sys.modules.keys()\n"
        "assert not heavy, heavy\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60)


def _write(folder, change):
    facts = json.loads((folder / "atlas.json").read_text("utf-8"))
    change(facts)
    (folder / "atlas.json").write_text(json.dumps(facts), "utf-8")


DAMAGED_FACTS = {
    "a number is a text": lambda f: f["layers"][0].update(positions="9"),
    "other maps": lambda f: f["layers"][0].update(positions=9),
    "a field is missing": lambda f: f["model"].pop("nodes"),
    "a field too many": lambda f: f["provenance"].update(more=1),
    "a grid without columns": lambda f: f["filters"]["shared"].update(columns=0),
    "a grid with too few tiles": lambda f: f["filters"]["own"].update(rows=1, columns=1),
    "two layers of one name": lambda f: f["layers"].append(f["layers"][0]),
    "no layers": lambda f: f["layers"].clear(),
    "a name with a path": lambda f: f["layers"][0].update(slug="../x"),
    "axes that are none": lambda f: f["layers"][0]["layer"].update(order=[0, 1, 1, 3]),
    "a size below 0": lambda f: f["layers"][0]["layer"].update(size=[-12, 12]),
    "channels that are none": lambda f: f["layers"][0].update(pictured=[0, 99]),
    "channels twice": lambda f: f["layers"][0].update(pictured=[1, 1]),
    "names of other channels": lambda f: f["layers"][1].update(names=["a"]),
    "a sample of one in 3": lambda f: f["layers"][0].update(every=3),
    "an image that hits are in is gone": lambda f: f["images"].pop(),
    "a node that reads what comes later": lambda f: f["diagram"].reverse(),
    "a node of a layer that is none": lambda f: f["diagram"][0].update(slug="conv9"),
    "half of a character": lambda f: f["model"].update(name="\ud800"),
    "a frame without a size": lambda f: f["provenance"].update(input_size=[0, 12]),
    "labels of other images": lambda f: f["labels"].pop(),
    "no object": lambda f: f.update(model=[]),
}


@pytest.mark.parametrize("change", DAMAGED_FACTS.values(), ids=DAMAGED_FACTS)
def test_facts_that_do_not_fit_together(made, tmp_path, change):
    _, saved, _ = made
    shutil.copytree(saved, tmp_path / "run")
    assert onnxviz.Atlas.load(tmp_path / "run").layers
    _write(tmp_path / "run", change)
    with pytest.raises(AtlasError, match="damaged"):
        onnxviz.Atlas.load(tmp_path / "run")


DAMAGED_ARRAYS = {
    "another number of channels": lambda a: {"0/topk/score": a["0/topk/score"][:-1]},
    "numbers of images that are none": lambda a: {"0/topk/image": a["0/topk/image"].astype(float)},
    "other numbers of hits": lambda a: {"0/overall/y": a["0/overall/y"][:, :-1]},
    "an axis more": lambda a: {"0/stats/largest": a["0/stats/largest"][None]},
    "text": lambda a: {"0/stats/sums": a["0/stats/sums"].astype(str)},
    "a place outside": lambda a: {"0/topk/y": a["0/topk/y"] + 99},
    "objects": lambda a: {"sampled": a["sampled"].astype(object)},
}


@pytest.mark.parametrize("change", DAMAGED_ARRAYS.values(), ids=DAMAGED_ARRAYS)
def test_arrays_that_do_not_fit_the_facts(made, tmp_path, change):
    _, saved, _ = made
    shutil.copytree(saved, tmp_path / "run")
    path = tmp_path / "run" / "arrays.npz"
    with np.load(path) as file:
        arrays = {name: file[name] for name in file.files}
    np.savez(path, **{**arrays, **change(arrays)})
    with pytest.raises(AtlasError, match="damaged"):
        onnxviz.Atlas.load(tmp_path / "run")


@pytest.mark.parametrize(
    "text", ["[" * 200_000, '{"format": 4', "null", "[]", '"x"', "\x00"], ids=lambda t: t[:12]
)
def test_facts_that_are_no_facts(made, tmp_path, text):
    _, saved, _ = made
    shutil.copytree(saved, tmp_path / "run")
    (tmp_path / "run" / "atlas.json").write_text(text)
    with pytest.raises(AtlasError):
        onnxviz.Atlas.load(tmp_path / "run")
