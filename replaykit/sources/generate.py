"""The model's own memory: it writes questions from the bare pre-query, and then answers them
(Magpie).

    <|begin_of_text|><|start_header_id|>user<|end_header_id|>\\n\\n   ->  "Name the capital of Poland."  ->  "Warsaw"

After Xu et al., arXiv 2406.08464, sections 2.1 and 2.2, and magpie-align/magpie b734a36
exp/gen_ins.py, gen_res.py and gen_mt.py. Where we differ: the pre-query is derived and sent as
token ids; questions are checked before they are answered, since answers are 97 % of the cost; a
turn ends at token ids only, never at a line break or at the word "assistant"; what was cut at the
token limit is dropped; and nothing is chosen for its length, so that the sample stays the model's
own.

The same loop serves two other kinds of row: an answer to each of the user's ``prompts``, and, from
a base model, texts that begin with BOS alone. What row i says is drawn from seed(run, stage, i).
Whether it stays depends on rows before it and on nothing else, so the first n kept rows are the
same for any batch size, any number of workers and after any interruption, and asking for more later
keeps them.
"""

from __future__ import annotations

import math
import time
from collections import deque
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from contextlib import ExitStack, closing
from dataclasses import replace
from pathlib import Path
from typing import Any

from replaykit.chat import Chat
from replaykit.checks.fidelity import RawSample
from replaykit.checks.funnel import Funnel
from replaykit.checks.sieve import Verdict
from replaykit.engines import Engine
from replaykit.errors import EngineError, Stopped
from replaykit.records import Record
from replaykit.runs import Ledger, Watch, unwatched
from replaykit.settings import ROWS, Generate
from replaykit.sources.rows import Rows, Settled

YIELD_ROWS = 500  # over which the yield is measured that may not fall below settings.min_yield
SCORED_AT_ONCE = 256
NOTE_SECONDS = 0.5


def generate(
    engine: Engine,
    chat: Chat,
    *,
    settings: Generate,
    seed: int,
    folder: Path,
    prompts: Sequence[Record] | None = None,
    held_out: Sequence[str] = (),
    deployed: Mapping[str, Any] | None = None,
    facts: Mapping[str, Any] | None = None,
    funnel: Funnel | None = None,
    sample: RawSample | None = None,
    watch: Watch = unwatched,
    stopping: Callable[[], bool] = lambda: False,
) -> Iterator[Record]:
    """The first ``settings.n`` kept records, in the order of their rows; an answer to each of the
    prompts, if there are any.

    Finished questions and answers stand in ledgers in ``folder``, so the same call continues where
    it was interrupted, and one with a larger n goes on from there. ``held_out`` are test prompts
    that no question may repeat, ``deployed`` is the sampling that the model's generation_config
    names, ``facts`` go into every record's meta. ``funnel`` and ``sample`` see every record up to
    the last one kept. When ``stopping`` turns true, nothing more is asked, and Stopped is raised
    once what was asked is written. Raises EngineError when the yield falls under
    ``settings.min_yield``.
    """
    n = settings.n or (len(prompts) if prompts is not None else ROWS)
    with ExitStack() as stack:
        rows = Rows(
            engine,
            chat,
            settings,
            seed=seed,
            prompts=prompts,
            held_out=held_out,
            deployed=deployed or {},
            questions=stack.enter_context(Ledger(folder / "questions.jsonl")),
            answers=stack.enter_context(Ledger(folder / "answers.jsonl")),
        )
        run = _Run(rows, n, funnel or Funnel(), sample or RawSample(), facts or {}, watch)
        while run.kept < n and not rows.finished:
            before = rows.emitted
            with closing(run.stream(stopping)) as settled:
                yield from settled
            if stopping() and run.kept < n and not rows.finished:
                raise Stopped(
                    f"stopped with {run.kept} of {n} rows; the same command goes on from there"
                )
            assert rows.emitted > before, "a stream of requests ended and left no row settled"
        watch("rows", run.kept, run.kept, run.note())


