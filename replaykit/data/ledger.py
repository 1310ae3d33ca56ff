"""Finished rows, appended as they come: what a step that was cut short goes on from.

with Ledger(folder / "answers.jsonl") as ledger:
    for row in rows:
        if row.address not in ledger:
            ledger.append({"row": row.address, "text": answer_to(row)})
"""

from __future__ import annotations

import json
from array import array
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from replaykit.errors import RunError

LedgerRow = dict[str, Any]
"""What a step knows of a finished row: "row", its address, and any other JSON."""


class Ledger(Mapping[int, LedgerRow]):
    """An append-only JSONL file of finished rows, by row address.

    A torn last line, as a killed process leaves it, is dropped on opening; another damaged line is
    a RunError. The rows stay in the file: what is held in memory is where each begins, 8 bytes for
    every address up to the last.
    """

    def __init__(self, path: Path):
        # By address, where in the file the row begins; -1 where there is no row.
        self._places = array("q")
        self._count = 0
        self._end = 0
        if path.exists():
            self._find_rows(path)
        self._stream = path.open("ab", buffering=0)
        self._stream.truncate(self._end)
        self._reader = path.open("rb")

    def _find_rows(self, path: Path) -> None:
        with path.open("rb") as stream:
            for number, line in enumerate(stream, 1):
                if not line.endswith(b"\n"):
                    return
                try:
                    self._put(json.loads(line)["row"], self._end)
                except (ValueError, TypeError, KeyError) as error:
                    todo = "take that line out, and its row is made again"
                    raise RunError(f"{path}:{number}: damaged ({error!r}); {todo}") from error
                self._end += len(line)

    def __contains__(self, row: object) -> bool:
        return isinstance(row, int) and row < len(self._places) and self._places[row] >= 0

    def __iter__(self) -> Iterator[int]:
        return (row for row, place in enumerate(self._places) if place >= 0)

    def __getitem__(self, row: int) -> LedgerRow:
        if row not in self:
            raise KeyError(row)
        self._reader.seek(self._places[row])
        return dict(json.loads(self._reader.readline()))

    def __len__(self) -> int:
        return self._count

    def append(self, row: Mapping[str, Any]) -> None:
        """Writes the row at once. Its address, row["row"], is a whole number that is not there."""
        assert row["row"] not in self, f"row {row['row']} is finished already"
        line = json.dumps(row, ensure_ascii=False).encode() + b"\n"
        size = len(line)
        # On a disk that is nearly full a write may take a part, and only the next one fails.
        while line:
            line = line[self._stream.write(line) :]
        self._put(row["row"], self._end)
        self._end += size

    def _put(self, row: int, place: int) -> None:
        if row >= len(self._places):
            self._places.extend([-1] * (row + 1 - len(self._places)))
        self._places[row] = place
        self._count += 1

    def close(self) -> None:
        self._stream.close()
        self._reader.close()

    def __enter__(self) -> Ledger:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()
