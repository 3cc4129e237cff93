"""Pictures of a layer's hits: their projections, drawn and laid out in plates."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, TypeAlias, TypeVar

import numpy as np
from numpy.typing import NDArray

from onnxviz.atlas import LayerAtlas
from onnxviz.errors import ImageError, UnitError, UsageError
from onnxviz.forward.topk import Hit, TopK
from onnxviz.images import render
from onnxviz.images.gallery import Gallery
from onnxviz.images.plates import Box, HitTiles, Picture, Plate, PlateStyle, side_by_side
from onnxviz.images.preprocess import Preprocess
from onnxviz.images.source import open_source
from onnxviz.interrupts import held_interrupts
from onnxviz.model.layers import Layer
from onnxviz.network import Network
from onnxviz.places import compared_path, picture_paths, plate_style
from onnxviz.recorder import Recorder, Wanted
from onnxviz.reverse.engine import Recording
from onnxviz.reverse.methods import Method
from onnxviz.reverse.project import Projector
from onnxviz.runtime import cores

__all__ = ["SEEDS", "Way", "draw_layer", "project_image", "wanted_maps", "write_montage"]

Array: TypeAlias = NDArray[Any]
T = TypeVar("T")

SEEDS = ("unit", "map")
"""Project the strongest unit alone, or its channel's whole map."""

_HITS_IN_MEMORY = 1152
_HITS_AT_ONCE = 64
_DRAWN_AT_ONCE = 16
_LEAST_SIDE = 48
_CARD_QUALITY = 70
"""Of cards that are stored with loss, in JPEG's terms."""


@dataclass(frozen=True)
class _Wanted:
    """One hit to draw: for ``channel`` (None: all channels together), at ``place`` among its hits."""

    channel: int | None
    place: int
    hit: Hit


def _wanted(item: _Wanted) -> Wanted:
    return Wanted(item.hit.image, item.channel)


def wanted_maps(one: LayerAtlas) -> list[Wanted]:
    """The maps that drawing a layer needs."""
    found = [Wanted(hit.image, None) for hit in one.overall_hits]
    return found + [Wanted(hit.image, channel) for channel in one.alive for hit in one.topk.hits(channel)]


@dataclass(frozen=True)
class Way:
    """A way to project hits: the network, or the one with shuffled weights (``control``), and the method.

    In the control a unit's own activation means nothing, and is often nought: it is seeded with 1.
    """

    network: Network
    recorder: Recorder
    method: Method
    control: bool = False


