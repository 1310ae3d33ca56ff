"""What a run cost and what it was made of: seconds, rows, tokens by step, hashes of what was read.

cost(manifest, result)   ->  Cost(seconds=71.3, rows=40, tokens=1235)
hashes(manifests)        ->  {"target.jsonl": "a7095159f1af297a", "nano": "8c31471f817893f2"}
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from replaykit.result import Result
from replaykit.runs import HASHES, Manifest
from replaykit.steps.augment.result import AugmentResult
from replaykit.steps.buffer.result import BufferResult
from replaykit.steps.describe.result import DescribeResult
from replaykit.steps.evaluate.result import EvalResult
from replaykit.steps.generate.result import GenerateResult
from replaykit.steps.mix.result import MixResult
from replaykit.steps.public.settings import named
from replaykit.steps.rewrite.result import RewriteResult
from replaykit.steps.score.result import ScoreResult
from replaykit.steps.select.result import SelectResult
from replaykit.steps.train.result import TrainResult

HOUR = 3600  # seconds


@dataclass(frozen=True)
class Cost:
    """Of one step. None is what is not known."""

    seconds: float | None
    rows: int | None
    """That the step read, made or scored; of an evaluation the items under all models."""
    tokens: int | None
    """That a model wrote, or was trained on."""

    @property
    def words(self) -> str:
        """``71.3 s, 40 rows (0.56 a second), 1,235 tokens``; "" for what is not known."""
        said = []
        if self.seconds is not None:
            said.append(f"{self.seconds:,.1f} s")
        if self.rows is not None:
            speed = f" ({_round(self.rows / self.seconds)} a second)" if self.seconds else ""
            said.append(f"{self.rows:,} rows{speed}")
        if self.tokens is not None:
            said.append(f"{self.tokens:,} tokens")
        return ", ".join(said)


def _round(speed: float) -> str:
    """``0.56``, ``55``, ``1,200``."""
    return f"{speed:,.0f}" if speed >= 100 else f"{speed:.3g}"


def cost(manifest: Manifest, result: Result) -> Cost:
    """What a step cost."""
    rows: int | None = None
    tokens: int | None = None
    match result:
        case SelectResult():
            rows = result.funnel.made
        case GenerateResult():
            rows = result.funnel.made
            tokens = sum(result.tokens.values())
        case MixResult():
            rows = result.target_rows + result.replay_rows
        case TrainResult():
            tokens = result.tokens
        case EvalResult():
            rows = len(result.models) * sum(skill.n for skill in result.skills)
        case RewriteResult() | AugmentResult() | DescribeResult() | ScoreResult() | BufferResult():
            rows = result.rows
    return Cost(manifest.seconds, rows, tokens)


def money(seconds: float, per_hour: float) -> str:
    """What so many seconds of one device cost, in the unit of the price."""
    return f"{seconds / HOUR * per_hour:,.2f} at {per_hour:,.2f} an hour"


def hashes(manifests: Mapping[str, Manifest]) -> dict[str, str]:
    """The hash of each file, folder and model that the steps of a run read, by its name without its
    path; what an earlier step made is left out. ``manifests`` are by folder name.
    """
    found: dict[str, str] = {}
    for manifest in manifests.values():
        for name, value in _hashed(manifest.inputs):
            if name.split("/")[0] not in manifests:
                found.setdefault(named(name), value)
    return found


def _hashed(value: Any) -> Iterator[tuple[str, str]]:
    """What is named and hashed in a step's inputs."""
    if isinstance(value, Mapping):
        for key, by in HASHES.items():
            if isinstance(value.get(key), str) and isinstance(value.get(by), str):
                yield value[by], value[key]
        for inner in value.values():
            yield from _hashed(inner)
    elif isinstance(value, list):
        for inner in value:
            yield from _hashed(inner)


def seeds(manifests: Iterable[Manifest]) -> list[int]:
    """The seeds that the steps drew by."""
    return sorted({manifest.inputs["seed"] for manifest in manifests if "seed" in manifest.inputs})
