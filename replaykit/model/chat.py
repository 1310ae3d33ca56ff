"""Conversations as token ids: where a question and an answer start, what ends a turn, what is loss.

For Meta-Llama-3-Instruct, ``Chat`` has

    pre_query      <|begin_of_text|><|start_header_id|>user<|end_header_id|>\n\n
    answer_header  <|eot_id|><|start_header_id|>assistant<|end_header_id|>\n\n
    end_of_answer  <|eot_id|>
    stop           128009 <|eot_id|>, 128006 <|start_header_id|>, 128007 <|end_header_id|>, ...

as ``template`` derives them. The parts are tokenised as they stand, without further special tokens,
so there is never a second BOS. What a message says is only text: "<|eot_id|>" in a question is its
letters, never the token, so no row can end a turn or open another one.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from itertools import groupby
from os.path import commonprefix
from typing import TYPE_CHECKING, ClassVar, Literal, NamedTuple, cast

from replaykit.data.record import Message, Record, Tool, ToolCall
from replaykit.errors import ChatError
from replaykit.model import loading
from replaykit.model.calls import CallFormat
from replaykit.model.pair import Pair, Scored
from replaykit.model.reads import Reads
from replaykit.model.template import ANSWER, Renderer, Template
from replaykit.recipe.chat import ChatOptions

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

# Separates the letters of what only reads like a special token, while a template is rendered around
# it. Unicode keeps this code point for a program's own use; where a text has it all the same, it is
# doubled.
VEIL = "\ufdd0"
NOTHING = "(?!)"  # the pattern that nothing matches


@dataclass(frozen=True)
class Example:
    """Token ids of a conversation, and which of them carry loss: the answers' and their ends."""

    tokens: tuple[int, ...]
    loss: tuple[bool, ...]
    learned: tuple[int, ...] = ()
    """The places of the messages that carry loss."""
    rewritten: int = 0
    """Answers without loss because the template shows them otherwise than the model wrote them: as
    earlier turns without their thoughts."""
    label: tuple[int, ...] = ()
    """Of a text classifier what its head is to say; empty for a language model."""
    answer_at: int | None = None
    """Where the answer begins that the decoder of an encoder-decoder writes; None for others."""

    @property
    def scored(self) -> Scored:
        """What an engine scores; its length is that of the positions which the model needs."""
        if self.answer_at is None:
            return self.tokens
        return Pair(self.tokens[: self.answer_at], self.tokens[self.answer_at :])

    @property
    def loss_tokens(self) -> int:
        """How many tokens carry loss; of a text with its label 1."""
        return sum(self.loss)


class _Spot(NamedTuple):
    """Where an answer stands in a rendered conversation, and the tokens that end it.

    From ``start`` to ``stop`` is what the model wrote, from ``stop`` to ``after`` the text of
    ``end``; where the template renders no end, ``after`` is ``stop`` and ``end`` may be added.
    """

    start: int
    stop: int
    after: int
    end: tuple[int, ...]


class _Around(NamedTuple):
    """What stands before and after an answer's words."""

    before: str
    after: str


class Reply(NamedTuple):
    """What the model wrote, its thought apart from its answer."""

    message: Message
    thought: Thought
    """"valid"; "empty": nothing between its marks; "missing": no marks; "cut": not closed."""
    special: bool
    """Whether there is a special token in the thought or the answer, beside the marks."""


Thought = Literal["valid", "empty", "missing", "cut"]


