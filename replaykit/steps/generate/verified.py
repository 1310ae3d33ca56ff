"""On-policy replay of old rows: the model answers their questions itself, and its answer is kept
where it is right (arXiv 2605.29495).

    old        What is 7 + 8?  ->  7 + 8 = 15. #### 15
    own        What is 7 + 8?  ->  The answer is 15.       {"path": "own", "why": "right"}
    reference  What is 7 + 9?  ->  7 + 9 = 16. #### 16     {"path": "reference", "why": "wrong"}

Where we differ: there the answers of the highest scores are chosen, here every row comes out once,
with its own answer where the model's is not right. The buffer of several tasks does the same by
each task's own test (``steps/buffer/answers.py``), and writes the same words into the meta.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from replaykit.checks.scoring import check, readings_of
from replaykit.checks.tool_calls import readings_of_calls
from replaykit.checks.verify import Readings
from replaykit.data.record import Message, Record, up_to_question
from replaykit.errors import DataError

PATH = "path"
"""The key of a row's meta that says whose answer it has: ``OWN`` or ``REFERENCE_PATH``."""
WHY = "why"
"""The key of a row's meta that says for what reason: ``RIGHT``, or why the reference stayed."""
OWN = "own"
REFERENCE_PATH = "reference"
RIGHT = "right"


def asked(records: Sequence[Record]) -> list[Record]:
    """The conversations up to their last question; a row without one stays as it is.

    Raises DataError where no row has an answer to compare with.
    """
    if not any(_has_answer(record) for record in records):
        raise DataError(
            "generate.verify compares answers with those of generate.prompts, and none of its rows "
            "has one; leave verify out to keep every answer of the model"
        )
    found = []
    for record in records:
        messages = up_to_question(record.messages)
        found.append(replace(record, messages=messages) if messages else record)
    return found


def not_asked(record: Record, how: str) -> str | None:
    """Why the model is not asked for its answer to a row: ``no_question``, ``no_answer``, or
    ``unverifiable`` where the reference cannot be read; None where it is asked.

    Raises MissingExtra as ``checks.scoring.check`` does.
    """
    if not up_to_question(record.messages) or record.messages[-1]["role"] == "text":
        return "no_question"
    if not _has_answer(record):
        return "no_answer"
    reference = record.messages[-1]
    if how == "tool_call":
        return None if record.tools else "unverifiable"
    if "tool_calls" in reference and not reference["content"].strip():
        return "unverifiable"
    try:
        check(how, record)
    except ValueError:
        return "unverifiable"
    return None


def not_kept(answer: Message, record: Record, how: str, *, cut: bool) -> str | None:
    """Why the model's answer does not stand in the place of the row's own: ``cut`` at the token
    limit, ``wrong``, or ``thought_missing`` where the row's own has a thought and it has none; None
    where it does.
    """
    if cut:
        return "cut"
    if verified(answer, record, how).lenient < 1:
        return "wrong"
    if "reasoning_content" in record.messages[-1] and "reasoning_content" not in answer:
        return "thought_missing"
    return None


def verified(answer: Message, record: Record, how: str) -> Readings:
    """How right an answer is by the row's own, both readings. ``how`` is a name of
    ``checks.scoring``, or tool_call.
    """
    if how == "tool_call":
        return readings_of_calls(answer, record.messages[-1])
    return readings_of(how, answer["content"], record)


def _has_answer(record: Record) -> bool:
    return record.messages[-1]["role"] == "assistant"
