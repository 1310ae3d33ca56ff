r"""The target in the model's own words. A model that learns what it would nearly have said forgets
less of the rest.

    reword(target, ...)  ->  one record for every target row, in order, such as

    {"messages": [..., {"role": "assistant", "content": "7 + 8 = 15\n#### 15"}],
     "source": "rewrite",
     "meta": {"parent": "3f0c…", "path": "edit", "edit": 0.11, "reference_edit": 0.63}}

min-change (Ren et al., arXiv 2402.11192): the model answers by itself, which is called its
prediction. A right prediction stays; a wrong one is repaired by an editor. The paper keeps whatever
its editor writes, and in its released data half the edits change more than a quarter (GSM8K) or two
thirds (MBPP) of the text. Here the final answer of an edit must be right, and the edit may be at
most ``max_edit`` times as far from the prediction as the reference is.

paraphrase (SDFT, Yang et al., arXiv 2402.13669): the model writes its own answer with the reference
as a guide.

Where nothing acceptable comes out, the reference stays, and ``why`` gives the reason. Distances are
normalised edit distances of characters, from 0 to 1.
"""

from __future__ import annotations

from array import array
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

from rapidfuzz.distance import Levenshtein

from replaykit.checks.verify import How, final_answer, is_right
from replaykit.data.ledger import Ledger
from replaykit.data.record import Message, Record, dialogue
from replaykit.engines import Engine, Request, Sampling
from replaykit.errors import ChatError, RunError
from replaykit.hashing import derive_seed
from replaykit.model.chat import Chat
from replaykit.recipe.rewrite import Rewrite
from replaykit.runs import Watch, unwatched
from replaykit.steps.rewrite.gate import cleaned, form_fault, leaked

# What the meta of a record says under names of the step's own.
OWN_META = frozenset({"parent", "path", "why", "edit", "reference_edit", "refused_edit"})

# Our wording of the rules that 2402.11192 gives its editor.
EDIT = """\
Here are a question, its reference answer, and an earlier answer that needs correction. Correct \
the earlier answer.

- Keep its wording and its order. Change or remove only what is wrong.
- If its final answer is wrong, also repair the reasoning that leads there.
- Remove what does not belong to an answer, such as a repetition or another question.
- End with the final answer, written the way the reference answer writes it.
- Write the corrected answer and nothing else: no introduction, no remark about the changes.

Question:
{question}

Reference answer:
{reference}

Earlier answer:
{prediction}

Corrected answer:"""

# Our wording of the distillation prompt of 2402.13669.
PARAPHRASE = """\
{question}

---
To guide you, this is the reference answer to the question above:

{reference}

---
Answer the question yourself, in your own words and style. Keep to the facts and the result of \
the reference answer. End with the final answer, written the way the reference answer writes it. \
Write your answer and nothing else; do not mention the reference answer."""

STAGES = ("prediction", "edit", "paraphrase")
UNASKED = ("template_refuses", "too_long")  # why there is no reply to a prompt


class _Reply(NamedTuple):
    """What a model wrote."""

    text: str
    fault: str | None
    """Why it cannot stay as it is, whatever it says: one of UNASKED, truncated, empty; of a
    prediction also refusal, repetitive."""


