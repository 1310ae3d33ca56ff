"""A finished mixture for other trainers: its rows in training order, and the settings that keep
this order.

    mix/export/trl/           rows.parquet (input_ids, labels), train.py
    mix/export/axolotl/       rows.parquet (input_ids, attention_mask, labels), config.yaml
    mix/export/llamafactory/  tokenized/ (the same columns), rows.jsonl, dataset_info.json,
                              config.yaml
    mix/export/ms-swift/      rows.jsonl (messages with loss flags), config.yaml
    mix/export/parquet/       rows.parquet (all there is: step, messages, meta, input_ids, labels)

Every other trainer shuffles unless it is told not to, and most let the prompt carry loss, or mask
by a template of their own. So three of them get token ids and labels (-100: no loss), which they
take as they are; ms-swift tokenises itself, by its own template, and gets a flag for each answer.
All run one pass, in order, with the rows of the plan's largest step as the batch: any run of slots
has its share within one row, so that it does not matter where exactly a step begins.

What is read, by tool (version that was looked at, and whose own loader gave back these rows):
  TRL 1.16        trl/trainer/sft_trainer.py: ``input_ids`` and ``labels`` are used as they are;
                  ``train_sampling_strategy``
  axolotl 0.19.0  utils/data/wrappers.py, ``_is_dataset_already_tokenized``;
                  core/trainers/base.py, ``curriculum_sampling``
  LLaMA-Factory   0.9.5, data/loader.py, ``tokenized_path``;
                  train/sft/trainer.py, ``disable_shuffling``
  ms-swift 4.6.0  loss_scale/base.py, ``loss`` of a message;
                  trainers/arguments.py, ``train_dataloader_shuffle``
"""

from __future__ import annotations

import json
import os
import shutil
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import islice
from pathlib import Path
from pprint import pformat

import yaml

from replaykit.data.dataset import Schema
from replaykit.data.planned import PlannedRow, read_plan
from replaykit.data.record import Record
from replaykit.errors import DataError, RecipeError, did_you_mean
from replaykit.model import loading
from replaykit.model.chat import Chat, Example
from replaykit.model.logprobs import IGNORED
from replaykit.recipe.train import Train
from replaykit.runs import Watch, unwatched

# The train settings that no export sets up; a comment names those that the recipe changes.
UNSAID = (
    "controller",
    "freeze",
    "layer_rates",
    "min_rate",
    "packing",
    "precision",
    "stages",
    "weight_decay",
)
# The default of torch, with which replaykit trains; ms-swift's own is 0.95.
ADAM_BETA2 = 0.999
# Rows of a parquet row group: how many are in memory as token ids at a time.
CHUNK = 1000
TRL = """\
# python {file}
# The mixture that replaykit made, row by row in its order, with TRL.
{comment}
from pathlib import Path

import torch
from datasets import Dataset
from transformers import AutoTokenizer
from trl import SFTConfig, SFTTrainer
{imports}
HERE = Path(__file__).parent
MODEL, REVISION = {model!r}, {revision!r}
SETTINGS = {settings}

# input_ids and labels: nothing is left to tokenise
rows = Dataset.from_parquet(str(HERE / "rows.parquet"), cache_dir=str(HERE / "cache"))
trainer = SFTTrainer(
    model=MODEL,
    args=SFTConfig(output_dir=str(HERE / "output"), bf16=torch.cuda.is_available(), **SETTINGS),
    train_dataset=rows,
    processing_class=AutoTokenizer.from_pretrained(MODEL, revision=REVISION),{peft}
)

if __name__ == "__main__":
    trainer.train()
    trainer.save_model()
"""


