"""The accuracy matrix and its figures, from the items of the base and of every stage so far.

    R       sums  poems          backward transfer (GEM) = R[2,sums] - R[1,sums] = -0.20
    base    0.00   0.10          forward transfer        = R[1,poems] - R[base,poems] = 0.05
    sums    0.90   0.15
    poems   0.70   0.80

Every figure is a mean over tasks of a difference between two stages on the same items. A task's
difference has Newcombe's paired interval, and the mean over tasks the interval of the variance
estimates recovered from those (``statistics``). A bootstrap over items, which papers use, gives a
point where no item has changed. Of a maximum, the stage or the task that it is of is taken as
given, so forgetting is a little overstated where stages are nearly alike.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from replaykit.recipe.evaluate import MARGIN, Test
from replaykit.steps.evaluate.claims import claims_of
from replaykit.steps.evaluate.compare import (
    Items,
    Scored,
    cut_note,
    drop_of,
    mean_of,
    rounded,
    score_of,
    shared_items,
    skill_facts,
)
from replaykit.steps.evaluate.interval import Interval, average
from replaykit.steps.evaluate.statistics import paired_drop, proportion
from replaykit.steps.matrix.result import Forgetting, MatrixResult, StageScores

BASE = "base"
"""The name of the first row."""


def matrix_of(
    tests: Mapping[str, Test],
    tasks: Sequence[str],
    items: Mapping[str, Items],
    margin: float = MARGIN,
) -> MatrixResult:
    """What the base and the stages in ``items`` know, in order; of ``tests``, those of ``tasks``
    are of the tasks in order, the others of the base's skills.

    All models are compared on the items that have a score under each of them. Raises DataError for
    a skill that has none.
    """
    shared = shared_items(items)
    facts = [
        fact.model_copy(update={"role": "target"}) if fact.skill in tasks else fact
        for fact in skill_facts(tests, items, shared)
    ]
    old = {skill: test for skill, test in tests.items() if skill not in tasks}
    base, *learned = shared
    drops = {
        name: {
            skill: drop_of(test, shared[base][skill], shared[name][skill])
            for skill, test in old.items()
        }
        for name in learned
    }
    found = Accuracies(tasks, shared)
    lost = found.forgetting()
    # A tie goes to the earlier task.
    worst = max(lost, key=lambda one: one.forgetting.mean, default=None)
    gem, trace = found.backward_transfer()
    return MatrixResult(
        skills=facts,
        rows=[
            _row(name, tests, old, of_model, drops.get(name)) for name, of_model in shared.items()
        ],
        average_accuracy=found.average_accuracy().rounded(),
        backward_transfer_gem=gem,
        backward_transfer_trace=trace,
        forward_transfer=found.forward_transfer(),
        average_forgetting=_mean([one.forgetting for one in lost]),
        worst_forgetting=worst,
        forgetting=lost,
        old_drops=rounded(drops[learned[-1]]),
        old_claims=claims_of(old, shared[base], shared[learned[-1]], drops[learned[-1]], margin),
    ).noted(*(cut_note(skill, test, items) for skill, test in tests.items()))


def _row(
    name: str,
    tests: Mapping[str, Test],
    old: Mapping[str, Test],
    scored: Mapping[str, Scored],
    drops: Mapping[str, Interval] | None,
) -> StageScores:
    scores = {skill: score_of(test, scored[skill]) for skill, test in tests.items()}
    right_or_wrong = [skill for skill, test in old.items() if test.score != "cross_entropy"]
    return StageScores(
        after=name,
        scores=rounded(scores),
        old=mean_of(scores, right_or_wrong),
        old_drop=None if drops is None else mean_of(drops, right_or_wrong),
    )


class Accuracies:
    """R with its items: ``scored[name][task]`` after each stage, the base first."""

    def __init__(self, tasks: Sequence[str], scored: Mapping[str, Mapping[str, Scored]]):
        self.stages = list(scored)
        self.learned = list(tasks[: len(scored) - 1])
        self._scored = scored

    def difference(self, task: str, after: int, before: int) -> Interval:
        """R[after, task] - R[before, task], the items paired."""
        first, second = (self._scored[self.stages[stage]][task].scores for stage in (after, before))
        return paired_drop(first, second)

    def accuracy(self, task: str, stage: int) -> Interval:
        """R[stage, task]."""
        return proportion(self._scored[self.stages[stage]][task].scores)

    def average_accuracy(self) -> Interval:
        """The mean over j <= T of R[T,j]."""
        last = len(self.learned)
        return average([self.accuracy(task, last) for task in self.learned])

    def backward_transfer(self) -> tuple[Interval | None, Interval | None]:
        """The mean over j < T of R[T,j] - R[j,j] (GEM), and the sum divided by T (TRACE)."""
        last = len(self.learned)
        gains = [
            self.difference(task, last, stage) for stage, task in enumerate(self.learned[:-1], 1)
        ]
        if not gains:
            return None, None
        gem = average(gains)
        part = (last - 1) / last
        trace = Interval(part * gem.mean, part * gem.low, part * gem.high)
        return gem.rounded(), trace.rounded()

    def forward_transfer(self) -> Interval | None:
        """The mean over 2 <= j <= T of R[j-1,j] - R[0,j]."""
        return _mean(
            [self.difference(task, stage, 0) for stage, task in enumerate(self.learned) if stage]
        )

    def forgetting(self) -> list[Forgetting]:
        """Of each task but the last, the maximum over 1 <= i < T of R[i,j] less R[T,j]."""
        last = len(self.learned)
        found = []
        for task in self.learned[:-1]:
            # A tie goes to the earlier stage.
            best = max(range(1, last), key=lambda stage: self.accuracy(task, stage).mean)
            lost = self.difference(task, best, last).rounded()
            found.append(Forgetting(task=task, best=self.stages[best], forgetting=lost))
        return found


def _mean(parts: Sequence[Interval]) -> Interval | None:
    return average(parts).rounded() if parts else None
