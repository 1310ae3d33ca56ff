"""Two processes that share the weights out (FSDP2, over gloo) against one that has them whole."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from commands import two_ranks

from replaykit.data.jsonl import write_jsonl
from replaykit.data.planned import PlannedRow
from replaykit.data.record import Record, dialogue
from replaykit.errors import RecipeError
from replaykit.model import loading
from replaykit.model.chat import Chat
from replaykit.nano import world
from replaykit.recipe.train import Train
from replaykit.steps.train.fit import Base, fit
from replaykit.steps.train.result import TrainResult

pytestmark = pytest.mark.slow

PLAIN = {
    "batch_rows": 8,
    "learning_rate": 5e-4,
    "log_every": 1,
    "warmup": 0.0,
    "micro_batch_rows": 2,
}
ALIKE: dict[str, dict[str, Any]] = {
    "plain": {},
    "layer rates, frozen embeddings": {
        "learning_rate": None,
        "layer_rates": {"bottom": 1e-5, "top": 1e-3},
        "freeze": ["embeddings"],
    },
    "ewc": {"remedies": {"ewc": {"rows": 4, "strength": 10.0}}},
    "ewc, auto, and ema": {"remedies": {"ewc": {"rows": 4, "auto": 0.1}, "ema": {"decay": 0.8}}},
    "l2sp and distill": {"remedies": {"l2sp": {"strength": 10.0}, "distill": {"layers": [-1]}}},
}


def mixture() -> list[Record]:
    """24 rows, a quarter of them replay."""
    new = [
        Record(dialogue(t.prompt, t.answer), "target") for t in world.draw("referral", 18, seed=1)
    ]
    old = [Record(dialogue(t.prompt, t.answer), "generate") for t in world.draw_old(6, seed=1)]
    return [old[k // 4] if k % 4 == 0 else new[k - k // 4 - 1] for k in range(24)]


def processes(folder: Path, *words: str, code: int = 0) -> None:
    """Two of torchrun, in a folder with the mixture and the settings."""
    done = two_ranks(folder, *words)
    assert (done.returncode == 0) == (code == 0), done.stderr[-3000:]


def prepared(folder: Path, **changes: Any) -> Path:
    folder.mkdir()
    write_jsonl(folder / "mixture.jsonl", mixture())
    (folder / "settings.json").write_text(json.dumps(PLAIN | {"fsdp": True} | changes))
    return folder


def losses(folder: Path) -> list[dict[str, float]]:
    found: list[dict[str, float]] = json.loads((folder / "rank-0.json").read_text())["losses"]
    return found


def weights(folder: Path) -> dict[str, torch.Tensor]:
    network = loading.load_model(str(folder / "train" / "model"))
    return dict(network.named_parameters())


def alone(folder: Path, chat: Chat, **changes: Any) -> TrainResult:
    rows = [PlannedRow(k // 8, record) for k, record in enumerate(mixture())]
    settings = Train.model_validate(PLAIN | changes)
    return fit(rows, Base("nano", chat), settings, seed=1, folder=folder / "train")


@pytest.mark.parametrize("name", ALIKE)
def test_two_processes_learn_what_one_does(name: str, chat: Chat, tmp_path: Path) -> None:
    one = alone(tmp_path / "one", chat, **ALIKE[name])
    two = prepared(tmp_path / "two", **ALIKE[name])
    processes(two)
    for ours, theirs in zip(losses(two), one.losses, strict=True):
        assert ours.keys() == theirs.keys()
        for key in ours:
            assert ours[key] == pytest.approx(theirs[key], rel=1e-4, abs=1e-5), key
    for key, values in weights(tmp_path / "one").items():
        torch.testing.assert_close(weights(two)[key], values, rtol=1e-3, atol=1e-5)


@pytest.mark.parametrize(
    "changes",
    [
        {"remedies": {"ewc": {"rows": 4, "strength": 10.0}, "ema": {"decay": 0.8}}},
        {"weights": "bfloat16"},
    ],
    ids=str,
)
def test_killed_and_started_again_it_is_the_same(changes: dict[str, Any], tmp_path: Path) -> None:
    whole = prepared(tmp_path / "whole", save_every=1, **changes)
    processes(whole)
    cut = prepared(tmp_path / "cut", save_every=1, **changes)
    processes(cut, "nano", "2", code=1)
    assert (cut / "train" / "checkpoint-2").is_dir()
    processes(cut)
    assert losses(cut) == losses(whole)
    for name, values in weights(whole).items():
        assert torch.equal(weights(cut)[name], values), name


def test_one_process_does_not_go_on_from_the_parts_of_two(chat: Chat, tmp_path: Path) -> None:
    cut = prepared(tmp_path / "cut", save_every=1)
    processes(cut, "nano", "2", code=1)
    with pytest.raises(Exception, match="written by 2 processes that shared the weights out"):
        alone(cut, chat, save_every=1)


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"stages": [{"part": 1.0}]}, "stages needs the weights whole"),
        ({"remedies": {"project": {}}}, "remedies.project needs the weights whole"),
        ({"remedies": {"ewc": {"hard": 0.1}}}, "remedies.ewc.hard needs"),
        ({"method": "lora"}, "method: lora needs"),
    ],
)
def test_what_needs_whole_weights_is_refused(changes: dict[str, Any], said: str) -> None:
    with pytest.raises(ValueError, match=said):
        Train.model_validate({"fsdp": True} | changes)


def test_one_process_is_told_to_be_several(chat: Chat, tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match="start it with `torchrun"):
        alone(tmp_path, chat, fsdp=True)
