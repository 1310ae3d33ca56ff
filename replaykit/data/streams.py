"""A file's bytes, unpacked, and what is said of a file that has others than its name says."""

from __future__ import annotations

import gzip
import io
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

# Bytes of a row of text: 3,000 pages. What compares rows takes some 20 times as much memory.
MAX_LINE = 1 << 24
TOO_LONG = f"longer than {MAX_LINE >> 20} MiB; cut it into several rows"
# How files begin whose name says something else.
STARTS = {
    b"\xff\xfe": "UTF-16 text; save it as UTF-8, as `iconv -f UTF-16 -t UTF-8` does",
    b"\xfe\xff": "UTF-16 text; save it as UTF-8, as `iconv -f UTF-16 -t UTF-8` does",
    b"\x1f\x8b": "packed by gzip; its name should end in .gz",
    b"\x28\xb5\x2f\xfd": "packed by zstd; its name should end in .zst",
    b"PAR1": "a parquet file; its name should end in .parquet",
    b"PK\x03\x04": "a zip archive; unpack it",
}


def tell(unparsed: Unparsed | None, place: str, error: DataError) -> None:
    """Passes the error to ``unparsed``; raises it where there is none."""
    if unparsed is None:
        raise error
    unparsed(place, error)


@contextmanager
def opened(path: Path) -> Iterator[io.BufferedReader]:
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
        raise DataError(
            f"{path}: damaged {path.suffix.lower()} file ({one_line(error)})"
        ) from error


def one_line(error: Exception) -> str:
    """What an error of another package says, without its line breaks."""
    return " ".join(str(error).split())


def _unpacked(path: Path) -> Any:
    """A raw stream of the file's bytes, which whoever reads it closes."""
    name = path.name.lower()
    if name.endswith(".gz"):
        return gzip.open(path, "rb")
    if name.endswith(".zst"):
        import pyarrow

        return pyarrow.input_stream(str(path), compression="zstd")
    return path.open("rb", buffering=0)


def lines_of(stream: io.BufferedReader) -> Iterator[tuple[int, bytes | None]]:
    """The lines with their numbers, from 1; None for a line that is longer than ``MAX_LINE``."""
    for number, line in enumerate(iter(lambda: stream.readline(MAX_LINE + 1), b""), 1):
        if len(line) <= MAX_LINE:
            yield number, line
            continue
        _pass_over(stream, line)
        yield number, None


def _pass_over(stream: io.BufferedReader, line: bytes) -> None:
    """Reads to the end of a line of which this is the beginning."""
    while line and not line.endswith(b"\n"):
        line = stream.readline(MAX_LINE)


def text_of(place: str, line: bytes, *, first: bool) -> str:
    """The text of a line of UTF-8. Raises DataError for other bytes."""
    try:
        # utf-8-sig takes away a byte order mark, which only the first line can have.
        return line.decode("utf-8-sig" if first else "utf-8")
    except UnicodeDecodeError as error:
        raise not_utf8(place, error.reason) from error


def not_utf8(place: str, reason: str) -> DataError:
    """What is said of bytes that are no UTF-8 text."""
    return DataError(
        f"{place}: not UTF-8 text ({reason}); if all of the file is in another encoding, "
        "`iconv -f LATIN1 -t UTF-8` converts it, with the encoding's name for LATIN1"
    )
