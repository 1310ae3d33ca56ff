"""The plan of a run in which some replay rows are too long for the share that is asked for.

    300 target rows of 3 loss tokens, replay rows of 2 to 900, ratio 0.05: 47 tokens of replay
    all rows:               the next in order has 400; it waits until 200 are owed, and never comes
    rows of 12 or fewer:    47 tokens, and 9 of them in the last fifth

Every run of slots is within one row of its share. That says little where one row is as long as all
the replay of the run. Rows of a target that is learned by heart in one word are such a case.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

from replaykit.recipe.mix import Mix
from replaykit.recipe.train import Train
from replaykit.steps.mix.plan import Drawing, Floors, Slot, deviation, in_steps, last_fifth

# By what part of what was asked for the replay of a right plan may be off. The last fifth of the
# steps has a fifth of the replay rows, and more of it hangs on one row.
WHOLE_OFF = 0.1
LAST_FIFTH_OFF = 0.25
# The limits that are tried for the size of a replay row, as parts of all replay that is asked for.
# A row of 1 / 64 is a thirteenth of what is asked for in a fifth.
LIMITS = (2.0, 1.0, 1 / 2, 1 / 4, 1 / 8, 1 / 16, 1 / 32, 1 / 64)


def fitting_plan(
    target: Sequence[int],
    replay: Mapping[str, Sequence[int]],
    *,
    settings: Mix,
    train: Train,
    seed: int,
    skills: Mapping[str, Sequence[str]] | None = None,
) -> tuple[list[list[Slot]], int | None]:
    """The plan of the replay rows that are short enough for a run of this length, and the size of
    the longest of them; or the plan of all rows, and None, where none is too long.

    The arguments and errors are those of ``plan``. The slots count the rows that are left, without
    the longer ones. The limit is the loosest by which the whole run and its last fifth are right;
    where none does that, the loosest by which the whole run is, best with replay in its last fifth;
    or else that of the nearest.
    """
    drawing = Drawing.of(target, replay, settings, train, seed, skills or {})
    plain = _Try.of(drawing)
    # Without a share there is nothing to be off from; a floor that is not kept is said at once.
    if not plain.kept or not plain.asked or plain.right:
        return plain.steps(), None
    tries = [plain]
    every = sorted(size for sizes in drawing.replay.values() for size in sizes)
    longest = every[-1]
    for limit in LIMITS:
        if tries[-1].right:
            break
        # The shortest rows stay under any limit.
        below = every[: bisect_right(every, max(limit * plain.asked, every[0]))]
        # This limit leaves out no row more than the one before it.
        if below[-1] == longest:
            continue
        longest = below[-1]
        found = _Try.of(drawing.without_longer(longest), longest)
        if found.kept:
            tries.append(found)
    # Of equals the first, which has the loosest limit.
    best = min(tries, key=lambda found: found.badness)
    return best.steps(), best.longest


@dataclass(frozen=True)
class _Try:
    """What is drawn under a limit, and how far it is from what is asked for."""

    drawing: Drawing
    order: list[Slot]
    due: Floors
    longest: int | None
    """The size of the longest row; None without a limit."""

    @classmethod
    def of(cls, drawing: Drawing, longest: int | None = None) -> _Try:
        order, due = drawing.order()
        return cls(drawing, order, due, longest)

    def steps(self) -> list[list[Slot]]:
        """Raises DataError as ``plan`` does."""
        return self.drawing.steps(self.order, self.due)

    @property
    def kept(self) -> bool:
        """Whether the floors are kept."""
        return not self.due.missing

    @cached_property
    def asked(self) -> float:
        """How much replay is asked for, in the unit of the sizes."""
        return self.drawing.asked(self.order)

    @cached_property
    def whole_off(self) -> float:
        """How far all replay is off, as a part of what is asked for."""
        return deviation(self.order, self.drawing.sizes) / self.asked

    @cached_property
    def last_off(self) -> float:
        """The same of the last fifth of the steps."""
        in_step = last_fifth(in_steps(self.order, self.drawing.train))
        last = [slot for step in in_step for slot in step]
        # A share that falls to nothing asks for next to nothing at the end. There the distance is
        # compared with a fifth of all that is asked for.
        asked = max(self.drawing.asked(last), self.asked / 5)
        return deviation(last, self.drawing.sizes) / asked

    @property
    def right(self) -> bool:
        return self.whole_off <= WHOLE_OFF and self.last_off <= LAST_FIFTH_OFF

    @property
    def badness(self) -> tuple[bool, float, bool]:
        """Least where both are right, then where the whole run is, then where it is nearest."""
        # A last fifth without replay, or with twice as much, is off by all that is asked for.
        return (not self.right, max(self.whole_off, WHOLE_OFF), self.last_off >= 1)
