"""The rows of a file, a folder or a Hub data set as they stand there, each with its place.

    raw_rows("old.jsonl")  ->  ("old.jsonl:1", {"question": "2 + 2?", "answer": "4"}), ...

Nothing is read into memory as a whole; of text, a row is at most 16 MiB long.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from replaykit.data.folders import SUFFIXES, files_of, passed_over, splits_in, suffix
from replaykit.data.jsonstream import json_rows, json_splits, plain_json, refuse_unwritable, suspect
from replaykit.data.streams import (
    MAX_LINE,
    TOO_LONG,
    Row,
    Unparsed,
    lines_of,
    one_line,
    opened,
    tell,
    text_of,
)
from replaykit.data.tables import BATCH_ROWS, arrow_rows, csv_rows, dataset_rows, parquet_rows
from replaykit.errors import DataError
from replaykit.recipe.lm_eval import is_task
from replaykit.suites import is_suite, stream

if TYPE_CHECKING:
    import datasets
    import pyarrow

__all__ = [
    "MAX_LINE",
    "Hub",
    "Lines",
    "Placed",
    "Row",
    "Unparsed",
    "Unread",
    "dataset_of",
    "json_lines",
    "line_batches",
    "line_files",
    "raw_rows",
    "splits_of",
    "tell",
    "text_lines",
    "unread_note",
]

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

    ``split`` is that of a Hub data set, of a folder whose files' names say one, and of a .json file
    whose lists' names do; a folder's files are read in order of their names. Raises DataError for
    what cannot be read; with ``unparsed``, a single bad row is passed to that.
    """
    if is_suite(path):
        rows = stream(str(path))
        yield from ((f"{path}:{number}", row) for number, row in enumerate(rows, 1))
        return
    if is_task(path):
        raise DataError(
            f"{path}: a task of lm-eval is a test (eval.old, eval.target) or what is kept out of "
            f"training (against); its documents are no rows to train on"
        )
    local = Path(path)
    hub = hub or Hub()
    if local.is_dir():
        if _is_saved(local):
            yield from _saved_rows(local, split, unparsed)
            return
        for file in files_of(local, split, hub.subset):
            yield from _file_rows(file, None, unparsed)
        return
    if not local.exists():
        _check_on_hub(path)
        yield from _hub_rows(str(path), split, hub)
        return
    yield from _file_rows(local, split, unparsed)


def dataset_of(
    path: str | Path, *, split: str = "train", hub: Hub | None = None
) -> datasets.Dataset | None:
    """What ``datasets`` saved in a folder, or has of the Hub, with the types of its columns; None
    of files, and of what replaykit itself writes. Raises DataError for what cannot be read.
    """
    if is_suite(path) or is_task(path):
        return None
    local = Path(path)
    if local.is_dir() and _is_saved(local):
        with _reading_saved(local):
            return _saved(local, split)
    if local.exists():
        return None
    _check_on_hub(path)
    hub = hub or Hub()
    with _asking_hub(str(path), hub):
        import datasets

        return datasets.load_dataset(str(path), hub.subset, split=split, revision=hub.revision)


def splits_of(path: str | Path, hub: Hub | None = None) -> list[str]:
    """The splits of a folder, of a Hub data set or of a .json file with a list for each; none of
    another file, nor of a folder whose names say none, of which all is read.

    Raises DataError as ``raw_rows`` does.
    """
    if is_suite(path) or is_task(path):
        return []
    local = Path(path)
    hub = hub or Hub()
    if local.is_dir():
        if _is_saved(local):
            return _saved_splits(local)
        return splits_in(local, hub.subset)
    if local.exists():
        return _file_splits(local)
    _check_on_hub(path)
    return _hub_splits(str(path), hub)


def unread_note(path: str | Path, split: str | None, hub: Hub | None = None) -> str:
    """What of a folder ``raw_rows`` does not read, in words, as ``passed_over`` says it."""
    local = Path(path)
    if not local.is_dir() or _is_saved(local):
        return ""
    return passed_over(local, split, (hub or Hub()).subset)


