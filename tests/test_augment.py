"""Facts about augmenting the target: pairs by calculation, an editor and a translator by table, and the mix."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from random import Random
from typing import Any

import pytest
import tiny
from commands import type_in

import replaykit
from replaykit.data.jsonl import read_jsonl, write_jsonl
from replaykit.data.ledger import Ledger
from replaykit.data.record import Record, dialogue
from replaykit.engines import Completion, Engine, Request
from replaykit.errors import RecipeError
from replaykit.model.chat import Chat
from replaykit.nano import world
from replaykit.recipe.augment import Augment
from replaykit.steps.augment.arithmetic import changed
from replaykit.steps.augment.augment import augmented, counted
from replaykit.steps.augment.meaning import by_terms
from replaykit.steps.augment.rows import Attempt

QUESTION = "Which city is the capital of Peru?"


@pytest.fixture(scope="module")
def chat() -> Chat:
    return Chat.load("nano")


class Scripted:
    """An engine that replies from a table: the first key that the prompt contains decides. Last request first."""

    name = "scripted"
    limit = 4096

    def __init__(self, chat: Chat, *replies: tuple[str, str], stop_after: int | None = None):
        self.chat = chat
        self.replies = replies
        self.stop_after = stop_after
        self.asked = 0

    def complete(self, requests: Iterable[Request | None]) -> Iterator[Completion]:
        for request in reversed([each for each in requests if each is not None]):
            if self.asked == self.stop_after:
                raise KeyboardInterrupt
            self.asked += 1
            prompt = self.chat.decode(request.tokens, special=True)
            reply = next((reply for key, reply in self.replies if key in prompt), "")
            yield Completion(request.row, self.chat.encode(reply), "stop")

    def score(self, sequences: Iterable[Any]) -> Iterator[list[float]]:
        raise AssertionError("nothing is scored")

    def close(self) -> None:
        pass


def attempts_of(
    target: Sequence[Record], engine: Scripted, folder: Path, **settings: Any
) -> list[Attempt]:
    @contextmanager
    def open_model(_: str | None) -> Iterator[tuple[Engine, Chat]]:
        yield engine, engine.chat

    with Ledger(folder / "replies.jsonl") as ledger:
        return list(
            augmented(
                target, settings=Augment(**settings), seed=1, ledger=ledger, open_model=open_model
            )
        )


def row(question: str, answer: str, **meta: Any) -> Record:
    return Record(dialogue(question, answer), "target", meta)


# --- arithmetic -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("question", "answer"),
    [
        ("What is 27 + 15?", "42"),
        ("What is 27 + 15?", "27 + 15 = 42"),
        ("Tom has 14 cards and gets 5 more. How many now?", "14 + 5 = 19"),
        ("3 boxes of 1,200 nails, 100 are used.", "3*1,200 = 3,600. So 3,600 - 100 = 3,500\n#### 3,500"),
        ("4 pens at $1.50 each?", "4*1.50=6.00"),
        ("A team has 6 players and 8 more.", "<<6+8=14>>14\n#### 14"),
    ],
)  # fmt: skip
def test_a_number_is_changed_and_the_whole_calculation_follows(question: str, answer: str) -> None:
    found = changed(question, answer, Random(1))
    assert not isinstance(found, str)
    old, new = found.fact
    assert old in question
    assert found.question == question.replace(old, new, 1)
    # The same function finds nothing wrong in what it wrote, and it comes to something else.
    assert not isinstance(changed(found.question, found.answer, Random(2)), str)
    assert found.answer.split()[-1] != answer.split()[-1]


def test_the_new_answer_is_the_sum_of_the_new_numbers() -> None:
    for seed in range(50):
        found = changed("What is 27 + 15?", "27 + 15 = 42", Random(seed))
        assert not isinstance(found, str)
        left, right = found.answer.split(" = ")
        one, other = left.split(" + ")
        assert int(one) + int(other) == int(right)
        assert found.question == f"What is {one} + {other}?"


@pytest.mark.parametrize(
    ("question", "answer", "why"),
    [
        ("What is the capital of Peru?", "Lima", "no_calculation"),
        ("What is 27 + 15?", "27 + 15 = 43", "wrong_calculation"),
        ("What is 27 + 15?", "41", "wrong_calculation"),
        ("Half of 48?", "48/2 = 24", "unexplained_number"),
        ("What is 7 plus 7?", "14", "ambiguous"),
    ],
)
def test_what_cannot_be_calculated_says_why(question: str, answer: str, why: str) -> None:
    assert changed(question, answer, Random(1)) == why


def test_a_number_beside_the_calculation_is_not_the_fact_that_is_changed() -> None:
    for seed in range(20):
        found = changed("On day 3 Tom has 14 cards and gets 5.", "14 + 5 = 19", Random(seed))
        assert not isinstance(found, str)
        assert found.fact[0] in ("14", "5")


# --- an editor ------------------------------------------------------------------------------------


def edited(chat: Chat, folder: Path, reply: str, again: str = "Oslo", **more: Any) -> Attempt:
    engine = Scripted(chat, ("exactly one fact changed", reply), ("capital of Norway", again))
    (found,) = attempts_of([row(QUESTION, "Lima", town="x")], engine, folder, counterfactual=more)
    return found


def test_an_edited_pair_is_linked_to_its_parent_and_keeps_its_columns(
    chat: Chat, tmp_path: Path
) -> None:
    found = edited(chat, tmp_path, f"Question: {QUESTION.replace('Peru', 'Norway')}\nAnswer: Oslo")
    assert found.why == ""
    assert found.made is not None
    assert found.made.answer == "Oslo"
    assert found.made.source == "augment"
    meta = dict(found.made.meta)
    assert 0 < meta.pop("edit") < 0.3
    assert meta == {
        "town": "x",
        "parent": found.parent.id,
        "path": "counterfactual",
        "fact": ["Peru", "Norway"],
    }


@pytest.mark.parametrize(
    ("reply", "again", "why"),
    [
        ("", "", "empty"),
        ("The capital of Norway is Oslo.", "", "unparsed"),
        (f"Question: {QUESTION}\nAnswer: Oslo", "", "unchanged"),
        ("Question: Which town is the capital of Norway?\nAnswer: Oslo", "", "not_one_fact"),
        (f"Question: {QUESTION[:-1]} and more?\nAnswer: Oslo", "", "not_one_fact"),
        ("Question: Which city is the capital of Norway?\nAnswer: Lima", "", "same_answer"),
        ("Question: Which city is the capital of Norway?\nAnswer: Oslo", "Bergen", "unconfirmed"),
    ],
)
def test_what_an_editor_writes_wrongly_is_refused_with_the_reason(
    chat: Chat, tmp_path: Path, reply: str, again: str, why: str
) -> None:
    found = edited(chat, tmp_path, reply, again)
    assert (found.made, found.why) == (None, why)


def test_rows_whose_answer_is_more_than_words_are_not_edited(chat: Chat, tmp_path: Path) -> None:
    plain = Record(({"role": "text", "content": "A text."},), "target")
    thought: Any = {"role": "assistant", "content": "4", "reasoning_content": "Hm."}
    thinking = Record((*dialogue("2 + 2?"), thought), "target")
    engine = Scripted(chat)
    found = attempts_of([plain, thinking], engine, tmp_path, counterfactual={})
    assert [each.why for each in found] == ["no_question", "thought"]
    assert engine.asked == 0


# --- back-translation -----------------------------------------------------------------------------


def translated(chat: Chat, folder: Path, there: str, back: str, **more: Any) -> Attempt:
    engine = Scripted(
        chat, ("into German", there), ("into English", back), ("", more.pop("answer", ""))
    )
    target = [row(QUESTION, "Lima", path="mine")]
    (found,) = attempts_of(target, engine, folder, back_translation=more)
    return found


THERE = "Welche Stadt ist die Hauptstadt von Peru?"


def test_a_question_that_came_back_in_other_words_has_the_old_answer(
    chat: Chat, tmp_path: Path
) -> None:
    found = translated(chat, tmp_path, THERE, "What city is the capital city of Peru?")
    assert found.why == ""
    assert found.made is not None
    assert found.made.messages == dialogue("What city is the capital city of Peru?", "Lima")
    assert found.made.meta["similarity"] >= 0.4
    assert found.made.meta["columns"] == {"path": "mine"}


@pytest.mark.parametrize(
    ("there", "back", "why"),
    [
        (QUESTION, "", "not_translated"),
        (THERE, QUESTION.upper(), "unchanged"),
        (THERE, "Which 2 cities are the capital of Peru?", "facts_changed"),
        (THERE, "How tall is a giraffe?", "meaning_changed"),
        (THERE, "", "empty"),
    ],
)
def test_what_came_back_wrongly_is_refused_with_the_reason(
    chat: Chat, tmp_path: Path, there: str, back: str, why: str
) -> None:
    found = translated(chat, tmp_path, there, back)
    assert (found.made, found.why) == (None, why)


def test_the_meaning_can_be_checked_by_the_answer(chat: Chat, tmp_path: Path) -> None:
    for answer, why in [("Lima.", ""), ("Quito", "unverified")]:
        folder = tmp_path / answer
        folder.mkdir()
        found = translated(
            chat, folder, THERE, "Name the main city of Peru.", meaning="answer", answer=answer
        )
        assert found.why == why


def test_a_cosine_of_terms_is_one_of_equal_texts_and_falls_with_what_is_shared() -> None:
    parents = [QUESTION] * 3
    same, near, far = by_terms(parents, [QUESTION, "What city is Peru's capital?", "2 + 2?"])
    assert same == pytest.approx(1.0)
    assert 1 > near > far >= 0


# --- all rows -------------------------------------------------------------------------------------


def test_every_drawn_row_has_one_attempt_by_each_way_and_stops_lose_nothing(
    chat: Chat, tmp_path: Path
) -> None:
    target = [row(f"What is {n} + 15?", str(n + 15)) for n in range(20, 30)]
    replies = (("into German", "Was ist {}?"), ("into English", "Say what that is."))
    ways = {"back_translation": {}, "counterfactual": {"by": "arithmetic"}}
    whole = attempts_of(target, Scripted(chat, *replies), tmp_path, **ways)
    assert [each.parent for each in whole] == [record for record in target for _ in range(2)]
    found = counted(whole, Augment(**ways), len(target))
    assert found.rows == found.paths["counterfactual"].made == 10
    assert found.paths["back-translation"].refused == {"facts_changed": 10}
    (tmp_path / "cut").mkdir()
    with pytest.raises(KeyboardInterrupt):
        attempts_of(target, Scripted(chat, *replies, stop_after=4), tmp_path / "cut", **ways)
    engine = Scripted(chat, *replies)
    assert attempts_of(target, engine, tmp_path / "cut", **ways) == whole
    assert engine.asked == 16


def test_a_part_of_the_rows_is_drawn_by_the_seed(chat: Chat, tmp_path: Path) -> None:
    target = [row(f"What is {n} + 15?", str(n + 15)) for n in range(20, 90)]
    found = attempts_of(
        target, Scripted(chat), tmp_path, part=0.5, counterfactual={"by": "arithmetic"}
    )
    assert 20 < len(found) < 50


# --- the step, and the mix ------------------------------------------------------------------------


def sums(folder: Path, n: int = 24) -> str:
    tasks = world.draw("arithmetic", n, seed=1)
    write_jsonl(folder / "sums.jsonl", [row(task.prompt, task.answer) for task in tasks])
    return str(folder / "sums.jsonl")


@pytest.mark.slow
def test_augmented_rows_are_target_rows_in_the_mix_and_replay_keeps_its_share(
    tmp_path: Path,
) -> None:
    run = tiny.Run(tmp_path)
    recipe = run.changed(
        target=sums(tmp_path),
        augment={"counterfactual": {"by": "arithmetic"}},
        mix={"ratio": 0.25, "sources": ["select"]},
        eval={"target": None, "old": {}},
        train={"steps": None, "batch_rows": 8},
    )
    done = tiny.done(recipe, "select", "augment", "mix")
    made = done["augment"].rows
    assert made > 12
    rows = list(read_jsonl(recipe.folder / "augment" / "rows.jsonl"))
    dropped = (recipe.folder / "augment" / "dropped.jsonl").read_text().splitlines()
    assert len(rows) + len(dropped) == 24
    mixed = done["mix"]
    assert mixed.available["target"] == mixed.target_rows == 24 + made
    assert mixed.share["rows"] == pytest.approx(0.25, abs=1 / (24 + made))
    assert f"{made} rows of augment count as target rows" in mixed.notes[0]


def test_nothing_is_augmented_where_no_way_is_asked_for(here: Path) -> None:
    write_jsonl("rows.jsonl", [row("2 + 2?", "4")])
    said = type_in("augment", "--target", "rows.jsonl", "--model", "nano", code=1)
    assert "say how rows are made" in said
    with pytest.raises(RecipeError, match="say how rows are made"):
        replaykit.augment("rows.jsonl", model="nano")


def test_the_command_and_the_function_make_the_same_rows(here: Path) -> None:
    target = sums(here, 8)
    type_in("augment", "--target", target, "--model", "nano", "--by", "arithmetic", "--out", "made")
    made = replaykit.augment(target, model="nano", counterfactual={"by": "arithmetic"})
    assert list(read_jsonl("made/rows.jsonl")) == made.records
    assert made.result.rows == len(made.records) > 4


@pytest.mark.slow
def test_the_embedded_model_translates_nothing_and_every_row_says_why(here: Path) -> None:
    tasks = world.draw("capital", 6, seed=1)
    made = replaykit.augment(
        [row(task.prompt, task.answer) for task in tasks],
        model="nano",
        engine="transformers",
        back_translation={},
        max_tokens=32,
    )
    counts = made.result.paths["back-translation"]
    assert counts.made + sum(counts.refused.values()) == 6
