"""What a report shows, as plain typed data: filled by `onnxviz.findings`, read by the templates and the JSON.

All picture references are paths relative to the report's folder, with ``/``.
"""

from __future__ import annotations

from dataclasses import dataclass

__all__ = [
    "ChannelData",
    "ClassShare",
    "DiagramNode",
    "FilterBank",
    "FilterData",
    "Histogram",
    "HitData",
    "LayerData",
    "ModelData",
    "Provenance",
    "Related",
    "ReportData",
    "Sprite",
    "Variant",
]


@dataclass(frozen=True)
class Sprite:
    """A grid of equal tiles in one picture file.

    ``tile`` is a tile's (height, width) in the file's own pixels; ``pixelated`` asks the browser to enlarge
    without smoothing (small receptive fields are stored at their native size).
    """

    path: str
    rows: int
    columns: int
    tile: tuple[int, int]
    pixelated: bool


@dataclass(frozen=True)
class HitData:
    """One of a channel's top images: where its strongest unit is, and how strong."""

    rank: int  # 1 is the strongest
    score: float  # what the ranking used (the maximum, or the sum over the map)
    activation: float  # of the unit at (y, x)
    image: str  # name, as the data set gives it
    label: str | None  # class, if known
    y: int  # unit position in the feature map
    x: int
    box: tuple[int, int, int, int]  # receptive field: top, left, bottom, right in input pixels, not clipped
    thumbnail: str  # the whole image as the network saw it


@dataclass(frozen=True)
class Histogram:
    """How many images of a sample reach which largest activation: ``counts`` of equal parts from low to high."""

    low: float
    high: float
    counts: tuple[int, ...]


@dataclass(frozen=True)
class ClassShare:
    """A class among a channel's hits, and its share of the sampled images, 0..1."""

    label: str
    hits: int
    share: float


@dataclass(frozen=True)
class Related:
    """Another channel of the layer that goes up and down with this one: Pearson's r of the largest activations."""

    index: int
    r: float


@dataclass(frozen=True)
class ChannelData:
    """A channel and its hits, strongest first; ``index`` is None for the row of all channels together.

    ``card`` is one picture: a square-ish grid of projections beside the same grid of patches, both in rank
    order, row by row (for nine hits: 3×3 | 3×3, 3 rows and 6 columns; with fewer hits the last tiles are
    blank). ``strips`` has one column a hit and two rows, in the order of ``STRIP_ROWS``. ``compared`` has a grid
    of projections, as the card's, for each of `Provenance.compared`, side by side. All are None for a dead channel.
    """

    index: int | None
    name: str | None  # class name of an output unit, if known
    dead: bool  # the largest activation over all images is not above 0
    largest: float
    mean: float  # over all images and positions
    activity: float  # share of images in which some unit of the channel is above 0, 0..1
    selectivity: float  # lifetime sparseness: 0 if all images excite it alike, 1 if only one does
    histogram: Histogram | None  # None without images, and for all channels together
    classes: tuple[ClassShare, ...]  # among the hits, the commonest first; empty without classes
    related: tuple[Related, ...]  # most alike first, of the channels that the report shows
    hits: tuple[HitData, ...]
    card: Sprite | None
    strips: Sprite | None
    compared: Sprite | None


STRIP_ROWS = ("map_field", "map_whole")
"""Rows of a channel's ``strips``: the activation map inside the receptive field, and on the whole frame. The other
pictures of a hit are tiles of the ``card``, and `HitData.thumbnail`."""


@dataclass(frozen=True)
class LayerData:
    """A layer that was analysed."""

    name: str
    alias: str
    op: str
    slug: str  # unique, safe as a file and folder name: [a-z0-9_-]+
    channels: int  # in the network; `rows` may hold fewer
    size: tuple[int, ...]  # spatial size of the output (height, width), or () for a vector
    receptive_field: tuple[int, int]  # height, width in input pixels
    stride: tuple[int, int] | None  # input pixels from a unit to the next; None if it sees the whole image
    dead: int  # of all channels, shown or not
    near_dead: int  # above 0 in less than 1 % of the images, but in some
    activity: float  # mean over channels of the share of images that excite them
    all_channels: ChannelData
    rows: tuple[ChannelData, ...]
    montage: str | None  # PNG of all top-nine grids, if asked for

    @property
    def title(self) -> str:
        """What to call the layer: its own name, unless that is too long for a heading."""
        return self.name if len(self.name) <= 32 else self.alias

    @property
    def subtitle(self) -> str:
        """Its other name, or "" if there is none."""
        other = self.alias if self.title == self.name else self.name
        return other if other != self.title else ""


@dataclass(frozen=True)
class FilterData:
    """A filter of the first convolution: the root of its weights' mean square, and whether that is unusual."""

    index: int
    rms: float
    state: str | None  # "dead", "dominating"


@dataclass(frozen=True)
class FilterBank:
    """The filters of the first convolution, which reads the image itself.

    ``shared`` has them all on one scale, ``own`` each on its own: the largest weight at full contrast, zero grey.
    """

    layer: str  # its name
    size: tuple[int, int]  # height, width
    median: float  # of the filters' RMS
    shared: Sprite
    own: Sprite
    filters: tuple[FilterData, ...]


@dataclass(frozen=True)
class DiagramNode:
    """A node of the diagram. ``inputs`` are ids of earlier nodes; the input image has op ``Input``."""

    id: str
    op: str
    label: str  # a short name, such as the alias
    title: str  # the node's full name, for a tooltip
    detail: str  # output size, such as "64×55×55"
    inputs: tuple[str, ...]
    slug: str | None  # of the analysed layer that this node makes, else None
    setting: str = ""  # what tells it from others of its operator: "3×3, stride 2, depthwise"


@dataclass(frozen=True)
class ModelData:
    """The model, as read from its file."""

    name: str
    file: str
    sha256: str
    producer: str
    opset: int
    input: str  # "data: float32 N×3×227×227 (NCHW)"
    nodes: int
    parameters: int


@dataclass(frozen=True)
class Variant:
    """One more way in which the hits were projected: another method, or one with shuffled weights (``control``)."""

    method: str
    control: bool
    policies: tuple[tuple[str, str], ...]


@dataclass(frozen=True)
class Provenance:
    """How the report came about."""

    date: str  # ISO 8601, UTC
    command: str | None
    data_set: str  # "photos/ (1,203 images, 2 skipped)" or the description of the built-in samples
    images: int
    sampled: int  # of them, the images that histograms, selectivity and correlations are of
    skipped: tuple[tuple[str, str], ...]  # (name, reason)
    classes: tuple[tuple[str, int], ...]  # (label, images)
    input_size: tuple[int, int]  # height, width of the frame that the network saw
    preprocess: str
    preprocess_origin: str
    method: str
    policies: tuple[tuple[str, str], ...]  # ("overlapping pools", "sum"), …
    compared: tuple[
        Variant, ...
    ]  # other methods first, then the controls, that of `method` before the others
    ranking: str
    seed: str
    provider: str
    versions: tuple[tuple[str, str], ...]
    notes: tuple[str, ...]  # anything that the reader should know (batch fixed, built-in samples …)


@dataclass(frozen=True)
class ReportData:
    """Everything that a report shows."""

    title: str
    model: ModelData
    provenance: Provenance
    diagram: tuple[DiagramNode, ...]
    filters: FilterBank | None  # None where the first layer's filters are no pictures
    layers: tuple[LayerData, ...]
