"""The sample of responses, and what is made of it, against plain NumPy over each channel."""

from __future__ import annotations

import numpy as np
import pytest

from onnxviz.forward.responses import Responses, ResponsesBuilder, capacity, taken


def _drawn(seed: int, images: int = 40, channels: int = 7) -> np.ndarray:
    rng = np.random.default_rng(seed)
    return (rng.normal(size=(images, channels)) @ rng.normal(size=(channels, channels))).astype(np.float32)


def _responses(largest: np.ndarray) -> Responses:
    return Responses(1, np.arange(len(largest)), largest)


def _built(largest: np.ndarray, cuts: list[int], **options: int) -> Responses:
    builder = ResponsesBuilder(Responses.empty(largest.shape[1]), **options)
    for rows in np.split(np.arange(len(largest)), cuts):
        builder.add(rows, largest[rows])
    return builder.responses()


def _same(a: Responses, b: Responses) -> None:
    assert a.every == b.every
    np.testing.assert_array_equal(a.image, b.image)
    np.testing.assert_array_equal(a.largest, b.largest)


@pytest.mark.parametrize("seed", range(5))
def test_every_image_is_there_while_there_is_room(seed):
    largest = _drawn(seed)
    cuts = np.sort(np.random.default_rng(seed).integers(0, 40, 4)).tolist()
    _same(_built(largest, cuts), _responses(largest))


