"""Runs the commands from a checkout: ``python cli.py --help``. The wheel does not install this file."""

from replaykit.cli import main

if __name__ == "__main__":  # not in the processes that it starts
    main()
