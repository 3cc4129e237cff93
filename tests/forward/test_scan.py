"""The scan: what it keeps does not depend on how the images went through."""

from __future__ import annotations

import dataclasses
from itertools import pairwise

import numpy as np
import pytest
from PIL import Image

import onnxviz
from onnxviz.errors import AtlasError, ImageError, NoImagesError, UsageError
from onnxviz.forward import ranges
from onnxviz.forward.part import Part
from onnxviz.forward.scan import RANKS, Scanner, Workload, prepared, workload
from onnxviz.images.preprocess import resolve_preprocess
from onnxviz.images.source import Sample, Source, open_source
from tests.model.nets import build, conv_weights, forward, node, small, write
from tests.scanned import scan

LAYERS = ("conv1", "relu2", "pool2", "fc1")
TENSORS = {"conv1": "c1", "relu2": "r2", "pool2": "g", "fc1": "d1"}


def _source(arrays, broken=()) -> Source:
    """Arrays (C, H, W) as the network wants them; those in ``broken`` cannot be read."""

    def read(index):
        if index in broken:
            raise ImageError(f"image{index}: cut short")
        return arrays[index]

    return Source("arrays", tuple(Sample(f"image{i}", None, lambda i=i: read(i)) for i in range(len(arrays))))


@pytest.fixture(scope="module")
def arrays():
    """40 images of which some are the same, so that there are ties."""
    found = np.random.default_rng(4).normal(size=(40, 3, 12, 12)).astype(np.float32)
    found[[5, 17, 33]] = found[2]
    found[[8, 9]] = 0
    return found


@pytest.fixture(scope="module")
def net(tmp_path_factory, provider):
    return onnxviz.load(write(tmp_path_factory.mktemp("net") / "small.onnx", small()), provider=provider)


@pytest.fixture(scope="module")
def recipe():
    return resolve_preprocess(channels=3, height=12, width=12, preset="raw")


def _scan(net, recipe, source, names=LAYERS, **options):
    return scan(net, source, [net.layer(name) for name in names], recipe, **options)


def _all_arrays(result):
    found = {
        f"{one.layer.name}/{part}/{name}": array
        for one in result.layers
        for part, group in (("topk", one.topk), ("overall", one.overall), ("stats", one.stats))
        for name, array in group.arrays().items()
        if name != "sums"  # whose digits may all be others where the sum rounds differently
    }
    return found | {f"{one.layer.name}/total": one.stats.total for one in result.layers}


def _equal(a, b):
    """Images and places to the letter; numbers up to what a matrix product of another height rounds."""
    first, second = _all_arrays(a), _all_arrays(b)
    assert first.keys() == second.keys()
    for name, array in first.items():
        if name.endswith(("score", "activation", "largest", "total")):
            np.testing.assert_allclose(array, second[name], rtol=1e-5, atol=1e-6, err_msg=name)
        else:
            np.testing.assert_array_equal(array, second[name], err_msg=name)
    assert (a.images, a.skipped) == (b.images, b.skipped)


@pytest.mark.parametrize("rank", RANKS)
def test_top_images_equal_a_brute_force_sort(net, recipe, arrays, rank):
    result = _scan(net, recipe, _source(arrays), rank=rank, top=9)
    values = forward(small(), arrays, list(TENSORS.values()))
    for one in result.layers:
        maps = values[TENSORS[one.layer.alias]].reshape(40, one.layer.channels, -1)
        score = {"max": maps.max(2), "sum": maps.sum(2), "first": np.zeros(maps.shape[:2])}[rank]
        for channel in range(one.layer.channels):
            hits = one.topk.hits(channel)
            # Rounded: images that are the same may come out of a larger batch a last bit apart.
            order = sorted(range(40), key=lambda i: (-np.round(score[i, channel], 5), i))[:9]
            assert [hit.image for hit in hits] == order
            for hit in hits:
                assert hit.score == pytest.approx(score[hit.image, channel], rel=1e-4, abs=1e-5)
                assert hit.activation == pytest.approx(maps[hit.image, channel].max(), rel=1e-4, abs=1e-5)
                width = one.layer.size[1] if one.layer.size else 1
                unit = maps[hit.image, channel, hit.y * width + hit.x]
                assert unit == pytest.approx(hit.activation, rel=1e-4, abs=1e-5)


