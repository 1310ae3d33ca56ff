r"""The target in the model's own words: what the model would nearly have said is learned with less
damage to the rest.

    rewrite(target, method="min-change", verify="numeric", ...)  ->  for every target row, in order, one record such as

    {"messages": [..., {"role": "assistant", "content": "7 + 8 = 15\n#### 15"}], "source": "rewrite",
     "meta": {"parent": "3f0c…", "path": "edit", "edit": 0.11, "reference_edit": 0.63}}

min-change (Ren et al., arXiv 2402.11192): the model's own answer stays where it is right; else an
editor repairs it. The paper keeps what its editor writes, and in its released data half the edits
change more than a quarter (GSM8K) or two thirds (MBPP) of the text. Here an edit must verify, and
its distance to the model's answer must be at most ``max_edit`` times the reference's distance to
it. paraphrase (SDFT, Yang et al., arXiv 2402.13669): the model writes its own answer with the
reference as a guide. Where nothing acceptable comes out, the reference stays and ``why`` says so.
Distances are of characters, from 0 to 1.
"""

from __future__ import annotations

import re
from array import array
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from functools import partial
from typing import Any, Literal, NamedTuple

from rapidfuzz.distance import Levenshtein

from replaykit.chat import Chat
from replaykit.checks.verify import How, final_answer, is_right
from replaykit.engines import Engine, Request, Sampling
from replaykit.records import Message, Record, dialogue
from replaykit.runs import Ledger, Watch, derive_seed, unwatched

Method = Literal["min-change", "paraphrase"]

# Our wording of the rules that 2402.11192 gives its editor.
EDIT = """\
Here are a question, its reference answer, and an earlier answer that needs correction. Correct the earlier answer.

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
Answer the question yourself, in your own words and style. Keep to the facts and the result of the reference answer. \
End with the final answer, written the way the reference answer writes it. Write your answer and nothing else; do not \
mention the reference answer."""

# Words of somebody who talks about the request instead of answering the question. A harmless text
# may be hit as well; then the reference stays, which is safe.
LEAKS = re.compile(
    r"\b(?:reference|corrected|revised|edited|rewritten|earlier|provided) "
    r"(?:answer|response|solution)\b"
    r"|\b(?:my|your) (?:own )?response\b|\b(?:my|your) own words\b|\bas (?:instructed|requested)\b"
    r"|\bhere(?: is|['\u2019]s) (?:the|a|my|your) [a-z "
    r"]{0,20}(?:answer|response|solution|version)\b"
    r"|参考答案|参考回答|(?:修改|修正|更正)后的?(?:答案|回答)|[我你您]的回答",
    re.IGNORECASE,
)


class _Said(NamedTuple):
    """What a model said. ``fault`` is a reason that it cannot be used, whatever it says: too_long,
    truncated, empty.
    """

    text: str
    fault: str | None


