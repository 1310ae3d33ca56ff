"""Whether a reply may stand in the place of the reference, and what a row says of it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace

from replaykit.checks.verifiers import verdict
from replaykit.checks.verify import final_answer
from replaykit.data.record import MASKED, Message, Record, apart, dialogue
from replaykit.recipe.rewrite import Verify
from replaykit.steps.rewrite.asking import Reply
from replaykit.steps.rewrite.gate import cleaned, form_fault, leaked

# What the meta of a record says under names of the step's own.
OWN_META = frozenset(
    {
        "parent",
        "path",
        "why",
        "tried",
        MASKED,
        "reference",
        "edit",
        "reference_edit",
        "refused_edit",
        "perplexity",
        "reference_perplexity",
    }
)

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

AGAIN = """\
A correction was refused, since {why}. Do better.

"""
# By reason, what the editor is told of its last try.
TOLD = {
    "unverified": "its final answer is not that of the reference answer",
    "over_edited": "it changes more of the earlier answer than is needed",
    "improbable": "it is in the words of the reference answer rather than of the earlier one",
    "leaked_prompt": "it speaks of the reference answer or of the correction",
    "truncated": "it is too long",
    "empty": "it says nothing",
    "refusal": "it declines to answer",
    "repetitive": "it repeats itself",
}

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


@dataclass(frozen=True)
class Accepted:
    """A new answer."""

    text: str
    path: str
    measured: Mapping[str, float] = field(default_factory=dict)
    """Distances and perplexity, as the row's meta has them."""


@dataclass(frozen=True)
class Refused:
    """Why there is none:

    no_question           there is no user's message before the last answer, or no answer
    tools, thought, no_loss
                          the row has tools, or its last answer a thought or the weight 0, which
                          a reply in words alone would take from it
    unreadable_reference  the verifier cannot read the reference, so nothing can be verified
    wrong_reference       the reference does not pass its own verifier, such as tests of code
    template_refuses      the chat template refuses the conversation
    too_long              the prompt leaves no room for a reply
    truncated, empty      the reply was cut at max_tokens, or says nothing
                          (a prediction that was cut can be edited)
    no_reply, refused, filtered
                          the editor's server gave none, or would not
    leaked_prompt         the reply speaks of the request
    refusal, repetitive   the reply declines or loops, and the reference does not
                          (such a prediction can be edited)
    unverified            its final answer is not the reference's
    over_edited           its distance to the prediction is more than max_edit times that of the
                          reference
    improbable            the base finds the edit no more probable than the reference
    """

    why: str
    measured: Mapping[str, float] = field(default_factory=dict)


Outcome = Accepted | Refused


# --- prompts --------------------------------------------------------------------------------------


def before_answer(record: Record) -> tuple[Message, ...]:
    """The conversation up to its last answer."""
    return record.messages[: answer_place(record)]


def guided(record: Record) -> tuple[Message, ...]:
    """The same conversation, its last question followed by the reference as a guide."""
    *before, question = before_answer(record)
    text = PARAPHRASE.format(question=question["content"], reference=record.answer)
    return (*before, *dialogue(text))


def edit_prompt(record: Record, prediction: str, why: str | None = None) -> tuple[Message, ...]:
    """One message that has everything: any editor's template takes it, and no system prompt bends
    it. ``why`` is the reason for which the editor's last try was refused.
    """
    turns = before_answer(record)
    question = turns[0]["content"]
    if len(turns) > 1:
        question = "\n\n".join(f"{turn['role']}: {turn['content']}" for turn in turns)
    text = EDIT.format(question=question, reference=record.answer, prediction=prediction)
    if why is not None:
        text = AGAIN.format(why=TOLD[why]) + text
    return dialogue(text)


# --- replies --------------------------------------------------------------------------------------


def unusable(record: Record, verify: Verify) -> str | None:
    """Why nothing can be requested for the row; None where something can."""
    place = answer_place(record)
    if place == 0 or record.messages[place - 1]["role"] != "user":
        return "no_question"
    beside_words = _beside_words(record, place)
    if beside_words is not None:
        return beside_words
    if final_answer(record.answer) == "":
        return "unreadable_reference"
    if verify.name == "judge":
        return None
    of_reference = verdict(verify, record.answer, record)
    if of_reference == "unreadable":
        return "unreadable_reference"
    # An answer that is right by it would contradict the reference.
    return None if of_reference == "right" else "wrong_reference"


def answer_place(record: Record) -> int:
    """The place of the last answer among the messages, 0 if there is none."""
    places = [k for k, message in enumerate(record.messages) if message["role"] == "assistant"]
    return max(places, default=0)


def _beside_words(record: Record, place: int) -> str | None:
    """What a reply in words alone would take from the row; None where it has no more than words."""
    answer = record.messages[place]
    if record.tools or "tool_calls" in answer:
        return "tools"
    if "reasoning_content" in answer:
        return "thought"
    return "no_loss" if "weight" in answer else None


def judged(reply: Reply, record: Record) -> Reply:
    """An answer of the model's own with what its form says against it."""
    if reply.fault is not None:
        return reply
    return Reply(reply.text, form_fault(reply.text, record.answer))


def framed(reply: Reply, record: Record, *, own: str = "") -> Reply:
    """A reply that was made with the reference in view, without what frames it."""
    text = cleaned(reply.text, like=record.answer, own=own)
    return Reply(text, reply.fault or (None if text else "empty"))


def refusal(reply: Reply, record: Record, *, may_say: str = "") -> str | None:
    """What but its final answer says against a reply that was made with the reference in view.

    What the conversation says, or ``may_say``, is no leak of the prompt.
    """
    if reply.fault is not None:
        return reply.fault
    conversation = " ".join([may_say, *(turn["content"] for turn in record.messages)])
    if leaked(reply.text, said=conversation):
        return "leaked_prompt"
    return form_fault(reply.text, record.answer)


# --- records --------------------------------------------------------------------------------------


def answered(record: Record, text: str) -> Record:
    """The row with this answer."""
    messages = list(record.messages)
    messages[answer_place(record)] = {"role": "assistant", "content": text}
    return replace(record, messages=tuple(messages))


def rewritten(record: Record, outcome: Outcome, more: Mapping[str, object]) -> Record:
    """The next record: with the new answer, or with the reference and the reason."""
    meta = apart(record.meta, OWN_META) | {"parent": record.id}
    if isinstance(outcome, Accepted):
        if outcome.text != record.answer:
            meta["reference"] = record.answer
        meta["path"] = outcome.path
        record = answered(record, outcome.text)
    else:
        meta |= {"path": "reference", "why": outcome.why}
    return replace(record, source="rewrite", meta=meta | dict(outcome.measured) | dict(more))
