"""Real runs that are killed at random moments go on to the bytes of one that was left alone.

``python -m tests.scans.kills --count 100`` does the same more often.
"""

from __future__ import annotations

import sys

import pytest

from onnxviz.scans.saved import SavedScan
from tests.scans.kills import Trial, campaign

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="no signals between processes")

CAMPAIGNS = [
    pytest.param("scan", "SIGKILL", 6, id="scan-SIGKILL"),
    pytest.param("scan", "SIGINT", 1, id="scan-SIGINT"),
    pytest.param("scan", "SIGTERM", 1, id="scan-SIGTERM"),
    pytest.param("analyze", "SIGKILL", 3, id="analyze-SIGKILL"),
    pytest.param("analyze", "SIGINT", 1, id="analyze-SIGINT"),
    pytest.param("analyze", "SIGTERM", 1, id="analyze-SIGTERM"),
]


@pytest.fixture(scope="module")
def trials(tmp_path_factory):
    folder = tmp_path_factory.mktemp("resume")
    return {
        "scan": Trial(folder / "scan", "scan", 8000),
        "analyze": Trial(folder / "analyze", "analyze", 3000),
    }


@pytest.mark.parametrize(("command", "name", "count"), CAMPAIGNS)
def test_it_goes_on_after_each_end(trials, command, name, count):
    ends = list(campaign(trials[command], name, count, seed=count))
    assert len(ends) == count


def test_the_run_left_alone_is_whole(trials):
    """So that what the others are compared with is something."""
    for command, images in (("scan", 8000), ("analyze", 3000)):
        scan = SavedScan.from_bytes(trials[command].whole["scan.atlas"], "scan")
        assert scan.whole
        assert scan.part.images == images
    assert trials["scan"].whole.keys() == {"scan.atlas"}
    assert {"index.html", "atlas.json", "arrays.npz", "report.json"} <= trials["analyze"].whole.keys()