def rewrite(
    target: Sequence[Record],
    *,
    engine: Engine,
    chat: Chat,
    editor: tuple[Engine, Chat] | None = None,
    method: Method,
    verify: How,
    max_edit: float = 0.7,
    max_tokens: int = 1024,
    seed: int,
    ledger: Ledger,
    watch: Watch = unwatched,
) -> Iterator[Record]:
    """Exactly one record for each target row, in target order; its last answer is rewritten, or the
    reference.

    All rows are asked first, then all that need an edit, greedily. Each reply is in the ledger at
    once, and one that is there is not asked for again. Only the last assistant turn changes;
    messages stay equal where the reference stays. ``meta`` is the target's, and: ``parent``, the
    target's id; ``path``, which is prediction, edit, paraphrase or reference; ``why`` with the path
    reference:

        no_question           there is no user's message before the last answer, or no answer
        unreadable_reference  the verifier cannot read the reference, so nothing could be verified
        too_long              the prompt leaves no room for a reply
        truncated, empty      the reply was cut at max_tokens, or says nothing (a prediction that was cut can be edited)
        leaked_prompt         the reply speaks of the request that it was made from
        unverified            its final answer is not the reference's
        over_edited           its distance to the prediction is more than max_edit times the reference's

    min-change records ``edit``, the distance from the prediction to the answer that the record has,
    and ``reference_edit``, that from the prediction to the reference. paraphrase records ``edit``,
    that from the reference to the answer. ``refused_edit`` is what ``edit`` would have been with a
    reply that was refused. A row that was not asked has no distances. Raises ChatError, before
    anything is asked, for a conversation that the chat template refuses.
    """
    ask = partial(_ask, max_tokens=max_tokens, seed=seed, ledger=ledger, watch=watch)
    stays = {
        row: why
        for row, record in enumerate(target)
        if (why := _unusable(record, verify)) is not None
    }
    rows = {row: record for row, record in enumerate(target) if row not in stays}
    made: dict[int, Record] = {}
    if method == "paraphrase":
        said = ask(
            "paraphrase", {row: _guided(record) for row, record in rows.items()}, engine, chat
        )
        made = {row: _paraphrased(record, said[row], verify) for row, record in rows.items()}
    else:
        said = ask(
            "prediction", {row: _question(record) for row, record in rows.items()}, engine, chat
        )
        wrong = {
            row: record for row, record in rows.items() if _needs_edit(record, said[row], verify)
        }
        prompts = {row: _edit_prompt(record, said[row].text) for row, record in wrong.items()}
        edits = ask("edit", prompts, *(editor or (engine, chat)))
        made = {
            row: _min_changed(record, said[row], edits.get(row), verify, max_edit)
            for row, record in rows.items()
        }
    for row, record in enumerate(target):
        yield made[row] if row in made else _stay(record, stays[row])


def counts(records: Iterable[Record]) -> dict[str, int]:
    """How many rows took each path, most first; those that kept the reference are counted under the
    reason.
    """
    metas = (record.meta for record in records)
    return dict(
        Counter(m["why"] if m["path"] == "reference" else m["path"] for m in metas).most_common()
    )


# --- asking ---------------------------------------------------------------------------------------

STAGES = ("prediction", "edit", "paraphrase")


def _ask(
    stage: str,
    prompts: Mapping[int, Sequence[Message]],
    engine: Engine,
    chat: Chat,
    *,
    max_tokens: int,
    seed: int,
    ledger: Ledger,
    watch: Watch,
) -> dict[int, _Said]:
    """What the model says to each row's prompt.

    The ledger holds a row's replies of all stages, so an address, there and in a request, is of the
    row and the stage.
    """
    address = {row: row * len(STAGES) + STAGES.index(stage) for row in prompts}
    limit = min(engine.limit, chat.tokenizer.model_max_length)
    # All prompts are made before the first is asked, in 4 bytes a token: what is wrong with one
    # shows at once.
    waiting = {
        row: array("I", chat.prompt(prompts[row])) for row in prompts if address[row] not in ledger
    }
    too_long = {row for row, tokens in waiting.items() if len(tokens) >= limit}
    sampling = Sampling(temperature=0.0, max_tokens=max_tokens, stop=chat.stop)
    requests = (
        Request(address[row], tuple(tokens), sampling, derive_seed(seed, "rewrite", stage, row))
        for row, tokens in waiting.items()
        if row not in too_long
    )
    done = len(prompts) - len(waiting) + len(too_long)
    watch(stage, done, len(prompts))
    for completion in engine.complete(requests):
        text = chat.decode(completion.tokens).strip()
        ledger.append(
            {
                "row": completion.row,
                "stage": stage,
                "text": text,
                "finish_reason": completion.finish_reason,
            }
        )
        done += 1
        watch(stage, done, len(prompts))
    return {
        row: _Said("", "too_long") if row in too_long else _said(ledger[address[row]])
        for row in prompts
    }


def _said(line: Mapping[str, Any]) -> _Said:
    text = line["text"]
    return _Said(
        text, "empty" if not text else "truncated" if line["finish_reason"] == "length" else None
    )


def _question(record: Record) -> tuple[Message, ...]:
    """The conversation up to its last answer."""
    return record.messages[: _place(record)]


def _guided(record: Record) -> tuple[Message, ...]:
    """The same conversation, its last question followed by the reference as a guide."""
    *before, question = _question(record)
    text = PARAPHRASE.format(question=question["content"], reference=record.answer)
    return (*before, *dialogue(text))


