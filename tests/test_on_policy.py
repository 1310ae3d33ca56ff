"""Old rows answered by the model itself: its answer where it is right, the row as it is where not."""

import json
from collections import Counter
from html import unescape
from pathlib import Path

import pytest
from commands import type_in

import replaykit
from replaykit.data.jsonl import read_jsonl, write_jsonl
from replaykit.data.record import Record, dialogue
from replaykit.errors import DataError, RecipeError
from replaykit.nano import world
from replaykit.recipe import load_recipe
from replaykit.runs import read_manifest
from replaykit.steps.generate.verified import not_asked, not_kept

SETTINGS = {"max_answer_tokens": 64}


def old_rows(count=24):
    """Rows of old skills in another style than the model's own, every fourth with a wrong answer."""
    rows = []
    for number, task in enumerate(world.draw_old(count, seed=1)):
        answer = f"The answer is: {task.answer}"
        if number % 4 == 0:
            answer = "The answer is: no such thing"
        rows.append(
            Record(dialogue(task.prompt, answer), "select", {"line": number + 1, "path": "a"})
        )
    return rows


def test_each_row_comes_out_once_with_the_models_answer_just_where_it_is_right():
    old = old_rows()
    made = list(replaykit.generate("nano", prompts=old, verify="exact", **SETTINGS))
    assert [row.prompt for row in made] == [row.prompt for row in old]
    assert [row.meta["parent"] for row in made] == [row.id for row in old]
    own = [row.meta["path"] == "own" for row in made]
    assert sum(own) >= 14 and not any(own[::4])
    for row, before, is_own in zip(made, old, own, strict=True):
        assert row.source == "generate"
        assert row.meta["prompt"] == {"path": "a"}
        assert row.meta["line"] == before.meta["line"]
        if is_own:
            assert row.meta["why"] == "right"
            assert before.answer == f"The answer is: {row.answer}"
            assert row.meta["model"] == "nano"
        else:
            assert row.meta["why"] in ("wrong", "cut")
            assert row.messages == before.messages
            assert "model" not in row.meta


def test_the_step_counts_whose_answers_were_kept_and_goes_on_where_it_was(here):
    write_jsonl("old.jsonl", old_rows())
    Path("replaykit.yaml").write_text("name: a\nmodel: nano\ngenerate: {max_answer_tokens: 64}\n")
    options = ("generate", "--prompts", "old.jsonl", "--verify", "exact")
    shown = " ".join(type_in(*options).split())
    result = read_manifest(Path("runs/a/generate")).result
    counts = result["verified"]
    rows = list(read_jsonl("runs/a/generate/rows.jsonl"))
    assert len(rows) == result["rows"] == 24
    assert result["funnel"]["dropped"] == {}
    paths = Counter(row.meta["path"] for row in rows)
    assert counts["own"] == paths["own"]
    assert sum(counts["reference"].values()) == paths["reference"] >= 6
    assert f"{counts['own']} of 24 rows have the model's own answer" in shown
    assert "the others keep the reference: wrong" in shown
    said = f"{counts['own']} of 24 rows have the model's own answer"
    type_in("push", "me/old", "--dry-run")
    card = Path("runs/a/push/README.md").read_text()
    assert said in card and "given rows, with the model's own answer where it is right" in card
    type_in("report")
    page = unescape(Path("runs/a/report.html").read_text())
    assert "generate: whose answers" in page and said in page
    # Stopped in the middle, it makes the same rows of the answers that are there and the others.
    before = Path("runs/a/generate/rows.jsonl").read_bytes()
    ledger = Path("runs/a/generate/answers.jsonl")
    ledger.write_text("".join(ledger.read_text().splitlines(keepends=True)[:9]))
    Path("runs/a/generate/manifest.json").unlink()
    Path("runs/a/generate/rows.jsonl").unlink()
    type_in(*options)
    assert Path("runs/a/generate/rows.jsonl").read_bytes() == before
    assert read_manifest(Path("runs/a/generate")).result["verified"] == counts


