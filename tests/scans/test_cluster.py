"""A scan on a Dask cluster: the bytes of one process, whatever happens to the workers."""

from __future__ import annotations

import io
import logging
import re
import signal
import sys
import zipfile
from collections import Counter
from pathlib import Path

import onnx
import pytest

from onnxviz.console.console import console
from onnxviz.errors import OnnxvizError, UsageError
from onnxviz.forward import ranges
from onnxviz.forward.part import Part
from onnxviz.progress import Progress
from onnxviz.scans.saved import SavedScan
from onnxviz.setup import open_setup
from tests.images.serving import serving
from tests.model.nets import small
from tests.scans.fleet import (
    BATCH,
    BROKEN,
    IMAGES,
    Command,
    cluster,
    data,
    environment,
    scan,
    until,
)

pytest.importorskip("distributed")
cluster_module = pytest.importorskip("onnxviz.scans.cluster")
pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="looks at processes as Linux shows them")


@pytest.fixture(scope="module")
def two(folder):
    """A cluster of two workers, for what harms neither."""
    (folder / "two").mkdir()
    with cluster(folder / "two", environment(folder, 0.03)) as found:
        found.add()
        found.add()
        yield found


def start(folder, out, address, *options, env=None):
    return Command(folder, out, "--cluster", str(address), *options, env=env or environment())


def told(run: Command) -> list[str]:
    """What was said of the cluster."""
    return [text for text in run.said("note") if "luster" in text]


@pytest.mark.parametrize("by", ["file", "address"])
def test_it_is_what_one_process_finds(folder, expected, two, tmp_path, by):
    run = start(folder, tmp_path / "it.atlas", two.file if by == "file" else two.address)
    assert run.end() == (0, "")
    assert (tmp_path / "it.atlas").read_bytes() == expected
    assert told(run) == ["The cluster has 2 workers with 2 threads."]
    assert run.said("progress", "done")[-1] == IMAGES
    assert sorted(run.said("skipped", "name")) == [f"{number:04}.png" for number in BROKEN]


