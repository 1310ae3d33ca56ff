"""Whether the model finds a row neither too likely nor too unlikely: the optional last check."""

from __future__ import annotations

import math
from collections.abc import Sequence

from replaykit.checks.sieve import Verdict
from replaykit.data.record import Message, Record
from replaykit.engines import Engine
from replaykit.model.chat import Chat
from replaykit.model.logprobs import of_answer
from replaykit.recipe.generate import Checks, Range
from replaykit.steps.generate.conversations import Settled

# Another question: what a prompt does not share with the prompt of this one is its own question.
OTHER = "\u2603"


class PerplexityCheck:
    """Scores records under the engine's model, where the recipe bounds a perplexity."""

    def __init__(self, engine: Engine, chat: Chat, checks: Checks) -> None:
        self.engine = engine
        self.chat = chat
        self.checks = checks
        self.on = checks.perplexity is not None or checks.question_perplexity is not None

    def verdicts(self, settled: Sequence[Settled]) -> list[Verdict | None]:
        """The verdict on each record: its own, or that of this check if it has none."""
        verdicts = [one.verdict for one in settled]
        if not self.on:
            return verdicts
        good = [place for place, verdict in enumerate(verdicts) if verdict is None]
        examples = [self.chat.example(settled[place].record) for place in good]
        scored = self.engine.score(example.scored for example in examples)
        for place, example, scores in zip(good, examples, scored, strict=True):
            answer = of_answer(example, scores)
            question = self._of_question(settled[place].record, scores)
            verdicts[place] = outside("answer", answer, self.checks.perplexity) or outside(
                "question", question, self.checks.question_perplexity
            )
        return verdicts

    def _of_question(self, record: Record, scores: list[float]) -> list[float]:
        """The scores of the last question's tokens; none in a plain text, nor where an encoder
        reads it (``check_can_ask`` refuses to bound them there).
        """
        if record.messages[0]["role"] == "text" or self.chat.seq2seq:
            return []
        *before, question, answer = record.messages
        thinking = None
        if self.chat.can_think:
            # As the example of the record is rendered.
            thinking = self.chat.always_thinks or "reasoning_content" in answer
        asked = self.chat.prompt([*before, question], thinking, record.tools)
        other: Message = {**question, "content": OTHER}
        with_other = self.chat.prompt([*before, other], thinking, record.tools)
        start = _shared(asked, with_other)
        end = len(asked) - _shared(asked[:start:-1], with_other[:start:-1])
        # The first token has no score, so the score of token i is number i - 1.
        return scores[start - 1 : end - 1]


def _shared(one: Sequence[int], other: Sequence[int]) -> int:
    """How many tokens both begin with."""
    pairs = zip(one, other, strict=False)
    return next((place for place, (a, b) in enumerate(pairs) if a != b), min(len(one), len(other)))


def outside(what: str, scores: Sequence[float], bounds: Range | None) -> Verdict | None:
    """A verdict where the perplexity of the scores (natural logarithms) is out of the bounds."""
    if bounds is None or not scores:
        return None
    least, most = bounds
    perplexity = math.exp(-sum(scores) / len(scores))
    if least <= perplexity <= most:
        return None
    return Verdict(f"{what}_perplexity", {"perplexity": perplexity})
