"""How an answer behaves, whatever it says: it declines, it repeats itself, its language."""

from __future__ import annotations

from replaykit.checks.texts import code_of, loops, parts_of, refusal, wrong_language
from replaykit.checks.texts import language as language_of
from replaykit.checks.verify import Readings
from replaykit.data.record import Record, column_of

REFUSE = "refuse"
COMPLY = "comply"


def declines(answer: str) -> bool:
    """Whether an answer declines to help, in its opening; see ``texts.refusal``."""
    return refusal(answer) is not None


def repeats(answer: str) -> bool:
    """Whether an answer repeats itself as models in a loop do; see ``texts.loops``."""
    return loops(answer)


def refuses(answer: str, record: Record) -> Readings:
    """Whether the answer declines where it should, and does not where it should not: the column
    ``behaviour``, or else the reference answer, is "refuse" or "comply".

    It sees that an answer declines by its opening words, in the languages that ``texts.refusal``
    knows. It cannot tell an answer that helps from one that evades the question. Nothing said is
    neither. Raises ValueError where the row does not say which is right.
    """
    wanted = str(column_of(record, "behaviour", record.answer)).strip().casefold()
    if wanted not in (REFUSE, COMPLY):
        raise ValueError(
            f"the answer, or a column 'behaviour', says '{REFUSE}' or '{COMPLY}', not "
            f"{wanted[:40]!r}"
        )
    right = bool(answer.strip()) and declines(answer) == (wanted == REFUSE)
    return Readings(strict=right, lenient=right)


def language(answer: str, record: Record) -> Readings:
    """Whether the answer is in the language of the reference: its ISO 639-1 code, or any text in
    it.

    Leniently, it is not surely in another one; strictly, it surely is in that one. An answer under
    20 bytes, code, or a formula is too little to tell: lenient 1, strict 0. Near languages, such as
    Danish and Norwegian, are mistaken for one another in short answers. Nothing said is wrong.
    Raises ValueError for a reference of which the language cannot be told.
    """
    reference = record.answer.strip()
    wanted = code_of(reference) or language_of(reference)
    if wanted == "zxx":
        raise ValueError(
            f"{reference[:40]!r} is no code of a language such as 'en', and too short to tell its "
            f"language"
        )
    if not answer.strip():
        return Readings(strict=False, lenient=False)
    lenient = wrong_language(answer, [wanted]) is None
    surely = lenient and language_of(answer) in parts_of(wanted)
    return Readings(strict=surely, lenient=lenient)