def draw_layer(
    one: LayerAtlas,
    ways: Sequence[Way],
    gallery: Gallery,
    preprocess: Preprocess,
    out: Path,
    *,
    seed: str = "unit",
    montage: bool = False,
    begin: Callable[[LayerAtlas], None] | None = None,
    before: Callable[[LayerAtlas, int], bool] | None = None,
    progress: Callable[[int], None] | None = None,
    resumed: Callable[[int], None] | None = None,
) -> LayerAtlas:
    """Draw every pictured channel of a layer, and the row of all channels, into ``out``.

    Args:
        ways: how to project; what the others than the first give is for comparison.
        seed: one of `SEEDS`.
        montage: also write all cards as one PNG.
        begin: called with the layer once the positions of the row of all channels are known, before a picture is
            written.
        before: says of a channel whether its pictures are there already. A group of channels that has all is not drawn
            again, unless a montage needs it: whole groups, so that no picture depends on where a run was cut off.
        progress: called with the number of projections drawn since the last call.
        resumed: called with the number of those that were there already.

    Returns:
        The layer with its montage, and with the positions of the row of all channels filled in.
    """
    overall, alive = one.overall, one.alive
    cards: dict[int, Future[Array]] = {}
    with held_interrupts() as check, ThreadPoolExecutor(min(max(cores(), 2), 4), "onnxviz-draw") as pool:
        working: list[Future[Any]] = []

        def later(work: Callable[..., Any], *arguments: Any) -> Future[Any]:
            working.append(pool.submit(work, *arguments))
            return working[-1]

        def wait() -> None:
            for future in working:
                future.result()
                check()
            working.clear()

        def drawn(count: int) -> None:
            check()
            if progress:
                progress(count)

        artist, *others = [_Artist(way, one, gallery, preprocess, seed, later, drawn) for way in ways]
        tiles: list[HitTiles] = []
        if one.overall_hits:
            overall, tiles = artist.overall()
        if begin:
            begin(replace(one, overall=overall))
        (out / picture_paths(one.slug, None, artist.style)[0]).parent.mkdir(parents=True, exist_ok=True)
        for hit in one.overall_hits:
            gallery.thumbnail(hit.image, later)
        if tiles:
            compared = [other.overall_projections(overall) for other in others]
            later(_write, tiles, compared, out, one.slug, None, artist.style)
        step = max(1, _HITS_IN_MEMORY // (one.topk.score.shape[1] * len(ways)))
        for start in range(0, len(alive), step):
            group = alive[start : start + step]
            if before and not montage and all(before(one, channel) for channel in group):
                if resumed:
                    resumed(sum(len(one.topk.hits(channel)) for channel in group) * len(ways))
                continue
            found = artist.channels(group)
            projections = [other.projections(group) for other in others]
            wait()  # files are written while the next group is drawn, but must not fall behind by more than one
            for channel in group:
                compared = [of[channel] for of in projections]
                written = later(_write, found[channel], compared, out, one.slug, channel, artist.style)
                if montage:
                    cards[channel] = written
        wait()
    shown = {channel: card.result() for channel, card in cards.items()}
    return replace(one, overall=overall, montage=write_montage(shown, one, out) if shown else None)


def _write(
    tiles: Sequence[HitTiles],
    compared: Sequence[Sequence[Picture]],
    out: Path,
    slug: str,
    channel: int | None,
    style: PlateStyle,
) -> Array:
    """Lay out and write a channel's pictures, and return its card."""
    plate = Plate.of(tiles)
    card, strips = picture_paths(slug, channel, style)
    render.save(plate.card, out / card, lossless=True, quality=_CARD_QUALITY)
    render.save(plate.strips, out / strips, quality=_CARD_QUALITY)
    if compared:
        path = out / compared_path(slug, channel, style)
        render.save(side_by_side(compared), path, lossless=True, quality=_CARD_QUALITY)
    return plate.card


def write_montage(cards: Mapping[int, Array], one: LayerAtlas, out: Path) -> str:
    """Write all cards as one PNG into ``out``, under their channels' numbers, and return its path there.

    Cards of few hits are filled up with grey, small ones enlarged.
    """
    names = [f"{c} {one.names[c]}" if one.names else str(c) for c in cards]
    path = f"{one.slug}-top{one.top}.png"
    render.save(render.montage(render.alike(list(cards.values()), 144), names), out / path)
    return path


@dataclass(frozen=True)
class _Part:
    """Some hits and what is to be drawn of them: pixels (m, C, h, w) over their boxes, and maps (m, …)."""

    items: Sequence[_Wanted]
    pixels: Array
    maps: Array
    boxes: Sequence[Box]

    def pieces(self) -> Iterator[_Part]:
        """The same in parts of `_DRAWN_AT_ONCE`."""
        for start in range(0, len(self.items), _DRAWN_AT_ONCE):
            some = slice(start, start + _DRAWN_AT_ONCE)
            yield _Part(self.items[some], self.pixels[some], self.maps[some], self.boxes[some])


def _cropped(projections: Array, boxes: Sequence[Box]) -> Array:
    """The parts (m, C, h, w) of whole-frame projections (m, C, H, W) that lie in boxes, zero outside the frame."""
    frames = np.moveaxis(projections, 1, -1)
    cut = [render.crop(frame, box, fill=0) for frame, box in zip(frames, boxes, strict=True)]
    return np.moveaxis(np.stack(cut), -1, 1)


class _Artist:
    """Projects and draws hits of one layer in one way."""

    def __init__(
        self,
        way: Way,
        one: LayerAtlas,
        gallery: Gallery,
        preprocess: Preprocess,
        seed: str,
        later: Callable[..., Future[Any]],
        progress: Callable[[int], None],
    ) -> None:
        self.network, self.recorder, self.control = way.network, way.recorder, way.control
        self.one, self.layer = one, one.layer
        self.gallery, self.preprocess, self.seed = gallery, preprocess, seed
        self.method = way.method
        self.unit_method = replace(way.method, unit_seed=True) if way.control else way.method
        self.style = plate_style(one.layer, self.network.size)
        self.later, self.progress = later, progress

    def channels(self, channels: Sequence[int]) -> dict[int, list[HitTiles]]:
        """Tiles of each channel's hits, best first. Each image is run forward once for all of them."""

        def draw(part: _Part) -> Future[Sequence[HitTiles]]:
            for item in part.items:
                self.gallery.thumbnail(item.hit.image, self.later)  # while the image is at hand
            return self._tiles(part)

        return self._drawn(channels, draw)

    def projections(self, channels: Sequence[int]) -> dict[int, list[Picture]]:
        """The projections of each channel's hits alone, best first."""
        return self._drawn(channels, self._projections)

    def overall(self) -> tuple[TopK, list[HitTiles]]:
        """Tiles of the images that excite the layer as a whole, and where each is strongest."""
        tiles: dict[int, HitTiles] = {}
        y, x = self.one.overall.y.copy(), self.one.overall.x.copy()
        for items, projections, means in self._draw_overall():
            boxes = []
            for item, mean in zip(items, means, strict=True):
                at = tuple(int(i) for i in np.unravel_index(int(mean.argmax()), self.layer.grid))
                y[0, item.place], x[0, item.place] = at
                boxes.append(self.layer.box(at[0], at[1]))
            part = _Part(items, _cropped(projections, boxes), means, boxes)
            tiles |= zip((item.place for item in items), self._tiles(part).result(), strict=True)
        return replace(self.one.overall, y=y, x=x), [tile for _, tile in sorted(tiles.items())]

    def overall_projections(self, overall: TopK) -> list[Picture]:
        """The projections of these images alone, in the places that another way found them strongest."""
        tiles: dict[int, Picture] = {}
        hits = overall.hits(0)
        for items, projections, means in self._draw_overall():
            boxes = [self.layer.box(hits[item.place].y, hits[item.place].x) for item in items]
            part = _Part(items, _cropped(projections, boxes), means, boxes)
            tiles |= zip((item.place for item in items), self._projections(part).result(), strict=True)
        return [tile for _, tile in sorted(tiles.items())]

    def _drawn(
        self, channels: Sequence[int], draw: Callable[[_Part], Future[Sequence[T]]]
    ) -> dict[int, list[T]]:
        """What ``draw`` makes of each channel's hits, best first: one part of them while the next is projected."""
        found: dict[int, dict[int, T]] = {c: {} for c in channels}
        waiting: list[tuple[Sequence[_Wanted], Future[Sequence[T]]]] = []

        def take() -> None:
            for items, future in waiting:
                for item, one in zip(items, future.result(), strict=True):
                    assert item.channel is not None
                    found[item.channel][item.place] = one
                self.progress(len(items))

        for part in self._parts(channels):
            following = [(piece.items, draw(piece)) for piece in part.pieces()]
            take()
            waiting = following
        take()
        return {channel: [of[place] for place in sorted(of)] for channel, of in found.items()}

    def _parts(self, channels: Sequence[int]) -> Iterator[_Part]:
        """All hits of the channels, in any order."""
        wanted = [_Wanted(c, place, hit) for c in channels for place, hit in enumerate(self.one.topk.hits(c))]
        windows = self.seed == "unit"
        method = self.unit_method if windows else self.method
        projector = self.network.projector(self.layer, method, windows=windows)
        for images, items in self._by_image(wanted, self.recorder.images_at_once(projector)):
            recording = self.recorder.recording(projector, images)
            row_of = {image: row for row, image in enumerate(images)}
            rows = np.array([row_of[item.hit.image] for item in items])
            own = self.recorder.maps(projector, recording, images, map(_wanted, items))
            if windows:
                units = np.array(
                    [[row, i.channel, i.hit.y, i.hit.x] for row, i in zip(rows, items, strict=True)]
                )
                parts = projector.units(recording, units, own)
            else:
                assert own is not None
                chosen = np.array([item.channel for item in items])
                parts = self._whole_maps(projector, recording, rows, chosen, own)
            for part, (pixels, maps) in parts:
                boxes = [self.layer.box(item.hit.y, item.hit.x) for item in items[part]]
                yield _Part(items[part], pixels if windows else _cropped(pixels, boxes), maps, boxes)

    def _whole_maps(
        self, projector: Projector, recording: Recording, rows: Array, channels: Array, maps: Array
    ) -> Iterator[tuple[slice, tuple[Array, Array]]]:
        for start in range(0, len(rows), _HITS_AT_ONCE):
            part = slice(start, start + _HITS_AT_ONCE)
            own = maps[part]
            seeds = np.zeros((len(own), self.layer.channels, *own.shape[1:]), np.float32)
            seeds[np.arange(len(seeds)), channels[part]] = self._seeded(own)
            found = projector.maps(seeds, recording, rows[part])
            yield part, (self.network.image.to_nchw(found), own)

    def _seeded(self, maps: Array) -> Array:
        if self.method.unit_seed:
            return np.ones_like(maps)
        return np.maximum(maps, 0) if self.method.rectified_maps else maps

    def _draw_overall(self) -> Iterator[tuple[list[_Wanted], Array, Array]]:
        """Images of the row of all channels: projections on the frame, and the mean of each one's positive maps."""
        wanted = [_Wanted(None, place, hit) for place, hit in enumerate(self.one.overall_hits)]
        projector = self.network.projector(self.layer, self.method, windows=False)
        for images, items in self._by_image(wanted, self.recorder.images_at_once(projector)):
            recording = self.recorder.recording(projector, images)
            maps = self.recorder.maps(projector, recording, images, map(_wanted, items))
            assert maps is not None  # whole maps are never projected by a graph that makes them itself
            # A channel that is not finite in an image did not count in the ranking, nor does it here.
            finite = np.isfinite(maps).all(axis=tuple(range(2, maps.ndim)), keepdims=True)
            maps = np.where(finite, maps, np.float32(0))
            rows = np.array([images.index(item.hit.image) for item in items])
            found = projector.maps(self._seeded(maps), recording, rows)
            yield items, self.network.image.to_nchw(found), np.stack([np.maximum(x, 0).mean(0) for x in maps])
            self.progress(len(items))

    def _by_image(self, wanted: Sequence[_Wanted], step: int) -> Iterator[tuple[list[int], list[_Wanted]]]:
        """Hits grouped by image, ``step`` images at a time."""
        groups: dict[int, list[_Wanted]] = {}
        for item in wanted:
            groups.setdefault(item.hit.image, []).append(item)
        images = sorted(groups)
        for start in range(0, len(images), step):
            chunk = images[start : start + step]
            yield chunk, [item for image in chunk for item in groups[image]]

    def _projections(self, part: _Part) -> Future[Sequence[Picture]]:
        pixels = part.pixels
        if self.control:
            # Weights in random order need not keep values in range.
            pixels = np.nan_to_num(pixels, nan=0, posinf=0, neginf=0)
        return self.later(self.style.projections, self.preprocess.display(pixels))

    def _tiles(self, part: _Part) -> Future[Sequence[HitTiles]]:
        pictures = [self.gallery.picture(item.hit.image) for item in part.items]
        projections = self.preprocess.display(part.pixels)
        maps = part.maps.reshape(len(pictures), *self.layer.grid)
        return self.later(self.style.tiles, pictures, projections, maps, part.boxes)


def project_image(
    network: Network,
    preprocess: Preprocess,
    image: Path,
    layer: Layer,
    channel: int,
    position: tuple[int, int] | None,
    method: Method,
    out: Path,
) -> tuple[tuple[int, int], float, tuple[int, int, int, int]]:
    """Project one unit of one image and write image (its field boxed) and projection side by side as PNG.

    Returns:
        The unit (y, x), its activation, and its receptive field: top, left, bottom, right.

    Raises:
        ImageError: the image cannot be read.
        UnitError: no such channel or position.
    """
    if out.suffix.lower() != ".png":
        raise UsageError(f"--out {out}: the picture is a PNG; end its name in .png.")
    sample = open_source(image).samples[0]
    try:
        array = preprocess(sample.read())
    except ImageError as error:
        # A reader names its image, the preprocessing does not.
        raise ImageError(f"{sample.name}: {str(error).removeprefix(f'{sample.name}: ')}") from error
    x = preprocess.batch([array])
    maps = network.activations(x, layer)[0]
    if not 0 <= channel < layer.channels:
        raise UnitError(
            f"Layer {layer} has channels 0 to {layer.channels - 1}; there is no channel {channel}."
        )
    grid = maps[channel].reshape(layer.grid)
    at = position or tuple(int(i) for i in np.unravel_index(int(grid.argmax()), grid.shape))
    if any(not 0 <= v < n for v, n in zip(at, grid.shape, strict=True)):
        what = (
            f"is {'×'.join(map(str, layer.size))} units"
            if layer.size
            else "is a vector: leave --position out"
        )
        raise UnitError(f"Layer {layer} {what}; there is no unit {at}.")
    found = network.project_units(x, layer, np.array([[0, channel, *at]]), method)
    box = layer.box(at[0], at[1])
    scale = max(1, round(320 / max(network.size)))
    tall, wide = (max(scale, -(-_LEAST_SIDE // n)) for n in network.size)
    scaled = (box[0] * tall, box[1] * wide, box[2] * tall, box[3] * wide)
    picture = np.broadcast_to(preprocess.picture(array), (*network.size, 3))
    full = render.place_on_frame(preprocess.display(found.pixels[0]), box, network.size)
    sheet = render.grid(
        [
            render.outlined(picture.repeat(tall, 0).repeat(wide, 1), scaled),
            render.projection_rgb(full).repeat(tall, 0).repeat(wide, 1),
        ],
        2,
        gap=4,
    )
    render.save(sheet, out)
    return (at[0], at[1]), float(grid[at]), box
