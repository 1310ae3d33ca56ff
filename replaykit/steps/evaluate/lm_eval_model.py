"""Our engines as lm-eval sees them: its requests are texts, an engine's are token ids.

A chat is kept as what it says until it is asked: ``apply_chat_template`` gives lm-eval a text in
which the messages stand as JSON, and the model's own template makes their tokens, as in all else
here. A text of another kind, of a base model or of a task that builds its prompts by hand, is
tokenised as it stands, as lm-eval does it.

This module imports lm-eval; it is imported where a task is run.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from lm_eval.api.instance import Instance
from lm_eval.api.model import LM
from lm_eval.models.utils import normalize_gen_kwargs, postprocess_generated_text
from lm_eval.utils import get_rolling_token_windows, make_disjoint_window

from replaykit.data.record import Message
from replaykit.engines import Completion, Engine, Request, Sampling
from replaykit.errors import ChatError
from replaykit.hashing import derive_seed
from replaykit.model.chat import Chat, Reply

MARK = "\x02"  # what a chat begins with among lm-eval's texts

Place = tuple[str, int]  # a task and the number of a document among those that are asked
Tokens = tuple[int, ...]


@dataclass(frozen=True)
class Answered:
    """What was answered to a document in words."""

    text: str
    """Without its thought, cut where the task says."""
    finish: Literal["stop", "length"]
    reply: Reply


class EngineLM(LM):
    """An engine and its chat.

    ``greedy`` are the tasks that ask whether a continuation is what the model would write; the
    engine is then asked for that too. ``tell`` is called for each request that is done.
    """

    def __init__(
        self,
        engine: Engine,
        chat: Chat,
        *,
        thinking: bool | None = None,
        max_tokens: int = 256,
        greedy: Collection[str] = (),
        tell: Callable[[], None] = lambda: None,
    ):
        super().__init__()
        self.engine = engine
        self.chat = chat
        self.thinking = thinking
        self.max_tokens = max_tokens
        self.greedy = greedy
        self.tell = tell
        self.answered: dict[Place, Answered] = {}
        self.too_long: set[Place] = set()
        """The documents with a prompt that is longer than the model reads."""
        self.asking = False
        """Whether the engine is at work; after an error, whether it was the engine's."""

    # --- chats ------------------------------------------------------------------------------------

    @property
    def tokenizer_name(self) -> str:
        return self.chat.name

    def apply_chat_template(
        self, chat_history: list[dict[str, str]], add_generation_prompt: bool = True
    ) -> str:
        """The chat as JSON. Without a generation prompt its last message is how the answer
        begins.
        """
        begun = ""
        if not add_generation_prompt:
            *chat_history, last = chat_history
            begun = last["content"]
        return MARK + json.dumps({"messages": chat_history, "begun": begun}, ensure_ascii=False)

    def _chat_of(self, context: str) -> tuple[list[Message], str] | None:
        """The messages that a text stands for, and how their answer begins; None where it is no
        chat.
        """
        if not context.startswith(MARK):
            return None
        found = json.loads(context.removeprefix(MARK))
        messages: list[Message] = found["messages"]
        return self._shown(messages), found["begun"]

    def _shown(self, messages: list[Message]) -> list[Message]:
        """The messages, without a system message where the template has none: what it says then
        stands before the first question. (lm-eval leaves it out.)
        """
        first, *rest = messages
        if first["role"] != "system" or not rest:
            return messages
        try:
            self.chat.prompt(messages)
        except ChatError:
            asked = f"{first['content']}\n\n{rest[0]['content']}"
            return [{"role": "user", "content": asked}, *rest[1:]]
        return messages

    # --- answers in words -------------------------------------------------------------------------

    def generate_until(self, requests: list[Instance]) -> list[str]:
        """The answers, without their thoughts, each cut at the first of its ``until``."""
        asked = []
        untils: list[list[str]] = []
        for row, instance in enumerate(requests):
            context, settings = instance.args[:2]
            chosen = normalize_gen_kwargs(settings, self.max_tokens)
            untils.append(chosen["until"])
            prompt = self._prompt(context)
            if len(prompt) < self.engine.limit:
                # The same draws for every model; most tasks are greedy.
                seed = derive_seed("lm_eval", row)
                asked.append(Request(row, prompt, self._sampling(dict(chosen)), seed))
            else:
                self.too_long.add(_place(instance))
        texts = [""] * len(requests)
        self.asking = True
        for completion in self.engine.complete(asked):
            found = self._answered(completion, untils[completion.row])
            texts[completion.row] = found.text
            self.answered.setdefault(_place(requests[completion.row]), found)
            self.tell()
        self.asking = False
        return texts

    def _prompt(self, context: str) -> Tokens:
        chat = self._chat_of(context)
        if chat is None:
            return self._plain(context)
        messages, begun = chat
        if begun:
            return self.chat.begun(messages, begun, self.thinking)
        return self.chat.prompt(messages, self.thinking)

    def _plain(self, text: str) -> Tokens:
        """A text as the tokenizer begins one, with its BOS where it has any."""
        if not text:
            return self.chat.start
        return tuple(self.chat.tokenizer(text, verbose=False)["input_ids"])

    def _sampling(self, chosen: dict[str, Any]) -> Sampling:
        stops = list(self.chat.stops(self.thinking))
        for until in chosen["until"]:
            # An engine stops at tokens; a text that is one token stops it early.
            tokens = self.chat.encode(until)
            if len(tokens) == 1 and self.chat.decode(tokens, special=True) == until:
                stops += tokens
        drawn = {}
        if chosen["do_sample"]:
            drawn = {"top_p": chosen.get("top_p", 1.0), "top_k": chosen.get("top_k", 0)}
        return Sampling(
            temperature=chosen.get("temperature", 1.0) if chosen["do_sample"] else 0.0,
            max_tokens=chosen["max_gen_toks"],
            stop=tuple(dict.fromkeys(stops)),
            **drawn,
        )

    def _answered(self, completion: Completion, until: list[str]) -> Answered:
        reply = self.chat.reply(completion.tokens, self.thinking)
        said = "" if reply.thought == "cut" else reply.message["content"]
        text = postprocess_generated_text(said, until, None)
        finish = completion.finish_reason
        if text != said:
            finish = "stop"
        return Answered(text, finish, reply)

    # --- likelihoods ------------------------------------------------------------------------------

    def loglikelihood(self, requests: list[Instance]) -> list[tuple[float, bool]]:
        """The log probability of each continuation, and whether the model would write it, which is
        False where the task does not ask.

        Raises ChatError where every prompt opens a thought, after which no answer comes at once.
        """
        pairs = []
        for instance in requests:
            context, said = instance.args[:2]
            pairs.append(self._pair(context, said))
        fitting = []
        for row, (instance, (before, after)) in enumerate(zip(requests, pairs, strict=True)):
            if len(before) + len(after) < self.engine.limit:
                fitting.append(row)
            else:
                self.too_long.add(_place(instance))
        found = [(float("-inf"), False)] * len(requests)
        sums = self._scored([pairs[row] for row in fitting])
        asks = [row for row in fitting if requests[row].task_name in self.greedy]
        written = dict(zip(asks, self._greedy([pairs[row] for row in asks]), strict=True))
        for row, total in zip(fitting, sums, strict=True):
            found[row] = (total, written.get(row, False))
        return found

    def _pair(self, context: str, said: str) -> tuple[Tokens, Tokens]:
        """Tokens of a context and of its continuation; white space between the two belongs to the
        continuation, as lm-eval has it (TemplateLM._encode_pair).
        """
        chat = self._chat_of(context)
        if chat is not None:
            if self.chat.always_thinks:
                raise ChatError(
                    f"{self.chat.name}: its chat template opens a thought before every answer, so "
                    f"the likelihood of an answer in its place says nothing; take a task of "
                    f"lm-eval that is answered in words"
                )
            messages, begun = chat
            silent = False if self.chat.can_think else None
            return self.chat.continued(messages, begun, said, silent)
        if not context:
            return self.chat.start, self.chat.encode(said)
        before = self._plain(context.rstrip())
        return before, self._plain(context + said)[len(before) :]

    def _scored(self, pairs: Sequence[tuple[Tokens, Tokens]]) -> list[float]:
        """The summed log probability of each second part."""
        found = []
        self.asking = True
        logprobs = self.engine.score([(*before, *after) for before, after in pairs])
        for (_, after), of_tokens in zip(pairs, logprobs, strict=True):
            found.append(sum(of_tokens[len(of_tokens) - len(after) :]))
            self.tell()
        self.asking = False
        return found

    def _greedy(self, pairs: Sequence[tuple[Tokens, Tokens]]) -> list[bool]:
        """Whether each second part is what the model writes by itself, token by token.

        An engine's score has no other token's probability, so it is asked to write as many.
        """
        asked = []
        for row, (before, after) in enumerate(pairs):
            sampling = Sampling(temperature=0.0, max_tokens=max(len(after), 1))
            asked.append(Request(row, before, sampling))
        written = [False] * len(pairs)
        self.asking = True
        for completion in self.engine.complete(asked):
            after = pairs[completion.row][1]
            written[completion.row] = completion.tokens[: len(after)] == after
        self.asking = False
        return written

    def loglikelihood_rolling(self, requests: list[Instance]) -> list[float]:
        """The log probability of each text, in windows that the model reads, each token once."""
        windows: list[tuple[Tokens, Tokens]] = []
        owners = []
        for row, instance in enumerate(requests):
            tokens = self.chat.encode(instance.args[0])
            rolling = get_rolling_token_windows(
                list(tokens), self.chat.start[0], self.engine.limit - 1, 1
            )
            for window in rolling:
                before, after = make_disjoint_window(window)
                windows.append((tuple(before), tuple(after)))
                owners.append(row)
        found = [0.0] * len(requests)
        for row, total in zip(owners, self._scored(windows), strict=True):
            found[row] += total
        return found


def _place(instance: Instance) -> Place:
    return instance.task_name, instance.doc_id