def test_ties_go_to_the_first_image(net, recipe, arrays):
    result = _scan(net, recipe, _source(arrays[[2, 5, 17, 33]]))
    for one in result.layers:
        for channel in range(one.layer.channels):
            assert [hit.image for hit in one.topk.hits(channel)] == [0, 1, 2, 3]


def test_all_channels_together_rank_by_their_positive_sum(net, recipe, arrays):
    result = _scan(net, recipe, _source(arrays), top=5)
    for one in result.layers:
        maps = forward(small(), arrays, [TENSORS[one.layer.alias]])[TENSORS[one.layer.alias]]
        total = np.maximum(maps.reshape(40, one.layer.channels, -1).max(2), 0).sum(1)
        order = sorted(range(40), key=lambda i: (-np.round(total[i], 4), i))[:5]
        assert [hit.image for hit in one.overall.hits(0)] == order


def test_statistics_are_those_of_all_activations(net, recipe, arrays):
    result = _scan(net, recipe, _source(arrays))
    for one in result.layers:
        maps = forward(small(), arrays, [TENSORS[one.layer.alias]])[TENSORS[one.layer.alias]]
        maps = maps.reshape(40, one.layer.channels, -1)
        stats = one.stats
        assert stats.positions == maps.shape[2]
        np.testing.assert_allclose(stats.largest, maps.max((0, 2)), rtol=1e-4, atol=1e-6)
        np.testing.assert_allclose(stats.total, maps.sum((0, 2)), rtol=1e-3, atol=1e-3)
        np.testing.assert_array_equal(stats.active_images, (maps.max(2) > 0).sum(0))
        np.testing.assert_array_equal(stats.images, 40)


@pytest.mark.parametrize("size", [1, 3, 32, 64])
def test_the_batch_size_does_not_matter(net, recipe, arrays, size):
    _equal(
        _scan(net, recipe, _source(arrays), batch_size=size),
        _scan(net, recipe, _source(arrays), batch_size=7),
    )


def test_other_layers_in_the_same_pass_do_not_matter(net, recipe, arrays):
    together = _scan(net, recipe, _source(arrays))
    for one in together.layers:
        alone = _scan(net, recipe, _source(arrays), names=[one.layer.name])
        _equal(alone, dataclasses.replace(together, layers=(one,)))


@pytest.mark.parametrize("limit", [1, 7, 40, 1000])
def test_limit_is_a_shorter_data_set(net, recipe, arrays, limit):
    limited = _scan(net, recipe, _source(arrays), limit=limit, batch_size=4)
    _equal(limited, _scan(net, recipe, _source(arrays[:limit]), batch_size=4))
    assert limited.images == min(limit, 40)


def test_nothing_beyond_the_limit_is_read(net, recipe, arrays):
    read = []
    samples = [Sample(str(i), None, lambda i=i: (read.append(i), arrays[i])[1]) for i in range(40)]
    _scan(net, recipe, Source("recorded", tuple(samples)), limit=6, batch_size=4)
    assert sorted(read) == list(range(6))


@pytest.mark.parametrize("size", [1, 4, 32])
def test_bad_images_are_skipped_counted_and_listed(net, recipe, arrays, size):
    broken = {0, 7, 8, 9, 39}
    result = _scan(net, recipe, _source(arrays, broken), batch_size=size)
    assert result.images == 35
    assert result.skipped == tuple((f"image{i}", "cut short") for i in sorted(broken))
    shown = {
        hit.image for one in result.layers for c in range(one.layer.channels) for hit in one.topk.hits(c)
    }
    assert not shown & broken
    # The others keep their numbers and their order.
    kept = [i for i in range(40) if i not in broken]
    alone = _scan(net, recipe, _source(arrays[kept]), batch_size=size)
    for one, other in zip(result.layers, alone.layers, strict=True):
        for channel in range(one.layer.channels):
            expected = [kept[hit.image] for hit in other.topk.hits(channel)]
            assert [hit.image for hit in one.topk.hits(channel)] == expected


