"""The rows of a file, a folder or a Hub data set as they stand there, each with its place.

    raw_rows("old.jsonl")  ->  ("old.jsonl:1", {"question": "2 + 2?", "answer": "4"}), ...

Nothing is read into memory as a whole; of text, a row is at most 16 MiB long.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from replaykit.data.folders import SUFFIXES, files_of, suffix
from replaykit.data.jsonstream import json_rows, plain_json, refuse_unwritable, suspect
from replaykit.data.streams import (
    MAX_LINE,
    TOO_LONG,
    Row,
    Unparsed,
    lines_of,
    opened,
    tell,
    text_of,
)
from replaykit.data.tables import BATCH_ROWS, arrow_rows, csv_rows, parquet_rows
from replaykit.errors import DataError

if TYPE_CHECKING:
    import pyarrow

__all__ = ["MAX_LINE", "Hub", "Row", "Unparsed", "json_lines", "raw_rows", "tell", "text_lines"]

HUB_SECONDS = 10  # to find a data set on the Hub


@dataclass(frozen=True)
class Hub:
    """Which part of a data set on the Hub, or of a folder that is laid out like one."""

    subset: str | None = None
    """The configuration, such as gsm8k's "main"."""
    revision: str | None = None
    """A branch, a tag or a commit on the Hub; local files have none."""


def raw_rows(
    path: str | Path,
    *,
    split: str = "train",
    hub: Hub | None = None,
    unparsed: Unparsed | None = None,
) -> Iterator[tuple[str, Row]]:
    """Each row with its place: the file and the line, or the number of the row from 1.

    ``split`` is that of a Hub data set, and of a folder whose files' names say one; a folder's
    files are read in order of their names. Raises DataError for what cannot be read; with
    ``unparsed``, a single bad row is passed to that.
    """
    local = Path(path)
    hub = hub or Hub()
    if local.is_dir():
        if _is_saved(local):
            yield from _saved_rows(local, split, unparsed)
            return
        for file in files_of(local, split, hub.subset):
            yield from _file_rows(file, unparsed)
        return
    if not local.exists():
        on_hub = str(path).count("/") == 1 and not str(path).startswith((".", "/"))
        if suffix(local) or not on_hub:
            raise DataError(f"{path}: no such file (looked in {Path.cwd()})")
        yield from _hub_rows(str(path), split, hub)
        return
    yield from _file_rows(local, unparsed)


def _file_rows(path: Path, unparsed: Unparsed | None) -> Iterator[tuple[str, Row]]:
    match suffix(path):
        case ".jsonl":
            yield from _numbered_lines(path, unparsed)
        case ".json" if _is_json_lines(path):
            yield from _numbered_lines(path, unparsed)
        case ".json":
            yield from json_rows(path, unparsed)
        case ".csv":
            yield from csv_rows(path, unparsed)
        case ".parquet":
            yield from parquet_rows(path, unparsed)
        case _:
            raise DataError(
                f"{path}: what is this? Known are {', '.join(SUFFIXES)}, text also with .gz or "
                f".zst, and folders"
            )


def text_lines(path: Path) -> Iterator[tuple[str, Row]]:
    """The lines of a text file that are not blank, each as the row ``{"text": ...}``."""
    with opened(path) as stream:
        for number, line in lines_of(stream):
            place = f"{path}:{number}"
            if line is None:
                raise DataError(f"{place}: {TOO_LONG}")
            text = text_of(place, line, first=number == 1).strip()
            if text:
                yield place, {"text": text}


# --- JSON Lines -----------------------------------------------------------------------------------


def json_lines(path: Path, unparsed: Unparsed | None = None) -> Iterator[tuple[int, Row]]:
    """The objects of a JSON Lines file with their line numbers, from 1; blank lines have none."""
    name = str(path)
    with opened(path) as stream:
        for number, line in lines_of(stream):
            place = f"{name}:{number}"
            try:
                row = _json_line(place, line, first=number == 1)
            except DataError as error:
                tell(unparsed, place, error)
                continue
            if row is not None:
                yield number, row


