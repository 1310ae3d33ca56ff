"""Text classifiers: mixed, trained, evaluated and saved as what they are."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import labelled
import pytest
import torch
from commands import type_in
from labelled import FINDINGS, TOPICS
from pydantic import ValidationError
from safetensors.torch import load_file
from test_training import stops_after
from tiny import done, with_sections
from transformers import AutoModelForSequenceClassification, pipeline

import replaykit
from replaykit.data.record import Record, message_of
from replaykit.engines import Request, Sampling
from replaykit.engines.classifier import ClassifierEngine
from replaykit.errors import DataError, EngineError, RecipeError, ReplaykitError, Stopped
from replaykit.model.classifier import TextClassifier
from replaykit.recipe import Recipe
from replaykit.recipe.remedies import DistillSettings
from replaykit.recipe.train import Train
from replaykit.steps.step import Context
from replaykit.steps.train import step as train_step
from replaykit.steps.train.batches import TokenisedRows
from replaykit.steps.train.parameters import adapted, parameter_groups
from replaykit.steps.train.remedies.distill import Distill
from replaykit.steps.train.remedies.teachers import Live
from replaykit.steps.train.result import TrainEstimate
from replaykit.steps.train.texts import collator
from replaykit.steps.train.trainer import WatchCallback

KINDS = list(labelled.SIZES)


def recipe(folder: Path, model: str, **changes: Any) -> Recipe:
    """AG-News-like old data, a medical new task, and a run of all steps."""
    found: dict[str, Any] = {
        "task": "classification",
        "classification": {"labels": list(FINDINGS)},
        "out": str(folder / "run"),
        "model": model,
        "target": labelled.write(folder / "target.jsonl", labelled.texts(FINDINGS, 45)),
        "select": {
            "pool": labelled.write(folder / "pool.jsonl", labelled.texts(TOPICS, 80)),
            "n": 20,
            "processes": 1,
        },
        "mix": {"ratio": 0.2, "unit": "rows", "near_duplicate": None},
        "train": {"epochs": 1, "batch_rows": 10, "learning_rate": 1e-3, "log_every": 1},
        "eval": {
            "target": labelled.write(
                folder / "test-new.jsonl", labelled.texts(FINDINGS, 12, first=200)
            ),
            "old": {
                "news": labelled.write(
                    folder / "test-old.jsonl", labelled.texts(TOPICS, 16, first=300)
                )
            },
        },
    }
    return with_sections(found, changes)


@pytest.fixture
def news(tmp_path: Path) -> str:
    return labelled.classifier(tmp_path, "Bert", list(TOPICS))


def saved(folder: Path) -> Path:
    return folder / "run" / "train" / "model"


def config_of(folder: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((saved(folder) / "config.json").read_text())
    return found


def answers(folder: Path, model: str, skill: str) -> list[str]:
    """What eval says that a model answers to a test, in the order of its rows."""
    lines = (folder / "run" / "eval" / f"items-{model}.jsonl").read_text().splitlines()
    items = [json.loads(line) for line in lines]
    return [item["answer"] for item in items if item["skill"] == skill]


# --- the whole way --------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS)
def test_what_is_saved_is_a_classifier_that_a_pipeline_loads_and_that_says_the_same(
    kind: str, tmp_path: Path
) -> None:
    model = labelled.classifier(tmp_path, kind, list(TOPICS))
    found = done(recipe(tmp_path, model), "select", "mix", "train", "eval")
    assert found["mix"].share["rows"] == pytest.approx(0.2, abs=0.02)
    assert "widened by yes, no, maybe" in found["train"].notes[0]
    config = config_of(tmp_path)
    assert config["architectures"] == [f"{kind}ForSequenceClassification"]
    assert list(config["id2label"].values()) == [*TOPICS, *FINDINGS]
    assert config["problem_type"] == "single_label_classification"
    read = pipeline("text-classification", model=str(saved(tmp_path)), device="cpu")
    rows = labelled.texts(FINDINGS, 12, first=200)
    said = [answer["label"] for answer in read([row["text"] for row in rows], batch_size=4)]
    assert said == answers(tmp_path, "tuned", "target")


def test_replay_keeps_its_old_labels_and_the_share_is_exact_in_rows(
    tmp_path: Path, news: str
) -> None:
    numbered = labelled.texts(TOPICS, 80)
    for row in numbered:
        row["label"] = list(TOPICS).index(row["label"])
    targets = labelled.texts(FINDINGS, 90)
    for row in targets:
        row["label"] = list(FINDINGS).index(row["label"])
    made = recipe(
        tmp_path,
        news,
        target=labelled.write(tmp_path / "numbers.jsonl", targets),
        select={"pool": labelled.write(tmp_path / "old-numbers.jsonl", numbered)},
        mix={"ratio": 0.1},
    )
    found = done(made, "select", "mix")
    assert found["mix"].share["rows"] == pytest.approx(0.1, abs=1e-6)
    assert found["mix"].share["loss_tokens"] == found["mix"].share["rows"]
    rows = (tmp_path / "run" / "mix" / "rows.jsonl").read_text().splitlines()
    records = [json.loads(row) for row in rows]
    assert len(records) == 100
    right = {row["text"]: list(TOPICS)[row["label"]] for row in numbered}
    right |= {row["text"]: list(FINDINGS)[row["label"]] for row in targets}
    for record in records:
        question, answer = record["messages"]
        assert answer["content"] == right[question["content"]]


def test_old_rows_are_drawn_and_counted_by_label(tmp_path: Path, news: str) -> None:
    made = recipe(
        tmp_path,
        news,
        select={"method": "stratified", "column": "label", "shares": "equal"},
        mix={"skill": "label", "max_rows": {"Tech": 2}},
    )
    found = done(made, "select", "mix")
    rows = (tmp_path / "run" / "select" / "rows.jsonl").read_text().splitlines()
    drawn = [json.loads(row)["messages"][1]["content"] for row in rows]
    assert sorted(drawn) == sorted([*TOPICS] * 5)
    assert found["mix"].skills["Tech"].different <= 2
    assert set(found["mix"].skills) <= set(TOPICS)


def test_a_language_recipe_reads_no_labels_as_before_and_a_setting_of_labels_is_refused(
    tmp_path: Path, news: str
) -> None:
    with pytest.raises(DataError, match="`prompt: text` and `answer: label`"):
        target = labelled.write(tmp_path / "plain.jsonl", labelled.texts(FINDINGS, 9))
        found = {"out": str(tmp_path / "run"), "model": "nano", "target": target}
        done(Recipe.model_validate(found), "mix")
    with pytest.raises(ValidationError, match="it is for `task: classification`"):
        recipe(tmp_path, news, task="language")


@pytest.mark.parametrize("kind", ["Bert", "Llama", "GPT2"])
def test_a_classifier_is_never_taken_for_a_language_model(kind: str, tmp_path: Path) -> None:
    model = labelled.classifier(tmp_path, kind, list(TOPICS))
    target = labelled.write(tmp_path / "pairs.jsonl", [{"prompt": "the war", "completion": "no"}])
    made = Recipe.model_validate({"out": str(tmp_path / "run"), "model": model, "target": target})
    with pytest.raises(EngineError, match=r"say `task: classification`"):
        done(made, "mix")


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"generate": {"n": 4}}, "generate: a classifier writes no text"),
        ({"rewrite": {}}, "rewrite: a classifier writes no text"),
        ({"train": {"packing": True}}, "train.packing: a classifier gives one answer"),
        ({"train": {"remedies": {"stm": {}}}}, "train.remedies.stm: it weighs the tokens"),
        ({"train": {"remedies": {"distill": {"layers": [-1]}}}}, "distill.layers"),
        ({"eval": {"target": {"path": "x", "score": "numeric"}}}, "eval.target.score"),
        ({"classification": {"labels": ["yes", "yes"]}}, "yes stands there twice"),
    ],
)
def test_what_a_classifier_does_not_have_is_refused_with_what_to_do(
    changes: dict[str, Any], words: str, tmp_path: Path, news: str
) -> None:
    with pytest.raises(ValidationError, match=words):
        recipe(tmp_path, news, **changes)


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"labels": [*FINDINGS], "old_labels": ["a", "b"]}, "2 names for the 4 labels"),
        ({"labels": ["Sports"], "heads": "apart"}, "Sports would be in both heads"),
    ],
)
def test_labels_that_do_not_go_with_the_model_are_refused(
    settings: dict[str, Any], words: str, tmp_path: Path, news: str
) -> None:
    with pytest.raises(RecipeError, match=words):
        done(recipe(tmp_path, news, classification=settings), "select")


@pytest.mark.parametrize("labels", [[*FINDINGS], ["World", "Tech"], []])
def test_a_head_with_two_rows_of_one_name_wants_names_for_all(
    labels: list[str], tmp_path: Path
) -> None:
    model = labelled.classifier(tmp_path, "Bert", ["World", "World", "Tech"])
    changes = {"select": None, "mix": {"ratio": 0.0}, "eval": {"old": {}}}
    made = recipe(tmp_path, model, classification={"labels": labels}, **changes)
    with pytest.raises(RecipeError, match="old_labels: several rows of the head .* called World"):
        done(made, "mix")
    named = {"labels": labels, "old_labels": ["World", "Sports", "Tech"]}
    chat = TextClassifier.of_recipe(recipe(tmp_path, model, classification=named, **changes))
    assert chat.labels.old == ("World", "Sports", "Tech")
    assert chat.load_model().config.id2label[1] == "Sports"


def test_what_writes_text_says_what_to_do_instead(tmp_path: Path, news: str) -> None:
    made = recipe(tmp_path, news)
    for step in ("generate", "rewrite", "probe", "score"):
        with pytest.raises(ReplaykitError, match="text classifier"):
            done(made, step)


def test_a_row_with_another_label_or_a_text_that_is_too_long_is_dropped_with_the_reason(
    tmp_path: Path, news: str
) -> None:
    rows = labelled.texts(FINDINGS, 30)
    rows[3]["label"] = "perhaps"
    rows[5]["text"] = " ".join(["patients"] * 70)
    made = recipe(tmp_path, news, target=labelled.write(tmp_path / "bad.jsonl", rows))
    found = done(made, "select", "mix")["mix"]
    assert found.funnel.dropped["label_refused"] == 1
    assert any("'label' is 'perhaps'" in note for note in found.notes)
    assert any("72 tokens, and the model reads 64" in note for note in found.notes)


def test_training_learns_the_new_task(tmp_path: Path, news: str) -> None:
    made = recipe(tmp_path, news, train={"epochs": 8, "learning_rate": 5e-3})
    found = done(made, "select", "mix", "train", "eval")["eval"]
    base, tuned = found.models
    assert tuned.target.mean >= 0.9
    assert tuned.target.mean > base.target.mean


# --- every remedy ---------------------------------------------------------------------------------

REMEDIES: dict[str, dict[str, Any]] = {
    "ewc": {"remedies": {"ewc": {"strength": 10.0, "rows": 8}}},
    "ewc, hard": {"remedies": {"ewc": {"rows": 8, "hard": 0.3, "max_shift": 0.01}}},
    "l2sp": {"remedies": {"l2sp": {"strength": 10.0}}},
    "distill": {"remedies": {"distill": {}}},
    "distill, cache": {"remedies": {"distill": {"teacher": "cache", "top_k": 3}}},
    "project": {"remedies": {"project": {"min_cosine": 0.5}}},
    "ema": {"remedies": {"ema": {"decay": 0.8}}},
    "dft": {"remedies": {"dft": True}},
    "eaft": {"remedies": {"eaft": {}}},
    "layer rates": {"learning_rate": None, "layer_rates": {"bottom": 1e-5, "top": 5e-4}},
    "stages": {"stages": [{"layers": 0.5, "part": 0.5}, {"part": 0.5}]},
    "lora": {"method": "lora", "learning_rate": 5e-3},
    "lora, distill, ewc": {
        "method": "lora",
        "learning_rate": 5e-3,
        "remedies": {"distill": {}, "ewc": {"strength": 10.0, "rows": 8}},
    },
    "all": {"remedies": {"ewc": {"rows": 8}, "distill": {}, "project": {}, "ema": {"decay": 0.8}}},
}
SEVERAL = {"labels": list(FINDINGS), "multi_label": True}


def weights(folder: Path) -> dict[str, torch.Tensor]:
    found: dict[str, torch.Tensor] = load_file(saved(folder) / "model.safetensors")
    return found


def plain_run(folder: Path, **changes: Any) -> dict[str, torch.Tensor]:
    folder.mkdir()
    model = labelled.classifier(folder, "Bert", list(TOPICS))
    done(recipe(folder, model, **changes), "select", "mix", "train")
    return weights(folder)


@pytest.fixture(scope="module")
def without(tmp_path_factory: pytest.TempPathFactory) -> dict[bool, dict[str, torch.Tensor]]:
    """The weights of a training without a remedy, of one label and of any number."""
    folder = tmp_path_factory.mktemp("without")
    return {
        multi: plain_run(folder / str(multi), classification=SEVERAL | {"multi_label": multi})
        for multi in (False, True)
    }


@pytest.mark.slow
@pytest.mark.parametrize("multi", [False, True], ids=["one label", "any number"])
@pytest.mark.parametrize("name", REMEDIES)
def test_every_remedy_runs_and_acts(
    name: str, multi: bool, tmp_path: Path, without: dict[bool, dict[str, torch.Tensor]]
) -> None:
    train = {"epochs": 1, "batch_rows": 10, "learning_rate": 1e-3, "log_every": 1}
    found = plain_run(
        tmp_path / "with",
        train=train | REMEDIES[name],
        classification=SEVERAL | {"multi_label": multi},
    )
    other = without[multi]
    assert found.keys() == other.keys()
    assert any(not torch.equal(found[key], other[key]) for key in found)
    if name in ("ewc", "ewc, hard", "l2sp"):
        folder = tmp_path / "with"
        made = recipe(folder, str(folder / "Bert"), classification=SEVERAL | {"multi_label": multi})
        base = TextClassifier.of_recipe(made).load_model().state_dict()
        assert distance(found, base) < 0.95 * distance(other, base)


def distance(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> float:
    return sum(float((one[name] - other[name]).square().sum()) for name in one)


def test_layer_rates_and_stages_have_the_head_at_the_top(tmp_path: Path, news: str) -> None:
    chat = TextClassifier.of_recipe(recipe(tmp_path, news))
    model = chat.load_model(train=True)
    rates = Train.model_validate({"layer_rates": {"bottom": 1e-5, "top": 5e-4}})
    of = {
        id(parameter): group["lr"]
        for group in parameter_groups(model, rates)
        for parameter in group["params"]
    }
    assert of[id(model.classifier.weight)] == pytest.approx(5e-4)
    assert of[id(model.bert.embeddings.word_embeddings.weight)] == pytest.approx(1e-5)
    frozen = adapted(model, Train(freeze=["head"]))
    learning = {name for name, p in frozen.named_parameters() if p.requires_grad}
    assert "classifier.weight" not in learning
    assert "bert.pooler.dense.weight" in learning


def test_the_base_teaches_nothing_of_labels_that_it_has_not_learned(
    tmp_path: Path, news: str
) -> None:
    chat = TextClassifier.of_recipe(recipe(tmp_path, news))
    model = chat.load_model(train=True).eval()
    old = Record((message_of("user", "the war"), message_of("assistant", "World")), "select", {})
    new = Record((message_of("user", "the drug"), message_of("assistant", "no")), "select", {})
    data = TokenisedRows([old, new], chat)
    batch = collator(chat)([data[0], data[1]])
    distilled = Distill(DistillSettings()).positions(batch)
    assert distilled.tolist() == [[True], [False]]
    teacher = Live(model, 1.0)
    hidden, _ = teacher.read(batch, distilled)
    said = teacher.log_softmax(hidden, torch.float32).exp()
    assert said.shape == (1, 7)
    assert not said[0, 4:].any()
    assert float(said.sum()) == pytest.approx(1.0)


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS)
def test_under_an_adapter_the_head_learns_whole_and_both_are_saved_as_one(
    kind: str, tmp_path: Path
) -> None:
    model = labelled.classifier(tmp_path, kind, list(TOPICS))
    made = recipe(tmp_path, model, train={"method": "lora", "learning_rate": 5e-3})
    done(made, "select", "mix", "train")
    base = TextClassifier.of_recipe(made).load_model().state_dict()
    network, info = AutoModelForSequenceClassification.from_pretrained(
        saved(tmp_path), output_loading_info=True
    )
    assert not info["missing_keys"]
    assert not info["unexpected_keys"]
    tuned = network.state_dict()
    assert tuned.keys() == base.keys()
    moved = {name for name in base if not torch.equal(base[name], tuned[name])}
    head = [name for name in base if len(base[name]) == 7 and base[name].dim() == 2]
    assert head[-1] in moved
    assert any(name.startswith(network.base_model_prefix) for name in moved)
    assert not any("embed" in name and name.endswith("embeddings.weight") for name in moved)


@pytest.mark.slow
@pytest.mark.parametrize(("kind", "head"), [("Bert", "ForMaskedLM"), ("Llama", "ForCausalLM")])
def test_a_bare_model_becomes_a_classifier(kind: str, head: str, tmp_path: Path) -> None:
    labelled.network(kind, (), head).save_pretrained(tmp_path / kind)
    labelled.tokenizer().save_pretrained(tmp_path / kind)
    made = recipe(
        tmp_path,
        str(tmp_path / kind),
        select=None,
        mix={"ratio": 0.0},
        train={"epochs": 8, "learning_rate": 5e-3},
        eval={"old": {}},
    )
    found = done(made, "mix", "train", "eval")
    assert "it gets one for yes, no, maybe" in found["train"].notes[0]
    assert found["eval"].models[1].target.mean >= 0.9
    assert config_of(tmp_path)["architectures"] == [f"{kind}ForSequenceClassification"]
    assert list(config_of(tmp_path)["id2label"].values()) == list(FINDINGS)


def test_labels_of_a_model_that_names_none_are_given_in_order_and_saved(tmp_path: Path) -> None:
    model = labelled.classifier(tmp_path, "Bert", [f"LABEL_{k}" for k in range(4)])
    rows = labelled.texts(TOPICS, 40)
    made = recipe(
        tmp_path,
        model,
        classification={"labels": [], "old_labels": list(TOPICS)},
        target=labelled.write(tmp_path / "more-news.jsonl", rows),
        select=None,
        mix={"ratio": 0.0},
        eval={"target": labelled.write(tmp_path / "test.jsonl", rows[:8]), "old": {}},
    )
    found = done(made, "mix", "train", "eval")
    assert found["train"].notes == []
    assert list(config_of(tmp_path)["id2label"].values()) == list(TOPICS)
    # Of other labels the tuned model is refused, and not renamed.
    other = {"labels": [], "old_labels": ["a", "b", "c", "d"]}
    chat = TextClassifier.of_recipe(recipe(tmp_path, model, classification=other))
    with pytest.raises(EngineError, match="has the labels World, Sports"):
        chat.load_model(str(saved(tmp_path)))


# --- cut short, merged, watched -------------------------------------------------------------------


def test_resumed_in_the_middle_the_model_is_the_same_to_the_bit(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    changes = {"train": {"epochs": 1, "remedies": {"ewc": {"rows": 8}, "distill": {}}}}
    whole = plain_run(tmp_path / "whole", **changes)
    with stops_after(2, monkeypatch), pytest.raises(Stopped, match="stopped at step 2"):
        plain_run(tmp_path / "cut", **changes)
    made = recipe(tmp_path / "cut", str(tmp_path / "cut" / "Bert"), **changes)
    done(made, "train")
    found = weights(tmp_path / "cut")
    assert all(torch.equal(found[key], whole[key]) for key in whole)


def test_killed_after_a_checkpoint_it_goes_on_to_the_same_bits(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    changes = {"train": {"save_every": 2, "remedies": {"ewc": {"rows": 8}, "ema": {"decay": 0.8}}}}
    whole = plain_run(tmp_path / "whole", **changes)
    plain_end = WatchCallback.on_step_end

    def killed(self: Any, args: Any, state: Any, control: Any, **given: Any) -> None:
        if state.global_step == 4:
            raise KeyboardInterrupt
        plain_end(self, args, state, control, **given)

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(WatchCallback, "on_step_end", killed)
        plain_run(tmp_path / "cut", **changes)
    assert (tmp_path / "cut" / "run" / "train" / "checkpoint-2").is_dir()
    done(recipe(tmp_path / "cut", str(tmp_path / "cut" / "Bert"), **changes), "train")
    found = weights(tmp_path / "cut")
    assert all(torch.equal(found[key], whole[key]) for key in whole)


@pytest.mark.parametrize("multi", [False, True], ids=["one label", "any number"])
def test_a_step_is_the_same_however_it_is_cut(multi: bool, tmp_path: Path) -> None:
    calm = {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}
    found = []
    for rows in (2, 10):
        folder = tmp_path / str(rows)
        folder.mkdir()
        model = labelled.classifier(folder, "Bert", list(TOPICS), **calm)
        # Plain rates: what Adam makes of a gradient that is nearly 0 is noise.
        train = {"micro_batch_rows": rows, "steps": 1, "warmup": 0.0}
        made = recipe(folder, model, train=train, classification=SEVERAL | {"multi_label": multi})
        found.append(done(made, "select", "mix", "train")["train"].losses[0])
    for name, value in found[0].items():
        assert found[1][name] == pytest.approx(value, rel=1e-5)


def test_wise_ft_is_between_the_widened_base_and_the_tuned_model(tmp_path: Path, news: str) -> None:
    made = recipe(tmp_path, news)
    done(made, "select", "mix", "train")
    found = done(made, "merge", alpha=0.25)["merge"]
    base = TextClassifier.of_recipe(made).load_model().state_dict()
    tuned = weights(tmp_path)
    merged = load_file(Path(found.model) / "model.safetensors")
    assert merged.keys() == tuned.keys()
    for name, tensor in merged.items():
        between = 0.75 * base[name].double() + 0.25 * tuned[name].double()
        torch.testing.assert_close(tensor.double(), between, rtol=1e-5, atol=1e-6)
    config = json.loads((Path(found.model) / "config.json").read_text())
    assert list(config["id2label"].values()) == [*TOPICS, *FINDINGS]
    assert any("widened" in note for note in found.notes)


def test_a_sweep_of_alphas_measures_labels(tmp_path: Path, news: str) -> None:
    made = recipe(tmp_path, news)
    done(made, "select", "mix", "train")
    found = done(made, "merge", sweep=[0.0, 0.1, 1.0])["merge"]
    assert [row.alpha for row in found.table] == [0.0, 0.1, 1.0]


@pytest.mark.parametrize("multi", [False, True], ids=["one label", "any number"])
def test_a_controller_tests_labels_and_moves_the_share(
    multi: bool, tmp_path: Path, news: str
) -> None:
    # What the base itself says is the right answer, so every change is a loss.
    settings = SEVERAL | {"multi_label": multi}
    first = recipe(tmp_path, news, classification=settings)
    engine = ClassifierEngine(TextClassifier.of_recipe(first))
    rows = labelled.texts(TOPICS, 30, first=300)
    chat = TextClassifier.of_recipe(first)
    for number, row in enumerate(rows):
        tokens = chat.prompt((message_of("user", row["text"]),))
        schema = json.dumps({"enum": list(TOPICS)})
        asked = Request(number, tokens, Sampling(schema=schema))
        said = next(iter(engine.complete([asked]))).tokens
        names = [list(TOPICS)[label] for label in said]
        row["label"] = names if multi else names[0]
    rows = [row for row in rows if row["label"]]
    made = recipe(
        tmp_path,
        news,
        classification=settings,
        eval={"old": {"news": labelled.write(tmp_path / "test-base.jsonl", rows)}},
        train={"learning_rate": 2e-2, "controller": {"every": 2}},
    )
    events = done(made, "select", "mix", "train")["train"].events
    lost = [event for event in events if event.drops["news"].low > 0.05]
    assert lost
    assert lost[0].ratio == pytest.approx(1.2 * lost[0].ratio_before)


def test_heads_apart_are_tested_with_their_own_labels(tmp_path: Path, news: str) -> None:
    settings = {"labels": list(FINDINGS), "heads": "apart"}
    done(recipe(tmp_path, news, classification=settings), "select", "mix", "train", "eval")
    for model in ("base", "tuned"):
        assert set(answers(tmp_path, model, "news")) <= set(TOPICS)
        assert set(answers(tmp_path, model, "target")) <= set(FINDINGS)


def test_of_heads_apart_it_is_said_how_a_pipeline_chooses(tmp_path: Path, news: str) -> None:
    apart = {"labels": list(FINDINGS), "heads": "apart"}
    found = done(recipe(tmp_path, news, classification=apart), "select", "mix", "train", "eval")
    assert "widened by yes, no, maybe" in found["train"].notes[0]
    assert (
        '`pipeline("text-classification")` on the saved folder chooses among those of both'
        in (found["train"].notes[1])
    )
    # Of all scores the best of the row's own task is what eval says.
    read = pipeline("text-classification", model=str(saved(tmp_path)), top_k=None, device="cpu")
    for row, answer in zip(
        labelled.texts(TOPICS, 16, first=300), answers(tmp_path, "tuned", "news"), strict=True
    ):
        said = [one["label"] for one in read([row["text"]])[0]]
        assert next(label for label in said if label in TOPICS) == answer
    # One head over all labels, and a new one alone, have nothing of the kind.
    joint = TextClassifier.of_recipe(recipe(tmp_path, news))
    assert joint.of_tuned() == []
    labelled.network("Bert", (), "ForMaskedLM").save_pretrained(tmp_path / "bare")
    labelled.tokenizer().save_pretrained(tmp_path / "bare")
    bare = recipe(tmp_path, str(tmp_path / "bare"), classification=apart)
    assert TextClassifier.of_recipe(bare).of_tuned() == []


@pytest.mark.parametrize("multi", [False, True], ids=["one label", "any number"])
def test_a_label_without_a_row_is_named_by_mix_and_by_train(
    multi: bool, tmp_path: Path, news: str
) -> None:
    rows = [row for row in labelled.texts(FINDINGS, 60) if row["label"] == "no"]
    made = recipe(
        tmp_path,
        news,
        classification=SEVERAL | {"multi_label": multi},
        target=labelled.write(tmp_path / "no.jsonl", rows),
    )
    found = done(made, "select", "mix", "train")
    for step in ("mix", "train"):
        said = [note for note in found[step].notes if "not learned" in note]
        assert said == ["not learned: yes, maybe; no row of the training has such a label"]


def test_labels_of_which_each_has_a_row_are_not_named(tmp_path: Path, news: str) -> None:
    found = done(recipe(tmp_path, news), "select", "mix")["mix"]
    assert not [note for note in found.notes if "not learned" in note]
    # The model's own labels are those that are learned where the recipe names none.
    rows = [row for row in labelled.texts(TOPICS, 60) if row["label"] != "Tech"]
    made = recipe(
        tmp_path,
        news,
        classification={"labels": []},
        select=None,
        target=labelled.write(tmp_path / "three.jsonl", rows),
        mix={"ratio": 0.0},
        eval={"target": labelled.write(tmp_path / "three-test.jsonl", rows[:3]), "old": {}},
    )
    found = done(made.model_copy(update={"out": str(tmp_path / "own")}), "mix")["mix"]
    assert "not learned: Tech; no row of the training has such a label" in found.notes


SHARED = {"yes": "yes", "no": "Tech", "maybe": "Sports"}


def shared_rows(count: int, *, first: int = 0) -> list[dict[str, Any]]:
    """Rows of a new task that has two labels of the old one."""
    rows = labelled.texts(FINDINGS, count, first=first)
    return [{**row, "label": SHARED[row["label"]]} for row in rows]


@pytest.mark.slow
@pytest.mark.parametrize("multi", [False, True], ids=["one label", "any number"])
def test_the_base_answers_among_the_labels_of_the_task_that_it_has(
    multi: bool, tmp_path: Path, news: str
) -> None:
    made = recipe(
        tmp_path,
        news,
        classification={"labels": ["Tech", "Sports", "yes"], "multi_label": multi},
        target=labelled.write(tmp_path / "shared.jsonl", shared_rows(45)),
        eval={"target": labelled.write(tmp_path / "shared-test.jsonl", shared_rows(24, first=200))},
    )
    found = done(made, "select", "mix", "train", "eval")["eval"]
    said = answers(tmp_path, "base", "target")
    names = [json.loads(answer) if multi else [answer] for answer in said]
    assert {name for named in names for name in named} <= {"Tech", "Sports"}
    assert found.models[0].classes["target"].recall["yes"].mean == 0
    # Of an old row, a label that both tasks have is one of the old task's four.
    read = pipeline("text-classification", model=news, top_k=None, device="cpu")
    for row, answer in zip(
        labelled.texts(TOPICS, 16, first=300), answers(tmp_path, "base", "news"), strict=True
    ):
        scores = {one["label"]: one["score"] for one in read([row["text"]])[0]}
        if not multi:
            assert answer == max(scores, key=lambda label: scores[label])


def test_the_labels_of_a_rows_task_are_those_of_its_labels_or_of_its_test(
    tmp_path: Path, news: str
) -> None:
    settings = {"labels": ["Tech", "yes"], "multi_label": True}
    chat = TextClassifier.of_recipe(recipe(tmp_path, news, classification=settings))

    def task(*names: str, old: bool) -> list[str] | None:
        answer = message_of("assistant", json.dumps(names))
        schema = chat.among(Record((message_of("user", "x"), answer), "target", {}), old=old)
        return None if schema is None else json.loads(schema)["enum"]

    assert task("Tech", old=True) == task(old=True) == task("World", old=False) == list(TOPICS)
    assert task("Tech", old=False) == task(old=False) == task("yes", old=True) == ["Tech", "yes"]
    assert task("World", "yes", old=False) is None


@pytest.mark.slow
def test_rows_with_any_number_of_labels_are_learned_and_saved_as_such(tmp_path: Path) -> None:
    rows = [{**row, "labels": [row.pop("label")]} for row in labelled.texts(FINDINGS, 45)]
    for k, row in enumerate(rows):
        row["labels"] += [["Business"], []][k % 2]
    test = rows[::5]
    model = labelled.classifier(tmp_path, "Bert", list(TOPICS))
    made = recipe(
        tmp_path,
        model,
        classification=SEVERAL | {"labels": [*FINDINGS, "Business"]},
        target=labelled.write(tmp_path / "several.jsonl", rows),
        eval={"target": labelled.write(tmp_path / "several-test.jsonl", test)},
        mix={"overlap": False},
        train={"epochs": 30, "learning_rate": 5e-3},
    )
    found = done(made, "select", "mix", "train", "eval")["eval"]
    assert found.models[1].target.mean > 0.8
    assert config_of(tmp_path)["problem_type"] == "multi_label_classification"
    said = answers(tmp_path, "tuned", "target")
    read = pipeline("text-classification", model=str(saved(tmp_path)), top_k=None, device="cpu")
    for row, answer in zip(test, said, strict=True):
        scores = {one["label"]: one["score"] for one in read([row["text"]])[0]}
        assert {label for label, score in scores.items() if score > 0.5} == set(json.loads(answer))


# --- what it will take ----------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize("multi", [False, True], ids=["one label", "several labels"])
@pytest.mark.parametrize("method", ["full", "lora"])
@pytest.mark.parametrize("kind", KINDS)
def test_what_a_training_will_take_is_told(
    kind: str, method: str, multi: bool, tmp_path: Path
) -> None:
    model = labelled.classifier(tmp_path, kind, list(TOPICS))
    changes: dict[str, Any] = {"train": {"method": method, "remedies": {"ema": {}}}}
    if multi:
        changes["classification"] = SEVERAL | {"labels": list(FINDINGS)}
    made = recipe(tmp_path, model, **changes)
    done(made, "select", "mix")
    (outcome,) = train_step.run(made, Context(), dry_run=True)
    found = outcome.result
    assert isinstance(found, TrainEstimate)
    network = adapted(TextClassifier.of_recipe(made).load_model(train=True), made.train)
    learning = sum(each.numel() for each in network.parameters() if each.requires_grad)
    assert found.trainable == learning
    assert found.parameters == sum(each.numel() for each in network.parameters())
    assert found.memory.gradients == found.memory.average == 4 * learning
    assert found.memory.activations > 0
    assert found.steps == done(made, "train")["train"].steps


# --- by command and by function -------------------------------------------------------------------


def test_the_commands_go_the_whole_way(tmp_path: Path, news: str) -> None:
    made = recipe(tmp_path, news)
    file = tmp_path / "recipe.yaml"
    file.write_text(made.to_yaml())
    for step in ("select", "mix", "train", "eval", "merge", "report", "status"):
        said = type_in(step, "--recipe", file)
        if step == "eval":
            assert "macro F1" in said
            assert "recall of Sports" in said
            assert "target, label by label" in said
        if step == "train":
            assert "widened by yes, no, maybe" in " ".join(said.split())
    page = (tmp_path / "run" / "report.html").read_text()
    assert "Label by label" in page
    assert "recall of maybe" in page
    refused = type_in("generate", "--recipe", file, code=1)
    assert "is a text classifier" in refused


def test_the_functions_go_the_whole_way(tmp_path: Path, news: str) -> None:
    settings: dict[str, Any] = {
        "task": "classification",
        "classification": {"labels": list(FINDINGS)},
    }
    replay = {"select": labelled.texts(TOPICS, 10)}
    mixture = replaykit.mix(
        labelled.texts(FINDINGS, 30),
        replay,
        model=news,
        ratio=0.1,
        unit="rows",
        batch_rows=10,
        near_duplicate=None,
        **settings,
    )
    tuned = replaykit.train(mixture, model=news, folder=tmp_path / "tuned", **settings)
    found = replaykit.evaluate(
        {"base": news, "tuned": tuned.model},
        {
            "target": labelled.texts(FINDINGS, 9, first=90),
            "news": labelled.texts(TOPICS, 8, first=90),
        },
        **settings,
    )
    assert [skill.score for skill in found.skills] == ["label", "label"]
    assert set(found.models[1].classes["news"].recall) == set(TOPICS)
    assert mixture.result.share["rows"] == pytest.approx(0.1, abs=0.01)
