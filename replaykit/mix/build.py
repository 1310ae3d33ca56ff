"""The mixture: target and replay rows, measured in tokens, checked, planned, and written in training order."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from replaykit.chat import Chat
from replaykit.checks.funnel import Funnel
from replaykit.errors import ChatError
from replaykit.mix.plan import TARGET, Slot, plan, shares
from replaykit.recipe import Mix, Train
from replaykit.records import Record
from replaykit.runs import Watch, unwatched
from replaykit.text import normalise


@dataclass(frozen=True)
class Mixture:
    """The usable rows of every source, what each weighs in loss tokens, tokens and rows, and the slots of every step."""

    rows: Mapping[str, Sequence[Record]]
    sizes: Mapping[str, Mapping[str, Sequence[int]]]  # unit -> source -> size of each row
    steps: Sequence[Sequence[Slot]]

    def lines(self) -> Iterator[dict[str, Any]]:
        """The records in training order, each with the optimiser step that it belongs to."""
        for step, slots in enumerate(self.steps):
            for slot in slots:
                yield {"step": step, **self.rows[slot.source][slot.row].to_json()}

    def summary(self, requested: float, unit: str) -> dict[str, Any]:
        """What was asked for and what came out; ``repeats`` is how often a row of each source comes, on average."""
        slots = [slot for step in self.steps for slot in step]
        used = {source: sum(slot.source == source for slot in slots) for source in self.rows}
        return {
            "requested": requested,
            "unit": unit,
            "share": {unit: round(shares(slots, sizes), 6) for unit, sizes in self.sizes.items()},
            "steps": len(self.steps),
            "target_rows": used[TARGET],
            "replay_rows": len(slots) - used[TARGET],
            "available": {source: len(rows) for source, rows in self.rows.items()},
            "repeats": {source: round(used[source] / len(rows), 4) for source, rows in self.rows.items() if rows},
        }


def mix(
    target: Sequence[Record],
    replay: Mapping[str, Sequence[Record]],
    *,
    chat: Chat,
    settings: Mix,
    train: Train,
    seed: int,
    held_out: Collection[str] = (),
    funnel: Funnel | None = None,
    watch: Watch = unwatched,
) -> Mixture:
    """The mixture of target and replay at ``settings.ratio``; see ``plan`` for what is exact.

    Dropped, with the reason in ``funnel``: any row that has no answer or is longer than ``train.max_tokens``; a replay row
    that the chat template refuses, or whose prompt is a target prompt, the prompt of an earlier kept replay row, or one of
    the ``held_out`` prompts of the evaluation.
    """
    funnel = Funnel() if funnel is None else funnel
    seen = {normalise(record.prompt) for record in target if record.prompt}
    tested = {normalise(prompt) for prompt in held_out}
    rows: dict[str, list[Record]] = {}
    sizes: dict[str, dict[str, list[int]]] = {unit: {} for unit in ("loss_tokens", "tokens", "rows")}
    for source, records in {TARGET: target, **replay}.items():
        rows[source] = []
        for by_source in sizes.values():
            by_source[source] = []
        for number, record in enumerate(records, 1):
            watch(f"read {source}", number, len(records))
            reason = None if source == TARGET else _known(record, seen, tested)
            try:
                example = None if reason else chat.example(record)
            except ChatError:
                if source == TARGET:
                    raise
                example, reason = None, "template_refuses"
            if example is not None and not example.loss_tokens:
                reason = "no_answer"
            if example is not None and len(example.tokens) > train.max_tokens:
                reason = "too_long"
            if funnel.passes(record, reason) and example is not None:
                rows[source].append(record)
                seen.add(normalise(record.prompt))
                for unit, size in (("loss_tokens", example.loss_tokens), ("tokens", len(example.tokens)), ("rows", 1)):
                    sizes[unit][source].append(size)
    measured = sizes[settings.unit]
    steps = plan(
        measured[TARGET],
        {source: measured[source] for source in replay},
        ratio=settings.ratio,
        batch_rows=train.batch_rows,
        epochs=train.epochs,
        steps=train.steps,
        seed=seed,
    )
    return Mixture(rows, sizes, steps)


def _known(record: Record, seen: set[str], tested: set[str]) -> str | None:
    """Why a replay row would say nothing new, or would give a test item away; else None. A plain text has no prompt."""
    key = normalise(record.prompt)
    if not key:
        return None
    if key in tested:
        return "held_out"
    return "duplicate" if key in seen else None
