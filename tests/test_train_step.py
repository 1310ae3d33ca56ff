"""The train step as it is typed: remedies by flag and by arm, old data for EWC, a controller, several processes."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from commands import type_in

from replaykit.nano import world
from replaykit.records import Record, dialogue, write_jsonl


def rows(tasks: list[world.Task], source: Any) -> list[Record]:
    return [
        Record(dialogue(task.prompt, task.answer), source, {"skill": task.skill}) for task in tasks
    ]


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A working directory with a target, old data, tests and a recipe whose pool is the old data."""
    monkeypatch.chdir(tmp_path)
    write_jsonl(tmp_path / "target.jsonl", rows(world.draw("referral", 48, seed=1), "target"))
    write_jsonl(tmp_path / "old.jsonl", rows(world.draw_old(60, seed=1), "select"))
    for skill in ("capital", "referral"):
        write_jsonl(
            tmp_path / f"test-{skill}.jsonl",
            rows(world.draw(skill, 8, seed=1, held_out=True), "target"),
        )
    settings = {"batch_rows": 8, "learning_rate": 1e-3, "log_every": 1}
    recipe: dict[str, Any] = {
        "name": "run", "model": "nano", "target": "target.jsonl",
        "select": {"pool": "old.jsonl", "n": 40, "method": "random", "near_duplicate": None},
        "mix": {"ratio": 0.1, "unit": "rows", "near_duplicate": None}, "train": settings,
        "eval": {"target": "test-referral.jsonl", "old": {"capital": "test-capital.jsonl"}},
    }  # fmt: skip
    (tmp_path / "replaykit.yaml").write_text(json.dumps(recipe))
    return tmp_path


def change(run: Path, **sections: Any) -> None:
    recipe = json.loads((run / "replaykit.yaml").read_text())
    for name, section in sections.items():
        recipe[name] = recipe.get(name, {}) | section
    (run / "replaykit.yaml").write_text(json.dumps(recipe))


def manifest(run: Path, step: str) -> dict[str, Any]:
    return dict(json.loads((run / "runs/run" / step / "manifest.json").read_text()))


def test_flags_add_remedies_to_those_of_the_recipe(run: Path) -> None:
    type_in("select")
    type_in("mix")
    type_in("train", "--remedy", "distill", "--ewc-auto", 0.1)
    made = manifest(run, "train")
    assert made["inputs"]["remedies"]["ewc"]["auto"] == 0.1
    assert made["inputs"]["remedies"]["distill"]["weight"] == 0.5
    assert {"distill/kl", "ewc/ratio"} <= made["losses"][-1].keys()


def test_ewc_without_replay_needs_old_data_of_its_own(run: Path) -> None:
    type_in("mix", "--ratio", 0)
    said = type_in("train", "--remedy", "ewc", code=1)
    assert "train.remedies.ewc: it needs replay rows" in said
    assert "or name old data in train.remedies.ewc.old" in said
    assert not list((run / "runs/run/train").glob("checkpoint*"))
    change(run, train={"remedies": {"ewc": {"old": "old.jsonl", "rows": 8}}})
    type_in("train")
    made = manifest(run, "train")
    assert made["inputs"]["old"]["path"] == "old.jsonl"
    assert made["losses"][-1]["ewc/penalty"] > 0


def test_each_arm_is_trained_by_its_own_remedies(run: Path) -> None:
    change(
        run,
        arms={
            "alone": {"ratio": 0.0},
            "masked": {"remedies": {"stm": {"max_perplexity": None, "share": 0.5}}},
        },
    )
    type_in("select")
    type_in("mix")
    type_in("train")
    assert manifest(run, "train-alone")["inputs"]["remedies"]["stm"] is None
    masked = manifest(run, "train-masked")
    assert masked["weights"]["sources"]["target"]["masked"] > 0.4
    assert (
        masked["weights"]["sources"]["target"]["masked"]
        >= masked["weights"]["sources"]["select"]["masked"]
    )


def test_a_controller_writes_its_decisions_and_draws_from_all_replay(run: Path) -> None:
    change(
        run,
        train={
            "learning_rate": 5e-3,
            "controller": {"every": 2, "max_drop": 0.01, "patience": None},
        },
    )
    type_in("select")
    type_in("mix")
    assert len((run / "runs/run/mix/replay.jsonl").read_text().splitlines()) == 40
    type_in("train")
    made = manifest(run, "train")
    assert [event["step"] for event in made["events"]] == list(range(2, made["steps"] + 1, 2))
    assert len((run / "runs/run/train/events.jsonl").read_text().splitlines()) == len(
        made["events"]
    )


def test_a_schedule_beside_a_controller_is_refused(run: Path) -> None:
    change(run, mix={"schedule": {"to": 0.3}}, train={"controller": {}})
    assert "train.controller moves the share itself" in type_in("mix", code=1)


def test_two_processes_of_torchrun_train_as_one_does_and_the_first_writes(run: Path) -> None:
    type_in("select")
    type_in("mix")
    type_in("train", "--out", "one")
    command = [
        sys.executable,
        "-m",
        "torch.distributed.run",
        "--standalone",
        "--nproc_per_node",
        "2",
        "-m",
        "replaykit",
    ]
    for _ in range(2):  # the second time it is finished, and both processes see that
        done = subprocess.run(
            [*command, "train", "--out", "two"],
            cwd=run,
            capture_output=True,
            text=True,
            env=os.environ | {"OMP_NUM_THREADS": "1"},
        )
        assert done.returncode == 0, done.stderr[-3000:]
    curves = [
        json.loads((run / name / "manifest.json").read_text())["losses"] for name in ("one", "two")
    ]
    assert [log["loss"] for log in curves[1]] == pytest.approx(
        [log["loss"] for log in curves[0]], abs=5e-5
    )
