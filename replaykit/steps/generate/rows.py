"""The rows of one generation on their way through one stream of requests.

    row 3   answering   its answer is in the engine
    row 4   settled     its record is known; it waits for row 3
    row 5   settled     its question repeats that of row 1, so it gets no answer; it waits, too
    row 6   drawn       its question is in the engine
    row 7   drawn       its question is there; it waits for row 6

A row is drawn (its question is requested), decided (its question is checked), answered, settled
(its records are known) and released. Questions are decided in the order of the rows, because one
may repeat another, and rows are released in that order. How far requests run ahead depends on how
fast completions come; what comes out does not.

Memory holds only the rows from the first that is not released to the last that is drawn, at most
WINDOW of them. Their texts are in the ledgers.
"""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass

from replaykit.engines import Completion, Request
from replaykit.steps.generate.conversations import Conversations, Settled

WINDOW = 8192
# Rows are drawn until this many more records are likely than are wanted: a few rows too many cost
# less than waiting for a few that turn out to be missing.
SPARE_ROWS = 8
SPARE = 1.02


@dataclass
class _Rates:
    """Counts of what became of rows so far, to tell how many records the rows on their way leave.

    They begin as a guess. Of answered rows the guess is that all are kept, since an answer too many
    costs the most.
    """

    kept: int
    answered: int = 50
    worthy: int = 7
    decided: int = 8

    @property
    def kept_per_row(self) -> float:
        """Records that a row whose question is worth an answer leaves."""
        return self.kept / self.answered

    @property
    def worthy_share(self) -> float:
        """Questions that are worth an answer, of all that are decided."""
        return self.worthy / self.decided


class Rows:
    """All rows of one generation: what to request next, and which are settled."""

    def __init__(self, conversations: Conversations) -> None:
        self.conversations = conversations
        self._prompts = conversations.job.prompts
        # Rows are numbered from 0. All rows under these numbers are drawn, decided, released.
        self._drawn = 0
        self._decided = 0
        self.released = 0
        # Rows with a question that is worth an answer, which was not requested yet.
        self._worthy: deque[int] = deque()
        # Rows whose answer was requested, until they are released.
        self._answering: set[int] = set()
        self._settled: dict[int, list[Settled]] = {}
        self._queue: deque[Request] = deque()
        # How many requests of each row are in the queue or in the engine.
        self._unanswered: Counter[int] = Counter()
        self._rates = _Rates(kept=50 * conversations.settings.answers)

    def requests(
        self, wanted: Callable[[], int], stopping: Callable[[], int]
    ) -> Iterator[Request | None]:
        """The requests that can be sent now; None while all that could follow depends on what is in
        the engine.

        What was begun goes first, then answers, then new questions. ``wanted`` is how many more
        records are to be kept. Ends when nothing is in the engine and nothing is left to request.
        """
        while not stopping():
            if self._queue:
                yield self._queue.popleft()
            elif self._worthy and len(self._answering) * self._rates.kept_per_row < wanted():
                row = self._worthy.popleft()
                self._answering.add(row)
                self._continue(row)
            elif self._may_draw(wanted()):
                self._put_in_queue(self._drawn, self.conversations.begin(self._drawn))
                self._drawn += 1
                self._decide()
            elif self._unanswered:
                yield None
            else:
                return

    def take(self, completion: Completion) -> None:
        """Writes what the model said to its ledger, and lets its row go on."""
        row = self.conversations.take(completion)
        self._unanswered[row] -= 1
        last = self._unanswered[row] == 0
        if last:
            del self._unanswered[row]
        if row not in self._answering:
            self._decide()
        elif last:  # of several answers
            self._continue(row)

    def ready(self) -> Iterator[Settled]:
        """The records of the settled rows that no earlier row keeps waiting, in order."""
        while self.released in self._settled:
            records = self._settled.pop(self.released)
            self.released += 1
            yield from records

    def note(self, settled: Settled, kept: bool) -> None:
        """Learns what became of a record that ``ready`` gave."""
        if settled.row in self._answering:
            self._answering.discard(settled.row)
            self._rates.answered += 1
        self._rates.kept += kept

    @property
    def finished(self) -> bool:
        """Whether every prompt was dealt with; rows that the model begins never end."""
        return self._prompts is not None and self.released == len(self._prompts)

    def _may_draw(self, wanted: int) -> bool:
        """Whether the rows on their way are likely to be too few, and there is another to draw."""
        if self._prompts is not None and self._drawn == len(self._prompts):
            return False
        if self._drawn >= self.released + WINDOW:
            return False
        undecided = self._rates.worthy_share * (self._drawn - self._decided)
        rows = len(self._answering) + len(self._worthy) + undecided
        return self._rates.kept_per_row * rows < SPARE * wanted + SPARE_ROWS

    def _decide(self) -> None:
        """Decides rows in order, up to the first whose question is not there."""
        while self._decided < self._drawn and self.conversations.has_question(self._decided):
            row = self._decided
            records = self.conversations.decide(row)
            if records:
                self._settled[row] = records
            else:
                self._worthy.append(row)
            if self._prompts is None:
                self._rates.decided += 1
                # A base model's text is settled, too, where nothing is wrong with it.
                self._rates.worthy += all(settled.verdict is None for settled in records)
            self._decided += 1

    def _continue(self, row: int) -> None:
        """Queues what the model has to write next in the row, or settles it."""
        following = self.conversations.next(row)
        self._put_in_queue(row, following.requests)
        if following.records:
            self._settled[row] = following.records

    def _put_in_queue(self, row: int, requests: list[Request]) -> None:
        if requests:
            self._queue.extend(requests)
            self._unanswered[row] += len(requests)
