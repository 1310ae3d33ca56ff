"""Architectures of transformers, each in a tiny random model: loaded, packed, trained, under LoRA, saved, gone on from
and asked, with the numbers of plain transformers; or refused with one message."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from architectures import CONFIGS, save
from safetensors.torch import load_file, save_file

from replaykit.data.planned import PlannedRow
from replaykit.data.record import Record, dialogue
from replaykit.engines import Request, Sampling
from replaykit.engines.transformers import TransformersEngine
from replaykit.errors import EngineError, RecipeError
from replaykit.model import loading
from replaykit.model.chat import Chat, Example
from replaykit.nano import world
from replaykit.recipe.train import Train
from replaykit.steps.train.fit import Base, Extras, fit
from replaykit.steps.train.result import TrainResult

SEQ2SEQ = ("t5", "bart")
# Their packed rows see one another.
NEVER_PACKED = ("opt", "bloom", "falcon", "mpt", "mamba", "mamba2", "lfm2", "qwen3_next", "gpt_oss")
ROWS = 4  # of a step
STEPS = 2


class Cut(Exception):
    """The training ended before its time."""


class Watched(transformers.TrainerCallback):
    """Keeps what the model says of a row in the end; ends the training after a checkpoint where it shall."""

    def __init__(self, example: Example, *, cut: bool = False):
        self.example = example
        self.cut = cut
        self.said: torch.Tensor | None = None

    def on_save(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        if self.cut:
            raise Cut

    def on_train_end(
        self, args: Any, state: Any, control: Any, model: Any = None, **_: Any
    ) -> None:
        self.said = logits(model.eval(), self.example)


def logits(model: Any, example: Example) -> torch.Tensor:
    """Of the answer's tokens, by transformers alone."""
    begins = example.loss.index(True)
    tokens = torch.tensor([example.tokens])
    with torch.no_grad():
        if model.config.is_encoder_decoder:
            answer = tokens[:, begins:]
            made = model.prepare_decoder_input_ids_from_labels(labels=answer)
            return model(input_ids=tokens[:, :begins], decoder_input_ids=made).logits[0]
        return model(input_ids=tokens, use_cache=False).logits[0, begins - 1 : -1]


def loss(model: Any, examples: Sequence[Example]) -> float:
    """In nats an answer token, row by row."""
    total = count = 0.0
    for example in examples:
        answer = torch.tensor([t for t, on in zip(example.tokens, example.loss, strict=True) if on])
        # Of one answer a row: its tokens stand behind one another.
        said = logits(model, example)[: len(answer)]
        total += float(torch.nn.functional.cross_entropy(said, answer, reduction="sum"))
        count += len(answer)
    return total / count


def records() -> list[Record]:
    tasks = world.draw("referral", ROWS * STEPS, seed=1)
    return [Record(dialogue(task.prompt, task.answer), "target") for task in tasks]


