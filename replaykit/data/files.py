"""The rows of a file, a folder or a Hub data set as they stand there, each with its place.

    raw_rows("old.jsonl")  ->  ("old.jsonl:1", {"question": "2 + 2?", "answer": "4"}), ...

Nothing is read into memory as a whole but a .json file, which is one value.
"""

from __future__ import annotations

import csv
import gzip
import io
import json
import zlib
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from replaykit.errors import DataError

Row = Mapping[str, Any]
"""A row of a user's file: any columns with any JSON."""
Unparsed = Callable[[str, DataError], object]
"""What is called with the place of a row that cannot be read, and why."""

SUFFIXES = (".jsonl", ".json", ".csv", ".parquet")
PACKED = ("", ".gz", ".zst")
MAX_FIELD = 1 << 30  # characters of a CSV cell; Python's own limit is 131,072
# Bytes of a row of JSON Lines: 3,000 pages. What compares rows takes some 20 times as much memory.
MAX_LINE = 1 << 24
HUB_SECONDS = 10  # to find a data set on the Hub
# How files begin whose name says something else.
STARTS = {
    b"\xff\xfe": "UTF-16 text; save it as UTF-8, as `iconv -f UTF-16 -t UTF-8` does",
    b"\xfe\xff": "UTF-16 text; save it as UTF-8, as `iconv -f UTF-16 -t UTF-8` does",
    b"\x1f\x8b": "packed by gzip; its name should end in .gz",
    b"\x28\xb5\x2f\xfd": "packed by zstd; its name should end in .zst",
    b"PAR1": "a parquet file; its name should end in .parquet",
    b"PK\x03\x04": "a zip archive; unpack it",
}


def raw_rows(
    path: str | Path, *, split: str = "train", unparsed: Unparsed | None = None
) -> Iterator[tuple[str, Row]]:
    """Each row with its place: the file and the line, or the number of the row from 1.

    A folder's files are read in order of their names. ``split`` is that of a Hub data set. Raises
    DataError for what cannot be read; with ``unparsed``, a single bad row is passed to that.
    """
    local = Path(path)
    if local.is_dir():
        for file in _files(local):
            yield from raw_rows(file, split=split, unparsed=unparsed)
        return
    if not local.exists():
        on_hub = str(path).count("/") == 1 and not str(path).startswith((".", "/"))
        if _suffix(local) or not on_hub:
            raise DataError(f"{path}: no such file (looked in {Path.cwd()})")
        yield from _hub_rows(str(path), split)
        return
    match _suffix(local):
        case ".jsonl":
            for number, row in json_lines(local, unparsed):
                yield f"{path}:{number}", row
        case ".json":
            yield from _json_array(local, unparsed)
        case ".csv":
            yield from _csv_rows(local, unparsed)
        case ".parquet":
            yield from _parquet_rows(local)
        case _:
            raise DataError(
                f"{path}: what is this? Known are {', '.join(SUFFIXES)}, text also with .gz or "
                f".zst, and folders"
            )


def text_lines(path: Path) -> Iterator[tuple[str, Row]]:
    """The lines of a text file that are not blank, each as the row ``{"text": ...}``."""
    for number, line in _lines(path):
        text = line.strip()
        if text:
            yield f"{path}:{number}", {"text": text}


def json_lines(path: Path, unparsed: Unparsed | None = None) -> Iterator[tuple[int, Row]]:
    """The objects of a JSON Lines file with their line numbers, from 1; blank lines have none."""
    with _open(path) as stream:
        lines = iter(lambda: stream.readline(MAX_LINE + 1), b"")
        for number, line in enumerate(lines, 1):
            place = f"{path}:{number}"
            try:
                if len(line) > MAX_LINE:
                    _pass_over(stream, line)
                    raise DataError(
                        f"{place}: longer than {MAX_LINE >> 20} MiB; cut it into several rows"
                    )
                row = _json_line(place, line, first=number == 1)
            except DataError as error:
                tell(unparsed, place, error)
                continue
            if row is not None:
                yield number, row


def tell(unparsed: Unparsed | None, place: str, error: DataError) -> None:
    """Passes the error to ``unparsed``; raises it where there is none."""
    if unparsed is None:
        raise error
    unparsed(place, error)


# --- where rows are -------------------------------------------------------------------------------


def _suffix(path: Path) -> str:
    """.jsonl for a.jsonl, a.jsonl.gz and a.jsonl.zst; "" for what is not known."""
    name = path.name.lower()
    return next((s for s in SUFFIXES for packed in PACKED if name.endswith(s + packed)), "")


def _files(folder: Path) -> list[Path]:
    found = sorted(path for path in folder.rglob("*") if _suffix(path) and path.is_file())
    if not found:
        raise DataError(
            f"{folder}: the folder has no {', '.join(SUFFIXES)} file (.gz and .zst are read too)"
        )
    return found


@contextmanager
def _open(path: Path) -> Iterator[io.BufferedReader]:
    """The file's bytes, unpacked. A file that is absent, forbidden or damaged is a DataError."""
    try:
        with io.BufferedReader(_unpacked(path), 1 << 16) as stream:
            start = stream.peek(4)
            for begin, kind in STARTS.items():
                if start.startswith(begin):
                    raise DataError(f"{path}: this is {kind}")
            yield stream
    except FileNotFoundError as error:
        raise DataError(f"{path}: no such file") from error
    except PermissionError as error:
        raise DataError(f"{path}: no right to read it") from error
    except (EOFError, zlib.error, OSError) as error:
        if isinstance(error, OSError) and error.errno is not None:
            raise  # the machine's fault, not the file's
        raise DataError(f"{path}: damaged {path.suffix.lower()} file ({error})") from error


