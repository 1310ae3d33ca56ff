"""Ways to train: packed, in parts, in two processes, in stages, under adapters, encoder-decoders; stopped and gone on."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from commands import two_ranks, type_in
from typer.testing import CliRunner

from replaykit.cli import app
from replaykit.data.jsonl import write_jsonl
from replaykit.data.planned import PlannedRow
from replaykit.data.record import Record, dialogue
from replaykit.engines import Request, Sampling, load_engine
from replaykit.engines.transformers import TransformersEngine
from replaykit.errors import DataError, RecipeError, Stopped
from replaykit.model import loading
from replaykit.model.chat import Chat
from replaykit.nano import world
from replaykit.recipe.controller import ControllerSettings
from replaykit.recipe.evaluate import Test
from replaykit.recipe.mix import Mix
from replaykit.recipe.train import Train
from replaykit.steps.score import logprobs
from replaykit.steps.train import fit as fitting
from replaykit.steps.train import trainer
from replaykit.steps.train.batches import Cut, TokenisedRows
from replaykit.steps.train.controlled import ControlledBatches, lay_out, pools_of
from replaykit.steps.train.controller import Answer, Controller, ControllerInputs
from replaykit.steps.train.fit import Base, Extras, fit
from replaykit.steps.train.remedies.weights import weights
from replaykit.steps.train.result import TrainResult


def mixture(count: int = 32) -> list[Record]:
    """Three target rows, then a replay row, and again."""
    new = iter(world.draw("referral", count, seed=1))
    old = iter(world.draw_old(count, seed=1))
    drawn = [(next(old), "generate") if k % 4 == 3 else (next(new), "target") for k in range(count)]
    return [Record(dialogue(task.prompt, task.answer), source) for task, source in drawn]  # type: ignore[arg-type]


def planned(records: list[Record], rows: int) -> list[PlannedRow]:
    """So many records a step, in order."""
    return [PlannedRow(k // rows, record) for k, record in enumerate(records)]


def trained(
    folder: Path, chat: Chat, records: list[Record], model: str = "nano", **settings: Any
) -> TrainResult:
    options = {"batch_rows": 8, "learning_rate": 5e-4, "log_every": 1, "warmup": 0.0} | settings
    made = Train.model_validate(options)
    folder.mkdir(parents=True, exist_ok=True)
    extras = Extras(weights=token_weights(records, chat, made, folder))
    rows = planned(records, made.batch_rows)
    return fit(rows, Base(model, chat), made, seed=1, folder=folder, extras=extras)


def token_weights(records: list[Record], chat: Chat, settings: Train, folder: Path) -> Any:
    """As `replaykit train` makes them for stm and flow."""
    if settings.remedies.stm is None and settings.remedies.flow is None:
        return None
    examples = logprobs.different_examples(records, chat)
    engine = (
        load_engine("nano", "transformers") if not (folder / "logprobs.jsonl").exists() else None
    )
    with logprobs.Scores(folder / "logprobs.jsonl", logprobs.model_key("nano")) as known:
        found = logprobs.score_examples(examples, engine, known)
    return weights(records, examples, found, settings.remedies, chat, 1)


def curve(result: TrainResult) -> list[float]:
    return [log["loss"] for log in result.losses]


@pytest.fixture(scope="module")
def plain(chat: Chat, tmp_path_factory: pytest.TempPathFactory) -> TrainResult:
    return trained(tmp_path_factory.mktemp("plain"), chat, mixture())


@pytest.mark.parametrize(
    "options",
    [
        {"packing": True},
        {"micro_batch_rows": 1},
        {"micro_batch_rows": 3, "packing": True},
        {"gradient_checkpointing": True},
    ],
    ids=str,
)
@pytest.mark.slow
def test_packing_and_cutting_a_step_change_nothing(
    options: dict[str, Any], plain: TrainResult, chat: Chat, tmp_path: Path
) -> None:
    found = trained(tmp_path, chat, mixture(), **options)
    assert curve(found) == pytest.approx(curve(plain), abs=2e-5)
    for ours, theirs in zip(found.losses, plain.losses, strict=True):
        assert ours["loss/generate"] == pytest.approx(theirs["loss/generate"], abs=5e-5)


def of_two(folder: Path) -> list[dict[str, Any]]:
    """What each of two processes of torchrun saw of a training."""
    done = two_ranks(folder)
    assert done.returncode == 0, done.stderr[-3000:]
    return [json.loads((folder / f"rank-{rank}.json").read_text()) for rank in (0, 1)]


@pytest.mark.slow
def test_two_processes_are_given_the_rows_of_one_and_learn_the_same(
    plain: TrainResult, chat: Chat, tmp_path: Path
) -> None:
    write_jsonl(tmp_path / "mixture.jsonl", mixture())
    settings = {
        "batch_rows": 8,
        "learning_rate": 5e-4,
        "log_every": 1,
        "warmup": 0.0,
        "micro_batch_rows": 3,
    }
    (tmp_path / "settings.json").write_text(json.dumps(settings))
    ranks = of_two(tmp_path)
    given = [[index for batch in rank["rows"] for index in batch] for rank in ranks]
    assert sorted(given[0] + given[1]) == list(range(32))
    for step in range(4):  # four micro-batches a step, two for each
        rows = [
            index
            for rank in ranks
            for batch in rank["rows"][2 * step : 2 * step + 2]
            for index in batch
        ]
        assert sorted(rows) == list(range(8 * step, 8 * step + 8))
    for ours, theirs in zip(ranks[0]["losses"], plain.losses, strict=True):
        for name in ("loss", "loss/target", "loss/generate"):
            assert ours[name] == pytest.approx(theirs[name], abs=5e-5)


@pytest.mark.slow
@pytest.mark.parametrize(
    "remedies",
    [
        {"distill": {"layers": [-1]}},
        {"distill": {}, "project": {}},
        {"self_distill": {"max_tokens": 16}},
    ],
    ids=str,
)
def test_what_a_remedy_measures_in_two_processes_is_of_both(
    remedies: dict[str, Any], chat: Chat, tmp_path: Path
) -> None:
    # Of four rows one is replay, so one of the processes has none.
    settings = {
        "batch_rows": 4,
        "learning_rate": 5e-4,
        "log_every": 1,
        "warmup": 0.0,
        "remedies": remedies,
    }
    write_jsonl(tmp_path / "mixture.jsonl", mixture(12))
    (tmp_path / "settings.json").write_text(json.dumps(settings))
    ranks = of_two(tmp_path)
    alone = trained(tmp_path / "alone", chat, mixture(12), **settings)
    for rank in ranks:
        for ours, theirs in zip(rank["losses"], alone.losses, strict=True):
            assert ours.keys() == theirs.keys()
            assert f"{next(iter(remedies))}/kl" in ours
            assert ours == pytest.approx(theirs, rel=2e-3, abs=1e-6)


@pytest.mark.slow
def test_of_a_stage_only_its_layers_move(chat: Chat, tmp_path: Path) -> None:
    trained(
        tmp_path, chat, mixture(), stages=[{"layers": 0.25, "part": 1.0, "learning_rate": 1e-3}]
    )
    before, after = (
        loading.load_model("nano").state_dict(),
        loading.load_model(str(tmp_path / "model")).state_dict(),
    )
    moved = {name for name in before if not torch.equal(before[name], after[name])}
    assert moved
    assert all("layers.3." in name or name == "model.norm.weight" for name in moved)


@pytest.mark.parametrize(
    "options",
    [{"method": "dora"}, {"peft": {"peft_type": "LOHA", "target_modules": ["q_proj"]}}],
    ids=str,
)
@pytest.mark.slow
def test_an_adapter_learns_and_is_merged(
    options: dict[str, Any], chat: Chat, tmp_path: Path
) -> None:
    result = trained(tmp_path, chat, mixture(64), learning_rate=1e-2, **options)
    assert (tmp_path / "adapter/adapter_model.safetensors").exists()
    assert curve(result)[-1] < curve(result)[0]
    assert (
        loading.load_model(str(tmp_path / "model")).num_parameters()
        == loading.load_model("nano").num_parameters()
    )


@pytest.mark.slow
def test_how_much_task_and_replay_are_in_conflict_is_logged_though_nothing_is_projected(
    plain: TrainResult, chat: Chat, tmp_path: Path
) -> None:
    assert not any(name.startswith("project/") for log in plain.losses for name in log)
    found = trained(tmp_path / "full", chat, mixture(), conflict=True)
    assert curve(found) == pytest.approx(curve(plain), abs=2e-5)
    adapter = trained(tmp_path / "lora", chat, mixture(), method="lora")
    for result in (found, adapter):
        assert all(
            -1 <= log["project/cosine"] <= 1 and log["project/projected"] == 0
            for log in result.losses
        )


@pytest.mark.slow
def test_bfloat16_learns_too(chat: Chat, plain: TrainResult, tmp_path: Path) -> None:
    found = trained(tmp_path, chat, mixture(), precision="bfloat16")
    assert curve(found) == pytest.approx(curve(plain), rel=0.05)


# --- encoder-decoders -----------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def t5(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A T5 of two layers with random weights, whose tokens are letters."""
    from tokenizers import Tokenizer, decoders, pre_tokenizers
    from tokenizers.models import WordLevel
    from transformers import PreTrainedTokenizerFast, T5Config, T5ForConditionalGeneration

    words = ["<pad>", "</s>", "<unk>", *"abcdefghijklmnopqrstuvwxyz "]
    letters = Tokenizer(WordLevel({word: k for k, word in enumerate(words)}, unk_token="<unk>"))
    letters.pre_tokenizer = pre_tokenizers.Split("", "isolated")
    letters.decoder = decoders.Fuse()
    folder = tmp_path_factory.mktemp("t5")
    torch.manual_seed(0)
    config = T5Config(
        vocab_size=32,
        d_model=32,
        d_kv=16,
        d_ff=64,
        num_layers=2,
        num_heads=2,
        decoder_start_token_id=0,
        dropout_rate=0.0,
    )
    T5ForConditionalGeneration(config).save_pretrained(folder)
    PreTrainedTokenizerFast(
        tokenizer_object=letters, pad_token="<pad>", eos_token="</s>", unk_token="<unk>"
    ).save_pretrained(folder)
    return str(folder)


