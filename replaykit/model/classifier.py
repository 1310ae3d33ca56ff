"""Text classifiers: encoders and decoders with a classification head, as what they are.

    classifier = TextClassifier.of_recipe(recipe)
    classifier.labels.every        # ("World", "Sports", "yes", "no"), the rows of the head
    classifier.example(record)     # tokens of the text, and label=(3,) for "no"
    classifier.load_model()        # the model with a row of its head for each of them

A record's question is the text, as the tokenizer encodes it with its own special tokens, and its
answer is the name of the label; of several labels it is the JSON list of their names.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from replaykit.data.record import Message, Record, Tool, message_of
from replaykit.errors import ChatError, LabelError
from replaykit.model import loading
from replaykit.model.chat import Chat, Example, Reply
from replaykit.model.classification_head import load_classifier, positions, untrained_classifier
from replaykit.model.labels import Labels, config_of, labels_in, labels_of
from replaykit.model.logprobs import IGNORED
from replaykit.recipe import Recipe
from replaykit.recipe.classification import NO_TEXT

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


class TextClassifier(Chat):
    """The labels and the tokenizer of a classifier, in the place of a language model's chat.

    ``limit`` is how many tokens the model reads.
    """

    only_texts: ClassVar[bool] = True

    def __init__(
        self,
        tokenizer: PreTrainedTokenizerBase,
        labels: Labels,
        *,
        name: str = "the model",
        revision: str | None = None,
        seed: int = 1,
        limit: int = 1 << 30,
    ):
        super().__init__(tokenizer, name=name)
        # No label ends a text.
        self.stop = self._ends = ()
        self.labels = labels
        self.revision = revision
        self.seed = seed
        self.limit = limit
        self.notes = self._notes()
        # Rows of a batch are padded, and decoders find the end of a text by the padding's id.
        if tokenizer.pad_token_id is None:
            tokenizer.pad_token = tokenizer.eos_token
        if tokenizer.pad_token_id is None:
            raise ChatError(f"{name}: its tokenizer has neither a padding token nor an eos token")

    @classmethod
    def of_recipe(cls, recipe: Recipe) -> TextClassifier:
        """The classifier of a recipe's model and labels."""
        model = str(recipe.model)
        labels = labels_of(recipe)
        tokenizer = loading.load_tokenizer(model, recipe.revision)
        longest = positions(config_of(model, recipe.revision))
        return cls(
            tokenizer,
            labels,
            name=model,
            revision=recipe.revision,
            seed=recipe.seed,
            limit=min(longest, tokenizer.model_max_length),
        )

    def _notes(self) -> list[str]:
        """What is said of the head."""
        labels = self.labels
        fresh = labels.every[len(labels.old) :]
        if not fresh:
            return []
        named = ", ".join(fresh)
        if not labels.old:
            return [f"{self.name} has no trained classification head; it gets one for {named}"]
        return [f"the head of {self.name} is widened by {named}; its old rows are kept as they are"]

    @property
    def template(self) -> Any:
        """Raises ChatError: nothing is asked of a classifier in words."""
        raise ChatError(
            f"{self.name} is a text classifier: {NO_TEXT}, so nothing is generated or rewritten; "
            f"replay comes from `replaykit select`, or from files: `replaykit mix --replay FILE`"
        )

    @property
    def start(self) -> tuple[int, ...]:
        """Raises ChatError as ``template`` does: no text is begun."""
        assert self.template
        return ()

    def prompt(
        self, messages: Sequence[Message], thinking: bool | None = None, tools: Sequence[Tool] = ()
    ) -> tuple[int, ...]:
        """Token ids of the text with the tokenizer's special tokens, never shortened.

        Raises LabelError where it is longer than the model reads.
        """
        text = "\n".join(message["content"] for message in messages)
        # Without its warning of long texts: those are refused here.
        tokens = tuple(self.tokenizer(text, truncation=False, verbose=False)["input_ids"])
        if len(tokens) > self.limit:
            raise LabelError(
                f"the text has {len(tokens):,} tokens, and the model reads {self.limit:,}"
            )
        return tokens

    def example(self, record: Record) -> Example:
        """The text's tokens, and as ``label`` what the head is to say; no label where the record
        has none.

        Raises LabelError for a name that is no label, and for a text that is too long.
        """
        if record.messages[-1]["role"] != "assistant":
            return Example((), ())
        tokens = self.prompt(record.messages[:-1])
        label = self._label(record.answer)
        # The first token stands for the row where tokens with loss are counted.
        loss = tuple(place == 0 for place in range(len(tokens)))
        return Example(tokens, loss, (len(record.messages) - 1,), label=label)

    def _label(self, answer: str) -> tuple[int, ...]:
        """The number of the label; of several labels a 1 or a 0 for each, IGNORED for those of the
        other head.
        """
        names = self.names(answer)
        numbers = self.labels.numbers(names)
        if not self.labels.multi:
            if len(numbers) != 1:
                raise LabelError(
                    f"{len(numbers)} labels, {', '.join(names)}, where a row has one; "
                    "classification.multi_label: true takes any number"
                )
            return tuple(numbers)
        meant = self._meant(numbers)
        return tuple(
            int(number in numbers) if one_of_them else IGNORED
            for number, one_of_them in enumerate(meant)
        )

    def _meant(self, numbers: Sequence[int]) -> Sequence[bool]:
        """Of every label whether a row of these says something of it."""
        if not self.labels.apart:
            return [True] * len(self.labels.every)
        if not numbers:
            raise LabelError("no label, so it is not known which of the two heads it is for")
        tasks = {self.labels.beside(number) for number in numbers}
        if len(tasks) > 1:
            raise LabelError("labels of both heads in one row; heads: joint takes them")
        return tasks.pop()

    def names(self, answer: str) -> list[str]:
        """The labels that an answer names."""
        return labels_in(answer) if self.labels.multi else [answer.strip()]

    def answer(self, numbers: Sequence[int]) -> str:
        """Labels by their numbers, as a record's answer has them."""
        names = [self.labels.every[number] for number in sorted(numbers)]
        if self.labels.multi:
            return json.dumps(names, ensure_ascii=False)
        return names[0]

    def among(self, record: Record, *, old: bool) -> str | None:
        """All labels of the row's task, as a JSON schema; None where its labels are of no one task.

        The task is that of the row's labels; where both tasks have them, ``old`` says which.
        """
        named = set(self.names(record.answer))
        tasks = [self.labels.old, self.labels.new] if old else [self.labels.new, self.labels.old]
        for task in tasks:
            if task and named <= set(task):
                return json.dumps({"enum": task}, ensure_ascii=False)
        return None

    def not_learned(self, records: Iterable[Record]) -> list[str]:
        """The labels of the new task that none of the records has."""
        labels = self.labels
        had = {name for record in records for name in self.names(record.answer)}
        left = [name for name in labels.new or labels.old if name not in had]
        if not left:
            return []
        return [f"not learned: {', '.join(left)}; no row of the training has such a label"]

    def of_tuned(self) -> list[str]:
        """Where there are two heads: how other programs choose among their labels."""
        labels = self.labels
        if not (labels.apart and labels.old and labels.new):
            return []
        return [
            "classification.heads: apart: eval asks each row among the labels of its own task, and "
            '`pipeline("text-classification")` on the saved folder chooses among those of both'
        ]

    def reply(
        self, tokens: Sequence[int], thinking: bool | None = None, tools: Sequence[Tool] = ()
    ) -> Reply:
        """The answer of a ``ClassifierEngine``, whose tokens are numbers of labels."""
        return Reply(message_of("assistant", self.answer(tokens)), "missing", special=False)

    # --- the model --------------------------------------------------------------------------------

    def load_model(
        self,
        model: str | None = None,
        *,
        train: bool = False,
        quantisation: Any = None,
        narrow: bool = False,
    ) -> Any:
        """The recipe's model, or one that was tuned from it, as ``load_classifier`` gives it."""
        tuned = model not in (None, self.name)
        return load_classifier(
            model if tuned else self.name,
            None if tuned else self.revision,
            self.labels,
            tuned=tuned,
            seed=self.seed,
            pad=self.tokenizer.pad_token_id,
            train=train,
            quantisation=quantisation,
            narrow=narrow,
        )

    def untrained(self, *, dtype: Any = None) -> Any:
        """The recipe's model without its weights."""
        pad = self.tokenizer.pad_token_id
        return untrained_classifier(self.name, self.revision, self.labels, pad=pad, dtype=dtype)

    def save_base(self, folder: Path) -> Path:
        """Writes the base with its head widened, as a training begins with it, to a folder."""
        import torch

        dtype = loading.stored_dtype(self.name, self.revision)
        self.load_model(train=True).to(dtype or torch.float32).save_pretrained(folder)
        self.tokenizer.save_pretrained(folder)
        return folder
