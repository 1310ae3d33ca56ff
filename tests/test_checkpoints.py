"""Checkpoints: which one is whole, from which a training goes on, and that its files are on the disk."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from commands import two_ranks
from safetensors.torch import load_file, save_file

from replaykit.data.jsonl import write_jsonl
from replaykit.data.planned import PlannedRow
from replaykit.data.record import Record, dialogue
from replaykit.model.chat import Chat
from replaykit.nano import world
from replaykit.recipe.train import Train
from replaykit.steps.train import checkpoints
from replaykit.steps.train.checkpoints import finish, newest_whole, problem
from replaykit.steps.train.fit import Base, Extras, fit
from replaykit.steps.train.result import TrainResult

# Of every training here: checkpoints after each of its four steps, of which the last two stay.
OPTIONS: dict[str, Any] = {
    "batch_rows": 4,
    "learning_rate": 1e-2,
    "log_every": 1,
    "save_every": 1,
    "warmup": 0.0,
    "remedies": {"ema": {"decay": 0.5}},
}


class Killed(Exception):
    """The process ends here."""


class Kill(transformers.TrainerCallback):
    """Ends a training when so many steps are done and their checkpoint is written."""

    def __init__(self, steps: int):
        self.steps = steps

    def on_step_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        if state.global_step == self.steps:
            raise Killed


def records() -> list[Record]:
    new = world.draw("referral", 12, seed=1)
    old = world.draw_old(4, seed=1)
    rows = [Record(dialogue(task.prompt, task.answer), "target") for task in new]
    return [*rows, *(Record(dialogue(task.prompt, task.answer), "generate") for task in old)]


@pytest.fixture(scope="module")
def model(chat: Chat, tmp_path_factory: pytest.TempPathFactory) -> str:
    """Two layers of 32, with nano's tokens and dropout, so that random numbers matter."""
    torch.manual_seed(0)
    config = transformers.LlamaConfig(
        vocab_size=len(chat.tokenizer),
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=2,
        num_attention_heads=2,
        attention_dropout=0.1,
    )
    folder = tmp_path_factory.mktemp("model")
    transformers.LlamaForCausalLM(config).save_pretrained(folder)
    return str(folder)


