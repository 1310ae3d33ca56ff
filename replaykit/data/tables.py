"""The rows of tables: CSV, parquet, and what ``datasets`` saved to disk."""

from __future__ import annotations

import csv
from collections import Counter, deque
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from replaykit.data.streams import (
    MAX_LINE,
    TOO_LONG,
    Row,
    Unparsed,
    lines_of,
    not_utf8,
    one_line,
    opened,
    tell,
)
from replaykit.errors import DataError

if TYPE_CHECKING:
    import pyarrow

MAX_FIELD = 1 << 30  # characters of a CSV cell; Python's own limit is 131,072
BATCH_ROWS = 1024
BATCH_BYTES = 1 << 26  # of a parquet file, decoded at once
OPEN_QUOTE = (
    'the row is broken: a quote opens in it that is not closed as CSV wants ({}); write a " inside '
    'a cell as ""'
)


# --- CSV ------------------------------------------------------------------------------------------


class _Record:
    """The lines that make one row of a CSV file: a cell in quotes may hold line breaks.

    A row whose quotes are broken takes in all lines up to the next quote. Its lines are therefore
    kept, so that those after the first can be read again as rows of their own.
    """

    def __init__(self, lines: Iterator[tuple[int, bytes | None]]):
        self._lines = lines
        self._again: deque[tuple[int, bytes | None]] = deque()
        self._taken: list[tuple[int, bytes | None]] = []
        self._size = 0
        self.fault = ""
        """What is wrong with a line of this row, in bytes rather than in quotes."""

    def __iter__(self) -> Iterator[str]:
        return self

    def __next__(self) -> str:
        number, line = self._again.popleft() if self._again else next(self._lines)
        self._taken.append((number, line))
        if line is None:
            self.fault = TOO_LONG
            return "\n"
        self._size += len(line)
        if self._size > MAX_LINE:
            raise csv.Error(f"its end is not found in {MAX_LINE >> 20} MiB")
        try:
            return line.decode("utf-8-sig" if number == 1 else "utf-8")
        except UnicodeDecodeError as error:
            self.fault = str(not_utf8("", error.reason)).removeprefix(": ")
            return line.decode("utf-8", "replace")

    @property
    def first(self) -> int:
        """The number of the row's first line."""
        return self._taken[0][0]

    @property
    def last(self) -> int:
        return self._taken[-1][0]

    def done(self) -> None:
        """The row is read; the next line begins another one."""
        self._taken.clear()
        self._size = 0
        self.fault = ""

    def give_back(self) -> None:
        """All lines but the first are read again, as rows of their own."""
        self._again.extendleft(reversed(self._taken[1:]))
        self.done()


def csv_rows(path: Path, unparsed: Unparsed | None) -> Iterator[tuple[str, Row]]:
    """The rows of a CSV file with a line of names; a row with line breaks has its last line's
    number.

    A row with broken quotes is told by its first line, and the rows after it are read.
    """
    csv.field_size_limit(MAX_FIELD)
    with opened(path) as stream:
        lines = _Record(lines_of(stream))
        names = _names(path, lines)
        while True:
            rows = csv.reader(lines, strict=True)
            try:
                for cells in rows:
                    place = f"{path}:{lines.last}"
                    fault = lines.fault
                    lines.done()
                    try:
                        row = _row(place, names, cells, fault)
                    except DataError as error:
                        tell(unparsed, place, error)
                        continue
                    if row is not None:
                        yield place, row
                return
            except csv.Error as error:
                place = f"{path}:{lines.first}"
                lines.give_back()
                tell(unparsed, place, DataError(f"{place}: {OPEN_QUOTE.format(error)}"))


def _names(path: Path, lines: _Record) -> list[str]:
    """The cells of the first row that is not blank; [] for an empty file."""
    try:
        for cells in csv.reader(lines, strict=True):
            if lines.fault:
                raise DataError(f"{path}:{lines.last}: {lines.fault}")
            lines.done()
            if cells:
                twice = [name for name, count in Counter(cells).items() if name and count > 1]
                if twice:
                    raise DataError(f"{path}:1: two columns have the name '{twice[0]}'; rename one")
                return cells
    except csv.Error as error:
        raise DataError(f"{path}:{lines.first}: not CSV ({error})") from error
    return []


