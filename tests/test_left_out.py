"""A row that cannot be used is left out and said to be, of the target and of tests too; and a test
reads the rows that are held out.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from test_templates import shipped
from typer.testing import CliRunner

import replaykit
from replaykit.cli import app
from replaykit.data.files import splits_of
from replaykit.data.record import TARGET, dialogue
from replaykit.errors import CallError, DataError, RecipeError
from replaykit.model.chat import Chat
from replaykit.recipe import Recipe
from replaykit.recipe.data import Data, Prompts
from replaykit.recipe.evaluate import Test as Scored
from replaykit.steps.evaluate.scorable import scorable
from replaykit.steps.inputs import (
    HeldOut,
    default_split,
    load,
    load_prompts,
    load_tests,
    split_note,
)

NO_ANSWER = {"messages": [{"role": "user", "content": "And 3 + 3?"}]}
TOOL = {"type": "function", "function": {"name": "weather", "parameters": {"type": "object"}}}
# The embedded model's template does not show tools.
REFUSED = {
    "messages": [{"role": "user", "content": "Oslo?"}, {"role": "assistant", "content": "7 C"}],
    "tools": [TOOL],
}
BROKEN = '{"prompt": "4 + 4?", "completion": '


def sums(n: int, first: int = 0) -> list[dict[str, Any]]:
    return [
        {"prompt": f"What is {k} + {k}?", "completion": f"{2 * k}"} for k in range(first, first + n)
    ]


def write(path: Path, rows: Sequence[dict[str, Any]], *lines: str) -> Path:
    """The rows as JSON Lines, and further lines as they are."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(f"{line}\n" for line in (*map(json.dumps, rows), *lines)))
    return path


def command(*flags: str) -> Any:
    return CliRunner().invoke(app, [*flags, "--target", "target.jsonl", "--out", "made"])


def dropped(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / "dropped.jsonl").read_text().splitlines()]


# --- the target -----------------------------------------------------------------------------------


def test_a_target_row_that_cannot_be_used_is_dropped_with_its_reason(here: Path) -> None:
    write(here / "target.jsonl", [*sums(6), NO_ANSWER, REFUSED], BROKEN)
    done = command("mix", "--model", "nano", "--ratio", "0", "--json")
    assert done.exit_code == 0, done.output
    result = json.loads(done.stdout)
    assert result["funnel"] == {
        "made": 9,
        "dropped": {"unparsed": 1, "no_answer": 1, "template_refuses": 1},
        "kept": 6,
    }
    assert result["target_rows"] == 6
    unread, silent, refused = result["notes"][:3]
    assert unread.startswith(
        "target.jsonl: 1 of 9 rows cannot be read and is left out; the first: target.jsonl:9: not"
    )
    assert "1 of the 8 target rows have no answer to learn from (the first: row 7)" in silent
    assert "(the first: row 8: nano: its chat template does not show the tools of" in refused
    by_reason = {row["reason"]: row for row in dropped(here / "made")}
    assert by_reason["unparsed"]["place"] == "target.jsonl:9"
    assert by_reason["no_answer"]["messages"] == NO_ANSWER["messages"]
    assert "does not show the tools" in by_reason["template_refuses"]["meta"]["error"]


def test_what_is_left_out_is_said_on_the_terminal(here: Path) -> None:
    write(here / "target.jsonl", sums(6), BROKEN)
    said = command("mix", "--model", "nano", "--ratio", "0").stdout
    assert "1 of 7 rows cannot be read and is left out" in " ".join(said.split())


@pytest.mark.parametrize(
    ("rows", "says"),
    [
        ([*sums(1), {"colour": "red"}, {"colour": "blue"}], r"only 1 of its 3 rows can be read, fewer than half.*target\.jsonl:2"),
        ([{"colour": "red"}], r"none of its 1 rows can be read; the first: target\.jsonl:1"),
        ([*sums(1), NO_ANSWER, NO_ANSWER], r"the target: only 1 of its 3 rows can be learned from.*row 2 \(no_answer\)"),
        ([REFUSED, REFUSED], "the target: none of its 2 rows can be learned from.*does not show the tools"),
    ],
)  # fmt: skip
def test_a_target_of_which_more_than_half_is_bad_is_refused(
    here: Path, rows: list[dict[str, Any]], says: str
) -> None:
    write(here / "target.jsonl", rows)
    with pytest.raises(DataError, match=says):
        replaykit.mix("target.jsonl", model="nano", ratio=0)


