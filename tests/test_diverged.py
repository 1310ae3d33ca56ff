"""A training whose numbers are not finite any more: nothing of it is saved, and only rows that did it are named."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers
from commands import two_ranks, type_in
from safetensors.torch import load_file
from typer.testing import CliRunner

from replaykit.cli import app
from replaykit.data.jsonl import write_jsonl
from replaykit.data.planned import PlannedRow
from replaykit.data.record import Record, dialogue
from replaykit.errors import DataError, EngineError
from replaykit.model.chat import Chat
from replaykit.nano import world
from replaykit.recipe.train import Train
from replaykit.steps.train.fit import Base, Extras, fit
from replaykit.steps.train.result import TrainResult

WIDTH = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2}


def records(count: int = 16) -> list[Record]:
    """The last of four is replay."""
    new = world.draw("referral", count - count // 4, seed=1)
    old = world.draw_old(count // 4, seed=1)
    rows = [Record(dialogue(task.prompt, task.answer), "target") for task in new]
    replay = [Record(dialogue(task.prompt, task.answer), "generate") for task in old]
    return [replay[k // 4] if k % 4 == 3 else rows[k - k // 4] for k in range(count)]


@pytest.fixture(scope="module")
def llama(chat: Chat, tmp_path_factory: pytest.TempPathFactory) -> str:
    torch.manual_seed(0)
    config = transformers.LlamaConfig(vocab_size=len(chat.tokenizer), intermediate_size=48, **WIDTH)
    folder = tmp_path_factory.mktemp("llama")
    transformers.LlamaForCausalLM(config).save_pretrained(folder)
    return str(folder)


def trained(
    folder: Path,
    chat: Chat,
    model: str,
    *,
    rows: list[Record] | None = None,
    weights: Mapping[str, np.ndarray] | None = None,
    callbacks: Any = (),
    **settings: Any,
) -> TrainResult:
    options = {"batch_rows": 4, "learning_rate": 1e-2, "log_every": 1, "warmup": 0.0} | settings
    made = Train.model_validate(options)
    folder.mkdir(parents=True, exist_ok=True)
    planned = [PlannedRow(k // 4, record) for k, record in enumerate(rows or records())]
    extras = Extras(weights=weights, callbacks=callbacks)
    return fit(planned, Base(model, chat), made, seed=1, folder=folder, extras=extras)


def finite(checkpoint: Path) -> bool:
    tensors = load_file(checkpoint / "model.safetensors")
    return all(bool(torch.isfinite(values).all()) for values in tensors.values())


def named(error: BaseException) -> list[str]:
    return [record.id for record in records() if record.id in str(error)]


class Told(transformers.TrainerCallback):
    """The parameters after each step."""

    def __init__(self) -> None:
        self.after: list[dict[str, torch.Tensor]] = []

    def on_step_end(self, args: Any, state: Any, control: Any, model: Any = None, **_: Any) -> None:
        given = model.named_parameters()
        self.after.append({name: parameter.detach().clone() for name, parameter in given})


# --- after an update ------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "options",
    [
        {"learning_rate": 1e38},
        {"learning_rate": 1e38, "remedies": {"ema": {}}},
        {"learning_rate": 1e38, "method": "lora"},
    ],
    ids=str,
)
def test_a_model_that_the_last_step_has_made_infinite_is_not_saved(
    options: dict[str, Any], chat: Chat, llama: str, tmp_path: Path
) -> None:
    with pytest.raises(
        EngineError, match=r"not finite.* not saved.*train\.learning_rate"
    ) as raised:
        trained(tmp_path, chat, llama, rows=records(4), **options)
    assert not (tmp_path / "model").exists()
    assert "there is no checkpoint yet" in str(raised.value)
    assert named(raised.value) == []


def test_a_model_that_is_finite_only_in_a_wider_precision_than_the_bases_is_not_saved(
    chat: Chat, tmp_path: Path
) -> None:
    with pytest.raises(EngineError, match=r"not finite as torch\.float16.*is not saved"):
        trained(tmp_path, chat, "nano", rows=records(4), learning_rate=1e9)
    assert not (tmp_path / "model").exists()


def test_a_checkpoint_of_parameters_that_are_not_finite_is_not_written(
    chat: Chat, llama: str, tmp_path: Path
) -> None:
    class Spoil(transformers.TrainerCallback):
        """As an optimiser's overflow does."""

        def on_step_end(self, args: Any, state: Any, control: Any, model: Any = None, **_: Any):
            if state.global_step == 3:
                with torch.no_grad():
                    model.model.norm.weight[5] = float("inf")

    with pytest.raises(
        EngineError, match=r"model\.norm\.weight is not finite after step 3"
    ) as raised:
        trained(tmp_path, chat, llama, save_every=1, callbacks=[Spoil()])
    assert f"the last whole checkpoint is {tmp_path / 'checkpoint-2'}" in str(raised.value)
    assert finite(tmp_path / "checkpoint-2")
    assert sorted(path.name for path in tmp_path.glob("checkpoint*")) == [
        "checkpoint-1",
        "checkpoint-2",
    ]
    assert trained(tmp_path, chat, llama, save_every=1).steps == 4