def _check_on_hub(path: str | Path) -> None:
    """Raises DataError for what is not here and cannot be the name of a data set on the Hub."""
    on_hub = str(path).count("/") == 1 and not str(path).startswith((".", "/"))
    if suffix(Path(path)) or not on_hub:
        raise DataError(f"{path}: no such file (looked in {Path.cwd()})")


def _file_splits(path: Path) -> list[str]:
    if suffix(path) != ".json" or _is_json_lines(path):
        return []
    return json_splits(path)


def _file_rows(
    path: Path, split: str | None, unparsed: Unparsed | None
) -> Iterator[tuple[str, Row]]:
    """The rows of a file; ``split`` as of ``json_rows``."""
    match suffix(path):
        case ".jsonl":
            yield from _numbered_lines(path, unparsed)
        case ".json" if _is_json_lines(path):
            yield from _numbered_lines(path, unparsed)
        case ".json":
            yield from json_rows(path, unparsed, split)
        case ".csv":
            yield from csv_rows(path, unparsed)
        case ".parquet":
            yield from parquet_rows(path, unparsed)
        case _:
            raise DataError(
                f"{path}: what is this? Known are {', '.join(SUFFIXES)}, text also with .gz or "
                f".zst, and folders"
            )


def text_lines(path: Path, unparsed: Unparsed | None = None) -> Iterator[tuple[str, Row]]:
    """The lines of a text file that are not blank, each as the row ``{"text": ...}``."""
    with opened(path) as stream:
        for number, line in lines_of(stream):
            place = f"{path}:{number}"
            try:
                text = _text_line(place, line, first=number == 1).strip()
            except DataError as error:
                tell(unparsed, place, error)
                continue
            if text:
                yield place, {"text": text}


def line_files(path: str | Path, split: str = "train", hub: Hub | None = None) -> list[Path]:
    """The files that ``raw_rows`` would read, where all of them are JSON Lines; else none."""
    local = Path(path)
    files = [local] if local.is_file() else []
    if local.is_dir() and not _is_saved(local):
        files = files_of(local, split, (hub or Hub()).subset)
    return files if all(_has_lines(file) for file in files) else []


def _has_lines(path: Path) -> bool:
    return suffix(path) == ".jsonl" or (suffix(path) == ".json" and _is_json_lines(path))


@dataclass(frozen=True)
class Unread:
    """A row that cannot be read: its place, and why."""

    place: str
    error: DataError


Placed = tuple[str, Row] | Unread
"""A row with its place, or one that cannot be read."""


@dataclass(frozen=True)
class Lines:
    """Some lines of a JSON Lines file, to be read in any process. ``first`` is the number of the
    first, from 1.
    """

    path: str
    first: int
    lines: Sequence[bytes | None]

    def rows(self) -> Iterator[Placed]:
        """Their rows; blank lines have none."""
        for number, line in enumerate(self.lines, self.first):
            place = f"{self.path}:{number}"
            try:
                row = _json_line(place, line, first=number == 1)
            except DataError as error:
                yield Unread(place, error)
                continue
            if row is not None:
                yield place, row


def line_batches(path: Path, rows: int, size: int) -> Iterator[Lines]:
    """The lines of a file, so many at a time; fewer where they have more than ``size`` bytes."""
    name = str(path)
    held: list[bytes | None] = []
    first = 1
    length = 0
    with opened(path) as stream:
        for number, line in lines_of(stream):
            held.append(line)
            length += len(line or b"")
            if len(held) == rows or length > size:
                yield Lines(name, first, held)
                held = []
                first = number + 1
                length = 0
    if held:
        yield Lines(name, first, held)


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


def _text_line(place: str, line: bytes | None, *, first: bool) -> str:
    if line is None:
        raise DataError(f"{place}: {TOO_LONG}")
    return text_of(place, line, first=first)


