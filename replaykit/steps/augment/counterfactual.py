"""Pairs that differ in one fact of the question, and so in the answer.

    parent          What is 27 + 15?   42
    counterfactual  What is 81 + 15?   96

Pairs as in Kaushik, Hovy and Lipton (arXiv 1909.12434), where people write them. Here a number is
changed and the calculation done anew (``arithmetic``), or a model edits. Either way the verifier
has to read the new answer, and it may not be right for the parent: the label has flipped. Of what
a model writes, one fact alone may have changed, and its second answer has to agree with its first.
The prompt is ours.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from random import Random
from typing import NamedTuple

from replaykit.changes import changes
from replaykit.checks.verify import How, is_right
from replaykit.data.record import Message, Record, dialogue
from replaykit.hashing import derive_seed
from replaykit.recipe.augment import COUNTERFACTUAL, Augment, Counterfactual
from replaykit.steps.asking import Asking, Reply
from replaykit.steps.augment import arithmetic
from replaykit.steps.augment.rows import (
    Attempt,
    Open,
    answer_place,
    distance,
    made,
    unreadable,
    with_turns,
)
from replaykit.text import normalise

EDIT = """\
Below are a question and its answer. Write the question once more with exactly one fact changed: a \
number, a name or a choice. Change it so that another answer becomes the right one.

- Copy all other words of the question.
- Write the new answer in the form of the given one.
- Write two parts and nothing else. The first begins with "Question:", the second with "Answer:".

