"""What a pool's rows carry beside their words: columns of any type and name, calls, tokens that end
an answer, and answers of nothing. All of it is kept, or said to be left out.
"""

from __future__ import annotations

import datetime
import json
from decimal import Decimal
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

import replaykit
from replaykit.cli import app
from replaykit.data.formats import Columns, read_records, record_of
from replaykit.data.record import Record, apart, column_of, dialogue, emptiness, noted
from replaykit.errors import DataError
from replaykit.model.chat import Chat
from replaykit.recipe.data import Data
from replaykit.recipe.evaluate import Test as Scored
from replaykit.steps.evaluate.scorable import scorable
from replaykit.steps.inputs import HeldOut

CALL = {"type": "function", "function": {"name": "weather", "arguments": {"city": "Oslo"}}}


def write(path: Path, rows: list[dict[str, Any]]) -> Path:
    path.write_text("".join(f"{json.dumps(row)}\n" for row in rows))
    return path


def sums(n: int, **columns: Any) -> list[dict[str, Any]]:
    return [
        {"prompt": f"What is {k} + {k}?", "completion": f"It is {2 * k}.", **columns}
        for k in range(n)
    ]


def selecting(*flags: str, n: int = 2) -> Any:
    wanted = ("select", "--pool", "pool.jsonl", "--target", "target.jsonl", "--out", "made")
    done = CliRunner().invoke(app, [*wanted, "-n", str(n), "--json", *flags])
    assert done.exit_code == 0, done.output
    return json.loads(done.stdout)


def test_columns_that_json_does_not_know_are_written_as_their_text(tmp_path: Path) -> None:
    pyarrow = pytest.importorskip("pyarrow")
    from pyarrow import parquet

    values = {
        "day": datetime.date(2024, 2, 29),
        "at": datetime.datetime(2024, 2, 29, 12, 30),
        "hour": datetime.time(12, 30),
        "price": Decimal("1.50"),
        "took": datetime.timedelta(seconds=90),
        "raw": b"\xff",
    }
    rows = sums(4, **values)
    parquet.write_table(pyarrow.Table.from_pylist(rows), tmp_path / "pool.parquet")
    chosen = replaykit.select(str(tmp_path / "pool.parquet"), sums(1), n=2).records
    assert len(chosen) == 2
    assert chosen[0].meta["day"] == "2024-02-29"
    assert chosen[0].meta["price"] == "1.50"


@pytest.mark.parametrize("column", ["source", "id", "meta", "score"])
def test_strata_are_by_the_users_column_whatever_its_name(column: str) -> None:
    pool = sums(40)
    for number, row in enumerate(pool):
        row[column] = "web" if number % 10 else "book"
    target = [{"prompt": "What is 90 + 90?", "completion": "180"}]
    made = replaykit.select(pool, target, n=8, method="stratified", column=column, shares="equal")
    found = sorted(column_of(record, column) for record in made.records)
    assert found == ["book"] * 4 + ["web"] * 4


@pytest.mark.parametrize(
    ("misspelt", "meant"), [("sorce", "source"), ("scource", "source"), ("mta", "meta")]
)
def test_a_misspelt_column_of_the_pool_names_the_right_one(misspelt: str, meant: str) -> None:
    pool = sums(9, source="web", meta="plain", id=7)
    with pytest.raises(DataError, match=f"column '{misspelt}'; did you mean '{meant}'"):
        replaykit.select(pool, sums(1), n=3, method="stratified", column=misspelt)


def test_columns_with_the_names_of_the_steps_facts_are_kept_under_columns(here: Path) -> None:
    own = {"score": "good", "rank": "A", "nearest": 3, "terms": ["x"], "twin": 1, "match": None}
    write(here / "pool.jsonl", [*sums(6, **own), *sums(1, **own)])
    write(here / "target.jsonl", [{"prompt": "What is 90 + 90?", "completion": "180"}])
    selecting(n=7)
    rows = [json.loads(line) for line in (here / "made" / "rows.jsonl").open()]
    kept = {name: value for name, value in own.items() if value is not None}
    assert [row["meta"]["rank"] for row in rows] == [1, 2, 3, 4, 5, 6]
    assert all(row["meta"]["columns"] == kept for row in rows)
    told = selecting("--explain", rows[0]["id"])
    assert (told["rank"], told["twin"]) == (1, None)
    dropped = [json.loads(line) for line in (here / "made" / "dropped.jsonl").open()]
    (repeated,) = [row for row in dropped if row["reason"] == "duplicate"]
    assert repeated["meta"]["twin"] == "What is 0 + 0?"
    assert repeated["meta"]["columns"] == kept


def test_a_row_with_calls_or_without_loss_is_explained(here: Path) -> None:
    question = {"role": "user", "content": "And Oslo?"}
    called = {"role": "assistant", "content": "", "tool_calls": [CALL]}
    shown = {"role": "assistant", "content": "7 C", "weight": 0}
    rows = [{"messages": [question, called]}, {"messages": [question, shown]}]
    write(here / "pool.jsonl", rows)
    write(here / "target.jsonl", sums(1))
    selecting()
    made = [json.loads(line) for line in (here / "made" / "rows.jsonl").open()]
    assert len(made) == 2
    for row in made:
        assert selecting("--explain", row["id"])["text"] == row["messages"]


