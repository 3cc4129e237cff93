"""TopK and ChannelStats: merging in any order gives what sorting everything at once gives."""

from __future__ import annotations

import math

import numpy as np
import pytest

from onnxviz.forward.topk import ChannelStats, Hit, TopK, TopKBuilder

WIDTH = 30
NAMES = ("score", "activation", "image", "y", "x")


def _scores(rng: np.random.Generator, images: int, channels: int) -> np.ndarray:
    """With many ties, negative numbers, zeros and a few values that are no number."""
    score = rng.integers(-3, 4, (images, channels)).astype(np.float32)
    score[rng.random(score.shape) < 0.1] = np.nan
    return score


def _everything(rng, images, channels):
    score = _scores(rng, images, channels)
    y, x = rng.integers(0, 9, (2, images, channels))
    return score, score * 2, np.arange(images), y, x


def _of(everything, rows, k):
    score, activation, image, y, x = everything
    return _topk(score[rows], activation[rows], image[rows], y[rows], x[rows], k)


def _topk(score, activation, image, y, x, k):
    """Of one batch of maps that are 30 wide."""
    builder = TopKBuilder(TopK.empty(score.shape[1], k))
    builder.add(score, activation, image, y * WIDTH + x)
    return builder.topk().folded(np.array(WIDTH))


def _brute_force(everything, channel, k):
    score, activation, image, y, x = everything
    rows = [i for i in image if not np.isnan(score[i, channel])]
    rows.sort(key=lambda i: (-score[i, channel], i))
    return tuple(
        Hit(
            *(float(a[i, channel]) for a in (score, activation)),
            int(i),
            int(y[i, channel]),
            int(x[i, channel]),
        )
        for i in rows[:k]
    )


def _same(a: TopK, b: TopK) -> None:
    for name in NAMES:
        np.testing.assert_array_equal(getattr(a, name), getattr(b, name), err_msg=name)


@pytest.mark.parametrize("seed", range(20))
def test_any_split_in_any_order_equals_a_sort(seed):
    rng = np.random.default_rng(seed)
    images, channels, k = rng.integers(1, 40), rng.integers(1, 6), rng.integers(1, 12)
    everything = _everything(rng, images, channels)
    cuts = np.sort(rng.integers(0, images + 1, rng.integers(0, 6)))
    parts = [_of(everything, rows, k) for rows in np.split(np.arange(images), cuts) if len(rows)]
    merged = TopK.empty(channels, k)
    for index in rng.permutation(len(parts)):
        merged = merged.merge(parts[index]) if rng.random() < 0.5 else parts[index].merge(merged)
    for channel in range(channels):
        assert merged.hits(channel) == _brute_force(everything, channel, k)


@pytest.mark.parametrize("seed", range(5))
def test_merge_is_associative_and_commutative(seed):
    rng = np.random.default_rng(seed)
    everything = _everything(rng, 30, 4)
    a, b, c = (_of(everything, rows, 5) for rows in np.split(rng.permutation(30), [11, 17]))
    _same(a.merge(b), b.merge(a))
    _same(a.merge(b).merge(c), a.merge(b.merge(c)))
    _same(a.merge(TopK.empty(4, 5)), a)


@pytest.mark.parametrize("seed", range(20))
def test_batch_after_batch_equals_merging(seed):
    """In any order, with ties between batches, and with batches in which no image gets a place."""
    rng = np.random.default_rng([seed, 1])
    images, channels, k = rng.integers(20, 60), rng.integers(1, 6), rng.integers(1, 5)
    everything = _everything(rng, images, channels)
    builder, merged = TopKBuilder(TopK.empty(channels, k)), TopK.empty(channels, k)
    for rows in np.array_split(rng.permutation(images), 12):
        score, activation, image, y, x = everything
        before = builder.topk().folded(np.array(WIDTH))
        _same(before, merged)
        builder.add(score[rows], activation[rows], image[rows], (y * WIDTH + x)[rows])
        _same(before, merged)
        merged = merged.merge(_of(everything, rows, k))
    found = builder.topk().folded(np.array(WIDTH))
    _same(found, merged)
    for channel in range(channels):
        assert found.hits(channel) == _brute_force(everything, channel, k)


