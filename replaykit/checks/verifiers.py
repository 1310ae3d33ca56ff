"""Whether a new answer to a row is right: by the scorers of an evaluation, chosen in the recipe.

    verdict(Verify(name="numeric"), "It is 42.", record)    # record's answer is "#### 42": "right"
    verdict(Verify(name="contains", column="must"), ...)    # the column has words: all are needed

A verifier is a name of ``Verifier`` in ``recipe/rewrite.py`` and a scorer of ``SCORERS``: to add
one is to add the name and a function from an answer and a row to two readings. An answer is right
where the lenient reading is 1, so what is rewritten and what is tested are read alike.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Literal

from replaykit.checks.scoring import readings_of
from replaykit.data.record import Message, Record, column_of
from replaykit.recipe.rewrite import Verify

Verdict = Literal["right", "wrong", "unreadable"]
"""unreadable: the row has nothing that an answer could be verified by in this way."""


def verdict(verify: Verify, answer: str, record: Record) -> Verdict:
    """What the verifier says of an answer in words. Raises MissingExtra for a package that is not
    installed.
    """
    try:
        rows = [record]
        if verify.text is not None:
            rows = [_with_answer(record, verify.text)]
        elif verify.column is not None:
            rows = [_with_answer(record, text) for text in _texts(verify, record)]
        right = all(readings_of(verify.name, answer, row).lenient == 1 for row in rows)
    except ValueError:
        return "unreadable"
    return "right" if right else "wrong"


def _texts(verify: Verify, record: Record) -> Sequence[str]:
    """What the row's column has, each of which the answer must agree with. Raises ValueError where
    there is no such column, or where it has neither a text nor what the verifier can take.
    """
    assert verify.column is not None
    found = column_of(record, verify.column)
    if isinstance(found, str):
        return [found]
    if verify.name == "json_schema" and isinstance(found, Mapping):
        return [json.dumps(found)]
    texts = verify.name == "contains" and isinstance(found, list | tuple)
    if texts and found and all(isinstance(text, str) for text in found):
        return list(found)
    raise ValueError(f"the row has no column '{verify.column}' that {verify.name} can read")


def _with_answer(record: Record, text: str) -> Record:
    """The row with this text as its last answer, which scorers take for the reference."""
    answer: Message = {"role": "assistant", "content": text}
    return replace(record, messages=(*record.messages, answer))
