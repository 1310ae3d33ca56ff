"""Which new answers are right by their references: many at a time, since a judge is a model.

right = scorer_of(Verify(name="numeric"))
right([("So it is 42.", record)])    ->  [True]     # the record's answer ends with 42
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

from replaykit.checks.scoring.judge import Answered, grades
from replaykit.checks.verifiers import verdict
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


def scorer_of(verify: Verify) -> Verifier:
    """The verifier that the recipe names, of those that need no model."""

    def right(pairs: Pairs) -> list[bool]:
        return [verdict(verify, answer, record) == "right" for answer, record in pairs]

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
