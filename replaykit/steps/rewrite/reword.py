r"""The target in the model's own words. A model that learns what it would nearly have said forgets
less of the rest.

    reword(target, ...).records  ->  one record for every target row, in order, such as

    {"messages": [..., {"role": "assistant", "content": "7 + 8 = 15\n#### 15"}],
     "source": "rewrite",
     "meta": {"parent": "3f0c…", "path": "edit", "edit": 0.11, "reference_edit": 0.63,
              "reference": "Eight and seven are fifteen.\n#### 15"}}

self-output (Wu et al., arXiv 2501.14315): the model answers several times; of its right answers
the one stays that is most probable under it.

min-change (Ren et al., arXiv 2402.11192): the model answers by itself, which is called its
prediction. A right prediction stays; a wrong one is repaired by an editor. The paper keeps whatever
its editor writes, and in its released data half the edits change more than a quarter (GSM8K) or two
thirds (MBPP) of the text. Here the final answer of an edit must be right, the edit may be at most
``max_edit`` times as far from the prediction as the reference is, and the model must find it more
probable than the reference. What is refused is tried again, the editor being told why.

paraphrase (SDFT, Yang et al., arXiv 2402.13669): the model writes its own answer with the reference
as a guide.

cascade: one after the other, each for the rows of which the one before accepted nothing. Where
none does, the reference stays and is marked ``masked``: training masks its most surprising tokens
(selective token masking, arXiv 2501.14315).

auto: each method on some rows; the one stays under which the target is most probable, rows of
which it accepts nothing counting as their references (SPPL, arXiv 2502.11779, chooses likewise).

Where nothing acceptable comes out, the reference stays, and ``why`` gives the reason. Distances are
normalised edit distances of characters, from 0 to 1.
"""

from __future__ import annotations

import math
import random
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

from replaykit.data.ledger import Ledger
from replaykit.data.record import MASKED, Record
from replaykit.engines import Engine
from replaykit.errors import ChatError
from replaykit.hashing import derive_seed
from replaykit.model.chat import Chat
from replaykit.recipe.remedies import StmSettings
from replaykit.recipe.rewrite import Rewrite
from replaykit.runs import Watch, unwatched
from replaykit.steps.rewrite.asking import Loaded, Model, Session
from replaykit.steps.rewrite.deciding import Accepted, Refused, rewritten, unusable
from replaykit.steps.rewrite.methods import METHODS, Outcomes, Rows, Work
from replaykit.steps.rewrite.result import Trial
from replaykit.steps.rewrite.verifying import Verifier, scorer_of
from replaykit.steps.score.result import Perplexity

if TYPE_CHECKING:
    import numpy as np

    from replaykit.steps.score.logprobs import Scores

REFERENCE = "reference"


@dataclass(frozen=True)
class Reworded:
    """The rewritten target."""

    records: list[Record]
    perplexity: dict[str, Perplexity]
    """Of all references, and of the new answers by path, the least probable first."""
    method: str
    """By which the rows were rewritten."""
    trials: list[Trial] = field(default_factory=list)
    """Of auto: what each method made of the same rows."""


@dataclass(frozen=True)
class Base:
    """The model whose words the target is put into."""

    engine: Engine
    chat: Chat
    scores: Scores
    """Where the probabilities of answers are kept."""
    watch: Watch = unwatched

    def logprobs(self, records: Sequence[Record]) -> dict[str, np.ndarray]:
        """By record id, of each answer token; rows that the template refuses are left out."""
        from replaykit.steps.score.logprobs import score_examples

        examples = {}
        for record in records:
            try:
                example = self.chat.example(record)
            except ChatError:
                continue
            if example.loss_tokens and len(example.scored) < self.engine.limit:
                examples[record.id] = example
        return score_examples(examples, self.engine, self.scores, watch=self.watch)

    def perplexities(self, records: Sequence[Record]) -> list[float]:
        """Of each row's answer tokens; infinite where it cannot be told."""
        found = self.logprobs(records)
        return [
            perplexity(found[record.id]) if record.id in found else math.inf for record in records
        ]


def perplexity(logprobs: np.ndarray) -> float:
    """exp of the mean negative logarithm; infinite for no tokens."""
    import numpy as np

    known = logprobs[~np.isnan(logprobs)].astype(float)
    return float(np.exp(-known.mean())) if len(known) else math.inf


