"""What the model wrote in one generation, by address.

    address                             in its ledger             as a request
    Address("question", 7)              7 in questions.jsonl      14
    Address("answer", 7)                7 in answers.jsonl        15
    Address("answer", 7, answer=2)      23, of three answers      47

Ledgers and requests know an address only as a number; ``Numbering`` converts one to the other.
Answers of a model that thinks or calls tools are in the ledger as they were split when they came:

    {"row": 7, "text": "It is 7 C.", "finish": "stop", "tokens": 31, "thought": "valid",
     "reasoning_content": "I know that."}
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

from replaykit.data.ledger import Ledger, LedgerRow
from replaykit.data.record import Message
from replaykit.errors import RunError
from replaykit.model.chat import Thought

Part = Literal["question", "answer"]
ROLES: dict[Part, Literal["user", "assistant"]] = {"question": "user", "answer": "assistant"}
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


class Written(NamedTuple):
    """What the model wrote, its thought and its calls apart."""

    message: Message
    finish: str
    """"stop", or "length" where it was cut at the token limit."""
    special: bool = False
    """Whether there was a special token in its texts, which do not show it."""
    thought: Thought | None = None
    """What became of its thought; None where the model neither thinks nor has tools."""
    unread_call: bool = False
    """Whether it begins a call that cannot be read."""

    @property
    def text(self) -> str:
        """What it says, without the spaces around it."""
        text = self.message["content"]
        # The limit may fall inside a letter of several tokens. What is there of it reads as this.
        if self.finish == "length":
            text = text.rstrip(REPLACEMENT)
        return text.strip()


class Replies:
    """The questions and the answers of one generation. They stay in their two ledgers."""

    def __init__(self, questions: Ledger, answers: Ledger, numbering: Numbering) -> None:
        self.numbering = numbering
        self._ledgers: dict[Part, Ledger] = {"question": questions, "answer": answers}

    def __contains__(self, address: Address) -> bool:
        return self.numbering.in_ledger(address) in self._ledgers[address.part]

    def __getitem__(self, address: Address) -> Written:
        line = self._ledgers[address.part][self.numbering.in_ledger(address)]
        message: Message = {"role": ROLES[address.part], "content": str(line["text"])}
        if "reasoning_content" in line:
            message["reasoning_content"] = line["reasoning_content"]
        if "tool_calls" in line:
            message["tool_calls"] = line["tool_calls"]
        written = Written(
            message,
            line["finish"],
            bool(line.get("special")),
            line.get("thought"),
            bool(line.get("unread_call")),
        )
        message["content"] = written.text
        return written

    def split(self, address: Address) -> Written:
        """An answer of a model that thinks or has tools.

        Raises RunError for one that an earlier version of replaykit wrote, its thought in its text:
        what special tokens marked the thought is not known any more.
        """
        written = self[address]
        if written.thought is None:
            raise RunError(
                f"answers.jsonl: row {address.row} was written by an earlier version of replaykit, "
                "which did not keep thoughts and calls apart from answers; remove answers.jsonl "
                "from the step's folder, and all answers are made again"
            )
        return written

    def write(self, address: Address, written: Written, tokens: int) -> None:
        """Appends a text of so many tokens to its ledger, at once."""
        message = written.message
        line: LedgerRow = {
            "row": self.numbering.in_ledger(address),
            "text": message["content"],
            "finish": written.finish,
            "tokens": tokens,
        }
        more: dict[str, Any] = {
            "special": written.special,
            "thought": written.thought,
            "reasoning_content": message.get("reasoning_content"),
            "tool_calls": message.get("tool_calls"),
            "unread_call": written.unread_call,
        }
        self._ledgers[address.part].append(line | {key: said for key, said in more.items() if said})
