"""The trainer on the embedded model: its loss, its order, its checkpoints, and what it leaves."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from commands import type_in

from replaykit.data.jsonl import write_jsonl
from replaykit.data.planned import PlannedRow
from replaykit.data.record import Record, dialogue
from replaykit.model import loading
from replaykit.nano import world
from replaykit.recipe.train import Train
from replaykit.steps.train.fit import Base, fit


def rows(count=32):
    target = [
        Record(dialogue(t.prompt, t.answer), "target")
        for t in world.draw("referral", count - count // 4, seed=1)
    ]
    replay = [
        Record(dialogue(t.prompt, t.answer), "generate") for t in world.draw_old(count // 4, seed=1)
    ]
    return [*target, *replay]


def trained(folder, chat, records, batch=8, **settings):
    planned = [PlannedRow(k // batch, record) for k, record in enumerate(records)]
    options = {"batch_rows": batch, "learning_rate": 5e-4, "log_every": 1, "warmup": 0.0} | settings
    folder.mkdir(exist_ok=True)
    return fit(planned, Base("nano", chat), Train(**options), seed=1, folder=folder)


def plain_loss(chat, records):
    """The mean negative log-likelihood of the answer tokens, one row at a time, by transformers' own loss."""
    model, total, count = loading.load_model("nano"), 0.0, 0
    for record in records:
        example = chat.example(record)
        labels = torch.tensor(
            [[t if on else -100 for t, on in zip(example.tokens, example.loss, strict=True)]]
        )
        with torch.no_grad():
            total += (
                model(input_ids=torch.tensor([example.tokens]), labels=labels).loss.item()
                * example.loss_tokens
            )
        count += example.loss_tokens
    return total / count


@pytest.mark.slow
def test_the_first_loss_is_that_of_transformers_over_answer_tokens(chat, tmp_path):
    records = rows(8)
    result = trained(tmp_path / "a", chat, records)
    assert result.steps == 1
    assert result.losses[0]["loss"] == pytest.approx(plain_loss(chat, records), abs=1e-5)


@pytest.mark.slow
def test_the_loss_of_each_source_is_logged_by_itself(chat, tmp_path):
    records = rows(8)
    log = trained(tmp_path / "a", chat, records).losses[0]
    for source in ("target", "generate"):
        expected = plain_loss(chat, [record for record in records if record.source == source])
        assert log[f"loss/{source}"] == pytest.approx(expected, abs=1e-5)


@pytest.mark.slow
def test_micro_batches_change_nothing(chat, tmp_path):
    curves = [
        [
            log["loss"]
            for log in trained(tmp_path / str(size), chat, rows(), micro_batch_rows=size).losses
        ]
        for size in (8, 2)
    ]
    assert curves[0] == pytest.approx(curves[1], abs=1e-4)


@pytest.mark.slow
def test_the_target_is_learned_and_the_model_loads_as_a_folder(chat, tmp_path):
    result = trained(tmp_path / "a", chat, rows(256), learning_rate=1e-3)
    target = [log["loss/target"] for log in result.losses if "loss/target" in log]
    assert target[-1] < target[0] / 3
    folder = tmp_path / "a/model"
    assert (
        loading.load_model(str(folder)).num_parameters()
        == loading.load_model("nano").num_parameters()
    )
    assert loading.load_tokenizer(str(folder)).chat_template == chat.tokenizer.chat_template
    assert [path.name for path in folder.glob("*.safetensors")] == ["model.safetensors"]
    assert not [*folder.glob("*.bin"), *folder.glob("*.pt")]
    assert not list((tmp_path / "a").glob("checkpoint*"))


@pytest.mark.slow
def test_lora_leaves_an_adapter_and_a_merged_model(chat, tmp_path):
    trained(tmp_path / "a", chat, rows(64), method="lora", learning_rate=5e-3)
    assert (tmp_path / "a/adapter/adapter_model.safetensors").exists()
    before, after = (
        loading.load_model("nano").state_dict(),
        loading.load_model(str(tmp_path / "a/model")).state_dict(),
    )
    assert before.keys() == after.keys()
    changed = {name for name in before if not torch.equal(before[name], after[name])}
    assert changed
    assert all("proj" in name for name in changed)


@pytest.mark.slow
def test_kill_9_and_the_same_command_give_the_same_loss_curve(here):
    write_jsonl(here / "target.jsonl", rows(640))
    (here / "replaykit.yaml").write_text(
        "name: run\nmodel: nano\ntarget: target.jsonl\nmix: {ratio: 0}\n"
        "train: {batch_rows: 16, learning_rate: 5.0e-4, save_every: 10, log_every: 1}\n"
    )
    type_in("mix")
    type_in("train", "--out", "whole")
    words = [sys.executable, "-m", "replaykit", "train", "--out", "killed"]
    process = subprocess.Popen(words, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    deadline = time.monotonic() + 120
    while (
        not list((here / "killed").glob("checkpoint-*/trainer_state.json"))
        and time.monotonic() < deadline
    ):
        time.sleep(0.02)
    time.sleep(0.2)
    os.kill(process.pid, signal.SIGKILL)
    assert process.wait() == -signal.SIGKILL
    assert not (here / "killed/manifest.json").exists()
    type_in("train", "--out", "killed")
    curves = [losses(here / name) for name in ("whole", "killed")]
    assert len(curves[0]) == 40
    assert curves[0] == pytest.approx(curves[1], abs=1e-4)


def losses(folder: Path) -> list[float]:
    manifest = json.loads((folder / "manifest.json").read_text())
    return [log["loss"] for log in manifest["result"]["losses"]]