def trained(folder: Path, model: str, *callbacks: Any, **settings: Any) -> TrainResult:
    folder.mkdir(exist_ok=True)
    options = {"learning_rate": 1e-2, "warmup": 0.0, "log_every": 1, "save_every": 1}
    made = Train.model_validate(options | {"micro_batch_rows": 2} | settings)
    rows = [PlannedRow(k // ROWS, record) for k, record in enumerate(records())]
    extras = Extras(callbacks=callbacks)
    return fit(rows, Base(model, Chat.load(model)), made, seed=1, folder=folder, extras=extras)


def curve(result: TrainResult) -> list[float]:
    return [log["loss"] for log in result.losses]


def greedy(model: Any, prompt: Sequence[int], count: int) -> list[int]:
    """The most probable tokens, without a cache and without other rows."""
    made: list[int] = []
    start = model.config.decoder_start_token_id if model.config.is_encoder_decoder else None
    for _ in range(count):
        given = {"input_ids": torch.tensor([[*prompt, *made]])}
        if start is not None:
            given = {
                "input_ids": torch.tensor([list(prompt)]),
                "decoder_input_ids": torch.tensor([[start, *made]]),
            }
        with torch.no_grad():
            made.append(int(model(**given, use_cache=False).logits[0, -1].argmax()))
    return made


@pytest.mark.slow
@pytest.mark.parametrize("kind", CONFIGS)
def test_an_architecture_learns_by_its_own_logits_and_is_saved_gone_on_from_and_asked(
    kind: str, tmp_path: Path
) -> None:
    folder = save(tmp_path / "base", kind)
    examples = [Chat.load(folder).example(record) for record in records()]
    whole = Watched(examples[0])
    result = trained(tmp_path / "whole", folder, whole)
    base = loading.load_model(folder).eval()
    assert curve(result)[0] == pytest.approx(loss(base, examples[:ROWS]), abs=1e-4)
    assert whole.said is not None
    assert (whole.said - logits(base, examples[0])).abs().max() > 1e-2  # it has learned
    # What is saved is what was trained, and loads whole.
    tuned = loading.load_model(result.model).eval()
    torch.testing.assert_close(logits(tuned, examples[0]), whole.said, rtol=1e-5, atol=1e-5)
    # Cut after the first step, it goes on to the same end.
    with pytest.raises(Cut):
        trained(tmp_path / "cut", folder, Watched(examples[0], cut=True))
    resumed = Watched(examples[0])
    assert curve(trained(tmp_path / "cut", folder, resumed)) == curve(result)
    torch.testing.assert_close(resumed.said, whole.said, rtol=0, atol=0)
    # Rows of several lengths in a batch, some of which leave it early, are each answered as if alone.
    prompts = [example.tokens[: 5 + 4 * k] for k, example in enumerate(examples[:4])]
    asked = [
        Request(k, prompt, Sampling(temperature=0.0, max_tokens=2 + 3 * (k % 2)), seed=1)
        for k, prompt in enumerate(prompts)
    ]
    for made in TransformersEngine(tuned).complete(asked):
        assert list(made.tokens) == greedy(tuned, prompts[made.row], len(made.tokens))


@pytest.mark.slow
@pytest.mark.parametrize("kind", [kind for kind in CONFIGS if kind not in SEQ2SEQ])
def test_packed_rows_change_nothing_or_are_refused(kind: str, tmp_path: Path) -> None:
    folder = save(tmp_path / "base", kind)
    if kind in NEVER_PACKED:
        with pytest.raises(RecipeError, match="train.packing: .* set train.packing: false"):
            trained(tmp_path / "packed", folder, packing=True)
        assert not list(tmp_path.glob("packed/checkpoint-*"))
        return
    apart = curve(trained(tmp_path / "apart", folder))
    assert curve(trained(tmp_path / "packed", folder, packing=True)) == pytest.approx(
        apart, abs=2e-5
    )


@pytest.mark.slow
@pytest.mark.parametrize("kind", CONFIGS)
def test_an_adapter_learns_in_each_of_its_layers_and_is_merged(kind: str, tmp_path: Path) -> None:
    folder = save(tmp_path / "base", kind)
    example = Chat.load(folder).example(records()[0])
    watched = Watched(example)
    result = trained(tmp_path / "tuned", folder, watched, method="lora", learning_rate=2e-2)
    assert result.adapter is not None and watched.said is not None
    weights = load_file(Path(result.adapter) / "adapter_model.safetensors")
    # lora_B begins at 0, so one that is 0 has learned nothing.
    unmoved = [name for name, tensor in weights.items() if "lora_B" in name and not tensor.any()]
    assert unmoved == []
    merged = loading.load_model(result.model).eval()
    torch.testing.assert_close(logits(merged, example), watched.said, rtol=1e-4, atol=1e-4)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("kind", "targets"),
    [
        ("gpt2", ["lm_head", "c_attn"]),
        ("gemma2", ["embed_tokens", "q_proj"]),
        ("gemma2", ["lm_head", "embed_tokens"]),
        ("t5", ["lm_head", "q"]),
    ],
)
def test_an_adapter_on_one_end_of_tied_weights_is_merged_into_that_end_alone(
    kind: str, targets: list[str], tmp_path: Path
) -> None:
    folder = save(tmp_path / "base", kind, tie_word_embeddings=True)
    example = Chat.load(folder).example(records()[0])
    watched = Watched(example)
    peft = {"peft_type": "LORA", "target_modules": targets, "r": 4}
    result = trained(tmp_path / "tuned", folder, watched, peft=peft, learning_rate=2e-2)
    assert watched.said is not None
    merged = loading.load_model(result.model).eval()
    torch.testing.assert_close(logits(merged, example), watched.said, rtol=1e-4, atol=1e-4)


def test_a_checkpoint_that_lacks_a_weight_is_not_gone_on_from(tmp_path: Path) -> None:
    folder = save(tmp_path / "base", "llama")
    example = Chat.load(folder).example(records()[0])
    with pytest.raises(Cut):
        trained(tmp_path / "cut", folder, Watched(example, cut=True))
    file = tmp_path / "cut/checkpoint-1/model.safetensors"
    tensors = load_file(file)
    del tensors["model.norm.weight"]
    save_file(tensors, file, {"format": "pt"})
    # The list of files knows nothing of it: so was it written.
    listed = file.with_name("files.json")
    sizes = json.loads(listed.read_text()) | {file.name: file.stat().st_size}
    listed.write_text(json.dumps(sizes))
    with pytest.raises(EngineError, match="checkpoint in .*cut has no weights for model.norm.wei"):
        trained(tmp_path / "cut", folder)


# --- how a model is sampled from ------------------------------------------------------------------

VICUNA = '{"do_sample": false, "temperature": 0.6, "top_p": 0.9, "eos_token_id": 2}\n'


def test_a_generation_config_that_transformers_does_not_save_is_kept_as_it_came(
    tmp_path: Path,
) -> None:
    folder = save(tmp_path / "base", "llama")
    Path(folder, "generation_config.json").write_text(VICUNA)
    result = trained(tmp_path / "tuned", folder)
    assert Path(result.model, "generation_config.json").read_text() == VICUNA
    # Every checkpoint was saved, too: it is gone on from.
    example = Chat.load(folder).example(records()[0])
    with pytest.raises(Cut):
        trained(tmp_path / "cut", folder, Watched(example, cut=True))
    assert curve(trained(tmp_path / "cut", folder)) == curve(result)


def test_so_it_is_with_an_adapter(tmp_path: Path) -> None:
    folder = save(tmp_path / "base", "llama")
    Path(folder, "generation_config.json").write_text(VICUNA)
    result = trained(tmp_path / "tuned", folder, method="lora")
    assert Path(result.model, "generation_config.json").read_text() == VICUNA


def test_so_it_is_with_one_in_config_json(tmp_path: Path) -> None:
    folder = save(tmp_path / "base", "llama")
    Path(folder, "generation_config.json").unlink()
    file = Path(folder, "config.json")
    file.write_text(json.dumps(json.loads(file.read_text()) | json.loads(VICUNA)))
    result = trained(tmp_path / "tuned", folder)
    kept = json.loads(Path(result.model, "generation_config.json").read_text())
    # do_sample: false is what is meant where nothing is said.
    assert {"temperature": 0.6, "top_p": 0.9, "eos_token_id": 2}.items() <= kept.items()
    assert "do_sample" not in kept or kept["do_sample"] is False
