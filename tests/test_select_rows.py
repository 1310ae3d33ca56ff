"""Rows of a pool in batches: what any process makes of them is what reading one by one makes."""

from __future__ import annotations

import json
import pickle
from io import BytesIO
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from replaykit.checks.evalsets import EvalItem
from replaykit.checks.funnel import Funnel
from replaykit.checks.hashed_words import hash_words, writing
from replaykit.checks.overlap import Decontamination, word_hashes
from replaykit.data.files import Unread
from replaykit.data.formats import Records, read_records
from replaykit.data.record import Record, dialogue
from replaykit.data.spool import Spool
from replaykit.nano import world
from replaykit.steps.select.rows import LineFunnel, line_of, record_of_line, reject_line
from replaykit.text import words

GOOD = '{"prompt": "2 + 2?", "completion": "4"}'
BAD = ("not JSON", '{"prompt": "2 + 2?"}', "[1]", '{"a": ')


def in_batches(records: Records, rows: int) -> tuple[list[Record], list[tuple[str, str]]]:
    """The records, and the places of those that cannot be read, as another process makes them."""
    read = []
    unread = []
    for batch in records.batches(rows):
        for item in pickle.loads(pickle.dumps(batch)).records():
            if isinstance(item, Unread):
                unread.append((item.place, str(item.error)))
            else:
                read.append(item)
    return read, unread


@settings(deadline=None, max_examples=60)
@given(st.lists(st.sampled_from([GOOD, "", *BAD]), max_size=12), st.integers(1, 5))
def test_batches_of_lines_hold_the_records_and_the_faults_of_reading_one_by_one(
    tmp_path_factory: pytest.TempPathFactory, lines: list[str], rows: int
) -> None:
    path = tmp_path_factory.mktemp("rows") / "pool.jsonl"
    path.write_text("\n".join(lines), encoding="utf-8")
    faults: list[tuple[str, str]] = []
    one_by_one = list(
        read_records(path, "select", unparsed=lambda *told: faults.append((told[0], str(told[1]))))
    )
    assert in_batches(read_records(path, "select"), rows) == (one_by_one, faults)


@pytest.mark.parametrize("part", [{}, {"skip": 1}, {"limit": 2}, {"skip": 1, "limit": 2}])
@pytest.mark.parametrize("suffix", ["jsonl", "json", "csv"])
def test_batches_of_every_format_and_of_a_part_are_the_same_rows(
    tmp_path: Path, part: dict[str, int], suffix: str
) -> None:
    rows = [{"prompt": f"What is {k} + {k}?", "completion": str(2 * k)} for k in range(5)]
    path = tmp_path / f"pool.{suffix}"
    text = "\n".join(map(json.dumps, rows))
    if suffix == "json":
        text = json.dumps(rows)
    if suffix == "csv":
        text = "prompt,completion\n" + "\n".join(",".join(row.values()) for row in rows)
    path.write_text(text, encoding="utf-8")
    one_by_one = list(read_records(path, "select", **part))  # type: ignore[arg-type]
    assert len(one_by_one) >= 2
    assert in_batches(read_records(path, "select", **part), 2) == (one_by_one, [])  # type: ignore[arg-type]


def test_the_lines_of_a_folder_are_read_file_by_file(tmp_path: Path) -> None:
    for name in ("a.jsonl", "b.jsonl"):
        (tmp_path / name).write_text(f"{GOOD}\n{BAD[0]}\n{GOOD}\n", encoding="utf-8")
    read, unread = in_batches(read_records(tmp_path, "select"), 2)
    assert [record.meta["line"] for record in read] == [1, 3, 1, 3]
    assert [place for place, _ in unread] == [f"{tmp_path}/a.jsonl:2", f"{tmp_path}/b.jsonl:2"]


@settings(deadline=None, max_examples=300)
@given(st.text(st.sampled_from("abÉß 東京の。กา\u0301\u200b!_3\n"), max_size=40))
def test_words_that_are_hashed_are_the_words_that_python_finds(text: str) -> None:
    found = words(text.replace("\u200b", ""))
    hashes = word_hashes(text).tolist()
    assert len(hashes) == len(found)
    one = dict(zip(found, hashes, strict=True))
    assert [one[word] for word in found] == hashes
    assert len(set(one.values())) == len(one)


def test_a_word_longer_than_a_block_has_one_hash_wherever_it_stands() -> None:
    long = "x" * 200_000
    one, starts = hash_words(f"a {long} b {long}", writing(r"\w"))
    assert starts.tolist() == [0, 2, 200_003, 200_005]
    assert one[1] == one[3]
    assert len(set(one.tolist())) == 3


def test_many_rows_looked_through_at_once_hold_what_each_holds_alone() -> None:
    items = [task.prompt for task in world.draw_old(40, seed=1)]
    items += ["What is 東京?", "Name it.", "one two three four"]
    apart = Decontamination(
        {
            "all": [EvalItem(str(k), text) for k, text in enumerate(items)],
            "few": [EvalItem(str(k), text) for k, text in enumerate(items[::3])],
        }
    )
    rows = [Record(dialogue(f"Q: {text} A:", "an answer"), "select") for text in items[::2]]
    rows += [Record(dialogue(text, items[k]), "select") for k, text in enumerate(items)]
    rows += [Record(dialogue(task.prompt, "no"), "select") for task in world.draw_old(40, seed=2)]
    alone = [apart.hits(row) for row in rows]
    assert apart.hits_of(rows) == alone
    assert sum(map(bool, alone)) >= len(items)


def test_a_dropped_line_is_written_as_its_record_would_be(tmp_path: Path) -> None:
    record = Record(
        dialogue("Où? \u2028", 'He said "no".\n'), "select", {"line": 3, "é": [1.5, None]}
    )
    assert record_of_line(line_of(record)) == record
    stream = BytesIO()
    reject_line(LineFunnel(stream), line_of(record), "far")
    kept: list[dict[str, object]] = []
    plain = Funnel(lambda row: kept.append(dict(row)))
    reject_line(plain, line_of(record), "far")
    assert stream.getvalue() == json.dumps(kept[0], ensure_ascii=False).encode() + b"\n"
    assert plain.counts == {"far": 1}


def test_a_spool_gives_each_row_back_before_and_after_more_are_written(tmp_path: Path) -> None:
    spool = Spool(tmp_path)
    rows = [bytes([k]) * (k * 100) for k in range(200)]
    for k, row in enumerate(rows):
        spool.append(row)
        assert spool[k // 2] == rows[k // 2]
    assert [spool[k] for k in range(len(spool))] == rows
    spool.close()
    assert list(tmp_path.iterdir()) == []
