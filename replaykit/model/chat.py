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
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property
from os.path import commonprefix
from typing import TYPE_CHECKING

from replaykit.data.record import Message, Record
from replaykit.errors import ChatError
from replaykit.model import loading
from replaykit.model.template import Renderer, Template
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

    @property
    def loss_tokens(self) -> int:
        """How many tokens carry loss."""
        return sum(self.loss)


class Chat:
    """A tokenizer and the template derived from it.

    A tokenizer without a template is that of a base model (``plain``): it holds texts, and no
    conversation. With ``seq2seq`` it is that of an encoder-decoder such as Flan-T5, which needs no
    template: it is asked and it answers. Raises ChatError, saying why, where no template can be
    derived.
    """

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
        self.plain = not tokenizer.chat_template and options.pre_query is None
        self._find_special_tokens()
        texts = [self._stop_token(text) for text in options.stop]
        ends = [tokenizer.eos_token_id, *more_stops, *texts]
        if self.plain:
            self.stop = _different(ends)
            return
        self._renderer = Renderer(tokenizer, options, name=name)
        if self.template.thinking and self.looks_special.search(self._renderer.unsaid):
            raise ChatError(
                f"{name}: its thoughts stand between special tokens, which the text of a record "
                f"cannot hold; leave it out"
            )
        self._end, self._unsaid = self._end_of_turn(by_hand=options.pre_query is not None)
        self.stop = self._stops(ends)

    @classmethod
    def load(
        cls, model: str, revision: str | None = None, options: ChatOptions | None = None
    ) -> Chat:
        """The chat of a model: an alias, a Hub id or a folder."""
        config = loading.generation_config(model, revision)
        stops: list[int] = []
        if config is not None and config.eos_token_id is not None:
            ids = config.eos_token_id  # one id, or several in a list, as Llama 3 has them
            stops = ids if isinstance(ids, list) else [ids]
        return cls(
            loading.load_tokenizer(model, revision),
            name=model,
            more_stops=stops,
            options=options,
            seq2seq=loading.encoder_decoder(model, revision),
        )

    def _find_special_tokens(self) -> None:
        added = self.tokenizer.added_tokens_decoder
        special = {i: token for i, token in added.items() if token.special}
        self._special = set(special)
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
        return tuple(self.tokenizer(text, add_special_tokens=False)["input_ids"])

    def decode(self, tokens: Sequence[int], *, special: bool = False) -> str:
        """The text of token ids, by default without special tokens."""
        return str(self.tokenizer.decode(list(tokens), skip_special_tokens=not special))

    def special_in(self, tokens: Sequence[int]) -> bool:
        """Whether there is a special token among them, which ``decode`` would leave out."""
        return not self._special.isdisjoint(tokens)

    def prompt(self, messages: Sequence[Message]) -> tuple[int, ...]:
        """Token ids up to where the model answers the last message.

        The space of "[/INST] " is the beginning of the answer's first token, so the model is left
        to write it. For an encoder-decoder it is what the messages say, a line break between them,
        and its eos token.
        """
        if self.seq2seq:
            said = "\n".join(message["content"] for message in messages)
            return (*self._tokens(self._veil(said)), *self._eos)
        assert self.template
        return self._tokens(self._renderer.asked(self._veiled(messages)).rstrip(" "))

    def asking(self, messages: Sequence[Message]) -> tuple[int, ...]:
        """Token ids up to where a user would go on: the pre-query where nothing was said yet.

        The space of "[INST] " is left to the model, too.
        """
        assert self.template
        return self._tokens(self._renderer.asking(self._veiled(messages)).rstrip(" "))

    def example(self, record: Record) -> Example:
        """The record as the trainer sees it.

        Each prompt is as the model is given it, each answer as it would have written it, and the
        end of the last turn closes the row. An answer that opens a conversation answers nothing,
        and carries no loss; nor do the answers before the last where the template rewrites earlier
        turns, as those do that take thoughts out of them. Of an encoder-decoder the last answer
        carries loss, and what stands before it is the question.
        """
        if self.seq2seq:
            return self._pair(record)
        if record.messages[0]["role"] == "text":
            return self._plain(record)
        assert self.template
        messages = self._veiled(record.messages)
        tokens: list[int] = []
        loss: list[bool] = []
        written = ""
        for number, message in enumerate(messages):
            if message["role"] != "assistant" or number == 0:
                continue
            prompt, answer = self._exchange(messages[: number + 1])
            # The template shows the earlier turns otherwise now, so what was written of them goes.
            if not prompt.startswith(written):
                tokens = []
                loss = []
                written = ""
            head = self._tokens(prompt[len(written) :])
            said = self._tokens(answer)
            tokens += [*head, *said, *self._end]
            loss += [False] * len(head) + [True] * (len(said) + len(self._end))
            written = prompt + answer + self.template.end_of_answer.removesuffix(self._unsaid)
        return Example(tuple(tokens), tuple(loss))

    def _pair(self, record: Record) -> Example:
        """A question for an encoder, and the answer for a decoder, if there is one."""
        if record.messages[-1]["role"] != "assistant":
            question = self.prompt(record.messages)
            return Example(question, (False,) * len(question))
        question = self.prompt(record.messages[:-1])
        answer = (*self._tokens(self._veil(record.messages[-1]["content"])), *self._eos)
        return Example((*question, *answer), (*[False] * len(question), *[True] * len(answer)))

    @property
    def _eos(self) -> tuple[int, ...]:
        return _different([self.tokenizer.eos_token_id])

    def _exchange(self, messages: Sequence[Message]) -> tuple[str, str]:
        """The text before the last answer and its own text, as the template shows them.

        Where it shows an answer otherwise than it asks for one, as if the model had not thought,
        the answer stands as it is.
        """
        render = self._renderer
        end = self.template.end_of_answer
        prompt = render.asked(messages[:-1])
        shown = render(messages)
        # Spaces at the end of a prompt are the beginning of the answer's first token.
        bare = prompt.rstrip(" ")
        for before in (bare, render(messages[:-1], answer=True).rstrip(" ")):
            if shown.startswith(before) and shown.endswith(end):
                return before, shown[len(before) : len(shown) - len(end)]
        return bare, prompt[len(bare) :] + messages[-1]["content"]

    # --- what a message says is never a special token ---------------------------------------------

    def _veiled(self, messages: Sequence[Message]) -> list[Message]:
        return [{**message, "content": self._veil(message["content"])} for message in messages]

    def _veil(self, text: str) -> str:
        """The text with VEIL inside whatever the tokenizer would take for a special token."""
        return self.looks_special.sub(
            lambda found: VEIL.join(found[0]), text.replace(VEIL, VEIL * 2)
        )

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
        found = self.tokenizer(text, add_special_tokens=False, split_special_tokens=True)
        return tuple(found["input_ids"])

    # --- what ends a turn -------------------------------------------------------------------------

    def _stops(self, ends: Sequence[int | None]) -> tuple[int, ...]:
        """The ids that end a turn: special tokens of the template, eos, and those of ``ends``.

        BOS is none of them, but where it is the eos as well, as in some models.
        """
        t = self.template
        fixed = self.encode(t.pre_query) + self.encode(t.answer_header)
        fixed += self.encode(t.end_of_answer)
        thoughts: set[int] = set()
        if t.thinking and t.thought:
            thoughts = set(self.encode(t.thought))
        marks = self._special - thoughts - {self.tokenizer.bos_token_id}
        # Reversed, so that what ends an answer comes first.
        stops = _different([*(i for i in reversed(fixed) if i in marks), *ends])
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

    def _end_of_turn(self, *, by_hand: bool) -> tuple[tuple[int, ...], str]:
        """The ids that close an answer, and the text after them that is not said.

        They are the special tokens that end an answer both in the middle of a conversation and
        last, or else those that end it last, or else eos. By hand it is the first stop, special or
        not.
        """
        text = self.template.end_of_answer
        if by_hand:
            return self.encode(text), ""
        joint = self.template.joint or text
        for ending in (commonprefix([text, joint]), text):  # noqa: RUF071 - they are no paths
            found = re.match(f".*?{self._is_special.pattern}+", ending, re.DOTALL)
            if found is not None:
                return self.encode(found[0]), text[found.end() :]
        return self._eos, text

    def _plain(self, record: Record) -> Example:
        """A text without a conversation: every token carries loss, but the BOS before it."""
        start = _different([self.tokenizer.bos_token_id])
        end = self._eos
        if record.meta.get("finish") == "length":
            end = ()  # it was cut, so its end is not known
        body = [*self._tokens(self._veil(record.messages[0]["content"])), *end]
        return Example((*start, *body), (*[False] * len(start), *[True] * len(body)))


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
