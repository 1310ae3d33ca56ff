"""``python -m replaykit``: the same as ``replaykit``."""

from replaykit.cli import main

if __name__ == "__main__":
    main()
