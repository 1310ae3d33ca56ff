"""Tasks of lm-eval: how they are loaded, what they ask, and which of their metrics is the score.

    tasks = load_tasks("lm_eval:gsm8k")
    scored_by("lm_eval:gsm8k", tasks, None)
    ->  Scored(score=("exact_match", "flexible-extract"), strict=("exact_match", "strict-match"))

lm-eval finds a task and reads its data set from the Hub, from its cache, or from the files that the
task's YAML names. A group such as mmlu is all of its tasks. What goes wrong in there is a DataError
that says what to do; what is printed there goes to stderr.
"""

from __future__ import annotations

import random
import re
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, redirect_stdout
from dataclasses import dataclass
from functools import cache
from importlib.util import find_spec
from itertools import islice
from pathlib import Path
from typing import Any

from replaykit.data.record import TARGET, Message, Record
from replaykit.errors import DataError, MissingExtra, ReplaykitError, did_you_mean
from replaykit.recipe.lm_eval import PREFIX, is_own_group, lm_eval_version

SEED = 1234
"""lm-eval's own, for numpy and for the examples of a prompt (lm_eval.defaults)."""
STRICT = "strict"
LENIENT = ("loose", "flexible")
# What a metric or a filter is called in its strict reading, for what it is in its lenient one.
PAIRS = {"loose": "strict", "flexible-extract": "strict-match"}

Reading = tuple[str, str]  # a metric and the filter of the answers
Tasks = Mapping[str, Any]  # lm_eval.api.task.Task by its name


@dataclass(frozen=True)
class Scored:
    """Which of a task's metrics are our readings."""

    score: Reading
    strict: Reading | None
    """Of a task that also has a strict one."""

    @property
    def said(self) -> str:
        """Both, as lm-eval's tables name them."""
        strict = f", strictly by {','.join(self.strict)}" if self.strict else ""
        return f"{','.join(self.score)}{strict}"


def load_tasks(name: str) -> Tasks:
    """The tasks of "lm_eval:" and a name or a YAML file, in lm-eval's order: one, or a group's.

    Raises DataError for a task or a data set that cannot be had, MissingExtra where lm-eval is not
    installed.
    """
    if find_spec("lm_eval") is None:
        raise MissingExtra("lm-eval", "eval")
    plain = name.removeprefix(PREFIX)
    if is_own_group(name):
        raise DataError(
            f"{name}: lm-eval takes a group by its name alone, and this is one's own in a file; "
            f"give each of its tasks a name and a path of its own"
        )
    with foreign(name):
        manager = _manager()
        if plain in manager.task_index or Path(plain).is_file():
            found: Tasks = manager.load(plain)["tasks"]
            for task in found.values():
                len(task.eval_docs)  # what has none says so
            return found
    raise DataError(
        f"{PREFIX}{plain}: lm-eval has no task '{plain}'{did_you_mean(plain, manager.all_tasks)}; "
        "`lm-eval ls tasks` lists them, and a task of your own is given by its YAML file"
    )


@cache
def _manager() -> Any:
    """lm-eval's list of its own tasks, whose thousands of files take seconds to read."""
    from lm_eval.tasks import TaskManager

    return TaskManager()


@contextmanager
def foreign(name: str, ours: Callable[[], bool] = lambda: False) -> Iterator[None]:
    """Runs code of lm-eval and of its tasks: with its seeds, its words on stderr, and its errors as
    DataError.

    Some tasks shuffle their choices while they are loaded, by the state of ``random`` alone, so
    lm-eval's seeds are set before, and what they were is put back. An error stays as it is where it
    was raised by what is ``ours``, such as an engine.
    """
    import numpy as np

    states = (random.getstate(), np.random.get_state())
    random.seed(0)
    np.random.seed(SEED)
    try:
        with redirect_stdout(sys.stderr):
            yield
    except ReplaykitError:
        raise
    except Exception as error:  # anybody's code, which raises what it likes
        if ours():
            raise
        raise DataError(f"{name}: {_explained(error)}") from error
    finally:
        random.setstate(states[0])
        np.random.set_state(states[1])


def _explained(error: Exception) -> str:
    """What went wrong in lm-eval, and what to do."""
    text = str(error)
    line = next((line for line in text.splitlines() if re.search(r"\w", line)), "").strip()
    line = line or type(error).__name__
    if isinstance(error, ModuleNotFoundError):
        return (
            f"this task needs a package that is not installed ({line}); `pip install {error.name}` "
            f"brings it, where that is its name"
        )
    data = re.search(r"nltk\.download\('([\w-]+)'\)", text)
    if data is not None:
        return (
            f"this task needs data of nltk that is not here, {data[1]}; `python -m nltk.downloader "
            f"{data[1]}` brings it where there is a network, and the folder nltk_data can be "
            f"copied from there"
        )
    return (
        f"lm-eval cannot run it: its documents cannot be had, or its code fails ({line}); check "
        "the network and `hf auth whoami`, load the data set once where there is one and copy its "
        "cache, or write the questions to a JSONL file and name that instead"
    )