@dataclass(frozen=True)
class _Session:
    """Sends one stage's prompts after the other's, and has all replies in one ledger."""

    settings: Rewrite
    seed: int
    ledger: Ledger
    watch: Watch

    def replies(
        self, stage: str, prompts: Mapping[int, Sequence[Message]], engine: Engine, chat: Chat
    ) -> dict[int, _Reply]:
        """What the model replies to each row's prompt, greedily. A reply that is in the ledger is
        not asked for again.
        """
        # The ledger has a row's replies of all stages, so a number, there and in a request, is that
        # of the row and the stage.
        number = {row: row * len(STAGES) + STAGES.index(stage) for row in prompts}
        missing = [row for row in prompts if number[row] not in self.ledger]
        # An array has 4 bytes a token; a tuple would have 8 and more.
        tokens: dict[int, array[int]] = {}
        unasked: dict[int, str] = {}
        limit = min(engine.limit, chat.tokenizer.model_max_length)
        for row in missing:
            try:
                tokens[row] = array("I", chat.prompt(prompts[row]))
            except ChatError:
                unasked[row] = "template_refuses"
                continue
            if len(tokens[row]) >= limit:
                unasked[row] = "too_long"
        sampling = Sampling(temperature=0.0, max_tokens=self.settings.max_tokens, stop=chat.stop)
        requests = (
            Request(
                number[row],
                tuple(tokens[row]),
                sampling,
                derive_seed(self.seed, "rewrite", stage, row),
            )
            for row in missing
            if row not in unasked
        )
        done = len(prompts) - len(missing) + len(unasked)
        self.watch(stage, done, len(prompts))
        for completion in engine.complete(requests):
            reply = chat.reply(completion.tokens)
            line = {
                "row": completion.row,
                "stage": stage,
                "text": reply.message["content"].strip(),
                "finish_reason": completion.finish_reason,
            }
            if chat.can_think:
                line["thought"] = reply.thought
            self.ledger.append(line)
            done += 1
            self.watch(stage, done, len(prompts))
        replies = {}
        for row in prompts:
            if row in unasked:
                replies[row] = _Reply("", unasked[row])
            else:
                replies[row] = _reply(self.ledger[number[row]], chat)
        return replies


def reword(
    target: Sequence[Record],
    *,
    engine: Engine,
    chat: Chat,
    editor: tuple[Engine, Chat] | None = None,
    settings: Rewrite,
    seed: int,
    ledger: Ledger,
    watch: Watch = unwatched,
) -> Iterator[Record]:
    """Exactly one record for each target row, in target order; its last answer is rewritten, or the
    reference.

    A reply counts without the thought before it, and one that was made with the reference in view
    also without a code fence around it and a first sentence that only offers help.

    All rows get their first reply before the first edit is requested. Each reply is in the ledger
    at once, and one that is there is not requested again. Only the last assistant turn changes;
    messages stay equal where the reference stays. ``meta`` is the target's, and: ``parent``, the
    target's id; ``path``, which is prediction, edit, paraphrase or reference; ``why`` with the path
    reference:

        no_question           there is no user's message before the last answer, or no answer
        tools, thought, no_loss
                              the row has tools, or its last answer a thought or the weight 0, which
                              a reply in words alone would take from it
        unreadable_reference  the verifier cannot read the reference, so nothing can be verified
        template_refuses      the chat template refuses the conversation
        too_long              the prompt leaves no room for a reply
        truncated, empty      the reply was cut at max_tokens, or says nothing
                              (a prediction that was cut can be edited)
        leaked_prompt         the reply speaks of the request
        refusal, repetitive   the reply declines or loops, and the reference does not
                              (such a prediction can be edited)
        unverified            its final answer is not the reference's
        over_edited           its distance to the prediction is more than max_edit times that of the
                              reference

    min-change records ``edit``, the distance from the prediction to the answer that the record has,
    and ``reference_edit``, that from the prediction to the reference. paraphrase records ``edit``,
    that from the reference to the answer. ``refused_edit`` is what ``edit`` would have been with a
    reply that was refused. A row that got no reply has no distances.
    """
    session = _Session(settings, seed, ledger, watch)
    why = {row: _unusable(record, settings.verify) for row, record in enumerate(target)}
    usable = {row: record for row, record in enumerate(target) if why[row] is None}
    if settings.method == "paraphrase":
        made = _paraphrase(usable, session, engine, chat)
    else:
        made = _min_change(usable, session, engine, chat, editor or (engine, chat))
    for row, record in enumerate(target):
        reason = why[row]
        if reason is None:
            yield made[row]
        else:
            yield _keep_reference(record, reason)