def test_arrays_that_do_not_fit_are_skipped_too(net, recipe, arrays):
    mixed = [*arrays[:3], np.zeros((3, 9, 9), np.float32), arrays[4]]
    result = _scan(net, recipe, _source(mixed))
    assert result.images == 4
    assert [name for name, _ in result.skipped] == ["image3"]
    assert "(3, 9, 9)" in result.skipped[0][1]


def test_files_among_good_ones(net, recipe, tmp_path):
    rng = np.random.default_rng(0)
    for i in range(6):
        Image.fromarray(rng.integers(0, 255, (20, 20, 3), np.uint8)).save(tmp_path / f"{i}.png")
    (tmp_path / "3.png").write_bytes((tmp_path / "3.png").read_bytes()[:100])
    (tmp_path / "5.png").write_text("no picture")
    result = _scan(net, recipe, open_source(tmp_path))
    assert result.images == 4
    assert [name for name, _ in result.skipped] == ["3.png", "5.png"]
    assert all(reason and "3.png" not in reason for _, reason in result.skipped)


def test_not_one_image_is_an_error(net, recipe, arrays):
    with pytest.raises(NoImagesError, match="not one image could be read") as error:
        _scan(net, recipe, _source(arrays, set(range(40))))
    assert "image0: cut short" in str(error.value)
    assert error.value.exit_code == 1


def test_other_errors_while_reading_are_not_swallowed(net, recipe):
    def read():
        raise MemoryError("too large")

    with pytest.raises(MemoryError):
        _scan(net, recipe, Source("broken", (Sample("a", None, read),)))


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_activations_that_are_not_finite_are_counted_and_not_ranked(net, recipe, arrays, value):
    spoilt = arrays[:12].copy()
    spoilt[[3, 7], 1, 5, 5] = value
    for rank in RANKS:
        result = _scan(net, recipe, _source(spoilt), names=["conv1"], rank=rank, top=12)
        one = result.layers[0]
        assert result.images == 12
        assert not result.skipped
        np.testing.assert_array_equal(one.stats.not_finite, 2)
        np.testing.assert_array_equal(one.stats.images, 10)
        for channel in range(5):
            hits = one.topk.hits(channel)
            assert len(hits) == 10
            assert not {3, 7} & {hit.image for hit in hits}
            assert all(np.isfinite([hit.score, hit.activation]).all() for hit in hits)
        assert np.isfinite(one.stats.largest).all()
        assert np.isfinite([hit.score for hit in one.overall.hits(0)]).all()


def test_images_without_any_finite_number_do_not_lead_the_overall_row(net, recipe, arrays):
    """Where no image is above zero, one whose every channel is NaN must not come first."""
    spoilt = -np.abs(arrays[:4])
    spoilt[0] = np.nan
    result = _scan(net, recipe, _source(spoilt), names=["conv1"], rank="max")
    assert 0 not in [hit.image for hit in result.layers[0].overall.hits(0)]


def test_progress_counts_every_image_skipped_ones_too(net, recipe, arrays):
    calls = []
    _scan(
        net,
        recipe,
        _source(arrays, {1, 39}),
        batch_size=8,
        progress=lambda done, total: calls.append((done, total)),
    )
    assert [total for _, total in calls] == [40] * len(calls)
    done = [count for count, _ in calls]
    assert done == sorted(done)
    assert done[-1] == 40
    assert len(done) >= 5


@pytest.mark.parametrize("size", [1, 8, 40])
def test_skipped_images_are_told_before_they_count_as_done(net, recipe, arrays, size):
    heard = []
    result = _scan(
        net,
        recipe,
        _source(arrays, {1, 20, 39}),
        batch_size=size,
        progress=lambda done, total: heard.append(done),
        skip=lambda *image: heard.append(image),
    )
    told = [one for one in heard if isinstance(one, tuple)]
    assert tuple(told) == result.skipped
    assert [name for name, _ in told] == ["image1", "image20", "image39"]
    for index, one in zip((1, 20, 39), told, strict=True):
        before = [done for done in heard[: heard.index(one)] if isinstance(done, int)]
        assert (
            max(before, default=0) <= index < next(d for d in heard[heard.index(one) :] if isinstance(d, int))
        )


