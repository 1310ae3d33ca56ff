"""Chat templates, read from the tokenizer itself: what stands before a question, around an answer, and what ends them.

For Meta-Llama-3-Instruct, ``Chat`` finds

    pre_query      <|begin_of_text|><|start_header_id|>user<|end_header_id|>\n\n
    answer_header  <|eot_id|><|start_header_id|>assistant<|end_header_id|>\n\n
    end_of_answer  <|eot_id|>
    stop           128009 <|eot_id|>, 128006 <|start_header_id|>, 128007 <|end_header_id|>, ...

by rendering sentinels and cutting at them; no table of model families. The parts are tokenised as they stand, without
further special tokens, so there is never a second BOS. What a message says is only text: "<|eot_id|>" in a question is
its letters, never the token, so no row can end a turn or open another one.

Magpie (Xu et al., arXiv 2406.08464) calls ``pre_query`` the pre-query template; its released code has it by hand for 36
models.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from replaykit import models
from replaykit.errors import ChatError
from replaykit.records import Message, Record

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

# Text that no template contains or rewrites, and that does not begin or end with a space.
QUESTION, OTHER_QUESTION, ANSWER = "q7Zx1Kw", "Vd93mYt", "b5Ru8Jn"

# Stands between the letters of what only reads like a special token, while a template is rendered around it. Unicode keeps
# this code point for a program's own use; where a text has it all the same, it is doubled.
VEIL = "\ufdd0"


@dataclass(frozen=True)
class Template:
    """The fixed text of one exchange. ``answer_header`` runs from the end of the question to the start of the answer."""

    pre_query: str
    end_of_question: str
    answer_header: str
    end_of_answer: str


@dataclass(frozen=True)
class Example:
    """Token ids of a conversation, and which of them carry loss (the answers' own tokens and their end-of-turn)."""

    tokens: tuple[int, ...]
    loss: tuple[bool, ...]

    @property
    def loss_tokens(self) -> int:
        return sum(self.loss)


class Chat:
    """A tokenizer and the template derived from it. Raises ChatError, saying why, where none can be derived."""

    def __init__(self, tokenizer: PreTrainedTokenizerBase, *, name: str = "the model", more_stops: Sequence[int] = ()):
        self.tokenizer, self.name = tokenizer, name
        if not tokenizer.chat_template:
            raise ChatError(f"{name} has no chat template, so it is not a chat model; use its -Instruct or -it version")
        special = {i: token for i, token in tokenizer.added_tokens_decoder.items() if token.special}
        self._special = set(special)
        marks = sorted(special.values(), key=lambda mark: -len(mark.content))
        spaced = "|".join(r"\s*" * mark.lstrip + re.escape(mark.content) + r"\s*" * mark.rstrip for mark in marks)
        self._is_special = re.compile(f"({spaced or '(?!)'})")
        self._looks_special = re.compile(_any_of({mark.content for mark in marks}) if marks else "(?!)")
        self.template = self._derive()
        self._end, self._unsaid = self._end_of_turn(self.template.end_of_answer)
        # The space of "[INST] " is the beginning of the question's first token, so the model is left to write it.
        self.pre_query = self.encode(self.template.pre_query.rstrip(" "))
        self.stop = self._stops(more_stops)

    @classmethod
    def load(cls, model: str, revision: str | None = None) -> Chat:
        """The chat of a model: an alias, a Hub id or a folder."""
        return cls(
            models.load_tokenizer(model, revision), name=model, more_stops=models.generation_stops(model, revision)
        )

    def encode(self, text: str) -> tuple[int, ...]:
        """Token ids of text as it stands: special tokens in it are read, none is added."""
        return tuple(self.tokenizer(text, add_special_tokens=False)["input_ids"])

    def decode(self, tokens: Sequence[int], *, special: bool = False) -> str:
        """The text of token ids, by default without special tokens."""
        return str(self.tokenizer.decode(list(tokens), skip_special_tokens=not special))

    def prompt(self, messages: Sequence[Message]) -> tuple[int, ...]:
        """Token ids up to where the model answers the last message."""
        return self._tokens(self._render(self._veiled(messages), answer=True))

    def example(self, record: Record) -> Example:
        """The record as the trainer sees it: each prompt as the model is given it, each answer as it would have written it.

        It ends with the last end of turn. An answer that opens a conversation answers nothing, and carries no loss. Raises
        ChatError if the template rewrites earlier turns, so that no single sequence holds the conversation.
        """
        if record.messages[0]["role"] == "text":
            return self._plain(record.messages[0]["content"])
        messages = self._veiled(record.messages)
        tokens: list[int] = []
        loss: list[bool] = []
        written, end = "", self.template.end_of_answer
        for number, message in enumerate(messages):
            if message["role"] != "assistant" or number == 0:
                continue
            asked, said = self._render(messages[:number], answer=True), self._render(messages[: number + 1])
            if not asked.startswith(written):
                raise ChatError(f"{self.name}: its template rewrites earlier turns; train on single-turn records only")
            if not (said.startswith(asked) and said.endswith(end)):
                raise ChatError(f"{self.name}: its chat template does not show an answer where it asks for one")
            head = self._tokens(asked[len(written) :])
            answer = self._tokens(said[len(asked) : len(said) - len(end)])
            tokens += [*head, *answer, *self._end]
            loss += [False] * len(head) + [True] * (len(answer) + len(self._end))
            written = said[: len(said) - len(self._unsaid)]
        return Example(tuple(tokens), tuple(loss))

    # --- what a message says is never a special token ---------------------------------------------------------------

    def _veiled(self, messages: Sequence[Message]) -> list[Message]:
        return [{**message, "content": self._veil(message["content"])} for message in messages]

    def _veil(self, text: str) -> str:
        """The text with VEIL inside whatever the tokenizer would take for a special token."""
        return self._looks_special.sub(lambda found: VEIL.join(found[0]), text.replace(VEIL, VEIL * 2))

    def _tokens(self, text: str) -> tuple[int, ...]:
        """Token ids of rendered text: the special tokens of the template are read, what is veiled is letters."""
        if VEIL not in text:
            return self.encode(text)
        tokens: list[int] = []
        for place, part in enumerate(self._is_special.split(text)):  # text, special token, text, ..., text
            tokens += self.encode(part) if place % 2 else self._letters(re.sub(f"{VEIL}({VEIL}?)", r"\1", part))
        return tuple(tokens)

    def _letters(self, text: str) -> tuple[int, ...]:
        return tuple(self.tokenizer(text, add_special_tokens=False, split_special_tokens=True)["input_ids"])

    # --- how it is derived ------------------------------------------------------------------------------------------

    def _render(self, messages: Sequence[Message], *, answer: bool = False) -> str:
        from jinja2.exceptions import TemplateError

        try:
            rows: Any = [dict(message) for message in messages]
            return str(self.tokenizer.apply_chat_template(rows, tokenize=False, add_generation_prompt=answer))
        except (TemplateError, TypeError, ValueError, KeyError) as error:
            roles = ", ".join(message["role"] for message in messages)
            raise ChatError(f"{self.name}: its chat template refuses a conversation of {roles}: {error}") from error

    def _derive(self) -> Template:
        user = [{"role": "user", "content": QUESTION}]
        alone = self._render(user)
        if alone.count(QUESTION) != 1:
            raise ChatError(f"{self.name}: its chat template shows a question {alone.count(QUESTION)} times, not once")
        pre_query, end_of_question = alone.split(QUESTION)
        asked = self._render(user, answer=True)
        if not asked.startswith(pre_query + QUESTION):
            raise ChatError(
                f"{self.name}: its chat template changes what stands before a question when an answer is due"
            )
        other = self._render([{"role": "user", "content": OTHER_QUESTION}])
        if not other.startswith(pre_query + OTHER_QUESTION):
            raise ChatError(f"{self.name}: its chat template depends on what the question says")
        whole = self._render([*user, {"role": "assistant", "content": ANSWER}])
        if whole.count(ANSWER) != 1:
            raise ChatError(f"{self.name}: its chat template shows an answer {whole.count(ANSWER)} times, not once")
        return Template(pre_query, end_of_question, asked.split(QUESTION)[1], whole.split(ANSWER)[1])

    def _stops(self, more: Sequence[int]) -> tuple[int, ...]:
        """The ids that end a turn: each special token of the fixed text (but BOS), eos, and those the model names."""
        fixed = (self.template.pre_query, self.template.answer_header, self.template.end_of_answer)
        found = [i for text in fixed for i in self.encode(text) if i in self._special]
        ends = [self.tokenizer.eos_token_id, *more]
        stops = dict.fromkeys(
            i for i in [*reversed(found), *ends] if i is not None and i != self.tokenizer.bos_token_id
        )
        if not stops:
            raise ChatError(f"{self.name}: nothing ends a turn: no special token in the template and no eos token")
        return tuple(stops)

    def _end_of_turn(self, text: str) -> tuple[tuple[int, ...], str]:
        """What closes an answer, up to its first special token, and the text after it; eos where there is no such token."""
        if mark := self._is_special.search(text):
            return self.encode(text[: mark.end()]), text[mark.end() :]
        eos = self.tokenizer.eos_token_id
        return ((eos,) if eos is not None else ()), text

    def _plain(self, text: str) -> Example:
        """A text without a conversation: every token carries loss, but the BOS before it."""
        start = [i for i in [self.tokenizer.bos_token_id] if i is not None]
        body = [*self._tokens(self._veil(text)), *(i for i in [self.tokenizer.eos_token_id] if i is not None)]
        return Example((*start, *body), (*[False] * len(start), *[True] * len(body)))


def _any_of(words: set[str]) -> str:
    """A pattern for the longest of the words, letter by letter: some tokenizers have a thousand special tokens."""
    first = sorted({word[0] for word in words if word})
    tails = [re.escape(letter) + _any_of({word[1:] for word in words if word.startswith(letter)}) for letter in first]
    return f"(?:{'|'.join(tails)}){'?' * ('' in words)}" if tails else ""
