"""What a training will take, against what it took."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import psutil
import pytest
import torch
from commands import type_in

from replaykit.data.jsonl import write_jsonl
from replaykit.data.planned import PlannedRow
from replaykit.data.record import Record, dialogue
from replaykit.model.chat import Chat
from replaykit.model.loading import load_model
from replaykit.recipe.train import Train
from replaykit.steps.train.batches import TokenisedRows, collate
from replaykit.steps.train.estimate import estimate
from replaykit.steps.train.result import TrainEstimate

NANO = 1_970_000  # parameters, to three digits
LINE = "the red fox runs over the old wall and sleeps "
# A process that trains as the command does, and says the most memory that it held.
MEASURED = """
import re, sys
from pathlib import Path
from replaykit.cli import main
try:
    main()
except SystemExit as ended:
    # Of this process alone: what getrusage tells begins with that of the process that started it.
    held = re.search(r"VmHWM:\\s+(\\d+) kB", Path("/proc/self/status").read_text())
    print("peak", int(held[1]) * 1024)
    sys.exit(ended.code)
"""


def planned(words: list[int], rows: int) -> list[PlannedRow]:
    """Rows with so many words of answer, ``rows`` of them a step."""
    made = []
    for k, count in enumerate(words):
        answer = " ".join((LINE * 200).split()[:count])
        made.append(PlannedRow(k // rows, Record(dialogue(f"Row {k}?", answer), "target")))
    return made


@pytest.fixture
def estimated(chat: Chat, tmp_path: Path) -> Callable[..., TrainEstimate]:
    """An estimate of nano on planned rows."""

    def found(rows: list[PlannedRow], price: float | None = None, **train: object) -> TrainEstimate:
        settings = Train.model_validate(train)
        return estimate(
            rows, "nano", None, chat, settings, folder=tmp_path / "train", price_per_hour=price
        )

    return found


def really_kept(rows: list[PlannedRow], chat: Chat) -> int:
    """Bytes that autograd keeps of a forward pass of nano's body, parameters aside."""
    model = load_model("nano", train=True)
    own = {parameter.untyped_storage().data_ptr() for parameter in model.parameters()}
    found: dict[int, torch.UntypedStorage] = {}

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in own:
            found[storage.data_ptr()] = storage
        return tensor

    data = TokenisedRows([row.record for row in rows], chat)
    batch = collate([data[k] for k in range(len(data))], pad=3)
    with torch.autograd.graph.saved_tensors_hooks(keep, lambda held: held):
        model.model(input_ids=batch["input_ids"], use_cache=False)
    return sum(storage.nbytes() for storage in found.values())


@pytest.mark.parametrize("words", [[30] * 8, [5, 90], [40, 41, 42, 43]])
def test_activations_are_what_autograd_keeps(
    estimated: Callable[..., TrainEstimate], chat: Chat, words: list[int]
) -> None:
    rows = planned(words, rows=len(words))
    found = estimated(rows, micro_batch_rows=len(words))
    assert found.micro_batches == 1
    assert found.memory.activations == pytest.approx(really_kept(rows, chat), rel=0.06)


def test_the_parts_of_a_full_training_are_counted(estimated: Callable[..., TrainEstimate]) -> None:
    found = estimated(planned([20] * 12, rows=4), micro_batch_rows=2)
    assert found.parameters == found.trainable == pytest.approx(NANO, rel=0.005)
    memory = found.memory
    assert memory.weights == memory.gradients == 4 * found.parameters
    assert memory.optimiser == 8 * found.parameters
    assert found.steps == 3
    assert found.micro_batches == 2
    assert found.rows == 12
    # In the second micro-batch of a step the gradients of the first are there.
    held = memory.weights + memory.gradients + memory.optimiser + memory.program
    assert held + memory.activations <= memory.peak <= 1.5 * (held + memory.activations)
    assert found.hours > 0


def test_an_adapter_learns_little_and_keeps_a_teacher_for_nothing(
    estimated: Callable[..., TrainEstimate],
) -> None:
    rows = planned([20] * 8, rows=8)
    lora = estimated(rows, method="lora", rank=4)
    assert lora.trainable < 0.1 * lora.parameters
    assert lora.memory.gradients == 4 * lora.trainable
    quantised = estimated(rows, method="qlora", rank=4)
    assert quantised.memory.weights < 0.5 * lora.memory.weights
    assert estimated(rows, method="lora", remedies={"distill": {}}).memory.remedies == 0


@pytest.mark.parametrize(
    ("remedies", "copies"),
    [
        ({"ewc": {}}, 2),
        ({"l2sp": {}}, 1),
        ({"ema": {}}, 1),
        ({"distill": {}}, 1),
        ({"distill": {"teacher": "cache"}}, 0),
        ({"ewc": {}, "ema": {}}, 3),
    ],
)
def test_what_remedies_hold_is_told(
    estimated: Callable[..., TrainEstimate], remedies: dict[str, object], copies: int
) -> None:
    found = estimated(planned([20] * 4, rows=4), remedies=remedies)
    assert found.memory.remedies == copies * 4 * found.parameters


def test_checkpoints_keep_less(estimated: Callable[..., TrainEstimate]) -> None:
    rows = planned([60] * 16, rows=16)
    whole = estimated(rows).memory.activations
    assert estimated(rows, gradient_checkpointing=True).memory.activations < 0.5 * whole