def _numbered_lines(path: Path, unparsed: Unparsed | None) -> Iterator[tuple[str, Row]]:
    name = str(path)
    for number, row in json_lines(path, unparsed):
        yield f"{name}:{number}", row


def _json_line(place: str, line: bytes | None, *, first: bool) -> Row | None:
    """The object on a line; None for a blank line."""
    if line is None:
        raise DataError(f"{place}: {TOO_LONG}")
    text = text_of(place, line, first=first)
    if not text.strip():
        return None
    try:
        row = plain_json(text)
    except DataError as error:
        raise DataError(f"{place}: {error}") from error
    if not isinstance(row, dict):
        raise DataError(f"{place}: a row is a JSON object, this is a {type(row).__name__}")
    if suspect(text):
        refuse_unwritable(place, row)
    return row


def _is_json_lines(path: Path) -> bool:
    """Whether a file named .json has an object on its first line, and more on later ones."""
    with opened(path) as stream:
        lines = (line for _, line in lines_of(stream) if line is None or line.strip())
        first = next(lines, None)
        if first is None or not first.removeprefix(b"\xef\xbb\xbf").lstrip().startswith(b"{"):
            return False
        try:
            return isinstance(json.loads(first), dict) and next(lines, b"") != b""
        except (ValueError, RecursionError):
            return False


# --- data sets ------------------------------------------------------------------------------------


def _is_saved(folder: Path) -> bool:
    """Whether ``save_to_disk`` of ``datasets`` made a folder."""
    return (folder / "dataset_dict.json").is_file() or (
        (folder / "state.json").is_file() and any(folder.glob("*.arrow"))
    )


def _saved_rows(folder: Path, split: str, unparsed: Unparsed | None) -> Iterator[tuple[str, Row]]:
    """The rows of a Dataset, or of a DatasetDict's split, that ``save_to_disk`` wrote."""
    import datasets
    import pyarrow

    try:
        saved = datasets.load_from_disk(str(folder))
        if isinstance(saved, datasets.DatasetDict):
            if split not in saved:
                raise DataError(
                    f"{folder}: it has the splits {', '.join(saved)}, not '{split}'; `split: NAME` "
                    "beside the path chooses"
                )
            saved = saved[split]
        tables = saved.with_format("arrow").iter(BATCH_ROWS)
        yield from arrow_rows(str(folder), _batches(tables), unparsed)
    except (pyarrow.ArrowException, OSError, ValueError, KeyError, TypeError) as error:
        raise DataError(f"{folder}: not a data set that can be read ({error})") from error


def _batches(tables: Iterator[pyarrow.Table]) -> Iterator[pyarrow.RecordBatch]:
    for table in tables:
        yield from table.to_batches()


def _hub_rows(name: str, split: str, hub: Hub) -> Iterator[tuple[str, Row]]:
    import httpx2
    from huggingface_hub import HfApi, constants

    try:
        # One question first: load_dataset alone would retry for half a minute.
        if not constants.HF_HUB_OFFLINE:
            HfApi().dataset_info(name, revision=hub.revision, timeout=HUB_SECONDS)
        import datasets

        rows = datasets.load_dataset(
            name, hub.subset, split=split, revision=hub.revision, streaming=True
        )
        for number, row in enumerate(rows, 1):
            yield f"{name}[{split}]:{number}", row
    except (OSError, ValueError, httpx2.HTTPError) as error:
        raise DataError(_hub_problem(name, error)) from error


def _hub_problem(name: str, error: Any) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    if "onfig" in str(error) and "available" in str(error).lower():
        return f"{name}: {' '.join(lines[:2])}; `subset: NAME` beside the path chooses"
    reason = lines[0] if lines else type(error).__name__
    return (
        f"{name}: neither a file here nor a data set that could be read from the Hub ({reason}); "
        f"give a path, or check the name, the network and `hf auth whoami`"
    )
