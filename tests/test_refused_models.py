"""What is no language model, or not whole, or cannot read a row, is refused where it is first looked at, in one message."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import peft
import pytest
import torch
import transformers
from architectures import make, save
from commands import type_in
from safetensors.torch import load_file, save_file

from replaykit.checks.funnel import Funnel
from replaykit.data.record import Message, Record, dialogue
from replaykit.errors import EngineError
from replaykit.model import loading
from replaykit.model.chat import Chat
from replaykit.recipe.mix import Mix
from replaykit.recipe.train import Train
from replaykit.steps.mix.build import Mixture, build_mixture
from replaykit.steps.train.reading import check_reading

BERT = {
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "intermediate_size": 64,
    "vocab_size": 1024,
}
Tensors = dict[str, torch.Tensor]


def saved(folder: Path, model: Any) -> str:
    """A model's folder, with nano's tokenizer."""
    model.save_pretrained(folder)
    loading.load_tokenizer("nano").save_pretrained(folder)
    return str(folder)


def with_own_code(folder: Path, *, tokenizer: bool = False) -> str:
    """A model whose configuration, or whose tokenizer too, is code of its own, which would leave a
    file where it is run.
    """
    folder.mkdir()
    loading.load_tokenizer("nano").save_pretrained(folder)
    names = {"AutoConfig": "own.Own", "AutoModelForCausalLM": "own.Own"}
    config = {"model_type": "own", "architectures": ["Own"], "auto_map": names}
    if tokenizer:
        config = {"model_type": "llama"}
        settings = json.loads((folder / "tokenizer_config.json").read_text())
        settings |= {"tokenizer_class": "Own", "auto_map": {"AutoTokenizer": ["own.Own", None]}}
        (folder / "tokenizer_config.json").write_text(json.dumps(settings))
    (folder / "config.json").write_text(json.dumps(config))
    (folder / "own.py").write_text(f"open({str(folder / 'ran')!r}, 'w')\nclass Own: pass\n")
    return str(folder)


@pytest.mark.parametrize("tokenizer", [False, True], ids=["a model", "a tokenizer"])
@pytest.mark.parametrize("step", ["probe", "generate"])
def test_code_of_a_model_is_never_run_and_nothing_is_asked(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, step: str, tokenizer: bool
) -> None:
    folder = with_own_code(tmp_path / "own", tokenizer=tokenizer)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("builtins.input", lambda _="": pytest.fail("it asked"))
    more = ["--samples", 0] if step == "probe" else ["-n", 1]
    said = type_in(step, "--model", folder, *more, code=1)
    assert "comes with code of its own" in said
    assert "trust_remote_code" not in said
    assert not Path(folder, "ran").exists()


def test_a_model_that_transformers_knows_needs_not_its_own_code(tmp_path: Path) -> None:
    loading.load_tokenizer("nano").save_pretrained(tmp_path)
    config = json.loads(Path(loading.resolve("nano"), "config.json").read_text())
    config |= {"auto_map": {"AutoConfig": "own.Own"}}
    (tmp_path / "config.json").write_text(json.dumps(config))
    assert loading.language_model(str(tmp_path)) is not None


def changed(folder: str, change: Callable[[Tensors], object]) -> str:
    """The folder with other weights."""
    file = Path(folder, "model.safetensors")
    tensors = load_file(file)
    change(tensors)
    save_file(tensors, file, {"format": "pt"})
    return folder


def asked(text: str) -> dict[str, str]:
    return {"role": "user", "content": text}


def answered(text: str) -> dict[str, str]:
    return {"role": "assistant", "content": text}


def recipe(model: str, command: str = "mix", **sections: Any) -> str:
    """What a command says of a recipe with this model, which it shall refuse."""
    row = {"messages": [asked("AG News: stocks rise"), answered("business")]}
    Path("target.jsonl").write_text(f"{json.dumps(row)}\n" * 4)
    said = {"model": model, "target": "target.jsonl", "mix": {"ratio": 0}} | sections
    Path("recipe.json").write_text(json.dumps(said))
    return type_in(command, "--recipe", "recipe.json", "--out", "made", code=1)


# --- heads that are no language model's -----------------------------------------------------------


def test_a_classifier_is_refused_by_mix_before_its_weights_are_read(here: Path) -> None:
    config = transformers.BertConfig(**BERT, num_labels=4)
    folder = saved(here / "news", transformers.BertForSequenceClassification(config))
    Path(folder, "model.safetensors").unlink()
    said = recipe(folder)
    assert "is a BertForSequenceClassification, which gives labels and writes no text" in said
    assert "say `task: classification` in the recipe" in said


@pytest.mark.parametrize(
    ("kind", "name"), [("bert", "BertForMaskedLM"), ("llama", "LlamaForSequenceClassification")]
)
def test_a_head_that_writes_no_text_is_refused(tmp_path: Path, kind: str, name: str) -> None:
    config = transformers.AutoConfig.for_model(kind, **BERT, architectures=[name])
    config.save_pretrained(tmp_path)
    loading.load_tokenizer("nano").save_pretrained(tmp_path)
    with pytest.raises(EngineError, match=f"was saved as {name}, which is no language model"):
        Chat.load(str(tmp_path))


def test_a_model_whose_tokens_see_the_next_ones_is_not_trained(tmp_path: Path) -> None:
    config = transformers.BertConfig(**BERT)
    with pytest.raises(EngineError, match="in this BertLMHeadModel a token sees those after it"):
        check_reading(transformers.BertLMHeadModel(config))
    config.is_decoder = True
    check_reading(transformers.BertLMHeadModel(config))


def test_a_model_whose_positions_come_before_its_batch_is_tried_as_well() -> None:
    made = make("xlnet", attn_type="bi")
    with pytest.raises(EngineError, match="in this XLNetLMHeadModel a token sees those after it"):
        check_reading(made)


def test_a_model_that_changes_its_embeddings_in_place_is_tried_as_well() -> None:
    check_reading(make("ctrl"))


def test_a_model_that_embeds_more_than_its_tokens_is_refused(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    model = make("llama")
    read = model.forward

    def twice(input_ids: torch.Tensor, **_: Any) -> Any:
        return read(torch.cat([input_ids, input_ids], dim=1))

    monkeypatch.setattr(model, "forward", twice)
    with pytest.raises(EngineError, match="embeds 7 tokens as 14, so which of them a token sees"):
        check_reading(model)


@pytest.mark.parametrize("kind", ["qwen2_audio", "whisper", "clip"])
def test_a_model_of_sounds_or_images_is_refused_by_its_config(here: Path, kind: str) -> None:
    transformers.AutoConfig.for_model(kind).save_pretrained(here / "heard")
    loading.load_tokenizer("nano").save_pretrained(here / "heard")
    said = recipe(str(here / "heard"))
    assert f"is of the kind {kind}, which transformers loads as no language model of text" in said


# --- weights --------------------------------------------------------------------------------------


def test_a_weight_that_is_missing_is_named_and_not_made_up(tmp_path: Path) -> None:
    folder = changed(save(tmp_path, "llama"), lambda tensors: tensors.pop("lm_head.weight"))
    with pytest.raises(EngineError, match="no weights for lm_head.weight, which a LlamaForCausal"):
        loading.load_model(folder)


def test_a_weight_of_another_size_is_named(tmp_path: Path) -> None:
    wrong = {"model.norm.weight": torch.ones(4)}
    folder = changed(save(tmp_path, "llama"), lambda tensors: tensors.update(wrong))
    with pytest.raises(EngineError, match=r"norm.weight has the size \(4,\), and .* \(32,\)"):
        loading.load_model(folder)


def test_a_weight_without_a_place_is_told(tmp_path: Path, caplog: Any) -> None:
    more = {"score.weight": torch.ones(4, 32)}
    folder = changed(save(tmp_path, "llama"), lambda tensors: tensors.update(more))
    loading.load_model(folder)
    assert "has weights that a LlamaForCausalLM has no place for, and that are" in caplog.text
    assert "left out: score.weight" in caplog.text


@pytest.mark.parametrize(
    "more",
    [{}, {"lm_head.weight": None}, {"model.layers.0.self_attn.rotary_emb.inv_freq": torch.ones(4)}],
    ids=["tied", "tied and stored twice", "rotary frequencies"],
)
def test_what_transformers_itself_makes_anew_is_not_missed(
    tmp_path: Path, more: dict[str, Any], caplog: Any
) -> None:
    def add(tensors: Tensors) -> None:
        embeddings = tensors["model.embed_tokens.weight"].clone()
        tensors.update({name: embeddings if v is None else v for name, v in more.items()})

    folder = changed(save(tmp_path, "llama", tie_word_embeddings=True), add)
    loading.load_model(folder)
    assert not caplog.records


# --- adapters -------------------------------------------------------------------------------------


def adapter(folder: Path) -> Path:
    base = loading.load_model("nano")
    base.name_or_path = "someone/the-base"
    tuned = peft.get_peft_model(base, peft.LoraConfig(target_modules="all-linear"))
    tuned.save_pretrained(folder)
    return folder


def test_an_adapter_is_told_how_it_becomes_a_model(here: Path) -> None:
    made = adapter(here / "tuned")
    said = recipe(str(made))
    assert "tuned is an adapter of someone/the-base, and no whole model; merge it" in said
    assert "merge_and_unload().save_pretrained('merged')" in said
    # With a tokenizer beside it transformers would load it, and its base.
    loading.load_tokenizer("nano").save_pretrained(made)
    assert "is an adapter of someone/the-base" in recipe(str(made))


def test_of_an_adapter_that_train_left_the_merged_model_is_named(here: Path) -> None:
    made = adapter(here / "train/adapter")
    shutil.copytree(loading.resolve("nano"), here / "train/model")
    with pytest.raises(EngineError, match="no whole model; give .*train/model, where it is merged"):
        loading.load_model(str(made))


# --- what a model reads ---------------------------------------------------------------------------


def rows(*sizes: tuple[int, int]) -> list[Record]:
    """Of a question and an answer of so many words."""
    return [
        Record(dialogue(" ".join(["is"] * asked), " ".join(["the"] * said)), "target")
        for asked, said in sizes
    ]


def mixed(chat: Chat, target: list[Record]) -> tuple[Mixture, dict[str, int]]:
    """The mixture of the rows, and how many were dropped, by reason."""
    dropped: list[Any] = []
    made = build_mixture(
        target,
        {},
        chat=chat,
        settings=Mix(ratio=0),
        train=Train(batch_rows=2),
        seed=1,
        funnel=Funnel(dropped.append),
    )
    reasons = [row["reason"] for row in dropped]
    return made, {reason: reasons.count(reason) for reason in reasons}


@pytest.mark.parametrize(
    ("kind", "changes"),
    [
        ("gpt2", {"n_positions": 60}),
        ("opt", {"max_position_embeddings": 60}),
        ("mpt", {"max_seq_len": 60}),
        ("gptj", {"n_positions": 60}),
    ],
)
@pytest.mark.slow
def test_rows_longer_than_a_model_has_positions_are_dropped_and_counted(
    tmp_path: Path, kind: str, changes: dict[str, Any]
) -> None:
    folder = save(tmp_path, kind, **changes)
    chat = Chat.load(folder)
    target = rows((5, 5), (5, 60), (6, 5), (5, 6))
    made, dropped = mixed(chat, target)
    assert dropped == {"too_long_for_model": 1}
    assert any("1 of the 4 target rows are longer than the model reads" in n for n in made.notes)
    # By the model itself: the longest that is kept it reads, the one that is dropped it does not.
    model = loading.load_model(folder)
    lengths = [torch.tensor([chat.example(record).tokens]) for record in target]
    model(input_ids=lengths[0])
    with pytest.raises((IndexError, RuntimeError)):
        model(input_ids=lengths[1])


@pytest.mark.parametrize("kind", ["llama", "falcon", "bloom", "mamba"])
@pytest.mark.slow
def test_a_model_without_a_table_of_positions_reads_any_row(tmp_path: Path, kind: str) -> None:
    changes = {"max_position_embeddings": 60} if kind in ("llama", "falcon") else {}
    chat = Chat.load(save(tmp_path, kind, **changes))
    assert mixed(chat, rows((5, 5), (5, 60)))[1] == {}


@pytest.mark.slow
def test_of_an_encoder_decoder_question_and_answer_have_positions_each(tmp_path: Path) -> None:
    chat = Chat.load(save(tmp_path, "bart", max_position_embeddings=60))
    found = [chat.example(record) for record in rows((40, 40), (70, 5), (5, 70))]
    assert [chat.unreadable(example) for example in found] == [
        None,
        "too_long_for_model",
        "too_long_for_model",
    ]


def test_a_vocabulary_smaller_than_the_tokenizers_is_refused(here: Path) -> None:
    folder = Path(save(here / "model", "llama"))
    tokenizer = loading.load_tokenizer("nano")
    size = len(tokenizer)
    tokenizer.add_tokens(["stocks"])
    tokenizer.save_pretrained(folder)
    said = recipe(str(folder))
    assert f"its tokenizer has the token 'stocks' with the id {size:,}" in said
    assert f"the model knows ids below {size:,} only" in said


def test_a_special_token_that_a_model_does_not_know_is_refused_where_it_is_used(
    tmp_path: Path,
) -> None:
    folder = Path(save(tmp_path, "llama"))
    tokenizer = loading.load_tokenizer("nano")
    plain = tokenizer.chat_template
    # As Gemma 3 has a mark for images, and its model of 1B, which sees none, has no room for it.
    tokenizer.add_special_tokens({"additional_special_tokens": ["<image>"]})
    tokenizer.save_pretrained(folder)
    assert mixed(Chat.load(str(folder)), rows((5, 5)))[1] == {}
    # It stands before a system message alone, so only rows with one are lost.
    mark = "{% if message['role'] == 'system' %}<image>{% endif %}"
    tokenizer.chat_template = plain.replace("{{ '<|start", mark + "{{ '<|start", 1)
    tokenizer.save_pretrained(folder)
    target = rows((5, 5), (6, 5), (5, 6))
    system: Message = {"role": "system", "content": "be kind"}
    target[0] = replace(target[0], messages=(system, *target[0].messages))
    assert mixed(Chat.load(str(folder)), target)[1] == {"unknown_token": 1}
    # The end of a turn is in every answer.
    tokenizer.chat_template = plain.replace("<|eot_id|>", "<image>")
    tokenizer.save_pretrained(folder)
    with pytest.raises(EngineError, match="has the token '<image>' with the id"):
        Chat.load(str(folder))