def _json_line(place: str, line: bytes | None, *, first: bool) -> Row | None:
    """The object on a line; None for a blank line."""
    text = _text_line(place, line, first=first)
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
    """Whether a file named .json has an object on each line, and not one value over all lines.

    Its first line may be broken: no JSON value has an object at the start of a line where the line
    before ends with anything but a bracket, a comma or a colon.
    """
    with opened(path) as stream:
        lines = (line for _, line in lines_of(stream) if line is None or line.strip())
        first = next(lines, None)
        second = next(lines, b"")
        if first is None or second == b"":
            return False
        first = first.removeprefix(b"\xef\xbb\xbf").strip()
        if first.startswith(b"{") and _is_object(first):
            return True
        starts = second is not None and second.lstrip().startswith(b"{")
        return starts and not first.startswith(b"[") and not first.endswith((b"[", b",", b":"))


def _is_object(line: bytes) -> bool:
    try:
        return isinstance(json.loads(line), dict)
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
    with _reading_saved(folder):
        tables = _saved(folder, split).with_format("arrow").iter(BATCH_ROWS)
        yield from arrow_rows(str(folder), _batches(tables), unparsed)


def _saved(folder: Path, split: str) -> datasets.Dataset:
    """The Dataset, or the split of the DatasetDict, that is in a folder."""
    import datasets

    saved = datasets.load_from_disk(str(folder))
    if not isinstance(saved, datasets.DatasetDict):
        return saved
    if split not in saved:
        raise DataError(
            f"{folder}: it has the splits {', '.join(saved)}, not '{split}'; in a recipe, "
            "`split: NAME` beside the path chooses; elsewhere, give the split's own folder"
        )
    return saved[split]


@contextmanager
def _reading_saved(folder: Path) -> Iterator[None]:
    """What is wrong with a folder of ``save_to_disk`` as a DataError."""
    import pyarrow

    try:
        yield
    except (pyarrow.ArrowException, OSError, ValueError, KeyError, TypeError) as error:
        why = one_line(error)
        raise DataError(f"{folder}: not a data set that can be read ({why})") from error


def _saved_splits(folder: Path) -> list[str]:
    """The splits of a DatasetDict; a Dataset has none."""
    listed = folder / "dataset_dict.json"
    if not listed.is_file():
        return []
    try:
        return [str(name) for name in json.loads(listed.read_bytes())["splits"]]
    except (ValueError, KeyError, TypeError) as error:
        raise DataError(f"{listed}: it does not list the splits ({error!r})") from error


def _batches(tables: Iterator[pyarrow.Table]) -> Iterator[pyarrow.RecordBatch]:
    for table in tables:
        yield from table.to_batches()


def _hub_rows(name: str, split: str, hub: Hub) -> Iterator[tuple[str, Row]]:
    with _asking_hub(name, hub):
        import datasets

        rows = datasets.load_dataset(
            name, hub.subset, split=split, revision=hub.revision, streaming=True
        )
        for number, row in enumerate(dataset_rows(rows), 1):
            yield f"{name}[{split}]:{number}", row


def _hub_splits(name: str, hub: Hub) -> list[str]:
    with _asking_hub(name, hub):
        import datasets

        found = datasets.get_dataset_split_names(name, hub.subset, revision=hub.revision)
    return [str(split) for split in found]


@contextmanager
def _asking_hub(name: str, hub: Hub) -> Iterator[None]:
    """What goes wrong on the Hub as a DataError."""
    import httpx2
    from huggingface_hub import HfApi, constants

    try:
        # One question first: load_dataset alone would retry for half a minute.
        if not constants.HF_HUB_OFFLINE:
            HfApi().dataset_info(name, revision=hub.revision, timeout=HUB_SECONDS)
        yield
    except (OSError, ValueError, httpx2.HTTPError) as error:
        raise DataError(_hub_problem(name, error)) from error


def _hub_problem(name: str, error: Any) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    if "onfig" in str(error) and "available" in str(error).lower():
        return (
            f"{name}: {' '.join(lines[:2])}; `subset: NAME` beside the path chooses in a recipe; "
            "elsewhere, download it and give the subset's folder or file"
        )
    reason = lines[0] if lines else type(error).__name__
    return (
        f"{name}: neither a file here nor a data set that could be read from the Hub ({reason}); "
        f"give a path, or check the name, the network and `hf auth whoami`"
    )
