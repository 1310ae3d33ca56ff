"""The plan: which row is trained on in which optimiser step, as a pure function of sizes, settings
and seed.

    target rows of 26 loss tokens, replay rows of 9, ratio 0.05, 32 rows a step:
    step 0: 28 target + 4 replay, step 1: 28 + 4, step 2: 27 + 5, ...

No count is drawn at random. Every slot takes the row, target or replay, that brings the replay so
far nearest to what was asked for so far (error diffusion). What is asked of a run of slots is the
sum of size x share over its slots, where a share that moves is that of the slot's moment. So any
run of slots, and every step, is within one row of its share. Rows of a source come in a seeded
order, all of them before any comes again.

Within one row is far off where a row is as long as all the replay of a short run. There
``longest_row`` says up to which size rows can come, so that the whole run and its last fifth have
their share.

Others draw the source of each row at random. They drop target rows when replay runs out, or repeat
replay without saying so: ``interleave_datasets`` of datasets, which LLaMA-Factory and ms-swift use,
by each of its stopping strategies, and TRL by the ``fraction`` of a data set.
"""

from __future__ import annotations

import dataclasses
import math
from collections import Counter, deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from itertools import pairwise
from typing import TypeVar

import numpy as np

from replaykit.data.record import TARGET
from replaykit.errors import DataError
from replaykit.hashing import derive_seed
from replaykit.recipe.mix import Mix
from replaykit.recipe.train import Train
from replaykit.steps.mix.schedule import most, ratio_at

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Slot:
    """One place in the order: a row of a source, by its index there, and the share of replay that
    is asked for at that moment.
    """

    source: str
    row: int
    ratio: float = field(default=0.0, compare=False)


@dataclass
class Source:
    """Rows to draw from.

    ``sizes`` is what each counts for: its loss tokens, its tokens, or 1. ``skills`` names the skill
    of each; it is empty where there are no floors to keep.
    """

    name: str
    sizes: Sequence[int]
    seed: int
    skills: Sequence[str] = ()
    drawn: int = 0
    _order: Sequence[int] = ()
    """The rows in the order of this pass; empty before it begins."""
    _place: int = 0
    """The place of the next row in that order."""
    _early: set[int] = field(default_factory=set)
    """Rows of the first pass that came before their place, because their skill was behind."""
    _of_skill: dict[str, deque[int]] = field(default_factory=dict)
    """Rows of the first pass that have not come yet, by skill and in order."""

    def peek(self, wanted: Iterable[str] = ()) -> int:
        """The index of the next row: in the first pass the next of the first of the ``wanted``
        skills that has one.
        """
        if not self._order:
            self._begin_pass()
        for skill in wanted:
            rows = self._of_skill.get(skill)
            if rows:
                return rows[0]
        return self._order[self._place]

    def take(self, ratio: float, wanted: Iterable[str] = ()) -> Slot:
        """The next row as a slot at this share of replay."""
        row = self.peek(wanted)
        self.drawn += 1
        if self._of_skill:
            # Whether the row comes early or in its place, it is the first of its skill.
            self._of_skill[self.skills[row]].popleft()
            self._early.add(row)
            # The places of rows that came early are passed over, so that none comes twice.
            while self._place < len(self._order) and self._order[self._place] in self._early:
                self._place += 1
        else:
            self._place += 1
        if self.drawn % len(self.sizes) == 0:
            self._order = ()
        return Slot(self.name, row, ratio)

    def _begin_pass(self) -> None:
        number = self.drawn // len(self.sizes)
        self._order = pass_order(self.name, len(self.sizes), self.seed, number).tolist()
        self._place = 0
        self._of_skill = {}
        # Floors are of different rows, so they are kept, or not, within the first pass.
        if self.skills and number == 0:
            for row in self._order:
                self._of_skill.setdefault(self.skills[row], deque()).append(row)


def pass_order(source: str, rows: int, seed: int, number: int) -> np.ndarray:
    """The order of the rows of a source in its pass of this number, counted from 0."""
    # The address has the source and the pass, and no size: the target's order is the same in all
    # arms, whatever their replay.
    return np.random.default_rng(derive_seed(seed, "mix", source, number)).permutation(rows)


