"""Where the tests of forward and reverse run: ``pytest --provider cuda``."""

from __future__ import annotations

import signal

import pytest

_ROUNDING = {"cpu": 1e-5, "cuda": 1e-3}


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--provider", choices=("cpu", "cuda"), default="cpu", help="what the tests of networks run on"
    )


def pytest_configure(config: pytest.Config) -> None:
    """How close projections must be depends on the provider; modules take the number over when they are imported.

    A shell lets what it starts in the background ignore Ctrl-C. The tests of Ctrl-C take it back.
    """
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)
    from tests.reverse import pasting

    pasting.CLOSE = _ROUNDING[config.getoption("--provider")]


@pytest.fixture(scope="session")
def provider(request: pytest.FixtureRequest) -> str:
    """``cpu`` or ``cuda``, as asked for on the command line."""
    return str(request.config.getoption("--provider"))


@pytest.fixture(scope="session")
def rounding(provider: str) -> float:
    """How far results of two batches, or of the provider and the CPU, may be apart, to the largest."""
    return _ROUNDING[provider]
