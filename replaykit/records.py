"""The one currency: a Record is a conversation, where it came from, and what is known about it.

    {"id": "3f0c…", "messages": [{"role": "user", "content": "2 + 2?"}, {"role": "assistant", "content": "4"}],
     "source": "target", "meta": {"line": 1}}

Nothing edits a record: ``dataclasses.replace`` makes the next one, and its meta names the parent.
Between steps records are JSON Lines; ``datasets.Dataset`` appears only at the edges
(``to_dataset``, and reading a Hub id).
"""

from __future__ import annotations

import csv
import gzip
import hashlib
import io
import json
import os
import zlib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cached_property
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, get_args

from replaykit.errors import DataError

if TYPE_CHECKING:
    import datasets

Source = Literal["target", "select", "generate", "rewrite", "augment", "describe"]
Message = Mapping[str, str]
SUFFIXES = (".jsonl", ".json", ".csv", ".parquet")
PACKED = ("", ".gz", ".zst")
MAX_FIELD = 1 << 30  # characters of a CSV cell; Python's own limit is 131,072
MAX_LINE = (
    1 << 24
    # bytes of a row of JSON Lines: 3,000 pages. What compares rows takes some 20 times as much
    # memory
)
HUB_SECONDS = 10  # to find a data set on the Hub
STARTS = {  # of files whose name says something else
    b"\xff\xfe": "UTF-16 text; save it as UTF-8, as `iconv -f UTF-16 -t UTF-8` does",
    b"\xfe\xff": "UTF-16 text; save it as UTF-8, as `iconv -f UTF-16 -t UTF-8` does",
    b"\x1f\x8b": "packed by gzip; its name should end in .gz",
    b"\x28\xb5\x2f\xfd": "packed by zstd; its name should end in .zst",
    b"PAR1": "a parquet file; its name should end in .parquet",
    b"PK\x03\x04": "a zip archive; unpack it",
}


@dataclass(frozen=True)
class Record:
    """A conversation with its origin. ``messages`` are {"role", "content"} mappings, roles system,
    user, assistant.

    A plain text without a conversation is one message of role "text".
    """

    messages: tuple[Message, ...]
    source: Source
    meta: Mapping[str, Any] = field(default_factory=dict)

    @cached_property
    def id(self) -> str:
        """16 hexadecimal digits, a hash of the messages alone: equal conversations have equal
        ids.
        """
        return fingerprint([dict(message) for message in self.messages])

    @property
    def prompt(self) -> str:
        """What the last question asks: the last user message, or '' in a plain text."""
        return next((m["content"] for m in reversed(self.messages) if m["role"] == "user"), "")

    @property
    def answer(self) -> str:
        """The last assistant message, or '' where there is none."""
        return next((m["content"] for m in reversed(self.messages) if m["role"] == "assistant"), "")

    def to_json(self) -> dict[str, Any]:
        """The record as it stands on one line of a JSONL file."""
        messages = [dict(message) for message in self.messages]
        return {"id": self.id, "messages": messages, "source": self.source, "meta": dict(self.meta)}


def dialogue(
    prompt: str, answer: str | None = None, *, system: str | None = None
) -> tuple[Message, ...]:
    """The messages of one exchange."""
    turns = [("system", system), ("user", prompt), ("assistant", answer)]
    return tuple({"role": role, "content": text} for role, text in turns if text is not None)


def fingerprint(value: object) -> str:
    """16 hexadecimal digits that depend on the JSON form of the value and on nothing else."""
    text = json.dumps(value, ensure_ascii=False, sort_keys=True, default=str)
    return hashlib.blake2b(text.encode("utf-8", "surrogatepass"), digest_size=8).hexdigest()


def file_fingerprint(path: str | Path) -> str:
    """16 hexadecimal digits of a file's bytes; of a folder, of its files' names and bytes."""
    path = Path(path)
    digest = hashlib.blake2b(digest_size=8)
    for file in sorted(p for p in path.rglob("*") if p.is_file()) if path.is_dir() else [path]:
        if path.is_dir():
            digest.update(str(file.relative_to(path)).encode())
        with file.open("rb") as stream:
            while block := stream.read(1 << 20):
                digest.update(block)
    return digest.hexdigest()


