"""The command line as tests call it, and what they make of its errors."""

from __future__ import annotations

from click.testing import Result
from typer.testing import CliRunner

from onnxviz import cli

__all__ = ["call", "fails"]


def call(*arguments: object) -> Result:
    return CliRunner().invoke(cli.app, [str(argument) for argument in arguments], catch_exceptions=True)


def fails(result: Result, code: int, *parts: str) -> str:
    """One or two lines on standard error, no traceback."""
    assert result.exit_code == code, (result.output, result.exception)
    message = result.stderr.strip()
    assert "Traceback" not in result.output
    assert 1 <= len(message.splitlines()) <= 2, message
    for part in parts:
        assert part in message, message
    return message
