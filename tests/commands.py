"""Commands as a user types them."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

from typer.testing import CliRunner

from replaykit.cli import app


def type_in(*words: object, code: int = 0) -> str:
    """What the command prints on stdout; on stderr where it is meant to fail. Asserts the exit code."""
    result = CliRunner().invoke(app, [str(word) for word in words])
    assert result.exit_code == code, result.output
    return result.stdout if code == 0 else result.stderr


def two_ranks(*words: object) -> subprocess.CompletedProcess[str]:
    """Two processes of torchrun that train as two_ranks.py says, with these words."""
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone"]
    script = Path(__file__).parent / "two_ranks.py"
    return subprocess.run(
        [*command, "--nproc_per_node", "2", str(script), *map(str, words)],
        capture_output=True,
        text=True,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
    )