@pytest.mark.parametrize("seed", range(10))
def test_a_builder_goes_on_from_what_was_found(seed):
    rng = np.random.default_rng([seed, 2])
    images, channels, k = rng.integers(2, 60), rng.integers(1, 6), rng.integers(1, 12)
    score, activation, image, y, x = _everything(rng, images, channels)
    whole, builder = (TopKBuilder(TopK.empty(channels, k)) for _ in range(2))
    for rows in np.array_split(rng.permutation(images), 9):
        batch = score[rows], activation[rows], image[rows], (y * WIDTH + x)[rows]
        whole.add(*batch)
        builder = TopKBuilder(builder.topk())
        builder.add(*batch)
    _same(builder.topk(), whole.topk())


def test_each_channel_has_a_width_of_its_own():
    builder = TopKBuilder(TopK.empty(3, 1))
    builder.add(np.ones((1, 3)), np.ones((1, 3)), np.array([5]), np.array([[0, 17, 17]]))
    found = builder.topk().folded(np.array([1, 4, 20]))
    assert [(h.y, h.x) for h in (found.hits(c)[0] for c in range(3))] == [(0, 0), (4, 1), (0, 17)]


def test_images_within_a_batch_may_come_in_any_order():
    rng = np.random.default_rng(1)
    everything = _everything(rng, 25, 3)
    _same(_of(everything, np.arange(25), 9), _of(everything, rng.permutation(25), 9))


def test_ties_go_to_the_first_image():
    ones = np.ones((4, 1), np.float32)
    zeros = np.zeros((4, 1), np.int64)
    found = _topk(ones, ones, np.array([7, 3, 5, 2]), zeros, zeros, 3)
    assert [hit.image for hit in found.hits(0)] == [2, 3, 5]


def test_negative_scores_rank_too():
    """A layer before its ReLU may be below zero everywhere; its best is its best all the same."""
    score = np.array([[-3.0], [-1.0], [-2.0]], np.float32)
    zeros = np.zeros((3, 1), np.int64)
    found = _topk(score, score, np.arange(3), zeros, zeros, 2)
    assert [hit.score for hit in found.hits(0)] == [-1.0, -2.0]


def test_fewer_images_than_places():
    rng = np.random.default_rng(0)
    found = _of(_everything(rng, 3, 2), np.arange(3), 9)
    assert found.score.shape == (2, 9)
    assert all(len(found.hits(c)) <= 3 for c in (0, 1))


def test_no_images():
    empty = TopK.empty(2, 9)
    assert empty.hits(0) == ()
    _same(empty.merge(empty), empty)


def test_what_is_no_number_has_no_place_even_where_there_is_room():
    score = np.array([[np.nan], [1.0], [-np.inf]], np.float32)
    zeros = np.zeros((3, 1), np.int64)
    found = _topk(score, score, np.arange(3), zeros, zeros, 9)
    assert [hit.image for hit in found.hits(0)] == [1]


def test_places_and_activations_stay_with_their_image():
    score = np.array([[1.0, 5.0], [2.0, 4.0]], np.float32)
    y, x = np.array([[10, 11], [12, 13]]), np.array([[20, 21], [22, 23]])
    found = _topk(score, score + 100, np.array([4, 9]), y, x, 2)
    assert found.hits(0) == (Hit(2.0, 102.0, 9, 12, 22), Hit(1.0, 101.0, 4, 10, 20))
    assert found.hits(1) == (Hit(5.0, 105.0, 4, 11, 21), Hit(4.0, 104.0, 9, 13, 23))


