"""Drawing: projections, maps, crops, sprites and files, against plain formulas."""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from onnxviz.images.render import (
    PALETTE,
    crop,
    encode,
    fit,
    grid,
    heatmap,
    montage,
    projection_limit,
    projection_rgb,
    resize_map,
    save,
)

RNG = np.random.default_rng(2)


def colours(height: int, width: int, channels: int = 3) -> np.ndarray:
    return RNG.integers(0, 256, (height, width, channels), dtype=np.uint8)


@pytest.mark.parametrize("channels", [1, 3])
def test_projection_is_the_formula(channels: int) -> None:
    p = RNG.standard_normal((5, 7, channels)).astype(np.float32)
    p[2, 3] = 0
    expected = np.rint(128 + 127 * p / np.abs(p).max()) * np.ones(3)
    found = projection_rgb(p)
    assert found.dtype == np.uint8
    assert np.abs(found - expected).max() <= 1
    assert (found[2, 3] == 128).all()
    assert {1, 255} & set(found.ravel().tolist())


def test_projection_is_symmetric() -> None:
    p = RNG.standard_normal((5, 7, 3)).astype(np.float32)
    assert np.array_equal(projection_rgb(p).astype(int) + projection_rgb(-p), np.full((5, 7, 3), 256))


@pytest.mark.parametrize("scale", [0.0, 1e-30, 1.0, 1e30])
def test_projection_does_not_depend_on_scale_and_nothing_is_grey(scale: float) -> None:
    p = RNG.standard_normal((5, 7, 3)).astype(np.float32)
    expected = projection_rgb(p) if scale else np.full((5, 7, 3), 128)
    assert np.abs(projection_rgb(p * np.float32(scale)).astype(int) - expected).max() <= 1


def test_projections_on_a_common_scale() -> None:
    assert projection_rgb(np.array([[[1.0], [-4.0]]]), largest=2.0)[0, :, 0].tolist() == [192, 1]


def test_projection_limit_is_a_quantile_of_what_is_not_zero() -> None:
    p = np.concatenate([np.arange(-500, 501), np.zeros(5000)]).reshape(-1, 1, 1)
    assert projection_limit(p, saturated=0) == 500
    assert projection_limit(p, saturated=0.01) == 495
    assert projection_limit(p[400:600], saturated=0.005) == 100
    assert projection_limit(np.zeros((2, 2, 1))) == 0


def test_a_few_strong_pixels_do_not_drown_the_rest() -> None:
    p = RNG.uniform(-1, 1, (40, 40, 3)).astype(np.float32)
    p[3, 4] = (90, -90, 90)
    drawn = projection_rgb(p)
    assert drawn[3, 4].tolist() == [255, 1, 255]
    assert np.abs(drawn.astype(int) - 128).mean() > 50


def lightness(rgb: np.ndarray) -> np.ndarray:
    """CIE L* of sRGB, by its definition: another witness than the OKLab that the ramp is made in."""
    share = rgb / 255
    linear = np.where(share <= 0.04045, share / 12.92, ((share + 0.055) / 1.055) ** 2.4)
    luminance = linear @ [0.2126, 0.7152, 0.0722]
    return np.where(luminance > 216 / 24389, 116 * np.cbrt(luminance) - 16, luminance * 24389 / 27)


def heatmap_rgb(a: np.ndarray, largest: float | None = None) -> np.ndarray:
    return PALETTE[heatmap(a, largest)]


def test_heatmap_rises_evenly_from_dark_to_bright() -> None:
    levels = lightness(heatmap_rgb(np.linspace(0, 1, 256)[None])[0].astype(float))
    assert levels[0] < 5
    assert levels[-1] > 92
    assert (np.diff(levels[::4]) > 0).all()
    assert np.abs(levels - np.linspace(levels[0], levels[-1], 256)).max() < 8


def test_heatmap_negatives_are_darkest_and_the_maximum_brightest() -> None:
    drawn = heatmap_rgb(np.array([[-3.0, 0.0, 5.0]]))
    ramp = heatmap_rgb(np.array([[0.0, 1.0]]))
    assert drawn.shape == (1, 3, 3)
    assert np.array_equal(drawn[0], ramp[0][[0, 0, 1]])
    assert np.array_equal(
        heatmap_rgb(np.array([[5.0]]), largest=5.0), heatmap_rgb(np.array([[9.0]]), largest=5.0)
    )


@pytest.mark.parametrize("value", [0.0, -1.0])
def test_heatmap_of_a_dead_map_is_dark(value: float) -> None:
    assert np.array_equal(
        heatmap_rgb(np.full((2, 3), value)), np.tile(heatmap_rgb(np.zeros((1, 1))), (2, 3, 1))
    )


