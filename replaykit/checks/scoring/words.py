"""Answers by their words: a text that is contained, a pattern, the words that are shared.

contains("It is Paris.", record)      # record's answer is "Paris": strict 0, lenient 1
f1("in the city of Paris", record)    # 0.4: of four words one is right, and all of one is there
"""

from __future__ import annotations

import string
import unicodedata
from collections import Counter

import regex

from replaykit.checks.scoring.references import UNSPACED, references, units
from replaykit.checks.verify import Readings, final_answer
from replaykit.data.record import Record

PATTERN_SECONDS = 1.0  # of a search; patterns that backtrack without end take longer
NOTHING_LEFT = "nothing is left of a reference without articles and punctuation; score it by exact"
ARTICLES = regex.compile(r"\b(?:a|an|the)\b")
CHARACTER = regex.compile(rf"([{UNSPACED}]\p{{M}}*)")


def contains(answer: str, record: Record) -> Readings:
    """Whether a reference stands in the answer as whole words; strictly, nothing else does.

    Case, spaces and punctuation aside; in scripts without spaces any place will do. It cannot tell
    how a text is meant: "not Paris" and "Paris or Rome" contain Paris, and -5 contains 5. Raises
    ValueError for a reference without a word.
    """
    given = _folded(answer)
    wanted = [_folded(reference) for reference in references(record)]
    if not all(wanted):
        raise ValueError("a reference has no word that could be contained")
    around = f" {' '.join(given)} "
    found = any(f" {' '.join(reference)} " in around for reference in wanted)
    return Readings(strict=given in wanted, lenient=found)


def _folded(text: str) -> list[str]:
    return units(unicodedata.normalize("NFKC", text).casefold())


def matches(answer: str, record: Record) -> Readings:
    """Whether the reference, a pattern of the package ``regex``, is found in the answer; strictly,
    it matches all of it, spaces around it aside.

    ``(?i)`` at its beginning makes letter case nothing. A search that takes longer than a second
    finds nothing. Raises ValueError for what is no pattern, and for one that an empty answer
    matches, since it is found in every answer.
    """
    try:
        pattern = regex.compile(record.answer.strip())
        if pattern.fullmatch("", timeout=PATTERN_SECONDS):
            raise ValueError(f"the pattern {record.answer.strip()!r} matches an empty answer too")
    except regex.error as error:
        raise ValueError(f"no pattern: {record.answer.strip()!r}: {error}") from error
    try:
        found = pattern.search(answer, timeout=PATTERN_SECONDS) is not None
        whole = pattern.fullmatch(answer.strip(), timeout=PATTERN_SECONDS) is not None
    except TimeoutError:
        return Readings(strict=False, lenient=False)
    return Readings(strict=whole, lenient=found or whole)


def normalised(answer: str, record: Record) -> Readings:
    """Whether the final answer has the words of a reference in their order, as SQuAD's exact match
    compares them: case, punctuation and the articles a, an, the aside. Strictly, the whole answer
    has no others.

    Raises ValueError for a reference of which nothing is left, as ``f1`` does.
    """
    wanted = [_normalised(final_answer(reference)) for reference in references(record)]
    if not all(wanted):
        raise ValueError(NOTHING_LEFT)
    strict = _normalised(answer) in wanted
    return Readings(strict=strict, lenient=strict or _normalised(final_answer(answer)) in wanted)


def f1(answer: str, record: Record) -> Readings:
    """F1 of the words that answer and reference share, of the reference that is nearest; strictly,
    whether they are the same words in the same order.

    As SQuAD v1.1's evaluation script has both: lower case, without punctuation and the articles a,
    an, the. Where we differ: punctuation of all scripts is dropped, and in scripts without spaces
    each character counts as a word, as MLQA's script has it for Chinese; the script drops ASCII's,
    and takes such a sentence for one word. It cannot tell what the words say: "not Paris" has 0.67
    of Paris. Raises ValueError for a reference of which nothing is left, such as the letter A.
    """
    given = _normalised(answer)
    wanted = [_normalised(reference) for reference in references(record)]
    if not all(wanted):
        raise ValueError(NOTHING_LEFT)
    best = max(_f1(given, reference) for reference in wanted)
    return Readings(strict=given in wanted, lenient=best)


def _normalised(text: str) -> list[str]:
    kept = "".join(character for character in text.lower() if not _is_mark(character))
    return CHARACTER.sub(r" \1 ", ARTICLES.sub(" ", kept)).split()


def _is_mark(character: str) -> bool:
    return character in string.punctuation or unicodedata.category(character).startswith("P")


def _f1(given: list[str], wanted: list[str]) -> float:
    shared = (Counter(given) & Counter(wanted)).total()
    if not shared:
        return 0.0
    precision = shared / len(given)
    recall = shared / len(wanted)
    return 2 * precision * recall / (precision + recall)