# --- reading --------------------------------------------------------------------------------------


def read_records(
    path: str | Path,
    source: Source,
    *,
    prompt: str | None = None,
    answer: str | None = None,
    split: str = "train",
    skip: int = 0,
    limit: int | None = None,
    unparsed: Callable[[str, DataError], object] | None = None,
) -> Iterator[Record]:
    """The records of a file, of a folder's files in order of name, or of a Hub data set, in their
    own order.

    Columns are recognised: messages, conversations (ShareGPT), instruction/input/output/history
    (Alpaca), prompt/completion, question/answer, text; ``prompt`` and ``answer`` name others. Every
    other column goes to ``meta``, and so does the line number. Raises DataError, naming file and
    line, for a row that is none of these; with ``unparsed``, that is called with the place and the
    error instead, and the row is passed over.
    """
    for place, row in islice(
        _rows(path, split, unparsed), skip, None if limit is None else skip + limit
    ):
        try:
            record = _record(place, row, source, prompt, answer)
        except DataError as error:
            if unparsed is None:
                raise
            unparsed(place, error)
            continue
        yield record


def read_prompts(
    path: str | Path,
    *,
    prompt: str | None = None,
    split: str = "train",
    skip: int = 0,
    limit: int | None = None,
) -> Iterator[Record]:
    """Conversations that end with a question: rows as ``read_records`` takes them, without their
    last answer.

    A row needs no answer; the column is ``prompt``, or the first there is of prompt, question,
    query, instruction and text. A .txt file has a question on each line.
    """
    rows = _text_lines(Path(path)) if Path(path).suffix.lower() == ".txt" else _rows(path, split)
    for place, row in islice(rows, skip, None if limit is None else skip + limit):
        column = prompt or next((name for name in PROMPTS if isinstance(row.get(name), str)), None)
        if column is not None and (prompt or not any(name in row for name in CONVERSATIONS)):
            extra = f"\n\n{row['input']}" if column == "instruction" and row.get("input") else ""
            messages = dialogue(_string(place, row, column) + extra)
        else:
            _, messages = _recognise(place, row)
            while messages and messages[-1]["role"] == "assistant":
                messages = messages[:-1]
        if not messages or not messages[-1]["content"].strip():
            raise DataError(f"{place}: there is no question in this row")
        yield Record(messages, "generate", {"line": int(place.rpartition(":")[2])})


def read_jsonl(path: str | Path) -> Iterator[Record]:
    """The records of a file that replaykit wrote."""
    for number, row in _json_lines(Path(path)):
        try:
            yield Record(tuple(row["messages"]), row["source"], row.get("meta", {}))
        except (KeyError, TypeError) as error:
            raise DataError(f"{path}:{number}: not a record of replaykit: {error!r}") from error


def _rows(
    path: str | Path, split: str, unparsed: Callable[[str, DataError], object] | None = None
) -> Iterator[tuple[str, Mapping[str, Any]]]:
    local = Path(path)
    if local.is_dir():
        files = sorted(p for p in local.rglob("*") if _suffix(p) and p.is_file())
        if not files:
            raise DataError(
                f"{path}: the folder has no {', '.join(SUFFIXES)} file (.gz and .zst are read too)"
            )
        for file in files:
            yield from _rows(file, split, unparsed)
        return
    if not local.exists():
        if _suffix(local) or str(path).count("/") != 1 or str(path).startswith((".", "/")):
            raise DataError(f"{path}: no such file (looked in {Path.cwd()})")
        yield from _hub_rows(str(path), split)
        return
    match _suffix(local):
        case ".jsonl":
            for number, row in _json_lines(local, unparsed):
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


def _suffix(path: Path) -> str:
    """.jsonl for a.jsonl, a.jsonl.gz and a.jsonl.zst; '' for what is not known."""
    name = path.name.lower()
    return next((s for s in SUFFIXES for packed in PACKED if name.endswith(s + packed)), "")


