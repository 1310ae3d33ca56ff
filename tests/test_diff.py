"""``diff`` tells in what two runs differ, and pairs their items where these are the same."""

from __future__ import annotations

import json
import shutil
import sys
from pathlib import Path

import pytest
from commands import type_in

from replaykit.steps.diff import diff, lines
from replaykit.steps.evaluate.skills import read_items
from replaykit.steps.evaluate.statistics import paired_drop

sys.path.insert(0, str(Path(__file__).parent))
import tiny

pytestmark = [pytest.mark.usefixtures("one_thread"), pytest.mark.slow]
STEPS = ("select", "mix", "train", "eval")


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """Two runs of the same data: a gentle one, and a hard one with more replay."""
    made = tiny.Run(tmp_path_factory.mktemp("runs"), generate=None)
    made.do(*STEPS)
    other = made.changed(
        out=made.path("other"),
        generate=None,
        mix={"ratio": 0.4},
        train={"steps": 8, "learning_rate": 3e-3},
    )
    tiny.done(other, *STEPS)
    return made.folder, other.folder


def test_settings_replay_rows_losses_and_seconds_are_told(runs: tuple[Path, Path]) -> None:
    found = diff(*runs)
    assert "mix.ratio was 0.2, is 0.4" in found.settings
    assert "train.learning_rate was 0.001, is 0.003" in found.settings
    assert found.files == found.steps == found.versions == []
    names = {figure.name: (figure.before, figure.now) for figure in found.figures}
    rows = [
        sum('"source": "select"' in line for line in (folder / "mix/rows.jsonl").open())
        for folder in runs
    ]
    assert names["mix: replay rows of select"] == tuple(rows)
    assert names["train: steps"] == (3, 8)
    assert "train: last loss" in names


def test_scores_are_paired_by_item(runs: tuple[Path, Path]) -> None:
    found = {(one.model, one.skill): one for one in diff(*runs).scores}
    skills = ["capital", "nll", "target"]
    assert {skill for _, skill in found} == set(skills)
    before, now = (
        [item.score for item in read_items(run / "eval/items-tuned.jsonl", skills)["capital"]]
        for run in runs
    )
    change = found["tuned", "capital"].change
    assert change == -paired_drop(before, now).rounded()  # type: ignore[arg-type]
    assert found["tuned", "capital"].items == len(before)
    base = found["base", "capital"].change
    assert base is not None
    assert base.mean == 0
    rise = found["tuned", "nll"]
    assert rise.unit == "nats"
    assert rise.before is not None and rise.now is not None and rise.change is not None
    assert rise.change.mean == pytest.approx(rise.now.mean - rise.before.mean, abs=1e-4)


def test_other_rows_and_lost_items_are_not_paired(runs: tuple[Path, Path], tmp_path: Path) -> None:
    first, second = runs
    copy = tmp_path / "copy"
    shutil.copytree(second, copy)
    path = copy / "eval/manifest.json"
    manifest = json.loads(path.read_text())
    manifest["inputs"]["eval"]["old"]["capital"]["content"] = "another"
    manifest["versions"]["torch"] = "0.1"
    path.write_text(json.dumps(manifest))
    found = diff(first, copy)
    assert [Path(name).name for name in found.files] == ["test-capital.jsonl"]
    changes = {one.skill: one.change for one in found.scores if one.model == "tuned"}
    assert changes["capital"] is None
    assert changes["nll"] is not None
    assert "torch" in [figure.name for figure in found.versions]
    (copy / "eval/items-tuned.jsonl").unlink()
    assert all(one.change is None for one in diff(first, copy).scores if one.model == "tuned")
    assert "not the same items" in "\n".join(lines(found))


def test_a_step_is_compared_with_the_arms_of_it(runs: tuple[Path, Path], tmp_path: Path) -> None:
    with_arms = tmp_path / "arms"
    shutil.copytree(runs[1], with_arms)
    for step in ("mix", "train"):
        shutil.copytree(with_arms / step, with_arms / f"{step}-no-replay")
        (with_arms / step).rename(with_arms / f"{step}-replay")
    found = diff(runs[0], with_arms)
    assert "train.learning_rate was 0.001, is 0.003" in found.settings
    names = {figure.name: (figure.before, figure.now) for figure in found.figures}
    for arm in ("replay", "no-replay"):
        assert names[f"train → train-{arm}: steps"] == (3, 8)
    assert f"train-replay is only in {with_arms}" in found.steps
    assert diff(with_arms, runs[0]).settings


def test_a_run_differs_from_itself_in_nothing(runs: tuple[Path, Path]) -> None:
    found = diff(runs[0], runs[0])
    assert found.settings == found.files == found.figures == found.steps == []
    assert all(one.change is not None and one.change.mean == 0 for one in found.scores)


def test_the_command_shows_it_and_writes_it(runs: tuple[Path, Path], here: Path) -> None:
    text = type_in("diff", *runs, "--out", "diff.json")
    for words in ("settings\n", "mix.ratio was 0.2, is 0.4", "tuned capital", "scores\n"):
        assert words in text
    assert json.loads(type_in("diff", *runs, "--json")) == json.loads(Path("diff.json").read_text())
    assert "nothing is finished here" in type_in("diff", runs[0], here, code=1)
    assert "name two folders" in type_in("diff", runs[0], code=1)
    Path("mine.json").write_text("{}")
    said = type_in("diff", *runs, "--out", "mine.json", code=1)
    assert "replaykit did not write it" in said
