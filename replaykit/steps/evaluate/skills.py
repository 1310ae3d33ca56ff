"""Scores of one model on held-out items, item by item.

    {"skill": "capital", "row": 0, "score": 1.0, "strict": 1.0, "answer": "Santiago",
     "finish": "stop"}
    {"skill": "weather", "row": 0, "score": 1.0, "strict": 1.0, "answer": "", "finish": "stop",
     "thought": "valid", "reasoning": "I need the weather.",
     "calls": [{"name": "weather", "arguments": {"city": "Oslo"}}]}
    {"skill": "pool", "row": 0, "score": 8.25, "tokens": 5}
    {"skill": "pool", "row": 1, "score": null, "reason": "too_long"}

A right/wrong item is answered greedily and compared with its reference (``checks.verify``,
``checks.tool_calls``), in a lenient reading, which is the score, and a strict one, which wants the
reference's form too. The thought before an answer is no part of what is compared, and what became
of it is told beside the score: answers alone hide that a model has stopped thinking (arXiv
2605.21127). A cross_entropy item is the negative log-likelihood of its reference answer, in nats,
and how many tokens that is; thoughts and calls of tools are parts of the reference. A choice item
is scored by the log-likelihoods of its options, and what the model writes is its strict reading.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from replaykit.checks.calls import begins_call
from replaykit.checks.scoring import readings_of
from replaykit.checks.scoring.choice import options_of
from replaykit.checks.tool_calls import readings_of_calls
from replaykit.checks.verify import Readings
from replaykit.data.record import TARGET, Message, Record, Tool
from replaykit.engines import Completion, Engine, Request, Sampling
from replaykit.errors import ChatError, DataError
from replaykit.model.chat import Chat, Example, Reply, Thought
from replaykit.model.labels import labels_in
from replaykit.model.logprobs import of_answer
from replaykit.recipe.evaluate import Test
from replaykit.runs import Watch, unwatched

UNJUDGED = "unjudged"
"""The reason of an item whose answer a judge has not read yet."""


@dataclass(frozen=True)
class Item:
    """One held-out row under one model."""

    skill: str
    row: int
    """Its place among the rows of the skill."""
    score: float | None
    """1 or 0, or the summed negative log-likelihood of the answer in nats; None if not scored."""
    answer: str | None = None
    """The model's, to a right/wrong item, without its thought and its calls."""
    finish: str | None = None
    """Why that answer ended: stop, or length."""
    tokens: int | None = None
    """Of the reference answer, of a cross_entropy item."""
    reason: str | None = None
    """Why it has no score."""
    strict: float | None = None
    """Of a right/wrong item: 1 where the answer is also written as the reference is. The score is
    the lenient reading."""
    thought: Thought | None = None
    """What became of the thought, where the model was left to think or thought all the same."""
    reasoning: str | None = None
    """The thought."""
    calls: Sequence[Mapping[str, Any]] | None = None
    """What was called: name and arguments of each."""
    label: str | None = None
    """The right label, of an item of a text classifier."""

    def to_json(self) -> dict[str, Any]:
        """Its line in items-<model>.jsonl, without what such an item does not have."""
        line: dict[str, Any] = {"skill": self.skill, "row": self.row, "score": self.score}
        for key in MORE:
            value = getattr(self, key)
            if value is not None:
                line[key] = value
        return line


# The keys of a line that not every item has, in order.
MORE = ("strict", "answer", "finish", "thought", "reasoning", "calls", "label", "tokens", "reason")


def read_items(path: Path, skills: Sequence[str]) -> dict[str, list[Item]]:
    """The items of a file that ``measure`` filled, by skill, in the order of ``skills``."""
    found: dict[str, list[Item]] = {skill: [] for skill in skills}
    with path.open(encoding="utf-8") as stream:
        for line in stream:
            item = Item(**json.loads(line))
            found[item.skill].append(item)
    return found


def measure(
    engine: Engine,
    chat: Chat,
    tests: Mapping[str, tuple[Test, Sequence[Record]]],
    *,
    what: str = "eval",
    watch: Watch = unwatched,
) -> Iterator[Item]:
    """An item for every row of every test, in order.

    A row that is longer than the model reads has no score. Raises as ``check_tests`` does, before
    anything is scored, and DataError for a row whose reference cannot be read in the way that the
    test is scored.
    """
    check_tests(chat, tests)
    total = sum(len(records) for _, records in tests.values())
    done = 0
    for skill, (test, records) in tests.items():
        if test.score == "lm_eval":
            from replaykit.steps.evaluate.lm_eval_tasks import task_items

            items = task_items(engine, chat, skill, records, test, watch)
        elif test.score == "cross_entropy":
            items = _cross_entropy(engine, chat, skill, records)
        elif test.score == "choice":
            items = _choices(engine, chat, skill, records, test)
        else:
            items = _answers(engine, chat, skill, records, test)
        # An engine gives its completions in the order in which they end; the rows come in theirs.
        by_row: dict[int, Item] = {}
        for item in items:
            by_row[item.row] = item
            done += 1
            watch(what, done, total)
        yield from (by_row[row] for row in range(len(records)))