Question: {question}
Answer: {answer}"""
WRITTEN = re.compile(
    r"\s*Question:\s*(?P<question>.+?)\s*^\s*Answer:\s*(?P<answer>.+?)\s*\Z",
    re.DOTALL | re.MULTILINE,
)


class _Pair(NamedTuple):
    """A new question, its answer, and the fact before and now."""

    question: str
    answer: str
    fact: tuple[str, str]


def counterfactuals(
    rows: Mapping[int, Record], settings: Augment, asking: Asking, open_model: Open
) -> dict[int, Attempt]:
    """What came of each row. Reasons beside those of ``Reply`` and ``arithmetic.changed``:

    no_question           there is no user's message before the last answer, or no answer
    tools, thought, no_loss
                          the row has tools, or its last answer a thought or the weight 0, which a
                          new answer in words alone would not have
    unreadable_reference  the verifier cannot read the parent's answer
    unparsed              the editor's reply has no question and answer
    unchanged             its question is the parent's
    not_one_fact          more than one fact was changed, or one of more than max_words words, or
                          words were only added or removed
    unreadable_answer     the verifier cannot read the new answer
    same_answer           the new answer is right for the parent too: the label has not flipped
    unconfirmed           the editor's second answer is not its first
    """
    own = settings.counterfactual
    assert own is not None
    why = {row: _unusable(record, settings.verify) for row, record in rows.items()}
    usable = {row: record for row, record in rows.items() if not why[row]}
    found: dict[int, _Pair | str] = {}
    if own.by == "arithmetic":
        found |= {row: _computed(record, row, asking.seed) for row, record in usable.items()}
    elif usable:
        found |= _edited(usable, own, settings.verify, asking, open_model)
    attempts = {}
    for row, record in rows.items():
        pair = found.get(row, why[row])
        if not isinstance(pair, str):
            pair = _flipped(record, pair, settings.verify)
        attempts[row] = _attempt(record, pair)
    return attempts


def _attempt(record: Record, pair: _Pair | str) -> Attempt:
    """The new row, or the reason why there is none."""
    if isinstance(pair, str):
        return Attempt(record, COUNTERFACTUAL, None, pair)
    new = made(
        record,
        with_turns(record, pair.question, pair.answer),
        COUNTERFACTUAL,
        edit=distance(_question(record), pair.question),
        fact=list(pair.fact),
    )
    return Attempt(record, COUNTERFACTUAL, new, "")


def _question(record: Record) -> str:
    place = answer_place(record)
    assert place is not None
    return record.messages[place - 1]["content"]


def _unusable(record: Record, verify: How) -> str:
    """Why the row cannot be taken; "" where it can."""
    place = answer_place(record)
    if place is None or not record.messages[place - 1]["content"].strip():
        return "no_question"
    answer = record.messages[place]
    if record.tools or "tool_calls" in answer:
        return "tools"
    if "reasoning_content" in answer:
        return "thought"
    if "weight" in answer:
        return "no_loss"
    return "unreadable_reference" if unreadable(record.answer, verify) else ""


def _flipped(record: Record, pair: _Pair, verify: How) -> _Pair | str:
    """The pair, where the verifier reads its answer and that is wrong for the parent."""
    if unreadable(pair.answer, verify):
        return "unreadable_answer"
    # In both directions: a verifier may find a part of an answer, or an option's letter, enough.
    same = is_right(pair.answer, record.answer, how=verify)
    same = same or is_right(record.answer, pair.answer, how=verify)
    return "same_answer" if same else pair


def _computed(record: Record, row: int, seed: int) -> _Pair | str:
    rng = Random(derive_seed(seed, "augment", COUNTERFACTUAL, row))
    found = arithmetic.changed(_question(record), record.answer, rng)
    if isinstance(found, str):
        return found
    return _Pair(found.question, found.answer, found.fact)


# --- an editor ------------------------------------------------------------------------------------


def _edited(
    rows: Mapping[int, Record], own: Counterfactual, verify: How, asking: Asking, open_model: Open
) -> dict[int, _Pair | str]:
    """What the editor wrote for each row, or why it is not taken."""
    found: dict[int, _Pair | str] = {}
    with open_model(own.editor) as (engine, chat):
        prompts = {row: _edit_prompt(record) for row, record in rows.items()}
        for row, reply in asking.replies("edit", prompts, engine, chat).items():
            pair = _read(reply, rows[row], own.max_words)
            if not isinstance(pair, str):
                pair = _flipped(rows[row], pair, verify)
            found[row] = pair
        if not own.confirm:
            return found
        again = {
            row: with_turns(rows[row], pair.question)[: answer_place(rows[row])]
            for row, pair in found.items()
            if not isinstance(pair, str)
        }
        for row, reply in asking.replies("confirm", again, engine, chat).items():
            pair = found[row]
            if reply.fault is not None:
                found[row] = reply.fault
            elif not isinstance(pair, str) and not is_right(reply.text, pair.answer, how=verify):
                found[row] = "unconfirmed"
    return found


def _edit_prompt(record: Record) -> tuple[Message, ...]:
    return dialogue(EDIT.format(question=_question(record), answer=record.answer))


def _read(reply: Reply, record: Record, max_words: int) -> _Pair | str:
    """The pair that the editor wrote, or why it is none."""
    if reply.fault is not None:
        return reply.fault
    written = WRITTEN.match(reply.text)
    if written is None:
        return "unparsed"
    before = _question(record)
    question = written["question"]
    if normalise(question) == normalise(before):
        return "unchanged"
    fact = one_fact(before, question, max_words)
    if fact is None:
        return "not_one_fact"
    return _Pair(question, written["answer"], fact)


def one_fact(before: str, now: str, max_words: int) -> tuple[str, str] | None:
    """What stands in the place of what, where two questions differ in that alone; it may stand
    there several times. None where they differ in more, or in more than ``max_words`` words.

    >>> one_fact("Is Lima in Peru?", "Is Oslo in Peru?", 4)
    ('Lima', 'Oslo')
    """
    found: set[tuple[str, str]] = set()
    removed = ""
    added = ""
    # The empty piece at the end closes the last difference.
    for kind, text in [*changes(before.strip(), now.strip()), ("end", "")]:
        # A space between two changed words is a part of what was changed.
        if kind == "end" or (kind == "same" and text.strip()):
            if removed.strip() != added.strip():
                found.add((removed.strip(), added.strip()))
            removed = ""
            added = ""
            continue
        if kind != "added":
            removed += text
        if kind != "removed":
            added += text
    if len(found) != 1:
        return None
    ((old, new),) = found
    short = max(len(old.split()), len(new.split())) <= max_words
    return (old, new) if old and new and short else None