def test_a_token_at_the_end_of_an_answer_is_taken_off_counted_and_said() -> None:
    pool = [*sums(3), {"prompt": "Is water wet?", "completion": "Yes<|im_end|>"}]
    asked = "Which special token ends a message in ChatML?"
    pool.append({"prompt": asked, "completion": "The token is <|im_end|>"})
    made = replaykit.select(pool, sums(1), n=9)
    answers = {record.prompt: record.answer for record in made.records}
    assert answers["Is water wet?"] == "Yes"
    assert answers[asked] == "The token is <|im_end|>"
    assert made.result.ends_taken_off == 1
    assert any(
        note.startswith("1 rows that were looked at have an answer") for note in made.result.notes
    )


def test_what_a_step_finds_out_takes_no_column_away() -> None:
    assert apart({"line": 3}, ["rank"]) == {"line": 3}
    assert apart({"score": 1, "columns": "mine"}, ["score"]) == {
        "columns": {"score": 1, "columns": "mine"}
    }
    record = Record(dialogue("a", "b"), "select", {"score": "good"})
    twice = noted(noted(record, score=0.5), score=0.7)
    assert twice.meta == {"columns": {"score": "good"}, "score": 0.7}
    assert column_of(twice, "score") == "good"
    assert column_of(twice, "none", "?") == "?"


def test_an_answer_that_is_a_call_or_a_thought_alone_is_not_empty() -> None:
    (question, answer) = dialogue("Oslo?", "")
    assert emptiness(Record((question, answer), "target")) == "empty_answer"
    assert emptiness(Record((question, {**answer, "weight": 0}), "target")) is None
    assert emptiness(Record((question, {**answer, "tool_calls": [CALL]}), "target")) is None  # type: ignore[typeddict-item]
    thought = {**answer, "reasoning_content": "Cold."}
    assert emptiness(Record((question, thought), "target")) is None  # type: ignore[arg-type]


def test_blank_answers_of_a_table_are_left_out_and_said(here: Path) -> None:
    lines = [f"What is {k} + {k}?,{2 * k if k % 3 == 0 else ''}" for k in range(30)]
    text = "\n".join(["prompt,completion", *lines])
    (here / "old.csv").write_text(text, encoding="utf-8")
    mixed = replaykit.mix(sums(40), "old.csv", model="nano", ratio=0.2)
    assert mixed.result.funnel.dropped["empty_answer"] == 20
    assert sum(mixed.result.available.values()) == 50 - mixed.result.funnel.dropped.get(
        "target_duplicate", 0
    )


def test_a_test_row_whose_answer_says_nothing_is_left_out_and_said(chat: Chat) -> None:
    pairs = (("2 + 2?", "4"), ("3 + 3?", ""), ("4 + 4?", "8"))
    rows = [Record(dialogue(*pair), "target", {"line": k}) for k, pair in enumerate(pairs, 1)]
    for score in ("exact", "cross_entropy"):
        test = Scored(path="test.jsonl", score=score)  # type: ignore[arg-type]
        found = scorable(chat, HeldOut({"sums": (test, rows)}))
        assert found.rows["sums"][1] == [rows[0], rows[2]]
        assert found.notes == [
            "test.jsonl: 1 of 3 rows cannot be scored and is left out; the first: test.jsonl:2: "
            "its answer says nothing"
        ]


def test_numbers_that_json_does_not_have_are_written_as_their_text(here: Path) -> None:
    rows = sums(3, scores=[1.5, float("inf"), {"loss": float("nan")}])
    write(here / "pool.jsonl", rows)
    write(here / "target.jsonl", sums(1))
    selecting()

    def refused(constant: str) -> None:
        raise AssertionError(constant)

    lines = (here / "made" / "rows.jsonl").read_text().splitlines()
    read = [json.loads(line, parse_constant=refused) for line in lines]
    assert read[0]["meta"]["scores"] == [1.5, "inf", {"loss": None}]


def test_a_column_named_finish_does_not_take_the_end_of_turn_from_an_answer(here: Path) -> None:
    rows = [
        {"question": "What did she run?", "answer": "The whole race.", "finish": "length"},
        {"messages": dialogue("And he?", "Half of it."), "finish": "length", "columns": "two"},
    ]
    records = list(read_records(write(here / "runs.jsonl", rows), "target"))
    assert [record.was_cut for record in records] == [False, False]
    assert [column_of(record, "finish") for record in records] == ["length", "length"]
    # Of a row that generate wrote it tells how the answer ended.
    own = Record(dialogue("Tell a story", "Once upon a"), "generate", {"finish": "length"})
    again = read_records(write(here / "own.jsonl", [own.to_json()]), "generate")
    assert [record.was_cut for record in again] == [True]


@pytest.mark.parametrize("value", [True, False])
def test_a_label_that_is_true_or_false_is_no_number_of_a_class(value: bool) -> None:
    row = {"text": "A cough.", "label": value}
    columns = Columns(classes=("cardio", "derm"))
    with pytest.raises(
        DataError, match=r"which label that is is not said; `prompt: text`, `answer: label` and"
    ):
        record_of("rows.jsonl:1", row, "target", columns)
    words = {"prompt": "text", "answer": "label", "labels": {1: "cardio", 0: "derm"}}
    said = Data.model_validate({"path": "x"} | words).labels
    named = Columns(classes=("cardio", "derm"), prompt="text", answer="label", labels=said)
    assert record_of("rows.jsonl:1", row, "target", named).answer == ("cardio" if value else "derm")
