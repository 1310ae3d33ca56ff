"""Evaluation sets to keep out of training, by file or by the name of a task of lm-eval.

    eval_items("held_out.jsonl")      ->  [EvalItem(id="1", prompt="What is 2 + 2?"), ...]
    eval_items("lm_eval:gsm8k")       ->  the test documents of the task, as lm-eval asks them

A file is read as all others are (``data.formats``). The lm-eval package finds a task and reads its
data set from the Hub, from its cache, or from the files that the task's YAML names. A group such as
mmlu is all of its tasks.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from replaykit.data.formats import read_prompts
from replaykit.data.record import Record
from replaykit.errors import DataError, MissingExtra, did_you_mean
from replaykit.text import words

PREFIX = "lm_eval:"
OWN_WORDS = 5  # of a question by which its conversation is known


@dataclass(frozen=True)
class EvalItem:
    """What an evaluation asks. ``id`` names it within its set."""

    id: str
    prompt: str


def eval_items(name: str) -> list[EvalItem]:
    """The items of an evaluation set in its own order: a file, a folder, the test split of a Hub
    data set, or "lm_eval:" and a task's name.

    Of a file, an item's id is its line. Of a task, it is the document's number from 0 behind the
    task's name, and the words that the task puts before and after every question ("Question:",
    "Answer:") are left out of the prompt. Raises DataError for a task or data set that cannot be
    had or is empty, MissingExtra where lm-eval is not installed.
    """
    if name.startswith(PREFIX):
        items = list(_task_items(name.removeprefix(PREFIX)))
    else:
        rows = read_prompts(name, split="test")
        items = items_of((str(row.meta["line"]), row) for row in rows)
    if not items:
        raise DataError(
            f"{name}: the evaluation set is empty, so nothing could be kept apart from it"
        )
    return items


def items_of(rows: Iterable[tuple[str, Record]]) -> list[EvalItem]:
    """What rows ask, each under its id. A conversation of several questions is as many items of
    one id.

    Of these, one that other conversations ask too, or of fewer than 5 words, such as "Why?", says
    nothing of the conversation. Where no question is left, all together are its item.
    """
    asked = [(row_id, row.questions) for row_id, row in rows]
    several = {tuple(questions) for _, questions in asked}
    shared = Counter(question for questions in several for question in set(questions))
    items: list[EvalItem] = []
    for row_id, questions in asked:
        own = [text for text in questions if shared[text] == 1 and len(words(text)) >= OWN_WORDS]
        if len(questions) == 1 or not own:
            own = ["\n".join(questions)]
        items += [EvalItem(row_id, text) for text in own]
    return items


def _task_items(name: str) -> Iterator[EvalItem]:
    if find_spec("lm_eval") is None:
        raise MissingExtra("lm-eval", "eval")
    from lm_eval.tasks import TaskManager

    manager = TaskManager()
    if name not in manager.task_index and not Path(name).is_file():
        raise DataError(
            f"{PREFIX}{name}: lm-eval has no task '{name}'{did_you_mean(name, manager.all_tasks)}; "
            "`lm-eval ls tasks` lists them, and a task of your own is given by its YAML file"
        )
    try:
        tasks = manager.load(name)["tasks"]
        for task_name, task in tasks.items():
            for number, document in enumerate(task.eval_docs):
                yield EvalItem(f"{task_name}:{number}", _prompt(task, document))
    except (OSError, ValueError, LookupError, TypeError, RuntimeError, ImportError) as error:
        lines = str(error).strip().splitlines() or [type(error).__name__]
        raise DataError(
            f"{PREFIX}{name}: its documents cannot be had ({lines[0]}); check the network and "
            "`hf auth whoami`, load the data set once where there is one and copy its cache, or "
            "write the questions to a JSONL file and name that instead"
        ) from error


def _prompt(task: Any, document: Mapping[str, Any]) -> str:
    """The question without the template's fixed words."""
    text = task.doc_to_text(document)
    if isinstance(text, int):
        # The question itself is what is chosen, and the target is how it goes on.
        return f"{task.doc_to_choice(document)[text]} {task.doc_to_target(document)}"
    return _bare(str(text), task.config.doc_to_text)


def _bare(text: str, template: object) -> str:
    """The text without what the template begins and ends with, unless nothing would be left."""
    if not isinstance(template, str) or "{{" not in template:
        return text.strip()
    before = template[: template.index("{")]
    after = template[template.rindex("}") + 1 :]
    bare = text.strip().removeprefix(before.strip()).removesuffix(after.strip()).strip()
    return bare or text.strip()