def test_packed_rows_are_one_row(estimated: Callable[..., TrainEstimate]) -> None:
    rows = planned([10, 50], rows=2)
    packed = estimated(rows, packing=True)
    padded = estimated(rows, micro_batch_rows=2)
    assert packed.largest[0] == 1
    assert packed.tokens < padded.tokens


def test_where_it_does_not_fit_it_says_what_to_change(
    estimated: Callable[..., TrainEstimate], monkeypatch: pytest.MonkeyPatch
) -> None:
    rows = planned([400] * 32, rows=32)
    whole = estimated(rows, micro_batch_rows=32)
    small = psutil.virtual_memory()._replace(available=whole.memory.peak - 50_000_000)
    monkeypatch.setattr(psutil, "virtual_memory", lambda: small)
    found = estimated(rows, micro_batch_rows=32)
    assert found.memory.peak > found.free
    assert found.instead["train.micro_batch_rows: 1"] < found.free
    smallest = min(found.instead, key=lambda name: found.instead[name])
    assert "lora" in smallest
    said = " ".join(found.text)
    assert "it does not fit; with train.micro_batch_rows: 1: " in said


def test_a_price_is_a_cost(estimated: Callable[..., TrainEstimate]) -> None:
    found = estimated(planned([20] * 4, rows=4), price=3.0)
    assert found.cost == pytest.approx(3.0 * found.hours)
    assert "at $3.00 an hour (as given)" in found.text[-1]


def test_shared_out_weights_are_told_to_be_so(estimated: Callable[..., TrainEstimate]) -> None:
    found = estimated(planned([20] * 4, rows=4), fsdp=True)
    assert "with train.fsdp each of N processes has an Nth" in found.text[-1]


def mixture(here: Path, words: int, model: str) -> None:
    """48 rows of one length, mixed."""
    answer = " ".join((LINE * 200).split()[:words])
    rows = [{"prompt": f"Row {k}?", "completion": answer} for k in range(48)]
    write_jsonl(here / "rows.jsonl", rows)
    type_in("mix", "--model", model, "--target", "rows.jsonl", "--ratio", 0)


def test_the_command_trains_nothing_and_a_finished_training_tells_the_speed(here: Path) -> None:
    mixture(here, 20, "nano")
    found = json.loads(type_in("train", "--model", "nano", "--dry-run", "--json"))
    assert found["basis"] == "estimated"
    assert found["steps"] == 2
    assert not (here / "runs/nano/train").exists()
    type_in("train", "--model", "nano")
    again = json.loads(type_in("train", "--model", "nano", "--dry-run", "--json"))
    assert again["basis"] == "measured"
    before = json.loads((here / "runs/nano/train/manifest.json").read_text())
    # Of the same rows it is the same time.
    assert again["hours"] * 3600 == pytest.approx(before["seconds"], rel=1e-3)
    assert re.search(r"tokens/s \(measured in this folder\)", " ".join(again["text"]))


def test_a_training_that_cannot_fit_ends_before_its_first_step(
    here: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    mixture(here, 20, "nano")
    # A machine that has 20 MB left: nano's gradients and moments are 24.
    small = psutil.virtual_memory()._replace(available=20_000_000)
    monkeypatch.setattr(psutil, "virtual_memory", lambda: small)
    said = type_in("train", "--model", "nano", code=1)
    assert "take 0.02 GB beside the weights, and 0.02 GB are free" in said
    assert "train.method: lora" in said
    assert not (here / "runs/nano/train/model").exists()
    type_in("train", "--model", "nano", "--method", "lora")


def peak_of(model: str, *options: str, **environment: str) -> tuple[int, int]:
    """Bytes at the peak: as the command says before, and as the process that trained held."""
    # Each in a process of its own: what this one holds of other tests is no part of a training.
    typed = [sys.executable, "-c", MEASURED, "train", "--model", model, *options]
    said, trained = (
        subprocess.run(
            [*typed, *more],
            capture_output=True,
            text=True,
            check=True,
            env=os.environ | environment,
        ).stdout
        for more in (("--dry-run", "--json"), ())
    )
    held = re.search(r"^peak (\d+)$", trained, re.MULTILINE)
    assert held is not None, trained
    found = json.loads(said[: said.rindex("peak ")])
    return found["memory"]["peak"], int(held[1])


@pytest.mark.slow
def test_nanos_peak_is_within_15_percent(here: Path) -> None:
    mixture(here, 900, "nano")
    said, held = peak_of("nano")
    assert said == pytest.approx(held, rel=0.15)


@pytest.mark.slow
@pytest.mark.real
@pytest.mark.parametrize(
    ("options", "environment"),
    [
        ((), {}),
        # glibc keeps most of what an adapter's many small tensors free, unless it maps them.
        (("--method", "lora"), {"MALLOC_MMAP_THRESHOLD_": "262144"}),
    ],
)
def test_a_real_models_peak_is_within_15_percent(
    here: Path, smollm2: Path, options: tuple[str, ...], environment: dict[str, str]
) -> None:
    mixture(here, 60, str(smollm2))
    said, held = peak_of(str(smollm2), *options, **environment)
    assert said == pytest.approx(held, rel=0.15)
