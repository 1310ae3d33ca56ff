"""Old records near the target: what a new task overwrites first is what looks most like it.

select(pool, target, n=2000)  ->  2000 records, nearest first, each with its score, rank and nearest target record
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import replace

import numpy as np

from replaykit.checks.funnel import Funnel
from replaykit.errors import DataError
from replaykit.records import Record
from replaykit.text import nearest, normalise


def select(pool: Iterable[Record], target: Sequence[Record], *, n: int, funnel: Funnel | None = None) -> list[Record]:
    """The n pool records whose prompts are nearest to the target prompts, nearest first.

    Nearness is the best cosine over the target, of TF-IDF vectors fitted on the pool (``text.nearest``); ties go to the
    earlier record. A record with an empty answer, a second record with the same normalised prompt, and one that is a
    target prompt are dropped first, with the reason in ``funnel``. A pool that has fewer than n is taken whole.
    Raises DataError for an empty pool or an empty target.
    """
    funnel = Funnel() if funnel is None else funnel
    if not target:
        raise DataError("the target is empty: there is nothing for old data to be near to")
    seen = {normalise(question(record)) for record in target}
    kept: list[Record] = []
    for record in pool:
        key = normalise(question(record))
        reason = "empty" if not _answered(record) else "duplicate" if key in seen else None
        if funnel.passes(record, reason):
            seen.add(key)
            kept.append(record)
    if not kept:
        raise DataError(f"the pool has no record to select from ({funnel})")
    near = nearest([question(record) for record in kept], [question(record) for record in target])
    order = np.argsort(-near.scores, kind="stable")[:n]
    for place in sorted(set(range(len(kept))) - set(order.tolist())):
        funnel.reject(kept[place], "far")
    return [
        replace(
            kept[place],
            source="select",
            meta=dict(kept[place].meta)
            | {"rank": rank, "score": round(float(near.scores[place]), 6), "nearest": target[near.queries[place]].id},
        )
        for rank, place in enumerate(order.tolist(), 1)
    ]


def question(record: Record) -> str:
    """What a record is compared by: its last question, or a plain text itself."""
    return record.prompt or record.messages[-1]["content"]


def _answered(record: Record) -> bool:
    return bool(record.messages[-1]["content"].strip()) and record.messages[-1]["role"] != "user"
