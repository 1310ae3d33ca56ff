"""Evaluation sets to keep out of training, by file or by the name of a task of lm-eval.

    eval_items("held_out.jsonl")      ->  [EvalItem(id="1", prompt="What is 2 + 2?"), ...]
    eval_items("lm_eval:gsm8k")       ->  the test documents of the task, as lm-eval asks them, with their answers

A file is read as all others are (``records``). A task is resolved by the lm-eval package, which
reads its data set from the Hub, from its cache, or from the files that the task's YAML names; a
group such as mmlu is all of its tasks.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from replaykit.errors import DataError, MissingExtra, did_you_mean
from replaykit.records import Record, read_prompts, read_records

PREFIX = "lm_eval:"


@dataclass(frozen=True)
class EvalItem:
    """What an evaluation asks, and its answer, or '' where none is known. ``id`` names it within
    its set.
    """

    id: str
    prompt: str
    answer: str = ""


def eval_items(
    name: str | Path,
    *,
    answers: bool = False,
    prompt: str | None = None,
    answer: str | None = None,
    split: str = "test",
    include_path: str | Path | None = None,
) -> list[EvalItem]:
    """The items of an evaluation set in its own order: a file, a folder, a Hub data set, or
    "lm_eval:" and a task's name.

    Of a file, ``answers`` takes the answers too, which every row must have then; the names of
    columns are those of ``read_records``, ``split`` is that of a Hub data set, and an item's id is
    its line. Of a task, ``include_path`` is a folder of further tasks, an id is the document's
    number from 0 behind the task's name, and the words that the task puts before and after every
    question ("Question:", "Answer:") are left out of the prompt. Raises DataError for a task or
    data set that cannot be had or is empty, MissingExtra where lm-eval is not installed.
    """
    if str(name).startswith(PREFIX):
        items = list(_task_items(str(name).removeprefix(PREFIX), include_path))
    else:
        records = (
            read_records(name, "target", prompt=prompt, answer=answer, split=split)
            if answers
            else read_prompts(name, prompt=prompt, split=split)
        )
        items = [_item(record) for record in records]
    if not items:
        raise DataError(
            f"{name}: the evaluation set is empty, so nothing could be kept apart from it"
        )
    return items


def _item(record: Record) -> EvalItem:
    return EvalItem(
        str(record.meta["line"]), record.prompt or record.messages[-1]["content"], record.answer
    )


def _task_items(name: str, include_path: str | Path | None) -> Iterator[EvalItem]:
    if find_spec("lm_eval") is None:
        raise MissingExtra("lm-eval", "eval")
    from lm_eval.tasks import TaskManager

    if include_path is not None and not Path(include_path).is_dir():
        raise DataError(f"{include_path}: no such folder of lm-eval tasks")
    manager = TaskManager(include_path=str(include_path) if include_path is not None else None)
    if name not in manager.task_index and not Path(name).is_file():
        raise DataError(
            f"{PREFIX}{name}: lm-eval has no task '{name}'{did_you_mean(name, manager.all_tasks)}; "
            "`lm-eval ls tasks` lists them, and a task of your own is given by its YAML file"
        )
    try:
        tasks: Mapping[str, Any] = manager.load(name)["tasks"]
        for task_name, task in tasks.items():
            for number, document in enumerate(task.eval_docs):
                yield EvalItem(f"{task_name}:{number}", *_texts(task, document))
    except (OSError, ValueError, LookupError, TypeError, RuntimeError, ImportError) as error:
        lines = str(error).strip().splitlines()
        raise DataError(
            f"{PREFIX}{name}: its documents cannot be had "
            f"({lines[0] if lines else type(error).__name__}); check the network "
            "and `hf auth whoami`, load the data set once where there is one and copy its cache, "
            "or write the questions to "
            "a JSONL file and name that instead"
        ) from error


def _texts(task: Any, document: Mapping[str, Any]) -> tuple[str, str]:
    """The question without the template's fixed words, and the answer, of a choice the right
    one.
    """
    text = task.doc_to_text(document)
    target = task.doc_to_target(document)
    if isinstance(
        text, int
    ):  # the question itself is what is chosen, and the target is how it goes on
        return f"{task.doc_to_choice(document)[text]} {target}", ""
    choices = (
        task.doc_to_choice(document)
        if isinstance(target, int) and task.config.doc_to_choice is not None
        else ()
    )
    if isinstance(target, int) and 0 <= target < len(choices):
        target = choices[target]
    if isinstance(target, list | tuple):
        target = target[0] if target else ""
    return _bare(str(text), task.config.doc_to_text), str(target)


def _bare(text: str, template: object) -> str:
    """The text without what the template begins and ends with, unless nothing would be left."""
    if not isinstance(template, str) or "{{" not in template:
        return text.strip()
    before = template[: template.index("{")]
    after = template[template.rindex("}") + 1 :]
    bare = text.strip().removeprefix(before.strip()).removesuffix(after.strip()).strip()
    return bare or text.strip()
