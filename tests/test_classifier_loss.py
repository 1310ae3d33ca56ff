"""What a text classifier learns from a row: transformers' own loss, whatever stands beside it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import labelled
import pytest
import torch
import transformers
from labelled import FINDINGS, TOPICS
from transformers import AutoModelForSequenceClassification

from replaykit.data.record import Record, message_of
from replaykit.errors import EngineError, LabelError
from replaykit.model.classification_head import positions
from replaykit.model.classifier import TextClassifier
from replaykit.model.labels import Labels, own_labels
from replaykit.model.lm_head import IMPOSSIBLE, logits_of
from replaykit.model.logprobs import IGNORED
from replaykit.steps.train.batches import TokenisedRows
from replaykit.steps.train.losses import cross_entropy
from replaykit.steps.train.texts import collator, of_base

KINDS = list(labelled.SIZES)
OLD = tuple(TOPICS)
NEW = tuple(FINDINGS)


def record(text: str, answer: str, source: str = "target") -> Record:
    messages = (message_of("user", text), message_of("assistant", answer))
    return Record(messages, source, {})  # type: ignore[arg-type]


ROWS = [
    record("the team won the match in Oslo", "Sports"),
    record("the minister met the president for peace talks in Lima after the war", "World"),
    record("its chip maker", "Tech"),
    record("the company said its shares rose", "Business"),
]
SEVERAL = [
    record(row.prompt, answer)
    for row, answer in zip(
        ROWS, ['["Sports", "World"]', '["Tech"]', "[]", '["Business"]'], strict=True
    )
]


def loaded(folder: str, labels: Labels) -> tuple[TextClassifier, Any]:
    made = TextClassifier(labelled.tokenizer(), labels, name=folder, limit=64)
    return made, made.load_model(train=True)


def loss_of(chat: TextClassifier, model: Any, rows: list[Record]) -> torch.Tensor:
    """The mean over the positions of the loss that the trainer sums."""
    data = TokenisedRows(rows, chat)
    batch = collator(chat)([data[k] for k in range(len(rows))])
    where = batch["loss_weight"] != 0
    targets = batch["labels"][where]
    weight = batch["loss_weight"][where]
    logits = logits_of(model, batch)[where]
    return cross_entropy(targets, weight)(logits, slice(None)) / weight.sum()


def gradients(model: Any, loss: torch.Tensor) -> dict[str, torch.Tensor]:
    model.zero_grad()
    loss.backward()
    return {n: p.grad.clone() for n, p in model.named_parameters() if p.grad is not None}


@pytest.mark.parametrize("multi", [False, True], ids=["one label", "any number"])
@pytest.mark.parametrize("kind", KINDS)
def test_loss_and_gradient_of_every_row_are_those_of_transformers(
    kind: str, multi: bool, tmp_path: Path
) -> None:
    folder = labelled.classifier(tmp_path, kind, OLD)
    chat, model = loaded(folder, Labels(OLD, (), multi))
    model.eval()
    rows = SEVERAL if multi else ROWS
    for row in rows:
        own = loss_of(chat, model, [row])
        example = chat.example(row)
        label = torch.tensor(example.label)
        if multi:
            label = label[None].float()
        theirs = model(input_ids=torch.tensor([example.tokens]), labels=label).loss
        torch.testing.assert_close(own, theirs, rtol=1e-6, atol=1e-6)
        torch.testing.assert_close(gradients(model, own), gradients(model, theirs))


@pytest.mark.parametrize("kind", KINDS)
def test_padding_changes_nothing(kind: str, tmp_path: Path) -> None:
    chat, model = loaded(labelled.classifier(tmp_path, kind, OLD), Labels(OLD, ()))
    model.eval()
    together = loss_of(chat, model, ROWS)
    alone = torch.stack([loss_of(chat, model, [row]) for row in ROWS]).mean()
    torch.testing.assert_close(together, alone, rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(
        gradients(model, together), gradients(model, alone), rtol=1e-4, atol=1e-6
    )


@pytest.mark.parametrize("kind", KINDS)
def test_old_rows_of_a_widened_head_are_bit_for_bit_the_models(kind: str, tmp_path: Path) -> None:
    folder = labelled.classifier(tmp_path, kind, OLD)
    before = AutoModelForSequenceClassification.from_pretrained(folder).state_dict()
    chat, model = loaded(folder, Labels(OLD, NEW))
    after = model.state_dict()
    assert after.keys() == before.keys()
    widened = [name for name in after if after[name].shape != before[name].shape]
    assert 1 <= len(widened) <= 2
    for name, tensor in after.items():
        old = before[name]
        assert torch.equal(tensor[: len(old)], old)
    assert model.config.num_labels == 7
    fresh = after[widened[0]][4:]
    assert 0.1 < fresh.std() < 0.3  # as the model initialises its head
    again = chat.load_model(train=True).state_dict()
    assert all(torch.equal(again[name], after[name]) for name in after)


def test_another_seed_draws_other_new_rows_and_a_shared_label_keeps_its_row(tmp_path: Path) -> None:
    folder = labelled.classifier(tmp_path, "Bert", OLD)
    labels = Labels(OLD, ("Sports", "yes"))
    assert labels.every == (*OLD, "yes")
    weights = [
        TextClassifier(labelled.tokenizer(), labels, name=folder, seed=seed)
        .load_model(train=True)
        .classifier.weight
        for seed in (1, 2)
    ]
    assert torch.equal(weights[0][:4], weights[1][:4])
    assert not torch.equal(weights[0][4:], weights[1][4:])


@pytest.mark.parametrize("kind", ["Bert", "Llama"])
def test_a_bare_model_gets_a_head_and_one_with_weights_missing_in_its_layers_is_refused(
    kind: str, tmp_path: Path
) -> None:
    head = {"Bert": "ForMaskedLM", "Llama": "ForCausalLM"}[kind]
    whole = labelled.network(kind, (), head)
    whole.save_pretrained(tmp_path / "bare")
    labelled.tokenizer().save_pretrained(tmp_path / "bare")
    folder = str(tmp_path / "bare")
    chat, model = loaded(folder, Labels((), NEW))
    assert "has no trained classification head" in chat.notes[0]
    assert model.config.num_labels == 3
    own = model.base_model.state_dict()
    stored = whole.base_model.state_dict()
    assert all(torch.equal(own[name], stored[name]) for name in stored)
    again = chat.load_model(train=True).state_dict()
    assert all(torch.equal(again[name], tensor) for name, tensor in model.state_dict().items())
    # A folder that lacks a layer.
    lacking = {name: t for name, t in whole.state_dict().items() if ".1." not in name}
    whole.save_pretrained(tmp_path / "bare", state_dict=lacking)
    with pytest.raises(EngineError, match="has no weights for"):
        loaded(folder, Labels((), NEW))


@pytest.mark.parametrize(
    ("kind", "head", "lacking"),
    [
        ("Llama", "ForCausalLM", "model.norm."),
        ("Bert", "ForMaskedLM", "embeddings.LayerNorm."),
        ("ModernBert", "ForMaskedLM", "final_norm"),
        ("GPT2", "LMHeadModel", "ln_f"),
    ],
)
def test_a_bare_model_that_lacks_what_is_no_layer_is_refused_as_well(
    kind: str, head: str, lacking: str, tmp_path: Path
) -> None:
    whole = labelled.network(kind, (), head)
    kept = {name: t for name, t in whole.state_dict().items() if lacking not in name}
    whole.save_pretrained(tmp_path, state_dict=kept)
    labelled.tokenizer().save_pretrained(tmp_path)
    with pytest.raises(EngineError, match=f"has no weights for .*{lacking}"):
        loaded(str(tmp_path), Labels((), NEW))


@pytest.mark.parametrize("kind", ["Bert", "Roberta"])
def test_a_bare_model_of_fewer_layers_than_are_stored_is_refused_and_a_pooler_is_not_missed(
    kind: str, tmp_path: Path
) -> None:
    whole = labelled.network(kind, (), "Model")  # with a pooler, which RoBERTa's head leaves out
    whole.save_pretrained(tmp_path)
    labelled.tokenizer().save_pretrained(tmp_path)
    loaded(str(tmp_path), Labels((), NEW))
    config = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps(config | {"num_hidden_layers": 1}))
    with pytest.raises(EngineError, match=r"has weights nobody reads: .*layer\.1\."):
        loaded(str(tmp_path), Labels((), NEW))


def test_a_trained_classifier_without_its_head_is_refused(tmp_path: Path) -> None:
    folder = labelled.classifier(tmp_path, "Bert", OLD)
    model = labelled.network("Bert", OLD)
    kept = {name: t for name, t in model.state_dict().items() if "classifier" not in name}
    model.save_pretrained(folder, state_dict=kept)
    with pytest.raises(EngineError, match="has no weights for classifier"):
        loaded(folder, Labels(OLD, NEW))


def test_of_heads_apart_a_row_is_one_of_its_own_labels_alone(tmp_path: Path) -> None:
    folder = labelled.classifier(tmp_path, "Bert", OLD)
    labels = Labels(OLD, NEW, apart=True)
    chat, model = loaded(folder, labels)
    model.eval()
    rows = [ROWS[0], record("the drug does help patients", "no")]
    data = TokenisedRows(rows, chat)
    batch = collator(chat)([data[0], data[1]])
    logits = logits_of(model, batch)[:, 0]
    with torch.no_grad():
        plain = model(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"]).logits
    assert (logits[0, 4:] == IMPOSSIBLE).all()
    assert (logits[1, :4] == IMPOSSIBLE).all()
    own = torch.nn.functional.cross_entropy(plain[0, :4], torch.tensor(1))
    new = torch.nn.functional.cross_entropy(plain[1, 4:], torch.tensor(1))
    torch.testing.assert_close(loss_of(chat, model, rows), (own + new) / 2)
    found = gradients(model, loss_of(chat, model, rows[:1]))
    assert not found["classifier.weight"][4:].any()


def test_of_several_labels_and_heads_apart_those_of_the_other_head_carry_no_loss() -> None:
    chat = TextClassifier(labelled.tokenizer(), Labels(OLD, NEW, multi=True, apart=True))
    assert chat.example(record("the war", '["Tech", "World"]')).label == (1, 0, 0, 1, *[-100] * 3)
    assert chat.example(record("the drug", '["yes"]')).label == (*[-100] * 4, 1, 0, 0)
    for answer, words in (('["yes", "Tech"]', "both heads"), ("[]", "which of the two heads")):
        with pytest.raises(LabelError, match=words):
            chat.example(record("the drug", answer))


@pytest.mark.parametrize(
    ("answer", "words"),
    [("Sport", "did you mean 'Sports'"), ("", "none of the labels"), ('["Tech"]', "none of the")],
)
def test_what_is_no_label_is_refused_with_those_that_are(answer: str, words: str) -> None:
    chat = TextClassifier(labelled.tokenizer(), Labels(OLD, ()))
    with pytest.raises(LabelError, match=words):
        chat.example(record("the war", answer))


def test_a_text_is_never_shortened_and_has_the_tokenizers_own_marks() -> None:
    chat = TextClassifier(labelled.tokenizer(), Labels(OLD, ()), limit=6)
    example = chat.example(record("the war in Oslo", "World"))
    assert example.tokens == tuple(chat.tokenizer("the war in Oslo")["input_ids"])
    assert example.tokens[0] == 1
    assert example.tokens[-1] == 2
    assert example.loss_tokens == 1
    with pytest.raises(LabelError, match="7 tokens, and the model reads 6"):
        chat.example(record("the war in Oslo and", "World"))


@pytest.mark.parametrize("multi", [False, True], ids=["one label", "any number"])
@pytest.mark.parametrize("kind", ["Bert", "Llama"])
def test_a_process_without_a_row_takes_part_and_adds_nothing(
    kind: str, multi: bool, tmp_path: Path
) -> None:
    folder = labelled.classifier(tmp_path, kind, OLD)
    chat, model = loaded(folder, Labels(OLD, NEW, multi))
    batch = collator(chat)([])
    logits = logits_of(model, batch)
    assert not logits[batch["loss_weight"] != 0].numel()
    assert not batch["taught"][batch["labels"] != IGNORED].any()


def test_the_untrained_base_is_asked_for_its_own_labels_alone() -> None:
    rows = [record("the war", "World"), record("the drug", "no")]
    chat = TextClassifier(labelled.tokenizer(), Labels(OLD, NEW))
    data = TokenisedRows(rows, chat)
    batch = of_base(collator(chat)([data[0], data[1]]))
    assert batch["among"].tolist() == [[True] * 4 + [False] * 3, [True] * 7]
    several = [record("the war", '["World"]'), record("the drug", '["no", "Tech"]')]
    chat = TextClassifier(labelled.tokenizer(), Labels(OLD, NEW, multi=True))
    data = TokenisedRows(several, chat)
    batch = of_base(collator(chat)([data[0], data[1]]))
    assert batch["labels"].tolist() == [[1, 0, 0, 0, *[IGNORED] * 3], [0, 0, 0, 1, 0, 1, 0]]


@pytest.mark.parametrize(("kind", "longest"), [("Roberta", 65), ("Bert", 512), ("GPT2", 1024)])
def test_as_many_tokens_are_read_as_the_model_has_positions_for(
    kind: str, longest: int, tmp_path: Path
) -> None:
    config = labelled.config(kind)
    assert positions(config) == longest
    model = labelled.network(kind, OLD)
    model(input_ids=torch.full((1, longest), 5))
    with pytest.raises((IndexError, RuntimeError)):
        model(input_ids=torch.full((1, longest + 1), 5))


def test_a_model_that_reads_padding_is_refused(tmp_path: Path) -> None:
    sizes = {"vocab_size": 150, "d_model": 32, "n_layer": 2, "n_head": 2, "d_inner": 64}
    named = {"id2label": dict(enumerate(OLD)), "label2id": {n: k for k, n in enumerate(OLD)}}
    config = transformers.XLNetConfig(**sizes, **named, pad_token_id=0, initializer_range=0.2)
    # It sums a text up by its last token, and wants the padding before it.
    transformers.XLNetForSequenceClassification(config).save_pretrained(tmp_path / "xlnet")
    labelled.tokenizer().save_pretrained(tmp_path / "xlnet")
    with pytest.raises(EngineError, match="padding behind a text changes what"):
        loaded(str(tmp_path / "xlnet"), Labels(OLD, NEW))


def test_an_encoder_decoder_and_a_score_are_no_classifiers(tmp_path: Path) -> None:
    bart = transformers.BartConfig(num_labels=4, architectures=["BartForSequenceClassification"])
    with pytest.raises(EngineError, match="is an encoder-decoder"):
        own_labels("bart", bart)
    reward = labelled.config("Llama", num_labels=1)
    reward.architectures = ["LlamaForSequenceClassification"]
    with pytest.raises(EngineError, match="one output, which is a score"):
        own_labels("reward", reward)
    bare = labelled.config("Llama")
    bare.architectures = ["LlamaForCausalLM"]
    assert own_labels("bare", bare) == ()