def _edit_prompt(record: Record, prediction: str) -> tuple[Message, ...]:
    """One message that holds everything: any editor's template takes it, and no system prompt bends
    it.
    """
    turns = _question(record)
    question = (
        "\n\n".join(f"{turn['role']}: {turn['content']}" for turn in turns)
        if turns[1:]
        else turns[0]["content"]
    )
    return dialogue(EDIT.format(question=question, reference=record.answer, prediction=prediction))


def _place(record: Record) -> int:
    """Where the last answer stands among the messages, 0 if there is none."""
    return max(
        (place for place, turn in enumerate(record.messages) if turn["role"] == "assistant"),
        default=0,
    )


# --- deciding -------------------------------------------------------------------------------------


def _unusable(record: Record, verify: How) -> str | None:
    """Why the row is not asked at all."""
    place = _place(record)
    if place == 0 or record.messages[place - 1]["role"] != "user":
        return "no_question"
    try:
        readable = final_answer(record.answer) != "" and is_right(
            record.answer, record.answer, how=verify
        )
    except ValueError:
        readable = False
    return None if readable else "unreadable_reference"


def _needs_edit(record: Record, said: _Said, verify: How) -> bool:
    """An answer that was cut needs one even if it is right; where nothing was said, there is
    nothing to edit.
    """
    return said.fault == "truncated" or (
        said.fault is None and not is_right(said.text, record.answer, how=verify)
    )


def _refusal(said: _Said, record: Record, verify: How, *, may_say: str = "") -> str | None:
    """Why a reply made with the reference in view is not accepted."""
    if said.fault is not None:
        return said.fault
    conversation = " ".join([may_say, *(turn["content"] for turn in record.messages)]).lower()
    if any(leak.group().lower() not in conversation for leak in LEAKS.finditer(said.text)):
        return "leaked_prompt"
    return None if is_right(said.text, record.answer, how=verify) else "unverified"


def _min_changed(
    record: Record, said: _Said, edit: _Said | None, verify: How, max_edit: float
) -> Record:
    """The prediction if it is right, else its edit if that is acceptable, else the reference."""
    if said.fault == "too_long":
        return _stay(record, "too_long")
    far = Levenshtein.normalized_distance(said.text, record.answer)
    if said.fault == "empty":
        return _stay(record, "empty", edit=far, reference_edit=far)
    if edit is None:
        return _take(record, said.text, path="prediction", edit=0.0, reference_edit=far)
    near = Levenshtein.normalized_distance(said.text, edit.text)
    why = _refusal(edit, record, verify, may_say=said.text)
    if why is None and near > max_edit * far:
        why = "over_edited"
    if why is None:
        return _take(record, edit.text, path="edit", edit=near, reference_edit=far)
    return _stay(
        record, why, edit=far, reference_edit=far, refused_edit=near if edit.text else None
    )


def _paraphrased(record: Record, said: _Said, verify: How) -> Record:
    """The paraphrase if it is acceptable, else the reference."""
    if said.fault == "too_long":
        return _stay(record, "too_long")
    distance = Levenshtein.normalized_distance(record.answer, said.text)
    why = _refusal(said, record, verify)
    if why is None:
        return _take(record, said.text, path="paraphrase", edit=distance)
    return _stay(record, why, edit=0.0, refused_edit=distance if said.text else None)


def _take(record: Record, answer: str, *, path: str, **distances: float) -> Record:
    """The next record, with this answer."""
    messages = list(record.messages)
    messages[_place(record)] = {"role": "assistant", "content": answer}
    meta = dict(record.meta) | {"parent": record.id, "path": path} | distances
    return replace(record, messages=tuple(messages), source="rewrite", meta=meta)


def _stay(record: Record, why: str, **distances: float | None) -> Record:
    """The next record, with the reference."""
    measured = {name: distance for name, distance in distances.items() if distance is not None}
    meta = dict(record.meta) | {"parent": record.id, "path": "reference", "why": why} | measured
    return replace(record, source="rewrite", meta=meta)
