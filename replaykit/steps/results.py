"""The class of each step's result. A manifest holds the result as plain JSON; this makes it typed
again.

    result_of(manifest, folder)  ->  SelectResult(n=60, rows=60, method="tfidf", ...)
"""

from __future__ import annotations

from pathlib import Path

from replaykit.errors import RunError
from replaykit.result import Result
from replaykit.runs import Manifest
from replaykit.steps.augment.result import AugmentResult
from replaykit.steps.buffer.result import BufferResult
from replaykit.steps.describe.result import DescribeResult
from replaykit.steps.evaluate.result import EvalResult
from replaykit.steps.generate.result import GenerateResult
from replaykit.steps.matrix.result import MatrixResult
from replaykit.steps.merge.result import MergeResult
from replaykit.steps.mix.result import MixResult
from replaykit.steps.probe.result import ProbeResult
from replaykit.steps.repair.result import RepairResult
from replaykit.steps.rewrite.result import RewriteResult
from replaykit.steps.score.result import ScoreResult
from replaykit.steps.select.result import SelectResult
from replaykit.steps.step import typed
from replaykit.steps.swept import AdviseResult, SweepResult
from replaykit.steps.train.result import TrainResult

# By ``Manifest.step``. The steps report and push leave no manifest.
RESULTS: dict[str, type[Result]] = {
    "probe": ProbeResult,
    "memory": GenerateResult,
    "select": SelectResult,
    "generate": GenerateResult,
    "rewrite": RewriteResult,
    "augment": AugmentResult,
    "describe": DescribeResult,
    "buffer": BufferResult,
    "mix": MixResult,
    "score": ScoreResult,
    "train": TrainResult,
    "merge": MergeResult,
    "repair": RepairResult,
    "eval": EvalResult,
    "matrix": MatrixResult,
    "sweep": SweepResult,
    "advise": AdviseResult,
}


def result_of(manifest: Manifest, folder: Path) -> Result:
    """The result of the finished step in a folder.

    Raises RunError where another version of replaykit wrote it, or a step that this one lacks.
    """
    if manifest.step not in RESULTS:
        raise RunError(f"{folder}: this version of replaykit has no step {manifest.step}")
    return typed(manifest, RESULTS[manifest.step], folder)