def counts(records: Iterable[Record]) -> dict[str, int]:
    """How many rows took each path, most first; those that kept the reference are counted under the
    reason.
    """
    found = Counter[str]()
    for record in records:
        path = record.meta["path"]
        if path == "reference":
            path = record.meta["why"]
        found[path] += 1
    return dict(found.most_common())


# --- the two methods ------------------------------------------------------------------------------


def _min_change(
    rows: Mapping[int, Record],
    session: _Session,
    engine: Engine,
    chat: Chat,
    editor: tuple[Engine, Chat],
) -> dict[int, Record]:
    settings = session.settings
    questions = {row: _before_answer(record) for row, record in rows.items()}
    predictions = session.replies("prediction", questions, engine, chat)
    for row, record in rows.items():
        predictions[row] = _judged(predictions[row], record)
    prompts = {
        row: _edit_prompt(record, predictions[row].text)
        for row, record in rows.items()
        if _needs_edit(record, predictions[row], settings.verify)
    }
    edits = session.replies("edit", prompts, *editor)
    return {
        row: _min_changed(record, predictions[row], edits.get(row), settings)
        for row, record in rows.items()
    }


def _paraphrase(
    rows: Mapping[int, Record], session: _Session, engine: Engine, chat: Chat
) -> dict[int, Record]:
    prompts = {row: _guided(record) for row, record in rows.items()}
    replies = session.replies("paraphrase", prompts, engine, chat)
    verify = session.settings.verify
    return {row: _paraphrased(record, replies[row], verify) for row, record in rows.items()}


# --- prompts and replies --------------------------------------------------------------------------


def _reply(line: Mapping[str, Any], chat: Chat) -> _Reply:
    """The reply on a line of the ledger, without the thought before it.

    Raises RunError for one that an earlier version of replaykit wrote, its thought in its text.
    """
    if chat.can_think and "thought" not in line:
        raise RunError(
            "replies.jsonl: it was written by an earlier version of replaykit, which did not keep "
            "thoughts apart from answers; remove it from the step's folder, and all replies are "
            "made again"
        )
    text = line["text"]
    if not text:
        return _Reply(text, "empty")
    if line["finish_reason"] == "length":
        return _Reply(text, "truncated")
    return _Reply(text, None)


def _before_answer(record: Record) -> tuple[Message, ...]:
    """The conversation up to its last answer."""
    return record.messages[: _answer_place(record)]


def _guided(record: Record) -> tuple[Message, ...]:
    """The same conversation, its last question followed by the reference as a guide."""
    *before, question = _before_answer(record)
    text = PARAPHRASE.format(question=question["content"], reference=record.answer)
    return (*before, *dialogue(text))


def _edit_prompt(record: Record, prediction: str) -> tuple[Message, ...]:
    """One message that has everything: any editor's template takes it, and no system prompt bends
    it.
    """
    turns = _before_answer(record)
    question = turns[0]["content"]
    if len(turns) > 1:
        question = "\n\n".join(f"{turn['role']}: {turn['content']}" for turn in turns)
    return dialogue(EDIT.format(question=question, reference=record.answer, prediction=prediction))


def _answer_place(record: Record) -> int:
    """The place of the last answer among the messages, 0 if there is none."""
    places = [k for k, message in enumerate(record.messages) if message["role"] == "assistant"]
    return max(places, default=0)


# --- deciding -------------------------------------------------------------------------------------


def _unusable(record: Record, verify: How) -> str | None:
    """Why nothing can be requested for the row; None where something can."""
    place = _answer_place(record)
    if place == 0 or record.messages[place - 1]["role"] != "user":
        return "no_question"
    beside_words = _beside_words(record, place)
    if beside_words is not None:
        return beside_words
    if final_answer(record.answer) == "":
        return "unreadable_reference"
    try:
        readable = is_right(record.answer, record.answer, how=verify)
    except ValueError:
        readable = False
    return None if readable else "unreadable_reference"


