"""What both ways of making rows share: which rows can be taken, and how a new row is made.

made(parent, messages, "counterfactual", edit=0.1).meta
->  {"line": 3, "parent": "3f0c…", "path": "counterfactual", "edit": 0.1}
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from dataclasses import replace
from typing import Any, NamedTuple

from rapidfuzz.distance import Levenshtein

from replaykit.checks.verify import How, final_answer, is_right
from replaykit.data.record import Message, Record, apart, message_of
from replaykit.engines import Engine
from replaykit.model.chat import Chat
from replaykit.steps.rewrite.deciding import OWN_META as OF_REWRITE

# What the meta of a new row says under names of the step's own. ``fact`` is what was changed,
# before and now; ``similarity`` is the cosine of both questions.
OWN_META = frozenset({"parent", "path", "edit", "fact", "similarity"})

Open = Callable[[str | None], AbstractContextManager[tuple[Engine, Chat]]]
"""Opens the model of this name, or the recipe's for None."""


class Attempt(NamedTuple):
    """What came of a target row."""

    parent: Record
    path: str
    made: Record | None
    why: str
    """Why no row was made; "" where one was."""


def answer_place(record: Record) -> int | None:
    """The place of the last answer among the messages, where a user's question stands before it;
    None where there is no such pair.
    """
    places = [k for k, message in enumerate(record.messages) if message["role"] == "assistant"]
    if not places or places[-1] == 0:
        return None
    if record.messages[places[-1] - 1]["role"] != "user":
        return None
    return places[-1]


def unreadable(answer: str, how: How) -> bool:
    """Whether the verifier cannot read an answer, as a reference."""
    if final_answer(answer) == "":
        return True
    try:
        return not is_right(answer, answer, how=how)
    except ValueError:
        return True


def with_turns(record: Record, question: str, answer: str | None = None) -> tuple[Message, ...]:
    """The messages with another last question, and another answer to it where one is given."""
    place = answer_place(record)
    assert place is not None, "a row without a question is not augmented"
    messages = list(record.messages)
    messages[place - 1] = {**messages[place - 1], "content": question}
    if answer is not None:
        messages[place] = message_of("assistant", answer)
    return tuple(messages)


def made(parent: Record, messages: Sequence[Message], path: str, **facts: Any) -> Record:
    """The next record, linked to its parent, with all columns of the user's."""
    if parent.source == "rewrite":
        # What rewrite found out is of the parent, which stays and has it.
        meta = {key: value for key, value in parent.meta.items() if key not in OF_REWRITE}
    else:
        meta = apart(parent.meta, OWN_META)
    own = {"parent": parent.id, "path": path, **facts}
    return replace(parent, messages=tuple(messages), source="augment", meta={**meta, **own})


def distance(parent: str, question: str) -> float:
    """The normalised edit distance of two questions in characters, 0 to 1."""
    return Levenshtein.normalized_distance(parent, question)