BOXES = {
    "inside": (1, 2, 4, 6),
    "corner": (-2, -3, 3, 2),
    "other corner": (4, 5, 9, 12),
    "around": (-4, -4, 11, 13),
    "above": (-9, 0, -2, 4),
    "below": (20, 0, 25, 4),
    "touching": (6, 8, 9, 11),
}


@pytest.mark.parametrize("box", BOXES.values(), ids=BOXES)
@pytest.mark.parametrize("channels", [None, 1, 3])
def test_crop_pads_and_never_shifts(box: tuple[int, int, int, int], channels: int | None) -> None:
    picture = colours(6, 8, channels or 1)
    picture = picture if channels else picture[..., 0]
    margin = 30
    pads = ((margin, margin), (margin, margin)) + (((0, 0),) if channels else ())
    top, left, bottom, right = (edge + margin for edge in box)
    expected = np.pad(picture, pads, constant_values=77)[top:bottom, left:right]
    found = crop(picture, box, fill=77)
    assert found.dtype == np.uint8
    assert np.array_equal(found, expected)


CASES = {  # kernel, stride, padding of a one-layer network on a frame of 23×31
    "3×3": ((3, 3), (1, 1), (1, 1)),
    "even": ((2, 2), (2, 2), (0, 0)),
    "alexnet": ((11, 7), (4, 3), (0, 2)),
    "sparse": ((1, 1), (5, 4), (0, 0)),
}


