"""Images of a small data set are recorded while they are scanned: the same pictures, without a second run."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from onnxviz import analyze
from onnxviz.errors import ImageError
from onnxviz.images.source import Sample, Source
from onnxviz.progress import Progress
from onnxviz.watched import Watched, _Best
from tests.light import write_light
from tests.model.nets import small, write

MODELS = Path(__file__).parents[1] / "models"


class Phases(Progress):
    """Hears the phases, and breaks the scan off after so many images."""

    def __init__(self, after: int | None = None) -> None:
        self.phases: dict[str, int] = {}
        self._now, self._left = "", after

    def start(self, task, total, unit):
        self._now = task
        self.phases[task] = total

    def advance(self, count=1):
        if self._now == "Scanning" and self._left is not None:
            self._left -= count
            if self._left <= 0:
                raise KeyboardInterrupt


def files(folder: Path) -> dict[Path, bytes]:
    return {path.relative_to(folder): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def both(
    monkeypatch, tmp_path: Path, model: Path, **options: object
) -> tuple[dict[str, int], dict[str, int]]:
    """The phases of a job with watching and of one without, whose pictures are the same."""
    heard = []
    for name in ("watched", "run again"):
        with monkeypatch.context() as patch:
            if name == "run again":
                patch.setattr(Watched, "of", lambda *args, **options: None)
            heard.append(Phases())
            analyze(model, folder=tmp_path / name, provider="cpu", progress=heard[-1], **options)
    first, second = (files(tmp_path / name) for name in ("watched", "run again"))
    assert len(first) > 2
    assert first == second
    return heard[0].phases, heard[1].phases


@pytest.fixture
def model(tmp_path) -> Path:
    return write(tmp_path / "small.onnx", small())


def arrays(tmp_path: Path, count: int, *shape: int) -> Path:
    np.save(tmp_path / "x.npy", np.random.default_rng(1).normal(size=(count, *shape)).astype(np.float32))
    return tmp_path / "x.npy"


@pytest.mark.parametrize("rank", ["max", "sum", "first"])
@pytest.mark.parametrize("seed", ["unit", "map"])
@pytest.mark.parametrize("method", [["deconvnet"], ["guided", "gradient"]])
def test_pictures_are_the_same_without_a_second_run(monkeypatch, tmp_path, model, method, seed, rank):
    options = {"images": arrays(tmp_path, 20, 3, 12, 12), "preprocess": "raw", "top": 4}
    watched, again = both(
        monkeypatch,
        tmp_path,
        model,
        layers=["conv1", "relu1", "conv2"],
        method=method,
        seed=seed,
        rank=rank,
        **options,
    )
    assert "Recording" not in watched
    assert again["Recording"] >= 4


@pytest.mark.parametrize(
    "name", ["bvlc_alexnet", "densenet121", "inception_v1", "resnet50", "squeezenet", "vgg19"]
)
def test_pictures_of_networks_of_every_kind_are_the_same(monkeypatch, tmp_path, name):
    """Branches, residuals, normalisation, LRN; early and late layers together."""
    options = {"images": arrays(tmp_path, 6, 3, 224, 224), "preprocess": "raw", "top": 2, "channels": "0-5"}
    watched, again = both(
        monkeypatch,
        tmp_path,
        write_light(name, tmp_path),
        layers=["conv1", "conv4"],
        memory=4 << 30,
        **options,
    )
    assert "Recording" not in watched
    assert again["Recording"] > 1


def test_pictures_of_a_shipped_model_are_the_same(monkeypatch, tmp_path):
    options = {"layers": "fire2/*", "channels": "0-7", "limit": 12}
    watched, again = both(monkeypatch, tmp_path, MODELS / "squeezenet1_1.onnx", **options)
    assert "Recording" not in watched
    assert again["Recording"] == 12


def test_a_control_is_run_again(monkeypatch, tmp_path, model):
    options = {"images": arrays(tmp_path, 10, 3, 12, 12), "preprocess": "raw", "top": 3, "control": True}
    watched, _ = both(monkeypatch, tmp_path, model, layers=["conv1", "conv2"], **options)
    assert watched["Recording"] > 3  # in the network with shuffled weights


@pytest.mark.parametrize("batch", [1, 3])
def test_a_fixed_batch_is_no_matter(monkeypatch, tmp_path, batch):
    model = write(tmp_path / "fixed.onnx", small(x=(batch, 3, 12, 12)))
    options = {"images": arrays(tmp_path, 10, 3, 12, 12), "preprocess": "raw", "top": 3}
    watched, _ = both(monkeypatch, tmp_path, model, layers=["relu1", "conv2"], **options)
    assert "Recording" not in watched


def test_of_equal_images_those_that_count_are_shown(monkeypatch, tmp_path, model):
    """Whichever of them a thread came upon first."""
    x = np.random.default_rng(2).normal(size=(4, 3, 12, 12)).astype(np.float32)
    np.save(tmp_path / "x.npy", x.repeat(6, axis=0)[np.random.default_rng(0).permutation(24)])
    options = {"images": tmp_path / "x.npy", "preprocess": "raw", "top": 5}
    both(monkeypatch, tmp_path, model, layers=["conv1", "relu1", "conv2"], **options)


def test_images_that_cannot_be_read_are_left_out(monkeypatch, tmp_path, model):
    folder = tmp_path / "images"
    folder.mkdir()
    for number in range(9):
        pixels = np.random.default_rng(number).integers(0, 256, (12, 12, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(folder / f"{number}.png")
        (folder / f"{number}b.png").write_bytes(b"no picture")
    watched, _ = both(monkeypatch, tmp_path, model, images=folder, layers=["conv1", "conv2"])
    assert "Recording" not in watched


def test_each_image_is_read_once(tmp_path, model):
    x = np.random.default_rng(1).normal(size=(20, 3, 12, 12)).astype(np.float32)
    read: list[int] = []

    def sample(index: int) -> Sample:
        def image() -> np.ndarray:
            read.append(index)
            if index == 3:
                raise ImageError("image 3: gone")
            return x[index]

        return Sample(f"image {index}", None, image)

    source = Source("arrays", [sample(index) for index in range(20)])
    options = {"provider": "cpu", "preprocess": "raw", "folder": tmp_path / "out"}
    analyze(model, images=source, layers=["conv1", "conv2"], **options)
    assert sorted(read) == list(range(20))


def test_what_was_scanned_in_an_earlier_run_is_recorded(tmp_path, model):
    options = {
        "images": arrays(tmp_path, 40, 3, 12, 12),
        "layers": ["conv1", "relu1", "conv2"],
        "preprocess": "raw",
        "provider": "cpu",
        "top": 6,
    }
    with pytest.raises(KeyboardInterrupt):
        analyze(model, report=tmp_path / "two", progress=Phases(after=16), **options)
    heard = Phases()
    analyze(model, report=tmp_path / "two", progress=heard, **options)
    assert 0 < heard.phases["Recording"] < 40
    analyze(model, report=tmp_path / "one", **options)
    one, two = (files(tmp_path / name / "pictures") for name in ("one", "two"))
    assert one == two


@pytest.mark.parametrize(
    ("options", "watched"),
    [
        ({}, 40),
        ({"channels": "0-2", "top": 13}, 0),
        ({"layers": ["conv1", "fc1"]}, 0),
        ({"memory": 100_000}, 0),
        ({"workers": 1}, 0),
        ({"engine": "graph"}, 0),
        ({"batch_size": 4, "memory": 400_000}, 40),
        ({"batch_size": 32, "memory": 400_000}, 0),
    ],
    ids=[
        "usual",
        "few hits",
        "a product",
        "memory",
        "processes",
        "one graph",
        "small batches",
        "large batches",
    ],
)
def test_it_is_done_only_where_it_pays(monkeypatch, tmp_path, model, options, watched):
    seen: list[int] = []
    watch = Watched.__call__

    def counted(self, images, *others):
        seen.extend(images)
        watch(self, images, *others)

    monkeypatch.setattr(Watched, "__call__", counted)
    usual = {"layers": ["conv1"], "top": 9, "images": arrays(tmp_path, 40, 3, 12, 12)}
    analyze(model, run=tmp_path / "run.atlas", preprocess="raw", provider="cpu", **(usual | options))
    assert len(seen) == watched


@pytest.mark.parametrize("order", [1, -1])
def test_the_best_do_not_depend_on_who_comes_first(order):
    rng = np.random.default_rng(0)
    score = rng.integers(0, 3, (30, 4)).astype(float)
    score[5, 1] = np.nan
    maps = rng.normal(size=(30, 4, 2, 2)).astype(np.float32)
    best = _Best(4, 6)
    for image in range(30)[::order]:
        best.offer(image, score[image], maps[image])
    found = {(channel, image): found for channel, image, found in best.maps()}
    for channel in range(4):
        ranked = sorted((-s, i) for i, s in enumerate(score[:, channel]) if np.isfinite(s))[:6]
        assert sorted(i for c, i in found if c == channel) == sorted(i for _, i in ranked)
    for (channel, image), own in found.items():
        np.testing.assert_array_equal(own, maps[image, channel])