class Pools:
    """Several sources of replay that share it by weights: the next row is of the one that most is
    owed to.

    Each is owed its part of all that was drawn, less what was drawn of it. So at any time none has
    more than its part and one row; the weights may change, and what was owed before stays owed.
    """

    def __init__(self, sources: Iterable[Source]):
        # A source without rows gives none, and is owed nothing.
        self.sources = {source.name: source for source in sources if source.sizes}
        self.owed = dict.fromkeys(self.sources, 0.0)
        """By source, in the unit of the sizes; they sum to 0."""

    def next(self, weights: Mapping[str, float]) -> Source | None:
        """The source that most is owed to, of equals the first; None where no source has a weight
        above 0.
        """
        weighted = [name for name in self.sources if weights.get(name, 0.0) > 0]
        if not weighted:
            return None
        return self.sources[max(weighted, key=lambda name: self.owed[name])]

    def took(self, slot: Slot, weights: Mapping[str, float]) -> None:
        """Accounts for a row that was drawn."""
        size = self.sources[slot.source].sizes[slot.row]
        whole = sum(weights.get(name, 0.0) for name in self.sources)
        for name in self.sources:
            self.owed[name] += size * weights.get(name, 0.0) / whole
        self.owed[slot.source] -= size


def plan(
    target: Sequence[int],
    replay: Mapping[str, Sequence[int]],
    *,
    settings: Mix,
    train: Train,
    seed: int,
    skills: Mapping[str, Sequence[str]] | None = None,
) -> list[list[Slot]]:
    """The slots of every optimiser step.

    ``target`` and ``replay`` give what each row counts for, ``skills`` the skill of each replay
    row. Of ``settings`` the ratio with its schedule, the budget, the sources with their weights and
    the floors are read; of ``train`` epochs, steps and batch_rows.

    With the budget "add" every target row comes exactly ``epochs`` times and replay comes on top;
    with "replace" there are only as many slots as those of the target alone, and some target rows
    come a time less, or never. Either way the slots are then spread evenly over as few steps as
    batch_rows allows. With ``steps`` there are exactly steps x batch_rows slots; the target repeats
    evenly to fill them, or some of its rows never come.

    Replay sources share by their weights (equal ones by default). A floor, ``min_rows``, is how
    many different rows of a skill must come: where a skill is behind, by the progress, its next row
    comes first. A source without rows gives none, and the others its part. Raises DataError where
    all have none, no replay row comes although a share is asked for, or a floor cannot be kept.
    """
    drawing = Drawing.of(target, replay, settings, train, seed, skills or {})
    return drawing.steps(*drawing.order())


