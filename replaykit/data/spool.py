"""Bytes of rows in a temporary file, by the rows' numbers from 0.

spool = Spool(folder)
spool.append(b"first")
spool[0]  ->  b"first"
"""

from __future__ import annotations

import os
import tempfile
from array import array
from pathlib import Path


class Spool:
    """Rows that are written once, in order, and read in any. Memory is 8 bytes a row; ``close``
    deletes the file.
    """

    def __init__(self, folder: str | Path | None):
        self._file = tempfile.TemporaryFile(dir=folder)  # noqa: SIM115 - closed by close
        self._ends = array("Q", [0])
        self._written = 0  # bytes that are in the file, not in our buffer any more

    def __len__(self) -> int:
        return len(self._ends) - 1

    def __getitem__(self, row: int) -> bytes:
        start = self._ends[row]
        end = self._ends[row + 1]
        if end > self._written:
            self._file.flush()
            self._written = self._ends[-1]
        return os.pread(self._file.fileno(), end - start, start)

    def append(self, row: bytes) -> None:
        self._ends.append(self._ends[-1] + self._file.write(row))

    def close(self) -> None:
        self._file.close()
