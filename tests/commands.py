"""Commands as a user types them."""

from __future__ import annotations

from typer.testing import CliRunner

from replaykit.cli import app


def type_in(*words: object, code: int = 0) -> str:
    """What the command prints on stdout; on stderr where it is meant to fail. Asserts the exit code."""
    result = CliRunner().invoke(app, [str(word) for word in words])
    assert result.exit_code == code, result.output
    return result.stdout if code == 0 else result.stderr
