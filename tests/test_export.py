"""What other trainers are given is our rows, our order and our loss masks; TRL itself is asked what it makes of them.

axolotl, LLaMA-Factory and ms-swift want other versions of torch or transformers than ours, so their exports are compared
with what the files of theirs that ``steps/mix/export.py`` names read.
"""

from __future__ import annotations

import json
import re
import runpy
from pathlib import Path
from typing import Any

import pytest
import yaml
from test_templates import shipped

from replaykit.data.planned import write_plan
from replaykit.data.record import Message, Record, dialogue
from replaykit.errors import DataError, RecipeError
from replaykit.model.calls import tool_call
from replaykit.model.chat import Chat
from replaykit.recipe.mix import Mix
from replaykit.recipe.train import Train
from replaykit.steps.mix.build import Mixture, build_mixture
from replaykit.steps.mix.export import EXPORTS, check, export_mixture, flagged

SUMS = [Record(dialogue(f"{a} + 2?", f"It is {a + 2}."), "target") for a in range(40)]
TALKS = [
    Record(
        (*dialogue("Name a tree", "Oak", system="Be brief."), *dialogue(f"And number {n}?", "Elm")),
        "generate",
    )
    for n in range(5)
]
TRAIN = Train(batch_rows=8, micro_batch_rows=3, max_tokens=200, learning_rate=1e-3)


def mixed(
    folder: Path, chat: Chat, *, train: Train = TRAIN, replay: list[Record] | None = None
) -> Mixture:
    """A small mixture, written as the step mix writes it."""
    rows = {"generate": TALKS if replay is None else replay}
    made = build_mixture(
        SUMS, rows, chat=chat, settings=Mix(ratio=0.2, near_duplicate=None), train=train, seed=1
    )
    write_plan(folder / "rows.jsonl", made.planned_rows())
    return made


def exported(
    name: str, folder: Path, chat: Chat, **options: Any
) -> tuple[Path, list[tuple[list[int], list[int]]]]:
    """Where an export is, and the token ids and labels of the rows in their order."""
    made = mixed(folder, chat, **options)
    place = export_mixture(
        [name], folder, model="nano", chat=chat, train=options.get("train", TRAIN)
    )[name]
    assert place == folder.resolve() / "export" / name
    assert not list(place.parent.glob(".*"))  # nothing half-made stays
    examples = [chat.example(row.record) for row in made.planned_rows()]
    labels = [
        [t if loss else -100 for t, loss in zip(e.tokens, e.loss, strict=True)] for e in examples
    ]
    return place, [(list(e.tokens), row) for e, row in zip(examples, labels, strict=True)]


def columns(path: Path) -> dict[str, list[Any]]:
    import pyarrow.parquet as pq

    found = pq.read_table(path).to_pydict()
    assert found
    return dict(found)


def config(place: Path) -> dict[str, Any]:
    return dict(yaml.safe_load((place / "config.yaml").read_text()))


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:'pin_memory'")
def test_trl_trains_on_our_labels_in_our_order(tmp_path: Path, chat: Chat) -> None:
    place, rows = exported("trl", tmp_path, chat)
    made = runpy.run_path(
        str(place / "train.py")
    )  # builds the trainer; only as a program it trains
    trainer = made["trainer"]
    given = list(trainer.get_train_dataloader())
    seen = []
    for batch in given:
        for ids, labels, mask in zip(
            batch["input_ids"], batch["labels"], batch["attention_mask"], strict=True
        ):
            length = int(mask.sum())
            seen.append((ids[:length].tolist(), labels[:length].tolist()))
            assert (labels[length:] == -100).all()
    assert seen == rows
    args = trainer.args
    assert args.per_device_train_batch_size * args.gradient_accumulation_steps == 8
    assert args.per_device_train_batch_size <= 3
    args.max_steps, args.save_strategy, args.report_to = 1, "no", []
    outcome = trainer.train()
    assert trainer.state.global_step == 1
    assert 0 < outcome.training_loss < 20


def test_trl_gets_the_adapter_of_the_recipe(tmp_path: Path, chat: Chat) -> None:
    place, _ = exported(
        "trl", tmp_path, chat, train=TRAIN.model_copy(update={"method": "lora", "rank": 4})
    )
    script = (place / "train.py").read_text()
    assert "from peft import LoraConfig" in script
    assert "peft_config=LoraConfig(r=4, lora_alpha=32, target_modules='all-linear')" in script
    compile(script, "train.py", "exec")


