"""scan, merge, and report of what they wrote, as a user calls them; and analyze, which keeps its scan."""

from __future__ import annotations

import json
import os
import re
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import onnxviz
from onnxviz.forward.part import Part
from onnxviz.locks import locked
from onnxviz.scans.saved import SavedScan
from tests.commands import call, fails
from tests.model.nets import small, write


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    """small.onnx, 24 photos of which one is broken, the scan of them all, and its first half."""
    base = tmp_path_factory.mktemp("base")
    write(base / "small.onnx", small())
    rng = np.random.default_rng(1)
    (base / "photos").mkdir()
    for index in range(24):
        Image.fromarray(rng.integers(0, 255, (12, 12, 3), np.uint8)).save(base / "photos" / f"{index:02}.png")
    (base / "photos" / "05.png").write_bytes(b"\x89PNG")
    assert _scan(base, base / "whole.atlas").exit_code == 0
    assert _scan(base, base / "half.atlas", "--shard", "1/2").exit_code == 0
    return base


@pytest.fixture
def own(base, tmp_path):
    """A model and images of one's own, to move and to change, and a finished scan of them."""
    shutil.copy(base / "small.onnx", tmp_path / "small.onnx")
    shutil.copytree(base / "photos", tmp_path / "photos")
    assert _scan(tmp_path, tmp_path / "run").exit_code == 0
    return tmp_path


def _scan(base: Path, out: Path, *more: object):
    options = ("-l", "conv1", "-l", "fc1", "--images", base / "photos", "--top", 4, "--batch-size", 4)
    return call("scan", base / "small.onnx", *options, "-o", out, *more)


def _analyze(base: Path, out: Path, *more: object):
    options = ("-l", "conv1", "--images", base / "photos", "--top", 4, "--batch-size", 4)
    return call("analyze", base / "small.onnx", *options, "--out", out, *more)


