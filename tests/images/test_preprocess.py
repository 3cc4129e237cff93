"""Preprocessing: the plain formula, Pillow as a witness, the way back, and where a recipe comes from."""

from __future__ import annotations

import json
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from onnxviz.errors import ImageError, UsageError
from onnxviz.images.preprocess import PRESETS, Preprocess, from_json, resolve_preprocess

RNG = np.random.default_rng(11)
H, W = 13, 17


def noise(height: int = H, width: int = W, channels: int = 3) -> np.ndarray:
    return RNG.integers(0, 256, (height, width, channels), dtype=np.uint8)


def smooth(height: int, width: int, channels: int = 3) -> np.ndarray:
    y, x = np.mgrid[:height, :width]
    waves = [128 + 100 * np.sin(y / (9 + c) + x / (14 - c)) for c in range(channels)]
    return np.rint(np.stack(waves, axis=2)).astype(np.uint8)


def resolve(channels: int = 3, height: int | None = H, width: int | None = W, **options: Any) -> Preprocess:
    return resolve_preprocess(channels=channels, height=height, width=width, **options)


FORMULAS = {
    "imagenet": lambda p: (p / 255 - [0.485, 0.456, 0.406]) / [0.229, 0.224, 0.225],
    "caffe": lambda p: p[..., ::-1] - [103.939, 116.779, 123.68],
    "tf": lambda p: p / 127.5 - 1,
    "unit": lambda p: p / 255,
    "raw": lambda p: p * 1.0,
}


def test_every_preset_has_a_formula_here() -> None:
    assert set(FORMULAS) == set(PRESETS)


