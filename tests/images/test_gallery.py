"""The gallery: images read again by number, few of them kept."""

from __future__ import annotations

import numpy as np
import pytest
from PIL import Image

from onnxviz.errors import ImageError
from onnxviz.images import gallery as module
from onnxviz.images.gallery import Gallery
from onnxviz.images.preprocess import resolve_preprocess
from onnxviz.images.source import Sample, Source


class Counted:
    """Pictures of noise that count how often each is read."""

    def __init__(self, count: int, size=(20, 30), channels: int = 3) -> None:
        self.pictures = np.random.default_rng(0).integers(0, 255, (count, *size, channels), np.uint8)
        self.read = [0] * count
        samples = (Sample(f"picture{i}", f"class{i % 2}", lambda i=i: self(i)) for i in range(count))
        self.source = Source("noise", tuple(samples))

    def __call__(self, index: int) -> np.ndarray:
        self.read[index] += 1
        return self.pictures[index]


@pytest.fixture
def counted():
    return Counted(6)


def _gallery(counted, folder, *, size=(20, 30), **options):
    channels = counted.pictures.shape[3]
    recipe = resolve_preprocess(channels=channels, height=size[0], width=size[1], preset="raw", **options)
    return Gallery(counted.source, recipe, folder / "pictures" / "images", "pictures/images")


def test_arrays_are_the_networks_input(counted, tmp_path):
    gallery = _gallery(counted, tmp_path)
    np.testing.assert_array_equal(gallery.array(3), counted.pictures[3].transpose(2, 0, 1))
    assert gallery.batch([3, 0]).shape == (2, 3, 20, 30)
    np.testing.assert_array_equal(gallery.batch([3, 0])[1], gallery.array(0))


def test_batches_are_in_the_networks_layout(counted, tmp_path):
    gallery = _gallery(counted, tmp_path, layout="NHWC")
    np.testing.assert_array_equal(gallery.batch([1, 2]), counted.pictures[1:3])


def test_an_image_is_read_once_while_there_is_room(counted, tmp_path):
    gallery = _gallery(counted, tmp_path)
    for _ in range(3):
        gallery.batch([0, 1, 2])
        gallery.picture(1)
        gallery.thumbnail(1)
    assert counted.read == [1, 1, 1, 0, 0, 0]


def test_memory_is_bounded(counted, tmp_path, monkeypatch):
    monkeypatch.setattr(module, "_ARRAY_BYTES", 2 * 3 * 20 * 30 * 4)
    gallery = _gallery(counted, tmp_path)
    for index in (0, 1, 2, 1, 3, 1):
        gallery.array(index)
    assert counted.read == [1, 1, 1, 1, 0, 0]  # the one used last stays
    gallery.array(0)
    assert counted.read[0] == 2


def test_an_image_larger_than_the_room_works(counted, tmp_path, monkeypatch):
    monkeypatch.setattr(module, "_ARRAY_BYTES", 10)
    gallery = _gallery(counted, tmp_path)
    assert gallery.batch([0, 1, 2]).shape == (3, 3, 20, 30)


def test_pictures_stay_when_arrays_are_gone(counted, tmp_path, monkeypatch):
    """A report draws every picture several times, its array is needed once."""
    monkeypatch.setattr(module, "_ARRAY_BYTES", 10)
    gallery = _gallery(counted, tmp_path)
    gallery.batch([0, 1, 2])
    before = [gallery.picture(index) for index in (0, 1, 2)]
    read = list(counted.read)
    for index, picture in enumerate(before):
        np.testing.assert_array_equal(gallery.picture(index), picture)
    assert counted.read == read


def test_a_batch_is_in_the_order_asked_for(counted, tmp_path):
    gallery = _gallery(counted, tmp_path)
    first = gallery.array(3)
    batch = gallery.batch([4, 3, 0])
    np.testing.assert_array_equal(batch[1], first)
    for row, index in enumerate((4, 3, 0)):
        np.testing.assert_array_equal(batch[row], gallery.array(index))


def test_pictures_are_what_the_network_saw(counted, tmp_path):
    gallery = _gallery(counted, tmp_path)
    np.testing.assert_array_equal(gallery.picture(2), counted.pictures[2])
    np.testing.assert_array_equal(gallery.picture(4), counted.pictures[4])


def test_grey_pictures_have_three_channels(tmp_path):
    counted = Counted(2, channels=1)
    picture = _gallery(counted, tmp_path).picture(1)
    assert picture.shape == (20, 30, 3)
    assert (picture == counted.pictures[1]).all()


def test_names(counted, tmp_path):
    assert _gallery(counted, tmp_path).name(3) == ("picture3", "class1")


def test_thumbnails(counted, tmp_path):
    gallery = _gallery(counted, tmp_path)
    path = gallery.thumbnail(4)
    assert path.startswith("pictures/images/")
    assert "\\" not in path
    assert gallery.thumbnail(4) == path
    assert gallery.thumbnail(5) != path
    with Image.open(tmp_path / path) as image:
        assert image.size == (30, 20)
        np.testing.assert_array_equal(np.asarray(image), counted.pictures[4])  # small: kept to the pixel


def test_thumbnails_are_written_by_whom_one_likes(counted, tmp_path):
    gallery, asked = _gallery(counted, tmp_path), []
    path = gallery.thumbnail(4, lambda *work: asked.append(work))
    assert gallery.thumbnail(4, lambda *work: asked.append(work)) == path
    assert not (tmp_path / path).exists()
    ((write, *arguments),) = asked
    write(*arguments)
    with Image.open(tmp_path / path) as image:
        np.testing.assert_array_equal(np.asarray(image), counted.pictures[4])


def test_large_thumbnails_shrink(tmp_path):
    counted = Counted(1, size=(400, 200))
    with Image.open(tmp_path / _gallery(counted, tmp_path, size=(400, 200)).thumbnail(0)) as image:
        assert image.size == (80, 160)


def test_no_folder_before_the_first_thumbnail(counted, tmp_path):
    gallery = _gallery(counted, tmp_path)
    gallery.array(0)
    gallery.picture(0)
    assert not (tmp_path / "pictures").exists()


def test_an_image_that_went_away_is_an_image_error(tmp_path):
    def gone():
        raise ImageError("a.png: cannot be read (No such file or directory)")

    counted = Counted(1)
    counted.source = Source("gone", (Sample("a.png", None, gone),))
    with pytest.raises(ImageError, match=r"a\.png"):
        _gallery(counted, tmp_path).array(0)
