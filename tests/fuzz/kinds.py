"""What is fuzzed: for every kind of file its seeds, how they are changed, and how onnxviz reads them.

A kind to come (a scan's state files) is one entry more in `KINDS`: seeds in `seeds.py`, a mutator, a reader.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from random import Random

import numpy as np

from onnxviz.atlas import Atlas
from onnxviz.check import check
from onnxviz.converters.builder import write as write_network
from onnxviz.converters.weights import read_npz, read_pickled_pairs
from onnxviz.errors import ImageError, OnnxvizError
from onnxviz.images.decode import decode
from onnxviz.images.preprocess import resolve_preprocess
from onnxviz.images.samples import builtin_source
from onnxviz.images.source import open_source, read_labels
from onnxviz.reverse.methods import make_method
from onnxviz.scans.runs import Run, merge_parts
from onnxviz.scans.saved import SavedScan
from onnxviz.setup import open_network
from tests.fuzz import messages, mutators, seeds
from tests.fuzz.seeds import Case
from tests.scanned import scan

__all__ = ["KINDS", "Kind", "changed"]

_DECONVNET = make_method("deconvnet")
_MOST_IMAGES = 20


@dataclass(frozen=True)
class Kind:
    """``mutate`` changes one file of a case; ``read`` is given the case's main file and a folder to write in."""

    seeds: Callable[[], Mapping[str, Case]]
    mutate: Callable[[str, bytes, Random], bytes]
    read: Callable[[Path, Path], None]


def changed(kind: Kind, name: str, rng: Random) -> Case:
    """A seed with one of its files changed, mostly the first."""
    case = dict(kind.seeds()[name])
    files = list(case)
    if len(files) > 1 and rng.random() < 0.05:
        del case[rng.choice(files[1:])]
        return case
    file = (
        files[0]
        if len(files) == 1 or rng.random() < 0.6
        else files[min(1 + int(rng.expovariate(1)), len(files) - 1)]
    )
    case[file] = kind.mutate(file, case[file], rng)
    return case


def _mutate(file: str, data: bytes, rng: Random) -> bytes:
    """By the file's ending."""
    match file.rpartition(".")[2]:
        case "onnx":
            return messages.model(data, rng)
        case "json":
            return mutators.json_text(data, rng)
        case "npy":
            return mutators.array_file(data, rng)
        case "atlas":
            return mutators.scan_file(data, rng)
        case "npz":
            return mutators.zip_file(data, rng, mutators.array_file)
        case "zip":
            return mutators.zip_file(data, rng)
    return mutators.plain(data, rng)


def _read_model(path: Path, out: Path) -> None:
    """Everything that a run over a model does: check, layers, one step of a scan, one projection."""
    verdict: OnnxvizError | None = None
    try:
        assert check(path, _DECONVNET).verdict
    except OnnxvizError as error:
        verdict = error
    network, recipe = open_network(path, provider="cpu")
    if verdict is not None:
        raise verdict
    layers = [layer for layer in network.layers if str(layer) and layer.alias][:40]
    errors: list[OnnxvizError] = []
    for layer in (*layers[:1], *layers[-1:]):
        try:
            network.check([layer], _DECONVNET)
            source = builtin_source(recipe.channels, recipe.height, recipe.width)
            found = scan(network, source, [layer], recipe, top=2, limit=3).layers[0]
            hit = next(iter(found.topk.hits(0)), None)
            if hit is not None:
                x = np.stack([recipe(source.samples[hit.image].read())])
                network.project_units(recipe.batch(list(x)), layer, np.array([[0, 0, hit.y, hit.x]]))
        except OnnxvizError as error:
            errors.append(error)
    if errors:
        raise errors[-1]


def _read_image(path: Path, out: Path) -> None:
    """As a picture, and as the network's values by the quick way; both agree on whether there is one."""
    data, recipe = path.read_bytes(), resolve_preprocess(channels=3, height=16, width=16, preset="raw")
    try:
        picture = recipe(decode(data, path.name))
    except ImageError:
        picture = None
    values = recipe.decode(data, path.name)
    assert values.shape == (3, 16, 16)
    assert np.isfinite(values).all()
    if picture is None:
        decode(data, path.name)


def _read_source(path: Path, out: Path) -> None:
    """A data set: every image is read, and at least the first error is in words."""
    recipe = resolve_preprocess(channels=3, height=8, width=7, preset="raw")
    source = open_source(path, {"0": "zero"}, recipe)
    failed: ImageError | None = None
    for sample in source.samples[:_MOST_IMAGES]:
        assert sample.label is None or isinstance(sample.label, str)
        sample.name.encode()
        try:
            recipe(sample.read())
        except ImageError as error:
            failed = error
    if failed:
        raise failed


def _read_weights(path: Path, out: Path) -> None:
    expected = seeds.TINY.weights()
    read = read_npz if path.suffix == ".npz" else read_pickled_pairs
    write_network(seeds.TINY.build(read(path, expected), str(path)), out / "net.onnx")


def _read_atlas(path: Path, out: Path) -> None:
    """Loaded, and reported, cut and exported from what was loaded."""
    from onnxviz.export import export_csv, export_json

    atlas = Atlas.load(path.parent)
    atlas.report(out / "report")
    atlas.only(top=1).save(out / "part")
    export_csv(atlas, out / "export")
    export_json(atlas, out / "export")


def _read_scan(path: Path, out: Path) -> None:
    """As a scan to go on from, as a part to merge, and as one to draw."""
    saved = SavedScan.read(path)
    for one in saved.told.scan(saved.job.layers).layers:
        for channel in range(one.layer.channels):
            one.topk.hits(channel)
        one.responses.sparseness()
        one.stats.total.sum()
    run = Run(out / "run")
    (out / "run").mkdir()
    begun = run.begin(saved.job, saved.origin, saved.range, saved.shard, note=lambda text: None)
    run.save(begun.part)
    assert SavedScan.read(run.file).to_bytes() == run.file.read_bytes()
    if not saved.whole:
        return
    merge_parts([path])


def _read_text(path: Path, out: Path) -> None:
    if path.name == "model.onnxviz.json":
        recipe = resolve_preprocess(channels=3, height=None, width=None, sidecar=path)
        assert recipe.describe()
    else:
        assert all(isinstance(name, str) for name in read_labels(path))


KINDS: Mapping[str, Kind] = {
    "models": Kind(seeds.models, _mutate, _read_model),
    "nodes": Kind(seeds.nodes, _mutate, _read_model),
    "images": Kind(seeds.images, _mutate, _read_image),
    "archives": Kind(seeds.archives, _mutate, _read_source),
    "arrays": Kind(seeds.arrays, _mutate, _read_source),
    "weights": Kind(seeds.weights, _mutate, _read_weights),
    "atlases": Kind(seeds.atlases, _mutate, _read_atlas),
    "scans": Kind(seeds.saved_scans, _mutate, _read_scan),
    "texts": Kind(seeds.texts, _mutate, _read_text),
}