class _Run:
    """Counts what is kept, and drops what the model finds too likely or too unlikely."""

    def __init__(
        self,
        rows: Rows,
        n: int,
        funnel: Funnel,
        sample: RawSample,
        facts: Mapping[str, Any],
        watch: Watch,
    ) -> None:
        self.rows = rows
        self.n = n
        self.funnel = funnel
        self.sample = sample
        self.facts = facts
        self._watch = watch
        self.kept = 0
        self._recent: deque[bool] = deque(maxlen=YIELD_ROWS)
        self._tokens = 0
        self._started = time.monotonic()
        self._noted = 0.0
        self._before: int | None = None  # kept rows that were finished before this run

    def stream(self, stopping: Callable[[], bool]) -> Generator[Record]:
        """The kept records of one stream of requests, until there are n of them or nothing more can
        be asked.
        """
        waiting: list[Settled] = []
        with closing(
            self.rows.engine.complete(self.rows.requests(lambda: self.n - self.kept, stopping))
        ) as completions:  # type: ignore[type-var]
            for completion in completions:
                self._tokens += self.rows.take(completion)
                waiting += self.rows.ready()
                if len(waiting) >= (SCORED_AT_ONCE if self._scores else 1):
                    yield from self._judge(waiting)
                    waiting = []
                self._tell()
                if self.kept == self.n:
                    return
        yield from self._judge([*waiting, *self.rows.ready()])

    def _judge(self, settled: list[Settled]) -> Iterator[Record]:
        for one, verdict in zip(settled, self._verdicts(settled), strict=True):
            if self.kept == self.n:
                return
            record = replace(one.record, meta={**one.record.meta, **self.facts})
            keep = self.funnel.passes(record, verdict.reason if verdict else None)
            self.rows.emit(one, keep)
            self.sample.add(
                one.row,
                record.prompt or record.messages[-1]["content"],
                len(record.answer) or None,
                keep,
            )
            self._recent.append(keep)
            if keep:
                self.kept += 1
                yield record
            elif (
                len(self._recent) == YIELD_ROWS
                and sum(self._recent) < self.rows.settings.min_yield * YIELD_ROWS
            ):
                raise EngineError(
                    f"only {sum(self._recent)} of the last {YIELD_ROWS} rows could be kept "
                    f"({self.funnel}), so this would "
                    f"go on for long; the finished rows are safe. `replaykit probe` shows what the "
                    f"model writes, -n "
                    f"{max(self.kept, 1)} takes what there is, and generate.min_yield sets the "
                    f"floor"
                )

    # --- perplexity -------------------------------------------------------------------------------

    @property
    def _scores(self) -> bool:
        checks = self.rows.settings.checks
        return checks.perplexity is not None or checks.question_perplexity is not None

    def _verdicts(self, settled: list[Settled]) -> list[Verdict | None]:
        """What is known of the rows, and for those that would stay, whether the model finds them
        likely enough.
        """
        verdicts = [one.verdict for one in settled]
        if not self._scores:
            return verdicts
        good = [k for k, verdict in enumerate(verdicts) if verdict is None]
        examples = [self.rows.chat.example(settled[k].record) for k in good]
        for k, example, scores in zip(
            good,
            examples,
            self.rows.engine.score(example.tokens for example in examples),
            strict=True,
        ):
            answer = [score for score, loss in zip(scores, example.loss[1:], strict=True) if loss]
            question = self._question_span(settled[k].record, scores)
            verdicts[k] = _outside(
                "answer", answer, self.rows.settings.checks.perplexity
            ) or _outside("question", question, self.rows.settings.checks.question_perplexity)
        return verdicts

    def _question_span(self, record: Record, scores: list[float]) -> list[float]:
        """The scores of the last question's tokens; none in a plain text."""
        if record.messages[0]["role"] == "text":
            return []
        chat = self.rows.chat
        before = record.messages[:-1]
        end = len(chat.prompt(before)) - len(chat.encode(chat.template.answer_header))
        return scores[len(chat.asking(before[:-1])) - 1 : end - 1]

    # --- what the display shows -------------------------------------------------------------------

    def note(self) -> str:
        """Speed, yield and the main reasons, on one line."""
        seconds = max(time.monotonic() - self._started, 1e-3)
        reasons = "".join(
            f", {reason} {count:,}" for reason, count in self.funnel.counts.most_common(3)
        )
        made = (
            f"yield {100 * self.kept / self.funnel.made:.0f} %"
            if self.funnel.made
            else "no row settled yet"
        )
        fresh = self.kept - (self._before or 0)
        return (
            f"{fresh / seconds:,.1f} rows/s, {self._tokens / seconds:,.0f} tokens/s, "
            f"{made}{reasons}"
        )

    def _tell(self) -> None:
        if self._before is None:
            self._before = self.kept  # what the ledgers held came with the first completion
        if time.monotonic() - self._noted >= NOTE_SECONDS:
            self._noted = time.monotonic()
            self._watch("rows", self.kept, self.n, self.note())


def _outside(what: str, scores: Sequence[float], bounds: Sequence[float] | None) -> Verdict | None:
    """A verdict where the perplexity of the scores (natural logarithms) is not within the
    bounds.
    """
    if bounds is None or not scores:
        return None
    perplexity = math.exp(-sum(scores) / len(scores))
    return (
        None
        if bounds[0] <= perplexity <= bounds[1]
        else Verdict(f"{what}_perplexity", {"perplexity": perplexity})
    )
