"""A chat template as a set of fixed texts.

    [user: Q, assistant: A, user: Q2]  ->  pre_query Q answer_header A joint Q2

They are found by rendering sentinels with the tokenizer's own template, and cutting there. So there
is no table of model families, and no knowledge of any. A date that the template asks the clock for
is frozen, so that the same run gives the same tokens tomorrow. Magpie (Xu et al., arXiv 2406.08464)
calls ``pre_query`` the pre-query template; its released code has it by hand for 36 models.
"""

from __future__ import annotations

import json
import logging
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from functools import cached_property
from os.path import commonprefix
from typing import TYPE_CHECKING, Any

from replaykit.data.record import Message, Tool, ToolCall
from replaykit.errors import ChatError
from replaykit.model.calls import CallFormat
from replaykit.model.deadline import TimeUp, deadline
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
THOUGHT = "t8Wn2Gk"
CALLED = "f6Lp9Db"
ARGUMENT = "a1Ej5Mz"
CALL_ID = "Tc4Yk7Rw0"  # nine letters and digits, as Mistral's templates want
SECOND = "h3Qs7Vb"
SECOND_ARGUMENT = "k6Nf2Xr"
SECOND_ID = "Tc4Yk7Rw1"
CALL: ToolCall = {
    "type": "function",
    "function": {"name": CALLED, "arguments": {ARGUMENT: 1}},
    "id": CALL_ID,
}
CALLING: Message = {"role": "assistant", "content": "", "tool_calls": [CALL]}
OFFERED: Tool = {
    "type": "function",
    "function": {
        "name": CALLED,
        "description": "It does nothing.",
        "parameters": {"type": "object", "properties": {}},
    },
}
# Under which a message has a thought: most templates, then Kimi's and gpt-oss'.
THOUGHT_KEYS = ("reasoning_content", "reasoning", "thinking")
THINK = "<think>"
# What a template may read besides the special tokens: tools and documents are None here.
GIVEN = frozenset(
    "messages add_generation_prompt enable_thinking thinking strftime_now raise_exception".split()
)
LONGEST_SECONDS = 5.0  # of one rendering, which takes a thousandth of that

logger = logging.getLogger(__name__)

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
class CallForm:
    """How a template takes tool calls."""

    as_text: bool
    """Whether the arguments are JSON text, and not a mapping."""
    empty: str | None
    """The content of a message that only calls."""

    def row(self, row: dict[str, Any]) -> dict[str, Any]:
        """The row with its calls, and no content where it has none, as the template takes them."""
        calls = []
        for call in row["tool_calls"]:
            arguments = call["function"]["arguments"]
            if self.as_text:
                arguments = json.dumps(arguments, ensure_ascii=False)
            calls.append({**call, "function": {**call["function"], "arguments": arguments}})
        content = row["content"]
        if not content:
            content = self.empty
        return {**row, "tool_calls": calls, "content": content}


FORMS = tuple(CallForm(as_text, empty) for empty in ("", None) for as_text in (False, True))


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


@dataclass(frozen=True)
class Thoughts:
    """How a thought stands before an answer, after a prompt that asks for one.

    Qwen3: key "reasoning_content", opening "<think>\\n", closing "\\n</think>\\n\\n".
    """

    key: str | None
    """The key of a message whose text the template shows as the thought; None: it shows none."""
    opening: str
    """What the model writes before its thought; "" or spaces where the prompt opens it."""
    closing: str
    """From the end of the thought to the answer."""
    begin: str
    """The mark that opens a thought, in the prompt or in the opening: "<think>"."""
    always: bool
    """Whether the prompt opens a thought even where it is told not to."""

    @property
    def opened(self) -> bool:
        """Whether the prompt opens the thought."""
        return not self.opening.strip()

    @property
    def end(self) -> str:
        """The closing without the spaces around it: "</think>"."""
        return self.closing.strip()

    def split(self, text: str) -> tuple[str, str] | None:
        """A thought and the answer after it, without the spaces between; None without a thought.

        The marks are the template's own, or "<think>" and "</think>", as data sets have them. Where
        the prompt opens a thought, a text may begin in the middle of one.
        """
        for begin, end in ((self.begin, self.end), ("<think>", "</think>")):
            before, found, after = text.partition(end)
            if not found:
                continue
            inside = before.lstrip()
            if inside.startswith(begin):
                return inside.removeprefix(begin).strip(), after.lstrip("\n")
            spoken_of = before.endswith(" ") or after.startswith(" ")
            if self.opened and begin not in before and not spoken_of:
                return before.strip(), after.lstrip("\n")
        return None


