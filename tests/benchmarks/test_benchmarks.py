"""The parts of the benchmarks, on a toy. Ratios are for ``python -m tests.benchmarks`` to print, not for tests.

Projections are held against Captum's: another implementation, on another framework's gradients.
"""

# ruff: noqa: E402 (nothing is imported before it is sure that the extra is there)

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="the benchmarks need torch: pip install -e '.[bench]'")
pytest.importorskip("captum", reason="the benchmarks need captum: pip install -e '.[bench]'")
pytest.importorskip("matplotlib", reason="the benchmarks need matplotlib: pip install -e '.[bench]'")

from tests.benchmarks import child, networks, photos, projections, script, table, timing
from tests.benchmarks.bench import Bench
from tests.benchmarks.ours import array_source
from tests.benchmarks.peers import Captum, disagreement

PUBLISHED = {
    "alexnet": 2_334_080,
    "vgg16": 14_714_688,
    "resnet50": 23_508_032,
    "mobilenet_v2": 2_223_872,
    "inception_v3": 21_785_568,
    "densenet121": 6_953_856,
}
"""Parameters without classifiers."""

LAYERS = ("conv1", "residual", "dense", "conv2")


@pytest.fixture(scope="module")
def bench(tmp_path_factory: pytest.TempPathFactory) -> Bench:
    return Bench(tmp_path_factory.mktemp("bench"), rounds=2, quick=True)


@pytest.mark.parametrize("name", PUBLISHED)
def test_networks_have_as_many_parameters_as_published(name: str) -> None:
    with torch.device("meta"):
        module = networks.NETWORKS[name]().module
    assert sum(p.numel() for p in module.parameters()) == PUBLISHED[name]


@pytest.mark.parametrize("layer", LAYERS)
def test_both_sides_have_the_same_activations(bench: Bench, layer: str) -> None:
    pair = bench.pair("tiny")
    x = bench.inputs(3, pair.net.size)
    theirs = Captum(pair.net, layer).activations(x)
    ours = pair.ours.net.activations(x, pair.aliases[layer])
    np.testing.assert_allclose(ours, theirs, rtol=0, atol=1e-5 * np.abs(theirs).max())


@pytest.mark.parametrize("cut", [False, True], ids=["whole", "cut"])
@pytest.mark.parametrize("layer", LAYERS)
def test_projections_are_those_of_captum(bench: Bench, layer: str, cut: bool) -> None:
    pair = bench.pair("tiny")
    x = bench.inputs(5, pair.net.size)
    units = pair.ours.hits(x, pair.aliases[layer], [2], top=4)
    frames = Captum(pair.net, layer, cut=cut).project(x, units)
    found = pair.ours.project(x, pair.aliases[layer], units)
    assert np.abs(frames).max(axis=(1, 2, 3)).min() > 0
    assert disagreement(frames, found.pixels, found.boxes.tolist()) < 1e-4


def test_what_disagrees_is_seen() -> None:
    frames = np.zeros((1, 1, 5, 7), np.float32)
    frames[0, 0, 1:4, :2] = 1
    pixels = np.ones((1, 1, 3, 3), np.float32)
    pixels[..., 0] = 0
    assert disagreement(frames, pixels, [(1, -1, 4, 2)]) == 0
    assert disagreement(frames, 1.01 * pixels, [(1, -1, 4, 2)]) == pytest.approx(0.01)
    assert disagreement(frames, pixels, [(0, -1, 3, 2)]) == 1


def test_multiply_adds_of_a_projection(bench: Bench) -> None:
    # One unit of conv1 takes its 8 channels through a 5×5 filter to 3.
    assert bench.pair("tiny").ours.multiply_adds("conv1") == 8 * 5 * 5 * 3


def test_a_measure_has_all_sides_of_every_round(bench: Bench) -> None:
    pair = bench.pair("tiny")
    found = projections.measure(bench, pair, "residual", bench.inputs(9, pair.net.size), [0, 5])
    assert len(found.rounds) == 2
    assert all(seconds > 0 for sides in found.rounds for seconds in sides)
    assert found.difference < 1e-4


def test_sides_run_in_turn() -> None:
    calls = []
    found = timing.alternately(lambda: calls.append("a") or 1.0, lambda: calls.append("b") or 2.0, rounds=2)
    assert calls == ["a", "b"] * 3
    assert found == [(1.0, 2.0)] * 2


def test_a_row_says_whether_its_goal_is_met() -> None:
    row = timing.Row("what", "1 ms", "9 ms", (8.0, 12.0, 9.0), timing.Goal(10))
    assert table.line(row) == "| what | 1 ms | 9 ms | **9** × (8–12) | ≥ 10 × | no |"
    entry = json.loads(table.as_json(["fact"], [row]))["rows"][0]
    assert entry["met"] is False
    assert entry["median"] == 9
    assert timing.Goal(2, "s", at_least=False).met(1.5)


def test_the_child_scans_and_projects(bench: Bench) -> None:
    model = str(bench.model("tiny"))
    folder = photos.links(bench.folder / "links", bench.photos(2), 5)
    assert child.scan(model, str(folder), "5")["peak"] > 0
    found = child.project(model, "conv2", "2", "3")
    assert 0 < found["before"] <= found["peak"]


def test_the_scripts_scan_finds_what_ours_finds(bench: Bench) -> None:
    pair = bench.pair("tiny")
    x = bench.inputs(7, pair.net.size)
    _, best = script.scan(pair.net, torch.utils.data.DataLoader(torch.from_numpy(x), 4))
    (one,) = pair.ours.scan(array_source(x), [pair.aliases["residual"]]).layers
    found = best["residual"]
    np.testing.assert_allclose(found.score, one.topk.score[:, :7], rtol=1e-4, atol=1e-5)
    assert found.units(3)[0].tolist() == [one.topk.image[3, 0], 3, one.topk.y[3, 0], one.topk.x[3, 0]]


def test_the_script_knows_what_a_unit_of_alexnet_sees() -> None:
    with torch.device("meta"):
        net = networks.alexnet()
    found = {name: (step, first, size) for name, step, first, size in script.fields(net)}
    assert found["conv1"] == (4, 0, 11)
    assert found["conv5"] == (16, -2 * 8 - 3 * 16, 163)


def test_the_script_decodes_images_as_onnxviz_does(bench: Bench) -> None:
    folder, ours = bench.photos(2), bench.pair("tiny").ours
    data = script.Photos(folder, bench.pair("tiny").net.size)
    theirs = np.stack([data[index].numpy() for index in range(2)])
    own = np.stack([ours.recipe(sample.read()) for sample in ours.source(folder).samples])
    assert theirs.shape == own.shape
    assert np.abs(theirs - own).mean() < 0.1  # of about 1: shrinking while decoding is not done quite alike


def test_pictures_are_seeded(tmp_path: Path) -> None:
    a, b = (photos.photos(tmp_path / name, 2) for name in "ab")
    assert (a / "00001.jpg").read_bytes() == (b / "00001.jpg").read_bytes()
    assert (a / "00000.jpg").read_bytes() != (a / "00001.jpg").read_bytes()
