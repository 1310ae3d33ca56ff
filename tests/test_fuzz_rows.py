"""Files of every kind with odd values everywhere: each row is read, or refused with a reason."""

from __future__ import annotations

import csv
import gzip
import io
import json
import random
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pyarrow
import pyarrow.parquet
import pytest

from replaykit.data.formats import Columns, read_records
from replaykit.data.jsonl import read_jsonl, write_jsonl
from replaykit.data.record import Record
from replaykit.errors import DataError

INPUTS = 150
"""Files that are made and read; 2,000 take 20 seconds."""
SEED = 20261129
KINDS = (".jsonl", ".json", ".csv", ".parquet", ".jsonl.gz", ".csv.gz", "around.json", "lines.json")
NAMES = (
    "messages conversations conversation prompt completion response question answer query "
    "instruction input output history system system_prompt context text label labels tools "
    "functions chosen rejected images image id source meta reasoning_content inputs targets kto_tag"
).split()
ROLES = (
    "system developer user human assistant gpt model tool function_call observation text x".split()
)
TURN = (
    "role from content value tool_calls function_call reasoning_content thinking weight train loss "
    "name tool_call_id"
).split()
WORDS = (
    "", " ", "Ada", "2 + 2?", "<think>two</think>4", "</think>\n4", '"', '","', "\u2028", "\x00", "é", "[", "[{}]", "{}",
    '[{"role": "user", "content": "q"}]', '{"name": "f", "arguments": "{}"}', "NaN", "<image>", "false", "\ud800",
)  # fmt: skip


def value(draw: random.Random, depth: int = 3) -> Any:
    """Any JSON, more often a word than not."""
    if draw.random() < 0.4:
        return draw.choice(WORDS)
    plain = (None, True, False, 0, 1, -1, 10**30, 0.5, float("nan"), float("inf"))
    if depth == 0 or draw.random() < 0.4:
        return draw.choice(plain)
    if draw.random() < 0.5:
        return [value(draw, depth - 1) for _ in range(draw.randrange(3))]
    return {draw.choice((*TURN, "type", "function")): value(draw, depth - 1) for _ in range(3)}


def turns(draw: random.Random) -> list[Any]:
    found: list[Any] = []
    for _ in range(draw.randrange(4)):
        turn = {draw.choice(("role", "from")): draw.choice(ROLES)}
        turn[draw.choice(("content", "value"))] = draw.choice(WORDS)
        if draw.random() < 0.4:
            turn[draw.choice(TURN)] = value(draw)
        found.append(value(draw) if draw.random() < 0.05 else turn)
    return found


def row(draw: random.Random) -> dict[str, Any]:
    """A row with columns of some formats; half of the conversations are good ones."""
    found: dict[str, Any] = {}
    if draw.random() < 0.3:
        found = {"prompt": "2 + 2?", "completion": draw.choice(WORDS)}
    for name in draw.sample(NAMES, draw.randrange(1, 6)):
        listed = name in ("messages", "conversations", "conversation", "chosen", "rejected")
        if listed and draw.random() < 0.7:
            found[name] = turns(draw)
        elif draw.random() < 0.6:
            found[name] = draw.choice(WORDS)
        else:
            found[name] = value(draw)
    return found


def as_table(rows: Sequence[dict[str, Any]]) -> bytes:
    """The rows as parquet; a column of several types, which Arrow does not have, as JSON text."""
    columns: dict[str, Any] = {}
    for name in sorted({name for row in rows for name in row}):
        cells = [row.get(name) for row in rows]
        try:
            columns[name] = pyarrow.array(cells)
        except (pyarrow.ArrowException, OverflowError, UnicodeEncodeError):
            columns[name] = pyarrow.array([json.dumps(cell) for cell in cells])
    sink = pyarrow.BufferOutputStream()
    pyarrow.parquet.write_table(pyarrow.table(columns), sink)
    return sink.getvalue().to_pybytes()


def as_csv(rows: Sequence[dict[str, Any]]) -> bytes:
    names = sorted({name for row in rows for name in row})
    text = io.StringIO(newline="")
    writer = csv.writer(text)
    writer.writerow(names)
    for row in rows:
        cells = [row.get(name, "") for name in names]
        writer.writerow([c if isinstance(c, str) else json.dumps(c) for c in cells])
    return text.getvalue().encode("utf-8", "surrogatepass")


def file_of(kind: str, rows: Sequence[dict[str, Any]], draw: random.Random) -> bytes:
    match kind.removesuffix(".gz"):
        case ".parquet":
            data = as_table(rows)
        case ".csv":
            data = as_csv(rows)
        case ".json":
            data = json.dumps(rows, indent=draw.choice((None, 1))).encode()
        case "around.json":
            data = json.dumps({"version": 1, "data": rows}).encode()
        case _:
            data = "".join(json.dumps(row) + "\n" for row in rows).encode()
    return gzip.compress(data) if kind.endswith(".gz") else data


def damaged(kind: str, data: bytes, draw: random.Random) -> bytes:
    """The bytes with a few changed, put in or cut out; a parquet file without its end.

    What Arrow decodes of damaged pages depends on what lies in freed memory, so no such test is the
    same twice.
    """
    if kind == ".parquet":
        return data[: draw.randrange(len(data))]
    for _ in range(draw.randrange(1, 4)):
        at = draw.randrange(len(data) + 1)
        odd = draw.choice(
            (b"\xff", b'"', b"\x00", b"[", b"{", b"}", b"\n", b"9" * 5000, b"[" * 1500)
        )
        data = data[:at] + odd + data[at + draw.randrange(3) :]
    return data


def columns_of(draw: random.Random) -> Columns | None:
    if draw.random() < 0.7:
        return None
    return Columns(
        prompt=draw.choice((None, "prompt", "{text}\n{question}")),
        answer=draw.choice((None, "answer", "label", "{label}")),
        labels=draw.choice((None, ["no", "yes"], {"0": "no", 1: "yes"})),
        preferred=draw.choice((None, "chosen")),
    )


@pytest.mark.slow
def test_each_row_of_any_file_is_read_or_refused_with_a_reason(tmp_path: Path) -> None:
    read_in_all = 0
    refused_in_all = 0
    for number in range(INPUTS):
        draw = random.Random(SEED + number)
        rows = [row(draw) for _ in range(draw.randrange(2, 12))]
        kind = draw.choice(KINDS)
        path = tmp_path / f"{number}{kind}"
        data = file_of(kind, rows, draw)
        whole = draw.random() < 0.6
        path.write_bytes(data if whole else damaged(kind, data, draw))
        refused: dict[str, str] = {}
        records: list[Record] = []
        try:
            for record in read_records(
                path,
                "select",
                columns=columns_of(draw),
                unparsed=lambda place, error, refused=refused: refused.update({place: str(error)}),
            ):
                records.append(record)
        except DataError as error:
            # A whole file is refused where its own form is damaged, or the columns that are asked
            # for cannot be; never for a row.
            assert not whole, f"{path.name}: {error}"
            assert str(error).startswith(str(path)), error
            continue
        assert all(reason for reason in refused.values())
        if whole:
            assert len(records) + len(refused) == len(rows), path.name
        # What was read can be written and read again, to the same conversations.
        write_jsonl(tmp_path / "again.jsonl", records)
        again = list(read_jsonl(tmp_path / "again.jsonl"))
        assert [record.messages for record in again] == [record.messages for record in records]
        assert [record.id for record in again] == [record.id for record in records]
        read_in_all += len(records)
        refused_in_all += len(refused)
    assert read_in_all > INPUTS // 3
    assert refused_in_all > INPUTS // 2