class Renderer:
    """The tokenizer's chat template with its options set: thinking on or off, the date frozen."""

    def __init__(self, tokenizer: PreTrainedTokenizerBase, options: ChatOptions, *, name: str):
        self.name = name
        self.options = options
        self._apply: Callable[..., Any] = tokenizer.apply_chat_template
        self._own_template: Callable[[], str] = tokenizer.get_chat_template
        self._special = set(tokenizer.special_tokens_map)
        self._fixed: dict[str, Any] = {}  # variables of a template by hand
        self._thinking = bool(options.thinking)
        self.beyond = ""
        """What finished answers without a thought have after the generation prompt, where they have
        all of that."""
        # Whether a message's content is a list of parts, as templates for images have it.
        self._parts = False
        self._day: Callable[[str], str] = datetime.fromisoformat(options.date).strftime
        self.thoughts: Thoughts | None = None
        """How the template has thoughts; None where it has none."""
        self.source: str | None = None
        """The template; None for the tokenizer's own, which may be the default one of several."""
        if options.pre_query is not None:
            self._take_by_hand(options.pre_query, bos=str(tokenizer.bos_token or ""))
        self.template = self._derive()

    @property
    def thinking(self) -> bool:
        """Whether prompts leave the model to think where nothing else is said."""
        return self._thinking

    def __call__(
        self,
        messages: Sequence[Message],
        *,
        answer: bool = False,
        thinking: bool | None = None,
        tools: Sequence[Tool] = (),
    ) -> str:
        """The conversation as the template writes it; with ``answer``, up to where one is due."""
        return self._text(messages, answer=answer, thinking=thinking, tools=tools)

    def asked(
        self,
        messages: Sequence[Message],
        *,
        thinking: bool | None = None,
        tools: Sequence[Tool] = (),
    ) -> str:
        """The text up to where the model answers the last message.

        It ends with the generation prompt, and what always follows that where it does not think;
        but where it may call tools, only what calls follow, too. A finished conversation is no
        substitute: in it, a system message that belongs to an unanswered question may be gone.
        """
        if thinking is None:
            thinking = self._thinking
        due = self._text(messages, answer=True, thinking=thinking, tools=tools)
        if thinking and self.thoughts is not None:
            return due
        if tools and not self._calls_follow_beyond:
            return due
        return due + self.beyond

    @cached_property
    def _calls_follow_beyond(self) -> bool:
        """Whether calls stand after ``beyond`` as words do; gpt-oss' have their own channel."""
        if not self.beyond or self._calls_as is None:
            return True
        due = self([USER], answer=True, tools=[OFFERED])
        return self._calling("", [CALL]).startswith(due + self.beyond)

    def asking(self, messages: Sequence[Message], *, tools: Sequence[Tool] = ()) -> str:
        """The text up to where a user would go on with the conversation, which may be empty."""
        text = self([*messages, USER], tools=tools)
        if QUESTION not in text:
            raise ChatError(
                f"{self.name}: its chat template does not show the last question of a conversation"
            )
        return text.rpartition(QUESTION)[0]

    def _text(
        self,
        messages: Sequence[Message],
        *,
        date: str | None = None,
        answer: bool = False,
        thinking: bool | None = None,
        tools: Sequence[Tool] = (),
    ) -> str:
        return self._of_rows(
            [self._row(message) for message in messages],
            date=date,
            answer=answer,
            thinking=thinking,
            tools=tools,
        )

    def _of_rows(
        self,
        rows: Sequence[dict[str, Any]],
        *,
        date: str | None = None,
        answer: bool = False,
        thinking: bool | None = None,
        tools: Sequence[Tool] = (),
    ) -> str:
        """What the template makes of rows that are as it takes them."""
        if thinking is None:
            thinking = self._thinking
        day = self._day if date is None else datetime.fromisoformat(date).strftime
        try:
            with deadline(LONGEST_SECONDS):
                return str(
                    self._apply(
                        rows,
                        tools=list(tools) or None,
                        chat_template=self.source,
                        tokenize=False,
                        add_generation_prompt=answer,
                        # Qwen's and others' name for it, then DeepSeek's and Granite's.
                        enable_thinking=thinking,
                        thinking=thinking,
                        strftime_now=day,
                        **self._fixed,
                    )
                )
        except TimeUp as error:
            raise self._cannot(
                f"has not ended after {LONGEST_SECONDS:g} seconds, so it may never end"
            ) from error
        except Exception as error:
            # A template is somebody else's code: it may raise anything.
            raise self._refuses(rows, error) from error

    def _refuses(self, rows: Sequence[Mapping[str, Any]], error: Exception) -> ChatError:
        missing = self._missing(error)
        if missing:
            return self._cannot(
                f"needs {' or '.join(missing)}, which a conversation does not give ({error})"
            )
        roles = ", ".join(str(row["role"]) for row in rows)
        return ChatError(
            f"{self.name}: its chat template refuses a conversation of {roles}: {error}"
        )

    def _missing(self, error: Exception) -> list[str]:
        """The variables that this error is about: those that the template reads and nobody sets."""
        from jinja2 import Environment, TemplateError, TemplateSyntaxError, meta

        if type(error) is TemplateError:  # what the template itself says
            return []
        undefined = re.match(r"'(\w+)' is undefined", str(error))
        if undefined is not None:
            name = undefined[1]
            return [] if name in {"message", "messages"} else [repr(name)]
        if not re.search(r"\bNone\b|\bNoneType\b|\bUndefined\b", str(error)):
            return []
        environment = Environment(extensions=["jinja2.ext.loopcontrols"])
        try:
            tree = environment.parse(self.source or str(self._own_template()))
        except TemplateSyntaxError:  # it has tags of transformers' own
            return []
        read = meta.find_undeclared_variables(tree)
        given = GIVEN | environment.globals.keys() | self._special | self._fixed.keys()
        return sorted(map(repr, read - given))

    # --- a message as the template takes it -------------------------------------------------------

    def _row(self, message: Message) -> dict[str, Any]:
        row: dict[str, Any] = dict(message)
        if self._parts:
            row["content"] = [{"type": "text", "text": row["content"]}]
        if len(row) == 2 and row["role"] != "developer":
            return row
        row.pop("weight", None)
        if "reasoning_content" in row:
            thought = row.pop("reasoning_content")
            if self.thoughts is not None and self.thoughts.key is not None:
                row[self.thoughts.key] = thought
        if row["role"] == "developer":
            row["role"] = self._developer
        if "tool_calls" in row and self._calls_as is not None:
            row = self._calls_as.row(row)
        return row

    @cached_property
    def _developer(self) -> str:
        """The role that a developer's message is given: "system" where the template shows none."""
        row = {"role": "developer", "content": SYSTEM}
        if self._parts:
            row["content"] = [{"type": "text", "text": SYSTEM}]  # type: ignore[assignment]
        try:
            if SYSTEM in self._of_rows([row, self._row(USER)]):
                return "developer"
        except ChatError as error:
            logger.info("%s", error)
        logger.warning(
            "%s: its chat template has no role developer, so such messages are its system messages",
            self.name,
        )
        return "system"

    @cached_property
    def _calls_as(self) -> CallForm | None:
        """How the template takes tool calls; None where it shows none."""
        for form in FORMS:
            row = form.row({"role": "assistant", "content": "", "tool_calls": [CALL]})
            if self._parts and row["content"] is not None:
                row["content"] = [{"type": "text", "text": ""}]
            try:
                text = self._of_rows([self._row(USER), row])
            except ChatError as error:
                logger.debug("%s", error)
                continue
            # As Python writes a dict, which is no JSON, it was not meant.
            if CALLED in text and ARGUMENT in text and f"'{ARGUMENT}'" not in text:
                return form
        return None

    @cached_property
    def call_format(self) -> CallFormat | None:
        """How the calls that a model writes are read; None where the template shows none."""
        if self._calls_as is None:
            return None
        return CallFormat.derive(self._called)

    @property
    def call(self) -> str:
        """An answer that is one call, after the prompt for it."""
        return self._called("", [CALL])

    @cached_property
    def end_of_thought_before_call(self) -> str:
        """What closes a thought whether an answer or a call follows it: its own end but in
        templates that say with it what comes, as gpt-oss' does.
        """
        assert self.thoughts is not None
        answer: Message = {"role": "assistant", "content": "", "tool_calls": [CALL]}
        answer["reasoning_content"] = THOUGHT
        text = self([USER, answer], thinking=True, tools=[OFFERED])
        _, _, after = text.partition(THOUGHT)
        common = commonprefix([after, self.thoughts.closing])  # noqa: RUF071 - they are no paths
        prompt = self([USER], answer=True, thinking=True, tools=[OFFERED])
        header = prompt.rpartition(QUESTION)[2].removeprefix(self.template.end_of_question).strip()
        if header and header in common:
            common = common[: common.index(header) + len(header)]
        return common.strip() or self.thoughts.end

    def _called(self, content: str, calls: Sequence[ToolCall]) -> str:
        text = self._calling(content, calls)
        asked = self.asked([USER], tools=[OFFERED])
        if text.startswith(asked):
            return text[len(asked) :]
        return text.rpartition(QUESTION)[2]

    def _calling(self, content: str, calls: Sequence[ToolCall]) -> str:
        """A conversation whose answer has this content and these calls."""
        answer: Message = {"role": "assistant", "content": content}
        if calls:
            answer["tool_calls"] = calls
        return self([USER, answer], tools=[OFFERED])

    def check_shows(self, messages: Sequence[Message], tools: Sequence[Tool]) -> None:
        """Raises ChatError where the conversation has what the template cannot show, by name."""
        hidden = ""
        if tools and not self.shows_tools:
            hidden = "the tools of a conversation"
        elif any("tool_calls" in message for message in messages) and self._calls_as is None:
            hidden = "tool calls"
        elif any(len(turn.get("tool_calls", ())) > 1 for turn in messages) and (
            not self._shows_several_calls
        ):
            hidden = "a second tool call of one answer"
        elif any(turn.get("tool_calls") and turn["content"].strip() for turn in messages) and (
            not self._shows_words_of_calls
        ):
            hidden = "the words beside a tool call"
        elif any(message["role"] == "tool" for message in messages) and not self._shows_results:
            hidden = "the results of tools"
        elif self.thoughts is None and any("reasoning_content" in turn for turn in messages):
            hidden = "the thought before an answer (reasoning_content)"
        if hidden:
            raise ChatError(
                f"{self.name}: its chat template does not show {hidden}; leave such rows out, or "
                f"take a model whose template does"
            )

    @cached_property
    def shows_tools(self) -> bool:
        """Whether the template tells of the tools that it is given."""
        try:
            return CALLED in self([USER], tools=[OFFERED])
        except ChatError as error:
            logger.info("%s", error)
            return False

    @cached_property
    def _shows_several_calls(self) -> bool:
        """Whether all calls of one answer are shown; gpt-oss' template shows the first alone."""
        second: ToolCall = {
            "type": "function",
            "function": {"name": SECOND, "arguments": {SECOND_ARGUMENT: 2}},
            "id": SECOND_ID,
        }
        answer: Message = {"role": "assistant", "content": "", "tool_calls": [CALL, second]}
        try:
            text = self([USER, answer])
        except ChatError as error:
            logger.info("%s", error)
            return False
        return all(said in text for said in (CALLED, ARGUMENT, SECOND, SECOND_ARGUMENT))

    @cached_property
    def _shows_results(self) -> bool:
        return OTHER_QUESTION in self._with_result

    @property
    def after_call(self) -> str:
        """What stands between a call and its result, and the result; "" where none is shown."""
        return self._with_result.removeprefix(self([USER, CALLING]))

    @cached_property
    def _with_result(self) -> str:
        """A conversation that ends with the result of a call; "" where the template refuses it."""
        result: Message = {
            "role": "tool",
            "content": OTHER_QUESTION,
            "name": CALLED,
            "tool_call_id": CALL_ID,
        }
        try:
            return self([USER, CALLING, result])
        except ChatError as error:
            logger.info("%s", error)
            return ""

    @cached_property
    def _shows_words_of_calls(self) -> bool:
        """Whether an answer that calls is shown with its words; Llama 3.1's has calls alone."""
        try:
            return ANSWER in self([USER, {**CALLING, "content": ANSWER}])
        except ChatError as error:
            logger.info("%s", error)
            return False

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
        self._set_thinking()
        if self._thinking != bool(self.options.thinking):
            alone = self([USER])
            pre_query, end_of_question = alone.split(QUESTION)
            due = self._due(pre_query)
        shown, end_of_answer = self._answer()
        header = due
        thinks = self._thinking and self.thoughts is not None
        if not thinks and shown.startswith(due):
            header = shown
        self.beyond = self._beyond_prompt()
        joint = self._joint(pre_query)
        system, after_system = self._system(pre_query)
        user_header = ""
        for text in (joint or "", after_system):
            text = text.removeprefix(end_of_answer).removeprefix(end_of_question)
            if text and pre_query.endswith(text):
                user_header = text
                break
        return Template(
            pre_query=pre_query,
            end_of_question=end_of_question,
            answer_header=header,
            end_of_answer=end_of_answer,
            joint=joint,
            system=system,
            default_system=_default_system(pre_query, user_header),
            date=self._date(alone),
            thinking=thinks or (self._thinking and self._thinks(alone)),
            thought=_thought(header),
        )

    def _set_thinking(self) -> None:
        """Finds out how the template has thoughts, and whether they can be switched off."""
        self.thoughts = self._find_thoughts()
        always = self.thoughts is not None and self.thoughts.always
        if always and self.options.thinking is False:
            raise ChatError(
                f"{self.name}: its chat template opens a thought before every answer and has no "
                f"switch for it, so thinking cannot be turned off; leave --no-thinking "
                f"(chat.thinking) out"
            )
        self._thinking = bool(self.options.thinking) or always

    def _find_thoughts(self) -> Thoughts | None:
        """Where a thought stands, found with one as a sentinel under each key that is in use."""
        if self._fixed:
            return None
        off = self([USER], answer=True, thinking=False).partition(QUESTION)[2]
        on = self([USER], answer=True, thinking=True).partition(QUESTION)[2]
        always = _opens_thought(off)
        for called in (False, True):
            for key in THOUGHT_KEYS:
                found = self._around_thought(key, called=called)
                if found is None or not found[0].startswith(on) or not found[1].strip():
                    continue
                opening = found[0][len(on) :]
                begin = (_thought(on + opening) or THINK).strip()
                return Thoughts(key, opening, found[1], begin, always)
        if not _opens_thought(on):
            return _of_empty_thought(on, off)
        # It shows no thought of a finished answer, so the closing is written as the opening is.
        opened = _thought(on) or THINK
        begin = opened.strip()
        closing = _closes(begin)
        if opened != begin:
            closing = f"\n{closing}\n\n"
        return Thoughts(None, "", closing, begin, always)

    def _around_thought(self, key: str, *, called: bool) -> tuple[str, str] | None:
        """From the question to a thought under the key, and from there to the answer."""
        row: dict[str, Any] = {"role": "assistant", "content": ANSWER, key: THOUGHT}
        if called:
            row["tool_calls"] = [CALL]
        if self._parts:
            row["content"] = [{"type": "text", "text": ANSWER}]
        try:
            text = self._of_rows([self._row(USER), row], thinking=True)
        except ChatError as error:
            logger.debug("%s", error)
            return None
        if text.count(THOUGHT) != 1 or text.count(QUESTION) != 1:
            return None
        before, _, after = text.partition(THOUGHT)
        closing, found, _ = after.partition(ANSWER)
        if not found:
            return None
        if CALLED in closing:
            # The calls stand before the answer, so what follows a thought is found without one.
            bare = self._of_rows([self._row(USER), {**row, key: ""}], thinking=True)
            closing = after.removesuffix(_common_end(after, bare))
        return before.partition(QUESTION)[2], closing

    def _beyond_prompt(self) -> str:
        """What follows the generation prompt in finished answers without a thought."""
        thinking = self._thinking and self.thoughts is None
        if self.thoughts is not None and self.thoughts.always:
            return ""
        due = self([USER], answer=True, thinking=thinking).split(QUESTION)[1]
        turns: list[Message] = [USER, {"role": "assistant", "content": ANSWER}]
        shown = self(turns, thinking=thinking).partition(ANSWER)[0].partition(QUESTION)[2]
        if not shown.startswith(due):
            return ""
        return shown[len(due) :]

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
        return self._text([USER], thinking=False) != alone

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


def _closes(begin: str) -> str:
    """The mark that closes what ``begin`` opens."""
    if "START" in begin:
        return begin.replace("START", "END")
    return f"{begin[0]}/{begin[1:]}"


def _of_empty_thought(on: str, off: str) -> Thoughts | None:
    """The thoughts of a template that shows none, but whose prompt has an empty one where the model
    shall not think, as SmolLM3's has; None where it has none.
    """
    empty = re.fullmatch(r"(<[^<>\s]*>)(\s*?)(\n?</[^<>\s]*>\s*)", _thought(off) or "")
    if _thought(on) is not None or empty is None or _closes(empty[1]) != empty[3].strip():
        return None
    return Thoughts(None, empty[1] + empty[2], empty[3], empty[1], always=False)


def _opens_thought(header: str) -> bool:
    """Whether a header ends in the middle of thoughts: with the one mark that opens them."""
    marks = re.findall(r"<[^<>\s]*>", _thought(header) or "")
    return len(marks) == 1 and not marks[0].startswith("</")
