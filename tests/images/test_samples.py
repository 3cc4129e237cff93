"""Built-in samples: suited, the same each time, and no two alike."""

from __future__ import annotations

from collections import Counter
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from PIL import Image

from onnxviz.images.preprocess import resolve_preprocess
from onnxviz.images.samples import PHOTOGRAPHS, builtin_source
from onnxviz.images.stimuli import stimuli

TITLES = {name.replace("_", " ") for name in PHOTOGRAPHS}


def frames(size: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """What a network sees (N, H, W, 3) float32, the labels, and which are photographs."""
    preprocess = resolve_preprocess(channels=3, height=size, width=size, preset="raw")
    samples = builtin_source(3, size, size).samples
    seen = np.stack([preprocess(sample.read()) for sample in samples]).transpose(0, 2, 3, 1)
    labels = np.array([sample.label for sample in samples])
    return seen, labels, np.isin(labels, sorted(TITLES))


def correlations(pictures: np.ndarray, least: float) -> np.ndarray:
    """Correlation of each pair, colour means removed; ``least`` is the smallest deviation believed in."""
    centred = pictures - pictures.mean(axis=(1, 2), keepdims=True)
    rows = centred.reshape(len(pictures), -1)
    rows /= np.maximum(rows.std(axis=1, keepdims=True), least)
    found = rows @ rows.T / rows.shape[1]
    np.fill_diagonal(found, 0)
    return found


def test_digits_are_balanced_and_mixed() -> None:
    source = builtin_source(1, 28, 28)
    assert source.builtin
    assert source.description == "built-in samples (1,000 MNIST digits)"
    assert source.classes == {str(digit): 100 for digit in range(10)}
    assert [sample.label for sample in source.samples[:10]] == list("0123456789")
    first = source.samples[0]
    assert first.name == "digits[0]"
    assert first.read().shape == (28, 28, 1)
    assert len({sample.name for sample in source.samples}) == 1000
    assert len({sample.read().tobytes() for sample in source.samples}) == 1000


@pytest.mark.parametrize(("height", "width"), [(224, 224), (227, 227), (299, 299), (128, 192)])
def test_photographs_and_stimuli(height: int, width: int) -> None:
    source = builtin_source(3, height, width)
    names = [sample.name for sample in source.samples]
    assert source.builtin
    assert 300 <= len(names) <= 450
    assert len(set(names)) == len(names)
    assert set(source.classes) >= TITLES | {
        "grating",
        "spot",
        "edge",
        "arc",
        "corner",
        "checker",
        "colour",
        "noise",
    }
    assert sum(source.classes.values()) == len(names)


@pytest.mark.parametrize("size", [8, 28, 32, 64])
def test_small_inputs_get_what_fits(size: int) -> None:
    samples = builtin_source(3, size, size).samples
    assert len(samples) > 150
    assert all(sample.read().ndim == 3 for sample in samples)


@pytest.mark.parametrize("channels", [2, 4, 13])
def test_other_channel_counts_can_use_the_samples(channels: int) -> None:
    preprocess = resolve_preprocess(channels=channels, height=40, width=40)
    samples = builtin_source(channels, 40, 40).samples
    assert {preprocess(sample.read()).shape for sample in samples[::9]} == {(channels, 40, 40)}


def test_stimuli_have_the_networks_size() -> None:
    drawn = [made.draw() for made in stimuli(96, 120)]
    assert {picture.shape for picture in drawn} == {(96, 120, 3)}
    assert {picture.dtype for picture in drawn} == {np.dtype(np.uint8)}


def test_the_same_each_time_and_in_threads() -> None:
    once = [sample.read() for sample in builtin_source(3, 64, 64).samples]
    with ThreadPoolExecutor(8) as pool:
        again = list(pool.map(lambda sample: sample.read(), builtin_source(3, 64, 64).samples))
    assert all(np.array_equal(one, other) for one, other in zip(once, again, strict=True))


@pytest.mark.parametrize("size", [32, 128])
def test_no_two_photographs_are_alike(size: int) -> None:
    seen, labels, photographs = frames(size)
    small = [
        Image.fromarray(np.rint(frame).astype(np.uint8)).resize((16, 16), Image.Resampling.BOX)
        for frame in seen
    ]
    alike = correlations(np.stack(small).astype(np.float32)[photographs], least=4)
    assert alike.max() < 0.9
    same = labels[photographs][:, None] == labels[photographs]
    assert ((alike > 0.6) & same).sum(axis=1).max() <= 2


def test_no_photograph_has_many_views() -> None:
    counts = Counter(
        {label: n for label, n in builtin_source(3, 224, 224).classes.items() if label in TITLES}
    )
    assert counts.most_common(1)[0][1] <= 13


@pytest.mark.parametrize("size", [32, 128])
def test_no_two_stimuli_are_alike(size: int) -> None:
    seen, labels, photographs = frames(size)
    structured = ~photographs & (labels != "colour")
    assert correlations(seen[structured], least=2).max() < 0.93


def test_plain_colours_differ() -> None:
    seen, labels, _ = frames(32)
    plain = seen[labels == "colour"][:, 0, 0]
    apart = np.linalg.norm(plain[:, None] - plain[None], axis=2) + 999 * np.eye(len(plain))
    assert apart.min() > 40


@pytest.mark.parametrize(("degrees", "rows", "columns"), [("0°", True, False), ("90°", False, True)])
def test_direction_of_gratings(degrees: str, rows: bool, columns: bool) -> None:
    picture = next(m.draw() for m in stimuli(64, 64) if m.name == f"grating {degrees} 10 px").astype(int)
    assert bool(np.ptp(picture, axis=0).max() > 100) is rows
    assert bool(np.ptp(picture, axis=1).max() > 100) is columns


def test_period_of_gratings() -> None:
    picture = next(m.draw() for m in stimuli(80, 80) if m.name == "grating 90° 10 px")[0, :, 0].astype(float)
    assert np.abs(np.fft.rfft(picture - picture.mean())).argmax() == 8


def test_edges_are_light_towards_their_direction() -> None:
    by_name = {made.name: made.draw() for made in stimuli(64, 64) if made.kind == "edge"}
    assert by_name["edge 0°"][32, 60, 0] > by_name["edge 0°"][32, 3, 0]
    assert by_name["edge 90°"][3, 32, 0] > by_name["edge 90°"][60, 32, 0]
