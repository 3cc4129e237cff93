"""The whole job in a straight line: open, check, scan, draw; and its steps, for jobs that outgrow one machine."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import ExitStack, nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Any

from numpy.typing import NDArray

from onnxviz.atlas import Atlas
from onnxviz.drawing import Drawing, Style
from onnxviz.errors import AtlasError, UsageError
from onnxviz.files import writing
from onnxviz.forward import ranges
from onnxviz.images.source import Source
from onnxviz.locks import lock_file, locked
from onnxviz.model.layers import find_layers
from onnxviz.progress import Progress
from onnxviz.report.folder import check_folder
from onnxviz.report.render import check_theme
from onnxviz.reverse.project import DEFAULT_MEMORY
from onnxviz.runtime import release_memory
from onnxviz.scans.runs import SAVE_EVERY, Run, merge_parts, scan_file
from onnxviz.scans.saved import SavedScan
from onnxviz.scans.scanning import run_scan
from onnxviz.setup import open_saved, open_setup

__all__ = ["analyze", "draw", "merge", "scan"]


@writing("the report")
def analyze(
    model: str | Path,
    *,
    layers: str | Sequence[str],
    images: str | Path | Source | None = None,
    top: int = 9,
    channels: str | Sequence[int] | None = None,
    method: str | Sequence[str] = "deconvnet",
    control: bool = False,
    rank: str = "max",
    seed: str = "unit",
    overlap: str = "sum",
    lrn: str | None = None,
    activation: str | None = None,
    limit: int | None = None,
    batch_size: int | None = None,
    provider: str = "auto",
    engine: str = "auto",
    memory: int = DEFAULT_MEMORY,
    preprocess: str | None = None,
    mean: Sequence[float] | None = None,
    std: Sequence[float] | None = None,
    bgr: bool | None = None,
    size: tuple[int, int] | None = None,
    image: str | None = None,
    feeds: Mapping[str, NDArray[Any]] | None = None,
    labels: str | Path | Sequence[str] | None = None,
    montage: bool = False,
    folder: str | Path | None = None,
    report: str | Path | None = None,
    theme: str = "auto",
    run: str | Path | None = None,
    restart: bool = False,
    save_every: float = SAVE_EVERY,
    workers: int | None = None,
    cluster: str | None = None,
    progress: Progress | None = None,
    command: str | None = None,
) -> Atlas:
    """Find what every channel of the given layers responds to.

    Args:
        model: path of the ONNX file.
        layers: names, aliases, globs, ranges or ``all``.
        images: a folder, image, archive or array file, a URL of one, or a pattern (`images.source.open_source`); None
            takes the built-in samples.
        top: images to keep for each channel.
        channels: which to show, as ``"0-15,40"`` or numbers; None is all.
        method: ``deconvnet``, ``guided`` or ``gradient``; of several, the first is shown and the others are for
            comparison. ``overlap``, ``lrn`` and ``activation`` are their policies (`reverse.methods.make_method`).
        control: also project the same units in the same network with shuffled weights, by each method.
        rank: ``max``, ``sum`` or ``first`` (`forward.scan.RANKS`).
        seed: ``unit`` or ``map`` (`pictures.SEEDS`).
        engine: what computes projections (`reverse.project.ENGINES`).
        memory: about how many bytes projecting may take, weights not counted.
        preprocess, mean, std, bgr, size: see `images.preprocess.resolve_preprocess`.
        image, feeds: the input that takes images, and values of others (`network.load`).
        labels: class names of the output units, or a file of them.
        montage: also make one PNG of all cards of each layer.
        folder: where pictures are written; by default a temporary folder that lives as long as the atlas.
        report: instead, the folder of a report, which is written while it is drawn, with the atlas itself; it opens
            at any time, and if the run is broken off it is left with what there is. ``theme`` as of `Atlas.report`.
        run: a folder (or a file that ends in .atlas) that keeps the scan, so that it goes on where it was broken off;
            by default the report's folder, where a finished scan of something else is replaced and not refused.
        restart: start over, whatever scan is kept there.
        save_every: seconds between two times that the scan is saved.
        workers: scan in so many processes, each with a GPU or a share of the cores.
        cluster: scan on a Dask cluster: its scheduler's address, or its scheduler file. Needs onnxviz[cluster].
        command: how the job was called, for the report.

    Raises:
        OnnxvizError: see `onnxviz.errors`; all that can be known beforehand is checked before an image is read.
    """
    progress = progress or Progress()
    if report is not None and folder is not None:
        raise UsageError("Give a folder for the pictures or one for the report, not both.")
    check_theme(theme)
    target = report if report is not None else folder
    target = None if target is None else Path(target)
    if target is not None:
        check_folder(target)
    style = Style.of(
        method, overlap=overlap, lrn=lrn, activation=activation, control=control, seed=seed, montage=montage
    )
    setup = open_setup(
        model,
        layers=layers,
        images=images,
        top=top,
        rank=rank,
        limit=limit,
        provider=provider,
        engine=engine,
        memory=memory,
        preprocess=preprocess,
        mean=mean,
        std=std,
        bgr=bgr,
        size=size,
        image=image,
        feeds=feeds,
        labels=labels,
        progress=progress,
        check=style.check,
    )
    drawing = Drawing.plan(setup, style, channels, progress, labelled=labels is not None)
    # A report of images that could be opened again keeps its scan beside it.
    kept = run if run is not None or setup.origin is None else report
    with ExitStack() as locks:
        for place in _places(report, kept):
            locks.enter_context(locked(place))
        # A report must not stand beside the scan of another.
        former = None if report is None or _same(report, kept) else Run(Path(report))
        if former:
            former.check_finished(restart=restart)
        watched = drawing.watched(batch_size) if workers is None and cluster is None else None
        part = run_scan(
            setup,
            run=None if kept is None else Run(Path(kept)),
            restart=restart,
            replace_finished=run is None,
            batch_size=batch_size,
            save_every=save_every,
            workers=workers,
            cluster=cluster,
            watch=watched,
            progress=progress,
        )
        release_memory()
        if former:
            former.remove()
        return drawing.draw(
            part.scan(setup.layers),
            target,
            watched=watched,
            published=report is not None,
            theme=theme,
            command=command,
        )


def scan(
    model: str | Path,
    out: str | Path,
    *,
    layers: str | Sequence[str],
    images: str | Path | None = None,
    top: int = 9,
    rank: str = "max",
    limit: int | None = None,
    shard: tuple[int, int] | None = None,
    batch_size: int | None = None,
    provider: str = "auto",
    preprocess: str | None = None,
    mean: Sequence[float] | None = None,
    std: Sequence[float] | None = None,
    bgr: bool | None = None,
    size: tuple[int, int] | None = None,
    image: str | None = None,
    feeds: Mapping[str, NDArray[Any]] | None = None,
    labels: str | Path | Sequence[str] | None = None,
    restart: bool = False,
    save_every: float = SAVE_EVERY,
    workers: int | None = None,
    cluster: str | None = None,
    progress: Progress | None = None,
) -> SavedScan:
    """Find each channel's strongest images, or those in a shard of the data set, and save them; `draw` shows them.

    Args:
        out: a folder, or a file whose name ends in .atlas; a scan that was broken off there goes on.
        shard: (number, of), from (1, of) on: only this part of the images; `merge` puts the parts together.
        restart: start over, whatever is there.
        save_every: seconds between two times that it is saved.

    The others are those of `analyze`.

    Raises:
        OnnxvizError: see `onnxviz.errors`.
    """
    progress = progress or Progress()
    setup = open_setup(
        model,
        layers=layers,
        images=images,
        top=top,
        rank=rank,
        limit=limit,
        provider=provider,
        preprocess=preprocess,
        mean=mean,
        std=std,
        bgr=bgr,
        size=size,
        image=image,
        feeds=feeds,
        labels=labels,
        progress=progress,
    )
    run = Run(Path(out))
    with locked(run.path):
        run.check_report(restart=restart)
        run_scan(
            setup,
            run=run,
            shard=shard,
            restart=restart,
            batch_size=batch_size,
            save_every=save_every,
            workers=workers,
            cluster=cluster,
            progress=progress,
        )
        return SavedScan.read(run.file)


def merge(parts: Sequence[str | Path], out: str | Path, *, restart: bool = False) -> SavedScan:
    """Put the shards of a scan together.

    Args:
        parts: files or folders that `scan` wrote, in any order.
        out: a folder, or a file whose name ends in .atlas.
        restart: replace a scan that is there.

    Raises:
        UsageError: a scan is at ``out`` already; there are no parts.
        AtlasError: a part is damaged or of another scan; images are in two parts or in none.
    """
    run = Run(Path(out))
    if any(scan_file(Path(part)).resolve() == run.file.resolve() for part in parts):
        raise UsageError(f"{out} is one of the parts. Choose another place for the whole.")
    with locked(run.path):
        run.check_report(restart=restart)
        if run.file.exists() and not restart:
            raise UsageError(
                f"{out} holds a scan already. Choose another place, or replace it with --restart."
            )
        whole = merge_parts([Path(part) for part in parts])
        run.put(whole)
        return whole


@writing("the report")
def draw(
    path: str | Path,
    report: str | Path | None = None,
    *,
    layers: str | Sequence[str] | None = None,
    channels: str | Sequence[int] | None = None,
    top: int | None = None,
    method: str | Sequence[str] = "deconvnet",
    control: bool = False,
    model: str | Path | None = None,
    images: str | Path | None = None,
    provider: str | None = None,
    engine: str = "auto",
    memory: int = DEFAULT_MEMORY,
    theme: str = "auto",
    progress: Progress | None = None,
    command: str | None = None,
) -> Atlas:
    """Draw what a scan found that is saved and finished, and write its report.

    Args:
        path: the scan's folder or file.
        report: the folder of the report; without it pictures are in a temporary folder that lives as long as the atlas.
        layers, channels, top: only these of what was scanned.
        method, control, engine, memory, theme, command: as of `analyze`.
        model, images: where they are now, if not where they were.
        provider: where to run the network; None for where it ran.

    Raises:
        AtlasError: there is no such scan, or it is damaged or not finished.
        OnnxvizError: see `onnxviz.errors`.
    """
    progress = progress or Progress()
    check_theme(theme)
    target = None if report is None else Path(report)
    if target is not None:
        check_folder(target)
    saved = SavedScan.read(scan_file(Path(path)))
    if not saved.whole:
        raise AtlasError(
            f"{path}: the scan is not finished: {ranges.count(saved.part.done):,} of {saved.job.images:,} images are "
            "done. Run its command again, or merge its shards."
        )
    setup = open_saved(
        saved, model=model, images=images, provider=provider, engine=engine, memory=memory, progress=progress
    )
    scan = saved.told.scan(setup.layers)
    if layers is not None:
        chosen = find_layers(setup.layers, [layers] if isinstance(layers, str) else layers)
        scan = replace(scan, layers=tuple(one for one in scan.layers if one.layer in chosen))
        setup = replace(setup, layers=tuple(one.layer for one in scan.layers))
    if top is not None:
        scan = replace(scan, layers=tuple(one.first(top) for one in scan.layers))
    style = Style.of(method, control=control)
    style.check(setup.network, setup.layers)
    drawing = Drawing.plan(setup, style, channels, progress, labelled=saved.origin.labels is not None)
    with locked(target) if target is not None else nullcontext():
        return drawing.draw(scan, target, published=target is not None, theme=theme, command=command)


def _places(*folders: str | Path | None) -> list[Path]:
    """Places that have different locks, each once."""
    there = {lock_file(Path(one)).resolve(): Path(one) for one in folders if one is not None}
    return list(there.values())


def _same(report: str | Path, run: str | Path | None) -> bool:
    """Whether a scan lies in the folder of a report."""
    return run is not None and scan_file(Path(run)).resolve() == scan_file(Path(report)).resolve()
