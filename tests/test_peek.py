"""``peek`` shows rows of any place as they stand, and nothing that a terminal would obey."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest
import typer
from commands import type_in

from replaykit.cli import _coloured
from replaykit.data.jsonl import write_jsonl
from replaykit.data.record import Record, dialogue
from replaykit.steps.peek import PeekResult, lines
from replaykit.text import CONTROL

sys.path.insert(0, str(Path(__file__).parent))
import finished

ROWS = [Record(dialogue(f"Question {n}?", f"Answer {n}"), "select", {"score": n}) for n in range(9)]


@pytest.fixture
def run(here: Path) -> Path:
    """A finished step with nine rows, and three that it left out."""
    folder = here / "runs/run"
    finished.selected(folder, ROWS)
    dropped = [("far", ROWS[0]), ("far", ROWS[1]), ("too_short", ROWS[2])]
    lines = [{"reason": reason, **row.to_json()} for reason, row in dropped]
    lines.append({"reason": "unparsed", "place": "old.jsonl:7", "error": "no 'messages'"})
    write_jsonl(folder / "select/dropped.jsonl", lines)
    return folder


def peeked(*words: object) -> list[dict[str, object]]:
    return list(json.loads(type_in("peek", *words, "--json"))["rows"])


def test_the_rows_of_a_step_by_its_name_its_folder_and_its_file(run: Path) -> None:
    every = [row.to_json() for row in ROWS]
    assert peeked("select") == peeked("runs/run/select") == every[:5]
    assert peeked(run / "select/rows.jsonl", "-n", 20) == every
    text = type_in("peek", "select", "-n", 2)
    for words in ("user: Question 0?", "assistant (loss): Answer 0", "- score: 1", "2 of 9 rows"):
        assert words in text


def test_the_seed_draws_the_rows(run: Path) -> None:
    drawn = peeked("select", "--seed", 3, "-n", 4)
    assert drawn == peeked("select", "--seed", 3, "-n", 4)
    assert len({str(peeked("select", "--seed", seed, "-n", 4)) for seed in range(9)}) > 4
    every = [row.to_json() for row in ROWS]
    assert [every.index(row) for row in drawn] == sorted(every.index(row) for row in drawn)


def test_dropped_rows_have_their_reason(run: Path) -> None:
    assert [row["reason"] for row in peeked("select", "--dropped")] == [
        "far",
        "far",
        "too_short",
        "unparsed",
    ]
    assert len(peeked("select", "--reason", "far")) == 2
    assert "place old.jsonl:7 · error no 'messages'" in type_in("peek", "select", "--dropped")
    said = type_in("peek", "select", "--reason", "fr", code=1)
    assert "no row of the reason fr" in said
    assert "far, too_short, unparsed" in said


def test_a_file_of_any_format_and_a_suite(here: Path) -> None:
    Path("old.csv").write_text("instruction,output\nAdd 2 and 2,4\n")
    (row,) = peeked("old.csv")
    assert row["messages"] == list(dialogue("Add 2 and 2", "4"))
    assert len(peeked("suite:sums", "-n", 3)) == 3


def test_thoughts_calls_tools_and_what_carries_no_loss_are_told(here: Path) -> None:
    call = {"type": "function", "function": {"name": "weather", "arguments": {"city": "Oslo"}}}
    turns = [
        {"role": "user", "content": "Hello"},
        {"role": "assistant", "content": "Hi", "weight": 0},
        {"role": "user", "content": "Weather?"},
        {"role": "assistant", "content": "", "reasoning_content": "Ask.", "tool_calls": [call]},
        {"role": "tool", "content": "7 C", "name": "weather"},
        {"role": "assistant", "content": "Cold\nand wet"},
    ]
    tools = [{"type": "function", "function": {"name": "weather", "parameters": {}}}]
    Path("rows.jsonl").write_text(json.dumps({"messages": turns, "tools": tools}) + "\n")
    text = type_in("peek", "rows.jsonl")
    for words in (
        "assistant (no loss): Hi",
        "assistant (loss) thinks: Ask.",
        'assistant (loss) calls: weather {"city": "Oslo"}',
        "tool weather: 7 C",
        "assistant (loss): Cold\n    and wet",
        'tool: {"name": "weather"',
    ):
        assert words in text


def rewritten(before: str, now: str, path: str, edit: float) -> Record:
    meta = {"path": path, "edit": edit, "reference": before}
    return Record(dialogue("How many?", now), "rewrite", meta)


def test_a_rewritten_answer_shows_what_was_changed(here: Path) -> None:
    rows = [
        rewritten("It is 12.", "It is 11.", "edit", 0.1),
        rewritten("It is 12.", "Twelve\x1b[2J", "paraphrase", 0.9),
        rewritten("It is 12.", "It is 12.", "reference", 0.0),
    ]
    write_jsonl("rewritten.jsonl", rows)
    text = type_in("peek", "rewritten.jsonl")
    assert "assistant (loss), rewritten: It is [-12-]{+11+}." in text
    assert r"{+Twelve\x1b[2J+}" in text
    assert "assistant (loss): It is 12." in text
    assert "- reference" not in text
    assert "[-12-]" not in type_in("peek", "rewritten.jsonl", "--path", "paraphrase")
    assert "1 of 1 rows" in type_in("peek", "rewritten.jsonl", "--min-edit", "0.5")
    said = type_in("peek", "rewritten.jsonl", "--path", "edits", code=1)
    assert "did you mean 'edit'" in said
    assert "edited by 95 % or more" in type_in(
        "peek", "rewritten.jsonl", "--min-edit", "0.95", code=1
    )


def test_colours_are_ours_alone() -> None:
    row = rewritten("It is 12.", "It is \x1b[31m11.", "edit", 0.1).to_json()
    found = PeekResult(place="x", rows=[row], matching=1, unread=0)
    (line,) = (line for line in lines(found, _coloured) if "rewritten" in line)
    assert typer.style("12", fg="red", strikethrough=True) in line
    assert r"\x1b[31m11" in line


def test_no_control_character_reaches_the_terminal(here: Path) -> None:
    evil = "\x1b]0;owned\x07\x1b[2J\x9b31m\r"
    write_jsonl("rows.jsonl", [Record(dialogue(evil, evil), "target", {evil: evil})])
    for words in ([], ["--json"]):
        text = type_in("peek", "rows.jsonl", *words)
        assert "owned" in text
        assert not CONTROL.search(text)


def test_what_is_not_there_is_said(run: Path) -> None:
    assert "name what to look at" in type_in("peek", code=1)
    (run / "train").mkdir()
    (run / "train/manifest.json").write_text("{}")
    assert "they are of select" in type_in("peek", "train", code=1)
    assert "generate" in type_in("peek", "select", "--source", "generate", code=1)
    assert "kept in the folder of a step" in type_in("peek", "x.csv", "--dropped", code=1)