def test_a_row_that_cannot_be_compared_or_asked_keeps_its_answer_under_the_reason():
    long = " ".join(["word"] * 3000)
    old = [
        Record(dialogue("How much is 2 + 2?", "unclear"), "select"),  # no number to compare with
        Record(({"role": "text", "content": "A text."},), "select"),
        Record(dialogue("A question alone?"), "select"),
        Record(dialogue(f"{long} 1 + 1?", "2"), "select"),
    ]
    made = list(replaykit.generate("nano", prompts=old, verify="numeric", **SETTINGS))
    whys = ["unverifiable", "no_question", "no_answer", "too_long"]
    assert [row.meta["why"] for row in made] == whys
    assert [row.messages for row in made] == [row.messages for row in old]


@pytest.mark.slow
def test_of_several_answers_the_first_right_one_is_kept():
    old = old_rows()
    one, many = (
        list(
            replaykit.generate(
                "nano", prompts=old, verify="exact", answers=n, answer_temperature=2.0, **SETTINGS
            )
        )
        for n in (1, 6)
    )
    assert len(one) == len(many) == len(old)
    kept = [sum(row.meta["path"] == "own" for row in rows) for rows in (one, many)]
    assert kept[1] > kept[0]
    chosen = [row.meta["answer"] for row in many if row.meta["path"] == "own"]
    assert max(chosen) > 0
    for row, alone in zip(many, one, strict=True):
        if alone.meta["path"] == "own":
            assert row.answer == alone.answer and row.meta["answer"] == 0


def test_an_answer_that_was_cut_or_lacks_the_thought_of_the_old_one_is_not_kept():
    thought = {"role": "assistant", "content": "4", "reasoning_content": "2 and 2"}
    row = Record((*dialogue("2 + 2?"), thought), "select")
    answer = {"role": "assistant", "content": "4"}
    assert not_kept(answer, row, "numeric", cut=True) == "cut"
    assert not_kept(answer, row, "numeric", cut=False) == "thought_missing"
    assert not_kept({**answer, "content": "5"}, row, "numeric", cut=False) == "wrong"
    assert not_kept({**answer, "reasoning_content": "so"}, row, "numeric", cut=False) is None


def test_calls_are_compared_as_calls():
    call = {"type": "function", "function": {"name": "add", "arguments": {"a": 1}}}
    calls = {"role": "assistant", "content": "", "tool_calls": [call]}
    tool = {"type": "function", "function": {"name": "add", "parameters": {"type": "object"}}}
    row = Record((*dialogue("Add."), calls), "select", tools=(tool,))
    assert not_asked(row, "tool_call") is None
    assert not_asked(row, "exact") == "unverifiable"
    assert not_kept(calls, row, "tool_call", cut=False) is None
    assert not_kept(dialogue("", "Done.")[1], row, "tool_call", cut=False) == "wrong"


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ("verify: exact", "verify: it compares answers with those of prompts"),
        ("prompts: {path: a.jsonl, answer: x}", "prompts.answer: the rows' own answers are read"),
        ("prompts: {path: a.jsonl, prompt: x}, verify: exact", "are given together"),
        (
            "prompts: a.jsonl, verify: exact, checks: {perplexity: [1.0, 9.0]}",
            "none is dropped by its perplexity",
        ),
        ("prompts: a.jsonl, verify: exactly", "verify"),
    ],
)
def test_what_cannot_be_verified_is_refused(here, settings, message):
    Path("replaykit.yaml").write_text(f"name: a\nmodel: nano\ngenerate: {{{settings}}}\n")
    with pytest.raises(RecipeError, match=message):
        load_recipe("replaykit.yaml")


def test_rows_without_any_answer_are_refused():
    with pytest.raises(DataError, match="none of its rows has one; leave verify out"):
        replaykit.generate("nano", prompts=[Record(dialogue("2 + 2?"), "select")], verify="exact")


def test_columns_of_any_name_are_question_and_reference(here):
    rows = [
        json.dumps({"ask": task.prompt, "say": task.answer}) for task in world.draw_old(4, seed=2)
    ]
    Path("old.jsonl").write_text("\n".join(rows))
    Path("replaykit.yaml").write_text(
        "name: a\nmodel: nano\ngenerate: {max_answer_tokens: 64, verify: exact,"
        " prompts: {path: old.jsonl, prompt: ask, answer: say}}\n"
    )
    type_in("generate")
    rows = list(read_jsonl("runs/a/generate/rows.jsonl"))
    assert [row.meta["why"] for row in rows].count("right") >= 3