@contextmanager
def _open(path: Path) -> Iterator[io.BufferedReader]:
    """The file's bytes, unpacked. A file that is absent, forbidden or damaged is a DataError."""
    try:
        raw: Any
        if path.name.lower().endswith(".gz"):
            raw = gzip.open(path, "rb")  # noqa: SIM115 - the reader below closes it
        elif path.name.lower().endswith(".zst"):
            import pyarrow

            raw = pyarrow.input_stream(str(path), compression="zstd")
        else:
            raw = path.open("rb", buffering=0)
        with io.BufferedReader(raw, 1 << 16) as stream:
            start = stream.peek(4)
            if said := next(
                (said for begin, said in STARTS.items() if start.startswith(begin)), None
            ):
                raise DataError(f"{path}: this is {said}")
            yield stream
    except FileNotFoundError as error:
        raise DataError(f"{path}: no such file") from error
    except PermissionError as error:
        raise DataError(f"{path}: no right to read it") from error
    except (EOFError, zlib.error, OSError) as error:
        if isinstance(error, OSError) and error.errno is not None:
            raise  # the machine's fault, not the file's
        raise DataError(f"{path}: damaged {path.suffix.lower()} file ({error})") from error


def _lines(path: Path) -> Iterator[tuple[int, str]]:
    """The lines of a UTF-8 file with their numbers, without a byte order mark."""
    with _open(path) as stream:
        for number, line in enumerate(stream, 1):
            yield number, _text(f"{path}:{number}", line, first=number == 1)


def _text(place: str, line: bytes, *, first: bool) -> str:
    try:
        return line.decode("utf-8-sig" if first else "utf-8")
    except UnicodeDecodeError as error:
        raise DataError(
            f"{place}: not UTF-8 text ({error.reason}); if all of the file is in another encoding, "
            "`iconv -f LATIN1 -t UTF-8` converts it, with the encoding's name for LATIN1"
        ) from error


def _text_lines(path: Path) -> Iterator[tuple[str, Mapping[str, Any]]]:
    return (
        (f"{path}:{number}", {"text": line.strip()})
        for number, line in _lines(path)
        if line.strip()
    )


def _json_lines(
    path: Path, unparsed: Callable[[str, DataError], object] | None = None
) -> Iterator[tuple[int, dict[str, Any]]]:
    with _open(path) as stream:
        for number, line in enumerate(iter(lambda: stream.readline(MAX_LINE + 1), b""), 1):
            try:
                if len(line) > MAX_LINE:
                    _pass_over(stream, line)
                    raise DataError(
                        f"{path}:{number}: longer than {MAX_LINE >> 20} MiB; cut it into several "
                        f"rows"
                    )
                row = _json_line(f"{path}:{number}", line, first=number == 1)
            except DataError as error:
                if unparsed is None:
                    raise
                unparsed(f"{path}:{number}", error)
                continue
            if row is not None:
                yield number, row


def _pass_over(stream: io.BufferedReader, line: bytes) -> None:
    """Reads to the end of a line of which this is the beginning."""
    while line and not line.endswith(b"\n"):
        line = stream.readline(MAX_LINE)


def _json_line(place: str, line: bytes, *, first: bool) -> dict[str, Any] | None:
    """The object on a line; None where there is nothing."""
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


def _json_array(
    path: Path, unparsed: Callable[[str, DataError], object] | None
) -> Iterator[tuple[str, Mapping[str, Any]]]:
    text = "".join(line for _, line in _lines(path))
    try:
        rows = json.loads(text)
    except json.JSONDecodeError as error:
        raise DataError(f"{path}: not JSON ({error}); one object a line is .jsonl") from error
    if isinstance(rows, dict):
        rows = next((value for value in rows.values() if isinstance(value, list)), None)
    if not isinstance(rows, list):
        raise DataError(f"{path}: expected a list of objects")
    check = _escapes_surrogates(text)
    for number, row in enumerate(rows, 1):
        try:
            if not isinstance(row, dict):
                raise DataError(f"{path}: row {number} is a {type(row).__name__}, not an object")
            if check:
                _refuse_half_pairs(f"{path}:{number}", row)
        except DataError as error:
            if unparsed is None:
                raise
            unparsed(f"{path}:{number}", error)
            continue
        yield f"{path}:{number}", row


def _escapes_surrogates(text: str) -> bool:
    return "\\ud" in text or "\\uD" in text