@dataclass(frozen=True)
class Export:
    """A mixture on its way out, and what the settings of a trainer are made from."""

    folder: Path
    """Where the files are written."""
    place: Path
    """Where they will be when all are written: for the paths in settings."""
    rows: Sequence[PlannedRow]
    examples: Mapping[str, Example]
    """The tokens of each different row, by record id."""
    chat: Chat
    model: str
    revision: str | None
    train: Train

    @property
    def batch(self) -> tuple[int, int]:
        """Rows at once, and how often they are added up: together the rows of the largest step."""
        rows = max(Counter(row.step for row in self.rows).values())
        # The rows at once must divide the step, or its last addition would be of fewer rows.
        fit = min(rows, self.train.micro_batch_rows or rows)
        at_once = next(size for size in range(fit, 0, -1) if rows % size == 0)
        return at_once, rows // at_once

    @property
    def warmup_steps(self) -> int:
        return round(self.train.warmup * (self.rows[-1].step + 1))

    @property
    def lr_scheduler(self) -> str:
        """The name that transformers has for the schedule of the learning rate."""
        if self.train.schedule == "constant" and self.warmup_steps:
            return "constant_with_warmup"
        return self.train.schedule

    @property
    def weight_decay(self) -> float:
        """0 where the recipe has one by parameters' names, which no other trainer takes."""
        decay = self.train.weight_decay
        return 0.0 if isinstance(decay, dict) else decay

    @property
    def arguments(self) -> dict[str, object]:
        """The settings that have one name in TRL, LLaMA-Factory and ms-swift, those of
        transformers' TrainingArguments.
        """
        at_once, times = self.batch
        return {
            "num_train_epochs": 1,
            "per_device_train_batch_size": at_once,
            "gradient_accumulation_steps": times,
            "learning_rate": self.train.highest_learning_rate,
            "warmup_steps": self.warmup_steps,
            "max_grad_norm": self.train.max_grad_norm,
            "lr_scheduler_type": self.lr_scheduler,
            "weight_decay": self.weight_decay,
            "adam_beta2": ADAM_BETA2,
        }

    def revision_as(self, key: str) -> dict[str, str]:
        """The revision under a trainer's own key, where the recipe has one."""
        if self.revision is None:
            return {}
        return {key: self.revision}

    @property
    def lora(self) -> bool:
        return self.train.method == "lora" and self.train.peft is None

    @property
    def remarks(self) -> list[str]:
        """What the settings do not say, in lines of a comment."""
        at_once, times = self.batch
        # Every other trainer counts its batch for each device, replaykit for all together.
        said = [
            f"On several devices, divide gradient_accumulation_steps by their number: a step is of "
            f"{at_once * times} rows."
        ]
        if self.train.adapter and not self.lora:
            said.append(f"The recipe trains by {self.train.adapter_name}; that is not set up here.")
        # A weight decay that is one number is set up; one by parameters' names is not.
        changed = self.train.model_dump(include=set(UNSAID), exclude_defaults=True)
        if not isinstance(self.train.weight_decay, dict):
            changed.pop("weight_decay", None)
        if changed:
            said.append(
                f"Of the recipe's train these are not set up here: {', '.join(sorted(changed))}."
            )
        remedies = sorted(self.train.remedies.model_dump(exclude_defaults=True))
        if remedies:
            said.append(
                f"The recipe's remedies are replaykit's own and not in here: {', '.join(remedies)}."
            )
        return said

    @cached_property
    def columns(self) -> Schema:
        """The columns of the records themselves."""
        return Schema.of(row.record for row in self.rows)

    def tokens(self, *more: str) -> Iterator[dict[str, list[int]]]:
        """Each row as ``input_ids`` and ``labels``; with "attention_mask", ones beside them."""
        for row in self.rows:
            example = self.examples[row.record.id]
            labels = [
                token if loss else IGNORED
                for token, loss in zip(example.tokens, example.loss, strict=True)
            ]
            columns = {
                "input_ids": list(example.tokens),
                "attention_mask": [1] * len(labels),
                "labels": labels,
            }
            yield {key: columns[key] for key in ("input_ids", *more, "labels")}


def check(names: Sequence[str]) -> None:
    """Raises RecipeError for a name that is none of the exports."""
    wrong = [
        f"--export {name}: it is {', '.join(EXPORTS)}{did_you_mean(name, EXPORTS)}"
        for name in names
        if name not in EXPORTS
    ]
    if wrong:
        raise RecipeError("the command line", wrong)


