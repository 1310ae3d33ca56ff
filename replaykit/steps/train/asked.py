"""A row of training as a question: what the model is shown before its own answer to it, with and
without the row's answer in view.

    student   Is Oslo the capital of Norway?
    teacher   Is Oslo the capital of Norway? ... a right answer: Yes. ... in your own words.

Both end where the answer begins, so that either can be followed by an answer of the model's own.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, replace

from replaykit.data.record import Message, Record
from replaykit.errors import ChatError
from replaykit.model.chat import Chat, Example

# Our wording; any prompt that shows the answer and lets the model say it itself would do.
IN_VIEW = """\
{question}

Here is a right answer to this, for your eyes only:

{reference}

Now answer the question yourself, in your own words and in the form that this answer has."""


@dataclass(frozen=True)
class Asked:
    """A row's last question, as token ids."""

    student: tuple[int, ...]
    """What stands in the row before its last answer."""
    teacher: tuple[int, ...]
    """The same with the answer in view of the question."""
    stop: tuple[int, ...]
    """Token ids that end an answer."""


def asked(record: Record, chat: Chat, prompt: str | None = None) -> Asked | None:
    """The last question of a row; None where its last answer cannot be shown in a question: where
    nobody asks, where it calls tools, carries no loss, or the template refuses the question.

    ``prompt`` is a text with {question} and {reference}; None stands for ``IN_VIEW``.
    """
    answer = record.messages[-1]
    if len(record.messages) < 2 or answer["role"] != "assistant" or "weight" in answer:
        return None
    question = record.messages[-2]
    if question["role"] != "user" or not answer["content"].strip() or "tool_calls" in answer:
        return None
    shown = [answer["content"]]
    if answer.get("reasoning_content"):
        shown = [answer["reasoning_content"], *shown]
    text = prompt or IN_VIEW
    # Not by ``format``: a question may have braces, and so may the prompt.
    parts = {"{question}": question["content"], "{reference}": "\n\n".join(shown)}
    in_view: Message = {**question, "content": _filled(text, parts)}
    guided = replace(record, messages=(*record.messages[:-2], in_view, answer))
    try:
        student = _before_answer(chat.example(record))
        teacher = _before_answer(chat.example(guided))
    except ChatError:
        return None
    if not student or not teacher:
        return None
    thinking: bool | None = None
    if chat.can_think:
        thinking = chat.always_thinks or "reasoning_content" in answer
    return Asked(student, teacher, chat.stops(thinking, record.tools))


def _filled(text: str, parts: dict[str, str]) -> str:
    """The text with each part in the place of its name, in one pass."""
    return re.sub(r"\{question\}|\{reference\}", lambda name: parts[name[0]], text)


def _before_answer(example: Example) -> tuple[int, ...]:
    """The tokens before the last run of those that carry loss; empty where none does."""
    places = [place for place, carries in enumerate(example.loss) if carries]
    if not places:
        return ()
    begins = places[-1]
    while begins > 0 and example.loss[begins - 1]:
        begins -= 1
    return tuple(example.tokens[:begins])
