"""The model's own memory: it writes questions from the bare pre-query, and then answers them (Magpie).

    <|begin_of_text|><|start_header_id|>user<|end_header_id|>\\n\\n   ->  "Name the capital of Poland."  ->  "Warsaw"

After Xu et al., arXiv 2406.08464, sections 2.1 and 2.2, and magpie-align/magpie b734a36 exp/gen_ins.py and gen_res.py.
Where we differ: the pre-query is derived and sent as token ids; questions are checked before they are answered, since
answers are 97 % of the cost; a turn ends at token ids only, never at a line break or at the word "assistant"; what was
cut at the token limit is dropped; and nothing is chosen for its length, so that the sample stays the model's own.

Row i is drawn from seed(run, "question", i). Whether it stays depends on rows before it and on nothing else, so the first
n kept rows are the same for any batch size and after any interruption, and asking for more later keeps them.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from replaykit.chat import Chat
from replaykit.checks.funnel import Funnel
from replaykit.engines import Engine, Request, Sampling
from replaykit.errors import EngineError
from replaykit.recipe import Generate
from replaykit.records import Record, dialogue
from replaykit.runs import Ledger, Watch, derive_seed, unwatched
from replaykit.text import normalise

SMALLEST_WAVE = 64  # rows drawn at least before the kept ones are counted again


@dataclass
class Magpie:
    """One generation on its way: what is drawn, what was seen, and the two ledgers that keep it."""

    engine: Engine
    chat: Chat
    settings: Generate
    seed: int
    questions: Ledger
    answers: Ledger
    facts: Mapping[str, Any]  # that go into every record's meta

    def __post_init__(self) -> None:
        s, stop = self.settings, self.chat.stop
        self.asking = Sampling(s.temperature, s.top_p, s.max_question_tokens, stop)
        self.answering = Sampling(s.answer_temperature, s.answer_top_p, s.max_answer_tokens, stop)
        self.seen: set[str] = set()

    def draw(self, rows: range, watch: Watch) -> None:
        """Makes sure that every one of the rows has a question in the ledger."""
        missing = [row for row in rows if row not in self.questions.rows]
        requests = (self._request("question", row, self.chat.pre_query, self.asking) for row in missing)
        self._run(requests, self.questions, "questions", len(rows) - len(missing) + rows.start, rows.stop, watch)

    def answer(self, rows: list[int], total: int, watch: Watch) -> None:
        """Makes sure that every one of the rows has an answer in the ledger."""
        missing = [row for row in rows if row not in self.answers.rows]
        requests = (
            self._request("answer", row, self.chat.prompt(dialogue(self._text(row))), self.answering) for row in missing
        )
        self._run(requests, self.answers, "answers", len(self.answers.rows), total, watch)

    def question_reason(self, row: int) -> str | None:
        """Why the question is not worth an answer, or None; remembers it if it is."""
        question = self._text(row)
        if self.questions.rows[row]["finish"] == "length":
            return "question_truncated"
        if not question:
            return "question_empty"
        if len(question) < self.settings.min_chars:
            return "question_too_short"
        key = normalise(question)
        if key in self.seen:
            return "duplicate"
        self.seen.add(key)
        return None

    def answer_reason(self, row: int) -> str | None:
        """Why the answer cannot be kept, or None."""
        if self.answers.rows[row]["finish"] == "length":
            return "answer_truncated"
        return None if self.answers.rows[row]["text"].strip() else "answer_empty"

    def record(self, row: int) -> Record:
        """The row as a record; without an answer if it was never asked for one."""
        answer = self.answers.rows.get(row)
        messages = dialogue(self._text(row), answer["text"].strip() if answer else None)
        return Record(messages, "generate", {"row": row, **self.facts})

    def _text(self, row: int) -> str:
        return str(self.questions.rows[row]["text"]).strip()

    def _request(self, stage: str, row: int, tokens: tuple[int, ...], sampling: Sampling) -> Request:
        return Request(row, tokens, sampling, derive_seed(self.seed, stage, row))

    def _run(self, requests: Iterator[Request], ledger: Ledger, what: str, done: int, total: int, watch: Watch) -> None:
        watch(what, done, total)
        for completion in self.engine.complete(requests):
            text = self.chat.decode(completion.tokens)
            ledger.append({"row": completion.row, "text": text, "finish": completion.finish_reason})
            done += 1
            watch(what, done, total)


def generate(
    engine: Engine,
    chat: Chat,
    *,
    settings: Generate,
    seed: int,
    folder: Path,
    facts: Mapping[str, Any] | None = None,
    funnel: Funnel | None = None,
    watch: Watch = unwatched,
) -> Iterator[Record]:
    """The first ``settings.n`` kept rows, in the order of their addresses.

    Finished questions and answers stand in ledgers in ``folder``, so the same call continues where it was interrupted, and
    one with a larger n goes on from there. ``funnel`` counts every row up to the last one kept. Raises EngineError if
    fewer than n could be kept out of ``settings.max_draws`` (20 n by default).
    """
    funnel = Funnel() if funnel is None else funnel
    most = settings.max_draws or 20 * settings.n
    with ExitStack() as stack:
        questions = stack.enter_context(Ledger(folder / "questions.jsonl"))
        answers = stack.enter_context(Ledger(folder / "answers.jsonl"))
        magpie = Magpie(engine, chat, settings, seed, questions, answers, facts or {})
        start, kept = 0, 0
        while kept < settings.n:
            if start >= most:
                raise EngineError(
                    f"only {kept} of {settings.n} rows could be kept out of {start} drawn ({funnel}); the finished rows "
                    f"are safe. `replaykit probe` shows what the model writes; generate.max_draws draws more"
                )
            share = kept / start if kept else 0.8
            size = max(SMALLEST_WAVE, int((settings.n - kept) / share))
            wave = range(start, min(start + size, most))
            for record in _wave(magpie, wave, funnel, settings.n - kept, watch):
                yield record
                kept += 1
            start = wave.stop


def _wave(magpie: Magpie, rows: range, funnel: Funnel, wanted: int, watch: Watch) -> Iterator[Record]:
    """Draws, checks and answers the rows, and yields the kept ones up to the number wanted."""
    magpie.draw(rows, watch)
    reasons = {row: magpie.question_reason(row) for row in rows}
    asked = [row for row in rows if reasons[row] is None]
    magpie.answer(asked[:wanted], len(magpie.answers.rows) + min(wanted, len(asked)), watch)
    for row in rows:
        if wanted == 0:
            return
        if reasons[row] is None and row not in magpie.answers.rows:
            magpie.answer([later for later in asked if later >= row][:wanted], len(asked), watch)
        record = magpie.record(row)
        if funnel.passes(record, reasons[row] or magpie.answer_reason(row)):
            yield record
            wanted -= 1
