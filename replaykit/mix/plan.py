"""The plan: which row is trained on in which optimiser step, as a pure function of sizes, ratio and seed.

    target rows of 26 loss tokens, replay rows of 9, ratio 0.05, 32 rows a step:
    step 0: 28 target + 4 replay, step 1: 28 + 4, step 2: 27 + 5, ...

No count is drawn at random. At every slot the row is taken, target or replay, that brings the replay share of all slots
so far nearest to the ratio (error diffusion), so that any run of slots, and so every step, is within one row of it. Rows of
a source come in a seeded order, all of them before any comes again. Others mix by a random draw per row, with target rows
dropped when replay runs out or replay repeated without saying so.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np

from replaykit.errors import DataError
from replaykit.runs import derive_seed

TARGET = "target"


@dataclass(frozen=True)
class Slot:
    """One place in the order: a row of a source, by its index there."""

    source: str
    row: int


@dataclass
class Source:
    """Rows to draw from. ``sizes`` is what each counts for: its loss tokens, its tokens, or 1."""

    name: str
    sizes: Sequence[int]
    seed: int
    drawn: int = 0
    amount: int = 0  # the sum of the sizes drawn
    _order: np.ndarray = field(default_factory=lambda: np.empty(0, dtype=np.int64))

    def peek(self) -> int:
        """The index of the next row."""
        place = self.drawn % len(self.sizes)
        if place == 0:
            turn = self.drawn // len(self.sizes)
            self._order = np.random.default_rng(derive_seed(self.seed, "mix", self.name, turn)).permutation(
                len(self.sizes)
            )
        return int(self._order[place])

    def take(self) -> Slot:
        row = self.peek()
        self.drawn += 1
        self.amount += self.sizes[row]
        return Slot(self.name, row)

    @property
    def repeats(self) -> float:
        """How often each row was drawn, on average: exact to one pass."""
        return self.drawn / len(self.sizes) if self.sizes else 0.0


def plan(
    target: Sequence[int],
    replay: Mapping[str, Sequence[int]],
    *,
    ratio: float,
    batch_rows: int,
    seed: int,
    epochs: int = 1,
    steps: int | None = None,
) -> list[list[Slot]]:
    """The slots of every optimiser step.

    ``target`` and ``replay`` give what each row counts for. Without ``steps`` every target row comes exactly ``epochs``
    times and replay comes on top; the slots are then spread evenly over as few steps as batch_rows allows. With ``steps``
    there are exactly steps x batch_rows slots, and the target repeats evenly to fill them. Several replay sources get
    equal amounts. Raises DataError where a source has no rows, or ``steps`` are too few to show every target row.
    """
    if not target:
        raise DataError("the target has no row that can be trained on")
    if ratio > 0 and not any(replay.values()):
        raise DataError(
            f"replay at a ratio of {ratio} was asked for, but there is none: run `replaykit generate` or `replaykit "
            f"select` first, or ask for --ratio 0"
        )
    wanted = Source(TARGET, target, seed)
    pools = [Source(name, sizes, seed) for name, sizes in replay.items() if sizes] if ratio > 0 else []
    last = steps * batch_rows if steps is not None else None
    order: list[Slot] = []
    while len(order) < last if last is not None else wanted.drawn < epochs * len(target):
        order.append(_next(wanted, pools, ratio).take())
    if wanted.drawn < len(target):
        raise DataError(
            f"{steps} steps of {batch_rows} rows show only {wanted.drawn} of the {len(target)} target rows; raise "
            f"train.steps, leave it out (train.epochs then decides), or set target.n"
        )
    count = steps or max(1, -(-len(order) // batch_rows))
    return [order[k * len(order) // count : (k + 1) * len(order) // count] for k in range(count)]


def _next(target: Source, pools: list[Source], ratio: float) -> Source:
    """The source whose next row brings the share of replay nearest to the ratio; of several pools the one behind."""
    if not pools:
        return target
    pool = min(pools, key=lambda source: source.amount)
    replayed, whole = sum(p.amount for p in pools), sum(p.amount for p in pools) + target.amount
    new, old = target.sizes[target.peek()], pool.sizes[pool.peek()]
    off_with_old = abs(replayed + old - ratio * (whole + old))
    off_with_new = abs(replayed - ratio * (whole + new))
    return pool if off_with_old < off_with_new else target


def shares(slots: Iterator[Slot] | Sequence[Slot], sizes: Mapping[str, Sequence[int]]) -> float:
    """The part of the slots' sizes that is replay; 0 for no slots."""
    replayed = whole = 0
    for slot in slots:
        size = sizes[slot.source][slot.row]
        whole += size
        replayed += size if slot.source != TARGET else 0
    return replayed / whole if whole else 0.0