def _refuse_half_pairs(place: str, row: object) -> None:
    """JSON can escape half of a surrogate pair, but it is no character: no UTF-8 file and no
    tokenizer takes it.
    """
    try:
        json.dumps(row, ensure_ascii=False).encode()
    except UnicodeEncodeError as error:
        half = json.dumps(error.object[error.start])
        raise DataError(
            f"{place}: {half} is half of a surrogate pair and no character; take it out"
        ) from error


def _csv_rows(
    path: Path, unparsed: Callable[[str, DataError], object] | None
) -> Iterator[tuple[str, Mapping[str, Any]]]:
    csv.field_size_limit(MAX_FIELD)
    rows = csv.DictReader(text for _, text in _lines(path))
    try:
        for row in rows:  # one with line breaks in a cell bears the number of its last line
            place = f"{path}:{rows.line_num}"
            if None not in row:
                yield place, row
                continue
            error = DataError(f"{place}: more cells than the first line has names")
            if unparsed is None:
                raise error
            unparsed(place, error)
    except csv.Error as error:
        raise DataError(f"{path}:{rows.line_num}: not CSV ({error})") from error


def _parquet_rows(path: Path) -> Iterator[tuple[str, Mapping[str, Any]]]:
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


def _hub_rows(name: str, split: str) -> Iterator[tuple[str, Mapping[str, Any]]]:
    import httpx2
    from huggingface_hub import HfApi, constants

    try:
        if (
            not constants.HF_HUB_OFFLINE
        ):  # one question, without the half minute of retries that load_dataset makes
            HfApi().dataset_info(name, timeout=HUB_SECONDS)
        import datasets

        rows = datasets.load_dataset(name, split=split, streaming=True)
        for number, row in enumerate(rows, 1):
            yield f"{name}[{split}]:{number}", row
    except (OSError, ValueError, httpx2.HTTPError) as error:
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise DataError(
            f"{name}: neither a file here nor a data set that could be read from the Hub "
            f"({reason}); "
            f"give a path, or check the name, the network and `hf auth whoami`"
        ) from error


# --- a row of any common format -> messages -------------------------------------------------------

CONVERSATIONS = ("messages", "conversations", "conversation")
PROMPTS = ("prompt", "question", "query", "instruction", "text")
SHAREGPT_ROLES = {
    "human": "user",
    "user": "user",
    "gpt": "assistant",
    "assistant": "assistant",
    "system": "system",
}
PAIRS = (
    ("prompt", "completion"),
    ("prompt", "response"),
    ("question", "answer"),
    ("query", "response"),
)


def _record(
    place: str, row: Mapping[str, Any], source: Source, prompt: str | None, answer: str | None
) -> Record:
    if prompt or answer:
        if not (prompt and answer):
            raise DataError("prompt and answer are given together: the names of the two columns")
        columns: tuple[str, ...] = (prompt, answer)
        messages = _pair(place, row, prompt, answer)
    else:
        columns, messages = _recognise(place, row)
    meta = {
        key: value
        for key, value in row.items()
        if key not in columns and key not in ("id", "source", "meta")
    }
    meta |= _own_meta(place, row)
    return Record(messages, source, meta | {"line": int(place.rpartition(":")[2])})


def _own_meta(place: str, row: Mapping[str, Any]) -> Mapping[str, Any]:
    """The meta of a row that replaykit wrote: an object in JSONL, its JSON text in a Dataset."""
    own = row.get("meta")
    if isinstance(own, str) and {"id", "source", "messages"} <= row.keys():
        try:
            own = json.loads(own)
        except json.JSONDecodeError as error:
            raise DataError(f"{place}: meta is not JSON ({error})") from error
    return own if isinstance(own, Mapping) else {}


def _recognise(place: str, row: Mapping[str, Any]) -> tuple[tuple[str, ...], tuple[Message, ...]]:
    """The columns that hold the conversation, and the conversation."""
    for column in CONVERSATIONS:
        if isinstance(row.get(column), Sequence) and not isinstance(row[column], str):
            return (column,), _turns(place, row[column])
    if "instruction" in row and "output" in row:
        return ("instruction", "input", "output", "history", "system"), _alpaca(place, row)
    for prompt, answer in PAIRS:
        if prompt in row and answer in row:
            return (prompt, answer), _pair(place, row, prompt, answer)
    if "text" in row:
        return ("text",), ({"role": "text", "content": _string(place, row, "text")},)
    raise DataError(
        f"{place}: no messages, conversations, instruction/output, prompt/completion, "
        f"question/answer or text among "
        f"the columns {sorted(row)}; `prompt: NAME` and `answer: NAME` beside the path say which "
        f"to use"
    )