def test_half_of_the_rows_are_enough(here: Path) -> None:
    write(here / "target.jsonl", sums(2), BROKEN, BROKEN)
    found = load(Data(path="target.jsonl"), TARGET)
    assert [record.answer for record in found.records] == ["0", "2"]
    assert found.note.startswith("target.jsonl: 2 of 4 rows cannot be read and are left out")


def test_select_and_rewrite_go_on_without_a_target_row_that_cannot_be_read(here: Path) -> None:
    target = write(here / "target.jsonl", sums(3), BROKEN)
    note = "1 of 4 rows cannot be read and is left out"
    selection = replaykit.select(sums(9, 50), str(target), n=2)
    assert len(selection.records) == 2
    assert note in selection.result.notes[0]
    rewritten = replaykit.rewrite(str(target), model="nano")
    assert len(rewritten.records) == 3
    assert note in rewritten.result.notes[0]


def test_prompts_without_a_question_are_left_out_and_said(here: Path) -> None:
    write(here / "asked.jsonl", [{"colour": "red"}, {"prompt": "What is the capital of France?"}])
    flags = ["generate", "--model", "nano", "--prompts", "asked.jsonl", "--out", "made"]
    done = CliRunner().invoke(app, [*flags, "--json"])
    assert done.exit_code == 0, done.output
    result = json.loads(done.stdout)
    assert (result["n"], result["rows"]) == (1, 1)
    assert result["notes"][0].startswith(
        "asked.jsonl: 1 of 2 rows cannot be read and is left out; the first: asked.jsonl:1: no"
    )
    assert "1 of 2 rows cannot be read" in " ".join(CliRunner().invoke(app, flags).stdout.split())
    (here / "asked.txt").write_bytes(b"What is the capital of France?\nZ\xfcrich?\n")
    asked = load_prompts(Prompts(path="asked.txt"))
    assert [record.prompt for record in asked.records] == ["What is the capital of France?"]
    assert "1 of 2 rows cannot be read and is left out; the first: asked.txt:2: not" in asked.note
    write(here / "none.jsonl", [{"colour": "red"}])
    with pytest.raises(DataError, match="none.jsonl: none of its 1 rows can be read"):
        load_prompts(Prompts(path="none.jsonl"))


def test_init_needs_one_row_that_can_be_read(here: Path) -> None:
    write(here / "target.jsonl", [{"colour": "red"}, *sums(2)])
    done = CliRunner().invoke(app, ["init", "--target", "target.jsonl", "--out", "recipe.yaml"])
    assert done.exit_code == 0, done.output
    assert (here / "recipe.yaml").is_file()
    write(here / "bad.jsonl", [{"colour": "red"}, {"colour": "blue"}])
    done = CliRunner().invoke(app, ["init", "--target", "bad.jsonl", "--out", "other.yaml"])
    assert done.exit_code == 1
    said = " ".join(done.output.split())
    assert "bad.jsonl: none of its rows can be read; the first: bad.jsonl:1: no messages" in said


def test_what_of_a_pool_is_not_read_is_said_by_the_command_and_by_the_function(here: Path) -> None:
    write(here / "target.jsonl", sums(3))
    write(here / "pool" / "old.jsonl", sums(20, 50))
    write(here / "pool" / "dev_old.ndjson", sums(20, 90))
    said = "pool: not read: dev_old.ndjson"
    done = command("select", "--pool", "pool", "-n", "2", "--json")
    assert done.exit_code == 0, done.output
    assert json.loads(done.stdout)["notes"][0] == said
    assert replaykit.select("pool", "target.jsonl", n=2).result.notes[0] == said
    mixed = replaykit.mix("target.jsonl", "./pool", model="nano", ratio=0.5)
    assert said in mixed.result.notes