def test_where_an_update_made_the_model_infinite_no_row_is_named(
    chat: Chat, llama: str, tmp_path: Path
) -> None:
    class Spoil(transformers.TrainerCallback):
        def on_step_end(self, args: Any, state: Any, control: Any, model: Any = None, **_: Any):
            if state.global_step == 2:
                with torch.no_grad():
                    model.model.embed_tokens.weight.fill_(float("inf"))

    with pytest.raises(
        EngineError, match=r"the loss is nan.* at step 3: the step before has made the parameters"
    ) as raised:
        trained(tmp_path, chat, llama, callbacks=[Spoil()])
    assert named(raised.value) == []


# --- before an update -----------------------------------------------------------------------------


def with_a_bad_token(chat: Chat, folder: Path, token: int) -> str:
    """An OPT whose layers norm what they give and not what they take, so that an embedding of
    1e25, which is finite, makes attention of it infinite.
    """
    config = transformers.OPTConfig(
        vocab_size=len(chat.tokenizer),
        ffn_dim=48,
        do_layer_norm_before=False,
        word_embed_proj_dim=32,
        tie_word_embeddings=False,
        dropout=0.0,
        **WIDTH,
    )
    torch.manual_seed(0)
    network = transformers.OPTForCausalLM(config)
    with torch.no_grad():
        network.get_input_embeddings().weight[token] = 1e25
    network.save_pretrained(folder)
    return str(folder)


def own_token(chat: Chat, rows: list[Record], place: int) -> int:
    """A token that only one of the rows has."""
    tokens = [set(chat.example(row).tokens) for row in rows]
    others = set().union(*(found for k, found in enumerate(tokens) if k != place))
    return min(tokens[place] - others)


@pytest.mark.slow
@pytest.mark.parametrize(
    "options",
    [{}, {"micro_batch_rows": 1}, {"method": "lora"}, {"remedies": {"distill": {}}}],
    ids=str,
)
def test_only_the_row_whose_own_loss_is_not_finite_is_named_and_nothing_moves(
    options: dict[str, Any], chat: Chat, tmp_path: Path
) -> None:
    rows = records()
    model = with_a_bad_token(chat, tmp_path / "model-of-old", own_token(chat, rows, 9))
    told = Told()
    folder = tmp_path / "train"
    with pytest.raises(EngineError, match=r"the loss is nan.* at step 3, in the rows") as raised:
        trained(folder, chat, model, rows=rows, save_every=1, callbacks=[told], **options)
    assert named(raised.value) == [rows[9].id]
    assert len(told.after) == 2, "the third step moved nothing"
    assert f"the last whole checkpoint is {folder / 'checkpoint-2'}" in str(raised.value)


@pytest.mark.slow
def test_of_two_processes_both_end_and_name_the_row_that_one_of_them_had(
    chat: Chat, tmp_path: Path
) -> None:
    rows = records(8)
    model = with_a_bad_token(chat, tmp_path / "model-of-old", own_token(chat, rows, 5))
    write_jsonl(tmp_path / "mixture.jsonl", rows)
    settings = {"batch_rows": 4, "micro_batch_rows": 1, "learning_rate": 1e-2, "save_every": 1}
    (tmp_path / "settings.json").write_text(json.dumps(settings))
    done = two_ranks(tmp_path, model)
    assert done.returncode != 0
    errors = [line for line in done.stderr.splitlines() if "EngineError: " in line]
    assert errors
    for line in errors:
        assert "at step 2, in the rows" in line
        assert [row.id for row in rows if row.id in line] == [rows[5].id]
        assert f"the last whole checkpoint is {tmp_path / 'train/checkpoint-1'}" in line


def test_a_gradient_that_is_not_finite_moves_nothing_though_the_loss_is(
    chat: Chat, llama: str, tmp_path: Path
) -> None:
    """The penalty's gradient is too large for its precision as soon as a parameter has moved."""
    told = Told()
    with pytest.raises(EngineError) as raised:
        trained(
            tmp_path,
            chat,
            llama,
            save_every=1,
            callbacks=[told],
            remedies={"l2sp": {"strength": 3e38}},
            learning_rate=10.0,
        )
    message = str(raised.value)
    assert message.startswith("the gradient's norm is inf at step 2, and no row by itself is to")
    assert len(told.after) == 1
    assert named(raised.value) == []
    assert f"the last whole checkpoint is {tmp_path / 'checkpoint-1'}" in message
    assert finite(tmp_path / "checkpoint-1")