# --- what is refused before anything is scored ----------------------------------------------------


def check_tests(chat: Chat, tests: Mapping[str, tuple[Test, Sequence[Record]]]) -> None:
    """Raises as ``check_ways`` does, and DataError for a row that cannot be scored as its test is,
    by its place.
    """
    check_ways(chat, {skill: test for skill, (test, _) in tests.items()})
    for test, records in tests.values():
        if test.score in ("cross_entropy", "lm_eval"):
            continue
        for record in records:
            found = problem(record, test)
            if found:
                raise DataError(f"{place_of(test, record)}: {found}")


def check_ways(chat: Chat, tests: Mapping[str, Test]) -> None:
    """Raises ChatError where the model cannot be asked in the way that a test wants it."""
    for skill, test in tests.items():
        if test.score == "cross_entropy":
            continue
        _check_thinking(chat, skill, test)
        if test.score == "lm_eval" and chat.seq2seq:
            raise ChatError(
                f"{skill}: tasks of lm-eval are asked of causal models, and {chat.name} is an "
                f"encoder-decoder; name rows in a file instead"
            )
        if test.score == "tool_call":
            _check_calls(chat, skill)


def _check_thinking(chat: Chat, skill: str, test: Test) -> None:
    if test.thinking and not chat.can_think:
        raise ChatError(
            f"{skill} is tested with thinking: true, but the chat template of {chat.name} has no "
            f"thoughts; leave thinking out"
        )
    if test.thinking is False and chat.always_thinks:
        raise ChatError(
            f"{skill} is tested with thinking: false, but the chat template of {chat.name} opens a "
            f"thought before every answer and has no switch for it; leave thinking out"
        )


def _check_calls(chat: Chat, skill: str) -> None:
    try:
        chat.check_tools()
    except ChatError as error:
        raise ChatError(f"{skill} cannot be scored by tool_call: {error}") from error


def problem(record: Record, test: Test) -> str:
    """Why a row cannot be scored right or wrong as its test is; "" where it can."""
    answer = record.messages[-1]
    if answer["role"] == "text":
        return "a text has no question; score it by cross_entropy"
    if test.score == "tool_call":
        if not record.tools:
            return (
                "tool_call scores calls of tools, and the row has no tools; give it a column "
                "'tools' with those that the model is told of, or score it in another way"
            )
    elif "tool_calls" in answer and not answer["content"].strip():
        return f"its answer calls tools and says nothing; score it by tool_call, not {test.score}"
    return ""


def read_back(chat: Chat, test: Test, record: Record) -> str:
    """Why calls cannot be right whatever is answered; "" where they can.

    Some values cannot be told apart in the way that a template writes them: a text that holds the
    mark behind an argument, say. Raises ChatError where the template does not show the row.
    """
    answer = record.messages[-1]
    if test.score != "tool_call" or "tool_calls" not in answer:
        return ""
    thinking: bool | None = "reasoning_content" in answer
    if not thinking and chat.always_thinks:
        thinking = None
    prompt = chat.prompt(record.messages[:-1], thinking, record.tools)
    tokens = chat.example(record).tokens
    if tokens[: len(prompt)] != prompt:
        return ""  # where its answer begins is not known
    found = chat.read(tokens[len(prompt) :], thinking, record.tools)
    if readings_of_calls(found, answer).lenient:
        return ""
    return "the chat template writes its calls in a way that cannot be read back"


def place_of(test: Test, record: Record) -> str:
    """What an error calls a row of a test."""
    return f"{test.path}:{record.meta.get('line', '?')}"


# --- answers --------------------------------------------------------------------------------------


def _answers(
    engine: Engine, chat: Chat, skill: str, records: Sequence[Record], test: Test
) -> Iterator[Item]:
    requests = []
    for row, record in enumerate(records):
        prompt = chat.prompt(record.messages[:-1], test.thinking, record.tools)
        if len(prompt) < engine.limit:
            stops = chat.stops(test.thinking, record.tools)
            schema = chat.among(record, old=skill != TARGET)
            sampling = Sampling(
                temperature=0.0, max_tokens=test.max_tokens, stop=stops, schema=schema
            )
            requests.append(Request(row, prompt, sampling))
        else:
            yield _too_long(skill, row)
    for completion in engine.complete(requests):
        yield _answered(chat, skill, records[completion.row], test, completion)