def test_a_row_in_memory_that_cannot_be_read_is_left_out_too() -> None:
    mixed = replaykit.mix([*sums(3), {"colour": "red"}], model="nano", ratio=0)
    assert mixed.result.target_rows == 3
    assert mixed.result.notes[0].startswith(
        "rows in memory: 1 of 4 rows cannot be read and is left out; the first: row:4:"
    )


# --- replay of one's own --------------------------------------------------------------------------


@pytest.mark.parametrize(
    "bad",
    [
        {"prompt": "Old 1?", "completion": "bad", "label": False},
        {"messages": [*dialogue("Old 1?", "bad")], "kto_tag": "False"},
        {"prompt": "Old 1?", "chosen": "good", "rejected": "bad"},
    ],
)
def test_an_answer_that_its_row_calls_a_bad_one_is_left_out_and_said(
    here: Path, bad: dict[str, Any]
) -> None:
    old = [{**row, "label": True} for row in sums(9, 100)]
    write(here / "old.jsonl", [old[0], bad, *old[1:]])
    mixed = replaykit.mix(sums(9), "old.jsonl", model="nano", ratio=0.2, unit="rows", epochs=9)
    assert mixed.result.funnel.dropped["unparsed"] == 1
    assert (
        "old.jsonl: 1 of 10 rows cannot be read and is left out; the first: old.jsonl:2: "
        in str(mixed.result.notes)
    )
    answers = {row.record.answer for row in mixed.rows}
    assert answers == {row["completion"] for row in (*old, *sums(9))}


def test_each_file_of_replay_names_its_own_first_bad_row(here: Path) -> None:
    one = write(here / "one.jsonl", sums(4, 100), BROKEN)
    two = write(here / "two.jsonl", [{"colour": "red"}, *sums(4, 200)])
    mixed = replaykit.mix(sums(9), [str(one), str(two)], model="nano", ratio=0.2)
    unread = [note for note in mixed.result.notes if "cannot be read" in note]
    assert [note.partition(": not")[0] for note in unread[:1]] == [
        f"{one}: 1 of 5 rows cannot be read and is left out; the first: {one}:5"
    ]
    assert f"the first: {two}:1: no messages" in unread[1]
    assert mixed.result.funnel.dropped["unparsed"] == 2
    three = write(here / "three.jsonl", [{"colour": "red"}])
    with pytest.raises(DataError, match=r"three\.jsonl: none of its 1 rows can be read.*three"):
        replaykit.mix(sums(9), [str(one), str(three)], model="nano", ratio=0.2)


# --- tests ----------------------------------------------------------------------------------------


def test_a_test_row_that_cannot_be_scored_is_left_out_for_all_models(here: Path) -> None:
    words = {"prompt": "Who?", "completion": "Ada"}
    test = write(here / "test.jsonl", [*sums(6), NO_ANSWER, REFUSED, words], BROKEN)
    found = replaykit.evaluate({"base": "nano", "same": "nano"}, {"sums": (str(test), "numeric")})
    assert (found.skills[0].n, found.skills[0].unscored) == (6, 0)
    unread, unscorable = found.notes
    assert f"{test}: 1 of 10 rows cannot be read and is left out; the first: {test}:10" in unread
    assert "3 of 9 rows cannot be scored and are left out" in unscorable
    assert f"{test}:7: it does not end with a question and its answer" in unscorable


@pytest.mark.parametrize(
    ("score", "row", "says"),
    [
        ("exact", NO_ANSWER, "does not end with a question and its answer"),
        ("exact", {"text": "Paris is in France."}, "a text has no question"),
        ("exact", REFUSED, "does not show the tools"),
        ("numeric", {"prompt": "Who?", "completion": "Ada"}, "cannot be scored as numeric"),
        ("json", {"prompt": "Who?", "completion": "{Ada"}, "cannot be scored as json"),
        ("cross_entropy", NO_ANSWER, "it has no answer"),
        ("cross_entropy", REFUSED, "does not show the tools"),
    ],
)
def test_why_a_test_row_cannot_be_scored(
    chat: Chat, here: Path, score: Any, row: dict[str, Any], says: str
) -> None:
    write(here / "test.jsonl", [row, *sums(2)])
    test = Scored(path="test.jsonl", score=score)
    held = HeldOut({TARGET: (test, load(test, TARGET).records)})
    left = scorable(chat, held)
    assert [record.answer for record in left.rows[TARGET][1]] == ["0", "2"]
    assert "test.jsonl: 1 of 3 rows cannot be scored and is left out" in left.notes[0]
    assert f"test.jsonl:1: {says}" in left.notes[0] or says in left.notes[0]
    write(here / "test.jsonl", [row])
    held = HeldOut({TARGET: (test, load(test, TARGET).records)})
    with pytest.raises(DataError, match="none of its 1 rows can be scored"):
        scorable(chat, held)


