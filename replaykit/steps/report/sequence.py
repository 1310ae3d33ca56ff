"""Several tasks in a row, in words.

    After 3 of 3 tasks the average accuracy is 0.91 (0.86–0.95). Earlier tasks were partly
    forgotten: backward transfer (GEM) −0.08 (−0.14 to −0.03); the most was lost of sums, 0.12
    (0.03–0.22).

As in ``verdict``, every phrase follows from 95 % intervals.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from replaykit.result import Result
from replaykit.steps.buffer.result import Answered, BufferResult
from replaykit.steps.evaluate.interval import Interval
from replaykit.steps.matrix.result import MatrixResult
from replaykit.steps.report.numbers import interval, mean


def last_matrix(results: Iterable[Result]) -> MatrixResult | None:
    """The matrix after the most stages; None where there is none."""
    found = [result for result in results if isinstance(result, MatrixResult)]
    return max(found, key=lambda matrix: len(matrix.rows), default=None)


def estimate(found: Interval) -> str:
    """``−0.08 (−0.14 to −0.03)``."""
    return f"{mean(found)} ({interval(found)})"


def tasks_verdict(matrix: MatrixResult) -> str:
    """How well the tasks are known after the last stage, and what was lost of the earlier ones."""
    said = (
        f"After {len(matrix.learned)} of {len(matrix.tasks)} tasks the average accuracy is "
        f"{estimate(matrix.average_accuracy)}."
    )
    gem = matrix.backward_transfer_gem
    worst = matrix.worst_forgetting
    if gem is None or worst is None:
        return said
    what = "No loss of earlier tasks is measurable"
    if gem.high < 0:
        what = "Earlier tasks were partly forgotten"
    elif gem.low > 0:
        what = "Earlier tasks are known better than when they were learned"
    most = ""
    if worst.forgetting.mean > 0:
        most = f"; the most was lost of {worst.task}, {estimate(worst.forgetting)}"
    return f"{said} {what}: backward transfer (GEM) {estimate(gem)}{most}."


def old_verdict(matrix: MatrixResult) -> str:
    """What became of the base's own skills; "" where it has none."""
    if not matrix.old_claims:
        return ""
    before = matrix.rows[0].old
    now = matrix.rows[-1].old
    drop = matrix.rows[-1].old_drop
    shown = ""
    if before is not None and now is not None and drop is not None:
        shown = f": from {mean(before)} to {mean(now)}, a drop of {estimate(drop)}"
    lost = [name for name, claim in matrix.old_claims.items() if claim.state == "lost"]
    if lost:
        return f"Of the base's old skills something is lost of {', '.join(lost)}{shown}."
    if drop is not None and drop.low > 0:
        return f"The base's old skills fell{shown}."
    if matrix.old_state == "kept":
        return f"The base's old skills are kept{shown}."
    return f"No drop of the base's old skills is measurable{shown}; more test rows would tell."


def buffer_rows(result: BufferResult) -> Iterator[tuple[str, str]]:
    """What a buffer holds, as names and values."""
    limit = f"{result.limit:,} {result.unit}"
    yield "buffer", f"{result.method}, {limit} at most"
    yield "holds", f"{result.rows:,} rows, {result.bytes:,} bytes"
    yield "tasks", ", ".join(f"{task} {rows:,}" for task, rows in result.tasks.items())
    if result.too_large:
        yield "left out", f"{result.too_large:,} rows that are larger than the whole buffer"
    if result.answers is not None:
        yield "answers", answers_in_words(result.answers)


def answers_in_words(answers: Answered) -> str:
    """``412 of 500 new answers are right and replace the old ones (300 say the same); ...``."""
    said = (
        f"{answers.replaced:,} of {answers.asked:,} new answers are right and are replayed "
        f"({answers.same:,} say the same as the old ones)"
    )
    kept = ", ".join(f"{reason} {rows:,}" for reason, rows in answers.kept.items())
    if kept:
        said += f"; the old ones stay where they are {kept}"
    if answers.no_room:
        said += f"; {answers.no_room:,} rows are left out, since new answers take their bytes"
    return said