def test_merging_changes_neither():
    rng = np.random.default_rng(3)
    everything = _everything(rng, 20, 3)
    a, b = _of(everything, np.arange(10), 4), _of(everything, np.arange(10, 20), 4)
    before = {name: array.copy() for name, array in a.arrays().items()}
    a.merge(b)
    for name, array in a.arrays().items():
        np.testing.assert_array_equal(array, before[name])


def test_arrays_make_it_again():
    a = _of(_everything(np.random.default_rng(3), 20, 3), np.arange(20), 4)
    _same(TopK(**a.arrays()), a)


# Statistics


def _reductions(maps: np.ndarray) -> dict[str, np.ndarray]:
    flat = maps.reshape(*maps.shape[:2], -1)
    return {
        "max": flat.max(2),
        "sum": flat.sum(2),
    }


def _maps(seed: int, images: int) -> np.ndarray:
    maps = np.random.default_rng(seed).normal(size=(images, 3, 4, 5)).astype(np.float32)
    maps[:, 1] = -np.abs(maps[:, 1])
    return maps


def test_statistics_are_those_of_all_values():
    maps = _maps(0, 12)
    parts = [ChannelStats.of_batch(_reductions(part), 20) for part in (maps[:5], maps[5:6], maps[6:])]
    found = parts[2].merge(ChannelStats.empty(3, 20)).merge(parts[0].merge(parts[1]))
    assert found.positions == 20
    np.testing.assert_array_equal(found.images, 12)
    np.testing.assert_array_equal(found.largest, maps.max((0, 2, 3)))
    np.testing.assert_allclose(found.total, maps.sum((0, 2, 3), dtype=np.float64), rtol=1e-5)
    np.testing.assert_array_equal(found.active_images, (maps.max((2, 3)) > 0).sum(0))
    np.testing.assert_array_equal(found.not_finite, 0)
    assert found.active_images[1] == 0


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_images_that_are_not_finite_are_counted_apart(value):
    maps = _maps(1, 6)
    maps[2, 0, 1, 1] = maps[4, 0, 3, 3] = value
    found = ChannelStats.of_batch(_reductions(maps), 20)
    np.testing.assert_array_equal(found.not_finite, [2, 0, 0])
    np.testing.assert_array_equal(found.images, [4, 6, 6])
    kept = np.delete(maps[:, 0], [2, 4], axis=0)
    assert found.largest[0] == kept.max()
    assert found.total[0] == pytest.approx(kept.sum(), rel=1e-5)


def test_statistics_of_no_images():
    empty = ChannelStats.empty(2, 20)
    assert (empty.largest == -np.inf).all()
    assert (empty.images == 0).all()


def test_statistics_make_themselves_again():
    found = ChannelStats.of_batch(_reductions(_maps(0, 3)), 20)
    again = ChannelStats(found.positions, **found.arrays())
    for name, array in found.arrays().items():
        np.testing.assert_array_equal(getattr(again, name), array)


def test_sums_do_not_overflow_over_many_batches():
    part = ChannelStats.of_batch({name: np.full((1, 1), 3e9, np.float32) for name in ("max", "sum")}, 1)
    total = part
    for _ in range(3):
        total = total.merge(total)
    assert total.total[0] == pytest.approx(8 * 3e9)


@pytest.mark.parametrize("seed", range(5))
def test_sums_do_not_depend_on_how_images_were_split(seed):
    """To the last bit: as many orders and groupings as there are seeds, and the sum that math.fsum finds."""
    rng = np.random.default_rng(seed)
    total = (rng.normal(size=(400, 3)) * 10.0 ** rng.integers(-12, 12, (400, 3))).astype(np.float32)
    found = {"max": np.ones_like(total), "sum": total}
    merged = ChannelStats.empty(3, 1)
    for rows in np.array_split(rng.permutation(400), rng.integers(1, 60)):
        part = ChannelStats.of_batch({name: array[rows] for name, array in found.items()}, 1)
        merged = merged.merge(part) if rng.random() < 0.5 else part.merge(merged)
    assert merged.total.tolist() == [math.fsum(total[:, c].tolist()) for c in range(3)]