def reword(
    target: Sequence[Record],
    *,
    base: Base,
    editor: Model | None = None,
    right: Verifier | None = None,
    settings: Rewrite,
    seed: int,
    ledger: Ledger,
) -> Reworded:
    """Exactly one record for each target row, in target order; its last answer is rewritten, or the
    reference.

    A reply counts without the thought before it, and one that was made with the reference in view
    also without a code fence around it and a first sentence that only offers help. ``editor`` is
    the base itself by default, ``right`` the scorer of ``settings.verify``.

    All rows get their first reply before the first edit is requested. Each reply is in the ledger
    at once, and one that is there is not requested again. Only the last assistant turn changes;
    messages stay equal where the reference stays. ``meta`` is the target's, and: ``parent``, the
    target's id; ``path``, which is self-output, prediction, edit, paraphrase or reference;
    ``reference``, the answer that was replaced; ``why``, with the path reference, one of those of
    ``deciding.Refused``.

    ``tried`` has the reason of each method of a cascade that came before. min-change records
    ``edit``, the distance from the prediction to the answer that the record has, and
    ``reference_edit``, that from the prediction to the reference; the others record ``edit``, that
    from the reference to the answer. ``refused_edit`` is what ``edit`` would have been with a reply
    that was refused. A row that got no reply has no distances. ``perplexity`` and
    ``reference_perplexity`` are those of the answer that the record has and of the reference.
    """
    session = Session(settings, seed, ledger, base.watch)
    loaded = Loaded(base.engine, base.chat)
    verifier = right or scorer_of(settings.verify)
    work = Work(settings, session, loaded, editor or loaded, verifier, base.perplexities)
    why = {row: unusable(record, settings.verify) for row, record in enumerate(target)}
    usable = {row: record for row, record in enumerate(target) if why[row] is None}
    method: str = settings.method
    trials: list[Trial] = []
    if method == "auto":
        trials = _trials(usable, work, seed)
        method = min(trials, key=lambda trial: trial.perplexity).method if trials else "cascade"
    tried: dict[int, dict[str, str]] = {}
    if method == "cascade":
        outcomes = _cascade(usable, work, tried)
    else:
        outcomes = METHODS[method](usable, work)
    more: dict[int, dict[str, object]] = {row: {} for row in why}
    for row, reasons in tried.items():
        if reasons:
            more[row]["tried"] = reasons
    if method == "cascade":
        for row, outcome in outcomes.items():
            if isinstance(outcome, Refused):
                more[row][MASKED] = True
    every = {row: outcomes.get(row) or Refused(str(why[row])) for row in why}
    records = [rewritten(record, every[row], more[row]) for row, record in enumerate(target)]
    return _with_perplexities(target, records, base, method, trials)


def _cascade(rows: Rows, work: Work, tried: dict[int, dict[str, str]]) -> Outcomes:
    """Each method for the rows of which the ones before accepted nothing; ``tried`` gets why."""
    left = dict(rows)
    outcomes: Outcomes = {}
    last = list(METHODS)[-1]
    for name, method in METHODS.items():
        found = method(left, work)
        outcomes |= found
        left = {row: rows[row] for row, one in found.items() if isinstance(one, Refused)}
        for row, one in found.items():
            if isinstance(one, Refused) and name != last:
                tried.setdefault(row, {})[name] = one.why
    return outcomes


def _trials(rows: Rows, work: Work, seed: int) -> list[Trial]:
    """What each method makes of the same rows, drawn by the seed."""
    drawn = random.Random(derive_seed(seed, "rewrite", "pilot"))
    chosen = sorted(drawn.sample(list(rows), min(work.settings.pilot, len(rows))))
    pilot = {row: rows[row] for row in chosen}
    if not pilot:
        return []
    trials = []
    for name, method in METHODS.items():
        outcomes = method(pilot, work)
        made = [rewritten(pilot[row], outcomes[row], {}) for row in pilot]
        values = [value for value in work.perplexities(made) if math.isfinite(value)]
        accepted = sum(isinstance(one, Accepted) for one in outcomes.values())
        mean = math.fsum(values) / len(values) if values else math.inf
        trials.append(Trial(method=name, rows=len(pilot), accepted=accepted, perplexity=mean))
    return trials


def _with_perplexities(
    target: Sequence[Record],
    records: Sequence[Record],
    base: Base,
    method: str,
    trials: list[Trial],
) -> Reworded:
    """The records with how probable the base finds them, and the table of it."""
    from replaykit.steps.score.logprobs import by_group

    logprobs = base.logprobs([*target, *records])
    found = []
    groups: list[tuple[str, str]] = []
    for before, record in zip(target, records, strict=True):
        told = {}
        for name, one in (("perplexity", record), ("reference_perplexity", before)):
            value = perplexity(logprobs[one.id]) if one.id in logprobs else math.inf
            if math.isfinite(value):
                told[name] = round(value, 4)
        if before.id in logprobs:
            groups.append((REFERENCE, before.id))
        if record.id in logprobs and record.meta["path"] != REFERENCE:
            groups.append((record.meta["path"], record.id))
        found.append(replace(record, meta={**record.meta, **told}))
    limit = StmSettings().max_perplexity
    assert limit is not None
    return Reworded(found, by_group(groups, logprobs, max_perplexity=limit), method, trials)


def counts(records: Iterable[Record]) -> dict[str, int]:
    """How many rows took each path, most first; those that kept the reference are counted under the
    reason.
    """
    found = Counter[str]()
    for record in records:
        path = record.meta["path"]
        if path == REFERENCE:
            path = record.meta["why"]
        found[path] += 1
    return dict(found.most_common())
