"""Whether a new answer is right by the reference: the scorers of eval, or a judge.

    verifier = scorer_of(Verify(name="numeric"))
    verifier([("So it is 42.", record)])    ->  [True]     # the record's answer ends with 42

To add a verifier is to add a scorer: a line in ``checks.scoring.SCORERS``, and its name in
``recipe.rewrite.Verifier``.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace

from replaykit.checks.scoring import check, readings_of
from replaykit.checks.scoring.judge import Answered, grades
from replaykit.data.record import Record
from replaykit.engines import Engine
from replaykit.model.chat import Chat
from replaykit.recipe.rewrite import Verify
from replaykit.runs import Watch

Pairs = Sequence[tuple[str, Record]]
"""New answers, each with the row that it is for."""
Verifier = Callable[[Pairs], list[bool]]
"""Which of the answers are right."""
LEAST_GRADE = 0.75  # of a judge: 4 of 5 on the average


def referred(verify: Verify, record: Record) -> Record:
    """The row with what its new answer is verified by in the place of its answer.

    Raises ValueError for a row that lacks the column.
    """
    text = verify.text
    if verify.column is not None:
        found = record.meta.get(verify.column)
        if found is None:
            raise ValueError(f"it has no column '{verify.column}'")
        text = str(found)
    if text is None:
        return record
    place = answer_place(record)
    messages = list(record.messages[: place + 1])
    messages[place] = {"role": "assistant", "content": text}
    return replace(record, messages=tuple(messages))


def answer_place(record: Record) -> int:
    """The place of the last answer among the messages, 0 if there is none."""
    places = [k for k, message in enumerate(record.messages) if message["role"] == "assistant"]
    return max(places, default=0)


def unreadable(verify: Verify, record: Record) -> bool:
    """Whether nothing can be verified by the row. Raises MissingExtra for a package that is not
    installed.
    """
    if verify.name == "judge":
        return not record.answer.strip()
    try:
        check(verify.name, referred(verify, record))
    except ValueError:
        return True
    return False


def scorer_of(verify: Verify) -> Verifier:
    """The verifier of this name: an answer is right where the scorer gives it all in the lenient
    reading.
    """

    def right(pairs: Pairs) -> list[bool]:
        return [
            readings_of(verify.name, answer, referred(verify, record)).lenient >= 1
            for answer, record in pairs
        ]

    return right


def judged_by(engine: Engine, chat: Chat, watch: Watch) -> Verifier:
    """A judge as verifier: right is what it grades ``LEAST_GRADE`` or better."""

    def right(pairs: Pairs) -> list[bool]:
        answers = [Answered(record, answer) for answer, record in pairs]
        found = [False] * len(pairs)
        for place, grade in grades(engine, chat, answers, what="verify", watch=watch):
            found[place] = isinstance(grade, float) and grade >= LEAST_GRADE
        return found

    return right
