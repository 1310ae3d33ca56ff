"""Which questions are worth an answer, and which answers are kept: all checks of a generation, each
with its reason.

>>> sieve.question(7, "Name the capital of Poland.")          # stays, and is remembered
>>> sieve.question(9, "name the capital of poland")
Verdict(reason='duplicate', evidence={'twin': 7})

Nothing is chosen for its length or its quality: what these checks leave is still the model's own
sample, and the report shows how far they bent it.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from replaykit.checks import texts
from replaykit.checks.duplicates import Twins
from replaykit.checks.overlap import Overlap
from replaykit.settings import Checks


@dataclass(frozen=True)
class Verdict:
    """Why a row is dropped, and what shows it: the earlier row it repeats, the text it shares with
    a test.
    """

    reason: str
    evidence: Mapping[str, Any] = field(default_factory=dict)


class Sieve:
    """The checks that the settings ask for. ``read`` gives the question of an earlier row;
    ``held_out`` are test prompts.

    Whether a question is new depends on the questions before it, so first questions come in the
    order of their rows.
    """

    def __init__(
        self,
        checks: Checks,
        *,
        special: re.Pattern[str],
        held_out: Iterable[str],
        read: Callable[[int], str],
    ) -> None:
        self.checks = checks
        self._special = special
        self._twins = Twins(checks.near_duplicate, read)
        self._overlap = Overlap(held_out) if checks.overlap else None

    def question(self, row: int, text: str) -> Verdict | None:
        """Why the first question of a row is not worth an answer, or None; it is remembered
        then.
        """
        if len(text) < self.checks.min_chars:
            return Verdict("question_too_short")
        if (verdict := self.follow_up(text)) is not None:
            return verdict
        if found := self._overlap and self._overlap.find(text):
            return Verdict(found[0], {"match": found[1]})
        if twin := self._twins.find(row, text):
            return Verdict(twin[0], {"twin": twin[1]})
        return None

    def follow_up(self, text: str) -> Verdict | None:
        """Why a later question of a conversation is not worth an answer, or None."""
        return self._text("question", text) or _verdict(
            self.checks.languages and texts.wrong_language(text, self.checks.languages)
        )

    def answer(self, text: str) -> Verdict | None:
        """Why an answer cannot be kept, or None."""
        return self._text("answer", text) or _verdict(self.checks.refusals and texts.refusal(text))

    def _text(self, what: str, text: str) -> Verdict | None:
        checks = self.checks
        if not text:
            return Verdict(f"{what}_empty")
        return _verdict(
            (checks.leaks and texts.leaked(text, self._special))
            or (
                checks.max_repeat is not None
                and texts.repetitive(text, max_share=checks.max_repeat)
            )
            or (checks.secrets and texts.secret(text))
            or (checks.personal and texts.personal(text)),
            what,
        )


def _verdict(reason: str | bool | list[str] | None, what: str = "") -> Verdict | None:
    if not reason:
        return None
    assert isinstance(reason, str)
    return Verdict(f"{what}_{reason}" if what else reason)
