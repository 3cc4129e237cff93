"""Where the tests of forward and reverse run: ``pytest --provider cuda``."""

from __future__ import annotations

import pytest


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--provider", choices=("cpu", "cuda"), default="cpu", help="what the tests of networks run on"
    )


@pytest.fixture(scope="session")
def provider(request: pytest.FixtureRequest) -> str:
    """``cpu`` or ``cuda``, as asked for on the command line."""
    return str(request.config.getoption("--provider"))


@pytest.fixture(scope="session")
def rounding(provider: str) -> float:
    """How far results of two batches, or of the provider and the CPU, may be apart, to the largest."""
    return {"cpu": 1e-5, "cuda": 1e-3}[provider]
