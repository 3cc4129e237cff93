"""Files that cannot be written: an error that names the file and says what to do, and no half of a file."""

from __future__ import annotations

import errno
import subprocess
import sys
import textwrap
from pathlib import Path

import numpy as np
import pytest

import onnxviz
from onnxviz.errors import OnnxvizError, OutputError, UsageError
from onnxviz.export import export_csv, export_json
from onnxviz.files import writing
from tests.model.nets import small, write

REASONS = {
    "a full disk": (
        errno.ENOSPC,
        "No space left on device. Free some space, or choose another place with --out.",
    ),
    "a quota": (errno.EDQUOT, "Free some space"),
    "no permission": (errno.EACCES, "Permission denied. Choose a place that you may write to, with --out."),
    "a read-only disk": (errno.EROFS, "Choose a place that you may write to"),
    "a broken disk": (errno.EIO, "Input/output error."),
}


def _error(number: int, *more: object) -> OSError:
    import os

    return OSError(number, os.strerror(number), *more)


@pytest.mark.parametrize(("number", "reason"), REASONS.values(), ids=REASONS)
def test_what_the_system_says(number, reason):
    with pytest.raises(OutputError) as error, writing("the report"):
        raise _error(number)
    assert str(error.value).startswith("the report: ")
    assert reason in str(error.value)
    assert isinstance(error.value, OSError) and isinstance(error.value, OnnxvizError)
    assert error.value.exit_code == 1


def test_the_file_is_named_where_it_is_known():
    with pytest.raises(OutputError, match=r"^a/b\.png: No space"), writing("the report"):
        raise _error(errno.ENOSPC, "a/b.png")


def test_errors_in_words_stay_what_they_are():
    with pytest.raises(UsageError, match="so it is"), writing("the report"):
        raise UsageError("so it is")


@pytest.fixture
def job(tmp_path):
    np.save(tmp_path / "x.npy", np.random.default_rng(0).normal(size=(6, 3, 12, 12)).astype(np.float32))
    model = write(tmp_path / "m.onnx", small())

    def run(layer: str = "conv1", **options: object) -> onnxviz.Atlas:
        return onnxviz.analyze(model, layers=[layer], images=tmp_path / "x.npy", provider="cpu", **options)

    return run


def _full(monkeypatch, ending: str, number: int = errno.ENOSPC) -> None:
    """Half of a file whose name contains ``ending``, then the error; of a picture nothing at all, on a disk that is
    full indeed."""
    plain, opened = Path.write_bytes, open

    def write_bytes(path: Path, data: bytes) -> int:
        if ending in path.name:
            plain(path, data[: len(data) // 2])
            raise _error(number)
        return plain(path, data)

    monkeypatch.setattr(Path, "write_bytes", write_bytes)
    monkeypatch.setattr(
        "onnxviz.images.render.open",
        lambda path, mode: opened("/dev/full" if ending in path.name else path, mode),
        raising=False,
    )


def _halves(folder: Path) -> list[str]:
    return [p.name for p in folder.rglob("*") if p.name.endswith(".part") or p.name.startswith("..")]


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="Linux has a disk that is full")
@pytest.mark.parametrize("ending", ["index.html", "report.json", ".webp", "c0001"])
def test_a_report_on_a_full_disk(job, tmp_path, monkeypatch, ending):
    out = tmp_path / "out"
    _full(monkeypatch, ending)
    with pytest.raises(OutputError, match=r"No space left on device\. Free some space") as error:
        job(report=out)
    assert str(out) in str(error.value)
    assert _halves(out) == []


def test_a_former_report_is_kept_where_nothing_can_be_written(job, tmp_path, monkeypatch):
    out = tmp_path / "out"
    job(report=out)
    before = {path: path.read_bytes() for path in out.rglob("*") if path.is_file()}
    plain = Path.write_bytes

    def write_bytes(path: Path, data: bytes) -> int:
        plain(path, b"")
        raise _error(errno.ENOSPC)

    monkeypatch.setattr(Path, "write_bytes", write_bytes)
    with pytest.raises(OutputError, match="No space left"):
        onnxviz.Atlas.load(out).report(out)
    monkeypatch.undo()
    assert {path: path.read_bytes() for path in out.rglob("*") if path.is_file()} == before
    assert onnxviz.Atlas.load(out).layers


@pytest.mark.parametrize(
    "use",
    [
        lambda atlas, out: atlas.save(out / "a"),
        lambda atlas, out: atlas.report(out / "a"),
        lambda atlas, out: atlas.report_file(out / "b" / "a.html"),
        lambda atlas, out: export_csv(atlas, out / "a"),
        lambda atlas, out: export_json(atlas, out / "a"),
    ],
    ids=["save", "report", "report_file", "csv", "json"],
)
def test_a_folder_without_permission(job, tmp_path, monkeypatch, use):
    atlas = job()

    def mkdir(path: Path, *more: object, **options: object) -> None:
        raise _error(errno.EACCES, str(path))

    monkeypatch.setattr(Path, "mkdir", mkdir)
    with pytest.raises(OutputError, match=r"Permission denied\. Choose a place that you may write to"):
        use(atlas, tmp_path / "out")


@pytest.mark.skipif(sys.platform == "win32", reason="files are limited by POSIX systems")
def test_a_file_that_the_system_really_refuses(tmp_path):
    """A process that may write no file of more than 6,000 bytes."""
    np.save(tmp_path / "x.npy", np.random.default_rng(0).normal(size=(6, 3, 12, 12)).astype(np.float32))
    model = write(tmp_path / "m.onnx", small())
    script = """
        import resource, sys
        from onnxviz.cli import main
        resource.setrlimit(resource.RLIMIT_FSIZE, (6000, resource.RLIM_INFINITY))
        main()
    """
    options = ["-l", "conv1", "--images", str(tmp_path / "x.npy"), "--out", str(tmp_path / "out")]
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(script), "analyze", str(model), *options, "--provider", "cpu"],
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == 1
    lines = done.stderr.splitlines()
    assert (
        len(lines) == 1 and lines[0].startswith(f"Error: {tmp_path / 'out'}") and "File too large" in lines[0]
    )
    assert _halves(tmp_path / "out") == []