def _beside_words(record: Record, place: int) -> str | None:
    """What a reply in words alone would take from the row; None where it has no more than words."""
    answer = record.messages[place]
    if record.tools or "tool_calls" in answer:
        return "tools"
    if "reasoning_content" in answer:
        return "thought"
    return "no_loss" if "weight" in answer else None


def _needs_edit(record: Record, prediction: _Reply, verify: How) -> bool:
    """An answer that was cut, loops or declines needs one even if it is right; an empty one has
    nothing to edit.
    """
    if prediction.fault is not None:
        return prediction.fault in ("truncated", "refusal", "repetitive")
    return not is_right(prediction.text, record.answer, how=verify)


def _judged(prediction: _Reply, record: Record) -> _Reply:
    """The prediction with what its form says against it."""
    if prediction.fault is not None:
        return prediction
    return _Reply(prediction.text, form_fault(prediction.text, record.answer))


def _framed(reply: _Reply, record: Record, *, own: str = "") -> _Reply:
    """A reply that was made with the reference in view, without what frames it."""
    text = cleaned(reply.text, like=record.answer, own=own)
    return _Reply(text, reply.fault or (None if text else "empty"))


def _refusal(reply: _Reply, record: Record, verify: How, *, may_say: str = "") -> str | None:
    """Why a reply is not accepted that was made with the reference in view.

    What the conversation says, or ``may_say``, is no leak of the prompt.
    """
    if reply.fault is not None:
        return reply.fault
    conversation = " ".join([may_say, *(turn["content"] for turn in record.messages)])
    if leaked(reply.text, said=conversation):
        return "leaked_prompt"
    form = form_fault(reply.text, record.answer)
    if form is not None:
        return form
    if not is_right(reply.text, record.answer, how=verify):
        return "unverified"
    return None


def _min_changed(
    record: Record, prediction: _Reply, edit: _Reply | None, settings: Rewrite
) -> Record:
    """The prediction if it is right, else its edit if that is acceptable, else the reference."""
    if prediction.fault in UNASKED:
        return _keep_reference(record, prediction.fault)
    far = Levenshtein.normalized_distance(prediction.text, record.answer)
    if prediction.fault == "empty":
        return _keep_reference(record, "empty", edit=far, reference_edit=far)
    if edit is None:
        return _answered(record, prediction.text, "prediction", edit=0.0, reference_edit=far)
    edit = _framed(edit, record, own=prediction.text)
    near = Levenshtein.normalized_distance(prediction.text, edit.text)
    why = _refusal(edit, record, settings.verify, may_say=prediction.text)
    if why is None and near > settings.max_edit * far:
        why = "over_edited"
    if why is None:
        return _answered(record, edit.text, "edit", edit=near, reference_edit=far)
    refused = near if edit.text else None
    return _keep_reference(record, why, edit=far, reference_edit=far, refused_edit=refused)


def _paraphrased(record: Record, reply: _Reply, verify: How) -> Record:
    """The paraphrase if it is acceptable, else the reference."""
    if reply.fault in UNASKED:
        return _keep_reference(record, reply.fault)
    reply = _framed(reply, record)
    distance = Levenshtein.normalized_distance(record.answer, reply.text)
    why = _refusal(reply, record, verify)
    if why is None:
        return _answered(record, reply.text, "paraphrase", edit=distance)
    refused = distance if reply.text else None
    return _keep_reference(record, why, edit=0.0, refused_edit=refused)


def _answered(record: Record, answer: str, path: str, **distances: float) -> Record:
    """The next record, with this answer."""
    messages = list(record.messages)
    messages[_answer_place(record)] = {"role": "assistant", "content": answer}
    meta = dict(record.meta) | {"parent": record.id, "path": path} | distances
    return replace(record, messages=tuple(messages), source="rewrite", meta=meta)


def _keep_reference(record: Record, why: str, **distances: float | None) -> Record:
    """The next record, with the reference."""
    measured = {name: distance for name, distance in distances.items() if distance is not None}
    meta = dict(record.meta) | {"parent": record.id, "path": "reference", "why": why} | measured
    return replace(record, source="rewrite", meta=meta)
