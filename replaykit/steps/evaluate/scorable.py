"""Which held-out rows can be scored as their test is, whatever a model answers.

    scorable(chat, held).notes
    ->  ["test.jsonl: 1 of 40 rows cannot be scored and is left out; the first: test.jsonl:7: ..."]

A row that cannot be is left out for all models, so they are compared on the same rows.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

from replaykit.checks.scoring import SCORERS, check
from replaykit.data.record import Record, emptiness
from replaykit.errors import ChatError
from replaykit.recipe.evaluate import Test
from replaykit.steps.evaluate.skills import (
    check_ways,
    left_to_think,
    place_of,
    problem,
    read_back,
    right_of,
)
from replaykit.steps.inputs import HeldOut, check_left, left_out

if TYPE_CHECKING:
    from replaykit.model.chat import Chat

EMPTY = {"empty_answer": "its answer says nothing", "empty_prompt": "its question says nothing"}


def scorable(chat: Chat, held: HeldOut) -> HeldOut:
    """The rows that have an answer, that the chat template takes, and whose answer can be read in
    the way that the test is scored; what is said of the others is in the notes, and of a test whose
    references think where the model is not asked to.

    Raises as ``check_ways`` does, and DataError where fewer than half of a test's rows are such.
    """
    check_ways(chat, {skill: test for skill, (test, _) in held.rows.items()})
    rows: dict[str, tuple[Test, Sequence[Record]]] = {}
    notes = list(held.notes)
    for skill, (test, records) in held.rows.items():
        kept: list[Record] = []
        first = ""
        for record in records:
            reason = unscorable(chat, test, record)
            if not reason:
                kept.append(record)
            elif not first:
                first = f"{place_of(test, record)}: {reason}"
        bad = len(records) - len(kept)
        check_left(test.path, bad, len(records), "can be scored", first)
        if bad:
            notes.append(left_out(test.path, bad, len(records), "cannot be scored", first))
        rows[skill] = (test, kept)
        thoughts = sum("reasoning_content" in record.messages[-1] for record in kept)
        if thoughts and not_asked(chat, test):
            notes.append(
                f"{skill}: {thoughts:,} of {len(kept):,} reference answers come after a thought, "
                f"and the model is not left to think; `thinking: true` beside the path asks it to, "
                f"false says that this is meant"
            )
    return replace(held, rows=rows, notes=notes)


def not_asked(chat: Chat, test: Test) -> bool:
    """Whether a model that can think answers without, and nobody has said that it shall."""
    silent = test.score != "cross_entropy" and test.thinking is None
    return silent and chat.can_think and not left_to_think(chat, test)


def unscorable(chat: Chat, test: Test, record: Record) -> str:
    """Why a row cannot be scored; "" where it can."""
    if test.score == "lm_eval":
        return ""  # its documents are what lm-eval makes of them
    if test.score == "cross_entropy":
        return _without_loss(chat, record)
    reason = problem(record, test)
    if reason:
        return reason
    answer = record.messages[-1]
    if answer["role"] != "assistant" or len(record.messages) == 1:
        return "it does not end with a question and its answer"
    empty = emptiness(record)
    if empty is not None:
        return EMPTY[empty]
    if test.score != "tool_call" and not answer["content"].strip():
        return "its answer is a thought alone"
    try:
        chat.prompt(record.messages[:-1], test.thinking, record.tools)
        if test.score == "label":
            chat.example(record)  # refuses a label that is none
        if test.score in SCORERS:
            check(test.score, record)
        else:
            right_of(answer, record, test)
        reason = read_back(chat, test, record)
    except ChatError as error:
        return str(error)
    except ValueError as error:
        return f"cannot be scored as {test.score}: {error}"
    return reason


def _without_loss(chat: Chat, record: Record) -> str:
    try:
        example = chat.example(record)
    except ChatError as error:
        return str(error)
    if not example.loss_tokens:
        return "it has no answer"
    empty = emptiness(record)
    return "" if empty is None else EMPTY[empty]
