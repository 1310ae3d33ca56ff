"""Conversations as token ids: what stands before a question and around an answer, what ends a turn,
what carries loss.

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
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from os.path import commonprefix
from typing import TYPE_CHECKING

from replaykit import models
from replaykit.errors import ChatError
from replaykit.records import Message, Record
from replaykit.settings import ChatOptions
from replaykit.template import Renderer, Template

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

# Stands between the letters of what only reads like a special token, while a template is rendered
# around it. Unicode keeps this code point for a program's own use; where a text has it all the
# same, it is doubled.
VEIL = "\ufdd0"


@dataclass(frozen=True)
class Example:
    """Token ids of a conversation, and which of them carry loss (the answers' own tokens and their
    end-of-turn).
    """

    tokens: tuple[int, ...]
    loss: tuple[bool, ...]

    @property
    def loss_tokens(self) -> int:
        return sum(self.loss)


class Chat:
    """A tokenizer and the template derived from it. Raises ChatError, saying why, where none can be
    derived.

    A tokenizer without a template is that of a base model (``plain``): it holds texts, and no
    conversation. With ``seq2seq`` it is that of an encoder-decoder such as Flan-T5, which needs no
    template: it is asked and it answers.
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
        self.tokenizer = tokenizer
        self.name = name
        options = options or ChatOptions()
        self.seq2seq = seq2seq
        self.plain = not tokenizer.chat_template and options.pre_query is None
        special = {i: token for i, token in tokenizer.added_tokens_decoder.items() if token.special}
        self._special = set(special)
        marks = sorted(special.values(), key=lambda mark: -len(mark.content))
        spaced = "|".join(
            r"\s*" * mark.lstrip + re.escape(mark.content) + r"\s*" * mark.rstrip for mark in marks
        )
        self._is_special = re.compile(f"({spaced or '(?!)'})")
        self.looks_special = re.compile(
            _any_of({mark.content for mark in marks}) if marks else "(?!)"
        )
        ends = [
            tokenizer.eos_token_id,
            *more_stops,
            *(self._stop_token(text) for text in options.stop),
        ]
        if self.plain:
            self.stop = tuple(dict.fromkeys(i for i in ends if i is not None))
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
        config = models.generation_config(model, revision)
        ids = config.eos_token_id if config else None
        stops = ids if isinstance(ids, list) else [ids] if ids is not None else []
        pair = models.encoder_decoder(model, revision)
        return cls(
            models.load_tokenizer(model, revision),
            name=model,
            more_stops=stops,
            options=options,
            seq2seq=pair,
        )

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
        """Token ids up to where a user would begin a conversation. Raises ChatError for a base
        model.
        """
        return self.asking(())

    @property
    def start(self) -> tuple[int, ...]:
        """What a text begins with: BOS, or where there is none the eos token that ends the text
        before.
        """
        first = (
            self.tokenizer.bos_token_id
            if self.tokenizer.bos_token_id is not None
            else self.tokenizer.eos_token_id
        )
        if first is None:
            raise ChatError(
                f"{self.name} has neither a BOS nor an eos token, so there is nothing to begin a "
                f"text with"
            )
        return (first,)

    @property
    def end_of_turn(self) -> tuple[int, ...]:
        """Token ids that close every answer; without a template the eos token that ends a text, if
        there is one.
        """
        return self._eos if self.plain or self.seq2seq else self._end

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
        """Token ids up to where a user would go on with the conversation: the pre-query where it
        has not begun.

        The space of "[INST] " is left to the model, too.
        """
        assert self.template
        return self._tokens(self._renderer.asking(self._veiled(messages)).rstrip(" "))

    def example(self, record: Record) -> Example:
        """The record as the trainer sees it: each prompt as the model is given it, each answer as
        it would have written it.

        It ends with the last end of turn. An answer that opens a conversation answers nothing, and
        carries no loss; nor do the answers before the last where the template rewrites earlier
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
            asked, answer = self._exchange(messages[: number + 1])
            if not asked.startswith(written):
                tokens = []
                loss = []
                written = ""
            head = self._tokens(asked[len(written) :])
            said = self._tokens(answer)
            tokens += [*head, *said, *self._end]
            loss += [False] * len(head) + [True] * (len(said) + len(self._end))
            written = asked + answer + self.template.end_of_answer.removesuffix(self._unsaid)
        return Example(tuple(tokens), tuple(loss))

    def _pair(self, record: Record) -> Example:
        """A question for an encoder, and the answer for a decoder; without an answer nothing
        carries loss.
        """
        if record.messages[-1]["role"] != "assistant":
            asked = self.prompt(record.messages)
            return Example(asked, (False,) * len(asked))
        asked = self.prompt(record.messages[:-1])
        said = (*self._tokens(self._veil(record.messages[-1]["content"])), *self._eos)
        return Example((*asked, *said), (*[False] * len(asked), *[True] * len(said)))

    @property
    def _eos(self) -> tuple[int, ...]:
        return tuple(i for i in [self.tokenizer.eos_token_id] if i is not None)

    def _exchange(self, messages: Sequence[Message]) -> tuple[str, str]:
        """The text before the last answer and its own text, as the template shows them.

        Where it shows an answer otherwise than it asks for one, as if the model had not thought,
        the answer stands as it is.
        """
        render = self._renderer
        end = self.template.end_of_answer
        asked = render.asked(messages[:-1])
        shown = render(messages)
        for before in (asked.rstrip(" "), render(messages[:-1], answer=True).rstrip(" ")):
            if shown.startswith(before) and shown.endswith(end):
                return before, shown[len(before) : len(shown) - len(end)]
        return asked.rstrip(" "), asked[len(asked.rstrip(" ")) :] + messages[-1]["content"]

    # --- what a message says is never a special token ---------------------------------------------

    def _veiled(self, messages: Sequence[Message]) -> list[Message]:
        return [{**message, "content": self._veil(message["content"])} for message in messages]

    def _veil(self, text: str) -> str:
        """The text with VEIL inside whatever the tokenizer would take for a special token."""
        return self.looks_special.sub(
            lambda found: VEIL.join(found[0]), text.replace(VEIL, VEIL * 2)
        )

    def _tokens(self, text: str) -> tuple[int, ...]:
        """Token ids of rendered text: the special tokens of the template are read, what is veiled
        is letters.
        """
        if VEIL not in text:
            return self.encode(text)
        tokens: list[int] = []
        for place, part in enumerate(
            self._is_special.split(text)
        ):  # text, special token, text, ..., text
            tokens += (
                self.encode(part)
                if place % 2
                else self._letters(re.sub(f"{VEIL}({VEIL}?)", r"\1", part))
            )
        return tuple(tokens)

    def _letters(self, text: str) -> tuple[int, ...]:
        return tuple(
            self.tokenizer(text, add_special_tokens=False, split_special_tokens=True)["input_ids"]
        )

    # --- what ends a turn -------------------------------------------------------------------------

    def _stops(self, ends: Sequence[int | None]) -> tuple[int, ...]:
        """The ids that end a turn: each special token of the fixed text (but BOS), eos, and those
        the model names.

        In some models eos is the BOS as well.
        """
        t = self.template
        found = [
            i for text in (t.pre_query, t.answer_header, t.end_of_answer) for i in self.encode(text)
        ]
        thoughts = set(self.encode(t.thought)) if t.thinking and t.thought else set()
        marks = [
            i
            for i in reversed(found)
            if i in self._special - thoughts and i != self.tokenizer.bos_token_id
        ]
        stops = dict.fromkeys(i for i in [*marks, *ends] if i is not None)
        if not stops:
            raise ChatError(
                f"{self.name}: nothing ends a turn: no special token in the template and no eos "
                f"token"
            )
        return tuple(stops)

    def _stop_token(self, text: str) -> int:
        tokens = self.encode(text)
        if len(tokens) != 1:
            raise ChatError(
                f"{self.name}: --stop {text!r} is {len(tokens)} tokens; a turn ends at one token"
            )
        return tokens[0]

    def _end_of_turn(self, *, by_hand: bool) -> tuple[tuple[int, ...], str]:
        """What closes an answer, and the text after it: the special tokens that end one both in the
        middle of a conversation and last, or else those that end it last, or else eos. By hand it
        is the first stop, special or not.
        """
        text = self.template.end_of_answer
        joint = self.template.joint
        if by_hand:
            return self.encode(text), ""
        for ending in (commonprefix([text, joint or text]), text):  # noqa: RUF071 - they are no paths
            if found := re.match(f".*?{self._is_special.pattern}+", ending, re.DOTALL):
                return self.encode(found[0]), text[found.end() :]
        eos = self.tokenizer.eos_token_id
        return ((eos,) if eos is not None else ()), text

    def _plain(self, record: Record) -> Example:
        """A text without a conversation: every token carries loss, but the BOS before it. One that
        was cut has no end.
        """
        start = [i for i in [self.tokenizer.bos_token_id] if i is not None]
        end = self._eos if record.meta.get("finish") != "length" else ()
        body = [*self._tokens(self._veil(record.messages[0]["content"])), *end]
        return Example((*start, *body), (*[False] * len(start), *[True] * len(body)))


def _any_of(words: set[str]) -> str:
    """A pattern for the longest of the words, letter by letter: some tokenizers have a thousand
    special tokens.
    """
    first = sorted({word[0] for word in words if word})
    tails = [
        re.escape(letter) + _any_of({word[1:] for word in words if word.startswith(letter)})
        for letter in first
    ]
    return f"(?:{'|'.join(tails)}){'?' * ('' in words)}" if tails else ""
