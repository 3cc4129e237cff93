"""The whole job on images behind a URL: the report of the same images here, waited for in many threads, no secrets."""

from __future__ import annotations

import io
import json
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from typer.testing import CliRunner

from onnxviz import Atlas, analyze, cli
from onnxviz.forward.scan import prepared
from onnxviz.images import store
from onnxviz.images.preprocess import resolve_preprocess
from onnxviz.images.source import Sample, Source, open_source
from tests.images.serving import serving
from tests.images.test_source import write, write_tar, write_zip
from tests.model.nets import small
from tests.model.nets import write as write_model

pytest.importorskip("aiohttp")


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(store, "PAUSES", (0.0, 0.01, 0.01))
    monkeypatch.setattr(store, "FIRST_PAUSES", (0.0, 0.01, 0.01))
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")


@pytest.fixture(scope="module")
def photos() -> dict[str, bytes]:
    rng, found = np.random.default_rng(0), {}
    for number in range(24):
        file = io.BytesIO()
        Image.fromarray(rng.integers(0, 256, (5, 5, 3), np.uint8)).resize((20, 16)).save(file, "PNG")
        found[f"{'cat' if number % 2 else 'dog'}/{number}.png"] = file.getvalue()
    return found


def hits(atlas: Atlas) -> list[object]:
    return [
        (channel, hit.image, hit.y, hit.x, hit.score)
        for one in atlas.layers
        for channel in range(one.layer.channels)
        for hit in one.topk.hits(channel)
    ]


@pytest.mark.parametrize("place", ["photos/", "a.zip", "s-{0..2}.tar", "s-*.tar"])
def test_the_same_report_as_of_a_folder_here(tmp_path: Path, photos: dict[str, bytes], place: str) -> None:
    model = write_model(tmp_path / "small.onnx", small())
    here = analyze(model, images=write(tmp_path / "photos", photos), layers="relu1", report=tmp_path / "here")
    files = {f"photos/{name}": data for name, data in photos.items()}
    files["a.zip"] = write_zip(tmp_path / "a.zip", photos).read_bytes()
    for shard in range(3):
        members = dict(list(photos.items())[shard::3])
        files[f"s-{shard}.tar"] = write_tar(tmp_path / f"{shard}.tar", members, "w").read_bytes()
    with serving(files) as served:
        for name in files:
            served.failures[name] = [503]
        there = analyze(model, images=f"{served.url}/{place}", layers="relu1", report=tmp_path / "there")
    assert hits(there) == hits(here)
    one, other = (json.loads((tmp_path / name / "report.json").read_text()) for name in ("here", "there"))
    assert one["layers"] == other["layers"]


def test_no_secret_is_written(
    tmp_path: Path, photos: dict[str, bytes], monkeypatch: pytest.MonkeyPatch
) -> None:
    model = write_model(tmp_path / "small.onnx", small())
    files = {f"p/{name.replace('/', '-')}": data for name, data in photos.items()}
    with serving(files) as served:
        served.failures["p/cat-1.png"] = [403] * 9
        names = ",".join(name.removeprefix("p/").removesuffix(".png") for name in files)
        url = f"{served.url.replace('//', '//me:s3cr3t@')}/p/{{{names}}}.png?token=s3cr3t"
        options = [
            "analyze",
            str(model),
            "-l",
            "conv1",
            "--images",
            url,
            "--out",
            str(tmp_path / "out"),
            "--single-file",
        ]
        monkeypatch.setattr(sys, "argv", ["onnxviz", *options])
        result = CliRunner().invoke(cli.app, options)
        assert all("token=s3cr3t" in path for _, path, _ in served.requests)
        assert served.requests and None not in served.authorizations
    assert result.exit_code == 0, result.output
    assert "23 images scanned, 1 skipped" in result.output
    assert "s3cr3t" not in result.output
    written = [path for path in (tmp_path / "out").rglob("*") if path.is_file()] + [tmp_path / "out.html"]
    assert len(written) > 10
    assert not [path for path in written if b"s3cr3t" in path.read_bytes()]
    said = json.loads((tmp_path / "out" / "report.json").read_text())["provenance"]
    assert "token" not in said["command"] and "***@127.0.0.1" in said["command"]


def test_what_is_far_is_waited_for_in_many_threads() -> None:
    recipe = resolve_preprocess(channels=3, height=8, width=8)
    inside, most = [0], [0]

    def read() -> np.ndarray:
        inside[0] += 1
        most[0] = max(most[0], inside[0])
        time.sleep(0.05)
        inside[0] -= 1
        return np.zeros((8, 8, 3), np.uint8)

    samples = tuple(Sample(str(number), None, read) for number in range(96))
    for readers in (None, 24):
        most[0] = 0
        began = time.perf_counter()
        got = list(prepared(Source("far", samples, readers=readers), recipe, range(96), ahead=4))
        assert [index for index, _ in got] == list(range(96))
    assert most[0] > 12
    assert time.perf_counter() - began < 96 * 0.05 / 2


def test_a_scan_that_is_broken_off_does_not_wait_for_further_tries(
    photos: dict[str, bytes], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(store, "PAUSES", (60.0,) * 5)
    recipe = resolve_preprocess(channels=3, height=8, width=8)
    with serving({f"p/{name}": data for name, data in photos.items()}) as served:
        source = open_source(f"{served.url}/p/")
        last = f"p/{source.samples[-1].name}"
        served.failures[last] = [503] * 9
        items = prepared(source, recipe, range(24), ahead=24)
        next(items)
        while len(served.failures[last]) == 9:
            time.sleep(0.01)
        began = time.perf_counter()
        items.close()
    assert time.perf_counter() - began < 20


def test_urls_in_the_command_line_keep_their_slashes(tmp_path: Path) -> None:
    model = write_model(tmp_path / "small.onnx", small())
    result = CliRunner().invoke(
        cli.app, ["analyze", str(model), "-l", "conv1", "--images", "memory://nowhere/x"]
    )
    assert result.exit_code == 2
    assert result.stderr.strip().endswith("memory://nowhere/x: no such file or folder")


def test_opening_a_url_again_is_opening_it_anew(photos: dict[str, bytes]) -> None:
    with serving({f"p/{name}": data for name, data in photos.items()}) as served:
        assert len(open_source(f"{served.url}/p/").samples) == 24
        served.files["p/new.png"] = next(iter(photos.values()))
        assert len(open_source(f"{served.url}/p/").samples) == 25