# --- documents ------------------------------------------------------------------------------------


def documents(tasks: Tasks) -> Iterator[tuple[str, int, Mapping[str, Any]]]:
    """Each document with its task and its number there; the tasks of a group take turns, so that
    the first hundred are of all of them.
    """
    sizes = {name: len(task.eval_docs) for name, task in tasks.items()}
    docs = {name: task.eval_docs for name, task in tasks.items()}
    for number in range(max(sizes.values(), default=0)):
        for name, size in sizes.items():
            if number < size:
                yield name, number, docs[name][number]


def task_records(
    name: str, tasks: Tasks, *, skip: int = 0, limit: int | None = None
) -> list[Record]:
    """What the documents ask, as rows: the question as the task writes it, and the answer where it
    is a text. ``meta`` has the task, and the number of the document.
    """
    found = []
    end = None if limit is None else skip + limit
    with foreign(name):
        for task, number, document in islice(documents(tasks), skip, end):
            asked: Message = {"role": "user", "content": prompt_of(tasks[task], document)}
            answer: Message = {"role": "assistant", "content": _answer(tasks[task], document)}
            meta = {"line": f"{task}:{number}", "name": name, "task": task, "document": number}
            found.append(Record((asked, answer), TARGET, meta))
    if not found:
        raise DataError(f"{name}: the task has no document left to ask; lower skip, or leave it")
    return found


def prompt_of(task: Any, document: Mapping[str, Any]) -> str:
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


def _answer(task: Any, document: Mapping[str, Any]) -> str:
    """The right answer of a document as a text; "" where it is none."""
    target = task.doc_to_target(document)
    if isinstance(target, int) and getattr(task.config, "doc_to_choice", None) is not None:
        choices = task.doc_to_choice(document)
        return str(choices[target]) if 0 <= target < len(choices) else ""
    return target.strip() if isinstance(target, str) else ""


# --- metrics --------------------------------------------------------------------------------------


def scored_by(name: str, tasks: Tasks, metric: str | None) -> Scored:
    """The readings of a task, or of all tasks of a group together.

    A metric can be one where the task's own score is the mean of what its items have, more being
    better: then each item has a score. The strict reading is the same metric, or the same filter of
    the answers, under its strict name. Raises DataError where there is no such metric, or where
    ``metric`` is none of them.
    """
    found = _readings(tasks)
    if not found:
        every = ", ".join(dict.fromkeys(m for task in tasks.values() for m in task.aggregation()))
        raise DataError(
            f"{name}: its metrics ({every}) say nothing of a single item, so nothing can be "
            f"compared item by item; write its questions to a JSONL file and score them in another "
            f"way, texts by `score: cross_entropy`"
        )
    if metric is None:
        lenient = [each for each in found if any(mark in ",".join(each) for mark in LENIENT)]
        plain = [each for each in found if STRICT not in ",".join(each)]
        score = [*lenient, *plain, *found][0]
    else:
        named = [each for each in found if metric in (each[0], ",".join(each))]
        if not named:
            known = [",".join(each) for each in found]
            near = did_you_mean(metric, known)
            raise DataError(
                f"{name}: metric: it has no '{metric}' whose mean over the items is the task's "
                f"score{near}: {', '.join(known)}"
            )
        lenient = [each for each in named if any(mark in each[1] for mark in LENIENT)]
        score = [*lenient, *named][0]
    strict = _strict_of(score)
    known_strict = strict != score and strict in found
    return Scored(score, strict if known_strict else None)


def _readings(tasks: Tasks) -> list[Reading]:
    """The metrics with their filters that all of the tasks have, in the first one's order."""
    from lm_eval.api.metrics import mean

    of_tasks = []
    for task in tasks.values():
        better = task.higher_is_better()
        names = [
            metric
            for metric, aggregate in task.aggregation().items()
            if aggregate is mean and better.get(metric, True)
        ]
        filters = [each.name for each in getattr(task, "_filters", [])] or ["none"]
        of_tasks.append([(metric, each) for metric in names for each in filters])
    shared = [set(readings) for readings in of_tasks]
    return [each for each in of_tasks[0] if all(each in readings for readings in shared)]


def _strict_of(score: Reading) -> Reading:
    """What the strict reading of a lenient one is called; the same where it has no lenient mark."""
    metric, answers = score
    for lenient, strict in PAIRS.items():
        metric = metric.replace(lenient, strict)
        answers = answers.replace(lenient, strict)
    return metric, answers


def scored_note(name: str, scored: Scored) -> str:
    """What is said of how a task is scored."""
    return f"{name}: scored by lm-eval {lm_eval_version()}: {scored.said}"