def _row(place: str, names: list[str], cells: list[str], fault: str) -> Row | None:
    """The cells by name, None for those that are missing; None for a blank line."""
    if fault:
        raise DataError(f"{place}: {fault}")
    if not cells:
        return None
    if len(cells) > len(names):
        raise DataError(f"{place}: more cells than the first line has names")
    row: dict[str, str | None] = dict(zip(names, cells, strict=False))
    for name in names[len(cells) :]:
        row[name] = None
    return row


# --- Arrow ----------------------------------------------------------------------------------------


def parquet_rows(path: Path, unparsed: Unparsed | None) -> Iterator[tuple[str, Row]]:
    """The rows of a parquet file, numbered from 1, a part of a row group at a time."""
    import pyarrow
    import pyarrow.parquet

    try:
        table = pyarrow.parquet.ParquetFile(path)
        groups = [table.metadata.row_group(k) for k in range(table.num_row_groups)]
        row_bytes = max((g.total_byte_size // max(1, g.num_rows) for g in groups), default=0)
        batch_rows = max(1, min(BATCH_ROWS, BATCH_BYTES // max(1, row_bytes)))
        # Python reads the values in one thread, and takes far longer than Arrow.
        batches = table.iter_batches(batch_size=batch_rows, use_threads=False)
        yield from arrow_rows(str(path), batches, unparsed)
    # A damaged page is an OSError; a damaged name of a column cannot be decoded.
    except (pyarrow.ArrowException, OSError, UnicodeDecodeError) as error:
        raise DataError(f"{path}: not a parquet file ({one_line(error)})") from error


def arrow_rows(
    name: str, batches: Iterator[pyarrow.RecordBatch], unparsed: Unparsed | None
) -> Iterator[tuple[str, Row]]:
    """The rows of Arrow's batches, numbered from 1 over all of them."""
    number = 0
    for batch in batches:
        twice = [n for n, count in Counter(batch.schema.names).items() if count > 1]
        if twice:
            raise DataError(f"{name}: two columns have the name '{twice[0]}'; rename one")
        nested = [field.name for field in batch.schema if field.type.num_fields]
        too_long = _too_long(batch)
        for index, row in enumerate(_plain_rows(batch)):
            number += 1
            place = f"{name}:{number}"
            if index in too_long:
                row = TOO_LONG
            if isinstance(row, str):
                tell(unparsed, place, DataError(f"{place}: {row}"))
                continue
            for column in nested:
                row[column] = own_keys(row[column])
            yield place, row


def _too_long(batch: pyarrow.RecordBatch) -> set[int]:
    """The indices of the rows that are longer than a row may be."""
    import pyarrow

    if batch.nbytes <= MAX_LINE:
        return set()
    # A dictionary is counted whole with each of its rows.
    names = [each.name for each in batch.schema if not pyarrow.types.is_dictionary(each.type)]
    sized = batch.select(names)
    return {k for k in range(batch.num_rows) if sized.slice(k, 1).nbytes > MAX_LINE}


def _plain_rows(batch: pyarrow.RecordBatch) -> Iterator[dict[str, Any] | str]:
    """The rows as plain Python values; in the place of one that has none, what is wrong."""
    try:
        rows = batch.to_pylist()
    except (ValueError, OverflowError) as error:  # also of bytes that are no UTF-8
        if batch.num_rows > 1:
            for number in range(batch.num_rows):
                yield from _plain_rows(batch.slice(number, 1))
            return
        why = one_line(error)
        yield f"'{_unreadable_column(batch)}' has a value that cannot be read ({why})"
        return
    yield from rows


def _unreadable_column(batch: pyarrow.RecordBatch) -> str:
    for name in batch.schema.names:
        try:
            batch.column(name).to_pylist()
        except (ValueError, OverflowError):
            return str(name)
    return "a column"


def dataset_rows(rows: Iterable[Row]) -> Iterator[Row]:
    """The rows of a ``datasets.Dataset``, which lie in Arrow too, each with its own keys."""
    for row in rows:
        yield {column: own_keys(value) for column, value in row.items()}


def own_keys(value: Any) -> Any:
    """The value of a column without the keys that only other rows have.

    Arrow gives every object of a column all keys that any of them has, with null for its own lack:
    a turn without calls would have ``"tool_calls": None``.
    """
    if isinstance(value, dict):
        return {key: own_keys(inner) for key, inner in value.items() if inner is not None}
    if isinstance(value, list):
        return [own_keys(inner) for inner in value]
    return value