def test_a_base_that_is_not_finite_is_named_before_the_first_step(
    chat: Chat, llama: str, tmp_path: Path
) -> None:
    network = transformers.AutoModelForCausalLM.from_pretrained(llama)
    with torch.no_grad():
        network.model.layers[1].mlp.up_proj.weight[0, 0] = float("nan")
    network.save_pretrained(tmp_path / "damaged")
    with pytest.raises(
        EngineError,
        match=r"untrained model's parameter model\.layers\.1\.mlp\.up_proj\.weight is not",
    ):
        trained(tmp_path / "train", chat, str(tmp_path / "damaged"))


@pytest.mark.slow
def test_after_a_training_that_diverged_the_same_command_with_a_lower_rate_goes_through(
    here: Path,
) -> None:
    write_jsonl(here / "target.jsonl", records(32))
    recipe = (
        "name: run\nmodel: nano\ntarget: target.jsonl\nmix: {ratio: 0}\n"
        "train: {batch_rows: 8, warmup: 0.0, save_every: 1, learning_rate: 1.0e+38}\n"
    )
    (here / "replaykit.yaml").write_text(recipe)
    type_in("mix")
    for _ in range(2):
        failed = CliRunner().invoke(app, ["train"])
        assert failed.exit_code == 1
        assert "not finite" in failed.output
    (here / "replaykit.yaml").write_text(recipe.replace("1.0e+38", "1.0e-4"))
    assert "steps" in type_in("train")


# --- memory ---------------------------------------------------------------------------------------


class Allocate(transformers.TrainerCallback):
    """Asks for more memory than any machine has, in its third step."""

    def __init__(self, allocate: Any):
        self.allocate = allocate

    def on_step_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        if state.global_step == 2:
            self.allocate()


PEBIBYTE = 2**50


@pytest.mark.parametrize(
    "allocate",
    [
        lambda: torch.empty(PEBIBYTE, dtype=torch.uint8),
        lambda: torch.zeros(4, 4).expand(2**22, 2**22, 4, 4).contiguous(),
        lambda: np.zeros(2**55),
    ],
    ids=["torch", "a copy", "numpy"],
)
def test_an_allocation_that_fails_on_a_cpu_is_told_as_one_on_a_gpu_is(
    allocate: Any, chat: Chat, llama: str, tmp_path: Path
) -> None:
    with pytest.raises(EngineError) as raised:
        trained(
            tmp_path, chat, llama, micro_batch_rows=3, save_every=1, callbacks=[Allocate(allocate)]
        )
    assert str(raised.value) == (
        "out of memory; lower train.micro_batch_rows (now 3) or train.max_tokens, set "
        "train.gradient_checkpointing: true, or use train.method: lora; the last whole checkpoint "
        f"is {tmp_path / 'checkpoint-2'}"
    )


def test_an_error_of_another_kind_is_not_told_as_one_of_memory(
    chat: Chat, llama: str, tmp_path: Path
) -> None:
    with pytest.raises(RuntimeError, match="must match"):
        trained(
            tmp_path, chat, llama, callbacks=[Allocate(lambda: torch.zeros(2) + torch.zeros(3))]
        )


# --- masked rows ----------------------------------------------------------------------------------


def masked(chat: Chat, rows: list[Record]) -> dict[str, np.ndarray]:
    return {row.id: np.zeros(chat.example(row).loss_tokens, dtype=np.float32) for row in rows}


@pytest.mark.parametrize("remedies", [{}, {"distill": {}}, {"distill": {"layers": [-1]}}], ids=str)
def test_where_every_token_is_masked_there_is_nothing_to_train(
    remedies: dict[str, Any], chat: Chat, llama: str, tmp_path: Path
) -> None:
    with pytest.raises(DataError, match="every answer token of the mixture is masked"):
        trained(tmp_path, chat, llama, weights=masked(chat, records()), remedies=remedies)


@pytest.mark.slow
@pytest.mark.parametrize(
    "options",
    [
        {"remedies": {"distill": {}}},
        {"remedies": {"distill": {"rows": "all", "layers": [-1]}, "ewc": {"rows": 2}}},
        {"remedies": {"distill": {}, "project": {}}, "micro_batch_rows": 1},
        {"weight_decay": 0.5},
    ],
    ids=str,
)
def test_a_step_whose_tokens_are_all_masked_moves_nothing_and_its_loss_is_0(
    options: dict[str, Any], chat: Chat, llama: str, tmp_path: Path
) -> None:
    told = Told()
    weights = masked(chat, records()[8:12])
    result = trained(tmp_path, chat, llama, weights=weights, callbacks=[told], **options)
    losses = [log["loss"] for log in result.losses]
    assert losses[2] == 0
    assert all(loss > 1 for k, loss in enumerate(losses) if k != 2)
    first, second, third, fourth = told.after
    assert all(torch.equal(second[name], third[name]) for name in second)
    assert not any(torch.equal(first[name], second[name]) for name in first)
    assert not any(torch.equal(third[name], fourth[name]) for name in third)
    assert result.notes == [
        "1 of 4 steps moved nothing: every answer token of their rows is masked"
    ]