# --- which split is tested ------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("splits", "read"),
    [
        (["train", "validation", "test"], "test"),
        (["train", "validation"], "validation"),
        (["train"], "train"),
        (["train_sft"], "train_sft"),
    ],
)
def test_a_test_reads_the_split_that_is_held_out_and_says_which(
    here: Path, splits: list[str], read: str
) -> None:
    for number, split in enumerate(splits):
        write(here / "sums" / f"{split}-00000-of-00001.jsonl", sums(2, 10 * number))
    test = Scored(path="sums")
    assert splits_of("sums") == sorted(splits)
    assert default_split(test) == read
    (row, _) = load(test, TARGET).records
    assert row.prompt == f"What is {10 * splits.index(read)} + {10 * splits.index(read)}?"
    assert split_note(test) == f"sums: its split {read} is tested; `split: NAME` takes another"
    assert split_note(Scored(path="sums", split=read)) == ""
    assert load(Scored(path="sums", split=splits[0]), TARGET).records[0].prompt == "What is 0 + 0?"
    if "train" in splits:
        assert load(Data(path="sums"), TARGET).records[0].prompt == "What is 0 + 0?"


def test_where_no_split_is_held_out_by_its_name_the_recipe_must_say_it(here: Path) -> None:
    for split in ("train_sft", "train_gen"):
        write(here / "chats" / f"{split}-00000-of-00001.jsonl", sums(1))
    with pytest.raises(DataError, match="which of its splits is held out.*train_gen, train_sft"):
        load(Scored(path="chats"), TARGET)


def test_what_has_no_splits_is_read_whole(here: Path) -> None:
    write(here / "sums" / "a.jsonl", sums(2))
    write(here / "sums" / "b.jsonl", sums(2, 5))
    assert splits_of("sums") == splits_of("sums/a.jsonl") == []
    assert len(load(Scored(path="sums"), TARGET).records) == 4
    assert split_note(Scored(path="sums")) == split_note(Scored(path="sums/a.jsonl")) == ""


def test_the_splits_of_a_saved_data_set_and_of_a_readme_are_known(here: Path) -> None:
    import datasets

    made = {name: datasets.Dataset.from_list(sums(2)) for name in ("train", "test")}
    datasets.DatasetDict(made).save_to_disk("saved")
    made["test"].save_to_disk("alone")
    assert splits_of("saved") == ["train", "test"]
    assert splits_of("alone") == []
    assert default_split(Scored(path="saved")) == "test"
    write(here / "hub" / "rows" / "one.jsonl", sums(1))
    write(here / "hub" / "rows" / "two.jsonl", sums(1, 7))
    files = "[{split: train, path: rows/one.jsonl}, {split: validation, path: rows/two.jsonl}]"
    head = f"---\nconfigs:\n- config_name: default\n  data_files: {files}\n---\n"
    (here / "hub" / "README.md").write_text(head)
    assert splits_of("hub") == ["train", "validation"]
    assert load(Scored(path="hub"), TARGET).records[0].answer == "14"


def test_a_path_in_a_call_is_tested_by_its_test_split(here: Path) -> None:
    write(here / "sums" / "train.jsonl", sums(3))
    write(here / "sums" / "test.jsonl", sums(2, 20))
    found = replaykit.evaluate({"base": "nano"}, {"sums": "sums"})
    assert found.skills[0].n == 2
    assert "sums: its split test is tested; `split: NAME` takes another" in found.notes


