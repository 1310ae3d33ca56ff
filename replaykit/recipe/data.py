"""Which rows: of a file, a folder or a Hub data set."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field, NonNegativeInt, PositiveInt, model_validator

from replaykit.recipe.base import Strict, file_facts
from replaykit.suites import ITEMS, is_suite


class Prompts(Strict):
    """Questions of a file, a folder or a Hub data set. A bare path means ``{path: ...}``."""

    path: str
    """A file, a folder or a Hub data set (owner/name), relative to the working directory; or
    suite:NAME, of `replaykit suites`, whose first 200 items are taken where n is not given; in eval
    also lm_eval:TASK, a task of lm-eval by its name or its YAML file."""
    prompt: str | None = None
    """The column of the question, or several in a text: "{title}\\n{text}"; null: it is recognised
    by the usual names."""
    split: str | None = "train"
    """The split of a Hub data set, or of a folder whose file names say one, such as
    test-00000-of-00001.parquet; "all" reads every file of a folder. A single file has none, except
    a .json file with a list for each split. null: train; in eval it is test, else validation, else
    the only one."""
    subset: str | None = None
    """The configuration of a Hub data set, such as gsm8k's main; of a folder, the one that its
    README.md lists, or a folder in it."""
    revision: str | None = None
    """The branch, tag or commit of a Hub data set."""
    skip: NonNegativeInt = 0
    """Rows passed over first, so that one file can serve as pool and as held-out rows."""
    n: PositiveInt | None = None
    """Rows read after those, at most; null: all."""

    @model_validator(mode="before")
    @classmethod
    def _items_of_suite(cls, value: Any) -> Any:
        """A suite's items have no end of their own."""
        if isinstance(value, Mapping) and is_suite(str(value.get("path"))):
            return {"n": ITEMS, **value}
        return value

    def decisive(self) -> dict[str, Any]:
        """How the rows are read, and the bytes of local files."""
        return super().decisive() | file_facts(self.path)


class Asked(Prompts):
    """Questions of a file, a folder or a Hub data set, with their answers where they are compared.
    A bare path means ``{path: ...}``.
    """

    answer: str | None = None
    """For verify, the column of the answer, given together with prompt; null: it is recognised."""


class Data(Prompts):
    """Questions with their answers."""

    answer: str | None = None
    """The column of the answer, given together with prompt; null: it is recognised."""
    labels: list[str] | dict[int | str, str] | None = None
    """The words for the values of the answer's column: a list for 0, 1, 2, ..., or a word for each
    value. The question is then in "text" and the answer in "label", where they are not named."""
    preferred: Literal["chosen"] | None = None
    """Of rows with a chosen and a rejected answer: "chosen" reads the chosen one; null: such rows
    are refused."""

    @model_validator(mode="after")
    def _columns_together(self) -> Data:
        if self.labels is None and (self.prompt is None) is not (self.answer is None):
            raise ValueError("prompt and answer are given together: the names of the two columns")
        return self


Part = Annotated[float, Field(gt=0, lt=1)]


class Target(Data):
    """The rows of a new task."""

    hold_out: Part | None = None
    """The part of the rows that is left out of training, to be tested. Which they are is decided by
    what their questions say: rows with one question stay together, and no seed changes it. Where
    eval.target has no path, it is these."""


def from_path(value: Any) -> Any:
    """A bare path as the section that it stands for."""
    if isinstance(value, str):
        return {"path": value}
    return value


TargetOrPath = Annotated[Target, BeforeValidator(from_path, json_schema_input_type=str | Target)]
DataOrPath = Annotated[Data, BeforeValidator(from_path, json_schema_input_type=str | Data)]
PromptsOrPath = Annotated[Prompts, BeforeValidator(from_path, json_schema_input_type=str | Prompts)]
AskedOrPath = Annotated[Asked, BeforeValidator(from_path, json_schema_input_type=str | Asked)]
