"""What a training will take, against what it took."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from types import SimpleNamespace

import architectures
import psutil
import pytest
import torch
from commands import type_in
from transformers import GPT2Model

from replaykit.data.jsonl import write_jsonl
from replaykit.data.planned import PlannedRow
from replaykit.data.record import Record, dialogue
from replaykit.devices import free_memory
from replaykit.errors import EngineError
from replaykit.model.chat import Chat
from replaykit.model.loading import load_model
from replaykit.recipe.train import Train
from replaykit.runs import open_step
from replaykit.steps.train.batches import TokenisedRows, collate
from replaykit.steps.train.estimate import estimate
from replaykit.steps.train.lighter import lighter
from replaykit.steps.train.parameters import adapted
from replaykit.steps.train.result import MemoryParts, Speed, TrainEstimate, TrainResult
from replaykit.steps.train.speed import Clock

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


def really_kept(rows: list[PlannedRow], chat: Chat, name: str = "nano") -> int:
    """Bytes that autograd keeps of a forward pass of a model's body, parameters aside."""
    model = load_model(name, train=True)
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


@pytest.mark.slow
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


@pytest.mark.slow
def test_an_adapter_learns_little_and_keeps_a_teacher_for_nothing(
    estimated: Callable[..., TrainEstimate],
) -> None:
    rows = planned([20] * 8, rows=8)
    lora = estimated(rows, method="lora", rank=4)
    assert lora.trainable < 0.1 * lora.parameters
    assert lora.memory.gradients == 4 * lora.trainable
    quantised = estimated(rows, method="qlora", rank=4)
    assert quantised.memory.weights < 0.5 * lora.memory.weights
    assert estimated(rows, method="lora", remedies={"distill": {}}).memory.teacher == 0


@pytest.mark.slow
@pytest.mark.parametrize(
    ("remedies", "copies"),
    [
        ({"ewc": {}}, 2),
        ({"l2sp": {}}, 1),
        ({"ema": {}}, 1),
        ({"self_distill": {}}, 1),
        ({"distill": {}}, 1),
        ({"distill": {"teacher": "cache"}}, 0),
        ({"ewc": {}, "ema": {}}, 3),
    ],
)
def test_what_remedies_hold_is_told(
    estimated: Callable[..., TrainEstimate], remedies: dict[str, object], copies: int
) -> None:
    found = estimated(planned([20] * 4, rows=4), remedies=remedies)
    memory = found.memory
    told = memory.teacher + memory.fisher + memory.base + memory.average + memory.projection
    assert told == copies * 4 * found.parameters
    assert (memory.fisher > 0) == ("ewc" in remedies)
    assert (memory.teacher > 0) == (remedies.get("distill") == {})


@pytest.mark.slow
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


def free(monkeypatch: pytest.MonkeyPatch, size: int) -> None:
    """So many bytes are free on this machine."""
    small = psutil.virtual_memory()._replace(available=size)
    monkeypatch.setattr(psutil, "virtual_memory", lambda: small)


@pytest.mark.slow
def test_where_it_does_not_fit_it_says_what_to_change(
    estimated: Callable[..., TrainEstimate], monkeypatch: pytest.MonkeyPatch
) -> None:
    rows = planned([400] * 32, rows=32)
    whole = estimated(rows, micro_batch_rows=32)
    free(monkeypatch, whole.memory.peak - 50_000_000)
    found = estimated(rows, micro_batch_rows=32)
    assert found.memory.peak > found.free
    # Half the rows are enough, so no fewer are told.
    assert next(iter(found.instead)) == "train.micro_batch_rows: 16"
    assert "train.micro_batch_rows: 8" not in found.instead
    assert all(peak < found.memory.peak for peak in found.instead.values())
    assert "it does not fit; it does with train.micro_batch_rows: 16: " in " ".join(found.text)


def parts(**sizes: int) -> MemoryParts:
    """What is held, most of it nothing."""
    return MemoryParts.model_validate(dict.fromkeys(MemoryParts.model_fields, 0) | sizes)


def offered(train: dict[str, object], *, free: int, apart: bool = False) -> dict[str, int]:
    """What is offered to settings that take 100, where each change takes 10 less."""
    settings = Train.model_validate(train)
    before = settings.model_dump()

    def weigh(other: Train) -> MemoryParts:
        differ = sum(value != before[key] for key, value in other.model_dump().items())
        return parts(peak=100 - 10 * differ)

    return lighter(settings, parts(peak=100), free=free, rows=8, weigh=weigh, apart=apart)


@pytest.mark.parametrize(
    ("train", "refused"),
    [
        ({"remedies": {"ewc": {"hard": 0.5}}}, "method"),
        ({"stages": [{"part": 1.0}]}, "method"),
        ({"precision": "float32"}, "weights"),
        ({"peft": {"peft_type": "IA3"}}, "method"),
        ({"gradient_checkpointing": True}, "gradient_checkpointing"),
        ({"method": "lora"}, "method: lora"),
    ],
)
def test_what_the_recipe_refuses_or_has_is_not_offered(
    train: dict[str, object], refused: str
) -> None:
    for free in (90, 5):
        found = offered(train, free=free)
        assert found
        assert not any(refused in name for name in found)


