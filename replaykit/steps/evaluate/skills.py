"""Scores of one model on held-out items, item by item.

    {"skill": "capital", "row": 0, "score": 1.0, "strict": 1.0, "answer": "Santiago",
     "finish": "stop"}
    {"skill": "pool", "row": 0, "score": 8.25, "tokens": 5}
    {"skill": "pool", "row": 1, "score": null, "reason": "too_long"}

A right/wrong item is answered greedily and compared with its reference (``checks.verify``), in a
lenient reading, which is the score, and a strict one, which wants the reference's form too; a
cross_entropy item is the negative log-likelihood of its reference answer, in nats, and how many
tokens that is.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from replaykit.checks.verify import How, readings
from replaykit.data.record import Record
from replaykit.engines import Engine, Request, Sampling
from replaykit.errors import DataError, EngineError
from replaykit.model.chat import Chat
from replaykit.recipe.evaluate import Test
from replaykit.runs import Watch, unwatched


@dataclass(frozen=True)
class Item:
    """One held-out row under one model."""

    skill: str
    row: int
    """Its place among the rows of the skill."""
    score: float | None
    """1 or 0, or the summed negative log-likelihood of the answer in nats; None if not scored."""
    answer: str | None = None
    """The model's, to a right/wrong item."""
    finish: str | None = None
    """Why that answer ended: stop, or length."""
    tokens: int | None = None
    """Of the reference answer, of a cross_entropy item."""
    reason: str | None = None
    """Why it has no score."""
    strict: float | None = None
    """Of a right/wrong item: 1 where the answer is also written as the reference is. The score is
    the lenient reading."""

    def to_json(self) -> dict[str, str | int | float | None]:
        """Its line in items-<model>.jsonl, without what such an item does not have."""
        line: dict[str, str | int | float | None] = {
            "skill": self.skill,
            "row": self.row,
            "score": self.score,
        }
        for key in ("strict", "answer", "finish", "tokens", "reason"):
            value = getattr(self, key)
            if value is not None:
                line[key] = value
        return line


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
        if test.score == "cross_entropy":
            items = _cross_entropy(engine, chat, skill, records)
        else:
            items = _answers(engine, chat, skill, records, test, test.score)
        # An engine gives its completions in the order in which they end; the rows come in theirs.
        by_row: dict[int, Item] = {}
        for item in items:
            by_row[item.row] = item
            done += 1
            watch(what, done, total)
        yield from (by_row[row] for row in range(len(records)))


def check_tests(chat: Chat, tests: Mapping[str, tuple[Test, Sequence[Record]]]) -> None:
    """Raises EngineError for an encoder-decoder's cross-entropy, and DataError for a text in a
    right/wrong test.
    """
    for skill, (test, records) in tests.items():
        if test.score == "cross_entropy":
            if chat.seq2seq:
                todo = f"give {skill} another score than cross_entropy"
                raise EngineError(
                    f"{chat.name} is an encoder-decoder, whose tokens cannot be scored; {todo}"
                )
            continue
        for record in records:
            if record.messages[0]["role"] == "text":
                place = f"{test.path}:{record.meta.get('line', '?')}"
                raise DataError(f"{place}: a text has no question; score it by cross_entropy")


def _answers(
    engine: Engine, chat: Chat, skill: str, records: Sequence[Record], test: Test, how: How
) -> Iterator[Item]:
    sampling = Sampling(temperature=0.0, max_tokens=test.max_tokens, stop=chat.stop)
    requests = []
    for row, record in enumerate(records):
        prompt = chat.prompt(record.messages[:-1])
        if len(prompt) < engine.limit:
            requests.append(Request(row, prompt, sampling))
        else:
            yield _too_long(skill, row)
    for completion in engine.complete(requests):
        record = records[completion.row]
        answer = chat.decode(completion.tokens)
        try:
            right = readings(answer, record.answer, how=how)
        except ValueError as error:
            place = f"{test.path}:{record.meta.get('line', '?')}"
            raise DataError(f"{place}: cannot be scored as {how}: {error}") from error
        yield Item(
            skill,
            completion.row,
            float(right.lenient),
            answer=answer,
            finish=completion.finish_reason,
            strict=float(right.strict),
        )


def _cross_entropy(
    engine: Engine, chat: Chat, skill: str, records: Sequence[Record]
) -> Iterator[Item]:
    fitting = {}
    for row, record in enumerate(records):
        example = chat.example(record)
        if len(example.tokens) < engine.limit:
            fitting[row] = example
        else:
            yield _too_long(skill, row)
    logprobs = engine.score([example.tokens for example in fitting.values()])
    for (row, example), of_tokens in zip(fitting.items(), logprobs, strict=True):
        # The first token has no log-probability: nothing comes before it.
        counted = [-logp for logp, loss in zip(of_tokens, example.loss[1:], strict=True) if loss]
        yield Item(skill, row, sum(counted), tokens=len(counted))


def _too_long(skill: str, row: int) -> Item:
    return Item(skill, row, None, reason="too_long")
