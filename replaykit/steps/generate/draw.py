"""The model's own memory (Magpie): it writes questions from the bare pre-query, and answers them.

    the pre-query   <|begin_of_text|><|start_header_id|>user<|end_header_id|>\\n\\n
    the model       Name the capital of Poland.
    answer header   <|eot_id|><|start_header_id|>assistant<|end_header_id|>\\n\\n
    the model       Warsaw

After Xu et al., arXiv 2406.08464, sections 2.1 and 2.2, and magpie-align/magpie b734a36
exp/gen_ins.py, gen_res.py and gen_mt.py. Where we differ: the pre-query is derived and sent as
token ids; questions are checked before they are answered, since answers are 97 % of the cost; a
turn ends at token ids only, never at a line break or at the word "assistant"; and nothing is chosen
for its length, so that the sample stays the model's own. So an answer that was cut at the token
limit stays as it was cut, and no end of turn is trained after it: without such answers short ones
would be left over, and refusals are short. A question that was cut is dropped, since an answer
needs the whole of it.

Two other kinds of row are made in the same way: an answer to each of the user's prompts, and, from
a base model, texts that begin with BOS alone. What row i says is drawn from seed(run, stage, i).
Whether it stays depends on earlier rows and on nothing else. So the first n kept rows are the same
for any batch size, any number of workers and after any interruption, and a larger n keeps them.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Generator, Iterator
from contextlib import closing
from pathlib import Path

from replaykit.data.ledger import Ledger
from replaykit.data.record import Record
from replaykit.engines import Engine
from replaykit.errors import EngineError, Stopped
from replaykit.model.chat import Chat
from replaykit.steps.generate.conversations import Conversations, Settled
from replaykit.steps.generate.job import Job, Monitor
from replaykit.steps.generate.perplexity import PerplexityCheck
from replaykit.steps.generate.replies import Numbering, Replies
from replaykit.steps.generate.rows import Rows

YIELD_ROWS = 500  # over which the yield is measured that may not fall below settings.min_yield
SCORED_AT_ONCE = 256
NOTE_SECONDS = 0.5


def generate_rows(
    engine: Engine, chat: Chat, job: Job, *, folder: Path, monitor: Monitor | None = None
) -> Iterator[Record]:
    """The first ``job.n`` kept records, in the order of their rows; with prompts at most one for
    each answer to a prompt.

    Finished questions and answers are in ledgers in ``folder``, so the same call continues where it
    was interrupted, and one with a larger n goes on from there. When ``monitor.stopping`` turns
    true, no request is sent any more, and Stopped is raised once those in the engine are answered.
    Raises EngineError when the yield falls under ``min_yield``.
    """
    monitor = monitor or Monitor()
    settings = job.settings
    numbering = Numbering(settings.turns, settings.answers)
    with (
        Ledger(folder / "questions.jsonl") as questions,
        Ledger(folder / "answers.jsonl") as answers,
    ):
        replies = Replies(questions, answers, numbering)
        rows = Rows(Conversations(chat, job, replies, limit=engine.limit))
        check = PerplexityCheck(engine, chat, settings.checks)
        run = _Run(engine, rows, check, job, monitor)
        while run.kept < job.n and not rows.finished:
            before = rows.released
            with closing(run.stream()) as records:
                yield from records
            if monitor.stopping() and run.kept < job.n and not rows.finished:
                raise Stopped(
                    f"stopped with {run.kept} of {job.n} rows; the same command goes on from there"
                )
            assert rows.released > before, "a stream of requests ended and released no row"
        monitor.watch("rows", run.kept, run.kept, run.note())


class _Run:
    """One call of ``generate_rows``: sends requests, and counts what is kept of what comes back."""

    def __init__(
        self, engine: Engine, rows: Rows, check: PerplexityCheck, job: Job, monitor: Monitor
    ) -> None:
        self.engine = engine
        self.rows = rows
        self.check = check
        self.job = job
        self.monitor = monitor
        self.kept = 0
        self._recent: deque[bool] = deque(maxlen=YIELD_ROWS)
        self._tokens = 0
        self._started = time.monotonic()
        self._noted = 0.0
        # Rows that were kept before this run; None until they were counted.
        self._resumed: int | None = None

    def stream(self) -> Generator[Record]:
        """The kept records of one stream of requests, until there are n of them or no more can be
        requested.
        """
        waiting: list[Settled] = []
        # Scoring takes a batch at a time; without it, each record is given at once.
        enough = SCORED_AT_ONCE if self.check.on else 1
        requests = self.rows.requests(lambda: self.job.n - self.kept, self.monitor.stopping)
        with closing(self.engine.complete(requests)) as completions:  # type: ignore[type-var]
            for completion in completions:
                self._tokens += len(completion.tokens)
                self.rows.take(completion)
                waiting += self.rows.ready()
                if len(waiting) >= enough:
                    yield from self._kept_of(waiting)
                    waiting = []
                self._tell()
                if self.kept == self.job.n:
                    return
        yield from self._kept_of([*waiting, *self.rows.ready()])

    def _kept_of(self, settled: list[Settled]) -> Iterator[Record]:
        """The records that are kept, up to the n-th; each is counted."""
        for one, verdict in zip(settled, self.check.verdicts(settled), strict=True):
            if self.kept == self.job.n:
                return
            record = one.record
            reason = None if verdict is None else verdict.reason
            keep = self.monitor.funnel.passes(record, reason)
            self.rows.note(one, keep)
            self.monitor.tally.add(record, one.thought, kept=keep)
            answer = record.answer or None
            if record.was_cut and record.messages[-1]["role"] == "assistant":
                # An answer that was cut in its thought says nothing yet, and is one all the same.
                answer = record.answer
            self.monitor.sample.add(one.row, record.question, answer, keep, cut=record.was_cut)
            self._recent.append(keep)
            if keep:
                self.kept += 1
                yield record
            else:
                self._need_yield()

    def _need_yield(self) -> None:
        """Raises EngineError where too few of the recent rows were kept."""
        kept = sum(self._recent)
        floor = self.job.settings.min_yield * YIELD_ROWS
        if len(self._recent) < YIELD_ROWS or kept >= floor:
            return
        todo = "generate.checks sets what is dropped"
        if self.kept:
            todo = f"-n {self.kept} takes what there is"
        raise EngineError(
            f"only {kept} of the last {YIELD_ROWS} rows could be kept ({self.monitor.funnel}), "
            "so this would go on for long; the finished rows are safe. `replaykit probe` shows "
            f"what the model writes, {todo}, and generate.min_yield sets the floor"
        )

    # --- what the display shows -------------------------------------------------------------------

    def note(self) -> str:
        """Speed, yield and the main reasons, on one line."""
        seconds = max(time.monotonic() - self._started, 1e-3)
        funnel = self.monitor.funnel
        fresh = self.kept - (self._resumed or 0)
        parts = [f"{fresh / seconds:,.1f} rows/s", f"{self._tokens / seconds:,.0f} tokens/s"]
        if funnel.made:
            parts.append(f"yield {100 * self.kept / funnel.made:.0f} %")
        else:
            parts.append("no row settled yet")
        parts += [f"{reason} {count:,}" for reason, count in funnel.counts.most_common(3)]
        return ", ".join(parts)

    def _tell(self) -> None:
        if self._resumed is None:
            # What the ledgers held already came with the first completion.
            self._resumed = self.kept
        now = time.monotonic()
        if now - self._noted >= NOTE_SECONDS:
            self._noted = now
            self.monitor.watch("rows", self.kept, self.job.n, self.note())
