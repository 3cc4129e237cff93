"""The scan of a job: it goes on where a saved one stopped, and is saved while it goes on."""

from __future__ import annotations

from onnxviz.errors import NoImagesError, UsageError
from onnxviz.forward import ranges
from onnxviz.forward.part import Part
from onnxviz.forward.ranges import Range
from onnxviz.forward.scan import Scanner, check_images, check_options
from onnxviz.progress import Progress
from onnxviz.runs import SAVE_EVERY, Run
from onnxviz.setup import Setup

__all__ = ["run_scan", "shard_range"]


def run_scan(
    setup: Setup,
    *,
    run: Run | None = None,
    shard: tuple[int, int] | None = None,
    restart: bool = False,
    replace_finished: bool = False,
    batch_size: int | None = None,
    save_every: float = SAVE_EVERY,
    progress: Progress,
) -> Part:
    """Scan the images, or a shard of them, on top of what is saved in ``run``, and save what is found there.

    Args:
        shard: (number, of), as of `shard_range`.
        restart, replace_finished: as of `Run.begin`.

    Raises:
        NoImagesError: not one image could be read.
        UsageError: another scan is saved there.
        AtlasError: what is found cannot be saved; what was saved before is still there.
    """
    check_options(batch_size=batch_size)
    scanner = Scanner(
        setup.network,
        setup.source,
        setup.layers,
        setup.preprocess,
        rank=setup.rank,
        total=setup.total,
        batch_size=batch_size,
    )
    whole = shard_range(setup.total, *shard, scanner.batch) if shard else (0, setup.total)
    part = Part.empty(setup.layers, setup.top)
    todo: tuple[Range, ...] = (whole,)
    if run:
        if setup.origin is None:
            raise UsageError("A scan can be saved only of images that have a path or a URL.")
        saved = run.begin(
            setup.job(),
            setup.origin,
            whole,
            shard,
            restart=restart,
            replace_finished=replace_finished,
            note=progress.note,
        )
        part, todo = saved.part, saved.todo
    if todo:
        progress.start("Scanning", ranges.count([whole]), "images")
        progress.advance(ranges.count([whole]) - ranges.count(todo))
        part = scanner.scan(part, todo, progress.advance, save=run.save if run else None, every=save_every)
        progress.finish()
    if not shard:
        try:
            check_images(part, setup.source)
        except NoImagesError:
            if run:
                run.remove()  # nothing is worth going on from
            raise
    if run and (todo or not run.file.exists()):
        run.save(part)
    return part


def shard_range(total: int, number: int, of: int, batch: int) -> Range:
    """The images of shard ``number``, from 1 on, ``of`` so many; whole batches where there are enough.

    Raises:
        UsageError: there is no such shard.
    """
    if not 1 <= number <= of:
        raise UsageError(
            f"There is no shard {number} of {of}: write 1/{max(of, 1)} to {max(of, 1)}/{max(of, 1)}."
        )
    return ranges.shard(total, number, of, batch if total >= of * batch else 1)