@pytest.mark.parametrize(("kernel", "stride", "padding"), CASES.values(), ids=CASES)
def test_map_cells_are_nearest_to_the_centres_of_their_fields(
    kernel: tuple[int, int], stride: tuple[int, int], padding: tuple[int, int]
) -> None:
    frame = (23, 31)
    shape = [(frame[axis] + 2 * padding[axis] - kernel[axis]) // stride[axis] + 1 for axis in (0, 1)]
    a = np.arange(shape[0] * shape[1], dtype=np.float32).reshape(shape)
    found = resize_map(a, frame, stride, (-padding[0], -padding[1]), kernel)
    assert found.shape == frame
    picked = []
    for axis in (0, 1):
        centres = [stride[axis] * p - padding[axis] + kernel[axis] / 2 for p in range(shape[axis])]
        distance = np.abs(np.arange(frame[axis])[:, None] + 0.5 - centres)
        # Halfway between two centres either will do; the later one is taken.
        picked.append(shape[axis] - 1 - np.argmin(distance[:, ::-1], axis=1))
    assert np.array_equal(found, a[np.ix_(*picked)])


@pytest.mark.parametrize("stride", [None, (0, 0), (7, 7)])
def test_map_of_one_unit_is_constant(stride: tuple[int, int] | None) -> None:
    assert (resize_map(np.array([[3.0]]), (5, 7), stride, (-9, -9), (40, 40)) == 3).all()


def test_map_without_geometry_is_spread_evenly() -> None:
    assert resize_map(np.array([[1, 2]]), (2, 6), None).tolist() == [[1, 1, 1, 2, 2, 2]] * 2


def test_fit_shrinks_by_area() -> None:
    picture = colours(8, 12)
    expected = picture.reshape(4, 2, 6, 2, 3).mean(axis=(1, 3))
    found = fit(picture, 6)
    assert found.shape == (4, 6, 3)
    assert np.abs(found - expected).max() <= 1


@pytest.mark.parametrize("channels", [1, 3])
def test_fit_leaves_small_pictures_alone(channels: int) -> None:
    picture = colours(8, 12, channels)
    assert np.array_equal(fit(picture, 12), picture)


def test_fit_keeps_a_line_of_a_very_long_picture() -> None:
    assert fit(colours(1, 300, 1), 10).shape == (1, 10, 1)


def test_grid() -> None:
    tiles = [np.full((2, 3, channels), value, np.uint8) for value, channels in ((10, 3), (20, 1), (30, 3))]
    sheet = grid(tiles, columns=2, gap=1, fill=99)
    assert sheet.shape == (5, 7, 3)
    assert sheet[:, :, 0].tolist() == [
        [10, 10, 10, 99, 20, 20, 20],
        [10, 10, 10, 99, 20, 20, 20],
        [99] * 7,
        [30, 30, 30, 99, 99, 99, 99],
        [30, 30, 30, 99, 99, 99, 99],
    ]
    assert grid(tiles[:1], columns=3, rows=3).shape == (6, 9, 3)


@pytest.mark.parametrize("tiles", [[], [np.zeros((2, 2, 3)), np.zeros((2, 3, 3))]], ids=["none", "unequal"])
def test_grid_wants_tiles_of_one_size(tiles: list[np.ndarray]) -> None:
    with pytest.raises(ValueError, match="one size"):
        grid(tiles, columns=2)


@pytest.mark.parametrize("kind", ["webp", "png"])
@pytest.mark.parametrize("channels", [1, 3])
def test_lossless_files_come_back(kind: str, channels: int) -> None:
    picture = colours(9, 11, channels)
    with Image.open(io.BytesIO(encode(picture, kind, lossless=True))) as image:
        assert image.format == kind.upper()
        assert np.array_equal(np.asarray(image.convert("RGB")), picture * np.ones(3, np.uint8))


def test_maps_keep_their_colours() -> None:
    cells = RNG.integers(0, 256, (9, 11), dtype=np.uint8)
    with Image.open(io.BytesIO(encode(cells, "png"))) as image:
        assert np.array_equal(np.asarray(image.convert("RGB")), PALETTE[cells])
    smooth = np.linspace(0, 253, 64 * 64).astype(np.uint8).reshape(64, 64)
    with Image.open(io.BytesIO(encode(smooth, "jpeg"))) as image:
        assert np.abs(np.asarray(image).astype(int) - PALETTE[smooth]).mean() < 5


def test_projections_keep_the_colour_of_every_pixel() -> None:
    """Red and green in turn: with the subsampling that is usual in JPEG they would be a brown."""
    picture = np.full((32, 32, 3), 128, np.uint8)
    picture[:, ::2, 0] = picture[:, 1::2, 1] = 200
    with Image.open(io.BytesIO(encode(picture, "jpeg", quality=70))) as image:
        found = np.asarray(image).astype(int)
    difference = found[..., 0] - found[..., 1]
    assert difference[:, ::2].mean() > 50
    assert difference[:, 1::2].mean() < -50


@pytest.mark.parametrize("quality", [70, 100])
def test_noise_can_be_stored(quality: int) -> None:
    """Optimised tables want room for the whole file, of which Pillow reserves a byte a pixel: noise takes more."""
    picture = colours(216, 432)
    with Image.open(io.BytesIO(encode(picture, "jpeg", quality=quality))) as image:
        assert image.size == (432, 216)


def test_projection_limit_is_exact_whatever_the_size() -> None:
    for size in (1, 7, 15, 16, 17, 300, 5000):
        for zeros in (0, size // 2):
            p = np.round(RNG.normal(size=size), 1)
            p[:zeros] = 0
            sizes = np.sort(np.abs(p[p != 0]).astype(np.float32))
            share = 0.005 if size < 5000 else 0.2
            expected = sizes[len(sizes) - 1 - int(share * len(sizes))] if len(sizes) else 0
            assert projection_limit(p, share) == expected


def test_lossy_files_are_near_and_small() -> None:
    y, x = np.mgrid[:96, :96]
    picture = np.stack([128 + 90 * np.sin(y / 9 + x / 13 + c) for c in range(3)], axis=2)
    grain = np.random.default_rng(0).normal(0, 3, picture.shape)  # as a photograph has it
    picture = (picture + grain).astype(np.uint8)
    data = encode(picture, "webp")
    assert len(data) < len(encode(picture, "webp", lossless=True)) / 2
    with Image.open(io.BytesIO(data)) as image:
        assert np.abs(np.asarray(image.convert("RGB")).astype(int) - picture).mean() < 4


@pytest.mark.parametrize(("name", "kind"), [("a.webp", "WEBP"), ("a.png", "PNG"), ("a.jpg", "JPEG")])
def test_save_goes_by_the_ending(tmp_path: Path, name: str, kind: str) -> None:
    save(colours(9, 11), tmp_path / name)
    with Image.open(tmp_path / name) as image:
        assert (image.format, image.size) == (kind, (11, 9))


def test_files_are_the_same_each_time() -> None:
    picture = colours(40, 40)
    assert len({encode(picture, "webp") for _ in range(3)}) == 1


def test_montage_holds_every_card_under_its_name() -> None:
    cards = [np.full((12, 20, 3), value, np.uint8) for value in (10, 90, 170, 250, 60)]
    sheet = montage(cards, [str(number) for number in range(5)], columns=3)
    assert sheet.shape[1] == 3 * 20 + 4 * 12
    for card in cards:
        assert (sheet == card[0, 0]).all(axis=2).sum() >= 12 * 20
    named = montage(cards, ["", "1", "", "", ""], columns=3)
    assert not np.array_equal(sheet, named)


@pytest.mark.parametrize("count", [1, 7, 64, 384])
def test_montage_is_landscape(count: int) -> None:
    height, width, _ = montage([np.zeros((18, 36, 3), np.uint8)] * count, ["x"] * count).shape
    assert count == 1 or 0.75 < width / height < 2.5