def test_progress_within_a_limit(net, recipe, arrays):
    calls = []
    _scan(net, recipe, _source(arrays), limit=10, progress=lambda *counts: calls.append(counts))
    assert calls[-1] == (10, 10)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"rank": "mean"}, r"'mean' is not known.*max, sum, first"),
        ({"top": 0}, "top must be 1 or more, not 0"),
        ({"limit": 0}, "limit must be 1 or more, not 0"),
        ({"batch_size": -2}, "batch size must be 1 or more, not -2"),
    ],
)
def test_numbers_out_of_range(net, recipe, arrays, options, message):
    with pytest.raises(UsageError, match=message):
        _scan(net, recipe, _source(arrays), **options)


def test_more_places_than_images(net, recipe, arrays):
    result = _scan(net, recipe, _source(arrays[:3]), top=50)
    assert all(len(one.topk.hits(0)) == 3 for one in result.layers)


@pytest.fixture
def any_size(tmp_path):
    return write(tmp_path / "m.onnx", small(x=("N", 3, "H", "W")))


def _shared_out(path, size, images, layer="conv1", cores=4):
    net = onnxviz.load(path, provider="cpu", size=(size, size))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("onnxviz.forward.scan.cores", lambda: cores)
        return workload(net, [net.layer(layer)], images)


def test_each_core_runs_batches_of_its_own(any_size):
    assert _shared_out(any_size, 12, 1000) == Workload(32, 4, 1)
    assert _shared_out(any_size, 12, 1000, cores=1) == Workload(32, 1, 1)


def test_few_images_are_shared_out_too(any_size):
    assert _shared_out(any_size, 12, 40) == Workload(4, 4, 1)
    assert _shared_out(any_size, 12, 3) == Workload(1, 3, 1)
    assert _shared_out(any_size, 12, 1) == Workload(1, 1, 4)


def test_large_activations_make_batches_smaller_and_then_workers_fewer(any_size):
    """A pixel has 5 numbers in the first convolution and 5 in its rectifier: 40 bytes."""
    assert _shared_out(any_size, 400, 1000, "relu1") == Workload(4, 4, 1)
    assert _shared_out(any_size, 3000, 1000, "relu1") == Workload(1, 2, 2)
    assert _shared_out(any_size, 6000, 1000, "relu1") == Workload(1, 1, 4)


def test_fully_connected_layers_ask_for_larger_batches(tmp_path):
    weights = {"w": np.zeros((4, 3, 1, 1), np.float32), "g": np.zeros((4 * 600 * 600, 10), np.float32)}
    nodes = [
        node("Conv", "x w", "c", "conv1"),
        node("Flatten", "c", "f"),
        node("Gemm", "f g", "d", "fc1"),
    ]
    path = write(tmp_path / "m.onnx", build(nodes, weights, x=("N", 3, 600, 600), outputs=["d"]))
    pixels = 600 * 600
    assert _shared_out(path, 600, 1000).batch == 2 <= (32 << 20) / (4 * (3 + 4) * pixels) < 4
    assert (
        _shared_out(path, 600, 1000, "fc1").batch == 4 <= (4 * 4 * 10 * pixels) / (4 * (4 + 4) * pixels) < 8
    )


def test_a_fixed_batch_is_kept_whole(tmp_path):
    path = write(tmp_path / "m.onnx", small(x=(5, 3, 12, 12)))
    assert _shared_out(path, 12, 1000).batch == 20
    assert _shared_out(path, 12, 6).batch == 5


def _bytes(part):
    return {name: array.tobytes() for name, array in part.arrays().items()}, part.done, part.skipped


def _scanner(net, recipe, source, total=40, **options):
    layers = [net.layer(name) for name in LAYERS]
    return layers, Scanner(net, source, layers, recipe, rank="max", total=total, **options)


@pytest.mark.parametrize("seed", range(6))
def test_parts_in_any_order_are_the_whole_to_the_last_bit(net, recipe, arrays, seed):
    """Cut at multiples of the batch, scanned apart or one after the other, merged in any order."""
    rng = np.random.default_rng(seed)
    layers, scanner = _scanner(net, recipe, _source(arrays, {0, 9, 17}), batch_size=4)
    empty = Part.empty(layers, 5)
    want = scanner.scan(empty, [(0, 40)])
    cuts = [0, *sorted((4 * rng.choice(np.arange(1, 10), 4, replace=False)).tolist()), 40]
    shards = list(pairwise(cuts))
    parts = [scanner.scan(empty, [shards[n]]) for n in rng.permutation(5)]
    merged = empty
    for part in parts:
        merged = merged.merge(part) if rng.random() < 0.5 else part.merge(merged)
    assert _bytes(merged) == _bytes(want)
    in_turn = empty
    for n in rng.permutation(5):
        in_turn = scanner.scan(in_turn, [shards[n]])
    assert _bytes(in_turn) == _bytes(want)
    assert want.done == ((0, 40),) and want.images == 37


