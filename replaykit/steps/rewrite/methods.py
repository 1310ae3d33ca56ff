"""The methods of rewriting: each takes rows, and says of every one what came of it.

min_change({0: record}, work)    ->  {0: Accepted("It is 42.", "edit", {"edit": 0.11, ...})}
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

from rapidfuzz.distance import Levenshtein

from replaykit.data.record import Record
from replaykit.recipe.rewrite import Rewrite
from replaykit.steps.rewrite.asking import UNASKED, Model, Reply, Session
from replaykit.steps.rewrite.deciding import (
    TOLD,
    Accepted,
    Outcome,
    Refused,
    answered,
    before_answer,
    edit_prompt,
    framed,
    guided,
    judged,
    refusal,
)
from replaykit.steps.rewrite.verifying import Verifier

Rows = Mapping[int, Record]
Outcomes = dict[int, Outcome]
Perplexities = Callable[[list[Record]], list[float]]
"""The perplexity under the base of each row's last answer; infinite where it has none."""
far_apart = Levenshtein.normalized_distance


@dataclass(frozen=True)
class Work:
    """With what rows are rewritten."""

    settings: Rewrite
    session: Session
    base: Model
    editor: Model
    right: Verifier
    perplexities: Perplexities


def self_output(rows: Rows, work: Work) -> Outcomes:
    """Of several answers of the model's own the right one that is most probable under it (Ren et
    al., arXiv 2402.11192, 4.1; Wu et al., arXiv 2501.14315).
    """
    settings = work.settings
    prompts = {
        (row, draw): before_answer(record)
        for row, record in rows.items()
        for draw in range(settings.samples)
    }
    replies = work.session.replies(
        "sample", prompts, work.base, temperature=settings.temperature, top_p=settings.top_p
    )
    own = {address: judged(reply, rows[address[0]]) for address, reply in replies.items()}
    # Of samples that are the same one is looked at.
    texts = {
        row: dict.fromkeys(
            own[row, draw].text for draw in range(settings.samples) if own[row, draw].fault is None
        )
        for row in rows
    }
    candidates = [(row, text) for row, found in texts.items() for text in found]
    verdicts = work.right([(text, rows[row]) for row, text in candidates])
    good = [one for one, is_right in zip(candidates, verdicts, strict=True) if is_right]
    values = work.perplexities([answered(rows[row], text) for row, text in good])
    best: dict[int, tuple[float, str]] = {}
    for (row, text), value in zip(good, values, strict=True):
        if row not in best or value < best[row][0]:
            best[row] = (value, text)
    outcomes: Outcomes = {}
    for row, record in rows.items():
        if row in best:
            text = best[row][1]
            edit = far_apart(record.answer, text)
            outcomes[row] = Accepted(text, "self-output", {"edit": edit})
        elif texts[row]:
            outcomes[row] = Refused("unverified")
        else:
            outcomes[row] = Refused(own[row, 0].fault or "empty")
    return outcomes


def min_change(rows: Rows, work: Work) -> Outcomes:
    """The model's own answer, repaired where it is wrong (Ren et al., arXiv 2402.11192)."""
    questions = {(row, 0): before_answer(record) for row, record in rows.items()}
    replies = work.session.replies("prediction", questions, work.base)
    predictions = {row: judged(replies[row, 0], record) for row, record in rows.items()}
    whole = [row for row in rows if predictions[row].fault is None]
    verdicts = work.right([(predictions[row].text, rows[row]) for row in whole])
    right = {row for row, is_right in zip(whole, verdicts, strict=True) if is_right}
    outcomes: Outcomes = {}
    open_rows: list[int] = []
    for row, record in rows.items():
        prediction = predictions[row]
        far = far_apart(prediction.text, record.answer)
        distances = {"edit": far, "reference_edit": far}
        if row in right:
            outcomes[row] = Accepted(prediction.text, "prediction", distances | {"edit": 0.0})
        elif prediction.fault in ("truncated", "refusal", "repetitive", None):
            open_rows.append(row)
        elif prediction.fault == "empty":
            outcomes[row] = Refused("empty", distances)  # there is nothing to edit
        else:
            outcomes[row] = Refused(prediction.fault)
    for attempt in range(1 + work.settings.retries):
        if attempt:
            # Asked again where the editor can be told what was wrong.
            open_rows = [
                row
                for row in open_rows
                if isinstance(found := outcomes[row], Refused) and found.why in TOLD
            ]
        tried = {row: rows[row] for row in open_rows}
        outcomes |= _edited(tried, predictions, work, attempt, outcomes)
    return outcomes