def test_what_takes_no_less_is_not_offered() -> None:
    same = parts(peak=100)
    found = lighter(Train(), same, free=50, rows=8, weigh=lambda _: same, apart=False)
    assert found == {}


def test_several_changes_are_offered_where_none_by_itself_is_enough() -> None:
    assert all(peak <= 90 for peak in offered({}, free=90).values())
    found = offered({}, free=75)
    assert next(iter(found)) == (
        "train.micro_batch_rows: 1, gradient_checkpointing: true, weights: bfloat16, "
        "optimiser: adamw_8bit"
    )
    assert list(offered({}, free=5).values()) == sorted(offered({}, free=5).values())


@pytest.mark.slow
def test_where_nothing_fits_the_least_is_told(
    estimated: Callable[..., TrainEstimate], monkeypatch: pytest.MonkeyPatch
) -> None:
    free(monkeypatch, 1_000_000)
    found = estimated(planned([100] * 8, rows=8))
    least = min(found.instead, key=lambda name: found.instead[name])
    assert "qlora" in least
    assert f"nor with other settings; {least}: " in " ".join(found.text)


def test_weights_are_shared_out_over_the_fewest_processes_that_fit() -> None:
    now = parts(weights=30, gradients=30, optimiser=60, peak=130)

    def weigh(_: Train) -> MemoryParts:
        return now

    looked = partial(lighter, Train(), now, rows=8, weigh=weigh)
    assert looked(free=50, apart=True) == {"train.fsdp: true over 3 processes (each)": 50}
    # On one machine's memory nothing is won.
    assert looked(free=50, apart=False) == {}
    assert (
        partial(lighter, Train(method="lora"), now, rows=8, weigh=weigh)(free=50, apart=True) == {}
    )


KINDS = [
    *("mixtral", "gpt_oss", "qwen3_next"),  # of experts
    *("gptj", "falcon"),  # their masks are made where no tensor has memory
    "bart",  # it drops layers at random
]


