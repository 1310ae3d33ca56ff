"""What a row says so far, and what the model has to write next in it.

    nothing yet            ->  a request for its first question
    a question             ->  a request for its answer, or for several answers
    a question, an answer  ->  a request for the next question, or the record of the row
    a question, and an answer that calls tools or was cut at the token limit  ->  the record
    an old row whose answer cannot be compared (``verified``)  ->  its record, with that answer

A result of a call is never made up, so a conversation ends with the answer that calls.

Everything is read from the replies, so a row goes on in the same way after an interruption.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from replaykit.checks.calls import begins_call, call_fault
from replaykit.checks.sieve import Sieve, Verdict
from replaykit.data.record import FINISH, Message, Record, apart, message_of
from replaykit.engines import Completion, Request, Sampling
from replaykit.errors import ChatError, RecipeError
from replaykit.hashing import derive_seed
from replaykit.model.chat import Chat, Reply, Thought
from replaykit.steps.generate.answering import Answering
from replaykit.steps.generate.job import Job, kind_of
from replaykit.steps.generate.replies import Address, Part, Replies, Written
from replaykit.steps.generate.steer import sampling_of, schedule_of, system_of
from replaykit.steps.generate.verified import (
    OWN,
    PATH,
    REFERENCE_PATH,
    RIGHT,
    WHY,
    not_asked,
    not_kept,
)

# What the meta of a record says under names of ours. What the user's prompts have under the same
# names stands in meta["prompt"]: their "finish", say, tells nothing of the answer made here.
PROMPT = "prompt"
OWN_META = frozenset(
    {"row", "parent", PROMPT, "finish", "answer", "system", "model", "answer_temperature"}
    | {"temperature", "top_p", "top_k", "twin", "match", "perplexity", "tags", "reward"}
    | {"thinking", "wrong_call", PATH, WHY}
)
CUT: Mapping[str, Any] = {FINISH: "length"}


class Settled(NamedTuple):
    """A record with the number of its row, and why it is dropped, if it is."""

    row: int
    record: Record
    verdict: Verdict | None
    thought: Thought | None = None
    """Of its last answer, where that was asked for with a thought."""


class Next(NamedTuple):
    """What comes next in a row. One of the two is empty."""

    requests: list[Request]
    records: list[Settled]


class Draft(NamedTuple):
    """What becomes a record: its messages, why it is dropped, and its own part of the meta."""

    messages: Sequence[Message]
    verdict: Verdict | None = None
    meta: Mapping[str, Any] = {}
    answer: Address | None = None
    """The last answer, if there is one."""


class Conversations:
    """The conversations of one generation, by row. No prompt may have ``limit`` tokens or more.

    Raises ChatError where the model's template ignores the system prompts of the recipe,
    RecipeError where the model has no sampling to draw questions with, and what ``Answering``
    raises.
    """

    def __init__(self, chat: Chat, job: Job, replies: Replies, *, limit: int) -> None:
        self.chat = chat
        self.job = job
        self.replies = replies
        self.limit = limit
        self.kind = kind_of(chat, job.prompts)
        self.settings = job.settings
        self.answering = Answering(chat, job.settings, job.seed, job.prompts)
        deployed = job.deployed or {}
        self._schedule = schedule_of(job.settings, deployed)
        self._check()
        self._answer_sampling = deployed
        if self.settings.answer_temperature != "model":
            self._answer_sampling = {
                "temperature": self.settings.answer_temperature,
                "top_p": self.settings.answer_top_p,
            }
        # Nobody thinks before a question, nor calls anything in one.
        self._question_stop = chat.stops(False)
        self._sieve = Sieve(
            job.settings.checks,
            special=chat.looks_special,
            held_out=job.held_out,
            read=self._first_question,
        )

    def _check(self) -> None:
        """Raises the errors of this class."""
        steered = self.settings.systems and self.kind == "magpie"
        if steered and self.chat.template.system == "ignored":
            raise ChatError(
                f"{self.chat.name}: its chat template ignores system prompts, so generate.systems "
                "steer nothing"
            )
        if self.kind == "prompts":
            return
        temperatures = [part.sampling.get("temperature") for part in self._schedule]
        if None in temperatures:
            problem = "the model has no generation_config.json that names one; give a number"
            raise RecipeError("the recipe", [f"generate.temperature: {problem}"])
        if 0 in temperatures:
            problem = "the model is deployed greedily; give a number"
            raise RecipeError("the recipe", [f"generate.temperature: {problem}"])

    # --- what comes next --------------------------------------------------------------------------

    def begin(self, row: int) -> list[Request]:
        """The request for the row's first question; none where it is there already, or the user's
        own.
        """
        address = Address("question", row)
        if self.job.prompts is not None or address in self.replies:
            return []
        system = self._system(row)
        tools = self.answering.tools(row)
        if self.kind == "text":
            tokens = self.chat.start
        elif system or tools:
            tokens = self.chat.asking(system, tools)
        else:
            tokens = self.chat.pre_query
        return [self._request(address, tokens)]

    def has_question(self, row: int) -> bool:
        """Whether the row's first question is there."""
        return self.job.prompts is not None or Address("question", row) in self.replies

    def decide(self, row: int) -> list[Settled]:
        """The record of a row that ends with its first question; none where it is worth an answer.

        Each row is decided once, in the order of the rows: the sieve remembers the question.
        """
        if self.job.prompts is not None:
            return []
        address = Address("question", row)
        question, verdict = self._read(address)
        if self.kind == "text":
            message = message_of("text", question["content"])
            finish = self.replies[address].finish
            return self._settled(row, [Draft([message], verdict, {"finish": finish})])
        if verdict is None:
            return []
        return self._settled(row, [Draft([*self._kept_system(row), question], verdict)])

    def next(self, row: int) -> Next:
        """What a row that is worth an answer needs next: requests, or nothing, and these are its
        records.
        """
        messages = list(self._opening(row))
        why = self._not_asked(row)
        if why is not None:
            return Next([], self._settled(row, [Draft(messages, Verdict(why))]))
        fault = self.answering.faulty_tool(row)
        if fault is not None:
            verdict = Verdict("invalid_tool", {"wrong_call": {"problem": fault}})
            return Next([], self._settled(row, [Draft(messages, verdict)]))
        for turn in range(self.settings.turns - 1):
            # A conversation of several turns has one answer to each question.
            for address in (Address("question", row, turn), Address("answer", row, turn)):
                following = self._add(address, messages)
                if following is not None:
                    return following
        turn = self.settings.turns - 1
        if self.job.prompts is None:
            following = self._add(Address("question", row, turn), messages)
            if following is not None:
                return following
        answers = [Address("answer", row, turn, k) for k in range(self.settings.answers)]
        missing = [address for address in answers if address not in self.replies]
        if missing:
            return self._requests(missing, messages)
        return Next([], self._settled(row, self._exchanges(messages, answers)))

    def _not_asked(self, row: int) -> str | None:
        """Why the model is not asked for its answer to an old row; None where it is, or was."""
        how = self.settings.verify
        if self.job.references is None or how is None or Address("answer", row) in self.replies:
            return None
        return not_asked(self.job.references[row], how)

    def _add(self, address: Address, messages: list[Message]) -> Next | None:
        """Adds a text to the row's messages; returns what comes next where the row cannot go on
        from there: the request for the text, or the record of a row that ends with it.
        """
        if address not in self.replies:
            return self._requests([address], messages)
        if address == Address("question", address.row):
            # It was checked when the row was decided.
            messages.append(message_of("user", self._first_question(address.row)))
            return None
        message, verdict = self._read(address)
        messages.append(message)
        cut = self._cut_answer(address)
        # A conversation ends with an answer that was cut: nobody asks on in the middle of one.
        if verdict is None and not cut and "tool_calls" not in message:
            return None
        answer = address if address.part == "answer" else None
        return Next([], self._settled(address.row, [Draft(messages, verdict, cut, answer)]))

    def _requests(self, addresses: Sequence[Address], messages: Sequence[Message]) -> Next:
        """A request for each address, all with the same prompt; where it leaves no room for a
        reply, the row ends with its messages so far.
        """
        first = addresses[0]
        tools = self.answering.tools(first.row)
        if first.part == "answer":
            tokens = self.chat.prompt(messages, self.answering.thinking(first.row), tools)
        else:
            # The system prompt steers every question, whether or not the record keeps it.
            turns = [message for message in messages if message["role"] != "system"]
            tokens = self.chat.asking([*self._system(first.row), *turns], tools)
        if len(tokens) >= self.limit:
            return Next([], self._settled(first.row, [Draft(messages, Verdict("too_long"))]))
        return Next([self._request(address, tokens) for address in addresses], [])

    def _request(self, address: Address, tokens: tuple[int, ...]) -> Request:
        numbering = self.replies.numbering
        # The first question and its first answer have the seeds of a row with one turn and one
        # answer, so they are the same however many follow.
        in_row = numbering.in_row(address)
        later = [in_row] if in_row else []
        seed = derive_seed(self.job.seed, address.part, address.row, *later)
        return Request(numbering.of_request(address), tokens, self._sampling(address), seed)

    def _sampling(self, address: Address) -> Sampling:
        if address.part == "answer":
            numbers = self._answer_sampling
            stop = self.answering.stops(address.row)
        else:
            numbers = sampling_of(self._schedule, self.job.seed, address.row)
            stop = self._question_stop
        max_tokens = self.settings.max_answer_tokens
        # A base model's text is called a question, and is as long as an answer may be.
        if address.part == "question" and self.kind == "magpie":
            max_tokens = self.settings.max_question_tokens
        return Sampling(
            temperature=numbers.get("temperature", 1.0),
            top_p=numbers.get("top_p", 1.0),
            top_k=int(numbers.get("top_k", 0)),
            max_tokens=max_tokens,
            stop=stop,
        )

    # --- what was written -------------------------------------------------------------------------

    def take(self, completion: Completion) -> int:
        """Writes what the model said to its ledger; returns the number of its row."""
        address = self.replies.numbering.address(completion.row)
        tokens = completion.tokens
        finish = completion.finish_reason
        if address.part == "answer":
            written = self._split(address.row, tokens, finish)
        else:
            question = message_of("user", self.chat.decode(tokens))
            written = Written(question, finish, self.chat.special_in(tokens))
        self.replies.write(address, written, len(tokens))
        return address.row

    def _split(self, row: int, tokens: Sequence[int], finish: str) -> Written:
        """An answer of these tokens, its thought and its calls apart."""
        tools = self.answering.tools(row)
        reply = self.chat.reply(tokens, self.answering.thinking(row), tools)
        thought = None
        if self._splits(row):
            thought = reply.thought
        unread = bool(tools) and self._holds_unread_call(row, tokens, reply)
        return Written(reply.message, finish, reply.special, thought, unread)

    def _splits(self, row: int) -> bool:
        """Whether an answer of the row may have a thought or calls."""
        return self.chat.can_think or bool(self.answering.tools(row))

    def _holds_unread_call(self, row: int, tokens: Sequence[int], reply: Reply) -> bool:
        """Whether there is a call behind the thought that could not be read, or not be shown as it
        was written.
        """
        call_format = self.chat.call_format
        if call_format is None or reply.thought == "cut":
            return False
        content = reply.message["content"]
        if "tool_calls" in reply.message:
            # A special token that is left over is a mark of a call.
            if reply.special or (content and not call_format.words_first):
                return True
            text = content
        else:
            text = self.chat.decode(tokens, special=True)
            thought = reply.message.get("reasoning_content", "")
            text = text[text.find(thought) + len(thought) :]
        return begins_call(text, call_format, self.answering.tools(row))

    def _first_question(self, row: int) -> str:
        return self.replies[Address("question", row)].text

    def _read(self, address: Address) -> tuple[Message, Verdict | None]:
        """A turn, and why it cannot stay, if it cannot. The sieve remembers a first question."""
        if address.part == "answer":
            return self._read_answer(address)
        written = self.replies[address]
        fault = self._fault(address.part, written)
        if fault is None and address.turn > 0:
            fault = self._sieve.follow_up(written.text)
        elif fault is None:
            fault = self._sieve.question(address.row, written.text)
        return written.message, fault

    def _read_answer(self, address: Address) -> tuple[Message, Verdict | None]:
        """An answer, and why it cannot stay, if it cannot."""
        if not self._splits(address.row):
            written = self.replies[address]
        else:
            written = self.replies.split(address)
        message = written.message
        fault = self._fault("answer", written)
        if fault is None and "tool_calls" in message:
            fault = call_fault(message["tool_calls"], self.answering.tools(address.row))
        return message, fault or self._sieve.answer(message)

    def _fault(self, part: Part, written: Written) -> Verdict | None:
        """Why a text cannot stay, whatever it says: it has a special token, or it was cut."""
        cut = written.finish == "length"
        if written.unread_call:
            return Verdict("call_truncated" if cut else "unreadable_call")
        # A template shows a thought only as a closed one, which would be learned.
        if written.thought == "cut":
            return Verdict("thought_truncated" if cut else "thought_unclosed")
        if written.special and self.settings.checks.leaks:
            return Verdict(f"{part}_leaked_header")
        # A base model's text may be cut, and so may an answer: only the end is missing, and the
        # record says so. A question is nothing without its end.
        if cut and self.kind != "text" and (part == "question" or self.settings.checks.truncated):
            return Verdict(f"{part}_truncated")
        return None

    def _cut_answer(self, address: Address) -> Mapping[str, Any]:
        """What the meta of a record says where this is an answer that was cut; else nothing."""
        if address.part == "answer" and self.replies[address].finish == "length":
            return CUT
        return {}

    def _exchanges(self, messages: Sequence[Message], answers: Sequence[Address]) -> list[Draft]:
        """The conversation with each of its last answers; one that says the same as an earlier one
        is dropped.
        """
        drafts = []
        seen = set()
        for address in answers:
            message, verdict = self._read_answer(address)
            said = message["content"] + json.dumps(message.get("tool_calls"))
            if verdict is None and said in seen:
                verdict = Verdict("same_answer")
            seen.add(said)
            meta = dict(self._cut_answer(address))
            if len(answers) > 1:
                meta["answer"] = address.answer
            drafts.append(Draft([*messages, message], verdict, meta, address))
        return drafts

    def _settled(self, row: int, drafts: Sequence[Draft]) -> list[Settled]:
        """The row's records, each with all that its meta says."""
        if self.job.references is not None:
            return [self._compared(row, self.job.references[row], drafts)]
        meta: dict[str, Any] = {"row": row}
        if self.job.prompts is not None:
            prompt = self.job.prompts[row]
            meta = {**apart(prompt.meta, OWN_META, PROMPT), "row": row, "parent": prompt.id}
        else:
            meta |= sampling_of(self._schedule, self.job.seed, row)
        steered = system_of(self.settings, self.job.seed, row)
        if steered is not None:
            meta["system"] = steered[0]
        thinking = self.answering.thinking(row)
        if thinking is not None:
            meta["thinking"] = thinking
        settled = []
        for messages, verdict, own, answer in drafts:
            evidence = {} if verdict is None else verdict.evidence
            record_meta = {**meta, **own, **evidence, **self.job.facts}
            tools = self.answering.tools(row)
            record = Record(tuple(messages), "generate", record_meta, tools)
            thought = None
            if thinking and answer is not None:
                thought = self.replies[answer].thought
            settled.append(Settled(row, record, verdict, thought))
        return settled

    def _compared(self, row: int, old: Record, drafts: Sequence[Draft]) -> Settled:
        """The one record of an old row: with the first of the model's answers that is right, else
        with its own.
        """
        how = self.settings.verify
        assert how is not None, "rows have references where answers are compared"
        meta = {**apart(old.meta, OWN_META, PROMPT), "row": row, "parent": old.id}
        thinking = self.answering.thinking(row)
        refused = []
        for draft in drafts:
            why = None
            if draft.verdict is not None:
                why = draft.verdict.reason
            else:
                cut = draft.meta.get(FINISH) == "length"
                why = not_kept(draft.messages[-1], old, how, cut=cut)
            if why is not None:
                refused.append(why)
                continue
            meta |= {**draft.meta, PATH: OWN, WHY: RIGHT, **self.job.facts}
            if thinking is not None:
                meta["thinking"] = thinking
            thought = None
            if thinking and draft.answer is not None:
                thought = self.replies[draft.answer].thought
            record = Record(tuple(draft.messages), "generate", meta, self.answering.tools(row))
            return Settled(row, record, None, thought)
        meta |= {PATH: REFERENCE_PATH, WHY: refused[0]}
        return Settled(row, Record(old.messages, "generate", meta, old.tools), None)

    # --- what a row begins with -------------------------------------------------------------------

    def _opening(self, row: int) -> Sequence[Message]:
        """The messages of a record before anything that the model writes."""
        if self.job.prompts is not None:
            return self.job.prompts[row].messages
        return self._kept_system(row)

    def _system(self, row: int) -> Sequence[Message]:
        """The system message that the row's questions are drawn under, if any."""
        steered = system_of(self.settings, self.job.seed, row)
        if steered is None:
            return ()
        _, text = steered
        return ({"role": "system", "content": text},)

    def _kept_system(self, row: int) -> Sequence[Message]:
        """The system message that the row's record keeps, and its answers are given under, if
        any.
        """
        if not self.settings.keep_system:
            return ()
        return self._system(row)
