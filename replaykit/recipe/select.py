"""How old data is selected."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import AfterValidator, Field, NonNegativeInt, PositiveInt, model_validator

from replaykit.recipe.base import FILES, MACHINE, Share, Strict, in_order
from replaykit.recipe.data import DataOrPath

Lengths = Annotated[
    list[NonNegativeInt], Field(min_length=2, max_length=2), AfterValidator(in_order)
]


class Quality(Strict):
    """Which old rows are good enough to choose from. A rule that is off is null or false."""

    strip_end: bool = True
    """Takes "<|endoftext|>" and its like, written out, from the end of answers; drops nothing."""
    empty: bool = True
    """An answer or a prompt of spaces; the special token that ends an answer is nothing either."""
    placeholders: bool = True
    """"N/A", "TODO", "[insert answer]", "..."."""
    broken: bool = True
    """Letters that a wrong encoding spoilt: any in an answer, many in a prompt."""
    max_markup: Share | None = 0.3
    """Of an answer's characters in HTML tags and entities that nobody asked for."""
    max_repeat: Share | None = 0.5
    """Of an answer's 20-character windows, seen before in the same answer."""
    prompt_chars: Lengths | None = None
    """Characters of a prompt, least and most; null is any."""
    prompt_words: Lengths | None = None
    """Words of a prompt, least and most; null is any."""
    answer_chars: Lengths | None = None
    """Characters of an answer, least and most; null is any."""
    answer_words: Lengths | None = None
    """Words of an answer, least and most; null is any."""
    languages: list[str] | None = None
    """ISO 639-1 codes of the languages to keep, such as [en, zh]."""


# The methods of selection that compare with the target.
SCORED = ("tfidf", "bm25", "embedding", "near-and-far", "mmr")


class Select(Strict):
    """Old records for a new task: by default those whose prompts are nearest to the target's, by
    TF-IDF.
    """

    pool: DataOrPath
    """The old data to choose from."""
    n: PositiveInt = 2000
    """Rows to choose."""
    method: Literal[
        "tfidf",
        "bm25",
        "embedding",
        "random",
        "stratified",
        "near-and-far",
        "mmr",
        "k-centre",
        "herding",
    ] = "tfidf"
    """How rows are chosen. random, stratified, k-centre and herding need no target."""
    to: Literal["nearest", "centroid"] = "nearest"
    """Compare with the nearest target row, or with the centroid of all; for tfidf and bm25."""
    analyzer: Literal["auto", "word", "char"] = "auto"
    """What a term is made of; auto takes characters where the target sets no spaces."""
    ngrams: Annotated[list[PositiveInt], Field(min_length=2, max_length=2)] | None = None
    """The smallest and the largest run of terms; null is [1, 1] of words, [2, 4] of characters."""
    sublinear: bool = True
    """Weigh a term by 1 + ln tf instead of tf."""
    min_df: PositiveInt = 1
    """Rows that a term must stand in, at least."""
    max_df: Share = 1.0
    """The part of the rows that a term may stand in, at most."""
    model: str | None = None
    """For embedding: a sentence-transformers or model2vec model."""
    column: str | None = None
    """For stratified: the column of the pool that names a row's stratum."""
    shares: Literal["equal", "proportional"] = "proportional"
    """How many rows of each stratum; for stratified."""
    per_target: PositiveInt | None = None
    """Rows at most that are nearest to the same target row; null is any number."""
    answers_per_question: PositiveInt | None = None
    """Rows at most with just the same question, those that the method takes first; null is any
    number.
    """
    near: float = Field(default=0.5, ge=0, le=1)
    """For near-and-far: the part that is nearest."""
    balance: float = Field(default=0.5, ge=0, le=1)
    """For mmr: 1 is near the target, 0 unlike one another."""
    candidates: PositiveInt = 10
    """The method chooses among this number times n rows; for mmr, k-centre and herding."""
    near_duplicate: Share | None = 0.9
    """Jaccard similarity of 5-character shingles from which on a row is a repetition, of what it
    asks and of what it answers; null looks for equal rows only. Of two such rows the nearer stays,
    of equals the earlier; of random rows the one drawn first.
    """
    overlap: bool = True
    """Leave out rows that hold a prompt of eval."""
    against: Annotated[list[str], FILES] = []
    """Further evaluation sets that no row may hold: files, or lm_eval:TASK."""
    quality: Quality = Quality()
    """Which old rows are good enough to choose from."""
    strict: bool = False
    """A row that cannot be read is an error instead of being counted as unparsed."""
    processes: Annotated[PositiveInt | None, MACHINE] = None
    """Processes that work on it; null is one for each CPU."""
    engine: Annotated[Literal["local", "ray"], MACHINE] = "local"
    """local is this machine; ray is all machines of a Ray cluster."""

    @model_validator(mode="after")
    def _what_the_method_needs(self) -> Select:
        if self.method == "embedding" and self.model is None:
            raise ValueError(
                "model: embedding needs one, a folder or Hub id of sentence-transformers or "
                "model2vec"
            )
        if self.method == "stratified" and self.column is None:
            raise ValueError("column: stratified needs the column that names a row's stratum")
        if self.per_target is not None:
            if self.method not in SCORED or self.method == "near-and-far":
                raise ValueError(
                    f"per_target: it is for what is near to the target, not for {self.method}"
                )
            if self.to == "centroid":
                raise ValueError(
                    "per_target: with the centroid no row is nearest to one row of the target"
                )
        return self