def letters(count: int) -> list[Record]:
    return [
        Record(
            dialogue(f"say {'abcdef'[k % 6] * (1 + k % 3)}", "abcdef"[k % 6] * 2),
            "target" if k % 4 else "select",
        )
        for k in range(count)
    ]


def test_an_encoder_decoder_has_the_loss_of_transformers(t5: str, tmp_path: Path) -> None:
    chat, model, records = Chat.load(t5), loading.load_model(t5), letters(8)
    assert chat.seq2seq
    total, count = 0.0, 0
    for record in records:
        example = chat.example(record)
        begins = example.loss.index(True)
        asked, answer = (
            torch.tensor([example.tokens[:begins]]),
            torch.tensor([example.tokens[begins:]]),
        )
        with torch.no_grad():
            total += model(input_ids=asked, labels=answer).loss.item() * example.loss_tokens
        count += example.loss_tokens
    assert curve(trained(tmp_path, chat, records, t5, micro_batch_rows=3))[0] == pytest.approx(
        total / count, abs=1e-5
    )


@pytest.mark.slow
def test_an_encoder_decoder_learns_and_answers(t5: str, tmp_path: Path) -> None:
    chat = Chat.load(t5)
    result = trained(
        tmp_path,
        chat,
        letters(1200),
        t5,
        batch_rows=16,
        learning_rate=1e-2,
        schedule="constant",
        log_every=25,
    )
    assert curve(result)[-1] < 0.05
    engine = TransformersEngine(str(tmp_path / "model"))
    sampling = Sampling(temperature=0, max_tokens=6, stop=chat.stop)
    requests = [
        Request(k, chat.prompt(dialogue(f"say {letter * (1 + k % 2)}", "")[:1]), sampling)
        for k, letter in enumerate("abcdef")
    ]
    answers = {done.row: chat.decode(done.tokens) for done in engine.complete(requests)}
    assert answers == {k: letter * 2 for k, letter in enumerate("abcdef")}
    for request in requests:  # the same as transformers' own loop
        own = engine.model.generate(
            torch.tensor([request.tokens]), max_new_tokens=6, do_sample=False
        )[0]
        assert chat.decode(own.tolist()) == answers[request.row]