def trained(folder: Path, chat: Chat, model: str, *, killed: int = 0, **settings: Any) -> Any:
    made = Train.model_validate(OPTIONS | settings)
    folder.mkdir(parents=True, exist_ok=True)
    rows = [PlannedRow(k // 4, record) for k, record in enumerate(records())]
    extras = Extras(callbacks=[Kill(killed)] if killed else [])
    return fit(rows, Base(model, chat), made, seed=1, folder=folder, extras=extras)


@pytest.fixture(scope="module")
def whole(chat: Chat, model: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A training that was never cut short."""
    folder = tmp_path_factory.mktemp("whole")
    trained(folder, chat, model)
    return folder


@pytest.fixture(scope="module")
def left(chat: Chat, model: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What a training leaves that is killed after three of its four steps."""
    folder = tmp_path_factory.mktemp("left")
    with pytest.raises(Killed):
        trained(folder, chat, model, killed=3)
    return folder


@pytest.fixture
def cut(left: Path, tmp_path: Path) -> Path:
    """The same, to be damaged."""
    return Path(shutil.copytree(left, tmp_path / "cut"))


def removed(path: Path) -> None:
    path.unlink()


def shortened(path: Path) -> None:
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def emptied(path: Path) -> None:
    path.write_bytes(b"")


def zeroed(path: Path) -> None:
    """What is left of a file whose size was on the disk before its content."""
    path.write_bytes(bytes(path.stat().st_size))


def as_empty_json(path: Path) -> None:
    path.write_text("{}")


FILES = [
    "model.safetensors",
    "optimizer.pt",
    "scheduler.pt",
    "rng_state.pth",
    "remedies.safetensors",
    "trainer_state.json",
]
DAMAGES = [removed, shortened, emptied, zeroed]


def test_a_checkpoint_names_all_its_files_and_their_sizes(left: Path) -> None:
    for step in (2, 3):
        folder = left / f"checkpoint-{step}"
        sizes = json.loads((folder / "files.json").read_text())
        assert set(FILES) <= set(sizes)
        assert sizes == {
            path.name: path.stat().st_size for path in folder.iterdir() if path.name != "files.json"
        }
    assert sorted(path.name for path in left.glob("checkpoint-*")) == [
        "checkpoint-2",
        "checkpoint-3",
    ]


@pytest.mark.parametrize("damage", [*DAMAGES, as_empty_json])
@pytest.mark.parametrize("name", [*FILES, "config.json", "files.json"])
def test_a_damaged_checkpoint_is_passed_over_with_the_reason_and_kept(
    name: str, damage: Callable[[Path], None], cut: Path
) -> None:
    damage(cut / "checkpoint-3" / name)
    found = newest_whole(cut)
    if (name, damage) == ("files.json", removed):
        assert found == (str(cut / "checkpoint-3"), []), "as one of an earlier version, it is whole"
        return
    assert found.checkpoint == str(cut / "checkpoint-2")
    [note] = found.notes
    assert note.startswith("checkpoint-3 is not whole (")
    assert name in note
    assert note.endswith(f"was passed over: the training went on from {cut / 'checkpoint-2'}")
    assert (cut / "checkpoint-3").is_dir()


@pytest.mark.parametrize("name", FILES)
def test_a_damaged_checkpoint_of_an_earlier_version_is_seen_by_its_files_alone(
    name: str, left: Path, tmp_path: Path
) -> None:
    for k, damage in enumerate(DAMAGES):
        folder = tmp_path / str(k) / "checkpoint-3"
        shutil.copytree(left / "checkpoint-3", folder)
        (folder / "files.json").unlink()
        assert problem(folder) is None
        damage(folder / name)
        why = problem(folder)
        assert why is not None
        assert name in why


def test_no_file_can_be_cut_anywhere_without_being_seen(left: Path, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(left / "checkpoint-3", tmp_path / "checkpoint-3"))
    (folder / "files.json").unlink()
    for name in FILES:
        whole = (folder / name).read_bytes()
        for length in sorted({*range(0, len(whole), max(1, len(whole) // 40)), len(whole) - 1}):
            # JSON that only lacks its last line break is the same JSON.
            if name.endswith(".json") and whole[length:].strip() == b"":
                continue
            (folder / name).write_bytes(whole[:length])
            assert problem(folder) is not None, (name, length)
        (folder / name).write_bytes(whole)
    assert problem(folder) is None


def test_a_checkpoint_of_an_earlier_version_that_is_not_finite_is_passed_over(cut: Path) -> None:
    (cut / "checkpoint-3/files.json").unlink()
    path = cut / "checkpoint-3/model.safetensors"
    tensors = load_file(path)
    tensors["model.norm.weight"][3] = float("nan")
    save_file(tensors, path, {"format": "pt"})
    assert problem(cut / "checkpoint-3") == "its weights are not finite"
    assert newest_whole(cut).checkpoint == str(cut / "checkpoint-2")


def same(one: Path, other: Path) -> None:
    """Both trainings have left the same model, bit by bit."""
    first = load_file(one / "model/model.safetensors")
    second = load_file(other / "model/model.safetensors")
    assert first.keys() == second.keys()
    assert all(torch.equal(first[name], second[name]) for name in first)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "damage"),
    [
        ("model.safetensors", shortened),
        ("optimizer.pt", removed),
        ("trainer_state.json", as_empty_json),
    ],
)
def test_a_training_goes_on_from_the_newest_whole_one_and_says_so(
    name: str,
    damage: Callable[[Path], None],
    cut: Path,
    whole: Path,
    chat: Chat,
    model: str,
    caplog: pytest.LogCaptureFixture,
) -> None:
    damage(cut / "checkpoint-3" / name)
    result: TrainResult = trained(cut, chat, model)
    [note] = result.notes
    assert note in caplog.messages
    assert note.startswith("checkpoint-3 is not whole")
    assert note.endswith(f"went on from {cut / 'checkpoint-2'}")
    assert [log["step"] for log in result.losses] == [1, 2, 3, 4]
    same(cut, whole)
    assert not list(cut.glob("checkpoint*"))


def test_where_none_is_whole_a_training_begins_anew_and_says_so(
    cut: Path, whole: Path, chat: Chat, model: str
) -> None:
    for step in (2, 3):
        removed(cut / f"checkpoint-{step}/scheduler.pt")
    result = trained(cut, chat, model)
    assert [note[:12] for note in result.notes] == ["checkpoint-3", "checkpoint-2"]
    assert all(note.endswith("was passed over: the training began anew") for note in result.notes)
    same(cut, whole)


def test_what_was_being_written_is_not_gone_on_from_and_is_removed(
    cut: Path, whole: Path, chat: Chat, model: str
) -> None:
    unfinished = cut / "checkpoint.tmp"
    unfinished.mkdir()
    shutil.move(cut / "checkpoint-3", unfinished)
    result = trained(cut, chat, model)
    assert result.notes == []
    same(cut, whole)
    assert not unfinished.exists()


def test_the_newest_whole_one_before_stays_whatever_stands_between(cut: Path) -> None:
    removed(cut / "checkpoint-3/optimizer.pt")

    def write(step: int) -> Sequence[str]:
        written = checkpoints.begin(cut) / f"checkpoint-{step}"
        shutil.copytree(cut / "checkpoint-2", written)
        state = json.loads((written / "trainer_state.json").read_text())
        (written / "trainer_state.json").write_text(json.dumps(state | {"global_step": step}))
        (written / "files.json").unlink()
        finish(written, cut)
        return sorted(path.name for path in cut.glob("checkpoint-*"))

    assert write(4) == ["checkpoint-2", "checkpoint-3", "checkpoint-4"]
    assert newest_whole(cut) == (str(cut / "checkpoint-4"), [])
    removed(cut / "checkpoint-4/scheduler.pt")
    assert write(5) == [f"checkpoint-{step}" for step in (2, 3, 4, 5)]
    # In the place of one that is not whole.
    assert write(4) == [f"checkpoint-{step}" for step in (2, 3, 4, 5)]
    assert problem(cut / "checkpoint-4") is None


def test_the_list_is_written_when_all_files_are_on_the_disk_and_the_name_comes_last(
    left: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    written = Path(shutil.copytree(left / "checkpoint-3", tmp_path / "tmp/checkpoint-3"))
    (written / "files.json").unlink()
    names = {path.stat().st_ino: path.name for path in written.iterdir()}
    names |= {written.stat().st_ino: "the folder", tmp_path.stat().st_ino: "the folder above"}
    done: list[str] = []
    sync = os.fsync
    rename = Path.rename
    replace = os.replace

    def synced(descriptor: int) -> None:
        done.append(names.get(os.fstat(descriptor).st_ino, "files.json"))
        sync(descriptor)

    def renamed(path: Path, target: Path) -> Path:
        done.append("renamed")
        return rename(path, target)

    def replaced(path: Path, target: Path) -> None:
        done.append("files.json appears")
        replace(path, target)

    monkeypatch.setattr(os, "fsync", synced)
    monkeypatch.setattr(Path, "rename", renamed)
    monkeypatch.setattr(os, "replace", replaced)
    finish(written, tmp_path)
    at = done.index("files.json")
    assert set(FILES) <= set(done[:at])
    assert done[at:] == [
        "files.json",
        "files.json appears",
        "the folder",
        "renamed",
        "the folder above",
    ]


@pytest.mark.slow
def test_two_processes_go_on_from_the_same_checkpoint(
    chat: Chat, model: str, tmp_path: Path
) -> None:
    write_jsonl(tmp_path / "mixture.jsonl", records())
    (tmp_path / "settings.json").write_text(json.dumps(OPTIONS | {"micro_batch_rows": 2}))
    folder = tmp_path / "train"

    def two(*words: str) -> list[dict[str, Any]]:
        done = two_ranks(tmp_path, *words)
        assert len(words) == 2 or done.returncode == 0, done.stderr[-3000:]
        found = [tmp_path / f"rank-{rank}.json" for rank in (0, 1)]
        return [json.loads(path.read_text()) for path in found if path.exists()]

    assert two(model, "3") == []
    shutil.copytree(folder, tmp_path / "left")
    # Of the second process, which has a file of its own.
    removed(folder / "checkpoint-3/rng_state_1.pth")
    damaged = two(model)
    shutil.rmtree(folder)
    shutil.copytree(tmp_path / "left", folder)
    undamaged = two(model)
    for rank in (0, 1):
        assert damaged[rank]["losses"] == undamaged[rank]["losses"]
        assert "rng_state_1.pth is missing" in damaged[rank]["notes"][0]
        assert undamaged[rank]["notes"] == []
