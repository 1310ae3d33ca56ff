"""What the model wrote in one generation, by address.

    address                             in its ledger             as a request
    Address("question", 7)              7 in questions.jsonl      14
    Address("answer", 7)                7 in answers.jsonl        15
    Address("answer", 7, answer=2)      23, of three answers      47

Ledgers and requests know an address only as a number; ``Numbering`` converts one to the other.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, NamedTuple

from replaykit.data.ledger import Ledger
from replaykit.engines import Completion
from replaykit.model.chat import Chat

Part = Literal["question", "answer"]
REPLACEMENT = "\ufffd"  # what decoding makes of bytes that are no whole letter


@dataclass(frozen=True)
class Address:
    """A question or an answer: of which row, in which turn, and the number of the answer where
    there are several.
    """

    part: Part
    row: int
    turn: int = 0
    answer: int = 0


@dataclass(frozen=True)
class Numbering:
    """Addresses as numbers.

    The ledgers of earlier runs hold these numbers, and seeds are derived from them. With other
    numbers such a run could not be resumed, and would give other rows.
    """

    turns: int
    """Questions of one row."""
    answers: int
    """Answers to each question."""

    def in_ledger(self, address: Address) -> int:
        """The number of a text in the ledger of its part."""
        return address.row * self._size(address.part) + self.in_row(address)

    def in_row(self, address: Address) -> int:
        """The number of a text among those of its part in the same row."""
        if address.part == "question":
            return address.turn
        return address.turn * self.answers + address.answer

    def of_request(self, address: Address) -> int:
        """The number of a request: even for a question, odd for an answer, since one stream has
        both.
        """
        return 2 * self.in_ledger(address) + (address.part == "answer")

    def address(self, request: int) -> Address:
        """The address that ``of_request`` gave this number."""
        line, is_answer = divmod(request, 2)
        if not is_answer:
            row, turn = divmod(line, self._size("question"))
            return Address("question", row, turn)
        row, in_row = divmod(line, self._size("answer"))
        turn, answer = divmod(in_row, self.answers)
        return Address("answer", row, turn, answer)

    def _size(self, part: Part) -> int:
        """How many texts of the part a row has."""
        return self.turns if part == "question" else self.turns * self.answers


class Reply(NamedTuple):
    """What the model wrote, without the spaces around it."""

    text: str
    finish: str
    """"stop", or "length" where it was cut at the token limit."""
    special: bool
    """Whether a special token was among its tokens; the text does not show it."""
    in_thought: bool
    """Whether it was cut before its thought was closed, so that there is no answer yet."""


class Replies:
    """The questions and the answers of one generation. They stay in their two ledgers."""

    def __init__(self, questions: Ledger, answers: Ledger, numbering: Numbering) -> None:
        self.numbering = numbering
        self._ledgers: dict[Part, Ledger] = {"question": questions, "answer": answers}

    def __contains__(self, address: Address) -> bool:
        return self.numbering.in_ledger(address) in self._ledgers[address.part]

    def __getitem__(self, address: Address) -> Reply:
        line = self._ledgers[address.part][self.numbering.in_ledger(address)]
        text = str(line["text"])
        # The limit may fall inside a letter of several tokens. What is there of it reads as this.
        if line["finish"] == "length":
            text = text.rstrip(REPLACEMENT)
        special = bool(line.get("special"))
        return Reply(text.strip(), line["finish"], special, line.get("thought") == "cut")

    def write(self, completion: Completion, chat: Chat) -> Address:
        """Appends a completion to its ledger, at once; returns its address."""
        address = self.numbering.address(completion.row)
        line = {
            "row": self.numbering.in_ledger(address),
            "text": chat.decode(completion.tokens),
            "finish": completion.finish_reason,
            "tokens": len(completion.tokens),
        }
        if chat.special_in(completion.tokens):
            line["special"] = True
        if address.part == "answer" and completion.finish_reason == "length":
            thought = chat.reply(completion.tokens).thought
            if thought == "cut":
                line["thought"] = thought
        self._ledgers[address.part].append(line)
        return address
