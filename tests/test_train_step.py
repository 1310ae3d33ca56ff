"""The train step as it is typed: remedies by flag and by arm, old data for EWC, a controller, several processes."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from commands import type_in

from replaykit.data.jsonl import write_jsonl
from replaykit.data.planned import read_plan
from replaykit.data.record import Record, dialogue
from replaykit.model.chat import Chat, Example
from replaykit.nano import world
from replaykit.runs import Manifest, read_manifest
from replaykit.steps.train.result import TrainResult


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


def manifest(run: Path, step: str) -> Manifest:
    found = read_manifest(run / "runs/run" / step)
    assert found is not None
    return found


def result(run: Path, step: str) -> TrainResult:
    return TrainResult.model_validate(manifest(run, step).result)


@pytest.mark.slow
def test_flags_add_remedies_to_those_of_the_recipe(run: Path) -> None:
    type_in("select")
    type_in("mix")
    type_in("train", "--remedy", "distill", "--ewc-auto", 0.1)
    remedies = manifest(run, "train").inputs["train"]["remedies"]
    assert remedies["ewc"]["auto"] == 0.1
    assert remedies["distill"]["weight"] == 0.5
    assert {"distill/kl", "ewc/ratio"} <= result(run, "train").losses[-1].keys()


@pytest.mark.slow
def test_ewc_without_replay_needs_old_data_of_its_own(run: Path) -> None:
    type_in("mix", "--ratio", 0)
    said = type_in("train", "--remedy", "ewc", code=1)
    assert "train.remedies.ewc: it needs replay rows" in said
    assert "or name old data in train.remedies.ewc.old" in said
    assert not list((run / "runs/run/train").glob("checkpoint*"))
    change(run, train={"remedies": {"ewc": {"old": "old.jsonl", "rows": 8}}})
    type_in("train")
    ewc = manifest(run, "train").inputs["train"]["remedies"]["ewc"]
    assert ewc["old"]["path"] == "old.jsonl"
    assert result(run, "train").losses[-1]["ewc/penalty"] > 0


@pytest.mark.slow
@pytest.mark.parametrize(("keep", "named"), [(["~~~", "."], ["'~~~'"]), (["."], []), ([], [])])
def test_a_text_to_keep_that_no_answer_has_is_named(
    keep: list[str], named: list[str], run: Path
) -> None:
    stm = {"max_perplexity": None, "share": 0.5, "keep": keep}
    change(run, mix={"ratio": 0.0}, train={"steps": 1, "remedies": {"stm": stm}})
    type_in("mix")
    type_in("train")
    said = [note for note in result(run, "train").notes if "stm.keep: no answer has" in note]
    assert [note.split()[4].strip(",") for note in said] == named


@pytest.mark.slow
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
    assert manifest(run, "train-alone").inputs["train"]["remedies"]["stm"] is None
    weights = result(run, "train-masked").weights
    assert weights is not None
    assert weights.sources["target"].masked > 0.4
    assert weights.sources["target"].masked >= weights.sources["select"].masked


@pytest.mark.slow
def test_a_row_is_tokenised_once_and_the_chat_is_loaded_once_though_tokens_are_weighed(
    run: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    change(run, train={"remedies": {"stm": {}}, "epochs": 2})
    type_in("select")
    type_in("mix")
    tokenised: Counter[str] = Counter()
    loaded = []
    plain_example = Chat.example
    plain_load = Chat.load.__func__

    def example(self: Chat, record: Record) -> Example:
        tokenised[record.id] += 1
        return plain_example(self, record)

    def load(cls: type[Chat], *words: Any) -> Chat:
        loaded.append(words)
        return plain_load(cls, *words)

    monkeypatch.setattr(Chat, "example", example)
    monkeypatch.setattr(Chat, "load", classmethod(load))
    type_in("train")
    mixed = {row.record.id for row in read_plan(run / "runs/run/mix/rows.jsonl")}
    assert len(mixed) > 40
    assert tokenised == dict.fromkeys(mixed, 1)
    assert len(loaded) == 1


@pytest.mark.slow
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
    made = result(run, "train")
    assert made.events is not None
    assert [event.step for event in made.events] == list(range(2, made.steps + 1, 2))
    lines = (run / "runs/run/train/events.jsonl").read_text().splitlines()
    assert len(lines) == len(made.events)
    steered = "the controller of tuned decided by these tests"
    type_in("eval")
    assert any(note.startswith(steered) for note in manifest(run, "eval").result["notes"])
    change(run, eval={"old": {"capital": {"path": "test-capital.jsonl", "n": 6}}})
    type_in("eval")
    assert not any(note.startswith(steered) for note in manifest(run, "eval").result["notes"])


def test_a_schedule_beside_a_controller_is_refused(run: Path) -> None:
    change(run, mix={"schedule": {"to": 0.3}}, train={"controller": {}})
    assert "train.controller moves the share itself" in type_in("mix", code=1)


@pytest.mark.slow
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
        json.loads((run / name / "manifest.json").read_text())["result"]["losses"]
        for name in ("one", "two")
    ]
    assert [log["loss"] for log in curves[1]] == pytest.approx(
        [log["loss"] for log in curves[0]], abs=5e-5
    )
