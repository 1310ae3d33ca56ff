"""Tasks of lm-eval as skills: lm-eval asks and scores, and each document is an item of ours.

    eval:
      old:
        ifeval: lm_eval:ifeval
        gsm8k: {path: lm_eval:gsm8k, n: 200}

Prompts, examples, filters and metrics are lm-eval's, as its own command has them with a chat
template (``--apply_chat_template``, examples as turns); the model is asked by our engine. Which
metric is the score, and which its strict reading, is chosen before anything is asked
(``checks.lm_eval_tasks.scored_by``), so it is the same for every model.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from replaykit.checks.lm_eval_tasks import (
    SEED,
    Reading,
    Scored,
    Tasks,
    foreign,
    load_tasks,
    scored_by,
)
from replaykit.data.record import Record
from replaykit.engines import Engine
from replaykit.errors import DataError
from replaykit.model.chat import Chat
from replaykit.recipe.evaluate import Test
from replaykit.runs import Watch, unwatched
from replaykit.steps.evaluate.skills import Item, left_to_think

if TYPE_CHECKING:
    from replaykit.steps.evaluate.lm_eval_model import EngineLM

Sample = Mapping[str, Any]  # what lm-eval logs of one document under one filter


@dataclass(frozen=True)
class _Run:
    """A task that was asked, and how it is read."""

    skill: str
    name: str
    test: Test
    scored: Scored
    thinks: bool
    """Whether the model was left to think."""


def task_items(
    engine: Engine,
    chat: Chat,
    skill: str,
    records: Sequence[Record],
    test: Test,
    watch: Watch = unwatched,
) -> Iterator[Item]:
    """An item for each of the documents that ``records`` stand for (``task_records``), in order.

    One whose prompt is longer than the model reads has no score. Raises DataError for a task that
    cannot be had or run, and for a metric that is not between 0 and 1; EngineError and ChatError as
    the engine and the chat do.
    """
    name = str(records[0].meta["name"])
    tasks = load_tasks(name)
    run = _Run(skill, name, test, scored_by(name, tasks, test.metric), left_to_think(chat, test))
    wanted: dict[str, list[int]] = {}
    for record in records:
        wanted.setdefault(record.meta["task"], []).append(record.meta["document"])
    asked = {task: tasks[task] for task in wanted}
    numbers = {task: sorted(found) for task, found in wanted.items()}
    # lm-eval numbers its requests by the place of a document among those that are asked.
    places = {
        task: {number: place for place, number in enumerate(of)} for task, of in numbers.items()
    }
    lm, samples = _evaluated(engine, chat, run, asked, numbers, watch)
    for row, record in enumerate(records):
        task = record.meta["task"]
        number = record.meta["document"]
        place = (task, places[task][number])
        yield _item(run, lm, asked[task], row, place, samples[task].get(number, {}))


def _evaluated(
    engine: Engine,
    chat: Chat,
    run: _Run,
    tasks: Tasks,
    numbers: Mapping[str, list[int]],
    watch: Watch,
) -> tuple[EngineLM, dict[str, dict[int, dict[str, Sample]]]]:
    """The documents of these numbers, asked and scored by lm-eval: what it logs of each, by task,
    number and filter.
    """
    from lm_eval.evaluator import evaluate

    from replaykit.steps.evaluate.lm_eval_model import EngineLM

    done = 0

    def tell() -> None:
        nonlocal done
        done += 1
        watch(f"{run.skill}, requests of lm-eval", done, None)

    lm = EngineLM(
        engine,
        chat,
        thinking=run.test.thinking,
        max_tokens=run.test.max_tokens,
        greedy=[task for task, of in tasks.items() if _asks_what_is_greedy(of)],
        tell=tell,
    )
    with foreign(run.name, ours=lambda: lm.asking):
        for task in tasks.values():
            # As lm_eval.simple_evaluate does it, which cannot be given a part of a group.
            if task.get_config("num_fewshot") is None:
                task.set_config(key="num_fewshot", value=0)
            task.set_fewshot_seed(seed=SEED)
        for name, task in tasks.items():
            _score_nothing(task, numbers[name])
        results = evaluate(
            lm,
            {"tasks": dict(tasks), "groups": {}},
            samples=dict(numbers),
            bootstrap_iters=0,
            apply_chat_template=not chat.plain,
            fewshot_as_multiturn=not chat.plain,
        )
    found: dict[str, dict[int, dict[str, Sample]]] = {name: {} for name in tasks}
    for name, logged in results["samples"].items():
        for sample in logged:
            found[name].setdefault(sample["doc_id"], {})[sample["filter"]] = sample
    return lm, found


def _score_nothing(task: Any, numbers: Sequence[int]) -> None:
    """Has a task's own code score an empty answer to each document, as any answer may be: what it
    needs and does not have, such as data of nltk, is said before a model is asked.
    """
    if task.OUTPUT_TYPE != "generate_until" or not callable(task.get_config("process_results")):
        return
    documents = task.eval_docs  # read anew each time
    for number in numbers:
        task.process_results(documents[number], [""])


def _asks_what_is_greedy(task: Any) -> bool:
    """Whether a metric of the task may ask if a continuation is what the model would write: LAMBADA
    does. Of several choices the likelihoods alone count, but for exact_match; what code of the
    task's own asks is not known.
    """
    if task.OUTPUT_TYPE == "loglikelihood" or callable(task.get_config("process_results")):
        return True
    return task.OUTPUT_TYPE == "multiple_choice" and "exact_match" in task.aggregation()


def _item(
    run: _Run,
    lm: EngineLM,
    task: Any,
    row: int,
    place: tuple[str, int],
    samples: Mapping[str, Sample],
) -> Item:
    """The item of a document, from what lm-eval logged of it by filter."""
    if place in lm.too_long:
        return Item(run.skill, row, None, reason="too_long")
    score = _value(run, samples, run.scored.score)
    strict = None
    if run.scored.strict is not None:
        strict = _value(run, samples, run.scored.strict)
    answered = lm.answered.get(place)
    if answered is None:
        chosen = _chosen(task, samples[run.scored.score[1]])
        return Item(run.skill, row, score, answer=chosen, strict=strict)
    reply = answered.reply
    thought = None
    if run.thinks or reply.thought != "missing":
        thought = reply.thought
    return Item(
        run.skill,
        row,
        score,
        answer=answered.text,
        finish=answered.finish,
        strict=strict,
        thought=thought,
        reasoning=reply.message.get("reasoning_content"),
    )


def _value(run: _Run, samples: Mapping[str, Sample], reading: Reading) -> float:
    """A metric of a document. Raises DataError where it is no number between 0 and 1."""
    metric, answers = reading
    value = samples.get(answers, {}).get(metric)
    try:
        found = float(value)  # type: ignore[arg-type]  # what is no number says so
    except (TypeError, ValueError):
        found = math.nan
    if not 0 <= found <= 1:
        raise DataError(
            f"{run.name}: {','.join(reading)} of an item is {value!r}, and a score is between 0 "
            f"and 1; `metric: NAME` beside the path takes another of the task's metrics"
        )
    return found


def _chosen(task: Any, sample: Sample) -> str | None:
    """The choice that the model finds likeliest; None of a task without choices."""
    if task.OUTPUT_TYPE != "multiple_choice":
        return None
    choices = task.doc_to_choice(sample["doc"])
    likelihoods = [answers[0][0] for answers in sample["resps"][: len(choices)]]
    return str(choices[likelihoods.index(max(likelihoods))])