@pytest.mark.parametrize("stop", [1, 2, 5, 9])
def test_a_scan_broken_off_is_saved_and_goes_on(net, recipe, arrays, stop):
    layers, scanner = _scanner(net, recipe, _source(arrays, {3}), batch_size=4)
    want = scanner.scan(Part.empty(layers, 5), [(0, 40)])
    saved, batches = [], 0

    def advanced(count):
        nonlocal batches
        batches += 1
        if batches == stop:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        scanner.scan(Part.empty(layers, 5), [(0, 40)], advanced, save=saved.append)
    assert saved[-1].done == ((0, 4 * stop),)
    todo = ranges.missing(saved[-1].done, (0, 40))
    assert _bytes(scanner.scan(saved[-1], todo)) == _bytes(want)


@pytest.mark.parametrize("at_once", [1, 40, 10_000])
def test_how_many_images_are_counted_at_once_does_not_matter(net, recipe, arrays, at_once, monkeypatch):
    """Nor that what is known is asked for meanwhile, when some of them still wait."""
    layers, scanner = _scanner(net, recipe, _source(arrays), batch_size=4)
    want = scanner.scan(Part.empty(layers, 5), [(0, 40)])
    monkeypatch.setattr("onnxviz.forward.part._VALUES_AT_ONCE", at_once)
    saved = []
    found = scanner.scan(Part.empty(layers, 5), [(0, 40)], save=saved.append, every=0)
    assert _bytes(found) == _bytes(want)
    assert [part.images for part in saved] == sorted(part.images for part in saved) and len(saved) > 5
    for part in saved[:-1]:
        assert part.stats.images.max() + part.stats.not_finite.min() == part.images
        assert len(part.responses.image) == part.images


def test_what_is_half_counted_is_not_saved(net, recipe, arrays, monkeypatch):
    layers, scanner = _scanner(net, recipe, _source(arrays), batch_size=4)

    def broken(self, images, largest):
        raise KeyboardInterrupt  # a second Ctrl-C, in the middle of a batch

    monkeypatch.setattr("onnxviz.forward.responses.ResponsesBuilder.add", broken)
    saved = []
    with pytest.raises(KeyboardInterrupt):
        scanner.scan(Part.empty(layers, 5), [(0, 40)], save=saved.append)
    assert saved == []


def test_saved_at_intervals(net, recipe, arrays, monkeypatch):
    clock = iter(range(0, 10_000, 10))
    monkeypatch.setattr("onnxviz.forward.saving.monotonic", lambda: next(clock))
    layers, scanner = _scanner(net, recipe, _source(arrays), batch_size=4)
    saved = []
    scanner.scan(Part.empty(layers, 5), [(0, 40)], save=saved.append, every=25)
    counts = [part.images for part in saved]
    assert counts == sorted(set(counts)) and 2 <= len(counts) <= 5


def test_an_error_in_the_middle_keeps_what_was_counted(net, recipe, arrays, monkeypatch):
    layers, scanner = _scanner(net, recipe, _source([*arrays[:30], *[None] * 10]), batch_size=4)
    saved = []
    with pytest.raises(AttributeError):  # no picture at all: not an error that is foreseen
        scanner.scan(Part.empty(layers, 5), [(0, 40)], save=saved.append)
    assert len(saved) == 1 and 0 < saved[0].images <= 28


def test_images_in_two_parts_are_refused(net, recipe, arrays):
    layers, scanner = _scanner(net, recipe, _source(arrays), batch_size=4)
    parts = [scanner.scan(Part.empty(layers, 5), [some]) for some in ((0, 8), (4, 12))]
    with pytest.raises(AtlasError, match="Images 4 to 7 are in both parts"):
        parts[0].merge(parts[1])


