"""What a controller decides from the scores of old skills, test by test: pure arithmetic, without a
model.

    decider = Decider(settings, {"capital": [1, 1, 0, ...]}, ratio=0.05)
    decider.decide(500, {"capital": [1, 0, 0, ...]}, target_loss=1.32)
    # Event(step=500, ratio_before=0.05, ratio=0.06, reason="capital fell by 20 % ...", ...)

A drop is (base - now) / base of a skill's mean score on the same items. What acts is not the drop
but its lower bound, so that noise does not: of 200 items at 80 %, a drop of 5 % comes about by
chance in one test of ten. The bounds are one-sided (``statistics.relative_drop``) and hold for all
skills together (Bonferroni: of m skills each has its own at 1 - 0.05 / m), so in one test about 5 %
of trainings act at most where every skill has lost just what is allowed, and where none has lost
anything, fewer than one in a thousand. Holm's procedure begins with the same step, and no more of
it is needed: one skill beyond the limit is enough to act.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean
from typing import Any

from replaykit import training_settings
from replaykit.errors import EngineError
from replaykit.evaluate.statistics import Interval, relative_drop

ALPHA = 0.05  # of the lower bounds of all skills together
AHEAD = 2  # steps until a decision holds, see ``Decider.at``


@dataclass(frozen=True)
class Event:
    """One test and what was decided. ``step`` is how many optimiser steps were done; ``reason`` is
    for people.

    ``worst`` is the skill whose drop has the highest lower bound. ``remedy`` is None where none is
    controlled, ``weights`` (of skills, their sum 1) where by_skill is off.
    """

    step: int
    scores: Mapping[str, float]
    drops: Mapping[str, Interval]
    worst: str | None
    max_drop: float
    target_loss: float | None  # nats a token
    ratio_before: float
    ratio: float
    remedy_before: bool | None
    remedy: bool | None
    weights: Mapping[str, float] | None
    stop: bool
    reason: str

    @property
    def changes(self) -> bool:
        """Whether something is other than before it, the weights of skills aside."""
        return self.stop or self.ratio != self.ratio_before or self.remedy != self.remedy_before

    def to_json(self) -> dict[str, Any]:
        return {
            **self.__dict__,
            "scores": {skill: round(score, 6) for skill, score in self.scores.items()},
            "drops": {skill: drop.to_json() for skill, drop in self.drops.items()},
            "weights": dict(self.weights) if self.weights is not None else None,
        }

    @classmethod
    def from_json(cls, value: Mapping[str, Any]) -> Event:
        return cls(
            **{
                **value,
                "drops": {skill: Interval(**drop) for skill, drop in value["drops"].items()},
            }
        )


class Decider:
    """The decisions of one training so far. The same scores at the same steps give the same
    decisions.

    ``base`` are the items' scores under the untrained model, by skill; ``ratio`` is the share of
    replay to begin with, and the least; ``base_loss`` the untrained model's loss on the target's
    held-out rows, in nats a token.
    """

    def __init__(
        self,
        settings: training_settings.Controller,
        base: Mapping[str, Sequence[float]],
        *,
        ratio: float,
        base_loss: float | None = None,
    ):
        self.settings = settings
        self.start = ratio
        self.base = {skill: list(scores) for skill, scores in base.items()}
        self.events: list[Event] = []
        self.best_loss = base_loss
        self.calm = 0  # tests in a row in which every drop was small
        self.waited = 0  # tests in a row without a new lowest loss

    @property
    def ratio(self) -> float:
        """The newest decision's share of replay."""
        return self.events[-1].ratio if self.events else self.start

    @property
    def remedy(self) -> bool | None:
        """Whether the controlled remedy is on, by the newest decision; None where none is
        controlled.
        """
        if self.settings.remedy is None:
            return None
        return bool(self.events[-1].remedy) if self.events else False

    @property
    def stopped(self) -> bool:
        return bool(self.events) and self.events[-1].stop

    def at(self, step: int) -> Event | None:
        """The decision that rules the rows of a step, None before the first.

        A decision after step k (k steps are done) rules from step k + 2 on, since the data loader
        reads a micro-batch ahead: the rows of step k + 1 are chosen by then. That is so for steps
        counted from 1; where they are counted from 0, it is one step more than needed and as good.
        """
        return next((event for event in reversed(self.events) if event.step + AHEAD <= step), None)

    def ratio_at(self, step: int) -> float:
        """The share of replay in a step."""
        event = self.at(step)
        return event.ratio if event else self.start

    def weights_at(self, step: int) -> dict[str, float] | None:
        """Each skill's part of the replay in a step, the same for all before the first test; None
        without by_skill.
        """
        if not self.settings.by_skill:
            return None
        event = self.at(step)
        return (
            dict(event.weights)
            if event and event.weights
            else dict.fromkeys(self.base, 1 / len(self.base))
        )

    def decide(
        self, step: int, scores: Mapping[str, Sequence[float]], target_loss: float | None = None
    ) -> Event:
        """The decision after a test. ``scores`` are the same items of the same skills as the
        base's.

        Raises EngineError for a score or loss that is not a number.
        """
        self._are_numbers(step, scores, target_loss)
        alpha = ALPHA / max(1, len(self.base))
        found = {
            skill: relative_drop(base, scores[skill], alpha=alpha)
            for skill, base in self.base.items()
        }
        drops = {skill: drop for skill, drop in found.items() if drop is not None}
        worst = max(drops, key=lambda skill: drops[skill].low, default=None)
        ratio, why_ratio = self._new_ratio(drops, worst)
        remedy, why_remedy = self._new_remedy(drops, worst)
        stop, why_stop = self._out_of_patience(target_loss)
        reasons = [*why_ratio, *why_remedy, *why_stop] or [
            f"nothing changes{_worst_said(drops, worst, ': ')}"
        ]
        event = Event(
            step=step,
            scores={skill: fmean(scores[skill]) for skill in self.base},
            drops=drops,
            worst=worst,
            max_drop=self.settings.max_drop,
            target_loss=target_loss,
            ratio_before=self.ratio,
            ratio=ratio,
            remedy_before=self.remedy,
            remedy=remedy,
            weights=self._weights(drops),
            stop=stop,
            reason="; ".join(reasons),
        )
        self.events.append(event)
        return event

    def _new_ratio(
        self, drops: Mapping[str, Interval], worst: str | None
    ) -> tuple[float, list[str]]:
        """The ratio rises at once, and falls after ``relax_after`` calm tests; every change makes
        the count begin anew.
        """
        chosen = self.settings
        ratio = self.ratio
        self.calm = (
            self.calm + 1
            if drops and max(drop.mean for drop in drops.values()) < chosen.relax_drop
            else 0
        )
        if worst is not None and drops[worst].low > chosen.max_drop:
            self.calm = 0
            raised = min(ratio * chosen.factor, max(chosen.max_ratio, self.start))
            said = (
                f"ratio {ratio:.3g} -> {raised:.3g}"
                if raised > ratio
                else f"the ratio stays at its most, {ratio:.3g}"
            )
            if ratio == 0:
                said = "the ratio is 0 and cannot be raised by a factor"
            return raised, [f"{_worst_said(drops, worst)}: {said}"]
        if self.calm >= chosen.relax_after:
            tests = self.calm
            self.calm = 0
            if ratio > self.start:
                lowered = max(ratio / chosen.factor, self.start)
                said = f"all drops below {100 * chosen.relax_drop:.3g} % in {tests} tests in a row"
                return lowered, [f"{said}: ratio {ratio:.3g} -> {lowered:.3g}"]
        return ratio, []

    def _new_remedy(
        self, drops: Mapping[str, Interval], worst: str | None
    ) -> tuple[bool | None, list[str]]:
        chosen = self.settings
        on = self.remedy
        if on is False and worst is not None and drops[worst].low > chosen.remedy_drop:
            return True, [f"{_worst_said(drops, worst)}: {chosen.remedy} on"]
        if on and all(drop.mean < chosen.remedy_off for drop in drops.values()):
            return False, [f"all drops below {100 * chosen.remedy_off:.3g} %: {chosen.remedy} off"]
        return on, []

    def _out_of_patience(self, loss: float | None) -> tuple[bool, list[str]]:
        if loss is None:
            return False, []
        better = self.best_loss is None or loss < self.best_loss
        self.best_loss, self.waited = (loss, 0) if better else (self.best_loss, self.waited + 1)
        if self.settings.patience is None or self.waited < self.settings.patience:
            return False, []
        return True, [
            f"no new lowest loss on the target's held-out rows in {self.waited} tests: training "
            f"ends"
        ]

    def _weights(self, drops: Mapping[str, Interval]) -> dict[str, float] | None:
        """Each skill's part of the replay: max(drop, 0) + max_drop, divided by the sum of these
        over skills.

        So a skill that has lost just what is allowed gets twice as much as one that has lost
        nothing, none gets nothing, and noise of a few per cent moves little.
        """
        if not self.settings.by_skill:
            return None
        lost = {
            skill: max(drops[skill].mean, 0.0) if skill in drops else 0.0 for skill in self.base
        }
        parts = {skill: drop + self.settings.max_drop for skill, drop in lost.items()}
        return {skill: part / sum(parts.values()) for skill, part in parts.items()}

    def _are_numbers(
        self, step: int, scores: Mapping[str, Sequence[float]], loss: float | None
    ) -> None:
        wrong = [
            f"the score of {skill}"
            for skill in self.base
            if not all(map(math.isfinite, scores[skill]))
        ]
        wrong += (
            ["the loss on the target's held-out rows"]
            if loss is not None and not math.isfinite(loss)
            else []
        )
        if wrong:
            raise EngineError(
                f"after step {step} {' and '.join(wrong)} is not a number: the training has "
                f"diverged. A lower "
                f"train.learning_rate or train.max_grad_norm usually mends it"
            )

    def state_dict(self) -> dict[str, Any]:
        """Everything a resumed training needs, as plain JSON."""
        return {
            "base": self.base,
            "start": self.start,
            "best_loss": self.best_loss,
            "calm": self.calm,
            "waited": self.waited,
            "events": [event.to_json() for event in self.events],
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Takes back what ``state_dict`` gave."""
        self.base = {skill: list(scores) for skill, scores in state["base"].items()}
        self.start = state["start"]
        self.best_loss = state["best_loss"]
        self.calm = state["calm"]
        self.waited = state["waited"]
        self.events = [Event.from_json(event) for event in state["events"]]


def _worst_said(drops: Mapping[str, Interval], worst: str | None, before: str = "") -> str:
    if worst is None:
        return ""
    drop = drops[worst]
    return f"{before}{worst} fell by {100 * drop.mean:.3g} %, by {100 * drop.low:.3g} % at least"
