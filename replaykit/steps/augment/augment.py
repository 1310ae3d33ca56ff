"""Further target rows: all attempts at them, in the order of the target.

for attempt in augmented(target, settings=Augment(...), seed=1, ledger=ledger, open_model=open):
    attempt.made, attempt.why     # a record linked to its parent, or the reason why there is none
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from statistics import fmean

from replaykit.data.ledger import Ledger
from replaykit.data.record import Record
from replaykit.hashing import derive_seed
from replaykit.recipe.augment import BACK_TRANSLATION, COUNTERFACTUAL, Augment
from replaykit.runs import Watch, unwatched
from replaykit.steps.asking import Asking
from replaykit.steps.augment.back_translation import back_translated
from replaykit.steps.augment.counterfactual import counterfactuals
from replaykit.steps.augment.result import AugmentResult, PathCounts
from replaykit.steps.augment.rows import Attempt, Open

STAGES = ("to_pivot", "from_pivot", "answer", "edit", "confirm")
SEEDS = 1 << 63  # that derive_seed gives


def augmented(
    target: Sequence[Record],
    *,
    settings: Augment,
    seed: int,
    ledger: Ledger,
    open_model: Open,
    watch: Watch = unwatched,
) -> Iterator[Attempt]:
    """For each row that is drawn one attempt by each way that is asked for, in the order of the
    target. A model is opened only where there is something to ask it.
    """
    rows = {row: record for row, record in enumerate(target) if _drawn(row, settings.part, seed)}
    asking = Asking("augment", STAGES, seed, ledger, settings.max_tokens, watch=watch)
    ways = []
    if settings.back_translation is not None:
        ways.append(back_translated(rows, settings, asking, open_model))
    if settings.counterfactual is not None:
        ways.append(counterfactuals(rows, settings, asking, open_model))
    for row in rows:
        for attempts in ways:
            yield attempts[row]


def _drawn(row: int, part: float, seed: int) -> bool:
    """Whether a row is of the part that is augmented."""
    return part == 1 or derive_seed(seed, "augment", "drawn", row) < part * SEEDS


def counted(attempts: Iterable[Attempt], settings: Augment, target: int) -> AugmentResult:
    """What came of the attempts."""
    by_path: dict[str, list[Attempt]] = {}
    if settings.back_translation is not None:
        by_path[BACK_TRANSLATION] = []
    if settings.counterfactual is not None:
        by_path[COUNTERFACTUAL] = []
    for attempt in attempts:
        by_path[attempt.path].append(attempt)
    paths = {}
    for path, own in by_path.items():
        edits = [attempt.made.meta["edit"] for attempt in own if attempt.made is not None]
        refused = Counter(attempt.why for attempt in own if attempt.made is None)
        paths[path] = PathCounts(
            made=len(edits),
            refused=dict(refused.most_common()),
            edit=round(fmean(edits), 4) if edits else None,
        )
    drawn = max(map(len, by_path.values()), default=0)
    rows = sum(counts.made for counts in paths.values())
    return AugmentResult(target=target, drawn=drawn, rows=rows, paths=paths)
