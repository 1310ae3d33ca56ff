"""Scores of one model on held-out items, item by item.

A right/wrong item is answered greedily and compared with its reference (``checks.verify``); a
cross_entropy item is the negative log-likelihood of its reference answer, in nats, and how many
tokens that is.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from replaykit.chat import Chat
from replaykit.checks.verify import How, is_right
from replaykit.engines import Engine, Request, Sampling
from replaykit.errors import DataError, EngineError
from replaykit.records import Record
from replaykit.runs import Watch, unwatched
from replaykit.settings import Test

TARGET = "target"


def measure(
    engine: Engine,
    chat: Chat,
    tests: Mapping[str, tuple[Test, Sequence[Record]]],
    *,
    what: str = "eval",
    watch: Watch = unwatched,
) -> Iterator[dict[str, Any]]:
    """An item for every row of every test, in order: skill, row, score, and the answer
    (right/wrong) or tokens.

    The score is 1 or 0, or the summed negative log-likelihood of the answer; None, with the reason,
    for a row that is longer than the model reads. Raises as ``check_tests`` does, before anything
    is scored, and DataError for a row whose reference cannot be read in the way that the test is
    scored.
    """
    check_tests(chat, tests)
    total = sum(len(records) for _, records in tests.values())
    done = 0
    for skill, (test, records) in tests.items():
        score = _cross_entropy if test.score == "cross_entropy" else _answers
        made: dict[int, dict[str, Any]] = {}
        for item in score(engine, chat, test, skill, records):
            made[item["row"]] = item
            done += 1
            watch(what, done, total)
        yield from (made[row] for row in range(len(records)))


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
    engine: Engine, chat: Chat, test: Test, skill: str, records: Sequence[Record]
) -> Iterator[dict[str, Any]]:
    sampling = Sampling(temperature=0.0, max_tokens=test.max_tokens, stop=chat.stop)
    prompts = {row: chat.prompt(record.messages[:-1]) for row, record in enumerate(records)}
    yield from (
        _too_long(skill, row) for row, tokens in prompts.items() if len(tokens) >= engine.limit
    )
    requests = [
        Request(row, tokens, sampling)
        for row, tokens in prompts.items()
        if len(tokens) < engine.limit
    ]
    how: How = test.score  # type: ignore[assignment]
    for completion in engine.complete(requests):
        record = records[completion.row]
        answer = chat.decode(completion.tokens)
        try:
            right = is_right(answer, record.answer, how=how)
        except ValueError as error:
            raise DataError(
                f"{test.path}:{record.meta.get('line', '?')}: cannot be scored as {how}: {error}"
            ) from error
        yield {
            "skill": skill,
            "row": completion.row,
            "score": float(right),
            "answer": answer,
            "finish": completion.finish_reason,
        }


def _cross_entropy(
    engine: Engine, chat: Chat, test: Test, skill: str, records: Sequence[Record]
) -> Iterator[dict[str, Any]]:
    examples = {row: chat.example(record) for row, record in enumerate(records)}
    fitting = {
        row: example for row, example in examples.items() if len(example.tokens) < engine.limit
    }
    yield from (_too_long(skill, row) for row in examples.keys() - fitting.keys())
    scores = engine.score([example.tokens for example in fitting.values()])
    for (row, example), logs in zip(fitting.items(), scores, strict=True):
        counted = [-log for log, loss in zip(logs, example.loss[1:], strict=True) if loss]
        yield {"skill": skill, "row": row, "score": sum(counted), "tokens": len(counted)}


def _too_long(skill: str, row: int) -> dict[str, Any]:
    return {"skill": skill, "row": row, "score": None, "reason": "too_long"}