@dataclass(frozen=True)
class Drawing:
    """From what the rows of a training are drawn, and how many."""

    target: Sequence[int]
    replay: Mapping[str, Sequence[int]]
    skills: Mapping[str, Sequence[str]]
    """Of replay rows; empty where there are no floors."""
    weights: Mapping[str, float]
    floors: Mapping[str, int]
    settings: Mix
    train: Train
    seed: int

    @classmethod
    def of(
        cls,
        target: Sequence[int],
        replay: Mapping[str, Sequence[int]],
        settings: Mix,
        train: Train,
        seed: int,
        skills: Mapping[str, Sequence[str]],
    ) -> Drawing:
        """Raises DataError where there is no row to draw, or a skill has fewer than its floor."""
        highest = most(settings.schedule, settings.ratio)
        # Where no replay is asked for at any time, sources and floors mean nothing.
        if highest == 0:
            replay = {}
        weights = {str(source): weight for source, weight in (settings.sources or {}).items()}
        if not weights:
            weights = dict.fromkeys(replay, 1.0)
        _check(target, replay, weights, highest)
        floors = settings.min_rows if highest > 0 else {}
        if not floors:
            skills = {}
        _check_floors(floors, replay, skills)
        # A source that has no weight gives no row.
        replay = {name: sizes for name, sizes in replay.items() if weights.get(name)}
        return cls(target, replay, skills, weights, floors, settings, train, seed)

    @property
    def highest(self) -> float:
        """The largest share that is asked for at any time."""
        return most(self.settings.schedule, self.settings.ratio)

    @property
    def sizes(self) -> Mapping[str, Sequence[int]]:
        """By source, what each row counts for."""
        return {TARGET: self.target, **self.replay}

    def without_longer(self, longest: int) -> Drawing:
        """The same without replay rows that are longer."""
        kept = {
            name: [row for row, size in enumerate(sizes) if size <= longest]
            for name, sizes in self.replay.items()
        }
        replay = {name: [self.replay[name][row] for row in rows] for name, rows in kept.items()}
        skills = {
            name: [self.skills[name][row] for row in rows]
            for name, rows in kept.items()
            if name in self.skills
        }
        return dataclasses.replace(self, replay=replay, skills=skills)

    def order(self) -> tuple[list[Slot], Floors]:
        """The slots in order, and what the floors lack then."""
        total = slots_alone(self.train, len(self.target))
        by_slots = self.train.steps is not None or self.settings.budget == "replace"
        ratio_of = partial(ratio_at, self.settings.schedule, self.settings.ratio)
        # The rows of a floor come evenly over the training; where it is too short for that, first.
        for at_once in (False, True):
            due = Floors(self.floors, self.skills, at_once)
            pools = Pools(
                Source(name, sizes, self.seed, self.skills.get(name, ()))
                for name, sizes in self.replay.items()
            )
            own = Source(TARGET, self.target, self.seed)
            order = _order(own, pools, ratio_of, self.weights, due, total, by_slots=by_slots)
            if not due.missing:
                break
        return order, due

    def steps(self, order: Sequence[Slot], due: Floors) -> list[list[Slot]]:
        """The order in steps. Raises DataError where a floor is not kept, or no replay comes."""
        if due.missing:
            raise DataError(due.error(sum(slot.source != TARGET for slot in order)))
        if self.highest > 0 and all(slot.source == TARGET for slot in order):
            raise DataError(self._no_replay(order))
        return in_steps(order, self.train)

    def asked(self, slots: Iterable[Slot]) -> float:
        """How much replay is asked for in these slots, in the unit of the sizes."""
        sizes = self.sizes
        return sum(slot.ratio * sizes[slot.source][slot.row] for slot in slots)

    def _no_replay(self, order: Sequence[Slot]) -> str:
        """What to say where the share that was asked for comes to no row, and what to ask for."""
        unit = self.settings.unit.replace("_", " ")
        whole = sum(self.target[slot.row] for slot in order)
        shortest = min(size for sizes in self.replay.values() for size in sizes)
        advice = []
        # As rows, replay comes where its part of the slots is more than half a row.
        if self.settings.unit != "rows" and self.highest * len(order) > 0.5:
            advice.append("--unit rows")
        # A row comes where it leads nearer: (1 - ratio) x its size < 2 x ratio x the target's.
        least = math.ceil(1000 * shortest / (shortest + 2 * whole) + 0.001) / 1000
        if self.settings.schedule is None and least < 1:
            advice.append(f"--ratio {least:g} or more")
        advice.append("more target rows or train.epochs")
        return (
            f"no replay row comes, although a ratio of {self.highest:g} was asked for: of "
            f"{len(order):,} target rows with {whole:,} {unit} that is {self.asked(order):.3g} "
            f"{unit}, less than half of the shortest replay row, which has {shortest:,}; ask for "
            f"{', or for '.join(advice)}"
        )


def slots_alone(train: Train, target_rows: int) -> int:
    """How many slots the training has on the target alone."""
    if train.steps is not None:
        return train.steps * train.batch_rows
    return train.epochs * target_rows