@pytest.mark.parametrize("cores", [1, 2, 5])
def test_the_number_of_cores_does_not_matter(net, recipe, arrays, cores, monkeypatch):
    want = _scan(net, recipe, _source(arrays), batch_size=7)
    monkeypatch.setattr("onnxviz.forward.scan.cores", lambda: cores)
    _equal(_scan(net, recipe, _source(arrays), batch_size=7), want)
    _equal(_scan(net, recipe, _source(arrays)), want)


def test_samples_come_in_order_whatever_their_time(recipe, arrays):
    import time

    def slow(index):
        time.sleep(0.02 if index % 3 == 0 else 0)
        return arrays[index]

    samples = tuple(Sample(str(i), None, lambda i=i: slow(i)) for i in range(20))
    got = list(prepared(Source("slow", samples), recipe, range(20), ahead=6))
    assert [index for index, _ in got] == list(range(20))
    assert all(np.array_equal(array, arrays[index]) for index, array in got)


def test_decoding_runs_ahead_but_not_away(recipe, arrays):
    """Memory does not grow with the number of images."""
    started = []
    samples = tuple(Sample(str(i), None, lambda i=i: (started.append(i), arrays[i])[1]) for i in range(40))
    items = prepared(Source("counted", samples), recipe, range(40), ahead=5)
    for taken in range(1, 11):
        next(items)
        assert len(started) <= taken + 5
    items.close()
    assert len(started) <= 15


@pytest.mark.parametrize("whole", [True, False], ids=["to-the-end", "broken-off"])
def test_only_who_breaks_off_hurries_others_who_read_the_source(whole):
    samples = [Sample(f"{i}", None, lambda: np.zeros((4, 4, 3), np.uint8)) for i in range(8)]
    recipe = resolve_preprocess(channels=3, height=4, width=4, preset="raw")
    hurried: list[bool] = []
    source = Source("slow", samples, hurry=lambda: hurried.append(True))
    items = prepared(source, recipe, range(8), ahead=4)
    if whole:
        assert len(list(items)) == 8
    else:
        next(items)
        items.close()
    assert hurried == ([] if whole else [True])


def test_channels_last_and_bytes(tmp_path, provider):
    """N×H×W×C of bytes, cast and transposed in the graph."""
    rng = np.random.default_rng(2)
    nodes = [
        node("Cast", "x", "f", "cast", to=1),
        node("Transpose", "f", "t", "first", perm=[0, 3, 1, 2]),
        node("Conv", "t w", "c", "conv1"),
        node("Relu", "c", "r", "relu1"),
    ]
    model = build(nodes, {"w": conv_weights(rng, 4, 3, 3, 3)}, x=("N", 12, 10, 3), dtype=2)
    net = onnxviz.load(write(tmp_path / "bytes.onnx", model), provider=provider)
    pictures = rng.integers(0, 255, (15, 12, 10, 3), np.uint8)
    recipe = resolve_preprocess(channels=3, height=12, width=10, layout="NHWC", dtype="uint8")
    result = _scan(net, recipe, _source(pictures), names=["relu1"])
    maps = forward(model, pictures, ["r"])["r"]
    for channel in range(4):
        order = sorted(range(15), key=lambda i: (-maps[i, channel].max(), i))[:9]
        assert [hit.image for hit in result.layers[0].topk.hits(channel)] == order


def test_channels_together_may_be_more_than_float32_holds(tmp_path, recipe):
    """Of each of 400 channels every number and every sum is finite."""
    weights = {"w": np.full((400, 3, 1, 1), 6e35, np.float32)}
    model = build([node("Conv", "x w", "y", "conv1")], weights, x=("N", 3, 12, 12), outputs=["y"])
    net = onnxviz.load(write(tmp_path / "m.onnx", model), provider="cpu")
    images = np.ones((3, 3, 12, 12), np.float32) * np.array([0.3, 0.9, 0.6], np.float32).reshape(3, 1, 1, 1)
    one = _scan(net, recipe, _source(images), names=["conv1"]).layers[0]
    hits = one.overall.hits(0)
    assert [hit.image for hit in hits] == [1, 2, 0]
    assert hits[0].score == pytest.approx(400 * 1.62e36, rel=1e-5)
    assert np.isfinite([hit.activation for hit in hits]).all()