# --- stopping -------------------------------------------------------------------------------------------------------


TRAIN = [sys.executable, "-m", "replaykit", "train"]


def recipe(folder: Path, **train: Any) -> None:
    """A finished mix, in the working directory."""
    write_jsonl(
        folder / "target.jsonl", [record for record in mixture(400) if record.source == "target"]
    )
    settings = {"batch_rows": 8, "learning_rate": 5e-4, "save_every": 1000, "log_every": 1} | train
    (folder / "replaykit.yaml").write_text(
        f"name: run\nmodel: nano\ntarget: target.jsonl\nmix: {{ratio: 0}}\ntrain: {json.dumps(settings)}\n"
    )
    type_in("mix")


def wait_for_a_checkpoint(folder: Path) -> None:
    deadline = time.monotonic() + 120
    while not list(folder.glob("checkpoint-*/trainer_state.json")):
        assert time.monotonic() < deadline
        time.sleep(0.02)


@pytest.mark.slow
def test_sigterm_saves_and_the_same_command_goes_on(here: Path) -> None:
    recipe(here, save_every=5)
    type_in("train", "--out", "whole")
    process = subprocess.Popen(
        [*TRAIN, "--out", "cut"], stderr=subprocess.PIPE, text=True, bufsize=0
    )
    wait_for_a_checkpoint(here / "cut")
    process.send_signal(signal.SIGTERM)
    rest = process.communicate()[1]
    assert process.returncode == 0, rest
    assert "which is saved; the same command goes on from there" in rest
    assert list((here / "cut").glob("checkpoint-*"))
    type_in("train", "--out", "cut")
    curves = [
        json.loads((here / name / "manifest.json").read_text())["result"]["losses"]
        for name in ("whole", "cut")
    ]
    assert [log["loss"] for log in curves[1]] == pytest.approx(
        [log["loss"] for log in curves[0]], abs=1e-4
    )