@pytest.mark.parametrize("preset", FORMULAS)
def test_presets_are_their_formulas(preset: str) -> None:
    picture = noise()
    found = resolve(preset=preset)(picture)
    assert found.dtype == np.float32
    assert found.flags.c_contiguous
    np.testing.assert_allclose(found, FORMULAS[preset](picture).transpose(2, 0, 1), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("preset", FORMULAS)
@pytest.mark.parametrize("bgr", [None, False, True])
def test_picture_is_the_way_back(preset: str, bgr: bool | None) -> None:
    picture = noise()
    preprocess = resolve(preset=preset, bgr=bgr)
    assert np.array_equal(preprocess.picture(preprocess(picture)), picture)


@pytest.mark.parametrize("channels", [1, 4, 2, 7])
def test_picture_is_the_way_back_for_other_channel_counts(channels: int) -> None:
    preprocess = resolve(channels, preset="tf")
    grey = noise(channels=1)
    expected = np.repeat(grey, 3, axis=2) if channels == 4 else grey
    assert np.array_equal(preprocess.picture(preprocess(grey)), expected)


def test_channels_first_and_last() -> None:
    arrays = [resolve()(noise()) for _ in range(5)]
    first, last = (resolve(layout=layout).batch(arrays) for layout in ("NCHW", "NHWC"))
    assert first.shape == (5, 3, H, W)
    assert last.shape == (5, H, W, 3)
    assert last.flags.c_contiguous
    assert np.array_equal(first[4, 2, 3], last[4, 3, :, 2])


SIZES = {"landscape": (60, 91), "portrait": (91, 60), "same": (24, 24), "small": (9, 7), "thin": (1, 200)}


@pytest.mark.parametrize("size", SIZES.values(), ids=SIZES)
def test_crop_equals_cutting_the_centre_out_first(size: tuple[int, int]) -> None:
    picture = smooth(*size)
    height, width = size
    side = min(size)
    # Cutting at whole pixels and resizing that is another way to the same picture where the margins are even.
    top, left = (height - side) / 2, (width - side) / 2
    image = Image.fromarray(picture)
    witness = image.resize((24, 24), Image.Resampling.BILINEAR, box=(left, top, left + side, top + side))
    found = resolve(height=24, width=24, preset="raw")(picture)
    assert np.abs(found - np.asarray(witness).transpose(2, 0, 1)).max() <= 2


def test_crop_fraction_is_torchvisions_resize_and_centre_crop() -> None:
    picture = smooth(240, 300)
    resized = Image.fromarray(picture).resize((80, 64), Image.Resampling.BILINEAR)  # Resize(64)
    witness = np.asarray(resized.crop((12, 4, 68, 60)))  # CenterCrop(56)
    recipe = {"preset": "raw", "size": [56, 56], "crop_fraction": 0.875}
    preprocess = from_json(recipe, channels=3, height=None, width=None, layout="NCHW", origin="test")
    assert np.abs(preprocess(picture) - witness.transpose(2, 0, 1)).max() <= 2


def test_stretch_is_pillows_resize() -> None:
    picture = smooth(60, 91)
    preprocess = replace(resolve(preset="raw"), resize="stretch")
    witness = np.asarray(Image.fromarray(picture).resize((W, H), Image.Resampling.BILINEAR, reducing_gap=3.0))
    assert np.array_equal(preprocess(picture), witness.transpose(2, 0, 1))


def test_pad_shows_all_and_fills_with_the_networks_zero() -> None:
    preprocess = replace(resolve(height=20, width=20, preset="caffe"), resize="pad")
    values = preprocess(np.full((40, 20, 3), 255, np.uint8))
    assert (values[:, :, :5] == 0).all()
    assert (values[:, :, 15:] == 0).all()
    np.testing.assert_allclose(values[:, 0, 5], 255 - np.array([103.939, 116.779, 123.68]), rtol=1e-5)
    assert preprocess.picture(values)[0, 0].tolist() == [124, 117, 104]


def test_a_picture_of_the_networks_size_is_not_resampled() -> None:
    picture = noise()
    assert np.array_equal(resolve(preset="raw")(picture), picture.transpose(2, 0, 1))


def test_colour_to_grey_is_pillows() -> None:
    picture = noise()
    witness = np.asarray(Image.fromarray(picture).convert("L"))
    assert np.array_equal(resolve(1, preset="raw")(picture)[0], witness)


def test_grey_to_colour_repeats() -> None:
    grey = noise(channels=1)
    values = resolve(preset="raw")(grey)
    assert np.array_equal(values, np.repeat(grey, 3, axis=2).transpose(2, 0, 1))


@pytest.mark.parametrize("bgr", [False, True])
def test_networks_with_alpha(bgr: bool) -> None:
    picture = noise()
    preprocess = resolve(4, preset="raw", bgr=bgr)
    values = preprocess(picture)
    assert (values[3] == 255).all()
    assert np.array_equal(values[2 if bgr else 0], picture[:, :, 0])
    assert np.array_equal(preprocess.picture(values), picture)


def test_transparency_shows_white_to_networks_without_alpha() -> None:
    picture = np.concatenate([noise(), np.zeros((H, W, 1), np.uint8)], axis=2)
    assert (resolve(preset="raw")(picture) == 255).all()


def test_networks_of_other_channel_counts_get_the_luminance() -> None:
    picture = noise()
    values = resolve(5, preset="raw")(picture)
    assert values.shape == (5, H, W)
    assert (values == np.asarray(Image.fromarray(picture).convert("L"))).all()


def test_pictures_with_the_networks_own_channel_count() -> None:
    picture = smooth(2 * H, 2 * W, channels=5)
    values = resolve(5, preset="raw")(picture)
    assert values.shape == (5, H, W)
    witness = Image.fromarray(np.ascontiguousarray(picture[..., 3])).resize((W, H), Image.Resampling.BILINEAR)
    assert np.abs(values[3] - np.asarray(witness)).max() <= 1


@pytest.mark.parametrize("dtype", [np.float32, np.float64, np.float16])
def test_float_arrays_of_the_networks_shape_are_used_as_they_are(dtype: type) -> None:
    own = RNG.standard_normal((3, H, W)).astype(dtype)
    assert np.array_equal(resolve()(own), own.astype(np.float32))
    assert np.array_equal(resolve()(own.transpose(1, 2, 0)), own.astype(np.float32))


BAD_PICTURES = {
    "float of another size": (
        np.ones((3, H, W + 1), np.float32),
        r"\(3, 13, 18\).*\(3, 13, 17\) or \(13, 17, 3\)",
    ),
    "wide integers": (np.ones((H, W, 3), np.int32), "int32"),
    "two channels": (np.ones((H, W, 2), np.uint8), "2 channels for a network of 3"),
    "flat": (np.ones((H, W), np.uint8), "no picture"),
    "empty": (np.ones((0, W, 3), np.uint8), "no picture"),
}


@pytest.mark.parametrize(("picture", "message"), BAD_PICTURES.values(), ids=BAD_PICTURES)
def test_bad_pictures(picture: np.ndarray, message: str) -> None:
    with pytest.raises(ImageError, match=message):
        resolve()(picture)


def test_the_picture_given_is_not_changed() -> None:
    picture = noise()
    before = picture.copy()
    resolve()(picture)
    assert np.array_equal(picture, before)


def test_threads_agree() -> None:
    pictures = [smooth(40 + n, 70 - n) for n in range(24)]
    preprocess = resolve()
    with ThreadPoolExecutor(8) as pool:
        together = list(pool.map(preprocess, pictures))
    assert all(
        np.array_equal(one, preprocess(picture)) for one, picture in zip(together, pictures, strict=True)
    )


@pytest.mark.parametrize(
    ("channels", "bgr", "expected"),
    [(3, False, [0, 1, 2]), (3, True, [2, 1, 0]), (4, True, [2, 1, 0]), (1, None, [0]), (5, None, [2])],
)
def test_display_orders_channels_and_keeps_values(
    channels: int, bgr: bool | None, expected: list[int]
) -> None:
    projection = np.arange(channels, dtype=np.float32)[:, None, None] * np.ones((1, 2, 3), np.float32)
    shown = resolve(channels, preset="raw", bgr=bgr).display(-projection)
    assert shown.shape == (2, 3, len(expected))
    assert (-shown[1, 2]).tolist() == expected


DESCRIPTIONS = {
    "caffe": "13×17, centre crop, BGR, 0–255 minus (103.9, 116.8, 123.7)",
    "imagenet": "13×17, centre crop, RGB, 0–1 minus (0.485, 0.456, 0.406), divided by (0.229, 0.224, 0.225)",
    "tf": "13×17, centre crop, RGB, −1 to 1",
    "unit": "13×17, centre crop, RGB, 0–1",
    "raw": "13×17, centre crop, RGB, 0–255",
}


@pytest.mark.parametrize("preset", DESCRIPTIONS)
def test_describe(preset: str) -> None:
    assert resolve(preset=preset).describe() == DESCRIPTIONS[preset]


@pytest.mark.parametrize(("channels", "words"), [(1, "grey"), (4, "RGBA"), (6, "6 channels")])
def test_describe_channels(channels: int, words: str) -> None:
    preprocess = replace(resolve(channels), crop_fraction=0.875)
    assert preprocess.describe() == f"13×17, centre crop of 87.5 %, {words}, 0–1"


@pytest.mark.parametrize("preset", PRESETS)
def test_json_round_trip(preset: str) -> None:
    preprocess = replace(resolve(preset=preset), resize="pad", crop_fraction=0.5)
    data = json.loads(json.dumps(preprocess.to_json()))
    assert (
        from_json(data, channels=3, height=H, width=W, layout="NCHW", origin=preprocess.origin) == preprocess
    )


GUESSES = [
    (1, "float32", "unit"),
    (3, "float32", "imagenet"),
    (3, "uint8", "raw"),
    (4, "float32", "unit"),
    (9, "float16", "unit"),
]


@pytest.mark.parametrize(("channels", "dtype", "preset"), GUESSES)
def test_guess(channels: int, dtype: str, preset: str) -> None:
    found = resolve(channels, dtype=dtype)
    assert found.origin == "guessed from the input's shape"
    assert replace(found, origin="") == replace(resolve(channels, preset=preset), origin="")


def test_precedence(tmp_path: Path) -> None:
    sidecar = tmp_path / "net.onnxviz.json"
    sidecar.write_text(json.dumps({"preset": "tf", "resize": "pad"}))
    everything = {"metadata": '{"preset": "caffe"}', "sidecar": sidecar, "preset": "unit"}
    found = []
    while everything:
        found.append(resolve(**everything))
        everything.popitem()
        everything = dict(sorted(everything.items()))
    assert [item.origin for item in found] == ["preset unit", "net.onnxviz.json", "model metadata"]
    assert [item.describe() for item in found] == [
        "13×17, centre crop, RGB, 0–1",
        "13×17, padded, RGB, −1 to 1",
        DESCRIPTIONS["caffe"],
    ]


def test_a_sidecar_that_is_not_there_is_no_recipe(tmp_path: Path) -> None:
    assert resolve(sidecar=tmp_path / "no.json", metadata='"caffe"').origin == "model metadata"


@pytest.mark.parametrize("metadata", ["caffe", '"caffe"', '{"preset": "caffe"}'])
def test_a_preset_may_be_named_in_three_ways(metadata: str) -> None:
    assert resolve(metadata=metadata).describe() == DESCRIPTIONS["caffe"]


def test_options_change_single_fields() -> None:
    found = resolve(metadata='"caffe"', mean=(1, 2, 3), std=[2])
    assert found.origin == "model metadata, with --mean and --std from the command line"
    assert (found.order, found.mean, found.std) == ("bgr", (1.0, 2.0, 3.0), (2.0, 2.0, 2.0))


def test_turning_the_channels_turns_their_statistics() -> None:
    turned = resolve(preset="imagenet", bgr=True)
    assert turned.origin == "preset imagenet, with --bgr from the command line"
    picture = noise()
    assert np.array_equal(turned(picture), resolve(preset="imagenet")(picture)[::-1])
    inside = resolve(metadata='{"preset": "imagenet", "order": "bgr"}')
    assert inside.mean == turned.mean == (0.406, 0.456, 0.485)
    assert inside.std == turned.std


def test_statistics_given_with_the_order_are_taken_as_they_are() -> None:
    assert resolve(preset="imagenet", bgr=True, mean=(1, 2, 3)).mean == (1, 2, 3)
    assert resolve(metadata='{"preset": "imagenet", "order": "bgr", "mean": [1, 2, 3]}').mean == (1, 2, 3)


SIZE_CASES = [
    ({}, (224, 224)),
    ({"height": 96}, (96, 96)),
    ({"height": 96, "width": 64}, (96, 64)),
    ({"size": (50, 60)}, (50, 60)),
    ({"height": 50, "size": (50, 60)}, (50, 60)),
    ({"metadata": '{"size": [70, 80]}'}, (70, 80)),
    ({"metadata": '{"size": [70, 80]}', "size": (50, 60)}, (50, 60)),
]


@pytest.mark.parametrize(("options", "expected"), SIZE_CASES)
def test_size(options: dict[str, Any], expected: tuple[int, int]) -> None:
    found = resolve(**{"height": None, "width": None, **options})
    assert (found.height, found.width) == expected


BAD_OPTIONS = {
    "preset": ({"preset": "cafe"}, r"--preprocess: no preset is called 'cafe'; expected imagenet, caffe, tf"),
    "preset for colours": ({"preset": "caffe", "channels": 1}, "preset caffe is for 3 channels, .* has 1"),
    "size": ({"size": (20, 20)}, r"--size is 20×20, but the model's input is fixed at 13×17"),
    "no size": ({"size": (0, 20), "height": None}, "--size is .*; expected finite numbers above 0"),
    "mean": ({"mean": (1, 2)}, "--mean has 2 values; expected 1 or 3 numbers"),
    "std": ({"std": (1, 0, 1)}, r"--std is \(1, 0, 1\); expected finite numbers above 0"),
    "nan": ({"mean": (float("nan"),)}, "--mean is .*; expected finite numbers"),
    "bgr": ({"bgr": True, "channels": 1}, "--bgr: the network's input has 1 channels"),
    "metadata": ({"metadata": "{"}, "model metadata: onnxviz.preprocess is not valid JSON"),
    "metadata list": ({"metadata": "[1]"}, r"model metadata: \[1\]; expected a preset's name or an object"),
    "metadata null": ({"metadata": "null"}, "model metadata: None"),
}


@pytest.mark.parametrize(("options", "message"), BAD_OPTIONS.values(), ids=BAD_OPTIONS)
def test_bad_options(options: dict[str, Any], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        resolve(**options)


BAD_RECIPES = {
    "key": ({"means": [1]}, "unknown key 'means'; known: preset, size"),
    "preset": ({"preset": 3}, "no preset is called 3"),
    "preset name": ("vgg", "no preset is called 'vgg'"),
    "mean length": ({"mean": [1, 2]}, "mean has 2 values"),
    "mean type": ({"mean": ["1", 2, 3]}, "mean is"),
    "mean boolean": ({"mean": True}, "mean is True; expected 1 or 3 numbers"),
    "mean huge": ({"mean": 10**400}, "mean is .*finite"),
    "std zero": ({"std": [1, 0, 1]}, r"std is \(1, 0, 1\)"),
    "scale": ({"scale": 0}, "scale is"),
    "scale list": ({"scale": [1, 2]}, "scale has 2 values; expected 1 number$"),
    "resize": ({"resize": "zoom"}, "resize is 'zoom'; expected crop, stretch, pad"),
    "resize list": ({"resize": ["crop"]}, "resize is"),
    "crop_fraction": ({"crop_fraction": 1.5}, "crop_fraction is 1.5"),
    "order": ({"order": "gray"}, "order is 'gray'; an input of 3 channels takes rgb, bgr"),
    "order list": ({"order": ["rgb"]}, "order is"),
    "size": ({"size": [10, 10]}, "size is 10×10, but the model's input is fixed at 13×17"),
    "size fraction": ({"size": [12.5, 10]}, "size is .*whole numbers"),
    "size huge": ({"size": [1e6, 10]}, "size is .*up to 16384"),
    "size one": ({"size": 13}, "size has 1 values; expected 2 numbers"),
}


@pytest.mark.parametrize(("data", "message"), BAD_RECIPES.values(), ids=BAD_RECIPES)
def test_bad_recipes_name_file_and_field(tmp_path: Path, data: object, message: str) -> None:
    sidecar = tmp_path / "net.onnxviz.json"
    sidecar.write_text(json.dumps(data))
    with pytest.raises(UsageError, match=rf"^net\.onnxviz\.json: {message}"):
        resolve(sidecar=sidecar)


@pytest.mark.parametrize("data", [b"{", b"\xff\xfe", b"[" * 100_000])
def test_sidecar_that_is_no_json(tmp_path: Path, data: bytes) -> None:
    sidecar = tmp_path / "net.onnxviz.json"
    sidecar.write_bytes(data)
    with pytest.raises(UsageError, match=r"net\.onnxviz\.json: not a readable JSON file"):
        resolve(sidecar=sidecar)