def _edited(
    rows: Rows, predictions: Mapping[int, Reply], work: Work, attempt: int, before: Outcomes
) -> Outcomes:
    """One try of an edit for each row; ``before`` has why the last one was refused."""
    settings = work.settings
    prompts = {}
    for row, record in rows.items():
        last = before.get(row)
        why = last.why if isinstance(last, Refused) else None
        prompts[row, attempt] = edit_prompt(record, predictions[row].text, why)
    replies = work.session.replies(
        "edit", prompts, work.editor, temperature=settings.temperature if attempt else 0.0
    )
    outcomes: Outcomes = {}
    accepted: dict[int, Accepted] = {}
    edits = {
        row: framed(replies[row, attempt], record, own=predictions[row].text)
        for row, record in rows.items()
    }
    faults = {
        row: refusal(edits[row], record, may_say=predictions[row].text)
        for row, record in rows.items()
    }
    whole = [row for row in rows if faults[row] is None]
    verdicts = work.right([(edits[row].text, rows[row]) for row in whole])
    wrong = {row for row, is_right in zip(whole, verdicts, strict=True) if not is_right}
    for row, record in rows.items():
        text = edits[row].text
        far = far_apart(predictions[row].text, record.answer)
        near = far_apart(predictions[row].text, text)
        why = faults[row]
        if row in wrong:
            why = "unverified"
        elif why is None and near > settings.max_edit * far:
            why = "over_edited"
        if why is None:
            accepted[row] = Accepted(text, "edit", {"edit": near, "reference_edit": far})
            continue
        measured = {"edit": far, "reference_edit": far}
        if text:
            measured["refused_edit"] = near
        outcomes[row] = Refused(why, measured)
    return outcomes | _probable(rows, accepted, work)


def _probable(rows: Rows, accepted: Mapping[int, Accepted], work: Work) -> Outcomes:
    """The edits, of which those are refused that the base finds no more probable than the
    reference: such an edit has the reference's words.
    """
    places = list(accepted)
    edited = [answered(rows[row], accepted[row].text) for row in places]
    values = work.perplexities([*edited, *(rows[row] for row in places)])
    outcomes: Outcomes = {}
    for place, row in enumerate(places):
        found = accepted[row]
        if values[place] < values[len(places) + place]:
            outcomes[row] = found
            continue
        far = found.measured["reference_edit"]
        measured = {"edit": far, "reference_edit": far, "refused_edit": found.measured["edit"]}
        outcomes[row] = Refused("improbable", measured)
    return outcomes


def paraphrase(rows: Rows, work: Work) -> Outcomes:
    """The model's own answer with the reference as a guide (SDFT, Yang et al., arXiv
    2402.13669).
    """
    prompts = {(row, 0): guided(record) for row, record in rows.items()}
    found = work.session.replies("paraphrase", prompts, work.base)
    replies = {row: framed(found[row, 0], record) for row, record in rows.items()}
    faults = {row: refusal(replies[row], record) for row, record in rows.items()}
    whole = [row for row in rows if faults[row] is None]
    verdicts = work.right([(replies[row].text, rows[row]) for row in whole])
    right = {row for row, is_right in zip(whole, verdicts, strict=True) if is_right}
    outcomes: Outcomes = {}
    for row, record in rows.items():
        distance = far_apart(record.answer, replies[row].text)
        if row in right:
            outcomes[row] = Accepted(replies[row].text, "paraphrase", {"edit": distance})
            continue
        measured = {} if found[row, 0].fault in UNASKED else {"edit": 0.0}
        if replies[row].text:
            measured["refused_edit"] = distance
        outcomes[row] = Refused(faults[row] or "unverified", measured)
    return outcomes


METHODS: Mapping[str, Callable[[Rows, Work], Outcomes]] = {
    "self-output": self_output,
    "min-change": min_change,
    "paraphrase": paraphrase,
}
"""In the order of the cascade."""
