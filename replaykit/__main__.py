"""``python -m replaykit``: the same as ``replaykit``."""

from replaykit.cli import main

main()
