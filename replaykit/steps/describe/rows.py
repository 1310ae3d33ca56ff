"""The rows with media: read for their attributes, and written with a column more, all others
untouched.

    rows = rows_of("clips.parquet")
    [row.attributes for row in rows.placed(["gender"])]     ->  [{"gender": "female"}, ...]
    rows.write(folder, "messages", {0: [...], 2: [...]})    ->  folder/rows.parquet, rows 0 and 2

Text files have the media as paths, and come out as rows.jsonl. Parquet files, what ``datasets``
saved and data sets of the Hub have columns with types, such as ``Audio`` and ``Image``; they come
out as rows.parquet, which ``datasets`` reads with the same types. No file of sound or picture is
opened, so none is decoded, copied or embedded.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from replaykit.data.files import Hub, dataset_of, raw_rows
from replaykit.data.folders import files_of, suffix
from replaykit.data.jsonl import write_jsonl
from replaykit.data.record import Message
from replaykit.errors import DataError
from replaykit.recipe.data import Prompts
from replaykit.steps.describe.words import Placed
from replaykit.steps.inputs import default_split

if TYPE_CHECKING:
    import datasets
    import pyarrow

BATCH = 256  # rows that are in memory at a time
Turns = Mapping[int, Sequence[Message]]
"""By row: the turns that are added. A row without any is left out."""


class Rows(Protocol):
    """Rows of any columns."""

    @property
    def columns(self) -> list[str]: ...

    def placed(self, names: Sequence[str]) -> list[Placed]:
        """Each row with the columns of these names that it has."""
        ...

    def write(self, folder: Path, column: str, turns: Turns) -> Path:
        """Writes the rows that have turns, in order, with these in the column."""
        ...


def rows_of(data: Prompts) -> Rows:
    """The rows that a recipe names. Raises DataError where they cannot be read, or are none."""
    typed = _typed(data)
    found: Rows
    if typed is not None:
        found = typed
    else:
        placed = raw_rows(
            data.path, split=data.split or default_split(data), hub=Hub(data.subset, data.revision)
        )
        end = None if data.n is None else data.skip + data.n
        found = PlainRows(list(islice(placed, data.skip, end)))
    if not found.columns:
        raise DataError(f"{data.path}: there is no row in it")
    return found


def check_free(rows: Rows, column: str) -> None:
    """Raises DataError where the rows have the column already that is to be added."""
    if column in rows.columns:
        raise DataError(
            f"the rows have a column '{column}', where the instruction and the answer are to stand;"
            " name another one with `describe.column`"
        )


@dataclass(frozen=True)
class PlainRows:
    """Rows of a text file, with their places."""

    rows: Sequence[tuple[str, Mapping[str, Any]]]

    @property
    def columns(self) -> list[str]:
        return list(dict.fromkeys(name for _, row in self.rows for name in row))

    def placed(self, names: Sequence[str]) -> list[Placed]:
        return [
            Placed(place, {name: row[name] for name in names if name in row})
            for place, row in self.rows
        ]

    def with_turns(self, column: str, turns: Turns) -> Iterator[dict[str, Any]]:
        """The rows that have turns, with these."""
        for number, (_, row) in enumerate(self.rows):
            if number in turns:
                yield {**row, column: [dict(turn) for turn in turns[number]]}

    def dataset(self, column: str, turns: Turns) -> datasets.Dataset:
        """The same as ``write``, in memory."""
        import datasets

        return datasets.Dataset.from_list(list(self.with_turns(column, turns)))

    def write(self, folder: Path, column: str, turns: Turns) -> Path:
        path = folder / "rows.jsonl"
        write_jsonl(path, self.with_turns(column, turns))
        return path


@dataclass(frozen=True)
class TypedRows:
    """Rows of Arrow, whose columns have types of ``datasets``."""

    name: str
    features: datasets.Features
    batches: Sequence[Any]
    """Each gives its tables anew: a ``datasets.Dataset``, or the path of a parquet file."""
    skip: int = 0
    n: int | None = None

    @property
    def columns(self) -> list[str]:
        return list(self.features)

    def tables(self) -> Iterator[pyarrow.Table]:
        """The rows, so many at a time."""
        begins = 0
        end = None if self.n is None else self.skip + self.n
        for table in _tables(self.batches):
            first = max(0, self.skip - begins)
            last = len(table) if end is None else min(len(table), end - begins)
            begins += len(table)
            if last > first:
                yield table.slice(first, last - first)

    def placed(self, names: Sequence[str]) -> list[Placed]:
        there = [name for name in names if name in self.features]
        found: list[Placed] = []
        for table in self.tables():
            for row in table.select(there).to_pylist():
                found.append(Placed(f"{self.name}:{self.skip + len(found) + 1}", row))
        return found

    def with_turns(self, column: str, turns: Turns) -> Iterator[pyarrow.Table]:
        """The rows that have turns, with these, so many at a time."""
        import pyarrow

        schema = self.features_with(column).arrow_schema
        begins = 0
        for table in self.tables():
            numbers = range(begins, begins + len(table))
            begins += len(table)
            kept = [number for number in numbers if number in turns]
            added = [[dict(turn) for turn in turns[number]] for number in kept]
            some = table.take(pyarrow.array([number - numbers[0] for number in kept], "int64"))
            values = pyarrow.array(added, schema.field(column).type)
            yield some.select(list(self.features)).append_column(column, values).cast(schema)

    def features_with(self, column: str) -> datasets.Features:
        """The types of all columns and of the one that is added."""
        import datasets

        text = datasets.Value("string")
        turns = datasets.List({"role": text, "content": text})
        return datasets.Features({**self.features, column: turns})

    def dataset(self, column: str, turns: Turns) -> datasets.Dataset:
        """The same as ``write``, in memory."""
        import datasets
        import pyarrow

        schema = self.features_with(column).arrow_schema
        tables = [schema.empty_table(), *self.with_turns(column, turns)]
        return datasets.Dataset(pyarrow.concat_tables(tables))

    def write(self, folder: Path, column: str, turns: Turns) -> Path:
        import pyarrow.parquet

        path = folder / "rows.parquet"
        temporary = path.with_name(path.name + ".tmp")
        schema = self.features_with(column).arrow_schema
        with pyarrow.parquet.ParquetWriter(temporary, schema) as writer:
            for table in self.with_turns(column, turns):
                writer.write_table(table)
        temporary.replace(path)
        return path


def of_dataset(dataset: datasets.Dataset, name: str) -> TypedRows:
    """The rows of a ``datasets.Dataset``."""
    return TypedRows(name, dataset.features, [dataset])


def _tables(batches: Iterable[Any]) -> Iterator[pyarrow.Table]:
    import pyarrow
    import pyarrow.parquet

    for each in batches:
        if isinstance(each, Path):
            for batch in pyarrow.parquet.ParquetFile(each).iter_batches(batch_size=BATCH):
                yield pyarrow.Table.from_batches([batch])
        else:
            # As they lie there: a path or bytes, which nobody decodes.
            yield from each.with_format("arrow").iter(BATCH)


def _typed(data: Prompts) -> TypedRows | None:
    """The rows, where their columns have types; None of text files."""
    split = data.split or default_split(data)
    hub = Hub(data.subset, data.revision)
    dataset = dataset_of(data.path, split=split, hub=hub)
    if dataset is not None:
        return TypedRows(data.path, dataset.features, [dataset], data.skip, data.n)
    local = Path(data.path)
    files = [local]
    if local.is_dir():
        files = files_of(local, split, data.subset)
    if not files or any(suffix(file) != ".parquet" for file in files):
        return None
    return TypedRows(data.path, _features(files), files, data.skip, data.n)


def _features(files: Sequence[Path]) -> datasets.Features:
    """The types of the columns of parquet files. Raises DataError for files that differ in them,
    or that are none.
    """
    import datasets
    import pyarrow.parquet

    found: dict[Path, datasets.Features] = {}
    for file in files:
        try:
            schema = pyarrow.parquet.read_schema(file)
        except (pyarrow.ArrowException, OSError) as error:
            raise DataError(f"{file}: not a parquet file ({error})") from error
        found[file] = datasets.Features.from_arrow_schema(schema)
    first, *others = files
    for file in others:
        if found[file] != found[first]:
            raise DataError(f"{file}: its columns are not those of {first}; read them one by one")
    return found[first]
