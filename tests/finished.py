"""Steps that are finished without their work: the rows that a test gives them, and a result of their class."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from replaykit.checks.fidelity import RawSample
from replaykit.checks.funnel import FunnelCounts
from replaykit.data.jsonl import write_jsonl
from replaykit.data.record import Record
from replaykit.recipe.chat import ChatOptions
from replaykit.recipe.data import Data
from replaykit.recipe.generate import Generate
from replaykit.result import Result
from replaykit.runs import Step, write_json
from replaykit.steps.generate.result import GenerateResult
from replaykit.steps.inputs import row_facts
from replaykit.steps.rewrite.result import RewriteResult
from replaykit.steps.select.result import SelectResult
from replaykit.steps.step import label_of
from replaykit.steps.train.result import TrainResult


def selected(run: Path, records: Sequence[Record]) -> None:
    """The step select, which chose these rows."""
    result = SelectResult(
        n=len(records),
        rows=len(records),
        missing=0,
        method="random",
        pool="old.jsonl",
        scores=None,
        notes=[],
        funnel=all_kept(records),
        looked_at=len(records),
        ends_taken_off=0,
        decontamination=None,
    )
    _finish(run / "select", records, result)


def generated(run: Path, records: Sequence[Record]) -> None:
    """The step generate, in which the model wrote these rows."""
    result = GenerateResult(
        n=len(records),
        rows=len(records),
        kind="magpie",
        model="nano",
        revision=None,
        seed=1,
        sampling=Generate(),
        chat=ChatOptions(),
        pre_query=None,
        date=None,
        tokens={},
        funnel=all_kept(records),
        fidelity=RawSample().summary(),
        tags=None,
    )
    _finish(run / "generate", records, result)


def rewritten(run: Path, records: Sequence[Record], target: Data) -> None:
    """The step rewrite, which made these rows of the target."""
    result = RewriteResult(rows=len(records), paths={}, method="min-change", model="nano")
    _finish(run / "rewrite", records, result, target=row_facts(target))


def trained(run: Path, arm: str | None = None) -> None:
    """The step train of an arm, which left an empty model."""
    folder = run / label_of("train", arm)
    (folder / "model").mkdir(parents=True)
    result = TrainResult(
        steps=1,
        loss=0.0,
        losses=[],
        tokens=0,
        model=str(folder / "model"),
        base="nano",
        revision=None,
    )
    _finish(folder, [], result, arm=arm)


def all_kept(records: Sequence[Record]) -> FunnelCounts:
    return FunnelCounts(made=len(records), dropped={}, kept=len(records))


def _finish(
    folder: Path,
    records: Sequence[Record],
    result: Result,
    *,
    arm: str | None = None,
    **inputs: object,
) -> None:
    """Writes what a step leaves that had these inputs."""
    folder.mkdir(parents=True, exist_ok=True)
    write_jsonl(folder / "rows.jsonl", records)
    write_json(folder / "inputs.json", inputs)
    step = Step(folder.name.removesuffix(f"-{arm}"), folder, inputs, arm)
    step.finish(result)