def _pair(place: str, row: Mapping[str, Any], prompt: str, answer: str) -> tuple[Message, ...]:
    if isinstance(row.get(prompt), Sequence) and not isinstance(row[prompt], str):
        reply = row.get(answer)
        if not isinstance(reply, Sequence) or isinstance(reply, str):
            reply = [{"role": "assistant", "content": _string(place, row, answer)}]
        return _turns(place, [*row[prompt], *reply])
    return dialogue(_string(place, row, prompt), _string(place, row, answer))


def _alpaca(place: str, row: Mapping[str, Any]) -> tuple[Message, ...]:
    extra = row.get("input") or ""
    question = _string(place, row, "instruction") + (f"\n\n{extra}" if extra else "")
    turns: list[Message] = []
    for pair in row.get("history") or []:
        if not (isinstance(pair, Sequence) and len(pair) == 2):
            raise DataError(f"{place}: history is a list of [question, answer] pairs")
        turns += dialogue(str(pair[0]), str(pair[1]))
    system = row.get("system") or None
    start = dialogue(question, _string(place, row, "output"))
    return (*([{"role": "system", "content": str(system)}] if system else []), *turns, *start)


def _turns(place: str, turns: Sequence[Any]) -> tuple[Message, ...]:
    made: list[Message] = []
    for number, turn in enumerate(turns, 1):
        if not isinstance(turn, Mapping):
            raise DataError(
                f"{place}: turn {number} is a {type(turn).__name__}, not an object with role and "
                f"content"
            )
        role = turn.get("role", turn.get("from"))
        content = turn.get("content", turn.get("value"))
        if isinstance(content, Sequence) and not isinstance(content, str):
            content = "".join(part.get("text", "") for part in content if isinstance(part, Mapping))
        known = role if role == "text" else SHAREGPT_ROLES.get(str(role))
        if known is None or not isinstance(content, str):
            raise DataError(
                f"{place}: turn {number} has role {role!r} and content of {type(content).__name__}"
            )
        made.append({"role": known, "content": content})
    if not made:
        raise DataError(f"{place}: a conversation without turns")
    return tuple(made)


def _string(place: str, row: Mapping[str, Any], column: str) -> str:
    value = row.get(column)
    if column not in row:
        raise DataError(f"{place}: no column '{column}' among {sorted(row)}")
    if not isinstance(value, str):
        raise DataError(f"{place}: '{column}' is {type(value).__name__}, not text")
    return value


# --- writing --------------------------------------------------------------------------------------


def write_jsonl(path: str | Path, rows: Iterable[Record | Mapping[str, Any]]) -> int:
    """Writes the rows to a temporary name beside the path, then renames it; returns how many there
    were.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(path.name + ".tmp")
    count = 0
    with temporary.open("w", encoding="utf-8", newline="\n") as stream:
        for row in rows:
            line = row.to_json() if isinstance(row, Record) else row
            stream.write(json.dumps(line, ensure_ascii=False, default=str) + "\n")
            count += 1
    os.replace(temporary, path)
    return count


def to_dataset(records: Iterable[Record]) -> datasets.Dataset:
    """The records as a Dataset with explicit features: id, messages, source, and meta as one JSON
    string.
    """
    import datasets

    turn = {"role": datasets.Value("string"), "content": datasets.Value("string")}
    features = datasets.Features(
        {
            "id": datasets.Value("string"),
            "messages": datasets.List(turn),
            "source": datasets.Value("string"),
            "meta": datasets.Value("string"),
        }
    )
    rows = [
        record.to_json() | {"meta": json.dumps(dict(record.meta), ensure_ascii=False, default=str)}
        for record in records
    ]
    columns = {name: [row[name] for row in rows] for name in features}
    return datasets.Dataset.from_dict(columns, features=features)


SOURCES: tuple[str, ...] = get_args(Source)
