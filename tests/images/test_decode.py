"""Decoding: every pixel format, orientation, and what is no image."""

from __future__ import annotations

import io
import threading
import warnings

import numpy as np
import pytest
from PIL import Image

from onnxviz.errors import ImageError
from onnxviz.images.decode import decode, quiet

RED = (200, 30, 40)


def encoded(image: Image.Image, kind: str = "PNG", **options: object) -> bytes:
    file = io.BytesIO()
    image.save(file, kind, **options)
    return file.getvalue()


def colours(height: int = 5, width: int = 7) -> np.ndarray:
    return np.random.default_rng(3).integers(0, 256, (height, width, 3), dtype=np.uint8)


@pytest.mark.parametrize("kind", ["PNG", "BMP", "TIFF", "PPM", "WEBP"])
def test_lossless_formats_come_back_exactly(kind: str) -> None:
    pixels = colours()
    options = {"lossless": True} if kind == "WEBP" else {}
    assert np.array_equal(decode(encoded(Image.fromarray(pixels), kind, **options), "a"), pixels)


def test_grey_stays_one_channel() -> None:
    grey = colours()[:, :, 0]
    assert np.array_equal(decode(encoded(Image.fromarray(grey)), "a"), grey[:, :, None])


def test_palette_becomes_rgb() -> None:
    image = Image.fromarray(colours()).quantize(8)
    assert np.array_equal(decode(encoded(image), "a"), np.asarray(image.convert("RGB")))


def test_bits_become_black_and_white() -> None:
    bits = colours()[:, :, :1] > 128
    assert np.array_equal(decode(encoded(Image.fromarray(bits[:, :, 0])), "a"), bits * np.uint8(255))


def test_cmyk_becomes_rgb() -> None:
    data = encoded(Image.new("RGB", (16, 16), RED).convert("CMYK"), "JPEG", quality=95)
    assert np.abs(decode(data, "a").astype(int) - RED).max() <= 4


@pytest.mark.parametrize("alpha", [0, 100, 255])
def test_transparent_colour_keeps_its_alpha(alpha: int) -> None:
    pixels = decode(encoded(Image.new("RGBA", (2, 3), (*RED, alpha))), "a")
    assert pixels.shape == (3, 2, 4)
    assert (pixels == (*RED, alpha)).all()


def test_grey_with_alpha_stays_grey() -> None:
    pixels = decode(encoded(Image.new("LA", (2, 3), (40, 100))), "a")
    assert pixels.shape == (3, 2, 1)
    assert np.abs(pixels.astype(float) - (40 * 100 + 255 * 155) / 255).max() <= 1


def test_transparent_palette_entry_has_no_alpha() -> None:
    image = Image.new("P", (2, 2), 1)
    image.putpalette([0, 0, 0, *RED])
    image.putpixel((0, 0), 0)
    pixels = decode(encoded(image, transparency=0), "a")
    assert pixels[0, 0, 3] == 0
    assert pixels[1, 1].tolist() == [*RED, 255]


@pytest.mark.parametrize("kind", ["PNG", "TIFF"])
def test_sixteen_bits_are_scaled_to_eight(kind: str) -> None:
    values = np.array([[0, 257, 32896, 65535]], np.uint16)
    assert decode(encoded(Image.fromarray(values), kind), "a")[0, :, 0].tolist() == [0, 1, 128, 255]


def test_sixteen_bit_pgm() -> None:
    data = b"P5 2 1 65535\n" + np.array([[257, 65535]], ">u2").tobytes()
    assert decode(data, "a")[0, :, 0].tolist() == [1, 255]


@pytest.mark.parametrize("kind", ["GIF", "WEBP"])
def test_first_frame_of_an_animation(kind: str) -> None:
    frames = [Image.new("RGB", (8, 8), colour) for colour in (RED, (0, 0, 255))]
    data = encoded(frames[0], kind, save_all=True, append_images=frames[1:], lossless=True)
    assert np.abs(decode(data, "a").astype(int) - RED).max() <= 2


# What the stored pixels must go through to stand upright: EXIF 2.3, tag 0x0112.
UPRIGHT = {
    1: lambda a: a,
    2: lambda a: a[:, ::-1],
    3: lambda a: a[::-1, ::-1],
    4: lambda a: a[::-1],
    5: lambda a: a.swapaxes(0, 1),
    6: lambda a: np.rot90(a, -1),
    7: lambda a: np.rot90(a, 2).swapaxes(0, 1),
    8: lambda a: np.rot90(a, 1),
}


@pytest.mark.parametrize("orientation", UPRIGHT)
@pytest.mark.parametrize("kind", ["PNG", "TIFF"])
def test_exif_orientation_is_applied_once(orientation: int, kind: str) -> None:
    exif = Image.Exif()
    exif[0x0112] = orientation
    data = encoded(Image.fromarray(colours()), kind, exif=exif)
    assert np.array_equal(decode(data, "a"), UPRIGHT[orientation](colours()))


def test_broken_exif_does_not_spoil_the_picture() -> None:
    data = encoded(Image.fromarray(colours()), "PNG", exif=b"Exif\x00\x00II*\x00\xff\xff\xff\xff broken")
    assert np.array_equal(decode(data, "a"), colours())


JPEG = encoded(Image.fromarray(colours(64, 64)), "JPEG")
BROKEN = {
    "empty": b"",
    "text": b"no image at all",
    "truncated jpeg": JPEG[: len(JPEG) // 2],
    "header only": JPEG[:20],
    "truncated png": encoded(Image.fromarray(colours(64, 64)))[:-3000],
    "float tiff": encoded(Image.fromarray(np.ones((2, 2), np.float32)), "TIFF"),
    "postscript": b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n%%EndComments\n",
}


@pytest.mark.parametrize("data", BROKEN.values(), ids=BROKEN)
def test_what_is_no_image_is_an_image_error_with_its_name(data: bytes) -> None:
    with pytest.raises(ImageError, match=r"^cats/1\.jpg: "):
        decode(data, "cats/1.jpg")


@pytest.mark.parametrize("limit", [60, 10], ids=["Pillow warns", "Pillow refuses"])
def test_decompression_bomb(monkeypatch: pytest.MonkeyPatch, limit: int) -> None:
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", limit)
    with pytest.raises(ImageError, match="shrink it"):
        decode(encoded(Image.new("L", (10, 10))), "bomb.png")


@pytest.mark.parametrize("seed", range(8))
def test_damaged_bytes_give_a_picture_or_an_image_error(seed: int) -> None:
    rng = np.random.default_rng(seed)
    kinds = ("PNG", "JPEG", "GIF", "WEBP", "TIFF", "BMP", "PPM")
    original = [encoded(Image.fromarray(colours(32, 32)), kind) for kind in kinds]
    outcomes = []
    for number in range(140):
        data = bytearray(original[number % len(kinds)])
        for place in rng.integers(0, len(data), 6):
            data[place] = rng.integers(256)
        try:
            outcomes.append(decode(bytes(data), "damaged").dtype)
        except ImageError as error:
            outcomes.append(type(error))
    assert set(outcomes) <= {np.dtype(np.uint8), ImageError}


def test_quiet_in_threads_leaves_the_filters_as_they_were() -> None:
    before = list(warnings.filters)
    barrier = threading.Barrier(4)

    def work() -> None:
        for _ in range(50):
            with quiet():
                barrier.wait(5)
                warnings.warn_explicit(
                    "broken", UserWarning, "PngImagePlugin.py", 1, module="PIL.PngImagePlugin"
                )
            barrier.wait(5)

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(20)
    assert list(warnings.filters) == before
