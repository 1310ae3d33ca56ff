"""The benchmark of mathematics after NLI: its NLI is right by construction, its rows are the same each time, and in
miniature all of it runs and goes on."""

from __future__ import annotations

import importlib
import json
import os
import subprocess
import sys
from collections import Counter, defaultdict
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path
from random import Random
from typing import Any

import pytest

from replaykit.recipe import load_recipe
from replaykit.runs import read_manifest

HERE = Path(__file__).parents[1] / "benchmarks"
sys.path.insert(0, str(HERE))
synthetic_nli: Any = importlib.import_module("synthetic_nli")
benchmark: Any = importlib.import_module("mathematics_mnli")

pytestmark = pytest.mark.usefixtures("one_thread")


def follows(premise: str, hypothesis: str) -> int:
    """The label, read off the sentences in another way than they were made."""
    first, second = (text.rstrip(".").split() for text in (premise, hypothesis))
    if first[0] == "All":
        of = dict(
            pair for one, other in synthetic_nli.PROPERTIES for pair in ((one, 1), (other, 0))
        )
        both = [{one, other} for one, other in synthetic_nli.PROPERTIES]
        assert first[1] == second[1]
        if {first[3], second[3]} not in both and first[3] != second[3]:
            return 1
        holds = (of[first[3]] == of[second[3]]) == (second[0] == "Some")
        return 0 if holds else 2
    assert first[0] == second[0]
    pairs = [list(states.items()) for states in synthetic_nli.SPOKEN_OF.values()]
    states = {word: state for pair in pairs for state, words in pair for word in words}
    facts = {states[first[1]], states[first[-1]]}
    said = " ".join(second[1:])
    opposites = {one[0]: other[0] for pair in pairs for one, other in (pair, pair[::-1])}
    if said not in facts and opposites[said] not in facts:
        return 1
    return 0 if said in facts else 2


def test_every_label_is_what_follows_from_the_premise() -> None:
    found = synthetic_nli.items(3000, seed=1)
    assert all(follows(one["premise"], one["hypothesis"]) == one["label"] for one in found)
    counts = Counter(one["label"] for one in found)
    assert min(counts.values()) > 900


def test_no_hypothesis_tells_its_label_by_itself() -> None:
    labels: dict[str, Counter[int]] = defaultdict(Counter)
    for one in synthetic_nli.items(6000, seed=1):
        words = one["hypothesis"].split()
        # Without the name, which is drawn for itself.
        words.pop(1 if words[0] in ("Some", "No") else 0)
        labels[" ".join(words)][one["label"]] += 1
    assert len(labels) == 6 + 16
    best = sum(max(counts.values()) for counts in labels.values())
    assert best / 6000 < 0.4


def test_held_out_items_have_names_that_no_training_item_has() -> None:
    def names(rows: list[dict[str, Any]]) -> set[str]:
        words = [row["premise"].split() for row in rows]
        return {some[1].rstrip("s") if some[0] == "All" else some[0].lower() for some in words}

    held = synthetic_nli.items(300, seed=1, held_out=True)
    learned = synthetic_nli.items(3000, seed=1)
    assert not names(held) & names(learned)
    assert held == synthetic_nli.items(300, seed=1, held_out=True)
    assert held != synthetic_nli.items(300, seed=2, held_out=True)


@pytest.mark.skipif(
    find_spec("mathematics_dataset") is None, reason="mathematics_dataset is not installed"
)
@pytest.mark.slow
def test_mathematics_rows_are_the_same_each_time_and_skip_goes_on_in_them(tmp_path: Path) -> None:
    def drawn(name: str, *words: str) -> list[str]:
        script = [sys.executable, "-W", "ignore", str(HERE / "mathematics_rows.py")]
        # Without a fixed order of hashes the script fixes it.
        environment = {key: value for key, value in os.environ.items() if key != "PYTHONHASHSEED"}
        made = tmp_path / name
        subprocess.run([*script, *words, "--out", str(made)], check=True, env=environment)
        return made.read_text().splitlines()

    whole = drawn("whole", "--rows", "20")
    assert drawn("rest", "--rows", "15", "--skip", "5") == whole[5:]
    rows = [json.loads(line) for line in whole]
    assert {row["module"] for row in rows} == {"algebra__linear_1d"}
    assert all(row["question"].startswith("Solve") for row in rows)
    assert len({row["question"] for row in rows}) == 20


def mathematics(path: Path) -> Path:
    """Questions as the module numbers__place_value has them."""
    draw = Random(1)
    rows = []
    for number in draw.sample(range(100, 999), 120):
        place = draw.randrange(3)
        name = ("units", "tens", "hundreds")[place]
        answer = str(number)[2 - place]
        question = f"What is the {name} digit of {number}?"
        rows.append({"question": question, "answer": answer, "module": "numbers__place_value"})
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def test_the_benchmark_changes_nothing_of_the_recipe_that_makes_arms_unequal(
    tmp_path: Path,
) -> None:
    plain = load_recipe(benchmark.RECIPE)
    ratios = {name: arm.ratio for name, arm in plain.arms.items()}
    assert ratios == {
        "no-replay": 0,
        "15-to-1": 1 / 16,
        "7-to-1": 1 / 8,
        "3-to-1": 1 / 4,
        "1-to-1": 1 / 2,
    }
    assert plain.train.steps is not None
    assert plain.train.batch_rows % 16 == 0
    for size in (benchmark.FULL, benchmark.QUICK):
        changed = load_recipe(benchmark.RECIPE, benchmark.settings(tmp_path, size, 1))
        assert changed.arms == plain.arms
        assert changed.mix == plain.mix
        assert changed.train.batch_rows % 16 == 0


@pytest.mark.slow
def test_in_miniature_all_of_it_runs_with_equal_steps_and_goes_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    rows = mathematics(tmp_path / "mathematics.jsonl")
    words = ["--quick", "--seeds", "1", "--out", str(out), "--mathematics", str(rows)]
    monkeypatch.setattr(sys, "argv", ["mathematics_mnli.py", *words])
    benchmark.main()
    first = capsys.readouterr().out
    of_step = {"no-replay": 0, "15-to-1": 1, "7-to-1": 2, "3-to-1": 4, "1-to-1": 8}
    for arm, replay in of_step.items():
        mixed = read_manifest(out / f"seed-1/mix-{arm}")
        assert mixed is not None
        assert mixed.result["steps"] == 4
        assert mixed.result["replay_rows"] == 4 * replay
        assert mixed.result["target_rows"] == 4 * (16 - replay)
        assert f"| {arm} | {replay} of 16 |" in first
        assert f"| {arm} | 1 | " in first
    assert "it is not learned" in first
    # Nothing is done again.
    monkeypatch.setattr(benchmark, "train_base", None)
    made = {path: path.stat().st_mtime_ns for path in out.rglob("manifest.json")}
    benchmark.main()
    assert made.items() <= {path: path.stat().st_mtime_ns for path in made}.items()
    assert capsys.readouterr().out == first
    monkeypatch.setattr(sys, "argv", ["mathematics_mnli.py", *words, "--report"])
    benchmark.main()
    assert capsys.readouterr().out == first
    # A base that has learned nothing is no base.
    strict = replace(benchmark.QUICK, least=0.9)
    (out / "size.json").unlink()
    with pytest.raises(SystemExit, match="there is nothing to forget"):
        benchmark.run(out, strict, [1], None)
