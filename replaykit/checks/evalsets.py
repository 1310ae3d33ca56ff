"""Evaluation sets to keep out of training, by file or by the name of a task of lm-eval.

    eval_items("held_out.jsonl")      ->  [EvalItem(id="1", prompt="What is 2 + 2?"), ...]
    eval_items("lm_eval:gsm8k")       ->  the test documents of the task, as lm-eval asks them

A file is read as all others are (``data.formats``), a task by lm-eval
(``checks.lm_eval_tasks``).
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

from replaykit.checks.lm_eval_tasks import foreign, load_tasks, prompt_of
from replaykit.data.formats import read_prompts
from replaykit.data.record import Record
from replaykit.errors import DataError
from replaykit.recipe.lm_eval import is_task
from replaykit.text import words

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
    if is_task(name):
        items = list(_task_items(name))
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
    tasks = load_tasks(name)
    with foreign(name):
        for task_name, task in tasks.items():
            for number, document in enumerate(task.eval_docs):
                yield EvalItem(f"{task_name}:{number}", prompt_of(task, document))