def _unpacked(path: Path) -> Any:
    """A raw stream of the file's bytes, which whoever reads it closes."""
    name = path.name.lower()
    if name.endswith(".gz"):
        return gzip.open(path, "rb")
    if name.endswith(".zst"):
        import pyarrow

        return pyarrow.input_stream(str(path), compression="zstd")
    return path.open("rb", buffering=0)


def _lines(path: Path) -> Iterator[tuple[int, str]]:
    """The lines of a UTF-8 file with their numbers, without a byte order mark."""
    with _open(path) as stream:
        for number, line in enumerate(stream, 1):
            yield number, _text(f"{path}:{number}", line, first=number == 1)


def _text(place: str, line: bytes, *, first: bool) -> str:
    try:
        # utf-8-sig takes away a byte order mark, which only the first line can have.
        return line.decode("utf-8-sig" if first else "utf-8")
    except UnicodeDecodeError as error:
        raise DataError(
            f"{place}: not UTF-8 text ({error.reason}); if all of the file is in another encoding, "
            "`iconv -f LATIN1 -t UTF-8` converts it, with the encoding's name for LATIN1"
        ) from error


# --- JSON -----------------------------------------------------------------------------------------


def _pass_over(stream: io.BufferedReader, line: bytes) -> None:
    """Reads to the end of a line of which this is the beginning."""
    while line and not line.endswith(b"\n"):
        line = stream.readline(MAX_LINE)


def _json_line(place: str, line: bytes, *, first: bool) -> Row | None:
    """The object on a line; None for a blank line."""
    text = _text(place, line, first=first)
    if not text.strip():
        return None
    try:
        row = json.loads(text)
    except json.JSONDecodeError as error:
        raise DataError(f"{place}: not JSON ({error.msg} at column {error.colno})") from error
    except RecursionError as error:
        raise DataError(f"{place}: not JSON that can be read (nested too deep)") from error
    if not isinstance(row, dict):
        raise DataError(f"{place}: a row is a JSON object, this is a {type(row).__name__}")
    if _escapes_surrogates(text):
        _refuse_half_pairs(place, row)
    return row


def _json_array(path: Path, unparsed: Unparsed | None) -> Iterator[tuple[str, Row]]:
    """The objects of a .json file: of its list, or of the first list in its object."""
    text = "".join(line for _, line in _lines(path))
    try:
        rows = json.loads(text)
    except json.JSONDecodeError as error:
        raise DataError(f"{path}: not JSON ({error}); one object a line is .jsonl") from error
    if isinstance(rows, dict):
        rows = next((value for value in rows.values() if isinstance(value, list)), None)
    if not isinstance(rows, list):
        raise DataError(f"{path}: expected a list of objects")
    # Only a text with escapes of surrogates can hold half a pair, and few texts have any.
    check = _escapes_surrogates(text)
    for number, row in enumerate(rows, 1):
        place = f"{path}:{number}"
        try:
            if not isinstance(row, dict):
                raise DataError(f"{path}: row {number} is a {type(row).__name__}, not an object")
            if check:
                _refuse_half_pairs(place, row)
        except DataError as error:
            tell(unparsed, place, error)
            continue
        yield place, row


def _escapes_surrogates(text: str) -> bool:
    return "\\ud" in text or "\\uD" in text


def _refuse_half_pairs(place: str, row: Row) -> None:
    """Raises DataError for a text with half of a surrogate pair.

    JSON can escape one, but it is no character: no UTF-8 file and no tokenizer takes it.
    """
    try:
        json.dumps(row, ensure_ascii=False).encode()
    except UnicodeEncodeError as error:
        half = json.dumps(error.object[error.start])
        raise DataError(
            f"{place}: {half} is half of a surrogate pair and no character; take it out"
        ) from error


# --- tables ---------------------------------------------------------------------------------------


def _csv_rows(path: Path, unparsed: Unparsed | None) -> Iterator[tuple[str, Row]]:
    csv.field_size_limit(MAX_FIELD)
    rows = csv.DictReader(text for _, text in _lines(path))
    try:
        for row in rows:
            # A row with line breaks in a cell has the number of its last line.
            place = f"{path}:{rows.line_num}"
            if None in row:
                error = DataError(f"{place}: more cells than the first line has names")
                tell(unparsed, place, error)
                continue
            yield place, row
    except csv.Error as broken:
        raise DataError(f"{path}:{rows.line_num}: not CSV ({broken})") from broken


def _parquet_rows(path: Path) -> Iterator[tuple[str, Row]]:
    import pyarrow
    import pyarrow.parquet

    try:
        table = pyarrow.parquet.ParquetFile(path)
        number = 0
        for batch in table.iter_batches(batch_size=1024):
            for row in batch.to_pylist():
                number += 1
                yield f"{path}:{number}", row
    except (pyarrow.ArrowException, OSError) as error:  # a damaged page is an OSError
        raise DataError(f"{path}: not a parquet file ({error})") from error


def _hub_rows(name: str, split: str) -> Iterator[tuple[str, Row]]:
    import httpx2
    from huggingface_hub import HfApi, constants

    try:
        # One question first: load_dataset alone would retry for half a minute.
        if not constants.HF_HUB_OFFLINE:
            HfApi().dataset_info(name, timeout=HUB_SECONDS)
        import datasets

        rows = datasets.load_dataset(name, split=split, streaming=True)
        for number, row in enumerate(rows, 1):
            yield f"{name}[{split}]:{number}", row
    except (OSError, ValueError, httpx2.HTTPError) as error:
        reason = type(error).__name__
        if str(error):
            reason = str(error).splitlines()[0]
        raise DataError(
            f"{name}: neither a file here nor a data set that could be read from the Hub "
            f"({reason}); "
            f"give a path, or check the name, the network and `hf auth whoami`"
        ) from error