@pytest.mark.parametrize(
    ("target", "test", "refused"),
    [
        ("sums", "sums", False),
        ({"path": "sums", "split": "test"}, "sums", True),
        ("sums", {"path": "sums", "split": "train"}, True),
        ("sums", {"path": "sums", "split": "all"}, True),
        ("sums", {"path": "./sums/", "split": "train"}, True),
        ("sums/train.jsonl", "sums/train.jsonl", True),
        ("sums/train.jsonl", "sums/test.jsonl", False),
        ({"path": "sums/train.jsonl", "n": 2}, {"path": "sums/train.jsonl", "skip": 2}, False),
        ({"path": "sums/train.jsonl", "skip": 2}, {"path": "sums/train.jsonl", "n": 2}, False),
        ({"path": "sums/train.jsonl", "n": 2}, {"path": "sums/train.jsonl", "skip": 1}, True),
        ("only", "only", True),
    ],
)
@pytest.mark.parametrize("skill", [TARGET, "old"])
def test_a_test_of_the_rows_that_are_trained_on_is_refused(
    here: Path, target: Any, test: Any, refused: bool, skill: str
) -> None:
    write(here / "sums" / "train.jsonl", sums(3))
    write(here / "sums" / "test.jsonl", sums(3, 20))
    write(here / "only" / "train.jsonl", sums(3))
    tests = {"target": test} if skill == TARGET else {"old": {"old": test}}
    recipe = Recipe.model_validate({"model": "nano", "target": target, "eval": tests})
    if not refused:
        assert load_tests(recipe).rows[skill][1]
        return
    section = {TARGET: "eval.target", "old": "eval.old.old"}[skill]
    with pytest.raises(RecipeError, match=f"{section}: .* very rows that are trained on; name"):
        load_tests(recipe)


@pytest.mark.parametrize("call", ["mix", "select"])
def test_a_test_of_the_target_itself_is_refused_in_a_call(here: Path, call: str) -> None:
    write(here / "sums" / "train.jsonl", sums(6))
    write(here / "sums" / "test.jsonl", sums(3, 20))

    def given(target: Any, held: Any) -> Any:
        if call == "mix":
            return replaykit.mix(target, model="nano", ratio=0, held_out=held).result
        return replaykit.select(sums(9, 50), target, n=2, held_out=held).result

    rows = sums(6)
    for target, test in [
        ("sums/train.jsonl", Path("sums/train.jsonl")),
        (Path("sums/../sums/train.jsonl"), ("sums/train.jsonl", "numeric")),
        (rows, rows),
    ]:
        for skill in (TARGET, "old"):
            with pytest.raises(CallError, match=f"held_out: {skill} has the very rows of the"):
                given(target, {skill: test})
    assert given("sums", {TARGET: "sums"}).notes


# --- a pool without a word ------------------------------------------------------------------------


@pytest.mark.parametrize("method", ["mmr", "k-centre", "herding"])
def test_a_pool_without_any_word_is_chosen_from_all_the_same(method: Any) -> None:
    pool = [{"prompt": mark, "completion": f"It is sign {mark}"} for mark in ("?!", "++", "{}")]
    chosen = replaykit.select(pool, sums(2), n=2, method=method)
    assert len({record.prompt for record in chosen.records}) == 2
    assert chosen.result.funnel.made == 3


def test_answers_that_the_template_shows_without_their_thoughts_are_counted(tmp_path: Path) -> None:
    shipped("qwen3").tokenizer.save_pretrained(tmp_path)
    (tmp_path / "config.json").write_text('{"model_type": "llama"}')
    thinks = {"role": "assistant", "content": "Two.", "reasoning_content": "Hm."}
    rows = []
    for number in range(8):
        question = {"role": "user", "content": f"What is {number} + 1?"}
        rows.append({"messages": [question, thinks] * (1 + number % 2)})
    mixed = replaykit.mix(rows, model=str(tmp_path), ratio=0.0, batch_rows=4)
    notes = " ".join(mixed.result.notes)
    assert "4 earlier answers of 4 rows carry no loss" in notes
    assert "without their thoughts" in notes
