"""A chat template as a set of fixed texts.

    [user: Q, assistant: A, user: Q2]  ->  pre_query Q answer_header A joint Q2

They are found by rendering sentinels with the tokenizer's own template, and cutting there. So there
is no table of model families, and no knowledge of any. A date that the template asks the clock for
is frozen, so that the same run gives the same tokens tomorrow. Magpie (Xu et al., arXiv 2406.08464)
calls ``pre_query`` the pre-query template; its released code has it by hand for 36 models.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import TYPE_CHECKING, Any

from replaykit.data.record import Message
from replaykit.errors import ChatError
from replaykit.recipe.chat import ChatOptions

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

# Sentinels: text that no template contains or rewrites, and that has no space at its ends.
QUESTION = "q7Zx1Kw"
OTHER_QUESTION = "Vd93mYt"
ANSWER = "b5Ru8Jn"
SYSTEM = "s4Hc6Tp"
USER: Message = {"role": "user", "content": QUESTION}
OTHER_DATE = "1987-06-05"

# The template of parts given by hand. The answer header holds the end of the question, too, and the
# first stop ends an answer.
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
    """The fixed text of an exchange, and what else is known of the template."""

    pre_query: str
    """From the beginning to where the first question starts."""
    end_of_question: str
    """What follows a question that is not answered."""
    answer_header: str
    """From the end of a question to the start of its answer."""
    end_of_answer: str
    """What follows the last answer."""
    joint: str | None
    """From the end of an answer to the next question; None where there is one question only."""
    system: str
    """What becomes of a system message, in words."""
    default_system: str | None
    """The block before the first question where there is no system message; None without one."""
    date: str | None
    """The frozen date; None where the template does not ask for it."""
    thinking: bool
    """Whether the model is left to think before it answers."""
    thought: str | None
    """The text in the answer header that opens or closes thoughts; None without one."""


class Renderer:
    """The tokenizer's chat template with its options set: thinking on or off, the date frozen."""

    def __init__(self, tokenizer: PreTrainedTokenizerBase, options: ChatOptions, *, name: str):
        self.name = name
        self.options = options
        self._apply: Callable[..., Any] = tokenizer.apply_chat_template
        self._fixed: dict[str, Any] = {}  # variables of a template by hand
        self._thinking = bool(options.thinking)
        # What finished answers have after the generation prompt, where they have all of that.
        self._beyond = ""
        # Whether a message's content is a list of parts, as templates for images have it.
        self._parts = False
        self.unsaid = ""
        """What stands before a finished answer that a thinking model has to write itself."""
        self.source: str | None = None
        """The template; None for the tokenizer's own, which may be the default one of several."""
        if options.pre_query is not None:
            self._take_by_hand(options.pre_query, bos=str(tokenizer.bos_token or ""))
        self.template = self._derive()

    def __call__(self, messages: Sequence[Message], *, answer: bool = False) -> str:
        """The conversation as the template writes it; with ``answer``, up to where one is due."""
        return self._text(messages, answer=answer, date=self.options.date)

    def asked(self, messages: Sequence[Message]) -> str:
        """The text up to where the model answers the last message.

        It ends with the generation prompt, and what always follows that. A finished conversation is
        no substitute: in it, a system message that belongs to an unanswered question may be gone.
        """
        return self(messages, answer=True) + self._beyond

    def asking(self, messages: Sequence[Message]) -> str:
        """The text up to where a user would go on with the conversation, which may be empty."""
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

        if thinking is None:
            thinking = self._thinking
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
                    # Qwen's and others' name for it, then DeepSeek's and Granite's.
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

    def _take_by_hand(self, pre_query: str, *, bos: str) -> None:
        """Takes the parts that the options give in place of the tokenizer's template."""
        header = self.options.answer_header
        if not self.options.stop:
            raise ChatError(
                f"{self.name}: a pre-query by hand needs what ends a turn as well: --stop"
            )
        # The BOS is written once, unless the header shows that it comes with every turn.
        later = pre_query
        if not bos or bos not in (header or ""):
            later = pre_query.removeprefix(bos)
        self.source = BY_HAND
        self._fixed = {
            "PRE_QUERY": pre_query,
            "LATER": later,
            "HEADER": header,
            "END": self.options.stop[0],
        }

    # --- how it is derived ------------------------------------------------------------------------

    def _derive(self) -> Template:
        self._parts = not self._shows_strings()
        alone = self([USER])
        if alone.count(QUESTION) != 1:
            raise self._cannot(f"shows a question {alone.count(QUESTION)} times, not once")
        pre_query, end_of_question = alone.split(QUESTION)
        if self._fixed and self.options.answer_header is None:
            # Enough to draw questions; whoever wants an answer is told that the header is missing.
            end = self.options.stop[0]
            return Template(pre_query, "", "", end, None, "refused", None, None, False, None)
        due = self._due(pre_query)
        shown, end_of_answer = self._answer()
        whole = shown.startswith(due)
        undecided = self.options.thinking is None and not self._thinking
        if undecided and not whole and _opens_thought(due):
            # It opens a thought even where it was told not to, so the model always thinks.
            self._thinking = True
            return self._derive()
        header = due
        if whole and self._thinking:
            self.unsaid = shown[len(due) :]
        elif whole:
            header = shown
        self._beyond = header[len(due) :]
        joint = self._joint(pre_query)
        system, after_system = self._system(pre_query)
        user_header = ""
        for text in (joint or "", after_system):
            text = text.removeprefix(end_of_answer).removeprefix(end_of_question)
            if text and pre_query.endswith(text):
                user_header = text
                break
        thinking = self._thinking and (due.strip() != shown.strip() or self._thinks(alone))
        return Template(
            pre_query=pre_query,
            end_of_question=end_of_question,
            answer_header=header,
            end_of_answer=end_of_answer,
            joint=joint,
            system=system,
            default_system=_default_system(pre_query, user_header),
            date=self._date(alone),
            thinking=thinking,
            thought=_thought(header),
        )

    def _due(self, pre_query: str) -> str:
        """What follows a question when its answer is due."""
        asked = self([USER], answer=True)
        if not asked.startswith(pre_query + QUESTION):
            raise self._cannot("changes what stands before a question when an answer is due")
        if not self([{**USER, "content": OTHER_QUESTION}]).startswith(pre_query + OTHER_QUESTION):
            raise self._cannot("depends on what the question says")
        return asked.split(QUESTION)[1]

    def _shows_strings(self) -> bool:
        """Whether the template takes a message's content as a string, as most do, or as parts."""
        try:
            return QUESTION in self([USER])
        except ChatError:
            self._parts = True
            try:
                return QUESTION not in self([USER])
            except ChatError:
                # It takes neither, so whoever renders a string is told what is wrong with that.
                return True
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
        """From an answer to the next question; None where the template takes one question only."""
        turns: list[Message] = [
            USER,
            {"role": "assistant", "content": ANSWER},
            {"role": "user", "content": OTHER_QUESTION},
        ]
        try:
            whole = self(turns)
        except ChatError:
            return None
        shows_all = whole.count(ANSWER) == whole.count(OTHER_QUESTION) == 1
        if not shows_all or not whole.startswith(pre_query + QUESTION):
            return None
        return whole.split(ANSWER)[1].split(OTHER_QUESTION)[0]

    def _system(self, pre_query: str) -> tuple[str, str]:
        """What becomes of a system message, and the user's header after it if it has a block."""
        try:
            text = self([{"role": "system", "content": SYSTEM}, USER])
        except ChatError:
            return "refused", ""
        before, found, _ = text.partition(QUESTION)
        if not found or SYSTEM not in before:
            return "ignored", ""
        header = _common_end(pre_query, before.split(SYSTEM)[1])
        if not header.strip():
            return "folded into the user's turn", ""
        return "own block", header

    def _date(self, alone: str) -> str | None:
        """The frozen date, where another one changes the text."""
        if self._text([USER], date=OTHER_DATE) == alone:
            return None
        return self.options.date

    def _thinks(self, alone: str) -> bool:
        """Whether the text of a question changes when thinking is switched off."""
        return self._text([USER], date=self.options.date, thinking=False) != alone

    def _cannot(self, what: str) -> ChatError:
        return ChatError(
            f"{self.name}: its chat template {what}; give the parts by hand with --pre-query, "
            f"--answer-header and --stop"
        )


def _default_system(pre_query: str, user_header: str) -> str | None:
    """What stands before the user's header, where it is more than special tokens."""
    if not user_header:
        return None
    block = pre_query.removesuffix(user_header)
    said = re.sub(r"<[^<>\s]*>|\[\w+\]", "", block).strip()
    if not said:
        return None
    return block


def _common_end(one: str, other: str) -> str:
    """The longest text that both end with."""
    size = 0
    while size < min(len(one), len(other)) and one[-1 - size] == other[-1 - size]:
        size += 1
    return one[len(one) - size :]


def _thought(header: str) -> str | None:
    """What an answer header has from its first mark of thoughts on: "<think>\\n\\n</think>"."""
    found = re.search(
        r"</?[^<>\s]*(?:think|thought|channel|reason)[^<>\s]*>.*", header, re.DOTALL | re.IGNORECASE
    )
    if found is None:
        return None
    return found[0]


def _opens_thought(header: str) -> bool:
    """Whether a header ends in the middle of thoughts: with the one mark that opens them."""
    marks = re.findall(r"<[^<>\s]*>", _thought(header) or "")
    return len(marks) == 1 and not marks[0].startswith("</")
