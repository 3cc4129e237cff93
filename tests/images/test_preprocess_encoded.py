"""Encoded images straight to the network's values, against decoding all of them first."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

import onnxviz
from onnxviz.errors import ImageError
from onnxviz.images import preprocess as module
from onnxviz.images.decode import decode
from onnxviz.images.preprocess import Preprocess, resolve_preprocess
from onnxviz.images.source import open_source

PHOTOS = sorted((Path(onnxviz.__file__).parent / "data" / "photos").glob("*.jpg"))


def recipe(
    size: tuple[int, int], resize: str = "crop", fraction: float = 1.0, channels: int = 3, preset: str = "raw"
) -> Preprocess:
    found = resolve_preprocess(channels=channels, height=size[0], width=size[1], preset=preset)
    return Preprocess(**{**vars(found), "resize": resize, "crop_fraction": fraction})


def encoded(image: Image.Image, kind: str, orientation: int = 1, **options: Any) -> bytes:
    exif = Image.Exif()
    exif[0x0112] = orientation
    file = io.BytesIO()
    image.save(file, kind, exif=exif, **options)
    return file.getvalue()


def photo(index: int, mode: str = "RGB") -> Image.Image:
    return Image.open(PHOTOS[index]).convert("RGB").convert(mode)


FITS = {
    "crop": ((60, 90), "crop", 1.0),
    "part": ((64, 64), "crop", 0.875),
    "stretch": ((90, 60), "stretch", 1.0),
    "pad": ((80, 77), "pad", 1.0),
}


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("fit", FITS.values(), ids=FITS)
def test_what_is_not_reduced_is_the_same_to_the_bit(fit: tuple[Any, ...], orientation: int) -> None:
    data = encoded(photo(4).resize((130, 100)), "JPEG", orientation)
    preprocess = recipe(*fit)
    assert np.array_equal(preprocess.decode(data, "a"), preprocess(decode(data, "a")))


MODES = {
    "grey": ("L", "PNG"),
    "bits": ("1", "PNG"),
    "palette": ("P", "PNG"),
    "alpha": ("RGBA", "PNG"),
    "grey with alpha": ("LA", "PNG"),
    "webp": ("RGB", "WEBP"),
    "tiff": ("CMYK", "TIFF"),
    "cmyk jpeg": ("CMYK", "JPEG"),
    "bmp": ("RGB", "BMP"),
}


@pytest.mark.parametrize("channels", [1, 3, 4])
@pytest.mark.parametrize(("mode", "kind"), MODES.values(), ids=MODES)
def test_every_mode_for_every_network(mode: str, kind: str, channels: int) -> None:
    image = photo(2).convert(mode)
    if "A" in image.mode:
        image.putalpha(photo(3, "L").resize(image.size))
    file = io.BytesIO()
    image.save(file, kind)
    preprocess = recipe((230, 240), channels=channels)
    found, expected = preprocess.decode(file.getvalue(), "a"), preprocess(decode(file.getvalue(), "a"))
    # Grey is taken before the resizing or after it: a rounding apart.
    tolerance = 1 if channels == 1 else 0
    np.testing.assert_allclose(found, expected, atol=tolerance)


@pytest.mark.parametrize("subsampling", [0, 2])
@pytest.mark.parametrize("ratio", [2.9, 3.1, 4, 5.9, 6.1, 9, 13, 19])
def test_photographs_decoded_at_reduced_size_are_near(ratio: float, subsampling: int) -> None:
    """The mean difference over photographs is below 1 of 255, of each of them below 2."""
    differences = []
    for index in range(len(PHOTOS)):
        image = photo(index)
        data = encoded(image, "JPEG", quality=90, subsampling=subsampling)
        side = max(8, int(min(image.size) / ratio))
        preprocess = recipe((side, side))
        difference = np.abs(preprocess.decode(data, "a") - preprocess(decode(data, "a")))
        differences.append(float(difference.mean()))
    assert np.mean(differences) < 1
    assert max(differences) < 2


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("fit", FITS.values(), ids=FITS)
@pytest.mark.parametrize(
    ("mode", "options"),
    [("RGB", {}), ("RGB", {"progressive": True}), ("L", {}), ("CMYK", {})],
    ids=["rgb", "progressive", "grey", "cmyk"],
)
def test_reduced_pictures_are_fitted_the_same(
    monkeypatch: pytest.MonkeyPatch,
    mode: str,
    options: dict[str, Any],
    fit: tuple[Any, ...],
    orientation: int,
) -> None:
    # Odd sizes: at a quarter of its size the picture ends with part of a pixel.
    data = encoded(
        photo(8, mode).resize((50, 40)).resize((1003, 801)), "JPEG", orientation, quality=95, **options
    )
    preprocess = recipe(*fit)
    loaded: list[tuple[int, int]] = []
    upright = module.upright
    monkeypatch.setattr(module, "upright", lambda image: (loaded.append(image.size), upright(image))[1])
    found = preprocess.decode(data, "a")
    assert loaded[0] in ((502, 401), (251, 201))
    expected = preprocess(decode(data, "a"))
    assert found.shape == expected.shape
    assert np.abs(found - expected).mean() < 0.35  # lying a quarter of a pixel further it would be 1
    if fit[1] == "pad":
        assert np.array_equal(found.any(axis=(0, 2)), expected.any(axis=(0, 2)))


def test_values_are_normalised_as_always() -> None:
    data = encoded(photo(0), "JPEG", quality=95)
    preprocess = recipe((400, 400), preset="caffe")
    assert np.array_equal(preprocess.decode(data, "a"), preprocess(decode(data, "a")))


@pytest.mark.parametrize(
    "data",
    [b"", b"text", encoded(Image.new("RGB", (2000, 2000)), "JPEG")[:3000]],
    ids=["empty", "text", "half"],
)
def test_what_is_no_image_is_named(data: bytes) -> None:
    with pytest.raises(ImageError, match=r"^cats/1\.jpg: "):
        recipe((20, 20)).decode(data, "cats/1.jpg")


def test_a_bomb_is_refused_though_it_would_be_decoded_small(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 1000 * 1000)
    with pytest.raises(ImageError, match="shrink it"):
        recipe((20, 20)).decode(encoded(Image.new("RGB", (1100, 1000)), "JPEG"), "bomb.jpg")


def test_sources_read_for_a_recipe(tmp_path: Path) -> None:
    image = photo(1)
    image.save(tmp_path / "a.jpg")
    image.save(tmp_path / "b.png")
    (tmp_path / "c.jpg").write_bytes(b"junk")
    preprocess = recipe((400, 300), preset="imagenet")
    plain, ready = (open_source(tmp_path, None, given).samples for given in (None, preprocess))
    for sample, same in zip(plain[:2], ready[:2], strict=True):
        values = same.read()
        assert values.dtype == np.float32
        # What is the network's own already stays as it is.
        assert np.array_equal(preprocess(values), values)
        assert np.array_equal(values, preprocess(sample.read()))
    with pytest.raises(ImageError, match=r"^c\.jpg: "):
        ready[2].read()
