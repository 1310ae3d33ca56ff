"""Rows on their way through one stream of requests: drawn, decided, answered, settled, and given
out in order.

    row 4   question -> worth an answer -> answer -> settled      waits for row 3
    row 3   question -> worth an answer -> (in the engine)
    row 5   question -> duplicate of row 1 -> settled             waits for row 3
    row 6   (in the engine)

Questions are decided in the order of their rows, since one may repeat another; rows are given out
in the same order. What is asked ahead depends on how fast things finish, what comes out does not.
Only rows between the first that is not settled and the last that is drawn are held, at most WINDOW;
what they say stands in the ledgers.
"""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from replaykit.chat import Chat
from replaykit.checks.sieve import Sieve, Verdict
from replaykit.engines import Completion, Engine, Request, Sampling
from replaykit.errors import ChatError, RecipeError
from replaykit.records import Message, Record
from replaykit.runs import Ledger, derive_seed
from replaykit.settings import Generate
from replaykit.sources.steer import phase_of, phases, system_of

Kind = Literal["magpie", "prompts", "text"]
WINDOW = 8192
SPARE = 8  # rows drawn beyond those that are likely to be needed, and 2 %


@dataclass(frozen=True)
class Settled:
    """A finished record with its row, and why it is dropped, if it is."""

    row: int
    record: Record
    verdict: Verdict | None


