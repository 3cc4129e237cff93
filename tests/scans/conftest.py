"""What several processes scan, and what one makes of it."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.scans.fleet import BROKEN, IMAGES, data, scan


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model and images, of which some cannot be read."""
    base = tmp_path_factory.mktemp("fleet")
    data(base, IMAGES, BROKEN)
    return base


@pytest.fixture(scope="module")
def expected(folder: Path) -> bytes:
    """What one process finds."""
    assert scan(folder, folder / "one.atlas").whole
    return (folder / "one.atlas").read_bytes()
