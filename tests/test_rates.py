"""How many answers decline or repeat themselves, under each model."""

from __future__ import annotations

import io
from pathlib import Path

from rich.console import Console

from replaykit.recipe.evaluate import Test as Scored
from replaykit.runs import Manifest
from replaykit.steps.evaluate.compare import compare
from replaykit.steps.evaluate.result import EvalResult
from replaykit.steps.evaluate.skills import Item
from replaykit.steps.report.html import write_report
from replaykit.steps.report.terminal import show

NO = "I'm sorry, but I can't help with that."
AGAIN = "It is so. " * 20
YES = "It is 4."


def told(base: list[str], tuned: list[str]) -> EvalResult:
    items = {
        name: {
            "sums": [
                Item("sums", row, float(answer == YES), answer=answer, finish="stop", strict=0.0)
                for row, answer in enumerate(answers)
            ]
        }
        for name, answers in (("base", base), ("tuned", tuned))
    }
    return compare({"sums": Scored(path="sums.jsonl")}, items, {})


def shown(result: EvalResult) -> str:
    stream = io.StringIO()
    show("eval", result, Console(file=stream, width=120))
    return stream.getvalue()


def page(result: EvalResult, folder: Path) -> str:
    made = Manifest(
        step="eval", arm=None, result=result.to_json(), inputs={}, seconds=None,
        finished="2025-06-03T14:04:00+00:00", versions={}, machine="",
    )  # fmt: skip
    path = write_report(folder / "r.html", title="t", manifests={"eval": made}, recipe_yaml="")
    return path.read_text(encoding="utf-8")


def test_a_model_that_has_begun_to_decline_is_shown(tmp_path: Path) -> None:
    result = told([YES] * 38 + [NO] * 2, [YES] * 20 + [NO] * 20)
    base, tuned = result.models
    assert base.rates["sums"]["declines"].rate.mean == 0.05
    assert base.rates["sums"]["declines"].drop is None
    found = tuned.rates["sums"]["declines"]
    assert found.rate.mean == 0.5
    assert found.drop is not None
    assert found.drop.mean == -0.45
    assert found.drop.high < 0
    assert set(tuned.rates["sums"]) == {"declines"}
    assert "sums declines" in shown(result)
    assert "+0.45*" in shown(result)
    html = page(result, tmp_path)
    assert "<h2>Answers that decline or repeat themselves</h2>" in html
    assert "decline to help<small>sums</small>" in html
    assert "<b>rise 0.45</b>" in html


def test_a_model_that_has_stopped_repeating_itself_is_shown(tmp_path: Path) -> None:
    result = told([YES] * 20 + [AGAIN] * 20, [YES] * 40)
    assert result.changed_rates == [("sums", "repeats")]
    assert "−0.50*" in shown(result)
    assert "<b>fall 0.50</b>" in page(result, tmp_path)


def test_what_has_not_changed_measurably_is_counted_and_not_shown(tmp_path: Path) -> None:
    result = told([YES] * 39 + [NO], [YES] * 38 + [NO] * 2)
    assert result.models[1].rates["sums"]["declines"].rate.mean == 0.05
    assert result.changed_rates == []
    assert "decline or repeat" not in shown(result) + page(result, tmp_path)


def test_nothing_is_counted_where_nobody_declines_or_answers_are_few() -> None:
    assert told([YES] * 40, [YES] * 40).models[1].rates == {}
    assert told([YES] * 10, [NO] * 10).models[1].rates == {}