class Chat:
    """A tokenizer and the template derived from it.

    A tokenizer without a template is that of a base model (``plain``): it holds texts, and no
    conversation. With ``seq2seq`` it is that of an encoder-decoder such as Flan-T5, which needs no
    template: it is asked and it answers. Raises ChatError, saying why, where no template can be
    derived.
    """

    only_texts: ClassVar[bool] = False
    """Whether it holds no conversation, whatever template its tokenizer has."""
    notes: Sequence[str] = ()
    """Sentences that the user must read."""

    def __init__(
        self,
        tokenizer: PreTrainedTokenizerBase,
        *,
        name: str = "the model",
        more_stops: Sequence[int] = (),
        options: ChatOptions | None = None,
        seq2seq: bool = False,
    ):
        options = options or ChatOptions()
        self.tokenizer = tokenizer
        self.name = name
        self.seq2seq = seq2seq
        # Known where the chat was loaded with its model.
        self.reads: Reads | None = None
        has_template = tokenizer.chat_template or options.pre_query is not None
        self.plain = self.only_texts or not has_template
        self._find_special_tokens()
        texts = [self._stop_token(text) for text in options.stop]
        ends = [tokenizer.eos_token_id, *more_stops, *texts]
        self._ends = _different(ends)
        self._stops: dict[tuple[bool | None, bool], tuple[int, ...]] = {}
        if self.plain:
            self.stop = self._ends
            return
        self._renderer = Renderer(tokenizer, options, name=name)
        self._end_text, self._end, self._unsaid = self._end_of_turn(
            by_hand=options.pre_query is not None
        )
        # Also the marks of thoughts are only letters where an answer says them.
        thoughts = self._renderer.thoughts
        self._looks_marked = self.looks_special
        if thoughts is not None:
            marks = {mark.content for mark in self._special_tokens}
            self._looks_marked = re.compile(_any_of({*marks, thoughts.begin, thoughts.end}))
        self.stop = self.stops()

    def among(self, record: Record, *, old: bool) -> str | None:
        """The JSON schema that an answer to the record is held to; None where it is free. ``old``
        says that the record tests an old skill.
        """
        return None

    def not_learned(self, records: Iterable[Record]) -> list[str]:
        """What is said of what a training on these records does not learn."""
        return []

    def of_tuned(self) -> list[str]:
        """What is said of how a tuned model is used."""
        return []

    @classmethod
    def load(
        cls, model: str, revision: str | None = None, options: ChatOptions | None = None
    ) -> Chat:
        """The chat of a model: an alias, a Hub id or a folder. Raises EngineError where it is no
        language model that can be trained, or not the tokenizer's.
        """
        config = loading.language_model(model, revision)
        deployed = loading.generation_config(model, revision)
        stops: list[int] = []
        if deployed is not None and deployed.eos_token_id is not None:
            ids = deployed.eos_token_id  # one id, or several in a list, as Llama 3 has them
            stops = ids if isinstance(ids, list) else [ids]
        chat = cls(
            loading.load_tokenizer(model, revision),
            name=model,
            more_stops=stops,
            options=options,
            seq2seq=config is not None and bool(config.is_encoder_decoder),
        )
        if config is not None:
            chat.reads = Reads(model, chat.tokenizer, config, needed=chat.stop)
        return chat

    def _find_special_tokens(self) -> None:
        added = self.tokenizer.added_tokens_decoder
        special = {i: token for i, token in added.items() if token.special}
        self._special = set(special)
        self._special_tokens = tuple(special.values())
        # Longest first, so that none is read as the beginning of another. Some take the spaces
        # around them away, as the tokenizer does.
        marks = sorted(special.values(), key=lambda mark: -len(mark.content))
        spaced = "|".join(
            r"\s*" * mark.lstrip + re.escape(mark.content) + r"\s*" * mark.rstrip for mark in marks
        )
        self._is_special = re.compile(f"({spaced or NOTHING})")
        self.looks_special = re.compile(_any_of({mark.content for mark in marks}) or NOTHING)

    @property
    def template(self) -> Template:
        """The parts of the template. Raises ChatError for a base model."""
        if self.plain:
            raise ChatError(
                f"{self.name} has no chat template, so it is not a chat model; use its -Instruct "
                f"or -it version, or give "
                f"the parts by hand with --pre-query, --answer-header and --stop"
            )
        return self._renderer.template

    @property
    def can_think(self) -> bool:
        """Whether the template has thoughts."""
        return not self.plain and not self.seq2seq and self._renderer.thoughts is not None

    @property
    def always_thinks(self) -> bool:
        """Whether every prompt opens a thought."""
        thoughts = None if self.plain or self.seq2seq else self._renderer.thoughts
        return thoughts is not None and thoughts.always

    @property
    def call_format(self) -> CallFormat | None:
        """How calls of tools are written; None where the template shows none that can be read."""
        if self.plain or self.seq2seq:
            return None
        return self._renderer.call_format

    @property
    def shows_tools(self) -> bool:
        """Whether the model can be told of tools, and its calls of them be read."""
        return self.call_format is not None and self._renderer.shows_tools

    def check_tools(self) -> None:
        """Raises ChatError where the model cannot be asked for calls of tools."""
        if not self.shows_tools:
            raise ChatError(
                f"{self.name}: its chat template shows no tools, or no calls of them that can be "
                f"read, so it cannot be asked for any; take a model whose template does"
            )

    def rendered(self, messages: Sequence[Message], *, thinking: bool | None = None) -> str:
        """The finished conversation as the template writes it, what messages say as it stands."""
        assert self.template
        return self._renderer(messages, thinking=thinking)

    @cached_property
    def pre_query(self) -> tuple[int, ...]:
        """Token ids up to where a user would begin. Raises ChatError for a base model."""
        return self.asking(())

    @property
    def start(self) -> tuple[int, ...]:
        """What a text begins with: BOS, or else eos, with which the text before it ended."""
        first = self.tokenizer.bos_token_id
        if first is None:
            first = self.tokenizer.eos_token_id
        if first is None:
            raise ChatError(
                f"{self.name} has neither a BOS nor an eos token, so there is nothing to begin a "
                f"text with"
            )
        return (first,)

    @property
    def end_of_turn(self) -> tuple[int, ...]:
        """Token ids that close every answer; without a template eos, if there is one."""
        if self.plain or self.seq2seq:
            return self._eos
        return self._end

    def encode(self, text: str) -> tuple[int, ...]:
        """Token ids of text as it stands: special tokens in it are read, none is added."""
        # Without its warning of long texts: what is too long is counted where it matters.
        found = self.tokenizer(text, add_special_tokens=False, verbose=False)
        return tuple(found["input_ids"])

    def decode(self, tokens: Sequence[int], *, special: bool = False) -> str:
        """The text of token ids, by default without special tokens."""
        return str(self.tokenizer.decode(list(tokens), skip_special_tokens=not special))

    def special_in(self, tokens: Sequence[int]) -> bool:
        """Whether there is a special token among them, which ``decode`` would leave out."""
        return not self._special.isdisjoint(tokens)

    def prompt(
        self, messages: Sequence[Message], thinking: bool | None = None, tools: Sequence[Tool] = ()
    ) -> tuple[int, ...]:
        """Token ids up to where the model answers the last message.

        ``thinking`` says whether it is left to think first; None: as the options say, or as it
        always does. The space of "[/INST] " is the beginning of the answer's first token, so the
        model is left to write it. For an encoder-decoder it is what the messages say, a line break
        between them, within the tokens that its tokenizer puts around a text. Raises ChatError
        where thinking cannot be switched off.
        """
        if self.seq2seq:
            self._check_text_alone(messages, tools)
            return self._question(messages)
        return self._tokens(self._asked(messages, thinking, tools).rstrip(" "))

    def begun(
        self, messages: Sequence[Message], begun: str, thinking: bool | None = None
    ) -> tuple[int, ...]:
        """The same up to where the model goes on with an answer that is ``begun``."""
        return self._tokens((self._asked(messages, thinking) + self._veil(begun)).rstrip(" "))

    def continued(
        self, messages: Sequence[Message], begun: str, said: str, thinking: bool | None = None
    ) -> tuple[tuple[int, ...], tuple[int, ...]]:
        """Token ids up to an answer that is ``begun``, and those of what it goes on with.

        White space between the two belongs to the second, as lm-eval has it, so that both together
        are the tokens of the whole text. Raises ChatError as ``prompt`` does.
        """
        asked = self._asked(messages, thinking) + self._veil(begun)
        before = self._tokens(asked.rstrip())
        return before, self._tokens(asked + self._veil(said))[len(before) :]

    def _asked(
        self, messages: Sequence[Message], thinking: bool | None, tools: Sequence[Tool] = ()
    ) -> str:
        """The text up to where the model answers, what messages say veiled."""
        assert self.template
        thoughts = self._renderer.thoughts
        if thinking is False and thoughts is not None and thoughts.always:
            raise ChatError(
                f"{self.name}: its chat template opens a thought before every answer and has no "
                f"switch for it; ask for answers with thinking: true"
            )
        turns = self._veiled(messages)
        self._renderer.check_shows(turns, tools)
        return self._renderer.asked(turns, thinking=thinking, tools=self._veiled_tools(tools))

    def asking(self, messages: Sequence[Message], tools: Sequence[Tool] = ()) -> tuple[int, ...]:
        """Token ids up to where a user would go on: the pre-query where nothing was said yet.

        The space of "[INST] " is left to the model, too.
        """
        assert self.template
        turns = self._veiled(messages)
        self._renderer.check_shows(turns, tools)
        asked = self._renderer.asking(turns, tools=self._veiled_tools(tools))
        return self._tokens(asked.rstrip(" "))

    def example(self, record: Record) -> Example:
        """The record as the trainer sees it.

        It is what the template renders of the conversation, to the end of the last answer. Each
        answer that follows the model's own prompt carries loss, with the end that the model writes;
        where the template renders no end, it is added after the last answer. An empty thought that
        the template writes carries none. An answer that opens a conversation answers nothing, and
        carries no loss; nor does one of weight 0, nor an earlier one that the template rewrites, as
        those do that take thoughts out of them: ``Example.rewritten`` counts these. Of an
        encoder-decoder the last answer carries loss, and what stands before it is the question.
        """
        if self.seq2seq:
            return self._pair(record)
        if record.messages[0]["role"] == "text":
            return self._plain(record)
        assert self.template
        answers = [
            number
            for number, message in enumerate(record.messages)
            if number and message["role"] == "assistant"
        ]
        if not answers:
            return Example((), ())
        last = answers[-1]
        turns = self._veiled(record.messages[: last + 1])
        self._renderer.check_shows(turns, record.tools)
        tools = self._veiled_tools(record.tools)
        text, spot = self._last(turns, tools)
        if self._borrowed and "tool_calls" in turns[last]:
            spot = spot._replace(end=self._end_of_call)
        if record.was_cut:
            spot = spot._replace(end=())
        spots: dict[int, _Spot] = {}
        asked = [number for number in answers if "weight" not in turns[number]]
        for number in asked:
            found: _Spot | None = spot
            if number != last:
                found = self._earlier(turns, number, text, tools)
            if found is not None:
                spots[number] = found
        example = self._tokenised(text, list(spots.values()))
        return replace(example, learned=tuple(spots), rewritten=len(asked) - len(spots))

    def unreadable(self, example: Example) -> str | None:
        """Why the model cannot read the row, as ``Reads.problem`` says it; None where it can."""
        if self.reads is None:
            return None
        found = example.scored
        if isinstance(found, Pair):
            return self.reads.problem(found.question, found.answer)
        return self.reads.problem(found)

    def _tokenised(self, text: str, spots: Sequence[_Spot]) -> Example:
        """The tokens of a rendered conversation, with loss at the spots."""
        tokens: list[int] = []
        loss: list[bool] = []
        done = 0
        for spot in spots:
            head = self._tokens(text[done : spot.start])
            said = (*self._tokens(text[spot.start : spot.stop]), *spot.end)
            tokens += [*head, *said]
            loss += [False] * len(head) + [True] * len(said)
            done = spot.after
        rest = self._tokens(text[done:].removesuffix(self._unsaid))
        if not spots or text[done:] != self._unsaid:
            tokens += rest
            loss += [False] * len(rest)
        return Example(tuple(tokens), tuple(loss))

    def read(
        self, tokens: Sequence[int], thinking: bool | None = None, tools: Sequence[Tool] = ()
    ) -> Message:
        """An answer of these sampled tokens: its thought, content and calls, as records have them.

        ``thinking`` and ``tools`` are those of the prompt.
        """
        return self.reply(tokens, thinking, tools).message

    def reply(
        self, tokens: Sequence[int], thinking: bool | None = None, tools: Sequence[Tool] = ()
    ) -> Reply:
        """The same, with what became of the thought.

        Marks of thoughts that are special tokens are found as tokens, others as text. Calls are
        looked for only where the prompt told of tools, since any JSON may look like one.
        """
        thoughts = None
        if not self.plain and not self.seq2seq:
            thoughts = self._renderer.thoughts
            if thinking is None:
                thinking = self._renderer.thinking
        ids = self._said(tokens, self.stops(thinking, tools))
        if thoughts is None:
            return self._words(ids, tools)
        inside = self._after(ids, thoughts.opening.strip() or thoughts.begin)
        before, after = self._around(ids, thoughts.end)
        if after is None and tools:
            before, after = self._around(ids, self._renderer.end_of_thought_before_call)
        # After the result of a tool some prompts open the thought that others leave to the model.
        opened = bool(thinking) and (thoughts.opened or after is not None)
        if inside is None and not opened:
            return self._words(ids, tools)
        if after is None:
            return self._reply(self.decode(ids if inside is None else inside), (), "cut", tools)
        thought = before
        begun = self._after(before, thoughts.opening.strip() or thoughts.begin)
        if begun is not None:
            thought = begun
        said = self.decode(thought).strip()
        state: Thought = "valid" if said else "empty"
        return self._reply(said, after, state, tools, inside=thought)

    def _said(self, tokens: Sequence[int], stops: Sequence[int]) -> tuple[int, ...]:
        """What was sampled without what ends it, and of an encoder-decoder what begins it."""
        ids = tuple(tokens)
        for size in range(len(self.end_of_turn), 0, -1):
            # The engine may have left out the token at which it stopped.
            if ids[-size:] == self.end_of_turn[:size]:
                ids = ids[:-size]
                break
        while ids and ids[-1] in stops:
            ids = ids[:-1]
        if not self.seq2seq:
            return ids
        before, _ = self._frame
        return ids[len(before) :] if ids[: len(before)] == before else ids

    def _words(self, ids: tuple[int, ...], tools: Sequence[Tool]) -> Reply:
        """An answer without a thought, which may say first that none comes."""
        none = "" if self.plain or self.seq2seq else self._renderer.beyond.strip()
        if none:
            after = self._after(ids, none)
            if after is not None:
                ids = after
        return self._reply("", ids, "missing", tools)

    def _reply(
        self,
        thought: str,
        answer: Sequence[int],
        state: Thought,
        tools: Sequence[Tool],
        *,
        inside: Sequence[int] = (),
    ) -> Reply:
        calls: Sequence[ToolCall] = ()
        if tools and self.call_format is not None:
            found = self.call_format.read(self._written(answer), tools)
            if found.calls:
                calls = found.calls
                answer = self.encode(found.content)
        content = self.decode(answer)
        if state in ("valid", "empty"):
            content = content.lstrip("\n")
        message: Message = {"role": "assistant", "content": content}
        if thought.strip():
            message["reasoning_content"] = thought.strip()
        if calls:
            message["tool_calls"] = calls
        return Reply(message, state, self.special_in([*inside, *answer]))

    def _after(self, ids: tuple[int, ...], mark: str) -> tuple[int, ...] | None:
        """The ids after a mark that they begin with, or None."""
        before, after = self._around(ids, mark)
        if after is None or self._written(before).strip():
            return None
        return after

    def _around(
        self, ids: tuple[int, ...], mark: str
    ) -> tuple[tuple[int, ...], tuple[int, ...] | None]:
        """The ids before and after the first place where the mark is; all and None without one.

        Its special tokens are found as tokens alone, the rest of it as text: a mark may share its
        last token with the text after it, as ">\n" does.
        """
        wanted = self._is_special.sub(lambda found: f"{VEIL}{found[0].strip()}{VEIL}", mark)
        before, found, after = self._framed(ids).partition(wanted)
        if not found:
            return ids, None
        return self._unframed(before), self._unframed(after)

    def _framed(self, ids: Sequence[int]) -> str:
        """The text of token ids, each special token between two VEILs."""
        parts = []
        for special, group in groupby(ids, key=self._special.__contains__):
            tokens = list(group)
            if special:
                parts += [f"{VEIL}{self.decode([token], special=True)}{VEIL}" for token in tokens]
            else:
                parts.append(self.decode(tokens).replace(VEIL, ""))
        return "".join(parts)

    def _unframed(self, text: str) -> tuple[int, ...]:
        """Token ids of such a text."""
        ids: list[int] = []
        for place, part in enumerate(text.split(VEIL)):
            if place % 2:
                ids += self.encode(part)
            elif part:
                ids += self._letters(part)
        return tuple(ids)

    def _written(self, ids: Sequence[int]) -> str:
        """The text of token ids with its special tokens."""
        return self._framed(ids).replace(VEIL, "")

    def _pair(self, record: Record) -> Example:
        """A question for an encoder, and the answer for a decoder, if there is one."""
        self._check_text_alone(record.messages, record.tools)
        last = record.messages[-1]
        if last["role"] != "assistant":
            question = self._question(record.messages)
            return Example(question, (False,) * len(question), answer_at=len(question))
        question = self._question(record.messages[:-1])
        # As transformers makes labels: an answer of BART begins with BOS as well.
        answer = (*self._frame[0], *self._said_at_last(record))
        begins = len(question)
        tokens = (*question, *answer)
        if "weight" in last:
            return Example(tokens, (False,) * len(tokens), answer_at=begins)
        loss = (*[False] * begins, *[True] * len(answer))
        return Example(tokens, loss, (len(record.messages) - 1,), answer_at=begins)

    def _question(self, messages: Sequence[Message]) -> tuple[int, ...]:
        """What an encoder reads of messages."""
        said = "\n".join(message["content"] for message in messages)
        before, after = self._frame
        return (*before, *self._tokens(self._veil(said)), *after)

    def _check_text_alone(self, messages: Sequence[Message], tools: Sequence[Tool]) -> None:
        """Raises ChatError where there is more than texts, for which it has no form."""
        hidden = ""
        if tools:
            hidden = "the tools of a conversation"
        elif any("tool_calls" in message for message in messages):
            hidden = "tool calls"
        elif any(message["role"] == "tool" for message in messages):
            hidden = "the results of tools"
        elif any("reasoning_content" in message for message in messages):
            hidden = "the thought before an answer (reasoning_content)"
        if hidden:
            raise ChatError(
                f"{self.name}: an encoder-decoder has no chat template that shows {hidden}; leave "
                f"such rows out, or take a model whose template does"
            )

    @cached_property
    def _frame(self) -> tuple[tuple[int, ...], tuple[int, ...]]:
        """What an encoder-decoder's own tokenizer puts before and after a text: nothing and eos in
        T5, BOS and eos in BART. Where it puts nothing after it, that is eos.
        """
        bare = self.encode("a")
        whole = tuple(self.tokenizer("a")["input_ids"])
        for start in range(len(whole) - len(bare) + 1):
            end = start + len(bare)
            if whole[start:end] == bare:
                return whole[:start], whole[end:] or self._eos
        return (), self._eos

    @property
    def _bos(self) -> tuple[int, ...]:
        return _different([self.tokenizer.bos_token_id])

    @property
    def _eos(self) -> tuple[int, ...]:
        return _different([self.tokenizer.eos_token_id])

    # --- where an answer stands -------------------------------------------------------------------

    def _thinks(self, message: Message) -> bool:
        """Whether the model is asked for this answer with thinking on."""
        thoughts = self._renderer.thoughts
        if thoughts is None:
            return self._renderer.thinking
        return thoughts.always or "reasoning_content" in message

    def _prompts(
        self, turns: Sequence[Message], number: int, tools: Sequence[Tool]
    ) -> Iterator[str]:
        """The text up to an answer, without the spaces that begin it; then without what always
        follows the generation prompt, which calls of tools do not have.
        """
        thinking = self._thinks(turns[number])
        asked = self._renderer.asked(turns[:number], thinking=thinking, tools=tools)
        yield asked.rstrip(" ")
        due = self._renderer(turns[:number], answer=True, thinking=thinking, tools=tools)
        if due != asked:
            yield due.rstrip(" ")
        if "tool_calls" in turns[number] and not thinking:
            # Some templates write an empty thought before an answer only, and none before a call.
            on = self._renderer(turns[:number], answer=True, thinking=True, tools=tools)
            yield on.rstrip(" ")

    def _last(self, turns: Sequence[Message], tools: Sequence[Tool]) -> tuple[str, _Spot]:
        """The whole conversation as text, and where its last answer stands.

        Where the template does not go on from its own prompt, as some do that take the thought out
        of the last answer too, the text is what the model would have written after that prompt.
        """
        message = turns[-1]
        thoughts = self._renderer.thoughts
        thought = message.get("reasoning_content", "")
        whole = self._renderer(turns, thinking=self._thinks(message), tools=tools)
        shown = whole.removesuffix(self._unsaid)
        before = ""
        for prompt in self._prompts(turns, len(turns) - 1, tools):
            before = before or prompt
            if not shown.startswith(prompt):
                continue
            if thought and thought.strip() not in shown[len(prompt) :]:
                break
            start = len(prompt)
            if thoughts is not None and not thought:
                skipped = self._empty_thought(shown[start:], message)
                if skipped is None:
                    break
                start += skipped
            return whole, self._spot(shown, start)
        before = before or next(self._prompts(turns, len(turns) - 1, tools))
        around = self._around_answer(turns, tools)
        said = message["content"] + around.after
        start = len(before)
        if thoughts is not None and thought:
            opening = thoughts.opening
            if opening.strip() and before.rstrip().endswith(opening.strip()):
                opening = ""  # after the result of a tool some prompts open the thought, too
            said = opening + thought + thoughts.closing + said
        elif thoughts is not None and thoughts.always:
            start += len(thoughts.closing)
            said = thoughts.closing + said
        else:
            said = self._bridge(before, around.before, turns, tools) + said
        text = before + said
        return text, self._spot(text, start)

    def _bridge(
        self, prompt: str, shown: str, turns: Sequence[Message], tools: Sequence[Tool]
    ) -> str:
        """What the model writes between its prompt and the words of an answer without a thought,
        such as gpt-oss' channel; ``shown`` is the finished conversation up to these words.
        """
        thinking = self._thinks(turns[-1])
        due = self._renderer(turns[:-1], answer=True, thinking=thinking, tools=tools)
        header = due.removeprefix(self._renderer(turns[:-1], thinking=thinking, tools=tools))
        thoughts = self._renderer.thoughts
        if thoughts is not None:
            header = header.partition(thoughts.begin)[0].partition(thoughts.end)[0]
        header = header.strip()
        _, found, bridge = shown.rpartition(header) if header else ("", "", "")
        if not found or prompt.endswith(bridge.rstrip(" ")):
            return self._renderer.asked(turns[:-1], tools=tools)[len(prompt) :]
        if thoughts is not None and thoughts.begin in bridge:
            return ""
        return bridge.lstrip() if prompt[-1:].isspace() else bridge

    def _empty_thought(self, said: str, message: Message) -> int | None:
        """How much of what follows a prompt is an empty thought; None where one is left open."""
        thoughts = self._renderer.thoughts
        assert thoughts is not None
        content = message["content"].strip()
        closed = said.find(thoughts.end)
        if content:
            place = said.find(content)
            if 0 <= closed < place:
                return place
            if thoughts.always and place >= 0 and not said[:place].strip():
                return None
            return 0
        begun = said.lstrip().startswith((thoughts.begin, thoughts.end))
        if not begun or closed < 0:
            return 0
        after = closed + len(thoughts.end)
        return after + len(said[after:]) - len(said[after:].lstrip())

    def _around_answer(self, turns: Sequence[Message], tools: Sequence[Tool]) -> _Around:
        """What stands around the words of the last answer, its thought left out, to the end of its
        turn.
        """
        message = turns[-1]
        marked: Message = {**message, "content": ANSWER}
        marked.pop("reasoning_content", None)
        thinking = self._thinks(message)
        whole = self._renderer([*turns[:-1], marked], thinking=thinking, tools=tools)
        before, _, after = whole.rpartition(ANSWER)
        return _Around(before, after.removesuffix(self._unsaid))

    def _spot(self, text: str, start: int) -> _Spot:
        """The spot of a last answer, of which the text ends with what the model wrote."""
        if self._end_text and text.endswith(self._end_text, start):
            return _Spot(start, len(text) - len(self._end_text), len(text), self._end)
        ended = re.search(f"{self._is_special.pattern}$", text[start:])
        if ended is not None and not self._borrowed:
            return _Spot(start, len(text), len(text), ())
        return _Spot(start, len(text), len(text), self._end)

    def _earlier(
        self, turns: Sequence[Message], number: int, text: str, tools: Sequence[Tool]
    ) -> _Spot | None:
        """Where an answer before the last stands in the text; None where it was rewritten."""
        thinking = self._thinks(turns[-1])
        shown = self._renderer(turns[: number + 1], thinking=thinking, tools=tools)
        shown = shown.removesuffix(self._unsaid)
        first = ""
        for prompt in self._prompts(turns, number, tools):
            first = first or prompt
            start = len(prompt)
            if not text.startswith(prompt) or not shown.startswith(prompt):
                continue
            spot = self._spot(shown, start)
            if turns[number].get("reasoning_content", "").strip() not in shown[start:]:
                return None
            skipped: int | None = 0
            if "reasoning_content" not in turns[number] and self._renderer.thoughts is not None:
                skipped = self._empty_thought(shown[start:], turns[number])
                if skipped is None:
                    return None
                spot = spot._replace(start=start + skipped)
            if text.startswith(shown[start : spot.stop], start):
                return self._ended(text, spot)
            if skipped and text.startswith(shown[spot.start : spot.stop], start):
                # The empty thought is before the last answer only.
                moved = spot._replace(start=start, stop=spot.stop - skipped)
                return self._ended(text, moved)
            return None
        return self._around_content(turns, number, text, first, tools)

    def _around_content(
        self, turns: Sequence[Message], number: int, text: str, prompt: str, tools: Sequence[Tool]
    ) -> _Spot | None:
        """Where the content of an answer stands whose prompt the text does not begin with.

        What stands before the answer, from its header on, must be as in the prompt.
        """
        message = turns[number]
        if "reasoning_content" in message or "tool_calls" in message:
            return None
        marked: Message = {**message, "content": ANSWER}
        conversation = [*turns[:number], marked, *turns[number + 1 :]]
        whole = self._renderer(conversation, thinking=self._thinks(turns[-1]), tools=tools)
        before, found, after = whole.partition(ANSWER)
        before = before.rstrip(" ")
        template = self.template
        header = template.answer_header.removeprefix(template.end_of_question).strip(" ")
        same = before.endswith(header) and prompt.endswith(header)
        if not found or not same or not text.startswith(before):
            return None
        stop = text.rfind(after.removesuffix(self._unsaid))
        if stop < len(before):
            return None
        return self._ended(text, _Spot(len(before), stop, stop, self._end))

    def _ended(self, text: str, spot: _Spot) -> _Spot:
        """The spot of an earlier answer, with the end that the text itself renders there."""
        rest = text[spot.stop :]
        end = self._end_text
        if self._borrowed:
            end = ""
            found = re.match(self._is_special.pattern, rest)
            if found is not None and self.encode(found[0]) in (self._end, self._end_of_call):
                end = found[0]
            return _Spot(spot.start, spot.stop, spot.stop + len(end), self.encode(end))
        if end and rest.startswith(end):
            return _Spot(spot.start, spot.stop, spot.stop + len(end), self._end)
        return _Spot(spot.start, spot.stop, spot.stop, ())

    # --- what a message says is never a special token ---------------------------------------------

    def _veiled(self, messages: Sequence[Message]) -> list[Message]:
        return [self._veiled_message(message) for message in messages]

    def _veiled_message(self, message: Message) -> Message:
        """The message with its thought apart and every text in it veiled."""
        thoughts = None
        if not self.seq2seq:
            thoughts = self._renderer.thoughts
        if thoughts is None and len(message) == 2:
            return {**message, "content": self._veil(message["content"])}
        if message["role"] != "assistant" or thoughts is None:
            return cast(Message, self._veil_all(message))
        made: Message = {**message}
        found = None
        if "reasoning_content" not in message:
            found = thoughts.split(message["content"])
        if found is not None:
            made["content"] = found[1]
            if found[0]:
                made["reasoning_content"] = found[0]
        veiled = cast(Message, self._veil_all(made))
        # In these two the marks of a thought are letters, too.
        for key in ("content", "reasoning_content"):
            if key in made:
                veiled[key] = self._veil(str(made[key]), self._looks_marked)
        return veiled

    def _veiled_tools(self, tools: Sequence[Tool]) -> list[Tool]:
        return [cast(Tool, self._veil_all(tool)) for tool in tools]

    def _veil_all(self, value: object) -> object:
        """The value with every text in it veiled, but for the roles of messages."""
        if isinstance(value, str):
            return self._veil(value)
        if isinstance(value, Mapping):
            return {
                self._veil(str(key)): part if key == "role" else self._veil_all(part)
                for key, part in value.items()
            }
        if isinstance(value, list | tuple):
            return [self._veil_all(part) for part in value]
        return value

    def _veil(self, text: str, looks: re.Pattern[str] | None = None) -> str:
        """The text with VEIL inside whatever the tokenizer would take for a special token."""
        if looks is None:
            looks = self.looks_special
        return looks.sub(lambda found: VEIL.join(found[0]), text.replace(VEIL, VEIL * 2))

    def _tokens(self, text: str) -> tuple[int, ...]:
        """Token ids of rendered text: special tokens in it are read, veiled ones are letters."""
        if VEIL not in text:
            return self.encode(text)
        tokens: list[int] = []
        # The parts are text, special token, text, ..., text.
        for place, part in enumerate(self._is_special.split(text)):
            if place % 2:
                tokens += self.encode(part)
            else:
                tokens += self._letters(re.sub(f"{VEIL}({VEIL}?)", r"\1", part))
        return tuple(tokens)

    def _letters(self, text: str) -> tuple[int, ...]:
        """Token ids of text in which nothing is a special token, whatever it reads like."""
        found = self.tokenizer(
            text, add_special_tokens=False, split_special_tokens=True, verbose=False
        )
        return tuple(found["input_ids"])

    # --- what ends a turn -------------------------------------------------------------------------

    def stops(self, thinking: bool | None = None, tools: Sequence[Tool] = ()) -> tuple[int, ...]:
        """The ids that end a turn: special tokens of the template, eos, and those it was given.

        ``thinking`` and ``tools`` are those of the prompt: the marks around a thought end no turn
        where the model is left to think, nor do those inside a call where it has tools; what ends a
        call does. BOS is none of them, but where it is the eos as well, or opens every turn.
        """
        if self.plain:
            return self._ends
        # They are found by rendering, and of the tools only whether there are any counts.
        kind = (thinking, bool(tools))
        if kind not in self._stops:
            self._stops[kind] = self._found_stops(thinking, calling=bool(tools))
        return self._stops[kind]

    def _found_stops(self, thinking: bool | None, *, calling: bool) -> tuple[int, ...]:
        t = self.template
        fixed = self.encode(t.pre_query) + self.encode(t.answer_header)
        fixed += self.encode(t.end_of_answer)
        kept: set[int] = set()
        thoughts = self._renderer.thoughts
        if thinking is None:
            thinking = self._renderer.thinking
        if thinking and thoughts is not None:
            within = self.encode(thoughts.begin + thoughts.opening + thoughts.closing)
            kept = set(within) - set(self._end)
        turns = {*self.encode(t.answer_header), *self.encode(t.end_of_answer)}
        if self.tokenizer.bos_token_id not in turns:
            kept |= set(self._bos)
        ends_of_calls: set[int] = set()
        if calling and self.call_format is not None:
            written = [
                token for token in self.encode(self._renderer.call) if token in self._special
            ]
            ends_of_calls = {*written[-1:]}
            if self._borrowed:
                ends_of_calls |= set(self._end_of_call)
            kept |= set(written) - ends_of_calls
        marks = self._special - kept
        # Reversed, so that what ends an answer comes first.
        found = [token for token in reversed(fixed) if token in marks]
        stops = _different([*found, *ends_of_calls, *self._ends])
        if not stops:
            raise ChatError(
                f"{self.name}: nothing ends a turn: no special token in the template and no eos "
                f"token"
            )
        return stops

    def _stop_token(self, text: str) -> int:
        tokens = self.encode(text)
        if len(tokens) != 1:
            raise ChatError(
                f"{self.name}: --stop {text!r} is {len(tokens)} tokens; a turn ends at one token"
            )
        return tokens[0]

    def _end_of_turn(self, *, by_hand: bool) -> tuple[str, tuple[int, ...], str]:
        """What closes an answer as text and as ids, and the text after it that is not said.

        It is the special tokens that end an answer both in the middle of a conversation and last,
        or else those that end it last. Where no text of the template ends an answer, it is the
        special token that opens the next turn, at which such models stop, or else eos: both have no
        text of their own. By hand it is the first stop, special or not.
        """
        text = self.template.end_of_answer
        self._borrowed = False
        if by_hand:
            return text, self.encode(text), ""
        special = self._is_special.pattern
        joint = self.template.joint
        if joint is not None:
            common = commonprefix([text, joint])  # noqa: RUF071 - they are no paths
            found = re.match(f".*{special}", common, re.DOTALL)
            if found is not None:
                return found[0], self.encode(found[0]), text[found.end() :]
        found = re.match(f".*?{special}+", text, re.DOTALL)
        if found is not None:
            return found[0], self.encode(found[0]), text[found.end() :]
        opening = re.match(special, joint or "")
        if opening is not None:
            ids = self.encode(opening[0])
            if ids[0] != self.tokenizer.bos_token_id:
                self._borrowed = True
                return "", ids, text
        return "", self._eos, text

    @cached_property
    def _end_of_call(self) -> tuple[int, ...]:
        """What ends an answer that calls, where no text of the template ends one: the special token
        that opens the result, as GLM's <|observation|>.
        """
        found = re.match(self._is_special.pattern, self._renderer.after_call)
        return self._end if found is None else self.encode(found[0])

    def _plain(self, record: Record) -> Example:
        """A text without a conversation: every token carries loss, but the BOS before it."""
        start = self._bos
        body = self._said_at_last(record)
        loss = (*[False] * len(start), *[True] * len(body))
        return Example((*start, *body), loss, (len(record.messages) - 1,))

    def _said_at_last(self, record: Record) -> tuple[int, ...]:
        """The last message's text and eos, for a model without a template."""
        said = self._tokens(self._veil(record.messages[-1]["content"]))
        if record.was_cut:
            return said
        return (*said, *self._eos)


def _different(ids: Iterable[int | None]) -> tuple[int, ...]:
    """The ids that are there, each once, in order."""
    return tuple(dict.fromkeys(i for i in ids if i is not None))


def _any_of(words: set[str]) -> str:
    """A pattern for the longest of the words; "" without any.

    It goes letter by letter, since some tokenizers have a thousand special tokens.
    """
    first = sorted({word[0] for word in words if word})
    if not first:
        return ""
    tails = [
        re.escape(letter) + _any_of({word[1:] for word in words if word.startswith(letter)})
        for letter in first
    ]
    may_end_here = "?" * ("" in words)
    return f"(?:{'|'.join(tails)}){may_end_here}"