def _answered(chat: Chat, skill: str, record: Record, test: Test, completion: Completion) -> Item:
    """The item of an answer. Raises DataError where the reference cannot be read."""
    reply = chat.reply(completion.tokens, test.thinking, record.tools)
    try:
        right = right_of(reply.message, record, test)
    except ValueError as error:
        place = place_of(test, record)
        raise DataError(f"{place}: cannot be scored as {test.score}: {error}") from error
    if not is_answer(chat, reply, completion, test, record.tools):
        right = Readings(strict=False, lenient=False)
    made = reply.message
    calls = None
    if "tool_calls" in made:
        calls = [dict(call["function"]) for call in made["tool_calls"]]
    thought = None
    if left_to_think(chat, test) or reply.thought != "missing":
        thought = reply.thought
    item = Item(
        skill,
        completion.row,
        float(right.lenient),
        answer=made["content"],
        finish=completion.finish_reason,
        strict=float(right.strict),
        thought=thought,
        reasoning=made.get("reasoning_content"),
        calls=calls,
        label=record.answer if test.score == "label" else None,
    )
    if test.score != "judge":
        return item
    if right.lenient:
        return replace(item, score=None, strict=None, reason=UNJUDGED)
    return replace(item, strict=None)  # no answer has no use for a judge


def left_to_think(chat: Chat, test: Test) -> bool:
    """Whether the model is left to think before its answers to a test."""
    if not chat.can_think:
        return False
    if test.thinking is None:
        return chat.template.thinking
    return test.thinking


def right_of(answer: Message, record: Record, test: Test) -> Readings:
    """Both readings of an answer. Raises ValueError for a reference that cannot be read."""
    assert test.score != "cross_entropy"
    if test.score == "label":
        same = set(labels_in(answer["content"])) == set(labels_in(record.answer))
        return Readings(strict=same, lenient=same)
    if test.score == "tool_call":
        return readings_of_calls(answer, record.messages[-1])
    if test.score == "judge":
        said = bool(answer["content"].strip())
        return Readings(strict=said, lenient=said)  # the judge says how right it is
    return readings_of(test.score, answer["content"], record)


def is_answer(
    chat: Chat, reply: Reply, completion: Completion, test: Test, tools: Sequence[Tool]
) -> bool:
    """Whether what was written is an answer: not a thought alone, and where calls are scored, all
    that it calls.

    What was cut might have called more, and a mark of calls that was not read as one is a call
    that no program could make.
    """
    if reply.thought == "cut":
        return False
    if test.score != "tool_call":
        return True
    assert chat.call_format is not None
    # A special token that is left over is a mark of a call.
    unread = reply.special or begins_call(reply.message["content"], chat.call_format, tools)
    return completion.finish_reason == "stop" and not unread


# --- multiple choice ------------------------------------------------------------------------------


def _choices(
    engine: Engine, chat: Chat, skill: str, records: Sequence[Record], test: Test
) -> Iterator[Item]:
    """The items of a test whose options are compared by their log-likelihood.

    The answer that the model writes is asked for too: it is the strict reading.
    """
    likely = dict(_likely(engine, chat, records))
    for item in _answers(engine, chat, skill, records, test):
        if item.score is None or item.row not in likely:
            yield _too_long(skill, item.row)
        else:
            yield replace(item, score=likely[item.row], strict=item.score)


def _likely(engine: Engine, chat: Chat, records: Sequence[Record]) -> Iterator[tuple[int, float]]:
    """Of each row that the model can read with all its options: 1 where the right one is more
    probable than each of the others, 0 where it is not.
    """
    asked: dict[int, list[Example]] = {}
    for row, record in enumerate(records):
        examples = [chat.example(_with_answer(record, text)) for text in options_of(record).texts]
        if all(len(example.scored) < engine.limit for example in examples):
            asked[row] = examples
    scores = engine.score([example.scored for of_row in asked.values() for example in of_row])
    for row, examples in asked.items():
        sums = [sum(of_answer(example, next(scores))) for example in examples]
        right = sums.pop(options_of(records[row]).right)
        yield row, float(all(right > other for other in sums))


def _with_answer(record: Record, text: str) -> Record:
    answer: Message = {"role": "assistant", "content": text}
    return replace(record, messages=(*record.messages[:-1], answer))


# --- cross-entropy --------------------------------------------------------------------------------


def _cross_entropy(
    engine: Engine, chat: Chat, skill: str, records: Sequence[Record]
) -> Iterator[Item]:
    fitting = {}
    for row, record in enumerate(records):
        example = chat.example(record)
        if len(example.scored) < engine.limit:
            fitting[row] = example
        else:
            yield _too_long(skill, row)
    logprobs = engine.score([example.scored for example in fitting.values()])
    for (row, example), of_tokens in zip(fitting.items(), logprobs, strict=True):
        counted = [-logp for logp in of_answer(example, of_tokens)]
        yield Item(skill, row, sum(counted), tokens=len(counted))


def _too_long(skill: str, row: int) -> Item:
    return Item(skill, row, None, reason="too_long")
