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
from statistics import fmean

from replaykit.errors import EngineError
from replaykit.recipe.controller import ControllerSettings
from replaykit.steps.evaluate.interval import Interval
from replaykit.steps.evaluate.statistics import relative_drop
from replaykit.steps.train.events import DeciderState, Event

# Of the lower bounds of all skills together.
ALPHA = 0.05
# Steps until a decision holds, see ``Decider.at``.
AHEAD = 2


class Decider:
    """The decisions of one training so far. The same scores at the same steps give the same
    decisions.

    ``base`` are the items' scores under the untrained model, by skill; ``ratio`` is the share of
    replay to begin with, and the least; ``base_loss`` the untrained model's loss on the target's
    held-out rows, in nats a token.
    """

    def __init__(
        self,
        settings: ControllerSettings,
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
        # Tests in a row in which every drop was small, and without a new lowest loss.
        self.calm = 0
        self.waited = 0

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
        return bool(self.events and self.events[-1].remedy)

    @property
    def stopped(self) -> bool:
        """Whether the newest decision ends the training."""
        return bool(self.events) and self.events[-1].stop

    def at(self, step: int) -> Event | None:
        """The decision that rules the rows of a step, None before the first.

        A decision after step k (k steps are done) rules from step k + 2 on, since the data loader
        reads a micro-batch ahead: the rows of step k + 1 are chosen by then. That is so for steps
        counted from 1; where they are counted from 0, it is one step more than needed and as good.
        """
        ruling = [event for event in self.events if event.step + AHEAD <= step]
        return ruling[-1] if ruling else None

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
        if event is None or not event.weights:
            return dict.fromkeys(self.base, 1 / len(self.base))
        return dict(event.weights)

    def decide(
        self, step: int, scores: Mapping[str, Sequence[float]], target_loss: float | None = None
    ) -> Event:
        """The decision after a test. ``scores`` are the same items of the same skills as the
        base's.

        Raises EngineError for a score or loss that is not a number.
        """
        self._check_numbers(step, scores, target_loss)
        drops = self._drops(scores)
        worst = max(drops, key=lambda skill: drops[skill].low, default=None)
        ratio, why_ratio = self._new_ratio(drops, worst)
        remedy, why_remedy = self._new_remedy(drops, worst)
        stop, why_stop = self._out_of_patience(target_loss)
        reasons = [*why_ratio, *why_remedy, *why_stop]
        if not reasons:
            reasons = [f"nothing changes{_fall(drops, worst, before=': ')}"]
        event = Event(
            step=step,
            scores={skill: round(fmean(scores[skill]), 6) for skill in self.base},
            drops={skill: drop.rounded() for skill, drop in drops.items()},
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

    def _drops(self, scores: Mapping[str, Sequence[float]]) -> dict[str, Interval]:
        """Each skill's drop with its bounds; of a skill of which the base scores nothing, none."""
        alpha = ALPHA / max(1, len(self.base))
        drops = {}
        for skill, base in self.base.items():
            drop = relative_drop(base, scores[skill], alpha=alpha)
            if drop is not None:
                drops[skill] = drop
        return drops

    def _new_ratio(
        self, drops: Mapping[str, Interval], worst: str | None
    ) -> tuple[float, list[str]]:
        """The new ratio, and why. It rises at once, and falls after ``relax_after`` calm tests;
        every change makes the count begin anew.
        """
        chosen = self.settings
        ratio = self.ratio
        calm = bool(drops) and max(drop.mean for drop in drops.values()) < chosen.relax_drop
        self.calm = self.calm + 1 if calm else 0
        if worst is not None and drops[worst].low > chosen.max_drop:
            self.calm = 0
            # A recipe may begin above max_ratio; then it stays there.
            raised = min(ratio * chosen.factor, max(chosen.max_ratio, self.start))
            if ratio == 0:
                change = "the ratio is 0 and cannot be raised by a factor"
            elif raised > ratio:
                change = f"ratio {ratio:.3g} -> {raised:.3g}"
            else:
                change = f"the ratio stays at its most, {ratio:.3g}"
            return raised, [f"{_fall(drops, worst)}: {change}"]
        if self.calm >= chosen.relax_after:
            tests = self.calm
            self.calm = 0
            if ratio > self.start:
                lowered = max(ratio / chosen.factor, self.start)
                why = f"all drops below {100 * chosen.relax_drop:.3g} % in {tests} tests in a row"
                return lowered, [f"{why}: ratio {ratio:.3g} -> {lowered:.3g}"]
        return ratio, []

    def _new_remedy(
        self, drops: Mapping[str, Interval], worst: str | None
    ) -> tuple[bool | None, list[str]]:
        """Whether the remedy is on, None where none is controlled; and why, where that changes."""
        chosen = self.settings
        on = self.remedy
        if on is False and worst is not None and drops[worst].low > chosen.remedy_drop:
            return True, [f"{_fall(drops, worst)}: {chosen.remedy} on"]
        if on and all(drop.mean < chosen.remedy_off for drop in drops.values()):
            return False, [f"all drops below {100 * chosen.remedy_off:.3g} %: {chosen.remedy} off"]
        return on, []

    def _out_of_patience(self, loss: float | None) -> tuple[bool, list[str]]:
        """Whether training ends, and why."""
        if loss is None:
            return False, []
        if self.best_loss is None or loss < self.best_loss:
            self.best_loss = loss
            self.waited = 0
        else:
            self.waited += 1
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
        parts = {}
        for skill in self.base:
            lost = max(drops[skill].mean, 0.0) if skill in drops else 0.0
            parts[skill] = lost + self.settings.max_drop
        return {skill: part / sum(parts.values()) for skill, part in parts.items()}

    def _check_numbers(
        self, step: int, scores: Mapping[str, Sequence[float]], loss: float | None
    ) -> None:
        wrong = [
            f"the score of {skill}"
            for skill in self.base
            if not all(map(math.isfinite, scores[skill]))
        ]
        if loss is not None and not math.isfinite(loss):
            wrong.append("the loss on the target's held-out rows")
        if wrong:
            raise EngineError(
                f"after step {step} {' and '.join(wrong)} is not a number: the training has "
                f"diverged. A lower train.learning_rate or train.max_grad_norm usually mends it"
            )

    def state(self) -> DeciderState:
        """Everything a resumed training needs."""
        return DeciderState(
            base=self.base,
            start=self.start,
            best_loss=self.best_loss,
            calm=self.calm,
            waited=self.waited,
            events=self.events,
        )

    def restore(self, state: DeciderState) -> None:
        """Takes back what ``state`` gave."""
        self.base = dict(state.base)
        self.start = state.start
        self.best_loss = state.best_loss
        self.calm = state.calm
        self.waited = state.waited
        self.events = list(state.events)


def _fall(drops: Mapping[str, Interval], worst: str | None, *, before: str = "") -> str:
    """How far the worst skill has fallen, in words; nothing where no skill could."""
    if worst is None:
        return ""
    drop = drops[worst]
    return f"{before}{worst} fell by {100 * drop.mean:.3g} %, by {100 * drop.low:.3g} % at least"