@pytest.mark.slow
def test_a_checkpoint_of_other_settings_is_not_gone_on_from_and_the_difference_is_shown(
    here: Path,
) -> None:
    recipe(here, save_every=5)
    process = subprocess.Popen(TRAIN, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    wait_for_a_checkpoint(here / "runs/run/train")
    process.kill()
    process.wait()
    text = (here / "replaykit.yaml").read_text()
    (here / "replaykit.yaml").write_text(text.replace("0.0005", "0.0004"))
    other = CliRunner().invoke(app, ["train"])
    assert other.exit_code == 0, other.output
    assert "learning_rate was 0.0005, is 0.0004" in other.output
    assert (here / "runs/run/train.old1").is_dir()
    manifest = json.loads((here / "runs/run/train/manifest.json").read_text())
    assert manifest["result"]["losses"][0]["step"] == 1


RESUMED: dict[str, dict[str, Any]] = {
    "plain": {},
    "packed in parts": {"packing": True, "micro_batch_rows": 3},
    "layer rates": {"layer_rates": {"bottom": 1e-5, "top": 1e-3}, "learning_rate": None},
    "stages": {"stages": [{"layers": 0.5, "part": 0.5}, {"part": 0.5, "learning_rate": 1e-4}]},
    "stm": {"remedies": {"stm": {"max_perplexity": None, "share": 0.5}}},
    "flow": {"remedies": {"flow": {}}},
    "dft": {"remedies": {"dft": True}},
    "eaft": {"remedies": {"eaft": {}}},
    "ewc": {"remedies": {"ewc": {"rows": 4, "strength": 10.0}}},
    "ewc, auto": {"remedies": {"ewc": {"rows": 4, "auto": 0.1}}},
    "ewc, hard": {"remedies": {"ewc": {"rows": 4, "hard": 0.1, "max_shift": 0.01}}},
    "ewc, hard with strength": {
        "remedies": {"ewc": {"rows": 4, "strength": 10.0, "hard": 0.1, "max_shift": 0.01}}
    },
    "ewc, lora": {
        "method": "lora",
        "learning_rate": 5e-3,
        "remedies": {"ewc": {"rows": 4, "strength": 10.0}},
    },
    "l2sp": {"remedies": {"l2sp": {"strength": 10.0}}},
    "distill, copy": {"remedies": {"distill": {"layers": [-1]}}},
    "distill, cache": {"remedies": {"distill": {"teacher": "cache", "top_k": 8}}},
    "distill, lora": {
        "method": "lora",
        "learning_rate": 5e-3,
        "remedies": {"distill": {"rows": "all"}},
    },
    "project": {"remedies": {"project": {"min_cosine": 0.5}}},
    "ema": {"remedies": {"ema": {"decay": 0.8}}},
    "self-distillation": {"remedies": {"self_distill": {"decay": 0.8, "max_tokens": 16}}},
    "self-distillation, lora": {
        "method": "lora",
        "learning_rate": 5e-3,
        "remedies": {"self_distill": {"teacher": "base", "max_tokens": 16}},
    },
    "weights in bfloat16": {"weights": "bfloat16"},
    "moments in 8 bits": {"weights": "bfloat16", "optimiser": "adamw_8bit"},
    "weights in bfloat16, remedies": {
        "weights": "bfloat16",
        "remedies": {"distill": {}, "project": {}, "ewc": {"rows": 4}, "ema": {"decay": 0.8}},
    },
    "all together": {
        "remedies": {
            "distill": {},
            "project": {},
            "ewc": {"rows": 4},
            "ema": {"decay": 0.8},
            "dft": True,
        },
        "micro_batch_rows": 3,
    },
}


@contextmanager
def stops_after(steps: int, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Within it, a training is asked to stop when so many steps are done, as by SIGTERM."""
    done = 0

    def count(self: Any, args: Any, state: Any, control: Any, **given: Any) -> None:
        nonlocal done
        done = state.global_step
        plain_end(self, args, state, control, **given)

    @contextmanager
    def signalled(*_: Any) -> Iterator[Any]:
        yield lambda: signal.SIGTERM if done >= steps else 0

    plain_end = trainer.WatchCallback.on_step_end
    with monkeypatch.context() as patch:
        patch.setattr(fitting, "stop_on_signal", signalled)
        patch.setattr(trainer.WatchCallback, "on_step_end", count)
        yield


@pytest.mark.slow
@pytest.mark.parametrize("name", RESUMED)
def test_resumed_in_the_middle_the_curve_and_the_model_are_the_same(
    name: str, chat: Chat, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = trained(tmp_path / "whole", chat, mixture(), **RESUMED[name])
    with (
        stops_after(2, monkeypatch),
        pytest.raises(Stopped, match="stopped at step 2 of 4") as raised,
    ):
        trained(tmp_path / "cut", chat, mixture(), **RESUMED[name])
    assert raised.value.exit_code == 0
    gone_on = trained(tmp_path / "cut", chat, mixture(), **RESUMED[name])
    assert [log["step"] for log in gone_on.losses] == [1, 2, 3, 4]
    for ours, theirs in zip(gone_on.losses, whole.losses, strict=True):
        assert ours.keys() == theirs.keys()
        assert ours == pytest.approx(theirs, rel=1e-3, abs=2e-5)
    for one, other in zip(
        *(
            loading.load_model(str(tmp_path / kind / "model")).parameters()
            for kind in ("whole", "cut")
        ),
        strict=True,
    ):
        torch.testing.assert_close(one, other, rtol=2e-3, atol=2e-5)
    if "remedies" in RESUMED[name]:
        assert (
            curve_without(RESUMED[name], chat, tmp_path / "none") != curve(whole) or name == "ema"
        )


WITHOUT: dict[str, list[float]] = {}


def curve_without(options: dict[str, Any], chat: Chat, folder: Path) -> list[float]:
    """The losses of the same training without its remedies, which several tests share."""
    others = options | {"remedies": {}}
    key = json.dumps(others)
    if key not in WITHOUT:
        WITHOUT[key] = curve(trained(folder, chat, mixture(), **others))
    return WITHOUT[key]


# --- a controller ---------------------------------------------------------------------------------------------------


def watched(replay: list[Record], **settings: Any) -> ControllerInputs:
    """Tests of three old skills on 20 items each, and two held-out rows of the target."""

    def tests(skill: str, rows: int) -> list[Record]:
        tasks = world.draw(skill, rows, seed=1, held_out=True)
        return [Record(dialogue(task.prompt, task.answer), "target") for task in tasks]

    old = {
        skill: (Test(path="unread"), tests(skill, 20)) for skill in ("capital", "reverse", "topic")
    }
    new = tests("referral", 2)
    made = ControllerSettings.model_validate(
        {"every": 4, "max_drop": 0.01, "patience": None} | settings
    )
    return ControllerInputs(made, old, new, replay, Mix(ratio=0.1, unit="rows"))


def controlled(
    folder: Path, chat: Chat, *, log_every: int = 1, save_every: int = 200, **settings: Any
) -> TrainResult:
    replay = [
        Record(dialogue(t.prompt, t.answer), "generate", {"skill": t.skill})
        for t in world.draw_old(200, seed=1)
    ]
    target = [record for record in mixture(128) if record.source == "target"]
    folder.mkdir(parents=True, exist_ok=True)
    made = Train(
        batch_rows=8, learning_rate=2e-3, log_every=log_every, save_every=save_every, warmup=0.0
    )
    extras = Extras(watched=watched(replay, **settings))
    rows = planned(target, 8)
    return fit(rows, Base("nano", chat), made, seed=1, folder=folder, extras=extras)


@pytest.mark.slow
def test_a_controller_raises_the_share_where_old_skills_drop_and_a_resumed_run_decides_the_same(
    chat: Chat, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = controlled(tmp_path / "whole", chat)
    assert whole.events is not None
    ratios = [event.ratio for event in whole.events]
    assert len(ratios) == 3
    assert ratios[-1] > 0.1
    assert whole.steps == 12
    with stops_after(6, monkeypatch), pytest.raises(Stopped):
        controlled(tmp_path / "cut", chat)
    gone_on = controlled(tmp_path / "cut", chat)
    assert gone_on.events == whole.events
    assert gone_on.tokens == whole.tokens
    assert curve(gone_on) == pytest.approx(curve(whole), rel=1e-3)
    written = [(tmp_path / name / "events.jsonl").read_text() for name in ("whole", "cut")]
    assert written[0] == written[1]


@pytest.mark.slow
def test_a_run_that_the_controller_had_stopped_is_saved_as_it_was(
    chat: Chat, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = {"every": 2, "patience": 1, "max_drop": 0.9}
    rising = iter([1.0, 2.0, 3.0])
    monkeypatch.setattr(
        Controller, "_measure", lambda self, model: (base_items(self), next(rising))
    )
    whole = controlled(tmp_path / "whole", chat, log_every=50, **settings)
    assert whole.steps < 12
    assert len(whole.losses) == 1, "the end is logged, whatever log_every is"

    def killed(*_: Any) -> None:
        raise KeyboardInterrupt

    rising = iter([1.0, 2.0, 3.0])
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(fitting, "_save", killed)
        controlled(tmp_path / "cut", chat, log_every=50, save_every=1, **settings)
    gone_on = controlled(tmp_path / "cut", chat, log_every=50, save_every=1, **settings)
    assert gone_on.losses == whole.losses
    for one, other in zip(
        *(
            loading.load_model(str(tmp_path / kind / "model")).parameters()
            for kind in ("whole", "cut")
        ),
        strict=True,
    ):
        torch.testing.assert_close(one, other)


def base_items(controller: Controller) -> dict[str, list[Answer]]:
    return {skill: [Answer(True, 0.0, 1) for _ in rows] for skill, rows in controller._rows.items()}


def test_the_target_rows_of_a_step_stay_and_replay_follows_the_controller(
    chat: Chat, tmp_path: Path
) -> None:
    replay = [
        Record(dialogue(t.prompt, t.answer), "generate", {"skill": t.skill})
        for t in world.draw_old(90, seed=1)
    ]
    target = [record for record in mixture(128) if record.source == "target"]
    shares = {0: 0.0, 1: 0.25, 2: 0.5}

    class Fixed:
        inputs = watched(replay, by_skill=True)

        def ratio(self, step: int) -> float:
            return shares[step]

        def weights(self, step: int) -> dict[str, float]:
            return {"capital": 0.75, "reverse": 0.25, "topic": 0.0}

    layout = lay_out(planned(target, 32), Fixed.inputs)
    records = layout.records
    data = TokenisedRows(records, chat)
    cut = Cut(5, apart=False, world=1)
    controlled = ControlledBatches(data, layout, Fixed(), cut, seed=1)  # type: ignore[arg-type]
    batches = list(controlled)
    parts = controlled.parts
    assert len(batches) == len(controlled) == 3 * parts
    of_step = [
        [i for batch in batches[k * parts : (k + 1) * parts] for i in batch] for k in range(3)
    ]
    for step, rows in enumerate(of_step):
        assert sorted(i for i in rows if i < len(target)) == list(range(32 * step, 32 * step + 32))
        share = sum(i >= len(target) for i in rows) / len(rows)
        assert abs(share - shares[step]) <= 1 / len(rows)
    skills = Counter(records[i].meta["skill"] for rows in of_step for i in rows if i >= len(target))
    assert skills["capital"] == pytest.approx(3 * skills["reverse"], abs=2)
    assert list(controlled) == batches


def test_a_controller_of_skills_needs_replay_that_names_them(chat: Chat) -> None:
    replay = [Record(dialogue(t.prompt, t.answer), "generate") for t in world.draw_old(9, seed=1)]
    with pytest.raises(
        RecipeError, match=r"no replay row names a skill of eval\.old \(capital, reverse, topic\)"
    ):
        pools_of(watched(replay, by_skill=True))


@pytest.mark.slow
def test_without_old_skills_patience_watches_the_loss_on_the_target_and_says_so(
    chat: Chat, tmp_path: Path
) -> None:
    target = [record for record in mixture(64) if record.source == "target"]
    held_out = [
        Record(dialogue(task.prompt, task.answer), "target")
        for task in world.draw("referral", 4, seed=2, held_out=True)
    ]
    settings = ControllerSettings(every=1, patience=2)
    extras = Extras(watched=ControllerInputs(settings, {}, held_out))
    # So high a rate that no test is better than the one before training.
    made = Train(batch_rows=8, learning_rate=10.0, log_every=1, warmup=0.0)
    rows = planned(target, 8)
    result = fit(rows, Base("nano", chat), made, seed=1, folder=tmp_path, extras=extras)
    assert result.steps == 2
    assert result.events is not None
    assert [(event.step, event.scores, event.worst) for event in result.events] == [
        (1, {}, None),
        (2, {}, None),
    ]
    assert result.events[-1].stop
    assert result.notes == [
        "train.controller watched only the loss on eval.target, for patience: eval.old names no "
        "old skills to test"
    ]


# --- what cannot be -------------------------------------------------------------------------------------------------


def test_rows_of_an_encoder_decoder_are_not_packed(t5: str, tmp_path: Path) -> None:
    with pytest.raises(
        RecipeError, match=r"train\.packing: rows of an encoder-decoder cannot be packed"
    ):
        trained(tmp_path, Chat.load(t5), letters(8), model=t5, packing=True)


@pytest.mark.parametrize("every", [500, 13])
def test_a_training_that_is_too_short_for_a_test_is_refused_before_the_model_is_loaded(
    every: int, chat: Chat, tmp_path: Path
) -> None:
    with pytest.raises(
        RecipeError,
        match=rf"train\.controller\.every: a test every {every} steps is none in a training of 12; "
        r"say 12 or fewer",
    ):
        controlled(tmp_path, chat, every=every)
    assert not list(tmp_path.iterdir())


def test_tests_without_an_answer_are_named(chat: Chat, tmp_path: Path) -> None:
    made = watched(
        [Record(dialogue(t.prompt, t.answer), "generate") for t in world.draw_old(20, seed=1)]
    )
    test, _ = made.old["topic"]
    no_answer = Record([{"role": "user", "content": "Which topic?"}], "target")
    extras = Extras(watched=replace(made, old={**made.old, "topic": (test, [no_answer])}))
    with pytest.raises(DataError, match=r"eval\.old\.topic: none of its rows has an answer"):
        fit(
            planned(mixture(32), 8), Base("nano", chat), Train(batch_rows=8), seed=1,
            folder=tmp_path, extras=extras,
        )  # fmt: skip


@pytest.mark.parametrize("name", ["ewc", "distill", "project"])
def test_a_remedy_that_needs_replay_says_so_where_there_is_none(
    name: str, chat: Chat, tmp_path: Path
) -> None:
    target = [record for record in mixture() if record.source == "target"]
    with pytest.raises(RecipeError, match=rf"train\.remedies\.{name}: it needs replay rows"):
        trained(tmp_path, chat, target, remedies={name: {}})
