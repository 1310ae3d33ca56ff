"""On-policy replay: the latest model answers the buffer's questions anew, and where it is right,
its own words replace the old ones (arXiv 2605.29495).

    old   Refer the patient to cardiology.            the reference, kept in the row's meta
    new   The answer is: cardiology.                  right by the task's test, so it is replayed

Each question is asked as its own task's test asks it, with its thought and its max_tokens, and the
answer is compared with what the task's rows said first. A row's meta says whose answer it has and
why, under the keys that ``generate --verify`` writes. Where we differ: there the rows of the
highest scores are chosen, here a row whose new answer is not right keeps the one that it had.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import replace

from replaykit.data.jsonl import to_line
from replaykit.data.record import FINISH, Message, Record
from replaykit.model.calls import tool_call
from replaykit.model.chat import Chat
from replaykit.recipe import Recipe
from replaykit.recipe.evaluate import Test
from replaykit.runs import Watch
from replaykit.steps.buffer.result import Answered
from replaykit.steps.evaluate.scorable import unscorable
from replaykit.steps.evaluate.skills import Item, measure
from replaykit.steps.generate.verified import OWN, PATH, REFERENCE_PATH, RIGHT, WHY
from replaykit.steps.step import engine_and_chat

REFERENCE = "reference"
"""The key of a row's meta that holds its first answer, where another stands in its place."""


def answered_anew(
    recipe: Recipe, records: Sequence[Record], watch: Watch
) -> tuple[list[Record], Answered]:
    """The rows with the answers of the recipe's model where these are right, in their order.

    Raises ChatError where the model cannot be asked in the way that a task's test wants it.
    """
    tests = {task.name: task.eval for task in recipe.tasks}
    with engine_and_chat(recipe, str(recipe.model), options=recipe.engine.here) as (engine, chat):
        asked = _askable(chat, tests, records)
        rows = {
            task: (tests[task], [_as_first(records[place]) for place in places])
            for task, places in asked.items()
        }
        items = list(measure(engine, chat, rows, what="answer anew", watch=watch))
    answers = {asked[item.skill][item.row]: item for item in items}
    found = list(records)
    kept: Counter[str] = Counter()
    same = 0
    for place, record in enumerate(records):
        reason: str | None = "unverifiable"
        if place in answers:
            reason = _refused(answers[place], record.messages[-1])
        if reason is not None:
            kept[reason] += 1
            found[place] = _noted(record, reason)
            continue
        answer = _message(answers[place])
        same += answer == record.messages[-1]
        found[place] = _noted(_with_answer(record, answer), RIGHT)
    return found, Answered(
        asked=len(records),
        replaced=len(records) - kept.total(),
        same=same,
        kept=dict(kept.most_common()),
    )


def line_bytes(record: Record) -> int:
    """The bytes of a row's line in rows.jsonl."""
    return len(to_line(record.to_json()).encode("utf-8", "surrogatepass")) + 1


def _askable(chat: Chat, tests: dict[str, Test], records: Sequence[Record]) -> dict[str, list[int]]:
    """By task, the places of the rows that its test can score."""
    found: dict[str, list[int]] = {}
    for place, record in enumerate(records):
        task = record.meta["task"]
        if not unscorable(chat, tests[task], _as_first(record)):
            found.setdefault(task, []).append(place)
    return found


def _as_first(record: Record) -> Record:
    """The row with the answer that it came with."""
    first = record.meta.get(REFERENCE, record.messages[-1])
    return replace(record, messages=(*record.messages[:-1], first))


def _refused(item: Item, old: Message) -> str | None:
    """Why the answer does not replace the old one; None where it does."""
    if item.score is None:
        return item.reason or "too_long"
    if item.finish == "length":
        return "cut"
    if not item.score:
        return "wrong"
    if "reasoning_content" in old and item.reasoning is None:
        return "thought_missing"
    return None


def _message(item: Item) -> Message:
    """The answer as a turn."""
    message: Message = {"role": "assistant", "content": item.answer or ""}
    if item.reasoning:
        message["reasoning_content"] = item.reasoning
    if item.calls:
        message["tool_calls"] = [tool_call(call["name"], call["arguments"]) for call in item.calls]
    return message


def _noted(record: Record, why: str) -> Record:
    """The row with whose answer it has in its meta, and why: the model's own, of this stage or of
    an earlier one, or the task's.
    """
    own = why == RIGHT or record.meta.get(PATH) == OWN
    path = OWN if own else REFERENCE_PATH
    return replace(record, meta={**record.meta, PATH: path, WHY: why})


def _with_answer(record: Record, answer: Message) -> Record:
    """The row with this answer, and the first one in its meta; the row itself where it says the
    same.
    """
    old = record.messages[-1]
    if answer == old:
        return record
    meta = {REFERENCE: dict(old), **record.meta}
    meta.pop(FINISH, None)  # this one was not cut
    return replace(record, messages=(*record.messages[:-1], answer), meta=meta)