@pytest.mark.parametrize("sent", [1 << 20, 500], ids=["whole", "in-pieces"])
def test_the_model_is_sent_to_each_worker_once_and_taken_away(
    folder, expected, two, tmp_path, monkeypatch, sent
):
    before = len((two.folder / "cluster.log").read_text())
    monkeypatch.setattr(cluster_module, "_SENT", sent)
    scan(folder, tmp_path / "it.atlas", cluster=two.address)
    assert (tmp_path / "it.atlas").read_bytes() == expected
    log = (two.folder / "cluster.log").read_text()[before:]
    pieces = -(-(folder / "small.onnx").stat().st_size // sent)
    for what in ("Starting", "Removing"):
        # Dask says so for each worker.
        names = re.findall(rf"worker - INFO - {what} Worker plugin (onnxviz-\w+-\d+)", log)
        assert set(Counter(names).values()) == {2}
        assert len(set(names)) == pieces + 1
    assert not list(two.folder.rglob("small.onnx"))


def test_results_are_put_together_in_a_tree(folder, expected, two, tmp_path, monkeypatch):
    """160 images make 40 pieces of a batch, which make 5 results of 8; the rest of the way is the client's."""
    tasks: Counter[int] = Counter()
    submit = cluster_module._Scan._submit

    def counted(self, task, *arguments, pieces, level):
        tasks[level] += 1
        if level:
            assert len(arguments[0]) == 8
        else:
            assert ranges.count(pieces) == BATCH
        submit(self, task, *arguments, pieces=pieces, level=level)

    monkeypatch.setattr(cluster_module._Scan, "_submit", counted)
    monkeypatch.setattr(cluster_module, "_PIECE_SECONDS", 1e-9)
    scan(folder, tmp_path / "it.atlas", cluster=str(two.file))
    assert tasks == {0: 40, 1: 5}
    assert (tmp_path / "it.atlas").read_bytes() == expected


@pytest.mark.parametrize("nanny", [False, True], ids=["without-nanny", "with-nanny"])
def test_lost_workers_images_are_scanned_again(folder, expected, tmp_path, nanny):
    with cluster(tmp_path, environment(folder, 0.06)) as found:
        found.add(nanny=nanny)
        found.add(nanny=nanny)
        found.joined(2)
        run = start(folder, tmp_path / "it.atlas", found.file)
        for done in (8, 40, 72):
            run.until(done)
            found.kill(found.workers[-1])
            if not nanny:
                found.add()
        assert run.end() == (0, "")
    assert (tmp_path / "it.atlas").read_bytes() == expected
    assert run.said("progress", "done")[-1] == IMAGES
    assert run.said("progress", "done") == sorted(run.said("progress", "done"))
    assert len(run.said("skipped", "name")) == len(BROKEN)
    assert any("1 lost, whose work is done again" in text for text in told(run)), told(run)


def test_all_workers_are_lost_and_others_come(folder, expected, tmp_path):
    with cluster(tmp_path, environment(folder, 0.06)) as found:
        run = start(folder, tmp_path / "it.atlas", found.file)
        until(lambda: run.process.stdout and "waiting for the first" in run.process.stdout.readline())
        found.add()
        run.until(40)
        found.kill(found.workers[0])
        until(lambda: run.process.stdout and "no workers any more" in run.process.stdout.readline())
        found.add(threads=2)
        assert run.end() == (0, "")
    assert (tmp_path / "it.atlas").read_bytes() == expected
    assert told(run)[-1] == "The cluster has 1 worker with 2 threads."


def test_a_signal_leaves_what_is_done_and_the_same_command_goes_on(folder, expected, two, tmp_path):
    run = start(folder, tmp_path / "it.atlas", two.file)
    run.until(40)
    run.process.send_signal(signal.SIGINT)
    assert run.end() == (130, "Interrupted.\n")
    done = ranges.count(SavedScan.read(tmp_path / "it.atlas").part.done)
    assert run.said("progress", "done")[-1] <= done < IMAGES
    until(lambda: not list(two.folder.rglob("small.onnx")))
    run = start(folder, tmp_path / "it.atlas", two.file)
    assert run.end() == (0, "")
    assert (tmp_path / "it.atlas").read_bytes() == expected


def test_nothing_stays_on_the_cluster_when_the_client_is_killed(folder, two, tmp_path):
    run = start(folder, tmp_path / "it.atlas", two.file)
    run.until(8)
    assert list(two.folder.rglob("small.onnx"))
    run.process.kill()
    run.end()
    until(lambda: not list(two.folder.rglob("small.onnx")))


def test_the_scheduler_is_lost(folder, expected, tmp_path):
    with cluster(tmp_path, environment(folder, 0.06)) as found:
        found.add()
        run = start(folder, tmp_path / "it.atlas", found.file, "--save-every", "0.2")
        until(lambda: (tmp_path / "it.atlas").exists() and SavedScan.read(tmp_path / "it.atlas").part.done)
        found.scheduler.kill()
        code, errors = run.end(20)
    assert code == 1
    assert errors == (
        "Error: The connection to the cluster's scheduler is lost. The same command goes on from what is saved.\n"
    )
    assert SavedScan.read(tmp_path / "it.atlas").part.done
    run = Command(folder, tmp_path / "it.atlas", env=environment())
    assert run.end() == (0, "")
    assert (tmp_path / "it.atlas").read_bytes() == expected


@pytest.mark.parametrize(
    ("address", "message"),
    [
        ("tcp://127.0.0.1:9", "no Dask scheduler answers there .*Give its address, such as tcp://host:8786"),
        ("nowhere.json", "neither a file nor an address"),
        ("", "neither a file nor an address"),
        ("what://127.0.0.1:9", "neither a file nor an address .*unknown address scheme 'what'"),
        ("small.onnx", "not a scheduler file of Dask"),
    ],
    ids=["nobody-there", "no-file", "nothing", "no-scheme", "another-file"],
)
def test_there_is_no_scheduler(folder, tmp_path, monkeypatch, address, message):
    monkeypatch.setattr(cluster_module, "_CONNECT", 0.3)
    monkeypatch.chdir(folder)
    with pytest.raises(UsageError, match=f"--cluster {address}: {message}"):
        scan(folder, tmp_path / "it.atlas", cluster=address)


def test_there_are_no_workers(folder, tmp_path, monkeypatch):
    monkeypatch.setattr(cluster_module, "_FIRST_WORKER", 0.3)
    with (
        cluster(tmp_path, environment()) as found,
        pytest.raises(OnnxvizError, match="has no workers, and none came"),
    ):
        scan(folder, tmp_path / "it.atlas", cluster=str(found.file))


def without(folder: Path, name: str) -> dict[str, str]:
    """An environment that lacks a package."""
    place = folder / f"without-{name}"
    place.mkdir(exist_ok=True)
    (place / f"{name}.py").write_text(f"raise ModuleNotFoundError(\"No module named '{name}'\")\n")
    env = environment()
    return {**env, "PYTHONPATH": f"{place}:{env['PYTHONPATH']}"}


def test_dask_is_not_installed(folder, tmp_path):
    run = start(folder, tmp_path / "it.atlas", "tcp://127.0.0.1:9", env=without(folder, "distributed"))
    assert run.end() == (
        2,
        "Error: Scanning on a cluster needs Dask: pip install 'onnxviz[cluster]' (here and on the workers).\n",
    )


def test_workers_lack_onnxviz(folder, tmp_path):
    with cluster(tmp_path, environment()) as found:
        found.add(env=without(folder, "onnxviz"))
        run = start(folder, tmp_path / "it.atlas", found.file)
        code, errors = run.end()
    assert code == 1
    assert re.fullmatch(
        r"Error: The cluster cannot take the job \(.*No module named 'onnxviz'.*\)\. Its workers need "
        r"onnxviz\[cluster\], .*\n",
        errors,
    )


@pytest.mark.parametrize("spoiled", ["images", "model"])
def test_what_workers_do_not_see_is_named(folder, two, tmp_path, spoiled):
    data(tmp_path, 8)
    setup = open_setup(
        tmp_path / "small.onnx",
        layers=["conv1"],
        images=tmp_path / "photos",
        provider="cpu",
        progress=Progress(),
    )
    saved = SavedScan(setup.job, setup.origin, (0, 8), Part.empty(setup.layers, setup.top), ())
    if spoiled == "images":
        (tmp_path / "photos").rename(tmp_path / "elsewhere")
        message = r"On the worker tcp://127\.0\.0\.1:\d+: .*photos: no such file or folder"
    else:
        (tmp_path / "small.onnx").write_bytes(small(seed=1).SerializeToString())
        message = r"On the worker tcp://127\.0\.0\.1:\d+: .*small\.onnx is not the model that was scanned"
    with pytest.raises(UsageError, match=message):
        cluster_module.scan_on_cluster(saved, two.address, BATCH, progress=Progress(), save=None, every=60)


def test_weights_in_other_files_come_along(folder, two, tmp_path):
    data(tmp_path, 8)
    model = onnx.load(tmp_path / "small.onnx")
    (tmp_path / "small.onnx").unlink()
    onnx.save(
        model, tmp_path / "small.onnx", save_as_external_data=True, location="weights.bin", size_threshold=0
    )
    assert (tmp_path / "weights.bin").stat().st_size > 1000
    scan(tmp_path, tmp_path / "one.atlas")
    scan(tmp_path, tmp_path / "it.atlas", cluster=two.address)
    assert (tmp_path / "it.atlas").read_bytes() == (tmp_path / "one.atlas").read_bytes()


def test_images_behind_a_url(folder, two, tmp_path, monkeypatch):
    pytest.importorskip("aiohttp")
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w") as archive:
        for path in sorted((folder / "photos").iterdir())[:40]:
            archive.write(path, path.name)
    with serving({"photos.zip": file.getvalue()}) as served:
        url = f"{served.url}/photos.zip?token=secret"
        scan(folder, tmp_path / "one.atlas", images=url)
        before = len(served.requests)
        scan(folder, tmp_path / "it.atlas", images=url, cluster=two.address)
        assert len(served.requests) > before
    assert (tmp_path / "it.atlas").read_bytes() == (tmp_path / "one.atlas").read_bytes()
    assert b"secret" not in (tmp_path / "it.atlas").read_bytes()


@pytest.mark.parametrize("debug", [False, True], ids=["usual", "debug"])
def test_dask_logs_only_if_it_is_asked_for(debug):
    logger, heard = logging.getLogger("distributed.client"), io.StringIO()
    handler = logging.StreamHandler(heard)
    logger.addHandler(handler)
    try:
        with console(quiet=True, debug=debug), cluster_module._without_logs():
            logger.error("first")
        logger.error("second")
    finally:
        logger.removeHandler(handler)
    assert heard.getvalue() == ("first\nsecond\n" if debug else "second\n")


def test_a_program_s_logging_is_left_as_it_was(folder, two, tmp_path):
    heard: list[logging.LogRecord] = []

    class Handler(logging.Handler):
        def emit(self, record):
            heard.append(record)

    logger, handler = logging.getLogger("distributed.client"), Handler()
    logger.addHandler(handler)
    try:
        scan(folder, tmp_path / "it.atlas", cluster=two.address)
        assert handler in logger.handlers
    finally:
        logger.removeHandler(handler)
    assert heard == []
