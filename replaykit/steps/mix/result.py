"""What ``mix`` makes."""

from __future__ import annotations

from pydantic import Field

from replaykit.checks.funnel import FunnelCounts
from replaykit.checks.overlap import Decontaminated
from replaykit.recipe.mix import Schedule, Unit
from replaykit.result import Noted, Result


class Furthest(Result):
    """How far the step that is furthest from its own share is from it."""

    amount: float
    """In the mixture's unit."""
    rows: float
    """As a part of the largest row that comes."""


class SkillRows(Result):
    """The replay rows of a skill that are trained on."""

    rows: int
    different: int


class MixResult(Noted):
    """The share that was asked for and the shares that came out."""

    ratio: float
    """The share of replay that was asked for, in ``unit``."""
    unit: Unit
    budget: str
    schedule: Schedule | None
    description: str
    """What was asked for, in words."""
    share: dict[Unit, float]
    """Replay over all, by unit, of the whole mixture."""
    last_share: dict[Unit, float]
    """The same of the last fifth of the steps."""
    furthest_step: Furthest
    steps: int
    target_rows: int
    replay_rows: int
    available: dict[str, int]
    """Usable rows of each source."""
    repeats: dict[str, float]
    """How often a row of each source comes, on average."""
    skills: dict[str, SkillRows]
    cost: float
    """All tokens over those of the target alone in as many slots or epochs."""
    not_shown: int
    """Target rows that never come."""
    sha256: str
    """Of rows.jsonl."""
    sources: dict[str, str]
    """The file of each source of replay."""
    funnel: FunnelCounts
    decontamination: Decontaminated | None
    exported: dict[str, str] = Field(default={})
    """The folder of each export."""

    @property
    def different_replay(self) -> int:
        """How many different replay rows are trained on."""
        # Each row is of one skill.
        return sum(found.different for found in self.skills.values())
