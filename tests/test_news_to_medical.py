"""The benchmark of news and medical papers in miniature: every arm, its table, and its recipe."""

from __future__ import annotations

import gzip
import importlib
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import labelled
import pytest

from replaykit.recipe import Recipe, load_recipe
from replaykit.recipe.train import Train
from replaykit.steps.evaluate.statistics import paired_drop

HERE = Path(__file__).parents[1] / "benchmarks"
sys.path.insert(0, str(HERE))  # its files import one another
benchmark = importlib.import_module("news_to_medical")
tables = importlib.import_module("news_to_medical_report")


def write_rows(path: Path, rows: Sequence[dict[str, Any]]) -> None:
    with gzip.open(path, "wt", encoding="utf-8") as stream:
        stream.writelines(json.dumps(row) + "\n" for row in rows)


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A few rows in the form of both data sets."""
    folder = tmp_path_factory.mktemp("data")
    topics = list(labelled.TOPICS)
    news = [
        {"label": topics.index(row["label"]) + 1, "title": "News", "text": row["text"]}
        for row in labelled.texts(labelled.TOPICS, 160)
    ]
    medical = [
        {"question": "Does it help?", "long_answer": row["text"], "final_decision": row["label"]}
        for row in labelled.texts(labelled.FINDINGS, 64)
    ]
    write_rows(folder / "ag_news_test.jsonl.gz", news)
    write_rows(folder / "pubmedqa.jsonl.gz", medical)
    return folder


def run(out: Path, data: Path, *words: str) -> None:
    with pytest.MonkeyPatch.context() as patch:
        given = ["--quick", "--seeds", "1", "2", "--out", str(out), "--data", str(data)]
        patch.setattr(sys, "argv", ["news_to_medical.py", *given, *words])
        benchmark.main()


@pytest.fixture(scope="module")
def out(tmp_path_factory: pytest.TempPathFactory, data: Path) -> Path:
    folder = tmp_path_factory.mktemp("quick")
    run(folder, data)
    return folder


@pytest.mark.slow
def test_every_arm_has_as_many_steps_of_as_many_rows(out: Path) -> None:
    rows = load_recipe(benchmark.RECIPE).train.batch_rows
    for name, arm in benchmark.ARMS.items():
        for seed in (1, 2):
            place = tables.unit_file(out, name, seed)
            unit = tables.ArmUnit.model_validate_json(place.read_text())
            assert unit.steps == benchmark.QUICK.steps
            assert unit.target + unit.replay == unit.steps * rows
            assert (unit.replay > 0) is (arm.rows is not None)
            assert bool(unit.ratios) is arm.controller
            assert len(unit.head.right[tables.OLD]) == benchmark.QUICK.tested


@pytest.mark.slow
def test_the_table_has_every_arm_with_its_intervals_and_says_where_it_was_made(out: Path) -> None:
    lines = (out / "news_to_medical.md").read_text().splitlines()
    assert "2 seeds" in lines[0]
    assert "CPUs" in lines[2] and "torch" in lines[2]
    rows = [line.split(" | ") for line in lines if line.startswith("| ")]
    for arm in benchmark.ARMS.values():
        scores, *drops = (row for row in rows if row[0] == f"| {arm.title}")
        assert len(scores) == 9
        assert all("±" in cell for cell in scores[1:7])
        assert len(drops) == 2 and all("(" in cell for drop in drops for cell in drop[1:3])
    assert sum(" against " in row[0] for row in rows) == len(tables.PAIRS)


@pytest.mark.slow
def test_finished_units_are_not_done_again(
    out: Path, data: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for work in ("make_base", "train_arm"):
        monkeypatch.setattr(benchmark, work, lambda *_: pytest.fail("something was trained"))
    before = {path: path.stat().st_mtime_ns for path in out.glob("*.json")}
    assert len(before) == 1 + 2 * len(benchmark.ARMS)
    run(out, data)
    assert {path: path.stat().st_mtime_ns for path in out.glob("*.json")} == before


def recipes() -> tuple[Recipe, Recipe]:
    return load_recipe(benchmark.RECIPE.parent / "news.yaml"), load_recipe(benchmark.RECIPE)


def test_the_recipes_take_the_rows_that_the_benchmark_takes() -> None:
    news, medical = recipes()
    size = benchmark.FULL
    assert news.target is not None and medical.target is not None and medical.select is not None
    assert news.target.n == medical.select.pool.n == size.learned
    assert medical.select.n == size.learned // 10
    assert medical.target.n == size.medical
    for test in (news.eval.target, medical.eval.old[tables.OLD]):
        assert test is not None
        assert (test.skip, test.n) == (size.learned + size.watched, size.tested)
    assert medical.eval.target is not None
    assert medical.eval.target.skip == size.medical
    assert tuple(news.classification.labels) == benchmark.TOPICS
    assert tuple(medical.classification.labels) == benchmark.DECISIONS


def test_all_of_it_is_trained_as_the_recipe_says_and_plain_has_none_of_it() -> None:
    _, medical = recipes()
    size = benchmark.FULL
    old = Path("old.jsonl")

    def settings(name: str) -> Train:
        return Train.model_validate(benchmark.settings_of(benchmark.ARMS[name], size, old))

    wanted = medical.train
    every = settings("all")
    for key in ("layer_rates", "learning_rate", "schedule", "min_rate", "remedies"):
        assert getattr(every, key) == getattr(wanted, key), key
    assert wanted.controller is not None
    assert every.controller == wanted.controller.model_copy(update={"every": size.watch_every})
    plain = settings("plain")
    assert plain == Train(learning_rate=5e-4, schedule="constant")
    parts = {
        "ewc": {"remedies"},
        "layer-rates": {"layer_rates", "learning_rate"},
        "cosine": {"schedule", "min_rate"},
        "controller": {"controller"},
    }
    for name, keys in parts.items():
        found = settings(name).model_dump()
        assert {key for key, value in plain.model_dump().items() if found[key] != value} == keys


@pytest.mark.parametrize(
    ("gained", "clear"),
    [((30, 34, 32), True), ((-30, -34, -32), True), ((30, 34, 2), False), ((30, -30, 1), False)],
)
def test_arms_differ_only_where_the_seeds_and_the_rows_of_each_show_it(
    gained: tuple[int, ...], clear: bool
) -> None:
    by_items = []
    for more in gained:
        first = [1.0] * (50 + more) + [0.0] * (50 - more)
        by_items.append(paired_drop(first, [1.0] * 50 + [0.0] * 50))
    found = tables.Differences([each.mean for each in by_items], by_items)
    assert found.clear is clear


def test_one_seed_shows_no_difference() -> None:
    found = paired_drop([1.0] * 100, [0.0] * 100)
    assert not tables.Differences([found.mean], [found]).clear
