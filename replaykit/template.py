"""A chat template as a set of fixed texts, found by rendering sentinels with the tokenizer's own
template and cutting there.

    [user: Q, assistant: A, user: Q2]  ->  pre_query Q answer_header A joint Q2

No table of model families, and no knowledge of any: what a template does is asked of the template
itself. A date that it asks the clock for is frozen, so that the same run gives the same tokens
tomorrow. Magpie (Xu et al., arXiv 2406.08464) calls ``pre_query`` the pre-query template; its
released code has it by hand for 36 models.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import TYPE_CHECKING, Any

from replaykit.errors import ChatError
from replaykit.records import Message
from replaykit.settings import ChatOptions

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

# Text that no template contains or rewrites, and that does not begin or end with a space.
QUESTION = "q7Zx1Kw"
OTHER_QUESTION = "Vd93mYt"
ANSWER = "b5Ru8Jn"
SYSTEM = "s4Hc6Tp"
USER: Message = {"role": "user", "content": QUESTION}
OTHER_DATE = "1987-06-05"

# The template of parts given by hand: the answer header holds the end of the question, the first
# stop ends an answer.
BY_HAND = """\
{%- for m in messages %}
    {%- if m.role == "user" %}{{ (PRE_QUERY if loop.first else LATER) + m.content }}
    {%- elif m.role == "assistant" and HEADER is not none %}{{ HEADER + m.content + END }}
    {%- elif m.role == "assistant" %}{{ raise_exception("--answer-header is not given") }}
    {%- else %}{{ raise_exception("a template by hand has no system role") }}{% endif %}
{%- endfor %}
{%- if add_generation_prompt %}
    {{- HEADER if HEADER is not none else raise_exception("--answer-header is not given") }}
{%- endif %}"""


@dataclass(frozen=True)
class Template:
    """The fixed text of an exchange, and what else is known of the template.

    ``answer_header`` runs from the end of a question to the start of the answer, ``joint`` from the
    end of an answer to the start of the next question; None where the template holds one question
    only. ``system`` tells what becomes of a system message, ``default_system`` is the block that
    stands before the first question without one. ``date`` is the frozen date, None where the
    template does not ask for it. ``thinking`` is whether the model is left to think before it
    answers, and ``thought`` the text in the answer header that opens or closes thoughts, if there
    is any.
    """

    pre_query: str
    end_of_question: str
    answer_header: str
    end_of_answer: str
    joint: str | None
    system: str
    default_system: str | None
    date: str | None
    thinking: bool
    thought: str | None


class Renderer:
    """The tokenizer's chat template with its options set: thinking on or off, the date frozen."""

    def __init__(self, tokenizer: PreTrainedTokenizerBase, options: ChatOptions, *, name: str):
        self.name = name
        self.options = options
        self._apply: Callable[..., Any] = tokenizer.apply_chat_template
        self._fixed: dict[str, Any] = {}  # variables of a template by hand
        self._thinking = bool(options.thinking)
        self._beyond = (
            ""  # what finished answers have after the generation prompt, where they have all of it
        )
        self.unsaid = (
            ""  # what stands before a finished answer that a thinking model has to write itself
        )
        self._parts = (
            False  # whether a message's content is a list of parts, as templates for images have it
        )
        self.source: str | None = (
            None  # the tokenizer's own, which may be the default one of several
        )
        if options.pre_query is not None:
            if not options.stop:
                raise ChatError(
                    f"{name}: a pre-query by hand needs what ends a turn as well: --stop"
                )
            bos = str(tokenizer.bos_token or "")
            header = options.answer_header or ""
            later = (
                options.pre_query if bos and bos in header else options.pre_query.removeprefix(bos)
            )
            self.source = BY_HAND
            self._fixed = {
                "PRE_QUERY": options.pre_query,
                "LATER": later,
                "HEADER": options.answer_header,
                "END": options.stop[0],
            }
        self.template = self._derive()

    def __call__(self, messages: Sequence[Message], *, answer: bool = False) -> str:
        """The conversation as the template writes it; with ``answer``, up to where one is due."""
        return self._text(messages, answer=answer, date=self.options.date)

    def asked(self, messages: Sequence[Message]) -> str:
        """The text up to where the model answers the last message: the generation prompt, and what
        always follows it.

        A finished conversation is not asked: in it, a system message that belongs to an unanswered
        question may be gone.
        """
        return self(messages, answer=True) + self._beyond

    def asking(self, messages: Sequence[Message]) -> str:
        """The text up to where a user would go on with the conversation, which may be empty or only
        a system message.
        """
        text = self([*messages, USER])
        if QUESTION not in text:
            raise ChatError(
                f"{self.name}: its chat template does not show the last question of a conversation"
            )
        return text.rpartition(QUESTION)[0]

    def _text(
        self,
        messages: Sequence[Message],
        *,
        date: str,
        answer: bool = False,
        thinking: bool | None = None,
    ) -> str:
        from jinja2.exceptions import TemplateError

        thinking = self._thinking if thinking is None else thinking
        rows: list[dict[str, Any]] = [dict(message) for message in messages]
        if self._parts:
            rows = [row | {"content": [{"type": "text", "text": row["content"]}]} for row in rows]
        day = datetime.fromisoformat(date)
        try:
            return str(
                self._apply(
                    rows,
                    chat_template=self.source,
                    tokenize=False,
                    add_generation_prompt=answer,
                    enable_thinking=thinking,
                    thinking=thinking,
                    strftime_now=day.strftime,
                    **self._fixed,
                )
            )
        except (TemplateError, TypeError, ValueError, KeyError) as error:
            roles = ", ".join(message["role"] for message in messages)
            raise ChatError(
                f"{self.name}: its chat template refuses a conversation of {roles}: {error}"
            ) from error

    # --- how it is derived ------------------------------------------------------------------------

    def _derive(self) -> Template:
        self._parts = not self._shows_strings()
        alone = self([USER])
        if alone.count(QUESTION) != 1:
            raise self._cannot(f"shows a question {alone.count(QUESTION)} times, not once")
        pre_query, end_of_question = alone.split(QUESTION)
        if (
            self._fixed and self.options.answer_header is None
        ):  # enough for questions; an answer asks for the header
            return Template(
                pre_query, "", "", self.options.stop[0], None, "refused", None, None, False, None
            )
        asked = self([USER], answer=True)
        if not asked.startswith(pre_query + QUESTION):
            raise self._cannot("changes what stands before a question when an answer is due")
        if not self([{**USER, "content": OTHER_QUESTION}]).startswith(pre_query + OTHER_QUESTION):
            raise self._cannot("depends on what the question says")
        due = asked.split(QUESTION)[1]
        shown, end_of_answer = self._answer()
        if (
            not shown.startswith(due)
            and self.options.thinking is None
            and _opens_thought(due)
            and not self._thinking
        ):
            self._thinking = (
                True  # it opens a thought even where it was told not to, so the model always thinks
            )
            return self._derive()
        header = due if self._thinking or not shown.startswith(due) else shown
        self._beyond = header[len(due) :]
        self.unsaid = shown[len(due) :] if self._thinking and shown.startswith(due) else ""
        joint = self._joint(pre_query)
        system, after_system = self._system(pre_query)
        after_turns = [joint or "", after_system]
        user_headers = [
            text.removeprefix(end_of_answer).removeprefix(end_of_question) for text in after_turns
        ]
        user_header = next((text for text in user_headers if text and pre_query.endswith(text)), "")
        return Template(
            pre_query,
            end_of_question,
            header,
            end_of_answer,
            joint,
            system,
            _default_system(pre_query, user_header),
            self._date(alone),
            self._thinking and (due.strip() != shown.strip() or self._thinks(alone)),
            _thought(header),
        )

    def _shows_strings(self) -> bool:
        try:
            return QUESTION in self([USER])
        except ChatError:
            self._parts = True
            try:
                return QUESTION not in self([USER])
            except ChatError:
                return True  # then the error is about the string, which is what most templates take
            finally:
                self._parts = False

    def _answer(self) -> tuple[str, str]:
        """What a finished exchange shows between the question and the answer, and after it."""
        whole = self([USER, {"role": "assistant", "content": ANSWER}])
        for what, text in (("an answer", ANSWER), ("an answered question", QUESTION)):
            if whole.count(text) != 1:
                raise self._cannot(f"shows {what} {whole.count(text)} times, not once")
        before, end = whole.split(ANSWER)
        return before.split(QUESTION)[1], end

    def _joint(self, pre_query: str) -> str | None:
        """From an answer to the next question, or None where the template takes one question
        only.
        """
        turns = [
            USER,
            {"role": "assistant", "content": ANSWER},
            {"role": "user", "content": OTHER_QUESTION},
        ]
        try:
            whole = self(turns)
        except ChatError:
            return None
        if not (
            whole.startswith(pre_query + QUESTION)
            and whole.count(ANSWER) == whole.count(OTHER_QUESTION) == 1
        ):
            return None
        return whole.split(ANSWER)[1].split(OTHER_QUESTION)[0]

    def _system(self, pre_query: str) -> tuple[str, str]:
        """What becomes of a system message; and where it has a block of its own, the user's header
        after it.
        """
        try:
            text = self([{"role": "system", "content": SYSTEM}, USER])
        except ChatError:
            return "refused", ""
        before, found, _ = text.partition(QUESTION)
        if not found or SYSTEM not in before:
            return "ignored", ""
        header = _common_end(pre_query, before.split(SYSTEM)[1])
        return ("own block", header) if header.strip() else ("folded into the user's turn", "")

    def _date(self, alone: str) -> str | None:
        other = self._text([USER], date=OTHER_DATE)
        return self.options.date if other != alone else None

    def _thinks(self, alone: str) -> bool:
        return self._text([USER], date=self.options.date, thinking=False) != alone

    def _cannot(self, what: str) -> ChatError:
        return ChatError(
            f"{self.name}: its chat template {what}; give the parts by hand with --pre-query, "
            f"--answer-header and --stop"
        )


def _default_system(pre_query: str, user_header: str) -> str | None:
    """What stands before the user's header, where it is more than special tokens."""
    block = pre_query.removesuffix(user_header) if user_header else ""
    return block if re.sub(r"<[^<>\s]*>|\[\w+\]", "", block).strip() else None


def _common_end(one: str, other: str) -> str:
    size = 0
    while size < min(len(one), len(other)) and one[-1 - size] == other[-1 - size]:
        size += 1
    return one[len(one) - size :]


def _thought(header: str) -> str | None:
    """The part of an answer header from where it speaks of thoughts, such as
    "<think>\\n\\n</think>\\n\\n".
    """
    found = re.search(
        r"</?[^<>\s]*(?:think|thought|channel|reason)[^<>\s]*>.*", header, re.DOTALL | re.IGNORECASE
    )
    return found[0] if found else None


def _opens_thought(header: str) -> bool:
    """Whether a header ends in the middle of thoughts: with the one mark that opens them."""
    marks = re.findall(r"<[^<>\s]*>", _thought(header) or "")
    return len(marks) == 1 and not marks[0].startswith("</")