def export_mixture(
    names: Sequence[str],
    mixture: Path,
    *,
    model: str,
    chat: Chat,
    train: Train,
    revision: str | None = None,
    watch: Watch = unwatched,
) -> dict[str, Path]:
    """Writes the finished mixture in a folder for the trainers of these names; returns where,
    ``export/<name>`` in it.

    An earlier export of the same name is replaced. Raises DataError for a mixture that a trainer
    cannot take.
    """
    check(names)
    rows = read_plan(mixture / "rows.jsonl")
    # Rows repeat in a mixture; each different one is tokenised once.
    different = {row.record.id: row.record for row in rows}
    examples = {key: chat.example(record) for key, record in different.items()}
    # An alias means nothing to another trainer, nor does a path relative to our working directory.
    resolved = loading.resolve(model)
    if Path(resolved).is_dir():
        resolved = str(Path(resolved).resolve())
    places = {}
    for number, name in enumerate(names):
        watch("export", number, len(names), name)
        if chat.seq2seq and name != "parquet":
            raise DataError(
                f"--export {name}: it takes causal models, and {model} is an encoder-decoder; "
                f"parquet takes both"
            )
        # Made under another name and renamed when all of it is there, so that no half export stays.
        place = mixture.resolve() / "export" / name
        folder = place.with_name(f".{name}.tmp")
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(parents=True)
        try:
            EXPORTS[name](Export(folder, place, rows, examples, chat, resolved, revision, train))
            shutil.rmtree(place, ignore_errors=True)
            os.replace(folder, place)
        finally:
            shutil.rmtree(folder, ignore_errors=True)
        places[name] = place
    watch("export", len(names), len(names))
    return places


# --- by trainer -----------------------------------------------------------------------------------


def trl(made: Export) -> None:
    """Token ids and labels, and a script that trains on them with ``SFTTrainer``."""
    _parquet(made.folder / "rows.parquet", made.tokens())
    # Each row whole, in the order of the file.
    settings = made.arguments | {
        "train_sampling_strategy": "sequential",
        "shuffle_dataset": False,
        "packing": False,
        "max_length": made.train.max_tokens,
        "model_init_kwargs": {"dtype": "float32"} | made.revision_as("revision"),
        "gradient_checkpointing": made.train.gradient_checkpointing,
    }
    imports = ""
    peft = ""
    if made.lora:
        imports = "from peft import LoraConfig\n"
        lora = f"r={made.train.rank}, lora_alpha={made.train.alpha}, target_modules='all-linear'"
        peft = f"\n    peft_config=LoraConfig({lora}),"
    script = TRL.format(
        model=made.model,
        revision=made.revision or "main",
        file=made.place / "train.py",
        settings=pformat(settings, sort_dicts=False),
        comment=_comment(made.remarks),
        imports=imports,
        peft=peft,
    )
    (made.folder / "train.py").write_text(script, encoding="utf-8")


def axolotl(made: Export) -> None:
    """Token ids and labels, which axolotl takes as they are where a data set has no type: axolotl
    train config.yaml
    """
    rows = made.place / "rows.parquet"
    _parquet(made.folder / rows.name, made.tokens("attention_mask"))
    at_once, times = made.batch
    # It shuffles data sets, merged ones and batches, each by a switch of its own; "curriculum" is
    # its name for the order of the rows.
    constant = made.train.schedule == "constant"
    settings = {
        "base_model": made.model,
        **made.revision_as("revision_of_model"),
        "datasets": [{"path": str(rows), "ds_type": "parquet", "split": "train", "type": None}],
        "dataset_prepared_path": str(made.place / "prepared"),
        "shuffle_merged_datasets": False,
        "shuffle_before_merging_datasets": False,
        "curriculum_sampling": True,
        "sample_packing": False,
        "group_by_length": False,
        "val_set_size": 0,
        "sequence_len": made.train.max_tokens,
        "num_epochs": 1,
        "micro_batch_size": at_once,
        "gradient_accumulation_steps": times,
        "learning_rate": made.train.highest_learning_rate,
        "warmup_steps": made.warmup_steps,
        "lr_scheduler": "constant_with_warmup" if constant else made.lr_scheduler,
        "max_grad_norm": made.train.max_grad_norm,
        "weight_decay": made.weight_decay,
        "adam_beta2": ADAM_BETA2,
        "optimizer": "adamw_torch",
        "bf16": "auto",
        "gradient_checkpointing": made.train.gradient_checkpointing,
    }
    if made.lora:
        settings |= {
            "adapter": "lora",
            "lora_r": made.train.rank,
            "lora_alpha": made.train.alpha,
            "lora_target_linear": True,
        }
    _config(made, "axolotl train", settings | {"output_dir": str(made.place / "output")})