def _kept(images, every: int) -> list[int]:
    """In Python's integers: the fraction of a multiple of the golden ratio, in 64 bits."""
    return [i for i in images if i * 0x9E3779B97F4A7C15 % 2**64 < 2**64 // every]


@pytest.mark.parametrize("images", [512, 513, 1025, 3000, 20000])
def test_the_sample_thins_out_evenly(images):
    """The least bound is 512 images."""
    largest = _drawn(0, images, 3)
    found = _built(largest, [10, 11, 60])
    few = _built(largest, [10, 11, 60], most_bytes=1)
    np.testing.assert_array_equal(found.image, np.arange(images))
    assert 240 <= len(few.image) <= 512 or few.every == 1
    expected = _kept(range(images), few.every)
    np.testing.assert_array_equal(few.image, expected)
    np.testing.assert_array_equal(few.largest, largest[expected])
    # No gap is much larger than those between the others.
    assert np.diff(few.image).max(initial=0) <= 3 * few.every


@pytest.mark.parametrize("period", [2, 3, 4, 8, 10, 64])
def test_the_sample_is_not_in_step_with_classes_that_take_turns(period):
    for every in (2, 4, 16):
        shares = np.bincount(np.array(_kept(range(20000), every)) % period, minlength=period)
        assert shares.min() > 0.75 * shares.mean()


def test_who_is_taken():
    images = np.array([0, 1, 2, 3, 5, 8, 13, 10**12, 2**40])
    for every in (1, 2, 4, 1024):
        assert images[taken(images, every)].tolist() == _kept(images.tolist(), every)


def test_the_sample_takes_no_more_than_its_bytes():
    assert 225 <= len(_built(_drawn(0, 1800, 5), [], most_bytes=5 * 4 * 600).image) <= 600
    assert len(_built(_drawn(0, 1800, 5), [], most_bytes=5 * 4 * 1800).image) == 1800


def test_merged_parts_are_the_whole():
    largest = _drawn(1, 2400, 2)
    parts = []
    for start, stop in ((0, 1800), (1800, 2400)):
        builder = ResponsesBuilder(Responses.empty(2), 1)
        builder.add(np.arange(start, stop), largest[start:stop])
        parts.append(builder.responses())
    assert parts[0].every > parts[1].every > 1
    merged = parts[1].merge(parts[0])
    _same(merged, parts[0].merge(parts[1]))
    expected = _kept(range(2400), parts[0].every)
    np.testing.assert_array_equal(merged.image, expected)
    np.testing.assert_array_equal(merged.largest, largest[expected])


@pytest.mark.parametrize("seed", range(8))
def test_the_sample_does_not_depend_on_how_images_were_split(seed):
    """Parts of any length in any order, some of them gone on from, give what one sample of all gives."""
    rng = np.random.default_rng(seed)
    images = int(rng.integers(600, 4000))
    largest = _drawn(seed, images, 2)
    want = _built(largest, [], most_bytes=1)
    parts = []
    for rows in np.array_split(rng.permutation(images), rng.integers(2, 20)):
        builder = ResponsesBuilder(Responses.empty(2), 1)
        for some in np.array_split(np.sort(rows), 3):
            builder = ResponsesBuilder(builder.responses(), 1)
            builder.add(some, largest[some])
        parts.append(builder.responses())
    merged = Responses.empty(2)
    for part in parts:
        merged = (
            merged.merge(part, capacity(2, 1)) if rng.random() < 0.5 else part.merge(merged, capacity(2, 1))
        )
    _same(merged, want)
    assert len(want.image) <= capacity(2, 1)
    assert want.every == next(n for n in (2**k for k in range(9)) if len(_kept(range(images), n)) <= 512)


def test_no_images():
    found = ResponsesBuilder(Responses.empty(3)).responses()
    assert found.largest.shape == (0, 3)
    assert np.isnan(found.sparseness()).all()
    assert found.correlated(2)[0].tolist() == [[-1, -1]] * 3
    low, high, counts = found.histogram(0, 4)
    assert np.isnan([low, high]).all() and not counts.any()


@pytest.mark.parametrize("most", [None, 50.0, -50.0])
def test_histogram(most):
    largest = _drawn(2)
    largest[3, 1] = np.nan
    for channel in range(7):
        values = largest[:, channel][np.isfinite(largest[:, channel])].astype(np.float64)
        low, high, counts = _responses(largest).histogram(channel, 9, most)
        assert (low, high) == (values.min(), max(values.max(), most or -np.inf))
        np.testing.assert_array_equal(counts, np.histogram(values, 9, (low, high))[0])


def test_a_histogram_of_one_value():
    low, high, counts = _responses(np.full((5, 1), 2.5, np.float32)).histogram(0, 3)
    assert (low, high, counts.tolist()) == (2.5, 2.5, [5, 0, 0])


def test_sparseness():
    """By its formula, one channel at a time; its ends are 0 and 1."""
    largest = _drawn(3)
    largest[:, 4], largest[:, 5], largest[:, 6] = 3, 0, -1
    largest[11, 5] = 7
    largest[5, 0] = np.nan
    found = _responses(largest).sparseness()
    for channel in range(4):
        a = np.maximum(largest[:, channel][np.isfinite(largest[:, channel])].astype(np.float64), 0)
        expected = (1 - a.mean() ** 2 / (a**2).mean()) / (1 - 1 / len(a))
        assert found[channel] == pytest.approx(expected, rel=1e-9)
    np.testing.assert_allclose(found[4:6], [0, 1], atol=1e-12)
    assert np.isnan(found[6])


@pytest.mark.parametrize("count", [1, 3, 6, 9])
def test_correlations_are_those_of_numpy(count):
    largest = _drawn(4)
    number, r = _responses(largest).correlated(count)
    table = np.corrcoef(largest.T.astype(np.float64))
    np.fill_diagonal(table, -2)
    assert number.shape == r.shape == (7, count)
    kept = min(count, 6)
    for channel in range(7):
        order = np.argsort(-table[channel])[:kept]
        np.testing.assert_array_equal(number[channel, :kept], order)
        np.testing.assert_allclose(r[channel, :kept], table[channel, order], atol=1e-5)
    assert (number[:, kept:] == -1).all() and np.isnan(r[:, kept:]).all()


def test_correlations_do_not_depend_on_the_order_of_adding():
    """As it changes with the number of cores."""
    largest = _drawn(8, 400, 60)
    number, r = _responses(largest).correlated(6)
    for seed in range(5):
        other = np.random.default_rng(seed).permutation(len(largest))
        again = _responses(largest[other]).correlated(6)
        np.testing.assert_array_equal(again[0], number)
        np.testing.assert_array_equal(again[1], r)


def test_a_channel_that_never_changes_is_like_no_other():
    largest = _drawn(5, channels=4)
    largest[:, 2] = 0.1
    number, r = _responses(largest).correlated(3)
    assert (number[2] == -1).all() and np.isnan(r[2]).all()
    assert 2 not in number
    assert (number[[0, 1, 3], 2] == -1).all()


def test_correlations_leave_out_what_is_not_finite():
    largest = _drawn(6, channels=3)
    largest[:, 1] = 2 * largest[:, 0] + 1
    largest[7, 1] = np.nan
    number, r = _responses(largest).correlated(1)
    assert (number[0, 0], number[1, 0]) == (1, 0)
    assert r[0, 0] > 0.9


def test_many_channels_go_in_parts(monkeypatch):
    largest = _drawn(7, 50, 23)
    want = _responses(largest).correlated(4)
    monkeypatch.setattr("onnxviz.forward.responses._ROWS_AT_ONCE", 5)
    for mine, theirs in zip(_responses(largest).correlated(4), want, strict=True):
        np.testing.assert_allclose(mine, theirs, rtol=1e-5)