def last_fifth(steps: Sequence[T]) -> Sequence[T]:
    """The last fifth of the steps, at least one of them."""
    return steps[-max(1, len(steps) // 5) :]


def in_steps(order: Sequence[Slot], train: Train) -> list[list[Slot]]:
    """The slots spread evenly over the steps: as many as were asked for, or as few as batch_rows
    allows.
    """
    steps = train.steps or max(1, -(-len(order) // train.batch_rows))
    ends = [step * len(order) // steps for step in range(steps + 1)]
    return [list(order[start:end]) for start, end in pairwise(ends)]


def _check(
    target: Sequence[int],
    replay: Mapping[str, Sequence[int]],
    weights: Mapping[str, float],
    highest: float,
) -> None:
    """Raises DataError where there is no target, or no replay although the highest share is above
    0.
    """
    if not target:
        raise DataError("the target has no row that can be trained on")
    if highest > 0 and not any(rows for source, rows in replay.items() if weights.get(source)):
        raise DataError(
            f"replay at a ratio of {highest} was asked for, but there is none: run `replaykit "
            f"generate` or `replaykit select` first, or ask for --ratio 0"
        )


def _order(
    target: Source,
    pools: Pools,
    ratio_of: Callable[[float], float],
    weights: Mapping[str, float],
    due: Floors,
    total: int,
    *,
    by_slots: bool,
) -> list[Slot]:
    """The slots in order, until ``total`` slots, or target rows with the replay that is owed beside
    them, are drawn.
    """
    order: list[Slot] = []
    # The replay drawn so far less that asked for so far, in the unit of the sizes.
    off = 0.0
    while True:
        done = len(order) if by_slots else target.drawn
        if done >= total and by_slots:
            return order
        # The moment of a slot is the middle of what is drawn in it; behind the last target row it
        # is still that row's.
        progress = (min(done, total - 1) + 0.5) / total
        ratio = ratio_of(progress)
        # A row of the target adds nothing to the replay, but its part to what is asked for. A
        # replay row adds all of itself to the one, and its part to the other.
        with_target = off
        if done < total:
            with_target -= ratio * target.sizes[target.peek()]
        pool = pools.next(weights)
        if pool is not None and ratio > 0:
            behind = due.behind(progress)
            with_replay = off + (1 - ratio) * pool.sizes[pool.peek(behind)]
            # Of two rows that are equally near, the target's is taken.
            if abs(with_replay) < abs(with_target):
                slot = pool.take(ratio, behind)
                pools.took(slot, weights)
                due.took(slot)
                order.append(slot)
                off = with_replay
                continue
        if done >= total:
            return order
        order.append(target.take(ratio))
        off = with_target


class Floors:
    """How many different rows of each skill must have come by when.

    That is their part by progress, or with ``at_once`` all of them at any time.
    """

    def __init__(
        self, floors: Mapping[str, int], skills: Mapping[str, Sequence[str]], at_once: bool
    ):
        self.floors = floors
        self.missing = dict(floors)
        """How many rows of each skill have not come yet; no skill that lacks none."""
        self._skills = skills
        self._at_once = at_once
        self._drawn = dict.fromkeys(skills, 0)

    def behind(self, progress: float) -> list[str]:
        """The skills that are behind, the one that lacks most first."""
        # By now a floor of n must have had n x progress rows: at most n x later may be missing.
        later = 0.0 if self._at_once else 1 - progress
        lacks = {skill: n - self.floors[skill] * later for skill, n in self.missing.items()}
        late = [skill for skill in self.floors if lacks.get(skill, 0.0) > 0]
        return sorted(late, key=lambda skill: -lacks[skill])

    def took(self, slot: Slot) -> None:
        """Accounts for a replay row; those of a second pass were counted in the first."""
        if not self.missing or slot.source not in self._drawn:
            return
        self._drawn[slot.source] += 1
        if self._drawn[slot.source] > len(self._skills[slot.source]):
            return
        skill = self._skills[slot.source][slot.row]
        if skill in self.missing:
            self.missing[skill] -= 1
            if not self.missing[skill]:
                del self.missing[skill]

    def error(self, replayed: int) -> str:
        """What to say where ``replayed`` replay rows were too few."""
        lack = ", ".join(
            f"{self.floors[skill] - n} of the {self.floors[skill]} of '{skill}'"
            for skill, n in self.missing.items()
        )
        return (
            f"mix.min_rows: the plan has {replayed} replay rows, which is too short for its "
            f"floors: only {lack} would be trained on; raise mix.ratio or train.epochs, give "
            f"their source more weight, or ask for fewer"
        )


def _check_floors(
    floors: Mapping[str, int],
    replay: Mapping[str, Sequence[int]],
    skills: Mapping[str, Sequence[str]],
) -> None:
    """Raises DataError where a skill has fewer replay rows than its floor."""
    there = Counter(skill for source in replay for skill in skills.get(source, ()))
    few = {skill: n for skill, n in floors.items() if there[skill] < n}
    if few:
        lack = ", ".join(
            f"{n} rows of '{skill}', but {there[skill]} are there" for skill, n in few.items()
        )
        known = ", ".join(sorted(there)[:20]) or "none"
        raise DataError(
            f"mix.min_rows asks for {lack}; make more of them, or ask for fewer (skills of the "
            f"replay rows: {known})"
        )


# --- for a controller -----------------------------------------------------------------------------


def replay_beside(
    target_steps: Iterable[Sequence[int]],
    pools: Mapping[str, Sequence[int]],
    ratio_of_step: Callable[[int], float],
    weights_of_step: Callable[[int], Mapping[str, float]],
    *,
    seed: int,
) -> Iterator[list[Slot]]:
    """The replay slots of each optimiser step, beside target rows that are fixed, for shares that
    are decided on the way.

    ``target_steps`` are the sizes of the target rows of each step, ``pools`` those of the rows of
    each pool, such as one of each skill. ``ratio_of_step`` and ``weights_of_step`` are asked for a
    step, counted from 0, only when its slots are. A pool without a weight, or of weight 0, gives
    none, and a step where none gives any owes nothing later. As many rows are taken as bring the
    replay nearest to what was asked for up to this step, so that each step is within one replay row
    of its share, and so are all together. The same decisions give the same slots, so a resumed run
    takes its first steps again, with the decisions it had made.
    """
    shared = Pools(Source(name, sizes, seed) for name, sizes in pools.items())
    off = 0.0
    for step, sizes in enumerate(target_steps):
        ratio = ratio_of_step(step)
        weights = weights_of_step(step)
        slots: list[Slot] = []
        pool = shared.next(weights)
        # A step without any pool owes nothing: what it lacks is not made up for later.
        if pool is not None:
            off -= ratio * sum(sizes)
        while pool is not None and ratio > 0:
            gain = (1 - ratio) * pool.sizes[pool.peek()]
            # The next row would lead further away from what was asked for.
            if abs(off + gain) >= abs(off):
                break
            slot = pool.take(ratio)
            shared.took(slot, weights)
            slots.append(slot)
            off += gain
            pool = shared.next(weights)
        yield slots


# --- what came out --------------------------------------------------------------------------------


def shares(slots: Iterable[Slot], sizes: Mapping[str, Sequence[int]]) -> float:
    """The part of the slots' sizes that is replay; 0 for no slots."""
    replayed = 0
    whole = 0
    for slot in slots:
        size = sizes[slot.source][slot.row]
        whole += size
        if slot.source != TARGET:
            replayed += size
    return replayed / whole if whole else 0.0


def deviation(slots: Iterable[Slot], sizes: Mapping[str, Sequence[int]]) -> float:
    """How far the replay among the slots is from what was asked for, in the unit of the sizes,
    without a sign.
    """
    off = 0.0
    for slot in slots:
        off += ((slot.source != TARGET) - slot.ratio) * sizes[slot.source][slot.row]
    return abs(off)


def alone(target: Sequence[int], slots: int, seed: int) -> int:
    """What the first ``slots`` target rows count for, where the target is trained on alone in the
    plan's order.
    """
    passes, rest = divmod(slots, len(target))
    last = pass_order(TARGET, len(target), seed, passes)[:rest].tolist()
    return passes * sum(target) + sum(target[row] for row in last)