def llamafactory(made: Export) -> None:
    """Token ids and labels as its own ``tokenized_path`` saves them: llamafactory-cli train
    config.yaml

    Its parser asks for a data set although one that is tokenised stands instead of it, so the
    conversations are there too, to be read, or to be tokenised by a template of its own if
    tokenized_path is taken out.
    """
    import datasets

    datasets.disable_progress_bars()
    rows = made.folder / "rows.parquet"
    _parquet(rows, made.tokens("attention_mask"))
    loaded = datasets.Dataset.from_parquet(str(rows), cache_dir=str(made.folder / "cache"))
    datasets.DatasetDict({"train": loaded}).save_to_disk(str(made.folder / "tokenized"))
    # The data set maps the files of its cache, which go now: tokenized/ has the rows.
    del loaded
    rows.unlink()
    shutil.rmtree(made.folder / "cache")
    _lines(made.folder / "rows.jsonl", (_conversation(row.record) for row in made.rows))
    _dataset_info(made.folder / "dataset_info.json")
    tuning: dict[str, object] = {"finetuning_type": "full"}
    if made.lora:
        tuning = {
            "finetuning_type": "lora",
            "lora_rank": made.train.rank,
            "lora_alpha": made.train.alpha,
            "lora_target": "all",
        }
    settings = {
        "model_name_or_path": made.model,
        **made.revision_as("model_revision"),
        "stage": "sft",
        "do_train": True,
        **tuning,
        "tokenized_path": str(made.place / "tokenized"),
        "dataset": "replaykit",
        "dataset_dir": str(made.place),
        # Without a template of its own it takes the tokenizer's.
        "template": "empty" if made.chat.plain else None,
        "disable_shuffling": True,
        "packing": False,
        "mask_history": False,
        "train_on_prompt": False,
        "cutoff_len": made.train.max_tokens,
        **made.arguments,
        "disable_gradient_checkpointing": not made.train.gradient_checkpointing,
        "output_dir": str(made.place / "output"),
    }
    _config(made, "llamafactory-cli train", settings)


def _conversation(record: Record) -> dict[str, object]:
    """The messages, and the tools where there are some."""
    row = record.to_json()
    return {key: row[key] for key in ("messages", "tools") if key in row}


def _dataset_info(path: Path) -> None:
    """What LLaMA-Factory must know to read rows.jsonl."""
    tags = {
        "role_tag": "role",
        "content_tag": "content",
        "user_tag": "user",
        "assistant_tag": "assistant",
        "system_tag": "system",
    }
    info = {
        "file_name": "rows.jsonl",
        "formatting": "sharegpt",
        "columns": {"messages": "messages"},
        "tags": tags,
    }
    path.write_text(json.dumps({"replaykit": info}, indent=1) + "\n", encoding="utf-8")


def ms_swift(made: Export) -> None:
    """Conversations with a flag for each answer, to be tokenised by its own template: swift sft
    config.yaml

    ``channel`` is the source, by which it logs the loss. Raises DataError for a text among
    conversations, which it would put into the chat template, and for tools, calls and thoughts,
    which it would write by its own rules instead of the model's template, and for what was cut at
    a token limit, which it would close.
    """
    texts = any(row.record.messages[0]["role"] == "text" for row in made.rows)
    if texts and not made.chat.plain:
        raise DataError(
            "--export ms-swift: it would put the plain texts of this mixture into the chat "
            "template; trl, axolotl and llamafactory take them as they are"
        )
    more: list[str] = [
        key for key in ("reasoning_content", "tool_calls") if key in made.columns.turn
    ]
    if made.columns.tools:
        more.append("tools")
    if more:
        raise DataError(
            f"--export ms-swift: some rows have {' and '.join(more)}, which it would write by its "
            f"own rules; trl, axolotl and llamafactory take the tokens of the model's template"
        )
    cut = sum(row.record.was_cut for row in made.rows)
    if cut:
        raise DataError(
            f"--export ms-swift: {cut:,} rows end where the model was cut at its token limit, and "
            f"it would close them with an end of turn that the model did not write; trl, axolotl "
            f"and llamafactory take them as they are, and generate.checks.truncated: true makes "
            f"none"
        )
    _lines(
        made.folder / "rows.jsonl",
        (
            {
                "messages": flagged(row.record, made.examples[row.record.id]),
                "channel": row.record.source,
            }
            for row in made.rows
        ),
    )
    tuning: dict[str, object] = {"tuner_type": "full"}
    if made.lora:
        tuning = {
            "tuner_type": "lora",
            "lora_rank": made.train.rank,
            "lora_alpha": made.train.alpha,
        }
    settings = {
        "model": made.model,
        **made.revision_as("model_revision"),
        **tuning,
        "dataset": [str(made.place / "rows.jsonl")],
        "split_dataset_ratio": 0,
        "dataset_shuffle": False,
        "train_dataloader_shuffle": False,
        "packing": False,
        "lazy_tokenize": False,
        "loss_scale": "default",
        "enable_channel_loss": True,
        "use_chat_template": not made.chat.plain,
        "max_length": made.train.max_tokens,
        **made.arguments,
        "gradient_checkpointing": made.train.gradient_checkpointing,
        "output_dir": str(made.place / "output"),
    }
    _config(made, "swift sft", settings)