@pytest.mark.slow
@pytest.mark.parametrize("method", ["full", "lora"])
@pytest.mark.parametrize("kind", KINDS)
def test_models_whose_code_asks_for_numbers_are_estimated(
    kind: str, method: str, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    model = architectures.save(tmp_path / kind, kind)
    settings = Train(method=method)
    rows = planned([20] * 4, rows=4)
    found = estimate(rows, model, None, Chat.load(model), settings, folder=tmp_path / "train")
    network = adapted(load_model(model, train=True), settings)
    learning = [each for each in network.parameters() if each.requires_grad]
    assert found.trainable == sum(each.numel() for each in learning)
    assert found.memory.activations > 0
    assert found.tokens_per_second > 0
    assert "fake_tensor" not in capfd.readouterr().err


def test_experts_keep_what_autograd_keeps(tmp_path: Path) -> None:
    model = architectures.save(tmp_path / "mixtral", "mixtral")
    chat = Chat.load(model)
    rows = planned([60] * 8, rows=8)
    settings = Train(micro_batch_rows=8)
    found = estimate(rows, model, None, chat, settings, folder=tmp_path / "train")
    assert found.memory.activations == pytest.approx(really_kept(rows, chat, model), rel=0.06)


def test_where_a_models_code_needs_memory_what_is_known_is_told(tmp_path: Path) -> None:
    model = architectures.save(tmp_path / "gpt2", "gpt2")

    def needs_memory(*_: object, **__: object) -> None:
        torch.zeros(()).item()

    rows = planned([20] * 4, rows=4)
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(GPT2Model, "forward", needs_memory)
        with pytest.raises(EngineError, match=r"held beside them: weights \d.*optimiser \d"):
            estimate(rows, model, None, Chat.load(model), Train(), folder=tmp_path / "train")


@pytest.mark.slow
@pytest.mark.parametrize(("times", "told"), [(0.5, False), (1.5, True), (3.0, False)])
def test_what_glibc_keeps_is_told(
    estimated: Callable[..., TrainEstimate],
    monkeypatch: pytest.MonkeyPatch,
    times: float,
    told: bool,
) -> None:
    monkeypatch.delenv("MALLOC_MMAP_THRESHOLD_", raising=False)
    monkeypatch.setattr("replaykit.steps.train.estimate.lighter", lambda *_, **__: {})
    rows = planned([20] * 4, rows=4)
    free(monkeypatch, round(times * estimated(rows).memory.peak))
    said = " ".join(estimated(rows).text)
    assert "can hold 1.3 to 1.9 times as much" in said
    assert ("which may not fit" in said) == told


def test_nothing_is_told_of_glibc_that_gives_back(
    estimated: Callable[..., TrainEstimate], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MALLOC_MMAP_THRESHOLD_", "262144")
    assert "glibc" not in " ".join(estimated(planned([20] * 4, rows=4)).text)


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


@pytest.mark.slow
def test_the_command_trains_nothing_and_a_finished_training_tells_the_speed(here: Path) -> None:
    mixture(here, 20, "nano")
    found = json.loads(type_in("train", "--model", "nano", "--dry-run", "--json"))
    assert found["basis"] == "estimated"
    assert found["steps"] == 2
    assert not (here / "runs/nano/train").exists()
    type_in("train", "--model", "nano")
    again = json.loads(type_in("train", "--model", "nano", "--dry-run", "--json"))
    assert again["basis"] == "measured"
    speed = json.loads((here / "runs/nano/train/manifest.json").read_text())["result"]["speed"]
    # Of the two steps the second is timed, and half of the rows are in it.
    assert speed["steps"] == 1
    assert 1.5 * speed["seconds"] < again["hours"] * 3600 < 2.5 * speed["seconds"]
    assert re.search(r"tokens/s \(measured in this folder\)", " ".join(again["text"]))


@pytest.mark.slow
@pytest.mark.parametrize(
    "options",
    [
        {"method": "lora"},
        {"gradient_checkpointing": True},
        {"packing": True},
        {"micro_batch_rows": 2},
        {"weights": "bfloat16"},
    ],
)
def test_what_trains_otherwise_is_not_measured_by_this(
    estimated: Callable[..., TrainEstimate], tmp_path: Path, options: dict[str, object]
) -> None:
    finished(tmp_path / "train", steps=10, seconds=2.0, tokens=4_000)
    rows = planned([20] * 8, rows=4)
    # What does not decide the speed may differ.
    assert estimated(rows, learning_rate=1e-3, steps=3).tokens_per_second == 2_000
    found = estimated(rows, **options)
    assert found.basis == "estimated"
    assert f"had another {next(iter(options))}" in " ".join(found.text)


def finished(folder: Path, *, steps: int, seconds: float, tokens: int) -> None:
    """A training of nano that was as fast as this, in its folder."""
    speed = Speed(
        steps=steps,
        seconds=seconds,
        tokens=tokens,
        device=free_memory()[1],
        processes=1,
        fsdp=False,
        offload=False,
    )
    result = TrainResult(
        steps=steps,
        loss=1.0,
        losses=[],
        tokens=1,
        speed=speed,
        model="",
        base="nano",
        revision=None,
    )
    with open_step("train", folder, {"train": Train().decisive()}) as step:
        step.finish(result)


@pytest.mark.parametrize(("begins", "steps"), [(0, 5), (3, 2), (4, 1)])
def test_the_speed_is_of_steps_after_the_first_one_of_a_process(
    monkeypatch: pytest.MonkeyPatch, begins: int, steps: int
) -> None:
    now = iter(range(100))
    monkeypatch.setattr(time, "perf_counter", lambda: next(now))
    clock = Clock()
    for step in range(begins, 6):
        clock.on_step_end(None, SimpleNamespace(global_step=step + 1), None)
    # Six steps of two micro-batches, of 2 rows of at most 5 tokens and of 1 row of 3.
    batches = [[0, 1], [2]] * 6
    speed = clock.speed(batches, [5, 1, 3], Train(), parts=2, processes=1)
    assert speed is not None
    assert (speed.steps, speed.seconds, speed.tokens) == (steps, steps, 13 * steps)
    packed = clock.speed(batches, [5, 1, 3], Train(packing=True), parts=2, processes=1)
    assert packed is not None
    assert packed.tokens == 9 * steps


def test_a_single_step_tells_no_speed() -> None:
    clock = Clock()
    clock.on_step_end(None, SimpleNamespace(global_step=7), None)
    assert clock.speed([[0]] * 7, [5], Train(), parts=1, processes=1) is None


@pytest.mark.slow
def test_a_training_that_cannot_fit_ends_before_its_first_step(
    here: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    mixture(here, 20, "nano")
    # A machine that has 20 MB left: nano's gradients and moments are 24.
    free(monkeypatch, 20_000_000)
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
    # glibc keeps what is freed, unless it is told otherwise.
    said, held = peak_of("nano", MALLOC_MMAP_THRESHOLD_="262144")
    assert said == pytest.approx(held, rel=0.15)


@pytest.mark.slow
@pytest.mark.real
@pytest.mark.parametrize("options", [(), ("--method", "lora")])
def test_a_real_models_peak_is_within_15_percent(
    here: Path, smollm2: Path, options: tuple[str, ...]
) -> None:
    mixture(here, 60, str(smollm2))
    said, held = peak_of(str(smollm2), *options, MALLOC_MMAP_THRESHOLD_="262144")
    assert said == pytest.approx(held, rel=0.15)
