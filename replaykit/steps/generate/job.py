"""What one generation is given: the job itself, and who follows it."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from replaykit.checks.fidelity import RawSample
from replaykit.checks.funnel import Funnel
from replaykit.data.record import Record
from replaykit.recipe.generate import ROWS, Generate
from replaykit.runs import Watch, unwatched
from replaykit.steps.generate.result import CallCounts, Kind, ThoughtCounts, VerifiedCounts
from replaykit.steps.generate.verified import OWN, PATH, REFERENCE_PATH, WHY

if TYPE_CHECKING:
    from replaykit.model.chat import Chat, Thought


@dataclass(frozen=True)
class Job:
    """All that decides which rows come out, beside the model itself."""

    settings: Generate
    seed: int
    prompts: Sequence[Record] | None = None
    """Conversations to answer; None where the model writes the questions too."""
    references: Sequence[Record] | None = None
    """With ``settings.verify`` the rows that the prompts are of, with their own answers."""
    held_out: Sequence[str] = ()
    """Test prompts that no question may repeat."""
    deployed: Mapping[str, float] | None = None
    """The sampling that the model's generation_config names, for the temperature "model"."""
    facts: Mapping[str, Any] = field(default_factory=dict)
    """What the meta of every record says beside its row."""

    @property
    def n(self) -> int:
        """How many records are to be kept."""
        return wanted(self.settings, self.prompts)


def wanted(settings: Generate, prompts: Sequence[Record] | None) -> int:
    """How many records are to be kept: by default ROWS, or one for each prompt."""
    if settings.n is not None:
        return settings.n
    return ROWS if prompts is None else len(prompts)


def kind_of(chat: Chat, prompts: object) -> Kind:
    """Which kind of rows are made; ``prompts`` is None where there are none."""
    if prompts is not None:
        return "prompts"
    return "text" if chat.plain else "magpie"


def never() -> bool:
    """Says that nothing is to be stopped."""
    return False


class Tally:
    """Counts what became of thoughts, of all answers asked for with one, of calls, in the kept rows
    that have tools, and whose answers were kept, where they were compared.
    """

    def __init__(self) -> None:
        self._thoughts: Counter[str] = Counter()
        self._calls: Counter[str] = Counter()
        self._own = 0
        self._references: Counter[str] = Counter()

    def add(self, record: Record, thought: Thought | None, *, kept: bool) -> None:
        """Takes a record; ``thought`` is None where none was asked for."""
        if thought is not None:
            self._thoughts[thought] += 1
        if kept and record.tools:
            called = "tool_calls" in record.messages[-1]
            self._calls["called" if called else "uncalled"] += 1
        if kept and record.meta.get(PATH) == OWN:
            self._own += 1
        elif kept and record.meta.get(PATH) == REFERENCE_PATH:
            self._references[record.meta[WHY]] += 1

    @property
    def thoughts(self) -> ThoughtCounts | None:
        """The counts of thoughts; None where none was asked for."""
        return ThoughtCounts(**self._thoughts) if self._thoughts else None

    @property
    def calls(self) -> CallCounts | None:
        """The counts of calls; None where no row has tools."""
        return CallCounts(**self._calls) if self._calls else None

    @property
    def verified(self) -> VerifiedCounts | None:
        """The counts of answers; None where none was compared."""
        if not self._own and not self._references:
            return None
        return VerifiedCounts(own=self._own, reference=dict(self._references.most_common()))


@dataclass(frozen=True)
class Monitor:
    """Who follows a generation. ``funnel``, ``sample`` and ``tally`` see every record up to the
    last one that is kept; ``watch`` is told how far it is; ``stopping`` says when to send no more
    requests.
    """

    funnel: Funnel = field(default_factory=Funnel)
    sample: RawSample = field(default_factory=RawSample)
    tally: Tally = field(default_factory=Tally)
    watch: Watch = unwatched
    stopping: Callable[[], int] = never