def test_axolotl_gets_what_it_takes_as_tokenised_and_is_told_not_to_shuffle(
    tmp_path: Path, chat: Chat
) -> None:
    place, rows = exported("axolotl", tmp_path, chat)
    found = columns(place / "rows.parquet")
    assert set(found) == {
        "input_ids",
        "attention_mask",
        "labels",
    }  # these three make it tokenised; no other is dropped
    assert list(zip(found["input_ids"], found["labels"], strict=True)) == rows
    assert found["attention_mask"] == [[1] * len(ids) for ids, _ in rows]
    settings = config(place)
    (data,) = settings["datasets"]
    assert data == {
        "path": str(place / "rows.parquet"),
        "ds_type": "parquet",
        "split": "train",
        "type": None,
    }
    assert settings["curriculum_sampling"] is True
    for off in ("shuffle_merged_datasets", "sample_packing", "group_by_length", "val_set_size"):
        assert not settings[off]
    assert settings["micro_batch_size"] * settings["gradient_accumulation_steps"] == 8
    assert settings["sequence_len"] >= max(len(ids) for ids, _ in rows)  # it drops longer ones


def test_llamafactory_gets_a_tokenised_path_and_conversations_beside_it(
    tmp_path: Path, chat: Chat
) -> None:
    import datasets

    place, rows = exported("llamafactory", tmp_path, chat)
    loaded = datasets.load_from_disk(str(place / "tokenized"))[
        "train"
    ]  # as its data/loader.py does
    assert set(loaded.column_names) == {"input_ids", "attention_mask", "labels"}
    assert list(zip(loaded["input_ids"], loaded["labels"], strict=True)) == rows
    settings = config(place)
    assert settings["tokenized_path"] == str(place / "tokenized")
    assert settings["disable_shuffling"] is True
    assert settings["packing"] is settings["mask_history"] is settings["train_on_prompt"] is False
    assert settings["per_device_train_batch_size"] * settings["gradient_accumulation_steps"] == 8
    (info,) = [json.loads((place / "dataset_info.json").read_text())[settings["dataset"]]]
    talks = [
        json.loads(line)["messages"]
        for line in (place / info["file_name"]).read_text().splitlines()
    ]
    assert len(talks) == len(rows)
    tags = info["tags"]
    for (
        talk
    ) in talks:  # a system message, then questions and answers in turns; another row it would skip
        turns = [
            turn[tags["role_tag"]] for turn in talk if turn[tags["role_tag"]] != tags["system_tag"]
        ]
        assert turns == [tags["user_tag"], tags["assistant_tag"]] * (len(turns) // 2)


def test_ms_swift_gets_conversations_with_a_flag_for_each_answer(
    tmp_path: Path, chat: Chat
) -> None:
    place, rows = exported("ms-swift", tmp_path, chat)
    lines = [json.loads(line) for line in (place / "rows.jsonl").read_text().splitlines()]
    assert len(lines) == len(rows)
    assert {line["channel"] for line in lines} == {"target", "generate"}
    for line, (_, labels) in zip(lines, rows, strict=True):
        runs = sum(
            here != -100 and before == -100
            for before, here in zip([-100, *labels], labels, strict=False)
        )
        assert sum(message.get("loss", False) for message in line["messages"]) == runs
        assert all(
            ("loss" in message) is (message["role"] == "assistant") for message in line["messages"]
        )
    settings = config(place)
    for off in ("dataset_shuffle", "train_dataloader_shuffle", "packing", "split_dataset_ratio"):
        assert not settings[off]
    assert settings["per_device_train_batch_size"] * settings["gradient_accumulation_steps"] == 8
    assert settings["dataset"] == [str(place / "rows.jsonl")]


def test_an_answer_that_opens_a_conversation_is_flagged_as_without_loss(chat: Chat) -> None:
    turns = ({"role": "assistant", "content": "Hello!"}, *dialogue("2 + 2?", "4"))
    record = Record(turns, "select")
    assert [message.get("loss") for message in flagged(record, chat.example(record))] == [
        False,
        None,
        True,
    ]


def test_ms_swift_is_not_given_plain_texts_among_conversations(tmp_path: Path, chat: Chat) -> None:
    texts = [
        Record(({"role": "text", "content": f"A text number {n}."},), "select") for n in range(3)
    ]
    with pytest.raises(
        DataError, match="plain texts .* trl, axolotl and llamafactory take them as they are"
    ):
        exported("ms-swift", tmp_path, chat, replay=texts)
    assert list((tmp_path / "export").iterdir()) == []
    place, rows = exported("axolotl", tmp_path, chat, replay=texts)
    assert columns(place / "rows.parquet")["labels"] == [labels for _, labels in rows]


def test_parquet_has_all_that_is_known_of_a_row(tmp_path: Path, chat: Chat) -> None:
    place, rows = exported("parquet", tmp_path, chat)
    found = columns(place / "rows.parquet")
    lines = [json.loads(line) for line in (tmp_path / "rows.jsonl").read_text().splitlines()]
    for key in ("step", "id", "source", "messages"):
        assert found[key] == [line[key] for line in lines]
    assert [json.loads(meta) for meta in found["meta"]] == [line["meta"] for line in lines]
    assert list(zip(found["input_ids"], found["labels"], strict=True)) == rows


WEATHER = {"type": "function", "function": {"name": "weather", "parameters": {"type": "object"}}}
ASKED: Message = {"role": "user", "content": "Weather in Oslo?"}
CALLED: Message = {
    "role": "assistant",
    "content": "",
    "tool_calls": [tool_call("weather", {"city": "Oslo"})],
}
RESULT: Message = {"role": "tool", "content": "7 C", "name": "weather"}
SAID: Message = {"role": "assistant", "content": "Seven degrees."}
CALLS = [
    Record((ASKED, CALLED, RESULT, SAID), "generate", {}, (WEATHER,)),
    Record((ASKED, CALLED), "generate", {}, (WEATHER,)),
    Record((ASKED, {**SAID, "content": "In which Oslo?"}), "generate", {}, (WEATHER,)),
]
ROOM = TRAIN.model_copy(update={"max_tokens": 2000, "epochs": 5})  # so that every row comes


@pytest.mark.parametrize("name", ["trl", "axolotl", "parquet"])
def test_token_ids_have_calls_as_trained_and_no_loss_on_their_results(
    tmp_path: Path, name: str
) -> None:
    chat = shipped("qwen3")
    place, rows = exported(name, tmp_path, chat, train=ROOM, replay=CALLS)
    found = columns(place / "rows.parquet")
    assert list(zip(found["input_ids"], found["labels"], strict=True)) == rows
    said = [chat.decode([label for label in row if label >= 0], special=True) for _, row in rows]
    assert any('"arguments": {"city": "Oslo"}' in text for text in said)
    assert not any("7 C" in text or "<tools>" in text for text in said)
    shown = [chat.decode(tokens, special=True) for tokens, _ in rows]
    assert any("7 C" in text and "<tools>" in text for text in shown)


@pytest.mark.parametrize("name", ["llamafactory", "parquet"])
def test_conversations_keep_their_tools_calls_and_results(tmp_path: Path, name: str) -> None:
    place, _ = exported(name, tmp_path, shipped("qwen3"), train=ROOM, replay=CALLS)
    if name == "parquet":
        found = columns(place / "rows.parquet")
        pairs = zip(found["messages"], found["tools"], strict=True)
        kept = [(turns, json.loads(tools)) for turns, tools in pairs if tools is not None]
    else:
        lines = map(json.loads, (place / "rows.jsonl").read_text().splitlines())
        kept = [(line["messages"], line["tools"]) for line in lines if "tools" in line]
    turns = [turn for messages, _ in kept for turn in messages]
    assert all(tools == [WEATHER] for _, tools in kept)
    assert "7 C" in [turn["content"] for turn in turns if turn["role"] == "tool"]
    calls = [call["function"] for turn in turns for call in turn.get("tool_calls") or []]
    assert {call["name"] for call in calls} == {"weather"}
    assert all("Oslo" in str(call["arguments"]) for call in calls)


@pytest.mark.parametrize(
    ("rows", "holds"),
    [(CALLS, "tool_calls and tools"), (CALLS[1:2], "tool_calls and tools"), (CALLS[2:], "tools")],
)
def test_a_trainer_that_would_write_calls_by_its_own_rules_is_refused_them(
    tmp_path: Path, rows: list[Record], holds: str
) -> None:
    with pytest.raises(DataError, match=f"--export ms-swift: some rows have {holds}, which it"):
        exported("ms-swift", tmp_path, shipped("qwen3"), train=ROOM, replay=rows)
    assert list((tmp_path / "export").iterdir()) == []


TRAINERS = [name for name in EXPORTS if name != "parquet"]


def script_or_config(name: str, place: Path) -> str:
    return (place / ("train.py" if name == "trl" else "config.yaml")).read_text()


@pytest.mark.parametrize("name", TRAINERS)
def test_the_optimiser_is_that_of_the_recipe_and_what_else_is_not_is_named(
    name: str, tmp_path: Path, chat: Chat
) -> None:
    own = {"batch_rows": 8, "max_tokens": 200, "weight_decay": 0.01}
    place, _ = exported(name, tmp_path, chat, train=Train.model_validate(own))
    text = script_or_config(name, place).replace("'", "")
    assert "weight_decay: 0.01" in text
    assert "adam_beta2: 0.999" in text
    assert "not set up here" not in text
    own |= {
        "weight_decay": {"head": 0.1},
        "min_rate": 0.1,
        "freeze": ["embeddings"],
        "packing": True,
    }
    place, _ = exported(name, tmp_path, chat, train=Train.model_validate(own))
    text = script_or_config(name, place).replace("'", "")
    assert "train these are not set up here: freeze, min_rate, packing, weight_decay." in text
    assert "weight_decay: 0.0" in text  # and not a trainer's own default


@pytest.mark.parametrize("name", TRAINERS)
@pytest.mark.parametrize(
    ("own", "rate"),
    [
        ({}, 1e-5),
        ({"method": "lora"}, 2e-4),
        ({"layer_rates": {"bottom": 1e-4, "top": 1e-3}}, 1e-3),
    ],
)
def test_the_learning_rate_is_the_highest_of_the_recipe(
    name: str, own: dict[str, Any], rate: float, tmp_path: Path, chat: Chat
) -> None:
    train = Train.model_validate({"batch_rows": 8, "max_tokens": 200, **own})
    place, _ = exported(name, tmp_path, chat, train=train)
    found = re.search(r"learning_rate'?: ([0-9.e-]+)", script_or_config(name, place))
    assert found is not None
    assert float(found.group(1)) == rate


@pytest.mark.parametrize("name", TRAINERS)
def test_the_revision_of_the_model_reaches_the_trainer(
    name: str, tmp_path: Path, chat: Chat
) -> None:
    mixed(tmp_path, chat)
    key = {"trl": "'revision'", "axolotl": "revision_of_model"}.get(name, "model_revision")
    for revision, there in ((None, False), ("v1.5", True)):
        places = export_mixture(
            [name], tmp_path, model="nano", chat=chat, train=TRAIN, revision=revision
        )
        assert (f"{key}: " in script_or_config(name, places[name])) is there
    assert "v1.5" in script_or_config(name, places[name])


@pytest.mark.parametrize("name", TRAINERS)
def test_the_settings_say_what_they_leave_out(name: str, tmp_path: Path, chat: Chat) -> None:
    train = Train.model_validate(
        {"batch_rows": 8, "max_tokens": 200, "method": "dora", "remedies": {"dft": True}}
    )
    place, _ = exported(name, tmp_path, chat, train=train)
    text = script_or_config(name, place)
    assert "The recipe trains by dora; that is not set up here." in text
    assert "The recipe's remedies are replaykit's own and not in here: dft." in text


def test_a_second_export_replaces_the_first(tmp_path: Path, chat: Chat) -> None:
    place, rows = exported("parquet", tmp_path, chat)
    (place / "left over").write_text("")
    place, again = exported("parquet", tmp_path, chat)
    assert [file.name for file in place.iterdir()] == ["rows.parquet"]
    assert again == rows


def test_a_misspelt_export_names_the_right_one() -> None:
    check(list(EXPORTS))
    with pytest.raises(RecipeError, match="--export axolotel: .*did you mean 'axolotl'"):
        check(["trl", "axolotel"])