def _names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def _content(folder: Path) -> dict[str, bytes]:
    return {p.relative_to(folder).as_posix(): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


# scan


def test_scan(base, tmp_path):
    result = _scan(base, tmp_path / "new" / "run")
    assert result.exit_code == 0, result.output
    lines = result.stdout.splitlines()
    assert lines[-1] == f"Scan: {tmp_path / 'new' / 'run'} (onnxviz report goes on from here)"
    assert any("23 images scanned, 1 skipped" in line for line in lines), lines
    assert _names(tmp_path / "new" / "run") == ["scan.atlas"]
    again = _scan(base, tmp_path / "new" / "run")
    assert again.exit_code == 0
    assert f"Scanned before: 24 images, from {tmp_path / 'new' / 'run' / 'scan.atlas'}." in again.stdout
    assert SavedScan.read(tmp_path / "new" / "run" / "scan.atlas").part.images == 23


def test_a_shard_is_for_merge(base, tmp_path):
    result = _scan(base, tmp_path / "2.atlas", "--shard", "2/3")
    assert result.exit_code == 0
    assert result.stdout.splitlines()[-1] == f"Scan: {tmp_path / '2.atlas'} (onnxviz merge goes on from here)"
    assert SavedScan.read(tmp_path / "2.atlas").range == (8, 16)


def test_scan_for_programs(base, tmp_path):
    result = _scan(base, tmp_path / "run", "--json-progress")
    events = [json.loads(line) for line in result.stdout.splitlines()]
    assert (events[0]["event"], events[-1]["event"]) == ("begin", "result")
    assert events[-1]["scan"] == str(tmp_path / "run")
    assert [e["name"] for e in events if e["event"] == "skipped"] == ["05.png"]
    quiet = _scan(base, tmp_path / "other", "--quiet")
    assert (quiet.exit_code, quiet.output) == (0, "")


SHARDS = {
    "word": ("third", "'third': write the part and how many there are, such as 3/16"),
    "one-number": ("3", "write the part and how many"),
    "negative": ("-1/3", "write the part and how many"),
    "three": ("1/2/3", "write the part and how many"),
    "fraction": ("1.5/3", "write the part and how many"),
    "huge": ("1/99999999999", "write the part and how many"),
    "zero": ("0/3", "no shard 0 of 3: write 1/3 to 3/3"),
    "beyond": ("4/3", "no shard 4 of 3: write 1/3 to 3/3"),
    "of-none": ("0/0", "no shard 0 of 0: write 1/1 to 1/1"),
}


@pytest.mark.parametrize(("text", "message"), SHARDS.values(), ids=SHARDS)
def test_wrong_shards(base, tmp_path, text, message):
    fails(_scan(base, tmp_path / "run", f"--shard={text}"), 2, message)
    assert _names(tmp_path) == []


def test_scan_needs_a_place(base):
    result = call("scan", base / "small.onnx", "-l", "conv1", "--images", base / "photos")
    assert result.exit_code == 2
    assert "--out" in result.stderr


OUTS = {
    "a-file": ("file", "file: cannot be written to (File exists)"),
    "below-a-file": ("file/run", "cannot be written to (Not a directory)"),
    "file-below-a-file": ("file/x.atlas", "cannot be written to ("),
}


@pytest.mark.parametrize(("name", "message"), OUTS.values(), ids=OUTS)
def test_places_where_no_scan_can_be(base, tmp_path, name, message):
    (tmp_path / "file").write_text("mine")
    fails(_scan(base, tmp_path / name), 1, message)
    assert _content(tmp_path) == {"file": b"mine"}


def test_a_folder_in_the_place_of_the_scan(base, tmp_path):
    (tmp_path / "run" / "scan.atlas").mkdir(parents=True)
    fails(_scan(base, tmp_path / "run"), 1, "scan.atlas: the scan cannot be read (Is a directory)")
    assert _names(tmp_path / "run") == ["scan.atlas"]


def test_a_foreign_file_is_set_aside(base, tmp_path):
    (tmp_path / "sprites.atlas").write_text("4.png\nsize: 64,64\n")
    result = _scan(base, tmp_path / "sprites.atlas")
    assert result.exit_code == 0
    text = " ".join(result.stdout.split())
    assert (
        "not a scan of onnxviz, or its beginning is damaged. It was set aside as sprites.atlas.damaged-1."
        in text
    )
    assert (tmp_path / "sprites.atlas.damaged-1").read_text() == "4.png\nsize: 64,64\n"
    assert SavedScan.read(tmp_path / "sprites.atlas").whole


@pytest.mark.parametrize("command", ["scan", "analyze"])
def test_a_place_in_use(base, tmp_path, command):
    call = _scan if command == "scan" else _analyze
    with locked(tmp_path / "run"):
        fails(call(base, tmp_path / "run"), 1, f"run is in use by process {os.getpid()} on ")
    assert _names(tmp_path) == []


@pytest.mark.parametrize("place", ["run", "run/scan.atlas", "x.atlas"])
def test_analyze_locks_what_it_keeps_its_scan_in(base, tmp_path, place):
    with locked(tmp_path / place):
        fails(_analyze(base, tmp_path / "run", "--run", tmp_path / place), 1, "is in use by process")
    result = _analyze(base, tmp_path / "run", "--run", tmp_path / place)
    assert result.exit_code == 0, result.output
    assert {*_names(tmp_path), *_names(tmp_path / "run")} & {".onnxviz.lock", ".x.atlas.lock"} == set()


def test_scan_does_not_mix_with_a_report_of_another_run(base, tmp_path):
    assert _analyze(base, tmp_path / "run", "--run", tmp_path / "x.atlas").exit_code == 0
    before = _content(tmp_path)
    fails(_scan(base, tmp_path / "run"), 2, "run holds a report of another run")
    assert _content(tmp_path) == before
    assert _scan(base, tmp_path / "run", "--restart").exit_code == 0
    assert call("report", tmp_path / "run").exit_code == 0
    assert [one.layer.alias for one in onnxviz.Atlas.load(tmp_path / "run").layers] == ["conv1", "fc1"]


def test_the_scan_writes_nowhere_else(base, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    before = _content(base)
    assert _scan(base, Path("run")).exit_code == 0
    assert _content(base) == before
    assert list(_content(tmp_path)) == ["run/scan.atlas"]


# merge


def test_merge(base, tmp_path):
    parts = [tmp_path / f"{number}.atlas" for number in (1, 2, 3)]
    for number, part in enumerate(parts, 1):
        assert _scan(base, part, "--shard", f"{number}/3").exit_code == 0
    fails(
        call("merge", *parts[1:], "-o", tmp_path / "run"),
        1,
        "Images 0 to 7 of 24 are in no part; missing: shard 1/3",
    )
    fails(call("merge", *parts, parts[1], "-o", tmp_path / "run"), 1, "Images 8 to 15 are both in")
    result = call("merge", *reversed(parts), "-o", tmp_path / "run")
    assert result.exit_code == 0, result.output
    assert result.stdout.splitlines() == [
        "3 parts: 23 images scanned, 1 skipped",
        f"Scan: {tmp_path / 'run'} (onnxviz report goes on from here)",
    ]
    assert (tmp_path / "run" / "scan.atlas").read_bytes() == (base / "whole.atlas").read_bytes()
    fails(call("merge", *parts, "-o", tmp_path / "run"), 2, "holds a scan already", "--restart")
    assert call("merge", *parts, "-o", tmp_path / "run", "--restart").exit_code == 0
    fails(call("merge", *parts, "-o", parts[0]), 2, "is one of the parts")
    fails(call("merge", tmp_path / "no.atlas", "-o", tmp_path / "x"), 1, "no.atlas: there is no such scan")
    assert call("report", tmp_path / "run").exit_code == 0
    fails(
        call("merge", *parts, "-o", tmp_path / "file.onnx" / "run" / ".." / ".." / "run"), 2, "holds a scan"
    )


def test_merge_does_not_mix_with_a_report_of_another_run(base, tmp_path):
    assert _analyze(base, tmp_path / "run", "--run", tmp_path / "x.atlas").exit_code == 0
    fails(call("merge", base / "whole.atlas", "-o", tmp_path / "run"), 2, "holds a report of another run")


def test_merge_waits_for_nobody(base, tmp_path):
    with locked(tmp_path / "run"):
        fails(call("merge", base / "whole.atlas", "-o", tmp_path / "run"), 1, "is in use by process")


# report


def test_report_of_a_scan(base, own):
    result = call("report", own / "run")
    assert result.exit_code == 0, result.output
    assert result.stdout.splitlines()[-1] == f"Report: {own / 'run' / 'index.html'}"
    drawn = onnxviz.Atlas.load(own / "run")
    plain = onnxviz.analyze(
        own / "small.onnx",
        layers=["conv1", "fc1"],
        images=own / "photos",
        top=4,
        batch_size=4,
        provider="cpu",
    )
    for one, other in zip(drawn.layers, plain.layers, strict=True):
        for name, array in one.topk.arrays().items():
            np.testing.assert_array_equal(array, other.topk.arrays()[name])
    for path in plain.pictures():
        assert (own / "run" / path).read_bytes() == (plain.folder / path).read_bytes(), path


def test_report_of_a_file_needs_a_place(base, tmp_path):
    fails(call("report", base / "whole.atlas"), 2, "is a file: name a folder for its report with --out")
    result = call("report", base / "whole.atlas", "--out", tmp_path / "r")
    assert result.exit_code == 0, result.output
    assert (tmp_path / "r" / "index.html").exists()
    assert not (tmp_path / "r" / "scan.atlas").exists()


def test_report_of_a_file_in_one_file(base, own):
    """And nothing else, neither beside it nor in the scan's folder."""
    message = "is a file: name a file for it with --out FILE.html"
    fails(call("report", base / "whole.atlas", "--single-file"), 2, message)
    one = call("report", base / "whole.atlas", "--single-file", "--out", own / "one.html")
    assert one.exit_code == 0, one.output
    assert (own / "one.html").stat().st_size > 100_000
    assert call("report", own / "run", "--single-file", "-l", "fc1", "--out", own / "fc1.html").exit_code == 0
    fails(call("report", own / "run", "--single-file", "-l", "fc1"), 2, "must not replace the whole")
    assert call("report", own / "run", "--single-file").exit_code == 0
    assert _names(own) == ["fc1.html", "one.html", "photos", "run", "run.html", "small.onnx"]
    assert _names(own / "run") == ["scan.atlas"]


def test_report_of_an_unfinished_scan(base, tmp_path):
    message = fails(
        call("report", base / "half.atlas", "--out", tmp_path / "r"), 1, "the scan is not finished"
    )
    assert "12 of 24 images are done. Run its command again, or merge its shards." in message
    assert _names(tmp_path) == []


def test_report_of_no_scan(tmp_path):
    fails(call("report", tmp_path), 1, "holds no atlas")
    fails(call("report", tmp_path / "no.atlas", "--out", tmp_path / "r"), 1, "no.atlas")
    (tmp_path / "bad.atlas").write_bytes(b"onnxviz scan 1\n")
    fails(
        call("report", tmp_path / "bad.atlas", "--out", tmp_path / "r"), 1, "bad.atlas: the scan is damaged"
    )
    assert _names(tmp_path) == ["bad.atlas"]


def test_report_after_everything_moved(own):
    (own / "small.onnx").rename(own / "model.onnx")
    fails(call("report", own / "run"), 2, "small.onnx", "--model")
    (own / "photos").rename(own / "pictures")
    fails(call("report", own / "run", "--model", own / "model.onnx"), 2, "photos", "--images")
    assert _names(own / "run") == ["scan.atlas"]
    moved = ("--model", own / "model.onnx", "--images", own / "pictures")
    result = call("report", own / "run", *moved)
    assert result.exit_code == 0, result.output
    fails(call("report", own / "run", *moved, "--provider", "tpu"), 2, "tpu")


def test_report_after_the_model_changed(own):
    write(own / "small.onnx", small(seed=3))
    message = fails(
        call("report", own / "run"), 2, "small.onnx is not the model that was scanned (small.onnx)"
    )
    assert "content differs" in message
    write(own / "other.onnx", small())
    assert call("report", own / "run", "--model", own / "other.onnx").exit_code == 0


@pytest.mark.parametrize("change", ["one-less", "one-larger", "others"])
def test_report_after_the_images_changed(own, change):
    if change == "one-less":
        (own / "photos" / "23.png").unlink()
    elif change == "one-larger":
        with (own / "photos" / "23.png").open("ab") as file:
            file.write(b"\0")
    else:
        shutil.rmtree(own / "photos")
        (own / "photos").mkdir()
        Image.new("RGB", (12, 12)).save(own / "photos" / "a.png")
    fails(
        call("report", own / "run"),
        2,
        "are not the images that were scanned (photos/ (24 images",
        "--images",
    )
    assert _names(own / "run") == ["scan.atlas"]


@pytest.mark.parametrize("where", ["there", "named"])
def test_report_notes_files_that_were_changed_or_copied(own, where):
    """Of the same sizes: that alone does not show that they are others. Whoever names the place knows what is there."""
    os.utime(own / "photos" / "03.png", ns=(1, 1))
    named = ("--images", own / "photos") if where == "named" else ()
    result = call("report", own / "run", "-l", "fc1", "--out", own / "r", *named)
    assert result.exit_code == 0, result.output
    assert ("files were changed or copied since the scan" in " ".join(result.stdout.split())) == (not named)


def test_report_draws_anew(own):
    assert call("report", own / "run").exit_code == 0
    first = _content(own / "run")
    result = call("report", own / "run", "--method", "guided", "--method", "gradient", "--control")
    assert result.exit_code == 0, result.output
    assert onnxviz.Atlas.load(own / "run").provenance.method == "guided"
    second = _content(own / "run")
    assert second["scan.atlas"] == first["scan.atlas"]
    assert second.keys() - first.keys() >= {"pictures/conv1/00000-compared.webp", "layers/conv1/compare.html"}
    fails(call("report", own / "run", "--method", "guided", "-l", "conv1"), 2, "must not replace the whole")
    fails(call("report", own / "run", "--method", "best"), 2, "best")
    assert _content(own / "run").keys() == second.keys()


def test_a_part_of_a_scan_is_drawn(own, tmp_path):
    result = call("report", own / "run", "-l", "fc1", "--channels", "0-2", "--top", 2, "--out", own / "part")
    assert result.exit_code == 0, result.output
    (one,) = onnxviz.Atlas.load(own / "part").layers
    assert (one.layer.alias, one.pictured, one.top) == ("fc1", (0, 1, 2), 2)
    fails(
        call("report", own / "run", "-l", "fc1"), 2, "must not replace the whole: give it a place of its own"
    )
    fails(call("report", own / "run", "--top", 5, "--out", own / "p"), 2, "kept the 4 strongest images")
    fails(call("report", own / "run", "-l", "relu1", "--out", own / "p"), 2, "relu1")
    assert not (own / "p").exists()


# analyze


def test_analyze_does_not_scan_again(base, tmp_path, monkeypatch):
    assert _analyze(base, tmp_path / "run").exit_code == 0
    scanned = (tmp_path / "run" / "scan.atlas").read_bytes()

    def never(*_: object, **__: object) -> None:
        pytest.fail("it was scanned again")

    monkeypatch.setattr("onnxviz.setup.Scanner", never)
    result = _analyze(base, tmp_path / "run", "--method", "guided")
    assert result.exit_code == 0, result.output
    assert "Scanned before: 24 images" in result.stdout
    assert (tmp_path / "run" / "scan.atlas").read_bytes() == scanned
    assert onnxviz.Atlas.load(tmp_path / "run").provenance.method == "guided"


def test_analyze_replaces_a_finished_scan_in_the_reports_folder(base, tmp_path):
    assert _analyze(base, tmp_path / "run").exit_code == 0
    result = _analyze(base, tmp_path / "run", "--top", 3)
    assert result.exit_code == 0, result.output
    text = re.sub(r"\s+", " ", result.stdout)
    assert "run is replaced: --top was 4 (now 3)." in text
    assert SavedScan.read(tmp_path / "run" / "scan.atlas").job.top == 3
    assert _names(tmp_path / "run").count("scan.atlas") == 1


def test_analyze_refuses_another_scan_that_it_is_pointed_to(base, tmp_path):
    keep = ("--run", tmp_path / "kept")
    assert _analyze(base, tmp_path / "r", *keep).exit_code == 0
    assert not (tmp_path / "r" / "scan.atlas").exists()
    before = _content(tmp_path)
    fails(
        _analyze(base, tmp_path / "r", *keep, "--top", 3), 2, "kept holds another scan: --top was 4 (now 3)"
    )
    assert _content(tmp_path) == before
    result = _analyze(base, tmp_path / "r", *keep, "--top", 3, "--restart")
    assert result.exit_code == 0, result.output
    assert SavedScan.read(tmp_path / "kept" / "scan.atlas").job.top == 3


@pytest.mark.parametrize("layers", [["conv1"], ["conv1", "fc1"]], ids=["another", "a-part"])
def test_analyze_refuses_an_unfinished_scan_of_something_else(base, tmp_path, layers):
    options = [f"--layer={name}" for name in layers] + [
        "--images",
        base / "photos",
        "--top",
        4,
        "--batch-size",
        4,
    ]
    assert _scan(base, tmp_path / "run", "--shard", "1/2").exit_code == 0
    different = (
        "it was for images 0 to 11 (now 0 to 23)" if len(layers) == 2 else "the layers were conv1, dense1"
    )
    result = call("analyze", base / "small.onnx", *options, "--out", tmp_path / "run")
    fails(result, 2, f"run holds another scan: {different}")
    assert _names(tmp_path / "run") == ["scan.atlas"]
    assert _analyze(base, tmp_path / "run", "--restart").exit_code == 0


def test_analyze_takes_over_a_scan(base, tmp_path):
    """What scan found, analyze draws; what analyze found, report draws."""
    assert (
        call(
            "scan",
            base / "small.onnx",
            "-l",
            "conv1",
            "--images",
            base / "photos",
            "--top",
            4,
            "-o",
            tmp_path / "run",
        ).exit_code
        == 0
    )
    result = _analyze(base, tmp_path / "run")
    assert result.exit_code == 0, result.output
    assert "Scanned before" in result.stdout
    shutil.rmtree(tmp_path / "run" / "pictures")
    (tmp_path / "run" / "atlas.json").unlink()
    assert call("report", tmp_path / "run").exit_code == 0
    assert (tmp_path / "run" / "pictures" / "conv1" / "00000.webp").exists()


@pytest.mark.parametrize("value", ["-1", "often"])
def test_wrong_intervals(base, tmp_path, value):
    result = _scan(base, tmp_path / "run", f"--save-every={value}")
    assert result.exit_code == 2
    assert "--save-every" in result.stderr
    assert _names(tmp_path) == []


def test_other_names_of_classes_are_told(base, tmp_path):
    """They name numbered folders, so the labels of images are others."""
    shutil.copytree(base / "photos", tmp_path / "photos" / "0")
    (tmp_path / "names.txt").write_text("\n".join(f"class {number}" for number in range(6)))
    shutil.copy(base / "small.onnx", tmp_path / "small.onnx")
    assert _scan(tmp_path, tmp_path / "run").exit_code == 0
    fails(_scan(tmp_path, tmp_path / "run", "--labels", tmp_path / "names.txt"), 2, "images or their labels")


def test_a_report_does_not_stand_beside_the_scan_of_another(base, tmp_path):
    """What report would draw anew must be what it shows."""
    out, elsewhere = tmp_path / "out", tmp_path / "x.atlas"
    assert _analyze(base, out).exit_code == 0
    assert (out / "scan.atlas").exists()
    assert _analyze(base, out, "--run", elsewhere, "-l", "conv2").exit_code == 0
    assert elsewhere.exists() and not (out / "scan.atlas").exists()
    whole = SavedScan.read(elsewhere)
    begun = replace(whole, part=Part.empty(whole.job.layers, whole.job.top))
    begun.write(out / "scan.atlas")
    result = _analyze(base, out, "--run", elsewhere, "-l", "conv2")
    fails(result, 2, "holds a scan of its own that is not finished", "--restart")
    assert (out / "scan.atlas").exists()
    assert _analyze(base, out, "--run", elsewhere, "-l", "conv2", "--restart").exit_code == 0
    assert not (out / "scan.atlas").exists()
