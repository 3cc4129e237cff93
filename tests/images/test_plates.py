"""Plates: sizes of tiles, and that what is drawn lies where it should."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from PIL import Image

from onnxviz.images.plates import HitTiles, Plate, PlateStyle
from onnxviz.images.render import GREY, MAT, OUTSIDE, PALETTE, projection_rgb


def _style(field=(11, 11), frame=(64, 64), stride=(4, 4), offset=(0, 0), grid=(14, 14)) -> PlateStyle:
    return PlateStyle(field, frame, stride, offset, grid)


def _tile(size: tuple[int, int], value: int) -> np.ndarray:
    return np.full((*size, 3), value, np.uint8)


def _draw(style, image, projection, maps, box) -> HitTiles:
    (tiles,) = style.tiles([image], projection[None], maps[None], [box])
    return tiles


def _hit(value: int, card=(5, 7), strip=(8, 8)) -> HitTiles:
    maps = tuple(np.full(strip, 10 * row + value, np.uint8) for row in range(2))
    return HitTiles(_tile(card, value), _tile(card, 100 + value), maps)


# Laying out


@pytest.mark.parametrize(
    ("hits", "grid"),
    [(1, (1, 2)), (2, (1, 4)), (3, (2, 4)), (4, (2, 4)), (5, (2, 6)), (9, (3, 6)), (10, (3, 8))],
)
def test_a_card_is_two_grids_side_by_side(hits, grid):
    plate = Plate.of([_hit(value) for value in range(hits)])
    rows, columns = grid
    assert plate.card_grid == grid
    assert plate.card.shape == (5 * rows, 7 * columns, 3)
    assert plate.strip_grid == (2, hits)
    assert plate.strips.shape == (8 * 2, 8 * hits)
    half = columns // 2
    for rank in range(rows * half):
        y, x = rank // half * 5, rank % half * 7
        projection, patch = (plate.card[y : y + 5, x + d : x + d + 7] for d in (0, 7 * half))
        assert (projection == (rank if rank < hits else GREY)).all()
        assert (patch == (100 + rank if rank < hits else GREY)).all()
    for row in range(2):
        for rank in range(hits):
            assert (plate.strips[8 * row : 8 * row + 8, 8 * rank : 8 * rank + 8] == 10 * row + rank).all()


@pytest.mark.parametrize(("hits", "first"), [(9, 4), (9, 9), (9, 1), (10, 7), (5, 3), (2, 1), (1, 1)])
def test_the_first_hits_alone_are_laid_out_as_if_there_were_no_more(hits, first):
    drawn = [_hit(value) for value in range(hits)]
    found, expected = Plate.of(drawn).first(first), Plate.of(drawn[:first])
    assert (found.card_grid, found.strip_grid) == (expected.card_grid, expected.strip_grid)
    np.testing.assert_array_equal(found.card, expected.card)
    np.testing.assert_array_equal(found.strips, expected.strips)


# Sizes


@pytest.mark.parametrize(
    ("field", "tile", "pixelated"),
    [
        ((7, 7), (7, 7), True),
        ((36, 36), (36, 36), True),
        ((37, 20), (37, 20), False),
        ((72, 72), (72, 72), False),
        ((163, 163), (72, 72), False),
        ((100, 50), (72, 36), False),
        ((1, 400), (12, 72), False),
    ],
)
def test_a_cards_tile_is_the_field_or_less(field, tile, pixelated):
    style = _style(field=field)
    assert style.card_tile == tile
    assert style.pixelated == pixelated


@pytest.mark.parametrize("frame", [(1, 1), (12, 12), (28, 28), (64, 48), (79, 80), (224, 224), (300, 100)])
def test_a_strips_tile_is_square(frame):
    height, width = _style(frame=frame).strip_tile
    assert height == width
    assert 1 <= height <= 80


CASES = {
    "inside": ((11, 11), (64, 64), (4, 4), (0, 0), (5, 5)),
    "border": ((11, 11), (64, 64), (4, 4), (-5, -5), (0, 0)),
    "far-corner": ((11, 11), (64, 64), (4, 4), (-5, -5), (15, 15)),
    "larger-than-the-frame": ((90, 90), (64, 64), (8, 8), (-40, -40), (3, 3)),
    "whole": ((64, 48), (64, 48), None, (0, 0), (0, 0)),
    "not-square": ((5, 11), (40, 90), (2, 4), (-2, -5), (7, 20)),
    "one-pixel": ((1, 1), (28, 28), (1, 1), (0, 0), (27, 27)),
    "long": ((3, 60), (64, 64), (1, 1), (0, 0), (1, 1)),
    "tiny-frame": ((2, 2), (4, 6), (1, 1), (0, 0), (2, 4)),
    "huge-frame": ((31, 31), (1000, 700), (8, 8), (-11, -11), (100, 50)),
    "outside": ((3, 3), (20, 20), (8, 8), (4, 4), (2, 2)),
}


def _drawn(case):
    field, frame, stride, offset, unit = CASES[case]
    rng = np.random.default_rng(0)
    image = rng.integers(0, 255, (*frame, 3), np.uint8)
    size = tuple(max(1, (f - k) // s + 1) for f, k, s in zip(frame, field, stride or (1, 1), strict=True))
    maps = rng.normal(size=size if stride else (1, 1)).astype(np.float32)
    style = PlateStyle(field, frame, stride, offset, maps.shape)
    top = (stride or (0, 0))[0] * unit[0] + offset[0]
    left = (stride or (0, 0))[1] * unit[1] + offset[1]
    box = (top, left, top + field[0], left + field[1])
    projection = rng.normal(size=(*field, 3)).astype(np.float32)
    return style, _draw(style, image, projection, maps, box), image, projection, box


@pytest.mark.parametrize("case", CASES)
def test_every_tile_has_its_size(case):
    style, tiles, *_ = _drawn(case)
    assert tiles.projection.shape == tiles.patch.shape == (*style.card_tile, 3)
    assert [tile.shape for tile in tiles.maps] == [style.strip_tile] * 2
    assert all(tile.dtype == np.uint8 for tile in (tiles.projection, tiles.patch, *tiles.maps))
    plate = Plate.of([tiles] * 3)
    assert plate.card.shape[0] == plate.card_grid[0] * style.card_tile[0]


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("case", CASES)
def test_hits_are_drawn_together_as_each_alone(case, channels):
    style, _, image, _, box = _drawn(case)
    rng = np.random.default_rng(3)
    images = [image, image[::-1], image]
    boxes = [box, tuple(edge + 1 for edge in box), box]
    maps = rng.normal(size=(3, *style.grid)).astype(np.float32)
    projections = rng.normal(size=(3, *style.field, channels)).astype(np.float32) * [
        [[[1]]],
        [[[9]]],
        [[[0]]],
    ]
    together = style.tiles(images, projections, maps, boxes)
    for tiles, *hit in zip(together, images, projections, maps, boxes, strict=True):
        alone = _draw(style, *hit)
        np.testing.assert_array_equal(tiles.projection, alone.projection)
        np.testing.assert_array_equal(tiles.patch, alone.patch)
        np.testing.assert_array_equal(tiles.maps, alone.maps)


@pytest.mark.parametrize("field", [(163, 163), (99, 150), (73, 73), (144, 144)])
def test_patches_are_averages_of_what_the_unit_sees_alone(field):
    """Nothing of the pixels around it."""
    style = _style(field, (227, 227), (8, 8), (3, 1), (9, 9))
    image = np.random.default_rng(0).integers(0, 255, (227, 227, 3), np.uint8)
    top, left = 3 + 8 * 2, 1 + 8 * 5
    box = (top, left, top + field[0], left + field[1])
    tiles = _draw(style, image, np.zeros((*field, 3), np.float32), np.ones((9, 9), np.float32), box)
    seen = Image.fromarray(np.ascontiguousarray(image[top : box[2], left : box[3]]))
    expected = seen.resize(style.card_tile[::-1], Image.Resampling.BOX)
    np.testing.assert_array_equal(tiles.patch, np.asarray(expected))


@pytest.mark.parametrize("case", ["border", "far-corner", "larger-than-the-frame"])
def test_patches_at_the_border_are_padded_not_shifted(case):
    style, tiles, image, _, box = _drawn(case)
    if style.card_tile != style.field:
        assert (tiles.patch == GREY).all(axis=2).any()
        return
    top, left, _, _ = box
    for (y, x), pixel in zip(np.ndindex(style.field), tiles.patch.reshape(-1, 3), strict=True):
        inside = 0 <= top + y < image.shape[0] and 0 <= left + x < image.shape[1]
        assert (pixel == (image[top + y, left + x] if inside else GREY)).all()


def test_a_projection_is_grey_at_zero_and_keeps_its_signs():
    style = _style(field=(9, 9))
    projection = np.zeros((9, 9, 3), np.float32)
    projection[2, 3], projection[6, 5] = 1, -1
    image = np.zeros((64, 64, 3), np.uint8)
    tile = _draw(style, image, projection, np.ones((14, 14), np.float32), (8, 8, 17, 17)).projection
    assert (tile[2, 3] == 255).all()
    assert (tile[6, 5] == 1).all()
    tile = tile.copy()
    tile[2, 3] = tile[6, 5] = GREY
    assert (tile == GREY).all()


def test_a_projection_that_shrinks_is_averaged_first_then_scaled():
    """Checkers of ±1 average out, and what is left has the full contrast."""
    style = _style(field=(144, 144), frame=(200, 200))
    projection = np.indices((144, 144)).sum(axis=0)[..., None] % 2 * 2.0 - 1
    projection[40:42, 60:62] = 0.25
    image = np.zeros((200, 200, 3), np.uint8)
    tile = _draw(style, image, projection, np.ones((14, 14), np.float32), (0, 0, 144, 144)).projection
    assert tile.shape == (72, 72, 3)
    assert (tile[20, 30] == 255).all()
    assert (np.delete(tile.reshape(-1, 3), 20 * 72 + 30, axis=0) == GREY).all()


@pytest.mark.parametrize("field", [(144, 144), (163, 163), (111, 90), (73, 200), (90, 40)])
@pytest.mark.parametrize("channels", [1, 3])
def test_planes_of_a_projection_shrink_alike_each_by_itself(field, channels):
    style = _style(field=field, frame=(300, 300))
    rng = np.random.default_rng(1)
    plane = rng.normal(size=(*field, 1)).astype(np.float32)
    signs = np.array([1, -1, 1][:channels], np.float32)
    image = np.zeros((300, 300, 3), np.uint8)
    tile = _draw(style, image, plane * signs, np.ones((14, 14)), (0, 0, *field)).projection.astype(int)
    # Planes of the same values but for their sign are mirrored about grey, to the pixel.
    expected = tile[..., :1] * signs + 128 * (1 - signs)
    np.testing.assert_allclose(
        tile, np.broadcast_to(expected, (*style.card_tile, channels)) * np.ones(3), atol=1
    )
    # And each pixel is a mean of those under it.
    edges = [
        np.floor(np.arange(t + 1) * f / t + 0.5).astype(int)
        for f, t in zip(field, style.card_tile, strict=True)
    ]
    means = np.array(
        [
            [plane[y0:y1, x0:x1].mean() for x0, x1 in itertools.pairwise(edges[1])]
            for y0, y1 in itertools.pairwise(edges[0])
        ]
    )
    drawn = projection_rgb(means[..., None])[..., 0].astype(int)
    assert (np.abs(drawn - tile[..., 0]) <= 1).mean() > 0.95  # but for borders through a pixel's middle


def test_the_strongest_unit_is_bright_in_the_whole_map_and_fills_the_middle_of_its_field():
    style = _style(field=(16, 16), frame=(80, 80), stride=(16, 16))
    maps = np.zeros((5, 5), np.float32)
    maps[1, 3] = 2
    image = np.zeros((80, 80, 3), np.uint8)
    tiles = _draw(style, image, np.ones((16, 16, 1), np.float32), maps, (16, 48, 32, 64))
    bright = PALETTE[tiles.maps[1]].sum(axis=2) > 600
    expected = np.zeros((80, 80), bool)
    expected[16:32, 48:64] = True
    assert (bright == expected).all()
    assert (PALETTE[tiles.maps[0]].sum(axis=2) > 600).all()


def test_a_map_without_activation_is_dark():
    style = _style()
    image = np.zeros((64, 64, 3), np.uint8)
    tiles = _draw(
        style, image, np.zeros((11, 11, 3), np.float32), -np.ones((14, 14), np.float32), (0, 0, 11, 11)
    )
    assert PALETTE[tiles.maps[1]].max() < 80
    assert (tiles.projection == GREY).all()


def test_a_map_is_grey_outside_the_image_and_mounted_on_the_mat():
    style = _style(field=(16, 32), frame=(64, 64), stride=(8, 8), offset=(-8, 0), grid=(8, 8))
    image = np.zeros((64, 64, 3), np.uint8)
    maps = np.ones((8, 8), np.float32)
    over_field, _ = _draw(style, image, np.zeros((16, 32, 1)), maps, (-8, 0, 8, 32)).maps
    # On the square of 64 the field's 16×32 are 32×64: a quarter of mat, a quarter outside, as much inside.
    assert (over_field[:16] == MAT).all() and (over_field[48:] == MAT).all()
    assert (over_field[16:32] == OUTSIDE).all()
    assert (over_field[32:48] == 253).all()
    assert PALETTE[OUTSIDE].tolist() == [GREY] * 3


@pytest.mark.parametrize(
    ("options", "endings"),
    [
        ({"field": (11, 11)}, (".webp", ".png")),
        ({"field": (24, 24)}, (".webp", ".png")),
        ({"field": (25, 25)}, (".jpg", ".png")),
        ({"frame": (224, 224), "grid": (80, 80)}, (".webp", ".png")),
        ({"frame": (224, 224), "grid": (81, 81)}, (".webp", ".jpg")),
    ],
)
def test_small_tiles_and_coarse_maps_are_stored_without_loss(options, endings):
    style = _style(**options)
    assert (style.card_ending, style.strips_ending) == endings
