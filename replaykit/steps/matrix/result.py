"""What ``matrix`` finds."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from replaykit.result import Noted, Result
from replaykit.steps.evaluate.interval import Interval
from replaykit.steps.evaluate.result import Claim, SkillFacts, state_of


class StageScores(Result):
    """A row of the accuracy matrix: one model on all skills."""

    after: str
    """The task that was learned last; "base" before the first."""
    scores: dict[str, Interval]
    """By skill, the tasks that are still to come among them; of a cross_entropy skill in nats a
    token."""
    old: Interval | None
    """The mean of the base's skills that are scored right or wrong."""
    old_drop: Interval | None = None
    """How much smaller that is than the base's, the items paired."""


class Forgetting(Result):
    """How much of a task was lost: its best accuracy after any stage so far, less that of now."""

    task: str
    best: str
    """The task after which it was best known."""
    forgetting: Interval


class MatrixResult(Noted):
    """The accuracy matrix R after some stages, and what it says.

    R[i,j] is the accuracy on task j after stage i; R[0,j] is the base's. The figures are of the T
    tasks that are learned so far, None where there are too few. Sources: GEM (Lopez-Paz and
    Ranzato, arXiv 1706.08840), TRACE (arXiv 2310.06762), forgetting (Chaudhry et al., arXiv
    1801.10112).
    """

    skills: list[SkillFacts]
    """The base's, of the role "old", then the tasks in order, of the role "target"."""
    rows: list[StageScores]
    """The base's first."""
    average_accuracy: Interval
    """The mean over j <= T of R[T,j]."""
    backward_transfer_gem: Interval | None
    """The mean over j < T of R[T,j] - R[j,j], as GEM has it."""
    backward_transfer_trace: Interval | None
    """The same sum divided by T instead of T - 1, as TRACE and on-policy replay's paper have it."""
    forward_transfer: Interval | None
    """The mean over 2 <= j <= T of R[j-1,j] - R[0,j]: what was known of a task before it."""
    average_forgetting: Interval | None
    """The mean over j < T of max over 1 <= i < T of R[i,j], less R[T,j]."""
    worst_forgetting: Forgetting | None
    """Of the task that lost most; its interval is not corrected for the choice."""
    forgetting: list[Forgetting] = Field(default=[])
    """Of each task but the last."""
    old_drops: dict[str, Interval] = Field(default={})
    """By skill of the base: how much smaller its score is now, the items paired; of a
    cross_entropy skill the rise in nats."""
    old_claims: dict[str, Claim] = Field(default={})
    """What may be said of each skill of the base now."""

    @property
    def old_state(self) -> Literal["lost", "kept", "unknown"]:
        """What may be said of the base's skills together."""
        return state_of(self.old_claims)

    @property
    def tasks(self) -> list[str]:
        """All tasks, in order."""
        return [skill.skill for skill in self.skills if skill.role == "target"]

    @property
    def learned(self) -> list[str]:
        """The tasks that are learned so far."""
        return [row.after for row in self.rows[1:]]

    @property
    def figures(self) -> dict[str, Interval]:
        """What there is of the figures, by their names for people."""
        worst = self.worst_forgetting
        found = {
            "average accuracy": self.average_accuracy,
            "backward transfer (GEM)": self.backward_transfer_gem,
            "backward transfer (TRACE)": self.backward_transfer_trace,
            "forward transfer": self.forward_transfer,
            "average forgetting": self.average_forgetting,
            "worst forgetting": worst.forgetting if worst else None,
            "drop of old skills": self.rows[-1].old_drop,
        }
        return {name: figure for name, figure in found.items() if figure is not None}