def parquet(made: Export) -> None:
    """All that is known of each row: step, id, source, meta as JSON, messages, and, for a causal
    model, its tokens.
    """
    _parquet(made.folder / "rows.parquet", _whole_rows(made), made.columns)


def _whole_rows(made: Export) -> Iterator[dict[str, object]]:
    tokens: Iterator[dict[str, list[int]]] = made.tokens()
    if made.chat.seq2seq:
        tokens = ({} for _ in made.rows)
    for row, numbers in zip(made.rows, tokens, strict=True):
        yield {"step": row.step, **made.columns.row(row.record), **numbers}


EXPORTS: dict[str, Callable[[Export], None]] = {
    "trl": trl,
    "llamafactory": llamafactory,
    "axolotl": axolotl,
    "ms-swift": ms_swift,
    "parquet": parquet,
}


def flagged(record: Record, example: Example) -> list[dict[str, object]]:
    """The messages as ms-swift reads them, each answer with whether it carries ``loss``.

    A text is one answer.
    """
    found: list[dict[str, object]] = []
    for place, message in enumerate(record.messages):
        turn: dict[str, object] = {"role": message["role"], "content": message["content"]}
        if message["role"] == "text":
            turn["role"] = "assistant"
        if turn["role"] == "assistant":
            turn["loss"] = place in example.learned
        found.append(turn)
    return found


# --- files ----------------------------------------------------------------------------------------


def _parquet(
    path: Path, rows: Iterator[Mapping[str, object]], columns: Schema | None = None
) -> None:
    """Writes the rows, each with the same columns, CHUNK at a time; ``columns`` are those of the
    records, if any.
    """
    import pyarrow as pa
    import pyarrow.parquet as pq

    numbers = pa.list_(pa.int64())
    types = {"step": pa.int64(), "input_ids": numbers, "attention_mask": numbers, "labels": numbers}
    if columns is not None:
        types |= {field.name: field.type for field in columns.features.arrow_schema}
    writer = None
    # The columns are those of the first row, so the file is opened when that is known.
    while chunk := list(islice(rows, CHUNK)):
        schema = pa.schema([(name, types[name]) for name in chunk[0]])
        if writer is None:
            writer = pq.ParquetWriter(path, schema)
        writer.write_table(pa.Table.from_pylist(chunk, schema=schema))
    if writer is not None:
        writer.close()


def _lines(path: Path, rows: Iterator[Mapping[str, object]]) -> None:
    with path.open("w", encoding="utf-8") as stream:
        stream.writelines(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)


def _config(made: Export, command: str, settings: Mapping[str, object]) -> None:
    """Writes config.yaml, headed by the command that takes it and what it leaves out."""
    head = [f"{command} {made.place / 'config.yaml'}", *made.remarks]
    text = yaml.safe_dump(dict(settings), sort_keys=False, allow_unicode=True)
    (made.folder / "config.yaml").write_text(_comment(head) + text, encoding="utf-8")


def _comment(lines: Sequence[str]) -> str:
    return "".join(f"# {line}\n" for line in lines)
