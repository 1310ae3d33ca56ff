"""Held-out rows: of the new task, and of the old skills that must not drop."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field, PositiveInt, model_validator

from replaykit.errors import DataError
from replaykit.recipe.base import Strict
from replaykit.recipe.data import Data, Part, from_path
from replaykit.recipe.lm_eval import PREFIX, is_task
from replaykit.suites import is_suite, suite_of

MARGIN = 0.02
MEMORY = "memory"
"""Among the tests, the rows of the step of this name."""
Score = Literal[
    "exact",
    "normalised",
    "numeric",
    "symbolic",
    "json",
    "contains",
    "regex",
    "f1",
    "rouge_l",
    "bleu",
    "json_schema",
    "instructions",
    "code",
    "refusal",
    "language",
    "choice",
    "tool_call",
    "label",
    "judge",
    "lm_eval",
    "cross_entropy",
]
# What a task of lm-eval says itself.
OF_TASKS = ("hold_out", "prompt", "answer", "labels", "preferred", "split", "subset", "revision")


class Test(Data):
    """Held-out rows and how an answer to them is scored."""

    hold_out: Part | None = None
    """Of rows that are trained on but for this part, as target.hold_out says: that part alone."""

    split: str | None = None
    """The split of a Hub data set, or of a folder whose file names say one; null: test, else
    validation, else the only one."""
    score: Score = "exact"
    """The same text, the same last number, the same JSON, the same calls of tools, a classifier's
    label, the loss of the reference answer, or one of the README's table "How answers are scored";
    lm_eval is the score of a task of lm-eval, and of nothing else."""
    metric: str | None = None
    """Of a task of lm-eval: which of its metrics is the score, as its tables name it, such as
    exact_match or "exact_match,strict-match"; null: the lenient one of a strict and a lenient one,
    else the first that every item has. It is said which that is."""
    max_tokens: PositiveInt = 256
    """Tokens of an answer with the thought before it, at most; a task of lm-eval that sets
    max_gen_toks has its own."""
    thinking: bool | None = None
    """Whether the model is left to think before it answers; null: as chat.thinking says, or as it
    always does. A thought is no part of the answer that is scored."""

    @model_validator(mode="before")
    @classmethod
    def _as_its_suite(cls, value: Any) -> Any:
        """A suite says how its answers are scored."""
        if not isinstance(value, Mapping) or not is_suite(str(value.get("path"))):
            return value
        try:
            suite = suite_of(value["path"])
        except DataError as error:
            raise ValueError(str(error)) from error
        return {"score": suite.score, "max_tokens": suite.max_tokens, **value}

    @model_validator(mode="before")
    @classmethod
    def _as_its_task(cls, value: Any) -> Any:
        """A task of lm-eval scores its answers itself."""
        if not isinstance(value, Mapping) or not is_task(str(value.get("path"))):
            return value
        return {"score": "lm_eval", **value}

    @model_validator(mode="after")
    def _of_lm_eval(self) -> Test:
        task = is_task(self.path)
        if task and self.score != "lm_eval":
            raise ValueError(f"score: a task of lm-eval is scored by lm-eval, not {self.score}")
        if not task and self.score == "lm_eval":
            raise ValueError(f"score: lm_eval is for tasks of lm-eval: `path: {PREFIX}TASK`")
        if not task and self.metric is not None:
            raise ValueError("metric: only a task of lm-eval has several; leave it out")
        given = [key for key in OF_TASKS if getattr(self, key) is not None]
        if task and given:
            raise ValueError(
                f"{', '.join(given)}: a task of lm-eval says itself what is read, and how; leave "
                f"{'it' if len(given) == 1 else 'them'} out"
            )
        return self

    @model_validator(mode="after")
    def _thinks_to_answer(self) -> Test:
        if self.score == "cross_entropy" and self.thinking is not None:
            raise ValueError(
                "thinking is for answers; cross_entropy reads the rows as they are, with the "
                "thoughts that they have"
            )
        return self


TestOrPath = Annotated[Test, BeforeValidator(from_path, json_schema_input_type=str | Test)]


NO_JUDGE = (
    "score: judge needs a judge model, the same for all; name it with `judge: {model: ...}` in the "
    "section eval, and `server:` beside it where it is on one"
)


class Judge(Strict):
    """The model that grades the answers to tests with ``score: judge``."""

    model: str
    """A folder, or a name on the Hub: not the model that is tested, whose taste is its own."""
    server: str | None = None
    """The address of the OpenAI-compatible server that has it; null: it is loaded here. The rows'
    questions, references and answers go there."""


class Eval(Strict):
    """The target's held-out rows, and the old skills that must not drop."""

    target: TestOrPath | None = None
    """Held-out rows of the new task; null: it is not tested."""
    old: dict[str, TestOrPath] = {}
    """Held-out rows of each old skill, by its name."""
    memory: PositiveInt | None = None
    """So many rows that the base itself writes, at temperature 1 and never trained on: by how much
    their loss rises is how far a tuned model has drifted, its KL divergence in nats a token; null:
    that is not measured. A drift is no loss of a skill, so no claim rests on it."""
    twice: bool | None = None
    """Whether the base is scored twice, to see how much of a difference is the engine's: what is
    claimed must hold against both. null: where the engine may answer differently another time, as
    all do on a GPU, and servers."""
    margin: Annotated[float, Field(gt=0, le=1)] = MARGIN
    """A drop below it is called no forgetting: two points of a score, and as many hundredths of a
    nat a token, which are two per cent of perplexity."""
    judge: Judge | None = None
    """Of the tests with ``score: judge``; null: there are none."""

    @model_validator(mode="after")
    def _judged(self) -> Eval:
        tests = [*self.old.values(), *([] if self.target is None else [self.target])]
        if self.judge is None and any(test.score == "judge" for test in tests):
            raise ValueError(NO_JUDGE)
        return self
