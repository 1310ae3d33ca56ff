"""Micro-batches whose replay is decided while training: the target rows of a step stay, a
controller says how much beside.

    batches = Beside(data, target_steps, pools, controller, ...)
    for rows in batches: ...        # row indices, so many micro-batches a step, as ``batches.micro_batches`` makes them

The target is shown exactly as the plan shows it, in as many steps, so a share that rises makes
steps longer and takes nothing from the target. Whenever the order is begun anew, as a resumed run
does, the same decisions give the same rows.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from replaykit.errors import RecipeError
from replaykit.mix.build import skill_of
from replaykit.mix.plan import TARGET, replay_beside
from replaykit.records import Record
from replaykit.settings import Test
from replaykit.train.batches import IGNORED, Planned, micro_batches
from replaykit.train.controller import Controller
from replaykit.training_settings import Controller as Settings
from replaykit.training_settings import Mix

Unit = Literal["loss_tokens", "tokens", "rows"]


@dataclass(frozen=True)
class Watched:
    """What a controller tests while training, and what it may draw from.

    ``old`` are the tests of old skills with their rows, ``target`` the target's held-out rows,
    ``replay`` all replay rows that can be trained on, and ``mix`` the settings by which the mixture
    was made.
    """

    settings: Settings
    old: Mapping[str, tuple[Test, Sequence[Record]]]
    target: Sequence[Record]
    replay: Sequence[Record]
    mix: Mix

    def pools(self) -> dict[str, list[Record]]:
        """The replay rows by skill where the controller weighs skills, else by source; none for an
        arm without replay.

        Raises RecipeError where there are rows and none of them is of a skill that is tested.
        """
        pools: dict[str, list[Record]] = {}
        for record in self.replay:
            name = skill_of(record, self.mix.skill) if self.settings.by_skill else record.source
            pools.setdefault(name, []).append(record)
        if self.settings.by_skill and pools and not pools.keys() & self.old.keys():
            raise RecipeError(
                "the recipe",
                [
                    f"train.controller.by_skill: no replay row names a skill of eval.old "
                    f"({', '.join(self.old)}) in its column "
                    f"'{self.mix.skill}'; mix.skill names another column"
                ],
            )
        return pools


class Beside:
    """The micro-batches of all steps, ``parts`` of them a step.

    ``target_steps`` are the places of the target rows of each step in ``data``, ``pools`` those of
    the replay rows. A step's micro-batches are of ``rows`` rows or fewer, but where the share is at
    its highest and its rows are shorter than the pools' mean; then they are spread evenly.
    """

    def __init__(
        self,
        data: Planned,
        target_steps: Sequence[Sequence[int]],
        pools: Mapping[str, Sequence[int]],
        controller: Controller,
        watched: Watched,
        *,
        seed: int,
        rows: int,
        apart: bool,
        world: int,
    ) -> None:
        self._data = data
        self._steps = target_steps
        self._pools = pools
        self._controller = controller
        self._seed = seed
        self._apart = apart
        self._world = world
        self._weights = {str(name): weight for name, weight in (watched.mix.sources or {}).items()}
        self._sizes = sizes_of(data, watched.mix.unit)
        cap = max(watched.settings.max_ratio, watched.mix.ratio)
        every = [self._sizes[place] for pool in pools.values() for place in pool]
        largest = max(sum(self._sizes[place] for place in step) for step in target_steps)
        replay = round(cap / (1 - cap) * largest / (sum(every) / len(every))) + 1 if every else 0
        target = max(map(len, target_steps))
        self._counts = tuple(
            -(-count // rows) for count in ((replay, target) if apart else (0, target + replay))
        )
        self.parts = sum(-(-count // world) * world for count in self._counts)

    def __len__(self) -> int:
        return len(self._steps) * self.parts

    def __iter__(self) -> Iterator[list[int]]:
        drawn = replay_beside(
            ([self._sizes[place] for place in step] for step in self._steps),
            {name: [self._sizes[place] for place in pool] for name, pool in self._pools.items()},
            self._controller.ratio,
            self._share,
            seed=self._seed,
        )
        for step, slots in zip(self._steps, drawn, strict=True):
            replay = [self._pools[slot.source][slot.row] for slot in slots]
            batches, _ = micro_batches(
                [self._data.lengths[place] for place in (*replay, *step)],
                [0] * (len(replay) + len(step)),
                rows=1,
                apart=[True] * len(replay) + [False] * len(step) if self._apart else None,
                world=self._world,
                counts=self._counts,
            )
            places = [*replay, *step]
            yield from ([places[k] for k in batch] for batch in batches)

    def _share(self, step: int) -> Mapping[str, float]:
        """What each pool is weighed by in a step: one whose skill is not tested counts as the
        tested one that needs least.
        """
        skills = self._controller.weights(step)
        if skills is None:
            return {name: self._weights.get(name, 1.0) for name in self._pools}
        return {name: skills.get(name, min(skills.values())) for name in self._pools}


def sizes_of(data: Planned, unit: Unit) -> list[int]:
    """What each row counts for in a unit, as the mixture counts it."""
    if unit == "rows":
        return [1] * len(data)
    return (
        data.lengths
        if unit == "tokens"
        else [
            int((row["labels"] != IGNORED).sum()) for row in map(data.__getitem__, range(len(data)))
        ]
    )


def laid_out(
    records: Sequence[Record], steps: Sequence[int], watched: Watched
) -> tuple[list[Record], list[list[int]], dict[str, list[int]]]:
    """The planned target rows and all replay rows, behind one another; and the places of each
    step's target rows, and of the rows of each pool.
    """
    order = [record for record in records if record.source == TARGET]
    of_step = [step for record, step in zip(records, steps, strict=True) if record.source == TARGET]
    target_steps: list[list[int]] = [[] for _ in range(steps[-1] + 1)]
    for place, step in enumerate(of_step):
        target_steps[step].append(place)
    pools = {}
    for name, rows in watched.pools().items():
        pools[name] = list(range(len(order), len(order) + len(rows)))
        order += rows
    return order, target_steps, pools
