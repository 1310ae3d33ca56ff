"""Further target rows: the questions in other words, and pairs that differ in one fact."""

from __future__ import annotations

from typing import Final, Literal

from pydantic import PositiveInt, model_validator

from replaykit.recipe.base import Share, Strict

# Of a row that was made: how. Training finds the pairs by the second one.
BACK_TRANSLATION: Final = "back-translation"
COUNTERFACTUAL: Final = "counterfactual"


class BackTranslation(Strict):
    """A question goes through another language and back; its answer stays."""

    pivot: str = "German"
    """The language that a question is translated into."""
    language: str = "English"
    """The language of the questions, into which it is translated back."""
    model: str | None = None
    """The model that translates; null: the recipe's."""
    meaning: Literal["tfidf", "embedding", "answer"] = "tfidf"
    """How it is checked that the meaning stays: tfidf, by the runs of 2 to 4 characters that both
    questions share; embedding, by a model of sentences; answer, by the verifier: the recipe's model
    answers the new question, and has to be right."""
    min_similarity: Share = 0.4
    """The least cosine of both questions that is kept, for tfidf and embedding."""
    embedding: str | None = None
    """The sentence-transformers or model2vec model, for meaning: embedding."""

    @model_validator(mode="after")
    def _what_the_check_needs(self) -> BackTranslation:
        if self.meaning == "embedding" and self.embedding is None:
            raise ValueError("meaning: embedding needs a model, such as embedding: ./model")
        if self.meaning != "embedding" and self.embedding is not None:
            raise ValueError(f"embedding: it is for meaning: embedding, not {self.meaning}")
        return self


class Counterfactual(Strict):
    """A second row that differs from its parent in one fact of the question, and so in its answer.

    The new answer is computed, or written by an editor.
    """

    by: Literal["arithmetic", "editor"] = "editor"
    """arithmetic: a number is changed, and the calculation of the answer is done anew; editor: a
    model changes a number, a name or a choice, and writes the answer."""
    editor: str | None = None
    """The model that edits; null: the recipe's."""
    max_words: PositiveInt = 4
    """Words of the changed fact, at most."""
    confirm: bool = True
    """The editor answers its own question once more, without its first answer in view, and both
    have to agree."""

    @model_validator(mode="after")
    def _an_editor_edits(self) -> Counterfactual:
        if self.by == "arithmetic" and self.editor is not None:
            raise ValueError("editor: it is for by: editor; arithmetic asks no model")
        return self


class Augment(Strict):
    """Further target rows, made of those that there are. Their parents stay in the target."""

    back_translation: BackTranslation | None = None
    """The questions in other words; null: none."""
    counterfactual: Counterfactual | None = None
    """Pairs that differ in one fact; null: none."""
    verify: Literal["exact", "numeric"] = "exact"
    """How final answers are compared."""
    part: Share = 1.0
    """The part of the target's rows that is augmented, drawn by the seed."""
    max_tokens: PositiveInt = 512
    """Tokens of a reply, at most."""
