"""The scan of a job: it goes on where a saved one stopped, and is saved while it goes on."""

from __future__ import annotations

from onnxviz.errors import NoImagesError, UsageError
from onnxviz.forward import ranges
from onnxviz.forward.part import Part
from onnxviz.forward.ranges import Range
from onnxviz.forward.scan import Watch, check_images, check_options, workload
from onnxviz.progress import SCANNING, Progress
from onnxviz.scans.runs import SAVE_EVERY, Run
from onnxviz.scans.saved import SavedScan
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
    workers: int | None = None,
    cluster: str | None = None,
    watch: Watch | None = None,
    progress: Progress,
) -> Part:
    """Scan the images, or a shard of them, on top of what is saved in ``run``, and save what is found there.

    Args:
        shard: (number, of), as of `shard_range`.
        restart, replace_finished: as of `Run.begin`.
        workers: so many processes on this machine instead of this one alone.
        cluster: the Dask cluster that scans instead (`cluster.scan_on_cluster`).
        watch: sees every run that is made in this process.

    Raises:
        NoImagesError: not one image could be read.
        UsageError: another scan is saved there.
        AtlasError: what is found cannot be saved; what was saved before is still there.
    """
    check_options(batch_size=batch_size)
    if workers is not None and cluster is not None:
        raise UsageError("Processes of this machine or a cluster: give --workers or --cluster, not both.")
    if workers is not None and workers < 1:
        raise UsageError(f"The workers must be 1 or more, not {workers}.")
    if cluster is not None:
        from onnxviz.scans.cluster import scan_on_cluster  # if Dask is not there, nothing is begun
    batch = batch_size or workload(setup.network, setup.layers, setup.total).batch
    whole = shard_range(setup.total, *shard, batch) if shard else (0, setup.total)
    saved = None
    if run or workers is not None or cluster is not None:
        if setup.origin is None:
            raise UsageError(
                "Only images that have a path or a URL can be scanned so that the scan is saved or shared out."
            )
        job = setup.job
        if run:
            saved = run.begin(
                job,
                setup.origin,
                whole,
                shard,
                restart=restart,
                replace_finished=replace_finished,
                note=progress.note,
            )
        else:
            saved = SavedScan(job, setup.origin, whole, Part.empty(setup.layers, setup.top), (), shard)
    part = saved.part if saved else Part.empty(setup.layers, setup.top)
    todo = saved.todo if saved else ranges.joined([whole])
    progress.start(SCANNING, ranges.count([whole]), "images")
    progress.resumed(ranges.count([whole]) - ranges.count(todo))
    for _, name, reason in part.skipped:
        progress.skipped(name, reason)
    if todo:
        save = run.save if run else None
        if saved and cluster is not None:
            part = scan_on_cluster(saved, cluster, batch, progress=progress, save=save, every=save_every)
        elif saved and workers is not None:
            from onnxviz.scans.workers import scan_in_processes

            part = scan_in_processes(saved, workers, batch, progress=progress, save=save, every=save_every)
        else:
            part = setup.scanner(batch, watch=watch).scan(
                part, todo, progress.advance, save=save, every=save_every, skip=progress.skipped
            )
    progress.finish()
    if not shard:
        try:
            check_images(part, setup.source)
        except NoImagesError:
            if run:
                run.remove()  # nothing is worth going on from
            raise
    if run and saved:
        # What was scanned is saved already: a signal after the last image must not cost what came since the last time.
        return (run.saved if todo else run.save(part) if not run.file.exists() else saved).told
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
