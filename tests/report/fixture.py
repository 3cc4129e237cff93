"""A report's data with painted pictures: plausible enough to look at, quick enough for tests."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
from PIL import Image

from onnxviz.report.data import (
    ChannelData,
    ClassShare,
    DiagramNode,
    FilterBank,
    FilterData,
    Histogram,
    HitData,
    LayerData,
    ModelData,
    Provenance,
    Related,
    ReportData,
    Sprite,
    Variant,
)

HOSTILE = (
    '"><script>alert(1)</script>',
    "'; DROP TABLE layers; --",
    "../../../etc/passwd",
    "🦊 {{ 7 * 7 }} {% raw %}",
    "שלום \u202egpj.exe",
    "<img src=x onerror=alert(1)>",
    "x" * 300,
    "broken \udc80 name",
)
FRAME = 224


class DiagramBuilder:
    """Adds nodes one after the other; aliases count by op, as onnxviz names layers."""

    SHORT = {  # noqa: RUF012
        "BatchNormalization": "bn",
        "MaxPool": "pool",
        "GlobalAveragePool": "pool",
        "AveragePool": "pool",
        "Gemm": "fc",
    }

    def __init__(self) -> None:
        self.nodes = [DiagramNode("input", "Input", "data", "data", "3×224×224", (), None)]
        self.count: dict[str, int] = {}

    def add(self, op: str, *inputs: str, detail: str = "", title: str = "") -> str:
        short = self.SHORT.get(op, op.lower())
        self.count[short] = self.count.get(short, 0) + 1
        label = f"{short}{self.count[short]}"
        self.nodes.append(DiagramNode(label, op, label, title or f"/net/{label}/{op}", detail, inputs, None))
        return label

    def conv(self, source: str, detail: str, *, norm: bool = False, relu: bool = True) -> str:
        source = self.add("Conv", source, detail=detail)
        if norm:
            source = self.add("BatchNormalization", source, detail=detail)
        return self.add("Relu", source, detail=detail) if relu else source


def plain() -> tuple[DiagramNode, ...]:
    """A chain like the small MNIST net."""
    net = DiagramBuilder()
    at = net.add("MaxPool", net.conv("input", "32×28×28"), detail="32×14×14")
    at = net.add("MaxPool", net.conv(at, "64×14×14"), detail="64×7×7")
    at = net.add("Flatten", at, detail="3136")
    at = net.add("Relu", net.add("Gemm", at, detail="1024"), detail="1024")
    net.add("Softmax", net.add("Gemm", at, detail="10"), detail="10")
    return tuple(net.nodes)


def squeezenet() -> tuple[DiagramNode, ...]:
    """66 nodes: eight fire modules."""
    net = DiagramBuilder()
    at = net.add("MaxPool", net.conv("input", "64×111×111"), detail="64×55×55")
    for fire, (squeeze, expand) in enumerate(
        [(16, 64), (16, 64), (32, 128), (32, 128), (48, 192), (48, 192), (64, 256), (64, 256)]
    ):
        side = (55, 55, 27, 27, 13, 13, 13, 13)[fire]
        if fire in (2, 4):
            at = net.add("MaxPool", at, detail=f"{expand}×{side}×{side}")
        at = net.conv(at, f"{squeeze}×{side}×{side}")
        left, right = (net.conv(at, f"{expand}×{side}×{side}") for _ in range(2))
        at = net.add("Concat", left, right, detail=f"{2 * expand}×{side}×{side}")
    at = net.conv(net.add("Dropout", at, detail="512×13×13"), "1000×13×13")
    net.add("Reshape", net.add("GlobalAveragePool", at, detail="1000×1×1"), detail="1000")
    return tuple(net.nodes)


def resnet(blocks: Sequence[int] = (3, 4, 6, 3)) -> tuple[DiagramNode, ...]:
    """ResNet-50 by default: bottlenecks with skips."""
    net = DiagramBuilder()
    at = net.add("MaxPool", net.conv("input", "64×112×112", norm=True), detail="64×56×56")
    for stage, repeat in enumerate(blocks):
        width, side = 64 << stage, 56 >> stage
        for block in range(repeat):
            main = net.conv(at, f"{width}×{side}×{side}", norm=True)
            main = net.conv(main, f"{width}×{side}×{side}", norm=True)
            main = net.conv(main, f"{4 * width}×{side}×{side}", norm=True, relu=False)
            skip = at if block else net.conv(at, f"{4 * width}×{side}×{side}", norm=True, relu=False)
            detail = f"{4 * width}×{side}×{side}"
            at = net.add("Relu", net.add("Add", main, skip, detail=detail), detail=detail)
    at = net.add("Flatten", net.add("GlobalAveragePool", at, detail="2048×1×1"), detail="2048")
    net.add("Gemm", at, detail="1000")
    return tuple(net.nodes)


def inception(modules: int = 9) -> tuple[DiagramNode, ...]:
    """GoogLeNet-like: four branches a module."""
    net = DiagramBuilder()
    at = net.add("MaxPool", net.conv("input", "64×112×112"), detail="64×56×56")
    at = net.add("LRN", at, detail="64×56×56")
    at = net.add("MaxPool", net.conv(net.conv(at, "64×56×56"), "192×56×56"), detail="192×28×28")
    for module in range(modules):
        side = 28 if module < 2 else 14 if module < 7 else 7
        one = net.conv(at, f"64×{side}×{side}")
        three = net.conv(net.conv(at, f"96×{side}×{side}"), f"128×{side}×{side}")
        five = net.conv(net.conv(at, f"16×{side}×{side}"), f"32×{side}×{side}")
        pool = net.conv(net.add("MaxPool", at, detail=f"192×{side}×{side}"), f"32×{side}×{side}")
        at = net.add("Concat", one, three, five, pool, detail=f"256×{side}×{side}")
    at = net.add("Dropout", net.add("AveragePool", at, detail="1024×1×1"), detail="1024×1×1")
    net.add("Softmax", net.add("Gemm", at, detail="1000"), detail="1000")
    return tuple(net.nodes)


def densenet(layers: Sequence[int] = (6, 12, 24, 16)) -> tuple[DiagramNode, ...]:
    """DenseNet-121 by default: each layer reads all before it in its block."""
    net = DiagramBuilder()
    width, side = 64, 56
    at = net.add("MaxPool", net.conv("input", "64×112×112", norm=True), detail=f"{width}×{side}×{side}")
    for block, repeat in enumerate(layers):
        if block:
            width, side = width // 2, side // 2
            at = net.add("Relu", net.add("BatchNormalization", at, detail=""), detail="")
            at = net.add("AveragePool", net.add("Conv", at), detail=f"{width}×{side}×{side}")
        made = [at]
        for _ in range(repeat):
            detail = f"{width}×{side}×{side}"
            at = net.add("Relu", net.add("BatchNormalization", at, detail=detail), detail=detail)
            made.append(net.add("Conv", net.conv(at, f"128×{side}×{side}"), detail=f"32×{side}×{side}"))
            width += 32
            at = net.add("Concat", *made, detail=f"{width}×{side}×{side}")
    at = net.add("Relu", net.add("BatchNormalization", at, detail=""), detail="")
    net.add("Gemm", net.add("GlobalAveragePool", at, detail=f"{width}×1×1"), detail="1000")
    return tuple(net.nodes)


def unet(depth: int = 4) -> tuple[DiagramNode, ...]:
    """Long skips over everything: no place to break a line."""
    net = DiagramBuilder()
    at, skips = "input", []
    for level in range(depth):
        at = net.conv(net.conv(at, f"{32 << level}"), f"{32 << level}")
        skips.append(at)
        at = net.add("MaxPool", at)
    for skip in reversed(skips):
        at = net.conv(net.add("Concat", net.add("ConvTranspose", at), skip), "")
    net.add("Conv", at, detail="2×224×224")
    return tuple(net.nodes)


def make_report(
    out: Path,
    *,
    layers: int = 2,
    channels: int = 6,
    top: int = 9,
    hostile: bool = False,
    diagram: tuple[DiagramNode, ...] | None = None,
    photos: Path | None = None,
    compared: Sequence[tuple[str, bool]] = (),
) -> ReportData:
    """Paint pictures into ``out`` and return data that refers to them; the last layer is a vector.

    ``compared``: methods to compare with, and whether with shuffled weights.
    """
    rng = np.random.default_rng(7)
    out.mkdir(parents=True, exist_ok=True)
    (out / "pictures").mkdir(exist_ok=True)
    images = _images(rng, photos)
    for i, image in enumerate(images):
        Image.fromarray(image).save(out / "pictures" / f"image {i}#%.png")
    nodes = list(diagram if diagram is not None else squeezenet())
    candidates = [i for i, node in enumerate(nodes) if node.op in ("Conv", "Gemm")]
    chosen = sorted({candidates[round(k)] for k in np.linspace(0, len(candidates) - 1, layers)})
    result = []
    for place, i in enumerate(chosen):
        slug = f"{nodes[i].label}-{place}"
        nodes[i] = DiagramNode(**{**vars(nodes[i]), "slug": slug})
        vector = layers > 1 and place == len(chosen) - 1
        field = FRAME if vector else min(FRAME, 11 + 40 * place)
        painter = _Painter(rng, images, out, slug, field, top, len(compared))
        rows = [painter.channel(c, dead=c % 17 == 5, hostile=hostile, named=vector) for c in range(channels)]
        rows = [
            row
            if row.dead
            else replace(
                row, related=tuple(Related(i, 0.9 - 0.1 * i) for i in range(min(3, channels)) if i != c)
            )
            for c, row in enumerate(rows)
        ]
        result.append(
            LayerData(
                name=HOSTILE[place % len(HOSTILE)] if hostile else nodes[i].title,
                alias=HOSTILE[(place + 1) % len(HOSTILE)] if hostile else nodes[i].label,
                op=nodes[i].op,
                slug=slug,
                channels=channels + 3 * place,
                size=() if vector else (FRAME // (2 << place), FRAME // (2 << place)),
                receptive_field=(field, field),
                stride=None if vector else (2 << place, 2 << place),
                dead=sum(row.dead for row in rows),
                near_dead=sum(0 < row.activity < 0.01 for row in rows),
                activity=float(np.mean([row.activity for row in rows])),
                all_channels=painter.channel(None, dead=False, hostile=hostile, named=False),
                rows=tuple(rows),
                montage=None,
            )
        )
    if hostile:
        nodes = [
            DiagramNode(
                n.id, n.op, HOSTILE[i % len(HOSTILE)], HOSTILE[(i + 3) % 8], n.detail, n.inputs, n.slug
            )
            for i, n in enumerate(nodes)
        ]
    bad = HOSTILE if hostile else ("holiday/IMG_0042.jpg", "holiday/notes.png")
    return ReportData(
        title=HOSTILE[0] if hostile else "SqueezeNet 1.1",
        model=ModelData(
            name=HOSTILE[5] if hostile else "squeezenet1_1",
            file=HOSTILE[0] if hostile else "models/squeezenet1_1.onnx",
            sha256="b0a1c2d3e4f5968778695a4b3c2d1e0f" * 2,
            producer=HOSTILE[3] if hostile else "pytorch 2.4.0",
            opset=17,
            input="data: float32 N×3×224×224 (NCHW)",
            nodes=len(nodes) - 1,
            parameters=1235496,
        ),
        provenance=Provenance(
            date="2025-11-22T14:43:10+00:00",
            command=f"onnxviz analyze {HOSTILE[1]}"
            if hostile
            else "onnxviz analyze models/squeezenet1_1.onnx "
            "--layer all --images holiday/ --top 9 --method deconvnet",
            data_set=HOSTILE[0] if hostile else "holiday/ (1,203 images, 2 skipped)",
            images=1203,
            sampled=602,
            skipped=tuple((name, f"cannot be read as an image: {name[:9]}") for name in bad),
            classes=tuple((name, 17 * i) for i, name in enumerate(HOSTILE if hostile else CLASSES)),
            input_size=(FRAME, FRAME),
            preprocess="resize shorter side to 256, centre crop 224×224, RGB, "
            "mean (0.485, 0.456, 0.406), std (0.229, 0.224, 0.225)",
            preprocess_origin="the model's metadata",
            method="deconvnet",
            policies=(("overlapping pools", "sum"), ("LRN", "identity"), ("other activations", "rectify")),
            compared=tuple(Variant(method, control, (("LRN", "identity"),)) for method, control in compared),
            ranking="max",
            seed="unit",
            provider="CPU",
            versions=(("onnxviz", "0.1.0"), ("onnxruntime", "1.31.1"), ("Python", "3.11.9")),
            notes=(HOSTILE[5],)
            if hostile
            else ("The model is fixed at batch 1; it ran at 32 after a check.",),
        ),
        diagram=tuple(nodes),
        filters=_filters(rng, out, result[0].name, channels),
        layers=tuple(result),
    )


def make_wall(out: Path, channels: int) -> ReportData:
    """A report on one layer of very many channels: cards of 330×165 px, each a file of its own, of 1,000 classes.

    Most cards repeat what others show: a browser cannot know, and they are painted in no time.
    """
    data = make_report(out, layers=1, channels=1, diagram=plain())
    layer, rng = data.layers[0], np.random.default_rng(8)
    painted = []
    for i in range(24):
        # Smooth shapes with some grain: such files are as large as those of photographs.
        coarse = Image.fromarray(rng.integers(0, 255, (12, 24, 3)).astype(np.uint8))
        smooth = np.asarray(coarse.resize((330, 165), Image.Resampling.BICUBIC))
        card = out / "pictures" / f"painted {i}.webp"
        Image.fromarray(np.uint8(0.7 * smooth + 0.3 * rng.integers(0, 255, smooth.shape))).save(
            card, quality=70
        )
        painted.append(card.read_bytes())
    first = layer.rows[0]
    assert first.card is not None
    rows = []
    for c in range(channels):
        path = f"pictures/wall-{c}.webp"
        (out / path).write_bytes(painted[c % len(painted)])
        hits = tuple(
            replace(hit, label=f"{CLASSES[k % 7]} of kind {k}")
            for hit, k in zip(first.hits, rng.integers(0, 1000, len(first.hits)), strict=True)
        )
        rows.append(
            replace(
                first,
                index=c,
                largest=float(rng.gamma(4, 8)),
                activity=float(rng.beta(1, 2)),
                selectivity=float(rng.beta(2, 2)),
                hits=hits,
                card=Sprite(path, 3, 6, (55, 55), False),
            )
        )
    return replace(data, layers=(replace(layer, channels=channels, rows=tuple(rows)),))


def _filters(rng: np.random.Generator, out: Path, layer: str, channels: int) -> FilterBank:
    side = int(np.ceil(np.sqrt(channels)))
    sheet = rng.integers(0, 255, (-(-channels // side) * 11, side * 11, 3)).astype(np.uint8)
    sprites = []
    for name in ("shared", "own"):
        Image.fromarray(sheet).save(out / "pictures" / f"filters-{name}.png")
        sprites.append(Sprite(f"pictures/filters-{name}.png", -(-channels // side), side, (11, 11), True))
    states = {1: "dead", 2: "dominating"}
    filters = tuple(FilterData(i, float(rng.gamma(2)), states.get(i)) for i in range(channels))
    return FilterBank(layer, (11, 11), 1.5, sprites[0], sprites[1], filters)


CLASSES = ("tabby cat", "street", "flower", "coins", "portrait", "espresso", "temple")


class _Painter:
    """Paints the pictures of one layer's channels."""

    def __init__(
        self,
        rng: np.random.Generator,
        images: list[np.ndarray],
        out: Path,
        slug: str,
        field: int,
        top: int,
        compared: int,
    ) -> None:
        self.compared = compared
        self.rng, self.images, self.out, self.slug, self.field, self.top = rng, images, out, slug, field, top
        self.tile = 11 if field <= 11 else 72

    def channel(self, index: int | None, *, dead: bool, hostile: bool, named: bool) -> ChannelData:
        rng = self.rng
        name = None
        if named and index is not None:
            name = (
                HOSTILE[index % len(HOSTILE)] if hostile else f"{CLASSES[index % len(CLASSES)]}, kind {index}"
            )
        if dead:
            none = Histogram(-2.0, -0.0421, (1, 5, 9, 3))
            return ChannelData(
                index, name, True, -0.0421, -1.2, 0.0, float("nan"), none, (), (), (), None, None, None
            )
        count = self.top if index is None else max(1, self.top - (index % 4 == 3) * 4)
        angle, frequency, colour = rng.uniform(0, np.pi), rng.uniform(0.1, 0.9), rng.normal(size=3)
        hits, projections, patches = [], [], []
        strips = np.full((2 * 72, count * 72, 3), 128, np.uint8)
        peak = float(rng.gamma(4, 8))
        for rank in range(count):
            which = int(rng.integers(len(self.images)))
            image = self.images[which]
            y, x = (int(v) for v in rng.integers(0, FRAME, 2))
            if self.field >= FRAME:
                y = x = FRAME // 2
            top, left = y - self.field // 2, x - self.field // 2
            box = (top, left, top + self.field, left + self.field)
            patch = _crop(image, box)
            projection = _gabor(rng, self.tile, angle + rng.normal() * 0.1, frequency, colour, peak)
            patches.append(_fit(patch, self.tile))
            projections.append(projection)
            heat = _heat(y, x, self.field)
            for row, tile in enumerate((_crop(heat, box, 0), heat)):
                strips[row * 72 : (row + 1) * 72, rank * 72 : (rank + 1) * 72] = _fit(tile, 72)
            value = peak * 0.93**rank
            hits.append(
                HitData(
                    rank=rank + 1,
                    score=value,
                    activation=value,
                    image=HOSTILE[rank % len(HOSTILE)]
                    if hostile
                    else f"holiday/{CLASSES[which % 7]}/{which:04}.jpg",
                    label=(HOSTILE[(rank + 2) % len(HOSTILE)] if hostile else CLASSES[which % 7]),
                    y=y // 4,
                    x=x // 4,
                    box=box,
                    thumbnail=f"pictures/image {which}#%.png",
                )
            )
        side = int(np.ceil(np.sqrt(self.top)))
        card_rows = -(-self.top // side)
        blank = [np.full((self.tile, self.tile, 3), 29, np.uint8)] * (side * card_rows - count)
        halves = [_grid([*half, *blank], card_rows, side) for half in (projections, patches)]
        stem = f"pictures/{self.slug}-{'all' if index is None else index}"
        Image.fromarray(np.concatenate(halves, axis=1)).save(self.out / f"{stem}-card.png")
        Image.fromarray(strips).save(self.out / f"{stem}-strips.webp", quality=85)
        ways, tiles = self.compared, (self.tile, self.tile)
        if ways:
            sheet = np.concatenate([np.roll(halves[0], 40 * way, axis=2) for way in range(ways)], axis=1)
            Image.fromarray(sheet).save(self.out / f"{stem}-compared.png")
        return ChannelData(
            index=index,
            name=name,
            dead=False,
            largest=peak,
            mean=float("nan") if hostile else peak / 40,
            activity=0.004 if index is not None and index % 17 == 7 else float(rng.beta(1, 2)),
            selectivity=float("nan") if index is None else float(rng.beta(2, 2)),
            histogram=None
            if index is None
            else Histogram(-0.1 * peak, peak, tuple(rng.poisson(60 / np.arange(1, 33) ** 0.7).tolist())),
            classes=tuple(
                ClassShare(label, hits_, 1 / 7)
                for label, hits_ in Counter(hit.label for hit in hits).most_common()
            ),
            related=(),
            hits=tuple(hits),
            card=Sprite(f"{stem}-card.png", card_rows, 2 * side, (self.tile, self.tile), self.tile < 32),
            strips=Sprite(f"{stem}-strips.webp", 2, count, (72, 72), self.field < 32),
            compared=Sprite(f"{stem}-compared.png", card_rows, ways * side, tiles, self.tile < 32)
            if ways
            else None,
        )


def _images(rng: np.random.Generator, photos: Path | None) -> list[np.ndarray]:
    if photos is not None:
        opened = [Image.open(path).convert("RGB") for path in sorted(photos.glob("*.jpg"))]
        return [np.asarray(image.resize((FRAME, FRAME))) for image in opened]
    ys, xs = np.mgrid[0:FRAME, 0:FRAME] / FRAME
    result = []
    for _ in range(8):
        image = sum(
            np.sin(2 * np.pi * (rng.uniform(0, 9) * ys + rng.uniform(0, 9) * xs))[..., None]
            * rng.normal(size=3)
            for _ in range(3)
        )
        result.append(np.uint8(np.clip(128 + 40 * np.asarray(image), 0, 255)))
    return result


def _gabor(rng, size, angle, frequency, colour, peak) -> np.ndarray:
    ys, xs = np.mgrid[-1 : 1 : size * 1j, -1 : 1 : size * 1j]
    phase = (ys * np.sin(angle) + xs * np.cos(angle)) * np.pi * (1 + 6 * frequency) + rng.uniform(0, 1)
    wave = np.cos(phase) * np.exp(-2.2 * (ys**2 + xs**2))
    value = wave[..., None] * (0.7 + 0.3 * colour) + 0.06 * rng.normal(size=(size, size, 3))
    return np.uint8(np.clip(128 + 110 * value, 0, 255))


def _heat(y: int, x: int, field: int) -> np.ndarray:
    ys, xs = np.mgrid[0:FRAME:16, 0:FRAME:16]
    value = np.exp(-((ys - y) ** 2 + (xs - x) ** 2) / (2 * (field / 3 + 8) ** 2))
    ramp = np.stack([value**0.6, value**1.4, value**4], -1)
    return _fit(np.uint8(255 * ramp), FRAME, smooth=False)


def _crop(image: np.ndarray, box: tuple[int, int, int, int], fill: int = 128) -> np.ndarray:
    top, left, bottom, right = box
    result = np.full((bottom - top, right - left, 3), fill, np.uint8)
    t, lo, b, r = max(top, 0), max(left, 0), min(bottom, FRAME), min(right, FRAME)
    result[t - top : b - top, lo - left : r - left] = image[t:b, lo:r]
    return result


def _fit(image: np.ndarray, side: int, *, smooth: bool = True) -> np.ndarray:
    smooth = smooth and image.shape[0] > 32
    how = Image.Resampling.BILINEAR if smooth else Image.Resampling.NEAREST
    return np.asarray(Image.fromarray(image).resize((side, side), how))


def _grid(tiles: list[np.ndarray], rows: int, columns: int) -> np.ndarray:
    return np.concatenate(
        [np.concatenate(tiles[r * columns : (r + 1) * columns], axis=1) for r in range(rows)], axis=0
    )
