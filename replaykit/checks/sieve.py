"""Which questions are worth an answer, and which answers are kept: all checks of a generation, each
with the reason that it gives.

>>> sieve.question(7, "Name the capital of Poland.")          # None: it stays, and is remembered
>>> sieve.question(9, "name the capital of poland")
Verdict(reason='duplicate', evidence={'twin': 7})

A question that repeats an earlier one is not answered again: it is known before its answer is. (Of
rows that have answers, both must be alike: ``checks.duplicates``.)

Nothing is chosen for its length or its quality. So what these checks leave is still a sample of the
model, and the report shows how far they bent it.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from replaykit.checks import texts
from replaykit.checks.duplicates import QUESTIONS, Twins
from replaykit.checks.overlap import Overlap
from replaykit.data.record import Message
from replaykit.recipe.generate import Checks


@dataclass(frozen=True)
class Verdict:
    """Why a row is dropped, and the evidence, such as the earlier row that it repeats or the text
    that it shares with a test.
    """

    reason: str
    evidence: Mapping[str, Any] = field(default_factory=dict)


class Sieve:
    """The checks of a recipe.

    ``special`` matches the tokenizer's special tokens, ``held_out`` are test prompts, and ``read``
    gives the question of an earlier row. Whether a question is new depends on the questions before
    it, so first questions must come in the order of their rows.
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
        # There is no answer yet, so the question alone decides, whatever its case and spacing.
        self._twins = Twins(checks.near_duplicate, read, likeness=QUESTIONS)
        self._overlap: Overlap | None = None
        if checks.overlap:
            self._overlap = Overlap(held_out)

    def question(self, row: int, text: str) -> Verdict | None:
        """Why the first question of a row is not worth an answer; None if it is, and then it is
        remembered.
        """
        if len(text) < self.checks.min_chars:
            return Verdict("question_too_short")
        verdict = self.follow_up(text)
        if verdict is not None:
            return verdict
        if self._overlap is not None:
            match = self._overlap.find(text)
            if match:
                return Verdict(match[0], {"match": match[1]})
        twin = self._twins.find(row, text)
        if twin:
            return Verdict(twin[0], {"twin": twin[1]})
        return None

    def follow_up(self, text: str) -> Verdict | None:
        """Why a later question of a conversation is not worth an answer, or None."""
        reason = self._fault(text)
        if reason is not None:
            return Verdict(f"question_{reason}")
        languages = self.checks.languages
        if languages and texts.wrong_language(text, languages):
            return Verdict("wrong_language")
        return None

    def answer(self, message: Message) -> Verdict | None:
        """Why an answer cannot be kept, or None. Whether it is a refusal its content says alone."""
        content = message["content"]
        calls = message.get("tool_calls", ())
        reason = None
        if content or not calls:
            reason = self._fault(content)
        if reason is not None:
            return Verdict(f"answer_{reason}")
        if self.checks.refusals and texts.refusal(content):
            return Verdict("refusal")
        beside = {"thought": message.get("reasoning_content", "")}
        if calls:
            arguments = [call["function"]["arguments"] for call in calls]
            beside["call"] = json.dumps(arguments, ensure_ascii=False)
        for part, text in beside.items():
            reason = self._fault(text) if text else None
            if reason is not None:
                return Verdict(f"{part}_{reason}")
        return None

    def _fault(self, text: str) -> str | None:
        """What is wrong with a text, by the cheap checks first."""
        checks = self.checks
        if not text:
            return "empty"
        reason = None
        if checks.leaks:
            reason = texts.leaked(text, self._special)
        if reason is None and checks.max_repeat is not None:
            reason = texts.repetitive(text, max_share=checks.max_repeat)
        if reason is None and checks.secrets:
            reason = texts.secret(text)
        if reason is None and checks.personal:
            reason = texts.personal(text)
        return reason