class Rows:
    """All rows of one generation. ``prompts`` are the user's own conversations to answer, instead
    of drawn questions.

    A place in a ledger is of a row and a turn, and among answers of the number of the answer too;
    the address of a request is twice the place, plus one for an answer, so that one stream holds
    both.
    """

    def __init__(
        self,
        engine: Engine,
        chat: Chat,
        settings: Generate,
        *,
        seed: int,
        questions: Ledger,
        answers: Ledger,
        prompts: Sequence[Record] | None,
        held_out: Sequence[str],
        deployed: Mapping[str, Any],
    ) -> None:
        self.engine = engine
        self.chat = chat
        self.settings = settings
        self.seed = seed
        self.questions = questions
        self.answers = answers
        self.prompts = prompts
        self.kind: Kind = "prompts" if prompts is not None else "text" if chat.plain else "magpie"
        self._sieve = Sieve(
            settings.checks, special=chat.looks_special, held_out=held_out, read=self._earlier
        )
        if settings.systems and self.kind == "magpie" and chat.template.system == "ignored":
            raise ChatError(
                f"{chat.name}: its chat template ignores system prompts, so generate.systems steer "
                f"nothing"
            )
        self._phases = phases(settings, deployed)
        if self.kind != "prompts" and any(phase["temperature"] == 0 for phase in self._phases):
            raise RecipeError(
                "the recipe",
                ["generate.temperature: the model is deployed greedily; give a number"],
            )
        self._answering = _answering(settings, deployed, chat.stop)
        self.drawn = self.decided = self.emitted = (
            0  # rows that are past this point, counted from 0
        )
        self._good: deque[int] = deque()  # rows worth an answer that were not asked for one yet
        self._asked: set[int] = set()  # rows that were, and are not emitted
        self._next: deque[Request] = deque()
        self._flying: dict[int, int] = {}  # addresses in the engine, with their rows
        self._settled: dict[int, list[Settled]] = {}
        # From a guess on: of questions some are not worth an answer; all answers are kept, since
        # one too many costs most.
        self._seen = Counter(decided=8, good=7, answered=50, kept=50 * settings.answers)

    # --- what is asked ----------------------------------------------------------------------------

    def requests(
        self, wanted: Callable[[], int], stopping: Callable[[], bool]
    ) -> Iterator[Request | None]:
        """What can be asked now: first what is under way, then answers, then new questions; None
        where all must wait.

        ``wanted`` is how many records more are to be kept. Ends when nothing is under way and
        nothing is to be asked.
        """
        while not stopping():
            if self._next:
                request = self._next.popleft()
                self._flying[request.row] = request.row // 2 // self._places(request.row % 2)
                yield request
            elif self._good and len(self._asked) * self._kept_by_row < wanted():
                row = self._good.popleft()
                self._asked.add(row)
                self._go_on(row)
            elif self._may_draw(wanted()):
                self._draw(self.drawn)
                self.drawn += 1
                self._decide()
            elif self._flying:
                yield None
            else:
                return

    def take(self, completion: Completion) -> int:
        """Writes what the model said to its ledger, and lets its row go on; returns how many tokens
        it was.
        """
        place, of_answer = divmod(completion.row, 2)
        line = {
            "row": place,
            "text": self.chat.decode(completion.tokens),
            "finish": completion.finish_reason,
            "tokens": len(completion.tokens),
        }
        if self.chat.special_in(completion.tokens):
            line["special"] = True  # among the tokens, where the text does not show it
        (self.answers if of_answer else self.questions).append(line)
        row = self._flying.pop(completion.row)
        if row not in self._asked:
            self._decide()
        elif row not in self._flying.values():  # of several answers, the last
            self._go_on(row)
        return len(completion.tokens)

    def ready(self) -> Iterator[Settled]:
        """The settled rows that no earlier row keeps waiting, in order."""
        while (row := self.emitted) in self._settled:
            self.emitted += 1
            yield from self._settled.pop(row)

    def emit(self, settled: Settled, kept: bool) -> None:
        """Notes what became of a row that ``ready`` gave out."""
        if settled.row in self._asked:
            self._asked.discard(settled.row)
            self._seen["answered"] += 1
        self._seen["kept"] += kept

    @property
    def finished(self) -> bool:
        """Whether every prompt was dealt with; drawn rows never end."""
        return self.prompts is not None and self.emitted == len(self.prompts)

    # --- how a row goes on ------------------------------------------------------------------------

    @property
    def _kept_by_row(self) -> float:
        """Records that a row worth an answer is likely to leave."""
        return self._seen["kept"] / self._seen["answered"]

    def _may_draw(self, wanted: int) -> bool:
        """Whether more rows are likely to be needed than are on their way, and there is room and a
        row to draw.
        """
        undecided = self._seen["good"] / self._seen["decided"] * (self.drawn - self.decided)
        expected = self._kept_by_row * (len(self._asked) + len(self._good) + undecided)
        there_are_more = self.prompts is None or self.drawn < len(self.prompts)
        return (
            there_are_more
            and self.drawn < self.emitted + WINDOW
            and expected < 1.02 * wanted + SPARE
        )

    def _draw(self, row: int) -> None:
        place = row * self.settings.turns
        if self.prompts is None and place not in self.questions:
            system = self._system(row)
            start = (
                self.chat.start
                if self.kind == "text"
                else self.chat.asking(system)
                if system
                else self.chat.pre_query
            )
            self._ask("question", place, start, self._asking(row))

    def _decide(self) -> None:
        """Decides which questions are worth an answer, as far as they are there."""
        while self.decided < self.drawn:
            row = self.decided
            if self.prompts is None:
                if row * self.settings.turns not in self.questions:
                    return
                text, verdict = self._question(row, 0)
                self._seen += Counter(decided=1, good=verdict is None)
                if self.kind == "text":
                    finish = self.questions[row]["finish"]
                    self._settle(
                        row, [(({"role": "text", "content": text},), {"finish": finish}, verdict)]
                    )
                elif verdict is not None:
                    self._settle(row, [((*self._kept_system(row), _user(text)), {}, verdict)])
                else:
                    self._good.append(row)
            else:
                self._good.append(row)
            self.decided += 1

    def _go_on(self, row: int) -> None:
        """Asks for the next thing that the model has to say in the row; settles the row where there
        is none.
        """
        turns = self.settings.turns
        answers = self.settings.answers
        messages = list(
            self.prompts[row].messages if self.prompts is not None else self._kept_system(row)
        )
        for turn in range(turns):
            place = row * turns + turn
            if self.prompts is None:
                if place not in self.questions:
                    history = [*self._system(row), *(m for m in messages if m["role"] != "system")]
                    self._ask(
                        "question",
                        place,
                        self.chat.asking(history),
                        self._asking(row),
                        settle=messages,
                    )
                    return
                text, verdict = (
                    self._question(row, turn) if turn else (self._earlier(row), None)
                )  # the first is decided
                messages.append(_user(text))
                if verdict is not None:
                    self._settle(row, [(messages, {}, verdict)])
                    return
            missing = [
                k for k in range(place * answers, (place + 1) * answers) if k not in self.answers
            ]
            if missing:
                prompt = self.chat.prompt(messages)
                for k in missing:
                    self._ask("answer", k, prompt, self._answering, settle=messages)
                return
            if turn + 1 < turns:
                text, verdict = self._answer(place)
                messages.append(_assistant(text))
                if verdict is not None:
                    self._settle(row, [(messages, {}, verdict)])
                    return
        self._settle(row, self._answered(messages, range(place * answers, (place + 1) * answers)))

    def _answered(self, messages: list[Message], places: range) -> list[Any]:
        """The last exchange with each of its answers; one that says the same as an earlier one is
        dropped.
        """
        made = []
        said = set()
        for number, place in enumerate(places):
            text, verdict = self._answer(place)
            if verdict is None and text in said:
                verdict = Verdict("same_answer")
            said.add(text)
            made.append(
                (
                    [*messages, _assistant(text)],
                    {"answer": number} if len(places) > 1 else {},
                    verdict,
                )
            )
        return made

    def _settle(
        self, row: int, made: Sequence[tuple[Sequence[Message], Mapping[str, Any], Verdict | None]]
    ) -> None:
        meta: dict[str, Any] = {"row": row}
        if self.prompts is not None:
            meta["parent"] = self.prompts[row].id
        else:
            meta |= {
                key: value
                for key, value in phase_of(self._phases, self.seed, row).items()
                if key != "weight"
            }
        if steered := system_of(self.settings, self.seed, row):
            meta["system"] = steered[0]
        self._settled[row] = [
            Settled(
                row,
                Record(
                    tuple(messages),
                    "generate",
                    {**meta, **more, **(verdict.evidence if verdict else {})},
                ),
                verdict,
            )
            for messages, more, verdict in made
        ]

    def _ask(
        self,
        what: str,
        place: int,
        tokens: tuple[int, ...],
        sampling: Sampling,
        *,
        settle: Sequence[Message] = (),
    ) -> None:
        """Queues a request; where the prompt leaves no room for what is asked, the row is settled
        as it stands.
        """
        of_answer = what == "answer"
        row, later = divmod(place, self._places(of_answer))
        if len(tokens) >= self.engine.limit and settle:
            self._settle(row, [(settle, {}, Verdict("too_long"))])
            return
        # The first question and its first answer are drawn alike, however many turns and answers
        # follow.
        seed = derive_seed(self.seed, what, row, *([later] if later else []))
        self._next.append(Request(2 * place + of_answer, tokens, sampling, seed))

    # --- what was said ----------------------------------------------------------------------------

    def _question(self, row: int, turn: int) -> tuple[str, Verdict | None]:
        place = row * self.settings.turns + turn
        text, verdict = self._said(
            self.questions[place], "question", may_be_cut=self.kind == "text"
        )
        if verdict is None:
            verdict = self._sieve.follow_up(text) if turn else self._sieve.question(row, text)
        return text, verdict

    def _answer(self, place: int) -> tuple[str, Verdict | None]:
        text, verdict = self._said(self.answers[place], "answer")
        return text, verdict or self._sieve.answer(text)

    def _said(
        self, line: Mapping[str, Any], what: str, *, may_be_cut: bool = False
    ) -> tuple[str, Verdict | None]:
        """A ledger's text, and why it cannot stay: it held a special token, or was cut at the token
        limit.
        """
        text = str(line["text"]).strip()
        if line.get("special") and self.settings.checks.leaks:
            return text, Verdict(f"{what}_leaked_header")
        return text, Verdict(f"{what}_truncated") if line[
            "finish"
        ] == "length" and not may_be_cut else None

    def _earlier(self, row: int) -> str:
        return str(self.questions[row * self.settings.turns]["text"]).strip()

    def _places(self, of_answer: bool | int) -> int:
        """How many places of a ledger belong to a row."""
        return self.settings.turns * (self.settings.answers if of_answer else 1)

    def _system(self, row: int) -> tuple[Message, ...]:
        """The system message that the row's questions are drawn under, if any."""
        steered = system_of(self.settings, self.seed, row)
        return ({"role": "system", "content": steered[1]},) if steered else ()

    def _kept_system(self, row: int) -> tuple[Message, ...]:
        """The system message that the row's record has, and its answers are given under, if any."""
        return self._system(row) if self.settings.keep_system else ()

    def _asking(self, row: int) -> Sampling:
        phase = {
            key: value
            for key, value in phase_of(self._phases, self.seed, row).items()
            if key != "weight"
        }
        most = (
            self.settings.max_answer_tokens
            if self.kind == "text"
            else self.settings.max_question_tokens
        )
        return Sampling(**phase, max_tokens=most, stop=self.chat.stop)  # type: ignore[arg-type]


def _answering(settings: Generate, deployed: Mapping[str, Any], stop: tuple[int, ...]) -> Sampling:
    if settings.answer_temperature == "model":
        return Sampling(**deployed, max_tokens=settings.max_answer_tokens, stop=stop)
    return Sampling(
        settings.answer_temperature, settings.answer_top_p, settings.max_answer_tokens, stop
    )


def _user(text: str) -> Message:
    return {"role": "user", "content": text}


def _assistant(text: str) -> Message:
    return {"role": "assistant", "content": text}
