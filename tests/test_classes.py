"""Macro F1 and the recall of each label: scikit-learn's figures, with intervals."""

from __future__ import annotations

import json
import random

import numpy as np
import pytest
from sklearn.metrics import f1_score, recall_score

from replaykit.steps.evaluate.classes import with_classes
from replaykit.steps.evaluate.interval import Interval
from replaykit.steps.evaluate.result import ClassScores, ModelScores
from replaykit.steps.evaluate.skills import Item

LABELS = ["World", "Sports", "Business", "Tech"]


def classes(right: list[str], said: dict[str, list[str]]) -> dict[str, ClassScores]:
    """The figures of each model."""
    models = [ModelScores(model=name, scores={}, old=None, target=None) for name in said]
    items = {
        name: {
            "news": [
                Item("news", row, float(one == answer), answer=answer, label=one)
                for row, (one, answer) in enumerate(zip(right, of, strict=True))
            ]
        }
        for name, of in said.items()
    }
    return {model.model: model.classes["news"] for model in with_classes(models, items)}


def drawn(seed: int, n: int = 200) -> tuple[list[str], dict[str, list[str]]]:
    draw = random.Random(seed)
    right = draw.choices(LABELS, [8, 4, 2, 1], k=n)
    said = {
        name: [one if draw.random() < part else draw.choice([*LABELS, "other"]) for one in right]
        for name, part in {"base": 0.9, "tuned": 0.6}.items()
    }
    return right, said


@pytest.mark.parametrize("seed", range(3))
def test_of_one_label_the_figures_are_scikit_learns(seed: int) -> None:
    right, said = drawn(seed)
    found = classes(right, said)
    for name, answers in said.items():
        of = found[name]
        macro = f1_score(right, answers, labels=LABELS, average="macro", zero_division=0)
        assert of.macro_f1.mean == pytest.approx(macro, abs=1e-6)
        assert of.macro_f1.low < macro < of.macro_f1.high
        assert of.micro_f1 is None
        recalls = recall_score(right, answers, labels=LABELS, average=None, zero_division=0)
        for label, recall in zip(LABELS, recalls, strict=True):
            assert of.recall[label].mean == pytest.approx(recall, abs=1e-6)
        assert set(of.recall) == set(LABELS)
    drop = found["tuned"].macro_f1_drop
    assert drop is not None
    assert drop.mean == pytest.approx(
        found["base"].macro_f1.mean - found["tuned"].macro_f1.mean, abs=2e-6
    )
    assert drop.low > 0
    assert found["base"].macro_f1_drop is None
    assert found["base"].recall_drop == {}


def test_of_several_labels_the_figures_are_scikit_learns_too() -> None:
    draw = random.Random(5)
    right = [[name for name in LABELS if draw.random() < 0.4] for _ in range(150)]
    said = [
        [name for name in LABELS if (name in names) != (draw.random() < 0.2)] for names in right
    ]
    found = classes([json.dumps(one) for one in right], {"base": [json.dumps(one) for one in said]})
    truth = np.array([[name in names for name in LABELS] for names in right])
    given = np.array([[name in names for name in LABELS] for names in said])
    of = found["base"]
    assert of.macro_f1.mean == pytest.approx(f1_score(truth, given, average="macro"), abs=1e-6)
    assert of.micro_f1 is not None
    assert of.micro_f1.mean == pytest.approx(f1_score(truth, given, average="micro"), abs=1e-6)
    recalls = recall_score(truth, given, average=None)
    assert [of.recall[name].mean for name in LABELS] == pytest.approx(list(recalls), abs=1e-6)


def test_a_label_that_is_never_said_any_more_is_seen() -> None:
    right = ["World"] * 30 + ["Tech"] * 10
    said = {"base": right, "tuned": ["World"] * 40}
    of = classes(right, said)["tuned"]
    assert of.recall["Tech"].mean == 0
    assert of.recall_drop["Tech"].low > 0.5
    assert of.recall_drop["World"].mean == 0
    assert of.recall_drop["World"].high > 0  # no change among 30 rows is no proof
    assert list(of.figures) == ["macro F1", "recall of World", "recall of Tech"]


def test_rows_that_are_given_a_label_of_another_task_are_counted_by_themselves() -> None:
    right = ["World"] * 20 + ["Tech"] * 20
    said = {"base": right, "tuned": ["World"] * 10 + ["yes"] * 24 + ["maybe"] * 6}
    found = classes(right, said)
    assert found["base"].elsewhere is not None and found["base"].elsewhere.mean == 0
    assert found["base"].elsewhere_drop is None
    tuned = found["tuned"]
    assert tuned.elsewhere is not None and tuned.elsewhere.mean == 0.75
    assert tuned.elsewhere_drop is not None and tuned.elsewhere_drop.high < 0
    assert list(tuned.figures)[-1] == "label that no row has"


def test_without_such_a_label_nothing_is_said_of_it() -> None:
    right = ["World"] * 20 + ["Tech"] * 20
    assert classes(right, {"base": right, "tuned": ["World"] * 40})["tuned"].elsewhere is None


@pytest.mark.slow
def test_the_interval_of_macro_f1_holds_the_true_value_as_often_as_it_says() -> None:
    # Of a model that is right in 70 % of each label's rows and else says any other label.
    draw = random.Random(1)
    inside = 0
    for _ in range(60):
        right = [draw.choice(LABELS) for _ in range(150)]
        said = [
            one if draw.random() < 0.7 else draw.choice([x for x in LABELS if x != one])
            for one in right
        ]
        interval: Interval = classes(right, {"base": said})["base"].macro_f1
        inside += interval.low <= 0.7 <= interval.high
    assert inside >= 52


def test_where_all_resamples_agree_the_interval_is_that_of_accuracy() -> None:
    right = ["World", "Sports"] * 12
    found = classes(right, {"base": right, "tuned": ["other"] * 24})
    none = found["tuned"].macro_f1
    assert (none.mean, none.low) == (0, 0)
    assert none.high == pytest.approx(0.138, abs=1e-3)  # Wilson's, of 0 of 24
    whole = found["base"].macro_f1
    assert (whole.mean, whole.high) == (1, 1)
    assert whole.low == pytest.approx(1 - 0.138, abs=1e-3)
    drop = found["tuned"].macro_f1_drop
    assert drop is not None
    assert drop.mean == 1
    assert 0 < drop.low < 0.9
