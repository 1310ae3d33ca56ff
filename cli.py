"""Runs the commands from a checkout: ``python cli.py --help``. It is not part of the wheel."""

from replaykit.cli import main

if __name__ == "__main__":  # not in the processes that it starts
    main()
